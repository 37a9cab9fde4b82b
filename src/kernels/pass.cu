#ifndef SECTION_GUARD_KERNELS_PASS
#define SECTION_GUARD_KERNELS_PASS

#include "device.cuh"

// ---- The beginning and the end of a pass
// --------------------------------------------------------------------------------

// Copies the host's row table to the device and prepares RoPE's angles; then tells the host that its image may change.
// Grid n + 1. The image is pinned host memory: a row here, caches and tiles by the last block.
extern "C" __global__ void pass_begin(const tsk__cuda_pass_begin_args a) {
    __shared__ int flag;
    wait_for_predecessor();
    if (blockIdx.x == a.n) {
        const uint4 *caches = (const uint4 *)a.caches, *tiles = (const uint4 *)a.tiles;
        const int cache_pieces = sizeof(cache_entry) / 16, tile_pieces = sizeof(tile_entry) / 16;
        for (int i = threadIdx.x; i < a.n_caches * cache_pieces; i += TSK__CUDA_THREADS_pass_begin)
            ((uint4 *)a.table.caches)[i] = caches[i];
        for (int i = threadIdx.x; i < a.n_tiles * tile_pieces; i += TSK__CUDA_THREADS_pass_begin)
            ((uint4 *)a.table.tiles)[i] = tiles[i];
    } else {
        __shared__ uint4 row[sizeof(row_entry) / 16];
        const int pieces = sizeof(row_entry) / 16, at = blockIdx.x * pieces + threadIdx.x;
        if (threadIdx.x < pieces) ((uint4 *)a.table.rows)[at] = row[threadIdx.x] = ((const uint4 *)a.rows)[at];
        __syncthreads();
        float position = (float)((const row_entry *)row)->position;
        // the angle is f32, as in the model's own code; its cosine exact
        for (int i = threadIdx.x; i < a.half; i += TSK__CUDA_THREADS_pass_begin) {
            double s, c;
            sincos((double)(position * a.frequencies[i]), &s, &c);
            a.table.rope[(u64)blockIdx.x * a.half + i] = make_float2((float)c, (float)s);
        }
    }
    if (last_to_arrive(a.state, a.n + 1, &flag) && threadIdx.x == 0) *a.fetched = ++a.state[1];
}

// Counts in pinned host memory that everything before it is done. Grid 1, block 1.
extern "C" __global__ void pass_signal(const tsk__cuda_pass_signal_args a) {
    wait_for_predecessor();
    __threadfence_system();
    *a.signalled = ++*a.count;
}

#endif /* SECTION_GUARD_KERNELS_PASS */
