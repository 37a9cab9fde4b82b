/* One model, many threads, each with a session of its own: the same tokens as alone. Then many threads that do anything
   at all, with sessions of their own and one batch in common. Worth most under -fsanitize=thread:

       make test-threads */
#include "../tokenskip.h"
#include "golden.h"
#include "stateful.h"

#include <pthread.h>

enum { n_threads = 8, n_rounds = 2, gen_length = 16, max_steps = 64 };

/* What a thread generates, and what came of it: every token and confidence of every round. */
typedef struct job {
    tsk_model *model;
    int number;
    tsk_status status;
    int32_t tokens[n_rounds][gen_length], nfe[n_rounds];
    double confidence_sum;         /* in order of passes and positions, so equal runs give equal bits */
    int n_records;
} job;

static int add_confidences(void *user, const tsk_step *step) {
    job *j = (job *)user;
    int32_t i;
    for (i = 0; i < step->n_positions; i++) j->confidence_sum = j->confidence_sum * 0.75 + (double)step->confidences[i];
    return 0;
}

static void count_record(void *user, const tsk_trace_record *record) {
    (void)record;
    ((job *)user)->n_records++;
}

/* Different caches, lengths, rules and seeds in each. */
static tsk_generate_options options_of(job *j) {
    tsk_generate_options options = tsk_generate_options_default();
    options.gen_length = gen_length;
    options.block_length = j->number % 2 ? 8 : 16;
    options.cache = j->number % 4 == 3 ? TSK_CACHE_NONE : j->number % 4 == 2 ? TSK_CACHE_PREFIX : TSK_CACHE_DUAL;
    options.transfer = j->number % 3 ? TSK_TRANSFER_THRESHOLD : TSK_TRANSFER_SCHEDULE;
    options.threshold = 0.3f;
    options.temperature = j->number == 5 ? 1.0f : 0.0f;
    options.seed = (uint64_t)j->number;
    options.eos_stop = 0;
    options.skip.masked = j->number == 4;
    options.skip.threshold = 0.8f;
    if (j->number < 2 || j->number == 5) options.skip.rule = TSK_SKIP_RULE_ROWS, options.skip.rows_margin = 1;
    if (j->number == 1) options.refresh = TSK_REFRESH_NEAR, options.refresh_window = 4;
    options.on_step = add_confidences;
    options.user = j;
    return options;
}

static void *run_job(void *argument) {
    job *j = (job *)argument;
    tsk_generate_options options = options_of(j);
    tsk_trace_options tracing = tsk_trace_options_default();
    tsk_session *session = NULL;
    tsk_result result;
    int32_t prompt[40], i, round;
    tracing.on_record = count_record;
    tracing.user = j;
    j->status = tsk_session_create(j->model, &options, &session, NULL);
    if (j->status == TSK_OK && j->number == 1) j->status = tsk_session_trace(session, &tracing, NULL);
    for (round = 0; round < n_rounds && j->status == TSK_OK; round++) {
        int32_t n_prompt = 4 + 3 * j->number + 5 * round;
        for (i = 0; i < n_prompt; i++) prompt[i] = (i * 7 + j->number * 11 + round) % 50;
        j->status = tsk_generate(session, prompt, n_prompt, NULL, &result, NULL);
        if (j->status != TSK_OK) break;
        memcpy(j->tokens[round], result.tokens, sizeof j->tokens[round]);
        j->nfe[round] = result.nfe;
    }
    tsk_session_free(session);
    return NULL;
}

static void start_jobs(tsk_model *model, job jobs[n_threads]) {
    int i;
    memset(jobs, 0, n_threads * sizeof *jobs);
    for (i = 0; i < n_threads; i++) {
        jobs[i].model = model;
        jobs[i].number = i;
    }
}

static void check_model(tsk_model *model) {
    static job alone[n_threads], together[n_threads];
    pthread_t threads[n_threads];
    int i;
    start_jobs(model, alone);
    for (i = 0; i < n_threads; i++) run_job(&alone[i]);
    start_jobs(model, together);
    for (i = 0; i < n_threads; i++)
        if (!CHECK_INT(pthread_create(&threads[i], NULL, run_job, &together[i]), 0)) exit(1);
    for (i = 0; i < n_threads; i++) pthread_join(threads[i], NULL);
    for (i = 0; i < n_threads; i++) {
        CHECK_INT(alone[i].status, TSK_OK);
        CHECK_INT(together[i].status, TSK_OK);
        CHECK(memcmp(alone[i].tokens, together[i].tokens, sizeof alone[i].tokens) == 0);
        CHECK(memcmp(alone[i].nfe, together[i].nfe, sizeof alone[i].nfe) == 0);
        CHECK(alone[i].nfe[0] > 0 && alone[i].confidence_sum > 0);
        CHECK(memcmp(&alone[i].confidence_sum, &together[i].confidence_sum, sizeof alone[i].confidence_sum) == 0);
        CHECK_INT(alone[i].n_records, together[i].n_records);
    }
    CHECK(alone[1].n_records > 0);
}

/* Large enough that its passes are shared out between the pool's threads. */
static tsk_model *wide_model(int workers) {
    tsk_model_options options = tsk_model_options_default();
    tsk_model_config config;
    tsk_model *model = NULL;
    memset(&config, 0, sizeof config);
    config.d_model = 128;
    config.n_layers = 2;
    config.n_heads = config.n_kv_heads = 4;
    config.head_dim = 32;
    config.mlp_hidden_size = 160;
    config.vocab_size = config.embedding_size = 500;
    config.max_sequence_length = 128;
    config.mask_token_id = 499;
    config.eos_token_id = config.pad_token_id = 498;
    config.rope_theta = 10000.0f;
    config.rms_norm_eps = 1e-5f;
    options.device = TSK_DEVICE_CPU;
    options.n_threads = workers;
    CHECK_INT(tsk_model_random(&config, 3, &options, &model, NULL), TSK_OK);
    return model;
}

static void *load_and_free(void *argument) {
    tsk_model *model = golden_model((const char *)argument, 2);
    tsk_model_free(model);
    return NULL;
}

/* Loading shares nothing either. */
static void check_loading(void) {
    static char name[] = "gqa-bf16";
    pthread_t threads[4];
    int i;
    for (i = 0; i < 4; i++)
        if (!CHECK_INT(pthread_create(&threads[i], NULL, load_and_free, name), 0)) exit(1);
    for (i = 0; i < 4; i++) CHECK_INT(pthread_join(threads[i], NULL), 0);
}

/* ---- anything at all (stateful.h) */

enum { n_players = 4, n_plays = 40, n_play_bytes = 400 };

typedef struct player {
    stateful_models *models;
    int number, *running;          /* players at work, the first one, who steps the batch, not counted */
    char *text;
} player;

static void play(player *p) {
    uint8_t bytes[n_play_bytes];
    uint32_t state = (uint32_t)p->number;
    int round, i;
    for (round = 0; round < n_plays && !p->text; round++) {
        for (i = 0; i < n_play_bytes; i++) bytes[i] = (uint8_t)((state = state * 1664525u + 1013904223u) >> 24);
        p->text = stateful_run(p->models, bytes, sizeof bytes, 0, p->number == 0);
    }
}

static int count_running(player *p, int change) {
    int running;
    pthread_mutex_lock(&p->models->lock);
    running = *p->running += change;
    pthread_mutex_unlock(&p->models->lock);
    return running;
}

static void *run_player(void *argument) {
    player *p = (player *)argument;
    play(p);
    count_running(p, -1);
    return NULL;
}

/* The batch's owner steps it until the others are done, whose requests wait in it. */
static void run_players(stateful_models *models) {
    player players[n_players];
    pthread_t threads[n_players];
    int i, running = n_players - 1;
    for (i = 0; i < n_players; i++) {
        players[i].models = models;
        players[i].number = i;
        players[i].running = &running;
        players[i].text = NULL;
        if (i && !CHECK_INT(pthread_create(&threads[i], NULL, run_player, &players[i]), 0)) exit(1);
    }
    play(&players[0]);
    while (count_running(&players[0], 0)) CHECK_INT(tsk_batch_step(models->batch, NULL, NULL), TSK_OK);
    for (i = 1; i < n_players; i++) pthread_join(threads[i], NULL);
    for (i = 0; i < n_players; i++) {
        test_check(players[i].text == NULL, __FILE__, __LINE__, "thread %d:\n%s", i,
                   players[i].text ? players[i].text : "");
        free(players[i].text);
    }
}

static tsk_model *small_model(heap *h) {
    tsk_model_options options = tsk_model_options_default();
    tsk_model_config config;
    tsk_model *model = NULL;
    memset(&config, 0, sizeof config);
    config.d_model = 32, config.n_layers = 4, config.n_heads = 4, config.n_kv_heads = 2, config.head_dim = 8,
    config.mlp_hidden_size = 48;
    config.vocab_size = config.embedding_size = 30;
    config.max_sequence_length = 64;
    config.mask_token_id = 29;
    config.eos_token_id = config.pad_token_id = 28;
    config.rope_theta = 10000.0f, config.rms_norm_eps = 1e-5f;
    options.host.allocator = &h->allocator;
    options.device = TSK_DEVICE_CPU;
    options.n_threads = 2;
    CHECK_INT(tsk_model_random(&config, 5, &options, &model, NULL), TSK_OK);
    return model;
}

static void check_anything(void) {
    tsk_batch_options options = tsk_batch_options_default();
    stateful_models models;
    heap memory;
    memset(&models, 0, sizeof models);
    heap_init(&memory);
    models.heap = &memory;
    pthread_mutex_init(&models.lock, NULL);
    models.models[models.n_models++] = small_model(&memory);
    options.max_requests = 5, options.cache_tokens = 150, options.max_rows = 100, options.row_layers = 90;
    stateful_share_batch(&models, options);
    run_players(&models);
    CHECK_INT(tsk_batch_drain(models.batch, NULL), TSK_OK);
    tsk_batch_free(models.batch);
    tsk_model_free(models.models[0]);
    CHECK_INT(memory.alive, 0);
    CHECK_STRING(memory.fault, "");
    pthread_mutex_destroy(&models.lock);
    heap_end(&memory);
}

int main(void) {
    tsk_model *model = golden_model("gqa-bf16", 3);
    check_model(model);
    tsk_model_free(model);
    model = wide_model(3);
    if (model) check_model(model);
    tsk_model_free(model);
    check_loading();
    check_anything();
    return test_end("test_threads");
}
