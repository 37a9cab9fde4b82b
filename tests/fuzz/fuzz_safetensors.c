/* Whatever opens keeps its promises: every byte of data in exactly one tensor. The input's first byte is 255: the rest
   is a file. Else it is the number of bytes of data and the rest a header, so that the length in front of it is
   right. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "../../tokenskip.h"

typedef struct input {
    uint8_t *data;
    size_t size;
} input;

static tsk_status input_open(void *user, const char *path, void **file, uint64_t *size, char *reason,
                             size_t reason_size) {
    (void)path, (void)reason, (void)reason_size;
    *file = user;
    *size = ((input *)user)->size;
    return TSK_OK;
}
static tsk_status input_read(void *user, void *file, uint64_t offset, void *buffer, size_t size, char *reason,
                             size_t reason_size) {
    (void)file, (void)reason, (void)reason_size;
    if (offset > ((input *)user)->size || size > ((input *)user)->size - offset) abort();
    memcpy(buffer, ((input *)user)->data + offset, size);
    return TSK_OK;
}
static const void *input_map(void *user, void *file) {
    (void)file;
    return ((input *)user)->data;
}
static void input_close(void *user, void *file) { (void)user, (void)file; }

static void check(const tsk_safetensors *file, size_t size) {
    uint64_t total = 0, product, i;
    char byte;
    for (i = 0; i < tsk_safetensors_count(file); i++) {
        const tsk_tensor_info *tensor = tsk_safetensors_get(file, (size_t)i);
        int k;
        for (product = tsk_dtype_size(tensor->dtype), k = 0; k < tensor->n_dims; k++) product *= tensor->shape[k];
        if (product != tensor->size || tensor->offset + tensor->size > size) abort();
        if (tsk_safetensors_find(file, tensor->name) != tensor) abort();
        if (i && tensor->offset !=
                     tsk_safetensors_get(file, (size_t)i - 1)->offset + tsk_safetensors_get(file, (size_t)i - 1)->size)
            abort();
        if (tensor->size && tsk_safetensors_read(file, tensor, tensor->size - 1, &byte, 1, NULL) != TSK_OK) abort();
        if (tensor->size && ((const char *)tsk_safetensors_data(file, tensor))[tensor->size - 1] != byte) abort();
        total += tensor->size;
    }
    if (total > size) abort();
    tsk_safetensors_metadata(file);
}

/* On the heap, of the exact size, so that a sanitizer sees a read beyond the end. */
static input make_file(const uint8_t *data, size_t size) {
    size_t i, is_file = data[0] == 255;
    input file;
    file.size = is_file ? size - 1 : 8 + (size - 1) + data[0];
    file.data = (uint8_t *)calloc(file.size + 1, 1);
    memcpy(file.data + (is_file ? 0 : 8), data + 1, size - 1);
    for (i = 0; i < 8 && !is_file; i++) file.data[i] = (uint8_t)((uint64_t)(size - 1) >> 8 * i);
    return file;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tsk_file_callbacks callbacks = {input_open, input_read, input_map, input_close, NULL};
    tsk_host host = {NULL, NULL, 0};
    tsk_error error;
    tsk_safetensors *file;
    input bytes;
    if (size == 0) return 0;
    bytes = make_file(data, size);
    callbacks.user = &bytes;
    host.files = &callbacks;
    if (tsk_safetensors_open("fuzz", &host, &file, &error) == TSK_OK) {
        check(file, bytes.size);
        tsk_safetensors_free(file);
    } else if (file || !error.message[0]) abort();
    free(bytes.data);
    return 0;
}
