#ifndef SECTION_GUARD_KERNELS_MOVING
#define SECTION_GUARD_KERNELS_MOVING

#include "device.cuh"

// ---- Moving
// -----------------------------------------------------------------------------------------------------------

// By slide's threads: n values move down, a piece at a time, first to last; a piece is read whole before any of it is
// written, and what is written lies below all that is still to be read.
template <class V> static __device__ __forceinline__ void slide_values(V *to, const V *from, u64 n) {
    for (u64 first = 0; first < n; first += 2048) {
        u64 at = first + threadIdx.x;
        V values[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (at + i * TSK__CUDA_THREADS_slide < n) values[i] = from[at + i * TSK__CUDA_THREADS_slide];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (at + i * TSK__CUDA_THREADS_slide < n) to[at + i * TSK__CUDA_THREADS_slide] = values[i];
    }
}
// Grid planes; all sizes even. Never launched before its predecessor ends. Equals slide.
extern "C" __global__ void __launch_bounds__(TSK__CUDA_THREADS_slide) slide(const tsk__cuda_slide_args a) {
    char *plane = a.base + blockIdx.x * a.pitch;
    if ((a.to | a.from | a.size | (u64)plane) % 16 == 0)
        slide_values((uint4 *)(plane + a.to), (const uint4 *)(plane + a.from), a.size / 16);
    else slide_values((u16 *)(plane + a.to), (const u16 *)(plane + a.from), a.size / 2);
}

template <class T> static __device__ __forceinline__ void copy_row(T *to, const T *from, int d) {
    if (d * sizeof(T) % 16 == 0)
        for (int i = threadIdx.x; i < (int)(d * sizeof(T) / 16); i += blockDim.x)
            ((uint4 *)to)[i] = ((const uint4 *)from)[i];
    else
        for (int i = threadIdx.x; i < d; i += blockDim.x) to[i] = from[i];
}

// to[i] = from[index[i]], or to[index[i]] = from[i] (scatter). Grid n. Equals compact and expand.
template <class T> static __device__ __forceinline__ void move_rows(const tsk__cuda_move_rows_args &a) {
    let_successor_start();
    wait_for_predecessor();
    u64 i = blockIdx.x, j = a.index[blockIdx.x];
    copy_row((T *)a.to + (a.scatter ? j : i) * a.d, (const T *)a.from + (a.scatter ? i : j) * a.d, a.d);
}
KERNEL_OF_BOTH_TYPES(move_rows)

#endif /* SECTION_GUARD_KERNELS_MOVING */
