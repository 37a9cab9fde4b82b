/* Where the answers of two generations part: the position that shows it first, and what each of them thought there. */
#include "trace.h"
#include "visual.h"

#include <math.h>

/* ---- What became of a position ---------------------------------------------------------------------------------- */

/* The pass that committed it, and its place in the pass's block; NULL: none (it was given, or an early end filled
   it). */
static const step_log *commit_of(const generation_log *log, int32_t position, int32_t *slot) {
    size_t i;
    for (i = 0; i < log->count; i++) {
        const step_log *step = &log->steps[i];
        for (*slot = 0; *slot < step->n_positions; (*slot)++)
            if (step->positions[*slot] == position && step->committed[*slot]) return step;
    }
    return NULL;
}

/* [length] the number of the pass that committed each position; INT32_MAX: none. */
static int32_t *commit_passes(const generation_log *log, int32_t length) {
    int32_t *passes = (int32_t *)cli_allocate((size_t)length, sizeof *passes), i;
    size_t step;
    for (i = 0; i < length; i++) passes[i] = INT32_MAX;
    for (step = 0; step < log->count; step++)
        for (i = 0; i < log->steps[step].n_positions; i++)
            if (log->steps[step].committed[i] && log->steps[step].positions[i] < length)
                passes[log->steps[step].positions[i]] = log->steps[step].pass;
    return passes;
}

static int32_t common_length(const trace *t) {
    return t->skip.canvas_length < t->baseline.canvas_length ? t->skip.canvas_length : t->baseline.canvas_length;
}

int trace_differs(const trace *t, int32_t position) {
    int32_t mask = t->config->mask_token_id;
    if (position >= common_length(t) || (position < t->prompt->count && t->prompt->ids[position] != mask)) return 0;
    if (t->skip.canvas[position] == mask || t->baseline.canvas[position] == mask) return 0;
    return t->skip.canvas[position] != t->baseline.canvas[position];
}

/* The first pass in which the two commit other positions, or other tokens; -1: none. */
static int32_t first_other_pass(const trace *t) {
    int32_t length = common_length(t), i, first = INT32_MAX;
    int32_t *a = commit_passes(&t->baseline, length), *b = commit_passes(&t->skip, length);
    for (i = 0; i < length; i++) {
        int32_t pass = a[i] < b[i] ? a[i] : b[i];
        if ((a[i] != b[i] || trace_differs(t, i)) && pass < first) first = pass;
    }
    free(a);
    free(b);
    return first == INT32_MAX ? -1 : first;
}

/* Of the positions whose tokens differ the one that either of the two committed first. */
static int32_t first_position(const trace *t) {
    int32_t length = common_length(t), i, first = INT32_MAX, found = -1;
    int32_t *a = commit_passes(&t->baseline, length), *b = commit_passes(&t->skip, length);
    for (i = 0; i < length; i++) {
        int32_t pass = a[i] < b[i] ? a[i] : b[i];
        if (!trace_differs(t, i) || (found >= 0 && pass >= first)) continue;
        first = pass;
        found = i;
    }
    free(a);
    free(b);
    return found;
}

/* ---- Both tokens' probabilities in both runs -------------------------------------------------------------------- */

typedef struct watcher {
    int32_t position, ids[2];
    double *probabilities;     /* [2] */
} watcher;

static void on_logits(void *user, const tsk_trace_record *record) {
    watcher *w = (watcher *)user;
    uint64_t width = record->output_shape[1], i;
    int32_t row = 0, which;
    const float *logits;
    double largest, sum = 0;
    while (row < record->n_rows && record->positions[row] != w->position) row++;
    if (row == record->n_rows) return;
    logits = record->output + (uint64_t)row * width;
    largest = (double)logits[0];
    for (i = 1; i < width; i++)
        if ((double)logits[i] > largest) largest = (double)logits[i];
    for (i = 0; i < width; i++) sum += exp((double)logits[i] - largest);
    for (which = 0; which < 2; which++) w->probabilities[which] = exp((double)logits[w->ids[which]] - largest) / sum;
}

/* The same generation again, up to the pass that committed the position: nobody could keep the logits of all passes. */
static int look_again(const trace *t, const tsk_generate_options *options, const trace_parting *parting,
                      parting_side *side) {
    tsk_trace_options watch = tsk_trace_options_default();
    tsk_session *session = NULL;
    tsk_error error = {0};
    watcher w;
    int finished = 0, status = CLI_OK;
    int32_t pass;
    w.position = parting->position;
    w.ids[0] = parting->sides[0].id;
    w.ids[1] = parting->sides[1].id;
    w.probabilities = side->probabilities;
    watch.pattern = "logits";
    watch.first_pass = watch.last_pass = side->pass;
    watch.values = 1;
    watch.on_record = on_logits;
    watch.user = &w;
    if (tsk_session_create(t->engine->model, options, &session, &error) != TSK_OK ||
        tsk_session_start(session, t->prompt->ids, t->prompt->count, NULL, &error) != TSK_OK ||
        tsk_session_trace(session, &watch, &error) != TSK_OK)
        status = cli_fail_with(&error, NULL);
    for (pass = 0; status == CLI_OK && pass <= side->pass && !finished; pass++) {
        if (tsk_session_step(session, &finished, &error) != TSK_OK) status = cli_fail_with(&error, NULL);
        else if (cli_interrupted()) status = trace_interrupted();
    }
    tsk_session_free(session);
    return status;
}

static void fill_side(parting_side *side, const generation_log *log, int32_t position) {
    int32_t slot = 0;
    const step_log *step = commit_of(log, position, &slot);
    side->id = log->canvas[position];
    side->pass = step ? step->pass : -1;
    side->block = step ? step->block : -1;
    side->block_step = step ? step->block_step : -1;
    side->confidence = step ? (double)step->confidences[slot] : -1;
    side->probabilities[0] = side->probabilities[1] = -1;
}

int parting_find(trace *t) {
    trace_parting *parting = &t->parting;
    int status = CLI_OK;
    parting->first_other_pass = first_other_pass(t);
    parting->position = first_position(t);
    if (parting->position < 0) return CLI_OK;
    fill_side(&parting->sides[0], &t->baseline, parting->position);
    fill_side(&parting->sides[1], &t->skip, parting->position);
    if (parting->sides[0].pass >= 0) status = look_again(t, &t->versus, parting, &parting->sides[0]);
    if (status == CLI_OK && parting->sides[1].pass >= 0)
        status = look_again(t, &t->settings->generate, parting, &parting->sides[1]);
    return status;
}

/* ---- In words --------------------------------------------------------------------------------------------------- */

enum { COLUMN = 56 }; /* of either text */

/* One side of the text: tokens from `next` on, a line at a time. */
typedef struct column {
    const trace *t;
    const generation_log *log;
    int32_t next, end;
} column;

/* What a token looks like here. */
static void append_piece(const column *c, int32_t position, tsk_text *out) {
    int32_t id = c->log->canvas[position];
    tsk_text text = {0}, visible = {0};
    size_t i;
    if (id == c->t->config->mask_token_id) cli_append(&text, "\xE2\x96\x91");
    else if (!c->t->engine->tokenizer ||
             tsk_tokenizer_decode(c->t->engine->tokenizer, &id, 1, 0, &text, NULL) != TSK_OK)
        cli_append(&text, "%d ", (int)id);
    cli_append_visible(&visible, text.data ? text.data : "", text.length);
    for (i = 0; i < visible.length; i++) {
        if (visible.data[i] == '\n') cli_append(out, "\xE2\x8F\x8E");
        else if (visible.data[i] == '\t') cli_append(out, " ");
        else cli_append_bytes(out, visible.data + i, 1);
    }
    tsk_text_free(&text);
    tsk_text_free(&visible);
}

/* As many tokens as a line takes, one at least, with marks around those that differ, and blanks up to the column's
   width. */
static void append_line(column *c, int pad, tsk_text *out) {
    int width = 0, is_marked = 0, is_full = 0;
    while (c->next < c->end && !is_full) {
        int differs = trace_differs(c->t, c->next), marks = (differs && !is_marked) + (is_marked || differs), more;
        tsk_text piece = {0};
        append_piece(c, c->next, &piece);
        more = visual_width(piece.data ? piece.data : "", piece.length);
        is_full = width && width + more + marks > COLUMN;
        if (!is_full) {
            if (differs != is_marked) cli_append(out, differs ? "\xE2\x9F\xA6" : "\xE2\x9F\xA7");
            width += more + (differs != is_marked);
            is_marked = differs;
            cli_append_bytes(out, piece.data ? piece.data : "", piece.length);
            c->next++;
        }
        tsk_text_free(&piece);
    }
    if (is_marked) cli_append(out, "\xE2\x9F\xA7");
    width += is_marked;
    if (pad) cli_append(out, "%*s", width < COLUMN ? COLUMN - width : 0, "");
}

/* After the text's end there is nothing to read: the last token that either has before its own. */
static int32_t text_end(const trace *t) {
    int32_t a = t->baseline.n_prompt + t->baseline.result.n_before_end,
            b = t->skip.n_prompt + t->skip.result.n_before_end, length = common_length(t), end = a > b ? a : b;
    return end < length ? end : length;
}

static void append_texts(const trace *t, tsk_text *out) {
    int32_t first = t->prompt->count, i;
    column left, right;
    for (i = 0; i < t->prompt->count; i++) /* filled masks of the prompt are part of the answer */
        if (t->prompt->ids[i] == t->config->mask_token_id) {
            first = 0;
            break;
        }
    left.t = right.t = t;
    left.log = &t->baseline;
    right.log = &t->skip;
    left.next = right.next = first;
    left.end = right.end = text_end(t);
    cli_append(out, "%-*s | %s\n", COLUMN, t->names[0], t->names[1]);
    for (i = 0; i < 2 * COLUMN + 3; i++) cli_append(out, i == COLUMN + 1 ? "+" : "-");
    cli_append(out, "\n");
    while (left.next < left.end || right.next < right.end) {
        append_line(&left, 1, out);
        cli_append(out, " | ");
        append_line(&right, 0, out);
        cli_append(out, "\n");
    }
}

static void append_number(tsk_text *out, double probability) {
    char digits[32];
    if (probability < 0) snprintf(digits, sizeof digits, "-");
    else snprintf(digits, sizeof digits, probability < 1e-3 ? "%.1e" : "%.4f", probability);
    cli_append(out, " %-24s", digits);
}

static void append_row(const trace *t, tsk_text *out, int which) {
    tsk_text label = {0};
    int32_t side;
    cli_append(&label, "probability of ");
    trace_token_text(t, t->parting.sides[which].id, &label);
    cli_append(out, "  %s%*s", label.data ? label.data : "",
               30 - visual_width(label.data ? label.data : "", label.length), "");
    for (side = 0; side < 2; side++) append_number(out, t->parting.sides[side].probabilities[which]);
    cli_append(out, "\n");
    tsk_text_free(&label);
}

static void append_sides(const trace *t, tsk_text *out) {
    const trace_parting *parting = &t->parting;
    int32_t side;
    cli_append(out, "\nThe first token that differs is at position %d", (int)parting->position);
    if (parting->position >= t->prompt->count)
        cli_append(out, ", the answer's token %d", (int)(parting->position - t->prompt->count));
    cli_append(out, ":\n");
    cli_append(out, "  %-30s %-24.24s %-24.24s\n  %-30s", "", t->names[0], t->names[1], "committed in");
    for (side = 0; side < 2; side++) {
        const parting_side *s = &parting->sides[side];
        char place[64];
        if (s->pass < 0) snprintf(place, sizeof place, "no pass: after the end");
        else
            snprintf(place, sizeof place, "pass %d: block %d step %d", (int)s->pass, (int)s->block, (int)s->block_step);
        cli_append(out, " %-24s", place);
    }
    cli_append(out, "\n  %-30s", "token");
    for (side = 0; side < 2; side++) {
        tsk_text text = {0};
        int width;
        trace_token_text(t, parting->sides[side].id, &text);
        width = visual_width(text.data ? text.data : "", text.length);
        cli_append(out, " %s%*s", text.data ? text.data : "", width < 24 ? 24 - width : 0, "");
        tsk_text_free(&text);
    }
    cli_append(out, "\n");
    append_row(t, out, 0);
    append_row(t, out, 1);
}

void parting_text(const trace *t, tsk_text *out) {
    const trace_parting *parting = &t->parting;
    int32_t compared, n = trace_differing_tokens(t, &compared), i, shown = 0;
    if (n) {
        cli_append(out, "%d of %d tokens differ, at positions", (int)n, (int)compared);
        for (i = 0; i < common_length(t) && shown < 20; i++)
            if (trace_differs(t, i)) {
                cli_append(out, " %d", (int)i);
                shown++;
            }
        cli_append(out, "%s\n", n > shown ? " ..." : "");
    } else cli_append(out, "all %d tokens are the same\n", (int)compared);
    if (parting->first_other_pass < 0) cli_append(out, "every pass commits the same\n");
    else cli_append(out, "the first pass that does not commit the same: %d\n", (int)parting->first_other_pass);
    if (!n) return;
    cli_append(out, "\n");
    append_texts(t, out);
    append_sides(t, out);
}
