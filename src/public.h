#ifndef SECTION_GUARD_PUBLIC
#define SECTION_GUARD_PUBLIC

#include "error.h"
#include "safetensors.h"
#include "config.h"
#include "storage.h"
#include "model.h"
#include "forward.h"
#include "request.h"

// >>public ============================================================================================================
/* What is left: questions about a device and about memory, asked without a generation. */

tsk_status tsk_model_ceilings(tsk_model *model, tsk_ceilings *out, tsk_error *error) {
    if (!model) return tsk__error_null(error, "tsk_model_ceilings", "model");
    if (!out) return tsk__error_null(error, "tsk_model_ceilings", "out");
    memset(out, 0, sizeof *out);
    return model->backend->ops->ceilings(model->backend, out, error);
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
    out->cache = 2 * tsk__storage_kv_size(config, element, canvas);
    out->workspace = tsk__pass_size(config, element, canvas) + (2 * states + 1) * slots * row + (o.skip_refresh ? 2 * states * (uint64_t)canvas * row : 0);
    return TSK_OK;
}

#endif /* SECTION_GUARD_PUBLIC */
