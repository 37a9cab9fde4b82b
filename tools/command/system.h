/* What the command asks of the operating system beyond C's library and tokenskip.h. Paths are UTF-8. A call that fails
   leaves its reason in errno. */
#ifndef SYSTEM_H
#define SYSTEM_H

#include "cli.h"

#include <errno.h>

#ifdef _WIN32
#define SYSTEM_END_KEYS "Ctrl-Z, Enter" /* what ends typed input */
enum { SYSTEM_REPLACES_OPEN_FILES = 0 };
#else
#define SYSTEM_END_KEYS "Ctrl-D"
enum { SYSTEM_REPLACES_OPEN_FILES = 1 };
#endif

enum { SYSTEM_STDIN = 0, SYSTEM_STDOUT = 1, SYSTEM_STDERR = 2 };

/* Before anything else: the standard streams carry bytes, the terminal takes UTF-8 and escape sequences, a write that
   nobody reads fails, and the arguments are in UTF-8. */
void system_begin(int *argc, char ***argv);

/* ---- Files ------------------------------------------------------------------------------------------------------ */

enum {
    SYSTEM_READ,
    SYSTEM_UPDATE,  /* reads and writes what is there */
    SYSTEM_APPEND,  /* the same at the end, and makes the file */
    SYSTEM_CREATE   /* writes; never somebody else's file */
};

/* -1 where it fails, as all of these. */
int system_open(const char *path, int how);
int system_close(int descriptor);
/* May end early with EINTR. */
ssize_t system_read(int descriptor, char *bytes, size_t size);
ssize_t system_read_at(int descriptor, char *bytes, size_t size, uint64_t offset);
ssize_t system_write(int descriptor, const char *bytes, size_t size);
int system_truncate(int descriptor, uint64_t size);

enum { SYSTEM_REGULAR, SYSTEM_FOLDER, SYSTEM_PIPE, SYSTEM_OTHER };

typedef struct system_file {
    int kind;
    uint64_t size;
    uint64_t device, number; /* together the file's identity */
} system_file;

int system_look(const char *path, system_file *out);
int system_look_at(int descriptor, system_file *out);
int system_is_same(const system_file *a, const system_file *b);

int system_remove(const char *path);
int system_make_folder(const char *path);
int system_remove_folder(const char *path); /* an empty one */
/* In one step, over a file that may be there. */
int system_rename(const char *from, const char *to);
/* How long the folder's part of a path is, with its separator. */
size_t system_folder_length(const char *path);

/* For this process alone, or against those who want it so. The lock ends with the process. 0: another process has it;
   a file system without locks is taken as it is. */
int system_lock(int descriptor, int alone);

/* The files whose path is `start` and then something that `pattern` matches, in which '*' stands for anything. Free
   each, and the list. */
typedef struct system_paths { char **items; size_t count; } system_paths;
system_paths system_find(const char *start, const char *pattern);

/* Whether a name matches a pattern of the shell's. */
int system_matches(const char *pattern, const char *name);

/* ---- The process ------------------------------------------------------------------------------------------------ */

long system_process_number(void);
/* 0 where the system has no random numbers to give. */
int system_random(void *out, size_t size);
/* Milliseconds, of a clock that only goes forward, and of processor time on all threads. */
double system_clock_ms(void);
double system_cpu_ms(void);
/* Less than a second. */
void system_sleep_ms(double milliseconds);

/* ---- The terminal ----------------------------------------------------------------------------------------------- */

int system_is_terminal(int descriptor);
/* Whether it understands escape sequences, for all that the system knows. */
int system_can_draw(int descriptor);
/* 0 where the size is not known. */
int system_terminal_size(int descriptor, int *columns, int *rows);
/* Whether a read would return at once. */
int system_can_read(int descriptor);

#endif
