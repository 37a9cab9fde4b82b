/* The input is a model folder: two bytes that say how long config.json is, config.json, then model.safetensors. What
   loads, if it is small, must run. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "../../tokenskip.h"
#include "tokenizer_files.h"

/* A pass over three tokens; logits of a hostile model may be anything, but must be there. */
static void run_model(tsk_model *model) {
    const tsk_model_config *config = tsk_model_get_config(model);
    tsk_generate_options options = tsk_generate_options_default();
    int32_t tokens[3] = {0, 0, 0};
    tsk_session *session = NULL;
    float *logits;
    if ((int64_t)config->embedding_size * config->d_model > 1 << 16 || config->n_layers > 8 ||
        config->mlp_hidden_size > 1 << 12 || config->max_sequence_length < 3)
        return;
    options.gen_length = options.block_length = 1;
    options.skip.layer_k = 0;
    tokens[1] = config->mask_token_id;
    logits = (float *)calloc((size_t)config->embedding_size * 3, sizeof *logits);
    if (logits && tsk_session_create(model, &options, &session, NULL) == TSK_OK &&
        tsk_session_logits(session, tokens, 3, 0, 3, logits, NULL) != TSK_OK)
        abort();
    tsk_session_free(session);
    free(logits);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_folder folder = {{{NULL, NULL, 0}}, 0};
    tsk_file_callbacks files = {fuzz_open, fuzz_read, NULL, fuzz_close, NULL};
    tsk_model_options options = tsk_model_options_default();
    tsk_model *model = NULL;
    tsk_error error;
    size_t config;
    if (size < 2) return 0;
    memset(&error, 0, sizeof error);
    config = (size_t)data[0] | (size_t)data[1] << 8;
    if (config > size - 2) config = size - 2;
    fuzz_add(&folder, "config.json", data + 2, config);
    fuzz_add(&folder, "model.safetensors", data + 2 + config, size - 2 - config);
    files.user = &folder;
    options.host.files = &files;
    options.device = TSK_DEVICE_CPU;
    options.n_threads = 1;
    if (tsk_model_load("folder", &options, &model, &error) == TSK_OK) run_model(model);
    else if (!error.message[0] || strchr(error.message, '\n')) abort(); /* every refusal says why, in one line */
    tsk_model_free(model);
    return 0;
}
