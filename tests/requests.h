/* Random requests for a batch, and what each must come to: its tokens are those it gets alone. */
#ifndef TSK_REQUESTS_H
#define TSK_REQUESTS_H

#include "golden.h"
#include "seeded.h"

enum { max_prompt = 40, max_gen = 32 };

typedef struct job {
    tsk_generate_options options;
    int32_t prompt[max_prompt], n_prompt;
    int32_t tokens[max_gen];
    uint64_t id;
    int32_t nfe;
    uint64_t rows;             /* that ran, in all passes */
    int n_done;                /* times it was reported */
    tsk_finish finish;
    tsk_status status;
} job;

/* What leaves layers or rows out, and how blocks start: of cache DUAL. */
static void random_rows(tsk_generate_options *o) {
    static const tsk_skip_rule rules[] = {TSK_SKIP_RULE_AUTO, TSK_SKIP_RULE_ROWS, TSK_SKIP_RULE_ROWS,
                                          TSK_SKIP_RULE_OFF};
    o->skip.rule = rules[random_below(4)];
    o->skip.rows_margin = random_below(5);
    o->skip.rows_ahead = random_below(3);
    o->skip.layer_k = random_below(5);
    o->skip.full_every = random_below(3) ? 0 : random_below(4);
    o->refresh = random_below(2) ? TSK_REFRESH_NEAR : TSK_REFRESH_AUTO;
    o->refresh_near = random_below(12);
    o->refresh_window = random_below(2) ? random_below(14) : 0;
    o->refresh_rows = random_below(2) ? random_below(40) : 0;
    if (random_below(2)) o->refresh_every = random_below(4);
    if (o->refresh_window && o->refresh != TSK_REFRESH_NEAR) o->refresh_every = 1;
    o->skip.refresh = o->refresh != TSK_REFRESH_NEAR && !o->refresh_window && o->skip.layer_k > 0 &&
                      o->skip.rule != TSK_SKIP_RULE_OFF && random_below(2);
}

static void random_job(job *j, const tsk_model_config *config) {
    tsk_generate_options *o = &j->options;
    int32_t i;
    memset(j, 0, sizeof *j);
    *o = tsk_generate_options_default();
    o->block_length = random_below(2) ? 8 : 4;
    o->gen_length = o->block_length * (1 + random_below(3));
    o->cache = random_below(2) ? TSK_CACHE_DUAL : (tsk_cache)random_below(3);
    o->transfer = (tsk_transfer)random_below(3);
    o->threshold = 0.3f + 0.1f * (float)random_below(6);
    o->temperature = random_below(3) ? 0.0f : 0.7f;
    o->seed = (uint64_t)random_below(1000);
    o->eos_stop = random_below(2);
    o->remasking = random_below(4) ? TSK_REMASKING_LOW_CONFIDENCE : TSK_REMASKING_RANDOM;
    o->skip.threshold = random_below(2) ? 0.5f : 0.95f;
    o->skip.outlier = random_below(2) ? -1.0f : 0.7f;
    o->skip.masked = random_below(2);
    o->skip.policy = random_below(3) ? TSK_SKIP_REUSE : TSK_SKIP_EXIT;
    o->skip.reference = random_below(2) ? TSK_SKIP_LAST_STEP : TSK_SKIP_LAST_COMPUTED;
    o->skip.warm_start = random_below(2);
    o->skip.max_age = random_below(3);
    if (o->cache == TSK_CACHE_DUAL) random_rows(o);
    if (o->cache == TSK_CACHE_PREFIX && random_below(2)) o->refresh_every = random_below(4);
    j->n_prompt = random_below(max_prompt);
    for (i = 0; i < j->n_prompt; i++) {
        j->prompt[i] = random_below(config->vocab_size);
        if (j->prompt[i] == config->mask_token_id && random_below(2)) j->prompt[i] = 0; /* the others are infilled */
    }
}

static void note(job *j, const tsk_result *result, tsk_status status) {
    j->n_done++;
    j->status = status;
    if (!result) return;
    j->finish = result->finish_reason;
    j->nfe = result->nfe;
    j->rows = result->rows;
    memcpy(j->tokens, result->tokens, (size_t)result->n_tokens * sizeof *j->tokens);
}

static void run_alone(tsk_model *model, job *j) {
    tsk_session *session = NULL;
    tsk_result result;
    tsk_error error;
    memset(&error, 0, sizeof error);
    if (!test_check(tsk_session_create(model, &j->options, &session, &error) == TSK_OK, __FILE__, __LINE__, "%s",
                    error.message))
        return;
    if (test_check(tsk_generate(session, j->prompt, j->n_prompt, NULL, &result, &error) == TSK_OK, __FILE__, __LINE__,
                   "%s", error.message))
        note(j, &result, TSK_OK);
    tsk_session_free(session);
}

static void on_done(void *user, uint64_t id, void *request_user, const tsk_result *result, const tsk_error *error) {
    job *j = (job *)request_user;
    (void)user;
    CHECK(j->id == id);
    note(j, result, error ? error->status : TSK_OK);
}

static tsk_batch *make_batch(tsk_model *model, int32_t max_requests, int32_t cache_tokens, int32_t max_rows,
                             int64_t row_layers) {
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
    test_check(tsk_batch_submit(batch, j->prompt, j->n_prompt, NULL, &j->options, j, &j->id, &error) == TSK_OK,
               __FILE__, __LINE__, "%s", error.message);
}

/* Requests arrive a few at a time while others run, some are cancelled at random times; every other one must come out
   as it does alone. */
static void test_as_alone(tsk_model *model, const char *name, int32_t n_jobs, int32_t max_requests,
                          int32_t cache_tokens, int32_t max_rows, int64_t row_layers, int cancels) {
    tsk_batch *batch = make_batch(model, max_requests, cache_tokens, max_rows, row_layers);
    job *jobs = (job *)calloc((size_t)n_jobs, sizeof *jobs);
    tsk_batch_status status;
    int32_t i, submitted = 0, n_cancelled = 0;
    if (!batch || !jobs) exit(2);
    for (i = 0; i < n_jobs; i++) random_job(&jobs[i], tsk_model_get_config(model));
    do {
        int32_t arriving = random_below(4);
        while (arriving-- && submitted < n_jobs) submit(batch, &jobs[submitted++]);
        if (cancels && submitted && random_below(3) == 0)
            tsk_batch_cancel(batch, (uint64_t)(1 + random_below(submitted)));
        CHECK_INT(tsk_batch_step(batch, &status, NULL), TSK_OK);
        CHECK(status.in_flight <= max_requests && status.rows <= max_rows);
    } while (submitted < n_jobs || status.in_flight || status.queued);
    for (i = 0; i < n_jobs; i++) {
        job alone = jobs[i];
        CHECK_INT(jobs[i].n_done, 1);
        if (jobs[i].finish == TSK_FINISH_CANCELLED) {
            n_cancelled++;
            continue;
        }
        run_alone(model, &alone);
        test_check(jobs[i].nfe == alone.nfe && jobs[i].finish == alone.finish && jobs[i].rows == alone.rows &&
                       memcmp(jobs[i].tokens, alone.tokens, sizeof alone.tokens) == 0,
                   __FILE__, __LINE__,
                   "%s, request %d of a batch equals itself alone (cache %d, rule %d, K %d, skip_refresh %d, start %d)",
                   name, (int)i, (int)alone.options.cache, (int)alone.options.skip.rule,
                   (int)alone.options.skip.layer_k, alone.options.skip.refresh, (int)alone.options.refresh);
    }
    CHECK(cancels ? n_cancelled > 0 && n_cancelled < n_jobs : n_cancelled == 0);
    free(jobs);
    tsk_batch_free(batch);
}

#endif
