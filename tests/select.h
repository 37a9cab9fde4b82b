/* tsk_select of candidates of which only the confidences are known. */
static TEST_UNUSED int32_t select_by(tsk_transfer transfer, float threshold, float factor, int32_t quota, int32_t n,
                                     const float *confidences, uint8_t *commit) {
    tsk_candidate candidates[1024];
    tsk_transfer_rule rule;
    int32_t i;
    rule.transfer = transfer;
    rule.threshold = threshold;
    rule.factor = factor;
    rule.quota = quota;
    for (i = 0; i < n; i++) {
        candidates[i].position = 3 * i;
        candidates[i].id = 7;
        candidates[i].confidence = confidences[i];
        candidates[i].entropy = -1;
    }
    return tsk_select(&rule, n, candidates, commit);
}
