/* The outcome of a generation in JSON, as `generate --json` prints it and `batch` writes it. */
#ifndef RESULT_H
#define RESULT_H

#include "cli.h"

/* "length", "eos" or "cancelled". */
const char *result_finish_name(tsk_finish reason);
/* Whether tokens are shown beyond the end of the text: with --pad, and with --no-eos-stop, where no token ends it. */
int result_shows_padding(const cli_settings *settings);
/* How many of the result's tokens are shown. */
int32_t result_n_shown(const tsk_result *result, int shows_padding);
/* The members of an open object, `n_shown` of the tokens among them. `text`: NULL without a tokenizer. */
void result_write(tsk_json_writer *json, const cli_engine *engine, const tsk_result *result, int32_t n_shown,
                  const tsk_text *text);

#endif
