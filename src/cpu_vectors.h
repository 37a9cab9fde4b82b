#ifndef SECTION_GUARD_CPU_VECTORS
#define SECTION_GUARD_CPU_VECTORS

#include "platform.h"
#include "number.h"

// >>cpu_vectors =======================================================================================================
/* Vectors of the instruction sets that the CPU's kernels are written over: 128 bits in plain C for any machine, AVX2
   with FMA and F16C, AVX-512F, and NEON. The kernels are macros over the few primitives that differ (>>cpu,
   >>cpu_integer). */

#define TSK__CPU_X86 TSK__PLATFORM_X86
#define TSK__CPU_ARM TSK__PLATFORM_ARM

#if TSK__CPU_X86
#ifdef __cplusplus
}
#endif
/* GCC takes the deliberately undefined registers of its own AVX-512 intrinsics for a mistake. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#ifdef __cplusplus
extern "C" {
#endif
#endif

#define TSK__CPU_WIDTH 32          /* outputs in a panel of weights */
#define TSK__CPU_ALIGNED __attribute__((aligned(64)))

/* The block of weights that a task packs next. It is prefetched line by line during the multiplication, because the
   processor's own prefetcher does not follow 32 streams. */
typedef struct tsk__cpu_prefetch {
    const char *base;              /* of its first row */
    size_t stride;                 /* bytes from row to row */
    int32_t at, lines;             /* the next line, of how many; line i is the (i / 32)th of row i % 32 */
} tsk__cpu_prefetch;

/* ---- vector primitives: load, store, set, add, sub, mul, div, fma, min, max; and
   pow2(t)         2^n, where t = n + 1.5 * 2^23
   from(x, low, v) v where not x < low, else 0
   half(p)         as many IEEE half floats from memory
   even, odd       the two bf16 in every 32 bits, as f32
   columns         the first four columns of as many rows, `stride` bytes apart, as four vectors
   min and max give their second argument when either is NaN, so that NaN passes through. */

#define TSK__INLINE static inline __attribute__((always_inline))

typedef float tsk__v128 __attribute__((vector_size(16)));
typedef int32_t tsk__i128 __attribute__((vector_size(16)));
typedef uint32_t tsk__u128 __attribute__((vector_size(16)));
#define TSK__TARGET_v128

TSK__INLINE tsk__v128 tsk__v128_load(const float *p) { tsk__v128 v; memcpy(&v, p, sizeof v); return v; }
TSK__INLINE void tsk__v128_store(float *p, tsk__v128 v) { memcpy(p, &v, sizeof v); }
TSK__INLINE tsk__v128 tsk__v128_set(float a) { tsk__v128 v = {a, a, a, a}; return v; }
TSK__INLINE tsk__v128 tsk__v128_add(tsk__v128 a, tsk__v128 b) { return a + b; }
TSK__INLINE tsk__v128 tsk__v128_sub(tsk__v128 a, tsk__v128 b) { return a - b; }
TSK__INLINE tsk__v128 tsk__v128_mul(tsk__v128 a, tsk__v128 b) { return a * b; }
TSK__INLINE tsk__v128 tsk__v128_div(tsk__v128 a, tsk__v128 b) { return a / b; }
TSK__INLINE tsk__v128 tsk__v128_fma(tsk__v128 a, tsk__v128 b, tsk__v128 c) { return a * b + c; }
TSK__INLINE tsk__v128 tsk__v128_choose(tsk__i128 which, tsk__v128 a, tsk__v128 b) {
    return (tsk__v128)((which & (tsk__i128)a) | (~which & (tsk__i128)b));
}
TSK__INLINE tsk__v128 tsk__v128_min(tsk__v128 a, tsk__v128 b) { return tsk__v128_choose((tsk__i128)(a < b), a, b); }
TSK__INLINE tsk__v128 tsk__v128_max(tsk__v128 a, tsk__v128 b) { return tsk__v128_choose((tsk__i128)(a > b), a, b); }
TSK__INLINE tsk__v128 tsk__v128_pow2(tsk__v128 t) { return (tsk__v128)(((tsk__u128)t + 127) << 23); }
TSK__INLINE tsk__v128 tsk__v128_from(tsk__v128 x, tsk__v128 low, tsk__v128 v) {
    return (tsk__v128)(~(tsk__i128)(x < low) & (tsk__i128)v);
}
TSK__INLINE tsk__v128 tsk__v128_half(const char *p) {
    uint16_t h[4];
    tsk__v128 v;
    memcpy(h, p, sizeof h);
    v[0] = tsk__float_from_half(h[0]);
    v[1] = tsk__float_from_half(h[1]);
    v[2] = tsk__float_from_half(h[2]);
    v[3] = tsk__float_from_half(h[3]);
    return v;
}
TSK__INLINE tsk__v128 tsk__v128_even(tsk__v128 v) { return (tsk__v128)((tsk__u128)v << 16); }
TSK__INLINE tsk__v128 tsk__v128_odd(tsk__v128 v) { return (tsk__v128)((tsk__u128)v & 0xffff0000u); }
TSK__INLINE float tsk__v128_one(const char *p) { float a; memcpy(&a, p, sizeof a); return a; }
TSK__INLINE tsk__v128 tsk__v128_column(const char *rows, size_t stride) {
    tsk__v128 v = {tsk__v128_one(rows), tsk__v128_one(rows + stride), tsk__v128_one(rows + 2 * stride),
                   tsk__v128_one(rows + 3 * stride)};
    return v;
}
TSK__INLINE void tsk__v128_columns(const char *rows, size_t stride, tsk__v128 *c0, tsk__v128 *c1, tsk__v128 *c2,
                                   tsk__v128 *c3) {
    *c0 = tsk__v128_column(rows, stride);
    *c1 = tsk__v128_column(rows + 4, stride);
    *c2 = tsk__v128_column(rows + 8, stride);
    *c3 = tsk__v128_column(rows + 12, stride);
}

#if TSK__CPU_X86
typedef __m256 tsk__v256;
#define TSK__TARGET_v256 __attribute__((target("avx2,fma,f16c")))
#define TSK__INLINE_v256 TSK__INLINE TSK__TARGET_v256

TSK__INLINE_v256 __m256 tsk__v256_load(const float *p) { return _mm256_loadu_ps(p); }
TSK__INLINE_v256 void tsk__v256_store(float *p, __m256 v) { _mm256_storeu_ps(p, v); }
TSK__INLINE_v256 __m256 tsk__v256_set(float a) { return _mm256_set1_ps(a); }
TSK__INLINE_v256 __m256 tsk__v256_add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
TSK__INLINE_v256 __m256 tsk__v256_sub(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }
TSK__INLINE_v256 __m256 tsk__v256_mul(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
TSK__INLINE_v256 __m256 tsk__v256_div(__m256 a, __m256 b) { return _mm256_div_ps(a, b); }
TSK__INLINE_v256 __m256 tsk__v256_fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
TSK__INLINE_v256 __m256 tsk__v256_min(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
TSK__INLINE_v256 __m256 tsk__v256_max(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
TSK__INLINE_v256 __m256 tsk__v256_pow2(__m256 t) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(t), _mm256_set1_epi32(127)), 23));
}
TSK__INLINE_v256 __m256 tsk__v256_from(__m256 x, __m256 low, __m256 v) {
    return _mm256_and_ps(_mm256_cmp_ps(x, low, _CMP_NLT_UQ), v);
}
TSK__INLINE_v256 __m256 tsk__v256_half(const char *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
TSK__INLINE_v256 __m256 tsk__v256_even(__m256 v) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 16));
}
TSK__INLINE_v256 __m256 tsk__v256_odd(__m256 v) {
    return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(~0xffff)));
}
TSK__INLINE_v256 __m128 tsk__v256_four(const char *p) { return _mm_loadu_ps((const float *)(const void *)p); }
/* Rows i and i + 4, four columns of each. */
TSK__INLINE_v256 __m256 tsk__v256_rows(const char *rows, size_t stride) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(tsk__v256_four(rows)), tsk__v256_four(rows + 4 * stride), 1);
}
TSK__INLINE_v256 void tsk__v256_columns(const char *rows, size_t stride, __m256 *c0, __m256 *c1, __m256 *c2,
                                        __m256 *c3) {
    const __m256 r0 = tsk__v256_rows(rows, stride), r1 = tsk__v256_rows(rows + stride, stride);
    const __m256 r2 = tsk__v256_rows(rows + 2 * stride, stride), r3 = tsk__v256_rows(rows + 3 * stride, stride);
    const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(r0, r1)), b = _mm256_castps_pd(_mm256_unpacklo_ps(r2, r3));
    const __m256d c = _mm256_castps_pd(_mm256_unpackhi_ps(r0, r1)), d = _mm256_castps_pd(_mm256_unpackhi_ps(r2, r3));
    *c0 = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
    *c1 = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    *c2 = _mm256_castpd_ps(_mm256_unpacklo_pd(c, d));
    *c3 = _mm256_castpd_ps(_mm256_unpackhi_pd(c, d));
}

typedef __m512 tsk__v512;
#define TSK__TARGET_v512 __attribute__((target("avx512f")))
#define TSK__INLINE_v512 TSK__INLINE TSK__TARGET_v512

TSK__INLINE_v512 __m512 tsk__v512_load(const float *p) { return _mm512_loadu_ps(p); }
TSK__INLINE_v512 void tsk__v512_store(float *p, __m512 v) { _mm512_storeu_ps(p, v); }
TSK__INLINE_v512 __m512 tsk__v512_set(float a) { return _mm512_set1_ps(a); }
TSK__INLINE_v512 __m512 tsk__v512_add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
TSK__INLINE_v512 __m512 tsk__v512_sub(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }
TSK__INLINE_v512 __m512 tsk__v512_mul(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
TSK__INLINE_v512 __m512 tsk__v512_div(__m512 a, __m512 b) { return _mm512_div_ps(a, b); }
TSK__INLINE_v512 __m512 tsk__v512_fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
TSK__INLINE_v512 __m512 tsk__v512_min(__m512 a, __m512 b) { return _mm512_min_ps(a, b); }
TSK__INLINE_v512 __m512 tsk__v512_max(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
TSK__INLINE_v512 __m512 tsk__v512_pow2(__m512 t) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_castps_si512(t), _mm512_set1_epi32(127)), 23));
}
TSK__INLINE_v512 __m512 tsk__v512_from(__m512 x, __m512 low, __m512 v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, low, _CMP_NLT_UQ), v);
}
TSK__INLINE_v512 __m512 tsk__v512_half(const char *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
TSK__INLINE_v512 __m512 tsk__v512_even(__m512 v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 16));
}
TSK__INLINE_v512 __m512 tsk__v512_odd(__m512 v) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(~0xffff)));
}
TSK__INLINE_v512 __m128 tsk__v512_four(const char *p) { return _mm_loadu_ps((const float *)(const void *)p); }
/* Rows i, i + 4, i + 8 and i + 12, four columns of each. */
TSK__INLINE_v512 __m512 tsk__v512_rows(const char *rows, size_t stride) {
    const __m512 a =
        _mm512_insertf32x4(_mm512_castps128_ps512(tsk__v512_four(rows)), tsk__v512_four(rows + 4 * stride), 1);
    return _mm512_insertf32x4(_mm512_insertf32x4(a, tsk__v512_four(rows + 8 * stride), 2),
                              tsk__v512_four(rows + 12 * stride), 3);
}
TSK__INLINE_v512 void tsk__v512_columns(const char *rows, size_t stride, __m512 *c0, __m512 *c1, __m512 *c2,
                                        __m512 *c3) {
    const __m512 r0 = tsk__v512_rows(rows, stride), r1 = tsk__v512_rows(rows + stride, stride);
    const __m512 r2 = tsk__v512_rows(rows + 2 * stride, stride), r3 = tsk__v512_rows(rows + 3 * stride, stride);
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(r0, r1)), b = _mm512_castps_pd(_mm512_unpacklo_ps(r2, r3));
    const __m512d c = _mm512_castps_pd(_mm512_unpackhi_ps(r0, r1)), d = _mm512_castps_pd(_mm512_unpackhi_ps(r2, r3));
    *c0 = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
    *c1 = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    *c2 = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
    *c3 = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
}
#endif

#if TSK__CPU_ARM
typedef float32x4_t tsk__neon;
#define TSK__TARGET_neon

TSK__INLINE float32x4_t tsk__neon_load(const float *p) { return vld1q_f32(p); }
TSK__INLINE void tsk__neon_store(float *p, float32x4_t v) { vst1q_f32(p, v); }
TSK__INLINE float32x4_t tsk__neon_set(float a) { return vdupq_n_f32(a); }
TSK__INLINE float32x4_t tsk__neon_add(float32x4_t a, float32x4_t b) { return vaddq_f32(a, b); }
TSK__INLINE float32x4_t tsk__neon_sub(float32x4_t a, float32x4_t b) { return vsubq_f32(a, b); }
TSK__INLINE float32x4_t tsk__neon_mul(float32x4_t a, float32x4_t b) { return vmulq_f32(a, b); }
TSK__INLINE float32x4_t tsk__neon_div(float32x4_t a, float32x4_t b) { return vdivq_f32(a, b); }
TSK__INLINE float32x4_t tsk__neon_fma(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
/* (not vminq, vmaxq: they give NaN for NaN in either place) */
TSK__INLINE float32x4_t tsk__neon_min(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
TSK__INLINE float32x4_t tsk__neon_max(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
TSK__INLINE float32x4_t tsk__neon_pow2(float32x4_t t) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vaddq_u32(vreinterpretq_u32_f32(t), vdupq_n_u32(127)), 23));
}
TSK__INLINE float32x4_t tsk__neon_from(float32x4_t x, float32x4_t low, float32x4_t v) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), vcltq_f32(x, low)));
}
TSK__INLINE float32x4_t tsk__neon_half(const char *p) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8((const uint8_t *)p)));
}
TSK__INLINE float32x4_t tsk__neon_even(float32x4_t v) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(v), 16));
}
TSK__INLINE float32x4_t tsk__neon_odd(float32x4_t v) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0xffff0000u)));
}
TSK__INLINE float32x4_t tsk__neon_four(const char *p) { return vreinterpretq_f32_u8(vld1q_u8((const uint8_t *)p)); }
TSK__INLINE void tsk__neon_columns(const char *rows, size_t stride, float32x4_t *c0, float32x4_t *c1, float32x4_t *c2,
                                   float32x4_t *c3) {
    const float32x4_t r0 = tsk__neon_four(rows), r1 = tsk__neon_four(rows + stride);
    const float32x4_t r2 = tsk__neon_four(rows + 2 * stride), r3 = tsk__neon_four(rows + 3 * stride);
    const float64x2_t a = vreinterpretq_f64_f32(vtrn1q_f32(r0, r1)), b = vreinterpretq_f64_f32(vtrn1q_f32(r2, r3));
    const float64x2_t c = vreinterpretq_f64_f32(vtrn2q_f32(r0, r1)), d = vreinterpretq_f64_f32(vtrn2q_f32(r2, r3));
    *c0 = vreinterpretq_f32_f64(vtrn1q_f64(a, b));
    *c1 = vreinterpretq_f32_f64(vtrn1q_f64(c, d));
    *c2 = vreinterpretq_f32_f64(vtrn2q_f64(a, b));
    *c3 = vreinterpretq_f32_f64(vtrn2q_f64(c, d));
}
#endif

TSK__INLINE void tsk__cpu_fetch(tsk__cpu_prefetch *prefetch) {
    if (prefetch->at >= prefetch->lines) return;
    __builtin_prefetch(prefetch->base + (size_t)(prefetch->at % TSK__CPU_WIDTH) * prefetch->stride +
                           (size_t)(prefetch->at / TSK__CPU_WIDTH) * 64,
                       0, 2);
    prefetch->at++;
}

#if TSK__CPU_X86
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

#endif /* SECTION_GUARD_CPU_VECTORS */
