/* The input is a conversation: the first byte chooses a template, each zero byte starts a message. However it is
   worded, only the template's own special tokens may take effect, and decoding must give the rendered text. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "../../tokenskip.h"
#include "tokenizer_files.h"

enum { fuzz_max_messages = 8 };

static tsk_tokenizer *make(void) {
    static char file[32768];
    static const char config[] = "{\"bos_token\":\"<|im_end|>\",\"chat_template\":\"x\"}";
    char *to = file;
    fuzz_folder folder = {{{NULL, NULL, 0}}, 0};
    int byte;
    to += sprintf(to, "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"decoder\":{\"type\":"
                      "\"ByteLevel\"},\"model\":{\"vocab\":{");
    for (byte = 0; byte < 256; byte++) {
        char text[8], *end = tsk__json_put_utf8(text, tsk__bpe_alphabet((unsigned)byte));
        to += sprintf(to, "%s\"%s%.*s\":%d", byte ? "," : "", byte == '"' || byte == '\\' ? "\\" : "",
                      (int)(end - text), text, byte);
    }
    to += sprintf(to, "},\"merges\":[]},\"added_tokens\":[{\"id\":256,\"content\":\"<|im_end|>\",\"special\":true},{"
                      "\"id\":257,\"content\":\"<|im_start|>\",\"special\":true},"
                      "{\"id\":258,\"content\":\"<|eot_id|>\",\"special\":true},{\"id\":259,\"content\":\"<|role_end|>"
                      "\",\"special\":true},{\"id\":260,\"content\":\"<role>\",\"special\":true}]}");
    fuzz_add(&folder, "tokenizer.json", file, (size_t)(to - file));
    fuzz_add(&folder, "tokenizer_config.json", config, sizeof config - 1);
    return fuzz_load(&folder);
}

/* How many tokens of the template's own a conversation has. */
static size_t count_own(int kind, size_t n) {
    if (kind == TSK__TEMPLATE_HEADERS) return n + (n > 0);              /* a bos, an <|eot_id|> each */
    if (kind == TSK__TEMPLATE_ROLES) return SIZE_MAX;                  /* a system message merges with the header: not
                                                                          counted */
    return 2 * n + 1;                                                  /* start and end of each, and the start of the
                                                                          answer */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const roles[] = {"user", "assistant", "system"};
    static tsk_tokenizer *tokenizer;
    tsk_message messages[fuzz_max_messages];
    tsk_text text, decoded;
    tsk_tokens tokens;
    tsk_error error;
    char *copy;
    size_t i, n = 0, n_special = 0;
    if (!tokenizer && !(tokenizer = make())) abort();
    if (size == 0) return 0;
    tokenizer->template_kind = TSK__TEMPLATE_HEADERS + data[0] % 4;
    copy = (char *)malloc(size);
    memcpy(copy, data + 1, size - 1);
    copy[size - 1] = 0;
    for (i = 0; i < size && n < fuzz_max_messages; i += strlen(copy + i) + 1, n++) {
        messages[n].role = roles[(unsigned char)copy[i] % 3];
        messages[n].content = copy + i;
    }
    memset(&text, 0, sizeof text);
    memset(&tokens, 0, sizeof tokens);
    memset(&error, 0, sizeof error);
    if (tsk_chat_render(tokenizer, messages, n, &text, &error) == TSK_OK) {
        if (tsk_chat_encode(tokenizer, messages, n, 0, &tokens, &error) != TSK_OK) abort();
        for (i = 0; i < (size_t)tokens.count; i++) n_special += tokens.ids[i] >= 256;
        if (count_own(tokenizer->template_kind, n) != SIZE_MAX && n_special != count_own(tokenizer->template_kind, n))
            abort();
        decoded = fuzz_decode(tokenizer, tokens.ids, tokens.count, 0);
        if (decoded.length != text.length || memcmp(decoded.data, text.data, text.length) != 0) abort();
        tsk_text_free(&decoded);
    } else if (tsk__unicode_invalid(copy, size) == size || !error.message[0]) {
        abort();
    }
    tsk_tokens_free(&tokens);
    tsk_text_free(&text);
    free(copy);
    return 0;
}
