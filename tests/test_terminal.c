/* What goes to a terminal, signals, and progress: the command's own functions, under a clock that the test sets. */
#include "../tokenskip.h"

#include "test.h"

#define clock_gettime test_clock
#include "../tools/command/system.c"
#include "../tools/command/terminal.c"
#include "../tools/command/cli.c"

#include <sys/wait.h>

static double seconds;

int test_clock(clockid_t clock, struct timespec *out) {
    (void)clock;
    out->tv_sec = (time_t)seconds;
    out->tv_nsec = 0;
    return 0;
}

int cli_given(const cli_settings *settings, const char *option) { return (void)settings, (void)option, 0; }

/* ---- Text ------------------------------------------------------------------------------------------------------- */

static void check_visible(const char *text, size_t size, const char *expected) {
    tsk_text out = {0};
    cli_append_visible(&out, text, size);
    CHECK_STRING(out.data ? out.data : "", expected);
    tsk_text_free(&out);
}

#define CHECK_VISIBLE(text, expected) check_visible(text, sizeof(text) - 1, expected)

#define PLAIN "plain, \xC3\xA4, \xE4\xBD\xA0, \xF0\x9F\x98\x80\n\tindented"
/* U+200D, 2027, 202F, 2065, 206A: next to what is made visible */
#define BESIDE_THEM "\xE2\x80\x8D\xE2\x80\xA7\xE2\x80\xAF\xE2\x81\xA5\xE2\x81\xAA"

static void test_visible(void) {
    CHECK_VISIBLE("", "");
    CHECK_VISIBLE(PLAIN, PLAIN);
    CHECK_VISIBLE(BESIDE_THEM, BESIDE_THEM);
    CHECK_VISIBLE("\033[2J\033]0;title\a", "\\u001b[2J\\u001b]0;title\\u0007");
    CHECK_VISIBLE("a\rb\bc\0d\x7F", "a\\u000db\\u0008c\\u0000d\\u007f");
    CHECK_VISIBLE("\xC2\x80|\xC2\x9B" "2J|\xC2\x9F|\xC2\xA0", "\\u0080|\\u009b2J|\\u009f|\xC2\xA0");
    CHECK_VISIBLE("\xE2\x80\xAA\xE2\x80\xAE|\xE2\x81\xA6\xE2\x81\xA9", "\\u202a\\u202e|\\u2066\\u2069");
    CHECK_VISIBLE("\xE2\x80\x8E\xE2\x80\x8F\xD8\x9C", "\\u200e\\u200f\\u061c");
    CHECK_VISIBLE("\xE2\x80\xA8\xE2\x80\xA9", "\\u2028\\u2029");
    /* not UTF-8: a lone continuation (C1 to some terminals), an end too early, ESC and U+202E spelled overlong, a
       surrogate, beyond the last character */
    CHECK_VISIBLE("\x9B" "2J", "\\x9b2J");
    CHECK_VISIBLE("\xE2\x80", "\\xe2\\x80");
    CHECK_VISIBLE("\xE2\x80\033", "\\xe2\\x80\\u001b");
    CHECK_VISIBLE("\xC0\x9B", "\\xc0\\x9b");
    CHECK_VISIBLE("\xF0\x82\x80\xAE", "\\xf0\\x82\\x80\\xae");
    CHECK_VISIBLE("\xED\xA0\x80", "\\xed\\xa0\\x80");
    CHECK_VISIBLE("\xF4\x90\x80\x80\xFF", "\\xf4\\x90\\x80\\x80\\xff");
}

/* ---- stderr, kept in a file ------------------------------------------------------------------------------------- */

static char said[65536];
static int real_stderr;

static void begin_stderr(void) {
    char path[600];
    int file;
    snprintf(path, sizeof path, "%s/stderr", tsk_test_temp_dir());
    file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    real_stderr = dup(STDERR_FILENO);
    dup2(file, STDERR_FILENO);
    close(file);
}

static const char *end_stderr(void) {
    ssize_t n;
    fflush(stderr);
    n = pread(STDERR_FILENO, said, sizeof said - 1, 0);
    said[n > 0 ? n : 0] = 0;
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    return said;
}

/* A file gets the bytes, and still one line for each message. */
static void test_messages(void) {
    static char name[8192]; /* longer than any message */
    tsk_text kept = {0};
    begin_stderr();
    cli_fail("%s: none", "a\033[31m\xE2\x80\xAE\xFF\tb\nc");
    CHECK_STRING(end_stderr(), "tokenskip: a\033[31m\xE2\x80\xAE\xFF\tb\\u000ac: none\n");
    memset(name, '\n', sizeof name - 1);
    begin_stderr();
    cli_fail("%s", name);
    end_stderr();
    CHECK_INT(strlen(said), strlen("tokenskip: ") + 6 * 2047 + 1);
    begin_stderr();
    cli_keep_messages(&kept);
    cli_fail("%s", "a\033\n");
    cli_keep_messages(NULL);
    CHECK_STRING(end_stderr(), "");
    CHECK_STRING(kept.data, "a\033\n"); /* JSON has forms of its own for them */
    tsk_text_free(&kept);
}

static void test_progress(void) {
    begin_stderr();
    seconds = 100;
    cli_progress("eval", 0, "0/9");
    seconds = 129;
    cli_progress("eval", 0.1, "1/9");
    CHECK_STRING(end_stderr(), "");
    begin_stderr();
    seconds = 130;
    cli_progress("eval", 0.2, "2/9");
    cli_progress("eval", 0.3, "3/9");
    seconds = 159;
    cli_progress("eval", 0.4, "4/9");
    CHECK_STRING(end_stderr(), "tokenskip: eval: 2/9\n");
    begin_stderr();
    seconds = 161;
    cli_progress_again();
    cli_progress_again();
    cli_progress_clear();
    seconds = 300;
    cli_progress_again();
    CHECK_STRING(end_stderr(), "tokenskip: eval: 4/9\n");
    begin_stderr();
    cli_progress("eval", 0, "0/9"); /* of the next of several works: the half minutes go on */
    CHECK_STRING(end_stderr(), "tokenskip: eval: 0/9\n");
    cli_progress_clear();
}

/* ---- Signals ---------------------------------------------------------------------------------------------------- */

/* The exit status of a process that does this; -1 where a signal ends it. It may take a minute. */
static int status_of(int (*act)(void)) {
    int status;
    pid_t process = fork();
    if (process == 0) {
        alarm(60);
        cli_catch_interrupts();
        _exit(act());
    }
    waitpid(process, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int none(void) { return cli_interrupted() || cli_exit_status(CLI_FAILED) != CLI_FAILED; }

static int one(int signal_number) {
    raise(signal_number);
    return cli_exit_status(CLI_OK) == CLI_OK && cli_interrupted() == signal_number ? cli_exit_status(CLI_FAILED) : 0;
}

static int one_interrupt(void) { return one(SIGINT); }
static int one_termination(void) { return one(SIGTERM); }

static int two(int first, int second) {
    raise(first);
    raise(second);
    return 0;
}

static int two_interrupts(void) { return two(SIGINT, SIGINT); }
static int interrupt_then_termination(void) { return two(SIGINT, SIGTERM); }

static int forgotten(void) {
    raise(SIGINT);
    cli_forget_interrupt();
    if (cli_interrupted()) return 1;
    raise(SIGINT); /* is a first one again */
    return cli_interrupted() == SIGINT ? 0 : 1;
}

static int never_forgotten(void) {
    raise(SIGTERM);
    cli_forget_interrupt();
    return cli_interrupted() == SIGTERM ? 0 : 1;
}

/* A pipe that nobody ever writes. */
static int is_ended(int descriptor) {
    char byte;
    return cli_read(descriptor, &byte, 1) == -1 && errno == EINTR;
}

static int before_a_read(void) {
    int ends[2], good = pipe(ends) == 0;
    raise(SIGINT);
    good = good && is_ended(ends[0]) && is_ended(ends[0]);
    cli_forget_interrupt();
    return good && write(ends[1], "x", 1) == 1 && !is_ended(ends[0]) ? 0 : 1;
}

static int during_a_read(void) {
    int ends[2], good = pipe(ends) == 0;
    if (fork() == 0) {
        static const struct timespec pause = {0, 50000000};
        nanosleep(&pause, NULL); /* most likely it reads by then; if not, it has not begun to */
        kill(getppid(), SIGTERM);
        _exit(0);
    }
    return good && is_ended(ends[0]) ? 0 : 1;
}

static int while_loading(void) {
    cli_engine engine;
    cli_settings settings;
    memset(&settings, 0, sizeof settings);
    settings.model = tsk_model_options_default();
    settings.model_dir = "tests/golden/models/mha-f32";
    raise(SIGTERM);
    begin_stderr();
    if (cli_load_model(&engine, &settings) == CLI_OK) return 0;
    end_stderr();
    if (strcmp(said, "tokenskip: interrupted while loading tests/golden/models/mha-f32\n") != 0) return 1;
    return cli_exit_status(CLI_FAILED);
}

static void test_signals(void) {
    CHECK_INT(status_of(none), 0);
    CHECK_INT(status_of(one_interrupt), 130);
    CHECK_INT(status_of(one_termination), 143);
    CHECK_INT(status_of(two_interrupts), 130);
    CHECK_INT(status_of(interrupt_then_termination), 143);
    CHECK_INT(status_of(forgotten), 0);
    CHECK_INT(status_of(never_forgotten), 0);
    CHECK_INT(status_of(before_a_read), 0);
    CHECK_INT(status_of(during_a_read), 0);
    CHECK_INT(status_of(while_loading), 143);
}

int main(void) {
    test_visible();
    test_messages();
    test_progress();
    test_signals();
    return test_end("test_terminal");
}
