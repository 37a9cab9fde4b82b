/* What the subcommands of the `tokenskip` command share. The command uses the library as any program does: through
   tokenskip.h's public part. C99; what is the operating system's is in system.h. */
#ifndef CLI_H
#define CLI_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#if defined(__APPLE__) && !defined(_DARWIN_C_SOURCE)
#define _DARWIN_C_SOURCE /* getentropy, winsize */
#endif

#include "tokenskip.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

/* Exit statuses. CLI_CONTINUE: none yet, the command goes on. */
enum { CLI_CONTINUE = -1, CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

#if defined(__MINGW32__) && !defined(__clang__)
#define CLI_PRINTF(text, first) __attribute__((__format__(__gnu_printf__, text, first))) /* not the C library's own */
#elif defined(__GNUC__)
#define CLI_PRINTF(text, first) __attribute__((__format__(__printf__, text, first)))
#else
#define CLI_PRINTF(text, first)
#endif

/* ---- Subcommands and their options ------------------------------------------------------------------------------ */

/* One bit each, so that an option can say which subcommands have it. */
enum {
    CLI_GENERATE = 1, CLI_CHAT = 2, CLI_TOKENIZE = 4, CLI_TEMPLATE = 8, CLI_INSPECT = 16, CLI_EVAL = 32, CLI_BENCH = 64,
    CLI_TRACE = 128, CLI_CALIBRATE = 256, CLI_SWEEP = 512, CLI_BATCH = 1024,
    CLI_REQUEST = 2048, /* no subcommand: a line of batch's input */
    CLI_AGAINST = 4096, /* nor is this: the text of eval's --against */
    CLI_QUANTIZE = 8192
};

#define CLI_MAX_OPTIONS 96

/* Every option of every subcommand, filled with defaults, then by cli_parse. */
typedef struct cli_settings {
    tsk_model_options model;
    tsk_generate_options generate;
    const char *model_dir, *path, *prompt, *system, *data, *messages, *shape, *preset;
    const char *against, *against_model;              /* eval */
    const char *versus;                               /* trace */
    const char *settings_file;                        /* --settings */
    const char *html, *dump, *dump_pattern, *passes, *layers, *svg, *save; /* trace, sweep */
    const char *input, *output, *shard;               /* batch; quantize: output */
    const char **paths;                               /* [n_paths] batch --merge */
    size_t n_paths;
    tsk_tokens prompt_ids;                            /* --prompt-ids */
    tsk_tokens active, refresh_active;                /* --active, --refresh-active */
    /* the enumerations of generate, as numbers while parsing */
    int cache, remasking, skip_rule, skip_policy, skip_reference, refresh;
    int no_threshold, raw, pad, visual, json, jsonl, decode, keep_masks, shadow, notebook;
    int merge, order, has_device_index;               /* order: 0 as in the input, 1 as completed */
    int weights, quantize;                            /* of tsk_weights; 0 q8, 1 q4 */
    int32_t bench_prompt, bench_gen, bench_block, batch, repeat, blocks, limit;
    int32_t max_batch, cache_tokens;
    float max_error, minutes;                         /* calibrate, sweep */
    int thinking;                                     /* TSK_AUTO: as the chat template has it */
    int by_blocks;                                    /* the model attends by blocks, as far as it could be asked */
    int is_request;                                   /* of a line of batch's input, over the command line's */
    unsigned char given[CLI_MAX_OPTIONS];             /* by place in the table of options */
} cli_settings;

typedef struct cli_command {
    unsigned bit;
    const char *name;
    const char *usage;    /* what follows the name */
    const char *summary;  /* one line */
    const char *notes;    /* more for --help, whole lines, or "" */
    int (*run)(cli_settings *settings);
} cli_command;

/* Reads the arguments after the subcommand's name. CLI_CONTINUE, or the status to exit with: --help was answered, or
   the usage is wrong and said so. */
int cli_parse(cli_settings *settings, const cli_command *command, int argc, char **argv);
int cli_given(const cli_settings *settings, const char *option);
/* The --help of a subcommand, to stdout. */
int cli_print_help(const cli_command *command);
void cli_settings_free(cli_settings *settings);

/* Frees what --settings files were read into; no settings are good any more. */
void cli_settings_files_free(void);

/* A request in JSON, with its own options over the command line's: begin, set for each member that is an option, end.
   `line` is the text that `value` was read from. CLI_CONTINUE, or CLI_USAGE after a message. Texts belong to
   `value`. */
void cli_request_begin(cli_settings *request, const cli_settings *defaults);
int cli_request_set(cli_settings *request, const char *key, const tsk_json_value *value, const char *line);
int cli_request_end(cli_settings *request);

/* The options of a generation that `text`, the value of `option` of the subcommand `name`, holds as one would type
   them, over those of the command line. CLI_CONTINUE, or CLI_USAGE after a message. Texts belong to *words, which the
   caller frees after the settings. */
int cli_parse_against(cli_settings *against, const cli_settings *given, const char *name, const char *option,
                      const char *text, char ***words);

/* Strict numbers, whatever the locale: the whole text, in range, or 0 is returned. */
int cli_read_int(const char *text, int64_t min, int64_t max, int64_t *out);
int cli_read_ids(const char *text, tsk_tokens *out);  /* separated by commas or white space */

int cmd_generate(cli_settings *settings);
int cmd_chat(cli_settings *settings);
int cmd_tokenize(cli_settings *settings);
int cmd_template(cli_settings *settings);
int cmd_inspect(cli_settings *settings);
int cmd_eval(cli_settings *settings);
int cmd_bench(cli_settings *settings);
int cmd_trace(cli_settings *settings);
int cmd_calibrate(cli_settings *settings);
int cmd_sweep(cli_settings *settings);
int cmd_batch(cli_settings *settings);
int cmd_quantize(cli_settings *settings);

/* ---- Messages and output ---------------------------------------------------------------------------------------- */

/* One line "tokenskip: ..." on stderr. Both return the exit status they stand for. */
int cli_usage_error(const char *format, ...) CLI_PRINTF(1, 2);
int cli_fail(const char *format, ...) CLI_PRINTF(1, 2);
/* The library's error, with its file and offset. `context`: where it came up ("data.jsonl, line 3"), or NULL. */
int cli_fail_with(const tsk_error *error, const char *context);
/* The library's remarks: notes. */
void cli_log(void *user, const char *line);
/* Until called with NULL, messages are kept in `out` instead, without "tokenskip: " and newline: where a failure is
   part of the result. */
void cli_keep_messages(tsk_text *out);
/* Until called with NULL, every line on stderr begins with this short place and a colon. */
void cli_place_messages(const char *place);
/* A remark on what was dropped or left out. */
void cli_warn(const char *format, ...) CLI_PRINTF(1, 2);
/* A remark that a script has no use for, only where stderr is a terminal. */
void cli_note(const char *format, ...) CLI_PRINTF(1, 2);

/* Writes to stdout, all of it or a message: CLI_OK or CLI_FAILED. What would drive a terminal is made
   visible on one. */
int cli_write(const char *bytes, size_t size);

/* Members of a JSON object. */
void cli_json_uint(tsk_json_writer *json, const char *key, uint64_t value);
void cli_json_double(tsk_json_writer *json, const char *key, double value);
void cli_json_string(tsk_json_writer *json, const char *key, const char *value);
void cli_json_ids(tsk_json_writer *json, const char *key, const int32_t *ids, size_t count);
/* The finished text and a newline to stdout. */
int cli_json_print(tsk_json_writer *json);

/* Text that grows, with printf's formatting (of short things) or as it is. Out of memory ends the program: nothing has
   been written to stdout by then. */
void cli_append(tsk_text *text, const char *format, ...) CLI_PRINTF(2, 3);
void cli_append_bytes(tsk_text *text, const char *bytes, size_t size);
/* "1.5 GB": decimal units. */
const char *cli_size_string(uint64_t bytes, char *buffer, size_t size);

/* Zeroed; a grown block; a copy. Out of memory ends the program, as above. Free with free. */
void *cli_allocate(size_t count, size_t size);
void *cli_reallocate(void *block, size_t count, size_t size);
void *cli_copy(const void *from, size_t count, size_t size);

/* All of stdin. */
int cli_read_stdin(tsk_text *out);
/* All of a file, which may be a pipe, or of stdin where the path is "-"; no more than max_size bytes. */
int cli_read_file(const char *path, size_t max_size, tsk_text *out);
/* The path as messages name it. */
const char *cli_file_name(const char *path);
/* Milliseconds of a clock that only goes forward. */
double cli_now_ms(void);
/* Milliseconds of processor time that the process has taken, on all its threads. */
double cli_cpu_ms(void);

/* Steps through lines: *line and *length without the newline; 0 at the end. */
int cli_next_line(const tsk_text *text, size_t *offset, const char **line, size_t *length);

/* ---- Signals ---------------------------------------------------------------------------------------------------- */

/* From here on SIGINT (Ctrl-C) and SIGTERM are noted, and the command is to end; a second one ends the program at
   once. */
void cli_catch_interrupts(void);
/* The signal that was noted; 0: none. */
int cli_interrupted(void);
/* A Ctrl-C has been dealt with; SIGTERM cannot be forgotten. */
void cli_forget_interrupt(void);
/* 128 + the signal where one kept a command from its end, as shells have it; else `status`. */
int cli_exit_status(int status);
/* As read(2), but a noted signal ends it with -1 and EINTR, also one that came before. */
ssize_t cli_read(int descriptor, char *bytes, size_t size);

/* ---- Terminal --------------------------------------------------------------------------------------------------- */

#define CLI_NO_CHARACTER UINT32_MAX
enum { CLI_VISIBLE_SIZE = 8 };

/* The character that `text` (of at least a byte) begins with, and its length: CLI_NO_CHARACTER, of 1 byte, where that
   is not UTF-8. */
uint32_t cli_next_character(const char *text, size_t size, size_t *length);
/* What a terminal gets of that character: controls but newline and tab, line separators and changes of direction as
   \u001b, a byte that is not UTF-8 as \xff, everything else as it is. Returns the form's bytes; no NUL ends it. */
size_t cli_visible_character(const char *text, size_t size, char form[CLI_VISIBLE_SIZE], size_t *length);
void cli_append_visible(tsk_text *out, const char *text, size_t size);

/* Whether stderr is a terminal that can be drawn on. */
int cli_stderr_is_terminal(void);
void cli_terminal_size(int *columns, int *rows);
/* How far a long work is. Where stderr is such a terminal, a bar: label [####----] tail. Elsewhere a line every half
   minute, from the first half minute on: "tokenskip: label: tail". */
void cli_progress(const char *label, double fraction, const char *tail);
/* The last line once more, when half a minute has passed without one: called during what has no progress of its own. */
void cli_progress_again(void);
void cli_progress_clear(void);
/* Hides the cursor until called with 0; a signal shows it again. */
void cli_hide_cursor(int hide);

/* ---- Model, prompt, result -------------------------------------------------------------------------------------- */

/* A loaded model with one session, as generate, chat and eval need it. */
typedef struct cli_engine {
    tsk_model *model;
    tsk_session *session;
    const tsk_tokenizer *tokenizer; /* NULL: the folder has none */
    double load_ms;
} cli_engine;

/* Loads the model, with a progress bar on a terminal. */
int cli_load_model(cli_engine *engine, const cli_settings *settings);
/* Makes the session. Callbacks are set in settings->generate by then. */
int cli_open_session(cli_engine *engine, const cli_settings *settings);
void cli_engine_free(cli_engine *engine);

/* The prompt's text: -p or standard input; nothing where --prompt-ids was given. */
int cli_read_prompt(const cli_settings *settings, tsk_text *prompt);
/* Its ids, or those of --prompt-ids. */
int cli_prompt_tokens(const cli_engine *engine, const cli_settings *settings, const tsk_text *prompt, tsk_tokens *out);
/* K as the library resolves it; 0: no states are compared. */
int32_t cli_layer_k(const tsk_generate_options *options, const tsk_model_config *config);
/* Whether a block that starts after so many others does so with a refresh. */
int cli_block_refreshes(const tsk_generate_options *options, int32_t n_started);
/* Whether they compute less than the plain cache does; and they without that. */
int cli_leaves_out(const tsk_generate_options *options, const tsk_model_config *config);
void cli_make_plain(tsk_generate_options *options);
/* How many predictions a step of these options commits, and which; `quota`: of the schedule. */
tsk_transfer_rule cli_transfer_rule(const tsk_generate_options *options, int32_t quota);
/* For a command that is about rule STATES, which is not the default: it becomes the rule where none is chosen. */
void cli_choose_states(tsk_generate_options *options);
/* How the chat template is rendered: --thinking. */
tsk_chat_options cli_chat_options(const cli_settings *settings);
/* The ids of one user turn under --system and --raw. */
int cli_encode_prompt(const cli_engine *engine, const cli_settings *settings, const char *text, size_t size,
                      const char *context, tsk_tokens *out);
/* What was generated, up to its end, without special tokens. */
int cli_result_text(const cli_engine *engine, const tsk_result *result, tsk_text *out);
/* Generated tokens up to the end; of a cancelled generation, those that came. */
int32_t cli_count_tokens(const cli_engine *engine, const tsk_result *result);
double cli_tokens_per_second(double tokens, double milliseconds);

#endif
