#ifndef SECTION_GUARD_CUDA_DRIVER
#define SECTION_GUARD_CUDA_DRIVER

#include "platform.h"

// >>cuda_driver =======================================================================================================
/* The second backend: NVIDIA GPUs from compute capability 8.0 up, through the driver API. The kernels (src/kernels) are
   compiled by NVRTC for the GPU at hand and kept on disk. Weights lie in one arena on the device, laid out for the
   kernels: q, k and v rows in one matrix, 8 rows of a head's first half alternating with their partners in RoPE, and 8
   rows of gate with 8 of up. Ways through the layers:

       bf16, up to 64 rows    few fused kernels that read every weight once (linear_*), recorded as CUDA graphs
       bf16, up to 128 rows   on compute capability 9.0 the same with other kernels (wide_*), recorded when they come
       again bf16, more rows        cuBLAS for the matrix products, row-wise kernels between them f32                   
       as the last, with a matrix product of our own that adds in one order whatever the rows

   What varies from pass to pass (positions, cache addresses, which rows may be skipped) reaches the kernels through a
   table that the pass's first kernel fetches from pinned host memory, so that a recorded section stays good for the
   stream's life. Tokens and predictions stay on the device, which masks the rows that it decides to skip, in the table,
   and commits; the host is left a word for each row and each candidate, and learns that work is done by watching a
   pinned word. Where it needs no answer in a pass's middle (TokenSkip with masked tokens always running) all of the
   pass is launched at once. */

#ifndef TOKENSKIP_NO_CUDA
#define TOKENSKIP__HAS_CUDA

#ifdef __cplusplus
}  /* extern "C": the CUDA headers have templates */
#endif
#ifndef TOKENSKIP_CUDA_DLOPEN
#if defined(__has_include)
#if !__has_include(<cuda.h>)
#error "cuda.h not found. Give its folder with -I (often /usr/local/cuda/include), or define TOKENSKIP_CUDA_DLOPEN \
to look for CUDA at run time, or TOKENSKIP_NO_CUDA to do without"
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
    CUDA_SUCCESS = 0,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_READY = 600,
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
    CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9,
    CU_STREAM_NON_BLOCKING = 1,
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1,
    CU_EVENT_DISABLE_TIMING = 2,
    CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION = 4,
    CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6,
    CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9,
    CU_TENSOR_MAP_INTERLEAVE_NONE = 0,
    CU_TENSOR_MAP_SWIZZLE_128B = 3,
    CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3,
    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0,
    NVRTC_SUCCESS = 0,
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_OP_N = 0,
    CUBLAS_OP_T = 1,
    CUDA_R_32F = 0,
    CUDA_R_16BF = 14,
    CUBLAS_COMPUTE_32F = 68,
    CUBLAS_GEMM_DEFAULT = -1
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
    X(CUresult, cuTensorMapEncodeTiled, (CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, \
                                         const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, \
                                         CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, \
                                         CUtensorMapFloatOOBfill)) \
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
    X(nvrtcResult, nvrtcCreateProgram, (nvrtcProgram *, const char *, const char *, int, const char *const *, \
                                        const char *const *)) \
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
    X(cublasStatus_t, cublasGemmEx, \
      (cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void *, const void *, cudaDataType, \
       int, const void *, cudaDataType, int, const void *, void *, cudaDataType, int, cublasComputeType_t, \
       cublasGemmAlgo_t))

typedef struct tsk__cuda_api {
#define TSK__CUDA_FIELD(type, name, parameters) type (*name) parameters;
    TSK__CUDA_DRIVER(TSK__CUDA_FIELD)
    TSK__CUDA_NVRTC(TSK__CUDA_FIELD)
    TSK__CUDA_CUBLAS(TSK__CUDA_FIELD)
#undef TSK__CUDA_FIELD
} tsk__cuda_api;

typedef enum tsk__cuda_library {
    TSK__CUDA_LIBRARY_DRIVER,
    TSK__CUDA_LIBRARY_NVRTC,
    TSK__CUDA_LIBRARY_CUBLAS
} tsk__cuda_library;

/* Fills a library's part of `api`. 0 with `why` when it is not there. */
#ifdef TOKENSKIP_CUDA_DLOPEN
/* ISO C has no cast from dlsym's object pointer to a function's. */
static int tsk__cuda_symbol(void *library, const char *name, void *function, char *why, size_t why_size) {
    void *address = tsk__library_find(library, name);
    memcpy(function, &address, sizeof address);
    if (!address) snprintf(why, why_size, "%s is missing from its library", name);
    return address != NULL;
}

static int tsk__cuda_load(tsk__cuda_api *api, tsk__cuda_library which, char *why, size_t why_size) {
#ifdef _WIN32
    static const char *const names[3][5] = {{"nvcuda.dll", NULL, NULL, NULL, NULL},
                                            {"nvrtc64_130_0.dll", "nvrtc64_120_0.dll", NULL, NULL, NULL},
                                            {"cublas64_13.dll", "cublas64_12.dll", NULL, NULL, NULL}};
#else
    static const char *const names[3][5] = {{"libcuda.so.1", "libcuda.so", NULL, NULL, NULL},
                                            {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so",
                                             "/usr/local/cuda/lib64/libnvrtc.so", NULL},
                                            {"libcublas.so.13", "libcublas.so.12", "libcublas.so",
                                             "/usr/local/cuda/lib64/libcublas.so", NULL}};
#endif
    void *library = NULL;
    int i;
    /* Never unloaded: CUDA's libraries do not like it, and others in this process may use them. */
    for (i = 0; !library && names[which][i]; i++) library = tsk__library_open(names[which][i]);
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

/* Loads the driver and counts its devices; 0 with the reason when it cannot be used. */
static int tsk__cuda_count(tsk__cuda_api *api, int *count, char *why, size_t why_size) {
    CUresult result;
    memset(api, 0, sizeof *api);
    *count = 0;
    if (!tsk__cuda_load(api, TSK__CUDA_LIBRARY_DRIVER, why, why_size)) return 0;
    result = api->cuInit(0);
    if (result == CUDA_SUCCESS) result = api->cuDeviceGetCount(count);
    if (result != CUDA_SUCCESS) snprintf(why, why_size, "CUDA says: %s", tsk__cuda_error_text(api, result));
    return result == CUDA_SUCCESS;
}

/* 1 when device `index` of `count` can be used; else 0 with the reason. */
static int tsk__cuda_usable(const tsk__cuda_api *api, int index, int count, char *why, size_t why_size) {
    CUdevice device;
    CUresult result;
    int major = 0;
    if (index < 0 || index >= count) {
        snprintf(why, why_size, "there is no CUDA device %d (%d found)", index, count);
        return 0;
    }
    result = api->cuDeviceGet(&device, index);
    if (result == CUDA_SUCCESS)
        result = api->cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
    if (result != CUDA_SUCCESS) {
        snprintf(why, why_size, "CUDA says of device %d: %s", index, tsk__cuda_error_text(api, result));
        return 0;
    }
    if (major < 8) {
        snprintf(why, why_size, "CUDA device %d has compute capability %d.x, 8.0 is needed", index, major);
        return 0;
    }
    return 1;
}

static int tsk__cuda_available(int index, char *why, size_t why_size) {
    tsk__cuda_api api;
    int count;
    return tsk__cuda_count(&api, &count, why, why_size) && tsk__cuda_usable(&api, index, count, why, why_size);
}

/* The memory of a device is asked for in its primary context, which models share. */
static CUresult tsk__cuda_device_memory(const tsk__cuda_api *api, CUdevice device, size_t *available, size_t *total) {
    CUcontext context;
    CUresult result = api->cuDevicePrimaryCtxRetain(&context, device);
    if (result != CUDA_SUCCESS) return result;
    result = api->cuCtxPushCurrent_v2(context);
    if (result == CUDA_SUCCESS) {
        result = api->cuMemGetInfo_v2(available, total);
        api->cuCtxPopCurrent_v2(&context);
    }
    api->cuDevicePrimaryCtxRelease_v2(device);
    return result;
}

static void tsk__cuda_device_info(const tsk__cuda_api *api, int index, int count, tsk_device_info *out) {
    CUdevice device;
    CUresult result;
    size_t available = 0, total = 0;
    memset(out, 0, sizeof *out);
    out->device = TSK_DEVICE_CUDA;
    out->index = index;
    if (index < count && api->cuDeviceGet(&device, index) == CUDA_SUCCESS &&
        api->cuDeviceGetName(out->name, (int)sizeof out->name, device) != CUDA_SUCCESS)
        out->name[0] = 0;
    if (!tsk__cuda_usable(api, index, count, out->unusable, sizeof out->unusable)) return;
    result = api->cuDeviceGet(&device, index);
    if (result == CUDA_SUCCESS) result = tsk__cuda_device_memory(api, device, &available, &total);
    if (result != CUDA_SUCCESS)
        snprintf(out->unusable, sizeof out->unusable, "CUDA says of device %d: %s", index,
                 tsk__cuda_error_text(api, result));
    out->memory_free = available;
    out->memory_total = total;
}

/* The devices, into out [room] (may be NULL), and how many there are. Where there is none, one entry says why. */
static int32_t tsk__cuda_devices(tsk_device_info *out, int32_t room) {
    tsk__cuda_api api;
    char why[sizeof out->unusable] = "";
    int count, i, is_open = tsk__cuda_count(&api, &count, why, sizeof why), n = count > 0 ? count : 1;
    for (i = 0; out && i < n && i < room; i++) {
        memset(&out[i], 0, sizeof out[i]);
        out[i].device = TSK_DEVICE_CUDA;
        snprintf(out[i].unusable, sizeof out[i].unusable, "%s", why);
        if (is_open) tsk__cuda_device_info(&api, i, count, &out[i]);
    }
    return n;
}

#else

static int32_t tsk__cuda_devices(tsk_device_info *out, int32_t room) {
    if (!out || room < 1) return 1;
    memset(out, 0, sizeof *out);
    out->device = TSK_DEVICE_CUDA;
    snprintf(out->unusable, sizeof out->unusable, "built without CUDA");
    return 1;
}

#endif /* TOKENSKIP_NO_CUDA */

#endif /* SECTION_GUARD_CUDA_DRIVER */
