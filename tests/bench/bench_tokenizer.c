/* How fast the tokenizer is, one thread. tests/bench/bench_tokenizer.mjs feeds it and compares with the reference.

       bench_tokenizer DIR [--no-runs] [FILE …]    one JSON object: load, memory, encode and decode of each file, runs
       of
                                                   one character */
#define TOKENSKIP_IMPLEMENTATION
#include "../../tokenskip.h"

static size_t alive;

static void *count_allocate(void *user, size_t size) {
    size_t *block = (size_t *)malloc(size + 16);
    (void)user;
    if (!block) return NULL;
    *block = size;
    alive += size;
    return block + 2;
}
static void count_release(void *user, void *block) {
    (void)user;
    alive -= ((size_t *)block)[-2];
    free((size_t *)block - 2);
}
static void *count_reallocate(void *user, void *block, size_t old_size, size_t new_size) {
    void *other = count_allocate(user, new_size);
    if (!other) return NULL;
    memcpy(other, block, old_size < new_size ? old_size : new_size);
    count_release(user, block);
    return other;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* other programs on the machine do not count */
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The best of several passes that take a second in all. */
static double encode_seconds(const tsk_tokenizer *tokenizer, const char *text, size_t size, tsk_tokens *tokens) {
    double best = 1e30, end = now() + 1;
    do {
        double start = now(), took;
        tokens->count = 0;
        if (tsk_tokenizer_encode(tokenizer, text, size, 1, tokens, NULL) != TSK_OK) exit(1);
        took = now() - start;
        if (took < best) best = took;
    } while (now() < end);
    return best;
}

static double decode_seconds(const tsk_tokenizer *tokenizer, const tsk_tokens *tokens) {
    double best = 1e30, end = now() + 1;
    tsk_text text;
    memset(&text, 0, sizeof text);
    do {
        double start = now(), took;
        text.length = 0;
        if (tsk_tokenizer_decode(tokenizer, tokens->ids, tokens->count, 0, &text, NULL) != TSK_OK) exit(1);
        took = now() - start;
        if (took < best) best = took;
    } while (now() < end);
    tsk_text_free(&text);
    return best;
}

static double run_seconds(const tsk_tokenizer *tokenizer, const char *unit, size_t size, tsk_tokens *tokens) {
    char *text = (char *)malloc(size + 4);
    size_t i, n = strlen(unit);
    double seconds;
    if (!text) exit(1);
    for (i = 0; i < size; i++) text[i] = unit[i % n];
    seconds = encode_seconds(tokenizer, text, size / n * n, tokens);
    free(text);
    return seconds;
}

int main(int argc, char **argv) {
    static const char *const runs[][2] = {{"letter", "a"},
                                          {"space", " "},
                                          {"cjk", "\xe4\xb8\xad"},
                                          {"cjk words", "\xe7\xbb\x8f\xe6\xb5\x8e\xe5\x8f\x91\xe5\xb1\x95"},
                                          {"letters", "abcdefghijklmnopqrstuvwxyz"},
                                          {"mark", "e\xcc\x81"}};
    tsk_allocator allocator = {count_allocate, count_reallocate, count_release, NULL};
    tsk_host host;
    tsk_tokenizer *tokenizer = NULL;
    tsk_tokens tokens;
    tsk_error error;
    double load = 1e30;
    int i, first = argc > 2 && strcmp(argv[2], "--no-runs") == 0 ? 3 : 2;
    memset(&host, 0, sizeof host);
    memset(&tokens, 0, sizeof tokens);
    memset(&error, 0, sizeof error);
    host.allocator = &allocator;
    if (argc < 2) return 2;
    for (i = 0; i < 5; i++) {
        double start = now();
        tsk_tokenizer_free(tokenizer);
        if (tsk_tokenizer_load(argv[1], &host, &tokenizer, &error) != TSK_OK) {
            fprintf(stderr, "bench_tokenizer: %s\n", error.message);
            return 1;
        }
        if (now() - start < load) load = now() - start;
    }
    printf("{\"load_ms\": %.1f, \"memory_mb\": %.1f, \"files\": [", load * 1e3, (double)alive * 1e-6);
    for (i = first; i < argc; i++) {
        tsk_text text;
        double seconds;
        memset(&text, 0, sizeof text);
        if (tsk_read_file(argv[i], (size_t)1 << 30, NULL, &text, &error) != TSK_OK) {
            fprintf(stderr, "bench_tokenizer: %s\n", error.message);
            return 1;
        }
        seconds = encode_seconds(tokenizer, text.data, text.length, &tokens);
        printf("%s{\"file\": \"%s\", \"tokens\": %lu, \"encode_mb_s\": %.1f, ", i > first ? ", " : "", argv[i],
               (unsigned long)tokens.count, (double)text.length * 1e-6 / seconds);
        printf("\"decode_mb_s\": %.1f}", (double)text.length * 1e-6 / decode_seconds(tokenizer, &tokens));
        tsk_text_free(&text);
    }
    printf("], \"runs\": {");
    for (i = 0; first == 2 && i < (int)(sizeof runs / sizeof *runs); i++) {
        double small = run_seconds(tokenizer, runs[i][1], 100000, &tokens) / 100000,
               big = run_seconds(tokenizer, runs[i][1], 1000000, &tokens) / 1000000;
        printf("%s\"%s\": {\"mb_s\": %.1f, \"ratio\": %.2f}", i ? ", " : "", runs[i][0], 1e-6 / big, big / small);
    }
    printf("}}\n");
    tsk_tokens_free(&tokens);
    tsk_tokenizer_free(tokenizer);
    return 0;
}
