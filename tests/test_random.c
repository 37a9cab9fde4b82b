/* >>random: Philox4x32-10 against the published known answers, and how draws are made from its words. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "../src/random.h"
#include "test.h"

static void check_words(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1, uint32_t w0,
                        uint32_t w1, uint32_t w2, uint32_t w3) {
    uint32_t counter[4], key[2], words[4], out[4];
    counter[0] = c0, counter[1] = c1, counter[2] = c2, counter[3] = c3;
    key[0] = k0, key[1] = k1;
    words[0] = w0, words[1] = w1, words[2] = w2, words[3] = w3;
    tsk_philox4x32(counter, key, out);
    CHECK(memcmp(out, words, sizeof out) == 0);
    tsk_philox4x32(counter, key, counter); /* in place */
    CHECK(memcmp(counter, words, sizeof out) == 0);
}

/* Random123's kat_vectors */
static void test_known_answers(void) {
    check_words(0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8);
    check_words(0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d, 0x41c83b0e,
                0xa20bc7c6, 0x6d5451fd);
    check_words(0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb,
                0x5001e420, 0x24126ea1);
}

static void test_uniform(void) {
    /* the seed's low half is the key's first word: the third known answer again, lane by lane */
    const uint64_t seed = 0x299f31d0a4093822u;
    CHECK(tsk__random_uniform(seed, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0) ==
          (0xd16cfe09 + 0.5) / 4294967296.0);
    CHECK(tsk__random_uniform(seed, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 1) ==
          (0x94fdcceb + 0.5) / 4294967296.0);
    CHECK(tsk__random_uniform(seed, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 2) ==
          (0x5001e420 + 0.5) / 4294967296.0);
    CHECK(tsk__random_uniform(seed, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 3) ==
          (0x24126ea1 + 0.5) / 4294967296.0);
    CHECK(tsk__random_from_word(0) > 0.0);
    CHECK(tsk__random_from_word(0xffffffff) < 1.0);
}

/* 40,000 draws: mean and variance within five standard errors of 1/2 and 1/12. */
static void test_moments(void) {
    double sum = 0, squares = 0;
    uint32_t i;
    int lane;
    for (i = 0; i < 10000; i++)
        for (lane = 0; lane < 4; lane++) {
            const double u = tsk__random_uniform(7, i, 3, 1, 0, lane) - 0.5;
            sum += u;
            squares += u * u;
        }
    CHECK(sum / 40000 > -0.0073 && sum / 40000 < 0.0073);
    CHECK(squares / 40000 > 1.0 / 12 - 0.0019 && squares / 40000 < 1.0 / 12 + 0.0019);
}

int main(void) {
    test_known_answers();
    test_uniform();
    test_moments();
    return test_end("test_random");
}
