/* >>cuda: every operation against the CPU backend, whole generations against the CPU's, and what must be bit-identical.
   Without a GPU that says "skipped"; what can run without one does: NVRTC compiles every kernel for every architecture. */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_CUDA_DLOPEN
#ifndef TEST_HEADER
#define TEST_HEADER "../tokenskip.h"
#endif
#include TEST_HEADER
#include "test.h"

static uint32_t random_state = 1;
static uint32_t random_word(void) { return random_state = random_state * 1664525u + 1013904223u; }
static int32_t random_below(int32_t n) { return (int32_t)(random_word() >> 8) % n; }

static void must(tsk_status status, const tsk_error *error) {
    if (status == TSK_OK) return;
    printf("%s: %s\n%s\n", tsk_status_string(status), error->message, error->log ? error->log : "");
    exit(2);
}
static void *room(size_t size) {
    void *block = malloc(size ? size : 1);
    if (!block) exit(2);
    memset(block, 0x7f, size);
    return block;
}

/* ---- models */

typedef struct shape { const char *name; int32_t d, layers, heads, kv_heads, hd, mlp, vocabulary; } shape;
static const shape shapes[] = {
    {"mha 64", 256, 3, 4, 4, 64, 704, 1000},     {"gqa 128", 512, 3, 4, 2, 128, 1040, 2051}, {"gqa 32", 192, 3, 6, 3, 32, 200, 515},
    {"odd", 78, 3, 3, 1, 26, 115, 301},          {"wide head", 384, 3, 2, 1, 192, 520, 640}, {"hd 16", 128, 3, 8, 2, 16, 264, 999},
};
enum { n_shapes = sizeof shapes / sizeof shapes[0] };

static tsk_model_config config_of(const shape *s) {
    tsk_model_config c;
    memset(&c, 0, sizeof c);
    c.d_model = s->d, c.n_layers = s->layers, c.n_heads = s->heads, c.n_kv_heads = s->kv_heads, c.head_dim = s->hd, c.mlp_hidden_size = s->mlp;
    c.vocab_size = c.embedding_size = s->vocabulary;
    c.max_sequence_length = 1024;
    c.mask_token_id = s->vocabulary - 2, c.eos_token_id = s->vocabulary - 1, c.pad_token_id = -1;
    c.rope_theta = 10000.0f, c.rms_norm_eps = 1e-5f;
    return c;
}

static tsk_model *model_of(const shape *s, tsk_device device, tsk_dtype dtype) {
    tsk_model_options o = tsk_model_options_default();
    tsk_model_config c = config_of(s);
    tsk_model *model = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    o.device = device;
    o.dtype = dtype;
    must(tsk_model_random(&c, 7, &o, &model, &error), &error);
    return model;
}

/* ---- one pass, step by step, on any backend */

enum { max_rows = 200, max_requests = 3, n_states = 2, n_steps = 64 };

typedef struct outcome {          /* what every operation left, as f32 */
    float *values[n_steps];
    size_t counts[n_steps];
    const char *names[n_steps];
    int n;
    tsk__prediction predictions[max_rows];
} outcome;

typedef struct plan {
    int32_t n, n_requests, tokens[max_rows], positions[max_rows], requests[max_rows], slots[max_rows], active[max_rows], which[max_rows];
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
    int32_t first[3][max_requests * max_rows], active[max_rows], n_active = 0, i, l, r, round;
    memset(&error, 0, sizeof error);
    memset(caches, 0, sizeof caches);
    memset(o, 0, sizeof *o);
    must(ops->stream_create(b, max_rows, n_states, &s, &error), &error);
    for (r = 0; r < p->n_requests; r++) {
        size_t size = (size_t)c->n_layers * (size_t)c->n_kv_heads * (size_t)p->lengths[r] * (size_t)c->head_dim * e, states = 2 * n_states * max_rows * d * e;
        caches[r].k = ops->allocate(b, size), caches[r].v = ops->allocate(b, size);
        caches[r].states = ops->allocate(b, states), caches[r].outputs = ops->allocate(b, max_rows * d * e);
        caches[r].length = caches[r].capacity = p->lengths[r];
        caches[r].n_slots = max_rows, caches[r].n_states = n_states;
    }
    for (r = 0; r < p->n_requests; r++) {  /* every request's cache by a pass of its own */
        for (i = 0; i < p->lengths[r]; i++) first[0][i] = (i * 7 + r) % c->vocab_size, first[1][i] = i, first[2][i] = 0;
        memset(&rows, 0, sizeof rows);
        rows.n = p->lengths[r], rows.tokens = first[0], rows.positions = first[1], rows.requests = first[2], rows.slots = first[1];
        rows.caches = &caches[r], rows.n_requests = 1;
        ops->begin(s, &rows);
        ops->embed(s);
        for (l = 0; l < c->n_layers; l++) {
            ops->qkv(s, l, NULL), ops->attend(s, l), ops->attn_out(s, l, NULL), ops->gate_up(s, l, NULL), ops->down(s, l, NULL);
            if (l < n_states) ops->compare(s, l);
        }
        for (i = 0; i < rows.n; i++) first[0][i] = 1;  /* the tokens have been read */
        ops->remember(s, first[0]);
        ops->store_outputs(s, first[0]);
        must(ops->wait(s, &error), &error);
    }
    memset(&rows, 0, sizeof rows);
    rows.n = p->n, rows.tokens = p->tokens, rows.positions = p->positions, rows.requests = p->requests, rows.slots = p->slots, rows.caches = caches, rows.n_requests = p->n_requests;
    for (round = 0; round < (recorded ? 2 : 1); round++) {
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
        if (recorded && ops->finish) ops->finish(s, 5);
    }
    must(ops->wait(s, &error), &error);
    for (l = 0; l < n_states; l++) {
        o->values[o->n] = (float *)room(n * sizeof(float));
        memcpy(o->values[o->n], s->cosines + (size_t)l * max_rows, n * sizeof(float));
        o->counts[o->n] = n;
        o->names[o->n++] = "compare";
    }
    if (p->masked && ops->masked_rows >= p->n) ops->mask(s, p->active);
    if ((p->masked && ops->masked_rows < p->n) || p->compacted) {
        for (i = 0; i < p->n; i++)
            if (p->active[i]) active[n_active++] = i;
        ops->compact(s, n_active, active);
    }
    l = c->n_layers - 1;
    ops->qkv(s, l, NULL), ops->attend(s, l), ops->attn_out(s, l, NULL), ops->gate_up(s, l, NULL), ops->down(s, l, NULL);
    if (p->masked && ops->masked_rows >= p->n) ops->mask(s, NULL);
    if ((p->masked && ops->masked_rows < p->n) || p->compacted) ops->expand(s);
    ops->remember(s, p->which);
    ops->load_outputs(s, p->which);
    keep(o, s, "last", s->x, n * d);
    for (r = 0; r < p->n_requests; r++) {
        size_t size = (size_t)c->n_layers * (size_t)c->n_kv_heads * (size_t)p->lengths[r] * (size_t)c->head_dim;
        keep(o, s, "K", caches[r].k, size);
        keep(o, s, "V", caches[r].v, size);
        keep(o, s, "states", caches[r].states, (size_t)p->lengths[r] * d);
    }
    ops->head(s, p->n_head, p->index, p->draws);
    must(ops->wait(s, &error), &error);
    memcpy(o->predictions, s->predictions, (size_t)p->n_head * sizeof *o->predictions);
    {
        size_t v = (size_t)c->embedding_size, m = (size_t)p->n_head;
        o->values[o->n] = (float *)room(m * d * sizeof(float)), o->values[o->n + 1] = (float *)room(m * v * sizeof(float));
        o->counts[o->n] = m * d, o->counts[o->n + 1] = m * v;
        o->names[o->n] = "final norm", o->names[o->n + 1] = "logits";
        ops->logits(s, p->n_head, p->index, o->values[o->n], o->values[o->n + 1]);
        o->n += 2;
    }
    must(ops->wait(s, &error), &error);
    for (r = 0; r < p->n_requests; r++)
        ops->release(b, caches[r].k), ops->release(b, caches[r].v), ops->release(b, caches[r].states), ops->release(b, caches[r].outputs);
    ops->stream_destroy(s);
}

static void free_outcome(outcome *o) {
    int i;
    for (i = 0; i < o->n; i++) free(o->values[i]);
}

static double error_of(const float *reference, const float *got, size_t n) {
    double difference = 0, size = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        double delta = (double)got[i] - (double)reference[i];
        difference += delta * delta;
        size += (double)reference[i] * (double)reference[i];
    }
    return sqrt(difference / (size > 0 ? size : 1));
}

static plan plan_of(const tsk_model_config *c, int32_t n, int32_t n_requests, int masked, int compacted, float temperature) {
    plan p;
    int32_t i, r, done = 0;
    memset(&p, 0, sizeof p);
    p.n = n, p.n_requests = n_requests, p.masked = masked, p.compacted = compacted;
    for (r = 0; r < n_requests; r++) {
        int32_t share = r + 1 == n_requests ? n - done : n / n_requests, at;
        p.lengths[r] = share + random_below(max_rows - share);
        at = random_below(p.lengths[r] - share + 1);
        for (i = 0; i < share; i++, done++) p.tokens[done] = random_below(c->vocab_size), p.positions[done] = at + i, p.requests[done] = r, p.slots[done] = at + i;
    }
    for (i = 0; i < n; i++) p.active[i] = random_below(3) > 0, p.which[i] = random_below(2);
    p.active[n - 1] = 1;
    for (i = 0; i < n; i += 1 + random_below(2)) {
        tsk__draw *draw = &p.draws[p.n_head];
        p.index[p.n_head++] = n - 1 - i;
        draw->temperature = temperature, draw->mask_token_id = c->mask_token_id, draw->seed = 99, draw->position = (uint32_t)i, draw->pass = 3;
    }
    return p;
}

static double worst_f32, worst_bf16;

/* Every operation's result, one after another, so that errors add up along the layers: the bound is for the whole. */
static void compare_outcomes(const shape *s, const plan *p, const outcome *reference, const outcome *got, double bound, int is_bf16) {
    int i, wrong = 0;
    CHECK_INT(reference->n, got->n);
    for (i = 0; i < reference->n; i++) {
        double error = error_of(reference->values[i], got->values[i], reference->counts[i]);
        double *worst = is_bf16 ? &worst_bf16 : &worst_f32;
        if (!(error <= bound)) printf("%s, %s of %d rows, %d requests%s%s: %s (step %d) is off by %g\n", s->name, is_bf16 ? "bf16" : "f32", (int)p->n, (int)p->n_requests,
                                      p->masked ? ", masked" : "", p->compacted ? ", compacted" : "", reference->names[i], i, error);
        CHECK(error <= bound);
        if (error > *worst) *worst = error;
    }
    for (i = 0; i < p->n_head; i++) {
        const tsk__prediction *a = &reference->predictions[i], *b = &got->predictions[i];
        if (a->id != b->id) wrong++;
        else if (!is_bf16) CHECK(fabsf(a->confidence - b->confidence) <= 1e-4f * (1 + a->confidence) && fabsf(a->logit - b->logit) < 1e-3f && fabsf(a->log_sum_exp - b->log_sum_exp) < 1e-3f);
    }
    if (wrong > (is_bf16 ? p->n_head / 4 + 1 : 0)) printf("%s, %s of %d rows: %d of %d ids differ\n", s->name, is_bf16 ? "bf16" : "f32", (int)p->n, wrong, (int)p->n_head);
    CHECK(wrong <= (is_bf16 ? p->n_head / 4 + 1 : 0));
}

static void test_operations(const shape *s) {
    static const struct { int32_t n, requests; int masked, compacted; float temperature; } cases[] = {
        {32, 1, 0, 0, 0}, {17, 1, 1, 0, 0.7f}, {64, 2, 1, 0, 0}, {50, 3, 0, 0, 1}, {1, 1, 0, 0, 0}, {130, 1, 0, 1, 0}, {150, 3, 0, 0, 0}, {40, 1, 0, 0, 0}};
    tsk_model *cpu = model_of(s, TSK_DEVICE_CPU, TSK_DTYPE_F32), *f32 = model_of(s, TSK_DEVICE_CUDA, TSK_DTYPE_F32), *bf16 = model_of(s, TSK_DEVICE_CUDA, TSK_DTYPE_BF16);
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        plan p = plan_of(cpu->backend->config, cases[i].n, cases[i].requests, cases[i].masked, cases[i].compacted, cases[i].temperature);
        outcome reference, got, again;
        int j;
        run_pass(cpu, &p, &reference, 0);
        run_pass(f32, &p, &got, 0);
        compare_outcomes(s, &p, &reference, &got, 1e-5, 0);
        free_outcome(&got);
        run_pass(bf16, &p, &got, 0);
        compare_outcomes(s, &p, &reference, &got, 3e-2, 1);
        run_pass(bf16, &p, &again, 1);  /* recorded, and replayed: the same bits */
        for (j = 0; j < again.n; j++)
            CHECK(memcmp(again.values[again.n - 1 - j], got.values[got.n - 1 - j], again.counts[again.n - 1 - j] * sizeof(float)) == 0);
        CHECK(memcmp(again.predictions, got.predictions, (size_t)p.n_head * sizeof *got.predictions) == 0);
        free_outcome(&reference), free_outcome(&got), free_outcome(&again);
    }
    tsk_model_free(cpu), tsk_model_free(f32), tsk_model_free(bf16);
}

/* ---- whole generations */

static void generate(tsk_model *model, const tsk_generate_options *o, const int32_t *prompt, int32_t n, int32_t *tokens, tsk_result *result) {
    tsk_session *session = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    must(tsk_session_create(model, o, &session, &error), &error);
    must(tsk_generate(session, prompt, n, NULL, result, &error), &error);
    memcpy(tokens, result->tokens, (size_t)result->n_tokens * sizeof *tokens);
    tsk_session_free(session);
}

static void test_generations(const shape *s) {
    tsk_model *cpu = model_of(s, TSK_DEVICE_CPU, TSK_DTYPE_F32), *f32 = model_of(s, TSK_DEVICE_CUDA, TSK_DTYPE_F32), *bf16 = model_of(s, TSK_DEVICE_CUDA, TSK_DTYPE_BF16);
    int round, same = 0, rounds = 10;
    for (round = 0; round < rounds; round++) {
        tsk_generate_options o = tsk_generate_options_default();
        int32_t prompt[40], n = 5 + random_below(30), i, a[64], b[64], plain[64], skip[64];
        tsk_result result;
        for (i = 0; i < n; i++) prompt[i] = random_below(s->vocabulary - 2);
        o.gen_length = 32, o.block_length = 16, o.eos_stop = 0;
        o.cache = round % 3 == 0 ? TSK_CACHE_DUAL : round % 3 == 1 ? TSK_CACHE_PREFIX : TSK_CACHE_NONE;
        o.threshold = round % 2 ? 0.02f : 0.9f;
        o.temperature = round % 4 == 3 ? 0.5f : 0;
        o.skip_layer_k = o.cache == TSK_CACHE_DUAL ? 2 : 0;
        o.skip_threshold = 0.5f, o.skip_outlier = 0.1f, o.skip_masked = round == 6;
        generate(cpu, &o, prompt, n, a, &result);
        generate(f32, &o, prompt, n, b, &result);
        CHECK_INT(result.mask_residual, 0);
        same += memcmp(a, b, 32 * sizeof *a) == 0;
        o.cache = TSK_CACHE_DUAL, o.skip_masked = 0;
        o.skip_layer_k = 0;
        generate(bf16, &o, prompt, n, plain, &result);
        o.skip_layer_k = 2, o.skip_threshold = 1.0f;
        generate(bf16, &o, prompt, n, skip, &result);
        CHECK(memcmp(plain, skip, 32 * sizeof *plain) == 0);
        CHECK_INT(result.mask_residual, 0);
    }
    printf("%s: %d of %d f32 generations equal the CPU's\n", s->name, same, rounds);
    CHECK(same >= rounds - 1);  /* one may hang on a margin below rounding */
    tsk_model_free(cpu), tsk_model_free(f32), tsk_model_free(bf16);
}

/* ---- what a trace sees: the CPU's names, rows and shapes in the CPU's order, and looking changes nothing */

typedef struct seen {
    char name[48], part[4];
    int32_t pass, layer, n_rows, first, last;
    uint64_t in[3], out[3];
    double abs_mean;
} seen;
typedef struct seen_list { seen items[4096]; int n; } seen_list;

static void see(void *user, const tsk_trace_record *r) {
    seen_list *list = (seen_list *)user;
    seen *to = &list->items[list->n < 4095 ? list->n++ : 4095];
    memset(to, 0, sizeof *to);
    snprintf(to->name, sizeof to->name, "%s", r->name);
    snprintf(to->part, sizeof to->part, "%s", r->part);
    to->pass = r->pass, to->layer = r->layer, to->n_rows = r->n_rows;
    to->first = r->positions[0], to->last = r->positions[r->n_rows - 1];
    memcpy(to->in, r->input_shape, sizeof to->in);
    memcpy(to->out, r->output_shape, sizeof to->out);
    to->abs_mean = r->stats.abs_mean;
}

/* `list` NULL: not traced. */
static void generate_traced(tsk_model *model, const tsk_generate_options *o, seen_list *list, int32_t tokens[32]) {
    static const int32_t prompt[] = {3, 14, 15, 92, 65, 35, 8};
    tsk_trace_options tracing = tsk_trace_options_default();
    tsk_session *session = NULL;
    tsk_result result;
    tsk_error error;
    memset(&error, 0, sizeof error);
    tracing.on_record = see;
    tracing.user = list;
    if (list) list->n = 0;
    must(tsk_session_create(model, o, &session, &error), &error);
    if (list) must(tsk_session_trace(session, &tracing, &error), &error);
    must(tsk_generate(session, prompt, 7, NULL, &result, &error), &error);
    memcpy(tokens, result.tokens, 32 * sizeof *tokens);
    tsk_session_free(session);
}

/* Magnitudes only of the first pass: its tokens are the same whatever was decided later. */
static void compare_seen(const char *what, const seen_list *cpu, const seen_list *cuda, double bound) {
    int i, wrong = cpu->n != cuda->n, off = 0;
    for (i = 0; i < cpu->n && i < cuda->n; i++) {
        seen a = cpu->items[i], b = cuda->items[i];
        off += a.pass == 0 && !(fabs(a.abs_mean - b.abs_mean) <= bound * a.abs_mean);
        a.abs_mean = b.abs_mean = 0;
        if (memcmp(&a, &b, sizeof a) != 0 && wrong++ == 0) printf("%s: pass %d has %s where the CPU has %s\n", what, (int)b.pass, b.name, a.name);
    }
    CHECK(cpu->n > 100 && cpu->n < 4095);
    CHECK_INT(wrong, 0);
    CHECK_INT(off, 0);
}

static void test_traces(const shape *s) {
    static seen_list cpu_seen, cuda_seen;
    static const tsk_dtype dtypes[] = {TSK_DTYPE_F32, TSK_DTYPE_BF16};
    tsk_model *cpu = model_of(s, TSK_DEVICE_CPU, TSK_DTYPE_F32);
    tsk_generate_options o = tsk_generate_options_default();
    int32_t tokens[32], traced[32];
    int i, exact;
    o.gen_length = 32, o.block_length = 16, o.eos_stop = 0;
    o.transfer = TSK_TRANSFER_SCHEDULE, o.steps = 12;
    o.skip_layer_k = 2, o.skip_outlier = 0.1f, o.skip_masked = 1;
    for (i = 0; i < 2; i++) {
        tsk_model *cuda = model_of(s, TSK_DEVICE_CUDA, dtypes[i]);
        for (exact = 0; exact < 2; exact++) {  /* who is skipped may hang on a rounding: names are compared where nobody is */
            o.skip_threshold = exact ? 1.0f : 0.5f;
            generate_traced(cuda, &o, NULL, tokens);
            generate_traced(cuda, &o, &cuda_seen, traced);
            CHECK(memcmp(tokens, traced, sizeof tokens) == 0);
        }
        generate_traced(cpu, &o, &cpu_seen, traced);
        compare_seen(s->name, &cpu_seen, &cuda_seen, i ? 0.05 : 1e-3);
        tsk_model_free(cuda);
    }
    tsk_model_free(cpu);
}

/* ---- without a GPU */

static void test_compiles(void) {
    static const int archs[] = {80, 86, 89, 90, 100, 120};
    char why[160];
    tsk__cuda_backend b;
    size_t i;
    memset(&b, 0, sizeof b);
    if (!tsk__cuda_load(&b.api, TSK__CUDA_LIBRARY_NVRTC, why, sizeof why)) {
        printf("skipped: compiling the kernels (%s)\n", why);
        return;
    }
    for (i = 0; i <= sizeof archs / sizeof archs[0]; i++) {
        tsk_text source, cubin;
        tsk_error error;
        char arch[64], ring[64];
        const char *options[3];
        memset(&source, 0, sizeof source), memset(&cubin, 0, sizeof cubin), memset(&error, 0, sizeof error);
        b.arch = i < sizeof archs / sizeof archs[0] ? archs[i] : 90;
        b.shared_limit = b.arch == 80 || b.arch == 90 || b.arch == 100 ? 163 * 1024 : 99 * 1024;
        tsk__cuda_options(&b, arch, ring, options);
        if (i == sizeof archs / sizeof archs[0]) snprintf(arch, sizeof arch, "--gpu-architecture=sm_90a");
        CHECK(tsk__cuda_source(&source) == TSK_OK);
        CHECK(tsk__cuda_compile(&b, source.data, options, 3, &cubin, &error) == TSK_OK);
        if (error.status) printf("%s\n%s\n", error.message, error.log ? error.log : "");
        CHECK(cubin.length > 1000);
        tsk_error_clear(&error), tsk_text_free(&source), tsk_text_free(&cubin);
    }
    {   /* a broken kernel: an error with the compiler's words */
        tsk_text cubin;
        tsk_error error;
        const char *options[1] = {"--gpu-architecture=sm_90"};
        memset(&cubin, 0, sizeof cubin), memset(&error, 0, sizeof error);
        CHECK(tsk__cuda_compile(&b, "__global__ void f() { nonsense; }", options, 1, &cubin, &error) == TSK_ERROR_COMPILE);
        CHECK_CONTAINS(error.log, "nonsense");
        tsk_error_clear(&error), tsk_text_free(&cubin);
    }
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

/* kernels.cu.h is kernels.cu. Run from the repository's root, as all tests are. */
static void test_header(void) {
    size_t size = 0;
    char *file = read_file("kernels.cu", &size);
    tsk_text source;
    memset(&source, 0, sizeof source);
    CHECK(tsk__cuda_source(&source) == TSK_OK);
    if (CHECK(file != NULL)) CHECK(source.length == size && memcmp(source.data, file, size) == 0);
    tsk_text_free(&source);
    free(file);
}

int main(int argc, char **argv) {
    char why[256] = "";
    int i;
    setvbuf(stdout, NULL, _IOLBF, 0);  /* what was printed before a crash is not lost */
    (void)argc, (void)argv;
    test_header();
    test_cache_files();
#ifdef __SANITIZE_ADDRESS__
    printf("skipped: CUDA's libraries under AddressSanitizer\n");
    return test_end("test_cuda");
#endif
    if (argc < 2) test_compiles();  /* any argument: the GPU's part alone */
    if (!tsk__cuda_available(0, why, sizeof why)) {
        printf("skipped: everything that runs on a GPU (%s)\n", why);
        return test_end("test_cuda");
    }
    for (i = 0; i < n_shapes; i++) test_operations(&shapes[i]);
    printf("largest error: f32 %.1e, bf16 %.1e\n", worst_f32, worst_bf16);
    for (i = 0; i < n_shapes; i++) test_generations(&shapes[i]);
    for (i = 0; i < n_shapes; i++) test_traces(&shapes[i]);
    return test_end("test_cuda");
}
