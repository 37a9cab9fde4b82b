/* A file that appears whole or not at all. */
#ifndef OUTPUT_H
#define OUTPUT_H

#include "cli.h"

/* Whether `path` can be written, found out before there is anything to write. Leaves nothing behind. */
int output_check(const char *path);
/* That two options do not name one file, by one name or by two; either may be NULL. */
int output_check_apart(const char *option, const char *path, const char *other_option, const char *other_path);
/* A file under a temporary name, which becomes `path` when it is closed with CLI_OK, and is removed otherwise. It must
   be closed also when it could not be opened. */
typedef struct output_file {
    const char *path;
    tsk_text name;
    int descriptor;
} output_file;

int output_open(output_file *file, const char *path);
int output_append(output_file *file, const char *bytes, size_t size);
/* CLI_FAILED with a message when the file could not be written after all; `status` otherwise. */
int output_close(output_file *file, int status);
/* All of it at once. */
int output_write(const char *path, const char *bytes, size_t size);

#endif
