/* Why each row of a block ran in a pass, or did not: the rules read backwards from what a pass shows. */
#include "trace.h"

const char *reason_name(row_reason reason) {
    static const char *const names[] = {"left out", "stable",    "block start", "just committed", "may be committed",
                                        "ahead",    "masked",    "moved",       "outlier",        "long skipped",
                                        "all run",  "no states"};
    return names[reason];
}

const char *reason_key(row_reason reason) {
    static const char *const keys[] = {"left_out", "stable", "start", "committed", "candidate", "ahead",
                                       "masked",   "moved",  "outlier", "age",     "all",       "no_states"};
    return keys[reason];
}

/* The rule `rows` ran the `most` surest masked rows; the other masked ones that ran are neighbours of what was
   committed. How sure: by the last pass, or, where it is drawn, by this one's draw. */
static void rank_candidates(const step_log *step, const float *sure, int32_t most) {
    int32_t i, j;
    for (i = 0; i < step->n_positions; i++) {
        int32_t better = 0;
        if (step->reasons[i] != ROW_CANDIDATE) continue;
        for (j = 0; j < step->n_positions; j++)
            better += step->active[j] && step->masked[j] && (sure[j] > sure[i] || (sure[j] == sure[i] && j < i));
        if (better >= most) step->reasons[i] = ROW_AHEAD;
    }
}

static void by_rows(step_log *step, const step_log *last, const tsk_generate_options *o) {
    int32_t i, committed = step->n_masked - step->masks_left;
    const float *sure = o->remasking == TSK_REMASKING_RANDOM ? step->confidences : last->confidences;
    for (i = 0; i < step->n_positions; i++)
        step->reasons[i] = (uint8_t)(!step->active[i] ? ROW_LEFT_OUT : step->masked[i] ? ROW_CANDIDATE : ROW_COMMITTED);
    if (o->transfer == TSK_TRANSFER_SCHEDULE && o->skip.rows_margin < step->n_positions)
        rank_candidates(step, sure, committed + o->skip.rows_margin);
}

void reason_cosines(const step_log *step, int32_t i, double *least, double *mean) {
    const float *cosines = step->cosines + (size_t)i * (size_t)step->n_cosines;
    double sum = 0;
    int32_t j;
    *least = (double)cosines[0];
    for (j = 0; j < step->n_cosines; j++) {
        sum += (double)cosines[j];
        if ((double)cosines[j] < *least) *least = (double)cosines[j];
    }
    *mean = sum / step->n_cosines;
}

static row_reason by_states(const step_log *step, const step_log *last, const tsk_generate_options *o, int32_t i) {
    double least, mean;
    if (!step->active[i]) return ROW_STABLE;
    if (!step->n_cosines) return ROW_NO_STATES;
    if (step->masked[i] && !o->skip.masked) return ROW_MASKED;
    if (last && last->committed[i]) return ROW_COMMITTED;
    reason_cosines(step, i, &least, &mean);
    if (least < (double)o->skip.outlier) return ROW_OUTLIER;
    return mean > (double)o->skip.threshold ? ROW_AGE : ROW_MOVED;
}

void reasons_find(generation_log *log, const tsk_generate_options *resolved) {
    const tsk_generate_options *o = resolved;
    size_t k;
    int32_t i;
    for (k = 0; k < log->count; k++) {
        step_log *step = &log->steps[k];
        const step_log *last = k && log->steps[k - 1].block == step->block ? &log->steps[k - 1] : NULL;
        int is_full = o->skip.full_every > 0 && step->block_step % o->skip.full_every == 0;
        step->reasons = (uint8_t *)cli_allocate((size_t)step->n_positions, 1);
        if (last && !is_full && o->skip.rule == TSK_SKIP_RULE_ROWS) {
            by_rows(step, last, o);
            continue;
        }
        for (i = 0; i < step->n_positions; i++)
            step->reasons[i] = (uint8_t)(!step->block_step                       ? ROW_START
                                         : is_full || o->skip.rule == TSK_SKIP_RULE_OFF ? ROW_ALL
                                                                                 : by_states(step, last, o, i));
    }
}
