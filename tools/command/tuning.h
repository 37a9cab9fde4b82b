/* Many settings that answer the same questions, fewer of them the more questions there are (successive halving: K.
   Jamieson, A. Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016). Each
   is compared, question by question, with the plain dual cache. */
#ifndef TUNING_H
#define TUNING_H

#include "questions.h"

typedef struct tuned {
    char options[256];         /* as one types them */
    cli_settings settings;
    char **words;              /* the texts of `settings` */
    evaluation e;
    size_t gained, lost;       /* right here only; right under the plain dual cache only */
    size_t changed;            /* answers with other tokens */
    double plain_ms;           /* the plain dual cache's time of the same questions */
    int is_alive;              /* not left behind yet */
} tuned;

typedef struct tuning {
    const cli_settings *settings;
    cli_engine *engine;
    question_list questions;   /* spread evenly over the file at every moment */
    int has_answers;           /* every question has one */
    tuned plain;
    struct plain_answer *answers; /* [questions.count] of the plain dual cache */
    tuned *tried;              /* [n_tried] */
    size_t n_tried, n_alive, n_asked; /* n_asked: questions that each living one has answered */
    double started;            /* clock, ms */
    int is_out_of_time;
} tuning;

/* Which of two settings, as far as they are known, is to be kept; below 0: a. */
typedef int tuning_order(const tuning *t, const tuned *a, const tuned *b);

/* Loads questions and model, and answers until all questions are or the minutes are over. */
int tuning_run(tuning *t, cli_engine *engine, const cli_settings *settings, tuning_order *order);
void tuning_free(tuning *t);

/* What a setting has done worse than the plain dual cache: the share of answers that it has lost, those gained taken
   off; where there are no answers to compare with, the share that changed. */
double tuned_error(const tuning *t, const tuned *s);
/* Time an answer, beside the plain dual cache's for the same questions. */
double tuned_time(const tuned *s);

/* How many settings answered a question. */
size_t tuning_tried(const tuning *t);

void tuning_table(const tuning *t, tsk_text *out);
/* The members of an object: the plain dual cache and all that was tried. */
void tuning_json(const tuning *t, tsk_json_writer *json);
int tuning_picture(const tuning *t, const char *path, const char *title);

#endif
