/* One line of the input of `batch`. */
#include "batch.h"
#include "messages.h"

/* ---- The line --------------------------------------------------------------------------------------------------- */

int batch_request_open(batch_request *request, const line_reader *input) {
    tsk_error error = {0};
    const tsk_json_value *root;
    memset(request, 0, sizeof *request);
    if (input->is_too_long) return cli_fail("longer than %zu bytes", input->line.length);
    if (tsk_json_parse(input->line.data, input->line.length, NULL, NULL, &request->document, &error) != TSK_OK)
        return cli_fail_with(&error, "not JSON");
    root = tsk_json_root(request->document);
    if (tsk_json_type_of(root) != TSK_JSON_OBJECT) return cli_fail("a request is a JSON object");
    request->id = tsk_json_get(root, "id");
    return request->id ? CLI_OK : cli_fail("no \"id\"");
}

/* ---- Options ---------------------------------------------------------------------------------------------------- */

static int is_content(const char *key) {
    static const char *const keys[] = {"id", "prompt", "prompt_ids", "messages"};
    size_t i;
    for (i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (strcmp(key, keys[i]) == 0) return 1;
    return 0;
}

static int read_options(batch_request *request, const line_reader *input, const cli_settings *defaults) {
    const tsk_json_value *member = tsk_json_first(tsk_json_root(request->document));
    int status = CLI_CONTINUE;
    cli_request_begin(&request->settings, defaults);
    for (; member && status == CLI_CONTINUE; member = tsk_json_next(member)) {
        size_t length;
        const char *key = tsk_json_key(member, &length);
        if (strlen(key) != length) status = cli_fail("a member's name with a NUL byte");
        else if (!is_content(key)) status = cli_request_set(&request->settings, key, member, input->line.data);
    }
    if (status == CLI_CONTINUE) status = cli_request_end(&request->settings);
    return status == CLI_CONTINUE ? CLI_OK : CLI_FAILED;
}

/* What the request says overrules the command line; what it says twice over is a mistake. */
static int settle_system(cli_settings *s, int has_text) {
    int system = cli_given(s, "system"), raw = cli_given(s, "raw") && s->raw;
    if (system && raw) return cli_fail("\"system\" needs the chat template, which \"raw\" leaves out");
    if (system && !has_text) return cli_fail("\"system\" goes with \"prompt\" only");
    if (raw) s->system = NULL;
    if (system) s->raw = 0;
    return CLI_OK;
}

/* ---- The prompt ------------------------------------------------------------------------------------------------- */

static int read_ids(const tsk_json_value *array, tsk_tokens *out) {
    const tsk_json_value *element = tsk_json_first(array);
    if (tsk_json_type_of(array) != TSK_JSON_ARRAY) return cli_fail("\"prompt_ids\" must be an array of token ids");
    for (; element; element = tsk_json_next(element)) {
        int64_t value;
        int32_t id;
        if (!tsk_json_int64(element, &value) || value < 0 || value > INT32_MAX)
            return cli_fail("\"prompt_ids\" must be an array of token ids; number %d is none", (int)out->count);
        id = (int32_t)value;
        if (tsk_tokens_append(out, &id, 1) != TSK_OK) return cli_fail("out of memory");
    }
    return CLI_OK;
}

static int encode_messages(const cli_engine *engine, const cli_settings *settings, const tsk_json_value *array,
                           tsk_tokens *out) {
    tsk_chat_options options = cli_chat_options(settings);
    message_list messages;
    tsk_error error = {0};
    int status = messages_read(&messages, "\"messages\"", array);
    if (status == CLI_OK && !messages.count) status = cli_fail("\"messages\" is empty");
    if (status == CLI_OK && !engine->tokenizer)
        status = cli_fail("the model has no tokenizer.json: give the prompt as \"prompt_ids\"");
    if (status == CLI_OK &&
        tsk_chat_encode_with(engine->tokenizer, messages.items, messages.count, &options, out, &error) != TSK_OK)
        status = cli_fail_with(&error, "\"messages\"");
    messages_free(&messages);
    return status;
}

static int read_text(batch_request *request, const cli_engine *engine, const tsk_json_value *prompt) {
    size_t length;
    const char *text = tsk_json_string(prompt, &length);
    if (!text) return cli_fail("\"prompt\" must be a string");
    if (!engine->tokenizer) return cli_fail("the model has no tokenizer.json: give the prompt as \"prompt_ids\"");
    return cli_encode_prompt(engine, &request->settings, text, length, "\"prompt\"", &request->prompt);
}

static int read_prompt(batch_request *request, const cli_engine *engine) {
    const tsk_json_value *root = tsk_json_root(request->document), *text = tsk_json_get(root, "prompt");
    const tsk_json_value *ids = tsk_json_get(root, "prompt_ids"), *messages = tsk_json_get(root, "messages");
    int status = settle_system(&request->settings, text != NULL);
    if (status != CLI_OK) return status;
    if (!text && !ids && !messages) return cli_fail("one of \"prompt\", \"prompt_ids\" and \"messages\" must be there");
    if (!!text + !!ids + !!messages > 1)
        return cli_fail("only one of %s%s%s can be given", text ? "\"prompt\"" : "\"prompt_ids\"",
                        text && ids ? messages ? ", \"prompt_ids\"" : " and \"prompt_ids\"" : "",
                        messages ? " and \"messages\"" : "");
    if (ids) return read_ids(ids, &request->prompt);
    if (!messages) return read_text(request, engine, text);
    if (request->settings.raw)
        return cli_fail("\"messages\" need the chat template, which %s leaves out",
                        cli_given(&request->settings, "raw") ? "\"raw\"" : "--raw");
    return encode_messages(engine, &request->settings, messages, &request->prompt);
}

int batch_request_read(batch_request *request, const line_reader *input, const cli_engine *engine,
                       const cli_settings *defaults) {
    int status = read_options(request, input, defaults);
    return status == CLI_OK ? read_prompt(request, engine) : status;
}

void batch_request_free(batch_request *request) {
    tsk_json_free(request->document);
    tsk_tokens_free(&request->prompt);
    memset(request, 0, sizeof *request);
}
