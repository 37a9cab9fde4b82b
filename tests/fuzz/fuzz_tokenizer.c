/* The input is a tokenizer.json and, behind a NUL byte if there is one, a tokenizer_config.json. Whatever loads must
   encode and decode. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "../../tokenskip.h"
#include "tokenizer_files.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char text[] = "the cat's  e\xcc\x81 caf\xc3\xa9 <a> "
                               "123\n\naaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa <x><|x|>";
    fuzz_folder folder = {{{NULL, NULL, 0}}, 0};
    tsk_tokenizer *tokenizer;
    const uint8_t *end = size ? (const uint8_t *)memchr(data, 0, size) : NULL;
    int special;
    fuzz_add(&folder, "tokenizer.json", data, end ? (size_t)(end - data) : size);
    if (end) fuzz_add(&folder, "tokenizer_config.json", end + 1, size - (size_t)(end + 1 - data));
    tokenizer = fuzz_load(&folder);
    for (special = 0; tokenizer && special < 2; special++) {
        tsk_tokens tokens = fuzz_encode(tokenizer, text, sizeof text - 1, special);
        tsk_text decoded = fuzz_decode(tokenizer, tokens.ids, tokens.count, special);
        tsk_text_free(&decoded);
        tsk_tokens_free(&tokens);
    }
    tsk_tokenizer_free(tokenizer);
    return 0;
}
