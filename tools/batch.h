/* What `batch` is made of: lines of a file, the ids seen, requests, the output file, and the part of the input that is
   this process's. */
#ifndef BATCH_H
#define BATCH_H

#include "cli.h"

/* ---- Files ------------------------------------------------------------------------------------------------------ */

/* A file read a line at a time, so that it may be larger than memory. */
typedef struct line_reader {
    FILE *file;
    const char *path;
    tsk_text line;      /* the last one, without its newline */
    int is_whole;       /* it had a newline */
    int is_too_long;    /* the rest of it was left out */
    uint64_t number;    /* of the last line, from 1 */
    uint64_t offset;    /* where the next one starts */
    int failed;         /* errno of the last read; EINTR: a signal was noted */
    char bytes[16384];  /* read, of which [begin, end) is still to come */
    size_t begin, end;
} line_reader;

/* 1: a line; 0: the end, or an error that `failed` tells of. */
int lines_next(line_reader *reader);
void lines_free(line_reader *reader);

/* A set of ids, of which hashes are kept: 128 bits each, so that hundreds of millions fit, and never collide by chance. */
typedef struct id_slot { uint64_t a, b; } id_slot;
typedef struct id_set {
    id_slot *slots;
    size_t count, capacity;
} id_set;

enum { ID_WRITTEN = 1, ID_SEEN = 2, ID_FAILED = 4 }; /* failed: written, with an error */

/* Sets `mark` for the id; the marks it had before. */
unsigned ids_mark(id_set *set, const char *id, size_t length, unsigned mark);
void ids_free(id_set *set);

/* An id as a key: a string and a number are never equal. 0 for what is no id. */
int ids_key(const tsk_json_value *id, tsk_text *key);
/* The key of what has the id "line N". */
void ids_line_key(uint64_t number, tsk_text *key);

typedef struct batch_output {
    FILE *file;
    int descriptor;
    const char *path;
    uint64_t size;      /* all whole lines */
} batch_output;

/* Opens or creates it for this process alone, marks the ids in it as written and cuts off an incomplete last line. Marks
   those in `base` and its shards too, which runs with another number of ranks have left. */
int batch_output_open(batch_output *out, const char *path, const char *base, const line_reader *input, id_set *ids);
/* One line with its newline, by one write. */
int batch_output_write(batch_output *out, const tsk_text *line);
/* CLI_FAILED with a message when the system could not write after all; `status` otherwise. */
int batch_output_close(batch_output *out, int status);

/* ---- Requests --------------------------------------------------------------------------------------------------- */

typedef struct batch_request {
    tsk_json *document;
    const tsk_json_value *id;   /* NULL: the line has none that can be used */
    cli_settings settings;      /* the request's options over the command line's */
    tsk_tokens prompt;
} batch_request;

/* Its id only. CLI_FAILED with a message where the line cannot be read or has no id. */
int batch_request_open(batch_request *request, const line_reader *input);
/* The rest: options and the prompt's ids. */
int batch_request_read(batch_request *request, const line_reader *input, const cli_engine *engine, const cli_settings *defaults);
void batch_request_free(batch_request *request);

/* ---- Ranks ------------------------------------------------------------------------------------------------------ */

typedef struct batch_shard { int64_t index, count; } batch_shard;

/* --shard, else the rank of OpenMPI or Slurm, else all of the input. */
int batch_shard_find(const cli_settings *settings, batch_shard *shard);
/* Where --device names no GPU by number, the one of the local rank. */
int batch_choose_device(cli_settings *settings);
/* One of several ranks of OpenMPI's mpirun, which kills the others as soon as one exits with another status than 0. */
int batch_is_under_mpirun(void);

#endif
