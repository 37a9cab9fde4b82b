/* >>cuda when something goes wrong: libraries that are missing, old or broken, a GPU that is not good enough or full, a
   damaged kernel cache, and every call into CUDA refused once, whatever it was for: an error that says why, nothing
   left behind, and the next try succeeds. All of that on a driver made of a few functions in this file, whose device
   memory is the host's and whose kernels only tell the host of their end and commit a token, so that it is tried on
   every machine; with a GPU, refusals on the real one too. */
#include <dlfcn.h>
static void *test_dlopen(const char *name, int flags);
static void *test_dlsym(void *library, const char *name);
#define dlopen test_dlopen
#define dlsym test_dlsym
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_CUDA_DLOPEN
#ifndef TEST_HEADER
#define TEST_HEADER "../tokenskip.h"
#endif
#include TEST_HEADER
#undef dlopen
#undef dlsym
#include "random_model.h"

#include <sys/wait.h>

/* ---- the driver: every function counts its calls, refuses one of them when told to, and counts what it gives out */

typedef enum kind {
    NOTHING,
    DEVICE_MEMORY,
    HOST_MEMORY,
    STREAM,
    EVENT,
    GRAPH,
    GRAPH_EXEC,
    MODULE,
    CONTEXT,
    CURRENT,
    CUBLAS,
    PROGRAM,
    N_KINDS
} kind;
static const char *const kind_names[N_KINDS] = {"",        "device memory",   "pinned memory",    "stream",
                                                "event",   "graph",           "executable graph", "module",
                                                "context", "current context", "cuBLAS",           "NVRTC program"};

enum { CALL_none = -1,
#define CALL(type, name, parameters) CALL_##name,
    TSK__CUDA_DRIVER(CALL) TSK__CUDA_NVRTC(CALL) TSK__CUDA_CUBLAS(CALL)
#undef CALL
    N_CALLS };
static const char *const call_names[N_CALLS] = {
#define CALL(type, name, parameters) #name,
    TSK__CUDA_DRIVER(CALL) TSK__CUDA_NVRTC(CALL) TSK__CUDA_CUBLAS(CALL)
#undef CALL
};

static struct driver {
    int is_real, missing[3];       /* libraries */
    const char *missing_symbol;
    int n_devices, major, version, broken_source;
    size_t available;
    int32_t chosen_id;      /* what select predicts everywhere, and */
    float log_sum_exp;      /* the log-sum-exp it gives; */
    int commits_none;       /* 1: it commits nothing */
    int refuse, refuse_after;      /* which call, and how many of it succeed before */
    int refused;
    int is_silent;                 /* kernels do not even tell of their end */
    int calls[N_CALLS], alive[N_KINDS], n_compiled;
} driver;
static tsk__cuda_api real;

static int refuses(int call) {
    int n = __atomic_fetch_add(&driver.calls[call], 1, __ATOMIC_RELAXED);
    if (call != driver.refuse || n != driver.refuse_after) return 0;
    driver.refused = 1;
    return 1;
}

static int give(void *out, size_t size) {
    void *address = calloc(size ? size : 1, 1);
    memcpy(out, &address, sizeof address);
    return address ? 0 : 2;
}
static int give_primary(CUcontext *out) {  /* the device has one, however often it is asked for */
    static char primary;
    void *address = &primary;
    memcpy(out, &address, sizeof address);
    return 0;
}
static int take(const void *address) { return free((void *)(uintptr_t)address), 0; }
static int move(void *to, const void *from, size_t size) { return memmove(to, from, size), 0; }
static int set_int(int *out, int value) { return *out = value, 0; }
static int set_text(char *out, size_t size, const char *text) { return snprintf(out, size, "%s", text), 0; }
static int set_size(size_t *out, size_t value) { return *out = value, 0; }
static int set_name(const char **out, int error) { return *out = error == 2 ? "out of memory" : "a test's refusal", 0; }
static int attribute(int *out, int which) {
    return set_int(out, which == 75 ? driver.major : which == 76 ? 0 : which == 16 ? 4 : 232448);
}
static int memory_info(size_t *available, size_t *total) {
    return *available = driver.available, *total = (size_t)1 << 34, 0;
}
static int check_module(CUmodule *out, const void *image) {
    return strncmp((const char *)image, "machine code", 12) != 0 ? 200 : give(out, 1);
}
/* What the driver demands of a matrix's description, as far as the library could get it wrong. */
static int encode(const CUtensorMap *out, const void *address, cuuint32_t rank, const cuuint64_t *size,
                  const cuuint64_t *strides, const cuuint32_t *box, const cuuint32_t *every) {
    int good = (uintptr_t)out % 64 == 0 && address && (uintptr_t)address % 16 == 0 && rank == 2 && size[0] && size[1] &&
               strides[0] % 16 == 0 && strides[0] >= 2 * size[0];
    return good && box[0] == 64 && box[1] && box[1] <= 256 && every[0] == 1 && every[1] == 1 ? 0 : 1;
}

/* Kernels: a function's handle is its name. Of a graph only what tells the host matters: fetches of the row table, the
   only kernels in recorded sections that do. */
typedef struct telling { uint32_t *count; volatile uint32_t *told; } telling;
typedef struct graph { int n; telling fetches[8]; } graph;
static struct { int is_on; graph graph; } capture;

static int find_function(CUfunction *out, CUmodule module, const char *name) {
    static char names[2 * TSK__CUDA_KERNEL_COUNT][40]; /* of both types */
    int i;
    for (i = 0; names[i][0] && strcmp(names[i], name) != 0; i++) {
    }
    snprintf(names[i], sizeof names[i], "%s", name);
    memcpy(out, module ? (void *[1]){names[i]} : (void *[1]){NULL}, sizeof *out);
    return module == NULL;
}
static void tell(telling t) {
    if (!driver.is_silent) *t.told = ++*t.count;
}
/* The first candidate of every request is committed, unless the driver is told to choose what cannot be. */
static void select_first(const CUlaunchConfig *config, const tsk__cuda_select_tokens_args *a) {
    const tsk__commit_rule *rules = (const tsk__commit_rule *)(uintptr_t)a->rules;
    tsk__choice *choices = (tsk__choice *)(uintptr_t)a->choices;
    int32_t i;
    unsigned int r;
    for (r = 0; r < config->gridDimX; r++)
        for (i = 0; i < rules[r].n; i++) {
            tsk__choice *choice = &choices[rules[r].first + i];
            choice->id = driver.chosen_id, choice->log_sum_exp = driver.log_sum_exp;
            choice->is_committed = rules[r].commits && i == 0 && !driver.commits_none;
        }
}
static int launch(const CUlaunchConfig *config, CUfunction function, void *const *parameters) {
    const char *name = (const char *)function;
    telling t;
    if (!name || !parameters) return 1;
    if (strcmp(name, "select_tokens") == 0) select_first(config, (const tsk__cuda_select_tokens_args *)parameters[0]);
    if (strcmp(name, "pass_begin") == 0) {
        const tsk__cuda_pass_begin_args *a = (const tsk__cuda_pass_begin_args *)parameters[0];
        t.count = (uint32_t *)(uintptr_t)a->state + 1, t.told = (volatile uint32_t *)(uintptr_t)a->fetched;
        if (!capture.is_on) tell(t);
        else if (capture.graph.n < 8) capture.graph.fetches[capture.graph.n++] = t;
    }
    if (strcmp(name, "pass_signal") == 0) {
        const tsk__cuda_pass_signal_args *a = (const tsk__cuda_pass_signal_args *)parameters[0];
        t.count = (uint32_t *)(uintptr_t)a->count, t.told = (volatile uint32_t *)(uintptr_t)a->signalled;
        tell(t);
    }
    return 0;
}
static int begin_capture(void) { return memset(&capture, 0, sizeof capture), capture.is_on = 1, 0; }
static int end_capture(CUgraph *out) {
    int result = give(out, sizeof capture.graph);
    capture.is_on = 0;
    if (!result) memcpy(*(void **)(void *)out, &capture.graph, sizeof capture.graph);
    return result;
}
static int instantiate(CUgraphExec *out, CUgraph from) {
    int result = give(out, sizeof(graph));
    if (!result && from) memcpy(*(void **)(void *)out, (const void *)from, sizeof(graph));
    return result;
}
static int launch_graph(CUgraphExec executable) {
    const graph *g = (const graph *)(const void *)executable;
    int i;
    for (i = 0; g && i < g->n; i++) tell(g->fetches[i]);
    return g == NULL;
}
static int compile(void) { return driver.n_compiled++, driver.broken_source ? 6 : 0; }

/* W(name, parameters, arguments, error when refused, what it does here, kind of what it gives or takes, how many) */
#define W(type, name, parameters, arguments, error, here, what, count) \
    static type wrap_##name parameters { \
        type result; \
        if ((error) && refuses(CALL_##name)) return (type)(error); \
        result = driver.is_real ? real.name arguments : (type)(here); \
        if (!result && (count)) __atomic_fetch_add(&driver.alive[what], (count), __ATOMIC_RELAXED); \
        return result; \
    }
W(CUresult, cuInit, (unsigned int a), (a), 999, 0 * a, NOTHING, 0)
W(CUresult, cuDriverGetVersion, (int *a), (a), 999, set_int(a, driver.version), NOTHING, 0)
W(CUresult, cuGetErrorString, (CUresult a, const char **b), (a, b), 0, set_name(b, a), NOTHING, 0)
W(CUresult, cuDeviceGetCount, (int *a), (a), 999, set_int(a, driver.n_devices), NOTHING, 0)
W(CUresult, cuDeviceGet, (CUdevice *a, int b), (a, b), 999, set_int(a, b), NOTHING, 0)
W(CUresult, cuDeviceGetName, (char *a, int b, CUdevice c), (a, b, c), 999,
  set_text(a, (size_t)b + 0 * (size_t)c, "no GPU at all"), NOTHING, 0)
W(CUresult, cuDeviceGetAttribute, (int *a, CUdevice_attribute b, CUdevice c), (a, b, c), 999, attribute(a, b) + 0 * c,
  NOTHING, 0)
W(CUresult, cuDevicePrimaryCtxRetain, (CUcontext *a, CUdevice b), (a, b), 2, give_primary(a) + 0 * b, CONTEXT, 1)
W(CUresult, cuDevicePrimaryCtxRelease_v2, (CUdevice a), (a), 0, 0 * a, CONTEXT, -1)
W(CUresult, cuCtxPushCurrent_v2, (CUcontext a), (a), 0, a == NULL, CURRENT, 1)
W(CUresult, cuCtxPopCurrent_v2, (CUcontext *a), (a), 0, a == NULL, CURRENT, -1)
W(CUresult, cuMemGetInfo_v2, (size_t *a, size_t *b), (a, b), 999, memory_info(a, b), NOTHING, 0)
W(CUresult, cuMemAlloc_v2, (CUdeviceptr *a, size_t b), (a, b), 2, give(a, b), DEVICE_MEMORY, 1)
W(CUresult, cuMemFree_v2, (CUdeviceptr a), (a), 0, take((void *)(uintptr_t)a), DEVICE_MEMORY, -1)
W(CUresult, cuMemHostAlloc, (void **a, size_t b, unsigned int c), (a, b, c), 2, give(a, b) + 0 * (int)c, HOST_MEMORY, 1)
W(CUresult, cuMemFreeHost, (void *a), (a), 0, take(a), HOST_MEMORY, -1)
W(CUresult, cuMemcpyHtoDAsync_v2, (CUdeviceptr a, const void *b, size_t c, CUstream d), (a, b, c, d), 999,
  move((void *)(uintptr_t)a, b, c), NOTHING, 0)
W(CUresult, cuMemcpyDtoHAsync_v2, (void *a, CUdeviceptr b, size_t c, CUstream d), (a, b, c, d), 999,
  move(a, (void *)(uintptr_t)b, c), NOTHING, 0)
W(CUresult, cuMemcpyDtoDAsync_v2, (CUdeviceptr a, CUdeviceptr b, size_t c, CUstream d), (a, b, c, d), 999,
  move((void *)(uintptr_t)a, (void *)(uintptr_t)b, c), NOTHING, 0)
W(CUresult, cuMemsetD8Async, (CUdeviceptr a, unsigned char b, size_t c, CUstream d), (a, b, c, d), 999, 0 * b, NOTHING,
  0)
W(CUresult, cuModuleLoadData, (CUmodule *a, const void *b), (a, b), 2, check_module(a, b), MODULE, 1)
W(CUresult, cuModuleUnload, (CUmodule a), (a), 0, take(a), MODULE, -1)
W(CUresult, cuModuleGetFunction, (CUfunction * a, CUmodule b, const char *c), (a, b, c), 500, find_function(a, b, c),
  NOTHING, 0)
W(CUresult, cuFuncSetAttribute, (CUfunction a, CUfunction_attribute b, int c), (a, b, c), 999, 0 * b, NOTHING, 0)
W(CUresult, cuTensorMapEncodeTiled,
  (CUtensorMap * a, CUtensorMapDataType b, cuuint32_t c, void *d, const cuuint64_t *e, const cuuint64_t *f,
   const cuuint32_t *g, const cuuint32_t *h, CUtensorMapInterleave i, CUtensorMapSwizzle j, CUtensorMapL2promotion k,
   CUtensorMapFloatOOBfill l),
  (a, b, c, d, e, f, g, h, i, j, k, l), 1, encode(a, d, c, e, f, g, h) + 0 * (b + i + j + k + l), NOTHING, 0)
W(CUresult, cuOccupancyMaxActiveClusters, (int *a, CUfunction b, const CUlaunchConfig *c), (a, b, c), 719,
  (*a = 30, b == NULL || c->numAttrs != 1), NOTHING, 0)
W(CUresult, cuLaunchKernelEx, (const CUlaunchConfig *a, CUfunction b, void **c, void **d), (a, b, c, d), 719,
  launch(a, b, c), NOTHING, 0)
W(CUresult, cuStreamCreate, (CUstream *a, unsigned int b), (a, b), 2, give(a, 1 + 0 * b), STREAM, 1)
W(CUresult, cuStreamDestroy_v2, (CUstream a), (a), 0, take(a), STREAM, -1)
W(CUresult, cuStreamSynchronize, (CUstream a), (a), 719, 0, NOTHING, 0)
W(CUresult, cuStreamQuery, (CUstream a), (a), 719, 0, NOTHING, 0)
W(CUresult, cuStreamBeginCapture_v2, (CUstream a, CUstreamCaptureMode b), (a, b), 999, begin_capture() + 0 * b, NOTHING,
  0)
static CUresult wrap_cuStreamEndCapture(CUstream a, CUgraph *b) { /* refused, it still ends */
    int refused = refuses(CALL_cuStreamEndCapture);
    CUresult result = driver.is_real ? real.cuStreamEndCapture(a, b) : end_capture(b);
    if (!refused) return driver.alive[GRAPH] += !result, result;
    if (!result && driver.is_real) real.cuGraphDestroy(*b);
    else if (!result) take(*b);
    return *b = NULL, 2;
}
W(CUresult, cuGraphInstantiateWithFlags, (CUgraphExec * a, CUgraph b, unsigned long long c), (a, b, c), 2,
  instantiate(a, b), GRAPH_EXEC, 1)
W(CUresult, cuGraphLaunch, (CUgraphExec a, CUstream b), (a, b), 719, launch_graph(a), NOTHING, 0)
W(CUresult, cuGraphExecDestroy, (CUgraphExec a), (a), 0, take(a), GRAPH_EXEC, -1)
W(CUresult, cuGraphDestroy, (CUgraph a), (a), 0, take(a), GRAPH, -1)
W(CUresult, cuEventCreate, (CUevent *a, unsigned int b), (a, b), 2, give(a, 1 + 0 * b), EVENT, 1)
W(CUresult, cuEventRecord, (CUevent a, CUstream b), (a, b), 719, a == NULL, NOTHING, 0)
W(CUresult, cuEventSynchronize, (CUevent a), (a), 719, a == NULL, NOTHING, 0)
W(CUresult, cuEventDestroy_v2, (CUevent a), (a), 0, take(a), EVENT, -1)
W(nvrtcResult, nvrtcCreateProgram,
  (nvrtcProgram * a, const char *b, const char *c, int d, const char *const *e, const char *const *f),
  (a, b, c, d, e, f), 1, give(a, strlen(b)), PROGRAM, 1)
W(nvrtcResult, nvrtcCompileProgram, (nvrtcProgram a, int b, const char *const *c), (a, b, c), 6, compile(), NOTHING, 0)
W(nvrtcResult, nvrtcGetCUBINSize, (nvrtcProgram a, size_t *b), (a, b), 1, set_size(b, 64), NOTHING, 0)
W(nvrtcResult, nvrtcGetCUBIN, (nvrtcProgram a, char *b), (a, b), 1, set_text(b, 64, "machine code"), NOTHING, 0)
W(nvrtcResult, nvrtcGetProgramLogSize, (nvrtcProgram a, size_t *b), (a, b), 0, set_size(b, 40), NOTHING, 0)
W(nvrtcResult, nvrtcGetProgramLog, (nvrtcProgram a, char *b), (a, b), 0,
  set_text(b, 40, "line 3: this is not C\n\n1 error\n"), NOTHING, 0)
W(nvrtcResult, nvrtcDestroyProgram, (nvrtcProgram *a), (a), 0, take(*a), PROGRAM, -1)
W(cublasStatus_t, cublasCreate_v2, (cublasHandle_t *a), (a), 3, give(a, 1), CUBLAS, 1)
W(cublasStatus_t, cublasDestroy_v2, (cublasHandle_t a), (a), 0, take(a), CUBLAS, -1)
W(cublasStatus_t, cublasSetStream_v2, (cublasHandle_t a, CUstream b), (a, b), 1, a == NULL, NOTHING, 0)
W(cublasStatus_t, cublasSetWorkspace_v2, (cublasHandle_t a, void *b, size_t c), (a, b, c), 1, a == NULL, NOTHING, 0)
W(cublasStatus_t, cublasGemmEx,
  (cublasHandle_t a, cublasOperation_t b, cublasOperation_t c, int d, int e, int f, const void *g, const void *h,
   cudaDataType i, int j, const void *k, cudaDataType l, int m, const void *n, void *o, cudaDataType p, int q,
   cublasComputeType_t r, cublasGemmAlgo_t s),
  (a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s), 13, a == NULL, NOTHING, 0)
#undef W

static void *test_dlopen(const char *name, int flags) {
    static char libraries[3];
    int which = strstr(name, "nvrtc") ? 1 : strstr(name, "cublas") ? 2 : 0;
    if (driver.missing[which]) return NULL;
    return driver.is_real ? dlopen(name, flags) : &libraries[which];
}

/* The function above of that name; behind it, on a real GPU, the library's own. */
static void *test_dlsym(void *library, const char *name) {
    void *found = NULL;
    if (driver.missing_symbol && strcmp(name, driver.missing_symbol) == 0) return NULL;
#define FIND(type, function, parameters) \
    if (strcmp(name, #function) == 0) { \
        type (*wrap) parameters = wrap_##function; \
        void *own = driver.is_real ? dlsym(library, name) : NULL; \
        memcpy(&real.function, &own, sizeof own); \
        memcpy(&found, &wrap, sizeof found); \
        if (driver.is_real && !own) found = NULL; \
    }
    TSK__CUDA_DRIVER(FIND) TSK__CUDA_NVRTC(FIND) TSK__CUDA_CUBLAS(FIND)
#undef FIND
    return found;
}

static void new_driver(void) {
    memset(&driver, 0, sizeof driver);
    driver.n_devices = 1, driver.major = 9, driver.version = 12080, driver.available = (size_t)1 << 33;
    driver.refuse = CALL_none;
    driver.chosen_id = 1;
}

static void check_nothing_left(const char *when) {
    int i;
    for (i = 0; i < N_KINDS; i++) {
        test_check(driver.alive[i] == 0, __FILE__, __LINE__, "%d of %s left, %s", driver.alive[i], kind_names[i], when);
        driver.alive[i] = 0;
    }
}

/* ---- loading */

static const char *model_dir, *cache_dir;

/* All that loading remarks. */
static char remarks[400];

static void keep_remark(void *user, const char *line) {
    size_t used = strlen(remarks);
    (void)user;
    CHECK(line[0] && !strchr(line, '\n'));
    snprintf(remarks + used, sizeof remarks - used, "%s\n", line);
}

static tsk_status load(tsk_device device, tsk_dtype dtype, const tsk_host *host, tsk_model **model, tsk_error *error) {
    tsk_model_options o = tsk_model_options_default();
    o.log = keep_remark, remarks[0] = 0;
    memset(error, 0, sizeof *error);
    o.device = device, o.dtype = dtype, o.kernel_cache_dir = cache_dir, o.n_threads = 1;
    if (host) o.host = *host;
    return tsk_model_load(model_dir, &o, model, error);
}

/* Loading must end so, with these words; what it compiled. */
static int check_load(tsk_dtype dtype, tsk_status status, const char *words, int line) {
    tsk_model *model = NULL;
    tsk_error error;
    int before = driver.n_compiled;
    tsk_status got = load(TSK_DEVICE_CUDA, dtype, NULL, &model, &error);
    test_check(got == status && (model != NULL) == (status == TSK_OK), __FILE__, line, "loading ends as '%s' (%s)",
               tsk_status_string(got), error.message);
    if (status != TSK_OK)
        test_check(error.status == status && strstr(error.message, words) != NULL, __FILE__, line,
                   "\"%s\" lacks \"%s\"", error.message, words);
    if (driver.broken_source) CHECK_CONTAINS(remarks, "(once)\nline 3: this is not C\n1 error\n"); /* line by line */
    tsk_model_free(model);
    check_nothing_left("after loading");
    return driver.n_compiled - before;
}
#define CHECK_LOAD(dtype, status, words) check_load(dtype, status, words, __LINE__)

static void test_libraries(void) {
    tsk_model *model = NULL;
    tsk_error error;
    new_driver();
    cache_dir = tsk_test_path("libraries");
    driver.missing[0] = 1;
    CHECK_LOAD(TSK_DTYPE_F32, TSK_ERROR_DEVICE, "libcuda.so.1 not found");
    CHECK_INT(load(TSK_DEVICE_AUTO, TSK_DTYPE_AUTO, NULL, &model, &error), TSK_OK); /* the CPU, and why */
    if (model) CHECK_CONTAINS(tsk_model_device_note(model), "libcuda.so.1 not found");
    tsk_model_free(model);
    driver.missing[0] = 0, driver.missing[1] = 1;
    CHECK_LOAD(TSK_DTYPE_F32, TSK_ERROR_COMPILE, "libnvrtc");
    driver.missing[1] = 0;
    CHECK_LOAD(TSK_DTYPE_F32, TSK_OK, "");
    driver.missing[1] = 1; /* the kernels are in the cache now */
    CHECK_LOAD(TSK_DTYPE_F32, TSK_OK, "");
    driver.missing[1] = 0, driver.missing[2] = 1;
    CHECK_LOAD(TSK_DTYPE_BF16, TSK_ERROR_DEVICE, "libcublas");
    CHECK_LOAD(TSK_DTYPE_F32, TSK_OK, ""); /* f32 does without */
    driver.missing[2] = 0;
    driver.missing_symbol = "cuLaunchKernelEx";
    CHECK_LOAD(TSK_DTYPE_F32, TSK_ERROR_DEVICE, "cuLaunchKernelEx is missing from its library");
    driver.missing_symbol = "cublasGemmEx";
    CHECK_LOAD(TSK_DTYPE_BF16, TSK_ERROR_DEVICE, "cublasGemmEx is missing from its library");
    driver.missing_symbol = NULL;
    driver.n_devices = 0;
    CHECK_LOAD(TSK_DTYPE_F32, TSK_ERROR_DEVICE, "there is no CUDA device 0 (0 found)");
    driver.n_devices = 1, driver.major = 7;
    CHECK_LOAD(TSK_DTYPE_F32, TSK_ERROR_DEVICE, "compute capability 7.x, 8.0 is needed");
    driver.major = 9, driver.available = 1000;
    CHECK_LOAD(TSK_DTYPE_BF16, TSK_ERROR_MEMORY, "GB on the CUDA device, 0.00 GB of its 17.18 GB are free");
    driver.available = (size_t)1 << 33;
    CHECK_LOAD(TSK_DTYPE_BF16, TSK_OK, "");
}

/* The one file in the cache; its name into path. */
static char *cache_file(char *path, size_t size, size_t *length) {
    char command[700];
    FILE *list;
    path[0] = 0;
    snprintf(command, sizeof command, "ls '%s'/*", cache_dir);
    if ((list = popen(command, "r")) == NULL) exit(2);
    if (fgets(path, (int)size, list)) path[strcspn(path, "\n")] = 0;
    pclose(list);
    return read_file(path, length);
}

static void test_cache(void) {
    char path[700], *whole, *now;
    size_t size = 0, i;
    int child, status;
    new_driver();
    cache_dir = tsk_test_path("cache/below");
    driver.broken_source = 1;
    CHECK_INT(CHECK_LOAD(TSK_DTYPE_F32, TSK_ERROR_COMPILE,
                         "NVRTC cannot compile kernels.cu with --gpu-architecture=sm_90"),
              1);
    driver.broken_source = 0;
    CHECK_INT(CHECK_LOAD(TSK_DTYPE_F32, TSK_OK, ""), 1); /* what failed was not kept */
    CHECK_INT(CHECK_LOAD(TSK_DTYPE_F32, TSK_OK, ""), 0);
    whole = cache_file(path, sizeof path, &size);
    if (!CHECK(whole && size > 64)) return;
    for (i = 0; i < size; i += 1 + size / 9) { /* a byte changed anywhere, or the end missing: made anew, as it was */
        whole[i] ^= 4;
        write_file(path, whole, size);
        whole[i] ^= 4;
        CHECK_INT(CHECK_LOAD(TSK_DTYPE_F32, TSK_OK, ""), 1);
        write_file(path, whole, i);
        CHECK_INT(CHECK_LOAD(TSK_DTYPE_F32, TSK_OK, ""), 1);
        now = read_file(path, NULL);
        CHECK(now && memcmp(now, whole, size) == 0);
        free(now);
    }
    free(whole);
    CHECK_INT(CHECK_LOAD(TSK_DTYPE_F32, TSK_OK, ""), 0);
    driver.version++; /* another driver, another GPU: kernels of their own */
    CHECK_INT(CHECK_LOAD(TSK_DTYPE_F32, TSK_OK, ""), 1);
    driver.major = 8;
    CHECK_INT(CHECK_LOAD(TSK_DTYPE_F32, TSK_OK, ""), 1);
    CHECK_INT(CHECK_LOAD(TSK_DTYPE_F32, TSK_OK, ""), 0);
    cache_dir = ""; /* none */
    CHECK_INT(CHECK_LOAD(TSK_DTYPE_F32, TSK_OK, ""), 1);
    CHECK_INT(CHECK_LOAD(TSK_DTYPE_F32, TSK_OK, ""), 1);
    cache_dir = tsk_test_path("no folder");
    write_text(cache_dir, "a file");
    CHECK_INT(CHECK_LOAD(TSK_DTYPE_F32, TSK_OK, ""), 1);
    CHECK_INT(CHECK_LOAD(TSK_DTYPE_F32, TSK_OK, ""), 1);
    cache_dir = tsk_test_path("together"); /* several processes at once */
    for (i = 0; i < 4; i++) {
        fflush(stdout);
        if ((child = fork()) == 0) _exit(CHECK_LOAD(TSK_DTYPE_F32, TSK_OK, "") > 1 || test_failed);
        CHECK(child > 0);
    }
    while (wait(&status) > 0) CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK_INT(CHECK_LOAD(TSK_DTYPE_F32, TSK_OK, ""), 0);
}

/* ---- one whole use of the library, and every call of it refused */

static void ignore(void *user, const tsk_trace_record *record) { (void)user, (void)record; }

static tsk_generate_options small_options(void) {
    tsk_generate_options o = tsk_generate_options_default();
    o.gen_length = 8, o.block_length = 4, o.steps = 4;
    o.transfer = TSK_TRANSFER_SCHEDULE;
    o.eos_stop = 0;
    o.skip.layer_k = 2, o.skip.masked = 1, o.skip.refresh = 1, o.skip.threshold = 0.5f;
    return o;
}

static tsk_status use_session(tsk_model *model, tsk_error *error) {
    static const int32_t prompt[140] = {3, 14, 15, 9, 26, 5};
    static float logits[2 * 200];
    tsk_generate_options o = small_options();
    tsk_trace_options tracing = tsk_trace_options_default();
    tsk_session *session = NULL;
    tsk_result result;
    tsk_status status = tsk_session_create(model, &o, &session, error);
    tracing.on_record = ignore, tracing.values = 1;
    CHECK((status == TSK_OK) == (session != NULL));
    if (status != TSK_OK) return status;
    status = tsk_generate(session, prompt, 6, NULL, &result, error);
    if (status == TSK_OK)
        status = tsk_generate(session, prompt, 70, NULL, &result, error); /* by the ways for more rows, */
    if (status == TSK_OK) status = tsk_generate(session, prompt, 140, NULL, &result, error); /* and for many */
    if (status == TSK_OK) status = tsk_session_trace(session, &tracing, error);
    if (status == TSK_OK) status = tsk_generate(session, prompt, 6, NULL, &result, error);
    if (status == TSK_OK) status = tsk_session_trace(session, NULL, error);
    if (status == TSK_OK) status = tsk_session_logits(session, prompt, 16, 3, 1, logits, error);
    if (status != TSK_OK) { /* the same session goes on */
        CHECK_INT(tsk_session_trace(session, NULL, NULL), TSK_OK);
        CHECK_INT(tsk_generate(session, prompt, 6, NULL, &result, NULL), TSK_OK);
        CHECK_INT(result.mask_residual, 0);
    }
    tsk_session_free(session);
    return status;
}

typedef struct ends { int n; tsk_status status; char message[sizeof ((tsk_error *)0)->message]; } ends;

static void note_end(void *user, uint64_t id, void *request_user, const tsk_result *result, const tsk_error *error) {
    ends *e = (ends *)user;
    (void)id, (void)request_user, (void)result;
    e->n++;
    if (!error || e->status != TSK_OK) return;
    e->status = error->status;
    memcpy(e->message, error->message, sizeof e->message);
}

static tsk_status use_batch(tsk_model *model, tsk_error *error) {
    static const int32_t prompt[40] = {3, 14, 15, 9, 26, 5};
    tsk_batch_options options = tsk_batch_options_default();
    tsk_generate_options o = small_options();
    tsk_batch *batch = NULL;
    tsk_status status;
    int submitted = 0, i;
    ends e;
    memset(&e, 0, sizeof e);
    options.max_requests = 3, options.cache_tokens = 150, options.max_rows = 100;
    options.on_done = note_end, options.user = &e;
    status = tsk_batch_create(model, &options, &batch, error);
    for (i = 0; status == TSK_OK && i < 3; i++) {
        o.skip.layer_k = i == 2 ? 2 : 0, o.skip.refresh = i == 2; /* the last one needs a larger pass, made while the
                                                                     others are in flight */
        status = tsk_batch_submit(batch, prompt, 6 + 11 * i, NULL, &o, NULL, NULL, error);
        submitted += status == TSK_OK;
    }
    if (status == TSK_OK) status = tsk_batch_drain(batch, error);
    if (status != TSK_OK && batch) tsk_batch_drain(batch, NULL);
    tsk_batch_free(batch);
    CHECK_INT(e.n, submitted);
    if (status != TSK_OK || e.status == TSK_OK) return status;
    error->status = e.status; /* a request that failed, and the others not */
    memcpy(error->message, e.message, sizeof e.message);
    return e.status;
}

static tsk_status use_library(tsk_dtype dtype, const tsk_host *host, tsk_error *error) {
    tsk_model *model = NULL;
    tsk_status status = load(TSK_DEVICE_CUDA, dtype, host, &model, error);
    CHECK((status == TSK_OK) == (model != NULL));
    if (status == TSK_OK) status = use_session(model, error);
    if (status == TSK_OK) status = use_batch(model, error);
    tsk_model_free(model);
    return status;
}

/* What a refusal is reported as. Calls that only tidy up are of no consequence (their number is not that of the
   errors). */
static void check_refusal(tsk_dtype dtype, int call, int after) {
    char when[200];
    tsk_error error;
    tsk_status status;
    const char *name = call_names[call];
    int is_memory = call == CALL_cuMemAlloc_v2 || call == CALL_cuMemHostAlloc;
    memset(driver.calls, 0, sizeof driver.calls);
    driver.refuse = call, driver.refuse_after = after, driver.refused = 0;
    status = use_library(dtype, NULL, &error);
    snprintf(when, sizeof when, "call %d of %s refused, %s", after, name, dtype == TSK_DTYPE_F32 ? "f32" : "bf16");
    driver.refuse = CALL_none;
    check_nothing_left(when);
    if (driver.refused && !(status == TSK_OK && call == CALL_cuStreamSynchronize)) {
        test_check(status != TSK_OK && error.status == status && (!is_memory || status == TSK_ERROR_MEMORY), __FILE__,
                   __LINE__, "%s: '%s'", when, tsk_status_string(status));
        test_check(strstr(error.message, "CUDA") || strstr(error.message, "cuBLAS") || strstr(error.message, "NVRTC") ||
                       (is_memory && strstr(error.message, "memory")),
                   __FILE__, __LINE__, "%s: \"%s\"", when, error.message);
    }
}

/* Each of the allocating calls; of the others the first ones, and then ever fewer, on a real GPU (slow: a quarter of a
   second each) of all. */
/* fits: the model's shape fits the kernels for few rows. */
static void test_refusals(tsk_dtype dtype, int is_real, int fits) {
    static int counts[N_CALLS];
    tsk_error error;
    int call, after, n = 0;
    cache_dir = driver.is_real ? NULL : tsk_test_path("refusals");
    CHECK_INT(use_library(dtype, NULL, &error), TSK_OK); /* also fills the cache */
    check_nothing_left("after everything went well");
    memset(driver.calls, 0, sizeof driver.calls);
    if (!driver.is_real) cache_dir = ""; /* so that compiling can fail too */
    CHECK_INT(use_library(dtype, NULL, &error), TSK_OK);
    memcpy(counts, driver.calls, sizeof counts);
    CHECK((counts[CALL_cuGraphLaunch] > 0) == (fits || dtype == TSK_DTYPE_F32)); /* all the ways were gone */
    CHECK((counts[CALL_cublasGemmEx] > 0) == (dtype == TSK_DTYPE_BF16));
    if (!is_real) CHECK((counts[CALL_cuOccupancyMaxActiveClusters] > 0) == (fits && dtype == TSK_DTYPE_BF16));
    check_nothing_left("after everything went well");
    for (call = 0; call < N_CALLS; call++) {
        int every =
            !is_real && (call == CALL_cuMemAlloc_v2 || call == CALL_cuMemHostAlloc || call == CALL_cuStreamCreate);
        if (is_real &&
            (call == CALL_cuStreamQuery || call == CALL_cuModuleGetFunction || call == CALL_cuFuncSetAttribute))
            continue; /* enough without */
        for (after = 0; after < counts[call]; after = every || after < 2 ? after + 1 : (is_real ? 3 : 2) * after, n++)
            check_refusal(dtype, call, after);
    }
    CHECK_INT(use_library(dtype, NULL, &error), TSK_OK);
    printf("%s: %d refusals by %s\n", dtype == TSK_DTYPE_F32 ? "f32" : "bf16", n,
           is_real ? "the GPU's driver" : "the test's driver");
    CHECK(n > (is_real ? 40 : 100));
}

/* A stream that is said to have ended, and never told: an error, not a result. */
static void test_silence(void) {
    static const int32_t prompt[6] = {3, 14, 15, 9, 26, 5};
    tsk_generate_options o = small_options();
    tsk_model *model = NULL;
    tsk_session *session = NULL;
    tsk_result result;
    tsk_error error;
    new_driver();
    if (!CHECK_INT(load(TSK_DEVICE_CUDA, TSK_DTYPE_BF16, NULL, &model, &error), TSK_OK)) return;
    CHECK_INT(tsk_session_create(model, &o, &session, &error), TSK_OK);
    driver.is_silent = 1;
    CHECK_INT(tsk_generate(session, prompt, 6, NULL, &result, &error), TSK_ERROR_DEVICE);
    CHECK_CONTAINS(error.message, "CUDA, ");
    driver.is_silent = 0;
    CHECK_INT(tsk_generate(session, prompt, 6, NULL, &result, &error), TSK_OK);
    CHECK_INT(result.mask_residual, 0);
    tsk_session_free(session);
    tsk_model_free(model);
    check_nothing_left("after a silent device");
}

static void test_host_memory(tsk_dtype dtype) {
    long n;
    cache_dir = "";
    for (n = 0; n < 100000; n++) {
        test_allocator counting = test_allocator_failing_at(n);
        tsk_allocator allocator = test_allocator_of(&counting);
        tsk_host host;
        tsk_error error;
        tsk_status status;
        memset(&host, 0, sizeof host);
        host.allocator = &allocator;
        status = use_library(dtype, &host, &error);
        test_check(counting.alive == 0, __FILE__, __LINE__, "%ld blocks are left after allocation %ld failed",
                   counting.alive, n);
        check_nothing_left("after a host allocation failed");
        test_check(status == (counting.failed ? TSK_ERROR_MEMORY : TSK_OK), __FILE__, __LINE__,
                   "allocation %ld failed: '%s'", n, tsk_status_string(status));
        if (!counting.failed) break;
    }
    CHECK(n > 50);
}

/* A device whose choices cannot be: the generation ends with an error at its first pass. */
static void check_choices(tsk_status status, const char *words) {
    tsk_generate_options o = small_options();
    tsk_model *model = NULL;
    tsk_session *session = NULL;
    tsk_result result;
    tsk_error error;
    int32_t prompt[] = {1, 2, 3};
    must(load(TSK_DEVICE_CUDA, TSK_DTYPE_BF16, NULL, &model, &error), &error);
    must(tsk_session_create(model, &o, &session, &error), &error);
    CHECK_INT(tsk_generate(session, prompt, 3, NULL, &result, &error), status);
    CHECK_CONTAINS(error.message, words);
    CHECK_CONTAINS(error.message, "pass 0");
    tsk_session_result(session, &result);
    CHECK_INT(result.nfe, 0);
    CHECK_INT(result.mask_residual, o.gen_length);
    tsk_session_free(session);
    tsk_model_free(model);
    check_nothing_left("after choices that cannot be");
}

static void test_choices(void) {
    new_driver();
    driver.chosen_id = 62;  /* the mask */
    check_choices(TSK_ERROR_DEVICE, "predicts id 62");
    driver.chosen_id = 64;
    check_choices(TSK_ERROR_DEVICE, "predicts id 64");
    driver.chosen_id = -1;
    check_choices(TSK_ERROR_DEVICE, "predicts id -1");
    driver.chosen_id = 1, driver.commits_none = 1;
    check_choices(TSK_ERROR_DEVICE, "commits none");
    driver.commits_none = 0, driver.log_sum_exp = (float)NAN;
    check_choices(TSK_ERROR_NUMERIC, "no numbers");
    driver.log_sum_exp = (float)INFINITY;
    check_choices(TSK_ERROR_NUMERIC, "infinite");
}

/* What a batch's cache takes by default is what the device has free. */
static void keep_line(void *user, const char *line) { snprintf((char *)user, 200, "%s", line); }
static void test_batch_cache(void) {
    tsk_batch_options options = tsk_batch_options_default();
    tsk_model *model = NULL;
    tsk_batch *batch = NULL;
    tsk_error error;
    char line[200] = "";
    new_driver();
    options.log = keep_line, options.user = line;
    must(load(TSK_DEVICE_CUDA, TSK_DTYPE_BF16, NULL, &model, &error), &error);
    must(tsk_batch_create(model, &options, &batch, &error), &error);
    CHECK_INT(batch->options.cache_tokens, 16 * 1024);
    CHECK_STRING(line, "");
    tsk_batch_free(batch);
    driver.available = (size_t)16 << 20;
    must(tsk_batch_create(model, &options, &batch, &error), &error);
    /* K and V of a token: 3 layers, 2 heads of 64, bf16; a tenth is left, and the activations of 1,024 rows twice:
       2 * (3 * 256 + 2 * 256 + 2 * 128 + 2 * 256) * 2 bytes each */
    CHECK_INT(batch->options.cache_tokens, ((16 << 20) / 10 * 9 - 1024 * 8192) / 1536);
    CHECK_CONTAINS(line, "of the 16384 that 16 requests of 1024 take");
    tsk_batch_free(batch);
    tsk_model_free(model);
    check_nothing_left("after batches");
}

/* The workspace that is estimated for LLaDA-8B and a smaller model is, within a twentieth, what a stream's memory comes
   to. */
static void test_estimate(void) {
    static const int32_t rows[] = {32, 64, 160, 1280, 4096};
    int i, big, is_f32;
    for (big = 0; big < 2; big++)
        for (is_f32 = 0; is_f32 < 2; is_f32++)
            for (i = 0; i < 5; i++) {
                tsk_model_config c = TSK_ZERO;
                tsk_memory_query query = tsk_memory_query_default();
                tsk_generate_options o = tsk_generate_options_default();
                tsk_memory memory;
                tsk__cuda_backend b;
                tsk__cuda_stream s;
                uint64_t size, head, whole;
                c.d_model = big ? 4096 : 1024, c.n_layers = 32, c.n_heads = c.n_kv_heads = big ? 32 : 16,
                c.head_dim = big ? 128 : 64;
                c.mlp_hidden_size = big ? 12288 : 4096, c.vocab_size = c.embedding_size = 126464,
                c.max_sequence_length = 4096;
                c.mask_token_id = 126336, c.eos_token_id = 126081, c.pad_token_id = -1, c.rope_theta = 500000,
                c.rms_norm_eps = 1e-5f;
                memset(&b, 0, sizeof b), memset(&s, 0, sizeof s);
                b.base.config = &c, b.is_f32 = is_f32, b.base.element_size = is_f32 ? 4 : 2, b.arch = 90,
                b.shared_limit = 232448, b.n_multiprocessors = 132;
                tsk__cuda_choose(&b);
                s.backend = &b, s.base.max_rows = rows[i], s.n_states = 7;
                size = tsk__cuda_stream_layout(&s, 0);
                head = (uint64_t)tsk__cuda_head_rows(rows[i]) * TSK__CUDA_HEAD_SLICE,
                whole = (uint64_t)TSK__CUDA_LOGITS_ROWS * (uint64_t)c.embedding_size;
                size += (head > whole ? head : whole) * sizeof(float);
                query.config = &c, query.device = TSK_DEVICE_CUDA,
                query.dtype = is_f32 ? TSK_DTYPE_F32 : TSK_DTYPE_BF16, query.canvas = rows[i], query.generate = &o;
                o.gen_length = o.block_length = 32, o.skip.layer_k = 8;
                if (!CHECK_INT(tsk_memory_estimate(&query, &memory, NULL), TSK_OK)) return;
                memory.workspace -=
                    (2 * 7 + 1) * 32 * (uint64_t)c.d_model * b.base.element_size; /* the request's own */
                test_check(memory.workspace < size + size / 20 && size < memory.workspace + memory.workspace / 20,
                           __FILE__, __LINE__, "%s, %s, %d rows: estimated %llu, not %llu", big ? "big" : "small",
                           is_f32 ? "f32" : "bf16", (int)rows[i], (unsigned long long)memory.workspace,
                           (unsigned long long)size);
            }
}

/* What the driver says of its devices, whichever call it refuses; no context stays behind. */
static void test_devices(void) {
    static const struct { int call; const char *unusable; int n;
    } cases[] = {{CALL_none, "", 3},
                 {CALL_cuInit, "a test's refusal", 2},
                 {CALL_cuDeviceGetCount, "a test's refusal", 2},
                 {CALL_cuDevicePrimaryCtxRetain, "CUDA says of device 0: out of memory", 3},
                 {CALL_cuMemGetInfo_v2, "a test's refusal", 3},
                 {CALL_cuDeviceGetAttribute, "CUDA says of device 0", 3}};
    tsk_device_info devices[4];
    size_t i;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        new_driver();
        driver.n_devices = 2;
        driver.refuse = cases[i].call, driver.refuse_after = 0, driver.refused = 0;
        CHECK_INT(tsk_devices(devices, 4), cases[i].n);
        CHECK(devices[0].device == TSK_DEVICE_CPU && devices[1].device == TSK_DEVICE_CUDA && devices[1].index == 0);
        if (!cases[i].unusable[0]) CHECK_STRING(devices[1].unusable, "");
        else CHECK_CONTAINS(devices[1].unusable, cases[i].unusable);
        if (cases[i].n == 3) CHECK_STRING(devices[1].name, "no GPU at all");
        CHECK(devices[1].memory_total == (cases[i].unusable[0] ? 0 : (uint64_t)1 << 34));
        if (cases[i].n == 3)
            CHECK(devices[2].index == 1 && !devices[2].unusable[0] && devices[2].memory_free == driver.available);
        driver.refuse = CALL_none;
        check_nothing_left("after a list of devices");
    }
    new_driver();
    driver.n_devices = 1, driver.major = 7;
    CHECK_INT(tsk_devices(devices, 4), 2);
    CHECK_CONTAINS(devices[1].unusable, "has compute capability 7.x, 8.0 is needed");
    CHECK_STRING(devices[1].name, "no GPU at all");
    new_driver();
}

int main(void) {
    static const shape fused = {"fused", 256, 3, 4, 2, 256, 64, 0, 0, 0, 1},
                       general = {"general", 40, 3, 2, 1, 20, 64, 1, 1, 0, 1};
    char dirs[2][600], why[200] = "";
    int i;
    setvbuf(stdout, NULL, _IOLBF, 0);
    snprintf(dirs[0], sizeof dirs[0], "%s", random_model_folder(&fused));
    snprintf(dirs[1], sizeof dirs[1], "%s", random_model_folder(&general));
    model_dir = dirs[0];
    test_libraries();
    test_devices();
    test_estimate();
    test_cache();
    test_silence();
    test_choices();
    test_batch_cache();
    for (i = 0; i < 2; i++) {
        model_dir = dirs[i];
        new_driver();
        test_refusals(TSK_DTYPE_BF16, 0, !i);
        if (i) test_refusals(TSK_DTYPE_F32, 0, !i);
        test_host_memory(TSK_DTYPE_BF16);
    }
    new_driver();
    driver.is_real = 1;
#ifdef __SANITIZE_ADDRESS__
    snprintf(why, sizeof why, "CUDA's libraries under AddressSanitizer");
#else
    if (tsk__cuda_available(0, why, sizeof why)) {
        CUcontext context; /* kept, as making it takes long */
        if (!CHECK_INT(real.cuDevicePrimaryCtxRetain(&context, 0), 0)) return test_end("test_cuda_faults");
        model_dir = dirs[0];
        test_refusals(TSK_DTYPE_BF16, 1, 1);
        model_dir = dirs[1];
        test_refusals(TSK_DTYPE_F32, 1, 0);
        real.cuDevicePrimaryCtxRelease_v2(0);
        return test_end("test_cuda_faults");
    }
#endif
    printf("skipped: refusals by a GPU's driver (%s)\n", why);
    return test_end("test_cuda_faults");
}
