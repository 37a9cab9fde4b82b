/* Messages, output, input, and loading a model: what every subcommand does the same way. */
#include "system.h"

#include <stdarg.h>

/* ---- Messages --------------------------------------------------------------------------------------------------- */

static tsk_text *kept_messages;
static const char *message_place;

void cli_keep_messages(tsk_text *out) { kept_messages = out; }

void cli_place_messages(const char *place) { message_place = place; }

enum { MAX_MESSAGE = 2048 };

/* One line, whatever a file name or a message holds; a terminal gets no control character. Without allocating: memory
   may be what has run out. */
static void print_line(const char *line) {
    char out[MAX_MESSAGE * CLI_VISIBLE_SIZE + 64];
    size_t n = 0, i, length, size = strlen(line);
    int is_terminal = system_is_terminal(SYSTEM_STDERR);
    if (kept_messages) {
        cli_append_bytes(kept_messages, line, size);
        return;
    }
    n += (size_t)snprintf(out, sizeof out, "tokenskip: %.40s%s", message_place ? message_place : "",
                          message_place ? ": " : "");
    for (i = 0; i < size; i += length) {
        length = 1;
        if (line[i] == '\n') n += (size_t)snprintf(out + n, sizeof out - n, "\\u000a");
        else if (is_terminal) n += cli_visible_character(line + i, size - i, out + n, &length);
        else out[n++] = line[i];
    }
    out[n++] = '\n';
    cli_progress_clear();
    fwrite(out, 1, n, stderr);
}

static void print_message(const char *format, va_list arguments) {
    char line[MAX_MESSAGE];
    vsnprintf(line, sizeof line, format, arguments);
    print_line(line);
}

int cli_usage_error(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_message(format, arguments);
    va_end(arguments);
    return CLI_USAGE;
}

int cli_fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_message(format, arguments);
    va_end(arguments);
    return CLI_FAILED;
}

void cli_warn(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_message(format, arguments);
    va_end(arguments);
}

void cli_note(const char *format, ...) {
    va_list arguments;
    if (!cli_stderr_is_terminal()) return;
    va_start(arguments, format);
    print_message(format, arguments);
    va_end(arguments);
}

void cli_log(void *user, const char *line) {
    (void)user;
    cli_note("%s", line);
}

int cli_fail_with(const tsk_error *error, const char *context) {
    char line[MAX_MESSAGE];
    const char *message = error->message[0] ? error->message : tsk_status_string(error->status);
    int names_file = error->file[0] && !strstr(message, error->file);
    size_t n = 0;
    if (context) n += (size_t)snprintf(line, sizeof line, "%.1000s: ", context);
    if (names_file) n += (size_t)snprintf(line + n, sizeof line - n, "%s: ", error->file);
    n += (size_t)snprintf(line + n, sizeof line - n, "%s", message);
    if (error->offset != TSK_NO_OFFSET && !strstr(message, "byte"))
        snprintf(line + n, sizeof line - n, " (at byte %llu)", (unsigned long long)error->offset);
    print_line(line);
    return CLI_FAILED;
}

/* ---- Output ----------------------------------------------------------------------------------------------------- */

static int write_bytes(const char *bytes, size_t size) {
    if ((size && fwrite(bytes, 1, size, stdout) != size) || fflush(stdout) != 0)
        return cli_fail("cannot write to standard output: %s", strerror(errno));
    return CLI_OK;
}

int cli_write(const char *bytes, size_t size) {
    tsk_text visible = {0};
    int status;
    if (!system_is_terminal(SYSTEM_STDOUT)) return write_bytes(bytes, size);
    cli_append_visible(&visible, bytes, size);
    status = write_bytes(visible.data, visible.length);
    tsk_text_free(&visible);
    return status;
}

static int out_of_memory(void) {
    cli_hide_cursor(0);
    cli_keep_messages(NULL);
    return cli_fail("out of memory");
}

void *cli_reallocate(void *block, size_t count, size_t size) {
    size_t bytes = count * size;
    void *grown = size && count > SIZE_MAX / size ? NULL : realloc(block, bytes > 0 ? bytes : 1);
    if (!grown) exit(out_of_memory());
    return grown;
}

void *cli_allocate(size_t count, size_t size) {
    void *block = cli_reallocate(NULL, count, size);
    return memset(block, 0, count * size);
}

void *cli_copy(const void *from, size_t count, size_t size) {
    void *block = cli_reallocate(NULL, count, size);
    return count ? memcpy(block, from, count * size) : block;
}

void cli_append_bytes(tsk_text *text, const char *bytes, size_t size) {
    if (tsk_text_append(text, bytes, size) == TSK_OK) return;
    exit(out_of_memory());
}

void cli_append(tsk_text *text, const char *format, ...) {
    char buffer[4096];
    va_list arguments;
    int n;
    va_start(arguments, format);
    n = vsnprintf(buffer, sizeof buffer, format, arguments);
    va_end(arguments);
    if (n >= (int)sizeof buffer) n = (int)sizeof buffer - 1;
    cli_append_bytes(text, buffer, n > 0 ? (size_t)n : 0);
}

void cli_json_uint(tsk_json_writer *json, const char *key, uint64_t value) {
    tsk_json_write_key(json, key);
    tsk_json_write_uint(json, value);
}

void cli_json_double(tsk_json_writer *json, const char *key, double value) {
    tsk_json_write_key(json, key);
    tsk_json_write_double(json, value);
}

void cli_json_string(tsk_json_writer *json, const char *key, const char *value) {
    tsk_json_write_key(json, key);
    tsk_json_write_string(json, value, strlen(value));
}

void cli_json_ids(tsk_json_writer *json, const char *key, const int32_t *ids, size_t count) {
    size_t i;
    tsk_json_write_key(json, key);
    tsk_json_begin_array(json);
    for (i = 0; i < count; i++) tsk_json_write_int(json, ids[i]);
    tsk_json_end_array(json);
}

int cli_json_print(tsk_json_writer *json) {
    if (json->status != TSK_OK) exit(out_of_memory());
    cli_append(json->out, "\n");
    return cli_write(json->out->data, json->out->length);
}

const char *cli_size_string(uint64_t bytes, char *buffer, size_t size) {
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB", "PB"};
    double value = (double)bytes;
    int unit = 0;
    while (value >= 1000 && unit < 5) {
        value /= 1000;
        unit++;
    }
    snprintf(buffer, size, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return buffer;
}

/* ---- Input ------------------------------------------------------------------------------------------------------ */

const char *cli_file_name(const char *path) { return strcmp(path, "-") == 0 ? "standard input" : path; }

static int read_all(int descriptor, const char *path, size_t max_size, tsk_text *out) {
    const char *name = cli_file_name(path), *quote = descriptor == SYSTEM_STDIN ? "" : "'";
    char buffer[65536];
    ssize_t n;
    while ((n = cli_read(descriptor, buffer, sizeof buffer)) > 0) {
        if ((size_t)n > max_size - out->length)
            return cli_fail("%s%s%s has more than the %zu bytes allowed here", quote, name, quote, max_size);
        cli_append_bytes(out, buffer, (size_t)n);
    }
    if (n < 0 && cli_interrupted()) return cli_fail("interrupted while reading %s%s%s", quote, name, quote);
    return n < 0 ? cli_fail("cannot read %s%s%s: %s", quote, name, quote, strerror(errno)) : CLI_OK;
}

int cli_read_stdin(tsk_text *out) { return read_all(SYSTEM_STDIN, "-", SIZE_MAX, out); }

int cli_read_file(const char *path, size_t max_size, tsk_text *out) {
    int is_stdin = strcmp(path, "-") == 0, status;
    int descriptor = is_stdin ? SYSTEM_STDIN : system_open(path, SYSTEM_READ);
    if (descriptor < 0 && cli_interrupted()) return cli_fail("interrupted while opening '%s'", path);
    if (descriptor < 0) return cli_fail("cannot open '%s': %s", path, strerror(errno));
    status = read_all(descriptor, path, max_size, out);
    if (!is_stdin) system_close(descriptor);
    return status;
}

int cli_next_line(const tsk_text *text, size_t *offset, const char **line, size_t *length) {
    const char *newline;
    if (*offset >= text->length) return 0;
    *line = text->data + *offset;
    newline = (const char *)memchr(*line, '\n', text->length - *offset);
    *length = newline ? (size_t)(newline - *line) : text->length - *offset;
    *offset += *length + 1;
    return 1;
}

double cli_now_ms(void) { return system_clock_ms(); }

double cli_cpu_ms(void) { return system_cpu_ms(); }

/* ---- Model ------------------------------------------------------------------------------------------------------ */

/* A small model is there before a bar could be read: none for the first moments. */
static void on_load_progress(void *user, uint64_t done, uint64_t total) {
    char tail[64], size[32];
    double fraction = total ? (double)done / (double)total : 1, start = *(const double *)user;
    if (cli_now_ms() - start < 200) return;
    snprintf(tail, sizeof tail, "%3.0f%% of %s", fraction * 100, cli_size_string(total, size, sizeof size));
    cli_progress("loading", fraction, tail);
}

static int on_cancel(void *user) {
    (void)user;
    cli_progress_again();
    return cli_interrupted() != 0;
}

int cli_load_model(cli_engine *engine, const cli_settings *settings) {
    tsk_model_options options = settings->model;
    tsk_error error = {0};
    double start = cli_now_ms();
    tsk_status status;
    options.progress = on_load_progress;
    options.cancel = on_cancel;
    options.user = &start;
    memset(engine, 0, sizeof *engine);
    status = tsk_model_load(settings->model_dir, &options, &engine->model, &error);
    cli_progress_clear();
    if (status != TSK_OK) {
        if (cli_interrupted()) cli_fail("interrupted while loading %s", settings->model_dir);
        else cli_fail_with(&error, NULL);
        return CLI_FAILED;
    }
    engine->tokenizer = tsk_model_tokenizer(engine->model);
    engine->load_ms = cli_now_ms() - start;
    return CLI_OK;
}

int cli_open_session(cli_engine *engine, const cli_settings *settings) {
    tsk_generate_options options = settings->generate;
    tsk_error error = {0};
    int status = CLI_OK;
    options.cancel = on_cancel;
    if (tsk_session_create(engine->model, &options, &engine->session, &error) != TSK_OK)
        status = cli_fail_with(&error, NULL);
    return status;
}

void cli_engine_free(cli_engine *engine) {
    tsk_session_free(engine->session);
    tsk_model_free(engine->model);
    memset(engine, 0, sizeof *engine);
}

/* ---- Prompt and result ------------------------------------------------------------------------------------------ */

/* A final newline in piped text is the pipe's, not the prompt's. */
int cli_read_prompt(const cli_settings *settings, tsk_text *prompt) {
    if (cli_given(settings, "prompt-ids")) return CLI_OK;
    if (settings->prompt) {
        cli_append_bytes(prompt, settings->prompt, strlen(settings->prompt));
        return CLI_OK;
    }
    if (system_is_terminal(SYSTEM_STDIN))
        cli_note("reading the prompt from standard input; " SYSTEM_END_KEYS " ends it");
    if (cli_read_stdin(prompt) != CLI_OK) return CLI_FAILED;
    if (prompt->length && prompt->data[prompt->length - 1] == '\n') prompt->data[--prompt->length] = 0;
    return CLI_OK;
}

int cli_prompt_tokens(const cli_engine *engine, const cli_settings *settings, const tsk_text *prompt, tsk_tokens *out) {
    if (!cli_given(settings, "prompt-ids"))
        return cli_encode_prompt(engine, settings, prompt->data ? prompt->data : "", prompt->length, NULL, out);
    return tsk_tokens_append(out, settings->prompt_ids.ids, settings->prompt_ids.count) == TSK_OK ? CLI_OK
                                                                                                  : out_of_memory();
}

int32_t cli_layer_k(const tsk_generate_options *options, const tsk_model_config *config) {
    if (options->skip.rule == TSK_SKIP_RULE_OFF) return 0;
    if (options->skip.rule == TSK_SKIP_RULE_ROWS && !options->skip.refresh) return 0;
    if (options->skip.layer_k != TSK_AUTO) return options->skip.layer_k;
    if (options->cache != TSK_CACHE_DUAL && options->cache != TSK_CACHE_BLOCK) return 0;
    if (options->skip.rule == TSK_SKIP_RULE_AUTO && !options->skip.refresh) return 0;
    return config->n_layers / 4 > 2 ? config->n_layers / 4 : 2;
}

int cli_block_refreshes(const tsk_generate_options *options, int32_t n_started) {
    if (n_started == 0 || options->refresh == TSK_REFRESH_NEAR || options->refresh_every == TSK_AUTO) return 1;
    return options->refresh_every && n_started % options->refresh_every == 0;
}

int cli_leaves_out(const tsk_generate_options *options, const tsk_model_config *config) {
    int is_auto = options->skip.rule == TSK_SKIP_RULE_AUTO && options->skip.layer_k == TSK_AUTO;
    int by_rows = options->skip.rule == TSK_SKIP_RULE_ROWS ||
                  (is_auto && options->cache == TSK_CACHE_DUAL && config->family == TSK_FAMILY_LLADA);
    return by_rows || cli_layer_k(options, config) > 0 || options->refresh == TSK_REFRESH_NEAR ||
           options->refresh_window > 0;
}

void cli_choose_states(tsk_generate_options *options) {
    if (options->skip.rule == TSK_SKIP_RULE_AUTO && options->skip.layer_k != 0 && options->cache == TSK_CACHE_DUAL)
        options->skip.rule = TSK_SKIP_RULE_STATES;
}

void cli_make_plain(tsk_generate_options *options) {
    options->skip.rule = TSK_SKIP_RULE_OFF;
    options->skip.layer_k = options->skip.refresh = 0;
    options->refresh = TSK_REFRESH_FULL;
    options->refresh_window = 0;
}

tsk_transfer_rule cli_transfer_rule(const tsk_generate_options *options, int32_t quota) {
    tsk_transfer_rule rule;
    rule.transfer = options->transfer;
    rule.threshold = options->threshold;
    rule.factor = options->factor;
    rule.frechet = options->frechet;
    rule.entropy_bound = options->entropy_bound;
    rule.local_leap = options->local_leap;
    rule.local_radius = options->local_radius;
    rule.quota = quota;
    return rule;
}

tsk_chat_options cli_chat_options(const cli_settings *settings) {
    tsk_chat_options options = tsk_chat_options_default();
    options.thinking = settings->thinking;
    return options;
}

int cli_encode_prompt(const cli_engine *engine, const cli_settings *settings, const char *text, size_t size,
                      const char *context, tsk_tokens *out) {
    tsk_message messages[2];
    size_t count = 0;
    tsk_error error = {0};
    tsk_status result;
    int status = CLI_OK;
    if (!engine->tokenizer)
        return cli_fail("%s: no tokenizer.json: give the prompt as --prompt-ids", settings->model_dir);
    if (settings->raw) {
        result = tsk_tokenizer_encode(engine->tokenizer, text, size, 1, out, &error);
    } else {
        if (memchr(text, 0, size))
            return cli_fail("%s: a NUL byte at byte %zu of the prompt", context ? context : "prompt", strlen(text));
        if (settings->system) {
            messages[count].role = "system";
            messages[count++].content = settings->system;
        }
        messages[count].role = "user";
        messages[count++].content = text;
        tsk_chat_options options = cli_chat_options(settings);
        result = tsk_chat_encode_with(engine->tokenizer, messages, count, &options, out, &error);
    }
    if (result != TSK_OK) status = cli_fail_with(&error, context);
    return status;
}

int cli_result_text(const cli_engine *engine, const tsk_result *result, tsk_text *out) {
    tsk_error error = {0};
    int status = CLI_OK;
    if (tsk_tokenizer_decode(engine->tokenizer, result->tokens, result->n_before_end, 1, out, &error) != TSK_OK)
        status = cli_fail_with(&error, NULL);
    return status;
}

int32_t cli_count_tokens(const cli_engine *engine, const tsk_result *result) {
    int32_t mask = tsk_model_get_config(engine->model)->mask_token_id, count = 0, i;
    for (i = 0; i < result->n_before_end; i++) count += result->tokens[i] != mask;
    return count;
}

double cli_tokens_per_second(double tokens, double milliseconds) {
    return milliseconds > 0 ? tokens * 1e3 / milliseconds : 0;
}
