/* Random sequences of calls of the public API (tests/stateful.h), each from a seed of its own:

       test_stateful                     a fixed number of sequences
       test_stateful --seconds 1800      as many as go into the time, from another seed than last time
       test_stateful 1234                the sequence of seed 1234, its calls printed as they are made
       test_stateful FILE                that of a file, as the fuzzer leaves it

   A child process runs the sequences, so that one that ends it can be named. */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_NO_CUDA
#include "../tokenskip.h"
#include "stateful.h"
#include "stateful_models.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

enum { max_bytes = 3000, n_sequences = 4000, max_failures = 5 };

/* Seen by the child and by its parent. */
typedef struct progress { uint32_t seed; int done, failed; } progress;

/* SplitMix64 (Steele, Lea and Flood, 2014): tests' usual generator has too short a period in its
   lower bits. */
static uint64_t next_word(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static int run_seed(stateful_models *models, uint32_t seed, int talks) {
    uint64_t state = seed;
    uint8_t bytes[max_bytes];
    size_t size, i;
    char *text;
    size = 60 + (size_t)(next_word(&state) % (max_bytes - 60));
    for (i = 0; i < size; i++) bytes[i] = (uint8_t)next_word(&state);
    text = stateful_run(models, bytes, size, talks, 1);
    if (text)
        printf("%s\nsequence %lu failed: build/tests/test_stateful %lu\n", talks ? "" : text, (unsigned long)seed,
               (unsigned long)seed);
    fflush(stdout);
    free(text);
    return text != NULL;
}

static int run_file(stateful_models *models, const char *path) {
    size_t size;
    char *bytes = read_file(path, &size), *text;
    if (!bytes) {
        perror(path);
        return 2;
    }
    text = stateful_run(models, (const uint8_t *)bytes, size, 1, 1);
    free(bytes);
    free(text);
    return text != NULL;
}

static void run_many(stateful_models *models, progress *p, uint32_t first, int n, long seconds) {
    time_t end = time(NULL) + seconds;
    for (p->seed = first; p->failed < max_failures && (seconds ? time(NULL) < end : p->done < n); p->seed++) {
        p->failed += run_seed(models, p->seed, 0);
        p->done++;
    }
}

/* In a child: a crash, too, is one sequence's failure and says which. */
static void run_guarded(stateful_models *models, uint32_t first, int n, long seconds) {
    progress *p = (progress *)mmap(NULL, sizeof *p, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int status = 0;
    pid_t child;
    if (p == MAP_FAILED) exit(2);
    fflush(stdout);
    child = fork();
    if (child == 0) {
        run_many(models, p, first, n, seconds);
        fflush(stdout);
        _exit(0);
    }
    if (!CHECK(child > 0 && waitpid(child, &status, 0) == child)) exit(2);
    if (!test_check(WIFEXITED(status) && WEXITSTATUS(status) == 0, __FILE__, __LINE__,
                    "sequence %lu ends the process (status %d): build/tests/test_stateful %lu", (unsigned long)p->seed,
                    status, (unsigned long)p->seed))
        p->failed++;
    test_passed += p->done - p->failed;
    test_failed += p->failed;
    printf("%d sequences from %lu\n", p->done, (unsigned long)first);
    munmap(p, sizeof *p);
}

int main(int argc, char **argv) {
    stateful_models models;
    int result = 0;
    stateful_models_load(&models);
    if (argc == 3 && strcmp(argv[1], "--seconds") == 0) run_guarded(&models, (uint32_t)time(NULL), 0, atol(argv[2]));
    else if (argc == 2 && strspn(argv[1], "0123456789") == strlen(argv[1]))
        result = run_seed(&models, (uint32_t)strtoul(argv[1], NULL, 10), 1);
    else if (argc == 2) result = run_file(&models, argv[1]);
    else run_guarded(&models, 1, n_sequences, 0);
    stateful_models_free(&models);
    CHECK_INT(result, 0);
    return test_end("test_stateful");
}
