/* --dump: values of passes in a safetensors file, under the names pass{n}.{record}.{input|output|part}, with what tells
   of them: of each pass pass{n}.ids, .positions, .ran and .committed, of all values index.pass and index.layer, and
   __metadata__. docs/dump.md describes the file. */
#include "system.h"
#include "trace.h"

/* ---- What is asked for ------------------------------------------------------------------------------------------ */

/* "A..B", "A..", "..B" or "A". */
static int read_range(const char *text, int32_t *first, int32_t *last) {
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

/* A file that cannot be written should not cost a generation. */
int dump_open(trace_dump *dump, const cli_settings *settings) {
    memset(dump, 0, sizeof *dump);
    dump->prefix = "";
    dump->pattern = settings->dump_pattern;
    dump->last_pass = dump->last_layer = INT32_MAX;
    if (!settings->dump) {
        if (settings->dump_pattern || settings->passes || settings->layers)
            return cli_usage_error("--%s needs --dump FILE", settings->dump_pattern ? "dump-pattern"
                                                             : settings->passes     ? "passes"
                                                                                    : "layers");
        return CLI_OK;
    }
    if (settings->passes && !read_range(settings->passes, &dump->first_pass, &dump->last_pass))
        return cli_usage_error("--passes takes A..B, A.., ..B or A, not '%s'", settings->passes);
    if (settings->layers && !read_range(settings->layers, &dump->first_layer, &dump->last_layer))
        return cli_usage_error("--layers takes A..B, A.., ..B or A, not '%s'", settings->layers);
    if (tsk_safetensors_writer_open(settings->dump, NULL, &dump->writer, &dump->error) != TSK_OK)
        return fail(dump, cli_fail_with(&dump->error, NULL));
    return CLI_OK;
}

static int is_wanted(const trace_dump *dump, int32_t pass, int32_t layer, const char *name) {
    return pass >= dump->first_pass && pass <= dump->last_pass &&
           (layer < 0 || (layer >= dump->first_layer && layer <= dump->last_layer)) &&
           (!dump->pattern || system_matches(dump->pattern, name));
}

/* ---- How much that can be --------------------------------------------------------------------------------------- */

/* What a pass of a generation is made of, at most. */
typedef struct pass_plan {
    int32_t passes, blocks;    /* of the generation */
    int32_t canvas, block;     /* rows of a block's first pass, and of the others */
    int32_t steps;             /* passes of each block, where all have as many; 0: it is not known before */
} pass_plan;

/* By blocks: the prompt in pieces, then each block's steps and the pass that stores it. The blocks count from the
   prompt's end at the earliest. */
static pass_plan plan_by_blocks(const tsk_generate_options *o, const tsk_tokens *prompt, int32_t length,
                                int32_t max_blocks) {
    pass_plan plan;
    int32_t piece = o->prompt_rows > 0 ? o->prompt_rows : 2048;
    plan.blocks = 1; /* passes of as many rows as the prompt */
    plan.steps = 0;
    plan.canvas = prompt->count;
    plan.block = length;
    plan.passes = (o->gen_length + length - 1) / length + 1;
    if (max_blocks > 0 && max_blocks < plan.passes) plan.passes = max_blocks;
    plan.passes = plan.passes * (length + 1) + prompt->count / piece + 1;
    return plan;
}

static pass_plan plan_of(const tsk_generate_options *o, const tsk_tokens *prompt, const tsk_model_config *config,
                         int32_t max_blocks) {
    pass_plan plan;
    int32_t i, infill = 0, mask = config->mask_token_id;
    if (tsk_config_by_blocks(config))
        return plan_by_blocks(o, prompt, o->block_length > 0 ? o->block_length : config->block_length, max_blocks);
    for (i = 0; i < prompt->count; i++) infill += prompt->ids[i] == mask;
    plan.canvas = prompt->count + o->gen_length;
    plan.blocks = o->gen_length / o->block_length;
    plan.steps = (o->steps == TSK_AUTO ? o->gen_length : o->steps) / plan.blocks;
    if (max_blocks > 0 && max_blocks < plan.blocks) plan.blocks = max_blocks;
    if (o->transfer != TSK_TRANSFER_SCHEDULE || plan.steps > o->block_length) plan.steps = o->block_length;
    plan.passes = plan.blocks * plan.steps;
    plan.passes += infill; /* a block of their own */
    plan.blocks += infill > 0;
    if (o->transfer != TSK_TRANSFER_SCHEDULE || infill) plan.steps = 0;
    plan.block = o->cache == TSK_CACHE_DUAL ? o->block_length + o->refresh_rows : plan.canvas;
    if (plan.block > plan.canvas) plan.block = plan.canvas;
    return plan;
}

/* The most rows that the passes first .. last have together. Where it is not known which of them start a block, as many
   do as can. */
static uint64_t rows_of(const pass_plan *plan, int32_t first, int32_t last) {
    int64_t n, starts;
    if (last >= plan->passes) last = plan->passes - 1;
    if (first > last) return 0;
    n = (int64_t)last - first + 1;
    if (plan->steps) starts = last / plan->steps - (first ? (first - 1) / plan->steps : -1);
    else starts = n < plan->blocks ? n : plan->blocks;
    return (uint64_t)(starts * plan->canvas + (n - starts) * plan->block);
}

/* The values of one row in all records of a layer, or of none (layer -1), that the pattern takes, as 32-bit numbers. */
static uint64_t row_values(const trace_dump *dump, const tsk_model_config *c, const char *prefix, int32_t layer) {
    static const struct { const char *name; char input, output; } of_layer[] = {
        {"", 'd', 'd'},          {"_attn_norm", 'd', 'd'}, {"_q_proj", 'd', 'q'},  {"_k_proj", 'd', 'k'},
        {"_v_proj", 'd', 'k'},   {"_attn_out", 'q', 'd'},  {"_ff_norm", 'd', 'd'}, {"_ff_proj", 'd', 'm'},
        {"_up_proj", 'd', 'm'},  {"_ffn_out", 'm', 'd'},   {"_rope.q", 0, 'q'},    {"_rope.k", 0, 'k'},
        {"_q_norm", 'q', 'q'},   {"_k_norm", 'k', 'k'}}; /* of SDAR only */
    static const struct { const char *name; char output; } of_none[] = {
        {"embedding.output", 'd'}, {"final_norm.input", 'd'}, {"final_norm.output", 'd'}, {"logits.output", 'e'}};
    const size_t n_of_layer = sizeof of_layer / sizeof of_layer[0] - (c->family == TSK_FAMILY_SDAR ? 0 : 2);
    uint64_t sum = 0, width[128] = {0};
    char name[96];
    size_t i;
    int which;
    width['d'] = (uint64_t)c->d_model;
    width['q'] = (uint64_t)c->n_heads * (uint64_t)c->head_dim;
    width['k'] = (uint64_t)c->n_kv_heads * (uint64_t)c->head_dim;
    width['m'] = (uint64_t)c->mlp_hidden_size;
    width['e'] = (uint64_t)c->embedding_size;
    for (i = 0; layer < 0 && i < sizeof of_none / sizeof of_none[0]; i++) {
        snprintf(name, sizeof name, "%s.%s", prefix, of_none[i].name);
        if (!dump->pattern || system_matches(dump->pattern, name)) sum += width[(int)of_none[i].output];
    }
    for (i = 0; layer >= 0 && i < n_of_layer; i++)
        for (which = 0; which < 2; which++) {
            const char *part = strchr(of_layer[i].name, '.') ? "" : which ? ".output" : ".input";
            snprintf(name, sizeof name, "%s.layer_%d%s%s", prefix, (int)layer, of_layer[i].name, part);
            if (!dump->pattern || system_matches(dump->pattern, name))
                sum += width[(int)(which ? of_layer[i].output : of_layer[i].input)];
        }
    return sum;
}

static uint64_t cache_values(const trace_dump *dump, const tsk_model_config *c, const char *prefix, int32_t layer) {
    uint64_t sum = 0;
    char name[64];
    int part;
    for (part = 0; layer >= 0 && part < 2; part++) {
        snprintf(name, sizeof name, "%s.kv_%d.%c", prefix, (int)layer, "kv"[part]);
        if (!dump->pattern || system_matches(dump->pattern, name))
            sum += (uint64_t)c->n_kv_heads * (uint64_t)c->head_dim;
    }
    return sum;
}

/* A pattern may name passes: then every pass is asked for by itself. */
static uint64_t generation_bytes(const trace_dump *dump, const tsk_model_config *c, const pass_plan *plan,
                                 const char *prefix) {
    int32_t first = dump->first_pass, last = dump->last_pass < plan->passes ? dump->last_pass : plan->passes - 1;
    int32_t layer, pass, end = dump->last_layer < c->n_layers ? dump->last_layer : c->n_layers - 1;
    uint64_t values = 0;
    for (pass = first; pass <= last; pass++) {
        int32_t until = dump->pattern ? pass : last;
        uint64_t rows = rows_of(plan, pass, until), in_row = 0, in_cache = 0;
        char name[48];
        snprintf(name, sizeof name, "%spass%d", prefix, (int)pass);
        for (layer = -1; layer <= end; layer++) {
            if (layer >= 0 && layer < dump->first_layer) continue;
            in_row += row_values(dump, c, name, layer);
            in_cache += cache_values(dump, c, name, layer);
        }
        values += rows * in_row + (uint64_t)(until - pass + 1) * (uint64_t)plan->canvas * in_cache;
        pass = until;
    }
    return values * sizeof(float);
}

/* 790 MB. */
static const char *size_text(uint64_t bytes, char *out, size_t size) {
    if (bytes < 1000000) snprintf(out, size, "%.0f kB", (double)bytes / 1e3);
    else if (bytes < 10000000000u) snprintf(out, size, "%.0f MB", (double)bytes / 1e6);
    else snprintf(out, size, "%.0f GB", (double)bytes / 1e9);
    return out;
}

int dump_estimate(trace_dump *dump, const cli_settings *settings, const tsk_model_config *config,
                  const tsk_generate_options *const *generations, int n_generations, const tsk_tokens *prompt) {
    uint64_t bytes = 0;
    int32_t most = 0;
    char text[32];
    int i;
    if (!dump->writer) return CLI_OK;
    if (dump->first_layer >= config->n_layers)
        return cli_fail("--layers %s: the model has the layers 0 to %d", settings->layers, (int)config->n_layers - 1);
    if (dump->last_layer >= config->n_layers) dump->last_layer = config->n_layers - 1;
    for (i = 0; i < n_generations; i++) {
        pass_plan plan = plan_of(generations[i], prompt, config, settings->blocks);
        bytes += generation_bytes(dump, config, &plan, i ? "skip." : "");
        if (plan.passes > most) most = plan.passes;
    }
    cli_note("%s: at most %s of values, of %s with up to %d passes%s", settings->dump,
             size_text(bytes, text, sizeof text), n_generations > 1 ? "two generations" : "one generation", (int)most,
             settings->dump_pattern || settings->passes || settings->layers
                 ? ""
                 : " (--dump-pattern, --passes and --layers choose)");
    return CLI_OK;
}

/* ---- Values ----------------------------------------------------------------------------------------------------- */

static void note_tensor(trace_dump *dump, int32_t pass, int32_t layer) {
    if (dump->n_tensors == dump->capacity) {
        dump->capacity = dump->capacity ? 2 * dump->capacity : 256;
        dump->passes = (int32_t *)cli_reallocate(dump->passes, dump->capacity, sizeof *dump->passes);
        dump->layers = (int32_t *)cli_reallocate(dump->layers, dump->capacity, sizeof *dump->layers);
    }
    dump->passes[dump->n_tensors] = pass;
    dump->layers[dump->n_tensors++] = layer;
}

static void add_tensor(trace_dump *dump, int32_t pass, int32_t layer, const char *name, tsk_dtype dtype, int n_dims,
                       const uint64_t *shape, const void *data) {
    uint64_t size = tsk_dtype_size(dtype);
    int i;
    if (dump->failed) return;
    for (i = 0; i < n_dims; i++) size *= shape[i];
    if (tsk_safetensors_writer_add(dump->writer, name, dtype, n_dims, shape, data, &dump->error) != TSK_OK) {
        dump->failed = 1;
        return;
    }
    dump->bytes += size;
    note_tensor(dump, pass, layer);
}

static void add_values(trace_dump *dump, const tsk_trace_record *record, const char *what, int n_dims,
                       const uint64_t *shape, const float *values) {
    char name[128];
    snprintf(name, sizeof name, "%spass%d.%s.%s", dump->prefix, (int)record->pass, record->name, what);
    if (!values || dump->failed || !is_wanted(dump, record->pass, record->layer, name)) return;
    add_tensor(dump, record->pass, record->layer, name, TSK_DTYPE_F32, n_dims, shape, values);
    dump->n_values++;
}

/* A layer's output tells who ran it, the embedding who began. */
static void note_rows(trace_dump *dump, const tsk_trace_record *record) {
    char name[32];
    int32_t i, row = 0;
    if (strcmp(record->name, "embedding") == 0) {
        size_t n = (size_t)record->n_rows, layers = (size_t)(dump->last_layer - dump->first_layer + 1);
        dump->n_positions = record->n_rows;
        dump->positions = (int32_t *)cli_reallocate(dump->positions, n, sizeof *dump->positions);
        dump->ran = (uint8_t *)cli_reallocate(dump->ran, n * layers, 1);
        memcpy(dump->positions, record->positions, n * sizeof *dump->positions);
        memset(dump->ran, 0, n * layers);
    }
    snprintf(name, sizeof name, "layer_%d", (int)record->layer);
    if (record->layer < dump->first_layer || record->layer > dump->last_layer) return;
    if (strcmp(record->name, name) != 0) return;
    for (i = 0; i < record->n_rows; i++, row++) {
        while (row < dump->n_positions && dump->positions[row] != record->positions[i]) row++;
        if (row == dump->n_positions) return;
        dump->ran[(size_t)(record->layer - dump->first_layer) * (size_t)dump->n_positions + (size_t)row] = 1;
    }
}

/* A record with parts (RoPE, caches) has one tensor a part and no input: that is the record before it. So is the
   logits' input. */
void dump_record(trace_dump *dump, const tsk_trace_record *record) {
    if (!dump->writer || record->pass < dump->first_pass || record->pass > dump->last_pass) return;
    note_rows(dump, record);
    if (!record->part[0] && record->input_shape[1] && strcmp(record->name, "logits") != 0)
        add_values(dump, record, "input", 2, record->input_shape, record->input);
    add_values(dump, record, record->part[0] ? record->part : "output", record->n_dims, record->output_shape,
               record->output);
}

static void add_small(trace_dump *dump, const tsk_step *step, const char *what, tsk_dtype dtype, int n_dims,
                      const uint64_t *shape, const void *data) {
    char name[64];
    snprintf(name, sizeof name, "%spass%d.%s", dump->prefix, (int)step->pass, what);
    add_tensor(dump, step->pass, -1, name, dtype, n_dims, shape, data);
}

void dump_step(trace_dump *dump, const tsk_step *step) {
    int32_t *ids, *committed, i, n = 0;
    uint64_t shape[2];
    if (!dump->writer || step->pass < dump->first_pass || step->pass > dump->last_pass) return;
    ids = (int32_t *)cli_copy(step->canvas, (size_t)step->canvas_length, sizeof *ids);
    committed = (int32_t *)cli_allocate((size_t)step->n_positions, sizeof *committed);
    for (i = 0; i < step->n_positions; i++) {
        if (!step->committed[i]) continue;
        ids[step->positions[i]] = step->mask_token_id; /* as it was before the pass */
        committed[n++] = step->positions[i];
    }
    shape[0] = (uint64_t)step->canvas_length;
    add_small(dump, step, "ids", TSK_DTYPE_I32, 1, shape, ids);
    shape[0] = (uint64_t)dump->n_positions;
    add_small(dump, step, "positions", TSK_DTYPE_I32, 1, shape, dump->positions);
    shape[0] = (uint64_t)(dump->last_layer - dump->first_layer + 1);
    shape[1] = (uint64_t)dump->n_positions;
    add_small(dump, step, "ran", TSK_DTYPE_U8, 2, shape, dump->ran);
    shape[0] = (uint64_t)n;
    add_small(dump, step, "committed", TSK_DTYPE_I32, 1, shape, committed);
    free(ids);
    free(committed);
}

/* ---- The end ---------------------------------------------------------------------------------------------------- */

static void append_options(const trace *t, const tsk_generate_options *options, tsk_text *out) {
    tsk_json_writer json = {0};
    json.out = out;
    tsk_json_begin_object(&json);
    trace_options_json(t, &json, options);
    tsk_json_end_object(&json);
    if (json.status != TSK_OK) exit(cli_fail("out of memory"));
}

static void add_metadata(trace_dump *dump, const trace *t) {
    static const char *const keys[] = {"format",       "tokenskip",     "device", "n_layers", "first_layer",
                                       "n_prompt",     "mask_token_id", "pass",   "pass_options", "skip.pass",
                                       "skip.pass_options"};
    enum { N_KEYS = sizeof keys / sizeof keys[0] };
    char numbers[4][16];
    const char *values[N_KEYS];
    tsk_text options[2] = {{0}, {0}};
    int32_t n = t->leaves_out ? N_KEYS : N_KEYS - 2;
    snprintf(numbers[0], sizeof numbers[0], "%d", (int)t->config->n_layers);
    snprintf(numbers[1], sizeof numbers[1], "%d", (int)dump->first_layer);
    snprintf(numbers[2], sizeof numbers[2], "%d", (int)t->prompt->count);
    snprintf(numbers[3], sizeof numbers[3], "%d", (int)t->config->mask_token_id);
    append_options(t, &t->versus, &options[0]);
    append_options(t, &t->settings->generate, &options[1]);
    values[0] = "tokenskip trace 1";
    values[1] = tsk_version_string();
    values[2] = tsk_model_device_name(t->engine->model);
    values[3] = numbers[0];
    values[4] = numbers[1];
    values[5] = numbers[2];
    values[6] = numbers[3];
    values[7] = t->names[0];
    values[8] = options[0].data;
    values[9] = t->names[1];
    values[10] = options[1].data;
    if (tsk_safetensors_writer_metadata(dump->writer, n, keys, values, &dump->error) != TSK_OK) dump->failed = 1;
    tsk_text_free(&options[0]);
    tsk_text_free(&options[1]);
}

/* Of all tensors before the first of these. */
static void add_index(trace_dump *dump, const char *name, const uint64_t *shape, const int32_t *numbers) {
    if (!dump->failed && tsk_safetensors_writer_add(dump->writer, name, TSK_DTYPE_I32, 1, shape, numbers,
                                                    &dump->error) != TSK_OK)
        dump->failed = 1;
}

int dump_finish(trace_dump *dump, const trace *t) {
    const char *file = t->settings->dump;
    uint64_t shape[1];
    char text[32];
    if (!dump->writer) return CLI_OK;
    if (!dump->n_values)
        return fail(dump, cli_fail("nothing to dump to '%s': no value has a name, a pass and a layer that "
                                   "--dump-pattern, --passes and --layers allow",
                                   file));
    shape[0] = dump->n_tensors;
    add_index(dump, "index.pass", shape, dump->passes);
    add_index(dump, "index.layer", shape, dump->layers);
    if (!dump->failed) add_metadata(dump, t);
    if (dump->failed || tsk_safetensors_writer_finish(dump->writer, &dump->error) != TSK_OK)
        return fail(dump, cli_fail_with(&dump->error, NULL));
    cli_note("%s: %zu tensors, %s", file, dump->n_tensors + 2, size_text(dump->bytes, text, sizeof text));
    dump_abandon(dump);
    return CLI_OK;
}

void dump_abandon(trace_dump *dump) {
    tsk_safetensors_writer_free(dump->writer);
    dump->writer = NULL;
    free(dump->passes);
    free(dump->layers);
    free(dump->positions);
    free(dump->ran);
    dump->passes = dump->layers = dump->positions = NULL;
    dump->ran = NULL;
}
