/* --html: the page of trace_page.html with the trace's JSON in it. */
#include "output.h"
#include "trace.h"

static const char *const page[] = {
#include "trace_page.h"
};

/* The line of the page that stands for the data. */
static const char data_line[] = "@DATA@\n";

static int is_new(const int32_t *ids, size_t n, int32_t id) {
    size_t i;
    for (i = 0; i < n; i++)
        if (ids[i] == id) return 0;
    return 1;
}

static void add_ids(tsk_tokens *all, const int32_t *ids, size_t n) {
    size_t i;
    for (i = 0; i < n; i++)
        if (ids[i] >= 0 && is_new(all->ids, all->count, ids[i]) && tsk_tokens_append(all, &ids[i], 1) != TSK_OK)
            exit(cli_fail("out of memory"));
}

static void add_generation(tsk_tokens *all, const generation_log *log) {
    size_t i;
    for (i = 0; i < log->count; i++) {
        add_ids(all, log->steps[i].predictions, (size_t)log->steps[i].n_positions);
        if (log->steps[i].shadow)
            add_ids(all, log->steps[i].shadow->full_predictions, (size_t)log->steps[i].n_positions);
    }
    add_ids(all, log->canvas, (size_t)log->canvas_length);
}

/* A token may be part of a character: then the page gets its bytes, as the vocabulary writes them, to put together. */
static void write_token(const trace *t, tsk_json_writer *json, int32_t id) {
    tsk_text text = {0};
    size_t length = 0;
    const char *token = tsk_tokenizer_token(t->engine->tokenizer, id, &length);
    if (tsk_tokenizer_decode(t->engine->tokenizer, &id, 1, 0, &text, NULL) != TSK_OK) tsk_json_write_null(json);
    else if (text.data && token && strstr(text.data, "\xEF\xBF\xBD")) {
        tsk_json_begin_object(json);
        tsk_json_write_key(json, "bytes");
        tsk_json_write_string(json, token, length);
        tsk_json_end_object(json);
    } else tsk_json_write_string(json, text.data ? text.data : "", text.length);
    tsk_text_free(&text);
}

/* {"id": "text"} of every id that the page may show. */
static void write_texts(const trace *t, tsk_json_writer *json) {
    tsk_tokens ids = {0};
    int32_t i;
    add_ids(&ids, t->prompt->ids, (size_t)t->prompt->count);
    add_generation(&ids, &t->baseline);
    add_generation(&ids, &t->skip);
    tsk_json_begin_object(json);
    for (i = 0; t->engine->tokenizer && i < ids.count; i++) {
        char key[16];
        snprintf(key, sizeof key, "%d", (int)ids.ids[i]);
        tsk_json_write_key(json, key);
        write_token(t, json, ids.ids[i]);
    }
    tsk_json_end_object(json);
    tsk_tokens_free(&ids);
}

/* JSON inside a script element: a token's text may hold "</script>". '<' stands only inside strings there. */
static void append_escaped(tsk_text *out, const tsk_text *json) {
    size_t i, start = 0;
    for (i = 0; i < json->length; i++) {
        if (json->data[i] != '<') continue;
        cli_append_bytes(out, json->data + start, i - start);
        cli_append(out, "\\u003c");
        start = i + 1;
    }
    cli_append_bytes(out, json->data + start, json->length - start);
}

static void append_data(const trace *t, tsk_text *out) {
    tsk_text text = {0};
    tsk_json_writer json = {0};
    json.out = &text;
    tsk_json_begin_object(&json);
    tsk_json_write_key(&json, "trace");
    trace_json(t, &json);
    tsk_json_write_key(&json, "texts");
    write_texts(t, &json);
    tsk_json_end_object(&json);
    if (json.status != TSK_OK) exit(cli_fail("out of memory"));
    append_escaped(out, &text);
    tsk_text_free(&text);
}

int trace_html(const trace *t, const char *path) {
    tsk_text out = {0};
    size_t i;
    int status;
    for (i = 0; i < sizeof page / sizeof page[0]; i++) {
        if (strcmp(page[i], data_line) == 0) append_data(t, &out);
        else cli_append_bytes(&out, page[i], strlen(page[i]));
    }
    status = output_write(path, out.data, out.length);
    tsk_text_free(&out);
    return status;
}
