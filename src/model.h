#ifndef SECTION_GUARD_MODEL
#define SECTION_GUARD_MODEL

#include "error.h"
#include "memory.h"
#include "platform.h"
#include "safetensors.h"
#include "bpe.h"
#include "template.h"
#include "config.h"
#include "random.h"
#include "backend.h"
#include "cpu.h"
#include "cpu_backend.h"
#include "cuda_driver.h"
#include "cuda.h"

// >>model =============================================================================================================
/* Loading: a checked folder becomes weights in a backend. On the CPU a tensor stays where it is mapped, in the type it is
   stored in; only norms and biases, a few kilobytes, are converted, and a tensor that is misaligned or not mapped is
   copied. */

struct tsk_model {
    tsk_host host;
    const tsk_allocator *allocator;
    tsk_model_config config;
    tsk_tokenizer *tokenizer;
    tsk_folder *folder;            /* keeps the mappings alive */
    tsk__backend *backend;
    tsk__pool *pool;
    void **blocks;                 /* everything allocated for weights */
    size_t n_blocks, block_capacity;
    int is_cuda;
    char device_name[128], device_note[256];
};

/* ---- loading */

tsk_model_options tsk_model_options_default(void) {
    tsk_model_options o;
    memset(&o, 0, sizeof o);
    o.n_threads = TSK_AUTO;
    return o;
}

/* Memory that lives as long as the model. */
static void *tsk__model_allocate(tsk_model *model, size_t count, size_t size) {
    void *block;
    if (!tsk__memory_reserve(model->allocator, &model->blocks, &model->block_capacity, model->n_blocks + 1, sizeof *model->blocks)) return NULL;
    block = tsk__memory_new(model->allocator, count, size);
    if (block) model->blocks[model->n_blocks++] = block;
    return block;
}

/* Loading as a whole: what was promised to progress, and whether the host wants it to end. */
typedef struct tsk__loading {
    tsk_model *model;
    const tsk_model_options *options;
    uint64_t done, total;
} tsk__loading;

static tsk_status tsk__loading_step(tsk__loading *l, uint64_t size, tsk_error *error) {
    l->done += size;
    if (l->options->progress) l->options->progress(l->options->user, l->done, l->total);
    if (l->options->cancel && l->options->cancel(l->options->user)) return tsk__error_set(error, TSK_ERROR_CANCELLED, NULL, TSK_NO_OFFSET, "loading was cancelled");
    return TSK_OK;
}

/* The tensor's bytes, aligned for its type: mapped in place, else a copy. */
static tsk_status tsk__loading_bytes(tsk__loading *l, const tsk_safetensors *file, const tsk_tensor_info *info, const void **out, tsk_error *error) {
    const void *mapped = tsk_safetensors_data(file, info);
    void *copy;
    tsk_status status;
    if (mapped && (uintptr_t)mapped % tsk_dtype_size(info->dtype) == 0) {
        *out = mapped;
        return tsk__loading_step(l, info->size, error);
    }
    copy = info->size > SIZE_MAX ? NULL : tsk__model_allocate(l->model, (size_t)info->size, 1);
    if (!copy) return tsk__error_memory(error, info->name, info->size);
    status = tsk_safetensors_read(file, info, 0, copy, (size_t)info->size, error);
    *out = copy;
    return status == TSK_OK ? tsk__loading_step(l, info->size, error) : status;
}

/* A vector as f32: norms and biases. */
static tsk_status tsk__loading_vector(tsk__loading *l, int32_t layer, tsk__part part, int is_bias, const float **out, tsk_error *error) {
    const tsk_safetensors *file = NULL;
    const tsk_tensor_info *info = tsk__folder_find(l->model->folder, layer, part, is_bias, &file);
    const void *bytes = NULL;
    float *values;
    uint64_t i;
    tsk_status status;
    *out = NULL;
    if (!info) return TSK_OK;
    status = tsk__loading_bytes(l, file, info, &bytes, error);
    if (status != TSK_OK) return status;
    values = (float *)tsk__model_allocate(l->model, (size_t)info->shape[0], sizeof *values);
    if (!values) return tsk__error_memory(error, info->name, info->size);
    for (i = 0; i < info->shape[0]; i++) {
        if (info->dtype == TSK_DTYPE_F32) values[i] = ((const float *)bytes)[i];
        else if (info->dtype == TSK_DTYPE_F16) values[i] = tsk__float_from_half(((const uint16_t *)bytes)[i]);
        else values[i] = tsk__float_from_bf16(((const uint16_t *)bytes)[i]);
    }
    *out = values;
    return TSK_OK;
}

static tsk_status tsk__loading_matrix(tsk__loading *l, int32_t layer, tsk__part part, tsk__matrix *out, tsk_error *error) {
    const tsk_safetensors *file = NULL;
    const tsk_tensor_info *info = tsk__folder_find(l->model->folder, layer, part, 0, &file);
    tsk_status status = tsk__loading_bytes(l, file, info, &out->data, error);
    out->dtype = info->dtype;
    out->rows = (int32_t)info->shape[0];
    out->cols = (int32_t)info->shape[1];
    return status == TSK_OK ? tsk__loading_vector(l, layer, part, 1, &out->bias, error) : status;
}

static tsk_status tsk__loading_layer(tsk__loading *l, int32_t layer, tsk__cpu_layer *out, tsk_error *error) {
    struct { tsk__part part; tsk__matrix *matrix; } parts[7];
    tsk_status status = tsk__loading_vector(l, layer, TSK__PART_ATTN_NORM, 0, &out->attn_norm, error);
    int i;
    parts[0].part = TSK__PART_Q, parts[0].matrix = &out->q;
    parts[1].part = TSK__PART_K, parts[1].matrix = &out->k;
    parts[2].part = TSK__PART_V, parts[2].matrix = &out->v;
    parts[3].part = TSK__PART_ATTN_OUT, parts[3].matrix = &out->attn_out;
    parts[4].part = TSK__PART_FF_PROJ, parts[4].matrix = &out->ff_proj;
    parts[5].part = TSK__PART_UP_PROJ, parts[5].matrix = &out->up_proj;
    parts[6].part = TSK__PART_FF_OUT, parts[6].matrix = &out->ff_out;
    if (status == TSK_OK) status = tsk__loading_vector(l, layer, TSK__PART_FF_NORM, 0, &out->ff_norm, error);
    for (i = 0; i < 7 && status == TSK_OK; i++) status = tsk__loading_matrix(l, layer, parts[i].part, parts[i].matrix, error);
    return status;
}

static tsk_status tsk__loading_cpu(tsk__loading *l, tsk__cpu_model *cpu, tsk_error *error) {
    int32_t layer;
    tsk_status status = tsk__loading_matrix(l, -1, TSK__PART_EMBEDDING, &cpu->embedding, error);
    for (layer = 0; layer < l->model->config.n_layers && status == TSK_OK; layer++) status = tsk__loading_layer(l, layer, &cpu->layers[layer], error);
    if (status == TSK_OK) status = tsk__loading_vector(l, -1, TSK__PART_FINAL_NORM, 0, &cpu->final_norm, error);
    cpu->head = cpu->embedding;
    if (status == TSK_OK && !l->model->config.weight_tying) status = tsk__loading_matrix(l, -1, TSK__PART_HEAD, &cpu->head, error);
    return status;
}

/* ---- random weights: for benchmarks, where only their shape and an ordinary spread matter */

typedef struct tsk__random_fill {
    uint16_t *values;              /* bf16 */
    uint64_t count, seed;
    uint32_t tensor;
    float scale;
} tsk__random_fill;

#define TSK__RANDOM_FILL_CHUNK ((uint64_t)1 << 16)

static uint16_t tsk__bf16_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Uniform on [-scale, scale): eight values a Philox call, 16 bits each. */
static void tsk__random_fill_chunk(void *context, int chunk) {
    const tsk__random_fill *f = (const tsk__random_fill *)context;
    uint64_t i = (uint64_t)chunk * TSK__RANDOM_FILL_CHUNK, end = i + TSK__RANDOM_FILL_CHUNK < f->count ? i + TSK__RANDOM_FILL_CHUNK : f->count;
    uint32_t words[4];
    for (; i < end; i++) {
        if (i % 8 == 0) tsk__random_words(f->seed, (uint32_t)(i / 8), (uint32_t)(i / 8 >> 32), f->tensor, 2, words);
        f->values[i] = tsk__bf16_from_float(f->scale * ((float)(words[i % 8 / 2] >> (i % 2 * 16) & 0xffff) / 32768.0f - 1.0f));
    }
}

static tsk_status tsk__random_matrix(tsk__loading *l, tsk__part part, uint64_t seed, uint32_t tensor, tsk__matrix *out, tsk_error *error) {
    tsk__random_fill fill;
    out->rows = (int32_t)tsk__config_size(&l->model->config, tsk__part_shapes[part].rows);
    out->cols = (int32_t)tsk__config_size(&l->model->config, tsk__part_shapes[part].cols);
    out->dtype = TSK_DTYPE_BF16;
    fill.count = (uint64_t)out->rows * (uint64_t)out->cols;
    fill.seed = seed;
    fill.tensor = tensor;
    fill.scale = sqrtf(3.0f / (float)out->cols); /* keeps the variance of what goes through */
    fill.values = (uint16_t *)tsk__model_allocate(l->model, (size_t)fill.count, sizeof *fill.values);
    if (!fill.values) return tsk__error_memory(error, "random weights", fill.count * sizeof *fill.values);
    tsk__parallel(l->model->pool, (int)((fill.count + TSK__RANDOM_FILL_CHUNK - 1) / TSK__RANDOM_FILL_CHUNK), tsk__random_fill_chunk, &fill);
    out->data = fill.values;
    return tsk__loading_step(l, fill.count * sizeof *fill.values, error);
}

static tsk_status tsk__random_cpu(tsk__loading *l, tsk__cpu_model *cpu, uint64_t seed, tsk_error *error) {
    const tsk_model_config *c = &l->model->config;
    float *ones = (float *)tsk__model_allocate(l->model, (size_t)c->d_model, sizeof *ones);
    tsk_status status = ones ? TSK_OK : tsk__error_memory(error, "random weights", (uint64_t)c->d_model * sizeof *ones);
    uint32_t tensor = 0;
    int32_t i;
    for (i = 0; ones && i < c->d_model; i++) ones[i] = 1.0f;
    cpu->final_norm = ones;
    if (status == TSK_OK) status = tsk__random_matrix(l, TSK__PART_EMBEDDING, seed, tensor++, &cpu->embedding, error);
    for (i = 0; i < c->n_layers && status == TSK_OK; i++) {
        static const tsk__part parts[7] = {TSK__PART_Q, TSK__PART_K, TSK__PART_V, TSK__PART_ATTN_OUT, TSK__PART_FF_PROJ, TSK__PART_UP_PROJ, TSK__PART_FF_OUT};
        tsk__cpu_layer *layer = &cpu->layers[i];
        tsk__matrix *matrices[7];
        int j;
        matrices[0] = &layer->q, matrices[1] = &layer->k, matrices[2] = &layer->v, matrices[3] = &layer->attn_out;
        matrices[4] = &layer->ff_proj, matrices[5] = &layer->up_proj, matrices[6] = &layer->ff_out;
        layer->attn_norm = layer->ff_norm = ones;
        for (j = 0; j < 7 && status == TSK_OK; j++) status = tsk__random_matrix(l, parts[j], seed, tensor++, matrices[j], error);
    }
    cpu->head = cpu->embedding;
    if (status == TSK_OK && !c->weight_tying) status = tsk__random_matrix(l, TSK__PART_HEAD, seed, tensor++, &cpu->head, error);
    return status;
}

/* ---- putting a model together */

static tsk_status tsk__model_cpu_backend(tsk__loading *l, int random, uint64_t seed, tsk_error *error) {
    tsk_model *model = l->model;
    tsk_model_config *c = &model->config;
    tsk__cpu_backend *backend = (tsk__cpu_backend *)tsk__memory_new_zeroed(model->allocator, 1, sizeof *backend);
    int32_t i, half = c->head_dim / 2;
    tsk_status status;
    if (!backend) return tsk__error_memory(error, "the CPU backend", sizeof *backend);
    model->backend = &backend->base;
    backend->base.ops = &tsk__cpu_backend_ops;
    backend->base.config = c;
    backend->base.element_size = sizeof(float);
    backend->allocator = model->allocator;
    backend->model.config = c;
    backend->model.kernels = tsk__cpu_kernels_select();
    backend->model.layers = (tsk__cpu_layer *)tsk__model_allocate(model, (size_t)c->n_layers, sizeof *backend->model.layers);
    backend->model.rope_frequencies = (float *)tsk__model_allocate(model, (size_t)half, sizeof(float));
    if (!backend->model.layers || !backend->model.rope_frequencies)
        return tsk__error_memory(error, "the list of layers", (uint64_t)c->n_layers * sizeof *backend->model.layers);
    memset(backend->model.layers, 0, (size_t)c->n_layers * sizeof *backend->model.layers);
    for (i = 0; i < half; i++) backend->model.rope_frequencies[i] = tsk__rope_frequency(c, i);
    model->pool = tsk__pool_create(model->allocator, l->options->n_threads);
    if (!model->pool) return tsk__error_memory(error, "worker threads", sizeof *model->pool);
    backend->model.pool = model->pool;
    status = random ? tsk__random_cpu(l, &backend->model, seed, error) : tsk__loading_cpu(l, &backend->model, error);
    tsk__cpu_describe(backend->model.kernels, model->pool, model->device_name, sizeof model->device_name);
    return status;
}

#ifdef TOKENSKIP__HAS_CUDA
/* TSK_OK with model->backend NULL: no usable device, and the caller did not insist on one. */
static tsk_status tsk__model_cuda_backend(tsk__loading *l, int random, uint64_t seed, tsk_error *error) {
    tsk_model *model = l->model;
    tsk_status status;
    if (!tsk__cuda_available(l->options->device_index, model->device_note, sizeof model->device_note)) {
        if (l->options->device == TSK_DEVICE_AUTO) return TSK_OK;
        return tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET, "no CUDA device: %s", model->device_note);
    }
    status = tsk__cuda_backend_create(&model->config, random ? NULL : model->folder, seed, l->options, &model->backend, model->device_name,
                                      sizeof model->device_name, error);
    model->is_cuda = status == TSK_OK;
    return status;
}
#else
static tsk_status tsk__model_cuda_backend(tsk__loading *l, int random, uint64_t seed, tsk_error *error) {
    (void)random;
    (void)seed;
    snprintf(l->model->device_note, sizeof l->model->device_note, "built without CUDA");
    if (l->options->device == TSK_DEVICE_AUTO) return TSK_OK;
    return tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET, "no CUDA device: %s", l->model->device_note);
}
#endif

static tsk_status tsk__model_check_options(const tsk_model_options *o, tsk_error *error) {
    if ((int)o->device < 0 || o->device > TSK_DEVICE_CUDA)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "device has no value %d", (int)o->device);
    if (o->dtype != TSK_DTYPE_AUTO && o->dtype != TSK_DTYPE_F32 && o->dtype != TSK_DTYPE_BF16)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "activations are F32 or BF16, not %s", tsk_dtype_name(o->dtype));
    if (o->device == TSK_DEVICE_CPU && o->dtype == TSK_DTYPE_BF16)
        return tsk__error_set(error, TSK_ERROR_UNSUPPORTED, NULL, TSK_NO_OFFSET, "the CPU's activations are F32 only");
    if (o->n_threads != TSK_AUTO && o->n_threads < 1)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "n_threads must be positive or TSK_AUTO, not %d", o->n_threads);
    if (o->device_index < 0) return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "device_index must be zero or positive, not %d", o->device_index);
    return TSK_OK;
}

static tsk_status tsk__model_backend(tsk__loading *l, int random, uint64_t seed, tsk_error *error) {
    tsk_status status = TSK_OK;
    if (l->options->device != TSK_DEVICE_CPU) status = tsk__model_cuda_backend(l, random, seed, error);
    if (status != TSK_OK || l->model->backend) return status;
    if (l->options->dtype == TSK_DTYPE_BF16)
        return tsk__error_set(error, TSK_ERROR_UNSUPPORTED, NULL, TSK_NO_OFFSET, "the CPU's activations are F32 only (no CUDA device: %s)", l->model->device_note);
    return tsk__model_cpu_backend(l, random, seed, error);
}

static tsk_status tsk__model_new(const tsk_model_options *options, tsk_model **out, tsk_error *error) {
    const tsk_allocator *allocator = tsk__memory_allocator(&options->host);
    tsk_status status = tsk__model_check_options(options, error);
    *out = NULL;
    if (status != TSK_OK) return status;
    *out = (tsk_model *)tsk__memory_new_zeroed(allocator, 1, sizeof **out);
    if (!*out) return tsk__error_memory(error, "a model", sizeof **out);
    (*out)->host = options->host;
    (*out)->allocator = (*out)->host.allocator = allocator;
    return TSK_OK;
}

/* A folder without tokenizer files is a model for callers who bring ids; one with broken files is an error. */
static tsk_status tsk__model_tokenizer_load(tsk_model *model, tsk_error *error) {
    tsk_folder *folder = model->folder;
    tsk_status status;
    if (!tsk__folder_has(folder, "tokenizer.json") && !tsk__folder_has(folder, "vocab.json")) return TSK_OK;
    folder->path[folder->dir_length] = 0;
    status = tsk_tokenizer_load(folder->path, &model->host, &model->tokenizer, error);
    if (status == TSK_OK && model->tokenizer->n_vocabulary_ids > (size_t)model->config.embedding_size) {
        return tsk__error_set(error, TSK_ERROR_TOKENIZER, folder->path, TSK_NO_OFFSET, "'%s': the tokenizer has ids up to %d, the model's embedding has %d rows", tsk__error_path(folder->path),
                              (int)model->tokenizer->n_vocabulary_ids - 1, (int)model->config.embedding_size);
    }
    return status;
}

tsk_status tsk_model_load(const char *dir, const tsk_model_options *options, tsk_model **out, tsk_error *error) {
    tsk_model_options defaults = tsk_model_options_default();
    tsk__loading loading;
    tsk_model *model;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_model_load", "out");
    *out = NULL;
    if (!dir) return tsk__error_null(error, "tsk_model_load", "dir");
    status = tsk__model_new(options ? options : &defaults, &model, error);
    if (status != TSK_OK) return status;
    memset(&loading, 0, sizeof loading);
    loading.model = model;
    loading.options = options ? options : &defaults;
    status = tsk_folder_open(dir, &model->host, &model->folder, error);
    if (status == TSK_OK) {
        model->config = model->folder->config;
        loading.total = tsk_folder_weights_size(model->folder);
        if (!loading.options->no_tokenizer) status = tsk__model_tokenizer_load(model, error);
    }
    if (status == TSK_OK) status = tsk__model_backend(&loading, 0, 0, error);
    if (status != TSK_OK) tsk_model_free(model);
    else *out = model;
    return status;
}

tsk_status tsk_model_random(const tsk_model_config *config, uint64_t seed, const tsk_model_options *options, tsk_model **out, tsk_error *error) {
    tsk_model_options defaults = tsk_model_options_default();
    tsk__loading loading;
    tsk_model *model;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_model_random", "out");
    *out = NULL;
    if (!config) return tsk__error_null(error, "tsk_model_random", "config");
    status = tsk__config_check(config, "random model", error);
    if (status == TSK_OK && (config->qkv_bias || config->linear_bias))
        status = tsk__error_set(error, TSK_ERROR_UNSUPPORTED, NULL, TSK_NO_OFFSET, "random models have no biases");
    if (status == TSK_OK) status = tsk__model_new(options ? options : &defaults, &model, error);
    if (status != TSK_OK) return status;
    memset(&loading, 0, sizeof loading);
    loading.model = model;
    loading.options = options ? options : &defaults;
    model->config = *config;
    loading.total = tsk__config_weights_size(config);
    status = tsk__model_backend(&loading, 1, seed, error);
    if (status != TSK_OK) tsk_model_free(model);
    else *out = model;
    return status;
}

void tsk_model_free(tsk_model *model) {
    const tsk_allocator *allocator;
    size_t i;
    if (!model) return;
    allocator = model->allocator;
    tsk__pool_destroy(allocator, model->pool);
#ifdef TOKENSKIP__HAS_CUDA
    if (model->is_cuda) tsk__cuda_backend_destroy(model->backend);
    else
#endif
        tsk__memory_delete(allocator, model->backend);
    for (i = 0; i < model->n_blocks; i++) tsk__memory_delete(allocator, model->blocks[i]);
    tsk__memory_delete(allocator, model->blocks);
    tsk_tokenizer_free(model->tokenizer);
    tsk_folder_free(model->folder);
    tsk__memory_delete(allocator, model);
}

const tsk_model_config *tsk_model_get_config(const tsk_model *model) { return model ? &model->config : NULL; }
const tsk_tokenizer *tsk_model_tokenizer(const tsk_model *model) { return model ? model->tokenizer : NULL; }
const char *tsk_model_device_name(const tsk_model *model) { return model ? model->device_name : ""; }
const char *tsk_model_device_note(const tsk_model *model) { return model ? model->device_note : ""; }
tsk_dtype tsk_model_dtype(const tsk_model *model) {
    if (!model) return TSK_DTYPE_AUTO;
    return model->backend->element_size == sizeof(float) ? TSK_DTYPE_F32 : TSK_DTYPE_BF16;
}

#endif /* SECTION_GUARD_MODEL */
