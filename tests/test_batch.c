/* Batches: each request's tokens are those it gets alone, whatever shares its passes, and no request is lost. */
#include "../tokenskip.h"
#include "golden.h"

#include <pthread.h>

enum { max_prompt = 40, max_gen = 32, max_jobs = 2000 };

typedef struct job {
    tsk_generate_options options;
    int32_t prompt[max_prompt], n_prompt;
    int32_t tokens[max_gen];
    uint64_t id;
    int32_t nfe;
    int n_done;                /* times it was reported */
    tsk_finish finish;
    tsk_status status;
} job;

static uint32_t random_state = 1;

/* Seeded: a failing run can be had again. */
static uint32_t random_below(uint32_t n) {
    uint32_t counter[4] = {0, 0, 0, 0}, key[2] = {12345, 0}, words[4];
    counter[0] = random_state++;
    tsk_philox4x32(counter, key, words);
    return words[0] % n;
}

static void random_job(job *j, const tsk_model_config *config) {
    tsk_generate_options *o = &j->options;
    int32_t i;
    memset(j, 0, sizeof *j);
    *o = tsk_generate_options_default();
    o->block_length = random_below(2) ? 8 : 4;
    o->gen_length = o->block_length * (int32_t)(1 + random_below(3));
    o->cache = (tsk_cache)random_below(3);
    o->transfer = (tsk_transfer)random_below(3);
    o->threshold = 0.3f + 0.1f * (float)random_below(6);
    o->temperature = random_below(3) ? 0.0f : 0.7f;
    o->seed = random_below(1000);
    o->eos_stop = (int)random_below(2);
    o->remasking = random_below(4) ? TSK_REMASKING_LOW_CONFIDENCE : TSK_REMASKING_RANDOM;
    o->skip_layer_k = o->cache == TSK_CACHE_DUAL ? (int32_t)random_below(5) : 0;
    o->skip_threshold = random_below(2) ? 0.5f : 0.95f;
    o->skip_outlier = random_below(2) ? -1.0f : 0.7f;
    o->skip_masked = (int)random_below(2);
    o->skip_policy = random_below(3) ? TSK_SKIP_REUSE : TSK_SKIP_EXIT;
    o->skip_reference = random_below(2) ? TSK_SKIP_LAST_STEP : TSK_SKIP_LAST_COMPUTED;
    o->skip_warm_start = (int)random_below(2);
    o->skip_refresh = o->skip_layer_k > 0 && random_below(2);
    o->skip_max_age = (int32_t)random_below(3);
    o->refresh_rows = o->cache == TSK_CACHE_DUAL && random_below(2) ? (int32_t)random_below(40) : 0;
    o->refresh_every = o->cache != TSK_CACHE_NONE && random_below(2) ? (int32_t)(1 + random_below(3)) : 1;
    j->n_prompt = (int32_t)random_below(max_prompt);
    for (i = 0; i < j->n_prompt; i++) {
        j->prompt[i] = (int32_t)random_below((uint32_t)config->vocab_size);
        if (j->prompt[i] == config->mask_token_id && random_below(2)) j->prompt[i] = 0; /* the others are infilled */
    }
}

static void note(job *j, const tsk_result *result, tsk_status status) {
    j->n_done++;
    j->status = status;
    if (!result) return;
    j->finish = result->finish_reason;
    j->nfe = result->nfe;
    memcpy(j->tokens, result->tokens, (size_t)result->n_tokens * sizeof *j->tokens);
}

static void run_alone(tsk_model *model, job *j) {
    tsk_session *session = NULL;
    tsk_result result;
    tsk_error error;
    memset(&error, 0, sizeof error);
    if (!test_check(tsk_session_create(model, &j->options, &session, &error) == TSK_OK, __FILE__, __LINE__, "%s", error.message)) return;
    if (test_check(tsk_generate(session, j->prompt, j->n_prompt, NULL, &result, &error) == TSK_OK, __FILE__, __LINE__, "%s", error.message)) note(j, &result, TSK_OK);
    tsk_session_free(session);
}

static void on_done(void *user, uint64_t id, void *request_user, const tsk_result *result, const tsk_error *error) {
    job *j = (job *)request_user;
    (void)user;
    CHECK(j->id == id);
    note(j, result, error ? error->status : TSK_OK);
}

static tsk_batch *make_batch(tsk_model *model, int32_t max_requests, int32_t cache_tokens, int32_t max_rows, int64_t row_layers) {
    tsk_batch_options options = tsk_batch_options_default();
    tsk_batch *batch = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    options.max_requests = max_requests;
    options.cache_tokens = cache_tokens;
    options.max_rows = max_rows;
    options.row_layers = row_layers;
    options.on_done = on_done;
    test_check(tsk_batch_create(model, &options, &batch, &error) == TSK_OK, __FILE__, __LINE__, "%s", error.message);
    return batch;
}

static void submit(tsk_batch *batch, job *j) {
    tsk_error error;
    memset(&error, 0, sizeof error);
    test_check(tsk_batch_submit(batch, j->prompt, j->n_prompt, NULL, &j->options, j, &j->id, &error) == TSK_OK, __FILE__, __LINE__, "%s", error.message);
}

/* Requests arrive a few at a time while others run; every one must come out as it does alone. */
static void test_as_alone(const char *name, int32_t max_requests, int32_t cache_tokens, int32_t max_rows, int64_t row_layers) {
    enum { n_jobs = 120 };
    tsk_model *model = golden_model(name, 2);
    tsk_batch *batch = make_batch(model, max_requests, cache_tokens, max_rows, row_layers);
    job *jobs = (job *)calloc(n_jobs, sizeof *jobs);
    tsk_batch_status status;
    int32_t i, submitted = 0;
    for (i = 0; i < n_jobs; i++) random_job(&jobs[i], tsk_model_get_config(model));
    do {
        uint32_t arriving = random_below(4);
        while (arriving-- && submitted < n_jobs) submit(batch, &jobs[submitted++]);
        CHECK_INT(tsk_batch_step(batch, &status, NULL), TSK_OK);
        CHECK(status.in_flight <= max_requests && status.rows <= max_rows);
    } while (submitted < n_jobs || status.in_flight || status.queued);
    for (i = 0; i < n_jobs; i++) {
        job alone = jobs[i];
        run_alone(model, &alone);
        CHECK_INT(jobs[i].n_done, 1);
        test_check(jobs[i].nfe == alone.nfe && jobs[i].finish == alone.finish && memcmp(jobs[i].tokens, alone.tokens, sizeof alone.tokens) == 0, __FILE__, __LINE__,
                   "%s, request %d of a batch equals itself alone (cache %d, K %d, refresh %d)", name, (int)i, (int)alone.options.cache, (int)alone.options.skip_layer_k,
                   alone.options.skip_refresh);
    }
    free(jobs);
    tsk_batch_destroy(batch);
    tsk_model_free(model);
}

/* Many requests, many of them cancelled at random times: each is reported once, none is left. */
static void test_soak(void) {
    tsk_model *model = golden_model("mha-f32", 2);
    tsk_batch *batch = make_batch(model, 12, 400, 200, 500);
    job *jobs = (job *)calloc(max_jobs, sizeof *jobs);
    tsk_batch_status status;
    int32_t i, submitted = 0, n_cancelled = 0, n_finished = 0;
    for (i = 0; i < max_jobs; i++) random_job(&jobs[i], tsk_model_get_config(model));
    do {
        uint32_t arriving = random_below(8);
        while (arriving-- && submitted < max_jobs) submit(batch, &jobs[submitted++]);
        if (submitted && random_below(2)) tsk_batch_cancel(batch, 1 + random_below((uint32_t)submitted));
        CHECK_INT(tsk_batch_step(batch, &status, NULL), TSK_OK);
    } while (submitted < max_jobs || status.in_flight || status.queued);
    for (i = 0; i < max_jobs; i++) {
        CHECK_INT(jobs[i].n_done, 1);
        n_cancelled += jobs[i].finish == TSK_FINISH_CANCELLED;
        n_finished += jobs[i].finish == TSK_FINISH_LENGTH || jobs[i].finish == TSK_FINISH_EOS;
    }
    CHECK_INT(n_cancelled + n_finished, max_jobs);
    CHECK(n_cancelled > 10 && n_finished > 1000);
    free(jobs);
    tsk_batch_destroy(batch);
    tsk_model_free(model);
}

/* In order: of requests of one size, none finishes its admission before an earlier one. */
static void test_fairness(void) {
    enum { n_jobs = 20 };
    tsk_model *model = golden_model("mha-f32", 1);
    tsk_batch *batch = make_batch(model, 3, 1000, 100, 0);
    job jobs[n_jobs];
    tsk_batch_status status;
    int32_t i;
    for (i = 0; i < n_jobs; i++) {
        random_job(&jobs[0], tsk_model_get_config(model));
        if (i) jobs[i] = jobs[0];
        jobs[i].options.transfer = TSK_TRANSFER_SCHEDULE;
        jobs[i].options.gen_length = 8;
        jobs[i].options.block_length = 8;
        jobs[i].options.eos_stop = 0;
        jobs[i].n_prompt = 0;
    }
    for (i = 0; i < n_jobs; i++) submit(batch, &jobs[i]);
    do {
        CHECK_INT(tsk_batch_step(batch, &status, NULL), TSK_OK);
        for (i = 1; i < n_jobs; i++) CHECK(jobs[i - 1].n_done >= jobs[i].n_done);
    } while (status.in_flight || status.queued);
    tsk_batch_destroy(batch);
    tsk_model_free(model);
}

static void test_refusals(void) {
    tsk_model *model = golden_model("mha-f32", 1);
    tsk_batch *batch = make_batch(model, 2, 50, 60, 0);
    tsk_generate_options options = tsk_generate_options_default();
    int32_t prompt[64] = {0};
    tsk_error error;
    memset(&error, 0, sizeof error);
    options.gen_length = options.block_length = 16;
    CHECK_INT(tsk_batch_submit(batch, prompt, 40, NULL, &options, NULL, NULL, &error), TSK_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "40 prompt tokens and gen_length 16 can never fit the batch's cache_tokens 50");
    prompt[1] = 1000;
    CHECK_INT(tsk_batch_submit(batch, prompt, 4, NULL, &options, NULL, NULL, &error), TSK_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "id 1000 at position 1");
    options.block_length = 5;
    CHECK_INT(tsk_batch_submit(batch, prompt, 1, NULL, &options, NULL, NULL, &error), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_batch_drain(batch, &error), TSK_OK);
    tsk_batch_destroy(batch);
    tsk_model_free(model);
}

typedef struct submitter { tsk_batch *batch; job *jobs; int n; } submitter;

static void *submit_all(void *argument) {
    submitter *s = (submitter *)argument;
    int i;
    for (i = 0; i < s->n; i++) {
        tsk_batch_submit(s->batch, s->jobs[i].prompt, s->jobs[i].n_prompt, NULL, &s->jobs[i].options, &s->jobs[i], &s->jobs[i].id, NULL);
        if (i % 3 == 0) tsk_batch_cancel(s->batch, s->jobs[i].id);
    }
    return NULL;
}

/* Submitting and cancelling from other threads while one steps. */
static void test_threads(void) {
    enum { n_threads = 4, each = 25 };
    tsk_model *model = golden_model("mha-f32", 1);
    tsk_batch *batch = make_batch(model, 6, 500, 200, 0);
    job *jobs = (job *)calloc(n_threads * each, sizeof *jobs);
    submitter submitters[n_threads];
    pthread_t threads[n_threads];
    int i;
    for (i = 0; i < n_threads * each; i++) random_job(&jobs[i], tsk_model_get_config(model));
    for (i = 0; i < n_threads; i++) {
        submitters[i].batch = batch;
        submitters[i].jobs = jobs + i * each;
        submitters[i].n = each;
        CHECK_INT(pthread_create(&threads[i], NULL, submit_all, &submitters[i]), 0);
    }
    for (i = 0; i < 50; i++) CHECK_INT(tsk_batch_step(batch, NULL, NULL), TSK_OK);
    for (i = 0; i < n_threads; i++) pthread_join(threads[i], NULL);
    CHECK_INT(tsk_batch_drain(batch, NULL), TSK_OK);
    for (i = 0; i < n_threads * each; i++) CHECK_INT(jobs[i].n_done, 1);
    free(jobs);
    tsk_batch_destroy(batch);
    tsk_model_free(model);
}

int main(void) {
    test_as_alone("mha-f32", 8, 300, 300, 0);
    test_as_alone("mha-f32", 5, 150, 90, 60);   /* room for few: waiting, moving together, refreshes cut by layers */
    test_as_alone("gqa-bf16", 16, 2000, 1000, 1);
    test_as_alone("odd-f16", 3, 120, 120, 100);
    test_soak();
    test_fairness();
    test_refusals();
    test_threads();
    return test_end("test_batch");
}
