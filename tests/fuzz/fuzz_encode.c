/* The input is a text; its first byte chooses one of four tokenizers and whether added tokens are recognised. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#define TSK__BPE_CHARS_FROM 1
#include "../../tokenskip.h"
#include "tokenizer_files.h"

/* Every byte has a token, so that text comes back as it was; added tokens that strip, stand alone and overlap. */
static tsk_tokenizer *make(int kind) {
    static const char *const splits[] = {
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| "
        "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+",
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "
        "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+",
        "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?[\\\\p{Lu}\\\\p{Lt}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]*[\\\\p{Ll}\\\\p{Lm}\\\\p{Lo}"
        "\\\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?[\\\\p{Lu}\\\\p{Lt}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]+[\\\\p{Ll}\\\\p{Lm}\\\\p{Lo}"
        "\\\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        "\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n/]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+",
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\\\p{L}+| ?\\\\p{N}+| ?[^\\\\s\\\\p{L}\\\\p{N}]+|\\\\s+(?!\\\\S)|\\\\s+"};
    static char file[32768];
    char *to = file;
    fuzz_folder folder = {{{NULL, NULL, 0}}, 0};
    int byte;
    to += sprintf(to,
                  "{\"normalizer\":%s,\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
                  "\"pattern\":{\"Regex\":\"%s\"},"
                  "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
                  "\"use_regex\":false}]},\"decoder\":{\"type\":\"ByteLevel\"},"
                  "\"model\":{\"ignore_merges\":%s,\"vocab\":{",
                  kind & 1 ? "{\"type\":\"NFC\"}" : "null", splits[kind & 3], kind == 1 ? "true" : "false");
    for (byte = 0; byte < 256; byte++) {
        char text[8], *end = tsk__json_put_utf8(text, tsk__bpe_alphabet((unsigned)byte));
        to += sprintf(to, "\"%s%.*s\":%d,", byte == '"' || byte == '\\' ? "\\" : "", (int)(end - text), text, byte);
    }
    to += sprintf(to, "\"aa\":256,\"aaaa\":257,\"th\":258,\"the\":259,\"\xc4\xa0the\":260,\"zz\":261,\"abc\":262,"
                      "\"ab\":263,\"bc\":264},\"merges\":[\"b c\",\"t h\",\"th e\","
                      "\"\xc4\xa0 the\",\"a a\",\"aa aa\",\"a b\",\"ab c\",\"z z\"]},\"added_tokens\":[");
    to += sprintf(
        to,
        "{\"id\":265,\"content\":\"<a>\",\"special\":true},{\"id\":266,\"content\":\"<a><b>\",\"special\":true,"
        "\"lstrip\":true},"
        "{\"id\":267,\"content\":\"<c\",\"rstrip\":true,\"normalized\":true},{\"id\":268,\"content\":\"the "
        "end\",\"single_word\":true,\"special\":true},"
        "{\"id\":269,\"content\":\"e\xcc\x81\",\"normalized\":true},{\"id\":270,\"content\":\"  \",\"special\":true},"
        "{\"id\":271,\"content\":\"\\t\",\"special\":true,\"lstrip\":true,\"rstrip\":true},{\"id\":272,\"content\":"
        "\"\\n\",\"lstrip\":true}]}");
    fuzz_add(&folder, "tokenizer.json", file, (size_t)(to - file));
    return fuzz_load(&folder);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static tsk_tokenizer *tokenizers[4];
    const tsk_tokenizer *tokenizer;
    tsk_tokens tokens;
    tsk_text decoded, normal;
    char *text;
    if (size == 0) return 0;
    if (!tokenizers[data[0] & 3] && !(tokenizers[data[0] & 3] = make(data[0] & 3))) abort();
    tokenizer = tokenizers[data[0] & 3];
    text = (char *)malloc(size - 1 ? size - 1 : 1); /* of the exact size, so that a sanitizer sees a read beyond it */
    memcpy(text, data + 1, size - 1);
    tokens = fuzz_encode(tokenizer, text, size - 1, data[0] >> 2 & 1);
    decoded = fuzz_decode(tokenizer, tokens.ids, tokens.count, 0);
    memset(&normal, 0, sizeof normal);
    if (tokens.count && !(data[0] >> 2 & 1)) { /* nothing is stripped then: the text comes back, in normal form */
        if (tokenizer->nfc ? tsk__unicode_nfc(&tokenizer->unicode, text, size - 1, &normal) != TSK_OK
                           : tsk_text_append(&normal, text, size - 1) != TSK_OK)
            abort();
        if (decoded.length != normal.length || memcmp(decoded.data, normal.data, normal.length) != 0) abort();
    }
    tsk_text_free(&normal);
    tsk_text_free(&decoded);
    tsk_tokens_free(&tokens);
    free(text);
    return 0;
}
