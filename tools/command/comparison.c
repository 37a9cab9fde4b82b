#include "comparison.h"

/* ---- Settings --------------------------------------------------------------------------------------------------- */

int comparison_read(comparison *c, const cli_settings *settings) {
    int status = CLI_CONTINUE;
    memset(c, 0, sizeof *c);
    c->given.settings = c->against.settings = *settings;
    c->against.place = settings->against ? "--against" : "--against-model";
    if (settings->against)
        status = cli_parse_against(&c->against.settings, settings, "eval", c->against.place, settings->against,
                                   &c->words);
    if (!settings->against_model) return status;
    c->against.settings.model_dir = settings->against_model;
    c->against.settings.model.weights = TSK_WEIGHTS_AS_STORED;
    return status;
}

/* ---- Running ---------------------------------------------------------------------------------------------------- */

static int open_side(comparison_side *side, const cli_engine *engine, size_t n_questions) {
    int status;
    side->engine = *engine;
    side->engine.session = NULL;
    cli_place_messages(side->place);
    status = evaluation_open(&side->e, &side->engine, &side->settings, n_questions);
    cli_place_messages(NULL);
    return status;
}

static int ask(comparison_side *side, const question *q) {
    int status;
    cli_place_messages(side->place);
    status = evaluation_ask(&side->e, &side->engine, &side->settings, q, &side->last);
    cli_place_messages(NULL);
    if (status == CLI_OK && side->last.result.finish_reason == TSK_FINISH_CANCELLED)
        status = evaluation_interrupted(&side->e);
    return status;
}

/* One answer that does not count: whoever reads the weights first waits for them. */
static int warm_up(comparison_side *side, const question *q) {
    size_t asked = side->e.asked;
    int status = ask(side, q);
    evaluation_free(&side->e);
    side->e.asked = asked;
    return status;
}

static int is_identical(const tsk_result *a, const tsk_result *b) {
    return a->n_before_end == b->n_before_end &&
           memcmp(a->tokens, b->tokens, (size_t)a->n_before_end * sizeof *a->tokens) == 0;
}

static void count_pair(comparison *c, const question *q) {
    size_t gained = (size_t)(c->given.last.is_right && !c->against.last.is_right);
    size_t lost = (size_t)(!c->given.last.is_right && c->against.last.is_right);
    c->gained += gained;
    c->lost += lost;
    c->identical += (size_t)is_identical(&c->given.last.result, &c->against.last.result);
    if (q->kind) {
        tally *kind = evaluation_kind(&c->given.e, q->kind);
        kind->gained += gained;
        kind->lost += lost;
    }
}

static void show_progress(const comparison *c) {
    const evaluation *given = &c->given.e, *against = &c->against.e;
    char tail[128];
    double done = (double)given->done, asked = (double)given->asked;
    if (!given->done) snprintf(tail, sizeof tail, "0/%zu", given->asked);
    else
        snprintf(tail, sizeof tail, "%zu/%zu, %.1f%% right against %.1f%%, %.0f s left", given->done, given->asked,
                 100 * (double)given->right / done, 100 * (double)against->right / done,
                 (given->milliseconds + against->milliseconds) / 1e3 / done * (asked - done));
    cli_progress("eval", done / asked, tail);
}

int comparison_run(comparison *c, const cli_engine *engine, const cli_engine *other, const question_list *questions) {
    size_t i;
    int status = open_side(&c->given, engine, questions->count);
    if (status == CLI_OK) status = open_side(&c->against, other, questions->count);
    if (status == CLI_OK && other->model != engine->model)
        status = divergence_measure(&c->divergence, engine, other, &c->given.settings, questions, "logits");
    show_progress(c);
    if (status == CLI_OK) status = warm_up(&c->given, &questions->items[0]);
    if (status == CLI_OK) status = warm_up(&c->against, &questions->items[0]);
    for (i = 0; i < questions->count && status == CLI_OK; i++) {
        const question *q = &questions->items[i];
        status = ask(i % 2 ? &c->against : &c->given, q); /* what follows finds warm caches: each does, in turn */
        if (status == CLI_OK) status = ask(i % 2 ? &c->given : &c->against, q);
        if (status == CLI_OK) {
            count_pair(c, q);
            show_progress(c);
        }
    }
    cli_progress_clear();
    return status;
}

static void free_side(comparison_side *side) {
    tsk_session_free(side->engine.session);
    evaluation_free(&side->e);
}

void comparison_free(comparison *c) {
    free_side(&c->given);
    free_side(&c->against);
    free(c->words);
    memset(c, 0, sizeof *c);
}
