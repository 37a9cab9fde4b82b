#ifndef SECTION_GUARD_CUDA_STREAM
#define SECTION_GUARD_CUDA_STREAM

#include "error.h"
#include "memory.h"
#include "platform.h"
#include "pool.h"
#include "number.h"
#include "backend.h"
#include "cuda_driver.h"
#include "kernels/shared.h"
#include "cuda_backend.h"
#include "cuda_plan.h"
#include "cuda_weights.h"

// >>cuda_stream =======================================================================================================
/* One session's or batch's order of work on the device: its buffers, the lists in pinned memory, and the rows of a
   pass. */

#ifdef TOKENSKIP__HAS_CUDA

/* ---- streams */

/* A recorded section: a graph, and the shape of the pass that it was recorded for. */
typedef struct tsk__cuda_section {
    uint64_t key;
    int32_t n, n_requests, n_tiles;
    tsk__cuda_attention attention;
    int fetches;                   /* it begins with fetching the row table */
    const void *x;                 /* the rows' states: all rows', or where compact put some */
    CUgraphExec graph;
} tsk__cuda_section;
#define TSK__CUDA_SEEN 4
#define TSK__CUDA_SECTIONS 64

/* Lists in pinned memory, which the host and the device both read and write. */
typedef struct tsk__cuda_pinned {
    char *memory;
    tsk__cuda_row *rows;           /* [max_rows] image of the row table */
    tsk__cuda_cache *caches;       /* [max_rows] */
    tsk__cuda_tile *tiles;         /* [max_rows] */
    volatile uint32_t *fetched, *signalled;
    char *arguments;               /* lists of operations: on their way to the device, or read where they are */
    uint64_t arguments_size, arguments_used;
} tsk__cuda_pinned;

/* A stream's own device memory. */
typedef struct tsk__cuda_memory {
    CUdeviceptr memory, arguments, counters, state_words, squares, attention_parts, heads, scratch, normed, compact_x,
        full_x, workspace, logits;
    CUdeviceptr cosines, skipped;  /* what the host has copies of */
    CUdeviceptr confidences, order; /* [max_rows] select's scratch */
    CUdeviceptr compact_index;     /* [max_rows] the list that compact narrowed to */
    tsk__cuda_table table;
    tsk__cuda_tensor_map inputs[3][2];  /* normed, attention, hidden: boxes of 32 and of 64 rows */
} tsk__cuda_memory;

/* The pass under way. */
typedef struct tsk__cuda_pass {
    int32_t n, all_n, n_requests;
    int32_t n_tiles;               /* attention's */
    tsk__cuda_attention attention; /* the kernel for them */
    int32_t compacted;             /* rows of the list that compact narrowed to, 0: not narrowed */
    int is_dirty;                  /* the device has not fetched the row table's last change */
    CUdeviceptr normed_for;        /* the norm whose first half x has gone through, to `normed` and `squares`; 0:
                                      none */
} tsk__cuda_pass;

/* What has been launched so far. */
typedef struct tsk__cuda_issued {
    uint32_t fetches, signals;     /* how many of them */
    int needs_signal;
    int can_overlap;               /* what was launched last is a kernel, and the next one may begin while it ends */
} tsk__cuda_issued;

/* The sections that are recorded, and those that may be. */
typedef struct tsk__cuda_recorded {
    int is_recording;
    tsk__cuda_section recording;   /* what is being recorded */
    tsk__cuda_section sections[TSK__CUDA_SECTIONS];
    int n_sections, next_section;
    tsk__cuda_section seen[TSK__CUDA_SEEN];  /* of many rows, lately, and not recorded */
    int next_seen;
} tsk__cuda_recorded;

typedef struct tsk__cuda_stream {
    tsk__stream base;
    tsk__cuda_backend *backend;
    CUstream stream;
    cublasHandle_t cublas;
    int32_t n_states;
    CUresult failure;
    const char *failed;            /* in which operation */
    tsk__cuda_pinned pinned;
    tsk__cuda_memory device;
    tsk__cuda_pass pass;
    tsk__cuda_issued issued;
    tsk__cuda_recorded recorded;
} tsk__cuda_stream;

static tsk__cuda_stream *tsk__cuda_stream_of(tsk__stream *s) { return (tsk__cuda_stream *)(void *)s; }
static CUdeviceptr tsk__cuda_address(const void *address) { return (CUdeviceptr)(uintptr_t)address; }
static void *tsk__cuda_pointer(CUdeviceptr address) { return (void *)(uintptr_t)address; }

static void tsk__cuda_note(tsk__cuda_stream *s, CUresult result, const char *what) {
    if (result == CUDA_SUCCESS || s->failure != CUDA_SUCCESS) return;
    s->failure = result;
    s->failed = what;
}

#define TSK__CUDA_UNKNOWN ((CUresult)999)  /* CUDA_ERROR_UNKNOWN: something went wrong, and CUDA has no word for it */

/* Watches a pinned word until it counts what is expected, or the stream fails. If the stream has ended and the word has
   not reached the count, kernels were lost, and that is a failure. */
static void tsk__cuda_await(tsk__cuda_stream *s, const volatile uint32_t *word, uint32_t expected, const char *what) {
    uint32_t spins = 0;
    while (s->failure == CUDA_SUCCESS && __atomic_load_n(word, __ATOMIC_ACQUIRE) != expected) {
        if (++spins % 4096 == 0) {
            CUresult result = s->backend->api.cuStreamQuery(s->stream);
            if (result != CUDA_ERROR_NOT_READY) tsk__cuda_note(s, result, what);
            if (result == CUDA_SUCCESS && __atomic_load_n(word, __ATOMIC_ACQUIRE) != expected)
                tsk__cuda_note(s, TSK__CUDA_UNKNOWN, what);
            if (spins > 1u << 20) tsk__thread_yield();
        }
        tsk__pool_pause();
    }
}

/* The row table's image may be changed again: what was launched to fetch it has. */
static void tsk__cuda_wait_fetched(tsk__cuda_stream *s) {
    tsk__cuda_await(s, s->pinned.fetched, s->issued.fetches, "fetching the rows");
}

static void tsk__cuda_fetch_rows(tsk__cuda_stream *s) {
    tsk__cuda_backend *b = s->backend;
    tsk__cuda_pass_begin_args a;
    a.rows = tsk__cuda_address(s->pinned.rows), a.caches = tsk__cuda_address(s->pinned.caches),
    a.tiles = tsk__cuda_address(s->pinned.tiles);
    a.table = s->device.table;
    a.frequencies = b->frequencies;
    a.state = s->device.state_words;
    a.fetched = tsk__cuda_address((const void *)(uintptr_t)s->pinned.fetched);
    a.n = s->pass.n, a.n_caches = s->pass.n_requests, a.n_tiles = s->pass.n_tiles,
    a.half = b->base.config->head_dim / 2;
    tsk__cuda_note(s,
                   tsk__cuda_launch_on(b, s->stream, TSK__CUDA_pass_begin, (uint32_t)s->pass.n + 1, 1, 1,
                                       TSK__CUDA_THREADS_pass_begin, 0, 0, &a),
                   "pass_begin");
    s->issued.fetches++;
    s->pass.is_dirty = 0;
    s->issued.can_overlap = 0;  /* what follows may read the table before it waits for its predecessor */
}

static void tsk__cuda_launch(tsk__cuda_stream *s, tsk__cuda_kernel kernel, uint32_t gx, uint32_t gy, uint32_t gz,
                             uint32_t block, uint32_t shared, const void *args, const char *what) {
    if (s->failure != CUDA_SUCCESS) return;
    if (s->pass.is_dirty) tsk__cuda_fetch_rows(s);
    tsk__cuda_note(s,
                   tsk__cuda_launch_on(s->backend, s->stream, kernel, gx, gy, gz, block, shared, s->issued.can_overlap,
                                       args),
                   what);
    s->issued.can_overlap = 1;
    s->issued.needs_signal = 1;
}

static void tsk__cuda_signal(tsk__cuda_stream *s) {
    tsk__cuda_pass_signal_args a;
    a.count = s->device.state_words + 8;
    a.signalled = tsk__cuda_address((const void *)(uintptr_t)s->pinned.signalled);
    tsk__cuda_launch(s, TSK__CUDA_pass_signal, 1, 1, 1, 1, 0, &a, "pass_signal");
    s->issued.signals++;
    s->issued.needs_signal = 0;
}

static tsk_status tsk__cuda_backend_wait(tsk__stream *stream, tsk_error *error) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    tsk_status status = TSK_OK;
    tsk__cuda_enter(s->backend);
    if (s->issued.needs_signal) tsk__cuda_signal(s);
    tsk__cuda_await(s, s->pinned.signalled, s->issued.signals, "waiting");
    if (s->failure != CUDA_SUCCESS) {
        s->backend->api.cuStreamSynchronize(s->stream);
        status = tsk__cuda_fail(&s->backend->api, error, s->failure, s->failed);
        s->failure = CUDA_SUCCESS;
        s->issued.signals = *s->pinned.signalled;
        s->issued.fetches = *s->pinned.fetched;
        s->pass.is_dirty = 1;
    }
    s->pinned.arguments_used = 0;
    tsk__cuda_leave(s->backend);
    return status;
}

/* A place in the ring of pinned memory from which lists are copied to the device, or where the device reads them. It is
   valid until the next wait. Do not call this inside a recorded section, which would record the list's contents. */
static uint64_t tsk__cuda_argument_room(tsk__cuda_stream *s, uint64_t size) {
    uint64_t at = s->pinned.arguments_used, room = (size + 15) & ~(uint64_t)15;
    if (at + room > s->pinned.arguments_size) {  /* as good as a wait: everything that used the ring is done */
        tsk__cuda_note(s, s->backend->api.cuStreamSynchronize(s->stream), "making room for arguments");
        at = 0;
    }
    s->pinned.arguments_used = at + room;
    return at;
}
static uint64_t tsk__cuda_argument_place(tsk__cuda_stream *s, const void *values, uint64_t size) {
    uint64_t at = tsk__cuda_argument_room(s, size);
    memcpy(s->pinned.arguments + at, values, (size_t)size);
    return at;
}

/* Two lists beside each other, the second at a multiple of 16 bytes: *second_at after the first. */
static uint64_t tsk__cuda_argument_pair(tsk__cuda_stream *s, const void *first, uint64_t first_size, const void *second,
                                        uint64_t second_size, uint64_t *second_at) {
    uint64_t at;
    *second_at = (first_size + 15) & ~(uint64_t)15;
    at = tsk__cuda_argument_room(s, *second_at + second_size);
    memcpy(s->pinned.arguments + at, first, (size_t)first_size);
    memcpy(s->pinned.arguments + at + *second_at, second, (size_t)second_size);
    return at;
}

static void tsk__cuda_upload(tsk__cuda_stream *s, CUdeviceptr to, uint64_t at, uint64_t size) {
    tsk__cuda_note(s, s->backend->api.cuMemcpyHtoDAsync_v2(to, s->pinned.arguments + at, (size_t)size, s->stream),
                   "copying arguments");
    s->issued.can_overlap = 0;
}

static uint64_t tsk__cuda_backend_available(tsk__backend *backend) {
    tsk__cuda_backend *b = tsk__cuda_backend_of(backend);
    size_t available = 0, total = 0;
    CUresult result;
    tsk__cuda_enter(b);
    result = b->api.cuMemGetInfo_v2(&available, &total);
    tsk__cuda_leave(b);
    return result == CUDA_SUCCESS ? (uint64_t)available : UINT64_MAX;
}

static void *tsk__cuda_backend_allocate(tsk__backend *backend, uint64_t size) {
    tsk__cuda_backend *b = tsk__cuda_backend_of(backend);
    CUdeviceptr address = 0;
    if (size > SIZE_MAX) return NULL;
    tsk__cuda_enter(b);
    if (b->api.cuMemAlloc_v2(&address, size ? (size_t)size : 1) != CUDA_SUCCESS) address = 0;
    tsk__cuda_leave(b);
    return tsk__cuda_pointer(address);
}

static void tsk__cuda_backend_release(tsk__backend *backend, void *address) {
    tsk__cuda_backend *b = tsk__cuda_backend_of(backend);
    if (!address) return;
    tsk__cuda_enter(b);
    b->api.cuMemFree_v2(tsk__cuda_address(address));
    tsk__cuda_leave(b);
}

static void tsk__cuda_backend_copy(tsk__stream *stream, void *to, const void *from, uint64_t size) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    if (!size || s->failure != CUDA_SUCCESS) return;
    tsk__cuda_enter(s->backend);
    tsk__cuda_note(s,
                   s->backend->api.cuMemcpyDtoDAsync_v2(tsk__cuda_address(to), tsk__cuda_address(from), (size_t)size,
                                                        s->stream),
                   "copying");
    if (tsk__cuda_address(to) >= s->device.full_x && tsk__cuda_address(to) < s->device.normed)
        s->pass.normed_for = 0; /* into x, compacted or not */
    s->issued.can_overlap = 0;
    s->issued.needs_signal = 1;
    tsk__cuda_leave(s->backend);
}

static void tsk__cuda_backend_slide(tsk__stream *stream, void *base, int32_t planes, uint64_t pitch, uint64_t to,
                                    uint64_t from, uint64_t size) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    tsk__cuda_slide_args a;
    if (!size || s->failure != CUDA_SUCCESS) return;
    a.base = tsk__cuda_address(base);
    a.pitch = pitch, a.to = to, a.from = from, a.size = size;
    tsk__cuda_enter(s->backend);
    tsk__cuda_note(s,
                   tsk__cuda_launch_on(s->backend, s->stream, TSK__CUDA_slide, (uint32_t)planes, 1, 1,
                                       TSK__CUDA_THREADS_slide, 0, 0, &a),
                   "moving a cache");
    s->issued.can_overlap = 0;
    s->issued.needs_signal = 1;
    tsk__cuda_leave(s->backend);
}

static void tsk__cuda_backend_upload(tsk__stream *stream, void *to, const void *from, uint64_t size) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    uint64_t done, piece;
    tsk__cuda_enter(s->backend);
    for (done = 0; done < size && s->failure == CUDA_SUCCESS; done += piece) {
        piece = size - done < s->pinned.arguments_size ? size - done : s->pinned.arguments_size;
        tsk__cuda_upload(s, tsk__cuda_address(to) + done, tsk__cuda_argument_place(s, (const char *)from + done, piece),
                         piece);
    }
    s->issued.needs_signal = 1;
    tsk__cuda_leave(s->backend);
}

/* bf16 values land in the upper half of `to`, from where they are widened in place, first to last. */
static void tsk__cuda_download(tsk__cuda_stream *s, float *to, CUdeviceptr from, uint64_t count, uint32_t element) {
    char *raw = (char *)to + (element == 2 ? count * 2 : 0);
    if (s->failure == CUDA_SUCCESS)
        tsk__cuda_note(s, s->backend->api.cuMemcpyDtoHAsync_v2(raw, from, (size_t)(count * element), s->stream),
                       "downloading");
    if (s->failure == CUDA_SUCCESS) tsk__cuda_note(s, s->backend->api.cuStreamSynchronize(s->stream), "downloading");
    s->issued.can_overlap = 0;
    if (s->failure != CUDA_SUCCESS) {
        memset(to, 0, (size_t)count * sizeof *to);
        return;
    }
    if (element == 2) tsk__floats_from(TSK_DTYPE_BF16, raw, count, to);
}

static void tsk__cuda_backend_download(tsk__stream *stream, float *to, const void *from, uint64_t count) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    tsk__cuda_enter(s->backend);
    tsk__cuda_download(s, to, tsk__cuda_address(from), count, s->backend->base.element_size);
    tsk__cuda_leave(s->backend);
}

static void tsk__cuda_backend_stream_destroy(tsk__stream *stream) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    tsk__cuda_backend *b = s->backend;
    int i;
    tsk__cuda_enter(b);
    if (s->stream) b->api.cuStreamSynchronize(s->stream);
    for (i = 0; i < s->recorded.n_sections; i++) b->api.cuGraphExecDestroy(s->recorded.sections[i].graph);
    if (s->cublas) b->api.cublasDestroy_v2(s->cublas);
    if (s->device.memory) b->api.cuMemFree_v2(s->device.memory);
    if (s->device.logits) b->api.cuMemFree_v2(s->device.logits);
    if (s->pinned.memory) b->api.cuMemFreeHost(s->pinned.memory);
    if (s->stream) b->api.cuStreamDestroy_v2(s->stream);
    tsk__cuda_leave(b);
    tsk__memory_delete(b->allocator, s);
}

static int32_t tsk__cuda_head_rows(int32_t rows) { return rows < TSK__CUDA_HEAD_ROWS ? rows : TSK__CUDA_HEAD_ROWS; }

/* Tiles of the head where it is one of the fused maps. */
static int32_t tsk__cuda_head_tiles(const tsk__cuda_backend *b, int32_t m) {
    int32_t width = 16 * b->plans[TSK__CUDA_MAP_HEAD].pieces;
    return m > TSK__CUDA_FEW_ROWS ? tsk__cuda_wide_tiles(b, TSK__CUDA_MAP_HEAD)
                                  : (b->base.config->embedding_size + width - 1) / width;
}
/* Entries for all tiles and rows, whichever way the head goes. */
static uint64_t tsk__cuda_head_entries(const tsk__cuda_backend *b, int32_t max_rows) {
    uint64_t most =
        ((uint64_t)b->base.config->embedding_size / TSK__CUDA_HEAD_TILE + 1) * (uint64_t)tsk__cuda_head_rows(max_rows);
    int32_t rows;
    for (rows = TSK__CUDA_FEW_ROWS; rows <= tsk__cuda_fused_rows(b); rows += TSK__CUDA_WIDE_ROWS - TSK__CUDA_FEW_ROWS) {
        uint64_t entries = (uint64_t)tsk__cuda_head_tiles(b, rows) * (uint64_t)rows;
        if (entries > most) most = entries;
    }
    return most;
}

static CUresult tsk__cuda_encode_inputs(tsk__cuda_stream *s) {
    const tsk__cuda_backend *b = s->backend;
    uint64_t columns[3];
    CUdeviceptr addresses[3];
    CUresult result = CUDA_SUCCESS;
    int i;
    addresses[0] = s->device.normed, addresses[1] = tsk__cuda_address(s->base.attention),
    addresses[2] = tsk__cuda_address(s->base.hidden);
    columns[0] = (uint64_t)b->base.config->d_model, columns[1] = (uint64_t)b->q_width,
    columns[2] = (uint64_t)b->base.config->mlp_hidden_size;
    for (i = 0; i < 6 && result == CUDA_SUCCESS && b->has_few_rows; i++)
        result = tsk__cuda_encode(b, addresses[i / 2], (uint64_t)s->base.max_rows, columns[i / 2],
                                  tsk__cuda_plan_rows[i % 2], &s->device.inputs[i / 2][i % 2]);
    return result;
}

/* Addresses of the stream's device memory, or its size with base 0. */
static uint64_t tsk__cuda_stream_layout(tsk__cuda_stream *s, CUdeviceptr base) {
    const tsk__cuda_backend *b = s->backend;
    const tsk_model_config *c = b->base.config;
    uint64_t rows = (uint64_t)s->base.max_rows, d = (uint64_t)c->d_model, e = b->base.element_size, used = 0;
    uint64_t wide = (uint64_t)(b->qkv_width > b->gate_up_rows ? b->qkv_width : b->gate_up_rows);
    int has_scratch = s->base.max_rows > tsk__cuda_fused_rows(b) || b->norms_heads;
    s->device.full_x = base + tsk__cuda_take(&used, rows * d, e);
    s->device.compact_x = base + tsk__cuda_take(&used, rows * d, e);
    s->device.normed = base + tsk__cuda_take(&used, rows * d, e);
    s->base.q = tsk__cuda_pointer(base + tsk__cuda_take(&used, rows * (uint64_t)b->q_width, e));
    s->base.attention = tsk__cuda_pointer(base + tsk__cuda_take(&used, rows * (uint64_t)b->q_width, e));
    s->base.hidden = tsk__cuda_pointer(base + tsk__cuda_take(&used, rows * (uint64_t)c->mlp_hidden_size, e));
    s->device.scratch = base + tsk__cuda_take(&used, has_scratch ? rows * (wide > d ? wide : d) : 0, e);
    s->device.table.rows = base + tsk__cuda_take(&used, rows, sizeof(tsk__cuda_row));
    s->device.table.caches = base + tsk__cuda_take(&used, rows, sizeof(tsk__cuda_cache));
    s->device.table.tiles = base + tsk__cuda_take(&used, rows, sizeof(tsk__cuda_tile));
    s->device.table.rope = base + tsk__cuda_take(&used, rows * (uint64_t)(c->head_dim / 2), 2 * sizeof(float));
    s->device.squares = base + tsk__cuda_take(&used, rows * (uint64_t)TSK__CUDA_SQUARES_ROW(c->d_model), sizeof(float));
    s->device.attention_parts =
        base + tsk__cuda_take(&used,
                              b->has_flash ? (uint64_t)c->n_heads * TSK__CUDA_ATTENTION_SPLITS * TSK__CUDA_SPLIT_ROWS *
                                                 ((uint64_t)c->head_dim + 2)
                                           : 0,
                              sizeof(float));
    s->device.heads =
        base + tsk__cuda_take(&used, tsk__cuda_head_entries(b, s->base.max_rows), sizeof(tsk__cuda_head_entry));
    s->device.counters = base + tsk__cuda_take(&used, (uint64_t)c->n_heads * rows, sizeof(uint32_t));
    s->device.state_words = base + tsk__cuda_take(&used, 4, sizeof(uint32_t));
    s->device.arguments = base + tsk__cuda_take(&used, s->pinned.arguments_size, 1);
    s->device.compact_index = base + tsk__cuda_take(&used, rows, sizeof(int32_t));
    s->device.cosines = base + tsk__cuda_take(&used, rows * (uint64_t)s->n_states, sizeof(float));
    s->device.skipped = base + tsk__cuda_take(&used, rows, sizeof(int32_t));
    s->base.predictions = tsk__cuda_pointer(base + tsk__cuda_take(&used, rows, sizeof(tsk__prediction)));
    s->device.confidences = base + tsk__cuda_take(&used, rows, sizeof(float));
    s->device.order = base + tsk__cuda_take(&used, rows, sizeof(int32_t));
    s->device.workspace = base + tsk__cuda_take(&used, b->is_f32 ? 0 : TSK__CUDA_WORKSPACE, 1);
    return used;
}

static CUresult tsk__cuda_stream_pinned(tsk__cuda_stream *s) {
    uint64_t rows = (uint64_t)s->base.max_rows, used = 0, size, at[9];
    void *pinned = NULL;
    CUresult result;
    at[0] = tsk__cuda_take(&used, rows, sizeof(tsk__cuda_row));
    at[1] = tsk__cuda_take(&used, rows, sizeof(tsk__cuda_cache));
    at[2] = tsk__cuda_take(&used, rows, sizeof(tsk__cuda_tile));
    at[3] = tsk__cuda_take(&used, 1, 4);
    at[4] = tsk__cuda_take(&used, 1, 4);
    at[5] = tsk__cuda_take(&used, rows * (uint64_t)s->n_states, sizeof(float));
    at[6] = tsk__cuda_take(&used, rows, sizeof(int32_t));
    at[7] = tsk__cuda_take(&used, rows, sizeof(tsk__choice));
    at[8] = tsk__cuda_take(&used, s->pinned.arguments_size, 1);
    size = used;
    result = s->backend->api.cuMemHostAlloc(&pinned, (size_t)size, 0);
    if (result != CUDA_SUCCESS) return result;
    memset(pinned, 0, (size_t)size);
    s->pinned.memory = (char *)pinned;
    s->pinned.rows = (tsk__cuda_row *)(void *)(s->pinned.memory + at[0]);
    s->pinned.caches = (tsk__cuda_cache *)(void *)(s->pinned.memory + at[1]);
    s->pinned.tiles = (tsk__cuda_tile *)(void *)(s->pinned.memory + at[2]);
    s->pinned.fetched = (volatile uint32_t *)(void *)(s->pinned.memory + at[3]);
    s->pinned.signalled = (volatile uint32_t *)(void *)(s->pinned.memory + at[4]);
    s->base.cosines = (float *)(void *)(s->pinned.memory + at[5]);
    s->base.skipped = (int32_t *)(void *)(s->pinned.memory + at[6]);
    s->base.choices = (tsk__choice *)(void *)(s->pinned.memory + at[7]);
    s->pinned.arguments = s->pinned.memory + at[8];
    return CUDA_SUCCESS;
}

static tsk_status tsk__cuda_stream_cublas(tsk__cuda_stream *s, tsk_error *error) {
    tsk__cuda_backend *b = s->backend;
    if (b->is_f32 || s->base.max_rows <= tsk__cuda_fused_rows(b)) return TSK_OK;
    if (b->api.cublasCreate_v2(&s->cublas) != CUBLAS_STATUS_SUCCESS) {
        s->cublas = NULL;
        return tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET, "cuBLAS cannot start");
    }
    if (b->api.cublasSetStream_v2(s->cublas, s->stream) != CUBLAS_STATUS_SUCCESS ||
        b->api.cublasSetWorkspace_v2(s->cublas, tsk__cuda_pointer(s->device.workspace), TSK__CUDA_WORKSPACE) !=
            CUBLAS_STATUS_SUCCESS)
        return tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET, "cuBLAS does not take its stream");
    return TSK_OK;
}

static tsk_status tsk__cuda_backend_stream_create(tsk__backend *backend, int32_t max_rows, int32_t n_states,
                                                  tsk__stream **out, tsk_error *error) {
    tsk__cuda_backend *b = tsk__cuda_backend_of(backend);
    tsk__cuda_stream *s = (tsk__cuda_stream *)tsk__memory_new_zeroed(b->allocator, 1, sizeof *s);
    tsk_status status;
    CUresult result;
    uint64_t size;
    if (!s) return tsk__error_memory(error, "a stream", sizeof *s);
    s->base.backend = backend;
    s->base.max_rows = max_rows;
    s->backend = b;
    s->n_states = n_states;
    /* a pass's lists; logits pass the draws of TSK__CUDA_LOGITS_ROWS rows, however few there are */
    s->pinned.arguments_size =
        2 * ((uint64_t)(max_rows > TSK__CUDA_LOGITS_ROWS ? max_rows : TSK__CUDA_LOGITS_ROWS) *
                 (2 * sizeof(int32_t) + sizeof(tsk__draw) + sizeof(tsk__commit_candidate) + sizeof(tsk__commit_rule)) +
             128);
    tsk__cuda_enter(b);
    result = b->api.cuStreamCreate(&s->stream, CU_STREAM_NON_BLOCKING);
    if (result == CUDA_SUCCESS) result = tsk__cuda_stream_pinned(s);
    size = tsk__cuda_stream_layout(s, 0);
    if (result == CUDA_SUCCESS)
        result = size > SIZE_MAX ? CUDA_ERROR_OUT_OF_MEMORY : b->api.cuMemAlloc_v2(&s->device.memory, (size_t)size);
    if (result == CUDA_SUCCESS) {
        tsk__cuda_stream_layout(s, s->device.memory);
        result = tsk__cuda_encode_inputs(s);
        if (result == CUDA_SUCCESS) result = b->api.cuMemsetD8Async(s->device.memory, 0, (size_t)size, s->stream);
    }
    status = result == CUDA_ERROR_OUT_OF_MEMORY ? tsk__error_memory(error, "a pass on the CUDA device", size)
                                                : tsk__cuda_fail(&b->api, error, result, "a stream");
    if (status == TSK_OK) status = tsk__cuda_stream_cublas(s, error);
    tsk__cuda_leave(b);
    s->base.x = tsk__cuda_pointer(s->device.full_x);
    if (status != TSK_OK) tsk__cuda_backend_stream_destroy(&s->base);
    else *out = &s->base;
    return status;
}

/* ---- rows */

/* Runs of rows of one request with equally much visible to them, cut into tiles of up to `rows`; says the longest
   tile. */
static int32_t tsk__cuda_cut_tiles(tsk__cuda_stream *s, int32_t rows) {
    int32_t first, count, longest = 0;
    s->pass.n_tiles = 0;
    for (first = 0; first < s->pass.n; first += count) {
        tsk__cuda_tile *tile = &s->pinned.tiles[s->pass.n_tiles++];
        const tsk__cuda_row *row = &s->pinned.rows[first];
        for (count = 1; first + count < s->pass.n && count < rows && row[count].request == row->request &&
                        row[count].visible == row->visible;)
            count++;
        tile->first = first, tile->count = count, tile->request = row->request, tile->visible = row->visible;
        if (count > longest) longest = count;
    }
    return longest;
}

/* Chooses attention's tiles. If there are too few heads and tiles to fill the multiprocessors, tiles are small and
   their keys are split. If they just suffice, tiles are small and keys whole, with more loads in flight.
   Otherwise tiles are large. */
static void tsk__cuda_make_tiles(tsk__cuda_stream *s) {
    const tsk__cuda_backend *b = s->backend;
    const int32_t heads = b->base.config->n_heads, at_once = 2 * b->n_multiprocessors;
    int32_t i, n, last;
    s->pass.is_dirty = 1;
    s->pass.attention = tsk__cuda_cut_tiles(s, 64) <= 32 ? TSK__CUDA_ATTENTION_SMALL : TSK__CUDA_ATTENTION_MEDIUM;
    if (s->pass.n_tiles * tsk__cuda_attentions[s->pass.attention].rows <= TSK__CUDA_SPLIT_ROWS &&
        4 * s->pass.n_tiles * heads < 3 * b->n_multiprocessors)
        return;
    if (s->pass.attention == TSK__CUDA_ATTENTION_SMALL && s->pass.n_tiles * heads <= b->n_multiprocessors &&
        TSK__CUDA_FEW_SHARED <= b->shared_limit) {
        s->pass.attention = TSK__CUDA_ATTENTION_FEW;
        return;
    }
    s->pass.attention = TSK__CUDA_ATTENTION_LARGE;
    tsk__cuda_cut_tiles(s, 128);
    /* Whole tiles among the last, if these leave more than half of the multiprocessors idle, are halved: no result
       changes, as both halves have more than 32 rows (see attention_large). */
    n = s->pass.n_tiles;
    last = (n * heads % at_once + heads - 1) / heads;
    for (i = 2 * last * heads <= at_once ? n - last : n; i < n; i++)
        if (s->pinned.tiles[i].count > 96) {
            tsk__cuda_tile *half = &s->pinned.tiles[s->pass.n_tiles++];
            *half = s->pinned.tiles[i];
            half->first += 64, half->count -= 64;
            s->pinned.tiles[i].count = 64;
        }
}

static void tsk__cuda_backend_begin(tsk__stream *stream, const tsk__rows *rows) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    int32_t i;
    tsk__cuda_enter(s->backend);
    tsk__cuda_wait_fetched(s);
    tsk__cuda_leave(s->backend);
    s->pass.n = s->pass.all_n = rows->n;
    s->pass.n_requests = rows->n_requests;
    s->pass.compacted = 0;
    s->pass.normed_for = 0;
    s->base.x = tsk__cuda_pointer(s->device.full_x);
    for (i = 0; i < rows->n; i++) {
        tsk__cuda_row *row = &s->pinned.rows[i];
        row->token = rows->tokens[i];
        row->position = rows->positions[i];
        row->request = rows->requests[i];
        row->slot = rows->slots ? rows->slots[i] : -1;
        row->active = 1;
        row->number = i;
        row->flags = rows->flags ? rows->flags[i] : 0;
        row->visible = rows->visible ? rows->visible[i] : rows->caches[rows->requests[i]].length;
    }
    for (i = 0; i < rows->n_requests; i++) {
        const tsk__kv *kv = &rows->caches[i];
        tsk__cuda_cache *cache = &s->pinned.caches[i];
        cache->k = tsk__cuda_address(kv->k);
        cache->v = tsk__cuda_address(kv->v);
        cache->states = tsk__cuda_address(kv->states);
        cache->outputs = tsk__cuda_address(kv->outputs);
        cache->tokens = tsk__cuda_address(kv->tokens);
        cache->predictions = tsk__cuda_address(kv->predictions);
        cache->capacity = kv->capacity;
        cache->n_slots = kv->n_slots;
        cache->n_states = kv->n_states;
        cache->first_written = INT32_MAX;
        cache->last_written = -1;
        cache->skip_threshold = kv->skip_threshold;
        cache->skip_outlier = kv->skip_outlier;
    }
    for (i = 0; i < rows->n; i++) {
        tsk__cuda_cache *cache = &s->pinned.caches[rows->requests[i]];
        if (rows->positions[i] < cache->first_written) cache->first_written = rows->positions[i];
        if (rows->positions[i] > cache->last_written) cache->last_written = rows->positions[i];
    }
    tsk__cuda_make_tiles(s);
}

static void tsk__cuda_backend_mask(tsk__stream *stream, const int32_t *active) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    int32_t i;
    tsk__cuda_enter(s->backend);
    tsk__cuda_wait_fetched(s);
    tsk__cuda_leave(s->backend);
    for (i = 0; i < s->pass.n; i++) s->pinned.rows[i].active = active ? active[i] != 0 : 1;
    s->pass.is_dirty = 1;
}

#endif /* TOKENSKIP__HAS_CUDA */

#endif /* SECTION_GUARD_CUDA_STREAM */
