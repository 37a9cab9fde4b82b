/* The operating system, POSIX and Windows: files, the process, the terminal, and the signals that come from one. */
#include "system.h"

static const char show_cursor[] = "\033[?25h";
static const char hide_cursor[] = "\033[?25l";

int system_is_same(const system_file *a, const system_file *b) {
    return a->device == b->device && a->number == b->number;
}

#ifndef _WIN32
/* ================================================================================================================== */

#include <fcntl.h>
#include <fnmatch.h>
#include <glob.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* A model's file must never be opened under the number of a standard stream that the caller has closed: what is printed
   would go there. Read-only, so that writing to such a stream still fails. */
static void occupy_standard_streams(void) {
    int fd;
    do fd = open("/dev/null", O_RDONLY);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd > STDERR_FILENO) close(fd);
}

void system_begin(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    occupy_standard_streams();
    signal(SIGPIPE, SIG_IGN); /* a reader that left is a failed write with a message, like a full disk */
    signal(SIGXFSZ, SIG_IGN); /* so is a file at its size limit */
}

/* ---- Files ------------------------------------------------------------------------------------------------------ */

int system_open(const char *path, int how) {
    static const int flags[] = {O_RDONLY, O_RDWR, O_RDWR | O_CREAT | O_APPEND, O_WRONLY | O_CREAT | O_EXCL};
    return open(path, flags[how], 0666);
}

int system_close(int descriptor) { return close(descriptor); }

ssize_t system_read(int descriptor, char *bytes, size_t size) { return read(descriptor, bytes, size); }

ssize_t system_read_at(int descriptor, char *bytes, size_t size, uint64_t offset) {
    return pread(descriptor, bytes, size, (off_t)offset);
}

ssize_t system_write(int descriptor, const char *bytes, size_t size) { return write(descriptor, bytes, size); }

int system_truncate(int descriptor, uint64_t size) { return ftruncate(descriptor, (off_t)size); }

static int describe(int result, const struct stat *status, system_file *out) {
    memset(out, 0, sizeof *out);
    if (result != 0) return -1;
    out->kind = S_ISREG(status->st_mode)    ? SYSTEM_REGULAR
                : S_ISDIR(status->st_mode)  ? SYSTEM_FOLDER
                : S_ISFIFO(status->st_mode) ? SYSTEM_PIPE
                                            : SYSTEM_OTHER;
    out->size = (uint64_t)status->st_size;
    out->device = (uint64_t)status->st_dev;
    out->number = (uint64_t)status->st_ino;
    return 0;
}

int system_look(const char *path, system_file *out) {
    struct stat status;
    return describe(stat(path, &status), &status, out);
}

int system_look_at(int descriptor, system_file *out) {
    struct stat status;
    return describe(fstat(descriptor, &status), &status, out);
}

int system_remove(const char *path) { return unlink(path); }

int system_make_folder(const char *path) { return mkdir(path, 0777); }

int system_remove_folder(const char *path) { return rmdir(path); }

int system_rename(const char *from, const char *to) { return rename(from, to); }

size_t system_folder_length(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) + 1 : 0;
}

int system_lock(int descriptor, int alone) {
    struct flock lock;
    memset(&lock, 0, sizeof lock);
    lock.l_type = alone ? F_WRLCK : F_RDLCK;
    lock.l_whence = SEEK_SET;
    return fcntl(descriptor, F_SETLK, &lock) == 0 || (errno != EACCES && errno != EAGAIN);
}

system_paths system_find(const char *start, const char *pattern) {
    system_paths out = {NULL, 0};
    tsk_text text = {0};
    glob_t found;
    const char *c;
    size_t i;
    for (c = start; *c; c++) cli_append(&text, strchr("*?[]\\", *c) ? "\\%c" : "%c", *c);
    cli_append_bytes(&text, pattern, strlen(pattern));
    if (glob(text.data, 0, NULL, &found) == 0) {
        out.items = (char **)cli_allocate(found.gl_pathc, sizeof *out.items);
        for (i = 0; i < found.gl_pathc; i++)
            out.items[out.count++] = (char *)cli_copy(found.gl_pathv[i], strlen(found.gl_pathv[i]) + 1, 1);
        globfree(&found);
    }
    tsk_text_free(&text);
    return out;
}

int system_matches(const char *pattern, const char *name) { return fnmatch(pattern, name, 0) == 0; }

/* ---- The process ------------------------------------------------------------------------------------------------ */

long system_process_number(void) { return (long)getpid(); }

#ifdef __APPLE__
int system_random(void *out, size_t size) { return getentropy(out, size) == 0; }
#else
int system_random(void *out, size_t size) { return getrandom(out, size, GRND_NONBLOCK) == (ssize_t)size; }
#endif

static double clock_ms(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

double system_clock_ms(void) { return clock_ms(CLOCK_MONOTONIC); }

double system_cpu_ms(void) { return clock_ms(CLOCK_PROCESS_CPUTIME_ID); }

void system_sleep_ms(double milliseconds) {
    struct timespec pause;
    pause.tv_sec = 0;
    pause.tv_nsec = (long)(milliseconds * 1e6);
    nanosleep(&pause, NULL);
}

/* ---- The terminal ----------------------------------------------------------------------------------------------- */

int system_is_terminal(int descriptor) { return isatty(descriptor); }

int system_can_draw(int descriptor) {
    const char *term = getenv("TERM");
    return isatty(descriptor) && !(term && strcmp(term, "dumb") == 0);
}

int system_terminal_size(int descriptor, int *columns, int *rows) {
    struct winsize size;
    if (ioctl(descriptor, TIOCGWINSZ, &size) != 0) return 0;
    *columns = size.ws_col;
    *rows = size.ws_row;
    return 1;
}

int system_can_read(int descriptor) {
    struct pollfd poll_for;
    poll_for.fd = descriptor;
    poll_for.events = POLLIN;
    return poll(&poll_for, 1, 0) > 0;
}

/* ---- Signals ---------------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted, terminated, cursor_hidden;
static int wake_up[2] = {-1, -1}; /* a pipe: a signal that comes just before a read is still there when it waits */

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

#else
/* ================================================================================================================== */

#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#define NOMINMAX
#include <windows.h>

#include <fcntl.h>
#include <io.h>
#include <shellapi.h>
#include <signal.h>
#include <sys/stat.h>

/* ---- Names ------------------------------------------------------------------------------------------------------ */

static char *utf8_of(const wchar_t *text) {
    int size = WideCharToMultiByte(CP_UTF8, 0, text, -1, NULL, 0, NULL, NULL);
    char *out = (char *)cli_allocate((size_t)size + 1, 1);
    WideCharToMultiByte(CP_UTF8, 0, text, -1, out, size, NULL, NULL);
    return out;
}

enum { PATH_ROOM = 1 << 15, PREFIX_ROOM = 8 }; /* UTF-16 units: the system's own limit; in front of a path */

/* A path as the system takes it: UTF-16, absolute, and where it is long with the prefix that allows more than 260. In
   `room`, of PREFIX_ROOM + PATH_ROOM. NULL: it cannot be one. */
static wchar_t *wide_path(const char *path, wchar_t *room) {
    wchar_t *full = room + PREFIX_ROOM, *given = (wchar_t *)cli_allocate(PATH_ROOM, sizeof *given), *c;
    DWORD length = 0;
    if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, given, PATH_ROOM)) {
        for (c = given; *c; c++)
            if (*c == L'/') *c = L'\\';
        length = GetFullPathNameW(given, PATH_ROOM, full, NULL);
    }
    free(given);
    errno = ENOENT;
    if (!length || length >= PATH_ROOM) return NULL;
    if (length < 248 || wcsncmp(full, L"\\\\?\\", 4) == 0 || wcsncmp(full, L"\\\\.\\", 4) == 0) return full;
    if (wcsncmp(full, L"\\\\", 2) != 0) return (wchar_t *)memcpy(full - 4, L"\\\\?\\", 4 * sizeof *full);
    return (wchar_t *)memcpy(full + 1 - 7, L"\\\\?\\UNC", 7 * sizeof *full);
}

static wchar_t *new_wide_path(const char *path, wchar_t **room) {
    *room = (wchar_t *)cli_allocate(PREFIX_ROOM + PATH_ROOM, sizeof **room);
    return wide_path(path, *room);
}

/* ---- The console ------------------------------------------------------------------------------------------------ */

/* As it was before; -1: no console, or nothing was changed. */
static long long old_modes[3] = {-1, -1, -1};
static UINT old_output;

static HANDLE handle_of(int descriptor) { return (HANDLE)_get_osfhandle(descriptor); }

int system_is_terminal(int descriptor) {
    DWORD mode;
    return GetConsoleMode(handle_of(descriptor), &mode) != 0;
}

static void restore_console(void) {
    int d;
    for (d = SYSTEM_STDOUT; d <= SYSTEM_STDERR; d++)
        if (old_modes[d] >= 0) SetConsoleMode(handle_of(d), (DWORD)old_modes[d]);
    if (old_output) SetConsoleOutputCP(old_output);
}

static void prepare_console(void) {
    DWORD mode;
    int d;
    for (d = SYSTEM_STDOUT; d <= SYSTEM_STDERR; d++) {
        if (!GetConsoleMode(handle_of(d), &mode)) continue;
        if (!old_output) old_output = GetConsoleOutputCP();
        if (SetConsoleMode(handle_of(d), mode | ENABLE_PROCESSED_OUTPUT | ENABLE_VIRTUAL_TERMINAL_PROCESSING))
            old_modes[d] = mode;
    }
    if (old_output) SetConsoleOutputCP(CP_UTF8);
    atexit(restore_console);
}

/* A console from before the sequences refuses their mode. */
int system_can_draw(int descriptor) {
    const char *term = getenv("TERM");
    return system_is_terminal(descriptor) && old_modes[descriptor] >= 0 && !(term && strcmp(term, "dumb") == 0);
}

int system_terminal_size(int descriptor, int *columns, int *rows) {
    CONSOLE_SCREEN_BUFFER_INFO info;
    if (!GetConsoleScreenBufferInfo(handle_of(descriptor), &info)) return 0;
    *columns = info.srWindow.Right - info.srWindow.Left + 1;
    *rows = info.srWindow.Bottom - info.srWindow.Top + 1;
    return 1;
}

/* 1 where there is nothing to wait for: a file, the end of a pipe, what cannot be read at all. */
int system_can_read(int descriptor) {
    HANDLE handle = handle_of(descriptor);
    DWORD available = 0;
    if (system_is_terminal(descriptor)) return WaitForSingleObject(handle, 0) == WAIT_OBJECT_0;
    if (GetFileType(handle) != FILE_TYPE_PIPE) return 1;
    return !PeekNamedPipe(handle, NULL, 0, NULL, &available, NULL) || available > 0;
}

/* ---- Signals: the system calls on_event on a thread of its own -------------------------------------------------- */

static volatile LONG is_caught, interrupted, terminated, cursor_hidden;
static HANDLE wake_up; /* an event: set while there is an interrupt */
static HANDLE main_thread;
static volatile LONG reads_console; /* the main thread does */

int cli_interrupted(void) { return terminated ? SIGTERM : interrupted ? SIGINT : 0; }

/* The window is closed, or the user logs off: the process ends when the handler returns, or five seconds after. */
static void be_terminated(void) {
    terminated = 1;
    SetEvent(wake_up);
    Sleep(INFINITE);
}

static BOOL WINAPI on_event(DWORD event) {
    int is_typed = event == CTRL_C_EVENT || event == CTRL_BREAK_EVENT, is_last = cli_interrupted() || !is_caught;
    DWORD written;
    if (InterlockedExchange(&cursor_hidden, 0))
        WriteFile(handle_of(SYSTEM_STDERR), show_cursor, sizeof show_cursor - 1, &written, NULL);
    if (is_last) {
        restore_console();
        TerminateProcess(GetCurrentProcess(), 128u + (is_typed ? SIGINT : SIGTERM));
    }
    if (!is_typed) be_terminated();
    interrupted = 1;
    SetEvent(wake_up);
    if (reads_console) CancelSynchronousIo(main_thread); /* where the system has not done so */
    return TRUE;
}

void cli_catch_interrupts(void) { is_caught = 1; }

void cli_forget_interrupt(void) {
    ResetEvent(wake_up);
    interrupted = 0;
    if (terminated) SetEvent(wake_up);
}

/* 0: a signal came. A read of the console is ended by the system; one of a pipe is not, and nothing waits for both. */
static int wait_for_input(int descriptor) {
    if (!is_caught) return 1;
    while (!cli_interrupted() && !system_is_terminal(descriptor) && !system_can_read(descriptor))
        WaitForSingleObject(wake_up, 5);
    return !cli_interrupted();
}

/* What is typed, in UTF-8 with lines that end as anywhere. 0: its end, Ctrl-Z or Ctrl-D where a line begins. */
static ssize_t read_console(int descriptor, char *bytes, size_t size) {
    static wchar_t high; /* the first half of a character whose second half has not been read yet */
    wchar_t units[1024];
    size_t room = size / 3 < 1024 ? size / 3 : 1024, begin = high != 0, n, i, kept = 0;
    DWORD read = 0;
    int length, is_read;
    units[0] = high;
    SetLastError(0);
    reads_console = 1;
    is_read = ReadConsoleW(handle_of(descriptor), units + begin, (DWORD)(room - begin), &read, NULL);
    reads_console = 0;
    if (!read && (cli_interrupted() || GetLastError() == ERROR_OPERATION_ABORTED)) {
        if (is_caught) WaitForSingleObject(wake_up, 1000); /* on_event may be still to come */
        errno = EINTR;
        return -1;
    }
    if (!is_read) {
        errno = EIO;
        return -1;
    }
    if (read && !begin && (units[0] == 26 || units[0] == 4)) return 0;
    n = begin + read;
    high = n && units[n - 1] >= 0xD800 && units[n - 1] < 0xDC00 ? units[--n] : 0;
    for (i = 0; i < n; i++)
        if (units[i] != L'\r') units[kept++] = units[i];
    length = kept ? WideCharToMultiByte(CP_UTF8, 0, units, (int)kept, bytes, (int)size, NULL, NULL) : 0;
    if (!length && n + (high != 0)) return read_console(descriptor, bytes, size); /* only half of something */
    return length;
}

ssize_t system_read(int descriptor, char *bytes, size_t size) {
    system_file file;
    int n;
    if (system_is_terminal(descriptor)) return read_console(descriptor, bytes, size);
    n = _read(descriptor, bytes, size < INT_MAX ? (unsigned)size : INT_MAX);
    if (n < 0 && system_look_at(descriptor, &file) == 0 && file.kind == SYSTEM_FOLDER) errno = EISDIR;
    return n;
}

ssize_t cli_read(int descriptor, char *bytes, size_t size) {
    if (wait_for_input(descriptor)) return system_read(descriptor, bytes, size);
    errno = EINTR;
    return -1;
}

/* ---- The process ------------------------------------------------------------------------------------------------ */

static void read_arguments(int *argc, char ***argv) {
    int n, i;
    wchar_t **wide = CommandLineToArgvW(GetCommandLineW(), &n);
    if (!wide) return;
    *argv = (char **)cli_allocate((size_t)n + 1, sizeof **argv);
    for (i = 0; i < n; i++) (*argv)[i] = utf8_of(wide[i]);
    *argc = n;
    LocalFree(wide);
}

void system_begin(int *argc, char ***argv) {
    int d;
    for (d = SYSTEM_STDIN; d <= SYSTEM_STDERR; d++) _setmode(d, _O_BINARY);
    wake_up = CreateEventW(NULL, TRUE, FALSE, NULL);
    DuplicateHandle(GetCurrentProcess(), GetCurrentThread(), GetCurrentProcess(), &main_thread, 0, FALSE,
                    DUPLICATE_SAME_ACCESS);
    SetConsoleCtrlHandler(on_event, TRUE);
    prepare_console();
    read_arguments(argc, argv);
}

long system_process_number(void) { return (long)GetCurrentProcessId(); }

extern BOOLEAN NTAPI SystemFunction036(PVOID out, ULONG size); /* RtlGenRandom, under its name in advapi32 */
int system_random(void *out, size_t size) { return SystemFunction036(out, (ULONG)size) != 0; }

double system_clock_ms(void) {
    LARGE_INTEGER now, frequency;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&frequency);
    return (double)now.QuadPart * 1e3 / (double)frequency.QuadPart;
}

static double ms_of(FILETIME time) {
    return (double)((uint64_t)time.dwHighDateTime << 32 | time.dwLowDateTime) / 1e4;
}

double system_cpu_ms(void) {
    FILETIME created, ended, kernel, user;
    if (!GetProcessTimes(GetCurrentProcess(), &created, &ended, &kernel, &user)) return 0;
    return ms_of(kernel) + ms_of(user);
}

void system_sleep_ms(double milliseconds) { Sleep((DWORD)milliseconds); }

/* ---- Files ------------------------------------------------------------------------------------------------------ */

/* The reason why a name was of no use. */
static int fail_of_name(void) {
    static const struct { DWORD code; int number; } reasons[] = {
        {ERROR_FILE_NOT_FOUND, ENOENT}, {ERROR_PATH_NOT_FOUND, ENOENT}, {ERROR_INVALID_NAME, ENOENT},
        {ERROR_ACCESS_DENIED, EACCES}, {ERROR_SHARING_VIOLATION, EACCES}, {ERROR_FILE_EXISTS, EEXIST},
        {ERROR_ALREADY_EXISTS, EEXIST}, {ERROR_DISK_FULL, ENOSPC}, {ERROR_HANDLE_DISK_FULL, ENOSPC},
        {ERROR_WRITE_PROTECT, EROFS}};
    const DWORD code = GetLastError();
    size_t i;
    errno = EIO;
    for (i = 0; i < sizeof reasons / sizeof reasons[0]; i++)
        if (reasons[i].code == code) errno = reasons[i].number;
    return -1;
}

/* Others may do with it what they like, as they may elsewhere; a folder opens, too, which is found out later. */
static HANDLE open_handle(const char *path, DWORD access, DWORD how) {
    const DWORD share = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    wchar_t *room, *wide = new_wide_path(path, &room);
    HANDLE handle = INVALID_HANDLE_VALUE;
    if (wide) {
        handle = CreateFileW(wide, access, share, NULL, how, FILE_FLAG_BACKUP_SEMANTICS, NULL);
        if (handle == INVALID_HANDLE_VALUE) fail_of_name();
    }
    free(room);
    return handle;
}

int system_open(const char *path, int how) {
    static const struct { DWORD access, how; int flags; } modes[] = {
        {GENERIC_READ, OPEN_EXISTING, 0}, {GENERIC_READ | GENERIC_WRITE, OPEN_EXISTING, 0},
        {GENERIC_READ | GENERIC_WRITE, OPEN_ALWAYS, _O_APPEND}, {GENERIC_WRITE, CREATE_NEW, 0}};
    HANDLE handle = open_handle(path, modes[how].access, modes[how].how);
    int descriptor = -1;
    if (handle == INVALID_HANDLE_VALUE) return -1;
    descriptor = _open_osfhandle((intptr_t)handle, modes[how].flags | _O_BINARY | _O_NOINHERIT);
    if (descriptor < 0) CloseHandle(handle);
    return descriptor;
}

int system_close(int descriptor) { return _close(descriptor); }

ssize_t system_read_at(int descriptor, char *bytes, size_t size, uint64_t offset) {
    if (_lseeki64(descriptor, (int64_t)offset, SEEK_SET) < 0) return -1;
    return _read(descriptor, bytes, size < INT_MAX ? (unsigned)size : INT_MAX);
}

ssize_t system_write(int descriptor, const char *bytes, size_t size) {
    return _write(descriptor, bytes, size < INT_MAX ? (unsigned)size : INT_MAX);
}

int system_truncate(int descriptor, uint64_t size) { return _chsize_s(descriptor, (int64_t)size) == 0 ? 0 : -1; }

static int describe(HANDLE handle, system_file *out) {
    BY_HANDLE_FILE_INFORMATION info;
    DWORD type;
    memset(out, 0, sizeof *out);
    if (handle == INVALID_HANDLE_VALUE) return -1;
    type = GetFileType(handle);
    out->kind = type == FILE_TYPE_PIPE ? SYSTEM_PIPE : SYSTEM_OTHER;
    if (type != FILE_TYPE_DISK || !GetFileInformationByHandle(handle, &info)) {
        out->number = (uint64_t)(uintptr_t)handle;
        return 0;
    }
    out->kind = info.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY ? SYSTEM_FOLDER : SYSTEM_REGULAR;
    out->size = (uint64_t)info.nFileSizeHigh << 32 | info.nFileSizeLow;
    out->device = info.dwVolumeSerialNumber + (uint64_t)1;
    out->number = (uint64_t)info.nFileIndexHigh << 32 | info.nFileIndexLow;
    return 0;
}

int system_look(const char *path, system_file *out) {
    HANDLE handle = open_handle(path, 0, OPEN_EXISTING);
    int result = describe(handle, out);
    if (handle != INVALID_HANDLE_VALUE) CloseHandle(handle);
    return result;
}

int system_look_at(int descriptor, system_file *out) { return describe(handle_of(descriptor), out); }

int system_remove(const char *path) {
    wchar_t *room, *wide = new_wide_path(path, &room);
    int result = wide && DeleteFileW(wide) ? 0 : fail_of_name();
    free(room);
    return result;
}

int system_make_folder(const char *path) {
    wchar_t *room, *wide = new_wide_path(path, &room);
    int result = wide && CreateDirectoryW(wide, NULL) ? 0 : fail_of_name();
    free(room);
    return result;
}

int system_remove_folder(const char *path) {
    wchar_t *room, *wide = new_wide_path(path, &room);
    int result = wide && RemoveDirectoryW(wide) ? 0 : fail_of_name();
    free(room);
    return result;
}

int system_rename(const char *from, const char *to) {
    wchar_t *room, *to_room, *wide = new_wide_path(from, &room), *wide_to = new_wide_path(to, &to_room);
    int result = wide && wide_to && MoveFileExW(wide, wide_to, MOVEFILE_REPLACE_EXISTING) ? 0 : fail_of_name();
    free(room);
    free(to_room);
    return result;
}

size_t system_folder_length(const char *path) {
    size_t length = strlen(path);
    while (length && !strchr("/\\", path[length - 1]) && !(length == 2 && path[1] == ':')) length--;
    return length;
}

/* Far beyond the end of any file, since a locked part could not be read by others. */
int system_lock(int descriptor, int alone) {
    const DWORD how = LOCKFILE_FAIL_IMMEDIATELY | (alone ? LOCKFILE_EXCLUSIVE_LOCK : 0u);
    OVERLAPPED at;
    memset(&at, 0, sizeof at);
    at.OffsetHigh = 1u << 30;
    return LockFileEx(handle_of(descriptor), how, 0, 1, 0, &at) ||
           (GetLastError() != ERROR_LOCK_VIOLATION && GetLastError() != ERROR_IO_PENDING);
}

system_paths system_find(const char *start, const char *pattern) {
    system_paths out = {NULL, 0};
    tsk_text text = {0};
    WIN32_FIND_DATAW found;
    wchar_t *room, *wide;
    HANDLE search = INVALID_HANDLE_VALUE;
    cli_append_bytes(&text, start, strlen(start));
    cli_append_bytes(&text, pattern, strlen(pattern));
    wide = new_wide_path(text.data, &room);
    if (wide) search = FindFirstFileW(wide, &found);
    if (search != INVALID_HANDLE_VALUE) {
        do {
            char *name = utf8_of(found.cFileName);
            text.length = 0;
            cli_append_bytes(&text, start, system_folder_length(start));
            cli_append_bytes(&text, name, strlen(name));
            free(name);
            out.items = (char **)cli_reallocate(out.items, out.count + 1, sizeof *out.items);
            out.items[out.count++] = (char *)cli_copy(text.data, text.length + 1, 1);
        } while (FindNextFileW(search, &found));
        FindClose(search);
    }
    free(room);
    tsk_text_free(&text);
    return out;
}

/* What follows the bracket at `set`, or NULL where none closes it. *is_in: whether the character is in the set. */
static const char *match_set(const char *set, char c, int *is_in) {
    const char *at = set + 1;
    int is_negated = *at == '!' || *at == '^', found = 0;
    const char *first = at += is_negated;
    for (; *at && (*at != ']' || at == first); at++) {
        char low = *at == '\\' && at[1] ? *++at : *at, high = low;
        if (at[1] == '-' && at[2] && at[2] != ']') {
            at += 2;
            high = *at == '\\' && at[1] ? *++at : *at;
        }
        found |= c >= low && c <= high;
    }
    *is_in = found != is_negated;
    return *at ? at + 1 : NULL;
}

int system_matches(const char *pattern, const char *name) {
    for (; *pattern; name++) {
        const char *rest = pattern + 1;
        int is_in = 1;
        if (*pattern == '*') {
            for (; !system_matches(rest, name); name++)
                if (!*name) return 0;
            return 1;
        }
        if (!*name) return 0;
        if (*pattern == '[') rest = match_set(pattern, *name, &is_in);
        if (!rest || (*pattern != '[' && *pattern != '?')) {
            if (*pattern == '\\' && pattern[1]) pattern++;
            rest = pattern + 1;
            is_in = *pattern == *name;
        }
        if (!is_in) return 0;
        pattern = rest;
    }
    return !*name;
}

/* ================================================================================================================== */
#endif

int cli_exit_status(int status) { return status != CLI_OK && cli_interrupted() ? 128 + cli_interrupted() : status; }

void cli_hide_cursor(int hide) {
    if (hide && !cli_interrupted()) {
        fputs(hide_cursor, stderr);
        cursor_hidden = 1;
    }
    if (!hide && cursor_hidden) {
        fputs(show_cursor, stderr);
        cursor_hidden = 0;
    }
    fflush(stderr);
}
