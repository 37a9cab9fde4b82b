/* Batches: each request's tokens are those it gets alone, whatever shares its passes, and no request is lost. */
#include "../tokenskip.h"
#include "requests.h"

#include <pthread.h>
#include <unistd.h>

enum { max_jobs = 2000 };

static void check_as_alone(const char *name, int32_t max_requests, int32_t cache_tokens, int32_t max_rows,
                           int64_t row_layers) {
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
        jobs[i].options = tsk_generate_options_default();
        jobs[i].options.cache = TSK_CACHE_NONE;
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

/* ---- rows of block steps and of block starts */

/* A prompt of 20, three blocks of 4, a token a pass. */
static void make_near_job(job *j, int32_t margin) {
    int32_t i;
    memset(j, 0, sizeof *j);
    j->options = tsk_generate_options_default();
    j->options.gen_length = 12, j->options.block_length = 4, j->options.eos_stop = 0;
    j->options.transfer = TSK_TRANSFER_SCHEDULE;
    j->options.skip.rule = TSK_SKIP_RULE_ROWS, j->options.skip.rows_margin = margin;
    j->options.refresh = TSK_REFRESH_NEAR, j->options.refresh_near = 2, j->options.refresh_window = 3;
    for (j->n_prompt = 20, i = 0; i < 20; i++) j->prompt[i] = 3 * i + 1;
}

/* The last committed and the one that is to be: 2 rows a step. The first block sees 20 + 4 + 3 positions. The second
   starts with the last committed, itself and the 3 that the window newly shows behind it; the third with the last
   committed and itself. */
static void test_near_rows(int32_t n_jobs) {
    static const int32_t rows[12] = {27, 2, 2, 2, 8, 2, 2, 2, 5, 2, 2, 2};
    tsk_model *model = golden_model("mha-f32", 1);
    tsk_batch *batch = make_batch(model, 3, 1000, 200, 0);
    job jobs[3], alone;
    tsk_batch_status status;
    int32_t i, layers = tsk_model_get_config(model)->n_layers;
    for (i = 0; i < n_jobs; i++) {
        make_near_job(&jobs[i], 0);
        submit(batch, &jobs[i]);
    }
    for (i = 0; i < 12; i++) {
        CHECK_INT(tsk_batch_step(batch, &status, NULL), TSK_OK);
        CHECK_INT(status.rows, n_jobs * rows[i]);
        CHECK(status.row_layers == (int64_t)status.rows * layers);
    }
    CHECK_INT(status.in_flight, 0);
    alone = jobs[0];
    run_alone(model, &alone);
    for (i = 0; i < n_jobs; i++)
        CHECK(jobs[i].n_done == 1 && jobs[i].rows == 58 && alone.rows == 58 &&
              memcmp(jobs[i].tokens, alone.tokens, sizeof alone.tokens) == 0);
    tsk_batch_free(batch);
    tsk_model_free(model);
}

/* Block starts made of rows are cut by layers as refreshes are, and come to the same. */
static void test_near_cut(void) {
    tsk_model *model = golden_model("mha-f32", 1);
    int32_t layers = tsk_model_get_config(model)->n_layers, i, most = 0, parts = 0, steps = 0;
    tsk_batch *batch = make_batch(model, 1, 1000, 200, 16);
    job cut, alone;
    tsk_batch_status status;
    make_near_job(&cut, 0);
    submit(batch, &cut);
    do {
        CHECK_INT(tsk_batch_step(batch, &status, NULL), TSK_OK);
        CHECK(status.rows == 27 ? status.row_layers == 27 : status.row_layers <= 16 || status.rows == 2);
        parts += status.rows == 8;
        most = status.rows > most ? status.rows : most;
        steps++;
    } while (status.in_flight);
    CHECK_INT(most, 27);
    CHECK_INT(parts, (layers + 1) / 2); /* two layers of the 8 rows at a time */
    i = (layers + 2) / 3;               /* three of the 5 rows */
    CHECK_INT(steps, layers + parts + i + 9);
    alone = cut;
    run_alone(model, &alone);
    CHECK(cut.nfe == 12 && cut.rows == alone.rows && memcmp(cut.tokens, alone.tokens, sizeof alone.tokens) == 0);
    tsk_batch_free(batch);
    tsk_model_free(model);
}

/* Side by side, each by a margin, a window and a start of its own. */
static void test_margins(void) {
    enum { n_jobs = 12 };
    tsk_model *model = golden_model("gqa-bf16", 2);
    tsk_batch *batch = make_batch(model, n_jobs, 2000, 500, 0);
    job jobs[n_jobs];
    int32_t i;
    for (i = 0; i < n_jobs; i++) {
        make_near_job(&jobs[i], i % 6 == 5 ? INT32_MAX : i % 6);
        jobs[i].options.skip.rule = i == 7 ? TSK_SKIP_RULE_OFF : TSK_SKIP_RULE_ROWS;
        jobs[i].options.skip.rows_ahead = i % 3;
        jobs[i].options.refresh = i % 2 ? TSK_REFRESH_NEAR : TSK_REFRESH_FULL;
        jobs[i].options.refresh_window = i % 4 * 3;
        jobs[i].options.steps = i % 3 == 2 ? 6 : 12;
        jobs[i].n_prompt = 20 - i;
        submit(batch, &jobs[i]);
    }
    CHECK_INT(tsk_batch_drain(batch, NULL), TSK_OK);
    for (i = 0; i < n_jobs; i++) {
        job alone = jobs[i];
        run_alone(model, &alone);
        test_check(jobs[i].n_done == 1 && jobs[i].nfe == alone.nfe && jobs[i].rows == alone.rows &&
                       jobs[i].nfe == jobs[i].options.steps &&
                       memcmp(jobs[i].tokens, alone.tokens, sizeof alone.tokens) == 0,
                   __FILE__, __LINE__, "request %d of different margins and starts", (int)i);
    }
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
        tsk_batch_submit(s->batch, s->jobs[i].prompt, s->jobs[i].n_prompt, NULL, &s->jobs[i].options, &s->jobs[i],
                         &s->jobs[i].id, NULL);
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

/* A request that is cancelled while it queues leaves the queue at once; its outcome comes with the next step, which
   need not have anything to run. */
static void test_queue(void) {
    tsk_model *model = golden_model("mha-f32", 1);
    const tsk_model_config *config = tsk_model_get_config(model);
    tsk_batch_options options = tsk_batch_options_default();
    tsk_batch *batch = NULL;
    tsk_batch_status status;
    tsk_error error;
    job jobs[4];
    int32_t i;
    options.max_requests = 1, options.max_queued = 3, options.cache_tokens = 300, options.on_done = on_done;
    if (!CHECK_INT(tsk_batch_create(model, &options, &batch, NULL), TSK_OK)) return;
    for (i = 0; i < 4; i++) {
        random_job(&jobs[i], config);
        jobs[i].options.gen_length = jobs[i].options.block_length = 8;
        jobs[i].options.steps = TSK_AUTO, jobs[i].options.transfer = TSK_TRANSFER_SCHEDULE;
    }
    for (i = 0; i < 3; i++) submit(batch, &jobs[i]);
    CHECK_INT(tsk_batch_submit(batch, jobs[3].prompt, jobs[3].n_prompt, NULL, &jobs[3].options, &jobs[3], &jobs[3].id,
                               &error),
              TSK_ERROR_FULL);
    CHECK_CONTAINS(error.message, "max_queued 3");
    tsk_batch_cancel(batch, jobs[1].id); /* makes room, at once, */
    CHECK_INT(jobs[1].n_done, 0);
    submit(batch, &jobs[3]);
    tsk_batch_cancel(batch, jobs[3].id); /* from the end, */
    tsk_batch_cancel(batch, jobs[0].id); /* and from the beginning */
    CHECK_INT(tsk_batch_step(batch, &status, NULL), TSK_OK);
    CHECK(jobs[0].n_done == 1 && jobs[1].n_done == 1 && jobs[3].n_done == 1 && jobs[2].n_done == 0);
    CHECK(status.in_flight == 1 && status.queued == 0 && status.ending == 0);
    for (i = 0; i < 4; i += i ? 2 : 1) { /* 0, 1, 3: as they were given */
        int32_t j, wrong = 0;
        CHECK(jobs[i].finish == TSK_FINISH_CANCELLED && jobs[i].nfe == 0);
        for (j = 0; j < 8; j++) wrong += jobs[i].tokens[j] != config->mask_token_id;
        CHECK_INT(wrong, 0);
    }
    CHECK_INT(tsk_batch_drain(batch, NULL), TSK_OK);
    CHECK(jobs[2].n_done == 1 && jobs[2].finish != TSK_FINISH_CANCELLED);
    jobs[0].n_done = 0;
    submit(batch, &jobs[0]);
    tsk_batch_cancel(batch, jobs[0].id);
    CHECK_INT(tsk_batch_wait(batch, TSK_NONE), 1); /* something to tell */
    CHECK_INT(tsk_batch_step(batch, &status, NULL), TSK_OK);
    CHECK(jobs[0].n_done == 1 && status.rows == 0 && status.in_flight + status.queued + status.ending == 0);
    jobs[0].n_done = 0;
    submit(batch, &jobs[0]);
    tsk_batch_cancel(batch, jobs[0].id);
    tsk_batch_free(batch); /* nothing is told, nothing left */
    CHECK_INT(jobs[0].n_done, 0);
    options.max_queued = 0;
    CHECK_INT(tsk_batch_create(model, &options, &batch, &error), TSK_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "max_queued");
    tsk_model_free(model);
}

/* Requests have callbacks of their own, called from the step; the text of an answer can be followed. */
typedef struct follower { int32_t n_steps, n_done, stop_at; tsk_batch *batch; uint64_t other; } follower;

static int follow(void *user, const tsk_step *step) {
    follower *f = (follower *)user;
    CHECK_INT(step->pass, f->n_steps);
    if (f->n_steps == 0 && f->other) tsk_batch_cancel(f->batch, f->other); /* one that queues */
    return f->n_steps++ == f->stop_at;
}
static void follow_done(void *user, uint64_t id, void *request_user, const tsk_result *result, const tsk_error *error) {
    follower *f = (follower *)request_user;
    (void)user, (void)id;
    if (CHECK(result && !error)) CHECK_INT(result->nfe, f->n_steps);
    if (f->stop_at >= 0) CHECK(result->finish_reason == TSK_FINISH_CANCELLED && f->n_steps == f->stop_at + 1);
    f->n_done++;
}

static void test_callbacks(void) {
    tsk_model *model = golden_model("mha-f32", 1);
    tsk_batch_options options = tsk_batch_options_default();
    tsk_generate_options o = tsk_generate_options_default();
    follower followers[3];
    tsk_batch_status status;
    int32_t i;
    memset(followers, 0, sizeof followers);
    options.max_requests = 2, options.cache_tokens = 300, options.on_done = follow_done;
    if (!CHECK_INT(tsk_batch_create(model, &options, &followers[0].batch, NULL), TSK_OK)) return;
    o.gen_length = o.block_length = 8, o.transfer = TSK_TRANSFER_SCHEDULE, o.eos_stop = 0, o.on_step = follow;
    for (i = 0; i < 3; i++) {
        followers[i].stop_at = i == 1 ? 2 : -1;
        o.user = &followers[i];
        CHECK_INT(tsk_batch_submit(followers[0].batch, NULL, 0, NULL, &o, &followers[i],
                                   i == 2 ? &followers[0].other : NULL, NULL),
                  TSK_OK);
    }
    CHECK_INT(tsk_batch_step(followers[0].batch, &status, NULL), TSK_OK);
    CHECK(status.in_flight == 2 && status.queued == 0 && status.ending == 1 && followers[2].n_done == 0);
    CHECK_INT(tsk_batch_drain(followers[0].batch, NULL), TSK_OK);
    for (i = 0; i < 3; i++) CHECK_INT(followers[i].n_done, 1);
    CHECK(followers[0].n_steps == 8 && followers[1].n_steps == 3 && followers[2].n_steps == 0);
    tsk_batch_free(followers[0].batch);
    tsk_model_free(model);
}

/* A serving loop: one thread waits and steps, another submits, and ends it by a cancel of no request. */
typedef struct server { tsk_batch *batch; job *jobs; int n; int stop; } server;

static void *serve(void *argument) {
    server *s = (server *)argument;
    while (!__atomic_load_n(&s->stop, __ATOMIC_ACQUIRE))
        if (tsk_batch_wait(s->batch, TSK_NONE)) CHECK_INT(tsk_batch_step(s->batch, NULL, NULL), TSK_OK);
    CHECK_INT(tsk_batch_drain(s->batch, NULL), TSK_OK);
    return NULL;
}

static void test_wait(void) {
    enum { n_jobs = 30 };
    static job jobs[n_jobs];
    tsk_model *model = golden_model("mha-f32", 1);
    server s = {make_batch(model, 4, 300, 200, 0), jobs, n_jobs, 0};
    pthread_t thread;
    int i;
    CHECK_INT(tsk_batch_wait(s.batch, 0), 0);
    CHECK_INT(tsk_batch_wait(s.batch, 1), 0);
    tsk_batch_cancel(s.batch, 0);
    CHECK_INT(tsk_batch_wait(s.batch, TSK_NONE), 0); /* a call before the wait is not lost */
    for (i = 0; i < n_jobs; i++) random_job(&jobs[i], tsk_model_get_config(model));
    alarm(600); /* (a wait that nobody ends) */
    CHECK_INT(pthread_create(&thread, NULL, serve, &s), 0);
    for (i = 0; i < n_jobs; i++) {
        tsk_batch_submit(s.batch, jobs[i].prompt, jobs[i].n_prompt, NULL, &jobs[i].options, &jobs[i], &jobs[i].id,
                         NULL);
        if (i % 4 == 0) tsk_batch_cancel(s.batch, jobs[i].id);
        if (i % 5 == 0) usleep(2000); /* so that it waits now and then */
    }
    __atomic_store_n(&s.stop, 1, __ATOMIC_RELEASE);
    tsk_batch_cancel(s.batch, 0);
    pthread_join(thread, NULL);
    alarm(0);
    for (i = 0; i < n_jobs; i++) CHECK_INT(jobs[i].n_done, 1);
    tsk_batch_free(s.batch);
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
    test_near_rows(1);
    test_near_rows(3);
    test_near_cut();
    test_margins();
    test_refusals();
    test_threads();
    test_queue();
    test_callbacks();
    test_wait();
    return test_end("test_batch");
}
