#ifndef SECTION_GUARD_QUANTISE
#define SECTION_GUARD_QUANTISE

#include "system.h"
#include "api.h"
#include "number.h"

// >>quantise ==========================================================================================================
/* From values to codes: a group of neighbouring weights of one output becomes integers of 4 or 8 bits and one scale,
   value = scale * code with code from -2^(bits-1) to 2^(bits-1) - 1 (round to nearest, symmetric). The scale is a bf16,
   as compressed-tensors stores it, and codes are chosen for the rounded one.

   The scale is the one of a few candidates that leaves the smallest sum of squared errors. Candidates: the group's
   largest magnitude over the largest code, over the lowest one's magnitude, and shrunk by the factors below, which clip
   the largest values and round all others finer; and for the codes of each of them the scale that fits these best by
   least squares, sum(x code) / sum(code^2). No data is needed.

   Codes are stored unsigned, code + 2^(bits-1), in bytes, or two in a byte, the even column in its low half: as rows of
   32-bit words, the lowest bits first (compressed-tensors' pack-quantized). */

#define TSK__QUANTISE_GROUP 128    /* columns in the largest group; others are 64 and 32 */
#define TSK__QUANTISE_WIDTH 16     /* values in a step: divides every group */

/* Columns that share a scale in a matrix of `cols` columns, at most `largest`; 0: it cannot be quantised. */
static int32_t tsk__quantise_group_size(int32_t cols, int32_t largest) {
    int32_t group;
    for (group = largest; group >= 32; group /= 2)
        if (cols % group == 0) return group;
    return 0;
}

typedef float tsk__quantise_vector __attribute__((vector_size(4 * TSK__QUANTISE_WIDTH)));
typedef int32_t tsk__quantise_mask __attribute__((vector_size(4 * TSK__QUANTISE_WIDTH)));

/* What codes for a scale leave. */
typedef struct tsk__quantise_fit {
    float error;                   /* sum of (x - scale * code)^2 */
    float products, squares;       /* sums of x * code and of code^2 */
} tsk__quantise_fit;

static float tsk__quantise_sum(const float lanes[TSK__QUANTISE_WIDTH]) {
    float sum = 0;
    int i;
    for (i = 0; i < TSK__QUANTISE_WIDTH; i++) sum += lanes[i];
    return sum;
}

/* All lanes x. (Not a scalar in a vector's sum: where scalars are computed in more bits than they have, as by the x87,
   C99 would have the vector wider, too.) */
#define TSK__QUANTISE_ALL(x) {x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}

/* The codes of x[n] for a scale, as floats, to codes[n] unless it is NULL; n a multiple of 16. Adding 1.5 * 2^23 rounds
   to an integer. */
static tsk__quantise_fit tsk__quantise_try(const float *x, int32_t n, float scale, float low, float high,
                                           float *codes) {
    const float reciprocal = 1.0f / scale;
    const tsk__quantise_vector zero = {0}, magic = TSK__QUANTISE_ALL(12582912.0f);
    const tsk__quantise_vector lows = TSK__QUANTISE_ALL(low), highs = TSK__QUANTISE_ALL(high);
    const tsk__quantise_vector scales = TSK__QUANTISE_ALL(scale), inverse = TSK__QUANTISE_ALL(reciprocal);
    tsk__quantise_vector error = zero, products = zero, squares = zero;
    tsk__quantise_fit fit;
    float lanes[TSK__QUANTISE_WIDTH];
    int32_t i;
    for (i = 0; i < n; i += TSK__QUANTISE_WIDTH) {
        tsk__quantise_vector v, code, rest;
        tsk__quantise_mask below, above;
        memcpy(&v, x + i, sizeof v);
        code = v * inverse;
        below = (tsk__quantise_mask)(code < lows), above = (tsk__quantise_mask)(code > highs);
        code = (tsk__quantise_vector)((below & (tsk__quantise_mask)lows) | (~below & (tsk__quantise_mask)code));
        code = (tsk__quantise_vector)((above & (tsk__quantise_mask)highs) | (~above & (tsk__quantise_mask)code));
        code = (code + magic) - magic;
        rest = v - code * scales;
        error += rest * rest;
        products += v * code;
        squares += code * code;
        if (codes) memcpy(codes + i, &code, sizeof code);
    }
    memcpy(lanes, &error, sizeof lanes), fit.error = tsk__quantise_sum(lanes);
    memcpy(lanes, &products, sizeof lanes), fit.products = tsk__quantise_sum(lanes);
    memcpy(lanes, &squares, sizeof lanes), fit.squares = tsk__quantise_sum(lanes);
    return fit;
}

/* The largest magnitude of x[n]; no finite number where one of them is none. */
static float tsk__quantise_largest(const float *x, int32_t n) {
    float largest = 0, any = 0;
    int32_t i;
    for (i = 0; i < n; i++) {
        const float magnitude = fabsf(x[i]);
        any += magnitude * 0.0f;
        if (magnitude > largest) largest = magnitude;
    }
    return largest + any;
}

/* The scale of x[n], as bf16, for codes of so many bits; 0 when some of x is no finite number. A group of zeroes has
   scale 1. */
static uint16_t tsk__quantise_scale(const float *x, int32_t n, int bits) {
    static const float coarse[] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f}, fine[] = {1.0f, 0.985f};
    const float *factors = bits == 4 ? coarse : fine, high = (float)((1 << (bits - 1)) - 1), low = -high - 1;
    const int n_factors = bits == 4 ? 7 : 2;
    const float largest = tsk__quantise_largest(x, n);
    float best_error = INFINITY;
    uint16_t best = 0;
    int i, refined;
    if (!(largest <= FLT_MAX)) return 0;
    if (largest < FLT_MIN * 256) return tsk__bf16_from_float(1.0f);
    for (i = 0; i <= n_factors; i++) {
        float scale = i < n_factors ? largest / high * factors[i] : largest / -low;
        for (refined = 0; refined < 2; refined++) {
            const uint16_t rounded = tsk__bf16_from_float(scale);
            const tsk__quantise_fit fit = tsk__quantise_try(x, n, tsk__float_from_bf16(rounded), low, high, NULL);
            if (fit.error < best_error) best_error = fit.error, best = rounded;
            if (!(fit.squares > 0) || !(fit.products > 0)) break;
            scale = fit.products / fit.squares;
        }
    }
    return best;
}

/* Codes of x[n] for that scale to packed[n * bits / 8]. */
static void tsk__quantise_pack(const float *x, int32_t n, int bits, uint16_t scale, uint8_t *packed) {
    const float high = (float)((1 << (bits - 1)) - 1);
    const int zero = 1 << (bits - 1);
    float codes[TSK__QUANTISE_GROUP];
    int32_t i;
    tsk__quantise_try(x, n, tsk__float_from_bf16(scale), -high - 1, high, codes);
    for (i = 0; i < n; i += bits == 4 ? 2 : 1) {
        const int code = (int)codes[i] + zero;
        *packed++ = (uint8_t)(bits == 4 ? code | ((int)codes[i + 1] + zero) << 4 : code);
    }
}

/* A row of `cols` values of type F32, F16 or BF16, at any address, to codes in packed[cols * bits / 8] and
   scales[cols / group]. A scale of 0 marks a group in which some value is no finite number, whose codes mean
   nothing. */
static void tsk__quantise_row(tsk_dtype dtype, const void *from, int32_t cols, int32_t group, int bits, uint8_t *packed,
                              uint16_t *scales) {
    const size_t size = dtype == TSK_DTYPE_F32 ? 4 : 2;
    float x[TSK__QUANTISE_GROUP];
    int32_t at;
    for (at = 0; at < cols; at += group, packed += group * bits / 8, scales++) {
        tsk__floats_from(dtype, (const char *)from + (size_t)at * size, (uint64_t)group, x);
        *scales = tsk__quantise_scale(x, group, bits);
        if (*scales) tsk__quantise_pack(x, group, bits, *scales, packed);
    }
}

#endif /* SECTION_GUARD_QUANTISE */
