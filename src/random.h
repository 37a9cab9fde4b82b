#ifndef SECTION_GUARD_RANDOM
#define SECTION_GUARD_RANDOM

#include "system.h"
#include "api.h"

// >>random ============================================================================================================
/* A counter-based generator: a draw is a function of the seed and of what it is for (step, position, vocabulary id), so
   every backend, batch and thread count draws the same numbers, in any order. */

/* One round: two 32 x 32 -> 64 bit products, their halves crossed and mixed with the key. */
static void tsk__random_round(uint32_t c[4], uint32_t key0, uint32_t key1) {
    const uint64_t p = (uint64_t)0xD2511F53u * c[0], q = (uint64_t)0xCD9E8D57u * c[2];
    c[0] = (uint32_t)(q >> 32) ^ c[1] ^ key0;
    c[2] = (uint32_t)(p >> 32) ^ c[3] ^ key1;
    c[1] = (uint32_t)q;
    c[3] = (uint32_t)p;
}

void tsk_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c[4], key0, key1;
    int round;
    if (!counter || !key || !out) return;
    key0 = key[0];
    key1 = key[1];
    memcpy(c, counter, sizeof c);
    for (round = 0; round < 10; round++, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) tsk__random_round(c, key0, key1);
    memcpy(out, c, sizeof c);
}

static void tsk__random_words(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t out[4]) {
    uint32_t counter[4], key[2];
    counter[0] = c0;
    counter[1] = c1;
    counter[2] = c2;
    counter[3] = c3;
    key[0] = (uint32_t)seed;
    key[1] = (uint32_t)(seed >> 32);
    tsk_philox4x32(counter, key, out);
}

/* Never 0 and never 1: its logarithm, and that of minus its logarithm, are finite. */
static double tsk__random_from_word(uint32_t word) { return ((double)word + 0.5) * (1.0 / 4294967296.0); }

static double tsk__random_uniform(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, int lane) {
    uint32_t words[4];
    tsk__random_words(seed, c0, c1, c2, c3, words);
    return tsk__random_from_word(words[lane]);
}

/* The confidence of a position in a pass, under remasking RANDOM. */
static float tsk__random_confidence(uint64_t seed, int32_t position, uint32_t pass) {
    return (float)tsk__random_uniform(seed, 0, (uint32_t)position, pass, 1, 0);
}

#endif /* SECTION_GUARD_RANDOM */
