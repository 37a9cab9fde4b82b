/* Two settings, or two models, that answer the same questions, and where they differ. */
#ifndef COMPARISON_H
#define COMPARISON_H

#include "divergence.h"
#include "questions.h"

typedef struct comparison_side {
    cli_settings settings;
    cli_engine engine;     /* a session of its own; the model of both, or one of two */
    evaluation e;
    judged_answer last;
    const char *place;     /* of its messages: "--against", "--against-model", or NULL */
} comparison_side;

typedef struct comparison {
    comparison_side given, against;
    size_t gained, lost;   /* right under the given settings only; under the others only */
    size_t identical;      /* answers, token for token up to the text's end */
    divergence divergence; /* of two models */
    char **words;          /* the texts of `against` */
} comparison;

/* The settings of the command line and those of its --against and --against-model. CLI_CONTINUE, or CLI_USAGE after a
   message. */
int comparison_read(comparison *c, const cli_settings *settings);
/* Both answer each question, in turn. The models, which may be one, stay the caller's, to be freed after the
   comparison. */
int comparison_run(comparison *c, const cli_engine *engine, const cli_engine *other, const question_list *questions);
void comparison_free(comparison *c);

#endif
