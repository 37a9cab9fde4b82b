/* Answers a file of requests, many in each pass. */
#include "batch.h"
#include "result.h"
#include "system.h"

/* Results not written yet, of which most wait for an earlier one when they come out in input order. */
enum { MAX_HELD = 4096 };

/* A line of the input between its reading and the writing of its result. */
typedef struct entry {
    struct entry *next;
    tsk_text line;         /* the result, from the id on */
    tsk_json_writer json;  /* writes it */
    uint64_t number, size; /* of the line in the input; its size is for the time left */
    uint64_t request;      /* its number among the lines that are not empty */
    int is_done, has_failed;
    int shows_padding;
} entry;

typedef struct batch_run {
    cli_settings *settings;
    cli_engine engine;
    batch_shard shard;
    line_reader input;
    id_set ids;
    tsk_text output_path, key, message;
    batch_output output;
    tsk_batch *batch;
    entry *first, *last;   /* in input order */
    int32_t n_held, n_flying;
    int at_end;
    uint64_t n_requests;   /* lines of the input that were no empty ones, so far */
    uint64_t done, skipped, failed; /* failed: of both, in this run and in earlier ones */
    uint64_t failed_line;  /* the first one of the input that failed; 0: none did */
    tsk_text failed_reason;
    uint64_t input_size, bytes_passed, bytes_skipped; /* of the input: dealt with; skipped because written before */
    double tokens, start_ms;
} batch_run;

/* ---- Results ---------------------------------------------------------------------------------------------------- */

static entry *add_entry(batch_run *b) {
    entry *e = (entry *)cli_allocate(1, sizeof *e);
    if (b->last) b->last->next = e;
    else b->first = e;
    b->last = e;
    b->n_held++;
    e->number = b->input.number;
    e->size = b->input.line.length + 1;
    e->request = b->n_requests;
    e->json.out = &e->line;
    tsk_json_begin_object(&e->json);
    tsk_json_write_key(&e->json, "id");
    return e;
}

static void write_id(entry *e, const tsk_json_value *id) {
    size_t length;
    const char *text = tsk_json_string(id, &length);
    int64_t number = 0;
    if (text) tsk_json_write_string(&e->json, text, length);
    else if (tsk_json_int64(id, &number)) tsk_json_write_int(&e->json, number);
}

/* Null, and the line's number, for what has no id of its own. */
static void write_line_number(entry *e) {
    tsk_json_write_null(&e->json);
    cli_json_uint(&e->json, "line", e->number);
}

/* What merging needs to know stands last, where it can be cut off again. */
static void finish_entry(const batch_run *b, entry *e) {
    if (b->output.is_numbered) cli_json_uint(&e->json, "request", e->request);
    tsk_json_end_object(&e->json);
    if (e->json.status != TSK_OK) exit(cli_fail("out of memory"));
    cli_append(&e->line, "\n");
    e->is_done = 1;
}

/* Keeps what the summary says of the first line that failed, whichever fails first. */
static void note_failure(batch_run *b, uint64_t line, const char *reason) {
    if (b->failed_line && b->failed_line < line) return;
    b->failed_line = line;
    b->failed_reason.length = 0;
    cli_append_bytes(&b->failed_reason, reason, strlen(reason));
}

static void fail_entry(batch_run *b, entry *e, const char *message) {
    note_failure(b, e->number, message);
    cli_json_string(&e->json, "error", message);
    finish_entry(b, e);
    e->has_failed = 1;
}

static void begin_messages(batch_run *b) {
    b->message.length = 0;
    cli_append(&b->message, "%s", "");
    cli_keep_messages(&b->message);
}

static void on_done(void *user, uint64_t id, void *request_user, const tsk_result *result, const tsk_error *error) {
    batch_run *b = (batch_run *)user;
    entry *e = (entry *)request_user;
    tsk_text text = {0};
    int status;
    (void)id;
    b->n_flying--;
    begin_messages(b);
    status = error                 ? cli_fail_with(error, NULL)
             : b->engine.tokenizer ? cli_result_text(&b->engine, result, &text)
                                   : CLI_OK;
    cli_keep_messages(NULL);
    if (status != CLI_OK) fail_entry(b, e, b->message.data);
    else {
        result_write(&e->json, &b->engine, result, result_n_shown(result, e->shows_padding),
                     b->engine.tokenizer ? &text : NULL);
        finish_entry(b, e);
        b->tokens += cli_count_tokens(&b->engine, result);
    }
    tsk_text_free(&text);
}

static void free_entry(batch_run *b, entry *e) {
    tsk_text_free(&e->line);
    free(e);
    b->n_held--;
}

/* Writes what is done; in input order, as far as nothing before it is missing. */
static int write_results(batch_run *b) {
    entry **link = &b->first, *previous = NULL;
    int status = CLI_OK;
    while (*link && status == CLI_OK) {
        entry *e = *link;
        if (!e->is_done && b->settings->order == 0) break;
        if (!e->is_done) {
            previous = e;
            link = &e->next;
            continue;
        }
        if (b->output.is_stream) cli_progress_clear(); /* both may be one terminal */
        status = batch_output_write(&b->output, &e->line);
        b->done++;
        b->failed += (uint64_t)e->has_failed;
        b->bytes_passed += e->size;
        *link = e->next;
        if (b->last == e) b->last = previous;
        free_entry(b, e);
    }
    return status;
}

/* ---- Requests --------------------------------------------------------------------------------------------------- */

static int submit(batch_run *b, batch_request *request, entry *e) {
    tsk_error error = {0};
    int status = batch_request_read(request, &b->input, &b->engine, b->settings);
    e->shows_padding = result_shows_padding(&request->settings);
    if (status == CLI_OK && tsk_batch_submit(b->batch, request->prompt.ids, request->prompt.count, NULL,
                                             &request->settings.generate, e, NULL, &error) != TSK_OK)
        status = cli_fail_with(&error, NULL);
    if (status == CLI_OK) b->n_flying++;
    return status;
}

/* Finds the key under which the line's result is written. What cannot be told apart by an id of its own goes by its
   number, with a message. */
static int find_key(batch_run *b, batch_request *request) {
    int status = batch_request_open(request, &b->input);
    if (status == CLI_OK && !ids_key(request->id, &b->key))
        status = cli_fail("\"id\" must be a string or a whole number");
    if (status == CLI_OK && !(ids_mark(&b->ids, b->key.data, b->key.length, ID_SEEN) & ID_SEEN)) return CLI_OK;
    if (status == CLI_OK)
        status = cli_fail("the id %s%s was that of an earlier line", b->key.data, b->key.data[0] == '"' ? "\"" : "");
    ids_line_key(b->input.number, &b->key);
    return status;
}

/* A failure that is there already counts like one of this run: the exit status is that of the whole output, however
   many runs it took. */
static void skip_line(batch_run *b, unsigned marks) {
    b->skipped++;
    b->bytes_skipped += b->input.line.length + 1;
    if (!(marks & ID_FAILED)) return;
    b->failed++;
    note_failure(b, b->input.number, "in an earlier run");
}

static void take_line(batch_run *b) {
    batch_request request;
    entry *e;
    unsigned marks;
    int status;
    b->n_requests++;
    begin_messages(b);
    status = find_key(b, &request);
    if ((int64_t)((b->input.number - 1) % (uint64_t)b->shard.count) != b->shard.index)
        b->bytes_passed += b->input.line.length + 1;
    else if ((marks = ids_mark(&b->ids, b->key.data, b->key.length, 0)) & ID_WRITTEN) skip_line(b, marks);
    else {
        e = add_entry(b);
        if (status == CLI_OK) {
            write_id(e, request.id);
            status = submit(b, &request, e);
        } else write_line_number(e);
        if (status != CLI_OK) fail_entry(b, e, b->message.data);
    }
    cli_keep_messages(NULL);
    batch_request_free(&request);
}

static int is_blank(const tsk_text *line) { return line->length == 0 || (line->length == 1 && line->data[0] == '\r'); }

/* Reads on while there are places to fill. It waits for a line only when nothing else is to be done: a pipe may have no
   more to say before it has seen results. */
static int fill(batch_run *b) {
    while (!b->at_end && b->n_flying < b->settings->max_batch && b->n_held < MAX_HELD && !cli_interrupted()) {
        if (b->first && !lines_ready(&b->input)) break;
        if (lines_next(&b->input)) {
            if (is_blank(&b->input.line)) b->bytes_passed += b->input.line.length + 1;
            else take_line(b);
        } else if (lines_check(&b->input) != CLI_OK) return CLI_FAILED;
        else b->at_end = !cli_interrupted();
    }
    return CLI_OK;
}

/* ---- The run ---------------------------------------------------------------------------------------------------- */

static void format_time(char *out, size_t size, double seconds) {
    if (seconds < 120) snprintf(out, size, ", %.0f s left", seconds);
    else if (seconds < 7200) snprintf(out, size, ", %.0f min left", seconds / 60);
    else snprintf(out, size, ", %.1f h left", seconds / 3600);
}

/* The time left goes by the bytes of the input: its lines have not been counted. */
static void show_progress(const batch_run *b) {
    char tail[160], failed[40] = "", left[40] = "";
    double seconds = (cli_now_ms() - b->start_ms) / 1e3, size = (double)b->input_size;
    double passed = (double)b->bytes_passed, behind = passed + (double)b->bytes_skipped;
    if (passed > 0 && size > behind) format_time(left, sizeof left, seconds * (size - behind) / passed);
    if (b->failed) snprintf(failed, sizeof failed, ", %llu failed", (unsigned long long)b->failed);
    snprintf(tail, sizeof tail, "%llu done%s, %.1f/s%s", (unsigned long long)(b->done + b->skipped), failed,
             seconds > 0 ? (double)b->done / seconds : 0, left);
    cli_progress("batch", size > 0 ? behind / size : 0, tail);
}

static int step(batch_run *b) {
    tsk_error error = {0};
    int status = CLI_OK;
    /* a failed pass is no request's fault: its requests are left for the next run, not written as failed */
    if (tsk_batch_step(b->batch, NULL, &error) != TSK_OK) status = cli_fail_with(&error, NULL);
    return status;
}

static int run_all(batch_run *b) {
    int status = CLI_OK;
    b->start_ms = cli_now_ms();
    do {
        status = fill(b);
        if (status == CLI_OK && b->n_flying && !cli_interrupted()) status = step(b);
        if (status == CLI_OK) status = write_results(b);
        if (status == CLI_OK) show_progress(b);
    } while (status == CLI_OK && !cli_interrupted() && (!b->at_end || b->first));
    cli_progress_clear();
    return status;
}

/* Under mpirun a status of 1 would have the other ranks killed in the middle of their work. */
static int fail_for_requests(const batch_run *b) {
    cli_fail("%s: %llu of %llu requests failed, the first at line %llu of %s: %s", b->output.path,
             (unsigned long long)b->failed, (unsigned long long)(b->done + b->skipped),
             (unsigned long long)b->failed_line, b->input.path, b->failed_reason.data);
    return batch_is_under_mpirun() ? CLI_OK : CLI_FAILED;
}

static int summarize(const batch_run *b) {
    const char *path = b->output.path;
    double seconds = (cli_now_ms() - b->start_ms) / 1e3;
    if ((!b->at_end || b->first) && b->output.is_stream)
        return cli_fail("interrupted after %llu results", (unsigned long long)b->done);
    if (!b->at_end || b->first)
        return cli_fail("interrupted after %llu results; run again to go on with %s",
                        (unsigned long long)(b->done + b->skipped), path);
    if (b->failed) return fail_for_requests(b);
    cli_note("%llu requests, %.0f tokens in %.1f s, %.1f tokens/s", (unsigned long long)b->done, b->tokens, seconds,
             cli_tokens_per_second(b->tokens, seconds * 1e3));
    return CLI_OK;
}

/* ---- The command ------------------------------------------------------------------------------------------------ */

static int open_input(batch_run *b) {
    system_file file;
    if (lines_open(&b->input, b->settings->input) != CLI_OK) return CLI_FAILED;
    b->input.can_stop = 1;
    if (system_look_at(b->input.descriptor, &file) != 0)
        return cli_fail("cannot read '%s': %s", b->input.path, strerror(errno));
    if (strcmp(b->settings->input, "-") != 0 && file.kind != SYSTEM_REGULAR && file.kind != SYSTEM_PIPE)
        return cli_fail("cannot read '%s': neither a regular file nor a pipe", b->input.path);
    b->input_size = file.kind == SYSTEM_REGULAR ? file.size : 0;
    return CLI_OK;
}

static int open_output(batch_run *b) {
    cli_append_bytes(&b->output_path, b->settings->output, strlen(b->settings->output));
    if (b->shard.count > 1) cli_append(&b->output_path, ".shard-%d-of-%d", (int)b->shard.index, (int)b->shard.count);
    return batch_output_open(&b->output, b->output_path.data, b->settings->output, &b->input, &b->ids);
}

static void tell(void *user, const char *line) {
    (void)user;
    cli_warn("%s", line);
}

static int open_batch(batch_run *b) {
    tsk_batch_options options = tsk_batch_options_default();
    tsk_error error = {0};
    int status = CLI_OK;
    options.max_requests = b->settings->max_batch;
    if (b->settings->cache_tokens) options.cache_tokens = b->settings->cache_tokens;
    options.on_done = on_done;
    options.log = tell;
    options.user = b;
    if (tsk_batch_create(b->engine.model, &options, &b->batch, &error) != TSK_OK)
        status = cli_fail_with(&error, "--max-batch and --cache-tokens");
    return status;
}

static void free_run(batch_run *b) {
    tsk_batch_free(b->batch);
    while (b->first) {
        entry *next = b->first->next;
        free_entry(b, b->first);
        b->first = next;
    }
    lines_free(&b->input);
    ids_free(&b->ids);
    tsk_text_free(&b->output_path);
    tsk_text_free(&b->key);
    tsk_text_free(&b->message);
    tsk_text_free(&b->failed_reason);
    cli_engine_free(&b->engine);
}

int cmd_batch(cli_settings *settings) {
    batch_run b;
    int status;
    if (settings->merge) return batch_merge(settings);
    memset(&b, 0, sizeof b);
    b.settings = settings;
    cli_catch_interrupts();
    status = batch_shard_find(settings, &b.shard);
    if (status == CLI_OK) status = batch_choose_device(settings);
    if (status == CLI_OK) status = open_input(&b);
    if (status == CLI_OK) status = open_output(&b);
    if (status == CLI_OK) status = cli_load_model(&b.engine, settings);
    if (status == CLI_OK) status = open_batch(&b);
    if (status == CLI_OK) status = run_all(&b);
    status = batch_output_close(&b.output, status);
    if (status == CLI_OK) status = summarize(&b);
    free_run(&b);
    return status;
}
