#ifndef SECTION_GUARD_CUDA_BACKEND
#define SECTION_GUARD_CUDA_BACKEND

#include "error.h"
#include "backend.h"
#include "cuda_driver.h"

// >>cuda_backend ======================================================================================================
/* What the CUDA sections share: the kernels' names and arguments, the backend itself, launching. */

#ifdef TOKENSKIP__HAS_CUDA

/* ---- what the kernels take (see kernels.cu: the structs are the same, addresses as 64-bit numbers) */

typedef struct tsk__cuda_row { int32_t token, position, request, slot, active, number, flags, pad; } tsk__cuda_row;
typedef struct tsk__cuda_cache {
    CUdeviceptr k, v, states, outputs, tokens, predictions;
    int32_t length, capacity, n_slots, n_states, first_written, last_written;
    float skip_threshold, skip_outlier;
} tsk__cuda_cache;
typedef struct tsk__cuda_tile { int32_t first, count, request, pad; } tsk__cuda_tile;
typedef struct tsk__cuda_table { CUdeviceptr rows, caches, tiles, rope; } tsk__cuda_table;
typedef struct tsk__cuda_tensor_map { uint64_t words[16]; } tsk__cuda_tensor_map;
typedef struct tsk__cuda_linear_args {
    tsk__cuda_tensor_map weights_map, input_map;
    CUdeviceptr weights, bias, input, squares_in;
    float eps;
    int32_t m, n, k, pieces, groups, stages, pad;
    tsk__cuda_table table;
    CUdeviceptr out, norm, normed, squares_out;
    int32_t n_heads, n_kv_heads, head_dim, mlp;
    uint64_t layer_offset;
    CUdeviceptr taps[4], draws, heads, logits;
    uint64_t end_pad[6];           /* the kernels' struct is aligned to 64 bytes */
} tsk__cuda_linear_args;
typedef struct tsk__cuda_attention_args {
    CUdeviceptr q, out;
    tsk__cuda_table table;
    CUdeviceptr parts, counters;
    float scale;
    int32_t n_heads, n_kv_heads;
    uint64_t layer_offset;
} tsk__cuda_attention_args;
typedef struct tsk__cuda_rope_args {
    tsk__cuda_table table;
    int32_t n_heads, n_kv_heads, head_dim;
    uint64_t layer_offset;
} tsk__cuda_rope_args;
typedef struct tsk__cuda_placing { uint64_t columns, first_row; int32_t interleave, half_head; } tsk__cuda_placing;

#define TSK__CUDA_HEAD_ENTRY 24       /* sizeof(struct head_entry) */
#define TSK__CUDA_SKINNY 64           /* rows up to which the skinny linear maps are used, and sections recorded */
#define TSK__CUDA_WIDE 128            /* rows up to which the wide ones are, where there are any */
#define TSK__CUDA_CLUSTER 4           /* blocks that make one of their clusters */
#define TSK__CUDA_SPLIT_ROWS 256      /* attention's keys are split while tiles make up no more rows than this */
#define TSK__CUDA_LINEAR_WARPS 12     /* the next three as in kernels.cu: warps that multiply, */
#define TSK__CUDA_LINEAR_GROUPS 6     /* in so many groups at the most, */
#define TSK__CUDA_LINEAR_CHUNK 64     /* so many columns at a time */
#define TSK__CUDA_HEAD_ROWS 1024      /* rows that go through the head together, beyond the fused maps' */
#define TSK__CUDA_HEAD_SLICE 8192     /* ids whose logits lie in memory at once */
#define TSK__CUDA_HEAD_TILE 1024      /* ids of a tile of head_tiles */
#define TSK__CUDA_LOGITS_ROWS 32      /* rows whose whole logits lie in memory at once, where they are asked for */
#define TSK__CUDA_WORKSPACE ((uint64_t)32 << 20) /* cuBLAS's; it wants as much on Hopper, and none of its own under capture */

/* X(name, kinds): T: name_f32 or name_bf16 by the activation type; -: one for all, or bf16 only; W: likewise, on sm_90 alone.
   The order is that of the enumeration below. */
#define TSK__CUDA_KERNELS(X) \
    X(pass_begin, '-') X(pass_signal, '-') X(slide, '-') X(embed, 'T') X(pre_norm, '-') X(norm, 'T') X(rope_cache, 'T') X(silu, 'T') X(residual, 'T') \
    X(attend, 'T') X(compare, 'T') X(decide, '-') X(keep, 'T') X(select_tokens, '-') X(move_rows, 'T') X(convert, 'T') X(randomise, 'T') X(fill, 'T') \
    X(exact_f32, '-') X(head_tiles, '-') X(head_finish, '-') X(read_stream, '-') \
    X(linear_qkv_32, '-') X(linear_qkv_64, '-') X(linear_out_32, '-') X(linear_out_64, '-') X(linear_gate_up_32, '-') X(linear_gate_up_64, '-') \
    X(linear_head_32, '-') X(linear_head_64, '-') X(wide_qkv, 'W') X(wide_out, 'W') X(wide_gate_up, 'W') X(wide_head, 'W') \
    X(attention_few_64, '-') X(attention_few_128, '-') X(attention_small_64, '-') X(attention_small_128, '-') X(attention_medium_64, '-') X(attention_medium_128, '-') X(attention_large_64, '-') X(attention_large_128, '-')

typedef enum tsk__cuda_kernel {
#define TSK__CUDA_KERNEL_ENUM(name, kind) TSK__CUDA_##name,
    TSK__CUDA_KERNELS(TSK__CUDA_KERNEL_ENUM)
#undef TSK__CUDA_KERNEL_ENUM
    TSK__CUDA_KERNEL_COUNT
} tsk__cuda_kernel;

/* The bf16 attention kernels (see kernels.cu): for tiles of up to so many rows, keys split so many ways, bytes of shared memory
   for an element of a head. `kernel` is the one for head_dim 64; 128's follows it. */
typedef enum tsk__cuda_attention { TSK__CUDA_ATTENTION_FEW, TSK__CUDA_ATTENTION_SMALL, TSK__CUDA_ATTENTION_MEDIUM, TSK__CUDA_ATTENTION_LARGE } tsk__cuda_attention;
static const struct { int kernel; int32_t rows; uint32_t splits, threads, bytes; } tsk__cuda_attentions[] = {
    {TSK__CUDA_attention_few_64, 32, 1, 128, 1024}, {TSK__CUDA_attention_small_64, 32, 4, 256, 768}, {TSK__CUDA_attention_medium_64, 64, 4, 256, 768}, {TSK__CUDA_attention_large_64, 128, 1, 128, 768}
};
#define TSK__CUDA_FEW_SHARED (128 * 1024)  /* attention_few's for the larger head_dim: not every GPU has it for a block */

/* ---- the backend */

/* The linear maps that have kernels of their own for few rows, and how a map's work is cut for those (see kernels.cu). */
typedef enum tsk__cuda_map { TSK__CUDA_MAP_QKV, TSK__CUDA_MAP_OUT, TSK__CUDA_MAP_GATE_UP, TSK__CUDA_MAP_DOWN, TSK__CUDA_MAP_HEAD, TSK__CUDA_MAPS } tsk__cuda_map;
typedef struct tsk__cuda_plan {
    int32_t n, k, pieces, groups, blocks;
    int32_t stages[2];             /* for up to 32 and up to 64 rows */
    int32_t shared[2];
    int32_t wide_stages, wide_shared, wide_blocks;
} tsk__cuda_plan;

typedef struct tsk__cuda_layer {
    tsk__cuda_tensor_map maps[TSK__CUDA_MAP_HEAD], wide_maps[TSK__CUDA_MAP_HEAD];
    CUdeviceptr attn_norm, qkv, qkv_bias, attn_out, attn_out_bias, ff_norm, gate_up, gate_up_bias, down, down_bias;
} tsk__cuda_layer;

typedef struct tsk__cuda_backend {
    tsk__backend base;
    const tsk_allocator *allocator;
    tsk__cuda_api api;
    CUdevice device;
    CUcontext context;             /* the device's primary one, shared with the host program */
    CUmodule module;
    CUfunction kernels[TSK__CUDA_KERNEL_COUNT];
    char name[112];
    int arch, n_multiprocessors, shared_limit, driver_version;
    int is_f32;
    int has_skinny;                /* shapes fit the fused kernels, */
    int has_wide;                  /* and those for more rows, which the device has */
    int has_flash;                 /* … and attention's */
    int32_t q_width, kv_width, qkv_width, gate_up_rows;
    tsk__cuda_plan plans[TSK__CUDA_MAPS];
    tsk__cuda_tensor_map head_map, head_wide_map;
    CUdeviceptr arena, frequencies, embedding, final_norm, head, head_bias;
    tsk__cuda_layer *layers;
} tsk__cuda_backend;

static tsk__cuda_backend *tsk__cuda_backend_of(tsk__backend *backend) { return (tsk__cuda_backend *)(void *)backend; }

static tsk_status tsk__cuda_fail(const tsk__cuda_api *api, tsk_error *error, CUresult result, const char *what) {
    if (result == CUDA_SUCCESS) return TSK_OK;
    return tsk__error_set(error, result == CUDA_ERROR_OUT_OF_MEMORY ? TSK_ERROR_MEMORY : TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET, "CUDA, %s: %s", what,
                          tsk__cuda_error_text(api, result));
}

/* Every call that touches the device stands between these: the host program's own current context is not disturbed. */
static void tsk__cuda_enter(tsk__cuda_backend *b) { b->api.cuCtxPushCurrent_v2(b->context); }
static void tsk__cuda_leave(tsk__cuda_backend *b) {
    CUcontext ignored;
    b->api.cuCtxPopCurrent_v2(&ignored);
}

static CUresult tsk__cuda_launch_on(tsk__cuda_backend *b, CUstream stream, tsk__cuda_kernel kernel, uint32_t gx, uint32_t gy, uint32_t gz, uint32_t block, uint32_t shared,
                                    int overlaps, void **parameters) {
    CUlaunchConfig config;
    CUlaunchAttribute attribute;
    memset(&config, 0, sizeof config);
    memset(&attribute, 0, sizeof attribute);
    config.gridDimX = gx, config.gridDimY = gy, config.gridDimZ = gz;
    config.blockDimX = block, config.blockDimY = config.blockDimZ = 1;
    config.sharedMemBytes = shared;
    config.hStream = stream;
    attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
    config.attrs = &attribute;
    config.numAttrs = overlaps && b->arch >= 90 ? 1 : 0;
    return b->api.cuLaunchKernelEx(&config, b->kernels[kernel], parameters, NULL);
}

#endif /* TOKENSKIP__HAS_CUDA */

#endif /* SECTION_GUARD_CUDA_BACKEND */
