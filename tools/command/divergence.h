/* How far one model's predictions are from another's, on the same canvases. */
#ifndef DIVERGENCE_H
#define DIVERGENCE_H

#include "questions.h"

enum { DIVERGENCE_PROMPTS = 64 };

/* Sums over the masked positions of first blocks, in every state that the other model's generation takes them
   through. */
typedef struct divergence {
    size_t prompts, positions, same_best; /* positions where both predict the same token */
    double kl;                 /* of the Kullback-Leibler divergences from the other's distribution to its, in nats */
    double differences;        /* of a position's mean |difference| of logits */
} divergence;

/* Of so many of the questions, evenly spread, under the settings' generation with the plain cache. Progress is shown
   under `label`. */
int divergence_measure(divergence *d, const cli_engine *engine, const cli_engine *other, const cli_settings *settings,
                       const question_list *questions, const char *label);

#endif
