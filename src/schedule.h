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

static int tsk__select_accepts(const tsk_transfer_rule *rule, int32_t rank, float confidence) {
    switch (rule->transfer) {
    case TSK_TRANSFER_SCHEDULE: return rank <= rule->quota;
    case TSK_TRANSFER_THRESHOLD: return confidence >= rule->threshold;
    default: return (double)confidence >= 1.0 - (double)rule->factor / (rank + 1);
    }
}

/* All three rules commit candidates in order of confidence until one is not accepted. This is enough because confidence
   falls with the rank and FACTOR's bound rises. Confidence i is at confidences[i * stride]. */
static int32_t tsk__select(const tsk_transfer_rule *rule, int32_t n, const float *confidences, size_t stride,
                           uint8_t *commit) {
    int32_t rank, i;
    memset(commit, 0, (size_t)n);
    for (rank = 1; rank <= n; rank++) {
        int32_t best = -1;
        for (i = 0; i < n; i++)
            if (!commit[i] && (best < 0 || tsk__skip_is_better(confidences[(size_t)i * stride],
                                                               confidences[(size_t)best * stride])))
                best = i;
        if (rank > 1 && !tsk__select_accepts(rule, rank, confidences[(size_t)best * stride])) break;
        commit[best] = 1;
    }
    return rank - 1;
}

int32_t tsk_select(const tsk_transfer_rule *rule, int32_t n, const tsk_candidate *candidates, uint8_t *commit) {
    if (n <= 0 || !rule || !candidates || !commit) return 0;
    return tsk__select(rule, n, &candidates->confidence, sizeof *candidates / sizeof(float), commit);
}

#endif /* SECTION_GUARD_SCHEDULE */
