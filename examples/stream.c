/* Prints text as it becomes final. A masked-diffusion model does not write from left to right: within a block any token
   may come first. So the step callback prints up to the first mask, and tsk_decoder holds back half a character.

       cc -O2 -I. examples/stream.c -o stream -lm -lpthread -ldl && ./stream examples/demo-model "What is 12 + 30?" */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_CUDA_DLOPEN
#include "tokenskip.h"

#include <stdio.h>

typedef struct stream {
    const tsk_model *model;
    tsk_decoder decoder;
    int32_t printed; /* generated tokens printed so far */
    int ended;
} stream;

/* After every forward pass. Returning nonzero would end the generation. */
static int on_step(void *user, const tsk_step *step) {
    stream *s = (stream *)user;
    const tsk_model_config *config = tsk_model_get_config(s->model);
    const tsk_tokenizer *tokenizer = tsk_model_tokenizer(s->model);
    tsk_text text = {0};
    while (step->prompt_length + s->printed < step->canvas_length) {
        int32_t id = step->canvas[step->prompt_length + s->printed];
        if (id == config->mask_token_id) break;
        if (tsk_config_is_eos(config, id) || id == tsk_chat_end_of_turn(tokenizer)) s->ended = 1;
        if (!s->ended) tsk_decoder_push(tokenizer, &s->decoder, id, &text, NULL);
        s->printed++;
    }
    if (text.length) fwrite(text.data, 1, text.length, stdout);
    fflush(stdout);
    tsk_text_free(&text);
    return 0;
}

int main(int argc, char **argv) {
    tsk_message message = {"user", argc > 2 ? argv[2] : "Who is Newton in physics?"};
    tsk_generate_options options = tsk_generate_options_default();
    tsk_model *model = NULL;
    tsk_session *session = NULL;
    tsk_tokens prompt = {0};
    tsk_result result;
    tsk_error error;
    stream s = {0};
    /* NULL options: all defaults */
    tsk_status status = tsk_model_load(argc > 1 ? argv[1] : "examples/demo-model", NULL, &model, &error);

    s.model = model;
    s.decoder.skip_special = 1;
    options.on_step = on_step;
    options.user = &s;
    if (!status) status = tsk_chat_encode(tsk_model_tokenizer(model), &message, 1, 0, &prompt, &error);
    if (!status) status = tsk_session_create(model, &options, &session, &error);
    if (!status) status = tsk_generate(session, prompt.ids, prompt.count, NULL, &result, &error);
    if (status) fprintf(stderr, "stream: %s\n", error.message);
    else printf("\n(%d tokens in %d forward passes)\n", (int)result.n_before_end, (int)result.nfe);

    tsk_session_free(session);
    tsk_tokens_free(&prompt);
    tsk_model_free(model);
    return status != TSK_OK;
}
