#ifndef SECTION_GUARD_KERNELS_PASS
#define SECTION_GUARD_KERNELS_PASS

#include "device.cuh"

// ---- The beginning and the end of a pass --------------------------------------------------------------------------------

// Copies the host's row table to the device and prepares RoPE's angles; then tells the host that its image may change.
// Grid n + 1, block 64. `image` is pinned host memory: rows [n] here, caches and tiles by the last block.
extern "C" __global__ void pass_begin(const uint4 *rows, const uint4 *caches, const uint4 *tiles, int n, int n_caches, int n_tiles, rows_table table,
                                      const float *frequencies, int half, u32 *state, volatile u32 *fetched) {
    __shared__ int flag;
    wait_for_predecessor();
    if (blockIdx.x == n) {
        for (int i = threadIdx.x; i < n_caches * (int)(sizeof(cache_entry) / 16); i += 64) ((uint4 *)table.caches)[i] = caches[i];
        for (int i = threadIdx.x; i < n_tiles; i += 64) ((uint4 *)table.tiles)[i] = tiles[i];
    } else {
        __shared__ uint4 row[2];
        if (threadIdx.x < 2) ((uint4 *)table.rows)[blockIdx.x * 2 + threadIdx.x] = row[threadIdx.x] = rows[blockIdx.x * 2 + threadIdx.x];
        __syncthreads();
        float position = (float)((const row_entry *)row)->position;
        for (int i = threadIdx.x; i < half; i += 64) {  // the angle is f32, as in the model's own code; its cosine exact
            double s, c;
            sincos((double)(position * frequencies[i]), &s, &c);
            table.rope[(u64)blockIdx.x * half + i] = make_float2((float)c, (float)s);
        }
    }
    if (last_to_arrive(state, n + 1, &flag) && threadIdx.x == 0) *fetched = ++state[1];
}

// Counts in pinned host memory that everything before it is done. Grid 1, block 1.
extern "C" __global__ void pass_signal(u32 *count, volatile u32 *signalled) {
    wait_for_predecessor();
    __threadfence_system();
    *signalled = ++*count;
}

#endif /* SECTION_GUARD_KERNELS_PASS */
