/* Questions in a JSONL file, and how many of them a model answers right. */
#ifndef QUESTIONS_H
#define QUESTIONS_H

#include "cli.h"

typedef struct question {
    const char *prompt, *answer, *kind; /* kind NULL: none given */
    size_t prompt_length, answer_length;
    size_t line;                        /* in the file, from 1 */
    tsk_json *document;                 /* holds the three */
} question;

typedef struct question_list {
    question *items;
    size_t count;
} question_list;

/* All of the file is checked, before a model is loaded: a fault in line 400 should not come up after 399 answers.
   limit 0: all; else so many are kept, evenly spread. needs_answers 0: prompts are enough. */
int questions_load(question_list *out, const char *path, int32_t limit, int needs_answers);
void questions_free(question_list *questions);

/* Answers of one kind, in order of the kinds' first appearance. */
typedef struct tally {
    const char *kind;
    size_t n, right;
    size_t gained, lost; /* beside other settings: right here only, right there only (comparison.h) */
} tally;

typedef struct evaluation {
    tally *kinds;
    size_t n_kinds;
    size_t asked, done, right;
    double nfe, refreshes, tokens, milliseconds, cpu_ms;
    uint64_t rows;            /* positions that ran through all layers, of all passes */
    uint64_t computed, total; /* token-layers of block steps */
} evaluation;

/* `result` is good until the session's next answer. */
typedef struct judged_answer {
    tsk_result result;
    int is_right;
} judged_answer;

/* Asks all of them in a session of these settings, which it opens. `label`: of the progress bar. */
int evaluate(evaluation *e, cli_engine *engine, const cli_settings *settings, const question_list *questions,
             const char *label);
/* The same in steps, so that several settings can take turns: a session of these settings, for an evaluation that stays
   in its place; one answer, which counts unless it was interrupted (TSK_FINISH_CANCELLED, not a failure yet); what is
   said then. */
int evaluation_open(evaluation *e, cli_engine *engine, const cli_settings *settings, size_t n_questions);
int evaluation_ask(evaluation *e, const cli_engine *engine, const cli_settings *settings, const question *q,
                   judged_answer *out);
int evaluation_interrupted(const evaluation *e);
/* The tally of that kind, a new one if need be. */
tally *evaluation_kind(evaluation *e, const char *kind);
void evaluation_free(evaluation *e);

#endif
