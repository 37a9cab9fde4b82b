/* The files of `batch`: lines in, lines out, and which ids have been there. */
#include "batch.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- Lines in --------------------------------------------------------------------------------------------------- */

enum { MAX_LINE = 64 << 20 }; /* beyond any prompt: a file without newlines must not fill the memory */

/* As getc, but a signal ends the wait for a byte, and a line without an end. */
static int next_byte(line_reader *r) {
    if (r->begin == r->end) {
        ssize_t n = cli_read(fileno(r->file), r->bytes, sizeof r->bytes);
        r->begin = 0;
        r->end = n > 0 ? (size_t)n : 0;
        r->failed = n < 0 ? errno : 0;
        if (n <= 0) return EOF;
    }
    return (unsigned char)r->bytes[r->begin++];
}

int lines_next(line_reader *r) {
    char piece[4096];
    size_t n = 0;
    int c = EOF;
    r->line.length = 0;
    r->is_whole = r->is_too_long = 0;
    while (!r->is_whole && (c = next_byte(r)) != EOF) {
        r->offset++;
        if (c == '\n') r->is_whole = 1;
        else if (r->line.length + n >= MAX_LINE) r->is_too_long = 1;
        else piece[n++] = (char)c;
        if (n == sizeof piece || r->is_whole) {
            cli_append_bytes(&r->line, piece, n);
            n = 0;
        }
    }
    cli_append_bytes(&r->line, piece, n);
    if (r->failed || (c == EOF && !r->line.length)) return 0;
    r->number++;
    return 1;
}

void lines_free(line_reader *r) {
    if (r->file) fclose(r->file);
    tsk_text_free(&r->line);
    memset(r, 0, sizeof *r);
}

/* ---- Ids -------------------------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x) { /* MurmurHash3's finalizer */
    x = (x ^ (x >> 33)) * UINT64_C(0xff51afd7ed558ccd);
    x = (x ^ (x >> 33)) * UINT64_C(0xc4ceb9fe1a85ec53);
    return x ^ (x >> 33);
}

/* The low bits of a slot's second hash; a slot without a mark is empty. */
enum { MARKS = ID_WRITTEN | ID_SEEN | ID_FAILED };

/* Two unlike hashes of 64 bits: FNV-1a, and a chain of mixes. */
static id_slot hash_id(const char *id, size_t length) {
    id_slot h = {UINT64_C(0xcbf29ce484222325), 0};
    size_t i;
    h.b = (uint64_t)length;
    for (i = 0; i < length; i++) {
        h.a = (h.a ^ (unsigned char)id[i]) * UINT64_C(0x100000001b3);
        h.b = mix(h.b + (unsigned char)id[i] + 1);
    }
    h.a = mix(h.a);
    h.b &= ~(uint64_t)MARKS;
    return h;
}

static id_slot *find_slot(const id_set *set, id_slot h) {
    size_t i = (size_t)h.a & (set->capacity - 1);
    while ((set->slots[i].b & MARKS) && (set->slots[i].a != h.a || (set->slots[i].b & ~(uint64_t)MARKS) != h.b)) i = (i + 1) & (set->capacity - 1);
    return &set->slots[i];
}

static void grow(id_set *set) {
    id_set larger = {NULL, 0, 0};
    size_t i;
    larger.capacity = set->capacity ? set->capacity * 2 : 1024;
    larger.count = set->count;
    larger.slots = (id_slot *)cli_allocate(larger.capacity, sizeof *larger.slots);
    for (i = 0; i < set->capacity; i++) {
        id_slot h = set->slots[i];
        if (!(h.b & MARKS)) continue;
        h.b &= ~(uint64_t)MARKS;
        *find_slot(&larger, h) = set->slots[i];
    }
    free(set->slots);
    *set = larger;
}

unsigned ids_mark(id_set *set, const char *id, size_t length, unsigned mark) {
    id_slot h = hash_id(id, length), *slot;
    unsigned before;
    if ((set->count + 1) * 4 > set->capacity * 3) grow(set);
    slot = find_slot(set, h);
    before = (unsigned)(slot->b & MARKS);
    if (!before && !mark) return 0;
    if (!before) set->count++;
    slot->a = h.a;
    slot->b = h.b | before | mark;
    return before;
}

void ids_free(id_set *set) {
    free(set->slots);
    memset(set, 0, sizeof *set);
}

int ids_key(const tsk_json_value *id, tsk_text *key) {
    size_t length;
    const char *text = tsk_json_string(id, &length);
    int64_t number;
    key->length = 0;
    if (text) {
        cli_append_bytes(key, "\"", 1);
        cli_append_bytes(key, text, length);
    } else if (tsk_json_int64(id, &number)) cli_append(key, "%lld", (long long)number);
    else return 0;
    return 1;
}

void ids_line_key(uint64_t number, tsk_text *key) {
    key->length = 0;
    cli_append(key, "\"line %llu", (unsigned long long)number);
}

/* ---- Lines out -------------------------------------------------------------------------------------------------- */

static int cannot_write(const char *path, const char *reason) { return cli_fail("cannot write '%s': %s", path, reason); }

/* Every line begins so. What does not is somebody else's file, of which nothing may be cut off. */
static int begins_like_ours(const tsk_text *line) {
    static const char start[] = "{\"id\":";
    size_t n = line->length < sizeof start - 1 ? line->length : sizeof start - 1;
    return memcmp(line->data, start, n) == 0;
}

static int read_written_id(const line_reader *r, id_set *ids, tsk_text *key) {
    tsk_json *document = NULL;
    int known = begins_like_ours(&r->line) && tsk_json_parse(r->line.data, r->line.length, NULL, NULL, &document, NULL) == TSK_OK &&
                ids_key(tsk_json_get(tsk_json_root(document), "id"), key);
    if (known) ids_mark(ids, key->data, key->length, tsk_json_get(tsk_json_root(document), "error") ? ID_WRITTEN | ID_FAILED : ID_WRITTEN);
    tsk_json_free(document);
    return known;
}

/* What an earlier run has written. */
static int read_written(batch_output *out, id_set *ids) {
    line_reader r;
    tsk_text key = {0};
    int status = CLI_OK;
    memset(&r, 0, sizeof r);
    r.file = out->file;
    while (status == CLI_OK && lines_next(&r)) {
        if (r.is_whole ? read_written_id(&r, ids, &key) : begins_like_ours(&r.line)) {
            if (r.is_whole) out->size = r.offset;
        } else status = cli_fail("%s, line %llu: not a result of tokenskip batch; the file stays as it is", out->path, (unsigned long long)r.number);
    }
    if (r.failed) status = cli_fail("cannot read '%s': %s", out->path, strerror(r.failed));
    if (status == CLI_OK && r.offset > out->size && ftruncate(out->descriptor, (off_t)out->size) != 0) status = cannot_write(out->path, strerror(errno));
    tsk_text_free(&r.line);
    tsk_text_free(&key);
    return status;
}

/* What runs with another number of ranks have left beside it: whole lines only, since others may be writing. */
static void read_sibling(const char *path, id_set *ids) {
    line_reader r;
    tsk_text key = {0};
    memset(&r, 0, sizeof r);
    r.file = fopen(path, "rb");
    while (r.file && lines_next(&r) && r.is_whole && read_written_id(&r, ids, &key)) continue;
    lines_free(&r);
    tsk_text_free(&key);
}

/* Closing any descriptor of a file gives up the process's lock on it: its own file is left out. */
static void read_siblings(const batch_output *out, const char *base, id_set *ids) {
    tsk_text pattern = {0};
    glob_t found;
    size_t i;
    const char *c;
    for (c = base; *c; c++) cli_append(&pattern, strchr("*?[]\\", *c) ? "\\%c" : "%c", *c);
    cli_append(&pattern, ".shard-*-of-*");
    if (glob(pattern.data, 0, NULL, &found) == 0) {
        for (i = 0; i < found.gl_pathc; i++)
            if (strcmp(found.gl_pathv[i], out->path) != 0) read_sibling(found.gl_pathv[i], ids);
        globfree(&found);
    }
    if (strcmp(base, out->path) != 0) read_sibling(base, ids);
    tsk_text_free(&pattern);
}

/* Against a second process on the same file, such as ranks whose launcher is not known here. The lock ends with the
   process; a file system without locks is taken as it is. */
static int lock_file(const batch_output *out) {
    struct flock lock;
    memset(&lock, 0, sizeof lock);
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    if (fcntl(out->descriptor, F_SETLK, &lock) == 0 || (errno != EACCES && errno != EAGAIN)) return CLI_OK;
    return cannot_write(out->path, "another process is writing it");
}

static int check_output(const batch_output *out, const line_reader *input) {
    struct stat ours, theirs;
    if (fstat(out->descriptor, &ours) != 0) return cannot_write(out->path, strerror(errno));
    if (!S_ISREG(ours.st_mode)) return cannot_write(out->path, "not a regular file");
    if (fstat(fileno(input->file), &theirs) == 0 && ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino)
        return cannot_write(out->path, "it is the input");
    return lock_file(out);
}

int batch_output_open(batch_output *out, const char *path, const char *base, const line_reader *input, id_set *ids) {
    int status;
    memset(out, 0, sizeof *out);
    out->path = path;
    out->descriptor = open(path, O_RDWR | O_CREAT | O_APPEND, 0666);
    if (out->descriptor < 0) return cannot_write(path, strerror(errno));
    status = check_output(out, input);
    if (status == CLI_OK) out->file = fdopen(out->descriptor, "r");
    if (status == CLI_OK && !out->file) status = cannot_write(path, strerror(errno));
    if (status == CLI_OK) status = read_written(out, ids);
    if (status == CLI_OK) read_siblings(out, base, ids);
    return status;
}

int batch_output_write(batch_output *out, const tsk_text *line) {
    size_t done = 0;
    while (done < line->length) {
        ssize_t n = write(out->descriptor, line->data + done, line->length - done);
        if (n > 0) done += (size_t)n;
        else if (n == 0 || errno != EINTR) {
            int reason = n == 0 ? ENOSPC : errno;
            if (ftruncate(out->descriptor, (off_t)out->size) != 0) reason = errno; /* the part of a line that did get there */
            return cannot_write(out->path, strerror(reason));
        }
    }
    out->size += line->length;
    return CLI_OK;
}

int batch_output_close(batch_output *out, int status) {
    int closed = 0;
    if (out->file) closed = fclose(out->file);
    else if (out->path && out->descriptor >= 0) closed = close(out->descriptor);
    return closed != 0 && status == CLI_OK ? cannot_write(out->path, strerror(errno)) : status;
}
