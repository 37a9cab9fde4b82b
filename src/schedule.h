#ifndef SECTION_GUARD_SCHEDULE
#define SECTION_GUARD_SCHEDULE

#include "system.h"
#include "api.h"
#include "skip.h"

// >>schedule ==========================================================================================================
/* How many predictions a step commits, and which. */

void tsk_num_transfer_tokens(int32_t mask_count, int32_t steps, int32_t *out) {
    int32_t i;
    for (i = 0; out && i < steps; i++) out[i] = mask_count / steps + (i < mask_count % steps);
}

/* Of the candidates that a step has taken so far and the one that it is asked about, in order of confidence. */
typedef struct tsk__select_sums {
    double doubt;                  /* of 1 - confidence */
    double entropy, largest;       /* the entropies' sum, and the largest */
} tsk__select_sums;

static void tsk__select_add(tsk__select_sums *sums, float confidence, float entropy) {
    sums->doubt += 1.0 - (double)confidence;
    sums->entropy += entropy >= 0.0f ? (double)entropy : NAN;
    if ((double)entropy > sums->largest) sums->largest = (double)entropy;
}

/* Whether the rule takes the candidate of this rank, the last one in `sums`. Confidences of 1/2 and more, the only ones
   that FRECHET can take beside the best, are multiples of 2^-24: their sum is exact in any order. */
static int tsk__select_accepts(const tsk_transfer_rule *rule, const tsk__select_sums *sums, int32_t rank,
                               float confidence) {
    double all_right = 1.0 - sums->doubt;
    switch (rule->transfer) {
    case TSK_TRANSFER_SCHEDULE: return rank <= rule->quota;
    case TSK_TRANSFER_THRESHOLD: return confidence >= rule->threshold;
    case TSK_TRANSFER_FACTOR: return (double)confidence >= 1.0 - (double)rule->factor / (rank + 1);
    case TSK_TRANSFER_FRECHET:
        return (all_right > 0.0 ? all_right : 0.0) - (1.0 - (double)confidence) > (double)rule->frechet;
    default: return sums->entropy - sums->largest <= (double)rule->entropy_bound;
    }
}

/* The best candidate that is not committed yet. */
static int32_t tsk__select_best(int32_t n, const tsk_candidate *candidates, const uint8_t *commit) {
    int32_t best = -1, i;
    for (i = 0; i < n; i++)
        if (!commit[i] && (best < 0 || tsk__skip_is_better(candidates[i].confidence, candidates[best].confidence)))
            best = i;
    return best;
}

/* All rules but LEAP commit candidates in order of confidence until one is not accepted. This is enough because
   confidence falls with the rank, and what it is compared with never falls. */
static int32_t tsk__select_ranked(const tsk_transfer_rule *rule, int32_t n, const tsk_candidate *candidates,
                                  uint8_t *commit) {
    tsk__select_sums sums = {0.0, 0.0, 0.0};
    int32_t rank;
    for (rank = 1; rank <= n; rank++) {
        int32_t best = tsk__select_best(n, candidates, commit);
        tsk__select_add(&sums, candidates[best].confidence, candidates[best].entropy);
        if (rank > 1 && !tsk__select_accepts(rule, &sums, rank, candidates[best].confidence)) break;
        commit[best] = 1;
    }
    return rank - 1;
}

static int tsk__select_leaps(const tsk_transfer_rule *rule, int32_t n, const tsk_candidate *candidates, int32_t i) {
    int32_t j;
    if (candidates[i].confidence >= rule->threshold) return 1;
    if (!(candidates[i].confidence >= rule->local_leap)) return 0;
    for (j = 0; j < n; j++) {
        int64_t distance = (int64_t)candidates[j].position - candidates[i].position;
        if (candidates[j].confidence >= rule->threshold && (distance < 0 ? -distance : distance) <= rule->local_radius)
            return 1;
    }
    return 0;
}
static int32_t tsk__select_leap(const tsk_transfer_rule *rule, int32_t n, const tsk_candidate *candidates,
                                uint8_t *commit) {
    int32_t best = tsk__select_best(n, candidates, commit), n_committed = 0, i;
    for (i = 0; i < n; i++) {
        commit[i] = i == best || tsk__select_leaps(rule, n, candidates, i);
        n_committed += commit[i];
    }
    return n_committed;
}

int32_t tsk_select(const tsk_transfer_rule *rule, int32_t n, const tsk_candidate *candidates, uint8_t *commit) {
    if (n <= 0 || !rule || !candidates || !commit) return 0;
    memset(commit, 0, (size_t)n);
    return rule->transfer == TSK_TRANSFER_LEAP ? tsk__select_leap(rule, n, candidates, commit)
                                               : tsk__select_ranked(rule, n, candidates, commit);
}

#endif /* SECTION_GUARD_SCHEDULE */
