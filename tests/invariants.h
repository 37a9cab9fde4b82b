/* What holds on every backend, whatever the options: generation ends without masks, counts add up, TokenSkip that
   cannot skip equals the plain dual cache bit for bit, and neither tracing nor what a session did before changes a
   result. Of the rule ROWS: how many rows a pass has follows from what is known before it, and by schedule it commits
   what the plain dual cache does. */
#ifndef TSK_INVARIANTS_H
#define TSK_INVARIANTS_H

#include "golden.h"
#include "seeded.h"

#include <math.h>

enum { max_length = 128, max_passes = 160, max_confidences = 8192 };

/* ---- one run, with everything that its callbacks saw */

typedef enum chooser { CHOOSE_NOTHING, CHOOSE_ALL, CHOOSE_SOME, CHOOSE_LAST, CHOOSE_COUNT } chooser;

typedef struct run {
    tsk_generate_options options;
    int32_t prompt[max_length], n_prompt;
    int32_t generated[max_length];
    int has_generated;
    chooser choice;
    int stop_at, cancel_at;        /* pass after, or before, which the callback ends it; -1: none */

    tsk_status status;
    tsk_result result;             /* its pointers are replaced by copies in the arrays below */
    int32_t canvas[max_length];
    tsk_block_result blocks[max_length];
    int32_t active[max_passes], stable_masked[max_passes];
    int32_t asked, passes, commits_of_pass[max_passes], block_of_pass[max_passes], step_of_pass[max_passes],
        masks_of_pass[max_passes], active_of_pass[max_passes], rows_of_pass[max_passes];
    int32_t visible;               /* of the block: its passes see the positions below */
    int32_t further_of_pass[max_passes]; /* rows that refresh_rows may add */
    int is_refresh[max_passes];
    float confidences[max_confidences];
    int32_t n_confidences;
    int32_t n_skipped, n_skipped_masked, wrong;
    int32_t seen_canvas[max_length];
    int32_t mask;
} run;

static void choose(void *user, const tsk_selection *s) {
    run *r = (run *)user;
    int32_t i;
    for (i = 0; i < s->n; i++) {
        const tsk_candidate *c = &s->candidates[i];
        r->wrong += s->commit[i] != 0 || c->id == r->mask || (i && c->position <= c[-1].position) ||
                    !(c->confidence >= 0 && c->confidence <= 1.0001f);
        if (r->choice == CHOOSE_ALL) s->commit[i] = 1;
        if (r->choice == CHOOSE_SOME) s->commit[i] = (uint8_t)(c->position % 3 == 0 ? 200 : 0);
        if (r->choice == CHOOSE_LAST) s->commit[i] = i == s->n - 1;
    }
}

static tsk_skip_rule rule_of(const tsk_generate_options *o) {
    if (o->skip.rule != TSK_SKIP_RULE_AUTO) return o->skip.rule;
    if (o->skip.layer_k == TSK_AUTO) return o->cache == TSK_CACHE_DUAL ? TSK_SKIP_RULE_ROWS : TSK_SKIP_RULE_OFF;
    return o->skip.layer_k > 0 ? TSK_SKIP_RULE_STATES : TSK_SKIP_RULE_OFF;
}

/* How many positions the passes of a block see that ends before `end`. */
static int32_t visible_of(const run *r, int32_t end) {
    int32_t length = r->n_prompt + r->options.gen_length, window = r->options.refresh_window, fixed = length;
    if (!window || window >= length - end) return length;
    while (fixed > end + window && r->seen_canvas[fixed - 1] == r->mask) fixed--;
    return fixed;
}

/* (c) active + stable = block tokens; what was committed was masked, and nothing else changed. */
static int watch(void *user, const tsk_step *step) {
    run *r = (run *)user;
    int32_t i, active = 0, stable_masked = 0, masks = 0, commits = 0, before = 0;
    int by_rows = rule_of(&r->options) == TSK_SKIP_RULE_ROWS;
    if (step->block_step == 0) r->visible = visible_of(r, step->positions[step->n_positions - 1] + 1);
    for (i = 0; i < step->n_positions; i++) {
        int32_t at = step->positions[i], id = step->canvas[at];
        int was_masked = r->seen_canvas[at] == r->mask;
        active += step->active[i] != 0;
        stable_masked += !step->active[i] && was_masked;
        masks += id == r->mask;
        commits += step->committed[i] != 0;
        before += was_masked;
        r->wrong += step->committed[i] && !step->active[i] && by_rows;
        r->wrong +=
            step->committed[i] ? !was_masked || id != step->predictions[i] || id == r->mask : id != r->seen_canvas[at];
        r->wrong += !was_masked && (step->confidences[i] != 1.0f || step->predictions[i] != id);
        r->seen_canvas[at] = id;
        if (r->n_confidences < max_confidences) r->confidences[r->n_confidences++] = step->confidences[i];
    }
    r->wrong += memcmp(r->seen_canvas, step->canvas, (size_t)step->canvas_length * sizeof *step->canvas) != 0;
    r->wrong += step->pass != r->passes || step->n_active != active || step->n_stable_masked != stable_masked ||
                step->masks_left != masks;
    r->wrong += commits == 0 || step->canvas_length != r->n_prompt + r->options.gen_length ||
                step->prompt_length != r->n_prompt;
    /* The first block step after a refresh has nothing to compare with, unless it keeps the refresh's states. */
    if (step->block_step == 0 ||
        (step->block_step == 1 && r->is_refresh[r->passes - 1] && !r->options.skip.warm_start && !by_rows))
        r->wrong += active != step->n_positions;
    r->wrong += !by_rows && !r->options.skip.masked && stable_masked != 0;
    r->n_skipped += step->n_positions - active;
    r->n_skipped_masked += stable_masked;
    r->commits_of_pass[r->passes] = commits;
    r->block_of_pass[r->passes] = step->block;
    r->step_of_pass[r->passes] = step->block_step;
    r->is_refresh[r->passes] = step->is_refresh;
    r->masks_of_pass[r->passes] = before;
    r->active_of_pass[r->passes] = active;
    r->rows_of_pass[r->passes] = step->n_rows;
    r->further_of_pass[r->passes] = r->visible - step->n_positions;
    if (r->options.refresh_rows < r->further_of_pass[r->passes])
        r->further_of_pass[r->passes] = r->options.refresh_rows;
    return r->passes++ == r->stop_at;
}

static int ask(void *user) {
    run *r = (run *)user;
    return r->asked++ == r->cancel_at;
}

static void new_run(run *r, const tsk_model_config *config) {
    memset(r, 0, sizeof *r);
    r->options = tsk_generate_options_default();
    r->options.cache = TSK_CACHE_DUAL; /* the default of the models here, which some checks read */
    r->options.gen_length = 16;
    r->options.block_length = 8;
    r->options.eos_stop = 0;
    r->stop_at = r->cancel_at = -1;
    r->mask = config->mask_token_id;
}

static void random_prompt(run *r, const tsk_model_config *config, int32_t n) {
    int32_t i;
    r->n_prompt = n;
    for (i = 0; i < n; i++) r->prompt[i] = random_below(config->mask_token_id);
}

/* The result outlives its session in the run's own arrays. */
static void keep_result(run *r) {
    size_t length = (size_t)(r->result.n_prompt + r->result.n_tokens);
    memcpy(r->canvas, r->result.canvas, length * sizeof *r->canvas);
    memcpy(r->blocks, r->result.blocks, (size_t)r->result.n_blocks * sizeof *r->blocks);
    memcpy(r->active, r->result.active, (size_t)r->result.n_block_steps * sizeof *r->active);
    memcpy(r->stable_masked, r->result.stable_masked, (size_t)r->result.n_block_steps * sizeof *r->stable_masked);
    r->wrong += r->result.tokens != r->result.canvas + r->result.n_prompt || r->result.n_prompt != r->n_prompt ||
                r->result.n_tokens != r->options.gen_length;
    r->result.canvas = r->canvas;
    r->result.tokens = r->canvas + r->n_prompt;
    r->result.blocks = r->blocks;
    r->result.active = r->active;
    r->result.stable_masked = r->stable_masked;
}

static void prepare(run *r) {
    int32_t i;
    r->options.user = r;
    r->options.on_step = watch;
    if (r->cancel_at >= 0) r->options.cancel = ask;
    r->asked = r->passes = r->n_confidences = r->n_skipped = r->n_skipped_masked = r->wrong = 0;
    memcpy(r->seen_canvas, r->prompt, (size_t)r->n_prompt * sizeof *r->prompt);
    for (i = 0; i < r->options.gen_length; i++)
        r->seen_canvas[r->n_prompt + i] = r->has_generated ? r->generated[i] : r->mask;
}

/* In a session of its own. */
static void generate(tsk_model *model, run *r) {
    tsk_session *session = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    prepare(r);
    r->status = tsk_session_create(model, &r->options, &session, &error);
    if (r->status == TSK_OK)
        r->status =
            tsk_generate(session, r->prompt, r->n_prompt, r->has_generated ? r->generated : NULL, &r->result, &error);
    if (!test_check(r->status == TSK_OK, __FILE__, __LINE__, "%s", error.message)) return;
    keep_result(r);
    tsk_session_free(session);
}

/* Tokens, and confidences to the last bit. */
static int same_run(const run *a, const run *b) {
    size_t length = (size_t)(a->n_prompt + a->options.gen_length);
    return a->n_prompt == b->n_prompt && a->options.gen_length == b->options.gen_length &&
           memcmp(a->canvas, b->canvas, length * sizeof *a->canvas) == 0 && a->passes == b->passes &&
           a->result.nfe == b->result.nfe && a->n_confidences == b->n_confidences &&
           memcmp(a->confidences, b->confidences, (size_t)a->n_confidences * sizeof *a->confidences) == 0;
}

/* ---- what every finished run satisfies */

/* The schedule's number at each step of each block; the sums over a block are its masks. */
static void check_quotas(const run *r) {
    const tsk_generate_options *o = &r->options;
    int32_t steps = (o->steps == TSK_AUTO ? o->gen_length : o->steps) / (o->gen_length / o->block_length), i,
            wanted[max_length], wrong = 0;
    int32_t left = 0;
    for (i = 0; i < r->passes; i++) {
        int32_t step = r->step_of_pass[i], quota;
        if (step == 0) {
            wrong += left != 0;
            left = r->masks_of_pass[i];
            tsk_num_transfer_tokens(left, steps, wanted);
        }
        quota = step < steps ? wanted[step] : 1;
        wrong += r->commits_of_pass[i] != (quota < 1 ? 1 : quota);
        left -= r->commits_of_pass[i];
    }
    CHECK_INT(wrong, 0);
    CHECK_INT(left, 0);
}

/* How many rows of the block a step of the rule ROWS runs is known before it: those that the pass before committed, and
   of the masked ones as many as the schedule's quota and the margin, or all. */
static void check_row_counts(const run *r) {
    const tsk_generate_options *o = &r->options;
    int32_t steps = (o->steps == TSK_AUTO ? o->gen_length : o->steps) / (o->gen_length / o->block_length), i,
            wanted[max_length], wrong = 0, n_positions = 0;
    for (i = 0; i < r->passes; i++) {
        int32_t step = r->step_of_pass[i], quota, most = r->masks_of_pass[i], changed;
        if (step == 0) n_positions = r->active_of_pass[i];
        if (step == 0) tsk_num_transfer_tokens(most, steps, wanted);
        if (step == 0 || (o->skip.full_every && step % o->skip.full_every == 0)) {
            wrong += r->active_of_pass[i] != n_positions;
            continue;
        }
        changed = r->commits_of_pass[i - 1];
        quota = step < steps && wanted[step] > 1 ? wanted[step] : 1;
        if (o->transfer == TSK_TRANSFER_SCHEDULE && !o->on_select && o->skip.rows_margin < most - quota)
            most = quota + o->skip.rows_margin;
        wrong += r->active_of_pass[i] < changed + most;
        wrong += !o->skip.rows_ahead && r->active_of_pass[i] > changed + most;
        wrong += r->rows_of_pass[i] != r->active_of_pass[i] + r->further_of_pass[i];
    }
    CHECK_INT(wrong, 0);
}

/* Layers below K run for all of the block's rows, the others for the active ones; by ROWS all run for the active ones
   only. refresh_rows adds rows of its own, to block starts that are NEAR too. An infilling block has as many rows as
   the prompt has masks. */
static void check_layer_counts(const run *r, const tsk_model_config *config, int32_t k) {
    uint64_t layers = (uint64_t)config->n_layers, lower = (uint64_t)k < layers ? (uint64_t)k : layers, computed = 0,
             total = 0, refreshed = 0, most_refreshed = 0, ran = 0;
    int32_t i, n = 0, infilled = 0;
    if (rule_of(&r->options) == TSK_SKIP_RULE_ROWS) lower = 0;
    for (i = 0; i < r->n_prompt; i++) infilled += r->prompt[i] == r->mask;
    for (i = 0; i < r->passes; i++) {
        uint64_t rows = (uint64_t)(infilled && r->block_of_pass[i] == 0 ? infilled : r->options.block_length);
        ran += (uint64_t)r->rows_of_pass[i];
        most_refreshed += (uint64_t)r->further_of_pass[i];
        if (r->is_refresh[i]) continue;
        total += rows * layers;
        computed += rows * lower + (uint64_t)r->active[n++] * (layers - lower);
        refreshed += (uint64_t)r->further_of_pass[i];
    }
    CHECK_INT(r->result.n_block_steps, n);
    CHECK(r->result.token_layers_total == total);
    CHECK(r->result.token_layers_computed == computed);
    CHECK(r->options.refresh == TSK_REFRESH_NEAR
              ? r->result.refreshed_rows >= refreshed && r->result.refreshed_rows <= most_refreshed
              : r->result.refreshed_rows == refreshed);
    CHECK(r->result.rows == ran);
}

static void check_finished(const run *r, const tsk_model_config *config) {
    const tsk_result *result = &r->result;
    int32_t i, masks = 0, nfe = 0, residual = 0, length = r->n_prompt + r->options.gen_length,
               k = r->options.skip.layer_k;
    int is_dual = r->options.cache == TSK_CACHE_DUAL, changed = 0;
    for (i = 0; i < length; i++) masks += r->canvas[i] == r->mask;
    CHECK_INT(masks, 0);
    CHECK_INT(result->mask_residual, 0);
    for (i = 0; i < r->n_prompt; i++) changed += r->prompt[i] != r->mask && r->canvas[i] != r->prompt[i];
    for (i = 0; r->has_generated && i < r->options.gen_length; i++)
        changed += r->generated[i] != r->mask && result->tokens[i] != r->generated[i];
    CHECK_INT(changed, 0); /* what was given stays */
    CHECK_INT(r->wrong, 0);
    CHECK_INT(result->nfe, r->passes);
    CHECK_INT(result->refreshes + result->block_steps, r->passes);
    for (i = 0; i < result->n_blocks; i++) {
        nfe += result->blocks[i].nfe;
        residual += result->blocks[i].mask_residual;
    }
    CHECK_INT(nfe, r->passes);
    CHECK_INT(residual, 0);
    CHECK(result->finish_reason == TSK_FINISH_LENGTH ||
          (result->finish_reason == TSK_FINISH_EOS && r->options.eos_stop));
    for (i = 0; i < result->n_before_end; i++) CHECK(result->tokens[i] != config->eos_token_id);
    CHECK(i == result->n_tokens || result->tokens[i] == config->eos_token_id);
    CHECK(r->options.cache != TSK_CACHE_NONE || result->block_steps == 0);
    if (k == TSK_AUTO && r->options.skip.rule == TSK_SKIP_RULE_OFF) k = 0;
    if (k == TSK_AUTO) k = is_dual ? (config->n_layers / 4 > 2 ? config->n_layers / 4 : 2) : 0;
    if (is_dual) check_layer_counts(r, config, k);
    else CHECK_INT(result->n_block_steps, 0);
    if (rule_of(&r->options) == TSK_SKIP_RULE_OFF) CHECK_INT(r->n_skipped, 0);
    if (rule_of(&r->options) == TSK_SKIP_RULE_ROWS) check_row_counts(r);
    else if (k < 2 || k >= config->n_layers) CHECK_INT(r->n_skipped, 0);
    if (r->options.transfer == TSK_TRANSFER_SCHEDULE && !r->options.on_select) check_quotas(r);
}

/* ---- (b) any options at all */

static void random_sizes(run *r) {
    int32_t n_blocks = 1 + random_below(4);
    r->options.block_length = 1 + random_below(12);
    r->options.gen_length = n_blocks * r->options.block_length;
    r->options.steps = random_below(2) ? TSK_AUTO : n_blocks * (1 + random_below(10));
}

static void random_skip(run *r) {
    static const float thresholds[] = {-2, -1, 0, 0.5f, 0.8f, 0.95f, 0.999f, 1, 2},
                       outliers[] = {-2, -1, 0, 0.7f, 0.95f, 2};
    static const tsk_skip_rule rules[] = {TSK_SKIP_RULE_AUTO, TSK_SKIP_RULE_AUTO, TSK_SKIP_RULE_STATES,
                                          TSK_SKIP_RULE_OFF,  TSK_SKIP_RULE_ROWS, TSK_SKIP_RULE_ROWS};
    tsk_generate_options *o = &r->options;
    o->skip.rule = rules[random_below(6)];
    o->skip.rows_margin = random_below(3) ? random_below(6) : random_below(2) ? 0 : INT32_MAX;
    o->skip.rows_ahead = random_below(2) ? 0 : random_below(4);
    o->skip.layer_k = random_below(8) - 1;
    if (o->skip.rule == TSK_SKIP_RULE_STATES && o->skip.layer_k == 0) o->skip.layer_k = 3;
    o->skip.threshold = random_pick(thresholds, 9);
    o->skip.outlier = random_pick(outliers, 6);
    o->skip.policy = random_below(2) ? TSK_SKIP_REUSE : TSK_SKIP_EXIT;
    o->skip.masked = random_below(2);
    o->skip.reference = random_below(2) ? TSK_SKIP_LAST_STEP : TSK_SKIP_LAST_COMPUTED;
    o->skip.max_age = random_below(3);
    o->skip.full_every = random_below(4);
    o->skip.warm_start = random_below(2);
}

/* How blocks of cache DUAL start. */
static void random_starts(run *r) {
    tsk_generate_options *o = &r->options;
    o->refresh = (tsk_refresh)(random_below(3) - 1);
    o->refresh_near = random_below(4) ? random_below(14) : INT32_MAX;
    o->refresh_window = random_below(2) ? 0 : random_below(4) ? random_below(14) : INT32_MAX;
    if (o->refresh_window && o->refresh != TSK_REFRESH_NEAR) o->refresh_every = TSK_AUTO;
    if (random_below(2)) o->refresh_rows = random_below(30);
    o->skip.refresh = o->refresh != TSK_REFRESH_NEAR && !o->refresh_window && o->skip.layer_k != 0 &&
                      o->skip.rule != TSK_SKIP_RULE_OFF && random_below(2);
}

static void random_options(run *r, const tsk_model_config *config) {
    static const float thresholds[] = {-1, 0, 0.2f, 0.5f, 0.9f, 1, 2}, factors[] = {0.01f, 0.5f, 1, 3, 100},
                       temperatures[] = {0, 0, 0.5f, 2}, frechets[] = {0, 0.02f, 0.25f, 1},
                       bounds[] = {0, 0.3f, 2, 100}, leaps[] = {-1, 0.05f, 0.3f, 0.75f};
    tsk_generate_options *o = &r->options;
    int32_t i;
    random_sizes(r);
    o->cache = random_below(3) ? TSK_CACHE_DUAL : random_below(2) ? TSK_CACHE_PREFIX : TSK_CACHE_NONE;
    o->transfer = random_below(3) == 0 ? TSK_TRANSFER_SCHEDULE
                                       : (tsk_transfer)(TSK_TRANSFER_THRESHOLD + random_below(TSK_TRANSFER_LEAP));
    o->threshold = random_pick(thresholds, 7);
    o->factor = random_pick(factors, 5);
    o->frechet = random_pick(frechets, 4);
    o->entropy_bound = random_pick(bounds, 4);
    o->local_leap = random_pick(leaps, 4);
    o->local_radius = random_below(6);
    o->temperature = random_pick(temperatures, 4);
    o->remasking = random_below(3) ? TSK_REMASKING_LOW_CONFIDENCE : TSK_REMASKING_RANDOM;
    o->seed = (uint64_t)random_below(1000000) << 20;
    o->eos_stop = random_below(2);
    if (o->cache != TSK_CACHE_NONE && random_below(2)) o->refresh_every = random_below(5);
    if (o->cache == TSK_CACHE_DUAL) random_skip(r);
    if (o->cache == TSK_CACHE_DUAL) random_starts(r);
    random_prompt(r, config, random_below(20));
    for (i = 0; i < r->n_prompt && random_below(3) == 0; i++)
        if (random_below(3) == 0) r->prompt[i] = r->mask;
    r->has_generated = random_below(3) == 0;
    for (i = 0; i < o->gen_length; i++)
        r->generated[i] = random_below(4) ? r->mask : random_below(config->mask_token_id);
    if (random_below(3) == 0) {
        o->on_select = choose;
        r->choice = (chooser)random_below(CHOOSE_COUNT);
    }
}

static void test_random_options(tsk_model *model, int32_t trials) {
    const tsk_model_config *config = tsk_model_get_config(model);
    static run r;
    int32_t i, skipped = 0, skipped_masked = 0, stopped = 0, failed_before = test_failed;
    for (i = 0; i < trials && test_failed == failed_before; i++) {
        new_run(&r, config);
        random_options(&r, config);
        generate(model, &r);
        if (r.status == TSK_OK) check_finished(&r, config);
        skipped += r.n_skipped;
        skipped_masked += r.n_skipped_masked;
        stopped += r.result.finish_reason == TSK_FINISH_EOS;
    }
    test_check(test_failed == failed_before, __FILE__, __LINE__, "first in trial %d of %s", (int)i - 1,
               tsk_model_device_name(model));
    CHECK(trials < 100 || (skipped > 0 && skipped_masked > 0 && stopped > 0)); /* else these trials tried nothing */
}

/* Everything is stable from the second block step on, masks included, and still it ends. */
static void test_all_stable(tsk_model *model) {
    const tsk_model_config *config = tsk_model_get_config(model);
    static run r;
    int32_t policy, warm, temperature;
    for (policy = 0; policy < 2; policy++)
        for (warm = 0; warm < 2; warm++)
            for (temperature = 0; temperature < 2; temperature++) {
                new_run(&r, config);
                random_prompt(&r, config, 9);
                r.options.transfer = TSK_TRANSFER_THRESHOLD;
                r.options.threshold = 2;
                r.options.temperature = (float)temperature;
                r.options.skip.layer_k = 2;
                r.options.skip.masked = 1;
                r.options.skip.threshold = r.options.skip.outlier = -2;
                r.options.skip.policy = policy ? TSK_SKIP_EXIT : TSK_SKIP_REUSE;
                r.options.skip.warm_start = warm;
                generate(model, &r);
                check_finished(&r, config);
                CHECK_INT(r.result.nfe, 16); /* nothing reaches the threshold: one token a pass */
                CHECK(r.n_skipped > 0 && r.n_skipped_masked > 0);
                CHECK_INT(r.result.n_block_steps, 14);
                /* All but the token committed a pass ago, whose upper layers ran with the mask. */
                CHECK_INT(r.active[5], 1);
            }
}

/* ---- (a) TokenSkip that cannot skip is the plain dual cache */

static void exact_case(tsk_model *model, const run *plain, int32_t k, float threshold, int variant) {
    static run r;
    r = *plain;
    r.options.skip.layer_k = k;
    r.options.skip.threshold = threshold;
    r.options.skip.outlier = -2;
    r.options.skip.masked = variant & 1;
    r.options.skip.policy = variant & 2 ? TSK_SKIP_EXIT : TSK_SKIP_REUSE;
    r.options.skip.reference = variant & 4 ? TSK_SKIP_LAST_COMPUTED : TSK_SKIP_LAST_STEP;
    r.options.skip.warm_start = variant >> 3 & 1;
    r.options.skip.refresh = variant >> 4 & 1;
    generate(model, &r);
    test_check(same_run(&r, plain), __FILE__, __LINE__, "K %d, skip_threshold %g, variant %d differs from plain dual",
               (int)k, (double)threshold, variant);
    CHECK_INT(r.n_skipped, 0);
    CHECK_INT(r.wrong, 0);
    CHECK_INT(r.result.token_layers_computed, r.result.token_layers_total);
}

static void test_exact(tsk_model *model) {
    const tsk_model_config *config = tsk_model_get_config(model);
    static run plain;
    int32_t trial, k;
    for (trial = 0; trial < 4; trial++) {
        new_run(&plain, config);
        random_prompt(&plain, config, 5 + 7 * trial);
        plain.options.skip.layer_k = 0;
        plain.options.transfer = trial % 2 ? TSK_TRANSFER_THRESHOLD : TSK_TRANSFER_SCHEDULE;
        plain.options.threshold = 0.4f;
        plain.options.temperature = trial == 3 ? 0.7f : 0.0f;
        if (trial == 2) plain.prompt[3] = plain.prompt[4] = plain.prompt[11] = plain.mask;
        generate(model, &plain);
        check_finished(&plain, config);
        for (k = 1; k < config->n_layers; k++) exact_case(model, &plain, k, 1.0f, (int)(trial * 11 + k * 5) % 32);
        for (k = trial; k < 32; k += 4) exact_case(model, &plain, 2, 1.0f, (int)k);
        exact_case(model, &plain, 1, -2.0f, 1);
        exact_case(model, &plain, config->n_layers, -2.0f, 1);
        exact_case(model, &plain, config->n_layers + 3, -2.0f, 9);
        exact_case(model, &plain, 1000, 0.5f, 31);
        /* a block of two passes: its one block step has no states to compare with */
        plain.options.block_length = 2;
        plain.options.steps = TSK_AUTO;
        generate(model, &plain);
        exact_case(model, &plain, 2, -2.0f, 1);
    }
}

/* ---- the rule ROWS, and block starts made of rows, that leave nothing out */

/* Plain dual, by each transfer rule, with temperature and with random confidences. */
static void plain_options(run *r, const tsk_model_config *config, int32_t trial) {
    new_run(r, config);
    random_prompt(r, config, 5 + 4 * trial);
    r->options.gen_length = 24;
    r->options.steps = trial % 2 ? TSK_AUTO : 12;
    r->options.skip.rule = TSK_SKIP_RULE_OFF;
    r->options.transfer = (tsk_transfer)(trial % 3);
    r->options.threshold = 0.4f;
    r->options.temperature = trial % 4 == 3 ? 0.7f : 0.0f;
    r->options.remasking = trial == 6 ? TSK_REMASKING_RANDOM : TSK_REMASKING_LOW_CONFIDENCE;
    if (trial % 3 == 2) r->prompt[3] = r->prompt[4] = r->prompt[9] = r->mask;
}

static void check_same(tsk_model *model, const run *expected, const tsk_generate_options *o, int32_t trial,
                       const char *what) {
    static run r;
    r = *expected;
    r.options = *o;
    generate(model, &r);
    check_finished(&r, tsk_model_get_config(model));
    test_check(same_run(&r, expected), __FILE__, __LINE__, "trial %d: %s", (int)trial, what);
}

static void test_rows_exact(tsk_model *model) {
    const tsk_model_config *config = tsk_model_get_config(model);
    static run plain;
    tsk_generate_options o;
    int32_t trial;
    for (trial = 0; trial < 8; trial++) {
        plain_options(&plain, config, trial);
        generate(model, &plain);
        check_finished(&plain, config);
        o = plain.options;
        o.skip.rule = TSK_SKIP_RULE_ROWS, o.skip.rows_margin = 0, o.skip.full_every = 1;
        check_same(model, &plain, &o, trial, "ROWS that runs all in every step differs from plain dual");
        o = plain.options;
        o.refresh = TSK_REFRESH_NEAR, o.refresh_near = INT32_MAX, o.refresh_every = 1;
        check_same(model, &plain, &o, trial, "NEAR over all at every start differs from plain dual");
        o.refresh_near = 0; /* (a start over all asks for nothing near) */
        o.refresh_window = plain.n_prompt + 24;
        check_same(model, &plain, &o, trial, "NEAR over all with a window over all differs from plain dual");
        o = plain.options;
        o.refresh_window = trial % 3 == 2 ? plain.n_prompt + 24 : 16; /* (the first block may be in the prompt) */
        check_same(model, &plain, &o, trial, "a window to the end differs from plain dual");
        o.skip.rule = TSK_SKIP_RULE_ROWS, o.skip.rows_margin = 0, o.skip.full_every = 1;
        o.refresh = TSK_REFRESH_NEAR, o.refresh_every = 1;
        check_same(model, &plain, &o, trial, "ROWS and NEAR that leave nothing out differ from plain dual");
    }
}

/* The schedule's choice as a rule of the host's: of such a rule nothing is known before, so that all masked ones
   run. */
static void choose_by_schedule(void *user, const tsk_selection *s) {
    tsk_transfer_rule rule;
    (void)user;
    memset(&rule, 0, sizeof rule);
    rule.transfer = TSK_TRANSFER_SCHEDULE;
    rule.quota = s->quota;
    tsk_select(&rule, s->n, s->candidates, s->commit);
}

static int same_commits(const run *a, const run *b) {
    return a->passes == b->passes &&
           memcmp(a->commits_of_pass, b->commits_of_pass, (size_t)a->passes * sizeof *a->commits_of_pass) == 0;
}

/* What does and what does not depend on the margin: a margin of a block, and by other rules than the schedule any
   margin, leaves out committed tokens only. */
static void test_rows_margins(tsk_model *model) {
    static const int32_t margins[] = {0, 1, 4, 7, 1000};
    const tsk_model_config *config = tsk_model_get_config(model);
    static run plain, first, r;
    int32_t trial, differ = 0;
    size_t i;
    for (trial = 0; trial < 8; trial++) {
        int by_schedule;
        plain_options(&plain, config, trial);
        generate(model, &plain);
        by_schedule = plain.options.transfer == TSK_TRANSFER_SCHEDULE;
        first = plain;
        first.options.skip.rule = TSK_SKIP_RULE_ROWS;
        first.options.skip.rows_margin = INT32_MAX;
        if (trial > 3) first.options.refresh = TSK_REFRESH_NEAR, first.options.refresh_window = trial;
        generate(model, &first);
        check_finished(&first, config);
        if (by_schedule) CHECK(same_commits(&plain, &first));
        for (i = 0; i < sizeof margins / sizeof margins[0]; i++) {
            r = first;
            r.options.skip.rows_margin = margins[i];
            generate(model, &r);
            check_finished(&r, config);
            if (!by_schedule || margins[i] >= r.options.block_length)
                test_check(same_run(&first, &r), __FILE__, __LINE__, "trial %d: margin %d differs from a larger one",
                           (int)trial, (int)margins[i]);
            else differ += !same_run(&first, &r);
            if (by_schedule) CHECK(same_commits(&plain, &r));
            CHECK(r.result.rows <= first.result.rows);
        }
        if (!by_schedule) continue;
        r = first;
        r.options.on_select = choose_by_schedule;
        generate(model, &r);
        test_check(same_run(&first, &r), __FILE__, __LINE__, "trial %d: the margin of a block differs from no margin",
                   (int)trial);
    }
    CHECK(differ > 0);
}

/* The comparison above can fail: a looser threshold does change something. */
static void test_skipping_shows(tsk_model *model) {
    const tsk_model_config *config = tsk_model_get_config(model);
    static run plain, skipping;
    new_run(&plain, config);
    random_prompt(&plain, config, 8);
    plain.options.transfer = TSK_TRANSFER_SCHEDULE;
    plain.options.skip.layer_k = 0;
    generate(model, &plain);
    skipping = plain;
    skipping.options.skip.layer_k = 2;
    skipping.options.skip.masked = 1;
    skipping.options.skip.threshold = skipping.options.skip.outlier = -2;
    generate(model, &skipping);
    CHECK(!same_run(&plain, &skipping));
    CHECK(skipping.result.token_layers_computed < skipping.result.token_layers_total);
}

/* ---- (d) tracing */

/* Trials of what must not depend on how it is run: all caches, TokenSkip, its refresh, temperature, rows. */
static void traced_options(run *r, const tsk_model_config *config, int32_t trial) {
    new_run(r, config);
    random_prompt(r, config, 6 + 9 * trial);
    r->options.cache = trial == 4 ? TSK_CACHE_PREFIX : trial == 5 ? TSK_CACHE_NONE : TSK_CACHE_DUAL;
    r->options.skip.layer_k = r->options.cache == TSK_CACHE_DUAL ? 2 : 0;
    r->options.skip.masked = trial & 1;
    r->options.skip.threshold = 0.9f;
    r->options.skip.refresh = trial == 3;
    r->options.threshold = 0.5f;
    r->options.temperature = trial == 2 ? 1.0f : 0.0f;
    if (trial < 6) return;
    r->n_prompt = 7 * (trial - 5);
    r->options.gen_length = 24;
    r->options.transfer = trial == 8 ? TSK_TRANSFER_THRESHOLD : TSK_TRANSFER_SCHEDULE;
    r->options.skip.rule = TSK_SKIP_RULE_ROWS;
    r->options.skip.rows_margin = trial - 6;
    r->options.skip.rows_ahead = trial % 2;
    if (trial == 6) return;
    r->options.refresh = TSK_REFRESH_NEAR;
    r->options.refresh_near = 3;
    r->options.refresh_window = 5 * (trial - 7);
    r->options.refresh_rows = trial == 9 ? 4 : 0;
}
enum { n_traced = 10 };

static void ignore_record(void *user, const tsk_trace_record *record) {
    (void)record;
    ++*(int *)user;
}

static void generate_traced(tsk_model *model, run *r) {
    tsk_trace_options tracing = tsk_trace_options_default();
    tsk_session *session = NULL;
    int records = 0;
    tracing.on_record = ignore_record;
    tracing.user = &records;
    tracing.values = 1;
    prepare(r);
    CHECK_INT(tsk_session_create(model, &r->options, &session, NULL), TSK_OK);
    CHECK_INT(tsk_session_trace(session, &tracing, NULL), TSK_OK);
    CHECK_INT(tsk_generate(session, r->prompt, r->n_prompt, r->has_generated ? r->generated : NULL, &r->result, NULL),
              TSK_OK);
    keep_result(r);
    tsk_session_free(session);
    CHECK(records > 0);
}

/* ---- sessions */

static void check_cancelled(const run *r, const run *whole, int32_t passes) {
    int32_t i, masks = 0, sum = 0;
    CHECK_INT(r->result.finish_reason, TSK_FINISH_CANCELLED);
    CHECK_INT(r->result.nfe, passes);
    CHECK_INT(r->passes, passes);
    CHECK_INT(r->wrong, 0);
    for (i = 0; i < r->n_prompt + r->options.gen_length; i++) {
        masks += r->canvas[i] == r->mask;
        CHECK(r->canvas[i] == r->mask || r->canvas[i] == whole->canvas[i]); /* what is committed stays */
    }
    CHECK_INT(r->result.mask_residual, masks);
    CHECK_INT(masks, 16 - passes); /* one token a pass */
    for (i = 0; i < r->result.n_blocks; i++) sum += r->result.blocks[i].nfe;
    CHECK_INT(sum, passes);
}

static void test_cancel(tsk_model *model) {
    const tsk_model_config *config = tsk_model_get_config(model);
    static run whole, cut;
    int32_t pass;
    new_run(&whole, config);
    random_prompt(&whole, config, 7);
    whole.options.transfer = TSK_TRANSFER_SCHEDULE;
    generate(model, &whole);
    CHECK_INT(whole.result.nfe, 16);
    for (pass = 0; pass < 16; pass++) {
        cut = whole;
        cut.cancel_at = (int)pass; /* asked before the pass */
        generate(model, &cut);
        check_cancelled(&cut, &whole, pass);
    }
    for (pass = 0; pass < 15; pass++) {
        cut = whole;
        cut.stop_at = (int)pass; /* told after it */
        generate(model, &cut);
        check_cancelled(&cut, &whole, pass + 1);
    }
    cut = whole;
    cut.stop_at = 15; /* the last pass leaves nothing to end */
    generate(model, &cut);
    CHECK_INT(cut.result.finish_reason, TSK_FINISH_LENGTH);
    CHECK(same_run(&cut, &whole));
}

/* One session through many generations, of all lengths and with logits in between, beside fresh ones. */
static void test_reuse(tsk_model *model, int by_rows) {
    const tsk_model_config *config = tsk_model_get_config(model);
    static run fresh, again;
    static float logits[128 * 2];
    tsk_session *session = NULL;
    int32_t round, i;
    new_run(&again, config);
    again.options.skip.layer_k = 2;
    again.options.skip.masked = 1;
    again.options.skip.threshold = 0.9f;
    again.options.skip.warm_start = 1;
    again.options.threshold = 0.6f;
    if (by_rows) {
        again.options.skip.rule = TSK_SKIP_RULE_ROWS, again.options.skip.rows_margin = 0;
        again.options.transfer = TSK_TRANSFER_SCHEDULE;
        again.options.refresh = TSK_REFRESH_NEAR, again.options.refresh_near = 2, again.options.refresh_window = 4;
    }
    prepare(&again);
    CHECK_INT(tsk_session_create(model, &again.options, &session, NULL), TSK_OK);
    for (round = 0; round < 15; round++) {
        random_prompt(&again, config, random_below(60));
        if (round % 3 == 1)
            for (i = 0; i < again.n_prompt; i += 2) again.prompt[i] = again.mask;
        again.has_generated = round % 4 == 2;
        for (i = 0; i < 16; i++) again.generated[i] = i % 3 ? again.mask : 2;
        prepare(&again);
        fresh = again;
        CHECK_INT(tsk_generate(session, again.prompt, again.n_prompt, again.has_generated ? again.generated : NULL,
                               &again.result, NULL),
                  TSK_OK);
        keep_result(&again);
        check_finished(&again, config);
        generate(model, &fresh);
        test_check(same_run(&fresh, &again), __FILE__, __LINE__,
                   "generation %d of a session differs from a fresh session's", (int)round);
        if (round % 5 == 3)
            CHECK_INT(tsk_session_logits(session, again.canvas, again.n_prompt + 16, 0, 1, logits, NULL), TSK_OK);
    }
    tsk_session_free(session);
}

static void step_once(tsk_session *session, int *finished) {
    if (!*finished && !CHECK_INT(tsk_session_step(session, finished, NULL), TSK_OK)) *finished = 1;
}

/* Two sessions, a step each in turn, end as each alone. */
static void test_interleaved(tsk_model *model) {
    const tsk_model_config *config = tsk_model_get_config(model);
    static run alone[2], turns[2];
    tsk_session *sessions[2] = {NULL, NULL};
    int finished[2] = {0, 0}, i;
    for (i = 0; i < 2; i++) {
        new_run(&alone[i], config);
        random_prompt(&alone[i], config, 5 + 12 * i);
        alone[i].options.gen_length = i ? 24 : 16;
        alone[i].options.skip.layer_k = 2 + i;
        alone[i].options.skip.masked = 1;
        alone[i].options.skip.threshold = 0.8f;
        generate(model, &alone[i]);
        turns[i] = alone[i];
        prepare(&turns[i]);
        CHECK_INT(tsk_session_create(model, &turns[i].options, &sessions[i], NULL), TSK_OK);
        CHECK_INT(tsk_session_start(sessions[i], turns[i].prompt, turns[i].n_prompt, NULL, NULL), TSK_OK);
    }
    while (!finished[0] || !finished[1])
        for (i = 0; i < 2; i++) step_once(sessions[i], &finished[i]);
    for (i = 0; i < 2; i++) {
        tsk_session_result(sessions[i], &turns[i].result);
        keep_result(&turns[i]);
        CHECK(same_run(&alone[i], &turns[i]));
        step_once(sessions[i], &finished[i]);
        CHECK_INT(tsk_session_step(sessions[i], &finished[i], NULL), TSK_OK); /* nothing more happens */
        CHECK_INT(turns[i].passes, alone[i].passes);
        tsk_session_free(sessions[i]);
    }
}

/* A copy goes on as its original would, wherever that was: what ranks the rows of the next pass, which of them have
   changed and what the window shows goes with it. */
static void test_copied(tsk_model *model) {
    const tsk_model_config *config = tsk_model_get_config(model);
    static run whole, original, copy;
    int32_t trial;
    for (trial = 0; trial < 24; trial++) {
        tsk_session *from = NULL, *to = NULL;
        int finished = 0, i;
        traced_options(&whole, config, 6 + trial % 4);
        whole.options.steps = trial % 3 ? TSK_AUTO : 12;
        whole.options.remasking = trial % 5 == 4 ? TSK_REMASKING_RANDOM : TSK_REMASKING_LOW_CONFIDENCE;
        generate(model, &whole);
        original = copy = whole;
        prepare(&original);
        prepare(&copy);
        CHECK_INT(tsk_session_create(model, &original.options, &from, NULL), TSK_OK);
        CHECK_INT(tsk_session_create(model, &copy.options, &to, NULL), TSK_OK);
        CHECK_INT(tsk_session_start(from, original.prompt, original.n_prompt, NULL, NULL), TSK_OK);
        for (i = 0; i < trial && !finished; i++) step_once(from, &finished);
        copy = original; /* what its callback has seen */
        copy.options.user = &copy;
        CHECK_INT(tsk_session_copy(to, from, NULL), TSK_OK);
        while (!finished) step_once(to, &finished);
        tsk_session_result(to, &copy.result);
        keep_result(&copy);
        check_finished(&copy, config);
        test_check(same_run(&whole, &copy), __FILE__, __LINE__, "trial %d: a copy goes on otherwise", (int)trial);
        CHECK(copy.result.rows == whole.result.rows);
        tsk_session_free(from);
        tsk_session_free(to);
    }
}

/* Masks in the prompt are filled first; what is given in the generated part stays and counts as context. */
static void test_infilling(tsk_model *model) {
    const tsk_model_config *config = tsk_model_get_config(model);
    static run r;
    int32_t i;
    new_run(&r, config);
    random_prompt(&r, config, 12);
    r.prompt[0] = r.prompt[5] = r.prompt[11] = r.mask;
    r.has_generated = 1;
    for (i = 0; i < 16; i++) r.generated[i] = i == 1 || i >= 8 ? 4 : r.mask;
    r.options.transfer = TSK_TRANSFER_SCHEDULE;
    generate(model, &r);
    check_finished(&r, config);
    CHECK_INT(r.result.nfe, 3 + 7);     /* three masks, seven masks, and a block that has none */
    CHECK_INT(r.result.n_blocks, 3);
    CHECK_INT(r.blocks[0].nfe, 3);
    CHECK_INT(r.blocks[2].nfe, 0);
    /* nothing to do at all */
    for (i = 0; i < 16; i++) r.generated[i] = 4;
    r.prompt[0] = r.prompt[5] = r.prompt[11] = 6;
    generate(model, &r);
    check_finished(&r, config);
    CHECK_INT(r.result.nfe, 0);
    CHECK_INT(r.result.finish_reason, TSK_FINISH_LENGTH);
    /* no prompt at all */
    r.n_prompt = 0;
    r.has_generated = 0;
    generate(model, &r);
    check_finished(&r, config);
    CHECK_INT(r.result.nfe, 16);
}

/* An end token in a finished block ends the generation, what follows is filled with it. */
static void test_end_of_sequence(tsk_model *model) {
    const tsk_model_config *config = tsk_model_get_config(model);
    static run r;
    int32_t i;
    new_run(&r, config);
    random_prompt(&r, config, 6);
    r.options.eos_stop = 1;
    r.options.transfer = TSK_TRANSFER_SCHEDULE;
    r.has_generated = 1;
    for (i = 0; i < 16; i++) r.generated[i] = i == 3 ? config->eos_token_id : i == 12 ? 2 : r.mask;
    generate(model, &r);
    check_finished(&r, config);
    CHECK_INT(r.result.finish_reason, TSK_FINISH_EOS);
    CHECK_INT(r.result.nfe, 7);
    CHECK_INT(r.result.n_blocks, 1);
    CHECK(r.result.n_before_end <= 3);
    for (i = 8; i < 16; i++) CHECK_INT(r.result.tokens[i], i == 12 ? 2 : config->eos_token_id);
    r.options.eos_stop = 0;
    generate(model, &r);
    CHECK_INT(r.result.finish_reason, TSK_FINISH_LENGTH);
    CHECK_INT(r.result.nfe, 7 + 7);
    /* A second id that ends it: 2, at the twelfth position. */
    r.options.eos_stop = 1;
    r.generated[3] = r.mask;
    r.generated[5] = 2;
    r.options.end_of_turn_id = 2;
    generate(model, &r);
    CHECK_INT(r.result.finish_reason, TSK_FINISH_EOS);
    CHECK_INT(r.result.n_blocks, 1);
    CHECK(r.result.n_before_end <= 5);
}

/* Tracing on: the same tokens and confidences, to the last bit. */
static void test_traced(tsk_model *model) {
    const tsk_model_config *config = tsk_model_get_config(model);
    static run first, other;
    int32_t trial;
    for (trial = 0; trial < n_traced; trial++) {
        traced_options(&first, config, trial);
        generate(model, &first);
        other = first;
        generate_traced(model, &other);
        test_check(same_run(&first, &other), __FILE__, __LINE__, "trial %d: tracing changes the result", (int)trial);
        CHECK_INT(other.wrong, 0);
    }
}

static void test_invariants_of(tsk_model *model, int32_t trials) {
    test_random_options(model, trials);
    test_all_stable(model);
    test_exact(model);
    test_skipping_shows(model);
    test_traced(model);
    test_cancel(model);
    test_reuse(model, 0);
    test_reuse(model, 1);
    test_rows_exact(model);
    test_rows_margins(model);
    test_copied(model);
    test_interleaved(model);
    test_infilling(model);
    test_end_of_sequence(model);
}

#endif
