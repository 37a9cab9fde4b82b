/* What goes to a terminal. */
#include "system.h"

/* ---- Text ------------------------------------------------------------------------------------------------------- */

/* The library's decoder hands out valid UTF-8, but file names and what a message quotes may be anything. Overlong forms
   and surrogates are invalid, as in any decoder: a terminal may take them for what they spell. */
uint32_t cli_next_character(const char *text, size_t size, size_t *length) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned char first = (unsigned char)text[0];
    size_t i, n = first < 0x80 ? 1 : first < 0xC0 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF8 ? 4 : 0;
    uint32_t c = n == 1 ? first : first & (0x7Fu >> n);
    *length = 1;
    if (n == 0 || n > size) return CLI_NO_CHARACTER;
    for (i = 1; i < n; i++) {
        if (((unsigned char)text[i] & 0xC0) != 0x80) return CLI_NO_CHARACTER;
        c = c << 6 | ((unsigned char)text[i] & 0x3Fu);
    }
    if (c < least[n] || c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF)) return CLI_NO_CHARACTER;
    *length = n;
    return c;
}

/* Controls (C0, DEL, C1), the separators that end a line for some terminals, and what changes the direction in which
   the rest of a line is shown. */
static int drives_terminal(uint32_t c) {
    if (c == '\n' || c == '\t') return 0;
    return c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0x61C || c == 0x200E || c == 0x200F ||
           (c >= 0x2028 && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069);
}

size_t cli_visible_character(const char *text, size_t size, char form[CLI_VISIBLE_SIZE], size_t *length) {
    uint32_t c = cli_next_character(text, size, length);
    if (c == CLI_NO_CHARACTER) return (size_t)snprintf(form, CLI_VISIBLE_SIZE, "\\x%02x", text[0] & 0xFFu);
    if (drives_terminal(c)) return (size_t)snprintf(form, CLI_VISIBLE_SIZE, "\\u%04x", (unsigned)c);
    memcpy(form, text, *length);
    return *length;
}

void cli_append_visible(tsk_text *out, const char *text, size_t size) {
    char form[CLI_VISIBLE_SIZE];
    size_t i, length;
    for (i = 0; i < size; i += length) {
        size_t n = cli_visible_character(text + i, size - i, form, &length);
        cli_append_bytes(out, form, n);
    }
}

/* ---- The screen ------------------------------------------------------------------------------------------------- */

int cli_stderr_is_terminal(void) { return system_can_draw(SYSTEM_STDERR); }

void cli_terminal_size(int *columns, int *rows) {
    int known = system_terminal_size(SYSTEM_STDERR, columns, rows);
    if (!known || *columns <= 0) *columns = 80;
    if (!known || *rows <= 0) *rows = 24;
}

/* ---- Progress --------------------------------------------------------------------------------------------------- */

static int bar_shown;
static double bar_drawn; /* when */

static void draw_bar(const char *label, double fraction, const char *tail) {
    enum { WIDTH = 24 };
    char bar[WIDTH + 1], line[256];
    int columns, rows, filled = (int)(fraction * WIDTH + 0.5);
    if (bar_shown && cli_now_ms() - bar_drawn < 50) return;
    if (filled < 0) filled = 0;
    if (filled > WIDTH) filled = WIDTH;
    memset(bar, '-', WIDTH);
    memset(bar, '#', (size_t)filled);
    bar[WIDTH] = 0;
    cli_terminal_size(&columns, &rows);
    snprintf(line, sizeof line, "%s [%s] %s", label, bar, tail);
    fprintf(stderr, "\r%.*s\033[K", columns - 1, line);
    fflush(stderr);
    bar_shown = 1;
    bar_drawn = cli_now_ms();
}

/* Of a work shorter than this nothing is said. */
static const double line_interval_ms = 30e3;
static char progress_line[256]; /* the last one; empty: no work is under way */
static double line_due;         /* when the next one is written; 0: no work has begun yet */

void cli_progress_again(void) {
    double now = cli_now_ms();
    if (!progress_line[0] || now < line_due) return;
    fprintf(stderr, "tokenskip: %s\n", progress_line);
    line_due = now + line_interval_ms;
}

void cli_progress(const char *label, double fraction, const char *tail) {
    if (cli_stderr_is_terminal()) {
        draw_bar(label, fraction, tail);
        return;
    }
    snprintf(progress_line, sizeof progress_line, "%s: %s", label, tail);
    if (line_due <= 0) line_due = cli_now_ms() + line_interval_ms;
    cli_progress_again();
}

void cli_progress_clear(void) {
    progress_line[0] = 0;
    if (!bar_shown) return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    bar_shown = 0;
}
