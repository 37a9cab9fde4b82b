/* The invariants (see invariants.h) on the CPU; that threads do not change a result either; and what is refused. */
#include "../tokenskip.h"
#include "invariants.h"

static const char *const model_names[] = {"mha-f32", "gqa-bf16", "odd-f16"};
enum { n_models = 3 };

/* ---- (d) threads */

/* Large enough for its passes to be shared out between threads, which the golden models are not. */
static tsk_model *wide_model(int n_threads) {
    tsk_model_options options = tsk_model_options_default();
    tsk_model_config config;
    tsk_model *model = NULL;
    memset(&config, 0, sizeof config);
    config.d_model = 128;
    config.n_layers = 3;
    config.n_heads = 4;
    config.n_kv_heads = 2;
    config.head_dim = 32;
    config.mlp_hidden_size = 200;
    config.vocab_size = config.embedding_size = 500;
    config.max_sequence_length = 128;
    config.mask_token_id = 499;
    config.eos_token_id = config.pad_token_id = 498;
    config.rope_theta = 10000.0f;
    config.rms_norm_eps = 1e-5f;
    options.device = TSK_DEVICE_CPU;
    options.n_threads = n_threads;
    CHECK_INT(tsk_model_random(&config, 3, &options, &model, NULL), TSK_OK);
    return model;
}

static tsk_model *model_with_threads(int which, int n_threads) {
    return which < n_models ? golden_model(model_names[which], n_threads) : wide_model(n_threads);
}

static void test_threads_and_tracing(int which) {
    tsk_model *models[3];
    static run first, other;
    int32_t i, trial;
    for (i = 0; i < 3; i++) models[i] = model_with_threads(which, 1 + (int)i);
    for (trial = 0; trial < n_traced; trial += which < n_models || trial != 1 ? 1 : 5) {
        const tsk_model_config *config = tsk_model_get_config(models[0]);
        traced_options(&first, config, trial);
        generate(models[0], &first);
        for (i = 0; i < 3; i++) {
            other = first;
            generate(models[i], &other);
            test_check(same_run(&first, &other), __FILE__, __LINE__, "model %d, trial %d: %d threads differ from one",
                       which, (int)trial, (int)i + 1);
            other = first;
            generate_traced(models[i], &other);
            test_check(same_run(&first, &other), __FILE__, __LINE__, "model %d, trial %d: tracing changes the result",
                       which, (int)trial);
            CHECK_INT(other.wrong, 0);
        }
    }
    for (i = 0; i < 3; i++) tsk_model_free(models[i]);
}

/* ---- options and inputs that are refused, with the reason */

static void refuse(tsk_model *model, tsk_generate_options options, const char *reason, int line) {
    tsk_session *session = (tsk_session *)(void *)model;
    tsk_error error;
    memset(&error, 0, sizeof error);
    test_check(tsk_session_create(model, &options, &session, &error) == TSK_ERROR_ARGUMENT, __FILE__, line,
               "refused: %s", reason);
    test_check(session == NULL && strstr(error.message, reason) != NULL, __FILE__, line, "\"%s\" lacks \"%s\"",
               error.message, reason);
}

static void test_refusals(tsk_model *model) {
    tsk_generate_options good = tsk_generate_options_default(), o;
#define REFUSE(field, value, reason) (o = good, o.field = (value), refuse(model, o, reason, __LINE__))
    REFUSE(gen_length, 0, "gen_length must be positive, not 0");
    REFUSE(gen_length, -32, "gen_length");
    REFUSE(block_length, 0, "block_length");
    REFUSE(block_length, 33, "gen_length 128 is not a multiple of block_length 33");
    REFUSE(gen_length, 25600, "max_sequence_length 256");
    REFUSE(steps, 0, "steps must be positive");
    REFUSE(steps, 6, "steps 6 is not a multiple of the number of blocks, 4");
    REFUSE(threshold, NAN, "threshold");
    REFUSE(threshold, INFINITY, "threshold");
    REFUSE(factor, NAN, "factor");
    REFUSE(factor, 0, "factor");
    REFUSE(frechet, NAN, "frechet must be a number from 0 to 1");
    REFUSE(frechet, -0.01f, "frechet");
    REFUSE(frechet, 1.01f, "frechet");
    REFUSE(entropy_bound, NAN, "entropy_bound must be zero or a positive number");
    REFUSE(entropy_bound, -0.01f, "entropy_bound");
    REFUSE(entropy_bound, INFINITY, "entropy_bound");
    REFUSE(local_leap, NAN, "local_leap must be a finite number");
    REFUSE(local_radius, -1, "local_radius must be zero or positive, not -1");
    REFUSE(temperature, NAN, "temperature");
    REFUSE(temperature, -0.5f, "temperature");
    REFUSE(temperature, INFINITY, "temperature");
    REFUSE(skip.threshold, NAN, "skip_threshold");
    REFUSE(skip.outlier, NAN, "skip_outlier");
    REFUSE(skip.outlier, -INFINITY, "skip_outlier");
    REFUSE(skip.layer_k, -2, "skip_layer_k");
    REFUSE(skip.max_age, -1, "skip_max_age");
    REFUSE(skip.full_every, -1, "skip_full_every");
    REFUSE(end_of_turn_id, 1 << 20, "end_of_turn_id");
    REFUSE(end_of_turn_id, TSK_NONE - 1, "end_of_turn_id");
    REFUSE(cache, (tsk_cache)7, "cache");
    REFUSE(transfer, (tsk_transfer)7, "transfer");
    REFUSE(remasking, (tsk_remasking)7, "remasking");
    REFUSE(skip.policy, (tsk_skip_policy)7, "skip_policy");
    REFUSE(skip.reference, (tsk_skip_reference)7, "skip_reference");
    REFUSE(skip.rule, (tsk_skip_rule)3, "skip_rule has no value 3");
    REFUSE(skip.rule, (tsk_skip_rule)-2, "skip_rule has no value -2");
    REFUSE(skip.rows_margin, -1, "skip_rows_margin must be zero or positive, not -1");
    REFUSE(skip.rows_ahead, -1, "skip_rows_ahead must be zero or positive, not -1");
    REFUSE(refresh, (tsk_refresh)2, "refresh has no value 2");
    REFUSE(refresh_near, -1, "refresh_near must be zero or positive, not -1");
    REFUSE(refresh_window, -1, "refresh_window must be zero or positive, not -1");
    good.refresh_window = 8;
    REFUSE(refresh_every, 2, "refresh_window 8 and refresh full need refresh_every 1, not 2");
    REFUSE(refresh_every, 0, "refresh_every 1, not 0");
    REFUSE(skip.refresh, 1, "skip_refresh and refresh_window 8 exclude each other");
    REFUSE(cache, TSK_CACHE_PREFIX, "refresh_window 8 needs cache dual");
    good.refresh_window = 0, good.refresh = TSK_REFRESH_NEAR;
    REFUSE(cache, TSK_CACHE_NONE, "refresh near needs cache dual");
    REFUSE(skip.refresh, 1, "skip_refresh needs refresh full");
    good.refresh = TSK_REFRESH_AUTO, good.skip.rule = TSK_SKIP_RULE_ROWS;
    REFUSE(cache, TSK_CACHE_PREFIX, "skip_rule rows needs cache dual");
    REFUSE(cache, TSK_CACHE_NONE, "skip_rule rows needs cache dual");
    good.skip.rule = TSK_SKIP_RULE_STATES;
    REFUSE(skip.layer_k, 0, "skip_rule states needs a skip_layer_k above 0");
    good.skip.rule = TSK_SKIP_RULE_OFF;
    REFUSE(skip.refresh, 1, "skip_refresh needs TokenSkip");
    good.skip.rule = TSK_SKIP_RULE_AUTO;
    good.skip.layer_k = 2;
    REFUSE(cache, TSK_CACHE_PREFIX, "dual");
    REFUSE(cache, TSK_CACHE_NONE, "dual");
#undef REFUSE
}

static void refuse_start(tsk_session *session, const int32_t *prompt, int32_t n, const int32_t *generated,
                         const char *reason, int line) {
    tsk_error error;
    tsk_result result;
    int finished = 0;
    memset(&error, 0, sizeof error);
    test_check(tsk_session_start(session, prompt, n, generated, &error) == TSK_ERROR_ARGUMENT, __FILE__, line,
               "refused: %s", reason);
    test_check(strstr(error.message, reason) != NULL, __FILE__, line, "\"%s\" lacks \"%s\"", error.message, reason);
    tsk_session_result(session, &result); /* whatever it says, it can be asked */
    if (tsk_session_step(session, &finished, &error) == TSK_OK)
        test_check(finished, __FILE__, line, "nothing is left to do");
}

static void test_refused_input(tsk_model *model) {
    const tsk_model_config *config = tsk_model_get_config(model);
    int32_t ids[300] = {1, 2, 3, 4, 5, 6}, fixed[128] = {0};
    tsk_session *session = NULL;
    tsk_result result;
    tsk_error error;
    memset(&error, 0, sizeof error);
    CHECK_INT(tsk_session_create(NULL, NULL, &session, &error), TSK_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "model");
    CHECK_INT(tsk_session_create(model, NULL, &session, &error), TSK_OK);
    tsk_session_result(session, &result);
    CHECK(result.tokens == NULL && result.nfe == 0);
    refuse_start(session, NULL, 3, NULL, "prompt", __LINE__);
    refuse_start(session, ids, -1, NULL, "prompt", __LINE__);
    refuse_start(session, ids, 129, NULL, "max_sequence_length 256", __LINE__);
    refuse_start(session, ids, INT32_MAX, NULL, "max_sequence_length 256", __LINE__);
    ids[4] = -1;
    refuse_start(session, ids, 6, NULL, "id -1 at position 4", __LINE__);
    ids[4] = config->embedding_size;
    refuse_start(session, ids, 6, NULL, "outside the vocabulary", __LINE__);
    fixed[100] = config->embedding_size;
    refuse_start(session, ids, 4, fixed, "position 100", __LINE__);
    CHECK_INT(tsk_session_start(session, ids, 4, NULL, &error), TSK_OK);
    refuse_start(session, ids, 6, NULL, "outside the vocabulary", __LINE__);
    tsk_session_free(session);
}

int main(void) {
    int i;
    for (i = 0; i < n_models; i++) {
        tsk_model *model = golden_model(model_names[i], 1);
        test_invariants_of(model, 160);
        test_refusals(model);
        test_refused_input(model);
        tsk_model_free(model);
    }
    for (i = 0; i <= n_models; i++) test_threads_and_tracing(i);
    return test_end("test_invariants");
}
