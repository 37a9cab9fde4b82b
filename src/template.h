#ifndef SECTION_GUARD_TEMPLATE
#define SECTION_GUARD_TEMPLATE

#include "error.h"
#include "memory.h"
#include "json.h"
#include "unicode.h"
#include "bpe.h"

// >>template ==========================================================================================================
/* Chat templates are small programs in Jinja. The templates of the supported models are known here by the length and
   hash of their text, and rendered in C. Only what the API can express is rendered: roles and text, no tools, the
   assistant's header at the end. Any other template is an error, because a prompt that is almost right makes a model's
   answers worse without a sign.
   While rendering, the places of the messages' own text are noted, so that special tokens written out in it can be kept
   from taking effect. */

enum {
    TSK__TEMPLATE_NONE,           /* the folder has none */
    TSK__TEMPLATE_UNKNOWN,
    TSK__TEMPLATE_HEADERS,        /* <|start_header_id|>role<|end_header_id|> … <|eot_id|> */
    TSK__TEMPLATE_CHATML,         /* <|im_start|>role … <|im_end|> */
    TSK__TEMPLATE_QWEN3,          /* the same with thoughts */
    TSK__TEMPLATE_ROLES           /* <role>HUMAN</role> … <|role_end|> */
};

static const struct tsk__template_known {
    uint64_t length, hash;        /* FNV-1a, 64 bits */
    int kind;
    const char *system;           /* what the system says when the messages do not; NULL: nothing */
} tsk__template_table[] = {
    /* LLaDA, LLaDA-1.5, the first Llama-3: the header is always added */
    {348, UINT64_C(0x74891e390e614ae2), TSK__TEMPLATE_HEADERS, NULL},
    /* Llama-3: the header is added when asked for */
    {389, UINT64_C(0x0e60067a5537498e), TSK__TEMPLATE_HEADERS, NULL},
    /* Ling 2, after which LLaDA-MoE's and LLaDA 2's prompts are formed */
    {3972, UINT64_C(0xf713ce92a3ddea76), TSK__TEMPLATE_ROLES, NULL},
    /* Dream, Qwen2.5's base models */
    {2426, UINT64_C(0x16bc91fc7006a16d), TSK__TEMPLATE_CHATML, "You are a helpful assistant."},
    /* Qwen2.5 */
    {2506, UINT64_C(0xe642ce246d7f2e3d), TSK__TEMPLATE_CHATML,
     "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
    /* Qwen2 */
    {328, UINT64_C(0x8a87094e0e1e24c5), TSK__TEMPLATE_CHATML, "You are a helpful assistant."},
    /* Qwen1.5 */
    {327, UINT64_C(0xc867da37c989d41f), TSK__TEMPLATE_CHATML, "You are a helpful assistant"},
    /* ChatML as the transformers library once had it by default */
    {196, UINT64_C(0x88bf4138d5c826f0), TSK__TEMPLATE_CHATML, NULL},
    /* Qwen3 */
    {4116, UINT64_C(0x2bfdb7aa9754484e), TSK__TEMPLATE_QWEN3, NULL}};

/* Hash and length of the text as Jinja reads it: CR LF and CR are newlines, and one at the end, which editors put
   there, is left out. */
static uint64_t tsk__template_hash(const char *text, size_t size, uint64_t *length) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    size_t i;
    if (size && text[size - 1] == '\n') size--;
    if (size && text[size - 1] == '\r') size--;
    *length = 0;
    for (i = 0; i < size; i++) {
        if (text[i] == '\r' && i + 1 < size && text[i + 1] == '\n') continue;
        hash = (hash ^ (unsigned char)(text[i] == '\r' ? '\n' : text[i])) * UINT64_C(0x100000001b3);
        ++*length;
    }
    return hash;
}

/* ---- loading */

static tsk_status tsk__template_note(tsk_tokenizer *tokenizer, const char *text, size_t size, const char *file,
                                     tsk_error *error) {
    size_t i;
    tokenizer->template_hash = tsk__template_hash(text, size, &tokenizer->template_length);
    tokenizer->template_kind = TSK__TEMPLATE_UNKNOWN;
    for (i = 0; i < sizeof tsk__template_table / sizeof *tsk__template_table; i++) {
        const struct tsk__template_known *known = &tsk__template_table[i];
        if (known->length != tokenizer->template_length || known->hash != tokenizer->template_hash) continue;
        tokenizer->template_kind = known->kind;
        tokenizer->template_system = known->system;
    }
    if (tsk_text_append(&tokenizer->template_file, file, strlen(file)) != TSK_OK)
        return tsk__error_memory(error, file, strlen(file));
    return TSK_OK;
}

/* "chat_template" is a text, or a list of named ones of which "default" is the one. */
static const char *tsk__template_of(const tsk_json_value *config, size_t *length) {
    const tsk_json_value *value = tsk_json_get(config, "chat_template"), *one;
    if (tsk_json_type_of(value) == TSK_JSON_ARRAY)
        for (one = tsk_json_first(value); one; one = tsk_json_next(one))
            if (tsk__bpe_is(tsk_json_get(one, "name"), "default"))
                return tsk_json_string(tsk_json_get(one, "template"), length);
    return tsk_json_string(value, length);
}

/* A file of its own goes before the one in tokenizer_config.json. */
static tsk_status tsk__template_load(tsk_tokenizer *tokenizer, tsk__bpe_folder *folder, const tsk_json_value *config) {
    size_t length;
    const char *bos = tsk__bpe_named_text(tsk_json_get(config, "bos_token"), &length), *text;
    tsk_status status = TSK_OK;
    if (bos && tsk_text_append(&tokenizer->bos, bos, length) != TSK_OK)
        return tsk__error_memory(folder->error, "bos_token", length);
    if (tsk__bpe_folder_has(folder, "chat_template.jinja")) {
        tsk_text file;
        status = tsk__bpe_folder_read(folder, "chat_template.jinja", &file);
        if (status == TSK_OK)
            status = tsk__template_note(tokenizer, file.data, file.length, folder->path, folder->error);
        tsk_text_free(&file);
        return status;
    }
    text = tsk__template_of(config, &length);
    return text ? tsk__template_note(tokenizer, text, length, tsk__bpe_folder_path(folder, "tokenizer_config.json"),
                                     folder->error)
                : TSK_OK;
}

void tsk_tokenizer_free(tsk_tokenizer *tokenizer) {
    if (!tokenizer) return;
    tsk__bpe_destroy(tokenizer);
    tsk_text_free(&tokenizer->bos);
    tsk_text_free(&tokenizer->template_file);
    tsk__memory_delete(tokenizer->allocator, tokenizer);
}

tsk_status tsk_tokenizer_load(const char *dir, const tsk_host *host, tsk_tokenizer **out, tsk_error *error) {
    const tsk_allocator *allocator = tsk__memory_allocator(host);
    tsk_tokenizer *tokenizer;
    tsk_json *config = NULL;
    tsk__bpe_folder folder;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_tokenizer_load", "out");
    *out = NULL;
    if (!dir) return tsk__error_null(error, "tsk_tokenizer_load", "dir");
    tokenizer = (tsk_tokenizer *)tsk__memory_new_zeroed(allocator, 1, sizeof *tokenizer);
    if (!tokenizer) return tsk__error_memory(error, "a tokenizer", sizeof *tokenizer);
    tokenizer->allocator = tokenizer->texts.allocator = tokenizer->bytes.allocator = tokenizer->bos.allocator =
        tokenizer->template_file.allocator = allocator;
    status = tsk__bpe_folder_open(&folder, dir, host, error);
    if (status == TSK_OK && tsk__bpe_folder_has(&folder, "tokenizer_config.json"))
        status = tsk__bpe_folder_json(&folder, "tokenizer_config.json", &config);
    if (status == TSK_OK) status = tsk__bpe_load(tokenizer, &folder, tsk_json_root(config));
    if (status == TSK_OK) status = tsk__template_load(tokenizer, &folder, tsk_json_root(config));
    tsk_json_free(config);
    tsk__memory_delete(allocator, folder.path);
    if (status == TSK_OK) *out = tokenizer;
    else tsk_tokenizer_free(tokenizer);
    return status;
}

/* ---- rendering */

typedef struct tsk__template_writer {
    tsk_text text;
    tsk__bpe_range *ranges;       /* where the messages' own text is */
    size_t n_ranges, capacity;
    tsk_status status;            /* the first failure; afterwards nothing is written */
} tsk__template_writer;

static void tsk__template_put(tsk__template_writer *writer, const char *text) {
    if (writer->status == TSK_OK) writer->status = tsk_text_append(&writer->text, text, strlen(text));
}

/* Text of a message. */
static void tsk__template_put_own(tsk__template_writer *writer, const char *text, size_t size) {
    if (writer->status != TSK_OK || size == 0) return;
    if (!tsk__memory_reserve(writer->text.allocator, &writer->ranges, &writer->capacity, writer->n_ranges + 1,
                             sizeof *writer->ranges)) {
        writer->status = TSK_ERROR_MEMORY;
        return;
    }
    writer->ranges[writer->n_ranges].start = writer->text.length;
    writer->status = tsk_text_append(&writer->text, text, size);
    writer->ranges[writer->n_ranges++].end = writer->text.length;
}

/* As Python's str.strip sees it: Unicode's white space and the four information separators. */
static int tsk__template_is_space(const tsk_tokenizer *tokenizer, const char *text, size_t at, size_t *n) {
    uint32_t c;
    *n = tsk__unicode_next(text + at, &c);
    return (tsk__unicode_property(&tokenizer->unicode, c) & TSK__UNICODE_KIND) == TSK__UNICODE_SPACE ||
           (c >= 0x1c && c <= 0x1f);
}

static void tsk__template_put_trimmed(tsk__template_writer *writer, const tsk_tokenizer *tokenizer, const char *text) {
    size_t n, start = 0, end = strlen(text);
    while (start < end && tsk__template_is_space(tokenizer, text, start, &n)) start += n;
    while (end > start && tsk__template_is_space(tokenizer, text, tsk__unicode_before(text, end), &n)) end -= n;
    tsk__template_put_own(writer, text + start, end - start);
}

static void tsk__template_headers(tsk__template_writer *writer, const tsk_tokenizer *tokenizer,
                                  const tsk_message *messages, size_t count) {
    size_t i;
    for (i = 0; i < count; i++) {
        if (i == 0) tsk__template_put(writer, tokenizer->bos.data);
        tsk__template_put(writer, "<|start_header_id|>");
        tsk__template_put_own(writer, messages[i].role, strlen(messages[i].role));
        tsk__template_put(writer, "<|end_header_id|>\n\n");
        tsk__template_put_trimmed(writer, tokenizer, messages[i].content);
        tsk__template_put(writer, "<|eot_id|>");
    }
    tsk__template_put(writer, "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

static void tsk__template_chatml(tsk__template_writer *writer, const tsk_tokenizer *tokenizer,
                                 const tsk_message *messages, size_t count) {
    size_t i;
    if (tokenizer->template_system && count && strcmp(messages[0].role, "system") != 0) {
        tsk__template_put(writer, "<|im_start|>system\n");
        tsk__template_put(writer, tokenizer->template_system);
        tsk__template_put(writer, "<|im_end|>\n");
    }
    for (i = 0; i < count; i++) {
        tsk__template_put(writer, "<|im_start|>");
        tsk__template_put_own(writer, messages[i].role, strlen(messages[i].role));
        tsk__template_put(writer, "\n");
        tsk__template_put_own(writer, messages[i].content, strlen(messages[i].content));
        tsk__template_put(writer, "<|im_end|>\n");
    }
    tsk__template_put(writer, "<|im_start|>assistant\n");
}

/* The last question, before which an assistant's thoughts are left out: the last message of the user that is not a
   tool's answer. */
static size_t tsk__template_last_query(const tsk_message *messages, size_t count) {
    static const char head[] = "<tool_response>", tail[] = "</tool_response>";
    size_t i;
    for (i = count; i > 0; i--) {
        const char *content = messages[i - 1].content;
        size_t length = strlen(content);
        int is_tool = strncmp(content, head, sizeof head - 1) == 0 && length >= sizeof tail - 1 &&
                      strcmp(content + length - (sizeof tail - 1), tail) == 0;
        if (strcmp(messages[i - 1].role, "user") == 0 && !is_tool) return i - 1;
    }
    return count - 1;
}

/* Splits "<think>thoughts</think>answer" as the templates do: the thoughts are what stands before the first </think>,
   after the last <think> in it; the answer what follows the last </think>. */
static void tsk__template_split(const char *content, const char **thoughts, size_t *n_thoughts, const char **answer) {
    const char *end = strstr(content, "</think>"), *start = content, *next;
    *answer = content;
    *thoughts = content;
    *n_thoughts = 0;
    if (!end) return;
    for (next = end; next; next = strstr(*answer, "</think>")) *answer = next + 8;
    while (**answer == '\n') ++*answer;
    while (end > start && end[-1] == '\n') end--;
    for (next = strstr(start, "<think>"); next && next + 7 <= end; next = strstr(start, "<think>")) start = next + 7;
    while (start < end && *start == '\n') start++;
    *thoughts = start;
    *n_thoughts = (size_t)(end - start);
}

/* An assistant's message. Thoughts appear only after the last query, and then if there are any or if `always`; `plain`
   goes before an answer without. */
static void tsk__template_answer(tsk__template_writer *writer, const char *content, int is_after_query, int always,
                                 const char *plain) {
    const char *thoughts, *answer;
    size_t n;
    tsk__template_split(content, &thoughts, &n, &answer);
    if (is_after_query && (n || always)) {
        tsk__template_put(writer, "\n<think>\n");
        tsk__template_put_own(writer, thoughts, n);
        tsk__template_put(writer, "\n</think>\n\n");
        while (*answer == '\n') answer++;
    } else {
        tsk__template_put(writer, plain);
    }
    tsk__template_put_own(writer, answer, strlen(answer));
}

/* `thinking` 0 ends the thoughts before they begin. */
static void tsk__template_qwen3(tsk__template_writer *writer, const tsk_message *messages, size_t count, int thinking) {
    size_t i, last_query = tsk__template_last_query(messages, count);
    for (i = 0; i < count; i++) {
        tsk__template_put(writer, "<|im_start|>");
        tsk__template_put(writer, messages[i].role);
        if (strcmp(messages[i].role, "assistant") == 0) {
            tsk__template_answer(writer, messages[i].content, i > last_query, i + 1 == count, "\n");
        } else {
            tsk__template_put(writer, "\n");
            tsk__template_put_own(writer, messages[i].content, strlen(messages[i].content));
        }
        tsk__template_put(writer, "<|im_end|>\n");
    }
    tsk__template_put(writer, "<|im_start|>assistant\n");
    if (thinking == 0) tsk__template_put(writer, "<think>\n\n</think>\n\n");
}

static void tsk__template_roles(tsk__template_writer *writer, const tsk_message *messages, size_t count) {
    size_t i = 0, last_query = tsk__template_last_query(messages, count);
    tsk__template_put(writer, "<role>SYSTEM</role>");
    if (strcmp(messages[0].role, "system") == 0) {
        tsk__template_put_own(writer, messages[0].content, strlen(messages[0].content));
        tsk__template_put(writer, "\n");
        i = 1;
    }
    tsk__template_put(writer, "detailed thinking off<|role_end|>");
    for (; i < count; i++) {
        if (strcmp(messages[i].role, "assistant") == 0) {
            tsk__template_put(writer, "<role>ASSISTANT</role>");
            tsk__template_answer(writer, messages[i].content, i > last_query, 0, "");
        } else {
            tsk__template_put(writer,
                              strcmp(messages[i].role, "user") == 0 ? "<role>HUMAN</role>" : "<role>SYSTEM</role>");
            tsk__template_put_own(writer, messages[i].content, strlen(messages[i].content));
        }
        tsk__template_put(writer, "<|role_end|>");
    }
    tsk__template_put(writer, "<role>ASSISTANT</role>");
}

static tsk_status tsk__template_check_message(const tsk_tokenizer *tokenizer, const tsk_message *message, size_t number,
                                              tsk_error *error) {
    const char *const texts[] = {message->role, message->content};
    size_t i;
    for (i = 0; i < 2; i++) {
        size_t length = texts[i] ? strlen(texts[i]) : 0,
               invalid = texts[i] ? tsk__unicode_invalid(texts[i], length) : 0;
        if (!texts[i])
            return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "message %lu has no %s",
                                  (unsigned long)number, i ? "content" : "role");
        if (invalid < length)
            return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, invalid,
                                  "the %s of message %lu is not UTF-8 at byte %llu", i ? "content" : "role",
                                  (unsigned long)number, (unsigned long long)invalid);
    }
    /* The others treat a fourth role as a tool or drop it. */
    if (tokenizer->template_kind == TSK__TEMPLATE_HEADERS || strcmp(message->role, "system") == 0 ||
        strcmp(message->role, "user") == 0 || strcmp(message->role, "assistant") == 0)
        return TSK_OK;
    return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                          "message %lu has the role '%.40s', not system, user or assistant", (unsigned long)number,
                          message->role);
}

static tsk_status tsk__template_check(const tsk_tokenizer *tokenizer, const tsk_message *messages, size_t count,
                                      tsk_error *error) {
    const char *file;
    tsk_status status = TSK_OK;
    size_t i;
    if (!tokenizer) return tsk__bpe_no_tokenizer(error);
    if (!messages && count)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "the messages are NULL");
    file = tokenizer->template_file.data;
    if (tokenizer->template_kind == TSK__TEMPLATE_NONE)
        return tsk__error_set(
            error, TSK_ERROR_TEMPLATE, NULL, TSK_NO_OFFSET,
            "the tokenizer has no chat template: neither a chat_template.jinja nor one in tokenizer_config.json");
    if (tokenizer->template_kind == TSK__TEMPLATE_UNKNOWN)
        return tsk__error_set(error, TSK_ERROR_TEMPLATE, file, TSK_NO_OFFSET,
                              "the chat template in '%s' (%llu bytes, FNV-1a %016llx) is none of those known: LLaDA, "
                              "LLaDA 2, Dream, Qwen 1.5 to 3, ChatML, Llama 3",
                              tsk__error_path(file), (unsigned long long)tokenizer->template_length,
                              (unsigned long long)tokenizer->template_hash);
    if (tokenizer->template_kind == TSK__TEMPLATE_HEADERS && count && tokenizer->bos.length == 0)
        return tsk__error_set(error, TSK_ERROR_TEMPLATE, file, TSK_NO_OFFSET,
                              "the chat template in '%s' needs a bos_token, which tokenizer_config.json lacks",
                              tsk__error_path(file));
    if (count == 0 && tokenizer->template_kind != TSK__TEMPLATE_HEADERS)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "there are no messages to render");
    for (i = 0; i < count && status == TSK_OK; i++)
        status = tsk__template_check_message(tokenizer, &messages[i], i, error);
    return status;
}

/* The writer is to be freed by the caller in any case. */
static tsk_status tsk__template_render(const tsk_tokenizer *tokenizer, const tsk_message *messages, size_t count,
                                       int thinking, tsk__template_writer *writer, tsk_error *error) {
    tsk_status status = tsk__template_check(tokenizer, messages, count, error);
    if (status != TSK_OK) return status;
    if (thinking != TSK_AUTO && tokenizer->template_kind != TSK__TEMPLATE_QWEN3)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, tokenizer->template_file.data, TSK_NO_OFFSET,
                              "the chat template in '%s' has no switch for thinking",
                              tsk__error_path(tokenizer->template_file.data));
    switch (tokenizer->template_kind) {
        case TSK__TEMPLATE_HEADERS: tsk__template_headers(writer, tokenizer, messages, count); break;
        case TSK__TEMPLATE_CHATML: tsk__template_chatml(writer, tokenizer, messages, count); break;
        case TSK__TEMPLATE_QWEN3: tsk__template_qwen3(writer, messages, count, thinking); break;
        default: tsk__template_roles(writer, messages, count); break;
    }
    return writer->status == TSK_OK ? TSK_OK : tsk__error_memory(error, "a rendered conversation", writer->text.length);
}

static void tsk__template_writer_free(tsk__template_writer *writer) {
    tsk__memory_delete(writer->text.allocator, writer->ranges);
    tsk_text_free(&writer->text);
}

tsk_chat_options tsk_chat_options_default(void) {
    tsk_chat_options o;
    o.special_in_text = 0;
    o.thinking = TSK_AUTO;
    return o;
}

static tsk_status tsk__template_check_options(const tsk_chat_options *o, tsk_error *error) {
    if (o->thinking == TSK_AUTO || o->thinking == 0 || o->thinking == 1) return TSK_OK;
    return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "thinking must be 0, 1 or TSK_AUTO, not %d",
                          o->thinking);
}

tsk_status tsk_chat_render(const tsk_tokenizer *tokenizer, const tsk_message *messages, size_t count, tsk_text *out,
                           tsk_error *error) {
    if (!out) return tsk__error_null(error, "tsk_chat_render", "out");
    return tsk_chat_render_with(tokenizer, messages, count, NULL, out, error);
}

tsk_status tsk_chat_render_with(const tsk_tokenizer *tokenizer, const tsk_message *messages, size_t count,
                                const tsk_chat_options *options, tsk_text *out, tsk_error *error) {
    tsk_chat_options o = options ? *options : tsk_chat_options_default();
    tsk__template_writer writer;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_chat_render_with", "out");
    status = tsk__template_check_options(&o, error);
    if (status != TSK_OK) return status;
    memset(&writer, 0, sizeof writer);
    writer.text.allocator = out->allocator;
    status = tsk__template_render(tokenizer, messages, count, o.thinking, &writer, error);
    if (status == TSK_OK && tsk_text_append(out, writer.text.data, writer.text.length) != TSK_OK)
        status = tsk__error_memory(error, "a rendered conversation", writer.text.length);
    tsk__template_writer_free(&writer);
    return status;
}

tsk_status tsk_chat_encode(const tsk_tokenizer *tokenizer, const tsk_message *messages, size_t count,
                           int special_in_text, tsk_tokens *out, tsk_error *error) {
    tsk_chat_options o = tsk_chat_options_default();
    o.special_in_text = special_in_text;
    if (!out) return tsk__error_null(error, "tsk_chat_encode", "out");
    return tsk_chat_encode_with(tokenizer, messages, count, &o, out, error);
}

tsk_status tsk_chat_encode_with(const tsk_tokenizer *tokenizer, const tsk_message *messages, size_t count,
                                const tsk_chat_options *options, tsk_tokens *out, tsk_error *error) {
    tsk_chat_options o = options ? *options : tsk_chat_options_default();
    tsk__template_writer writer;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_chat_encode_with", "out");
    status = tsk__template_check_options(&o, error);
    if (status != TSK_OK) return status;
    memset(&writer, 0, sizeof writer);
    writer.text.allocator = out->allocator;
    status = tsk__template_render(tokenizer, messages, count, o.thinking, &writer, error);
    if (status == TSK_OK)
        status = tsk__bpe_encode(tokenizer, writer.text.data, writer.text.length, 0, writer.ranges,
                                 o.special_in_text ? 0 : writer.n_ranges, out, error);
    tsk__template_writer_free(&writer);
    return status;
}

int32_t tsk_chat_end_of_turn(const tsk_tokenizer *tokenizer) {
    if (!tokenizer) return -1;
    switch (tokenizer->template_kind) {
        case TSK__TEMPLATE_HEADERS: return tsk_tokenizer_id(tokenizer, "<|eot_id|>");
        case TSK__TEMPLATE_CHATML:
        case TSK__TEMPLATE_QWEN3: return tsk_tokenizer_id(tokenizer, "<|im_end|>");
        case TSK__TEMPLATE_ROLES: return tsk_tokenizer_id(tokenizer, "<|role_end|>");
        default: return -1;
    }
}

#endif /* SECTION_GUARD_TEMPLATE */
