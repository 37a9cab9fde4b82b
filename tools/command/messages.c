#include "messages.h"

/* A member that must be a string without NUL bytes, since the library takes C strings here. */
static const char *string_member(const tsk_json_value *object, const char *key) {
    size_t length;
    const char *text = tsk_json_string(tsk_json_get(object, key), &length);
    return text && strlen(text) == length ? text : NULL;
}

static int fail_at(const char *name, size_t number, const tsk_json_value *value, const char *what) {
    return cli_fail("%s: message %zu %s (at byte %llu)", name, number, what,
                    (unsigned long long)tsk_json_offset(value));
}

static int check_part(const char *name, size_t number, const tsk_json_value *part) {
    const char *type = string_member(part, "type");
    char what[160];
    if (!type) return fail_at(name, number, part, "has a part of \"content\" without a \"type\"");
    if (strcmp(type, "text") == 0 && string_member(part, "text")) return CLI_OK;
    if (strcmp(type, "text") == 0)
        return fail_at(name, number, part, "has a part that lacks \"text\" as a string without NUL bytes");
    snprintf(what, sizeof what, "has a part of type \"%.60s\", but the model reads text only", type);
    return fail_at(name, number, part, what);
}

static int join_parts(const char *name, size_t number, const tsk_json_value *parts, char **out) {
    const tsk_json_value *part;
    size_t size = 1, length;
    char *to;
    for (part = tsk_json_first(parts); part; part = tsk_json_next(part)) {
        if (check_part(name, number, part) != CLI_OK) return CLI_FAILED;
        tsk_json_string(tsk_json_get(part, "text"), &length);
        size += length;
    }
    to = *out = (char *)cli_allocate(size, 1);
    for (part = tsk_json_first(parts); part; part = tsk_json_next(part)) {
        const char *text = tsk_json_string(tsk_json_get(part, "text"), &length);
        memcpy(to, text, length);
        to += length;
    }
    return CLI_OK;
}

static int read_message(message_list *list, const char *name, const tsk_json_value *value) {
    const tsk_json_value *content = tsk_json_get(value, "content");
    size_t number = list->count;
    tsk_message *message = &list->items[number];
    char **joined = &list->joined[list->count++];
    message->role = string_member(value, "role");
    message->content = string_member(value, "content");
    if (message->role && tsk_json_type_of(content) == TSK_JSON_ARRAY) {
        if (join_parts(name, number, content, joined) != CLI_OK) return CLI_FAILED;
        message->content = *joined;
    }
    if (message->role && message->content) return CLI_OK;
    return fail_at(name, number, value, "lacks \"role\" or \"content\" as a string without NUL bytes");
}

int messages_read(message_list *out, const char *name, const tsk_json_value *array) {
    const tsk_json_value *element;
    int status = CLI_OK;
    memset(out, 0, sizeof *out);
    if (tsk_json_type_of(array) != TSK_JSON_ARRAY) return cli_fail("%s: an array of messages was expected", name);
    out->items = (tsk_message *)cli_allocate(tsk_json_count(array), sizeof *out->items);
    out->joined = (char **)cli_allocate(tsk_json_count(array), sizeof *out->joined);
    for (element = tsk_json_first(array); element && status == CLI_OK; element = tsk_json_next(element))
        status = read_message(out, name, element);
    return status;
}

void messages_free(message_list *list) {
    size_t i;
    for (i = 0; i < list->count; i++) free(list->joined[i]);
    free(list->joined);
    free(list->items);
    memset(list, 0, sizeof *list);
}
