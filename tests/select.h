/* The transfer rules of an option struct, and what they commit by their definitions. */
#ifndef TEST_SELECT_H
#define TEST_SELECT_H

static TEST_UNUSED tsk_transfer_rule transfer_rule_of(const tsk_generate_options *o, int32_t quota) {
    tsk_transfer_rule rule;
    rule.transfer = o->transfer;
    rule.threshold = o->threshold;
    rule.factor = o->factor;
    rule.frechet = o->frechet;
    rule.entropy_bound = o->entropy_bound;
    rule.local_leap = o->local_leap;
    rule.local_radius = o->local_radius;
    rule.quota = quota;
    return rule;
}

/* A rule whose numbers all have this value. */
static TEST_UNUSED tsk_transfer_rule transfer_rule(tsk_transfer transfer, float parameter, int32_t quota) {
    tsk_transfer_rule rule;
    rule.transfer = transfer;
    rule.threshold = rule.factor = rule.frechet = rule.entropy_bound = rule.local_leap = parameter;
    rule.local_radius = (int32_t)parameter;
    rule.quota = quota;
    return rule;
}

/* tsk_select of candidates of which only these are known; entropies and positions may be NULL. */
static TEST_UNUSED int32_t select_by(const tsk_transfer_rule *rule, int32_t n, const float *confidences,
                                     const float *entropies, const int32_t *positions, uint8_t *commit) {
    tsk_candidate candidates[1024];
    int32_t i;
    for (i = 0; i < n; i++) {
        candidates[i].position = positions ? positions[i] : 3 * i;
        candidates[i].id = 7;
        candidates[i].confidence = confidences[i];
        candidates[i].entropy = entropies ? entropies[i] : 0.0f;
    }
    return tsk_select(rule, n, candidates, commit);
}

/* How many come before candidate i: the surer ones, and of equals those before it. */
static int32_t defined_rank(int32_t n, const float *confidences, int32_t i) {
    int32_t j, rank = 0;
    for (j = 0; j < n; j++)
        rank += confidences[j] > confidences[i] || (confidences[j] == confidences[i] && j < i);
    return rank;
}

/* Whether the `count` best may be committed together: c and h are their confidences and entropies, best first. */
static int defined_fit(const tsk_transfer_rule *r, int32_t count, const float *c, const float *h) {
    double sum = 0, entropy = 0, largest = 0, last = (double)c[count - 1];
    int32_t i;
    for (i = 0; i < count; i++) {
        sum += (double)c[i];
        entropy += (double)h[i];
        if ((double)h[i] > largest) largest = (double)h[i];
    }
    switch (r->transfer) {
    case TSK_TRANSFER_SCHEDULE: return count <= r->quota;
    case TSK_TRANSFER_THRESHOLD: return c[count - 1] >= r->threshold;
    case TSK_TRANSFER_FACTOR: return last >= 1.0 - (double)r->factor / (count + 1);
    case TSK_TRANSFER_FRECHET:
        sum -= count - 1;
        return (sum > 0 ? sum : 0) - (1 - last) > (double)r->frechet;
    default: return entropy - largest <= (double)r->entropy_bound;
    }
}

static int defined_leap(const tsk_transfer_rule *r, int32_t n, const float *confidences, const int32_t *positions,
                        int32_t i) {
    int32_t j;
    int has_anchor = 0;
    for (j = 0; j < n; j++)
        has_anchor |= confidences[j] >= r->threshold && positions[j] >= positions[i] - r->local_radius &&
                      positions[j] <= positions[i] + r->local_radius;
    return confidences[i] >= r->threshold || (has_anchor && confidences[i] >= r->local_leap);
}

/* By the definitions: the most that fit, or else one. Up to 64 candidates, whose numbers are no NaN. */
static TEST_UNUSED int32_t select_by_definition(const tsk_transfer_rule *r, int32_t n, const float *confidences,
                                                const float *entropies, const int32_t *positions, uint8_t *commit) {
    float c[64], h[64];
    int32_t i, count, n_committed = 0;
    for (i = 0; i < n; i++) {
        int32_t rank = defined_rank(n, confidences, i);
        c[rank] = confidences[i], h[rank] = entropies[i];
    }
    for (count = n; count > 1 && !defined_fit(r, count, c, h);) count--;
    for (i = 0; i < n; i++) {
        int32_t rank = defined_rank(n, confidences, i);
        commit[i] = r->transfer == TSK_TRANSFER_LEAP
                        ? rank == 0 || defined_leap(r, n, confidences, positions, i)
                        : rank < count;
        n_committed += commit[i];
    }
    return n_committed;
}

#endif
