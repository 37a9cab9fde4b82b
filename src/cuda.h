#ifndef SECTION_GUARD_CUDA
#define SECTION_GUARD_CUDA

#include "error.h"
#include "memory.h"
#include "platform.h"
#include "safetensors.h"
#include "config.h"
#include "backend.h"
#include "cpu.h"

// >>cuda ==============================================================================================================
/* The second backend: NVIDIA GPUs from compute capability 8.0 up, through the driver API. The kernels (kernels.cu) are
   compiled by NVRTC for the GPU at hand and kept on disk. Weights lie in one arena on the device, laid out for the
   kernels: q, k and v rows in one matrix, 8 rows of a head's first half alternating with their partners in RoPE, and 8
   rows of gate with 8 of up. Ways through the layers:

       bf16, up to 64 rows    few fused kernels that read every weight once (linear_*), recorded as CUDA graphs
       bf16, up to 128 rows   on compute capability 9.0 the same with other kernels (wide_*), recorded when they come again
       bf16, more rows        cuBLAS for the matrix products, row-wise kernels between them
       f32                    as the last, with a matrix product of our own that adds in one order whatever the rows

   What varies from pass to pass (positions, cache addresses, which rows may be skipped) reaches the kernels through a
   table that the pass's first kernel fetches from pinned host memory, so that a recorded section stays good for the
   stream's life. Tokens and predictions stay on the device, which masks the rows that it decides to skip, in the table, and
   commits; the host is left a word for each row and each candidate, and learns that work is done by watching a pinned word.
   Where it needs no answer in a pass's middle (TokenSkip with masked tokens always running) all of the pass is launched at
   once. */

#ifndef TOKENSKIP_NO_CUDA
#define TOKENSKIP__HAS_CUDA

#ifdef __cplusplus
}  /* extern "C": the CUDA headers have templates */
#endif
#ifdef TOKENSKIP_CUDA_DLOPEN
#include <dlfcn.h>
#else
#if defined(__has_include)
#if !__has_include(<cuda.h>)
#error "cuda.h not found. Give its folder with -I (often /usr/local/cuda/include), or define TOKENSKIP_CUDA_DLOPEN to look for CUDA at run time, or TOKENSKIP_NO_CUDA to do without"
#endif
#endif
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#endif
#ifndef CUDA_NO_HALF
#define CUDA_NO_HALF  /* no types named `half` in the host program's C++ */
#define TSK__CUDA_NO_HALF
#endif
#include <cublas_v2.h>
#include <cuda.h>
#include <nvrtc.h>
#ifdef TSK__CUDA_NO_HALF
#undef CUDA_NO_HALF
#undef TSK__CUDA_NO_HALF
#endif
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif
#endif
#ifdef __cplusplus
extern "C" {
#endif

#include "kernels.cu.h"

/* ---- the three libraries' functions */

#ifdef TOKENSKIP_CUDA_DLOPEN
/* What is needed of their headers, which are not. */
typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;
typedef int CUdevice_attribute;
typedef int CUfunction_attribute;
typedef int CUstreamCaptureMode;
typedef struct CUtensorMap { uint64_t opaque[16]; } CUtensorMap;
typedef int CUtensorMapDataType;
typedef int CUtensorMapInterleave;
typedef int CUtensorMapSwizzle;
typedef int CUtensorMapL2promotion;
typedef int CUtensorMapFloatOOBfill;
typedef uint32_t cuuint32_t;
typedef uint64_t cuuint64_t;
typedef struct CUlaunchAttribute {
    int id;
    char pad[4];
    union {
        char pad[64];
        struct { unsigned int x, y, z; } clusterDim;
        int programmaticStreamSerializationAllowed;
    } value;
} CUlaunchAttribute;
typedef struct CUlaunchConfig {
    unsigned int gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes;
    CUstream hStream;
    CUlaunchAttribute *attrs;
    unsigned int numAttrs;
} CUlaunchConfig;
typedef int nvrtcResult;
typedef struct _nvrtcProgram *nvrtcProgram;
typedef int cublasStatus_t;
typedef struct cublasContext *cublasHandle_t;
typedef int cublasOperation_t;
typedef int cudaDataType;
typedef int cublasComputeType_t;
typedef int cublasGemmAlgo_t;
enum {
    CUDA_SUCCESS = 0, CUDA_ERROR_OUT_OF_MEMORY = 2, CUDA_ERROR_NOT_READY = 600,
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8, CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9,
    CU_STREAM_NON_BLOCKING = 1, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1, CU_EVENT_DISABLE_TIMING = 2,
    CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION = 4, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6,
    CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9, CU_TENSOR_MAP_INTERLEAVE_NONE = 0, CU_TENSOR_MAP_SWIZZLE_128B = 3, CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3,
    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0,
    NVRTC_SUCCESS = 0, CUBLAS_STATUS_SUCCESS = 0, CUBLAS_OP_N = 0, CUBLAS_OP_T = 1, CUDA_R_32F = 0, CUDA_R_16BF = 14, CUBLAS_COMPUTE_32F = 68, CUBLAS_GEMM_DEFAULT = -1
};
#endif

/* X(result type, name in the library, parameters). The _v2 names are what the headers' macros mean. */
#define TSK__CUDA_DRIVER(X) \
    X(CUresult, cuInit, (unsigned int)) \
    X(CUresult, cuDriverGetVersion, (int *)) \
    X(CUresult, cuGetErrorString, (CUresult, const char **)) \
    X(CUresult, cuDeviceGetCount, (int *)) \
    X(CUresult, cuDeviceGet, (CUdevice *, int)) \
    X(CUresult, cuDeviceGetName, (char *, int, CUdevice)) \
    X(CUresult, cuDeviceGetAttribute, (int *, CUdevice_attribute, CUdevice)) \
    X(CUresult, cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice)) \
    X(CUresult, cuDevicePrimaryCtxRelease_v2, (CUdevice)) \
    X(CUresult, cuCtxPushCurrent_v2, (CUcontext)) \
    X(CUresult, cuCtxPopCurrent_v2, (CUcontext *)) \
    X(CUresult, cuMemGetInfo_v2, (size_t *, size_t *)) \
    X(CUresult, cuMemAlloc_v2, (CUdeviceptr *, size_t)) \
    X(CUresult, cuMemFree_v2, (CUdeviceptr)) \
    X(CUresult, cuMemHostAlloc, (void **, size_t, unsigned int)) \
    X(CUresult, cuMemFreeHost, (void *)) \
    X(CUresult, cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void *, size_t, CUstream)) \
    X(CUresult, cuMemcpyDtoHAsync_v2, (void *, CUdeviceptr, size_t, CUstream)) \
    X(CUresult, cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream)) \
    X(CUresult, cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream)) \
    X(CUresult, cuModuleLoadData, (CUmodule *, const void *)) \
    X(CUresult, cuModuleUnload, (CUmodule)) \
    X(CUresult, cuModuleGetFunction, (CUfunction *, CUmodule, const char *)) \
    X(CUresult, cuFuncSetAttribute, (CUfunction, CUfunction_attribute, int)) \
    X(CUresult, cuTensorMapEncodeTiled, (CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, \
                                         CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill)) \
    X(CUresult, cuOccupancyMaxActiveClusters, (int *, CUfunction, const CUlaunchConfig *)) \
    X(CUresult, cuLaunchKernelEx, (const CUlaunchConfig *, CUfunction, void **, void **)) \
    X(CUresult, cuStreamCreate, (CUstream *, unsigned int)) \
    X(CUresult, cuStreamDestroy_v2, (CUstream)) \
    X(CUresult, cuStreamSynchronize, (CUstream)) \
    X(CUresult, cuStreamQuery, (CUstream)) \
    X(CUresult, cuStreamBeginCapture_v2, (CUstream, CUstreamCaptureMode)) \
    X(CUresult, cuStreamEndCapture, (CUstream, CUgraph *)) \
    X(CUresult, cuGraphInstantiateWithFlags, (CUgraphExec *, CUgraph, unsigned long long)) \
    X(CUresult, cuGraphLaunch, (CUgraphExec, CUstream)) \
    X(CUresult, cuGraphExecDestroy, (CUgraphExec)) \
    X(CUresult, cuGraphDestroy, (CUgraph)) \
    X(CUresult, cuEventCreate, (CUevent *, unsigned int)) \
    X(CUresult, cuEventRecord, (CUevent, CUstream)) \
    X(CUresult, cuEventSynchronize, (CUevent)) \
    X(CUresult, cuEventDestroy_v2, (CUevent))
#define TSK__CUDA_NVRTC(X) \
    X(nvrtcResult, nvrtcCreateProgram, (nvrtcProgram *, const char *, const char *, int, const char *const *, const char *const *)) \
    X(nvrtcResult, nvrtcCompileProgram, (nvrtcProgram, int, const char *const *)) \
    X(nvrtcResult, nvrtcGetCUBINSize, (nvrtcProgram, size_t *)) \
    X(nvrtcResult, nvrtcGetCUBIN, (nvrtcProgram, char *)) \
    X(nvrtcResult, nvrtcGetProgramLogSize, (nvrtcProgram, size_t *)) \
    X(nvrtcResult, nvrtcGetProgramLog, (nvrtcProgram, char *)) \
    X(nvrtcResult, nvrtcDestroyProgram, (nvrtcProgram *))
#define TSK__CUDA_CUBLAS(X) \
    X(cublasStatus_t, cublasCreate_v2, (cublasHandle_t *)) \
    X(cublasStatus_t, cublasDestroy_v2, (cublasHandle_t)) \
    X(cublasStatus_t, cublasSetStream_v2, (cublasHandle_t, CUstream)) \
    X(cublasStatus_t, cublasSetWorkspace_v2, (cublasHandle_t, void *, size_t)) \
    X(cublasStatus_t, cublasGemmEx, (cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void *, const void *, cudaDataType, int, \
                                     const void *, cudaDataType, int, const void *, void *, cudaDataType, int, cublasComputeType_t, cublasGemmAlgo_t))

typedef struct tsk__cuda_api {
#define TSK__CUDA_FIELD(type, name, parameters) type (*name) parameters;
    TSK__CUDA_DRIVER(TSK__CUDA_FIELD)
    TSK__CUDA_NVRTC(TSK__CUDA_FIELD)
    TSK__CUDA_CUBLAS(TSK__CUDA_FIELD)
#undef TSK__CUDA_FIELD
} tsk__cuda_api;

typedef enum tsk__cuda_library { TSK__CUDA_LIBRARY_DRIVER, TSK__CUDA_LIBRARY_NVRTC, TSK__CUDA_LIBRARY_CUBLAS } tsk__cuda_library;

/* Fills a library's part of `api`. 0 with `why` when it is not there. */
#ifdef TOKENSKIP_CUDA_DLOPEN
/* ISO C has no cast from dlsym's object pointer to a function's. */
static int tsk__cuda_symbol(void *library, const char *name, void *function, char *why, size_t why_size) {
    void *address = dlsym(library, name);
    memcpy(function, &address, sizeof address);
    if (!address) snprintf(why, why_size, "%s is missing from its library", name);
    return address != NULL;
}

static int tsk__cuda_load(tsk__cuda_api *api, tsk__cuda_library which, char *why, size_t why_size) {
    static const char *const names[3][5] = {{"libcuda.so.1", "libcuda.so", NULL, NULL, NULL},
                                            {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so", "/usr/local/cuda/lib64/libnvrtc.so", NULL},
                                            {"libcublas.so.13", "libcublas.so.12", "libcublas.so", "/usr/local/cuda/lib64/libcublas.so", NULL}};
    void *library = NULL;
    int i;
    /* Never unloaded: CUDA's libraries do not like it, and others in this process may use them. */
    for (i = 0; !library && names[which][i]; i++) library = dlopen(names[which][i], RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(why, why_size, "%s not found", names[which][0]);
        return 0;
    }
#define TSK__CUDA_FIND(type, name, parameters) \
    if (!tsk__cuda_symbol(library, #name, &api->name, why, why_size)) return 0;
    if (which == TSK__CUDA_LIBRARY_DRIVER) { TSK__CUDA_DRIVER(TSK__CUDA_FIND) }
    if (which == TSK__CUDA_LIBRARY_NVRTC) { TSK__CUDA_NVRTC(TSK__CUDA_FIND) }
    if (which == TSK__CUDA_LIBRARY_CUBLAS) { TSK__CUDA_CUBLAS(TSK__CUDA_FIND) }
#undef TSK__CUDA_FIND
    return 1;
}
#else
static int tsk__cuda_load(tsk__cuda_api *api, tsk__cuda_library which, char *why, size_t why_size) {
    (void)which;
    (void)why;
    (void)why_size;
#define TSK__CUDA_LINKED(type, name, parameters) api->name = name;
    TSK__CUDA_DRIVER(TSK__CUDA_LINKED)
    TSK__CUDA_NVRTC(TSK__CUDA_LINKED)
    TSK__CUDA_CUBLAS(TSK__CUDA_LINKED)
#undef TSK__CUDA_LINKED
    return 1;
}
#endif

static const char *tsk__cuda_error_text(const tsk__cuda_api *api, CUresult result) {
    const char *text = NULL;
    if (api->cuGetErrorString) api->cuGetErrorString(result, &text);
    return text ? text : "unknown CUDA error";
}

/* 1 when device `index` can be used; else 0 with the reason. */
static int tsk__cuda_available(int index, char *why, size_t why_size) {
    tsk__cuda_api api;
    CUdevice device;
    CUresult result;
    int count = 0, major = 0;
    memset(&api, 0, sizeof api);
    if (!tsk__cuda_load(&api, TSK__CUDA_LIBRARY_DRIVER, why, why_size)) return 0;
    result = api.cuInit(0);
    if (result == CUDA_SUCCESS) result = api.cuDeviceGetCount(&count);
    if (result != CUDA_SUCCESS) {
        snprintf(why, why_size, "CUDA says: %s", tsk__cuda_error_text(&api, result));
        return 0;
    }
    if (index < 0 || index >= count) {
        snprintf(why, why_size, "there is no CUDA device %d (%d found)", index, count);
        return 0;
    }
    result = api.cuDeviceGet(&device, index);
    if (result == CUDA_SUCCESS) result = api.cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
    if (result != CUDA_SUCCESS) {
        snprintf(why, why_size, "CUDA says of device %d: %s", index, tsk__cuda_error_text(&api, result));
        return 0;
    }
    if (major < 8) {
        snprintf(why, why_size, "CUDA device %d has compute capability %d.x, 8.0 is needed", index, major);
        return 0;
    }
    return 1;
}

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

/* ---- kernels: compiled once a machine */

/* A cache file: this, then the cubin. */
typedef struct tsk__cuda_cubin_head { char magic[8]; uint64_t size, checksum; } tsk__cuda_cubin_head;
static const char tsk__cuda_cubin_magic[8] = {'t', 's', 'k', 'c', 'u', 'b', 'n', '1'};

static uint64_t tsk__cuda_hash(uint64_t hash, const void *bytes, size_t size) {
    const unsigned char *p = (const unsigned char *)bytes;
    size_t i;
    for (i = 0; i < size; i++) hash = (hash ^ p[i]) * 0x100000001b3u;  /* FNV-1a */
    return hash;
}
#define TSK__CUDA_HASH_START 0xcbf29ce484222325u

static tsk_status tsk__cuda_source(tsk_text *out) {
    size_t i;
    for (i = 0; i < sizeof tsk__kernels_source / sizeof *tsk__kernels_source; i++)
        if (tsk_text_append(out, tsk__kernels_source[i], strlen(tsk__kernels_source[i])) != TSK_OK) return TSK_ERROR_MEMORY;
    return TSK_OK;
}

/* Whether the kernels for Hopper alone (kind W) are compiled: its matrix units' instructions are in no later GPU's. */
static int tsk__cuda_has_hopper_kernels(const tsk__cuda_backend *b) { return b->arch == 90; }

/* NVRTC's options; the architecture is the first. */
static void tsk__cuda_options(const tsk__cuda_backend *b, char arch[64], const char *options[2]) {
    snprintf(arch, 64, "--gpu-architecture=sm_%d%s", b->arch, tsk__cuda_has_hopper_kernels(b) ? "a" : "");
    options[0] = arch;
    options[1] = "--std=c++17";
}

/* Compiles `source`; the compiler's whole log goes to the error. */
static tsk_status tsk__cuda_compile(tsk__cuda_backend *b, const char *source, const char *const *options, int n_options, tsk_text *cubin, tsk_error *error) {
    const tsk__cuda_api *api = &b->api;
    nvrtcProgram program;
    nvrtcResult result;
    char why[160], *room;
    size_t size = 0;
    tsk_status status = TSK_OK;
    if (!tsk__cuda_load(&b->api, TSK__CUDA_LIBRARY_NVRTC, why, sizeof why))
        return tsk__error_set(error, TSK_ERROR_COMPILE, NULL, TSK_NO_OFFSET, "the CUDA kernels are not compiled yet, and cannot be: %s", why);
    if (api->nvrtcCreateProgram(&program, source, "kernels.cu", 0, NULL, NULL) != NVRTC_SUCCESS)
        return tsk__error_set(error, TSK_ERROR_COMPILE, NULL, TSK_NO_OFFSET, "NVRTC cannot start");
    result = api->nvrtcCompileProgram(program, n_options, options);
    if (result != NVRTC_SUCCESS) {
        status = tsk__error_set(error, TSK_ERROR_COMPILE, "kernels.cu", TSK_NO_OFFSET, "NVRTC cannot compile kernels.cu with %s (error %d): see the log", options[0], (int)result);
        if (error && api->nvrtcGetProgramLogSize(program, &size) == NVRTC_SUCCESS && (error->log = (char *)tsk__memory_new(NULL, size + 1, 1)) != NULL) {
            error->log[size] = 0;
            api->nvrtcGetProgramLog(program, error->log);
        }
    } else if (api->nvrtcGetCUBINSize(program, &size) != NVRTC_SUCCESS || size == 0)
        status = tsk__error_set(error, TSK_ERROR_COMPILE, NULL, TSK_NO_OFFSET, "NVRTC made no machine code for %s", options[0]);
    else if ((room = (char *)tsk__memory_new_zeroed(cubin->allocator, size, 1)) == NULL) status = tsk__error_memory(error, "compiled kernels", size);
    else {
        if (api->nvrtcGetCUBIN(program, room) != NVRTC_SUCCESS) status = tsk__error_set(error, TSK_ERROR_COMPILE, NULL, TSK_NO_OFFSET, "NVRTC lost its result");
        else if (tsk_text_append(cubin, room, size) != TSK_OK) status = tsk__error_memory(error, "compiled kernels", size);
        tsk__memory_delete(cubin->allocator, room);
    }
    api->nvrtcDestroyProgram(&program);
    return status;
}

/* The cache folder, made where missing, into out; 0: there is none. */
static int tsk__cuda_cache_dir(const char *wanted, char *out, size_t size) {
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int length;
    char *slash;
    if (wanted) length = snprintf(out, size, "%s", wanted);
    else if (xdg && xdg[0] == '/') length = snprintf(out, size, "%s/tokenskip", xdg);
    else if (home && home[0] == '/') length = snprintf(out, size, "%s/.cache/tokenskip", home);
    else return 0;
    if (length <= 0 || (size_t)length >= size) return 0;
    for (slash = strchr(out + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(out, 0700);  /* fails where it exists, which is well */
        *slash = '/';
    }
    return mkdir(out, 0700) == 0 || errno == EEXIST;
}

/* A cache file's cubin, or 0 for one that is not there, cut short or damaged. */
static int tsk__cuda_cache_read(const char *path, tsk_text *cubin) {
    tsk_text file;
    tsk__cuda_cubin_head head;
    int good = 0;
    memset(&file, 0, sizeof file);
    file.allocator = cubin->allocator;
    if (tsk_read_file(path, (size_t)1 << 28, NULL, &file, NULL) == TSK_OK && file.length >= sizeof head) {
        memcpy(&head, file.data, sizeof head);
        good = memcmp(head.magic, tsk__cuda_cubin_magic, sizeof head.magic) == 0 && head.size == file.length - sizeof head &&
               head.checksum == tsk__cuda_hash(TSK__CUDA_HASH_START, file.data + sizeof head, file.length - sizeof head) &&
               tsk_text_append(cubin, file.data + sizeof head, file.length - sizeof head) == TSK_OK;
    }
    tsk_text_free(&file);
    return good;
}

/* Written beside and renamed, so that another process sees a whole file or none. A cache that cannot be written is no
   error: the next start compiles again. */
static void tsk__cuda_cache_write(const char *path, const tsk_text *cubin) {
    char temporary[1200];
    tsk__cuda_cubin_head head;
    FILE *file;
    int good;
    memcpy(head.magic, tsk__cuda_cubin_magic, sizeof head.magic);
    head.size = cubin->length;
    head.checksum = tsk__cuda_hash(TSK__CUDA_HASH_START, cubin->data, cubin->length);
    snprintf(temporary, sizeof temporary, "%s.%ld.tmp", path, (long)getpid());
    file = fopen(temporary, "wb");
    if (!file) return;
    good = fwrite(&head, sizeof head, 1, file) == 1 && fwrite(cubin->data, 1, cubin->length, file) == cubin->length;
    good = fclose(file) == 0 && good;
    if (!good || rename(temporary, path) != 0) unlink(temporary);
}

static tsk_status tsk__cuda_cubin(tsk__cuda_backend *b, const tsk_model_options *o, tsk_text *cubin, tsk_error *error) {
    char arch[64], dir[1024], path[1100];
    const char *options[2];
    tsk_text source;
    uint64_t hash = TSK__CUDA_HASH_START;
    int i, has_path = 0;
    tsk_status status;
    memset(&source, 0, sizeof source);
    source.allocator = b->allocator;
    tsk__cuda_options(b, arch, options);
    status = tsk__cuda_source(&source);
    if (status == TSK_OK && !(o->kernel_cache_dir && !o->kernel_cache_dir[0]) && tsk__cuda_cache_dir(o->kernel_cache_dir, dir, sizeof dir)) {
        hash = tsk__cuda_hash(hash, source.data, source.length);
        for (i = 0; i < 2; i++) hash = tsk__cuda_hash(hash, options[i], strlen(options[i]));
        hash = tsk__cuda_hash(hash, &b->driver_version, sizeof b->driver_version);
        snprintf(path, sizeof path, "%s/kernels-sm_%d-%016llx.cubin", dir, b->arch, (unsigned long long)hash);
        has_path = 1;
    }
    if (status != TSK_OK) status = tsk__error_memory(error, "the kernels' source", source.length);
    else if (!has_path || !tsk__cuda_cache_read(path, cubin)) {
        if (o->log) o->log(o->user, "compiling the CUDA kernels for this GPU (once)");
        status = tsk__cuda_compile(b, source.data, options, 2, cubin, error);
        if (status == TSK_OK && has_path) tsk__cuda_cache_write(path, cubin);
    }
    tsk_text_free(&source);
    return status;
}

/* The most shared memory that a kernel is launched with, beyond what it names itself; 0: no more than any may have. */
static int32_t tsk__cuda_shared_most(const tsk__cuda_backend *b, int kernel) {
    if (kernel == TSK__CUDA_norm) return 48 * 1024;
    if (kernel < TSK__CUDA_linear_qkv_32) return 0;
    if (kernel < TSK__CUDA_attention_few_64) return b->shared_limit;
    if (kernel < TSK__CUDA_attention_small_64 && TSK__CUDA_FEW_SHARED <= b->shared_limit) return TSK__CUDA_FEW_SHARED;
    return 96 * 1024;
}

static tsk_status tsk__cuda_find_kernels(tsk__cuda_backend *b, tsk_error *error) {
    static const struct { const char *name; char kind; } kernels[TSK__CUDA_KERNEL_COUNT] = {
#define TSK__CUDA_KERNEL_NAME(name, kind) {#name, kind},
        TSK__CUDA_KERNELS(TSK__CUDA_KERNEL_NAME)
#undef TSK__CUDA_KERNEL_NAME
    };
    CUresult result = CUDA_SUCCESS;
    char name[64];
    int i;
    for (i = 0; i < (int)TSK__CUDA_KERNEL_COUNT && result == CUDA_SUCCESS; i++) {
        if (kernels[i].kind == 'W' && !tsk__cuda_has_hopper_kernels(b)) continue;
        snprintf(name, sizeof name, "%s%s", kernels[i].name, kernels[i].kind != 'T' ? "" : b->is_f32 ? "_f32" : "_bf16");
        result = b->api.cuModuleGetFunction(&b->kernels[i], b->module, name);
        if (result == CUDA_SUCCESS && tsk__cuda_shared_most(b, i))
            result = b->api.cuFuncSetAttribute(b->kernels[i], CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, tsk__cuda_shared_most(b, i));
        /* One division of the multiprocessors' memory for all: kernels that want different ones cannot overlap. */
        if (result == CUDA_SUCCESS) result = b->api.cuFuncSetAttribute(b->kernels[i], CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100);
    }
    return tsk__cuda_fail(&b->api, error, result, name);
}

static tsk_status tsk__cuda_load_kernels(tsk__cuda_backend *b, const tsk_model_options *o, tsk_error *error) {
    tsk_text cubin;
    tsk_status status;
    memset(&cubin, 0, sizeof cubin);
    cubin.allocator = b->allocator;
    status = tsk__cuda_cubin(b, o, &cubin, error);
    if (status == TSK_OK) status = tsk__cuda_fail(&b->api, error, b->api.cuModuleLoadData(&b->module, cubin.data), "loading the kernels");
    tsk_text_free(&cubin);
    return status == TSK_OK ? tsk__cuda_find_kernels(b, error) : status;
}

/* ---- how the linear maps' work is cut for few rows */

/* As in kernels.cu: how long a row of a tile's sums is, and one of squares, in floats. */
static int32_t tsk__cuda_sums_row(int32_t width) { return (width + 15) / 16 * 16 + 4; }
static int32_t tsk__cuda_squares_row(int32_t d) { return (d + 63) / 64 * 4; }

/* What a block of a linear map needs of shared memory besides the ring; and for every stage of it. */
static int32_t tsk__cuda_plan_fixed(int32_t pieces, int32_t groups, int32_t rows) { return groups * rows * tsk__cuda_sums_row(16 * pieces) * 4 + rows * 4; }
static int32_t tsk__cuda_plan_stage(int32_t pieces, int32_t rows) { return (16 * pieces + rows) * TSK__CUDA_LINEAR_CHUNK * 2 + 16; }
/* Stages that fit in `shared` bytes: a multiple of the groups, 0 when there are too few to keep memory busy. */
static int32_t tsk__cuda_plan_stages(int32_t pieces, int32_t groups, int32_t rows, int32_t shared) {
    int32_t room = shared - tsk__cuda_plan_fixed(pieces, groups, rows), stages = room > 0 ? room / tsk__cuda_plan_stage(pieces, rows) / groups * groups : 0;
    return stages < 3 || stages < 2 * groups ? 0 : stages;
}
static const int32_t tsk__cuda_plan_rows[2] = {32, 64};  /* that the two kernels of a map take at the most */
/* Whether both kernels have the stages, each in its room. */
static int tsk__cuda_plan_fits(int32_t pieces, int32_t groups, const int32_t room[2]) {
    return tsk__cuda_plan_stages(pieces, groups, tsk__cuda_plan_rows[0], room[0]) && tsk__cuda_plan_stages(pieces, groups, tsk__cuda_plan_rows[1], room[1]);
}
/* Where there is that much, the maps before and after attention leave room for its blocks on the same multiprocessor, so
   that the one's end and the other's beginning overlap. */
#define TSK__CUDA_LARGE (200 * 1024)
#define TSK__CUDA_BESIDE_ATTENTION (126 * 1024)
/* More than half of a large multiprocessor's: two blocks of one map might meet on one while another stands idle. */
#define TSK__CUDA_ALONE 118000

/* Tiles so wide that every multiprocessor makes as many as the next with the fewest columns of outputs each; of the same
   work the widest, which reads the input least often. Then as many groups as there are warps and stages for, the same for
   32 and 64 rows, so that a row's sums do not depend on how many there are. 0: the device has too little shared memory. */
static int tsk__cuda_plan_map(const tsk__cuda_backend *b, tsk__cuda_map map, tsk__cuda_plan *plan) {
    int32_t pieces, groups, best = INT32_MAX, i, step = map == TSK__CUDA_MAP_OUT || map == TSK__CUDA_MAP_DOWN ? 2 : 1;
    int is_beside = b->shared_limit >= TSK__CUDA_LARGE && (map == TSK__CUDA_MAP_QKV || map == TSK__CUDA_MAP_OUT);
    int32_t room[2];
    room[0] = is_beside ? TSK__CUDA_BESIDE_ATTENTION : b->shared_limit, room[1] = b->shared_limit;
    plan->pieces = 0;
    for (pieces = step; pieces <= TSK__CUDA_LINEAR_WARPS; pieces += step) {
        int32_t tiles = (plan->n + 16 * pieces - 1) / (16 * pieces), cost = (tiles + b->n_multiprocessors - 1) / b->n_multiprocessors * pieces;
        if (cost > best || !tsk__cuda_plan_fits(pieces, 1, room)) continue;
        best = cost;
        plan->pieces = pieces;
        plan->blocks = tiles < b->n_multiprocessors ? tiles : b->n_multiprocessors;
    }
    if (!plan->pieces) return 0;
    groups = TSK__CUDA_LINEAR_WARPS / plan->pieces;
    if (groups > TSK__CUDA_LINEAR_GROUPS) groups = TSK__CUDA_LINEAR_GROUPS;
    while (groups > 1 && !tsk__cuda_plan_fits(plan->pieces, groups, room)) groups--;
    plan->groups = groups;
    for (i = 0; i < 2; i++) {
        int32_t rows = tsk__cuda_plan_rows[i];
        plan->stages[i] = tsk__cuda_plan_stages(plan->pieces, groups, rows, room[i]);
        plan->shared[i] = tsk__cuda_plan_fixed(plan->pieces, groups, rows) + plan->stages[i] * tsk__cuda_plan_stage(plan->pieces, rows);
        if (b->shared_limit >= TSK__CUDA_ALONE && plan->shared[i] < TSK__CUDA_ALONE) plan->shared[i] = TSK__CUDA_ALONE;
    }
    return 1;
}
static int tsk__cuda_plan_maps(tsk__cuda_backend *b) {
    const tsk_model_config *c = b->base.config;
    int32_t d = c->d_model, n[TSK__CUDA_MAPS], k[TSK__CUDA_MAPS], i;
    n[TSK__CUDA_MAP_QKV] = b->qkv_width, n[TSK__CUDA_MAP_OUT] = d, n[TSK__CUDA_MAP_GATE_UP] = b->gate_up_rows, n[TSK__CUDA_MAP_DOWN] = d, n[TSK__CUDA_MAP_HEAD] = c->embedding_size;
    k[TSK__CUDA_MAP_QKV] = d, k[TSK__CUDA_MAP_OUT] = b->q_width, k[TSK__CUDA_MAP_GATE_UP] = d, k[TSK__CUDA_MAP_DOWN] = c->mlp_hidden_size, k[TSK__CUDA_MAP_HEAD] = d;
    for (i = 0; i < TSK__CUDA_MAPS; i++) {
        b->plans[i].n = n[i];
        b->plans[i].k = k[i];
        if (!tsk__cuda_plan_map(b, (tsk__cuda_map)i, &b->plans[i])) return 0;
    }
    return 1;
}

/* The wide maps: a tile's outputs, how many blocks share its columns, and the most stages that were of use (see kernels.cu). */
static const struct { tsk__cuda_kernel kernel; int32_t width, split, most_stages; } tsk__cuda_wide[TSK__CUDA_MAPS] = {
    {TSK__CUDA_wide_qkv, 112, 1, 8}, {TSK__CUDA_wide_out, 80, 2, 6}, {TSK__CUDA_wide_gate_up, 208, 1, 8}, {TSK__CUDA_wide_out, 80, 2, 6}, {TSK__CUDA_wide_head, 216, 1, 8}};

static int32_t tsk__cuda_wide_tiles(const tsk__cuda_backend *b, int map) { return (b->plans[map].n + tsk__cuda_wide[map].width - 1) / tsk__cuda_wide[map].width; }

/* Clusters of a kernel that the device runs at the same time. */
static CUresult tsk__cuda_clusters(const tsk__cuda_backend *b, int map, int *clusters) {
    CUlaunchConfig config;
    CUlaunchAttribute attribute;
    memset(&config, 0, sizeof config);
    memset(&attribute, 0, sizeof attribute);
    config.gridDimX = TSK__CUDA_CLUSTER, config.gridDimY = config.gridDimZ = 1;
    config.blockDimX = TSK__CUDA_LINEAR_WARPS * 32, config.blockDimY = config.blockDimZ = 1;
    config.sharedMemBytes = (unsigned int)b->plans[map].wide_shared;
    attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attribute.value.clusterDim.x = TSK__CUDA_CLUSTER, attribute.value.clusterDim.y = attribute.value.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return b->api.cuOccupancyMaxActiveClusters(clusters, b->kernels[tsk__cuda_wide[map].kernel], &config);
}

/* 0: too little shared memory, or columns for two stages of every block. */
static int tsk__cuda_plan_wide_memory(const tsk__cuda_backend *b, int map, tsk__cuda_plan *plan) {
    int32_t width = tsk__cuda_wide[map].width, split = tsk__cuda_wide[map].split, stage = (width + TSK__CUDA_WIDE) * TSK__CUDA_LINEAR_CHUNK * 2;
    int32_t sums = TSK__CUDA_WIDE * tsk__cuda_sums_row(width) * 4, others = (split > 1 ? sums : 0) + TSK__CUDA_WIDE * 4 + 24;
    int32_t stages = (b->shared_limit - others) / (stage + 16), chunks = (plan->k + TSK__CUDA_LINEAR_CHUNK - 1) / TSK__CUDA_LINEAR_CHUNK / split;
    if (stages > chunks) stages = chunks;
    if (stages > tsk__cuda_wide[map].most_stages) stages = tsk__cuda_wide[map].most_stages;
    plan->wide_stages = stages;
    plan->wide_shared = (stages * stage > sums ? stages * stage : sums) + others + stages * 16;
    return stages >= 2 && plan->wide_shared <= b->shared_limit;
}

/* Whether the wide maps are there and worth it: not where most blocks would wait for a few that have one tile more. */
static tsk_status tsk__cuda_plan_wide(tsk__cuda_backend *b, tsk_error *error) {
    CUresult result = CUDA_SUCCESS;
    int map, fits = tsk__cuda_has_hopper_kernels(b) && b->has_skinny;
    for (map = 0; map < TSK__CUDA_MAPS && fits && result == CUDA_SUCCESS; map++) {
        tsk__cuda_plan *plan = &b->plans[map];
        int at_once = 0;
        int32_t sharers = TSK__CUDA_CLUSTER / tsk__cuda_wide[map].split, tiles = tsk__cuda_wide_tiles(b, map), clusters = (tiles + sharers - 1) / sharers, rounds;
        fits = tsk__cuda_plan_wide_memory(b, map, plan);
        if (fits) result = tsk__cuda_clusters(b, map, &at_once);
        if (!fits || result != CUDA_SUCCESS || at_once < 1) fits = 0;
        else {
            rounds = (clusters + at_once - 1) / at_once;
            fits = rounds == 1 || 4 * (int64_t)clusters >= 3 * (int64_t)rounds * at_once;
            plan->wide_blocks = TSK__CUDA_CLUSTER * (clusters < at_once ? clusters : at_once);
        }
    }
    b->has_wide = fits;
    return tsk__cuda_fail(&b->api, error, result, "asking for clusters");
}

/* Rows that a pass may have to go through the fused maps. */
static int32_t tsk__cuda_fused_rows(const tsk__cuda_backend *b) { return b->has_wide ? TSK__CUDA_WIDE : b->has_skinny ? TSK__CUDA_SKINNY : 0; }

/* Describes a bf16 matrix [rows, columns] to the copy engine, in boxes of box_rows rows and a chunk's columns, swizzled as
   the kernels read them. Before sm_90 there is none. */
static CUresult tsk__cuda_encode(const tsk__cuda_backend *b, CUdeviceptr address, uint64_t rows, uint64_t columns, int32_t box_rows, tsk__cuda_tensor_map *out) {
    char room[2 * sizeof(CUtensorMap)];
    CUtensorMap *map = (CUtensorMap *)(void *)(room + (64 - (uintptr_t)room % 64) % 64);  /* the driver wants it aligned to 64 */
    cuuint64_t size[2], row_bytes[1];
    cuuint32_t box[2], every[2];
    CUresult result;
    if (b->arch < 90) return CUDA_SUCCESS;
    size[0] = columns, size[1] = rows, row_bytes[0] = columns * 2;
    box[0] = TSK__CUDA_LINEAR_CHUNK, box[1] = (cuuint32_t)box_rows;
    every[0] = every[1] = 1;
    result = b->api.cuTensorMapEncodeTiled(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)(uintptr_t)address, size, row_bytes, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                           CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result == CUDA_SUCCESS) memcpy(out, map, sizeof *out);
    return result;
}
static CUresult tsk__cuda_encode_map(const tsk__cuda_backend *b, int map, CUdeviceptr weights, tsk__cuda_tensor_map *out, tsk__cuda_tensor_map *wide_out) {
    uint64_t n = (uint64_t)b->plans[map].n, k = (uint64_t)b->plans[map].k;
    CUresult result = tsk__cuda_encode(b, weights, n, k, 16 * b->plans[map].pieces, out);
    if (result == CUDA_SUCCESS && b->has_wide) result = tsk__cuda_encode(b, weights, n, k, tsk__cuda_wide[map].width, wide_out);
    return result;
}
static tsk_status tsk__cuda_encode_weights(tsk__cuda_backend *b, tsk_error *error) {
    CUresult result = CUDA_SUCCESS;
    int32_t l, i;
    if (!b->has_skinny) return TSK_OK;
    for (l = 0; l < b->base.config->n_layers; l++) {
        tsk__cuda_layer *layer = &b->layers[l];
        CUdeviceptr weights[TSK__CUDA_MAP_HEAD];
        weights[TSK__CUDA_MAP_QKV] = layer->qkv, weights[TSK__CUDA_MAP_OUT] = layer->attn_out, weights[TSK__CUDA_MAP_GATE_UP] = layer->gate_up, weights[TSK__CUDA_MAP_DOWN] = layer->down;
        for (i = 0; i < TSK__CUDA_MAP_HEAD && result == CUDA_SUCCESS; i++) result = tsk__cuda_encode_map(b, i, weights[i], &layer->maps[i], &layer->wide_maps[i]);
    }
    if (result == CUDA_SUCCESS) result = tsk__cuda_encode_map(b, TSK__CUDA_MAP_HEAD, b->head, &b->head_map, &b->head_wide_map);
    return tsk__cuda_fail(&b->api, error, result, "describing the weights");
}

/* ---- weights: where they lie */

/* One tensor's place. interleave: see `placing` in kernels.cu. */
typedef struct tsk__cuda_place {
    CUdeviceptr to;
    tsk__cuda_placing placing;
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
        if (c->head_dim % 16 == 0) p.placing.interleave = 3, p.placing.half_head = c->head_dim / 2;
        p.placing.first_row = part == TSK__PART_Q ? 0 : (uint64_t)b->q_width + (part == TSK__PART_V ? (uint64_t)b->kv_width : 0);
        break;
    case TSK__PART_ATTN_OUT: p.to = is_bias ? layer->attn_out_bias : layer->attn_out; break;
    case TSK__PART_FF_NORM: p.to = layer->ff_norm; break;
    case TSK__PART_FF_PROJ: case TSK__PART_UP_PROJ:
        p.to = is_bias ? layer->gate_up_bias : layer->gate_up;
        p.placing.interleave = part == TSK__PART_FF_PROJ ? 1 : 2;
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
            float one = 1.0f, scale = sqrtf(3.0f / (float)place.placing.columns);
            void *ones[3], *random[6];
            ones[0] = &place.to, ones[1] = &count, ones[2] = &one;
            random[0] = &place.to, random[1] = &count, random[2] = &place.placing, random[3] = &seed, random[4] = &tensor, random[5] = &scale;
            if ((l < 0 && j > 1) || (l == c->n_layers && (j > 0 || c->weight_tying)) || j > 8) break;
            if (tsk__part_shapes[part].cols == '-') result = tsk__cuda_launch_on(b, NULL, TSK__CUDA_fill, 16, 1, 1, 256, 0, 0, ones);
            else {
                result = tsk__cuda_launch_on(b, NULL, TSK__CUDA_randomise, (uint32_t)b->n_multiprocessors * 8, 1, 1, 256, 0, 0, random);
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
    uint64_t element = tsk_dtype_size(p->info->dtype), first = p->offset / element, count = p->size / element;
    int32_t stored = p->info->dtype == TSK_DTYPE_F32 ? 0 : p->info->dtype == TSK_DTYPE_F16 ? 1 : 2;
    const char *mapped = (const char *)tsk_safetensors_data(p->file, p->info);
    tsk__cuda_place place = p->place;
    void *parameters[6];
    CUresult result = api->cuEventSynchronize(r->copied[half]);
    parameters[0] = &staging, parameters[1] = &stored, parameters[2] = &place.to, parameters[3] = &first, parameters[4] = &count, parameters[5] = &place.placing;
    if (result != CUDA_SUCCESS) return tsk__cuda_fail(api, &r->error, result, "copying weights");
    if (mapped) memcpy(pinned, mapped + p->offset, (size_t)p->size);
    else {
        tsk_status status = tsk_safetensors_read(p->file, p->info, p->offset, pinned, (size_t)p->size, &r->error);
        if (status != TSK_OK) return status;
    }
    result = api->cuMemcpyHtoDAsync_v2(staging, pinned, (size_t)p->size, r->stream);
    if (result == CUDA_SUCCESS) result = tsk__cuda_launch_on(b, r->stream, TSK__CUDA_convert, 256, 1, 1, 256, 0, 0, parameters);
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

typedef struct tsk__cuda_stream {
    tsk__stream base;
    tsk__cuda_backend *backend;
    CUstream stream;
    cublasHandle_t cublas;
    int32_t n_states;

    /* host memory that the device reads and writes */
    char *pinned;
    tsk__cuda_row *rows;           /* [max_rows] image of the row table */
    tsk__cuda_cache *caches;       /* [max_rows] */
    tsk__cuda_tile *tiles;         /* [max_rows] */
    volatile uint32_t *fetched, *signalled;
    char *arguments;               /* lists of operations: on their way to the device, or read where they are */
    uint64_t arguments_size, arguments_used;

    /* device memory */
    CUdeviceptr memory, device_arguments, counters, state_words, squares, attention_parts, heads, scratch, normed, compact_x, full_x, workspace, logits;
    CUdeviceptr cosines, skipped;  /* what the host has copies of */
    CUdeviceptr confidences;       /* [max_rows] select's scratch */
    tsk__cuda_table table;
    tsk__cuda_tensor_map inputs[3][2];  /* normed, attention, hidden: boxes of 32 and of 64 rows */

    /* the pass */
    int32_t n, all_n, n_requests;
    int32_t n_tiles;               /* attention's */
    tsk__cuda_attention attention; /* the kernel for them */
    int32_t compacted;             /* rows of the list that compact narrowed to, 0: not narrowed */
    CUdeviceptr compact_index;     /* [max_rows] what it narrowed to */
    int is_dirty;                  /* the device has not fetched the row table's last change */
    int can_overlap;               /* what was launched last is a kernel, and the next one may begin while it ends */
    CUdeviceptr normed_for;        /* the norm whose first half x has gone through, to `normed` and `squares`; 0: none */
    uint32_t fetches, signals;     /* issued so far */
    int needs_signal;
    int is_recording;
    tsk__cuda_section recording;   /* what is being recorded */
    CUresult failure;
    const char *failed;            /* in which operation */

    tsk__cuda_section sections[TSK__CUDA_SECTIONS];
    int n_sections, next_section;
    tsk__cuda_section seen[TSK__CUDA_SEEN];  /* of many rows, lately, and not recorded */
    int next_seen;
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

/* Watches a pinned word until it counts what is expected, or the stream fails. A stream that has ended has told how far it
   came, or its kernels were lost. */
static void tsk__cuda_await(tsk__cuda_stream *s, const volatile uint32_t *told, uint32_t expected, const char *what) {
    uint32_t spins = 0;
    while (s->failure == CUDA_SUCCESS && __atomic_load_n(told, __ATOMIC_ACQUIRE) != expected) {
        if (++spins % 4096 == 0) {
            CUresult result = s->backend->api.cuStreamQuery(s->stream);
            if (result != CUDA_ERROR_NOT_READY) tsk__cuda_note(s, result, what);
            if (result == CUDA_SUCCESS && __atomic_load_n(told, __ATOMIC_ACQUIRE) != expected) tsk__cuda_note(s, TSK__CUDA_UNKNOWN, what);
            if (spins > 1u << 20) sched_yield();
        }
        tsk__pool_pause();
    }
}

/* The row table's image may be changed again: what was launched to fetch it has. */
static void tsk__cuda_wait_fetched(tsk__cuda_stream *s) { tsk__cuda_await(s, s->fetched, s->fetches, "fetching the rows"); }

static void tsk__cuda_fetch_rows(tsk__cuda_stream *s) {
    tsk__cuda_backend *b = s->backend;
    CUdeviceptr rows = tsk__cuda_address(s->rows), caches = tsk__cuda_address(s->caches), tiles = tsk__cuda_address(s->tiles);
    CUdeviceptr fetched = tsk__cuda_address((const void *)(uintptr_t)s->fetched);
    int32_t half = b->base.config->head_dim / 2;
    void *parameters[11];
    parameters[0] = &rows, parameters[1] = &caches, parameters[2] = &tiles, parameters[3] = &s->n, parameters[4] = &s->n_requests, parameters[5] = &s->n_tiles;
    parameters[6] = &s->table, parameters[7] = &b->frequencies, parameters[8] = &half, parameters[9] = &s->state_words, parameters[10] = &fetched;
    tsk__cuda_note(s, tsk__cuda_launch_on(b, s->stream, TSK__CUDA_pass_begin, (uint32_t)s->n + 1, 1, 1, 64, 0, 0, parameters), "pass_begin");
    s->fetches++;
    s->is_dirty = 0;
    s->can_overlap = 0;  /* what follows may read the table before it waits for its predecessor */
}

static void tsk__cuda_launch(tsk__cuda_stream *s, tsk__cuda_kernel kernel, uint32_t gx, uint32_t gy, uint32_t gz, uint32_t block, uint32_t shared, void **parameters, const char *what) {
    if (s->failure != CUDA_SUCCESS) return;
    if (s->is_dirty) tsk__cuda_fetch_rows(s);
    tsk__cuda_note(s, tsk__cuda_launch_on(s->backend, s->stream, kernel, gx, gy, gz, block, shared, s->can_overlap, parameters), what);
    s->can_overlap = 1;
    s->needs_signal = 1;
}

static void tsk__cuda_signal(tsk__cuda_stream *s) {
    CUdeviceptr count = s->state_words + 8, signalled = tsk__cuda_address((const void *)(uintptr_t)s->signalled);
    void *parameters[2];
    parameters[0] = &count, parameters[1] = &signalled;
    tsk__cuda_launch(s, TSK__CUDA_pass_signal, 1, 1, 1, 1, 0, parameters, "pass_signal");
    s->signals++;
    s->needs_signal = 0;
}

static tsk_status tsk__cuda_backend_wait(tsk__stream *stream, tsk_error *error) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    tsk_status status = TSK_OK;
    tsk__cuda_enter(s->backend);
    if (s->needs_signal) tsk__cuda_signal(s);
    tsk__cuda_await(s, s->signalled, s->signals, "waiting");
    if (s->failure != CUDA_SUCCESS) {
        s->backend->api.cuStreamSynchronize(s->stream);
        status = tsk__cuda_fail(&s->backend->api, error, s->failure, s->failed);
        s->failure = CUDA_SUCCESS;
        s->signals = *s->signalled;
        s->fetches = *s->fetched;
        s->is_dirty = 1;
    }
    s->arguments_used = 0;
    tsk__cuda_leave(s->backend);
    return status;
}

/* A place in the ring of pinned memory that lists leave the host from, or where the device reads them, good until the next
   wait. Not inside a recorded section: the list's contents would be recorded. */
static uint64_t tsk__cuda_argument_room(tsk__cuda_stream *s, uint64_t size) {
    uint64_t at = s->arguments_used, room = (size + 15) & ~(uint64_t)15;
    if (at + room > s->arguments_size) {  /* as good as a wait: everything that used the ring is done */
        tsk__cuda_note(s, s->backend->api.cuStreamSynchronize(s->stream), "making room for arguments");
        at = 0;
    }
    s->arguments_used = at + room;
    return at;
}
static uint64_t tsk__cuda_argument_place(tsk__cuda_stream *s, const void *values, uint64_t size) {
    uint64_t at = tsk__cuda_argument_room(s, size);
    memcpy(s->arguments + at, values, (size_t)size);
    return at;
}

/* Two lists beside each other, the second at a multiple of 16 bytes: *second_at after the first. */
static uint64_t tsk__cuda_argument_pair(tsk__cuda_stream *s, const void *first, uint64_t first_size, const void *second, uint64_t second_size, uint64_t *second_at) {
    uint64_t at;
    *second_at = (first_size + 15) & ~(uint64_t)15;
    at = tsk__cuda_argument_room(s, *second_at + second_size);
    memcpy(s->arguments + at, first, (size_t)first_size);
    memcpy(s->arguments + at + *second_at, second, (size_t)second_size);
    return at;
}

static void tsk__cuda_upload(tsk__cuda_stream *s, CUdeviceptr to, uint64_t at, uint64_t size) {
    tsk__cuda_note(s, s->backend->api.cuMemcpyHtoDAsync_v2(to, s->arguments + at, (size_t)size, s->stream), "copying arguments");
    s->can_overlap = 0;
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
    tsk__cuda_note(s, s->backend->api.cuMemcpyDtoDAsync_v2(tsk__cuda_address(to), tsk__cuda_address(from), (size_t)size, s->stream), "copying");
    if (tsk__cuda_address(to) >= s->full_x && tsk__cuda_address(to) < s->normed) s->normed_for = 0;  /* into x, compacted or not */
    s->can_overlap = 0;
    s->needs_signal = 1;
    tsk__cuda_leave(s->backend);
}

static void tsk__cuda_backend_slide(tsk__stream *stream, void *base, int32_t planes, uint64_t pitch, uint64_t to, uint64_t from, uint64_t size) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    CUdeviceptr start = tsk__cuda_address(base);
    void *parameters[5];
    if (!size || s->failure != CUDA_SUCCESS) return;
    parameters[0] = &start, parameters[1] = &pitch, parameters[2] = &to, parameters[3] = &from, parameters[4] = &size;
    tsk__cuda_enter(s->backend);
    tsk__cuda_note(s, tsk__cuda_launch_on(s->backend, s->stream, TSK__CUDA_slide, (uint32_t)planes, 1, 1, 512, 0, 0, parameters), "moving a cache");
    s->can_overlap = 0;
    s->needs_signal = 1;
    tsk__cuda_leave(s->backend);
}

static void tsk__cuda_backend_upload(tsk__stream *stream, void *to, const void *from, uint64_t size) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    uint64_t done, piece;
    tsk__cuda_enter(s->backend);
    for (done = 0; done < size && s->failure == CUDA_SUCCESS; done += piece) {
        piece = size - done < s->arguments_size ? size - done : s->arguments_size;
        tsk__cuda_upload(s, tsk__cuda_address(to) + done, tsk__cuda_argument_place(s, (const char *)from + done, piece), piece);
    }
    s->needs_signal = 1;
    tsk__cuda_leave(s->backend);
}

/* bf16 values land in the upper half of `to`, from where they are widened in place, first to last. */
static void tsk__cuda_download(tsk__cuda_stream *s, float *to, CUdeviceptr from, uint64_t count, uint32_t element) {
    char *raw = (char *)to + (element == 2 ? count * 2 : 0);
    uint64_t i;
    if (s->failure == CUDA_SUCCESS) tsk__cuda_note(s, s->backend->api.cuMemcpyDtoHAsync_v2(raw, from, (size_t)(count * element), s->stream), "downloading");
    if (s->failure == CUDA_SUCCESS) tsk__cuda_note(s, s->backend->api.cuStreamSynchronize(s->stream), "downloading");
    s->can_overlap = 0;
    if (s->failure != CUDA_SUCCESS) {
        memset(to, 0, (size_t)count * sizeof *to);
        return;
    }
    for (i = 0; element == 2 && i < count; i++) {
        uint16_t bits;
        memcpy(&bits, raw + 2 * i, sizeof bits);
        to[i] = tsk__float_from_bf16(bits);
    }
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
    for (i = 0; i < s->n_sections; i++) b->api.cuGraphExecDestroy(s->sections[i].graph);
    if (s->cublas) b->api.cublasDestroy_v2(s->cublas);
    if (s->memory) b->api.cuMemFree_v2(s->memory);
    if (s->logits) b->api.cuMemFree_v2(s->logits);
    if (s->pinned) b->api.cuMemFreeHost(s->pinned);
    if (s->stream) b->api.cuStreamDestroy_v2(s->stream);
    tsk__cuda_leave(b);
    tsk__memory_delete(b->allocator, s);
}

static int32_t tsk__cuda_head_rows(int32_t rows) { return rows < TSK__CUDA_HEAD_ROWS ? rows : TSK__CUDA_HEAD_ROWS; }

/* Tiles of the head where it is one of the fused maps. */
static int32_t tsk__cuda_head_tiles(const tsk__cuda_backend *b, int32_t m) {
    int32_t width = 16 * b->plans[TSK__CUDA_MAP_HEAD].pieces;
    return m > TSK__CUDA_SKINNY ? tsk__cuda_wide_tiles(b, TSK__CUDA_MAP_HEAD) : (b->base.config->embedding_size + width - 1) / width;
}
/* Entries for all tiles and rows, whichever way the head goes. */
static uint64_t tsk__cuda_head_entries(const tsk__cuda_backend *b, int32_t max_rows) {
    uint64_t most = ((uint64_t)b->base.config->embedding_size / TSK__CUDA_HEAD_TILE + 1) * (uint64_t)tsk__cuda_head_rows(max_rows);
    int32_t rows;
    for (rows = TSK__CUDA_SKINNY; rows <= tsk__cuda_fused_rows(b); rows += TSK__CUDA_WIDE - TSK__CUDA_SKINNY) {
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
    addresses[0] = s->normed, addresses[1] = tsk__cuda_address(s->base.attention), addresses[2] = tsk__cuda_address(s->base.hidden);
    columns[0] = (uint64_t)b->base.config->d_model, columns[1] = (uint64_t)b->q_width, columns[2] = (uint64_t)b->base.config->mlp_hidden_size;
    for (i = 0; i < 6 && result == CUDA_SUCCESS && b->has_skinny; i++)
        result = tsk__cuda_encode(b, addresses[i / 2], (uint64_t)s->base.max_rows, columns[i / 2], tsk__cuda_plan_rows[i % 2], &s->inputs[i / 2][i % 2]);
    return result;
}

/* Addresses of the stream's device memory, or its size with base 0. */
static uint64_t tsk__cuda_stream_layout(tsk__cuda_stream *s, CUdeviceptr base) {
    const tsk__cuda_backend *b = s->backend;
    const tsk_model_config *c = b->base.config;
    uint64_t rows = (uint64_t)s->base.max_rows, d = (uint64_t)c->d_model, e = b->base.element_size, used = 0;
    uint64_t wide = (uint64_t)(b->qkv_width > b->gate_up_rows ? b->qkv_width : b->gate_up_rows);
    int has_scratch = s->base.max_rows > tsk__cuda_fused_rows(b);
    s->full_x = base + tsk__cuda_take(&used, rows * d, e);
    s->compact_x = base + tsk__cuda_take(&used, rows * d, e);
    s->normed = base + tsk__cuda_take(&used, rows * d, e);
    s->base.q = tsk__cuda_pointer(base + tsk__cuda_take(&used, rows * (uint64_t)b->q_width, e));
    s->base.attention = tsk__cuda_pointer(base + tsk__cuda_take(&used, rows * (uint64_t)b->q_width, e));
    s->base.hidden = tsk__cuda_pointer(base + tsk__cuda_take(&used, rows * (uint64_t)c->mlp_hidden_size, e));
    s->scratch = base + tsk__cuda_take(&used, has_scratch ? rows * (wide > d ? wide : d) : 0, e);
    s->table.rows = base + tsk__cuda_take(&used, rows, sizeof(tsk__cuda_row));
    s->table.caches = base + tsk__cuda_take(&used, rows, sizeof(tsk__cuda_cache));
    s->table.tiles = base + tsk__cuda_take(&used, rows, sizeof(tsk__cuda_tile));
    s->table.rope = base + tsk__cuda_take(&used, rows * (uint64_t)(c->head_dim / 2), 2 * sizeof(float));
    s->squares = base + tsk__cuda_take(&used, rows * (uint64_t)tsk__cuda_squares_row(c->d_model), sizeof(float));
    s->attention_parts = base + tsk__cuda_take(&used, b->has_flash ? (uint64_t)c->n_heads * 4 * TSK__CUDA_SPLIT_ROWS * ((uint64_t)c->head_dim + 2) : 0, sizeof(float));
    s->heads = base + tsk__cuda_take(&used, tsk__cuda_head_entries(b, s->base.max_rows), TSK__CUDA_HEAD_ENTRY);
    s->counters = base + tsk__cuda_take(&used, (uint64_t)c->n_heads * rows, sizeof(uint32_t));
    s->state_words = base + tsk__cuda_take(&used, 4, sizeof(uint32_t));
    s->device_arguments = base + tsk__cuda_take(&used, s->arguments_size, 1);
    s->compact_index = base + tsk__cuda_take(&used, rows, sizeof(int32_t));
    s->cosines = base + tsk__cuda_take(&used, rows * (uint64_t)s->n_states, sizeof(float));
    s->skipped = base + tsk__cuda_take(&used, rows, sizeof(int32_t));
    s->base.predictions = tsk__cuda_pointer(base + tsk__cuda_take(&used, rows, sizeof(tsk__prediction)));
    s->confidences = base + tsk__cuda_take(&used, rows, sizeof(float));
    s->workspace = base + tsk__cuda_take(&used, b->is_f32 ? 0 : TSK__CUDA_WORKSPACE, 1);
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
    at[8] = tsk__cuda_take(&used, s->arguments_size, 1);
    size = used;
    result = s->backend->api.cuMemHostAlloc(&pinned, (size_t)size, 0);
    if (result != CUDA_SUCCESS) return result;
    memset(pinned, 0, (size_t)size);
    s->pinned = (char *)pinned;
    s->rows = (tsk__cuda_row *)(void *)(s->pinned + at[0]);
    s->caches = (tsk__cuda_cache *)(void *)(s->pinned + at[1]);
    s->tiles = (tsk__cuda_tile *)(void *)(s->pinned + at[2]);
    s->fetched = (volatile uint32_t *)(void *)(s->pinned + at[3]);
    s->signalled = (volatile uint32_t *)(void *)(s->pinned + at[4]);
    s->base.cosines = (float *)(void *)(s->pinned + at[5]);
    s->base.skipped = (int32_t *)(void *)(s->pinned + at[6]);
    s->base.choices = (tsk__choice *)(void *)(s->pinned + at[7]);
    s->arguments = s->pinned + at[8];
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
        b->api.cublasSetWorkspace_v2(s->cublas, tsk__cuda_pointer(s->workspace), TSK__CUDA_WORKSPACE) != CUBLAS_STATUS_SUCCESS)
        return tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET, "cuBLAS does not take its stream");
    return TSK_OK;
}

static tsk_status tsk__cuda_backend_stream_create(tsk__backend *backend, int32_t max_rows, int32_t n_states, tsk__stream **out, tsk_error *error) {
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
    s->arguments_size = 2 * ((uint64_t)(max_rows > TSK__CUDA_LOGITS_ROWS ? max_rows : TSK__CUDA_LOGITS_ROWS) *
                                 (2 * sizeof(int32_t) + sizeof(tsk__draw) + sizeof(tsk__candidate) + sizeof(tsk__selection)) + 128);
    tsk__cuda_enter(b);
    result = b->api.cuStreamCreate(&s->stream, CU_STREAM_NON_BLOCKING);
    if (result == CUDA_SUCCESS) result = tsk__cuda_stream_pinned(s);
    size = tsk__cuda_stream_layout(s, 0);
    if (result == CUDA_SUCCESS) result = size > SIZE_MAX ? CUDA_ERROR_OUT_OF_MEMORY : b->api.cuMemAlloc_v2(&s->memory, (size_t)size);
    if (result == CUDA_SUCCESS) {
        tsk__cuda_stream_layout(s, s->memory);
        result = tsk__cuda_encode_inputs(s);
        if (result == CUDA_SUCCESS) result = b->api.cuMemsetD8Async(s->memory, 0, (size_t)size, s->stream);
    }
    status = result == CUDA_ERROR_OUT_OF_MEMORY ? tsk__error_memory(error, "a pass on the CUDA device", size) : tsk__cuda_fail(&b->api, error, result, "a stream");
    if (status == TSK_OK) status = tsk__cuda_stream_cublas(s, error);
    tsk__cuda_leave(b);
    s->base.x = tsk__cuda_pointer(s->full_x);
    if (status != TSK_OK) tsk__cuda_backend_stream_destroy(&s->base);
    else *out = &s->base;
    return status;
}

/* ---- rows */

/* Runs of rows of one request, cut into tiles of up to `rows`; says the longest tile. */
static int32_t tsk__cuda_cut_tiles(tsk__cuda_stream *s, int32_t rows) {
    int32_t first, count, longest = 0;
    s->n_tiles = 0;
    for (first = 0; first < s->n; first += count) {
        tsk__cuda_tile *tile = &s->tiles[s->n_tiles++];
        for (count = 1; first + count < s->n && count < rows && s->rows[first + count].request == s->rows[first].request;) count++;
        tile->first = first, tile->count = count, tile->request = s->rows[first].request;
        if (count > longest) longest = count;
    }
    return longest;
}

/* Tiles for attention: small ones, whose keys are split, where heads alone leave multiprocessors idle; whole keys, but more
   of them under way, for small tiles where they are just enough. */
static void tsk__cuda_make_tiles(tsk__cuda_stream *s) {
    const tsk__cuda_backend *b = s->backend;
    const int32_t heads = b->base.config->n_heads, at_once = 2 * b->n_multiprocessors;
    int32_t i, n, last;
    s->is_dirty = 1;
    s->attention = tsk__cuda_cut_tiles(s, 64) <= 32 ? TSK__CUDA_ATTENTION_SMALL : TSK__CUDA_ATTENTION_MEDIUM;
    if (s->n_tiles * tsk__cuda_attentions[s->attention].rows <= TSK__CUDA_SPLIT_ROWS && 4 * s->n_tiles * heads < 3 * b->n_multiprocessors) return;
    if (s->attention == TSK__CUDA_ATTENTION_SMALL && s->n_tiles * heads <= b->n_multiprocessors && TSK__CUDA_FEW_SHARED <= b->shared_limit) {
        s->attention = TSK__CUDA_ATTENTION_FEW;
        return;
    }
    s->attention = TSK__CUDA_ATTENTION_LARGE;
    tsk__cuda_cut_tiles(s, 128);
    /* Whole tiles among the last, if these leave more than half of the multiprocessors idle, are halved: no result changes,
       as both halves have more than 32 rows (see attention_large). */
    n = s->n_tiles;
    last = (n * heads % at_once + heads - 1) / heads;
    for (i = 2 * last * heads <= at_once ? n - last : n; i < n; i++)
        if (s->tiles[i].count > 96) {
            tsk__cuda_tile *half = &s->tiles[s->n_tiles++];
            *half = s->tiles[i];
            half->first += 64, half->count -= 64;
            s->tiles[i].count = 64;
        }
}

static void tsk__cuda_backend_begin(tsk__stream *stream, const tsk__rows *rows) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    int32_t i;
    tsk__cuda_enter(s->backend);
    tsk__cuda_wait_fetched(s);
    tsk__cuda_leave(s->backend);
    s->n = s->all_n = rows->n;
    s->n_requests = rows->n_requests;
    s->compacted = 0;
    s->normed_for = 0;
    s->base.x = tsk__cuda_pointer(s->full_x);
    for (i = 0; i < rows->n; i++) {
        tsk__cuda_row *row = &s->rows[i];
        row->token = rows->tokens[i];
        row->position = rows->positions[i];
        row->request = rows->requests[i];
        row->slot = rows->slots ? rows->slots[i] : -1;
        row->active = 1;
        row->number = i;
        row->flags = rows->flags ? rows->flags[i] : 0;
    }
    for (i = 0; i < rows->n_requests; i++) {
        const tsk__kv *kv = &rows->caches[i];
        tsk__cuda_cache *cache = &s->caches[i];
        cache->k = tsk__cuda_address(kv->k);
        cache->v = tsk__cuda_address(kv->v);
        cache->states = tsk__cuda_address(kv->states);
        cache->outputs = tsk__cuda_address(kv->outputs);
        cache->tokens = tsk__cuda_address(kv->tokens);
        cache->predictions = tsk__cuda_address(kv->predictions);
        cache->length = kv->length;
        cache->capacity = kv->capacity;
        cache->n_slots = kv->n_slots;
        cache->n_states = kv->n_states;
        cache->first_written = INT32_MAX;
        cache->last_written = -1;
        cache->skip_threshold = kv->skip_threshold;
        cache->skip_outlier = kv->skip_outlier;
    }
    for (i = 0; i < rows->n; i++) {
        tsk__cuda_cache *cache = &s->caches[rows->requests[i]];
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
    for (i = 0; i < s->n; i++) s->rows[i].active = active ? active[i] != 0 : 1;
    s->is_dirty = 1;
}

/* ---- operations */

static CUdeviceptr tsk__cuda_x(const tsk__cuda_stream *s) { return tsk__cuda_address(s->base.x); }
static int tsk__cuda_is_fused(const tsk__cuda_stream *s) { return s->n <= tsk__cuda_fused_rows(s->backend); }
static uint64_t tsk__cuda_layer_offset(const tsk_model_config *c, int32_t layer) { return (uint64_t)layer * (uint64_t)c->n_kv_heads * (uint64_t)c->head_dim; }

/* The first half of a norm, where the last writer of x did not leave it. */
static void tsk__cuda_need_normed(tsk__cuda_stream *s, CUdeviceptr norm) {
    CUdeviceptr x = tsk__cuda_x(s);
    int32_t d = s->backend->base.config->d_model;
    void *parameters[5];
    parameters[0] = &x, parameters[1] = &norm, parameters[2] = &s->normed, parameters[3] = &s->squares, parameters[4] = &d;
    if (s->normed_for == norm) return;
    tsk__cuda_launch(s, TSK__CUDA_pre_norm, (uint32_t)s->n, 1, 1, 256, 0, parameters, "pre_norm");
    s->normed_for = norm;
}

static void tsk__cuda_embed(tsk__cuda_stream *s) {
    CUdeviceptr x = tsk__cuda_x(s), norm = tsk__cuda_is_fused(s) ? s->backend->layers[0].attn_norm : 0;
    int32_t d = s->backend->base.config->d_model;
    void *parameters[7];
    parameters[0] = &s->backend->embedding, parameters[1] = &s->table, parameters[2] = &x, parameters[3] = &norm, parameters[4] = &s->normed, parameters[5] = &s->squares;
    parameters[6] = &d;
    tsk__cuda_launch(s, TSK__CUDA_embed, (uint32_t)s->n, 1, 1, 256, 0, parameters, "embed");
    s->normed_for = norm;
}

static void tsk__cuda_norm(tsk__cuda_stream *s, int32_t n, CUdeviceptr index, CUdeviceptr weight, CUdeviceptr out) {
    CUdeviceptr x = tsk__cuda_x(s);
    const tsk_model_config *c = s->backend->base.config;
    int32_t d = c->d_model;
    float eps = c->rms_norm_eps;
    void *parameters[6];
    parameters[0] = &x, parameters[1] = &index, parameters[2] = &weight, parameters[3] = &out, parameters[4] = &d, parameters[5] = &eps;
    tsk__cuda_launch(s, TSK__CUDA_norm, (uint32_t)n, 1, 1, 256, (uint32_t)tsk__cuda_squares_row(d) * 4, parameters, "norm");
    if (out == s->normed) s->normed_for = 0;
}

/* What a linear map for few rows is launched as; the kernel for more than 32 follows. input: which of the stream's, see its
   `inputs`. */
static const struct { tsk__cuda_kernel kernel; int input; const char *name; } tsk__cuda_map_launches[TSK__CUDA_MAPS] = {
    {TSK__CUDA_linear_qkv_32, 0, "linear_qkv"}, {TSK__CUDA_linear_out_32, 1, "linear_out"}, {TSK__CUDA_linear_gate_up_32, 0, "linear_gate_up"},
    {TSK__CUDA_linear_out_32, 2, "linear_out"}, {TSK__CUDA_linear_head_32, 0, "linear_head"}};

/* What all of them take alike. The head belongs to no layer. */
static tsk__cuda_linear_args tsk__cuda_linear_common(const tsk__cuda_stream *s, tsk__cuda_map map, int32_t m, const tsk__cuda_layer *layer) {
    const tsk__cuda_backend *b = s->backend;
    const tsk_model_config *c = b->base.config;
    const tsk__cuda_plan *plan = &b->plans[map];
    int input = tsk__cuda_map_launches[map].input, is_wide = m > TSK__CUDA_SKINNY;
    tsk__cuda_linear_args a;
    memset(&a, 0, sizeof a);
    a.weights_map = layer ? (is_wide ? layer->wide_maps : layer->maps)[map] : is_wide ? b->head_wide_map : b->head_map;
    a.input_map = s->inputs[input][m > 32 && !is_wide];
    a.input = input == 0 ? s->normed : tsk__cuda_address(input == 1 ? s->base.attention : s->base.hidden);
    a.m = m, a.n = plan->n, a.k = plan->k;
    a.pieces = plan->pieces, a.groups = plan->groups, a.stages = is_wide ? plan->wide_stages : plan->stages[m > 32];
    a.eps = c->rms_norm_eps;
    a.table = s->table;
    a.n_heads = c->n_heads, a.n_kv_heads = c->n_kv_heads, a.head_dim = c->head_dim, a.mlp = c->mlp_hidden_size;
    return a;
}

static void tsk__cuda_linear(tsk__cuda_stream *s, tsk__cuda_map map, tsk__cuda_linear_args *a) {
    const tsk__cuda_plan *plan = &s->backend->plans[map];
    int is_64 = a->m > 32;
    uint32_t fetchers = s->backend->arch >= 90 ? 64 : 128;
    void *parameters[1];
    parameters[0] = a;
    if (a->m > TSK__CUDA_SKINNY)
        tsk__cuda_launch(s, tsk__cuda_wide[map].kernel, (uint32_t)plan->wide_blocks, 1, 1, TSK__CUDA_LINEAR_WARPS * 32, (uint32_t)plan->wide_shared, parameters,
                         tsk__cuda_map_launches[map].name);
    else
        tsk__cuda_launch(s, (tsk__cuda_kernel)((int)tsk__cuda_map_launches[map].kernel + is_64), (uint32_t)plan->blocks, 1, 1, TSK__CUDA_LINEAR_WARPS * 32 + fetchers,
                         (uint32_t)plan->shared[is_64], parameters, tsk__cuda_map_launches[map].name);
}

/* out[m, n] = input[m, k] * weights[n, k]^T, plus out where `add`. out_f32: f32 results of bf16 values. */
static void tsk__cuda_product(tsk__cuda_stream *s, CUdeviceptr input, CUdeviceptr weights, CUdeviceptr out, int32_t m, int32_t n, int32_t k, int add, int out_f32) {
    tsk__cuda_backend *b = s->backend;
    const float one = 1.0f, beta = add ? 1.0f : 0.0f;
    if (s->failure != CUDA_SUCCESS) return;
    if (b->is_f32) {
        void *parameters[6];
        parameters[0] = &input, parameters[1] = &weights, parameters[2] = &out, parameters[3] = &m, parameters[4] = &n, parameters[5] = &k;
        tsk__cuda_launch(s, TSK__CUDA_exact_f32, (uint32_t)(n + 63) / 64, (uint32_t)(m + 31) / 32, 1, 256, 0, parameters, "exact_f32");
        return;
    }
    if (b->api.cublasGemmEx(s->cublas, CUBLAS_OP_T, CUBLAS_OP_N, n, m, k, &one, tsk__cuda_pointer(weights), CUDA_R_16BF, k, tsk__cuda_pointer(input), CUDA_R_16BF, k, &beta,
                            tsk__cuda_pointer(out), out_f32 ? CUDA_R_32F : CUDA_R_16BF, n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS)
        tsk__cuda_note(s, TSK__CUDA_UNKNOWN, "a cuBLAS product");
    s->can_overlap = 1;  /* our kernels wait for whatever comes before them */
    s->needs_signal = 1;
}

static void tsk__cuda_qkv(tsk__cuda_stream *s, int32_t layer, const tsk__taps *taps) {
    tsk__cuda_backend *b = s->backend;
    const tsk_model_config *c = b->base.config;
    const tsk__cuda_layer *w = &b->layers[layer];
    CUdeviceptr tap[4], bias = w->qkv_bias;
    tsk__cuda_rope_args rope;
    void *parameters[8];
    tap[0] = taps ? tsk__cuda_address(taps->q) : 0, tap[1] = taps ? tsk__cuda_address(taps->k) : 0, tap[2] = taps ? tsk__cuda_address(taps->v) : 0;
    tap[3] = taps ? tsk__cuda_address(taps->k_rope) : 0;
    if (taps && taps->norm) tsk__cuda_norm(s, s->n, 0, w->attn_norm, tsk__cuda_address(taps->norm));
    if (tsk__cuda_is_fused(s)) {
        tsk__cuda_linear_args a = tsk__cuda_linear_common(s, TSK__CUDA_MAP_QKV, s->n, w);
        tsk__cuda_need_normed(s, w->attn_norm);
        a.weights = w->qkv, a.bias = bias, a.squares_in = s->squares;
        a.out = tsk__cuda_address(s->base.q);
        a.layer_offset = tsk__cuda_layer_offset(c, layer);
        memcpy(a.taps, tap, sizeof tap);
        tsk__cuda_linear(s, TSK__CUDA_MAP_QKV, &a);
        return;
    }
    tsk__cuda_norm(s, s->n, 0, w->attn_norm, s->normed);
    tsk__cuda_product(s, s->normed, w->qkv, s->scratch, s->n, b->qkv_width, c->d_model, 0, 0);
    memset(&rope, 0, sizeof rope);
    rope.table = s->table;
    rope.n_heads = c->n_heads, rope.n_kv_heads = c->n_kv_heads, rope.head_dim = c->head_dim;
    rope.layer_offset = tsk__cuda_layer_offset(c, layer);
    parameters[0] = &s->scratch, parameters[1] = &bias, parameters[2] = &rope, parameters[3] = &s->base.q;
    parameters[4] = &tap[0], parameters[5] = &tap[1], parameters[6] = &tap[2], parameters[7] = &tap[3];
    tsk__cuda_launch(s, TSK__CUDA_rope_cache, (uint32_t)s->n, 1, 1, 256, 0, parameters, "rope_cache");
}

static void tsk__cuda_attend(tsk__cuda_stream *s, int32_t layer) {
    tsk__cuda_backend *b = s->backend;
    const tsk_model_config *c = b->base.config;
    tsk__cuda_attention_args a;
    uint64_t offset = tsk__cuda_layer_offset(c, layer);
    int32_t hd = c->head_dim;
    float scale = (float)(1.0 / sqrt((double)hd));
    memset(&a, 0, sizeof a);
    a.q = tsk__cuda_address(s->base.q), a.out = tsk__cuda_address(s->base.attention);
    a.table = s->table;
    a.parts = s->attention_parts;
    a.counters = s->counters;
    a.scale = scale * 1.44269504088896340736f;
    a.n_heads = c->n_heads, a.n_kv_heads = c->n_kv_heads;
    a.layer_offset = offset;
    if (b->has_flash) {
        void *parameters[1];
        uint32_t i = (uint32_t)s->attention;
        parameters[0] = &a;
        tsk__cuda_launch(s, (tsk__cuda_kernel)(tsk__cuda_attentions[i].kernel + (hd == 128)), tsk__cuda_attentions[i].splits, (uint32_t)c->n_heads, (uint32_t)s->n_tiles, tsk__cuda_attentions[i].threads,
                         tsk__cuda_attentions[i].bytes * (uint32_t)hd, parameters, "attention");
    } else {
        void *parameters[8];
        int32_t n_heads = c->n_heads, n_kv_heads = c->n_kv_heads;
        parameters[0] = &s->base.q, parameters[1] = &s->base.attention, parameters[2] = &s->table, parameters[3] = &n_heads, parameters[4] = &n_kv_heads, parameters[5] = &hd;
        parameters[6] = &scale, parameters[7] = &offset;
        tsk__cuda_launch(s, TSK__CUDA_attend, (uint32_t)s->n, (uint32_t)c->n_heads, 1, 128, 0, parameters, "attend");
    }
}

/* attn_out and down (`map` says which): x += input * weights^T + bias. */
static void tsk__cuda_out(tsk__cuda_stream *s, int32_t layer, tsk__cuda_map map, const tsk__taps *taps) {
    tsk__cuda_backend *b = s->backend;
    const tsk__cuda_layer *w = &b->layers[layer];
    int is_down = map == TSK__CUDA_MAP_DOWN;
    int32_t d = b->base.config->d_model, k = is_down ? b->base.config->mlp_hidden_size : b->q_width;
    CUdeviceptr input = tsk__cuda_address(is_down ? s->base.hidden : s->base.attention), weights = is_down ? w->down : w->attn_out, bias = is_down ? w->down_bias : w->attn_out_bias;
    /* after the last layer any will do: the head goes through its own norm */
    CUdeviceptr next_norm = !is_down ? w->ff_norm : layer + 1 < b->base.config->n_layers ? w[1].attn_norm : b->final_norm;
    CUdeviceptr tap = taps ? tsk__cuda_address(taps->projection) : 0, x = tsk__cuda_x(s);
    void *parameters[6];
    if (tsk__cuda_is_fused(s)) {
        tsk__cuda_linear_args a = tsk__cuda_linear_common(s, map, s->n, w);
        a.weights = weights, a.bias = bias, a.out = x;
        a.norm = next_norm, a.normed = s->normed, a.squares_out = s->squares;
        a.taps[0] = tap;
        tsk__cuda_linear(s, map, &a);
        s->normed_for = next_norm;
        return;
    }
    s->normed_for = 0;
    if (!b->is_f32 && !bias && s->n > TSK__CUDA_SKINNY) {  /* no row is masked: cuBLAS adds to x itself; a trace sees the projection alone */
        if (tap) tsk__cuda_product(s, input, weights, tap, s->n, d, k, 0, 0);
        tsk__cuda_product(s, input, weights, x, s->n, d, k, 1, 0);
        return;
    }
    tsk__cuda_product(s, input, weights, s->scratch, s->n, d, k, 0, 0);
    parameters[0] = &s->scratch, parameters[1] = &bias, parameters[2] = &s->table, parameters[3] = &x, parameters[4] = &d, parameters[5] = &tap;
    tsk__cuda_launch(s, TSK__CUDA_residual, (uint32_t)s->n, 1, 1, 256, 0, parameters, "residual");
}

static void tsk__cuda_gate_up(tsk__cuda_stream *s, int32_t layer, const tsk__taps *taps) {
    tsk__cuda_backend *b = s->backend;
    const tsk_model_config *c = b->base.config;
    const tsk__cuda_layer *w = &b->layers[layer];
    CUdeviceptr gate = taps ? tsk__cuda_address(taps->gate) : 0, up = taps ? tsk__cuda_address(taps->up) : 0, bias = w->gate_up_bias;
    int32_t mlp = c->mlp_hidden_size;
    void *parameters[6];
    if (taps && taps->norm) tsk__cuda_norm(s, s->n, 0, w->ff_norm, tsk__cuda_address(taps->norm));
    if (tsk__cuda_is_fused(s)) {
        tsk__cuda_linear_args a = tsk__cuda_linear_common(s, TSK__CUDA_MAP_GATE_UP, s->n, w);
        tsk__cuda_need_normed(s, w->ff_norm);
        a.weights = w->gate_up, a.bias = bias, a.squares_in = s->squares;
        a.out = tsk__cuda_address(s->base.hidden);
        a.taps[0] = gate, a.taps[1] = up;
        tsk__cuda_linear(s, TSK__CUDA_MAP_GATE_UP, &a);
        return;
    }
    tsk__cuda_norm(s, s->n, 0, w->ff_norm, s->normed);
    tsk__cuda_product(s, s->normed, w->gate_up, s->scratch, s->n, b->gate_up_rows, c->d_model, 0, 0);
    parameters[0] = &s->scratch, parameters[1] = &bias, parameters[2] = &s->base.hidden, parameters[3] = &mlp, parameters[4] = &gate, parameters[5] = &up;
    tsk__cuda_launch(s, TSK__CUDA_silu, (uint32_t)s->n, (uint32_t)((mlp + 7) / 8 + 127) / 128, 1, 128, 0, parameters, "silu");
}

static void tsk__cuda_compare(tsk__cuda_stream *s, int32_t state) {
    uint64_t at = (uint64_t)state * (uint64_t)s->base.max_rows;
    CUdeviceptr x = tsk__cuda_x(s), cosines = s->cosines + at * sizeof(float), host_cosines = tsk__cuda_address(s->base.cosines + at);
    int32_t d = s->backend->base.config->d_model;
    void *parameters[6];
    parameters[0] = &x, parameters[1] = &s->table, parameters[2] = &state, parameters[3] = &cosines, parameters[4] = &host_cosines, parameters[5] = &d;
    tsk__cuda_launch(s, TSK__CUDA_compare, (uint32_t)s->n, 1, 1, 256, 0, parameters, "compare");
}

static void tsk__cuda_decide(tsk__cuda_stream *s, int32_t n_states) {
    CUdeviceptr host_skipped = tsk__cuda_address(s->base.skipped);
    int32_t masks = s->n <= TSK__CUDA_SKINNY;
    void *parameters[8];
    parameters[0] = &s->table, parameters[1] = &s->n, parameters[2] = &n_states, parameters[3] = &s->cosines, parameters[4] = &s->base.max_rows, parameters[5] = &masks;
    parameters[6] = &s->skipped, parameters[7] = &host_skipped;
    tsk__cuda_launch(s, TSK__CUDA_decide, (uint32_t)(s->n + 127) / 128, 1, 1, 128, 0, parameters, "decide");
    s->can_overlap = 0;  /* what follows may read the table before it waits for its predecessor */
}

static void tsk__cuda_keep(tsk__cuda_stream *s) {
    CUdeviceptr x = tsk__cuda_x(s);
    int32_t d = s->backend->base.config->d_model;
    void *parameters[4];
    parameters[0] = &x, parameters[1] = &s->table, parameters[2] = &s->skipped, parameters[3] = &d;
    tsk__cuda_launch(s, TSK__CUDA_keep, (uint32_t)s->n, (uint32_t)s->n_states + 1, 1, 256, 0, parameters, "keep");
    s->normed_for = 0;
}

/* The kernel reads the lists where the host leaves them: a copy would take longer than their few words. */
static void tsk__cuda_select(tsk__cuda_stream *s, int32_t n, const tsk__selection *selections, int32_t n_candidates, const tsk__candidate *candidates) {
    uint64_t candidates_at, at = tsk__cuda_argument_pair(s, selections, (uint64_t)n * sizeof *selections, candidates, (uint64_t)n_candidates * sizeof *candidates, &candidates_at);
    CUdeviceptr selections_there = tsk__cuda_address(s->arguments + at), candidates_there = selections_there + candidates_at, choices = tsk__cuda_address(s->base.choices);
    void *parameters[6];
    parameters[0] = &s->table, parameters[1] = &selections_there, parameters[2] = &candidates_there, parameters[3] = &s->base.predictions, parameters[4] = &s->confidences, parameters[5] = &choices;
    tsk__cuda_launch(s, TSK__CUDA_select_tokens, (uint32_t)n, 1, 1, 128, 0, parameters, "select_tokens");
}

static void tsk__cuda_move(tsk__cuda_stream *s, CUdeviceptr to, CUdeviceptr from, CUdeviceptr index, int32_t scatter, int32_t n) {
    int32_t d = s->backend->base.config->d_model;
    void *parameters[5];
    parameters[0] = &to, parameters[1] = &from, parameters[2] = &index, parameters[3] = &scatter, parameters[4] = &d;
    tsk__cuda_launch(s, TSK__CUDA_move_rows, (uint32_t)n, 1, 1, 256, 0, parameters, "move_rows");
    s->normed_for = 0;
}

/* The list of begin again. Compacting only moved rows forward in the image, and kept their numbers: the others' entries
   lie behind (see compact). */
static void tsk__cuda_expand(tsk__cuda_stream *s) {
    int32_t i;
    if (!s->compacted) return;
    tsk__cuda_move(s, s->full_x, s->compact_x, s->compact_index, 1, s->n);
    tsk__cuda_wait_fetched(s);
    for (i = 0; i < s->all_n; i++)  /* a permutation: every swap puts one row where it belongs */
        while (s->rows[i].number != i) {
            tsk__cuda_row row = s->rows[s->rows[i].number];
            s->rows[s->rows[i].number] = s->rows[i];
            s->rows[i] = row;
        }
    s->n = s->all_n;
    s->compacted = 0;
    s->base.x = tsk__cuda_pointer(s->full_x);
    tsk__cuda_make_tiles(s);
}

static void tsk__cuda_compact(tsk__cuda_stream *s, int32_t n, const int32_t *index) {
    int32_t i, j;
    tsk__cuda_expand(s);
    /* at a place of its own: expand reads it after any number of waits */
    tsk__cuda_upload(s, s->compact_index, tsk__cuda_argument_place(s, index, (uint64_t)n * sizeof *index), (uint64_t)n * sizeof *index);
    tsk__cuda_move(s, s->compact_x, s->full_x, s->compact_index, 0, n);
    tsk__cuda_wait_fetched(s);
    for (i = 0; i < n; i++) {  /* the wanted row may have been swapped away: its number tells where to */
        tsk__cuda_row row = s->rows[i];
        for (j = index[i]; s->rows[j].number != index[i]; j = s->rows[j].number) {
        }
        s->rows[i] = s->rows[j];
        s->rows[j] = row;
    }
    s->n = n;
    s->compacted = n;
    s->base.x = tsk__cuda_pointer(s->compact_x);
    tsk__cuda_make_tiles(s);
}

/* ---- the head: one of the linear maps for few rows; for more, matrix products over slices of the vocabulary, whose
   logits are reduced before the next slice takes their place */

/* Of m rows, the first of which is number `first` of the head's. */
static void tsk__cuda_head_finish(tsk__cuda_stream *s, int32_t m, int32_t tiles, CUdeviceptr draws, int32_t first) {
    CUdeviceptr predictions = tsk__cuda_address(s->base.predictions) + (uint64_t)first * sizeof(tsk__prediction);
    void *parameters[5];
    parameters[0] = &s->heads, parameters[1] = &tiles, parameters[2] = &m, parameters[3] = &draws, parameters[4] = &predictions;
    tsk__cuda_launch(s, TSK__CUDA_head_finish, (uint32_t)m, 1, 1, 128, 0, parameters, "head_finish");
}

/* Of no more normalised rows than the fused maps take: their predictions, or, where there is room for them, logits. */
static void tsk__cuda_head_fused(tsk__cuda_stream *s, int32_t m, CUdeviceptr draws, CUdeviceptr logits) {
    tsk__cuda_backend *b = s->backend;
    tsk__cuda_linear_args a = tsk__cuda_linear_common(s, TSK__CUDA_MAP_HEAD, m, NULL);
    a.weights = b->head, a.bias = b->head_bias;
    a.draws = draws, a.heads = s->heads, a.logits = logits;
    tsk__cuda_linear(s, TSK__CUDA_MAP_HEAD, &a);
    if (!logits) tsk__cuda_head_finish(s, m, tsk__cuda_head_tiles(b, m), draws, 0);
}

/* Logits of ids first .. first + n - 1 of the normalised rows, into [m, n]; their tiles into heads. */
static void tsk__cuda_head_slice(tsk__cuda_stream *s, int32_t m, CUdeviceptr draws, CUdeviceptr logits, int32_t first, int32_t n) {
    tsk__cuda_backend *b = s->backend;
    int32_t d = b->base.config->d_model, bias_is_bf16 = !b->is_f32;
    void *parameters[7];
    tsk__cuda_product(s, s->normed, b->head + (uint64_t)first * (uint64_t)d * b->base.element_size, logits, m, n, d, 0, 1);
    parameters[0] = &logits, parameters[1] = &b->head_bias, parameters[2] = &bias_is_bf16, parameters[3] = &draws, parameters[4] = &s->heads, parameters[5] = &first;
    parameters[6] = &n;
    tsk__cuda_launch(s, TSK__CUDA_head_tiles, (uint32_t)(n + TSK__CUDA_HEAD_TILE - 1) / TSK__CUDA_HEAD_TILE, (uint32_t)m, 1, 128, 0, parameters, "head_tiles");
}

/* Up to TSK__CUDA_HEAD_ROWS rows, from number `first_row` of the head's on. */
static void tsk__cuda_head_sliced(tsk__cuda_stream *s, int32_t m, CUdeviceptr index, CUdeviceptr draws, int32_t first_row) {
    int32_t vocabulary = s->backend->base.config->embedding_size, first;
    tsk__cuda_norm(s, m, index, s->backend->final_norm, s->normed);
    for (first = 0; first < vocabulary; first += TSK__CUDA_HEAD_SLICE)
        tsk__cuda_head_slice(s, m, draws, s->logits, first, vocabulary - first < TSK__CUDA_HEAD_SLICE ? vocabulary - first : TSK__CUDA_HEAD_SLICE);
    tsk__cuda_head_finish(s, m, (vocabulary + TSK__CUDA_HEAD_TILE - 1) / TSK__CUDA_HEAD_TILE, draws, first_row);
}

/* Memory for logits, made when first needed: a slice's for all rows of a chunk, or all of a few rows'. */
static int tsk__cuda_need_logits(tsk__cuda_stream *s) {
    uint64_t slice = (uint64_t)tsk__cuda_head_rows(s->base.max_rows) * TSK__CUDA_HEAD_SLICE, whole = (uint64_t)TSK__CUDA_LOGITS_ROWS * (uint64_t)s->backend->base.config->embedding_size;
    if (!s->logits) tsk__cuda_note(s, s->backend->api.cuMemAlloc_v2(&s->logits, (size_t)((slice > whole ? slice : whole) * sizeof(float))), "memory for logits");
    return s->failure == CUDA_SUCCESS;
}

/* The rows' and the draws' copies on the device, in one upload: a second one's place could be the first one's. */
static CUdeviceptr tsk__cuda_head_lists(tsk__cuda_stream *s, int32_t n, const int32_t *index, int32_t n_draws, const tsk__draw *draws, CUdeviceptr *draws_there) {
    uint64_t draws_size = (uint64_t)n_draws * sizeof *draws, draws_at, at = tsk__cuda_argument_pair(s, index, (uint64_t)n * sizeof *index, draws, draws_size, &draws_at);
    tsk__cuda_upload(s, s->device_arguments + at, at, draws_at + draws_size);
    *draws_there = s->device_arguments + at + draws_at;
    return s->device_arguments + at;
}

static void tsk__cuda_head(tsk__cuda_stream *s, int32_t n, const int32_t *index, const tsk__draw *draws) {
    int is_fused = n <= tsk__cuda_fused_rows(s->backend);
    int32_t i;
    CUdeviceptr all_draws, indices = tsk__cuda_head_lists(s, n, index, n, draws, &all_draws);
    if (is_fused) {
        tsk__cuda_norm(s, n, indices, s->backend->final_norm, s->normed);
        tsk__cuda_head_fused(s, n, all_draws, 0);
    } else if (tsk__cuda_need_logits(s))
        for (i = 0; i < n; i += TSK__CUDA_HEAD_ROWS)
            tsk__cuda_head_sliced(s, tsk__cuda_head_rows(n - i), indices + (uint64_t)i * sizeof *index, all_draws + (uint64_t)i * sizeof *draws, i);
}

static void tsk__cuda_logits(tsk__cuda_stream *s, int32_t n, const int32_t *index, float *norm, float *logits) {
    const tsk__cuda_backend *b = s->backend;
    uint64_t d = (uint64_t)b->base.config->d_model, vocabulary = (uint64_t)b->base.config->embedding_size;
    tsk__draw draws[TSK__CUDA_LOGITS_ROWS];
    int32_t i;
    memset(draws, 0, sizeof draws);
    if (!tsk__cuda_need_logits(s)) return;
    for (i = 0; i < n; i += TSK__CUDA_LOGITS_ROWS) {
        int32_t m = n - i < TSK__CUDA_LOGITS_ROWS ? n - i : TSK__CUDA_LOGITS_ROWS;
        CUdeviceptr no_draws, indices = tsk__cuda_head_lists(s, m, index + i, TSK__CUDA_LOGITS_ROWS, draws, &no_draws);
        tsk__cuda_norm(s, m, indices, b->final_norm, s->normed);
        if (norm) tsk__cuda_download(s, norm + (uint64_t)i * d, s->normed, (uint64_t)m * d, b->base.element_size);
        if (b->has_skinny) tsk__cuda_head_fused(s, m, no_draws, s->logits);
        else tsk__cuda_head_slice(s, m, no_draws, s->logits, 0, (int32_t)vocabulary);
        tsk__cuda_download(s, logits + (uint64_t)i * vocabulary, s->logits, (uint64_t)m * vocabulary, sizeof(float));
    }
}

/* ---- recorded sections */

/* cuBLAS chooses and prepares kernels at its own times: what uses it is not recorded. Nor are long passes of kernels that
   take longer than they take to launch. */
static int tsk__cuda_records(const tsk__cuda_stream *s) { return s->backend->is_f32 ? s->n <= TSK__CUDA_SKINNY : tsk__cuda_is_fused(s); }

/* The section that the stream is about to run. */
static tsk__cuda_section tsk__cuda_section_now(const tsk__cuda_stream *s, uint64_t key) {
    tsk__cuda_section section;
    section.key = key;
    section.n = s->n, section.n_requests = s->n_requests, section.n_tiles = s->n_tiles, section.attention = s->attention;
    section.fetches = s->is_dirty;
    section.x = s->base.x;
    section.graph = NULL;
    return section;
}
static int tsk__cuda_is_same_section(const tsk__cuda_section *a, const tsk__cuda_section *b) {
    return a->key == b->key && a->n == b->n && a->n_requests == b->n_requests && a->n_tiles == b->n_tiles && a->attention == b->attention && a->fetches == b->fetches && a->x == b->x;
}

/* Passes of more rows, many requests', narrowed or not, come in ever new combinations, and recording one takes as long as some
   launches save: only what comes again at once, as that of a steady batch does, is worth it. */
static int tsk__cuda_comes_again(tsk__cuda_stream *s, uint64_t key) {
    tsk__cuda_section now = tsk__cuda_section_now(s, key);
    int i;
    if (s->all_n <= TSK__CUDA_SKINNY) return 1;
    for (i = 0; i < TSK__CUDA_SEEN; i++)
        if (tsk__cuda_is_same_section(&s->seen[i], &now)) return 1;
    s->seen[s->next_seen] = now;
    s->next_seen = (s->next_seen + 1) % TSK__CUDA_SEEN;
    return 0;
}

static int tsk__cuda_replay(tsk__cuda_stream *s, uint64_t key) {
    tsk__cuda_section now = tsk__cuda_section_now(s, key);
    int i;
    if (!tsk__cuda_records(s) || s->failure != CUDA_SUCCESS) return 0;
    for (i = 0; i < s->n_sections && !tsk__cuda_is_same_section(&s->sections[i], &now); i++) {
    }
    if (i == s->n_sections) return 0;
    tsk__cuda_note(s, s->backend->api.cuGraphLaunch(s->sections[i].graph, s->stream), "a recorded section");
    s->fetches += now.fetches != 0;
    s->is_dirty = 0;
    s->normed_for = 0;
    s->can_overlap = 0;
    s->needs_signal = 1;
    return 1;
}

static void tsk__cuda_record(tsk__cuda_stream *s, uint64_t key) {
    if (!tsk__cuda_records(s) || s->failure != CUDA_SUCCESS || !tsk__cuda_comes_again(s, key)) return;
    s->normed_for = 0;  /* a section does not rely on what was left before it, but for the row table */
    s->can_overlap = 0;
    s->recording = tsk__cuda_section_now(s, key);
    tsk__cuda_note(s, s->backend->api.cuStreamBeginCapture_v2(s->stream, (CUstreamCaptureMode)CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "recording");
    s->is_recording = s->failure == CUDA_SUCCESS;
}

static void tsk__cuda_finish(tsk__cuda_stream *s) {
    const tsk__cuda_api *api = &s->backend->api;
    tsk__cuda_section *section;
    CUgraph graph = NULL;
    CUgraphExec executable = NULL;
    CUresult result;
    if (!s->is_recording) return;
    s->is_recording = 0;
    result = api->cuStreamEndCapture(s->stream, &graph);
    tsk__cuda_note(s, result, "recording");
    if (s->failure == CUDA_SUCCESS) tsk__cuda_note(s, api->cuGraphInstantiateWithFlags(&executable, graph, 0), "recording");
    if (graph) api->cuGraphDestroy(graph);
    if (s->failure != CUDA_SUCCESS) return;
    if (s->n_sections == TSK__CUDA_SECTIONS) {
        api->cuStreamSynchronize(s->stream);
        api->cuGraphExecDestroy(s->sections[s->next_section].graph);
    } else s->next_section = s->n_sections++;
    section = &s->sections[s->next_section];
    s->next_section = (s->next_section + 1) % TSK__CUDA_SECTIONS;
    *section = s->recording;
    section->graph = executable;
    s->normed_for = 0;
    tsk__cuda_note(s, api->cuGraphLaunch(executable, s->stream), "a recorded section");
    s->can_overlap = 0;
}

/* ---- the table: every entry works in the backend's context */

#define TSK__CUDA_OPERATION(name, parameters, call) \
    static void tsk__cuda_backend_##name parameters { \
        tsk__cuda_stream *s = tsk__cuda_stream_of(stream); \
        tsk__cuda_enter(s->backend); \
        call; \
        tsk__cuda_leave(s->backend); \
    }
TSK__CUDA_OPERATION(embed, (tsk__stream *stream), tsk__cuda_embed(s))
TSK__CUDA_OPERATION(qkv, (tsk__stream *stream, int32_t layer, const tsk__taps *taps), tsk__cuda_qkv(s, layer, taps))
TSK__CUDA_OPERATION(attend, (tsk__stream *stream, int32_t layer), tsk__cuda_attend(s, layer))
TSK__CUDA_OPERATION(attn_out, (tsk__stream *stream, int32_t layer, const tsk__taps *taps), tsk__cuda_out(s, layer, TSK__CUDA_MAP_OUT, taps))
TSK__CUDA_OPERATION(gate_up, (tsk__stream *stream, int32_t layer, const tsk__taps *taps), tsk__cuda_gate_up(s, layer, taps))
TSK__CUDA_OPERATION(down, (tsk__stream *stream, int32_t layer, const tsk__taps *taps), tsk__cuda_out(s, layer, TSK__CUDA_MAP_DOWN, taps))
TSK__CUDA_OPERATION(compare, (tsk__stream *stream, int32_t state), tsk__cuda_compare(s, state))
TSK__CUDA_OPERATION(decide, (tsk__stream *stream, int32_t n_states), tsk__cuda_decide(s, n_states))
TSK__CUDA_OPERATION(keep, (tsk__stream *stream), tsk__cuda_keep(s))
TSK__CUDA_OPERATION(select, (tsk__stream *stream, int32_t n, const tsk__selection *selections, int32_t n_candidates, const tsk__candidate *candidates), tsk__cuda_select(s, n, selections, n_candidates, candidates))
TSK__CUDA_OPERATION(compact, (tsk__stream *stream, int32_t n, const int32_t *index), tsk__cuda_compact(s, n, index))
TSK__CUDA_OPERATION(expand, (tsk__stream *stream), tsk__cuda_expand(s))
TSK__CUDA_OPERATION(head, (tsk__stream *stream, int32_t n, const int32_t *index, const tsk__draw *draws), tsk__cuda_head(s, n, index, draws))
TSK__CUDA_OPERATION(logits, (tsk__stream *stream, int32_t n, const int32_t *index, float *norm, float *logits), tsk__cuda_logits(s, n, index, norm, logits))
TSK__CUDA_OPERATION(record, (tsk__stream *stream, uint64_t key), tsk__cuda_record(s, key))
TSK__CUDA_OPERATION(finish, (tsk__stream *stream), tsk__cuda_finish(s))
#undef TSK__CUDA_OPERATION
static int tsk__cuda_backend_replay(tsk__stream *stream, uint64_t key) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    int result;
    tsk__cuda_enter(s->backend);
    result = tsk__cuda_replay(s, key);
    tsk__cuda_leave(s->backend);
    return result;
}

static const tsk__backend_ops tsk__cuda_backend_ops = {
    TSK__CUDA_SKINNY, tsk__cuda_backend_available, tsk__cuda_backend_stream_create, tsk__cuda_backend_stream_destroy, tsk__cuda_backend_allocate, tsk__cuda_backend_release,
    tsk__cuda_backend_copy, tsk__cuda_backend_slide, tsk__cuda_backend_upload, tsk__cuda_backend_download, tsk__cuda_backend_wait, tsk__cuda_backend_begin, tsk__cuda_backend_mask, tsk__cuda_backend_embed,
    tsk__cuda_backend_qkv, tsk__cuda_backend_attend, tsk__cuda_backend_attn_out, tsk__cuda_backend_gate_up, tsk__cuda_backend_down, tsk__cuda_backend_compare,
    tsk__cuda_backend_decide, tsk__cuda_backend_keep, tsk__cuda_backend_compact, tsk__cuda_backend_expand, tsk__cuda_backend_head, tsk__cuda_backend_select, tsk__cuda_backend_logits, tsk__cuda_backend_replay, tsk__cuda_backend_record, tsk__cuda_backend_finish};

/* ---- creating and destroying */

static void tsk__cuda_backend_destroy(tsk__backend *backend) {
    tsk__cuda_backend *b;
    if (!backend) return;
    b = tsk__cuda_backend_of(backend);
    if (b->context) {
        tsk__cuda_enter(b);
        if (b->arena) b->api.cuMemFree_v2(b->arena);
        if (b->module) b->api.cuModuleUnload(b->module);
        tsk__cuda_leave(b);
        b->api.cuDevicePrimaryCtxRelease_v2(b->device);
    }
    tsk__memory_delete(b->allocator, b->layers);
    tsk__memory_delete(b->allocator, b);
}

/* The device, its context and what they can do. */
static tsk_status tsk__cuda_open(tsk__cuda_backend *b, int index, char *name, size_t name_size, tsk_error *error) {
    tsk__cuda_api *api = &b->api;
    int major = 0, minor = 0;
    CUresult result = api->cuInit(0);
    if (result == CUDA_SUCCESS) result = api->cuDeviceGet(&b->device, index);
    if (result == CUDA_SUCCESS) result = api->cuDriverGetVersion(&b->driver_version);
    if (result == CUDA_SUCCESS) result = api->cuDeviceGetName(name, (int)name_size, b->device);
    if (result == CUDA_SUCCESS) result = api->cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, b->device);
    if (result == CUDA_SUCCESS) result = api->cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, b->device);
    if (result == CUDA_SUCCESS) result = api->cuDeviceGetAttribute(&b->n_multiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, b->device);
    if (result == CUDA_SUCCESS) result = api->cuDeviceGetAttribute(&b->shared_limit, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, b->device);
    if (result == CUDA_SUCCESS) result = api->cuDevicePrimaryCtxRetain(&b->context, b->device);
    if (result != CUDA_SUCCESS) b->context = NULL;
    b->arch = major * 10 + minor;
    return tsk__cuda_fail(api, error, result, "opening the device");
}

/* Which of the fast ways the model's shapes allow; others take the general ones. */
static void tsk__cuda_choose(tsk__cuda_backend *b) {
    const tsk_model_config *c = b->base.config;
    int32_t hd = c->head_dim;
    b->q_width = c->n_heads * hd;
    b->kv_width = c->n_kv_heads * hd;
    b->qkv_width = b->q_width + 2 * b->kv_width;
    b->gate_up_rows = (c->mlp_hidden_size + 7) / 8 * 16;
    b->has_skinny = !b->is_f32 && hd % 16 == 0 && c->d_model % 8 == 0 && c->mlp_hidden_size % 8 == 0 && tsk__cuda_plan_maps(b);
    b->has_flash = !b->is_f32 && (hd == 64 || hd == 128);
}

static tsk_status tsk__cuda_backend_create(const tsk_model_config *config, const tsk_folder *folder, uint64_t seed, const tsk_model_options *o, tsk__backend **out,
                                           char *name, size_t name_size, tsk_error *error) {
    const tsk_allocator *allocator = tsk__memory_allocator(&o->host);
    tsk__cuda_backend *b = (tsk__cuda_backend *)tsk__memory_new_zeroed(allocator, 1, sizeof *b);
    tsk_status status = TSK_OK;
    char why[160] = "";
    *out = NULL;
    if (!b) return tsk__error_memory(error, "the CUDA backend", sizeof *b);
    b->allocator = allocator;
    b->is_f32 = o->dtype == TSK_DTYPE_F32;
    b->base.ops = &tsk__cuda_backend_ops;
    b->base.config = config;
    b->base.element_size = b->is_f32 ? 4 : 2;
    b->layers = (tsk__cuda_layer *)tsk__memory_new_zeroed(allocator, (size_t)config->n_layers, sizeof *b->layers);
    if (!b->layers) status = tsk__error_memory(error, "the list of layers", (uint64_t)config->n_layers * sizeof *b->layers);
    else if (config->head_dim > 256 || config->head_dim % 2 || config->d_model > 1 << 20)
        status = tsk__error_set(error, TSK_ERROR_UNSUPPORTED, NULL, TSK_NO_OFFSET, "the CUDA backend takes an even head_dim up to 256, not %d", (int)config->head_dim);
    else if (!tsk__cuda_load(&b->api, TSK__CUDA_LIBRARY_DRIVER, why, sizeof why) || (!b->is_f32 && !tsk__cuda_load(&b->api, TSK__CUDA_LIBRARY_CUBLAS, why, sizeof why)))
        status = tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET, "CUDA cannot be used: %s", why);
    if (status == TSK_OK) status = tsk__cuda_open(b, o->device_index, name, name_size, error);
    if (status == TSK_OK) {
        tsk__cuda_choose(b);
        tsk__cuda_enter(b);
        status = tsk__cuda_load_kernels(b, o, error);
        if (status == TSK_OK) status = tsk__cuda_plan_wide(b, error);
        if (status == TSK_OK) status = tsk__cuda_arena(b, error);
        if (status == TSK_OK) status = tsk__cuda_encode_weights(b, error);
        if (status == TSK_OK) status = folder ? tsk__cuda_load_weights(b, folder, o, error) : tsk__cuda_random(b, seed, error);
        tsk__cuda_leave(b);
    }
    if (status != TSK_OK) tsk__cuda_backend_destroy(&b->base);
    else *out = &b->base;
    return status;
}

/* ---- ceilings, for benchmarks */

/* The best of some runs, in milliseconds; `product` or else the read-only stream. */
static double tsk__cuda_time(tsk__cuda_stream *s, int product, CUdeviceptr memory, uint64_t bytes, int32_t size) {
    uint64_t third = (uint64_t)size * (uint64_t)size * s->backend->base.element_size, pieces = bytes / 16;
    double best = 1e30;
    void *parameters[3];
    int i, repeat, repeats = product && !s->backend->is_f32 ? 20 : 1;
    parameters[0] = &memory, parameters[1] = &pieces, parameters[2] = &s->state_words;
    for (i = 0; i < 6 && s->failure == CUDA_SUCCESS; i++) {
        double start = tsk__time_ms();
        for (repeat = 0; repeat < repeats; repeat++) {
            if (product) tsk__cuda_product(s, memory, memory + third, memory + 2 * third, size, size, size, 0, 0);
            else tsk__cuda_launch(s, TSK__CUDA_read_stream, (uint32_t)s->backend->n_multiprocessors * 8, 1, 1, 512, 0, parameters, "read_stream");
        }
        tsk__cuda_note(s, s->backend->api.cuStreamSynchronize(s->stream), "measuring");
        start = (tsk__time_ms() - start) / repeats;
        if (start < best) best = start;
    }
    return best;
}

static tsk_status tsk__cuda_ceilings(tsk__backend *backend, tsk_ceilings *out, tsk_error *error) {
    tsk__cuda_backend *b = tsk__cuda_backend_of(backend);
    int32_t size = b->is_f32 ? 2048 : 8192, rows = tsk__cuda_fused_rows(b) + 1;  /* for which there is cuBLAS */
    uint64_t bytes = (uint64_t)1 << 30, count = bytes / b->base.element_size;
    uint32_t tensor = 0;
    uint64_t seed = 1;
    float scale = 1.0f;
    tsk__cuda_placing placing = {1, 0, 0, 0};
    tsk__stream *stream = NULL;
    tsk_status status = tsk__cuda_backend_stream_create(backend, rows, 0, &stream, error);
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    CUdeviceptr memory = 0;
    void *parameters[6];
    if (status != TSK_OK) return status;
    memory = tsk__cuda_address(tsk__cuda_backend_allocate(backend, bytes));
    if (!memory) status = tsk__error_memory(error, "measuring", bytes);
    else {
        parameters[0] = &memory, parameters[1] = &count, parameters[2] = &placing, parameters[3] = &seed, parameters[4] = &tensor, parameters[5] = &scale;
        tsk__cuda_enter(b);
        tsk__cuda_launch(s, TSK__CUDA_randomise, (uint32_t)b->n_multiprocessors * 8, 1, 1, 256, 0, parameters, "randomise");
        out->bytes_per_second = (double)bytes / (tsk__cuda_time(s, 0, memory, bytes, 0) * 1e-3);
        out->flops_per_second = 2.0 * size * (double)size * size / (tsk__cuda_time(s, 1, memory, bytes, size) * 1e-3);
        tsk__cuda_leave(b);
        status = tsk__cuda_backend_wait(stream, error);
    }
    tsk__cuda_backend_release(backend, tsk__cuda_pointer(memory));
    tsk__cuda_backend_stream_destroy(stream);
    return status;
}
#endif /* TOKENSKIP_NO_CUDA */

#endif /* SECTION_GUARD_CUDA */
