/* The shortest useful program: load a model, ask it something, print the answer.

       cc -O2 -I. examples/hello.c -o hello -lm -lpthread -ldl && ./hello examples/demo-model "What is 12 + 30?" */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_CUDA_DLOPEN /* uses an NVIDIA GPU where there is one; needs no CUDA to compile */
#include "tokenskip.h"

#include <stdio.h>

/* Everything that can fail returns a tsk_status, 0 for success, and fills `error`. */
static int answer(tsk_model *model, const char *question, tsk_error *error) {
    tsk_generate_options options = tsk_generate_options_default();
    tsk_session *session = NULL;
    tsk_tokens prompt = {0};
    tsk_text text = {0};
    tsk_message message = {"user", question};
    tsk_result result;
    tsk_status status = tsk_chat_encode(tsk_model_tokenizer(model), &message, 1, 0, &prompt, error);

    if (!status) status = tsk_session_create(model, &options, &session, error);
    if (!status) status = tsk_generate(session, prompt.ids, prompt.count, NULL, &result, error);
    if (!status)
        status = tsk_tokenizer_decode(tsk_model_tokenizer(model), result.tokens, result.n_before_end, 1, &text, error);
    if (!status) printf("%s\n", text.data ? text.data : "");

    tsk_text_free(&text);
    tsk_session_free(session);
    tsk_tokens_free(&prompt);
    return status == TSK_OK;
}

int main(int argc, char **argv) {
    const char *dir = argc > 1 ? argv[1] : "examples/demo-model";
    const char *question = argc > 2 ? argv[2] : "Who is Newton in physics?";
    tsk_model_options options = tsk_model_options_default();
    tsk_model *model = NULL;
    tsk_error error;
    int good = tsk_model_load(dir, &options, &model, &error) == TSK_OK && answer(model, question, &error);

    if (!good) fprintf(stderr, "hello: %s\n", error.message);
    tsk_model_free(model);
    return good ? 0 : 1;
}
