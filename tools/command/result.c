#include "result.h"

static void write_blocks(tsk_json_writer *json, const tsk_result *result) {
    int32_t i;
    tsk_json_write_key(json, "blocks");
    tsk_json_begin_array(json);
    for (i = 0; i < result->n_blocks; i++) {
        tsk_json_begin_object(json);
        cli_json_uint(json, "nfe", (uint64_t)result->blocks[i].nfe);
        cli_json_uint(json, "mask_residual", (uint64_t)result->blocks[i].mask_residual);
        tsk_json_end_object(json);
    }
    tsk_json_end_array(json);
}

static void write_skip(tsk_json_writer *json, const tsk_result *result) {
    tsk_json_write_key(json, "skip");
    tsk_json_begin_object(json);
    cli_json_ids(json, "active", result->active, (size_t)result->n_block_steps);
    cli_json_ids(json, "stable_masked", result->stable_masked, (size_t)result->n_block_steps);
    cli_json_uint(json, "token_layers_computed", result->token_layers_computed);
    cli_json_uint(json, "token_layers_total", result->token_layers_total);
    cli_json_uint(json, "refresh_token_layers_computed", result->refresh_token_layers_computed);
    cli_json_uint(json, "refresh_token_layers_total", result->refresh_token_layers_total);
    tsk_json_end_object(json);
}

static void write_timing(tsk_json_writer *json, const cli_engine *engine, const tsk_result *result) {
    tsk_json_write_key(json, "timing");
    tsk_json_begin_object(json);
    cli_json_double(json, "load_ms", engine->load_ms);
    cli_json_double(json, "refresh_ms", result->refresh_ms);
    cli_json_uint(json, "refreshes", (uint64_t)result->refreshes);
    cli_json_uint(json, "refreshed_rows", result->refreshed_rows);
    cli_json_double(json, "block_step_ms", result->block_step_ms);
    cli_json_uint(json, "block_steps", (uint64_t)result->block_steps);
    cli_json_double(json, "prompt_ms", result->prompt_ms);
    cli_json_double(json, "storing_ms", result->storing_ms);
    cli_json_double(json, "total_ms", result->total_ms);
    cli_json_double(json, "tokens_per_second",
                    cli_tokens_per_second(cli_count_tokens(engine, result), result->total_ms));
    tsk_json_end_object(json);
}

const char *result_finish_name(tsk_finish reason) {
    switch (reason) {
    case TSK_FINISH_LENGTH: return "length";
    case TSK_FINISH_EOS: return "eos";
    default: return "cancelled";
    }
}

int result_shows_padding(const cli_settings *settings) { return settings->pad || !settings->generate.eos_stop; }

int32_t result_n_shown(const tsk_result *result, int shows_padding) {
    return shows_padding ? result->n_tokens : result->n_before_end;
}

void result_write(tsk_json_writer *json, const cli_engine *engine, const tsk_result *result, int32_t n_shown,
                  const tsk_text *text) {
    tsk_json_write_key(json, "text");
    if (text) tsk_json_write_string(json, text->data ? text->data : "", text->length);
    else tsk_json_write_null(json);
    cli_json_ids(json, "tokens", result->tokens, (size_t)n_shown);
    cli_json_ids(json, "prompt_tokens", result->canvas, (size_t)result->n_prompt); /* masks in it filled */
    cli_json_uint(json, "nfe", (uint64_t)result->nfe);
    cli_json_uint(json, "prompt_passes", (uint64_t)result->prompt_passes);
    cli_json_uint(json, "storing_passes", (uint64_t)result->storing_passes);
    cli_json_uint(json, "mask_residual", (uint64_t)result->mask_residual);
    cli_json_string(json, "finish_reason", result_finish_name(result->finish_reason));
    write_blocks(json, result);
    write_skip(json, result);
    write_timing(json, engine, result);
    cli_json_string(json, "device", tsk_model_device_name(engine->model));
}
