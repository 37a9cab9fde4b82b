/* >>safetensors: good files, every rule broken once, hostile sizes, files that are none, writing, faults. */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_NO_CUDA
#include "../src/safetensors.h"
#include "test.h"

#include <dirent.h>
#include <signal.h>
#ifndef _WIN32
#include <sys/resource.h>
#endif

#define N(array) (sizeof(array) / sizeof *(array))

static const tsk_error no_error = {0, TSK_OK, {0}, {0}};

static void put_length(unsigned char *to, uint64_t length) {
    int i;
    for (i = 0; i < 8; i++) to[i] = (unsigned char)(length >> 8 * i);
}

/* A file of a header and `data_size` bytes 0, 1, 2, … */
static const char *make_file(const char *name, const char *header, size_t data_size) {
    size_t length = strlen(header), i;
    unsigned char *bytes = (unsigned char *)malloc(8 + length + data_size);
    const char *path = tsk_test_path(name);
    put_length(bytes, length);
    memcpy(bytes + 8, header, length);
    for (i = 0; i < data_size; i++) bytes[8 + length + i] = (unsigned char)i;
    write_file(path, bytes, 8 + length + data_size);
    free(bytes);
    return path;
}

static int files_in_folder(void) {
    DIR *dir = opendir(tsk_test_temp_dir());
    int n = 0;
    while (readdir(dir)) n++;
    closedir(dir);
    return n - 2; /* . and .. */
}

static void test_dtypes(void) {
    static const struct {
        const char *name;
        size_t size;
    } expected[] = {{"auto", 0},    {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F64", 8}, {"F8_E4M3", 1},
                    {"F8_E5M2", 1}, {"I64", 8}, {"I32", 4}, {"I16", 2},  {"I8", 1},  {"U64", 8},
                    {"U32", 4},     {"U16", 2}, {"U8", 1},  {"BOOL", 1}};
    int i;
    CHECK_INT(N(expected), TSK_DTYPE_COUNT);
    for (i = 0; i < (int)TSK_DTYPE_COUNT; i++) {
        CHECK_STRING(tsk_dtype_name((tsk_dtype)i), expected[i].name);
        CHECK_INT(tsk_dtype_size((tsk_dtype)i), expected[i].size);
    }
    CHECK_STRING(tsk_dtype_name(TSK_DTYPE_COUNT), "unknown");
    CHECK_INT(tsk_dtype_size(TSK_DTYPE_COUNT), 0);
    CHECK_STRING(tsk_dtype_name(TSK_DTYPE_BF16), "BF16");
    CHECK_STRING(tsk_dtype_name(TSK_DTYPE_I64), "I64");
}

static const char good_header[] =
    "{\"__metadata__\":{\"format\":\"pt\"},\"w\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
    "\"none\":{\"dtype\":\"I64\",\"shape\":[7,0,2],\"data_offsets\":[16,16]},"
    "\"scalar\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
    "\"\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,2],\"data_offsets\":[16,18]}}   \n ";

static void test_good_file(int no_map) {
    static const char *const order[] = {"scalar", "w", "none", ""};
    const char *path = make_file("good", good_header, 18);
    tsk_host host = {NULL, NULL, 0};
    tsk_error error = no_error;
    tsk_safetensors *file = NULL;
    const tsk_tensor_info *w, *tensor;
    unsigned char bytes[12];
    size_t i, start = 8 + strlen(good_header);
    host.no_map = no_map;
    CHECK_INT(tsk_safetensors_open(path, &host, &file, &error), TSK_OK);
    if (!file) return;
    CHECK_INT(tsk_safetensors_count(file), 4);
    CHECK(tsk_safetensors_get(file, 4) == NULL);
    for (i = 0; i < 4; i++) {
        tensor = tsk_safetensors_get(file, i);
        CHECK_STRING(tensor->name, order[i]);
        CHECK(tsk_safetensors_find(file, order[i]) == tensor);
    }
    CHECK(tsk_safetensors_find(file, "x") == NULL && tsk_safetensors_find(file, "__metadata__") == NULL);
    w = tsk_safetensors_find(file, "w");
    CHECK_INT(w->dtype, TSK_DTYPE_BF16);
    CHECK_INT(w->n_dims, 2);
    CHECK(w->shape[0] == 2 && w->shape[1] == 3);
    CHECK_INT(w->offset, start + 4);
    CHECK_INT(w->size, 12);
    CHECK_INT(tsk_safetensors_get(file, 0)->n_dims, 0);
    CHECK_INT(tsk_safetensors_get(file, 2)->size, 0);
    CHECK_INT(tsk_safetensors_get(file, 3)->shape[7], 2);
    CHECK_STRING(tsk_json_string(tsk_json_get(tsk_safetensors_metadata(file), "format"), NULL), "pt");
    if (no_map) CHECK(tsk_safetensors_data(file, w) == NULL);
    else CHECK(((const unsigned char *)tsk_safetensors_data(file, w))[11] == 15);
    CHECK_INT(tsk_safetensors_read(file, w, 0, bytes, 12, &error), TSK_OK);
    CHECK(bytes[0] == 4 && bytes[11] == 15);
    CHECK_INT(tsk_safetensors_read(file, w, 10, bytes, 2, &error), TSK_OK);
    CHECK(bytes[0] == 14 && bytes[1] == 15 && bytes[2] == 6);
    CHECK_INT(tsk_safetensors_read(file, w, 12, bytes, 0, &error), TSK_OK);
    CHECK_INT(tsk_safetensors_read(file, w, 11, bytes, 2, &error), TSK_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "'w'");
    CHECK_INT(tsk_safetensors_read(file, w, UINT64_MAX, bytes, 2, &error), TSK_ERROR_ARGUMENT);
    tsk_safetensors_free(file);
    tsk_safetensors_free(NULL);
}

static void test_small_files(void) {
    tsk_safetensors *file = NULL;
    CHECK_INT(tsk_safetensors_open(make_file("empty_list", "{}", 0), NULL, &file, NULL), TSK_OK);
    CHECK_INT(tsk_safetensors_count(file), 0);
    CHECK(tsk_safetensors_find(file, "") == NULL && tsk_safetensors_get(file, 0) == NULL);
    CHECK(tsk_safetensors_metadata(file) == NULL);
    tsk_safetensors_free(file);
    /* a zero may make a product small again, as long as no step overflows */
    CHECK_INT(tsk_safetensors_open(
                  make_file("zero_first",
                            "{\"a\":{\"dtype\":\"F32\",\"shape\":[0,18446744073709551615],\"data_offsets\":[0,0]}}", 0),
                  NULL, &file, NULL),
              TSK_OK);
    tsk_safetensors_free(file);
}

#define TENSOR(name, dtype, shape, offsets) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void test_refuses(void) {
    static const struct {
        const char *header;
        size_t data;
        const char *message;
    } cases[] = {
        {"", 0, "does not begin with '{'"},
        {" {}", 0, "does not begin with '{'"},
        {"[]", 0, "does not begin with '{'"},
        {"{", 0, "not JSON: line 1, column 2: expected a member name"},
        {"{}x", 0, "not JSON"},
        {"{\"a\xff\":1}", 0, "invalid UTF-8"},
        {"{}", 1, "the tensors end at byte 10, but the file has 11"},
        {"{\"a\":1}", 0, "tensor 'a': expected an object of exactly"},
        {"{\"a\":[]}", 0, "tensor 'a': expected an object of exactly"},
        {"{\"a\":{}}", 0, "tensor 'a': expected an object of exactly"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[]}}", 0, "exactly dtype, shape and data_offsets"},
        {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "exactly dtype, shape and data_offsets"},
        {"{\"a\":{\"shape\":[],\"data_offsets\":[0,1]}}", 1, "exactly dtype, shape and data_offsets"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1],\"x\":1}}", 1,
         "exactly dtype, shape and data_offsets"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1],\"dtype\":\"U8\"}}", 1,
         "exactly dtype, shape and data_offsets"},
        {"{\"a\":{\"dtype\":8,\"shape\":[],\"data_offsets\":[0,1]}}", 1, "tensor 'a': dtype is not a string"},
        {"{" TENSOR("a", "F7", "[]", "[0,1]") "}", 1, "tensor 'a': unknown dtype 'F7'"},
        {"{" TENSOR("a", "auto", "[]", "[0,1]") "}", 1, "tensor 'a': unknown dtype 'auto'"},
        {"{" TENSOR("a", "f32", "[]", "[0,4]") "}", 4, "tensor 'a': unknown dtype 'f32'"},
        {"{" TENSOR("a", "U8", "1", "[0,1]") "}", 1, "tensor 'a': shape is not an array"},
        {"{" TENSOR("a", "U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, "tensor 'a': shape has 9 numbers, more than 8"},
        {"{" TENSOR("a", "U8", "[1.5]", "[0,1]") "}", 1, "shape has an element that is not an integer"},
        {"{" TENSOR("a", "U8", "[1e-1]", "[0,1]") "}", 1, "shape has an element that is not an integer"},
        {"{" TENSOR("a", "U8", "[-1]", "[0,1]") "}", 1, "shape has an element that is not an integer"},
        {"{" TENSOR("a", "U8", "[\"1\"]", "[0,1]") "}", 1, "shape has an element that is not an integer"},
        {"{" TENSOR("a", "U8", "[18446744073709551616]", "[0,1]") "}", 1,
         "shape has an element that is not an integer"},
        {"{" TENSOR("a", "U8", "[]", "{}") "}", 1, "tensor 'a': data_offsets is not an array"},
        {"{" TENSOR("a", "U8", "[]", "[]") "}", 1, "data_offsets needs two numbers"},
        {"{" TENSOR("a", "U8", "[]", "[0]") "}", 1, "data_offsets needs two numbers"},
        {"{" TENSOR("a", "U8", "[]", "[0,1,1]") "}", 1, "data_offsets has 3 numbers, more than 2"},
        {"{" TENSOR("a", "U8", "[]", "[0,true]") "}", 1, "data_offsets has an element that is not an integer"},
        {"{" TENSOR("a", "U8", "[]", "[1,0]") "}", 1, "data_offsets [1, 0] run backwards"},
        {"{" TENSOR("a", "U8", "[2]", "[0,2]") "}", 1, "data_offsets [0, 2] lie beyond the file's 1 bytes of data"},
        {"{" TENSOR("a", "U8", "[]", "[18446744073709551614,18446744073709551615]") "}", 1,
         "lie beyond the file's 1 bytes"},
        {"{" TENSOR("a", "F16", "[3]", "[0,5]") "}", 5, "shape and dtype F16 make 6 bytes, but data_offsets span 5"},
        {"{" TENSOR("a", "F32", "[]", "[0,0]") "}", 0, "make 4 bytes, but data_offsets span 0"},
        {"{" TENSOR("a", "U8", "[4294967296,4294967296]", "[0,0]") "}", 0,
         "shape times dtype size does not fit 64 bits"},
        {"{" TENSOR("a", "F32", "[4611686018427387904]", "[0,0]") "}", 0, "does not fit 64 bits"},
        {"{" TENSOR("a", "U8", "[18446744073709551615,2,0]", "[0,0]") "}", 0, "does not fit 64 bits"},
        {"{" TENSOR("a", "U8", "[]", "[1,2]") "}", 2,
         "tensor 'a': its data begins at 1, but the data before it ends at 0: a hole"},
        {"{" TENSOR("a", "U8", "[2]", "[0,2]") "," TENSOR("b", "U8", "[2]", "[1,3]") "}", 3,
         "tensor 'b': its data begins at 1, but the data before it ends at 2: an overlap"},
        {"{" TENSOR("a", "U8", "[1]", "[2,3]") "," TENSOR("b", "U8", "[1]", "[0,1]") "}", 3,
         "tensor 'a': its data begins at 2, but the data before it ends at 1: a hole"},
        {"{" TENSOR("a", "U8", "[2]", "[0,2]") "," TENSOR("b", "U8", "[2]", "[0,2]") "}", 2, "an overlap"},
        {"{" TENSOR("a", "U8", "[2]", "[0,2]") "," TENSOR("b", "U8", "[0]", "[1,1]") "}", 2,
         "tensor 'b': its data begins at 1"},
        {"{" TENSOR("a", "U8", "[2]", "[0,2]") "}", 3, "the tensors end at byte"},
        {"{" TENSOR("a", "U8", "[1]", "[0,1]") "," TENSOR("a", "U8", "[1]", "[1,2]") "}", 2,
         "tensor 'a': the name appears twice"},
        {"{" TENSOR("a", "U8", "[1]", "[0,1]") "," TENSOR("\\u0061", "U8", "[1]", "[1,2]") "}", 2,
         "tensor 'a': the name appears twice"},
        {"{" TENSOR("a\\u0000b", "U8", "[1]", "[0,1]") "}", 1, "tensor 'a': a NUL character in the name"},
        {"{\"__metadata__\":1}", 0, "__metadata__ is not an object"},
        {"{\"__metadata__\":null}", 0, "__metadata__ is not an object"},
        {"{\"__metadata__\":{\"k\":1}}", 0, "__metadata__ member 'k' is not a string"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ appears twice"},
        {"{\"__metadata__\\u0000\":{}}", 0, "a NUL character in the name"},
    };
    size_t i;
    for (i = 0; i < N(cases); i++) {
        const char *path = make_file("bad", cases[i].header, cases[i].data);
        tsk_error error = no_error;
        tsk_safetensors *file = (tsk_safetensors *)&error;
        CHECK_INT(tsk_safetensors_open(path, NULL, &file, &error), TSK_ERROR_SAFETENSORS);
        CHECK(file == NULL);
        if (!CHECK_CONTAINS(error.message, cases[i].message)) printf("  in %s\n", cases[i].header);
        CHECK_CONTAINS(error.message, "/bad'");
        CHECK_STRING(error.file, path);
        CHECK_INT(tsk_safetensors_open(path, NULL, &file, NULL), TSK_ERROR_SAFETENSORS);
    }
}

/* Where in the file an error is. */
static void test_error_offset(void) {
    tsk_error error = no_error;
    tsk_safetensors *file;
    const char *path = make_file("bad", "{\"a\": ?}", 0);
    CHECK_INT(tsk_safetensors_open(path, NULL, &file, &error), TSK_ERROR_SAFETENSORS);
    CHECK_INT(error.offset, 8 + 6);
    path = make_file("bad", "{" TENSOR("a", "F7", "[]", "[0,0]") "}", 0);
    CHECK_INT(tsk_safetensors_open(path, NULL, &file, &error), TSK_ERROR_SAFETENSORS);
    CHECK_INT(error.offset, 8 + 14);
}

static tsk_status open_bytes(const void *bytes, size_t size, tsk_error *error) {
    const char *path = tsk_test_path("bytes");
    tsk_safetensors *file;
    write_file(path, bytes, size);
    return tsk_safetensors_open(path, NULL, &file, error);
}

static void test_not_a_file(void) {
    static const uint64_t lies[] = {100000001, UINT64_MAX, (uint64_t)1 << 63, UINT64_MAX - 7};
    unsigned char bytes[16] = {0};
    tsk_error error = no_error;
    tsk_safetensors *file = NULL;
    size_t i;
    CHECK_INT(open_bytes("", 0, &error), TSK_ERROR_SAFETENSORS);
    CHECK_CONTAINS(error.message, "it is empty");
    CHECK_INT(open_bytes(bytes, 7, &error), TSK_ERROR_SAFETENSORS);
    CHECK_CONTAINS(error.message, "the file has 7 bytes, too few");
    CHECK_INT(open_bytes(bytes, 8, &error), TSK_ERROR_SAFETENSORS);
    CHECK_CONTAINS(error.message, "does not begin with '{'");
    put_length(bytes, 9);
    CHECK_INT(open_bytes(bytes, 16, &error), TSK_ERROR_SAFETENSORS);
    CHECK_CONTAINS(error.message, "the file has 16 bytes, but its header alone should have 9: it is cut");
    for (i = 0; i < N(lies); i++) {
        put_length(bytes, lies[i]);
        CHECK_INT(open_bytes(bytes, 16, &error), TSK_ERROR_SAFETENSORS);
        CHECK_CONTAINS(error.message, "beyond the limit of 100000000");
    }
    CHECK_INT(tsk_safetensors_open(tsk_test_path("missing"), NULL, &file, &error), TSK_ERROR_IO);
    CHECK_CONTAINS(error.message, "/missing': No such file");
    CHECK_INT(tsk_safetensors_open(tsk_test_temp_dir(), NULL, &file, &error), TSK_ERROR_IO);
    CHECK_CONTAINS(error.message, "is a directory");
    CHECK_INT(tsk_safetensors_open(TEST_DEVICE, NULL, &file, &error), TSK_ERROR_IO);
    CHECK_CONTAINS(error.message, "not a regular file");
}

#ifndef TEST_NO_LINKS
static void test_links(void) {
    tsk_error error = no_error;
    tsk_safetensors *file = NULL;
    const char *fifo = tsk_test_path("fifo"), *link = tsk_test_path("link");
    CHECK_INT(mkfifo(fifo, 0600), 0);
    CHECK_INT(tsk_safetensors_open(fifo, NULL, &file, &error), TSK_ERROR_IO);
    CHECK_CONTAINS(error.message, "is a FIFO");
    CHECK_INT(symlink("good", link), 0); /* a link to a good file is a good file */
    CHECK_INT(tsk_safetensors_open(link, NULL, &file, &error), TSK_OK);
    tsk_safetensors_free(file);
    CHECK_INT(unlink(link) | unlink(fifo), 0);
}
#endif

/* Cut after opening: reading says so; nothing is mapped, so nothing can raise SIGBUS. */
static void test_cut_while_open(void) {
    const char *path = make_file("cut", good_header, 18);
    tsk_host host = {NULL, NULL, 1};
    tsk_error error = no_error;
    tsk_safetensors *file = NULL;
    unsigned char bytes[12];
    CHECK_INT(tsk_safetensors_open(path, &host, &file, &error), TSK_OK);
    CHECK_INT(truncate(path, 100), 0);
    CHECK_INT(tsk_safetensors_read(file, tsk_safetensors_find(file, "w"), 0, bytes, 12, &error), TSK_ERROR_IO);
    CHECK_CONTAINS(error.message, "/cut' was cut short");
    tsk_safetensors_free(file);
}

/* ---- through the host's callbacks: which bytes are read, and what when a read fails */

typedef struct counted_file {
    char *bytes;
    size_t size;
    uint64_t pretended; /* more bytes than there are: reading those is an error */
    uint64_t bytes_read;
    int reads, fail_at, open;
} counted_file;

static tsk_status counted_open(void *user, const char *path, void **file, uint64_t *size, char *reason,
                               size_t reason_size) {
    counted_file *counted = (counted_file *)user;
    (void)path, (void)reason, (void)reason_size;
    *file = counted;
    *size = counted->size + counted->pretended;
    counted->open++;
    return TSK_OK;
}
static tsk_status counted_read(void *user, void *file, uint64_t offset, void *buffer, size_t size, char *reason,
                               size_t reason_size) {
    counted_file *counted = (counted_file *)file;
    (void)user;
    if (counted->reads++ == counted->fail_at || offset + size > counted->size) {
        snprintf(reason, reason_size, "the disk is on fire");
        return TSK_ERROR_IO;
    }
    memcpy(buffer, counted->bytes + offset, size);
    counted->bytes_read += size;
    return TSK_OK;
}
static void counted_close(void *user, void *file) {
    (void)file;
    ((counted_file *)user)->open--;
}

static tsk_status open_counted(counted_file *counted, const tsk_allocator *allocator, tsk_safetensors **file,
                               tsk_error *error) {
    tsk_file_callbacks callbacks = {counted_open, counted_read, NULL, counted_close, NULL};
    tsk_host host = {NULL, NULL, 0};
    tsk_status status;
    callbacks.user = counted;
    host.files = &callbacks;
    host.allocator = allocator;
    counted->reads = 0;
    counted->bytes_read = 0;
    status = tsk_safetensors_open("archive:model", &host, file, error);
    if (status == TSK_OK) tsk_safetensors_free(*file);
    CHECK_INT(counted->open, 0);
    return status;
}

static void test_reads_only_the_header(void) {
    static const char header[] = "{" TENSOR("big", "BF16", "[8,1073741824]", "[0,17179869184]") "}";
    counted_file counted = {NULL, 0, (uint64_t)1 << 34, 0, 0, -1, 0};
    tsk_safetensors *file = NULL;
    tsk_error error = no_error;
    const char *path = make_file("sparse", header, 0);
    counted.bytes = read_file(path, &counted.size);
    CHECK_INT(open_counted(&counted, NULL, &file, &error), TSK_OK);
    CHECK_INT(counted.bytes_read, counted.size);
    for (counted.fail_at = 0; counted.fail_at < 2; counted.fail_at++) {
        CHECK_INT(open_counted(&counted, NULL, &file, &error), TSK_ERROR_IO);
        CHECK_STRING(error.message, "cannot read 'archive:model': the disk is on fire");
    }
    free(counted.bytes);
    /* and 16 GB of nothing on a disk, mapped */
    CHECK_INT(truncate(path, (off_t)(counted.size + ((uint64_t)1 << 34))), 0);
    CHECK_INT(tsk_safetensors_open(path, NULL, &file, &error), TSK_OK);
    CHECK_INT(tsk_safetensors_get(file, 0)->size, (uint64_t)1 << 34);
    tsk_safetensors_free(file);
    CHECK_INT(unlink(path), 0);
}

/* 200,000 entries, their offsets in the opposite order of their names: still a fraction of a second. */
static void test_many_entries(void) {
    enum { many = 200000 };
    tsk_text header = {NULL, 0, 0, NULL};
    tsk_safetensors *file = NULL;
    char entry[160];
    int i, wrong = 0;
    tsk_text_append(&header, "{", 1);
    for (i = 0; i < many; i++) {
        int n =
            snprintf(entry, sizeof entry, "%s\"layer.%06d\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}",
                     i ? "," : "", i, many - 1 - i, many - i);
        tsk_text_append(&header, entry, (size_t)n);
    }
    tsk_text_append(&header, "}", 1);
    CHECK_INT(tsk_safetensors_open(make_file("many", header.data, many), NULL, &file, NULL), TSK_OK);
    CHECK_INT(tsk_safetensors_count(file), many);
    for (i = 0; i < many; i++) {
        snprintf(entry, sizeof entry, "layer.%06d", many - 1 - i);
        if (tsk_safetensors_find(file, entry) != tsk_safetensors_get(file, (size_t)i)) wrong++;
    }
    CHECK_INT(wrong, 0);
    tsk_safetensors_free(file);
    tsk_text_free(&header);
}

/* ---- writing */

static void test_write(void) {
    static const char expected[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[0,8]},"
                                   "\"q\\\"\\n\xc3\xa9\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[8,9]},"
                                   "\"z\":{\"dtype\":\"BF16\",\"shape\":[0,5],\"data_offsets\":[9,9]}}";
    static const uint64_t shape[] = {2, 1}, zero[] = {0, 5};
    const char *path = tsk_test_path("written");
    unsigned char data[8] = {1, 2, 3, 4, 5, 6, 7, 8}, *bytes;
    tsk_safetensors_writer *writer = NULL;
    tsk_safetensors *file = NULL;
    tsk_error error = no_error;
    size_t size, length = 0, i;
    int files;
    write_text(path, "old");
    files = files_in_folder();
    CHECK_INT(tsk_safetensors_writer_open(path, NULL, &writer, &error), TSK_OK);
#ifndef _WIN32 /* where a hidden file keeps its name until it is closed */
    CHECK_INT(files_in_folder(), files);
#endif
    CHECK_INT(tsk_safetensors_writer_add(writer, "a", TSK_DTYPE_F32, 2, shape, data, &error), TSK_OK);
    CHECK_INT(tsk_safetensors_writer_add(writer, "q\"\n\xc3\xa9", TSK_DTYPE_U8, 0, NULL, data + 7, &error), TSK_OK);
    CHECK_INT(tsk_safetensors_writer_add(writer, "z", TSK_DTYPE_BF16, 2, zero, NULL, &error), TSK_OK);
    bytes = (unsigned char *)read_file(path, NULL);
    CHECK_STRING((char *)bytes, "old");
    free(bytes);
    CHECK_INT(tsk_safetensors_writer_finish(writer, &error), TSK_OK);
    tsk_safetensors_writer_free(writer);
    CHECK_INT(files_in_folder(), files);
    bytes = (unsigned char *)read_file(path, &size);
    for (i = 0; i < 8; i++) length |= (size_t)bytes[i] << 8 * i;
    CHECK_INT(length, (sizeof expected - 1 + 7) / 8 * 8);
    CHECK_INT(size, 8 + length + 9);
    CHECK(memcmp(bytes + 8, expected, sizeof expected - 1) == 0);
    for (i = sizeof expected - 1; i < length; i++) CHECK_INT(bytes[8 + i], ' ');
    CHECK(memcmp(bytes + 8 + length, data, 8) == 0 && bytes[size - 1] == 8);
    free(bytes);
    CHECK_INT(tsk_safetensors_open(path, NULL, &file, &error), TSK_OK);
    CHECK_INT(tsk_safetensors_find(file, "q\"\n\xc3\xa9")->size, 1);
    tsk_safetensors_free(file);
}

static void test_write_metadata(void) {
    static const char expected[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]},"
                                   "\"__metadata__\":{\"format\":\"x\",\"q\\\"\":\"line\\n\"}}";
    static const char *const keys[] = {"format", "q\"", "format"}, *const values[] = {"x", "line\n", "y"},
                             *const without[] = {"a", NULL};
    const char *path = tsk_test_path("metadata");
    tsk_safetensors_writer *writer = NULL;
    tsk_safetensors *file = NULL;
    tsk_error error = no_error;
    char *bytes;
    CHECK_INT(tsk_safetensors_writer_open(path, NULL, &writer, &error), TSK_OK);
    CHECK_INT(tsk_safetensors_writer_metadata(writer, 1, keys + 1, values, &error), TSK_OK); /* overruled */
    CHECK_INT(tsk_safetensors_writer_metadata(writer, 2, keys, values, &error), TSK_OK);
    CHECK_INT(tsk_safetensors_writer_metadata(writer, 3, keys, values, &error), TSK_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "a key is there twice");
    CHECK_INT(tsk_safetensors_writer_metadata(writer, 2, without, values, &error), TSK_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "a key or a value is NULL");
    CHECK_INT(tsk_safetensors_writer_metadata(NULL, 2, keys, values, &error), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_safetensors_writer_metadata(writer, 2, NULL, values, &error), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_safetensors_writer_metadata(writer, 2, keys, NULL, &error), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_safetensors_writer_add(writer, "a", TSK_DTYPE_U8, 0, NULL, "x", &error), TSK_OK);
    CHECK_INT(tsk_safetensors_writer_finish(writer, &error), TSK_OK);
    CHECK_INT(tsk_safetensors_writer_metadata(writer, 0, NULL, NULL, &error), TSK_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "finished");
    tsk_safetensors_writer_free(writer);
    bytes = read_file(path, NULL);
    CHECK(memcmp(bytes + 8, expected, sizeof expected - 1) == 0);
    free(bytes);
    CHECK_INT(tsk_safetensors_open(path, NULL, &file, &error), TSK_OK);
    CHECK_INT(tsk_safetensors_count(file), 1);
    CHECK_STRING(tsk_json_string(tsk_json_get(tsk_safetensors_metadata(file), "q\""), NULL), "line\n");
    tsk_safetensors_free(file);
}

static void test_write_much(void) {
    enum { big = 3000001, many = 20000 };
    const char *path = tsk_test_path("much");
    uint64_t shape[1] = {big};
    unsigned char *data = (unsigned char *)malloc(big), *back = (unsigned char *)malloc(big);
    tsk_safetensors_writer *writer = NULL;
    tsk_safetensors *file = NULL;
    char name[16];
    int i, wrong = 0;
    for (i = 0; i < big; i++) data[i] = (unsigned char)(i * 7 >> 3);
    CHECK_INT(tsk_safetensors_writer_open(path, NULL, &writer, NULL), TSK_OK);
    CHECK_INT(tsk_safetensors_writer_add(writer, "big", TSK_DTYPE_U8, 1, shape, data, NULL), TSK_OK);
    shape[0] = 2;
    for (i = 0; i < many; i++) {
        snprintf(name, sizeof name, "%d", i);
        if (tsk_safetensors_writer_add(writer, name, TSK_DTYPE_F16, 1, shape, &i, NULL) != TSK_OK) wrong++;
        if (i % 1000 == 0 &&
            tsk_safetensors_writer_add(writer, name, TSK_DTYPE_F16, 1, shape, &i, NULL) != TSK_ERROR_ARGUMENT)
            wrong++;
    }
    CHECK_INT(tsk_safetensors_writer_finish(writer, NULL), TSK_OK);
    tsk_safetensors_writer_free(writer);
    CHECK_INT(tsk_safetensors_open(path, NULL, &file, NULL), TSK_OK);
    CHECK_INT(tsk_safetensors_count(file), many + 1);
    CHECK_INT(tsk_safetensors_read(file, tsk_safetensors_find(file, "big"), 0, back, big, NULL), TSK_OK);
    CHECK(memcmp(data, back, big) == 0);
    for (i = 0; i < many; i++) {
        int value = -1;
        snprintf(name, sizeof name, "%d", i);
        if (tsk_safetensors_read(file, tsk_safetensors_find(file, name), 0, &value, 4, NULL) != TSK_OK || value != i)
            wrong++;
    }
    CHECK_INT(wrong, 0);
    CHECK_INT(tsk_safetensors_get(file, 0)->offset % 8, 0);
    tsk_safetensors_free(file);
    free(data);
    free(back);
}

/* Names that FNV-1a, folded, puts into one place of 2,048: the writer must find each as quickly as others. The longest
   stretch of places in use is what it may have to walk. */
static void test_write_flood(void) {
    enum { many = 1000, bound = 200 };
    tsk_safetensors_writer *writer = NULL;
    size_t i, stretch = 0, longest = 0;
    uint32_t number;
    int made = 0, wrong = 0;
    CHECK_INT(tsk_safetensors_writer_open(tsk_test_path("flood"), NULL, &writer, NULL), TSK_OK);
    for (number = 0; made < many; number++) {
        uint64_t hash = UINT64_C(0xcbf29ce484222325), shape[1] = {0};
        char quoted[24], name[16];
        snprintf(name, sizeof name, "%lu", (unsigned long)number);
        snprintf(quoted, sizeof quoted, "\"%lu\"", (unsigned long)number);
        for (i = 0; quoted[i]; i++) hash = (hash ^ (unsigned char)quoted[i]) * UINT64_C(0x100000001b3);
        if ((hash ^ hash >> 32) & 2047) continue;
        made++;
        if (tsk_safetensors_writer_add(writer, name, TSK_DTYPE_U8, 1, shape, NULL, NULL) != TSK_OK) wrong++;
        if (tsk_safetensors_writer_add(writer, name, TSK_DTYPE_U8, 1, shape, NULL, NULL) != TSK_ERROR_ARGUMENT) wrong++;
    }
    CHECK_INT(wrong, 0);
    CHECK_INT(writer->n_slots, 2048);
    for (i = 0; i < 2 * writer->n_slots; i++) {
        stretch = writer->slots[i % writer->n_slots] ? stretch + 1 : 0;
        if (stretch > longest) longest = stretch;
    }
    CHECK(longest < bound);
    tsk_safetensors_writer_free(writer);
}

static void test_write_refuses(void) {
    static const uint64_t one[8] = {1, 1, 1, 1, 1, 1, 1, 1}, huge[2] = {(uint64_t)1 << 40, (uint64_t)1 << 40},
                          large[1] = {UINT64_MAX};
    static const struct {
        const char *name;
        tsk_dtype dtype;
        int n_dims;
        const uint64_t *shape;
        const char *data, *message;
    } cases[] = {
        {"there", TSK_DTYPE_U8, 1, one, "x", "tensor 'there': the name is there already"},
        {"__metadata__", TSK_DTYPE_U8, 1, one, "x", "the format's own"},
        {"a\xff", TSK_DTYPE_U8, 1, one, "x", "not UTF-8"},
        {"n", TSK_DTYPE_AUTO, 1, one, "x", "unknown dtype"},
        {"n", TSK_DTYPE_COUNT, 1, one, "x", "unknown dtype"},
        {"n", TSK_DTYPE_U8, 9, one, "x", "too many dimensions"},
        {"n", TSK_DTYPE_U8, -1, one, "x", "too many dimensions"},
        {"n", TSK_DTYPE_U8, 2, huge, "x", "does not fit 64 bits"},
        {"n", TSK_DTYPE_U8, 1, large, "x", "larger than a file can be"},
        {"n", TSK_DTYPE_U8, 1, one, NULL, "no data"},
    };
    const char *path = tsk_test_path("refused");
    tsk_safetensors_writer *writer = NULL;
    tsk_safetensors *file = NULL;
    tsk_error error = no_error;
    size_t i;
    CHECK_INT(tsk_safetensors_writer_open(path, NULL, &writer, &error), TSK_OK);
    CHECK_INT(tsk_safetensors_writer_add(writer, "there", TSK_DTYPE_U8, 8, one, "x", &error), TSK_OK);
    for (i = 0; i < N(cases); i++) {
        CHECK_INT(tsk_safetensors_writer_add(writer, cases[i].name, cases[i].dtype, cases[i].n_dims, cases[i].shape,
                                             cases[i].data, &error),
                  TSK_ERROR_ARGUMENT);
        CHECK_CONTAINS(error.message, cases[i].message);
        CHECK_CONTAINS(error.message, "/refused'");
    }
    CHECK_INT(tsk_safetensors_writer_add(writer, "more", TSK_DTYPE_U8, 0, NULL, "y", &error),
              TSK_OK); /* still usable */
    CHECK_INT(tsk_safetensors_writer_finish(writer, &error), TSK_OK);
    tsk_safetensors_writer_free(writer);
    CHECK_INT(tsk_safetensors_open(path, NULL, &file, &error), TSK_OK);
    CHECK_INT(tsk_safetensors_count(file), 2);
    tsk_safetensors_free(file);
}

/* Ten names of 10 MB: the tenth would make the header longer than readers accept. */
static void test_write_long_header(void) {
    size_t length = 10000000;
    char *name = (char *)malloc(length + 1);
    tsk_safetensors_writer *writer = NULL;
    tsk_error error = no_error;
    tsk_status status = TSK_OK;
    int i;
    memset(name, 'n', length);
    name[length] = 0;
    CHECK_INT(tsk_safetensors_writer_open(tsk_test_path("long"), NULL, &writer, &error), TSK_OK);
    for (i = 0; i < 10 && status == TSK_OK; i++) {
        name[0] = (char)('0' + i);
        status = tsk_safetensors_writer_add(writer, name, TSK_DTYPE_U8, 0, NULL, "x", &error);
    }
    CHECK_INT(i, 10);
    CHECK_INT(status, TSK_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "the header would be longer than the format allows");
    tsk_safetensors_writer_free(writer);
    free(name);
}

static void test_write_places(void) {
    tsk_safetensors_writer *writer = NULL;
    tsk_error error = no_error;
    const char *path = tsk_test_path("abandoned"), *folder = tsk_test_path("folder"),
               *in_folder = tsk_test_path("folder/x");
    char long_path[1024];
    int files = files_in_folder();
    CHECK_INT(tsk_safetensors_writer_open(path, NULL, &writer, &error), TSK_OK);
    CHECK_INT(tsk_safetensors_writer_add(writer, "a", TSK_DTYPE_U8, 0, NULL, "x", &error), TSK_OK);
    tsk_safetensors_writer_free(writer);
    tsk_safetensors_writer_free(NULL);
    CHECK_INT(files_in_folder(), files);
    CHECK_INT(tsk_safetensors_writer_open(tsk_test_path("no/such/folder"), NULL, &writer, &error), TSK_ERROR_IO);
    CHECK(writer == NULL);
    CHECK_CONTAINS(error.message, "no/such/folder': No such file or directory");
    CHECK_INT(tsk_safetensors_writer_open(tsk_test_temp_dir(), NULL, &writer, &error), TSK_ERROR_IO);
    CHECK_CONTAINS(error.message, "is a directory");
    CHECK_INT(tsk_safetensors_writer_open(TEST_DEVICE, NULL, &writer, &error), TSK_ERROR_IO);
    CHECK_CONTAINS(error.message, "not a regular file");
    CHECK_INT(tsk_safetensors_writer_open("", NULL, &writer, &error), TSK_ERROR_IO);
    CHECK_CONTAINS(error.message, "the path is empty");
    /* the folder goes away, or a folder takes the name, before the end */
    CHECK_INT(mkdir(folder, 0700), 0);
    CHECK_INT(tsk_safetensors_writer_open(in_folder, NULL, &writer, &error), TSK_OK);
#ifdef _WIN32 /* a folder with an open file stays */
    tsk_safetensors_writer_free(writer);
    CHECK_INT(rmdir(folder), 0);
#else
    CHECK_INT(rmdir(folder), 0);
    CHECK_INT(tsk_safetensors_writer_finish(writer, &error), TSK_ERROR_IO);
    tsk_safetensors_writer_free(writer);
    CHECK_CONTAINS(error.message, "folder/x': No such file or directory");
#endif
    CHECK_INT(tsk_safetensors_writer_open(path, NULL, &writer, &error), TSK_OK);
    CHECK_INT(mkdir(path, 0700), 0);
    CHECK_INT(tsk_safetensors_writer_finish(writer, &error), TSK_ERROR_IO);
    tsk_safetensors_writer_free(writer);
    CHECK_CONTAINS(error.message, "is a directory");
    CHECK_INT(rmdir(path), 0);
    /* a name that cannot be taken */
    snprintf(long_path, sizeof long_path, "%s/%0300d", tsk_test_temp_dir(), 1);
    CHECK_INT(tsk_safetensors_writer_open(long_path, NULL, &writer, &error), TSK_OK);
    CHECK_INT(tsk_safetensors_writer_finish(writer, &error), TSK_ERROR_IO);
    tsk_safetensors_writer_free(writer);
#ifndef _WIN32 /* has no word for it */
    CHECK_CONTAINS(error.message, "00001': File name too long");
#endif
    CHECK_INT(files_in_folder(), files);
}

/* A file size limit stands in for a full disk. */
#ifndef _WIN32
static void test_disk_full(void) {
    struct rlimit old_limit, limit;
    static unsigned char data[8192];
    uint64_t shape[1] = {8192};
    tsk_safetensors_writer *writer = NULL;
    tsk_error error = no_error;
    const char *path = tsk_test_path("full");
    char *text;
    int files;
    write_text(path, "old");
    files = files_in_folder();
    getrlimit(RLIMIT_FSIZE, &old_limit);
    signal(SIGXFSZ, SIG_IGN);
    CHECK_INT(tsk_safetensors_writer_open(path, NULL, &writer, &error), TSK_OK);
    limit = old_limit;
    limit.rlim_cur = 4096;
    setrlimit(RLIMIT_FSIZE, &limit);
    CHECK_INT(tsk_safetensors_writer_add(writer, "a", TSK_DTYPE_U8, 1, shape, data, &error), TSK_ERROR_IO);
    CHECK_CONTAINS(error.message, "/full': File too large");
    shape[0] = 4096; /* this much fits; with a header it does not */
    CHECK_INT(tsk_safetensors_writer_add(writer, "a", TSK_DTYPE_U8, 1, shape, data, &error), TSK_OK);
    CHECK_INT(tsk_safetensors_writer_finish(writer, &error), TSK_ERROR_IO);
    tsk_safetensors_writer_free(writer);
    CHECK_CONTAINS(error.message, "/full': File too large");
    setrlimit(RLIMIT_FSIZE, &old_limit);
    CHECK_INT(files_in_folder(), files);
    text = read_file(path, NULL);
    CHECK_STRING(text, "old");
    free(text);
}
#endif

static void test_memory(void) {
    static const uint64_t shape[] = {2};
    const char *path = tsk_test_path("memory"), *key = "key";
    counted_file counted = {NULL, 0, 0, 0, 0, -1, 0};
    int files;
    long n;
    counted.bytes = read_file(make_file("good", good_header, 18), &counted.size);
    for (n = 0; n < 100; n++) {
        test_allocator counting = test_allocator_failing_at(n);
        tsk_allocator allocator = test_allocator_of(&counting);
        tsk_error error = no_error;
        tsk_safetensors *file = NULL;
        tsk_status status = open_counted(&counted, &allocator, &file, &error);
        CHECK_INT(status, counting.failed ? TSK_ERROR_MEMORY : TSK_OK);
        CHECK_INT(error.status, status);
        CHECK_INT(counting.alive, 0);
        if (!counting.failed) break;
    }
    CHECK(n > 5 && n < 100);
    free(counted.bytes);
    files = files_in_folder();
    for (n = 0; n < 100; n++) {
        test_allocator counting = test_allocator_failing_at(n);
        tsk_allocator allocator = test_allocator_of(&counting);
        tsk_error error = no_error;
        tsk_safetensors_writer *writer = NULL;
        tsk_status status = tsk_safetensors_writer_open(path, &allocator, &writer, &error);
        CHECK((writer != NULL) == (status == TSK_OK));
        if (writer) {
            status = tsk_safetensors_writer_add(writer, "a", TSK_DTYPE_U8, 1, shape, "xy", &error);
            if (status == TSK_ERROR_MEMORY)
                CHECK_INT(tsk_safetensors_writer_add(writer, "a", TSK_DTYPE_U8, 1, shape, "xy", NULL), TSK_OK);
            if (tsk_safetensors_writer_metadata(writer, 1, &key, &key, &error) != TSK_OK)
                CHECK_INT(tsk_safetensors_writer_metadata(writer, 1, &key, &key, NULL), TSK_OK);
            status = tsk_safetensors_writer_finish(writer, &error);
            tsk_safetensors_writer_free(writer);
        }
        CHECK(status == TSK_OK || (status == TSK_ERROR_MEMORY && counting.failed));
        CHECK_INT(counting.alive, 0);
        CHECK_INT(files_in_folder(), files + (status == TSK_OK));
        if (status == TSK_OK) CHECK_INT(unlink(path), 0);
        if (!counting.failed) break;
    }
    CHECK(n > 5 && n < 100);
}

int main(void) {
    test_dtypes();
    test_good_file(0);
    test_good_file(1);
    test_small_files();
    test_refuses();
    test_error_offset();
    test_not_a_file();
#ifndef TEST_NO_LINKS
    test_links();
#endif
    test_cut_while_open();
    test_reads_only_the_header();
    test_many_entries();
    test_write();
    test_write_metadata();
    test_write_much();
    test_write_flood();
    test_write_refuses();
    test_write_long_header();
    test_write_places();
#ifndef _WIN32
    test_disk_full();
#endif
    test_memory();
    return test_end("test_safetensors");
}
