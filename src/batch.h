#ifndef SECTION_GUARD_BATCH
#define SECTION_GUARD_BATCH

#include "error.h"
#include "memory.h"
#include "platform.h"
#include "storage.h"
#include "model.h"
#include "forward.h"
#include "request.h"

// >>batch =============================================================================================================
/* Continuous batching: every step packs the rows of all requests in flight into one pass, each at its own block and
   step, and gives the place of a finished one to the next in the queue. Their caches are stretches of one arena; when
   only scattered room is left, stretches are moved together, so a request waits for room only while there is none. */

typedef struct tsk__batch_entry {
    struct tsk__batch_entry *next; /* in the queue */
    uint64_t id;
    void *user;
    tsk_generate_options options;  /* resolved */
    int32_t n_prompt, length;      /* length: of the canvas */
    int has_generated, is_cancelled;
    int32_t offset;                /* of its stretch of the arena, while in flight */
    tsk__request *request;         /* while in flight */
    int32_t ids[1];                /* [n_prompt + gen_length] */
} tsk__batch_entry;

typedef struct tsk__batch_queue {
    tsk__batch_entry *first, *last;
    int32_t n;
} tsk__batch_queue;

struct tsk_batch {
    tsk_model *model;
    tsk_batch_options options;
    tsk__mutex lock;             /* of the queues, the ids and the cancel flags: what other threads may touch */
    tsk__condition changed;        /* by another thread: n_changes has grown */
    uint64_t n_changes, n_seen;    /* n_seen: when the last wait ended */
    tsk__batch_queue waiting;      /* in order */
    tsk__batch_queue ending;       /* cancelled while they waited: on_done is to come */
    uint64_t next_id;
    tsk__batch_entry **in_flight;  /* [max_requests] in order of arrival */
    int32_t n_in_flight;
    uint64_t turn;                 /* the id of the one that comes first in the next pass, if it is still in flight */
    int is_stepping;
    tsk__request *requests;        /* [max_requests] */
    tsk__request **free_requests, **packed; /* [max_requests] */
    int32_t n_free;
    tsk__arena arena;              /* of cache_tokens */
    tsk__pass pass;
    int32_t pass_states;
};

static void tsk__batch_queue_push(tsk__batch_queue *queue, tsk__batch_entry *entry) {
    entry->next = NULL;
    if (queue->last) queue->last->next = entry;
    else queue->first = entry;
    queue->last = entry;
    queue->n++;
}

static tsk__batch_entry *tsk__batch_queue_pop(tsk__batch_queue *queue) {
    tsk__batch_entry *entry = queue->first;
    if (!entry) return NULL;
    queue->first = entry->next;
    if (!queue->first) queue->last = NULL;
    queue->n--;
    return entry;
}

/* Takes the entry of that id out, wherever it stands; NULL when it is not there. */
static tsk__batch_entry *tsk__batch_queue_take(tsk__batch_queue *queue, uint64_t id) {
    tsk__batch_entry *before = NULL, *entry = queue->first;
    for (; entry && entry->id != id; entry = entry->next) before = entry;
    if (!entry || !before) return entry ? tsk__batch_queue_pop(queue) : NULL;
    before->next = entry->next;
    if (queue->last == entry) queue->last = before;
    queue->n--;
    return entry;
}

static void tsk__batch_queue_free(tsk__batch_queue *queue, const tsk_allocator *allocator) {
    tsk__batch_entry *entry;
    while ((entry = tsk__batch_queue_pop(queue)) != NULL) tsk__memory_delete(allocator, entry);
}

tsk_batch_options tsk_batch_options_default(void) {
    tsk_batch_options o;
    memset(&o, 0, sizeof o);
    o.max_requests = 16;
    o.max_queued = TSK_NONE;
    o.cache_tokens = o.max_rows = TSK_AUTO;
    return o;
}

/* How many tokens of cache the device has room for, beside the activations of a pass of up to max_rows of them. A tenth
   of its memory is left to others. */
static uint64_t tsk__batch_fitting_tokens(const tsk_model *model, int32_t max_rows) {
    const tsk_model_config *c = &model->config;
    uint64_t element = model->backend->element_size,
             available = model->backend->ops->available(model->backend) / 10 * 9;
    uint64_t token = 2 * tsk__storage_kv_size(c, element, 1), row = 2 * tsk__pass_size(c, element, 1),
             fitting = available / (token + row);
    return fitting > (uint64_t)max_rows ? (available - (uint64_t)max_rows * row) / token : fitting;
}

/* cache_tokens where the host leaves it to us. */
static tsk_status tsk__batch_choose_cache(const tsk_model *model, tsk_batch_options *o, int32_t max_rows,
                                          tsk_error *error) {
    uint64_t wanted = (uint64_t)o->max_requests * (uint64_t)model->config.max_sequence_length,
             fitting = tsk__batch_fitting_tokens(model, max_rows);
    char line[160];
    if (!fitting)
        return tsk__error_memory(error, "a token of the batch's cache, and no more is free beside the model",
                                 2 * tsk__storage_kv_size(&model->config, model->backend->element_size, 1));
    if (fitting > INT32_MAX) fitting = INT32_MAX;
    o->cache_tokens = (int32_t)(wanted < fitting ? wanted : fitting);
    if (wanted <= fitting || !o->log) return TSK_OK;
    snprintf(line, sizeof line,
             "the batch's cache holds %d tokens, what memory is free for, of the %llu that %d requests of %d take",
             (int)o->cache_tokens, (unsigned long long)wanted, (int)o->max_requests,
             (int)model->config.max_sequence_length);
    o->log(o->user, line);
    return TSK_OK;
}

/* max_rows, before it is known how many the cache holds. */
static int32_t tsk__batch_wanted_rows(const tsk_batch_options *o, const tsk_model_config *c) {
    if (o->max_rows != TSK_AUTO) return o->max_rows;
    return c->max_sequence_length > 32 * o->max_requests ? c->max_sequence_length : 32 * o->max_requests;
}

static tsk_status tsk__batch_check_options(const tsk_batch_options *o, tsk_error *error) {
    if (o->max_requests < 1 || o->max_requests > 1 << 16)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "max_requests must be from 1 to 65536, not %d", (int)o->max_requests);
    if ((o->cache_tokens != TSK_AUTO && o->cache_tokens < 1) || (o->max_rows != TSK_AUTO && o->max_rows < 1))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "cache_tokens %d and max_rows %d must be positive or TSK_AUTO", (int)o->cache_tokens,
                              (int)o->max_rows);
    if (o->max_queued != TSK_NONE && o->max_queued < 1)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "max_queued must be positive or TSK_NONE, not %d", (int)o->max_queued);
    if (o->row_layers < 0)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "row_layers must be zero or positive, not %lld", (long long)o->row_layers);
    return TSK_OK;
}

static tsk_status tsk__batch_resolve(const tsk_model *model, tsk_batch_options *o, tsk_error *error) {
    const tsk_model_config *c = &model->config;
    tsk_status status = tsk__batch_check_options(o, error);
    int32_t max_rows;
    if (status != TSK_OK) return status;
    max_rows = tsk__batch_wanted_rows(o, c);
    if (o->cache_tokens == TSK_AUTO) status = tsk__batch_choose_cache(model, o, max_rows, error);
    /* (a pass has no more rows than the cache has tokens) */
    o->max_rows = o->max_rows != TSK_AUTO || max_rows < o->cache_tokens ? max_rows : o->cache_tokens;
    return status;
}

static tsk_status tsk__batch_allocate(tsk_batch *b, tsk_error *error) {
    const tsk_allocator *allocator = b->model->allocator;
    size_t n = (size_t)b->options.max_requests;
    int32_t i;
    b->in_flight = (tsk__batch_entry **)tsk__memory_new(allocator, n, sizeof *b->in_flight);
    b->requests = (tsk__request *)tsk__memory_new_zeroed(allocator, n, sizeof *b->requests);
    b->free_requests = (tsk__request **)tsk__memory_new(allocator, n, sizeof *b->free_requests);
    b->packed = (tsk__request **)tsk__memory_new(allocator, n, sizeof *b->packed);
    if (!b->in_flight || !b->requests || !b->free_requests || !b->packed)
        return tsk__error_memory(error, "a batch", n * sizeof *b->requests);
    for (i = 0; i < b->options.max_requests; i++) {
        b->requests[i].config = &b->model->config;
        b->requests[i].backend = b->model->backend;
        b->requests[i].allocator = allocator;
        b->requests[i].force_active = b->requests[i].force_refresh = TSK_AUTO;
        b->requests[i].cut.is_allowed = b->options.row_layers > 0;
        b->requests[i].cache.backend = b->model->backend;
        b->free_requests[b->n_free++] = &b->requests[i];
    }
    return tsk__arena_create(&b->arena, b->model->backend, b->options.cache_tokens, error);
}

tsk_status tsk_batch_create(tsk_model *model, const tsk_batch_options *options, tsk_batch **out, tsk_error *error) {
    tsk_batch_options resolved = options ? *options : tsk_batch_options_default();
    tsk_batch *b;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_batch_create", "out");
    *out = NULL;
    if (!model) return tsk__error_null(error, "tsk_batch_create", "model");
    status = tsk__batch_resolve(model, &resolved, error);
    if (status != TSK_OK) return status;
    b = (tsk_batch *)tsk__memory_new_zeroed(model->allocator, 1, sizeof *b);
    if (!b) return tsk__error_memory(error, "a batch", sizeof *b);
    b->model = model;
    b->options = resolved;
    tsk__mutex_create(&b->lock);
    tsk__condition_create(&b->changed);
    status = tsk__batch_allocate(b, error);
    if (status != TSK_OK) tsk_batch_free(b);
    else *out = b;
    return status;
}

void tsk_batch_free(tsk_batch *b) {
    const tsk_allocator *allocator;
    int32_t i;
    if (!b) return;
    allocator = b->model->allocator;
    tsk__batch_queue_free(&b->waiting, allocator);
    tsk__batch_queue_free(&b->ending, allocator);
    for (i = 0; i < b->n_in_flight; i++) tsk__memory_delete(allocator, b->in_flight[i]);
    for (i = 0; b->requests && i < b->options.max_requests; i++) tsk__request_free(&b->requests[i]);
    tsk__arena_free(&b->arena);
    tsk__pass_free(&b->pass);
    tsk__memory_delete(allocator, b->in_flight);
    tsk__memory_delete(allocator, b->requests);
    tsk__memory_delete(allocator, b->free_requests);
    tsk__memory_delete(allocator, b->packed);
    tsk__condition_destroy(&b->changed);
    tsk__mutex_destroy(&b->lock);
    tsk__memory_delete(allocator, b);
}

/* ---- submitting and cancelling, from any thread */

static tsk_status tsk__batch_check(const tsk_batch *b, const tsk_generate_options *o, const int32_t *prompt,
                                   int32_t n_prompt, const int32_t *generated, tsk_error *error) {
    tsk__request request;
    tsk_status status = tsk__options_check(o, &b->model->config, error);
    if (status != TSK_OK) return status;
    memset(&request, 0, sizeof request);
    request.config = &b->model->config;
    request.options = *o;
    status = tsk__request_check_start(&request, prompt, n_prompt, generated, error);
    if (status != TSK_OK) return status;
    if (tsk__options_canvas(o, n_prompt) > b->options.cache_tokens)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "%d prompt tokens and gen_length %d can never fit the batch's cache_tokens %d",
                              (int)n_prompt, (int)o->gen_length, (int)b->options.cache_tokens);
    if (o->cache == TSK_CACHE_BLOCK && o->block_length > b->options.max_rows)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "a block of %d can never fit the batch's max_rows %d", (int)o->block_length,
                              (int)b->options.max_rows);
    if (o->cache != TSK_CACHE_BLOCK && n_prompt + o->gen_length > b->options.max_rows)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "%d prompt tokens and gen_length %d can never fit the batch's max_rows %d", (int)n_prompt,
                              (int)o->gen_length, (int)b->options.max_rows);
    return TSK_OK;
}

/* Ends a wait. The lock is held. */
static void tsk__batch_wake(tsk_batch *b) {
    b->n_changes++;
    tsk__condition_wake_all(&b->changed);
}

tsk_status tsk_batch_submit(tsk_batch *b, const int32_t *prompt, int32_t n_prompt, const int32_t *generated,
                            const tsk_generate_options *options, void *request_user, uint64_t *id, tsk_error *error) {
    tsk_generate_options o = options ? *options : tsk_generate_options_default();
    tsk__batch_entry *entry;
    size_t size;
    int32_t i;
    int is_full;
    tsk_status status;
    if (!b) return tsk__error_null(error, "tsk_batch_submit", "batch");
    tsk__options_resolve(&o, &b->model->config, b->model->tokenizer);
    status = tsk__batch_check(b, &o, prompt, n_prompt, generated, error);
    if (status != TSK_OK) return status;
    size = sizeof *entry + ((size_t)n_prompt + (size_t)o.gen_length) * sizeof *prompt;
    entry = (tsk__batch_entry *)tsk__memory_new_zeroed(b->model->allocator, 1, size);
    if (!entry) return tsk__error_memory(error, "a request", size);
    entry->user = request_user;
    entry->options = o;
    entry->n_prompt = n_prompt;
    entry->length = (int32_t)tsk__options_canvas(&o, n_prompt);
    entry->has_generated = generated != NULL;
    if (n_prompt) memcpy(entry->ids, prompt, (size_t)n_prompt * sizeof *prompt);
    for (i = 0; i < o.gen_length; i++)
        entry->ids[n_prompt + i] = generated ? generated[i] : b->model->config.mask_token_id;
    tsk__mutex_lock(&b->lock);
    is_full = b->options.max_queued != TSK_NONE && b->waiting.n >= b->options.max_queued;
    if (!is_full) {
        entry->id = ++b->next_id;
        if (id) *id = entry->id; /* before anyone can see the request done */
        tsk__batch_queue_push(&b->waiting, entry);
        tsk__batch_wake(b);
    }
    tsk__mutex_unlock(&b->lock);
    if (!is_full) return TSK_OK;
    tsk__memory_delete(b->model->allocator, entry);
    return tsk__error_set(error, TSK_ERROR_FULL, NULL, TSK_NO_OFFSET,
                          "the batch's queue is full: max_queued %d requests wait", (int)b->options.max_queued);
}

void tsk_batch_cancel(tsk_batch *b, uint64_t id) {
    tsk__batch_entry *entry;
    int32_t i;
    if (!b) return;
    tsk__mutex_lock(&b->lock);
    entry = tsk__batch_queue_take(&b->waiting, id);
    if (entry) tsk__batch_queue_push(&b->ending, entry);
    for (i = 0; i < b->n_in_flight; i++)
        if (b->in_flight[i]->id == id) b->in_flight[i]->is_cancelled = 1;
    tsk__batch_wake(b);
    tsk__mutex_unlock(&b->lock);
}

int tsk_batch_wait(tsk_batch *b, int32_t timeout_ms) {
    double deadline = tsk__time_ms() + timeout_ms;
    int has_work, in_time = 1;
    if (!b) return 0;
    tsk__mutex_lock(&b->lock);
    /* (a change between the last wait and this one ends this one at once) */
    while (!(has_work = b->n_in_flight || b->waiting.n || b->ending.n) && b->n_changes == b->n_seen && in_time) {
        if (timeout_ms < 0) tsk__condition_wait(&b->changed, &b->lock);
        else in_time = tsk__condition_wait_until(&b->changed, &b->lock, deadline);
    }
    b->n_seen = b->n_changes;
    tsk__mutex_unlock(&b->lock);
    return has_work;
}

/* ---- the arena */

/* The first hole of `length` tokens, or -1. */
static int32_t tsk__batch_hole(const tsk_batch *b, int32_t length) {
    int32_t offset = 0, i;
    for (i = 0; i < b->n_in_flight; i++) {
        const tsk__batch_entry *e = b->in_flight[i];
        if (e->offset + e->length <= offset || e->offset >= offset + length) continue;
        offset = e->offset + e->length; /* past this one, and look at all again */
        i = -1;
    }
    return offset <= b->options.cache_tokens - length ? offset : -1;
}

static void tsk__batch_compact(tsk_batch *b) {
    int32_t end = 0, i, moved;
    for (moved = 0; moved < b->n_in_flight; moved++) {
        tsk__batch_entry *lowest = NULL;
        for (i = 0; i < b->n_in_flight; i++)
            if (b->in_flight[i]->offset >= end && (!lowest || b->in_flight[i]->offset < lowest->offset))
                lowest = b->in_flight[i];
        if (lowest->offset > end) tsk__cache_move(&lowest->request->cache, b->pass.stream, end);
        lowest->offset = end;
        end += lowest->length;
    }
}

/* A stretch for `length` tokens, or -1 while there is not that much room in all. */
static int32_t tsk__batch_place(tsk_batch *b, int32_t length) {
    int32_t used = 0, i, hole = tsk__batch_hole(b, length);
    if (hole >= 0) return hole;
    for (i = 0; i < b->n_in_flight; i++) used += b->in_flight[i]->length;
    if (used > b->options.cache_tokens - length) return -1;
    tsk__batch_compact(b);
    return used;
}

/* ---- one step */

/* Room in the pass for TokenSkip's states. A pass holds nothing that is needed after it, so a larger one can replace it
   between two passes. If that fails, the requests in flight go on with the old one. */
static tsk_status tsk__batch_room(tsk_batch *b, int32_t n_states, tsk_error *error) {
    tsk__pass larger;
    tsk_status status;
    if (b->pass.max_rows && b->pass_states >= n_states) return TSK_OK;
    status = tsk__pass_create(&larger, b->model->backend, b->model->allocator, b->options.max_rows,
                              b->options.max_requests, n_states, error);
    if (status != TSK_OK) return status;
    tsk__pass_free(&b->pass);
    b->pass = larger;
    b->pass_states = n_states;
    return TSK_OK;
}

/* Hands the outcome to the host and gives the place back. `i` is the entry's number among those in flight. */
static void tsk__batch_finish(tsk_batch *b, int32_t i, const tsk_error *error) {
    tsk__batch_entry *entry = b->in_flight[i];
    tsk_result result;
    tsk__mutex_lock(&b->lock);
    memmove(b->in_flight + i, b->in_flight + i + 1, (size_t)(b->n_in_flight - i - 1) * sizeof *b->in_flight);
    b->n_in_flight--;
    b->free_requests[b->n_free++] = entry->request;
    tsk__mutex_unlock(&b->lock);
    tsk__request_result(entry->request, &result);
    if (!error && entry->request->failure.status != TSK_OK) error = &entry->request->failure;
    if (b->options.on_done) b->options.on_done(b->options.user, entry->id, entry->user, error ? NULL : &result, error);
    tsk__memory_delete(b->model->allocator, entry);
}

static tsk_status tsk__batch_launch(tsk_batch *b, tsk__batch_entry *entry, int32_t offset, tsk_error *error) {
    tsk__request *r = b->free_requests[b->n_free - 1];
    int32_t n_states = tsk__options_n_states(&entry->options, &b->model->config);
    tsk_status status = tsk__batch_room(b, n_states > b->pass_states ? n_states : b->pass_states, error);
    tsk__mutex_lock(&b->lock);
    b->n_free--;
    b->in_flight[b->n_in_flight++] = entry;
    tsk__mutex_unlock(&b->lock);
    entry->request = r;
    entry->offset = offset;
    r->options = entry->options;
    tsk__cache_place(&r->cache, &b->arena, offset);
    if (status == TSK_OK)
        status = tsk__request_start(r, entry->ids, entry->n_prompt,
                                    entry->has_generated ? entry->ids + entry->n_prompt : NULL, NULL, error);
    return status;
}

/* Fills free places from the queue, in order: a later request does not overtake one that does not fit yet. A request
   that cannot start ends with its error and does not affect the others. */
static void tsk__batch_admit(tsk_batch *b) {
    while (b->n_free) {
        tsk__batch_entry *entry;
        tsk_error error;
        int32_t offset;
        int is_first;
        tsk__mutex_lock(&b->lock);
        entry = b->waiting.first;
        tsk__mutex_unlock(&b->lock);
        if (!entry) return;
        offset = tsk__batch_place(b, entry->length);
        if (offset < 0) return;
        tsk__mutex_lock(&b->lock);
        is_first = b->waiting.first == entry; /* unless it was cancelled meanwhile; only a step frees it */
        if (is_first) tsk__batch_queue_pop(&b->waiting);
        tsk__mutex_unlock(&b->lock);
        if (!is_first) continue;
        if (tsk__batch_launch(b, entry, offset, &error) != TSK_OK) tsk__batch_finish(b, b->n_in_flight - 1, &error);
    }
}

/* Who comes first: the one whose turn it is, else the next that has come after it, else the oldest. */
static int32_t tsk__batch_turn(const tsk_batch *b) {
    int32_t i;
    for (i = 0; i < b->n_in_flight; i++)
        if (b->in_flight[i]->id >= b->turn) return i;
    return 0;
}

/* How many rows the request's next pass has. A prompt by blocks is cut to the room there is, and to its share of the
   row-layer budget; the first in the pass gets one block at least. 0: it has to wait. */
static int32_t tsk__batch_choose(tsk__request *r, int32_t room, int64_t budget, int is_first) {
    const int32_t block = r->options.block_length;
    int64_t share = budget > 0 ? budget / r->config->n_layers : budget < 0 ? 0 : room;
    int32_t rows;
    if (share > room) share = room;
    if (is_first && share < block) share = block;
    r->cut.prompt_rows = share > 0 ? (int32_t)share : 1;
    rows = tsk__request_choose(r);
    return r->pass.kind == TSK__PASS_PROMPT && share < block ? 0 : rows;
}

/* Chooses who takes part in the pass. The first that had to wait comes first in the next one; where nobody had to, the
   order rotates. Refreshes take their shares of the row-layer budget in that order. A refresh whose share is less than
   a layer waits, or gets one layer if nobody comes before it. */
static int32_t tsk__batch_pack(tsk_batch *b, tsk_batch_status *status) {
    int32_t n = 0, i, room = b->options.max_rows;
    int64_t budget = b->options.row_layers;
    const int32_t start = tsk__batch_turn(b);
    uint64_t waits = 0; /* the first that has to */
    for (i = 0; i < b->n_in_flight; i++) {
        tsk__batch_entry *entry = b->in_flight[(start + i) % b->n_in_flight];
        tsk__request *r = entry->request;
        int32_t rows = tsk__batch_choose(r, room, budget, n == 0), layers = r->config->n_layers - r->cut.next_layer;
        if (rows > room || rows == 0) {
            if (!waits) waits = entry->id;
            continue;
        }
        r->cut.layer_budget = 0;
        if (budget && tsk__request_is_refresh(r)) {
            int64_t share = budget > 0 ? budget / rows : 0;
            if (share < 1 && n) {
                if (!waits) waits = entry->id;
                continue;
            }
            r->cut.layer_budget = share < 1 ? 1 : share < layers ? (int32_t)share : layers;
            layers = r->cut.layer_budget;
            budget -= (int64_t)layers * rows;
            if (budget == 0) budget = -1;
        }
        if (budget && r->pass.kind == TSK__PASS_PROMPT) {
            budget -= (int64_t)layers * rows;
            if (budget <= 0) budget = -1;
        }
        room -= rows;
        status->rows += rows;
        status->row_layers += (int64_t)rows * layers;
        b->packed[n++] = r;
    }
    if (!waits && b->n_in_flight) waits = b->in_flight[(start + 1) % b->n_in_flight]->id;
    b->turn = waits;
    return n;
}

/* The outcome of a request that was cancelled before it had a place. */
static void tsk__batch_report_ending(tsk_batch *b, tsk__batch_entry *entry) {
    tsk__request request;
    tsk_result result;
    memset(&request, 0, sizeof request);
    request.config = &b->model->config;
    request.options = entry->options;
    request.canvas.ids = entry->ids;
    request.gen.is_started = 1;
    request.gen.n_prompt = request.gen.result.n_prompt = entry->n_prompt;
    request.gen.length = entry->n_prompt + entry->options.gen_length;
    request.gen.result.n_tokens = entry->options.gen_length;
    tsk__request_point_result(&request);
    tsk__request_cancel(&request);
    tsk__request_result(&request, &result);
    if (b->options.on_done) b->options.on_done(b->options.user, entry->id, entry->user, &result, NULL);
}

static void tsk__batch_finish_ending(tsk_batch *b) {
    tsk__batch_entry *entry;
    do {
        tsk__mutex_lock(&b->lock);
        entry = tsk__batch_queue_pop(&b->ending);
        tsk__mutex_unlock(&b->lock);
        if (entry) tsk__batch_report_ending(b, entry);
        tsk__memory_delete(b->model->allocator, entry);
    } while (entry);
}

/* Requests that the host wants to end, by id or by their own callback. */
static void tsk__batch_drop_cancelled(tsk_batch *b) {
    int32_t i;
    for (i = 0; i < b->n_in_flight; i++) {
        tsk__batch_entry *entry = b->in_flight[i];
        int cancelled;
        tsk__mutex_lock(&b->lock);
        cancelled = entry->is_cancelled;
        tsk__mutex_unlock(&b->lock);
        if (!entry->request->gen.is_finished &&
            (cancelled || (entry->options.cancel && entry->options.cancel(entry->options.user))))
            tsk__request_cancel(entry->request);
    }
}

static void tsk__batch_finish_ended(tsk_batch *b) {
    int32_t i;
    for (i = b->n_in_flight - 1; i >= 0; i--)
        if (b->in_flight[i]->request->gen.is_finished) tsk__batch_finish(b, i, NULL);
}

/* One pass over those chosen; on failure all of them end with its error. */
static tsk_status tsk__batch_run(tsk_batch *b, int32_t n, tsk_error *error) {
    tsk_status status = n ? tsk__requests_pass(b->packed, n, &b->pass, error) : TSK_OK;
    int32_t i, j;
    for (i = b->n_in_flight - 1; status != TSK_OK && i >= 0; i--)
        for (j = 0; j < n; j++)
            if (b->in_flight[i]->request == b->packed[j]) {
                tsk__batch_finish(b, i, error);
                break;
            }
    return status;
}

tsk_status tsk_batch_step(tsk_batch *b, tsk_batch_status *status, tsk_error *error) {
    tsk_batch_status own;
    tsk_error own_error;           /* on_done is told what went wrong even where the caller does not ask */
    tsk_status result;
    double start = tsk__time_ms();
    if (!b) return tsk__error_null(error, "tsk_batch_step", "batch");
    if (b->is_stepping)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "tsk_batch_step from a callback of the same batch's step");
    if (!error) error = &own_error;
    if (!status) status = &own;
    memset(status, 0, sizeof *status);
    b->is_stepping = 1;
    tsk__batch_finish_ending(b);
    tsk__batch_admit(b);
    tsk__batch_drop_cancelled(b);
    tsk__batch_finish_ended(b);
    result = tsk__batch_run(b, tsk__batch_pack(b, status), error);
    tsk__batch_finish_ended(b);
    b->is_stepping = 0;
    tsk__mutex_lock(&b->lock);
    status->in_flight = b->n_in_flight;
    status->queued = b->waiting.n;
    status->ending = b->ending.n;
    tsk__mutex_unlock(&b->lock);
    status->ms = tsk__time_ms() - start;
    return result;
}

tsk_status tsk_batch_force(tsk_batch *b, int32_t n_active, int32_t n_refresh, tsk_error *error) {
    int32_t i;
    tsk_status status;
    if (!b) return tsk__error_null(error, "tsk_batch_force", "batch");
    status = tsk__force_check("tsk_batch_force", n_active, n_refresh, error);
    for (i = 0; i < b->options.max_requests && status == TSK_OK; i++) {
        b->requests[i].force_active = n_active;
        b->requests[i].force_refresh = n_refresh;
    }
    return status;
}

tsk_status tsk_batch_drain(tsk_batch *b, tsk_error *error) {
    tsk_batch_status status;
    tsk_status result;
    do result = tsk_batch_step(b, &status, error);
    while (result == TSK_OK && (status.in_flight || status.queued || status.ending));
    return result;
}

#endif /* SECTION_GUARD_BATCH */
