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

// What follows equals >>schedule.
static __device__ __forceinline__ bool select_is_better(float a, float b) { return a > b || (a == a && b != b); }
static __device__ __forceinline__ float random_confidence(u64 seed, int position, u32 pass) {
    u32 c[4] = {0, (u32)position, pass, 1};
    philox4x32(c, (u32)seed, (u32)(seed >> 32));
    return (float)uniform_of(c[0]);
}

struct select_sums { double doubt, entropy, largest; };
static __device__ __forceinline__ void select_add(select_sums &sums, float confidence, float entropy) {
    sums.doubt += 1.0 - (double)confidence;
    sums.entropy += entropy >= 0.0f ? (double)entropy : (1.0 / 0.0) * 0.0;
    if ((double)entropy > sums.largest) sums.largest = (double)entropy;
}
static __device__ __forceinline__ bool select_accepts(const transfer_rule &s, const select_sums &sums, int rank,
                                                      float confidence) {
    double all_right = 1.0 - sums.doubt;
    if (s.transfer == TSK__CUDA_TRANSFER_SCHEDULE) return rank <= s.quota;
    if (s.transfer == TSK__CUDA_TRANSFER_THRESHOLD) return confidence >= s.threshold;
    if (s.transfer == TSK__CUDA_TRANSFER_FACTOR) return (double)confidence >= 1.0 - (double)s.factor / (rank + 1);
    if (s.transfer == TSK__CUDA_TRANSFER_FRECHET)
        return (all_right > 0.0 ? all_right : 0.0) - (1.0 - (double)confidence) > (double)s.frechet;
    return sums.entropy - sums.largest <= (double)s.entropy_bound;
}

// One request's candidates, with what decides about them.
struct select_view {
    commit_rule s;
    const commit_candidate *candidates;
    const prediction_entry *predictions;  // by slot
    const float *confidences;
    const int *order;
    __device__ __forceinline__ bool sums_up() const {
        return s.rule.transfer == TSK__CUDA_TRANSFER_FRECHET || s.rule.transfer == TSK__CUDA_TRANSFER_ENTROPY;
    }
    // Of a rule that looks at one candidate alone, the rank says whether it is among those that are taken. Where sums
    // decide, every candidate of a better rank has to be taken, too.
    __device__ __forceinline__ bool takes_ranked(int rank, float confidence) const {
        select_sums sums = {0.0, 0.0, 0.0};
        if (!sums_up()) return rank == 1 || select_accepts(s.rule, sums, rank, confidence);
        for (int k = 1; k <= rank; k++) {
            int i = order[k - 1];
            select_add(sums, confidences[i], predictions[candidates[i].slot].entropy);
            if (k > 1 && !select_accepts(s.rule, sums, k, confidences[i])) return false;
        }
        return true;
    }
    __device__ __forceinline__ bool leaps(int i) const {
        if (confidences[i] >= s.rule.threshold) return true;
        if (!(confidences[i] >= s.rule.local_leap)) return false;
        for (int j = 0; j < s.n; j++) {
            int distance = candidates[j].position - candidates[i].position;
            if (confidences[j] >= s.rule.threshold && (distance < 0 ? -distance : distance) <= s.rule.local_radius)
                return true;
        }
        return false;
    }
    __device__ __forceinline__ bool takes(int i, int rank) const {
        if (s.rule.transfer == TSK__CUDA_TRANSFER_LEAP) return rank == 1 || leaps(i);
        return takes_ranked(rank, confidences[i]);
    }
};

// One request's candidates: their predictions, of the head's rows or kept from an earlier pass, are ranked, and those
// that the rule takes are written to the canvas. Grid rules. Equals select.
extern "C" __global__ void __launch_bounds__(TSK__CUDA_THREADS_select_tokens)
    select_tokens(const tsk__cuda_select_tokens_args a) {
    commit_rule s = a.rules[blockIdx.x];
    const cache_entry cache = a.table.caches[s.request];
    const commit_candidate *candidates = a.candidates + s.first;
    float *confidences = a.confidences + s.first;
    int *order = a.order + s.first;
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
        int rank = 1;
        for (int j = 0; j < s.n; j++)
            rank += j < i ? !select_is_better(confidences[i], confidences[j])
                          : select_is_better(confidences[j], confidences[i]);
        order[rank - 1] = i;
    }
    __syncthreads();
    select_view view = {s, candidates, cache.predictions, confidences, order};
    for (int rank = 1 + threadIdx.x; rank <= s.n; rank += TSK__CUDA_THREADS_select_tokens) {
        int i = order[rank - 1];
        commit_candidate c = candidates[i];
        prediction_entry p = cache.predictions[c.slot];
        choice_entry choice = {p.id, confidences[i], p.entropy, p.log_sum_exp, 0};
        choice.is_committed = s.commits && view.takes(i, rank);
        if (choice.is_committed) cache.tokens[c.position] = choice.id;
        a.choices[s.first + i] = choice;
    }
}

#endif /* SECTION_GUARD_KERNELS_SKIP_SELECT */
