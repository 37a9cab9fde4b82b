/* Random lives of sessions and batches: a string of bytes chooses calls of the public API, legal and nearly legal, and
   what is known of each object's state says what may come of them. After every call the invariants are checked.

       text = stateful_run(&models, bytes, size, 0, 1);  // NULL, or what went wrong and the calls that led there

   Where the header leaves it open whether a refused call leaves an object as it was or empties it, either is taken.

   tests/fuzz/fuzz_stateful.c gives it a fuzzer's bytes, tests/test_stateful.c seeded ones, tests/test_threads.c runs
   several at once that share a model and a batch. Include it after tokenskip.h. */
#ifndef TSK_STATEFUL_H
#define TSK_STATEFUL_H

#include "test.h"
#include "select.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>

enum { max_canvas = 256, n_slots = 4, n_orders = 16, max_calls = 100, max_log = 1 << 15 };

/* ---- an allocator that refuses on demand, and finds leaks and wrong sizes */

/* What the calling thread is refused: from the countdown's end on one allocation, or all beyond a budget of bytes. */
typedef struct refusal {
    long countdown;                /* allocations until the refused one; -1: none */
    size_t budget;                 /* bytes alive, in all threads; SIZE_MAX: none */
    long refused;
} refusal;

typedef struct heap {
    tsk_allocator allocator;
    pthread_mutex_t lock;
    pthread_key_t refusal;         /* of the calling thread; NULL: nothing is refused */
    long alive, calls;
    size_t bytes;
    char fault[200];
} heap;

typedef struct heap_block { size_t size, mark; } heap_block; /* in front of every block; the mark is behind it too */

static const size_t heap_mark = (size_t)0x5ca1ab1e;

static void heap_fault(heap *h, const char *text) {
    if (!h->fault[0]) snprintf(h->fault, sizeof h->fault, "%s", text);
}

static int heap_refuses(heap *h, size_t size) {
    refusal *r = (refusal *)pthread_getspecific(h->refusal);
    int refuses;
    if (!r) return 0;
    refuses = r->countdown == 0 || (r->budget != SIZE_MAX && h->bytes + size > r->budget);
    if (r->countdown >= 0) r->countdown--;
    r->refused += refuses;
    return refuses;
}

/* Memory comes filled with something else each time, so that who reads what nobody wrote gets different results. */
static void *heap_allocate(void *user, size_t size) {
    static const unsigned char fills[] = {0x7f, 0xff, 0, 0x3f, 0x80};
    heap *h = (heap *)user;
    heap_block *block = NULL;
    pthread_mutex_lock(&h->lock);
    if (!heap_refuses(h, size)) block = (heap_block *)malloc(sizeof *block + size + sizeof heap_mark);
    if (block) {
        block->size = size;
        block->mark = heap_mark;
        memset(block + 1, fills[h->calls++ % (long)sizeof fills], size);
        memcpy((char *)(block + 1) + size, &heap_mark, sizeof heap_mark);
        h->alive++;
        h->bytes += size;
    }
    pthread_mutex_unlock(&h->lock);
    return block ? block + 1 : NULL;
}

static void heap_release(void *user, void *address) {
    heap *h = (heap *)user;
    heap_block *block = (heap_block *)address - 1;
    pthread_mutex_lock(&h->lock);
    if (block->mark != heap_mark) heap_fault(h, "the allocator gets back what it did not give out");
    else if (memcmp((char *)address + block->size, &heap_mark, sizeof heap_mark) != 0)
        heap_fault(h, "a block was written past its end");
    h->alive--;
    h->bytes -= block->size;
    block->mark = 0;
    pthread_mutex_unlock(&h->lock);
    free(block);
}

static void *heap_reallocate(void *user, void *address, size_t old_size, size_t new_size) {
    heap_block *block = (heap_block *)address - 1;
    void *result;
    if (block->size != old_size) heap_fault((heap *)user, "reallocate is told a wrong old size");
    result = heap_allocate(user, new_size);
    if (!result) return NULL;
    memcpy(result, address, old_size < new_size ? old_size : new_size);
    heap_release(user, address);
    return result;
}

static size_t heap_bytes(heap *h) {
    size_t bytes;
    pthread_mutex_lock(&h->lock);
    bytes = h->bytes;
    pthread_mutex_unlock(&h->lock);
    return bytes;
}

static void heap_init(heap *h) {
    memset(h, 0, sizeof *h);
    h->allocator.allocate = heap_allocate;
    h->allocator.reallocate = heap_reallocate;
    h->allocator.release = heap_release;
    h->allocator.user = h;
    pthread_mutex_init(&h->lock, NULL);
    pthread_key_create(&h->refusal, NULL);
}

static void heap_end(heap *h) {
    pthread_key_delete(h->refusal);
    pthread_mutex_destroy(&h->lock);
}

/* ---- what is known */

struct driver;

/* A prompt and a generated part, and how a call is given them: now and then not as it should be. */
typedef struct input {
    int32_t prompt[max_canvas], n_prompt, generated[max_canvas];
    int has_generated, is_legal;
    const int32_t *prompt_argument, *generated_argument;
    int32_t n_argument;
} input;

typedef enum choice { CHOICE_NONE, CHOICE_ALL, CHOICE_THIRD, CHOICE_LAST, CHOICE_COUNT } choice;

/* What a generation's caches hold, and where its block is, as far as callbacks and probes tell. A copy takes it. */
typedef struct caches {
    int is_blind;                  /* passes went by of which nobody was told: all below means nothing */
    int is_ageless;                /* nor, of some refreshes, which rows ran: ran_at means nothing */
    int32_t first;                 /* position of the block; -1: none has begun */
    int32_t visible;               /* its passes attend to the positions below */
    int32_t n_started;             /* blocks, this one included */
    int32_t block_step;            /* passes, probes included, that it has had */
    int32_t block_masks;           /* at its start */
    int32_t n_probes;
    int32_t ran[max_canvas], ran_at[max_canvas]; /* the id with which a position last ran all layers, or -1; the pass */
    int32_t predictions[max_canvas]; /* the last in this block of masked positions */
    float confidences[max_canvas]; /* of these; -1: not known */
} caches;

/* A generation: what it was given, what its callbacks do, and what they and its results have shown so far. */
typedef struct generation {
    struct driver *driver;
    const char *kind;              /* "session", "request" or "alone" */
    int number;
    tsk_generate_options options;
    tsk_skip_rule rule;            /* this and what follows: resolved, as tsk_generate_options explains them */
    int32_t k, n_states;           /* n_states: that block steps compare */
    int skips_refresh;             /* refreshes compare states */
    int32_t force_active, force_refresh; /* see tsk_session_force */
    input given;
    int32_t infilled, length;
    choice choice;
    int32_t stop_at, cancel_at;    /* the pass after, the question at which a callback ends it; -1: none */
    int32_t deed_at;               /* the pass during which a callback makes a call of its own; -1: none */

    int32_t canvas[max_canvas];
    int32_t passes, asked;         /* calls of on_step and of cancel */
    int32_t block;
    caches m;
    int32_t seen[max_canvas], n_seen, seen_pass; /* the rows of that pass, where a record told of them */
    int32_t n_selected;            /* candidates that on_select was last asked about */
    int is_mixed;                  /* probed, or begun under other options */
    int must_end;                  /* a callback said so, or the batch was told to */
    int32_t age[max_canvas];       /* block steps in a row that a position was skipped */
    int32_t nfe, refreshes, n_steps, active[max_canvas], stable_masked[max_canvas];
    uint64_t computed, total, refresh_computed, refresh_total, refreshed, rows;
    tsk_finish finish;
    char fault[400];
} generation;

typedef enum phase {
    PHASE_NONE,                    /* no session */
    PHASE_FRESH,                   /* never started, or as if */
    PHASE_RUNNING,
    PHASE_FINISHED,
    PHASE_FAILED                   /* a step or a probe failed: every further step does, in the same way */
} phase;

typedef struct slot {
    generation g;
    tsk_session *session;
    phase phase;
    tsk_status failure;            /* of PHASE_FAILED */
    int is_busy, is_reporting;     /* a call of it is under way; its on_step is */
    int is_other;                  /* of the driver's second model */
    int is_pure;                   /* its result is that of a lone generation */
    int is_probed, probe_is_full;  /* 1: the last call was a probe that went well; 2: but for some that may leave it */
    int32_t n_probed, probe_positions[max_canvas], probe_canvas[max_canvas];
    uint8_t probe_ran[max_canvas]; /* [n_probed]: there are logits of it */
    int is_traced;
    tsk_trace_options tracing;
    long records;
} slot;

typedef struct order {
    generation g;
    uint64_t id;
    int is_open, is_done;          /* submitted and not yet looked at; reported */
    int is_cancelled;
    int32_t most_passes;           /* once it is */
    long refused_before;
    tsk_status status;
} order;

/* What drivers of several threads have in common. One steps the batch; any submits and cancels. */
typedef struct stateful_models {
    heap *heap;
    tsk_model *models[4];
    int n_models;
    tsk_batch *batch;              /* NULL: each driver makes batches of its own */
    tsk_batch_options batch_options;
    pthread_mutex_t lock;          /* of what orders tell of the batch's progress */
} stateful_models;

typedef struct driver {
    stateful_models *shared;
    const uint8_t *bytes;
    size_t size, at;
    int32_t n_ended;               /* requests that have ended */
    int steps_batch;               /* the batch is this driver's own, or its to step */
    int is_talkative;
    refusal refusal;
    tsk_model *model, *other;
    const tsk_model_config *config;
    slot slots[n_slots];
    tsk_batch *batch;
    tsk_batch_options batch_options;
    int32_t batch_force_active, batch_force_refresh;
    int batch_is_busy;
    uint64_t last_id;
    order orders[n_orders];
    generation alone;
    int n_calls, depth, n_deeds;
    char fault[512];
    char log[max_log];
    size_t log_size;
} driver;

static int TEST_PRINTF(4, 5) fail_at(char *fault, size_t size, int line, const char *format, ...) {
    char text[320];
    va_list arguments;
    if (fault[0]) return 0;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    snprintf(fault, size, "stateful.h:%d: %s", line, text);
    return 0;
}

/* The first one counts. `who`: a driver or a generation, whose thread is the one that calls. */
#define EXPECT(who, condition, ...) \
    ((condition) ? 1 : fail_at((who)->fault, sizeof (who)->fault, __LINE__, __VA_ARGS__))

static void TEST_PRINTF(2, 3) say(driver *d, const char *format, ...) {
    va_list arguments;
    int n, room = (int)(sizeof d->log - d->log_size);
    va_start(arguments, format);
    n = vsnprintf(d->log + d->log_size, (size_t)room, format, arguments);
    va_end(arguments);
    if (d->is_talkative) {
        fputs(d->log + d->log_size, stdout);
        fflush(stdout);
    }
    d->log_size += (size_t)(n < room ? n : room - 1);
}

/* A number below n <= 65536 from the next byte, or two; 0 once there are no more. */
static int32_t draw(driver *d, int32_t n) {
    uint32_t value = 0;
    if (d->at < d->size) value = d->bytes[d->at++];
    if (n > 256 && d->at < d->size) value = value << 8 | d->bytes[d->at++];
    return (int32_t)(value % (uint32_t)n);
}

static float draw_float(driver *d, const float *values, int32_t n) { return values[draw(d, n)]; }

/* ---- a call and what may come of it */

typedef struct call {
    tsk_error room, before, *error;
    long refused;
    int n_deeds;
} call;

static void begin(driver *d, call *c) {
    memset(&c->room, 0x5a, sizeof c->room);
    c->before = c->room;
    c->error = draw(d, 8) == 7 ? NULL : &c->room;
    c->refused = d->refusal.refused;
    c->n_deeds = d->n_deeds;
}

#define MAY(status) (1 << (status))
enum { may_ok = MAY(TSK_OK), may_argument = MAY(TSK_ERROR_ARGUMENT), may_memory = MAY(TSK_ERROR_MEMORY) };

static void check_message(driver *d, const tsk_error *e, tsk_status status) {
    EXPECT(d, e->status == status, "the error's status is %d, the call's %d", (int)e->status, (int)status);
    if (!EXPECT(d, memchr(e->message, 0, sizeof e->message) != NULL && memchr(e->file, 0, sizeof e->file) != NULL,
                "an error without end"))
        return;
    EXPECT(d, e->message[0] && !strchr(e->message, '\n'), "an error's message is one line: \"%s\"", e->message);
    EXPECT(d, e->offset == TSK_NO_OFFSET && !e->file[0], "an error about no file names one");
}

/* `may`: of may_...; memory's want is told if and only if something was refused. Returns 1 on TSK_OK. */
static int end(driver *d, call *c, tsk_status status, int may) {
    int refused = d->refusal.refused != c->refused;
    say(d, " -> %s%s%s\n", tsk_status_string(status), c->error && status != TSK_OK ? ": " : "",
        c->error && status != TSK_OK ? c->room.message : "");
    if (refused) may |= may_memory;
    EXPECT(d, (int)status >= 0 && status < TSK_STATUS_COUNT && (may & MAY(status)), "it ends in '%s'",
           tsk_status_string(status));
    EXPECT(d, !refused || status != TSK_OK || d->n_deeds != c->n_deeds, "a refused allocation was not told");
    if (c->error && status == TSK_OK)
        EXPECT(d, memcmp(&c->room, &c->before, sizeof c->room) == 0, "an error is written though all went well");
    if (c->error && status != TSK_OK) check_message(d, c->error, status);
    EXPECT(d, !d->shared->heap->fault[0], "%s", d->shared->heap->fault);
    return status == TSK_OK;
}

/* ---- options: drawn, resolved, judged */

/* What leaves layers or rows out, of cache DUAL. */
static void draw_skip(driver *d, tsk_generate_options *o) {
    static const float skips[] = {-2, -1, 0, 0.5f, 0.8f, 0.95f, 0.999f, 1, 2};
    static const tsk_skip_rule rules[] = {TSK_SKIP_RULE_AUTO, TSK_SKIP_RULE_AUTO, TSK_SKIP_RULE_OFF,
                                          TSK_SKIP_RULE_STATES, TSK_SKIP_RULE_ROWS, TSK_SKIP_RULE_ROWS,
                                          TSK_SKIP_RULE_ROWS};
    static const int32_t margins[] = {0, 1, 0, 2, 3, 8, INT32_MAX}, ahead[] = {0, 0, 1, 0, 2, 3, INT32_MAX};
    o->skip.rule = rules[draw(d, 7)];
    o->skip.rows_margin = margins[draw(d, 7)];
    o->skip.rows_ahead = ahead[draw(d, 7)];
    o->skip.layer_k = draw(d, d->config->n_layers + 3) - 1;
    if (o->skip.rule == TSK_SKIP_RULE_STATES && o->skip.layer_k == 0) o->skip.layer_k = 2;
    o->skip.threshold = draw_float(d, skips, 9);
    o->skip.outlier = draw_float(d, skips, 9);
    o->skip.policy = (tsk_skip_policy)draw(d, 2);
    o->skip.masked = draw(d, 2);
    o->skip.reference = (tsk_skip_reference)draw(d, 2);
    o->skip.max_age = draw(d, 3);
    o->skip.full_every = draw(d, 2) ? draw(d, 4) : 0;
    o->skip.warm_start = draw(d, 2);
}

/* How blocks start: `refresh_every` is drawn already. */
static void draw_refresh(driver *d, tsk_generate_options *o) {
    static const int32_t nears[] = {0, 1, 2, 3, 5, 16, INT32_MAX}, windows[] = {0, 1, 0, 2, 3, 6, 20, INT32_MAX};
    int may_skip = o->skip.rule != TSK_SKIP_RULE_OFF && o->skip.layer_k != 0;
    o->refresh = (tsk_refresh)(draw(d, 4) - 1);
    if ((int)o->refresh > 1) o->refresh = TSK_REFRESH_NEAR;
    o->refresh_near = nears[draw(d, 7)];
    o->refresh_window = windows[draw(d, 8)];
    if (o->refresh != TSK_REFRESH_NEAR && o->refresh_window) o->refresh_every = draw(d, 2) ? TSK_AUTO : 1;
    o->refresh_rows = draw(d, 2) ? draw(d, 40) : 0;
    o->skip.refresh = may_skip && o->refresh != TSK_REFRESH_NEAR && !o->refresh_window && draw(d, 2);
}

static tsk_generate_options draw_options(driver *d) {
    static const float thresholds[] = {-1, 0, 0.1f, 0.3f, 0.5f, 0.9f, 1, 2}, factors[] = {0.01f, 0.5f, 1, 3, 100},
                       temperatures[] = {0, 0, 0.7f, 2}, frechets[] = {0, 0.02f, 0.25f, 0.5f, 1},
                       bounds[] = {0, 0.1f, 1, 4, 100}, leaps[] = {-1, 0, 0.05f, 0.2f, 0.75f, 2};
    static const int32_t blocks[] = {4, 8, 1, 3, 5, 7};
    tsk_generate_options o = tsk_generate_options_default();
    int32_t n_blocks;
    o.block_length = blocks[draw(d, 6)];
    n_blocks = 1 + draw(d, 3);
    o.gen_length = n_blocks * o.block_length;
    o.steps = draw(d, 2) ? TSK_AUTO : n_blocks * (1 + draw(d, 6));
    o.cache = draw(d, 5) ? TSK_CACHE_DUAL : draw(d, 2) ? TSK_CACHE_PREFIX : TSK_CACHE_NONE;
    o.transfer = (tsk_transfer)draw(d, TSK_TRANSFER_LEAP + 1);
    o.threshold = draw_float(d, thresholds, 8);
    o.factor = draw_float(d, factors, 5);
    o.frechet = draw_float(d, frechets, 5);
    o.entropy_bound = draw_float(d, bounds, 5);
    o.local_leap = draw_float(d, leaps, 6);
    o.local_radius = draw(d, 6);
    o.temperature = draw_float(d, temperatures, 4);
    o.remasking = draw(d, 3) ? TSK_REMASKING_LOW_CONFIDENCE : TSK_REMASKING_RANDOM;
    o.seed = (uint64_t)draw(d, 256) << draw(d, 57);
    o.eos_stop = draw(d, 2);
    o.end_of_turn_id = draw(d, 3) ? TSK_AUTO : draw(d, d->config->embedding_size);
    if (o.cache != TSK_CACHE_NONE && draw(d, 2)) o.refresh_every = draw(d, 5);
    if (o.cache != TSK_CACHE_DUAL) return o;
    draw_skip(d, &o);
    draw_refresh(d, &o);
    return o;
}

/* One field at a limit of its type, or beside what is allowed. */
static void draw_extreme(driver *d, tsk_generate_options *o) {
    static const int32_t integers[] = {0, -1, -2, 1, INT32_MAX, INT32_MIN, INT32_MAX - 1, 1 << 30, 2};
    static const float floats[] = {0, -0.0f, FLT_MAX, -FLT_MAX, FLT_MIN, 1e-40f, 1e30f, -1};
    int32_t number = integers[draw(d, 9)], which = draw(d, 32), kind = draw(d, 11);
    float real = kind < 8 ? floats[kind] : kind == 8 ? (float)NAN : kind == 9 ? (float)INFINITY : -(float)INFINITY;
    switch (which) {
    case 0: o->gen_length = number; break;
    case 1: o->block_length = number == TSK_AUTO ? 32 : number; break; /* what it means for these models */
    case 2: o->steps = number; break;
    case 3: o->cache = number == TSK_AUTO ? TSK_CACHE_DUAL : (tsk_cache)number; break; /* likewise */
    case 4: o->transfer = (tsk_transfer)number; break;
    case 5: o->threshold = real; break;
    case 6: o->factor = real; break;
    case 7: o->temperature = real; break;
    case 8: o->remasking = (tsk_remasking)number; break;
    case 9: o->eos_stop = number; break;
    case 10: o->end_of_turn_id = number; break;
    case 11: o->skip.layer_k = number; break;
    case 12: o->skip.threshold = real; break;
    case 13: o->skip.outlier = real; break;
    case 14: o->skip.policy = (tsk_skip_policy)number; break;
    case 15: o->skip.masked = number; break;
    case 16: o->skip.reference = (tsk_skip_reference)number; break;
    case 17: o->skip.max_age = number; break;
    case 18: o->skip.full_every = number; break;
    case 19: o->skip.refresh = number; break;
    case 20: o->refresh_rows = number; break;
    case 21: o->skip.rule = (tsk_skip_rule)number; break;
    case 22: o->skip.rows_margin = number; break;
    case 23: o->skip.rows_ahead = number; break;
    case 24: o->refresh = (tsk_refresh)number; break;
    case 25: o->refresh_near = number; break;
    case 26: o->refresh_window = number; break;
    case 27: o->frechet = real; break;
    case 28: o->entropy_bound = real; break;
    case 29: o->local_leap = real; break;
    case 30: o->local_radius = number; break;
    default: o->refresh_every = number; break;
    }
}

static tsk_skip_rule resolved_rule(const tsk_generate_options *o) {
    if (o->skip.rule != TSK_SKIP_RULE_AUTO) return o->skip.rule;
    if (o->skip.layer_k == TSK_AUTO) return o->cache == TSK_CACHE_DUAL ? TSK_SKIP_RULE_ROWS : TSK_SKIP_RULE_OFF;
    return o->skip.layer_k > 0 ? TSK_SKIP_RULE_STATES : TSK_SKIP_RULE_OFF;
}

static int32_t resolved_k(const tsk_generate_options *o, const tsk_model_config *c) {
    if (o->skip.layer_k != TSK_AUTO) return o->skip.layer_k;
    return resolved_rule(o) == TSK_SKIP_RULE_OFF ? 0 : c->n_layers / 4 > 2 ? c->n_layers / 4 : 2;
}

static int32_t resolved_every(const tsk_generate_options *o) {
    if (o->refresh_every != TSK_AUTO) return o->refresh_every;
    return o->refresh == TSK_REFRESH_NEAR ? 0 : 1;
}

static int is_finite(float x) { return x >= -FLT_MAX && x <= FLT_MAX; }

/* Of what leaves layers or rows out, and of block starts. */
static int skips_are_legal(const tsk_generate_options *o, const tsk_model_config *c) {
    int32_t k = resolved_k(o, c), every = resolved_every(o);
    tsk_skip_rule rule = resolved_rule(o);
    int is_dual = o->cache == TSK_CACHE_DUAL, is_near = o->refresh == TSK_REFRESH_NEAR;
    if ((int)o->skip.policy < 0 || (int)o->skip.policy > 1 || (int)o->skip.reference < 0 || (int)o->skip.reference > 1)
        return 0;
    if ((int)o->skip.rule < -1 || (int)o->skip.rule > 2 || (int)o->refresh < -1 || (int)o->refresh > 1) return 0;
    if (!is_finite(o->skip.threshold) || !is_finite(o->skip.outlier) || k < 0) return 0;
    if (rule == TSK_SKIP_RULE_STATES && (!k || !is_dual)) return 0;
    if (rule == TSK_SKIP_RULE_ROWS && !is_dual) return 0;
    if (o->skip.rows_margin < 0 || o->skip.rows_ahead < 0 || o->skip.max_age < 0 || o->skip.full_every < 0) return 0;
    if (o->skip.refresh && (!k || rule == TSK_SKIP_RULE_OFF || is_near || o->refresh_window)) return 0;
    if (o->refresh_near < 0 || o->refresh_window < 0 || o->refresh_rows < 0 || every < 0) return 0;
    if (!is_dual && (is_near || o->refresh_window || o->refresh_rows)) return 0;
    if (o->refresh_window && !is_near && every != 1) return 0;
    return every == 1 || o->cache != TSK_CACHE_NONE;
}

/* As the comments of tsk_generate_options have it. */
static int options_are_legal(const tsk_generate_options *o, const tsk_model_config *c) {
    int32_t steps = o->steps == TSK_AUTO ? o->gen_length : o->steps;
    if (o->gen_length < 1 || o->block_length < 1 || o->gen_length % o->block_length ||
        o->gen_length > c->max_sequence_length)
        return 0;
    if (steps < 1 || steps % (o->gen_length / o->block_length)) return 0;
    if ((int)o->cache < 0 || (int)o->cache > 2 || (int)o->transfer < 0 || (int)o->transfer > 5 ||
        (int)o->remasking < 0 || (int)o->remasking > 1)
        return 0;
    if (!is_finite(o->threshold) || !is_finite(o->factor) || !(o->factor > 0) || !is_finite(o->temperature) ||
        o->temperature < 0)
        return 0;
    if (!(o->frechet >= 0 && o->frechet <= 1) || !is_finite(o->entropy_bound) || o->entropy_bound < 0 ||
        !is_finite(o->local_leap) || o->local_radius < 0)
        return 0;
    return skips_are_legal(o, c) && o->end_of_turn_id >= TSK_NONE && o->end_of_turn_id < c->embedding_size;
}

static int ends(const generation *g, int32_t id) {
    return id == g->driver->config->eos_token_id || id == g->options.end_of_turn_id;
}

/* ---- input: drawn and judged */

static void draw_ids(driver *d, int32_t *ids, int32_t n, int32_t one_mask_in) {
    int32_t i;
    for (i = 0; i < n; i++)
        ids[i] =
            one_mask_in && draw(d, one_mask_in) == 0 ? d->config->mask_token_id : draw(d, d->config->embedding_size);
}

static void draw_input(driver *d, input *in, const tsk_generate_options *o) {
    int32_t most = d->config->max_sequence_length - o->gen_length, flaw = draw(d, 32), at;
    memset(in, 0, sizeof *in);
    in->n_prompt = draw(d, 32) == 31 ? most : draw(d, most < 16 ? most + 1 : 16);
    draw_ids(d, in->prompt, in->n_prompt, draw(d, 2) ? 0 : 1 + draw(d, 4));
    in->has_generated = draw(d, 3) == 2;
    if (in->has_generated) draw_ids(d, in->generated, o->gen_length, draw(d, 4));
    in->is_legal = 1;
    in->prompt_argument = in->n_prompt || draw(d, 2) ? in->prompt : NULL;
    in->generated_argument = in->has_generated ? in->generated : NULL;
    in->n_argument = in->n_prompt;
    if (flaw < 26) return;
    in->is_legal = 0;
    at = in->n_prompt ? draw(d, in->n_prompt) : 0;
    if (flaw == 26 && in->n_prompt) in->prompt[at] = draw(d, 2) ? -1 : d->config->embedding_size;
    else if (flaw == 27 && in->n_prompt) in->prompt_argument = NULL;
    else if (flaw == 28) in->n_argument = draw(d, 2) ? -1 : INT32_MIN;
    else if (flaw == 29) in->n_argument = draw(d, 2) ? most + 1 : INT32_MAX;
    else if (flaw == 30 && in->has_generated)
        in->generated[draw(d, o->gen_length)] = draw(d, 2) ? INT32_MIN : INT32_MAX;
    else in->is_legal = 1;
}

static int32_t masks_of(const int32_t *ids, int32_t n, int32_t mask) {
    int32_t i, count = 0;
    for (i = 0; i < n; i++) count += ids[i] == mask;
    return count;
}

/* The generation begins with `in`, or over again. */
static void expect_start(generation *g, const input *in) {
    int32_t mask = g->driver->config->mask_token_id, i;
    if (in != &g->given) {
        g->given = *in;
        g->given.prompt_argument = in->prompt_argument ? g->given.prompt : NULL;
        g->given.generated_argument = in->generated_argument ? g->given.generated : NULL;
    }
    g->infilled = masks_of(in->prompt, in->n_prompt, mask);
    g->length = in->n_prompt + g->options.gen_length;
    memcpy(g->canvas, in->prompt, (size_t)in->n_prompt * sizeof *in->prompt);
    for (i = 0; i < g->options.gen_length; i++)
        g->canvas[in->n_prompt + i] = in->has_generated ? in->generated[i] : mask;
    memset(g->age, 0, sizeof g->age);
    g->passes = g->asked = g->nfe = g->refreshes = g->n_steps = 0;
    g->block = g->seen_pass = -1;
    memset(&g->m, 0, sizeof g->m);
    g->m.first = -1;
    for (i = 0; i < max_canvas; i++) g->m.ran[i] = -1;
    g->is_mixed = g->must_end = 0;
    g->computed = g->total = g->refresh_computed = g->refresh_total = g->refreshed = g->rows = 0;
    g->finish = TSK_FINISH_NONE;
}

static void call_inside(generation *g, int is_reporting);

/* ---- callbacks of a generation */

/* ---- what a pass runs, as the rules have it */

typedef enum extent {
    EXTENT_STEP,                   /* of the block, what the rule leaves */
    EXTENT_SUFFIX,                 /* from the block to the end */
    EXTENT_NEAR,                   /* what has changed, the block, masks behind it */
    EXTENT_ALL                     /* all that is visible */
} extent;

typedef struct plan {
    extent extent;
    int is_exact;                  /* else `runs` is some of the block's rows that run, not all */
    uint8_t runs[max_canvas];      /* by position */
    uint8_t in_block[max_canvas];
    int32_t n_rows;                /* that enter the pass; -1: not known */
    int32_t n_further, n_sure;     /* refresh_rows' of them; how many of these `further` names */
    int32_t further[max_canvas];
} plan;

/* Forward passes so far. */
static int32_t passes_of(const generation *g) { return g->nfe + g->m.n_probes; }

static int32_t steps_of(const tsk_generate_options *o) {
    return (o->steps == TSK_AUTO ? o->gen_length : o->steps) / (o->gen_length / o->block_length);
}

/* How many tokens the next pass of the block commits by schedule. */
static int32_t quota_of(const generation *g) {
    int32_t steps = steps_of(&g->options), quota = 1;
    if (g->m.block_step < steps) quota = g->m.block_masks / steps + (g->m.block_step < g->m.block_masks % steps);
    return quota < 1 ? 1 : quota;
}

/* E: attended to are the positions below it. */
static int32_t visible_from(const generation *g, const int32_t *canvas, int32_t end) {
    int32_t fixed = g->length;
    if (!g->options.refresh_window || g->options.refresh_window >= g->length - end) return g->length;
    while (fixed > 0 && canvas[fixed - 1] == g->driver->config->mask_token_id) fixed--;
    return end + g->options.refresh_window > fixed ? end + g->options.refresh_window : fixed;
}

/* Once for each block, whose positions these are. */
static void enter_block(generation *g, const int32_t *canvas, const int32_t *positions, int32_t n) {
    caches *m = &g->m;
    int32_t i;
    if (m->first == positions[0]) return;
    m->first = positions[0];
    m->n_started++;
    m->block_step = m->block_masks = 0;
    m->visible = visible_from(g, canvas, positions[n - 1] + 1);
    for (i = 0; i < n; i++) m->block_masks += canvas[positions[i]] == g->driver->config->mask_token_id;
    for (i = 0; i < max_canvas; i++) m->confidences[i] = -1;
}

/* Whether what is visible has positions that never ran. */
static int has_gaps(const caches *m) {
    int32_t i;
    for (i = 0; i < m->visible; i++)
        if (m->ran[i] < 0) return 1;
    return 0;
}

static extent next_extent(const generation *g) {
    const tsk_generate_options *o = &g->options;
    int32_t every = resolved_every(o), before = g->m.n_started - 1;
    if (o->cache == TSK_CACHE_NONE) return EXTENT_ALL;
    if (g->m.block_step == 0) {
        if (before == 0 || (every && before % every == 0)) return EXTENT_ALL;
        if (o->refresh == TSK_REFRESH_NEAR) return EXTENT_NEAR;
        if (has_gaps(&g->m)) return EXTENT_ALL; /* (a copy of one with a window: nothing is attended to unseen) */
    }
    return o->cache == TSK_CACHE_PREFIX ? EXTENT_SUFFIX : EXTENT_STEP;
}

/* How sure of a masked position the rule ROWS takes the model to be: its last confidence, or this pass's draw. */
static float rank_of(const generation *g, int32_t at) {
    uint32_t counter[4], key[2], words[4];
    if (g->options.remasking != TSK_REMASKING_RANDOM) return g->m.confidences[at];
    counter[0] = 0, counter[1] = (uint32_t)at, counter[2] = (uint32_t)passes_of(g), counter[3] = 1;
    key[0] = (uint32_t)g->options.seed, key[1] = (uint32_t)(g->options.seed >> 32);
    tsk_philox4x32(counter, key, words);
    return (float)(((double)words[0] + 0.5) / 4294967296.0);
}

/* M: `most` of the masked, by rank. */
static void plan_best(const generation *g, const int32_t *positions, const uint8_t *masked, int32_t n, int32_t masks,
                      int32_t most, plan *p) {
    float ranks[max_canvas];
    int32_t i, j;
    for (i = 0; i < n; i++) {
        ranks[i] = masked[i] ? rank_of(g, positions[i]) : -2;
        if (ranks[i] == -1 && most < masks) p->is_exact = 0;
    }
    for (i = 0; i < n && p->is_exact; i++) {
        int32_t better = 0;
        for (j = 0; j < n; j++) better += masked[j] && (ranks[j] > ranks[i] || (ranks[j] == ranks[i] && j < i));
        if (masked[i] && (better < most || most >= masks)) p->runs[positions[i]] = 1;
    }
}

/* C, and N: the masked ones nearest to each of C on either side. */
static void plan_changed(const int32_t *positions, const uint8_t *masked, const uint8_t *changed, int32_t n,
                         int32_t ahead, plan *p) {
    int32_t i, j, between;
    for (i = 0; i < n; i++) {
        if (!changed[i]) continue;
        p->runs[positions[i]] = 1;
        for (j = i - 1, between = 0; j >= 0; j--)
            if (masked[j] && between++ < ahead) p->runs[positions[j]] = 1;
        for (j = i + 1, between = 0; j < n; j++)
            if (masked[j] && between++ < ahead) p->runs[positions[j]] = 1;
    }
}

/* A step of the rule ROWS. */
static void plan_rule(const generation *g, const int32_t *canvas, const int32_t *positions, int32_t n, plan *p) {
    const tsk_generate_options *o = &g->options;
    uint8_t masked[max_canvas], changed[max_canvas];
    int32_t i, masks = 0, n_changed = 0, most = n, ran = 0, ahead = o->skip.rows_ahead, forced = g->force_active;
    for (i = 0; i < n; i++) {
        masked[i] = canvas[positions[i]] == g->driver->config->mask_token_id;
        changed[i] = canvas[positions[i]] != g->m.ran[positions[i]];
        masks += masked[i];
        n_changed += changed[i];
    }
    if (o->transfer == TSK_TRANSFER_SCHEDULE && !o->on_select && o->skip.rows_margin < n)
        most = quota_of(g) + o->skip.rows_margin;
    if (forced >= 0) most = forced - n_changed > 1 ? forced - n_changed : 1, ahead = 0;
    plan_best(g, positions, masked, n, masks, most, p);
    plan_changed(positions, masked, changed, n, ahead, p);
    for (i = 0; i < n; i++) ran += p->runs[positions[i]];
    p->n_rows = p->is_exact ? ran : -1;
    if (forced < 0 || !p->is_exact || ran >= forced || ran == n) return;
    p->is_exact = 0; /* others, too, but which is not said */
    p->n_rows = forced < n ? forced : n;
}

/* refresh_rows': the stalest that do not run anyway. */
static void plan_further(const generation *g, const int32_t *canvas, const int32_t *positions, int32_t n, plan *p) {
    int32_t at, i, outside = 0;
    for (at = 0; at < g->m.visible; at++) outside += !p->runs[at] && !p->in_block[at];
    p->n_further = g->options.refresh_rows < outside ? g->options.refresh_rows : outside;
    while (p->n_sure < p->n_further) {
        int32_t best = -1, best_ran = 0, best_distance = 0;
        for (at = 0; at < g->m.visible; at++) {
            int32_t ran = canvas[at] == g->m.ran[at] ? g->m.ran_at[at] : -1, distance = max_canvas;
            if (p->runs[at] || p->in_block[at]) continue;
            for (i = 0; i < n; i++) distance = abs(positions[i] - at) < distance ? abs(positions[i] - at) : distance;
            if (best >= 0 && (ran > best_ran || (ran == best_ran && distance >= best_distance))) continue;
            best = at, best_ran = ran, best_distance = distance;
        }
        if (g->m.is_ageless && best_ran >= 0) return;
        p->further[p->n_sure++] = best;
        p->runs[best] = 1;
    }
}

/* A pass of the current block on this canvas; under the rule STATES, what enters it. */
static void plan_pass(const generation *g, extent e, const int32_t *canvas, const int32_t *positions, int32_t n,
                      int runs_all, plan *p) {
    const tsk_generate_options *o = &g->options;
    int32_t i, at, step = g->m.block_step, mask = g->driver->config->mask_token_id, masks = 0;
    memset(p, 0, sizeof *p);
    p->extent = e;
    p->is_exact = 1;
    for (i = 0; i < n; i++) {
        p->in_block[positions[i]] = 1;
        masks += canvas[positions[i]] == mask;
    }
    runs_all |= g->rule != TSK_SKIP_RULE_ROWS || step == 0 || (o->skip.full_every && step % o->skip.full_every == 0);
    runs_all |= masks == 0;
    if (e == EXTENT_STEP && !runs_all) plan_rule(g, canvas, positions, n, p);
    for (at = 0; at < g->m.visible; at++) {
        int is_ahead = at > positions[n - 1] && at - positions[n - 1] <= o->refresh_near && canvas[at] == mask;
        if (e == EXTENT_STEP) p->runs[at] |= runs_all && p->in_block[at];
        if (e == EXTENT_SUFFIX) p->runs[at] = at >= positions[0];
        if (e == EXTENT_NEAR) p->runs[at] = p->in_block[at] || is_ahead || canvas[at] != g->m.ran[at];
        if (e == EXTENT_ALL) p->runs[at] = 1;
        if (e != EXTENT_STEP || runs_all) p->n_rows += p->runs[at];
    }
    if (e == EXTENT_STEP || e == EXTENT_NEAR) plan_further(g, canvas, positions, n, p);
    if (p->n_rows >= 0) p->n_rows += p->n_further;
}

/* Beside a record of what entered a pass. */
static void watch_entered(generation *g, const plan *p, const int32_t *positions, int32_t n, int32_t pass) {
    int32_t expected[max_canvas], n_expected = 0, i;
    if (g->seen_pass != pass || g->m.is_blind || p->n_rows < 0) return;
    EXPECT(g, g->n_seen == p->n_rows, "%d rows enter pass %d, not %d", (int)g->n_seen, (int)pass, (int)p->n_rows);
    if (!p->is_exact || (p->extent == EXTENT_NEAR && p->n_sure < p->n_further)) return;
    for (i = 0; p->extent == EXTENT_STEP && i < n; i++)
        if (p->runs[positions[i]]) expected[n_expected++] = positions[i];
    for (i = 0; p->extent == EXTENT_STEP && i < p->n_sure; i++) expected[n_expected++] = p->further[i];
    for (i = 0; p->extent != EXTENT_STEP && i < g->m.visible; i++)
        if (p->runs[i]) expected[n_expected++] = i;
    EXPECT(g, memcmp(expected, g->seen, (size_t)n_expected * sizeof *expected) == 0, "other rows enter pass %d",
           (int)pass);
}

/* How many rows a pass ran, and which of the block's the rule ROWS left out. */
static void watch_plan(generation *g, const tsk_step *s, const plan *p) {
    int32_t i, wrong = 0, outside = g->m.visible - s->n_positions, least = p->n_rows, most = p->n_rows;
    if (g->m.is_blind) return;
    EXPECT(g, s->is_refresh == (p->extent >= EXTENT_NEAR), "pass %d, step %d of a block, is_refresh %d", (int)s->pass,
           (int)g->m.block_step, s->is_refresh);
    watch_entered(g, p, s->positions, s->n_positions, s->pass);
    for (i = 0; i < s->n_positions && g->rule == TSK_SKIP_RULE_ROWS; i++) {
        int runs = p->runs[s->positions[i]];
        wrong += p->is_exact ? (s->active[i] != 0) != runs : runs && !s->active[i];
    }
    EXPECT(g, wrong == 0, "pass %d runs, or leaves out, %d rows against the rule", (int)s->pass, (int)wrong);
    if (p->n_rows < 0 || (p->extent == EXTENT_STEP && g->n_states)) least = most = s->n_active + p->n_further;
    if (p->extent == EXTENT_ALL && g->skips_refresh) {
        least = s->n_positions;
        if (g->force_refresh >= 0 && !g->is_mixed && g->refreshes)
            least = most = s->n_positions + (g->force_refresh < outside ? g->force_refresh : outside);
    }
    EXPECT(g, s->n_rows >= least && s->n_rows <= most, "pass %d has %d rows, not %d to %d", (int)s->pass,
           (int)s->n_rows, (int)least, (int)most);
}

/* After a pass on this canvas: which K and V are of what. */
static void note_pass(generation *g, const plan *p, const int32_t *canvas, const int32_t *positions,
                      const uint8_t *active, int32_t n, int32_t pass) {
    caches *m = &g->m;
    int32_t i;
    for (i = 0; i < g->length; i++)
        if (p->runs[i] && !p->in_block[i]) m->ran[i] = canvas[i], m->ran_at[i] = pass;
    for (i = 0; i < n; i++)
        if (active[i]) m->ran[positions[i]] = canvas[positions[i]], m->ran_at[positions[i]] = pass;
    if (p->extent == EXTENT_ALL && g->skips_refresh) m->is_ageless = 1;
    if (p->extent == EXTENT_ALL && g->skips_refresh && g->force_refresh >= 0) m->is_blind = 1;
    m->block_step++;
}

/* What stays of a pass's predictions; what it left out keeps its last. */
static void note_confidences(generation *g, const tsk_step *s, const int32_t *before) {
    caches *m = &g->m;
    int32_t i, wrong = 0;
    for (i = 0; i < s->n_positions; i++) {
        int32_t at = s->positions[i];
        int was_masked = before[at] == g->driver->config->mask_token_id;
        if (!was_masked) m->confidences[at] = -1;
        if (!was_masked) continue;
        if (g->rule == TSK_SKIP_RULE_ROWS && !s->active[i] && m->confidences[at] >= 0)
            wrong += m->confidences[at] != s->confidences[i] || m->predictions[at] != s->predictions[i];
        m->confidences[at] = s->confidences[i];
        m->predictions[at] = s->predictions[i];
    }
    EXPECT(g, wrong == 0 || m->is_blind, "pass %d has new predictions of %d rows that it left out", (int)s->pass,
           (int)wrong);
}

static void note_seen(generation *g, const tsk_trace_record *r) {
    if (strcmp(r->name, "embedding") != 0 || r->n_rows > max_canvas) return;
    g->seen_pass = r->pass;
    g->n_seen = r->n_rows;
    memcpy(g->seen, r->positions, (size_t)r->n_rows * sizeof *g->seen);
}

/* Passes and blocks come in order. */
static void watch_order(generation *g, const tsk_step *s, const int32_t *before) {
    EXPECT(g, s->block >= g->block, "block %d after block %d", (int)s->block, (int)g->block);
    g->block = s->block;
    enter_block(g, before, s->positions, s->n_positions);
    if (g->m.is_blind) return;
    EXPECT(g, s->pass == passes_of(g), "pass %d is told as %d", (int)passes_of(g), (int)s->pass);
    EXPECT(g, s->block_step == g->m.block_step, "step %d of a block is told as %d", (int)g->m.block_step,
           (int)s->block_step);
}

/* Which positions there are, and how they change: what was committed was masked, nothing else moves. */
static void watch_canvas(generation *g, const tsk_step *s) {
    int32_t i, mask = g->driver->config->mask_token_id, commits = 0, masks = 0, wrong = 0;
    const float most = 1.0001f * logf((float)g->driver->config->embedding_size); /* of an entropy */
    for (i = 0; i < s->n_positions; i++) {
        int32_t at = s->positions[i], id, was;
        if (!EXPECT(g, at >= 0 && at < g->length && (!i || at > s->positions[i - 1]), "position %d of a step is %d",
                    (int)i, (int)at))
            return;
        id = s->canvas[at];
        was = g->canvas[at];
        wrong += s->committed[i] ? was != mask || id != s->predictions[i] || id == mask || id < 0 ||
                                       id >= g->driver->config->embedding_size
                                 : id != was;
        wrong += was != mask && (s->confidences[i] != 1.0f || s->predictions[i] != id);
        wrong += !(s->confidences[i] >= 0 && s->confidences[i] <= 1.0001f);
        wrong += was != mask ? s->entropies[i] != 0 : !(s->entropies[i] >= 0 && s->entropies[i] <= most);
        commits += s->committed[i] != 0;
        masks += id == mask;
        g->canvas[at] = id;
    }
    EXPECT(g, wrong == 0, "%d wrong commits, predictions or confidences in pass %d", (int)wrong, (int)s->pass);
    EXPECT(g, memcmp(g->canvas, s->canvas, (size_t)g->length * sizeof *g->canvas) == 0,
           "pass %d changes more than it commits", (int)s->pass);
    EXPECT(g, commits > 0, "pass %d commits nothing", (int)s->pass);
    EXPECT(g, s->masks_left == masks, "masks_left %d of %d", (int)s->masks_left, (int)masks);
    for (i = s->prompt_length; i < s->canvas_length && s->canvas[i] != mask && !ends(g, s->canvas[i]); i++) {
    }
    EXPECT(g, s->mask_token_id == mask && s->n_final == i - s->prompt_length, "%d tokens are final, not %d",
           (int)s->n_final, (int)(i - s->prompt_length));
}

/* Who is committed follows from the confidences by tsk_select, which check_select holds to its definition. Candidates
   are the masked positions that the pass did not leave out. */
static void watch_rule(generation *g, const tsk_step *s, const int32_t *before) {
    const tsk_generate_options *o = &g->options;
    int32_t i, n = 0, masks = 0, commits = 0, quota = quota_of(g), mask = g->driver->config->mask_token_id, wrong = 0;
    int leaves_out = g->rule == TSK_SKIP_RULE_ROWS;
    const tsk_transfer_rule rule = transfer_rule_of(o, quota);
    float confidences[max_canvas], entropies[max_canvas];
    int32_t positions[max_canvas];
    uint8_t commit[max_canvas];
    for (i = 0; i < s->n_positions; i++) {
        int is_masked = before[s->positions[i]] == mask, is_out = leaves_out && !s->active[i];
        masks += is_masked;
        commits += s->committed[i] != 0;
        wrong += s->committed[i] && is_out;
        if (!is_masked || is_out) continue;
        confidences[n] = s->confidences[i], entropies[n] = s->entropies[i], positions[n++] = s->positions[i];
    }
    EXPECT(g, wrong == 0, "pass %d commits %d rows that it left out", (int)s->pass, (int)wrong);
    if (o->on_select) EXPECT(g, g->n_selected == n, "a rule was asked about %d of %d", (int)g->n_selected, (int)n);
    if (o->on_select || g->m.is_blind) return;
    select_by(&rule, n, confidences, entropies, positions, commit);
    for (n = i = 0; i < s->n_positions; i++)
        if (before[s->positions[i]] == mask && (s->active[i] || !leaves_out))
            wrong += (commit[n++] != 0) != (s->committed[i] != 0);
    EXPECT(g, wrong == 0, "%d tokens of pass %d are committed against the rule, or not by it", (int)wrong,
           (int)s->pass);
    if (o->transfer == TSK_TRANSFER_SCHEDULE && !(leaves_out && g->force_active >= 0))
        EXPECT(g, commits == (quota < masks ? quota : masks), "pass %d commits %d of a quota of %d, with %d masks",
               (int)s->pass, (int)commits, (int)quota, (int)masks);
}

/* Who may skip: active + stable masked + stable others are the block, and each option's word is kept. Whom the rule
   ROWS leaves out is judged by watch_plan. */
static void watch_active(generation *g, const tsk_step *s, const int32_t *before) {
    const tsk_generate_options *o = &g->options;
    int32_t i, active = 0, stable_masked = 0, mask = g->driver->config->mask_token_id;
    int decides = !s->is_refresh && g->n_states > 0, is_ours = g->rule == TSK_SKIP_RULE_STATES;
    for (i = 0; i < s->n_positions; i++) {
        int32_t at = s->positions[i];
        active += s->active[i] != 0;
        stable_masked += !s->active[i] && before[at] == mask;
        if (s->active[i] || s->is_refresh) g->age[at] = 0;
        else g->age[at]++;
        if (decides && g->force_active >= 0 && (s->block_step == 0 || (g->is_mixed && s->active[i])))
            continue; /* whether a block's first step, or a copy, has anything to skip to is not said */
        if (decides && g->force_active >= 0)
            EXPECT(g, (s->active[i] != 0) == (i < g->force_active), "slot %d's activity was forced", (int)i);
        else if (is_ours && o->skip.max_age > 0 && !g->is_mixed)
            EXPECT(g, g->age[at] <= o->skip.max_age, "skipped %d times in a row", (int)g->age[at]);
    }
    EXPECT(g, s->n_active == active && s->n_stable_masked == stable_masked,
           "pass %d counts %d active and %d stable masked of %d and %d", (int)s->pass, (int)s->n_active,
           (int)s->n_stable_masked, (int)active, (int)stable_masked);
    if (!decides && (s->is_refresh || g->rule != TSK_SKIP_RULE_ROWS))
        EXPECT(g, active == s->n_positions, "pass %d skips where nothing is compared", (int)s->pass);
    if (is_ours && g->force_active >= 0) return;
    EXPECT(g, o->skip.masked || !is_ours || !stable_masked, "masked tokens are stable");
    if (o->skip.full_every > 0 && s->block_step % o->skip.full_every == 0)
        EXPECT(g, active == s->n_positions, "step %d of a block was to run in full", (int)s->block_step);
}

static void watch_cosines(generation *g, const tsk_step *s) {
    int32_t i, wrong = 0;
    EXPECT(g, s->n_cosines == 0 || (s->n_cosines == g->n_states && !s->is_refresh), "%d cosines a position",
           (int)s->n_cosines);
    if (!EXPECT(g, (s->n_cosines > 0) == (s->cosines != NULL), "cosines are counted where there are none")) return;
    for (i = 0; i < s->n_positions * s->n_cosines; i++) wrong += !(s->cosines[i] >= -1.001f && s->cosines[i] <= 1.001f);
    EXPECT(g, wrong == 0, "%d cosines of pass %d are none", (int)wrong, (int)s->pass);
}

/* The counts that the result must come to. */
static void watch_counts(generation *g, const tsk_step *s, const plan *p) {
    const tsk_generate_options *o = &g->options;
    uint64_t rows = (uint64_t)s->n_positions, layers = (uint64_t)g->driver->config->n_layers,
             active = (uint64_t)s->n_active, length = (uint64_t)g->length;
    uint64_t k = (uint64_t)g->k < layers ? (uint64_t)g->k : layers, lower = g->rule == TSK_SKIP_RULE_STATES ? k : 0;
    g->nfe++;
    g->refreshes += s->is_refresh;
    g->rows += (uint64_t)s->n_rows;
    g->refreshed += (uint64_t)p->n_further;
    if (s->is_refresh && (o->skip.refresh || o->refresh == TSK_REFRESH_NEAR || o->refresh_window)) {
        uint64_t all = o->skip.refresh ? k : 0; /* layers that everything visible runs */
        g->refresh_total += length * layers;
        g->refresh_computed += (uint64_t)g->m.visible * all + (uint64_t)s->n_rows * (layers - all);
    }
    if (s->is_refresh || o->cache != TSK_CACHE_DUAL) return;
    if (!EXPECT(g, g->n_steps < max_canvas, "more block steps than positions")) return;
    g->active[g->n_steps] = s->n_active;
    g->stable_masked[g->n_steps++] = s->n_stable_masked;
    g->total += rows * layers;
    g->computed += rows * lower + active * (layers - lower);
}

static int watch_step(void *user, const tsk_step *s) {
    generation *g = (generation *)user;
    int32_t before[max_canvas], pass = g->passes++;
    plan p;
    if (!EXPECT(g,
                s->canvas_length == g->length && s->prompt_length == g->given.n_prompt && s->n_positions > 0 &&
                    s->n_positions <= g->length,
                "a canvas of %d with a prompt of %d is told as %d and %d", (int)g->length, (int)g->given.n_prompt,
                (int)s->canvas_length, (int)s->prompt_length))
        return 1;
    EXPECT(g, !g->must_end, "a pass after the one that was to be the last");
    memcpy(before, g->canvas, sizeof before);
    watch_order(g, s, before);
    watch_canvas(g, s);
    plan_pass(g, next_extent(g), before, s->positions, s->n_positions, 0, &p);
    watch_plan(g, s, &p);
    watch_rule(g, s, before);
    watch_active(g, s, before);
    watch_cosines(g, s);
    watch_counts(g, s, &p);
    note_confidences(g, s, before);
    note_pass(g, &p, before, s->positions, s->active, s->n_positions, s->pass);
    if (pass == g->deed_at) call_inside(g, 1);
    if (pass != g->stop_at) return 0;
    g->must_end = 1;
    return 1;
}

/* Which candidates follows from their positions, so that it is the same in a batch and alone. */
static void choose_some(void *user, const tsk_selection *s) {
    generation *g = (generation *)user;
    int32_t i, mask = g->driver->config->mask_token_id;
    g->n_selected = s->n;
    EXPECT(g, s->n > 0, "a rule is asked about %d candidates", (int)s->n);
    EXPECT(g, s->block_step >= 0 && s->quota >= (g->m.n_probes == 0), "a rule is asked in step %d, of quota %d",
           (int)s->block_step, (int)s->quota);
    EXPECT(g, g->m.is_blind || s->pass == passes_of(g), "a rule is asked in pass %d", (int)s->pass);
    for (i = 0; i < s->n; i++) {
        const tsk_candidate *c = &s->candidates[i];
        if (!EXPECT(g, c->position >= 0 && c->position < g->length && (!i || c->position > c[-1].position),
                    "candidate %d is at position %d", (int)i, (int)c->position))
            return;
        EXPECT(g, g->canvas[c->position] == mask && c->id != mask && s->commit[i] == 0, "candidate %d of position %d",
               (int)i, (int)c->position);
        EXPECT(g, c->confidence >= 0 && c->confidence <= 1.0001f, "candidate %d has confidence %g", (int)i,
               (double)c->confidence);
        if (g->choice == CHOICE_ALL) s->commit[i] = 1;
        if (g->choice == CHOICE_THIRD) s->commit[i] = (uint8_t)(c->position % 3 == 0 ? 200 : 0);
        if (g->choice == CHOICE_LAST) s->commit[i] = i == s->n - 1;
    }
    if (g->passes == g->deed_at && g->choice == CHOICE_LAST) call_inside(g, 0);
}

static int ask_cancel(void *user) {
    generation *g = (generation *)user;
    if (g->asked++ != g->cancel_at) return 0;
    g->must_end = 1;
    return 1;
}

/* A generation of these options; most have all callbacks. */
static void new_generation(driver *d, generation *g, const char *kind, int number, const tsk_generate_options *o) {
    int32_t callbacks = draw(d, 16);
    memset(g, 0, sizeof *g);
    g->driver = d;
    g->kind = kind;
    g->number = number;
    g->options = *o;
    g->rule = resolved_rule(o);
    g->k = resolved_k(o, d->config);
    g->n_states = g->rule == TSK_SKIP_RULE_STATES && g->k >= 2 && g->k < d->config->n_layers ? g->k - 1 : 0;
    g->skips_refresh = o->skip.refresh && g->k >= 2 && g->k < d->config->n_layers;
    g->stop_at = g->cancel_at = g->deed_at = -1;
    g->force_active = draw(d, 8) == 7 ? draw(d, 10) : TSK_AUTO;
    g->force_refresh = draw(d, 8) == 7 ? draw(d, 20) : TSK_AUTO;
    g->options.user = g;
    if (callbacks) g->options.on_step = watch_step;
    if (callbacks > 8) {
        g->options.on_select = choose_some;
        g->choice = (choice)draw(d, CHOICE_COUNT);
    }
    if (callbacks == 4 || callbacks == 12) g->stop_at = draw(d, 8);
    if (callbacks == 5 || callbacks == 13) g->options.cancel = ask_cancel, g->cancel_at = draw(d, 12) - 1;
    if (callbacks > 1 && draw(d, 3) == 2) g->deed_at = draw(d, 8);
}

static void say_options(driver *d, const generation *g) {
    const tsk_generate_options *o = &g->options;
    say(d,
        " gen %d block %d steps %d cache %d transfer %d (%g, %g, %g, %g, %g, %d) temperature %g remasking %d "
        "eos_stop %d end %d",
        (int)o->gen_length, (int)o->block_length, (int)o->steps, (int)o->cache, (int)o->transfer, (double)o->threshold,
        (double)o->factor, (double)o->frechet, (double)o->entropy_bound, (double)o->local_leap, (int)o->local_radius,
        (double)o->temperature, (int)o->remasking, o->eos_stop, (int)o->end_of_turn_id);
    say(d, " refresh_every %d", (int)o->refresh_every);
    if (o->cache == TSK_CACHE_DUAL)
        say(d,
            " start %d near %d window %d refresh_rows %d rule %d margin %d ahead %d K %d skip %g %g policy %d "
            "masked %d reference %d age %d full %d warm %d refresh %d force %d %d",
            (int)o->refresh, (int)o->refresh_near, (int)o->refresh_window, (int)o->refresh_rows, (int)o->skip.rule,
            (int)o->skip.rows_margin, (int)o->skip.rows_ahead, (int)o->skip.layer_k, (double)o->skip.threshold,
            (double)o->skip.outlier, (int)o->skip.policy, o->skip.masked, (int)o->skip.reference, (int)o->skip.max_age,
            (int)o->skip.full_every, o->skip.warm_start, o->skip.refresh, (int)g->force_active, (int)g->force_refresh);
    if (o->on_select) say(d, " rule %d", (int)g->choice);
    if (!o->on_step) say(d, " no on_step");
    if (g->stop_at >= 0) say(d, " stop at %d", (int)g->stop_at);
    if (o->cancel) say(d, " cancel at %d", (int)g->cancel_at);
}

static void say_input(driver *d, const input *in) {
    say(d, " %d prompt tokens with %d masks", (int)in->n_argument,
        (int)masks_of(in->prompt, in->n_prompt, d->config->mask_token_id));
    say(d, "%s", in->has_generated ? ", a generated part" : "");
}

/* ---- results */

/* Where end-of-sequence tokens may be, and what they must have done. */
static void check_end(generation *g, const tsk_result *r) {
    int32_t i, length = g->options.block_length, first = -1;
    for (i = 0; i < r->n_tokens && first < 0; i++)
        if (ends(g, r->tokens[i])) first = i;
    EXPECT(g, r->n_before_end == (first < 0 ? r->n_tokens : first), "n_before_end %d of %d", (int)r->n_before_end,
           (int)first);
    if (g->is_mixed || r->finish_reason == TSK_FINISH_NONE || r->finish_reason == TSK_FINISH_CANCELLED) return;
    EXPECT(g, (r->finish_reason == TSK_FINISH_EOS) == (first >= 0 && g->options.eos_stop),
           "finish_reason %d with the first end at %d", (int)r->finish_reason, (int)first);
    for (i = first < 0 ? r->n_tokens : (first / length + 1) * length;
         i < r->n_tokens && r->finish_reason == TSK_FINISH_EOS; i++) {
        int is_given = g->given.has_generated && g->given.generated[i] != g->driver->config->mask_token_id;
        EXPECT(g, is_given || r->tokens[i] == g->driver->config->eos_token_id, "token %d after an early end is %d",
               (int)i, (int)r->tokens[i]);
    }
}

/* What was given stays; masks are left only where it has not ended. */
static void check_canvas(generation *g, const tsk_result *r) {
    int32_t i, mask = g->driver->config->mask_token_id, masks = masks_of(r->canvas, g->length, mask), changed = 0,
               wrong = 0;
    for (i = 0; i < r->n_prompt; i++) changed += g->given.prompt[i] != mask && r->canvas[i] != g->given.prompt[i];
    for (i = 0; g->given.has_generated && i < r->n_tokens; i++)
        changed += g->given.generated[i] != mask && r->tokens[i] != g->given.generated[i];
    for (i = 0; i < g->length; i++) {
        wrong += r->canvas[i] < 0 || r->canvas[i] >= g->driver->config->embedding_size;
        if (g->options.on_step && g->canvas[i] == r->canvas[i]) continue;
        /* An early end fills what is left; without on_step, passes are seen here only. */
        wrong += g->canvas[i] != mask || (g->options.on_step && (r->finish_reason != TSK_FINISH_EOS ||
                                                                 r->canvas[i] != g->driver->config->eos_token_id));
    }
    if (!g->options.on_step)
        for (wrong = 0, i = 0; i < g->length; i++) wrong += g->canvas[i] != mask && g->canvas[i] != r->canvas[i];
    EXPECT(g, changed == 0, "%d given tokens have changed", (int)changed);
    EXPECT(g, wrong == 0, "%d tokens are none, or changed by no pass", (int)wrong);
    EXPECT(g, r->mask_residual == masks, "mask_residual %d of %d masks", (int)r->mask_residual, (int)masks);
    if (r->finish_reason == TSK_FINISH_LENGTH || r->finish_reason == TSK_FINISH_EOS)
        EXPECT(g, masks == 0, "%d masks at the end", (int)masks);
    memcpy(g->canvas, r->canvas, (size_t)g->length * sizeof *g->canvas);
}

static void check_blocks(generation *g, const tsk_result *r) {
    int32_t i, nfe = 0, residual = 0, most = g->options.gen_length / g->options.block_length + (g->infilled > 0);
    if (!EXPECT(g, r->n_blocks >= 0 && r->n_blocks <= most, "%d blocks of %d", (int)r->n_blocks, (int)most)) return;
    for (i = 0; i < r->n_blocks; i++) {
        nfe += r->blocks[i].nfe;
        residual += r->blocks[i].mask_residual;
    }
    EXPECT(g, nfe == r->nfe, "the blocks' passes are %d of %d", (int)nfe, (int)r->nfe);
    if (r->finish_reason == TSK_FINISH_LENGTH || r->finish_reason == TSK_FINISH_EOS)
        EXPECT(g, residual == 0, "the blocks have %d masks at the end", (int)residual);
}

/* Counts are those that on_step was told of; without it they are kept for comparing. */
static void check_counts(generation *g, const tsk_result *r) {
    size_t size = (size_t)r->n_block_steps * sizeof *r->active;
    EXPECT(g, r->refreshes + r->block_steps == r->nfe && r->refreshes >= 0 && r->block_steps >= 0,
           "%d refreshes and %d steps are %d passes", (int)r->refreshes, (int)r->block_steps, (int)r->nfe);
    EXPECT(g, r->total_ms >= 0 && r->refresh_ms >= 0 && r->block_step_ms >= 0 && r->total_ms < 1e9,
           "times of %g, %g and %g", r->total_ms, r->refresh_ms, r->block_step_ms);
    if (!EXPECT(g, r->n_block_steps >= 0 && r->n_block_steps <= max_canvas, "%d block steps", (int)r->n_block_steps))
        return;
    if (g->options.on_step) {
        EXPECT(g, r->nfe == g->nfe && r->refreshes == g->refreshes, "nfe %d of %d, refreshes %d of %d", (int)r->nfe,
               (int)g->nfe, (int)r->refreshes, (int)g->refreshes);
        EXPECT(g,
               r->n_block_steps == g->n_steps &&
                   (size == 0 || (memcmp(r->active, g->active, size) == 0 &&
                                  memcmp(r->stable_masked, g->stable_masked, size) == 0)),
               "%d block steps of %d, or not those that on_step told", (int)r->n_block_steps, (int)g->n_steps);
        EXPECT(g, r->token_layers_total == g->total && r->token_layers_computed == g->computed,
               "token-layers %llu of %llu, in all %llu of %llu", (unsigned long long)r->token_layers_computed,
               (unsigned long long)g->computed, (unsigned long long)r->token_layers_total,
               (unsigned long long)g->total);
        EXPECT(g, r->refreshed_rows == g->refreshed || g->m.is_blind, "refreshed_rows %d of %d", (int)r->refreshed_rows,
               (int)g->refreshed);
        EXPECT(g,
               r->refresh_token_layers_total == g->refresh_total &&
                   (r->refresh_token_layers_computed == g->refresh_computed || g->m.is_blind),
               "the refreshes' token-layers are %d of %d, not %d of %d", (int)r->refresh_token_layers_computed,
               (int)r->refresh_token_layers_total, (int)g->refresh_computed, (int)g->refresh_total);
        EXPECT(g, r->rows == g->rows, "rows %d of %d", (int)r->rows, (int)g->rows);
    }
    if (!g->options.on_step && r->nfe != g->nfe) g->m.is_blind = 1;
    EXPECT(g,
           r->refresh_token_layers_computed <= r->refresh_token_layers_total &&
               r->token_layers_computed <= r->token_layers_total,
           "more was computed than there is");
    if (size) memcpy(g->active, r->active, size);
    if (size) memcpy(g->stable_masked, r->stable_masked, size);
    g->nfe = r->nfe, g->refreshes = r->refreshes, g->n_steps = r->n_block_steps;
    g->total = r->token_layers_total, g->computed = r->token_layers_computed, g->refreshed = r->refreshed_rows;
    g->refresh_total = r->refresh_token_layers_total, g->refresh_computed = r->refresh_token_layers_computed;
    g->rows = r->rows;
    g->finish = r->finish_reason;
}

static void check_result(generation *g, const tsk_result *r) {
    if (!EXPECT(g,
                r->n_prompt == g->given.n_prompt && r->n_tokens == g->options.gen_length && r->canvas &&
                    r->tokens == r->canvas + r->n_prompt,
                "a result of %d and %d tokens, not %d and %d", (int)r->n_prompt, (int)r->n_tokens,
                (int)g->given.n_prompt, (int)g->options.gen_length))
        return;
    EXPECT(g, r->finish_reason >= TSK_FINISH_NONE && r->finish_reason <= TSK_FINISH_CANCELLED, "finish_reason %d",
           (int)r->finish_reason);
    EXPECT(g, r->finish_reason != TSK_FINISH_EOS || g->options.eos_stop || g->is_mixed,
           "an early end without eos_stop");
    check_canvas(g, r);
    check_end(g, r);
    check_blocks(g, r);
    check_counts(g, r);
}

/* Faults that callbacks found become the driver's. */
static void harvest(driver *d, generation *g) {
    if (!g->fault[0]) return;
    EXPECT(d, 0, "%s %d: %s", g->kind, g->number, g->fault);
    g->fault[0] = 0;
}

/* ---- the same again, alone */

static void same_generation(driver *d, const generation *a, const generation *b) {
    size_t steps = (size_t)a->n_steps * sizeof *a->active;
    EXPECT(d, a->length == b->length && memcmp(a->canvas, b->canvas, (size_t)a->length * sizeof *a->canvas) == 0,
           "%s %d has other tokens than alone", a->kind, a->number);
    EXPECT(d, a->nfe == b->nfe && a->refreshes == b->refreshes, "%s %d has %d passes, alone %d", a->kind, a->number,
           (int)a->nfe, (int)b->nfe);
    EXPECT(d,
           a->n_steps == b->n_steps && memcmp(a->active, b->active, steps) == 0 &&
               memcmp(a->stable_masked, b->stable_masked, steps) == 0,
           "%s %d has other active rows than alone", a->kind, a->number);
    EXPECT(d, a->computed == b->computed && a->total == b->total && a->refreshed == b->refreshed,
           "%s %d has other token-layers than alone", a->kind, a->number);
    EXPECT(d,
           a->refresh_computed == b->refresh_computed && a->refresh_total == b->refresh_total && a->rows == b->rows,
           "%s %d has refreshed other token-layers than alone, or other rows", a->kind, a->number);
    EXPECT(d,
           a->finish == b->finish ||
               (a->finish == TSK_FINISH_CANCELLED && (a->stop_at < 0 || a->stop_at != a->nfe - 1)),
           "%s %d has finish_reason %d, alone %d", a->kind, a->number, (int)a->finish, (int)b->finish);
}

static void watch_rows(void *user, const tsk_trace_record *r) { note_seen((generation *)user, r); }

/* A session of its own, with nothing refused, takes the same number of passes from the same start. Now and then it is
   traced, so that the rows of its passes are seen. */
static void compare_alone(driver *d, const generation *g) {
    generation *alone = &d->alone;
    tsk_trace_options tracing = tsk_trace_options_default();
    refusal kept = d->refusal;
    tsk_session *session = NULL;
    tsk_result result;
    int finished = 0;
    d->refusal.countdown = -1;
    d->refusal.budget = SIZE_MAX;
    *alone = *g;
    alone->kind = "alone";
    alone->options.user = alone;
    alone->options.cancel = NULL;
    alone->cancel_at = alone->deed_at = -1;
    alone->fault[0] = 0;
    expect_start(alone, &g->given);
    tracing.pattern = "embedding";
    tracing.on_record = watch_rows;
    tracing.user = alone;
    alone->given.prompt_argument = alone->given.prompt;
    alone->given.generated_argument = g->given.has_generated ? alone->given.generated : NULL;
    if (EXPECT(d, tsk_session_create(d->model, &alone->options, &session, NULL) == TSK_OK,
               "no session of the same options") &&
        EXPECT(d, tsk_session_force(session, alone->force_active, alone->force_refresh, NULL) == TSK_OK, "no force") &&
        EXPECT(d, tsk_session_trace(session, g->nfe % 3 ? &tracing : NULL, NULL) == TSK_OK, "no trace") &&
        EXPECT(d,
               tsk_session_start(session, alone->given.prompt, alone->given.n_prompt, alone->given.generated_argument,
                                 NULL) == TSK_OK,
               "no start of the same input")) {
        do {
            tsk_session_result(session, &result);
            if (result.nfe >= g->nfe) break;
            if (!EXPECT(d, tsk_session_step(session, &finished, NULL) == TSK_OK, "alone, a step fails")) break;
        } while (!finished);
        tsk_session_result(session, &result);
        check_result(alone, &result);
        harvest(d, alone);
        same_generation(d, g, alone);
    }
    tsk_session_free(session);
    d->refusal = kept;
}

/* ---- sessions */

static slot *draw_slot(driver *d) { return &d->slots[draw(d, n_slots)]; }

/* What a session shows must be what is known of it. */
static void check_slot(driver *d, slot *s) {
    tsk_result result;
    if (s->phase == PHASE_NONE || s->is_other) return;
    memset(&result, 0x5a, sizeof result);
    tsk_session_result(s->session, &result);
    if (s->phase == PHASE_FRESH) {
        EXPECT(d,
               !result.canvas && !result.tokens && !result.n_tokens && !result.nfe && !result.mask_residual &&
                   !result.n_blocks && !result.n_block_steps && result.finish_reason == TSK_FINISH_NONE,
               "session %d shows a result though it was not started", s->g.number);
        return;
    }
    check_result(&s->g, &result);
    harvest(d, &s->g);
    EXPECT(d, s->phase == PHASE_FAILED || (s->phase == PHASE_FINISHED) == (result.finish_reason != TSK_FINISH_NONE),
           "session %d is in phase %d with finish_reason %d", s->g.number, (int)s->phase, (int)result.finish_reason);
}

static void settle(driver *d, slot *s) {
    tsk_result result;
    tsk_session_result(s->session, &result);
    s->phase = result.finish_reason == TSK_FINISH_NONE ? PHASE_RUNNING : PHASE_FINISHED;
    check_slot(d, s);
}

static void free_slot(driver *d, slot *s) {
    say(d, "free session %d\n", (int)(s - d->slots));
    tsk_session_free(s->session);
    s->session = NULL;
    s->phase = PHASE_NONE;
    harvest(d, &s->g);
}

static void start_slot(driver *d, slot *s, int to_the_end);

static void create_slot(driver *d, slot *s) {
    tsk_generate_options o = draw_options(d);
    int is_default = draw(d, 64) == 63, legal;
    const slot *like = draw_slot(d);
    tsk_model *model;
    tsk_status status;
    call c;
    if (s->session) free_slot(d, s);
    memset(s, 0, sizeof *s);
    if (draw(d, 2) && like->phase != PHASE_NONE && !like->is_other) { /* so that one may be copied to the other */
        o.gen_length = like->g.options.gen_length, o.block_length = like->g.options.block_length;
        o.steps = TSK_AUTO;
    }
    if (draw(d, 8) == 7) draw_extreme(d, &o);
    s->is_other = !is_default && draw(d, 16) == 15;
    model = s->is_other ? d->other : d->model;
    if (is_default) o = tsk_generate_options_default();
    new_generation(d, &s->g, "session", (int)(s - d->slots), &o);
    if (is_default) {
        s->g.options = tsk_generate_options_default(), s->g.stop_at = s->g.deed_at = -1;
        s->g.options.cache = TSK_CACHE_DUAL, s->g.options.block_length = 32; /* what AUTO means for these models */
        o = s->g.options;
    }
    legal = options_are_legal(&o, tsk_model_get_config(model));
    begin(d, &c);
    say(d, "create session %d:", s->g.number);
    say_options(d, &s->g);
    s->session = (tsk_session *)(void *)d;
    status = tsk_session_create(model, is_default ? NULL : &s->g.options, &s->session, c.error);
    if (end(d, &c, status, legal ? may_ok : may_argument)) {
        s->phase = PHASE_FRESH;
        EXPECT(d, tsk_session_force(s->session, s->g.force_active, s->g.force_refresh, NULL) == TSK_OK, "no force");
    }
    if (!EXPECT(d, (s->session != NULL) == (status == TSK_OK), "a session is given out with '%s'",
                tsk_status_string(status)))
        s->session = NULL;
    if (s->phase == PHASE_FRESH && draw(d, 2)) start_slot(d, s, 0);
}

/* Nothing is left of what was before, unless a call was refused for its arguments: then all may be as it was. */
static void forget(driver *d, slot *s, tsk_status status) {
    tsk_result result;
    tsk_session_result(s->session, &result);
    s->is_probed = s->is_probed && status == TSK_ERROR_ARGUMENT && result.canvas ? 2 : 0;
    if (status != TSK_ERROR_ARGUMENT || !result.canvas) s->phase = PHASE_FRESH;
    check_slot(d, s);
}

static void fail_slot(driver *d, slot *s, tsk_status status) {
    s->phase = PHASE_FAILED;
    s->failure = status;
    s->is_pure = 0;
    s->is_probed = 0;
    check_slot(d, s);
}

static void start_slot(driver *d, slot *s, int to_the_end) {
    static const int may_fail[] = {may_argument, may_ok};
    input in;
    tsk_result result;
    tsk_status status;
    call c;
    if (s->phase == PHASE_NONE || s->is_other) return;
    draw_input(d, &in, &s->g.options);
    begin(d, &c);
    say(d, "%s session %d:", to_the_end ? "generate in" : "start", s->g.number);
    say_input(d, &in);
    s->is_busy = 1;
    if (in.is_legal) expect_start(&s->g, &in);
    if (in.is_legal && to_the_end) s->phase = PHASE_RUNNING;
    s->records = 0;
    memset(&result, 0x5a, sizeof result);
    if (to_the_end)
        status = tsk_generate(s->session, in.prompt_argument, in.n_argument, in.generated_argument, &result, c.error);
    else status = tsk_session_start(s->session, in.prompt_argument, in.n_argument, in.generated_argument, c.error);
    s->is_busy = 0;
    if (!end(d, &c, status, may_fail[in.is_legal])) {
        harvest(d, &s->g);
        tsk_session_result(s->session, &result);
        if (to_the_end && in.is_legal && result.canvas) fail_slot(d, s, status); /* in one of its steps */
        else forget(d, s, status);
        return;
    }
    s->is_pure = 1;
    s->is_probed = 0;
    if (to_the_end) check_result(&s->g, &result);
    settle(d, s);
    EXPECT(d, !to_the_end || s->phase == PHASE_FINISHED, "tsk_generate ends before the generation does");
    if (s->phase == PHASE_FINISHED && !d->depth) compare_alone(d, &s->g);
}

static void step_slot(driver *d, slot *s) {
    int finished = 77, may = may_ok;
    int32_t passes = s->g.passes, asked = s->g.asked;
    phase before = s->phase;
    tsk_result result;
    tsk_status status;
    call c;
    if (s->phase == PHASE_NONE || s->is_other) return;
    if (before == PHASE_FRESH) may = may_argument;
    if (before == PHASE_FAILED) may = MAY(s->failure);
    begin(d, &c);
    say(d, "step session %d", s->g.number);
    s->is_busy = 1;
    status = tsk_session_step(s->session, &finished, c.error);
    s->is_busy = 0;
    s->is_probed = 0;
    end(d, &c, status, may);
    harvest(d, &s->g);
    tsk_session_result(s->session, &result);
    if (status == TSK_OK)
        EXPECT(d, finished ? result.finish_reason != TSK_FINISH_NONE : result.mask_residual > 0,
               "a step says finished %d with finish_reason %d and %d masks", finished, (int)result.finish_reason,
               (int)result.mask_residual);
    if (before != PHASE_RUNNING) {
        EXPECT(d, s->g.passes == passes && s->g.asked == asked, "callbacks of a generation that is over");
        check_slot(d, s);
        return;
    }
    if (status != TSK_OK) {
        fail_slot(d, s, status);
        return;
    }
    EXPECT(d,
           !s->g.options.on_step ||
               s->g.passes == passes + (result.finish_reason != TSK_FINISH_CANCELLED || s->g.passes != passes),
           "a step called on_step %d times", (int)(s->g.passes - passes));
    EXPECT(d, !s->g.options.cancel || s->g.asked == asked + 1, "a step asked %d times whether to cancel",
           (int)(s->g.asked - asked));
    settle(d, s);
    EXPECT(d, finished == (s->phase == PHASE_FINISHED), "finished %d in phase %d", finished, (int)s->phase);
    EXPECT(d, !s->g.must_end || s->phase == PHASE_FINISHED, "a callback's wish to end is not heard");
    if (s->phase == PHASE_FINISHED && s->is_pure && !d->depth) compare_alone(d, &s->g);
}

static void run_slot(driver *d, slot *s) {
    int32_t i;
    for (i = 0; i < 2 * max_canvas && s->phase == PHASE_RUNNING && !d->fault[0]; i++) step_slot(d, s);
    EXPECT(d, s->phase != PHASE_RUNNING, "a generation of %d tokens does not end", (int)s->g.length);
}

static void logits_slot(driver *d, slot *s) {
    static const int may[] = {may_argument, may_ok};
    int32_t ids[max_canvas], n = 1 + draw(d, 24), first = draw(d, n), count = 1 + draw(d, n - first),
                             flaw = draw(d, 24), i;
    size_t width = (size_t)d->config->embedding_size;
    int legal = 1, wrong = 0;
    float *logits;
    tsk_status status;
    call c;
    if (s->phase == PHASE_NONE || s->is_other) return;
    draw_ids(d, ids, n, 4);
    if (flaw >= 18) legal = 0;
    if (flaw == 18) n = 0;
    if (flaw == 19) n = INT32_MAX;
    if (flaw == 20) first = -1;
    if (flaw == 21) count = draw(d, 2) ? 0 : INT32_MIN;
    if (flaw == 22) count = draw(d, 2) ? n - first + 1 : INT32_MAX;
    if (flaw == 23) ids[n - 1] = d->config->embedding_size;
    logits = (float *)malloc((legal ? (size_t)count : 1) * width * sizeof *logits);
    if (!logits) exit(2);
    begin(d, &c);
    say(d, "logits in session %d: %d from %d of %d", s->g.number, (int)count, (int)first, (int)n);
    status = tsk_session_logits(s->session, ids, n, first, count, logits, c.error);
    if (end(d, &c, status, may[legal])) {
        for (i = 0; i < count * (int32_t)width; i++) wrong += !is_finite(logits[i]);
        EXPECT(d, wrong == 0, "%d logits are no numbers", wrong);
    }
    forget(d, s, status);
    free(logits);
}

static int differs_only_in_choices(const generation *a, const generation *b) {
    return a->options.eos_stop == b->options.eos_stop && a->options.end_of_turn_id == b->options.end_of_turn_id;
}

static int same_options(const generation *a, const generation *b) {
    tsk_generate_options x = a->options, y = b->options;
    x.user = y.user = NULL;
    x.cancel = y.cancel = NULL;
    return memcmp(&x, &y, sizeof x) == 0 && a->choice == b->choice && a->stop_at == b->stop_at &&
           a->force_active == b->force_active && a->force_refresh == b->force_refresh;
}

/* `to` is now where `from` is, and goes on by its own rules. */
static void expect_copy(slot *to, const slot *from) {
    generation *a = &to->g;
    const generation *b = &from->g;
    int same = same_options(a, b);
    int32_t cancel_at = a->cancel_at, asked = a->asked, i;
    expect_start(a, &b->given);
    to->is_pure =
        from->is_pure && (same || (b->nfe == 0 && from->phase == PHASE_RUNNING && differs_only_in_choices(a, b)));
    a->m = b->m;
    a->is_mixed = b->is_mixed || (!same && !to->is_pure);
    memcpy(a->canvas, b->canvas, sizeof a->canvas);
    memcpy(a->active, b->active, sizeof a->active);
    memcpy(a->stable_masked, b->stable_masked, sizeof a->stable_masked);
    for (i = 0; i < max_canvas; i++) a->age[i] = a->is_mixed ? 0 : b->age[i];
    a->passes = b->passes;
    a->block = b->block;
    a->nfe = b->nfe, a->refreshes = b->refreshes, a->n_steps = b->n_steps;
    a->computed = b->computed, a->total = b->total, a->refreshed = b->refreshed;
    a->refresh_computed = b->refresh_computed, a->refresh_total = b->refresh_total, a->rows = b->rows;
    a->cancel_at = cancel_at, a->asked = asked;
    to->phase = from->phase;
    to->failure = from->failure;
}

/* `from` may be in its own on_step: the copy is where it will be after that step. */
static void copy_slot(driver *d, slot *to, slot *from) {
    int may = may_ok;
    tsk_status status;
    call c;
    if (to->phase == PHASE_NONE || from->phase == PHASE_NONE || to->is_busy) return;
    if (from->phase == PHASE_FAILED) may = may_ok | may_argument | MAY(from->failure);
    if (to->is_other != from->is_other || from->phase == PHASE_FRESH || (from->is_busy && !from->is_reporting))
        may = may_argument;
    if (to->g.options.gen_length != from->g.options.gen_length ||
        to->g.options.block_length != from->g.options.block_length)
        may = may_argument;
    begin(d, &c);
    say(d, "copy to session %d from session %d", to->g.number, from->g.number);
    status = tsk_session_copy(to->session, from->session, c.error);
    if (!end(d, &c, status, may)) {
        if (to == from)
            EXPECT(d, from->phase == PHASE_FRESH || from->phase == PHASE_FAILED,
                   "a session cannot be copied to itself");
        /* (a session that has failed is refused with its own error, whatever that is) */
        else if (!to->is_other) forget(d, to, from->phase == PHASE_FAILED ? TSK_ERROR_ARGUMENT : status);
        return;
    }
    to->is_probed = to == from && to->is_probed ? 2 : 0;
    if (to == from) return;
    expect_copy(to, from);
    if (!from->is_busy) check_slot(d, from);
    else to->is_pure = to->is_pure && from->g.stop_at < from->g.passes - 1;
    if (to->phase != PHASE_FAILED) settle(d, to);
    check_slot(d, to);
}

/* ---- probes */

static const char *const probe_names[] = {"a block step", "a block step that leaves nothing out", "a refresh"};

static void check_probe(driver *d, const slot *s, const tsk_probe *p) {
    const generation *g = &s->g;
    int32_t i, wrong = 0;
    if (!EXPECT(d, p->n_positions > 0 && p->n_positions <= g->length && p->positions && p->active,
                "a probe of %d positions", (int)p->n_positions))
        return;
    for (i = 0; i < p->n_positions; i++)
        wrong += p->positions[i] < 0 || p->positions[i] >= g->length || (i && p->positions[i] <= p->positions[i - 1]) ||
                 p->active[i] > 1;
    EXPECT(d, p->n_cosines == 0 || p->n_cosines == g->n_states, "a probe of %d cosines a position", (int)p->n_cosines);
    for (i = 0; i < p->n_positions * p->n_cosines; i++) wrong += !(p->cosines[i] >= -1.001f && p->cosines[i] <= 1.001f);
    EXPECT(d, wrong == 0, "%d positions or cosines of a probe are wrong", (int)wrong);
}

/* What it ran is what a pass of that kind runs; caches and the count of steps move on, the canvas stays. */
static void expect_probe(driver *d, slot *s, const tsk_probe *probe, tsk_probe_kind kind, const int32_t *canvas) {
    generation *g = &s->g;
    int32_t i, n = probe->n_positions, pass, wrong = 0, entered = 0;
    int may_skip = g->n_states && kind == TSK_PROBE_STEP;
    plan p;
    /* (a block that had no mask: what its window was is not to be seen once an early end has filled the canvas) */
    if (s->phase == PHASE_FINISHED && g->m.first != probe->positions[0]) g->m.is_blind = 1;
    enter_block(g, g->canvas, probe->positions, n);
    pass = passes_of(g);
    plan_pass(g, kind == TSK_PROBE_REFRESH ? EXTENT_ALL : EXTENT_STEP, canvas, probe->positions, n,
              kind == TSK_PROBE_STEP_ALL, &p);
    for (i = 0; i < n && !may_skip; i++) {
        int runs = p.runs[probe->positions[i]];
        wrong += p.is_exact ? (probe->active[i] != 0) != runs : runs && !probe->active[i];
    }
    EXPECT(d, wrong == 0 || g->m.is_blind, "a probe runs, or leaves out, %d rows against the rule", (int)wrong);
    watch_entered(g, &p, probe->positions, n, pass);
    harvest(d, g);
    g->seen_pass = -1;
    for (i = 0; i < g->length; i++) entered += p.runs[i];
    s->probe_is_full = !may_skip && p.is_exact && entered == g->m.visible &&
                       !(kind == TSK_PROBE_REFRESH && g->skips_refresh);
    for (i = 0; i < n; i++) {
        s->probe_ran[i] = probe->active[i] || g->rule != TSK_SKIP_RULE_ROWS;
        if (probe->active[i]) g->m.confidences[probe->positions[i]] = -1; /* seen by nobody */
    }
    note_pass(g, &p, canvas, probe->positions, probe->active, n, pass);
    g->m.n_probes++;
}

/* Whether the caches that a block step wants are there: of all that the current block sees, which is the first block
   with a mask. */
static int step_may_be_probed(const generation *g) {
    int32_t mask = g->driver->config->mask_token_id, at = 0, length = g->options.block_length, first, last;
    caches m = g->m;
    if (passes_of(g) == 0) return 0;
    while (g->canvas[at] != mask) at++;
    first = at - (at - g->given.n_prompt) % length, last = first + length - 1;
    if (at < g->given.n_prompt) { /* infilling: the first block of all */
        first = m.first >= 0 ? m.first : at;
        for (last = g->given.n_prompt - 1; g->canvas[last] != mask;) last--;
    }
    if (m.first != first) m.visible = visible_from(g, g->canvas, last + 1);
    return !has_gaps(&m);
}

/* Logits of a pass over all that is visible are those that another session computes of the same tokens, to the last
   bit. */
static void compare_logits(driver *d, const slot *s, const float *logits) {
    size_t width = (size_t)d->config->embedding_size;
    refusal kept = d->refusal;
    tsk_session *session = NULL;
    float *own = (float *)malloc((size_t)s->g.length * width * sizeof *own);
    int32_t i;
    if (!own) exit(2);
    d->refusal.countdown = -1;
    d->refusal.budget = SIZE_MAX;
    if (EXPECT(d,
               tsk_session_create(d->model, &s->g.options, &session, NULL) == TSK_OK &&
                   tsk_session_logits(session, s->probe_canvas, s->g.m.visible, 0, s->g.m.visible, own, NULL) == TSK_OK,
               "no logits to compare with"))
        for (i = 0; i < s->n_probed; i++)
            EXPECT(d,
                   memcmp(own + (size_t)s->probe_positions[i] * width, logits + (size_t)i * width,
                          width * sizeof *own) == 0,
                   "the probed logits of position %d are not those of its canvas", (int)s->probe_positions[i]);
    tsk_session_free(session);
    free(own);
    d->refusal = kept;
}

static void probe_logits_slot(driver *d, slot *s) {
    size_t width = (size_t)d->config->embedding_size, d_model = (size_t)d->config->d_model,
           rows = (size_t)(s->g.length > 1 ? s->g.length : 1), i;
    float *logits, *norm;
    int with_norm = draw(d, 2), wrong = 0, may;
    tsk_status status;
    call c;
    if (s->phase == PHASE_NONE || s->is_other) return;
    logits = (float *)malloc(rows * width * sizeof *logits);
    norm = (float *)malloc(rows * d_model * sizeof *norm);
    if (!logits || !norm) exit(2);
    may = s->is_probed == 1          ? may_ok
          : s->is_probed             ? may_ok | may_argument
          : s->phase == PHASE_FAILED ? may_argument | MAY(s->failure)
                                     : may_argument;
    begin(d, &c);
    say(d, "probe_logits of session %d", s->g.number);
    status = tsk_session_probe_logits(s->session, with_norm ? norm : NULL, logits, c.error);
    if (end(d, &c, status, may) && s->is_probed == 1) {
        for (i = 0; i < (size_t)s->n_probed * width; i++)
            wrong += s->probe_ran[i / width] ? !is_finite(logits[i]) : logits[i] == logits[i];
        for (i = 0; with_norm && i < (size_t)s->n_probed * d_model; i++)
            wrong += s->probe_ran[i / d_model] ? !is_finite(norm[i]) : norm[i] == norm[i];
        EXPECT(d, wrong == 0, "%d probed values are no numbers, or are numbers though nothing ran", wrong);
        if (s->probe_is_full && !s->g.m.is_blind) compare_logits(d, s, logits);
    }
    free(logits);
    free(norm);
    check_slot(d, s);
}

static void probe_slot(driver *d, slot *s) {
    static const tsk_probe_kind kinds[] = {TSK_PROBE_STEP, TSK_PROBE_STEP, TSK_PROBE_STEP_ALL, TSK_PROBE_REFRESH,
                                           TSK_PROBE_REFRESH};
    int32_t canvas[max_canvas], n = s->g.length, i;
    tsk_probe_kind kind = kinds[draw(d, 5)];
    int has_canvas = draw(d, 2), flaw = draw(d, 16) == 15, may = may_ok;
    tsk_probe probe;
    tsk_status status;
    call c;
    if (s->phase == PHASE_NONE || s->is_other) return;
    if (s->phase == PHASE_FRESH) n = 0;
    draw_ids(d, canvas, n, 3);
    if (flaw && has_canvas && n) canvas[draw(d, n)] = draw(d, 2) ? -1 : INT32_MAX;
    else flaw = 0;
    if (kind != TSK_PROBE_REFRESH && s->phase == PHASE_FINISHED) may = may_ok | may_argument;
    if (kind != TSK_PROBE_REFRESH && s->phase == PHASE_RUNNING)
        may = s->g.m.is_blind             ? may_ok | may_argument /* whether all that it attends to ran is not known */
              : step_may_be_probed(&s->g) ? may_ok
                                          : may_argument;
    if (kind != TSK_PROBE_REFRESH && s->g.options.cache != TSK_CACHE_DUAL) may = may_argument;
    if (s->phase == PHASE_FRESH || flaw) may = may_argument;
    if (s->phase == PHASE_FAILED) may = may_argument | MAY(s->failure);
    begin(d, &c);
    say(d, "probe session %d: %s of %s", s->g.number, probe_names[kind],
        has_canvas ? "another canvas" : "its own canvas");
    for (i = 0; i < n && !has_canvas; i++) canvas[i] = s->g.canvas[i];
    memset(&probe, 0x5a, sizeof probe);
    s->g.seen_pass = -1;
    status = tsk_session_probe(s->session, has_canvas ? canvas : NULL, kind, &probe, c.error);
    s->is_probed = s->is_probed && status == TSK_ERROR_ARGUMENT ? 2 : 0;
    if (end(d, &c, status, may)) {
        check_probe(d, s, &probe);
        expect_probe(d, s, &probe, kind, canvas);
        s->is_probed = 1;
        s->n_probed = probe.n_positions;
        memcpy(s->probe_positions, probe.positions, (size_t)probe.n_positions * sizeof *canvas);
        memcpy(s->probe_canvas, canvas, (size_t)n * sizeof *canvas);
        s->g.is_mixed = 1;
        s->is_pure = 0;
    } else if (status != TSK_ERROR_ARGUMENT && s->phase != PHASE_FAILED) fail_slot(d, s, status);
    check_slot(d, s);
    if (s->is_probed == 1 && draw(d, 2)) probe_logits_slot(d, s);
}

/* ---- traces */

static void watch_record(void *user, const tsk_trace_record *r) {
    slot *s = (slot *)user;
    generation *g = &s->g;
    uint64_t n = 1, i;
    int dim, wrong = 0;
    double low = INFINITY, high = -INFINITY;
    s->records++;
    note_seen(g, r);
    EXPECT(g, s->is_traced, "a record though tracing has ended");
    if (!EXPECT(g, r->name && r->part && r->n_dims >= 2 && r->n_dims <= 3 && r->n_rows > 0,
                "a record of %d dimensions and %d rows", r->n_dims, (int)r->n_rows))
        return;
    for (dim = 0; dim < r->n_dims; dim++) n *= r->output_shape[dim];
    EXPECT(g, r->layer < 0 || (r->layer >= s->tracing.first_layer && r->layer <= s->tracing.last_layer),
           "a record of layer %d", (int)r->layer);
    EXPECT(g, r->pass >= s->tracing.first_pass && r->pass <= s->tracing.last_pass, "a record of pass %d", (int)r->pass);
    for (i = 0; i < (uint64_t)r->n_rows; i++)
        wrong += r->positions[i] < 0 || r->positions[i] >= g->length || (i && r->positions[i] <= r->positions[i - 1]);
    EXPECT(g, wrong == 0 || g->options.refresh_rows, "%d wrong positions in a record of %s", wrong, r->name);
    if (!EXPECT(g, s->tracing.values ? r->output != NULL : !r->output && !r->input, "values of %s", r->name) ||
        !r->output)
        return;
    for (wrong = 0, i = 0; i < n; i++) {
        wrong += !is_finite(r->output[i]);
        low = r->output[i] < low ? r->output[i] : low;
        high = r->output[i] > high ? r->output[i] : high;
    }
    EXPECT(g, wrong == 0, "%d values of %s are no numbers", wrong, r->name);
    EXPECT(g, low == r->stats.min && high == r->stats.max, "%s is from %g to %g, said to be from %g to %g", r->name,
           low, high, r->stats.min, r->stats.max);
}

static void trace_slot(driver *d, slot *s) {
    static const char *const patterns[] = {NULL, "*_1*", "logits", "kv_*", "layer_?_rope", "nothing", "", "embedding"};
    tsk_trace_options o = tsk_trace_options_default();
    int on = draw(d, 3), was_traced = s->is_traced;
    tsk_status status;
    call c;
    if (s->phase == PHASE_NONE || s->is_other) return;
    o.pattern = patterns[draw(d, 8)];
    if (draw(d, 3) == 2) o.first_layer = draw(d, 4) - 1, o.last_layer = draw(d, 4) - 1;
    if (draw(d, 3) == 2) o.first_pass = draw(d, 4), o.last_pass = o.first_pass + draw(d, 4);
    o.values = draw(d, 2);
    o.user = s;
    if (draw(d, 16) != 15) o.on_record = watch_record;
    begin(d, &c);
    say(d, "trace session %d: %s, pattern %s, layers %d to %d, passes %d to %d, values %d", s->g.number,
        !on           ? "off"
        : o.on_record ? "on"
                      : "without on_record",
        o.pattern ? o.pattern : "NULL", (int)o.first_layer, (int)o.last_layer, (int)o.first_pass, (int)o.last_pass,
        o.values);
    status = tsk_session_trace(s->session, on ? &o : NULL, c.error);
    s->is_probed = s->is_probed ? 2 : 0;
    if (end(d, &c, status, !on || o.on_record ? may_ok : may_argument)) {
        s->is_traced = on != 0;
        s->tracing = o;
    } else if (was_traced && status == TSK_ERROR_MEMORY) {
        begin(d, &c); /* whether the old records go on is not said: end them */
        say(d, "trace session %d: off", s->g.number);
        s->is_traced = !end(d, &c, tsk_session_trace(s->session, NULL, c.error), may_ok);
    }
    check_slot(d, s);
}

/* ---- batches */

static int32_t open_orders(const driver *d) {
    int32_t i, n = 0;
    for (i = 0; i < n_orders; i++) n += d->orders[i].is_open && !d->orders[i].is_done;
    return n;
}

/* In the thread that steps the batch, which may be another driver's than the order's. */
static void order_done(void *user, uint64_t id, void *request_user, const tsk_result *result, const tsk_error *error) {
    stateful_models *shared = (stateful_models *)user;
    order *o = (order *)request_user;
    generation *g = &o->g;
    pthread_mutex_lock(&shared->lock);
    EXPECT(g, shared == g->driver->shared, "on_done is handed another user pointer");
    EXPECT(g, o->is_open && !o->is_done, "a request is over twice");
    EXPECT(g, o->id == id, "request %d is over as %d", (int)o->id, (int)id);
    EXPECT(g, (result == NULL) != (error == NULL), "a request is over with neither or both of a result and an error");
    o->status = error ? error->status : TSK_OK;
    if (error)
        EXPECT(g, error->status != TSK_OK && error->message[0] && !strchr(error->message, '\n'),
               "a request's error is '%s'", error->message);
    if (error) EXPECT(g, error->status == TSK_ERROR_MEMORY, "a request ends in '%s'", tsk_status_string(error->status));
    if (result) {
        check_result(g, result);
        EXPECT(g, result->finish_reason != TSK_FINISH_NONE, "a request is over without a reason");
        if (result->finish_reason == TSK_FINISH_CANCELLED)
            EXPECT(g, g->must_end || o->is_cancelled, "a request is cancelled though nobody asked");
        else EXPECT(g, !g->must_end || g->stop_at == g->nfe - 1, "a callback's wish to end a request is not heard");
        if (o->is_cancelled && !shared->batch)
            EXPECT(g, g->passes <= o->most_passes, "a cancelled request has had %d passes too many",
                   (int)(g->passes - o->most_passes));
    }
    o->is_done = 1;
    pthread_mutex_unlock(&shared->lock);
    if (!shared->batch && g->deed_at == 7) call_inside(g, 0);
}

/* Outcomes are looked at after the call that told of them. */
static void settle_orders(driver *d) {
    int32_t i;
    for (i = 0; i < n_orders; i++) {
        order *o = &d->orders[i];
        int done;
        pthread_mutex_lock(&d->shared->lock);
        done = o->is_open && o->is_done;
        pthread_mutex_unlock(&d->shared->lock);
        if (!done) continue;
        o->is_open = 0;
        d->n_ended++;
        harvest(d, &o->g);
        say(d, "  request %d: %s, finish_reason %d\n", (int)o->id, tsk_status_string(o->status), (int)o->g.finish);
        if (o->status != TSK_OK)
            EXPECT(d, d->shared->batch || d->refusal.refused != o->refused_before,
                   "request %d failed though nothing was refused", (int)o->id);
        else if (o->g.finish == TSK_FINISH_CANCELLED && o->g.nfe == 0) continue; /* it never began */
        else if (!d->fault[0]) compare_alone(d, &o->g);
    }
}

static void destroy_batch(driver *d) {
    int32_t i;
    if (!d->batch || d->shared->batch) return;
    say(d, "destroy the batch with %d requests\n", (int)open_orders(d));
    tsk_batch_free(d->batch);
    d->batch = NULL;
    for (i = 0; i < n_orders; i++) {
        harvest(d, &d->orders[i].g);
        d->orders[i].is_open = 0;
        d->orders[i].id = 0;
    }
}

static tsk_batch_options draw_batch_options(driver *d) {
    static const int32_t integers[] = {0, -2, INT32_MAX, INT32_MIN, 65537, 1};
    tsk_batch_options o = tsk_batch_options_default();
    int32_t flaw = draw(d, 24), most = d->config->max_sequence_length;
    o.max_requests = 1 + draw(d, 6);
    o.cache_tokens = draw(d, 4) ? 12 + draw(d, 80) : TSK_AUTO;
    o.max_rows = draw(d, 3) ? 12 + draw(d, most) : TSK_AUTO;
    o.row_layers = draw(d, 2) ? 1 + draw(d, 120) : 0;
    if (flaw == 20) o.max_requests = integers[draw(d, 6)];
    if (flaw == 21) o.cache_tokens = integers[draw(d, 2)];
    if (flaw == 22) o.max_rows = integers[draw(d, 2) * 3];
    if (flaw == 23) o.row_layers = draw(d, 2) ? INT64_MAX : INT64_MIN;
    return o;
}

static int batch_options_are_legal(const tsk_batch_options *o) {
    return o->max_requests >= 1 && o->max_requests <= 65536 && (o->cache_tokens >= 1 || o->cache_tokens == TSK_AUTO) &&
           (o->max_rows >= 1 || o->max_rows == TSK_AUTO) && o->row_layers >= 0;
}

static void create_batch(driver *d) {
    tsk_batch_options o = draw_batch_options(d);
    tsk_status status;
    call c;
    if (d->shared->batch || d->batch_is_busy) return;
    destroy_batch(d);
    o.on_done = order_done;
    o.user = d->shared;
    begin(d, &c);
    say(d, "create a batch: max_requests %d cache_tokens %d max_rows %d row_layers %lld", (int)o.max_requests,
        (int)o.cache_tokens, (int)o.max_rows, (long long)o.row_layers);
    d->batch = (tsk_batch *)(void *)d;
    status = tsk_batch_create(d->model, &o, &d->batch, c.error);
    end(d, &c, status, batch_options_are_legal(&o) ? may_ok : may_argument);
    if (!EXPECT(d, (d->batch != NULL) == (status == TSK_OK), "a batch is given out with '%s'",
                tsk_status_string(status)))
        d->batch = NULL;
    if (!d->batch) return;
    if (o.cache_tokens == TSK_AUTO) o.cache_tokens = o.max_requests * d->config->max_sequence_length;
    if (o.max_rows == TSK_AUTO)
        o.max_rows =
            d->config->max_sequence_length > 32 * o.max_requests ? d->config->max_sequence_length : 32 * o.max_requests;
    d->batch_options = o;
    d->batch_force_active = draw(d, 8) == 7 ? draw(d, 10) : TSK_AUTO;
    d->batch_force_refresh = draw(d, 8) == 7 ? draw(d, 20) : TSK_AUTO;
    EXPECT(d, tsk_batch_force(d->batch, d->batch_force_active, d->batch_force_refresh, NULL) == TSK_OK, "no force");
    d->last_id = 0;
}

static void submit_order(driver *d, int inside) {
    tsk_generate_options o = draw_options(d);
    int32_t free_order = 0, length;
    int legal;
    order *new_order;
    uint64_t id = 0;
    tsk_status status;
    call c;
    input in;
    if (!d->batch) return;
    while (free_order < n_orders && d->orders[free_order].is_open) free_order++;
    if (free_order == n_orders) return;
    new_order = &d->orders[free_order];
    memset(new_order, 0, sizeof *new_order);
    if (draw(d, 12) == 11) draw_extreme(d, &o);
    legal = options_are_legal(&o, d->config);
    new_generation(d, &new_order->g, "request", free_order, &o);
    new_order->g.force_active = d->batch_force_active, new_order->g.force_refresh = d->batch_force_refresh;
    if (d->shared->batch || inside) new_order->g.deed_at = -1;
    if (o.gen_length < 1 || o.gen_length > max_canvas) o.gen_length = 1;
    draw_input(d, &in, &o);
    if (o.gen_length > d->config->max_sequence_length) in.n_prompt = in.n_argument = 0;
    length = in.n_argument < 0 || !in.is_legal ? 0 : in.n_argument + o.gen_length;
    legal = legal && in.is_legal && length <= d->batch_options.cache_tokens && length <= d->batch_options.max_rows;
    if (legal) expect_start(&new_order->g, &in);
    new_order->refused_before = d->refusal.refused;
    new_order->is_open = legal;
    begin(d, &c);
    say(d, "submit:");
    say_options(d, &new_order->g);
    say_input(d, &in);
    if (d->shared->batch) pthread_mutex_lock(&d->shared->lock); /* on_done waits for the id to be known */
    status = tsk_batch_submit(d->batch, in.prompt_argument, in.n_argument, in.generated_argument, &new_order->g.options,
                              new_order, &new_order->id, c.error);
    id = new_order->id;
    if (status != TSK_OK) new_order->is_open = 0;
    if (d->shared->batch) pthread_mutex_unlock(&d->shared->lock);
    if (!end(d, &c, status, legal ? may_ok : may_argument)) return;
    EXPECT(d, d->shared->batch ? id > d->last_id : id == d->last_id + 1, "request %d comes after request %d", (int)id,
           (int)d->last_id);
    d->last_id = id;
}

static void cancel_order(driver *d) {
    static const uint64_t none[] = {0, UINT64_MAX, 1000000};
    int32_t which = draw(d, n_orders + 3);
    order *o = &d->orders[which < n_orders ? which : 0];
    if (!d->batch) return;
    if (which >= n_orders || !o->id) {
        say(d, "cancel no request\n");
        tsk_batch_cancel(d->batch, none[which % 3]);
        return;
    }
    say(d, "cancel request %d\n", (int)o->id);
    pthread_mutex_lock(&d->shared->lock);
    if (o->is_open && !o->is_done && !o->is_cancelled) {
        o->is_cancelled = 1;
        if (!d->shared->batch)
            o->most_passes = o->g.passes + (d->depth > 0); /* its part of a pass under way may be to come */
    }
    pthread_mutex_unlock(&d->shared->lock);
    tsk_batch_cancel(d->batch, o->id);
}

/* A step's account of itself. */
static void check_status(driver *d, const tsk_batch_status *s) {
    const tsk_batch_options *o = &d->batch_options;
    EXPECT(d, s->in_flight >= 0 && s->in_flight <= o->max_requests && s->queued >= 0, "%d in flight, %d queued",
           (int)s->in_flight, (int)s->queued);
    EXPECT(d, s->rows >= 0 && s->rows <= o->max_rows, "%d rows of at most %d", (int)s->rows, (int)o->max_rows);
    EXPECT(d,
           s->ms >= 0 && s->ms < 1e9 && s->row_layers >= 0 && s->row_layers <= (int64_t)s->rows * d->config->n_layers,
           "%lld row-layers of %d rows", (long long)s->row_layers, (int)s->rows);
    if (!d->shared->batch)
        EXPECT(d, s->in_flight + s->queued + s->ending == open_orders(d),
               "%d in flight, %d queued and %d ending of %d", (int)s->in_flight, (int)s->queued, (int)s->ending,
               (int)open_orders(d));
}

/* Returns whether something happened: rows ran or a request ended. */
static int step_batch(driver *d, int drain) {
    tsk_batch_status s;
    tsk_status status;
    int32_t open, ended = d->n_ended;
    int64_t rows = 0;
    call c;
    if (!d->batch || !d->steps_batch || d->batch_is_busy) return 1;
    memset(&s, 0x5a, sizeof s);
    begin(d, &c);
    d->n_deeds++; /* a request's error goes to on_done */
    say(d, drain ? "drain the batch" : "step the batch");
    d->batch_is_busy = 1;
    status = drain ? tsk_batch_drain(d->batch, c.error) : tsk_batch_step(d->batch, &s, c.error);
    d->batch_is_busy = 0;
    end(d, &c, status, may_ok);
    EXPECT(d, status == TSK_OK, "the batch fails for one request");
    open = open_orders(d);
    if (drain && !d->shared->batch) EXPECT(d, open == 0, "%d requests are left after a drain", (int)open);
    if (!drain) {
        check_status(d, &s);
        rows = s.rows;
    }
    settle_orders(d);
    return rows || d->n_ended != ended || drain || open == 0;
}

/* Every step gets some request on: the passes that all of them may need, cut by layers, are the bound. Callbacks may
   submit more on the way. */
static void finish_batch(driver *d) {
    long i, bound = (long)n_orders * (2 + max_canvas) * (1 + d->config->n_layers);
    for (i = 0; i <= bound && open_orders(d) && !d->fault[0]; i++)
        EXPECT(d, step_batch(d, 0), "a step of the batch gets nobody on");
    EXPECT(d, d->fault[0] || !open_orders(d), "%d requests are not over after %ld steps", (int)open_orders(d), bound);
}

/* ---- the rest of the API that generation is made of */

static void check_select(driver *d) {
    float confidences[24] = {0}, entropies[24] = {0};
    int32_t positions[24] = {0}, n = draw(d, 25), quota = draw(d, 12), i, count, returned;
    uint8_t commit[24], again[24];
    tsk_transfer_rule rule = transfer_rule((tsk_transfer)draw(d, TSK_TRANSFER_LEAP + 1), (float)draw(d, 9) / 8, quota);
    rule.threshold = (float)draw(d, 5) / 4, rule.local_radius = draw(d, 9);
    for (i = 0; i < n; i++) {
        confidences[i] = (float)draw(d, 17) / 16;
        entropies[i] = (float)draw(d, 9) / 8;
        positions[i] = 2 * i + draw(d, 2);
    }
    memset(commit, 7, sizeof commit);
    memset(again, 0, sizeof again);
    say(d, "select: rule %d, %d candidates, quota %d, threshold %g, parameter %g, radius %d\n", (int)rule.transfer,
        (int)n, (int)quota, (double)rule.threshold, (double)rule.factor, (int)rule.local_radius);
    returned = select_by(&rule, n, confidences, entropies, positions, commit);
    count = select_by_definition(&rule, n, confidences, entropies, positions, again);
    EXPECT(d, returned == count && memcmp(commit, again, (size_t)n) == 0,
           "tsk_select commits %d of %d, not %d, or others", (int)returned, (int)n, (int)count);
}

static void check_transfer_numbers(driver *d) {
    int32_t numbers[33], masks = draw(d, 100), steps = 1 + draw(d, 32), i, sum = 0;
    numbers[steps] = 12345;
    tsk_num_transfer_tokens(masks, steps, numbers);
    for (i = 0; i < steps; i++) {
        sum += numbers[i];
        EXPECT(d,
               numbers[i] >= masks / steps && numbers[i] <= masks / steps + 1 && (!i || numbers[i] <= numbers[i - 1]),
               "step %d of %d commits %d", (int)i, (int)steps, (int)numbers[i]);
    }
    EXPECT(d, sum == masks && numbers[steps] == 12345, "%d masks in %d steps are %d", (int)masks, (int)steps, (int)sum);
}

static void check_estimate(driver *d) {
    tsk_generate_options o = draw_options(d);
    int32_t canvas = draw(d, 40) - 4;
    tsk_dtype dtype = (tsk_dtype)draw(d, 5);
    tsk_memory_query query = tsk_memory_query_default();
    tsk_memory memory;
    tsk_status status;
    int legal;
    call c;
    if (draw(d, 3) == 2) draw_extreme(d, &o);
    legal = options_are_legal(&o, d->config) && (canvas > 0 || canvas == TSK_AUTO) &&
            (dtype == TSK_DTYPE_AUTO || dtype == TSK_DTYPE_F32 || dtype == TSK_DTYPE_BF16);
    memset(&memory, 0x5a, sizeof memory);
    begin(d, &c);
    say(d, "estimate memory: canvas %d, dtype %d, gen %d block %d", (int)canvas, (int)dtype, (int)o.gen_length,
        (int)o.block_length);
    query.config = d->config, query.dtype = dtype, query.canvas = canvas, query.generate = &o;
    status = tsk_memory_estimate(&query, &memory, c.error);
    if (!end(d, &c, status, legal ? may_ok : may_argument)) return;
    if (canvas == TSK_AUTO) canvas = d->config->max_sequence_length;
    if (dtype == TSK_DTYPE_AUTO) dtype = TSK_DTYPE_F32;
    EXPECT(d,
           memory.cache == 2 * (uint64_t)d->config->n_layers * (uint64_t)d->config->n_kv_heads *
                               (uint64_t)d->config->head_dim * (uint64_t)canvas * tsk_dtype_size(dtype),
           "a cache of %llu bytes", (unsigned long long)memory.cache);
    EXPECT(d, memory.weights > 0 && memory.workspace > 0 && memory.workspace < 1 << 30, "a workspace of %llu bytes",
           (unsigned long long)memory.workspace);
}

/* Nothing to write to, or nothing to work on: an error like any other. No session but its own is touched. */
static void call_without_arguments(driver *d) {
    tsk_generate_options o = tsk_generate_options_default();
    tsk_session *session = NULL, *given_out = NULL;
    tsk_batch *batch = NULL;
    tsk_status status = TSK_ERROR_ARGUMENT;
    int32_t which = draw(d, 10), id = 0;
    float number;
    call c;
    o.gen_length = o.block_length = 4;
    if (tsk_session_create(d->model, &o, &session, NULL) != TSK_OK) return;
    begin(d, &c);
    say(d, "call %d without what it needs", (int)which);
    switch (which) {
    case 0: status = tsk_session_create(NULL, NULL, &given_out, c.error); break;
    case 1: status = tsk_session_create(d->model, NULL, NULL, c.error); break;
    case 2: status = tsk_batch_create(NULL, NULL, &batch, c.error); break;
    case 3: status = tsk_batch_create(d->model, NULL, NULL, c.error); break;
    case 4: status = tsk_memory_estimate(NULL, NULL, c.error); break;
    case 5: status = tsk_session_logits(session, &id, 1, 0, 1, NULL, c.error); break;
    case 6: status = tsk_session_logits(session, NULL, 1, 0, 1, &number, c.error); break;
    case 7: status = tsk_session_probe(session, NULL, TSK_PROBE_REFRESH, NULL, c.error); break;
    case 8: status = tsk_session_start(NULL, &id, 1, NULL, c.error); break;
    default: status = tsk_session_copy(session, NULL, c.error); break;
    }
    EXPECT(d, !given_out && !batch, "something is given out");
    end(d, &c, status, may_argument);
    tsk_session_free(session);
}

static void draw_refusal(driver *d) {
    int32_t kind = draw(d, 4);
    d->refusal.countdown = -1;
    d->refusal.budget = SIZE_MAX;
    if (kind == 1 || kind == 2) d->refusal.countdown = draw(d, 24);
    if (kind == 3) d->refusal.budget = heap_bytes(d->shared->heap) + (size_t)(draw(d, 256) << draw(d, 8));
    say(d, "refuse %s %ld\n",
        kind == 0   ? "nothing"
        : kind == 3 ? "beyond bytes"
                    : "allocation",
        kind == 3 ? (long)d->refusal.budget : d->refusal.countdown);
}

/* ---- the next call */

/* Made by a callback of g: what is legal there. */
static void call_inside(generation *g, int is_reporting) {
    driver *d = g->driver;
    slot *own = strcmp(g->kind, "session") == 0 ? &d->slots[g->number] : NULL, *s;
    int32_t kind;
    if (d->depth || d->fault[0]) return;
    d->depth++;
    d->n_deeds++;
    kind = draw(d, 8);
    s = draw_slot(d);
    say(d, "  [inside %s %d] ", g->kind, g->number);
    if (own) own->is_reporting = is_reporting;
    if (kind < 3 && own && s != own) copy_slot(d, s, own);
    else if (kind == 3) submit_order(d, 1);
    else if (kind == 4) cancel_order(d);
    else if (s->is_busy) say(d, "nothing");
    else if (kind == 5) step_slot(d, s);
    else if (kind == 6) probe_slot(d, s);
    else if (kind == 7) start_slot(d, s, draw(d, 2));
    else copy_slot(d, s, draw_slot(d));
    if (own) own->is_reporting = 0;
    say(d, "  [and out]");
    d->depth--;
}

static void call_next(driver *d) {
    slot *s = draw_slot(d);
    int32_t kind = draw(d, 55), i, n;
    if (d->shared->batch) settle_orders(d);
    if (kind < 4) create_slot(d, s);
    else if (kind < 5) free_slot(d, s);
    else if (kind < 11) start_slot(d, s, 0);
    else if (kind < 14) start_slot(d, s, 1);
    else if (kind < 22) step_slot(d, s);
    else if (kind < 24) run_slot(d, s);
    else if (kind < 25) logits_slot(d, s);
    else if (kind < 29) copy_slot(d, s, draw_slot(d));
    else if (kind < 33) probe_slot(d, s);
    else if (kind < 35) probe_logits_slot(d, s);
    else if (kind < 37) trace_slot(d, s);
    else if (kind < 38) create_batch(d);
    else if (kind < 44) submit_order(d, 0);
    else if (kind < 45) cancel_order(d);
    else if (kind < 49) for (n = 1 + draw(d, 6), i = 0; i < n && d->batch; i++) step_batch(d, 0);
    else if (kind < 50) step_batch(d, 1);
    else if (kind < 52) draw_refusal(d);
    else if (kind < 53) check_select(d);
    else if (kind < 54) check_estimate(d);
    else if (draw(d, 2)) check_transfer_numbers(d);
    else call_without_arguments(d);
}

/* ---- a whole run */

/* The orders of a batch that goes on: over once whoever steps it has done so for long enough. */
static void wait_for_orders(driver *d) {
    int32_t i, open = 1;
    while (open) {
        for (open = i = 0; i < n_orders; i++) {
            pthread_mutex_lock(&d->shared->lock);
            open += d->orders[i].is_open && !d->orders[i].is_done;
            pthread_mutex_unlock(&d->shared->lock);
        }
        if (open && d->steps_batch) step_batch(d, 0);
        else if (open) sched_yield();
    }
    settle_orders(d);
}

static void end_run(driver *d) {
    int32_t i;
    d->refusal.countdown = -1;
    d->refusal.budget = SIZE_MAX;
    if (d->shared->batch) wait_for_orders(d);
    else if (d->batch && draw(d, 4)) finish_batch(d);
    for (i = 0; i < n_slots; i++)
        if (d->slots[i].session) free_slot(d, &d->slots[i]);
    destroy_batch(d);
}

/* NULL, or what went wrong, the calls first; the caller frees it. `talks` 1: the calls are printed as they are made.
   `steps_batch` 1: of those who share a batch it is this one, and only one at a time, that steps it. */
static TEST_UNUSED char *stateful_run(stateful_models *models, const uint8_t *bytes, size_t size, int talks,
                                      int steps_batch) {
    driver *d = (driver *)calloc(1, sizeof *d);
    long alive = models->batch ? 0 : models->heap->alive;
    char *text = NULL;
    if (!d) exit(2);
    d->shared = models;
    d->bytes = bytes;
    d->size = size;
    d->is_talkative = talks;
    d->steps_batch = models->batch ? steps_batch : 1;
    d->refusal.countdown = -1;
    d->refusal.budget = SIZE_MAX;
    d->model = models->models[draw(d, models->n_models)];
    d->other = models->models[models->models[0] == d->model ? models->n_models - 1 : 0];
    d->config = tsk_model_get_config(d->model);
    d->batch = models->batch;
    d->batch_force_active = d->batch_force_refresh = TSK_AUTO;
    d->batch_options = models->batch_options;
    pthread_setspecific(models->heap->refusal, &d->refusal);
    if (!models->batch) models->heap->calls = (long)size; /* what memory is filled with, too, follows from the bytes */
    if (!models->batch) create_batch(d);
    for (d->n_calls = 0; d->n_calls < max_calls && d->at < d->size && !d->fault[0]; d->n_calls++) call_next(d);
    if (d->fault[0]) say(d, "\n*** %s\n\n", d->fault);
    end_run(d);
    pthread_setspecific(models->heap->refusal, NULL);
    if (!models->batch) EXPECT(d, models->heap->alive == alive, "%ld blocks are left", models->heap->alive - alive);
    EXPECT(d, !models->heap->fault[0], "%s", models->heap->fault);
    if (d->fault[0]) {
        say(d, "\n%s\n", d->fault); /* once more, or for the first time: what the end itself found */
        text = (char *)malloc(d->log_size + sizeof d->fault + 2);
        if (!text) exit(2);
        sprintf(text, "%s%s\n", d->log, d->log_size > sizeof d->log - 600 ? d->fault : "");
    }
    free(d);
    return text;
}

/* ---- several threads */

/* One batch for all drivers from now on. */
static TEST_UNUSED void stateful_share_batch(stateful_models *models, tsk_batch_options options) {
    tsk_batch *batch = NULL;
    options.on_done = order_done;
    options.user = models;
    CHECK_INT(tsk_batch_create(models->models[0], &options, &batch, NULL), TSK_OK);
    models->batch_options = options;
    models->batch = batch;
}

#endif
