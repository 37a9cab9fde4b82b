/* --dump: values of passes in a safetensors file, under the names pass{n}.{record}.{input|output}. */
#include "system.h"
#include "trace.h"

/* "A..B", "A..", "..B" or "A". */
static int read_passes(const char *text, int32_t *first, int32_t *last) {
    const char *dots = strstr(text, "..");
    char number[16];
    size_t n = dots ? (size_t)(dots - text) : strlen(text);
    int64_t a = 0, b = INT32_MAX;
    if (n >= sizeof number || (!n && (!dots || !dots[2]))) return 0;
    memcpy(number, text, n);
    number[n] = 0;
    if (n && !cli_read_int(number, 0, INT32_MAX, &a)) return 0;
    if (dots && dots[2] && !cli_read_int(dots + 2, 0, INT32_MAX, &b)) return 0;
    *first = (int32_t)a;
    *last = dots ? (int32_t)b : (int32_t)a;
    return *first <= *last;
}

static int fail(trace_dump *dump, int status) {
    dump_abandon(dump);
    return status;
}

/* Before the model is loaded: a file that cannot be written should not cost a generation. */
int dump_open(trace_dump *dump, const cli_settings *settings) {
    memset(dump, 0, sizeof *dump);
    dump->prefix = "";
    dump->only = settings->dump_only;
    dump->last_pass = INT32_MAX;
    if (!settings->dump) {
        if (settings->dump_only || settings->passes)
            return cli_usage_error("--%s needs --dump FILE", settings->dump_only ? "dump-only" : "passes");
        return CLI_OK;
    }
    if (settings->passes && !read_passes(settings->passes, &dump->first_pass, &dump->last_pass))
        return cli_usage_error("--passes takes A..B, A.., ..B or A, not '%s'", settings->passes);
    if (tsk_safetensors_writer_open(settings->dump, NULL, &dump->writer, &dump->error) != TSK_OK)
        return fail(dump, cli_fail_with(&dump->error, NULL));
    return CLI_OK;
}

static void add(trace_dump *dump, const tsk_trace_record *record, const char *what, int n_dims, const uint64_t *shape,
                const float *values) {
    char name[128];
    snprintf(name, sizeof name, "%spass%d.%s.%s", dump->prefix, (int)record->pass, record->name, what);
    if (!values || dump->failed || (dump->only && !system_matches(dump->only, name))) return;
    if (tsk_safetensors_writer_add(dump->writer, name, TSK_DTYPE_F32, n_dims, shape, values, &dump->error) != TSK_OK)
        dump->failed = 1;
    else dump->n_tensors++;
}

/* A record with parts (RoPE, caches) has one tensor a part and no input: that is the record before it. So is the
   logits' input. */
void dump_record(trace_dump *dump, const tsk_trace_record *record) {
    if (!dump->writer || record->pass < dump->first_pass || record->pass > dump->last_pass) return;
    if (!record->part[0] && record->input_shape[1] && strcmp(record->name, "logits") != 0)
        add(dump, record, "input", 2, record->input_shape, record->input);
    add(dump, record, record->part[0] ? record->part : "output", record->n_dims, record->output_shape, record->output);
}

int dump_finish(trace_dump *dump, const cli_settings *settings) {
    if (!dump->writer) return CLI_OK;
    if (!dump->n_tensors)
        return fail(
            dump, cli_fail("nothing to dump to '%s': no value has a name and pass that --dump-only and --passes allow",
                           settings->dump));
    if (tsk_safetensors_writer_finish(dump->writer, &dump->error) != TSK_OK)
        return fail(dump, cli_fail_with(&dump->error, NULL));
    dump_abandon(dump);
    cli_note("%s: %zu tensors", settings->dump, dump->n_tensors);
    return CLI_OK;
}

void dump_abandon(trace_dump *dump) {
    tsk_safetensors_writer_free(dump->writer);
    dump->writer = NULL;
}
