#ifndef SECTION_GUARD_CUDA_COMPILE
#define SECTION_GUARD_CUDA_COMPILE

#include "error.h"
#include "memory.h"
#include "platform.h"
#include "cuda_driver.h"
#include "cuda_backend.h"

// >>cuda_compile ======================================================================================================
/* The kernels, compiled once a machine and driver, and kept on disk. */

#ifdef TOKENSKIP__HAS_CUDA

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
        if (tsk_text_append(out, tsk__kernels_source[i], strlen(tsk__kernels_source[i])) != TSK_OK)
            return TSK_ERROR_MEMORY;
    return TSK_OK;
}

/* NVRTC's options; the architecture is the first. */
static void tsk__cuda_options(const tsk__cuda_backend *b, char arch[64], const char *options[2]) {
    snprintf(arch, 64, "--gpu-architecture=sm_%d%s", b->arch, tsk__cuda_has_hopper_kernels(b) ? "a" : "");
    options[0] = arch;
    options[1] = "--std=c++17";
}

/* Hands what the compiler says to the host, line by line. Without memory for it there is only the error. */
static void tsk__cuda_log(const tsk__cuda_backend *b, nvrtcProgram program, const tsk_model_options *o) {
    size_t size = 0;
    char *text, *line, *end;
    if (!o->log || b->api.nvrtcGetProgramLogSize(program, &size) != NVRTC_SUCCESS) return;
    text = (char *)tsk__memory_new_zeroed(b->allocator, size + 1, 1);
    if (text && b->api.nvrtcGetProgramLog(program, text) == NVRTC_SUCCESS)
        for (line = text; *line; line = end) {
            end = line + strcspn(line, "\n");
            if (*end) *end++ = 0;
            if (*line) o->log(o->user, line);
        }
    tsk__memory_delete(b->allocator, text);
}

/* Compiles `source`; where that fails, o->log is told all that the compiler says. */
static tsk_status tsk__cuda_compile(tsk__cuda_backend *b, const char *source, const char *const *options, int n_options,
                                    const tsk_model_options *o, tsk_text *cubin, tsk_error *error) {
    const tsk__cuda_api *api = &b->api;
    nvrtcProgram program;
    nvrtcResult result;
    char why[160], *room;
    size_t size = 0;
    tsk_status status = TSK_OK;
    if (!tsk__cuda_load(&b->api, TSK__CUDA_LIBRARY_NVRTC, why, sizeof why))
        return tsk__error_set(error, TSK_ERROR_COMPILE, NULL, TSK_NO_OFFSET,
                              "the CUDA kernels are not compiled yet, and cannot be: %s", why);
    if (api->nvrtcCreateProgram(&program, source, "kernels.cu", 0, NULL, NULL) != NVRTC_SUCCESS)
        return tsk__error_set(error, TSK_ERROR_COMPILE, NULL, TSK_NO_OFFSET, "NVRTC cannot start");
    result = api->nvrtcCompileProgram(program, n_options, options);
    if (result != NVRTC_SUCCESS) {
        tsk__cuda_log(b, program, o);
        status = tsk__error_set(error, TSK_ERROR_COMPILE, "kernels.cu", TSK_NO_OFFSET,
                                "NVRTC cannot compile kernels.cu with %s (error %d): the log tells why", options[0],
                                (int)result);
    } else if (api->nvrtcGetCUBINSize(program, &size) != NVRTC_SUCCESS || size == 0)
        status = tsk__error_set(error, TSK_ERROR_COMPILE, NULL, TSK_NO_OFFSET, "NVRTC made no machine code for %s",
                                options[0]);
    else if ((room = (char *)tsk__memory_new_zeroed(cubin->allocator, size, 1)) == NULL)
        status = tsk__error_memory(error, "compiled kernels", size);
    else {
        if (api->nvrtcGetCUBIN(program, room) != NVRTC_SUCCESS)
            status = tsk__error_set(error, TSK_ERROR_COMPILE, NULL, TSK_NO_OFFSET, "NVRTC lost its result");
        else if (tsk_text_append(cubin, room, size) != TSK_OK)
            status = tsk__error_memory(error, "compiled kernels", size);
        tsk__memory_delete(cubin->allocator, room);
    }
    api->nvrtcDestroyProgram(&program);
    return status;
}

/* The cache folder, made where missing, into out; 0: there is none. */
static int tsk__cuda_cache_dir(const char *wanted, char *out, size_t size) {
    int length;
    if (!wanted) return tsk__cache_folder(out, size) && tsk__make_folders(out);
    length = snprintf(out, size, "%s", wanted);
    return length > 0 && (size_t)length < size && tsk__make_folders(out);
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
        good =
            memcmp(head.magic, tsk__cuda_cubin_magic, sizeof head.magic) == 0 &&
            head.size == file.length - sizeof head &&
            head.checksum == tsk__cuda_hash(TSK__CUDA_HASH_START, file.data + sizeof head, file.length - sizeof head) &&
            tsk_text_append(cubin, file.data + sizeof head, file.length - sizeof head) == TSK_OK;
    }
    tsk_text_free(&file);
    return good;
}

/* Another process sees a whole file or none. A cache that cannot be written is no error: the next start compiles
   again. */
static void tsk__cuda_cache_write(const char *path, const tsk_text *cubin) {
    tsk__cuda_cubin_head head;
    tsk__output output;
    tsk_status status;
    memcpy(head.magic, tsk__cuda_cubin_magic, sizeof head.magic);
    head.size = cubin->length;
    head.checksum = tsk__cuda_hash(TSK__CUDA_HASH_START, cubin->data, cubin->length);
    if (tsk__output_open(&output, path, cubin->allocator, NULL) != TSK_OK) return;
    status = tsk__output_write(&output, 0, &head, sizeof head, NULL);
    if (status == TSK_OK) status = tsk__output_write(&output, sizeof head, cubin->data, cubin->length, NULL);
    if (status == TSK_OK) tsk__output_commit(&output, NULL);
    else tsk__output_abandon(&output);
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
    if (status == TSK_OK && !(o->kernel_cache_dir && !o->kernel_cache_dir[0]) &&
        tsk__cuda_cache_dir(o->kernel_cache_dir, dir, sizeof dir)) {
        hash = tsk__cuda_hash(hash, source.data, source.length);
        for (i = 0; i < 2; i++) hash = tsk__cuda_hash(hash, options[i], strlen(options[i]));
        hash = tsk__cuda_hash(hash, &b->driver_version, sizeof b->driver_version);
        snprintf(path, sizeof path, "%s/kernels-sm_%d-%016llx.cubin", dir, b->arch, (unsigned long long)hash);
        has_path = 1;
    }
    if (status != TSK_OK) status = tsk__error_memory(error, "the kernels' source", source.length);
    else if (!has_path || !tsk__cuda_cache_read(path, cubin)) {
        if (o->log) o->log(o->user, "compiling the CUDA kernels for this GPU (once)");
        status = tsk__cuda_compile(b, source.data, options, 2, o, cubin, error);
        if (status == TSK_OK && has_path) tsk__cuda_cache_write(path, cubin);
    }
    tsk_text_free(&source);
    return status;
}

/* The most dynamic shared memory that the kernel is launched with; 0: within the limit that needs no attribute. */
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
        snprintf(name, sizeof name, "%s%s", kernels[i].name,
                 kernels[i].kind != 'T' ? ""
                 : b->is_f32            ? "_f32"
                                        : "_bf16");
        result = b->api.cuModuleGetFunction(&b->kernels[i], b->module, name);
        if (result == CUDA_SUCCESS && tsk__cuda_shared_most(b, i))
            result = b->api.cuFuncSetAttribute(b->kernels[i], CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                               tsk__cuda_shared_most(b, i));
        /* One division of the multiprocessors' memory for all: kernels that want different ones cannot overlap. */
        if (result == CUDA_SUCCESS)
            result = b->api.cuFuncSetAttribute(b->kernels[i], CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100);
    }
    return tsk__cuda_fail(&b->api, error, result, name);
}

static tsk_status tsk__cuda_load_kernels(tsk__cuda_backend *b, const tsk_model_options *o, tsk_error *error) {
    tsk_text cubin;
    tsk_status status;
    memset(&cubin, 0, sizeof cubin);
    cubin.allocator = b->allocator;
    status = tsk__cuda_cubin(b, o, &cubin, error);
    if (status == TSK_OK)
        status = tsk__cuda_fail(&b->api, error, b->api.cuModuleLoadData(&b->module, cubin.data), "loading the kernels");
    tsk_text_free(&cubin);
    return status == TSK_OK ? tsk__cuda_find_kernels(b, error) : status;
}

#endif /* TOKENSKIP__HAS_CUDA */

#endif /* SECTION_GUARD_CUDA_COMPILE */
