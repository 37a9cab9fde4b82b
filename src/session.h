#ifndef SECTION_GUARD_SESSION
#define SECTION_GUARD_SESSION

#include "error.h"
#include "memory.h"
#include "storage.h"
#include "model.h"
#include "trace.h"
#include "forward.h"
#include "request.h"

// >>session ===========================================================================================================
/* A session is one request with a pass of its own. */

struct tsk_session {
    tsk_model *model;
    tsk__request request;
    tsk__pass pass;
    int32_t pass_states;           /* that its stream has room for */
    int32_t n_probed;              /* rows of the last call, if it was a probe: the stream still holds them */
    tsk__tracer tracer;
};

void tsk_generate_options_resolve(const tsk_model *model, tsk_generate_options *options) {
    if (model && options) tsk__options_resolve(options, &model->config, model->tokenizer);
}

tsk_status tsk_session_create(tsk_model *model, const tsk_generate_options *options, tsk_session **out,
                              tsk_error *error) {
    tsk_generate_options resolved = options ? *options : tsk_generate_options_default();
    tsk_session *session;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_session_create", "out");
    *out = NULL;
    if (!model) return tsk__error_null(error, "tsk_session_create", "model");
    tsk__options_resolve(&resolved, &model->config, model->tokenizer);
    status = tsk__options_check(&resolved, &model->config, error);
    if (status != TSK_OK) return status;
    session = (tsk_session *)tsk__memory_new_zeroed(model->allocator, 1, sizeof *session);
    if (!session) return tsk__error_memory(error, "a session", sizeof *session);
    session->model = model;
    session->tracer.allocator = model->allocator;
    session->request.config = &model->config;
    session->request.backend = model->backend;
    session->request.allocator = model->allocator;
    session->request.options = resolved;
    session->request.cache.backend = model->backend;
    session->request.force_active = session->request.force_refresh = TSK_AUTO;
    session->request.gen.is_finished = 1;
    *out = session;
    return TSK_OK;
}

void tsk_session_free(tsk_session *session) {
    if (!session) return;
    tsk__trace_free(&session->tracer);
    tsk__memory_delete(session->model->allocator, session->tracer.pattern);
    tsk__request_free(&session->request);
    tsk__pass_free(&session->pass);
    tsk__memory_delete(session->model->allocator, session);
}

/* A pass with room for `rows` rows. Streams only grow: one session's prompts differ in length. */
static tsk_status tsk__session_room(tsk_session *session, int32_t rows, int32_t n_states, tsk_error *error) {
    tsk_status status = TSK_OK;
    if (session->pass.max_rows < rows || session->pass_states < n_states) {
        tsk__trace_free(&session->tracer);
        tsk__pass_free(&session->pass);
        status = tsk__pass_create(&session->pass, session->model->backend, session->model->allocator, rows, 1, n_states,
                                  error);
        session->pass_states = n_states;
    }
    session->pass.tracer = session->tracer.options.on_record ? &session->tracer : NULL;
    session->tracer.status = TSK_OK;
    if (status == TSK_OK && session->pass.tracer)
        status = tsk__trace_attach(&session->tracer, session->pass.stream, error);
    return status;
}

/* Refuses a call from a callback of the session's own pass. */
static tsk_status tsk__request_check_outside(const tsk__request *r, const char *function, tsk_error *error) {
    if (!r->is_running) return TSK_OK;
    return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                          "%s of a session from a callback of its own pass", function);
}

/* A generation that an error has ended stays ended: its error is given again. */
static tsk_status tsk__request_check_runs(const tsk__request *r, const char *function, tsk_error *error) {
    if (!r->gen.is_started)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "%s before tsk_session_start", function);
    if (r->failure.status != TSK_OK)
        return tsk__error_set(error, r->failure.status, NULL, TSK_NO_OFFSET, "%s", r->failure.message);
    return TSK_OK;
}

/* A session's own pass: what stops it ends the generation. */
static tsk_status tsk__session_forward(tsk_session *session,
                                       tsk_status (*run)(tsk__request *const *requests, int32_t n, tsk__pass *p,
                                                         tsk_error *error),
                                       tsk_error *error) {
    tsk__request *r = &session->request;
    tsk_status status;
    r->is_running = 1;
    status = run(&r, 1, &session->pass, &r->failure);
    r->is_running = 0;
    if (status != TSK_OK) r->failure.status = status;
    if (r->failure.status != TSK_OK) r->gen.is_finished = 1;
    return tsk__request_check_runs(r, "a pass", error);
}

tsk_status tsk_session_start(tsk_session *session, const int32_t *prompt, int32_t n_prompt, const int32_t *generated,
                             tsk_error *error) {
    tsk__request *r;
    tsk_status status;
    if (!session) return tsk__error_null(error, "tsk_session_start", "session");
    r = &session->request;
    status = tsk__request_check_outside(r, "tsk_session_start", error);
    if (status != TSK_OK) return status;
    session->n_probed = 0;
    status = tsk__request_start(r, prompt, n_prompt, generated, session->pass.stream, error);
    if (status == TSK_OK) status = tsk__session_room(session, tsk__request_most_rows(r), r->n_states, error);
    if (status != TSK_OK) r->gen.is_started = 0;
    return status;
}

/* Asks the host, whose callback may not use the session. */
static int tsk__session_is_cancelled(tsk__request *r) {
    int answer;
    if (!r->options.cancel) return 0;
    r->is_running = 1;
    answer = r->options.cancel(r->options.user);
    r->is_running = 0;
    return answer;
}

tsk_status tsk_session_step(tsk_session *session, int *finished, tsk_error *error) {
    tsk__request *r;
    tsk_status status;
    if (!session) return tsk__error_null(error, "tsk_session_step", "session");
    if (!finished) return tsk__error_null(error, "tsk_session_step", "finished");
    r = &session->request;
    status = tsk__request_check_outside(r, "tsk_session_step", error);
    if (status == TSK_OK) status = tsk__request_check_runs(r, "tsk_session_step", error);
    if (status != TSK_OK) return status;
    session->n_probed = 0;
    if (!r->gen.is_finished && tsk__session_is_cancelled(r)) tsk__request_cancel(r);
    if (!r->gen.is_finished) status = tsk__session_forward(session, tsk__requests_pass, error);
    *finished = r->gen.is_finished;
    return status;
}

void tsk_session_result(const tsk_session *session, tsk_result *result) {
    if (!result) return;
    if (session) tsk__request_result(&session->request, result);
    else memset(result, 0, sizeof *result);
}

tsk_status tsk_generate(tsk_session *session, const int32_t *prompt, int32_t n_prompt, const int32_t *generated,
                        tsk_result *result, tsk_error *error) {
    int finished = 0;
    tsk_status status;
    if (!result) return tsk__error_null(error, "tsk_generate", "result");
    status = tsk_session_start(session, prompt, n_prompt, generated, error);
    while (status == TSK_OK && !finished) status = tsk_session_step(session, &finished, error);
    if (status == TSK_OK) tsk_session_result(session, result);
    return status;
}

/* ---- looking at a pass without taking it */

/* How the two sessions must agree for a copy of one to be a state of the other. */
static tsk_status tsk__session_check_copy(const tsk_session *to, const tsk_session *from, tsk_error *error) {
    const tsk_generate_options *a, *b;
    if (!to) return tsk__error_null(error, "tsk_session_copy", "to");
    if (!from) return tsk__error_null(error, "tsk_session_copy", "from");
    if (to->model != from->model)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "the sessions are of different models");
    a = &to->request.options;
    b = &from->request.options;
    if (a->gen_length != b->gen_length || a->block_length != b->block_length)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "the sessions differ in gen_length or block_length");
    if (to != from && to->request.is_running)
        return tsk__request_check_outside(&to->request, "tsk_session_copy into", error);
    if (!from->request.is_reporting && from->request.is_running)
        return tsk__request_check_outside(&from->request, "tsk_session_copy", error);
    return tsk__request_check_runs(&from->request, "tsk_session_copy", error);
}

/* A session copied from its own step callback has taken the pass, but r->gen has still to move on. Where that leads is
   said by the options of the original. */
static void tsk__request_advance_copy(tsk__request *to, const tsk__request *from) {
    tsk_generate_options own = to->options;
    int32_t n_states = to->n_states;
    int keeps_outputs = to->keeps_outputs;
    to->options = from->options;
    to->n_states = from->n_states;
    to->keeps_outputs = from->keeps_outputs;
    to->pass.n_rows = from->pass.n_rows;
    tsk__request_advance(to, tsk__request_masks_left(to));
    to->options = own;
    to->n_states = n_states;
    to->keeps_outputs = keeps_outputs;
}

/* A copy takes r->gen, the arrays before `cosines`, and every part that both caches have at the same size. */
static tsk_status tsk__session_copy_state(tsk_session *to, const tsk_session *from, tsk_error *error) {
    tsk__request *a = &to->request;
    const tsk__request *b = &from->request;
    int is_copied[TSK__CACHE_PARTS];
    void *before = NULL;
    size_t shared;
    tsk_status status;
    to->n_probed = 0;
    a->gen = b->gen;
    a->gen.is_started = 0;
    a->n_final = 0;
    status = tsk__request_allocate(a, b->cache.shape.capacity, NULL, &before, error);
    tsk__memory_delete(a->allocator, before);
    if (status == TSK_OK) status = tsk__session_room(to, tsk__request_most_rows(a), a->n_states, error);
    if (status != TSK_OK) return status;
    a->n_final = b->n_final;
    a->pass.kind = b->pass.kind;
    tsk__request_layout(a, NULL, &shared);
    memcpy(a->memory, b->memory, shared);
    if (b->is_reporting) tsk__request_advance_copy(a, b);
    if (a->gen.n_positions && a->gen.block_step == 0) a->gen.visible = tsk__request_visible(a);
    if (a->options.refresh_rows && a->gen.n_positions) tsk__request_list_nearest(a);
    tsk__cache_copy(&a->cache, &b->cache, to->pass.stream, is_copied);
    /* If the states are of another K, or the outputs are missing, or its steps do not go on to compare, the copy has no
       reference. */
    a->gen.has_previous = a->gen.has_previous && tsk__request_compares(a) && is_copied[TSK__CACHE_STATES] &&
                          is_copied[TSK__CACHE_OUTPUTS];
    a->gen.has_outputs = a->gen.has_outputs && is_copied[TSK__CACHE_OUTPUTS];
    a->gen.has_refresh = a->gen.has_refresh && is_copied[TSK__CACHE_REFRESH_STATES] && a->options.skip.refresh;
    status = a->backend->ops->wait(to->pass.stream, error);
    if (status == TSK_OK) a->gen.is_started = 1;
    return status;
}

tsk_status tsk_session_copy(tsk_session *to, const tsk_session *from, tsk_error *error) {
    tsk_status status = tsk__session_check_copy(to, from, error);
    return status != TSK_OK || to == from ? status : tsk__session_copy_state(to, from, error);
}

tsk_status tsk_session_probe(tsk_session *session, const int32_t *canvas, tsk_probe_kind kind, tsk_probe *out,
                             tsk_error *error) {
    tsk__request *r;
    tsk__pass *p;
    size_t size;
    int32_t i;
    tsk_status status;
    if (!session) return tsk__error_null(error, "tsk_session_probe", "session");
    if (!out) return tsk__error_null(error, "tsk_session_probe", "out");
    memset(out, 0, sizeof *out);
    r = &session->request;
    p = &session->pass;
    status = tsk__request_check_outside(r, "tsk_session_probe", error);
    if (status == TSK_OK) status = tsk__request_check_runs(r, "tsk_session_probe", error);
    if (status != TSK_OK) return status;
    session->n_probed = 0;
    size = (size_t)r->gen.length * sizeof *canvas;
    if (!r->gen.n_positions)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "tsk_session_probe of a generation that had nothing to do");
    if ((int)kind < 0 || kind > TSK_PROBE_REFRESH)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "tsk_session_probe has no kind %d",
                              (int)kind);
    if (kind == TSK_PROBE_REFRESH && tsk__request_by_blocks(r))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "with cache block nothing is refreshed that could be probed");
    if (tsk__request_by_blocks(r) && r->n_final < tsk__request_prompt_end(r))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "a block step cannot be probed before the prompt's whole blocks have run");
    if (kind != TSK_PROBE_REFRESH && r->options.cache != TSK_CACHE_DUAL && !tsk__request_by_blocks(r))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "a block step can be probed with cache dual only");
    if (kind != TSK_PROBE_REFRESH && r->gen.pass == 0 && !tsk__request_by_blocks(r))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "a block step cannot be probed before the first pass: nothing is cached yet");
    if (kind != TSK_PROBE_REFRESH && !tsk__request_by_blocks(r) && tsk__request_has_gaps(r))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "a block step cannot be probed before the block's first pass: of what the window shows "
                              "not all is cached yet");
    if (canvas) {
        status = tsk__request_check_ids(r, "the canvas", canvas, r->gen.length, error);
        if (status != TSK_OK) return status;
        memcpy(r->canvas.kept_ids, r->canvas.ids, size);
        memcpy(r->canvas.ids, canvas, size);
        r->canvas.is_uploaded = 0;
    }
    r->pass.is_probe = 1;
    r->pass.kind = kind == TSK_PROBE_REFRESH ? TSK__PASS_FULL : TSK__PASS_STEP;
    r->pass.runs_all = kind == TSK_PROBE_STEP_ALL;
    status = tsk__session_forward(session, tsk__requests_forward, error);
    r->pass.is_probe = r->pass.runs_all = 0;
    if (status == TSK_OK) {
        out->n_positions = r->gen.n_positions;
        out->positions = r->block.positions;
        out->active = r->block.active;
        out->n_cosines = tsk__request_has_cosines(r) ? r->n_states : 0;
        out->cosines = out->n_cosines ? r->block.cosines : NULL;
        for (i = 0; i < r->gen.n_positions; i++)
            if (r->block.sources[i] >= 0) p->head[session->n_probed++] = r->block.sources[i];
        tsk__request_take_predictions(r, p);
        tsk__request_move_on(r);
    }
    if (canvas) {
        memcpy(r->canvas.ids, r->canvas.kept_ids, size);
        r->canvas.is_uploaded = 0;
    }
    return status;
}

/* From the front of `values` [n_positions, width], where those of the probe's rows are, to the rows' slots. */
static void tsk__session_spread(const tsk_session *session, float *values, size_t width) {
    const tsk__request *r = &session->request;
    int32_t slot = r->gen.n_positions, from = session->n_probed;
    while (slot-- > 0) {
        float *to = values + (size_t)slot * width;
        size_t i;
        if (r->block.sources[slot] >= 0) memmove(to, values + (size_t)--from * width, width * sizeof *to);
        else
            for (i = 0; i < width; i++) to[i] = NAN;
    }
}

tsk_status tsk_session_probe_logits(tsk_session *session, float *final_norm, float *logits, tsk_error *error) {
    tsk__pass *p;
    tsk_status status;
    if (!session) return tsk__error_null(error, "tsk_session_probe_logits", "session");
    if (!logits) return tsk__error_null(error, "tsk_session_probe_logits", "logits");
    if (!session->n_probed)
        return tsk__error_set(
            error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
            "tsk_session_probe_logits must follow tsk_session_probe, with no other call between them");
    p = &session->pass;
    p->backend->ops->logits(p->stream, session->n_probed, p->head, final_norm, logits);
    status = p->backend->ops->wait(p->stream, error);
    if (status != TSK_OK) {
        session->n_probed = 0;
        return status;
    }
    tsk__session_spread(session, logits, (size_t)session->model->config.embedding_size);
    if (final_norm) tsk__session_spread(session, final_norm, (size_t)session->model->config.d_model);
    return TSK_OK;
}

/* One forward over `tokens`, whose caches take the place of the generation's. */
static tsk_status tsk__session_logits(tsk_session *session, const int32_t *tokens, int32_t n, int32_t first,
                                      int32_t count, float *logits, tsk_error *error) {
    tsk__request *r = &session->request;
    tsk__pass *p = &session->pass;
    tsk_status status;
    int32_t i;
    r->gen.is_started = 0;
    r->n_final = 0;
    status = tsk__request_device_memory(r, n, n, NULL, error);
    if (status == TSK_OK) status = tsk__session_room(session, n, 0, error);
    if (status != TSK_OK) return status;
    tsk__pass_reset(p);
    p->tracer = NULL;
    p->caches[p->n_requests] = tsk__cache_view(&r->cache, 0);
    p->caches[p->n_requests].n_states = 0;
    p->caches[p->n_requests++].tokens = NULL;  /* the canvas stays as it is */
    for (i = 0; i < n; i++) {
        int32_t end = (i / r->options.block_length + 1) * r->options.block_length;
        tsk__pass_add_row(p, tokens[i], i, -1);
        if (tsk__request_by_blocks(r) && end < n) p->visible[i] = end;
    }
    tsk__pass_begin(p);
    tsk__forward_layers(p, 0, r->config->n_layers, 0);
    for (i = 0; i < count; i++) p->head[i] = first + i;
    p->backend->ops->logits(p->stream, count, p->head, NULL, logits);
    return p->backend->ops->wait(p->stream, error);
}

tsk_status tsk_session_logits(tsk_session *session, const int32_t *tokens, int32_t n, int32_t first, int32_t count,
                              float *logits, tsk_error *error) {
    const tsk_model_config *c;
    tsk_status status;
    if (!session) return tsk__error_null(error, "tsk_session_logits", "session");
    if (!tokens) return tsk__error_null(error, "tsk_session_logits", "tokens");
    if (!logits) return tsk__error_null(error, "tsk_session_logits", "logits");
    status = tsk__request_check_outside(&session->request, "tsk_session_logits", error);
    c = session->request.config;
    if (status == TSK_OK && (n <= 0 || n > c->max_sequence_length || first < 0 || count <= 0 || count > n - first))
        status = tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                                "logits of %d positions from %d on, of %d tokens (the model takes at most %d)",
                                (int)count, (int)first, (int)n, (int)c->max_sequence_length);
    if (status == TSK_OK) status = tsk__request_check_ids(&session->request, "the tokens", tokens, n, error);
    if (status != TSK_OK) return status;
    session->n_probed = 0;
    return tsk__session_logits(session, tokens, n, first, count, logits, error);
}

tsk_status tsk_session_force(tsk_session *session, int32_t n_active, int32_t n_refresh, tsk_error *error) {
    tsk_status status;
    if (!session) return tsk__error_null(error, "tsk_session_force", "session");
    status = tsk__request_check_outside(&session->request, "tsk_session_force", error);
    if (status == TSK_OK) status = tsk__force_check("tsk_session_force", n_active, n_refresh, error);
    if (status != TSK_OK) return status;
    session->request.force_active = n_active;
    session->request.force_refresh = n_refresh;
    return TSK_OK;
}

tsk_trace_options tsk_trace_options_default(void) {
    tsk_trace_options o;
    memset(&o, 0, sizeof o);
    o.last_layer = o.last_pass = INT32_MAX;
    return o;
}

tsk_status tsk_session_trace(tsk_session *session, const tsk_trace_options *options, tsk_error *error) {
    tsk__tracer *t;
    char *pattern = NULL;
    tsk_status status;
    if (!session) return tsk__error_null(error, "tsk_session_trace", "session");
    status = tsk__request_check_outside(&session->request, "tsk_session_trace", error);
    if (status != TSK_OK) return status;
    t = &session->tracer;
    if (options && !options->on_record)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "tracing without on_record");
    if (options && options->pattern) {
        size_t size = strlen(options->pattern) + 1;
        pattern = (char *)tsk__memory_new(t->allocator, size, 1);
        if (!pattern) return tsk__error_memory(error, "a trace pattern", size);
        memcpy(pattern, options->pattern, size);
    }
    tsk__trace_free(t);
    tsk__memory_delete(t->allocator, t->pattern);
    t->pattern = pattern;
    memset(&t->options, 0, sizeof t->options);
    if (options) t->options = *options;
    t->options.pattern = pattern;
    /* A generation under way goes on, from here with or without records. */
    session->pass.tracer = NULL;
    if (options && session->pass.stream) {
        status = tsk__trace_attach(t, session->pass.stream, error);
        if (status != TSK_OK) memset(&t->options, 0, sizeof t->options);
        else session->pass.tracer = t;
        return status;
    }
    return TSK_OK;
}

#endif /* SECTION_GUARD_SESSION */
