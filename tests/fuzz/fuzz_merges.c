/* The input is a merges.txt for a fixed vocabulary; its first byte chooses the tokenizer's class. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "../../tokenskip.h"
#include "tokenizer_files.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const configs[] = {"{\"tokenizer_class\":\"GPT2Tokenizer\"}",
                                          "{\"tokenizer_class\":\"Qwen2Tokenizer\"}",
                                          "{\"tokenizer_class\":\"DreamTokenizer\"}"};
    fuzz_folder folder = {{{NULL, NULL, 0}}, 0};
    const char *config;
    tsk_tokenizer *tokenizer;
    if (size == 0) return 0;
    config = configs[data[0] % 3];
    fuzz_add(&folder, "vocab.json", fuzz_vocabulary(), strlen(fuzz_vocabulary()));
    fuzz_add(&folder, "merges.txt", data + 1, size - 1);
    fuzz_add(&folder, "tokenizer_config.json", config, strlen(config));
    tokenizer = fuzz_load(&folder);
    if (tokenizer) { /* no merge may lose or change a byte that has a token */
        static const char text[] =
            "the aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa caf\xc3\xa9 \n other";
        tsk_tokens tokens = fuzz_encode(tokenizer, text, sizeof text - 1, 1);
        tsk_text decoded = fuzz_decode(tokenizer, tokens.ids, tokens.count, 0);
        if (decoded.length != sizeof text - 1 || memcmp(decoded.data, text, decoded.length) != 0) abort();
        tsk_text_free(&decoded);
        tsk_tokens_free(&tokens);
    }
    tsk_tokenizer_free(tokenizer);
    return 0;
}
