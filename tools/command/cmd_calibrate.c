/* The fastest settings within an error budget. */
#include "output.h"
#include "tuning.h"

#include <math.h>

/* What few questions may have done by chance. */
static double slack(const tuned *s) { return s->e.done ? 0.5 / sqrt((double)s->e.done) : 1; }

static int is_allowed(const tuning *t, const tuned *s, double more) {
    return tuned_error(t, s) <= (double)t->settings->max_error + more + 1e-9;
}

/* Those that may keep within the budget, the fastest first; then the others, by their errors. */
static int order(const tuning *t, const tuned *a, const tuned *b) {
    int a_may = is_allowed(t, a, slack(a)), b_may = is_allowed(t, b, slack(b));
    double d;
    if (a_may != b_may) return a_may ? -1 : 1;
    d = a_may ? tuned_time(a) - tuned_time(b) : tuned_error(t, a) - tuned_error(t, b);
    return (d > 0) - (d < 0);
}

/* The fastest of those that came to the end and keep within the budget; else the plain dual cache. */
static const tuned *best_of(const tuning *t) {
    const tuned *best = &t->plain;
    size_t i;
    for (i = 0; i < t->n_tried; i++) {
        const tuned *s = &t->tried[i];
        if (s->is_alive && s->e.done >= t->n_asked && is_allowed(t, s, 0) && tuned_time(s) < tuned_time(best)) best = s;
    }
    return best;
}

static const char *options_of(const tuning *t, const tuned *s) {
    return s == &t->plain ? "--skip-rule off --refresh full" : s->options;
}

static int print_json(const tuning *t, const tuned *best) {
    tsk_text out = {0};
    tsk_json_writer json = {0};
    int status;
    json.out = &out;
    tsk_json_begin_object(&json);
    cli_json_string(&json, "options", options_of(t, best));
    cli_json_double(&json, "max_error", (double)t->settings->max_error);
    cli_json_double(&json, "error", tuned_error(t, best));
    cli_json_double(&json, "time", tuned_time(best));
    tuning_json(t, &json);
    tsk_json_end_object(&json);
    status = cli_json_print(&json);
    tsk_text_free(&out);
    return status;
}

static int print_plain(const tuning *t, const tuned *best) {
    tsk_text out = {0};
    int status;
    cli_append(&out, "%s\n\n", options_of(t, best));
    tuning_table(t, &out);
    if (best == &t->plain)
        cli_append(&out, "none is faster than the plain dual cache with an error of %g at most\n",
                   (double)t->settings->max_error);
    status = cli_write(out.data, out.length);
    tsk_text_free(&out);
    return status;
}

static int save(const tuning *t, const tuned *best) {
    tsk_text out = {0};
    int status;
    cli_append(&out,
               "# tokenskip calibrate: time %.2f of the plain dual cache's, error %.4f (at most %g) on %zu questions\n"
               "%s\n",
               tuned_time(best), tuned_error(t, best), (double)t->settings->max_error, t->n_asked, options_of(t, best));
    status = output_write(t->settings->save, out.data, out.length);
    tsk_text_free(&out);
    return status;
}

static int check(const cli_settings *settings) {
    const char *save = settings->save, *svg = settings->svg;
    int status;
    if (settings->generate.cache != TSK_CACHE_DUAL)
        return cli_usage_error("calibrate needs --cache dual: TokenSkip lives in its block steps");
    status = output_check_apart("--save", save, "--svg", svg);
    if (status == CLI_OK) status = output_check_apart("--save", save, "--data", settings->data);
    if (status == CLI_OK) status = output_check_apart("--svg", svg, "--data", settings->data);
    if (status != CLI_OK) return status;
    if (save && output_check(save) != CLI_OK) return CLI_FAILED;
    if (svg && output_check(svg) != CLI_OK) return CLI_FAILED;
    return CLI_OK;
}

int cmd_calibrate(cli_settings *settings) {
    cli_engine engine = {0};
    tuning t;
    int status = check(settings);
    if (status != CLI_OK) return status;
    cli_catch_interrupts();
    status = tuning_run(&t, &engine, settings, order);
    if (status == CLI_OK) {
        const tuned *best = best_of(&t);
        /* files first: what is printed stands for a search that is complete */
        if (settings->save) status = save(&t, best);
        if (status == CLI_OK && settings->svg)
            status = tuning_picture(&t, settings->svg, "TokenSkip: settings within an error budget");
        if (status == CLI_OK) status = settings->json ? print_json(&t, best) : print_plain(&t, best);
    }
    tuning_free(&t);
    cli_engine_free(&engine);
    return status;
}
