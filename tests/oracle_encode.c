/* Our side of `make test-oracle`: a filter between JSON lines. tests/oracle/run.mjs compares it with the reference.

       oracle_encode DIR                  each line a JSON string       → [ids], added tokens recognised
       oracle_encode DIR --plain          the same, added tokens as text
       oracle_encode DIR --decode         each line a JSON list of ids  → a JSON string
       oracle_encode DIR --decode --skip  the same without special tokens
       oracle_encode DIR --chat           each line [{"role":…, "content":…}] → the rendered conversation
       oracle_encode DIR --memory         nothing is read: the bytes that the loaded tokenizer keeps
   With --stream decoding goes a token at a time. A line that is no valid JSON gives null. */
#define TOKENSKIP_IMPLEMENTATION
#include "../tokenskip.h"
#include "test.h"

typedef struct options {
    int plain, decode, skip, stream, chat, memory;
} options;

static void fail(const tsk_error *error) {
    fprintf(stderr, "oracle_encode: %s\n", error->message);
    exit(1);
}

static void encode(const tsk_tokenizer *tokenizer, const options *o, const tsk_json_value *value,
                   tsk_json_writer *writer) {
    tsk_tokens tokens;
    tsk_error error;
    size_t length;
    int32_t i;
    const char *text = tsk_json_string(value, &length);
    memset(&tokens, 0, sizeof tokens);
    memset(&error, 0, sizeof error);
    if (tsk_tokenizer_encode(tokenizer, text, length, !o->plain, &tokens, &error) != TSK_OK) fail(&error);
    tsk_json_begin_array(writer);
    for (i = 0; i < tokens.count; i++) tsk_json_write_int(writer, tokens.ids[i]);
    tsk_json_end_array(writer);
    tsk_tokens_free(&tokens);
}

static void decode(const tsk_tokenizer *tokenizer, const options *o, const tsk_json_value *list,
                   tsk_json_writer *writer) {
    tsk_tokens tokens;
    tsk_text text;
    tsk_error error;
    const tsk_json_value *value;
    memset(&tokens, 0, sizeof tokens);
    memset(&text, 0, sizeof text);
    memset(&error, 0, sizeof error);
    for (value = tsk_json_first(list); value; value = tsk_json_next(value)) {
        int64_t id = -1;
        int32_t id32;
        tsk_json_int64(value, &id);
        id32 = (int32_t)id;
        if (tsk_tokens_append(&tokens, &id32, 1) != TSK_OK) exit(1);
    }
    if (o->stream) {
        tsk_decoder decoder;
        int32_t i;
        memset(&decoder, 0, sizeof decoder);
        decoder.skip_special = o->skip;
        for (i = 0; i < tokens.count; i++)
            if (tsk_decoder_push(tokenizer, &decoder, tokens.ids[i], &text, &error) != TSK_OK) fail(&error);
        if (tsk_decoder_flush(&decoder, &text) != TSK_OK) exit(1);
    } else if (tsk_tokenizer_decode(tokenizer, tokens.ids, tokens.count, o->skip, &text, &error) != TSK_OK) {
        fail(&error);
    }
    tsk_json_write_string(writer, text.data ? text.data : "", text.length);
    tsk_tokens_free(&tokens);
    tsk_text_free(&text);
}

static void chat(const tsk_tokenizer *tokenizer, const tsk_json_value *list, int thinking, tsk_json_writer *writer) {
    tsk_chat_options options = tsk_chat_options_default();
    tsk_message messages[64];
    tsk_text text;
    tsk_error error;
    const tsk_json_value *value;
    size_t n = 0;
    memset(&text, 0, sizeof text);
    memset(&error, 0, sizeof error);
    for (value = tsk_json_first(list); value && n < 64; value = tsk_json_next(value), n++) {
        messages[n].role = tsk_json_string(tsk_json_get(value, "role"), NULL);
        messages[n].content = tsk_json_string(tsk_json_get(value, "content"), NULL);
    }
    options.thinking = thinking;
    if (tsk_chat_render_with(tokenizer, messages, n, &options, &text, &error) != TSK_OK) fail(&error);
    tsk_json_write_string(writer, text.data ? text.data : "", text.length);
    tsk_text_free(&text);
}

static int print_memory(const char *dir) {
    test_allocator counting = test_allocator_failing_at(-1);
    tsk_allocator allocator = test_allocator_of(&counting);
    tsk_host host;
    tsk_tokenizer *tokenizer;
    tsk_error error;
    memset(&host, 0, sizeof host);
    memset(&error, 0, sizeof error);
    host.allocator = &allocator;
    if (tsk_tokenizer_load(dir, &host, &tokenizer, &error) != TSK_OK) fail(&error);
    printf("%zu\n", counting.bytes);
    tsk_tokenizer_free(tokenizer);
    return 0;
}

int main(int argc, char **argv) {
    options o;
    tsk_tokenizer *tokenizer;
    tsk_error error;
    char *line = NULL;
    size_t capacity = 0;
    ssize_t size;
    int i, thinking = TSK_AUTO;
    memset(&o, 0, sizeof o);
    memset(&error, 0, sizeof error);
    if (argc < 2) return 2;
    for (i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--plain") == 0) o.plain = 1;
        else if (strcmp(argv[i], "--decode") == 0) o.decode = 1;
        else if (strcmp(argv[i], "--skip") == 0) o.skip = 1;
        else if (strcmp(argv[i], "--stream") == 0) o.stream = 1;
        else if (strcmp(argv[i], "--chat") == 0) o.chat = 1;
        else if (strcmp(argv[i], "--no-thinking") == 0) thinking = 0;
        else if (strcmp(argv[i], "--thinking") == 0) thinking = 1;
        else if (strcmp(argv[i], "--memory") == 0) o.memory = 1;
        else return 2;
    }
    if (o.memory) return print_memory(argv[1]);
    if (tsk_tokenizer_load(argv[1], NULL, &tokenizer, &error) != TSK_OK) fail(&error);
    while ((size = getline(&line, &capacity, stdin)) > 0) {
        tsk_json *document = NULL;
        tsk_text out;
        tsk_json_writer writer;
        memset(&out, 0, sizeof out);
        memset(&writer, 0, sizeof writer);
        writer.out = &out;
        if (tsk_json_parse(line, (size_t)size, "line", NULL, &document, NULL) != TSK_OK) tsk_json_write_null(&writer);
        else if (o.chat) chat(tokenizer, tsk_json_root(document), thinking, &writer);
        else if (o.decode) decode(tokenizer, &o, tsk_json_root(document), &writer);
        else encode(tokenizer, &o, tsk_json_root(document), &writer);
        puts(out.data);
        tsk_text_free(&out);
        tsk_json_free(document);
    }
    free(line);
    tsk_tokenizer_free(tokenizer);
    return 0;
}
