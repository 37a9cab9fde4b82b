/* The whole of the test framework: CHECK counts, test_end reports. Include it after tokenskip.h.

       int main(void) {
           CHECK(1 + 1 == 2);
           return test_end("test_sums");     // prints "test_sums: 1 passed, 0 failed"
       } */
#ifndef TSK_TEST_H
#define TSK_TEST_H

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__GNUC__)
#define TEST_UNUSED __attribute__((unused))
#define TEST_PRINTF(text, first) __attribute__((__format__(__printf__, text, first)))
#else
#define TEST_UNUSED
#define TEST_PRINTF(text, first)
#endif

#ifdef _WIN32
#include "on_windows.h"
#else
#define TEST_DEVICE "/dev/null"
static TEST_UNUSED int test_remove_tree(const char *path) {
    char command[600];
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    return system(command);
}
#endif

static int test_passed, test_failed;

/* Each prints where and what on failure and has the value of the check: if (!CHECK(x)) return; */
#define CHECK(condition) test_check((condition) ? 1 : 0, __FILE__, __LINE__, "%s", #condition)
#define CHECK_INT(a, b) test_check_int((long long)(a), (long long)(b), __FILE__, __LINE__, #a " == " #b)
#define CHECK_STRING(a, b) test_check_string((a), (b), __FILE__, __LINE__, #a " == " #b)
#define CHECK_CONTAINS(text, part) test_check_contains((text), (part), __FILE__, __LINE__, #text)

static TEST_UNUSED int TEST_PRINTF(4, 5) test_check(int good, const char *file, int line, const char *format, ...) {
    va_list arguments;
    if (good) return ++test_passed, 1;
    test_failed++;
    printf("%s:%d: failed: ", file, line);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    return 0;
}

static TEST_UNUSED int test_check_int(long long a, long long b, const char *file, int line, const char *what) {
    return test_check(a == b, file, line, "%s (%lld, %lld)", what, a, b);
}
static TEST_UNUSED int test_check_string(const char *a, const char *b, const char *file, int line, const char *what) {
    return test_check(a && b && strcmp(a, b) == 0, file, line, "%s (\"%s\", \"%s\")", what, a ? a : "NULL",
                      b ? b : "NULL");
}
static TEST_UNUSED int test_check_contains(const char *text, const char *part, const char *file, int line,
                                           const char *what) {
    return test_check(text && strstr(text, part) != NULL, file, line, "%s: \"%s\" lacks \"%s\"", what,
                      text ? text : "NULL", part);
}

/* A folder of this process's own, removed by test_end with everything in it. */
static TEST_UNUSED const char *tsk_test_temp_dir(void) {
    static char dir[512];
    const char *base = getenv("TMPDIR") ? getenv("TMPDIR") : getenv("TEMP");
    int i, made = dir[0] != 0;
    /* a killed process of the same number may have left its own */
    for (i = 0; !made && i < 1000; i++) {
        snprintf(dir, sizeof dir, "%s/tsk_test_%ld_%d", base && base[0] ? base : "/tmp", (long)getpid(), i);
        made = mkdir(dir, 0700) == 0;
        if (!made && errno != EEXIST) break;
    }
    if (!made) {
        perror(dir);
        exit(2);
    }
    return dir;
}

/* The path of `name` in that folder. Good until the eighth call after it. */
static TEST_UNUSED const char *tsk_test_path(const char *name) {
    static char paths[8][1024];
    static int next;
    char *path = paths[next++ & 7];
    snprintf(path, sizeof paths[0], "%s/%s", tsk_test_temp_dir(), name);
    return path;
}

static TEST_UNUSED void write_file(const char *path, const void *bytes, size_t size) {
    FILE *file = fopen(path, "wb");
    if (!file || (size && fwrite(bytes, 1, size, file) != size) || fclose(file) != 0) {
        perror(path);
        exit(2);
    }
}

static TEST_UNUSED void write_text(const char *path, const char *text) { write_file(path, text, strlen(text)); }

/* The whole file, NUL-terminated; the caller frees it. NULL when there is none. `size` may be NULL. */
static TEST_UNUSED char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    char *bytes;
    long length;
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    length = ftell(file);
    rewind(file);
    bytes = (char *)malloc((size_t)length + 1);
    if (!bytes || fread(bytes, 1, (size_t)length, file) != (size_t)length) exit(2);
    bytes[length] = 0;
    fclose(file);
    if (size) *size = (size_t)length;
    return bytes;
}

#ifdef TOKENSKIP_H
/* An allocator that counts what is alive and makes one allocation fail:

       for (n = 0; n < 1000; n++) {
           test_allocator counting = test_allocator_failing_at(n);
           tsk_allocator allocator = test_allocator_of(&counting);
           ... use &allocator; nothing but TSK_OK or TSK_ERROR_MEMORY may come of it ...
           CHECK(counting.alive == 0);
           if (!counting.failed) break;      // fewer than n allocations: every one has failed once
       } */
typedef struct test_allocator {
    long calls, fail_at, alive; /* fail_at -1: never */
    size_t bytes, peak;
    int failed;
} test_allocator;

typedef union test_block { size_t size; double aligned[2]; } test_block; /* sits in front of every block */

static TEST_UNUSED test_allocator test_allocator_failing_at(long n) {
    test_allocator result;
    memset(&result, 0, sizeof result);
    result.fail_at = n;
    return result;
}

static TEST_UNUSED void *test_allocate(void *user, size_t size) {
    test_allocator *counting = (test_allocator *)user;
    test_block *block;
    if (counting->calls++ == counting->fail_at) {
        counting->failed = 1;
        return NULL;
    }
    block = (test_block *)malloc(sizeof *block + size);
    if (!block) return NULL;
    block->size = size;
    memset(block + 1, 0x7f, size); /* whoever reads what nobody wrote is found out */
    counting->alive++;
    counting->bytes += size;
    if (counting->bytes > counting->peak) counting->peak = counting->bytes;
    return block + 1;
}
static TEST_UNUSED void test_release(void *user, void *address) {
    test_allocator *counting = (test_allocator *)user;
    test_block *block = (test_block *)address - 1;
    counting->alive--;
    counting->bytes -= block->size;
    free(block);
}
static TEST_UNUSED void *test_reallocate(void *user, void *address, size_t old_size, size_t new_size) {
    test_block *block = (test_block *)address - 1;
    void *result;
    test_check(block->size == old_size, __FILE__, __LINE__, "reallocate is told the right old size");
    result = test_allocate(user, new_size);
    if (!result) return NULL;
    memcpy(result, address, old_size < new_size ? old_size : new_size);
    test_release(user, address);
    return result;
}
static TEST_UNUSED tsk_allocator test_allocator_of(test_allocator *counting) {
    tsk_allocator result;
    result.allocate = test_allocate;
    result.reallocate = test_reallocate;
    result.release = test_release;
    result.user = counting;
    return result;
}
#endif

/* The last line of every test: the counts, and the exit status for main. */
static TEST_UNUSED int test_end(const char *name) {
    if (test_remove_tree(tsk_test_temp_dir()) != 0) test_failed++;
    printf("%s: %d passed, %d failed\n", name, test_passed, test_failed);
    return test_failed != 0;
}

#endif
