/* The tokenizer: ids and text of small tokenizers of every variant against the reference's
   (tests/golden/tokenizer/make.mjs), and files from strangers, each refused by name. */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_NO_CUDA
#define TSK__BPE_CHARS_FROM 1 /* characters are taken whole with the smallest vocabulary, too */
#include "../src/template.h"
#include "golden.h"

static tsk_error error;

static uint32_t random_state = 7;
static int random_below(int n) { return (int)((random_state = random_state * 1664525u + 1013904223u) >> 8) % n; }

static tsk_tokenizer *load(const char *dir, const tsk_host *host) {
    tsk_tokenizer *tokenizer = NULL;
    if (tsk_tokenizer_load(dir, host, &tokenizer, &error) != TSK_OK) printf("%s\n", error.message);
    return tokenizer;
}

/* ---- goldens */

static void check_ids(const tsk_tokens *tokens, const tsk_json_value *ids, const char *dir, const char *text) {
    const tsk_json_value *id = tsk_json_first(ids);
    int32_t i = 0;
    int64_t value;
    for (; id && i < tokens->count && tsk_json_int64(id, &value) && value == tokens->ids[i]; i++)
        id = tsk_json_next(id);
    test_check(!id && i == tokens->count, __FILE__, __LINE__, "%s: ids of '%s' differ at %d of %d", dir, text, (int)i,
               (int)tokens->count);
}

static void check_text(const tsk_text *text, const tsk_json_value *golden, const char *key, const char *dir) {
    size_t length;
    const char *expected = tsk_json_string(tsk_json_get(golden, key), &length);
    test_check(text->length == length && (length == 0 || memcmp(text->data, expected, length) == 0), __FILE__, __LINE__,
               "%s: %s is '%s', expected '%s'", dir, key, text->data ? text->data : "", expected);
}

/* Both ways of decoding; streaming must show whole characters only. */
static void check_decoding(const tsk_tokenizer *tokenizer, const tsk_tokens *tokens, const tsk_json_value *golden,
                           int skip, const char *dir) {
    const char *key = skip ? "skipped" : "decoded";
    tsk_decoder decoder;
    tsk_text whole, streamed;
    int32_t i;
    size_t seen = 0;
    memset(&decoder, 0, sizeof decoder);
    memset(&whole, 0, sizeof whole);
    memset(&streamed, 0, sizeof streamed);
    decoder.skip_special = skip;
    CHECK(tsk_tokenizer_decode(tokenizer, tokens->ids, tokens->count, skip, &whole, &error) == TSK_OK);
    check_text(&whole, golden, key, dir);
    for (i = 0; i < tokens->count; i++) {
        CHECK(tsk_decoder_push(tokenizer, &decoder, tokens->ids[i], &streamed, &error) == TSK_OK);
        CHECK(streamed.length == seen ||
              tsk__unicode_invalid(streamed.data + seen, streamed.length - seen) == streamed.length - seen);
        seen = streamed.length;
    }
    CHECK(tsk_decoder_flush(&decoder, &streamed) == TSK_OK);
    check_text(&streamed, golden, key, dir);
    tsk_text_free(&whole);
    tsk_text_free(&streamed);
}

static void check_case(const tsk_tokenizer *tokenizer, const tsk_json_value *golden, const char *dir) {
    const tsk_json_value *ids = tsk_json_get(golden, "ids"), *id;
    size_t length;
    const char *text = tsk_json_string(tsk_json_get(golden, "text"), &length);
    tsk_tokens tokens;
    memset(&tokens, 0, sizeof tokens);
    if (text) {
        CHECK(tsk_tokenizer_encode(tokenizer, text, length, 1, &tokens, &error) == TSK_OK);
        check_ids(&tokens, ids, dir, text);
    }
    tokens.count = 0;
    for (id = tsk_json_first(ids); id; id = tsk_json_next(id)) {
        int64_t value = -1;
        int32_t one;
        tsk_json_int64(id, &value);
        one = (int32_t)value;
        if (tsk_tokens_append(&tokens, &one, 1) != TSK_OK) exit(1);
    }
    check_decoding(tokenizer, &tokens, golden, 0, dir);
    check_decoding(tokenizer, &tokens, golden, 1, dir);
    tsk_tokens_free(&tokens);
}

static void test_goldens(void) {
    static const char *const names[] = {"llada",           "gpt2",       "llama3",         "gpt4o",
                                        "strips",          "strips_raw", "steps",          "whole",
                                        "fewer_bytes",     "shuffled",   "two_files_gpt2", "two_files_qwen",
                                        "two_files_dream", "declared",   "blanks"};
    size_t i;
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        char dir[128], path[160], *file, *line, *end;
        tsk_tokenizer *tokenizer;
        snprintf(dir, sizeof dir, "tests/golden/tokenizer/%s", names[i]);
        snprintf(path, sizeof path, "%s/cases.jsonl", dir);
        tokenizer = load(dir, NULL);
        file = read_file(path, NULL);
        if (!CHECK(tokenizer && file)) continue;
        for (line = file; (end = strchr(line, '\n')) != NULL; line = end + 1) {
            tsk_json *document = NULL;
            if (CHECK(tsk_json_parse(line, (size_t)(end - line), path, NULL, &document, &error) == TSK_OK))
                check_case(tokenizer, tsk_json_root(document), dir);
            tsk_json_free(document);
        }
        free(file);
        tsk_tokenizer_free(tokenizer);
    }
}

/* ---- the text so far */

/* Tokens become final in any order; the text only grows, by whole characters, up to the first mask or the first token
   that ends it. */
static void test_step_text(void) {
    static const char words[] = "\xf0\x9f\xa6\x86 na\xc3\xafve \xe6\xbc\xa2\xe5\xad\x97 caf\xc3\xa9";
    enum { mask = 126336, n_prompt = 2 };
    tsk_tokenizer *tokenizer = load("tests/golden/tokenizer/llada", NULL);
    tsk_tokens tokens = TSK_ZERO;
    tsk_text text = TSK_ZERO;
    tsk_step step = TSK_ZERO;
    int32_t canvas[64], order, i, n;
    if (!CHECK(tokenizer != NULL)) return;
    CHECK(tsk_tokenizer_encode(tokenizer, words, sizeof words - 1, 0, &tokens, &error) == TSK_OK);
    n = tokens.count;
    if (!CHECK(n > 6 && n_prompt + n + 2 < 64)) return;
    step.canvas = canvas, step.canvas_length = n_prompt + n + 2, step.prompt_length = n_prompt,
    step.mask_token_id = mask;
    for (order = 0; order < 3; order++) {
        size_t seen = 0;
        for (i = 0; i < step.canvas_length; i++) canvas[i] = mask;
        canvas[n_prompt + n] = tsk_tokenizer_id(tokenizer, "<|eot_id|>"); /* (its end is there before its middle) */
        for (i = 0; i < n; i++) {
            int32_t at = order == 0 ? i : order == 1 ? n - 1 - i : (i * 5 + 3) % n;
            while (canvas[n_prompt + at] != mask) at = (at + 1) % n;
            canvas[n_prompt + at] = tokens.ids[at];
            for (step.n_final = 0; step.n_final < n && canvas[n_prompt + step.n_final] != mask;) step.n_final++;
            text.length = 0;
            CHECK(tsk_step_text(tokenizer, &step, &text, &error) == TSK_OK);
            CHECK(text.length >= seen && text.length < sizeof words && memcmp(text.data, words, text.length) == 0);
            CHECK(tsk__unicode_invalid(text.data, text.length) == text.length);
            seen = text.length;
        }
        CHECK_INT(seen, sizeof words - 1);
    }
    /* half a character waits for its other half, unless the text ends there */
    for (i = 0; i < step.canvas_length; i++) canvas[i] = mask;
    canvas[n_prompt] = tokens.ids[0], step.n_final = 1, text.length = 0;
    CHECK(tsk_step_text(tokenizer, &step, &text, &error) == TSK_OK && text.length == 0);
    canvas[n_prompt + 1] = tsk_tokenizer_id(tokenizer, "<|eot_id|>");
    CHECK(tsk_step_text(tokenizer, &step, &text, &error) == TSK_OK);
    CHECK_STRING(text.data, "\xef\xbf\xbd");
    step.canvas_length = n_prompt + 1, text.length = 0; /* nor at the canvas's end */
    CHECK(tsk_step_text(tokenizer, &step, &text, &error) == TSK_OK);
    CHECK_STRING(text.data, "\xef\xbf\xbd");
    tsk_text_free(&text);
    tsk_tokens_free(&tokens);
    tsk_tokenizer_free(tokenizer);
}

/* ---- the rest of the interface */

static void test_tokens(void) {
    tsk_tokenizer *tokenizer = load("tests/golden/tokenizer/llada", NULL);
    int32_t eot, size;
    size_t length;
    if (!CHECK(tokenizer != NULL)) return;
    eot = tsk_tokenizer_id(tokenizer, "<|eot_id|>");
    size = tsk_tokenizer_size(tokenizer);
    CHECK_INT(eot, size - 1);
    CHECK(tsk_tokenizer_is_special(tokenizer, eot) && !tsk_tokenizer_is_special(tokenizer, 0) &&
          !tsk_tokenizer_is_special(tokenizer, -1) && !tsk_tokenizer_is_special(tokenizer, size));
    CHECK_STRING(tsk_tokenizer_token(tokenizer, eot, &length), "<|eot_id|>");
    CHECK_INT(length, 10);
    CHECK_STRING(tsk_tokenizer_token(tokenizer, tsk_tokenizer_id(tokenizer, "\xc4\xa0the"), NULL), "\xc4\xa0the");
    CHECK(tsk_tokenizer_token(tokenizer, size, &length) == NULL && length == 0);
    CHECK_INT(tsk_tokenizer_id(tokenizer, "no such token"), -1);
    CHECK_INT(tsk_tokenizer_id(tokenizer, ""), -1);
    tsk_tokenizer_free(tokenizer);
    tsk_tokenizer_free(NULL);
}

static void test_arguments(void) {
    tsk_tokenizer *tokenizer = load("tests/golden/tokenizer/llada", NULL);
    tsk_tokens tokens;
    tsk_text text;
    int32_t strange[3] = {-5, 1000000, INT32_MAX};
    int32_t eot, i;
    if (!CHECK(tokenizer != NULL)) return;
    memset(&tokens, 0, sizeof tokens);
    memset(&text, 0, sizeof text);
    eot = tsk_tokenizer_id(tokenizer, "<|eot_id|>");
    CHECK(tsk_tokenizer_encode(tokenizer, "<|eot_id|>", 10, 1, &tokens, &error) == TSK_OK);
    CHECK(tokens.count == 1 && tokens.ids[0] == eot);
    CHECK(tsk_tokenizer_encode(tokenizer, "<|eot_id|>", 10, 0, &tokens, &error) ==
          TSK_OK); /* appends, and as plain text */
    for (i = 1; i < tokens.count; i++) CHECK(tokens.ids[i] != eot);
    CHECK(tokens.count > 4);
    CHECK(tsk_tokenizer_decode(tokenizer, tokens.ids, tokens.count, 0, &text, &error) == TSK_OK);
    CHECK_STRING(text.data, "<|eot_id|><|eot_id|>");
    i = tokens.count;
    CHECK(tsk_tokenizer_encode(tokenizer, "good \xff", 6, 1, &tokens, &error) == TSK_ERROR_ARGUMENT);
    CHECK(tokens.count == i && error.offset == 5);
    CHECK_CONTAINS(error.message, "not UTF-8");
    CHECK(tsk_tokenizer_encode(tokenizer, NULL, 0, 1, &tokens, &error) == TSK_OK && tokens.count == i);
    text.length = 0;
    CHECK(tsk_tokenizer_decode(tokenizer, strange, 3, 0, &text, &error) == TSK_OK && text.length == 0);
    tsk_tokens_free(&tokens);
    tsk_text_free(&text);
    tsk_tokenizer_free(tokenizer);
}

/* A long piece goes through the tree, its short beginning through the plain search: where merges cannot reach across,
   they must agree. "aaaa" is one token in this vocabulary, so multiples of four split alike. */
static void test_long_piece(void) {
    tsk_tokenizer *tokenizer = load("tests/golden/tokenizer/llada", NULL);
    tsk_tokens little, much;
    char *text = (char *)malloc(1 << 20);
    int32_t i;
    if (!CHECK(tokenizer && text)) return;
    memset(&little, 0, sizeof little);
    memset(&much, 0, sizeof much);
    memset(text, 'a', 1 << 20);
    CHECK(tsk_tokenizer_encode(tokenizer, text, 16, 1, &little, &error) == TSK_OK);
    CHECK(tsk_tokenizer_encode(tokenizer, text, 1 << 20, 1, &much, &error) == TSK_OK);
    CHECK(little.count > 0 && much.count == little.count << 16);
    for (i = 0; i < much.count; i++)
        if (much.ids[i] != little.ids[i % little.count]) break;
    CHECK_INT(i, much.count);
    tsk_tokens_free(&little);
    tsk_tokens_free(&much);
    tsk_tokenizer_free(tokenizer);
    free(text);
}

/* ---- files from strangers */

static const char model_part[] =
    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,\"end_of_word_"
    "suffix\":null,\"fuse_unk\":false,"
    "\"byte_fallback\":false,\"ignore_merges\":false,\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}";
static const char level_part[] =
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":true}";
static const char decoder_part[] = "\"decoder\":{\"type\":\"ByteLevel\"}";

static tsk_status try_file(const char *name, const char *text) {
    tsk_tokenizer *tokenizer = NULL;
    tsk_status status;
    write_text(tsk_test_path(name), text);
    status = tsk_tokenizer_load(tsk_test_temp_dir(), NULL, &tokenizer, &error);
    CHECK((status == TSK_OK) == (tokenizer != NULL));
    tsk_tokenizer_free(tokenizer);
    return status;
}

/* A tokenizer.json of the three parts above with `find` replaced, refused with `status` and a message with `reason`. */
static void refuse(const char *find, const char *replace, tsk_status status, const char *reason) {
    char whole[4096], text[8192], *at;
    snprintf(whole, sizeof whole,
             "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":3,\"content\":\"<x>\",\"special\":true}],\"normalizer\":"
             "null,%s,%s,%s}",
             level_part, decoder_part, model_part);
    at = strstr(whole, find);
    if (!CHECK(at != NULL)) return;
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - whole), whole, replace, at + strlen(find));
    if (!test_check(try_file("tokenizer.json", text) == status, __FILE__, __LINE__, "'%s' for '%s': %s", replace, find,
                    error.message))
        return;
    if (status == TSK_OK) return;
    CHECK_CONTAINS(error.message, reason);
    test_check(error.file[0] && error.offset != TSK_NO_OFFSET && error.offset <= strlen(text), __FILE__, __LINE__,
               "the error for '%s' says where", replace);
}

static void test_unsupported(void) {
    const tsk_status no = TSK_ERROR_UNSUPPORTED;
    refuse("\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}", TSK_OK, "");
    refuse("\"normalizer\":null", "\"normalizer\":{\"type\":\"NFKC\"}", no, "normalizer NFKC");
    refuse("\"normalizer\":null", "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[]}", no,
           "normalizer Sequence");
    refuse("\"normalizer\":null", "\"normalizer\":5", no, "normalizer without a type");
    refuse("\"version\":\"1.0\"", "\"version\":\"2.0\"", no, "version");
    refuse("\"version\":\"1.0\"", "\"padding\":{\"strategy\":\"BatchLongest\"}", no, "padding");
    refuse("\"version\":\"1.0\"", "\"truncation\":{\"max_length\":4}", no, "truncation");
    refuse(level_part, "\"pre_tokenizer\":null", no, "pre_tokenizer null");
    refuse(level_part, "\"pre_tokenizer\":{\"type\":\"Metaspace\"}", no, "pre_tokenizer Metaspace");
    refuse(level_part, "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\"}]}", no,
           "pre_tokenizer Digits");
    refuse(level_part, "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[]}", no, "without ByteLevel");
    refuse(level_part,
           "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"},{\"type\":"
           "\"ByteLevel\"}]}",
           no, "after ByteLevel");
    refuse(level_part,
           "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\w+\"},\"behavior\":\"Isolated\","
           "\"invert\":false}",
           no, "\\w+");
    refuse(level_part,
           "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\" "
           "\"},\"behavior\":\"Isolated\",\"invert\":false}",
           no, "Regex");
    refuse(level_part,
           "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"x\"},\"behavior\":\"MergedWithNext\","
           "\"invert\":false}",
           no, "MergedWithNext");
    refuse(level_part,
           "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"x\"},\"behavior\":\"Isolated\",\"invert\":"
           "true}",
           no, "Isolated");
    refuse("\"add_prefix_space\":false", "\"add_prefix_space\":true", no, "add_prefix_space");
    refuse("\"add_prefix_space\":false", "\"add_prefix_space\":3", TSK_ERROR_TOKENIZER, "add_prefix_space");
    refuse(decoder_part, "\"decoder\":null", no, "decoder null");
    refuse(decoder_part, "\"decoder\":{\"type\":\"Metaspace\"}", no, "decoder Metaspace");
    refuse(decoder_part, "\"decoder\":{\"type\":\"ByteLevel\"},\"post_processor\":{\"type\":\"BertProcessing\"}", no,
           "post_processor BertProcessing");
    refuse("\"type\":\"BPE\"", "\"type\":\"Unigram\"", no, "model Unigram");
    refuse("\"dropout\":null", "\"dropout\":0.1", no, "dropout");
    refuse("\"dropout\":null", "\"dropout\":0.0", TSK_OK, "");
    refuse("\"unk_token\":null", "\"unk_token\":\"a\"", no, "unk_token");
    refuse("\"byte_fallback\":false", "\"byte_fallback\":true", no, "byte_fallback");
    refuse("\"end_of_word_suffix\":null", "\"end_of_word_suffix\":\"</w>\"", no, "end_of_word_suffix");
    refuse("\"continuing_subword_prefix\":null", "\"continuing_subword_prefix\":\"##\"", no,
           "continuing_subword_prefix");
}

static void test_hostile(void) {
    const tsk_status bad = TSK_ERROR_TOKENIZER;
    char long_token[2000];
    refuse("\"ab\":2", "\"ab\":2147483648", bad, "id 2147483648");
    refuse("\"ab\":2", "\"ab\":2147483647", bad, "id 2147483647");
    refuse("\"ab\":2", "\"ab\":1048000", TSK_OK, "");
    refuse("\"ab\":2", "\"ab\":18446744073709551616", bad, "whole number");
    refuse("\"ab\":2", "\"ab\":-1", bad, "whole number");
    refuse("\"ab\":2", "\"ab\":1.5", bad, "whole number");
    refuse("\"ab\":2", "\"ab\":\"2\"", bad, "whole number");
    refuse("\"ab\":2", "\"ab\":1", bad, "id 1 belongs to two tokens");
    refuse("\"ab\":2", "\"ab\":2,\"ab\":4", bad, "twice");
    refuse("[\"a b\"]", "[\"a c\"]", bad, "'c'");
    refuse("[\"a b\"]", "[\"c b\"]", bad, "'c'");
    refuse("[\"a b\"]", "[\"b a\"]", bad, "'ba'");
    refuse("[\"a b\"]", "[\"ab\"]", bad, "not two tokens");
    refuse("[\"a b\"]", "[\"a b \"]", bad, "not two tokens");
    refuse("[\"a b\"]", "[[\"a\",\"b\"]]", TSK_OK, "");
    refuse("[\"a b\"]", "[[\"a\"]]", bad, "pair");
    refuse("[\"a b\"]", "[[\"a\",\"b\",\"a\"]]", bad, "pair");
    refuse("[\"a b\"]", "[7]", bad, "pair");
    refuse("[\"a b\"]", "{}", bad, "no list");
    refuse("{\"a\":0,\"b\":1,\"ab\":2}", "[]", bad, "vocabulary");
    refuse("\"id\":3", "\"id\":-3", bad, "whole number");
    refuse("\"content\":\"<x>\"", "\"content\":7", bad, "no content");
    refuse("\"content\":\"<x>\"", "\"content\":\"a\"", bad, "another id");
    refuse("\"special\":true", "\"special\":1", bad, "special");
    refuse("\"special\":true}", "\"special\":true},{\"id\":4,\"content\":\"<x>\"}", bad, "twice");
    refuse("\"special\":true}", "\"special\":true},{\"id\":3,\"content\":\"<y>\"}", bad, "ascend");
    refuse("\"special\":true}", "\"special\":true},{\"id\":7,\"content\":\"<y>\"}", TSK_OK, "");
    refuse("\"id\":3", "\"id\":2", bad, "another token");
    refuse("\"added_tokens\":[", "\"added_tokens\":7,\"was\":[", bad, "added_tokens");
    memset(long_token, 'x', sizeof long_token);
    memcpy(long_token, "\"content\":\"", 11);
    strcpy(long_token + 600, "\"");
    refuse("\"content\":\"<x>\"", long_token, TSK_ERROR_UNSUPPORTED, "512");
    CHECK(try_file("tokenizer.json", "{") == TSK_ERROR_JSON);
    CHECK(try_file("tokenizer.json", "") == TSK_ERROR_JSON);
    CHECK(try_file("tokenizer.json", "[]") != TSK_OK);
    CHECK(try_file("tokenizer.json", "{}") != TSK_OK);
    remove(tsk_test_path("tokenizer.json"));
}

/* vocab.json and merges.txt, where there is no tokenizer.json. */
static void test_two_files(void) {
    tsk_tokenizer *none = NULL;
    CHECK(tsk_tokenizer_load(tsk_test_temp_dir(), NULL, &none, &error) == TSK_ERROR_IO);
    CHECK_CONTAINS(error.message, "tokenizer.json");
    write_text(tsk_test_path("merges.txt"), "#version: 0.2\r\na b\r\n\r\n");
    CHECK(try_file("vocab.json", "{\"a\":0,\"b\":1,\"ab\":2}") == TSK_ERROR_UNSUPPORTED);
    CHECK_CONTAINS(error.message, "tokenizer_class");
    CHECK(try_file("tokenizer_config.json", "{\"tokenizer_class\":\"T5Tokenizer\"}") == TSK_ERROR_UNSUPPORTED);
    CHECK_CONTAINS(error.message, "T5Tokenizer");
    CHECK(try_file("tokenizer_config.json", "{\"tokenizer_class\":\"GPT2Tokenizer\",\"add_prefix_space\":true}") ==
          TSK_ERROR_UNSUPPORTED);
    CHECK(try_file("tokenizer_config.json",
                   "{\"tokenizer_class\":\"DreamTokenizer\",\"added_tokens_decoder\":{\"x\":{\"content\":\"<x>\"}}}") ==
          TSK_ERROR_TOKENIZER);
    CHECK(try_file("tokenizer_config.json",
                   "{\"tokenizer_class\":\"DreamTokenizer\",\"added_tokens_decoder\":{\"1\":{\"content\":\"<x>\"}}}") ==
          TSK_ERROR_TOKENIZER);
    CHECK(try_file("tokenizer_config.json",
                   "{\"tokenizer_class\":\"DreamTokenizer\",\"added_tokens_decoder\":{\"9\":{\"content\":\"<x>\"}}}") ==
          TSK_OK);
    CHECK(try_file("merges.txt", "a b\nb a\n") == TSK_ERROR_TOKENIZER);
    CHECK_CONTAINS(error.message, "'ba'");
    CHECK_INT(error.offset, 4);
    CHECK(try_file("merges.txt", "a\tb\n") == TSK_ERROR_TOKENIZER);
    CHECK(try_file("merges.txt", "a b\n\xff c\n") == TSK_ERROR_TOKENIZER);
    CHECK(try_file("merges.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n") ==
          TSK_ERROR_TOKENIZER);
    CHECK_CONTAINS(error.message, "git lfs pull");
    CHECK(try_file("merges.txt", "") == TSK_OK);
    CHECK(try_file("vocab.json", "[]") == TSK_ERROR_TOKENIZER);
    remove(tsk_test_path("merges.txt"));
    CHECK(try_file("vocab.json", "{\"a\":0}") == TSK_ERROR_IO);
    remove(tsk_test_path("vocab.json"));
    remove(tsk_test_path("tokenizer_config.json"));
}

/* ---- added tokens: those that tokenizer_config.json alone declares, those that strip blanks, thousands of them */

/* A tokenizer.json of the three parts with these added tokens, and a tokenizer_config.json; "" for none. */
static tsk_tokenizer *load_added(const char *added, const char *config) {
    char file[4096];
    tsk_tokenizer *tokenizer = NULL;
    snprintf(file, sizeof file, "{\"added_tokens\":[%s],%s,%s,%s}", added, level_part, decoder_part, model_part);
    write_text(tsk_test_path("tokenizer.json"), file);
    if (config[0]) write_text(tsk_test_path("tokenizer_config.json"), config);
    tsk_tokenizer_load(tsk_test_temp_dir(), NULL, &tokenizer, &error);
    remove(tsk_test_path("tokenizer.json"));
    if (config[0]) remove(tsk_test_path("tokenizer_config.json"));
    return tokenizer;
}

/* The ids as "0 4 1", and the text without special tokens. */
static void check_added(const char *added, const char *config, const char *text, const char *expected,
                        const char *skipped) {
    const char *with = config[0] ? config : added;
    tsk_tokenizer *tokenizer = load_added(added, config);
    tsk_tokens tokens;
    tsk_text out;
    char ids[256] = "";
    int32_t i;
    memset(&tokens, 0, sizeof tokens);
    memset(&out, 0, sizeof out);
    if (!test_check(tokenizer != NULL, __FILE__, __LINE__, "%s: %s", with, error.message)) return;
    CHECK(tsk_tokenizer_encode(tokenizer, text, strlen(text), 1, &tokens, &error) == TSK_OK);
    for (i = 0; i < tokens.count && i < 20; i++)
        snprintf(ids + strlen(ids), 16, "%s%d", i ? " " : "", (int)tokens.ids[i]);
    test_check(strcmp(ids, expected) == 0, __FILE__, __LINE__, "'%s' with %s gives %s, expected %s", text, with, ids,
               expected);
    CHECK(tsk_text_append(&out, "", 0) == TSK_OK);
    CHECK(tsk_tokenizer_decode(tokenizer, tokens.ids, tokens.count, 1, &out, &error) == TSK_OK);
    test_check(strcmp(out.data, skipped) == 0, __FILE__, __LINE__, "'%s' with %s comes back as '%s', expected '%s'",
               text, with, out.data, skipped);
    tsk_text_free(&out);
    tsk_tokens_free(&tokens);
    tsk_tokenizer_free(tokenizer);
}

/* The vocabulary is a 0, b 1, ab 2, <x> 3; expected is what the transformers library makes of the two files. */
static void test_declared(void) {
    static const char x[] = "{\"id\":3,\"content\":\"<x>\",\"special\":true}";
    static const char plain[] = "{\"id\":3,\"content\":\"<x>\",\"special\":false}";
    static const char *const refused[][2] = {
        {"{\"added_tokens_decoder\":[]}", "no object"},
        {"{\"added_tokens_decoder\":{\"4x\":{\"content\":\"<n>\"}}}", "whole number"},
        {"{\"added_tokens_decoder\":{\"\":{\"content\":\"<n>\"}}}", "whole number"},
        {"{\"added_tokens_decoder\":{\"99999999999\":{\"content\":\"<n>\"}}}", "whole number"},
        {"{\"added_tokens_decoder\":{\"2147483648\":{\"content\":\"<n>\"}}}", "whole number"},
        {"{\"added_tokens_decoder\":{\"4\":\"<n>\"}}", "no content"},
        {"{\"added_tokens_decoder\":{\"4\":{\"content\":\"<n>\",\"lstrip\":2}}}", "lstrip"},
        {"{\"added_tokens_decoder\":{\"3\":{\"content\":\"<n>\"}}}", "another token's"},
        {"{\"added_tokens_decoder\":{\"1\":{\"content\":\"<x>\"}}}", "another token's"},
        {"{\"added_tokens_decoder\":{\"4\":{\"content\":\"<n>\"},\"5\":{\"content\":\"<n>\"}}}", "twice"},
        {"{\"bos_token\":7}", "bos_token is neither"},
        {"{\"mask_token\":{\"text\":\"<m>\"}}", "no content"},
        {"{\"additional_special_tokens\":\"<m>\"}", "additional_special_tokens is no list"},
        {"{\"extra_special_tokens\":[[]]}", "extra_special_tokens is neither"}};
    size_t i;
    check_added(x, "", "a<n>b", "0 1", "ab");
    check_added(x, "{\"added_tokens_decoder\":{\"4\":{\"content\":\"<n>\",\"special\":true}}}", "a<n>b", "0 4 1", "ab");
    check_added(x, "{\"added_tokens_decoder\":{\"4\":{\"content\":\"<n>\"}}}", "a<n>b", "0 4 1", "a<n>b");
    /* in the vocabulary, but only named; a string, an object, in a list */
    check_added(x, "{\"eos_token\":\"ab\"}", "aabb", "0 2 1", "ab");
    check_added(x, "{\"pad_token\":{\"__type\":\"AddedToken\",\"content\":\"a\",\"rstrip\":true}}", "a  b", "0 1", "b");
    check_added(x, "{\"additional_special_tokens\":[\"b\",{\"content\":\"a\"}]}", "b<x>a", "1 3 0", "");
    check_added(x, "{\"extra_special_tokens\":{\"image_token\":\"<i>\"}}", "b<i>", "1 4", "b");
    check_added(x, "{\"bos_token\":null,\"eos_token\":\"\",\"additional_special_tokens\":[]}", "b<x>", "1 3", "b");
    /* new ones get the next number: the declared by their ids as numbers, then the named in the library's order */
    check_added(x, "{\"mask_token\":\"<m>\",\"bos_token\":\"<b>\",\"added_tokens_decoder\":"
                   "{\"10\":{\"content\":\"<z>\"},\"9\":{\"content\":\"<y>\"}}}",
                "<z><y><m><b>", "5 4 7 6", "<z><y>");
    /* what the file says later counts, but what is special stays special */
    check_added(x, "{\"added_tokens_decoder\":{\"3\":{\"content\":\"<x>\",\"lstrip\":true,\"special\":false}}}",
                "a  <x>", "0 3", "a");
    check_added(x, "{\"added_tokens_decoder\":{\"2\":{\"content\":\"ab\",\"special\":false}}}", "aab", "0 2", "aab");
    check_added(plain, "{\"bos_token\":\"<x>\"}", "a<x>", "0 3", "a<x>");
    check_added(plain, "{\"bos_token\":\"<x>\",\"added_tokens_decoder\":{\"3\":{\"content\":\"<x>\"}}}", "a<x>", "0 3",
                "a");
    for (i = 0; i < sizeof refused / sizeof *refused; i++) {
        CHECK(load_added(x, refused[i][0]) == NULL);
        CHECK_CONTAINS(error.message, refused[i][1]);
        CHECK_CONTAINS(error.message, "tokenizer_config.json");
        CHECK(error.offset < strlen(refused[i][0]));
    }
}

/* Blanks that one token took along are no second token; one that does not strip to its left is found in them, too. */
static void test_stripped(void) {
    static const char tab[] = "{\"id\":3,\"content\":\"\\t\",\"special\":true,\"lstrip\":true,\"rstrip\":true}";
    static const char line[] = "{\"id\":3,\"content\":\"<X>\",\"special\":true,\"rstrip\":true},"
                               "{\"id\":4,\"content\":\"\\n\",\"special\":true,\"lstrip\":true}";
    static const char both[] = "{\"id\":3,\"content\":\"<X>\",\"special\":true,\"rstrip\":true},"
                               "{\"id\":4,\"content\":\"\\n\",\"special\":true}";
    check_added(tab, "", "a\t\tb", "0 3 1", "ab");
    check_added(tab, "", "a \t \t\tb\t", "0 3 1 3", "ab");
    check_added(line, "", "<X>\n", "3", "");
    check_added(line, "", "a<X> \n\nb", "0 3 1", "ab");
    check_added(line, "", "a \n<X>\nb\n", "0 4 3 1 4", "ab");
    check_added(both, "", "a<X>\nb", "0 3 4 1", "ab");
}

static char random_letter(void) { return "ab\xff"[random_below(10) ? random_below(2) : 2]; }

/* Against looking at every token: the longest that begins the text. Few letters, so that they begin with each other. */
static void test_longest(void) {
    enum { n = 300, most = 12 };
    static tsk__bpe_added added[n];
    static char patterns[n][most + 1];
    tsk__bpe_matcher matcher;
    int round, i, j, at, wrong = 0, found = 0;
    for (round = 0; round < 40; round++) {
        memset(&matcher, 0, sizeof matcher);
        memset(added, 0, sizeof added);
        for (i = 0; i < n; i++) {
            added[i].length = (uint32_t)(1 + random_below(round % 2 ? most : 3));
            added[i].pattern = patterns[i];
            for (j = 0; j < (int)added[i].length; j++) patterns[i][j] = random_letter();
        }
        qsort(added, n, sizeof *added, tsk__bpe_compare_added);
        for (i = j = 1; i < n; i++)
            if (tsk__bpe_compare_added(&added[j - 1], &added[i]) != 0) added[j++] = added[i];
        tsk__bpe_make_matcher(&matcher, added, (size_t)j);
        for (at = 0; at < 200; at++) {
            char text[20];
            const tsk__bpe_added *expected = NULL;
            size_t limit = (size_t)(1 + random_below(19));
            for (i = 0; i < 20; i++) text[i] = random_letter();
            for (i = 0; i < j; i++)
                if (added[i].length <= limit && memcmp(added[i].pattern, text, added[i].length) == 0 &&
                    (!expected || added[i].length > expected->length))
                    expected = &added[i];
            wrong += tsk__bpe_longest(&matcher, text, 0, limit) != expected;
            found += expected != NULL;
        }
    }
    CHECK_INT(wrong, 0);
    CHECK(found > 1000);
}

/* ---- files whose strings were chosen so that a known hash puts them all into one place */

/* The longest stretch of places in use, which is what a look-up may have to walk. */
static size_t longest_stretch(const unsigned char *used, size_t count) {
    size_t i, stretch = 0, longest = 0;
    for (i = 0; i < 2 * count; i++) {
        stretch = used[i % count] ? stretch + 1 : 0;
        if (stretch > longest) longest = stretch;
    }
    return longest;
}

static void append(tsk_text *text, const char *more) {
    if (tsk_text_append(text, more, strlen(more)) != TSK_OK) exit(1);
}

/* Two words of a multiplicative hash (h ^ word) * M, h ^= h >> 32: the second word undoes what the first did. */
static uint64_t mix(uint64_t a, uint64_t b) {
    a = (a ^ b) * UINT64_C(0x9e3779b97f4a7c15);
    return a ^ a >> 32;
}

static size_t colliding_texts(tsk_text *out, size_t wanted, int32_t first_id) {
    uint64_t i, first, second;
    size_t made = 0;
    for (i = 0; made < wanted; i++) {
        char text[17], member[40];
        int j, prints = 1;
        for (j = 0; j < 8; j++) text[j] = (char)('a' + (i >> 4 * j) % 16);
        memcpy(&first, text, 8);
        second = mix(16, first) ^ UINT64_C(0x4142434445464748);
        memcpy(text + 8, &second, 8);
        text[16] = 0;
        for (j = 8; j < 16; j++) prints &= text[j] > 32 && text[j] < 127 && text[j] != '"' && text[j] != '\\';
        if (!prints) continue;
        snprintf(member, sizeof member, ",\"%s\":%ld", text, (long)first_id + (long)made++);
        append(out, member);
    }
    return made;
}

/* Pairs of `n` tokens that a multiplicative hash of the ids puts into one of 8192 places: as merges and as tokens. */
static size_t colliding_pairs(tsk_text *vocabulary, tsk_text *merges, int32_t n, size_t wanted, int32_t first_id) {
    int32_t left, right;
    size_t made = 0;
    for (left = 0; left < n && made < wanted; left++)
        for (right = 0; right < n && made < wanted; right++) {
            char text[80];
            if (mix((uint64_t)(uint32_t)left << 32 | (uint32_t)right, 0) & 8191) continue;
            snprintf(text, sizeof text, ",\"_%04d_%04d\":%ld", (int)left, (int)right, (long)first_id + (long)made++);
            append(vocabulary, text);
            snprintf(text, sizeof text, "%s[\"_%04d\",\"_%04d\"]", merges->length ? "," : "", (int)left, (int)right);
            append(merges, text);
        }
    return made;
}

/* Tables that are two thirds full at most have stretches of a few dozen places where the hash scatters. Results are the
   same whatever the key: a second tokenizer has another. */
static void test_flood(void) {
    enum { n_texts = 20000, n_tokens = 6500, n_pairs = 5000, bound = 500 };
    tsk_text vocabulary, merges, file;
    tsk_tokenizer *tokenizers[2] = {NULL, NULL};
    unsigned char *used;
    char member[40];
    size_t i, made;
    memset(&vocabulary, 0, sizeof vocabulary);
    memset(&merges, 0, sizeof merges);
    memset(&file, 0, sizeof file);
    for (i = 0; i < n_tokens; i++) {
        snprintf(member, sizeof member, "%s\"_%04d\":%d", i ? "," : "", (int)i, (int)i);
        append(&vocabulary, member);
    }
    made = colliding_pairs(&vocabulary, &merges, n_tokens, n_pairs, n_tokens);
    CHECK_INT(made, n_pairs);
    CHECK_INT(colliding_texts(&vocabulary, n_texts, (int32_t)(n_tokens + made)), n_texts);
    append(&file, "{"), append(&file, level_part), append(&file, ","), append(&file, decoder_part);
    append(&file, ",\"model\":{\"vocab\":{"), append(&file, vocabulary.data);
    append(&file, "},\"merges\":["), append(&file, merges.data), append(&file, "]}}");
    write_text(tsk_test_path("tokenizer.json"), file.data);
    for (i = 0; i < 2; i++) tokenizers[i] = load(tsk_test_temp_dir(), NULL);
    remove(tsk_test_path("tokenizer.json"));
    if (CHECK(tokenizers[0] && tokenizers[1])) {
        const tsk_tokenizer *t = tokenizers[0];
        size_t n_slots = t->slot_mask + 1, n_merges = t->merge_mask + 1;
        used = (unsigned char *)malloc(n_slots > n_merges ? n_slots : n_merges);
        for (i = 0; i < n_slots; i++) used[i] = t->slots[i] != 0;
        CHECK(longest_stretch(used, n_slots) < bound);
        for (i = 0; i < n_merges; i++) used[i] = t->merge_tags[i] != 0;
        CHECK_INT(n_merges, 8192);
        CHECK(longest_stretch(used, n_merges) < bound);
        free(used);
        CHECK(t->key.a != tokenizers[1]->key.a);
        for (i = 0; i < t->n_tokens; i++) {
            const char *text = tsk_tokenizer_token(t, (int32_t)i, NULL);
            if (!text || tsk_tokenizer_id(t, text) != (int32_t)i) break;
            if (tsk_tokenizer_id(tokenizers[1], text) != (int32_t)i) break;
        }
        CHECK_INT(i, n_tokens + made + n_texts);
    }
    for (i = 0; i < 2; i++) tsk_tokenizer_free(tokenizers[i]);
    tsk_text_free(&vocabulary);
    tsk_text_free(&merges);
    tsk_text_free(&file);
}

/* ---- random merges, in the order in which training makes them and in any, against merging written down plainly */

enum { n_bytes = 256, max_rules = 80 };
typedef struct rules {
    struct { unsigned char bytes[8]; int length; } tokens[n_bytes + max_rules];
    int left[max_rules], right[max_rules], made[max_rules], n_tokens, n_rules;
} rules;

static const char *const letters[] = {"a",
                                      " ",
                                      "\xc3\xa9",
                                      "\xc3\xa0",
                                      "\xe4\xb8\xad",
                                      "\xe4\xb8\xb8",
                                      "\xe4\xb9\xa9",
                                      "\xed\x95\x9c",
                                      "\xf0\x9f\x98\x80"};
enum { n_letters = sizeof letters / sizeof *letters };

/* Pieces of texts of these letters become tokens, from the shortest on or as it comes. */
static void random_rules(rules *r, int in_order) {
    int tries, i, j, at;
    memset(r, 0, sizeof *r);
    for (r->n_tokens = 0; r->n_tokens < n_bytes; r->n_tokens++)
        r->tokens[r->n_tokens].bytes[0] = (unsigned char)r->n_tokens, r->tokens[r->n_tokens].length = 1;
    for (tries = 0; tries < 4000 && r->n_rules < max_rules; tries++) {
        char text[64] = "";
        int cut, length, half, a = -1, b = -1, both = -1;
        for (i = 0; i < 3; i++) strcat(text, letters[random_below(n_letters)]);
        length = 2 + random_below(5);
        if (length > (int)strlen(text)) continue;
        cut = random_below((int)strlen(text) - length + 1);
        half = 1 + random_below(length - 1);
        for (i = 0; i < r->n_tokens; i++) {
            const unsigned char *bytes = r->tokens[i].bytes;
            if (r->tokens[i].length == half && memcmp(bytes, text + cut, (size_t)half) == 0) a = i;
            if (r->tokens[i].length == length - half && memcmp(bytes, text + cut + half, (size_t)(length - half)) == 0)
                b = i;
            if (r->tokens[i].length == length && memcmp(bytes, text + cut, (size_t)length) == 0) both = i;
        }
        if (a < 0 || b < 0 || (both >= 0 && random_below(4))) continue;
        for (i = 0; i < r->n_rules && !(r->left[i] == a && r->right[i] == b); i++) {
        }
        if (i < r->n_rules) continue;
        if (both < 0) {
            both = r->n_tokens++;
            r->tokens[both].length = length;
            memcpy(r->tokens[both].bytes, text + cut, (size_t)length);
        }
        r->left[r->n_rules] = a, r->right[r->n_rules] = b, r->made[r->n_rules++] = both;
    }
    for (at = in_order ? 0 : r->n_rules - 1; at > 0; at--) {
        j = random_below(at + 1);
        i = r->left[at], r->left[at] = r->left[j], r->left[j] = i;
        i = r->right[at], r->right[at] = r->right[j], r->right[j] = i;
        i = r->made[at], r->made[at] = r->made[j], r->made[j] = i;
    }
}

static void write_token(FILE *file, const rules *r, int token) {
    int i;
    for (i = 0; i < r->tokens[token].length; i++) {
        char text[8], *end = tsk__json_put_utf8(text, tsk__bpe_alphabet(r->tokens[token].bytes[i]));
        if (text[0] == '"' || text[0] == '\\') fputc('\\', file);
        fwrite(text, 1, (size_t)(end - text), file);
    }
}

static void write_rules(const rules *r, const char *path) {
    FILE *file = fopen(path, "wb");
    int i;
    if (!file) exit(2);
    fputs("{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false},\"decoder\":{"
          "\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{",
          file);
    for (i = 0; i < r->n_tokens; i++) {
        fputs(i ? ",\"" : "\"", file);
        write_token(file, r, i);
        fprintf(file, "\":%d", i);
    }
    fputs("},\"merges\":[", file);
    for (i = 0; i < r->n_rules; i++) {
        fputs(i ? ",[\"" : "[\"", file);
        write_token(file, r, r->left[i]);
        fputs("\",\"", file);
        write_token(file, r, r->right[i]);
        fputs("\"]", file);
    }
    fputs("]}}", file);
    fclose(file);
}

static int plainly(const rules *r, const char *text, int *ids) {
    int n = (int)strlen(text), i, rank, best, at;
    for (i = 0; i < n; i++) ids[i] = (unsigned char)text[i];
    for (;;) {
        best = r->n_rules, at = -1;
        for (i = 0; i + 1 < n; i++)
            for (rank = 0; rank < best; rank++)
                if (r->left[rank] == ids[i] && r->right[rank] == ids[i + 1]) best = rank, at = i;
        if (at < 0) return n;
        ids[at] = r->made[best];
        for (i = at + 1; i + 1 < n; i++) ids[i] = ids[i + 1];
        n--;
    }
}

static void test_random_merges(void) {
    static rules r;
    int round, i, j, n, wrong = 0, whole = 0;
    for (round = 0; round < 60; round++) {
        tsk_tokenizer *tokenizer;
        tsk_tokens tokens;
        random_rules(&r, round % 2);
        write_rules(&r, tsk_test_path("tokenizer.json"));
        tokenizer = load(tsk_test_temp_dir(), NULL);
        if (!CHECK(tokenizer != NULL)) return;
        for (i = 0; tokenizer->chars && i < 65536; i++) whole += tokenizer->chars->ids[i] >= 0;
        memset(&tokens, 0, sizeof tokens);
        for (i = 0; i < 300; i++) {
            char text[256] = "";
            int ids[256];
            for (n = 1 + random_below(24); n > 0; n--) strcat(text, letters[random_below(n_letters)]);
            n = plainly(&r, text, ids);
            tokens.count = 0;
            CHECK_INT(tsk_tokenizer_encode(tokenizer, text, strlen(text), 0, &tokens, &error), TSK_OK);
            for (j = 0; j < n && (int32_t)j < tokens.count && tokens.ids[j] == ids[j]; j++) {
            }
            wrong += j < n || (int32_t)n != tokens.count;
        }
        tsk_tokens_free(&tokens);
        tsk_tokenizer_free(tokenizer);
    }
    remove(tsk_test_path("tokenizer.json"));
    CHECK_INT(wrong, 0);
    CHECK(whole > 20);  /* there were characters to be taken whole */
}

/* Text that is slow for a careless search: beginnings of long added tokens, spaces that every token strips. */
static void test_slow_text(void) {
    enum { n = 1 << 20 };
    tsk_tokenizer *tokenizer;
    tsk_tokens tokens;
    char *text = (char *)malloc(n);
    char file[4096], content[600];
    if (!CHECK(text != NULL)) return;
    memset(&tokens, 0, sizeof tokens);
    memset(content, 'a', sizeof content);
    content[512] = 0;
    snprintf(file, sizeof file,
             "{\"added_tokens\":[{\"id\":3,\"content\":\"%.511sb\",\"special\":true},{\"id\":4,\"content\":\" "
             "\",\"lstrip\":true,\"rstrip\":true,\"special\":true},"
             "{\"id\":5,\"content\":\"\\t\",\"rstrip\":true,\"special\":true}],%s,%s,%s}",
             content, level_part, decoder_part, model_part);
    write_text(tsk_test_path("tokenizer.json"), file);
    tokenizer = load(tsk_test_temp_dir(), NULL);
    if (!CHECK(tokenizer != NULL)) return;
    memset(text, ' ', n);
    CHECK(tsk_tokenizer_encode(tokenizer, text, n, 1, &tokens, &error) == TSK_OK);
    memset(text, '\t', n);
    CHECK(tsk_tokenizer_encode(tokenizer, text, n, 1, &tokens, &error) == TSK_OK);
    memset(text, 'a', n / 16);
    CHECK(tsk_tokenizer_encode(tokenizer, text, n / 16, 1, &tokens, &error) == TSK_OK);
    tsk_tokens_free(&tokens);
    tsk_tokenizer_free(tokenizer);
    remove(tsk_test_path("tokenizer.json"));
    free(text);
}

/* Every allocation fails once, in loading, encoding and decoding. */
static void test_memory(const char *dir) {
    static const char text[] = "caf\x65\xcc\x81 <|eot_id|> <normalized>  <rstrip>  and "
                               "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa "
                               "the quick brown fox jumps over the lazy dog, again and again, until there is enough "
                               "text here for a cache: the quick brown fox jumps";
    long n;
    for (n = 0; n < 3000; n++) {
        test_allocator counting = test_allocator_failing_at(n);
        tsk_allocator allocator = test_allocator_of(&counting);
        tsk_host host;
        tsk_tokenizer *tokenizer = NULL;
        tsk_tokens tokens;
        tsk_text out;
        tsk_status status;
        memset(&host, 0, sizeof host);
        memset(&tokens, 0, sizeof tokens);
        memset(&out, 0, sizeof out);
        host.allocator = tokens.allocator = out.allocator = &allocator;
        status = tsk_tokenizer_load(dir, &host, &tokenizer, &error);
        if (status == TSK_OK) status = tsk_tokenizer_encode(tokenizer, text, sizeof text - 1, 1, &tokens, &error);
        if (status == TSK_OK) status = tsk_tokenizer_decode(tokenizer, tokens.ids, tokens.count, 0, &out, &error);
        if (counting.failed ? status != TSK_ERROR_MEMORY : status != TSK_OK)
            test_check(0, __FILE__, __LINE__, "%s, allocation %ld: %s", dir, n, error.message);
        tsk_tokenizer_free(tokenizer);
        tsk_tokens_free(&tokens);
        tsk_text_free(&out);
        CHECK_INT(counting.alive, 0);
        if (!counting.failed) break;
    }
    CHECK(n > 20 && n < 3000);
}

int main(void) {
    test_goldens();
    test_tokens();
    test_arguments();
    test_long_piece();
    test_unsupported();
    test_hostile();
    test_two_files();
    test_declared();
    test_stripped();
    test_longest();
    test_flood();
    test_random_merges();
    test_slow_text();
    test_memory("tests/golden/tokenizer/strips");
    test_memory("tests/golden/tokenizer/llama3");
    test_memory("tests/golden/tokenizer/two_files_dream");
    test_memory("tests/golden/tokenizer/declared");
    test_step_text();
    return test_end("test_bpe");
}
