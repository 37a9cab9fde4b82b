/* The trace as one JSON object: what --json prints and the page of --html draws. */
#include "trace.h"

#include <math.h>

/* ---- Small things ----------------------------------------------------------------------------------------------- */

/* The shortest decimal that is this float again: a float written as a double has digits that mean nothing. */
static void write_float(tsk_json_writer *json, float value) {
    char digits[32];
    int precision;
    for (precision = 6; precision < 9; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, (double)value);
        if (strtof(digits, NULL) == value) break;
    }
    snprintf(digits, sizeof digits, "%.*g", precision, (double)value);
    tsk_json_write_double(json, strtod(digits, NULL));
}

static void write_floats(tsk_json_writer *json, const float *values, int32_t n) {
    int32_t i;
    tsk_json_begin_array(json);
    for (i = 0; i < n; i++) write_float(json, values[i]);
    tsk_json_end_array(json);
}

static void write_flags(tsk_json_writer *json, const char *key, const uint8_t *flags, int32_t n) {
    int32_t i;
    tsk_json_write_key(json, key);
    tsk_json_begin_array(json);
    for (i = 0; i < n; i++) tsk_json_write_int(json, flags[i] != 0);
    tsk_json_end_array(json);
}

static void write_int(tsk_json_writer *json, const char *key, int64_t value) {
    tsk_json_write_key(json, key);
    tsk_json_write_int(json, value);
}

static void write_bool(tsk_json_writer *json, const char *key, int value) {
    tsk_json_write_key(json, key);
    tsk_json_write_bool(json, value);
}

static void write_null(tsk_json_writer *json, const char *key) {
    tsk_json_write_key(json, key);
    tsk_json_write_null(json);
}

static void begin_object(tsk_json_writer *json, const char *key) {
    tsk_json_write_key(json, key);
    tsk_json_begin_object(json);
}

static void begin_array(tsk_json_writer *json, const char *key) {
    tsk_json_write_key(json, key);
    tsk_json_begin_array(json);
}

/* null where there is no row that ran in both. */
static void write_difference(tsk_json_writer *json, const char *key, double value) {
    tsk_json_write_key(json, key);
    if (value < 0) tsk_json_write_null(json);
    else tsk_json_write_double(json, value);
}

static void write_shape(tsk_json_writer *json, const char *key, const uint64_t shape[3]) {
    int i;
    if (!shape[0]) {
        write_null(json, key);
        return;
    }
    begin_array(json, key);
    for (i = 0; i < 3 && shape[i]; i++) tsk_json_write_uint(json, shape[i]);
    tsk_json_end_array(json);
}

/* ---- Options ---------------------------------------------------------------------------------------------------- */

static void write_used(tsk_json_writer *json, const char *key, float value, int is_used) {
    tsk_json_write_key(json, key);
    if (is_used) write_float(json, value);
    else tsk_json_write_null(json);
}
static void write_transfer(tsk_json_writer *json, const tsk_generate_options *o) {
    const int leaps = o->transfer == TSK_TRANSFER_LEAP;
    write_used(json, "threshold", o->threshold, leaps || o->transfer == TSK_TRANSFER_THRESHOLD);
    write_used(json, "factor", o->factor, o->transfer == TSK_TRANSFER_FACTOR);
    write_used(json, "frechet", o->frechet, o->transfer == TSK_TRANSFER_FRECHET);
    write_used(json, "entropy_bound", o->entropy_bound, o->transfer == TSK_TRANSFER_ENTROPY);
    write_used(json, "local_leap", o->local_leap, leaps);
    if (leaps) write_int(json, "local_radius", o->local_radius);
}

void trace_options_json(const trace *t, tsk_json_writer *json, const tsk_generate_options *options) {
    static const char *const caches[] = {"dual", "prefix", "none", "block"};
    static const char *const rules[] = {"off", "states", "rows"};
    const tsk_generate_options *o = options;
    tsk_generate_options resolved = *options;
    tsk_generate_options_resolve(t->engine->model, &resolved);
    write_int(json, "gen_length", o->gen_length);
    write_int(json, "block_length", resolved.block_length);
    cli_json_string(json, "cache", caches[resolved.cache]);
    write_transfer(json, o);
    tsk_json_write_key(json, "temperature");
    write_float(json, o->temperature);
    cli_json_uint(json, "seed", o->seed);
    cli_json_string(json, "skip_rule", rules[resolved.skip.rule]);
    write_int(json, "rows_margin", o->skip.rows_margin);
    write_int(json, "rows_ahead", o->skip.rows_ahead);
    write_int(json, "skip_layer_k", t->notes_k);
    tsk_json_write_key(json, "skip_threshold");
    write_float(json, o->skip.threshold);
    tsk_json_write_key(json, "skip_outlier");
    write_float(json, o->skip.outlier);
    cli_json_string(json, "skip_policy", o->skip.policy == TSK_SKIP_EXIT ? "exit" : "reuse");
    write_bool(json, "skip_masked", o->skip.masked);
    cli_json_string(json, "skip_reference", o->skip.reference == TSK_SKIP_LAST_STEP ? "last-step" : "last-computed");
    write_int(json, "skip_max_age", o->skip.max_age);
    write_int(json, "skip_full_every", o->skip.full_every);
    write_bool(json, "skip_warm_start", o->skip.warm_start);
    write_bool(json, "skip_refresh", o->skip.refresh);
    cli_json_string(json, "refresh", o->refresh == TSK_REFRESH_NEAR ? "near" : "full");
    write_int(json, "refresh_near", o->refresh_near);
    write_int(json, "refresh_window", o->refresh_window);
    write_int(json, "refresh_every", o->refresh_every);
    write_int(json, "refresh_rows", o->refresh_rows);
}

static void write_options(const trace *t, tsk_json_writer *json) {
    begin_object(json, "options");
    trace_options_json(t, json, &t->settings->generate);
    tsk_json_end_object(json);
}

/* ---- The two-step comparison ------------------------------------------------------------------------------------ */

static void write_record(tsk_json_writer *json, const trace_difference *d) {
    write_shape(json, "baseline", d->base->shape);
    write_shape(json, "skip", d->other_shape);
    write_difference(json, "diff", d->max);
    write_difference(json, "relative", d->max < 0 ? -1 : d->squared > 0 ? sqrt(d->squared_difference / d->squared) : 0);
}

/* Every record of a layer under its name without the layer. */
static void write_layer(const trace *t, tsk_json_writer *json, const trace_comparison *c, int32_t layer) {
    char prefix[32];
    size_t i, length = (size_t)snprintf(prefix, sizeof prefix, "layer_%d", (int)layer);
    tsk_json_begin_object(json);
    write_int(json, "layer", layer);
    write_bool(json, "above_split", layer >= t->notes_k);
    for (i = 0; i < c->count; i++) {
        const trace_difference *d = &c->items[i];
        char key[64];
        if (d->base->layer != layer || trace_is_cache(d->base->name)) continue;
        snprintf(key, sizeof key, "%s%s%s", d->base->name[length] ? d->base->name + length + 1 : "output",
                 d->base->part[0] ? "_" : "", d->base->part);
        begin_object(json, key);
        write_record(json, d);
        tsk_json_end_object(json);
    }
    tsk_json_end_object(json);
}

static void write_layers(const trace *t, tsk_json_writer *json, const trace_comparison *c) {
    int32_t layer;
    begin_array(json, "layers");
    for (layer = 0; layer < t->config->n_layers; layer++) write_layer(t, json, c, layer);
    tsk_json_end_array(json);
}

static void write_exact(const trace *t, tsk_json_writer *json, const char *key, const trace_comparison *c) {
    double difference = trace_comparison_max(c, "logits", "");
    begin_object(json, key);
    write_difference(json, "logits_diff", difference);
    write_bool(json, "pass", difference == 0);
    write_layers(t, json, c);
    tsk_json_end_object(json);
}

static void write_cache(tsk_json_writer *json, const char *name, const trace_difference *d) {
    int32_t row;
    begin_object(json, name);
    write_difference(json, "diff", d->max);
    begin_array(json, "positions");
    for (row = 0; row < d->base->n_rows; row++)
        if (d->rows[row] > 0) tsk_json_write_int(json, d->base->positions[row]);
    tsk_json_end_array(json);
    tsk_json_end_object(json);
}

static void write_caches(const trace *t, tsk_json_writer *json) {
    int32_t layer;
    begin_array(json, "kv");
    for (layer = 0; layer < t->config->n_layers; layer++) {
        char name[48];
        const trace_difference *k, *v;
        snprintf(name, sizeof name, "kv_%d", (int)layer);
        k = trace_comparison_find(&t->notes.given1, name, "k");
        v = trace_comparison_find(&t->notes.given1, name, "v");
        if (!k || !v) continue;
        tsk_json_begin_object(json);
        write_int(json, "layer", layer);
        write_cache(json, "k", k);
        write_cache(json, "v", v);
        tsk_json_end_object(json);
    }
    tsk_json_end_array(json);
}

static void write_notebook_token(const notebook *n, tsk_json_writer *json, const trace_difference *hidden,
                                 const trace_difference *logits, int32_t i) {
    tsk_json_begin_object(json);
    write_int(json, "position", n->positions[i]);
    write_bool(json, "stable", !n->active[i]);
    write_bool(json, "masked", n->masked[i]);
    if (n->n_cosines) {
        double least, mean;
        notebook_cosine(n, i, &least, &mean);
        cli_json_double(json, "min_cosine", least);
        cli_json_double(json, "mean_cosine", mean);
        tsk_json_write_key(json, "cosines");
        write_floats(json, n->cosines + (size_t)i * (size_t)n->n_cosines, n->n_cosines);
    }
    write_difference(json, "hidden_diff", hidden ? hidden->rows[i] : -1);
    write_difference(json, "logits_diff", logits ? logits->rows[i] : -1);
    write_int(json, "baseline_argmax", n->argmax_base[i]);
    write_int(json, "skip_argmax", n->argmax_given[i]);
    tsk_json_end_object(json);
}

static void write_given(const trace *t, tsk_json_writer *json) {
    const notebook *n = &t->notes;
    const trace_difference *hidden = trace_comparison_find(&n->given1, "final_norm", ""),
                           *logits = trace_comparison_find(&n->given1, "logits", "");
    int32_t i, stable, masked, stable_masked, agree = 0;
    notebook_count(n, &stable, &masked, &stable_masked);
    for (i = 0; i < n->n_positions; i++) agree += n->argmax_base[i] == n->argmax_given[i];
    begin_object(json, "step1");
    write_difference(json, "logits_diff", logits ? logits->max : -1);
    write_difference(json, "hidden_diff", hidden ? hidden->max : -1);
    write_int(json, "active", n->n_positions - stable);
    write_int(json, "stable", stable);
    write_int(json, "masked", masked);
    write_int(json, "stable_masked", stable_masked);
    write_int(json, "argmax_agreement", agree);
    write_layers(t, json, &n->given1);
    begin_array(json, "tokens");
    for (i = 0; i < n->n_positions; i++) write_notebook_token(n, json, hidden, logits, i);
    tsk_json_end_array(json);
    write_caches(t, json);
    tsk_json_end_object(json);
}

static void write_comparison(const trace *t, tsk_json_writer *json) {
    const notebook *n = &t->notes;
    if (!n->is_there) {
        write_null(json, "comparison");
        return;
    }
    begin_object(json, "comparison");
    write_int(json, "canvas_length", n->canvas_length);
    write_int(json, "masks_filled", n->n_filled);
    write_shape(json, "kv_shape", n->kv_shape);
    cli_json_ids(json, "positions", n->positions, (size_t)n->n_positions);
    write_exact(t, json, "step0", &n->step0);
    write_exact(t, json, "step1_threshold_one", &n->exact1);
    write_given(t, json);
    tsk_json_end_object(json);
}

/* ---- Shadow ----------------------------------------------------------------------------------------------------- */

static double mean(double sum, uint64_t n) { return n ? sum / (double)n : 0; }

static void write_error(tsk_json_writer *json, const shadow_error *e) {
    cli_json_uint(json, "masked", e->n);
    cli_json_uint(json, "flips", e->flips);
    cli_json_double(json, "kl_mean", mean(e->kl, e->n));
    cli_json_double(json, "kl_max", e->kl_max);
    cli_json_double(json, "confidence_error_mean", mean(e->confidence, e->n));
    cli_json_double(json, "confidence_error_max", e->confidence_max);
}

static void write_norms(tsk_json_writer *json, const shadow_layer *layers, int32_t n) {
    static const char *const names[] = {"active", "skipped", "kv"};
    int32_t which, i;
    for (which = 0; which < 3; which++) {
        begin_array(json, names[which]);
        for (i = 0; i < n; i++) {
            const shadow_norm *norm = which == 0 ? &layers[i].active : which == 1 ? &layers[i].stable : &layers[i].kv;
            if (norm->full > 0) write_float(json, (float)shadow_relative(norm));
            else tsk_json_write_null(json); /* no such token */
        }
        tsk_json_end_array(json);
    }
}

static void write_step_shadow(const trace *t, tsk_json_writer *json, const step_log *step) {
    begin_object(json, "shadow");
    write_error(json, &step->shadow->error);
    tsk_json_write_key(json, "kl");
    write_floats(json, step->shadow->kl, step->n_positions);
    cli_json_ids(json, "full_predictions", step->shadow->full_predictions, (size_t)step->n_positions);
    tsk_json_write_key(json, "full_confidences");
    write_floats(json, step->shadow->full_confidences, step->n_positions);
    write_flags(json, "full_commits", step->shadow->full_commits, step->n_positions);
    write_norms(json, step->shadow->layers, t->config->n_layers);
    tsk_json_end_object(json);
}

static void write_ages(const shadow_totals *totals, tsk_json_writer *json) {
    int age;
    begin_array(json, "by_age");
    for (age = 0; age <= SHADOW_AGES; age++) {
        if (!totals->by_age[age].n && !totals->skipped_by_age[age]) continue;
        tsk_json_begin_object(json);
        write_int(json, "age", age);
        cli_json_uint(json, "skipped", totals->skipped_by_age[age]);
        cli_json_double(json, "kv", shadow_relative(&totals->kv_by_age[age]));
        write_error(json, &totals->by_age[age]);
        tsk_json_end_object(json);
    }
    tsk_json_end_array(json);
}

static void write_shadow(const trace *t, tsk_json_writer *json) {
    const shadow_totals *totals = &t->skip.shadow;
    if (!totals->layers) {
        write_null(json, "shadow");
        return;
    }
    begin_object(json, "shadow");
    cli_json_uint(json, "steps", totals->steps);
    write_error(json, &totals->all);
    begin_object(json, "by_layer");
    write_norms(json, totals->layers, t->config->n_layers);
    tsk_json_end_object(json);
    write_ages(totals, json);
    tsk_json_end_object(json);
}

/* ---- Generations ------------------------------------------------------------------------------------------------ */

static void write_step(const trace *t, tsk_json_writer *json, const step_log *step) {
    int32_t n = step->n_positions, i;
    tsk_json_begin_object(json);
    write_int(json, "pass", step->pass);
    write_int(json, "block", step->block);
    write_int(json, "step", step->block_step);
    write_int(json, "mask", step->n_masked);
    write_int(json, "stable", n - step->n_active);
    write_int(json, "stable_masked", step->n_stable_masked);
    write_int(json, "masks_left", step->masks_left);
    cli_json_uint(json, "token_layers_computed", step->computed);
    cli_json_uint(json, "token_layers_total", step->total);
    write_flags(json, "masked", step->masked, n);
    write_int(json, "rows", step->n_rows);
    begin_array(json, "reasons");
    for (i = 0; i < n; i++) {
        const char *key = reason_key((row_reason)step->reasons[i]);
        tsk_json_write_string(json, key, strlen(key));
    }
    tsk_json_end_array(json);
    write_flags(json, "active", step->active, n);
    write_flags(json, "committed", step->committed, n);
    cli_json_ids(json, "predictions", step->predictions, (size_t)n);
    tsk_json_write_key(json, "confidences");
    write_floats(json, step->confidences, n);
    if (step->n_cosines) {
        begin_array(json, "cosines");
        for (i = 0; i < n; i++)
            write_floats(json, step->cosines + (size_t)i * (size_t)step->n_cosines, step->n_cosines);
        tsk_json_end_array(json);
    } else write_null(json, "cosines");
    if (step->shadow) write_step_shadow(t, json, step);
    tsk_json_end_object(json);
}

static const step_log *step_of_block(const generation_log *log, int32_t block) {
    size_t i;
    for (i = 0; i < log->count; i++)
        if (log->steps[i].block == block) return &log->steps[i];
    return NULL; /* a block without masks is never run */
}

static void write_generation(const trace *t, tsk_json_writer *json, const char *key, const generation_log *log) {
    const tsk_result *r = &log->result;
    size_t step;
    int32_t i, residual = 0;
    begin_object(json, key);
    for (i = 0; i < log->n_blocks; i++) residual += log->blocks[i].mask_residual;
    write_int(json, "nfe", r->nfe);
    write_int(json, "mask_residual", residual);
    write_int(json, "tokens_before_end", r->n_before_end);
    cli_json_string(json, "finish_reason",
                    r->finish_reason == TSK_FINISH_EOS      ? "eos"
                    : r->finish_reason == TSK_FINISH_LENGTH ? "length"
                                                            : "none");
    cli_json_uint(json, "token_layers_computed", r->token_layers_computed);
    cli_json_uint(json, "token_layers_total", r->token_layers_total);
    cli_json_uint(json, "refresh_token_layers_computed", r->refresh_token_layers_computed);
    cli_json_uint(json, "refresh_token_layers_total", r->refresh_token_layers_total);
    cli_json_ids(json, "canvas", log->canvas, (size_t)log->canvas_length);
    begin_array(json, "blocks");
    for (i = 0; i < log->n_blocks; i++) {
        const step_log *any = step_of_block(log, i);
        tsk_json_begin_object(json);
        write_int(json, "nfe", log->blocks[i].nfe);
        write_int(json, "mask_residual", log->blocks[i].mask_residual);
        cli_json_ids(json, "positions", any ? any->positions : NULL, any ? (size_t)any->n_positions : 0);
        tsk_json_end_object(json);
    }
    tsk_json_end_array(json);
    begin_array(json, "steps");
    for (step = 0; step < log->count; step++) write_step(t, json, &log->steps[step]);
    tsk_json_end_array(json);
    tsk_json_end_object(json);
}

static void write_hit(tsk_json_writer *json, const char *key, const step_log *step) {
    if (!step) {
        write_null(json, key);
        return;
    }
    begin_object(json, key);
    write_int(json, "block", step->block);
    write_int(json, "step", step->block_step);
    write_int(json, "stable_masked", step->n_stable_masked);
    tsk_json_end_object(json);
}

static void write_conclusion(const trace *t, tsk_json_writer *json) {
    tsk_text text = {0};
    int32_t compared = 0, differing = t->leaves_out ? trace_differing_tokens(t, &compared) : 0;
    trace_conclusion(t, &text);
    write_hit(json, "first_stable_masked", trace_first_stable_masked(&t->skip));
    write_hit(json, "first_all_stable", trace_first_all_stable(&t->skip));
    write_int(json, "tokens_compared", compared);
    write_int(json, "tokens_differing", differing);
    cli_json_string(json, "conclusion", text.data);
    tsk_text_free(&text);
}

/* ---- Where the answers part ------------------------------------------------------------------------------------- */

static void write_probability(tsk_json_writer *json, const char *key, double probability) {
    if (probability < 0) write_null(json, key);
    else cli_json_double(json, key, probability);
}

static void write_side(tsk_json_writer *json, const char *key, const parting_side *side) {
    begin_object(json, key);
    if (side->pass < 0) write_null(json, "pass");
    else {
        write_int(json, "pass", side->pass);
        write_int(json, "block", side->block);
        write_int(json, "step", side->block_step);
    }
    write_int(json, "token", side->id);
    write_probability(json, "confidence", side->confidence);
    write_probability(json, "baseline_token_probability", side->probabilities[0]);
    write_probability(json, "given_token_probability", side->probabilities[1]);
    tsk_json_end_object(json);
}

static void write_parting(const trace *t, tsk_json_writer *json) {
    int32_t i;
    if (!t->leaves_out) {
        write_null(json, "parting");
        return;
    }
    begin_object(json, "parting");
    if (t->parting.first_other_pass < 0) write_null(json, "first_other_pass");
    else write_int(json, "first_other_pass", t->parting.first_other_pass);
    begin_array(json, "positions");
    for (i = 0; i < t->skip.canvas_length; i++)
        if (trace_differs(t, i)) tsk_json_write_int(json, i);
    tsk_json_end_array(json);
    if (t->parting.position < 0) write_null(json, "position");
    else {
        write_int(json, "position", t->parting.position);
        write_side(json, "baseline", &t->parting.sides[0]);
        write_side(json, "given", &t->parting.sides[1]);
    }
    tsk_json_end_object(json);
}

void trace_json(const trace *t, tsk_json_writer *json) {
    tsk_json_begin_object(json);
    cli_json_string(json, "device", tsk_model_device_name(t->engine->model));
    write_int(json, "n_layers", t->config->n_layers);
    write_int(json, "d_model", t->config->d_model);
    write_int(json, "mask_token_id", t->config->mask_token_id);
    write_int(json, "eos_token_id", t->config->eos_token_id);
    cli_json_ids(json, "prompt_tokens", t->prompt->ids, (size_t)t->prompt->count);
    write_options(t, json);
    if (t->settings->versus) cli_json_string(json, "versus", t->settings->versus);
    else write_null(json, "versus");
    write_parting(t, json);
    write_comparison(t, json);
    write_generation(t, json, "baseline", &t->baseline);
    if (t->leaves_out) write_generation(t, json, "tokenskip", &t->skip);
    else write_null(json, "tokenskip");
    write_shadow(t, json);
    write_conclusion(t, json);
    tsk_json_end_object(json);
}
