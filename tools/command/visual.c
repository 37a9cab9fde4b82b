#include "system.h"
#include "visual.h"

/* ---- Width of a character --------------------------------------------------------------------------------------- */

static int in_ranges(uint32_t c, const uint32_t (*ranges)[2], size_t count) {
    size_t i;
    for (i = 0; i < count; i++)
        if (c >= ranges[i][0] && c <= ranges[i][1]) return 1;
    return 0;
}

/* Columns a terminal gives a character: the East Asian and emoji blocks take two, combining marks none. A table of
   blocks instead of wcwidth, which depends on the locale. */
static int character_width(uint32_t c) {
    static const uint32_t none[][2] = {{0x300, 0x36F},   {0x483, 0x489},   {0x591, 0x5BD},    {0x610, 0x61A},
                                       {0x64B, 0x65F},   {0x1AB0, 0x1AFF}, {0x1DC0, 0x1DFF},  {0x200B, 0x200F},
                                       {0x2028, 0x202E}, {0x2060, 0x2064}, {0x20D0, 0x20F0},  {0xFE00, 0xFE0F},
                                       {0xFE20, 0xFE2F}, {0xFEFF, 0xFEFF}, {0xE0100, 0xE01EF}};
    static const uint32_t two[][2] = {{0x1100, 0x115F},  {0x2E80, 0x303E},   {0x3041, 0xA4CF},   {0xA960, 0xA97F},
                                      {0xAC00, 0xD7A3},  {0xF900, 0xFAFF},   {0xFE30, 0xFE6F},   {0xFF00, 0xFF60},
                                      {0xFFE0, 0xFFE6},  {0x1F300, 0x1F64F}, {0x1F680, 0x1F6FF}, {0x1F900, 0x1F9FF},
                                      {0x20000, 0x3FFFD}};
    if (c < 0x300) return 1;
    if (in_ranges(c, none, sizeof none / sizeof none[0])) return 0;
    return in_ranges(c, two, sizeof two / sizeof two[0]) ? 2 : 1;
}

int visual_width(const char *text, size_t size) {
    size_t i, n;
    int width = 0;
    for (i = 0; i < size; i += n) width += character_width(cli_next_character(text + i, size - i, &n));
    return width;
}

/* ---- A frame: rows of styled text ------------------------------------------------------------------------------- */

enum { MAX_ROWS = 256 };

typedef struct frame {
    tsk_text text;
    size_t starts[MAX_ROWS]; /* where row r begins, at r modulo MAX_ROWS: only the last rows can be on screen */
    int row, column, columns;
} frame;

static void next_row(frame *f) {
    f->row++;
    f->column = 0;
    f->starts[f->row % MAX_ROWS] = f->text.length;
}

/* Every row stands alone: a style is switched off before its end and on again after, so that the upper rows of a tall
   frame can be left out. A tab is a space, so that a column has one width. */
static void put(frame *f, const char *text, size_t size, const char *style) {
    tsk_text visible = {0};
    size_t i, n;
    cli_append_visible(&visible, text, size); /* the text is a model's */
    cli_append(&f->text, "%s", style);
    for (i = 0; i < visible.length; i += n) {
        uint32_t c = cli_next_character(visible.data + i, visible.length - i, &n);
        int width = c == '\n' ? 0 : character_width(c);
        if (c == '\n' || f->column + width > f->columns) {
            cli_append(&f->text, "%s", style[0] ? "\033[0m" : "");
            next_row(f);
            cli_append(&f->text, "%s", style);
        }
        if (c == '\t') cli_append(&f->text, " ");
        else if (c != '\n') cli_append_bytes(&f->text, visible.data + i, n);
        f->column += width;
    }
    cli_append(&f->text, "%s", style[0] ? "\033[0m" : "");
    tsk_text_free(&visible);
}

/* Goes up over the last frame and writes this one over it, in one piece so that nothing flickers. */
static void show(visual *view, frame *f, int rows) {
    tsk_text out = {0};
    int row, first = f->row + 1 > rows - 1 ? f->row + 2 - rows : 0;
    if (f->row - first >= MAX_ROWS) first = f->row - MAX_ROWS + 1;
    if (view->rows_drawn > 1) cli_append(&out, "\033[%dA", view->rows_drawn - 1);
    cli_append(&out, "\r");
    for (row = first; row <= f->row; row++) {
        size_t begin = f->starts[row % MAX_ROWS];
        size_t end = row < f->row ? f->starts[(row + 1) % MAX_ROWS] : f->text.length;
        cli_append_bytes(&out, f->text.data + begin, end - begin);
        cli_append(&out, "\033[K%s", row < f->row ? "\r\n" : "\033[J");
    }
    view->rows_drawn = f->row - first + 1;
    fwrite(out.data, 1, out.length, stderr);
    fflush(stderr);
    tsk_text_free(&out);
}

/* ---- What is drawn ---------------------------------------------------------------------------------------------- */

/* Fresh tokens stand out, skipped ones fade. */
static const char *token_style(const visual *view, int is_fresh, int is_skipped) {
    if (is_fresh) return view->is_coloured ? "\033[1;32m" : "\033[1m";
    return is_skipped ? "\033[2;4m" : "";
}

static void flush_decoder(frame *f, tsk_decoder *decoder, const char *style) {
    tsk_text piece = {0};
    if (tsk_decoder_flush(decoder, &piece) == TSK_OK) put(f, piece.data, piece.length, style);
    tsk_text_free(&piece);
}

static void put_token(visual *view, frame *f, tsk_decoder *decoder, int32_t id, const char *style) {
    tsk_text piece = {0};
    if (!view->tokenizer) cli_append(&piece, "%d ", (int)id);
    else if (tsk_tokenizer_is_special(view->tokenizer, id)) {
        flush_decoder(f, decoder, style);
        cli_append(&piece, "\xC2\xB7"); /* a middle dot: the end of the text, most often */
        style = "\033[2m";
    } else if (tsk_decoder_push(view->tokenizer, decoder, id, &piece, NULL) != TSK_OK) piece.length = 0;
    put(f, piece.data, piece.length, style);
    tsk_text_free(&piece);
}

/* The style of a committed token: only the block at work has anything to show. */
static const char *style_at(const visual *view, const tsk_step *step, int32_t position) {
    int32_t i;
    for (i = 0; i < step->n_positions; i++)
        if (step->positions[i] == position) return token_style(view, step->committed[i], !step->active[i]);
    return "";
}

static void put_canvas(visual *view, frame *f, const tsk_step *step) {
    tsk_decoder decoder = {{0}, 0, 0};
    int32_t position;
    for (position = view->first; position < step->prompt_length + view->gen_length; position++) {
        int32_t id = step->canvas[position];
        if (id == view->mask_id) {
            flush_decoder(f, &decoder, "");
            put(f, "\xE2\x96\x91", 3, "\033[2m"); /* a light shade block */
        } else {
            put_token(view, f, &decoder, id, style_at(view, step, position));
        }
    }
    flush_decoder(f, &decoder, "");
}

static void put_status(const visual *view, frame *f, const tsk_step *step) {
    char line[160];
    int n;
    next_row(f);
    n = snprintf(line, sizeof line, "pass %d, block %d of %d, %d masks left", (int)step->pass + 1, (int)step->block + 1,
                 (int)view->n_blocks, (int)step->masks_left);
    if (step->n_active < step->n_positions && !step->is_prompt)
        snprintf(line + n, sizeof line - (size_t)n, ", %d of %d tokens skipped",
                 (int)(step->n_positions - step->n_active), (int)step->n_positions);
    line[f->columns - 1 < (int)sizeof line ? f->columns - 1 : (int)sizeof line - 1] = 0;
    put(f, line, strlen(line), "\033[2m");
}

/* The drawing begins at the first mask of the prompt where it has one, else after the prompt. By blocks the prompt's
   rest is a part of the first block. */
static void find_first(visual *view, const tsk_step *step) {
    int infills = step->positions[0] < step->prompt_length;
    if (step->pass != 0) return;
    if (view->by_blocks) {
        view->first = step->prompt_length;
        view->n_blocks = (step->canvas_length - step->positions[0]) / step->n_positions;
        return;
    }
    view->first = infills ? step->positions[0] : step->prompt_length;
    view->n_blocks += infills; /* the infilling block comes on top */
}

static void wait_for_frame(visual *view) {
    double left = view->last_frame + view->pause_ms - cli_now_ms();
    if (left > 0) system_sleep_ms(left);
    view->last_frame = cli_now_ms();
}

void visual_begin(visual *view, const cli_engine *engine, const cli_settings *settings) {
    const char *no_color = getenv("NO_COLOR");
    memset(view, 0, sizeof *view);
    view->tokenizer = engine->tokenizer;
    view->is_on = settings->visual && cli_stderr_is_terminal();
    view->is_coloured = !(no_color && no_color[0]);
    view->n_blocks =
        settings->generate.block_length > 0 ? settings->generate.gen_length / settings->generate.block_length : 0;
    view->by_blocks = settings->by_blocks;
    view->gen_length = settings->generate.gen_length;
    view->mask_id = tsk_model_get_config(engine->model)->mask_token_id;
    view->pause_ms = settings->json ? 0 : 40; /* JSON has timings: nothing is slowed down for show */
}

void visual_step(visual *view, const tsk_step *step) {
    frame f;
    int rows;
    if (!view->is_on) return;
    find_first(view, step);
    wait_for_frame(view);
    memset(&f, 0, sizeof f);
    cli_terminal_size(&f.columns, &rows);
    if (!view->rows_drawn) cli_hide_cursor(1);
    put_canvas(view, &f, step);
    put_status(view, &f, step);
    show(view, &f, rows);
    tsk_text_free(&f.text);
}

void visual_end(visual *view) {
    if (view->rows_drawn > 1) fprintf(stderr, "\033[%dA", view->rows_drawn - 1);
    if (view->rows_drawn) fputs("\r\033[J", stderr);
    cli_hide_cursor(0);
    view->rows_drawn = 0;
}
