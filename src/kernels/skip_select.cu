#ifndef SECTION_GUARD_KERNELS_SKIP_SELECT
#define SECTION_GUARD_KERNELS_SKIP_SELECT

#include "device.cuh"
#include "draw.cuh"

// ---- What is skipped and what is committed
// ------------------------------------------------------------------------------

// Whether a row whose last states resemble these is skipped; cosines[state * stride]. Equals tsk__skip_similar.
static __device__ __forceinline__ bool is_similar(const float *cosines, int n_states, int stride, float threshold,
                                                  float outlier) {
    double sum = 0.0;
    for (int state = 0; state < n_states; state++) {
        float c = cosines[(u64)state * stride];
        if (!(c >= outlier)) return false;
        sum += (double)c;
    }
    return n_states > 0 && sum / n_states > (double)threshold;
}

// Decides about the rows whose request compares n_states states. One thread a row: grid ceil(n / threads).
// Equals decide.
extern "C" __global__ void __launch_bounds__(TSK__CUDA_THREADS_decide) decide(const tsk__cuda_decide_args a) {
    int i = blockIdx.x * TSK__CUDA_THREADS_decide + threadIdx.x;
    wait_for_predecessor();
    if (i >= a.n) return;
    row_entry row = a.table.rows[i];
    const cache_entry *cache = &a.table.caches[row.request];
    if (cache->n_states != a.n_states || !(row.flags & TSK__CUDA_ROW_DECIDED)) return;
    bool skips = (row.flags & TSK__CUDA_ROW_SKIPS) ||
                 is_similar(a.cosines + row.number, a.n_states, a.stride, cache->skip_threshold, cache->skip_outlier);
    a.skipped[row.number] = a.host_skipped[row.number] = skips;
    if (a.masks && skips) a.table.rows[i].active = 0;
}

// The two equal the functions of these names in >>schedule.
static __device__ __forceinline__ bool select_accepts(const commit_rule &s, int rank, float confidence) {
    if (s.transfer == 0) return rank <= s.quota;
    if (s.transfer == 1) return confidence >= s.threshold;
    return (double)confidence >= 1.0 - (double)s.factor / (rank + 1);
}
static __device__ __forceinline__ bool select_is_better(float a, float b) { return a > b || (a == a && b != b); }
static __device__ __forceinline__ float random_confidence(u64 seed, int position, u32 pass) {
    u32 c[4] = {0, (u32)position, pass, 1};
    philox4x32(c, (u32)seed, (u32)(seed >> 32));
    return (float)uniform_of(c[0]);
}

// One request's candidates: their predictions, of the head's rows or kept from an earlier pass, are ranked, and those
// that the rule takes are written to the canvas. All rules take the best ones, so that a candidate's rank says whether
// it is among them. Grid rules. Equals select.
extern "C" __global__ void __launch_bounds__(TSK__CUDA_THREADS_select_tokens)
    select_tokens(const tsk__cuda_select_tokens_args a) {
    commit_rule s = a.rules[blockIdx.x];
    const cache_entry cache = a.table.caches[s.request];
    const commit_candidate *candidates = a.candidates + s.first;
    float *confidences = a.confidences + s.first;
    let_successor_start();
    wait_for_predecessor();
    for (int i = threadIdx.x; i < s.n; i += TSK__CUDA_THREADS_select_tokens) {
        commit_candidate c = candidates[i];
        if (c.head >= 0) cache.predictions[c.slot] = a.predictions[c.head];
        float confidence = cache.predictions[c.slot].confidence;
        confidences[i] = s.is_random ? random_confidence(s.seed, c.position, s.pass) : confidence;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < s.n; i += TSK__CUDA_THREADS_select_tokens) {
        commit_candidate c = candidates[i];
        prediction_entry p = cache.predictions[c.slot];
        choice_entry choice = {p.id, confidences[i], p.log_sum_exp, 0};
        int rank = 1;
        for (int j = 0; j < s.n; j++)
            rank += j < i ? !select_is_better(choice.confidence, confidences[j])
                          : select_is_better(confidences[j], choice.confidence);
        choice.is_committed = s.commits && (rank == 1 || select_accepts(s, rank, choice.confidence));
        if (choice.is_committed) cache.tokens[c.position] = choice.id;
        a.choices[s.first + i] = choice;
    }
}

#endif /* SECTION_GUARD_KERNELS_SKIP_SELECT */
