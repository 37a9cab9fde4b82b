/* app MODEL: a stranger's program, built once with the header's implementation in it and once with the shared library.
   Prints the version and the tokens that the model writes after 1, 2, 3, so that the two can be compared. */
#ifdef APP_HAS_IMPLEMENTATION
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_CUDA_DLOPEN
#endif
#include "tokenskip.h"

#include <stdio.h>

int main(int argc, char **argv) {
    static const int32_t prompt[] = {1, 2, 3};
    tsk_model_options options = tsk_model_options_default();
    tsk_generate_options generate = tsk_generate_options_default();
    tsk_model *model = NULL;
    tsk_session *session = NULL;
    tsk_result result;
    tsk_error error;
    int32_t i;

    if (argc != 2) return fprintf(stderr, "usage: app MODEL\n"), 2;
    options.device = TSK_DEVICE_CPU;
    generate.gen_length = 8;
    generate.block_length = 8;
    if (tsk_model_load(argv[1], &options, &model, &error) || tsk_session_create(model, &generate, &session, &error) ||
        tsk_generate(session, prompt, 3, NULL, &result, &error))
        return fprintf(stderr, "app: %s\n", error.message), 1;
    printf("%s:", tsk_version_string());
    for (i = 0; i < result.n_tokens; i++) printf(" %d", (int)result.tokens[i]);
    printf("\n");
    tsk_session_free(session);
    tsk_model_free(model);
    return tsk_version() / 100 == (TOKENSKIP_VERSION_MAJOR * 100 + TOKENSKIP_VERSION_MINOR) ? 0 : 1;
}
