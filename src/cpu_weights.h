#ifndef SECTION_GUARD_CPU_WEIGHTS
#define SECTION_GUARD_CPU_WEIGHTS

#include "error.h"
#include "memory.h"
#include "number.h"
#include "safetensors.h"
#include "family.h"
#include "weights.h"
#include "cpu.h"

// >>cpu_weights =======================================================================================================
/* How weights get to the CPU: a tensor stays where it is mapped, in the type that it is stored in. What is misaligned
   or not mapped is copied, what is to be quantised or unpacked gets memory of its own (see >>weights), and norms and
   biases, a few kilobytes, are converted to f32. */

typedef struct tsk__cpu_loading {
    tsk__cpu_model *model;
    const tsk__source *source;
    const tsk_model_options *options;
    uint64_t done, total;          /* bytes */
} tsk__cpu_loading;

static tsk_status tsk__cpu_put_vector(tsk__cpu_loading *l, const tsk__stored *stored, const float **out,
                                      tsk_error *error) {
    float *values;
    const void *from = stored->data;
    tsk_status status = TSK_OK;
    *out = (const float *)from;
    if (stored->dtype == TSK_DTYPE_F32 && from && (uintptr_t)from % sizeof **out == 0) return TSK_OK;
    values = (float *)tsk__blocks_new(&l->model->blocks, (size_t)stored->rows, sizeof *values);
    if (!values) return tsk__error_memory(error, stored->name, stored->size);
    if (!from) {  /* read to the end of the room that they are widened in */
        char *end = (char *)(values + stored->rows) - stored->size;
        from = end;
        status = l->source->read(l->source, stored, 0, end, (size_t)stored->size, error);
    }
    if (status == TSK_OK) tsk__floats_from(stored->dtype, from, (uint64_t)stored->rows, values);
    *out = values;
    return status;
}

static tsk_status tsk__cpu_put(void *loading, const tsk__weight_id *id, const tsk__stored *stored, tsk_error *error) {
    tsk__cpu_loading *l = (tsk__cpu_loading *)loading;
    const tsk_model_config *c = l->model->config;
    const tsk_model_options *o = l->options;
    tsk__weight *w = &l->model->weights[tsk__family_index(c, id->layer, (tsk__part)id->part, id->expert)];
    const float *vector = NULL;
    tsk_status status;
    if (!tsk__family_is_vector(c, id))
        status = tsk__weight_take(&l->model->blocks, l->source, id, stored, w, error);
    else {
        status = tsk__cpu_put_vector(l, stored, &vector, error);
        if (id->is_bias) w->bias = vector;
        else w->data = vector, w->dtype = TSK_DTYPE_F32, w->rows = stored->rows, w->cols = 1;
    }
    if (status != TSK_OK) return status;
    l->done += stored->size;
    if (o->progress) o->progress(o->user, l->done, l->total);
    if (o->cancel && o->cancel(o->user))
        return tsk__error_set(error, TSK_ERROR_CANCELLED, NULL, TSK_NO_OFFSET, "loading was cancelled");
    return TSK_OK;
}

/* Needs the model's configuration and allocator. tsk__cpu_weights_free frees what was loaded, after a failure too. */
static tsk_status tsk__cpu_load_weights(tsk__cpu_model *model, const tsk__source *source, const tsk_model_options *o,
                                        tsk_error *error) {
    const tsk_model_config *c = model->config;
    size_t count = tsk__family_count(c);
    tsk__cpu_loading loading;
    tsk_status status;
    model->weights = (tsk__weight *)tsk__blocks_new(&model->blocks, count, sizeof *model->weights);
    if (!model->weights) return tsk__error_memory(error, "the list of weights", count * sizeof *model->weights);
    memset(model->weights, 0, count * sizeof *model->weights);
    loading.model = model;
    loading.source = source;
    loading.options = o;
    loading.done = 0;
    loading.total = tsk__weights_total(source);
    status = tsk__weights_load(source, tsk__cpu_put, &loading, error);
    if (c->weight_tying)
        model->weights[tsk__family_index(c, -1, TSK__PART_HEAD, 0)] = *tsk__cpu_weight(model, -1, TSK__PART_EMBEDDING);
    return status;
}

static void tsk__cpu_weights_free(tsk__cpu_model *model) { tsk__blocks_free(&model->blocks); }

#endif /* SECTION_GUARD_CPU_WEIGHTS */
