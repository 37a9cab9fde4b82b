/* The files of `batch`: lines in, lines out, and which ids have been there. */
#include "batch.h"
#include "system.h"

#include <time.h>

/* ---- Lines in --------------------------------------------------------------------------------------------------- */

enum { MAX_LINE = 64 << 20 /* beyond any prompt: a file without newlines must not fill the memory */, BUFFER = 65536 };

void lines_begin(line_reader *r, int descriptor, const char *path) {
    memset(r, 0, sizeof *r);
    r->descriptor = descriptor;
    r->path = path;
    r->is_read = 1;
    r->buffer = (char *)cli_allocate(BUFFER, 1);
}

int lines_open(line_reader *r, const char *path) {
    system_file file;
    int is_stdin = strcmp(path, "-") == 0;
    lines_begin(r, is_stdin ? SYSTEM_STDIN : system_open(path, SYSTEM_READ), is_stdin ? "standard input" : path);
    r->is_owned = !is_stdin && r->descriptor >= 0;
    /* a pipe that nobody writes */
    if (r->descriptor < 0 && cli_interrupted()) return cli_fail("interrupted while opening %s", path);
    if (r->descriptor < 0 || system_look_at(r->descriptor, &file) != 0)
        return cli_fail("cannot read '%s': %s", path, strerror(errno));
    return file.kind == SYSTEM_FOLDER ? cli_fail("cannot read '%s': is a folder", path) : CLI_OK;
}

static int is_stopped(const line_reader *r) { return r->can_stop && cli_interrupted(); }

/* 0 at the end, and where a signal stops a reader that can be stopped. */
static int refill(line_reader *r) {
    ssize_t n;
    do n = r->can_stop ? cli_read(r->descriptor, r->buffer, BUFFER) : system_read(r->descriptor, r->buffer, BUFFER);
    while (n < 0 && errno == EINTR && !is_stopped(r));
    if (n < 0 && !is_stopped(r)) r->error = errno;
    r->begin = 0;
    r->end = n > 0 ? (size_t)n : 0;
    return n > 0;
}

/* What the buffer has of the line. */
static void take_piece(line_reader *r) {
    const char *piece = r->buffer + r->begin, *newline = (const char *)memchr(piece, '\n', r->end - r->begin);
    size_t length = newline ? (size_t)(newline - piece) : r->end - r->begin, room = MAX_LINE - r->line.length;
    r->is_whole = newline != NULL;
    r->begin += length + (size_t)r->is_whole;
    r->offset += length + (size_t)r->is_whole;
    if (length > room) r->is_too_long = 1;
    cli_append_bytes(&r->line, piece, length > room ? room : length);
}

/* Reads on in the line, or in the next one. 0: it would have to wait, and may not. */
static int read_line(line_reader *r, int may_wait) {
    if (r->is_read) {
        r->line.length = 0;
        r->is_whole = r->is_too_long = r->is_read = 0;
    }
    while (!r->is_whole) {
        if (r->begin == r->end) {
            if (!may_wait && !system_can_read(r->descriptor)) return 0;
            if (!refill(r)) break;
        }
        take_piece(r);
    }
    r->is_read = 1;
    return 1;
}

int lines_ready(line_reader *r) {
    if (!r->is_ahead) r->is_ahead = read_line(r, 0);
    return r->is_ahead;
}

int lines_next(line_reader *r) {
    if (!r->is_ahead) read_line(r, 1);
    r->is_ahead = 0;
    if (r->error || is_stopped(r) || (!r->is_whole && !r->line.length)) return 0;
    r->number++;
    return 1;
}

int lines_check(const line_reader *r) {
    return r->error ? cli_fail("cannot read '%s': %s", r->path, strerror(r->error)) : CLI_OK;
}

void lines_free(line_reader *r) {
    if (r->is_owned) system_close(r->descriptor);
    free(r->buffer);
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

/* Ids come from strangers, who must not be able to choose two that count as one, or many that crowd in one place: the
   hash begins and goes on with numbers that nobody outside this process knows. */
static void choose_keys(id_set *set) {
    size_t i;
    for (i = 0; i < sizeof set->keys / sizeof *set->keys; i++)
        set->keys[i] = (uint64_t)time(NULL) << 32 ^ (uint64_t)system_process_number() ^ (uint64_t)(uintptr_t)set;
    if (!system_random(set->keys, sizeof set->keys)) set->keys[1] = mix(set->keys[0]);
}

/* Two chains of mixes, 64 bits each. */
static id_slot hash_id(const id_set *set, const char *id, size_t length) {
    id_slot h = {set->keys[0] + (uint64_t)length, set->keys[1] + (uint64_t)length};
    size_t i;
    for (i = 0; i < length; i++) {
        h.a = mix(h.a + set->keys[1] + (unsigned char)id[i]);
        h.b = mix((h.b ^ set->keys[0]) + (unsigned char)id[i] + 1);
    }
    h.b &= ~(uint64_t)MARKS;
    return h;
}

static id_slot *find_slot(const id_set *set, id_slot h) {
    size_t i = (size_t)h.a & (set->capacity - 1);
    while ((set->slots[i].b & MARKS) && (set->slots[i].a != h.a || (set->slots[i].b & ~(uint64_t)MARKS) != h.b))
        i = (i + 1) & (set->capacity - 1);
    return &set->slots[i];
}

static void grow(id_set *set) {
    id_set larger = *set;
    size_t i;
    larger.capacity = set->capacity ? set->capacity * 2 : 1024;
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
    id_slot h, *slot;
    unsigned before;
    if (!set->capacity) choose_keys(set);
    h = hash_id(set, id, length);
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
    cli_append(key, "#%llu", (unsigned long long)number);
}

/* Version 0.1 gave a line without an id of its own the id "line N", which a request may have, too: what tells them
   apart is why it failed. The line's number, or 0. */
static uint64_t old_line_number(const char *id, const char *error) {
    static const char *const reasons[] = {
        "not JSON", "a request is a JSON object", "no \"id\"", "\"id\" must be", "the id ", "longer than "
    };
    int64_t number;
    size_t i;
    if (!id || !error || strncmp(id, "line ", 5) != 0 || !cli_read_int(id + 5, 1, INT64_MAX, &number)) return 0;
    for (i = 0; i < sizeof reasons / sizeof reasons[0]; i++)
        if (strncmp(error, reasons[i], strlen(reasons[i])) == 0) return (uint64_t)number;
    return 0;
}

static int result_key(const tsk_json_value *result, tsk_text *key) {
    const tsk_json_value *id = tsk_json_get(result, "id");
    int64_t number = 0;
    uint64_t old = old_line_number(tsk_json_string(id, NULL), tsk_json_string(tsk_json_get(result, "error"), NULL));
    if (!old && tsk_json_type_of(id) != TSK_JSON_NULL) return ids_key(id, key);
    if (!old && (!tsk_json_int64(tsk_json_get(result, "line"), &number) || number < 1)) return 0;
    ids_line_key(old ? old : (uint64_t)number, key);
    return 1;
}

/* Every line begins so. What does not is somebody else's file, of which nothing may be cut off. */
static int begins_like_ours(const tsk_text *line) {
    static const char start[] = "{\"id\":";
    size_t n = line->length < sizeof start - 1 ? line->length : sizeof start - 1;
    return memcmp(line->data, start, n) == 0;
}

int ids_result_key(const line_reader *r, tsk_text *key, int *has_failed) {
    tsk_json *document = NULL;
    int known = r->is_whole && !r->is_too_long && r->line.length && begins_like_ours(&r->line) &&
                tsk_json_parse(r->line.data, r->line.length, NULL, NULL, &document, NULL) == TSK_OK &&
                result_key(tsk_json_root(document), key);
    *has_failed = known && tsk_json_get(tsk_json_root(document), "error") != NULL;
    tsk_json_free(document);
    return known;
}

/* ---- Lines out -------------------------------------------------------------------------------------------------- */

static int cannot_write(const char *path, const char *reason) {
    return cli_fail("cannot write '%s': %s", path, reason);
}

static int read_written_id(const line_reader *r, id_set *ids, tsk_text *key) {
    int has_failed;
    if (!ids_result_key(r, key, &has_failed)) return 0;
    ids_mark(ids, key->data, key->length, has_failed ? ID_WRITTEN | ID_FAILED : ID_WRITTEN);
    return 1;
}

/* What an earlier run has written. */
static int read_written(batch_output *out, id_set *ids) {
    line_reader r;
    tsk_text key = {0};
    int status = CLI_OK;
    lines_begin(&r, out->descriptor, out->path);
    while (status == CLI_OK && lines_next(&r)) {
        if (r.is_whole ? read_written_id(&r, ids, &key) : begins_like_ours(&r.line)) {
            if (r.is_whole) out->size = r.offset;
        } else
            status = cli_fail("%s, line %llu: not a result of tokenskip batch; the file stays as it is", out->path,
                              (unsigned long long)r.number);
    }
    if (status == CLI_OK) status = lines_check(&r);
    if (status == CLI_OK && r.offset > out->size && system_truncate(out->descriptor, out->size) != 0)
        status = cannot_write(out->path, strerror(errno));
    lines_free(&r);
    tsk_text_free(&key);
    return status;
}

/* What runs with another number of ranks have left beside it: whole lines only, since others may be writing. */
static void read_sibling(const char *path, id_set *ids) {
    line_reader r;
    tsk_text key = {0};
    int descriptor = system_open(path, SYSTEM_READ);
    if (descriptor < 0) return;
    lines_begin(&r, descriptor, path);
    r.is_owned = 1;
    while (lines_next(&r) && read_written_id(&r, ids, &key)) continue;
    lines_free(&r);
    tsk_text_free(&key);
}

/* Closing any descriptor of a file gives up the process's lock on it: its own file is left out. */
static void read_siblings(batch_output *out, const char *base, id_set *ids) {
    system_paths found = system_find(base, ".shard-*-of-*");
    size_t i;
    if (found.count) out->is_numbered = 1;
    for (i = 0; i < found.count; i++) {
        if (strcmp(found.items[i], out->path) != 0) read_sibling(found.items[i], ids);
        free(found.items[i]);
    }
    free(found.items);
    if (strcmp(base, out->path) != 0) read_sibling(base, ids);
}

int batch_lock(int descriptor, const char *path, int alone) {
    if (system_lock(descriptor, alone)) return CLI_OK;
    return cli_fail("cannot %s '%s': another process is writing it", alone ? "write" : "read", path);
}

static int check_output(const batch_output *out, const line_reader *input) {
    system_file ours, theirs;
    if (system_look_at(out->descriptor, &ours) != 0) return cannot_write(out->path, strerror(errno));
    if (ours.kind != SYSTEM_REGULAR) return out->is_stream ? CLI_OK : cannot_write(out->path, "not a regular file");
    if (system_look_at(input->descriptor, &theirs) == 0 && system_is_same(&ours, &theirs))
        return cannot_write(out->path, "it is the input");
    return out->is_stream ? CLI_OK : batch_lock(out->descriptor, out->path, 1);
}

int batch_output_open(batch_output *out, const char *path, const char *base, const line_reader *input, id_set *ids) {
    int status;
    memset(out, 0, sizeof *out);
    out->is_stream = strcmp(base, "-") == 0;
    out->path = out->is_stream ? "standard output" : path;
    out->descriptor = out->is_stream ? SYSTEM_STDOUT : system_open(path, SYSTEM_APPEND);
    if (out->descriptor < 0) return cannot_write(path, strerror(errno));
    status = check_output(out, input);
    if (status != CLI_OK || out->is_stream) return status;
    out->is_ours = 1;
    out->is_shard = out->is_numbered = strcmp(path, base) != 0;
    status = read_written(out, ids);
    if (status == CLI_OK) read_siblings(out, base, ids);
    return status;
}

int batch_output_write(batch_output *out, const tsk_text *line) {
    size_t done = 0;
    while (done < line->length) {
        ssize_t n = system_write(out->descriptor, line->data + done, line->length - done);
        if (n > 0) done += (size_t)n;
        else if (n == 0 || errno != EINTR) {
            int reason = n == 0 ? ENOSPC : errno;
            /* the part of a line that did get there */
            if (!out->is_stream && system_truncate(out->descriptor, out->size) != 0) reason = errno;
            return cannot_write(out->path, strerror(reason));
        }
    }
    out->size += line->length;
    return CLI_OK;
}

int batch_output_close(batch_output *out, int status) {
    system_file file;
    int is_empty;
    if (!out->path || out->descriptor < 0 || out->is_stream) return status;
    /* while the lock is held: nobody else has it open to write */
    is_empty = out->is_ours && out->is_shard && system_look_at(out->descriptor, &file) == 0 && file.size == 0;
    if (is_empty && SYSTEM_REPLACES_OPEN_FILES) system_remove(out->path);
    if (system_close(out->descriptor) != 0 && status == CLI_OK) status = cannot_write(out->path, strerror(errno));
    if (is_empty && !SYSTEM_REPLACES_OPEN_FILES) system_remove(out->path);
    return status;
}
