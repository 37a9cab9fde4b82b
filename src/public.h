#ifndef SECTION_GUARD_PUBLIC
#define SECTION_GUARD_PUBLIC

#include "error.h"
#include "platform.h"
#include "safetensors.h"
#include "config.h"
#include "weights.h"
#include "storage.h"
#include "cpu.h"
#include "cuda_driver.h"
#include "model.h"
#include "request.h"
#include "batch.h"

// >>public ============================================================================================================
/* What is left: questions about a device and about memory, asked without a generation. */

int32_t tsk_version(void) {
    return TOKENSKIP_VERSION_MAJOR * 10000 + TOKENSKIP_VERSION_MINOR * 100 + TOKENSKIP_VERSION_PATCH;
}
const char *tsk_version_string(void) { return TOKENSKIP_VERSION_STRING; }

static void tsk__device_cpu(tsk_device_info *out) {
    uint64_t total = tsk__memory_total(), available = tsk__memory_available();
    int n = tsk__processors();
    memset(out, 0, sizeof *out);
    out->device = TSK_DEVICE_CPU;
    snprintf(out->name, sizeof out->name, "CPU, %s, %d processor%s", tsk__cpu_kernels_select()->description, n,
             n == 1 ? "" : "s");
    out->memory_total = total == UINT64_MAX ? 0 : total;
    out->memory_free = available == UINT64_MAX ? 0 : available;
}

int32_t tsk_devices(tsk_device_info *devices, int32_t room) {
    if (!devices) room = 0;
    if (room > 0) tsk__device_cpu(&devices[0]);
    return 1 + tsk__cuda_devices(room > 1 ? devices + 1 : NULL, room - 1);
}

tsk_status tsk_model_ceilings(tsk_model *model, tsk_ceilings *out, tsk_error *error) {
    if (!model) return tsk__error_null(error, "tsk_model_ceilings", "model");
    if (!out) return tsk__error_null(error, "tsk_model_ceilings", "out");
    memset(out, 0, sizeof *out);
    return model->backend->ops->ceilings(model->backend, out, error);
}

tsk_memory_query tsk_memory_query_default(void) {
    tsk_memory_query q;
    memset(&q, 0, sizeof q);
    q.weights_size = TSK_AUTO;
    q.canvas = TSK_AUTO;
    return q;
}

/* ---- formats */

/* Names a format by what makes two weights' formats the same. */
static void tsk__formats_describe(tsk_weights_format *f, const tsk__scheme *s, tsk_dtype dtype, int bits,
                                  int32_t group) {
    char groups[48];
    f->dtype = dtype;
    f->bits = bits;
    if (s && s->scale_rows > 1)
        snprintf(groups, sizeof groups, "blocks of %d x %d", (int)s->scale_rows, (int)s->group);
    else if (s && !s->scale_rows) snprintf(groups, sizeof groups, "one scale");
    else if (group) snprintf(groups, sizeof groups, "groups of %d", (int)group);
    else snprintf(groups, sizeof groups, "one scale an output");
    if (!bits) snprintf(f->name, sizeof f->name, "%s", tsk_dtype_name(dtype));
    else if (dtype == TSK_DTYPE_F8_E4M3) snprintf(f->name, sizeof f->name, "F8_E4M3, %s", groups);
    else snprintf(f->name, sizeof f->name, "%d bits, %s%s", bits, groups, s && s->has_zeros ? ", zeros" : "");
}

/* How one weight would be held. */
static void tsk__formats_of_weight(const tsk__source *source, const tsk__weight_id *id, tsk_weights_format *f) {
    tsk__stored stored;
    uint64_t shape[2];
    int32_t group;
    int bits;
    memset(f, 0, sizeof *f);
    source->find(source, id, &stored);
    tsk__family_shape(source->config, id, shape);
    f->n_tensors = 1;
    f->n_parameters = shape[0] * shape[1];
    f->bytes = stored.size;
    if (stored.scheme) {
        const int is_packed = stored.dtype == TSK_DTYPE_I32;
        const tsk_tensor_info *shape_info = stored.parts[TSK__ROLE_SHAPE].info; /* which nobody keeps */
        if (shape_info) f->bytes -= shape_info->size;
        tsk__formats_describe(f, stored.scheme, is_packed ? TSK_DTYPE_U8 : stored.dtype, stored.scheme->bits,
                              stored.scheme->group);
        return;
    }
    bits = tsk__weights_bits(source->config, id, source->weights, &group);
    if (bits) f->bytes = tsk__weights_quantised_size(shape, bits, group);
    tsk__formats_describe(f, NULL, bits ? TSK_DTYPE_U8 : stored.dtype, bits, group);
}

#define TSK__PUBLIC_FORMATS 32     /* that are told apart: a further one counts with the last */

int32_t tsk_folder_formats(const tsk_folder *folder, tsk_weights weights, tsk_weights_format *formats, int32_t room) {
    tsk_weights_format all[TSK__PUBLIC_FORMATS], one;
    tsk__source source;
    tsk__weight_id id = tsk__family_first();
    int32_t n = 0, i;
    if (!folder) return 0;
    source = tsk__source_of_folder(folder);
    source.weights = folder->formats.method ? TSK_WEIGHTS_AS_STORED : weights;
    do {
        tsk__formats_of_weight(&source, &id, &one);
        for (i = 0; i < n && i < TSK__PUBLIC_FORMATS - 1 && strcmp(all[i].name, one.name) != 0; i++) {
        }
        if (i == n) {
            all[n++] = one;
            continue;
        }
        all[i].n_tensors++;
        all[i].n_parameters += one.n_parameters;
        all[i].bytes += one.bytes;
    } while (tsk__family_next(&folder->config, &id));
    for (i = 0; formats && i < n && i < room; i++) formats[i] = all[i];
    return n;
}

/* What a pass of so many rows takes on the host: lists, and on the CPU the activations. is_integer: and their codes. */
static uint64_t tsk__estimate_cpu_pass(const tsk_model_config *c, int is_integer, uint64_t rows, uint64_t states) {
    uint64_t q = (uint64_t)c->n_heads * (uint64_t)c->head_dim;
    tsk__cpu_scratch scratch;
    return tsk__cpu_scratch_init(&scratch, c, is_integer, (int32_t)rows, NULL) +
           rows * sizeof(float) * (3 * (uint64_t)c->d_model + 2 * q + (uint64_t)c->mlp_hidden_size + states + 20);
}

/* On a GPU: x three times, q and attention, gate times up, and where rows are many what its matrix products leave;
   tables; the parts of split attention; the best of each tile of the head; cuBLAS's workspace; logits. The numbers are
   those of >>cuda_backend, which is not there in every build; a test compares the sum with what a stream allocates. */
static uint64_t tsk__estimate_cuda_pass(const tsk_model_config *c, uint64_t element, uint64_t rows, uint64_t states) {
    uint64_t d = (uint64_t)c->d_model, q = (uint64_t)c->n_heads * (uint64_t)c->head_dim,
             mlp = (uint64_t)c->mlp_hidden_size;
    uint64_t qkv = q + 2 * (uint64_t)c->n_kv_heads * (uint64_t)c->head_dim, wide = qkv > 2 * mlp ? qkv : 2 * mlp;
    uint64_t vocabulary = (uint64_t)c->embedding_size, head_rows = rows < 1024 ? rows : 1024, slice = head_rows * 8192;
    uint64_t logits = slice > 32 * vocabulary ? slice : 32 * vocabulary, size;
    int has_scratch = rows > (element == 2 ? 64 : 0) || tsk__family_part_of(c, TSK__PART_Q_NORM)->weight;
    size = rows * element * (3 * d + 2 * q + mlp + (has_scratch ? wide > d ? wide : d : 0));
    size += rows * sizeof(float) * (d / 16 + (uint64_t)c->n_heads + (uint64_t)c->head_dim + states + 128);
    size += (vocabulary / 1024 + 1) * head_rows * 32 + logits * sizeof(float);
    if (element == 4) return size;
    return size + ((uint64_t)32 << 20) +
           (c->head_dim == 64 || c->head_dim == 128 ? (uint64_t)c->n_heads * 4096 * ((uint64_t)c->head_dim + 2) : 0);
}

/* What a request has beside its cache. */
static uint64_t tsk__estimate_request(const tsk_model_config *c, const tsk_generate_options *o, uint64_t element,
                                      uint64_t canvas, uint64_t states, int may_be_cut) {
    uint64_t row = (uint64_t)c->d_model * element, slots = (uint64_t)o->block_length;
    return (2 * states + (states && o->skip.policy == TSK_SKIP_REUSE)) * slots * row +
           (o->skip.refresh ? 2 * states * canvas * row : 0) + (may_be_cut ? canvas * row : 0) +
           canvas * 12 * sizeof(int32_t);
}

static tsk_status tsk__estimate_check(tsk_memory_query *q, tsk_generate_options *o, tsk_error *error) {
    tsk_status status = tsk__config_check(q->config, "memory estimate", error);
    if (status != TSK_OK) return status;
    tsk__options_resolve(o, q->config, NULL);
    status = tsk__options_check(o, q->config, error);
    if (status == TSK_OK && q->batch) status = tsk__batch_check_options(q->batch, error);
    if (status != TSK_OK) return status;
    if (q->device == TSK_DEVICE_AUTO) q->device = q->dtype == TSK_DTYPE_BF16 ? TSK_DEVICE_CUDA : TSK_DEVICE_CPU;
    if (q->dtype == TSK_DTYPE_AUTO) q->dtype = q->device == TSK_DEVICE_CUDA ? TSK_DTYPE_BF16 : TSK_DTYPE_F32;
    if (q->canvas == TSK_AUTO) q->canvas = q->config->max_sequence_length;
    if ((q->device != TSK_DEVICE_CPU && q->device != TSK_DEVICE_CUDA) ||
        (q->dtype != TSK_DTYPE_F32 && (q->dtype != TSK_DTYPE_BF16 || q->device == TSK_DEVICE_CPU)))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "a memory estimate is of F32 on the CPU, or of F32 or BF16 on a GPU");
    if (q->canvas <= 0 || (q->weights_size < 0 && q->weights_size != TSK_AUTO))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "a memory estimate of %d tokens and %lld bytes of weights", (int)q->canvas,
                              (long long)q->weights_size);
    return TSK_OK;
}

tsk_status tsk_memory_estimate(const tsk_memory_query *query, tsk_memory *out, tsk_error *error) {
    tsk_memory_query q;
    tsk_generate_options o;
    tsk_status status;
    uint64_t element, states, rows, tokens, requests;
    int is_integer;
    if (!query) return tsk__error_null(error, "tsk_memory_estimate", "query");
    if (!query->config) return tsk__error_null(error, "tsk_memory_estimate", "config");
    if (!out) return tsk__error_null(error, "tsk_memory_estimate", "out");
    q = *query;
    o = q.generate ? *q.generate : tsk_generate_options_default();
    status = tsk__estimate_check(&q, &o, error);
    if (status != TSK_OK) return status;
    element = tsk_dtype_size(q.dtype);
    is_integer = q.weights != TSK_WEIGHTS_AS_STORED;
    states = (uint64_t)tsk__options_n_states(&o, q.config);
    requests = q.batch ? (uint64_t)q.batch->max_requests : 1;
    tokens = !q.batch                            ? (uint64_t)q.canvas
             : q.batch->cache_tokens != TSK_AUTO ? (uint64_t)q.batch->cache_tokens
                                                 : requests * (uint64_t)q.config->max_sequence_length;
    rows = q.batch ? (uint64_t)tsk__batch_wanted_rows(q.batch, q.config) : (uint64_t)q.canvas;
    if (!q.batch && o.cache == TSK_CACHE_BLOCK && rows > (uint64_t)tsk__options_piece(&o, 0))
        rows = (uint64_t)tsk__options_piece(&o, 0);
    if (q.batch && q.batch->max_rows == TSK_AUTO && rows > tokens) rows = tokens;
    out->weights = q.weights_size != TSK_AUTO ? (uint64_t)q.weights_size : tsk__weights_size(q.config, q.weights);
    out->cache = 2 * tokens * tsk__storage_kv_size(q.config, element, 1);
    out->workspace = requests * tsk__estimate_request(q.config, &o, element, (uint64_t)q.canvas, states,
                                                      q.batch && q.batch->row_layers > 0);
    out->workspace += q.device == TSK_DEVICE_CUDA ? tsk__estimate_cuda_pass(q.config, element, rows, states)
                                                  : tsk__estimate_cpu_pass(q.config, is_integer, rows, states);
    return TSK_OK;
}

#endif /* SECTION_GUARD_PUBLIC */
