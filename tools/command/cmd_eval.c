#include "questions.h"

static double ratio(double a, double b) { return b > 0 ? a / b : 0; }

static int print_json(const evaluation *e) {
    tsk_text out = {0};
    tsk_json_writer json = {0};
    double n = (double)e->done;
    size_t i;
    int status;
    json.out = &out;
    tsk_json_begin_object(&json);
    cli_json_uint(&json, "n", e->done);
    cli_json_double(&json, "accuracy", ratio((double)e->right, n));
    tsk_json_write_key(&json, "by_kind");
    tsk_json_begin_object(&json);
    for (i = 0; i < e->n_kinds; i++)
        cli_json_double(&json, e->kinds[i].kind, ratio((double)e->kinds[i].right, (double)e->kinds[i].n));
    tsk_json_end_object(&json);
    cli_json_double(&json, "mean_nfe", ratio(e->nfe, n));
    cli_json_double(&json, "tokens_per_second", cli_tokens_per_second(e->tokens, e->milliseconds));
    cli_json_double(&json, "seconds_per_answer", ratio(e->milliseconds / 1e3, n));
    cli_json_double(&json, "mean_refreshes", ratio(e->refreshes, n));
    cli_json_double(&json, "mean_rows", ratio((double)e->rows, n));
    cli_json_double(&json, "cpu_seconds_per_answer", ratio(e->cpu_ms / 1e3, n));
    cli_json_uint(&json, "token_layers_computed", e->computed);
    cli_json_uint(&json, "token_layers_total", e->total);
    tsk_json_end_object(&json);
    status = cli_json_print(&json);
    tsk_text_free(&out);
    return status;
}

static int print_table(const evaluation *e) {
    tsk_text out = {0};
    double n = (double)e->done;
    size_t i;
    int status;
    for (i = 0; i < e->n_kinds; i++) {
        const tally *kind = &e->kinds[i];
        cli_append(&out, "%-20.1000s %6.1f %%  %zu of %zu\n", kind->kind,
                   100 * ratio((double)kind->right, (double)kind->n), kind->right, kind->n);
    }
    cli_append(&out, "%-20s %6.1f %%  %zu of %zu\n", "all", 100 * ratio((double)e->right, n), e->right, e->done);
    cli_append(&out, "%.1f forward passes and %.3f s an answer, %.1f tokens/s\n", ratio(e->nfe, n),
               ratio(e->milliseconds / 1e3, n), cli_tokens_per_second(e->tokens, e->milliseconds));
    cli_append(&out, "%.1f refreshes, %.1f rows through all layers and %.3f s of processor time an answer\n",
               ratio(e->refreshes, n), ratio((double)e->rows, n), ratio(e->cpu_ms / 1e3, n));
    if (e->total)
        cli_append(&out, "%.1f %% of the block steps' token-layers computed\n",
                   100 * ratio((double)e->computed, (double)e->total));
    status = cli_write(out.data, out.length);
    tsk_text_free(&out);
    return status;
}

int cmd_eval(cli_settings *settings) {
    evaluation e;
    question_list questions = {0};
    cli_engine engine = {0};
    int status;
    memset(&e, 0, sizeof e);
    cli_catch_interrupts();
    status = questions_load(&questions, settings->data, settings->limit, 1);
    if (status == CLI_OK) status = cli_load_model(&engine, settings);
    if (status == CLI_OK) status = evaluate(&e, &engine, settings, &questions, "eval");
    if (status == CLI_OK) status = settings->json ? print_json(&e) : print_table(&e);
    cli_engine_free(&engine);
    evaluation_free(&e);
    questions_free(&questions);
    return status;
}
