/* What TokenSkip does to a generation, pass by pass: compared with the baseline from the same states, then followed
   step by step. */
#include "output.h"
#include "trace.h"

/* Everything that can be known to be wrong before a model is loaded. */
static int check(const cli_settings *settings, trace_dump *dump) {
    const tsk_generate_options *o = &settings->generate;
    int status;
    if (settings->shadow && settings->by_blocks)
        return cli_usage_error("--shadow compares with passes over the canvas, which a model that attends by blocks "
                               "has not");
    if (settings->shadow && (o->cache != TSK_CACHE_DUAL || o->skip.rule == TSK_SKIP_RULE_OFF ||
                             (o->skip.rule != TSK_SKIP_RULE_ROWS && o->skip.layer_k == 0)))
        return cli_usage_error("--shadow needs TokenSkip: --cache dual, and --skip-rule rows or a "
                               "--skip-layer-k above 0");
    status = output_check_apart("--html", settings->html, "--dump", settings->dump);
    if (status != CLI_OK) return status;
    if (settings->html && output_check(settings->html) != CLI_OK) return CLI_FAILED;
    return dump_open(dump, settings);
}

/* Options that the model cannot have are said before anything is run. */
static int check_options(const cli_engine *engine, const cli_settings *settings) {
    tsk_generate_options resolved = settings->generate;
    tsk_session *session = NULL;
    tsk_error error = {0};
    int status = CLI_OK;
    tsk_generate_options_resolve(engine->model, &resolved);
    if (settings->shadow && resolved.skip.rule == TSK_SKIP_RULE_OFF)
        return cli_usage_error("--shadow needs TokenSkip, which this model has only where --skip-rule says so");
    if (tsk_session_create(engine->model, &settings->generate, &session, &error) != TSK_OK)
        status = cli_fail_with(&error, NULL);
    tsk_session_free(session);
    return status;
}

/* The page's difference curves come from the shadow, which there is of caches with a pass over the canvas only. */
static int is_shadowed(const trace *t) {
    return !t->settings->by_blocks && strcmp(trace_rule(t), "off") != 0 && (t->settings->shadow || t->settings->html);
}

/* The two steps are a part of --json and of the page, and of the text where it is asked for. */
static int wants_notebook(const trace *t) {
    return t->notes_k && (t->settings->notebook || t->settings->json || t->settings->html);
}

static int estimate_dump(const trace *t, trace_dump *dump) {
    const tsk_generate_options *generations[2];
    generations[0] = &t->versus;
    generations[1] = &t->settings->generate;
    return dump_estimate(dump, t->settings, t->config, generations, t->leaves_out ? 2 : 1, t->prompt);
}

static int run(trace *t, trace_dump *dump) {
    int status = CLI_OK;
    status = estimate_dump(t, dump);
    if (status == CLI_OK && wants_notebook(t)) status = notebook_run(&t->notes, t->engine, t->settings, t->prompt);
    if (status == CLI_OK)
        status = generation_run(&t->baseline, t->engine, t->settings, &t->versus, t->prompt, 0, dump);
    dump->prefix = "skip.";
    if (status == CLI_OK && t->leaves_out)
        status =
            generation_run(&t->skip, t->engine, t->settings, &t->settings->generate, t->prompt, is_shadowed(t), dump);
    if (status == CLI_OK && t->leaves_out) status = parting_find(t);
    return status;
}

static int print(const trace *t) {
    tsk_text out = {0};
    tsk_json_writer json = {0};
    int status;
    json.out = &out;
    if (t->settings->json) {
        trace_json(t, &json);
        status = cli_json_print(&json);
    } else {
        trace_text(t, &out);
        status = cli_write(out.data, out.length);
    }
    tsk_text_free(&out);
    return status;
}

/* What the given settings are compared with: `versus`, where there is one, or themselves without TokenSkip. */
static void choose_baseline(trace *t, const cli_settings *versus) {
    t->versus = versus ? versus->generate : t->settings->generate;
    if (!versus) cli_make_plain(&t->versus);
    t->names[0] = versus ? t->settings->versus : "plain dual cache";
    t->names[1] = versus ? "the given settings" : "TokenSkip";
    if (!versus && t->versus.cache != TSK_CACHE_DUAL) t->names[0] = "without TokenSkip";
    if (versus && !t->names[0][strspn(t->names[0], " ")]) t->names[0] = "the same settings";
    t->leaves_out = versus || cli_leaves_out(&t->settings->generate, t->config);
}

static int trace_prompt(const cli_engine *engine, const cli_settings *settings, const cli_settings *versus,
                        const tsk_tokens *prompt, trace_dump *dump) {
    tsk_generate_options by_states = settings->generate;
    trace t;
    int status;
    memset(&t, 0, sizeof t);
    t.engine = engine;
    t.settings = settings;
    t.config = tsk_model_get_config(engine->model);
    t.prompt = prompt;
    t.layer_k = cli_layer_k(&settings->generate, t.config);
    cli_choose_states(&by_states);
    /* (the two steps that are compared follow a pass over the canvas, which models that attend by blocks have not) */
    t.notes_k = settings->by_blocks ? 0 : cli_layer_k(&by_states, t.config);
    choose_baseline(&t, versus);
    status = run(&t, dump);
    /* files first: what is printed stands for a trace that is complete */
    if (status == CLI_OK) status = dump_finish(dump, &t);
    if (status == CLI_OK && settings->html) status = trace_html(&t, settings->html);
    if (status == CLI_OK) status = print(&t);
    notebook_free(&t.notes);
    generation_free(&t.baseline);
    generation_free(&t.skip);
    return status;
}

/* The prompt is one. */
static int check_versus(const cli_settings *settings, const cli_settings *versus) {
    if (versus->raw != settings->raw || versus->system != settings->system)
        return cli_usage_error("--versus: the prompt is the same for both: no --system and no --raw");
    return CLI_CONTINUE;
}

static int trace_settings(cli_settings *settings, const cli_settings *versus) {
    cli_engine engine = {0};
    tsk_text text = {0};
    tsk_tokens prompt = {0};
    trace_dump dump;
    int status;
    cli_catch_interrupts(); /* before there is a file to leave behind */
    status = check(settings, &dump);
    if (status != CLI_OK) return status;
    status = cli_read_prompt(settings, &text);
    if (status == CLI_OK) status = cli_load_model(&engine, settings);
    if (status == CLI_OK) status = check_options(&engine, settings);
    if (status == CLI_OK && versus) {
        cli_place_messages("--versus");
        status = check_options(&engine, versus);
        cli_place_messages(NULL);
    }
    if (status == CLI_OK) status = cli_prompt_tokens(&engine, settings, &text, &prompt);
    if (status == CLI_OK) status = trace_prompt(&engine, settings, versus, &prompt, &dump);
    dump_abandon(&dump);
    cli_engine_free(&engine);
    tsk_text_free(&text);
    tsk_tokens_free(&prompt);
    return status;
}

int cmd_trace(cli_settings *settings) {
    cli_settings versus;
    char **words = NULL;
    int status = CLI_CONTINUE;
    if (settings->versus)
        status = cli_parse_against(&versus, settings, "trace", "--versus", settings->versus, &words);
    if (status == CLI_CONTINUE && settings->versus) status = check_versus(settings, &versus);
    if (status == CLI_CONTINUE) status = trace_settings(settings, settings->versus ? &versus : NULL);
    free(words);
    return status;
}
