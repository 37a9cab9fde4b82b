#ifndef SECTION_GUARD_FORWARD
#define SECTION_GUARD_FORWARD

#include "error.h"
#include "memory.h"
#include "backend.h"
#include "storage.h"
#include "trace.h"

// >>forward ===========================================================================================================
/* The transformer, once, over the backend's operations. A pass is a list of rows of one or more requests that goes
   through the layers; on the way it can be narrowed to some of its rows, those that TokenSkip finds active or whose
   request has work at this layer, and widened again. */

typedef struct tsk__pass {
    tsk__backend *backend;
    tsk__stream *stream;
    const tsk_allocator *allocator;
    tsk__tracer *tracer;
    int32_t max_rows;
    int32_t n;                     /* rows */
    int32_t *tokens, *positions, *requests, *slots, *visible; /* [max_rows] as tsk__rows */
    int32_t *flags;                /* [max_rows] of tsk__row_flag */
    int32_t *active;               /* [max_rows] 0: skips the upper layers, once that is known */
    int32_t *running;              /* [max_rows] 0: not in the layers that run now */
    int32_t *narrowed;             /* [max_rows] indices of the running rows while narrowed */
    int32_t *narrowed_positions;   /* [max_rows] their positions */
    int32_t n_running;
    int is_masked, is_compact;     /* how it is narrowed now; neither: not */
    int masks_itself;              /* 1: the backend masks the rows that it decides to skip, and no other row is left
                                      out in this pass */
    tsk__kv *caches;               /* [max_requests] */
    int32_t n_requests, max_requests;
    int32_t n_head;                /* rows that need predictions */
    int32_t *head;                 /* [max_rows] their indices */
    tsk__draw *draws;              /* [max_rows] */
    int32_t n_rules, n_candidates;
    tsk__commit_rule *rules;       /* [max_requests] */
    tsk__commit_candidate *candidates; /* [max_rows] */
} tsk__pass;

/* Bytes of activations, about: x three times (whole, compacted, for the head), q and attention, k and v, gate and
   up. */
static uint64_t tsk__pass_size(const tsk_model_config *c, uint64_t element_size, int32_t rows) {
    return (uint64_t)rows * element_size *
           (3 * (uint64_t)c->d_model + 2 * (uint64_t)c->n_heads * (uint64_t)c->head_dim +
            2 * (uint64_t)c->n_kv_heads * (uint64_t)c->head_dim + 2 * (uint64_t)c->mlp_hidden_size);
}

static void tsk__pass_free(tsk__pass *p) {
    if (p->stream) p->backend->ops->stream_destroy(p->stream);
    tsk__memory_delete(p->allocator, p->tokens);
    tsk__memory_delete(p->allocator, p->caches);
    tsk__memory_delete(p->allocator, p->draws);
    tsk__memory_delete(p->allocator, p->rules);
    tsk__memory_delete(p->allocator, p->candidates);
    p->stream = NULL;
    p->tokens = NULL;
    p->caches = NULL;
    p->draws = NULL;
    p->rules = NULL;
    p->candidates = NULL;
    p->max_rows = 0;
}

/* Room for max_rows rows of max_requests requests, n_states TokenSkip states a row. */
static tsk_status tsk__pass_create(tsk__pass *p, tsk__backend *backend, const tsk_allocator *allocator,
                                   int32_t max_rows, int32_t max_requests, int32_t n_states, tsk_error *error) {
    int32_t **lists[] = {&p->tokens, &p->positions, &p->requests, &p->slots,              &p->visible, &p->flags,
                         &p->active, &p->running,   &p->narrowed, &p->narrowed_positions, &p->head};
    size_t n_lists = sizeof lists / sizeof lists[0], i;
    tsk_status status;
    int32_t *block;
    memset(p, 0, sizeof *p);
    p->backend = backend;
    p->allocator = allocator;
    block = (int32_t *)tsk__memory_new(allocator, n_lists * (size_t)max_rows, sizeof *block);
    for (i = 0; i < n_lists && block; i++) *lists[i] = block + i * (size_t)max_rows;
    p->caches = (tsk__kv *)tsk__memory_new(allocator, (size_t)max_requests, sizeof *p->caches);
    p->draws = (tsk__draw *)tsk__memory_new(allocator, (size_t)max_rows, sizeof *p->draws);
    p->rules = (tsk__commit_rule *)tsk__memory_new(allocator, (size_t)max_requests, sizeof *p->rules);
    p->candidates = (tsk__commit_candidate *)tsk__memory_new(allocator, (size_t)max_rows, sizeof *p->candidates);
    if (!block || !p->caches || !p->draws || !p->rules || !p->candidates)
        status = tsk__error_memory(error, "the rows of a pass", n_lists * (uint64_t)max_rows * sizeof *block);
    else status = backend->ops->stream_create(backend, max_rows, n_states, &p->stream, error);
    if (status != TSK_OK) tsk__pass_free(p);
    else p->max_rows = max_rows;
    p->max_requests = max_requests;
    return status;
}

static void tsk__pass_reset(tsk__pass *p) { p->n = p->n_requests = p->n_head = p->n_rules = p->n_candidates = 0; }

/* A row of the last request added, to which all of its cache is visible. */
static void tsk__pass_add_row(tsk__pass *p, int32_t token, int32_t position, int32_t slot) {
    p->tokens[p->n] = token;
    p->positions[p->n] = position;
    p->requests[p->n] = p->n_requests - 1;
    p->slots[p->n] = slot;
    p->visible[p->n] = p->caches[p->n_requests - 1].length;
    p->flags[p->n] = 0;
    p->active[p->n++] = 1;
}

static void tsk__pass_begin(tsk__pass *p) {
    tsk__rows rows;
    rows.n = p->n;
    rows.tokens = p->tokens;
    rows.positions = p->positions;
    rows.requests = p->requests;
    rows.slots = p->slots;
    rows.flags = p->flags;
    rows.visible = p->visible;
    rows.caches = p->caches;
    rows.n_requests = p->n_requests;
    p->n_running = p->n;
    p->is_masked = p->is_compact = p->masks_itself = 0;
    p->backend->ops->begin(p->stream, &rows);
}

/* All rows run again. */
static void tsk__pass_widen(tsk__pass *p) {
    if (p->is_masked) p->backend->ops->mask(p->stream, NULL);
    if (p->is_compact) p->backend->ops->expand(p->stream);
    p->is_masked = p->is_compact = 0;
    p->n_running = p->n;
}

/* Leaves out the rows with running[i] == 0 and returns how many rows remain. If none remains, the caller runs nothing
   before the next change. If the backend masks rows itself, this only counts. */
static int32_t tsk__pass_narrow(tsk__pass *p) {
    int32_t i, n = 0;
    for (i = 0; i < p->n; i++) n += p->running[i] != 0;
    if (p->masks_itself) return n;
    tsk__pass_widen(p);
    if (n == p->n || n == 0) return n;
    for (i = 0, n = 0; i < p->n; i++) {
        if (!p->running[i]) continue;
        p->narrowed[n] = i;
        p->narrowed_positions[n++] = p->positions[i];
    }
    p->n_running = n;
    p->is_masked = tsk__backend_masks(p->backend, p->n);
    p->is_compact = !p->is_masked;
    if (p->is_masked) p->backend->ops->mask(p->stream, p->running);
    else p->backend->ops->compact(p->stream, n, p->narrowed);
    return n;
}

static tsk__traced tsk__pass_traced(const tsk__pass *p) {
    tsk__traced rows;
    memset(&rows, 0, sizeof rows);
    rows.layer = -1;
    rows.n_rows = p->is_compact ? p->n_running : p->n;
    rows.positions = p->is_compact ? p->narrowed_positions : p->positions;
    rows.keep = p->is_masked ? p->running : NULL;
    return rows;
}

static void tsk__forward_layer(tsk__pass *p, int32_t layer) {
    const tsk__backend_ops *ops = p->backend->ops;
    tsk__tracer *tracer = tsk__trace_on(p->tracer) ? p->tracer : NULL;
    const tsk__captures *captures = tracer ? &tracer->watch.captures : NULL;
    tsk__traced rows = tsk__pass_traced(p);
    if (tracer) tsk__watch_x(&tracer->watch, tracer->watch.block_input, rows.n_rows);
    ops->qkv(p->stream, layer, captures);
    ops->attend(p->stream, layer);
    ops->attn_out(p->stream, layer, captures);
    if (tracer) {
        tsk__trace_attention(tracer, layer, &rows);
        tsk__watch_x(&tracer->watch, tracer->watch.middle, rows.n_rows);
    }
    ops->gate_up(p->stream, layer, captures);
    ops->down(p->stream, layer, captures);
    if (tracer) tsk__trace_mlp(tracer, layer, &rows);
}

/* Layers first .. last-1, the embedding before layer 0. After layer l < n_states its output, h_{l+1}, is compared with
   the request's state of that number; requests whose lower layers end here, all of whose states have been compared, are
   decided about. Short passes are recorded by backends that can. */
static void tsk__forward_layers(tsk__pass *p, int32_t first, int32_t last, int32_t n_states) {
    const tsk__backend_ops *ops = p->backend->ops;
    int traced = tsk__trace_on(p->tracer);
    int recorded = ops->replay && !traced;
    uint64_t key = (uint64_t)first << 32 | (uint64_t)last << 16 | (uint64_t)n_states;  /* (layers: 4096 at the most) */
    int32_t layer;
    if (recorded && ops->replay(p->stream, key)) return;
    if (recorded) ops->record(p->stream, key);
    if (first == 0) {
        ops->embed(p->stream);
        if (traced) {
            tsk__traced rows = tsk__pass_traced(p);
            rows.name = "embedding";
            rows.part = "";
            tsk__trace_rows(p->tracer, &rows, NULL, 0, p->stream->x, (uint64_t)p->backend->config->d_model, 1);
        }
    }
    for (layer = first; layer < last; layer++) {
        tsk__forward_layer(p, layer);
        if (layer < n_states) ops->compare(p->stream, layer);
    }
    if (last > 1 && last <= n_states + 1) ops->decide(p->stream, last - 1);
    if (recorded) ops->finish(p->stream);
}

/* A row's prediction is wanted, with these draws. */
static void tsk__pass_add_head(tsk__pass *p, int32_t row, const tsk__draw *draw) {
    p->head[p->n_head] = row;
    p->draws[p->n_head++] = *draw;
}

static void tsk__forward_head(tsk__pass *p) {
    if (tsk__trace_on(p->tracer)) {
        int32_t i, r;
        for (i = 0; i < p->n; i++) p->narrowed[i] = i;
        tsk__trace_head(p->tracer, p->n, p->positions, p->narrowed);
        for (r = 0; r < p->n_requests; r++) {
            tsk__trace_caches(p->tracer, &p->caches[r]);
        }
    }
    if (p->n_head) p->backend->ops->head(p->stream, p->n_head, p->head, p->draws);
    if (p->n_candidates) p->backend->ops->select(p->stream, p->n_rules, p->rules, p->n_candidates, p->candidates);
}

#endif /* SECTION_GUARD_FORWARD */
