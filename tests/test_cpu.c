/* >>cpu: every operation, under every kernel set this machine can run, against plain loops in double; and bit for bit
   the same under other row lists, thread counts and alignments, and as another machine's. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "../src/cpu_backend.h"
#include "test.h"

static const char *const set_names[] = {"portable", "neon", "avx2", "avx512"};

/* What all sets but the portable one must give, to the bit, whatever the machine: the same kernels over its primitives,
   with C's own fused multiply-add. */
typedef tsk__v128 tsk__fused;
#define TSK__TARGET_fused
#define tsk__fused_load tsk__v128_load
#define tsk__fused_store tsk__v128_store
#define tsk__fused_set tsk__v128_set
#define tsk__fused_add tsk__v128_add
#define tsk__fused_sub tsk__v128_sub
#define tsk__fused_mul tsk__v128_mul
#define tsk__fused_div tsk__v128_div
#define tsk__fused_min tsk__v128_min
#define tsk__fused_max tsk__v128_max
#define tsk__fused_pow2 tsk__v128_pow2
#define tsk__fused_from tsk__v128_from
#define tsk__fused_half tsk__v128_half
#define tsk__fused_even tsk__v128_even
#define tsk__fused_odd tsk__v128_odd
#define tsk__fused_columns tsk__v128_columns
/* fmaf with its one rounding: mingw's own rounds twice. The product of two floats is exact in a double; the sum is
   rounded to odd there, and then once to a float. (Boldo and Melquiond, "Emulation of a FMA and correctly rounded
   sums", 2008.) */
static inline float fused(float a, float b, float c) {
    const double product = (double)a * b, sum = product + c;
    const double part = sum - product, lost = (product - (sum - part)) + (c - part);
    int64_t bits;
    double odd;
    memcpy(&bits, &sum, sizeof bits);
    if (lost != 0 && sum - sum == 0 && !(bits & 1)) bits += (lost > 0) == (sum > 0) ? 1 : -1;
    memcpy(&odd, &bits, sizeof odd);
    return (float)odd;
}
static inline tsk__fused tsk__fused_fma(tsk__fused a, tsk__fused b, tsk__fused c) {
    tsk__fused sum;
    int i;
    for (i = 0; i < 4; i++) sum[i] = fused(a[i], b[i], c[i]);
    return sum;
}
TSK__CPU_DEFINE_KERNELS(fused, 4, 6, "fused", "plain C, fused")

static int is_fused(const tsk__cpu_kernels *kernels) { return strcmp(kernels->name, "portable") != 0; }

static uint32_t random_state = 1;
static double uniform(void) {
    return (double)(random_state = random_state * 1664525u + 1013904223u) / 4294967296.0 * 2 - 1;
}

/* ---- a model of random weights, and the same weights in double */

typedef struct weights {
    void *block;
    double *values, *bias;  /* [rows, cols], [rows] or NULL */
} weights;

typedef struct model {
    tsk__cpu_model cpu;
    tsk_model_config config;
    tsk__weight table[3 + 2 * TSK__PART_COUNT];
    weights kept[32];
    int n_kept;
} model;

/* F16 and BF16 here are made by truncation of values that such a format holds exactly. */
static uint16_t half_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return value == 0 ? 0 : (uint16_t)((bits >> 16 & 0x8000u) | ((bits >> 13 & 0x3ffffu) - (112u << 10)));
}

static void *must(void *block) {
    if (!block) exit(2);
    return block;
}
static float *floats(size_t n) { return (float *)must(calloc(n ? n : 1, sizeof(float))); }

static weights *make_matrix(model *m, tsk__weight *w, tsk_dtype dtype, int32_t rows, int32_t cols, int bias) {
    const size_t n = (size_t)rows * (size_t)cols, size = dtype == TSK_DTYPE_F32 ? 4 : 2;
    weights *kept = &m->kept[m->n_kept++];
    char *data;
    size_t i;
    kept->block = must(malloc(n * size + 64));
    kept->values = (double *)must(malloc(n * sizeof(double)));
    kept->bias = NULL;
    data = (char *)kept->block + (64 - (uintptr_t)kept->block % 64) % 64 + size; /* aligned to an element and no
                                                                                    better */
    for (i = 0; i < n; i++) {
        const float value =
            (float)((int)(uniform() * 127)) / 64.0f / sqrtf((float)cols) * (dtype == TSK_DTYPE_F32 ? 1.01f : 1.0f);
        uint16_t half = half_of(value);
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (dtype == TSK_DTYPE_F32) memcpy(data + 4 * i, &value, 4), kept->values[i] = (double)value;
        else if (dtype == TSK_DTYPE_F16)
            memcpy(data + 2 * i, &half, 2), kept->values[i] = (double)tsk__float_from_half(half);
        else
            half = (uint16_t)(bits >> 16), memcpy(data + 2 * i, &half, 2),
            kept->values[i] = (double)tsk__float_from_bf16(half);
    }
    w->data = data;
    w->dtype = dtype;
    w->rows = rows;
    w->cols = cols;
    w->bias = NULL;
    if (bias) {
        float *b = floats((size_t)rows);
        kept->bias = (double *)must(malloc((size_t)rows * sizeof(double)));
        for (i = 0; i < (size_t)rows; i++) kept->bias[i] = (double)(b[i] = (float)uniform());
        w->bias = b;
    }
    return kept;
}

static float *make_norm(int32_t n) {
    float *out = floats((size_t)n);
    int32_t i;
    for (i = 0; i < n; i++) out[i] = 1.0f + 0.5f * (float)uniform();
    return out;
}

typedef struct shape {
    int32_t d, heads, kv_heads, head_dim, mlp, vocab, length;
    tsk_dtype dtype;
    int qkv_bias, linear_bias;
} shape;

enum {
    KEPT_EMBEDDING,
    KEPT_HEAD,
    KEPT_LAYER,
    KEPT_Q = 0,
    KEPT_K,
    KEPT_V,
    KEPT_ATTN_OUT,
    KEPT_FF,
    KEPT_UP,
    KEPT_DOWN,
    KEPT_PER_LAYER
};

static tsk__weight *weight_of(const model *m, int32_t layer, tsk__part part) {
    return (tsk__weight *)(uintptr_t)tsk__cpu_weight(&m->cpu, layer, part);
}
static const float *norm_of(const model *m, int32_t layer, tsk__part part) {
    return (const float *)weight_of(m, layer, part)->data;
}

static void make_part(model *m, const shape *s, int32_t layer, tsk__part part) {
    tsk__weight_id id = tsk__weight_id_of(layer, part, 0), bias = tsk__weight_id_of(layer, part, 1);
    tsk__weight *w = weight_of(m, layer, part);
    uint64_t size[2];
    if (!tsk__family_has(&m->config, &id)) return;
    tsk__family_shape(&m->config, &id, size);
    if (size[1] == 1 && tsk__family_is_vector(&m->config, &id)) w->data = make_norm((int32_t)size[0]);
    else make_matrix(m, w, s->dtype, (int32_t)size[0], (int32_t)size[1], tsk__family_has(&m->config, &bias));
}

static void make_model(model *m, const shape *s, const tsk__cpu_kernels *kernels, tsk__pool *pool) {
    tsk_model_config *c = &m->config;
    int32_t layer, i;
    int part;
    memset(m, 0, sizeof *m);
    random_state = 12345;
    c->d_model = s->d, c->n_layers = 2, c->n_heads = s->heads, c->n_kv_heads = s->kv_heads, c->head_dim = s->head_dim;
    c->mlp_hidden_size = s->mlp, c->vocab_size = s->vocab, c->embedding_size = s->vocab,
    c->max_sequence_length = s->length + 3;
    c->rope_theta = 10000, c->rms_norm_eps = 1e-5f, c->mask_token_id = s->vocab / 2;
    c->qkv_bias = s->qkv_bias, c->linear_bias = s->linear_bias;
    m->cpu.config = c, m->cpu.pool = pool, m->cpu.kernels = kernels, m->cpu.weights = m->table;
    CHECK_INT(tsk__family_count(c), 3 + 2 * TSK__PART_COUNT);
    make_part(m, s, -1, TSK__PART_EMBEDDING);
    make_part(m, s, -1, TSK__PART_HEAD);
    make_part(m, s, -1, TSK__PART_FINAL_NORM);
    for (layer = 0; layer < 2; layer++)
        for (part = 0; part < (int)TSK__PART_COUNT; part++) make_part(m, s, layer, (tsk__part)part);
    m->cpu.rope_frequencies = floats((size_t)(c->head_dim / 2));
    for (i = 0; i < c->head_dim / 2; i++) m->cpu.rope_frequencies[i] = tsk__rope_frequency(c, i);
}

static void free_model(model *m) {
    int i, part;
    for (i = 0; i < m->n_kept; i++) free(m->kept[i].block), free(m->kept[i].values), free(m->kept[i].bias);
    for (i = 0; i < (int)(sizeof m->table / sizeof *m->table); i++) free((void *)(uintptr_t)m->table[i].bias);
    for (i = -1; i < 2; i++)
        for (part = 0; part < (int)TSK__PART_ALL; part++) {
            tsk__weight_id id = tsk__weight_id_of(i, (tsk__part)part, 0);
            if ((i < 0) == (part >= (int)TSK__PART_COUNT) && tsk__family_has(&m->config, &id) &&
                tsk__family_is_vector(&m->config, &id))
                free((void *)(uintptr_t)weight_of(m, i, (tsk__part)part)->data);
        }
    free(m->cpu.rope_frequencies);
}

/* ---- the same in double */

/* y[n][rows] = x[n][cols] W^T + bias */
static void plain_product(const tsk__weight *w, const weights *kept, int32_t n, const double *x, double *y) {
    int32_t i, o, k;
    for (i = 0; i < n; i++)
        for (o = 0; o < w->rows; o++) {
            double sum = kept->bias ? kept->bias[o] : 0;
            for (k = 0; k < w->cols; k++) sum += x[i * w->cols + k] * kept->values[o * w->cols + k];
            y[i * w->rows + o] = sum;
        }
}
static void plain_norm(int32_t n, int32_t d, const float *weight, double eps, const float *x, double *out) {
    int32_t i, j;
    for (i = 0; i < n; i++) {
        double sum = 0;
        for (j = 0; j < d; j++) sum += (double)x[i * d + j] * (double)x[i * d + j];
        for (j = 0; j < d; j++) out[i * d + j] = (double)x[i * d + j] / sqrt(sum / d + eps) * (double)weight[j];
    }
}
static void plain_rope(const tsk_model_config *c, int32_t n, int32_t heads, const int32_t *positions, double *x) {
    const int32_t half = c->head_dim / 2;
    int32_t i, h, j;
    for (i = 0; i < n; i++)
        for (h = 0; h < heads; h++)
            for (j = 0; j < half; j++) {
                double *a = &x[(i * heads + h) * c->head_dim + j], *b = a + half;
                const double angle = positions[i] / pow((double)c->rope_theta, 2.0 * j / c->head_dim), a0 = *a;
                *a = a0 * cos(angle) - *b * sin(angle);
                *b = *b * cos(angle) + a0 * sin(angle);
            }
}

/* The largest |got - want| over the largest |want|; NaN counts as a large error. */
static double error_of(const float *got, const double *want, size_t n) {
    double error = 0, scale = 1e-30;
    size_t i;
    for (i = 0; i < n; i++) {
        const double e = fabs((double)got[i] - want[i]);
        if (!(e <= error)) error = e == e ? e : 1e9;
        if (fabs(want[i]) > scale) scale = fabs(want[i]);
    }
    return error / scale;
}
#define CHECK_NEAR(got, want, n, bound) check_near(got, want, (size_t)(n), bound, __LINE__)
static const char *doing;
static void check_near(const float *got, const double *want, size_t n, double bound, int line) {
    const double error = error_of(got, want, n);
    test_check(error <= bound, __FILE__, line, "%s: relative error %g, allowed %g", doing, error, bound);
}
static void check_same(const float *a, const float *b, size_t n, const char *what, int line) {
    test_check(memcmp(a, b, n * sizeof *a) == 0, __FILE__, line, "%s: %s differs", doing, what);
}

/* ---- one layer's pass, everything kept */

typedef struct pass {
    int32_t n, d, q_width, kv_width, mlp, vocab;
    float *x0, *q, *norm, *captured_q, *captured_k, *captured_v, *k_rope, *attention, *x1, *projection, *h, *gate, *up,
        *x2, *final, *logits;
    tsk__prediction *predictions;
} pass;

static void pass_new(pass *p, const model *m, int32_t n) {
    const tsk_model_config *c = &m->config;
    float **const wide[] = {&p->x0, &p->x1, &p->x2, &p->norm, &p->projection, &p->final};
    size_t i;
    p->n = n, p->d = c->d_model, p->q_width = c->n_heads * c->head_dim, p->kv_width = c->n_kv_heads * c->head_dim;
    p->mlp = c->mlp_hidden_size, p->vocab = c->embedding_size;
    for (i = 0; i < sizeof wide / sizeof *wide; i++) *wide[i] = floats((size_t)(n * p->d));
    p->q = floats((size_t)(n * p->q_width)), p->captured_q = floats((size_t)(n * p->q_width)),
    p->attention = floats((size_t)(n * p->q_width));
    p->captured_k = floats((size_t)(n * p->kv_width)), p->captured_v = floats((size_t)(n * p->kv_width)),
    p->k_rope = floats((size_t)(n * p->kv_width));
    p->h = floats((size_t)(n * p->mlp)), p->gate = floats((size_t)(n * p->mlp)), p->up = floats((size_t)(n * p->mlp));
    p->logits = floats((size_t)n * (size_t)p->vocab);
    p->predictions = (tsk__prediction *)must(calloc((size_t)n, sizeof *p->predictions));
}
static void pass_free(pass *p) {
    float *const all[] = {p->x0, p->x1,         p->x2,        p->norm,       p->projection, p->final,
                          p->q,  p->captured_q, p->attention, p->captured_k, p->captured_v, p->k_rope,
                          p->h,  p->gate,       p->up,        p->logits};
    size_t i;
    for (i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    free(p->predictions);
}

static void pass_run(pass *p, const model *m, const tsk__rows *rows, const tsk__draw *draws, int traced) {
    const int32_t n = rows->n;
    tsk__captures attend_captures, out_captures, ff_captures;
    tsk__cpu_scratch scratch;
    void *memory = must(malloc(tsk__cpu_scratch_init(&scratch, &m->config, m->cpu.integer != NULL, n, NULL)));
    const tsk__captures *const none = NULL;
    tsk__cpu_scratch_init(&scratch, &m->config, m->cpu.integer != NULL, n, memory);
    memset(&attend_captures, 0, sizeof attend_captures), memset(&out_captures, 0, sizeof out_captures),
        memset(&ff_captures, 0, sizeof ff_captures);
    attend_captures.norm = p->norm, attend_captures.q = p->captured_q, attend_captures.k = p->captured_k,
    attend_captures.v = p->captured_v, attend_captures.k_rope = p->k_rope;
    out_captures.projection = p->projection;
    ff_captures.gate = p->gate, ff_captures.up = p->up;
    tsk__cpu_embed(&m->cpu, rows, p->x0);
    tsk__cpu_qkv(&m->cpu, 1, rows, p->x0, p->q, &scratch, traced ? &attend_captures : none);
    tsk__cpu_attention(&m->cpu, 1, rows, p->q, p->attention, &scratch);
    memcpy(p->x1, p->x0, (size_t)(n * p->d) * sizeof(float));
    tsk__cpu_attn_out(&m->cpu, 1, n, p->attention, p->x1, traced ? &out_captures : none, &scratch);
    tsk__cpu_gate_up(&m->cpu, 1, n, p->x1, p->h, &scratch, traced ? &ff_captures : none);
    memcpy(p->x2, p->x1, (size_t)(n * p->d) * sizeof(float));
    tsk__cpu_down(&m->cpu, 1, n, p->h, p->x2, none, &scratch);
    tsk__cpu_final_norm(&m->cpu, n, p->x2, p->final);
    tsk__cpu_logits(&m->cpu, n, p->final, p->logits, &scratch);
    tsk__cpu_head(&m->cpu, n, p->final, draws, p->predictions, &scratch);
    free(memory);
}

/* ---- requests: two caches of different length and capacity, filled with noise where no row writes. Of the first, rows
   attend to the end of their block of 4; of the second, to everything. */

typedef struct requests {
    tsk__kv caches[2];
    size_t floats[2];
    int32_t *tokens, *positions, *owners, *visible;
    tsk__draw *draws;
    tsk__rows rows;
} requests;

static void requests_new(requests *r, const model *m, int32_t n) {
    const tsk_model_config *c = &m->config;
    int32_t i;
    size_t j;
    random_state = 99;
    for (i = 0; i < 2; i++) {
        r->caches[i].length = i == 0 ? c->max_sequence_length - 3 : 2 * c->max_sequence_length / 3;
        r->caches[i].capacity = r->caches[i].length + i;
        r->floats[i] =
            (size_t)c->n_layers * (size_t)c->n_kv_heads * (size_t)r->caches[i].capacity * (size_t)c->head_dim;
        r->caches[i].k = floats(r->floats[i]), r->caches[i].v = floats(r->floats[i]);
        for (j = 0; j < r->floats[i]; j++)
            ((float *)r->caches[i].k)[j] = 2 * (float)uniform(), ((float *)r->caches[i].v)[j] = (float)uniform();
    }
    r->tokens = (int32_t *)must(malloc((size_t)n * sizeof(int32_t))),
    r->positions = (int32_t *)must(malloc((size_t)n * sizeof(int32_t)));
    r->owners = (int32_t *)must(malloc((size_t)n * sizeof(int32_t))),
    r->visible = (int32_t *)must(malloc((size_t)n * sizeof(int32_t))),
    r->draws = (tsk__draw *)must(calloc((size_t)n, sizeof(tsk__draw)));
    for (i = 0; i < n; i++) {
        r->owners[i] = i >= 2 * n / 3;
        r->positions[i] = r->owners[i] ? i - 2 * n / 3 + 1 : i + 2;
        r->visible[i] = (r->positions[i] / 4 + 1) * 4;
        if (r->owners[i] || r->visible[i] > r->caches[r->owners[i]].length)
            r->visible[i] = r->caches[r->owners[i]].length;
        r->tokens[i] = (7 * i + 1) % c->embedding_size;
        r->draws[i].temperature = i % 3 ? 0.0f : 0.7f;
        r->draws[i].mask_token_id = c->mask_token_id;
        r->draws[i].seed = 0x123456789abcdefu;
        r->draws[i].position = (uint32_t)r->positions[i];
        r->draws[i].pass = 5;
    }
    r->rows.n = n;
    r->rows.tokens = r->tokens, r->rows.positions = r->positions, r->rows.requests = r->owners,
    r->rows.visible = r->visible, r->rows.caches = r->caches;
}
static void requests_free(requests *r) {
    int i;
    for (i = 0; i < 2; i++) free(r->caches[i].k), free(r->caches[i].v);
    free(r->tokens), free(r->positions), free(r->owners), free(r->visible), free(r->draws);
}

/* ---- each operation against its plain loop, fed with the operation's own input so that errors do not pile up */

static double *doubles_of(const float *x, size_t n) {
    double *out = (double *)must(malloc(n * sizeof(double)));
    size_t i;
    for (i = 0; i < n; i++) out[i] = (double)x[i];
    return out;
}

static void check_products(const model *m, const pass *p, const tsk__rows *rows) {
    const weights *kept = m->kept + KEPT_LAYER + KEPT_PER_LAYER;
    const int32_t n = p->n;
    const size_t widest = (size_t)n * (size_t)(p->vocab + p->mlp + p->q_width + p->d);
    double *want = (double *)must(malloc(widest * sizeof(double))),
           *in = (double *)must(malloc(widest * sizeof(double))), *up;
    int32_t i, j;
    for (i = 0; i < n; i++)
        for (j = 0; j < p->d; j++) want[i * p->d + j] = m->kept[KEPT_EMBEDDING].values[rows->tokens[i] * p->d + j];
    CHECK_NEAR(p->x0, want, n * p->d, 0);
    plain_norm(n, p->d, norm_of(m, 1, TSK__PART_ATTN_NORM), (double)m->config.rms_norm_eps, p->x0, in);
    CHECK_NEAR(p->norm, in, n * p->d, 1e-6);
    plain_product(weight_of(m, 1, TSK__PART_Q), &kept[KEPT_Q], n, in, want);
    CHECK_NEAR(p->captured_q, want, n * p->q_width, 2e-6);
    plain_rope(&m->config, n, m->config.n_heads, rows->positions, want);
    CHECK_NEAR(p->q, want, n * p->q_width, 2e-5); /* angles in f32: position * 2^-24 */
    plain_product(weight_of(m, 1, TSK__PART_V), &kept[KEPT_V], n, in, want);
    CHECK_NEAR(p->captured_v, want, n * p->kv_width, 2e-6);
    plain_product(weight_of(m, 1, TSK__PART_K), &kept[KEPT_K], n, in, want);
    CHECK_NEAR(p->captured_k, want, n * p->kv_width, 2e-6);
    plain_rope(&m->config, n, m->config.n_kv_heads, rows->positions, want);
    CHECK_NEAR(p->k_rope, want, n * p->kv_width, 2e-5);

    free(in), in = doubles_of(p->attention, (size_t)(n * p->q_width));
    plain_product(weight_of(m, 1, TSK__PART_ATTN_OUT), &kept[KEPT_ATTN_OUT], n, in, want);
    CHECK_NEAR(p->projection, want, n * p->d, 3e-6);
    for (i = 0; i < n * p->d; i++) want[i] = (double)p->x0[i] + (double)p->projection[i];
    CHECK_NEAR(p->x1, want, n * p->d, 1e-7);

    free(in), in = (double *)must(malloc((size_t)(n * p->d) * sizeof(double)));
    up = (double *)must(malloc((size_t)(n * p->mlp) * sizeof(double)));
    plain_norm(n, p->d, norm_of(m, 1, TSK__PART_FF_NORM), (double)m->config.rms_norm_eps, p->x1, in);
    plain_product(weight_of(m, 1, TSK__PART_FF_PROJ), &kept[KEPT_FF], n, in, want);
    plain_product(weight_of(m, 1, TSK__PART_UP_PROJ), &kept[KEPT_UP], n, in, up);
    CHECK_NEAR(p->gate, want, n * p->mlp, 2e-6);
    CHECK_NEAR(p->up, up, n * p->mlp, 2e-6);
    for (i = 0; i < n * p->mlp; i++) want[i] = want[i] / (1 + exp(-want[i])) * up[i];
    CHECK_NEAR(p->h, want, n * p->mlp, 3e-6);
    free(up);

    free(in), in = doubles_of(p->h, (size_t)(n * p->mlp));
    plain_product(weight_of(m, 1, TSK__PART_FF_OUT), &kept[KEPT_DOWN], n, in, want);
    for (i = 0; i < n * p->d; i++) want[i] += (double)p->x1[i];
    CHECK_NEAR(p->x2, want, n * p->d, 3e-6);
    plain_norm(n, p->d, norm_of(m, -1, TSK__PART_FINAL_NORM), (double)m->config.rms_norm_eps, p->x2, want);
    CHECK_NEAR(p->final, want, n * p->d, 1e-6);

    free(in), in = doubles_of(p->final, (size_t)(n * p->d));
    plain_product(weight_of(m, -1, TSK__PART_HEAD), &m->kept[KEPT_HEAD], n, in, want);
    CHECK_NEAR(p->logits, want, (size_t)n * (size_t)p->vocab, 3e-6);
    free(in), free(want);
}

static void check_attention(const model *m, const pass *p, const tsk__rows *rows) {
    const tsk_model_config *c = &m->config;
    double *want = (double *)must(calloc((size_t)(p->n * p->q_width), sizeof(double))),
           *weight = (double *)must(malloc((size_t)c->max_sequence_length * sizeof(double)));
    int32_t i, h, key, j;
    for (i = 0; i < p->n; i++)
        for (h = 0; h < c->n_heads; h++) {
            const tsk__kv *kv = &rows->caches[rows->requests[i]];
            const size_t at = (size_t)(1 * c->n_kv_heads + h / (c->n_heads / c->n_kv_heads)) * (size_t)kv->capacity *
                              (size_t)c->head_dim;
            const float *k = (const float *)kv->k + at, *v = (const float *)kv->v + at,
                        *q = p->q + i * p->q_width + h * c->head_dim;
            double max = -1e300, sum = 0;
            for (key = 0; key < rows->visible[i]; key++) {
                weight[key] = 0;
                for (j = 0; j < c->head_dim; j++) weight[key] += (double)q[j] * (double)k[key * c->head_dim + j];
                weight[key] /= sqrt((double)c->head_dim);
                if (weight[key] > max) max = weight[key];
            }
            for (key = 0; key < rows->visible[i]; key++) sum += weight[key] = exp(weight[key] - max);
            for (key = 0; key < rows->visible[i]; key++)
                for (j = 0; j < c->head_dim; j++)
                    want[i * p->q_width + h * c->head_dim + j] += weight[key] / sum * (double)v[key * c->head_dim + j];
        }
    CHECK_NEAR(p->attention, want, p->n * p->q_width, 3e-6);
    free(want), free(weight);
}

/* What a row's prediction should be, from the same f32 logits. */
static void check_head(const model *m, const pass *p, const tsk__draw *draws) {
    int32_t i, v;
    for (i = 0; i < p->n; i++) {
        const float *logits = p->logits + (size_t)i * (size_t)p->vocab;
        const tsk__prediction *got = &p->predictions[i];
        double best = -1e300, max = -1e300, sum = 0, entropy = 0, lse;
        int32_t id = -1;
        for (v = 0; v < p->vocab; v++) {
            double score = (double)logits[v];
            if (draws[i].temperature > 0)
                score -= (double)draws[i].temperature *
                         log(-log(tsk__random_uniform(draws[i].seed, (uint32_t)v >> 2, draws[i].position, draws[i].pass,
                                                      0, v & 3)));
            if (v != m->config.mask_token_id && score > best) best = score, id = v;
            if ((double)logits[v] > max) max = (double)logits[v];
        }
        for (v = 0; v < p->vocab; v++) sum += exp((double)logits[v] - max);
        lse = max + log(sum);
        for (v = 0; v < p->vocab; v++) entropy += (lse - (double)logits[v]) * exp((double)logits[v] - lse);
        CHECK_INT(got->id, id);
        CHECK(fabs((double)got->entropy - entropy) < 2e-6 * (1 + entropy));
        CHECK(got->logit == logits[id]);
        CHECK(fabs((double)got->log_sum_exp - (max + log(sum))) < 2e-6);
        CHECK(fabs((double)got->confidence / exp((double)logits[id] - max - log(sum)) - 1) < 2e-6);
    }
}

/* ---- bit for bit: rows in another order and company, other thread counts, tracing on */

/* Rows `order` of the list `all` must give what they gave there. Caches hold what the whole list left, so that a part
   sees the same keys. */
static void check_rows(const model *m, requests *all, const pass *whole, const int32_t *order, int32_t n,
                       const char *what) {
    requests part = *all;
    pass p;
    int32_t i;
    part.tokens = (int32_t *)must(malloc((size_t)n * sizeof(int32_t))),
    part.positions = (int32_t *)must(malloc((size_t)n * sizeof(int32_t)));
    part.owners = (int32_t *)must(malloc((size_t)n * sizeof(int32_t))),
    part.visible = (int32_t *)must(malloc((size_t)n * sizeof(int32_t))),
    part.draws = (tsk__draw *)must(malloc((size_t)n * sizeof(tsk__draw)));
    for (i = 0; i < n; i++) {
        part.tokens[i] = all->tokens[order[i]], part.positions[i] = all->positions[order[i]];
        part.owners[i] = all->owners[order[i]], part.draws[i] = all->draws[order[i]];
        part.visible[i] = all->visible[order[i]];
    }
    part.rows.n = n, part.rows.tokens = part.tokens, part.rows.positions = part.positions,
    part.rows.requests = part.owners, part.rows.visible = part.visible;
    pass_new(&p, m, n);
    pass_run(&p, m, &part.rows, part.draws, 0);
    for (i = 0; i < n; i++) {
        const int32_t o = order[i];
        check_same(p.q + i * p.q_width, whole->q + o * p.q_width, (size_t)p.q_width, what, __LINE__);
        check_same(p.attention + i * p.q_width, whole->attention + o * p.q_width, (size_t)p.q_width, what, __LINE__);
        check_same(p.h + i * p.mlp, whole->h + o * p.mlp, (size_t)p.mlp, what, __LINE__);
        check_same(p.x2 + i * p.d, whole->x2 + o * p.d, (size_t)p.d, what, __LINE__);
        check_same(p.logits + (size_t)i * (size_t)p.vocab, whole->logits + (size_t)o * (size_t)p.vocab, (size_t)p.vocab,
                   what, __LINE__);
        CHECK(memcmp(&p.predictions[i], &whole->predictions[o], sizeof(tsk__prediction)) == 0);
    }
    pass_free(&p);
    free(part.tokens), free(part.positions), free(part.owners), free(part.visible), free(part.draws);
}

static void check_same_bits(model *m, requests *r, const pass *whole) {
    int32_t order[64], i, n = r->rows.n;
    int threads;
    for (i = 0; i < n; i++) order[i] = (i * 5 + 3) % n; /* n is no multiple of 5 */
    check_rows(m, r, whole, order, n, "permuted");
    for (i = 0; i < n; i++) order[i] = i;
    for (i = 1; i <= 14 && i < n; i++) check_rows(m, r, whole, order + i % 5, i, "a part");
    for (threads = 1; threads <= 4; threads++) {
        tsk__pool *before = m->cpu.pool;
        m->cpu.pool = tsk__pool_create(NULL, threads);
        check_rows(m, r, whole, order, n, "other threads");
        tsk__pool_destroy(NULL, m->cpu.pool);
        m->cpu.pool = before;
    }
}

/* ---- the cache holds K after RoPE and V of the rows, and nothing else moved */

static void check_cache(const model *m, const pass *p, const requests *r, float *const before[4]) {
    const tsk_model_config *c = &m->config;
    int32_t i, h, which;
    for (which = 0; which < 4; which++) {
        const tsk__kv *kv = &r->caches[which / 2];
        const float *rows = which % 2 ? p->captured_v : p->k_rope;
        for (i = 0; i < p->n; i++)
            if (r->owners[i] == which / 2)
                for (h = 0; h < c->n_kv_heads; h++)
                    memcpy(before[which] +
                               ((size_t)(c->n_kv_heads + h) * (size_t)kv->capacity + (size_t)r->positions[i]) *
                                   (size_t)c->head_dim,
                           rows + i * p->kv_width + h * c->head_dim, (size_t)c->head_dim * sizeof(float));
        check_same(before[which], (const float *)(which % 2 ? kv->v : kv->k), r->floats[which / 2], "cache", __LINE__);
    }
}

static void test_model(const shape *s, const tsk__cpu_kernels *kernels, int32_t n, pass *out) {
    tsk__pool *pool = tsk__pool_create(NULL, 2);
    model m;
    requests r;
    float *before[4];
    char label[100];
    int i;
    make_model(&m, s, kernels, pool);
    requests_new(&r, &m, n);
    snprintf(label, sizeof label, "%s, d %d, head_dim %d, %s", kernels->name, (int)s->d, (int)s->head_dim,
             s->dtype == TSK_DTYPE_F32   ? "F32"
             : s->dtype == TSK_DTYPE_F16 ? "F16"
                                         : "BF16");
    doing = label;
    for (i = 0; i < 4; i++) {
        before[i] = floats(r.floats[i / 2]);
        memcpy(before[i], i % 2 ? r.caches[i / 2].v : r.caches[i / 2].k, r.floats[i / 2] * sizeof(float));
    }
    pass_new(out, &m, n);
    pass_run(out, &m, &r.rows, r.draws, 1);
    check_products(&m, out, &r.rows);
    check_attention(&m, out, &r.rows);
    check_head(&m, out, r.draws);
    check_cache(&m, out, &r, before);
    if (kernels != &tsk__cpu_fused) check_same_bits(&m, &r, out); /* (a call for every fmaf) */
    for (i = 0; i < 4; i++) free(before[i]);
    requests_free(&r);
    free_model(&m);
    tsk__pool_destroy(NULL, pool);
}

static void check_same_pass(const pass *a, const pass *b) {
    const size_t n = (size_t)a->n, d = (size_t)a->d;
    check_same(a->norm, b->norm, n * d, "norm", __LINE__);
    check_same(a->captured_v, b->captured_v, n * (size_t)a->kv_width, "V", __LINE__);
    check_same(a->q, b->q, n * (size_t)a->q_width, "Q", __LINE__);
    check_same(a->k_rope, b->k_rope, n * (size_t)a->kv_width, "K", __LINE__);
    check_same(a->attention, b->attention, n * (size_t)a->q_width, "attention", __LINE__);
    check_same(a->x1, b->x1, n * d, "attention's output", __LINE__);
    check_same(a->h, b->h, n * (size_t)a->mlp, "gate times up", __LINE__);
    check_same(a->x2, b->x2, n * d, "the layer's output", __LINE__);
    check_same(a->logits, b->logits, n * (size_t)a->vocab, "logits", __LINE__);
    test_check(memcmp(a->predictions, b->predictions, n * sizeof *a->predictions) == 0, __FILE__, __LINE__,
               "%s: predictions differ", doing);
}

static void test_models(void) {
    static const shape shapes[] = {
        {40, 3, 3, 10, 70, 611, 61, TSK_DTYPE_F16, 1, 1},    /* nothing divides anything, head halves of 5 */
        {64, 4, 2, 16, 96, 300, 300, TSK_DTYPE_BF16, 1, 0},  /* GQA, two blocks of keys */
        {192, 6, 6, 32, 352, 1024, 290, TSK_DTYPE_BF16, 0, 0},
        {320, 5, 1, 64, 288, 515, 513, TSK_DTYPE_F32, 0, 0}, /* two blocks of depth, one K/V head */
        {33, 2, 1, 300, 31, 5, 33, TSK_DTYPE_F32, 1, 1}};    /* heads wider than a panel is deep */
    size_t s, k;
    for (s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        pass fused, got;
        test_model(&shapes[s], &tsk__cpu_fused, 37, &fused);
        for (k = 0; k < sizeof set_names / sizeof *set_names; k++) {
            const tsk__cpu_kernels *kernels = tsk__cpu_kernels_by_name(set_names[k]);
            if (!kernels) continue;
            test_model(&shapes[s], kernels, 37, &got);
            doing = kernels->name;
            if (is_fused(kernels)) check_same_pass(&got, &fused);
            pass_free(&got);
        }
        pass_free(&fused);
    }
}

/* ---- kernels alone */

static void test_half(void) {
    CHECK(tsk__float_from_half(0x0000) == 0.0f && !signbit(tsk__float_from_half(0x0000)));
    CHECK(tsk__float_from_half(0x8000) == 0.0f && signbit(tsk__float_from_half(0x8000)));
    CHECK(tsk__float_from_half(0x0001) == ldexpf(1, -24));
    CHECK(tsk__float_from_half(0x83ff) == -1023 * ldexpf(1, -24));
    CHECK(tsk__float_from_half(0x0400) == ldexpf(1, -14));
    CHECK(tsk__float_from_half(0x3c00) == 1.0f);
    CHECK(tsk__float_from_half(0xc500) == -5.0f);
    CHECK(tsk__float_from_half(0x7bff) == 65504.0f);
    CHECK(tsk__float_from_half(0x7c00) == INFINITY);
    CHECK(tsk__float_from_half(0xfc00) == -INFINITY);
    CHECK(isnan(tsk__float_from_half(0x7e00)));
    CHECK(tsk__float_from_bf16(0x3f80) == 1.0f);
    CHECK(tsk__float_from_bf16(0xc040) == -3.0f);
    CHECK(tsk__float_from_bf16(0x0001) == ldexpf(1, -133));
}

/* Every half, through every set's packing: 32 outputs of 64 values at a time. */
static void test_pack_half(const tsk__cpu_kernels *kernels) {
    static uint16_t halves[32 * 64];
    static float panel[TSK__CPU_DEPTH * TSK__CPU_WIDTH];
    int32_t base, i, wrong = 0;
    tsk__weight w;
    memset(&w, 0, sizeof w);
    w.data = halves, w.dtype = TSK_DTYPE_F16, w.rows = 32, w.cols = 64;
    for (base = 0; base < 65536; base += 32 * 64) {
        for (i = 0; i < 32 * 64; i++) halves[i] = (uint16_t)(base + i);
        kernels->pack(&w, 0, 0, 64, panel);
        for (i = 0; i < 32 * 64; i++) {
            const float got = panel[i % 64 * TSK__CPU_WIDTH + i / 64], want = tsk__float_from_half(halves[i]);
            wrong += !(isnan(want) ? isnan(got) : memcmp(&got, &want, sizeof got) == 0);
        }
    }
    CHECK_INT(wrong, 0);
}

static void test_exp(const tsk__cpu_kernels *kernels) {
    static const double specials[] = {0, -87.3365, -87.4, -1000, 88.3, 1e-8, -1e-8};
    double worst = 0;
    float x[16];
    int i, j, same = 1;
    for (i = 0; i < 20000; i++) {
        for (j = 0; j < 16; j++) x[j] = (float)(-87.3 + 175.6 * (i * 16 + j) / 320000);
        {
            float in[16], fused[16], sum;
            memcpy(in, x, sizeof in);
            memcpy(fused, x, sizeof fused);
            sum = kernels->exp_sum(x, 16, 0);
            if (is_fused(kernels))
                same &= tsk__cpu_fused.exp_sum(fused, 16, 0) == sum && memcmp(x, fused, sizeof x) == 0;
            for (j = 0; j < 16; j++) {
                const double want = exp((double)in[j]);
                double error;
                int exponent;
                frexp(want, &exponent);
                error = fabs((double)x[j] - want) / ldexp(1, exponent - 24);
                if (!(error <= worst)) worst = error;
            }
        }
    }
    test_check(worst < 1.1, __FILE__, __LINE__, "%s: exp is off by %g ulp", kernels->name, worst);
    test_check(same, __FILE__, __LINE__, "%s: exp differs from another machine's", kernels->name);
    for (j = 0; j < 16; j++) x[j] = j < 7 ? (float)specials[j] : -INFINITY;
    x[15] = NAN;
    kernels->exp_sum(x, 16, 0);
    CHECK(x[0] == 1.0f && x[2] == 0.0f && x[3] == 0.0f && x[5] == 1.0f && x[6] == 1.0f && x[7] == 0.0f && isnan(x[15]));
    CHECK(x[1] > 0 && x[4] > 1e38f && x[4] < INFINITY);
}

static void test_silu(const tsk__cpu_kernels *kernels) {
    float gate[19], up[19];
    double want[19];
    int i;
    for (i = 0; i < 19; i++) {
        gate[i] = (float)(i - 9) * 1.7f, up[i] = (float)i * 0.5f + 1;
        want[i] = (double)gate[i] / (1 + exp(-(double)gate[i])) * (double)up[i];
    }
    doing = kernels->name;
    kernels->silu(gate, up, 19);
    CHECK_NEAR(gate, want, 19, 1e-6);
    gate[0] = -200, gate[1] = 200, gate[2] = -INFINITY, gate[3] = NAN, up[0] = up[1] = 1;
    kernels->silu(gate, up, 4);
    CHECK(fabsf(gate[0]) < 1e-30f && gate[1] == 200.0f && isnan(gate[3]));
}

static void test_reductions(const tsk__cpu_kernels *kernels) {
    float x[100], y[100], part[101];
    double want;
    int i, n;
    random_state = 5;
    for (i = 0; i < 100; i++) x[i] = (float)uniform(), y[i] = (float)uniform();
    for (n = 0; n <= 100; n++) {
        const float got = kernels->dot(x, y, n);
        for (want = 0, i = 0; i < n; i++) want += (double)x[i] * (double)y[i];
        CHECK(fabs((double)got - want) < 5e-6);
        memcpy(part + 1, x, (size_t)n * sizeof *x); /* elsewhere in memory */
        CHECK(kernels->dot(part + 1, y, n) == got);
    }
    memcpy(part, x, 96 * sizeof *x);
    part[77] = 50;
    CHECK(kernels->scale_max(part, 96, 0.5f) == 25.0f);
    CHECK(part[3] == x[3] * 0.5f);
    part[93] = NAN; /* in the same lane of every set as the largest, and takes no place of its */
    CHECK(kernels->scale_max(part, 96, 1) == 25.0f);
}

/* ---- cosine, gather, scatter, rope */

static void test_rows(const tsk__cpu_kernels *kernels) {
    static float a[3 * 70], b[3 * 70], c[3 * 70];
    static const int32_t index[] = {2, 0, 1};
    tsk_model_config config;
    tsk__cpu_model m;
    float out[3];
    int i;
    memset(&config, 0, sizeof config), memset(&m, 0, sizeof m);
    config.d_model = 70, m.config = &config, m.kernels = kernels;
    for (i = 0; i < 70; i++)
        a[i] = b[i] = (float)uniform(), a[70 + i] = (float)(i == 3), b[70 + i] = (float)(i == 3) + (float)(i == 60),
        a[140 + i] = 0, b[140 + i] = 1;
    tsk__cpu_cosine(&m, 3, a, b, out);
    CHECK(out[0] == 1.0f);
    CHECK(fabs((double)out[1] - sqrt(0.5)) < 1e-7);
    CHECK(out[2] == 0.0f);
    for (i = 0; i < 70; i++) a[i] = -a[i], b[140 + i] = a[140 + i] = 1e-6f;
    tsk__cpu_cosine(&m, 3, a, b, out);
    CHECK(out[0] == -1.0f);
    CHECK(fabs((double)out[2] - 7e-11 / 1e-8) < 1e-8); /* |x||y| below 1e-8 counts as 1e-8 */
    for (i = 0; i < 210; i++) a[i] = (float)i;
    tsk__cpu_gather(&m, 3, 70, a, index, b);
    CHECK(b[0] == 140.0f && b[70] == 0.0f && b[209] == 139.0f);
    tsk__cpu_scatter(&m, 3, 70, b, index, c);
    CHECK(memcmp(a, c, sizeof a) == 0);
}

static void test_rope_turns(void) {
    tsk_model_config config;
    tsk__cpu_model m;
    float frequencies[5], rotations[10];
    int32_t i;
    memset(&config, 0, sizeof config), memset(&m, 0, sizeof m);
    config.head_dim = 10, config.rope_theta = 500000;
    for (i = 0; i < 5; i++) frequencies[i] = tsk__rope_frequency(&config, i);
    CHECK(frequencies[0] == 1.0f && frequencies[2] == (float)(1 / pow(500000, 0.4)));
    m.config = &config, m.rope_frequencies = frequencies;
    tsk__cpu_rope_rotation(&m, 0, rotations);
    for (i = 0; i < 5; i++) CHECK(rotations[i] == 1.0f && rotations[5 + i] == 0.0f);
    tsk__cpu_rope_rotation(&m, 1, rotations);
    CHECK(rotations[0] == (float)cos(1.0) && rotations[5] == (float)sin(1.0));
    tsk__cpu_rope_rotation(&m, 99, rotations);
    CHECK(rotations[0] == (float)cos(99.0));
    CHECK(rotations[5 + 2] == (float)sin((double)(99.0f * (float)(1 / pow(500000, 0.4)))));
    tsk__cpu_rope_rotation(&m, 16777215, rotations); /* the last position that a model may have */
    CHECK(rotations[0] == (float)cos(16777215.0));
    CHECK(rotations[5 + 2] == (float)sin((double)(16777215.0f * (float)(1 / pow(500000, 0.4)))));
}

/* a c - b s rounds twice on every machine: 1 + 2^-11 + 2^-24 becomes 1 + 2^-11 before that is taken away. */
static void test_no_contraction(void) {
    const float nearly = 1 + ldexpf(1, -12), product = 1 + ldexpf(1, -11);
    float from[2], to[2];
    float cosine = nearly, sine = 1;
    from[0] = nearly, from[1] = product;
    tsk__cpu_rope_head(from, &cosine, &sine, 1, to);
    CHECK(to[0] == 0.0f);
}

/* Ties, the mask on top, and a chunk boundary, all without noise. */
static void test_head_ties(const tsk__cpu_kernels *kernels) {
    static float head[600], x[1] = {1};
    tsk_model_config config;
    tsk__cpu_model m;
    tsk__weight table[3], *w;
    tsk__cpu_scratch scratch;
    tsk__draw draw;
    tsk__prediction got;
    void *memory;
    memset(&config, 0, sizeof config), memset(&m, 0, sizeof m), memset(&draw, 0, sizeof draw),
        memset(head, 0, sizeof head);
    config.d_model = 1, config.embedding_size = 600;
    m.config = &config, m.kernels = kernels;
    memset(table, 0, sizeof table);
    m.weights = table;
    w = &table[tsk__family_index(&config, -1, TSK__PART_HEAD, 0)];
    w->data = head, w->dtype = TSK_DTYPE_F32, w->rows = 600, w->cols = 1;
    head[599] = head[256] = head[300] = 2, head[10] = 5;
    draw.mask_token_id = 10;
    memory = must(malloc(tsk__cpu_scratch_init(&scratch, &config, 0, 1, NULL)));
    tsk__cpu_scratch_init(&scratch, &config, 0, 1, memory);
    tsk__cpu_head(&m, 1, x, &draw, &got, &scratch);
    CHECK_INT(got.id, 256);
    CHECK(got.logit == 2.0f);
    CHECK(fabs((double)got.confidence - exp(2.0) / (596 + 3 * exp(2.0) + exp(5.0))) < 1e-8);
    head[599] = 2.5f;
    tsk__cpu_head(&m, 1, x, &draw, &got, &scratch);
    CHECK_INT(got.id, 599);
    x[0] = NAN;
    draw.mask_token_id = 0;
    tsk__cpu_head(&m, 1, x, &draw, &got, &scratch);
    CHECK_INT(got.id, 1); /* a broken model's id is still an id, and not the mask */
    draw.temperature = 1;
    tsk__cpu_head(&m, 1, x, &draw, &got, &scratch);
    CHECK_INT(got.id, 1);
    x[0] = 1;
    free(memory);
}

/* The bound that spares logarithms is one, for every size of word. */
static void test_noise_bound(void) {
    uint32_t word, step;
    int below = 1;
    for (step = 0; step < 200000; step++) {
        word = step < 1000 ? step : step < 2000 ? 0u - step + 999u : step * 2654435761u;
        below &= -log(-log(tsk__random_from_word(word))) < tsk__cpu_noise_bound(word);
    }
    CHECK(below);
}

static void test_selection(void) {
    const tsk__cpu_kernels *best = tsk__cpu_kernels_select();
    char text[100];
    size_t i;
    for (i = 0; i < sizeof set_names / sizeof *set_names; i++)
        if (tsk__cpu_kernels_by_name(set_names[i])) CHECK(best == tsk__cpu_kernels_by_name(set_names[i]) || i < 3);
    CHECK(tsk__cpu_kernels_by_name("portable") != NULL);
#ifdef __aarch64__
    CHECK_STRING(best->name, "neon");
#endif
    CHECK(tsk__cpu_kernels_by_name("neither") == NULL);
    tsk__cpu_describe(tsk__cpu_kernels_by_name("portable"), NULL, NULL, text, sizeof text);
    CHECK_STRING(text, "CPU, portable C, 1 thread");
}

int main(void) {
    size_t k;
    test_selection();
    test_half();
    test_rope_turns();
    test_no_contraction();
    test_noise_bound();
    for (k = 0; k < sizeof set_names / sizeof *set_names; k++) {
        const tsk__cpu_kernels *kernels = tsk__cpu_kernels_by_name(set_names[k]);
        if (!kernels) continue;
        test_pack_half(kernels);
        test_exp(kernels);
        test_silu(kernels);
        test_reductions(kernels);
        test_rows(kernels);
        test_head_ties(kernels);
    }
    test_models();
    return test_end("test_cpu");
}
