#include "cli.h"

/* "standard input" or "standard input, line 3": where a message is about. */
static const char *place(int line, char *buffer, size_t size) {
    snprintf(buffer, size, line ? "standard input, line %d" : "standard input", line);
    return buffer;
}

static int fail_at(tsk_error *error, int line) {
    char where[64];
    error->file[0] = 0; /* the place says it */
    cli_fail_with(error, place(line, where, sizeof where));
    return CLI_FAILED;
}

static int encode(const tsk_tokenizer *tokenizer, const char *text, size_t size, int line, tsk_tokens *ids) {
    tsk_error error = {0};
    ids->count = 0;
    if (tsk_tokenizer_encode(tokenizer, text, size, 1, ids, &error) != TSK_OK) return fail_at(&error, line);
    return CLI_OK;
}

static int decode(const tsk_tokenizer *tokenizer, const tsk_tokens *ids, int line, tsk_text *text) {
    tsk_error error = {0};
    if (tsk_tokenizer_decode(tokenizer, ids->ids, ids->count, 0, text, &error) != TSK_OK) return fail_at(&error, line);
    return CLI_OK;
}

/* ---- Whole text ------------------------------------------------------------------------------------------------- */

static int encode_text(const tsk_tokenizer *tokenizer, const tsk_text *in, tsk_text *out) {
    tsk_tokens ids = {0};
    int32_t i;
    int status = encode(tokenizer, in->data ? in->data : "", in->length, 0, &ids);
    if (status == CLI_OK) {
        for (i = 0; i < ids.count; i++) cli_append(out, i ? " %d" : "%d", (int)ids.ids[i]);
        cli_append(out, "\n");
    }
    tsk_tokens_free(&ids);
    return status;
}

static int decode_text(const tsk_tokenizer *tokenizer, const tsk_text *in, tsk_text *out) {
    tsk_tokens ids = {0};
    int status;
    int is_blank = !in->length || strspn(in->data, " \t\r\n") == in->length;
    if (!is_blank && (strlen(in->data) != in->length || !cli_read_ids(in->data, &ids)))
        status = cli_fail("standard input: token ids separated by spaces or commas were expected");
    else status = decode(tokenizer, &ids, 0, out);
    tsk_tokens_free(&ids);
    return status;
}

/* ---- JSON lines ------------------------------------------------------------------------------------------------- */

static int encode_value(const tsk_tokenizer *tokenizer, const tsk_json_value *value, int line, tsk_tokens *ids,
                        tsk_json_writer *json) {
    size_t size;
    int32_t i;
    const char *text = tsk_json_string(value, &size);
    if (!text) return cli_fail("standard input, line %d: a JSON string was expected", line);
    if (encode(tokenizer, text, size, line, ids) != CLI_OK) return CLI_FAILED;
    tsk_json_begin_array(json);
    for (i = 0; i < ids->count; i++) tsk_json_write_int(json, ids->ids[i]);
    tsk_json_end_array(json);
    return CLI_OK;
}

static int decode_value(const tsk_tokenizer *tokenizer, const tsk_json_value *value, int line, tsk_tokens *ids,
                        tsk_json_writer *json) {
    tsk_text text = {0};
    const tsk_json_value *element;
    int status;
    ids->count = 0;
    if (tsk_json_type_of(value) != TSK_JSON_ARRAY)
        return cli_fail("standard input, line %d: a JSON array of ids was expected", line);
    for (element = tsk_json_first(value); element; element = tsk_json_next(element)) {
        int64_t number;
        int32_t id;
        if (!tsk_json_int64(element, &number) || number < 0 || number > INT32_MAX)
            return cli_fail("standard input, line %d: token ids are whole numbers from 0 to %d", line, INT32_MAX);
        id = (int32_t)number;
        if (tsk_tokens_append(ids, &id, 1) != TSK_OK) exit(cli_fail("out of memory"));
    }
    status = decode(tokenizer, ids, line, &text);
    if (status == CLI_OK) tsk_json_write_string(json, text.data ? text.data : "", text.length);
    tsk_text_free(&text);
    return status;
}

static int convert_line(const tsk_tokenizer *tokenizer, int to_text, const char *line, size_t length, int number,
                        tsk_tokens *ids, tsk_text *out) {
    tsk_json *document = NULL;
    tsk_error error = {0};
    tsk_json_writer json = {0};
    int status;
    json.out = out;
    if (tsk_json_parse(line, length, NULL, NULL, &document, &error) != TSK_OK) return fail_at(&error, number);
    status = (to_text ? decode_value : encode_value)(tokenizer, tsk_json_root(document), number, ids, &json);
    tsk_json_free(document);
    if (json.status != TSK_OK) exit(cli_fail("out of memory"));
    cli_append(out, "\n");
    return status;
}

static int convert_lines(const tsk_tokenizer *tokenizer, int to_text, const tsk_text *in, tsk_text *out) {
    tsk_tokens ids = {0};
    const char *line;
    size_t offset = 0, length;
    int number = 0, status = CLI_OK;
    while (status == CLI_OK && cli_next_line(in, &offset, &line, &length))
        status = convert_line(tokenizer, to_text, line, length, ++number, &ids, out);
    tsk_tokens_free(&ids);
    return status;
}

/* All output waits for the last line: a failure leaves none. */
int cmd_tokenize(cli_settings *settings) {
    tsk_tokenizer *tokenizer = NULL;
    tsk_text in = {0}, out = {0};
    tsk_error error = {0};
    int status = CLI_OK;
    if (tsk_tokenizer_load(settings->model_dir, NULL, &tokenizer, &error) != TSK_OK) {
        status = cli_fail_with(&error, NULL);
        return status;
    }
    status = cli_read_stdin(&in);
    if (status == CLI_OK) {
        if (settings->jsonl) status = convert_lines(tokenizer, settings->decode, &in, &out);
        else status = (settings->decode ? decode_text : encode_text)(tokenizer, &in, &out);
    }
    if (status == CLI_OK) status = cli_write(out.data, out.length);
    tsk_text_free(&in);
    tsk_text_free(&out);
    tsk_tokenizer_free(tokenizer);
    return status;
}
