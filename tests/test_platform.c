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
    const char *path = tsk_test_path("some file"), *empty = tsk_test_path("empty");
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
    tsk_text_free(&text);
    CHECK(text.data == NULL && text.length == 0 && text.capacity == 0);
    CHECK_INT(error.status, TSK_OK); /* written only when a call fails */
    check_unreadable(tsk_test_path("missing"), 1000, NULL, "No such file", __LINE__);
    check_unreadable(path, sizeof bytes - 1, NULL, "13 bytes, more than the 12 allowed", __LINE__);
    check_unreadable(tsk_test_temp_dir(), 1000, NULL, "directory", __LINE__);
    check_unreadable(TEST_DEVICE, 1000, NULL, "not a regular file", __LINE__);
    check_unreadable("", 1000, NULL, "No such file", __LINE__);
    CHECK_INT(tsk_read_file(tsk_test_path("missing"), 1000, NULL, &text, NULL),
              TSK_ERROR_IO); /* the error may be NULL */
}

/* A link is what it leads to, and nobody waits for a FIFO's writer. */
#ifdef TEST_NO_LINKS
static void test_links(void) {}
#else
static void test_links(void) {
    const char *path = tsk_test_path("linked"), *link_path = tsk_test_path("link"), *fifo = tsk_test_path("a fifo");
    tsk_text text;
    memset(&text, 0, sizeof text);
    write_text(path, "linked");
    CHECK_INT(symlink(path, link_path), 0);
    CHECK_INT(tsk_read_file(link_path, 1000, NULL, &text, NULL), TSK_OK);
    CHECK_STRING(text.data, "linked");
    tsk_text_free(&text);
    CHECK_INT(mkfifo(fifo, 0600), 0);
    check_unreadable(fifo, 1000, NULL, "FIFO", __LINE__);
}
#endif

/* ---- files that appear whole or not at all */

static void check_content(const char *path, const char *expected, int line) {
    tsk_text text;
    tsk_error error;
    memset(&text, 0, sizeof text);
    memset(&error, 0, sizeof error);
    test_check(tsk_read_file(path, 1000, NULL, &text, &error) == TSK_OK && strcmp(text.data, expected) == 0, __FILE__,
               line, "'%s' has \"%s\": %s", path, expected, error.message);
    tsk_text_free(&text);
}

static void write_output(const char *path, const char *text) {
    tsk__output output;
    tsk_error error;
    memset(&error, 0, sizeof error);
    if (!CHECK_INT(tsk__output_open(&output, path, NULL, &error), TSK_OK)) return;
    CHECK_INT(tsk__output_write(&output, 0, text, strlen(text), &error), TSK_OK);
    CHECK_INT(tsk__output_commit(&output, &error), TSK_OK);
    CHECK_STRING(error.message, "");
}

/* Until the end there is what was there before, and no trace of what never came to its end. */
static void test_output(void) {
    const char *path = tsk_test_path("output");
    char first[1024], second[1024], back[8];
    tsk__output one, other;
    write_text(path, "what was there");
    CHECK_INT(tsk__output_open(&one, path, NULL, NULL), TSK_OK);
    CHECK_INT(tsk__output_open(&other, path, NULL, NULL), TSK_OK); /* nobody else's file */
    snprintf(first, sizeof first, "%s", one.temporary);
    snprintf(second, sizeof second, "%s", other.temporary);
    CHECK(strcmp(first, second) != 0 && tsk__file_exists(first, NULL) && tsk__file_exists(second, NULL));
    CHECK_INT(tsk__output_write(&one, 3, "later", 5, NULL), TSK_OK);
    CHECK_INT(tsk__output_write(&one, 0, "now", 3, NULL), TSK_OK);
    CHECK_INT(tsk__output_read(&one, 1, back, sizeof back), 7);
    CHECK(memcmp(back, "owlater", 7) == 0);
    CHECK_INT(tsk__output_read(&one, 8, back, sizeof back), 0);
    check_content(path, "what was there", __LINE__);
    tsk__output_abandon(&other);
    CHECK_INT(tsk__output_commit(&one, NULL), TSK_OK);
    check_content(path, "nowlater", __LINE__);
    CHECK(!tsk__file_exists(first, NULL) && !tsk__file_exists(second, NULL));
    write_output(path, "again");
    check_content(path, "again", __LINE__);
}

/* A file of a temporary name that is not ours stays as it is. */
static void test_output_taken(void) {
    const char *path = tsk_test_path("taken");
    char name[1024];
    tsk__output output;
    CHECK_INT(tsk__output_open(&output, path, NULL, NULL), TSK_OK);
    snprintf(name, sizeof name, "%s", output.temporary);
    tsk__output_abandon(&output);
    write_text(name, "theirs");
    CHECK_INT(tsk__output_open(&output, path, NULL, NULL), TSK_OK);
    CHECK(strcmp(name, output.temporary) != 0);
    tsk__output_abandon(&output);
    check_content(name, "theirs", __LINE__);
    CHECK(!tsk__file_exists(path, NULL));
}

/* One without a name can be written and read, and is in nobody's way. */
static void test_output_hidden(void) {
    const char *path = tsk_test_path("hidden");
    char name[1024], back[4];
    tsk__output hidden;
    CHECK_INT(tsk__output_open(&hidden, path, NULL, NULL), TSK_OK);
    snprintf(name, sizeof name, "%s", hidden.temporary);
    CHECK_INT(tsk__output_hide(&hidden, NULL), TSK_OK);
    write_output(path, "seen");
    CHECK_INT(tsk__output_write(&hidden, 0, "unseen", 6, NULL), TSK_OK);
    CHECK_INT(tsk__output_read(&hidden, 2, back, 4), 4);
    CHECK(memcmp(back, "seen", 4) == 0);
    tsk__output_abandon(&hidden);
    CHECK(!tsk__file_exists(name, NULL));
    check_content(path, "seen", __LINE__);
}

/* Any name in UTF-8; one that is longer than old Windows allows. */
static void test_names(void) {
    static const char *const names[] = {"za\xc5\xbc\xc3\xb3\xc5\x82\xc4\x87",
                                        "\xe4\xbd\xa0\xe5\xa5\xbd \xf0\x9f\x98\x80 %d"};
    char name[241], path[1400];
    size_t i;
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        write_output(tsk_test_path(names[i]), "once");
        write_output(tsk_test_path(names[i]), names[i]);
        check_content(tsk_test_path(names[i]), names[i], __LINE__);
        CHECK(tsk__file_exists(tsk_test_path(names[i]), NULL));
    }
#ifdef _WIN32
    {
        struct _wfinddata_t found;
        wchar_t pattern[1024];
        intptr_t search;
        MultiByteToWideChar(CP_UTF8, 0, tsk_test_path("za*"), -1, pattern, 1024);
        search = _wfindfirst(pattern, &found);
        CHECK(search != -1 && wcscmp(found.name, L"za\x017c\x00f3\x0142\x0107") == 0);
        if (search != -1) _findclose(search);
        /* not UTF-8: there can be no such name */
        check_unreadable(tsk_test_path("\xff"), 1000, NULL, "cannot open", __LINE__);
    }
#endif
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    snprintf(path, sizeof path, "%s", tsk_test_path(name));
    write_output(path, "long");
    check_content(path, "long", __LINE__);
    CHECK_INT(tsk__path_remove(path), 0);
    CHECK(!tsk__file_exists(path, NULL));
    CHECK(tsk__path_remove(path) != 0 && errno == ENOENT);
}

static void test_folder_length(void) {
    CHECK_INT(tsk__path_folder_length("name"), 0);
    CHECK_INT(tsk__path_folder_length(""), 0);
    CHECK_INT(tsk__path_folder_length("/name"), 1);
    CHECK_INT(tsk__path_folder_length("a/b/"), 4);
#ifdef _WIN32
    CHECK_INT(tsk__path_folder_length("C:name"), 2);
    CHECK_INT(tsk__path_folder_length("C:\\a/b\\name"), 7);
#else
    CHECK_INT(tsk__path_folder_length("a\\b"), 0);
#endif
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

/* ---- locks, conditions, time, random numbers */

static void test_system(void) {
    tsk__mutex mutex;
    tsk__condition condition;
    double before = tsk__time_ms(), deadline;
    uint64_t numbers[4] = {0, 0, 0, 0};
    tsk__mutex_create(&mutex);
    tsk__condition_create(&condition);
    CHECK(tsk__mutex_try(&mutex));
    CHECK(!tsk__mutex_try(&mutex)); /* also not by who has it */
    CHECK(!tsk__condition_wait_until(&condition, &mutex, before - 1));
    deadline = tsk__time_ms() + 3;
    while (tsk__condition_wait_until(&condition, &mutex, deadline)) {
    }
    CHECK(tsk__time_ms() >= deadline);
    tsk__mutex_unlock(&mutex);
    CHECK(tsk__mutex_try(&mutex));
    tsk__mutex_unlock(&mutex);
    tsk__condition_destroy(&condition);
    tsk__mutex_destroy(&mutex);
    CHECK(tsk__time_ms() >= before);
    tsk__random_numbers(numbers, 2);
    tsk__random_numbers(numbers + 2, 2);
    CHECK(numbers[0] != numbers[1] && numbers[0] != numbers[2] && numbers[1] != numbers[3]);
    CHECK(tsk__processors() >= 1 && tsk__process_number() != 0);
    CHECK(tsk__memory_total() > (uint64_t)1 << 20);
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
    tsk__thread threads[4];
    tsk__pool *pool = tsk__pool_create(NULL, 3);
    int i;
    for (i = 0; i < 4; i++) {
        guests[i].pool = pool;
        if (!CHECK(tsk__thread_start(&threads[i], use_pool, &guests[i]))) exit(1);
    }
    for (i = 0; i < 4; i++) {
        tsk__thread_join(threads[i]);
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
    test_links();
    test_output();
    test_output_taken();
    test_output_hidden();
    test_names();
    test_folder_length();
    test_callbacks();
    test_error_text();
    test_long_path();
    test_status_strings();
    test_text();
    test_tokens();
    test_memory_sizes();
    test_system();
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
