#include "result.h"
#include "visual.h"

static int on_step(void *user, const tsk_step *step) {
    visual_step((visual *)user, step);
    return 0;
}

/* `text`: NULL without a tokenizer. */
static int print_json(const cli_engine *engine, const tsk_result *result, int32_t n_shown, const tsk_text *text) {
    tsk_text out = {0};
    tsk_json_writer json = {0};
    int status;
    json.out = &out;
    tsk_json_begin_object(&json);
    result_write(&json, engine, result, n_shown, text);
    tsk_json_end_object(&json);
    status = cli_json_print(&json);
    tsk_text_free(&out);
    return status;
}

static int print_plain(const cli_engine *engine, const tsk_result *result, int32_t n_shown, const tsk_text *text) {
    tsk_text out = {0};
    int32_t i;
    int status;
    if (text) cli_append_bytes(&out, text->data, text->length);
    else for (i = 0; i < n_shown; i++) cli_append(&out, i ? " %d" : "%d", (int)result->tokens[i]);
    cli_append(&out, "\n");
    status = cli_write(out.data, out.length);
    if (status == CLI_OK)
        cli_note("%d tokens in %d forward passes, %.1f tokens/s, %s", (int)cli_count_tokens(engine, result),
                 (int)result->nfe, cli_tokens_per_second(cli_count_tokens(engine, result), result->total_ms),
                 result_finish_name(result->finish_reason));
    tsk_text_free(&out);
    return status;
}

static int print_result(const cli_engine *engine, const cli_settings *settings, const tsk_result *result) {
    tsk_text text = {0};
    const tsk_text *shown = engine->tokenizer ? &text : NULL;
    int32_t n_shown = result_n_shown(result, result_shows_padding(settings));
    int status = shown ? cli_result_text(engine, result, &text) : CLI_OK;
    if (status == CLI_OK)
        status = settings->json ? print_json(engine, result, n_shown, shown)
                                : print_plain(engine, result, n_shown, shown);
    tsk_text_free(&text);
    return status;
}

/* Part of an answer would pass for all of it. */
static int fail_interrupted(const tsk_result *result) {
    return cli_fail("interrupted after %d forward passes, with %d masks left: the answer is incomplete and not printed",
                    (int)result->nfe, (int)result->mask_residual);
}

static int generate(cli_engine *engine, cli_settings *settings, const tsk_tokens *prompt) {
    visual view;
    tsk_result result;
    tsk_error error = {0};
    int status;
    visual_begin(&view, engine, settings);
    settings->generate.on_step = on_step;
    settings->generate.user = &view;
    status = cli_open_session(engine, settings);
    if (status != CLI_OK) return status;
    if (tsk_generate(engine->session, prompt->ids, prompt->count, NULL, &result, &error) != TSK_OK) status = CLI_FAILED;
    visual_end(&view);
    if (status == CLI_OK && result.finish_reason == TSK_FINISH_CANCELLED) return fail_interrupted(&result);
    if (status == CLI_OK) return print_result(engine, settings, &result);
    cli_fail_with(&error, NULL);
    return status;
}

int cmd_generate(cli_settings *settings) {
    cli_engine engine = {0};
    tsk_text text = {0};
    tsk_tokens prompt = {0};
    int status;
    cli_catch_interrupts();
    status = cli_read_prompt(settings, &text);
    if (status == CLI_OK) status = cli_load_model(&engine, settings);
    if (status == CLI_OK) status = cli_prompt_tokens(&engine, settings, &text, &prompt);
    if (status == CLI_OK) status = generate(&engine, settings, &prompt);
    cli_engine_free(&engine);
    tsk_text_free(&text);
    tsk_tokens_free(&prompt);
    return status;
}
