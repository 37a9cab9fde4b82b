/* The input chooses calls of sessions and batches, legal and nearly legal; what may come of each is known. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "../../tokenskip.h"
#include "../stateful_models.h"

/* Loaded once, from a folder that is gone by the time the first input comes. */
static stateful_models *loaded_models(void) {
    static stateful_models models;
    char command[600];
    if (models.n_models) return &models;
    stateful_models_load(&models);
    snprintf(command, sizeof command, "rm -rf '%s'", tsk_test_temp_dir());
    if (system(command) != 0) exit(2);
    return &models;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = stateful_run(loaded_models(), data, size, 0, 1);
    if (text) {
        fputs(text, stderr);
        abort();
    }
    return 0;
}
