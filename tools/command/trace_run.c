/* A generation, step by step: what each pass saw, decided and committed. */
#include "trace.h"
#include "visual.h"

int trace_interrupted(void) {
    return cli_fail("interrupted: the trace is incomplete, nothing is printed and no file written");
}

typedef struct runner {
    generation_log *log;
    const tsk_model_config *config;
    const tsk_generate_options *options;
    int32_t n_started;        /* blocks that had a pass */
    shadow *shadow;           /* NULL: none, or not in this pass */
    trace_dump *dump;         /* NULL: none */
    visual view;              /* --visual */
} runner;

static step_log *new_step(generation_log *log) {
    if (log->count == log->capacity) {
        log->capacity = log->capacity ? 2 * log->capacity : 64;
        log->steps = (step_log *)cli_reallocate(log->steps, log->capacity, sizeof *log->steps);
    }
    return (step_log *)memset(&log->steps[log->count++], 0, sizeof *log->steps);
}

static int on_step(void *user, const tsk_step *step) {
    runner *r = (runner *)user;
    step_log *log = new_step(r->log);
    size_t n = (size_t)step->n_positions;
    int32_t i;
    log->pass = step->pass;
    log->block = step->block;
    log->block_step = step->block_step;
    log->n_positions = step->n_positions;
    log->n_cosines = step->n_cosines;
    log->positions = (int32_t *)cli_copy(step->positions, n, sizeof *step->positions);
    log->predictions = (int32_t *)cli_copy(step->predictions, n, sizeof *step->predictions);
    log->confidences = (float *)cli_copy(step->confidences, n, sizeof *step->confidences);
    log->committed = (uint8_t *)cli_copy(step->committed, n, sizeof *step->committed);
    log->active = (uint8_t *)cli_copy(step->active, n, sizeof *step->active);
    log->masked = (uint8_t *)cli_allocate(n, sizeof *log->masked);
    if (step->n_cosines)
        log->cosines = (float *)cli_copy(step->cosines, n * (size_t)step->n_cosines, sizeof *step->cosines);
    for (i = 0; i < step->n_positions; i++) {
        log->masked[i] = step->committed[i] || step->canvas[step->positions[i]] == r->config->mask_token_id;
        log->n_masked += log->masked[i];
    }
    log->n_active = step->n_active;
    log->n_rows = step->n_rows;
    log->n_stable_masked = step->n_stable_masked;
    log->masks_left = step->masks_left;
    if (r->dump) dump_step(r->dump, step);
    visual_step(&r->view, step);
    return 0;
}

static void on_record(void *user, const tsk_trace_record *record) {
    runner *r = (runner *)user;
    if (r->dump) dump_record(r->dump, record);
    if (r->shadow) shadow_record(r->shadow, record);
}

static int fail(const tsk_error *error) { return cli_fail_with(error, NULL); }

static int watch(tsk_session *session, runner *r, int all_passes) {
    tsk_trace_options options = tsk_trace_options_default();
    tsk_error error = {0};
    options.values = 1;
    options.on_record = on_record;
    options.user = r;
    if (!all_passes) {
        options.first_pass = r->dump->first_pass;
        options.last_pass = r->dump->last_pass;
        options.first_layer = r->dump->first_layer;
        options.last_layer = r->dump->last_layer;
    }
    return tsk_session_trace(session, &options, &error) == TSK_OK ? CLI_OK : fail(&error);
}

static void get_counts(const tsk_session *session, uint64_t *computed, uint64_t *total) {
    tsk_result result;
    tsk_session_result(session, &result);
    *computed = result.token_layers_computed + result.refresh_token_layers_computed;
    *total = result.token_layers_total + result.refresh_token_layers_total;
}

/* One pass, with its shadow. */
static int take_step(runner *r, tsk_session *session, int starts_block, int *finished, shadow_totals *totals) {
    tsk_error error = {0};
    int is_refresh = starts_block && cli_block_refreshes(r->options, r->n_started++);
    step_log *log;
    uint64_t computed, total;
    get_counts(session, &computed, &total);
    if (r->shadow && shadow_before(r->shadow, starts_block, is_refresh) != CLI_OK) return CLI_FAILED;
    if (tsk_session_step(session, finished, &error) != TSK_OK) return fail(&error);
    if (r->dump && r->dump->failed) return cli_fail_with(&r->dump->error, NULL);
    if (cli_interrupted()) return trace_interrupted();
    log = &r->log->steps[r->log->count - 1];
    get_counts(session, &log->computed, &log->total);
    log->computed -= computed;
    log->total -= total;
    if (r->shadow) shadow_after(r->shadow, log, totals);
    return CLI_OK;
}

static int take_steps(runner *r, tsk_session *session, int32_t max_blocks, shadow_totals *totals) {
    int finished = 0, status = CLI_OK, block_is_done = 1;
    while (status == CLI_OK && !finished && !(block_is_done && r->log->n_blocks >= max_blocks)) {
        const step_log *last;
        status = take_step(r, session, block_is_done, &finished, totals);
        if (status != CLI_OK || !r->log->count) continue;
        last = &r->log->steps[r->log->count - 1];
        block_is_done = last->masks_left == 0;
        r->log->n_blocks = last->block + 1;
    }
    return status;
}

static void keep_result(generation_log *log, const tsk_session *session) {
    tsk_result result;
    tsk_session_result(session, &result);
    log->n_prompt = result.n_prompt;
    log->canvas_length = result.n_prompt + result.n_tokens;
    log->canvas = (int32_t *)cli_copy(result.canvas, (size_t)log->canvas_length, sizeof *result.canvas);
    log->blocks = (tsk_block_result *)cli_copy(result.blocks, (size_t)log->n_blocks, sizeof *result.blocks);
    log->result = result;
    log->result.tokens = log->result.canvas = NULL;
    log->result.active = log->result.stable_masked = NULL;
    log->result.blocks = NULL;
}

int generation_run(generation_log *log, const cli_engine *engine, const cli_settings *settings,
                   const tsk_generate_options *options, const tsk_tokens *prompt, int shadowed, trace_dump *dump) {
    tsk_generate_options mine = *options;
    tsk_session *session = NULL;
    tsk_error error = {0};
    runner r;
    int status = CLI_OK;
    memset(&r, 0, sizeof r);
    r.log = log;
    r.config = tsk_model_get_config(engine->model);
    r.options = &mine;
    r.dump = dump->writer ? dump : NULL;
    visual_begin(&r.view, engine, settings);
    mine.on_step = on_step;
    mine.user = &r;
    if (tsk_session_create(engine->model, &mine, &session, &error) != TSK_OK ||
        tsk_session_start(session, prompt->ids, prompt->count, NULL, &error) != TSK_OK)
        status = fail(&error);
    if (status == CLI_OK && shadowed) status = shadow_begin(&r.shadow, engine, &mine, session);
    if (status == CLI_OK && (r.dump || shadowed)) status = watch(session, &r, shadowed);
    if (status == CLI_OK && shadowed)
        log->shadow.layers = (shadow_layer *)cli_allocate((size_t)r.config->n_layers, sizeof *log->shadow.layers);
    if (status == CLI_OK)
        status = take_steps(&r, session, settings->blocks > 0 ? settings->blocks : INT32_MAX, &log->shadow);
    visual_end(&r.view);
    if (status == CLI_OK) {
        keep_result(log, session);
        tsk_generate_options_resolve(engine->model, &mine);
        reasons_find(log, &mine);
    }
    shadow_free(r.shadow);
    tsk_session_free(session);
    return status;
}

static void free_step(step_log *step) {
    free(step->positions);
    free(step->predictions);
    free(step->confidences);
    free(step->cosines);
    free(step->committed);
    free(step->active);
    free(step->masked);
    free(step->reasons);
    shadow_step_free(step->shadow);
}

void generation_free(generation_log *log) {
    size_t i;
    for (i = 0; i < log->count; i++) free_step(&log->steps[i]);
    free(log->steps);
    free(log->canvas);
    free(log->blocks);
    free(log->shadow.layers);
    memset(log, 0, sizeof *log);
}
