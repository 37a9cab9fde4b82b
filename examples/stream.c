/* Prints text as it becomes final. A masked-diffusion model does not write from left to right: within a block any token
   may come first. tsk_step_text gives what is final: the text up to the first mask. It only grows.

       cc -O2 -I. examples/stream.c -o stream -lm -lpthread -ldl && ./stream examples/demo-model "What is 12 + 30?" */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_CUDA_DLOPEN
#include "tokenskip.h"

#include <stdio.h>

typedef struct stream {
    const tsk_tokenizer *tokenizer;
    size_t printed; /* bytes */
} stream;

/* After every forward pass. Returning nonzero would end the generation. */
static int on_step(void *user, const tsk_step *step) {
    stream *s = (stream *)user;
    tsk_text text = {0};
    if (tsk_step_text(s->tokenizer, step, &text, NULL) == TSK_OK && text.length > s->printed) {
        fwrite(text.data + s->printed, 1, text.length - s->printed, stdout);
        fflush(stdout);
        s->printed = text.length;
    }
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

    s.tokenizer = tsk_model_tokenizer(model);
    options.on_step = on_step;
    options.user = &s;
    if (!status) status = tsk_chat_encode(s.tokenizer, &message, 1, 0, &prompt, &error);
    if (!status) status = tsk_session_create(model, &options, &session, &error);
    if (!status) status = tsk_generate(session, prompt.ids, prompt.count, NULL, &result, &error);
    if (status) fprintf(stderr, "stream: %s\n", error.message);
    else printf("\n(%d tokens in %d forward passes)\n", (int)result.n_before_end, (int)result.nfe);

    tsk_session_free(session);
    tsk_tokens_free(&prompt);
    tsk_model_free(model);
    return status != TSK_OK;
}
