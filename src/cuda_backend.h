#ifndef SECTION_GUARD_CUDA_BACKEND
#define SECTION_GUARD_CUDA_BACKEND

#include "error.h"
#include "backend.h"
#include "cuda_driver.h"
#include "kernels/shared.h"

// >>cuda_backend ======================================================================================================
/* What the CUDA sections share: the kernels' names and arguments, the backend itself, launching. */

#ifdef TOKENSKIP__HAS_CUDA

/* ---- what the kernels read of the backend's structs lies as they take it to lie (kernels/shared.h) */

#define TSK__CUDA_SAME(type, member) \
    (offsetof(tsk__cuda_##type, member) == offsetof(tsk__##type, member) && \
     sizeof(((tsk__cuda_##type *)0)->member) == sizeof(((tsk__##type *)0)->member))
#define TSK__CUDA_CHECK_SAME(type, members) \
    TSK__CUDA_CHECK(same_##type, sizeof(tsk__cuda_##type) == sizeof(tsk__##type) && (members))
TSK__CUDA_CHECK_SAME(draw, TSK__CUDA_SAME(draw, temperature) && TSK__CUDA_SAME(draw, mask_token_id) &&
    TSK__CUDA_SAME(draw, seed) && TSK__CUDA_SAME(draw, position) && TSK__CUDA_SAME(draw, pass));
TSK__CUDA_CHECK_SAME(prediction, TSK__CUDA_SAME(prediction, id) && TSK__CUDA_SAME(prediction, confidence) &&
    TSK__CUDA_SAME(prediction, logit) && TSK__CUDA_SAME(prediction, log_sum_exp) &&
    TSK__CUDA_SAME(prediction, entropy));
TSK__CUDA_CHECK_SAME(commit_candidate, TSK__CUDA_SAME(commit_candidate, position) &&
                                           TSK__CUDA_SAME(commit_candidate, slot) &&
                                           TSK__CUDA_SAME(commit_candidate, head));
TSK__CUDA_CHECK_SAME(commit_rule, TSK__CUDA_SAME(commit_rule, request) && TSK__CUDA_SAME(commit_rule, first) &&
                                      TSK__CUDA_SAME(commit_rule, n) && TSK__CUDA_SAME(commit_rule, commits) &&
                                      TSK__CUDA_SAME(commit_rule, rule.transfer) &&
                                      TSK__CUDA_SAME(commit_rule, rule.threshold) &&
                                      TSK__CUDA_SAME(commit_rule, rule.factor) &&
                                      TSK__CUDA_SAME(commit_rule, rule.frechet) &&
                                      TSK__CUDA_SAME(commit_rule, rule.entropy_bound) &&
                                      TSK__CUDA_SAME(commit_rule, rule.local_leap) &&
                                      TSK__CUDA_SAME(commit_rule, rule.local_radius) &&
                                      TSK__CUDA_SAME(commit_rule, rule.quota) &&
                                      TSK__CUDA_SAME(commit_rule, is_random) && TSK__CUDA_SAME(commit_rule, pass) &&
                                      TSK__CUDA_SAME(commit_rule, seed));
TSK__CUDA_CHECK(transfers, TSK__CUDA_TRANSFER_SCHEDULE == (int)TSK_TRANSFER_SCHEDULE &&
                               TSK__CUDA_TRANSFER_THRESHOLD == (int)TSK_TRANSFER_THRESHOLD &&
                               TSK__CUDA_TRANSFER_FACTOR == (int)TSK_TRANSFER_FACTOR &&
                               TSK__CUDA_TRANSFER_FRECHET == (int)TSK_TRANSFER_FRECHET &&
                               TSK__CUDA_TRANSFER_ENTROPY == (int)TSK_TRANSFER_ENTROPY &&
                               TSK__CUDA_TRANSFER_LEAP == (int)TSK_TRANSFER_LEAP);
TSK__CUDA_CHECK_SAME(choice, TSK__CUDA_SAME(choice, id) && TSK__CUDA_SAME(choice, confidence) &&
    TSK__CUDA_SAME(choice, entropy) && TSK__CUDA_SAME(choice, log_sum_exp) && TSK__CUDA_SAME(choice, is_committed));
TSK__CUDA_CHECK(row_flags,
                TSK__CUDA_ROW_MAY_SKIP == (int)TSK__ROW_MAY_SKIP && TSK__CUDA_ROW_SKIPS == (int)TSK__ROW_SKIPS &&
                    TSK__CUDA_ROW_REMEMBER == (int)TSK__ROW_REMEMBER && TSK__CUDA_ROW_IF_RAN == (int)TSK__ROW_IF_RAN &&
                    TSK__CUDA_ROW_OUTPUT == (int)TSK__ROW_OUTPUT);

#define TSK__CUDA_SPLIT_ROWS 256      /* attention's keys are split while tiles make up no more rows than this */
#define TSK__CUDA_HEAD_ROWS 1024      /* rows that go through the head together, beyond the fused maps' */
#define TSK__CUDA_HEAD_SLICE 8192     /* ids whose logits lie in memory at once */
#define TSK__CUDA_LOGITS_ROWS 32      /* rows whose whole logits lie in memory at once, where they are asked for */
#define TSK__CUDA_WORKSPACE \
    ((uint64_t)32 << 20) /* cuBLAS's; it wants as much on Hopper, and none of its own under capture */

/* X(name, kinds): T: name_f32 or name_bf16 by the activation type; -: one for all, or bf16 only; W: likewise, on sm_90
   alone. The order is that of the enumeration below. */
#define TSK__CUDA_KERNELS(X) \
    X(pass_begin, '-') \
    X(pass_signal, '-') X(slide, '-') X(embed, 'T') X(pre_norm, '-') X(norm, 'T') X(norm_heads, 'T') \
        X(rope_cache, 'T') X(silu, 'T') \
        X(residual, 'T') X(attend, 'T') X(compare, 'T') X(decide, '-') X(keep, 'T') X(select_tokens, '-') \
            X(move_rows, 'T') X(convert, 'T') X(randomise, 'T') X(fill, 'T') X(exact_f32, '-') X(head_tiles, '-') \
                X(head_finish, '-') X(read_stream, '-') X(linear_qkv_32, '-') X(linear_qkv_64, '-') \
                    X(linear_out_32, '-') X(linear_out_64, '-') X(linear_gate_up_32, '-') X(linear_gate_up_64, '-') \
                        X(linear_head_32, '-') X(linear_head_64, '-') X(wide_qkv, 'W') X(wide_out, 'W') \
                            X(wide_gate_up, 'W') X(wide_head, 'W') X(attention_few_64, '-') X(attention_few_128, '-') \
                                X(attention_small_64, '-') X(attention_small_128, '-') X(attention_medium_64, '-') \
                                    X(attention_medium_128, '-') X(attention_large_64, '-') \
                                        X(attention_large_128, '-')

typedef enum tsk__cuda_kernel {
#define TSK__CUDA_KERNEL_ENUM(name, kind) TSK__CUDA_##name,
    TSK__CUDA_KERNELS(TSK__CUDA_KERNEL_ENUM)
#undef TSK__CUDA_KERNEL_ENUM
    TSK__CUDA_KERNEL_COUNT
} tsk__cuda_kernel;

/* The bf16 attention kernels (see kernels/attention.cu): for tiles of up to so many rows, keys split so many ways,
   bytes of shared memory for an element of a head. `kernel` is the one for head_dim 64; 128's follows it. */
typedef enum tsk__cuda_attention {
    TSK__CUDA_ATTENTION_FEW,
    TSK__CUDA_ATTENTION_SMALL,
    TSK__CUDA_ATTENTION_MEDIUM,
    TSK__CUDA_ATTENTION_LARGE
} tsk__cuda_attention;
static const struct { int kernel; int32_t rows; uint32_t splits, threads, bytes; } tsk__cuda_attentions[] = {
    {TSK__CUDA_attention_few_64, 32, 1, TSK__CUDA_THREADS_attention_few, 1024},
    {TSK__CUDA_attention_small_64, 32, TSK__CUDA_ATTENTION_SPLITS, TSK__CUDA_THREADS_attention_small, 768},
    {TSK__CUDA_attention_medium_64, 64, TSK__CUDA_ATTENTION_SPLITS, TSK__CUDA_THREADS_attention_medium, 768},
    {TSK__CUDA_attention_large_64, 128, 1, TSK__CUDA_THREADS_attention_large, 768},
};
#define TSK__CUDA_FEW_SHARED \
    (128 * 1024) /* attention_few's for the larger head_dim: not every GPU has it for a block */

/* ---- the backend */

/* The linear maps that have kernels of their own for few rows, and how a map's work is cut for those (see
   kernels/linear.cu). */
typedef enum tsk__cuda_map {
    TSK__CUDA_MAP_QKV,
    TSK__CUDA_MAP_OUT,
    TSK__CUDA_MAP_GATE_UP,
    TSK__CUDA_MAP_DOWN,
    TSK__CUDA_MAP_HEAD,
    TSK__CUDA_MAPS
} tsk__cuda_map;
typedef struct tsk__cuda_plan {
    int32_t n, k, pieces, groups, blocks;
    int32_t split;                 /* blocks that share a tile's columns */
    int32_t stages[2];             /* for up to 32 and up to 64 rows */
    int32_t shared[2];
    int32_t wide_stages, wide_shared, wide_blocks;
} tsk__cuda_plan;

typedef struct tsk__cuda_layer {
    tsk__cuda_tensor_map maps[TSK__CUDA_MAP_HEAD], wide_maps[TSK__CUDA_MAP_HEAD];
    CUdeviceptr q_norm, k_norm;    /* 0: the family norms neither */
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
    int norms_heads;                 /* q and k are normed by head */
    int has_few_rows;                /* shapes fit the fused kernels, */
    int has_wide;                  /* and those for more rows, which the device has */
    int has_flash;                 /* … and attention's */
    int32_t q_width, kv_width, qkv_width, gate_up_rows;
    tsk__cuda_plan plans[TSK__CUDA_MAPS];
    tsk__cuda_tensor_map head_map, head_wide_map;
    CUdeviceptr arena, frequencies, embedding, final_norm, head, head_bias;
    tsk__cuda_layer *layers;
} tsk__cuda_backend;

/* Whether the kernels for Hopper alone (kind W) are compiled: its matrix units' instructions are in no later GPU's. */
static int tsk__cuda_has_hopper_kernels(const tsk__cuda_backend *b) { return b->arch == 90; }

static tsk__cuda_backend *tsk__cuda_backend_of(tsk__backend *backend) { return (tsk__cuda_backend *)(void *)backend; }

static tsk_status tsk__cuda_fail(const tsk__cuda_api *api, tsk_error *error, CUresult result, const char *what) {
    if (result == CUDA_SUCCESS) return TSK_OK;
    return tsk__error_set(error, result == CUDA_ERROR_OUT_OF_MEMORY ? TSK_ERROR_MEMORY : TSK_ERROR_DEVICE, NULL,
                          TSK_NO_OFFSET, "CUDA, %s: %s", what, tsk__cuda_error_text(api, result));
}

/* Every call that touches the device stands between these: the host program's own current context is not disturbed. */
static void tsk__cuda_enter(tsk__cuda_backend *b) { b->api.cuCtxPushCurrent_v2(b->context); }
static void tsk__cuda_leave(tsk__cuda_backend *b) {
    CUcontext ignored;
    b->api.cuCtxPopCurrent_v2(&ignored);
}

/* `args` is the kernel's struct of arguments (see kernels/shared.h). */
static CUresult tsk__cuda_launch_on(tsk__cuda_backend *b, CUstream stream, tsk__cuda_kernel kernel, uint32_t gx,
                                    uint32_t gy, uint32_t gz, uint32_t block, uint32_t shared, int overlaps,
                                    const void *args) {
    void *parameters[1];
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
    parameters[0] = (void *)(uintptr_t)args;  /* which the driver only reads */
    config.attrs = &attribute;
    config.numAttrs = overlaps && b->arch >= 90 ? 1 : 0;
    return b->api.cuLaunchKernelEx(&config, b->kernels[kernel], parameters, NULL);
}

#endif /* TOKENSKIP__HAS_CUDA */

#endif /* SECTION_GUARD_CUDA_BACKEND */
