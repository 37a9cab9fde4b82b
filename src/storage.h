#ifndef SECTION_GUARD_STORAGE
#define SECTION_GUARD_STORAGE

#include "error.h"
#include "family.h"
#include "backend.h"

// >>storage ===========================================================================================================
/* What lies in a backend's memory beside weights and activations: the cache of a request, the arena in which a batch
   has the caches of many, and the buffers of a traced pass. It is written once over what every backend does with its
   memory (allocate, release, copy, slide, upload, download): the sections below use these objects and compute no
   address. */

/* ---- the cache of a request */

typedef enum tsk__cache_part {
    TSK__CACHE_K, TSK__CACHE_V,    /* [n_layers, n_kv_heads, capacity, head_dim] each, unless an arena holds them */
    TSK__CACHE_CANVAS,             /* [length] int32: the backend's canvas, in which select commits */
    TSK__CACHE_PREDICTIONS,        /* [n_slots] tsk__prediction: the last of each slot */
    TSK__CACHE_STATES,             /* [2, n_states, n_slots, d_model] (see tsk__kv) */
    TSK__CACHE_REFRESH_STATES,     /* [2, n_states, length, d_model]: the same with a slot for each position */
    TSK__CACHE_OUTPUTS,            /* [n_slots, d_model] last computed h_L */
    TSK__CACHE_RESIDUAL,           /* [length, d_model] the residual stream of a refresh that was cut by layers */
    TSK__CACHE_PARTS
} tsk__cache_part;

/* How much a cache holds. */
typedef struct tsk__cache_shape {
    int32_t length;                /* positions of the canvas */
    int32_t capacity;              /* that there is room for in K and V: as many, or more */
    int32_t n_kept;                /* of these, so many from 0 on keep what they have when the cache is resized */
    int32_t n_slots, n_states;     /* positions of the longest block; states of each that are compared */
    int has_refresh_states, has_outputs, has_residual;
} tsk__cache_shape;

/* Room for the K and V of n_tokens positions, of many caches. */
typedef struct tsk__arena {
    tsk__backend *backend;
    int32_t n_tokens;
    void *k, *v;                   /* [n_layers, n_kv_heads, n_tokens, head_dim] each */
} tsk__arena;

typedef struct tsk__cache {
    tsk__backend *backend;
    tsk__cache_shape shape;
    const tsk__arena *arena;       /* that K and V lie in from position `offset` on; NULL: they are parts */
    int32_t offset;
    void *parts[TSK__CACHE_PARTS];
    uint64_t sizes[TSK__CACHE_PARTS]; /* bytes allocated: an earlier shape may have needed more */
} tsk__cache;

/* Bytes of K, or of V, of `length` positions. */
static uint64_t tsk__storage_kv_size(const tsk_model_config *c, uint64_t element_size, int32_t length) {
    return (uint64_t)c->n_layers * (uint64_t)c->n_kv_heads * (uint64_t)length * (uint64_t)c->head_dim * element_size;
}

static uint64_t tsk__storage_row_size(const tsk__backend *b) { return (uint64_t)b->config->d_model * b->element_size; }

/* Bytes that a part takes in this shape; 0: it has none. */
static uint64_t tsk__cache_part_size(const tsk__cache *c, tsk__cache_part part) {
    const tsk__cache_shape *s = &c->shape;
    uint64_t row = tsk__storage_row_size(c->backend), states = 2 * (uint64_t)s->n_states * row;
    switch (part) {
    case TSK__CACHE_K:
    case TSK__CACHE_V:
        return c->arena ? 0 : tsk__storage_kv_size(c->backend->config, c->backend->element_size, s->capacity);
    case TSK__CACHE_CANVAS: return (uint64_t)s->length * sizeof(int32_t);
    case TSK__CACHE_PREDICTIONS: return (uint64_t)s->n_slots * sizeof(tsk__prediction);
    case TSK__CACHE_STATES: return states * (uint64_t)s->n_slots;
    case TSK__CACHE_REFRESH_STATES: return s->has_refresh_states ? states * (uint64_t)s->length : 0;
    case TSK__CACHE_OUTPUTS: return s->has_outputs ? row * (uint64_t)s->n_slots : 0;
    case TSK__CACHE_RESIDUAL: return s->has_residual ? row * (uint64_t)s->length : 0;
    default: return 0;
    }
}

static const char *tsk__cache_part_name(tsk__cache_part part) {
    static const char *const names[] = {"the K cache",         "the V cache",
                                        "the canvas",          "the block's predictions",
                                        "TokenSkip's states",  "skip_refresh's states",
                                        "TokenSkip's outputs", "a cut refresh"};
    return names[part];
}

/* Grows one part; its contents are not kept. */
static tsk_status tsk__cache_grow(tsk__cache *c, tsk__cache_part part, tsk_error *error) {
    const tsk__backend_ops *ops = c->backend->ops;
    uint64_t size = tsk__cache_part_size(c, part);
    if (size <= c->sizes[part]) return TSK_OK;
    if (c->parts[part]) ops->release(c->backend, c->parts[part]);
    c->sizes[part] = 0;
    c->parts[part] = ops->allocate(c->backend, size);
    if (!c->parts[part]) return tsk__error_memory(error, tsk__cache_part_name(part), size);
    c->sizes[part] = size;
    return TSK_OK;
}

/* K or V, which had room for `before` positions, in new memory with its first n_kept ones. */
static tsk_status tsk__cache_rebuild(tsk__cache *c, tsk__cache_part part, int32_t before, tsk__stream *stream,
                                     tsk_error *error) {
    const tsk_model_config *m = c->backend->config;
    const tsk__backend_ops *ops = c->backend->ops;
    uint64_t token = (uint64_t)m->head_dim * c->backend->element_size, size = tsk__cache_part_size(c, part);
    char *to = (char *)ops->allocate(c->backend, size), *from = (char *)c->parts[part];
    int32_t plane;
    tsk_status status;
    if (!to) return tsk__error_memory(error, tsk__cache_part_name(part), size);
    for (plane = 0; plane < m->n_layers * m->n_kv_heads; plane++)
        ops->copy(stream, to + (uint64_t)plane * (uint64_t)c->shape.capacity * token,
                  from + (uint64_t)plane * (uint64_t)before * token, (uint64_t)c->shape.n_kept * token);
    status = ops->wait(stream, error);
    ops->release(c->backend, c->parts[part]);
    c->parts[part] = to;
    c->sizes[part] = size;
    return status;
}

/* Room for that much. The contents mean nothing after it, but for K and V of the shape's n_kept positions: where there
   are some, `stream` copies. On failure the cache can only be resized again, keeping nothing, or freed. */
static tsk_status tsk__cache_resize(tsk__cache *c, const tsk__cache_shape *shape, tsk__stream *stream,
                                    tsk_error *error) {
    int32_t before = c->shape.capacity;
    tsk_status status = TSK_OK;
    int i;
    c->shape = *shape;
    for (i = 0; i < TSK__CACHE_PARTS && status == TSK_OK; i++) {
        int is_rebuilt = i <= TSK__CACHE_V && shape->n_kept && shape->capacity != before;
        status = is_rebuilt ? tsk__cache_rebuild(c, (tsk__cache_part)i, before, stream, error)
                            : tsk__cache_grow(c, (tsk__cache_part)i, error);
    }
    return status;
}

static void tsk__cache_free(tsk__cache *c) {
    int i;
    for (i = 0; i < TSK__CACHE_PARTS; i++) {
        if (c->parts[i]) c->backend->ops->release(c->backend, c->parts[i]);
        c->parts[i] = NULL;
        c->sizes[i] = 0;
    }
}

/* What a pass is told of the cache. `of_refresh`: TokenSkip's states are those of refreshes. */
static tsk__kv tsk__cache_view(const tsk__cache *c, int of_refresh) {
    uint64_t start = (uint64_t)c->offset * (uint64_t)c->backend->config->head_dim * c->backend->element_size;
    tsk__kv kv;
    memset(&kv, 0, sizeof kv);
    kv.k = c->arena ? (char *)c->arena->k + start : c->parts[TSK__CACHE_K];
    kv.v = c->arena ? (char *)c->arena->v + start : c->parts[TSK__CACHE_V];
    kv.length = c->shape.length;
    kv.capacity = c->arena ? c->arena->n_tokens : c->shape.capacity;
    kv.tokens = c->parts[TSK__CACHE_CANVAS];
    kv.predictions = c->parts[TSK__CACHE_PREDICTIONS];
    kv.states = c->parts[of_refresh ? TSK__CACHE_REFRESH_STATES : TSK__CACHE_STATES];
    kv.outputs = c->parts[TSK__CACHE_OUTPUTS];
    kv.n_slots = of_refresh ? c->shape.length : c->shape.n_slots;
    kv.n_states = c->shape.n_states;
    return kv;
}

static void tsk__cache_set_canvas(tsk__cache *c, tsk__stream *stream, const int32_t *canvas) {
    c->backend->ops->upload(stream, c->parts[TSK__CACHE_CANVAS], canvas, (uint64_t)c->shape.length * sizeof *canvas);
}

/* Copies the parts that both need in the same size, of caches that lie in no arena. is_same [TSK__CACHE_PARTS]: 1 for
   those, and for what `to` does not need. */
static void tsk__cache_copy(tsk__cache *to, const tsk__cache *from, tsk__stream *stream, int *is_same) {
    int i;
    for (i = 0; i < TSK__CACHE_PARTS; i++) {
        uint64_t size = tsk__cache_part_size(to, (tsk__cache_part)i);
        is_same[i] = size == 0 || size == tsk__cache_part_size(from, (tsk__cache_part)i);
        if (size && is_same[i]) to->backend->ops->copy(stream, to->parts[i], from->parts[i], size);
    }
}

/* Row `index` of a part whose rows are d_model wide. */
static void *tsk__cache_row(const tsk__cache *c, tsk__cache_part part, uint64_t index) {
    return (char *)c->parts[part] + index * tsk__storage_row_size(c->backend);
}

/* The state of a slot becomes that which a refresh has just left for a position (in the second half of its states). */
static void tsk__cache_adopt_state(tsk__cache *c, tsk__stream *stream, int32_t slot, int32_t position, int32_t state) {
    uint64_t to = (uint64_t)state * (uint64_t)c->shape.n_slots + (uint64_t)slot;
    uint64_t from = (uint64_t)(c->shape.n_states + state) * (uint64_t)c->shape.length + (uint64_t)position;
    c->backend->ops->copy(stream, tsk__cache_row(c, TSK__CACHE_STATES, to),
                          tsk__cache_row(c, TSK__CACHE_REFRESH_STATES, from), tsk__storage_row_size(c->backend));
}

/* Row `row` of the residual stream becomes the output of a slot. */
static void tsk__cache_adopt_output(tsk__cache *c, tsk__stream *stream, int32_t slot, int32_t row) {
    uint64_t size = tsk__storage_row_size(c->backend);
    c->backend->ops->copy(stream, tsk__cache_row(c, TSK__CACHE_OUTPUTS, (uint64_t)slot),
                          (const char *)stream->x + (uint64_t)row * size, size);
}

/* n rows of the residual stream, from number `first` on, are put aside, or come back. */
static void tsk__cache_save_residual(tsk__cache *c, tsk__stream *stream, int32_t first, int32_t n) {
    uint64_t size = tsk__storage_row_size(c->backend);
    c->backend->ops->copy(stream, c->parts[TSK__CACHE_RESIDUAL], (const char *)stream->x + (uint64_t)first * size,
                          (uint64_t)n * size);
}
static void tsk__cache_load_residual(const tsk__cache *c, tsk__stream *stream, int32_t first, int32_t n) {
    uint64_t size = tsk__storage_row_size(c->backend);
    c->backend->ops->copy(stream, (char *)stream->x + (uint64_t)first * size, c->parts[TSK__CACHE_RESIDUAL],
                          (uint64_t)n * size);
}

/* K (or V) of a layer, as a pass sees it, to host f32 [n_kv_heads, length, head_dim]. Waits. */
static void tsk__kv_read(const tsk__kv *kv, tsk__stream *stream, int32_t layer, int is_v, float *out) {
    const tsk__backend *b = stream->backend;
    uint64_t head_dim = (uint64_t)b->config->head_dim, n = (uint64_t)kv->length * head_dim,
             plane = (uint64_t)kv->capacity * head_dim * b->element_size;
    int32_t h;
    for (h = 0; h < b->config->n_kv_heads; h++) {
        uint64_t from = ((uint64_t)layer * (uint64_t)b->config->n_kv_heads + (uint64_t)h) * plane;
        b->ops->download(stream, out + (uint64_t)h * n, (const char *)(is_v ? kv->v : kv->k) + from, n);
    }
}

/* ---- the arena of a batch */

static void tsk__arena_free(tsk__arena *a) {
    if (a->k) a->backend->ops->release(a->backend, a->k);
    if (a->v) a->backend->ops->release(a->backend, a->v);
    a->k = a->v = NULL;
}

static tsk_status tsk__arena_create(tsk__arena *a, tsk__backend *backend, int32_t n_tokens, tsk_error *error) {
    uint64_t size = tsk__storage_kv_size(backend->config, backend->element_size, n_tokens);
    a->backend = backend;
    a->n_tokens = n_tokens;
    a->k = backend->ops->allocate(backend, size);
    a->v = a->k ? backend->ops->allocate(backend, size) : NULL;
    if (a->k && a->v) return TSK_OK;
    tsk__arena_free(a);
    return tsk__error_memory(error, "the batch's cache", 2 * size);
}

/* The cache's K and V are the arena's from position `offset` on. */
static void tsk__cache_place(tsk__cache *c, const tsk__arena *arena, int32_t offset) {
    c->arena = arena;
    c->offset = offset;
}

/* Moves K and V down to `offset`. */
static void tsk__cache_move(tsk__cache *c, tsk__stream *stream, int32_t offset) {
    const tsk_model_config *m = c->backend->config;
    uint64_t token = (uint64_t)m->head_dim * c->backend->element_size, plane = (uint64_t)c->arena->n_tokens * token;
    uint64_t to = (uint64_t)offset * token, from = (uint64_t)c->offset * token,
             size = (uint64_t)c->shape.length * token;
    c->backend->ops->slide(stream, c->arena->k, m->n_layers * m->n_kv_heads, plane, to, from, size);
    c->backend->ops->slide(stream, c->arena->v, m->n_layers * m->n_kv_heads, plane, to, from, size);
    c->offset = offset;
}

/* ---- the buffers of a traced pass */

/* What a tracer watches a stream with: the captures, and x before a layer and between its halves. */
typedef struct tsk__watch {
    tsk__stream *stream;           /* NULL: there are no buffers */
    tsk__captures captures;
    void *block_input, *middle;    /* [max_rows, d_model] */
} tsk__watch;

#define TSK__WATCH_BUFFERS 12

/* The buffers, each with its width; at most TSK__WATCH_BUFFERS. */
static int tsk__watch_list(tsk__watch *w, const tsk_model_config *c, void ***buffers, uint64_t *widths) {
    uint64_t d = (uint64_t)c->d_model, q = (uint64_t)c->n_heads * (uint64_t)c->head_dim,
             k = (uint64_t)c->n_kv_heads * (uint64_t)c->head_dim;
    uint64_t m = (uint64_t)c->mlp_hidden_size;
    int n = 0;
#define TSK__WATCH_BUFFER(field, width) (buffers[n] = &(field), widths[n++] = (width))
    TSK__WATCH_BUFFER(w->captures.norm, d);
    TSK__WATCH_BUFFER(w->captures.q, q);
    TSK__WATCH_BUFFER(w->captures.k, k);
    TSK__WATCH_BUFFER(w->captures.v, k);
    if (tsk__family_part_of(c, TSK__PART_Q_NORM)->weight) TSK__WATCH_BUFFER(w->captures.q_norm, q);
    if (tsk__family_part_of(c, TSK__PART_K_NORM)->weight) TSK__WATCH_BUFFER(w->captures.k_norm, k);
    TSK__WATCH_BUFFER(w->captures.k_rope, k);
    TSK__WATCH_BUFFER(w->captures.gate, m);
    TSK__WATCH_BUFFER(w->captures.up, m);
    TSK__WATCH_BUFFER(w->captures.projection, d);
    TSK__WATCH_BUFFER(w->block_input, d);
    TSK__WATCH_BUFFER(w->middle, d);
#undef TSK__WATCH_BUFFER
    return n;
}

static void tsk__watch_free(tsk__watch *w) {
    void **buffers[TSK__WATCH_BUFFERS];
    uint64_t widths[TSK__WATCH_BUFFERS];
    int i, n;
    if (!w->stream) return;
    n = tsk__watch_list(w, w->stream->backend->config, buffers, widths);
    for (i = 0; i < n; i++) {
        if (*buffers[i]) w->stream->backend->ops->release(w->stream->backend, *buffers[i]);
        *buffers[i] = NULL;
    }
    w->stream = NULL;
}

/* Buffers for all rows that the stream may have. */
static tsk_status tsk__watch_create(tsk__watch *w, tsk__stream *stream, tsk_error *error) {
    tsk__backend *b = stream->backend;
    void **buffers[TSK__WATCH_BUFFERS];
    uint64_t widths[TSK__WATCH_BUFFERS];
    int i, n;
    w->stream = stream;
    n = tsk__watch_list(w, b->config, buffers, widths);
    for (i = 0; i < n; i++) {
        uint64_t size = (uint64_t)stream->max_rows * widths[i] * b->element_size;
        *buffers[i] = b->ops->allocate(b, size);
        if (*buffers[i]) continue;
        tsk__watch_free(w);
        return tsk__error_memory(error, "tracing buffers", size);
    }
    return TSK_OK;
}

/* n rows of x as they are now, into block_input or middle. */
static void tsk__watch_x(const tsk__watch *w, void *to, int32_t n) {
    w->stream->backend->ops->copy(w->stream, to, w->stream->x, (uint64_t)n * tsk__storage_row_size(w->stream->backend));
}

/* n rows of activations, of a capture or of the stream, to host f32 [n, width]. Waits. */
static void tsk__stream_read(tsk__stream *stream, const void *rows, int32_t n, uint64_t width, float *out) {
    stream->backend->ops->download(stream, out, rows, (uint64_t)n * width);
}

#endif /* SECTION_GUARD_STORAGE */
