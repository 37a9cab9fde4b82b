#ifndef SECTION_GUARD_KERNELS_STATES
#define SECTION_GUARD_KERNELS_STATES

#include "device.cuh"
#include "moving.cu"

// ---- TokenSkip's states
// -----------------------------------------------------------------------------------------------

// A row of a request's states [2, n_states, n_slots, d]: half 0 is compared with, half 1 the pass's own.
template <class T>
static __device__ __forceinline__ T *state_row(const cache_entry &cache, int slot, int half, int state, int d) {
    return (T *)cache.states + ((u64)(half * cache.n_states + state) * cache.n_slots + slot) * d;
}

// cosines[row] = cos(x[row], its slot's state `state`), also the host's copy of them, and x becomes the pass's own
// state. Inactive rows and rows without a slot or that state do nothing. Grid n. Equals compare.
template <class T> static __device__ __forceinline__ void compare(const tsk__cuda_compare_args &a) {
    __shared__ float parts[3][8];
    let_successor_start();
    wait_for_predecessor();
    row_entry entry = a.table.rows[blockIdx.x];
    cache_entry cache = a.table.caches[entry.request];
    int d = a.d;
    if (!entry.active || !cache.states || entry.slot < 0 || a.state >= cache.n_states) return;
    const T *reference = state_row<T>(cache, entry.slot, 0, a.state, d), *x = (const T *)a.x + (u64)blockIdx.x * d;
    float dot = 0.0f, xx = 0.0f, rr = 0.0f;
    for (int i = threadIdx.x; i < d; i += TSK__CUDA_THREADS_compare) {
        float own = load(x + i), other = load(reference + i);
        dot = fmaf(own, other, dot);
        xx = fmaf(own, own, xx);
        rr = fmaf(other, other, rr);
    }
    dot = lanes_sum<32>(dot);
    xx = lanes_sum<32>(xx);
    rr = lanes_sum<32>(rr);
    if ((threadIdx.x & 31) == 0)
        parts[0][threadIdx.x >> 5] = dot, parts[1][threadIdx.x >> 5] = xx, parts[2][threadIdx.x >> 5] = rr;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < 8; w++) dot += parts[0][w], xx += parts[1][w], rr += parts[2][w];
        double lengths = sqrt((double)xx) * sqrt((double)rr);
        double cosine = (double)dot / (lengths > 1e-8 ? lengths : 1e-8);
        float told = cosine > 1.0 ? 1.0f : (float)cosine;  // (what is no number stays none)
        a.cosines[entry.number] = a.host_cosines[entry.number] = told;
    }
    copy_row(state_row<T>(cache, entry.slot, 1, a.state, d), x, d);
}
KERNEL_OF_BOTH_TYPES(compare)

// What a row's flags ask for after the layers: block (row, state) copies the pass's own state over the one to compare
// with; block (row, states) stores the output, or takes the stored one where the row was skipped. Grid (n, states + 1).
// Equals keep.
template <class T> static __device__ __forceinline__ void keep(const tsk__cuda_keep_args &a) {
    let_successor_start();
    wait_for_predecessor();
    row_entry entry = a.table.rows[blockIdx.x];
    cache_entry cache = a.table.caches[entry.request];
    int d = a.d;
    bool was_skipped = (entry.flags & TSK__CUDA_ROW_DECIDED) && a.skipped[entry.number];
    if (entry.slot < 0) return;
    if (blockIdx.y + 1 == gridDim.y) {
        T *output = (T *)cache.outputs + (u64)entry.slot * d, *x = (T *)a.x + (u64)blockIdx.x * d;
        if (entry.flags & TSK__CUDA_ROW_OUTPUT) copy_row(was_skipped ? x : output, was_skipped ? output : x, d);
    } else if ((entry.flags & TSK__CUDA_ROW_REMEMBER) && !(was_skipped && (entry.flags & TSK__CUDA_ROW_IF_RAN)) &&
               blockIdx.y < cache.n_states)
        copy_row(state_row<T>(cache, entry.slot, 0, blockIdx.y, d), state_row<T>(cache, entry.slot, 1, blockIdx.y, d),
                 d);
}
KERNEL_OF_BOTH_TYPES(keep)

#endif /* SECTION_GUARD_KERNELS_STATES */
