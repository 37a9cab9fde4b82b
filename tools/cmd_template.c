#include "cli.h"

#include <unistd.h>

enum { MAX_FILE = 64 << 20 };

/* A member that must be a string without NUL bytes, since the library takes C strings here. */
static const char *string_member(const tsk_json_value *object, const char *key) {
    size_t length;
    const char *text = tsk_json_string(tsk_json_get(object, key), &length);
    return text && strlen(text) == length ? text : NULL;
}

static int read_messages(const char *path, const tsk_json_value *root, tsk_message **out) {
    const tsk_json_value *element;
    size_t count = tsk_json_count(root), i = 0;
    tsk_message *messages = (tsk_message *)calloc(count ? count : 1, sizeof *messages);
    if (!messages) exit(cli_fail("out of memory"));
    *out = messages;
    if (tsk_json_type_of(root) != TSK_JSON_ARRAY) return cli_fail("%s: an array of messages was expected", path);
    for (element = tsk_json_first(root); element; element = tsk_json_next(element), i++) {
        messages[i].role = string_member(element, "role");
        messages[i].content = string_member(element, "content");
        if (!messages[i].role || !messages[i].content)
            return cli_fail("%s: message %zu lacks \"role\" or \"content\" as a string without NUL bytes (at byte %llu)", path, i,
                            (unsigned long long)tsk_json_offset(element));
    }
    return CLI_OK;
}

static int render(const tsk_tokenizer *tokenizer, const char *path, const tsk_json_value *root) {
    tsk_message *messages = NULL;
    tsk_text out = {0};
    tsk_error error = {0};
    int status = read_messages(path, root, &messages);
    if (status == CLI_OK && tsk_chat_render(tokenizer, messages, tsk_json_count(root), &out, &error) != TSK_OK)
        status = cli_fail_with(&error, NULL);
    if (status == CLI_OK) {
        if (isatty(STDOUT_FILENO)) cli_append(&out, "\n"); /* elsewhere the template's own bytes, no more */
        status = cli_write(out.data, out.length);
    }
    tsk_error_clear(&error);
    tsk_text_free(&out);
    free(messages);
    return status;
}

int cmd_template(cli_settings *settings) {
    tsk_tokenizer *tokenizer = NULL;
    tsk_json *document = NULL;
    tsk_text text = {0};
    tsk_error error = {0};
    int status;
    if (tsk_tokenizer_load(settings->model_dir, NULL, &tokenizer, &error) != TSK_OK ||
        tsk_read_file(settings->messages, MAX_FILE, NULL, &text, &error) != TSK_OK ||
        tsk_json_parse(text.data ? text.data : "", text.length, settings->messages, NULL, &document, &error) != TSK_OK)
        status = cli_fail_with(&error, NULL);
    else status = render(tokenizer, settings->messages, tsk_json_root(document));
    tsk_error_clear(&error);
    tsk_json_free(document);
    tsk_text_free(&text);
    tsk_tokenizer_free(tokenizer);
    return status;
}
