#ifndef SECTION_GUARD_KERNELS_NORM
#define SECTION_GUARD_KERNELS_NORM

#include "device.cuh"

// ---- RMS norm
// ----------------------------------------------------------------------------------------------------------- rms(x) *
// weight is made in two halves: the kernel that writes x also leaves x * weight, rounded, and the sums of squares over
// every 16 columns; the map that reads them multiplies its finished sums by the row's scale.

#define SQUARES_TILE TSK__CUDA_SQUARES_TILE
static __device__ __forceinline__ int squares_tiles(int d) { return TSK__CUDA_SQUARES_TILES(d); }
static __device__ __forceinline__ int squares_row(int d) { return TSK__CUDA_SQUARES_ROW(d); }
// By 8 neighbouring lanes, in an order that depends on d only.
static __device__ __forceinline__ float row_scale(const float *squares, int d, float eps, int lane8) {
    float sum = 0.0f;
    int tiles = squares_tiles(d);
#pragma unroll 8
    for (int t = lane8 * 4; t < tiles; t += 32) {
        float4 four = *(const float4 *)(squares + t);
        sum += four.x;
        if (t + 1 < tiles) sum += four.y;
        if (t + 2 < tiles) sum += four.z;
        if (t + 3 < tiles) sum += four.w;
    }
    return rsqrtf(lanes_sum<8>(sum) / (float)d + eps);
}
static __device__ __forceinline__ float squares_of_piece(uint4 x) {
    u32 pairs[4] = {x.x, x.y, x.z, x.w};
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sum += low_f32(pairs[i]) * low_f32(pairs[i]);
        sum += high_f32(pairs[i]) * high_f32(pairs[i]);
    }
    return sum;
}
static __device__ __forceinline__ uint4 multiply_piece(uint4 a, uint4 b) {
    return make_uint4(multiply_bf16x2(a.x, b.x), multiply_bf16x2(a.y, b.y), multiply_bf16x2(a.z, b.z),
                      multiply_bf16x2(a.w, b.w));
}

#endif /* SECTION_GUARD_KERNELS_NORM */
