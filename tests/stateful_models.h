/* Models for tests/stateful.h: as small as they may be, of every shape that changes the arithmetic. For tests that
   include the implementation. */
#ifndef TSK_STATEFUL_MODELS_H
#define TSK_STATEFUL_MODELS_H

#include "random_model.h"
#include "stateful.h"

static tsk_model *stateful_model(heap *h, const char *dir) {
    tsk_model_options o = tsk_model_options_default();
    tsk_model *model = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    o.host.allocator = &h->allocator;
    o.host.no_map = 1;
    o.device = TSK_DEVICE_CPU;
    o.n_threads = 1;
    o.no_tokenizer = 1;
    must(tsk_model_load(dir, &o, &model, &error), &error);
    return model;
}

/* The folder of a random model, with room for few tokens only, so that its limit is met. */
static const char *short_model_folder(const shape *s) {
    const char *dir = random_model_folder(s);
    char path[1100], *text, *number;
    snprintf(path, sizeof path, "%s/config.json", dir);
    text = read_file(path, NULL);
    number = text ? strstr(text, "\"max_sequence_length\": 1024") : NULL;
    if (!number) exit(2);
    memcpy(number + strlen("\"max_sequence_length\": "), "64  ", 4);
    write_text(path, text);
    free(text);
    return dir;
}

static void stateful_models_load(stateful_models *models) {
    static const shape shapes[] = {
        {"stateful_mha", 16, 3, 2, 2, 24, 13, 0, 0, 0, 6},
        {"stateful_gqa", 32, 4, 4, 2, 40, 29, 1, 0, 0, 4},
        {"stateful_tied", 8, 2, 2, 1, 12, 9, 1, 1, 1, 3},
        {"stateful_deep", 16, 6, 4, 1, 16, 17, 0, 0, 0, 8},
    };
    size_t i;
    memset(models, 0, sizeof *models);
    models->heap = (heap *)malloc(sizeof *models->heap);
    if (!models->heap) exit(2);
    heap_init(models->heap);
    pthread_mutex_init(&models->lock, NULL);
    for (i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        models->models[models->n_models++] = stateful_model(models->heap, short_model_folder(&shapes[i]));
}

static TEST_UNUSED void stateful_models_free(stateful_models *models) {
    while (models->n_models) tsk_model_free(models->models[--models->n_models]);
    CHECK_INT(models->heap->alive, 0);
    CHECK_STRING(models->heap->fault, "");
    pthread_mutex_destroy(&models->lock);
    heap_end(models->heap);
    free(models->heap);
}

#endif
