/* >>cuda: every operation against the CPU backend, by itself and three layers together. Without a GPU that says
   "skipped"; what can run without one does: NVRTC compiles every kernel for every architecture. */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_CUDA_DLOPEN
#ifndef TEST_HEADER
#define TEST_HEADER "../tokenskip.h"
#endif
#include TEST_HEADER
#include "random_model.h"
#include "select.h"

static void *room(size_t size) {
    void *block = malloc(size ? size : 1);
    if (!block) exit(2);
    memset(block, 0x7f, size);
    return block;
}

/* ---- models: all ways through the layers, by head size (64 and 128 have kernels of their own), and by widths that are
   no multiple of anything */

static const shape shapes[] = {
    {"mha 64", 256, 3, 4, 4, 704, 1000, 0, 0, 0, 1},   {"gqa 128", 512, 3, 4, 2, 1040, 2051, 1, 0, 0, 2},
    {"gqa 32", 192, 3, 6, 3, 200, 515, 1, 1, 0, 1},    {"odd", 78, 3, 3, 1, 115, 301, 1, 1, 0, 1},
    {"wide head", 384, 3, 2, 1, 520, 640, 0, 0, 1, 1}, {"hd 16", 128, 3, 8, 2, 264, 999, 0, 1, 0, 3},
};
/* For the parts: as small as the kernels of both sizes of heads have them, as racecheck takes its time. */
static const shape few_shapes[] = {{"few 64", 256, 2, 4, 4, 264, 300, 0, 0, 0, 1},
                                   {"few 128", 256, 2, 2, 1, 256, 310, 1, 0, 0, 1}};
enum {
    n_shapes = sizeof shapes / sizeof shapes[0],
    n_few_shapes = sizeof few_shapes / sizeof few_shapes[0],
    n_random_shapes = 8
};

static shape random_shape(int number) {
    static const int32_t head_dims[] = {64, 128, 64, 128, 32, 16, 8, 80, 96, 26, 256};
    static char names[n_random_shapes][24];
    shape s;
    int32_t head_dim = head_dims[random_below(11)], groups = 1 + random_below(head_dim > 100 ? 2 : 4);
    memset(&s, 0, sizeof s);
    snprintf(names[number], sizeof names[number], "random %d", number & 7);
    s.name = names[number];
    s.layers = 2;
    s.kv_heads = 1 + random_below(3);
    s.heads = s.kv_heads * groups;
    s.d = s.heads * head_dim;
    s.mlp = random_below(3) ? 8 * (4 + random_below(150)) : 30 + random_below(900);
    s.vocabulary = 50 + random_below(2000);
    s.qkv_bias = random_below(2), s.linear_bias = random_below(3) == 0, s.tied = random_below(4) == 0;
    s.head_gain = 1 + 3 * (float)random_below(2);
    return s;
}

/* ---- one pass, step by step, on any backend */

enum { max_rows = 400, usual_rows = 200, max_requests = 11, n_states = 2, n_steps = 96 };

typedef struct outcome {          /* what every operation left, as f32 */
    float *values[n_steps];
    size_t counts[n_steps];
    const char *names[n_steps];
    int n;
    tsk__prediction predictions[max_rows];
} outcome;

typedef struct plan {
    int32_t n, n_requests, tokens[max_rows], positions[max_rows], requests[max_rows], slots[max_rows], active[max_rows],
        flags[max_rows], visible[max_rows];
    int32_t lengths[max_requests], index[max_rows], n_head;
    int masked, compacted;
    tsk__draw draws[max_rows];
} plan;

static void keep(outcome *o, tsk__stream *s, const char *name, const void *from, size_t count) {
    o->values[o->n] = (float *)room(count * sizeof(float));
    o->counts[o->n] = count;
    o->names[o->n] = name;
    s->backend->ops->download(s, o->values[o->n], from, count);
    o->n++;
}

/* Bytes out of the backend's memory, after a wait. */
static void get_bytes(const tsk__stream *s, void *to, const void *from, size_t size) {
    if (s->backend->ops == &tsk__cuda_backend_ops) {
        tsk__cuda_backend *b = tsk__cuda_backend_of(s->backend);
        tsk__cuda_enter(b);
        if (b->api.cuMemcpyDtoHAsync_v2(to, tsk__cuda_address(from), size, NULL) != CUDA_SUCCESS ||
            b->api.cuStreamSynchronize(NULL) != CUDA_SUCCESS)
            exit(2);
        tsk__cuda_leave(b);
    } else memcpy(to, from, size);
}

/* A first pass fills the caches; the pass of the plan follows. */
static void run_pass(const tsk_model *model, const plan *p, outcome *o, int recorded) {
    tsk__backend *b = model->backend;
    const tsk__backend_ops *ops = b->ops;
    const tsk_model_config *c = b->config;
    tsk__stream *s = NULL;
    tsk__kv caches[max_requests];
    tsk__rows rows;
    tsk_error error;
    size_t d = (size_t)c->d_model, q = (size_t)c->n_heads * (size_t)c->head_dim, n = (size_t)p->n, e = b->element_size;
    int32_t first[4][max_requests * max_rows], active[max_rows], n_active = 0, i, l, r, round;
    memset(&error, 0, sizeof error);
    memset(caches, 0, sizeof caches);
    memset(o, 0, sizeof *o);
    must(ops->stream_create(b, max_rows, n_states, &s, &error), &error);
    for (r = 0; r < p->n_requests; r++) {
        size_t size = (size_t)c->n_layers * (size_t)c->n_kv_heads * (size_t)p->lengths[r] * (size_t)c->head_dim * e,
               states = 2 * n_states * max_rows * d * e;
        caches[r].k = ops->allocate(b, size), caches[r].v = ops->allocate(b, size);
        caches[r].states = ops->allocate(b, states), caches[r].outputs = ops->allocate(b, max_rows * d * e);
        caches[r].length = caches[r].capacity = p->lengths[r];
        caches[r].n_slots = max_rows, caches[r].n_states = n_states, caches[r].has_reference = 1;
    }
    for (r = 0; r < p->n_requests; r++) {  /* every request's cache by a pass of its own */
        for (i = 0; i < p->lengths[r]; i++) first[0][i] = (i * 7 + r) % c->vocab_size, first[1][i] = i, first[2][i] = 0;
        memset(&rows, 0, sizeof rows);
        rows.n = p->lengths[r], rows.tokens = first[0], rows.positions = first[1], rows.requests = first[2],
        rows.slots = first[1];
        rows.flags = first[3], rows.caches = &caches[r], rows.n_requests = 1;
        for (i = 0; i < rows.n; i++) first[3][i] = TSK__ROW_REMEMBER | TSK__ROW_OUTPUT;
        ops->begin(s, &rows);
        ops->embed(s);
        for (l = 0; l < c->n_layers; l++) {
            ops->qkv(s, l, NULL), ops->attend(s, l), ops->attn_out(s, l, NULL), ops->gate_up(s, l, NULL),
                ops->down(s, l, NULL);
            if (l < n_states) ops->compare(s, l);
        }
        ops->keep(s);
        must(ops->wait(s, &error), &error);
    }
    memset(&rows, 0, sizeof rows);
    rows.n = p->n, rows.tokens = p->tokens, rows.positions = p->positions, rows.requests = p->requests,
    rows.slots = p->slots, rows.flags = p->flags, rows.visible = p->visible, rows.caches = caches,
    rows.n_requests = p->n_requests;
    for (round = 0; round < (recorded ? 3 : 1); round++) {
        ops->begin(s, &rows);
        if (recorded && ops->replay && ops->replay(s, 5)) continue;
        if (recorded && ops->record) ops->record(s, 5);
        ops->embed(s);
        if (!recorded) keep(o, s, "embed", s->x, n * d);
        for (l = 0; l < c->n_layers - 1; l++) {
            ops->qkv(s, l, NULL);
            if (!recorded) keep(o, s, "qkv", s->q, n * q);
            ops->attend(s, l);
            if (!recorded) keep(o, s, "attend", s->attention, n * q);
            ops->attn_out(s, l, NULL);
            if (!recorded) keep(o, s, "attn_out", s->x, n * d);
            ops->gate_up(s, l, NULL);
            if (!recorded) keep(o, s, "gate_up", s->hidden, n * (size_t)c->mlp_hidden_size);
            ops->down(s, l, NULL);
            if (!recorded) keep(o, s, "down", s->x, n * d);
            if (l < n_states) ops->compare(s, l);
        }
        ops->decide(s, n_states);
        if (recorded && ops->finish) ops->finish(s);
    }
    must(ops->wait(s, &error), &error);
    for (l = 0; l < n_states; l++) {
        o->values[o->n] = (float *)room(n * sizeof(float));
        memcpy(o->values[o->n], s->cosines + (size_t)l * max_rows, n * sizeof(float));
        o->counts[o->n] = n;
        o->names[o->n++] = "compare";
    }
    for (i = 0; i < p->n; i++)
        if (p->flags[i] & TSK__ROW_SKIPS) CHECK(s->skipped[i] == 1);
    if ((p->masked && ops->masked_rows < p->n) || p->compacted) {  /* (masked by decide, where it does) */
        for (i = 0; i < p->n; i++)
            if (p->active[i]) active[n_active++] = i;
        ops->compact(s, n_active, active);
    }
    l = c->n_layers - 1;
    ops->qkv(s, l, NULL), ops->attend(s, l), ops->attn_out(s, l, NULL), ops->gate_up(s, l, NULL), ops->down(s, l, NULL);
    if ((p->masked && ops->masked_rows < p->n) || p->compacted) ops->expand(s);
    ops->keep(s);
    keep(o, s, "last", s->x, n * d);
    for (r = 0; r < p->n_requests; r++) {
        size_t size = (size_t)c->n_layers * (size_t)c->n_kv_heads * (size_t)p->lengths[r] * (size_t)c->head_dim;
        keep(o, s, "K", caches[r].k, size);
        keep(o, s, "V", caches[r].v, size);
        keep(o, s, "states", caches[r].states, (size_t)p->lengths[r] * d);
    }
    ops->head(s, p->n_head, p->index, p->draws);
    must(ops->wait(s, &error), &error);
    get_bytes(s, o->predictions, s->predictions, (size_t)p->n_head * sizeof *o->predictions);
    {
        size_t v = (size_t)c->embedding_size, m = (size_t)p->n_head;
        o->values[o->n] = (float *)room(m * d * sizeof(float)),
        o->values[o->n + 1] = (float *)room(m * v * sizeof(float));
        o->counts[o->n] = m * d, o->counts[o->n + 1] = m * v;
        o->names[o->n] = "final norm", o->names[o->n + 1] = "logits";
        ops->logits(s, p->n_head, p->index, o->values[o->n], o->values[o->n + 1]);
        o->n += 2;
    }
    must(ops->wait(s, &error), &error);
    for (r = 0; r < p->n_requests; r++)
        ops->release(b, caches[r].k), ops->release(b, caches[r].v), ops->release(b, caches[r].states),
            ops->release(b, caches[r].outputs);
    ops->stream_destroy(s);
}

static void free_outcome(outcome *o) {
    int i;
    for (i = 0; i < o->n; i++) free(o->values[i]);
}

static double squares_of(const float *a, const float *b, size_t n) {
    double sum = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        double delta = (double)a[i] - (b ? (double)b[i] : 0.0);
        sum += delta * delta;
    }
    return sum;
}

static double error_of(const float *reference, const float *got, size_t n) {
    double size = squares_of(reference, NULL, n);
    return sqrt(squares_of(got, reference, n) / (size > 0 ? size : 1));
}

static double rms_difference(const float *reference, const float *got, size_t n) {
    return sqrt(squares_of(got, reference, n) / (double)(n ? n : 1));
}

/* Rows of request r: what `runs` says, or as many for each. */
static int32_t share_of(const int32_t *runs, int32_t n, int32_t n_requests, int32_t r, int32_t done) {
    return runs ? runs[r] : r + 1 == n_requests ? n - done : n / n_requests;
}

/* What keep is to do with a row. */
static int32_t random_flags(void) {
    int32_t flags = random_below(2) ? TSK__ROW_OUTPUT : 0;
    if (random_below(2)) flags |= random_below(2) ? TSK__ROW_REMEMBER : TSK__ROW_REMEMBER | TSK__ROW_IF_RAN;
    return flags;
}

/* How much of its request is visible to a row: all; the first two thirds; or up to the end of the row's own block. */
static int32_t visible_to(int32_t length, int32_t request, int32_t n, int32_t position) {
    const int32_t block = 1 + n % 19, end = (position / block + 1) * block;
    if ((n + request) % 3 == 0) return length;
    if ((n + request) % 3 == 1) return (2 * length + 2) / 3;
    return end < length ? end : length;
}

static plan plan_of(const tsk_model_config *c, int32_t n, int32_t n_requests, const int32_t *runs, int masked,
                    int compacted, float temperature) {
    plan p;
    int32_t i, r, done = 0;
    memset(&p, 0, sizeof p);
    p.n = n, p.n_requests = n_requests, p.masked = masked, p.compacted = compacted;
    for (r = 0; r < n_requests; r++) {
        int32_t share = share_of(runs, n, n_requests, r, done), at;
        p.lengths[r] = share + random_below((n > usual_rows ? max_rows : usual_rows) - share + 1);
        at = random_below(p.lengths[r] - share + 1);
        for (i = 0; i < share; i++, done++)
            p.tokens[done] = random_below(c->vocab_size), p.positions[done] = at + i, p.requests[done] = r,
            p.slots[done] = at + i, p.visible[done] = visible_to(p.lengths[r], r, n, at + i);
    }
    for (i = 0; i < n; i++) p.active[i] = random_below(3) > 0, p.flags[i] = random_flags();
    p.active[n - 1] = 1;
    for (i = 0; i < n && (masked || compacted); i++) p.flags[i] |= p.active[i] ? 0 : TSK__ROW_SKIPS;
    for (i = 0; i < n; i += 1 + random_below(2)) {
        tsk__draw *draw = &p.draws[p.n_head];
        p.index[p.n_head++] = n - 1 - i;
        draw->temperature = temperature, draw->mask_token_id = c->mask_token_id, draw->seed = 99,
        draw->position = (uint32_t)i, draw->pass = 3;
    }
    return p;
}

static double worst_f32, worst_bf16;

/* Every operation's result, one after another, so that errors add up along the layers: the bound is for the whole. */
static void compare_outcomes(const shape *s, const plan *p, const outcome *reference, const outcome *got, double bound,
                             int is_bf16) {
    int i, wrong = 0;
    CHECK_INT(reference->n, got->n);
    for (i = 0; i < reference->n; i++) {
        /* cosines may be near 0: what counts of them is the difference */
        int is_cosine = strcmp(reference->names[i], "compare") == 0;
        double error = is_cosine ? rms_difference(reference->values[i], got->values[i], reference->counts[i])
                                 : error_of(reference->values[i], got->values[i], reference->counts[i]);
        double *worst = is_bf16 ? &worst_bf16 : &worst_f32;
        if (!(error <= bound))
            printf("%s, %s of %d rows, %d requests%s%s: %s (step %d) is off by %g\n", s->name, is_bf16 ? "bf16" : "f32",
                   (int)p->n, (int)p->n_requests, p->masked ? ", masked" : "", p->compacted ? ", compacted" : "",
                   reference->names[i], i, error);
        CHECK(error <= bound);
        if (error > *worst) *worst = error;
    }
    for (i = 0; i < p->n_head; i++) {
        const tsk__prediction *a = &reference->predictions[i], *b = &got->predictions[i];
        if (a->id != b->id) wrong++;
        else if (!is_bf16)
            CHECK(fabsf(a->confidence - b->confidence) <= 1e-4f * (1 + a->confidence) &&
                  fabsf(a->logit - b->logit) < 1e-3f && fabsf(a->log_sum_exp - b->log_sum_exp) < 1e-3f &&
                  fabsf(a->entropy - b->entropy) < 1e-3f);
    }
    if (wrong > (is_bf16 ? p->n_head / 4 + 1 : 0))
        printf("%s, %s of %d rows: %d of %d ids differ\n", s->name, is_bf16 ? "bf16" : "f32", (int)p->n, wrong,
               (int)p->n_head);
    CHECK(wrong <= (is_bf16 ? p->n_head / 4 + 1 : 0));
}

static void test_passes(const shape *s, tsk_model *const models[3]) {
    static const struct { int32_t n, requests; int masked, compacted; float temperature;
    } cases[] = {{32, 1, 0, 0, 0},  {17, 1, 1, 0, 0.7f}, {64, 2, 1, 0, 0},  {50, 3, 0, 0, 1},
                 {1, 1, 0, 0, 0},   {130, 1, 0, 1, 0},   {150, 3, 0, 0, 0}, {40, 1, 0, 0, 0},
                 {128, 4, 0, 0, 0}, {99, 2, 1, 0, 0.6f}, {120, 1, 0, 1, 0}};
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        plan p = plan_of(models[0]->backend->config, cases[i].n, cases[i].requests, NULL, cases[i].masked,
                         cases[i].compacted, cases[i].temperature);
        outcome reference, got, again;
        int j;
        run_pass(models[0], &p, &reference, 0);
        run_pass(models[1], &p, &got, 0);
        compare_outcomes(s, &p, &reference, &got, 1e-5, 0);
        free_outcome(&got);
        run_pass(models[2], &p, &got, 0);
        compare_outcomes(s, &p, &reference, &got, 3e-2, 1);
        run_pass(models[2], &p, &again, 1);  /* recorded (if of more than 64 rows when it comes again), and replayed:
                                                the same bits */
        for (j = 0; j < again.n; j++)
            CHECK(memcmp(again.values[again.n - 1 - j], got.values[got.n - 1 - j],
                         again.counts[again.n - 1 - j] * sizeof(float)) == 0);
        CHECK(memcmp(again.predictions, got.predictions, (size_t)p.n_head * sizeof *got.predictions) == 0);
        free_outcome(&reference), free_outcome(&got), free_outcome(&again);
    }
}

/* ---- every operation by itself: fresh random inputs, the same on both sides and of the activations' type; outputs are
   NaN before it, and so are all rows and cached positions that do not count */

/* What a case is: rows, any positions in order of any requests, some of them inactive; inputs. */
typedef struct trial {
    const tsk_model_config *c;
    plan p;
    int narrows;                   /* 0: all rows run; 1: inactive ones are masked where the backend can; 2: compacted
                                      away */
    int is_bf16;
    int32_t capacities[max_requests], ran[max_rows], n_ran;
    float *x, *q, *attention, *hidden;                 /* inputs, as the operations' activations */
    float *k[max_requests], *v[max_requests];          /* [n_layers, n_kv_heads, capacity, head_dim] */
    float *states[max_requests], *outputs[max_requests];
} trial;

/* What an operation left: compared, unless exact, by the norm of the difference. */
typedef struct result {
    const char *name;
    float *values;
    size_t count;
    double bound;                  /* 0: every bit */
} result;
typedef struct results { result all[n_steps]; int n; } results;

typedef struct side {
    tsk__backend *b;
    tsk__stream *s;
    tsk__kv caches[max_requests];
    void *canvas[max_requests], *last[max_requests];           /* [max_rows] ids, predictions */
    void *norm, *q, *k, *v, *k_rope, *gate, *up, *projection;  /* what captures point at */
    const trial *t;
    int is_masked, is_compacted;   /* how this backend narrows */
    results *out;
} side;

/* Of decide, over all trials: rows that it skipped by their cosines, and that it did not. */
static int n_skipped[2];

static uint16_t rounded_bits(float value) { return value == value ? tsk__bf16_from_float(value) : 0xffff; }

static float *random_values(size_t count, float scale, int is_bf16) {
    float *values = (float *)room(count * sizeof *values);
    size_t i;
    for (i = 0; i < count; i++) {
        values[i] = scale * random_normal();
        if (is_bf16) values[i] = tsk__float_from_bf16(tsk__bf16_from_float(values[i]));
    }
    return values;
}

/* Host values into the backend's memory. */
static void put(const side *a, void *to, const float *values, size_t count) {
    tsk_error error;
    memset(&error, 0, sizeof error);
    must(a->b->ops->wait(a->s, &error), &error);
    if (a->b->ops == &tsk__cuda_backend_ops) {
        tsk__cuda_backend *b = tsk__cuda_backend_of(a->b);
        const void *from = values;
        uint16_t *bits = NULL;
        size_t i;
        if (a->b->element_size == 2) {
            from = bits = (uint16_t *)room(count * sizeof *bits);
            for (i = 0; i < count; i++) bits[i] = rounded_bits(values[i]);
        }
        tsk__cuda_enter(b);
        if (b->api.cuStreamSynchronize(tsk__cuda_stream_of(a->s)->stream) != CUDA_SUCCESS)
            exit(2); /* it clears its memory when it is made */
        if (b->api.cuMemcpyHtoDAsync_v2(tsk__cuda_address(to), from, count * a->b->element_size, NULL) !=
                CUDA_SUCCESS ||
            b->api.cuStreamSynchronize(NULL) != CUDA_SUCCESS)
            exit(2);
        tsk__cuda_leave(b);
        free(bits);
    } else memcpy(to, values, count * sizeof *values);
}

static void poison(const side *a, void *to, size_t count) {
    float *nan = (float *)room(count * sizeof *nan);
    memset(nan, 0xff, count * sizeof *nan);
    put(a, to, nan, count);
    free(nan);
}

static float *get(const side *a, const void *from, size_t count) {
    float *values = (float *)room(count * sizeof *values);
    a->b->ops->download(a->s, values, from, count);
    return values;
}

static size_t q_width(const tsk_model_config *c) { return (size_t)c->n_heads * (size_t)c->head_dim; }
static size_t kv_width(const tsk_model_config *c) { return (size_t)c->n_kv_heads * (size_t)c->head_dim; }
static size_t cache_size(const trial *t, int32_t r) {
    return (size_t)t->c->n_layers * kv_width(t->c) * (size_t)t->capacities[r];
}

static void note_result(side *a, const char *name, float *values, size_t count, double bound) {
    result *r = &a->out->all[a->out->n++];
    if (a->out->n > n_steps) exit(2);
    r->name = name, r->values = values, r->count = count, r->bound = bound;
}

static double bound_of(const side *a) { return a->t->is_bf16 ? 1e-2 : 1e-5; }

/* The rows that ran, of [n, width]; compacted, they are the first. */
static void keep_rows(side *a, const char *name, const void *from, size_t width, double bound) {
    const trial *t = a->t;
    int32_t i;
    size_t size = width * sizeof(float);
    float *all = get(a, from, (size_t)t->p.n * width), *kept = (float *)room((size_t)t->n_ran * size);
    for (i = 0; i < t->n_ran; i++)
        memcpy(kept + (size_t)i * width, all + (size_t)(a->is_compacted ? i : t->ran[i]) * width, size);
    free(all);
    note_result(a, name, kept, (size_t)t->n_ran * width, bound);
}

/* Inputs [n, width] to where the rows that run look for them. */
static void put_rows(const side *a, void *to, const float *values, size_t width) {
    const trial *t = a->t;
    float *rows = (float *)room((size_t)max_rows * width * sizeof *rows);
    int32_t i;
    memset(rows, 0xff, (size_t)max_rows * width * sizeof *rows);
    for (i = 0; i < t->n_ran; i++)
        memcpy(rows + (size_t)(a->is_compacted ? i : t->ran[i]) * width, values + (size_t)t->ran[i] * width,
               width * sizeof *rows);
    put(a, to, rows, (size_t)max_rows * width);
    free(rows);
}

/* The rows that did not run are what they were. */
static void check_others(const side *a, const void *from, const float *before, size_t width, const char *name) {
    const trial *t = a->t;
    int32_t i, changed = 0;
    float *all;
    if (!a->is_masked) return;
    all = get(a, from, (size_t)t->p.n * width);
    for (i = 0; i < t->p.n; i++)
        changed +=
            !t->p.active[i] && memcmp(all + (size_t)i * width, before + (size_t)i * width, width * sizeof(float)) != 0;
    if (changed) printf("%s changed %d rows that were masked\n", name, (int)changed);
    CHECK_INT(changed, 0);
    free(all);
}

/* The cache after qkv: what was written, by layer, head and position of the rows that ran; and that nothing else
   was. */
static void keep_cache(side *a, const char *name, int32_t layer, int is_v) {
    const trial *t = a->t;
    size_t hd = (size_t)t->c->head_dim, heads = (size_t)t->c->n_kv_heads, h, used = 0;
    float *kept = (float *)room((size_t)t->n_ran * kv_width(t->c) * sizeof(float));
    int32_t r, i, changed = 0;
    for (r = 0; r < t->p.n_requests; r++) {
        size_t capacity = (size_t)t->capacities[r], vectors = cache_size(t, r) / hd, at;
        float *all = get(a, is_v ? a->caches[r].v : a->caches[r].k, vectors * hd);
        const float *before = is_v ? t->v[r] : t->k[r];
        char *written = (char *)room(vectors);
        memset(written, 0, vectors);
        for (i = 0; i < t->n_ran; i++)
            for (h = 0; h < heads && t->p.requests[t->ran[i]] == r; h++, used++) {
                at = ((size_t)layer * heads + h) * capacity + (size_t)t->p.positions[t->ran[i]];
                memcpy(kept + used * hd, all + at * hd, hd * sizeof(float));
                written[at] = 1;
            }
        for (at = 0; at < vectors; at++) /* (a NaN is a NaN, whatever its bits) */
            changed += !written[at] && (before[at * hd] == before[at * hd]
                                            ? memcmp(all + at * hd, before + at * hd, hd * sizeof(float)) != 0
                                            : all[at * hd] == all[at * hd]);
        free(all), free(written);
    }
    CHECK_INT(changed, 0);
    note_result(a, name, kept, used * hd, bound_of(a));
}

static void put_caches(const side *a) {
    int32_t r;
    for (r = 0; r < a->t->p.n_requests; r++) {
        put(a, a->caches[r].k, a->t->k[r], cache_size(a->t, r));
        put(a, a->caches[r].v, a->t->v[r], cache_size(a->t, r));
    }
}

static void put_states(const side *a) {
    int32_t r;
    size_t d = (size_t)a->t->c->d_model;
    for (r = 0; r < a->t->p.n_requests; r++) {
        put(a, a->caches[r].states, a->t->states[r], 2 * n_states * (size_t)max_rows * d);
        put(a, a->caches[r].outputs, a->t->outputs[r], (size_t)max_rows * d);
    }
}

/* A pass of the trial's rows, whose x is the trial's; flags may be NULL. Then narrowed. */
static void begin_flagged(const side *a, int narrow, const int32_t *flags) {
    const trial *t = a->t;
    const tsk__backend_ops *ops = a->b->ops;
    size_t d = (size_t)t->c->d_model;
    tsk__rows rows;
    memset(&rows, 0, sizeof rows);
    rows.n = t->p.n, rows.tokens = t->p.tokens, rows.positions = t->p.positions, rows.requests = t->p.requests,
    rows.slots = t->p.slots, rows.flags = flags, rows.visible = t->p.visible;
    rows.caches = a->caches, rows.n_requests = t->p.n_requests;
    ops->begin(a->s, &rows);
    poison(a, a->s->x, (size_t)max_rows * d);
    put(a, a->s->x, t->x, (size_t)t->p.n * d);
    if (narrow && a->is_masked) ops->mask(a->s, t->p.active);
    if (narrow && a->is_compacted) ops->compact(a->s, t->n_ran, t->ran);
}
static void begin(const side *a, int narrow) { begin_flagged(a, narrow, NULL); }

static tsk__captures captures_of(const side *a) {
    const tsk_model_config *c = a->t->c;
    tsk__captures captures;
    poison(a, a->norm, max_rows * (size_t)c->d_model), poison(a, a->projection, max_rows * (size_t)c->d_model);
    poison(a, a->q, max_rows * q_width(c)), poison(a, a->k, max_rows * kv_width(c)),
        poison(a, a->v, max_rows * kv_width(c)), poison(a, a->k_rope, max_rows * kv_width(c));
    poison(a, a->gate, max_rows * (size_t)c->mlp_hidden_size), poison(a, a->up, max_rows * (size_t)c->mlp_hidden_size);
    captures.norm = a->norm, captures.q = a->q, captures.k = a->k, captures.v = a->v, captures.k_rope = a->k_rope,
    captures.gate = a->gate, captures.up = a->up, captures.projection = a->projection;
    return captures;
}

static void keep_linear(side *a, int32_t layer, int captured) {
    const trial *t = a->t;
    const tsk_model_config *c = t->c;
    const tsk__backend_ops *ops = a->b->ops;
    size_t d = (size_t)c->d_model, mlp = (size_t)c->mlp_hidden_size;
    double bound = bound_of(a);
    tsk__captures captures = captures_of(a);
    put_caches(a);
    begin(a, 1);
    poison(a, a->s->q, max_rows * q_width(c));
    ops->qkv(a->s, layer, captured ? &captures : NULL);
    keep_rows(a, "qkv: q", a->s->q, q_width(c), bound);
    keep_cache(a, "qkv: K", layer, 0);
    keep_cache(a, "qkv: V", layer, 1);
    if (captured) {
        keep_rows(a, "attn_norm", a->norm, d, bound);
        keep_rows(a, "q_proj", a->q, q_width(c), bound), keep_rows(a, "k_proj", a->k, kv_width(c), bound),
            keep_rows(a, "v_proj", a->v, kv_width(c), bound);
        keep_rows(a, "k after RoPE", a->k_rope, kv_width(c), bound);
    }
    put_caches(a);
    begin(a, 1);
    put_rows(a, a->s->q, t->q, q_width(c));
    poison(a, a->s->attention, max_rows * q_width(c));
    ops->attend(a->s, layer);
    keep_rows(a, "attend", a->s->attention, q_width(c), bound);
    begin(a, 1);
    put_rows(a, a->s->attention, t->attention, q_width(c));
    ops->attn_out(a->s, layer, captured ? &captures : NULL);
    keep_rows(a, "attn_out", a->s->x, d, bound);
    check_others(a, a->s->x, t->x, d, "attn_out");
    if (captured) keep_rows(a, "attn_out alone", a->projection, d, bound);
    begin(a, 1);
    poison(a, a->s->hidden, max_rows * mlp);
    ops->gate_up(a->s, layer, captured ? &captures : NULL);
    keep_rows(a, "gate_up", a->s->hidden, mlp, bound);
    if (captured)
        keep_rows(a, "ff_norm", a->norm, d, bound), keep_rows(a, "ff_proj", a->gate, mlp, bound),
            keep_rows(a, "up_proj", a->up, mlp, bound);
    begin(a, 1);
    put_rows(a, a->s->hidden, t->hidden, mlp);
    if (captured) poison(a, a->projection, max_rows * d);
    ops->down(a->s, layer, captured ? &captures : NULL);
    keep_rows(a, "down", a->s->x, d, bound);
    check_others(a, a->s->x, t->x, d, "down");
    if (captured) keep_rows(a, "ff_out alone", a->projection, d, bound);
    if (t->narrows == 2) {  /* the others are as they were, these as down left them */
        ops->expand(a->s);
        note_result(a, "expand", get(a, a->s->x, (size_t)t->p.n * d), (size_t)t->p.n * d, bound);
    }
}

/* x's rows, or what a slide left of them, slid: everything in elements. */
static void slide(side *a, int32_t planes, size_t pitch, size_t to, size_t from, size_t size) {
    size_t e = a->b->element_size, count = (size_t)a->t->p.n * (size_t)a->t->c->d_model;
    a->b->ops->slide(a->s, a->norm, planes, pitch * e, to * e, from * e, size * e);
    note_result(a, "slide", get(a, a->norm, count), count, 0);
}

/* The ids of a canvas in the backend are those of the list: every other request has one. */
static void keep_embedded(side *a) {
    const trial *t = a->t;
    size_t d = (size_t)t->c->d_model, n = (size_t)t->p.n;
    int32_t canvas[max_rows], i, r;
    for (r = 0; r < t->p.n_requests; r += 2) {
        for (i = 0; i < max_rows; i++) canvas[i] = 0;
        for (i = 0; i < t->p.n; i++)
            if (t->p.requests[i] == r) canvas[t->p.positions[i]] = t->p.tokens[i];
        a->caches[r].tokens = a->canvas[r];
        a->b->ops->upload(a->s, a->canvas[r], canvas, (size_t)t->p.lengths[r] * sizeof *canvas);
    }
    begin(a, 0);
    poison(a, a->s->x, max_rows * d);
    a->b->ops->embed(a->s);
    note_result(a, "embed a canvas", get(a, a->s->x, n * d), n * d, 0);
    for (r = 0; r < t->p.n_requests; r++) a->caches[r].tokens = NULL;
}

/* What keep does of its flags, some rows being skipped in any case. */
static void keep_kept(side *a) {
    const trial *t = a->t;
    const tsk__backend_ops *ops = a->b->ops;
    size_t d = (size_t)t->c->d_model, n = (size_t)t->p.n;
    int32_t flags[max_rows], i, r;
    for (i = 0; i < t->p.n; i++) flags[i] = t->p.flags[i] | (t->p.active[i] ? 0 : TSK__ROW_SKIPS);
    put_states(a);
    begin_flagged(a, 0, flags);
    for (i = 0; i < n_states; i++) ops->compare(a->s, i);
    ops->decide(a->s, n_states);
    ops->keep(a->s);
    for (r = 0; r < t->p.n_requests; r++)
        note_result(a, "keep: states", get(a, a->caches[r].states, 2 * n_states * max_rows * d),
                    2 * n_states * max_rows * d, 0);
    for (r = 0; r < t->p.n_requests; r++)
        note_result(a, "keep: outputs", get(a, a->caches[r].outputs, max_rows * d), max_rows * d, 0);
    note_result(a, "keep: x", get(a, a->s->x, n * d), n * d, 0);
}

/* The decision is what the rule says of the backend's own cosines; rows that it skips are masked, where rows are.
   Requests that compare another number of states are left alone. */
static void check_decision(const side *a) {
    const trial *t = a->t;
    const tsk__backend_ops *ops = a->b->ops;
    size_t d = (size_t)t->c->d_model, at;
    tsk__stream *s = a->s;
    int32_t flags[max_rows], expected[max_rows], i, wrong = 0, written = 0;
    int masks = t->p.n <= ops->masked_rows;
    float *x;
    for (i = 0; i < t->p.n; i++) flags[i] = random_below(4) ? TSK__ROW_MAY_SKIP : random_below(2) ? TSK__ROW_SKIPS : 0;
    put_states(a);
    begin_flagged(a, 0, flags);
    for (i = 0; i < n_states; i++) ops->compare(s, i);
    must(ops->wait(s, NULL), NULL);
    for (i = 0; i < t->p.n; i++) {
        const tsk__kv *kv = &a->caches[t->p.requests[i]];
        expected[i] =
            flags[i] & TSK__ROW_SKIPS ? 1
            : flags[i] ? tsk__skip_similar(s->cosines + i, n_states, s->max_rows, kv->skip_threshold, kv->skip_outlier)
                       : -5;
        if (flags[i] & TSK__ROW_MAY_SKIP) n_skipped[expected[i]]++;
        s->skipped[i] = -5;
    }
    ops->decide(s, n_states - 1);
    must(ops->wait(s, NULL), NULL);
    for (i = 0; i < t->p.n; i++) wrong += s->skipped[i] != -5;
    ops->decide(s, n_states);
    must(ops->wait(s, NULL), NULL);
    for (i = 0; i < t->p.n; i++) wrong += s->skipped[i] != expected[i];
    poison(a, s->x, max_rows * d);
    ops->embed(s);
    x = get(a, s->x, (size_t)t->p.n * d);
    for (i = 0; i < t->p.n; i++) {
        int is_written = 0;
        for (at = 0; at < d; at++) is_written |= x[(size_t)i * d + at] == x[(size_t)i * d + at];
        written += is_written != !(masks && expected[i] == 1);
    }
    free(x);
    CHECK_INT(wrong, 0);
    CHECK_INT(written, 0);
}

/* Candidates of request r: most of its rows, in order; predicted by the head now, or, where it has no such row,
   earlier. */
static int32_t add_candidates(const trial *t, int32_t r, tsk__commit_candidate *candidates) {
    int32_t i, j, n = 0;
    for (i = 0; i < t->p.n; i++) {
        if (t->p.requests[i] != r || random_below(4) == 0) continue;
        candidates[n].position = t->p.positions[i];
        candidates[n].slot = (n * 7 + 5) % max_rows;
        candidates[n].head = -1;
        for (j = 0; j < t->p.n_head; j++)
            if (t->p.index[j] == i) candidates[n].head = j;
        n++;
    }
    return n;
}

static tsk__commit_rule random_rule(int32_t r, int32_t first, int32_t n) {
    tsk__commit_rule o;
    memset(&o, 0, sizeof o);
    o.request = r, o.first = first, o.n = n;
    o.commits = random_below(6) > 0, o.rule.transfer = (tsk_transfer)random_below(TSK_TRANSFER_LEAP + 1);
    o.rule.quota = 1 + random_below(n + 2);
    o.rule.threshold = (float)random_below(9) / 8, o.rule.factor = 0.25f + (float)random_below(8);
    o.rule.frechet = (float)random_below(9) / 16, o.rule.entropy_bound = (float)random_below(20);
    o.rule.local_leap = (float)random_below(9) / 8, o.rule.local_radius = random_below(9);
    o.is_random = random_below(4) == 0, o.pass = (uint32_t)random_below(100),
    o.seed = (uint64_t)random_below(1 << 20) << 20;
    return o;
}

/* After the head: what select leaves is what tsk_select says of the head's own predictions and of those kept in the
   slots, whose confidences are often the same. */
static void check_select(const side *a, const tsk__prediction *predictions) {
    const trial *t = a->t;
    tsk__stream *s = a->s;
    static tsk__prediction kept[max_requests][max_rows], left[max_rows];
    static int32_t canvas[max_requests][max_rows], canvas_left[max_rows];
    tsk__commit_candidate candidates[max_rows];
    tsk__commit_rule rules[max_requests];
    int32_t r, i, n = 0, wrong = 0;
    for (r = 0; r < t->p.n_requests; r++) {
        for (i = 0; i < max_rows; i++) {
            kept[r][i].id = 1 + random_below(t->c->embedding_size - 1),
            kept[r][i].confidence = (float)random_below(9) / 8, kept[r][i].entropy = (float)random_below(99) / 8;
            kept[r][i].logit = kept[r][i].log_sum_exp = 0;
            canvas[r][i] = -1 - i;
        }
        a->b->ops->upload(s, a->canvas[r], canvas[r], sizeof canvas[r]),
            a->b->ops->upload(s, a->last[r], kept[r], sizeof kept[r]);
        rules[r] = random_rule(r, n, add_candidates(t, r, candidates + n));
        n += rules[r].n;
    }
    for (i = 0; i < max_rows; i++) s->choices[i].id = -9;
    a->b->ops->select(s, t->p.n_requests, rules, n, candidates);
    must(a->b->ops->wait(s, NULL), NULL);
    for (r = 0; r < t->p.n_requests; r++) {
        const tsk__commit_rule *o = &rules[r];
        float confidences[max_rows], entropies[max_rows];
        int32_t positions[max_rows];
        uint8_t commits[max_rows];
        for (i = 0; i < o->n; i++) {
            const tsk__commit_candidate *c = &candidates[o->first + i];
            if (c->head >= 0) kept[r][c->slot] = predictions[c->head];
            confidences[i] = o->is_random ? (float)tsk__random_uniform(o->seed, 0, (uint32_t)c->position, o->pass, 1, 0)
                                          : kept[r][c->slot].confidence;
            entropies[i] = kept[r][c->slot].entropy, positions[i] = c->position;
        }
        memset(commits, 0, sizeof commits);
        if (o->commits) select_by(&o->rule, o->n, confidences, entropies, positions, commits);
        for (i = 0; i < o->n; i++) {
            const tsk__commit_candidate *c = &candidates[o->first + i];
            const tsk__choice *choice = &s->choices[o->first + i];
            wrong += choice->id != kept[r][c->slot].id ||
                     memcmp(&choice->confidence, &confidences[i], sizeof confidences[i]) != 0 ||
                     choice->entropy != entropies[i] || choice->is_committed != commits[i] ||
                     choice->log_sum_exp != kept[r][c->slot].log_sum_exp;
            if (commits[i]) canvas[r][c->position] = choice->id;
        }
        get_bytes(s, canvas_left, a->canvas[r], sizeof canvas_left), get_bytes(s, left, a->last[r], sizeof left);
        wrong += memcmp(canvas_left, canvas[r], sizeof canvas_left) != 0;
        wrong += memcmp(left, kept[r], sizeof left) != 0;
    }
    CHECK_INT(wrong, 0);
}

/* What only moves rows moves every bit. */
static void keep_moves(side *a) {
    const trial *t = a->t;
    const tsk__backend_ops *ops = a->b->ops;
    size_t d = (size_t)t->c->d_model, n = (size_t)t->p.n;
    int32_t i;
    float *cosines;
    begin(a, 0);
    poison(a, a->s->x, max_rows * d);
    ops->embed(a->s);
    note_result(a, "embed", get(a, a->s->x, n * d), n * d, 0);
    keep_embedded(a);
    put_states(a);
    begin(a, 1);
    for (i = 0; i < n_states * a->s->max_rows; i++) a->s->cosines[i] = -7;
    for (i = 0; i < n_states; i++) ops->compare(a->s, i);
    must(ops->wait(a->s, NULL), NULL);
    for (i = 0; i < n_states; i++) {
        int32_t j;
        cosines = (float *)room((size_t)t->n_ran * sizeof *cosines);
        for (j = 0; j < t->n_ran; j++) cosines[j] = a->s->cosines[i * a->s->max_rows + t->ran[j]];
        note_result(a, "compare", cosines, (size_t)t->n_ran, 1e-5);
        for (j = 0; j < t->p.n; j++)
            if (t->narrows && !t->p.active[j]) CHECK(a->s->cosines[i * a->s->max_rows + j] == -7);
    }
    keep_kept(a);
    check_decision(a);
    begin(a, 0);
    poison(a, a->norm, max_rows * d);
    ops->copy(a->s, a->norm, a->s->x, n * d * a->b->element_size);
    note_result(a, "copy", get(a, a->norm, n * d), n * d, 0);
    slide(a, (int32_t)n, d, d / 4, d / 2, d / 3);  /* rows: apart or overlapping, by whole pieces of 16 bytes or not */
    slide(a, (int32_t)n, d, 1, 3, d - 3);
    slide(a, (int32_t)n, d, 0, 8, d - 8);
    slide(a, 1, n * d, 2, 5, n * d - 5);          /* and all as one plane */
    slide(a, 1, n * d, 0, 8, n * d - 8);
}

static void run_side(side *a, tsk_model *model, const trial *t, results *out, tsk__prediction *predictions) {
    const tsk_model_config *c = t->c;
    const tsk__backend_ops *ops;
    size_t d = (size_t)c->d_model, mlp = (size_t)c->mlp_hidden_size, q = q_width(c), kv = kv_width(c), e,
           m = (size_t)t->p.n_head, v = (size_t)c->embedding_size;
    void **buffers[8];
    size_t widths[8];
    float *norm = (float *)room(m * d * sizeof *norm), *logits = (float *)room(m * v * sizeof *logits);
    int32_t r, i;
    tsk_error error;
    memset(&error, 0, sizeof error);
    memset(a, 0, sizeof *a);
    memset(out, 0, sizeof *out);
    a->b = model->backend, a->t = t, a->out = out;
    ops = a->b->ops;
    e = a->b->element_size;
    a->is_masked = t->narrows == 1 && ops->masked_rows >= t->p.n, a->is_compacted = t->narrows && !a->is_masked;
    must(ops->stream_create(a->b, max_rows, n_states, &a->s, &error), &error);
    buffers[0] = &a->norm, buffers[1] = &a->q, buffers[2] = &a->k, buffers[3] = &a->v, buffers[4] = &a->k_rope,
    buffers[5] = &a->gate, buffers[6] = &a->up, buffers[7] = &a->projection;
    widths[0] = widths[7] = d, widths[1] = q, widths[2] = widths[3] = widths[4] = kv, widths[5] = widths[6] = mlp;
    for (i = 0; i < 8; i++)
        if ((*buffers[i] = ops->allocate(a->b, max_rows * widths[i] * e)) == NULL) exit(2);
    for (r = 0; r < t->p.n_requests; r++) {
        tsk__kv *kv_of = &a->caches[r];
        kv_of->k = ops->allocate(a->b, cache_size(t, r) * e), kv_of->v = ops->allocate(a->b, cache_size(t, r) * e);
        kv_of->states = ops->allocate(a->b, 2 * n_states * max_rows * d * e),
        kv_of->outputs = ops->allocate(a->b, max_rows * d * e);
        a->canvas[r] = ops->allocate(a->b, max_rows * sizeof(int32_t)),
        a->last[r] = ops->allocate(a->b, max_rows * sizeof(tsk__prediction));
        if (!kv_of->k || !kv_of->v || !kv_of->states || !kv_of->outputs || !a->canvas[r] || !a->last[r]) exit(2);
        kv_of->skip_threshold = 0.3f, kv_of->skip_outlier = -0.03f;
        kv_of->length = t->p.lengths[r], kv_of->capacity = t->capacities[r], kv_of->n_slots = max_rows,
        kv_of->n_states = n_states, kv_of->has_reference = 1;
    }
    keep_linear(a, 1, 0);
    keep_linear(a, 0, 1);
    keep_moves(a);
    for (r = 0; r < t->p.n_requests; r++) a->caches[r].tokens = a->canvas[r], a->caches[r].predictions = a->last[r];
    begin(a, 0);
    memset(predictions, 0xf7, m * sizeof *predictions);
    ops->upload(a->s, a->s->predictions, predictions, m * sizeof *predictions);
    ops->head(a->s, t->p.n_head, t->p.index, t->p.draws);
    must(ops->wait(a->s, &error), &error);
    get_bytes(a->s, predictions, a->s->predictions, m * sizeof *predictions);
    check_select(a, predictions);
    ops->logits(a->s, t->p.n_head, t->p.index, norm, logits);
    must(ops->wait(a->s, &error), &error);
    note_result(a, "final norm", norm, m * d, bound_of(a));
    note_result(a, "logits", logits, m * v, bound_of(a));
    for (i = 0; i < 8; i++) ops->release(a->b, *buffers[i]);
    for (r = 0; r < t->p.n_requests; r++) {
        ops->release(a->b, a->caches[r].k), ops->release(a->b, a->caches[r].v), ops->release(a->b, a->caches[r].states),
            ops->release(a->b, a->caches[r].outputs);
        ops->release(a->b, a->canvas[r]), ops->release(a->b, a->last[r]);
    }
    ops->stream_destroy(a->s);
}

/* Rows of several requests at any positions, in order; caches with room behind their last position. */
static trial new_trial(const tsk_model_config *c, int32_t n, int32_t n_requests, const int32_t *runs, int narrows,
                       int is_bf16, float temperature) {
    trial t;
    size_t d = (size_t)c->d_model, at, hd = (size_t)c->head_dim;
    int32_t i, r, done = 0;
    memset(&t, 0, sizeof t);
    t.c = c;
    t.p = plan_of(c, n, n_requests, runs, 0, 0, temperature);
    t.narrows = narrows, t.is_bf16 = is_bf16;
    for (r = 0; r < n_requests; r++) {
        int32_t share = share_of(runs, n, n_requests, r, done), left = share, p;
        for (p = 0; left; p++)  /* every position is as likely as the next */
            if (random_below(t.p.lengths[r] - p) < left)
                t.p.positions[done] = p, t.p.slots[done] = (p * 7 + 3) % max_rows, done++, left--;
        t.capacities[r] = t.p.lengths[r] + random_below(20);
        t.k[r] = random_values(cache_size(&t, r), 1.5f, is_bf16), t.v[r] = random_values(cache_size(&t, r), 1, is_bf16);
        for (at = 0; at < cache_size(&t, r); at++)
            if ((int32_t)(at / hd % (size_t)t.capacities[r]) >= t.p.lengths[r]) t.k[r][at] = t.v[r][at] = NAN;
        t.states[r] = random_values(2 * n_states * max_rows * d, 1, is_bf16),
        t.outputs[r] = random_values(max_rows * d, 1, is_bf16);
    }
    for (i = 0; i < n; i++)
        if (!narrows || t.p.active[i]) t.ran[t.n_ran++] = i;
    t.x = random_values((size_t)n * d, 1 + (float)random_below(3), is_bf16),
    t.q = random_values((size_t)n * q_width(c), 1.5f, is_bf16);
    t.attention = random_values((size_t)n * q_width(c), 1, is_bf16),
    t.hidden = random_values((size_t)n * (size_t)c->mlp_hidden_size, 1, is_bf16);
    for (i = 0; i < n; i++) {  /* states like x, more or less, and one that is it */
        float likeness = (float)random_below(100) / 100, *state = t.states[t.p.requests[i]] + (size_t)t.p.slots[i] * d;
        for (at = 0; at < d; at++) {
            state[at] = i == 0 ? t.x[at] : t.x[(size_t)i * d + at] * likeness + state[at];
            if (is_bf16) state[at] = tsk__float_from_bf16(tsk__bf16_from_float(state[at]));
        }
    }
    return t;
}

static void free_trial(trial *t) {
    int32_t r;
    for (r = 0; r < t->p.n_requests; r++) free(t->k[r]), free(t->v[r]), free(t->states[r]), free(t->outputs[r]);
    free(t->x), free(t->q), free(t->attention), free(t->hidden);
}

static double score_of(const tsk__draw *draw, const float *logits, int32_t id) {
    uint32_t words[4];
    if (!(draw->temperature > 0)) return (double)logits[id];
    tsk__random_words(draw->seed, (uint32_t)id >> 2, draw->position, draw->pass, 0, words);
    return (double)logits[id] - (double)draw->temperature * log(-log(tsk__random_from_word(words[id & 3])));
}

/* The prediction is one that the reference's logits, each moved by less than `slack`, could give; its numbers are
   theirs. */
static int check_prediction(const tsk_model_config *c, const tsk__draw *draw, const float *logits,
                            const tsk__prediction *p, double slack) {
    double best = -1e300, max = -1e300, sum = 0, entropy = 0, lse;
    int32_t id;
    if (p->id < 0 || p->id >= c->embedding_size || p->id == draw->mask_token_id) return 0;
    for (id = 0; id < c->embedding_size; id++) {
        double score = score_of(draw, logits, id);
        if (id != draw->mask_token_id && score > best) best = score;
        if ((double)logits[id] > max) max = (double)logits[id];
    }
    for (id = 0; id < c->embedding_size; id++) sum += exp((double)logits[id] - max);
    lse = max + log(sum);
    for (id = 0; id < c->embedding_size; id++) entropy += (lse - (double)logits[id]) * exp((double)logits[id] - lse);
    return fabs((double)p->entropy - entropy) <= slack * (2 + entropy) + 1e-4 &&
           score_of(draw, logits, p->id) >= best - 2 * slack &&
           fabs((double)p->logit - (double)logits[p->id]) <= slack && fabs((double)p->log_sum_exp - lse) <= slack &&
           fabs((double)p->confidence - exp((double)p->logit - (double)p->log_sum_exp)) <= 1e-4;
}

static void test_trial(const shape *s, tsk_model *cpu, tsk_model *device, trial *t) {
    static const char *const narrowings[] = {"", ", masked", ", compacted"};
    static tsk__prediction expected[max_rows], predictions[max_rows];
    side sides[2];
    results reference, got;
    double *worst = t->is_bf16 ? &worst_bf16 : &worst_f32;
    const float *logits;
    int32_t i, wrong = 0;
    double largest = 0;
    run_side(&sides[0], cpu, t, &reference, expected);
    run_side(&sides[1], device, t, &got, predictions);
    CHECK_INT(reference.n, got.n);
    for (i = 0; i < reference.n && i < got.n; i++) {
        const result *a = &reference.all[i], *b = &got.all[i];
        int is_cosine = strcmp(a->name, "compare") == 0;  /* one may be near 0: what counts is the difference */
        double error = is_cosine      ? rms_difference(a->values, b->values, a->count)
                       : a->bound > 0 ? error_of(a->values, b->values, a->count)
                                      : memcmp(a->values, b->values, a->count * sizeof(float)) != 0;
        int good = a->count == b->count && error <= a->bound;
        if (!good)
            printf("%s, %s, %d rows, %d requests%s: %s is off by %g\n", s->name, t->is_bf16 ? "bf16" : "f32",
                   (int)t->p.n, (int)t->p.n_requests, narrowings[t->narrows], a->name, error);
        CHECK(good);
        if (error > *worst) *worst = error;
    }
    logits = reference.all[reference.n - 1].values;
    for (i = 0; i < (int32_t)reference.all[reference.n - 1].count; i++)
        largest = fabs((double)logits[i]) > largest ? fabs((double)logits[i]) : largest;
    for (i = 0; i < t->p.n_head; i++) {
        const float *row = logits + (size_t)i * (size_t)t->c->embedding_size;
        CHECK(check_prediction(t->c, &t->p.draws[i], row, &expected[i], 1e-4));
        wrong += !check_prediction(t->c, &t->p.draws[i], row, &predictions[i], t->is_bf16 ? 1e-2 * largest : 1e-4);
    }
    if (wrong)
        printf("%s, %s, %d rows: %d predictions of the head are not the logits'\n", s->name,
               t->is_bf16 ? "bf16" : "f32", (int)t->p.n, (int)wrong);
    CHECK_INT(wrong, 0);
    for (i = 0; i < reference.n; i++) free(reference.all[i].values);
    for (i = 0; i < got.n; i++) free(got.all[i].values);
}

/* The trial's operations once more: `operation`, or all of them, give the bits they gave first. Frees `first`. */
static void check_same(const shape *s, tsk_model *device, const trial *t, const results *first, const char *operation,
                       const char *what) {
    static tsk__prediction predictions[max_rows];
    side a;
    results again;
    int i, wrong = 0;
    run_side(&a, device, t, &again, predictions);
    for (i = 0; i < again.n; i++) {
        if (!operation || strcmp(again.all[i].name, operation) == 0)
            wrong += memcmp(first->all[i].values, again.all[i].values, again.all[i].count * sizeof(float)) != 0;
        free(first->all[i].values), free(again.all[i].values);
    }
    if (wrong) printf("%s: %s\n", s->name, what);
    CHECK_INT(wrong, 0);
}

/* What of the operations is run: all, or for compute-sanitizer a part of the bf16 ones on the few shapes: those on no
   more than 64 rows; on more rows, with attention's larger tiles, by cuBLAS or by the wide maps; and these with several
   tiles a block. */
typedef enum part { PART_ALL, PART_FEW, PART_TILES, PART_WIDE, PART_ROUNDS, PARTS } part;
static const char *const part_names[PARTS] = {"all", "few", "tiles", "wide", "rounds"};

/* Rows of `runs`, a request each, on a device of one multiprocessor; then, if `others`, of so many: right, and the
   same. */
static void test_runs(const shape *s, tsk_model *cpu, tsk_model *device, const int32_t *runs, int32_t n_runs,
                      int others) {
    static tsk__prediction predictions[max_rows];
    tsk__cuda_backend *b = tsk__cuda_backend_of(device->backend);
    int n_multiprocessors = b->n_multiprocessors;
    int32_t n = 0, r;
    side first;
    results got;
    trial t;
    for (r = 0; r < n_runs; r++) n += runs[r];
    t = new_trial(cpu->backend->config, n, n_runs, runs, 0, 1, 0);
    b->n_multiprocessors = 1;
    test_trial(s, cpu, device, &t);
    if (others) {
        run_side(&first, device, &t, &got, predictions);
        b->n_multiprocessors = others;
        test_trial(s, cpu, device, &t), check_same(s, device, &t, &got, "attend", "attention depends on its tiles");
    }
    b->n_multiprocessors = n_multiprocessors;
    free_trial(&t);
}

/* Attention's tiles of all sizes: as many short ones as multiprocessors, which have a kernel of their own; whole ones
   and halves, as a device of many multiprocessors has them. */
static void test_tiles(const shape *s, tsk_model *cpu, tsk_model *device, part which) {
    static const int32_t short_runs[] = {32, 20, 12}, some_runs[] = {70, 36, 22},
                         all_runs[] = {129, 32, 65, 1, 127, 33};
    tsk__cuda_backend *b = tsk__cuda_backend_of(device->backend);
    int has_wide = b->has_wide;
    if (which <= PART_FEW) test_runs(s, cpu, device, short_runs, 3, 3 * s->heads);
    if (which == PART_ALL) test_runs(s, cpu, device, all_runs, 6, b->n_multiprocessors);
    if (which == PART_TILES) b->has_wide = 0;
    if (which == PART_TILES || which == PART_WIDE) test_runs(s, cpu, device, some_runs, 3, 0);
    b->has_wide = has_wide;
}

/* The wide maps where every block makes several tiles, which takes more outputs than these models have: by fewer
   blocks. */
static void test_rounds(const shape *s, tsk_model *cpu, tsk_model *device, part which) {
    static tsk__prediction predictions[max_rows];
    tsk__cuda_backend *b = tsk__cuda_backend_of(device->backend);
    tsk__cuda_plan plans[TSK__CUDA_MAPS];
    side first;
    results got;
    trial t;
    int i;
    if (!b->has_wide) return;
    memcpy(plans, b->plans, sizeof plans);
    t = new_trial(cpu->backend->config, 115, 3, NULL, 0, 1, 0);
    if (which == PART_ALL) run_side(&first, device, &t, &got, predictions);
    for (i = 0; i < TSK__CUDA_MAPS; i++) b->plans[i].wide_blocks = TSK__CUDA_WIDE_CLUSTER;
    test_trial(s, cpu, device, &t);
    if (which == PART_ALL) check_same(s, device, &t, &got, NULL, "operations depend on the number of blocks");
    memcpy(b->plans, plans, sizeof plans);
    free_trial(&t);
}

/* The shortest canvases, each in a session of its own, whose rooms are then as small as they get: the last row's
   logits. */
static void test_short_canvases(const shape *s, tsk_model *cpu, tsk_model *device) {
    const tsk_model_config *c = cpu->backend->config;
    size_t v = (size_t)c->embedding_size;
    float *expected = (float *)room(v * sizeof *expected), *got = (float *)room(v * sizeof *got);
    tsk_generate_options o = tsk_generate_options_default();
    double bound = device->backend->element_size == 2 ? 5e-2 : 1e-5, error; /* (another row's are off by about 1) */
    int32_t tokens[6], n, i;
    for (i = 0; i < 6; i++) tokens[i] = random_below(c->vocab_size);
    for (n = 1; n <= 6; n++) {
        tsk_session *session = NULL;
        tsk_error why;
        memset(&why, 0, sizeof why);
        must(tsk_session_create(cpu, &o, &session, &why), &why);
        must(tsk_session_logits(session, tokens, n, n - 1, 1, expected, &why), &why);
        tsk_session_free(session);
        must(tsk_session_create(device, &o, &session, &why), &why);
        must(tsk_session_logits(session, tokens, n, n - 1, 1, got, &why), &why);
        tsk_session_free(session);
        error = error_of(expected, got, v);
        if (error > bound) printf("%s: the last logits of %d tokens are off by %g\n", s->name, (int)n, error);
        CHECK(error <= bound);
    }
    free(expected), free(got);
}

static void test_operations(const shape *s, tsk_device device, part which) {
    static const struct {
        int32_t n, requests;
        int narrows;
        float temperature;
    } cases[] = {{1, 1, 0, 0},     {32, 1, 0, 0.8f}, {64, 2, 1, 0},  {23, 1, 1, 0.5f},  {200, 1, 0, 0}, {150, 3, 2, 1},
                 {65, 1, 0, 0.3f}, {190, 11, 0, 0},  {128, 4, 2, 0}, {101, 2, 0, 0.7f}, {0, 0, 0, 0}};
    const size_t n_cases = sizeof cases / sizeof cases[0];
    const char *dir = random_model_folder(s);
    tsk_model *models[3];
    tsk_dtype dtypes[2] = {TSK_DTYPE_F32, TSK_DTYPE_BF16};
    size_t i;
    int j;
    models[0] = load_model(dir, TSK_DEVICE_CPU, TSK_DTYPE_F32);
    for (j = 0; j < 2; j++)
        models[1 + j] = load_model(dir, device, device == TSK_DEVICE_CPU ? TSK_DTYPE_F32 : dtypes[j]);
    for (i = which == PART_ALL ? 0 : which == PART_FEW ? 1 : n_cases; i < (which == PART_FEW ? 3 : n_cases); i++)
        for (j = which == PART_ALL ? 0 : 1; j < 2; j++) {
            int32_t n = cases[i].n ? cases[i].n : 2 + random_below(usual_rows - 2),
                    requests = cases[i].n ? cases[i].requests : 1 + random_below(n < 3 ? n : 3);
            trial t = new_trial(models[0]->backend->config, n, requests, NULL,
                                cases[i].n ? cases[i].narrows
                                : n > 64   ? 2
                                           : 1,
                                device == TSK_DEVICE_CUDA && j, cases[i].temperature);
            test_trial(s, models[0], models[1 + j], &t);
            free_trial(&t);
        }
    for (j = 1; j < 3 && which == PART_ALL; j++) test_short_canvases(s, models[0], models[j]);
    if (device == TSK_DEVICE_CUDA) test_tiles(s, models[0], models[2], which);
    if (device == TSK_DEVICE_CUDA && (which == PART_ALL || which == PART_ROUNDS))
        test_rounds(s, models[0], models[2], which);
    if (device == TSK_DEVICE_CUDA && s->layers > 2 && which == PART_ALL) test_passes(s, models);
    for (j = 0; j < 3; j++) tsk_model_free(models[j]);
}

/* ---- without a GPU */

/* The largest of the kernels' structs as nvcc lays it out, its size a multiple of the tensor maps' alignment. (Of all
   structs the compilers check the sizes.) */
static void test_layout(void) {
    CHECK_INT(sizeof(tsk__cuda_linear_args), 512);
    CHECK_INT(offsetof(tsk__cuda_linear_args, table), 320);
    CHECK_INT(offsetof(tsk__cuda_linear_args, end_pad), 464);
}

/* Stages and shared memory of the wide maps, from what kernels.cu says they need (a stage of N outputs: (N + 128) * 128
   bytes and two barriers; rows of sums: whole sixteens and 4), by hand: for LLaDA-8B on an H100, and where columns or
   memory are few. */
static void test_wide_memory(void) {
    static const struct { int32_t map, limit, k, fits, stages, shared; } cases[] = {
        {TSK__CUDA_MAP_QKV, 232448, 4096, 1, 7, 7 * 30720 + 512 + 7 * 16 + 24},
        {TSK__CUDA_MAP_OUT, 232448, 4096, 1, 6, 6 * 26624 + 128 * 84 * 4 + 512 + 6 * 16 + 24},
        {TSK__CUDA_MAP_GATE_UP, 232448, 4096, 1, 5, 5 * 43008 + 512 + 5 * 16 + 24},
        {TSK__CUDA_MAP_DOWN, 232448, 12288, 1, 6, 6 * 26624 + 128 * 84 * 4 + 512 + 6 * 16 + 24},
        {TSK__CUDA_MAP_HEAD, 232448, 4096, 1, 5, 5 * 44032 + 512 + 5 * 16 + 24},
        {TSK__CUDA_MAP_GATE_UP, 232448, 128, 1, 2, 128 * 212 * 4 + 512 + 2 * 16 + 24}, /* the sums are larger than two
                                                                                          stages */
        {TSK__CUDA_MAP_OUT, 232448, 256, 1, 2, 2 * 26624 + 128 * 84 * 4 + 512 + 2 * 16 + 24},
        {TSK__CUDA_MAP_OUT, 232448, 192, 0, 0, 0},    /* one of the two blocks of a tile has a single stage's columns */
        {TSK__CUDA_MAP_GATE_UP, 101376, 4096, 0, 0, 0}};
    tsk__cuda_backend b;
    size_t i;
    memset(&b, 0, sizeof b);
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tsk__cuda_plan cut;
        memset(&cut, 0, sizeof cut);
        cut.k = cases[i].k, b.shared_limit = cases[i].limit;
        if (!CHECK_INT(tsk__cuda_plan_wide_memory(&b, cases[i].map, &cut), cases[i].fits) || !cases[i].fits) continue;
        CHECK_INT(cut.wide_stages, cases[i].stages);
        CHECK_INT(cut.wide_shared, cases[i].shared);
    }
}

static void keep_log(void *user, const char *line) {
    char *log = (char *)user;
    size_t used = strlen(log);
    snprintf(log + used, 2000 - used, "%s\n", line);
}

static void test_compiles(void) {
    static const int archs[] = {80, 86, 89, 90, 100, 120};
    char why[160];
    tsk__cuda_backend b;
    tsk_model_options host = tsk_model_options_default();
    char log[2000] = "";
    size_t i;
    memset(&b, 0, sizeof b);
    host.log = keep_log, host.user = log;
    if (!tsk__cuda_load(&b.api, TSK__CUDA_LIBRARY_NVRTC, why, sizeof why)) {
        printf("skipped: compiling the kernels (%s)\n", why);
        return;
    }
    for (i = 0; i <= sizeof archs / sizeof archs[0]; i++) {
        tsk_text source, cubin;
        tsk_error error;
        char arch[64];
        const char *options[2];
        memset(&source, 0, sizeof source), memset(&cubin, 0, sizeof cubin), memset(&error, 0, sizeof error);
        b.arch = i < sizeof archs / sizeof archs[0] ? archs[i] : 90;
        tsk__cuda_options(&b, arch, options);
        if (i == sizeof archs / sizeof archs[0]) snprintf(arch, sizeof arch, "--gpu-architecture=sm_90a");
        CHECK(tsk__cuda_source(&source) == TSK_OK);
        CHECK(tsk__cuda_compile(&b, source.data, options, 2, &host, &cubin, &error) == TSK_OK);
        if (error.status) printf("%s\n%s\n", error.message, log);
        CHECK(cubin.length > 1000);
        tsk_text_free(&source), tsk_text_free(&cubin);
    }
    {   /* a broken kernel: an error, and the compiler's words in the log */
        tsk_text cubin;
        tsk_error error;
        const char *options[1] = {"--gpu-architecture=sm_90"};
        memset(&cubin, 0, sizeof cubin), memset(&error, 0, sizeof error);
        CHECK(tsk__cuda_compile(&b, "__global__ void f() { nonsense; }", options, 1, &host, &cubin, &error) ==
              TSK_ERROR_COMPILE);
        CHECK_CONTAINS(log, "nonsense");
        tsk_text_free(&cubin);
    }
}

/* Attention's tiles: every row in one, of its request; halves only of tiles of more than 96 rows, so that no half is a
   short tile, for which other warps would work. */
static void test_cuts(void) {
    enum { rows = 3000, heads = 8 };
    static tsk__cuda_row table[rows];
    static tsk__cuda_tile tiles[rows];
    tsk_model_config c;
    tsk__cuda_backend b;
    tsk__cuda_stream s;
    int round, wrong = 0, n_halved = 0, is_large, n_of[4] = {0, 0, 0, 0};
    memset(&c, 0, sizeof c), memset(&b, 0, sizeof b), memset(&s, 0, sizeof s);
    c.n_heads = heads, b.base.config = &c, s.backend = &b, s.pinned.rows = table, s.pinned.tiles = tiles;
    for (round = 0; round < 900; round++) {
        static char seen[rows];
        int32_t i, j, start, left = 0, request = -1, most = random_below(2) ? 700 : random_below(2) ? 40 : 30;
        b.n_multiprocessors = 1 + random_below(200), b.shared_limit = random_below(4) ? 227 * 1024 : 99 * 1024;
        s.pass.n = 1 + random_below(round < 200 ? 150 : round < 700 ? 400 : rows);
        for (i = 0; i < s.pass.n; i++, left--) {
            if (!left) left = 1 + random_below(most), request++;
            table[i].request = request;
        }
        memset(seen, 0, sizeof seen);
        tsk__cuda_make_tiles(&s);
        is_large = s.pass.attention == TSK__CUDA_ATTENTION_LARGE;
        n_of[s.pass.attention]++;
        wrong += s.pass.attention == TSK__CUDA_ATTENTION_FEW &&
                 (s.pass.n_tiles * heads > b.n_multiprocessors || b.shared_limit < 128 * 1024);
        for (i = 0; i < s.pass.n_tiles; i++) {
            const tsk__cuda_tile *tile = &tiles[i];
            if (tile->count < 1 || tile->count > tsk__cuda_attentions[s.pass.attention].rows || tile->first < 0 ||
                tile->first + tile->count > s.pass.n)
                wrong++;
            for (j = tile->first; !wrong && j < tile->first + tile->count; j++)
                wrong += seen[j]++ || table[j].request != tile->request;
            for (start = tile->first; start > 0 && table[start - 1].request == tile->request;) start--;
            if (is_large && (tile->first - start) % 128)
                n_halved++, wrong += (tile->first - start) % 128 != 64 || tile->count <= 32;
        }
        for (i = 0; i < s.pass.n; i++) wrong += !seen[i];
    }
    CHECK_INT(wrong, 0);
    CHECK(n_halved > 20 && n_of[TSK__CUDA_ATTENTION_FEW] > 5 &&
          n_of[TSK__CUDA_ATTENTION_SMALL] + n_of[TSK__CUDA_ATTENTION_MEDIUM] > 5);
}

static void test_cache_files(void) {
    char path[1200], dir[1024];
    tsk_text cubin, back;
    FILE *file;
    memset(&cubin, 0, sizeof cubin), memset(&back, 0, sizeof back);
    CHECK(tsk__cuda_cache_dir(tsk_test_path("a/b/c"), dir, sizeof dir));
    snprintf(path, sizeof path, "%s/k.cubin", dir);
    CHECK(!tsk__cuda_cache_read(path, &back));
    tsk_text_append(&cubin, "machine code", 12);
    tsk__cuda_cache_write(path, &cubin);
    CHECK(tsk__cuda_cache_read(path, &back) && back.length == 12 && memcmp(back.data, "machine code", 12) == 0);
    file = fopen(path, "r+b");
    if (CHECK(file != NULL)) {
        fseek(file, -1, SEEK_END), fputc('E', file), fclose(file);
        CHECK(!tsk__cuda_cache_read(path, &back));
    }
    CHECK(truncate(path, 10) == 0 && !tsk__cuda_cache_read(path, &back));
    tsk_text_free(&cubin), tsk_text_free(&back);
}

/* `test_cuda gpu`: the GPU's part alone. `test_cuda few`, `tiles`, `wide` or `rounds`, and 0 or 1: some of that (see
   part), of both or of one of two shapes. `test_cuda dry`: the CPU in the GPU's place, which tries the tests
   themselves. */
int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    char why[256] = "";
    int i, is_dry = strcmp(mode, "dry") == 0;
    part which = PART_ALL;
    tsk_device device = is_dry ? TSK_DEVICE_CPU : TSK_DEVICE_CUDA;
    for (i = 1; i < PARTS; i++)
        if (strcmp(mode, part_names[i]) == 0) which = (part)i;
    setvbuf(stdout, NULL, _IOLBF, 0);  /* what was printed before a crash is not lost */
    test_layout();
    test_wide_memory();
    test_cuts();
    test_cache_files();
#ifdef __SANITIZE_ADDRESS__
    if (!is_dry) {
        printf("skipped: CUDA's libraries under AddressSanitizer\n");
        return test_end("test_cuda");
    }
#endif
    if (!*mode) test_compiles();
    if (!is_dry && !tsk__cuda_available(0, why, sizeof why)) {
        printf("skipped: everything that runs on a GPU (%s)\n", why);
        return test_end("test_cuda");
    }
    for (i = 0; i < (which == PART_ALL ? n_shapes : n_few_shapes); i++)
        if (argc < 3 || atoi(argv[2]) == i)
            test_operations(which == PART_ALL ? &shapes[i] : &few_shapes[i], device, which);
    for (i = 0; i < n_random_shapes && which == PART_ALL; i++) {
        shape s = random_shape(i);
        test_operations(&s, device, which);
    }
    if (which == PART_ALL) CHECK(n_skipped[0] > 100 && n_skipped[1] > 100);
    printf("largest error of an operation, or of three layers together: f32 %.1e, bf16 %.1e\n", worst_f32, worst_bf16);
    return test_end("test_cuda");
}
