/* What a search has tried, as an SVG picture: answers right (or unchanged) against time. */
#include "output.h"
#include "tuning.h"

#include <math.h>

enum { PLOT_W = 760, PLOT_H = 400, LEFT = 78, TOP = 84, WIDTH = LEFT + PLOT_W + 40, LINE = 20, MOST_LABELS = 24 };

typedef struct scale { double low, high, step; } scale;

/* From a step below the data to one above; a round step that cuts the range into at most eight. */
static scale make_scale(double low, double high) {
    static const double rounds[] = {1, 2, 5, 10};
    double raw = (high - low) / 6, power = raw > 0 ? pow(10, floor(log10(raw))) : 0.01;
    scale s;
    int i = 0;
    while (i < 3 && rounds[i] * power < raw) i++;
    s.step = rounds[i] * power;
    s.low = floor(low / s.step) * s.step;
    s.high = ceil(high / s.step) * s.step;
    if (low - s.low < s.step / 8) s.low -= s.step; /* points keep off the frame */
    if (s.high - high < s.step / 8) s.high += s.step;
    return s;
}

typedef struct plot {
    const tuning *t;
    scale x, y;
    const tuned *shown[MOST_LABELS + 1]; /* by time; the plain dual cache first */
    int n_shown;
    double label_x[MOST_LABELS + 1], label_y[MOST_LABELS + 1];
} plot;

static double percent(const plot *p, const tuned *s) {
    double n = s->e.done ? (double)s->e.done : 1;
    return p->t->has_answers ? 100 * (double)s->e.right / n : 100 - 100 * (double)s->changed / n;
}
static double at_x(const plot *p, const tuned *s) {
    return LEFT + PLOT_W * (tuned_time(s) - p->x.low) / (p->x.high - p->x.low);
}
static double at_y(const plot *p, const tuned *s) {
    return TOP + PLOT_H - PLOT_H * (percent(p, s) - p->y.low) / (p->y.high - p->y.low);
}

static int is_last(const tuning *t, const tuned *s) { return s->is_alive && s->e.done >= t->n_asked; }

/* Those that came to the end, by time, have numbers; the others are dots. */
static void choose(plot *p) {
    const tuning *t = p->t;
    double low_x = 1, high_x = 1, low_y = percent(p, &t->plain), high_y = low_y;
    size_t i;
    int j;
    p->shown[0] = &t->plain;
    p->n_shown = 1;
    for (i = 0; i < t->n_tried; i++) {
        const tuned *s = &t->tried[i];
        if (!is_last(t, s) || p->n_shown > MOST_LABELS) continue;
        for (j = p->n_shown++; j > 1 && tuned_time(p->shown[j - 1]) > tuned_time(s); j--) p->shown[j] = p->shown[j - 1];
        p->shown[j] = s;
        low_x = fmin(low_x, tuned_time(s));
        high_x = fmax(high_x, tuned_time(s));
        low_y = fmin(low_y, percent(p, s));
        high_y = fmax(high_y, percent(p, s));
    }
    p->x = make_scale(low_x, high_x);
    p->y = make_scale(low_y, high_y);
    if (p->y.high > 100) p->y.high = 100 + p->y.step / 4;
}

/* A number stands on its point or, where another number is, on the nearest free place around it. */
static void place_labels(plot *p) {
    int i, j, ring, turn;
    for (i = 0; i < p->n_shown; i++) {
        double x = at_x(p, p->shown[i]), y = at_y(p, p->shown[i]);
        int is_free = 0;
        for (ring = 0; ring < 24 && !is_free; ring++)
            for (turn = 0; turn < (ring ? 16 : 1) && !is_free; turn++) {
                p->label_x[i] = x + 12.0 * ring * cos(turn * 0.3927);
                p->label_y[i] = y - 12.0 * ring * sin(turn * 0.3927);
                is_free = p->label_x[i] > LEFT + 9 && p->label_x[i] < LEFT + PLOT_W - 9 && p->label_y[i] > TOP + 9 &&
                          p->label_y[i] < TOP + PLOT_H - 9;
                for (j = 0; j < i && is_free; j++)
                    is_free = hypot(p->label_x[i] - p->label_x[j], p->label_y[i] - p->label_y[j]) >= 19;
            }
    }
}

static void text_at(tsk_text *out, double x, double y, const char *class_name, const char *anchor, const char *text) {
    cli_append(out, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\" text-anchor=\"%s\">", x, y, class_name, anchor);
    for (; *text; text++) {
        if (*text == '<') cli_append(out, "&lt;");
        else if (*text == '&') cli_append(out, "&amp;");
        else cli_append_bytes(out, text, 1);
    }
    cli_append(out, "</text>\n");
}

static void append_axes(const plot *p, tsk_text *out) {
    char label[32];
    double v;
    for (v = p->y.low; v <= p->y.high + 1e-9; v += p->y.step) {
        double y = TOP + PLOT_H - PLOT_H * (v - p->y.low) / (p->y.high - p->y.low);
        cli_append(out, "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" class=\"grid\"/>\n", (int)LEFT,
                   LEFT + PLOT_W, y, y);
        snprintf(label, sizeof label, "%.4g", fabs(v) < 1e-9 ? 0 : v);
        text_at(out, LEFT - 8, y + 4, "tick", "end", label);
    }
    for (v = p->x.low; v <= p->x.high + 1e-9; v += p->x.step) {
        double x = LEFT + PLOT_W * (v - p->x.low) / (p->x.high - p->x.low);
        cli_append(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" class=\"grid\"/>\n", x, x, (int)TOP,
                   TOP + PLOT_H);
        snprintf(label, sizeof label, "%.4g", fabs(v) < 1e-9 ? 0 : v);
        text_at(out, x, TOP + PLOT_H + 18, "tick", "middle", label);
    }
    text_at(out, LEFT + PLOT_W / 2, TOP + PLOT_H + 38, "tick", "middle",
            "time an answer, beside the plain dual cache's");
    cli_append(out,
               "<text transform=\"translate(22 %d) rotate(-90)\" class=\"tick\" text-anchor=\"middle\">%s</text>\n",
               TOP + PLOT_H / 2, p->t->has_answers ? "answers right, %" : "answers unchanged, %");
}

static const char *kind_of(const plot *p, int i) {
    static const char *const kinds[] = {"off", "states", "rows"};
    tsk_generate_options o = p->shown[i]->settings.generate;
    if (i == 0) return "plain";
    tsk_generate_options_resolve(p->t->engine->model, &o);
    return kinds[o.skip.rule];
}

static void append_points(const plot *p, tsk_text *out) {
    int i;
    for (i = 0; i < p->n_shown; i++) {
        double x = at_x(p, p->shown[i]), y = at_y(p, p->shown[i]);
        if (hypot(x - p->label_x[i], y - p->label_y[i]) < 1) continue;
        cli_append(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"lead\"/>\n", x, y,
                   p->label_x[i], p->label_y[i]);
        cli_append(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" class=\"%s\"/>\n", x, y, kind_of(p, i));
    }
    for (i = 0; i < p->n_shown; i++) {
        char number[16];
        cli_append(out,
                   "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"9\" class=\"%s\" data-time=\"%.6f\" data-right=\"%.6f\"/>\n",
                   p->label_x[i], p->label_y[i], kind_of(p, i), tuned_time(p->shown[i]), percent(p, p->shown[i]));
        snprintf(number, sizeof number, "%d", i);
        text_at(out, p->label_x[i], p->label_y[i] + 4, "number", "middle", number);
    }
}

static void append_list(const plot *p, tsk_text *out) {
    int i;
    for (i = 0; i < p->n_shown; i++) {
        double y = TOP + PLOT_H + 68 + i * LINE;
        char line[400];
        cli_append(out, "<circle cx=\"%d\" cy=\"%.1f\" r=\"9\" class=\"%s\"/>\n", LEFT + 9, y - 4, kind_of(p, i));
        snprintf(line, sizeof line, "%d", i);
        text_at(out, LEFT + 9, y, "number", "middle", line);
        snprintf(line, sizeof line, "%.2f", tuned_time(p->shown[i]));
        text_at(out, LEFT + 62, y, "tick", "end", line);
        snprintf(line, sizeof line, "%.1f %%", percent(p, p->shown[i]));
        text_at(out, LEFT + 132, y, "tick", "end", line);
        text_at(out, LEFT + 150, y, "tick", "start", p->shown[i]->options);
    }
}

int tuning_picture(const tuning *t, const char *path, const char *title) {
    tsk_text out = {0};
    plot p;
    char line[160];
    int height, status;
    memset(&p, 0, sizeof p);
    p.t = t;
    choose(&p);
    place_labels(&p);
    height = TOP + PLOT_H + 84 + p.n_shown * LINE;
    cli_append(&out,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" "
               "role=\"img\">\n<title>%s</title>\n",
               (int)WIDTH, height, (int)WIDTH, height, title);
    cli_append(&out, "<style>text { font: 13px system-ui, sans-serif; fill: #22262b } .tick { font-size: 12px; fill: "
                     "#44484e } .head { font-size: 19px; font-weight: 600 }\n"
                     ".number { font-size: 11px; font-weight: 600; fill: #fff } .grid { stroke: #e6e1d5 } .lead { "
                     "stroke: #5d6168 }\n"
                     "circle { stroke: #fffefb } .plain { fill: #22262b } .off { fill: #6b6f76 } .rows { fill: "
                     "#0b6e69 } .states { fill: #c2410c }</style>\n"
                     "<rect width=\"100%%\" height=\"100%%\" fill=\"#fffefb\"/>\n");
    text_at(&out, LEFT, 34, "head", "start", title);
    snprintf(line, sizeof line,
             "%zu questions, the last of %zu settings tried; up and left is better; rows green, states orange, "
             "TokenSkip off grey",
             t->n_asked, tuning_tried(t));
    text_at(&out, LEFT, 58, "tick", "start", line);
    append_axes(&p, &out);
    append_points(&p, &out);
    append_list(&p, &out);
    cli_append(&out, "</svg>\n");
    status = output_write(path, out.data, out.length);
    tsk_text_free(&out);
    return status;
}
