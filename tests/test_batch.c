/* Batches: each request's tokens are those it gets alone, whatever shares its passes, and no request is lost. */
#include "../tokenskip.h"
#include "requests.h"

#include <pthread.h>

enum { max_jobs = 2000 };

static void check_as_alone(const char *name, int32_t max_requests, int32_t cache_tokens, int32_t max_rows, int64_t row_layers) {
    tsk_model *model = golden_model(name, 2);
    test_as_alone(model, name, 120, max_requests, cache_tokens, max_rows, row_layers, 0);
    test_as_alone(model, name, 60, max_requests, cache_tokens, max_rows, row_layers, 1);
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
        int32_t arriving = random_below(8);
        while (arriving-- && submitted < max_jobs) submit(batch, &jobs[submitted++]);
        if (submitted && random_below(2)) tsk_batch_cancel(batch, (uint64_t)(1 + random_below(submitted)));
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
    tsk_batch_free(batch);
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
        random_job(&jobs[i], tsk_model_get_config(model));
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
    tsk_batch_free(batch);
    tsk_model_free(model);
}

/* Without a cache every pass goes over the whole canvas: all of them keep within the budget of row-layers. */
static void test_budget(void) {
    enum { n_jobs = 3, n_prompt = 10, gen = 8 };
    tsk_model *model = golden_model("mha-f32", 1);
    int32_t layers = tsk_model_get_config(model)->n_layers, i;
    int64_t budget = 2 * (n_prompt + gen);  /* two layers of one canvas */
    tsk_batch *batch = make_batch(model, n_jobs, 1000, 100, budget);
    job jobs[n_jobs];
    tsk_batch_status status;
    CHECK(layers > 2);
    for (i = 0; i < n_jobs; i++) {
        random_job(&jobs[i], tsk_model_get_config(model));
        jobs[i].options.cache = TSK_CACHE_NONE, jobs[i].options.skip.layer_k = 0, jobs[i].options.skip.refresh = 0;
        jobs[i].options.refresh_rows = 0, jobs[i].options.refresh_every = 1;
        jobs[i].options.gen_length = gen, jobs[i].options.block_length = 4, jobs[i].options.eos_stop = 0;
        jobs[i].n_prompt = n_prompt;
        submit(batch, &jobs[i]);
    }
    do {
        CHECK_INT(tsk_batch_step(batch, &status, NULL), TSK_OK);
        CHECK(status.row_layers > 0 && status.row_layers <= budget);
    } while (status.in_flight || status.queued);
    for (i = 0; i < n_jobs; i++) CHECK_INT(jobs[i].n_done, 1);
    tsk_batch_free(batch);
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
    tsk_batch_free(batch);
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
    tsk_batch_free(batch);
    tsk_model_free(model);
}

int main(void) {
    check_as_alone("mha-f32", 8, 300, 300, 0);
    check_as_alone("mha-f32", 5, 150, 90, 60);   /* room for few: waiting, moving together, refreshes cut by layers */
    check_as_alone("gqa-bf16", 16, 2000, 1000, 1);
    check_as_alone("odd-f16", 3, 120, 120, 100);
    test_soak();
    test_fairness();
    test_budget();
    test_refusals();
    test_threads();
    return test_end("test_batch");
}
