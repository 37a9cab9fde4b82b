/* Whole generations against the reference implementation's goldens (tests/golden/reference.py), and the invariants that
   hold whatever the options. */
#include "../tokenskip.h"
#include "golden.h"

enum { max_ids = 512 };

/* The starting canvas of a case: the prompt, and the generated part where the case fixes some of it. */
typedef struct start {
    int32_t ids[max_ids];
    int32_t n_prompt;
    const int32_t *generated;
} start;

static void case_start(const tsk_json_value *test, start *s) {
    const tsk_json_value *canvas = tsk_json_get(test, "canvas");
    s->n_prompt = golden_ids(tsk_json_get(test, "prompt"), s->ids, max_ids);
    if (canvas) golden_ids(canvas, s->ids, max_ids);
    s->generated = canvas ? s->ids + s->n_prompt : NULL;
}

static void check_case(const tsk_json_value *test, const tsk_result *r) {
    static const char *const reasons[] = {"none", "length", "eos", "cancelled"};
    const tsk_json_value *expected = tsk_json_get(test, "expected"), *skip = tsk_json_get(expected, "skip");
    const char *name = tsk_json_string(tsk_json_get(test, "name"), NULL);
#define CASE_CHECK(condition) test_check((condition) ? 1 : 0, __FILE__, __LINE__, "%s: %s", name, #condition)
    CASE_CHECK(golden_same_ids(tsk_json_get(expected, "tokens"), r->tokens, r->n_tokens));
    CASE_CHECK(golden_same_ids(tsk_json_get(expected, "canvas"), r->canvas, r->n_prompt + r->n_tokens));
    CASE_CHECK(golden_int(expected, "nfe", -1) == r->nfe);
    CASE_CHECK(golden_int(expected, "mask_residual", -1) == r->mask_residual);
    CASE_CHECK(golden_is(expected, "finish_reason", reasons[r->finish_reason]));
    CASE_CHECK(golden_same_blocks(tsk_json_get(expected, "blocks"), r));
    CASE_CHECK(golden_same_ids(tsk_json_get(skip, "active"), r->active, r->n_block_steps));
    CASE_CHECK(golden_same_ids(tsk_json_get(skip, "stable_masked"), r->stable_masked, r->n_block_steps));
    CASE_CHECK((uint64_t)golden_number(skip, "token_layers_computed", -1) == r->token_layers_computed);
    CASE_CHECK((uint64_t)golden_number(skip, "token_layers_total", -1) == r->token_layers_total);
    CASE_CHECK((uint64_t)golden_number(expected, "refreshed_rows", 0) == r->refreshed_rows);
    CASE_CHECK((uint64_t)golden_number(skip, "refresh_token_layers_computed", 0) == r->refresh_token_layers_computed);
    CASE_CHECK((uint64_t)golden_number(skip, "refresh_token_layers_total", 0) == r->refresh_token_layers_total);
#undef CASE_CHECK
}

/* ---- which rows each pass runs, where the goldens say it */

enum { max_passes = 128 };

typedef struct passes {
    int32_t n, rows[max_passes][max_ids], n_rows[max_passes];
    int is_refresh[max_passes];
    uint64_t n_ran;
    int wrong;
} passes;

static void see_rows(void *user, const tsk_trace_record *record) {
    passes *seen = (passes *)user;
    seen->n_rows[record->pass] = record->n_rows;
    memcpy(seen->rows[record->pass], record->positions, (size_t)record->n_rows * sizeof *record->positions);
}

static int see_step(void *user, const tsk_step *step) {
    passes *seen = (passes *)user;
    seen->is_refresh[seen->n++] = step->is_refresh;
    seen->n_ran += (uint64_t)step->n_rows;
    seen->wrong += step->pass != seen->n - 1;
    return 0;
}

static void check_rows(const tsk_json_value *test, const passes *seen, const tsk_result *r) {
    const tsk_json_value *expected = tsk_json_get(test, "expected"),
                         *rows = tsk_json_first(tsk_json_get(expected, "rows"));
    const char *name = tsk_json_string(tsk_json_get(test, "name"), NULL);
    int32_t i;
    if (!rows) return;
    test_check(seen->n == r->nfe && !seen->wrong && seen->n_ran == r->rows, __FILE__, __LINE__, "%s: its passes", name);
    test_check(golden_same_ids(tsk_json_get(expected, "refreshes"), seen->is_refresh, seen->n), __FILE__, __LINE__,
               "%s: which are refreshes", name);
    for (i = 0; i < seen->n; i++, rows = tsk_json_next(rows))
        test_check(rows && golden_same_ids(rows, seen->rows[i], seen->n_rows[i]), __FILE__, __LINE__,
                   "%s: rows of pass %d", name, (int)i);
    CHECK(!rows);
}

typedef struct named_model { const char *name; tsk_model *model; } named_model;
static named_model models[] = {
    {"mha-f32", NULL}, {"gqa-bf16", NULL}, {"odd-f16", NULL}, {"dream-f32", NULL}, {"dream-bf16", NULL}};

static tsk_model *model_of(const tsk_json_value *test) {
    size_t i;
    for (i = 0; i < sizeof models / sizeof models[0]; i++) {
        if (!golden_is(test, "model", models[i].name)) continue;
        if (!models[i].model) models[i].model = golden_model(models[i].name, 2);
        return models[i].model;
    }
    return NULL;
}

static void run_case(const tsk_json_value *test) {
    tsk_generate_options options = golden_options(tsk_json_get(test, "options"));
    tsk_trace_options trace = tsk_trace_options_default();
    static passes seen;
    tsk_session *session = NULL;
    tsk_result result;
    tsk_error error;
    start s;
    case_start(test, &s);
    memset(&error, 0, sizeof error);
    memset(&seen, 0, sizeof seen);
    options.end_of_turn_id = TSK_NONE;
    options.on_step = see_step;
    options.user = trace.user = &seen;
    trace.on_record = see_rows;
    trace.pattern = "embedding";
    if (!test_check(tsk_session_create(model_of(test), &options, &session, &error) == TSK_OK &&
                        tsk_session_trace(session, &trace, &error) == TSK_OK,
                    __FILE__, __LINE__, "%s", error.message))
        return;
    if (test_check(tsk_generate(session, s.ids, s.n_prompt, s.generated, &result, &error) == TSK_OK, __FILE__, __LINE__,
                   "%s", error.message)) {
        check_case(test, &result);
        check_rows(test, &seen, &result);
    }
    tsk_session_free(session);
}

static void run_goldens(const char *path) {
    tsk_json *document = golden_load(path);
    const tsk_json_value *test;
    for (test = tsk_json_first(tsk_json_get(tsk_json_root(document), "cases")); test; test = tsk_json_next(test))
        run_case(test);
    for (test = tsk_json_first(tsk_json_get(tsk_json_root(document), "usage_errors")); test;
         test = tsk_json_next(test)) {
        tsk_generate_options options = golden_options(tsk_json_get(test, "options"));
        tsk_session *session = NULL;
        tsk_error error;
        memset(&error, 0, sizeof error);
        /* The API has one field for the rule, where the reference has two options that can collide. */
        if (options.transfer == TSK_TRANSFER_FACTOR &&
            tsk_json_type_of(tsk_json_get(tsk_json_get(test, "options"), "threshold")) == TSK_JSON_NUMBER)
            continue;
        if (options.refresh_every == TSK_AUTO) continue; /* (the reference has no such number) */
        CHECK_INT(tsk_session_create(models[0].model, &options, &session, &error), TSK_ERROR_ARGUMENT);
        CHECK(error.message[0] && !session);
    }
    tsk_json_free(document);
}

/* ---- several ids that end a generation */

static void copy_file(const char *dir, const char *name) {
    char path[700];
    size_t size = 0;
    char *bytes;
    snprintf(path, sizeof path, "tests/golden/models/mha-f32/%s", name);
    bytes = read_file(path, &size);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    write_file(path, bytes, size);
    free(bytes);
}

/* The golden model with an id of generation_config.json that ends its texts, too. */
static tsk_model *model_with_end(int32_t id) {
    tsk_model_options options = tsk_model_options_default();
    tsk_model *model = NULL;
    char path[700], text[100];
    const char *dir = tsk_test_temp_dir();
    copy_file(dir, "config.json");
    copy_file(dir, "model.safetensors");
    snprintf(path, sizeof path, "%s/generation_config.json", dir);
    snprintf(text, sizeof text, "{\"eos_token_id\": [%d]}", (int)id);
    write_text(path, text);
    options.device = TSK_DEVICE_CPU;
    options.n_threads = 1;
    CHECK_INT(tsk_model_load(dir, &options, &model, NULL), TSK_OK);
    return model;
}

static void generate_ended(tsk_model *model, int eos_stop, int32_t *tokens, tsk_result *result) {
    static const int32_t prompt[] = {3, 14, 15, 9, 26};
    tsk_generate_options options = tsk_generate_options_default();
    tsk_session *session = NULL;
    options.gen_length = 32;
    options.block_length = 8;
    options.eos_stop = eos_stop;
    options.end_of_turn_id = TSK_NONE;
    CHECK_INT(tsk_session_create(model, &options, &session, NULL), TSK_OK);
    CHECK_INT(tsk_generate(session, prompt, 5, NULL, result, NULL), TSK_OK);
    memcpy(tokens, result->tokens, 32 * sizeof *tokens);
    tsk_session_free(session);
}

/* Up to the block of its first end token a text is what it is without an end; then it is padded with eos_token_id. */
static void test_ends(void) {
    tsk_model *plain = golden_model("mha-f32", 1), *ended;
    const tsk_model_config *config = tsk_model_get_config(plain);
    int32_t all[32], found[32], end = 0, i, id;
    tsk_result result;
    generate_ended(plain, 0, all, &result);
    id = all[11];
    CHECK(!tsk_config_is_eos(config, id));
    while (all[end] != id && all[end] != config->eos_token_id) end++;
    CHECK(end < 16); /* so that blocks are left to be padded */
    ended = model_with_end(id);
    generate_ended(ended, 1, found, &result);
    CHECK_INT(result.finish_reason, TSK_FINISH_EOS);
    CHECK_INT(result.n_before_end, end);
    for (i = 0; i < 32; i++) CHECK_INT(found[i], i < (end / 8 + 1) * 8 ? all[i] : config->eos_token_id);
    generate_ended(ended, 0, found, &result);
    CHECK_INT(result.n_before_end, end);
    CHECK(memcmp(found, all, sizeof all) == 0);
    tsk_model_free(ended);
    tsk_model_free(plain);
}

int main(void) {
    size_t i;
    test_ends();
    run_goldens("tests/golden/generate.json");
    run_goldens("tests/golden/generate_refresh.json");
    run_goldens("tests/golden/generate_rows.json");
    run_goldens("tests/golden/generate_rule_rows.json");
    run_goldens("tests/golden/generate_near.json");
    run_goldens("tests/golden/generate_transfer.json");
    run_goldens("tests/golden/generate_dream.json");
    for (i = 0; i < sizeof models / sizeof models[0]; i++) tsk_model_free(models[i].model);
    return test_end("test_session");
}
