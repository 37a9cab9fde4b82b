#include "system.h"
#include "tuning.h"

#include <math.h>

enum { FIRST_QUESTIONS = 4, FEWEST = 6, MOST = 1024 };

typedef struct plain_answer {
    int32_t *tokens;
    int32_t count;             /* up to the end of the text */
    int is_right;
    double ms;
} plain_answer;

double tuned_time(const tuned *s) { return s->plain_ms > 0 ? s->e.milliseconds / s->plain_ms : 1; }

double tuned_error(const tuning *t, const tuned *s) {
    double n = s->e.done ? (double)s->e.done : 1;
    if (!t->has_answers) return (double)s->changed / n;
    return s->lost > s->gained ? (double)(s->lost - s->gained) / n : 0;
}

/* ---- What is tried ---------------------------------------------------------------------------------------------- */

static int is_given(const cli_settings *settings, const char *const *names) {
    for (; *names; names++)
        if (cli_given(settings, *names)) return 1;
    return 0;
}

static void add(tuning *t, const char *commit, const char *skip, const char *refresh) {
    tuned *s;
    if (t->n_tried == MOST) return;
    s = &t->tried[t->n_tried];
    memset(s, 0, sizeof *s);
    snprintf(s->options, sizeof s->options, "%s%s%s%s%s", commit, *commit && *skip ? " " : "", skip,
             (*commit || *skip) && *refresh ? " " : "", refresh);
    t->n_tried++;
}

/* The schedule at a half and a quarter of a pass a token, where the blocks divide it. */
static void schedule(const tsk_generate_options *o, int32_t divisor, char *out, size_t size) {
    int32_t blocks = o->gen_length / o->block_length, steps = o->gen_length / divisor;
    out[0] = 0;
    if (steps > 0 && steps % blocks == 0) snprintf(out, size, "--no-threshold --steps %d", (int)steps);
}

/* Every commit rule with every rule of TokenSkip and every kind of block start; what the command line says of one of
   the three stays as it is. */
static void plan(tuning *t, int32_t n_layers) {
    static const char *const commit_names[] = {"threshold", "no-threshold", "steps", "factor", "frechet",
                                               "entropy-bound", "local-leap", NULL};
    static const char *const skip_names[] = {"skip-rule", "skip-preset", "rows-margin", "rows-ahead", "skip-layer-k",
                                             "skip-threshold", "skip-outlier", "skip-policy", "skip-reference",
                                             "skip-max-age", "skip-masked", "skip-warm-start", "skip-full-every", NULL};
    static const char *const refresh_names[] = {"refresh", "near", "window", "refresh-every", "refresh-rows",
                                                "skip-refresh", "skip-preset", NULL};
    static const char *const own[] = {""};
    static const char *const refreshes[] = {"--refresh full", "--refresh near --near 16",
                                            "--refresh near --near 32 --window 32",
                                            "--refresh near --near 16 --window 64",
                                            "--refresh full --refresh-every 2"};
    char half[64], quarter[64], deep[64];
    const char *commits[] = {"--threshold 0.9", "--threshold 0.95", "--threshold 0.8", "--factor 1", "--factor 0.5",
                             "--frechet 0.5", "--frechet 0.25", "--entropy-bound 0.1", "--entropy-bound 0.3",
                             "--local-leap 0.75", half, quarter};
    const char *skips[] = {"--skip-rule rows", "--skip-rule off", "--skip-rule states",
                           "--skip-rule states --skip-threshold 0.9 --skip-outlier -1", deep,
                           "--skip-rule rows --rows-margin 0", "--skip-rule rows --rows-margin 8",
                           "--skip-rule rows --rows-ahead 1"};
    int one_commit = is_given(t->settings, commit_names), one_skip = is_given(t->settings, skip_names),
        one_refresh = is_given(t->settings, refresh_names), is_schedule;
    size_t c, s, r, n_commits = one_commit ? 1 : sizeof commits / sizeof commits[0],
                    n_skips = one_skip ? 1 : sizeof skips / sizeof skips[0],
                    n_refreshes = one_refresh ? 1 : sizeof refreshes / sizeof refreshes[0];
    schedule(&t->settings->generate, 2, half, sizeof half);
    schedule(&t->settings->generate, 4, quarter, sizeof quarter);
    snprintf(deep, sizeof deep, "--skip-rule states --skip-layer-k %d --skip-outlier -1",
             (int)(n_layers / 2 > 2 ? n_layers / 2 : 2));
    t->tried = (tuned *)cli_allocate(MOST, sizeof *t->tried);
    for (c = 0; c < n_commits; c++) {
        const char *commit = one_commit ? "" : commits[c];
        is_schedule = one_commit ? t->settings->generate.transfer == TSK_TRANSFER_SCHEDULE : c + 2 >= n_commits;
        if (!one_commit && !*commit) continue;
        for (s = 0; s < n_skips; s++)
            for (r = 0; r < n_refreshes; r++) {
                /* by other rules than the schedule every masked row runs, whatever the margin */
                if (!one_skip && !is_schedule && s >= 5) continue;
                add(t, commit, one_skip ? own[0] : skips[s], one_refresh ? own[0] : refreshes[r]);
            }
    }
}

/* The settings of each, as --against reads them. What the model cannot have is left out. */
static int read_all(tuning *t) {
    size_t i, kept = 0;
    for (i = 0; i < t->n_tried; i++) {
        tuned *s = &t->tried[kept];
        if (s != &t->tried[i]) *s = t->tried[i];
        if (cli_parse_against(&s->settings, t->settings, "calibrate", "a setting", s->options, &s->words) !=
            CLI_CONTINUE)
            return CLI_USAGE;
        s->is_alive = 1;
        kept++;
    }
    t->n_tried = t->n_alive = kept;
    return CLI_OK;
}

/* ---- Answers ---------------------------------------------------------------------------------------------------- */

static double minutes_left(const tuning *t) {
    return (double)t->settings->minutes - (system_clock_ms() - t->started) / 60000.0;
}

static int interrupted(const tuning *t) {
    return cli_fail("interrupted after %zu of %zu questions: the search is incomplete, nothing is printed or written",
                    t->n_asked, t->questions.count);
}

/* Questions first .. last - 1, in a session of the setting's own. */
static int ask(tuning *t, tuned *s, size_t first, size_t last) {
    cli_engine engine = *t->engine;
    size_t i;
    int status;
    engine.session = NULL;
    status = cli_open_session(&engine, &s->settings);
    for (i = first; i < last && status == CLI_OK; i++) {
        plain_answer *plain = &t->answers[i];
        judged_answer a;
        status = evaluation_ask(&s->e, &engine, &s->settings, &t->questions.items[i], &a);
        if (status == CLI_OK && a.result.finish_reason == TSK_FINISH_CANCELLED) status = interrupted(t);
        if (status != CLI_OK) break;
        if (s == &t->plain) {
            plain->count = a.result.n_before_end;
            plain->tokens = (int32_t *)cli_copy(a.result.tokens, (size_t)plain->count, sizeof *plain->tokens);
            plain->is_right = a.is_right;
            plain->ms = a.result.total_ms;
        }
        s->plain_ms += plain->ms;
        s->gained += a.is_right && !plain->is_right;
        s->lost += !a.is_right && plain->is_right;
        s->changed += a.result.n_before_end != plain->count ||
                      memcmp(a.result.tokens, plain->tokens, (size_t)plain->count * sizeof *plain->tokens) != 0;
        cli_progress_again();
    }
    tsk_session_free(engine.session);
    return status;
}

static void show(const tuning *t, size_t done, size_t of) {
    char tail[128];
    snprintf(tail, sizeof tail, "%zu settings, %zu questions each, %.1f min left", t->n_alive, t->n_asked,
             fmax(0, minutes_left(t)));
    cli_progress("trying", of ? (double)done / (double)of : 0, tail);
}

/* ---- Halving ---------------------------------------------------------------------------------------------------- */

/* Indices of the living in the order of their worth. */
static size_t *sort_alive(const tuning *t, tuning_order *order) {
    size_t *sorted = (size_t *)cli_allocate(t->n_alive + 1, sizeof *sorted), n = 0, i, j;
    for (i = 0; i < t->n_tried; i++) {
        if (!t->tried[i].is_alive) continue;
        for (j = n++; j > 0 && order(t, &t->tried[i], &t->tried[sorted[j - 1]]) < 0; j--) sorted[j] = sorted[j - 1];
        sorted[j] = i;
    }
    return sorted;
}

static void halve(tuning *t, tuning_order *order) {
    size_t *sorted = sort_alive(t, order), keep = (t->n_alive + 1) / 2, i;
    if (keep < FEWEST) keep = t->n_alive < FEWEST ? t->n_alive : FEWEST;
    for (i = keep; i < t->n_alive; i++) t->tried[sorted[i]].is_alive = 0;
    t->n_alive = keep;
    free(sorted);
}

/* As many settings as the time is likely to take, evenly spread over the plan. */
static void thin(tuning *t) {
    double answer = t->plain.e.milliseconds / (double)t->plain.e.done / 60000.0,
           rounds = log2(fmax(2, (double)t->questions.count / FIRST_QUESTIONS)) + 1,
           most = minutes_left(t) / (answer * FIRST_QUESTIONS * (1 + 0.5 * rounds));
    size_t keep = most < FEWEST ? FEWEST : most > MOST ? MOST : (size_t)most, i;
    if (keep >= t->n_tried) return;
    for (i = 0; i < t->n_tried; i++)
        t->tried[i].is_alive = i == 0 || (i * keep) / t->n_tried != ((i - 1) * keep) / t->n_tried;
    for (i = t->n_alive = 0; i < t->n_tried; i++) t->n_alive += (size_t)t->tried[i].is_alive;
}

/* One round: all that live answer up to question `last`. When time is over those that have not are out. */
static int run_round(tuning *t, size_t last) {
    size_t first = t->n_asked, i, done = 0;
    int status = CLI_OK;
    if (t->plain.e.done < last) status = ask(t, &t->plain, t->plain.e.done, last);
    for (i = 0; i < t->n_tried && status == CLI_OK; i++) {
        if (!t->tried[i].is_alive) continue;
        if (first && minutes_left(t) <= 0) { /* (of the first questions everybody has a share) */
            t->is_out_of_time = 1;
            break;
        }
        status = ask(t, &t->tried[i], first, last);
        show(t, ++done, t->n_alive);
    }
    if (status == CLI_OK && !t->is_out_of_time) t->n_asked = last;
    return status;
}

/* One answer that does not count: whoever reads the weights first waits for them. */
static int warm_up(tuning *t) {
    int status = ask(t, &t->plain, 0, 1);
    evaluation_free(&t->plain.e);
    t->plain.plain_ms = 0;
    free(t->answers[0].tokens);
    t->answers[0].tokens = NULL;
    return status;
}

static int halving(tuning *t, tuning_order *order) {
    size_t last = t->questions.count < FIRST_QUESTIONS ? t->questions.count : FIRST_QUESTIONS;
    int status = warm_up(t);
    if (status == CLI_OK) status = ask(t, &t->plain, 0, last);
    if (status == CLI_OK) thin(t);
    while (status == CLI_OK) {
        status = run_round(t, last);
        if (status != CLI_OK || t->is_out_of_time || last == t->questions.count) break;
        halve(t, order);
        last = 2 * last < t->questions.count ? 2 * last : t->questions.count;
    }
    cli_progress_clear();
    return status;
}

/* ---- All of it -------------------------------------------------------------------------------------------------- */

/* Questions in an order whose every beginning is spread over the file: places by their digits read backwards. */
static void spread(question_list *q) {
    question *items = (question *)cli_allocate(q->count, sizeof *items);
    size_t size = 1, i, bit, n = 0;
    while (size < q->count) size *= 2;
    for (i = 0; i < size; i++) {
        size_t place = 0;
        for (bit = 1; bit < size; bit *= 2) place = 2 * place + (i / bit) % 2;
        if (place < q->count) items[n++] = q->items[place];
    }
    memcpy(q->items, items, q->count * sizeof *items);
    free(items);
}

int tuning_run(tuning *t, cli_engine *engine, const cli_settings *settings, tuning_order *order) {
    size_t i;
    int status;
    memset(t, 0, sizeof *t);
    t->settings = settings;
    t->engine = engine;
    status = questions_load(&t->questions, settings->data, settings->limit, 0);
    if (status == CLI_OK) status = cli_load_model(engine, settings);
    if (status != CLI_OK) return status;
    spread(&t->questions);
    t->has_answers = 1;
    for (i = 0; i < t->questions.count; i++) t->has_answers &= t->questions.items[i].answer != NULL;
    t->answers = (plain_answer *)cli_allocate(t->questions.count, sizeof *t->answers);
    snprintf(t->plain.options, sizeof t->plain.options, "plain dual cache");
    t->plain.settings = *settings;
    cli_make_plain(&t->plain.settings.generate);
    plan(t, tsk_model_get_config(engine->model)->n_layers);
    status = read_all(t);
    t->started = system_clock_ms();
    return status == CLI_OK ? halving(t, order) : status;
}

void tuning_free(tuning *t) {
    size_t i;
    for (i = 0; i < t->n_tried; i++) {
        evaluation_free(&t->tried[i].e);
        free(t->tried[i].words);
    }
    for (i = 0; t->answers && i < t->questions.count; i++) free(t->answers[i].tokens);
    evaluation_free(&t->plain.e);
    free(t->tried);
    free(t->answers);
    questions_free(&t->questions);
}

/* ---- What came out ---------------------------------------------------------------------------------------------- */

size_t tuning_tried(const tuning *t) {
    size_t i, n = 0;
    for (i = 0; i < t->n_tried; i++) n += t->tried[i].e.done > 0;
    return n;
}

static void append_row(const tuning *t, tsk_text *out, const tuned *s) {
    double n = s->e.done ? (double)s->e.done : 1;
    cli_append(out, "%5.2f  %7.1f ms  ", tuned_time(s), s->e.milliseconds / n);
    if (t->has_answers)
        cli_append(out, "%5.1f %%  %4zu, %4zu  ", 100 * (double)s->e.right / n, s->gained, s->lost);
    cli_append(out, "%6zu  %6.2f  %7.1f  %s\n", s->changed, s->e.nfe / n, (double)s->e.rows / n, s->options);
}

void tuning_table(const tuning *t, tsk_text *out) {
    size_t i, j, shown = 0;
    uint8_t *is_shown = (uint8_t *)cli_allocate(t->n_tried + 1, 1);
    cli_append(out, "%5s  %10s  %s%6s  %6s  %7s  settings\n", "time", "an answer",
               t->has_answers ? "  right  gained, lost  " : "", "other", "passes", "rows");
    append_row(t, out, &t->plain);
    for (i = 0; i < t->n_tried; i++) { /* by time */
        size_t best = t->n_tried;
        for (j = 0; j < t->n_tried; j++)
            if (t->tried[j].is_alive && t->tried[j].e.done >= t->n_asked && !is_shown[j] &&
                (best == t->n_tried || tuned_time(&t->tried[j]) < tuned_time(&t->tried[best])))
                best = j;
        if (best == t->n_tried) break;
        is_shown[best] = 1;
        append_row(t, out, &t->tried[best]);
        shown++;
    }
    cli_append(out, "%zu questions; %zu settings tried, these are the last %zu%s\n", t->n_asked, tuning_tried(t), shown,
               t->is_out_of_time ? "; the minutes were over" : "");
    free(is_shown);
}

static void write_tuned(const tuning *t, tsk_json_writer *json, const tuned *s) {
    double n = s->e.done ? (double)s->e.done : 1;
    tsk_json_begin_object(json);
    cli_json_string(json, "options", s->options);
    cli_json_uint(json, "n", s->e.done);
    if (t->has_answers) {
        cli_json_double(json, "accuracy", (double)s->e.right / n);
        cli_json_uint(json, "gained", s->gained);
        cli_json_uint(json, "lost", s->lost);
    }
    cli_json_uint(json, "changed", s->changed);
    cli_json_double(json, "error", tuned_error(t, s));
    cli_json_double(json, "mean_nfe", s->e.nfe / n);
    cli_json_double(json, "mean_rows", (double)s->e.rows / n);
    cli_json_double(json, "seconds_per_answer", s->e.milliseconds / 1e3 / n);
    cli_json_double(json, "time", tuned_time(s));
    tsk_json_end_object(json);
}

void tuning_json(const tuning *t, tsk_json_writer *json) {
    size_t i;
    cli_json_uint(json, "questions", t->n_asked);
    tsk_json_write_key(json, "out_of_time");
    tsk_json_write_bool(json, t->is_out_of_time);
    tsk_json_write_key(json, "plain");
    write_tuned(t, json, &t->plain);
    tsk_json_write_key(json, "tried");
    tsk_json_begin_array(json);
    for (i = 0; i < t->n_tried; i++)
        if (t->tried[i].e.done) write_tuned(t, json, &t->tried[i]);
    tsk_json_end_array(json);
}
