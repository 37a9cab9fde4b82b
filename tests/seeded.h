/* Random numbers for tests: seeded, so that a failing run can be had again. */
#ifndef TSK_SEEDED_H
#define TSK_SEEDED_H

#include "test.h"

static uint32_t random_state = 2024;
static TEST_UNUSED uint32_t random_word(void) { return random_state = random_state * 1664525u + 1013904223u; }
static TEST_UNUSED int32_t random_below(int32_t n) { return (int32_t)(random_word() >> 8) % n; }
static TEST_UNUSED float random_pick(const float *values, int32_t n) { return values[random_below(n)]; }
/* Nearly normal, of variance 1. */
static TEST_UNUSED float random_normal(void) {
    float sum = 0;
    int i;
    for (i = 0; i < 3; i++) sum += (float)((int32_t)(random_word() >> 8) - (1 << 23)) / (float)(1 << 23);
    return sum;
}

#endif
