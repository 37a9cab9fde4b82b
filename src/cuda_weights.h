#ifndef SECTION_GUARD_CUDA_WEIGHTS
#define SECTION_GUARD_CUDA_WEIGHTS

#include "error.h"
#include "memory.h"
#include "platform.h"
#include "safetensors.h"
#include "config.h"
#include "backend.h"
#include "cuda_driver.h"
#include "kernels/shared.h"
#include "cuda_backend.h"

// >>cuda_weights ======================================================================================================
/* Where the weights lie on the device, and how they get there. */

#ifdef TOKENSKIP__HAS_CUDA

/* ---- weights: where they lie */

/* One tensor's place. */
typedef struct tsk__cuda_place {
    CUdeviceptr to;
    tsk__cuda_row_order placing;
} tsk__cuda_place;

static uint64_t tsk__cuda_take(uint64_t *used, uint64_t count, uint64_t element) {
    uint64_t at = *used;
    *used = (at + count * element + 255) & ~(uint64_t)255;
    return at;
}

/* Addresses, from `base` on, of everything in the arena; returns its size. With base 0 it only counts. */
static uint64_t tsk__cuda_layout(tsk__cuda_backend *b, CUdeviceptr base) {
    const tsk_model_config *c = b->base.config;
    uint64_t d = (uint64_t)c->d_model, mlp = (uint64_t)c->mlp_hidden_size, e = b->base.element_size, used = 0;
    int32_t l;
    b->frequencies = base + tsk__cuda_take(&used, (uint64_t)c->head_dim / 2, sizeof(float));
    b->embedding = base + tsk__cuda_take(&used, (uint64_t)c->embedding_size * d, e);
    b->final_norm = base + tsk__cuda_take(&used, d, e);
    b->head = c->weight_tying ? b->embedding : base + tsk__cuda_take(&used, (uint64_t)c->embedding_size * d, e);
    b->head_bias = c->linear_bias && !c->weight_tying ? base + tsk__cuda_take(&used, (uint64_t)c->embedding_size, e) : 0;
    for (l = 0; l < c->n_layers; l++) {
        tsk__cuda_layer *layer = &b->layers[l];
        layer->attn_norm = base + tsk__cuda_take(&used, d, e);
        layer->qkv = base + tsk__cuda_take(&used, (uint64_t)b->qkv_width * d, e);
        layer->qkv_bias = c->qkv_bias ? base + tsk__cuda_take(&used, (uint64_t)b->qkv_width, e) : 0;
        layer->attn_out = base + tsk__cuda_take(&used, (uint64_t)b->q_width * d, e);
        layer->attn_out_bias = c->linear_bias ? base + tsk__cuda_take(&used, d, e) : 0;
        layer->ff_norm = base + tsk__cuda_take(&used, d, e);
        layer->gate_up = base + tsk__cuda_take(&used, (uint64_t)b->gate_up_rows * d, e);
        layer->gate_up_bias = c->linear_bias ? base + tsk__cuda_take(&used, (uint64_t)b->gate_up_rows, e) : 0;
        layer->down = base + tsk__cuda_take(&used, d * mlp, e);
        layer->down_bias = c->linear_bias ? base + tsk__cuda_take(&used, d, e) : 0;
    }
    return used;
}

static tsk__cuda_place tsk__cuda_place_of(const tsk__cuda_backend *b, int32_t l, tsk__part part, int is_bias) {
    const tsk__cuda_layer *layer = &b->layers[l < 0 ? 0 : l];
    const tsk_model_config *c = b->base.config;
    tsk__cuda_place p;
    memset(&p, 0, sizeof p);
    p.placing.columns = is_bias || tsk__part_shapes[part].cols == '-' ? 1 : tsk__config_size(c, tsk__part_shapes[part].cols);
    switch (part) {
    case TSK__PART_ATTN_NORM: p.to = layer->attn_norm; break;
    case TSK__PART_Q: case TSK__PART_K: case TSK__PART_V:
        p.to = is_bias ? layer->qkv_bias : layer->qkv;
        if (c->head_dim % 16 == 0) p.placing.interleave = TSK__CUDA_ROWS_HALVES, p.placing.half_head = c->head_dim / 2;
        p.placing.first_row = part == TSK__PART_Q ? 0 : (uint64_t)b->q_width + (part == TSK__PART_V ? (uint64_t)b->kv_width : 0);
        break;
    case TSK__PART_ATTN_OUT: p.to = is_bias ? layer->attn_out_bias : layer->attn_out; break;
    case TSK__PART_FF_NORM: p.to = layer->ff_norm; break;
    case TSK__PART_FF_PROJ: case TSK__PART_UP_PROJ:
        p.to = is_bias ? layer->gate_up_bias : layer->gate_up;
        p.placing.interleave = part == TSK__PART_FF_PROJ ? TSK__CUDA_ROWS_FIRST : TSK__CUDA_ROWS_SECOND;
        break;
    case TSK__PART_FF_OUT: p.to = is_bias ? layer->down_bias : layer->down; break;
    case TSK__PART_EMBEDDING: p.to = b->embedding; break;
    case TSK__PART_FINAL_NORM: p.to = b->final_norm; break;
    default: p.to = is_bias ? b->head_bias : b->head; break;
    }
    return p;
}

static tsk_status tsk__cuda_arena(tsk__cuda_backend *b, tsk_error *error) {
    const tsk_model_config *c = b->base.config;
    uint64_t size = tsk__cuda_layout(b, 0);
    size_t available = 0, total = 0;
    CUresult result = b->api.cuMemGetInfo_v2(&available, &total);
    int32_t half = c->head_dim / 2, i;
    float *frequencies;
    if (result != CUDA_SUCCESS) return tsk__cuda_fail(&b->api, error, result, "asking for free memory");
    result = size > SIZE_MAX || size > available ? CUDA_ERROR_OUT_OF_MEMORY : b->api.cuMemAlloc_v2(&b->arena, (size_t)size);
    if (result == CUDA_ERROR_OUT_OF_MEMORY)
        return tsk__error_set(error, TSK_ERROR_MEMORY, NULL, TSK_NO_OFFSET, "the model needs %.2f GB on the CUDA device, %.2f GB of its %.2f GB are free", (double)size * 1e-9,
                              (double)available * 1e-9, (double)total * 1e-9);
    if (result != CUDA_SUCCESS) return tsk__cuda_fail(&b->api, error, result, "memory for the weights");
    tsk__cuda_layout(b, b->arena);
    frequencies = (float *)tsk__memory_new(b->allocator, (size_t)half, sizeof *frequencies);
    if (!frequencies) return tsk__error_memory(error, "rotary frequencies", (uint64_t)half * sizeof *frequencies);
    for (i = 0; i < half; i++) frequencies[i] = tsk__rope_frequency(c, i);
    /* gate_up's padding, and whatever else no tensor fills, must be zeros */
    result = b->api.cuMemsetD8Async(b->arena, 0, (size_t)size, NULL);
    if (result == CUDA_SUCCESS) result = b->api.cuMemcpyHtoDAsync_v2(b->frequencies, frequencies, (size_t)half * sizeof *frequencies, NULL);
    if (result == CUDA_SUCCESS) result = b->api.cuStreamSynchronize(NULL);
    tsk__memory_delete(b->allocator, frequencies);
    return tsk__cuda_fail(&b->api, error, result, "clearing the weights");
}

static tsk_status tsk__cuda_random(tsk__cuda_backend *b, uint64_t seed, tsk_error *error) {
    static const tsk__part parts[7] = {TSK__PART_Q, TSK__PART_K, TSK__PART_V, TSK__PART_ATTN_OUT, TSK__PART_FF_PROJ, TSK__PART_UP_PROJ, TSK__PART_FF_OUT};
    const tsk_model_config *c = b->base.config;
    CUresult result = CUDA_SUCCESS;
    uint32_t tensor = 0;
    int32_t l;
    int j;
    for (l = -1; l <= c->n_layers && result == CUDA_SUCCESS; l++)  /* embedding, layers, head: the CPU's numbering */
        for (j = 0; j < 10 && result == CUDA_SUCCESS; j++) {
            tsk__part part = l < 0 ? (j ? TSK__PART_FINAL_NORM : TSK__PART_EMBEDDING) : l == c->n_layers ? TSK__PART_HEAD : j < 7 ? parts[j] : j == 7 ? TSK__PART_ATTN_NORM : TSK__PART_FF_NORM;
            tsk__cuda_place place = tsk__cuda_place_of(b, l < 0 || l == c->n_layers ? -1 : l, part, 0);
            uint64_t count = tsk__config_size(c, tsk__part_shapes[part].rows) * place.placing.columns;
            tsk__cuda_fill_args ones;
            tsk__cuda_randomise_args random;
            memset(&ones, 0, sizeof ones);
            ones.to = place.to, ones.count = count, ones.value = 1.0f;
            random.to = place.to, random.count = count, random.order = place.placing;
            random.seed = seed, random.tensor = tensor, random.scale = sqrtf(3.0f / (float)place.placing.columns);
            if ((l < 0 && j > 1) || (l == c->n_layers && (j > 0 || c->weight_tying)) || j > 8) break;
            if (tsk__part_shapes[part].cols == '-')
                result = tsk__cuda_launch_on(b, NULL, TSK__CUDA_fill, 16, 1, 1, 256, 0, 0, &ones);
            else {
                result = tsk__cuda_launch_on(b, NULL, TSK__CUDA_randomise, (uint32_t)b->n_multiprocessors * 8, 1, 1, 256,
                                             0, 0, &random);
                tensor++;
            }
        }
    if (result == CUDA_SUCCESS) result = b->api.cuStreamSynchronize(NULL);
    return tsk__cuda_fail(&b->api, error, result, "random weights");
}

/* ---- weights: reading. Each reader takes the next piece of a tensor, reads it into a pinned buffer while its last one is
   still being copied, and has a kernel put the values into their places in the activations' type. */

#define TSK__CUDA_PIECE ((uint64_t)4 << 20)
#define TSK__CUDA_READERS 12

typedef struct tsk__cuda_piece {
    const tsk_safetensors *file;
    const tsk_tensor_info *info;
    tsk__cuda_place place;
    uint64_t offset, size;         /* in bytes, of the tensor */
} tsk__cuda_piece;

typedef struct tsk__cuda_loading {
    tsk__cuda_backend *backend;
    tsk__cuda_piece *pieces;
    size_t n_pieces, next;         /* next and done are shared between the readers */
    uint64_t done;
    int stop;
} tsk__cuda_loading;

typedef struct tsk__cuda_reader {
    tsk__cuda_loading *loading;
    CUstream stream;
    CUevent copied[2];
    char *pinned;                  /* [2, TSK__CUDA_PIECE] */
    CUdeviceptr staging;           /* likewise */
    pthread_t thread;
    int started;
    tsk_status status;
    tsk_error error;
} tsk__cuda_reader;

static tsk_status tsk__cuda_read_piece(tsk__cuda_reader *r, const tsk__cuda_piece *p, int half) {
    tsk__cuda_backend *b = r->loading->backend;
    const tsk__cuda_api *api = &b->api;
    char *pinned = r->pinned + (uint64_t)half * TSK__CUDA_PIECE;
    CUdeviceptr staging = r->staging + (uint64_t)half * TSK__CUDA_PIECE;
    uint64_t element = tsk_dtype_size(p->info->dtype);
    const char *mapped = (const char *)tsk_safetensors_data(p->file, p->info);
    tsk__cuda_convert_args a;
    CUresult result = api->cuEventSynchronize(r->copied[half]);
    memset(&a, 0, sizeof a);
    a.from = staging, a.to = p->place.to, a.order = p->place.placing;
    a.first = p->offset / element, a.count = p->size / element;
    a.stored = p->info->dtype == TSK_DTYPE_F32   ? TSK__CUDA_STORED_F32
               : p->info->dtype == TSK_DTYPE_F16 ? TSK__CUDA_STORED_F16
                                                 : TSK__CUDA_STORED_BF16;
    if (result != CUDA_SUCCESS) return tsk__cuda_fail(api, &r->error, result, "copying weights");
    if (mapped) memcpy(pinned, mapped + p->offset, (size_t)p->size);
    else {
        tsk_status status = tsk_safetensors_read(p->file, p->info, p->offset, pinned, (size_t)p->size, &r->error);
        if (status != TSK_OK) return status;
    }
    result = api->cuMemcpyHtoDAsync_v2(staging, pinned, (size_t)p->size, r->stream);
    if (result == CUDA_SUCCESS) result = tsk__cuda_launch_on(b, r->stream, TSK__CUDA_convert, 256, 1, 1, 256, 0, 0, &a);
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
    if (r->status == TSK_OK) r->status = tsk__cuda_fail(&l->backend->api, &r->error, l->backend->api.cuStreamSynchronize(r->stream), "copying weights");
    if (r->status != TSK_OK) __atomic_store_n(&l->stop, 1, __ATOMIC_RELAXED);
    tsk__cuda_leave(l->backend);
    return NULL;
}

/* The tensors cut into pieces; counts only while `pieces` is NULL. */
static size_t tsk__cuda_pieces(const tsk__cuda_backend *b, const tsk_folder *folder, tsk__cuda_piece *pieces) {
    size_t n = 0;
    int32_t l;
    int part, bias;
    for (l = -1; l < b->base.config->n_layers; l++)
        for (part = l < 0 ? (int)TSK__PART_COUNT : 0; part < (l < 0 ? (int)TSK__PART_ALL : (int)TSK__PART_COUNT); part++)
            for (bias = 0; bias < 2; bias++) {
                const tsk_safetensors *file = NULL;
                const tsk_tensor_info *info = tsk__folder_find(folder, l, (tsk__part)part, bias, &file);
                uint64_t offset;
                if (!info || (part == (int)TSK__PART_HEAD && b->base.config->weight_tying)) continue;
                for (offset = 0; offset < info->size; offset += TSK__CUDA_PIECE, n++) {
                    if (!pieces) continue;
                    pieces[n].file = file;
                    pieces[n].info = info;
                    pieces[n].place = tsk__cuda_place_of(b, l, (tsk__part)part, bias);
                    pieces[n].offset = offset;
                    pieces[n].size = info->size - offset < TSK__CUDA_PIECE ? info->size - offset : TSK__CUDA_PIECE;
                }
            }
    return n;
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
    if (r->started) pthread_join(r->thread, NULL);
    if (r->stream) api->cuStreamSynchronize(r->stream);
    if (r->copied[0]) api->cuEventDestroy_v2(r->copied[0]);
    if (r->copied[1]) api->cuEventDestroy_v2(r->copied[1]);
    if (r->pinned) api->cuMemFreeHost(r->pinned);
    if (r->staging) api->cuMemFree_v2(r->staging);
    if (r->stream) api->cuStreamDestroy_v2(r->stream);
}

/* Progress and cancelling are the host's own functions: they are called on its own thread, which watches the readers. */
static void tsk__cuda_watch(tsk__cuda_loading *l, const tsk_model_options *o, uint64_t total, int *cancelled) {
    uint64_t told = UINT64_MAX;
    for (;;) {
        uint64_t done = __atomic_load_n(&l->done, __ATOMIC_RELAXED);
        struct timespec pause = {0, 1000000};
        if (o->progress && done != told) o->progress(o->user, done, total);
        told = done;
        if (o->cancel && !*cancelled && o->cancel(o->user)) {
            *cancelled = 1;
            __atomic_store_n(&l->stop, 1, __ATOMIC_RELAXED);
        }
        if (done >= total || __atomic_load_n(&l->stop, __ATOMIC_RELAXED)) return;
        nanosleep(&pause, NULL);
    }
}

static tsk_status tsk__cuda_load_weights(tsk__cuda_backend *b, const tsk_folder *folder, const tsk_model_options *o, tsk_error *error) {
    tsk__cuda_loading loading;
    tsk__cuda_reader *readers = (tsk__cuda_reader *)tsk__memory_new_zeroed(b->allocator, TSK__CUDA_READERS, sizeof *readers);
    CUresult result = CUDA_SUCCESS;
    tsk_status status = TSK_OK;
    uint64_t total = 0;
    size_t i;
    int n_readers = tsk__processors(), n_started = 0, cancelled = 0, r;
    memset(&loading, 0, sizeof loading);
    loading.backend = b;
    loading.n_pieces = tsk__cuda_pieces(b, folder, NULL);
    loading.pieces = (tsk__cuda_piece *)tsk__memory_new(b->allocator, loading.n_pieces, sizeof *loading.pieces);
    if (!readers || !loading.pieces) status = tsk__error_memory(error, "the list of weights", loading.n_pieces * sizeof *loading.pieces);
    else tsk__cuda_pieces(b, folder, loading.pieces);
    for (i = 0; status == TSK_OK && i < loading.n_pieces; i++) total += loading.pieces[i].size;
    if (n_readers > TSK__CUDA_READERS) n_readers = TSK__CUDA_READERS;
    if ((size_t)n_readers > loading.n_pieces) n_readers = (int)loading.n_pieces;
    for (r = 0; status == TSK_OK && r < n_readers; r++) {
        result = tsk__cuda_reader_open(&readers[r], &loading);
        status = tsk__cuda_fail(&b->api, error, result, "buffers for loading");
    }
    for (r = 0; status == TSK_OK && r < n_readers; r++) {
        readers[r].started = pthread_create(&readers[r].thread, NULL, tsk__cuda_read, &readers[r]) == 0;
        n_started += readers[r].started;
    }
    if (status == TSK_OK && n_started) tsk__cuda_watch(&loading, o, total, &cancelled);
    else if (status == TSK_OK && n_readers) tsk__cuda_read(&readers[0]);  /* the system refuses threads: this one reads */
    for (r = 0; readers && r < n_readers; r++) tsk__cuda_reader_close(&readers[r], &b->api);
    for (r = 0; readers && r < n_readers && status == TSK_OK; r++) {
        if (readers[r].status != TSK_OK && error) *error = readers[r].error;  /* its log, if any, changes hands */
        status = readers[r].status;
    }
    if (status == TSK_OK && cancelled) status = tsk__error_set(error, TSK_ERROR_CANCELLED, NULL, TSK_NO_OFFSET, "loading was cancelled");
    tsk__memory_delete(b->allocator, readers);
    tsk__memory_delete(b->allocator, loading.pieces);
    return status;
}

#endif /* TOKENSKIP__HAS_CUDA */

#endif /* SECTION_GUARD_CUDA_WEIGHTS */
