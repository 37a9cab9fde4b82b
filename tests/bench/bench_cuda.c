/* What `tokenskip bench` does not see of the CUDA backend, in LLaDA-8B's shape with random weights: steps and refreshes
   of 1 to 32 requests beside their floors and the chain of cuBLAS's products, a whole generation, the gaps that the
   host leaves on the stream, the library's own device memory, a mixed load beside a steady one, and how long the start
   takes. Not a test.

       make bench-cuda                         (a GPU with 40 GB; builds build/bench_cuda and runs it)
       build/bench_cuda LLaDA-8B-Instruct      (that folder is loaded too)
       build/bench_cuda rows                   (only what the rule `rows` gains)
       build/bench_cuda table                  (only steps and refreshes beside floors and cuBLAS's products)
       build/bench_cuda step LAYERS N ROWS LENGTH   (one step of a batch, between cuProfilerStart and -Stop) */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_CUDA_DLOPEN
#include "../../tokenskip.h"

static void must(tsk_status status, const tsk_error *error) {
    if (status == TSK_OK) return;
    printf("%s: %s\n", tsk_status_string(status), error->message);
    exit(1);
}

static uint32_t random_state = 1;
static int32_t random_below(int32_t n) {
    random_state = random_state * 1664525u + 1013904223u; /* Numerical Recipes' generator */
    return (int32_t)((random_state >> 8) % (uint32_t)n);
}

static int ascending(const void *a, const void *b) {
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}
static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, ascending);
    return n ? values[n / 2] : 0;
}

static tsk_model *make_model(int32_t layers) {
    tsk_model_options o = tsk_model_options_default();
    tsk_model_config c;
    tsk_model *model = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    memset(&c, 0, sizeof c);
    c.d_model = 4096, c.n_layers = layers, c.n_heads = c.n_kv_heads = 32, c.head_dim = 128, c.mlp_hidden_size = 12288;
    c.vocab_size = c.embedding_size = 126464, c.max_sequence_length = 4096;
    c.mask_token_id = 126336, c.eos_token_id = c.pad_token_id = 126081;
    c.rope_theta = 500000, c.rms_norm_eps = 1e-5f;
    o.device = TSK_DEVICE_CUDA;
    must(tsk_model_random(&c, 0, &o, &model, &error), &error);
    return model;
}

/* ---- the start: with compiled kernels cached and hardly any weights, then with a folder's; cuInit and the context are
   there */

static void start_times(const char *dir) {
    tsk_model *first = make_model(1), *model = NULL;
    tsk_model_options o = tsk_model_options_default();
    tsk_error error;
    double start, ms[3];
    int i;
    memset(&error, 0, sizeof error);
    for (i = 0; i < 3; i++) {
        start = tsk__time_ms();
        model = make_model(1);
        ms[i] = tsk__time_ms() - start;
        tsk_model_free(model);
    }
    printf("start of a model of one layer, with cached kernels: %.0f ms (median of 3)\n", median(ms, 3));
    tsk_model_free(first);
    if (!dir) return;
    o.device = TSK_DEVICE_CUDA;
    for (i = 0; i < 3; i++) {
        start = tsk__time_ms();
        must(tsk_model_load(dir, &o, &model, &error), &error);
        ms[i] = tsk__time_ms() - start;
        printf("%s to a ready model, context included: %.2f s, %.1f GB/s\n", dir, ms[i] * 1e-3,
               (double)tsk__config_weights_size(model->backend->config) * 1e-6 / ms[i]);
        tsk_model_free(model);
    }
}

/* ---- device memory: what is allocated after the weights, caches apart */

static struct { CUresult (*alloc)(CUdeviceptr *, size_t); uint64_t total; } memory;
static CUresult count_alloc(CUdeviceptr *address, size_t size) {
    memory.total += size;
    return memory.alloc(address, size);
}

/* ---- gaps: from the end of one piece of the stream's work, where the host waits, to the beginning of the next */

typedef CUresult (*event_create)(CUevent *, unsigned int);
typedef CUresult (*event_elapsed)(float *, CUevent, CUevent);
enum { max_gaps = 4096 };
static struct {
    const tsk__backend_ops *ops;
    event_elapsed elapsed;
    CUevent ends[max_gaps], starts[max_gaps];
    int n_ends, n_starts;
} gaps;

static tsk_status marked_wait(tsk__stream *stream, tsk_error *error) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    if (s->issued.needs_signal) tsk__cuda_signal(s);
    if (gaps.n_ends < max_gaps) s->backend->api.cuEventRecord(gaps.ends[gaps.n_ends++], s->stream);
    return gaps.ops->wait(stream, error);
}

/* A recorded section is the first thing that a step, or what follows a decision, gives the stream. */
static int marked_replay(tsk__stream *stream, uint64_t key) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    if (gaps.n_starts < gaps.n_ends) {
        gaps.n_starts = gaps.n_ends;
        s->backend->api.cuEventRecord(gaps.starts[gaps.n_starts - 1], s->stream);
    }
    return gaps.ops->replay(stream, key);
}

/* ---- what is measured */

static tsk_generate_options seed_options(void) {
    tsk_generate_options o = tsk_generate_options_default();
    o.gen_length = 128, o.block_length = 32, o.steps = 128, o.eos_stop = 0;
    o.transfer = TSK_TRANSFER_SCHEDULE;  /* one token a pass, as the threshold rule gives with random weights */
    o.cache = TSK_CACHE_DUAL;
    return o;
}

static double generate(tsk_session *session, int32_t n_prompt, int32_t *nfe) {
    int32_t prompt[1024], i;
    tsk_result result;
    tsk_error error;
    double start;
    memset(&error, 0, sizeof error);
    for (i = 0; i < n_prompt; i++) prompt[i] = random_below(126000);
    start = tsk__time_ms();
    must(tsk_generate(session, prompt, n_prompt, NULL, &result, &error), &error);
    *nfe = result.nfe;
    return tsk__time_ms() - start;
}

static void whole_generation(tsk_model *model, const char *name, tsk_generate_options o) {
    tsk_session *session = NULL;
    tsk_error error;
    double ms[5];
    int32_t nfe = 0, i;
    memset(&error, 0, sizeof error);
    must(tsk_session_create(model, &o, &session, &error), &error);
    generate(session, 19, &nfe);
    for (i = 0; i < 5; i++) ms[i] = generate(session, 19, &nfe);
    printf("%s: prompt 19, gen 128, %d passes: %.2f ms a pass, %.1f tokens/s (median of 5 generations)\n", name,
           (int)nfe, median(ms, 5) / nfe, 128e3 / median(ms, 5));
    tsk_session_free(session);
}

static void host_gaps(tsk_model *model, const char *name, tsk_generate_options o) {
    tsk__cuda_backend *b = tsk__cuda_backend_of(model->backend);
    static tsk__backend_ops ops;
    event_create create;
    tsk_session *session = NULL;
    tsk_error error;
    double values[max_gaps];
    int32_t nfe, i, n = 0;
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    char why[128];
    memset(&error, 0, sizeof error);
    if (!driver || !tsk__cuda_symbol(driver, "cuEventCreate", &create, why, sizeof why) ||
        !tsk__cuda_symbol(driver, "cuEventElapsedTime", &gaps.elapsed, why, sizeof why))
        return;
    must(tsk_session_create(model, &o, &session, &error), &error);
    generate(session, 19, &nfe);
    tsk__cuda_enter(b);
    for (i = 0; i < max_gaps && !gaps.ends[i]; i++) create(&gaps.ends[i], 0), create(&gaps.starts[i], 0);
    tsk__cuda_leave(b);
    gaps.ops = b->base.ops;
    gaps.n_ends = gaps.n_starts = 0;
    ops = *gaps.ops;
    ops.wait = marked_wait, ops.replay = marked_replay;
    b->base.ops = &ops;
    generate(session, 19, &nfe);
    b->base.ops = gaps.ops;
    tsk__cuda_enter(b);
    for (i = 0; i < gaps.n_starts; i++) {
        float ms = -1;
        if (gaps.elapsed(&ms, gaps.ends[i], gaps.starts[i]) == CUDA_SUCCESS && ms >= 0 && ms < 1)
            values[n++] = ms * 1e3;
    }
    tsk__cuda_leave(b);
    printf("%s: %d gaps on the stream, median %.1f us", name, (int)n, median(values, n));
    printf(", nine tenths below %.1f us\n", n ? values[n * 9 / 10] : 0.0);
    tsk_session_free(session);
}

static void randomise(tsk__cuda_stream *s, CUdeviceptr to, uint64_t count) {
    tsk__cuda_randomise_args a;
    memset(&a, 0, sizeof a);
    a.to = to, a.count = count, a.seed = 1, a.scale = 1.0f;
    a.row_order.columns = 1;
    tsk__cuda_launch(s, TSK__CUDA_randomise, 1024, 1, 1, 256, 0, &a, "randomise");
}

/* The products of a pass by cuBLAS, one after another: m rows through the layers, head_m through the head. In
   milliseconds, the best of six when warm: what a chain sustains. */
static double cublas_chain(tsk_model *model, int32_t m, int32_t head_m) {
    tsk__cuda_backend *b = tsk__cuda_backend_of(model->backend);
    tsk__stream *stream = NULL;
    tsk__cuda_stream *s;
    tsk_error error;
    double best = 1e30;
    int32_t room = m > 1280 ? m : 1280, l, i, first, slice;
    memset(&error, 0, sizeof error);
    must(b->base.ops->stream_create(&b->base, room, 0, &stream, &error), &error);
    s = tsk__cuda_stream_of(stream);
    tsk__cuda_enter(b);
    tsk__cuda_need_logits(s);
    randomise(s, s->device.normed, (uint64_t)room * 4096);  /* a product of zeros takes less power, and time */
    randomise(s, s->device.scratch, (uint64_t)room * (uint64_t)b->gate_up_rows);
    randomise(s, tsk__cuda_address(s->base.attention), (uint64_t)room * 4096);
    randomise(s, tsk__cuda_address(s->base.hidden), (uint64_t)room * 12288);
    slice = (int32_t)(tsk__cuda_logits_room(s) / (uint64_t)head_m);
    if (slice > 126464) slice = 126464;
    for (i = 0; i < 12; i++) {
        double start = tsk__time_ms();
        for (l = 0; l < 32; l++) {
            tsk__cuda_product(s, s->device.normed, b->layers[l].qkv, s->device.scratch, m, b->qkv_width, 4096, 0, 0);
            tsk__cuda_product(s, tsk__cuda_address(s->base.attention), b->layers[l].attn_out, s->device.full_x, m, 4096,
                              4096, 0, 0);
            tsk__cuda_product(s, s->device.normed, b->layers[l].gate_up, s->device.scratch, m, b->gate_up_rows, 4096, 0,
                              0);
            tsk__cuda_product(s, tsk__cuda_address(s->base.hidden), b->layers[l].down, s->device.full_x, m, 4096, 12288,
                              0, 0);
        }
        for (first = 0; first < 126464; first += slice)
            tsk__cuda_product(s, s->device.normed, b->head + (uint64_t)first * 4096 * 2, s->device.logits, head_m,
                              126464 - first < slice ? 126464 - first : slice, 4096, 0, 1);
        b->api.cuStreamSynchronize(s->stream);
        start = tsk__time_ms() - start;
        if (i >= 6 && start < best) best = start;
    }
    tsk__cuda_leave(b);
    b->base.ops->stream_destroy(stream);
    return best;
}

/* What a batch runs: requests of all lengths at once, or steady passes of one block each. Steady blocks are all masks,
   which are alike (their products draw less power, and a GPU at its power limit then runs faster), or three quarters
   tokens. */
typedef enum load { MIXED, STEADY_MASKS, STEADY_TOKENS } load;
typedef struct load_result { double row_layers, ms, rows; } load_result;

static load_result run_batch(tsk_model *model, int32_t n, int32_t rows, int32_t tokens, load what) {
    tsk_batch_options options = tsk_batch_options_default();
    tsk_generate_options o = seed_options();
    tsk_batch *batch = NULL;
    tsk_batch_status status;
    tsk_error error;
    load_result result = {0, 0, 0};
    int32_t *prompt = (int32_t *)malloc(1024 * sizeof *prompt), generated[32], i, j, passes = 0,
            is_mixed = what == MIXED;
    if (!prompt) exit(1);
    memset(&error, 0, sizeof error);
    o.skip.layer_k = 0;  /* row-layers are counted as if no token skipped */
    options.max_requests = n;
    options.cache_tokens = tokens;
    options.max_rows = rows;
    must(tsk_batch_create(model, &options, &batch, &error), &error);
    for (j = 0; j < 1024; j++) prompt[j] = random_below(126000);
    for (i = 256; i <= 1024 && is_mixed; i += 256)  /* what is made once: the pass's room, cuBLAS's kernels */
        must(tsk_batch_submit(batch, prompt, i, NULL, &o, NULL, NULL, &error), &error);
    if (is_mixed) must(tsk_batch_drain(batch, &error), &error);
    for (i = 0; i < n; i++) {
        int32_t length = is_mixed ? 64 + random_below(961) : 512;
        for (j = 0; j < length; j++) prompt[j] = random_below(126000);
        for (j = 0; j < 32; j++) generated[j] = j % 4 ? random_below(126000) : model->config.mask_token_id;
        o.gen_length = is_mixed ? 64 : 32;
        o.steps = o.gen_length / 4;
        o.seed = (uint64_t)i;
        must(tsk_batch_submit(batch, prompt, length, what == STEADY_TOKENS ? generated : NULL, &o, NULL, NULL, &error),
             &error);
    }
    do {
        must(tsk_batch_step(batch, &status, &error), &error);
        if (!is_mixed && status.rows > 32 * n) continue;  /* the refreshes before the steady part */
        if (!is_mixed && passes++ < 2) continue;
        result.row_layers += (double)status.row_layers;
        result.ms += status.ms;
        result.rows += (double)status.row_layers * status.row_layers / 32;
    } while (status.in_flight || status.queued);
    result.rows /= result.row_layers;  /* as a row sees it */
    tsk_batch_free(batch);
    free(prompt);
    return result;
}

static void mixed_load(tsk_model *model) {
    static const int32_t caps[] = {2048, 4096};
    size_t i;
    for (i = 0; i < sizeof caps / sizeof *caps; i++) {
        int32_t n = caps[i] / 32;
        load_result mixed = run_batch(model, 64, caps[i], 40000, MIXED),
                    masks = run_batch(model, n, n * 544, n * 544, STEADY_MASKS);
        load_result tokens = run_batch(model, n, n * 544, n * 544, STEADY_TOKENS);
        double rate = mixed.row_layers / mixed.ms, of_masks = masks.row_layers / masks.ms,
               of_tokens = tokens.row_layers / tokens.ms;
        printf("mixed load, passes of up to %d rows: %.3g row-layers/s (%.0f rows a pass, %.0f ms)\n", (int)caps[i],
               rate * 1e3, mixed.rows, mixed.ms);
        printf("  steady passes of %.0f rows: %.3g, ratio %.2f; of %.0f rows that are all masks: %.3g, ratio %.2f\n",
               tokens.rows, of_tokens * 1e3, rate / of_tokens, masks.rows, of_masks * 1e3, rate / of_masks);
    }
}

/* ---- what the rule `rows` gains */

/* Milliseconds that a batch takes for 64 requests of random lengths, one token a pass and request. */
static double rows_load(tsk_model *model, tsk_generate_options o) {
    enum { n = 64, most = 1024, gen = 128 };
    tsk_batch_options options = tsk_batch_options_default();
    tsk_batch *batch = NULL;
    tsk_error error;
    int32_t prompt[most], i, j, round;
    double ms = 0;
    memset(&error, 0, sizeof error);
    options.max_requests = n;
    options.cache_tokens = n * (most + gen);
    options.max_rows = 4096;
    must(tsk_batch_create(model, &options, &batch, &error), &error);
    o.gen_length = o.steps = gen;
    for (round = 0; round < 2; round++) { /* the first makes what is made once */
        double start;
        random_state = 17;
        for (i = 0; i < n; i++) {
            int32_t length = 64 + random_below(most - 63);
            for (j = 0; j < length; j++) prompt[j] = random_below(126000);
            must(tsk_batch_submit(batch, prompt, length, NULL, &o, NULL, NULL, &error), &error);
        }
        start = tsk__time_ms();
        must(tsk_batch_drain(batch, &error), &error);
        ms = tsk__time_ms() - start;
    }
    tsk_batch_free(batch);
    return ms;
}

static void rows_gain(tsk_model *model) {
    tsk_generate_options plain = seed_options(), rows;
    double plain_ms, rows_ms, near_ms;
    plain.skip.rule = TSK_SKIP_RULE_OFF;
    rows = plain;
    rows.skip.rule = TSK_SKIP_RULE_ROWS;
    whole_generation(model, "dual cache", plain);
    whole_generation(model, "rule rows", rows);
    host_gaps(model, "dual cache", plain);
    host_gaps(model, "rule rows", rows);
    plain_ms = rows_load(model, plain);
    rows_ms = rows_load(model, rows);
    rows.refresh = TSK_REFRESH_NEAR;
    near_ms = rows_load(model, rows);
    printf("64 requests of random lengths, one token a pass: dual cache %.2f requests/s, rule rows %.2f (%.2f x), with "
           "refresh near %.2f (%.2f x)\n",
           64e3 / plain_ms, 64e3 / rows_ms, plain_ms / rows_ms, 64e3 / near_ms, plain_ms / near_ms);
    whole_generation(model, "rule rows, refresh near", rows);
    whole_generation(model, "dual cache", plain);
}

/* ---- steps of a batch: `n` requests of `length` positions each, `rows` of the block's 32 in each pass */

typedef struct steps {
    tsk_batch *batch;
    double refresh, step;  /* milliseconds: the pass that begins the block, and the median of 16 that follow */
} steps;

static steps run_steps(tsk_model *model, int32_t n, int32_t rows, int32_t length) {
    tsk_batch_options options = tsk_batch_options_default();
    tsk_generate_options o = seed_options();
    tsk_batch_status status;
    tsk_error error;
    int32_t prompt[4096], i, j, round;
    double ms[16];
    steps result = {NULL, 0, 0};
    memset(&error, 0, sizeof error);
    o.gen_length = o.steps = 32;
    o.skip.rule = rows < 32 ? TSK_SKIP_RULE_ROWS : TSK_SKIP_RULE_OFF;
    options.max_requests = n;
    options.cache_tokens = options.max_rows = n * length;
    must(tsk_batch_create(model, &options, &result.batch, &error), &error);
    must(tsk_batch_force(result.batch, rows < 32 ? rows : TSK_AUTO, TSK_AUTO, &error), &error);
    for (round = 0; round < 2; round++) { /* the first makes what is made once */
        for (i = 0; i < n; i++) {
            for (j = 0; j < length - 32; j++) prompt[j] = random_below(126000);
            must(tsk_batch_submit(result.batch, prompt, length - 32, NULL, &o, NULL, NULL, &error), &error);
        }
        must(tsk_batch_step(result.batch, &status, &error), &error);
        result.refresh = status.ms;
        if (round == 0) must(tsk_batch_drain(result.batch, &error), &error);
    }
    for (i = 0; i < 3; i++) must(tsk_batch_step(result.batch, &status, &error), &error);
    for (i = 0; i < 16; i++) {
        must(tsk_batch_step(result.batch, &status, &error), &error);
        ms[i] = status.ms;
    }
    result.step = median(ms, 16);
    return result;
}

/* One more between cuProfilerStart and -Stop. */
static void profiled_step(tsk_model *model, int32_t n, int32_t rows, int32_t length) {
    tsk__cuda_backend *b = tsk__cuda_backend_of(model->backend);
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    CUresult (*start)(void) = NULL, (*stop)(void) = NULL;
    tsk_batch_status status;
    tsk_error error;
    char why[128];
    steps s = run_steps(model, n, rows, length);
    memset(&error, 0, sizeof error);
    if (driver && tsk__cuda_symbol(driver, "cuProfilerStart", &start, why, sizeof why) &&
        tsk__cuda_symbol(driver, "cuProfilerStop", &stop, why, sizeof why)) {
        tsk__cuda_enter(b);
        start();
        tsk__cuda_leave(b);
        must(tsk_batch_step(s.batch, &status, &error), &error);
        tsk__cuda_enter(b);
        stop();
        tsk__cuda_leave(b);
    }
    printf("%d x %d rows, %d cached: %.3f ms\n", (int)n, (int)rows, (int)length, s.step);
    tsk_batch_free(s.batch);
}

/* What a pass of `rows` rows takes at the least, in milliseconds: reading the weights and `cached` positions at the
   stream's speed, or its products and attention's at the matrix units'. */
static double pass_floor(const tsk_ceilings *c, double rows, double cached, double keys_a_row, double head_rows) {
    const double layers = 32 * (4 * 4096.0 * 4096 + 3 * 4096.0 * 12288), head = 126464.0 * 4096;
    double bytes = 2 * (layers + head) + cached * 32 * 2 * 4096 * 2,
           flops = 2 * (rows * layers + head_rows * head) + rows * keys_a_row * 32 * 4 * 4096;
    return 1e3 * (bytes / c->bytes_per_second > flops / c->flops_per_second ? bytes / c->bytes_per_second
                                                                            : flops / c->flops_per_second);
}

/* Steps and refreshes beside their floors and cuBLAS's products, all of one run. */
static void step_table(tsk_model *model) {
    static const struct { int32_t n, rows, length; } lines[] = {
        {1, 32, 1280}, {1, 11, 1280}, {1, 32, 147}, {4, 32, 1280}, {8, 32, 1280}, {16, 32, 1280}, {16, 8, 1280},
        {32, 32, 512}, {32, 8, 512}};
    tsk_ceilings ceilings;
    tsk_error error;
    size_t i;
    memset(&error, 0, sizeof error);
    must(tsk_model_ceilings(model, &ceilings, &error), &error);
    printf("stream %.2f TB/s, 8192^3 %.0f TFLOP/s\n", ceilings.bytes_per_second * 1e-12,
           ceilings.flops_per_second * 1e-12);
    printf("requests x (rows of positions) |   step   floor  cuBLAS's products | refresh   floor  cuBLAS's products\n");
    for (i = 0; i < sizeof lines / sizeof *lines; i++) {
        int32_t n = lines[i].n, rows = n * lines[i].rows, all = n * lines[i].length;
        steps s = run_steps(model, n, lines[i].rows, lines[i].length);
        tsk_batch_free(s.batch);
        printf("%6d x (%d of %d)%*s| %6.2f  %6.2f  %6.2f             | %7.2f  %6.2f  %6.2f\n", (int)n,
               (int)lines[i].rows, (int)lines[i].length, lines[i].length < 1000 ? 9 : 8, "", s.step,
               pass_floor(&ceilings, rows, all, lines[i].length, rows), cublas_chain(model, rows, rows), s.refresh,
               pass_floor(&ceilings, all, 0, lines[i].length, 32 * n), cublas_chain(model, all, 32 * n));
    }
}

int main(int argc, char **argv) {
    tsk_model *model;
    tsk__cuda_backend *b;
    tsk_generate_options o = seed_options();
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1 && strcmp(argv[1], "rows") == 0) {
        model = make_model(32);
        rows_gain(model);
        tsk_model_free(model);
        return 0;
    }
    if (argc > 1 && strcmp(argv[1], "table") == 0) {
        model = make_model(32);
        step_table(model);
        tsk_model_free(model);
        return 0;
    }
    if (argc > 5 && strcmp(argv[1], "step") == 0) {
        model = make_model(atoi(argv[2]));
        profiled_step(model, atoi(argv[3]), atoi(argv[4]), atoi(argv[5]));
        tsk_model_free(model);
        return 0;
    }
    start_times(argc > 1 ? argv[1] : NULL);
    model = make_model(32);
    b = tsk__cuda_backend_of(model->backend);
    memory.alloc = b->api.cuMemAlloc_v2;
    b->api.cuMemAlloc_v2 = count_alloc;
    o.skip.layer_k = 0;
    whole_generation(model, "dual cache", o);
    printf("device memory beyond weights, K and V, of a session of 147 tokens: %.1f MB\n",
           (double)memory.total * 1e-6 - 147 * 0.524288);
    host_gaps(model, "dual cache", o);
    o.skip.layer_k = 8, o.skip.masked = 1, o.skip.threshold = 0.9f;
    whole_generation(model, "TokenSkip", o);
    host_gaps(model, "TokenSkip", o);
    o.skip.layer_k = 0, o.refresh_rows = 32, o.refresh_every = 4;
    whole_generation(model, "32 more rows a step, a forward of all every 4th block", o);
    step_table(model);
    mixed_load(model);
    rows_gain(model);
    tsk_model_free(model);
    return 0;
}
