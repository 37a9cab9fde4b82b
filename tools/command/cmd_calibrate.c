/* Searches TokenSkip's settings for those that compute the least while few enough predictions of masked tokens change.
   Each setting generates from every prompt; before each step the full pass is taken from a copy of the same state, and
   a prediction that the step makes differently is a flip. */
#include "questions.h"

#include <math.h>

enum { DEFAULT_PROMPTS = 16, N_QUANTILES = 9, FINE_STEPS = 3 };

/* Of the mean cosines of tokens that may be skipped, from nearly all of which a threshold lets skip to hardly any. */
static const double quantiles[N_QUANTILES] = {0, 0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 0.98};

typedef struct setting {
    int32_t layer_k, max_age;
    float threshold, outlier;
    tsk_skip_reference reference;
} setting;

typedef struct measured {
    setting setting;
    uint64_t computed, total, compared, flips;
    int is_whole;              /* 0: given up, since it computes more than the best */
} measured;

/* What a pass predicted for the tokens that were masked before it. */
typedef struct predictions {
    int32_t *ids;              /* -1 where not masked */
    int32_t count, capacity;
} predictions;

typedef struct calibration {
    const cli_settings *settings;
    cli_engine *engine;
    const tsk_model_config *config;
    const question_list *questions;
    tsk_tokens *prompts;       /* of the questions */
    size_t n_prompts;
    tsk_session *full;
    predictions full_seen, seen;
    int masks_left;            /* in the block, after the last step */
    int32_t n_started;         /* blocks that had a step */
    float *means;              /* [n_means, n_states] mean of the first 1, 2, … cosines of tokens that may be skipped */
    size_t n_means, capacity;
    int32_t n_states;
    int keeps_means;
    measured *tried;
    size_t n_tried;
    measured best;
} calibration;

/* ---- One generation, with the full pass beside every step ------------------------------------------------------- */

static void see(predictions *p, const tsk_step *step, int32_t mask_id) {
    int32_t i;
    if (step->n_positions > p->capacity) {
        p->capacity = step->n_positions;
        p->ids = (int32_t *)cli_reallocate(p->ids, (size_t)p->capacity, sizeof *p->ids);
    }
    p->count = step->n_positions;
    for (i = 0; i < step->n_positions; i++) {
        int masked = step->committed[i] || step->canvas[step->positions[i]] == mask_id;
        p->ids[i] = masked ? step->predictions[i] : -1;
    }
}

/* Means of the first cosines of each token that may be stable, which is what a threshold of a smaller K looks at. */
static void keep_means(calibration *c, const tsk_step *step) {
    int32_t i, l;
    for (i = 0; i < step->n_positions && step->cosines; i++) {
        double sum = 0;
        if (c->seen.ids[i] >= 0 && !c->settings->generate.skip.masked) continue;
        if (c->n_means == c->capacity) {
            c->capacity = c->capacity ? 2 * c->capacity : 1024;
            c->means = (float *)cli_reallocate(c->means, c->capacity * (size_t)c->n_states, sizeof *c->means);
        }
        for (l = 0; l < c->n_states; l++) {
            sum += (double)step->cosines[(size_t)i * (size_t)step->n_cosines + (size_t)l];
            c->means[c->n_means * (size_t)c->n_states + (size_t)l] = (float)(sum / (l + 1));
        }
        c->n_means++;
    }
}

static int on_step(void *user, const tsk_step *step) {
    calibration *c = (calibration *)user;
    see(&c->seen, step, c->config->mask_token_id);
    c->masks_left = step->masks_left;
    if (c->keeps_means) keep_means(c, step);
    return 0;
}

static int on_full_step(void *user, const tsk_step *step) {
    calibration *c = (calibration *)user;
    see(&c->full_seen, step, c->config->mask_token_id);
    return 0;
}

static void count_flips(const calibration *c, measured *m) {
    int32_t i;
    for (i = 0; i < c->seen.count; i++) {
        if (c->seen.ids[i] < 0) continue;
        m->compared++;
        m->flips += c->seen.ids[i] != c->full_seen.ids[i];
    }
}

/* One step. A refresh skips nobody, except under --skip-refresh. */
static tsk_status take_step(calibration *c, tsk_session *session, measured *m, int *finished, tsk_error *error) {
    const tsk_generate_options *options = &c->settings->generate;
    int is_refresh = c->masks_left == 0 && cli_block_refreshes(options, c->n_started++);
    int is_shadowed = !c->keeps_means && (!is_refresh || options->skip.refresh), unused;
    tsk_status status = TSK_OK;
    if (is_shadowed) status = tsk_session_copy(c->full, session, error);
    if (status == TSK_OK && is_shadowed) status = tsk_session_step(c->full, &unused, error);
    if (status == TSK_OK) status = tsk_session_step(session, finished, error);
    if (status == TSK_OK && is_shadowed) count_flips(c, m);
    return status;
}

static int run_prompt(calibration *c, tsk_session *session, size_t prompt, measured *m) {
    const tsk_tokens *ids = &c->prompts[prompt];
    tsk_error error = {0};
    tsk_result result;
    char where[512];
    int finished = 0, status = CLI_OK;
    tsk_status worked = tsk_session_start(session, ids->ids, ids->count, NULL, &error);
    tsk_session_result(session, &result);
    c->masks_left = c->n_started = 0;
    while (worked == TSK_OK && !finished && !cli_interrupted()) {
        worked = take_step(c, session, m, &finished, &error);
        cli_progress_again();
    }
    snprintf(where, sizeof where, "%s, line %zu", c->settings->data, c->questions->items[prompt].line);
    if (worked != TSK_OK) status = cli_fail_with(&error, where);
    else if (cli_interrupted())
        status = cli_fail("interrupted at setting %zu: the search is incomplete, nothing is printed", c->n_tried + 1);
    if (status != CLI_OK) return status;
    tsk_session_result(session, &result);
    m->computed += result.token_layers_computed + result.refresh_token_layers_computed;
    m->total += result.token_layers_total + result.refresh_token_layers_total;
    return CLI_OK;
}

/* ---- One setting ------------------------------------------------------------------------------------------------ */

static int open_session(calibration *c, const setting *s, tsk_session **out) {
    tsk_generate_options options = c->settings->generate;
    tsk_error error = {0};
    int status = CLI_OK;
    options.skip.rule = s->layer_k ? TSK_SKIP_RULE_STATES : TSK_SKIP_RULE_OFF;
    options.skip.layer_k = s->layer_k;
    options.skip.threshold = s->threshold;
    options.skip.outlier = s->outlier;
    options.skip.reference = s->reference;
    options.skip.max_age = s->max_age;
    options.skip.refresh = options.skip.refresh && s->layer_k > 0;
    options.on_step = on_step;
    options.user = c;
    if (tsk_session_create(c->engine->model, &options, out, &error) != TSK_OK) status = cli_fail_with(&error, NULL);
    return status;
}

static double flip_rate(const measured *m) { return m->compared ? (double)m->flips / (double)m->compared : 0; }

static int is_allowed(const calibration *c, const measured *m) {
    return m->is_whole && flip_rate(m) <= (double)c->settings->max_flips;
}

static void show_progress(const calibration *c, size_t done) {
    char tail[128];
    snprintf(tail, sizeof tail, "setting %zu, best computes %.1f%%", c->n_tried + 1,
             c->best.total ? 100.0 * (double)c->best.computed / (double)c->best.total : 100.0);
    cli_progress("calibrate", (double)done / (double)c->n_prompts, tail);
}

static int measure(calibration *c, const setting *s, measured *out) {
    tsk_session *session = NULL;
    size_t i;
    int status = open_session(c, s, &session);
    memset(out, 0, sizeof *out);
    out->setting = *s;
    for (i = 0; i < c->n_prompts && status == CLI_OK; i++) {
        status = run_prompt(c, session, i, out);
        if (status == CLI_OK) show_progress(c, i + 1);
        if (c->best.is_whole && out->computed > c->best.computed) break;
    }
    tsk_session_free(session);
    out->is_whole = i == c->n_prompts;
    return status;
}

static int try_setting(calibration *c, const setting *s, measured *out) {
    int status = measure(c, s, out);
    if (status != CLI_OK) return status;
    c->tried = (measured *)cli_reallocate(c->tried, c->n_tried + 1, sizeof *c->tried);
    c->tried[c->n_tried++] = *out;
    if (is_allowed(c, out) && out->computed < c->best.computed) c->best = *out;
    return CLI_OK;
}

/* ---- The search ------------------------------------------------------------------------------------------------- */

static int compare_floats(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Thresholds that tell this K's mean cosines apart, rising; at most N_QUANTILES. Returns how many. */
static int find_thresholds(const calibration *c, int32_t layer_k, float out[N_QUANTILES]) {
    float *sorted = (float *)cli_allocate(c->n_means, sizeof *sorted);
    size_t i;
    int n = 0;
    for (i = 0; i < c->n_means; i++) sorted[i] = c->means[i * (size_t)c->n_states + (size_t)(layer_k - 2)];
    qsort(sorted, c->n_means, sizeof *sorted, compare_floats);
    for (i = 0; i < N_QUANTILES; i++) {
        float at = sorted[(size_t)(quantiles[i] * (double)(c->n_means - 1))];
        float below = (float)(floor((double)at * 1e4 - 1) / 1e4); /* four digits */
        if (n == 0 || below > out[n - 1]) out[n++] = below;
    }
    free(sorted);
    return n;
}

/* A float as a person would write it. */
static double as_written(float value) {
    char digits[32];
    snprintf(digits, sizeof digits, "%.6g", (double)value);
    return strtod(digits, NULL);
}

/* The lowest threshold that keeps within the flips: fewer tokens skip, and fewer predictions flip, the higher it is.
   `refined`: steps of bisection between the quantiles around it. */
static int search_threshold(calibration *c, setting s, int refined) {
    float thresholds[N_QUANTILES];
    measured m;
    int low = -1, high, n, status = CLI_OK, i;
    float failed, passed;
    if (cli_given(c->settings, "skip-threshold")) return try_setting(c, &s, &m);
    high = n = find_thresholds(c, s.layer_k, thresholds);
    while (high - low > 1 && status == CLI_OK) {
        int middle = low + (high - low) / 2;
        s.threshold = thresholds[middle];
        status = try_setting(c, &s, &m);
        /* what computes more than the best is of no use at a higher threshold either */
        if (status == CLI_OK && !m.is_whole) high = middle;
        else if (is_allowed(c, &m)) high = middle;
        else low = middle;
    }
    if (!refined || low < 0 || high == n) return status;
    failed = thresholds[low];
    passed = thresholds[high];
    for (i = 0; i < FINE_STEPS && status == CLI_OK; i++) {
        s.threshold = (float)as_written((failed + passed) / 2); /* what is printed is what was tried */
        status = try_setting(c, &s, &m);
        if (status == CLI_OK && (is_allowed(c, &m) || !m.is_whole)) passed = s.threshold;
        else failed = s.threshold;
    }
    return status;
}

static setting first_setting(const calibration *c) {
    const tsk_generate_options *o = &c->settings->generate;
    setting s;
    s.layer_k = cli_layer_k(o, c->config);
    s.threshold = o->skip.threshold;
    s.outlier = cli_given(c->settings, "skip-outlier") ? o->skip.outlier : -1;
    s.reference = o->skip.reference;
    s.max_age = o->skip.max_age;
    return s;
}

/* Whether the layers below K alone do not already compute more than the best. */
static int is_worth_trying(const calibration *c, int32_t layer_k) {
    return (double)layer_k / c->config->n_layers < (double)c->best.computed / (double)c->best.total;
}

/* Smaller K first: each bounds from below what larger ones compute. */
static int search_layers(calibration *c) {
    int32_t layers = c->config->n_layers, k, eighth, last = 0;
    int status = CLI_OK;
    for (eighth = 0; eighth <= 6 && status == CLI_OK; eighth++) {
        setting s = first_setting(c);
        k = eighth ? layers * eighth / 8 : 2;
        if (cli_given(c->settings, "skip-layer-k")) k = eighth ? 0 : s.layer_k;
        if (k < 2 || k >= layers || k <= last || !is_worth_trying(c, k)) continue;
        last = s.layer_k = k;
        status = search_threshold(c, s, 0);
    }
    return status;
}

/* Around the best so far, one option at a time; what helps stays. */
static int search_details(calibration *c) {
    static const int32_t ages[] = {1, 2, 4, 8};
    static const float outliers[] = {0.5f, 0.7f, 0.9f};
    int status = CLI_OK;
    size_t i;
    setting s;
    if (c->best.setting.layer_k == 0) return CLI_OK;
    s = c->best.setting;
    s.reference = TSK_SKIP_LAST_COMPUTED;
    if (!cli_given(c->settings, "skip-reference")) status = search_threshold(c, s, 0);
    for (i = 0; i < sizeof ages / sizeof ages[0] && status == CLI_OK && !cli_given(c->settings, "skip-max-age"); i++) {
        s = c->best.setting;
        s.max_age = ages[i];
        status = search_threshold(c, s, 0);
    }
    for (i = 0; i < sizeof outliers / sizeof outliers[0] && status == CLI_OK && !cli_given(c->settings, "skip-outlier");
         i++) {
        s = c->best.setting;
        s.outlier = outliers[i];
        status = search_threshold(c, s, 0);
    }
    return status == CLI_OK ? search_threshold(c, c->best.setting, 1) : status;
}

/* TokenSkip off computes everything and flips nothing: where the search starts. A first run with states compared up to
   the largest K, and nobody skipped, tells what cosines there are. */
static int search(calibration *c) {
    setting s = first_setting(c);
    measured off;
    int32_t given_k = s.layer_k, largest = c->config->n_layers - 1;
    int status;
    if (c->config->n_layers < 3 || (cli_given(c->settings, "skip-layer-k") && given_k > largest))
        return cli_fail("TokenSkip needs a K from 2 to %d in a model of %d layers", (int)largest,
                        (int)c->config->n_layers);
    s.layer_k = cli_given(c->settings, "skip-layer-k") ? given_k
                : c->config->n_layers * 3 / 4 > 2      ? c->config->n_layers * 3 / 4
                                                       : 2;
    s.threshold = 2;
    c->n_states = s.layer_k - 1;
    c->keeps_means = 1;
    status = measure(c, &s, &off);
    c->keeps_means = 0;
    if (status != CLI_OK) return status;
    c->best = off;
    c->best.setting.layer_k = 0;
    if (!c->n_means) return CLI_OK; /* no token ever had a state to compare with */
    status = search_layers(c);
    return status == CLI_OK ? search_details(c) : status;
}

/* ---- Results ---------------------------------------------------------------------------------------------------- */

static void append_options(tsk_text *out, const setting *s) {
    cli_append(out, "--skip-layer-k %d", (int)s->layer_k);
    if (!s->layer_k) return;
    cli_append(out, " --skip-threshold %.6g --skip-outlier %.6g --skip-reference %s --skip-max-age %d",
               (double)s->threshold, (double)s->outlier,
               s->reference == TSK_SKIP_LAST_STEP ? "last-step" : "last-computed", (int)s->max_age);
}

static double share(const measured *m) { return m->total ? (double)m->computed / (double)m->total : 1; }

static void write_measured(tsk_json_writer *json, const measured *m) {
    const setting *s = &m->setting;
    cli_json_uint(json, "skip_layer_k", (uint64_t)s->layer_k);
    cli_json_double(json, "skip_threshold", as_written(s->threshold));
    cli_json_double(json, "skip_outlier", as_written(s->outlier));
    cli_json_string(json, "skip_reference", s->reference == TSK_SKIP_LAST_STEP ? "last-step" : "last-computed");
    cli_json_uint(json, "skip_max_age", (uint64_t)s->max_age);
    cli_json_uint(json, "token_layers_computed", m->computed);
    cli_json_uint(json, "token_layers_total", m->total);
    cli_json_uint(json, "flips", m->flips);
    cli_json_uint(json, "compared", m->compared);
    cli_json_double(json, "flip_rate", flip_rate(m));
}

static int print_json(const calibration *c) {
    tsk_text out = {0}, options = {0};
    tsk_json_writer json = {0};
    size_t i;
    int status;
    json.out = &out;
    append_options(&options, &c->best.setting);
    tsk_json_begin_object(&json);
    cli_json_string(&json, "options", options.data);
    cli_json_double(&json, "max_flips", as_written(c->settings->max_flips));
    cli_json_uint(&json, "prompts", c->n_prompts);
    write_measured(&json, &c->best);
    cli_json_double(&json, "share_computed", share(&c->best));
    tsk_json_write_key(&json, "tried");
    tsk_json_begin_array(&json);
    for (i = 0; i < c->n_tried; i++) {
        if (!c->tried[i].is_whole) continue;
        tsk_json_begin_object(&json);
        write_measured(&json, &c->tried[i]);
        tsk_json_end_object(&json);
    }
    tsk_json_end_array(&json);
    tsk_json_end_object(&json);
    status = cli_json_print(&json);
    tsk_text_free(&out);
    tsk_text_free(&options);
    return status;
}

static int print_plain(const calibration *c) {
    const measured *best = &c->best;
    tsk_text out = {0};
    int status;
    append_options(&out, &best->setting);
    cli_append(&out, "\n");
    if (!c->n_means) cli_append(&out, "no block took steps enough for a token to be skipped\n");
    else if (!best->setting.layer_k)
        cli_append(&out, "none of %zu settings computes less within a flip rate of %g\n", c->n_tried,
                   (double)c->settings->max_flips);
    else
        cli_append(&out,
                   "computes %.1f %% of the token-layers; %llu of %llu predictions flip (%.3f %%, allowed %g %%); %zu "
                   "prompts, %zu settings tried\n",
                   100 * share(best), (unsigned long long)best->flips, (unsigned long long)best->compared,
                   100 * flip_rate(best), 100 * (double)c->settings->max_flips, c->n_prompts, c->n_tried);
    status = cli_write(out.data, out.length);
    tsk_text_free(&out);
    return status;
}

/* ---- Command ---------------------------------------------------------------------------------------------------- */

static int check(const cli_settings *settings) {
    if (cli_given(settings, "skip-layer-k") && settings->generate.skip.layer_k < 2)
        return cli_usage_error("calibrate takes a --skip-layer-k from 2, not '%d': below it no states are compared",
                               (int)settings->generate.skip.layer_k);
    if (settings->generate.cache != TSK_CACHE_DUAL)
        return cli_usage_error("calibrate needs --cache dual: TokenSkip lives in its block steps");
    return cli_refuse_rows(settings, "calibrate");
}

static int encode_prompts(calibration *c) {
    const question_list *questions = c->questions;
    size_t i;
    int status = CLI_OK;
    c->prompts = (tsk_tokens *)cli_allocate(questions->count, sizeof *c->prompts);
    for (i = 0; i < questions->count && status == CLI_OK; i++) {
        char where[512];
        snprintf(where, sizeof where, "%s, line %zu", c->settings->data, questions->items[i].line);
        status = cli_encode_prompt(c->engine, c->settings, questions->items[i].prompt,
                                   questions->items[i].prompt_length, where, &c->prompts[i]);
        c->n_prompts++;
    }
    return status;
}

static int calibrate(calibration *c) {
    tsk_generate_options full = c->settings->generate;
    tsk_error error = {0};
    int status;
    c->config = tsk_model_get_config(c->engine->model);
    cli_make_plain(&full);
    full.on_step = on_full_step;
    full.user = c;
    status = encode_prompts(c);
    if (status == CLI_OK && tsk_session_create(c->engine->model, &full, &c->full, &error) != TSK_OK)
        status = cli_fail_with(&error, NULL);
    if (status == CLI_OK) status = search(c);
    cli_progress_clear();
    return status;
}

static void free_calibration(calibration *c) {
    size_t i;
    tsk_session_free(c->full);
    for (i = 0; i < c->n_prompts; i++) tsk_tokens_free(&c->prompts[i]);
    free(c->prompts);
    free(c->full_seen.ids);
    free(c->seen.ids);
    free(c->means);
    free(c->tried);
}

int cmd_calibrate(cli_settings *settings) {
    question_list questions = {0};
    cli_engine engine = {0};
    calibration c;
    int status = check(settings);
    if (status != CLI_OK) return status;
    cli_choose_states(&settings->generate);
    memset(&c, 0, sizeof c);
    c.settings = settings;
    c.engine = &engine;
    c.questions = &questions;
    cli_catch_interrupts();
    status = questions_load(&questions, settings->data, settings->limit ? settings->limit : DEFAULT_PROMPTS, 0);
    if (status == CLI_OK) status = cli_load_model(&engine, settings);
    if (status == CLI_OK) status = calibrate(&c);
    if (status == CLI_OK) status = settings->json ? print_json(&c) : print_plain(&c);
    free_calibration(&c);
    cli_engine_free(&engine);
    questions_free(&questions);
    return status;
}
