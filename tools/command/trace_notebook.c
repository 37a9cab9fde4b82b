/* The two-step comparison: an initial forward, then two steps of the first block, each without TokenSkip and with it.
   Every variant starts from a copy of the same state, so that none sees another's caches. */
#include "trace.h"

typedef struct variant {
    trace_comparison *comparison;
    trace_values *base;
    int32_t *argmax;          /* [n_positions] of the block's logits; NULL: not wanted */
    int32_t n_positions;      /* of the block: its rows come first, then those of refresh_rows */
    int32_t mask_id;
} variant;

/* ---- What the passes' records are for --------------------------------------------------------------------------- */

typedef struct initial {
    int32_t *predictions;     /* [canvas_length] */
    int32_t mask_id;
} initial;

static void on_initial(void *user, const tsk_trace_record *record) {
    initial *i = (initial *)user;
    int32_t row, vocabulary = (int32_t)record->output_shape[1];
    for (row = 0; row < record->n_rows; row++)
        i->predictions[record->positions[row]] =
            trace_argmax(record->output + (size_t)row * (size_t)vocabulary, vocabulary, i->mask_id);
}

static void on_base(void *user, const tsk_trace_record *record) { trace_values_keep((trace_values *)user, record); }

static void on_variant(void *user, const tsk_trace_record *record) {
    variant *v = (variant *)user;
    int32_t row, vocabulary = (int32_t)record->output_shape[1];
    trace_comparison_add(v->comparison, v->base, record);
    if (!v->argmax || strcmp(record->name, "logits") != 0) return;
    for (row = 0; row < v->n_positions; row++)
        v->argmax[row] = trace_argmax(record->output + (size_t)row * (size_t)vocabulary, vocabulary, v->mask_id);
}

/* ---- One pass --------------------------------------------------------------------------------------------------- */

static int fail(const tsk_error *error) { return cli_fail_with(error, NULL); }

/* `pattern`: which records; NULL: all. */
static int probe(tsk_session *session, const int32_t *canvas, int refresh, const char *pattern,
                 void (*on_record)(void *, const tsk_trace_record *), void *user, tsk_probe *out) {
    tsk_trace_options options = tsk_trace_options_default();
    tsk_error error = {0};
    options.pattern = pattern;
    options.values = 1;
    options.on_record = on_record;
    options.user = user;
    if (tsk_session_trace(session, &options, &error) != TSK_OK ||
        tsk_session_probe(session, canvas, refresh ? TSK_PROBE_REFRESH : TSK_PROBE_STEP, out, &error) != TSK_OK)
        return fail(&error);
    return cli_interrupted() ? trace_interrupted() : CLI_OK;
}

static int probe_base(tsk_session *session, const int32_t *canvas, trace_values *values, tsk_probe *out) {
    return probe(session, canvas, 0, NULL, on_base, values, out);
}

static int probe_variant(tsk_session *session, const int32_t *canvas, trace_comparison *comparison, trace_values *base,
                         int32_t *argmax, int32_t n_positions, int32_t mask_id, tsk_probe *out) {
    variant v;
    v.comparison = comparison;
    v.base = base;
    v.argmax = argmax;
    v.n_positions = n_positions;
    v.mask_id = mask_id;
    trace_comparison_begin(comparison, base);
    return probe(session, canvas, 0, NULL, on_variant, &v, out);
}

/* A session with these options and the state of `from`. */
static int copy_session(tsk_session **out, tsk_model *model, const tsk_generate_options *options,
                        const tsk_session *from) {
    tsk_error error = {0};
    if (tsk_session_create(model, options, out, &error) != TSK_OK || tsk_session_copy(*out, from, &error) != TSK_OK)
        return fail(&error);
    return CLI_OK;
}

/* ---- The canvas ------------------------------------------------------------------------------------------------- */

/* Prompt and masks as they stand, or, as in the notebook, every mask filled with the initial forward's prediction. */
static void fill_canvas(notebook *notes, const tsk_tokens *prompt, const int32_t *predictions, int32_t mask_id,
                        int keep_masks, int32_t *canvas) {
    int32_t i;
    for (i = 0; i < notes->canvas_length; i++) {
        canvas[i] = i < prompt->count ? prompt->ids[i] : mask_id;
        if (canvas[i] != mask_id || keep_masks) continue;
        canvas[i] = predictions[i];
        notes->n_filled++;
    }
}

/* Between the steps the baseline's predictions are committed as the decoding rule says (at temperature 0). */
static void commit_step(notebook *notes, const tsk_generate_options *o, int32_t mask_id, int32_t *canvas) {
    const trace_value *logits = trace_values_find(&notes->base0, "logits", "");
    size_t n_block = (size_t)notes->n_positions;
    tsk_candidate *candidates = (tsk_candidate *)cli_allocate(n_block, sizeof *candidates);
    tsk_transfer_rule rule = cli_transfer_rule(o, 0);
    uint8_t *commit = (uint8_t *)cli_allocate(n_block, sizeof *commit);
    int32_t i, n = 0, blocks = o->gen_length / o->block_length,
               steps = (o->steps == TSK_AUTO ? o->gen_length : o->steps) / blocks;
    for (i = 0; logits && i < notes->n_positions; i++) {
        int32_t vocabulary = (int32_t)logits->shape[1];
        if (canvas[notes->positions[i]] != mask_id) continue;
        candidates[n++] = trace_candidate(logits->values + (size_t)i * (size_t)vocabulary, vocabulary, mask_id,
                                          notes->positions[i]);
    }
    rule.quota = n / steps + (n % steps > 0);
    tsk_select(&rule, n, candidates, commit);
    for (i = 0; i < n; i++)
        if (commit[i]) canvas[candidates[i].position] = candidates[i].id;
    free(candidates);
    free(commit);
}

/* ---- The steps -------------------------------------------------------------------------------------------------- */

static int run_initial(notebook *notes, const cli_engine *engine, const tsk_generate_options *options,
                       tsk_session **base, const tsk_tokens *prompt, int32_t *predictions) {
    const tsk_model_config *config = tsk_model_get_config(engine->model);
    initial first;
    tsk_probe out;
    tsk_error error = {0};
    int status;
    first.predictions = predictions;
    first.mask_id = config->mask_token_id;
    if (tsk_session_create(engine->model, options, base, &error) != TSK_OK ||
        tsk_session_start(*base, prompt->ids, prompt->count, NULL, &error) != TSK_OK)
        return fail(&error);
    status = probe(*base, NULL, 1, "logits", on_initial, &first, &out);
    if (status != CLI_OK) return status;
    notes->kv_shape[0] = (uint64_t)config->n_kv_heads;
    notes->kv_shape[1] = (uint64_t)notes->canvas_length;
    notes->kv_shape[2] = (uint64_t)config->head_dim;
    notes->n_positions = out.n_positions;
    notes->positions = (int32_t *)cli_copy(out.positions, (size_t)out.n_positions, sizeof *out.positions);
    notes->masked = (uint8_t *)cli_allocate((size_t)out.n_positions, sizeof *notes->masked);
    notes->argmax_base = (int32_t *)cli_allocate((size_t)out.n_positions, sizeof *notes->argmax_base);
    notes->argmax_given = (int32_t *)cli_allocate((size_t)out.n_positions, sizeof *notes->argmax_given);
    return CLI_OK;
}

static void keep_verdict(notebook *notes, const tsk_probe *out) {
    notes->active = (uint8_t *)cli_copy(out->active, (size_t)out->n_positions, sizeof *out->active);
    notes->n_cosines = out->n_cosines;
    if (out->n_cosines)
        notes->cosines =
            (float *)cli_copy(out->cosines, (size_t)out->n_positions * (size_t)out->n_cosines, sizeof *out->cosines);
}

static void keep_step1(notebook *notes, const int32_t *canvas, int32_t mask_id) {
    const trace_value *logits = trace_values_find(&notes->base1, "logits", "");
    int32_t i;
    for (i = 0; i < notes->n_positions; i++) {
        notes->masked[i] = canvas[notes->positions[i]] == mask_id;
        if (logits)
            notes->argmax_base[i] = trace_argmax(logits->values + (size_t)i * (size_t)logits->shape[1],
                                                 (int32_t)logits->shape[1], mask_id);
    }
}

/* `base` has seen the initial forward. Three sessions at a time at most: the baseline, TokenSkip, and its threshold
   1.0. */
static int run_steps(notebook *notes, tsk_model *model, const tsk_generate_options *options, tsk_session *base,
                     int32_t *canvas, int32_t mask_id) {
    tsk_generate_options exact_options = *options;
    tsk_session *skip = NULL, *exact = NULL;
    tsk_probe out;
    int status = copy_session(&skip, model, options, base);
    exact_options.skip.threshold = 1.0f;
    if (status == CLI_OK) status = probe_base(base, canvas, &notes->base0, &out);
    if (status == CLI_OK)
        status = probe_variant(skip, canvas, &notes->step0, &notes->base0, NULL, notes->n_positions, mask_id, &out);
    if (status == CLI_OK) {
        commit_step(notes, options, mask_id, canvas);
        trace_values_drop(&notes->base0);
        status = probe_base(base, canvas, &notes->base1, &out);
    }
    if (status == CLI_OK) {
        keep_step1(notes, canvas, mask_id);
        status = copy_session(&exact, model, &exact_options, skip);
    }
    if (status == CLI_OK)
        status = probe_variant(exact, canvas, &notes->exact1, &notes->base1, NULL, notes->n_positions, mask_id, &out);
    tsk_session_free(exact);
    if (status == CLI_OK)
        status = probe_variant(skip, canvas, &notes->given1, &notes->base1, notes->argmax_given, notes->n_positions,
                               mask_id, &out);
    if (status == CLI_OK) keep_verdict(notes, &out);
    trace_values_drop(&notes->base1);
    tsk_session_free(skip);
    return status;
}

int notebook_run(notebook *notes, const cli_engine *engine, const cli_settings *settings, const tsk_tokens *prompt) {
    tsk_generate_options base_options = settings->generate, by_states = settings->generate;
    int32_t mask_id = tsk_model_get_config(engine->model)->mask_token_id;
    tsk_session *base = NULL;
    int32_t *predictions, *canvas;
    int status;
    cli_make_plain(&base_options);
    cli_choose_states(&by_states);
    notes->canvas_length = prompt->count + base_options.gen_length;
    predictions = (int32_t *)cli_allocate((size_t)notes->canvas_length, sizeof *predictions);
    canvas = (int32_t *)cli_allocate((size_t)notes->canvas_length, sizeof *canvas);
    status = run_initial(notes, engine, &base_options, &base, prompt, predictions);
    fill_canvas(notes, prompt, predictions, mask_id, settings->keep_masks, canvas);
    if (status == CLI_OK) status = run_steps(notes, engine->model, &by_states, base, canvas, mask_id);
    tsk_session_free(base);
    free(predictions);
    free(canvas);
    notes->is_there = status == CLI_OK;
    return status;
}

void notebook_free(notebook *notes) {
    trace_comparison_clear(&notes->step0);
    trace_comparison_clear(&notes->exact1);
    trace_comparison_clear(&notes->given1);
    trace_values_clear(&notes->base0);
    trace_values_clear(&notes->base1);
    free(notes->positions);
    free(notes->masked);
    free(notes->active);
    free(notes->cosines);
    free(notes->argmax_base);
    free(notes->argmax_given);
    memset(notes, 0, sizeof *notes);
}

void notebook_count(const notebook *notes, int32_t *stable, int32_t *masked, int32_t *stable_masked) {
    int32_t i;
    *stable = *masked = *stable_masked = 0;
    for (i = 0; i < notes->n_positions; i++) {
        *stable += !notes->active[i];
        *masked += notes->masked[i];
        *stable_masked += !notes->active[i] && notes->masked[i];
    }
}

void notebook_cosine(const notebook *notes, int32_t token, double *least, double *mean) {
    const float *cosines = notes->cosines + (size_t)token * (size_t)notes->n_cosines;
    double sum = 0;
    int32_t i;
    *least = (double)cosines[0];
    for (i = 0; i < notes->n_cosines; i++) {
        sum += (double)cosines[i];
        if ((double)cosines[i] < *least) *least = (double)cosines[i];
    }
    *mean = sum / notes->n_cosines;
}
