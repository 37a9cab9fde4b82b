#ifndef SECTION_GUARD_KERNELS_LINEAR_F32
#define SECTION_GUARD_KERNELS_LINEAR_F32

#include "device.cuh"

// ---- f32 linear map
// --------------------------------------------------------------------------------------------------------

// out[m, n] = input[m, k] * weights[n, k]^T, every output summed by one thread in the order of k, whatever m is. Grid
// (ceil(n / 64), ceil(m / 32)), block 256: each thread 2 rows and 4 columns.
extern "C" __global__ void __launch_bounds__(TSK__CUDA_THREADS_exact_f32) exact_f32(const tsk__cuda_exact_f32_args a) {
    __shared__ float x[32][17], w[64][17];
    int m = a.m, n = a.n, k = a.k;
    int thread = threadIdx.x, column = thread & 15, row = thread >> 4, first_n = blockIdx.x * 64,
        first_m = blockIdx.y * 32;
    float acc[2][4] = {};
    let_successor_start();
    wait_for_predecessor();
    for (int base = 0; base < k; base += 16) {
        for (int i = row; i < 32; i += 16) {
            bool exists = first_m + i < m && base + column < k;
            x[i][column] = exists ? a.input[(u64)(first_m + i) * k + base + column] : 0.0f;
        }
        for (int i = row; i < 64; i += 16) {
            bool exists = first_n + i < n && base + column < k;
            w[i][column] = exists ? a.weights[(u64)(first_n + i) * k + base + column] : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 16; i++)
#pragma unroll
            for (int r = 0; r < 2; r++)
#pragma unroll
                for (int c = 0; c < 4; c++) acc[r][c] = fmaf(x[row + r * 16][i], w[column + c * 16][i], acc[r][c]);
        __syncthreads();
    }
    for (int r = 0; r < 2; r++)
        for (int c = 0; c < 4; c++) {
            int i = first_m + row + r * 16, j = first_n + column + c * 16;
            if (i < m && j < n) a.out[(u64)i * n + j] = acc[r][c];
        }
}

#endif /* SECTION_GUARD_KERNELS_LINEAR_F32 */
