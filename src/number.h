#ifndef SECTION_GUARD_NUMBER
#define SECTION_GUARD_NUMBER

#include "system.h"
#include "api.h"

// >>number ============================================================================================================
/* The floating-point formats that weights and activations are stored in, as f32 and back. */

static float tsk__float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Subnormals and infinities included. */
static float tsk__float_from_half(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, rest = half & 0x7fffu;
    float value;
    if (rest >= 0x7c00u) return tsk__float_from_bits(sign | 0x7f800000u | rest << 13);
    value = tsk__float_from_bits(rest << 13) * 5.192296858534828e33f; /* 2^112: the exponents' biases differ */
    return sign ? -value : value;
}

static float tsk__float_from_bf16(uint16_t bf16) { return tsk__float_from_bits((uint32_t)bf16 << 16); }

/* F8_E4M3: exponents to 8, no infinities; NaN where all seven bits are set. */
static float tsk__float_from_e4m3(uint8_t bits) {
    const int exponent = bits >> 3 & 15, mantissa = bits & 7;
    float value;
    if ((bits & 0x7f) == 0x7f) return NAN;
    value = exponent ? tsk__float_from_bits((uint32_t)(exponent + 120) << 23 | (uint32_t)mantissa << 20)
                     : (float)mantissa * 0.001953125f;
    return bits & 0x80 ? -value : value;
}

/* To the nearest, ties to even; no NaN. */
static uint16_t tsk__bf16_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* to[count] from as many values of type F32, F16 or BF16 at any address, which may be the last bytes of `to` itself. */
static void tsk__floats_from(tsk_dtype dtype, const void *from, uint64_t count, float *to) {
    const char *bytes = (const char *)from;
    uint16_t bits;
    uint64_t i;
    if (dtype == TSK_DTYPE_F32) memmove(to, from, (size_t)count * sizeof *to);
    else if (dtype == TSK_DTYPE_BF16)
        for (i = 0; i < count; i++, bytes += 2) memcpy(&bits, bytes, 2), to[i] = tsk__float_from_bf16(bits);
    else
        for (i = 0; i < count; i++, bytes += 2) memcpy(&bits, bytes, 2), to[i] = tsk__float_from_half(bits);
}

#endif /* SECTION_GUARD_NUMBER */
