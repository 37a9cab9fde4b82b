#ifndef SECTION_GUARD_SKIP
#define SECTION_GUARD_SKIP

#include "system.h"
#include "api.h"

// >>skip ==============================================================================================================
/* TokenSkip's two rules. By STATES, tokens of a block may be stable in a step, and stable tokens skip layers K and up:
   a token's id, mask and age say whether it may be stable; the cosines from the lower layers then say whether it is.
   By ROWS, a step leaves out those tokens that cannot change what it commits, with all layers. This section does no
   arithmetic on states. */

/* ---- by states */

typedef struct tsk__skip_token {
    int32_t id;                /* its id now */
    int32_t computed_id;       /* the id with which its upper layers last ran: their K and V were made from it */
    int32_t age, refresh_age;  /* steps, and refreshes, in a row that it was skipped */
    int is_masked;
} tsk__skip_token;

/* `age` is the token's in steps or in refreshes, whichever is decided about. */
static int tsk__skip_is_allowed(const tsk_generate_options *o, const tsk__skip_token *token, int32_t age) {
    if (token->is_masked && !o->skip.masked) return 0;
    if (token->id != token->computed_id) return 0;
    return o->skip.max_age <= 0 || age < o->skip.max_age;
}

/* cosines[state * stride], state 0 .. n_states-1, of this token. The outlier test looks at each layer, the threshold at
   their mean; `mean > threshold` is strict, so that a threshold of 1 never skips. */
static int tsk__skip_similar(const float *cosines, int32_t n_states, int32_t stride, float threshold, float outlier) {
    double sum = 0;
    int32_t l;
    for (l = 0; l < n_states; l++) {
        float c = cosines[(size_t)l * (size_t)stride];
        if (!(c >= outlier)) return 0;
        sum += (double)c;
    }
    return n_states > 0 && sum / n_states > (double)threshold;
}

/* ---- by rows */

/* A position of the block, in the order of the block's list. */
typedef struct tsk__skip_slot {
    int is_masked;
    int is_changed;                /* its id is not the one with which it last ran */
    float confidence;              /* masked: of its last prediction, or by which this pass would rank it */
} tsk__skip_slot;

/* Whether a is the better confidence; one that is no number comes after all others. */
static int tsk__skip_is_better(float a, float b) { return a > b || (a == a && b != b); }

/* The `most` best masked slots run; of equals the first. */
static void tsk__skip_add_best(const tsk__skip_slot *slots, int32_t n, int32_t most, uint8_t *runs) {
    int32_t i, chosen, n_masked = 0;
    for (i = 0; i < n; i++) n_masked += slots[i].is_masked;
    for (i = 0; i < n && most >= n_masked; i++) runs[i] |= slots[i].is_masked != 0;
    for (chosen = 0; most < n_masked && chosen < most; chosen++) {
        int32_t best = -1;
        for (i = 0; i < n; i++)
            if (slots[i].is_masked && !runs[i] &&
                (best < 0 || tsk__skip_is_better(slots[i].confidence, slots[best].confidence)))
                best = i;
        runs[best] = 1;
    }
}

/* Of the masked slots on one side of slot `from` the `ahead` nearest run. */
static void tsk__skip_add_near(const tsk__skip_slot *slots, int32_t n, int32_t from, int32_t step, int32_t ahead,
                               uint8_t *runs) {
    int32_t i;
    for (i = from + step; ahead > 0 && i >= 0 && i < n; i += step) {
        if (!slots[i].is_masked) continue;
        runs[i] = 1;
        ahead--;
    }
}

/* runs[i] becomes 1 for the slots that run in a pass after the block's first: the `most` best masked ones, the changed
   ones, and on either side of each of these the `ahead` nearest masked ones. */
static void tsk__skip_rows(const tsk__skip_slot *slots, int32_t n, int32_t most, int32_t ahead, uint8_t *runs) {
    int32_t i;
    memset(runs, 0, (size_t)n);
    tsk__skip_add_best(slots, n, most, runs);
    for (i = 0; i < n; i++) {
        if (!slots[i].is_changed) continue;
        runs[i] = 1;
        tsk__skip_add_near(slots, n, i, -1, ahead, runs);
        tsk__skip_add_near(slots, n, i, 1, ahead, runs);
    }
}

#endif /* SECTION_GUARD_SKIP */
