/* Families with attention by blocks against the reference (tests/golden/families.py): whole passes, whole generations;
   and what must hold besides: final K and V are those of a prompt, whatever was left out before; a conversation goes on
   without computing it again; batches, threads, tracing and copies change nothing. Of Dream, whose logits are shifted
   and whose tokens see all others, what holds of its caches (test_session has its goldens). */
#include "../tokenskip.h"
#include "golden.h"
#include "seeded.h"

#include <math.h>

enum { max_ids = 256, max_passes = 160 };

typedef struct named_model { const char *name; tsk_model *model; } named_model;
static named_model models[] = {
    {"sdar-bf16", NULL}, {"sdar-tied-f32", NULL}, {"fast-dllm-bf16", NULL}, {"fast-dllm-f16", NULL}};
enum { n_models = sizeof models / sizeof models[0] };

static tsk_model *model_of(const tsk_json_value *test) {
    size_t i;
    for (i = 0; i < n_models; i++)
        if (golden_is(test, "model", models[i].name)) return models[i].model;
    return NULL;
}

static void check_status(tsk_status status, const tsk_error *error, int line) {
    test_check(status == TSK_OK, __FILE__, line, "%s", status == TSK_OK ? "" : error->message);
    if (status != TSK_OK) exit(1);
}
#define OK(call) (memset(&error, 0, sizeof error), check_status((call), &error, __LINE__))

/* ---- whole passes */

typedef struct seen_pass {
    int32_t n_rows;
    double first[8][64], last[8][64]; /* a layer's output */
    float logits[40][80];
} seen_pass;

static seen_pass whole;

static void see_pass(void *user, const tsk_trace_record *r) {
    uint64_t i, j, width = r->output_shape[1];
    (void)user;
    if (r->pass != 0) return;
    if (strcmp(r->name, "logits") == 0) {
        for (i = 0; i < r->output_shape[0]; i++)
            for (j = 0; j < width; j++) whole.logits[i][j] = r->output[i * width + j];
        return;
    }
    whole.n_rows = r->n_rows;
    for (j = 0; j < width; j++) {
        whole.first[r->layer][j] = (double)r->output[j];
        whole.last[r->layer][j] = (double)r->output[(r->output_shape[0] - 1) * width + j];
    }
}

static void check_numbers(const tsk_json_value *expected, const double *found, const char *what, int row) {
    const tsk_json_value *v;
    double worst = 0, number = 0;
    int i = 0;
    for (v = tsk_json_first(expected); v; v = tsk_json_next(v), i++) {
        tsk_json_double(v, &number);
        number = fabs(found[i] - number) / (1 + fabs(number));
        if (!(number <= worst)) worst = number;
    }
    test_check(i > 0 && worst <= 3e-5, __FILE__, __LINE__, "%s, row %d: off by %g", what, row, worst);
}

static void check_float_row(const tsk_json_value *expected, const float *found, const char *what, int row) {
    double values[80];
    int i, n = (int)tsk_json_count(expected);
    for (i = 0; i < n && i < 80; i++) values[i] = (double)found[i];
    check_numbers(expected, values, what, row);
}

static void check_pass(const tsk_json_value *golden) {
    tsk_generate_options options = tsk_generate_options_default();
    tsk_trace_options trace = tsk_trace_options_default();
    tsk_model *model = model_of(golden);
    int32_t ids[max_ids], n = golden_ids(tsk_json_get(golden, "ids"), ids, max_ids), vocabulary, layer = 0, row = 0;
    const tsk_json_value *first = tsk_json_first(tsk_json_get(golden, "first")), *v,
                         *last = tsk_json_first(tsk_json_get(golden, "last"));
    tsk_session *session;
    tsk_error error;
    float *logits;
    int finished;
    vocabulary = tsk_model_get_config(model)->embedding_size;
    CHECK(tsk_model_get_config(model)->block_length == golden_int(golden, "block_length", -1));
    options.gen_length = 1;
    trace.values = 1;
    trace.on_record = see_pass;
    OK(tsk_session_create(model, &options, &session, &error));
    trace.pattern = "layer_?";
    OK(tsk_session_trace(session, &trace, &error));
    OK(tsk_session_start(session, ids, n, NULL, &error));
    OK(tsk_session_step(session, &finished, &error));
    CHECK(whole.n_rows == n);
    for (; first; first = tsk_json_next(first), last = tsk_json_next(last), layer++) {
        check_numbers(first, whole.first[layer], "h of the first row", layer);
        check_numbers(last, whole.last[layer], "h of the last row", layer);
    }
    CHECK(layer == tsk_model_get_config(model)->n_layers);
    trace.pattern = "logits";
    OK(tsk_session_trace(session, &trace, &error));
    OK(tsk_session_start(session, ids + 1, 1, NULL, &error)); /* (so that nothing of the prompt is there already) */
    OK(tsk_session_step(session, &finished, &error));
    OK(tsk_session_start(session, ids, n, NULL, &error));
    OK(tsk_session_step(session, &finished, &error));
    for (v = tsk_json_first(tsk_json_get(golden, "logits")); v; v = tsk_json_next(v), row++)
        check_float_row(v, whole.logits[row], "traced logits", row);
    CHECK(row == n);
    logits = (float *)malloc((size_t)(n * vocabulary) * sizeof *logits);
    OK(tsk_session_logits(session, ids, n, 0, n, logits, &error));
    for (v = tsk_json_first(tsk_json_get(golden, "logits")), row = 0; v; v = tsk_json_next(v), row++)
        check_float_row(v, logits + row * vocabulary, "logits", row);
    OK(tsk_session_logits(session, ids, n - 1, n - 2, 1, logits, &error));
    check_float_row(tsk_json_first(tsk_json_get(golden, "short")), logits, "logits of a part of a block", n - 2);
    free(logits);
    tsk_session_free(session);
}

/* ---- whole generations */

typedef struct seen_step {
    char kind;                     /* p, s, f: prompt, step, storing */
    int32_t n_rows, n_committed, committed[max_ids];
    double confidences[max_ids];
    int32_t rows[max_ids], n_listed;
} seen_step;

typedef struct seen_steps {
    seen_step steps[max_passes];
    int32_t n;
    int wrong;
} seen_steps;

static int see_step(void *user, const tsk_step *s) {
    seen_steps *seen = (seen_steps *)user;
    seen_step *to = &seen->steps[seen->n++];
    int32_t i;
    to->kind = s->is_prompt ? 'p' : s->is_storing ? 'f' : 's';
    to->n_rows = s->n_rows;
    seen->wrong += s->pass != seen->n - 1 || s->is_refresh || s->is_prompt + s->is_storing > 1;
    seen->wrong += s->is_prompt && (s->n_active || s->n_stable_masked || s->block_step);
    for (i = 0; i < s->n_positions; i++) {
        if (!s->committed[i]) continue;
        to->committed[to->n_committed] = s->positions[i];
        to->confidences[to->n_committed++] = (double)s->confidences[i];
        seen->wrong += s->canvas[s->positions[i]] != s->predictions[i];
    }
    if (s->next_committed < 0) return 0;
    seen->wrong += to->n_committed != 0 || to->kind == 's' || s->canvas[s->next_committed] == s->mask_token_id;
    to->committed[0] = s->next_committed;
    to->confidences[0] = -1;       /* not told */
    to->n_committed = 1;
    return 0;
}

static void see_rows(void *user, const tsk_trace_record *record) {
    seen_step *to = &((seen_steps *)user)->steps[record->pass];
    to->n_listed = record->n_rows;
    memcpy(to->rows, record->positions, (size_t)record->n_rows * sizeof *record->positions);
}

static void check_steps(const char *name, const tsk_json_value *expected, const seen_steps *seen) {
    const tsk_json_value *kind = tsk_json_first(tsk_json_get(expected, "kinds")),
                         *n_rows = tsk_json_first(tsk_json_get(expected, "n_rows")),
                         *rows = tsk_json_first(tsk_json_get(expected, "rows")),
                         *committed = tsk_json_first(tsk_json_get(expected, "committed")),
                         *confidences = tsk_json_first(tsk_json_get(expected, "confidence"));
    int32_t i, j;
#define STEP_CHECK(condition) \
    test_check((condition) ? 1 : 0, __FILE__, __LINE__, "%s, pass %d: %s", name, (int)i, #condition)
    for (i = 0; kind && i < seen->n; i++) {
        const seen_step *s = &seen->steps[i];
        const tsk_json_value *c = tsk_json_first(confidences);
        const char *text = tsk_json_string(kind, NULL);
        int64_t count = -1;
        tsk_json_int64(n_rows, &count);
        STEP_CHECK(s->kind == (strcmp(text, "prompt") == 0 ? 'p' : strcmp(text, "store") == 0 ? 'f' : 's'));
        STEP_CHECK(s->n_listed == (int32_t)count);
        STEP_CHECK(!rows || golden_same_ids(rows, s->rows, s->n_listed));
        STEP_CHECK(golden_same_ids(committed, s->committed, s->n_committed));
        for (j = 0; j < s->n_committed && c; j++, c = tsk_json_next(c)) {
            double confidence = -1;
            tsk_json_double(c, &confidence);
            STEP_CHECK(s->confidences[j] < 0 || fabs(s->confidences[j] - confidence) < 1e-4);
        }
        kind = tsk_json_next(kind), n_rows = tsk_json_next(n_rows), rows = tsk_json_next(rows);
        committed = tsk_json_next(committed), confidences = tsk_json_next(confidences);
    }
    STEP_CHECK(!kind && i == seen->n && !seen->wrong);
#undef STEP_CHECK
}

static void check_result(const char *name, const tsk_json_value *expected, const tsk_result *r) {
    static const char *const reasons[] = {"none", "length", "eos", "cancelled"};
    const tsk_json_value *skip = tsk_json_get(expected, "skip");
#define CASE_CHECK(condition) test_check((condition) ? 1 : 0, __FILE__, __LINE__, "%s: %s", name, #condition)
    CASE_CHECK(golden_same_ids(tsk_json_get(expected, "tokens"), r->tokens, r->n_tokens));
    CASE_CHECK(golden_same_ids(tsk_json_get(expected, "canvas"), r->canvas, r->n_prompt + r->n_tokens));
    CASE_CHECK(golden_int(expected, "nfe", -1) == r->nfe);
    CASE_CHECK(golden_int(expected, "prompt_passes", -1) == r->prompt_passes);
    CASE_CHECK(golden_int(expected, "storing_passes", -1) == r->storing_passes);
    CASE_CHECK(golden_int(expected, "mask_residual", -1) == r->mask_residual);
    CASE_CHECK(golden_is(expected, "finish_reason", reasons[r->finish_reason]));
    CASE_CHECK(golden_same_blocks(tsk_json_get(expected, "blocks"), r));
    CASE_CHECK(golden_same_ids(tsk_json_get(skip, "active"), r->active, r->n_block_steps));
    CASE_CHECK(golden_same_ids(tsk_json_get(skip, "stable_masked"), r->stable_masked, r->n_block_steps));
    CASE_CHECK((uint64_t)golden_number(skip, "token_layers_computed", -1) == r->token_layers_computed);
    CASE_CHECK((uint64_t)golden_number(skip, "token_layers_total", -1) == r->token_layers_total);
    CASE_CHECK(r->refreshes == 0 && r->refreshed_rows == 0 && r->refresh_token_layers_total == 0);
    CASE_CHECK(r->block_steps == r->nfe - r->prompt_passes - r->storing_passes);
#undef CASE_CHECK
}

static void run_case(const tsk_json_value *test) {
    tsk_generate_options options = golden_block_options(tsk_json_get(test, "options"));
    tsk_trace_options trace = tsk_trace_options_default();
    const char *name = tsk_json_string(tsk_json_get(test, "name"), NULL);
    const tsk_json_value *canvas = tsk_json_get(test, "canvas"), *expected = tsk_json_get(test, "expected");
    int32_t ids[max_ids], n_prompt = golden_ids(tsk_json_get(test, "prompt"), ids, max_ids);
    static seen_steps seen;
    tsk_session *session;
    tsk_result result;
    tsk_error error;
    if (canvas) golden_ids(canvas, ids, max_ids);
    memset(&seen, 0, sizeof seen);
    options.on_step = see_step;
    options.user = trace.user = &seen;
    trace.on_record = see_rows;
    trace.pattern = "embedding";
    OK(tsk_session_create(model_of(test), &options, &session, &error));
    OK(tsk_session_trace(session, &trace, &error));
    OK(tsk_generate(session, ids, n_prompt, canvas ? ids + n_prompt : NULL, &result, &error));
    check_result(name, expected, &result);
    check_steps(name, expected, &seen);
    tsk_session_free(session);
}

static void test_goldens(void) {
    tsk_json *forward = golden_load("tests/golden/forward_families.json"),
             *generate = golden_load("tests/golden/generate_block.json");
    const tsk_json_value *v;
    int n = 0;
    for (v = tsk_json_first(tsk_json_get(tsk_json_root(forward), "passes")); v; v = tsk_json_next(v), n++)
        check_pass(v);
    CHECK(n == n_models);
    for (v = tsk_json_first(tsk_json_get(tsk_json_root(generate), "cases")), n = 0; v; v = tsk_json_next(v), n++)
        run_case(v);
    CHECK(n > 200);
    tsk_json_free(forward);
    tsk_json_free(generate);
}

/* ---- K and V */

/* Of all layers, of the last pass that had so many positions visible. */
typedef struct seen_caches {
    int32_t n;                     /* positions, of which the records may have more */
    float values[16][8192];        /* [layer * 2 + (v)][n_kv_heads * n * head_dim] */
    int n_records;
} seen_caches;

static void see_caches(void *user, const tsk_trace_record *r) {
    seen_caches *seen = (seen_caches *)user;
    float *to = seen->values[r->layer * 2 + (r->part[0] == 'v')];
    uint64_t head, length = r->output_shape[1], width = r->output_shape[2], n = (uint64_t)seen->n;
    if (length < n) return;
    for (head = 0; head < r->output_shape[0]; head++)
        memcpy(to + head * n * width, r->output + head * length * width, (size_t)(n * width) * sizeof *to);
    seen->n_records++;
}

static void watch_caches(tsk_session *session, seen_caches *seen, int32_t n) {
    tsk_trace_options trace = tsk_trace_options_default();
    tsk_error error;
    memset(seen, 0, sizeof *seen);
    seen->n = n;
    trace.pattern = "kv_*";
    trace.values = 1;
    trace.on_record = see_caches;
    trace.user = seen;
    OK(tsk_session_trace(session, &trace, &error));
}

static tsk_generate_options rule_options(int rule) {
    tsk_generate_options o = tsk_generate_options_default();
    o.end_of_turn_id = TSK_NONE;
    o.eos_stop = 0;
    o.gen_length = 40;
    o.transfer = TSK_TRANSFER_SCHEDULE;
    o.skip.rule = rule == 1 ? TSK_SKIP_RULE_ROWS : rule >= 2 ? TSK_SKIP_RULE_STATES : TSK_SKIP_RULE_OFF;
    o.skip.rows_margin = 1;
    o.skip.layer_k = rule >= 2 ? 2 : 0;
    o.skip.threshold = 0.9f;
    o.skip.masked = rule == 3;
    return o;
}

/* What a rule leaves out in a block's steps is nowhere in the K and V that later blocks see. */
static void test_final_caches(tsk_model *model, int rule) {
    static seen_caches generated, prefilled;
    tsk_generate_options o = rule_options(rule);
    int32_t prompt[] = {5, 9, 17, 4, 31, 8, 11, 23, 41, 2, 33, 7, 19}, n_prompt = 13, ids[max_ids], n, block;
    tsk_session *session;
    tsk_result result;
    tsk_error error;
    int finished;
    block = tsk_model_get_config(model)->block_length;
    n = (n_prompt + o.gen_length) / block * block - (((n_prompt + o.gen_length) % block) ? 0 : block);
    OK(tsk_session_create(model, &o, &session, &error));
    watch_caches(session, &generated, n);
    OK(tsk_generate(session, prompt, n_prompt, NULL, &result, &error));
    if (rule) CHECK(result.token_layers_computed < result.token_layers_total);
    memcpy(ids, result.canvas, (size_t)(n_prompt + o.gen_length) * sizeof *ids);
    tsk_session_free(session);
    o.gen_length = 1;
    o.prompt_rows = rule == 2 ? 2 * block : TSK_AUTO; /* in pieces or not */
    OK(tsk_session_create(model, &o, &session, &error));
    watch_caches(session, &prefilled, n);
    OK(tsk_session_start(session, ids, n, NULL, &error));
    do OK(tsk_session_step(session, &finished, &error));
    while (!prefilled.n_records);
    CHECK(generated.n_records > 0 && prefilled.n_records > 0);
    CHECK(memcmp(generated.values, prefilled.values, sizeof generated.values) == 0);
    tsk_session_free(session);
}

/* ---- a conversation */

static uint64_t rows_of_steps(const tsk_result *r, int32_t block) {
    return (uint64_t)(r->block_steps + r->storing_passes) * (uint64_t)block;
}

/* The second question begins with the first and its answer: of these only what is not final runs again. */
static void test_conversation(tsk_model *model, int32_t first_length, int32_t more, int32_t edited) {
    tsk_generate_options o = rule_options(0);
    int32_t ids[max_ids], n, i, block = tsk_model_get_config(model)->block_length, kept, whole_blocks;
    int is_shifted = tsk_model_get_config(model)->family == TSK_FAMILY_FAST_DLLM_V2;
    tsk_session *session, *fresh;
    tsk_result first, second, expected;
    tsk_error error;
    for (i = 0; i < first_length; i++) ids[i] = 4 + (7 * i + first_length) % 50;
    OK(tsk_session_create(model, &o, &session, &error));
    OK(tsk_session_create(model, &o, &fresh, &error));
    OK(tsk_generate(session, ids, first_length, NULL, &first, &error));
    kept = (first_length + o.gen_length - 1) / block * block; /* the last block was not stored */
    n = first_length + o.gen_length + more;
    memcpy(ids, first.canvas, (size_t)(first_length + o.gen_length) * sizeof *ids);
    for (i = first_length + o.gen_length; i < n; i++) ids[i] = 4 + (11 * i) % 50;
    if (edited >= 0) ids[edited] = ids[edited] == 4 ? 5 : 4;
    if (edited >= 0 && edited < kept) kept = edited / block * block;
    whole_blocks = n / block * block;
    if (kept > whole_blocks) kept = whole_blocks;
    if (is_shifted && kept && kept == n) kept -= block;
    OK(tsk_generate(session, ids, n, NULL, &second, &error));
    CHECK(second.rows == (uint64_t)(whole_blocks - kept) + rows_of_steps(&second, block));
    CHECK((second.prompt_passes > 0) == (whole_blocks > kept));
    OK(tsk_generate(fresh, ids, n, NULL, &expected, &error));
    CHECK(expected.rows == (uint64_t)whole_blocks + rows_of_steps(&expected, block));
    CHECK(memcmp(second.canvas, expected.canvas, (size_t)(n + o.gen_length) * sizeof *ids) == 0);
    CHECK(second.nfe - second.prompt_passes == expected.nfe - expected.prompt_passes);
    /* and once more, from the canvas that the session itself holds, with less than it */
    tsk_session_free(fresh);
    OK(tsk_session_create(model, &o, &fresh, &error));
    OK(tsk_generate(session, second.canvas, n - 3, NULL, &first, &error));
    OK(tsk_generate(fresh, ids, n - 3, NULL, &expected, &error));
    CHECK(memcmp(first.canvas, expected.canvas, (size_t)(n - 3 + o.gen_length) * sizeof *ids) == 0);
    CHECK(first.rows < expected.rows);
    tsk_session_free(session);
    tsk_session_free(fresh);
}

static void test_conversations(tsk_model *model) {
    int32_t block = tsk_model_get_config(model)->block_length, lengths[] = {1, 13, 2 * block, 3 * block + 1};
    size_t i;
    for (i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        test_conversation(model, lengths[i], 0, -1);
        test_conversation(model, lengths[i], 5, -1);
        test_conversation(model, lengths[i], 3 * block, -1);
        test_conversation(model, lengths[i], block, lengths[i] + 20);
        test_conversation(model, lengths[i], 7, 0);
        test_conversation(model, lengths[i], (block - (lengths[i] + 40) % block) % block, -1); /* whole blocks */
    }
}

/* Nothing is kept beyond what was taken note of: not over a failed start, nor over logits, which use the caches. */
static void test_nothing_kept(tsk_model *model) {
    tsk_generate_options o = rule_options(0);
    int32_t ids[max_ids], i, block = tsk_model_get_config(model)->block_length, n = 3 * block;
    tsk_session *session;
    tsk_result result;
    tsk_error error;
    float *logits = (float *)malloc((size_t)tsk_model_get_config(model)->embedding_size * sizeof *logits);
    for (i = 0; i < n; i++) ids[i] = 4 + i;
    OK(tsk_session_create(model, &o, &session, &error));
    OK(tsk_generate(session, ids, n, NULL, &result, &error));
    CHECK(tsk_session_start(session, ids, -1, NULL, &error) == TSK_ERROR_ARGUMENT);
    OK(tsk_generate(session, ids, n, NULL, &result, &error));
    CHECK(result.rows == (uint64_t)n + rows_of_steps(&result, block));
    OK(tsk_session_logits(session, ids, n, 0, 1, logits, &error));
    OK(tsk_generate(session, ids, n, NULL, &result, &error));
    CHECK(result.rows == (uint64_t)n + rows_of_steps(&result, block));
    free(logits);
    tsk_session_free(session);
}

/* Whichever allocation of a second question fails, nothing is lost but that question, and asked again it has the answer
   that it has alone. */
static void test_memory(const char *name) {
    char path[64];
    tsk_generate_options o = rule_options(2);
    tsk_model_options options = tsk_model_options_default();
    test_allocator counting = test_allocator_failing_at(-1);
    tsk_allocator allocator = test_allocator_of(&counting);
    int32_t ids[max_ids], expected[max_ids], n = 14, more = 100, i;
    tsk_model *model;
    tsk_session *session;
    tsk_result result;
    tsk_error error;
    long fail_at;
    int went_through = 0;
    snprintf(path, sizeof path, "tests/golden/models/%s", name);
    options.device = TSK_DEVICE_CPU;
    options.n_threads = 1;
    options.host.allocator = &allocator;
    OK(tsk_model_load(path, &options, &model, &error));
    for (fail_at = -1; !went_through && fail_at < 200; fail_at++) {
        tsk_status status;
        OK(tsk_session_create(model, &o, &session, &error));
        for (i = 0; i < n; i++) ids[i] = 4 + i;
        OK(tsk_generate(session, ids, n, NULL, &result, &error));
        memcpy(ids, result.canvas, (size_t)(n + o.gen_length) * sizeof *ids);
        for (i = n + o.gen_length; i < more; i++) ids[i] = 4 + i % 50;
        counting.failed = 0;
        counting.fail_at = fail_at < 0 ? -1 : counting.calls + fail_at;
        status = tsk_generate(session, ids, more, NULL, &result, &error);
        counting.fail_at = -1;
        went_through = fail_at >= 0 && !counting.failed;
        CHECK(status == (counting.failed ? TSK_ERROR_MEMORY : TSK_OK));
        if (status != TSK_OK) OK(tsk_generate(session, ids, more, NULL, &result, &error));
        if (fail_at < 0) memcpy(expected, result.canvas, (size_t)(more + o.gen_length) * sizeof *ids);
        CHECK(memcmp(expected, result.canvas, (size_t)(more + o.gen_length) * sizeof *ids) == 0);
        tsk_session_free(session);
    }
    CHECK(fail_at > 5 && went_through);
    tsk_model_free(model);
    CHECK(counting.alive == 0);
}

/* ---- batches, copies, probes */

/* Every kind of request that a family without attention by blocks has. */
static void full_options(tsk_generate_options *o, int32_t i) {
    o->block_length = 4 + 4 * (i % 2);
    o->gen_length = o->block_length * (1 + i % 5);
    o->cache = i % 7 == 5 ? TSK_CACHE_PREFIX : i % 7 == 6 ? TSK_CACHE_NONE : TSK_CACHE_DUAL;
    if (o->cache != TSK_CACHE_DUAL) o->skip.rule = TSK_SKIP_RULE_OFF, o->skip.layer_k = 0;
    if (o->cache != TSK_CACHE_DUAL) return;
    if (i % 4 == 1) o->refresh = TSK_REFRESH_NEAR, o->refresh_near = i, o->refresh_window = i % 3 * 4;
    if (i % 4 == 2) o->refresh_rows = i, o->refresh_every = 0;
    if (i % 4 == 3) o->skip.refresh = 1, o->skip.rule = TSK_SKIP_RULE_STATES, o->skip.layer_k = 2;
}

typedef struct job {
    int32_t ids[max_ids], n_prompt, expected[max_ids], nfe, prompt_passes, storing_passes;
    tsk_generate_options options;
    int n_done, is_same;
} job;

static void job_done(void *user, uint64_t id, void *request_user, const tsk_result *r, const tsk_error *error) {
    job *j = (job *)request_user;
    (void)user, (void)id, (void)error;
    j->n_done++;
    j->is_same = r && memcmp(r->canvas, j->expected, (size_t)(r->n_prompt + r->n_tokens) * sizeof *r->canvas) == 0 &&
                 r->nfe - r->prompt_passes == j->nfe - j->prompt_passes && r->storing_passes == j->storing_passes;
}

/* Steps, pieces of prompts and storing passes of different requests share passes; each gets what it gets alone. */
static void test_batch(tsk_model *model, int32_t max_rows, int64_t row_layers) {
    enum { n_jobs = 14 };
    static job jobs[n_jobs];
    tsk_batch_options b = tsk_batch_options_default();
    tsk_batch_status status;
    int32_t i, k, most = 0, block = tsk_model_get_config(model)->block_length;
    tsk_batch *batch;
    tsk_session *session;
    tsk_result result;
    tsk_error error;
    memset(jobs, 0, sizeof jobs);
    for (i = 0; i < n_jobs; i++) {
        job *j = &jobs[i];
        j->options = rule_options(i % 4);
        j->options.gen_length = 1 + (13 * i) % 37;
        j->options.eos_stop = i % 3 == 0;
        if (i % 5 == 1) j->options.transfer = TSK_TRANSFER_THRESHOLD, j->options.threshold = 0.6f;
        if (i % 5 == 2) j->options.temperature = 0.7f, j->options.seed = (uint64_t)i;
        if (i % 6 == 3) j->options.small_block = block / 2;
        if (i % 7 == 4) j->options.prompt_rows = block > 0 ? block : TSK_AUTO;
        if (!block) full_options(&j->options, i);
        j->n_prompt = (i * 17) % 90;
        for (k = 0; k < j->n_prompt; k++) j->ids[k] = 4 + (5 * k + i) % 50;
        OK(tsk_session_create(model, &j->options, &session, &error));
        OK(tsk_generate(session, j->ids, j->n_prompt, NULL, &result, &error));
        memcpy(j->expected, result.canvas, (size_t)(result.n_prompt + result.n_tokens) * sizeof *j->expected);
        j->nfe = result.nfe, j->prompt_passes = result.prompt_passes, j->storing_passes = result.storing_passes;
        tsk_session_free(session);
    }
    b.max_requests = 5;
    b.cache_tokens = 400;
    b.max_rows = max_rows;
    b.row_layers = row_layers;
    b.on_done = job_done;
    OK(tsk_batch_create(model, &b, &batch, &error));
    for (i = 0; i < n_jobs; i++)
        OK(tsk_batch_submit(batch, jobs[i].ids, jobs[i].n_prompt, NULL, &jobs[i].options, &jobs[i], NULL, &error));
    do {
        OK(tsk_batch_step(batch, &status, &error));
        CHECK(status.rows <= max_rows);
        most = status.rows > most ? status.rows : most;
    } while (status.in_flight || status.queued);
    CHECK(most > block);
    for (i = 0; i < n_jobs; i++) CHECK(jobs[i].n_done == 1 && jobs[i].is_same);
    tsk_batch_free(batch);
}

typedef struct copier { tsk_session *from, *to; int32_t pass; int wrong; } copier;

static int copy_at(void *user, const tsk_step *s) {
    copier *c = (copier *)user;
    tsk_error error;
    if (s->pass == c->pass) c->wrong += tsk_session_copy(c->to, c->from, &error) != TSK_OK;
    return 0;
}

/* A copy taken in any pass's callback, and one taken between passes, go on as the original does; probes change
   nothing. */
static void test_copies(tsk_model *model, int rule) {
    tsk_generate_options o = rule_options(rule), mine;
    int32_t ids[max_ids], i, pass, length, block = tsk_model_get_config(model)->block_length, n = 2 * block + 3;
    tsk_session *session, *copy;
    tsk_result expected, result;
    tsk_probe probe;
    tsk_error error;
    copier c;
    int finished;
    for (i = 0; i < n; i++) ids[i] = 4 + (3 * i) % 50;
    o.gen_length = 2 * block;
    o.prompt_rows = block;
    length = n + o.gen_length;
    for (pass = 0; pass < 3 * block; pass++) {
        mine = o;
        mine.on_step = copy_at;
        mine.user = &c;
        memset(&c, 0, sizeof c);
        c.pass = pass;
        OK(tsk_session_create(model, &mine, &session, &error));
        OK(tsk_session_create(model, &o, &copy, &error));
        c.from = session, c.to = copy;
        OK(tsk_generate(session, ids, n, NULL, &expected, &error));
        CHECK(!c.wrong);
        if (pass >= expected.nfe) {
            tsk_session_free(session);
            tsk_session_free(copy);
            break;
        }
        tsk_session_result(copy, &result);
        CHECK(result.nfe == pass + 1);
        finished = 0;
        while (!finished) {
            int may_probe = result.prompt_passes == 2;
            if (may_probe) {
                OK(tsk_session_copy(session, copy, &error));
                OK(tsk_session_probe(session, NULL, TSK_PROBE_STEP, &probe, &error));
                CHECK(probe.n_positions == block);
            } else
                CHECK(tsk_session_probe(copy, NULL, TSK_PROBE_STEP, &probe, &error) == TSK_ERROR_ARGUMENT);
            OK(tsk_session_step(copy, &finished, &error));
            tsk_session_result(copy, &result);
            if (pass % 4) break; /* (the rest once in a while only) */
        }
        while (!finished) OK(tsk_session_step(copy, &finished, &error));
        tsk_session_result(copy, &result);
        mine.on_step = NULL;
        tsk_session_free(session);
        OK(tsk_session_create(model, &mine, &session, &error));
        OK(tsk_generate(session, ids, n, NULL, &expected, &error));
        CHECK(memcmp(result.canvas, expected.canvas, (size_t)length * sizeof *ids) == 0);
        CHECK(result.nfe == expected.nfe && result.storing_passes == expected.storing_passes);
        tsk_session_free(session);
        tsk_session_free(copy);
    }
    CHECK(pass > 2 * block);
}

/* A canvas of the caller's own may mask what the block before has filled: nothing predicts that. */
static void test_probe_canvas(tsk_model *model) {
    tsk_generate_options o = rule_options(1);
    const tsk_model_config *c = tsk_model_get_config(model);
    int32_t ids[max_ids], canvas[max_ids], i, n = 2 * c->block_length;
    tsk_session *session;
    tsk_probe probe;
    tsk_error error;
    float *logits = (float *)malloc((size_t)(c->block_length * c->embedding_size) * sizeof *logits);
    int finished;
    for (i = 0; i < n; i++) ids[i] = 4 + i;
    OK(tsk_session_create(model, &o, &session, &error));
    OK(tsk_session_start(session, ids, n, NULL, &error));
    for (i = 0; i < 3; i++) OK(tsk_session_step(session, &finished, &error));
    for (i = 0; i < n + o.gen_length + c->block_length; i++) canvas[i] = i < n ? ids[i] : c->mask_token_id;
    OK(tsk_session_probe(session, canvas, TSK_PROBE_STEP_ALL, &probe, &error));
    OK(tsk_session_probe_logits(session, NULL, logits, &error));
    for (i = 0; i < c->block_length * c->embedding_size; i++)
        CHECK(c->family == TSK_FAMILY_FAST_DLLM_V2 && i < c->embedding_size ? logits[i] != logits[i]
                                                                            : fabsf(logits[i]) < 1e6f);
    CHECK(tsk_session_probe(session, NULL, TSK_PROBE_REFRESH, &probe, &error) == TSK_ERROR_ARGUMENT);
    free(logits);
    tsk_session_free(session);
}

/* ---- Dream */

static void same_tokens(tsk_model *model, tsk_generate_options a, tsk_generate_options b, int32_t n, int line) {
    tsk_session *left, *right;
    tsk_result one, other;
    tsk_error error;
    int32_t ids[max_ids], i;
    for (i = 0; i < n; i++) ids[i] = 4 + (7 * i) % 50;
    OK(tsk_session_create(model, &a, &left, &error));
    OK(tsk_session_create(model, &b, &right, &error));
    OK(tsk_generate(left, ids, n, NULL, &one, &error));
    OK(tsk_generate(right, ids, n, NULL, &other, &error));
    test_check(one.nfe == other.nfe && memcmp(one.canvas, other.canvas, (size_t)(n + a.gen_length) * sizeof *ids) == 0,
               __FILE__, line, "not the same tokens");
    tsk_session_free(left);
    tsk_session_free(right);
}

/* Caches that compute all there is are no caches, and rules that leave nothing out are none. */
static void test_shifted_caches(tsk_model *model) {
    tsk_generate_options dual = rule_options(0), other;
    int32_t n;
    dual.block_length = 8;
    dual.cache = TSK_CACHE_DUAL;
    for (n = 0; n < 10; n += 3) {
        other = dual;
        other.cache = TSK_CACHE_NONE;
        dual.refresh_rows = 1000, dual.refresh_every = 0;
        same_tokens(model, dual, other, n + (n == 0), __LINE__);
        dual.refresh = TSK_REFRESH_NEAR;
        same_tokens(model, dual, other, n + 1, __LINE__);
        dual.refresh_rows = 0, dual.refresh_every = 1, dual.refresh = TSK_REFRESH_FULL;
        other = dual;
        other.refresh = TSK_REFRESH_NEAR, other.refresh_near = 1000, other.refresh_every = 1;
        same_tokens(model, dual, other, n + 1, __LINE__);
        other = rule_options(2);
        other.cache = TSK_CACHE_DUAL, other.block_length = 8, other.skip.threshold = 1.0f, other.skip.refresh = 1;
        same_tokens(model, dual, other, n + 1, __LINE__);
        other = rule_options(1);
        other.cache = TSK_CACHE_DUAL, other.block_length = 8, other.skip.full_every = 1;
        same_tokens(model, dual, other, n + 1, __LINE__);
    }
    other = tsk_generate_options_default();
    tsk_generate_options_resolve(model, &other);
    CHECK(other.cache == TSK_CACHE_DUAL && other.block_length == 32 && other.skip.rule == TSK_SKIP_RULE_OFF);
}

/* ---- threads, cancelling, refusing */

static void test_threads(const char *name) {
    tsk_model *one = golden_model(name, 1), *four = golden_model(name, 4);
    tsk_generate_options o = rule_options(1);
    int32_t ids[30], i;
    tsk_session *a, *b;
    tsk_result left, right;
    tsk_error error;
    for (i = 0; i < 30; i++) ids[i] = 4 + i;
    OK(tsk_session_create(one, &o, &a, &error));
    OK(tsk_session_create(four, &o, &b, &error));
    OK(tsk_generate(a, ids, 30, NULL, &left, &error));
    OK(tsk_generate(b, ids, 30, NULL, &right, &error));
    CHECK(left.nfe == right.nfe && memcmp(left.canvas, right.canvas, 70 * sizeof *ids) == 0);
    tsk_session_free(a);
    tsk_session_free(b);
    tsk_model_free(one);
    tsk_model_free(four);
}

static int stop_at(void *user, const tsk_step *s) { return s->pass == *(int32_t *)user; }

static void test_cancel(tsk_model *model) {
    tsk_generate_options o = rule_options(0);
    int32_t ids[20], i, pass;
    tsk_session *session;
    tsk_result result;
    tsk_error error;
    for (i = 0; i < 20; i++) ids[i] = 4 + i;
    o.prompt_rows = 1;
    o.on_step = stop_at;
    o.user = &pass;
    OK(tsk_session_create(model, &o, &session, &error));
    for (pass = 0; pass < 12; pass++) {
        OK(tsk_generate(session, ids, 20, NULL, &result, &error));
        CHECK(result.finish_reason == TSK_FINISH_CANCELLED && result.nfe == pass + 1);
        CHECK(result.mask_residual > 0 && result.mask_residual <= o.gen_length);
    }
    tsk_session_free(session);
}

static void refuse(tsk_model *model, tsk_generate_options *o, const char *why, int line) {
    tsk_session *session = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    test_check(tsk_session_create(model, o, &session, &error) == TSK_ERROR_ARGUMENT && strstr(error.message, why),
               __FILE__, line, "'%s' should say '%s'", error.message, why);
    tsk_session_free(session);
    *o = tsk_generate_options_default();
}

static void test_refused(tsk_model *model) {
    tsk_generate_options o = tsk_generate_options_default();
    int32_t mask = tsk_model_get_config(model)->mask_token_id, ids[64];
    int32_t block = tsk_model_get_config(model)->block_length;
    tsk_model *llada = golden_model("mha-f32", 1);
    tsk_session *session;
    tsk_error error;
    int32_t i, most;
#define REFUSE(field, value, why) (o.field = (value), refuse(model, &o, why, __LINE__))
    REFUSE(cache, TSK_CACHE_DUAL, "cache dual: ");
    REFUSE(cache, TSK_CACHE_PREFIX, "has attention by blocks, and cache block only");
    REFUSE(cache, TSK_CACHE_NONE, "cache none: ");
    REFUSE(cache, (tsk_cache)7, "cache has no value 7");
    REFUSE(refresh, TSK_REFRESH_NEAR, "nothing is refreshed");
    REFUSE(refresh_rows, 4, "nothing is refreshed");
    REFUSE(refresh_every, 2, "nothing is refreshed");
    REFUSE(refresh_window, 16, "nothing is refreshed");
    REFUSE(small_block, 3 * block, "is not a multiple of small_block");
    REFUSE(small_block, -5, "small_block must be zero or positive, not -5");
    REFUSE(prompt_rows, 0, "prompt_rows must be positive, not 0");
    REFUSE(block_length, 0, "block_length must be positive, not 0");
    REFUSE(block_length, 1000, "beyond the model's max_sequence_length");
    REFUSE(steps, 0, "steps must be positive, not 0");
    o.skip.rule = TSK_SKIP_RULE_STATES;
    o.skip.refresh = 1;
    refuse(model, &o, "nothing is refreshed", __LINE__);
    o.cache = TSK_CACHE_BLOCK;
    refuse(llada, &o, "cache block needs attention by blocks, which LLaDA has not", __LINE__);
    o.small_block = 8;
    refuse(llada, &o, "small_block 8 needs cache block", __LINE__);
    o.gen_length = 240;
    OK(tsk_session_create(model, &o, &session, &error));
    for (i = 0; i < 64; i++) ids[i] = 4;
    most = 256 / block * block - 240; /* in whole blocks */
    OK(tsk_session_start(session, ids, most, NULL, &error));
    CHECK(tsk_session_start(session, ids, most + 1, NULL, &error) == TSK_ERROR_ARGUMENT &&
          strstr(error.message, "max_sequence_length 256"));
    tsk_session_free(session);
    o.gen_length = 20;
    OK(tsk_session_create(model, &o, &session, &error));
    ids[block - 1] = mask;
    CHECK(tsk_session_start(session, ids, block - 1 + 1, NULL, &error) == TSK_ERROR_ARGUMENT &&
          strstr(error.message, "mask at position"));
    CHECK(tsk_session_start(session, ids, block + block - 1, NULL, &error) == TSK_ERROR_ARGUMENT);
    tsk_session_free(session);
    tsk_model_free(llada);
#undef REFUSE
}

/* What nobody says: no TokenSkip, which has no figures here; the model's block; Fast-dLLM v2's small block. */
static void test_defaults(void) {
    size_t i;
    for (i = 0; i < n_models; i++) {
        const tsk_model_config *c = tsk_model_get_config(models[i].model);
        tsk_generate_options o = tsk_generate_options_default();
        tsk_generate_options_resolve(models[i].model, &o);
        CHECK(tsk_config_by_blocks(c) && o.cache == TSK_CACHE_BLOCK && o.block_length == c->block_length);
        CHECK(o.skip.rule == TSK_SKIP_RULE_OFF && o.skip.layer_k == 0 && o.steps == TSK_AUTO && o.prompt_rows == 2048);
        CHECK(o.small_block == (c->family == TSK_FAMILY_FAST_DLLM_V2 && c->block_length == 8 ? 8 : 0));
    }
}

int main(void) {
    size_t i;
    int rule;
    for (i = 0; i < n_models; i++) models[i].model = golden_model(models[i].name, 2);
    test_goldens();
    test_defaults();
    for (i = 0; i < n_models; i++) {
        for (rule = 0; rule < 4; rule++) test_final_caches(models[i].model, rule);
        test_conversations(models[i].model);
        test_nothing_kept(models[i].model);
        test_batch(models[i].model, 256, 0);
        test_batch(models[i].model, 40, 0);
        test_batch(models[i].model, 256, 100);
        for (rule = 0; rule < 4; rule++) test_copies(models[i].model, rule);
        test_probe_canvas(models[i].model);
        test_cancel(models[i].model);
        test_refused(models[i].model);
        test_threads(models[i].name);
        test_memory(models[i].name);
    }
    for (i = 0; i < 2; i++) {
        tsk_model *dream = golden_model(i ? "dream-f32" : "dream-bf16", 2);
        test_shifted_caches(dream);
        test_batch(dream, 256, 0);
        test_batch(dream, 160, 300);
        tsk_model_free(dream);
    }
    for (i = 0; i < n_models; i++) tsk_model_free(models[i].model);
    return test_end("test_blocks");
}
