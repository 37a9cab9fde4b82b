#ifndef SECTION_GUARD_TRACE
#define SECTION_GUARD_TRACE

#include "memory.h"
#include "backend.h"
#include "storage.h"

// >>trace =============================================================================================================
/* Records of what a pass computes. The forward pass asks tsk__trace_on; if that says no, no other code of this section
   runs. A traced operation writes what it computes anyway into extra buffers (its captures), from where values come to
   the host, so that tracing cannot change a result. */

typedef struct tsk__tracer {
    tsk_trace_options options;     /* on_record NULL: off */
    char *pattern;
    const tsk_allocator *allocator;
    tsk__watch watch;              /* the buffers on the stream that is traced */
    float *input, *output;         /* host */
    size_t input_capacity, output_capacity;
    int32_t pass;
    tsk_status status;             /* TSK_ERROR_MEMORY once a buffer could not be had */
} tsk__tracer;

/* Shell-like match: on a mismatch only the last * can take one character more. */
static int tsk__trace_match(const char *pattern, const char *text) {
    const char *star = NULL, *retry = NULL;
    while (*text) {
        if (*pattern == '*') {
            star = pattern++;
            retry = text;
        } else if (*pattern == '?' || *pattern == *text) {
            pattern++;
            text++;
        } else if (star) {
            pattern = star + 1;
            text = ++retry;
        } else return 0;
    }
    while (*pattern == '*') pattern++;
    return !*pattern;
}

static int tsk__trace_on(const tsk__tracer *t) {
    return t && t->options.on_record && t->pass >= t->options.first_pass && t->pass <= t->options.last_pass;
}

static int tsk__trace_wants(const tsk__tracer *t, const char *name, int32_t layer) {
    if (layer >= 0 && (layer < t->options.first_layer || layer > t->options.last_layer)) return 0;
    return t->status == TSK_OK && (!t->pattern || tsk__trace_match(t->pattern, name));
}

/* mean and deviation in two passes over doubles: a one-pass sum of squares cancels for large means. */
static tsk_stats tsk__trace_stats(const float *values, uint64_t n) {
    tsk_stats s;
    double sum = 0, magnitude = 0, squares = 0;
    uint64_t i;
    memset(&s, 0, sizeof s);
    if (!n) return s;
    s.min = s.max = (double)values[0];
    for (i = 0; i < n; i++) {
        double v = (double)values[i];
        sum += v;
        magnitude += fabs(v);
        if (v < s.min) s.min = v;
        if (v > s.max) s.max = v;
    }
    s.mean = sum / (double)n;
    s.abs_mean = magnitude / (double)n;
    for (i = 0; i < n; i++) squares += ((double)values[i] - s.mean) * ((double)values[i] - s.mean);
    s.std = n > 1 ? sqrt(squares / (double)(n - 1)) : 0;
    return s;
}

static int tsk__trace_room(tsk__tracer *t, float **buffer, size_t *capacity, uint64_t n) {
    if (n <= SIZE_MAX / sizeof **buffer &&
        tsk__memory_reserve(t->allocator, buffer, capacity, (size_t)n, sizeof **buffer))
        return 1;
    t->status = TSK_ERROR_MEMORY;
    return 0;
}

static void tsk__trace_free(tsk__tracer *t) {
    tsk__watch_free(&t->watch);
    tsk__memory_delete(t->allocator, t->input);
    tsk__memory_delete(t->allocator, t->output);
    t->input = t->output = NULL;
    t->input_capacity = t->output_capacity = 0;
}

static tsk_status tsk__trace_attach(tsk__tracer *t, tsk__stream *stream, tsk_error *error) {
    if (t->watch.stream == stream) return TSK_OK;
    tsk__trace_free(t);
    return tsk__watch_create(&t->watch, stream, error);
}

/* What a record is about, but for its values. `keep` [n]: rows to leave out have 0 (NULL: all rows). */
typedef struct tsk__traced {
    const char *name, *part;
    int32_t layer, n_rows;
    const int32_t *positions, *keep;
} tsk__traced;

/* Brings n_rows * width values to the host and drops the rows that did not run. */
static int tsk__trace_fetch(tsk__tracer *t, const tsk__traced *what, const void *from, uint64_t width, float **buffer,
                            size_t *capacity) {
    int32_t i, kept = 0;
    if (!tsk__trace_room(t, buffer, capacity, (uint64_t)what->n_rows * width)) return 0;
    tsk__stream_read(t->watch.stream, from, what->n_rows, width, *buffer);
    for (i = 0; what->keep && i < what->n_rows; i++)
        if (what->keep[i] && kept++ != i)
            memmove(*buffer + (uint64_t)(kept - 1) * width, *buffer + (uint64_t)i * width,
                    (size_t)width * sizeof **buffer);
    return 1;
}

static void tsk__trace_deliver(tsk__tracer *t, tsk_trace_record *record, const float *input, const float *output) {
    uint64_t n = 1;
    int i;
    for (i = 0; i < record->n_dims; i++) n *= record->output_shape[i];
    record->pass = t->pass;
    record->stats = tsk__trace_stats(output, n);
    record->input = t->options.values ? input : NULL;
    record->output = t->options.values ? output : NULL;
    t->options.on_record(t->options.user, record);
}

/* A record of rows: input [n_rows, in_width] (in_width 0: none), output [n_rows, heads, out_width / heads], heads 1
   being [n_rows, out_width]. */
static void tsk__trace_rows(tsk__tracer *t, const tsk__traced *what, const void *input, uint64_t in_width,
                            const void *output, uint64_t out_width, uint64_t heads) {
    tsk_trace_record record;
    int32_t *positions = NULL, i, n = 0;
    if (!tsk__trace_wants(t, what->name, what->layer)) return;
    if (!tsk__trace_fetch(t, what, output, out_width, &t->output, &t->output_capacity)) return;
    if (in_width && t->options.values && !tsk__trace_fetch(t, what, input, in_width, &t->input, &t->input_capacity))
        return;
    memset(&record, 0, sizeof record);
    positions = (int32_t *)tsk__memory_new(t->allocator, (size_t)what->n_rows, sizeof *positions);
    if (!positions) {
        t->status = TSK_ERROR_MEMORY;
        return;
    }
    for (i = 0; i < what->n_rows; i++)
        if (!what->keep || what->keep[i]) positions[n++] = what->positions[i];
    record.name = what->name;
    record.part = what->part;
    record.layer = what->layer;
    record.n_rows = n;
    record.positions = positions;
    record.input_shape[0] = in_width ? (uint64_t)n : 0;
    record.input_shape[1] = in_width;
    record.output_shape[0] = (uint64_t)n;
    record.output_shape[1] = heads > 1 ? heads : out_width;
    record.output_shape[2] = heads > 1 ? out_width / heads : 0;
    record.n_dims = heads > 1 ? 3 : 2;
    if (n) tsk__trace_deliver(t, &record, in_width ? t->input : NULL, t->output);
    tsk__memory_delete(t->allocator, positions);
}

/* Records of the first half of a layer (norm, projections, RoPE, attention output), then of the second. */
static void tsk__trace_attention(tsk__tracer *t, int32_t layer, const tsk__traced *rows) {
    const tsk_model_config *c = t->watch.stream->backend->config;
    uint64_t d = (uint64_t)c->d_model, q = (uint64_t)(c->n_heads * c->head_dim),
             k = (uint64_t)(c->n_kv_heads * c->head_dim);
    const void *q_norm = t->watch.captures.q_norm, *k_norm = t->watch.captures.k_norm;
    char name[48];
    tsk__traced what = *rows;
    what.name = name;
    what.layer = layer;
#define TSK__TRACE_RECORD(suffix, which, from, in_width, to, out_width, heads) \
    do { \
        snprintf(name, sizeof name, "layer_%d%s", (int)layer, suffix); \
        what.part = which; \
        tsk__trace_rows(t, &what, from, in_width, to, out_width, heads); \
    } while (0)
    TSK__TRACE_RECORD("_attn_norm", "", t->watch.block_input, d, t->watch.captures.norm, d, 1);
    TSK__TRACE_RECORD("_q_proj", "", t->watch.captures.norm, d, t->watch.captures.q, q, 1);
    TSK__TRACE_RECORD("_k_proj", "", t->watch.captures.norm, d, t->watch.captures.k, k, 1);
    TSK__TRACE_RECORD("_v_proj", "", t->watch.captures.norm, d, t->watch.captures.v, k, 1);
    if (q_norm) TSK__TRACE_RECORD("_q_norm", "", t->watch.captures.q, q, q_norm, q, 1);
    if (k_norm) TSK__TRACE_RECORD("_k_norm", "", t->watch.captures.k, k, k_norm, k, 1);
    TSK__TRACE_RECORD("_rope", "q", q_norm ? q_norm : t->watch.captures.q, q, t->watch.stream->q, q,
                      (uint64_t)c->n_heads);
    TSK__TRACE_RECORD("_rope", "k", k_norm ? k_norm : t->watch.captures.k, k, t->watch.captures.k_rope, k,
                      (uint64_t)c->n_kv_heads);
    TSK__TRACE_RECORD("_attn_out", "", t->watch.stream->attention, q, t->watch.captures.projection, d, 1);
}

static void tsk__trace_mlp(tsk__tracer *t, int32_t layer, const tsk__traced *rows) {
    const tsk_model_config *c = t->watch.stream->backend->config;
    uint64_t d = (uint64_t)c->d_model, m = (uint64_t)c->mlp_hidden_size;
    char name[48];
    tsk__traced what = *rows;
    what.name = name;
    what.layer = layer;
    TSK__TRACE_RECORD("_ff_norm", "", t->watch.middle, d, t->watch.captures.norm, d, 1);
    TSK__TRACE_RECORD("_ff_proj", "", t->watch.captures.norm, d, t->watch.captures.gate, m, 1);
    TSK__TRACE_RECORD("_up_proj", "", t->watch.captures.norm, d, t->watch.captures.up, m, 1);
    TSK__TRACE_RECORD("_ffn_out", "", t->watch.stream->hidden, m, t->watch.captures.projection, d, 1);
    TSK__TRACE_RECORD("", "", t->watch.block_input, d, t->watch.stream->x, d, 1);
#undef TSK__TRACE_RECORD
}

/* K or V of every layer as cached now: [n_kv_heads, length, head_dim]. */
static void tsk__trace_caches(tsk__tracer *t, const tsk__kv *kv) {
    const tsk_model_config *c = t->watch.stream->backend->config;
    uint64_t count = (uint64_t)c->n_kv_heads * (uint64_t)kv->length * (uint64_t)c->head_dim;
    int32_t layer, *positions = (int32_t *)tsk__memory_new(t->allocator, (size_t)kv->length, sizeof *positions);
    int part;
    if (!positions) t->status = TSK_ERROR_MEMORY;
    for (layer = 0; positions && layer < kv->length; layer++) positions[layer] = layer;
    for (layer = 0; layer < c->n_layers; layer++) {
        char name[48];
        snprintf(name, sizeof name, "kv_%d", (int)layer);
        for (part = 0; part < 2 && tsk__trace_wants(t, name, layer); part++) {
            tsk_trace_record record;
            if (!tsk__trace_room(t, &t->output, &t->output_capacity, count)) break;
            tsk__kv_read(kv, t->watch.stream, layer, part, t->output);
            memset(&record, 0, sizeof record);
            record.name = name;
            record.part = part ? "v" : "k";
            record.layer = layer;
            record.n_rows = kv->length;
            record.positions = positions;
            record.n_dims = 3;
            record.output_shape[0] = (uint64_t)c->n_kv_heads;
            record.output_shape[1] = (uint64_t)kv->length;
            record.output_shape[2] = (uint64_t)c->head_dim;
            tsk__trace_deliver(t, &record, NULL, t->output);
        }
    }
    tsk__memory_delete(t->allocator, positions);
}

/* final_norm and logits of all rows; index [n] = 0 .. n-1. */
static void tsk__trace_head(tsk__tracer *t, int32_t n, const int32_t *positions, const int32_t *index) {
    const tsk_model_config *c = t->watch.stream->backend->config;
    uint64_t d = (uint64_t)c->d_model, e = (uint64_t)c->embedding_size;
    int norm = tsk__trace_wants(t, "final_norm", -1), logits = tsk__trace_wants(t, "logits", -1), which;
    float *x = NULL;
    size_t x_capacity = 0;
    if (!norm && !logits) return;
    if (!tsk__trace_room(t, &t->input, &t->input_capacity, (uint64_t)n * d) ||
        !tsk__trace_room(t, &t->output, &t->output_capacity, (uint64_t)n * e))
        return;
    if (!tsk__trace_room(t, &x, &x_capacity, (uint64_t)n * d)) return;
    tsk__stream_read(t->watch.stream, t->watch.stream->x, n, d, x);
    t->watch.stream->backend->ops->logits(t->watch.stream, n, index, t->input, t->output);
    for (which = 0; which < 2; which++) {
        tsk_trace_record record;
        if (!(which ? logits : norm)) continue;
        memset(&record, 0, sizeof record);
        record.name = which ? "logits" : "final_norm";
        record.part = "";
        record.layer = -1;
        record.n_rows = n;
        record.positions = positions;
        record.n_dims = 2;
        record.input_shape[0] = record.output_shape[0] = (uint64_t)n;
        record.input_shape[1] = d;
        record.output_shape[1] = which ? e : d;
        tsk__trace_deliver(t, &record, which ? t->input : x, which ? t->output : t->input);
    }
    tsk__memory_delete(t->allocator, x);
}

#endif /* SECTION_GUARD_TRACE */
