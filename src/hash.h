#ifndef SECTION_GUARD_HASH
#define SECTION_GUARD_HASH

#include "platform.h"

// >>hash ==============================================================================================================
/* Hash tables for strings from untrusted files. Whoever writes a file could choose strings that a known hash function
   puts into one place; the time to load would then grow with the square of the file's size. So the hash has a secret
   random key. No result depends on the key. */

typedef struct tsk__hash_key {
    uint64_t a, b;
} tsk__hash_key;

static tsk__hash_key tsk__hash_key_new(void) {
    tsk__hash_key key;
    uint64_t numbers[2];
    tsk__random_numbers(numbers, 2);
    key.a = numbers[0];
    key.b = numbers[1];
    return key;
}

static uint64_t tsk__hash_rotate(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

static void tsk__hash_round(uint64_t v[4]) {
    v[0] += v[1], v[2] += v[3];
    v[1] = tsk__hash_rotate(v[1], 13) ^ v[0], v[3] = tsk__hash_rotate(v[3], 16) ^ v[2];
    v[0] = tsk__hash_rotate(v[0], 32);
    v[2] += v[1], v[0] += v[3];
    v[1] = tsk__hash_rotate(v[1], 17) ^ v[2], v[3] = tsk__hash_rotate(v[3], 21) ^ v[0];
    v[2] = tsk__hash_rotate(v[2], 32);
}

/* SipHash with one round a word and three at the end (J.-P. Aumasson and D. J. Bernstein, "SipHash: a fast short-input
   PRF", 2012). Words are read as the machine has them: the value stays in this process. */
static uint64_t tsk__hash(tsk__hash_key key, const void *bytes, size_t size) {
    const char *from = (const char *)bytes;
    uint64_t v[4], word, last = (uint64_t)size << 56;
    size_t left = size;
    v[0] = key.a ^ UINT64_C(0x736f6d6570736575), v[1] = key.b ^ UINT64_C(0x646f72616e646f6d);
    v[2] = key.a ^ UINT64_C(0x6c7967656e657261), v[3] = key.b ^ UINT64_C(0x7465646279746573);
    for (; left >= 8; left -= 8, from += 8) {
        memcpy(&word, from, 8);
        v[3] ^= word;
        tsk__hash_round(v);
        v[0] ^= word;
    }
    while (left--) last ^= (uint64_t)(unsigned char)from[left] << 8 * left;
    v[3] ^= last;
    tsk__hash_round(v);
    v[0] ^= last;
    v[2] ^= 0xff;
    tsk__hash_round(v);
    tsk__hash_round(v);
    tsk__hash_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

#endif /* SECTION_GUARD_HASH */
