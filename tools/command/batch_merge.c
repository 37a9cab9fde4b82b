/* `batch --merge`: the results of shards in one file, in the order of the input. */
#include "batch.h"
#include "output.h"
#include "system.h"

/* A result in one of the files. */
typedef struct merge_line {
    uint64_t request;          /* its number in the input, from 1; 0: not known yet */
    uint64_t number, offset;   /* of the line in its file */
    size_t length;             /* without the newline */
    size_t file;
} merge_line;

typedef struct merge_file {
    line_reader reader;
    system_file file;
    size_t first, count;       /* its lines */
} merge_file;

typedef struct merge {
    const cli_settings *settings;
    merge_file *files;
    size_t n_files;            /* opened */
    merge_line *lines;
    size_t n_lines, capacity;
    size_t n_numbered;         /* lines that say themselves which request they are of */
    id_set ids;
    tsk_text key;
} merge;

static const char *path_of(const merge *m, size_t file) { return m->files[file].reader.path; }

/* ---- Reading ---------------------------------------------------------------------------------------------------- */

static int bad_line(const line_reader *r, const char *reason) {
    return cli_fail("%s, line %llu: %s", r->path, (unsigned long long)r->number, reason);
}

/* The number in `,"request":N}` at the line's end, where batch writes it; 0: it is not there. */
static uint64_t request_number(const tsk_text *line) {
    static const char name[] = ",\"request\":";
    size_t end = line->length - 1, digits = end, start;
    char number[24];
    int64_t value;
    while (digits > 0 && line->data[digits - 1] >= '0' && line->data[digits - 1] <= '9') digits--;
    if (digits < sizeof name - 1 || end - digits >= sizeof number || line->data[end] != '}') return 0;
    start = digits - (sizeof name - 1);
    if (memcmp(line->data + start, name, sizeof name - 1) != 0) return 0;
    memcpy(number, line->data + digits, end - digits);
    number[end - digits] = 0;
    return cli_read_int(number, 1, INT64_MAX, &value) ? (uint64_t)value : 0;
}

static void add_line(merge *m, const line_reader *r, uint64_t offset) {
    merge_line *line;
    if (m->n_lines == m->capacity) {
        m->capacity = m->capacity ? 2 * m->capacity : 1024;
        m->lines = (merge_line *)cli_reallocate(m->lines, m->capacity, sizeof *m->lines);
    }
    line = &m->lines[m->n_lines++];
    line->request = request_number(&r->line);
    line->number = r->number;
    line->offset = offset;
    line->length = r->line.length;
    line->file = m->n_files - 1;
    m->n_numbered += line->request != 0;
}

/* A key begins with what it is of: a string has its quote, a line without an id '#'. */
static int twice(const merge *m, const line_reader *r) {
    const char *key = m->key.data;
    return cli_fail("%s, line %llu: the result of %s%s%s was in an earlier line or file already", r->path,
                    (unsigned long long)r->number, key[0] == '#' ? "the input's line " : "the id ",
                    key + (key[0] == '#'), key[0] == '"' ? "\"" : "");
}

static int read_line(merge *m, const line_reader *r, uint64_t offset) {
    int has_failed;
    if (!r->is_whole) return bad_line(r, "it is cut off; run batch again, which completes the file");
    if (!ids_result_key(r, &m->key, &has_failed)) return bad_line(r, "not a result of tokenskip batch");
    if (ids_mark(&m->ids, m->key.data, m->key.length, ID_WRITTEN) & ID_WRITTEN) return twice(m, r);
    add_line(m, r, offset);
    return CLI_OK;
}

static int read_file(merge *m, const char *path) {
    merge_file *file = &m->files[m->n_files++];
    line_reader *r = &file->reader;
    uint64_t offset = 0;
    int status = lines_open(r, path);
    if (status == CLI_OK && (system_look_at(r->descriptor, &file->file) != 0 || file->file.kind != SYSTEM_REGULAR))
        status = cli_fail("cannot read '%s': not a regular file", path);
    if (status == CLI_OK) status = batch_lock(r->descriptor, path, 0);
    file->first = m->n_lines;
    r->can_stop = 1;
    while (status == CLI_OK && lines_next(r)) {
        status = read_line(m, r, offset);
        offset = r->offset;
    }
    file->count = m->n_lines - file->first;
    if (status == CLI_OK) status = lines_check(r);
    return status == CLI_OK && cli_interrupted() ? cli_fail("interrupted: nothing was written") : status;
}

/* ---- Order ------------------------------------------------------------------------------------------------------ */

/* I and N of a name that ends in ".shard-I-of-N". */
static int read_name(const char *path, int64_t *index, int64_t *count) {
    static const char middle[] = "-of-", start[] = ".shard-";
    const char *name = path, *at;
    char number[24];
    size_t n;
    while ((at = strstr(name, start)) != NULL) name = at + sizeof start - 1;
    at = strstr(name, middle);
    n = at ? (size_t)(at - name) : 0;
    if (name == path || !n || n >= sizeof number) return 0;
    memcpy(number, name, n);
    number[n] = 0;
    return cli_read_int(at + sizeof middle - 1, 1, INT32_MAX, count) && cli_read_int(number, 0, *count - 1, index);
}

/* Results that do not say where they belong, as version 0.1 wrote them: they were dealt to the shards in turn. One file
   alone is in order. */
static int number_by_names(merge *m) {
    int64_t index, count, all = 0;
    size_t f, i;
    for (f = 0; f < m->n_files; f++) {
        index = 0;
        count = 1;
        if (m->n_files > 1 && (!read_name(path_of(m, f), &index, &count) || (all && count != all)))
            return cli_fail("%s: its lines do not say where they belong, nor does its name, as %s.shard-I-of-N would",
                            path_of(m, f), m->settings->output);
        all = count;
        for (i = 0; i < m->files[f].count; i++)
            m->lines[m->files[f].first + i].request = (uint64_t)i * (uint64_t)count + (uint64_t)index + 1;
    }
    return CLI_OK;
}

static int compare_lines(const void *a, const void *b) {
    const merge_line *x = (const merge_line *)a, *y = (const merge_line *)b;
    if (x->request != y->request) return x->request < y->request ? -1 : 1;
    if (x->file != y->file) return x->file < y->file ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

/* Every request has one result, from the first to the last that has any. */
static int check_order(const merge *m) {
    uint64_t expected = 1;
    size_t i;
    for (i = 0; i < m->n_lines; i++, expected++) {
        const merge_line *line = &m->lines[i], *before = i ? line - 1 : NULL;
        if (line->request < expected)
            return cli_fail("%s, line %llu: the result of request %llu is in %s, line %llu, already",
                            path_of(m, line->file), (unsigned long long)line->number,
                            (unsigned long long)line->request, path_of(m, before->file),
                            (unsigned long long)before->number);
        if (line->request > expected)
            return cli_fail("%s, line %llu: it is the result of request %llu, and that of request %llu is in none"
                            " of the files", path_of(m, line->file), (unsigned long long)line->number,
                            (unsigned long long)line->request, (unsigned long long)expected);
    }
    return CLI_OK;
}

static int put_in_order(merge *m) {
    size_t i;
    int status = CLI_OK;
    for (i = 0; m->n_numbered && i < m->n_lines; i++)
        if (!m->lines[i].request)
            return cli_fail("%s, line %llu: it does not say which request it is of, as lines of other files do",
                            path_of(m, m->lines[i].file), (unsigned long long)m->lines[i].number);
    if (!m->n_numbered) status = number_by_names(m);
    if (status != CLI_OK) return status;
    if (m->n_lines) qsort(m->lines, m->n_lines, sizeof *m->lines, compare_lines);
    return check_order(m);
}

/* ---- Writing ---------------------------------------------------------------------------------------------------- */

/* What is replaced must be among what is written. */
static int check_replaced(merge *m, int descriptor, const char *path) {
    line_reader r;
    int status = CLI_OK, has_failed;
    lines_begin(&r, descriptor, path);
    while (status == CLI_OK && lines_next(&r) && r.is_whole)
        if (!ids_result_key(&r, &m->key, &has_failed))
            status = bad_line(&r, "not a result of tokenskip batch; the file stays as it is");
        else if (!ids_mark(&m->ids, m->key.data, m->key.length, 0))
            status = bad_line(&r, "a result that none of the files has; the file stays as it is");
    if (status == CLI_OK) status = lines_check(&r);
    lines_free(&r);
    return status;
}

/* *descriptor keeps the lock on what is there, until it is closed. -1: nothing is. */
static int check_output(merge *m, const char *path, int *descriptor) {
    system_file there;
    size_t f;
    if (system_look(path, &there) != 0 || there.kind != SYSTEM_REGULAR) return output_check(path);
    for (f = 0; f < m->n_files; f++)
        if (system_is_same(&m->files[f].file, &there))
            return cli_fail("cannot write '%s': it is one of the files to merge", path);
    *descriptor = system_open(path, SYSTEM_UPDATE);
    if (*descriptor < 0) return cli_fail("cannot write '%s': %s", path, strerror(errno));
    return batch_lock(*descriptor, path, 1) == CLI_OK ? check_replaced(m, *descriptor, path) : CLI_FAILED;
}

/* The line as it is in its file, without the number that merging needed. */
static int read_back(const merge *m, const merge_line *line, tsk_text *out) {
    const line_reader *r = &m->files[line->file].reader;
    size_t done = 0;
    out->length = 0;
    while (done < line->length) {
        char piece[65536];
        size_t wanted = line->length - done < sizeof piece ? line->length - done : sizeof piece;
        ssize_t n = system_read_at(r->descriptor, piece, wanted, line->offset + done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return cli_fail("cannot read '%s': %s", r->path, n < 0 ? strerror(errno) : "it has become shorter");
        cli_append_bytes(out, piece, (size_t)n);
        done += (size_t)n;
    }
    if (m->n_numbered) {
        while (out->data[out->length - 1] != ',') out->length--;
        out->length--;
        cli_append(out, "}");
    }
    cli_append(out, "\n");
    return CLI_OK;
}

/* To a file, which is there when it is whole; `file` NULL: to standard output. */
static int write_lines(const merge *m, output_file *file) {
    tsk_text text = {0};
    size_t i;
    int status = CLI_OK;
    for (i = 0; i < m->n_lines && status == CLI_OK; i++) {
        status = cli_interrupted() ? cli_fail("interrupted: the results are not all joined")
                                   : read_back(m, &m->lines[i], &text);
        if (status == CLI_OK)
            status = file ? output_append(file, text.data, text.length) : cli_write(text.data, text.length);
    }
    tsk_text_free(&text);
    return status;
}

static int write_file(merge *m, const char *path) {
    output_file file;
    int replaced = -1, status = check_output(m, path, &replaced);
    if (status == CLI_OK) {
        status = output_open(&file, path);
        if (status == CLI_OK) status = write_lines(m, &file);
        if (replaced >= 0 && !SYSTEM_REPLACES_OPEN_FILES) {
            system_close(replaced);
            replaced = -1;
        }
        status = output_close(&file, status);
    }
    if (replaced >= 0) system_close(replaced);
    return status;
}

/* ---- The command ------------------------------------------------------------------------------------------------ */

static void free_merge(merge *m) {
    size_t f;
    for (f = 0; f < m->n_files; f++) lines_free(&m->files[f].reader);
    free(m->files);
    free(m->lines);
    ids_free(&m->ids);
    tsk_text_free(&m->key);
}

int batch_merge(const cli_settings *settings) {
    merge m;
    size_t f;
    int status = CLI_OK;
    memset(&m, 0, sizeof m);
    m.settings = settings;
    m.files = (merge_file *)cli_allocate(settings->n_paths, sizeof *m.files);
    cli_catch_interrupts();
    for (f = 0; f < settings->n_paths && status == CLI_OK; f++) status = read_file(&m, settings->paths[f]);
    if (status == CLI_OK) status = put_in_order(&m);
    if (status == CLI_OK)
        status = strcmp(settings->output, "-") == 0 ? write_lines(&m, NULL) : write_file(&m, settings->output);
    if (status == CLI_OK) cli_note("%zu results of %zu files", m.n_lines, m.n_files);
    free_merge(&m);
    return status;
}
