/* The outcome of a generation in JSON, as `generate --json` prints it and `batch` writes it. */
#ifndef RESULT_H
#define RESULT_H

#include "cli.h"

/* "length", "eos" or "cancelled". */
const char *result_finish_name(tsk_finish reason);
/* The members of an open object. `text`: NULL without a tokenizer. */
void result_write(tsk_json_writer *json, const cli_engine *engine, const tsk_result *result, const tsk_text *text);

#endif
