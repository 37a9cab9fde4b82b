#ifndef SECTION_GUARD_SCHEDULE
#define SECTION_GUARD_SCHEDULE

#include "system.h"
#include "api.h"

// >>schedule ==========================================================================================================
/* How many predictions a step commits, and which. */

void tsk_num_transfer_tokens(int32_t mask_count, int32_t steps, int32_t *out) {
    int32_t i;
    for (i = 0; out && i < steps; i++) out[i] = mask_count / steps + (i < mask_count % steps);
}

static int tsk__select_accepts(tsk_transfer transfer, float threshold, float factor, int32_t quota, int32_t rank, float confidence) {
    switch (transfer) {
    case TSK_TRANSFER_SCHEDULE: return rank <= quota;
    case TSK_TRANSFER_THRESHOLD: return confidence >= threshold;
    default: return (double)confidence >= 1.0 - (double)factor / (rank + 1);
    }
}

/* Whether a is the better confidence; one that is no number comes after all others. */
static int tsk__select_is_better(float a, float b) { return a > b || (a == a && b != b); }

/* All three rules are "the best, next best, … while accepted": confidence falls and FACTOR's bound rises with the rank. */
int32_t tsk_select(tsk_transfer transfer, float threshold, float factor, int32_t quota, int32_t n, const float *confidences, uint8_t *commit) {
    int32_t rank, i;
    if (n <= 0) return 0;
    memset(commit, 0, (size_t)n);
    for (rank = 1; rank <= n; rank++) {
        int32_t best = -1;
        for (i = 0; i < n; i++)
            if (!commit[i] && (best < 0 || tsk__select_is_better(confidences[i], confidences[best]))) best = i;
        if (rank > 1 && !tsk__select_accepts(transfer, threshold, factor, quota, rank, confidences[best])) break;
        commit[best] = 1;
    }
    return rank - 1;
}

#endif /* SECTION_GUARD_SCHEDULE */
