#include "messages.h"
#include "system.h"

enum { MAX_FILE = 64 << 20 };

static int render(const cli_settings *settings, const tsk_tokenizer *tokenizer, const char *name,
                  const tsk_json_value *root) {
    tsk_chat_options options = cli_chat_options(settings);
    message_list messages;
    tsk_text out = {0};
    tsk_error error = {0};
    int status = messages_read(&messages, name, root);
    if (status == CLI_OK && 
        tsk_chat_render_with(tokenizer, messages.items, messages.count, &options, &out, &error) != TSK_OK)
        status = cli_fail_with(&error, NULL);
    if (status == CLI_OK) {
        if (system_is_terminal(SYSTEM_STDOUT)) cli_append(&out, "\n"); /* elsewhere the template's own bytes, no more */
        status = cli_write(out.data, out.length);
    }
    tsk_text_free(&out);
    messages_free(&messages);
    return status;
}

int cmd_template(cli_settings *settings) {
    tsk_tokenizer *tokenizer = NULL;
    tsk_json *document = NULL;
    tsk_text text = {0};
    tsk_error error = {0};
    const char *name = cli_file_name(settings->messages);
    int status;
    if (tsk_tokenizer_load(settings->model_dir, NULL, &tokenizer, &error) != TSK_OK)
        status = cli_fail_with(&error, NULL);
    else status = cli_read_file(settings->messages, MAX_FILE, &text);
    if (status == CLI_OK &&
        tsk_json_parse(text.data ? text.data : "", text.length, name, NULL, &document, &error) != TSK_OK)
        status = cli_fail_with(&error, NULL);
    if (status == CLI_OK) status = render(settings, tokenizer, name, tsk_json_root(document));
    tsk_json_free(document);
    tsk_text_free(&text);
    tsk_tokenizer_free(tokenizer);
    return status;
}
