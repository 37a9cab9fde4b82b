/* Shadow mode: before a step of a generation with TokenSkip, the same step is taken in full from a copy of the same
   state; the generation's own step is then compared with it. A step's skipped tokens are those of the block; in a
   refresh under --skip-refresh, those of the whole canvas. */
#include "trace.h"

#include <math.h>

struct shadow {
    const tsk_model_config *config;
    tsk_generate_options options;  /* of the generation */
    int32_t layer_k;
    tsk_session *main, *full;
    trace_values values;           /* of the full pass: outputs of layers, caches, logits */
    int is_running;                /* the pass under way has a full one beside it */
    int is_refresh;

    int32_t length;                /* of the canvas */
    int32_t *canvas;               /* before the pass */
    int32_t *slots;                /* [length] place in the block, or -1 */
    int32_t *ages;                 /* [length] steps in a row that the token was skipped */
    uint8_t *ran;                  /* [length] ran through all layers in the pass under way */
    shadow_norm *kv;               /* [length] over the layers from K on */
    int32_t n_block;
    float *carried;                /* [n_layers, n_block, d_model] each token's last output of each layer */
    size_t carried_capacity;
    shadow_step *step;             /* being filled */
};

double shadow_relative(const shadow_norm *norm) { return norm->full > 0 ? sqrt(norm->difference / norm->full) : 0; }

static void add_difference(shadow_norm *norm, const float *full, const float *skipped, uint64_t n) {
    uint64_t i;
    for (i = 0; i < n; i++) {
        double d = (double)full[i] - (double)skipped[i];
        norm->difference += d * d;
        norm->full += (double)full[i] * (double)full[i];
    }
}

static void add_norm(shadow_norm *sum, const shadow_norm *norm) {
    sum->difference += norm->difference;
    sum->full += norm->full;
}

static void add_error(shadow_error *sum, const shadow_error *error) {
    sum->n += error->n;
    sum->flips += error->flips;
    sum->kl += error->kl;
    sum->confidence += error->confidence;
    if (error->kl_max > sum->kl_max) sum->kl_max = error->kl_max;
    if (error->confidence_max > sum->confidence_max) sum->confidence_max = error->confidence_max;
}

/* ---- Which records matter --------------------------------------------------------------------------------------- */

static int is_layer_output(const tsk_trace_record *record) {
    char name[48];
    snprintf(name, sizeof name, "layer_%d", (int)record->layer);
    return record->layer >= 0 && strcmp(record->name, name) == 0;
}

static void on_full_record(void *user, const tsk_trace_record *record) {
    shadow *s = (shadow *)user;
    if (is_layer_output(record) || trace_is_cache(record->name) || strcmp(record->name, "logits") == 0)
        trace_values_keep(&s->values, record);
}

/* The full pass's row at this position; NULL where it has none. Passes over the whole canvas, which are long, have a
   position's row in its place; block steps have their block, then refresh_rows. */
static const float *full_row(const trace_value *value, int32_t position, uint64_t *width) {
    int32_t row = 0;
    if (!value) return NULL;
    if (position < value->n_rows && value->positions[position] == position) row = position;
    while (row < value->n_rows && value->positions[row] != position) row++;
    return row < value->n_rows ? trace_row(value->values, 0, value->shape, row, 0, width) : NULL;
}

/* ---- Before a pass ---------------------------------------------------------------------------------------------- */

int shadow_begin(shadow **out, const cli_engine *engine, const tsk_generate_options *options, tsk_session *main) {
    shadow *s = (shadow *)cli_allocate(1, sizeof *s);
    tsk_generate_options full = *options;
    tsk_trace_options watch = tsk_trace_options_default();
    tsk_error error = {0};
    tsk_result result;
    int status = CLI_OK;
    *out = s;
    s->config = tsk_model_get_config(engine->model);
    s->options = *options;
    s->layer_k = cli_layer_k(options, s->config);
    s->main = main;
    cli_make_plain(&full);
    full.on_step = NULL;
    watch.values = 1;
    watch.on_record = on_full_record;
    watch.user = s;
    if (tsk_session_create(engine->model, &full, &s->full, &error) != TSK_OK ||
        tsk_session_trace(s->full, &watch, &error) != TSK_OK)
        status = cli_fail_with(&error, NULL);
    tsk_session_result(main, &result);
    s->length = result.n_prompt + result.n_tokens;
    s->canvas = (int32_t *)cli_allocate((size_t)s->length, sizeof *s->canvas);
    s->slots = (int32_t *)cli_allocate((size_t)s->length, sizeof *s->slots);
    s->ages = (int32_t *)cli_allocate((size_t)s->length, sizeof *s->ages);
    s->ran = (uint8_t *)cli_allocate((size_t)s->length, sizeof *s->ran);
    s->kv = (shadow_norm *)cli_allocate((size_t)s->length, sizeof *s->kv);
    return status;
}

/* The block of the first mask: blocks are decoded in order, and one without a mask is passed over. */
static void find_block(shadow *s, int32_t n_prompt) {
    int32_t i, first = 0, block;
    while (first < s->length && s->canvas[first] != s->config->mask_token_id) first++;
    block = first < n_prompt ? -1 : (first - n_prompt) / s->options.block_length;
    s->n_block = 0;
    for (i = 0; i < s->length; i++) {
        int in_block = block < 0 ? i < n_prompt && s->canvas[i] == s->config->mask_token_id
                                 : i >= n_prompt && (i - n_prompt) / s->options.block_length == block;
        s->slots[i] = in_block ? s->n_block++ : -1;
        s->ages[i] = 0;
    }
}

static size_t carried_size(const shadow *s) {
    return (size_t)s->config->n_layers * (size_t)s->n_block * (size_t)s->config->d_model;
}

static float *carried_row(const shadow *s, int32_t layer, int32_t slot) {
    return s->carried + ((size_t)layer * (size_t)s->n_block + (size_t)slot) * (size_t)s->config->d_model;
}

static void new_step(shadow *s) {
    int32_t i;
    s->step = (shadow_step *)cli_allocate(1, sizeof *s->step);
    s->step->kl = (float *)cli_allocate((size_t)s->n_block, sizeof *s->step->kl);
    s->step->confidence_errors = (float *)cli_allocate((size_t)s->n_block, sizeof *s->step->confidence_errors);
    s->step->flips = (uint8_t *)cli_allocate((size_t)s->n_block, sizeof *s->step->flips);
    s->step->full_predictions = (int32_t *)cli_allocate((size_t)s->n_block, sizeof *s->step->full_predictions);
    s->step->full_confidences = (float *)cli_allocate((size_t)s->n_block, sizeof *s->step->full_confidences);
    s->step->full_commits = (uint8_t *)cli_allocate((size_t)s->n_block, sizeof *s->step->full_commits);
    s->step->layers = (shadow_layer *)cli_allocate((size_t)s->config->n_layers, sizeof *s->step->layers);
    for (i = 0; i < s->n_block; i++) {
        s->step->kl[i] = -1;
        s->step->full_predictions[i] = -1;
        s->step->full_confidences[i] = -1;
    }
}

int shadow_before(shadow *s, int starts_block, int is_refresh) {
    tsk_error error = {0};
    tsk_probe probe;
    tsk_result result;
    int status = CLI_OK;
    tsk_session_result(s->main, &result);
    memcpy(s->canvas, result.canvas, (size_t)s->length * sizeof *s->canvas);
    memset(s->ran, 0, (size_t)s->length * sizeof *s->ran);
    memset(s->kv, 0, (size_t)s->length * sizeof *s->kv);
    if (starts_block) find_block(s, result.n_prompt);
    if (carried_size(s) > s->carried_capacity) {
        s->carried_capacity = carried_size(s);
        s->carried = (float *)cli_reallocate(s->carried, s->carried_capacity, sizeof *s->carried);
    }
    s->is_refresh = is_refresh;
    s->is_running = !is_refresh || s->options.skip.refresh;
    if (!s->is_running) return CLI_OK; /* it skips nobody */
    new_step(s);
    trace_values_clear(&s->values);
    if (tsk_session_copy(s->full, s->main, &error) != TSK_OK ||
        tsk_session_probe(s->full, NULL, is_refresh ? TSK_PROBE_REFRESH : TSK_PROBE_STEP_ALL, &probe, &error) !=
            TSK_OK)
        status = cli_fail_with(&error, NULL);
    return status;
}

/* ---- During it -------------------------------------------------------------------------------------------------- */

static void see_output(shadow *s, const tsk_trace_record *record) {
    const trace_value *value = s->is_running ? trace_values_find(&s->values, record->name, "") : NULL;
    size_t d = (size_t)s->config->d_model;
    int32_t row;
    for (row = 0; row < record->n_rows; row++) {
        int32_t position = record->positions[row], slot = s->slots[position];
        const float *mine = record->output + (size_t)row * d, *full;
        uint64_t width;
        if (record->layer == s->config->n_layers - 1) s->ran[position] = 1;
        if (slot >= 0) memcpy(carried_row(s, record->layer, slot), mine, d * sizeof *mine);
        full = s->is_running ? full_row(value, position, &width) : NULL;
        if (full) add_difference(&s->step->layers[record->layer].active, full, mine, d);
    }
}

/* Caches come after the layers: it is known by then who was skipped. */
static void see_cache(shadow *s, const tsk_trace_record *record) {
    const trace_value *value = s->is_running ? trace_values_find(&s->values, record->name, record->part) : NULL;
    int32_t position;
    for (position = 0; value && record->layer >= s->layer_k && position < record->n_rows; position++) {
        shadow_norm norm = {0, 0};
        uint64_t head, width;
        if (s->ran[position] || (!s->is_refresh && s->slots[position] < 0)) continue;
        for (head = 0; head < record->output_shape[0]; head++) {
            const float *full = trace_row(value->values, 1, value->shape, position, head, &width);
            add_difference(&norm, full, trace_row(record->output, 1, record->output_shape, position, head, &width),
                           width);
        }
        add_norm(&s->kv[position], &norm);
        add_norm(&s->step->layers[record->layer].kv, &norm);
    }
}

/* log of the sum of exponentials */
static double log_sum(const float *logits, uint64_t n) {
    double largest = (double)logits[0], sum = 0;
    uint64_t i;
    for (i = 1; i < n; i++)
        if ((double)logits[i] > largest) largest = (double)logits[i];
    for (i = 0; i < n; i++) sum += exp((double)logits[i] - largest);
    return largest + log(sum);
}

static void compare_logits(shadow *s, int32_t slot, const float *full, const float *mine, uint64_t n) {
    shadow_error *error = &s->step->error;
    int32_t mask = s->config->mask_token_id, full_id = trace_argmax(full, (int32_t)n, mask),
            my_id = trace_argmax(mine, (int32_t)n, mask);
    double full_sum = log_sum(full, n), my_sum = log_sum(mine, n), kl = 0, confidence;
    uint64_t i;
    for (i = 0; i < n; i++) {
        double p = (double)full[i] - full_sum;
        kl += exp(p) * (p - ((double)mine[i] - my_sum));
    }
    if (kl < 0) kl = 0; /* rounding */
    confidence = fabs(exp((double)full[full_id] - full_sum) - exp((double)mine[my_id] - my_sum));
    s->step->kl[slot] = (float)kl;
    s->step->confidence_errors[slot] = (float)confidence;
    s->step->flips[slot] = full_id != my_id;
    error->n++;
    error->flips += full_id != my_id;
    error->kl += kl;
    error->confidence += confidence;
    if (kl > error->kl_max) error->kl_max = kl;
    if (confidence > error->confidence_max) error->confidence_max = confidence;
}

static void see_logits(shadow *s, const tsk_trace_record *record) {
    const trace_value *value = s->is_running ? trace_values_find(&s->values, "logits", "") : NULL;
    int32_t row;
    for (row = 0; value && row < record->n_rows; row++) {
        int32_t position = record->positions[row];
        uint64_t width;
        const float *full = full_row(value, position, &width);
        if (!full || s->slots[position] < 0 || s->canvas[position] != s->config->mask_token_id) continue;
        compare_logits(s, s->slots[position], full, record->output + (uint64_t)row * record->output_shape[1],
                       record->output_shape[1]);
    }
}

void shadow_record(shadow *s, const tsk_trace_record *record) {
    if (is_layer_output(record)) see_output(s, record);
    else if (trace_is_cache(record->name)) see_cache(s, record);
    else if (strcmp(record->name, "logits") == 0) see_logits(s, record);
}

/* ---- After it --------------------------------------------------------------------------------------------------- */

/* What stands for a skipped token's output of layer l: its last one, or its layer-K state, which is layer K-1's
   output. */
static void compare_skipped(shadow *s, int32_t position) {
    int32_t layer;
    for (layer = s->layer_k; layer < s->config->n_layers; layer++) {
        char name[48];
        uint64_t width;
        const float *full;
        int32_t from = s->options.skip.policy == TSK_SKIP_EXIT ? s->layer_k - 1 : layer;
        snprintf(name, sizeof name, "layer_%d", (int)layer);
        full = full_row(trace_values_find(&s->values, name, ""), position, &width);
        if (full) add_difference(&s->step->layers[layer].stable, full, carried_row(s, from, s->slots[position]), width);
    }
}

static void add_age(shadow *s, const step_log *step, int32_t i, shadow_totals *totals) {
    int32_t position = step->positions[i], age = s->ages[position];
    shadow_error error;
    if (age > SHADOW_AGES) age = SHADOW_AGES;
    if (!step->active[i]) {
        totals->skipped_by_age[age]++;
        add_norm(&totals->kv_by_age[age], &s->kv[position]);
    }
    if (!step->masked[i] || s->step->kl[i] < 0) return; /* (a row that was left out has no logits of its own) */
    memset(&error, 0, sizeof error);
    error.n = 1;
    error.flips = s->step->flips[i];
    error.kl = error.kl_max = (double)s->step->kl[i];
    error.confidence = error.confidence_max = (double)s->step->confidence_errors[i];
    add_error(&totals->by_age[age], &error);
}

/* What the full pass says of each masked token, of those too that did not run, and what it would have committed: as
   many as the pass did where the schedule says how many. */
static void ask_full_pass(shadow *s, const step_log *step) {
    const trace_value *logits = trace_values_find(&s->values, "logits", "");
    const tsk_generate_options *o = &s->options;
    tsk_candidate *candidates = (tsk_candidate *)cli_allocate((size_t)step->n_positions, sizeof *candidates);
    uint8_t *commit = (uint8_t *)cli_allocate((size_t)step->n_positions, 1);
    tsk_transfer_rule rule = cli_transfer_rule(o, step->n_masked - step->masks_left);
    int32_t i, n = 0;
    uint64_t width;
    for (i = 0; i < step->n_positions; i++) {
        const float *full = step->masked[i] ? full_row(logits, step->positions[i], &width) : NULL;
        if (!full) continue;
        candidates[n] = trace_candidate(full, (int32_t)width, s->config->mask_token_id, step->positions[i]);
        s->step->full_predictions[i] = candidates[n].id;
        s->step->full_confidences[i] = candidates[n++].confidence;
    }
    if (n == step->n_masked && o->temperature <= 0 && o->remasking == TSK_REMASKING_LOW_CONFIDENCE)
        tsk_select(&rule, n, candidates, commit);
    for (i = n = 0; i < step->n_positions; i++) {
        if (s->step->full_predictions[i] < 0) continue;
        s->step->full_commits[i] = commit[n++];
        s->step->n_missed += s->step->full_commits[i] && !step->active[i];
    }
    free(candidates);
    free(commit);
}

void shadow_after(shadow *s, step_log *step, shadow_totals *totals) {
    int32_t i;
    if (!s->is_running) return;
    ask_full_pass(s, step);
    for (i = 0; i < step->n_positions; i++) {
        int32_t position = step->positions[i];
        if (!s->is_refresh) s->ages[position] = step->active[i] ? 0 : s->ages[position] + 1;
        if (!step->active[i]) compare_skipped(s, position);
        add_age(s, step, i, totals);
    }
    for (i = 0; i < s->config->n_layers; i++) {
        add_norm(&totals->layers[i].active, &s->step->layers[i].active);
        add_norm(&totals->layers[i].stable, &s->step->layers[i].stable);
        add_norm(&totals->layers[i].kv, &s->step->layers[i].kv);
    }
    add_error(&totals->all, &s->step->error);
    totals->steps++;
    step->shadow = s->step;
    s->step = NULL;
}

void shadow_step_free(shadow_step *step) {
    if (!step) return;
    free(step->kl);
    free(step->confidence_errors);
    free(step->flips);
    free(step->full_predictions);
    free(step->full_confidences);
    free(step->full_commits);
    free(step->layers);
    free(step);
}

void shadow_free(shadow *s) {
    if (!s) return;
    tsk_session_free(s->full);
    trace_values_clear(&s->values);
    shadow_step_free(s->step);
    free(s->canvas);
    free(s->slots);
    free(s->ages);
    free(s->ran);
    free(s->kv);
    free(s->carried);
    free(s);
}
