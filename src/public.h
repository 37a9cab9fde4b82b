#ifndef SECTION_GUARD_PUBLIC
#define SECTION_GUARD_PUBLIC

#include "error.h"
#include "memory.h"
#include "platform.h"
#include "safetensors.h"
#include "config.h"
#include "cpu.h"
#include "cpu_backend.h"
#include "cuda_driver.h"
#include "cuda.h"
#include "model.h"
#include "forward.h"
#include "request.h"

// >>public ============================================================================================================
/* What is left: questions about a device and about memory, asked without a generation. */

int32_t tsk_version(void) { return TOKENSKIP_VERSION_MAJOR * 10000 + TOKENSKIP_VERSION_MINOR * 100 + TOKENSKIP_VERSION_PATCH; }
const char *tsk_version_string(void) { return TOKENSKIP_VERSION_STRING; }

static void tsk__device_cpu(tsk_device_info *out) {
    uint64_t total = tsk__memory_total(), available = tsk__memory_available();
    int n = tsk__processors();
    memset(out, 0, sizeof *out);
    out->device = TSK_DEVICE_CPU;
    snprintf(out->name, sizeof out->name, "CPU, %s, %d processor%s", tsk__cpu_kernels_select()->description, n, n == 1 ? "" : "s");
    out->memory_total = total == UINT64_MAX ? 0 : total;
    out->memory_free = available == UINT64_MAX ? 0 : available;
}

int32_t tsk_devices(tsk_device_info *devices, int32_t room) {
    tsk_device_info info;
    char why[sizeof info.unusable] = "built without CUDA";
    int index, count = 0;
#ifdef TOKENSKIP__HAS_CUDA
    tsk__cuda_api api;
    int is_open = tsk__cuda_count(&api, &count, why, sizeof why);
#endif
    if (!devices) room = 0;
    if (room > 0) tsk__device_cpu(&devices[0]);
    for (index = 0; index < (count ? count : 1) && index + 1 < room; index++) {
        memset(&info, 0, sizeof info);
        info.device = TSK_DEVICE_CUDA;
        snprintf(info.unusable, sizeof info.unusable, "%s", why);
#ifdef TOKENSKIP__HAS_CUDA
        if (is_open) tsk__cuda_device_info(&api, index, count, &info);
#endif
        devices[index + 1] = info;
    }
    return 1 + (count ? count : 1);
}

#define TSK__CEILING_BYTES ((uint64_t)256 << 20)
#define TSK__CEILING_REPEATS 5

typedef struct tsk__ceiling_read {
    const uint64_t *words;
    uint64_t words_per_task;
    uint64_t sums[TSK__POOL_MAX_THREADS];
} tsk__ceiling_read;

static void tsk__ceiling_read_task(void *context, int task) {
    tsk__ceiling_read *r = (tsk__ceiling_read *)context;
    const uint64_t *words = r->words + (uint64_t)task * r->words_per_task;
    uint64_t a = 0, b = 0, c = 0, d = 0, i;
    for (i = 0; i + 4 <= r->words_per_task; i += 4) {
        a += words[i];
        b += words[i + 1];
        c += words[i + 2];
        d += words[i + 3];
    }
    r->sums[task] = a + b + c + d;
}

/* The best of a few readings of a buffer far larger than a core's caches. */
static tsk_status tsk__ceiling_bytes(tsk_model *model, double *out, tsk_error *error) {
    uint64_t *words = (uint64_t *)tsk__memory_new(model->allocator, (size_t)TSK__CEILING_BYTES, 1);
    tsk__ceiling_read read;
    double best = 0;
    int i;
    if (!words) return tsk__error_memory(error, "measuring bandwidth", TSK__CEILING_BYTES);
    memset(words, 1, (size_t)TSK__CEILING_BYTES);
    read.words = words;
    read.words_per_task = TSK__CEILING_BYTES / sizeof *words / (uint64_t)model->pool->n_threads;
    for (i = 0; i < TSK__CEILING_REPEATS; i++) {
        double start = tsk__time_ms(), rate;
        tsk__parallel(model->pool, model->pool->n_threads, tsk__ceiling_read_task, &read);
        rate = (double)(read.words_per_task * sizeof *words * (uint64_t)model->pool->n_threads) / ((tsk__time_ms() - start) * 1e-3);
        if (rate > best) best = rate;
    }
    tsk__memory_delete(model->allocator, words);
    *out = best;
    return TSK_OK;
}

/* The library's own product in a shape that suits it: many rows, f32 weights that stay in cache. */
static tsk_status tsk__ceiling_flops(tsk_model *model, double *out, tsk_error *error) {
    enum { rows = 256, size = 1024 };
    const tsk__cpu_model *cpu = &((tsk__cpu_backend *)(void *)model->backend)->model;
    float *memory = (float *)tsk__memory_new_zeroed(model->allocator, (size_t)2 * rows * size + (size_t)size * size, sizeof *memory);
    tsk__matrix weights;
    tsk__cpu_product product;
    double best = 0;
    int i;
    if (!memory) return tsk__error_memory(error, "measuring arithmetic", sizeof *memory * (2 * rows * size + size * size));
    for (i = 0; i < rows * size + size * size; i++) memory[i] = (float)(i % 97) * 0.01f - 0.5f;
    memset(&weights, 0, sizeof weights);
    weights.data = memory;
    weights.dtype = TSK_DTYPE_F32;
    weights.rows = weights.cols = size;
    memset(&product, 0, sizeof product);
    product.n = rows;
    product.count = 1;
    product.w[0] = &weights;
    product.x = memory + size * size;
    product.y[0] = memory + size * size + rows * size;
    for (i = 0; i < TSK__CEILING_REPEATS; i++) {
        double start = tsk__time_ms(), rate;
        tsk__cpu_product_run(cpu, &product);
        rate = (double)(2 * rows * size * size) / ((tsk__time_ms() - start) * 1e-3);
        if (rate > best) best = rate;
    }
    tsk__memory_delete(model->allocator, memory);
    *out = best;
    return TSK_OK;
}

tsk_status tsk_model_ceilings(tsk_model *model, tsk_ceilings *out, tsk_error *error) {
    tsk_status status;
    if (!model) return tsk__error_null(error, "tsk_model_ceilings", "model");
    if (!out) return tsk__error_null(error, "tsk_model_ceilings", "out");
    memset(out, 0, sizeof *out);
#ifdef TOKENSKIP__HAS_CUDA
    if (model->is_cuda) return tsk__cuda_ceilings(model->backend, out, error);
#endif
    status = tsk__ceiling_bytes(model, &out->bytes_per_second, error);
    return status == TSK_OK ? tsk__ceiling_flops(model, &out->flops_per_second, error) : status;
}

tsk_status tsk_memory_estimate(const tsk_model_config *config, uint64_t weights_size, tsk_dtype activations, int32_t canvas, const tsk_generate_options *options,
                               tsk_memory *out, tsk_error *error) {
    tsk_generate_options o = options ? *options : tsk_generate_options_default();
    tsk_status status;
    uint64_t element, row, slots, states;
    if (!config) return tsk__error_null(error, "tsk_memory_estimate", "config");
    if (!out) return tsk__error_null(error, "tsk_memory_estimate", "out");
    status = tsk__config_check(config, "memory estimate", error);
    if (status != TSK_OK) return status;
    tsk__options_resolve(&o, config, NULL);
    status = tsk__options_check(&o, config, error);
    if (status != TSK_OK) return status;
    if ((activations != TSK_DTYPE_F32 && activations != TSK_DTYPE_BF16) || canvas <= 0)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "a memory estimate needs activations F32 or BF16 and a positive canvas");
    element = tsk_dtype_size(activations);
    row = (uint64_t)config->d_model * element;
    slots = (uint64_t)o.block_length;
    states = (uint64_t)tsk__options_n_states(&o, config);
    out->weights = weights_size ? weights_size : tsk__config_weights_size(config);
    out->cache = 2 * tsk__cache_size(config, element, canvas);
    out->workspace = tsk__pass_size(config, element, canvas) + (2 * states + 1) * slots * row + (o.skip.refresh ? 2 * states * (uint64_t)canvas * row : 0);
    return TSK_OK;
}

#endif /* SECTION_GUARD_PUBLIC */
