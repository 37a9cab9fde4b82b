#include "questions.h"

#include <ctype.h>

enum { MAX_DATA = 1 << 30 };

/* ---- Data ------------------------------------------------------------------------------------------------------- */

static int read_question(question *q, const char *path, size_t number, const char *line, size_t length,
                         int needs_answer) {
    tsk_error error = {0};
    const tsk_json_value *root;
    char where[512];
    q->line = number;
    snprintf(where, sizeof where, "%s, line %zu", path, number);
    if (tsk_json_parse(line, length, NULL, NULL, &q->document, &error) != TSK_OK) {
        cli_fail_with(&error, where);
        return CLI_FAILED;
    }
    root = tsk_json_root(q->document);
    q->prompt = tsk_json_string(tsk_json_get(root, "prompt"), &q->prompt_length);
    q->answer = tsk_json_string(tsk_json_get(root, "answer"), &q->answer_length);
    q->kind = tsk_json_string(tsk_json_get(root, "kind"), NULL);
    if (!q->prompt) return cli_fail("%s: no string \"prompt\"", where);
    if (needs_answer && (!q->answer || !q->answer_length))
        return cli_fail("%s: no string \"answer\", or an empty one", where);
    if (!q->kind && tsk_json_get(root, "kind")) return cli_fail("%s: \"kind\" is not a string", where);
    return CLI_OK;
}

static int read_questions(question_list *out, const char *path, const tsk_text *data, int needs_answers) {
    const char *line;
    size_t offset = 0, length, lines = 0, number = 0;
    int status = CLI_OK;
    while (cli_next_line(data, &offset, &line, &length)) lines++;
    out->items = (question *)cli_allocate(lines, sizeof *out->items);
    offset = 0;
    while (status == CLI_OK && cli_next_line(data, &offset, &line, &length)) {
        if (cli_interrupted()) return cli_fail("interrupted while reading %s", path);
        number++;
        if (length == 0 || (length == 1 && line[0] == '\r')) continue;
        status = read_question(&out->items[out->count++], path, number, line, length, needs_answers);
    }
    if (status == CLI_OK && !out->count) return cli_fail("%s: no questions in it", path);
    return status;
}

/* Keeps so many, from all over the file: questions of a kind tend to stand together. */
static void thin_out(question_list *q, size_t wanted) {
    size_t i, kept = 0;
    for (i = 0; i < q->count; i++) {
        if (kept < wanted && i == kept * q->count / wanted) q->items[kept++] = q->items[i];
        else tsk_json_free(q->items[i].document);
    }
    q->count = kept;
}

int questions_load(question_list *out, const char *path, int32_t limit, int needs_answers) {
    tsk_text data = {0};
    int status = cli_read_file(path, MAX_DATA, &data);
    if (status == CLI_OK) status = read_questions(out, cli_file_name(path), &data, needs_answers);
    tsk_text_free(&data);
    if (limit > 0 && out->count > (size_t)limit) thin_out(out, (size_t)limit);
    return status;
}

void questions_free(question_list *q) {
    size_t i;
    for (i = 0; i < q->count; i++) tsk_json_free(q->items[i].document);
    free(q->items);
    memset(q, 0, sizeof *q);
}

/* ---- Judging ---------------------------------------------------------------------------------------------------- */

tally *evaluation_kind(evaluation *e, const char *kind) {
    size_t i;
    for (i = 0; i < e->n_kinds; i++)
        if (strcmp(e->kinds[i].kind, kind) == 0) return &e->kinds[i];
    e->kinds = (tally *)cli_reallocate(e->kinds, e->n_kinds + 1, sizeof *e->kinds);
    memset(&e->kinds[e->n_kinds], 0, sizeof *e->kinds);
    e->kinds[e->n_kinds].kind = kind;
    return &e->kinds[e->n_kinds++];
}

/* The text, trimmed, ends with the answer, which stands alone: "is 42." against "2" must not count, nor "-42" or "1.42"
   against "42". */
static int is_right(const char *text, size_t length, const char *answer, size_t answer_length) {
    unsigned char before;
    while (length && isspace((unsigned char)text[length - 1])) length--;
    while (length && isspace((unsigned char)text[0])) {
        text++;
        length--;
    }
    if (length < answer_length || memcmp(text + length - answer_length, answer, answer_length) != 0) return 0;
    if (length == answer_length) return 1;
    before = (unsigned char)text[length - answer_length - 1];
    return isspace(before) || (ispunct(before) && before != '-' && before != '.');
}

static void count(evaluation *e, const cli_engine *engine, const question *q, const judged_answer *a) {
    const tsk_result *result = &a->result;
    size_t right = (size_t)a->is_right;
    e->done++;
    e->right += right;
    if (q->kind) {
        tally *kind = evaluation_kind(e, q->kind);
        kind->n++;
        kind->right += right;
    }
    e->nfe += result->nfe;
    e->refreshes += result->refreshes;
    e->rows += result->rows;
    e->tokens += cli_count_tokens(engine, result);
    e->milliseconds += result->total_ms;
    e->computed += result->token_layers_computed;
    e->total += result->token_layers_total;
}

static int judge(judged_answer *a, const cli_engine *engine, const question *q) {
    tsk_text text = {0};
    int status = cli_result_text(engine, &a->result, &text);
    if (status == CLI_OK && q->answer)
        a->is_right = is_right(text.data ? text.data : "", text.length, q->answer, q->answer_length);
    tsk_text_free(&text);
    return status;
}

int evaluation_ask(evaluation *e, const cli_engine *engine, const cli_settings *settings, const question *q,
                   judged_answer *out) {
    tsk_tokens prompt = {0};
    tsk_error error = {0};
    char where[512];
    double cpu_start;
    int status;
    memset(out, 0, sizeof *out);
    snprintf(where, sizeof where, "%s, line %zu", settings->data, q->line);
    status = cli_encode_prompt(engine, settings, q->prompt, q->prompt_length, where, &prompt);
    cpu_start = cli_cpu_ms();
    if (status == CLI_OK &&
        tsk_generate(engine->session, prompt.ids, prompt.count, NULL, &out->result, &error) != TSK_OK)
        status = cli_fail_with(&error, where);
    e->cpu_ms += cli_cpu_ms() - cpu_start;
    tsk_tokens_free(&prompt);
    if (status != CLI_OK || out->result.finish_reason == TSK_FINISH_CANCELLED) return status;
    status = judge(out, engine, q);
    if (status == CLI_OK) count(e, engine, q, out);
    return status;
}

int evaluation_interrupted(const evaluation *e) {
    return cli_fail("interrupted after %zu of %zu questions: nothing is printed or written", e->done, e->asked);
}

static void show_progress(const evaluation *e, const char *label) {
    char tail[128];
    double done = (double)e->done, left = e->milliseconds / 1e3 / done * (double)(e->asked - e->done);
    if (!e->done) snprintf(tail, sizeof tail, "0/%zu", e->asked);
    else
        snprintf(tail, sizeof tail, "%zu/%zu, %.1f%% right, %.0f s left", e->done, e->asked,
                 100.0 * (double)e->right / done, left);
    cli_progress(label, done / (double)e->asked, tail);
}

int evaluation_open(evaluation *e, cli_engine *engine, const cli_settings *settings, size_t n_questions) {
    e->asked = n_questions;
    return cli_open_session(engine, settings);
}

int evaluate(evaluation *e, cli_engine *engine, const cli_settings *settings, const question_list *questions,
             const char *label) {
    size_t i;
    int status = evaluation_open(e, engine, settings, questions->count);
    show_progress(e, label);
    for (i = 0; i < questions->count && status == CLI_OK; i++) {
        judged_answer a;
        status = evaluation_ask(e, engine, settings, &questions->items[i], &a);
        if (status == CLI_OK && a.result.finish_reason == TSK_FINISH_CANCELLED) status = evaluation_interrupted(e);
        if (status == CLI_OK) show_progress(e, label);
    }
    cli_progress_clear();
    return status;
}

void evaluation_free(evaluation *e) {
    free(e->kinds);
    memset(e, 0, sizeof *e);
}
