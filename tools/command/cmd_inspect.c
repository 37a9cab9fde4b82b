#include "system.h"

/* The tensors of a file or of a folder, one after another. */
typedef struct listing {
    const tsk_safetensors *file;  /* one of the two */
    const tsk_folder *folder;
    tsk_weights weights;          /* of a folder: what they would be held as */
} listing;

static size_t listing_count(const listing *l) {
    return l->folder ? tsk_folder_count(l->folder) : tsk_safetensors_count(l->file);
}

static const tsk_tensor_info *listing_get(const listing *l, size_t i, const char **shard) {
    const tsk_folder_tensor *tensor;
    *shard = NULL;
    if (!l->folder) return tsk_safetensors_get(l->file, i);
    tensor = tsk_folder_get(l->folder, i);
    *shard = tensor->shard;
    return tensor->info;
}

static uint64_t element_count(const tsk_tensor_info *tensor) {
    uint64_t n = 1;
    int i;
    for (i = 0; i < tensor->n_dims; i++) n *= tensor->shape[i];
    return n;
}

/* What the weights are held as under --weights. */
enum { MAX_FORMATS = 32 };
typedef struct format_list {
    tsk_weights_format formats[MAX_FORMATS];
    int n;
    uint64_t bytes;
} format_list;

static void list_formats(const listing *l, format_list *out) {
    int i;
    out->n = tsk_folder_formats(l->folder, l->weights, out->formats, MAX_FORMATS);
    out->bytes = 0;
    for (i = 0; i < out->n; i++) out->bytes += out->formats[i].bytes;
}

typedef struct totals { uint64_t parameters, bytes; } totals;

/* Of a folder, the model's parameters, whatever they are packed in. */
static totals listing_totals(const listing *l) {
    totals t = {0, 0};
    const char *shard;
    size_t i;
    for (i = 0; i < listing_count(l); i++) {
        const tsk_tensor_info *tensor = listing_get(l, i, &shard);
        t.parameters += element_count(tensor);
        t.bytes += tensor->size;
    }
    if (l->folder) {
        format_list formats;
        int k;
        list_formats(l, &formats);
        for (t.parameters = 0, k = 0; k < formats.n; k++) t.parameters += formats.formats[k].n_parameters;
    }
    return t;
}

/* ---- Configuration and memory ----------------------------------------------------------------------------------- */

static const struct { const char *name; size_t field; } config_fields[] = {
    {"d_model", offsetof(tsk_model_config, d_model)},
    {"n_layers", offsetof(tsk_model_config, n_layers)},
    {"n_heads", offsetof(tsk_model_config, n_heads)},
    {"n_kv_heads", offsetof(tsk_model_config, n_kv_heads)},
    {"head_dim", offsetof(tsk_model_config, head_dim)},
    {"mlp_hidden_size", offsetof(tsk_model_config, mlp_hidden_size)},
    {"vocab_size", offsetof(tsk_model_config, vocab_size)},
    {"embedding_size", offsetof(tsk_model_config, embedding_size)},
    {"max_sequence_length", offsetof(tsk_model_config, max_sequence_length)},
    {"mask_token_id", offsetof(tsk_model_config, mask_token_id)},
    {"eos_token_id", offsetof(tsk_model_config, eos_token_id)},
    {"pad_token_id", offsetof(tsk_model_config, pad_token_id)},
    {"block_length", offsetof(tsk_model_config, block_length)}, /* 0: all tokens see all others */
};
enum { N_CONFIG_FIELDS = sizeof config_fields / sizeof config_fields[0] };

static int32_t config_field(const tsk_model_config *config, int i) {
    return *(const int32_t *)(const void *)((const char *)config + config_fields[i].field);
}

/* What the model and one session at full context take, with default options and the activations' two types. */
static tsk_status estimate(const listing *l, tsk_dtype activations, tsk_memory *out, tsk_error *error) {
    const tsk_folder *folder = l->folder;
    format_list formats;
    const tsk_model_config *config = tsk_folder_config(folder);
    tsk_generate_options options = tsk_generate_options_default();
    tsk_memory_query query = tsk_memory_query_default();
    int32_t canvas = config->max_sequence_length;
    if (canvas <= options.gen_length) { /* a tiny model: one block, half of its context */
        options.gen_length = canvas > 1 ? canvas / 2 : 1;
        options.block_length = options.gen_length;
    }
    query.config = config;
    list_formats(l, &formats);
    query.weights_size = (int64_t)formats.bytes;
    query.weights = tsk_folder_quant_method(folder) ? TSK_WEIGHTS_Q8 : l->weights;
    query.dtype = activations;
    query.generate = &options;
    return tsk_memory_estimate(&query, out, error);
}

/* ---- JSON ------------------------------------------------------------------------------------------------------- */

static void write_tensors(tsk_json_writer *json, const listing *l) {
    size_t i;
    int k;
    tsk_json_write_key(json, "tensors");
    tsk_json_begin_array(json);
    for (i = 0; i < listing_count(l); i++) {
        const char *shard;
        const tsk_tensor_info *tensor = listing_get(l, i, &shard);
        tsk_json_begin_object(json);
        cli_json_string(json, "name", tensor->name);
        cli_json_string(json, "dtype", tsk_dtype_name(tensor->dtype));
        tsk_json_write_key(json, "shape");
        tsk_json_begin_array(json);
        for (k = 0; k < tensor->n_dims; k++) tsk_json_write_uint(json, tensor->shape[k]);
        tsk_json_end_array(json);
        cli_json_uint(json, "offset", tensor->offset);
        cli_json_uint(json, "bytes", tensor->size);
        if (shard) cli_json_string(json, "shard", shard);
        tsk_json_end_object(json);
    }
    tsk_json_end_array(json);
}

static void write_metadata(tsk_json_writer *json, const tsk_json_value *metadata) {
    const tsk_json_value *member;
    tsk_json_write_key(json, "metadata");
    tsk_json_begin_object(json);
    for (member = tsk_json_first(metadata); member; member = tsk_json_next(member)) {
        size_t length;
        const char *value = tsk_json_string(member, &length);
        tsk_json_write_key(json, tsk_json_key(member, NULL));
        tsk_json_write_string(json, value, length);
    }
    tsk_json_end_object(json);
}

static void write_flag(tsk_json_writer *json, const char *key, int value) {
    tsk_json_write_key(json, key);
    tsk_json_write_bool(json, value);
}

static void write_config(tsk_json_writer *json, const tsk_model_config *config) {
    int i;
    tsk_json_write_key(json, "config");
    tsk_json_begin_object(json);
    cli_json_string(json, "family", tsk_family_name(config->family));
    for (i = 0; i < N_CONFIG_FIELDS; i++) {
        tsk_json_write_key(json, config_fields[i].name);
        tsk_json_write_int(json, config_field(config, i));
    }
    tsk_json_write_key(json, "eos_token_ids");
    tsk_json_begin_array(json);
    for (i = 0; i < config->n_eos_token_ids; i++) tsk_json_write_int(json, config->eos_token_ids[i]);
    tsk_json_end_array(json);
    cli_json_double(json, "rope_theta", config->rope_theta);
    cli_json_double(json, "rms_norm_eps", config->rms_norm_eps);
    write_flag(json, "weight_tying", config->weight_tying);
    write_flag(json, "qkv_bias", config->qkv_bias);
    write_flag(json, "linear_bias", config->linear_bias);
    tsk_json_end_object(json);
}

static void write_formats(tsk_json_writer *json, const listing *l) {
    format_list list;
    int i;
    list_formats(l, &list);
    tsk_json_write_key(json, "quant_method");
    if (tsk_folder_quant_method(l->folder))
        tsk_json_write_string(json, tsk_folder_quant_method(l->folder), strlen(tsk_folder_quant_method(l->folder)));
    else tsk_json_write_null(json);
    tsk_json_write_key(json, "formats");
    tsk_json_begin_array(json);
    for (i = 0; i < list.n; i++) {
        const tsk_weights_format *f = &list.formats[i];
        tsk_json_begin_object(json);
        cli_json_string(json, "name", f->name);
        cli_json_uint(json, "bits", (uint64_t)f->bits);
        cli_json_uint(json, "n_tensors", (uint64_t)f->n_tensors);
        cli_json_uint(json, "n_parameters", f->n_parameters);
        cli_json_uint(json, "bytes", f->bytes);
        tsk_json_end_object(json);
    }
    tsk_json_end_array(json);
}

static int write_memory(tsk_json_writer *json, const listing *l) {
    static const struct {
        const char *name;
        tsk_dtype dtype;
    } kinds[] = {{"f32", TSK_DTYPE_F32}, {"bf16", TSK_DTYPE_BF16}};
    size_t i;
    tsk_json_write_key(json, "memory");
    tsk_json_begin_object(json);
    cli_json_uint(json, "canvas", (uint64_t)tsk_folder_config(l->folder)->max_sequence_length);
    for (i = 0; i < 2; i++) {
        tsk_memory memory;
        tsk_error error = {0};
        if (estimate(l, kinds[i].dtype, &memory, &error) != TSK_OK) {
            cli_fail_with(&error, NULL);
            return CLI_FAILED;
        }
        if (i == 0) cli_json_uint(json, "weights", memory.weights);
        tsk_json_write_key(json, kinds[i].name);
        tsk_json_begin_object(json);
        cli_json_uint(json, "cache", memory.cache);
        cli_json_uint(json, "workspace", memory.workspace);
        tsk_json_end_object(json);
    }
    tsk_json_end_object(json);
    return CLI_OK;
}

static int print_json(const listing *l, const char *path) {
    tsk_text out = {0};
    tsk_json_writer json = {0};
    totals t = listing_totals(l);
    int status = CLI_OK;
    json.out = &out;
    tsk_json_begin_object(&json);
    cli_json_string(&json, "path", path);
    cli_json_string(&json, "kind", l->folder ? "model" : "safetensors");
    cli_json_uint(&json, "n_tensors", listing_count(l));
    cli_json_uint(&json, "n_parameters", t.parameters);
    cli_json_uint(&json, "bytes", t.bytes);
    if (l->folder) {
        write_config(&json, tsk_folder_config(l->folder));
        write_formats(&json, l);
        status = write_memory(&json, l);
    } else {
        write_metadata(&json, tsk_safetensors_metadata(l->file));
    }
    write_tensors(&json, l);
    tsk_json_end_object(&json);
    if (status == CLI_OK) status = cli_json_print(&json);
    tsk_text_free(&out);
    return status;
}

/* ---- Table ------------------------------------------------------------------------------------------------------ */

static const char *shape_string(const tsk_tensor_info *tensor, char *buffer, size_t size) {
    size_t n = (size_t)snprintf(buffer, size, "[");
    int i;
    for (i = 0; i < tensor->n_dims; i++)
        n += (size_t)snprintf(buffer + n, size - n, i ? ", %llu" : "%llu", (unsigned long long)tensor->shape[i]);
    snprintf(buffer + n, size - n, "]");
    return buffer;
}

static void print_tensors(tsk_text *out, const listing *l) {
    char shape[256], bytes[32];
    const char *shard;
    size_t i, name_width = 4, shape_width = 5;
    for (i = 0; i < listing_count(l); i++) {
        const tsk_tensor_info *tensor = listing_get(l, i, &shard);
        size_t name = strlen(tensor->name), width = strlen(shape_string(tensor, shape, sizeof shape));
        if (name > name_width) name_width = name;
        if (width > shape_width) shape_width = width;
    }
    if (name_width > 80) name_width = 80;
    cli_append(out, "%-*s  %-7s  %-*s  %10s%s\n", (int)name_width, "name", "dtype", (int)shape_width, "shape", "size",
               l->folder ? "  shard" : "");
    for (i = 0; i < listing_count(l); i++) {
        const tsk_tensor_info *tensor = listing_get(l, i, &shard);
        cli_append_bytes(out, tensor->name, strlen(tensor->name));
        cli_append(out, "%*s  %-7s  %-*s  %10s",
                   (int)(strlen(tensor->name) < name_width ? name_width - strlen(tensor->name) : 0), "",
                   tsk_dtype_name(tensor->dtype), (int)shape_width, shape_string(tensor, shape, sizeof shape),
                   cli_size_string(tensor->size, bytes, sizeof bytes));
        cli_append(out, "%s%.1000s\n", shard ? "  " : "", shard ? shard : "");
    }
}

static void print_config(tsk_text *out, const tsk_model_config *config) {
    int i;
    cli_append(out, "\nconfig\n  %-20s %s\n", "family", tsk_family_name(config->family));
    for (i = 0; i < N_CONFIG_FIELDS; i++)
        cli_append(out, "  %-20s %d\n", config_fields[i].name, (int)config_field(config, i));
    cli_append(out, "  %-20s", "eos_token_ids");
    for (i = 0; i < config->n_eos_token_ids; i++) cli_append(out, " %d", (int)config->eos_token_ids[i]);
    cli_append(out, "\n  %-20s %g\n  %-20s %g\n", "rope_theta", (double)config->rope_theta, "rms_norm_eps",
               (double)config->rms_norm_eps);
    cli_append(out, "  %-20s %s\n", "head", config->weight_tying ? "the embedding table" : "its own");
    cli_append(out, "  %-20s %s\n", "biases",
               config->linear_bias ? "everywhere"
               : config->qkv_bias  ? "q, k, v"
                                   : "none");
}

static void print_formats(tsk_text *out, const listing *l) {
    format_list list;
    char size[32];
    int i;
    list_formats(l, &list);
    cli_append(out, "\nweights%s%s%s\n", tsk_folder_quant_method(l->folder) ? " (" : "",
               tsk_folder_quant_method(l->folder) ? tsk_folder_quant_method(l->folder) : "",
               tsk_folder_quant_method(l->folder) ? ")" : "");
    for (i = 0; i < list.n; i++)
        cli_append(out, "  %-24s %5d of the model's, %llu parameters, %s\n", list.formats[i].name,
                   (int)list.formats[i].n_tensors, (unsigned long long)list.formats[i].n_parameters,
                   cli_size_string(list.formats[i].bytes, size, sizeof size));
}

static int print_memory(tsk_text *out, const listing *l) {
    const tsk_folder *folder = l->folder;
    const int is_mapped = l->weights == TSK_WEIGHTS_AS_STORED || tsk_folder_quant_method(folder);
    tsk_memory cpu, gpu;
    tsk_error error = {0};
    char a[32], b[32], c[32];
    if (estimate(l, TSK_DTYPE_F32, &cpu, &error) != TSK_OK || estimate(l, TSK_DTYPE_BF16, &gpu, &error) != TSK_OK) {
        cli_fail_with(&error, NULL);
        return CLI_FAILED;
    }
    cli_append(out, "\nmemory\n  %-20s %s%s\n", "weights", cli_size_string(cpu.weights, a, sizeof a),
               is_mapped ? " (mapped, not copied, on the CPU)" : " (on the CPU)");
    cli_append(out, "  a session at the full context of %d tokens, default options\n",
               (int)tsk_folder_config(folder)->max_sequence_length);
    cli_append(out, "    %-18s %s cache, %s workspace\n", "f32 (CPU)", cli_size_string(cpu.cache, b, sizeof b),
               cli_size_string(cpu.workspace, c, sizeof c));
    cli_append(out, "    %-18s %s cache, %s workspace\n", "bf16 (CUDA)", cli_size_string(gpu.cache, b, sizeof b),
               cli_size_string(gpu.workspace, c, sizeof c));
    return CLI_OK;
}

static void print_metadata(tsk_text *out, const tsk_json_value *metadata) {
    const tsk_json_value *member;
    if (tsk_json_count(metadata)) cli_append(out, "\nmetadata\n");
    for (member = tsk_json_first(metadata); member; member = tsk_json_next(member))
        cli_append(out, "  %.1000s: %.2000s\n", tsk_json_key(member, NULL), tsk_json_string(member, NULL));
}

static int print_table(const listing *l) {
    tsk_text out = {0};
    totals t = listing_totals(l);
    char size[32];
    int status = CLI_OK;
    print_tensors(&out, l);
    cli_append(&out, "\n%zu tensors, %llu parameters, %s\n", listing_count(l), (unsigned long long)t.parameters,
               cli_size_string(t.bytes, size, sizeof size));
    if (l->folder) {
        print_config(&out, tsk_folder_config(l->folder));
        print_formats(&out, l);
        status = print_memory(&out, l);
    } else {
        print_metadata(&out, tsk_safetensors_metadata(l->file));
    }
    if (status == CLI_OK) status = cli_write(out.data, out.length);
    tsk_text_free(&out);
    return status;
}

int cmd_inspect(cli_settings *settings) {
    tsk_safetensors *file = NULL;
    tsk_folder *folder = NULL;
    tsk_error error = {0};
    listing l = {NULL, NULL, TSK_WEIGHTS_AS_STORED};
    system_file info;
    tsk_status opened;
    int status;
    if (system_look(settings->path, &info) != 0) return cli_fail("%s: %s", settings->path, strerror(errno));
    opened = info.kind == SYSTEM_FOLDER ? tsk_folder_open(settings->path, NULL, &folder, &error)
                                   : tsk_safetensors_open(settings->path, NULL, &file, &error);
    l.file = file;
    l.folder = folder;
    l.weights = settings->model.weights;
    if (opened == TSK_OK && l.weights != TSK_WEIGHTS_AS_STORED && tsk_folder_quant_method(folder))
        status = cli_fail("'%s' is quantised already (%s): its weights can only be used as stored", settings->path,
                          tsk_folder_quant_method(folder));
    else if (opened != TSK_OK) status = cli_fail_with(&error, NULL);
    else status = settings->json ? print_json(&l, settings->path) : print_table(&l);
    tsk_safetensors_free(file);
    tsk_folder_free(folder);
    return status;
}
