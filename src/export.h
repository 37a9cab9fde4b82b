#ifndef SECTION_GUARD_EXPORT
#define SECTION_GUARD_EXPORT

#include "error.h"
#include "memory.h"
#include "platform.h"
#include "pool.h"
#include "json.h"
#include "safetensors.h"
#include "family.h"
#include "config.h"
#include "weights.h"

// >>export ============================================================================================================
/* Writes a folder of plain weights as a quantised one, in compressed-tensors' pack-quantized layout, which this library
   maps and others read. A matrix at a time is in memory. Every file appears whole or not at all, config.json last:
   until it is there the folder is no model, and what an interrupted call has left is written anew by the next. */

tsk_quantize_options tsk_quantize_options_default(void) {
    tsk_quantize_options o;
    memset(&o, 0, sizeof o);
    o.weights = TSK_WEIGHTS_Q4;
    o.shard_size = 5000000000;
    o.n_threads = TSK_AUTO;
    return o;
}

/* Files beside config.json and the weights that go along, where they are there. */
static const char *const tsk__export_files[] = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json", "configuration_llada.py",
    "modeling_llada.py", "LICENSE"};

#define TSK__EXPORT_FILES (sizeof tsk__export_files / sizeof *tsk__export_files)
#define TSK__EXPORT_MAX_FILE ((size_t)1 << 30)
#define TSK__EXPORT_NAME 64

typedef struct tsk__export {
    const tsk_quantize_options *options;
    tsk_folder *folder;
    tsk__source source;
    const tsk_allocator *allocator;
    const char *out;               /* the folder's path, */
    char *path;                    /* and room for that of a file in it */
    size_t path_size;
    int32_t n_shards, shard;       /* how many; which one is being written, -1: none yet */
    uint64_t used;                 /* bytes of the one being planned or written, */
    uint64_t written, total_in, done; /* of all that are written; of the source's weights, all and those done */
    tsk_safetensors_writer *writer;
    tsk_text index;
    tsk_json_writer index_json;
    int32_t n_files, n_quantised;  /* that have got their names; matrices */
    tsk_error *error;
} tsk__export;

static const char *tsk__export_path(tsk__export *e, const char *name) {
    snprintf(e->path, e->path_size, "%s/%s", e->out, name);
    return e->path;
}

static void tsk__export_shard_name(const tsk__export *e, int32_t shard, char name[TSK__EXPORT_NAME]) {
    if (e->n_shards == 1) snprintf(name, TSK__EXPORT_NAME, "model.safetensors");
    else snprintf(name, TSK__EXPORT_NAME, "model-%05d-of-%05d.safetensors", (int)shard + 1, (int)e->n_shards);
}

/* ---- which weights go to which file */

/* Bytes that a weight takes in the folder to be written. */
static uint64_t tsk__export_size(const tsk__export *e, const tsk__weight_id *id) {
    tsk__stored stored;
    uint64_t shape[2];
    int32_t group;
    const int bits = tsk__weights_bits(e->source.config, id, e->source.weights, &group);
    tsk__family_shape(e->source.config, id, shape);
    e->source.find(&e->source, id, &stored);
    return bits ? tsk__weights_quantised_size(shape, bits, group) + 2 * sizeof(int64_t) : stored.size;
}

/* 1: the next weight begins a new file. */
static int tsk__export_is_full(const tsk__export *e, uint64_t size) {
    return e->used && e->used + size > e->options->shard_size;
}

static void tsk__export_plan(tsk__export *e) {
    tsk__weight_id id = tsk__family_first();
    e->n_shards = 1;
    do {
        const uint64_t size = tsk__export_size(e, &id);
        if (tsk__export_is_full(e, size)) e->n_shards++, e->used = 0;
        e->used += size;
    } while (tsk__family_next(e->source.config, &id));
    e->used = 0;
}

/* ---- weights */

static tsk_status tsk__export_finish_shard(tsk__export *e) {
    tsk_status status = e->writer ? tsk_safetensors_writer_finish(e->writer, e->error) : TSK_OK;
    if (e->writer && status == TSK_OK) e->n_files++;
    tsk_safetensors_writer_free(e->writer);
    e->writer = NULL;
    e->used = 0;
    return status;
}

static tsk_status tsk__export_next_shard(tsk__export *e) {
    char name[TSK__EXPORT_NAME];
    tsk_status status = tsk__export_finish_shard(e);
    if (status != TSK_OK) return status;
    tsk__export_shard_name(e, ++e->shard, name);
    return tsk_safetensors_writer_open(tsk__export_path(e, name), e->allocator, &e->writer, e->error);
}

/* One tensor to the file at hand, and its line to the index. */
static tsk_status tsk__export_tensor(tsk__export *e, const char *module, const char *suffix, tsk_dtype dtype,
                                     int n_dims, const uint64_t *shape, const void *data, uint64_t size) {
    char name[TSK__FAMILY_NAME + 24], shard[TSK__EXPORT_NAME];
    snprintf(name, sizeof name, "%s%s", module, suffix);
    tsk__export_shard_name(e, e->shard, shard);
    tsk_json_write_key(&e->index_json, name);
    tsk_json_write_string(&e->index_json, shard, strlen(shard));
    e->written += size;
    if (e->index_json.status != TSK_OK) return tsk__error_memory(e->error, "the index", e->index.length);
    return tsk_safetensors_writer_add(e->writer, name, dtype, n_dims, shape, data, e->error);
}

static tsk_status tsk__export_quantised(tsk__export *e, const char *module, const tsk__weight *w) {
    const uint64_t rows = (uint64_t)w->rows, stride = tsk__weight_stride(w), groups = tsk__weight_n_groups(w);
    const int64_t shape[2] = {w->rows, w->cols};
    const uint64_t packed[2] = {rows, stride / 4}, scales[2] = {rows, groups}, two = 2;
    tsk_status status = tsk__export_tensor(e, module, ".weight_packed", TSK_DTYPE_I32, 2, packed, w->data,
                                           rows * stride);
    if (status == TSK_OK)
        status = tsk__export_tensor(e, module, ".weight_scale", w->scale_dtype, 2, scales, w->scales,
                                    rows * groups * tsk_dtype_size(w->scale_dtype));
    if (status == TSK_OK)
        status = tsk__export_tensor(e, module, ".weight_shape", TSK_DTYPE_I64, 1, &two, shape, sizeof shape);
    e->n_quantised++;
    return status;
}

static tsk_status tsk__export_weight(tsk__export *e, const tsk__weight_id *id) {
    char name[TSK__FAMILY_NAME];
    tsk__blocks blocks;
    tsk__stored stored;
    tsk__weight w;
    uint64_t shape[2];
    const int is_vector = tsk__family_is_vector(e->source.config, id);
    tsk_status status;
    memset(&blocks, 0, sizeof blocks);
    memset(&w, 0, sizeof w);
    blocks.allocator = e->allocator;
    e->source.find(&e->source, id, &stored);
    tsk__family_name(e->source.config, id, name);
    tsk__family_shape(e->source.config, id, shape);
    status = is_vector ? tsk__weight_plain(&blocks, &e->source, &stored, &w, e->error)
                       : tsk__weight_take(&blocks, &e->source, id, &stored, &w, e->error);
    if (status == TSK_OK && !w.bits)
        status = tsk__export_tensor(e, name, "", w.dtype, is_vector ? 1 : 2, shape, w.data, stored.size);
    else if (status == TSK_OK) {
        name[strlen(name) - strlen(".weight")] = 0;
        status = tsk__export_quantised(e, name, &w);
    }
    tsk__blocks_free(&blocks);
    e->done += stored.size;
    return status;
}

static tsk_status tsk__export_weights(tsk__export *e) {
    const tsk_quantize_options *o = e->options;
    tsk__weight_id id = tsk__family_first();
    tsk_status status;
    e->index_json.out = &e->index;
    e->index.allocator = e->allocator;
    tsk_json_begin_object(&e->index_json);
    status = tsk__export_next_shard(e);
    if (status != TSK_OK) return status;
    do {
        const uint64_t size = tsk__export_size(e, &id);
        if (tsk__export_is_full(e, size)) status = tsk__export_next_shard(e);
        e->used += size;
        if (status == TSK_OK) status = tsk__export_weight(e, &id);
        if (o->progress) o->progress(o->user, e->done, e->total_in);
        if (status == TSK_OK && o->cancel && o->cancel(o->user))
            status = tsk__error_set(e->error, TSK_ERROR_CANCELLED, NULL, TSK_NO_OFFSET, "quantising was cancelled");
    } while (status == TSK_OK && tsk__family_next(e->source.config, &id));
    tsk_json_end_object(&e->index_json);
    if (status == TSK_OK) status = tsk__export_finish_shard(e);
    if (status == TSK_OK && !e->n_quantised)
        status = tsk__error_set(e->error, TSK_ERROR_UNSUPPORTED, NULL, TSK_NO_OFFSET,
                                "no matrix can be quantised: none has a multiple of 32 columns");
    return status;
}

/* ---- the other files */

static tsk_status tsk__export_file(tsk__export *e, const char *name, const char *text, size_t size) {
    tsk__output output;
    tsk_status status = tsk__output_open(&output, tsk__export_path(e, name), e->allocator, e->error);
    if (status != TSK_OK) return status;
    status = tsk__output_write(&output, 0, text, size, e->error);
    if (status != TSK_OK) tsk__output_abandon(&output);
    else status = tsk__output_commit(&output, e->error);
    if (status == TSK_OK) e->n_files++;
    return status;
}

static tsk_status tsk__export_copy(tsk__export *e, const char *name) {
    tsk_text text;
    tsk_status status;
    if (!tsk__folder_has(e->folder, name)) return TSK_OK;
    memset(&text, 0, sizeof text);
    text.allocator = e->allocator;
    status = tsk_read_file(tsk__folder_path(e->folder, name), TSK__EXPORT_MAX_FILE, &e->folder->host, &text, e->error);
    if (status == TSK_OK) status = tsk__export_file(e, name, text.data ? text.data : "", text.length);
    tsk_text_free(&text);
    return status;
}

static tsk_status tsk__export_index(tsk__export *e) {
    tsk_text text;
    tsk_json_writer json;
    tsk_status status;
    if (e->n_shards == 1) return TSK_OK;
    memset(&text, 0, sizeof text);
    memset(&json, 0, sizeof json);
    text.allocator = e->allocator;
    json.out = &text;
    tsk_json_begin_object(&json);
    tsk_json_write_key(&json, "metadata");
    tsk_json_begin_object(&json);
    tsk_json_write_key(&json, "total_size");
    tsk_json_write_uint(&json, e->written);
    tsk_json_end_object(&json);
    tsk_json_write_key(&json, "weight_map");
    status = json.status == TSK_OK ? tsk_text_append(&text, e->index.data, e->index.length) : json.status;
    if (status == TSK_OK) status = tsk_text_append(&text, "}\n", 2);
    if (status != TSK_OK) status = tsk__error_memory(e->error, "the index", e->index.length);
    else status = tsk__export_file(e, "model.safetensors.index.json", text.data, text.length);
    tsk_text_free(&text);
    return status;
}

/* ---- quantization_config */

/* A part's modules, whatever their layer: "re:model\.transformer\.blocks\.\d+\.q_proj$". */
static void tsk__export_target(const tsk_model_config *c, int part, char *out, size_t size) {
    const char *from = tsk__family_part_of(c, part)->weight;
    const size_t length = strlen(from) - strlen(".weight");
    size_t used = (size_t)snprintf(out, size, "re:"), i;
    for (i = 0; i < length && used + 4 < size; i++) {
        if (from[i] == '{') used += (size_t)snprintf(out + used, size - used, "\\d+"), i += 2;
        else used += (size_t)snprintf(out + used, size - used, from[i] == '.' ? "\\%c" : "%c", from[i]);
    }
    if (used < size) snprintf(out + used, size - used, "$");
}

/* The bits and group of a part; 0: it is not quantised, or there is none. */
static int tsk__export_bits(const tsk__export *e, int part, int32_t *group) {
    const tsk__weight_id id = tsk__weight_id_of(part < (int)TSK__PART_COUNT ? 0 : -1, (tsk__part)part, 0);
    if (!tsk__family_has(e->source.config, &id)) return 0;
    return tsk__weights_bits(e->source.config, &id, e->source.weights, group);
}

static void tsk__export_scheme(tsk_json_writer *json, int bits, int32_t group) {
    tsk_json_write_key(json, "weights");
    tsk_json_begin_object(json);
    tsk_json_write_key(json, "num_bits"), tsk_json_write_int(json, bits);
    tsk_json_write_key(json, "type"), tsk_json_write_string(json, "int", 3);
    tsk_json_write_key(json, "symmetric"), tsk_json_write_bool(json, 1);
    tsk_json_write_key(json, "strategy"), tsk_json_write_string(json, "group", 5);
    tsk_json_write_key(json, "group_size"), tsk_json_write_int(json, group);
    tsk_json_write_key(json, "dynamic"), tsk_json_write_bool(json, 0);
    tsk_json_write_key(json, "actorder"), tsk_json_write_null(json);
    tsk_json_end_object(json);
    tsk_json_write_key(json, "input_activations"), tsk_json_write_null(json);
    tsk_json_write_key(json, "output_activations"), tsk_json_write_null(json);
}

/* One group for each pair of bits and group size, with the parts that have it. */
static void tsk__export_groups(const tsk__export *e, tsk_json_writer *json) {
    int part, other, n = 0;
    for (part = 0; part < (int)TSK__PART_ALL; part++) {
        char text[3 * TSK__FAMILY_NAME];
        int32_t group = 0, own = 0;
        const int bits = tsk__export_bits(e, part, &group);
        int is_first = 1;
        for (other = 0; other < part; other++)
            is_first &= tsk__export_bits(e, other, &own) != bits || own != group;
        if (!bits || !is_first) continue;
        snprintf(text, sizeof text, "group_%d", n++);
        tsk_json_write_key(json, text);
        tsk_json_begin_object(json);
        tsk_json_write_key(json, "targets");
        tsk_json_begin_array(json);
        for (other = part; other < (int)TSK__PART_ALL; other++) {
            if (tsk__export_bits(e, other, &own) != bits || own != group) continue;
            tsk__export_target(e->source.config, other, text, sizeof text);
            tsk_json_write_string(json, text, strlen(text));
        }
        tsk_json_end_array(json);
        tsk__export_scheme(json, bits, group);
        tsk_json_end_object(json);
    }
}

static void tsk__export_quantisation(const tsk__export *e, tsk_json_writer *json) {
    static const struct { const char *key, *value; } texts[] = {{"quant_method", "compressed-tensors"},
                                                                {"format", "pack-quantized"},
                                                                {"quantization_status", "compressed"}};
    size_t i;
    tsk_json_begin_object(json);
    for (i = 0; i < 3; i++) {
        tsk_json_write_key(json, texts[i].key);
        tsk_json_write_string(json, texts[i].value, strlen(texts[i].value));
    }
    tsk_json_write_key(json, "config_groups");
    tsk_json_begin_object(json);
    tsk__export_groups(e, json);
    tsk_json_end_object(json);
    tsk_json_write_key(json, "ignore");
    tsk_json_begin_array(json);
    tsk_json_end_array(json);
    tsk_json_write_key(json, "kv_cache_scheme"), tsk_json_write_null(json);
    tsk_json_end_object(json);
}

/* config.json as it is, byte by byte, with a further member: in place of a null of that name, else as the first. */
static tsk_status tsk__export_config(tsk__export *e) {
    static const char key[] = "quantization_config";
    const tsk_json_value *root = tsk_json_root(e->folder->settings), *old = tsk_json_get(root, key);
    const size_t at = old ? (size_t)tsk_json_offset(old) : (size_t)tsk_json_offset(root) + 1;
    const size_t behind = old ? at + strlen("null") : at;
    tsk_text from, to, own;
    tsk_json_writer json;
    tsk_status status;
    memset(&from, 0, sizeof from), memset(&to, 0, sizeof to), memset(&own, 0, sizeof own);
    memset(&json, 0, sizeof json);
    from.allocator = to.allocator = own.allocator = e->allocator;
    json.out = &own;
    status = tsk_read_file(tsk__folder_path(e->folder, "config.json"), TSK__CONFIG_MAX_FILE, &e->folder->host, &from,
                           e->error);
    if (status == TSK_OK && behind > from.length)
        status = tsk__error_set(e->error, TSK_ERROR_IO, e->folder->path, TSK_NO_OFFSET,
                                "'%s' has been changed meanwhile", tsk__error_path(e->folder->path));
    if (status == TSK_OK) {
        tsk__export_quantisation(e, &json);
        status = json.status;
        if (status == TSK_OK) status = tsk_text_append(&to, from.data, at);
        if (status == TSK_OK && !old) status = tsk_text_append(&to, "\n  \"quantization_config\": ", 26);
        if (status == TSK_OK) status = tsk_text_append(&to, own.data, own.length);
        if (status == TSK_OK && !old) status = tsk_text_append(&to, ",", 1);
        if (status == TSK_OK) status = tsk_text_append(&to, from.data + behind, from.length - behind);
        if (status != TSK_OK) status = tsk__error_memory(e->error, "config.json", from.length + own.length);
    }
    if (status == TSK_OK) status = tsk__export_file(e, "config.json", to.data, to.length);
    tsk_text_free(&from), tsk_text_free(&to), tsk_text_free(&own);
    return status;
}

/* ---- the whole */

static tsk_status tsk__export_check_absent(tsk__export *e, const char *name) {
    if (!tsk__path_exists(tsk__export_path(e, name))) return TSK_OK;
    return tsk__error_set(e->error, TSK_ERROR_ARGUMENT, e->path, TSK_NO_OFFSET,
                          "'%s' is there already: nothing is written over it", tsk__error_path(e->path));
}

/* Nothing that is there is written over, nor would be read as a part of the new folder. */
static tsk_status tsk__export_check_room(tsk__export *e) {
    static const char *const weights[] = {"model.safetensors", "model.safetensors.index.json"};
    char name[TSK__EXPORT_NAME];
    tsk_status status = TSK_OK;
    int32_t shard;
    size_t i;
    for (i = 0; i < sizeof weights / sizeof *weights && status == TSK_OK; i++)
        status = tsk__export_check_absent(e, weights[i]);
    for (shard = 0; shard < e->n_shards && status == TSK_OK; shard++) {
        tsk__export_shard_name(e, shard, name);
        status = tsk__export_check_absent(e, name);
    }
    for (i = 0; i < TSK__EXPORT_FILES && status == TSK_OK; i++)
        status = tsk__export_check_absent(e, tsk__export_files[i]);
    return status;
}

static tsk_status tsk__export_run(tsk__export *e) {
    size_t i;
    tsk_status status;
    tsk__export_plan(e);
    status = tsk__export_check_room(e);
    if (status == TSK_OK) status = tsk__export_weights(e);
    if (status == TSK_OK) status = tsk__export_index(e);
    for (i = 0; i < TSK__EXPORT_FILES && status == TSK_OK; i++) status = tsk__export_copy(e, tsk__export_files[i]);
    return status == TSK_OK ? tsk__export_config(e) : status;
}

/* After a failure: the files that this call has written. */
static void tsk__export_undo(tsk__export *e) {
    char name[TSK__EXPORT_NAME];
    int32_t shard;
    size_t i;
    for (shard = 0; shard <= e->shard && e->n_files; shard++, e->n_files--) {
        tsk__export_shard_name(e, shard, name);
        tsk__path_remove(tsk__export_path(e, name));
    }
    if (e->n_files) tsk__path_remove(tsk__export_path(e, "model.safetensors.index.json"));
    for (i = 0; i < TSK__EXPORT_FILES && e->n_files; i++)
        if (tsk__folder_has(e->folder, tsk__export_files[i]))
            tsk__path_remove(tsk__export_path(e, tsk__export_files[i]));
}

static tsk_status tsk__export_check(const tsk__export *e, const char *dir) {
    const tsk_quantize_options *o = e->options;
    if (o->weights != TSK_WEIGHTS_Q8 && o->weights != TSK_WEIGHTS_Q4)
        return tsk__error_set(e->error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "weights are quantised to Q8 or Q4");
    if (!o->shard_size)
        return tsk__error_set(e->error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "shard_size must be positive");
    if (o->n_threads != TSK_AUTO && o->n_threads < 1)
        return tsk__error_set(e->error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "n_threads must be positive or TSK_AUTO, not %d", o->n_threads);
    if (e->folder->formats.method)
        return tsk__error_set(e->error, TSK_ERROR_UNSUPPORTED, dir, TSK_NO_OFFSET, "'%s' is quantised already (%s)",
                              tsk__error_path(dir), e->folder->formats.method);
    return TSK_OK;
}

static tsk_status tsk__export_open(tsk__export *e, const char *dir, const char *out) {
    tsk_status status = tsk__export_check(e, dir);
    if (status != TSK_OK) return status;
    e->path_size = strlen(out) + TSK__EXPORT_NAME + 2;
    e->path = (char *)tsk__memory_new(e->allocator, e->path_size, 1);
    if (!e->path) return tsk__error_memory(e->error, "a path", e->path_size);
    if (tsk__path_exists(tsk__export_path(e, "config.json")))
        return tsk__error_set(e->error, TSK_ERROR_ARGUMENT, out, TSK_NO_OFFSET,
                              "'%s' holds a model already: it has a config.json", tsk__error_path(out));
    e->source = tsk__source_of_folder(e->folder);
    e->source.weights = e->options->weights;
    e->total_in = tsk__weights_total(&e->source);
    e->source.pool = tsk__pool_create(e->allocator, e->options->n_threads);
    return e->source.pool ? TSK_OK : tsk__error_memory(e->error, "worker threads", sizeof *e->source.pool);
}

tsk_status tsk_quantize(const char *dir, const char *out, const tsk_quantize_options *options, tsk_error *error) {
    tsk_quantize_options defaults = tsk_quantize_options_default();
    tsk__export e;
    tsk_status status;
    if (!dir) return tsk__error_null(error, "tsk_quantize", "dir");
    if (!out) return tsk__error_null(error, "tsk_quantize", "out");
    memset(&e, 0, sizeof e);
    e.options = options ? options : &defaults;
    e.allocator = tsk__memory_allocator(&e.options->host);
    e.out = out, e.shard = -1, e.error = error;
    status = tsk_folder_open(dir, &e.options->host, &e.folder, error);
    if (status == TSK_OK) status = tsk__export_open(&e, dir, out);
    if (status == TSK_OK) {
        status = tsk__export_run(&e);
        if (status != TSK_OK) tsk__export_undo(&e);
    }
    tsk_safetensors_writer_free(e.writer);
    if (e.source.pool) tsk__pool_destroy(e.allocator, e.source.pool);
    tsk_text_free(&e.index);
    tsk__memory_delete(e.allocator, e.path);
    tsk_folder_free(e.folder);
    return status;
}

#endif /* SECTION_GUARD_EXPORT */
