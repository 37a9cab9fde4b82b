/* The input is a list of ids, two bytes each; the last byte also says whether special tokens are left out. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "../../tokenskip.h"
#include "tokenizer_files.h"

static tsk_tokenizer *make(void) {
    static char file[32768];
    char *to = file;
    fuzz_folder folder = {{{NULL, NULL, 0}}, 0};
    int byte;
    to += sprintf(to, "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"decoder\":{\"type\":"
                      "\"ByteLevel\"},\"model\":{\"vocab\":{");
    for (byte = 0; byte < 256; byte++) {
        char text[8], *end = tsk__json_put_utf8(text, tsk__bpe_alphabet((unsigned)byte));
        to += sprintf(to, "\"%s%.*s\":%d,", byte == '"' || byte == '\\' ? "\\" : "", (int)(end - text), text, byte);
    }
    to += sprintf(to, "\"a "
                      "b\":256,\"\xe4\xb8\xad\":257,\"\xc3\xa2\xc4\xa4\":258,\"\":259},\"merges\":[]},\"added_tokens\":"
                      "[{\"id\":260,\"content\":\"<a>\",\"special\":true},"
                      "{\"id\":233,\"content\":\"\xc3\xa9\",\"special\":true}]}");
    fuzz_add(&folder, "tokenizer.json", file, (size_t)(to - file));
    return fuzz_load(&folder);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static tsk_tokenizer *tokenizer;
    int32_t *ids;
    tsk_text text;
    size_t i, count = size / 2;
    if (!tokenizer && !(tokenizer = make())) abort();
    if (size == 0) return 0;
    ids = (int32_t *)malloc(count * sizeof *ids + 1);
    for (i = 0; i < count; i++) ids[i] = (int32_t)(data[2 * i] | (uint32_t)data[2 * i + 1] << 8) - 8;
    text = fuzz_decode(tokenizer, ids, count, data[size - 1] & 1);
    tsk_text_free(&text);
    free(ids);
    return 0;
}
