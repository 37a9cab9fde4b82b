#ifndef SECTION_GUARD_MODEL
#define SECTION_GUARD_MODEL

#include "error.h"
#include "memory.h"
#include "platform.h"
#include "safetensors.h"
#include "template.h"
#include "config.h"
#include "random.h"
#include "skip.h"
#include "schedule.h"
#include "backend.h"
#include "cpu.h"
#include "cuda.h"

// >>model =============================================================================================================
/* Loading: a checked folder becomes weights in a backend. On the CPU a tensor stays where it is mapped, in the type it is
   stored in; only norms and biases, a few kilobytes, are converted, and a tensor that is misaligned or not mapped is
   copied. */

struct tsk_model {
    tsk_host host;
    const tsk_allocator *allocator;
    tsk_model_config config;
    tsk_tokenizer *tokenizer;
    tsk_folder *folder;            /* keeps the mappings alive */
    tsk__backend *backend;
    tsk__pool *pool;
    void **blocks;                 /* everything allocated for weights */
    size_t n_blocks, block_capacity;
    int is_cuda;
    char device_name[128], device_note[256];
};

/* ---- the CPU backend's table */

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
    int32_t *compact_lists;        /* [4, max_rows] tokens, positions, requests, slots */
    float *compact_x, *full_x;     /* [max_rows, d_model]; base.x is one of them */
    float *head_rows;              /* [max_rows, d_model] final norm of the rows asked for */
    int32_t *tokens;               /* [max_rows] ids of the list of begin */
    float *confidences;            /* [max_rows] of one request's candidates, */
    uint8_t *commits;              /* [max_rows] and which of them it commits */
    void *scratch_memory;
    tsk__cpu_scratch scratch;
} tsk__cpu_stream;

static const tsk__cpu_model *tsk__cpu_model_of(const tsk__stream *s) { return &((const tsk__cpu_backend *)(const void *)s->backend)->model; }
static tsk__cpu_stream *tsk__cpu_stream_of(tsk__stream *s) { return (tsk__cpu_stream *)(void *)s; }
static const tsk_allocator *tsk__cpu_allocator_of(const tsk__backend *backend) { return ((const tsk__cpu_backend *)(const void *)backend)->allocator; }

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
    tsk__memory_delete(allocator, s->confidences);
    tsk__memory_delete(allocator, s->commits);
    tsk__memory_delete(allocator, s->compact_lists);
    tsk__memory_delete(allocator, s->compact_x);
    tsk__memory_delete(allocator, s->full_x);
    tsk__memory_delete(allocator, s->head_rows);
    tsk__memory_delete(allocator, s->scratch_memory);
    tsk__memory_delete(allocator, s);
}

static tsk_status tsk__cpu_stream_create(tsk__backend *backend, int32_t max_rows, int32_t n_states, tsk__stream **out, tsk_error *error) {
    const tsk_model_config *c = backend->config;
    const tsk_allocator *allocator = tsk__cpu_allocator_of(backend);
    size_t rows = (size_t)max_rows, d = (size_t)c->d_model, q = (size_t)c->n_heads * (size_t)c->head_dim, scratch_size;
    tsk__cpu_stream *s = (tsk__cpu_stream *)tsk__memory_new_zeroed(allocator, 1, sizeof *s);
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
    s->confidences = (float *)tsk__memory_new(allocator, rows, sizeof *s->confidences);
    s->commits = (uint8_t *)tsk__memory_new(allocator, rows, sizeof *s->commits);
    s->compact_lists = (int32_t *)tsk__memory_new(allocator, rows * 4, sizeof(int32_t));
    scratch_size = tsk__cpu_scratch_init(&s->scratch, c, max_rows, NULL);
    s->scratch_memory = tsk__memory_new(allocator, scratch_size, 1);
    if (!s->full_x || !s->compact_x || !s->head_rows || !s->base.q || !s->base.attention || !s->base.hidden || !s->base.cosines || !s->base.skipped ||
        !s->base.predictions || !s->base.choices || !s->tokens || !s->confidences || !s->commits || !s->compact_lists || !s->scratch_memory) {
        tsk__cpu_stream_destroy(&s->base);
        return tsk__error_memory(error, "the activations of a pass", rows * (3 * d + 2 * q + (size_t)c->mlp_hidden_size) * sizeof(float) + scratch_size);
    }
    tsk__cpu_scratch_init(&s->scratch, c, max_rows, s->scratch_memory);
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
static void tsk__cpu_backend_release(tsk__backend *backend, void *address) { tsk__memory_delete(tsk__cpu_allocator_of(backend), address); }
static void tsk__cpu_backend_copy(tsk__stream *s, void *to, const void *from, uint64_t size) {
    (void)s;
    memmove(to, from, (size_t)size);
}
static void tsk__cpu_backend_slide(tsk__stream *s, void *base, int32_t planes, uint64_t pitch, uint64_t to, uint64_t from, uint64_t size) {
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
static void tsk__cpu_backend_embed(tsk__stream *s) { tsk__cpu_embed(tsk__cpu_model_of(s), &tsk__cpu_stream_of(s)->rows, (float *)s->x); }
static void tsk__cpu_backend_qkv(tsk__stream *s, int32_t layer, const tsk__taps *taps) {
    tsk__cpu_qkv(tsk__cpu_model_of(s), layer, &tsk__cpu_stream_of(s)->rows, (const float *)s->x, (float *)s->q, &tsk__cpu_stream_of(s)->scratch, taps);
}
static void tsk__cpu_backend_attend(tsk__stream *s, int32_t layer) {
    tsk__cpu_attention(tsk__cpu_model_of(s), layer, &tsk__cpu_stream_of(s)->rows, (const float *)s->q, (float *)s->attention, &tsk__cpu_stream_of(s)->scratch);
}
static void tsk__cpu_backend_attn_out(tsk__stream *s, int32_t layer, const tsk__taps *taps) {
    tsk__cpu_attn_out(tsk__cpu_model_of(s), layer, tsk__cpu_stream_of(s)->rows.n, (const float *)s->attention, (float *)s->x, taps, &tsk__cpu_stream_of(s)->scratch);
}
static void tsk__cpu_backend_gate_up(tsk__stream *s, int32_t layer, const tsk__taps *taps) {
    tsk__cpu_gate_up(tsk__cpu_model_of(s), layer, tsk__cpu_stream_of(s)->rows.n, (const float *)s->x, (float *)s->hidden, &tsk__cpu_stream_of(s)->scratch, taps);
}
static void tsk__cpu_backend_down(tsk__stream *s, int32_t layer, const tsk__taps *taps) {
    tsk__cpu_down(tsk__cpu_model_of(s), layer, tsk__cpu_stream_of(s)->rows.n, (const float *)s->hidden, (float *)s->x, taps, &tsk__cpu_stream_of(s)->scratch);
}

/* A row of one half (0: to compare with, 1: of the pass) of a request's states. */
static float *tsk__cpu_state(const tsk__cpu_stream *s, int32_t row, int half, int32_t state) {
    const tsk__kv *kv = &s->rows.caches[s->rows.requests[row]];
    size_t index = ((size_t)half * (size_t)kv->n_states + (size_t)state) * (size_t)kv->n_slots + (size_t)s->rows.slots[row];
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
            tsk__cpu_cosine(tsk__cpu_model_of(stream), 1, x, tsk__cpu_state(s, i, 0, state), &stream->cosines[(size_t)state * (size_t)stream->max_rows + row]);
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
        stream->skipped[row] = (flags & TSK__ROW_SKIPS) || tsk__skip_similar(stream->cosines + row, n_states, stream->max_rows, kv->skip_threshold, kv->skip_outlier);
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
        for (state = 0; (flags & TSK__ROW_REMEMBER) && !(skipped && (flags & TSK__ROW_IF_RAN)) && state < kv->n_states; state++)
            memcpy(tsk__cpu_state(s, i, 0, state), tsk__cpu_state(s, i, 1, state), d * sizeof *x);
        if (!(flags & TSK__ROW_OUTPUT)) continue;
        output = (float *)kv->outputs + (size_t)s->rows.slots[i] * d;
        memcpy(skipped ? x : output, skipped ? output : x, d * sizeof *x);
    }
}

static void tsk__cpu_backend_expand(tsk__stream *stream) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    if (s->compacted) tsk__cpu_scatter(tsk__cpu_model_of(stream), s->rows.n, stream->backend->config->d_model, s->compact_x, s->compacted, s->full_x);
    s->rows = s->all_rows;
    s->compacted = NULL;
    s->base.x = s->full_x;
}

static void tsk__cpu_backend_compact(tsk__stream *stream, int32_t n, const int32_t *index) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    int32_t i, *tokens = s->compact_lists, *positions = tokens + stream->max_rows, *requests = positions + stream->max_rows, *slots = requests + stream->max_rows;
    tsk__cpu_backend_expand(stream);
    for (i = 0; i < n; i++) {
        tokens[i] = s->all_rows.tokens[index[i]];
        positions[i] = s->all_rows.positions[index[i]];
        requests[i] = s->all_rows.requests[index[i]];
        slots[i] = s->all_rows.slots[index[i]];
    }
    tsk__cpu_gather(tsk__cpu_model_of(stream), n, stream->backend->config->d_model, s->full_x, index, s->compact_x);
    s->rows.n = n;
    s->rows.tokens = tokens;
    s->rows.positions = positions;
    s->rows.requests = requests;
    s->rows.slots = slots;
    s->compacted = index;
    s->base.x = s->compact_x;
}

static void tsk__cpu_select_rows(tsk__stream *stream, int32_t n, const int32_t *index) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    tsk__cpu_gather(tsk__cpu_model_of(stream), n, stream->backend->config->d_model, (const float *)stream->x, index, s->head_rows);
    tsk__cpu_final_norm(tsk__cpu_model_of(stream), n, s->head_rows, s->head_rows);
}
static void tsk__cpu_backend_head(tsk__stream *stream, int32_t n, const int32_t *index, const tsk__draw *draws) {
    tsk__cpu_select_rows(stream, n, index);
    tsk__cpu_head(tsk__cpu_model_of(stream), n, tsk__cpu_stream_of(stream)->head_rows, draws, (tsk__prediction *)stream->predictions, &tsk__cpu_stream_of(stream)->scratch);
}

/* What one request's candidates are, and how sure of it. */
static void tsk__cpu_judge(tsk__stream *stream, const tsk__selection *o, const tsk__candidate *candidates) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    tsk__prediction *last = (tsk__prediction *)s->all_rows.caches[o->request].predictions;
    int32_t i;
    for (i = 0; i < o->n; i++) {
        const tsk__candidate *c = &candidates[o->first + i];
        tsk__choice *choice = &stream->choices[o->first + i];
        if (c->head >= 0) last[c->slot] = ((const tsk__prediction *)stream->predictions)[c->head];
        choice->id = last[c->slot].id;
        choice->log_sum_exp = last[c->slot].log_sum_exp;
        choice->confidence = o->is_random ? (float)tsk__random_uniform(o->seed, 0, (uint32_t)c->position, o->pass, 1, 0) : last[c->slot].confidence;
        s->confidences[i] = choice->confidence;
    }
}
static void tsk__cpu_backend_select(tsk__stream *stream, int32_t n, const tsk__selection *selections, int32_t n_candidates, const tsk__candidate *candidates) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    int32_t r, i;
    (void)n_candidates;
    for (r = 0; r < n; r++) {
        const tsk__selection *o = &selections[r];
        int32_t *canvas = (int32_t *)s->all_rows.caches[o->request].tokens;
        tsk__cpu_judge(stream, o, candidates);
        memset(s->commits, 0, (size_t)o->n);
        if (o->commits) tsk_select((tsk_transfer)o->transfer, o->threshold, o->factor, o->quota, o->n, s->confidences, s->commits);
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
    tsk__cpu_logits(tsk__cpu_model_of(stream), n, s->head_rows, logits);
}

/* No recorded sections, and subsets always run compacted: a masked row would cost as much as any. */
static const tsk__backend_ops tsk__cpu_backend_ops = {
    0, tsk__cpu_backend_available, tsk__cpu_stream_create, tsk__cpu_stream_destroy, tsk__cpu_backend_allocate, tsk__cpu_backend_release, tsk__cpu_backend_copy, tsk__cpu_backend_slide,
    tsk__cpu_backend_upload, tsk__cpu_backend_download, tsk__cpu_backend_wait, tsk__cpu_backend_begin, NULL, tsk__cpu_backend_embed, tsk__cpu_backend_qkv, tsk__cpu_backend_attend,
    tsk__cpu_backend_attn_out, tsk__cpu_backend_gate_up, tsk__cpu_backend_down, tsk__cpu_backend_compare, tsk__cpu_backend_decide,
    tsk__cpu_backend_keep, tsk__cpu_backend_compact, tsk__cpu_backend_expand, tsk__cpu_backend_head, tsk__cpu_backend_select, tsk__cpu_backend_logits, NULL, NULL, NULL};

/* ---- loading */

tsk_model_options tsk_model_options_default(void) {
    tsk_model_options o;
    memset(&o, 0, sizeof o);
    return o;
}

/* Memory that lives as long as the model. */
static void *tsk__model_allocate(tsk_model *model, size_t count, size_t size) {
    void *block;
    if (!tsk__memory_reserve(model->allocator, &model->blocks, &model->block_capacity, model->n_blocks + 1, sizeof *model->blocks)) return NULL;
    block = tsk__memory_new(model->allocator, count, size);
    if (block) model->blocks[model->n_blocks++] = block;
    return block;
}

/* Loading as a whole: what was promised to progress, and whether the host wants it to end. */
typedef struct tsk__loading {
    tsk_model *model;
    const tsk_model_options *options;
    uint64_t done, total;
} tsk__loading;

static tsk_status tsk__loading_step(tsk__loading *l, uint64_t size, tsk_error *error) {
    l->done += size;
    if (l->options->progress) l->options->progress(l->options->user, l->done, l->total);
    if (l->options->cancel && l->options->cancel(l->options->user)) return tsk__error_set(error, TSK_ERROR_CANCELLED, NULL, TSK_NO_OFFSET, "loading was cancelled");
    return TSK_OK;
}

/* The tensor's bytes, aligned for its type: mapped in place, else a copy. */
static tsk_status tsk__loading_bytes(tsk__loading *l, const tsk_safetensors *file, const tsk_tensor_info *info, const void **out, tsk_error *error) {
    const void *mapped = tsk_safetensors_data(file, info);
    void *copy;
    tsk_status status;
    if (mapped && (uintptr_t)mapped % tsk_dtype_size(info->dtype) == 0) {
        *out = mapped;
        return tsk__loading_step(l, info->size, error);
    }
    copy = info->size > SIZE_MAX ? NULL : tsk__model_allocate(l->model, (size_t)info->size, 1);
    if (!copy) return tsk__error_memory(error, info->name, info->size);
    status = tsk_safetensors_read(file, info, 0, copy, (size_t)info->size, error);
    *out = copy;
    return status == TSK_OK ? tsk__loading_step(l, info->size, error) : status;
}

/* A vector as f32: norms and biases. */
static tsk_status tsk__loading_vector(tsk__loading *l, int32_t layer, tsk__part part, int is_bias, const float **out, tsk_error *error) {
    const tsk_safetensors *file = NULL;
    const tsk_tensor_info *info = tsk__folder_find(l->model->folder, layer, part, is_bias, &file);
    const void *bytes = NULL;
    float *values;
    uint64_t i;
    tsk_status status;
    *out = NULL;
    if (!info) return TSK_OK;
    status = tsk__loading_bytes(l, file, info, &bytes, error);
    if (status != TSK_OK) return status;
    values = (float *)tsk__model_allocate(l->model, (size_t)info->shape[0], sizeof *values);
    if (!values) return tsk__error_memory(error, info->name, info->size);
    for (i = 0; i < info->shape[0]; i++) {
        if (info->dtype == TSK_DTYPE_F32) values[i] = ((const float *)bytes)[i];
        else if (info->dtype == TSK_DTYPE_F16) values[i] = tsk__float_from_half(((const uint16_t *)bytes)[i]);
        else values[i] = tsk__float_from_bf16(((const uint16_t *)bytes)[i]);
    }
    *out = values;
    return TSK_OK;
}

static tsk_status tsk__loading_matrix(tsk__loading *l, int32_t layer, tsk__part part, tsk__matrix *out, tsk_error *error) {
    const tsk_safetensors *file = NULL;
    const tsk_tensor_info *info = tsk__folder_find(l->model->folder, layer, part, 0, &file);
    tsk_status status = tsk__loading_bytes(l, file, info, &out->data, error);
    out->dtype = info->dtype;
    out->rows = (int32_t)info->shape[0];
    out->cols = (int32_t)info->shape[1];
    return status == TSK_OK ? tsk__loading_vector(l, layer, part, 1, &out->bias, error) : status;
}

static tsk_status tsk__loading_layer(tsk__loading *l, int32_t layer, tsk__cpu_layer *out, tsk_error *error) {
    struct { tsk__part part; tsk__matrix *matrix; } parts[7];
    tsk_status status = tsk__loading_vector(l, layer, TSK__PART_ATTN_NORM, 0, &out->attn_norm, error);
    int i;
    parts[0].part = TSK__PART_Q, parts[0].matrix = &out->q;
    parts[1].part = TSK__PART_K, parts[1].matrix = &out->k;
    parts[2].part = TSK__PART_V, parts[2].matrix = &out->v;
    parts[3].part = TSK__PART_ATTN_OUT, parts[3].matrix = &out->attn_out;
    parts[4].part = TSK__PART_FF_PROJ, parts[4].matrix = &out->ff_proj;
    parts[5].part = TSK__PART_UP_PROJ, parts[5].matrix = &out->up_proj;
    parts[6].part = TSK__PART_FF_OUT, parts[6].matrix = &out->ff_out;
    if (status == TSK_OK) status = tsk__loading_vector(l, layer, TSK__PART_FF_NORM, 0, &out->ff_norm, error);
    for (i = 0; i < 7 && status == TSK_OK; i++) status = tsk__loading_matrix(l, layer, parts[i].part, parts[i].matrix, error);
    return status;
}

static tsk_status tsk__loading_cpu(tsk__loading *l, tsk__cpu_model *cpu, tsk_error *error) {
    int32_t layer;
    tsk_status status = tsk__loading_matrix(l, -1, TSK__PART_EMBEDDING, &cpu->embedding, error);
    for (layer = 0; layer < l->model->config.n_layers && status == TSK_OK; layer++) status = tsk__loading_layer(l, layer, &cpu->layers[layer], error);
    if (status == TSK_OK) status = tsk__loading_vector(l, -1, TSK__PART_FINAL_NORM, 0, &cpu->final_norm, error);
    cpu->head = cpu->embedding;
    if (status == TSK_OK && !l->model->config.weight_tying) status = tsk__loading_matrix(l, -1, TSK__PART_HEAD, &cpu->head, error);
    return status;
}

/* ---- random weights: for benchmarks, where only their shape and an ordinary spread matter */

typedef struct tsk__random_fill {
    uint16_t *values;              /* bf16 */
    uint64_t count, seed;
    uint32_t tensor;
    float scale;
} tsk__random_fill;

#define TSK__RANDOM_FILL_CHUNK ((uint64_t)1 << 16)

static uint16_t tsk__bf16_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Uniform on [-scale, scale): eight values a Philox call, 16 bits each. */
static void tsk__random_fill_chunk(void *context, int chunk) {
    const tsk__random_fill *f = (const tsk__random_fill *)context;
    uint64_t i = (uint64_t)chunk * TSK__RANDOM_FILL_CHUNK, end = i + TSK__RANDOM_FILL_CHUNK < f->count ? i + TSK__RANDOM_FILL_CHUNK : f->count;
    uint32_t words[4];
    for (; i < end; i++) {
        if (i % 8 == 0) tsk__random_words(f->seed, (uint32_t)(i / 8), (uint32_t)(i / 8 >> 32), f->tensor, 2, words);
        f->values[i] = tsk__bf16_from_float(f->scale * ((float)(words[i % 8 / 2] >> (i % 2 * 16) & 0xffff) / 32768.0f - 1.0f));
    }
}

static tsk_status tsk__random_matrix(tsk__loading *l, tsk__part part, uint64_t seed, uint32_t tensor, tsk__matrix *out, tsk_error *error) {
    tsk__random_fill fill;
    out->rows = (int32_t)tsk__config_size(&l->model->config, tsk__part_shapes[part].rows);
    out->cols = (int32_t)tsk__config_size(&l->model->config, tsk__part_shapes[part].cols);
    out->dtype = TSK_DTYPE_BF16;
    fill.count = (uint64_t)out->rows * (uint64_t)out->cols;
    fill.seed = seed;
    fill.tensor = tensor;
    fill.scale = sqrtf(3.0f / (float)out->cols); /* keeps the variance of what goes through */
    fill.values = (uint16_t *)tsk__model_allocate(l->model, (size_t)fill.count, sizeof *fill.values);
    if (!fill.values) return tsk__error_memory(error, "random weights", fill.count * sizeof *fill.values);
    tsk__parallel(l->model->pool, (int)((fill.count + TSK__RANDOM_FILL_CHUNK - 1) / TSK__RANDOM_FILL_CHUNK), tsk__random_fill_chunk, &fill);
    out->data = fill.values;
    return tsk__loading_step(l, fill.count * sizeof *fill.values, error);
}

static tsk_status tsk__random_cpu(tsk__loading *l, tsk__cpu_model *cpu, uint64_t seed, tsk_error *error) {
    const tsk_model_config *c = &l->model->config;
    float *ones = (float *)tsk__model_allocate(l->model, (size_t)c->d_model, sizeof *ones);
    tsk_status status = ones ? TSK_OK : tsk__error_memory(error, "random weights", (uint64_t)c->d_model * sizeof *ones);
    uint32_t tensor = 0;
    int32_t i;
    for (i = 0; ones && i < c->d_model; i++) ones[i] = 1.0f;
    cpu->final_norm = ones;
    if (status == TSK_OK) status = tsk__random_matrix(l, TSK__PART_EMBEDDING, seed, tensor++, &cpu->embedding, error);
    for (i = 0; i < c->n_layers && status == TSK_OK; i++) {
        static const tsk__part parts[7] = {TSK__PART_Q, TSK__PART_K, TSK__PART_V, TSK__PART_ATTN_OUT, TSK__PART_FF_PROJ, TSK__PART_UP_PROJ, TSK__PART_FF_OUT};
        tsk__cpu_layer *layer = &cpu->layers[i];
        tsk__matrix *matrices[7];
        int j;
        matrices[0] = &layer->q, matrices[1] = &layer->k, matrices[2] = &layer->v, matrices[3] = &layer->attn_out;
        matrices[4] = &layer->ff_proj, matrices[5] = &layer->up_proj, matrices[6] = &layer->ff_out;
        layer->attn_norm = layer->ff_norm = ones;
        for (j = 0; j < 7 && status == TSK_OK; j++) status = tsk__random_matrix(l, parts[j], seed, tensor++, matrices[j], error);
    }
    cpu->head = cpu->embedding;
    if (status == TSK_OK && !c->weight_tying) status = tsk__random_matrix(l, TSK__PART_HEAD, seed, tensor++, &cpu->head, error);
    return status;
}

/* ---- putting a model together */

static tsk_status tsk__model_cpu_backend(tsk__loading *l, int random, uint64_t seed, tsk_error *error) {
    tsk_model *model = l->model;
    tsk_model_config *c = &model->config;
    tsk__cpu_backend *backend = (tsk__cpu_backend *)tsk__memory_new_zeroed(model->allocator, 1, sizeof *backend);
    int32_t i, half = c->head_dim / 2;
    tsk_status status;
    if (!backend) return tsk__error_memory(error, "the CPU backend", sizeof *backend);
    model->backend = &backend->base;
    backend->base.ops = &tsk__cpu_backend_ops;
    backend->base.config = c;
    backend->base.element_size = sizeof(float);
    backend->allocator = model->allocator;
    backend->model.config = c;
    backend->model.kernels = tsk__cpu_kernels_select();
    backend->model.layers = (tsk__cpu_layer *)tsk__model_allocate(model, (size_t)c->n_layers, sizeof *backend->model.layers);
    backend->model.rope_frequencies = (float *)tsk__model_allocate(model, (size_t)half, sizeof(float));
    if (!backend->model.layers || !backend->model.rope_frequencies)
        return tsk__error_memory(error, "the list of layers", (uint64_t)c->n_layers * sizeof *backend->model.layers);
    memset(backend->model.layers, 0, (size_t)c->n_layers * sizeof *backend->model.layers);
    for (i = 0; i < half; i++) backend->model.rope_frequencies[i] = tsk__rope_frequency(c, i);
    model->pool = tsk__pool_create(model->allocator, l->options->n_threads);
    if (!model->pool) return tsk__error_memory(error, "worker threads", sizeof *model->pool);
    backend->model.pool = model->pool;
    status = random ? tsk__random_cpu(l, &backend->model, seed, error) : tsk__loading_cpu(l, &backend->model, error);
    tsk__cpu_describe(backend->model.kernels, model->pool, model->device_name, sizeof model->device_name);
    return status;
}

#ifdef TOKENSKIP__HAS_CUDA
/* TSK_OK with model->backend NULL: no usable device, and the caller did not insist on one. */
static tsk_status tsk__model_cuda_backend(tsk__loading *l, int random, uint64_t seed, tsk_error *error) {
    tsk_model *model = l->model;
    tsk_status status;
    if (!tsk__cuda_available(l->options->device_index, model->device_note, sizeof model->device_note)) {
        if (l->options->device == TSK_DEVICE_AUTO) return TSK_OK;
        return tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET, "no CUDA device: %s", model->device_note);
    }
    status = tsk__cuda_backend_create(&model->config, random ? NULL : model->folder, seed, l->options, &model->backend, model->device_name,
                                      sizeof model->device_name, error);
    model->is_cuda = status == TSK_OK;
    return status;
}
#else
static tsk_status tsk__model_cuda_backend(tsk__loading *l, int random, uint64_t seed, tsk_error *error) {
    (void)random;
    (void)seed;
    snprintf(l->model->device_note, sizeof l->model->device_note, "built without CUDA");
    if (l->options->device == TSK_DEVICE_AUTO) return TSK_OK;
    return tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET, "no CUDA device: %s", l->model->device_note);
}
#endif

static tsk_status tsk__model_check_options(const tsk_model_options *o, tsk_error *error) {
    if ((int)o->device < 0 || o->device > TSK_DEVICE_CUDA)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "device has no value %d", (int)o->device);
    if (o->dtype != TSK_DTYPE_AUTO && o->dtype != TSK_DTYPE_F32 && o->dtype != TSK_DTYPE_BF16)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "activations are F32 or BF16, not %s", tsk_dtype_name(o->dtype));
    if (o->device == TSK_DEVICE_CPU && o->dtype == TSK_DTYPE_BF16)
        return tsk__error_set(error, TSK_ERROR_UNSUPPORTED, NULL, TSK_NO_OFFSET, "the CPU's activations are F32 only");
    if (o->n_threads < 0) return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "n_threads must be zero or positive, not %d", o->n_threads);
    if (o->device_index < 0) return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "device_index must be zero or positive, not %d", o->device_index);
    return TSK_OK;
}

static tsk_status tsk__model_backend(tsk__loading *l, int random, uint64_t seed, tsk_error *error) {
    tsk_status status = TSK_OK;
    if (l->options->device != TSK_DEVICE_CPU) status = tsk__model_cuda_backend(l, random, seed, error);
    if (status != TSK_OK || l->model->backend) return status;
    if (l->options->dtype == TSK_DTYPE_BF16)
        return tsk__error_set(error, TSK_ERROR_UNSUPPORTED, NULL, TSK_NO_OFFSET, "the CPU's activations are F32 only (no CUDA device: %s)", l->model->device_note);
    return tsk__model_cpu_backend(l, random, seed, error);
}

static tsk_status tsk__model_new(const tsk_model_options *options, tsk_model **out, tsk_error *error) {
    const tsk_allocator *allocator = tsk__memory_allocator(&options->host);
    tsk_status status = tsk__model_check_options(options, error);
    *out = NULL;
    if (status != TSK_OK) return status;
    *out = (tsk_model *)tsk__memory_new_zeroed(allocator, 1, sizeof **out);
    if (!*out) return tsk__error_memory(error, "a model", sizeof **out);
    (*out)->host = options->host;
    (*out)->allocator = (*out)->host.allocator = allocator;
    return TSK_OK;
}

/* A folder without tokenizer files is a model for callers who bring ids; one with broken files is an error. */
static tsk_status tsk__model_tokenizer_load(tsk_model *model, tsk_error *error) {
    tsk_folder *folder = model->folder;
    tsk_status status;
    if (!tsk__folder_has(folder, "tokenizer.json") && !tsk__folder_has(folder, "vocab.json")) return TSK_OK;
    folder->path[folder->dir_length] = 0;
    status = tsk_tokenizer_load(folder->path, &model->host, &model->tokenizer, error);
    if (status == TSK_OK && model->tokenizer->n_vocabulary_ids > (size_t)model->config.embedding_size) {
        return tsk__error_set(error, TSK_ERROR_TOKENIZER, folder->path, TSK_NO_OFFSET, "'%s': the tokenizer has ids up to %d, the model's embedding has %d rows", tsk__error_path(folder->path),
                              (int)model->tokenizer->n_vocabulary_ids - 1, (int)model->config.embedding_size);
    }
    return status;
}

tsk_status tsk_model_load(const char *dir, const tsk_model_options *options, tsk_model **out, tsk_error *error) {
    tsk_model_options defaults = tsk_model_options_default();
    tsk__loading loading;
    tsk_model *model;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_model_load", "out");
    *out = NULL;
    if (!dir) return tsk__error_null(error, "tsk_model_load", "dir");
    status = tsk__model_new(options ? options : &defaults, &model, error);
    if (status != TSK_OK) return status;
    memset(&loading, 0, sizeof loading);
    loading.model = model;
    loading.options = options ? options : &defaults;
    status = tsk_folder_open(dir, &model->host, &model->folder, error);
    if (status == TSK_OK) {
        model->config = model->folder->config;
        loading.total = tsk_folder_weights_size(model->folder);
        if (!loading.options->no_tokenizer) status = tsk__model_tokenizer_load(model, error);
    }
    if (status == TSK_OK) status = tsk__model_backend(&loading, 0, 0, error);
    if (status != TSK_OK) tsk_model_free(model);
    else *out = model;
    return status;
}

tsk_status tsk_model_random(const tsk_model_config *config, uint64_t seed, const tsk_model_options *options, tsk_model **out, tsk_error *error) {
    tsk_model_options defaults = tsk_model_options_default();
    tsk__loading loading;
    tsk_model *model;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_model_random", "out");
    *out = NULL;
    if (!config) return tsk__error_null(error, "tsk_model_random", "config");
    status = tsk__config_check(config, "random model", error);
    if (status == TSK_OK && (config->qkv_bias || config->linear_bias))
        status = tsk__error_set(error, TSK_ERROR_UNSUPPORTED, NULL, TSK_NO_OFFSET, "random models have no biases");
    if (status == TSK_OK) status = tsk__model_new(options ? options : &defaults, &model, error);
    if (status != TSK_OK) return status;
    memset(&loading, 0, sizeof loading);
    loading.model = model;
    loading.options = options ? options : &defaults;
    model->config = *config;
    loading.total = tsk__config_weights_size(config);
    status = tsk__model_backend(&loading, 1, seed, error);
    if (status != TSK_OK) tsk_model_free(model);
    else *out = model;
    return status;
}

void tsk_model_free(tsk_model *model) {
    const tsk_allocator *allocator;
    size_t i;
    if (!model) return;
    allocator = model->allocator;
    tsk__pool_destroy(allocator, model->pool);
#ifdef TOKENSKIP__HAS_CUDA
    if (model->is_cuda) tsk__cuda_backend_destroy(model->backend);
    else
#endif
        tsk__memory_delete(allocator, model->backend);
    for (i = 0; i < model->n_blocks; i++) tsk__memory_delete(allocator, model->blocks[i]);
    tsk__memory_delete(allocator, model->blocks);
    tsk_tokenizer_free(model->tokenizer);
    tsk_folder_close(model->folder);
    tsk__memory_delete(allocator, model);
}

const tsk_model_config *tsk_model_get_config(const tsk_model *model) { return &model->config; }
const tsk_tokenizer *tsk_model_tokenizer(const tsk_model *model) { return model->tokenizer; }
const char *tsk_model_device_name(const tsk_model *model) { return model->device_name; }
const char *tsk_model_device_note(const tsk_model *model) { return model->device_note; }
tsk_dtype tsk_model_dtype(const tsk_model *model) { return model->backend->element_size == sizeof(float) ? TSK_DTYPE_F32 : TSK_DTYPE_BF16; }

#endif /* SECTION_GUARD_MODEL */
