/* What tests of generation share: golden JSON files, option structs from their names, models under tests/golden. */
#ifndef TSK_GOLDEN_H
#define TSK_GOLDEN_H

#include "test.h"

static TEST_UNUSED tsk_json *golden_load(const char *path) {
    tsk_text text;
    tsk_json *document = NULL;
    tsk_error error;
    memset(&text, 0, sizeof text);
    memset(&error, 0, sizeof error);
    if (tsk_read_file(path, (size_t)64 << 20, NULL, &text, &error) != TSK_OK ||
        tsk_json_parse(text.data, text.length, path, NULL, &document, &error) != TSK_OK) {
        printf("%s\n", error.message);
        exit(1);
    }
    tsk_text_free(&text);
    return document;
}

static TEST_UNUSED tsk_model *golden_model(const char *name, int n_threads) {
    tsk_model_options options = tsk_model_options_default();
    tsk_model *model = NULL;
    tsk_error error;
    char path[256];
    memset(&error, 0, sizeof error);
    options.device = TSK_DEVICE_CPU;
    options.n_threads = n_threads;
    snprintf(path, sizeof path, "tests/golden/models/%s", name);
    if (tsk_model_load(path, &options, &model, &error) != TSK_OK) {
        printf("%s\n", error.message);
        exit(1);
    }
    return model;
}

static TEST_UNUSED double golden_number(const tsk_json_value *object, const char *key, double missing) {
    double value = missing;
    tsk_json_double(tsk_json_get(object, key), &value);
    return value;
}
static TEST_UNUSED int golden_int(const tsk_json_value *object, const char *key, int missing) {
    return (int)golden_number(object, key, missing);
}
static TEST_UNUSED int golden_bool(const tsk_json_value *object, const char *key) {
    int value = 0;
    tsk_json_bool(tsk_json_get(object, key), &value);
    return value;
}
static TEST_UNUSED int golden_is(const tsk_json_value *object, const char *key, const char *text) {
    const char *value = tsk_json_string(tsk_json_get(object, key), NULL);
    return value && strcmp(value, text) == 0;
}

/* An array of integers into ids [capacity]; the number of them. */
static TEST_UNUSED int32_t golden_ids(const tsk_json_value *array, int32_t *ids, int32_t capacity) {
    const tsk_json_value *v;
    int32_t n = 0;
    for (v = tsk_json_first(array); v && n < capacity; v = tsk_json_next(v)) {
        int64_t id = -1;
        tsk_json_int64(v, &id);
        ids[n++] = (int32_t)id;
    }
    return n;
}

/* Whether an array has these ids, or other whole numbers, and no more; at most 512. */
static TEST_UNUSED int golden_same_ids(const tsk_json_value *expected, const int32_t *found, int32_t n) {
    enum { capacity = 512 };
    int32_t ids[capacity], i;
    if (golden_ids(expected, ids, capacity) != n) return 0;
    for (i = 0; i < n; i++)
        if (ids[i] != found[i]) return 0;
    return 1;
}

static TEST_UNUSED int golden_same_blocks(const tsk_json_value *expected, const tsk_result *r) {
    const tsk_json_value *block = tsk_json_first(expected);
    int32_t i;
    for (i = 0; i < r->n_blocks; i++, block = tsk_json_next(block))
        if (!block || golden_int(block, "nfe", -1) != r->blocks[i].nfe ||
            golden_int(block, "mask_residual", -1) != r->blocks[i].mask_residual)
            return 0;
    return block == NULL;
}

static TEST_UNUSED tsk_generate_options golden_options(const tsk_json_value *o) {
    tsk_generate_options options = tsk_generate_options_default();
    uint64_t seed = 0;
    options.gen_length = golden_int(o, "gen_length", 0);
    options.block_length = golden_int(o, "block_length", 0);
    options.steps = golden_int(o, "steps", 0);
    options.cache = golden_is(o, "cache", "none")     ? TSK_CACHE_NONE
                    : golden_is(o, "cache", "prefix") ? TSK_CACHE_PREFIX
                                                      : TSK_CACHE_DUAL;
    options.transfer = TSK_TRANSFER_SCHEDULE;
    if (tsk_json_type_of(tsk_json_get(o, "threshold")) == TSK_JSON_NUMBER) options.transfer = TSK_TRANSFER_THRESHOLD;
    if (tsk_json_type_of(tsk_json_get(o, "factor")) == TSK_JSON_NUMBER) options.transfer = TSK_TRANSFER_FACTOR;
    if (tsk_json_type_of(tsk_json_get(o, "frechet")) == TSK_JSON_NUMBER) options.transfer = TSK_TRANSFER_FRECHET;
    if (tsk_json_type_of(tsk_json_get(o, "entropy_bound")) == TSK_JSON_NUMBER) options.transfer = TSK_TRANSFER_ENTROPY;
    if (tsk_json_type_of(tsk_json_get(o, "local_leap")) == TSK_JSON_NUMBER) options.transfer = TSK_TRANSFER_LEAP;
    options.threshold = (float)golden_number(o, "threshold", 0);
    options.factor = (float)golden_number(o, "factor", 1);
    options.frechet = (float)golden_number(o, "frechet", 0);
    options.entropy_bound = (float)golden_number(o, "entropy_bound", 0);
    options.local_leap = (float)golden_number(o, "local_leap", 0);
    options.local_radius = golden_int(o, "local_radius", 0);
    options.temperature = (float)golden_number(o, "temperature", 0);
    tsk_json_uint64(tsk_json_get(o, "seed"), &seed);
    options.seed = seed;
    options.remasking = golden_is(o, "remasking", "random") ? TSK_REMASKING_RANDOM : TSK_REMASKING_LOW_CONFIDENCE;
    options.eos_stop = golden_bool(o, "eos_stop");
    options.skip.layer_k = golden_int(o, "skip_layer_k", 0);
    options.skip.threshold = (float)golden_number(o, "skip_threshold", 0);
    options.skip.outlier = (float)golden_number(o, "skip_outlier", 0);
    options.skip.policy = golden_is(o, "skip_policy", "exit") ? TSK_SKIP_EXIT : TSK_SKIP_REUSE;
    options.skip.masked = golden_bool(o, "skip_masked");
    options.skip.reference =
        golden_is(o, "skip_reference", "last-computed") ? TSK_SKIP_LAST_COMPUTED : TSK_SKIP_LAST_STEP;
    options.skip.max_age = golden_int(o, "skip_max_age", 0);
    options.skip.full_every = golden_int(o, "skip_full_every", 0);
    options.skip.warm_start = golden_bool(o, "skip_warm_start");
    options.skip.refresh = golden_bool(o, "skip_refresh");
    if (tsk_json_get(o, "skip_rule"))
        options.skip.rule = golden_is(o, "skip_rule", "rows")     ? TSK_SKIP_RULE_ROWS
                            : golden_is(o, "skip_rule", "states") ? TSK_SKIP_RULE_STATES
                                                                  : TSK_SKIP_RULE_OFF;
    options.skip.rows_margin = golden_int(o, "rows_margin", 0);
    options.skip.rows_ahead = golden_int(o, "rows_ahead", 0);
    options.refresh = golden_is(o, "refresh", "near") ? TSK_REFRESH_NEAR : TSK_REFRESH_FULL;
    options.refresh_near = golden_int(o, "refresh_near", 0);
    options.refresh_window = golden_int(o, "refresh_window", 0);
    options.refresh_rows = golden_int(o, "refresh_rows", 0);
    options.refresh_every = golden_int(o, "refresh_every", 1);
    return options;
}

/* Of generate_block.json, whose cases name no cache and no refreshes. */
static TEST_UNUSED tsk_generate_options golden_block_options(const tsk_json_value *o) {
    tsk_generate_options options = golden_options(o);
    options.cache = TSK_CACHE_AUTO;
    options.steps = golden_int(o, "steps", TSK_AUTO);
    options.small_block = golden_int(o, "small_block", 0);
    options.prompt_rows = golden_int(o, "prompt_rows", 0) ? golden_int(o, "prompt_rows", 0) : TSK_AUTO;
    options.end_of_turn_id = TSK_NONE;
    return options;
}

#endif
