/* Looking at a generation without taking its next step (tsk_session_probe, tsk_session_copy): nothing is committed, and
   what the backend keeps of the canvas is what the session shows. */
#include "../tokenskip.h"
#include "golden.h"

#include <math.h>

enum { n_prompt = 5, block = 8, length = n_prompt + 2 * block, max_logits = block * 512 };
static const int32_t prompt[n_prompt] = {3, 14, 15, 9, 26};

static tsk_generate_options options_of(int32_t eos_stop) {
    tsk_generate_options o = tsk_generate_options_default();
    o.gen_length = 2 * block, o.block_length = block, o.steps = 2 * block;
    o.transfer = TSK_TRANSFER_SCHEDULE;
    o.eos_stop = eos_stop;
    o.skip.layer_k = 2;
    return o;
}

static tsk_session *session_of(tsk_model *model, const tsk_generate_options *o) {
    tsk_session *session = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    if (!test_check(tsk_session_create(model, o, &session, &error) == TSK_OK, __FILE__, __LINE__, "%s", error.message))
        exit(1);
    return session;
}

static void steps(tsk_session *session, int32_t n) {
    int finished = 0;
    while (n-- > 0) CHECK_INT(tsk_session_step(session, &finished, NULL), TSK_OK);
}

/* The block's logits of a probe. */
static int32_t probed(tsk_session *session, const int32_t *canvas, int refresh, float *logits) {
    tsk_probe probe;
    CHECK_INT(tsk_session_probe(session, canvas, refresh ? TSK_PROBE_REFRESH : TSK_PROBE_STEP, &probe, NULL), TSK_OK);
    CHECK_INT(tsk_session_probe_logits(session, NULL, logits, NULL), TSK_OK);
    return probe.n_positions;
}

/* A probe of a session and of its copy see the same, whatever came before; and the session's canvas stays. */
static void check_copy(tsk_model *model, tsk_session *session, const tsk_generate_options *o, int refresh,
                       const char *when) {
    static float own[max_logits], copied[max_logits];
    int32_t before[length], n;
    size_t width = (size_t)tsk_model_get_config(model)->embedding_size;
    tsk_session *copy = session_of(model, o);
    tsk_result result;
    tsk_session_result(session, &result);
    memcpy(before, result.canvas, sizeof before);
    CHECK_INT(tsk_session_copy(copy, session, NULL), TSK_OK);
    n = probed(session, NULL, refresh, own);
    CHECK_INT(probed(copy, NULL, refresh, copied), n);
    test_check(memcmp(own, copied, (size_t)n * width * sizeof *own) == 0, __FILE__, __LINE__,
               "%s: a probe of the copy sees something else", when);
    tsk_session_result(session, &result);
    test_check(memcmp(before, result.canvas, sizeof before) == 0, __FILE__, __LINE__, "%s: a probe changed the canvas",
               when);
    tsk_session_free(copy);
}

static void choose_last(void *user, const tsk_selection *selection) {
    (void)user;
    selection->commit[selection->n - 1] = 1;
}

static void test_copies(tsk_model *model) {
    tsk_generate_options o = options_of(0);
    int32_t generated[2 * block], canvas[length], i, finished = 0;
    tsk_session *session = session_of(model, &o);
    static float logits[max_logits];
    CHECK_INT(tsk_session_start(session, prompt, n_prompt, NULL, NULL), TSK_OK);
    steps(session, 3);
    check_copy(model, session, &o, 0, "after three steps");
    for (i = 0; i < length; i++) canvas[i] = i < n_prompt ? prompt[i] : 7;
    probed(session, canvas, 1, logits); /* another canvas, and the session's own again */
    check_copy(model, session, &o, 1, "after a probe of another canvas");
    tsk_session_free(session);

    o.on_select = choose_last;
    session = session_of(model, &o);
    CHECK_INT(tsk_session_start(session, prompt, n_prompt, NULL, NULL), TSK_OK);
    steps(session, 2);
    check_copy(model, session, &o, 0, "after two steps by a rule of the user's");
    tsk_session_free(session);

    o = options_of(1);
    session = session_of(model, &o); /* ends in its first block: the second becomes end-of-sequence tokens */
    for (i = 0; i < 2 * block; i++)
        generated[i] = i == 1 ? tsk_model_get_config(model)->eos_token_id : tsk_model_get_config(model)->mask_token_id;
    CHECK_INT(tsk_session_start(session, prompt, n_prompt, generated, NULL), TSK_OK);
    while (!finished && !test_failed) CHECK_INT(tsk_session_step(session, &finished, NULL), TSK_OK);
    check_copy(model, session, &o, 1, "after an early end");
    tsk_session_free(session);
}

/* A masked token that is skipped in its block's first step has no prediction to keep, whatever a probe predicted of the
   others: memory that nobody wrote is no token. */
static void test_never_predicted(void) {
    test_allocator counting = test_allocator_failing_at(-1);
    tsk_allocator allocator = test_allocator_of(&counting);
    tsk_model_options model_options = tsk_model_options_default();
    tsk_generate_options o = options_of(0);
    tsk_model *model = NULL;
    tsk_session *session;
    tsk_result result;
    static float logits[max_logits];
    int32_t canvas[length], i, wrong = 0;
    model_options.device = TSK_DEVICE_CPU, model_options.n_threads = 1, model_options.host.allocator = &allocator;
    if (!CHECK_INT(tsk_model_load("tests/golden/models/mha-f32", &model_options, &model, NULL), TSK_OK)) return;
    session = session_of(model, &o);
    CHECK_INT(tsk_session_force(session, 0, TSK_AUTO, NULL), TSK_OK);
    CHECK_INT(tsk_session_start(session, prompt, n_prompt, NULL, NULL), TSK_OK);
    for (i = 0; i < length; i++)
        canvas[i] = i < n_prompt ? prompt[i] : i == n_prompt + 2 ? 7 : tsk_model_get_config(model)->mask_token_id;
    probed(session, canvas, 1, logits);
    steps(session, 2 * block);
    tsk_session_result(session, &result);
    for (i = 0; i < length; i++)
        wrong += result.canvas[i] < 0 || result.canvas[i] >= tsk_model_get_config(model)->embedding_size;
    CHECK_INT(wrong, 0);
    tsk_session_free(session);
    tsk_model_free(model);
    CHECK_INT(counting.alive, 0);
}

/* ---- block steps of the rule ROWS, and windows */

typedef struct watcher {
    int32_t n_positions, n_rows, n_cosines, n_active, predictions[block];
    float confidences[block];
    uint8_t active[block];
    int is_refresh;
    tsk_session *to, *from;        /* copied from the one to the other inside a step */
} watcher;

static int watch(void *user, const tsk_step *step) {
    watcher *w = (watcher *)user;
    w->n_positions = step->n_positions, w->n_rows = step->n_rows, w->n_cosines = step->n_cosines;
    w->n_active = step->n_active, w->is_refresh = step->is_refresh;
    memcpy(w->predictions, step->predictions, (size_t)step->n_positions * sizeof *w->predictions);
    memcpy(w->confidences, step->confidences, (size_t)step->n_positions * sizeof *w->confidences);
    memcpy(w->active, step->active, (size_t)step->n_positions);
    if (w->to) CHECK_INT(tsk_session_copy(w->to, w->from, NULL), TSK_OK);
    return 0;
}

/* A block step attends to all that the window shows: one of a block whose first pass is still to come is refused, since
   part of that was never computed. */
static void test_window_step(tsk_model *model) {
    tsk_generate_options o = options_of(0);
    tsk_session *session;
    tsk_probe probe;
    tsk_error error;
    int is_near; /* (near is a macro of windows.h) */
    o.refresh_window = 2;
    for (is_near = 0; is_near < 2; is_near++) {
        o.refresh = is_near ? TSK_REFRESH_NEAR : TSK_REFRESH_FULL;
        session = session_of(model, &o);
        CHECK_INT(tsk_session_start(session, prompt, n_prompt, NULL, NULL), TSK_OK);
        steps(session, block - 1);
        CHECK_INT(tsk_session_probe(session, NULL, TSK_PROBE_STEP, &probe, NULL), TSK_OK);
        steps(session, 1);
        CHECK_INT(tsk_session_probe(session, NULL, TSK_PROBE_STEP, &probe, &error), TSK_ERROR_ARGUMENT);
        CHECK_CONTAINS(error.message, "window");
        CHECK_INT(tsk_session_probe(session, NULL, TSK_PROBE_STEP_ALL, &probe, NULL), TSK_ERROR_ARGUMENT);
        CHECK_INT(tsk_session_probe(session, NULL, TSK_PROBE_REFRESH, &probe, NULL), TSK_OK);
        CHECK_INT(tsk_session_probe(session, NULL, TSK_PROBE_STEP, &probe, NULL), TSK_OK);
        tsk_session_free(session);
    }
}

/* A copy at a block's start, or made in the step before it, sees what its own window shows. */
static void test_window_copy(tsk_model *model) {
    tsk_generate_options narrow = options_of(0), whole = options_of(0);
    tsk_session *from, *to;
    watcher seen, inside;
    memset(&seen, 0, sizeof seen);
    memset(&inside, 0, sizeof inside);
    narrow.refresh_window = 2;
    narrow.gen_length = narrow.steps = whole.gen_length = whole.steps = 3 * block;
    narrow.on_step = whole.on_step = watch;
    narrow.user = &inside, whole.user = &seen;
    from = session_of(model, &narrow), to = session_of(model, &whole);
    CHECK_INT(tsk_session_start(from, prompt, n_prompt, NULL, NULL), TSK_OK);
    CHECK_INT(tsk_session_copy(to, from, NULL), TSK_OK);
    steps(to, 1);
    CHECK_INT(seen.n_rows, length + block);
    steps(from, block - 1);
    inside.to = to, inside.from = from; /* it ends the block */
    steps(from, 1);
    inside.to = NULL;
    steps(to, 1);
    CHECK(seen.is_refresh && seen.n_rows == length + block);
    tsk_session_free(from);
    tsk_session_free(to);
}

/* A refresh that sees a part of the canvas leaves no states for skip.refresh: of the rest there are none. */
static void test_window_states(tsk_model *model) {
    tsk_generate_options narrow = options_of(0), skipping = options_of(0);
    tsk_session *from, *to;
    tsk_probe probe;
    tsk_result result;
    narrow.refresh_window = 2;
    skipping.skip.refresh = skipping.skip.masked = 1;
    skipping.skip.threshold = skipping.skip.outlier = -2;
    from = session_of(model, &narrow), to = session_of(model, &skipping);
    CHECK_INT(tsk_session_start(from, prompt, n_prompt, NULL, NULL), TSK_OK);
    steps(from, 1);
    CHECK_INT(tsk_session_copy(to, from, NULL), TSK_OK);
    CHECK_INT(tsk_session_probe(to, NULL, TSK_PROBE_REFRESH, &probe, NULL), TSK_OK);
    steps(to, block);
    tsk_session_result(to, &result);
    CHECK_INT(result.refreshes, 2);
    CHECK(result.refresh_token_layers_total - result.refresh_token_layers_computed ==
          (uint64_t)((length - n_prompt - block - 2) * tsk_model_get_config(model)->n_layers)); /* of the first alone */
    tsk_session_free(from);
    tsk_session_free(to);
}

/* STEP_ALL leaves nothing out, not by force either. */
static void test_step_all(tsk_model *model) {
    tsk_generate_options o = options_of(0);
    int rule;
    for (rule = TSK_SKIP_RULE_OFF; rule <= TSK_SKIP_RULE_ROWS; rule++) {
        tsk_session *session;
        tsk_probe probe;
        int32_t i, active = 0;
        o.skip.rule = (tsk_skip_rule)rule;
        o.skip.masked = 1;
        session = session_of(model, &o);
        CHECK_INT(tsk_session_force(session, 1, TSK_AUTO, NULL), TSK_OK);
        CHECK_INT(tsk_session_start(session, prompt, n_prompt, NULL, NULL), TSK_OK);
        steps(session, 3);
        CHECK_INT(tsk_session_probe(session, NULL, TSK_PROBE_STEP_ALL, &probe, NULL), TSK_OK);
        for (i = 0; i < probe.n_positions; i++) active += probe.active[i];
        CHECK_INT(active, block);
        tsk_session_free(session);
    }
}

/* What a probe predicts is the last prediction that there is: the rule ROWS ranks by it, and on_step shows it of the
   rows that are left out. */
static void test_probe_predicts(tsk_model *model) {
    const tsk_model_config *config = tsk_model_get_config(model);
    static float logits[max_logits];
    tsk_generate_options o = options_of(0);
    int32_t predictions[block], i, id, best = 0, wrong = 0;
    double confidences[block];
    tsk_session *session;
    watcher seen;
    memset(&seen, 0, sizeof seen);
    o.skip.rule = TSK_SKIP_RULE_ROWS;
    o.skip.rows_margin = 0;
    o.on_step = watch, o.user = &seen;
    session = session_of(model, &o);
    CHECK_INT(tsk_session_start(session, prompt, n_prompt, NULL, NULL), TSK_OK);
    steps(session, block);
    CHECK_INT(probed(session, NULL, 1, logits), block); /* of the second block */
    for (i = 0; i < block; i++) {
        const float *row = logits + (size_t)i * (size_t)config->embedding_size;
        double sum = 0;
        predictions[i] = -1;
        for (id = 0; id < config->embedding_size; id++)
            if (id != config->mask_token_id && (predictions[i] < 0 || row[id] > row[predictions[i]]))
                predictions[i] = id;
        for (id = 0; id < config->embedding_size; id++) sum += exp((double)row[id] - (double)row[predictions[i]]);
        confidences[i] = 1 / sum;
        if (confidences[i] > confidences[best]) best = i;
    }
    steps(session, 1);
    CHECK_INT(seen.n_rows, 1); /* none is changed, and the quota is 1 */
    for (i = 0; i < block; i++) {
        CHECK_INT(seen.active[i], i == best);
        wrong += i != best && (seen.predictions[i] != predictions[i] ||
                               fabs((double)seen.confidences[i] - confidences[i]) > 1e-5);
    }
    CHECK_INT(wrong, 0);
    tsk_session_free(session);
}

/* Steps by ROWS keep no states: what they were before is no reference for a copy that compares. */
static void test_states_through_rows(tsk_model *model) {
    tsk_generate_options o = options_of(0), rows;
    tsk_session *first, *between, *last;
    watcher seen;
    memset(&seen, 0, sizeof seen);
    o.skip.policy = TSK_SKIP_EXIT;
    o.skip.refresh = 1;
    rows = o;
    rows.skip.rule = TSK_SKIP_RULE_ROWS;
    first = session_of(model, &o), between = session_of(model, &rows);
    o.on_step = watch, o.user = &seen;
    last = session_of(model, &o);
    CHECK_INT(tsk_session_start(first, prompt, n_prompt, NULL, NULL), TSK_OK);
    steps(first, 3);
    CHECK_INT(tsk_session_copy(last, first, NULL), TSK_OK);
    steps(last, 1);
    CHECK_INT(seen.n_cosines, 1);
    CHECK_INT(tsk_session_copy(between, first, NULL), TSK_OK);
    steps(between, 2);
    CHECK_INT(tsk_session_copy(last, between, NULL), TSK_OK);
    steps(last, 1);
    CHECK(seen.n_cosines == 0 && seen.n_active == block);
    tsk_session_free(first);
    tsk_session_free(between);
    tsk_session_free(last);
}

int main(void) {
    tsk_model *model = golden_model("mha-f32", 2);
    test_copies(model);
    test_never_predicted();
    test_window_step(model);
    test_window_copy(model);
    test_window_states(model);
    test_step_all(model);
    test_probe_predicts(model);
    test_states_through_rows(model);
    tsk_model_free(model);
    return test_end("test_probe");
}
