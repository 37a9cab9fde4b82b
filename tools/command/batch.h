/* What `batch` is made of: lines of a file, the ids seen, requests, the output file, and the part of the input that is
   this process's. */
#ifndef BATCH_H
#define BATCH_H

#include "cli.h"

/* ---- Files ------------------------------------------------------------------------------------------------------ */

/* A file or pipe read a line at a time, so that it may be larger than memory. */
typedef struct line_reader {
    int descriptor;
    const char *path;   /* as messages call it */
    int is_owned;       /* closed by lines_free */
    int can_stop;       /* an interrupt ends it, in the middle of a line too */
    tsk_text line;      /* the last one, without its newline */
    int is_whole;       /* it had a newline */
    int is_too_long;    /* the rest of it was left out */
    uint64_t number;    /* of the last line, from 1 */
    uint64_t offset;    /* where the next one starts */
    int error;          /* errno of a failed read */
    char *buffer;       /* bytes read, of which those from `begin` to `end` belong to no line yet */
    size_t begin, end;
    int is_read;        /* the line is all there; else it is being read */
    int is_ahead;       /* it was read by lines_ready, and not asked for yet */
} line_reader;

/* Of a descriptor that stays the caller's. */
void lines_begin(line_reader *reader, int descriptor, const char *path);
/* Of a file, or of standard input, which is "-". CLI_FAILED with a message where it cannot be read. */
int lines_open(line_reader *reader, const char *path);
/* 1: a line; 0: the end, an error, or an interrupt where it can stop. */
int lines_next(line_reader *reader);
/* Whether lines_next would return at once; what has come of the next line is read. */
int lines_ready(line_reader *reader);
/* CLI_FAILED with a message after a failed read; CLI_OK otherwise. */
int lines_check(const line_reader *reader);
void lines_free(line_reader *reader);

/* A set of ids, of which hashes are kept: 128 bits each, so that hundreds of millions fit, and never collide by
   chance. */
typedef struct id_slot { uint64_t a, b; } id_slot;
typedef struct id_set {
    id_slot *slots;
    size_t count, capacity;
    uint64_t keys[2]; /* of the hash, chosen when the first id comes */
} id_set;

enum { ID_WRITTEN = 1, ID_SEEN = 2, ID_FAILED = 4 }; /* failed: written, with an error */

/* Sets `mark` for the id; the marks it had before. */
unsigned ids_mark(id_set *set, const char *id, size_t length, unsigned mark);
void ids_free(id_set *set);

/* An id as a key: a string and a number are never equal. 0 for what is no id. */
int ids_key(const tsk_json_value *id, tsk_text *key);
/* The key of a line that has no id of its own; no id has it. */
void ids_line_key(uint64_t number, tsk_text *key);
/* The key of the result that the line holds, and whether it is an error. 0: it is no whole line that batch wrote. */
int ids_result_key(const line_reader *reader, tsk_text *key, int *has_failed);

typedef struct batch_output {
    int descriptor;
    const char *path;
    int is_stream;      /* standard output: nothing to go on from */
    int is_numbered;    /* shards have been here: results say which request they are of, so that they can be merged */
    int is_ours;        /* opened for this process alone */
    int is_shard;
    uint64_t size;      /* all whole lines */
} batch_output;

/* Opens or creates it for this process alone, marks the ids in it as written and cuts off an incomplete last line.
   Marks those in `base` and its shards too, which runs with another number of ranks have left. "-": standard output. */
int batch_output_open(batch_output *out, const char *path, const char *base, const line_reader *input, id_set *ids);
/* One line with its newline, by one write. */
int batch_output_write(batch_output *out, const tsk_text *line);
/* CLI_FAILED with a message when the system could not write after all; `status` otherwise. A shard with nothing in it
   is removed. */
int batch_output_close(batch_output *out, int status);

/* Locks for this process alone, or against writers. CLI_FAILED with a message while another process writes it. */
int batch_lock(int descriptor, const char *path, int alone);

/* Joins the results of shards into one file, in the input's order. */
int batch_merge(const cli_settings *settings);

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
int batch_request_read(batch_request *request, const line_reader *input, const cli_engine *engine,
                       const cli_settings *defaults);
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
