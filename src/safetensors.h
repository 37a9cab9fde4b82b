#ifndef SECTION_GUARD_SAFETENSORS
#define SECTION_GUARD_SAFETENSORS

#include "error.h"
#include "memory.h"
#include "platform.h"
#include "hash.h"
#include "json.h"

// >>safetensors =======================================================================================================
/* A file of named arrays: the length of a JSON header (8 bytes, little-endian), the header, the data. A file is
   believed only if everything in its header agrees with everything else and with the file's size, since whoever uses a
   tensor later trusts its offset and size blindly. Names are sorted and searched, not hashed: whoever chooses the names
   could make a fixed hash function collide. Stricter than the format's first implementation in one point: an entry has
   its three members and nothing else. */

/* ---- element types */

static const struct {
    const char *name;
    size_t size;
} tsk__dtypes[] = {{"auto", 0},    {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F64", 8}, {"F8_E4M3", 1},
                   {"F8_E5M2", 1}, {"I64", 8}, {"I32", 4}, {"I16", 2},  {"I8", 1},  {"U64", 8},
                   {"U32", 4},     {"U16", 2}, {"U8", 1},  {"BOOL", 1}};

static int tsk__dtype_is_known(tsk_dtype dtype) { return (int)dtype >= 0 && (int)dtype < (int)TSK_DTYPE_COUNT; }

const char *tsk_dtype_name(tsk_dtype dtype) {
    return tsk__dtype_is_known(dtype) ? tsk__dtypes[(int)dtype].name : "unknown";
}

size_t tsk_dtype_size(tsk_dtype dtype) { return tsk__dtype_is_known(dtype) ? tsk__dtypes[(int)dtype].size : 0; }

/* AUTO when there is none of that name. */
static tsk_dtype tsk__dtype_from_name(const char *name) {
    int i;
    for (i = 1; i < (int)TSK_DTYPE_COUNT; i++)
        if (strcmp(name, tsk__dtypes[i].name) == 0) return (tsk_dtype)i;
    return TSK_DTYPE_AUTO;
}

/* shape's product times the element size; 0 when that does not fit 64 bits. */
static int tsk__safetensors_size(tsk_dtype dtype, int n_dims, const uint64_t *shape, uint64_t *size) {
    uint64_t product = tsk_dtype_size(dtype);
    int i;
    for (i = 0; i < n_dims; i++) {
        if (shape[i] && product > UINT64_MAX / shape[i]) return 0;
        product *= shape[i];
    }
    *size = product;
    return 1;
}

/* ---- reading */

#define TSK__SAFETENSORS_MAX_HEADER 100000000u /* the format's own limit */

struct tsk_safetensors {
    const tsk_allocator *allocator;
    char *path;
    tsk__file file;
    tsk_json *header;
    tsk_tensor_info *tensors;         /* [count] in the order of their offsets */
    const tsk_tensor_info **by_name;  /* [count] in the order of their names */
    size_t count;
    uint64_t data_start;
};

/* "'path': …", at `offset` in the file. */
static tsk_status TSK__PRINTF(4, 5)
    tsk__safetensors_fail(const tsk_safetensors *file, uint64_t offset, tsk_error *error, const char *format, ...) {
    char message[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return tsk__error_set(error, TSK_ERROR_SAFETENSORS, file->path, offset, "'%s': %s", tsk__error_path(file->path),
                          message);
}

/* "'path': tensor 'name': …", at the header's `value`. */
static tsk_status TSK__PRINTF(5, 6)
    tsk__safetensors_fail_tensor(const tsk_safetensors *file, const char *name, const tsk_json_value *value,
                                 tsk_error *error, const char *format, ...) {
    char message[240];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return tsk__safetensors_fail(file, value ? 8 + tsk_json_offset(value) : TSK_NO_OFFSET, error, "tensor '%.120s': %s",
                                 name, message);
}

/* The beginning of a text, to be quoted: as much of its first line as is printable; "" where the bytes are no text. */
static void tsk__safetensors_first_line(const char *bytes, size_t size, char *line, size_t room) {
    size_t i, n = 0;
    int ended = 0;
    for (i = 0; i < size; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if ((c < 0x20 && (c < '\t' || c > '\r')) || c == 0x7f || c >= 0xf8) n = 0, i = size;
        else if (c < 0x20) ended = ended || n;
        else if (!ended && c < 0x7f && n + 1 < room) line[n++] = (char)c;
        else ended = 1;
    }
    line[n] = 0;
}

/* The file cannot be a safetensors file, for `reason`. If its first bytes show what it is instead, the error says
   so. */
static tsk_status tsk__safetensors_fail_file(const tsk_safetensors *file, uint64_t offset, const char *reason,
                                             tsk_error *error) {
    char head[512], line[48] = "";
    const char *what;
    size_t size = file->file.size < sizeof head ? (size_t)file->file.size : sizeof head;
    tsk_status status = tsk__file_read(&file->file, file->path, 0, head, size, error);
    if (status != TSK_OK) return status;
    what = tsk__file_recognise(head, size);
    if (size >= 8) tsk__safetensors_first_line(head, size, line, sizeof line);
    if (!size) return tsk__safetensors_fail(file, 0, error, "no safetensors file: it is empty");
    if (what) return tsk__safetensors_fail(file, 0, error, "no safetensors file: it is %s", what);
    if (line[0])
        return tsk__safetensors_fail(file, 0, error, "no safetensors file: it is %s, \"%s\"",
                                     line[0] == '{' || line[0] == '[' ? "JSON" : "text", line);
    return tsk__safetensors_fail(file, offset, error, "%s", reason);
}

/* The header's text to *text (the caller frees it) and its length to *size. */
static tsk_status tsk__safetensors_read_header(const tsk_safetensors *file, char **text, size_t *size,
                                               tsk_error *error) {
    unsigned char bytes[8];
    char reason[120];
    uint64_t length = 0;
    tsk_status status;
    int i;
    snprintf(reason, sizeof reason, "the file has %llu bytes, too few for a header",
             (unsigned long long)file->file.size);
    if (file->file.size < 8) return tsk__safetensors_fail_file(file, 0, reason, error);
    status = tsk__file_read(&file->file, file->path, 0, bytes, sizeof bytes, error);
    if (status != TSK_OK) return status;
    for (i = 7; i >= 0; i--) length = length << 8 | bytes[i];
    snprintf(reason, sizeof reason, "a header of %llu bytes is beyond the limit of %u (is it a safetensors file?)",
             (unsigned long long)length, TSK__SAFETENSORS_MAX_HEADER);
    if (length > TSK__SAFETENSORS_MAX_HEADER) return tsk__safetensors_fail_file(file, 0, reason, error);
    snprintf(reason, sizeof reason, "the file has %llu bytes, but its header alone should have %llu: it is cut",
             (unsigned long long)file->file.size, (unsigned long long)length);
    if (length > file->file.size - 8) return tsk__safetensors_fail_file(file, 0, reason, error);
    *size = (size_t)length;
    *text = (char *)tsk__memory_new(file->allocator, (size_t)length, 1);
    if (!*text) return tsk__error_memory(error, "a safetensors header", length);
    status = tsk__file_read(&file->file, file->path, 8, *text, (size_t)length, error);
    if (status == TSK_OK && (length == 0 || (*text)[0] != '{'))
        status = tsk__safetensors_fail_file(file, 8, "the header does not begin with '{'", error);
    return status;
}

static tsk_status tsk__safetensors_parse_header(tsk_safetensors *file, tsk_error *error) {
    char *text = NULL;
    size_t size = 0;
    tsk_error inner;
    tsk_status status = tsk__safetensors_read_header(file, &text, &size, error);
    file->data_start = 8 + (uint64_t)size;
    if (status == TSK_OK) {
        status = tsk_json_parse(text, size, NULL, file->allocator, &file->header, &inner);
        if (status == TSK_ERROR_JSON)
            status = tsk__safetensors_fail(file, 8 + inner.offset, error, "the header is not JSON: %s", inner.message);
        else if (status != TSK_OK) status = tsk__error_memory(error, "a safetensors header", size);
    }
    tsk__memory_delete(file->allocator, text);
    return status;
}

static tsk_status tsk__safetensors_check_metadata(const tsk_safetensors *file, const tsk_json_value *metadata,
                                                  tsk_error *error) {
    const tsk_json_value *member;
    if (metadata != tsk_json_get(tsk_json_root(file->header), "__metadata__"))
        return tsk__safetensors_fail(file, 8 + tsk_json_offset(metadata), error, "__metadata__ appears twice");
    if (tsk_json_type_of(metadata) != TSK_JSON_OBJECT)
        return tsk__safetensors_fail(file, 8 + tsk_json_offset(metadata), error, "__metadata__ is not an object");
    for (member = tsk_json_first(metadata); member; member = tsk_json_next(member))
        if (!tsk_json_string(member, NULL))
            return tsk__safetensors_fail(file, 8 + tsk_json_offset(member), error,
                                         "__metadata__ member '%.120s' is not a string", tsk_json_key(member, NULL));
    return TSK_OK;
}

/* "dtype": the name of an element type. */
static tsk_status tsk__safetensors_parse_dtype(const tsk_safetensors *file, tsk_tensor_info *tensor,
                                               const tsk_json_value *value, tsk_error *error) {
    const char *name = tsk_json_string(value, NULL);
    if (!name) return tsk__safetensors_fail_tensor(file, tensor->name, value, error, "dtype is not a string");
    tensor->dtype = tsk__dtype_from_name(name);
    if (tensor->dtype == TSK_DTYPE_AUTO)
        return tsk__safetensors_fail_tensor(file, tensor->name, value, error, "unknown dtype '%.40s'", name);
    return TSK_OK;
}

/* An array of at most `max` integers to `numbers`; how many there are to *n. */
static tsk_status tsk__safetensors_parse_numbers(const tsk_safetensors *file, const char *name, const char *what,
                                                 const tsk_json_value *value, size_t max, uint64_t *numbers, int *n,
                                                 tsk_error *error) {
    const tsk_json_value *element;
    *n = 0;
    if (tsk_json_type_of(value) != TSK_JSON_ARRAY)
        return tsk__safetensors_fail_tensor(file, name, value, error, "%s is not an array", what);
    if (tsk_json_count(value) > max)
        return tsk__safetensors_fail_tensor(file, name, value, error, "%s has %llu numbers, more than %d", what,
                                            (unsigned long long)tsk_json_count(value), (int)max);
    for (element = tsk_json_first(value); element; element = tsk_json_next(element))
        if (!tsk_json_uint64(element, &numbers[(*n)++]))
            return tsk__safetensors_fail_tensor(file, name, element, error,
                                                "%s has an element that is not an integer from 0 to 2^64 - 1", what);
    return TSK_OK;
}

/* Its place in the data: within the file, and as large as shape and dtype say. */
static tsk_status tsk__safetensors_place(const tsk_safetensors *file, tsk_tensor_info *tensor,
                                         const tsk_json_value *entry, uint64_t begin, uint64_t end, tsk_error *error) {
    uint64_t available = file->file.size - file->data_start, size;
    if (begin > end)
        return tsk__safetensors_fail_tensor(file, tensor->name, entry, error, "data_offsets [%llu, %llu] run backwards",
                                            (unsigned long long)begin, (unsigned long long)end);
    if (end > available)
        return tsk__safetensors_fail_tensor(file, tensor->name, entry, error,
                                            "data_offsets [%llu, %llu] lie beyond the file's %llu bytes of data: "
                                            "the file is cut",
                                            (unsigned long long)begin, (unsigned long long)end,
                                            (unsigned long long)available);
    if (!tsk__safetensors_size(tensor->dtype, tensor->n_dims, tensor->shape, &size))
        return tsk__safetensors_fail_tensor(file, tensor->name, entry, error,
                                            "shape times dtype size does not fit 64 bits");
    if (size != end - begin)
        return tsk__safetensors_fail_tensor(file, tensor->name, entry, error,
                                            "shape and dtype %s make %llu bytes, but data_offsets span %llu",
                                            tsk_dtype_name(tensor->dtype), (unsigned long long)size,
                                            (unsigned long long)(end - begin));
    tensor->offset = file->data_start + begin;
    tensor->size = size;
    return TSK_OK;
}

static tsk_status tsk__safetensors_parse_tensor(const tsk_safetensors *file, const tsk_json_value *entry,
                                                tsk_tensor_info *tensor, tsk_error *error) {
    const tsk_json_value *dtype = tsk_json_get(entry, "dtype"), *shape = tsk_json_get(entry, "shape");
    const tsk_json_value *offsets = tsk_json_get(entry, "data_offsets");
    uint64_t range[2] = {0, 0};
    size_t length;
    tsk_status status;
    int n;
    tensor->name = tsk_json_key(entry, &length);
    if (strlen(tensor->name) != length)
        return tsk__safetensors_fail_tensor(file, tensor->name, entry, error, "a NUL character in the name");
    if (!dtype || !shape || !offsets || tsk_json_count(entry) != 3)
        return tsk__safetensors_fail_tensor(file, tensor->name, entry, error,
                                            "expected an object of exactly dtype, shape and data_offsets");
    status = tsk__safetensors_parse_dtype(file, tensor, dtype, error);
    if (status == TSK_OK)
        status = tsk__safetensors_parse_numbers(file, tensor->name, "shape", shape, TSK_MAX_DIMS, tensor->shape,
                                                &tensor->n_dims, error);
    if (status == TSK_OK)
        status = tsk__safetensors_parse_numbers(file, tensor->name, "data_offsets", offsets, 2, range, &n, error);
    if (status == TSK_OK && n != 2)
        status = tsk__safetensors_fail_tensor(file, tensor->name, offsets, error, "data_offsets needs two numbers");
    return status == TSK_OK ? tsk__safetensors_place(file, tensor, entry, range[0], range[1], error) : status;
}

static tsk_status tsk__safetensors_parse_entries(tsk_safetensors *file, tsk_error *error) {
    const tsk_json_value *root = tsk_json_root(file->header), *entry;
    file->tensors =
        (tsk_tensor_info *)tsk__memory_new_zeroed(file->allocator, tsk_json_count(root), sizeof *file->tensors);
    file->by_name =
        (const tsk_tensor_info **)tsk__memory_new(file->allocator, tsk_json_count(root), sizeof *file->by_name);
    if (!file->tensors || !file->by_name)
        return tsk__error_memory(error, "the list of tensors", (uint64_t)tsk_json_count(root) * sizeof *file->tensors);
    for (entry = tsk_json_first(root); entry; entry = tsk_json_next(entry)) {
        size_t length;
        const char *name = tsk_json_key(entry, &length);
        int is_metadata = length == 12 && memcmp(name, "__metadata__", 12) == 0;
        tsk_status status = is_metadata
                                ? tsk__safetensors_check_metadata(file, entry, error)
                                : tsk__safetensors_parse_tensor(file, entry, &file->tensors[file->count++], error);
        if (status != TSK_OK) return status;
    }
    return TSK_OK;
}

/* By offset; an empty tensor before the one that starts where it does; else as in the header, where names lie in
   order. */
static int tsk__safetensors_compare_offsets(const void *a, const void *b) {
    const tsk_tensor_info *left = (const tsk_tensor_info *)a, *right = (const tsk_tensor_info *)b;
    if (left->offset != right->offset) return left->offset < right->offset ? -1 : 1;
    if (left->size != right->size) return left->size < right->size ? -1 : 1;
    return left->name < right->name ? -1 : left->name > right->name;
}

static int tsk__safetensors_compare_names(const void *a, const void *b) {
    return strcmp((*(const tsk_tensor_info *const *)a)->name, (*(const tsk_tensor_info *const *)b)->name);
}

/* Every byte of the data belongs to exactly one tensor. */
static tsk_status tsk__safetensors_check_layout(const tsk_safetensors *file, tsk_error *error) {
    uint64_t expected = file->data_start;
    size_t i;
    for (i = 0; i < file->count; i++) {
        const tsk_tensor_info *tensor = &file->tensors[i];
        if (tensor->offset != expected)
            return tsk__safetensors_fail_tensor(file, tensor->name, NULL, error,
                                                "its data begins at %llu, but the data before it ends at %llu: %s",
                                                (unsigned long long)(tensor->offset - file->data_start),
                                                (unsigned long long)(expected - file->data_start),
                                                tensor->offset < expected ? "an overlap" : "a hole");
        expected += tensor->size;
    }
    if (expected != file->file.size)
        return tsk__safetensors_fail(file, expected, error, "the tensors end at byte %llu, but the file has %llu",
                                     (unsigned long long)expected, (unsigned long long)file->file.size);
    return TSK_OK;
}

static tsk_status tsk__safetensors_sort(tsk_safetensors *file, tsk_error *error) {
    tsk_status status;
    size_t i;
    qsort(file->tensors, file->count, sizeof *file->tensors, tsk__safetensors_compare_offsets);
    for (i = 0; i < file->count; i++) file->by_name[i] = &file->tensors[i];
    qsort(file->by_name, file->count, sizeof *file->by_name, tsk__safetensors_compare_names);
    status = tsk__safetensors_check_layout(file, error);
    for (i = 1; i < file->count && status == TSK_OK; i++)
        if (strcmp(file->by_name[i - 1]->name, file->by_name[i]->name) == 0)
            status = tsk__safetensors_fail_tensor(file, file->by_name[i]->name, NULL, error, "the name appears twice");
    return status;
}


tsk_status tsk_safetensors_open(const char *path, const tsk_host *host, tsk_safetensors **out, tsk_error *error) {
    const tsk_allocator *allocator = tsk__memory_allocator(host);
    tsk_safetensors *file;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_safetensors_open", "out");
    *out = NULL;
    if (!path) return tsk__error_null(error, "tsk_safetensors_open", "path");
    file = (tsk_safetensors *)tsk__memory_new_zeroed(allocator, 1, sizeof *file);
    if (!file) return tsk__error_memory(error, "a safetensors file", sizeof *file);
    file->allocator = allocator;
    file->file.descriptor = -1;
    file->path = tsk__memory_copy_string(allocator, path);
    status = file->path ? tsk__file_open(&file->file, path, host, error)
                        : tsk__error_memory(error, "a path", strlen(path) + 1);
    if (status == TSK_OK) status = tsk__safetensors_parse_header(file, error);
    if (status == TSK_OK) status = tsk__safetensors_parse_entries(file, error);
    if (status == TSK_OK) status = tsk__safetensors_sort(file, error);
    if (status != TSK_OK) {
        tsk_safetensors_free(file);
        return status;
    }
    tsk__file_map(&file->file, host);
    *out = file;
    return TSK_OK;
}

void tsk_safetensors_free(tsk_safetensors *file) {
    const tsk_allocator *allocator = file ? file->allocator : NULL;
    if (!file) return;
    tsk__file_close(&file->file);
    tsk_json_free(file->header);
    tsk__memory_delete(allocator, file->tensors);
    tsk__memory_delete(allocator, (void *)file->by_name);
    tsk__memory_delete(allocator, file->path);
    tsk__memory_delete(allocator, file);
}

size_t tsk_safetensors_count(const tsk_safetensors *file) { return file ? file->count : 0; }

const tsk_tensor_info *tsk_safetensors_get(const tsk_safetensors *file, size_t index) {
    return file && index < file->count ? &file->tensors[index] : NULL;
}

const tsk_tensor_info *tsk_safetensors_find(const tsk_safetensors *file, const char *name) {
    size_t low = 0, high = file && name ? file->count : 0;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, file->by_name[middle]->name);
        if (order == 0) return file->by_name[middle];
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

const tsk_json_value *tsk_safetensors_metadata(const tsk_safetensors *file) {
    return file ? tsk_json_get(tsk_json_root(file->header), "__metadata__") : NULL;
}

const void *tsk_safetensors_data(const tsk_safetensors *file, const tsk_tensor_info *tensor) {
    return file && tensor && file->file.map ? (const char *)file->file.map + tensor->offset : NULL;
}

tsk_status tsk_safetensors_read(const tsk_safetensors *file, const tsk_tensor_info *tensor, uint64_t offset,
                                void *buffer, size_t size, tsk_error *error) {
    if (!file) return tsk__error_null(error, "tsk_safetensors_read", "file");
    if (!tensor) return tsk__error_null(error, "tsk_safetensors_read", "tensor");
    if (!buffer && size) return tsk__error_null(error, "tsk_safetensors_read", "buffer");
    if (offset > tensor->size || size > tensor->size - offset)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, file->path, tensor->offset,
                              "%llu bytes from %llu of tensor '%.120s' are beyond its %llu", (unsigned long long)size,
                              (unsigned long long)offset, tensor->name, (unsigned long long)tensor->size);
    return tsk__file_read(&file->file, file->path, tensor->offset + offset, buffer, size, error);
}

/* ---- writing
   The header stands first in the file but is complete last. So the data goes to a second, unnamed temporary file, which
   disappears with the process, and is copied behind the header at the end. */

struct tsk_safetensors_writer {
    const tsk_allocator *allocator;
    tsk__output data;
    uint64_t data_size;
    tsk_text header;        /* so far, without the closing brace */
    tsk_text metadata;      /* an object, or nothing */
    tsk_json_writer json;
    int is_finished;
    size_t *slots;          /* [n_slots] hash table: where in the header a name starts, 0 where free */
    tsk__hash_key key;      /* of its hash */
    size_t n_slots, n_names; /* n_slots is a power of two */
};

tsk_status tsk_safetensors_writer_open(const char *path, const tsk_allocator *allocator, tsk_safetensors_writer **out,
                                       tsk_error *error) {
    tsk_safetensors_writer *writer;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_safetensors_writer_open", "out");
    *out = NULL;
    if (!path) return tsk__error_null(error, "tsk_safetensors_writer_open", "path");
    writer = (tsk_safetensors_writer *)tsk__memory_new_zeroed(allocator, 1, sizeof *writer);
    if (!writer) return tsk__error_memory(error, "a safetensors writer", sizeof *writer);
    writer->allocator = writer->header.allocator = writer->metadata.allocator = allocator;
    writer->json.out = &writer->header;
    writer->key = tsk__hash_key_new();
    status = tsk__output_open(&writer->data, path, allocator, error);
    if (status == TSK_OK) status = tsk__output_hide(&writer->data, error);
    if (status == TSK_OK) {
        tsk_json_begin_object(&writer->json);
        if (writer->json.status != TSK_OK) status = tsk__error_memory(error, "a safetensors header", 64);
    }
    if (status != TSK_OK) tsk_safetensors_writer_free(writer);
    else *out = writer;
    return status;
}

void tsk_safetensors_writer_free(tsk_safetensors_writer *writer) {
    const tsk_allocator *allocator = writer ? writer->allocator : NULL;
    if (!writer) return;
    tsk__output_abandon(&writer->data);
    tsk_text_free(&writer->header);
    tsk_text_free(&writer->metadata);
    tsk__memory_delete(allocator, writer->slots);
    tsk__memory_delete(allocator, writer);
}

static tsk_status tsk__safetensors_refuse(const tsk_safetensors_writer *writer, const char *name, const char *reason,
                                          tsk_error *error) {
    return tsk__error_set(error, TSK_ERROR_ARGUMENT, writer->data.path, TSK_NO_OFFSET,
                          "cannot write '%s': tensor '%.120s': %s", tsk__error_path(writer->data.path), name, reason);
}

/* Of the quoted name at the header's byte `start`, quotes and escapes included. */
static size_t tsk__safetensors_name_length(const tsk_safetensors_writer *writer, size_t start) {
    const char *name = writer->header.data + start;
    size_t i = 1;
    while (name[i] != '"') i += name[i] == '\\' ? 2 : 1;
    return i + 1;
}

/* The slot of the name at `start`: where an equal name is, or where it should go. */
static size_t *tsk__safetensors_slot(const tsk_safetensors_writer *writer, size_t start) {
    const char *header = writer->header.data;
    size_t i, length = tsk__safetensors_name_length(writer, start);
    for (i = (size_t)tsk__hash(writer->key, header + start, length);; i++) {
        size_t *slot = &writer->slots[i & (writer->n_slots - 1)];
        if (!*slot || strncmp(header + *slot, header + start, length) == 0) return slot; /* neither holds a NUL */
    }
}

/* Keeps half of the table free. 0 when out of memory. */
static int tsk__safetensors_grow_slots(tsk_safetensors_writer *writer) {
    size_t *old = writer->slots;
    size_t i, n_old = writer->n_slots;
    if (2 * (writer->n_names + 1) <= n_old) return 1;
    writer->slots = (size_t *)tsk__memory_new_zeroed(writer->allocator, n_old ? 2 * n_old : 64, sizeof *old);
    if (!writer->slots) {
        writer->slots = old;
        return 0;
    }
    writer->n_slots = n_old ? 2 * n_old : 64;
    for (i = 0; i < n_old; i++)
        if (old[i]) *tsk__safetensors_slot(writer, old[i]) = old[i];
    tsk__memory_delete(writer->allocator, old);
    return 1;
}

/* Why a tensor cannot be written, whatever is in the file already; NULL when it can. */
static const char *tsk__safetensors_objection(const tsk_safetensors_writer *writer, const char *name, tsk_dtype dtype,
                                              int n_dims, const uint64_t *shape, const void *data, uint64_t *size) {
    size_t i, n, length = strlen(name);
    int valid = 1;
    for (i = 0; i < length && valid; i += n) n = tsk__json_utf8(name + i, length - i, &valid);
    if (!valid) return "the name is not UTF-8";
    if (strcmp(name, "__metadata__") == 0) return "this name is the format's own";
    if (tsk_dtype_size(dtype) == 0) return "unknown dtype";
    if (n_dims < 0 || n_dims > TSK_MAX_DIMS) return "too many dimensions";
    if (!tsk__safetensors_size(dtype, n_dims, shape, size)) return "shape times dtype size does not fit 64 bits";
    if (*size > SIZE_MAX || *size > (uint64_t)INT64_MAX / 2 - writer->data_size) return "larger than a file can be";
    return *size && !data ? "no data" : NULL;
}

static void tsk__safetensors_write_entry(tsk_safetensors_writer *writer, tsk_dtype dtype, int n_dims,
                                         const uint64_t *shape, uint64_t size) {
    tsk_json_writer *json = &writer->json;
    int i;
    tsk_json_begin_object(json);
    tsk_json_write_key(json, "dtype");
    tsk_json_write_string(json, tsk_dtype_name(dtype), strlen(tsk_dtype_name(dtype)));
    tsk_json_write_key(json, "shape");
    tsk_json_begin_array(json);
    for (i = 0; i < n_dims; i++) tsk_json_write_uint(json, shape[i]);
    tsk_json_end_array(json);
    tsk_json_write_key(json, "data_offsets");
    tsk_json_begin_array(json);
    tsk_json_write_uint(json, writer->data_size);
    tsk_json_write_uint(json, writer->data_size + size);
    tsk_json_end_array(json);
    tsk_json_end_object(json);
}

/* Whatever fails, the writer is as it was: the tensor can be added again, or left out. */
tsk_status tsk_safetensors_writer_add(tsk_safetensors_writer *writer, const char *name, tsk_dtype dtype, int n_dims,
                                      const uint64_t *shape, const void *data, tsk_error *error) {
    uint64_t size = 0;
    size_t old_length, start, *slot = NULL;
    const char *objection;
    tsk_status status = TSK_OK;
    if (!writer) return tsk__error_null(error, "tsk_safetensors_writer_add", "writer");
    if (!name) return tsk__error_null(error, "tsk_safetensors_writer_add", "name");
    if (!shape && n_dims > 0) return tsk__error_null(error, "tsk_safetensors_writer_add", "shape");
    old_length = writer->header.length;
    start = old_length + (writer->n_names ? 1 : 0);
    objection = writer->is_finished ? "the file is finished"
                                    : tsk__safetensors_objection(writer, name, dtype, n_dims, shape, data, &size);
    if (objection) return tsk__safetensors_refuse(writer, name, objection, error);
    tsk_json_write_key(&writer->json, name);
    tsk__safetensors_write_entry(writer, dtype, n_dims, shape, size);
    if (writer->json.status != TSK_OK || !tsk__safetensors_grow_slots(writer))
        status = tsk__error_memory(error, "a safetensors header", old_length);
    else if (writer->header.length > TSK__SAFETENSORS_MAX_HEADER - 16)
        status = tsk__safetensors_refuse(writer, name, "the header would be longer than the format allows", error);
    else {
        slot = tsk__safetensors_slot(writer, start);
        if (*slot) status = tsk__safetensors_refuse(writer, name, "the name is there already", error);
        else status = tsk__output_write(&writer->data, writer->data_size, data, (size_t)size, error);
    }
    if (status == TSK_OK) {
        *slot = start;
        writer->n_names++;
        writer->data_size += size;
    } else {
        writer->header.length = old_length;
        writer->header.data[old_length] = 0;
        writer->json.status = TSK_OK;
        writer->json.needs_comma = writer->n_names != 0;
    }
    return status;
}

/* Why this cannot be a file's metadata; NULL when it can. */
static const char *tsk__safetensors_metadata_objection(const tsk_safetensors_writer *writer, int32_t n,
                                                       const char *const *keys, const char *const *values) {
    int32_t i, j;
    if (writer->is_finished) return "the file is finished";
    for (i = 0; i < n; i++) {
        if (!keys[i] || !values[i]) return "a key or a value is NULL";
        for (j = 0; j < i; j++)
            if (strcmp(keys[i], keys[j]) == 0) return "a key is there twice";
    }
    return NULL;
}

tsk_status tsk_safetensors_writer_metadata(tsk_safetensors_writer *writer, int32_t n, const char *const *keys,
                                           const char *const *values, tsk_error *error) {
    tsk_text text = TSK_ZERO;
    tsk_json_writer json = TSK_ZERO;
    const char *objection;
    int32_t i;
    if (!writer) return tsk__error_null(error, "tsk_safetensors_writer_metadata", "writer");
    if (n > 0 && !keys) return tsk__error_null(error, "tsk_safetensors_writer_metadata", "keys");
    if (n > 0 && !values) return tsk__error_null(error, "tsk_safetensors_writer_metadata", "values");
    objection = tsk__safetensors_metadata_objection(writer, n, keys, values);
    if (objection)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, writer->data.path, TSK_NO_OFFSET,
                              "cannot write the metadata of '%s': %s", tsk__error_path(writer->data.path), objection);
    text.allocator = writer->allocator;
    json.out = &text;
    tsk_json_begin_object(&json);
    for (i = 0; i < n; i++) {
        tsk_json_write_key(&json, keys[i]);
        tsk_json_write_string(&json, values[i], strlen(values[i]));
    }
    tsk_json_end_object(&json);
    if (json.status == TSK_OK && text.length > TSK__SAFETENSORS_MAX_HEADER / 2) json.status = TSK_ERROR_MEMORY;
    if (json.status != TSK_OK) {
        tsk_text_free(&text);
        return tsk__error_memory(error, "a safetensors file's metadata", TSK__SAFETENSORS_MAX_HEADER / 2);
    }
    tsk_text_free(&writer->metadata);
    writer->metadata = text;
    return TSK_OK;
}

/* The data behind the header, a piece at a time. */
static tsk_status tsk__safetensors_copy_data(const tsk_safetensors_writer *writer, const tsk__output *output,
                                             uint64_t start, tsk_error *error) {
    size_t piece = (size_t)1 << 20;
    uint64_t done = 0;
    void *buffer = tsk__memory_new(writer->allocator, piece, 1);
    tsk_status status = buffer ? TSK_OK : tsk__error_memory(error, "copying tensors", piece);
    while (status == TSK_OK && done < writer->data_size) {
        size_t wanted = writer->data_size - done < piece ? (size_t)(writer->data_size - done) : piece;
        int64_t n = tsk__output_read(&writer->data, done, buffer, wanted);
        if (n <= 0)
            status = tsk__output_fail(&writer->data, error, n < 0 ? strerror(errno) : "the temporary file was cut");
        else status = tsk__output_write(output, start + done, buffer, (size_t)n, error);
        if (status == TSK_OK) done += (uint64_t)n;
    }
    tsk__memory_delete(writer->allocator, buffer);
    return status;
}

/* Length, header, spaces up to a multiple of 8 (so that the data is aligned), data. */
static tsk_status tsk__safetensors_write_file(tsk_safetensors_writer *writer, const tsk__output *output,
                                              tsk_error *error) {
    unsigned char length[8];
    tsk_status status;
    int i;
    if (writer->metadata.length) {
        tsk_json_write_key(&writer->json, "__metadata__");
        if (writer->json.status == TSK_OK)
            writer->json.status = tsk_text_append(&writer->header, writer->metadata.data, writer->metadata.length);
    }
    tsk_json_end_object(&writer->json);
    if (writer->json.status == TSK_OK)
        writer->json.status = tsk_text_append(&writer->header, "       ", (8 - writer->header.length % 8) % 8);
    if (writer->json.status != TSK_OK) return tsk__error_memory(error, "a safetensors header", writer->header.length);
    if (writer->header.length > TSK__SAFETENSORS_MAX_HEADER)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, writer->data.path, TSK_NO_OFFSET,
                              "cannot write '%s': with its metadata the header would be longer than the format allows",
                              tsk__error_path(writer->data.path));
    for (i = 0; i < 8; i++) length[i] = (unsigned char)((uint64_t)writer->header.length >> 8 * i);
    status = tsk__output_write(output, 0, length, sizeof length, error);
    if (status == TSK_OK) status = tsk__output_write(output, 8, writer->header.data, writer->header.length, error);
    return status == TSK_OK ? tsk__safetensors_copy_data(writer, output, 8 + (uint64_t)writer->header.length, error)
                            : status;
}

tsk_status tsk_safetensors_writer_finish(tsk_safetensors_writer *writer, tsk_error *error) {
    tsk__output output;
    tsk_status status;
    if (!writer) return tsk__error_null(error, "tsk_safetensors_writer_finish", "writer");
    if (writer->is_finished)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, writer->data.path, TSK_NO_OFFSET, "'%s' is finished already",
                              tsk__error_path(writer->data.path));
    writer->is_finished = 1;
    status = tsk__output_open(&output, writer->data.path, writer->allocator, error);
    if (status == TSK_OK) {
        status = tsk__safetensors_write_file(writer, &output, error);
        if (status == TSK_OK) status = tsk__output_commit(&output, error);
        else tsk__output_abandon(&output);
    }
    return status;
}

#endif /* SECTION_GUARD_SAFETENSORS */
