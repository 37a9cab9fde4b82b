/* The trace for a terminal, section by section in the notebook's order. */
#include "trace.h"

#include <math.h>

static void heading(tsk_text *out, const char *title) { cli_append(out, "\n== %s\n", title); }

static const char *verdict(double difference) { return difference == 0 ? "PASS" : "FAIL"; }

/* [32, 4096], or N/A where no row ran. */
static const char *shape_string(const uint64_t shape[3], char *buffer, size_t size) {
    if (!shape[0]) return "N/A";
    if (shape[2])
        snprintf(buffer, size, "[%llu, %llu, %llu]", (unsigned long long)shape[0], (unsigned long long)shape[1],
                 (unsigned long long)shape[2]);
    else snprintf(buffer, size, "[%llu, %llu]", (unsigned long long)shape[0], (unsigned long long)shape[1]);
    return buffer;
}

/* Shapes and the difference over the rows that ran in both. */
static void append_shapes(tsk_text *out, const trace_difference *d) {
    char a[80], b[80];
    cli_append(out, "baseline=%s, skip=%s", shape_string(d->base->shape, a, sizeof a),
               shape_string(d->other_shape, b, sizeof b));
    if (d->max >= 0) cli_append(out, ", diff=%.6f", d->max);
    if (d->max >= 0 && d->base->shape[0] != d->other_shape[0]) cli_append(out, " over the rows that ran");
}

static const trace_difference *find(const trace_comparison *c, const char *format, int32_t layer, const char *part) {
    char name[64];
    snprintf(name, sizeof name, format, (int)layer);
    return trace_comparison_find(c, name, part);
}

/* The notebook's: 0, K-1, K, K+1 and the last, each once. Returns how many. */
static int key_layers(const trace *t, int32_t layers[5]) {
    int32_t wanted[5], k = t->notes_k;
    int i, j, n = 0;
    wanted[0] = 0;
    wanted[1] = k - 1;
    wanted[2] = k;
    wanted[3] = k + 1;
    wanted[4] = t->config->n_layers - 1;
    for (i = 0; i < 5; i++) {
        for (j = 0; j < n && layers[j] != wanted[i]; j++) {
        }
        if (j == n && wanted[i] >= 0 && wanted[i] < t->config->n_layers) layers[n++] = wanted[i];
    }
    return n;
}

/* ---- Sections of the two-step comparison ------------------------------------------------------------------------ */

static const char *policy_name(const tsk_generate_options *o) {
    return o->skip.policy == TSK_SKIP_EXIT ? "exit" : "reuse";
}

static void append_settings(const trace *t, tsk_text *out) {
    const tsk_generate_options *o = &t->settings->generate;
    cli_append(out, "%d layers, prompt_len: %d, total_len: %d, %s\n", (int)t->config->n_layers, (int)t->prompt->count,
               (int)(t->prompt->count + o->gen_length), tsk_model_device_name(t->engine->model));
    if (!t->leaves_out) {
        cli_append(out, "TokenSkip is off: no comparison\n");
        return;
    }
    cli_append(out, "compared: %s (baseline) and %s\n", t->names[0], t->names[1]);
    if (o->refresh == TSK_REFRESH_NEAR)
        cli_append(out, "block starts: what has changed, the block, %d masks behind it\n", (int)o->refresh_near);
    if (o->refresh_window > 0) cli_append(out, "window: %d positions behind the block\n", (int)o->refresh_window);
    if (strcmp(trace_rule(t), "rows") == 0)
        cli_append(out, "TokenSkip: rule rows, margin %d, ahead %d\n", (int)o->skip.rows_margin,
                   (int)o->skip.rows_ahead);
    if (!t->layer_k && !(t->notes.is_there && t->settings->notebook)) return;
    if (!t->layer_k) cli_append(out, "the comparison of two steps is by states:\n");
    cli_append(out, "TokenSkip: K=%d, threshold=%g, outlier=%g, policy %s, masked tokens %s, reference %s\n",
               (int)t->notes_k, (double)o->skip.threshold, (double)o->skip.outlier, policy_name(o),
               o->skip.masked ? "may be skipped" : "always run",
               o->skip.reference == TSK_SKIP_LAST_STEP ? "last-step" : "last-computed");
}

static void append_initial(const trace *t, tsk_text *out) {
    const notebook *n = &t->notes;
    char shape[80];
    heading(out, "Initial forward");
    cli_append(out, "KV cache: %d layers, K and V %s each\n", (int)t->config->n_layers,
               shape_string(n->kv_shape, shape, sizeof shape));
    if (t->settings->keep_masks) cli_append(out, "masks kept\n");
    else cli_append(out, "%d masks filled with the argmax of their logits\n", (int)n->n_filled);
    cli_append(out, "block: %d positions from %d to %d\n", (int)n->n_positions, (int)n->positions[0],
               (int)n->positions[n->n_positions - 1]);
}

static void append_layer_outputs(const trace *t, tsk_text *out, const trace_comparison *c) {
    int32_t layer;
    int any = 0;
    for (layer = 0; layer < t->config->n_layers; layer++) {
        const trace_difference *d = find(c, "layer_%d", layer, "");
        if (!d || (d->max == 0 && d->base->shape[0] == d->other_shape[0])) continue;
        cli_append(out, "  layer %2d: ", (int)layer);
        append_shapes(out, d);
        cli_append(out, " ***\n");
        any = 1;
    }
    if (!any) cli_append(out, "  every layer's output is the same\n");
}

/* Whether a comparison's records of these names are the same, in every row that either has. */
static int is_same(const trace_comparison *c, const char *const *names, int n_names) {
    size_t i;
    int j;
    for (i = 0; i < c->count; i++) {
        const trace_difference *d = &c->items[i];
        const char *name = d->base->name, *tail;
        if (strncmp(name, "layer_", 6) == 0) {
            tail = strchr(name + 6, '_');
            name = tail ? tail + 1 : "output";
        } else if (trace_is_cache(name)) name = "kv";
        for (j = 0; j < n_names; j++)
            if (strcmp(name, names[j]) == 0 &&
                (d->max > 0 || memcmp(d->base->shape, d->other_shape, sizeof d->other_shape) != 0))
                return 0;
    }
    return 1;
}

/* A section in which nothing differs takes one line. */
static int is_told_in_a_line(tsk_text *out, const char *title, const trace_comparison *c, const char *const *names,
                             int n_names) {
    if (!is_same(c, names, n_names)) return 0;
    cli_append(out, "\n== %s: nothing differs\n", title);
    return 1;
}

static void append_exact(const trace *t, tsk_text *out, const char *title, const trace_comparison *c) {
    static const char *const names[] = {"output", "logits"};
    double difference = trace_comparison_max(c, "logits", "");
    if (is_same(c, names, 2)) {
        cli_append(out, "\n== %s: nothing differs, as it must be: PASS\n", title);
        return;
    }
    heading(out, title);
    cli_append(out, "logits diff: %.6f, expected 0: %s\n", difference, verdict(difference));
    append_layer_outputs(t, out, c);
}

static void append_given(const trace *t, tsk_text *out) {
    static const char *const names[] = {"logits"};
    char title[128];
    snprintf(title, sizeof title, "Step 1: baseline against TokenSkip with threshold %g",
             (double)t->settings->generate.skip.threshold);
    if (is_told_in_a_line(out, title, &t->notes.given1, names, 1)) return;
    heading(out, title);
    cli_append(out, "logits diff: %.6f\n", trace_comparison_max(&t->notes.given1, "logits", ""));
}

static void append_layer_shapes(const trace *t, tsk_text *out) {
    int32_t layer, differing = 0;
    for (layer = 0; layer < t->config->n_layers; layer++) {
        const trace_difference *d = find(&t->notes.given1, "layer_%d", layer, "");
        differing += d && d->base->shape[0] != d->other_shape[0];
    }
    if (!differing) {
        cli_append(out, "\n== Input shapes, layer by layer: nothing differs\n");
        return;
    }
    heading(out, "Input shapes, layer by layer");
    for (layer = 0; layer < t->config->n_layers; layer++) {
        const trace_difference *d = find(&t->notes.given1, "layer_%d", layer, "");
        uint64_t other[3] = {0, 0, 0};
        char a[80], b[80];
        if (!d) continue;
        other[0] = d->other_shape[0];
        other[1] = d->base->input_shape[1];
        cli_append(out, "layer %2d: baseline=%s, skip=%s%s%s\n", (int)layer, shape_string(d->base->shape, a, sizeof a),
                   shape_string(other, b, sizeof b), layer == t->notes_k ? " <-- split" : "",
                   d->base->shape[0] != other[0] ? " *** DIFF ***" : "");
    }
}

typedef struct part { const char *label, *format, *part; } part;

static void append_parts(const trace *t, tsk_text *out, const char *title, const part *parts, int n_parts) {
    const char *names[3];
    int32_t layers[5];
    int i, j, n = key_layers(t, layers);
    for (i = 0; i < n_parts; i++) names[i] = strchr(parts[i].format + 6, '_') + 1;
    if (is_told_in_a_line(out, title, &t->notes.given1, names, n_parts)) return;
    heading(out, title);
    for (i = 0; i < n; i++)
        for (j = 0; j < n_parts; j++) {
            const trace_difference *d = find(&t->notes.given1, parts[j].format, layers[i], parts[j].part);
            if (!d) continue;
            cli_append(out, "layer %2d %-8s ", (int)layers[i], parts[j].label);
            append_shapes(out, d);
            cli_append(out, "\n");
        }
}

static void append_cosines(const trace *t, tsk_text *out) {
    const notebook *n = &t->notes;
    int32_t i, stable, masked, stable_masked;
    double range[4] = {2, -2, 2, -2};
    heading(out, "Cosines with step 0, and the verdict");
    notebook_count(n, &stable, &masked, &stable_masked);
    if (!n->n_cosines) cli_append(out, "no states are compared: K is below 2, or not below the number of layers\n");
    for (i = 0; n->n_cosines && i < n->n_positions; i++) {
        double least, mean;
        notebook_cosine(n, i, &least, &mean);
        range[0] = fmin(range[0], least);
        range[1] = fmax(range[1], least);
        range[2] = fmin(range[2], mean);
        range[3] = fmax(range[3], mean);
    }
    if (n->n_cosines) {
        cli_append(out, "layers 1-%d: token min cos %.6f ~ %.6f, token mean cos %.6f ~ %.6f\n", (int)n->n_cosines,
                   range[0], range[1], range[2], range[3]);
    }
    cli_append(out, "active: %d, stable: %d\n", (int)(n->n_positions - stable), (int)stable);
    for (i = 0; n->n_cosines && i < n->n_positions; i++) {
        double least, mean;
        notebook_cosine(n, i, &least, &mean);
        cli_append(out, "  token %2d: min=%.6f, mean=%.6f -> %s%s\n", (int)i, least, mean,
                   n->active[i] ? "active" : "stable", n->masked[i] ? " (masked)" : "");
    }
}

static void append_rows(tsk_text *out, const trace_difference *d) {
    int32_t row, n = 0, shown = 0;
    for (row = 0; row < d->base->n_rows; row++) n += d->rows[row] > 0;
    cli_append(out, "          %s differs at %d positions:", d->base->part[0] == 'k' ? "K" : "V", (int)n);
    for (row = 0; row < d->base->n_rows && shown < 16; row++)
        if (d->rows[row] > 0) {
            cli_append(out, " %d", (int)d->base->positions[row]);
            shown++;
        }
    cli_append(out, "%s\n", n > shown ? " ..." : "");
}

static void append_caches(const trace *t, tsk_text *out) {
    static const char *const names[] = {"kv"};
    int32_t layers[5];
    int i, n = key_layers(t, layers);
    if (is_told_in_a_line(out, "KV cache", &t->notes.given1, names, 1)) return;
    heading(out, "KV cache");
    for (i = 0; i < n; i++) {
        const trace_difference *k = find(&t->notes.given1, "kv_%d", layers[i], "k"),
                               *v = find(&t->notes.given1, "kv_%d", layers[i], "v");
        if (!k || !v) continue;
        cli_append(out, "layer %2d: K diff=%.6f, V diff=%.6f\n", (int)layers[i], k->max, v->max);
        if (k->max > 0) append_rows(out, k);
        if (v->max > 0) append_rows(out, v);
    }
}

static void append_hidden(const trace *t, tsk_text *out) {
    static const char *const names[] = {"final_norm"};
    const trace_difference *d = trace_comparison_find(&t->notes.given1, "final_norm", "");
    int32_t i;
    if (is_told_in_a_line(out, "Final hidden states, token by token", &t->notes.given1, names, 1)) return;
    heading(out, "Final hidden states, token by token");
    for (i = 0; d && i < t->notes.n_positions; i++)
        cli_append(out, "  token %2d (%s): diff=%.6f%s\n", (int)i, t->notes.active[i] ? "active" : "stable", d->rows[i],
                   d->rows[i] > 0.01 ? " ***" : "");
}

static void append_logits(const trace *t, tsk_text *out) {
    const notebook *n = &t->notes;
    static const char *const names[] = {"logits"};
    const trace_difference *d = trace_comparison_find(&n->given1, "logits", "");
    int32_t i, agree = 0;
    if (is_told_in_a_line(out, "Logits, token by token", &n->given1, names, 1)) return;
    heading(out, "Logits, token by token");
    for (i = 0; d && i < n->n_positions; i++) {
        int same = n->argmax_base[i] == n->argmax_given[i];
        agree += same;
        cli_append(out, "  token %2d (%s): diff=%.6f, argmax %s", (int)i, n->active[i] ? "active" : "stable",
                   d->rows[i], same ? "same" : "differs: ");
        if (!same) {
            trace_token_text(t, n->argmax_base[i], out);
            cli_append(out, " became ");
            trace_token_text(t, n->argmax_given[i], out);
        }
        cli_append(out, "\n");
    }
    cli_append(out, "argmax agrees for %d of %d tokens\n", (int)agree, (int)n->n_positions);
}

static void append_summary(const trace *t, tsk_text *out) {
    const notebook *n = &t->notes;
    double step0 = trace_comparison_max(&n->step0, "logits", ""),
           exact = trace_comparison_max(&n->exact1, "logits", "");
    int32_t stable, masked, stable_masked;
    notebook_count(n, &stable, &masked, &stable_masked);
    heading(out, "Summary of the two steps");
    cli_append(out, "step 0 (nothing to compare with): logits diff %.6f %s\n", step0, verdict(step0));
    cli_append(out, "step 1 (threshold 1.0): logits diff %.6f %s\n", exact, verdict(exact));
    cli_append(out, "step 1 (threshold %g): active %d, stable %d, logits diff %.6f\n",
               (double)t->settings->generate.skip.threshold, (int)(n->n_positions - stable), (int)stable,
               trace_comparison_max(&n->given1, "logits", ""));
    cli_append(out, "masked tokens in the block: %d, stable: %d, stable and masked: %d\n", (int)masked, (int)stable,
               (int)stable_masked);
    if (stable == n->n_positions && masked)
        cli_append(out, "all tokens are stable while masks remain: the upper layers run for nobody\n");
}

static void append_comparison(const trace *t, tsk_text *out) {
    static const part qkv[] = {{"q_proj", "layer_%d_q_proj", ""},
                               {"k_proj", "layer_%d_k_proj", ""},
                               {"v_proj", "layer_%d_v_proj", ""}};
    static const part rope[] = {{"q", "layer_%d_rope", "q"}, {"k", "layer_%d_rope", "k"}};
    static const part attention[] = {{"attn_out", "layer_%d_attn_out", ""}};
    static const part ffn[] = {{"ff_proj", "layer_%d_ff_proj", ""},
                               {"up_proj", "layer_%d_up_proj", ""},
                               {"ffn_out", "layer_%d_ffn_out", ""}};
    append_initial(t, out);
    append_exact(t, out, "Step 0: baseline against TokenSkip with nothing to compare with", &t->notes.step0);
    append_exact(t, out, "Step 1: baseline against TokenSkip with threshold 1.0", &t->notes.exact1);
    append_given(t, out);
    append_layer_shapes(t, out);
    append_parts(t, out, "Q, K, V projections", qkv, 3);
    append_parts(t, out, "RoPE", rope, 2);
    append_parts(t, out, "Attention output", attention, 1);
    append_parts(t, out, "FFN", ffn, 3);
    append_cosines(t, out);
    append_caches(t, out);
    append_hidden(t, out);
    append_logits(t, out);
    append_summary(t, out);
}

/* ---- Generations ------------------------------------------------------------------------------------------------ */

/* Of the blocks that ran: what this command was asked to leave alone is no residual. */
static int32_t residual(const generation_log *log) {
    int32_t i, sum = 0;
    for (i = 0; i < log->n_blocks; i++) sum += log->blocks[i].mask_residual;
    return sum;
}

static void append_generation(tsk_text *out, const char *name, const generation_log *log) {
    const tsk_result *r = &log->result;
    int32_t i;
    cli_append(out, "%-9s nfe=%d, mask_residual=%d, tokens before the end=%d", name, (int)r->nfe, (int)residual(log),
               (int)r->n_before_end);
    if (r->token_layers_total)
        cli_append(out, ", token-layers of block steps computed=%.1f %%",
                   100.0 * (double)r->token_layers_computed / (double)r->token_layers_total);
    cli_append(out, "\n          mask residual by block:");
    for (i = 0; i < log->n_blocks; i++) cli_append(out, " %d", (int)log->blocks[i].mask_residual);
    cli_append(out, "\n");
}

/* How many rows ran for which reason, and which masked ones did not. */
static void append_reasons(tsk_text *out, const step_log *step) {
    int32_t counts[ROW_NO_STATES + 1] = {0}, i, n = 0, shown = 0;
    int reason;
    for (i = 0; i < step->n_positions; i++) counts[step->reasons[i]]++;
    if (counts[ROW_START] || counts[ROW_ALL] || counts[ROW_NO_STATES]) return; /* all of them */
    cli_append(out, "  ran:");
    for (reason = ROW_COMMITTED; reason <= ROW_AGE; reason++)
        if (counts[reason])
            cli_append(out, "%s %d %s", n++ ? "," : "", (int)counts[reason], reason_name((row_reason)reason));
    if (!n) cli_append(out, " nobody");
    for (reason = ROW_LEFT_OUT; reason <= ROW_STABLE; reason++)
        if (counts[reason]) cli_append(out, "; %d %s", (int)counts[reason], reason_name((row_reason)reason));
    if (step->n_stable_masked) cli_append(out, ", masked ones at");
    for (i = 0; i < step->n_positions && step->n_stable_masked && shown < 20; i++)
        if (!step->active[i] && step->masked[i]) {
            cli_append(out, " %d", (int)step->positions[i]);
            shown++;
        }
    cli_append(out, "%s\n", shown < step->n_stable_masked ? " ..." : "");
}

/* By which cosines tokens are stable. */
static void append_stable(tsk_text *out, const step_log *step) {
    double from = 2, to = -2, lowest = 2;
    int32_t i;
    for (i = 0; i < step->n_positions; i++) {
        double least, mean;
        if (step->active[i] || !step->n_cosines) continue;
        reason_cosines(step, i, &least, &mean);
        from = fmin(from, mean);
        to = fmax(to, mean);
        lowest = fmin(lowest, least);
    }
    if (from <= to) cli_append(out, "  stable by mean cosines of %.4f to %.4f, none below %.4f\n", from, to, lowest);
}

/* What the full pass would have committed that did not run. */
static void append_missed(const trace *t, tsk_text *out, const step_log *step) {
    int32_t i, shown = 0;
    if (!step->shadow || !step->n_stable_masked) return;
    cli_append(out, "  of these the full pass would commit %s", step->shadow->n_missed ? "" : "none");
    for (i = 0; i < step->n_positions && shown < 8; i++) {
        if (step->active[i] || !step->shadow->full_commits[i]) continue;
        cli_append(out, "%s", shown++ ? ", " : "");
        trace_token_text(t, step->shadow->full_predictions[i], out);
        cli_append(out, " at %d (%.3f)", (int)step->positions[i], (double)step->shadow->full_confidences[i]);
    }
    cli_append(out, "%s\n", step->shadow->n_missed > shown ? ", ..." : "");
}

/* What ran, and why: under rule `rows` the others are left out, under `states` they are stable. */
static void append_step(const trace *t, tsk_text *out, const step_log *step, int by_rows) {
    int32_t committed = step->n_masked - step->masks_left;
    cli_append(out, "block %d step %d: mask=%d", (int)step->block, (int)step->block_step, (int)step->n_masked);
    if (step->n_cosines)
        cli_append(out, ", stable=%d, stable&mask=%d", (int)(step->n_positions - step->n_active),
                   (int)step->n_stable_masked);
    else if (by_rows) cli_append(out, ", rows=%d%s", (int)step->n_rows, step->block_step ? "" : " (block start)");
    else cli_append(out, step->block_step ? " (nothing to compare with)" : " (block start)");
    cli_append(out, ", committed=%d\n", (int)committed);
    append_reasons(out, step);
    append_stable(out, step);
    append_missed(t, out, step);
}

static void append_steps(const trace *t, tsk_text *out) {
    const generation_log *log = t->leaves_out ? &t->skip : &t->baseline;
    const step_log *danger = trace_first_all_stable(log);
    size_t i;
    heading(out, "Generation: mask residual and length");
    append_generation(out, "baseline", &t->baseline);
    if (t->leaves_out) append_generation(out, t->settings->versus ? "given" : "TokenSkip", &t->skip);
    heading(out, "Step by step");
    for (i = 0; i < log->count; i++) {
        append_step(t, out, &log->steps[i], strcmp(trace_rule(t), "rows") == 0);
        if (log->steps[i].masks_left == 0)
            cli_append(out, "block %d: done, mask residual 0\n", (int)log->steps[i].block);
    }
    if (danger && t->layer_k)
        cli_append(
            out,
            "all tokens stable while masks remained, first at block %d, step %d: the upper layers ran for nobody\n",
            (int)danger->block, (int)danger->block_step);
}

/* ---- Shadow ----------------------------------------------------------------------------------------------------- */

static double mean(double sum, uint64_t n) { return n ? sum / (double)n : 0; }

static const char error_columns[] = " masked  flips            KL mean    KL max  conf mean  conf max\n";

static void append_error(tsk_text *out, const shadow_error *e) {
    if (!e->n) {
        cli_append(out, "      0\n");
        return;
    }
    cli_append(out, "%7llu %6llu %6.2f %%  %9.2e %9.2e  %9.2e %9.2e\n", (unsigned long long)e->n,
               (unsigned long long)e->flips, 100 * mean((double)e->flips, e->n), mean(e->kl, e->n), e->kl_max,
               mean(e->confidence, e->n), e->confidence_max);
}

/* Relative L2 of what there is. */
static void append_relative(tsk_text *out, const shadow_norm *norm) {
    if (norm->full > 0) cli_append(out, "  %9.2e", shadow_relative(norm));
    else cli_append(out, "  %9s", "-");
}

static void append_shadow_steps(const trace *t, tsk_text *out) {
    size_t i;
    cli_append(out, "%-20s%s%-20s", "step", error_columns, "all");
    append_error(out, &t->skip.shadow.all);
    for (i = 0; i < t->skip.count; i++) {
        const step_log *step = &t->skip.steps[i];
        if (!step->shadow) continue;
        cli_append(out, "block %3d step %3d  ", (int)step->block, (int)step->block_step);
        append_error(out, &step->shadow->error);
    }
}

static void append_shadow_layers(const trace *t, tsk_text *out) {
    int32_t layer;
    cli_append(out, "\nrelative L2 difference by layer, of the outputs of tokens that ran, of what stands for skipped "
                    "tokens' outputs,\nand of skipped tokens' K and V\n%-9s %10s %10s %10s\n",
               "layer", "ran", "skipped", "K and V");
    for (layer = 0; layer < t->config->n_layers; layer++) {
        cli_append(out, "%5d    ", (int)layer);
        append_relative(out, &t->skip.shadow.layers[layer].active);
        append_relative(out, &t->skip.shadow.layers[layer].stable);
        append_relative(out, &t->skip.shadow.layers[layer].kv);
        cli_append(out, "\n");
    }
}

static void append_shadow_ages(const trace *t, tsk_text *out) {
    const shadow_totals *totals = &t->skip.shadow;
    int age;
    cli_append(out, "\nby token age: steps in a row that a token was skipped, 0 where it ran\n%-6s%9s%11s%s", "age",
               "skipped", "K and V", error_columns);
    for (age = 0; age <= SHADOW_AGES; age++) {
        if (!totals->by_age[age].n && !totals->skipped_by_age[age]) continue;
        cli_append(out, "%3d%-3s%9llu", age, age == SHADOW_AGES ? "+" : "",
                   (unsigned long long)totals->skipped_by_age[age]);
        append_relative(out, &totals->kv_by_age[age]);
        append_error(out, &totals->by_age[age]);
    }
}

static void append_shadow(const trace *t, tsk_text *out) {
    heading(out, "Shadow: the full pass beside every step, from the same state");
    append_shadow_steps(t, out);
    append_shadow_layers(t, out);
    append_shadow_ages(t, out);
}

void trace_text(const trace *t, tsk_text *out) {
    append_settings(t, out);
    if (t->leaves_out) {
        heading(out, "Where the answers part");
        parting_text(t, out);
    }
    heading(out, "Conclusion");
    trace_conclusion(t, out);
    cli_append(out, "\n");
    append_steps(t, out);
    if (t->settings->shadow && t->skip.shadow.layers) append_shadow(t, out);
    if (t->settings->notebook && t->notes.is_there) append_comparison(t, out);
    if (t->settings->notebook && !t->notes.is_there)
        cli_append(out, "\nno comparison of two steps: it is by states, which takes --cache dual and a K above 0\n");
}
