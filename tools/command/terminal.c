/* What goes to a terminal, and the signals that come from one. */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <unistd.h>

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

/* ---- Signals ---------------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted, terminated, cursor_hidden;
static int wake_up[2] = {-1, -1}; /* a pipe: a signal that comes just before a read is still there when it waits */
static const char show_cursor[] = "\033[?25h";

int cli_interrupted(void) { return terminated ? SIGTERM : interrupted ? SIGINT : 0; }

static void on_signal(int signal_number) {
    int saved = errno, is_second = cli_interrupted();
    if (cursor_hidden && write(STDERR_FILENO, show_cursor, sizeof show_cursor - 1) > 0) cursor_hidden = 0;
    if (is_second) _exit(128 + signal_number);
    if (signal_number == SIGTERM) terminated = 1;
    else interrupted = 1;
    if (write(wake_up[1], "", 1) < 0) errno = saved; /* full: it wakes up all the same */
    errno = saved;
}

static void open_wake_up(void) {
    int i;
    if (wake_up[0] >= 0 || pipe(wake_up) != 0) return;
    for (i = 0; i < 2; i++) {
        fcntl(wake_up[i], F_SETFL, O_NONBLOCK);
        fcntl(wake_up[i], F_SETFD, FD_CLOEXEC);
    }
}

/* Without SA_RESTART: a call that blocks ends with EINTR. */
void cli_catch_interrupts(void) {
    struct sigaction action;
    open_wake_up();
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGINT);
    sigaddset(&action.sa_mask, SIGTERM);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* In this order: a Ctrl-C that comes in between stays in the pipe, and the next cli_read tells of it. */
void cli_forget_interrupt(void) {
    char bytes[16];
    while (wake_up[0] >= 0 && read(wake_up[0], bytes, sizeof bytes) > 0) continue;
    interrupted = 0;
}

int cli_exit_status(int status) { return status != CLI_OK && cli_interrupted() ? 128 + cli_interrupted() : status; }

/* 0: a signal came. */
static int wait_for_input(int descriptor) {
    fd_set set;
    int last = descriptor > wake_up[0] ? descriptor : wake_up[0];
    if (wake_up[0] < 0 || last >= FD_SETSIZE) return !cli_interrupted();
    do {
        FD_ZERO(&set);
        FD_SET(descriptor, &set);
        FD_SET(wake_up[0], &set);
    } while (select(last + 1, &set, NULL, NULL, NULL) < 0 && errno == EINTR);
    return !FD_ISSET(wake_up[0], &set) && !cli_interrupted();
}

ssize_t cli_read(int descriptor, char *bytes, size_t size) {
    ssize_t n;
    do {
        if (!wait_for_input(descriptor)) {
            errno = EINTR;
            return -1;
        }
        n = read(descriptor, bytes, size);
    } while (n < 0 && (errno == EINTR || (errno == EAGAIN && wake_up[0] >= 0)));
    return n;
}

/* ---- The screen ------------------------------------------------------------------------------------------------- */

int cli_stderr_is_terminal(void) {
    const char *term = getenv("TERM");
    return isatty(STDERR_FILENO) && !(term && strcmp(term, "dumb") == 0);
}

void cli_hide_cursor(int hide) {
    if (hide && !cli_interrupted()) {
        fputs("\033[?25l", stderr);
        cursor_hidden = 1;
    }
    if (!hide && cursor_hidden) {
        fputs(show_cursor, stderr);
        cursor_hidden = 0;
    }
    fflush(stderr);
}

void cli_terminal_size(int *columns, int *rows) {
    struct winsize size;
    int known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0;
    *columns = known && size.ws_col > 0 ? size.ws_col : 80;
    *rows = known && size.ws_row > 0 ? size.ws_row : 24;
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
