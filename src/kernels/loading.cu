#ifndef SECTION_GUARD_KERNELS_LOADING
#define SECTION_GUARD_KERNELS_LOADING

#include "device.cuh"
#include "draw.cuh"

// ---- Loading: stored values to weights
// ------------------------------------------------------------------------------------

// Where element e of a tensor goes, among the elements of its matrix.
static __device__ __forceinline__ u64 element_at(const tsk__cuda_row_order &order, u64 e) {
    u64 row = e / order.columns, column = e - row * order.columns;
    if (order.interleave == TSK__CUDA_ROWS_HALVES) {
        u64 head = row / (2 * order.half_head), d = row - head * (2 * order.half_head);
        row = head * (2 * order.half_head) + d % order.half_head / 8 * 16 + d / order.half_head * 8 + d % 8;
    } else if (order.interleave != TSK__CUDA_ROWS_IN_ORDER)
        row = row / 8 * 16 + row % 8 + (order.interleave == TSK__CUDA_ROWS_SECOND ? 8 : 0);
    return (order.first_row + row) * order.columns + column;
}
// Elements first .. first + count - 1 of a tensor, from their stored form. Any grid.
template <class T> static __device__ __forceinline__ void convert(const tsk__cuda_convert_args &a) {
    wait_for_predecessor();
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < a.count; i += (u64)gridDim.x * blockDim.x) {
        float value;
        if (a.stored == TSK__CUDA_STORED_F32) value = ((const float *)a.from)[i];
        else if (a.stored == TSK__CUDA_STORED_BF16) value = load((const bf16 *)a.from + i);
        else asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(((const u16 *)a.from)[i]));
        store((T *)a.to + element_at(a.row_order, a.first + i), value);
    }
}
KERNEL_OF_BOTH_TYPES(convert)

// Random bf16 weights, uniform on [-scale, scale): eight values a Philox call, 16 bits each, as tsk__random_fill_chunk
// has them. Any grid.
template <class T> static __device__ __forceinline__ void randomise(const tsk__cuda_randomise_args &a) {
    wait_for_predecessor();
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < (a.count + 7) / 8; i += (u64)gridDim.x * blockDim.x) {
        u32 c[4] = {(u32)i, (u32)(i >> 32), a.tensor, 2};
        const bf16 *type = 0;
        philox4x32(c, (u32)a.seed, (u32)(a.seed >> 32));
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (i * 8 + j < a.count) {
                float uniform = (float)(c[j / 2] >> (j % 2 * 16) & 0xffff) / 32768.0f - 1.0f;
                store((T *)a.to + element_at(a.row_order, i * 8 + j), rounded(a.scale * uniform, type));
            }
    }
}
KERNEL_OF_BOTH_TYPES(randomise)

// Every element `value`. Any grid.
template <class T> static __device__ __forceinline__ void fill(const tsk__cuda_fill_args &a) {
    u64 step = (u64)gridDim.x * blockDim.x;
    wait_for_predecessor();
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < a.count; i += step) store((T *)a.to + i, a.value);
}
KERNEL_OF_BOTH_TYPES(fill)

#endif /* SECTION_GUARD_KERNELS_LOADING */
