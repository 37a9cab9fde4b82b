#ifndef SECTION_GUARD_CPU_INTEGER
#define SECTION_GUARD_CPU_INTEGER

#include "platform.h"
#include "weights.h"
#include "cpu_vectors.h"

// >>cpu_integer =======================================================================================================
/* Products of integer weights. A row of activations is quantised to codes of 8 bits, with a scale for every group of
   128, 64 or 32 columns, the largest that divides the weights' groups; the products of codes are summed in integers:

       y[row][o] += (sum over a group of (code_w - zero) * code_x) * (scale_w * scale_x)          in f32

   The integer sum is exact (below 2^24), (code_w - zero) is taken apart into sum(code_w code_x) - zero * sum(code_x),
   and the three roundings of a group stand in this order in every instruction set: all give the same bits, whatever the
   row's neighbours, the tile and the threads.

   A panel of 32 outputs is packed as in >>cpu, but of words: 4 codes of 8 bits, which one instruction multiplies and
   adds (VNNI; the weights unsigned, the activations signed), or, without that, 2 of 16 bits. Codes of 4 bits become
   these on the way, in registers. Sets: AVX-512 VNNI, AVX-VNNI, AVX2, and 128-bit vectors in plain C. */

#define TSK__CPU_INTEGER_DEPTH 512 /* columns in a panel: a multiple of every group */
#define TSK__CPU_INTEGER_STEPS (TSK__CPU_INTEGER_DEPTH / 32) /* groups in it, at most */

/* Rows of activations. */
typedef struct tsk__cpu_codes {
    const char *codes;             /* [n, cols] signed integers of `wide` bytes (see below) */
    const float *scales;           /* [n, cols / group] */
    const int32_t *sums;           /* [n, cols / group] of a group's codes */
    int32_t group, cols;
} tsk__cpu_codes;

/* A panel of weights, and what belongs to it. */
typedef struct tsk__cpu_integer_panel {
    uint32_t words[TSK__CPU_INTEGER_DEPTH / 2 * TSK__CPU_WIDTH] TSK__CPU_ALIGNED;   /* [columns / codes a word][32] */
    float scales[TSK__CPU_INTEGER_STEPS * TSK__CPU_WIDTH] TSK__CPU_ALIGNED;         /* [groups of activations][32] */
    int32_t zeros[TSK__CPU_INTEGER_STEPS * TSK__CPU_WIDTH] TSK__CPU_ALIGNED;        /* likewise, of unsigned codes */
} tsk__cpu_integer_panel;

typedef struct tsk__cpu_integer_kernels {
    const char *name, *description;
    int tile_rows;                 /* the most rows `tile` takes */
    int wide;                      /* bytes of an activation's code: 1, 4 to a word; or 2, 2 to a word */
    /* x[n] to codes; n a multiple of `group` */
    void (*quantise)(const float *x, int32_t n, int32_t group, char *codes, float *scales, int32_t *sums);
    /* words of rows first .. first+31 (the last row again where there are fewer), columns k0 .. k0+kn-1 */
    void (*pack)(const tsk__weight *w, int32_t first, int32_t k0, int32_t kn, uint32_t *words);
    /* y[rows][32] = or += of rows row .. of x, columns k0 .. k0+kn-1 */
    void (*tile)(int rows, const tsk__cpu_codes *x, int32_t row, int32_t k0, int32_t kn,
                 const tsk__cpu_integer_panel *panel, float *y, size_t ldy, int add, tsk__cpu_prefetch *prefetch);
} tsk__cpu_integer_kernels;

/* The group that activations are quantised in for a weight's sake; 0: it has to be multiplied by its values. */
static int32_t tsk__cpu_integer_group(const tsk__weight *w) {
    int32_t group;
    if (!w->bits || w->dtype == TSK_DTYPE_F8_E4M3 || w->groups || w->scale_rows != 1 || w->cols % 32) return 0;
    for (group = 128; group >= 32; group /= 2)
        if (w->group % group == 0) return group;
    return 0;
}

/* Scales and zeros of the panel's outputs, for groups of activations from column k0 on. */
static void tsk__cpu_integer_scales(const tsk__weight *w, int32_t first, int32_t k0, int32_t kn, int32_t group,
                                    tsk__cpu_integer_panel *panel) {
    const int flip = w->dtype == TSK_DTYPE_I8 ? 128 : 0;
    int32_t o, k;
    for (o = 0; o < TSK__CPU_WIDTH; o++) {
        const size_t row = tsk__weight_scale_row(w, first + o < w->rows ? first + o : w->rows - 1);
        int32_t before = -1, at = o;
        for (k = k0; k < k0 + kn; k += group, at += TSK__CPU_WIDTH) {
            const int32_t own = k / w->group;
            const size_t i = row + (size_t)own;
            if (own == before) {
                panel->scales[at] = panel->scales[at - TSK__CPU_WIDTH];
                panel->zeros[at] = panel->zeros[at - TSK__CPU_WIDTH];
                continue;
            }
            before = own;
            panel->scales[at] = tsk__float_at(w->scale_dtype, w->scales, i);
            panel->zeros[at] = (w->zeros ? w->zeros[i] : tsk__weight_zero(w)) + flip;
        }
    }
}

/* ---- primitives of a set P, whose words are U, of the vectors V of >>cpu_vectors
   dot(acc, w, x)          acc + the products of a word's codes
   correct(acc, z, sum)    acc - z * sum; z below 2^8, sum within 16 bits
   to_float(acc)           of signed words below 2^24
   narrow(to, q)           as many signed words as codes of `wide` bytes
   unpack(v, out)          words of 4-bit codes to the words of the same outputs
   widen(v, out)           words of 8-bit codes likewise
   keep(v)                 the value is rounded here: a compiler may not fuse it into what follows */

#if TSK__CPU_X86
#define TSK__CPU_KEEP(v) __asm__("" : "+v"(v))
#else
#define TSK__CPU_KEEP(v) (void)(v) /* fusing is forbidden: see the system headers */
#endif

/* Two codes a word: of the word's codes number 2i and 2i + 1, of 4 or 8 bits. */
#define TSK__CPU_PAIR(v, i, bits) \
    ((v >> (2 * (i) * (bits)) & ((1u << (bits)) - 1)) | (v >> ((2 * (i) + 1) * (bits)) & ((1u << (bits)) - 1)) << 16)
#define TSK__CPU_DEFINE_PAIRS(P, U) \
TSK__INLINE TSK__TARGET_##P void tsk__##P##_unpack(U v, U *out) { \
    out[0] = TSK__CPU_PAIR(v, 0, 4), out[1] = TSK__CPU_PAIR(v, 1, 4); \
    out[2] = TSK__CPU_PAIR(v, 2, 4), out[3] = TSK__CPU_PAIR(v, 3, 4); \
} \
TSK__INLINE TSK__TARGET_##P void tsk__##P##_widen(U v, U *out) { \
    out[0] = TSK__CPU_PAIR(v, 0, 8), out[1] = TSK__CPU_PAIR(v, 1, 8); \
}

#define TSK__TARGET_i128
TSK__INLINE tsk__u128 tsk__i128_dot(tsk__u128 acc, tsk__u128 w, tsk__u128 x) {
    return acc + (w & 0xffff) * (tsk__u128)((tsk__i128)(x << 16) >> 16) + (w >> 16) * (tsk__u128)((tsk__i128)x >> 16);
}
TSK__INLINE tsk__u128 tsk__i128_correct(tsk__u128 acc, tsk__u128 z, tsk__u128 sum) { return acc - z * sum; }
TSK__INLINE tsk__v128 tsk__i128_to_float(tsk__u128 acc) {
    const tsk__i128 a = (tsk__i128)acc;
    tsk__v128 v = {(float)a[0], (float)a[1], (float)a[2], (float)a[3]};
    return v;
}
TSK__INLINE void tsk__i128_narrow(char *to, tsk__u128 q) {
    const tsk__i128 a = (tsk__i128)q;
    const int16_t codes[4] = {(int16_t)a[0], (int16_t)a[1], (int16_t)a[2], (int16_t)a[3]};
    memcpy(to, codes, sizeof codes);
}
TSK__CPU_DEFINE_PAIRS(i128, tsk__u128)

#if TSK__CPU_X86
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" /* (see >>cpu_vectors) */
#endif
typedef uint32_t tsk__u256 __attribute__((vector_size(32)));
typedef uint32_t tsk__u512 __attribute__((vector_size(64)));

#define TSK__TARGET_i256 TSK__TARGET_v256
#define TSK__INLINE_i256 TSK__INLINE TSK__TARGET_i256
TSK__INLINE_i256 tsk__u256 tsk__i256_dot(tsk__u256 acc, tsk__u256 w, tsk__u256 x) {
    return acc + (tsk__u256)_mm256_madd_epi16((__m256i)w, (__m256i)x);
}
TSK__INLINE_i256 tsk__u256 tsk__i256_correct(tsk__u256 acc, tsk__u256 z, tsk__u256 sum) {
    return acc - (tsk__u256)_mm256_madd_epi16((__m256i)z, (__m256i)sum);
}
TSK__INLINE_i256 __m256 tsk__i256_to_float(tsk__u256 acc) { return _mm256_cvtepi32_ps((__m256i)acc); }
TSK__INLINE_i256 __m128i tsk__i256_halves(tsk__u256 q) {
    return _mm_packs_epi32(_mm256_castsi256_si128((__m256i)q), _mm256_extracti128_si256((__m256i)q, 1));
}
TSK__INLINE_i256 void tsk__i256_narrow(char *to, tsk__u256 q) {
    _mm_storeu_si128((__m128i *)(void *)to, tsk__i256_halves(q));
}
TSK__CPU_DEFINE_PAIRS(i256, tsk__u256)

#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define TSK__CPU_HAS_AVX_VNNI 1
#define TSK__TARGET_x256 __attribute__((target("avx2,fma,f16c,avxvnni")))
#define TSK__INLINE_x256 TSK__INLINE TSK__TARGET_x256
TSK__INLINE_x256 tsk__u256 tsk__x256_dot(tsk__u256 acc, tsk__u256 w, tsk__u256 x) {
    return (tsk__u256)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)w, (__m256i)x);
}
TSK__INLINE_x256 tsk__u256 tsk__x256_correct(tsk__u256 acc, tsk__u256 z, tsk__u256 sum) {
    return tsk__i256_correct(acc, z, sum);
}
TSK__INLINE_x256 __m256 tsk__x256_to_float(tsk__u256 acc) { return tsk__i256_to_float(acc); }
TSK__INLINE_x256 void tsk__x256_narrow(char *to, tsk__u256 q) {
    const __m128i halves = tsk__i256_halves(q);
    _mm_storel_epi64((__m128i *)(void *)to, _mm_packs_epi16(halves, halves));
}
/* Even and odd codes lie in bytes of two vectors; a lane's four words, one after another, are of four outputs. */
TSK__INLINE_x256 void tsk__x256_unpack(tsk__u256 v, tsk__u256 *out) {
    const __m256i even = (__m256i)(v & 0x0f0f0f0fu), odd = (__m256i)(v >> 4 & 0x0f0f0f0fu);
    const __m256 low = _mm256_castsi256_ps(_mm256_unpacklo_epi8(even, odd));
    const __m256 high = _mm256_castsi256_ps(_mm256_unpackhi_epi8(even, odd));
    out[0] = (tsk__u256)_mm256_shuffle_ps(low, high, 0x88);
    out[1] = (tsk__u256)_mm256_shuffle_ps(low, high, 0xdd);
}
TSK__INLINE_x256 void tsk__x256_widen(tsk__u256 v, tsk__u256 *out) { *out = v; }
#endif

#define TSK__TARGET_i512 __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define TSK__INLINE_i512 TSK__INLINE TSK__TARGET_i512
TSK__INLINE_i512 tsk__u512 tsk__i512_dot(tsk__u512 acc, tsk__u512 w, tsk__u512 x) {
    return (tsk__u512)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)x);
}
TSK__INLINE_i512 tsk__u512 tsk__i512_correct(tsk__u512 acc, tsk__u512 z, tsk__u512 sum) {
    return acc - (tsk__u512)_mm512_madd_epi16((__m512i)z, (__m512i)sum);
}
TSK__INLINE_i512 __m512 tsk__i512_to_float(tsk__u512 acc) { return _mm512_cvtepi32_ps((__m512i)acc); }
TSK__INLINE_i512 void tsk__i512_narrow(char *to, tsk__u512 q) {
    _mm_storeu_si128((__m128i *)(void *)to, _mm512_cvtepi32_epi8((__m512i)q));
}
TSK__INLINE_i512 void tsk__i512_unpack(tsk__u512 v, tsk__u512 *out) {
    const __m512i even = (__m512i)(v & 0x0f0f0f0fu), odd = (__m512i)(v >> 4 & 0x0f0f0f0fu);
    const __m512 low = _mm512_castsi512_ps(_mm512_unpacklo_epi8(even, odd));
    const __m512 high = _mm512_castsi512_ps(_mm512_unpackhi_epi8(even, odd));
    out[0] = (tsk__u512)_mm512_shuffle_ps(low, high, 0x88);
    out[1] = (tsk__u512)_mm512_shuffle_ps(low, high, 0xdd);
}
TSK__INLINE_i512 void tsk__i512_widen(tsk__u512 v, tsk__u512 *out) { *out = v; }
#endif

/* ---- kernels of a set. PER: codes of a word. */

/* Rounds to nearest, ties to even; a group with a value that is no finite number gets scale NaN, and its products with
   it. */
#define TSK__CPU_DEFINE_QUANTISE(P, V, U, LANES, PER) \
static TSK__TARGET_##P void tsk__cpu_##P##_quantise(const float *x, int32_t n, int32_t group, char *codes, \
                                                    float *scales, int32_t *sums) { \
    const tsk__##V magic = tsk__##V##_set(12582912.0f), zero = tsk__##V##_set(0.0f); \
    float largest[LANES], any[LANES]; \
    uint32_t sum[LANES]; \
    int32_t at, i; \
    for (at = 0; at < n; at += group, x += group, scales++, sums++) { \
        tsk__##V most = zero, wrong = zero, inverse; \
        U total = (U)zero; \
        for (i = 0; i < group; i += (LANES)) { \
            const tsk__##V v = tsk__##V##_load(x + i); \
            most = tsk__##V##_max((tsk__##V)((U)v & 0x7fffffffu), most); \
            wrong = tsk__##V##_add(tsk__##V##_mul(v, zero), wrong); \
        } \
        tsk__##V##_store(largest, most); \
        tsk__##V##_store(any, wrong); \
        for (i = 1; i < (LANES); i++) { \
            if (largest[i] > largest[0]) largest[0] = largest[i]; \
            any[0] += any[i]; \
        } \
        inverse = tsk__##V##_set(largest[0] > 1e-30f ? 127.0f / largest[0] : 0.0f); \
        for (i = 0; i < group; i += (LANES), codes += (LANES) * (4 / (PER))) { \
            tsk__##V v = tsk__##V##_mul(tsk__##V##_load(x + i), inverse); \
            U q; \
            TSK__CPU_KEEP(v); \
            q = (U)tsk__##V##_add(v, magic) - 0x4b400000u; \
            total += q; \
            tsk__##P##_narrow(codes, q); \
        } \
        memcpy(sum, &total, sizeof sum); \
        for (i = 1; i < (LANES); i++) sum[0] += sum[i]; \
        *sums = (int32_t)sum[0]; \
        *scales = (largest[0] > 1e-30f ? largest[0] * (1.0f / 127.0f) : 0.0f) + any[0]; \
    } \
}

/* As in >>cpu: LANES rows of 16 bytes at a time, where they lie or, at the edge, from a copy. */
#define TSK__CPU_DEFINE_INTEGER_PACK(P, V, U, LANES, PER) \
TSK__INLINE TSK__TARGET_##P void tsk__cpu_##P##_pack_as(const int bits, const tsk__weight *w, int32_t first, \
                                                        int32_t k0, int32_t kn, uint32_t *words) { \
    const size_t stride = tsk__weight_stride(w); \
    const uint32_t flip = w->dtype == TSK_DTYPE_I8 ? 0x80808080u : 0; \
    const int32_t step = 128 / bits, n = 32 / bits / (PER); /* columns of 16 bytes; words of a word */ \
    int32_t o, k, c, i; \
    for (o = 0; o < TSK__CPU_WIDTH; o += (LANES)) { \
        uint32_t *to = words + o; \
        for (k = 0; k < kn; k += step) { \
            const char *data = (const char *)w->data + (size_t)(k0 + k) * (size_t)bits / 8; \
            char copy[(LANES) * 16] TSK__CPU_ALIGNED; \
            tsk__##V columns[4]; \
            if (first + o + (LANES) <= w->rows) \
                tsk__##V##_columns(data + (size_t)(first + o) * stride, stride, &columns[0], &columns[1], &columns[2], \
                                   &columns[3]); \
            else { \
                for (i = 0; i < (LANES); i++) { \
                    const int32_t row = first + o + i < w->rows ? first + o + i : w->rows - 1; \
                    memcpy(copy + 16 * i, data + (size_t)row * stride, 16); \
                } \
                tsk__##V##_columns(copy, 16, &columns[0], &columns[1], &columns[2], &columns[3]); \
            } \
            for (c = 0; c < 4; c++) { \
                U out[4]; \
                if (bits == 4) tsk__##P##_unpack((U)columns[c], out); \
                else tsk__##P##_widen((U)columns[c] ^ flip, out); \
                for (i = 0; i < n; i++, to += TSK__CPU_WIDTH) tsk__##V##_store((float *)(void *)to, (tsk__##V)out[i]); \
            } \
        } \
    } \
} \
static TSK__TARGET_##P void tsk__cpu_##P##_pack(const tsk__weight *w, int32_t first, int32_t k0, int32_t kn, \
                                                uint32_t *words) { \
    if (w->bits == 4) tsk__cpu_##P##_pack_as(4, w, first, k0, kn, words); \
    else tsk__cpu_##P##_pack_as(8, w, first, k0, kn, words); \
}

/* As in >>cpu, too; sums of integers over a group, then to y. */
#define TSK__CPU_INTEGER_STEP(P, V, U, r, from) \
    if (rows > (r)) { \
        int32_t word; \
        U v; \
        memcpy(&word, from, sizeof word); \
        v = (U)zero + (uint32_t)word; \
        a##r = tsk__##P##_dot(a##r, w0, v); \
        b##r = tsk__##P##_dot(b##r, w1, v); \
    }
#define TSK__CPU_INTEGER_FINISH(P, V, U, LANES, r) \
    if (rows > (r)) { \
        const size_t at = (size_t)(r) * groups + (size_t)step; \
        const U sum = (U)zero + (uint32_t)sums[at]; \
        const tsk__##V scale = tsk__##V##_set(scales[at]); \
        float *to = y + (size_t)(r) * ldy; \
        tsk__##V p = tsk__##V##_mul(tsk__##P##_to_float(tsk__##P##_correct(a##r, z0, sum)), \
                                    tsk__##V##_mul(s0, scale)); \
        tsk__##V q = tsk__##V##_mul(tsk__##P##_to_float(tsk__##P##_correct(b##r, z1, sum)), \
                                    tsk__##V##_mul(s1, scale)); \
        TSK__CPU_KEEP(p); \
        TSK__CPU_KEEP(q); \
        if (add || step) { \
            p = tsk__##V##_add(tsk__##V##_load(to), p); \
            q = tsk__##V##_add(tsk__##V##_load(to + (LANES)), q); \
        } \
        tsk__##V##_store(to, p); \
        tsk__##V##_store(to + (LANES), q); \
    }
#define TSK__CPU_DEFINE_INTEGER_TILE(P, V, U, LANES, PER, CASES) \
TSK__INLINE TSK__TARGET_##P void tsk__cpu_##P##_tile_rows(const int rows, const char *x, size_t ldx, \
                                                          const float *scales, const int32_t *sums, size_t groups, \
                                                          int32_t group, int32_t steps, const uint32_t *panel, \
                                                          const float *panel_scales, const int32_t *zeros, float *y, \
                                                          size_t ldy, int add, tsk__cpu_prefetch *prefetch) { \
    const tsk__##V zero = tsk__##V##_set(0.0f); \
    const char *x3 = rows > 3 ? x + 3 * ldx : x, *x6 = rows > 6 ? x + 6 * ldx : x, *x9 = rows > 9 ? x + 9 * ldx : x; \
    tsk__cpu_prefetch next = *prefetch; \
    int32_t step, k; \
    for (step = 0; step < steps; step++, panel_scales += TSK__CPU_WIDTH, zeros += TSK__CPU_WIDTH) { \
        const tsk__##V s0 = tsk__##V##_load(panel_scales), s1 = tsk__##V##_load(panel_scales + (LANES)); \
        const U z0 = (U)tsk__##V##_load((const float *)(const void *)zeros), \
                z1 = (U)tsk__##V##_load((const float *)(const void *)(zeros + (LANES))); \
        U a0 = (U)zero, a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0, a8 = a0, a9 = a0, a10 = a0; \
        U b0 = a0, b1 = a0, b2 = a0, b3 = a0, b4 = a0, b5 = a0, b6 = a0, b7 = a0, b8 = a0, b9 = a0, b10 = a0; \
        U a11 = a0, b11 = a0; \
        for (k = 0; k < group; k += (PER), panel += TSK__CPU_WIDTH, x += 4, x3 += 4, x6 += 4, x9 += 4) { \
            const U w0 = (U)tsk__##V##_load((const float *)(const void *)panel), \
                    w1 = (U)tsk__##V##_load((const float *)(const void *)(panel + (LANES))); \
            tsk__cpu_fetch(&next); \
            TSK__CPU_INTEGER_STEP(P, V, U, 0, x) TSK__CPU_INTEGER_STEP(P, V, U, 1, x + ldx) \
            TSK__CPU_INTEGER_STEP(P, V, U, 2, x + 2 * ldx) TSK__CPU_INTEGER_STEP(P, V, U, 3, x3) \
            TSK__CPU_INTEGER_STEP(P, V, U, 4, x3 + ldx) TSK__CPU_INTEGER_STEP(P, V, U, 5, x3 + 2 * ldx) \
            TSK__CPU_INTEGER_STEP(P, V, U, 6, x6) TSK__CPU_INTEGER_STEP(P, V, U, 7, x6 + ldx) \
            TSK__CPU_INTEGER_STEP(P, V, U, 8, x6 + 2 * ldx) TSK__CPU_INTEGER_STEP(P, V, U, 9, x9) \
            TSK__CPU_INTEGER_STEP(P, V, U, 10, x9 + ldx) TSK__CPU_INTEGER_STEP(P, V, U, 11, x9 + 2 * ldx) \
        } \
        TSK__CPU_INTEGER_FINISH(P, V, U, LANES, 0) TSK__CPU_INTEGER_FINISH(P, V, U, LANES, 1) \
        TSK__CPU_INTEGER_FINISH(P, V, U, LANES, 2) TSK__CPU_INTEGER_FINISH(P, V, U, LANES, 3) \
        TSK__CPU_INTEGER_FINISH(P, V, U, LANES, 4) TSK__CPU_INTEGER_FINISH(P, V, U, LANES, 5) \
        TSK__CPU_INTEGER_FINISH(P, V, U, LANES, 6) TSK__CPU_INTEGER_FINISH(P, V, U, LANES, 7) \
        TSK__CPU_INTEGER_FINISH(P, V, U, LANES, 8) TSK__CPU_INTEGER_FINISH(P, V, U, LANES, 9) \
        TSK__CPU_INTEGER_FINISH(P, V, U, LANES, 10) TSK__CPU_INTEGER_FINISH(P, V, U, LANES, 11) \
    } \
    prefetch->at = next.at; \
} \
static TSK__TARGET_##P void tsk__cpu_##P##_tile(int rows, const tsk__cpu_codes *x, int32_t row, int32_t k0, \
                                                int32_t kn, const tsk__cpu_integer_panel *panel, float *y, \
                                                size_t ldy, int add, tsk__cpu_prefetch *prefetch) { \
    const size_t ldx = (size_t)x->cols * (4 / (PER)), groups = (size_t)(x->cols / x->group); \
    const char *codes = x->codes + (size_t)row * ldx + (size_t)k0 * (4 / (PER)); \
    const size_t first = (size_t)row * groups + (size_t)(k0 / x->group); \
    const int32_t steps = kn / x->group; \
    int o; \
    for (o = 0; o < TSK__CPU_WIDTH; o += 2 * (LANES)) \
        switch (rows) { CASES(P) } \
}
#define TSK__CPU_INTEGER_CASE(P, r) \
    case r: \
        tsk__cpu_##P##_tile_rows(r, codes, ldx, x->scales + first, x->sums + first, groups, x->group, steps, \
                                 panel->words + o, panel->scales + o, panel->zeros + o, y + o, ldy, add, prefetch); \
        break;
#define TSK__CPU_INTEGER_CASES_6(P) TSK__CPU_INTEGER_CASE(P, 1) TSK__CPU_INTEGER_CASE(P, 2) \
    TSK__CPU_INTEGER_CASE(P, 3) TSK__CPU_INTEGER_CASE(P, 4) TSK__CPU_INTEGER_CASE(P, 5) TSK__CPU_INTEGER_CASE(P, 6)
#define TSK__CPU_INTEGER_CASES_12(P) TSK__CPU_INTEGER_CASES_6(P) TSK__CPU_INTEGER_CASE(P, 7) \
    TSK__CPU_INTEGER_CASE(P, 8) TSK__CPU_INTEGER_CASE(P, 9) TSK__CPU_INTEGER_CASE(P, 10) \
    TSK__CPU_INTEGER_CASE(P, 11) TSK__CPU_INTEGER_CASE(P, 12)

#define TSK__CPU_DEFINE_INTEGER(P, V, U, LANES, PER, ROWS, NAME, DESCRIPTION) \
    TSK__CPU_DEFINE_QUANTISE(P, V, U, LANES, PER) \
    TSK__CPU_DEFINE_INTEGER_PACK(P, V, U, LANES, PER) \
    TSK__CPU_DEFINE_INTEGER_TILE(P, V, U, LANES, PER, TSK__CPU_INTEGER_CASES_##ROWS) \
    static const tsk__cpu_integer_kernels tsk__cpu_##P = {NAME, DESCRIPTION, ROWS, 4 / (PER), \
                                                          tsk__cpu_##P##_quantise, tsk__cpu_##P##_pack, \
                                                          tsk__cpu_##P##_tile};

TSK__CPU_DEFINE_INTEGER(i128, v128, tsk__u128, 4, 2, 6, "portable", "portable C")
#if TSK__CPU_X86
TSK__CPU_DEFINE_INTEGER(i256, v256, tsk__u256, 8, 2, 6, "avx2", "AVX2")
#ifdef TSK__CPU_HAS_AVX_VNNI
TSK__CPU_DEFINE_INTEGER(x256, v256, tsk__u256, 8, 4, 6, "avxvnni", "AVX-VNNI")
#endif
TSK__CPU_DEFINE_INTEGER(i512, v512, tsk__u512, 16, 4, 12, "avx512vnni", "AVX-512 VNNI")
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

/* NULL when there is no such set or the machine cannot run it. */
static const tsk__cpu_integer_kernels *tsk__cpu_integer_by_name(const char *name) {
#if TSK__CPU_X86
    const int features = tsk__processor_features();
    if ((features & 4) && strcmp(name, tsk__cpu_i512.name) == 0) return &tsk__cpu_i512;
#ifdef TSK__CPU_HAS_AVX_VNNI
    if ((features & 8) && strcmp(name, tsk__cpu_x256.name) == 0) return &tsk__cpu_x256;
#endif
    if ((features & 1) && strcmp(name, tsk__cpu_i256.name) == 0) return &tsk__cpu_i256;
#endif
    return strcmp(name, tsk__cpu_i128.name) == 0 ? &tsk__cpu_i128 : NULL;
}

static const tsk__cpu_integer_kernels *tsk__cpu_integer_select(void) {
    static const char *const names[] = {"avx512vnni", "avxvnni", "avx2"};
    size_t i;
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        const tsk__cpu_integer_kernels *kernels = tsk__cpu_integer_by_name(names[i]);
        if (kernels) return kernels;
    }
    return &tsk__cpu_i128;
}

#endif /* SECTION_GUARD_CPU_INTEGER */
