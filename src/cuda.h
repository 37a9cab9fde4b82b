#ifndef SECTION_GUARD_CUDA
#define SECTION_GUARD_CUDA

#include "error.h"
#include "memory.h"
#include "platform.h"
#include "safetensors.h"
#include "weights.h"
#include "backend.h"
#include "cuda_driver.h"
#include "kernels/shared.h"
#include "cuda_backend.h"
#include "cuda_compile.h"
#include "cuda_plan.h"
#include "cuda_weights.h"
#include "cuda_stream.h"

// >>cuda ==============================================================================================================
/* The operations of the backend on the device, recorded sections, and the table. */

#ifdef TOKENSKIP__HAS_CUDA

static CUdeviceptr tsk__cuda_x(const tsk__cuda_stream *s) { return tsk__cuda_address(s->base.x); }
static int tsk__cuda_is_fused(const tsk__cuda_stream *s) { return s->pass.n <= tsk__cuda_fused_rows(s->backend); }
static uint64_t tsk__cuda_layer_offset(const tsk_model_config *c, int32_t layer) {
    return (uint64_t)layer * (uint64_t)c->n_kv_heads * (uint64_t)c->head_dim;
}

/* Computes the first half of a norm, unless the kernel that last wrote x has done it. */
static void tsk__cuda_need_normed(tsk__cuda_stream *s, CUdeviceptr norm) {
    tsk__cuda_pre_norm_args a;
    if (s->pass.normed_for == norm) return;
    memset(&a, 0, sizeof a);
    a.x = tsk__cuda_x(s), a.weight = norm, a.normed = s->device.normed, a.squares = s->device.squares;
    a.d = s->backend->base.config->d_model;
    tsk__cuda_launch(s, TSK__CUDA_pre_norm, (uint32_t)s->pass.n, 1, 1, TSK__CUDA_THREADS_pre_norm, 0, &a, "pre_norm");
    s->pass.normed_for = norm;
}

static void tsk__cuda_embed(tsk__cuda_stream *s) {
    CUdeviceptr norm = tsk__cuda_is_fused(s) ? s->backend->layers[0].attn_norm : 0;
    tsk__cuda_embed_args a;
    memset(&a, 0, sizeof a);
    a.embedding = s->backend->embedding;
    a.table = s->device.table;
    a.x = tsk__cuda_x(s);
    a.weight = norm, a.normed = s->device.normed, a.squares = s->device.squares;
    a.d = s->backend->base.config->d_model;
    tsk__cuda_launch(s, TSK__CUDA_embed, (uint32_t)s->pass.n, 1, 1, TSK__CUDA_THREADS_embed, 0, &a, "embed");
    s->pass.normed_for = norm;
}

static void tsk__cuda_norm(tsk__cuda_stream *s, int32_t n, CUdeviceptr index, CUdeviceptr weight, CUdeviceptr out) {
    const tsk_model_config *c = s->backend->base.config;
    tsk__cuda_norm_args a;
    a.x = tsk__cuda_x(s), a.index = index, a.weight = weight, a.out = out;
    a.d = c->d_model, a.eps = c->rms_norm_eps;
    tsk__cuda_launch(s, TSK__CUDA_norm, (uint32_t)n, 1, 1, TSK__CUDA_THREADS_norm,
                     (uint32_t)TSK__CUDA_SQUARES_ROW(a.d) * 4, &a, "norm");
    if (out == s->device.normed) s->pass.normed_for = 0;
}

/* What a linear map for few rows is launched as; the kernel for more than 32 follows. input: which of the stream's, see
   its `inputs`. */
static const struct { tsk__cuda_kernel kernel; int input; const char *name;
} tsk__cuda_map_launches[TSK__CUDA_MAPS] = {{TSK__CUDA_linear_qkv_32, 0, "linear_qkv"},
                                            {TSK__CUDA_linear_out_32, 1, "linear_out"},
                                            {TSK__CUDA_linear_gate_up_32, 0, "linear_gate_up"},
                                            {TSK__CUDA_linear_out_32, 2, "linear_out"},
                                            {TSK__CUDA_linear_head_32, 0, "linear_head"}};

/* What all of them take alike. The head belongs to no layer. */
static tsk__cuda_linear_args tsk__cuda_linear_common(const tsk__cuda_stream *s, tsk__cuda_map map, int32_t m,
                                                     const tsk__cuda_layer *layer) {
    const tsk__cuda_backend *b = s->backend;
    const tsk_model_config *c = b->base.config;
    const tsk__cuda_plan *plan = &b->plans[map];
    int input = tsk__cuda_map_launches[map].input, is_wide = m > TSK__CUDA_FEW_ROWS;
    tsk__cuda_linear_args a;
    memset(&a, 0, sizeof a);
    a.weights_map = layer ? (is_wide ? layer->wide_maps : layer->maps)[map] : is_wide ? b->head_wide_map : b->head_map;
    a.input_map = s->device.inputs[input][m > 32 && !is_wide];
    a.input = input == 0 ? s->device.normed : tsk__cuda_address(input == 1 ? s->base.attention : s->base.hidden);
    a.m = m, a.n = plan->n, a.k = plan->k;
    a.pieces = plan->pieces, a.groups = plan->groups, a.stages = is_wide ? plan->wide_stages : plan->stages[m > 32];
    a.eps = c->rms_norm_eps;
    a.table = s->device.table;
    a.n_heads = c->n_heads, a.n_kv_heads = c->n_kv_heads, a.head_dim = c->head_dim, a.mlp = c->mlp_hidden_size;
    return a;
}

static void tsk__cuda_linear(tsk__cuda_stream *s, tsk__cuda_map map, const tsk__cuda_linear_args *a) {
    const tsk__cuda_plan *plan = &s->backend->plans[map];
    const char *name = tsk__cuda_map_launches[map].name;
    tsk__cuda_kernel kernel = tsk__cuda_map_launches[map].kernel;
    uint32_t fetchers = s->backend->arch >= 90 ? TSK__CUDA_LINEAR_FETCHERS : TSK__CUDA_LINEAR_FETCHERS_80;
    int is_64 = a->m > 32;
    if (a->m > TSK__CUDA_FEW_ROWS)
        tsk__cuda_launch(s, tsk__cuda_wide[map].kernel, (uint32_t)plan->wide_blocks, 1, 1, TSK__CUDA_WIDE_WARPS * 32,
                         (uint32_t)plan->wide_shared, a, name);
    else
        tsk__cuda_launch(s, (tsk__cuda_kernel)((int)kernel + is_64), (uint32_t)plan->blocks, 1, 1,
                         TSK__CUDA_LINEAR_WARPS * 32 + fetchers, (uint32_t)plan->shared[is_64], a, name);
}

/* out[m, n] = input[m, k] * weights[n, k]^T, plus out where `add`. out_f32: f32 results of bf16 values. */
static void tsk__cuda_product(tsk__cuda_stream *s, CUdeviceptr input, CUdeviceptr weights, CUdeviceptr out, int32_t m,
                              int32_t n, int32_t k, int add, int out_f32) {
    tsk__cuda_backend *b = s->backend;
    const float one = 1.0f, beta = add ? 1.0f : 0.0f;
    if (s->failure != CUDA_SUCCESS) return;
    if (b->is_f32) {
        tsk__cuda_exact_f32_args a;
        memset(&a, 0, sizeof a);
        a.input = input, a.weights = weights, a.out = out;
        a.m = m, a.n = n, a.k = k;
        tsk__cuda_launch(s, TSK__CUDA_exact_f32, (uint32_t)(n + 63) / 64, (uint32_t)(m + 31) / 32, 1,
                         TSK__CUDA_THREADS_exact_f32, 0, &a, "exact_f32");
        return;
    }
    if (b->api.cublasGemmEx(s->cublas, CUBLAS_OP_T, CUBLAS_OP_N, n, m, k, &one, tsk__cuda_pointer(weights), CUDA_R_16BF,
                            k, tsk__cuda_pointer(input), CUDA_R_16BF, k, &beta, tsk__cuda_pointer(out),
                            out_f32 ? CUDA_R_32F : CUDA_R_16BF, n, CUBLAS_COMPUTE_32F,
                            CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS)
        tsk__cuda_note(s, TSK__CUDA_UNKNOWN, "a cuBLAS product");
    s->issued.can_overlap = 1;  /* our kernels wait for whatever comes before them */
    s->issued.needs_signal = 1;
}

/* The heads of q and k, in the scratch buffer; to `captured` go q and k as they were. */
static void tsk__cuda_norm_heads(tsk__cuda_stream *s, const tsk__cuda_layer *w, const CUdeviceptr *captured) {
    const tsk_model_config *c = s->backend->base.config;
    tsk__cuda_norm_heads_args a;
    memset(&a, 0, sizeof a);
    a.y = s->device.scratch, a.q_weight = w->q_norm, a.k_weight = w->k_norm;
    a.captures[0] = captured[0], a.captures[1] = captured[1];
    a.n_heads = c->n_heads, a.n_kv_heads = c->n_kv_heads, a.head_dim = c->head_dim, a.eps = c->rms_norm_eps;
    tsk__cuda_launch(s, TSK__CUDA_norm_heads, (uint32_t)s->pass.n, 1, 1, TSK__CUDA_THREADS_norm_heads, 0, &a,
                     "norm_heads");
}

/* Where q and k are normed by head, the fused map for few rows, which turns them at once, is of no use. */
static void tsk__cuda_qkv(tsk__cuda_stream *s, int32_t layer, const tsk__captures *captures) {
    tsk__cuda_backend *b = s->backend;
    const tsk_model_config *c = b->base.config;
    const tsk__cuda_layer *w = &b->layers[layer];
    CUdeviceptr captured[4], bias = w->qkv_bias;
    tsk__cuda_rope_cache_args rope;
    captured[0] = captures ? tsk__cuda_address(captures->q) : 0,
    captured[1] = captures ? tsk__cuda_address(captures->k) : 0,
    captured[2] = captures ? tsk__cuda_address(captures->v) : 0;
    captured[3] = captures ? tsk__cuda_address(captures->k_rope) : 0;
    if (captures && captures->norm) tsk__cuda_norm(s, s->pass.n, 0, w->attn_norm, tsk__cuda_address(captures->norm));
    if (tsk__cuda_is_fused(s) && !b->norms_heads) {
        tsk__cuda_linear_args a = tsk__cuda_linear_common(s, TSK__CUDA_MAP_QKV, s->pass.n, w);
        tsk__cuda_need_normed(s, w->attn_norm);
        a.weights = w->qkv, a.bias = bias, a.squares_in = s->device.squares;
        a.out = tsk__cuda_address(s->base.q);
        a.layer_offset = tsk__cuda_layer_offset(c, layer);
        memcpy(a.captures, captured, sizeof captured);
        tsk__cuda_linear(s, TSK__CUDA_MAP_QKV, &a);
        return;
    }
    tsk__cuda_norm(s, s->pass.n, 0, w->attn_norm, s->device.normed);
    tsk__cuda_product(s, s->device.normed, w->qkv, s->device.scratch, s->pass.n, b->qkv_width, c->d_model, 0, 0);
    if (b->norms_heads) {
        tsk__cuda_norm_heads(s, w, captured);
        captured[0] = captures ? tsk__cuda_address(captures->q_norm) : 0;
        captured[1] = captures ? tsk__cuda_address(captures->k_norm) : 0;
    }
    memset(&rope, 0, sizeof rope);
    rope.y = s->device.scratch, rope.bias = bias, rope.q = tsk__cuda_address(s->base.q);
    rope.table = s->device.table;
    memcpy(rope.captures, captured, sizeof captured);
    rope.n_heads = c->n_heads, rope.n_kv_heads = c->n_kv_heads, rope.head_dim = c->head_dim;
    rope.layer_offset = tsk__cuda_layer_offset(c, layer);
    tsk__cuda_launch(s, TSK__CUDA_rope_cache, (uint32_t)s->pass.n, 1, 1, TSK__CUDA_THREADS_rope_cache, 0, &rope,
                     "rope_cache");
}

/* By the kernels for a head_dim of 64 or 128, bf16. */
static void tsk__cuda_attend_tiles(tsk__cuda_stream *s, int32_t layer, float scale) {
    const tsk_model_config *c = s->backend->base.config;
    tsk__cuda_attention_args a;
    tsk__cuda_kernel kernel = (tsk__cuda_kernel)(tsk__cuda_attentions[s->pass.attention].kernel + (c->head_dim == 128));
    memset(&a, 0, sizeof a);
    a.q = tsk__cuda_address(s->base.q), a.out = tsk__cuda_address(s->base.attention);
    a.table = s->device.table;
    a.parts = s->device.attention_parts;
    a.counters = s->device.counters;
    a.layer_offset = tsk__cuda_layer_offset(c, layer);
    a.scale = scale * 1.44269504088896340736f;
    a.n_heads = c->n_heads, a.n_kv_heads = c->n_kv_heads;
    tsk__cuda_launch(s, kernel, tsk__cuda_attentions[s->pass.attention].splits, (uint32_t)c->n_heads,
                     (uint32_t)s->pass.n_tiles, tsk__cuda_attentions[s->pass.attention].threads,
                     tsk__cuda_attentions[s->pass.attention].bytes * (uint32_t)c->head_dim, &a, "attention");
}

static void tsk__cuda_attend(tsk__cuda_stream *s, int32_t layer) {
    const tsk_model_config *c = s->backend->base.config;
    float scale = (float)(1.0 / sqrt((double)c->head_dim));
    tsk__cuda_attend_args a;
    if (s->backend->has_flash) {
        tsk__cuda_attend_tiles(s, layer, scale);
        return;
    }
    a.q = tsk__cuda_address(s->base.q), a.out = tsk__cuda_address(s->base.attention);
    a.table = s->device.table;
    a.layer_offset = tsk__cuda_layer_offset(c, layer);
    a.n_heads = c->n_heads, a.n_kv_heads = c->n_kv_heads, a.head_dim = c->head_dim;
    a.scale = scale;
    tsk__cuda_launch(s, TSK__CUDA_attend, (uint32_t)s->pass.n, (uint32_t)c->n_heads, 1, TSK__CUDA_THREADS_attend, 0, &a,
                     "attend");
}

/* attn_out and down (`map` says which): x += input * weights^T + bias. */
static void tsk__cuda_out(tsk__cuda_stream *s, int32_t layer, tsk__cuda_map map, const tsk__captures *captures) {
    tsk__cuda_backend *b = s->backend;
    const tsk__cuda_layer *w = &b->layers[layer];
    int is_down = map == TSK__CUDA_MAP_DOWN;
    int32_t d = b->base.config->d_model, k = is_down ? b->base.config->mlp_hidden_size : b->q_width;
    CUdeviceptr input = tsk__cuda_address(is_down ? s->base.hidden : s->base.attention),
                weights = is_down ? w->down : w->attn_out, bias = is_down ? w->down_bias : w->attn_out_bias;
    /* after the last layer any will do: the head goes through its own norm */
    CUdeviceptr next_norm = !is_down                               ? w->ff_norm
                            : layer + 1 < b->base.config->n_layers ? w[1].attn_norm
                                                                   : b->final_norm;
    CUdeviceptr captured = captures ? tsk__cuda_address(captures->projection) : 0, x = tsk__cuda_x(s);
    tsk__cuda_residual_args residual;
    if (tsk__cuda_is_fused(s)) {
        tsk__cuda_linear_args a = tsk__cuda_linear_common(s, map, s->pass.n, w);
        a.weights = weights, a.bias = bias, a.out = x;
        a.norm = next_norm, a.normed = s->device.normed, a.squares_out = s->device.squares;
        a.captures[0] = captured;
        tsk__cuda_linear(s, map, &a);
        s->pass.normed_for = next_norm;
        return;
    }
    s->pass.normed_for = 0;
    if (!b->is_f32 && !bias && s->pass.n > TSK__CUDA_FEW_ROWS) {  /* no row is masked: cuBLAS adds to x itself; a trace
                                                                     sees the projection alone */
        if (captured) tsk__cuda_product(s, input, weights, captured, s->pass.n, d, k, 0, 0);
        tsk__cuda_product(s, input, weights, x, s->pass.n, d, k, 1, 0);
        return;
    }
    tsk__cuda_product(s, input, weights, s->device.scratch, s->pass.n, d, k, 0, 0);
    memset(&residual, 0, sizeof residual);
    residual.y = s->device.scratch, residual.bias = bias, residual.x = x, residual.captured = captured;
    residual.table = s->device.table;
    residual.d = d;
    tsk__cuda_launch(s, TSK__CUDA_residual, (uint32_t)s->pass.n, 1, 1, TSK__CUDA_THREADS_residual, 0, &residual,
                     "residual");
}

static void tsk__cuda_gate_up(tsk__cuda_stream *s, int32_t layer, const tsk__captures *captures) {
    tsk__cuda_backend *b = s->backend;
    const tsk_model_config *c = b->base.config;
    const tsk__cuda_layer *w = &b->layers[layer];
    CUdeviceptr gate = captures ? tsk__cuda_address(captures->gate) : 0,
                up = captures ? tsk__cuda_address(captures->up) : 0, bias = w->gate_up_bias;
    tsk__cuda_silu_args silu;
    if (captures && captures->norm) tsk__cuda_norm(s, s->pass.n, 0, w->ff_norm, tsk__cuda_address(captures->norm));
    if (tsk__cuda_is_fused(s)) {
        tsk__cuda_linear_args a = tsk__cuda_linear_common(s, TSK__CUDA_MAP_GATE_UP, s->pass.n, w);
        tsk__cuda_need_normed(s, w->ff_norm);
        a.weights = w->gate_up, a.bias = bias, a.squares_in = s->device.squares;
        a.out = tsk__cuda_address(s->base.hidden);
        a.captures[0] = gate, a.captures[1] = up;
        tsk__cuda_linear(s, TSK__CUDA_MAP_GATE_UP, &a);
        return;
    }
    tsk__cuda_norm(s, s->pass.n, 0, w->ff_norm, s->device.normed);
    tsk__cuda_product(s, s->device.normed, w->gate_up, s->device.scratch, s->pass.n, b->gate_up_rows, c->d_model, 0, 0);
    memset(&silu, 0, sizeof silu);
    silu.y = s->device.scratch, silu.bias = bias, silu.hidden = tsk__cuda_address(s->base.hidden);
    silu.captured_gate = gate, silu.captured_up = up;
    silu.mlp = c->mlp_hidden_size;
    tsk__cuda_launch(s, TSK__CUDA_silu, (uint32_t)s->pass.n,
                     (uint32_t)((silu.mlp + 7) / 8 + TSK__CUDA_THREADS_silu - 1) / TSK__CUDA_THREADS_silu, 1,
                     TSK__CUDA_THREADS_silu, 0, &silu, "silu");
}

static void tsk__cuda_compare(tsk__cuda_stream *s, int32_t state) {
    uint64_t at = (uint64_t)state * (uint64_t)s->base.max_rows;
    tsk__cuda_compare_args a;
    a.x = tsk__cuda_x(s);
    a.table = s->device.table;
    a.cosines = s->device.cosines + at * sizeof(float), a.host_cosines = tsk__cuda_address(s->base.cosines + at);
    a.state = state, a.d = s->backend->base.config->d_model;
    tsk__cuda_launch(s, TSK__CUDA_compare, (uint32_t)s->pass.n, 1, 1, TSK__CUDA_THREADS_compare, 0, &a, "compare");
}

static void tsk__cuda_decide(tsk__cuda_stream *s, int32_t n_states) {
    tsk__cuda_decide_args a;
    a.table = s->device.table;
    a.cosines = s->device.cosines;
    a.skipped = s->device.skipped, a.host_skipped = tsk__cuda_address(s->base.skipped);
    a.n = s->pass.n, a.n_states = n_states, a.stride = s->base.max_rows, a.masks = s->pass.n <= TSK__CUDA_FEW_ROWS;
    tsk__cuda_launch(s, TSK__CUDA_decide,
                     (uint32_t)(s->pass.n + TSK__CUDA_THREADS_decide - 1) / TSK__CUDA_THREADS_decide, 1, 1,
                     TSK__CUDA_THREADS_decide, 0, &a, "decide");
    s->issued.can_overlap = 0;  /* what follows may read the table before it waits for its predecessor */
}

static void tsk__cuda_keep(tsk__cuda_stream *s) {
    tsk__cuda_keep_args a;
    memset(&a, 0, sizeof a);
    a.x = tsk__cuda_x(s);
    a.table = s->device.table;
    a.skipped = s->device.skipped;
    a.d = s->backend->base.config->d_model;
    tsk__cuda_launch(s, TSK__CUDA_keep, (uint32_t)s->pass.n, (uint32_t)s->n_states + 1, 1, TSK__CUDA_THREADS_keep, 0,
                     &a, "keep");
    s->pass.normed_for = 0;
}

/* The kernel reads the lists where the host leaves them: a copy would take longer than their few words. */
static void tsk__cuda_select(tsk__cuda_stream *s, int32_t n, const tsk__commit_rule *rules, int32_t n_candidates,
                             const tsk__commit_candidate *candidates) {
    uint64_t candidates_at, at = tsk__cuda_argument_pair(s, rules, (uint64_t)n * sizeof *rules, candidates,
                                                         (uint64_t)n_candidates * sizeof *candidates, &candidates_at);
    tsk__cuda_select_tokens_args a;
    a.table = s->device.table;
    a.rules = tsk__cuda_address(s->pinned.arguments + at), a.candidates = a.rules + candidates_at;
    a.predictions = tsk__cuda_address(s->base.predictions);
    a.confidences = s->device.confidences, a.order = s->device.order;
    a.choices = tsk__cuda_address(s->base.choices);
    tsk__cuda_launch(s, TSK__CUDA_select_tokens, (uint32_t)n, 1, 1, TSK__CUDA_THREADS_select_tokens, 0, &a,
                     "select_tokens");
}

static void tsk__cuda_move(tsk__cuda_stream *s, CUdeviceptr to, CUdeviceptr from, CUdeviceptr index, int32_t scatter,
                           int32_t n) {
    tsk__cuda_move_rows_args a;
    a.to = to, a.from = from, a.index = index;
    a.scatter = scatter, a.d = s->backend->base.config->d_model;
    tsk__cuda_launch(s, TSK__CUDA_move_rows, (uint32_t)n, 1, 1, TSK__CUDA_THREADS_move_rows, 0, &a, "move_rows");
    s->pass.normed_for = 0;
}

/* The list of begin again. Compacting only reordered the rows in the image; every entry keeps its number, so the old
   order can be restored. */
static void tsk__cuda_expand(tsk__cuda_stream *s) {
    int32_t i;
    if (!s->pass.compacted) return;
    tsk__cuda_move(s, s->device.full_x, s->device.compact_x, s->device.compact_index, 1, s->pass.n);
    tsk__cuda_wait_fetched(s);
    for (i = 0; i < s->pass.all_n; i++)  /* a permutation: every swap puts one row where it belongs */
        while (s->pinned.rows[i].number != i) {
            tsk__cuda_row row = s->pinned.rows[s->pinned.rows[i].number];
            s->pinned.rows[s->pinned.rows[i].number] = s->pinned.rows[i];
            s->pinned.rows[i] = row;
        }
    s->pass.n = s->pass.all_n;
    s->pass.compacted = 0;
    s->base.x = tsk__cuda_pointer(s->device.full_x);
    tsk__cuda_make_tiles(s);
}

static void tsk__cuda_compact(tsk__cuda_stream *s, int32_t n, const int32_t *index) {
    int32_t i, j;
    tsk__cuda_expand(s);
    /* at a place of its own: expand reads it after any number of waits */
    tsk__cuda_upload(s, s->device.compact_index, tsk__cuda_argument_place(s, index, (uint64_t)n * sizeof *index),
                     (uint64_t)n * sizeof *index);
    tsk__cuda_move(s, s->device.compact_x, s->device.full_x, s->device.compact_index, 0, n);
    tsk__cuda_wait_fetched(s);
    for (i = 0; i < n; i++) {  /* the wanted row may have been swapped away: its number tells where to */
        tsk__cuda_row row = s->pinned.rows[i];
        for (j = index[i]; s->pinned.rows[j].number != index[i]; j = s->pinned.rows[j].number) {
        }
        s->pinned.rows[i] = s->pinned.rows[j];
        s->pinned.rows[j] = row;
    }
    s->pass.n = n;
    s->pass.compacted = n;
    s->base.x = tsk__cuda_pointer(s->device.compact_x);
    tsk__cuda_make_tiles(s);
}

/* ---- the head: one of the linear maps for few rows; for more, matrix products over slices of the vocabulary, whose
   logits are reduced before the next slice takes their place */

/* Of m rows, the first of which is number `first` of the head's. */
static void tsk__cuda_head_finish(tsk__cuda_stream *s, int32_t m, int32_t tiles, CUdeviceptr draws, int32_t first) {
    tsk__cuda_head_finish_args a;
    a.heads = s->device.heads, a.draws = draws;
    a.predictions = tsk__cuda_address(s->base.predictions) + (uint64_t)first * sizeof(tsk__prediction);
    a.n_tiles = tiles, a.m = m;
    tsk__cuda_launch(s, TSK__CUDA_head_finish, (uint32_t)m, 1, 1, TSK__CUDA_THREADS_head_finish, 0, &a, "head_finish");
}

/* Of no more normalised rows than the fused maps take: their predictions, or, where there is room for them, logits. */
static void tsk__cuda_head_fused(tsk__cuda_stream *s, int32_t m, CUdeviceptr draws, CUdeviceptr logits) {
    tsk__cuda_backend *b = s->backend;
    tsk__cuda_linear_args a = tsk__cuda_linear_common(s, TSK__CUDA_MAP_HEAD, m, NULL);
    a.weights = b->head, a.bias = b->head_bias;
    a.draws = draws, a.heads = s->device.heads, a.logits = logits;
    tsk__cuda_linear(s, TSK__CUDA_MAP_HEAD, &a);
    if (!logits) tsk__cuda_head_finish(s, m, tsk__cuda_head_tiles(b, m), draws, 0);
}

/* Logits of ids first .. first + n - 1 of the normalised rows, into [m, n]; their tiles into heads. */
static void tsk__cuda_head_slice(tsk__cuda_stream *s, int32_t m, CUdeviceptr draws, CUdeviceptr logits, int32_t first,
                                 int32_t n) {
    tsk__cuda_backend *b = s->backend;
    int32_t d = b->base.config->d_model, tiles = (n + TSK__CUDA_HEAD_TILE - 1) / TSK__CUDA_HEAD_TILE;
    uint64_t before = (uint64_t)first * (uint64_t)d * tsk_dtype_size(tsk__cuda_weights_dtype(b));
    tsk__cuda_head_tiles_args a;
    memset(&a, 0, sizeof a);
    a.logits = logits, a.bias = b->head_bias, a.draws = draws, a.heads = s->device.heads;
    a.first = first, a.n = n, a.bias_is_bf16 = !b->is_f32;
    tsk__cuda_product(s, s->device.normed, b->head + before, logits, m, n, d, 0, 1);
    tsk__cuda_launch(s, TSK__CUDA_head_tiles, (uint32_t)tiles, (uint32_t)m, 1, TSK__CUDA_THREADS_head_tiles, 0, &a,
                     "head_tiles");
}

/* Logits that there is room for: a slice's of all rows of a chunk, or all of a few rows'. */
static uint64_t tsk__cuda_logits_room(const tsk__cuda_stream *s) {
    uint64_t slice = (uint64_t)tsk__cuda_head_rows(s->base.max_rows) * TSK__CUDA_HEAD_SLICE,
             whole = (uint64_t)TSK__CUDA_LOGITS_ROWS * (uint64_t)s->backend->base.config->embedding_size;
    return slice > whole ? slice : whole;
}

/* Up to TSK__CUDA_HEAD_ROWS rows, from number `first_row` of the head's on. Slices are of whole tiles and as wide as
   there is room for: of a narrow one the product reads its weights at half of memory's rate. */
static void tsk__cuda_head_sliced(tsk__cuda_stream *s, int32_t m, CUdeviceptr index, CUdeviceptr draws,
                                  int32_t first_row) {
    int32_t vocabulary = s->backend->base.config->embedding_size, first,
            width = (int32_t)(tsk__cuda_logits_room(s) / (uint64_t)m / TSK__CUDA_HEAD_TILE) * TSK__CUDA_HEAD_TILE;
    tsk__cuda_norm(s, m, index, s->backend->final_norm, s->device.normed);
    for (first = 0; first < vocabulary; first += width)
        tsk__cuda_head_slice(s, m, draws, s->device.logits, first,
                             vocabulary - first < width ? vocabulary - first : width);
    tsk__cuda_head_finish(s, m, (vocabulary + TSK__CUDA_HEAD_TILE - 1) / TSK__CUDA_HEAD_TILE, draws, first_row);
}

/* Memory for logits, made when first needed. */
static int tsk__cuda_need_logits(tsk__cuda_stream *s) {
    if (!s->device.logits)
        tsk__cuda_note(
            s, s->backend->api.cuMemAlloc_v2(&s->device.logits, (size_t)(tsk__cuda_logits_room(s) * sizeof(float))),
            "memory for logits");
    return s->failure == CUDA_SUCCESS;
}

/* The rows' and the draws' copies on the device, in one upload: a second one's place could be the first one's. */
static CUdeviceptr tsk__cuda_head_lists(tsk__cuda_stream *s, int32_t n, const int32_t *index, int32_t n_draws,
                                        const tsk__draw *draws, CUdeviceptr *draws_there) {
    uint64_t draws_size = (uint64_t)n_draws * sizeof *draws, draws_at,
             at = tsk__cuda_argument_pair(s, index, (uint64_t)n * sizeof *index, draws, draws_size, &draws_at);
    tsk__cuda_upload(s, s->device.arguments + at, at, draws_at + draws_size);
    *draws_there = s->device.arguments + at + draws_at;
    return s->device.arguments + at;
}

static void tsk__cuda_head(tsk__cuda_stream *s, int32_t n, const int32_t *index, const tsk__draw *draws) {
    int is_fused = n <= tsk__cuda_fused_rows(s->backend);
    int32_t i;
    CUdeviceptr all_draws, indices = tsk__cuda_head_lists(s, n, index, n, draws, &all_draws);
    if (is_fused) {
        tsk__cuda_norm(s, n, indices, s->backend->final_norm, s->device.normed);
        tsk__cuda_head_fused(s, n, all_draws, 0);
    } else if (tsk__cuda_need_logits(s))
        for (i = 0; i < n; i += TSK__CUDA_HEAD_ROWS)
            tsk__cuda_head_sliced(s, tsk__cuda_head_rows(n - i), indices + (uint64_t)i * sizeof *index,
                                  all_draws + (uint64_t)i * sizeof *draws, i);
}

static void tsk__cuda_logits(tsk__cuda_stream *s, int32_t n, const int32_t *index, float *norm, float *logits) {
    const tsk__cuda_backend *b = s->backend;
    uint64_t d = (uint64_t)b->base.config->d_model, vocabulary = (uint64_t)b->base.config->embedding_size;
    tsk__draw draws[TSK__CUDA_LOGITS_ROWS];
    int32_t i;
    memset(draws, 0, sizeof draws);
    if (!tsk__cuda_need_logits(s)) return;
    for (i = 0; i < n; i += TSK__CUDA_LOGITS_ROWS) {
        int32_t m = n - i < TSK__CUDA_LOGITS_ROWS ? n - i : TSK__CUDA_LOGITS_ROWS;
        CUdeviceptr no_draws, indices = tsk__cuda_head_lists(s, m, index + i, TSK__CUDA_LOGITS_ROWS, draws, &no_draws);
        tsk__cuda_norm(s, m, indices, b->final_norm, s->device.normed);
        if (norm)
            tsk__cuda_download(s, norm + (uint64_t)i * d, s->device.normed, (uint64_t)m * d, b->base.element_size);
        if (b->has_few_rows) tsk__cuda_head_fused(s, m, no_draws, s->device.logits);
        else tsk__cuda_head_slice(s, m, no_draws, s->device.logits, 0, (int32_t)vocabulary);
        tsk__cuda_download(s, logits + (uint64_t)i * vocabulary, s->device.logits, (uint64_t)m * vocabulary,
                           sizeof(float));
    }
}

/* ---- recorded sections */

/* cuBLAS chooses and prepares kernels at its own times: what uses it is not recorded. Nor are long passes of kernels
   that take longer than they take to launch. */
static int tsk__cuda_records(const tsk__cuda_stream *s) {
    return s->backend->is_f32 ? s->pass.n <= TSK__CUDA_FEW_ROWS : tsk__cuda_is_fused(s);
}

/* The section that the stream is about to run. */
static tsk__cuda_section tsk__cuda_section_now(const tsk__cuda_stream *s, uint64_t key) {
    tsk__cuda_section section;
    section.key = key;
    section.n = s->pass.n, section.n_requests = s->pass.n_requests, section.n_tiles = s->pass.n_tiles,
    section.attention = s->pass.attention;
    section.fetches = s->pass.is_dirty;
    section.x = s->base.x;
    section.graph = NULL;
    return section;
}
static int tsk__cuda_is_same_section(const tsk__cuda_section *a, const tsk__cuda_section *b) {
    return a->key == b->key && a->n == b->n && a->n_requests == b->n_requests && a->n_tiles == b->n_tiles &&
           a->attention == b->attention && a->fetches == b->fetches && a->x == b->x;
}

/* A section of more than TSK__CUDA_FEW_ROWS rows is recorded only if an equal one is among the last TSK__CUDA_SEEN that
   were not recorded, as in a steady batch. Combinations of many requests seldom repeat, and recording one costs as much
   as several launches save. */
static int tsk__cuda_recurs(tsk__cuda_stream *s, uint64_t key) {
    tsk__cuda_section now = tsk__cuda_section_now(s, key);
    int i;
    if (s->pass.all_n <= TSK__CUDA_FEW_ROWS) return 1;
    for (i = 0; i < TSK__CUDA_SEEN; i++)
        if (tsk__cuda_is_same_section(&s->recorded.seen[i], &now)) return 1;
    s->recorded.seen[s->recorded.next_seen] = now;
    s->recorded.next_seen = (s->recorded.next_seen + 1) % TSK__CUDA_SEEN;
    return 0;
}

static int tsk__cuda_replay(tsk__cuda_stream *s, uint64_t key) {
    tsk__cuda_section now = tsk__cuda_section_now(s, key);
    int i;
    if (!tsk__cuda_records(s) || s->failure != CUDA_SUCCESS) return 0;
    for (i = 0; i < s->recorded.n_sections && !tsk__cuda_is_same_section(&s->recorded.sections[i], &now); i++) {
    }
    if (i == s->recorded.n_sections) return 0;
    tsk__cuda_note(s, s->backend->api.cuGraphLaunch(s->recorded.sections[i].graph, s->stream), "a recorded section");
    s->issued.fetches += now.fetches != 0;
    s->pass.is_dirty = 0;
    s->pass.normed_for = 0;
    s->issued.can_overlap = 0;
    s->issued.needs_signal = 1;
    return 1;
}

static void tsk__cuda_record(tsk__cuda_stream *s, uint64_t key) {
    if (!tsk__cuda_records(s) || s->failure != CUDA_SUCCESS || !tsk__cuda_recurs(s, key)) return;
    s->pass.normed_for = 0;  /* a section does not rely on what was left before it, but for the row table */
    s->issued.can_overlap = 0;
    s->recorded.recording = tsk__cuda_section_now(s, key);
    tsk__cuda_note(s,
                   s->backend->api.cuStreamBeginCapture_v2(s->stream,
                                                           (CUstreamCaptureMode)CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
                   "recording");
    s->recorded.is_recording = s->failure == CUDA_SUCCESS;
}

static void tsk__cuda_finish(tsk__cuda_stream *s) {
    const tsk__cuda_api *api = &s->backend->api;
    tsk__cuda_section *section;
    CUgraph graph = NULL;
    CUgraphExec executable = NULL;
    CUresult result;
    if (!s->recorded.is_recording) return;
    s->recorded.is_recording = 0;
    result = api->cuStreamEndCapture(s->stream, &graph);
    tsk__cuda_note(s, result, "recording");
    if (s->failure == CUDA_SUCCESS)
        tsk__cuda_note(s, api->cuGraphInstantiateWithFlags(&executable, graph, 0), "recording");
    if (graph) api->cuGraphDestroy(graph);
    if (s->failure != CUDA_SUCCESS) return;
    if (s->recorded.n_sections == TSK__CUDA_SECTIONS) {
        api->cuStreamSynchronize(s->stream);
        api->cuGraphExecDestroy(s->recorded.sections[s->recorded.next_section].graph);
    } else s->recorded.next_section = s->recorded.n_sections++;
    section = &s->recorded.sections[s->recorded.next_section];
    s->recorded.next_section = (s->recorded.next_section + 1) % TSK__CUDA_SECTIONS;
    *section = s->recorded.recording;
    section->graph = executable;
    s->pass.normed_for = 0;
    tsk__cuda_note(s, api->cuGraphLaunch(executable, s->stream), "a recorded section");
    s->issued.can_overlap = 0;
}

/* ---- the table: every entry works in the backend's context */

#define TSK__CUDA_OPERATION(name, parameters, call) \
    static void tsk__cuda_backend_##name parameters { \
        tsk__cuda_stream *s = tsk__cuda_stream_of(stream); \
        tsk__cuda_enter(s->backend); \
        call; \
        tsk__cuda_leave(s->backend); \
    }
TSK__CUDA_OPERATION(embed, (tsk__stream *stream), tsk__cuda_embed(s))
TSK__CUDA_OPERATION(qkv, (tsk__stream * stream, int32_t layer, const tsk__captures *captures),
                    tsk__cuda_qkv(s, layer, captures))
TSK__CUDA_OPERATION(attend, (tsk__stream *stream, int32_t layer), tsk__cuda_attend(s, layer))
TSK__CUDA_OPERATION(attn_out, (tsk__stream * stream, int32_t layer, const tsk__captures *captures),
                    tsk__cuda_out(s, layer, TSK__CUDA_MAP_OUT, captures))
TSK__CUDA_OPERATION(gate_up, (tsk__stream * stream, int32_t layer, const tsk__captures *captures),
                    tsk__cuda_gate_up(s, layer, captures))
TSK__CUDA_OPERATION(down, (tsk__stream * stream, int32_t layer, const tsk__captures *captures),
                    tsk__cuda_out(s, layer, TSK__CUDA_MAP_DOWN, captures))
TSK__CUDA_OPERATION(compare, (tsk__stream *stream, int32_t state), tsk__cuda_compare(s, state))
TSK__CUDA_OPERATION(decide, (tsk__stream *stream, int32_t n_states), tsk__cuda_decide(s, n_states))
TSK__CUDA_OPERATION(keep, (tsk__stream *stream), tsk__cuda_keep(s))
TSK__CUDA_OPERATION(select,
                    (tsk__stream * stream, int32_t n, const tsk__commit_rule *rules, int32_t n_candidates,
                     const tsk__commit_candidate *candidates),
                    tsk__cuda_select(s, n, rules, n_candidates, candidates))
TSK__CUDA_OPERATION(compact, (tsk__stream *stream, int32_t n, const int32_t *index), tsk__cuda_compact(s, n, index))
TSK__CUDA_OPERATION(expand, (tsk__stream *stream), tsk__cuda_expand(s))
TSK__CUDA_OPERATION(head, (tsk__stream * stream, int32_t n, const int32_t *index, const tsk__draw *draws),
                    tsk__cuda_head(s, n, index, draws))
TSK__CUDA_OPERATION(logits, (tsk__stream * stream, int32_t n, const int32_t *index, float *norm, float *logits),
                    tsk__cuda_logits(s, n, index, norm, logits))
TSK__CUDA_OPERATION(record, (tsk__stream *stream, uint64_t key), tsk__cuda_record(s, key))
TSK__CUDA_OPERATION(finish, (tsk__stream *stream), tsk__cuda_finish(s))
#undef TSK__CUDA_OPERATION
static int tsk__cuda_backend_replay(tsk__stream *stream, uint64_t key) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    int result;
    tsk__cuda_enter(s->backend);
    result = tsk__cuda_replay(s, key);
    tsk__cuda_leave(s->backend);
    return result;
}

static void tsk__cuda_backend_destroy(tsk__backend *backend);
static tsk_status tsk__cuda_ceilings(tsk__backend *backend, tsk_ceilings *out, tsk_error *error);
static void tsk__cuda_backend_describe(const tsk__backend *backend, char *out, size_t size) {
    snprintf(out, size, "%s", ((const tsk__cuda_backend *)(const void *)backend)->name);
}

static const tsk__backend_ops tsk__cuda_backend_ops = {TSK__CUDA_FEW_ROWS,
                                                       tsk__cuda_backend_destroy,
                                                       tsk__cuda_backend_describe,
                                                       tsk__cuda_ceilings,
                                                       tsk__cuda_backend_available,
                                                       tsk__cuda_backend_stream_create,
                                                       tsk__cuda_backend_stream_destroy,
                                                       tsk__cuda_backend_allocate,
                                                       tsk__cuda_backend_release,
                                                       tsk__cuda_backend_copy,
                                                       tsk__cuda_backend_slide,
                                                       tsk__cuda_backend_upload,
                                                       tsk__cuda_backend_download,
                                                       tsk__cuda_backend_wait,
                                                       tsk__cuda_backend_begin,
                                                       tsk__cuda_backend_mask,
                                                       tsk__cuda_backend_embed,
                                                       tsk__cuda_backend_qkv,
                                                       tsk__cuda_backend_attend,
                                                       tsk__cuda_backend_attn_out,
                                                       tsk__cuda_backend_gate_up,
                                                       tsk__cuda_backend_down,
                                                       tsk__cuda_backend_compare,
                                                       tsk__cuda_backend_decide,
                                                       tsk__cuda_backend_keep,
                                                       tsk__cuda_backend_compact,
                                                       tsk__cuda_backend_expand,
                                                       tsk__cuda_backend_head,
                                                       tsk__cuda_backend_select,
                                                       tsk__cuda_backend_logits,
                                                       tsk__cuda_backend_replay,
                                                       tsk__cuda_backend_record,
                                                       tsk__cuda_backend_finish};

/* ---- creating and destroying */

static void tsk__cuda_backend_destroy(tsk__backend *backend) {
    tsk__cuda_backend *b;
    if (!backend) return;
    b = tsk__cuda_backend_of(backend);
    if (b->context) {
        tsk__cuda_enter(b);
        if (b->arena) b->api.cuMemFree_v2(b->arena);
        if (b->module) b->api.cuModuleUnload(b->module);
        tsk__cuda_leave(b);
        b->api.cuDevicePrimaryCtxRelease_v2(b->device);
    }
    tsk__memory_delete(b->allocator, b->layers);
    tsk__memory_delete(b->allocator, b);
}

/* The device, its context and what they can do. */
static tsk_status tsk__cuda_open(tsk__cuda_backend *b, int index, tsk_error *error) {
    tsk__cuda_api *api = &b->api;
    int major = 0, minor = 0;
    CUresult result = api->cuInit(0);
    if (result == CUDA_SUCCESS) result = api->cuDeviceGet(&b->device, index);
    if (result == CUDA_SUCCESS) result = api->cuDriverGetVersion(&b->driver_version);
    if (result == CUDA_SUCCESS) result = api->cuDeviceGetName(b->name, (int)sizeof b->name, b->device);
    if (result == CUDA_SUCCESS)
        result = api->cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, b->device);
    if (result == CUDA_SUCCESS)
        result = api->cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, b->device);
    if (result == CUDA_SUCCESS)
        result = api->cuDeviceGetAttribute(&b->n_multiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, b->device);
    if (result == CUDA_SUCCESS)
        result = api->cuDeviceGetAttribute(&b->shared_limit, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
                                           b->device);
    if (result == CUDA_SUCCESS) result = api->cuDevicePrimaryCtxRetain(&b->context, b->device);
    if (result != CUDA_SUCCESS) b->context = NULL;
    b->arch = major * 10 + minor;
    return tsk__cuda_fail(api, error, result, "opening the device");
}

/* Which of the fast ways the model's shapes allow; others take the general ones. */
static void tsk__cuda_choose(tsk__cuda_backend *b) {
    const tsk_model_config *c = b->base.config;
    int32_t hd = c->head_dim;
    b->norms_heads = tsk__family_part_of(c, TSK__PART_Q_NORM)->weight != NULL;
    b->q_width = c->n_heads * hd;
    b->kv_width = c->n_kv_heads * hd;
    b->qkv_width = b->q_width + 2 * b->kv_width;
    b->gate_up_rows = (c->mlp_hidden_size + 7) / 8 * 16;
    b->has_few_rows =
        !b->is_f32 && hd % 16 == 0 && c->d_model % 8 == 0 && c->mlp_hidden_size % 8 == 0 && tsk__cuda_plan_maps(b);
    b->has_flash = !b->is_f32 && (hd == 64 || hd == 128);
}

static tsk_status tsk__cuda_backend_create(const tsk_model_config *config, const tsk__source *source,
                                           const tsk_model_options *o, tsk__backend **out, tsk_error *error) {
    const tsk_allocator *allocator = tsk__memory_allocator(&o->host);
    tsk__cuda_backend *b = (tsk__cuda_backend *)tsk__memory_new_zeroed(allocator, 1, sizeof *b);
    tsk_status status = TSK_OK;
    char why[160] = "";
    *out = NULL;
    if (!b) return tsk__error_memory(error, "the CUDA backend", sizeof *b);
    b->allocator = allocator;
    b->is_f32 = o->dtype == TSK_DTYPE_F32;
    b->base.ops = &tsk__cuda_backend_ops;
    b->base.config = config;
    b->base.element_size = b->is_f32 ? 4 : 2;
    b->layers = (tsk__cuda_layer *)tsk__memory_new_zeroed(allocator, (size_t)config->n_layers, sizeof *b->layers);
    if (!b->layers)
        status = tsk__error_memory(error, "the list of layers", (uint64_t)config->n_layers * sizeof *b->layers);
    else if (config->head_dim > 256 || config->head_dim % 2 || config->d_model > 1 << 20)
        status = tsk__error_set(error, TSK_ERROR_UNSUPPORTED, NULL, TSK_NO_OFFSET,
                                "the CUDA backend takes an even head_dim up to 256, not %d", (int)config->head_dim);
    else if (!tsk__cuda_load(&b->api, TSK__CUDA_LIBRARY_DRIVER, why, sizeof why) ||
             (!b->is_f32 && !tsk__cuda_load(&b->api, TSK__CUDA_LIBRARY_CUBLAS, why, sizeof why)))
        status = tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET, "CUDA cannot be used: %s", why);
    if (status == TSK_OK) status = tsk__cuda_open(b, o->device_index, error);
    if (status == TSK_OK) {
        tsk__cuda_choose(b);
        tsk__cuda_enter(b);
        status = tsk__cuda_load_kernels(b, o, error);
        if (status == TSK_OK) status = tsk__cuda_plan_wide(b, error);
        if (status == TSK_OK) status = tsk__cuda_arena(b, error);
        if (status == TSK_OK) status = tsk__cuda_encode_weights(b, error);
        if (status == TSK_OK) status = tsk__cuda_load_weights(b, source, o, error);
        tsk__cuda_leave(b);
    }
    if (status != TSK_OK) tsk__cuda_backend_destroy(&b->base);
    else *out = &b->base;
    return status;
}

/* ---- ceilings, for benchmarks */

/* The best of some runs, in milliseconds; `product` or else the read-only stream. */
static double tsk__cuda_time(tsk__cuda_stream *s, int product, CUdeviceptr memory, uint64_t bytes, int32_t size) {
    uint64_t third = (uint64_t)size * (uint64_t)size * s->backend->base.element_size, pieces = bytes / 16;
    double best = 1e30;
    tsk__cuda_read_stream_args a;
    uint32_t blocks = (uint32_t)s->backend->n_multiprocessors * 8;
    int i, repeat, repeats = product && !s->backend->is_f32 ? 20 : 1;
    a.from = memory, a.n = pieces, a.out = s->device.state_words;
    for (i = 0; i < 6 && s->failure == CUDA_SUCCESS; i++) {
        double start = tsk__time_ms();
        for (repeat = 0; repeat < repeats; repeat++) {
            if (product) tsk__cuda_product(s, memory, memory + third, memory + 2 * third, size, size, size, 0, 0);
            else
                tsk__cuda_launch(s, TSK__CUDA_read_stream, blocks, 1, 1, TSK__CUDA_THREADS_read_stream, 0, &a,
                                 "read_stream");
        }
        tsk__cuda_note(s, s->backend->api.cuStreamSynchronize(s->stream), "measuring");
        start = (tsk__time_ms() - start) / repeats;
        if (start < best) best = start;
    }
    return best;
}

static tsk_status tsk__cuda_ceilings(tsk__backend *backend, tsk_ceilings *out, tsk_error *error) {
    tsk__cuda_backend *b = tsk__cuda_backend_of(backend);
    int32_t size = b->is_f32 ? 2048 : 8192, rows = tsk__cuda_fused_rows(b) + 1;  /* for which there is cuBLAS */
    uint64_t bytes = (uint64_t)1 << 30, count = bytes / b->base.element_size;
    tsk__cuda_randomise_args a;
    tsk__stream *stream = NULL;
    tsk_status status = tsk__cuda_backend_stream_create(backend, rows, 0, &stream, error);
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    CUdeviceptr memory = 0;
    if (status != TSK_OK) return status;
    memory = tsk__cuda_address(tsk__cuda_backend_allocate(backend, bytes));
    if (!memory) status = tsk__error_memory(error, "measuring", bytes);
    else {
        memset(&a, 0, sizeof a);
        a.to = memory, a.count = count, a.seed = 1, a.scale = 1.0f;
        a.row_order.columns = 1;
        tsk__cuda_enter(b);
        tsk__cuda_launch(s, TSK__CUDA_randomise, (uint32_t)b->n_multiprocessors * 8, 1, 1, TSK__CUDA_THREADS_randomise,
                         0, &a, "randomise");
        out->bytes_per_second = (double)bytes / (tsk__cuda_time(s, 0, memory, bytes, 0) * 1e-3);
        out->flops_per_second = 2.0 * size * (double)size * size / (tsk__cuda_time(s, 1, memory, bytes, size) * 1e-3);
        tsk__cuda_leave(b);
        status = tsk__cuda_backend_wait(stream, error);
    }
    tsk__cuda_backend_release(backend, tsk__cuda_pointer(memory));
    tsk__cuda_backend_stream_destroy(stream);
    return status;
}

#else

/* Without CUDA there is no such device, and why. */
static int tsk__cuda_available(int index, char *why, size_t why_size) {
    (void)index;
    snprintf(why, why_size, "built without CUDA");
    return 0;
}
static tsk_status tsk__cuda_backend_create(const tsk_model_config *config, const tsk__source *source,
                                           const tsk_model_options *o, tsk__backend **out, tsk_error *error) {
    (void)config, (void)source, (void)o;
    *out = NULL;
    return tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET, "built without CUDA");
}

#endif /* TOKENSKIP__HAS_CUDA */

static const tsk__backend_kind tsk__cuda_backend_kind = {TSK_DEVICE_CUDA, tsk__cuda_available,
                                                         tsk__cuda_backend_create, 0};

#endif /* SECTION_GUARD_CUDA */
