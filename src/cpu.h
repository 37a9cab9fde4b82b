#ifndef SECTION_GUARD_CPU
#define SECTION_GUARD_CPU

#include "platform.h"
#include "memory.h"
#include "pool.h"
#include "number.h"
#include "safetensors.h"
#include "family.h"
#include "random.h"
#include "weights.h"
#include "backend.h"
#include "cpu_vectors.h"
#include "cpu_integer.h"

// >>cpu ===============================================================================================================
/* The CPU backend: f32 activations, weights used where they lie (F32, F16, BF16 or codes, usually a mapped file).
   Products of integer weights quantise their input and go to >>cpu_integer, unless activations are to stay F32.

   Everything that multiplies is one core: a panel of 32 outputs is copied from the weights, converted and transposed,
   into [k][32] f32, and then serves every row of the pass:

       weights [out][in]            panel [k][32]               y[row][32] += x[row][k] * panel[k]
       out 0  k k k k k k ...       k 0  o o o o ... o
       out 1  k k k k k k ...  -->  k 1  o o o o ... o    -->   vectors lie along the outputs, so that an output is
       ...                          ...                         one chain of additions over k in a single lane

   That chain, cut every TSK__CPU_DEPTH steps (more exact, and the panel stays in the first cache level), is the same
   for every row, whatever tile the row falls in, however wide the vectors are and however many threads run: results are
   therefore bit for bit the same for all of these. Attention runs on the same core: K is a weight matrix
   [position][head_dim], and V already is a panel.

   The vector code is written once, in macros over the few primitives that differ between instruction sets. Sets:
   AVX-512F, AVX2 + FMA + F16C, and NEON, found at run time: these multiply and add in one rounding, and give the same
   bits. And 128-bit vectors in plain C for any other machine, which round twice. Infinities and NaN are needed: do not
   compile with -ffast-math. An operation uses up to 80 KB of stack and allocates nothing. */

#define TSK__CPU_DEPTH 256 /* steps of k in a panel, and keys in a block of attention: part of the sum's order */
#define TSK__CPU_QUERIES 32        /* query rows that share a packed block of keys */
#define TSK__CPU_CHUNK 256         /* vocabulary rows in a chunk of the head: part of the sum's order */
#define TSK__CPU_HEAD_ROWS 128     /* rows in a sweep of the head, which bounds its scratch memory */
#define TSK__CPU_MAX_TILE 12       /* rows in the largest tile of any kernel set */
#define TSK__CPU_SERIAL 131072     /* multiplications worth less than waking another thread for */

/* What differs between instruction sets. */
typedef struct tsk__cpu_kernels {
    const char *name, *description;
    int tile_rows;                 /* the most rows `tile` takes */
    /* panel[k][32] = rows first .. first+31 (the last row again where there are fewer), columns k0 .. k0+kn-1 */
    void (*pack)(const tsk__weight *w, int32_t first, int32_t k0, int32_t kn, float *panel);
    /* y[rows][32] = or += x[rows][kn] * panel[kn][32] */
    void (*tile)(int rows, const float *x, size_t ldx, int32_t kn, const float *panel, size_t ldp, float *y, size_t ldy,
                 int add, tsk__cpu_prefetch *prefetch);
    float (*dot)(const float *x, const float *y, int32_t n);
    float (*scale_max)(float *x, int32_t n, float scale);  /* x *= scale, the largest; n a multiple of 16 */
    float (*exp_sum)(float *x, int32_t n, float max);      /* x = exp(x - max), their sum; n a multiple of 16 */
    float (*exp_moment)(const float *x, int32_t n, float max); /* the sum of exp(x - max) * (x - max), x of -infinity
                                                                  counting as 0; likewise n */
    void (*silu)(float *gate, const float *up, int32_t n); /* gate = gate / (1 + exp(-gate)) * up */
    void (*add)(float *y, const float *x, int32_t n);      /* y += x */
    void (*scale)(const float *x, float scale, const float *weight, float *out,
                  int32_t n); /* out = x * scale * weight */
} tsk__cpu_kernels;

typedef struct tsk__cpu_model {
    const tsk_model_config *config;
    tsk__pool *pool;
    const tsk__cpu_kernels *kernels;
    const tsk__cpu_integer_kernels *integer; /* NULL: integer weights are multiplied by their values, too */
    tsk__weight *weights;              /* by tsk__family_index; norms and biases in f32, a tied head the embedding */
    float *rope_frequencies;           /* [head_dim / 2] */
    tsk__blocks blocks;                /* what was allocated for the weights */
} tsk__cpu_model;

static const tsk__weight *tsk__cpu_weight(const tsk__cpu_model *model, int32_t layer, tsk__part part) {
    return &model->weights[tsk__family_index(model->config, layer, part, 0)];
}
/* NULL where the family has no such norm. */
static const float *tsk__cpu_norm_weight(const tsk__cpu_model *model, int32_t layer, tsk__part part) {
    return (const float *)tsk__cpu_weight(model, layer, part)->data;
}

/* ---- kernels over those primitives. V names the set, LANES is its vector's length. */

/* Adds 16 partial sums, in an order of its own that no instruction set changes. */
static float tsk__cpu_sum16(float lanes[16]) {
    int width, i;
    for (width = 8; width; width /= 2)
        for (i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

#define TSK__CPU_EXP_LOW -87.3365448f  /* below it the result would be subnormal, and is 0 */
#define TSK__CPU_EXP_HIGH 88.37f       /* above it the exponent would overflow: the result stays 2.39e38 */

/* exp within 1.1 ulp: x = n ln 2 + r with |r| <= ln 2 / 2, then 1 + r + r^2 q(r) by a minimax polynomial of our own
   (relative error 4e-9), times 2^n. Adding 1.5 * 2^23 rounds to the integer n and leaves it in the low bits. */
#define TSK__CPU_DEFINE_EXP(V) \
TSK__INLINE TSK__TARGET_##V tsk__##V tsk__##V##_exp(tsk__##V x) { \
    const tsk__##V magic = tsk__##V##_set(12582912.0f), low = tsk__##V##_set(TSK__CPU_EXP_LOW); \
    const tsk__##V c = tsk__##V##_max(low, tsk__##V##_min(tsk__##V##_set(TSK__CPU_EXP_HIGH), x)); \
    const tsk__##V t = tsk__##V##_fma(c, tsk__##V##_set(1.44269502f), magic), n = tsk__##V##_sub(t, magic); \
    tsk__##V r = tsk__##V##_fma(n, tsk__##V##_set(-0.693145751953f), c), q = tsk__##V##_set(0.00138144672f); \
    r = tsk__##V##_fma(n, tsk__##V##_set(-1.42860677e-06f), r); \
    q = tsk__##V##_fma(q, r, tsk__##V##_set(0.00836878084f)); \
    q = tsk__##V##_fma(q, r, tsk__##V##_set(0.0416683927f)); \
    q = tsk__##V##_fma(q, r, tsk__##V##_set(0.166665196f)); \
    q = tsk__##V##_fma(q, r, tsk__##V##_set(0.49999994f)); \
    q = tsk__##V##_add(tsk__##V##_fma(tsk__##V##_mul(r, r), q, r), tsk__##V##_set(1.0f)); \
    return tsk__##V##_from(x, low, tsk__##V##_mul(q, tsk__##V##_pow2(t))); \
}

/* Elementwise, a short last vector through a copy. */
#define TSK__CPU_DEFINE_SILU(V, LANES) \
TSK__INLINE TSK__TARGET_##V void tsk__cpu_##V##_silu_vector(float *gate, const float *up) { \
    const tsk__##V g = tsk__##V##_load(gate), one = tsk__##V##_set(1.0f); \
    const tsk__##V e = tsk__##V##_exp(tsk__##V##_sub(tsk__##V##_set(0.0f), g)); \
    tsk__##V##_store(gate, tsk__##V##_mul(tsk__##V##_div(g, tsk__##V##_add(one, e)), tsk__##V##_load(up))); \
} \
static TSK__TARGET_##V void tsk__cpu_##V##_silu(float *gate, const float *up, int32_t n) { \
    float g[LANES] = {0}, u[LANES] = {0}; \
    int32_t i, rest = n % (LANES); \
    for (i = 0; i + (LANES) <= n; i += (LANES)) tsk__cpu_##V##_silu_vector(gate + i, up + i); \
    if (!rest) return; \
    memcpy(g, gate + i, (size_t)rest * sizeof *g); \
    memcpy(u, up + i, (size_t)rest * sizeof *u); \
    tsk__cpu_##V##_silu_vector(g, u); \
    memcpy(gate + i, g, (size_t)rest * sizeof *g); \
}

/* Products and sums alone: a scalar rounds as a lane does, so the tails need no care. */
#define TSK__CPU_DEFINE_ELEMENTWISE(V, LANES) \
static TSK__TARGET_##V void tsk__cpu_##V##_add(float *y, const float *x, int32_t n) { \
    int32_t i; \
    for (i = 0; i + (LANES) <= n; i += (LANES)) \
        tsk__##V##_store(y + i, tsk__##V##_add(tsk__##V##_load(y + i), tsk__##V##_load(x + i))); \
    for (; i < n; i++) y[i] += x[i]; \
} \
static TSK__TARGET_##V void tsk__cpu_##V##_scale(const float *x, float scale, const float *weight, float *out, \
                                                 int32_t n) { \
    const tsk__##V s = tsk__##V##_set(scale); \
    int32_t i; \
    for (i = 0; i + (LANES) <= n; i += (LANES)) \
        tsk__##V##_store(out + i, \
                         tsk__##V##_mul(tsk__##V##_mul(tsk__##V##_load(x + i), s), tsk__##V##_load(weight + i))); \
    for (; i < n; i++) out[i] = x[i] * scale * weight[i]; \
}

/* Reductions keep 16 partial sums in every instruction set, so that all add in the same order. */
#define TSK__CPU_DEFINE_REDUCTIONS(V, LANES) \
TSK__INLINE TSK__TARGET_##V void tsk__cpu_##V##_dot_step(float lanes[16], const float *x, const float *y) { \
    int i; \
    for (i = 0; i < 16; i += (LANES)) \
        tsk__##V##_store(lanes + i, \
                         tsk__##V##_fma(tsk__##V##_load(x + i), tsk__##V##_load(y + i), tsk__##V##_load(lanes + i))); \
} \
static TSK__TARGET_##V float tsk__cpu_##V##_dot(const float *x, const float *y, int32_t n) { \
    float lanes[16] = {0}, last_x[16] = {0}, last_y[16] = {0}; \
    int32_t i; \
    for (i = 0; i + 16 <= n; i += 16) tsk__cpu_##V##_dot_step(lanes, x + i, y + i); \
    memcpy(last_x, x + i, (size_t)(n - i) * sizeof *x); \
    memcpy(last_y, y + i, (size_t)(n - i) * sizeof *y); \
    tsk__cpu_##V##_dot_step(lanes, last_x, last_y); \
    return tsk__cpu_sum16(lanes); \
} \
static TSK__TARGET_##V float tsk__cpu_##V##_scale_max(float *x, int32_t n, float scale) { \
    float lanes[LANES]; \
    tsk__##V max = tsk__##V##_set(-INFINITY), v; \
    int32_t i; \
    for (i = 0; i < n; i += (LANES)) { \
        v = tsk__##V##_mul(tsk__##V##_load(x + i), tsk__##V##_set(scale)); \
        tsk__##V##_store(x + i, v); \
        max = tsk__##V##_max(v, max); \
    } \
    tsk__##V##_store(lanes, max); \
    for (i = 1; i < (LANES); i++) \
        if (lanes[i] > lanes[0]) lanes[0] = lanes[i]; \
    return lanes[0]; \
} \
static TSK__TARGET_##V float tsk__cpu_##V##_exp_sum(float *x, int32_t n, float max) { \
    float lanes[16] = {0}; \
    tsk__##V v; \
    int32_t i; \
    for (i = 0; i < n; i += (LANES)) { \
        v = tsk__##V##_exp(tsk__##V##_sub(tsk__##V##_load(x + i), tsk__##V##_set(max))); \
        tsk__##V##_store(x + i, v); \
        tsk__##V##_store(lanes + i % 16, tsk__##V##_add(tsk__##V##_load(lanes + i % 16), v)); \
    } \
    return tsk__cpu_sum16(lanes); \
} \
static TSK__TARGET_##V float tsk__cpu_##V##_exp_moment(const float *x, int32_t n, float max) { \
    float lanes[16] = {0}; \
    tsk__##V v; \
    int32_t i; \
    for (i = 0; i < n; i += (LANES)) { \
        v = tsk__##V##_max(tsk__##V##_sub(tsk__##V##_load(x + i), tsk__##V##_set(max)), tsk__##V##_set(-128.0f)); \
        v = tsk__##V##_fma(tsk__##V##_exp(v), v, tsk__##V##_load(lanes + i % 16)); \
        tsk__##V##_store(lanes + i % 16, v); \
    } \
    return tsk__cpu_sum16(lanes); \
}

/* Transposes LANES rows of 64 bytes at a time, where they lie or, at the edges and for F16, from a copy. Two bf16 move
   as one 32-bit word and part only on their way out. */
#define TSK__CPU_DEFINE_PACK(V, LANES) \
TSK__INLINE TSK__TARGET_##V void tsk__cpu_##V##_pack_block(tsk_dtype dtype, const char *rows, size_t stride, \
                                                           float *to) { \
    int c; \
    for (c = 0; c < 16; c += 4, rows += 16) { \
        tsk__##V v0, v1, v2, v3; \
        tsk__##V##_columns(rows, stride, &v0, &v1, &v2, &v3); \
        if (dtype == TSK_DTYPE_BF16) { \
            tsk__##V##_store(to, tsk__##V##_even(v0)); \
            tsk__##V##_store(to + TSK__CPU_WIDTH, tsk__##V##_odd(v0)); \
            tsk__##V##_store(to + 2 * TSK__CPU_WIDTH, tsk__##V##_even(v1)); \
            tsk__##V##_store(to + 3 * TSK__CPU_WIDTH, tsk__##V##_odd(v1)); \
            tsk__##V##_store(to + 4 * TSK__CPU_WIDTH, tsk__##V##_even(v2)); \
            tsk__##V##_store(to + 5 * TSK__CPU_WIDTH, tsk__##V##_odd(v2)); \
            tsk__##V##_store(to + 6 * TSK__CPU_WIDTH, tsk__##V##_even(v3)); \
            tsk__##V##_store(to + 7 * TSK__CPU_WIDTH, tsk__##V##_odd(v3)); \
            to += 8 * TSK__CPU_WIDTH; \
        } else { \
            tsk__##V##_store(to, v0); \
            tsk__##V##_store(to + TSK__CPU_WIDTH, v1); \
            tsk__##V##_store(to + 2 * TSK__CPU_WIDTH, v2); \
            tsk__##V##_store(to + 3 * TSK__CPU_WIDTH, v3); \
            to += 4 * TSK__CPU_WIDTH; \
        } \
    } \
} \
/* One row's next `count` elements, as 64 bytes, zeroes behind them. */ \
TSK__INLINE TSK__TARGET_##V void tsk__cpu_##V##_pack_copy(tsk_dtype dtype, const char *from, int32_t count, \
                                                          int32_t step, char *to) { \
    char part[64] TSK__CPU_ALIGNED; \
    int i; \
    if (count < step) { \
        memset(part, 0, sizeof part); \
        memcpy(part, from, (size_t)count * (dtype == TSK_DTYPE_F32 ? 4 : 2)); \
        from = part; \
    } \
    for (i = 0; i < 64; i += 4 * (LANES)) \
        tsk__##V##_store((float *)(void *)(to + i), \
                         dtype == TSK_DTYPE_F16 ? tsk__##V##_half(from + i / 2) \
                                                : tsk__##V##_load((const float *)(const void *)(from + i))); \
} \
TSK__INLINE TSK__TARGET_##V void tsk__cpu_##V##_pack_as(tsk_dtype dtype, const tsk__weight *w, int32_t first, \
                                                        int32_t k0, int32_t kn, float *panel) { \
    const size_t size = dtype == TSK_DTYPE_F32 ? 4 : 2, stride = (size_t)w->cols * size; \
    const int32_t step = dtype == TSK_DTYPE_BF16 ? 32 : 16; \
    char copy[(LANES) * 64] TSK__CPU_ALIGNED; \
    int32_t o, k, i; \
    for (o = 0; o < TSK__CPU_WIDTH; o += (LANES)) \
        for (k = 0; k < kn; k += step) { \
            float *to = panel + (size_t)k * TSK__CPU_WIDTH + o; \
            const char *data = (const char *)w->data + (size_t)(k0 + k) * size; \
            const int32_t row = first + o, count = kn - k < step ? kn - k : step; \
            if (dtype != TSK_DTYPE_F16 && count == step && row + (LANES) <= w->rows) { \
                tsk__cpu_##V##_pack_block(dtype, data + (size_t)row * stride, stride, to); \
                continue; \
            } \
            for (i = 0; i < (LANES); i++) \
                tsk__cpu_##V##_pack_copy(dtype, \
                                         data + (size_t)(row + i < w->rows ? row + i : w->rows - 1) * stride, \
                                         count, step, copy + 64 * i); \
            tsk__cpu_##V##_pack_block(dtype, copy, 64, to); \
        } \
} \
static TSK__TARGET_##V void tsk__cpu_##V##_pack(const tsk__weight *w, int32_t first, int32_t k0, int32_t kn, \
                                                float *panel) { \
    if (w->dtype == TSK_DTYPE_F32) tsk__cpu_##V##_pack_as(TSK_DTYPE_F32, w, first, k0, kn, panel); \
    else if (w->dtype == TSK_DTYPE_BF16) tsk__cpu_##V##_pack_as(TSK_DTYPE_BF16, w, first, k0, kn, panel); \
    else tsk__cpu_##V##_pack_as(TSK_DTYPE_F16, w, first, k0, kn, panel); \
}

/* Two vectors of outputs by `rows` rows stay in registers over the whole depth. `rows` is a constant wherever this is
   inlined, so the conditions vanish; names instead of an array, since compilers keep arrays in memory below -O3. */
#define TSK__CPU_TILE_STEP(V, r, from) \
    if (rows > (r)) { \
        const tsk__##V v = tsk__##V##_set(from); \
        a##r = tsk__##V##_fma(v, w0, a##r); \
        b##r = tsk__##V##_fma(v, w1, b##r); \
    }
#define TSK__CPU_TILE_STORE(V, LANES, r) \
    if (rows > (r)) { \
        float *to = y + (r) * ldy; \
        if (add) { \
            a##r = tsk__##V##_add(tsk__##V##_load(to), a##r); \
            b##r = tsk__##V##_add(tsk__##V##_load(to + (LANES)), b##r); \
        } \
        tsk__##V##_store(to, a##r); \
        tsk__##V##_store(to + (LANES), b##r); \
    }
#define TSK__CPU_DEFINE_TILE(V, LANES, CASES) \
TSK__INLINE TSK__TARGET_##V void tsk__cpu_##V##_tile_rows(const int rows, const float *x, size_t ldx, int32_t kn, \
                                                          const float *panel, size_t ldp, float *y, size_t ldy, \
                                                          int add, tsk__cpu_prefetch *prefetch) { \
    const tsk__##V zero = tsk__##V##_set(0.0f); \
    tsk__##V a0 = zero, a1 = zero, a2 = zero, a3 = zero, a4 = zero, a5 = zero; \
    tsk__##V a6 = zero, a7 = zero, a8 = zero, a9 = zero, a10 = zero, a11 = zero; \
    tsk__##V b0 = zero, b1 = zero, b2 = zero, b3 = zero, b4 = zero, b5 = zero; \
    tsk__##V b6 = zero, b7 = zero, b8 = zero, b9 = zero, b10 = zero, b11 = zero; \
    const float *x3 = rows > 3 ? x + 3 * ldx : x, *x6 = rows > 6 ? x + 6 * ldx : x, *x9 = rows > 9 ? x + 9 * ldx : x; \
    tsk__cpu_prefetch next = *prefetch; \
    for (; kn > 0; kn--, panel += ldp, x++, x3++, x6++, x9++) { \
        const tsk__##V w0 = tsk__##V##_load(panel), w1 = tsk__##V##_load(panel + (LANES)); \
        tsk__cpu_fetch(&next); \
        if (rows <= 6) tsk__cpu_fetch(&next); /* half the multiplications to hide it behind */ \
        TSK__CPU_TILE_STEP(V, 0, x[0]) TSK__CPU_TILE_STEP(V, 1, x[ldx]) TSK__CPU_TILE_STEP(V, 2, x[2 * ldx]) \
        TSK__CPU_TILE_STEP(V, 3, x3[0]) TSK__CPU_TILE_STEP(V, 4, x3[ldx]) TSK__CPU_TILE_STEP(V, 5, x3[2 * ldx]) \
        TSK__CPU_TILE_STEP(V, 6, x6[0]) TSK__CPU_TILE_STEP(V, 7, x6[ldx]) TSK__CPU_TILE_STEP(V, 8, x6[2 * ldx]) \
        TSK__CPU_TILE_STEP(V, 9, x9[0]) TSK__CPU_TILE_STEP(V, 10, x9[ldx]) TSK__CPU_TILE_STEP(V, 11, x9[2 * ldx]) \
    } \
    prefetch->at = next.at; \
    TSK__CPU_TILE_STORE(V, LANES, 0) TSK__CPU_TILE_STORE(V, LANES, 1) TSK__CPU_TILE_STORE(V, LANES, 2) \
    TSK__CPU_TILE_STORE(V, LANES, 3) TSK__CPU_TILE_STORE(V, LANES, 4) TSK__CPU_TILE_STORE(V, LANES, 5) \
    TSK__CPU_TILE_STORE(V, LANES, 6) TSK__CPU_TILE_STORE(V, LANES, 7) TSK__CPU_TILE_STORE(V, LANES, 8) \
    TSK__CPU_TILE_STORE(V, LANES, 9) TSK__CPU_TILE_STORE(V, LANES, 10) TSK__CPU_TILE_STORE(V, LANES, 11) \
} \
static TSK__TARGET_##V void tsk__cpu_##V##_tile(int rows, const float *x, size_t ldx, int32_t kn, \
                                                const float *panel, size_t ldp, float *y, \
                                                size_t ldy, int add, tsk__cpu_prefetch *prefetch) { \
    int o; \
    for (o = 0; o < TSK__CPU_WIDTH; o += 2 * (LANES)) \
        switch (rows) { CASES(V) } \
}
#define TSK__CPU_TILE_CASE(V, r) \
    case r: \
        tsk__cpu_##V##_tile_rows(r, x, ldx, kn, panel + o, ldp, y + o, ldy, add, prefetch); \
        break;
#define TSK__CPU_TILE_CASES_6(V) TSK__CPU_TILE_CASE(V, 1) TSK__CPU_TILE_CASE(V, 2) TSK__CPU_TILE_CASE(V, 3) \
    TSK__CPU_TILE_CASE(V, 4) TSK__CPU_TILE_CASE(V, 5) TSK__CPU_TILE_CASE(V, 6)
#define TSK__CPU_TILE_CASES_10(V) TSK__CPU_TILE_CASES_6(V) TSK__CPU_TILE_CASE(V, 7) TSK__CPU_TILE_CASE(V, 8) \
    TSK__CPU_TILE_CASE(V, 9) TSK__CPU_TILE_CASE(V, 10)
#define TSK__CPU_TILE_CASES_12(V) TSK__CPU_TILE_CASES_10(V) TSK__CPU_TILE_CASE(V, 11) TSK__CPU_TILE_CASE(V, 12)

#define TSK__CPU_DEFINE_KERNELS(V, LANES, ROWS, NAME, DESCRIPTION) \
    TSK__CPU_DEFINE_EXP(V) \
    TSK__CPU_DEFINE_SILU(V, LANES) \
    TSK__CPU_DEFINE_ELEMENTWISE(V, LANES) \
    TSK__CPU_DEFINE_REDUCTIONS(V, LANES) \
    TSK__CPU_DEFINE_PACK(V, LANES) \
    TSK__CPU_DEFINE_TILE(V, LANES, TSK__CPU_TILE_CASES_##ROWS) \
    static const tsk__cpu_kernels tsk__cpu_##V = {NAME, DESCRIPTION, ROWS, \
                                                  tsk__cpu_##V##_pack, tsk__cpu_##V##_tile, tsk__cpu_##V##_dot, \
                                                  tsk__cpu_##V##_scale_max, tsk__cpu_##V##_exp_sum, \
                                                  tsk__cpu_##V##_exp_moment, tsk__cpu_##V##_silu, \
                                                  tsk__cpu_##V##_add, tsk__cpu_##V##_scale};

TSK__CPU_DEFINE_KERNELS(v128, 4, 6, "portable", "portable C")
#if TSK__CPU_X86
TSK__CPU_DEFINE_KERNELS(v256, 8, 6, "avx2", "AVX2")
TSK__CPU_DEFINE_KERNELS(v512, 16, 12, "avx512", "AVX-512")
#endif
#if TSK__CPU_ARM
/* (of 32 registers: with more rows both compilers keep a sum in memory) */
TSK__CPU_DEFINE_KERNELS(neon, 4, 10, "neon", "NEON")
#endif

/* NULL when there is no such set or the machine cannot run it. */
static const tsk__cpu_kernels *tsk__cpu_kernels_by_name(const char *name) {
#if TSK__CPU_X86
    const int features = tsk__processor_features();
    if ((features & 2) && strcmp(name, tsk__cpu_v512.name) == 0) return &tsk__cpu_v512;
    if ((features & 1) && strcmp(name, tsk__cpu_v256.name) == 0) return &tsk__cpu_v256;
#elif TSK__CPU_ARM
    if ((tsk__processor_features() & 1) && strcmp(name, tsk__cpu_neon.name) == 0) return &tsk__cpu_neon;
#endif
    return strcmp(name, tsk__cpu_v128.name) == 0 ? &tsk__cpu_v128 : NULL;
}

static const tsk__cpu_kernels *tsk__cpu_kernels_select(void) {
    const tsk__cpu_kernels *kernels = tsk__cpu_kernels_by_name("avx512");
    if (!kernels) kernels = tsk__cpu_kernels_by_name("avx2");
    if (!kernels) kernels = tsk__cpu_kernels_by_name("neon");
    return kernels ? kernels : &tsk__cpu_v128;
}

/* "CPU, AVX-512, 2 threads"; "CPU, AVX-512 and AVX-512 VNNI for integers, 2 threads" */
static void tsk__cpu_describe(const tsk__cpu_kernels *kernels, const tsk__cpu_integer_kernels *integer,
                              const tsk__pool *pool, char *out, size_t size) {
    const int n = pool ? pool->n_threads : 1;
    snprintf(out, size, "CPU, %s%s%s%s, %d thread%s", kernels->description, integer ? " and " : "",
             integer ? integer->description : "", integer ? " for integers" : "", n, n == 1 ? "" : "s");
}

/* Some weight can be multiplied in integers. */
static int tsk__cpu_has_integers(const tsk__cpu_model *model) {
    const size_t count = tsk__family_count(model->config);
    size_t i;
    for (i = 0; i < count; i++)
        if (tsk__cpu_integer_group(&model->weights[i])) return 1;
    return 0;
}

/* ---- scratch memory */

/* One row's share of the softmax in a chunk of the vocabulary. */
typedef struct tsk__cpu_best {
    double score;                  /* the best id's logit, with noise if there is any */
    int32_t id;                    /* -1: none (only the mask, or all NaN) */
    float logit;                   /* without noise */
    float max, sum;                /* of all logits; of exp(logit - max) */
    float moment;                  /* the sum of exp(logit - max) * (logit - max) */
} tsk__cpu_best;

typedef struct tsk__cpu_scratch {
    float *norm;                   /* [n, d_model] */
    float *k, *v;                  /* [n, n_kv_heads * head_dim] */
    float *wide;                   /* [n, max(d_model, mlp_hidden_size)] up_proj's output; a projection before the
                                      residual */
    char *codes;                   /* [n, widest input] of up to 2 bytes: a product's quantised input, */
    float *code_scales;            /* and [n, widest / 32] its groups', where there are integer kernels */
    int32_t *code_sums;
    int32_t *spans;                /* [n + 1] */
    int32_t *rotated;              /* [n] the position that `rotations` has of a row, -1 for none yet */
    float *rotations;              /* [n, head_dim] head_dim / 2 cosines of a position's angles, then their sines */
    tsk__cpu_best *best;           /* [chunks of the vocabulary, min(n, TSK__CPU_HEAD_ROWS)] */
} tsk__cpu_scratch;

/* The next `count` elements of the block at `memory`, which may be NULL when only *used is wanted. */
static void *tsk__cpu_take(void *memory, size_t *used, size_t count, size_t size) {
    void *block = memory ? (char *)memory + *used : NULL;
    *used += (count * size + 63) / 64 * 64;
    return block;
}

/* Lays the buffers for passes of up to n rows into `memory` (best aligned to 64 bytes) and returns the bytes they take;
   with memory NULL it only does the latter. is_integer: there are integer kernels to be used. */
static size_t tsk__cpu_scratch_init(tsk__cpu_scratch *scratch, const tsk_model_config *config, int is_integer,
                                    int32_t n, void *memory) {
    const size_t rows = (size_t)n, kv = (size_t)config->n_kv_heads * (size_t)config->head_dim;
    const size_t d = (size_t)config->d_model, mlp = (size_t)config->mlp_hidden_size;
    const size_t chunks = ((size_t)config->embedding_size + TSK__CPU_CHUNK - 1) / TSK__CPU_CHUNK;
    const size_t q = (size_t)config->n_heads * (size_t)config->head_dim, wider = d > mlp ? d : mlp;
    const size_t widest = !is_integer ? 0 : q > wider ? q : wider;
    size_t used = 0;
    int32_t i;
    scratch->norm = (float *)tsk__cpu_take(memory, &used, rows * d, sizeof(float));
    scratch->k = (float *)tsk__cpu_take(memory, &used, rows * kv, sizeof(float));
    scratch->v = (float *)tsk__cpu_take(memory, &used, rows * kv, sizeof(float));
    scratch->wide = (float *)tsk__cpu_take(memory, &used, rows * (d > mlp ? d : mlp), sizeof(float));
    scratch->codes = (char *)tsk__cpu_take(memory, &used, rows * widest, 2);
    scratch->code_scales = (float *)tsk__cpu_take(memory, &used, rows * (widest / 32), sizeof(float));
    scratch->code_sums = (int32_t *)tsk__cpu_take(memory, &used, rows * (widest / 32), sizeof(int32_t));
    scratch->spans = (int32_t *)tsk__cpu_take(memory, &used, rows + 1, sizeof(int32_t));
    scratch->rotated = (int32_t *)tsk__cpu_take(memory, &used, rows, sizeof(int32_t));
    scratch->rotations = (float *)tsk__cpu_take(memory, &used, rows * (size_t)config->head_dim, sizeof(float));
    scratch->best =
        (tsk__cpu_best *)tsk__cpu_take(memory, &used, chunks * (rows < TSK__CPU_HEAD_ROWS ? rows : TSK__CPU_HEAD_ROWS),
                                       sizeof(tsk__cpu_best));
    for (i = 0; memory && i < n; i++) scratch->rotated[i] = -1;
    return used;
}

/* ---- work for the pool */

/* Splits rows into slices each worth a thread's while. Row functions treat every row alike, so slices change
   nothing. */
typedef void (*tsk__cpu_row_function)(const void *context, int32_t first, int32_t last);
typedef struct tsk__cpu_slices {
    tsk__cpu_row_function run;
    const void *context;
    int32_t n, count;
} tsk__cpu_slices;

#define TSK__CPU_SLICE 16384  /* elements in a slice of elementwise work: a few microseconds */

static void tsk__cpu_slice(void *context, int task) {
    const tsk__cpu_slices *slices = (const tsk__cpu_slices *)context;
    slices->run(slices->context, (int32_t)((int64_t)slices->n * task / slices->count),
                (int32_t)((int64_t)slices->n * (task + 1) / slices->count));
}

static void tsk__cpu_rows(const tsk__cpu_model *model, int32_t n, size_t elements_per_row, tsk__cpu_row_function run,
                          const void *context) {
    const size_t wanted = (size_t)n * elements_per_row / TSK__CPU_SLICE;
    tsk__cpu_slices slices;
    slices.run = run;
    slices.context = context;
    slices.n = n;
    slices.count = wanted < 1 ? 1 : wanted > (size_t)n ? n : wanted > 1024 ? 1024 : (int32_t)wanted;
    tsk__parallel(model->pool, slices.count, tsk__cpu_slice, &slices);
}

/* `work` in multiplications. A section on no pool runs on the calling thread. */
static void tsk__cpu_tasks(const tsk__cpu_model *model, int32_t n, uint64_t work, tsk__task run, void *context) {
    tsk__parallel(work < TSK__CPU_SERIAL ? NULL : model->pool, n, run, context);
}

/* ---- the core: rows times a panel, and a whole matrix as panels */

/* y[n][width] = or += x[n][kn] * panel[kn][width]. Rows are shared out evenly between tiles, so none is thin. */
static void tsk__cpu_multiply(const tsk__cpu_kernels *kernels, int32_t n, const float *x, size_t ldx, int32_t kn,
                              const float *panel, size_t ldp, float *y, size_t ldy, int32_t width, int add,
                              tsk__cpu_prefetch *prefetch) {
    const int32_t tiles = (n + kernels->tile_rows - 1) / kernels->tile_rows;
    float edge[TSK__CPU_MAX_TILE][TSK__CPU_WIDTH] TSK__CPU_ALIGNED;
    int32_t tile, i, o;
    for (tile = 0; tile < tiles; tile++) {
        const int32_t first = (int32_t)((int64_t)n * tile / tiles),
                      rows = (int32_t)((int64_t)n * (tile + 1) / tiles) - first;
        float *to = y + (size_t)first * ldy;
        if (width == TSK__CPU_WIDTH) {
            kernels->tile(rows, x + (size_t)first * ldx, ldx, kn, panel, ldp, to, ldy, add, prefetch);
            continue;
        }
        kernels->tile(rows, x + (size_t)first * ldx, ldx, kn, panel, ldp, edge[0], TSK__CPU_WIDTH, 0, prefetch);
        for (i = 0; i < rows; i++, to += ldy)
            for (o = 0; o < width; o++) to[o] = add ? to[o] + edge[i][o] : edge[i][o];
    }
}

static int32_t tsk__cpu_panels(const tsk__weight *w) { return (w->rows + TSK__CPU_WIDTH - 1) / TSK__CPU_WIDTH; }
static int32_t tsk__cpu_width(const tsk__weight *w, int32_t first) {
    return w->rows - first < TSK__CPU_WIDTH ? w->rows - first : TSK__CPU_WIDTH;
}

/* Outputs first .. first+31 of a matrix. */
typedef struct tsk__cpu_part {
    const tsk__weight *w;          /* NULL: none */
    int32_t first;
} tsk__cpu_part;

static tsk__cpu_part tsk__cpu_part_of(const tsk__weight *w, int32_t first) {
    tsk__cpu_part part;
    part.w = w;
    part.first = first;
    return part;
}

static tsk__cpu_prefetch tsk__cpu_prefetch_of(tsk__cpu_part part, int32_t k) {
    tsk__cpu_prefetch prefetch;
    size_t bits, depth;
    int32_t most;
    memset(&prefetch, 0, sizeof prefetch);
    if (!part.w || part.w->rows - part.first < TSK__CPU_WIDTH) return prefetch;
    bits = part.w->bits ? (size_t)part.w->bits : 8 * tsk_dtype_size(part.w->dtype);
    most = part.w->bits ? TSK__CPU_INTEGER_DEPTH : TSK__CPU_DEPTH;
    depth = (size_t)(part.w->cols - k < most ? part.w->cols - k : most);
    prefetch.stride = tsk__weight_stride(part.w);
    prefetch.base = (const char *)part.w->data + (size_t)part.first * prefetch.stride + (size_t)k * bits / 8;
    prefetch.lines = (int32_t)((depth * bits / 8 + 63) / 64) * TSK__CPU_WIDTH;
    return prefetch;
}

/* The same as `pack` for codes: their values. */
static void tsk__cpu_pack_codes(const tsk__weight *w, int32_t first, int32_t k0, int32_t kn, float *panel) {
    float row[TSK__CPU_DEPTH];
    int32_t o, k;
    for (o = 0; o < TSK__CPU_WIDTH; o++) {
        tsk__weight_values(w, first + o < w->rows ? first + o : w->rows - 1, k0, kn, row);
        for (k = 0; k < kn; k++) panel[(size_t)k * TSK__CPU_WIDTH + o] = row[k];
    }
}

/* The input of a product: its values, and their codes where a weight is to be multiplied in integers. */
typedef struct tsk__cpu_input {
    const tsk__cpu_kernels *kernels;
    const tsk__cpu_integer_kernels *integer; /* NULL: there are no codes */
    const float *x;                /* [n, cols] */
    tsk__cpu_codes codes;
} tsk__cpu_input;

typedef struct tsk__cpu_quantising {
    tsk__cpu_input *input;
    size_t cols;
} tsk__cpu_quantising;

static void tsk__cpu_quantise_rows(const void *context, int32_t first, int32_t last) {
    const tsk__cpu_quantising *q = (const tsk__cpu_quantising *)context;
    const tsk__cpu_input *in = q->input;
    const size_t groups = q->cols / (size_t)in->codes.group;
    int32_t i;
    for (i = first; i < last; i++)
        in->integer->quantise(in->x + (size_t)i * q->cols, (int32_t)q->cols, in->codes.group,
                              (char *)(uintptr_t)in->codes.codes + (size_t)i * q->cols * (size_t)in->integer->wide,
                              (float *)(uintptr_t)in->codes.scales + (size_t)i * groups,
                              (int32_t *)(uintptr_t)in->codes.sums + (size_t)i * groups);
}

/* x[n, cols of the weights] as input of these matrices, which have as many columns. */
static tsk__cpu_input tsk__cpu_input_of(const tsk__cpu_model *model, int32_t n, const float *x,
                                        const tsk__weight *const *w, int32_t count, tsk__cpu_scratch *scratch) {
    tsk__cpu_input in;
    tsk__cpu_quantising q;
    int32_t i;
    memset(&in, 0, sizeof in);
    in.kernels = model->kernels;
    in.x = x;
    for (i = 0; i < count && model->integer; i++) {
        const int32_t group = tsk__cpu_integer_group(w[i]);
        if (group && (!in.codes.group || group < in.codes.group)) in.codes.group = group;
    }
    if (!in.codes.group) return in;
    in.integer = model->integer;
    in.codes.codes = scratch->codes;
    in.codes.scales = scratch->code_scales;
    in.codes.sums = scratch->code_sums;
    in.codes.cols = w[0]->cols;
    q.input = &in;
    q.cols = (size_t)w[0]->cols;
    tsk__cpu_rows(model, n, 2 * q.cols, tsk__cpu_quantise_rows, &q);
    return in;
}

/* The same from row `row` on. */
static tsk__cpu_input tsk__cpu_input_from(const tsk__cpu_input *input, int32_t row, int32_t cols) {
    tsk__cpu_input in = *input;
    in.x += (size_t)row * (size_t)cols;
    if (!in.integer) return in;
    in.codes.codes += (size_t)row * (size_t)cols * (size_t)in.integer->wide;
    in.codes.scales += (size_t)row * (size_t)(cols / in.codes.group);
    in.codes.sums += (size_t)row * (size_t)(cols / in.codes.group);
    return in;
}

/* The sum of one panel's columns k .. k+kn-1 goes to y, as in tsk__cpu_multiply. */
static void tsk__cpu_integer_multiply(const tsk__cpu_input *in, int32_t n, int32_t k, int32_t kn,
                                      const tsk__cpu_integer_panel *panel, float *y, size_t ldy, int32_t width,
                                      int add, tsk__cpu_prefetch *prefetch) {
    const tsk__cpu_integer_kernels *kernels = in->integer;
    const int32_t tiles = (n + kernels->tile_rows - 1) / kernels->tile_rows;
    float edge[TSK__CPU_MAX_TILE][TSK__CPU_WIDTH] TSK__CPU_ALIGNED;
    int32_t tile, i, o;
    for (tile = 0; tile < tiles; tile++) {
        const int32_t first = (int32_t)((int64_t)n * tile / tiles),
                      rows = (int32_t)((int64_t)n * (tile + 1) / tiles) - first;
        float *to = y + (size_t)first * ldy;
        if (width == TSK__CPU_WIDTH) {
            kernels->tile(rows, &in->codes, first, k, kn, panel, to, ldy, add, prefetch);
            continue;
        }
        for (i = 0; add && i < rows; i++) memcpy(edge[i], to + (size_t)i * ldy, (size_t)width * sizeof *to);
        for (i = 0; add && i < rows; i++)
            for (o = width; o < TSK__CPU_WIDTH; o++) edge[i][o] = 0;
        kernels->tile(rows, &in->codes, first, k, kn, panel, edge[0], TSK__CPU_WIDTH, add, prefetch);
        for (i = 0; i < rows; i++) memcpy(to + (size_t)i * ldy, edge[i], (size_t)width * sizeof *to);
    }
}

static void tsk__cpu_integer_panels(tsk__cpu_part part, tsk__cpu_part next, int32_t n, const tsk__cpu_input *in,
                                    float *y, size_t ldy) {
    tsk__cpu_integer_panel panel;
    const tsk__weight *w = part.w;
    int32_t k;
    for (k = 0; k < w->cols; k += TSK__CPU_INTEGER_DEPTH) {
        const int last = w->cols - k <= TSK__CPU_INTEGER_DEPTH;
        const int32_t kn = last ? w->cols - k : TSK__CPU_INTEGER_DEPTH;
        tsk__cpu_prefetch prefetch =
            last ? tsk__cpu_prefetch_of(next, 0) : tsk__cpu_prefetch_of(part, k + TSK__CPU_INTEGER_DEPTH);
        in->integer->pack(w, part.first, k, kn, panel.words);
        tsk__cpu_integer_scales(w, part.first, k, kn, in->codes.group, &panel);
        tsk__cpu_integer_multiply(in, n, k, kn, &panel, y, ldy, tsk__cpu_width(w, part.first), k > 0, &prefetch);
    }
}

/* y[n, ldy] = x[n, w->cols] * W^T, in f32, for one part. */
static void tsk__cpu_float_panels(tsk__cpu_part part, tsk__cpu_part next, int32_t n, const tsk__cpu_input *in,
                                  float *y, size_t ldy) {
    float panel[TSK__CPU_DEPTH * TSK__CPU_WIDTH] TSK__CPU_ALIGNED;
    const tsk__weight *w = part.w;
    const int32_t width = tsk__cpu_width(w, part.first);
    int32_t k;
    for (k = 0; k < w->cols; k += TSK__CPU_DEPTH) {
        const int last = w->cols - k <= TSK__CPU_DEPTH;
        const int32_t kn = last ? w->cols - k : TSK__CPU_DEPTH;
        tsk__cpu_prefetch prefetch =
            last ? tsk__cpu_prefetch_of(next, 0) : tsk__cpu_prefetch_of(part, k + TSK__CPU_DEPTH);
        if (w->bits) tsk__cpu_pack_codes(w, part.first, k, kn, panel);
        else in->kernels->pack(w, part.first, k, kn, panel);
        tsk__cpu_multiply(in->kernels, n, in->x + k, (size_t)w->cols, kn, panel, TSK__CPU_WIDTH, y, ldy, width, k > 0,
                          &prefetch);
    }
}

/* y[n, ldy] = x[n, w->cols] * W^T + bias for one part; `y` points at its first output. `next` is what the caller does
   after it. */
static void tsk__cpu_panel(tsk__cpu_part part, tsk__cpu_part next, int32_t n, const tsk__cpu_input *in, float *y,
                           size_t ldy) {
    const tsk__weight *w = part.w;
    int32_t i;
    if (in->integer && tsk__cpu_integer_group(w)) tsk__cpu_integer_panels(part, next, n, in, y, ldy);
    else tsk__cpu_float_panels(part, next, n, in, y, ldy);
    if (!w->bias) return;
    for (i = 0; i < n; i++, y += ldy) in->kernels->add(y, w->bias + part.first, tsk__cpu_width(w, part.first));
}

/* Panels are handed out in runs, so that a task's next panel is known: as many runs as threads, or a few times that. */
static int32_t tsk__cpu_runs(const tsk__cpu_model *model, int32_t panels) {
    const int32_t threads = model->pool ? model->pool->n_threads : 1, each = panels / (4 * threads);
    const int32_t runs = threads * (each < 1 ? 1 : each > 8 ? 8 : each);
    return runs < panels ? runs : panels;
}

/* Up to three matrices on the same input in one section; the sum goes onto `residual` where there is one. */
typedef struct tsk__cpu_product {
    int32_t n, count, panels, runs;
    const float *x;                /* [n, cols] */
    tsk__cpu_input input;          /* the same */
    const tsk__weight *w[3];
    float *y[3];                   /* [n, rows] */
    float *residual;               /* [n, rows of w[0]] or NULL */
} tsk__cpu_product;

/* The panel'th of all the matrices' panels; *y gets its output. */
static tsk__cpu_part tsk__cpu_product_part(const tsk__cpu_product *p, int32_t panel, float **y) {
    int32_t which = 0;
    while (which < p->count - 1 && panel >= tsk__cpu_panels(p->w[which])) panel -= tsk__cpu_panels(p->w[which++]);
    *y = p->y[which] + panel * TSK__CPU_WIDTH;
    return tsk__cpu_part_of(p->w[which], panel * TSK__CPU_WIDTH);
}

static void tsk__cpu_product_add(const tsk__cpu_product *p, tsk__cpu_part part, const float *y) {
    const size_t ld = (size_t)part.w->rows;
    const int32_t width = tsk__cpu_width(part.w, part.first);
    float *residual = p->residual + part.first;
    int32_t i;
    for (i = 0; i < p->n; i++, y += ld, residual += ld) p->input.kernels->add(residual, y, width);
}

static void tsk__cpu_product_task(void *context, int task) {
    const tsk__cpu_product *p = (const tsk__cpu_product *)context;
    const int32_t end = (int32_t)((int64_t)p->panels * (task + 1) / p->runs);
    int32_t panel = (int32_t)((int64_t)p->panels * task / p->runs);
    float *y, *next_y = NULL;
    tsk__cpu_part part = tsk__cpu_product_part(p, panel, &y), next;
    for (; panel < end; panel++, part = next, y = next_y) {
        next = panel + 1 < end ? tsk__cpu_product_part(p, panel + 1, &next_y) : tsk__cpu_part_of(NULL, 0);
        tsk__cpu_panel(part, next, p->n, &p->input, y, (size_t)part.w->rows);
        if (p->residual) tsk__cpu_product_add(p, part, y);
    }
}

static uint64_t tsk__cpu_work(int32_t n, const tsk__weight *w) {
    return (uint64_t)n * (uint64_t)w->rows * (uint64_t)w->cols;
}

static void tsk__cpu_product_run(const tsk__cpu_model *model, tsk__cpu_product *product, tsk__cpu_scratch *scratch) {
    int32_t i;
    uint64_t work = 0;
    product->input = tsk__cpu_input_of(model, product->n, product->x, product->w, product->count, scratch);
    product->panels = 0;
    for (i = 0; i < product->count; i++) {
        product->panels += tsk__cpu_panels(product->w[i]);
        work += tsk__cpu_work(product->n, product->w[i]);
    }
    product->runs = tsk__cpu_runs(model, product->panels);
    tsk__cpu_tasks(model, product->runs, work, tsk__cpu_product_task, product);
}

static void tsk__cpu_capture(void *captured, const float *from, size_t count) {
    if (captured) memcpy(captured, from, count * sizeof *from);
}

/* y += x W^T + bias, by way of scratch->wide */
static void tsk__cpu_add_product(const tsk__cpu_model *model, const tsk__weight *w, int32_t n, const float *x, float *y,
                                 tsk__cpu_scratch *scratch, const tsk__captures *captures) {
    tsk__cpu_product product;
    memset(&product, 0, sizeof product);
    product.n = n;
    product.count = 1;
    product.x = x;
    product.w[0] = w;
    product.y[0] = scratch->wide;
    product.residual = y;
    tsk__cpu_product_run(model, &product, scratch);
    if (captures) tsk__cpu_capture(captures->projection, scratch->wide, (size_t)n * (size_t)w->rows);
}

/* ---- rows: copies, norms, cosines */

typedef struct tsk__cpu_copy {
    size_t width;
    const float *src;
    const int32_t *from, *to;      /* row numbers; NULL: 0, 1, 2, ... */
    float *dst;
} tsk__cpu_copy;

static void tsk__cpu_copy_rows(const void *context, int32_t first, int32_t last) {
    const tsk__cpu_copy *c = (const tsk__cpu_copy *)context;
    int32_t i;
    for (i = first; i < last; i++)
        memcpy(c->dst + (size_t)(c->to ? c->to[i] : i) * c->width,
               c->src + (size_t)(c->from ? c->from[i] : i) * c->width, c->width * sizeof(float));
}

static void tsk__cpu_copy_run(const tsk__cpu_model *model, int32_t n, int32_t width, const float *src,
                              const int32_t *from, const int32_t *to, float *dst) {
    tsk__cpu_copy copy;
    copy.width = (size_t)width;
    copy.src = src;
    copy.from = from;
    copy.to = to;
    copy.dst = dst;
    tsk__cpu_rows(model, n, copy.width, tsk__cpu_copy_rows, &copy);
}

/* dst[i] = src[index[i]], rows of `width` */
static void tsk__cpu_gather(const tsk__cpu_model *model, int32_t n, int32_t width, const float *src,
                            const int32_t *index, float *dst) {
    tsk__cpu_copy_run(model, n, width, src, index, NULL, dst);
}

/* dst[index[i]] = src[i]; no index twice */
static void tsk__cpu_scatter(const tsk__cpu_model *model, int32_t n, int32_t width, const float *src,
                             const int32_t *index, float *dst) {
    tsk__cpu_copy_run(model, n, width, src, NULL, index, dst);
}

typedef struct tsk__cpu_lookup {
    const tsk__weight *table;
    const int32_t *ids;            /* [n] */
    float *out;                    /* [n, table->cols] */
} tsk__cpu_lookup;

static void tsk__cpu_lookup_rows(const void *context, int32_t first, int32_t last) {
    const tsk__cpu_lookup *c = (const tsk__cpu_lookup *)context;
    const size_t d = (size_t)c->table->cols;
    int32_t i;
    for (i = first; i < last; i++) {
        tsk__weight_values(c->table, c->ids[i], 0, (int32_t)d, c->out + (size_t)i * d);
    }
}

/* x[n, d_model] */
static void tsk__cpu_embed(const tsk__cpu_model *model, const tsk__rows *rows, float *x) {
    tsk__cpu_lookup lookup;
    lookup.table = tsk__cpu_weight(model, -1, TSK__PART_EMBEDDING);
    lookup.ids = rows->tokens;
    lookup.out = x;
    tsk__cpu_rows(model, rows->n, (size_t)lookup.table->cols, tsk__cpu_lookup_rows, &lookup);
}

typedef struct tsk__cpu_norm {
    const tsk__cpu_model *model;
    const float *weight, *x;       /* [d_model], [n, d_model] */
    float *out;                    /* [n, d_model] */
} tsk__cpu_norm;

static void tsk__cpu_norm_rows(const void *context, int32_t first, int32_t last) {
    const tsk__cpu_norm *c = (const tsk__cpu_norm *)context;
    const int32_t d = c->model->config->d_model;
    int32_t i;
    for (i = first; i < last; i++) {
        const float *x = c->x + (size_t)i * (size_t)d;
        const double mean = (double)c->model->kernels->dot(x, x, d) / d;
        const float scale = (float)(1.0 / sqrt(mean + (double)c->model->config->rms_norm_eps));
        c->model->kernels->scale(x, scale, c->weight, c->out + (size_t)i * (size_t)d, d);
    }
}

static void tsk__cpu_norm_run(const tsk__cpu_model *model, int32_t n, const float *weight, const float *x, float *out,
                              const tsk__captures *captures) {
    const size_t d = (size_t)model->config->d_model;
    tsk__cpu_norm norm;
    norm.model = model;
    norm.weight = weight;
    norm.x = x;
    norm.out = out;
    tsk__cpu_rows(model, n, 2 * d, tsk__cpu_norm_rows, &norm);
    if (captures) tsk__cpu_capture(captures->norm, out, (size_t)n * d);
}

/* out[n, d_model]; may be x itself */
static void tsk__cpu_final_norm(const tsk__cpu_model *model, int32_t n, const float *x, float *out) {
    tsk__cpu_norm_run(model, n, tsk__cpu_norm_weight(model, -1, TSK__PART_FINAL_NORM), x, out, NULL);
}

typedef struct tsk__cpu_cosines {
    const tsk__cpu_model *model;
    const float *a, *b;            /* [n, d_model] */
    float *out;                    /* [n] */
} tsk__cpu_cosines;

static void tsk__cpu_cosine_rows(const void *context, int32_t first, int32_t last) {
    const tsk__cpu_cosines *c = (const tsk__cpu_cosines *)context;
    const tsk__cpu_kernels *kernels = c->model->kernels;
    const int32_t d = c->model->config->d_model;
    int32_t i;
    for (i = first; i < last; i++) {
        const float *a = c->a + (size_t)i * (size_t)d, *b = c->b + (size_t)i * (size_t)d;
        const double norms = sqrt((double)kernels->dot(a, a, d)) * sqrt((double)kernels->dot(b, b, d));
        const double cosine = (double)kernels->dot(a, b, d) / (norms > 1e-8 ? norms : 1e-8);
        c->out[i] = cosine > 1.0 ? 1.0f : (float)cosine;
    }
}

/* out[n] = min(1, cos(a[i], b[i])); 0 with a zero vector */
static void tsk__cpu_cosine(const tsk__cpu_model *model, int32_t n, const float *a, const float *b, float *out) {
    tsk__cpu_cosines cosines;
    cosines.model = model;
    cosines.a = a;
    cosines.b = b;
    cosines.out = out;
    tsk__cpu_rows(model, n, 3 * (size_t)model->config->d_model, tsk__cpu_cosine_rows, &cosines);
}

/* ---- rotary embedding and cache rows */

/* rotations[head_dim] of a position. */
static void tsk__cpu_rope_rotation(const tsk__cpu_model *model, int32_t position, float *rotations) {
    const int32_t half = model->config->head_dim / 2;
    int32_t i;
    for (i = 0; i < half; i++) {
        const float angle = (float)position * model->rope_frequencies[i];
        rotations[i] = (float)cos((double)angle);
        rotations[half + i] = (float)sin((double)angle);
    }
}

/* to[head_dim] = from[head_dim] with pairs (i, i + half) rotated; to may be from. */
static void tsk__cpu_rope_head(const float *from, const float *cosines, const float *sines, int32_t half, float *to) {
    int32_t i;
    for (i = 0; i < half; i++) {
        const float a = from[i], b = from[half + i];
        to[i] = a * cosines[i] - b * sines[i];
        to[half + i] = b * cosines[i] + a * sines[i];
    }
}

/* The first cached position of a layer's K or V head: [length, head_dim]. */
static float *tsk__cpu_cached(const tsk_model_config *config, const tsk__kv *kv, const void *rows, int32_t layer,
                              int32_t head) {
    return (float *)(uintptr_t)rows + ((size_t)layer * (size_t)config->n_kv_heads + (size_t)head) *
                                          (size_t)kv->capacity * (size_t)config->head_dim;
}

typedef struct tsk__cpu_rope {
    const tsk__cpu_model *model;
    int32_t layer;
    const tsk__rows *rows;
    const float *q_norm, *k_norm;  /* [head_dim] or NULL */
    float *q;                      /* [n, n_heads * head_dim], normed and rotated in place */
    float *k;                      /* [n, n_kv_heads * head_dim], normed in place, then to the cache */
    const float *v;                /* likewise, as it is */
    const tsk__captures *captures; /* or NULL */
    int32_t *rotated;              /* as in tsk__cpu_scratch */
    float *rotations;
} tsk__cpu_rope;

/* The cosines and sines of row i's position. They are computed in the first layer and kept for the other layers, and
   for a next pass over the same rows. */
static const float *tsk__cpu_rope_rotations(const tsk__cpu_rope *c, int32_t i) {
    float *rotations = c->rotations + (size_t)i * (size_t)c->model->config->head_dim;
    if (c->rotated[i] != c->rows->positions[i]) tsk__cpu_rope_rotation(c->model, c->rows->positions[i], rotations);
    c->rotated[i] = c->rows->positions[i];
    return rotations;
}

/* Each of a row's heads [n_heads, head_dim], and a copy of them to row i of `captured` where that is wanted. */
static void tsk__cpu_norm_heads(const tsk__cpu_model *model, const float *weight, float *x, int32_t n_heads, int32_t i,
                                void *captured) {
    const int32_t hd = model->config->head_dim;
    int32_t head;
    if (!weight) return;
    for (head = 0; head < n_heads; head++) {
        float *at = x + (size_t)head * (size_t)hd;
        const double mean = (double)model->kernels->dot(at, at, hd) / hd;
        model->kernels->scale(at, (float)(1.0 / sqrt(mean + (double)model->config->rms_norm_eps)), weight, at, hd);
    }
    if (captured)
        memcpy((float *)captured + (size_t)i * (size_t)n_heads * (size_t)hd, x,
               (size_t)n_heads * (size_t)hd * sizeof *x);
}

static void tsk__cpu_rope_rows(const void *context, int32_t first, int32_t last) {
    const tsk__cpu_rope *c = (const tsk__cpu_rope *)context;
    const tsk_model_config *config = c->model->config;
    const size_t hd = (size_t)config->head_dim, half = hd / 2;
    int32_t i, head;
    for (i = first; i < last; i++) {
        const size_t position = (size_t)c->rows->positions[i];
        const tsk__kv *kv = &c->rows->caches[c->rows->requests[i]];
        const float *cosines = tsk__cpu_rope_rotations(c, i), *sines = cosines + half;
        float *q = c->q + (size_t)i * (size_t)config->n_heads * hd;
        tsk__cpu_norm_heads(c->model, c->q_norm, q, config->n_heads, i, c->captures ? c->captures->q_norm : NULL);
        tsk__cpu_norm_heads(c->model, c->k_norm, c->k + (size_t)i * (size_t)config->n_kv_heads * hd,
                            config->n_kv_heads, i, c->captures ? c->captures->k_norm : NULL);
        for (head = 0; head < config->n_heads; head++, q += hd) tsk__cpu_rope_head(q, cosines, sines, (int32_t)half, q);
        for (head = 0; head < config->n_kv_heads; head++) {
            const size_t at = ((size_t)i * (size_t)config->n_kv_heads + (size_t)head) * hd;
            float *k = tsk__cpu_cached(config, kv, kv->k, c->layer, head) + position * hd;
            tsk__cpu_rope_head(c->k + at, cosines, sines, (int32_t)half, k);
            memcpy(tsk__cpu_cached(config, kv, kv->v, c->layer, head) + position * hd, c->v + at, hd * sizeof(float));
            if (c->captures && c->captures->k_rope)
                memcpy((float *)c->captures->k_rope + at, k, hd * sizeof(float));
        }
    }
}

/* q_out[n, n_heads * head_dim] after RoPE; K after RoPE and V go to the caches. */
static void tsk__cpu_qkv(const tsk__cpu_model *model, int32_t layer, const tsk__rows *rows, const float *x,
                         float *q_out, tsk__cpu_scratch *scratch, const tsk__captures *captures) {
    const tsk__weight *wq = tsk__cpu_weight(model, layer, TSK__PART_Q);
    const tsk__weight *wk = tsk__cpu_weight(model, layer, TSK__PART_K);
    const size_t n = (size_t)rows->n, q_width = (size_t)wq->rows, kv_width = (size_t)wk->rows;
    tsk__cpu_product product;
    tsk__cpu_rope rope;
    tsk__cpu_norm_run(model, rows->n, tsk__cpu_norm_weight(model, layer, TSK__PART_ATTN_NORM), x, scratch->norm,
                      captures);
    memset(&product, 0, sizeof product);
    product.n = rows->n;
    product.count = 3;
    product.x = scratch->norm;
    product.w[0] = wq;
    product.w[1] = wk;
    product.w[2] = tsk__cpu_weight(model, layer, TSK__PART_V);
    product.y[0] = q_out;
    product.y[1] = scratch->k;
    product.y[2] = scratch->v;
    tsk__cpu_product_run(model, &product, scratch);
    if (captures) {
        tsk__cpu_capture(captures->q, q_out, n * q_width);
        tsk__cpu_capture(captures->k, scratch->k, n * kv_width);
        tsk__cpu_capture(captures->v, scratch->v, n * kv_width);
    }
    rope.model = model;
    rope.layer = layer;
    rope.rows = rows;
    rope.q_norm = tsk__cpu_norm_weight(model, layer, TSK__PART_Q_NORM);
    rope.k_norm = tsk__cpu_norm_weight(model, layer, TSK__PART_K_NORM);
    rope.q = q_out;
    rope.k = scratch->k;
    rope.v = scratch->v;
    rope.captures = captures;
    rope.rotated = scratch->rotated;
    rope.rotations = scratch->rotations;
    tsk__cpu_rows(model, rows->n, q_width + 2 * kv_width, tsk__cpu_rope_rows, &rope);
}

/* ---- attention
   Blocks of TSK__CPU_DEPTH keys, counted from position 0, with the running maximum and sum of an online softmax: what
   is added in which order depends on the length alone. The query heads that share a K/V head share its packed block. */

typedef struct tsk__cpu_attend {
    const tsk__cpu_model *model;
    int32_t layer;
    const tsk__rows *rows;
    const int32_t *spans;          /* rows spans[i] .. spans[i+1]-1 are of one request */
    const float *q;                /* [n, n_heads * head_dim] */
    float *out;                    /* [n, n_heads * head_dim] */
} tsk__cpu_attend;

/* One task's part of the above: `n` rows by `heads` query heads of one K/V head. Row (h, i) of scores is h * n + i. */
typedef struct tsk__cpu_attend_group {
    const tsk__cpu_kernels *kernels;
    int32_t n, heads, head_dim;
    size_t ld;                     /* n_heads * head_dim */
    const float *q;
    float *out;                    /* at the first row and head */
    float scores[TSK__CPU_QUERIES][TSK__CPU_DEPTH] TSK__CPU_ALIGNED;
    float panel[TSK__CPU_DEPTH * TSK__CPU_WIDTH] TSK__CPU_ALIGNED;
    float max[TSK__CPU_QUERIES], sum[TSK__CPU_QUERIES];
    tsk__cpu_prefetch prefetch;    /* none: a head's cached rows lie one after another */
} tsk__cpu_attend_group;

/* scores[.][0 .. count-1] = q k^T for keys first .. first+count-1 */
static void tsk__cpu_attend_scores(tsk__cpu_attend_group *g, const tsk__weight *keys, int32_t first, int32_t count) {
    int32_t key, k, h;
    for (key = 0; key < count; key += TSK__CPU_WIDTH)
        for (k = 0; k < g->head_dim; k += TSK__CPU_DEPTH) {
            const int32_t kn = g->head_dim - k < TSK__CPU_DEPTH ? g->head_dim - k : TSK__CPU_DEPTH;
            g->kernels->pack(keys, first + key, k, kn, g->panel);
            for (h = 0; h < g->heads; h++)  /* always the full width: the block's last keys are overwritten below */
                tsk__cpu_multiply(g->kernels, g->n, g->q + (size_t)h * (size_t)g->head_dim + k, g->ld, kn, g->panel,
                                  TSK__CPU_WIDTH, &g->scores[h * g->n][key], TSK__CPU_DEPTH, TSK__CPU_WIDTH, k > 0,
                                  &g->prefetch);
        }
}

/* Turns scores into weights against the new running maximum, to which the earlier blocks' output is rescaled. */
static void tsk__cpu_attend_softmax(tsk__cpu_attend_group *g, int32_t count, float scale, int first_block) {
    const int32_t padded = (count + 15) / 16 * 16;
    int32_t r, i;
    for (r = 0; r < g->heads * g->n; r++) {
        float *out = g->out + (size_t)(r % g->n) * g->ld + (size_t)(r / g->n) * (size_t)g->head_dim;
        float max, fade;
        for (i = count; i < padded; i++) g->scores[r][i] = -INFINITY;
        max = g->kernels->scale_max(g->scores[r], padded, scale);
        if (first_block) {
            g->max[r] = max;
            g->sum[r] = g->kernels->exp_sum(g->scores[r], padded, max);
            continue;
        }
        if (max < g->max[r]) max = g->max[r];
        fade = (float)exp((double)(g->max[r] - max));
        g->max[r] = max;
        g->sum[r] = g->sum[r] * fade + g->kernels->exp_sum(g->scores[r], padded, max);
        for (i = 0; i < g->head_dim; i++) out[i] *= fade;
    }
}

/* out += weights[.][count] * v[count, head_dim] */
static void tsk__cpu_attend_values(tsk__cpu_attend_group *g, const float *v, int32_t count, int add) {
    int32_t o, h, i;
    for (o = 0; o < g->head_dim; o += TSK__CPU_WIDTH) {
        const int32_t width = g->head_dim - o < TSK__CPU_WIDTH ? g->head_dim - o : TSK__CPU_WIDTH;
        const float *panel = v + o;
        size_t ldp = (size_t)g->head_dim;
        if (width < TSK__CPU_WIDTH) {  /* a full tile would read past the row, and past the last one past the cache */
            memset(g->panel, 0, sizeof g->panel);
            for (i = 0; i < count; i++)
                memcpy(g->panel + i * TSK__CPU_WIDTH, v + (size_t)i * (size_t)g->head_dim + o,
                       (size_t)width * sizeof *v);
            panel = g->panel;
            ldp = TSK__CPU_WIDTH;
        }
        for (h = 0; h < g->heads; h++)
            tsk__cpu_multiply(g->kernels, g->n, g->scores[h * g->n], TSK__CPU_DEPTH, count, panel, ldp,
                              g->out + (size_t)h * (size_t)g->head_dim + o, g->ld, width, add, &g->prefetch);
    }
}

static void tsk__cpu_attend_finish(tsk__cpu_attend_group *g) {
    int32_t r, i;
    for (r = 0; r < g->heads * g->n; r++) {
        float *out = g->out + (size_t)(r % g->n) * g->ld + (size_t)(r / g->n) * (size_t)g->head_dim;
        const float scale = 1.0f / g->sum[r];
        for (i = 0; i < g->head_dim; i++) out[i] *= scale;
    }
}

static void tsk__cpu_attend_group_run(tsk__cpu_attend_group *g, const tsk__weight *keys, const float *v) {
    const float scale = (float)(1.0 / sqrt((double)g->head_dim));
    int32_t first;
    for (first = 0; first < keys->rows; first += TSK__CPU_DEPTH) {
        const int32_t count = keys->rows - first < TSK__CPU_DEPTH ? keys->rows - first : TSK__CPU_DEPTH;
        tsk__cpu_attend_scores(g, keys, first, count);
        tsk__cpu_attend_softmax(g, count, scale, first == 0);
        tsk__cpu_attend_values(g, v + (size_t)first * (size_t)g->head_dim, count, first > 0);
    }
    tsk__cpu_attend_finish(g);
}

/* How many cached positions a row attends to. */
static int32_t tsk__cpu_visible(const tsk__rows *rows, int32_t row) {
    return rows->visible ? rows->visible[row] : rows->caches[rows->requests[row]].length;
}

static void tsk__cpu_attend_task(void *context, int task) {
    const tsk__cpu_attend *c = (const tsk__cpu_attend *)context;
    const tsk_model_config *config = c->model->config;
    const int32_t span = task / config->n_kv_heads, head = task % config->n_kv_heads,
                  group = config->n_heads / config->n_kv_heads;
    const int32_t row = c->spans[span];
    const tsk__kv *kv = &c->rows->caches[c->rows->requests[row]];
    const float *v = tsk__cpu_cached(config, kv, kv->v, c->layer, head);
    tsk__cpu_attend_group g;
    tsk__weight keys;
    int32_t done;
    memset(&keys, 0, sizeof keys);
    keys.data = tsk__cpu_cached(config, kv, kv->k, c->layer, head);
    keys.dtype = TSK_DTYPE_F32;
    keys.rows = tsk__cpu_visible(c->rows, row);
    keys.cols = config->head_dim;
    memset(&g.prefetch, 0, sizeof g.prefetch);
    g.kernels = c->model->kernels;
    g.n = c->spans[span + 1] - row;
    g.head_dim = config->head_dim;
    g.ld = (size_t)config->n_heads * (size_t)config->head_dim;
    for (done = 0; done < group; done += g.heads) {
        const size_t at = (size_t)row * g.ld + ((size_t)head * (size_t)group + (size_t)done) * (size_t)g.head_dim;
        g.heads = group - done < TSK__CPU_QUERIES / g.n ? group - done : TSK__CPU_QUERIES / g.n;
        g.q = c->q + at;
        g.out = c->out + at;
        tsk__cpu_attend_group_run(&g, &keys, v);
    }
}

/* Cuts the rows into spans of one request, to which equally much is visible, that fit a task; returns how many. */
static int32_t tsk__cpu_attend_spans(const tsk__rows *rows, int32_t most, int32_t *spans) {
    int32_t i, count = 0;
    for (i = 0; i < rows->n; i++)
        if (i == 0 || rows->requests[i] != rows->requests[i - 1] || i - spans[count - 1] == most ||
            tsk__cpu_visible(rows, i) != tsk__cpu_visible(rows, i - 1))
            spans[count++] = i;
    spans[count] = rows->n;
    return count;
}

/* out[n, n_heads * head_dim] = softmax(q k^T / sqrt(head_dim)) v over what each row sees. `out` must not be q. */
static void tsk__cpu_attention(const tsk__cpu_model *model, int32_t layer, const tsk__rows *rows, const float *q,
                               float *out, tsk__cpu_scratch *scratch) {
    const tsk_model_config *config = model->config;
    const int32_t group = config->n_heads / config->n_kv_heads;
    const int32_t count =
        tsk__cpu_attend_spans(rows, group < TSK__CPU_QUERIES ? TSK__CPU_QUERIES / group : 1, scratch->spans);
    uint64_t work = 0;
    tsk__cpu_attend attend;
    int32_t i;
    attend.model = model;
    attend.layer = layer;
    attend.rows = rows;
    attend.spans = scratch->spans;
    attend.q = q;
    attend.out = out;
    for (i = 0; i < rows->n; i++) work += (uint64_t)tsk__cpu_visible(rows, i);
    work *= 2 * (uint64_t)config->n_heads * (uint64_t)config->head_dim;
    tsk__cpu_tasks(model, count * config->n_kv_heads, work, tsk__cpu_attend_task, &attend);
}

/* ---- the other products of a layer */

/* x[n, d_model] += att[n, n_heads * head_dim] W^T */
static void tsk__cpu_attn_out(const tsk__cpu_model *model, int32_t layer, int32_t n, const float *att, float *x,
                              const tsk__captures *captures, tsk__cpu_scratch *scratch) {
    tsk__cpu_add_product(model, tsk__cpu_weight(model, layer, TSK__PART_ATTN_OUT), n, att, x, scratch, captures);
}

/* x[n, d_model] += h[n, mlp_hidden_size] W^T */
static void tsk__cpu_down(const tsk__cpu_model *model, int32_t layer, int32_t n, const float *h, float *x,
                          const tsk__captures *captures, tsk__cpu_scratch *scratch) {
    tsk__cpu_add_product(model, tsk__cpu_weight(model, layer, TSK__PART_FF_OUT), n, h, x, scratch, captures);
}

typedef struct tsk__cpu_gate {
    tsk__cpu_input input;          /* [n, d_model] */
    const tsk__weight *gate, *up;
    int32_t n, panels, runs;
    float *h, *wide;               /* [n, mlp_hidden_size] gate, then the product; up */
    float *captured;               /* [n, mlp_hidden_size] gate before it is overwritten, or NULL */
} tsk__cpu_gate;

static void tsk__cpu_gate_panel(const tsk__cpu_gate *c, int32_t first, tsk__cpu_part next) {
    const tsk__cpu_part gate = tsk__cpu_part_of(c->gate, first), up = tsk__cpu_part_of(c->up, first);
    const int32_t width = tsk__cpu_width(c->gate, first);
    const size_t ld = (size_t)c->gate->rows;
    size_t at = (size_t)first;
    int32_t i;
    tsk__cpu_panel(gate, up, c->n, &c->input, c->h + first, ld);
    tsk__cpu_panel(up, next, c->n, &c->input, c->wide + first, ld);
    for (i = 0; i < c->n; i++, at += ld) {
        if (c->captured) memcpy(c->captured + at, c->h + at, (size_t)width * sizeof *c->h);
        c->input.kernels->silu(c->h + at, c->wide + at, width);
    }
}

static void tsk__cpu_gate_task(void *context, int task) {
    const tsk__cpu_gate *c = (const tsk__cpu_gate *)context;
    const int32_t end = (int32_t)((int64_t)c->panels * (task + 1) / c->runs);
    int32_t panel;
    for (panel = (int32_t)((int64_t)c->panels * task / c->runs); panel < end; panel++)
        tsk__cpu_gate_panel(c, panel * TSK__CPU_WIDTH,
                            tsk__cpu_part_of(panel + 1 < end ? c->gate : NULL, (panel + 1) * TSK__CPU_WIDTH));
}

/* h[n, mlp_hidden_size] = silu(ff_proj(norm(x))) * up_proj(norm(x)) */
static void tsk__cpu_gate_up(const tsk__cpu_model *model, int32_t layer, int32_t n, const float *x, float *h,
                             tsk__cpu_scratch *scratch, const tsk__captures *captures) {
    const tsk__weight *both[2];
    tsk__cpu_gate gate;
    tsk__cpu_norm_run(model, n, tsk__cpu_norm_weight(model, layer, TSK__PART_FF_NORM), x, scratch->norm, captures);
    both[0] = gate.gate = tsk__cpu_weight(model, layer, TSK__PART_FF_PROJ);
    both[1] = gate.up = tsk__cpu_weight(model, layer, TSK__PART_UP_PROJ);
    gate.n = n;
    gate.input = tsk__cpu_input_of(model, n, scratch->norm, both, 2, scratch);
    gate.h = h;
    gate.wide = scratch->wide;
    gate.captured = captures ? (float *)captures->gate : NULL;
    gate.panels = tsk__cpu_panels(gate.gate);
    gate.runs = tsk__cpu_runs(model, gate.panels);
    tsk__cpu_tasks(model, gate.runs, 2 * tsk__cpu_work(n, gate.gate), tsk__cpu_gate_task, &gate);
    if (captures) tsk__cpu_capture(captures->up, scratch->wide, (size_t)n * (size_t)gate.up->rows);
}

/* ---- the head */

/* out[n, embedding_size] */
static void tsk__cpu_logits(const tsk__cpu_model *model, int32_t n, const float *normed, float *out,
                            tsk__cpu_scratch *scratch) {
    tsk__cpu_product product;
    memset(&product, 0, sizeof product);
    product.n = n;
    product.count = 1;
    product.x = normed;
    product.w[0] = tsk__cpu_weight(model, -1, TSK__PART_HEAD);
    product.y[0] = out;
    tsk__cpu_product_run(model, &product, scratch);
}

typedef struct tsk__cpu_head_job {
    const tsk__cpu_model *model;
    int32_t n;
    tsk__cpu_input input;          /* [n, d_model] */
    const tsk__draw *draws;        /* [n] */
    tsk__cpu_best *best;           /* [chunks, n] */
} tsk__cpu_head_job;

/* The first of the largest logits; -1 when all are -inf or NaN. */
static int32_t tsk__cpu_argmax(const float *logits, int32_t n) {
    float best = -INFINITY;
    int32_t i, id = -1;
    for (i = 0; i < n; i++)
        if (logits[i] > best) {
            best = logits[i];
            id = i;
        }
    return id;
}

/* A bound on -log(-log u) that costs no logarithm: -log u >= 1 - u, and 1 - u is the complement's word. A little more,
   so that no rounding makes it less than the noise. */
static double tsk__cpu_noise_bound(uint32_t word) {
    const uint32_t rest = ~word;
    const int bits = rest ? 31 - __builtin_clz(rest) : -1;
    return 0.693147180559945309 * (32 - bits) + 1e-6;
}

/* Gumbel-max over ids first .. first+n-1. Logarithms are only taken for ids whose bound beats the best so far, which
   are few. */
static void tsk__cpu_draw(const tsk__draw *draw, const float *logits, int32_t first, int32_t n, tsk__cpu_best *best) {
    const double temperature = (double)draw->temperature;
    uint32_t words[4];
    int32_t i;
    for (i = 0; i < n; i++) {
        const uint32_t id = (uint32_t)(first + i);
        double score;
        if (i == 0 || (id & 3) == 0) tsk__random_words(draw->seed, id >> 2, draw->position, draw->pass, 0, words);
        if (!((double)logits[i] + temperature * tsk__cpu_noise_bound(words[id & 3]) > best->score)) continue;
        score = (double)logits[i] - temperature * log(-log(tsk__random_from_word(words[id & 3])));
        if (!(score > best->score)) continue;
        best->score = score;
        best->id = (int32_t)id;
        best->logit = logits[i];
    }
}

/* One row, one chunk. `logits` [n up to a multiple of 16] is overwritten. The mask id counts in the sum only. */
static void tsk__cpu_head_row(const tsk__cpu_kernels *kernels, const tsk__draw *draw, float *logits, int32_t first,
                              int32_t n, tsk__cpu_best *best) {
    const int32_t mask = draw->mask_token_id - first, padded = (n + 15) / 16 * 16;
    const int holds_mask = mask >= 0 && mask < n;
    const float mask_logit = holds_mask ? logits[mask] : 0.0f;
    int32_t i;
    best->score = -INFINITY;
    best->id = -1;
    best->logit = -INFINITY;
    if (holds_mask) logits[mask] = -INFINITY;
    if (draw->temperature > 0.0f) tsk__cpu_draw(draw, logits, first, n, best);
    else if ((i = tsk__cpu_argmax(logits, n)) >= 0) {
        best->id = first + i;
        best->logit = logits[i];
        best->score = (double)logits[i];
    }
    if (holds_mask) logits[mask] = mask_logit;
    for (i = n; i < padded; i++) logits[i] = -INFINITY;
    best->max = kernels->scale_max(logits, padded, 1.0f);
    best->moment = kernels->exp_moment(logits, padded, best->max);
    best->sum = kernels->exp_sum(logits, padded, best->max);
}

static void tsk__cpu_head_task(void *context, int task) {
    const tsk__cpu_head_job *c = (const tsk__cpu_head_job *)context;
    const tsk__cpu_kernels *kernels = c->model->kernels;
    const tsk__weight *w = tsk__cpu_weight(c->model, -1, TSK__PART_HEAD);
    const int32_t first = task * TSK__CPU_CHUNK,
                  count = w->rows - first < TSK__CPU_CHUNK ? w->rows - first : TSK__CPU_CHUNK;
    tsk__cpu_best *best = c->best + (size_t)task * (size_t)c->n;
    float logits[TSK__CPU_QUERIES][TSK__CPU_CHUNK] TSK__CPU_ALIGNED;
    int32_t row, i, o;
    for (row = 0; row < c->n; row += TSK__CPU_QUERIES) {
        const int32_t n = c->n - row < TSK__CPU_QUERIES ? c->n - row : TSK__CPU_QUERIES;
        const tsk__cpu_input input = tsk__cpu_input_from(&c->input, row, w->cols);
        for (o = 0; o < count; o += TSK__CPU_WIDTH) {
            const tsk__cpu_part next =
                tsk__cpu_part_of(o + TSK__CPU_WIDTH < count ? w : NULL, first + o + TSK__CPU_WIDTH);
            tsk__cpu_panel(tsk__cpu_part_of(w, first + o), next, n, &input, &logits[0][o], TSK__CPU_CHUNK);
        }
        for (i = 0; i < n; i++) tsk__cpu_head_row(kernels, &c->draws[row + i], logits[i], first, count, &best[row + i]);
    }
}

/* A row's chunks, best[0], best[n], best[2n], ..., in order of ids: > keeps the lowest of equals. With z the logits
   less their maximum, the entropy is log(sum of exp(z)) - (sum of exp(z) * z) / (sum of exp(z)). */
static void tsk__cpu_head_combine(const tsk__cpu_best *best, int32_t n, int32_t chunks, int32_t mask,
                                  tsk__prediction *out) {
    const tsk__cpu_best *b, *winner = best;
    double sum = 0.0, moment = 0.0, lse;
    float max = -INFINITY;
    int32_t chunk;
    for (chunk = 0, b = best; chunk < chunks; chunk++, b += n) {
        if (b->id >= 0 && (winner->id < 0 || b->score > winner->score)) winner = b;
        if (b->max > max) max = b->max;
    }
    for (chunk = 0, b = best; chunk < chunks; chunk++, b += n) {
        const double lower = (double)b->max - (double)max, share = exp(lower);
        sum += (double)b->sum * share;
        if (share > 0.0) moment += ((double)b->moment + (double)b->sum * lower) * share;
    }
    lse = (double)max + log(sum);
    out->id = winner->id >= 0 ? winner->id : mask == 0;  /* all NaN: still an id, and not the mask */
    out->logit = winner->logit;
    out->log_sum_exp = (float)lse;
    out->confidence = (float)exp((double)winner->logit - lse);
    out->entropy = (float)(log(sum) - moment / sum);
}

/* out[n] from normed[n, d_model] and draws[n]; the logits exist a chunk at a time only. */
static void tsk__cpu_head(const tsk__cpu_model *model, int32_t n, const float *normed, const tsk__draw *draws,
                          tsk__prediction *out, tsk__cpu_scratch *scratch) {
    const tsk__weight *head = tsk__cpu_weight(model, -1, TSK__PART_HEAD);
    const int32_t chunks = (head->rows + TSK__CPU_CHUNK - 1) / TSK__CPU_CHUNK;
    int32_t row, i;
    for (row = 0; row < n; row += TSK__CPU_HEAD_ROWS) {
        tsk__cpu_head_job job;
        job.model = model;
        job.n = n - row < TSK__CPU_HEAD_ROWS ? n - row : TSK__CPU_HEAD_ROWS;
        job.input = tsk__cpu_input_of(model, job.n, normed + (size_t)row * (size_t)head->cols, &head, 1, scratch);
        job.draws = draws + row;
        job.best = scratch->best;
        tsk__cpu_tasks(model, chunks, tsk__cpu_work(job.n, head), tsk__cpu_head_task, &job);
        for (i = 0; i < job.n; i++)
            tsk__cpu_head_combine(job.best + i, job.n, chunks, draws[row + i].mask_token_id, &out[row + i]);
    }
}

#endif /* SECTION_GUARD_CPU */
