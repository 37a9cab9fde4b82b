/* What a session is after each of its calls: never started, under way, over, or ended by an error. Refused memory,
   wrong calls, calls from callbacks, copies between sessions of any options, and logits that are no numbers. */
#include "../tokenskip.h"
#include "golden.h"
#include "seeded.h"

#include <math.h>
#ifndef _WIN32
#include <sys/wait.h>
#endif

enum { gen_length = 16, block_length = 8, n_short = 4, n_long = 40, max_positions = 64, vocabulary = 128 };

static const char *const folder = "tests/golden/models/mha-f32";

static int32_t prompt_id(int i) { return (i * 7 + 3) % 50; }

static tsk_generate_options small_options(void) {
    tsk_generate_options o = tsk_generate_options_default();
    o.gen_length = gen_length;
    o.block_length = block_length;
    o.transfer = TSK_TRANSFER_SCHEDULE;
    o.eos_stop = 0;
    o.skip.layer_k = 2;
    return o;
}

static tsk_model *load(const char *path, const tsk_allocator *allocator, int n_threads) {
    tsk_model_options o = tsk_model_options_default();
    tsk_model *model = NULL;
    tsk_error error = TSK_ZERO;
    o.device = TSK_DEVICE_CPU;
    o.n_threads = n_threads;
    o.host.allocator = allocator;
    if (tsk_model_load(path, &o, &model, &error) != TSK_OK) {
        printf("%s\n", error.message);
        exit(2);
    }
    return model;
}

static tsk_session *create(tsk_model *model, const tsk_generate_options *o) {
    tsk_session *session = NULL;
    tsk_error error = TSK_ZERO;
    if (tsk_session_create(model, o, &session, &error) != TSK_OK) {
        printf("%s\n", error.message);
        exit(2);
    }
    return session;
}

static void fill_prompt(int32_t *prompt, int n) {
    int i;
    for (i = 0; i < n; i++) prompt[i] = prompt_id(i);
}

static tsk_status start(tsk_session *session, int n_prompt, tsk_error *error) {
    int32_t prompt[n_long];
    fill_prompt(prompt, n_prompt);
    return tsk_session_start(session, prompt, n_prompt, NULL, error);
}

/* At most n steps (-1: all); how many were taken. */
static int steps(tsk_session *session, int n) {
    int finished = 0, taken = 0;
    tsk_error error = TSK_ZERO;
    while (taken != n && !finished &&
           test_check(tsk_session_step(session, &finished, &error) == TSK_OK, __FILE__, __LINE__, "%s", error.message))
        taken++;
    return taken;
}

static void tokens_alone(tsk_model *model, const tsk_generate_options *o, int n_prompt, int32_t *tokens) {
    tsk_session *session = create(model, o);
    tsk_result result;
    CHECK_INT(start(session, n_prompt, NULL), TSK_OK);
    steps(session, -1);
    tsk_session_result(session, &result);
    CHECK_INT(result.mask_residual, 0);
    memcpy(tokens, result.tokens, gen_length * sizeof *tokens);
    tsk_session_free(session);
}

static int goes_on_to(tsk_session *session, const int32_t *tokens) {
    tsk_result result;
    steps(session, -1);
    tsk_session_result(session, &result);
    return result.n_tokens == gen_length && memcmp(result.tokens, tokens, gen_length * sizeof *tokens) == 0;
}

/* Everything that needs a generation refuses. */
static void check_never_started(tsk_session *session, tsk_session *other) {
    static float logits[block_length * vocabulary];
    tsk_error error = TSK_ZERO;
    tsk_probe probe;
    tsk_result result;
    int finished = 7;
    CHECK_INT(tsk_session_step(session, &finished, &error), TSK_ERROR_ARGUMENT);
    CHECK_INT(finished, 7);
    CHECK_CONTAINS(error.message, "tsk_session_start");
    CHECK_INT(tsk_session_probe(session, NULL, TSK_PROBE_REFRESH, &probe, &error), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_session_probe(session, NULL, TSK_PROBE_STEP, &probe, &error), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_session_probe_logits(session, NULL, logits, &error), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_session_copy(other, session, &error), TSK_ERROR_ARGUMENT);
    tsk_session_result(session, &result);
    CHECK(result.canvas == NULL && result.tokens == NULL && result.n_tokens == 0 && result.nfe == 0);
}

/* ---- memory */

typedef enum refused_call { START, LOGITS, COPY, n_refused_calls } refused_call;

static tsk_status call(refused_call which, tsk_session *session, tsk_session *from, tsk_error *error) {
    static float logits[vocabulary];
    int32_t prompt[n_long];
    fill_prompt(prompt, n_long);
    switch (which) {
    case START: return start(session, n_long, error);
    case LOGITS: return tsk_session_logits(session, prompt, n_long, 3, 1, logits, error);
    default: return tsk_session_copy(session, from, error);
    }
}

/* A session in the middle of a short generation is asked for something larger, and the n-th allocation of that is
   refused. */
static void test_refused(refused_call which) {
    tsk_generate_options o = small_options();
    int32_t short_tokens[gen_length], long_tokens[gen_length];
    test_allocator counting = test_allocator_failing_at(-1);
    tsk_allocator allocator = test_allocator_of(&counting);
    tsk_model *model = load(folder, &allocator, 1);
    long n;
    o.skip.refresh = 1;
    tokens_alone(model, &o, n_short, short_tokens);
    tokens_alone(model, &o, n_long, long_tokens);
    for (n = 0; n < 1000; n++) {
        tsk_session *session = create(model, &o), *from = create(model, &o), *other = create(model, &o);
        tsk_error error = TSK_ZERO;
        tsk_status status;
        CHECK_INT(start(session, n_short, NULL), TSK_OK);
        CHECK_INT(start(from, n_long, NULL), TSK_OK);
        steps(session, 2);
        steps(from, 2);
        counting.calls = counting.failed = 0;
        counting.fail_at = n;
        status = call(which, session, from, &error);
        counting.fail_at = -1;
        if (!counting.failed) CHECK_INT(status, TSK_OK);
        else if (CHECK_INT(status, TSK_ERROR_MEMORY)) check_never_started(session, other);
        CHECK(goes_on_to(from, long_tokens));
        CHECK_INT(start(session, n_short, NULL), TSK_OK);
        CHECK(goes_on_to(session, short_tokens));
        tsk_session_free(session);
        tsk_session_free(from);
        tsk_session_free(other);
        if (!counting.failed) break;
    }
    CHECK(n > 3 && n < 1000);
    tsk_model_free(model);
    CHECK_INT(counting.alive, 0);
}

/* ---- the order of calls */

static void test_order(tsk_model *model) {
    static float logits[block_length * vocabulary];
    tsk_generate_options o = small_options();
    tsk_session *session = create(model, &o), *other = create(model, &o);
    int32_t wrong[] = {1, 2, 1 << 20}, right[] = {1, 2, 3};
    tsk_error error = TSK_ZERO;
    tsk_probe probe;
    int finished;
    check_never_started(session, other);
    /* a start that is refused, after a good one */
    CHECK_INT(start(session, n_short, &error), TSK_OK);
    CHECK_INT(tsk_session_start(session, wrong, 3, NULL, &error), TSK_ERROR_ARGUMENT);
    check_never_started(session, other);
    /* logits that are refused for their arguments change nothing; those that are given end the generation */
    CHECK_INT(start(session, n_short, &error), TSK_OK);
    CHECK_INT(tsk_session_logits(session, wrong, 3, 0, 1, logits, &error), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_session_step(session, &finished, &error), TSK_OK);
    CHECK_INT(tsk_session_logits(session, right, 3, 0, 1, logits, &error), TSK_OK);
    check_never_started(session, other);
    /* a copy that is refused for its arguments changes nothing */
    CHECK_INT(start(other, n_short, &error), TSK_OK);
    CHECK_INT(tsk_session_copy(other, session, &error), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_session_step(other, &finished, &error), TSK_OK);
    /* logits of a probe need the probe, and nothing between the two */
    CHECK_INT(tsk_session_probe_logits(other, NULL, logits, &error), TSK_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "tsk_session_probe");
    CHECK_INT(tsk_session_probe(other, NULL, TSK_PROBE_STEP, &probe, &error), TSK_OK);
    CHECK_INT(tsk_session_probe_logits(other, NULL, logits, &error), TSK_OK);
    CHECK_INT(tsk_session_probe_logits(other, NULL, logits, &error), TSK_OK);
    CHECK_INT(tsk_session_step(other, &finished, &error), TSK_OK);
    CHECK_INT(tsk_session_probe_logits(other, NULL, logits, &error), TSK_ERROR_ARGUMENT);
    tsk_session_free(session);
    tsk_session_free(other);
}

static void test_null(tsk_model *model) {
    tsk_generate_options o = small_options();
    tsk_session *session = create(model, &o), *none = NULL;
    tsk_json *document = NULL;
    tsk_safetensors *file = NULL;
    tsk_safetensors_writer *writer = NULL;
    tsk_tokenizer *tokenizer = NULL;
    tsk_folder *model_folder = NULL;
    tsk_model *other = NULL;
    tsk_batch *batch = NULL;
    tsk_tensor_info tensor = TSK_ZERO;
    tsk_text text = TSK_ZERO;
    tsk_tokens tokens = TSK_ZERO;
    tsk_decoder decoder = TSK_ZERO;
    tsk_message message = {"user", "x"};
    tsk_ceilings ceilings;
    tsk_memory_query query = tsk_memory_query_default();
    tsk_memory memory;
    tsk_result result;
    tsk_probe probe;
    tsk_error error;
    float logits[1];
    int32_t ids[] = {1};
    int finished;
#define CHECK_NULL(call, parameter) \
    do { \
        memset(&error, 0xa5, sizeof error); /* what is in it is nobody's business */ \
        CHECK_INT(call, TSK_ERROR_ARGUMENT); \
        CHECK(error.status == TSK_ERROR_ARGUMENT && error.offset == TSK_NO_OFFSET && !error.file[0]); \
        CHECK_CONTAINS(error.message, parameter); \
    } while (0)
    CHECK_NULL(tsk_read_file(NULL, 1, NULL, &text, &error), "path");
    CHECK_NULL(tsk_read_file(folder, 1, NULL, NULL, &error), "out");
    CHECK_NULL(tsk_json_parse("1", 1, NULL, NULL, NULL, &error), "out");
    CHECK_NULL(tsk_json_parse(NULL, 1, NULL, NULL, &document, &error), "text");
    CHECK_NULL(tsk_safetensors_open("x", NULL, NULL, &error), "out");
    CHECK_NULL(tsk_safetensors_open(NULL, NULL, &file, &error), "path");
    CHECK_NULL(tsk_safetensors_read(NULL, &tensor, 0, ids, 0, &error), "file");
    CHECK_NULL(tsk_safetensors_writer_open("x", NULL, NULL, &error), "out");
    CHECK_NULL(tsk_safetensors_writer_open(NULL, NULL, &writer, &error), "path");
    CHECK_NULL(tsk_safetensors_writer_add(NULL, "a", TSK_DTYPE_U8, 0, NULL, ids, &error), "writer");
    CHECK_NULL(tsk_safetensors_writer_finish(NULL, &error), "writer");
    CHECK_NULL(tsk_tokenizer_load(folder, NULL, NULL, &error), "out");
    CHECK_NULL(tsk_tokenizer_load(NULL, NULL, &tokenizer, &error), "dir");
    CHECK_NULL(tsk_tokenizer_encode(NULL, "x", 1, 0, &tokens, &error), "tokenizer");
    CHECK_NULL(tsk_tokenizer_decode(NULL, ids, 1, 0, &text, &error), "tokenizer");
    CHECK_NULL(tsk_decoder_push(NULL, &decoder, 1, &text, &error), "tokenizer");
    CHECK_NULL(tsk_chat_render(NULL, &message, 1, &text, &error), "tokenizer");
    CHECK_NULL(tsk_chat_render(NULL, &message, 1, NULL, &error), "out");
    CHECK_NULL(tsk_chat_encode(NULL, &message, 1, 0, &tokens, &error), "tokenizer");
    CHECK_NULL(tsk_chat_encode(NULL, &message, 1, 0, NULL, &error), "out");
    CHECK_NULL(tsk_folder_open(folder, NULL, NULL, &error), "out");
    CHECK_NULL(tsk_folder_open(NULL, NULL, &model_folder, &error), "folder");
    CHECK_NULL(tsk_model_load(folder, NULL, NULL, &error), "out");
    CHECK_NULL(tsk_model_load(NULL, NULL, &other, &error), "dir");
    CHECK_NULL(tsk_model_random(tsk_model_get_config(model), 1, NULL, NULL, &error), "out");
    CHECK_NULL(tsk_model_random(NULL, 1, NULL, &other, &error), "config");
    CHECK_NULL(tsk_model_ceilings(model, NULL, &error), "out");
    CHECK_NULL(tsk_model_ceilings(NULL, &ceilings, &error), "model");
    CHECK_NULL(tsk_memory_estimate(NULL, &memory, &error), "query");
    CHECK_NULL(tsk_memory_estimate(&query, &memory, &error), "config");
    query.config = tsk_model_get_config(model);
    CHECK_NULL(tsk_memory_estimate(&query, NULL, &error), "out");
    CHECK_NULL(tsk_session_create(model, &o, NULL, &error), "out");
    CHECK_NULL(tsk_session_create(NULL, &o, &none, &error), "model");
    CHECK_NULL(tsk_session_start(NULL, ids, 1, NULL, &error), "session");
    CHECK_NULL(tsk_session_start(session, NULL, 1, NULL, &error), "prompt");
    CHECK_NULL(tsk_session_step(NULL, &finished, &error), "session");
    CHECK_NULL(tsk_session_step(session, NULL, &error), "finished");
    CHECK_NULL(tsk_generate(NULL, ids, 1, NULL, &result, &error), "session");
    CHECK_NULL(tsk_generate(session, ids, 1, NULL, NULL, &error), "result");
    CHECK_NULL(tsk_session_copy(session, NULL, &error), "from");
    CHECK_NULL(tsk_session_copy(NULL, session, &error), "to");
    CHECK_NULL(tsk_session_probe(NULL, NULL, TSK_PROBE_STEP, &probe, &error), "session");
    CHECK_NULL(tsk_session_probe(session, NULL, TSK_PROBE_STEP, NULL, &error), "out");
    CHECK_NULL(tsk_session_probe_logits(NULL, NULL, logits, &error), "session");
    CHECK_NULL(tsk_session_probe_logits(session, NULL, NULL, &error), "logits");
    CHECK_NULL(tsk_session_logits(NULL, ids, 1, 0, 1, logits, &error), "session");
    CHECK_NULL(tsk_session_logits(session, NULL, 1, 0, 1, logits, &error), "tokens");
    CHECK_NULL(tsk_session_logits(session, ids, 1, 0, 1, NULL, &error), "logits");
    CHECK_NULL(tsk_session_force(NULL, 0, 0, &error), "session");
    CHECK_NULL(tsk_session_force(session, -2, 0, &error), "n_active -2");
    CHECK_NULL(tsk_session_trace(NULL, NULL, &error), "session");
    CHECK_NULL(tsk_batch_create(model, NULL, NULL, &error), "out");
    CHECK_NULL(tsk_batch_create(NULL, NULL, &batch, &error), "model");
    CHECK_NULL(tsk_batch_submit(NULL, ids, 1, NULL, NULL, NULL, NULL, &error), "batch");
    CHECK_NULL(tsk_batch_step(NULL, NULL, &error), "batch");
    CHECK_NULL(tsk_batch_drain(NULL, &error), "batch");
    CHECK_NULL(tsk_batch_force(NULL, 0, 0, &error), "batch");
#undef CHECK_NULL
    CHECK(!document && !file && !writer && !tokenizer && !model_folder && !other && !none && !batch);
    CHECK(!text.data && !tokens.ids);
    tsk_session_free(session);
}

/* What is estimated before loading is what a session, and a batch, then takes, within a twentieth. */
static int is_near(uint64_t estimate, size_t taken) {
    return estimate <= (uint64_t)taken + taken / 20 && (uint64_t)taken <= estimate + estimate / 20;
}

static void test_estimate(void) {
    static const int32_t rows[] = {600, 90};
    test_allocator counting = test_allocator_failing_at(-1);
    tsk_allocator allocator = test_allocator_of(&counting);
    tsk_model_config config = TSK_ZERO;
    tsk_model_options options = tsk_model_options_default();
    tsk_batch_options batch_options = tsk_batch_options_default();
    tsk_generate_options o = tsk_generate_options_default();
    tsk_memory_query query = tsk_memory_query_default();
    tsk_memory memory;
    tsk_model *model = NULL;
    static int32_t prompt[1000];
    int i;
    config.d_model = 256, config.n_layers = 4, config.n_heads = 4, config.n_kv_heads = 2, config.head_dim = 64,
    config.mlp_hidden_size = 700;
    config.vocab_size = config.embedding_size = 300, config.max_sequence_length = 1000;
    config.mask_token_id = 298, config.eos_token_id = 299, config.pad_token_id = -1;
    config.rope_theta = 10000, config.rms_norm_eps = 1e-5f;
    options.device = TSK_DEVICE_CPU, options.n_threads = 1, options.host.allocator = &allocator;
    if (!CHECK_INT(tsk_model_random(&config, 1, &options, &model, NULL), TSK_OK)) return;
    query.config = &config, query.generate = &o;
    o.skip.layer_k = 3;
    for (i = 0; i < 4; i++) {
        size_t before = counting.bytes;
        tsk_session *session = create(model, &o);
        query.canvas = rows[i % 2] + o.gen_length;
        o.skip.refresh = i > 1;
        tsk_session_free(session);
        session = create(model, &o);
        CHECK_INT(tsk_session_start(session, prompt, rows[i % 2], NULL, NULL), TSK_OK);
        CHECK_INT(tsk_memory_estimate(&query, &memory, NULL), TSK_OK);
        test_check(is_near(memory.cache + memory.workspace, counting.bytes - before), __FILE__, __LINE__,
                   "%llu and %llu bytes are estimated, %lu taken", (unsigned long long)memory.cache,
                   (unsigned long long)memory.workspace, (unsigned long)(counting.bytes - before));
        tsk_session_free(session);
    }
    o.skip.refresh = 0;
    for (i = 0; i < 2; i++) {
        size_t before = counting.bytes;
        tsk_batch *batch = NULL;
        int32_t j;
        batch_options.max_requests = 3, batch_options.cache_tokens = 2200, batch_options.row_layers = i ? 5000 : 0;
        query.canvas = 600 + o.gen_length, query.batch = &batch_options;
        CHECK_INT(tsk_batch_create(model, &batch_options, &batch, NULL), TSK_OK);
        for (j = 0; j < 3; j++) CHECK_INT(tsk_batch_submit(batch, prompt, 600, NULL, &o, NULL, NULL, NULL), TSK_OK);
        CHECK_INT(tsk_batch_step(batch, NULL, NULL), TSK_OK);
        CHECK_INT(tsk_memory_estimate(&query, &memory, NULL), TSK_OK);
        test_check(is_near(memory.cache + memory.workspace, counting.bytes - before), __FILE__, __LINE__,
                   "%llu and %llu bytes are estimated of a batch, %lu taken", (unsigned long long)memory.cache,
                   (unsigned long long)memory.workspace, (unsigned long)(counting.bytes - before));
        tsk_batch_free(batch);
    }
    tsk_model_free(model);
}

/* What ends an object, or returns a value, takes NULL for what it is: nothing. */
static void test_nothing(void) {
    tsk_tokenizer *tokenizer = NULL;
    tsk_text text = TSK_ZERO;
    tsk_tokens tokens = TSK_ZERO;
    tsk_message nobody = {NULL, "x"}, silence = {"user", NULL};
    tsk_decoder decoder = TSK_ZERO;
    tsk_json_writer writer;
    tsk_json_value *value = NULL;
    tsk_result result;
    tsk_transfer_rule rule = TSK_ZERO;
    tsk_candidate candidate = TSK_ZERO;
    tsk_step step = TSK_ZERO;
    uint8_t commit = 9;
    int32_t ids[1] = {1};
    size_t length = 9;
    double real;
    int64_t integer;
    uint64_t natural;
    int truth;
    CHECK_INT(tsk_text_append(NULL, "x", 1), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_text_append(&text, NULL, 1), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_tokens_append(NULL, ids, 1), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_tokens_append(&tokens, NULL, 1), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_decoder_flush(NULL, &text), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_decoder_flush(&decoder, NULL), TSK_ERROR_ARGUMENT);
    tsk_text_free(NULL), tsk_tokens_free(NULL), tsk_json_free(NULL), tsk_safetensors_free(NULL);
    tsk_safetensors_writer_free(NULL), tsk_tokenizer_free(NULL), tsk_folder_free(NULL), tsk_model_free(NULL);
    tsk_session_free(NULL), tsk_batch_free(NULL), tsk_batch_cancel(NULL, 1),
        CHECK_INT(tsk_batch_wait(NULL, TSK_NONE), 0), tsk_session_result(NULL, NULL);
    memset(&result, 0xa5, sizeof result);
    tsk_session_result(NULL, &result);
    CHECK(result.tokens == NULL && result.nfe == 0);
    CHECK(!tsk_json_root(NULL) && tsk_json_type_of(value) == TSK_JSON_NONE && tsk_json_offset(value) == TSK_NO_OFFSET);
    CHECK(!tsk_json_count(value) && !tsk_json_first(value) && !tsk_json_next(value) && !tsk_json_get(value, "x"));
    CHECK(!tsk_json_key(value, &length) && length == 0 && !tsk_json_string(value, &length));
    CHECK(!tsk_json_double(value, &real) && !tsk_json_int64(value, &integer) && !tsk_json_uint64(value, &natural));
    CHECK(!tsk_json_bool(value, &truth));
    CHECK(!tsk_safetensors_count(NULL) && !tsk_safetensors_get(NULL, 0) && !tsk_safetensors_find(NULL, "x"));
    CHECK(!tsk_safetensors_metadata(NULL) && !tsk_safetensors_data(NULL, NULL));
    CHECK(!tsk_tokenizer_size(NULL) && tsk_tokenizer_id(NULL, "x") == -1 && !tsk_tokenizer_is_special(NULL, 1));
    CHECK(!tsk_tokenizer_token(NULL, 1, &length) && tsk_chat_end_of_turn(NULL) == -1);
    CHECK(!tsk_folder_config(NULL) && !tsk_folder_count(NULL) && !tsk_folder_get(NULL, 0) &&
          !tsk_folder_weights_size(NULL));
    CHECK(!tsk_config_is_eos(NULL, 0) && !tsk_model_get_config(NULL) && !tsk_model_tokenizer(NULL));
    CHECK_STRING(tsk_model_device_name(NULL), "");
    CHECK_STRING(tsk_model_device_note(NULL), "");
    CHECK_INT(tsk_model_dtype(NULL), TSK_DTYPE_AUTO);
    tsk_num_transfer_tokens(3, 2, NULL);
    tsk_philox4x32(NULL, NULL, NULL);
    tsk_json_begin_object(NULL), tsk_json_write_key(NULL, "x"), tsk_json_write_null(NULL), tsk_json_end_object(NULL);
    tsk_json_begin_array(NULL), tsk_json_write_int(NULL, 1), tsk_json_write_uint(NULL, 1), tsk_json_end_array(NULL);
    tsk_json_write_double(NULL, 0.5), tsk_json_write_bool(NULL, 1), tsk_json_write_string(NULL, "x", 1);
    memset(&writer, 0, sizeof writer);
    tsk_json_write_null(&writer);
    CHECK_INT(writer.status, TSK_ERROR_ARGUMENT); /* nowhere to write to */
    memset(&writer, 0, sizeof writer);
    writer.out = &text;
    tsk_json_write_string(&writer, NULL, 1);
    CHECK_INT(writer.status, TSK_ERROR_ARGUMENT);
    /* what a tokenizer is needed for to come so far */
    if (!CHECK_INT(tsk_tokenizer_load("examples/demo-model", NULL, &tokenizer, NULL), TSK_OK)) return;
    CHECK_INT(tsk_tokenizer_encode(tokenizer, NULL, 1, 0, &tokens, NULL), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_tokenizer_encode(tokenizer, "x", 1, 0, NULL, NULL), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_tokenizer_decode(tokenizer, NULL, 1, 0, &text, NULL), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_tokenizer_decode(tokenizer, ids, 1, 0, NULL, NULL), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_tokenizer_decode(tokenizer, ids, -1, 0, &text, NULL), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_decoder_push(tokenizer, NULL, 1, &text, NULL), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_decoder_push(tokenizer, &decoder, 1, NULL, NULL), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_chat_render(tokenizer, NULL, 1, &text, NULL), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_chat_encode(tokenizer, NULL, 1, 0, &tokens, NULL), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_chat_encode(tokenizer, &nobody, 1, 0, &tokens, NULL), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_chat_encode(tokenizer, &silence, 1, 0, &tokens, NULL), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_tokenizer_id(tokenizer, NULL), -1);
    CHECK_INT(tsk_step_text(NULL, &step, &text, NULL), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_step_text(tokenizer, NULL, &text, NULL), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_step_text(tokenizer, &step, NULL, NULL), TSK_ERROR_ARGUMENT);
    tsk_tokenizer_free(tokenizer);
    CHECK_INT(tsk_select(&rule, 0, NULL, NULL), 0);
    CHECK_INT(tsk_select(&rule, -1, NULL, &commit), 0);
    CHECK_INT(tsk_select(&rule, 1, NULL, &commit), 0);
    CHECK_INT(tsk_select(NULL, 1, &candidate, &commit), 0);
    CHECK_INT(tsk_select(&rule, 1, &candidate, NULL), 0);
    CHECK_INT(commit, 9);
    tsk_text_free(&text);
    tsk_tokens_free(&tokens);
}

/* ---- copies */

/* What a generation comes to from here on: everything that a result counts. */
typedef struct outcome {
    int32_t tokens[gen_length], active[gen_length], stable_masked[gen_length];
    int32_t n_block_steps, nfe;
    uint64_t computed;
} outcome;

static outcome outcome_of(tsk_session *session) {
    outcome o;
    tsk_result r;
    memset(&o, 0, sizeof o);
    steps(session, -1);
    tsk_session_result(session, &r);
    CHECK_INT(r.mask_residual, 0);
    memcpy(o.tokens, r.tokens, sizeof o.tokens);
    o.n_block_steps = r.n_block_steps;
    if (r.n_block_steps) memcpy(o.active, r.active, (size_t)r.n_block_steps * sizeof *o.active);
    if (r.n_block_steps) memcpy(o.stable_masked, r.stable_masked, (size_t)r.n_block_steps * sizeof *o.stable_masked);
    o.nfe = r.nfe;
    o.computed = r.token_layers_computed + r.refresh_token_layers_computed;
    return o;
}

static tsk_generate_options random_options(void) {
    tsk_generate_options o = small_options();
    o.cache = random_below(4) ? TSK_CACHE_DUAL : random_below(2) ? TSK_CACHE_PREFIX : TSK_CACHE_NONE;
    o.skip.layer_k = o.cache == TSK_CACHE_DUAL ? random_below(4) : 0;
    o.skip.threshold = random_below(2) ? -2.0f : 0.5f;
    o.skip.outlier = -2.0f;
    o.skip.policy = random_below(2) ? TSK_SKIP_REUSE : TSK_SKIP_EXIT;
    o.skip.masked = random_below(4) != 0;
    o.skip.reference = random_below(2) ? TSK_SKIP_LAST_STEP : TSK_SKIP_LAST_COMPUTED;
    o.skip.warm_start = random_below(2);
    o.skip.refresh = o.skip.layer_k > 0 && random_below(2);
    o.refresh_rows = o.cache == TSK_CACHE_DUAL && random_below(2) ? 3 : 0;
    o.temperature = random_below(3) ? 0.0f : 0.7f;
    return o;
}

/* A copy goes on alike whatever its session held before, and as the original does where the options are the same. */
static void test_copies(void) {
    test_allocator counting = test_allocator_failing_at(-1);  /* (its blocks begin as NaNs) */
    tsk_allocator allocator = test_allocator_of(&counting);
    tsk_model *model = load(folder, &allocator, 1);
    int round;
    random_state = 20;
    for (round = 0; round < 300; round++) {
        tsk_generate_options a = random_options(), b = round % 4 ? random_options() : a;
        tsk_session *from = create(model, &b), *fresh = create(model, &a), *used = create(model, &a);
        int taken = random_below(14);
        outcome x, y, z;
        CHECK_INT(start(from, n_short, NULL), TSK_OK);
        CHECK_INT(start(used, n_long, NULL), TSK_OK);
        steps(from, taken);
        steps(used, random_below(20));
        CHECK_INT(tsk_session_copy(fresh, from, NULL), TSK_OK);
        CHECK_INT(tsk_session_copy(used, from, NULL), TSK_OK);
        x = outcome_of(fresh), y = outcome_of(used), z = outcome_of(from);
        test_check(memcmp(&x, &y, sizeof x) == 0, __FILE__, __LINE__,
                   "round %d: a copy depends on what its session held before", round);
        if (round % 4 == 0)
            test_check(memcmp(&x, &z, sizeof x) == 0, __FILE__, __LINE__,
                       "round %d: a copy does not go on as the original", round);
        tsk_session_free(from);
        tsk_session_free(fresh);
        tsk_session_free(used);
    }
    tsk_model_free(model);
    CHECK_INT(counting.alive, 0);
}

/* ---- calls from callbacks */

typedef struct caller {
    tsk_session *session, *copy;
    int pass, n_refused;
} caller;

static int call_from_step(void *user, const tsk_step *step) {
    static float logits[vocabulary];
    caller *c = (caller *)user;
    tsk_probe probe;
    int finished;
    if (step->pass != c->pass) return 0;
    c->n_refused += start(c->session, n_short, NULL) == TSK_ERROR_ARGUMENT;
    c->n_refused += tsk_session_step(c->session, &finished, NULL) == TSK_ERROR_ARGUMENT;
    c->n_refused += tsk_session_probe(c->session, NULL, 1, &probe, NULL) == TSK_ERROR_ARGUMENT;
    c->n_refused += tsk_session_logits(c->session, step->canvas, 2, 0, 1, logits, NULL) == TSK_ERROR_ARGUMENT;
    c->n_refused += tsk_session_copy(c->session, c->copy, NULL) == TSK_ERROR_ARGUMENT;
    c->n_refused += tsk_session_trace(c->session, NULL, NULL) == TSK_ERROR_ARGUMENT;
    CHECK_INT(tsk_session_copy(c->copy, c->session, NULL), TSK_OK);
    return 0;
}

static void test_callbacks(tsk_model *model) {
    int pass;
    for (pass = 0; pass < gen_length; pass++) {
        tsk_generate_options o = small_options(), quiet = o;
        caller c;
        outcome x, y;
        o.on_step = call_from_step;
        o.user = &c;
        o.skip.threshold = quiet.skip.threshold = -2;
        o.skip.outlier = quiet.skip.outlier = -2;
        o.skip.masked = quiet.skip.masked = 1;
        memset(&c, 0, sizeof c);
        c.session = create(model, &o);
        c.copy = create(model, &quiet);
        c.pass = pass;
        CHECK_INT(start(c.session, n_short, NULL), TSK_OK);
        CHECK_INT(start(c.copy, n_short, NULL), TSK_OK);
        x = outcome_of(c.session), y = outcome_of(c.copy);
        CHECK_INT(c.n_refused, 6);
        test_check(memcmp(&x, &y, sizeof x) == 0, __FILE__, __LINE__,
                   "a copy made in pass %d's callback does not go on as the original", pass);
        tsk_session_free(c.session);
        tsk_session_free(c.copy);
    }
}

/* ---- logits that are no numbers */

enum { poisoned_id = 7 };

/* The folder's model, with NaN for one token's embedding: whoever has it in its canvas is lost. */
static const char *poisoned_folder(void) {
    static const float nan_bits[1] = {NAN};
    tsk_safetensors *file = NULL;
    const tsk_tensor_info *wte;
    size_t size = 0, config_size = 0, at, i;
    char *bytes = read_file("tests/golden/models/mha-f32/model.safetensors", &size);
    char *config = read_file("tests/golden/models/mha-f32/config.json", &config_size);
    mkdir(tsk_test_path("poisoned"), 0700);
    if (!CHECK_INT(tsk_safetensors_open("tests/golden/models/mha-f32/model.safetensors", NULL, &file, NULL), TSK_OK))
        exit(1);
    wte = tsk_safetensors_find(file, "model.transformer.wte.weight");
    if (!CHECK(wte != NULL && wte->dtype == TSK_DTYPE_F32)) exit(1);
    at = (size_t)(wte->offset + (uint64_t)poisoned_id * wte->shape[1] * sizeof(float));
    for (i = 0; i < (size_t)wte->shape[1]; i++) memcpy(bytes + at + i * sizeof(float), nan_bits, sizeof(float));
    write_file(tsk_test_path("poisoned/model.safetensors"), bytes, size);
    write_file(tsk_test_path("poisoned/config.json"), config, config_size);
    tsk_safetensors_free(file);
    free(bytes);
    free(config);
    return tsk_test_path("poisoned");
}

static void test_numeric_session(tsk_model *model) {
    tsk_generate_options o = small_options();
    tsk_session *session = create(model, &o), *other = create(model, &o);
    int32_t prompt[] = {1, poisoned_id, 3}, tokens[gen_length];
    tsk_error error = TSK_ZERO, again = TSK_ZERO;
    tsk_probe probe;
    tsk_result result;
    int finished = 0;
    tokens_alone(model, &o, n_short, tokens);
    CHECK_INT(tsk_session_start(session, prompt, 3, NULL, &error), TSK_OK);
    CHECK_INT(tsk_session_step(session, &finished, &error), TSK_ERROR_NUMERIC);
    CHECK_CONTAINS(error.message, "pass 0");
    CHECK_CONTAINS(error.message, "position 3");
    CHECK_INT(tsk_session_step(session, &finished, &again), TSK_ERROR_NUMERIC);
    CHECK_STRING(again.message, error.message);
    CHECK_INT(tsk_session_probe(session, NULL, TSK_PROBE_REFRESH, &probe, &again), TSK_ERROR_NUMERIC);
    CHECK_INT(tsk_session_copy(other, session, &again), TSK_ERROR_NUMERIC);
    tsk_session_result(session, &result);
    CHECK_INT(result.mask_residual, gen_length);
    CHECK_INT(result.finish_reason, TSK_FINISH_NONE);
    CHECK_INT(tsk_generate(session, prompt, 3, NULL, &result, &error), TSK_ERROR_NUMERIC);
    CHECK_INT(start(session, n_short, &error), TSK_OK);
    CHECK(goes_on_to(session, tokens));
    tsk_session_free(session);
    tsk_session_free(other);
}

typedef struct done { int32_t tokens[gen_length]; tsk_status status; char message[512]; int n; } done;

static void on_done(void *user, uint64_t id, void *request_user, const tsk_result *result, const tsk_error *error) {
    done *d = (done *)request_user;
    (void)id;
    if (user) CHECK_INT(tsk_batch_step(*(tsk_batch **)user, NULL, NULL), TSK_ERROR_ARGUMENT);
    d->n++;
    d->status = error ? error->status : TSK_OK;
    CHECK((result == NULL) == (error != NULL));
    if (result) memcpy(d->tokens, result->tokens, sizeof d->tokens);
    if (error) snprintf(d->message, sizeof d->message, "%s", error->message);
}

/* One of three requests in flight is lost; its neighbours get what they get alone, and later ones its place. */
static void test_numeric_batch(tsk_model *model) {
    tsk_generate_options o = small_options();
    tsk_batch_options options = tsk_batch_options_default();
    int32_t prompt[n_short], bad[] = {1, poisoned_id, 3}, tokens[gen_length];
    tsk_batch *batch = NULL;
    done all[5];
    int i;
    memset(all, 0, sizeof all);
    options.max_requests = 3;
    options.on_done = on_done;
    options.user = &batch;
    tokens_alone(model, &o, n_short, tokens);
    fill_prompt(prompt, n_short);
    CHECK_INT(tsk_batch_create(model, &options, &batch, NULL), TSK_OK);
    for (i = 0; i < 5; i++)
        CHECK_INT(tsk_batch_submit(batch, i == 1 ? bad : prompt, i == 1 ? 3 : n_short, NULL, &o, &all[i], NULL, NULL),
                  TSK_OK);
    CHECK_INT(tsk_batch_drain(batch, NULL), TSK_OK);
    for (i = 0; i < 5; i++) {
        CHECK_INT(all[i].n, 1);
        CHECK_INT(all[i].status, i == 1 ? TSK_ERROR_NUMERIC : TSK_OK);
        if (i != 1) CHECK(memcmp(all[i].tokens, tokens, sizeof tokens) == 0);
    }
    CHECK_CONTAINS(all[1].message, "position 3");
    tsk_batch_free(batch);
}

/* ---- a batch's cache */

static void keep_line(void *user, const char *line) { snprintf((char *)user, 200, "%s", line); }

/* A model that claims to take canvases larger than any memory. */
static void test_batch_cache(void) {
    tsk_model_config c;
    tsk_model_options mo = tsk_model_options_default();
    tsk_batch_options options = tsk_batch_options_default();
    tsk_generate_options o = small_options();
    tsk_model *model = NULL;
    tsk_batch *batch = NULL;
    tsk_error error = TSK_ZERO;
    int32_t prompt[n_short];
    char line[200] = "";
    done d;
    memset(&d, 0, sizeof d);
    memset(&c, 0, sizeof c);
    c.d_model = 512, c.n_layers = 4, c.n_heads = c.n_kv_heads = 8, c.head_dim = 64, c.mlp_hidden_size = 64,
    c.vocab_size = c.embedding_size = 64;
    c.max_sequence_length = 1 << 20, c.mask_token_id = 63, c.eos_token_id = 62, c.pad_token_id = -1,
    c.rope_theta = 10000, c.rms_norm_eps = 1e-5f;
    mo.device = TSK_DEVICE_CPU;
    fill_prompt(prompt, n_short);
    if (!test_check(tsk_model_random(&c, 1, &mo, &model, &error) == TSK_OK, __FILE__, __LINE__, "%s", error.message))
        return;
    options.on_done = on_done;
    options.log = keep_line;
    options.user = line;
    options.on_done = NULL;
    if (test_check(tsk_batch_create(model, &options, &batch, &error) == TSK_OK, __FILE__, __LINE__, "%s",
                   error.message)) {
        CHECK_CONTAINS(line, "16777216");  /* 16 * 2^20 tokens were wanted */
        CHECK_INT(tsk_batch_submit(batch, prompt, n_short, NULL, &o, &d, NULL, &error), TSK_OK);
        CHECK_INT(tsk_batch_drain(batch, &error), TSK_OK);
        tsk_batch_free(batch);
    }
    /* what fits is not remarked upon */
    line[0] = 0;
    options.cache_tokens = 100;
    CHECK_INT(tsk_batch_create(model, &options, &batch, &error), TSK_OK);
    CHECK_STRING(line, "");
    tsk_batch_free(batch);
    tsk_model_free(model);
}

/* ---- whose turn it is */

enum { n_equal = 12 };
static int done_order[n_equal], n_done_in_order;

static void note_order(void *user, uint64_t id, void *request_user, const tsk_result *result, const tsk_error *error) {
    (void)user, (void)request_user, (void)result, (void)error;
    if (n_done_in_order < n_equal) done_order[n_done_in_order++] = (int)id;
}

/* Requests of one pass each, of which two fit a pass: nobody is passed over by one that came later. */
static void test_turns(tsk_model *model) {
    tsk_batch_options options = tsk_batch_options_default();
    tsk_generate_options o = small_options();
    tsk_batch *batch = NULL;
    int32_t prompt[n_short];
    int i;
    fill_prompt(prompt, n_short);
    o.gen_length = block_length;
    o.transfer = TSK_TRANSFER_THRESHOLD;
    o.threshold = 0;
    options.max_requests = 5;
    options.max_rows = 2 * (n_short + block_length);
    options.on_done = note_order;
    CHECK_INT(tsk_batch_create(model, &options, &batch, NULL), TSK_OK);
    for (i = 0; i < n_equal; i++)
        CHECK_INT(tsk_batch_submit(batch, prompt, n_short, NULL, &o, NULL, NULL, NULL), TSK_OK);
    CHECK_INT(tsk_batch_drain(batch, NULL), TSK_OK);
    CHECK_INT(n_done_in_order, n_equal);
    for (i = 0; i < n_equal; i++) CHECK(abs(done_order[i] - (i + 1)) <= 1); /* (two of a pass end in any order) */
    tsk_batch_free(batch);
}

/* ---- fork */

#ifndef _WIN32
static void test_fork(void) {
    tsk_model *model = load(folder, NULL, 4);
    tsk_generate_options o = small_options();
    tsk_session *session = create(model, &o);
    int32_t tokens[gen_length];
    pid_t child;
    int status = -1;
    tokens_alone(model, &o, n_long, tokens);
    fflush(stdout);
    child = fork();
    if (child == 0) {
        alarm(60);
        if (start(session, n_long, NULL) != TSK_OK || !goes_on_to(session, tokens)) _exit(3);
        tsk_session_free(session);
        tsk_model_free(model);
        _exit(0);
    }
    if (CHECK(child > 0)) waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK_INT(start(session, n_long, NULL), TSK_OK);
    CHECK(goes_on_to(session, tokens));
    tsk_session_free(session);
    tsk_model_free(model);
}
#endif

/* ---- a conversation: the next prompt is the last result, where it lies */

static void test_own_result(tsk_model *model) {
    tsk_generate_options o = small_options();
    tsk_session *session = create(model, &o), *other = create(model, &o);
    int32_t prompt[n_short + gen_length];
    tsk_result result, alike;
    CHECK_INT(start(session, n_short, NULL), TSK_OK);
    steps(session, -1);
    tsk_session_result(session, &result);
    memcpy(prompt, result.canvas, sizeof prompt);
    CHECK_INT(tsk_generate(session, result.canvas, n_short + gen_length, result.tokens, &result, NULL), TSK_OK);
    CHECK_INT(tsk_generate(other, prompt, n_short + gen_length, prompt + n_short, &alike, NULL), TSK_OK);
    CHECK(memcmp(result.canvas, alike.canvas, (n_short + 2 * gen_length) * sizeof *prompt) == 0);
    CHECK(memcmp(result.canvas, prompt, sizeof prompt) == 0);
    tsk_session_free(session);
    tsk_session_free(other);
}

/* ---- copies made in a step's callback and right after the step are the same, whatever the two sessions' options */

typedef struct twin { tsk_session *session, *in_step; int pass; } twin;

static int copy_in_step(void *user, const tsk_step *step) {
    twin *t = (twin *)user;
    if (step->pass == t->pass) CHECK_INT(tsk_session_copy(t->in_step, t->session, NULL), TSK_OK);
    return 0;
}

static void test_twins(void) {
    test_allocator counting = test_allocator_failing_at(-1);
    tsk_allocator allocator = test_allocator_of(&counting);
    tsk_model *model = load(folder, &allocator, 1);
    int round;
    random_state = 7;
    for (round = 0; round < 400; round++) {
        tsk_generate_options b = random_options(), a = random_options();
        tsk_session *after;
        outcome x, y;
        twin t;
        int finished = 0;
        b.eos_stop = random_below(2), a.eos_stop = random_below(2);
        a.end_of_turn_id = b.end_of_turn_id = random_below(50);
        b.on_step = copy_in_step;
        b.user = &t;
        t.pass = random_below(6);
        t.session = create(model, &b), t.in_step = create(model, &a), after = create(model, &a);
        CHECK_INT(start(t.session, n_short, NULL), TSK_OK);
        CHECK_INT(start(t.in_step, n_long, NULL), TSK_OK);
        steps(t.session, t.pass);
        CHECK_INT(tsk_session_step(t.session, &finished, NULL), TSK_OK);
        if (tsk_session_copy(after, t.session, NULL) == TSK_OK) {
            tsk_result result;
            tsk_session_result(t.session, &result);
            if (result.nfe == t.pass + 1) {
                x = outcome_of(t.in_step), y = outcome_of(after);
                test_check(memcmp(&x, &y, sizeof x) == 0, __FILE__, __LINE__,
                           "round %d: a copy made in a step's callback is another than one made after it", round);
            }
        }
        tsk_session_free(t.session);
        tsk_session_free(t.in_step);
        tsk_session_free(after);
    }
    tsk_model_free(model);
    CHECK_INT(counting.alive, 0);
}

/* ---- cancel may not use the session, and nothing is probed before there is a cache */

static tsk_session *asked;
static int n_refused;

static int use_in_cancel(void *user) {
    static float logits[vocabulary];
    int32_t tokens[] = {1, 2, 3};
    int finished;
    (void)user;
    n_refused += tsk_session_logits(asked, tokens, 3, 0, 1, logits, NULL) == TSK_ERROR_ARGUMENT;
    n_refused += start(asked, n_long, NULL) == TSK_ERROR_ARGUMENT;
    n_refused += tsk_session_step(asked, &finished, NULL) == TSK_ERROR_ARGUMENT;
    return 0;
}

static void test_cancel_and_probe(tsk_model *model) {
    tsk_generate_options o = small_options();
    int32_t tokens[gen_length];
    tsk_probe probe;
    tokens_alone(model, &o, n_short, tokens);
    o.cancel = use_in_cancel;
    asked = create(model, &o);
    CHECK_INT(start(asked, n_short, NULL), TSK_OK);
    CHECK_INT(tsk_session_probe(asked, NULL, TSK_PROBE_STEP, &probe, NULL), TSK_ERROR_ARGUMENT);
    CHECK(goes_on_to(asked, tokens));
    CHECK(n_refused > 0 && n_refused % 3 == 0);
    tsk_session_free(asked);
}

/* ---- what is forced to skip falls back on outputs that are there, also after a copy */

static void test_forced_copy(void) {
    test_allocator counting = test_allocator_failing_at(-1);
    tsk_allocator allocator = test_allocator_of(&counting);
    tsk_model *model = load(folder, &allocator, 1);
    tsk_generate_options plain = small_options(), skipping = small_options();
    static float logits[block_length * vocabulary];
    tsk_session *from, *to;
    tsk_probe probe;
    int i, wrong = 0;
    plain.skip.layer_k = 0;
    from = create(model, &plain), to = create(model, &skipping);
    CHECK_INT(start(from, n_short, NULL), TSK_OK);
    steps(from, 2);
    CHECK_INT(tsk_session_copy(to, from, NULL), TSK_OK);
    CHECK_INT(tsk_session_force(to, 1, TSK_AUTO, NULL), TSK_OK);
    CHECK_INT(tsk_session_probe(to, NULL, TSK_PROBE_STEP, &probe, NULL), TSK_OK);
    CHECK_INT(tsk_session_probe_logits(to, NULL, logits, NULL), TSK_OK);
    for (i = 0; i < probe.n_positions; i++) wrong += !probe.active[i];
    CHECK_INT(wrong, 0); /* nothing is there to fall back on: all run */
    tsk_session_free(from);
    tsk_session_free(to);
    tsk_model_free(model);
    CHECK_INT(counting.alive, 0);
}

int main(void) {
    tsk_model *model = load(folder, NULL, 2), *poisoned = load(poisoned_folder(), NULL, 2);
    int i;
    for (i = 0; i < n_refused_calls; i++) test_refused((refused_call)i);
    test_order(model);
    test_null(model);
    test_nothing();
    test_estimate();
    test_copies();
    test_callbacks(model);
    test_own_result(model);
    test_twins();
    test_cancel_and_probe(model);
    test_forced_copy();
    test_numeric_session(poisoned);
    test_numeric_batch(poisoned);
    test_batch_cache();
    test_turns(model);
#ifndef _WIN32
    test_fork();
#endif
    tsk_model_free(model);
    tsk_model_free(poisoned);
    return test_end("test_states");
}
