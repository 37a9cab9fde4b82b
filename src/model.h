#ifndef SECTION_GUARD_MODEL
#define SECTION_GUARD_MODEL

#include "error.h"
#include "memory.h"
#include "safetensors.h"
#include "bpe.h"
#include "template.h"
#include "config.h"
#include "weights.h"
#include "backend.h"
#include "cpu_backend.h"
#include "cuda.h"

// >>model =============================================================================================================
/* Loading: a checked folder, or random values, become weights in a backend. */

struct tsk_model {
    tsk_host host;
    const tsk_allocator *allocator;
    tsk_model_config config;
    tsk_tokenizer *tokenizer;
    tsk_folder *folder;            /* keeps the mappings alive */
    tsk__backend *backend;
    char device_name[128], device_note[256];
};

/* ---- loading */

tsk_model_options tsk_model_options_default(void) {
    tsk_model_options o;
    memset(&o, 0, sizeof o);
    o.n_threads = TSK_AUTO;
    return o;
}

static tsk_status tsk__model_check_options(const tsk_model_options *o, tsk_error *error) {
    if ((int)o->device < 0 || o->device > TSK_DEVICE_CUDA)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "device has no value %d", (int)o->device);
    if (o->dtype != TSK_DTYPE_AUTO && o->dtype != TSK_DTYPE_F32 && o->dtype != TSK_DTYPE_BF16)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "activations are F32 or BF16, not %s",
                              tsk_dtype_name(o->dtype));
    if (o->device == TSK_DEVICE_CPU && o->dtype == TSK_DTYPE_BF16)
        return tsk__error_set(error, TSK_ERROR_UNSUPPORTED, NULL, TSK_NO_OFFSET, "the CPU's activations are F32 only");
    if ((int)o->weights < 0 || o->weights > TSK_WEIGHTS_Q4)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "weights has no value %d",
                              (int)o->weights);
    if (o->n_threads != TSK_AUTO && o->n_threads < 1)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "n_threads must be positive or TSK_AUTO, not %d", o->n_threads);
    if (o->device_index < 0)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "device_index must be zero or positive, not %d", o->device_index);
    return TSK_OK;
}

/* The preferred first. A new backend is one more entry. */
static const tsk__backend_kind *const tsk__backend_kinds[] = {&tsk__cuda_backend_kind, &tsk__cpu_backend_kind};

/* The first kind that the options allow and this machine has. Why a kind was passed over stays in device_note. */
static tsk_status tsk__model_backend_kind(tsk_model *model, const tsk_model_options *o, const tsk__backend_kind **out,
                                          tsk_error *error) {
    size_t i;
    for (i = 0; i < sizeof tsk__backend_kinds / sizeof *tsk__backend_kinds; i++) {
        *out = tsk__backend_kinds[i];
        if (o->device != TSK_DEVICE_AUTO && o->device != (*out)->device) continue;
        if ((*out)->available(o->device_index, model->device_note, sizeof model->device_note)) return TSK_OK;
    }
    return tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET, "no CUDA device: %s", model->device_note);
}

/* A backend that keeps no codes gets the values of quantised weights, which pass through host memory. */
static tsk_status tsk__model_create_dequantised(tsk_model *model, const tsk__backend_kind *kind,
                                                const tsk__source *source, const tsk_model_options *o,
                                                tsk_error *error) {
    tsk__source helped = *source;
    tsk__dequantising d;
    tsk_status status;
    helped.pool = tsk__pool_create(model->allocator, o->n_threads);
    if (!helped.pool) return tsk__error_memory(error, "worker threads", sizeof *helped.pool);
    status = tsk__dequantising_open(&d, &helped, model->allocator, error);
    tsk__pool_destroy(model->allocator, helped.pool);
    helped.pool = NULL;
    if (status != TSK_OK) return status;
    status = kind->create(&model->config, &d.source, o, &model->backend, error);
    tsk__dequantising_close(&d);
    return status;
}

static tsk_status tsk__model_backend(tsk_model *model, const tsk__source *source, const tsk_model_options *o,
                                     tsk_error *error) {
    const int is_quantised =
        source->weights != TSK_WEIGHTS_AS_STORED || (source->folder && source->folder->formats.method);
    const tsk__backend_kind *kind;
    tsk_status status = tsk__model_backend_kind(model, o, &kind, error);
    if (status == TSK_OK && kind->device == TSK_DEVICE_CPU && o->dtype == TSK_DTYPE_BF16)
        return tsk__error_set(error, TSK_ERROR_UNSUPPORTED, NULL, TSK_NO_OFFSET,
                              "the CPU's activations are F32 only (no CUDA device: %s)", model->device_note);
    if (status == TSK_OK && is_quantised && !kind->keeps_codes)
        status = tsk__model_create_dequantised(model, kind, source, o, error);
    else if (status == TSK_OK) status = kind->create(&model->config, source, o, &model->backend, error);
    if (status == TSK_OK) model->backend->ops->describe(model->backend, model->device_name, sizeof model->device_name);
    return status;
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
        return tsk__error_set(error, TSK_ERROR_TOKENIZER, folder->path, TSK_NO_OFFSET,
                              "'%s': the tokenizer has ids up to %d, the model's embedding has %d rows",
                              tsk__error_path(folder->path), (int)model->tokenizer->n_vocabulary_ids - 1,
                              (int)model->config.embedding_size);
    }
    return status;
}

tsk_status tsk_model_load(const char *dir, const tsk_model_options *options, tsk_model **out, tsk_error *error) {
    tsk_model_options defaults = tsk_model_options_default();
    tsk__source source;
    tsk_model *model;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_model_load", "out");
    *out = NULL;
    if (!dir) return tsk__error_null(error, "tsk_model_load", "dir");
    if (!options) options = &defaults;
    status = tsk__model_new(options, &model, error);
    if (status != TSK_OK) return status;
    status = tsk_folder_open(dir, &model->host, &model->folder, error);
    if (status == TSK_OK && options->weights != TSK_WEIGHTS_AS_STORED && model->folder->formats.method)
        status = tsk__error_set(error, TSK_ERROR_UNSUPPORTED, dir, TSK_NO_OFFSET,
                                "'%s' is quantised already (%s): its weights can only be used as stored",
                                tsk__error_path(dir), model->folder->formats.method);
    if (status == TSK_OK) {
        model->config = model->folder->config;
        if (!options->no_tokenizer) status = tsk__model_tokenizer_load(model, error);
    }
    if (status == TSK_OK) {
        source = tsk__source_of_folder(model->folder);
        source.weights = options->weights;
        status = tsk__model_backend(model, &source, options, error);
    }
    if (status != TSK_OK) tsk_model_free(model);
    else *out = model;
    return status;
}

tsk_status tsk_model_random(const tsk_model_config *config, uint64_t seed, const tsk_model_options *options,
                            tsk_model **out, tsk_error *error) {
    tsk_model_options defaults = tsk_model_options_default();
    tsk__source source;
    tsk_model *model;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_model_random", "out");
    *out = NULL;
    if (!options) options = &defaults;
    if (!config) return tsk__error_null(error, "tsk_model_random", "config");
    status = tsk__config_check(config, "random model", error);
    if (status == TSK_OK) status = tsk__model_new(options, &model, error);
    if (status != TSK_OK) return status;
    model->config = *config;
    source = tsk__source_of_random(&model->config, seed);
    source.weights = options->weights;
    status = tsk__model_backend(model, &source, options, error);
    if (status != TSK_OK) tsk_model_free(model);
    else *out = model;
    return status;
}

void tsk_model_free(tsk_model *model) {
    const tsk_allocator *allocator;
    if (!model) return;
    allocator = model->allocator;
    if (model->backend) model->backend->ops->destroy(model->backend);
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
