/* What everything else stands on: reading files, the thread pool, error messages, growable buffers. */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_NO_CUDA
#include "../tokenskip.h"
#include "test.h"

/* ---- files */

static void check_unreadable(const char *path, size_t max_size, const tsk_host *host, const char *reason, int line) {
    tsk_text text;
    tsk_error error;
    memset(&text, 0, sizeof text);
    memset(&error, 0, sizeof error);
    test_check(tsk_read_file(path, max_size, host, &text, &error) == TSK_ERROR_IO && error.status == TSK_ERROR_IO,
               __FILE__, line, "'%s' is refused", path);
    test_check(strstr(error.message, reason) != NULL, __FILE__, line, "\"%s\" lacks \"%s\"", error.message, reason);
    test_check(strcmp(error.file, path) == 0, __FILE__, line, "the file is \"%s\", not \"%s\"", error.file, path);
    test_check(text.length == 0, __FILE__, line, "nothing is appended");
    tsk_text_free(&text);
}

static void test_read_file(void) {
    static const char bytes[] = "first\0second";
    const char *path = tsk_test_path("some file"), *fifo = tsk_test_path("a fifo"), *empty = tsk_test_path("empty"),
               *link_path = tsk_test_path("link");
    tsk_text text;
    tsk_error error;
    memset(&text, 0, sizeof text);
    memset(&error, 0, sizeof error);
    write_file(path, bytes, sizeof bytes);
    CHECK_INT(tsk_read_file(path, 1000, NULL, &text, &error), TSK_OK);
    CHECK_INT(text.length, sizeof bytes);
    CHECK(memcmp(text.data, bytes, sizeof bytes) == 0 && text.data[sizeof bytes] == 0);
    CHECK_INT(tsk_read_file(path, sizeof bytes, NULL, &text, &error), TSK_OK); /* appended, not put in place */
    CHECK_INT(text.length, 2 * sizeof bytes);
    CHECK(memcmp(text.data + sizeof bytes, bytes, sizeof bytes) == 0 && text.data[2 * sizeof bytes] == 0);
    write_text(empty, "");
    CHECK_INT(tsk_read_file(empty, 0, NULL, &text, &error), TSK_OK);
    CHECK_INT(text.length, 2 * sizeof bytes);
    CHECK_INT(symlink(path, link_path), 0);
    CHECK_INT(tsk_read_file(link_path, 1000, NULL, &text, &error), TSK_OK);
    CHECK_INT(text.length, 3 * sizeof bytes);
    tsk_text_free(&text);
    CHECK(text.data == NULL && text.length == 0 && text.capacity == 0);
    CHECK_INT(error.status, TSK_OK); /* written only when a call fails */
    check_unreadable(tsk_test_path("missing"), 1000, NULL, "No such file", __LINE__);
    check_unreadable(path, sizeof bytes - 1, NULL, "13 bytes, more than the 12 allowed", __LINE__);
    check_unreadable(tsk_test_temp_dir(), 1000, NULL, "directory", __LINE__);
    CHECK_INT(mkfifo(fifo, 0600), 0);
    check_unreadable(fifo, 1000, NULL, "FIFO", __LINE__); /* and does not wait for a writer */
    check_unreadable("/dev/null", 1000, NULL, "not a regular file", __LINE__);
    check_unreadable("", 1000, NULL, "No such file", __LINE__);
    CHECK_INT(tsk_read_file(tsk_test_path("missing"), 1000, NULL, &text, NULL),
              TSK_ERROR_IO); /* the error may be NULL */
}

/* A host's own files: one of five bytes, named "five", that can be told to fail. */
typedef struct archive {
    int opened, closed, reads, fail;
    char reason[80];
} archive;

static tsk_status archive_open(void *user, const char *path, void **file, uint64_t *size, char *reason,
                               size_t reason_size) {
    archive *a = (archive *)user;
    if (strcmp(path, "five") != 0) {
        snprintf(reason, reason_size, "%s", a->reason);
        return TSK_ERROR_IO;
    }
    a->opened++;
    *file = a;
    *size = 5;
    return TSK_OK;
}
static tsk_status archive_read(void *user, void *file, uint64_t offset, void *buffer, size_t size, char *reason,
                               size_t reason_size) {
    archive *a = (archive *)user;
    a->reads++;
    if (file != user || a->fail || offset > 5 || size > 5 - offset) {
        snprintf(reason, reason_size, "%s", a->reason);
        return TSK_ERROR_IO;
    }
    memcpy(buffer, &"12345"[offset], size);
    return TSK_OK;
}
static void archive_close(void *user, void *file) { ((archive *)user)->closed += file == user; }

static void test_callbacks(void) {
    archive a;
    tsk_file_callbacks files;
    tsk_host host;
    tsk_text text;
    memset(&a, 0, sizeof a);
    memset(&files, 0, sizeof files);
    memset(&host, 0, sizeof host);
    memset(&text, 0, sizeof text);
    files.open = archive_open;
    files.read = archive_read;
    files.close = archive_close;
    files.user = &a;
    host.files = &files;
    CHECK_INT(tsk_read_file("five", 5, &host, &text, NULL), TSK_OK);
    CHECK_STRING(text.data, "12345");
    tsk_text_free(&text);
    check_unreadable("five", 4, &host, "5 bytes, more than the 4 allowed", __LINE__);
    check_unreadable("six", 4, &host, "refused", __LINE__); /* no reason given: one is made up */
    snprintf(a.reason, sizeof a.reason, "the disc is scratched");
    a.fail = 1;
    check_unreadable("five", 5, &host, "the disc is scratched", __LINE__);
    check_unreadable("six", 5, &host, "the disc is scratched", __LINE__);
    CHECK_INT(a.opened, 3);
    CHECK_INT(a.closed, 3);
    CHECK_INT(a.reads, 2);
}

/* ---- errors */

static void test_error_text(void) {
    tsk_error error, same;
    char path[2000], text[3000];
    memset(&error, 0, sizeof error);
    CHECK_INT(tsk__error_set(&error, TSK_ERROR_JSON, "a/file", 17, "found %d\n\tand \x1b[31m%s\x7f", 3, "red"),
              TSK_ERROR_JSON);
    CHECK_STRING(error.message, "found 3??and ?[31mred?"); /* one line, and no terminal's escapes */
    CHECK_STRING(error.file, "a/file");
    CHECK_INT(error.offset, 17);
    CHECK_INT(error.status, TSK_ERROR_JSON);
    memset(path, 'x', sizeof path);
    memcpy(path + sizeof path - 9, "/the_end", 9);
    memset(text, 'y', sizeof text);
    text[sizeof text - 1] = 0;
    CHECK_INT(tsk__error_set(&error, TSK_ERROR_IO, path, TSK_NO_OFFSET, "%s", text), TSK_ERROR_IO);
    CHECK_INT(strlen(error.file), sizeof error.file - 1);
    CHECK_STRING(error.file + strlen(error.file) - 8, "/the_end"); /* a long path keeps its end */
    CHECK_INT(strlen(error.message), sizeof error.message - 1);
    CHECK(error.offset == TSK_NO_OFFSET);
    memset(path, 'x', sizeof path);
    path[sizeof error.file - 1] = 0;
    tsk__error_set(&error, TSK_ERROR_IO, path, 0, "x");
    CHECK_STRING(error.file, path);
    tsk__error_set(&error, TSK_ERROR_IO, NULL, 0, "x");
    CHECK_STRING(error.file, "");
    CHECK_INT(tsk__error_set(NULL, TSK_ERROR_IO, path, 0, "%s", "ignored"), TSK_ERROR_IO);
    CHECK_INT(tsk__error_memory(&error, "a house", 123), TSK_ERROR_MEMORY);
    CHECK_STRING(error.message, "out of memory: 123 bytes for a house");
    memset(&error, 0xa5, sizeof error); /* nothing of what was there before is left, nor read */
    memset(&same, 0, sizeof same);
    tsk__error_set(&error, TSK_ERROR_IO, "f", 3, "x");
    same.status = TSK_ERROR_IO, same.offset = 3, same.message[0] = 'x', same.file[0] = 'f';
    CHECK(memcmp(&error, &same, sizeof same) == 0);
}

/* However long the path, the message says what is wrong with it. */
static void test_long_path(void) {
    char path[1200];
    tsk_text text;
    tsk_error error;
    size_t i;
    memset(&text, 0, sizeof text);
    memset(&error, 0, sizeof error);
    for (i = 0; i + 1 < sizeof path; i++) path[i] = i % 40 == 39 ? '/' : 'd';
    path[sizeof path - 1] = 0;
    CHECK_INT(tsk_read_file(path, 10, NULL, &text, &error), TSK_ERROR_IO);
    CHECK_CONTAINS(error.message, "No such file");
    CHECK_STRING(error.file, path + sizeof path - sizeof error.file);
}

static void test_status_strings(void) {
    int i, j;
    for (i = 0; i < (int)TSK_STATUS_COUNT; i++) {
        CHECK(tsk_status_string((tsk_status)i)[0] != 0);
        for (j = 0; j < i; j++) CHECK(strcmp(tsk_status_string((tsk_status)i), tsk_status_string((tsk_status)j)) != 0);
    }
    CHECK_STRING(tsk_status_string(TSK_OK), "ok");
    CHECK_STRING(tsk_status_string(TSK_ERROR_MEMORY), "out of memory");
    CHECK_STRING(tsk_status_string(TSK_STATUS_COUNT), "unknown status");
    CHECK_STRING(tsk_status_string((tsk_status)1000), "unknown status");
}

/* ---- buffers */

static void test_text(void) {
    test_allocator counting = test_allocator_failing_at(-1);
    tsk_allocator allocator = test_allocator_of(&counting);
    tsk_text text;
    char byte;
    size_t i, wrong = 0;
    memset(&text, 0, sizeof text);
    text.allocator = &allocator;
    CHECK_INT(tsk_text_append(&text, NULL, 0), TSK_OK);
    CHECK_STRING(text.data, "");
    for (i = 0; i < 10000; i++) {
        byte = (char)('a' + i % 26);
        wrong += tsk_text_append(&text, &byte, 1) != TSK_OK || text.length != i + 1 || text.data[i + 1] != 0 ||
                 text.capacity <= text.length;
    }
    for (i = 0; i < 10000; i++) wrong += text.data[i] != (char)('a' + i % 26);
    CHECK_INT(wrong, 0);
    CHECK(counting.calls < 40); /* it grows by a factor */
    CHECK_INT(tsk_text_append(&text, "x", SIZE_MAX - 5), TSK_ERROR_MEMORY);
    CHECK_INT(text.length, 10000);
    counting.fail_at = counting.calls;
    while (text.length < text.capacity - 1) tsk_text_append(&text, "z", 1);
    CHECK_INT(tsk_text_append(&text, "last", 4), TSK_ERROR_MEMORY);
    CHECK(text.data[text.length] == 0 && text.data[0] == 'a' && text.data[text.length - 1] == 'z'); /* as it was */
    CHECK_INT(tsk_text_append(&text, "last", 4), TSK_OK);
    tsk_text_free(&text);
    tsk_text_free(&text);
    CHECK_INT(counting.alive, 0);
    CHECK(text.allocator == &allocator && text.data == NULL);
}

static void test_tokens(void) {
    test_allocator counting = test_allocator_failing_at(-1);
    tsk_allocator allocator = test_allocator_of(&counting);
    tsk_tokens tokens;
    int32_t ids[3] = {1, 2, 3};
    size_t i, wrong = 0;
    memset(&tokens, 0, sizeof tokens);
    tokens.allocator = &allocator;
    CHECK_INT(tsk_tokens_append(&tokens, NULL, 0), TSK_OK);
    for (i = 0; i < 3000; i++) wrong += tsk_tokens_append(&tokens, ids, 3) != TSK_OK;
    for (i = 0; i < 9000; i++) wrong += tokens.ids[i] != (int32_t)(1 + i % 3);
    CHECK_INT(wrong, 0);
    CHECK_INT(tokens.count, 9000);
    CHECK(counting.calls < 40);
    CHECK_INT(tsk_tokens_append(&tokens, ids, INT32_MAX - 8999), TSK_ERROR_MEMORY); /* more than an int32_t counts: not
                                                                                       even tried */
    CHECK_INT(tsk_tokens_append(&tokens, ids, INT32_MAX), TSK_ERROR_MEMORY);
    CHECK_INT(tsk_tokens_append(&tokens, ids, -1), TSK_ERROR_ARGUMENT);
    CHECK_INT(tokens.count, 9000);
    tsk_tokens_free(&tokens);
    CHECK_INT(counting.alive, 0);
    CHECK(tokens.ids == NULL && tokens.count == 0);
}

static void test_memory_sizes(void) {
    void *block = tsk__memory_new(NULL, 0, 8);
    CHECK(block != NULL);
    tsk__memory_delete(NULL, block);
    CHECK(tsk__memory_new(NULL, SIZE_MAX / 4, 8) == NULL);
    CHECK(tsk__memory_new_zeroed(NULL, SIZE_MAX, 2) == NULL);
    tsk__memory_delete(NULL, NULL);
}

/* ---- the pool */

typedef struct sums {
    int64_t values[3001];
    int base;
} sums;

static void add_task(void *context, int task) {
    sums *s = (sums *)context;
    s->values[task] += (int64_t)task * task + s->base;
}

/* Each task of each section runs once, before the section returns, with the section's own context. */
static void check_sections(int n_threads, int n_sections) {
    static const struct timespec nap = {0, 300000};
    static sums contexts[2];
    tsk__pool *pool = tsk__pool_create(NULL, n_threads);
    int section, task, wrong = 0;
    if (!CHECK(pool != NULL)) return;
    CHECK(pool->n_threads >= 1 && pool->n_threads <= (n_threads ? n_threads : TSK__POOL_MAX_THREADS));
    for (section = 0; section < n_sections; section++) {
        sums *s = &contexts[section & 1];
        int n = section % 7 == 0 ? section % 3 : 1 + section * 13 % 61;
        if (section % 500 == 499) n = 3000;
        if (section % 100 == 99) nanosleep(&nap, NULL); /* long enough for workers to fall asleep */
        memset(s->values, 0, (size_t)(n + 1) * sizeof s->values[0]);
        s->base = section;
        tsk__parallel(pool, n, add_task, s);
        for (task = 0; task < n; task++) wrong += s->values[task] != (int64_t)task * task + section;
        wrong += s->values[n] != 0;
    }
    CHECK_INT(wrong, 0);
    tsk__pool_destroy(NULL, pool);
}

typedef struct guest {
    tsk__pool *pool;
    sums own;
    int wrong;
} guest;

static void *use_pool(void *argument) {
    guest *g = (guest *)argument;
    int section, task;
    for (section = 0; section < 400; section++) {
        memset(&g->own, 0, sizeof g->own);
        g->own.base = section;
        tsk__parallel(g->pool, 20, add_task, &g->own);
        for (task = 0; task < 20; task++) g->wrong += g->own.values[task] != (int64_t)task * task + section;
    }
    return NULL;
}

/* A section that finds the pool busy runs on its own thread. */
static void check_shared_pool(void) {
    static guest guests[4];
    pthread_t threads[4];
    tsk__pool *pool = tsk__pool_create(NULL, 3);
    int i;
    for (i = 0; i < 4; i++) {
        guests[i].pool = pool;
        if (!CHECK_INT(pthread_create(&threads[i], NULL, use_pool, &guests[i]), 0)) exit(1);
    }
    for (i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        CHECK_INT(guests[i].wrong, 0);
    }
    tsk__pool_destroy(NULL, pool);
}

/* A section inside a section, and no pool at all. */
typedef struct nested {
    tsk__pool *pool;
    sums inner[8];
} nested;

static void nested_task(void *context, int task) {
    nested *n = (nested *)context;
    tsk__parallel(n->pool, 50, add_task, &n->inner[task]);
}

static void check_nested(void) {
    static nested n;
    int i, task, wrong = 0;
    n.pool = tsk__pool_create(NULL, 4);
    tsk__parallel(n.pool, 8, nested_task, &n);
    for (i = 0; i < 8; i++)
        for (task = 0; task < 50; task++) wrong += n.inner[i].values[task] != (int64_t)task * task;
    CHECK_INT(wrong, 0);
    tsk__pool_destroy(NULL, n.pool);
    tsk__pool_destroy(NULL, NULL);
    memset(&n, 0, sizeof n);
    tsk__parallel(NULL, 8, nested_task, &n);
    CHECK_INT(n.inner[7].values[49], 49 * 49);
    tsk__parallel(NULL, 0, nested_task, NULL);
}

static void check_pool_memory(void) {
    test_allocator counting = test_allocator_failing_at(0);
    tsk_allocator allocator = test_allocator_of(&counting);
    tsk__pool *pool = tsk__pool_create(&allocator, 2);
    CHECK(pool == NULL && counting.alive == 0);
    pool = tsk__pool_create(&allocator, 2);
    CHECK(pool != NULL && counting.alive == 1);
    tsk__pool_destroy(&allocator, pool);
    CHECK_INT(counting.alive, 0);
}

/* ---- the keyed hash */

/* SipHash-1-3 of 0, 1, 2, ... under the key 00 01 .. 0f; the values are from an implementation in Python that gives the
   paper's own for SipHash-2-4. */
static void test_hash(void) {
    static const struct {
        size_t size;
        uint64_t value;
    } cases[] = {{0, UINT64_C(0xabac0158050fc4dc)},
                 {1, UINT64_C(0xc9f49bf37d57ca93)},
                 {8, UINT64_C(0x369095118d299a8e)},
                 {15, UINT64_C(0xd320d86d2a519956)}};
    const tsk__hash_key key = {UINT64_C(0x0706050403020100), UINT64_C(0x0f0e0d0c0b0a0908)};
    tsk__hash_key one = tsk__hash_key_new(), other = tsk__hash_key_new();
    unsigned char bytes[15];
    size_t i;
    for (i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) CHECK(tsk__hash(key, bytes, cases[i].size) == cases[i].value);
    CHECK(one.a != other.a && one.b != other.b);
}

static void test_version(void) {
    char text[40];
    CHECK_INT(tsk_version(), TOKENSKIP_VERSION_MAJOR * 10000 + TOKENSKIP_VERSION_MINOR * 100 + TOKENSKIP_VERSION_PATCH);
    snprintf(text, sizeof text, "%d.%d.%d", TOKENSKIP_VERSION_MAJOR, TOKENSKIP_VERSION_MINOR, TOKENSKIP_VERSION_PATCH);
    CHECK(strncmp(tsk_version_string(), text, strlen(text)) == 0);
    CHECK_STRING(tsk_version_string(), TOKENSKIP_VERSION_STRING);
}

/* The CPU is always there and usable; CUDA is there, or why not is said. */
static void test_devices(void) {
    tsk_device_info devices[9], untouched;
    int32_t n = tsk_devices(NULL, 9), i;
    CHECK(n >= 2 && tsk_devices(devices, 0) == n);
    memset(devices, 0xa5, sizeof devices);
    untouched = devices[8];
    CHECK_INT(tsk_devices(devices, 1), n);
    CHECK(memcmp(&devices[1], &untouched, sizeof untouched) == 0);
    CHECK_INT(tsk_devices(devices, 8), n);
    CHECK(devices[0].device == TSK_DEVICE_CPU && devices[0].index == 0 && !devices[0].unusable[0]);
    CHECK_CONTAINS(devices[0].name, "CPU, ");
    CHECK(devices[0].memory_total > (uint64_t)1 << 20 && devices[0].memory_free <= devices[0].memory_total);
    for (i = 1; i < n && i < 8; i++) {
        CHECK(devices[i].device == TSK_DEVICE_CUDA && devices[i].index == i - 1);
        CHECK(devices[i].unusable[0] ? !devices[i].memory_total
                                     : devices[i].name[0] && devices[i].memory_total >= devices[i].memory_free);
    }
    CHECK(memcmp(&devices[8], &untouched, sizeof untouched) == 0);
}

int main(void) {
    test_read_file();
    test_callbacks();
    test_error_text();
    test_long_path();
    test_status_strings();
    test_text();
    test_tokens();
    test_memory_sizes();
    check_sections(1, 200);
    check_sections(2, 3000);
    check_sections(3, 3000);
    check_sections(0, 300);
    check_shared_pool();
    check_nested();
    check_pool_memory();
    test_hash();
    test_version();
    test_devices();
    return test_end("test_platform");
}
