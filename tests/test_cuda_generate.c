/* >>cuda: whole generations. In f32 the tokens are the CPU's wherever no decision hangs on rounding; the invariants
   hold to the last bit in f32 and bf16; and in f32 a request of a batch gets the tokens that it gets alone. Without a
   GPU the margins of the CPU's decisions are still measured, so that it is known how many generations would be
   compared, and that measuring them changes nothing. */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_CUDA_DLOPEN
#ifndef TEST_HEADER
#define TEST_HEADER "../tokenskip.h"
#endif
#include TEST_HEADER
#include "invariants.h"
#include "random_model.h"
#include "requests.h"

/* Heads that are sure of something, so that confidences are spread and thresholds between them mean something. */
static const shape shapes[] = {{"mha 64", 256, 5, 4, 4, 320, 96, 0, 0, 0, 3},
                               {"gqa 128", 512, 4, 4, 2, 264, 120, 1, 0, 0, 4},
                               {"odd", 78, 6, 3, 1, 115, 101, 1, 1, 0, 3},
                               {"hd 16", 64, 6, 4, 2, 96, 80, 0, 0, 1, 4}};
#ifdef __SANITIZE_ADDRESS__ /* slow, and without a GPU: some, for what a sanitizer sees in this file */
enum { n_shapes = sizeof shapes / sizeof shapes[0], n_generations = 6, min_kept = 4, is_whole = 0 };
#else
enum { n_shapes = sizeof shapes / sizeof shapes[0], n_generations = 60, min_kept = 40, is_whole = 1 };
#endif
#define MARGIN 1e-4

/* ---- how near to another outcome the CPU's decisions come */

static struct probe {
    const run *r;
    const tsk__backend_ops *ops;   /* the CPU's own */
    double margin;                 /* the smallest so far */
    const char *where;             /* in which decision */
    int32_t layer_k;               /* resolved */
    int n_compared;                /* states whose cosines the pass under way has */
    int32_t block_masks;           /* at the start of the block, */
    float last[max_length];        /* and its positions' last confidences */
} probe;

static void narrow_margin(double gap, const char *where) {
    if (!(gap < probe.margin)) return;
    probe.margin = gap;
    probe.where = where;
}

/* The two best of the scores that a prediction is the best of: logits, with this draw's noise. */
static void probe_logits(const tsk__draw *draw, const float *logits, int32_t n) {
    double best = -1e300, second = -1e300;
    uint32_t words[4];
    int32_t id;
    for (id = 0; id < n; id++) {
        double score = (double)logits[id];
        if (id == draw->mask_token_id) continue;
        tsk__random_words(draw->seed, (uint32_t)id >> 2, draw->position, draw->pass, 0, words);
        if (draw->temperature > 0) score -= (double)draw->temperature * log(-log(tsk__random_from_word(words[id & 3])));
        if (score > best) second = best, best = score;
        else if (score > second) second = score;
    }
    narrow_margin(best - second, "argmax");
}

static void probe_head(tsk__stream *s, int32_t n, const int32_t *index, const tsk__draw *draws) {
    int32_t v = s->backend->config->embedding_size, i;
    float *logits = (float *)malloc((size_t)n * (size_t)v * sizeof *logits);
    if (!logits) exit(2);
    probe.ops->head(s, n, index, draws);
    probe.ops->logits(s, n, index, NULL, logits);
    for (i = 0; i < n; i++) probe_logits(&draws[i], logits + (size_t)i * (size_t)v, v);
    free(logits);
}

/* How far every token that may be skipped is from being judged otherwise. Rows that are not decided about count too. */
static void probe_cosines(tsk__stream *s) {
    const tsk_generate_options *o = &probe.r->options;
    const tsk__rows *rows = &tsk__cpu_stream_of(s)->rows;
    int32_t i, l;
    for (i = 0; i < rows->n && probe.n_compared; i++) {
        double least = 2, sum = 0, below, above;
        if (rows->slots[i] < 0 || (rows->tokens[i] == probe.r->mask && !o->skip.masked)) continue;
        for (l = 0; l < probe.n_compared; l++) {
            double c = (double)s->cosines[(size_t)l * (size_t)s->max_rows + (size_t)i];
            sum += c;
            if (c < least) least = c;
        }
        below = least - (double)o->skip.outlier, above = sum / probe.n_compared - (double)o->skip.threshold;
        if (o->skip.threshold >= 1) above = -1; /* a mean is at most 1, exactly */
        if (below >= 0 && above > 0) narrow_margin(below < above ? below : above, "stable");
        else
            narrow_margin(below < 0 && above <= 0 ? (-below > -above ? -below : -above)
                          : below < 0             ? -below
                                                  : -above,
                          "active");
    }
    probe.n_compared = 0;
}

static void probe_compare(tsk__stream *s, int32_t state) {
    probe.ops->compare(s, state);
    probe.n_compared = (int)state + 1;
    if (state + 2 == probe.layer_k) probe_cosines(s);
}

/* Adds one to n confidences that fall. */
static int32_t sort_in(float *confidences, int32_t n, float confidence) {
    int32_t i;
    for (i = n; i > 0 && confidences[i - 1] < confidence; i--) confidences[i] = confidences[i - 1];
    confidences[i] = confidence;
    return n + 1;
}

/* The order of the last confidences where the rule ROWS, by schedule, leaves out masked tokens. (Random ones are the
   same everywhere.) */
static void probe_rows(const tsk_step *step) {
    const tsk_generate_options *o = &probe.r->options;
    int32_t steps = (o->steps == TSK_AUTO ? o->gen_length : o->steps) / (o->gen_length / o->block_length), i, n = 0,
            quota = 1, most;
    float last[max_length];
    for (i = 0; i < step->n_positions; i++)
        if (probe.r->seen_canvas[step->positions[i]] == probe.r->mask)
            n = sort_in(last, n, probe.last[step->positions[i]]);
    if (step->block_step == 0) probe.block_masks = n;
    if (step->block_step < steps) quota = probe.block_masks / steps + (step->block_step < probe.block_masks % steps);
    if (quota < 1) quota = 1;
    if (step->block_step > 0 && rule_of(o) == TSK_SKIP_RULE_ROWS && o->transfer == TSK_TRANSFER_SCHEDULE &&
        o->remasking == TSK_REMASKING_LOW_CONFIDENCE && o->skip.rows_margin < n - quota)
        most = quota + o->skip.rows_margin, narrow_margin((double)last[most - 1] - (double)last[most], "rows");
    for (i = 0; i < step->n_positions; i++) probe.last[step->positions[i]] = step->confidences[i];
}

/* The candidates of a step, the surest first. */
typedef struct ranking {
    float confidences[max_length], entropies[max_length];
    int32_t n, committed;
} ranking;

static ranking rank_step(const run *r, const tsk_step *step) {
    ranking k;
    int32_t i, j;
    k.n = k.committed = 0;
    for (i = 0; i < step->n_positions; i++) {
        if (r->seen_canvas[step->positions[i]] != r->mask) continue;
        if (rule_of(&r->options) == TSK_SKIP_RULE_ROWS && !step->active[i]) continue; /* no candidate */
        k.committed += step->committed[i] != 0;
        j = k.n;
        k.n = sort_in(k.confidences, k.n, step->confidences[i]);
        for (; j > 0 && k.confidences[j] != step->confidences[i]; j--) k.entropies[j] = k.entropies[j - 1];
        k.entropies[j] = step->entropies[i];
    }
    return k;
}

/* How far the candidate after i others is from the bound that decides about it, by a rule that goes down the
   ranking. */
static double ranked_distance(const tsk_generate_options *o, const ranking *k, int32_t i) {
    double c = (double)k->confidences[i], right = 1, entropy = 0, largest = 0;
    int32_t j;
    for (j = 0; j <= i; j++) {
        right -= 1 - (double)k->confidences[j];
        entropy += (double)k->entropies[j];
        if ((double)k->entropies[j] > largest) largest = (double)k->entropies[j];
    }
    switch (o->transfer) {
    case TSK_TRANSFER_THRESHOLD: return fabs(c - (double)o->threshold);
    case TSK_TRANSFER_FACTOR: return fabs(c - (1.0 - (double)o->factor / (i + 2)));
    case TSK_TRANSFER_FRECHET: return fabs((right > 0 ? right : 0) - (1 - c) - (double)o->frechet);
    default: return fabs(entropy - largest - (double)o->entropy_bound);
    }
}

/* The order of confidences where the last committed and the first uncommitted meet, and the distance from the
   bounds. */
static int probe_step(void *user, const tsk_step *step) {
    run *r = (run *)user;
    const tsk_generate_options *o = &r->options;
    ranking k = rank_step(r, step);
    int32_t i;
    probe_rows(step);
    if (o->transfer == TSK_TRANSFER_LEAP) {
        if (k.n > 1) narrow_margin((double)k.confidences[0] - (double)k.confidences[1], "order");
        for (i = 0; i < k.n; i++) {
            narrow_margin(fabs((double)k.confidences[i] - (double)o->threshold), "bound");
            narrow_margin(fabs((double)k.confidences[i] - (double)o->local_leap), "bound");
        }
        return watch(user, step);
    }
    if (k.committed < k.n && (k.committed == 1 || o->transfer != TSK_TRANSFER_THRESHOLD))
        narrow_margin((double)k.confidences[k.committed - 1] - (double)k.confidences[k.committed], "order");
    for (i = 1; i < k.n && i <= k.committed && o->transfer != TSK_TRANSFER_SCHEDULE; i++)
        narrow_margin(ranked_distance(o, &k, i), "bound");
    return watch(user, step);
}

/* A generation on the CPU, and its smallest margin. */
static void generate_probed(tsk_model *model, run *r) {
    tsk__backend_ops probing = *model->backend->ops;
    tsk_session *session = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    memset(&probe, 0, sizeof probe);
    probe.layer_k = r->options.skip.layer_k;
    if (probe.layer_k == TSK_AUTO) probe.layer_k = model->config.n_layers / 4 > 2 ? model->config.n_layers / 4 : 2;
    probe.r = r, probe.ops = model->backend->ops, probe.margin = 1e300, probe.where = "none";
    probing.head = probe_head, probing.compare = probe_compare;
    model->backend->ops = &probing;
    prepare(r);
    r->options.on_step = probe_step;
    must(tsk_session_create(model, &r->options, &session, &error), &error);
    must(tsk_generate(session, r->prompt, r->n_prompt, r->has_generated ? r->generated : NULL, &r->result, &error),
         &error);
    keep_result(r);
    tsk_session_free(session);
    model->backend->ops = probe.ops;
}

/* ---- the same on both */

typedef struct coverage {
    int kept, dual, prefix, none, skipped, skipped_masked, exits, refreshes, ages, outliers, last_computed,
        temperatures, schedules, factors, frechets, entropies, leaps, infills, rows, rows_masked, aheads, nears,
        windows;
} coverage;

static void cover(coverage *c, const run *r) {
    const tsk_generate_options *o = &r->options;
    int32_t i, infilled = 0;
    for (i = 0; i < r->n_prompt; i++) infilled |= r->prompt[i] == r->mask;
    c->kept++;
    c->dual += o->cache == TSK_CACHE_DUAL, c->prefix += o->cache == TSK_CACHE_PREFIX,
        c->none += o->cache == TSK_CACHE_NONE;
    if (rule_of(o) == TSK_SKIP_RULE_STATES)
        c->skipped += r->n_skipped > 0, c->skipped_masked += r->n_skipped_masked > 0,
            c->exits += r->n_skipped > 0 && o->skip.policy == TSK_SKIP_EXIT,
            c->ages += r->n_skipped > 0 && o->skip.max_age > 0,
            c->last_computed += r->n_skipped > 0 && o->skip.reference == TSK_SKIP_LAST_COMPUTED,
            c->outliers += r->n_skipped > 0 && o->skip.outlier > 0;
    c->refreshes += o->skip.refresh && r->result.refresh_token_layers_computed < r->result.refresh_token_layers_total;
    c->temperatures += o->temperature > 0, c->schedules += o->transfer == TSK_TRANSFER_SCHEDULE,
        c->factors += o->transfer == TSK_TRANSFER_FACTOR, c->frechets += o->transfer == TSK_TRANSFER_FRECHET,
        c->entropies += o->transfer == TSK_TRANSFER_ENTROPY, c->leaps += o->transfer == TSK_TRANSFER_LEAP,
        c->infills += infilled;
    if (rule_of(o) == TSK_SKIP_RULE_ROWS)
        c->rows += r->n_skipped > 0, c->rows_masked += r->n_skipped_masked > 0,
            c->aheads += r->n_skipped_masked > 0 && o->skip.rows_ahead > 0;
    c->nears += o->refresh == TSK_REFRESH_NEAR && r->result.refreshes > 1,
        c->windows += r->result.refresh_token_layers_computed < r->result.refresh_token_layers_total &&
                      o->refresh_window > 0;
}

/* More of the cases in which something is skipped, but not everything. */
static void skip_more(tsk_generate_options *o) {
    static const float thresholds[] = {0.5f, 0.8f, 0.9f, 0.95f};
    if (o->skip.rule == TSK_SKIP_RULE_ROWS) {
        o->transfer = TSK_TRANSFER_SCHEDULE;
        o->steps = TSK_AUTO;
        o->skip.rows_margin = random_below(3);
        o->skip.full_every = 0;
    } else if (!o->skip.refresh) o->skip.rule = TSK_SKIP_RULE_STATES;
    o->skip.layer_k = 2 + random_below(2);
    o->skip.threshold = random_pick(thresholds, 4);
    o->skip.outlier = random_below(2) ? 0.3f : -1.0f;
    o->threshold = 0.9f;
}

static void test_generations(const char *name, const char *dir, tsk_device device, coverage *covered) {
    tsk_model *cpu = load_model(dir, TSK_DEVICE_CPU, TSK_DTYPE_F32), *other = load_model(dir, device, TSK_DTYPE_F32);
    static run expected, got;
    int i, kept = 0, left_out = 0;
    for (i = 0; i < n_generations; i++) {
        new_run(&expected, tsk_model_get_config(cpu));
        random_options(&expected, tsk_model_get_config(cpu));
        expected.options.on_select = NULL; /* the library's own rules decide */
        if (expected.options.cache == TSK_CACHE_DUAL && random_below(2)) skip_more(&expected.options);
        got = expected;
        generate_probed(cpu, &expected);
        CHECK_INT(expected.wrong, 0);
        if (!(probe.margin > MARGIN)) {
            left_out++;
            continue;
        }
        kept++;
        cover(covered, &expected);
        generate(other, &got);
        test_check(memcmp(expected.canvas, got.canvas, sizeof got.canvas) == 0 && expected.passes == got.passes &&
                       expected.n_skipped == got.n_skipped &&
                       memcmp(expected.rows_of_pass, got.rows_of_pass, sizeof got.rows_of_pass) == 0 &&
                       memcmp(expected.commits_of_pass, got.commits_of_pass, sizeof got.commits_of_pass) == 0 &&
                       memcmp(expected.active, got.active, sizeof got.active) == 0,
                   __FILE__, __LINE__, "%s, generation %d is the CPU's, whose smallest margin is %g (%s)", name, i,
                   probe.margin, probe.where);
        check_finished(&got, tsk_model_get_config(cpu));
    }
    printf("%s: %d generations %s the CPU's, %d left out (margin below %g)\n", name, kept,
           device == TSK_DEVICE_CUDA ? "compared with" : "would be compared with", left_out, MARGIN);
    CHECK(kept >= min_kept / n_shapes);
    tsk_model_free(cpu), tsk_model_free(other);
}

static void test_all_generations(tsk_device device) {
    coverage c;
    int i;
    memset(&c, 0, sizeof c);
    for (i = 0; i < n_shapes; i++) test_generations(shapes[i].name, random_model_folder(&shapes[i]), device, &c);
    test_generations("mha-f32", "tests/golden/models/mha-f32", device, &c); /* stored in f32, and in f16 */
    test_generations("odd-f16", "tests/golden/models/odd-f16", device, &c);
    printf("%d kept: dual %d, prefix %d, none %d; skipping %d, of masked tokens %d, by exit %d, in refreshes %d, with "
           "an age limit %d, with an outlier limit %d,\n"
           "last-computed %d; temperature %d, schedule %d, factor %d, frechet %d, entropy %d, leap %d, infilling %d; "
           "by rows %d, masked ones too %d, "
           "some ahead %d; starts near %d, windows %d\n",
           c.kept, c.dual, c.prefix, c.none, c.skipped, c.skipped_masked, c.exits, c.refreshes, c.ages, c.outliers,
           c.last_computed, c.temperatures, c.schedules, c.factors, c.frechets, c.entropies, c.leaps, c.infills, c.rows,
           c.rows_masked, c.aheads, c.nears, c.windows);
    CHECK(c.kept >= min_kept);
    if (!is_whole) return;
    CHECK(c.dual && c.prefix && c.none && c.skipped && c.skipped_masked && c.exits && c.refreshes && c.ages &&
          c.outliers && c.last_computed);
    CHECK(c.temperatures && c.schedules && c.factors && c.frechets && c.entropies && c.leaps && c.infills);
    CHECK(c.rows && c.rows_masked && c.aheads && c.nears && c.windows);
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
static void generate_seen(tsk_model *model, const tsk_generate_options *o, seen_list *list, int32_t tokens[32]) {
    static const int32_t prompt[] = {3, 14, 15, 9, 26, 5, 35};
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
        if (memcmp(&a, &b, sizeof a) != 0 && wrong++ == 0)
            printf("%s: pass %d has %s where the CPU has %s\n", what, (int)b.pass, b.name, a.name);
    }
    CHECK(cpu->n > 100 && cpu->n < 4095);
    CHECK_INT(wrong, 0);
    CHECK_INT(off, 0);
}

static void test_traces(const char *name, const char *dir, tsk_device device) {
    static seen_list cpu_seen, cuda_seen;
    static const tsk_dtype dtypes[] = {TSK_DTYPE_F32, TSK_DTYPE_BF16};
    tsk_model *cpu = load_model(dir, TSK_DEVICE_CPU, TSK_DTYPE_F32);
    tsk_generate_options o = tsk_generate_options_default();
    int32_t tokens[32], traced[32];
    int i, exact;
    o.gen_length = 32, o.block_length = 16, o.eos_stop = 0;
    o.transfer = TSK_TRANSFER_SCHEDULE, o.steps = 12;
    o.skip.layer_k = 2, o.skip.outlier = 0.1f, o.skip.masked = 1;
    for (i = 0; i < (device == TSK_DEVICE_CUDA ? 2 : 1); i++) {
        tsk_model *cuda = load_model(dir, device, dtypes[i]);
        for (exact = 0; exact < 2; exact++) {  /* who is skipped may hang on a rounding: names are compared where nobody
                                                  is */
            o.skip.threshold = exact ? 1.0f : 0.5f;
            generate_seen(cuda, &o, NULL, tokens);
            generate_seen(cuda, &o, &cuda_seen, traced);
            CHECK(memcmp(tokens, traced, sizeof tokens) == 0);
        }
        generate_seen(cpu, &o, &cpu_seen, traced);
        compare_seen(name, &cpu_seen, &cuda_seen, i ? 0.05 : 1e-3);
        tsk_model_free(cuda);
    }
    tsk_model_free(cpu);
}

/* ---- the other families' goldens, in whose decisions float32 has room to spare */

static void test_goldens(const char *file, const char *name, tsk_device device) {
    char path[64];
    tsk_json *document;
    const tsk_json_value *test;
    tsk_model *model;
    int n = 0, by_blocks;
    snprintf(path, sizeof path, "tests/golden/models/%s", name);
    model = load_model(path, device, TSK_DTYPE_F32);
    by_blocks = tsk_config_by_blocks(tsk_model_get_config(model));
    document = golden_load(file);
    for (test = tsk_json_first(tsk_json_get(tsk_json_root(document), "cases")); test; test = tsk_json_next(test)) {
        const tsk_json_value *options = tsk_json_get(test, "options"), *canvas = tsk_json_get(test, "canvas");
        tsk_generate_options o = by_blocks ? golden_block_options(options) : golden_options(options);
        int32_t ids[256], expected[256], n_prompt = golden_ids(tsk_json_get(test, "prompt"), ids, 256), n_expected;
        tsk_session *session = NULL;
        tsk_result result;
        tsk_error error;
        if (!golden_is(test, "model", name)) continue;
        memset(&error, 0, sizeof error);
        if (canvas) golden_ids(canvas, ids, 256);
        o.end_of_turn_id = TSK_NONE;
        must(tsk_session_create(model, &o, &session, &error), &error);
        must(tsk_generate(session, ids, n_prompt, canvas ? ids + n_prompt : NULL, &result, &error), &error);
        n_expected = golden_ids(tsk_json_get(tsk_json_get(test, "expected"), "tokens"), expected, 256);
        test_check(n_expected == result.n_tokens &&
                       golden_int(tsk_json_get(test, "expected"), "nfe", -1) == result.nfe &&
                       memcmp(expected, result.tokens, (size_t)n_expected * sizeof *expected) == 0,
                   __FILE__, __LINE__, "%s: other tokens", tsk_json_string(tsk_json_get(test, "name"), NULL));
        tsk_session_free(session);
        n++;
    }
    CHECK(n > 20);
    tsk_json_free(document);
    tsk_model_free(model);
}

static void test_families(tsk_device device) {
    static const char *const by_blocks[] = {"sdar-bf16", "sdar-tied-f32", "fast-dllm-bf16", "fast-dllm-f16"};
    int i;
    for (i = 0; i < 4; i++) test_goldens("tests/golden/generate_block.json", by_blocks[i], device);
    test_goldens("tests/golden/generate_dream.json", "dream-f32", device);
    test_goldens("tests/golden/generate_dream.json", "dream-bf16", device);
    test_traces("sdar-bf16", "tests/golden/models/sdar-bf16", device);
    test_traces("sdar-tied-f32", "tests/golden/models/sdar-tied-f32", device);
    test_traces("fast-dllm-bf16", "tests/golden/models/fast-dllm-bf16", device);
    test_traces("dream-f32", "tests/golden/models/dream-f32", device);
}

/* ---- on the device alone */

static void test_on_device(const char *name, const char *dir, tsk_device device, int batches) {
    static const tsk_dtype dtypes[2] = {TSK_DTYPE_F32, TSK_DTYPE_BF16};
    int i, before;
    for (i = 0; i < (device == TSK_DEVICE_CUDA ? 2 : 1); i++) {
        tsk_model *model = load_model(dir, device, dtypes[i]);
        before = test_failed;
        test_invariants_of(model, 60);
        if (i == 0 && batches) {
            test_as_alone(model, name, 40, 8, 300, 300, 0, 1);
            test_as_alone(model, name, 30, 5, 150, 90, 60, 1); /* waiting, moving together, refreshes cut by layers */
            test_as_alone(model, name, 40, 16, 2000, 1000, 1, 0);
        }
        if (test_failed != before) printf("(in %s, %s)\n", name, i ? "bf16" : "f32");
        tsk_model_free(model);
    }
}

/* Logits that are all NaN, the mask being the id that nothing else would be chosen for: an error at the first pass. */
static void test_numeric(tsk_device device) {
    static const shape lost = {"lost", 256, 3, 4, 2, 256, 64, 0, 0, 0, NAN};
    static const tsk_dtype dtypes[2] = {TSK_DTYPE_F32, TSK_DTYPE_BF16};
    const char *dir = random_model_folder(&lost);
    int32_t prompt[] = {1, 2, 3};
    int i, random;
    for (i = 0; i < (device == TSK_DEVICE_CUDA ? 2 : 1); i++)
        for (random = 0; random < 2; random++) {
            tsk_model *model = load_model(dir, device, dtypes[i]);
            tsk_generate_options o = tsk_generate_options_default();
            tsk_session *session = NULL;
            tsk_result result;
            tsk_error error;
            memset(&error, 0, sizeof error);
            o.gen_length = o.block_length = 8;
            o.temperature = random ? 0.7f : 0.0f;
            must(tsk_session_create(model, &o, &session, &error), &error);
            CHECK_INT(tsk_generate(session, prompt, 3, NULL, &result, &error), TSK_ERROR_NUMERIC);
            CHECK_CONTAINS(error.message, "pass 0: the logits of position 3");
            tsk_session_free(session);
            tsk_model_free(model);
        }
}

/* `test_cuda_generate dry`: the CPU in the GPU's place, which tries the tests themselves. */
int main(int argc, char **argv) {
    char why[256] = "";
    int i, is_dry = argc > 1 && strcmp(argv[1], "dry") == 0, has_gpu = 0;
    tsk_device device = is_dry ? TSK_DEVICE_CPU : TSK_DEVICE_CUDA;
    setvbuf(stdout, NULL, _IOLBF, 0);
#ifdef __SANITIZE_ADDRESS__
    snprintf(why, sizeof why, "CUDA's libraries under AddressSanitizer");
#else
    has_gpu = tsk__cuda_available(0, why, sizeof why);
#endif
    test_all_generations(has_gpu && !is_dry ? TSK_DEVICE_CUDA : TSK_DEVICE_CPU);
    if (!has_gpu && !is_dry) {
        printf("skipped: everything that runs on a GPU (%s)\n", why);
        return test_end("test_cuda_generate");
    }
    test_on_device("mha-f32", "tests/golden/models/mha-f32", device, 0);
    test_on_device("gqa-bf16", "tests/golden/models/gqa-bf16", device, 1);
    test_numeric(device);
    test_traces("mha-f32", "tests/golden/models/mha-f32", device);
    test_traces("gqa-bf16", "tests/golden/models/gqa-bf16", device);
    test_families(device);
    for (i = 0; i < n_shapes; i++)
        test_on_device(shapes[i].name, tsk_test_path(shapes[i].name), device, i == 0 || i == 3);
    return test_end("test_cuda_generate");
}
