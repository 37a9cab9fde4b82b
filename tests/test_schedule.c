/* How many tokens a step commits and which, against the reference's goldens (tests/golden/reference.py) and against the
   definitions themselves; TokenSkip's decision on a token, and the rows of a block that it runs. */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_NO_CUDA
#include "../src/skip.h"
#include "../src/schedule.h"
#include "../src/cpu.h"
#include "../src/request.h"
#include "golden.h"
#include "select.h"

enum { max_rows = 16, max_width = 320, max_states = 4 };

static const char *name_of(const tsk_json_value *test) { return tsk_json_string(tsk_json_get(test, "name"), NULL); }

/* An array of numbers into floats [capacity]; how many. */
static int32_t golden_floats(const tsk_json_value *array, float *out, int32_t capacity) {
    const tsk_json_value *v;
    int32_t n = 0;
    for (v = tsk_json_first(array); v && n < capacity; v = tsk_json_next(v)) {
        double number = 0;
        tsk_json_double(v, &number);
        out[n++] = (float)number;
    }
    return n;
}

/* ---- the schedule */

static void check_schedule(const tsk_json_value *test) {
    int32_t expected[128], found[129], i;
    int32_t masks = golden_int(test, "mask_count", -1), steps = golden_int(test, "steps", -1);
    CHECK_INT(golden_ids(tsk_json_get(test, "num_transfer_tokens"), expected, 128), steps);
    found[steps] = -7;
    tsk_num_transfer_tokens(masks, steps, found);
    for (i = 0; i < steps; i++)
        test_check(found[i] == expected[i], __FILE__, __LINE__, "%d masks in %d steps: step %d commits %d, not %d",
                   (int)masks, (int)steps, (int)i, (int)found[i], (int)expected[i]);
    CHECK_INT(found[steps], -7); /* nothing is written behind the last step */
}

static void test_schedule_sums(void) {
    int32_t found[40], masks, steps, i;
    int good = 1;
    for (masks = 0; masks <= 70; masks++)
        for (steps = 1; steps <= 40; steps++) {
            int32_t sum = 0;
            tsk_num_transfer_tokens(masks, steps, found);
            for (i = 0; i < steps; i++) {
                sum += found[i];
                good &=
                    found[i] >= masks / steps && found[i] <= masks / steps + 1 && (i == 0 || found[i] <= found[i - 1]);
            }
            good &= sum == masks;
        }
    CHECK(good);
}

/* ---- selection */

/* The prediction that the head makes of one row of logits. */
static tsk__prediction predict(const tsk_json_value *test, const tsk_json_value *row, int32_t position) {
    const tsk_json_value *options = tsk_json_get(test, "options");
    float logits[64];
    int32_t n = golden_floats(row, logits, 32);
    uint64_t seed = 0;
    tsk__draw draw;
    tsk__cpu_best best;
    tsk__prediction prediction;
    tsk_json_uint64(tsk_json_get(options, "seed"), &seed);
    draw.temperature = (float)golden_number(options, "temperature", 0);
    draw.mask_token_id = golden_int(test, "mask_token_id", -1);
    draw.seed = seed;
    draw.position = (uint32_t)position;
    draw.pass = (uint32_t)golden_int(test, "forward", 0);
    tsk__cpu_head_row(tsk__cpu_kernels_select(), &draw, logits, 0, n, &best);
    tsk__cpu_head_combine(&best, 1, 1, draw.mask_token_id, &prediction);
    if (golden_is(options, "remasking", "random"))
        prediction.confidence = (float)tsk__random_uniform(seed, 0, draw.position, draw.pass, 1, 0);
    return prediction;
}

static int contains(const int32_t *ids, int32_t n, int32_t id) {
    while (n-- > 0)
        if (ids[n] == id) return 1;
    return 0;
}

static void check_selection(const tsk_json_value *test) {
    const tsk_json_value *expected = tsk_json_get(test, "expected"), *row;
    tsk_generate_options options = golden_options(tsk_json_get(test, "options"));
    int32_t positions[max_rows], ids[max_rows], committed[max_rows], n, n_committed, i = 0;
    tsk_transfer_rule rule = transfer_rule_of(&options, golden_int(test, "quota", 0));
    float confidences[max_rows], entropies[max_rows];
    uint8_t commit[max_rows];
    n = golden_ids(tsk_json_get(test, "positions"), positions, max_rows);
    golden_ids(tsk_json_get(expected, "x0"), ids, max_rows);
    golden_floats(tsk_json_get(expected, "confidence"), confidences, max_rows);
    golden_floats(tsk_json_get(expected, "entropy"), entropies, max_rows);
    n_committed = golden_ids(tsk_json_get(expected, "committed"), committed, max_rows);
    for (row = tsk_json_first(tsk_json_get(test, "logits")); row; row = tsk_json_next(row), i++) {
        tsk__prediction p = predict(test, row, positions[i]);
        test_check(p.id == ids[i], __FILE__, __LINE__, "%s: row %d predicts %d, not %d", name_of(test), (int)i,
                   (int)p.id, (int)ids[i]);
        test_check(fabsf(p.confidence - confidences[i]) <= 2e-6f, __FILE__, __LINE__,
                   "%s: row %d has confidence %g, not %g", name_of(test), (int)i, (double)p.confidence,
                   (double)confidences[i]);
        test_check(fabsf(p.entropy - entropies[i]) <= 2e-6f, __FILE__, __LINE__, "%s: row %d has entropy %g, not %g",
                   name_of(test), (int)i, (double)p.entropy, (double)entropies[i]);
    }
    CHECK_INT(i, n);
    test_check(select_by(&rule, n, confidences, entropies, positions, commit) == n_committed, __FILE__, __LINE__,
               "%s: number committed", name_of(test));
    for (i = 0; i < n; i++)
        test_check(commit[i] == contains(committed, n_committed, positions[i]), __FILE__, __LINE__, "%s: position %d",
                   name_of(test), (int)positions[i]);
}

/* commit as text, "0110", beside what it should be. */
static void check_select(tsk_transfer transfer, float parameter, int32_t quota, int32_t n, const float *confidences,
                         const char *expected, int line) {
    char found[max_rows + 1];
    tsk_transfer_rule rule = transfer_rule(transfer, parameter, quota);
    uint8_t commit[max_rows];
    int32_t i, count, ones = 0;
    memset(commit, 9, sizeof commit);
    count = select_by(&rule, n, confidences, NULL, NULL, commit);
    for (i = 0; i < n; i++) {
        found[i] = (char)('0' + commit[i]);
        ones += commit[i];
    }
    found[n] = 0;
    test_check(strcmp(found, expected) == 0, __FILE__, line, "selected %s, not %s", found, expected);
    test_check(count == ones, __FILE__, line, "returned %d for %d", (int)count, (int)ones);
}

static void test_select_by_hand(void) {
    static const float falling[] = {0.9f, 0.8f, 0.7f, 0.1f}, equal[] = {0.5f, 0.5f, 0.5f, 0.5f},
                       mixed[] = {0.2f, 0.95f, 0.3f, 0.95f}, sure[] = {0.875f, 0.875f, 0.875f, 0.75f};
    const float with_nan[] = {0.4f, NAN, 0.6f, 0.5f};
    const tsk_transfer_rule half = transfer_rule(TSK_TRANSFER_THRESHOLD, 0.5f, 1),
                            most = transfer_rule(TSK_TRANSFER_THRESHOLD, 0.9f, 1);
    uint8_t commit[max_rows];
    int32_t count;
    check_select(TSK_TRANSFER_SCHEDULE, 0, 2, 4, falling, "1100", __LINE__);
    check_select(TSK_TRANSFER_SCHEDULE, 0, 2, 4, mixed, "0101", __LINE__);
    check_select(TSK_TRANSFER_SCHEDULE, 0, 3, 4, mixed, "0111", __LINE__);
    check_select(TSK_TRANSFER_SCHEDULE, 0, 3, 4, equal, "1110", __LINE__);
    check_select(TSK_TRANSFER_SCHEDULE, 0, 9, 4, equal, "1111", __LINE__);
    check_select(TSK_TRANSFER_SCHEDULE, 0, 0, 4, mixed, "0100",
                 __LINE__); /* a step that commits nothing would never end */
    check_select(TSK_TRANSFER_THRESHOLD, 0.8f, 0, 4, falling, "1100", __LINE__); /* at least: 0.8 itself counts */
    check_select(TSK_TRANSFER_THRESHOLD, 2, 0, 4, mixed, "0100", __LINE__);
    check_select(TSK_TRANSFER_THRESHOLD, 2, 0, 4, equal, "1000", __LINE__);
    check_select(TSK_TRANSFER_THRESHOLD, -1, 0, 4, falling, "1111", __LINE__);
    /* factor 1: the bounds are 1/2, 2/3, 3/4, 4/5 */
    check_select(TSK_TRANSFER_FACTOR, 1, 0, 4, falling, "1100", __LINE__);
    check_select(TSK_TRANSFER_FACTOR, 1, 0, 4, mixed, "0101", __LINE__);
    check_select(TSK_TRANSFER_FACTOR, 100, 0, 4, falling, "1111", __LINE__);
    check_select(TSK_TRANSFER_FACTOR, 0.001f, 0, 4, equal, "1000", __LINE__);
    check_select(TSK_TRANSFER_SCHEDULE, 0, 1, 1, falling, "1", __LINE__);
    /* with 7/8 three times and 3/4, L_n - U_n is 3/4, 5/8, 1/2, 1/8; equal to the bound is not above it */
    check_select(TSK_TRANSFER_FRECHET, 0.49f, 0, 4, sure, "1110", __LINE__);
    check_select(TSK_TRANSFER_FRECHET, 0.5f, 0, 4, sure, "1100", __LINE__);
    check_select(TSK_TRANSFER_FRECHET, 0.12f, 0, 4, sure, "1111", __LINE__);
    check_select(TSK_TRANSFER_FRECHET, 0.125f, 0, 4, sure, "1110", __LINE__);
    check_select(TSK_TRANSFER_FRECHET, 1, 0, 4, sure, "1000", __LINE__);
    CHECK_INT(select_by(&half, 0, NULL, NULL, NULL, commit), 0);
    /* A broken model's NaN confidences must not stop a generation. */
    count = select_by(&most, 4, with_nan, NULL, NULL, commit);
    CHECK(count >= 1 && count <= 4);
}

/* Best first these are 0.9, 0.8, 0.7, 0.6, with entropies 2, 1/2, 1/4, 1: their sums less the largest are 0, 1/2, 3/4,
   7/4. */
static void test_entropy_by_hand(void) {
    static const float confidences[] = {0.7f, 0.9f, 0.6f, 0.8f};
    float entropies[] = {0.25f, 2, 1, 0.5f};
    tsk_transfer_rule rule = transfer_rule(TSK_TRANSFER_ENTROPY, 0, 0);
    uint8_t commit[4];
    CHECK_INT(select_by(&rule, 4, confidences, entropies, NULL, commit), 1);
    CHECK(commit[1]);
    rule.entropy_bound = 0.5f;
    CHECK_INT(select_by(&rule, 4, confidences, entropies, NULL, commit), 2);
    CHECK(commit[1] && commit[3]);
    rule.entropy_bound = 1.74f;
    CHECK_INT(select_by(&rule, 4, confidences, entropies, NULL, commit), 3);
    rule.entropy_bound = 1.75f;
    CHECK_INT(select_by(&rule, 4, confidences, entropies, NULL, commit), 4);
    entropies[0] = -1; /* which no distribution has */
    CHECK_INT(select_by(&rule, 4, confidences, entropies, NULL, commit), 2);
    entropies[0] = NAN;
    CHECK_INT(select_by(&rule, 4, confidences, entropies, NULL, commit), 2);
    entropies[1] = NAN;
    CHECK_INT(select_by(&rule, 4, confidences, entropies, NULL, commit), 1);
    CHECK(commit[1]);
}

/* An anchor at 10: who is sure enough lies up to two positions from it, or is an anchor, too. */
static void test_leap_by_hand(void) {
    static const float confidences[] = {0.8f, 0.8f, 0.95f, 0.7f, 0.8f, 0.8f};
    static const int32_t positions[] = {7, 8, 10, 11, 12, 13}, ends[] = {0, 1, INT32_MAX, 3, 4, 5};
    tsk_transfer_rule rule = transfer_rule(TSK_TRANSFER_LEAP, 0, 0);
    uint8_t commit[6];
    rule.threshold = 0.9f, rule.local_leap = 0.75f, rule.local_radius = 2;
    CHECK_INT(select_by(&rule, 6, confidences, NULL, positions, commit), 3);
    CHECK(commit[1] && commit[2] && commit[4]);
    rule.local_radius = INT32_MAX;
    CHECK_INT(select_by(&rule, 6, confidences, NULL, positions, commit), 5);
    CHECK(!commit[3]);
    CHECK_INT(select_by(&rule, 6, confidences, NULL, ends, commit), 5);
    rule.local_radius = 0;
    CHECK_INT(select_by(&rule, 6, confidences, NULL, positions, commit), 1);
    rule.threshold = 0.96f; /* no anchor: the best one */
    CHECK_INT(select_by(&rule, 6, confidences, NULL, positions, commit), 1);
    CHECK(commit[2]);
    rule.threshold = 0.8f; /* anchors, whatever the lower threshold */
    rule.local_leap = 0.99f;
    CHECK_INT(select_by(&rule, 6, confidences, NULL, positions, commit), 5);
}

static uint32_t random_state = 12345;
static uint32_t random_below(uint32_t n) { return (random_state = random_state * 1664525u + 1013904223u) / 65536u % n; }

/* Coarse numbers, so that ties are common and sums exact. */
static void test_select_against_definition(void) {
    float confidences[12], entropies[12];
    int32_t positions[12], i, trial, wrong = 0, committed[TSK_TRANSFER_LEAP + 1] = {0};
    uint8_t commit[12], expected[12];
    for (trial = 0; trial < 20000; trial++) {
        tsk_transfer_rule rule = transfer_rule((tsk_transfer)(trial % (TSK_TRANSFER_LEAP + 1)), 0, 0);
        int32_t n = 1 + (int32_t)random_below(12), count;
        rule.factor = (float)(1 + random_below(30)) / 10.0f;
        rule.threshold = (float)random_below(17) / 16.0f, rule.local_leap = (float)random_below(17) / 16.0f;
        rule.frechet = (float)random_below(9) / 16.0f, rule.entropy_bound = (float)random_below(9) / 4.0f;
        rule.local_radius = (int32_t)random_below(8), rule.quota = (int32_t)random_below(14);
        for (i = 0; i < n; i++) {
            confidences[i] = (float)(random_below(4) ? 12 + random_below(5) : random_below(17)) / 16.0f;
            entropies[i] = (float)random_below(9) / 8.0f;
            positions[i] = 3 * i + (int32_t)random_below(3);
        }
        count = select_by(&rule, n, confidences, entropies, positions, commit);
        wrong += count != select_by_definition(&rule, n, confidences, entropies, positions, expected) ||
                 memcmp(commit, expected, (size_t)n) != 0;
        committed[rule.transfer] += count > 1 && count < n;
    }
    CHECK_INT(wrong, 0);
    for (i = 0; i <= TSK_TRANSFER_LEAP; i++) CHECK(committed[i] > 300);
}

/* ---- TokenSkip's decision */

/* [n_states][tokens][width] into out[state][token][max_width]; the sizes to *tokens and *width. */
static int32_t read_states(const tsk_json_value *array, float out[max_states][max_rows][max_width], int32_t *tokens,
                           int32_t *width) {
    const tsk_json_value *state, *row;
    int32_t n = 0;
    for (state = tsk_json_first(array); state && n < max_states; state = tsk_json_next(state), n++)
        for (row = tsk_json_first(state), *tokens = 0; row && *tokens < max_rows; row = tsk_json_next(row))
            *width = golden_floats(row, out[n][(*tokens)++], max_width);
    return n;
}

static void check_cosines(const tsk_json_value *test) {
    static float before[max_states][max_rows][max_width], now[max_states][max_rows][max_width];
    const tsk_json_value *expected = tsk_json_get(test, "expected"), *row,
                         *stable = tsk_json_first(tsk_json_get(expected, "stable"));
    float cosines[max_states * max_rows], golden[max_rows];
    int32_t tokens = 0, width = 0, token, state = 0,
            n_states = read_states(tsk_json_get(test, "reference"), before, &tokens, &width);
    tsk_model_config config;
    tsk__cpu_model model;
    memset(&config, 0, sizeof config);
    memset(&model, 0, sizeof model);
    model.config = &config;
    model.kernels = tsk__cpu_kernels_select();
    CHECK_INT(read_states(tsk_json_get(test, "states"), now, &tokens, &width), n_states);
    config.d_model = width;
    for (row = tsk_json_first(tsk_json_get(expected, "cosine")); row; row = tsk_json_next(row), state++) {
        CHECK_INT(golden_floats(row, golden, max_rows), tokens);
        for (token = 0; token < tokens; token++) {
            float *c = &cosines[state * max_rows + token];
            tsk__cpu_cosine(&model, 1, now[state][token], before[state][token], c);
            test_check(fabsf(*c - golden[token]) <= 2e-6f && *c <= 1.0f, __FILE__, __LINE__,
                       "%s: state %d token %d: cosine %g, not %g", name_of(test), (int)state, (int)token, (double)*c,
                       (double)golden[token]);
        }
    }
    CHECK_INT(state, n_states);
    for (token = 0; token < tokens; token++, stable = tsk_json_next(stable)) {
        int wanted = 0, found = tsk__skip_similar(cosines + token, n_states, max_rows,
                                                  (float)golden_number(test, "skip_threshold", -9),
                                                  (float)golden_number(test, "skip_outlier", -9));
        CHECK(tsk_json_bool(stable, &wanted));
        test_check(found == wanted, __FILE__, __LINE__, "%s: token %d stable %d, not %d", name_of(test), (int)token,
                   found, wanted);
    }
    CHECK(stable == NULL);
}

/* Each of the rules that make a token active: whatever its states say, and by them. */
static void test_stable_rules(void) {
    static const float same[] = {1.0f, 1.0f, 1.0f}, nan_inside[] = {1.0f, NAN, 1.0f};
    tsk_generate_options o = tsk_generate_options_default();
    tsk__skip_token token;
    memset(&token, 0, sizeof token);
    token.id = token.computed_id = 5;
    CHECK(tsk__skip_is_allowed(&o, &token, 0));
    token.computed_id = 6;                                  /* its upper K and V were made from another id */
    CHECK(!tsk__skip_is_allowed(&o, &token, 0));
    token.computed_id = 5;
    token.is_masked = 1;
    CHECK(!tsk__skip_is_allowed(&o, &token, 0));
    o.skip.masked = 1;
    CHECK(tsk__skip_is_allowed(&o, &token, 0));
    CHECK(tsk__skip_is_allowed(&o, &token, 2));             /* skip_max_age 0: any age */
    o.skip.max_age = 3;
    CHECK(tsk__skip_is_allowed(&o, &token, 2));
    CHECK(!tsk__skip_is_allowed(&o, &token, 3));
    CHECK(tsk__skip_similar(same, 3, 1, 0.95f, 0.7f));
    CHECK(!tsk__skip_similar(same, 0, 1, 0.95f, 0.7f));     /* nothing to compare */
    CHECK(!tsk__skip_similar(nan_inside, 3, 1, 0.95f, 0.7f));
    CHECK(!tsk__skip_similar(same, 3, 1, 1.0f, 0.7f));      /* strict: never */
}

/* ---- which rows of a block a step of the rule ROWS runs */

/* Slots as text: '.' neither masked nor changed, 'c' changed, 'C' changed and masked (its confidence is 0), digits:
   masked, of that confidence in tenths, '?': masked, of one that is no number. `expected`: '1' runs, '0' does not. */
static void check_rows(const char *text, int32_t most, int32_t ahead, const char *expected, int line) {
    tsk__skip_slot slots[max_rows];
    uint8_t runs[max_rows + 1];
    int32_t n = (int32_t)strlen(text), i;
    memset(slots, 0, sizeof slots);
    for (i = 0; i < n; i++) {
        slots[i].is_masked = text[i] != '.' && text[i] != 'c';
        slots[i].is_changed = text[i] == 'c' || text[i] == 'C';
        slots[i].confidence = text[i] >= '0' && text[i] <= '9' ? (float)(text[i] - '0') / 10 : text[i] == '?' ? NAN : 0;
    }
    memset(runs, 7, sizeof runs); /* whatever was there before */
    tsk__skip_rows(slots, n, most, ahead, runs);
    test_check(runs[n] == 7, __FILE__, line, "%s: written past the last slot", text);
    for (i = 0; i < n; i++)
        test_check(runs[i] == expected[i] - '0', __FILE__, line, "%s, most %d, ahead %d: slot %d runs %d, not %c", text,
                   (int)most, (int)ahead, (int)i, (int)runs[i], expected[i]);
}

static void test_rows_by_hand(void) {
#define ROWS(text, most, ahead, expected) check_rows(text, most, ahead, expected, __LINE__)
    /* the best masked ones */
    ROWS("135798", 1, 0, "000010");
    ROWS("135798", 3, 0, "000111");
    ROWS("9.7.8.", 2, 0, "100010");
    ROWS("135798", 6, 0, "111111");
    ROWS("1.5.9.", 7, 0, "101010"); /* more than there are: those that are masked, and no others */
    ROWS("1.5.9.", INT32_MAX, 0, "101010");
    ROWS("135798", 0, 0, "000000");
    /* of equals the first */
    ROWS("5555", 1, 0, "1000");
    ROWS("5555", 3, 0, "1110");
    ROWS("49.94", 1, 0, "01000");
    ROWS("49.94", 3, 0, "11010");
    ROWS("0000", 2, 0, "1100");
    /* what is no number comes last, and of those, too, the first */
    ROWS("?1?0", 1, 0, "0100");
    ROWS("?1?0", 2, 0, "0101");
    ROWS("?1?0", 3, 0, "1101");
    ROWS("??", 1, 0, "10");
    /* the changed ones, beside the best */
    ROWS("c.....", 1, 0, "100000");
    ROWS("c1.2.c", 1, 0, "100101");
    ROWS("c1.2.c", 0, 0, "100001");
    ROWS("C1.2", 1, 0, "1001"); /* one that is masked, too, takes nobody's place */
    ROWS("C1.2", 2, 0, "1101");
    ROWS("......", 3, 2, "000000"); /* nothing to do */
    ROWS("", 3, 2, "");
    /* the masked ones next to a changed one: masked ones are counted, not positions */
    ROWS("1c1", 0, 1, "111");
    ROWS("11..c..11", 0, 1, "010010010");
    ROWS("11..c..11", 0, 2, "110010011");
    ROWS("11..c..11", 0, 9, "110010011");
    ROWS("11..c..11", 0, INT32_MAX, "110010011");
    ROWS("c.111", 0, 2, "10110"); /* at an end only one side is left */
    ROWS("111.c", 0, 2, "01101");
    ROWS("1c.c1", 0, 1, "11011"); /* a changed one is none of those ahead */
    ROWS("c11c", 0, 1, "1111");
    ROWS("c111c", 0, 1, "11011");
    ROWS("1111", 0, 3, "0000"); /* nothing changed: nothing is near */
    ROWS("1111", 1, 3, "1000");
    ROWS("1C11", 0, 1, "1110");
    /* all three: the best, the changed, and those ahead, which may be the best already */
    ROWS("9.1c1.8", 1, 1, "1011100");
    ROWS("1.9c1.8", 1, 1, "0011100");
    ROWS("1.9c1.8", 2, 1, "0011101");
#undef ROWS
}

/* By definition, slot by slot. */
static void test_rows_against_definition(void) {
    int32_t trial, i, j, wrong = 0;
    for (trial = 0; trial < 20000; trial++) {
        tsk__skip_slot slots[max_rows];
        uint8_t runs[max_rows];
        int32_t n = 1 + (int32_t)random_below(max_rows), most = (int32_t)random_below(max_rows + 2),
                ahead = random_below(2) ? 0 : (int32_t)random_below(4);
        for (i = 0; i < n; i++) {
            slots[i].is_masked = random_below(2) == 0;
            slots[i].is_changed = random_below(4) == 0;
            slots[i].confidence = random_below(8) ? (float)random_below(6) / 5 : NAN; /* ties are common */
        }
        tsk__skip_rows(slots, n, most, ahead, runs);
        for (i = 0; i < n; i++) {
            int32_t better = 0, expected = slots[i].is_changed;
            float c = slots[i].confidence;
            for (j = 0; j < n; j++) {
                float other = slots[j].confidence;
                int is_equal = other == c || (other != other && c != c);
                better += slots[j].is_masked && (other > c || (c != c && other == other) || (is_equal && j < i));
            }
            expected |= slots[i].is_masked && better < most;
            for (j = 0; j < n; j++) { /* near to a changed one: fewer than `ahead` masked ones are between */
                int32_t between = 0, k;
                for (k = (i < j ? i : j) + 1; k < (i < j ? j : i); k++) between += slots[k].is_masked;
                expected |= slots[i].is_masked && slots[j].is_changed && i != j && between < ahead;
            }
            wrong += runs[i] != expected;
        }
    }
    CHECK_INT(wrong, 0);
}

/* A confidence that is no number is the worst, wherever it stands, and still ends a block that has no other. */
static void test_select_without_numbers(void) {
    static const float mixed[] = {NAN, 0.2f, NAN, 0.8f}, none[] = {NAN, NAN};
    tsk_transfer_rule rule = transfer_rule(TSK_TRANSFER_SCHEDULE, 0, 1);
    uint8_t commit[4];
    int32_t i;
    CHECK_INT(select_by(&rule, 4, mixed, NULL, NULL, commit), 1);
    CHECK(!commit[0] && !commit[1] && !commit[2] && commit[3]);
    rule.quota = 3;
    CHECK_INT(select_by(&rule, 4, mixed, NULL, NULL, commit), 3);
    CHECK(commit[0] && commit[1] && !commit[2] && commit[3]);
    rule = transfer_rule(TSK_TRANSFER_THRESHOLD, 0.1f, 0);
    CHECK_INT(select_by(&rule, 4, mixed, NULL, NULL, commit), 2);
    CHECK(!commit[0] && commit[1] && !commit[2] && commit[3]);
    rule = transfer_rule(TSK_TRANSFER_LEAP, 0.1f, 0);
    CHECK_INT(select_by(&rule, 4, mixed, NULL, NULL, commit), 2);
    CHECK(!commit[0] && commit[1] && !commit[2] && commit[3]);
    for (i = TSK_TRANSFER_FACTOR; i <= TSK_TRANSFER_LEAP; i++) {
        rule = transfer_rule((tsk_transfer)i, 1, 0);
        if (i == TSK_TRANSFER_ENTROPY) continue; /* by their entropies they may be taken */
        CHECK_INT(select_by(&rule, 2, none, NULL, NULL, commit), 1);
        CHECK(commit[0] && !commit[1]);
    }
}

static int each_case(const char *path, void (*check)(const tsk_json_value *test)) {
    tsk_json *document = golden_load(path);
    const tsk_json_value *test;
    int n = 0;
    for (test = tsk_json_first(tsk_json_get(tsk_json_root(document), "cases")); test; test = tsk_json_next(test), n++)
        check(test);
    tsk_json_free(document);
    return n;
}

int main(void) {
    CHECK_INT(each_case("tests/golden/schedule.json", check_schedule), 17);
    CHECK_INT(each_case("tests/golden/selection.json", check_selection), 51);
    CHECK_INT(each_case("tests/golden/cosine.json", check_cosines), 12);
    test_schedule_sums();
    test_select_by_hand();
    test_entropy_by_hand();
    test_leap_by_hand();
    test_select_against_definition();
    test_select_without_numbers();
    test_stable_rules();
    test_rows_by_hand();
    test_rows_against_definition();
    return test_end("test_schedule");
}
