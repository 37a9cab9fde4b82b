/* on_terminal STEP... -- COMMAND...: runs the command on a terminal of its own, which is its standard input, output and
   error, and copies what the terminal shows to standard output. The steps are taken one after the other:
       see:TEXT     waits until TEXT has been shown, after what the last such step waited for
       type:TEXT    types it; Ctrl-C is the character 3, Ctrl-D 4
       kill:NUMBER  sends that signal to the command
   Exit status: the command's; 99: a signal killed it; 98: a TEXT never came, or the command did not end within a
   minute; 97: there is no terminal to be had. */
#define _XOPEN_SOURCE 700

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SECONDS = 60, MAX_SHOWN = 1 << 22, KILLED = 99, NEVER = 98, NO_TERMINAL = 97 };

static char shown[MAX_SHOWN];
static size_t n_shown, seen; /* what a step waited for ends at `seen` */
static pid_t child;

static void give_up(int signal_number) {
    (void)signal_number;
    kill(child, SIGKILL);
    _exit(NEVER);
}

static void become_command(const char *terminal, char **command) {
    int fd;
    setsid();
    fd = open(terminal, O_RDWR);
    if (fd < 0) _exit(NO_TERMINAL);
#ifdef TIOCSCTTY
    ioctl(fd, TIOCSCTTY, 0);
#endif
    dup2(fd, 0);
    dup2(fd, 1);
    dup2(fd, 2);
    if (fd > 2) close(fd);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    execvp(command[0], command);
    perror(command[0]);
    _exit(127);
}

/* 0: the command has closed the terminal. (Linux reports that as EIO.) */
static int show_more(int terminal) {
    ssize_t n;
    if (n_shown == MAX_SHOWN) give_up(0);
    do n = read(terminal, shown + n_shown, MAX_SHOWN - n_shown);
    while (n < 0 && errno == EINTR);
    if (n <= 0) return 0;
    if (write(1, shown + n_shown, (size_t)n) != n) give_up(0);
    n_shown += (size_t)n;
    return 1;
}

static const char *find(const char *text, size_t length) {
    size_t i;
    for (i = seen; i + length <= n_shown; i++)
        if (memcmp(shown + i, text, length) == 0) return shown + i;
    return NULL;
}

static int is_step(const char *text) {
    return strncmp(text, "see:", 4) == 0 || strncmp(text, "type:", 5) == 0 || strncmp(text, "kill:", 5) == 0;
}

static int take_step(int terminal, const char *step) {
    const char *text = strchr(step, ':') + 1, *at;
    size_t length = strlen(text);
    if (step[0] == 'k') return kill(child, atoi(text)) == 0;
    if (step[0] == 't') return write(terminal, text, length) == (ssize_t)length;
    while (!(at = find(text, length)))
        if (!show_more(terminal)) return 0;
    seen = (size_t)(at - shown) + length;
    return 1;
}

int main(int argc, char **argv) {
    int terminal = posix_openpt(O_RDWR | O_NOCTTY), i, status, good = 1;
    const char *name = terminal >= 0 && grantpt(terminal) == 0 && unlockpt(terminal) == 0 ? ptsname(terminal) : NULL;
    if (!name) return NO_TERMINAL;
    for (i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (is_step(argv[i])) continue;
        fprintf(stderr, "on_terminal: no step %s\n", argv[i]);
        return 2;
    }
    if (i + 1 >= argc) return 2;
    child = fork();
    if (child == 0) become_command(name, argv + i + 1);
    signal(SIGALRM, give_up);
    alarm(SECONDS);
    for (i = 1; good && strcmp(argv[i], "--") != 0; i++) good = take_step(terminal, argv[i]);
    while (good && show_more(terminal)) continue;
    if (!good) kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return !good ? NEVER : WIFSIGNALED(status) ? KILLED : WEXITSTATUS(status);
}
