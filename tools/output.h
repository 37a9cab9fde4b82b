/* A file that appears whole or not at all. */
#ifndef OUTPUT_H
#define OUTPUT_H

#include "cli.h"

/* Whether `path` can be written, found out before there is anything to write. Leaves nothing behind. */
int output_check(const char *path);
/* Under a temporary name first, which becomes `path` once everything is in it. */
int output_write(const char *path, const char *bytes, size_t size);

#endif
