/* The transformer against the reference, record by record (tests/golden/forward_*.json, see reference.py), and the
   tracer: what it selects, and that looking changes nothing. */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_NO_CUDA
#include "../tokenskip.h"
#include "golden.h"

enum { max_records = 4000, max_positions = 64, max_width = 128 };

/* What is kept of a record: enough to compare with a golden one. */
typedef struct kept {
    char name[48], part[4];
    int32_t pass, layer, n_rows, positions[max_positions];
    int n_dims;
    uint64_t in[3], out[3];
    tsk_stats stats;
    int has_values;
    float first[4], last[4];
} kept;

typedef struct keeper {
    kept records[max_records];
    int n;
    int stats_wrong, values_wrong;
    float *previous;               /* output of the last `embedding` or `layer_{i}` with values, and its layer */
    int32_t previous_layer;
} keeper;

static keeper trace;

static int close_to(double a, double b) { return fabs(a - b) <= 3e-5 * (1 + fabs(b)); }

/* The stats of a record once more, from its values. */
static int stats_fit(const tsk_trace_record *r, uint64_t n) {
    double sum = 0, squares = 0, magnitude = 0, low = (double)r->output[0], high = low;
    uint64_t i;
    for (i = 0; i < n; i++) {
        double v = (double)r->output[i];
        sum += v;
        magnitude += fabs(v);
        low = v < low ? v : low;
        high = v > high ? v : high;
    }
    for (i = 0; i < n; i++)
        squares += ((double)r->output[i] - sum / (double)n) * ((double)r->output[i] - sum / (double)n);
    return close_to(r->stats.mean, sum / (double)n) && close_to(r->stats.abs_mean, magnitude / (double)n) &&
           r->stats.min == low && r->stats.max == high &&
           close_to(r->stats.std, n > 1 ? sqrt(squares / (double)(n - 1)) : 0);
}

/* A layer's input is the output of the layer below, bit for bit, and its norm's input too. */
static void check_chain(keeper *k, const tsk_trace_record *r) {
    size_t size = (size_t)r->output_shape[0] * (size_t)r->output_shape[1] * sizeof(float);
    int is_embedding = strcmp(r->name, "embedding") == 0, is_norm = strstr(r->name, "_attn_norm") != NULL;
    int is_block =
        r->layer >= 0 && strncmp(r->name, "layer_", 6) == 0 && strspn(r->name + 6, "0123456789") == strlen(r->name + 6);
    if ((is_block || is_norm) && k->previous && k->previous_layer == r->layer - 1)
        k->values_wrong += memcmp(r->input, k->previous, size) != 0;
    if (!is_embedding && !is_block) return;
    free(k->previous);
    k->previous_layer = r->layer;
    k->previous = (float *)malloc(size);
    if (k->previous) memcpy(k->previous, r->output, size);
}

static void keep(void *user, const tsk_trace_record *r) {
    keeper *k = (keeper *)user;
    kept *to = &k->records[k->n < max_records ? k->n++ : max_records - 1];
    uint64_t n = 1;
    int i;
    memset(to, 0, sizeof *to);
    snprintf(to->name, sizeof to->name, "%s", r->name);
    snprintf(to->part, sizeof to->part, "%s", r->part);
    to->pass = r->pass;
    to->layer = r->layer;
    to->n_rows = r->n_rows;
    for (i = 0; i < r->n_rows && i < max_positions; i++) to->positions[i] = r->positions[i];
    to->n_dims = r->n_dims;
    memcpy(to->in, r->input_shape, sizeof to->in);
    memcpy(to->out, r->output_shape, sizeof to->out);
    to->stats = r->stats;
    to->has_values = r->output != NULL;
    for (i = 0; i < r->n_dims; i++) n *= r->output_shape[i];
    if (!r->output) {
        k->values_wrong += r->input != NULL;
        return;
    }
    memcpy(to->first, r->output, sizeof to->first);
    memcpy(to->last, r->output + n - 4, sizeof to->last);
    k->stats_wrong += !stats_fit(r, n);
    k->values_wrong += (r->input == NULL) != (r->input_shape[0] == 0);
    check_chain(k, r);
}

static void forget(void) {
    free(trace.previous);
    memset(&trace, 0, sizeof trace);
}

static tsk_trace_options keep_all(void) {
    tsk_trace_options options = tsk_trace_options_default();
    options.values = 1;
    options.on_record = keep;
    options.user = &trace;
    return options;
}

/* ---- golden records */

/* The reference writes rope_q and k_cache where the API has a name and a part. */
static void api_name(const char *golden, char name[48], char part[4]) {
    int layer = 0;
    const char *rope = strstr(golden, "_rope_"), *cache = strstr(golden, "_cache");
    snprintf(name, 48, "%s", golden);
    part[0] = part[1] = 0;
    if (rope) {
        part[0] = rope[6];
        name[rope + 5 - golden] = 0;
    }
    if (cache && sscanf(golden, "layer_%d", &layer) == 1) {
        part[0] = cache[-1];
        snprintf(name, 48, "kv_%d", layer);
    }
}

static const kept *find(const char *name, const char *part, int32_t pass) {
    int i;
    for (i = 0; i < trace.n; i++)
        if (trace.records[i].pass == pass && strcmp(trace.records[i].name, name) == 0 &&
            strcmp(trace.records[i].part, part) == 0)
            return &trace.records[i];
    return NULL;
}

static int numbers_close(const tsk_json_value *array, const float *found) {
    const tsk_json_value *v = tsk_json_first(array);
    int i;
    for (i = 0; i < 4; i++, v = tsk_json_next(v)) {
        double number = 0;
        if (!tsk_json_double(v, &number) || !close_to((double)found[i], number)) return 0;
    }
    return v == NULL;
}

static int shape_is(const tsk_json_value *array, uint64_t rows, uint64_t width) {
    int32_t shape[2] = {0, 0}, n = golden_ids(array, shape, 2);
    return n == 2 && (uint64_t)shape[0] == rows && (uint64_t)shape[1] == width;
}

static void check_record(const tsk_json_value *golden, int32_t pass, const int32_t *positions, int32_t n_positions) {
    const char *full_name = tsk_json_string(tsk_json_get(golden, "name"), NULL);
    char name[48], part[4];
    const kept *r;
    int is_cache = full_name && strstr(full_name, "_cache") != NULL;
    api_name(full_name, name, part);
    r = find(name, part, pass);
    if (!test_check(r != NULL, __FILE__, __LINE__, "pass %d has no record '%s' '%s'", (int)pass, name, part)) return;
#define RECORD_CHECK(condition) \
    test_check((condition) ? 1 : 0, __FILE__, __LINE__, "pass %d, %s: %s", (int)pass, full_name, #condition)
    RECORD_CHECK(r->layer == golden_int(golden, "layer", -1));
    RECORD_CHECK(close_to(r->stats.mean, golden_number(golden, "mean", 1e9)));
    RECORD_CHECK(close_to(r->stats.std, golden_number(golden, "std", 1e9)));
    RECORD_CHECK(close_to(r->stats.min, golden_number(golden, "min", 1e9)));
    RECORD_CHECK(close_to(r->stats.max, golden_number(golden, "max", 1e9)));
    RECORD_CHECK(close_to(r->stats.abs_mean, golden_number(golden, "abs_mean", 1e9)));
    RECORD_CHECK(r->has_values && numbers_close(tsk_json_get(golden, "first"), r->first));
    RECORD_CHECK(numbers_close(tsk_json_get(golden, "last"), r->last));
    if (is_cache) {
        RECORD_CHECK(r->n_dims == 3 && shape_is(tsk_json_get(golden, "out"), r->out[1], r->out[0] * r->out[2]));
        RECORD_CHECK((uint64_t)r->n_rows == r->out[1] && r->in[0] == 0);
        return;
    }
    RECORD_CHECK(shape_is(tsk_json_get(golden, "out"), r->out[0], r->n_dims == 3 ? r->out[1] * r->out[2] : r->out[1]));
    RECORD_CHECK((r->n_dims == 3) == (part[0] != 0));
    RECORD_CHECK(strcmp(name, "embedding") == 0 ? r->in[0] == 0
                                                : shape_is(tsk_json_get(golden, "in"), r->in[0], r->in[1]));
    RECORD_CHECK(r->n_rows == n_positions &&
                 memcmp(r->positions, positions, (size_t)n_positions * sizeof *positions) == 0);
#undef RECORD_CHECK
}

static void check_records(const tsk_json_value *golden, int32_t pass) {
    const tsk_json_value *record;
    int32_t positions[max_positions], n = golden_ids(tsk_json_get(golden, "positions"), positions, max_positions);
    int n_golden = 0, n_found = 0, i;
    for (record = tsk_json_first(tsk_json_get(golden, "records")); record; record = tsk_json_next(record), n_golden++)
        check_record(record, pass, positions, n);
    for (i = 0; i < trace.n; i++) n_found += trace.records[i].pass == pass;
    CHECK_INT(n_found, n_golden);
    CHECK_INT(trace.stats_wrong, 0);
    CHECK_INT(trace.values_wrong, 0);
}

/* [rows][width] beside logits [rows, width]. */
static void check_logits(const tsk_json_value *golden, const float *logits, int32_t width, const char *what) {
    const tsk_json_value *row, *v;
    int32_t i = 0, j, wrong = 0;
    for (row = tsk_json_first(golden); row; row = tsk_json_next(row), i++)
        for (v = tsk_json_first(row), j = 0; v; v = tsk_json_next(v), j++) {
            double number = 1e9;
            tsk_json_double(v, &number);
            wrong += j >= width || !close_to((double)logits[i * width + j], number);
        }
    test_check(i > 0 && wrong == 0, __FILE__, __LINE__, "%s: %d of %d x %d logits are wrong", what, (int)wrong, (int)i,
               (int)width);
}

/* ---- the golden passes */

/* A pass that goes on with what a session's first pass left: the rows that the reference runs are no block of the
   API's, so they are put together by hand, as the session would. */
typedef struct by_hand {
    tsk_session *session;
    tsk__kv kv;
    int32_t ids[max_positions], positions[max_positions], n, k, n_states;
    float logits[max_positions * max_width];
} by_hand;

static void hand_begin(by_hand *h, const tsk_json_value *golden, int32_t pass, const int32_t *flags) {
    tsk__pass *p = &h->session->pass;
    int32_t i;
    golden_ids(tsk_json_get(golden, "ids"), h->ids, max_positions);
    h->n = golden_ids(tsk_json_get(golden, "positions"), h->positions, max_positions);
    tsk__pass_reset(p);
    p->caches[p->n_requests] = h->kv;
    p->caches[p->n_requests++].tokens = NULL;
    for (i = 0; i < h->n; i++) {
        tsk__pass_add_row(p, h->ids[h->positions[i]], h->positions[i], i);
        p->flags[i] = flags[i];
    }
    if (p->tracer) p->tracer->pass = pass;
    tsk__pass_begin(p);
    tsk__forward_layers(p, 0, h->k, h->n_states);
}

static void hand_logits(by_hand *h) {
    tsk__pass *p = &h->session->pass;
    int32_t i;
    for (i = 0; i < h->n; i++) p->head[i] = i;
    p->backend->ops->logits(p->stream, h->n, p->head, NULL, h->logits);
}

static void hand_block_pass(by_hand *h, const tsk_json_value *golden) {
    tsk__pass *p = &h->session->pass;
    int32_t flags[max_positions], i;
    for (i = 0; i < max_positions; i++) flags[i] = TSK__ROW_REMEMBER | TSK__ROW_OUTPUT;
    hand_begin(h, golden, 1, flags);
    tsk__forward_layers(p, h->k, p->backend->config->n_layers, 0);
    p->backend->ops->keep(p->stream);
    hand_logits(h);
    check_logits(tsk_json_get(golden, "logits"), h->logits, p->backend->config->embedding_size, "block");
    tsk__forward_head(p);
    check_records(golden, 1);
}

static void check_cosines(const by_hand *h, const tsk_json_value *golden) {
    const tsk_json_value *state, *v;
    int32_t l = 0, i;
    for (state = tsk_json_first(tsk_json_get(golden, "cosine")); state; state = tsk_json_next(state), l++)
        for (v = tsk_json_first(state), i = 0; v; v = tsk_json_next(v), i++) {
            double number = 1e9;
            tsk_json_double(v, &number);
            CHECK(fabs((double)h->session->pass.stream->cosines[l * h->session->pass.max_rows + i] - number) <= 1e-5);
        }
    CHECK_INT(l, h->n_states);
}

static int is_among(const int32_t *ids, int32_t n, int32_t id) {
    while (n-- > 0)
        if (ids[n] == id) return 1;
    return 0;
}

static void hand_skip_pass(by_hand *h, const tsk_json_value *golden, const int32_t *old_ids) {
    const tsk_json_value *options = tsk_json_get(golden, "options");
    tsk__pass *p = &h->session->pass;
    int32_t active[max_positions], n_active = golden_ids(tsk_json_get(golden, "active"), active, max_positions),
                                   flags[max_positions], i;
    int32_t vocabulary = p->backend->config->embedding_size, positions[max_positions], ids[max_positions];
    golden_ids(tsk_json_get(golden, "ids"), ids, max_positions);
    golden_ids(tsk_json_get(golden, "positions"), positions, max_positions);
    for (i = 0; i < h->n; i++)
        flags[i] = TSK__ROW_OUTPUT | (ids[positions[i]] == old_ids[positions[i]] ? TSK__ROW_MAY_SKIP : 0);
    h->kv.skip_threshold = (float)golden_number(options, "skip_threshold", 0),
    h->kv.skip_outlier = (float)golden_number(options, "skip_outlier", 0);
    hand_begin(h, golden, 2, flags);
    check_cosines(h, golden);
    for (i = 0; i < h->n; i++) {
        p->running[i] = !(flags[i] & TSK__ROW_MAY_SKIP) || !p->stream->skipped[i];
        CHECK_INT(p->running[i], is_among(active, n_active, h->positions[i]));
    }
    CHECK_INT(tsk__pass_narrow(p), n_active);
    tsk__forward_layers(p, h->k, p->backend->config->n_layers, 0);
    tsk__pass_widen(p);
    hand_logits(h);
    check_logits(tsk_json_get(golden, "logits_exit"), h->logits, vocabulary, "skip, exit");
    p->backend->ops->keep(p->stream);
    hand_logits(h);
    check_logits(tsk_json_get(golden, "logits_reuse"), h->logits, vocabulary, "skip, reuse");
}

static int stop_at_once(void *user, const tsk_step *step) {
    (void)user;
    (void)step;
    return 1;
}

/* The full pass is a session's first one: its masks are in the prompt, but for the last position, which is
   generated. */
static tsk_session *full_pass(tsk_model *model, const tsk_json_value *golden, int32_t k) {
    tsk_generate_options options = tsk_generate_options_default();
    tsk_trace_options tracing = keep_all();
    tsk_session *session = NULL;
    tsk_result result;
    int32_t ids[max_positions], n = golden_ids(tsk_json_get(golden, "ids"), ids, max_positions);
    options.gen_length = options.block_length = 1;
    options.skip.layer_k = k;
    options.on_step = stop_at_once;
    forget();
    CHECK_INT(tsk_session_create(model, &options, &session, NULL), TSK_OK);
    CHECK_INT(tsk_session_trace(session, &tracing, NULL), TSK_OK);
    CHECK_INT(tsk_generate(session, ids, n - 1, NULL, &result, NULL), TSK_OK);
    CHECK_INT(result.nfe, 1);
    check_records(golden, 0);
    return session;
}

static void check_session_logits(tsk_model *model, const tsk_json_value *golden) {
    static float all[max_positions * max_width], some[max_positions * max_width];
    int32_t ids[max_positions], n = golden_ids(tsk_json_get(golden, "ids"), ids, max_positions),
                                width = tsk_model_get_config(model)->embedding_size;
    tsk_session *session = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    CHECK_INT(tsk_session_create(model, NULL, &session, NULL), TSK_OK);
    CHECK_INT(tsk_session_logits(session, ids, n, 0, n, all, NULL), TSK_OK);
    check_logits(tsk_json_get(golden, "logits"), all, width, "tsk_session_logits");
    CHECK_INT(tsk_session_logits(session, ids, n, 5, 3, some, NULL), TSK_OK);
    CHECK(memcmp(some, all + 5 * width, (size_t)(3 * width) * sizeof *all) == 0);
    CHECK_INT(tsk_session_logits(session, ids, n, n - 1, 2, some, &error), TSK_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "14 tokens");
    CHECK_INT(tsk_session_logits(session, ids, n, -1, 2, some, &error), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_session_logits(session, ids, 0, 0, 0, some, &error), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_session_logits(session, ids, INT32_MAX, 0, 1, some, &error), TSK_ERROR_ARGUMENT);
    ids[2] = width;
    CHECK_INT(tsk_session_logits(session, ids, n, 0, 1, some, &error), TSK_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "position 2");
    tsk_session_free(session);
}

static void check_golden(const char *name) {
    static by_hand hand;
    char path[128];
    tsk_model *model = golden_model(name, 2);
    tsk_json *document;
    const tsk_json_value *passes, *skip;
    size_t d = (size_t)tsk_model_get_config(model)->d_model;
    int32_t old_ids[max_positions];
    snprintf(path, sizeof path, "tests/golden/forward_%s.json", name);
    document = golden_load(path);
    passes = tsk_json_get(tsk_json_root(document), "passes");
    skip = tsk_json_get(passes, "skip");
    check_session_logits(model, tsk_json_get(passes, "full"));
    hand.k = golden_int(tsk_json_get(skip, "options"), "skip_layer_k", 0);
    hand.n_states = hand.k - 1;
    hand.session = full_pass(model, tsk_json_get(passes, "full"), hand.k);
    hand.kv = tsk__cache_view(&hand.session->request.cache, 0);
    hand.kv.n_slots = max_positions;
    hand.kv.n_states = hand.n_states;
    hand.kv.has_reference = 1;
    hand.kv.states = calloc(2 * (size_t)hand.n_states * max_positions * d, sizeof(float));
    hand.kv.outputs = calloc(max_positions * d, sizeof(float));
    hand_block_pass(&hand, tsk_json_get(passes, "block"));
    memcpy(old_ids, hand.ids, sizeof old_ids);
    hand_skip_pass(&hand, skip, old_ids);
    free(hand.kv.states);
    free(hand.kv.outputs);
    tsk_session_free(hand.session);
    tsk_json_free(document);
    tsk_model_free(model);
}

/* ---- what is traced */

static tsk_generate_options small_options(void) {
    tsk_generate_options options = tsk_generate_options_default();
    options.gen_length = 8;
    options.block_length = 4;
    options.transfer = TSK_TRANSFER_SCHEDULE;
    options.eos_stop = 0;
    options.skip.layer_k = 2;
    return options;
}

static const int32_t prompt[] = {3, 14, 15, 9, 26, 5};
enum { n_prompt = sizeof prompt / sizeof prompt[0] };

/* Generates under `tracing`; how many records came. Every one must be of the layers and passes asked for. */
static int count_records(tsk_model *model, tsk_trace_options tracing) {
    tsk_generate_options options = small_options();
    tsk_session *session = NULL;
    tsk_result result;
    int i;
    tracing.on_record = keep;
    tracing.user = &trace;
    forget();
    CHECK_INT(tsk_session_create(model, &options, &session, NULL), TSK_OK);
    CHECK_INT(tsk_session_trace(session, &tracing, NULL), TSK_OK);
    CHECK_INT(tsk_generate(session, prompt, n_prompt, NULL, &result, NULL), TSK_OK);
    CHECK_INT(result.nfe, 8);
    tsk_session_free(session);
    for (i = 0; i < trace.n; i++) {
        const kept *r = &trace.records[i];
        if (r->pass < tracing.first_pass || r->pass > tracing.last_pass || r->has_values != tracing.values) break;
        if (r->layer >= 0 && (r->layer < tracing.first_layer || r->layer > tracing.last_layer)) break;
    }
    CHECK_INT(i, trace.n);
    CHECK_INT(trace.values_wrong, 0);
    return trace.n;
}

static int count_pattern(tsk_model *model, const char *pattern) {
    tsk_trace_options options = tsk_trace_options_default();
    options.pattern = pattern;
    options.first_pass = options.last_pass = 0;
    return count_records(model, options);
}

/* Pass 0 is a full forward of mha-f32: 4 layers of 14 records, and embedding, final_norm, logits. */
static void check_selection(tsk_model *model) {
    tsk_trace_options options = tsk_trace_options_default();
    CHECK_INT(count_pattern(model, NULL), 4 * 14 + 3);
    CHECK_INT(count_pattern(model, "*"), 4 * 14 + 3);
    CHECK_INT(count_pattern(model, "layer_?"), 4);
    CHECK_INT(count_pattern(model, "layer_2*"), 12);
    CHECK_INT(count_pattern(model, "*_proj"), 4 * 5);
    CHECK_INT(count_pattern(model, "*_rope"), 4 * 2);
    CHECK_INT(count_pattern(model, "kv_*"), 4 * 2);
    CHECK_INT(count_pattern(model, "logits"), 1);
    CHECK_INT(count_pattern(model, "final_norm"), 1);
    CHECK_INT(count_pattern(model, "logit"), 0);
    CHECK_INT(count_pattern(model, ""), 0);
    options.first_pass = options.last_pass = 0;
    options.first_layer = 1;
    options.last_layer = 2;
    CHECK_INT(count_records(model, options), 2 * 14 + 3); /* those without a layer always */
    options.values = 1;
    CHECK_INT(count_records(model, options), 2 * 14 + 3);
    options.first_pass = 3;
    options.last_pass = 5;
    options.pattern = "embedding";
    CHECK_INT(count_records(model, options), 3);
    options.first_pass = 6;
    options.last_pass = 5;
    CHECK_INT(count_records(model, options), 0);
}

static void check_matching(void) {
    CHECK(tsk__trace_match("", "") && tsk__trace_match("*", "") && tsk__trace_match("**", "ab") &&
          tsk__trace_match("a*b*c", "axxbyyc"));
    CHECK(tsk__trace_match("*ab", "aab") && tsk__trace_match("a?c", "abc") &&
          tsk__trace_match("*_q_*", "layer_1_q_proj"));
    CHECK(!tsk__trace_match("?", "") && !tsk__trace_match("a", "ab") && !tsk__trace_match("ab", "a") &&
          !tsk__trace_match("*b", "abc"));
    CHECK(!tsk__trace_match("a*b*c", "axxbyy") && !tsk__trace_match("A", "a"));
    CHECK(!tsk__trace_match("*a*a*a*a*a*a*a*a*a*b",
                            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")); /* and soon */
}

/* ---- tracing and TokenSkip */

typedef struct seen {
    int32_t n_active[64], block_step[64], n;
    float confidences[64][8];
} seen;

static int see(void *user, const tsk_step *step) {
    seen *s = (seen *)user;
    s->n_active[s->n] = step->n_active;
    s->block_step[s->n] = step->block_step;
    memcpy(s->confidences[s->n++], step->confidences, (size_t)step->n_positions * sizeof(float));
    return 0;
}

/* Layers from K on see the active ones, layers below see all. */
static void check_skipped_rows(tsk_model *model) {
    tsk_generate_options options = small_options();
    tsk_trace_options tracing = keep_all();
    tsk_session *session = NULL;
    tsk_result result, plain;
    int32_t tokens[8], i, step, narrow = 0;
    static seen with, without;
    memset(&with, 0, sizeof with);
    memset(&without, 0, sizeof without);
    options.gen_length = options.block_length = 8;
    options.skip.masked = 1;
    options.skip.threshold = 0.9f;
    options.on_step = see;
    options.user = &with;
    forget();
    CHECK_INT(tsk_session_create(model, &options, &session, NULL), TSK_OK);
    CHECK_INT(tsk_session_trace(session, &tracing, NULL), TSK_OK);
    CHECK_INT(tsk_generate(session, prompt, n_prompt, NULL, &result, NULL), TSK_OK);
    memcpy(tokens, result.tokens, sizeof tokens);
    for (step = 1; step < with.n; step++) {
        const kept *below = find("layer_1", "", step), *above = find("layer_3", "", step),
                   *logits = find("logits", "", step);
        CHECK(below && below->n_rows == 8 && logits && logits->n_rows == 8);
        CHECK_INT(above ? above->n_rows : 0, with.n_active[step]);
        narrow += above && above->n_rows < 8;
        for (i = 0; above && i < above->n_rows; i++)
            CHECK(above->positions[i] >= n_prompt && above->positions[i] < n_prompt + 8 &&
                  (i == 0 || above->positions[i] > above->positions[i - 1]));
    }
    CHECK(narrow > 0);
    CHECK_INT(trace.stats_wrong, 0);
    tsk_session_free(session);
    options.user = &without;
    CHECK_INT(tsk_session_create(model, &options, &session, NULL), TSK_OK);
    CHECK_INT(tsk_generate(session, prompt, n_prompt, NULL, &plain, NULL), TSK_OK);
    CHECK(memcmp(tokens, plain.tokens, sizeof tokens) == 0);
    CHECK(memcmp(&with, &without, sizeof with) == 0);
    tsk_session_free(session);
}

/* Switching tracing on and off between steps of one generation. */
static void check_switching(tsk_model *model) {
    tsk_generate_options options = small_options();
    tsk_trace_options tracing = keep_all();
    tsk_session *session = NULL;
    tsk_result result;
    tsk_error error;
    int32_t tokens[8];
    int finished = 0, pass, n;
    memset(&error, 0, sizeof error);
    forget();
    CHECK_INT(tsk_session_create(model, &options, &session, NULL), TSK_OK);
    CHECK_INT(tsk_generate(session, prompt, n_prompt, NULL, &result, NULL), TSK_OK);
    memcpy(tokens, result.tokens, sizeof tokens);
    CHECK_INT(tsk_session_start(session, prompt, n_prompt, NULL, NULL), TSK_OK);
    for (pass = 0; !finished; pass++) {
        n = trace.n;
        CHECK_INT(tsk_session_trace(session, pass % 2 ? &tracing : NULL, NULL), TSK_OK);
        if (!CHECK_INT(tsk_session_step(session, &finished, NULL), TSK_OK)) break;
        CHECK((trace.n > n) == (pass % 2));
        if (trace.n > n) CHECK_INT(trace.records[n].pass, pass);
    }
    tsk_session_result(session, &result);
    CHECK(memcmp(tokens, result.tokens, sizeof tokens) == 0);
    tracing.on_record = NULL;
    CHECK_INT(tsk_session_trace(session, &tracing, &error), TSK_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "on_record");
    tsk_session_free(session);
}

int main(void) {
    tsk_model *model;
    check_golden("mha-f32");
    check_golden("gqa-bf16");
    check_golden("odd-f16");
    check_matching();
    model = golden_model("mha-f32", 2);
    check_selection(model);
    check_skipped_rows(model);
    check_switching(model);
    tsk_model_free(model);
    forget();
    return test_end("test_forward");
}
