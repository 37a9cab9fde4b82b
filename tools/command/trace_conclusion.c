/* What the step-by-step run means, in words. */
#include "trace.h"

const step_log *trace_first_stable_masked(const generation_log *log) {
    size_t i;
    for (i = 0; i < log->count; i++)
        if (log->steps[i].n_stable_masked) return &log->steps[i];
    return NULL;
}

const step_log *trace_first_all_stable(const generation_log *log) {
    size_t i;
    for (i = 0; i < log->count; i++)
        if (log->steps[i].n_active == 0 && log->steps[i].n_masked) return &log->steps[i];
    return NULL;
}

/* Positions decoded in both; what one of them left masked or never reached is not compared. */
int32_t trace_differing_tokens(const trace *t, int32_t *compared) {
    int32_t i, mask = t->config->mask_token_id, n = 0;
    *compared = 0;
    for (i = 0; i < t->skip.canvas_length && i < t->baseline.canvas_length; i++) {
        int is_prompt = i < t->prompt->count && t->prompt->ids[i] != mask;
        if (is_prompt || t->skip.canvas[i] == mask || t->baseline.canvas[i] == mask) continue;
        (*compared)++;
        n += trace_differs(t, i);
    }
    return n;
}

static void append_difference(const trace *t, tsk_text *out) {
    int32_t compared, n = trace_differing_tokens(t, &compared);
    if (n) cli_append(out, "%d of %d tokens differ from the baseline's", (int)n, (int)compared);
    else cli_append(out, "all %d tokens are the baseline's", (int)compared);
}

const char *trace_rule(const trace *t) {
    static const char *const names[] = {"off", "states", "rows"};
    tsk_generate_options o = t->settings->generate;
    tsk_generate_options_resolve(t->engine->model, &o);
    return names[o.skip.rule];
}

void trace_conclusion(const trace *t, tsk_text *out) {
    const step_log *first = trace_first_stable_masked(&t->skip);
    int is_exit = t->settings->generate.skip.policy == TSK_SKIP_EXIT;
    size_t i, steps = 0;
    if (!t->leaves_out) {
        cli_append(out, "TokenSkip is off: nothing was skipped.");
        return;
    }
    if (!t->layer_k) {
        append_difference(t, out);
        cli_append(out, ".");
        return;
    }
    if (!first) {
        cli_append(out, "no masked token was judged stable: every prediction came from all layers; ");
        append_difference(t, out);
        cli_append(out, ".");
        return;
    }
    for (i = 0; i < t->skip.count; i++) steps += t->skip.steps[i].n_stable_masked > 0;
    cli_append(
        out, "masked tokens were judged stable first at block %d, step %d (%d of %d masked), and in %zu steps in all; ",
        (int)first->block, (int)first->block_step, (int)first->n_stable_masked, (int)first->n_masked, steps);
    if (is_exit) cli_append(out, "they keep layer-%d states: generation is damaged; ", (int)t->layer_k);
    else cli_append(out, "they keep their last computed predictions; ");
    append_difference(t, out);
    cli_append(out, ".");
}

/* A JSON string: quotes, escapes, and control characters that a terminal would obey left out. */
void trace_token_text(const trace *t, int32_t id, tsk_text *out) {
    tsk_text text = {0}, quoted = {0};
    tsk_json_writer json = {0};
    size_t i;
    if (!t->engine->tokenizer || tsk_tokenizer_decode(t->engine->tokenizer, &id, 1, 0, &text, NULL) != TSK_OK) {
        cli_append(out, "%d", (int)id);
        return;
    }
    json.out = &quoted;
    tsk_json_write_string(&json, text.data ? text.data : "", text.length);
    for (i = 0; i < quoted.length; i++) {
        unsigned char c = (unsigned char)quoted.data[i],
                      next = i + 1 < quoted.length ? (unsigned char)quoted.data[i + 1] : 0;
        if (c == 127 || (c == 0xc2 && next < 0xa0)) quoted.data[i] = '?'; /* delete, and the C1 controls' first byte
                                                                             … */
        if (c == 0xc2 && next < 0xa0) quoted.data[i + 1] = '?';
    }
    cli_append_bytes(out, quoted.data, quoted.length);
    tsk_text_free(&text);
    tsk_text_free(&quoted);
}
