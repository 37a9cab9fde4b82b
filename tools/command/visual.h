/* --visual: the blocks filling in, in the terminal. Drawn on stderr, so that stdout keeps the text alone; nothing at
   all is drawn where stderr is no terminal. */
#ifndef VISUAL_H
#define VISUAL_H

#include "cli.h"

typedef struct visual {
    const tsk_tokenizer *tokenizer; /* NULL: ids are drawn */
    int is_on;
    int is_coloured;                /* 0: bold, dim and underline only (NO_COLOR) */
    int rows_drawn;                 /* of the last frame, to go back up over them */
    int by_blocks;                  /* the model attends by blocks */
    int32_t n_blocks, mask_id, gen_length;
    int32_t first;                  /* canvas position where the drawing begins */
    double pause_ms;                /* least time between frames, so that an eye can follow a small model */
    double last_frame;
} visual;

void visual_begin(visual *view, const cli_engine *engine, const cli_settings *settings);
void visual_step(visual *view, const tsk_step *step);
/* Wipes the drawing and shows the cursor: the text is printed next, in its place. */
void visual_end(visual *view);

/* Columns that a terminal gives a text without control characters. */
int visual_width(const char *text, size_t size);

#endif
