#ifndef SECTION_GUARD_CUDA_WEIGHTS
#define SECTION_GUARD_CUDA_WEIGHTS

#include "error.h"
#include "memory.h"
#include "platform.h"
#include "safetensors.h"
#include "family.h"
#include "weights.h"
#include "backend.h"
#include "cuda_driver.h"
#include "kernels/shared.h"
#include "cuda_backend.h"

// >>cuda_weights ======================================================================================================
/* Where the weights lie on the device, and how they get there. */

#ifdef TOKENSKIP__HAS_CUDA

/* ---- weights: where they lie */

/* Where a tensor goes: the matrix that it is part of, and how its rows lie in it. */
typedef struct tsk__cuda_destination {
    CUdeviceptr matrix;
    tsk__cuda_row_order row_order;
} tsk__cuda_destination;

static uint64_t tsk__cuda_take(uint64_t *used, uint64_t count, uint64_t element) {
    uint64_t at = *used;
    *used = (at + count * element + 255) & ~(uint64_t)255;
    return at;
}

/* The type that matrices have in the arena, whatever they are stored in: the one that the kernels multiply, today that
   of the activations. Norms and biases have the activations' in any case. */
static tsk_dtype tsk__cuda_weights_dtype(const tsk__cuda_backend *b) {
    return b->is_f32 ? TSK_DTYPE_F32 : TSK_DTYPE_BF16;
}

/* Where a weight's address is kept; several may share a room. NULL: the kernels know of none. */
static CUdeviceptr *tsk__cuda_room(tsk__cuda_backend *b, const tsk__weight_id *id) {
    tsk__cuda_layer *layer = &b->layers[id->layer < 0 ? 0 : id->layer];
    switch (id->part) {
    case TSK__PART_ATTN_NORM: return id->is_bias ? NULL : &layer->attn_norm;
    case TSK__PART_Q: case TSK__PART_K: case TSK__PART_V: return id->is_bias ? &layer->qkv_bias : &layer->qkv;
    case TSK__PART_Q_NORM: return id->is_bias ? NULL : &layer->q_norm;
    case TSK__PART_K_NORM: return id->is_bias ? NULL : &layer->k_norm;
    case TSK__PART_ATTN_OUT: return id->is_bias ? &layer->attn_out_bias : &layer->attn_out;
    case TSK__PART_FF_NORM: return id->is_bias ? NULL : &layer->ff_norm;
    case TSK__PART_FF_PROJ: case TSK__PART_UP_PROJ: return id->is_bias ? &layer->gate_up_bias : &layer->gate_up;
    case TSK__PART_FF_OUT: return id->is_bias ? &layer->down_bias : &layer->down;
    case TSK__PART_EMBEDDING: return id->is_bias ? NULL : &b->embedding;
    case TSK__PART_FINAL_NORM: return id->is_bias ? NULL : &b->final_norm;
    case TSK__PART_HEAD: return id->is_bias ? &b->head_bias : &b->head;
    default: return NULL;
    }
}

/* Rows of the room that a part is the first in. */
static uint64_t tsk__cuda_room_rows(const tsk__cuda_backend *b, const tsk__weight_id *id) {
    uint64_t shape[2];
    if (id->part == TSK__PART_Q) return (uint64_t)b->qkv_width;
    if (id->part == TSK__PART_FF_PROJ) return (uint64_t)b->gate_up_rows;
    tsk__family_shape(b->base.config, id, shape);
    return shape[0];
}

/* A room at the end of what is used, for a part that is the first in it. */
static void tsk__cuda_lay_out(tsk__cuda_backend *b, const tsk__weight_id *id, CUdeviceptr base, uint64_t *used) {
    const tsk_model_config *c = b->base.config;
    uint64_t element = tsk__family_is_vector(c, id) ? b->base.element_size : tsk_dtype_size(tsk__cuda_weights_dtype(b));
    CUdeviceptr *room = tsk__cuda_room(b, id);
    uint64_t shape[2];
    tsk__weight_id before = *id;
    before.part--;
    if (!room || (id->part > 0 && room == tsk__cuda_room(b, &before))) return;
    tsk__family_shape(c, id, shape);
    *room = tsk__family_has(c, id) ? base + tsk__cuda_take(used, tsk__cuda_room_rows(b, id) * shape[1], element) : 0;
}

/* Addresses, from `base` on, of everything in the arena; returns its size. With base 0 it only counts. */
static uint64_t tsk__cuda_layout(tsk__cuda_backend *b, CUdeviceptr base) {
    const tsk_model_config *c = b->base.config;
    uint64_t used = 0;
    tsk__weight_id id = tsk__weight_id_of(-1, TSK__PART_EMBEDDING, 0);
    b->frequencies = base + tsk__cuda_take(&used, (uint64_t)c->head_dim / 2, sizeof(float));
    for (; id.layer < c->n_layers; id.layer++) {
        int end = id.layer < 0 ? (int)TSK__PART_ALL : (int)TSK__PART_COUNT;
        for (id.part = id.layer < 0 ? (int)TSK__PART_COUNT : 0; id.part < end; id.part++)
            for (id.is_bias = 0; id.is_bias < 2; id.is_bias++) tsk__cuda_lay_out(b, &id, base, &used);
    }
    if (c->weight_tying) b->head = b->embedding;
    return used;
}

static tsk__cuda_destination tsk__cuda_destination_of(tsk__cuda_backend *b, const tsk__weight_id *id) {
    const tsk_model_config *c = b->base.config;
    uint64_t shape[2];
    tsk__cuda_destination d;
    memset(&d, 0, sizeof d);
    tsk__family_shape(c, id, shape);
    d.matrix = *tsk__cuda_room(b, id);
    d.row_order.columns = shape[1];
    switch (id->part) {
    case TSK__PART_Q: case TSK__PART_K: case TSK__PART_V:
        if (c->head_dim % 16 == 0)
            d.row_order.interleave = TSK__CUDA_ROWS_HALVES, d.row_order.half_head = c->head_dim / 2;
        if (id->part != TSK__PART_Q) d.row_order.first_row = (uint64_t)b->q_width;
        if (id->part == TSK__PART_V) d.row_order.first_row += (uint64_t)b->kv_width;
        break;
    case TSK__PART_FF_PROJ: d.row_order.interleave = TSK__CUDA_ROWS_FIRST; break;
    case TSK__PART_UP_PROJ: d.row_order.interleave = TSK__CUDA_ROWS_SECOND; break;
    default: break;
    }
    return d;
}

static tsk_status tsk__cuda_arena(tsk__cuda_backend *b, tsk_error *error) {
    const tsk_model_config *c = b->base.config;
    uint64_t size = tsk__cuda_layout(b, 0);
    size_t available = 0, total = 0;
    CUresult result = b->api.cuMemGetInfo_v2(&available, &total);
    int32_t half = c->head_dim / 2, i;
    float *frequencies;
    if (result != CUDA_SUCCESS) return tsk__cuda_fail(&b->api, error, result, "asking for free memory");
    result =
        size > SIZE_MAX || size > available ? CUDA_ERROR_OUT_OF_MEMORY : b->api.cuMemAlloc_v2(&b->arena, (size_t)size);
    if (result == CUDA_ERROR_OUT_OF_MEMORY)
        return tsk__error_set(error, TSK_ERROR_MEMORY, NULL, TSK_NO_OFFSET,
                              "the model needs %.2f GB on the CUDA device, %.2f GB of its %.2f GB are free",
                              (double)size * 1e-9, (double)available * 1e-9, (double)total * 1e-9);
    if (result != CUDA_SUCCESS) return tsk__cuda_fail(&b->api, error, result, "memory for the weights");
    tsk__cuda_layout(b, b->arena);
    frequencies = (float *)tsk__memory_new(b->allocator, (size_t)half, sizeof *frequencies);
    if (!frequencies) return tsk__error_memory(error, "rotary frequencies", (uint64_t)half * sizeof *frequencies);
    for (i = 0; i < half; i++) frequencies[i] = tsk__rope_frequency(c, i);
    /* gate_up's padding, and whatever else no tensor fills, must be zeros */
    result = b->api.cuMemsetD8Async(b->arena, 0, (size_t)size, NULL);
    if (result == CUDA_SUCCESS)
        result = b->api.cuMemcpyHtoDAsync_v2(b->frequencies, frequencies, (size_t)half * sizeof *frequencies, NULL);
    if (result == CUDA_SUCCESS) result = b->api.cuStreamSynchronize(NULL);
    tsk__memory_delete(b->allocator, frequencies);
    return tsk__cuda_fail(&b->api, error, result, "clearing the weights");
}

/* ---- weights: reading. Each reader takes the next piece of a tensor, reads it into a pinned buffer while its last one
   is still being copied, and has a kernel put the values into their places in the activations' type. */

#define TSK__CUDA_PIECE ((uint64_t)4 << 20)
#define TSK__CUDA_READERS 12

typedef struct tsk__cuda_piece {
    tsk__stored stored;
    tsk__cuda_destination destination;
    uint64_t offset, size;         /* in bytes, of the tensor */
} tsk__cuda_piece;

typedef struct tsk__cuda_loading {
    tsk__cuda_backend *backend;
    const tsk__source *source;
    tsk__cuda_piece *pieces;
    size_t n_pieces, piece_capacity;
    uint64_t total;                /* bytes of all pieces */
    int made;                      /* some weights are made on the device */
    size_t next;                   /* shared between the readers, likewise the next two */
    uint64_t done;
    int stop;
} tsk__cuda_loading;

typedef struct tsk__cuda_reader {
    tsk__cuda_loading *loading;
    CUstream stream;
    CUevent copied[2];
    char *pinned;                  /* [2, TSK__CUDA_PIECE] */
    CUdeviceptr staging;           /* likewise */
    tsk__thread thread;
    int started;
    tsk_status status;
    tsk_error error;
} tsk__cuda_reader;

static tsk_status tsk__cuda_read_piece(tsk__cuda_reader *r, const tsk__cuda_piece *p, int half) {
    tsk__cuda_backend *b = r->loading->backend;
    const tsk__cuda_api *api = &b->api;
    char *pinned = r->pinned + (uint64_t)half * TSK__CUDA_PIECE;
    CUdeviceptr staging = r->staging + (uint64_t)half * TSK__CUDA_PIECE;
    tsk_dtype dtype = p->stored.dtype;
    uint64_t element = tsk_dtype_size(dtype);
    const char *mapped = (const char *)p->stored.data;
    const tsk__source *source = r->loading->source;
    tsk__cuda_convert_args a;
    CUresult result = api->cuEventSynchronize(r->copied[half]);
    memset(&a, 0, sizeof a);
    a.from = staging, a.to = p->destination.matrix, a.row_order = p->destination.row_order;
    a.first = p->offset / element, a.count = p->size / element;
    a.stored = dtype == TSK_DTYPE_F32   ? TSK__CUDA_STORED_F32
               : dtype == TSK_DTYPE_F16 ? TSK__CUDA_STORED_F16
                                        : TSK__CUDA_STORED_BF16;
    if (result != CUDA_SUCCESS) return tsk__cuda_fail(api, &r->error, result, "copying weights");
    if (mapped) memcpy(pinned, mapped + p->offset, (size_t)p->size);
    else {
        tsk_status status = source->read(source, &p->stored, p->offset, pinned, (size_t)p->size, &r->error);
        if (status != TSK_OK) return status;
    }
    result = api->cuMemcpyHtoDAsync_v2(staging, pinned, (size_t)p->size, r->stream);
    if (result == CUDA_SUCCESS)
        result = tsk__cuda_launch_on(b, r->stream, TSK__CUDA_convert, 256, 1, 1, TSK__CUDA_THREADS_convert, 0, 0, &a);
    if (result == CUDA_SUCCESS) result = api->cuEventRecord(r->copied[half], r->stream);
    return tsk__cuda_fail(api, &r->error, result, "copying weights");
}

static void *tsk__cuda_read(void *argument) {
    tsk__cuda_reader *r = (tsk__cuda_reader *)argument;
    tsk__cuda_loading *l = r->loading;
    int half = 0;
    tsk__cuda_enter(l->backend);
    while (r->status == TSK_OK && !__atomic_load_n(&l->stop, __ATOMIC_RELAXED)) {
        size_t i = __atomic_fetch_add(&l->next, 1, __ATOMIC_RELAXED);
        if (i >= l->n_pieces) break;
        r->status = tsk__cuda_read_piece(r, &l->pieces[i], half);
        half = !half;
        __atomic_fetch_add(&l->done, l->pieces[i].size, __ATOMIC_RELAXED);
    }
    if (r->status == TSK_OK)
        r->status = tsk__cuda_fail(&l->backend->api, &r->error, l->backend->api.cuStreamSynchronize(r->stream),
                                   "copying weights");
    if (r->status != TSK_OK) __atomic_store_n(&l->stop, 1, __ATOMIC_RELAXED);
    tsk__cuda_leave(l->backend);
    return NULL;
}

/* Random values are made where they are to lie. */
static tsk_status tsk__cuda_make(tsk__cuda_loading *l, const tsk__stored *stored, tsk__cuda_destination destination,
                                 tsk_error *error) {
    tsk__cuda_backend *b = l->backend;
    uint64_t count = (uint64_t)stored->rows * (uint64_t)stored->cols;
    uint32_t blocks = (uint32_t)b->n_multiprocessors * 8;
    tsk__cuda_fill_args ones;
    tsk__cuda_randomise_args random;
    CUresult result;
    memset(&ones, 0, sizeof ones);
    ones.to = destination.matrix, ones.count = count, ones.value = 1.0f;
    memset(&random, 0, sizeof random);
    random.to = destination.matrix, random.count = count, random.row_order = destination.row_order;
    random.seed = l->source->seed, random.tensor = stored->number, random.scale = stored->scale;
    l->made = 1;
    if (stored->scale > 0)
        result =
            tsk__cuda_launch_on(b, NULL, TSK__CUDA_randomise, blocks, 1, 1, TSK__CUDA_THREADS_randomise, 0, 0, &random);
    else result = tsk__cuda_launch_on(b, NULL, TSK__CUDA_fill, 16, 1, 1, TSK__CUDA_THREADS_fill, 0, 0, &ones);
    return tsk__cuda_fail(&b->api, error, result, "random weights");
}

/* Cuts a weight into pieces for the readers. */
static tsk_status tsk__cuda_put(void *loading, const tsk__weight_id *id, const tsk__stored *stored, tsk_error *error) {
    tsk__cuda_loading *l = (tsk__cuda_loading *)loading;
    tsk__cuda_destination destination = tsk__cuda_destination_of(l->backend, id);
    uint64_t offset;
    if (stored->is_made) return tsk__cuda_make(l, stored, destination, error);
    for (offset = 0; offset < stored->size; offset += TSK__CUDA_PIECE) {
        tsk__cuda_piece *piece;
        if (!tsk__memory_reserve(l->backend->allocator, &l->pieces, &l->piece_capacity, l->n_pieces + 1, sizeof *piece))
            return tsk__error_memory(error, "the list of weights", (l->n_pieces + 1) * sizeof *piece);
        piece = &l->pieces[l->n_pieces++];
        piece->stored = *stored;
        piece->destination = destination;
        piece->offset = offset;
        piece->size = stored->size - offset < TSK__CUDA_PIECE ? stored->size - offset : TSK__CUDA_PIECE;
        l->total += piece->size;
    }
    return TSK_OK;
}

static CUresult tsk__cuda_reader_open(tsk__cuda_reader *r, tsk__cuda_loading *loading) {
    const tsk__cuda_api *api = &loading->backend->api;
    CUresult result = api->cuStreamCreate(&r->stream, CU_STREAM_NON_BLOCKING);
    void *pinned = NULL;
    r->loading = loading;
    if (result == CUDA_SUCCESS) result = api->cuEventCreate(&r->copied[0], CU_EVENT_DISABLE_TIMING);
    if (result == CUDA_SUCCESS) result = api->cuEventCreate(&r->copied[1], CU_EVENT_DISABLE_TIMING);
    if (result == CUDA_SUCCESS) result = api->cuMemHostAlloc(&pinned, (size_t)(2 * TSK__CUDA_PIECE), 0);
    r->pinned = (char *)pinned;
    if (result == CUDA_SUCCESS) result = api->cuMemAlloc_v2(&r->staging, (size_t)(2 * TSK__CUDA_PIECE));
    return result;
}

static void tsk__cuda_reader_close(tsk__cuda_reader *r, const tsk__cuda_api *api) {
    if (r->started) tsk__thread_join(r->thread);
    if (r->stream) api->cuStreamSynchronize(r->stream);
    if (r->copied[0]) api->cuEventDestroy_v2(r->copied[0]);
    if (r->copied[1]) api->cuEventDestroy_v2(r->copied[1]);
    if (r->pinned) api->cuMemFreeHost(r->pinned);
    if (r->staging) api->cuMemFree_v2(r->staging);
    if (r->stream) api->cuStreamDestroy_v2(r->stream);
}

/* Progress and cancelling are the host's own functions: they are called on its own thread, which watches the
   readers. */
static void tsk__cuda_watch(tsk__cuda_loading *l, const tsk_model_options *o, int *cancelled) {
    uint64_t reported = UINT64_MAX;
    for (;;) {
        uint64_t done = __atomic_load_n(&l->done, __ATOMIC_RELAXED);
        if (o->progress && done != reported) o->progress(o->user, done, l->total);
        reported = done;
        if (o->cancel && !*cancelled && o->cancel(o->user)) {
            *cancelled = 1;
            __atomic_store_n(&l->stop, 1, __ATOMIC_RELAXED);
        }
        if (done >= l->total || __atomic_load_n(&l->stop, __ATOMIC_RELAXED)) return;
        tsk__thread_sleep(1);
    }
}

static tsk_status tsk__cuda_read_pieces(tsk__cuda_loading *l, const tsk_model_options *o, tsk_error *error) {
    tsk__cuda_backend *b = l->backend;
    tsk__cuda_reader *readers =
        (tsk__cuda_reader *)tsk__memory_new_zeroed(b->allocator, TSK__CUDA_READERS, sizeof *readers);
    tsk_status status = TSK_OK;
    int n_readers = tsk__processors(), n_started = 0, cancelled = 0, r;
    if (!readers) return tsk__error_memory(error, "buffers for loading", TSK__CUDA_READERS * sizeof *readers);
    if (n_readers > TSK__CUDA_READERS) n_readers = TSK__CUDA_READERS;
    if ((size_t)n_readers > l->n_pieces) n_readers = (int)l->n_pieces;
    for (r = 0; status == TSK_OK && r < n_readers; r++) {
        CUresult result = tsk__cuda_reader_open(&readers[r], l);
        status = tsk__cuda_fail(&b->api, error, result, "buffers for loading");
    }
    for (r = 0; status == TSK_OK && r < n_readers; r++) {
        readers[r].started = tsk__thread_start(&readers[r].thread, tsk__cuda_read, &readers[r]);
        n_started += readers[r].started;
    }
    if (status == TSK_OK && n_started) tsk__cuda_watch(l, o, &cancelled);
    else if (status == TSK_OK && n_readers) tsk__cuda_read(&readers[0]);  /* the system refuses threads: this one
                                                                             reads */
    for (r = 0; r < n_readers; r++) tsk__cuda_reader_close(&readers[r], &b->api);
    for (r = 0; r < n_readers && status == TSK_OK; r++) {
        if (readers[r].status != TSK_OK && error) *error = readers[r].error;  /* its log, if any, changes hands */
        status = readers[r].status;
    }
    if (status == TSK_OK && cancelled)
        status = tsk__error_set(error, TSK_ERROR_CANCELLED, NULL, TSK_NO_OFFSET, "loading was cancelled");
    tsk__memory_delete(b->allocator, readers);
    return status;
}

/* Fills the arena, laid out before, from the source. */
static tsk_status tsk__cuda_load_weights(tsk__cuda_backend *b, const tsk__source *source, const tsk_model_options *o,
                                         tsk_error *error) {
    tsk__cuda_loading loading;
    tsk_status status;
    memset(&loading, 0, sizeof loading);
    loading.backend = b;
    loading.source = source;
    status = tsk__weights_load(source, tsk__cuda_put, &loading, error);
    if (status == TSK_OK && loading.made)
        status = tsk__cuda_fail(&b->api, error, b->api.cuStreamSynchronize(NULL), "random weights");
    if (status == TSK_OK && loading.n_pieces) status = tsk__cuda_read_pieces(&loading, o, error);
    tsk__memory_delete(b->allocator, loading.pieces);
    return status;
}

#endif /* TOKENSKIP__HAS_CUDA */

#endif /* SECTION_GUARD_CUDA_WEIGHTS */
