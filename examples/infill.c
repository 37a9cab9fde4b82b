/* Fills a gap in the middle of a text: a masked-diffusion model reads what comes after it as well. Masks inside the
   prompt are positions to fill; they are decoded before anything is generated behind them.

       cc -O2 -I. examples/infill.c -o infill -lm -lpthread -ldl && ./infill examples/demo-model */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_CUDA_DLOPEN
#include "tokenskip.h"

#include <stdio.h>
#include <string.h>

/* The question, then an answer with a gap of so many tokens in it. *answer: where the answer begins. */
static tsk_status make_prompt(const tsk_model *model, const char *question, const char *before, int gap,
                              const char *after, tsk_tokens *prompt, int32_t *answer, tsk_error *error) {
    const tsk_tokenizer *tokenizer = tsk_model_tokenizer(model);
    const int32_t mask = tsk_model_get_config(model)->mask_token_id;
    tsk_message message = {"user", NULL};
    tsk_status status;
    message.content = question;
    status = tsk_chat_encode(tokenizer, &message, 1, 0, prompt, error);
    *answer = prompt->count;
    if (!status) status = tsk_tokenizer_encode(tokenizer, before, strlen(before), 0, prompt, error);
    while (!status && gap-- > 0) status = tsk_tokens_append(prompt, &mask, 1);
    if (!status) status = tsk_tokenizer_encode(tokenizer, after, strlen(after), 0, prompt, error);
    return status;
}

int main(int argc, char **argv) {
    tsk_generate_options options = tsk_generate_options_default();
    tsk_model *model = NULL;
    tsk_session *session = NULL;
    tsk_tokens prompt = {0};
    int32_t answer = 0;
    tsk_text text = {0};
    tsk_result result;
    tsk_error error;
    tsk_status status = tsk_model_load(argc > 1 ? argv[1] : "examples/demo-model", NULL, &model, &error);

    options.gen_length = options.block_length = 8; /* room after the answer: it ends there */
    if (!status)
        status = make_prompt(model, "Who is Newton in physics?", "Isaac Newton was an English physicist who explained",
                             4, " and the laws of motion.", &prompt, &answer, &error);
    if (!status) status = tsk_session_create(model, &options, &session, &error);
    if (!status) status = tsk_generate(session, prompt.ids, prompt.count, NULL, &result, &error);
    /* the canvas: the prompt with its gap filled, then what was generated */
    if (!status)
        status = tsk_tokenizer_decode(tsk_model_tokenizer(model), result.canvas + answer, prompt.count - answer, 1,
                                      &text, &error);
    if (status) fprintf(stderr, "infill: %s\n", status == TSK_ERROR_MEMORY ? tsk_status_string(status) : error.message);
    else printf("%s\n", text.data ? text.data : "");

    tsk_text_free(&text);
    tsk_session_free(session);
    tsk_tokens_free(&prompt);
    tsk_model_free(model);
    return status != TSK_OK;
}
