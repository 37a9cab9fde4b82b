/* refresh_rows and refresh_every: which rows a block step adds, which block starts run the whole canvas, and that a
   step which adds everything is a forward without a cache. */
#include "../tokenskip.h"
#include "golden.h"

enum { max_length = 64, max_passes = 80, max_confidences = 4096 };

static const char *const model_names[] = {"mha-f32", "gqa-bf16", "odd-f16"};
enum { n_models = 3 };

typedef struct run {
    tsk_generate_options options;
    int32_t prompt[max_length], n_prompt, generated[max_length];
    int has_generated;
    tsk_result result;
    int32_t canvas[max_length];
    float confidences[max_confidences];
    int32_t n_confidences, passes;
    int is_refresh[max_passes];
    int32_t rows[max_passes][max_length], n_rows[max_passes]; /* of each traced pass */
} run;

static int watch(void *user, const tsk_step *step) {
    run *r = (run *)user;
    int32_t i;
    for (i = 0; i < step->n_positions && r->n_confidences < max_confidences; i++)
        r->confidences[r->n_confidences++] = step->confidences[i];
    r->is_refresh[r->passes++] = step->is_refresh;
    return 0;
}

static void see_rows(void *user, const tsk_trace_record *record) {
    run *r = (run *)user;
    r->n_rows[record->pass] = record->n_rows;
    memcpy(r->rows[record->pass], record->positions, (size_t)record->n_rows * sizeof *record->positions);
}

/* One a pass, from the left. */
static void choose_first(void *user, const tsk_selection *selection) {
    (void)user;
    selection->commit[0] = 1;
}

static void new_run(run *r, const tsk_model_config *config, int32_t n_prompt, int32_t gen_length,
                    int32_t block_length) {
    int32_t i;
    memset(r, 0, sizeof *r);
    r->options = tsk_generate_options_default();
    r->options.gen_length = gen_length;
    r->options.block_length = block_length;
    r->options.skip.layer_k = 0;
    r->options.eos_stop = 0;
    r->n_prompt = n_prompt;
    for (i = 0; i < n_prompt; i++) r->prompt[i] = (i * 7 + 3) % config->mask_token_id;
    for (i = 0; i < gen_length; i++) r->generated[i] = config->mask_token_id;
}

static void generate(tsk_model *model, run *r) {
    tsk_trace_options trace = tsk_trace_options_default();
    tsk_session *session = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    r->options.on_step = watch;
    r->options.user = trace.user = r;
    trace.on_record = see_rows;
    trace.pattern = "embedding";
    r->passes = r->n_confidences = 0;
    if (test_check(tsk_session_create(model, &r->options, &session, &error) == TSK_OK &&
                       tsk_session_trace(session, &trace, &error) == TSK_OK &&
                       tsk_generate(session, r->prompt, r->n_prompt, r->has_generated ? r->generated : NULL, &r->result,
                                    &error) == TSK_OK,
                   __FILE__, __LINE__, "%s", error.message))
        memcpy(r->canvas, r->result.canvas, (size_t)(r->n_prompt + r->options.gen_length) * sizeof *r->canvas);
    tsk_session_free(session);
}

static int same_run(const run *a, const run *b) {
    return a->passes == b->passes && a->n_confidences == b->n_confidences &&
           memcmp(a->canvas, b->canvas, sizeof a->canvas) == 0 &&
           memcmp(a->confidences, b->confidences, (size_t)a->n_confidences * sizeof *a->confidences) == 0;
}

/* ---- a step that adds every row is a forward of the whole canvas, bit for bit */

static void test_whole_canvas(tsk_model *model, const char *name) {
    const tsk_model_config *config = tsk_model_get_config(model);
    static run none, dual;
    int32_t trial;
    for (trial = 0; trial < 12; trial++) {
        new_run(&none, config, 3 + 2 * trial, 24, trial % 2 ? 8 : 4);
        none.options.cache = TSK_CACHE_NONE;
        none.options.transfer = (tsk_transfer)(trial % 3);
        none.options.threshold = 0.5f;
        none.options.temperature = trial % 4 == 3 ? 0.8f : 0;
        if (trial % 3 == 2) none.prompt[1] = none.prompt[4] = none.prompt[5] = config->mask_token_id;
        dual = none;
        generate(model, &none);
        dual.options.cache = TSK_CACHE_DUAL;
        dual.options.refresh_rows = trial % 2 ? INT32_MAX : none.n_prompt + 24;
        dual.options.refresh_every = trial % 4 == 0 ? 1 : trial % 4 == 1 ? 2 : INT32_MAX;
        generate(model, &dual);
        test_check(same_run(&none, &dual), __FILE__, __LINE__,
                   "%s, trial %d: a step that adds every row differs from cache none", name, (int)trial);
        CHECK_INT(none.result.refreshes, none.passes);
        CHECK(dual.result.block_steps > 0);
    }
}

/* ---- which rows: worked out by hand */

typedef struct expected_pass { int32_t n, rows[12]; } expected_pass;

static void check_rows(const run *r, const expected_pass *expected, int32_t n) {
    int32_t i;
    CHECK_INT(r->passes, n);
    for (i = 0; i < n; i++)
        test_check(r->n_rows[i] == expected[i].n &&
                       memcmp(r->rows[i], expected[i].rows, (size_t)expected[i].n * sizeof(int32_t)) == 0,
                   __FILE__, __LINE__, "the rows of pass %d", (int)i);
}

/* A prompt of 4 and two blocks of 4, a token a pass from the left, three rows more each step. */
static void test_order(tsk_model *model) {
    static const expected_pass expected[] = {
        {12, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
        {7, {4, 5, 6, 7, 3, 8, 2}},    /* all of pass 0: the nearest, of two the lower */
        {7, {4, 5, 6, 7, 9, 1, 10}},
        {7, {4, 5, 6, 7, 0, 11, 3}},   /* the last two of pass 0; 3, 8, 2 of pass 1; this commits 7 */
        {7, {8, 9, 10, 11, 7, 2, 1}},  /* 7 was computed as a mask; 2 of pass 1; 1 of pass 2; the others of pass 3 */
        {7, {8, 9, 10, 11, 6, 5, 4}},  /* of pass 3: 0 and 3 to 6 */
        {7, {8, 9, 10, 11, 3, 0, 7}},  /* the last two of pass 3; 7, 2, 1 of pass 4 */
        {7, {8, 9, 10, 11, 2, 1, 6}},
    };
    const tsk_model_config *config = tsk_model_get_config(model);
    static run r;
    new_run(&r, config, 4, 8, 4);
    r.options.on_select = choose_first;
    r.options.refresh_rows = 3;
    r.options.refresh_every = 2;
    generate(model, &r);
    check_rows(&r, expected, 8);
    CHECK_INT(r.result.refreshes, 1);
    CHECK_INT(r.result.block_steps, 7);
    CHECK_INT(r.result.refreshed_rows, 7 * 3);
    CHECK(r.result.token_layers_total == (uint64_t)(7 * 4 * config->n_layers)); /* of the block's rows, as ever */
    CHECK(r.result.token_layers_computed == r.result.token_layers_total);
}

/* Masks at 1 and 4 of a prompt of 6 are a block of their own. */
static void test_infilling_order(tsk_model *model) {
    static const expected_pass expected[] = {
        {10, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}},
        {6, {1, 4, 0, 2, 3, 5}},       /* this commits 4 */
        {8, {6, 7, 8, 9, 4, 5, 3, 2}}, /* 4 was computed as a mask; 1 is of pass 1, as 0, 2, 3 and 5 */
        {8, {6, 7, 8, 9, 1, 0, 5, 4}},
        {8, {6, 7, 8, 9, 3, 2, 5, 4}}, /* the last two of pass 2; 5, 4, 1, 0 of pass 3 */
        {8, {6, 7, 8, 9, 1, 0, 5, 4}},
    };
    const tsk_model_config *config = tsk_model_get_config(model);
    static run r;
    new_run(&r, config, 6, 4, 4);
    r.prompt[1] = r.prompt[4] = config->mask_token_id;
    r.options.on_select = choose_first;
    r.options.refresh_rows = 4;
    r.options.refresh_every = 2;
    generate(model, &r);
    check_rows(&r, expected, 6);
}

/* ---- which block starts run the whole canvas */

static void test_every(tsk_model *model) {
    static const int32_t every[] = {1, 2, 3, 7, INT32_MAX}, refreshes[] = {7, 4, 3, 1, 1};
    const tsk_model_config *config = tsk_model_get_config(model);
    static run r;
    int32_t i, pass, cache;
    for (i = 0; i < 5; i++)
        for (cache = TSK_CACHE_DUAL; cache <= TSK_CACHE_PREFIX; cache++) {
            /* eight blocks of 4; the first is given whole, so that the second is the first to start */
            new_run(&r, config, 5, 32, 4);
            r.has_generated = 1;
            r.generated[0] = r.generated[1] = r.generated[2] = r.generated[3] = 1;
            r.options.cache = (tsk_cache)cache;
            r.options.on_select = choose_first;
            r.options.refresh_every = every[i];
            generate(model, &r);
            CHECK_INT(r.passes, 28);
            CHECK_INT(r.result.refreshes, refreshes[i]);
            CHECK_INT(r.result.block_steps, 28 - refreshes[i]);
            for (pass = 0; pass < 28; pass++) CHECK_INT(r.is_refresh[pass], pass % 4 == 0 && pass / 4 % every[i] == 0);
        }
}

/* ---- a copy goes on as its original does */

static void test_copy(tsk_model *model) {
    const tsk_model_config *config = tsk_model_get_config(model);
    static run r;
    tsk_session *from = NULL, *to = NULL;
    tsk_result a, b;
    int finished = 0, i;
    new_run(&r, config, 9, 24, 8);
    r.options.transfer = TSK_TRANSFER_SCHEDULE;
    r.options.refresh_rows = 3;
    r.options.refresh_every = 3;
    CHECK_INT(tsk_session_create(model, &r.options, &from, NULL), TSK_OK);
    CHECK_INT(tsk_session_create(model, &r.options, &to, NULL), TSK_OK);
    CHECK_INT(tsk_session_start(from, r.prompt, r.n_prompt, NULL, NULL), TSK_OK);
    for (i = 0; i < 11; i++) CHECK_INT(tsk_session_step(from, &finished, NULL), TSK_OK);
    CHECK_INT(tsk_session_copy(to, from, NULL), TSK_OK);
    while (!finished && CHECK_INT(tsk_session_step(from, &finished, NULL), TSK_OK))
        CHECK_INT(tsk_session_step(to, &finished, NULL), TSK_OK);
    CHECK(finished);
    tsk_session_result(from, &a);
    tsk_session_result(to, &b);
    CHECK_INT(a.refreshes, 1);
    CHECK(a.nfe == 24 && b.nfe == 24 && a.refreshed_rows == b.refreshed_rows &&
          memcmp(a.canvas, b.canvas, (size_t)(r.n_prompt + 24) * sizeof *a.canvas) == 0);
    tsk_session_free(from);
    tsk_session_free(to);
}

/* ---- what is refused */

static void refuse(tsk_model *model, tsk_cache cache, int32_t rows, int32_t every, const char *reason) {
    tsk_generate_options o = tsk_generate_options_default();
    tsk_session *session = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    o.cache = cache;
    o.refresh_rows = rows;
    o.refresh_every = every;
    CHECK_INT(tsk_session_create(model, &o, &session, &error), TSK_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, reason);
}

static void test_refusals(tsk_model *model) {
    refuse(model, TSK_CACHE_DUAL, -1, 1, "refresh_rows must be zero or positive, not -1");
    refuse(model, TSK_CACHE_DUAL, 0, -5, "refresh_every must be zero or positive, not -5");
    refuse(model, TSK_CACHE_PREFIX, 8, 1, "refresh_rows 8 needs cache dual");
    refuse(model, TSK_CACHE_NONE, 8, 1, "refresh_rows 8 needs cache dual");
    refuse(model, TSK_CACHE_NONE, 0, 2, "refresh_every 2 needs a cache");
    refuse(model, TSK_CACHE_NONE, 0, 0, "refresh_every 0 needs a cache");
}

int main(void) {
    int i;
    for (i = 0; i < n_models; i++) {
        tsk_model *model = golden_model(model_names[i], 2);
        test_whole_canvas(model, model_names[i]);
        test_order(model);
        test_infilling_order(model);
        test_every(model);
        test_copy(model);
        test_refusals(model);
        tsk_model_free(model);
    }
    return test_end("test_refresh");
}
