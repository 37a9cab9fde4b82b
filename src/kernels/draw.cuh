#ifndef SECTION_GUARD_KERNELS_DRAW
#define SECTION_GUARD_KERNELS_DRAW

#include "device.cuh"

// ---- Random draws and the head's reduction
// ----------------------------------------------------------------------------

// Philox4x32-10; equals tsk_philox4x32.
static __device__ __forceinline__ void philox4x32(u32 (&c)[4], u32 k0, u32 k1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u32 high0 = __umulhi(0xD2511F53u, c[0]), low0 = 0xD2511F53u * c[0];
        u32 high1 = __umulhi(0xCD9E8D57u, c[2]), low1 = 0xCD9E8D57u * c[2];
        c[0] = high1 ^ c[1] ^ k0;
        c[1] = low1;
        c[2] = high0 ^ c[3] ^ k1;
        c[3] = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

// Never 0 and never 1; equals tsk__random_from_word.
static __device__ __forceinline__ double uniform_of(u32 word) { return ((double)word + 0.5) * (1.0 / 4294967296.0); }

static __device__ __forceinline__ head_entry head_none() {
    head_entry none = {-1.0 / 0.0, 0x7fffffff, 0.0f, NEGATIVE, 0.0f, 0.0f, 0};
    return none;
}
static __device__ __forceinline__ double head_score(const draw_entry &draw, int id, float logit) {
    if (!(draw.temperature > 0.0f)) return (double)logit;
    u32 c[4] = {(u32)id >> 2, draw.position, draw.pass, 0};
    philox4x32(c, (u32)draw.seed, (u32)(draw.seed >> 32));
    double u = uniform_of((id & 2) ? ((id & 1) ? c[3] : c[2]) : ((id & 1) ? c[1] : c[0]));
    return (double)logit - (double)draw.temperature * log(-log(u));
}
static __device__ __forceinline__ head_entry head_of(const draw_entry &draw, int id, float logit) {
    head_entry e = head_none();
    e.max = logit;
    e.sum = 1.0f;
    if (id != draw.mask_token_id) {
        e.score = head_score(draw, id, logit);
        e.id = id;
        e.logit = logit;
    }
    return e;
}
// A part's moment, the sum of exp(logit - max) * (logit - max), seen from the common maximum, which is `above` its own
// and makes its sum fade by this factor.
static __device__ __forceinline__ float head_moment(const head_entry &e, float fade, float above) {
    return fade > 0.0f ? (e.moment - e.sum * above) * fade : 0.0f;
}
// A NaN is never better than what there is (which is head_none at first); the sum that it makes NaN tells of it.
static __device__ __forceinline__ head_entry head_merge(const head_entry &a, const head_entry &b) {
    head_entry e = (b.score > a.score || (b.score == a.score && b.id < a.id)) ? b : a;
    float max = fmaxf(a.max, b.max);
    float fade_a = expf(a.max - max), fade_b = expf(b.max - max);
    e.sum = a.sum * fade_a + b.sum * fade_b;
    e.moment = head_moment(a, fade_a, max - a.max) + head_moment(b, fade_b, max - b.max);
    e.max = max;
    return e;
}
static __device__ __forceinline__ head_entry head_shuffle(const head_entry &e, int lanes) {
    head_entry o;
    o.score = __shfl_xor_sync(0xffffffffu, e.score, lanes);
    o.id = __shfl_xor_sync(0xffffffffu, e.id, lanes);
    o.logit = __shfl_xor_sync(0xffffffffu, e.logit, lanes);
    o.max = __shfl_xor_sync(0xffffffffu, e.max, lanes);
    o.sum = __shfl_xor_sync(0xffffffffu, e.sum, lanes);
    o.moment = __shfl_xor_sync(0xffffffffu, e.moment, lanes);
    o.pad = 0;
    return o;
}

#endif /* SECTION_GUARD_KERNELS_DRAW */
