#ifndef SECTION_GUARD_SKIP
#define SECTION_GUARD_SKIP

#include "system.h"
#include "api.h"

// >>skip ==============================================================================================================
/* TokenSkip's decision: which tokens of a block are stable in this step. A token's id, mask and age say whether it may
   be stable; the cosines from the lower layers then say whether it is. This section does no arithmetic on states.
   Stable tokens skip layers K and up. */

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

#endif /* SECTION_GUARD_SKIP */
