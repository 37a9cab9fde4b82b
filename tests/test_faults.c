/* The n-th allocation fails, for every n, and then the n-th read: each run ends in a clean error or in the right
   answer, with nothing left behind. Under -fsanitize=address it also shows that nothing freed is used. */
#include "../tokenskip.h"
#include "golden.h"

enum { gen_length = 4, max_files = 8 };

static const int32_t prompt[] = {3, 14, 15, 9, 26, 5, 35, 8},
                     long_prompt[] = {3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 3, 2, 3, 8, 4};

/* ---- a folder in memory */

typedef struct memory_file {
    char name[64];
    char *bytes;
    size_t size;
} memory_file;

typedef struct archive {
    memory_file files[max_files];
    int n_files;
    long calls, fail_at; /* of open and of read; fail_at -1: never */
    int fails_open;      /* counts opens too */
    int failed, is_open;
    int maps;
} archive;

static archive folder;

static void load_archive(const char *dir, const char *const *names, int n) {
    char path[256];
    memset(&folder, 0, sizeof folder);
    for (folder.n_files = 0; folder.n_files < n; folder.n_files++) {
        memory_file *file = &folder.files[folder.n_files];
        snprintf(path, sizeof path, "%s/%s", dir, names[folder.n_files]);
        snprintf(file->name, sizeof file->name, "%s", names[folder.n_files]);
        file->bytes = read_file(path, &file->size);
        if (!CHECK(file->bytes != NULL)) exit(1);
    }
}

static void free_archive(void) {
    while (folder.n_files > 0) free(folder.files[--folder.n_files].bytes);
}

static int archive_fails(archive *a, char *reason, size_t reason_size) {
    if (a->calls++ != a->fail_at) return 0;
    a->failed = 1;
    snprintf(reason, reason_size, "the disc is scratched");
    return 1;
}

static tsk_status archive_open(void *user, const char *path, void **file, uint64_t *size, char *reason,
                               size_t reason_size) {
    archive *a = (archive *)user;
    int i;
    for (i = 0; i < a->n_files; i++) {
        const char *slash = strrchr(path, '/');
        if (strcmp(a->files[i].name, slash ? slash + 1 : path) != 0) continue;
        if (a->fails_open && archive_fails(a, reason, reason_size)) return TSK_ERROR_IO;
        *file = &a->files[i];
        *size = a->files[i].size;
        a->is_open++;
        return TSK_OK;
    }
    snprintf(reason, reason_size, "no such file in the archive");
    return TSK_ERROR_IO;
}
static tsk_status archive_read(void *user, void *file, uint64_t offset, void *buffer, size_t size, char *reason,
                               size_t reason_size) {
    const memory_file *from = (const memory_file *)file;
    if (!CHECK(offset <= from->size && size <= from->size - offset)) return TSK_ERROR_IO;
    if (archive_fails((archive *)user, reason, reason_size)) return TSK_ERROR_IO;
    memcpy(buffer, from->bytes + offset, size);
    return TSK_OK;
}
static const void *archive_map(void *user, void *file) {
    ((archive *)user)->maps++;
    return ((const memory_file *)file)->bytes;
}
static void archive_close(void *user, void *file) {
    (void)file;
    ((archive *)user)->is_open--;
}

/* ---- one whole use of the library */

typedef struct outcome {
    tsk_status status;
    tsk_error error;
    int32_t tokens[gen_length], more[gen_length];
    int n_records;
} outcome;

static void count_record(void *user, const tsk_trace_record *record) {
    (void)record;
    ((outcome *)user)->n_records++;
}

static tsk_generate_options small_options(void) {
    tsk_generate_options options = tsk_generate_options_default();
    options.gen_length = gen_length;
    options.block_length = 4;
    options.transfer = TSK_TRANSFER_SCHEDULE;
    options.steps = 3;
    options.eos_stop = 0;
    options.skip.layer_k = 2;
    options.skip.masked = 1;
    options.skip.refresh = 1;
    return options;
}

static tsk_status trace_some(tsk_session *session, outcome *o) {
    tsk_trace_options tracing = tsk_trace_options_default();
    tracing.pattern = "*_1*";
    tracing.on_record = count_record;
    tracing.user = o;
    tracing.values = 1;
    return tsk_session_trace(session, &tracing, &o->error);
}

/* A session's whole life: a generation, a longer traced one for which everything grows, logits. After a failure the
   result is asked for all the same, and the session goes on to a generation that has what it needs. */
static void use_session(tsk_session *session, outcome *o) {
    static float logits[3 * 128];
    tsk_result result;
    o->status = tsk_generate(session, prompt, 8, NULL, &result, &o->error);
    if (o->status == TSK_OK) memcpy(o->tokens, result.tokens, sizeof o->tokens);
    if (o->status == TSK_OK) o->status = trace_some(session, o);
    if (o->status == TSK_OK) o->status = tsk_generate(session, long_prompt, 16, NULL, &result, &o->error);
    if (o->status == TSK_OK) memcpy(o->more, result.tokens, sizeof o->more);
    if (o->status == TSK_OK) o->status = tsk_session_trace(session, NULL, &o->error);
    if (o->status == TSK_OK) o->status = tsk_session_logits(session, long_prompt, 16, 3, 1, logits, &o->error);
    tsk_session_result(session, &result);
    CHECK(result.n_tokens == 0 || result.n_tokens == gen_length);
    if (o->status == TSK_OK) return;
    CHECK_INT(tsk_session_trace(session, NULL, NULL), TSK_OK);
    if (!CHECK_INT(tsk_generate(session, long_prompt, 16, NULL, &result, NULL), TSK_OK)) return;
    CHECK(result.nfe > 0 && result.mask_residual == 0);
    memcpy(o->more, result.tokens, sizeof o->more);
}

static void use_model(tsk_model *model, outcome *o) {
    tsk_generate_options options = small_options();
    tsk_session *session = NULL;
    o->status = tsk_session_create(model, &options, &session, &o->error);
    CHECK((o->status == TSK_OK) == (session != NULL));
    if (session) use_session(session, o);
    tsk_session_free(session);
}

static outcome use_library(const char *dir, const tsk_host *host) {
    tsk_model_options options = tsk_model_options_default();
    tsk_model *model = NULL;
    outcome o;
    memset(&o, 0, sizeof o);
    options.host = *host;
    options.device = TSK_DEVICE_CPU;
    options.n_threads = 1; /* the counting allocator knows no threads */
    o.status = tsk_model_load(dir, &options, &model, &o.error);
    CHECK((o.status == TSK_OK) == (model != NULL));
    if (model) use_model(model, &o);
    tsk_model_free(model);
    return o;
}

static int same_tokens(const outcome *a, const outcome *b) {
    return memcmp(a->tokens, b->tokens, sizeof a->tokens) == 0 && memcmp(a->more, b->more, sizeof a->more) == 0;
}

/* A failed run's error: it says what it is, in a message that says it too. */
static void check_error(const outcome *o, tsk_status status, const char *words, long n) {
    test_check(o->status == status && o->error.status == status, __FILE__, __LINE__,
               "failure %ld ends as '%s' (in the error: '%s')", n, tsk_status_string(o->status),
               tsk_status_string(o->error.status));
    test_check(strstr(o->error.message, words) != NULL, __FILE__, __LINE__, "failure %ld: \"%s\" lacks \"%s\"", n,
               o->error.message, words);
}

/* ---- every allocation */

static void fail_allocations(const char *dir, int no_map, const tsk_file_callbacks *files) {
    tsk_host host;
    outcome whole, o;
    long n;
    memset(&host, 0, sizeof host);
    host.no_map = no_map;
    host.files = files;
    whole = use_library(dir, &host);
    CHECK_INT(whole.status, TSK_OK);
    CHECK(whole.n_records > 0);
    for (n = 0; n < 100000; n++) {
        test_allocator counting = test_allocator_failing_at(n);
        tsk_allocator allocator = test_allocator_of(&counting);
        host.allocator = &allocator;
        o = use_library(dir, &host);
        test_check(counting.alive == 0, __FILE__, __LINE__, "%ld blocks are left after allocation %ld failed",
                   counting.alive, n);
        if (!counting.failed) break;
        check_error(&o, TSK_ERROR_MEMORY, "memory", n);
        test_check(o.more[0] == 0 || memcmp(o.more, whole.more, sizeof o.more) == 0, __FILE__, __LINE__,
                   "after allocation %ld failed the tokens are wrong", n);
        if (files)
            test_check(folder.is_open == 0, __FILE__, __LINE__, "%d files are left open after allocation %ld failed",
                       folder.is_open, n);
    }
    CHECK(n > 100);
    CHECK_INT(o.status, TSK_OK);
    CHECK(same_tokens(&o, &whole));
}

/* ---- every read, and every opening */

static void fail_reads(const tsk_file_callbacks *files, int fails_open) {
    test_allocator counting = test_allocator_failing_at(-1);
    tsk_allocator allocator = test_allocator_of(&counting);
    tsk_host host;
    outcome whole, o;
    long n;
    memset(&host, 0, sizeof host);
    host.allocator = &allocator;
    host.files = files;
    folder.fails_open = fails_open;
    folder.fail_at = -1;
    whole = use_library("anywhere", &host);
    CHECK_INT(whole.status, TSK_OK);
    for (n = 0; n < 100000; n++) {
        folder.calls = folder.failed = 0;
        folder.fail_at = n;
        o = use_library("anywhere", &host);
        test_check(counting.alive == 0 && folder.is_open == 0, __FILE__, __LINE__,
                   "after read %ld failed, %ld blocks and %d files are left", n, counting.alive, folder.is_open);
        if (!folder.failed) break;
        /* A file whose presence is only asked for counts as absent when it cannot be opened. */
        if (fails_open) check_error(&o, TSK_ERROR_IO, "", n);
        else check_error(&o, TSK_ERROR_IO, "the disc is scratched", n);
    }
    CHECK(n >= 3); /* config.json, and a header in two */
    CHECK_INT(o.status, TSK_OK);
    CHECK(same_tokens(&o, &whole));
    folder.fail_at = -1;
}

static void test_archive(const char *dir, const char *const *names, int n) {
    tsk_file_callbacks files;
    tsk_host host;
    outcome mapped, read_in, on_disc;
    load_archive(dir, names, n);
    folder.fail_at = -1;
    memset(&files, 0, sizeof files);
    memset(&host, 0, sizeof host);
    on_disc = use_library(dir, &host);
    files.open = archive_open;
    files.read = archive_read;
    files.close = archive_close;
    files.user = &folder;
    host.files = &files;
    read_in = use_library("anywhere/else", &host);
    files.map = archive_map;
    mapped = use_library("anywhere", &host);
    CHECK(on_disc.status == TSK_OK && same_tokens(&on_disc, &read_in) && same_tokens(&on_disc, &mapped));
    CHECK(folder.maps > 0);
    fail_reads(&files, 0);
    files.map = NULL;
    fail_reads(&files, 0);
    fail_reads(&files, 1);
    CHECK_INT(folder.is_open, 0);
    fail_allocations("anywhere", 0, &files);
    free_archive();
}

/* ---- other calls that allocate */

static tsk_model_config tiny_config(void) {
    tsk_model_config config;
    memset(&config, 0, sizeof config);
    config.d_model = 16;
    config.n_layers = 3;
    config.n_heads = config.n_kv_heads = 2;
    config.head_dim = 8;
    config.mlp_hidden_size = 24;
    config.vocab_size = config.embedding_size = 40;
    config.max_sequence_length = 64;
    config.mask_token_id = 39;
    config.eos_token_id = 38;
    config.pad_token_id = -1;
    config.rope_theta = 10000.0f;
    config.rms_norm_eps = 1e-5f;
    return config;
}

static void fail_random_model(void) {
    tsk_model_config config = tiny_config();
    long n;
    for (n = 0; n < 10000; n++) {
        test_allocator counting = test_allocator_failing_at(n);
        tsk_allocator allocator = test_allocator_of(&counting);
        tsk_model_options options = tsk_model_options_default();
        tsk_model *model = NULL;
        outcome o;
        memset(&o, 0, sizeof o);
        options.host.allocator = &allocator;
        options.device = TSK_DEVICE_CPU;
        options.n_threads = 1;
        o.status = tsk_model_random(&config, 1, &options, &model, &o.error);
        CHECK((o.status == TSK_OK) == (model != NULL));
        tsk_model_free(model);
        CHECK_INT(counting.alive, 0);
        if (!counting.failed) break;
        check_error(&o, TSK_ERROR_MEMORY, "memory", n);
    }
    CHECK(n > 10);
}

/* ---- the demo model's tokenizer: load, a chat to ids, ids to text */

static tsk_status use_tokenizer(const tsk_host *host, tsk_tokens *tokens, tsk_text *text, tsk_error *error) {
    static const tsk_message messages[] = {{"user", "Who is Newton in physics?"},
                                           {"assistant", "  na\xc3\xafve \xe2\x82\xac 12 "},
                                           {"user", "thank you"}};
    tsk_tokenizer *tokenizer = NULL;
    tsk_status status = tsk_tokenizer_load("examples/demo-model", host, &tokenizer, error);
    CHECK((status == TSK_OK) == (tokenizer != NULL));
    if (status == TSK_OK) status = tsk_chat_encode(tokenizer, messages, 3, 0, tokens, error);
    if (status == TSK_OK) status = tsk_tokenizer_encode(tokenizer, "and more", 8, 1, tokens, error);
    if (status == TSK_OK) status = tsk_chat_render(tokenizer, messages, 3, text, error);
    if (status == TSK_OK) status = tsk_tokenizer_decode(tokenizer, tokens->ids, tokens->count, 0, text, error);
    tsk_tokenizer_free(tokenizer);
    return status;
}

static void fail_tokenizer(void) {
    long n;
    for (n = 0; n < 100000; n++) {
        test_allocator counting = test_allocator_failing_at(n);
        tsk_allocator allocator = test_allocator_of(&counting);
        tsk_tokens tokens;
        tsk_text text;
        tsk_host host;
        outcome o;
        memset(&o, 0, sizeof o);
        memset(&host, 0, sizeof host);
        memset(&tokens, 0, sizeof tokens);
        memset(&text, 0, sizeof text);
        tokens.allocator = text.allocator = host.allocator = &allocator;
        o.status = use_tokenizer(&host, &tokens, &text, &o.error);
        CHECK(o.status != TSK_OK || (tokens.count > 10 && strstr(text.data, "Newton in physics?")));
        tsk_tokens_free(&tokens);
        tsk_text_free(&text);
        CHECK_INT(counting.alive, 0);
        if (!counting.failed) break;
        /* It may try again what only failed once, but then an error that did not come is not to be told. */
        if (o.status == TSK_OK) CHECK_INT(o.error.status, TSK_OK);
        else check_error(&o, TSK_ERROR_MEMORY, "memory", n);
    }
    CHECK(n > 10);
}

/* Cancelling a load leaves nothing either, at whichever tensor. */
typedef struct patience { long asked, until; uint64_t done, total; int backwards; } patience;

static int lose_patience(void *user) {
    patience *p = (patience *)user;
    return p->asked++ == p->until;
}
static void see_progress(void *user, uint64_t done, uint64_t total) {
    patience *p = (patience *)user;
    p->backwards += done < p->done || done > total;
    p->done = done;
    p->total = total;
}

static void cancel_loading(const char *dir) {
    long n;
    for (n = 0; n < 1000; n++) {
        test_allocator counting = test_allocator_failing_at(-1);
        tsk_allocator allocator = test_allocator_of(&counting);
        tsk_model_options options = tsk_model_options_default();
        tsk_model *model = NULL;
        patience p;
        outcome o;
        memset(&o, 0, sizeof o);
        memset(&p, 0, sizeof p);
        p.until = n;
        options.host.allocator = &allocator;
        options.device = TSK_DEVICE_CPU;
        options.n_threads = 2;
        options.cancel = lose_patience;
        options.progress = see_progress;
        options.user = &p;
        o.status = tsk_model_load(dir, &options, &model, &o.error);
        tsk_model_free(model);
        CHECK_INT(counting.alive, 0);
        CHECK_INT(p.backwards, 0);
        if (o.status == TSK_OK) {
            CHECK(p.done == p.total && p.total > 0);
            break;
        }
        check_error(&o, TSK_ERROR_CANCELLED, "cancelled", n);
    }
    CHECK(n > 10 && n < 1000);
}

int main(void) {
    static const char *const one_file[] = {"config.json", "model.safetensors"};
    static const char *const shards[] = {"config.json", "model.safetensors.index.json",
                                         "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                                         "model-00003-of-00003.safetensors"};
    fail_allocations("tests/golden/models/mha-f32", 0, NULL);
    fail_allocations("tests/golden/models/odd-f16", 1, NULL);
    test_archive("tests/golden/models/mha-f32", one_file, 2);
    test_archive("tests/golden/models/gqa-bf16", shards, 5);
    fail_random_model();
    fail_tokenizer();
    cancel_loading("tests/golden/models/gqa-bf16");
    return test_end("test_faults");
}
