/* Times block steps and refreshes, and says how far they are from what the machine can do at best. */
#include "cli.h"

#include <limits.h>

static const struct {
    const char *name;
    tsk_family family;
    int32_t d_model, n_layers, n_heads, n_kv_heads, head_dim, mlp, vocabulary, mask;
    int is_tied;
} shapes[] = {
    {"llada-8b", TSK_FAMILY_LLADA, 4096, 32, 32, 32, 128, 12288, 126464, 126336, 0},
    {"llada-1b", TSK_FAMILY_LLADA, 2048, 16, 16, 16, 128, 5632, 32768, 32640, 0},
    {"tiny", TSK_FAMILY_LLADA, 256, 4, 4, 4, 64, 704, 2048, 1920, 0},
    {"sdar-1.7b", TSK_FAMILY_SDAR, 2048, 28, 16, 8, 128, 6144, 151936, 151669, 1},
    {"sdar-8b", TSK_FAMILY_SDAR, 4096, 36, 32, 8, 128, 12288, 151936, 151669, 0},
    {"fast-dllm-v2-7b", TSK_FAMILY_FAST_DLLM_V2, 3584, 28, 28, 4, 128, 18944, 152064, 151665, 0},
    {"dream-7b", TSK_FAMILY_DREAM, 3584, 28, 28, 4, 128, 18944, 152064, 151666, 0},
};

/* The numbers of one run, in milliseconds. */
typedef struct timings {
    double *values;
    size_t count, capacity;
} timings;

typedef struct bench {
    const cli_settings *settings;
    tsk_model *model;
    const tsk_model_config *config;
    uint64_t weights_size;
    tsk_ceilings ceilings;
    tsk_tokens prompt;
    size_t cache_element;   /* bytes of a cached value */
    /* what the last pass was, as the step callbacks saw it; sums over the requests in it */
    int32_t block_step, n_active, masked_rows;
    int is_prompt;
    char failure[512];      /* why a request of a batch could not run, or "" */
} bench;

typedef struct run {
    int32_t active;           /* rows above layer K; -1: TokenSkip off */
    int32_t refresh_active;   /* a run of refreshes under skip_refresh: rows outside the block above layer K; -1: not
                                 one */
    int32_t layer_k;          /* layers that all rows run; n_layers where TokenSkip is off */
    double block_step_ms, block_step_floor_ms, refresh_ms, refresh_floor_ms;
    int block_step_is_compute, refresh_is_compute; /* which ceiling the floor comes from */
    size_t block_steps, refreshes;
} run;

/* ---- Model ------------------------------------------------------------------------------------------------------ */

static int shape_config(const bench *b, tsk_model_config *config) {
    const char *name = b->settings->shape ? b->settings->shape : "tiny";
    int32_t canvas = b->settings->bench_prompt + b->settings->bench_gen;
    size_t i = 0, n = sizeof shapes / sizeof shapes[0];
    while (i < n && strcmp(shapes[i].name, name) != 0) i++;
    if (i == n)
        return cli_usage_error("--shape takes llada-8b, llada-1b, tiny, sdar-1.7b, sdar-8b, fast-dllm-v2-7b or "
                               "dream-7b, not '%s'", name);
    memset(config, 0, sizeof *config);
    config->family = shapes[i].family;
    config->d_model = shapes[i].d_model;
    config->n_layers = shapes[i].n_layers;
    config->n_heads = shapes[i].n_heads;
    config->n_kv_heads = shapes[i].n_kv_heads;
    config->head_dim = shapes[i].head_dim;
    config->mlp_hidden_size = shapes[i].mlp;
    config->vocab_size = config->embedding_size = shapes[i].vocabulary;
    config->max_sequence_length = canvas > 4096 ? canvas + b->settings->bench_block : 4096;
    config->mask_token_id = shapes[i].mask;
    config->eos_token_id = config->pad_token_id = shapes[i].mask - 1;
    config->rope_theta = shapes[i].family == TSK_FAMILY_LLADA ? 500000.0f : 1000000.0f;
    config->rms_norm_eps = shapes[i].family == TSK_FAMILY_LLADA ? 1e-5f : 1e-6f;
    config->weight_tying = shapes[i].is_tied;
    config->qkv_bias = shapes[i].family == TSK_FAMILY_FAST_DLLM_V2 || shapes[i].family == TSK_FAMILY_DREAM;
    if (tsk_config_by_blocks(config)) config->block_length = b->settings->bench_block;
    return CLI_OK;
}

static const char *const weights_names[] = {"as-stored", "q8", "q4"};

static int load_folder(bench *b) {
    cli_engine engine;
    tsk_weights_format formats[32];
    tsk_folder *folder = NULL;
    tsk_error error = {0};
    int status = CLI_OK;
    int32_t i, n;
    if (tsk_folder_open(b->settings->model_dir, NULL, &folder, &error) != TSK_OK) status = cli_fail_with(&error, NULL);
    n = tsk_folder_formats(folder, b->settings->model.weights, formats, 32);
    for (i = 0; i < n; i++) b->weights_size += formats[i].bytes;
    tsk_folder_free(folder);
    if (status != CLI_OK) return status;
    status = cli_load_model(&engine, b->settings);
    b->model = engine.model;
    return status;
}

static int make_random(bench *b) {
    tsk_model_config config;
    tsk_error error = {0};
    int status = shape_config(b, &config);
    if (status != CLI_OK) return status;
    cli_note("making random weights");
    if (tsk_model_random(&config, 0, &b->settings->model, &b->model, &error) != TSK_OK)
        status = cli_fail_with(&error, NULL);
    return status;
}

/* Ids that mean nothing, below the special ones. */
static void make_prompt(bench *b) {
    uint32_t random = 1;
    int32_t i, id,
        limit = b->config->mask_token_id < b->config->eos_token_id ? b->config->mask_token_id : b->config->eos_token_id;
    if (limit < 2) limit = b->config->vocab_size;
    for (i = 0; i < b->settings->bench_prompt; i++) {
        do {
            random = random * 1664525u + 1013904223u; /* Numerical Recipes' generator */
            id = (int32_t)((random >> 8) % (uint32_t)limit);
        } while (id == b->config->mask_token_id || id == b->config->eos_token_id);
        if (tsk_tokens_append(&b->prompt, &id, 1) != TSK_OK) exit(cli_fail("out of memory"));
    }
}

/* ---- Floors ----------------------------------------------------------------------------------------------------- */

static double layer_parameters(const tsk_model_config *c) {
    double d = c->d_model, q = (double)c->n_heads * c->head_dim, kv = (double)c->n_kv_heads * c->head_dim;
    return d * q * 2 + d * kv * 2 + 3.0 * d * c->mlp_hidden_size;
}

static double all_parameters(const tsk_model_config *c) {
    double table = (double)c->embedding_size * c->d_model;
    return layer_parameters(c) * c->n_layers + table * (c->weight_tying ? 1 : 2);
}

/* What passes through one kind of layer in a pass. */
typedef struct work { double bytes, flops; } work;

static int by_blocks(const bench *b) { return tsk_config_by_blocks(b->config); }

/* By blocks: rows of the prompt's whole blocks. */
static int32_t prompt_rows(const cli_settings *s) { return s->bench_prompt / s->bench_block * s->bench_block; }

/* `layers` layers in which `rows` rows of each request run against `canvas` cached rows: weights are read once for all
   of them, cached rows once for each request. */
static void add_layers(work *w, const bench *b, double layers, double rows, double canvas) {
    const tsk_model_config *c = b->config;
    double weight = (double)b->weights_size / all_parameters(c);
    double requests = b->settings->batch;
    if (rows <= 0) return;
    w->bytes += layers * layer_parameters(c) * weight;
    w->bytes += requests * layers * canvas * 2 * c->n_kv_heads * c->head_dim * (double)b->cache_element;
    w->flops += requests * layers * rows * (2 * layer_parameters(c) + 4 * canvas * c->n_heads * c->head_dim);
}

static void add_head(work *w, const bench *b, double rows) {
    double parameters = (double)b->config->embedding_size * b->config->d_model;
    if (rows <= 0) return;
    w->bytes += parameters * ((double)b->weights_size / all_parameters(b->config));
    w->flops += 2 * parameters * rows;
}

static double floor_ms(const bench *b, const work *w, int *is_compute) {
    double reading = w->bytes / b->ceilings.bytes_per_second, computing = w->flops / b->ceilings.flops_per_second;
    *is_compute = computing > reading;
    return 1e3 * (computing > reading ? computing : reading);
}

/* `head_rows`: on average in a block step, of all requests together. */
static void set_floors(const bench *b, run *r, double head_rows) {
    work step = {0, 0}, refresh = {0, 0};
    double block = b->settings->bench_block, layers = b->config->n_layers;
    double canvas = (double)b->settings->bench_prompt + b->settings->bench_gen;
    if (by_blocks(b)) canvas = prompt_rows(b->settings) + block;
    add_layers(&step, b, r->layer_k, block, canvas);
    add_layers(&step, b, layers - r->layer_k, r->active, canvas);
    add_head(&step, b, head_rows);
    if (by_blocks(b)) { /* a row of the prompt sees half of it, on average */
        add_layers(&refresh, b, layers, prompt_rows(b->settings), canvas / 2);
        r->refresh_floor_ms = floor_ms(b, &refresh, &r->refresh_is_compute);
        r->block_step_floor_ms = floor_ms(b, &step, &r->block_step_is_compute);
        return;
    }
    add_layers(&refresh, b, r->refresh_active < 0 ? layers : r->layer_k, canvas, canvas);
    if (r->refresh_active >= 0) add_layers(&refresh, b, layers - r->layer_k, block + r->refresh_active, canvas);
    add_head(&refresh, b, block * b->settings->batch);
    r->block_step_floor_ms = floor_ms(b, &step, &r->block_step_is_compute);
    r->refresh_floor_ms = floor_ms(b, &refresh, &r->refresh_is_compute);
}

/* ---- Measuring -------------------------------------------------------------------------------------------------- */

static void add_timing(timings *t, double value) {
    if (t->count == t->capacity) {
        double *grown = (double *)realloc(t->values, (t->capacity = t->capacity * 2 + 64) * sizeof *grown);
        if (!grown) exit(cli_fail("out of memory"));
        t->values = grown;
    }
    t->values[t->count++] = value;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(timings *t) {
    if (!t->count) return 0;
    qsort(t->values, t->count, sizeof *t->values, compare_doubles);
    return (t->values[(t->count - 1) / 2] + t->values[t->count / 2]) / 2;
}

/* The head runs on rows that were masked when the pass began and went through the upper layers. */
static int on_step(void *user, const tsk_step *step) {
    bench *b = (bench *)user;
    int32_t i;
    b->block_step = step->block_step;
    b->is_prompt = step->is_prompt;
    b->n_active += step->n_active;
    for (i = 0; i < step->n_positions; i++)
        if (step->active[i] && (step->committed[i] || step->canvas[step->positions[i]] == b->config->mask_token_id))
            b->masked_rows++;
    return cli_interrupted();
}

static int is_by_rows(const bench *b) { return b->settings->skip_rule == (int)TSK_SKIP_RULE_ROWS; }

/* One token a step is committed, so that a block has a refresh and block_length - 1 block steps. */
static tsk_generate_options step_options(bench *b, const run *r) {
    tsk_generate_options options = tsk_generate_options_default();
    options.gen_length = b->settings->bench_gen;
    if (!by_blocks(b)) options.steps = b->settings->bench_gen;
    options.block_length = b->settings->bench_block;
    options.small_block = 0;
    options.prompt_rows = b->settings->bench_prompt; /* in one piece */
    options.transfer = TSK_TRANSFER_SCHEDULE;
    options.eos_stop = 0;
    options.skip.layer_k = 0;
    if (r->active >= 0 && is_by_rows(b)) options.skip.rule = TSK_SKIP_RULE_ROWS;
    else if (r->active >= 0) {
        options.skip.layer_k = r->layer_k;
        options.skip.masked = 1;
        options.skip.warm_start = !by_blocks(b); /* else the first block step of a block would run everything */
    }
    if (r->refresh_active >= 0) { /* everything is committed at once, so that every pass is a refresh */
        options.steps = b->settings->bench_gen / b->settings->bench_block;
        options.skip.layer_k = r->layer_k;
        options.skip.refresh = 1;
    }
    options.on_step = on_step;
    options.user = b;
    return options;
}

/* One request alone is a session; several, which start together and take the same steps, are a batch. */
typedef struct engine {
    tsk_generate_options options;
    tsk_session *session;
    tsk_batch *batch;
    uint64_t last_id;
} engine;

static void on_done(void *user, uint64_t id, void *request_user, const tsk_result *result, const tsk_error *error) {
    bench *b = (bench *)user;
    (void)id;
    (void)request_user;
    (void)result;
    if (error) snprintf(b->failure, sizeof b->failure, "%s", error->message);
}

static int open_engine(engine *e, bench *b, const run *r, tsk_error *error) {
    tsk_batch_options options = tsk_batch_options_default();
    memset(e, 0, sizeof *e);
    e->options = step_options(b, r);
    if (b->settings->batch == 1)
        return tsk_session_create(b->model, &e->options, &e->session, error) == TSK_OK &&
               tsk_session_force(e->session, r->active, r->refresh_active, error) == TSK_OK;
    options.on_done = on_done;
    options.user = b;
    options.max_requests = b->settings->batch;
    options.max_rows = options.cache_tokens =
        b->settings->batch * (b->settings->bench_prompt + b->settings->bench_gen +
                              (by_blocks(b) ? b->settings->bench_block : 0)); /* all refreshes in one pass */
    return tsk_batch_create(b->model, &options, &e->batch, error) == TSK_OK &&
           tsk_batch_force(e->batch, r->active, r->refresh_active, error) == TSK_OK;
}

/* Each time with another first token: a session does not compute again what it has finished. */
static int start(engine *e, bench *b, tsk_error *error) {
    int32_t i, n = b->prompt.count;
    if (by_blocks(b)) b->prompt.ids[0] = b->prompt.ids[0] % 1000 + 1;
    if (e->session) return tsk_session_start(e->session, b->prompt.ids, n, NULL, error) == TSK_OK;
    for (i = 0; i < b->settings->batch; i++)
        if (tsk_batch_submit(e->batch, b->prompt.ids, n, NULL, &e->options, NULL, &e->last_id, error) != TSK_OK)
            return 0;
    return 1;
}

static int step(engine *e, bench *b, tsk_error *error) {
    int finished;
    b->n_active = b->masked_rows = 0;
    if (e->session) return tsk_session_step(e->session, &finished, error) == TSK_OK;
    if (tsk_batch_step(e->batch, NULL, error) != TSK_OK) return 0;
    if (!b->failure[0]) return 1;
    snprintf(error->message, sizeof error->message, "%s", b->failure);
    error->offset = TSK_NO_OFFSET;
    return 0;
}

/* Gives up what is left of the generations. */
static int stop(engine *e, const bench *b, tsk_error *error) {
    int32_t i;
    if (e->session) return 1;
    for (i = 0; i < b->settings->batch; i++) tsk_batch_cancel(e->batch, e->last_id - (uint64_t)i);
    return tsk_batch_drain(e->batch, error) == TSK_OK;
}

static void close_engine(engine *e) {
    tsk_session_free(e->session);
    tsk_batch_free(e->batch);
}

/* One block of fresh generations. `steps` NULL: a warm-up, a few passes of which nothing is kept. */
static int measure_block(bench *b, const run *r, engine *e, timings *steps, timings *refreshes, double *head_rows,
                         tsk_error *error) {
    int32_t block = b->settings->bench_block, pass, all = block, passes;
    /* by blocks the prompt comes first, and may fill the block's first position */
    if (by_blocks(b)) all += (prompt_rows(b->settings) > 0) - (b->config->family == TSK_FAMILY_FAST_DLLM_V2);
    if (by_blocks(b)) all -= b->settings->bench_prompt - prompt_rows(b->settings); /* (the prompt's rest is there) */
    passes = steps || all < 3 ? all : 3;
    if (!start(e, b, error)) return 0;
    for (pass = 0; pass < passes && !cli_interrupted(); pass++) {
        double begin = cli_now_ms(), elapsed;
        if (!step(e, b, error)) return 0;
        elapsed = cli_now_ms() - begin;
        if (!steps) continue;
        if (by_blocks(b) ? b->is_prompt : b->block_step == 0) add_timing(refreshes, elapsed);
        else if (r->active < 0 || b->n_active == r->active * b->settings->batch) {
            add_timing(steps, elapsed);
            *head_rows += b->masked_rows;
        }
    }
    return stop(e, b, error);
}

/* The refreshes of one generation but its first, which has nothing to compare with. */
static int measure_refreshes(bench *b, engine *e, timings *refreshes, tsk_error *error) {
    int32_t pass, passes = b->settings->bench_gen / b->settings->bench_block;
    if (!start(e, b, error)) return 0;
    for (pass = 0; pass < passes && !cli_interrupted(); pass++) {
        double begin = cli_now_ms();
        if (!step(e, b, error)) return 0;
        if (pass) add_timing(refreshes, cli_now_ms() - begin);
    }
    return stop(e, b, error);
}

static int measure(bench *b, run *r) {
    timings steps = {NULL, 0, 0}, refreshes = {NULL, 0, 0};
    engine e;
    tsk_error error = {0};
    double head_rows = 0;
    int32_t i;
    int good = open_engine(&e, b, r, &error);
    if (r->refresh_active < 0) good = good && measure_block(b, r, &e, NULL, NULL, NULL, &error);
    for (i = 0; good && !cli_interrupted() && i < b->settings->repeat; i++)
        good = r->refresh_active < 0 ? measure_block(b, r, &e, &steps, &refreshes, &head_rows, &error)
                                     : measure_refreshes(b, &e, &refreshes, &error);
    r->block_steps = steps.count;
    r->refreshes = refreshes.count;
    r->block_step_ms = median(&steps);
    r->refresh_ms = median(&refreshes);
    set_floors(b, r, steps.count ? head_rows / (double)steps.count : 0);
    if (!good) cli_fail_with(&error, NULL);
    else if (cli_interrupted()) good = cli_fail("interrupted: the measurements are incomplete, not printed") == CLI_OK;
    close_engine(&e);
    free(steps.values);
    free(refreshes.values);
    return good ? CLI_OK : CLI_FAILED;
}

static int measure_all(bench *b, run *runs, size_t n) {
    size_t i;
    int status = CLI_OK;
    for (i = 0; i < n && status == CLI_OK; i++) {
        char tail[64];
        int32_t k = b->settings->generate.skip.layer_k;
        size_t n_steps = n - b->settings->refresh_active.count;
        runs[i].active = b->settings->active.count && i < n_steps ? b->settings->active.ids[i] : -1;
        runs[i].refresh_active = i < n_steps ? -1 : b->settings->refresh_active.ids[i - n_steps];
        if (k <= 0) k = b->config->n_layers / 4 > 2 ? b->config->n_layers / 4 : 2;
        if (is_by_rows(b) && runs[i].active >= 0) k = 0;
        runs[i].layer_k =
            (runs[i].active < 0 && runs[i].refresh_active < 0) || k > b->config->n_layers ? b->config->n_layers : k;
        snprintf(tail, sizeof tail, "run %zu of %zu", i + 1, n);
        cli_progress("bench", (double)i / (double)n, tail);
        status = measure(b, &runs[i]);
    }
    cli_progress_clear();
    return status;
}

/* ---- Results ---------------------------------------------------------------------------------------------------- */

static double over_floor(double ms, double floor) { return floor > 0 ? ms / floor : 0; }
static int64_t step_rows(const cli_settings *s) { return (int64_t)s->batch * s->bench_block; }
static int64_t refresh_rows(const bench *b) {
    const cli_settings *s = b->settings;
    return (int64_t)s->batch * (by_blocks(b) ? prompt_rows(s) : s->bench_prompt + s->bench_gen);
}
static double rows_per_second(int64_t rows, double ms) { return ms > 0 ? (double)rows * 1e3 / ms : 0; }

/* A pass over the canvas, or by blocks over the prompt. */
static const char *whole_pass(const bench *b) { return by_blocks(b) ? "prompt" : "refresh"; }

static const char *whole_key(const bench *b, const char *what) {
    static char key[64];
    snprintf(key, sizeof key, "%s_%s", whole_pass(b), what);
    return key;
}

static void write_run(tsk_json_writer *json, const bench *b, const run *r) {
    const cli_settings *s = b->settings;
    tsk_json_begin_object(json);
    tsk_json_write_key(json, "active");
    if (r->active < 0) tsk_json_write_null(json);
    else tsk_json_write_int(json, r->active);
    tsk_json_write_key(json, "refresh_active");
    if (r->refresh_active < 0) tsk_json_write_null(json);
    else tsk_json_write_int(json, r->refresh_active);
    cli_json_uint(json, "skip_layer_k", r->active < 0 && r->refresh_active < 0 ? 0 : (uint64_t)r->layer_k);
    cli_json_double(json, "block_step_ms", r->block_step_ms);
    cli_json_double(json, "block_step_floor_ms", r->block_step_floor_ms);
    cli_json_double(json, "block_step_ratio", over_floor(r->block_step_ms, r->block_step_floor_ms));
    cli_json_string(json, "block_step_bound", r->block_step_is_compute ? "compute" : "memory");
    cli_json_uint(json, "block_step_rows", (uint64_t)step_rows(s));
    cli_json_double(json, "block_step_rows_per_second", rows_per_second(step_rows(s), r->block_step_ms));
    cli_json_uint(json, "block_steps", r->block_steps);
    cli_json_double(json, whole_key(b, "ms"), r->refresh_ms);
    cli_json_double(json, whole_key(b, "floor_ms"), r->refresh_floor_ms);
    cli_json_double(json, whole_key(b, "ratio"), over_floor(r->refresh_ms, r->refresh_floor_ms));
    cli_json_string(json, whole_key(b, "bound"), r->refresh_is_compute ? "compute" : "memory");
    cli_json_uint(json, whole_key(b, "rows"), (uint64_t)refresh_rows(b));
    cli_json_double(json, whole_key(b, "rows_per_second"), rows_per_second(refresh_rows(b), r->refresh_ms));
    cli_json_uint(json, by_blocks(b) ? "prompts" : "refreshes", r->refreshes);
    tsk_json_end_object(json);
}

static const char *shape_name(const cli_settings *settings) {
    return settings->model_dir ? settings->model_dir : settings->shape ? settings->shape : "tiny";
}

static int print_json(const bench *b, const run *runs, size_t n) {
    tsk_text out = {0};
    tsk_json_writer json = {0};
    size_t i;
    int status;
    json.out = &out;
    tsk_json_begin_object(&json);
    cli_json_string(&json, b->settings->model_dir ? "model" : "shape", shape_name(b->settings));
    cli_json_string(&json, "device", tsk_model_device_name(b->model));
    cli_json_string(&json, "dtype", b->cache_element == 2 ? "bf16" : "f32");
    cli_json_uint(&json, "batch", (uint64_t)b->settings->batch);
    cli_json_uint(&json, "prompt", (uint64_t)b->settings->bench_prompt);
    cli_json_uint(&json, "gen", (uint64_t)b->settings->bench_gen);
    cli_json_uint(&json, "block", (uint64_t)b->settings->bench_block);
    cli_json_uint(&json, "repeat", (uint64_t)b->settings->repeat);
    cli_json_string(&json, "weights", weights_names[b->settings->weights]);
    cli_json_uint(&json, "weights_bytes", b->weights_size);
    tsk_json_write_key(&json, "ceilings");
    tsk_json_begin_object(&json);
    cli_json_double(&json, "bytes_per_second", b->ceilings.bytes_per_second);
    cli_json_double(&json, "flops_per_second", b->ceilings.flops_per_second);
    tsk_json_end_object(&json);
    tsk_json_write_key(&json, "runs");
    tsk_json_begin_array(&json);
    for (i = 0; i < n; i++) write_run(&json, b, &runs[i]);
    tsk_json_end_array(&json);
    tsk_json_end_object(&json);
    status = cli_json_print(&json);
    tsk_text_free(&out);
    return status;
}

static void print_row(tsk_text *out, const char *what, int64_t rows, double ms, double floor, int is_compute) {
    cli_append(out, "%-24s %7lld %12.3f %12.0f %12.3f %8.2fx  %s\n", what, (long long)rows, ms,
               rows_per_second(rows, ms), floor, over_floor(ms, floor), is_compute ? "compute" : "memory");
}

static int print_table(const bench *b, const run *runs, size_t n) {
    tsk_text out = {0};
    const cli_settings *s = b->settings;
    size_t i;
    int status;
    cli_append(&out, "%.1000s on %s, batch %d, prompt %d, gen %d, block %d\n", shape_name(s),
               tsk_model_device_name(b->model), (int)s->batch, (int)s->bench_prompt, (int)s->bench_gen,
               (int)s->bench_block);
    cli_append(&out, "ceilings: %.1f GB/s, %.1f GFLOP/s\n\n", b->ceilings.bytes_per_second / 1e9,
               b->ceilings.flops_per_second / 1e9);
    cli_append(&out, "%-24s %7s %12s %12s %12s %9s  %s\n", "", "rows", "median ms", "rows/s", "floor ms", "ratio",
               "bound by");
    for (i = 0; i < n; i++) {
        char what[64];
        if (runs[i].active < 0) snprintf(what, sizeof what, "block step");
        else
            snprintf(what, sizeof what, "block step, %d %s", (int)runs[i].active, is_by_rows(b) ? "rows" : "active");
        if (i == 0 && refresh_rows(b))
            print_row(&out, whole_pass(b), refresh_rows(b), runs[i].refresh_ms, runs[i].refresh_floor_ms,
                      runs[i].refresh_is_compute);
        if (runs[i].refresh_active >= 0) {
            snprintf(what, sizeof what, "refresh, %d + %d active", (int)s->bench_block, (int)runs[i].refresh_active);
            print_row(&out, what, refresh_rows(b), runs[i].refresh_ms, runs[i].refresh_floor_ms,
                      runs[i].refresh_is_compute);
            continue;
        }
        print_row(&out, what, step_rows(s), runs[i].block_step_ms, runs[i].block_step_floor_ms,
                  runs[i].block_step_is_compute);
    }
    status = cli_write(out.data, out.length);
    tsk_text_free(&out);
    return status;
}

/* ---- The command ------------------------------------------------------------------------------------------------ */

static int check(const cli_settings *s) {
    int32_t i;
    if (s->bench_prompt > INT_MAX / 4 || s->bench_gen > INT_MAX / 4)
        return cli_usage_error("--prompt %d and --gen %d are beyond any model", (int)s->bench_prompt,
                               (int)s->bench_gen);
    if (s->bench_block < 2 || s->bench_gen % s->bench_block != 0)
        return cli_usage_error("--gen %d is not a multiple of --block %d, of two or more", (int)s->bench_gen,
                               (int)s->bench_block);
    if ((int64_t)s->batch * ((int64_t)s->bench_prompt + s->bench_gen) > INT_MAX / 4)
        return cli_usage_error("--batch %d of %d tokens each is beyond any memory", (int)s->batch,
                               (int)(s->bench_prompt + s->bench_gen));
    if (s->refresh_active.count && s->bench_gen < 2 * s->bench_block)
        return cli_usage_error("--refresh-active needs two blocks at least: --gen %d is one of %d", (int)s->bench_gen,
                               (int)s->bench_block);
    if (s->active.count && s->skip_rule == (int)TSK_SKIP_RULE_OFF)
        return cli_usage_error("--active needs TokenSkip: --skip-rule states or rows, not off");
    for (i = 0; i < s->active.count; i++)
        if (s->active.ids[i] == 0 && s->skip_rule == (int)TSK_SKIP_RULE_ROWS)
            return cli_usage_error("--active 0 and --skip-rule rows exclude each other: a pass of no rows commits "
                                   "nothing");
    for (i = 0; i < s->active.count; i++)
        if (s->active.ids[i] > s->bench_block)
            return cli_usage_error("--active %d is more than the %d tokens of a block", (int)s->active.ids[i],
                                   (int)s->bench_block);
    return CLI_OK;
}

/* Of random weights, which are BF16 where they are not quantised. */
static uint64_t random_weights_size(const bench *b) {
    tsk_memory_query query = tsk_memory_query_default();
    tsk_generate_options generate = tsk_generate_options_default();
    tsk_memory memory = {0, 0, 0};
    query.config = b->config;
    query.weights = b->settings->model.weights;
    query.canvas = generate.gen_length = generate.block_length = 1;
    query.generate = &generate;
    tsk_memory_estimate(&query, &memory, NULL);
    return memory.weights;
}

/* The two ceilings and what the floors are computed from. */
static int prepare(bench *b) {
    tsk_error error = {0};
    const char *device = tsk_model_device_name(b->model);
    int status = CLI_OK;
    b->config = tsk_model_get_config(b->model);
    if (by_blocks(b) && b->settings->refresh_active.count)
        return cli_usage_error("--refresh-active: a model that attends by blocks refreshes nothing");
    b->cache_element = tsk_dtype_size(tsk_model_dtype(b->model));
    if (!b->weights_size) b->weights_size = random_weights_size(b);
    make_prompt(b);
    cli_note("measuring the ceilings of %s", device);
    if (tsk_model_ceilings(b->model, &b->ceilings, &error) != TSK_OK) status = cli_fail_with(&error, NULL);
    return status;
}

int cmd_bench(cli_settings *settings) {
    bench b;
    size_t n = (settings->active.count ? settings->active.count : 1) + settings->refresh_active.count;
    run *runs = (run *)calloc(n, sizeof *runs);
    int status = check(settings);
    memset(&b, 0, sizeof b);
    b.settings = settings;
    if (!runs) status = cli_fail("out of memory");
    cli_catch_interrupts();
    if (status == CLI_OK) status = settings->model_dir ? load_folder(&b) : make_random(&b);
    if (status == CLI_OK) status = prepare(&b);
    if (status == CLI_OK) status = measure_all(&b, runs, n);
    if (status == CLI_OK) status = settings->json ? print_json(&b, runs, n) : print_table(&b, runs, n);
    tsk_model_free(b.model);
    tsk_tokens_free(&b.prompt);
    free(runs);
    return status;
}
