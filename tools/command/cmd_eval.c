/* How many answers are right, under one set of options or two, of one model or two. */
#include "comparison.h"
#include "statistics.h"

static double ratio(double a, double b) { return b > 0 ? a / b : 0; }
static double percent(size_t part, size_t all) { return 100 * ratio((double)part, (double)all); }

/* ---- JSON ------------------------------------------------------------------------------------------------------- */

static void write_interval(tsk_json_writer *json, const char *key, interval i) {
    tsk_json_write_key(json, key);
    tsk_json_begin_array(json);
    tsk_json_write_double(json, i.low);
    tsk_json_write_double(json, i.high);
    tsk_json_end_array(json);
}

static void write_evaluation(tsk_json_writer *json, const evaluation *e) {
    double n = (double)e->done;
    size_t i;
    cli_json_uint(json, "n", e->done);
    cli_json_double(json, "accuracy", ratio((double)e->right, n));
    write_interval(json, "accuracy_interval", statistics_share(e->right, e->done));
    tsk_json_write_key(json, "by_kind");
    tsk_json_begin_object(json);
    for (i = 0; i < e->n_kinds; i++)
        cli_json_double(json, e->kinds[i].kind, ratio((double)e->kinds[i].right, (double)e->kinds[i].n));
    tsk_json_end_object(json);
    cli_json_double(json, "mean_nfe", ratio(e->nfe, n));
    cli_json_double(json, "tokens_per_second", cli_tokens_per_second(e->tokens, e->milliseconds));
    cli_json_double(json, "seconds_per_answer", ratio(e->milliseconds / 1e3, n));
    cli_json_double(json, "mean_refreshes", ratio(e->refreshes, n));
    cli_json_double(json, "mean_rows", ratio((double)e->rows, n));
    cli_json_double(json, "cpu_seconds_per_answer", ratio(e->cpu_ms / 1e3, n));
    cli_json_uint(json, "token_layers_computed", e->computed);
    cli_json_uint(json, "token_layers_total", e->total);
}

static paired_counts pairs_of(const comparison *c) {
    paired_counts counts;
    counts.gained = c->gained;
    counts.lost = c->lost;
    counts.both = c->given.e.right - c->gained;
    counts.neither = c->given.e.done - counts.both - c->gained - c->lost;
    return counts;
}

static void write_pairs(tsk_json_writer *json, const comparison *c) {
    const evaluation *e = &c->given.e;
    paired_counts counts = pairs_of(c);
    size_t i;
    cli_json_uint(json, "n", e->done);
    cli_json_uint(json, "gained", c->gained);
    cli_json_uint(json, "lost", c->lost);
    cli_json_double(json, "difference", ratio((double)c->gained - (double)c->lost, (double)e->done));
    write_interval(json, "interval", statistics_difference(&counts));
    cli_json_double(json, "p", statistics_mcnemar(c->gained, c->lost));
    cli_json_uint(json, "identical", c->identical);
    cli_json_double(json, "seconds_ratio", ratio(e->milliseconds, c->against.e.milliseconds));
    tsk_json_write_key(json, "by_kind");
    tsk_json_begin_object(json);
    for (i = 0; i < e->n_kinds; i++) {
        tsk_json_write_key(json, e->kinds[i].kind);
        tsk_json_begin_object(json);
        cli_json_uint(json, "n", e->kinds[i].n);
        cli_json_uint(json, "gained", e->kinds[i].gained);
        cli_json_uint(json, "lost", e->kinds[i].lost);
        tsk_json_end_object(json);
    }
    tsk_json_end_object(json);
}

static void write_divergence(tsk_json_writer *json, const divergence *d) {
    double n = (double)d->positions;
    if (!d->prompts) return;
    tsk_json_write_key(json, "divergence");
    tsk_json_begin_object(json);
    cli_json_uint(json, "prompts", d->prompts);
    cli_json_uint(json, "positions", d->positions);
    cli_json_double(json, "mean_kl", ratio(d->kl, n));
    cli_json_double(json, "mean_logit_difference", ratio(d->differences, n));
    cli_json_double(json, "same_prediction", ratio((double)d->same_best, n));
    tsk_json_end_object(json);
}

/* `c`: NULL when nothing is compared. */
static int print_json(const evaluation *e, const comparison *c) {
    tsk_text out = {0};
    tsk_json_writer json = {0};
    int status;
    json.out = &out;
    tsk_json_begin_object(&json);
    write_evaluation(&json, e);
    if (c) {
        tsk_json_write_key(&json, "against");
        tsk_json_begin_object(&json);
        write_evaluation(&json, &c->against.e);
        tsk_json_end_object(&json);
        tsk_json_write_key(&json, "paired");
        tsk_json_begin_object(&json);
        write_pairs(&json, c);
        tsk_json_end_object(&json);
        write_divergence(&json, &c->divergence);
    }
    tsk_json_end_object(&json);
    status = cli_json_print(&json);
    tsk_text_free(&out);
    return status;
}

/* ---- Tables ----------------------------------------------------------------------------------------------------- */

static int print_text(tsk_text *out) {
    int status = cli_write(out->data, out->length);
    tsk_text_free(out);
    return status;
}

static int print_table(const evaluation *e) {
    tsk_text out = {0};
    double n = (double)e->done;
    size_t i;
    for (i = 0; i < e->n_kinds; i++) {
        const tally *kind = &e->kinds[i];
        cli_append(&out, "%-20.1000s %6.1f %%  %zu of %zu\n", kind->kind, percent(kind->right, kind->n), kind->right,
                   kind->n);
    }
    cli_append(&out, "%-20s %6.1f %%  %zu of %zu\n", "all", percent(e->right, e->done), e->right, e->done);
    cli_append(&out, "%.1f forward passes and %.3f s an answer, %.1f tokens/s\n", ratio(e->nfe, n),
               ratio(e->milliseconds / 1e3, n), cli_tokens_per_second(e->tokens, e->milliseconds));
    cli_append(&out, "%.1f refreshes, %.1f rows through all layers and %.3f s of processor time an answer\n",
               ratio(e->refreshes, n), ratio((double)e->rows, n), ratio(e->cpu_ms / 1e3, n));
    if (e->total)
        cli_append(&out, "%.1f %% of the block steps' token-layers computed\n",
                   100 * ratio((double)e->computed, (double)e->total));
    return print_text(&out);
}

static void append_row(tsk_text *out, const char *name, int decimals, const char *unit, double given, double against) {
    cli_append(out, "%-30s %12.*f%-2s %12.*f%s\n", name, decimals, given, unit, decimals, against, unit);
}

/* Some caches have no block steps. */
static void append_work(tsk_text *out, const evaluation *e) {
    if (e->total) cli_append(out, " %12.1f %%", 100 * ratio((double)e->computed, (double)e->total));
    else cli_append(out, " %14s", "none");
}

/* What each of the two did, beside each other. */
static void append_sides(tsk_text *out, const evaluation *a, const evaluation *b) {
    interval share_a = statistics_share(a->right, a->done), share_b = statistics_share(b->right, b->done);
    double n = (double)a->done;
    cli_append(out, "%-30s %14s %14s\n", "", "given", "against");
    append_row(out, "accuracy", 1, " %", percent(a->right, a->done), percent(b->right, b->done));
    append_row(out, "  95 % interval (Wilson): from", 1, " %", 100 * share_a.low, 100 * share_b.low);
    append_row(out, "                          to", 1, " %", 100 * share_a.high, 100 * share_b.high);
    append_row(out, "right", 0, "", (double)a->right, (double)b->right);
    append_row(out, "forward passes an answer", 1, "", ratio(a->nfe, n), ratio(b->nfe, n));
    append_row(out, "rows through all layers", 1, "", ratio((double)a->rows, n), ratio((double)b->rows, n));
    append_row(out, "refreshes", 1, "", ratio(a->refreshes, n), ratio(b->refreshes, n));
    append_row(out, "time", 3, " s", ratio(a->milliseconds / 1e3, n), ratio(b->milliseconds / 1e3, n));
    append_row(out, "processor time", 3, " s", ratio(a->cpu_ms / 1e3, n), ratio(b->cpu_ms / 1e3, n));
    cli_append(out, "%-30s", "token-layers of block steps");
    append_work(out, a);
    append_work(out, b);
    cli_append(out, "\n");
}

static void append_pairs(tsk_text *out, const comparison *c) {
    size_t n = c->given.e.done;
    paired_counts counts = pairs_of(c);
    interval difference = statistics_difference(&counts);
    cli_append(out, "\nOf %zu questions %zu gained, %zu lost: %+.1f points, 95 %% interval (Newcombe) %+.1f to %+.1f\n",
               n, c->gained, c->lost, 100 * ratio((double)c->gained - (double)c->lost, (double)n),
               100 * difference.low, 100 * difference.high);
    cli_append(out, "McNemar's exact test: p = %.3g\n", statistics_mcnemar(c->gained, c->lost));
    cli_append(out, "%zu of %zu answers identical, token for token\n", c->identical, n);
    cli_append(out, "%.2f times the time of the other settings\n",
               ratio(c->given.e.milliseconds, c->against.e.milliseconds));
}

static void append_divergence(tsk_text *out, const divergence *d) {
    double n = (double)d->positions;
    if (!d->prompts) return;
    cli_append(out, "\n%zu masked positions of %zu prompts, from the other model's logits to the given one's:\n",
               d->positions, d->prompts);
    cli_append(out,
               "mean KL divergence %.5f nats, mean |difference| of a logit %.4f, %.2f %% of predictions the same\n",
               ratio(d->kl, n), ratio(d->differences, n), 100 * ratio((double)d->same_best, n));
}

/* The kinds come in the same order on both sides. */
static void append_kinds(tsk_text *out, const evaluation *a, const evaluation *b) {
    size_t i;
    if (!a->n_kinds) return;
    cli_append(out, "\n%-20s %6s %10s %10s %8s %6s\n", "kind", "n", "given", "against", "gained", "lost");
    for (i = 0; i < a->n_kinds; i++) {
        const tally *kind = &a->kinds[i];
        cli_append(out, "%-20.1000s %6zu %8.1f %% %8.1f %% %8zu %6zu\n", kind->kind, kind->n,
                   percent(kind->right, kind->n), percent(b->kinds[i].right, b->kinds[i].n), kind->gained, kind->lost);
    }
}

static int print_comparison(const comparison *c) {
    tsk_text out = {0};
    append_sides(&out, &c->given.e, &c->against.e);
    append_pairs(&out, c);
    append_divergence(&out, &c->divergence);
    append_kinds(&out, &c->given.e, &c->against.e);
    return print_text(&out);
}

/* ---- The command ------------------------------------------------------------------------------------------------ */

static int run_alone(cli_engine *engine, const cli_settings *settings, const question_list *questions) {
    evaluation e;
    int status;
    memset(&e, 0, sizeof e);
    status = evaluate(&e, engine, settings, questions, "eval");
    if (status == CLI_OK) status = settings->json ? print_json(&e, NULL) : print_table(&e);
    evaluation_free(&e);
    return status;
}

/* The questions are the same to both models, ids included, as far as their sizes tell. */
static int check_models(const cli_engine *engine, const cli_engine *other, const char *dir) {
    const tsk_model_config *a = tsk_model_get_config(engine->model), *b = tsk_model_get_config(other->model);
    if (a->embedding_size == b->embedding_size && a->mask_token_id == b->mask_token_id) return CLI_OK;
    return cli_fail("%s has a vocabulary of %d and mask %d, the model of %d and mask %d: they cannot be compared", dir,
                    (int)b->embedding_size, (int)b->mask_token_id, (int)a->embedding_size, (int)a->mask_token_id);
}

static int run_against(comparison *c, const cli_engine *engine, const cli_engine *other,
                       const question_list *questions) {
    int status = comparison_run(c, engine, other, questions);
    if (status != CLI_OK) return status;
    return c->given.settings.json ? print_json(&c->given.e, c) : print_comparison(c);
}

static int run(const cli_settings *settings, comparison *c) {
    question_list questions = {0};
    cli_engine engine = {0}, other = {0};
    int status = questions_load(&questions, settings->data, settings->limit, 1);
    if (status == CLI_OK) status = cli_load_model(&engine, settings);
    if (status == CLI_OK && settings->against_model) status = cli_load_model(&other, &c->against.settings);
    if (status == CLI_OK && other.model) status = check_models(&engine, &other, settings->against_model);
    if (status == CLI_OK)
        status = c ? run_against(c, &engine, other.model ? &other : &engine, &questions)
                   : run_alone(&engine, settings, &questions);
    if (c) comparison_free(c); /* sessions go before their model */
    cli_engine_free(&engine);
    cli_engine_free(&other);
    questions_free(&questions);
    return status;
}

int cmd_eval(cli_settings *settings) {
    comparison c;
    int status = CLI_CONTINUE, is_compared = settings->against || settings->against_model;
    memset(&c, 0, sizeof c);
    if (is_compared) status = comparison_read(&c, settings);
    if (status == CLI_CONTINUE) {
        cli_catch_interrupts();
        status = run(settings, is_compared ? &c : NULL);
    }
    comparison_free(&c);
    return status;
}
