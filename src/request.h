#ifndef SECTION_GUARD_REQUEST
#define SECTION_GUARD_REQUEST

#include "error.h"
#include "memory.h"
#include "platform.h"
#include "template.h"
#include "family.h"
#include "config.h"
#include "random.h"
#include "skip.h"
#include "schedule.h"
#include "backend.h"
#include "storage.h"
#include "trace.h"
#include "forward.h"

// >>request ===========================================================================================================
/* One generation: a canvas of tokens, its blocks, its caches and its TokenSkip state. A request plans the rows of its
   next pass, which of them may be skipped and how its predictions are committed. The backend decides and commits, so
   that a GPU need not wait for the host in a pass's middle; the request takes note of both when the pass has ended.
   tsk__requests_pass drives any number of requests through one pass. A session is one request with a pass of its
   own. */

/* Where a generation is. Plain values: a copy of a session takes them as they are, but for the result's addresses. */
typedef struct tsk__generation {
    int32_t n_prompt, length;      /* length = n_prompt + gen_length, by blocks rounded up to whole ones */
    int32_t infill_count;          /* masked positions of the prompt that are a block of their own */
    int32_t n_masks;               /* masked positions of the canvas at the start */
    int32_t n_blocks, block;       /* the infilling block, where there is one, is block 0 */
    int32_t n_positions;           /* of the current block */
    int32_t visible;               /* passes of this block see the positions below it, and no others */
    int32_t n_started;             /* blocks that had a pass, the current one included */
    int32_t block_step, block_masks;  /* passes done in it; masks at its start */
    uint32_t pass;
    int is_started;                /* 0: there is no generation, and of the rest of this struct nothing means
                                      anything */
    int is_finished;
    int has_previous;              /* 1: `states` holds those of an earlier pass of this block */
    int has_outputs;               /* so are its outputs, where they are kept */
    int has_refresh;               /* 1: the cache holds the states of an earlier refresh (skip.refresh) */
    tsk_result result;
} tsk__generation;

/* Which positions a pass runs; the last two are refreshes. */
typedef enum tsk__pass_kind {
    TSK__PASS_STEP,                /* of the block, those that the rule `rows` leaves, and refresh_rows' */
    TSK__PASS_SUFFIX,              /* from the block's first on: a step of cache prefix */
    TSK__PASS_PROMPT,              /* by blocks: some of the prompt's whole blocks, whose K and V become final */
    TSK__PASS_STORE,               /* by blocks: all of the block, likewise */
    TSK__PASS_NEAR,                /* what has changed, the block, masks behind it, and refresh_rows' */
    TSK__PASS_FULL                 /* all that is visible */
} tsk__pass_kind;

/* The pass under way. */
typedef struct tsk__request_pass {
    tsk__pass_kind kind;
    int32_t first_row, n_rows;
    int32_t n_further;             /* of them, refresh_rows' */
    int32_t n_ran;                 /* rows that ran all layers, once that is known */
    int32_t first_candidate, n_candidates; /* masked positions of the block */
    int32_t stretch_begin, stretch_end; /* slots among which candidates are looked for */
    int32_t next_position;         /* of the next block, its first, which a pass that makes K and V final predicts where
                                      logits are shifted; -1: none */
    int32_t first_layer, last_layer;  /* that the pass runs of this request */
    int is_deciding;               /* some tokens may be stable */
    int is_probe;                  /* the pass only looks: its kind is set already, and nothing is committed */
    int runs_all;                  /* a probe's step leaves nothing out */
} tsk__request_pass;

/* A batch may cut a refresh by layers, so that it does not hold up the others' steps: the next pass goes on at
   `next_layer` for at most `layer_budget` layers (0: all), from the residual stream put aside in the cache. */
typedef struct tsk__request_cut {
    int is_allowed;                /* the batch limits row_layers */
    int32_t prompt_rows;           /* by blocks a prompt is cut by rows instead: at most so many, 0: no limit */
    int32_t next_layer, layer_budget;
    double pending_ms;             /* of the parts so far */
} tsk__request_cut;

/* Arrays over the canvas, [length]. */
typedef struct tsk__request_canvas {
    int is_uploaded;               /* the backend's canvas is the same as this one */
    int32_t *ids;
    int32_t *kept_ids;             /* while a probe looks at others */
    tsk__skip_token *tokens;
    int32_t *nearest;              /* all positions, by their distance from the block (refresh_rows) */
    uint32_t *computed_passes;     /* the pass that last ran all layers of a position */
    uint8_t *refresh_active;       /* the decision of a refresh under way */
    uint8_t *is_listed;            /* while a list of positions is made: already in it. Of a pass that is NEAR: it runs
                                      the position */
} tsk__request_canvas;

/* Arrays over the slots of the current block, [max block]. */
typedef struct tsk__request_block {
    int32_t *positions;
    int32_t *predictions;
    float *confidences, *entropies;
    uint8_t *committed, *active;
    uint8_t *is_predicted;         /* a pass of this block has predicted the slot */
    int32_t *rows;                 /* the slot's row in the pass under way; -1: the pass leaves it out */
    int32_t *sources;              /* the row that predicts the slot's position: its own, or where logits are shifted
                                      that of the position before; -1: the pass leaves it out */
    uint8_t *runs;                 /* the slots that a pass of kind STEP runs, */
    uint8_t *before;               /* and those before which it runs a row outside the block, which predicts them */
    tsk__skip_slot *ranked;        /* while they are chosen */
    float *cosines;                /* [max block, n_states] of the last pass that compared, for the step callback */
    tsk_candidate *candidates;     /* as on_select is told of them, and where it answers */
    uint8_t *candidate_commits;
} tsk__request_block;

/* The result's arrays. */
typedef struct tsk__request_counts {
    tsk_block_result *blocks;      /* [n_blocks] */
    int32_t *active, *stable_masked; /* [n_masks]: a pass commits at least one token */
} tsk__request_counts;

typedef struct tsk__request {
    const tsk_model_config *config;
    tsk__backend *backend;
    const tsk_allocator *allocator;
    tsk_generate_options options;  /* every TSK_AUTO resolved */
    int32_t n_states;              /* K - 1 where states are compared, in block steps or in refreshes, else 0 */
    int32_t force_active, force_refresh; /* as tsk_session_force has them */
    int keeps_outputs;             /* h_L of the block's tokens are stored */
    tsk__cache cache;
    int32_t n_final;               /* by blocks: the K and V of so many positions are final, those of canvas.ids; more
                                      than one generation may use them */

    tsk__generation gen;
    tsk_error failure;             /* what ended it; its status is TSK_OK while nothing has */
    int is_running;                /* a session's pass is under way: callbacks may not begin another */
    int is_reporting;              /* its step callback is: the pass's commits are there, but r->gen has not moved on */
    tsk__request_pass pass;
    tsk__request_cut cut;

    void *memory;                  /* the arrays below, in one allocation: see tsk__request_layout */
    tsk__request_canvas canvas;
    tsk__request_block block;
    tsk__request_counts counts;
} tsk__request;

/* ---- options */

tsk_generate_options tsk_generate_options_default(void) {
    tsk_generate_options o;
    memset(&o, 0, sizeof o);
    o.gen_length = 128;
    o.block_length = o.small_block = TSK_AUTO;
    o.steps = TSK_AUTO;
    o.cache = TSK_CACHE_AUTO;
    o.prompt_rows = TSK_AUTO;
    o.transfer = TSK_TRANSFER_THRESHOLD;
    o.threshold = 0.9f;
    o.factor = 1.0f;
    o.frechet = 0.25f;
    o.entropy_bound = 0.1f;
    o.local_leap = 0.75f;
    o.local_radius = 4;
    o.eos_stop = 1;
    o.end_of_turn_id = TSK_AUTO;
    o.skip.rule = TSK_SKIP_RULE_AUTO;
    o.skip.rows_margin = 4;
    o.skip.layer_k = TSK_AUTO;
    o.skip.threshold = 0.95f;
    o.skip.outlier = 0.7f;
    o.refresh = TSK_REFRESH_AUTO;
    o.refresh_near = 16;
    o.refresh_every = TSK_AUTO;
    return o;
}

/* The rule first: what K is where nobody says so depends on it. */
static void tsk__options_resolve_skip(tsk_skip_options *skip, tsk_cache cache, const tsk_model_config *config) {
    const int32_t n_layers = config->n_layers;
    if (skip->rule == TSK_SKIP_RULE_AUTO && skip->layer_k == TSK_AUTO)
        skip->rule =
            cache == TSK_CACHE_DUAL && tsk__family_of(config)->skips ? TSK_SKIP_RULE_ROWS : TSK_SKIP_RULE_OFF;
    if (skip->rule == TSK_SKIP_RULE_AUTO) skip->rule = skip->layer_k > 0 ? TSK_SKIP_RULE_STATES : TSK_SKIP_RULE_OFF;
    if (skip->layer_k != TSK_AUTO) return;
    skip->layer_k = n_layers / 4 > 2 ? n_layers / 4 : 2;
    if (skip->rule == TSK_SKIP_RULE_OFF) skip->layer_k = 0;
}

#define TSK__USUAL_BLOCK 32
#define TSK__USUAL_PROMPT_ROWS 2048 /* as good as all at once on a GPU, with activations of a size known beforehand */

static void tsk__options_resolve_blocks(tsk_generate_options *o, const tsk_model_config *config) {
    const tsk__family *family = tsk__family_of(config);
    int32_t usual = family->small_block;
    if (o->cache == TSK_CACHE_AUTO) o->cache = family->by_blocks ? TSK_CACHE_BLOCK : TSK_CACHE_DUAL;
    if (o->block_length == TSK_AUTO) o->block_length = family->by_blocks ? config->block_length : TSK__USUAL_BLOCK;
    if (o->small_block == TSK_AUTO) o->small_block = usual && o->block_length % usual == 0 ? usual : 0;
    if (o->steps == TSK_AUTO && o->cache != TSK_CACHE_BLOCK) o->steps = o->gen_length;
    if (o->prompt_rows == TSK_AUTO) o->prompt_rows = TSK__USUAL_PROMPT_ROWS;
}

static void tsk__options_resolve(tsk_generate_options *o, const tsk_model_config *config,
                                 const tsk_tokenizer *tokenizer) {
    tsk__options_resolve_blocks(o, config);
    tsk__options_resolve_skip(&o->skip, o->cache, config);
    if (o->refresh == TSK_REFRESH_AUTO) o->refresh = TSK_REFRESH_FULL;
    if (o->refresh_every == TSK_AUTO) o->refresh_every = o->refresh == TSK_REFRESH_FULL;
    if (o->end_of_turn_id == TSK_AUTO) o->end_of_turn_id = tokenizer ? tsk_chat_end_of_turn(tokenizer) : TSK_NONE;
}

#define TSK__OPTIONS_REQUIRE(condition, ...) \
    if (!(condition)) return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, __VA_ARGS__)

/* The caches that the family has. */
static tsk_status tsk__options_check_cache(const tsk_generate_options *o, const tsk_model_config *config,
                                           tsk_error *error) {
    static const char *const caches[] = {"dual", "prefix", "none", "block"};
    const tsk__family *family = tsk__family_of(config);
    int by_blocks = o->cache == TSK_CACHE_BLOCK;
    TSK__OPTIONS_REQUIRE((int)o->cache >= 0 && o->cache <= TSK_CACHE_BLOCK, "cache has no value %d", (int)o->cache);
    TSK__OPTIONS_REQUIRE(family->by_blocks || !by_blocks, "cache block needs attention by blocks, which %s has not",
                         family->name);
    TSK__OPTIONS_REQUIRE(by_blocks || !family->by_blocks, "cache %s: %s has attention by blocks, and cache block only",
                         caches[o->cache], family->name);
    return TSK_OK;
}

/* What has to do with attention by blocks; small_block alone is also what other families must leave alone. */
static tsk_status tsk__options_check_blocks(const tsk_generate_options *o, const tsk_model_config *config,
                                            tsk_error *error) {
    int by_blocks = o->cache == TSK_CACHE_BLOCK;
    TSK__OPTIONS_REQUIRE(o->small_block >= 0, "small_block must be zero or positive, not %d", (int)o->small_block);
    TSK__OPTIONS_REQUIRE(o->small_block == 0 || by_blocks, "small_block %d needs cache block", (int)o->small_block);
    TSK__OPTIONS_REQUIRE(o->small_block == 0 || o->block_length % o->small_block == 0,
                         "block_length %d is not a multiple of small_block %d", (int)o->block_length,
                         (int)o->small_block);
    TSK__OPTIONS_REQUIRE(o->prompt_rows > 0, "prompt_rows must be positive, not %d", (int)o->prompt_rows);
    if (!by_blocks) return TSK_OK;
    TSK__OPTIONS_REQUIRE(o->block_length <= config->max_sequence_length,
                         "block_length %d is beyond the model's max_sequence_length %d", (int)o->block_length,
                         (int)config->max_sequence_length);
    TSK__OPTIONS_REQUIRE(o->refresh == TSK_REFRESH_FULL && o->refresh_window == 0 && o->refresh_rows == 0 &&
                             o->refresh_every == 1 && !o->skip.refresh && !o->skip.warm_start,
                         "with cache block nothing is refreshed: refresh near, refresh_window, refresh_rows, "
                         "refresh_every, skip_refresh and skip_warm_start need another cache");
    return TSK_OK;
}

/* How the answer is cut into blocks and steps. */
static tsk_status tsk__options_check_lengths(const tsk_generate_options *o, const tsk_model_config *config,
                                             tsk_error *error) {
    int by_blocks = o->cache == TSK_CACHE_BLOCK;
    int32_t n_blocks;
    TSK__OPTIONS_REQUIRE(o->gen_length > 0, "gen_length must be positive, not %d", (int)o->gen_length);
    TSK__OPTIONS_REQUIRE(o->block_length > 0, "block_length must be positive, not %d", (int)o->block_length);
    TSK__OPTIONS_REQUIRE(by_blocks || o->gen_length % o->block_length == 0,
                         "gen_length %d is not a multiple of block_length %d", (int)o->gen_length,
                         (int)o->block_length);
    TSK__OPTIONS_REQUIRE(o->gen_length <= config->max_sequence_length,
                         "gen_length %d is beyond the model's max_sequence_length %d", (int)o->gen_length,
                         (int)config->max_sequence_length);
    n_blocks = o->gen_length / o->block_length;
    TSK__OPTIONS_REQUIRE(o->steps > 0 || (by_blocks && o->steps == TSK_AUTO), "steps must be positive, not %d",
                         (int)o->steps);
    TSK__OPTIONS_REQUIRE(by_blocks || o->steps % n_blocks == 0,
                         "steps %d is not a multiple of the number of blocks, %d", (int)o->steps, (int)n_blocks);
    return TSK_OK;
}

static tsk_status tsk__options_check(const tsk_generate_options *o, const tsk_model_config *config, tsk_error *error) {
    int in_blocks = o->cache == TSK_CACHE_DUAL || o->cache == TSK_CACHE_BLOCK;
    tsk_status status = tsk__options_check_cache(o, config, error);
    if (status == TSK_OK) status = tsk__options_check_lengths(o, config, error);
    if (status == TSK_OK) status = tsk__options_check_blocks(o, config, error);
    if (status != TSK_OK) return status;
    TSK__OPTIONS_REQUIRE((int)o->transfer >= 0 && o->transfer <= TSK_TRANSFER_LEAP, "transfer has no value %d",
                         (int)o->transfer);
    TSK__OPTIONS_REQUIRE((int)o->remasking >= 0 && o->remasking <= TSK_REMASKING_RANDOM, "remasking has no value %d",
                         (int)o->remasking);
    TSK__OPTIONS_REQUIRE((int)o->skip.policy >= 0 && o->skip.policy <= TSK_SKIP_EXIT, "skip_policy has no value %d",
                         (int)o->skip.policy);
    TSK__OPTIONS_REQUIRE((int)o->skip.reference >= 0 && o->skip.reference <= TSK_SKIP_LAST_COMPUTED,
                         "skip_reference has no value %d", (int)o->skip.reference);
    TSK__OPTIONS_REQUIRE(o->threshold == o->threshold && fabsf(o->threshold) <= FLT_MAX,
                         "threshold must be a finite number");
    TSK__OPTIONS_REQUIRE(o->factor > 0 && o->factor <= FLT_MAX, "factor must be a positive number");
    TSK__OPTIONS_REQUIRE(o->frechet >= 0 && o->frechet <= 1, "frechet must be a number from 0 to 1");
    TSK__OPTIONS_REQUIRE(o->entropy_bound >= 0 && o->entropy_bound <= FLT_MAX,
                         "entropy_bound must be zero or a positive number");
    TSK__OPTIONS_REQUIRE(o->local_leap == o->local_leap && fabsf(o->local_leap) <= FLT_MAX,
                         "local_leap must be a finite number");
    TSK__OPTIONS_REQUIRE(o->local_radius >= 0, "local_radius must be zero or positive, not %d", (int)o->local_radius);
    TSK__OPTIONS_REQUIRE(o->temperature >= 0 && o->temperature <= FLT_MAX,
                         "temperature must be zero or a positive number");
    TSK__OPTIONS_REQUIRE(o->skip.threshold == o->skip.threshold && fabsf(o->skip.threshold) <= FLT_MAX,
                         "skip_threshold must be a finite number");
    TSK__OPTIONS_REQUIRE(o->skip.outlier == o->skip.outlier && fabsf(o->skip.outlier) <= FLT_MAX,
                         "skip_outlier must be a finite number");
    TSK__OPTIONS_REQUIRE((int)o->skip.rule >= 0 && o->skip.rule <= TSK_SKIP_RULE_ROWS, "skip_rule has no value %d",
                         (int)o->skip.rule);
    TSK__OPTIONS_REQUIRE((int)o->refresh >= 0 && o->refresh <= TSK_REFRESH_NEAR, "refresh has no value %d",
                         (int)o->refresh);
    TSK__OPTIONS_REQUIRE(o->skip.layer_k >= 0, "skip_layer_k must be zero or positive, not %d", (int)o->skip.layer_k);
    TSK__OPTIONS_REQUIRE(o->skip.rule != TSK_SKIP_RULE_ROWS || in_blocks,
                         "skip_rule rows needs cache dual: other caches run more than the block in each pass");
    TSK__OPTIONS_REQUIRE(o->skip.rule == TSK_SKIP_RULE_OFF || o->skip.layer_k == 0 || in_blocks,
                         "skip_layer_k %d needs cache dual: TokenSkip lives in the dual cache's block steps",
                         (int)o->skip.layer_k);
    TSK__OPTIONS_REQUIRE(o->skip.rule != TSK_SKIP_RULE_STATES || o->skip.layer_k > 0,
                         "skip_rule states needs a skip_layer_k above 0");
    TSK__OPTIONS_REQUIRE(o->skip.rows_margin >= 0, "skip_rows_margin must be zero or positive, not %d",
                         (int)o->skip.rows_margin);
    TSK__OPTIONS_REQUIRE(o->skip.rows_ahead >= 0, "skip_rows_ahead must be zero or positive, not %d",
                         (int)o->skip.rows_ahead);
    TSK__OPTIONS_REQUIRE(o->skip.max_age >= 0 && o->skip.full_every >= 0,
                         "skip_max_age and skip_full_every must be zero or positive");
    TSK__OPTIONS_REQUIRE(!o->skip.refresh || o->skip.rule != TSK_SKIP_RULE_OFF,
                         "skip_refresh needs TokenSkip: skip_rule is off");
    TSK__OPTIONS_REQUIRE(!o->skip.refresh || o->skip.layer_k > 0, "skip_refresh needs TokenSkip: skip_layer_k is 0");
    TSK__OPTIONS_REQUIRE(!o->skip.refresh || o->refresh == TSK_REFRESH_FULL,
                         "skip_refresh needs refresh full: with near there is next to nothing that it could skip");
    TSK__OPTIONS_REQUIRE(!o->skip.refresh || o->refresh_window == 0,
                         "skip_refresh and refresh_window %d exclude each other", (int)o->refresh_window);
    TSK__OPTIONS_REQUIRE(o->refresh == TSK_REFRESH_FULL || o->cache == TSK_CACHE_DUAL, "refresh near needs cache dual");
    TSK__OPTIONS_REQUIRE(o->refresh_near >= 0, "refresh_near must be zero or positive, not %d", (int)o->refresh_near);
    TSK__OPTIONS_REQUIRE(o->refresh_window >= 0, "refresh_window must be zero or positive, not %d",
                         (int)o->refresh_window);
    TSK__OPTIONS_REQUIRE(o->refresh_window == 0 || o->cache == TSK_CACHE_DUAL, "refresh_window %d needs cache dual",
                         (int)o->refresh_window);
    TSK__OPTIONS_REQUIRE(o->refresh_rows >= 0, "refresh_rows must be zero or positive, not %d", (int)o->refresh_rows);
    TSK__OPTIONS_REQUIRE(o->refresh_rows == 0 || o->cache == TSK_CACHE_DUAL,
                         "refresh_rows %d needs cache dual: other caches leave no rows out that a step could add",
                         (int)o->refresh_rows);
    TSK__OPTIONS_REQUIRE(o->refresh_every >= 0, "refresh_every must be zero or positive, not %d",
                         (int)o->refresh_every);
    TSK__OPTIONS_REQUIRE(o->refresh_every == 1 || o->cache != TSK_CACHE_NONE,
                         "refresh_every %d needs a cache: without one every pass is a forward of the whole canvas",
                         (int)o->refresh_every);
    TSK__OPTIONS_REQUIRE(o->refresh_window == 0 || o->refresh == TSK_REFRESH_NEAR || o->refresh_every == 1,
                         "refresh_window %d and refresh full need refresh_every 1, not %d: what comes into the window "
                         "has to be computed at the block's start",
                         (int)o->refresh_window, (int)o->refresh_every);
    TSK__OPTIONS_REQUIRE(o->end_of_turn_id >= TSK_NONE && o->end_of_turn_id < config->embedding_size,
                         "end_of_turn_id %d is outside the vocabulary of %d", (int)o->end_of_turn_id,
                         (int)config->embedding_size);
    return TSK_OK;
}
#undef TSK__OPTIONS_REQUIRE

/* Positions of the canvas: prompt and answer, by blocks rounded up to whole ones. */
static int64_t tsk__options_canvas(const tsk_generate_options *o, int32_t n_prompt) {
    int64_t length = (int64_t)n_prompt + o->gen_length;
    if (o->cache == TSK_CACHE_BLOCK) length += (o->block_length - length % o->block_length) % o->block_length;
    return length;
}

/* By blocks: rows of the largest piece of a prompt, whole blocks. */
static int32_t tsk__options_piece(const tsk_generate_options *o, int32_t limit) {
    int32_t n_blocks = (limit && limit < o->prompt_rows ? limit : o->prompt_rows) / o->block_length;
    return (n_blocks > 1 ? n_blocks : 1) * o->block_length;
}

/* How many states of a token are compared: none where every layer, or none, is below K. */
static int32_t tsk__options_n_states(const tsk_generate_options *o, const tsk_model_config *config) {
    if (o->skip.rule != TSK_SKIP_RULE_STATES && !o->skip.refresh) return 0;
    return o->skip.layer_k >= 2 && o->skip.layer_k < config->n_layers ? o->skip.layer_k - 1 : 0;
}

/* ---- memory of a request */

static int32_t tsk__request_max_block(const tsk__request *r) {
    return r->options.block_length > r->gen.infill_count ? r->options.block_length : r->gen.infill_count;
}

/* Lays the arrays out from `base`, or only measures when it is NULL. Requests with equal gen_length, block_length and
   prompt have arrays of equal sizes, except `cosines`. It comes last, so that a copy takes all others in one piece;
   *shared is their size. */
static size_t tsk__request_layout(tsk__request *r, char *base, size_t *shared) {
    size_t length = (size_t)r->gen.length, block = (size_t)tsk__request_max_block(r), masks = (size_t)r->gen.n_masks,
           used = 0;
#define TSK__REQUEST_ARRAY(type, field, count) \
    do { \
        if (base) r->field = (type *)(void *)(base + used); \
        used += ((count) * sizeof(type) + 15) & ~(size_t)15; \
    } while (0)
    TSK__REQUEST_ARRAY(int32_t, canvas.ids, length);
    TSK__REQUEST_ARRAY(int32_t, canvas.kept_ids, length);
    TSK__REQUEST_ARRAY(int32_t, block.positions, block);
    TSK__REQUEST_ARRAY(int32_t, block.rows, block);
    TSK__REQUEST_ARRAY(int32_t, block.sources, block);
    TSK__REQUEST_ARRAY(tsk__skip_slot, block.ranked, block);
    TSK__REQUEST_ARRAY(uint8_t, block.runs, block);
    TSK__REQUEST_ARRAY(uint8_t, block.before, block);
    TSK__REQUEST_ARRAY(tsk__skip_token, canvas.tokens, length);
    TSK__REQUEST_ARRAY(int32_t, canvas.nearest, length);
    TSK__REQUEST_ARRAY(uint32_t, canvas.computed_passes, length);
    TSK__REQUEST_ARRAY(uint8_t, canvas.is_listed, length);
    TSK__REQUEST_ARRAY(int32_t, block.predictions, block);
    TSK__REQUEST_ARRAY(float, block.confidences, block);
    TSK__REQUEST_ARRAY(float, block.entropies, block);
    TSK__REQUEST_ARRAY(uint8_t, block.committed, block);
    TSK__REQUEST_ARRAY(uint8_t, block.active, block);
    TSK__REQUEST_ARRAY(uint8_t, block.is_predicted, block);
    TSK__REQUEST_ARRAY(uint8_t, canvas.refresh_active, length);
    TSK__REQUEST_ARRAY(tsk_candidate, block.candidates, block);
    TSK__REQUEST_ARRAY(uint8_t, block.candidate_commits, block);
    TSK__REQUEST_ARRAY(tsk_block_result, counts.blocks, (size_t)r->gen.n_blocks);
    TSK__REQUEST_ARRAY(int32_t, counts.active, masks);
    TSK__REQUEST_ARRAY(int32_t, counts.stable_masked, masks);
    *shared = used;
    TSK__REQUEST_ARRAY(float, block.cosines, block * (size_t)r->n_states);
#undef TSK__REQUEST_ARRAY
    return used;
}

/* Room in the backend for a canvas of `length` tokens, and K and V of `capacity`. Those of the first n_final positions
   stay; `stream` may be NULL where these are none. */
static tsk_status tsk__request_device_memory(tsk__request *r, int32_t length, int32_t capacity, tsk__stream *stream,
                                             tsk_error *error) {
    tsk__cache_shape shape;
    memset(&shape, 0, sizeof shape);
    shape.length = length;
    shape.capacity = capacity;
    shape.n_kept = r->n_final;
    shape.n_slots = tsk__request_max_block(r);
    shape.n_states = r->n_states;
    shape.has_refresh_states = r->options.skip.refresh && r->n_states;
    shape.has_outputs = r->keeps_outputs;
    shape.has_residual = r->cut.is_allowed;
    return tsk__cache_resize(&r->cache, &shape, stream, error);
}

static tsk_status tsk__force_check(const char *function, int32_t n_active, int32_t n_refresh, tsk_error *error) {
    if (n_active >= TSK_AUTO && n_refresh >= TSK_AUTO) return TSK_OK;
    return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                          "%s: n_active %d and n_refresh %d must be -1 or more", function, (int)n_active,
                          (int)n_refresh);
}

static void tsk__request_free(tsk__request *r) {
    tsk__cache_free(&r->cache);
    tsk__memory_delete(r->allocator, r->memory);
    r->memory = NULL;
    r->n_final = 0;
    r->gen.is_started = 0;
}

/* ---- start */

static tsk_status tsk__request_check_ids(const tsk__request *r, const char *what, const int32_t *ids, int32_t n,
                                         tsk_error *error) {
    int32_t i;
    for (i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= r->config->embedding_size)
            return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                                  "%s: id %d at position %d is outside the vocabulary of %d", what, (int)ids[i], (int)i,
                                  (int)r->config->embedding_size);
    return TSK_OK;
}

static int32_t tsk__count_masks(const int32_t *ids, int32_t n, int32_t mask) {
    int32_t i, count = 0;
    for (i = 0; i < n; i++) count += ids[i] == mask;
    return count;
}

static int tsk__request_is_masked(const tsk__request *r, int32_t slot) {
    return r->canvas.ids[r->block.positions[slot]] == r->config->mask_token_id;
}

/* In the current block. */
static int32_t tsk__request_masks_left(const tsk__request *r) {
    int32_t i, masks_left = 0;
    for (i = 0; i < r->gen.n_positions; i++) masks_left += tsk__request_is_masked(r, i);
    return masks_left;
}

/* Row i predicts position i + 1. */
static int tsk__request_is_shifted(const tsk__request *r) { return tsk__family_of(r->config)->is_shifted; }

static int tsk__request_by_blocks(const tsk__request *r) { return r->options.cache == TSK_CACHE_BLOCK; }

/* By blocks: where the prompt's whole blocks end, which run before the first block. */
static int32_t tsk__request_prompt_end(const tsk__request *r) {
    return r->gen.n_prompt / r->options.block_length * r->options.block_length;
}

static int32_t tsk__request_block_end(const tsk__request *r) { return r->block.positions[r->gen.n_positions - 1] + 1; }

static int tsk__request_ends(const tsk__request *r, int32_t id) {
    return tsk_config_is_eos(r->config, id) || id == r->options.end_of_turn_id;
}

/* An end-of-sequence token in a finished block of the generated part, given or generated, ends everything after it. */
static int tsk__request_hit_end(const tsk__request *r) {
    int32_t i;
    if (!r->options.eos_stop || (r->gen.infill_count && r->gen.block == 0)) return 0;
    for (i = 0; i < r->gen.n_positions; i++) {
        int32_t at = r->block.positions[i] - r->gen.n_prompt; /* by blocks some are the prompt's, or are cut off */
        if (at >= 0 && at < r->options.gen_length && tsk__request_ends(r, r->canvas.ids[r->block.positions[i]]))
            return 1;
    }
    return 0;
}

static void tsk__request_end_early(tsk__request *r) {
    int32_t i;
    for (i = r->gen.n_prompt; i < r->gen.length; i++)
        if (r->canvas.ids[i] == r->config->mask_token_id) r->canvas.ids[i] = r->config->eos_token_id;
    r->canvas.is_uploaded = 0;
    r->gen.result.finish_reason = TSK_FINISH_EOS;
    r->gen.is_finished = 1;
}

/* Adds a position of the canvas that is not there yet to the n of `nearest`; returns how many there are now. */
static int32_t tsk__request_list(tsk__request *r, int32_t n, int32_t position) {
    if (position < 0 || position >= r->gen.length || r->canvas.is_listed[position]) return n;
    r->canvas.is_listed[position] = 1;
    r->canvas.nearest[n] = position;
    return n + 1;
}

/* Lists the canvas by distance from the block, its own positions first, by walking outwards from all of them at once;
   of two positions as far away the lower comes first. */
static void tsk__request_list_nearest(tsk__request *r) {
    int32_t i, n = 0;
    memset(r->canvas.is_listed, 0, (size_t)r->gen.length * sizeof *r->canvas.is_listed);
    for (i = 0; i < r->gen.n_positions; i++) n = tsk__request_list(r, n, r->block.positions[i]);
    for (i = 0; i < n; i++) {
        n = tsk__request_list(r, n, r->canvas.nearest[i] - 1);
        n = tsk__request_list(r, n, r->canvas.nearest[i] + 1);
    }
}

/* How many positions the passes of the current block see: by blocks none behind it; else up to the end of the window
   behind it, or to the last token that is there already, if that is further. */
static int32_t tsk__request_visible(const tsk__request *r) {
    int32_t visible = r->gen.length, end = tsk__request_block_end(r);
    if (tsk__request_by_blocks(r)) return end;
    if (!r->options.refresh_window) return visible;
    while (visible > end && visible - end > r->options.refresh_window &&
           r->canvas.ids[visible - 1] == r->config->mask_token_id)
        visible--;
    return visible;
}

/* Makes block number r->gen.block the current one. */
static void tsk__request_enter_block(tsk__request *r) {
    int has_infill = r->gen.infill_count > 0;
    int32_t i, start = tsk__request_by_blocks(r) ? tsk__request_prompt_end(r) : r->gen.n_prompt;
    int32_t first = start + (r->gen.block - has_infill) * r->options.block_length;
    r->gen.n_positions = 0;
    if (has_infill && r->gen.block == 0) {
        for (i = 0; i < r->gen.n_prompt; i++)
            if (r->canvas.ids[i] == r->config->mask_token_id) r->block.positions[r->gen.n_positions++] = i;
    } else {
        for (i = 0; i < r->options.block_length; i++) r->block.positions[r->gen.n_positions++] = first + i;
    }
    r->gen.visible = tsk__request_visible(r);
    r->gen.block_masks = tsk__request_masks_left(r);
    r->gen.block_step = 0;
    r->gen.has_previous = r->gen.has_outputs = 0;
    for (i = 0; i < r->gen.n_positions; i++) {
        r->block.is_predicted[i] = 0;
        r->block.predictions[i] = r->canvas.ids[r->block.positions[i]];
        r->block.confidences[i] = 0;
    }
    r->gen.result.n_blocks = r->gen.block + 1;
    r->gen.n_started += r->gen.block_masks > 0;
    if (r->options.refresh_rows) tsk__request_list_nearest(r);
}

/* By blocks: whether the block's K and V are needed, since masks are left behind it. */
static int tsk__request_must_store(const tsk__request *r) {
    int32_t end = tsk__request_block_end(r);
    return tsk__request_by_blocks(r) &&
           tsk__count_masks(r->canvas.ids + end, r->gen.length - end, r->config->mask_token_id) > 0;
}

/* From number r->gen.block on the next block for which a pass has to run becomes the current one: it holds a mask, or
   must be stored. None: the generation is over. */
static void tsk__request_next_block(tsk__request *r) {
    for (; r->gen.block < r->gen.n_blocks; r->gen.block++) {
        tsk__request_enter_block(r);
        if (r->gen.block_masks) return;
        if (tsk__request_hit_end(r)) {
            tsk__request_end_early(r);
            return;
        }
        if (tsk__request_must_store(r)) return;
    }
    r->gen.is_finished = 1;
    r->gen.result.finish_reason = TSK_FINISH_LENGTH;
}

/* The result's arrays are the request's own. */
static void tsk__request_point_result(tsk__request *r) {
    tsk_result *result = &r->gen.result;
    result->tokens = r->canvas.ids + r->gen.n_prompt;
    result->canvas = r->canvas.ids;
    result->blocks = r->counts.blocks;
    result->active = r->counts.active;
    result->stable_masked = r->counts.stable_masked;
}

/* What follows from the options, and the memory for the generation that r->gen tells the sizes of, with K and V of
   `capacity` positions. *before: that of the generation before, for the caller to free once nothing of it is needed any
   more. */
static tsk_status tsk__request_allocate(tsk__request *r, int32_t capacity, tsk__stream *stream, void **before,
                                        tsk_error *error) {
    size_t size, shared;
    r->n_states = tsk__options_n_states(&r->options, r->config);
    r->keeps_outputs =
        r->n_states && r->options.skip.rule == TSK_SKIP_RULE_STATES && r->options.skip.policy == TSK_SKIP_REUSE;
    size = tsk__request_layout(r, NULL, &shared);
    *before = r->memory;
    r->memory = tsk__memory_new_zeroed(r->allocator, 1, size);
    if (!r->memory) return tsk__error_memory(error, "a generation", size);
    tsk__request_layout(r, (char *)r->memory, &shared);
    tsk__request_point_result(r);
    r->canvas.is_uploaded = 0;
    r->cut.next_layer = 0;
    r->cut.pending_ms = 0;
    memset(&r->failure, 0, sizeof r->failure);
    return tsk__request_device_memory(r, r->gen.length, capacity, stream, error);
}

/* By blocks: the prompt's whole blocks are computed once, before anything in them could be predicted. */
static tsk_status tsk__request_check_blocks(const tsk__request *r, const int32_t *prompt, int32_t n_prompt,
                                            tsk_error *error) {
    const int32_t block = r->options.block_length, end = n_prompt / block * block;
    int32_t i;
    if (tsk__options_canvas(&r->options, n_prompt) > r->config->max_sequence_length)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "%d prompt tokens and gen_length %d, in whole blocks of %d, are more than the model's "
                              "max_sequence_length %d",
                              (int)n_prompt, (int)r->options.gen_length, (int)block,
                              (int)r->config->max_sequence_length);
    for (i = 0; i < end; i++)
        if (prompt[i] == r->config->mask_token_id)
            return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                                  "the prompt has a mask at position %d: with cache block only positions from %d on, "
                                  "behind its whole blocks of %d, can be filled",
                                  (int)i, (int)end, (int)block);
    return TSK_OK;
}

static tsk_status tsk__request_check_start(const tsk__request *r, const int32_t *prompt, int32_t n_prompt,
                                           const int32_t *generated, tsk_error *error) {
    const tsk_generate_options *o = &r->options;
    tsk_status status;
    if (n_prompt < 0 || (n_prompt && !prompt))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "the prompt's length %d has no tokens to it", (int)n_prompt);
    if (n_prompt > r->config->max_sequence_length - o->gen_length)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "%d prompt tokens and gen_length %d are more than the model's max_sequence_length %d",
                              (int)n_prompt, (int)o->gen_length, (int)r->config->max_sequence_length);
    status = tsk__request_check_ids(r, "the prompt", prompt, n_prompt, error);
    if (status == TSK_OK && tsk__request_by_blocks(r)) status = tsk__request_check_blocks(r, prompt, n_prompt, error);
    if (status == TSK_OK && generated)
        status = tsk__request_check_ids(r, "the generated part", generated, o->gen_length, error);
    return status;
}

/* By blocks: how many positions of a new prompt are finished already, in whole blocks. Where logits are shifted, its
   last whole block must run if it has a mask behind it to predict. */
static int32_t tsk__request_finished(const tsk__request *r, const int32_t *prompt, int32_t n_prompt,
                                     const int32_t *generated) {
    const int32_t block = r->options.block_length, end = n_prompt / block * block, mask = r->config->mask_token_id;
    int32_t n = 0, first = end < n_prompt ? prompt[end] : generated ? generated[0] : mask;
    if (!tsk__request_by_blocks(r)) return 0;
    while (n < r->n_final && n < end && r->canvas.ids[n] == prompt[n]) n++;
    n = n / block * block;
    if (n && n == end && tsk__request_is_shifted(r) && first == mask) n -= block;
    return n;
}

/* What r->gen says of the sizes of a generation of these tokens. */
static void tsk__request_measure(tsk__request *r, const int32_t *prompt, int32_t n_prompt, const int32_t *generated) {
    const tsk_generate_options *o = &r->options;
    const int32_t mask = r->config->mask_token_id, holes = tsk__count_masks(prompt, n_prompt, mask);
    r->gen.n_prompt = r->gen.result.n_prompt = n_prompt;
    r->gen.result.n_tokens = o->gen_length;
    r->gen.length = (int32_t)tsk__options_canvas(o, n_prompt);
    r->gen.n_masks = holes + (generated ? tsk__count_masks(generated, o->gen_length, mask) : o->gen_length) +
                     r->gen.length - n_prompt - o->gen_length;
    r->gen.infill_count = tsk__request_by_blocks(r) ? 0 : holes;
    r->gen.n_blocks = tsk__request_by_blocks(r) ? r->gen.length / o->block_length - n_prompt / o->block_length
                                                : o->gen_length / o->block_length + (holes > 0);
}

/* On failure there is no generation. `stream`: of the generation before, NULL where there was none. */
static tsk_status tsk__request_start(tsk__request *r, const int32_t *prompt, int32_t n_prompt, const int32_t *generated,
                                     tsk__stream *stream, tsk_error *error) {
    const tsk_generate_options *o = &r->options;
    const int32_t mask = r->config->mask_token_id;
    void *before = NULL; /* the arrays of the generation before, which the prompt may be of */
    int32_t i, n_final = 0, capacity;
    tsk_status status = tsk__request_check_start(r, prompt, n_prompt, generated, error);
    memset(&r->gen, 0, sizeof r->gen);
    if (status == TSK_OK && stream) n_final = tsk__request_finished(r, prompt, n_prompt, generated);
    r->n_final = n_final;
    if (status != TSK_OK) return status;
    tsk__request_measure(r, prompt, n_prompt, generated);
    capacity = n_final && r->cache.shape.capacity > r->gen.length ? r->cache.shape.capacity : r->gen.length;
    status = tsk__request_allocate(r, capacity, stream, &before, error);
    if (status != TSK_OK) {
        r->n_final = 0;
        tsk__memory_delete(r->allocator, before);
        return status;
    }
    if (n_prompt) memcpy(r->canvas.ids, prompt, (size_t)n_prompt * sizeof *prompt);
    for (i = 0; i < r->gen.length - n_prompt; i++)
        r->canvas.ids[n_prompt + i] = generated && i < o->gen_length ? generated[i] : mask;
    tsk__memory_delete(r->allocator, before);
    for (i = 0; i < r->gen.length; i++) r->canvas.tokens[i].computed_id = -1;
    r->gen.is_started = 1;
    tsk__request_next_block(r);
    return TSK_OK;
}

/* ---- one pass: plan, take the decision, predict, finish */

/* Whether some visible position has never run: the first block's pass is to fill the cache. */
static int tsk__request_has_gaps(const tsk__request *r) {
    int32_t i;
    for (i = 0; i < r->gen.visible && r->canvas.tokens[i].computed_id >= 0;) i++;
    return i < r->gen.visible;
}

/* Which positions the next pass runs. */
static tsk__pass_kind tsk__request_next_kind(const tsk__request *r) {
    const tsk_generate_options *o = &r->options;
    if (tsk__request_by_blocks(r) && r->n_final < tsk__request_prompt_end(r)) return TSK__PASS_PROMPT;
    if (tsk__request_by_blocks(r)) return tsk__request_masks_left(r) ? TSK__PASS_STEP : TSK__PASS_STORE;
    if (o->cache == TSK_CACHE_NONE) return TSK__PASS_FULL;
    if (r->gen.block_step == 0) {
        int32_t started = r->gen.n_started - 1;
        if (started == 0 || (o->refresh_every && started % o->refresh_every == 0)) return TSK__PASS_FULL;
        if (o->refresh == TSK_REFRESH_NEAR) return TSK__PASS_NEAR;
        if (tsk__request_has_gaps(r)) return TSK__PASS_FULL; /* (a copy of a session with a window) */
    }
    return o->cache == TSK_CACHE_PREFIX ? TSK__PASS_SUFFIX : TSK__PASS_STEP;
}

static int tsk__request_is_refresh(const tsk__request *r) { return r->pass.kind >= TSK__PASS_NEAR; }

/* By blocks: makes K and V final, and is no part of the block's steps. */
static int tsk__request_is_final(const tsk__request *r) {
    return r->pass.kind == TSK__PASS_PROMPT || r->pass.kind == TSK__PASS_STORE;
}

/* How many steps the schedule has for a block. */
static int32_t tsk__request_steps(const tsk__request *r) {
    int32_t steps;
    if (!tsk__request_by_blocks(r)) return r->options.steps / (r->options.gen_length / r->options.block_length);
    if (r->options.steps == TSK_AUTO) return r->options.block_length;
    steps = r->options.steps / r->gen.n_blocks;
    return steps > 1 ? steps : 1;
}

/* This step's share of the block's masks by LLaDA's schedule; beyond the schedule's end, one. */
static int32_t tsk__request_quota(const tsk__request *r) {
    int32_t steps = tsk__request_steps(r);
    if (r->gen.block_step >= steps) return 1;
    return r->gen.block_masks / steps + (r->gen.block_step < r->gen.block_masks % steps);
}

/* Whether `position` has another id now than the one from which its K and V are. */
static int tsk__request_is_changed(const tsk__request *r, int32_t position) {
    return r->canvas.ids[position] != r->canvas.tokens[position].computed_id;
}

/* Whether this step leaves nothing out, whatever the rule. */
static int tsk__request_runs_all(const tsk__request *r) {
    return r->gen.block_step == 0 || r->pass.runs_all ||
           (r->options.skip.full_every > 0 && r->gen.block_step % r->options.skip.full_every == 0);
}

/* The number of the pass in random draws: how a prompt is cut does not change what is drawn. */
static uint32_t tsk__request_draw_pass(const tsk__request *r) {
    return r->gen.pass - (uint32_t)r->gen.result.prompt_passes;
}

/* Whether this pass may commit the position of a slot, if it is predicted. */
static int tsk__request_is_candidate(const tsk__request *r, int32_t slot) {
    return slot >= r->pass.stretch_begin && slot < r->pass.stretch_end && tsk__request_is_masked(r, slot);
}

/* The slots that this pass may commit: of the first small block that holds a mask, or all. */
static void tsk__request_choose_stretch(tsk__request *r) {
    int32_t size = r->options.small_block, first = 0;
    r->pass.stretch_begin = 0;
    r->pass.stretch_end = r->gen.n_positions;
    if (!size) return;
    while (first < r->gen.n_positions && !tsk__request_is_masked(r, first)) first++;
    r->pass.stretch_begin = first / size * size;
    r->pass.stretch_end = r->pass.stretch_begin + size;
}

/* The slot whose row predicts a slot's position: its own, or where logits are shifted the one before. -1: that is no
   row of the block. */
static int32_t tsk__request_predictor(const tsk__request *r, int32_t slot) {
    if (!tsk__request_is_shifted(r) || r->block.positions[slot] == 0) return slot;
    return slot > 0 && r->block.positions[slot - 1] == r->block.positions[slot] - 1 ? slot - 1 : -1;
}

/* Whether a pass has to run the row before a slot's position, outside the block, for it to be predicted. By blocks that
   has been done before the block began. */
static int tsk__request_needs_before(const tsk__request *r, int32_t slot) {
    return !tsk__request_by_blocks(r) && tsk__request_predictor(r, slot) < 0 && tsk__request_is_candidate(r, slot);
}

/* The rule `rows`: what it knows of the block's positions. Returns how many are changed. */
static int32_t tsk__request_rank(const tsk__request *r) {
    int32_t i, n_changed = 0;
    for (i = 0; i < r->gen.n_positions; i++) {
        tsk__skip_slot *slot = &r->block.ranked[i];
        slot->is_masked = tsk__request_is_candidate(r, i);
        slot->is_changed = tsk__request_is_changed(r, r->block.positions[i]);
        slot->confidence = r->options.remasking == TSK_REMASKING_RANDOM
                               ? tsk__random_confidence(r->options.seed, r->block.positions[i],
                                                        tsk__request_draw_pass(r))
                               : r->block.confidences[i];
        n_changed += slot->is_changed;
    }
    return n_changed;
}

/* By force: the rule's with as many masked ones as make up n, then the others in order until there are n. */
static void tsk__request_force_rows(const tsk__request *r, int32_t n_changed) {
    int32_t i, left = r->force_active;
    tsk__skip_rows(r->block.ranked, r->gen.n_positions, left > n_changed ? left - n_changed : 1, 0, r->block.runs);
    for (i = 0; i < r->gen.n_positions; i++) left -= r->block.runs[i];
    for (i = 0; i < r->gen.n_positions && left > 0; i++) {
        left -= !r->block.runs[i];
        r->block.runs[i] = 1;
    }
}

/* Shifted logits: from the masked slots that are to be predicted to the rows that do so. */
static void tsk__request_shift_rows(const tsk__request *r) {
    const tsk__skip_slot *slots = r->block.ranked;
    uint8_t *runs = r->block.runs;
    int32_t i, n = r->gen.n_positions;
    for (i = 0; i < n; i++) r->block.before[i] = r->block.before[i] && runs[i];
    for (i = 0; i < n; i++) {
        int is_own = slots[i].is_masked && runs[i] && tsk__request_predictor(r, i) == i;
        int is_next = i + 1 < n && slots[i + 1].is_masked && runs[i + 1] && tsk__request_predictor(r, i + 1) == i;
        runs[i] = slots[i].is_changed || (runs[i] && !slots[i].is_masked) || is_own || is_next;
    }
}

/* Which of the block's positions a step runs. */
static void tsk__request_choose_rows(const tsk__request *r) {
    const tsk_generate_options *o = &r->options;
    int32_t i, most = r->gen.n_positions, n_changed;
    memset(r->block.runs, 1, (size_t)r->gen.n_positions);
    for (i = 0; i < r->gen.n_positions; i++) r->block.before[i] = (uint8_t)tsk__request_needs_before(r, i);
    if (o->skip.rule != TSK_SKIP_RULE_ROWS || tsk__request_runs_all(r) || !tsk__request_masks_left(r)) return;
    n_changed = tsk__request_rank(r);
    if (r->force_active >= 0) {
        tsk__request_force_rows(r, n_changed);
        if (tsk__request_is_shifted(r)) tsk__request_shift_rows(r);
        return;
    }
    if (o->transfer == TSK_TRANSFER_SCHEDULE && !o->on_select) {
        int32_t quota = tsk__request_quota(r);
        if (quota < 1) quota = 1;
        if (o->skip.rows_margin < most - quota) most = quota + o->skip.rows_margin;
    }
    tsk__skip_rows(r->block.ranked, r->gen.n_positions, most, o->skip.rows_ahead, r->block.runs);
    if (tsk__request_is_shifted(r)) tsk__request_shift_rows(r);
}

/* Which positions a pass of kind NEAR runs, refresh_rows' not counted, in canvas.is_listed; returns how many. */
static int32_t tsk__request_choose_near(const tsk__request *r) {
    int32_t i, n = 0, end = r->block.positions[r->gen.n_positions - 1] + 1;
    for (i = 0; i < r->gen.visible; i++)
        r->canvas.is_listed[i] =
            tsk__request_is_changed(r, i) || (i >= end && i - end < r->options.refresh_near &&
                                              r->canvas.ids[i] == r->config->mask_token_id);
    for (i = 0; i < r->gen.n_positions; i++) {
        r->canvas.is_listed[r->block.positions[i]] = 1;
        if (tsk__request_needs_before(r, i)) r->canvas.is_listed[r->block.positions[i] - 1] = 1;
    }
    for (i = 0; i < r->gen.visible; i++) n += r->canvas.is_listed[i];
    return n;
}

/* Where a step of cache prefix begins. */
static int32_t tsk__request_suffix(const tsk__request *r) {
    return r->block.positions[0] - tsk__request_needs_before(r, 0);
}

/* Whether a step runs a position outside the block because it predicts one of the block's. */
static int tsk__request_is_before(const tsk__request *r, int32_t position) {
    int32_t i;
    for (i = 0; i < r->gen.n_positions; i++)
        if (r->block.before[i] && r->block.positions[i] == position + 1) return 1;
    return 0;
}

/* Chooses the positions of the next pass; returns how many rows it has. Asked again before that pass, it gives the
   same. */
static int32_t tsk__request_choose(tsk__request *r) {
    tsk__request_pass *pass = &r->pass;
    int32_t i, n = 0, outside;
    if (!pass->is_probe) pass->kind = tsk__request_next_kind(r);
    pass->n_further = 0;
    tsk__request_choose_stretch(r);
    if (pass->kind == TSK__PASS_PROMPT) {
        n = tsk__options_piece(&r->options, r->cut.prompt_rows);
        outside = tsk__request_prompt_end(r) - r->n_final;
        return n < outside ? n : outside;
    }
    if (pass->kind == TSK__PASS_FULL) return r->gen.visible;
    if (pass->kind == TSK__PASS_SUFFIX) return r->gen.visible - tsk__request_suffix(r);
    if (pass->kind == TSK__PASS_NEAR) {
        n = tsk__request_choose_near(r);
        outside = r->gen.visible - n;
    } else {
        tsk__request_choose_rows(r);
        outside = r->gen.visible - r->gen.n_positions;
        for (i = 0; i < r->gen.n_positions; i++) {
            n += r->block.runs[i] + r->block.before[i];
            outside -= r->block.before[i];
        }
    }
    pass->n_further = r->options.refresh_rows < outside ? r->options.refresh_rows : outside;
    return n + pass->n_further;
}

/* How fresh a position's K and V are: a pass number plus 1, or 0 (the least) if they were computed from another id than
   the position has now; usually that was a mask. */
static uint32_t tsk__request_freshness(const tsk__request *r, int32_t position) {
    return tsk__request_is_changed(r, position) ? 0 : 1 + r->canvas.computed_passes[position];
}

/* refresh_rows' positions: those whose K and V are the stalest, near the block first. They are no part of the block:
   without a slot they have no states, are never skipped and predict nothing. */
static void tsk__request_choose_further(const tsk__request *r, int32_t *positions) {
    int32_t n = 0, i;
    uint32_t stalest = 0;
    while (n < r->pass.n_further) {
        uint32_t next = UINT32_MAX;
        for (i = r->gen.n_positions; i < r->gen.length && n < r->pass.n_further; i++) {
            int32_t position = r->canvas.nearest[i];
            uint32_t freshness = tsk__request_freshness(r, position);
            if (position >= r->gen.visible) continue;
            if (r->pass.kind == TSK__PASS_NEAR && r->canvas.is_listed[position]) continue;
            if (r->pass.kind == TSK__PASS_STEP && tsk__request_is_before(r, position)) continue;
            if (freshness > stalest && freshness < next) next = freshness;
            if (freshness != stalest) continue;
            positions[n++] = position;
        }
        stalest = next;
    }
}

/* A refresh under skip.refresh has states of its own, of every position of the canvas. (A copy of a session with a
   window may be in a block that does not see all of it.) */
static int tsk__request_skips_refresh(const tsk__request *r) {
    return r->pass.kind == TSK__PASS_FULL && r->n_states && r->options.skip.refresh && r->gen.visible == r->gen.length;
}

/* Whether block steps compare states. */
static int tsk__request_compares(const tsk__request *r) {
    return r->n_states && r->options.skip.rule == TSK_SKIP_RULE_STATES && !tsk__request_is_final(r);
}

/* Rows of the largest pass that the generation may have. */
static int32_t tsk__request_most_rows(const tsk__request *r) {
    int32_t piece = tsk__options_piece(&r->options, 0), prompt = tsk__request_prompt_end(r);
    if (!tsk__request_by_blocks(r)) return r->gen.length;
    if (piece > prompt) piece = prompt;
    return piece > r->options.block_length ? piece : r->options.block_length;
}

/* Whether the pass under way is the last part of the request's forward pass: usually its only one. */
static int tsk__request_completes(const tsk__request *r) { return r->pass.last_layer == r->config->n_layers; }

/* A refresh compares states only if they are kept for later. */
static int tsk__request_keeps_states(const tsk__request *r) {
    if (tsk__request_skips_refresh(r)) return 1;
    return tsk__request_compares(r) && (!tsk__request_is_refresh(r) || r->options.skip.warm_start);
}

/* Adds rows first .. visible-1 of the canvas, of a pass that is NEAR those that are listed. */
static void tsk__request_add_canvas(tsk__request *r, tsk__pass *p, int32_t first) {
    /* Block rows of a refresh have slots only where something of them is kept. */
    int keeps = tsk__request_compares(r) && (r->options.skip.warm_start || r->keeps_outputs);
    int by_position = tsk__request_skips_refresh(r), is_own = !tsk__request_is_shifted(r);
    int32_t i, slot = 0, before = -1; /* the row of the position before */
    for (i = first; i < r->gen.visible; i++) {
        int in_block = slot < r->gen.n_positions && r->block.positions[slot] == i;
        if (r->pass.kind == TSK__PASS_NEAR && !r->canvas.is_listed[i]) {
            before = -1;
            continue;
        }
        if (in_block) {
            r->block.rows[slot] = p->n;
            r->block.sources[slot] = is_own || i == 0 ? p->n : before;
        }
        before = p->n;
        tsk__pass_add_row(p, r->canvas.ids[i], i, by_position ? i : in_block && keeps ? slot : -1);
        slot += in_block;
    }
}

/* Adds the next n rows of the prompt's whole blocks. */
static void tsk__request_add_prompt(tsk__request *r, tsk__pass *p, int32_t n) {
    const int32_t block = r->options.block_length;
    int32_t i;
    for (i = 0; i < r->gen.n_positions; i++) r->block.rows[i] = r->block.sources[i] = -1;
    for (i = r->n_final; i < r->n_final + n; i++) {
        tsk__pass_add_row(p, r->canvas.ids[i], i, -1);
        p->visible[p->n - 1] = (i / block + 1) * block;
    }
}

/* Adds the rows of a step of caches dual and block, or of a storing pass. */
static void tsk__request_add_step(tsk__request *r, tsk__pass *p, const int32_t *further) {
    int32_t i;
    for (i = 0; i < r->gen.n_positions; i++) {
        int32_t position = r->block.positions[i], predictor = tsk__request_predictor(r, i), before = -1;
        if (r->block.before[i]) {
            before = p->n;
            tsk__pass_add_row(p, r->canvas.ids[position - 1], position - 1, -1);
        }
        r->block.rows[i] = r->block.runs[i] ? p->n : -1;
        r->block.sources[i] = predictor < 0 ? before : r->block.rows[predictor];
        if (r->block.runs[i])
            tsk__pass_add_row(p, r->canvas.ids[position], position, tsk__request_compares(r) ? i : -1);
    }
    for (i = 0; i < r->pass.n_further; i++) tsk__pass_add_row(p, r->canvas.ids[further[i]], further[i], -1);
}

/* Adds the request and its rows. */
static void tsk__request_plan_rows(tsk__request *r, tsk__pass *p) {
    int32_t i, n, *further = p->narrowed; /* (free until the layers run) */
    tsk__kv *kv = &p->caches[p->n_requests];
    n = tsk__request_choose(r);
    tsk__request_choose_further(r, further);
    r->pass.first_row = p->n;
    *kv = tsk__cache_view(&r->cache, tsk__request_skips_refresh(r));
    kv->length = r->pass.kind == TSK__PASS_PROMPT ? r->n_final + n : r->gen.visible;
    kv->skip_threshold = r->options.skip.threshold;
    kv->skip_outlier = r->options.skip.outlier;
    kv->has_reference = tsk__request_skips_refresh(r) ? r->gen.has_refresh : r->gen.has_previous;
    p->n_requests++;
    if (r->pass.kind == TSK__PASS_PROMPT) tsk__request_add_prompt(r, p, n);
    else if (r->pass.kind == TSK__PASS_STEP || r->pass.kind == TSK__PASS_STORE) tsk__request_add_step(r, p, further);
    else {
        for (i = 0; i < r->pass.n_further; i++) r->canvas.is_listed[further[i]] = 1;
        tsk__request_add_canvas(r, p, r->pass.kind == TSK__PASS_SUFFIX ? tsk__request_suffix(r) : 0);
    }
    r->pass.n_rows = p->n - r->pass.first_row;
}

/* Which of the model's layers. */
static void tsk__request_plan_layers(tsk__request *r) {
    r->pass.first_layer = r->cut.next_layer;
    r->pass.last_layer = r->config->n_layers;
    if (tsk__request_is_refresh(r) && r->cut.layer_budget &&
        r->pass.last_layer - r->pass.first_layer > r->cut.layer_budget)
        r->pass.last_layer = r->pass.first_layer + r->cut.layer_budget;
    /* The decision needs the cosines of all lower layers, which a pass does not leave to the next. */
    if (r->pass.is_deciding && r->pass.first_layer == 0 && r->pass.last_layer <= r->n_states + 1)
        r->pass.last_layer = r->n_states + 2;
}

/* Whether the token at `position` may skip the upper layers, if its cosines allow. */
static int32_t tsk__request_may_skip(tsk__request *r, int32_t position, int32_t age) {
    tsk__skip_token *token = &r->canvas.tokens[position];
    token->id = r->canvas.ids[position];
    token->is_masked = token->id == r->config->mask_token_id;
    return tsk__skip_is_allowed(&r->options, token, age) ? TSK__ROW_MAY_SKIP : 0;
}

/* Whether rows may be skipped by force: not in a block's first pass, nor in a probe that leaves nothing out, nor where
   the outputs that they would take are missing. */
static int tsk__request_may_force(const tsk__request *r) {
    return r->force_active >= 0 && r->gen.block_step > 0 && !r->pass.runs_all &&
           (r->gen.has_outputs || !r->keeps_outputs);
}

/* Whether a slot's row predicts another's that is masked: what holds for masked tokens holds for it, too. */
static int tsk__request_predicts_mask(const tsk__request *r, int32_t slot) {
    return slot + 1 < r->gen.n_positions && tsk__request_predictor(r, slot + 1) == slot &&
           tsk__request_is_masked(r, slot + 1);
}

static void tsk__request_plan_step_skips(tsk__request *r, tsk__pass *p) {
    int all = tsk__request_runs_all(r);
    int32_t i;
    for (i = 0; i < r->gen.n_positions; i++) {
        int32_t *flags = &p->flags[r->block.rows[i]];
        if (tsk__request_may_force(r)) *flags |= i < r->force_active ? 0 : TSK__ROW_SKIPS;
        else if (!all && (r->options.skip.masked || !tsk__request_predicts_mask(r, i)))
            *flags |= tsk__request_may_skip(r, r->block.positions[i], r->canvas.tokens[r->block.positions[i]].age);
    }
}

/* Positions of the block about to be decoded always run: their predictions are what the refresh is for. */
static void tsk__request_plan_refresh_skips(tsk__request *r, tsk__pass *p) {
    int32_t i, slot = 0, outside = 0;
    for (i = 0; i < r->gen.length; i++) {
        int32_t *flags = &p->flags[r->pass.first_row + i];
        int in_block = slot < r->gen.n_positions && r->block.positions[slot] == i;
        int predicts =
            tsk__request_is_shifted(r) && slot < r->gen.n_positions && r->block.positions[slot] == i + 1;
        if (predicts && !in_block) continue;
        if (!in_block && r->force_refresh >= 0) *flags |= outside < r->force_refresh ? 0 : TSK__ROW_SKIPS;
        else if (!in_block) *flags |= tsk__request_may_skip(r, i, r->canvas.tokens[i].refresh_age);
        slot += in_block;
        outside += !in_block;
    }
}

/* Chooses the rows whose states of this pass become the reference. LAST_STEP: all rows of the block. LAST_COMPUTED, and
   every refresh: the rows that ran all layers. (For a refresh that was cut, its first part told which.) If there was no
   reference before: all rows. */
static void tsk__request_plan_states(const tsk__request *r, tsk__pass *p) {
    int of_those_that_ran =
        tsk__request_is_refresh(r) || (r->gen.has_previous && r->options.skip.reference == TSK_SKIP_LAST_COMPUTED);
    int if_ran = r->pass.is_deciding && of_those_that_ran ? TSK__ROW_IF_RAN : 0;
    int32_t i;
    for (i = 0; tsk__request_skips_refresh(r) && i < r->gen.length; i++)
        if (p->active[r->pass.first_row + i]) p->flags[r->pass.first_row + i] |= TSK__ROW_REMEMBER | if_ran;
    if (tsk__request_skips_refresh(r)) return;
    for (i = 0; i < r->gen.n_positions; i++) p->flags[r->block.rows[i]] |= TSK__ROW_REMEMBER | if_ran;
}

static void tsk__request_plan(tsk__request *r, tsk__pass *p) {
    int32_t i;
    tsk__request_plan_rows(r, p);
    if (tsk__request_is_refresh(r)) r->pass.is_deciding = tsk__request_skips_refresh(r) && r->gen.has_refresh;
    /* (of a block's first pass all rows run: nothing that a skipped one could fall back on is there) */
    else
        r->pass.is_deciding = tsk__request_compares(r) && (r->gen.has_previous || tsk__request_may_force(r));
    tsk__request_plan_layers(r);
    for (i = 0; r->pass.is_deciding && r->cut.next_layer && i < r->pass.n_rows; i++)
        p->active[r->pass.first_row + i] = r->canvas.refresh_active[i];
    if (r->pass.is_deciding && !r->cut.next_layer && tsk__request_is_refresh(r)) tsk__request_plan_refresh_skips(r, p);
    if (r->pass.is_deciding && !tsk__request_is_refresh(r)) tsk__request_plan_step_skips(r, p);
    if (!tsk__request_completes(r)) return;
    if (tsk__request_keeps_states(r)) tsk__request_plan_states(r, p);
    for (i = 0; r->keeps_outputs && !tsk__request_is_final(r) && !tsk__request_skips_refresh(r) &&
                i < r->gen.n_positions;
         i++)
        p->flags[r->block.rows[i]] |= TSK__ROW_OUTPUT;
}

/* The backend's canvas, where the host has changed its own. Until the pass has succeeded, its contents are unknown, so
   is_uploaded stays 0. */
static void tsk__request_upload(tsk__request *r, tsk__pass *p) {
    if (!r->canvas.is_uploaded) tsk__cache_set_canvas(&r->cache, p->stream, r->canvas.ids);
    r->canvas.is_uploaded = 0;
}

/* Takes the backend's decision about this request's rows. */
static void tsk__request_take_decision(tsk__request *r, tsk__pass *p) {
    int32_t i;
    for (i = 0; i < r->pass.n_rows; i++) {
        int32_t row = r->pass.first_row + i;
        if (p->flags[row] & TSK__ROW_DECIDED) p->active[row] = !p->stream->skipped[row];
        if (tsk__request_skips_refresh(r)) r->canvas.refresh_active[i] = (uint8_t)p->active[row];
    }
}

/* Whether the token of a slot ran all layers, as far as the decision is known. */
static int tsk__request_ran(const tsk__request *r, const tsk__pass *p, int32_t slot) {
    return r->block.rows[slot] >= 0 && p->active[r->block.rows[slot]];
}

/* Layers that every row runs of a pass in which some skip the others. */
static uint64_t tsk__request_lower_layers(const tsk__request *r) {
    return (uint64_t)(r->options.skip.layer_k < r->config->n_layers ? r->options.skip.layer_k : r->config->n_layers);
}

/* All layers of a position ran: its K and V come from the id it has. */
static void tsk__request_note_computed(tsk__request *r, int32_t position) {
    r->canvas.tokens[position].computed_id = r->canvas.ids[position];
    r->canvas.computed_passes[position] = r->gen.pass;
}

/* How long tokens have been skipped: the canvas in refreshes, the block in steps. */
static void tsk__request_note_ages(tsk__request *r) {
    int32_t i;
    for (i = 0; i < r->gen.n_positions && !tsk__request_is_final(r); i++) {
        tsk__skip_token *token = &r->canvas.tokens[r->block.positions[i]];
        token->age = tsk__request_is_refresh(r) || r->block.active[i] ? 0 : token->age + 1;
    }
    if (!tsk__request_skips_refresh(r)) return;
    for (i = 0; i < r->gen.length; i++) {
        tsk__skip_token *token = &r->canvas.tokens[i];
        token->refresh_age = r->canvas.refresh_active[i] ? 0 : token->refresh_age + 1;
    }
    r->gen.has_refresh = 1;
}

/* After the layers: which rows ran all of them, so that K and V there come from the ids that the positions have. */
static void tsk__request_note_active(tsk__request *r, const tsk__pass *p) {
    int32_t i, row;
    r->pass.n_ran = 0;
    for (row = r->pass.first_row; row < r->pass.first_row + r->pass.n_rows; row++) {
        r->pass.n_ran += p->active[row] != 0;
        if (p->active[row]) tsk__request_note_computed(r, p->positions[row]);
        if (tsk__request_skips_refresh(r)) r->canvas.refresh_active[row - r->pass.first_row] = p->active[row] != 0;
    }
    for (i = 0; i < r->gen.n_positions; i++) r->block.active[i] = (uint8_t)tsk__request_ran(r, p, i);
    tsk__request_note_ages(r);
}

/* A refresh under skip.refresh numbers states by position: what the block's steps need of it is copied to their
   slots. */
static void tsk__request_keep_refresh(tsk__request *r, const tsk__pass *p) {
    int32_t i, state;
    if (!tsk__request_skips_refresh(r)) return;
    for (i = 0; i < r->gen.n_positions; i++) {
        int32_t position = r->block.positions[i];
        for (state = 0; tsk__request_compares(r) && r->options.skip.warm_start && state < r->n_states; state++)
            tsk__cache_adopt_state(&r->cache, p->stream, i, position, state);
        if (r->keeps_outputs) tsk__cache_adopt_output(&r->cache, p->stream, i, r->block.rows[i]);
    }
}

/* A masked token whose prediction is up to a stable one keeps its last prediction under `reuse`, if it has one, unless
   this step draws anew. */
static int tsk__request_reuses(const tsk__request *r, const tsk__pass *p, int32_t slot) {
    return !p->active[r->block.sources[slot]] && r->options.skip.policy == TSK_SKIP_REUSE &&
           r->options.temperature == 0 && r->block.is_predicted[slot];
}

/* Shifted logits: the last row of a pass that makes K and V final predicts the next block's first position, which is
   filled at once, with the most probable token. */
static void tsk__request_add_next(tsk__request *r, tsk__pass *p) {
    tsk__commit_candidate *candidate = &p->candidates[p->n_candidates];
    int32_t row = r->pass.first_row + r->pass.n_rows - 1, next = p->positions[row] + 1;
    int is_last = r->pass.kind == TSK__PASS_STORE || next == tsk__request_prompt_end(r);
    tsk__draw draw;
    r->pass.next_position = -1;
    r->pass.first_candidate = p->n_candidates;
    r->pass.n_candidates = 0;
    if (!tsk__request_is_shifted(r) || !is_last || next >= r->gen.length ||
        r->canvas.ids[next] != r->config->mask_token_id)
        return;
    memset(&draw, 0, sizeof draw);
    draw.mask_token_id = r->config->mask_token_id;
    draw.position = (uint32_t)next;
    candidate->position = next;
    candidate->slot = 0;
    candidate->head = p->n_head;
    tsk__pass_add_head(p, row, &draw);
    p->n_candidates++;
    r->pass.n_candidates = 1;
    r->pass.next_position = next;
}

/* Candidates are the block's masked positions whose prediction the pass has not left out; the head predicts them from
   rows that ran. */
static void tsk__request_add_candidates(tsk__request *r, tsk__pass *p) {
    tsk__draw draw;
    int32_t i;
    r->pass.next_position = -1;
    draw.temperature = r->options.temperature;
    draw.mask_token_id = r->config->mask_token_id;
    draw.seed = r->options.seed;
    draw.pass = tsk__request_draw_pass(r);
    r->pass.first_candidate = p->n_candidates;
    for (i = 0; i < r->gen.n_positions; i++) {
        tsk__commit_candidate *candidate = &p->candidates[p->n_candidates];
        int32_t row = r->block.sources[i];
        if (!tsk__request_is_candidate(r, i) || row < 0) continue;
        candidate->position = r->block.positions[i];
        candidate->slot = i;
        candidate->head = tsk__request_reuses(r, p, i) ? -1 : p->n_head;
        r->block.is_predicted[i] = 1;
        p->n_candidates++;
        draw.position = (uint32_t)r->block.positions[i];
        if (candidate->head >= 0) tsk__pass_add_head(p, row, &draw);
    }
    r->pass.n_candidates = p->n_candidates - r->pass.first_candidate;
}

/* The rule by which the backend commits candidates; a user's own is followed on the host. */
static void tsk__request_add_rule(const tsk__request *r, int32_t number, tsk__pass *p) {
    const tsk_generate_options *o = &r->options;
    tsk__commit_rule *rule = &p->rules[p->n_rules++];
    memset(rule, 0, sizeof *rule);
    rule->request = number;
    rule->first = r->pass.first_candidate;
    rule->n = r->pass.n_candidates;
    rule->commits = !r->pass.is_probe && !o->on_select;
    rule->rule.transfer = o->transfer;
    rule->rule.quota = tsk__request_quota(r);
    rule->rule.threshold = o->threshold;
    rule->rule.factor = o->factor;
    rule->rule.frechet = o->frechet;
    rule->rule.entropy_bound = o->entropy_bound;
    rule->rule.local_leap = o->local_leap;
    rule->rule.local_radius = o->local_radius;
    rule->is_random = o->remasking == TSK_REMASKING_RANDOM;
    rule->seed = o->seed;
    rule->pass = tsk__request_draw_pass(r);
    if (!tsk__request_is_final(r)) return;
    rule->commits = 1;
    rule->rule.transfer = TSK_TRANSFER_SCHEDULE;
    rule->rule.quota = 1;
    rule->is_random = 0;
}

/* Whether a candidate's choice can be one: its logits are numbers, its id is of the vocabulary and not the mask. */
static tsk_status tsk__request_check_choice(const tsk__request *r, int32_t position, const tsk__choice *choice,
                                            tsk_error *error) {
    if (!(fabsf(choice->log_sum_exp) <= FLT_MAX))
        return tsk__error_set(error, TSK_ERROR_NUMERIC, NULL, TSK_NO_OFFSET,
                              "pass %u: the logits of position %d are no numbers (their log-sum-exp is %s)",
                              (unsigned)r->gen.pass, (int)position,
                              choice->log_sum_exp != choice->log_sum_exp ? "NaN"
                              : choice->log_sum_exp > 0                  ? "infinite"
                                                                         : "minus infinity");
    if (choice->id < 0 || choice->id >= r->config->embedding_size || choice->id == r->config->mask_token_id)
        return tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET,
                              "pass %u: the device predicts id %d for position %d, which cannot be",
                              (unsigned)r->gen.pass, (int)choice->id, (int)position);
    return TSK_OK;
}

/* A probe may look at anything. Of a generation's passes each commits a token: that is why it ends, and how many passes
   there is room to count. */
static tsk_status tsk__request_check_choices(const tsk__request *r, const tsk__pass *p, tsk_error *error) {
    int32_t i, n_committed = 0;
    for (i = r->pass.first_candidate; i < r->pass.first_candidate + r->pass.n_candidates; i++) {
        tsk_status status = tsk__request_check_choice(r, p->candidates[i].position, &p->stream->choices[i], error);
        if (status != TSK_OK) return status;
        n_committed += p->stream->choices[i].is_committed != 0;
    }
    if (!n_committed && (tsk__request_is_final(r) ? r->pass.n_candidates > 0 : !r->options.on_select))
        return tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET,
                              "pass %u: the device commits none of %d predictions", (unsigned)r->gen.pass,
                              (int)r->pass.n_candidates);
    return TSK_OK;
}

/* What the pass predicts for the block. Masked positions that it left out keep their last prediction. */
static void tsk__request_take_predictions(tsk__request *r, const tsk__pass *p) {
    int32_t i;
    for (i = r->pass.first_candidate; i < r->pass.first_candidate + r->pass.n_candidates; i++) {
        r->block.predictions[p->candidates[i].slot] = p->stream->choices[i].id;
        r->block.confidences[p->candidates[i].slot] = p->stream->choices[i].confidence;
        r->block.entropies[p->candidates[i].slot] = p->stream->choices[i].entropy;
    }
}

/* The same, and what the backend has committed of it. */
static void tsk__request_take_choices(tsk__request *r, const tsk__pass *p) {
    int32_t i;
    for (i = 0; i < r->gen.n_positions; i++) {
        r->block.committed[i] = 0;
        if (tsk__request_is_masked(r, i)) continue;
        r->block.predictions[i] = r->canvas.ids[r->block.positions[i]];
        r->block.confidences[i] = 1.0f;
        r->block.entropies[i] = 0.0f;
    }
    if (tsk__request_is_final(r)) {
        if (r->pass.n_candidates) r->canvas.ids[r->pass.next_position] = p->stream->choices[r->pass.first_candidate].id;
        return;
    }
    tsk__request_take_predictions(r, p);
    for (i = r->pass.first_candidate; i < r->pass.first_candidate + r->pass.n_candidates; i++) {
        const tsk__choice *choice = &p->stream->choices[i];
        int32_t slot = p->candidates[i].slot;
        r->block.committed[slot] = choice->is_committed != 0;
        if (choice->is_committed) r->canvas.ids[r->block.positions[slot]] = choice->id;
    }
}

/* Commits by the user's own rule. One that chooses nothing falls back to the best candidate: a schedule of one. */
static void tsk__request_commit(tsk__request *r, const tsk__pass *p) {
    const tsk_generate_options *o = &r->options;
    const tsk__commit_candidate *candidates = p->candidates + r->pass.first_candidate;
    const tsk__choice *choices = p->stream->choices + r->pass.first_candidate;
    tsk_transfer_rule best;
    tsk_selection selection;
    int32_t i, n = r->pass.n_candidates, chosen = 0;
    for (i = 0; i < n; i++) {
        r->block.candidates[i].position = candidates[i].position;
        r->block.candidates[i].id = choices[i].id;
        r->block.candidates[i].confidence = choices[i].confidence;
        r->block.candidates[i].entropy = choices[i].entropy;
        r->block.candidate_commits[i] = 0;
    }
    memset(&selection, 0, sizeof selection);
    selection.pass = (int32_t)r->gen.pass;
    selection.block = r->gen.block;
    selection.block_step = r->gen.block_step;
    selection.quota = tsk__request_quota(r);
    selection.n = n;
    selection.candidates = r->block.candidates;
    selection.commit = r->block.candidate_commits;
    o->on_select(o->user, &selection);
    for (i = 0; i < n; i++) chosen += r->block.candidate_commits[i] != 0;
    memset(&best, 0, sizeof best);
    best.transfer = TSK_TRANSFER_SCHEDULE;
    best.quota = 1;
    if (!chosen) tsk_select(&best, n, r->block.candidates, r->block.candidate_commits);
    for (i = 0; i < n; i++) {
        if (!r->block.candidate_commits[i]) continue;
        r->block.committed[candidates[i].slot] = 1;
        r->canvas.ids[candidates[i].position] = choices[i].id;
    }
    r->canvas.is_uploaded = 0;
}

/* Refreshes count their token-layers where they leave some out, or may. */
static void tsk__request_count_refresh(tsk__request *r, double ms) {
    tsk_result *result = &r->gen.result;
    uint64_t layers = (uint64_t)r->config->n_layers, length = (uint64_t)r->gen.length, lower = 0, all = 0;
    result->refresh_ms += ms;
    result->refreshes++;
    if (!r->options.skip.refresh && r->options.refresh == TSK_REFRESH_FULL && !r->options.refresh_window) return;
    if (r->options.skip.refresh) lower = tsk__request_lower_layers(r), all = length;
    result->refresh_token_layers_total += length * layers;
    result->refresh_token_layers_computed += all * lower + (uint64_t)r->pass.n_ran * (layers - lower);
}

/* By states every token of the block runs the lower layers. */
static void tsk__request_count_step(tsk__request *r, double ms) {
    tsk_result *result = &r->gen.result;
    uint64_t rows = (uint64_t)r->gen.n_positions, layers = (uint64_t)r->config->n_layers;
    uint64_t lower = r->options.skip.rule == TSK_SKIP_RULE_STATES ? tsk__request_lower_layers(r) : 0;
    int32_t i, n_active = 0, n_stable_masked = 0;
    result->block_step_ms += ms;
    result->block_steps++;
    if (r->pass.kind != TSK__PASS_STEP) return;
    for (i = 0; i < r->gen.n_positions; i++) {
        n_active += r->block.active[i];
        n_stable_masked += !r->block.active[i] && (tsk__request_is_masked(r, i) || r->block.committed[i]);
    }
    r->counts.active[result->n_block_steps] = n_active;
    r->counts.stable_masked[result->n_block_steps++] = n_stable_masked;
    result->token_layers_total += rows * layers;
    result->token_layers_computed += rows * lower + (uint64_t)n_active * (layers - lower);
}

static void tsk__request_count_final(tsk__request *r, double ms) {
    tsk_result *result = &r->gen.result;
    int is_prompt = r->pass.kind == TSK__PASS_PROMPT;
    *(is_prompt ? &result->prompt_passes : &result->storing_passes) += 1;
    *(is_prompt ? &result->prompt_ms : &result->storing_ms) += ms;
}

static void tsk__request_count(tsk__request *r, double ms) {
    tsk_result *result = &r->gen.result;
    result->nfe++;
    result->total_ms += ms;
    result->rows += (uint64_t)r->pass.n_ran;
    result->refreshed_rows += (uint64_t)r->pass.n_further;
    r->counts.blocks[r->gen.block].nfe += r->pass.kind != TSK__PASS_PROMPT;
    if (tsk__request_is_final(r)) tsk__request_count_final(r, ms);
    else if (tsk__request_is_refresh(r)) tsk__request_count_refresh(r, ms);
    else tsk__request_count_step(r, ms);
}

static void tsk__request_cancel(tsk__request *r) {
    r->gen.result.finish_reason = TSK_FINISH_CANCELLED;
    r->gen.is_finished = 1;
}

/* Whether the pass has compared the block's states with earlier ones. */
static int tsk__request_has_cosines(const tsk__request *r) {
    return tsk__request_compares(r) && !tsk__request_is_refresh(r) && r->gen.has_previous;
}

/* Generated tokens before the first that is masked or ends the text. */
static int32_t tsk__request_final(const tsk__request *r) {
    const int32_t *tokens = r->canvas.ids + r->gen.n_prompt;
    int32_t n = 0;
    while (n < r->options.gen_length && tokens[n] != r->config->mask_token_id && !tsk__request_ends(r, tokens[n])) n++;
    return n;
}

/* Tells the step callback; nonzero when it wants to end. */
static int tsk__request_report(tsk__request *r, int32_t masks_left) {
    tsk_step step;
    int32_t i;
    if (!r->options.on_step) return 0;
    memset(&step, 0, sizeof step);
    step.pass = (int32_t)r->gen.pass;
    step.block = r->gen.block;
    step.block_step = r->gen.block_step;
    step.is_refresh = tsk__request_is_refresh(r);
    step.is_prompt = r->pass.kind == TSK__PASS_PROMPT;
    step.is_storing = r->pass.kind == TSK__PASS_STORE;
    step.next_committed = r->pass.next_position;
    step.n_rows = r->pass.n_ran;
    step.n_positions = r->gen.n_positions;
    step.positions = r->block.positions;
    step.predictions = r->block.predictions;
    step.confidences = r->block.confidences;
    step.entropies = r->block.entropies;
    step.committed = r->block.committed;
    step.active = r->block.active;
    for (i = 0; i < r->gen.n_positions; i++) {
        step.n_active += r->block.active[i];
        if (!step.is_prompt)
            step.n_stable_masked += !r->block.active[i] && (tsk__request_is_masked(r, i) || r->block.committed[i]);
    }
    step.masks_left = masks_left;
    step.canvas_length = r->gen.length;
    step.prompt_length = r->gen.n_prompt;
    step.canvas = r->canvas.ids;
    step.mask_token_id = r->config->mask_token_id;
    step.n_final = tsk__request_final(r);
    step.n_cosines = tsk__request_has_cosines(r) ? r->n_states : 0;
    step.cosines = step.n_cosines ? r->block.cosines : NULL;
    return r->options.on_step(r->options.user, &step);
}

/* The stream's cosines belong to the next pass: the step callback gets a copy. */
static void tsk__request_take_cosines(tsk__request *r, const tsk__pass *p) {
    int32_t i, state;
    if (!tsk__request_has_cosines(r)) return;
    for (i = 0; i < r->gen.n_positions; i++)
        for (state = 0; state < r->n_states; state++)
            r->block.cosines[(size_t)i * (size_t)r->n_states + (size_t)state] =
                p->stream->cosines[(size_t)state * (size_t)p->max_rows + (size_t)r->block.rows[i]];
}

/* After a pass. A block step always leaves states to compare with; a refresh does so with skip.warm_start only. A piece
   of the prompt is no pass of the block. */
static void tsk__request_move_on(tsk__request *r) {
    if (r->pass.kind == TSK__PASS_PROMPT) {
        r->gen.pass++;
        return;
    }
    if (tsk__request_compares(r) && (!tsk__request_is_refresh(r) || r->options.skip.warm_start))
        r->gen.has_previous = 1;
    r->gen.has_outputs = r->keeps_outputs;
    r->gen.pass++;
    r->gen.block_step++;
}

/* Behind a pass that took part in the generation: to the next block, or the end, where this block holds no mask any
   more. */
static void tsk__request_advance(tsk__request *r, int32_t masks_left) {
    int is_prompt = r->pass.kind == TSK__PASS_PROMPT, is_stored = r->pass.kind == TSK__PASS_STORE;
    tsk__request_move_on(r);
    if (is_prompt) r->n_final += r->pass.n_rows;
    if (is_stored) r->n_final = r->gen.visible;
    if (is_prompt ? r->n_final < tsk__request_prompt_end(r) : masks_left) return;
    if (!is_prompt && !is_stored && tsk__request_hit_end(r)) {
        tsk__request_end_early(r);
        return;
    }
    if (!is_prompt && !is_stored && tsk__request_must_store(r)) return;
    r->gen.block += !is_prompt;
    tsk__request_next_block(r); /* (after the prompt: the same, in which its first position may be filled now) */
}

/* Takes note of a pass that has ended well. What it predicts may end the generation with an error of its own. */
static void tsk__request_finish(tsk__request *r, const tsk__pass *p, double ms) {
    int32_t masks_left;
    int stop;
    if (tsk__request_check_choices(r, p, &r->failure) != TSK_OK) {
        r->gen.is_finished = 1;
        return;
    }
    tsk__request_take_choices(r, p);
    if (r->options.on_select && !tsk__request_is_final(r)) tsk__request_commit(r, p);
    tsk__request_count(r, ms);
    masks_left = tsk__request_masks_left(r);
    r->counts.blocks[r->gen.block].mask_residual = masks_left;
    r->is_reporting = 1;
    stop = tsk__request_report(r, masks_left);
    r->is_reporting = 0;
    tsk__request_advance(r, masks_left);
    if (stop && !r->gen.is_finished) tsk__request_cancel(r);
}

/* Restores the residual stream of requests whose refresh was cut by layers and goes on in this pass. */
static void tsk__requests_resume(tsk__request *const *requests, int32_t n, tsk__pass *p) {
    int32_t i;
    for (i = 0; i < n; i++)
        if (requests[i]->pass.first_layer > 0)
            tsk__cache_load_residual(&requests[i]->cache, p->stream, requests[i]->pass.first_row,
                                     requests[i]->pass.n_rows);
}

/* Saves the residual stream of requests whose refresh is cut by layers and goes on in the next pass. */
static void tsk__requests_suspend(tsk__request *const *requests, int32_t n, tsk__pass *p) {
    int32_t i;
    for (i = 0; i < n; i++)
        if (!tsk__request_completes(requests[i]))
            tsk__cache_save_residual(&requests[i]->cache, p->stream, requests[i]->pass.first_row,
                                     requests[i]->pass.n_rows);
}

/* Whether a request's rows change at `layer`: they come, go, or are decided about. */
static int tsk__request_changes_at(const tsk__request *r, int32_t layer) {
    int may_decide =
        r->pass.is_deciding || (tsk__request_keeps_states(r) && tsk__backend_wants_same_sections(r->backend));
    return layer == r->pass.first_layer || layer == r->pass.last_layer || (may_decide && layer == r->n_states + 1);
}

static int32_t tsk__requests_next_change(tsk__request *const *requests, int32_t n, int32_t layer, int32_t n_layers) {
    int32_t i;
    for (layer++; layer < n_layers; layer++)
        for (i = 0; i < n; i++)
            if (tsk__request_changes_at(requests[i], layer)) return layer;
    return n_layers;
}

/* Whether the request is decided about, and where: at the end of its lower layers. */
static int tsk__request_decides_at(const tsk__request *r, int32_t layer) {
    return r->pass.is_deciding && layer == r->n_states + 1 && layer >= r->pass.first_layer &&
           layer < r->pass.last_layer;
}

/* Waits for the decision about the requests whose K is `layer`. */
static tsk_status tsk__requests_decide(tsk__request *const *requests, int32_t n, tsk__pass *p, int32_t layer,
                                       tsk_error *error) {
    tsk_status status = TSK_OK;
    int32_t i;
    int waited = 0;
    for (i = 0; i < n && status == TSK_OK; i++) {
        if (!tsk__request_decides_at(requests[i], layer)) continue;
        if (!waited++) status = p->backend->ops->wait(p->stream, error);
        if (status == TSK_OK) tsk__request_take_decision(requests[i], p);
    }
    return status;
}

/* Whether the backend can carry out the decision alone: all that changes is which rows run above K, and the backend
   masks rows. */
static int tsk__requests_are_masked_by_backend(tsk__request *const *requests, int32_t n, const tsk__pass *p) {
    int32_t i;
    if (!tsk__backend_masks(p->backend, p->n) || tsk__trace_on(p->tracer)) return 0;
    for (i = 0; i < n; i++)
        if (requests[i]->pass.first_layer != 0 || !tsk__request_completes(requests[i])) return 0;
    return 1;
}

/* Whether the host can wait for the decision until the pass has ended. It can if some row runs whatever is decided, and
   if every row whose prediction is wanted runs. */
static int tsk__requests_can_decide_late(tsk__request *const *requests, int32_t n, const tsk__pass *p) {
    int32_t i, row, certain = 0;
    for (i = 0; i < n; i++) {
        const tsk__request *r = requests[i];
        if (!r->pass.is_deciding) continue;
        if (tsk__request_is_refresh(r) || r->options.skip.masked || r->force_active >= 0) return 0;
    }
    for (row = 0; row < p->n && !certain; row++) certain = !(p->flags[row] & TSK__ROW_DECIDED);
    return p->masks_itself && certain;
}

/* Narrows the pass to the rows that have work at `layer`; returns how many. */
static int32_t tsk__requests_narrow(tsk__request *const *requests, int32_t n, tsk__pass *p, int32_t layer) {
    int32_t i, row;
    for (i = 0; i < n; i++) {
        const tsk__request *r = requests[i];
        int here = layer >= r->pass.first_layer && layer < r->pass.last_layer;
        for (row = r->pass.first_row; row < r->pass.first_row + r->pass.n_rows; row++)
            p->running[row] = here && p->active[row];
    }
    return tsk__pass_narrow(p);
}

/* Plans the pass of n requests; returns the largest number of states that one of them compares. */
static int32_t tsk__requests_plan(tsk__request *const *requests, int32_t n, tsk__pass *p) {
    int32_t i, n_states = 0;
    tsk__pass_reset(p);
    for (i = 0; i < n; i++) {
        tsk__request_plan(requests[i], p);
        tsk__request_upload(requests[i], p);
        if (tsk__request_keeps_states(requests[i]) && requests[i]->n_states > n_states)
            n_states = requests[i]->n_states;
    }
    return n_states;
}

/* What follows the layers, of the requests that have run all of them. */
static void tsk__requests_predict(tsk__request *const *requests, int32_t n, tsk__pass *p) {
    int32_t i, row, n_kept = 0;
    for (row = 0; row < p->n; row++) n_kept += (p->flags[row] & (TSK__ROW_REMEMBER | TSK__ROW_OUTPUT)) != 0;
    for (i = 0; i < n; i++)
        if (tsk__request_completes(requests[i])) tsk__request_keep_refresh(requests[i], p);
    if (n_kept) p->backend->ops->keep(p->stream);
    for (i = 0; i < n; i++) {
        if (!tsk__request_completes(requests[i])) continue;
        if (tsk__request_is_final(requests[i])) tsk__request_add_next(requests[i], p);
        else tsk__request_add_candidates(requests[i], p);
        tsk__request_add_rule(requests[i], i, p);
    }
    tsk__forward_head(p);
}

/* One forward pass for n requests, none of them finished; choices and cosines are there after it. */
static tsk_status tsk__requests_forward(tsk__request *const *requests, int32_t n, tsk__pass *p, tsk_error *error) {
    int32_t i, layer, next, n_states = tsk__requests_plan(requests, n, p), n_layers = p->backend->config->n_layers;
    int decides_late;
    tsk_status status = TSK_OK;
    if (p->tracer) p->tracer->pass = (int32_t)requests[0]->gen.pass;
    tsk__pass_begin(p);
    p->masks_itself = tsk__requests_are_masked_by_backend(requests, n, p);
    decides_late = tsk__requests_can_decide_late(requests, n, p);
    tsk__requests_resume(requests, n, p);
    for (layer = 0; layer < n_layers; layer = next) {
        next = tsk__requests_next_change(requests, n, layer, n_layers);
        if (!decides_late) status = tsk__requests_decide(requests, n, p, layer, error);
        if (status != TSK_OK) return status;
        if (tsk__requests_narrow(requests, n, p, layer)) tsk__forward_layers(p, layer, next, n_states);
    }
    tsk__pass_widen(p);
    tsk__requests_suspend(requests, n, p);
    tsk__requests_predict(requests, n, p);
    status = p->backend->ops->wait(p->stream, error);
    if (status == TSK_OK && p->tracer && p->tracer->status != TSK_OK) status = tsk__error_memory(error, "tracing", 0);
    for (i = 0; i < n && status == TSK_OK; i++) {
        requests[i]->canvas.is_uploaded = 1;
        if (decides_late && requests[i]->pass.is_deciding) tsk__request_take_decision(requests[i], p);
        if (tsk__request_completes(requests[i])) tsk__request_note_active(requests[i], p);
        tsk__request_take_cosines(requests[i], p);
    }
    return status;
}

static tsk_status tsk__requests_pass(tsk__request *const *requests, int32_t n, tsk__pass *p, tsk_error *error) {
    double start = tsk__time_ms();
    int32_t i;
    tsk_status status = tsk__requests_forward(requests, n, p, error);
    for (i = 0; i < n && status == TSK_OK; i++) {
        tsk__request *r = requests[i];
        r->cut.pending_ms += tsk__time_ms() - start;
        r->cut.next_layer = tsk__request_completes(r) ? 0 : r->pass.last_layer;
        if (r->cut.next_layer) continue;
        tsk__request_finish(r, p, r->cut.pending_ms);
        r->cut.pending_ms = 0;
    }
    return status;
}

static void tsk__request_result(const tsk__request *r, tsk_result *result) {
    int32_t i;
    memset(result, 0, sizeof *result);
    if (!r->gen.is_started) return;
    *result = r->gen.result;
    result->mask_residual =
        tsk__count_masks(r->canvas.ids, r->gen.n_prompt + result->n_tokens, r->config->mask_token_id);
    for (i = 0; i < result->n_tokens && !tsk__request_ends(r, result->tokens[i]); i++) {
    }
    result->n_before_end = i;
}

#endif /* SECTION_GUARD_REQUEST */
