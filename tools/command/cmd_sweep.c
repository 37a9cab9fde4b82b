/* Accuracy against time over the settings of both rules, block starts and rules of commitment, as one picture. */
#include "output.h"
#include "tuning.h"

/* Settings that are both faster and better. */
static size_t betters(const tuning *t, const tuned *s) {
    size_t i, n = 0;
    for (i = 0; i < t->n_tried; i++) {
        const tuned *o = &t->tried[i];
        double time = tuned_time(o) - tuned_time(s), error = tuned_error(t, o) - tuned_error(t, s);
        n += o->is_alive && time <= 0 && error <= 0 && (time < 0 || error < 0);
    }
    return n;
}

static int order(const tuning *t, const tuned *a, const tuned *b) {
    size_t of_a = betters(t, a), of_b = betters(t, b);
    return (of_a > of_b) - (of_a < of_b);
}

static int print(const tuning *t) {
    tsk_text out = {0};
    tsk_json_writer json = {0};
    int status;
    json.out = &out;
    if (t->settings->json) {
        tsk_json_begin_object(&json);
        tuning_json(t, &json);
        tsk_json_end_object(&json);
        status = cli_json_print(&json);
    } else {
        tuning_table(t, &out);
        status = cli_write(out.data, out.length);
    }
    tsk_text_free(&out);
    return status;
}

int cmd_sweep(cli_settings *settings) {
    cli_engine engine = {0};
    tuning t;
    int status;
    if (settings->generate.cache != TSK_CACHE_DUAL)
        return cli_usage_error("sweep needs --cache dual: TokenSkip lives in its block steps");
    status = output_check_apart("--svg", settings->svg, "--data", settings->data);
    if (status != CLI_OK) return status;
    if (output_check(settings->svg) != CLI_OK) return CLI_FAILED;
    cli_catch_interrupts();
    status = tuning_run(&t, &engine, settings, order);
    if (status == CLI_OK) status = tuning_picture(&t, settings->svg, "TokenSkip: accuracy against time");
    if (status == CLI_OK) status = print(&t);
    tuning_free(&t);
    cli_engine_free(&engine);
    return status;
}
