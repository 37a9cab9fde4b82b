#ifndef SECTION_GUARD_CPU_BACKEND
#define SECTION_GUARD_CPU_BACKEND

#include "error.h"
#include "memory.h"
#include "platform.h"
#include "pool.h"
#include "random.h"
#include "weights.h"
#include "skip.h"
#include "schedule.h"
#include "backend.h"
#include "cpu.h"
#include "cpu_weights.h"

// >>cpu_backend =======================================================================================================
/* The table of the CPU backend: rows are gathered, handed to the operations of >>cpu, and put back. */

typedef struct tsk__cpu_backend {
    tsk__backend base;
    tsk__cpu_model model;
    const tsk_allocator *allocator;
} tsk__cpu_backend;

typedef struct tsk__cpu_stream {
    tsk__stream base;
    tsk__rows rows;                /* of begin, then of compact */
    tsk__rows all_rows;
    const int32_t *compacted;      /* index into all_rows, or NULL */
    int32_t *compact_lists;        /* [5, max_rows] tokens, positions, requests, slots, visible */
    float *compact_x, *full_x;     /* [max_rows, d_model]; base.x is one of them */
    float *head_rows;              /* [max_rows, d_model] final norm of the rows asked for */
    int32_t *tokens;               /* [max_rows] ids of the list of begin */
    tsk_candidate *candidates;     /* [max_rows] of one request, */
    uint8_t *commits;              /* [max_rows] and which of them it commits */
    void *scratch_memory;
    tsk__cpu_scratch scratch;
} tsk__cpu_stream;

static const tsk__cpu_model *tsk__cpu_model_of(const tsk__stream *s) {
    return &((const tsk__cpu_backend *)(const void *)s->backend)->model;
}
static tsk__cpu_stream *tsk__cpu_stream_of(tsk__stream *s) { return (tsk__cpu_stream *)(void *)s; }
static const tsk_allocator *tsk__cpu_allocator_of(const tsk__backend *backend) {
    return ((const tsk__cpu_backend *)(const void *)backend)->allocator;
}

static void tsk__cpu_stream_destroy(tsk__stream *stream) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    const tsk_allocator *allocator = tsk__cpu_allocator_of(stream->backend);
    tsk__memory_delete(allocator, s->base.q);
    tsk__memory_delete(allocator, s->base.attention);
    tsk__memory_delete(allocator, s->base.hidden);
    tsk__memory_delete(allocator, s->base.cosines);
    tsk__memory_delete(allocator, s->base.skipped);
    tsk__memory_delete(allocator, s->base.predictions);
    tsk__memory_delete(allocator, s->base.choices);
    tsk__memory_delete(allocator, s->tokens);
    tsk__memory_delete(allocator, s->candidates);
    tsk__memory_delete(allocator, s->commits);
    tsk__memory_delete(allocator, s->compact_lists);
    tsk__memory_delete(allocator, s->compact_x);
    tsk__memory_delete(allocator, s->full_x);
    tsk__memory_delete(allocator, s->head_rows);
    tsk__memory_delete(allocator, s->scratch_memory);
    tsk__memory_delete(allocator, s);
}

static tsk_status tsk__cpu_stream_create(tsk__backend *backend, int32_t max_rows, int32_t n_states, tsk__stream **out,
                                         tsk_error *error) {
    const tsk_model_config *c = backend->config;
    const tsk_allocator *allocator = tsk__cpu_allocator_of(backend);
    size_t rows = (size_t)max_rows, d = (size_t)c->d_model, q = (size_t)c->n_heads * (size_t)c->head_dim, scratch_size;
    tsk__cpu_stream *s = (tsk__cpu_stream *)tsk__memory_new_zeroed(allocator, 1, sizeof *s);
    int is_integer;
    if (!s) return tsk__error_memory(error, "a stream", sizeof *s);
    s->base.backend = backend;
    s->base.max_rows = max_rows;
    s->full_x = (float *)tsk__memory_new(allocator, rows * d, sizeof(float));
    s->compact_x = (float *)tsk__memory_new(allocator, rows * d, sizeof(float));
    s->head_rows = (float *)tsk__memory_new(allocator, rows * d, sizeof(float));
    s->base.q = tsk__memory_new(allocator, rows * q, sizeof(float));
    s->base.attention = tsk__memory_new(allocator, rows * q, sizeof(float));
    s->base.hidden = tsk__memory_new(allocator, rows * (size_t)c->mlp_hidden_size, sizeof(float));
    s->base.cosines = (float *)tsk__memory_new_zeroed(allocator, rows * (size_t)n_states, sizeof(float));
    s->base.skipped = (int32_t *)tsk__memory_new_zeroed(allocator, rows, sizeof *s->base.skipped);
    s->base.predictions = tsk__memory_new(allocator, rows, sizeof(tsk__prediction));
    s->base.choices = (tsk__choice *)tsk__memory_new(allocator, rows, sizeof *s->base.choices);
    s->tokens = (int32_t *)tsk__memory_new(allocator, rows, sizeof *s->tokens);
    s->candidates = (tsk_candidate *)tsk__memory_new(allocator, rows, sizeof *s->candidates);
    s->commits = (uint8_t *)tsk__memory_new(allocator, rows, sizeof *s->commits);
    s->compact_lists = (int32_t *)tsk__memory_new(allocator, rows * 5, sizeof(int32_t));
    is_integer = ((const tsk__cpu_backend *)(const void *)backend)->model.integer != NULL;
    scratch_size = tsk__cpu_scratch_init(&s->scratch, c, is_integer, max_rows, NULL);
    s->scratch_memory = tsk__memory_new(allocator, scratch_size, 1);
    if (!s->full_x || !s->compact_x || !s->head_rows || !s->base.q || !s->base.attention || !s->base.hidden ||
        !s->base.cosines || !s->base.skipped || !s->base.predictions || !s->base.choices || !s->tokens ||
        !s->candidates || !s->commits || !s->compact_lists || !s->scratch_memory) {
        tsk__cpu_stream_destroy(&s->base);
        return tsk__error_memory(error, "the activations of a pass",
                                 rows * (3 * d + 2 * q + (size_t)c->mlp_hidden_size) * sizeof(float) + scratch_size);
    }
    tsk__cpu_scratch_init(&s->scratch, c, is_integer, max_rows, s->scratch_memory);
    s->base.x = s->full_x;
    *out = &s->base;
    return TSK_OK;
}

static uint64_t tsk__cpu_backend_available(tsk__backend *backend) {
    (void)backend;
    return tsk__memory_available();
}
static void *tsk__cpu_backend_allocate(tsk__backend *backend, uint64_t size) {
    return size > SIZE_MAX ? NULL : tsk__memory_new(tsk__cpu_allocator_of(backend), (size_t)size, 1);
}
static void tsk__cpu_backend_release(tsk__backend *backend, void *address) {
    tsk__memory_delete(tsk__cpu_allocator_of(backend), address);
}
static void tsk__cpu_backend_copy(tsk__stream *s, void *to, const void *from, uint64_t size) {
    (void)s;
    memmove(to, from, (size_t)size);
}
static void tsk__cpu_backend_slide(tsk__stream *s, void *base, int32_t planes, uint64_t pitch, uint64_t to,
                                   uint64_t from, uint64_t size) {
    char *plane = (char *)base;
    int32_t i;
    (void)s;
    for (i = 0; i < planes; i++, plane += pitch) memmove(plane + to, plane + from, (size_t)size);
}
static void tsk__cpu_backend_upload(tsk__stream *s, void *to, const void *from, uint64_t size) {
    (void)s;
    memcpy(to, from, (size_t)size);
}
static void tsk__cpu_backend_download(tsk__stream *s, float *to, const void *from, uint64_t count) {
    (void)s;
    memcpy(to, from, (size_t)count * sizeof(float));
}
static tsk_status tsk__cpu_backend_wait(tsk__stream *s, tsk_error *error) {
    (void)s;
    (void)error;
    return TSK_OK;
}

static void tsk__cpu_backend_begin(tsk__stream *stream, const tsk__rows *rows) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    int32_t i;
    for (i = 0; i < rows->n; i++) {
        const int32_t *canvas = (const int32_t *)rows->caches[rows->requests[i]].tokens;
        s->tokens[i] = canvas ? canvas[rows->positions[i]] : rows->tokens[i];
    }
    s->all_rows = *rows;
    s->all_rows.tokens = s->tokens;
    s->rows = s->all_rows;
    s->compacted = NULL;
    s->base.x = s->full_x;
}
static void tsk__cpu_backend_embed(tsk__stream *s) {
    tsk__cpu_embed(tsk__cpu_model_of(s), &tsk__cpu_stream_of(s)->rows, (float *)s->x);
}
static void tsk__cpu_backend_qkv(tsk__stream *s, int32_t layer, const tsk__captures *captures) {
    tsk__cpu_qkv(tsk__cpu_model_of(s), layer, &tsk__cpu_stream_of(s)->rows, (const float *)s->x, (float *)s->q,
                 &tsk__cpu_stream_of(s)->scratch, captures);
}
static void tsk__cpu_backend_attend(tsk__stream *s, int32_t layer) {
    tsk__cpu_attention(tsk__cpu_model_of(s), layer, &tsk__cpu_stream_of(s)->rows, (const float *)s->q,
                       (float *)s->attention, &tsk__cpu_stream_of(s)->scratch);
}
static void tsk__cpu_backend_attn_out(tsk__stream *s, int32_t layer, const tsk__captures *captures) {
    tsk__cpu_attn_out(tsk__cpu_model_of(s), layer, tsk__cpu_stream_of(s)->rows.n, (const float *)s->attention,
                      (float *)s->x, captures, &tsk__cpu_stream_of(s)->scratch);
}
static void tsk__cpu_backend_gate_up(tsk__stream *s, int32_t layer, const tsk__captures *captures) {
    tsk__cpu_gate_up(tsk__cpu_model_of(s), layer, tsk__cpu_stream_of(s)->rows.n, (const float *)s->x,
                     (float *)s->hidden, &tsk__cpu_stream_of(s)->scratch, captures);
}
static void tsk__cpu_backend_down(tsk__stream *s, int32_t layer, const tsk__captures *captures) {
    tsk__cpu_down(tsk__cpu_model_of(s), layer, tsk__cpu_stream_of(s)->rows.n, (const float *)s->hidden, (float *)s->x,
                  captures, &tsk__cpu_stream_of(s)->scratch);
}

/* A row of one half (0: to compare with, 1: of the pass) of a request's states. */
static float *tsk__cpu_state(const tsk__cpu_stream *s, int32_t row, int half, int32_t state) {
    const tsk__kv *kv = &s->rows.caches[s->rows.requests[row]];
    size_t index =
        ((size_t)half * (size_t)kv->n_states + (size_t)state) * (size_t)kv->n_slots + (size_t)s->rows.slots[row];
    return (float *)kv->states + index * (size_t)s->base.backend->config->d_model;
}

static void tsk__cpu_backend_compare(tsk__stream *stream, int32_t state) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    size_t d = (size_t)stream->backend->config->d_model;
    int32_t i;
    for (i = 0; i < s->rows.n; i++) {
        const float *x = (const float *)stream->x + (size_t)i * d;
        size_t row = (size_t)(s->compacted ? s->compacted[i] : i);
        if (s->rows.slots[i] < 0 || state >= s->rows.caches[s->rows.requests[i]].n_states) continue;
        if (s->rows.caches[s->rows.requests[i]].has_reference)
            tsk__cpu_cosine(tsk__cpu_model_of(stream), 1, x, tsk__cpu_state(s, i, 0, state),
                            &stream->cosines[(size_t)state * (size_t)stream->max_rows + row]);
        memcpy(tsk__cpu_state(s, i, 1, state), x, d * sizeof *x);
    }
}

static void tsk__cpu_backend_decide(tsk__stream *stream, int32_t n_states) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    int32_t i;
    for (i = 0; i < s->rows.n; i++) {
        const tsk__kv *kv = &s->rows.caches[s->rows.requests[i]];
        int32_t row = s->compacted ? s->compacted[i] : i, flags = s->all_rows.flags ? s->all_rows.flags[row] : 0;
        if (kv->n_states != n_states || !(flags & TSK__ROW_DECIDED)) continue;
        stream->skipped[row] =
            (flags & TSK__ROW_SKIPS) ||
            tsk__skip_similar(stream->cosines + row, n_states, stream->max_rows, kv->skip_threshold, kv->skip_outlier);
    }
}

static void tsk__cpu_backend_keep(tsk__stream *stream) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    size_t d = (size_t)stream->backend->config->d_model;
    int32_t i, state;
    for (i = 0; i < s->rows.n && s->rows.flags; i++) {
        const tsk__kv *kv = &s->rows.caches[s->rows.requests[i]];
        int32_t flags = s->rows.flags[i];
        int skipped = (flags & TSK__ROW_DECIDED) && stream->skipped[i];
        float *x = (float *)stream->x + (size_t)i * d, *output;
        if (s->rows.slots[i] < 0) continue;
        for (state = 0; (flags & TSK__ROW_REMEMBER) && !(skipped && (flags & TSK__ROW_IF_RAN)) && state < kv->n_states;
             state++)
            memcpy(tsk__cpu_state(s, i, 0, state), tsk__cpu_state(s, i, 1, state), d * sizeof *x);
        if (!(flags & TSK__ROW_OUTPUT)) continue;
        output = (float *)kv->outputs + (size_t)s->rows.slots[i] * d;
        memcpy(skipped ? x : output, skipped ? output : x, d * sizeof *x);
    }
}

static void tsk__cpu_backend_expand(tsk__stream *stream) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    if (s->compacted)
        tsk__cpu_scatter(tsk__cpu_model_of(stream), s->rows.n, stream->backend->config->d_model, s->compact_x,
                         s->compacted, s->full_x);
    s->rows = s->all_rows;
    s->compacted = NULL;
    s->base.x = s->full_x;
}

static void tsk__cpu_backend_compact(tsk__stream *stream, int32_t n, const int32_t *index) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    int32_t i, *tokens = s->compact_lists, *positions = tokens + stream->max_rows,
               *requests = positions + stream->max_rows, *slots = requests + stream->max_rows,
               *visible = slots + stream->max_rows;
    tsk__cpu_backend_expand(stream);
    for (i = 0; i < n; i++) {
        tokens[i] = s->all_rows.tokens[index[i]];
        positions[i] = s->all_rows.positions[index[i]];
        requests[i] = s->all_rows.requests[index[i]];
        slots[i] = s->all_rows.slots[index[i]];
        visible[i] = tsk__cpu_visible(&s->all_rows, index[i]);
    }
    tsk__cpu_gather(tsk__cpu_model_of(stream), n, stream->backend->config->d_model, s->full_x, index, s->compact_x);
    s->rows.n = n;
    s->rows.tokens = tokens;
    s->rows.positions = positions;
    s->rows.requests = requests;
    s->rows.slots = slots;
    s->rows.visible = visible;
    s->compacted = index;
    s->base.x = s->compact_x;
}

static void tsk__cpu_select_rows(tsk__stream *stream, int32_t n, const int32_t *index) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    tsk__cpu_gather(tsk__cpu_model_of(stream), n, stream->backend->config->d_model, (const float *)stream->x, index,
                    s->head_rows);
    tsk__cpu_final_norm(tsk__cpu_model_of(stream), n, s->head_rows, s->head_rows);
}
static void tsk__cpu_backend_head(tsk__stream *stream, int32_t n, const int32_t *index, const tsk__draw *draws) {
    tsk__cpu_select_rows(stream, n, index);
    tsk__cpu_head(tsk__cpu_model_of(stream), n, tsk__cpu_stream_of(stream)->head_rows, draws,
                  (tsk__prediction *)stream->predictions, &tsk__cpu_stream_of(stream)->scratch);
}

/* Fills in the choices of one request's candidates, all but what is committed, and the candidates as its rule sees
   them. */
static void tsk__cpu_fill_choices(tsk__stream *stream, const tsk__commit_rule *o,
                                  const tsk__commit_candidate *candidates) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    tsk__prediction *last = (tsk__prediction *)s->all_rows.caches[o->request].predictions;
    int32_t i;
    for (i = 0; i < o->n; i++) {
        const tsk__commit_candidate *c = &candidates[o->first + i];
        tsk__choice *choice = &stream->choices[o->first + i];
        if (c->head >= 0) last[c->slot] = ((const tsk__prediction *)stream->predictions)[c->head];
        choice->id = last[c->slot].id;
        choice->log_sum_exp = last[c->slot].log_sum_exp;
        choice->confidence =
            o->is_random ? tsk__random_confidence(o->seed, c->position, o->pass) : last[c->slot].confidence;
        choice->entropy = last[c->slot].entropy;
        s->candidates[i].position = c->position;
        s->candidates[i].id = choice->id;
        s->candidates[i].confidence = choice->confidence;
        s->candidates[i].entropy = choice->entropy;
    }
}
static void tsk__cpu_backend_select(tsk__stream *stream, int32_t n, const tsk__commit_rule *rules, int32_t n_candidates,
                                    const tsk__commit_candidate *candidates) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    int32_t r, i;
    (void)n_candidates;
    for (r = 0; r < n; r++) {
        const tsk__commit_rule *o = &rules[r];
        int32_t *canvas = (int32_t *)s->all_rows.caches[o->request].tokens;
        tsk__cpu_fill_choices(stream, o, candidates);
        memset(s->commits, 0, (size_t)o->n);
        if (o->commits) tsk_select(&o->rule, o->n, s->candidates, s->commits);
        for (i = 0; i < o->n; i++) {
            stream->choices[o->first + i].is_committed = s->commits[i];
            if (s->commits[i]) canvas[candidates[o->first + i].position] = stream->choices[o->first + i].id;
        }
    }
}
static void tsk__cpu_backend_logits(tsk__stream *stream, int32_t n, const int32_t *index, float *norm, float *logits) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    tsk__cpu_select_rows(stream, n, index);
    if (norm) memcpy(norm, s->head_rows, (size_t)n * (size_t)stream->backend->config->d_model * sizeof *norm);
    tsk__cpu_logits(tsk__cpu_model_of(stream), n, s->head_rows, logits, &s->scratch);
}

/* ---- ceilings, for benchmarks */

#define TSK__CPU_CEILING_BYTES ((uint64_t)256 << 20)
#define TSK__CPU_CEILING_REPEATS 5

typedef struct tsk__cpu_ceiling_read {
    const uint64_t *words;
    uint64_t words_per_task;
    uint64_t sums[TSK__POOL_MAX_THREADS];
} tsk__cpu_ceiling_read;

static void tsk__cpu_ceiling_read_task(void *context, int task) {
    tsk__cpu_ceiling_read *r = (tsk__cpu_ceiling_read *)context;
    const uint64_t *words = r->words + (uint64_t)task * r->words_per_task;
    uint64_t a = 0, b = 0, c = 0, d = 0, i;
    for (i = 0; i + 4 <= r->words_per_task; i += 4) {
        a += words[i];
        b += words[i + 1];
        c += words[i + 2];
        d += words[i + 3];
    }
    r->sums[task] = a + b + c + d;
}

/* The best of a few readings of a buffer far larger than a core's caches. */
static tsk_status tsk__cpu_ceiling_bytes(const tsk__cpu_backend *b, double *out, tsk_error *error) {
    uint64_t *words = (uint64_t *)tsk__memory_new(b->allocator, (size_t)TSK__CPU_CEILING_BYTES, 1);
    tsk__cpu_ceiling_read read;
    double best = 0;
    int i;
    if (!words) return tsk__error_memory(error, "measuring bandwidth", TSK__CPU_CEILING_BYTES);
    memset(words, 1, (size_t)TSK__CPU_CEILING_BYTES);
    read.words = words;
    read.words_per_task = TSK__CPU_CEILING_BYTES / sizeof *words / (uint64_t)b->model.pool->n_threads;
    for (i = 0; i < TSK__CPU_CEILING_REPEATS; i++) {
        double start = tsk__time_ms(), rate;
        tsk__parallel(b->model.pool, b->model.pool->n_threads, tsk__cpu_ceiling_read_task, &read);
        rate = (double)(read.words_per_task * sizeof *words * (uint64_t)b->model.pool->n_threads) /
               ((tsk__time_ms() - start) * 1e-3);
        if (rate > best) best = rate;
    }
    tsk__memory_delete(b->allocator, words);
    *out = best;
    return TSK_OK;
}

/* The library's own product in a shape that suits it: many rows, f32 weights that stay in cache. */
static tsk_status tsk__cpu_ceiling_flops(const tsk__cpu_backend *b, double *out, tsk_error *error) {
    enum { rows = 256, size = 1024 };
    float *memory =
        (float *)tsk__memory_new_zeroed(b->allocator, (size_t)2 * rows * size + (size_t)size * size, sizeof *memory);
    tsk__weight weights;
    tsk__cpu_product product;
    double best = 0;
    int i;
    if (!memory)
        return tsk__error_memory(error, "measuring arithmetic", sizeof *memory * (2 * rows * size + size * size));
    for (i = 0; i < rows * size + size * size; i++) memory[i] = (float)(i % 97) * 0.01f - 0.5f;
    memset(&weights, 0, sizeof weights);
    weights.data = memory;
    weights.dtype = TSK_DTYPE_F32;
    weights.rows = weights.cols = size;
    memset(&product, 0, sizeof product);
    product.n = rows;
    product.count = 1;
    product.w[0] = &weights;
    product.x = memory + size * size;
    product.y[0] = memory + size * size + rows * size;
    for (i = 0; i < TSK__CPU_CEILING_REPEATS; i++) {
        double start = tsk__time_ms(), rate;
        tsk__cpu_product_run(&b->model, &product, NULL);
        rate = (double)(2 * rows * size * size) / ((tsk__time_ms() - start) * 1e-3);
        if (rate > best) best = rate;
    }
    tsk__memory_delete(b->allocator, memory);
    *out = best;
    return TSK_OK;
}

static tsk_status tsk__cpu_backend_ceilings(tsk__backend *backend, tsk_ceilings *out, tsk_error *error) {
    const tsk__cpu_backend *b = (const tsk__cpu_backend *)(const void *)backend;
    tsk_status status = tsk__cpu_ceiling_bytes(b, &out->bytes_per_second, error);
    return status == TSK_OK ? tsk__cpu_ceiling_flops(b, &out->flops_per_second, error) : status;
}

/* ---- the table */

static void tsk__cpu_backend_destroy(tsk__backend *backend) {
    tsk__cpu_model *model = &((tsk__cpu_backend *)(void *)backend)->model;
    const tsk_allocator *allocator = tsk__cpu_allocator_of(backend);
    tsk__pool_destroy(allocator, model->pool);
    tsk__cpu_weights_free(model);
    tsk__memory_delete(allocator, backend);
}
static void tsk__cpu_backend_describe(const tsk__backend *backend, char *out, size_t size) {
    const tsk__cpu_backend *b = (const tsk__cpu_backend *)(const void *)backend;
    tsk__cpu_describe(b->model.kernels, b->model.integer, b->model.pool, out, size);
}

/* No recorded sections, and subsets always run compacted: a masked row would cost as much as any. */
static const tsk__backend_ops tsk__cpu_backend_ops = {0,
                                                      tsk__cpu_backend_destroy,
                                                      tsk__cpu_backend_describe,
                                                      tsk__cpu_backend_ceilings,
                                                      tsk__cpu_backend_available,
                                                      tsk__cpu_stream_create,
                                                      tsk__cpu_stream_destroy,
                                                      tsk__cpu_backend_allocate,
                                                      tsk__cpu_backend_release,
                                                      tsk__cpu_backend_copy,
                                                      tsk__cpu_backend_slide,
                                                      tsk__cpu_backend_upload,
                                                      tsk__cpu_backend_download,
                                                      tsk__cpu_backend_wait,
                                                      tsk__cpu_backend_begin,
                                                      NULL,
                                                      tsk__cpu_backend_embed,
                                                      tsk__cpu_backend_qkv,
                                                      tsk__cpu_backend_attend,
                                                      tsk__cpu_backend_attn_out,
                                                      tsk__cpu_backend_gate_up,
                                                      tsk__cpu_backend_down,
                                                      tsk__cpu_backend_compare,
                                                      tsk__cpu_backend_decide,
                                                      tsk__cpu_backend_keep,
                                                      tsk__cpu_backend_compact,
                                                      tsk__cpu_backend_expand,
                                                      tsk__cpu_backend_head,
                                                      tsk__cpu_backend_select,
                                                      tsk__cpu_backend_logits,
                                                      NULL,
                                                      NULL,
                                                      NULL};

static int tsk__cpu_backend_usable(int device_index, char *why, size_t why_size) {
    (void)device_index, (void)why, (void)why_size;
    return 1;
}

static tsk_status tsk__cpu_backend_fill(tsk__cpu_backend *b, const tsk__source *source, const tsk_model_options *o,
                                        tsk_error *error) {
    const tsk_model_config *config = b->base.config;
    const int32_t half = config->head_dim / 2;
    tsk__cpu_model *model = &b->model;
    tsk__source helped = *source;
    tsk_status status;
    int32_t i;
    model->rope_frequencies = (float *)tsk__blocks_new(&model->blocks, (size_t)half, sizeof(float));
    if (!model->rope_frequencies)
        return tsk__error_memory(error, "rotary frequencies", (uint64_t)half * sizeof(float));
    for (i = 0; i < half; i++) model->rope_frequencies[i] = tsk__rope_frequency(config, i);
    model->pool = tsk__pool_create(b->allocator, o->n_threads);
    if (!model->pool) return tsk__error_memory(error, "worker threads", sizeof *model->pool);
    helped.pool = model->pool;
    status = tsk__cpu_load_weights(model, &helped, o, error);
    if (status == TSK_OK && o->dtype == TSK_DTYPE_AUTO && tsk__cpu_has_integers(model))
        model->integer = tsk__cpu_integer_select();
    return status;
}

static tsk_status tsk__cpu_backend_create(const tsk_model_config *config, const tsk__source *source,
                                          const tsk_model_options *o, tsk__backend **out, tsk_error *error) {
    const tsk_allocator *allocator = tsk__memory_allocator(&o->host);
    tsk__cpu_backend *b = (tsk__cpu_backend *)tsk__memory_new_zeroed(allocator, 1, sizeof *b);
    tsk_status status;
    *out = NULL;
    if (!b) return tsk__error_memory(error, "the CPU backend", sizeof *b);
    b->base.ops = &tsk__cpu_backend_ops;
    b->base.config = b->model.config = config;
    b->base.element_size = sizeof(float);
    b->allocator = b->model.blocks.allocator = allocator;
    b->model.kernels = tsk__cpu_kernels_select();
    status = tsk__cpu_backend_fill(b, source, o, error);
    if (status != TSK_OK) tsk__cpu_backend_destroy(&b->base);
    else *out = &b->base;
    return status;
}

static const tsk__backend_kind tsk__cpu_backend_kind = {TSK_DEVICE_CPU, tsk__cpu_backend_usable,
                                                        tsk__cpu_backend_create, 1};

#endif /* SECTION_GUARD_CPU_BACKEND */
