#ifndef SECTION_GUARD_KERNELS_ATTEND
#define SECTION_GUARD_KERNELS_ATTEND

#include "device.cuh"

// ---- Attention for any size of heads, for both activation types
// -------------------------------------------------------

// Attention for any head_dim up to 256: one query row and head a block, 128 keys at a time, one key a thread for the
// scores and one column a thread for the sums. The order of every sum depends on what is visible only. Grid
// (n, n_heads).
template <class T> static __device__ __forceinline__ void attend(const tsk__cuda_attend_args &a) {
    __shared__ float query[256], weight[128], parts[4];
    let_successor_start();
    wait_for_predecessor();
    int row = blockIdx.x, head = blockIdx.y, kv = head / (a.n_heads / a.n_kv_heads), hd = a.head_dim;
    int thread = threadIdx.x;
    const row_entry &entry = a.table.rows[row];
    const int visible = entry.visible;
    cache_entry cache = a.table.caches[entry.request];
    u64 layer = (a.layer_offset + (u64)kv * hd) * cache.capacity;
    const T *k = (const T *)cache.k + layer, *v = (const T *)cache.v + layer;
    const T *q = (const T *)a.q + ((u64)row * a.n_heads + head) * hd;
    T *out = (T *)a.out + ((u64)row * a.n_heads + head) * hd;
    for (int d = thread; d < hd; d += 128) query[d] = load(q + d);
    float max = NEGATIVE, sum = 0.0f, o[2] = {0.0f, 0.0f};
    for (int first = 0; first < visible; first += 128) {
        int count = min(128, visible - first);
        float score = NEGATIVE, new_max = NEGATIVE, total = 0.0f;
        __syncthreads();
        if (thread < count) {
            const T *key = k + (u64)(first + thread) * hd;
            float dot = 0.0f;
            for (int d = 0; d < hd; d++) dot = fmaf(query[d], load(key + d), dot);
            score = dot * a.scale;
        }
        float warp_max = score;
        for (int lanes = 16; lanes > 0; lanes /= 2)
            warp_max = fmaxf(warp_max, __shfl_xor_sync(0xffffffffu, warp_max, lanes));
        if ((thread & 31) == 0) parts[thread >> 5] = warp_max;
        __syncthreads();
        new_max = fmaxf(max, fmaxf(fmaxf(parts[0], parts[1]), fmaxf(parts[2], parts[3])));
        float w = thread < count ? expf(score - new_max) : 0.0f;
        weight[thread] = w;
        w = lanes_sum<32>(w);
        __syncthreads();
        if ((thread & 31) == 0) parts[thread >> 5] = w;
        __syncthreads();
        total = parts[0] + parts[1] + parts[2] + parts[3];
        float shrink = expf(max - new_max);
        sum = sum * shrink + total;
        max = new_max;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int d = thread + e * 128;
            if (d >= hd) continue;
            float x = 0.0f;
            for (int j = 0; j < count; j++) x = fmaf(weight[j], load(v + (u64)(first + j) * hd + d), x);
            o[e] = o[e] * shrink + x;
        }
    }
#pragma unroll
    for (int e = 0; e < 2; e++)
        if (thread + e * 128 < hd) store(out + thread + e * 128, o[e] / sum);
}
KERNEL_OF_BOTH_TYPES(attend)

#endif /* SECTION_GUARD_KERNELS_ATTEND */
