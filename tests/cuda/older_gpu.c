/* What the library does on GPUs before sm_90, on a newer one: the driver is made to say compute capability 8.0 and the
   little shared memory of the smaller ones, and the kernels, compiled to PTX for compute_80, are translated by the
   driver. Then test_cuda's operations. No PTX goes to the user's kernel cache. `older_gpu gpu`; without a GPU it says
   "skipped". */
#include <dlfcn.h>
static void *older_dlsym(void *library, const char *name);
#define dlsym older_dlsym
#include "../test_cuda.c"
#undef dlsym

static struct {
    CUresult (*get_attribute)(int *, CUdevice_attribute, CUdevice);
    nvrtcResult (*compile)(nvrtcProgram, int, const char *const *);
} newer;

static CUresult get_attribute(int *value, CUdevice_attribute which, CUdevice device) {
    int major = 0;
    CUresult status = newer.get_attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
    if (status == CUDA_SUCCESS) status = newer.get_attribute(value, which, device);
    if (status != CUDA_SUCCESS || major < 8) return status;
    if (which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) *value = 8;
    if (which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) *value = 0;
    if (which == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN) *value = 99 * 1024;
    return CUDA_SUCCESS;
}

static nvrtcResult compile(nvrtcProgram program, int n_options, const char *const *options) {
    const char *virtual_ones[8];
    int i;
    for (i = 0; i < n_options && i < 8; i++) {
        int is_architecture = strncmp(options[i], "--gpu-architecture", 18) == 0;
        virtual_ones[i] = is_architecture ? "--gpu-architecture=compute_80" : options[i];
    }
    return newer.compile(program, n_options, virtual_ones);
}

/* The function that the library gets for a name. */
static void *older_dlsym(void *library, const char *name) {
    CUresult (*our_attribute)(int *, CUdevice_attribute, CUdevice) = get_attribute;
    nvrtcResult (*our_compile)(nvrtcProgram, int, const char *const *) = compile;
    const char *wanted = strcmp(name, "nvrtcGetCUBINSize") == 0 ? "nvrtcGetPTXSize"
                         : strcmp(name, "nvrtcGetCUBIN") == 0   ? "nvrtcGetPTX"
                                                                : name;
    void *found = dlsym(library, wanted);
    if (found && strcmp(name, "cuDeviceGetAttribute") == 0) {
        setenv("XDG_CACHE_HOME", tsk_test_path("older"), 1);
        memcpy(&newer.get_attribute, &found, sizeof found);
        memcpy(&found, &our_attribute, sizeof found);
    }
    if (found && strcmp(name, "nvrtcCompileProgram") == 0) {
        memcpy(&newer.compile, &found, sizeof found);
        memcpy(&found, &our_compile, sizeof found);
    }
    return found;
}
