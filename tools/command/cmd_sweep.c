/* Accuracy against time over TokenSkip's thresholds and policies, as one picture. */
#include "output.h"
#include "questions.h"

#include <math.h>

static const float thresholds[] = {0.99f, 0.95f, 0.9f, 0.8f, 0.6f};
enum { N_THRESHOLDS = sizeof thresholds / sizeof thresholds[0], N_SERIES = 8, N_RUNS = N_SERIES * N_THRESHOLDS };

typedef struct run {
    tsk_skip_policy policy;
    int skip_masked;
    tsk_skip_reference reference;
    float threshold;
    double accuracy, seconds, nfe;
    uint64_t computed, total;
} run;

typedef struct sweep {
    const cli_settings *settings;
    run baseline, runs[N_RUNS]; /* a series is N_THRESHOLDS runs beside each other */
    size_t n_questions;
} sweep;

static const char *policy_name(const run *r) { return r->policy == TSK_SKIP_EXIT ? "exit" : "reuse"; }
static const char *reference_name(const run *r) {
    return r->reference == TSK_SKIP_LAST_STEP ? "last-step" : "last-computed";
}

/* ---- Running ---------------------------------------------------------------------------------------------------- */

static int evaluate_run(run *r, cli_engine *engine, const cli_settings *settings, const question_list *questions,
                        const char *label) {
    evaluation e;
    int status;
    memset(&e, 0, sizeof e);
    status = evaluate(&e, engine, settings, questions, label);
    tsk_session_free(engine->session);
    engine->session = NULL;
    if (status == CLI_OK) {
        double seconds = e.milliseconds / 1e3 / (double)e.done;
        r->accuracy = (double)e.right / (double)e.done;
        if (!(r->seconds > 0 && r->seconds < seconds)) r->seconds = seconds; /* the best of the rounds */
        r->nfe = e.nfe / (double)e.done;
        r->computed = e.computed;
        r->total = e.total;
    }
    evaluation_free(&e);
    return status;
}

static void plan(sweep *s) {
    int i;
    for (i = 0; i < N_RUNS; i++) {
        int series = i / N_THRESHOLDS;
        run *r = &s->runs[i];
        r->policy = series & 1 ? TSK_SKIP_EXIT : TSK_SKIP_REUSE;
        r->skip_masked = (series & 2) != 0;
        r->reference = series & 4 ? TSK_SKIP_LAST_COMPUTED : TSK_SKIP_LAST_STEP;
        r->threshold = thresholds[i % N_THRESHOLDS];
    }
}

/* Every setting once. */
static int run_round(sweep *s, cli_engine *engine, const question_list *questions, int round) {
    cli_settings settings = *s->settings;
    int i, status;
    cli_make_plain(&settings.generate);
    status = evaluate_run(&s->baseline, engine, &settings, questions, "plain dual cache");
    settings = *s->settings;
    /* so that the threshold alone decides */
    if (!cli_given(s->settings, "skip-outlier")) settings.generate.skip.outlier = -1;
    for (i = 0; i < N_RUNS && status == CLI_OK; i++) {
        run *r = &s->runs[i];
        char label[64];
        settings.generate.skip.policy = r->policy;
        settings.generate.skip.masked = r->skip_masked;
        settings.generate.skip.reference = r->reference;
        settings.generate.skip.threshold = r->threshold;
        snprintf(label, sizeof label, "%d of %d", round * N_RUNS + i + 1, (int)N_RUNS * (int)s->settings->rounds);
        status = evaluate_run(r, engine, &settings, questions, label);
    }
    return status;
}

static int run_all(sweep *s, cli_engine *engine, const question_list *questions) {
    int round, status = CLI_OK;
    for (round = 0; round < s->settings->rounds && status == CLI_OK; round++)
        status = run_round(s, engine, questions, round);
    return status;
}

/* ---- Picture ---------------------------------------------------------------------------------------------------- */

/* Four panels: masked tokens run or may be skipped, from left to right; the two references, one below the other. */
enum {
    PANEL_W = 400,
    PANEL_H = 250,
    LEFT = 78,
    TOP = 128,
    GAP_X = 40,
    GAP_Y = 62,
    WIDTH = LEFT + 2 * PANEL_W + GAP_X + 30,
    HEIGHT = TOP + 2 * PANEL_H + GAP_Y + 76
};

typedef struct scale { double low, high, step; } scale;

/* A round step that cuts the range into at most six. */
static scale make_scale(double low, double high) {
    static const double rounds[] = {1, 2, 5, 10};
    double raw = (high - low) / 6, power = raw > 0 ? pow(10, floor(log10(raw))) : 0.01;
    scale s;
    int i = 0;
    while (i < 3 && rounds[i] * power < raw) i++;
    s.step = rounds[i] * power;
    s.low = floor(low / s.step) * s.step;
    s.high = ceil(high / s.step) * s.step;
    if (s.high <= s.low) s.high = s.low + s.step;
    return s;
}

static double place(const scale *s, double value, double start, double size) {
    return start + size * (value - s->low) / (s->high - s->low);
}

typedef struct panel {
    double x, y; /* of its upper left corner */
    scale time, accuracy;
} panel;

static double panel_x(const panel *p, double milliseconds) { return place(&p->time, milliseconds, p->x, PANEL_W); }
static double panel_y(const panel *p, double percent) { return place(&p->accuracy, percent, p->y + PANEL_H, -PANEL_H); }

static void append_text(tsk_text *out, double x, double y, const char *class_name, const char *anchor,
                        const char *text) {
    cli_append(out, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\" text-anchor=\"%s\">%s</text>\n", x, y, class_name, anchor,
               text);
}

static void append_axes(tsk_text *out, const panel *p) {
    char label[32];
    double v;
    for (v = p->accuracy.low; v <= p->accuracy.high + p->accuracy.step / 2; v += p->accuracy.step) {
        cli_append(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" class=\"grid\"/>\n", p->x,
                   p->x + PANEL_W, panel_y(p, v), panel_y(p, v));
        snprintf(label, sizeof label, "%g", v);
        append_text(out, p->x - 8, panel_y(p, v) + 4, "tick", "end", label);
    }
    for (v = p->time.low; v <= p->time.high + p->time.step / 2; v += p->time.step) {
        cli_append(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" class=\"grid\"/>\n", panel_x(p, v),
                   panel_x(p, v), p->y, p->y + PANEL_H);
        snprintf(label, sizeof label, "%g", v);
        append_text(out, panel_x(p, v), p->y + PANEL_H + 18, "tick", "middle", label);
    }
}

static void append_baseline(tsk_text *out, const panel *p, const run *baseline) {
    double x = panel_x(p, 1e3 * baseline->seconds), y = panel_y(p, 100 * baseline->accuracy);
    cli_append(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" class=\"base\"/>\n", p->x, p->x + PANEL_W, y,
               y);
    cli_append(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\" class=\"base\"/>\n", x, x, p->y,
               p->y + PANEL_H);
    cli_append(
        out,
        "<rect x=\"%.1f\" y=\"%.1f\" width=\"10\" height=\"10\" class=\"plain\" transform=\"rotate(45 %.1f %.1f)\"/>\n",
        x - 5, y - 5, x, y);
}

/* The lower the threshold, the larger the point: labels would cover each other. */
static void append_point(tsk_text *out, const panel *p, const run *r, int i) {
    double x = panel_x(p, 1e3 * r->seconds), y = panel_y(p, 100 * r->accuracy);
    cli_append(out,
               "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" class=\"%s\"><title>%s, %s, masked %s, threshold %.2f: %.1f "
               "%%, %.2f ms, %.1f %% computed</title></circle>\n",
               x, y, 2.5 + 1.3 * i + (r->policy == TSK_SKIP_EXIT ? 1 : 0), policy_name(r), policy_name(r),
               reference_name(r), r->skip_masked ? "may be skipped" : "always run", (double)r->threshold,
               100 * r->accuracy, 1e3 * r->seconds, r->total ? 100 * (double)r->computed / (double)r->total : 100.0);
}

static void append_series(tsk_text *out, const panel *p, const run *runs) {
    int i;
    cli_append(out, "<polyline class=\"%s\" points=\"", policy_name(runs));
    for (i = 0; i < N_THRESHOLDS; i++)
        cli_append(out, "%s%.1f,%.1f", i ? " " : "", panel_x(p, 1e3 * runs[i].seconds),
                   panel_y(p, 100 * runs[i].accuracy));
    cli_append(out, "\"/>\n");
    for (i = 0; i < N_THRESHOLDS; i++) append_point(out, p, &runs[i], i);
}

static void append_head(tsk_text *out, const sweep *s) {
    char line[160], rounds[32] = "";
    cli_append(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=\"img\">\n",
        (int)WIDTH, (int)HEIGHT, (int)WIDTH, (int)HEIGHT);
    cli_append(out, "<title>TokenSkip: accuracy against time per answer</title>\n"
                    "<style>text { font: 13px system-ui, sans-serif; fill: #22262b } .tick { font-size: 12px; fill: "
                    "#5d6168 } .head { font-size: 19px; font-weight: 600 }\n"
                    ".panel { font-size: 14px; font-weight: 600 } .grid { stroke: #e6e1d5 } .base { stroke: #5d6168; "
                    "stroke-dasharray: 5 4 } .plain { fill: #22262b }\n"
                    "polyline { fill: none; stroke-width: 2 } polyline.reuse { stroke: #0b6e69 } polyline.exit { "
                    "stroke: #d9480f; stroke-dasharray: 6 3 }\n"
                    "circle.reuse { fill: #0b6e69; fill-opacity: .75 } circle.exit { fill: none; stroke: #d9480f; "
                    "stroke-width: 2 }</style>\n");
    cli_append(out, "<rect width=\"100%%\" height=\"100%%\" fill=\"#fffefb\"/>\n");
    append_text(out, LEFT, 34, "head", "start", "TokenSkip: accuracy against time per answer");
    if (s->settings->rounds > 1) snprintf(rounds, sizeof rounds, ", the best of %d rounds", (int)s->settings->rounds);
    snprintf(line, sizeof line,
             "%zu questions%s; skip thresholds from %.2f (small points) to %.2f (large); up and left is better",
             s->n_questions, rounds, (double)thresholds[0], (double)thresholds[N_THRESHOLDS - 1]);
    append_text(out, LEFT, 56, "tick", "start", line);
    cli_append(
        out,
        "<circle cx=\"%d\" cy=\"78\" r=\"4\" class=\"reuse\"/><circle cx=\"%d\" cy=\"78\" r=\"5\" class=\"exit\"/>"
        "<rect x=\"%d\" y=\"73\" width=\"10\" height=\"10\" class=\"plain\" transform=\"rotate(45 %d 78)\"/>\n",
        LEFT + 6, LEFT + 86, LEFT + 151, LEFT + 156);
    append_text(out, LEFT + 18, 82, "tick", "start", "reuse");
    append_text(out, LEFT + 98, 82, "tick", "start", "exit");
    append_text(out, LEFT + 170, 82, "tick", "start", "plain dual cache");
}

static void find_ranges(const sweep *s, panel *p) {
    double slowest = s->baseline.seconds, fastest = slowest, best = s->baseline.accuracy, worst = best;
    int i;
    for (i = 0; i < N_RUNS; i++) {
        slowest = fmax(slowest, s->runs[i].seconds);
        fastest = fmin(fastest, s->runs[i].seconds);
        best = fmax(best, s->runs[i].accuracy);
        worst = fmin(worst, s->runs[i].accuracy);
    }
    p->time = make_scale(1e3 * fastest * 0.97, 1e3 * slowest * 1.03);
    p->accuracy = make_scale(fmax(0, 100 * worst - 1), fmin(100, 100 * best + 1));
}

static void append_panel(tsk_text *out, const sweep *s, panel *p, int row, int column) {
    char title[96];
    int series = 4 * row + 2 * column;
    p->x = LEFT + column * (PANEL_W + GAP_X);
    p->y = TOP + row * (PANEL_H + GAP_Y);
    snprintf(title, sizeof title, "%s, %s", column ? "masked tokens may be skipped" : "masked tokens always run",
             row ? "last-computed" : "last-step");
    append_text(out, p->x, p->y - 12, "panel", "start", title);
    append_axes(out, p);
    append_baseline(out, p, &s->baseline);
    append_series(out, p, &s->runs[(series + 1) * N_THRESHOLDS]);
    append_series(out, p, &s->runs[series * N_THRESHOLDS]);
}

static int write_picture(const sweep *s) {
    tsk_text out = {0};
    panel p;
    int i, status;
    find_ranges(s, &p);
    append_head(&out, s);
    for (i = 0; i < 4; i++) append_panel(&out, s, &p, i / 2, i % 2);
    append_text(&out, LEFT + PANEL_W + GAP_X / 2, HEIGHT - 24, "tick", "middle", "milliseconds per answer");
    cli_append(&out,
               "<text transform=\"translate(24 %d) rotate(-90)\" class=\"tick\" text-anchor=\"middle\">answers right, "
               "%%</text>\n</svg>\n",
               TOP + PANEL_H + GAP_Y / 2);
    status = output_write(s->settings->svg, out.data, out.length);
    tsk_text_free(&out);
    return status;
}

/* ---- Numbers ---------------------------------------------------------------------------------------------------- */

static void write_run(tsk_json_writer *json, const run *r) {
    cli_json_double(json, "accuracy", r->accuracy);
    cli_json_double(json, "seconds_per_answer", r->seconds);
    cli_json_double(json, "mean_nfe", r->nfe);
    cli_json_uint(json, "token_layers_computed", r->computed);
    cli_json_uint(json, "token_layers_total", r->total);
    tsk_json_end_object(json);
}

static int print_json(const sweep *s) {
    tsk_text out = {0};
    tsk_json_writer json = {0};
    int i, status;
    json.out = &out;
    tsk_json_begin_object(&json);
    cli_json_uint(&json, "n", s->n_questions);
    tsk_json_write_key(&json, "baseline");
    tsk_json_begin_object(&json);
    write_run(&json, &s->baseline);
    tsk_json_write_key(&json, "runs");
    tsk_json_begin_array(&json);
    for (i = 0; i < N_RUNS; i++) {
        const run *r = &s->runs[i];
        char digits[16];
        tsk_json_begin_object(&json);
        cli_json_string(&json, "skip_policy", policy_name(r));
        tsk_json_write_key(&json, "skip_masked");
        tsk_json_write_bool(&json, r->skip_masked);
        cli_json_string(&json, "skip_reference", reference_name(r));
        snprintf(digits, sizeof digits, "%.6g", (double)r->threshold);
        cli_json_double(&json, "skip_threshold", strtod(digits, NULL));
        write_run(&json, r);
    }
    tsk_json_end_array(&json);
    tsk_json_end_object(&json);
    status = cli_json_print(&json);
    tsk_text_free(&out);
    return status;
}

static void append_run(tsk_text *out, const run *r) {
    cli_append(out, "%8.1f %%  %9.2f ms  %7.1f %%\n", 100 * r->accuracy, 1e3 * r->seconds,
               r->total ? 100 * (double)r->computed / (double)r->total : 100.0);
}

static int print_table(const sweep *s) {
    tsk_text out = {0};
    int i, status;
    cli_append(&out, "policy  masked tokens  reference      threshold   accuracy     an answer  computed\n%-47s",
               "plain dual cache");
    append_run(&out, &s->baseline);
    for (i = 0; i < N_RUNS; i++) {
        const run *r = &s->runs[i];
        cli_append(&out, "%-7s %-14s %-13s %10.2f ", policy_name(r), r->skip_masked ? "may be skipped" : "always run",
                   reference_name(r), (double)r->threshold);
        append_run(&out, r);
    }
    status = cli_write(out.data, out.length);
    tsk_text_free(&out);
    return status;
}

int cmd_sweep(cli_settings *settings) {
    question_list questions = {0};
    cli_engine engine = {0};
    sweep s;
    int status;
    if (settings->generate.cache != TSK_CACHE_DUAL)
        return cli_usage_error("sweep needs --cache dual: TokenSkip lives in its block steps");
    if (cli_refuse_rows(settings, "sweep") != CLI_OK) return CLI_USAGE;
    if (output_check(settings->svg) != CLI_OK) return CLI_FAILED;
    cli_choose_states(&settings->generate);
    memset(&s, 0, sizeof s);
    s.settings = settings;
    plan(&s);
    cli_catch_interrupts();
    status = questions_load(&questions, settings->data, settings->limit, 1);
    s.n_questions = questions.count;
    if (status == CLI_OK) status = cli_load_model(&engine, settings);
    if (status == CLI_OK) status = run_all(&s, &engine, &questions);
    if (status == CLI_OK) status = write_picture(&s);
    if (status == CLI_OK) status = settings->json ? print_json(&s) : print_table(&s);
    cli_engine_free(&engine);
    questions_free(&questions);
    return status;
}
