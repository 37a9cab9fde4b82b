#ifndef SECTION_GUARD_KERNELS_HEAD
#define SECTION_GUARD_KERNELS_HEAD

#include "device.cuh"
#include "draw.cuh"

// ---- The head's two stages
// -------------------------------------------------------------------------------------------------

// First stage where the logits lie in memory: of ids first .. first + n - 1, [m, n] f32, bias added in place; a tile is
// TSK__CUDA_HEAD_TILE ids. Grid (tiles, m).
extern "C" __global__ void __launch_bounds__(TSK__CUDA_THREADS_head_tiles)
    head_tiles(const tsk__cuda_head_tiles_args a) {
    __shared__ head_entry parts[4];
    let_successor_start();
    wait_for_predecessor();
    draw_entry draw = a.draws[blockIdx.y];
    head_entry best = head_none();
    float *logits = a.logits + (u64)blockIdx.y * a.n;
#pragma unroll
    for (int i = 0; i < TSK__CUDA_HEAD_TILE / TSK__CUDA_THREADS_head_tiles; i++) {
        int at = blockIdx.x * TSK__CUDA_HEAD_TILE + i * TSK__CUDA_THREADS_head_tiles + threadIdx.x, id = a.first + at;
        if (at >= a.n) continue;
        float logit = logits[at];
        if (a.bias) {
            logit += a.bias_is_bf16 ? load((const bf16 *)a.bias + id) : ((const float *)a.bias)[id];
            logits[at] = logit;
        }
        best = head_merge(best, head_of(draw, id, logit));
    }
    for (int lanes = 1; lanes < 32; lanes *= 2) best = head_merge(best, head_shuffle(best, lanes));
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < 4; w++) best = head_merge(best, parts[w]);
        a.heads[(u64)(a.first / TSK__CUDA_HEAD_TILE + blockIdx.x) * gridDim.y + blockIdx.y] = best;
    }
}

// Second stage: joins a row's tiles, in an order that depends on their number only. Where all logits are NaN it
// predicts an id still, and not the mask. Grid m.
extern "C" __global__ void __launch_bounds__(TSK__CUDA_THREADS_head_finish)
    head_finish(const tsk__cuda_head_finish_args a) {
    __shared__ head_entry parts[TSK__CUDA_THREADS_head_finish];
    let_successor_start();
    wait_for_predecessor();
    head_entry best = head_none();
    for (int t = threadIdx.x; t < a.n_tiles; t += TSK__CUDA_THREADS_head_finish)
        best = head_merge(best, a.heads[(u64)t * a.m + blockIdx.x]);
    parts[threadIdx.x] = best;
    for (int step = TSK__CUDA_THREADS_head_finish / 2; step > 0; step /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < step) parts[threadIdx.x] = head_merge(parts[threadIdx.x], parts[threadIdx.x + step]);
    }
    if (threadIdx.x == 0) {
        best = parts[0];
        prediction_entry p;
        p.id = best.id == 0x7fffffff ? a.draws[blockIdx.x].mask_token_id == 0 : best.id;
        p.logit = best.logit;
        p.log_sum_exp = best.max + logf(best.sum);
        p.confidence = expf(p.logit - p.log_sum_exp);
        p.entropy = logf(best.sum) - best.moment / best.sum;
        a.predictions[blockIdx.x] = p;
    }
}

#endif /* SECTION_GUARD_KERNELS_HEAD */
