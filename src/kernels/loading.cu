#ifndef SECTION_GUARD_KERNELS_LOADING
#define SECTION_GUARD_KERNELS_LOADING

#include "device.cuh"
#include "draw.cuh"

// ---- Loading: stored values to weights ------------------------------------------------------------------------------------

// Where element e of a tensor goes, among the elements of its matrix.
static __device__ __forceinline__ u64 element_at(const tsk__cuda_row_order &p, u64 e) {
    u64 row = e / p.columns, column = e - row * p.columns;
    if (p.interleave == TSK__CUDA_ROWS_HALVES) {
        u64 head = row / (2 * p.half_head), d = row - head * (2 * p.half_head);
        row = head * (2 * p.half_head) + d % p.half_head / 8 * 16 + d / p.half_head * 8 + d % 8;
    } else if (p.interleave != TSK__CUDA_ROWS_IN_ORDER) row = row / 8 * 16 + row % 8 + (p.interleave == TSK__CUDA_ROWS_SECOND ? 8 : 0);
    return (p.first_row + row) * p.columns + column;
}
// Elements first .. first + count - 1 of a tensor, from their stored form. Any grid, block 256.
template <class T> static __device__ __forceinline__ void convert(const void *from, int stored, T *to, u64 first, u64 count, tsk__cuda_row_order p) {
    wait_for_predecessor();
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
        float value;
        if (stored == TSK__CUDA_STORED_F32) value = ((const float *)from)[i];
        else if (stored == TSK__CUDA_STORED_BF16) value = load((const bf16 *)from + i);
        else asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(((const u16 *)from)[i]));
        store(to + element_at(p, first + i), value);
    }
}
// Random bf16 weights, uniform on [-scale, scale): eight values a Philox call, 16 bits each, as tsk__random_fill_chunk has
// them. Any grid, block 256.
template <class T> static __device__ __forceinline__ void randomise(T *to, u64 count, tsk__cuda_row_order p, u64 seed, u32 tensor, float scale) {
    wait_for_predecessor();
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < (count + 7) / 8; i += (u64)gridDim.x * blockDim.x) {
        u32 c[4] = {(u32)i, (u32)(i >> 32), tensor, 2};
        const bf16 *type = 0;
        philox4x32(c, (u32)seed, (u32)(seed >> 32));
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (i * 8 + j < count) store(to + element_at(p, i * 8 + j), rounded(scale * ((float)(c[j / 2] >> (j % 2 * 16) & 0xffff) / 32768.0f - 1.0f), type));
    }
}
// Every element `value`. Any grid, block 256.
template <class T> static __device__ __forceinline__ void fill(T *to, u64 count, float value) {
    wait_for_predecessor();
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) store(to + i, value);
}

#define LOADING_KERNELS(T, S) \
    extern "C" __global__ void __launch_bounds__(256) convert_##S(const void *from, int stored, T *to, u64 first, u64 count, tsk__cuda_row_order p) { convert(from, stored, to, first, count, p); } \
    extern "C" __global__ void __launch_bounds__(256) randomise_##S(T *to, u64 count, tsk__cuda_row_order p, u64 seed, u32 tensor, float scale) { randomise(to, count, p, seed, tensor, scale); } \
    extern "C" __global__ void __launch_bounds__(256) fill_##S(T *to, u64 count, float value) { fill(to, count, value); }
LOADING_KERNELS(float, f32)
LOADING_KERNELS(bf16, bf16)

#endif /* SECTION_GUARD_KERNELS_LOADING */
