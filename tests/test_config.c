/* Model folders: the good ones open completely and load the same however they are stored and read; of the bad ones each
   is refused with the file, the tensor or field, what was expected and what was found. */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_NO_CUDA
#include "../tokenskip.h"
#include "golden.h"
#include "sparse.h"

enum { max_tensors = 96, max_fields = 40, n_ids = 9, vocabulary = 40, width = 16 };

/* ---- a folder that a test can spoil before it is written */

typedef struct tensor {
    char name[600];
    char dtype[12];
    int n_dims;
    uint64_t shape[3];
    int shard;              /* number of the file it is written to */
    int listed;             /* number of the file that the index names; -1: the index leaves it out */
    uint32_t seed;          /* of its values; 0: all zero */
} tensor;

typedef struct field { char key[40], value[80]; } field;

typedef struct builder {
    tensor tensors[max_tensors];
    int n_tensors;
    field fields[max_fields];
    int n_fields;
    int n_shards;           /* 1: model.safetensors without an index */
    int padding;            /* spaces at the end of each header */
    const char *config, *index; /* written as they are, in place of the built ones */
    char extra_index[300];  /* more lines of weight_map */
    int cut, add;           /* bytes taken from, and put behind, the first file */
    int leave_out;          /* shard that is not written, -1: none */
} builder;

static builder b;

static void set(const char *key, const char *value) {
    int i;
    for (i = 0; i < b.n_fields && strcmp(b.fields[i].key, key) != 0; i++) {
    }
    if (i == b.n_fields) b.n_fields++;
    snprintf(b.fields[i].key, sizeof b.fields[i].key, "%s", key);
    snprintf(b.fields[i].value, sizeof b.fields[i].value, "%s", value ? value : "");
}

static tensor *add(const char *name, int n_dims, uint64_t rows, uint64_t cols) {
    tensor *t = &b.tensors[b.n_tensors++];
    memset(t, 0, sizeof *t);
    snprintf(t->name, sizeof t->name, "model.transformer.%s", name);
    snprintf(t->dtype, sizeof t->dtype, "F32");
    t->n_dims = n_dims;
    t->shape[0] = rows;
    t->shape[1] = cols;
    t->seed = (uint32_t)b.n_tensors;
    return t;
}

static tensor *named(const char *name) {
    int i;
    for (i = 0; i < b.n_tensors; i++)
        if (strcmp(b.tensors[i].name + 18, name) == 0) return &b.tensors[i];
    printf("the test has no tensor %s\n", name);
    exit(2);
}

static void remove_tensor(const char *name) {
    tensor *t = named(name);
    memmove(t, t + 1, (size_t)(&b.tensors[b.n_tensors--] - t - 1) * sizeof *t);
}

/* Two layers, 16 wide. */
static void fresh(void) {
    static const char *const fields[][2] = {{"model_type", "\"llada\""},
                                            {"d_model", "16"},
                                            {"n_layers", "2"},
                                            {"n_heads", "2"},
                                            {"n_kv_heads", "2"},
                                            {"mlp_hidden_size", "24"},
                                            {"vocab_size", "40"},
                                            {"embedding_size", "40"},
                                            {"max_sequence_length", "64"},
                                            {"mask_token_id", "39"},
                                            {"eos_token_id", "38"},
                                            {"pad_token_id", "38"},
                                            {"rope_theta", "10000.0"},
                                            {"rms_norm_eps", "1e-05"},
                                            {"weight_tying", "false"},
                                            {"include_bias", "false"},
                                            {"include_qkv_bias", "false"},
                                            {"bias_for_layer_norm", "false"},
                                            {"layer_norm_type", "\"rms\""},
                                            {"block_type", "\"llama\""},
                                            {"activation_type", "\"silu\""},
                                            {"rope", "true"},
                                            {"alibi", "false"}};
    static const struct { const char *name; int n_dims; uint64_t rows, cols;
    } parts[] = {{"attn_norm", 1, 16, 0}, {"q_proj", 2, 16, 16},   {"k_proj", 2, 16, 16},
                 {"v_proj", 2, 16, 16},   {"attn_out", 2, 16, 16}, {"ff_norm", 1, 16, 0},
                 {"ff_proj", 2, 24, 16},  {"up_proj", 2, 24, 16},  {"ff_out", 2, 16, 24}};
    char name[100];
    size_t i, layer;
    memset(&b, 0, sizeof b);
    b.n_shards = 1;
    b.leave_out = -1;
    for (i = 0; i < sizeof fields / sizeof fields[0]; i++) set(fields[i][0], fields[i][1]);
    add("wte.weight", 2, vocabulary, width);
    for (layer = 0; layer < 2; layer++)
        for (i = 0; i < sizeof parts / sizeof parts[0]; i++) {
            snprintf(name, sizeof name, "blocks.%d.%s.weight", (int)layer, parts[i].name);
            add(name, parts[i].n_dims, parts[i].rows, parts[i].cols);
        }
    add("ln_f.weight", 1, width, 0);
    add("ff_out.weight", 2, vocabulary, width);
}

static void spread_over_shards(int n) {
    int i;
    b.n_shards = n;
    for (i = 0; i < b.n_tensors; i++) b.tensors[i].shard = b.tensors[i].listed = i % n;
}

static size_t dtype_size(const char *dtype) {
    return strcmp(dtype, "F32") == 0 ? 4 : strcmp(dtype, "I64") == 0 || strcmp(dtype, "F64") == 0 ? 8 : 2;
}

static uint64_t count_of(const tensor *t) {
    uint64_t n = 1;
    int i;
    for (i = 0; i < t->n_dims; i++) n *= t->shape[i];
    return n;
}

/* Multiples of 1/16 up to 15/16, which all three types hold exactly. */
static void put_value(const tensor *t, uint64_t i, char *to) {
    int32_t k = t->seed ? (int32_t)((t->seed * 2654435761u + (uint32_t)i * 40503u * (t->seed | 1)) >> 13) % 16 : 0;
    float value = (float)((i ^ t->seed) & 1 ? k : -k) / 16.0f;
    uint32_t bits;
    uint16_t half;
    memcpy(&bits, &value, sizeof bits);
    if (strcmp(t->dtype, "F32") == 0) memcpy(to, &bits, 4);
    else if (strcmp(t->dtype, "BF16") == 0) {
        half = (uint16_t)(bits >> 16);
        memcpy(to, &half, 2);
    } else if (strcmp(t->dtype, "F16") == 0) {
        half =
            (uint16_t)(value == 0 ? bits >> 16
                                  : (bits >> 16 & 0x8000) | ((bits >> 23 & 0xff) - 112) << 10 | (bits >> 13 & 0x3ff));
        memcpy(to, &half, 2);
    } else memset(to, 0, dtype_size(t->dtype));
}

static const char *shard_name(int shard) {
    static char names[4][64];
    static int next;
    char *name = names[next++ & 3];
    if (b.n_shards == 1) return "model.safetensors";
    snprintf(name, sizeof names[0], "model-%05d-of-%05d.safetensors", shard + 1, b.n_shards);
    return name;
}

/* The header's text, and where the data of each tensor is to go. */
static size_t build_header(int shard, char *out, size_t size) {
    uint64_t at = 0;
    size_t used = (size_t)snprintf(out, size, "{\"__metadata__\":{\"format\":\"pt\"}");
    int i, j;
    for (i = 0; i < b.n_tensors; i++) {
        const tensor *t = &b.tensors[i];
        uint64_t bytes = count_of(t) * dtype_size(t->dtype);
        if (t->shard != shard) continue;
        used += (size_t)snprintf(out + used, size - used, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, t->dtype);
        for (j = 0; j < t->n_dims; j++)
            used += (size_t)snprintf(out + used, size - used, "%s%llu", j ? "," : "", (unsigned long long)t->shape[j]);
        used += (size_t)snprintf(out + used, size - used, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
                                 (unsigned long long)(at + bytes));
        at += bytes;
    }
    used += (size_t)snprintf(out + used, size - used, "}");
    while ((8 + used) % 8 != (size_t)b.padding) out[used++] = ' ';
    return used;
}

static void write_shard(const char *path, int shard) {
    static char bytes[1 << 20];
    size_t header = build_header(shard, bytes + 8, 1 << 16), used = 8 + header;
    uint64_t j;
    int i;
    for (i = 0; i < 8; i++) bytes[i] = (char)(header >> 8 * i & 0xff);
    for (i = 0; i < b.n_tensors; i++) {
        const tensor *t = &b.tensors[i];
        if (t->shard != shard) continue;
        for (j = 0; j < count_of(t); j++, used += dtype_size(t->dtype)) put_value(t, j, bytes + used);
    }
    if (shard == 0) {
        memset(bytes + used, 0, (size_t)b.add);
        used += (size_t)b.add;
        used = (size_t)b.cut < used ? used - (size_t)b.cut : 0;
    }
    write_file(path, bytes, used);
}

static void write_index(const char *path) {
    static char text[1 << 16];
    size_t used = (size_t)snprintf(text, sizeof text, "{\"metadata\":{\"total_size\":1},\"weight_map\":{");
    int i, comma = 0;
    for (i = 0; i < b.n_tensors; i++)
        if (b.tensors[i].listed >= 0)
            used += (size_t)snprintf(text + used, sizeof text - used, "%s\"%s\":\"%s\"", comma++ ? ",\n" : "\n",
                                     b.tensors[i].name, shard_name(b.tensors[i].listed));
    snprintf(text + used, sizeof text - used, "%s}}\n", b.extra_index);
    write_text(path, b.index ? b.index : text);
}

/* Writes the folder; its path. Each call a new one. */
static const char *write_folder(void) {
    static char dir[600], path[700], text[4096];
    static int number;
    size_t used = (size_t)snprintf(text, sizeof text, "{");
    int i, comma = 0;
    snprintf(dir, sizeof dir, "%s/model%d", tsk_test_temp_dir(), number++);
    if (mkdir(dir, 0700) != 0) exit(2);
    for (i = 0; i < b.n_fields; i++)
        if (b.fields[i].value[0])
            used += (size_t)snprintf(text + used, sizeof text - used, "%s\n\"%s\": %s", comma++ ? "," : "",
                                     b.fields[i].key, b.fields[i].value);
    snprintf(text + used, sizeof text - used, "\n}\n");
    snprintf(path, sizeof path, "%s/config.json", dir);
    write_text(path, b.config ? b.config : text);
    for (i = 0; i < b.n_shards; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, shard_name(i));
        if (i != b.leave_out) write_shard(path, i);
    }
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
    if (b.n_shards > 1) write_index(path);
    return dir;
}

/* ---- refusing */

static int ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static void check_error(const tsk_error *error, tsk_status status, const char *file, const char *part,
                        const char *other, int line) {
    test_check(error->status == status, __FILE__, line, "refused as '%s': %s", tsk_status_string(error->status),
               error->message);
    test_check(ends_with(error->file, file), __FILE__, line, "the error is about '%s', not '%s'", error->file, file);
    test_check(strstr(error->message, file) != NULL, __FILE__, line, "\"%s\" does not name the file", error->message);
    test_check(strstr(error->message, part) != NULL, __FILE__, line, "\"%s\" lacks \"%s\"", error->message, part);
    test_check(strstr(error->message, other) != NULL, __FILE__, line, "\"%s\" lacks \"%s\"", error->message, other);
}

/* Neither opened nor loaded, with `status`, about `file`, and with both texts in the message. */
static uint64_t refuse_dir(const char *dir, tsk_status status, const char *file, const char *part, const char *other,
                           int line) {
    tsk_model_options options = tsk_model_options_default();
    tsk_folder *folder = NULL;
    tsk_model *model = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    options.device = TSK_DEVICE_CPU;
    options.n_threads = 1;
    test_check(tsk_folder_open(dir, NULL, &folder, &error) == status && folder == NULL, __FILE__, line,
               "not refused as '%s': %s", tsk_status_string(status), part);
    tsk_folder_free(folder);
    check_error(&error, status, file, part, other, line);
    memset(&error, 0, sizeof error);
    options.host.no_map = 1;
    test_check(tsk_model_load(dir, &options, &model, &error) == status && model == NULL, __FILE__, line, "loaded");
    tsk_model_free(model);
    check_error(&error, status, file, part, other, line);
    return error.offset;
}

#define REFUSE(status, file, part, other) refuse_dir(write_folder(), status, file, part, other, __LINE__)

static void refuse_field(const char *key, const char *value, tsk_status status, const char *other, int line) {
    char part[60];
    const char *dir;
    uint64_t offset;
    fresh();
    set(key, value);
    snprintf(part, sizeof part, "\"%s\"", key);
    dir = write_folder();
    offset = refuse_dir(dir, status, "config.json", part, other, line);
    if (value) { /* and the place is where the value stands */
        char path[700];
        char *text;
        snprintf(path, sizeof path, "%s/config.json", dir);
        text = read_file(path, NULL);
        test_check(offset < strlen(text) && strncmp(text + offset, value, strlen(value)) == 0, __FILE__, line,
                   "%s: offset %llu", key, (unsigned long long)offset);
        free(text);
    } else test_check(offset == TSK_NO_OFFSET, __FILE__, line, "%s: what is missing has no place", key);
}

static void test_config_fields(void) {
    static const char *const required[] = {
        "d_model", "n_layers", "n_heads", "vocab_size", "max_sequence_length", "mask_token_id", "eos_token_id"};
    static const char *const wrong[] = {"-1", "1.5", "\"16\"", "true", "{}", "99999999999999999999"};
    size_t i, j;
    for (i = 0; i < sizeof required / sizeof required[0]; i++) {
        refuse_field(required[i], NULL, TSK_ERROR_CONFIG, "missing", __LINE__);
        for (j = 0; j < sizeof wrong / sizeof wrong[0]; j++)
            refuse_field(required[i], wrong[j], TSK_ERROR_CONFIG, "must be an integer from", __LINE__);
    }
    refuse_field("n_layers", "0", TSK_ERROR_CONFIG, "integer from 1 to", __LINE__);
    refuse_field("d_model", "1000000000", TSK_ERROR_CONFIG, "integer from 1 to", __LINE__);
    refuse_field("n_kv_heads", "0", TSK_ERROR_CONFIG, "integer from", __LINE__);
    refuse_field("mlp_hidden_size", "-3", TSK_ERROR_CONFIG, "integer from", __LINE__);
    refuse_field("rope_theta", "0", TSK_ERROR_CONFIG, "positive", __LINE__);
    refuse_field("rope_theta", "\"high\"", TSK_ERROR_CONFIG, "positive", __LINE__);
    refuse_field("rms_norm_eps", "-1e-5", TSK_ERROR_CONFIG, "positive", __LINE__);
    refuse_field("weight_tying", "1", TSK_ERROR_CONFIG, "true or false", __LINE__);
    refuse_field("include_bias", "\"no\"", TSK_ERROR_CONFIG, "true or false", __LINE__);
    refuse_field("model_type", "\"gpt2\"", TSK_ERROR_UNSUPPORTED, "only \"llada\"", __LINE__);
    refuse_field("model_type", NULL, TSK_ERROR_UNSUPPORTED, "only \"llada\"", __LINE__);
    refuse_field("model_type", "7", TSK_ERROR_UNSUPPORTED, "only \"llada\"", __LINE__);
    refuse_field("layer_norm_type", "\"layernorm\"", TSK_ERROR_UNSUPPORTED, "\"layernorm\"; only \"rms\"", __LINE__);
    refuse_field("block_type", "\"sequential\"", TSK_ERROR_UNSUPPORTED, "only \"llama\"", __LINE__);
    refuse_field("activation_type", "\"gelu\"", TSK_ERROR_UNSUPPORTED, "only \"silu\"", __LINE__);
    refuse_field("rope", "false", TSK_ERROR_UNSUPPORTED, "false is not supported", __LINE__);
    refuse_field("alibi", "true", TSK_ERROR_UNSUPPORTED, "true is not supported", __LINE__);
    refuse_field("attention_layer_norm", "true", TSK_ERROR_UNSUPPORTED, "true is not supported", __LINE__);
    refuse_field("input_emb_norm", "true", TSK_ERROR_UNSUPPORTED, "true is not supported", __LINE__);
    refuse_field("scale_logits", "true", TSK_ERROR_UNSUPPORTED, "true is not supported", __LINE__);
    refuse_field("bias_for_layer_norm", "true", TSK_ERROR_UNSUPPORTED, "true is not supported", __LINE__);
    refuse_field("layer_norm_with_affine", "false", TSK_ERROR_UNSUPPORTED, "false is not supported", __LINE__);
    refuse_field("clip_qkv", "8.0", TSK_ERROR_UNSUPPORTED, "not supported", __LINE__);
}

/* A key that is missing has the default of LLaDA's own class. */
static void test_config_defaults(void) {
    static const char *const harmless[] = {"n_kv_heads", "rope_theta", "rms_norm_eps", "include_bias",
                                           "include_qkv_bias", "bias_for_layer_norm", "alibi", "pad_token_id"};
    tsk_folder *folder = NULL;
    const tsk_model_config *c;
    size_t i;
    refuse_field("rope", NULL, TSK_ERROR_UNSUPPORTED,
                 "is missing, and LLaDA's default for it is false; only true is supported", __LINE__);
    refuse_field("block_type", NULL, TSK_ERROR_UNSUPPORTED,
                 "default for it is \"sequential\"; only \"llama\" is supported", __LINE__);
    refuse_field("activation_type", NULL, TSK_ERROR_UNSUPPORTED,
                 "default for it is \"swiglu\"; only \"silu\" is supported", __LINE__);
    refuse_field("layer_norm_type", NULL, TSK_ERROR_UNSUPPORTED,
                 "default for it is \"default\"; only \"rms\" is supported", __LINE__);
    refuse_field("embedding_size", NULL, TSK_ERROR_CONFIG, "is missing", __LINE__);
    refuse_field("rope", "null", TSK_ERROR_UNSUPPORTED, "false is not supported", __LINE__);
    refuse_field("layer_norm_with_affine", "null", TSK_ERROR_UNSUPPORTED, "false is not supported", __LINE__);
    refuse_field("block_type", "null", TSK_ERROR_UNSUPPORTED, "only \"llama\" is supported", __LINE__);
    fresh();
    for (i = 0; i < sizeof harmless / sizeof harmless[0]; i++) set(harmless[i], NULL);
    set("embedding_size", "null");
    set("mlp_hidden_size", "null");
    set("mlp_ratio", "1.5e0");
    refuse_dir(write_folder(), TSK_ERROR_CONFIG, "config.json", "\"mlp_ratio\"", "an integer", __LINE__);
    set("mlp_hidden_size", "24");
    set("mlp_ratio", NULL);
    CHECK_INT(tsk_folder_open(write_folder(), NULL, &folder, NULL), TSK_OK);
    if (!folder) return;
    c = tsk_folder_config(folder);
    CHECK(c->n_kv_heads == 2 && c->rope_theta == 10000.0f && c->rms_norm_eps == 1e-5f && !c->linear_bias &&
          !c->qkv_bias);
    CHECK(c->embedding_size == 40 && c->pad_token_id == -1);
    tsk_folder_free(folder);
}

/* With include_bias the norms have biases too, unless another key says that they have none. */
static void test_norm_bias(void) {
    static const char *const values[] = {"", "null"};
    size_t i;
    for (i = 0; i < 2; i++) {
        fresh();
        set("include_bias", "true");
        set("bias_for_layer_norm", values[i]);
        REFUSE(TSK_ERROR_UNSUPPORTED, "config.json", "\"bias_for_layer_norm\" is ",
               "which LLaDA takes as \"include_bias\": true");
    }
}

static void refuse_unsupported(const char *key, const char *value, const char *other, int line) {
    char part[60];
    fresh();
    set(key, value);
    snprintf(part, sizeof part, "\"%s\"", key);
    refuse_dir(write_folder(), TSK_ERROR_UNSUPPORTED, "config.json", part, other, line);
}

/* Other networks under LLaDA's name, and quantised weights. */
static void test_config_strangers(void) {
    refuse_unsupported("architectures", "[\"LLaDAMoEModelLM\"]", "names \"LLaDAMoEModelLM\"; only \"LLaDAModelLM\"",
                       __LINE__);
    refuse_unsupported("architectures", "[\"LLaDAModelLM\", \"DreamModel\"]", "names \"DreamModel\"", __LINE__);
    refuse_field("architectures", "\"LLaDAModelLM\"", TSK_ERROR_CONFIG, "must be a list of names", __LINE__);
    refuse_field("block_group_size", "2", TSK_ERROR_UNSUPPORTED, "is 2; only 1 is supported", __LINE__);
    refuse_field("block_group_size", "true", TSK_ERROR_CONFIG, "an integer", __LINE__);
    refuse_field("rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 4.0}", TSK_ERROR_UNSUPPORTED,
                 "\"yarn\" are not supported", __LINE__);
    refuse_field("rope_scaling", "{\"type\": \"linear\", \"factor\": 2}", TSK_ERROR_UNSUPPORTED,
                 "\"linear\" are not supported", __LINE__);
    refuse_field("rope_scaling", "2.0", TSK_ERROR_UNSUPPORTED, "not supported", __LINE__);
    refuse_unsupported("rope_parameters", "{\"rope_type\": \"default\", \"rope_theta\": 20000}",
                       "other than the configuration's", __LINE__);
    refuse_field("quantization_config", "{\"quant_method\": \"hqq\", \"bits\": 4}", TSK_ERROR_UNSUPPORTED,
                 "the method \"hqq\" is not supported", __LINE__);
    refuse_field("quantization_config", "{\"load_in_8bit\": true}", TSK_ERROR_UNSUPPORTED,
                 "use the folder of BF16, F16 or F32", __LINE__);
    refuse_field("compression_config", "{\"quant_method\": \"compressed-tensors\"}", TSK_ERROR_UNSUPPORTED,
                 "\"config_groups\" must be", __LINE__);
}

static void check_opens(int line) {
    tsk_folder *folder = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    test_check(tsk_folder_open(write_folder(), NULL, &folder, &error) == TSK_OK, __FILE__, line, "%s", error.message);
    tsk_folder_free(folder);
}

/* The same written otherwise, and what changes nothing. */
static void test_config_harmless(void) {
    static const char *const fields[][2] = {
        {"architectures", "[\"LLaDAModelLM\"]"}, {"architectures", "null"}, {"block_group_size", "1.0"},
        {"rope_scaling", "null"}, {"rope_scaling", "{\"rope_type\": \"default\"}"},
        {"rope_parameters", "{\"rope_type\": \"default\", \"rope_theta\": 1e4}"}, {"quantization_config", "null"},
        {"clip_qkv", "null"}, {"multi_query_attention", "null"}, {"multi_query_attention", "false"},
        {"rope_full_precision", "false"}, {"flash_attention", "true"}, {"attention_dropout", "0.1"},
        {"alibi_bias_max", "8.0"}, {"attention_layer_norm", "null"}, {"d_model", "16.0"}, {"n_layers", "2e0"},
        {"max_sequence_length", "16777216"}, {"unknown", "[1]"}};
    size_t i;
    for (i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        fresh();
        set(fields[i][0], fields[i][1]);
        check_opens(__LINE__);
    }
}

static void refuse_pair(const char *key, const char *value, const char *part, const char *other, int line) {
    fresh();
    set(key, value);
    refuse_dir(write_folder(), TSK_ERROR_CONFIG, "config.json", part, other, line);
}

/* Fields that are each in range but do not fit each other. */
static void test_config_relations(void) {
    refuse_pair("n_heads", "3", "d_model 16", "n_heads 3", __LINE__);
    refuse_pair("n_heads", "16", "head size 1", "odd", __LINE__);
    refuse_pair("n_kv_heads", "3", "n_heads 2", "n_kv_heads 3", __LINE__);
    refuse_pair("n_kv_heads", "4", "n_heads 2", "n_kv_heads 4", __LINE__);
    refuse_pair("embedding_size", "39", "embedding_size 39", "vocab_size 40", __LINE__);
    refuse_pair("mask_token_id", "40", "mask_token_id 40", "vocabulary of 40", __LINE__);
    refuse_pair("eos_token_id", "2147483647", "eos_token_id 2147483647", "vocabulary of 40", __LINE__);
    refuse_pair("mask_token_id", "38", "mask_token_id", "both 38", __LINE__);
    fresh();
    set("multi_query_attention", "true"); /* beside n_kv_heads 2 */
    REFUSE(TSK_ERROR_CONFIG, "config.json", "\"multi_query_attention\" true means n_kv_heads 1", "but that is 2");
    set("multi_query_attention", "false");
    set("n_kv_heads", "1");
    REFUSE(TSK_ERROR_CONFIG, "config.json", "\"multi_query_attention\" false means n_kv_heads 2", "but that is 1");
    set("multi_query_attention", "1");
    REFUSE(TSK_ERROR_CONFIG, "config.json", "\"multi_query_attention\"", "true or false");
    refuse_pair("max_sequence_length", "16777217", "\"max_sequence_length\"", "from 1 to 16777216", __LINE__);
    refuse_pair("max_sequence_length", "1073741824", "\"max_sequence_length\"", "from 1 to 16777216", __LINE__);
}

/* ---- the ids that end a generation */

static const char *folder_with_generation(const char *text) {
    char path[700];
    const char *dir = write_folder();
    snprintf(path, sizeof path, "%s/generation_config.json", dir);
    write_text(path, text);
    return dir;
}

/* `ids` as text, in order. */
static void check_eos(const char *dir, const char *ids, int line) {
    tsk_folder *folder = NULL;
    tsk_error error;
    char text[200] = "";
    const tsk_model_config *c;
    int32_t i;
    memset(&error, 0, sizeof error);
    if (!test_check(tsk_folder_open(dir, NULL, &folder, &error) == TSK_OK, __FILE__, line, "%s", error.message)) return;
    c = tsk_folder_config(folder);
    for (i = 0; i < c->n_eos_token_ids; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%d", i ? " " : "", (int)c->eos_token_ids[i]);
    test_check(strcmp(text, ids) == 0, __FILE__, line, "the ids are %s, not %s", text, ids);
    test_check(c->eos_token_id == c->eos_token_ids[0], __FILE__, line, "eos_token_id is %d", (int)c->eos_token_id);
    for (i = 0; i < 40; i++) {
        char word[16], padded[210];
        snprintf(word, sizeof word, " %d ", (int)i);
        snprintf(padded, sizeof padded, " %s ", ids);
        test_check(tsk_config_is_eos(c, i) == (strstr(padded, word) != NULL), __FILE__, line, "is %d one?", (int)i);
    }
    tsk_folder_free(folder);
}

static void refuse_eos(const char *config, const char *generation, tsk_status status, const char *part,
                       const char *other, int line) {
    fresh();
    set("eos_token_id", config);
    if (generation) refuse_dir(folder_with_generation(generation), status, "generation_config.json", part, other, line);
    else refuse_dir(write_folder(), status, "config.json", part, other, line);
}

static void test_eos_ids(void) {
    static const char many[] = "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,15,14]";
    static const char more[] = "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]";
    fresh();
    check_eos(write_folder(), "38", __LINE__);
    check_eos(folder_with_generation("{}"), "38", __LINE__);
    check_eos(folder_with_generation("{\"eos_token_id\": null}"), "38", __LINE__);
    check_eos(folder_with_generation("{\"eos_token_id\": 38.0, \"bos_token_id\": \"any\"}"), "38", __LINE__);
    check_eos(folder_with_generation("{\"eos_token_id\": 7}"), "38 7", __LINE__);
    check_eos(folder_with_generation("{\"eos_token_id\": [7, 38, 5, 7]}"), "38 7 5", __LINE__);
    set("eos_token_id", "[12, 3, 12]");
    check_eos(write_folder(), "12 3", __LINE__);
    check_eos(folder_with_generation("{\"eos_token_id\": [3, 4]}"), "12 3 4", __LINE__);
    set("eos_token_id", NULL);
    check_eos(folder_with_generation("{\"eos_token_id\": [3, 4]}"), "3 4", __LINE__);
    set("eos_token_id", many);
    check_eos(write_folder(), "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15", __LINE__);
    refuse_eos(more, NULL, TSK_ERROR_UNSUPPORTED, "\"eos_token_id\"", "more than 16", __LINE__);
    refuse_eos("[]", NULL, TSK_ERROR_CONFIG, "\"eos_token_id\"", "missing", __LINE__);
    refuse_eos("[38, 40]", NULL, TSK_ERROR_CONFIG, "eos_token_id 40", "vocabulary of 40", __LINE__);
    refuse_eos("[38, 39]", NULL, TSK_ERROR_CONFIG, "mask_token_id and eos_token_id", "both 39", __LINE__);
    refuse_eos("[38, \"5\"]", NULL, TSK_ERROR_CONFIG, "\"eos_token_id\"", "must be an integer from 0", __LINE__);
    refuse_eos("[38, [5]]", NULL, TSK_ERROR_CONFIG, "\"eos_token_id\"", "must be an integer from 0", __LINE__);
    refuse_eos("38", "{\"eos_token_id\": 40}", TSK_ERROR_CONFIG, "eos_token_id 40", "vocabulary of 40", __LINE__);
    refuse_eos("38", "{\"eos_token_id\": [39]}", TSK_ERROR_CONFIG, "mask_token_id and eos_token_id", "both 39",
               __LINE__);
    refuse_eos("38", "{\"eos_token_id\": -1}", TSK_ERROR_CONFIG, "\"eos_token_id\"", "must be an integer from 0",
               __LINE__);
    refuse_eos("38", "{\"eos_token_id\": \"</s>\"}", TSK_ERROR_CONFIG, "\"eos_token_id\"",
               "must be an integer from 0", __LINE__);
    refuse_eos(many, "{\"eos_token_id\": 16}", TSK_ERROR_UNSUPPORTED, "\"eos_token_id\"", "more than 16", __LINE__);
    refuse_eos("38", "[38]", TSK_ERROR_CONFIG, "no JSON object", "", __LINE__);
    refuse_eos("38", "{\"eos_token_id\": 38", TSK_ERROR_JSON, "line 1", "", __LINE__);
    refuse_eos("38", "", TSK_ERROR_JSON, "end of the text", "", __LINE__);
}

static void test_config_file(void) {
    const char *dir;
    fresh();
    b.config = "";
    REFUSE(TSK_ERROR_JSON, "config.json", "end of the text", "");
    b.config = "{\"d_model\": 16,}";
    REFUSE(TSK_ERROR_JSON, "config.json", "line 1", "");
    b.config = "[1, 2]";
    REFUSE(TSK_ERROR_CONFIG, "config.json", "no JSON object", "");
    b.config = NULL;
    dir = write_folder();
    {
        char path[700];
        snprintf(path, sizeof path, "%s/config.json", dir);
        unlink(path);
        refuse_dir(dir, TSK_ERROR_IO, "config.json", "No such file", "cannot open", __LINE__);
        if (mkdir(path, 0700) != 0) exit(2);
        refuse_dir(dir, TSK_ERROR_IO, "config.json", "is a directory", "cannot open", __LINE__);
    }
}

static void test_folder_names(void) {
    tsk_folder *folder = NULL;
    tsk_error error;
    char path[700];
    memset(&error, 0, sizeof error);
    CHECK_INT(tsk_folder_open(tsk_test_path("nowhere"), NULL, &folder, &error), TSK_ERROR_IO);
    CHECK_CONTAINS(error.message, "nowhere/config.json");
    CHECK_INT(tsk_folder_open("", NULL, &folder, &error), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_folder_open(NULL, NULL, &folder, &error), TSK_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "no model folder");
    fresh();
    snprintf(path, sizeof path, "%s///", write_folder());
    CHECK_INT(tsk_folder_open(path, NULL, &folder, &error), TSK_OK);
    CHECK_INT(tsk_folder_count(folder), 21);
    CHECK(tsk_folder_get(folder, 21) == NULL);
    tsk_folder_free(folder);
    tsk_folder_free(NULL);
}

/* ---- tensors */

static void test_tensors(void) {
    tensor *t;
    fresh();
    remove_tensor("blocks.1.up_proj.weight");
    REFUSE(TSK_ERROR_TENSOR, "model.safetensors", "model.transformer.blocks.1.up_proj.weight", "missing");
    fresh();
    remove_tensor("ff_out.weight");
    REFUSE(TSK_ERROR_TENSOR, "model.safetensors", "'model.transformer.ff_out.weight'", "missing");
    fresh();
    named("blocks.0.k_proj.weight")->shape[0] = 8;
    CHECK(REFUSE(TSK_ERROR_TENSOR, "model.safetensors", "model.transformer.blocks.0.k_proj.weight",
                 "shape [8, 16]; expected [16, 16]") != TSK_NO_OFFSET);
    fresh();
    named("blocks.0.ff_proj.weight")->shape[0] = 16;
    named("blocks.0.ff_proj.weight")->shape[1] = 24;
    REFUSE(TSK_ERROR_TENSOR, "model.safetensors", "ff_proj", "shape [16, 24]; expected [24, 16]");
    fresh();
    t = named("wte.weight");
    t->n_dims = 3;
    t->shape[2] = 1;
    REFUSE(TSK_ERROR_TENSOR, "model.safetensors", "wte", "shape [40, 16, 1]; expected [40, 16]");
    fresh();
    named("ln_f.weight")->n_dims = 2;
    named("ln_f.weight")->shape[1] = 1;
    REFUSE(TSK_ERROR_TENSOR, "model.safetensors", "ln_f", "shape [16, 1]; expected [16]");
    fresh();
    named("blocks.1.attn_norm.weight")->n_dims = 0;
    REFUSE(TSK_ERROR_TENSOR, "model.safetensors", "attn_norm", "shape []; expected [16]");
    fresh();
    snprintf(named("blocks.1.q_proj.weight")->dtype, 12, "I64");
    REFUSE(TSK_ERROR_TENSOR, "model.safetensors", "blocks.1.q_proj.weight", "type I64; expected F32, F16 or BF16");
    fresh();
    snprintf(named("blocks.1.q_proj.weight")->dtype, 12, "F64");
    REFUSE(TSK_ERROR_TENSOR, "model.safetensors", "blocks.1.q_proj.weight", "type F64");
    fresh();
    add("blocks.0.q_norm.weight", 1, 8, 0);
    REFUSE(TSK_ERROR_TENSOR, "model.safetensors", "model.transformer.blocks.0.q_norm.weight",
           "not part of this architecture");
    fresh();
    add("blocks.2.q_proj.weight", 2, 16, 16); /* a layer more than the config has */
    REFUSE(TSK_ERROR_TENSOR, "model.safetensors", "blocks.2.q_proj.weight", "not part of this architecture");
    fresh();
    memset(add("long", 1, 8, 0)->name, 'n', 500); /* a name that leaves no room for anything else */
    REFUSE(TSK_ERROR_TENSOR, "model.safetensors", "nnnnnnnn", "not part of this architecture");
    fresh();
    add("blocks.0.q_proj.bias", 1, 16, 0); /* without include_qkv_bias */
    REFUSE(TSK_ERROR_TENSOR, "model.safetensors", "blocks.0.q_proj.bias", "not part of this architecture");
    fresh();
    set("include_qkv_bias", "true");
    REFUSE(TSK_ERROR_TENSOR, "model.safetensors", "blocks.0.q_proj.bias", "missing");
}

/* Folders as GPTQ, AWQ and others write them, whose configuration says nothing: the names of what they add tell. */
static void test_quantised_tensors(void) {
    static const struct { const char *suffix, *method;
    } kinds[] = {{".qweight", "GPTQ or AWQ"},        {".qzeros", "GPTQ or AWQ"},
                 {".scales", "MLX or GPTQ"},         {".weight_packed", "compressed-tensors"},
                 {".weight.absmax", "bitsandbytes"}, {".SCB", "bitsandbytes"},
                 {".weight_scale_inv", "FP8"}};
    char name[100];
    size_t i, kept, shards;
    for (i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        for (kept = 0; kept < 2; kept++)
            for (shards = 1; shards < 4; shards += 2) {
                fresh();
                snprintf(name, sizeof name, "blocks.1.q_proj%s", kinds[i].suffix);
                if (!kept) remove_tensor("blocks.1.q_proj.weight");
                else snprintf(named("blocks.1.q_proj.weight")->dtype, 12, "I16");
                add(name, 2, 4, 16);
                if (shards > 1) spread_over_shards((int)shards);
                refuse_dir(write_folder(), TSK_ERROR_UNSUPPORTED, "", kinds[i].method, name, __LINE__);
            }
    fresh();
    named("blocks.1.q_proj.weight")->shape[0] = 8; /* wrong, but not quantised */
    REFUSE(TSK_ERROR_TENSOR, "model.safetensors", "blocks.1.q_proj.weight", "shape [8, 16]");
}

static void test_cut_files(void) {
    static const int lengths[] = {0, 1, 7, 8, 9, 200};
    const char *dir;
    char path[700];
    struct stat status;
    size_t i;
    fresh();
    dir = write_folder();
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    if (stat(path, &status) != 0) exit(2);
    for (i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        b.cut = (int)status.st_size - lengths[i];
        REFUSE(TSK_ERROR_SAFETENSORS, "model.safetensors",
               lengths[i] == 0 ? "it is empty" : lengths[i] < 8 ? "too few for a header" : "it is cut", "");
    }
    b.cut = 1;
    REFUSE(TSK_ERROR_SAFETENSORS, "model.safetensors", "ff_out.weight", "the file is cut");
    b.cut = 0;
    b.add = 3;
    REFUSE(TSK_ERROR_SAFETENSORS, "model.safetensors", "the tensors end at byte", "");
    fresh();
    dir = write_folder();
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    unlink(path);
    refuse_dir(dir, TSK_ERROR_IO, "", "neither model.safetensors nor model.safetensors.index.json", dir, __LINE__);
#ifndef TEST_NO_LINKS
    if (mkfifo(path, 0600) != 0) exit(2);
    refuse_dir(dir, TSK_ERROR_IO, "model.safetensors", "FIFO", "", __LINE__);
#endif
}

/* What people have in a model file's place, and what the error says that it is. */
static const struct { const char *bytes; size_t size; const char *what, *advice; } others[] = {
#define OTHER(bytes, what, advice) {bytes, sizeof bytes - 1, what, advice}
    OTHER("version https://git-lfs.github.com/spec/v1\n"
          "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 13329920\n",
          "a Git LFS pointer", "git lfs pull"),
    OTHER("<!DOCTYPE html>\n<html><head><title>Not found</title></head></html>\n", "an HTML or XML page",
          "download it again"),
    OTHER("\r\n  <?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "an HTML or XML page",
          "download it again"),
    OTHER("PK\3\4\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0\0\0pytorch_model/data.pkl", "a zip archive", "safetensors"),
    OTHER("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "a Python pickle", "safetensors"),
    OTHER("\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94.", "a Python pickle", "safetensors"),
    OTHER("GGUF\3\0\0\0\x23\1\0\0\0\0\0\0", "a GGUF file", "not supported"),
    OTHER("\x1f\x8b\x08\0\0\0\0\0\0\3\xab\x56", "gzip", "decompress"),
    OTHER("\x28\xb5\x2f\xfd\4\0\1\0\0abc", "zstd", "decompress"),
    OTHER("\xfd" "7zXZ\0\0\4\xe6\xd6", "xz", "decompress"),
    OTHER("BZh91AY&SY", "bzip2", "decompress"),
    OTHER("\x89HDF\r\n\x1a\n\0\0", "an HDF5 file", "safetensors"),
    OTHER("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "zero bytes", "download it again")
#undef OTHER
};

/* A good folder but for `file`, whose bytes are others. */
static void refuse_other(int n_shards, const char *file, tsk_status status, const char *bytes, size_t size,
                         const char *what, const char *advice, int line) {
    char path[700];
    const char *dir;
    fresh();
    if (n_shards > 1) spread_over_shards(n_shards);
    dir = write_folder();
    snprintf(path, sizeof path, "%s/%s", dir, file);
    write_file(path, bytes, size);
    refuse_dir(dir, status, file, what, advice, line);
}

static void test_other_files(void) {
    static const struct { int n_shards; const char *file; tsk_status status; } places[] = {
        {1, "model.safetensors", TSK_ERROR_SAFETENSORS},
        {1, "config.json", TSK_ERROR_JSON},
        {3, "model-00001-of-00003.safetensors", TSK_ERROR_SAFETENSORS},
        {3, "model.safetensors.index.json", TSK_ERROR_JSON}};
    static const char page[] = "Entry not found", json[] = "\n{\"error\": \"no such repository\"}";
    static const char utf8[] = "Zugriff verweigert \xc3\xbc";
    size_t i, j;
    for (i = 0; i < sizeof others / sizeof others[0]; i++)
        for (j = 0; j < sizeof places / sizeof places[0]; j++)
            refuse_other(places[j].n_shards, places[j].file, places[j].status, others[i].bytes, others[i].size,
                         others[i].what, others[i].advice, __LINE__);
#define REFUSE_TEXT(text, what, quote) \
    refuse_other(1, "model.safetensors", TSK_ERROR_SAFETENSORS, text, sizeof text - 1, what, quote, __LINE__)
    REFUSE_TEXT(page, "it is text", "\"Entry not found\"");
    REFUSE_TEXT(json, "it is JSON", "no such repository");
    REFUSE_TEXT(utf8, "it is text", "\"Zugriff verweigert \"");
#undef REFUSE_TEXT
    refuse_other(1, "config.json", TSK_ERROR_JSON, page, sizeof page - 1, "line 1, column 1", "found 'E'", __LINE__);
}

/* The model's tokenizer is JSON as well. */
static void test_other_tokenizer(void) {
    tsk_tokenizer *tokenizer = NULL;
    tsk_error error;
    char path[700];
    const char *dir;
    memset(&error, 0, sizeof error);
    fresh();
    dir = write_folder();
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    write_file(path, others[0].bytes, others[0].size);
    CHECK_INT(tsk_tokenizer_load(dir, NULL, &tokenizer, &error), TSK_ERROR_JSON);
    check_error(&error, TSK_ERROR_JSON, "tokenizer.json", others[0].what, others[0].advice, __LINE__);
}

static void test_other_weights(void) {
    char path[700];
    const char *dir;
    fresh();
    b.leave_out = 0;
    dir = write_folder();
    snprintf(path, sizeof path, "%s/pytorch_model.bin", dir);
    write_file(path, "PK", 2);
    refuse_dir(dir, TSK_ERROR_IO, "", "neither model.safetensors nor model.safetensors.index.json",
               "pytorch_model.bin", __LINE__);
}

/* Cut to nothing between loading and use; NULL: no file. */
static const char *cut_before_use;

static int load_logits(const char *dir, int no_map, float *logits) {
    static const int32_t ids[n_ids] = {1, 5, 39, 7, 39, 22, 0, 38, 9};
    tsk_model_options options = tsk_model_options_default();
    tsk_generate_options small = tsk_generate_options_default();
    tsk_model *model = NULL;
    tsk_session *session = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    options.device = TSK_DEVICE_CPU;
    options.n_threads = 1;
    options.host.no_map = no_map;
    if (!test_check(tsk_model_load(dir, &options, &model, &error) == TSK_OK, __FILE__, __LINE__, "%s", error.message))
        return 0;
    CHECK(tsk_model_tokenizer(model) == NULL);
    if (cut_before_use && truncate(cut_before_use, 0) != 0) exit(2);
    small.gen_length = small.block_length = 8;
    CHECK_INT(tsk_session_create(model, &small, &session, NULL), TSK_OK);
    CHECK_INT(tsk_session_logits(session, ids, n_ids, 0, n_ids, logits, NULL), TSK_OK);
    tsk_session_free(session);
    tsk_model_free(model);
    return 1;
}

/* A good folder of three shards in which `name` is a link, or (NULL) a folder. */
static const char *replaced(const char *name, const char *link) {
    char path[700];
    const char *dir;
    fresh();
    spread_over_shards(3);
    dir = write_folder();
    snprintf(path, sizeof path, "%s/%s", dir, name);
    remove(tsk_test_path("elsewhere"));
    if (rename(path, tsk_test_path("elsewhere")) != 0) exit(2);
#ifndef TEST_NO_LINKS
    if (link && symlink(link, path) != 0) exit(2);
#endif
    if (!link && mkdir(path, 0700) != 0) exit(2);
    return dir;
}

/* A link counts as what it leads to, as in the cache that Hugging Face's clients make. One that leads nowhere is not an
   absent file. */
static void test_links_and_folders(void) {
    static const char *const names[] = {"config.json", "model.safetensors.index.json",
                                        "model-00002-of-00003.safetensors"};
    static float plain[n_ids * vocabulary], linked[n_ids * vocabulary];
    size_t i;
    fresh();
    load_logits(write_folder(), 0, plain);
    for (i = 0; i < sizeof names / sizeof names[0]; i++) {
        refuse_dir(replaced(names[i], NULL), TSK_ERROR_IO, names[i], "is a directory", "cannot open", __LINE__);
#ifdef TEST_NO_LINKS
        continue;
#endif
        refuse_dir(replaced(names[i], "nowhere"), TSK_ERROR_IO, names[i], "No such file", "cannot open", __LINE__);
        refuse_dir(replaced(names[i], names[i]), TSK_ERROR_IO, names[i], "symbolic links", "cannot open", __LINE__);
        memset(linked, 0, sizeof linked);
        load_logits(replaced(names[i], tsk_test_path("elsewhere")), 0, linked);
        CHECK(memcmp(plain, linked, sizeof plain) == 0);
    }
}

/* Read instead of mapped, a model needs its files no more: someone may cut them. */
static void test_cut_after_loading(void) {
    static float before[n_ids * vocabulary], after[n_ids * vocabulary];
    char path[700];
    const char *dir;
    fresh();
    dir = write_folder();
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    load_logits(dir, 1, before);
    cut_before_use = path;
    memset(after, 0, sizeof after);
    CHECK(load_logits(dir, 1, after));
    cut_before_use = NULL;
    CHECK(memcmp(before, after, sizeof before) == 0);
}

/* ---- the index */

#define INDEX "model.safetensors.index.json"

static void refuse_entry(const char *entry, const char *part, const char *other, int line) {
    fresh();
    spread_over_shards(3);
    snprintf(b.extra_index, sizeof b.extra_index, ",\n%s", entry);
    refuse_dir(write_folder(), TSK_ERROR_CONFIG, INDEX, part, other, line);
}

static void test_index(void) {
    refuse_entry("\"x\": \"../secret\"", "'x'", "'../secret'", __LINE__);
    refuse_entry("\"x\": \"/etc/passwd\"", "'x'", "'/etc/passwd'", __LINE__);
    refuse_entry("\"x\": \"sub/model.safetensors\"", "'x'", "sub/model", __LINE__);
    refuse_entry("\"x\": \"..\"", "'x'", "a file of this folder", __LINE__);
    refuse_entry("\"x\": \"\"", "'x'", "a file of this folder", __LINE__);
    refuse_entry("\"x\": \"a\\u0000b\"", "'x'", "a file of this folder", __LINE__);
    refuse_entry("\"x\": 3", "'x'", "a file of this folder", __LINE__);
    refuse_entry("\"model.transformer.wte.weight\": \"model-00002-of-00003.safetensors\"", "wte.weight", "listed twice",
                 __LINE__);
    refuse_entry("\"model.transformer.wte.weight\": \"model-00001-of-00003.safetensors\"", "wte.weight", "listed twice",
                 __LINE__);
    fresh();
    spread_over_shards(3);
    b.index = "{}";
    REFUSE(TSK_ERROR_CONFIG, INDEX, "weight_map", "object");
    b.index = "{\"weight_map\": [1]}";
    REFUSE(TSK_ERROR_CONFIG, INDEX, "weight_map", "object");
    b.index = "";
    REFUSE(TSK_ERROR_JSON, INDEX, "end of the text", "");
    b.index = "{\"weight_map\": {}}";
    REFUSE(TSK_ERROR_TENSOR, INDEX, "wte.weight", "missing");
}

static void test_shards(void) {
    fresh();
    spread_over_shards(3);
    b.leave_out = 1;
    REFUSE(TSK_ERROR_IO, "model-00002-of-00003.safetensors", "No such file", "cannot open");
    fresh();
    spread_over_shards(3);
    named("blocks.1.q_proj.weight")->listed = -1;
    REFUSE(TSK_ERROR_TENSOR, INDEX, "blocks.1.q_proj.weight", "missing");
    fresh();
    spread_over_shards(3);
    named("blocks.0.v_proj.weight")->listed =
        (named("blocks.0.v_proj.weight")->shard + 1) % 3; /* it is not where the index says */
    REFUSE(TSK_ERROR_TENSOR, ".safetensors", "blocks.0.v_proj.weight", "missing");
    fresh();
    spread_over_shards(3);
    *add("wte.weight", 2, vocabulary, width) = *named("wte.weight"); /* once more, in another file */
    b.tensors[b.n_tensors - 1].shard = 2;
    b.tensors[b.n_tensors - 1].listed = -1;
    REFUSE(TSK_ERROR_TENSOR, "model-00003-of-00003.safetensors", "wte.weight",
           "places it in 'model-00001-of-00003.safetensors'");
    fresh();
    spread_over_shards(3);
    add("blocks.0.experts.weight", 2, 4, 4)->listed = -1; /* in a file, not in the index */
    REFUSE(TSK_ERROR_TENSOR, "model-00001-of-00003.safetensors", "experts", "not part of this architecture");
    fresh();
    spread_over_shards(3);
    add("blocks.0.experts.weight", 2, 4, 4); /* in both */
    REFUSE(TSK_ERROR_TENSOR, "", "experts", "not part of this architecture");
}

/* A tensor of another architecture that only the index names, in a file of its own. */
static void test_index_strangers(void) {
    fresh();
    spread_over_shards(3);
    snprintf(b.extra_index, sizeof b.extra_index,
             ",\n\"model.transformer.blocks.0.experts.weight\": \"other.safetensors\"");
    REFUSE(TSK_ERROR_TENSOR, INDEX, "blocks.0.experts.weight", "not part of this architecture");
}

/* ---- good folders, however they are stored */

/* Logits of the folder as it is now, mapped and read, which must agree to the bit. */
static void built_logits(float *logits) {
    static float read_in[n_ids * vocabulary];
    const char *dir = write_folder();
    memset(logits, 0, n_ids * vocabulary * sizeof *logits);
    load_logits(dir, 0, logits);
    load_logits(dir, 1, read_in);
    CHECK(memcmp(logits, read_in, sizeof read_in) == 0);
}

static void set_dtypes(const char *even, const char *odd) {
    int i;
    for (i = 0; i < b.n_tensors; i++) snprintf(b.tensors[i].dtype, sizeof b.tensors[i].dtype, "%s", i & 1 ? odd : even);
}

static double largest_difference(const float *x, const float *y) {
    double most = 0;
    int i;
    for (i = 0; i < n_ids * vocabulary; i++)
        if (fabs((double)x[i] - (double)y[i]) > most) most = fabs((double)x[i] - (double)y[i]);
    return most;
}

static void test_storage(void) {
    static float plain[n_ids * vocabulary], other[n_ids * vocabulary];
    static const char *const dtypes[][2] = {{"F16", "F16"}, {"BF16", "BF16"}, {"BF16", "F32"}, {"F16", "BF16"}};
    int i;
    fresh();
    built_logits(plain);
    CHECK(largest_difference(plain, other) > 0.1); /* other is all zeroes yet */
    for (i = 1; i < 8; i++) { /* data at every residue of 8 */
        b.padding = i;
        built_logits(other);
        CHECK(memcmp(plain, other, sizeof plain) == 0);
    }
    b.padding = 0;
    for (i = 2; i <= 5; i++) {
        spread_over_shards(i);
        built_logits(other);
        CHECK(memcmp(plain, other, sizeof plain) == 0);
    }
    for (i = 0; i < 4; i++) { /* the same values in every type */
        fresh();
        set_dtypes(dtypes[i][0], dtypes[i][1]);
        b.padding = i % 2;
        built_logits(other);
        CHECK(largest_difference(plain, other) < 1e-4);
    }
}

static void add_biases(int all, uint32_t seed) {
    static const struct {
        const char *name;
        uint64_t size;
        int qkv;
    } maps[] = {{"q_proj", 16, 1},  {"k_proj", 16, 1},  {"v_proj", 16, 1}, {"attn_out", 16, 0},
                {"ff_proj", 24, 0}, {"up_proj", 24, 0}, {"ff_out", 16, 0}};
    char name[100];
    size_t i, layer;
    for (layer = 0; layer < 2; layer++)
        for (i = 0; i < sizeof maps / sizeof maps[0]; i++)
            if (all || maps[i].qkv) {
                snprintf(name, sizeof name, "blocks.%d.%s.bias", (int)layer, maps[i].name);
                add(name, 1, maps[i].size, 0)->seed = seed;
            }
    if (all) add("ff_out.bias", 1, vocabulary, 0)->seed = seed;
}

static void test_variants(void) {
    static float plain[n_ids * vocabulary], other[n_ids * vocabulary];
    int row, i;
    fresh();
    named("ff_out.weight")->seed = named("wte.weight")->seed;
    built_logits(plain);
    remove_tensor("ff_out.weight");
    set("weight_tying", "true");
    built_logits(other);
    CHECK(memcmp(plain, other, sizeof plain) == 0); /* tied equals untied with a copy */
    add("ff_out.weight", 2, vocabulary, width);     /* a tied model's stored head is ignored, rotary tables too */
    add("blocks.0.rotary_emb.inv_freq", 1, 4, 0);
    built_logits(other);
    CHECK(memcmp(plain, other, sizeof plain) == 0);
    fresh();
    built_logits(plain);
    set("n_kv_heads", NULL); /* absent: as many as heads */
    set("embedding_size", "null");
    set("pad_token_id", NULL);
    built_logits(other);
    CHECK(memcmp(plain, other, sizeof plain) == 0);
    fresh();
    set("include_qkv_bias", "true");
    add_biases(0, 0);
    built_logits(other);
    CHECK(largest_difference(plain, other) < 1e-5); /* biases of zero */
    fresh();
    set("include_bias", "true");
    add_biases(1, 0);
    named("ff_out.bias")->seed = 77;
    built_logits(other);
    for (row = 0; row < n_ids; row++) /* the head's bias is added, the same to each row */
        for (i = 0; i < vocabulary; i++) {
            float bias;
            put_value(named("ff_out.bias"), (uint64_t)i, (char *)&bias);
            CHECK(fabsf(other[row * vocabulary + i] - plain[row * vocabulary + i] - bias) < 1e-4f);
        }
    fresh();
    set("include_bias", "true");
    add_biases(1, 5);
    built_logits(other);
    CHECK(largest_difference(plain, other) > 0.05);
}

/* ---- the models under tests/golden */

static void check_golden_model(const char *name, int n_tensors, tsk_dtype dtype) {
    char dir[128];
    tsk_folder *folder = NULL;
    tsk_error error;
    uint64_t sum = 0;
    size_t i;
    memset(&error, 0, sizeof error);
    snprintf(dir, sizeof dir, "tests/golden/models/%s", name);
    if (!test_check(tsk_folder_open(dir, NULL, &folder, &error) == TSK_OK, __FILE__, __LINE__, "%s", error.message))
        return;
    CHECK_INT(tsk_folder_count(folder), n_tensors);
    CHECK_STRING(tsk_folder_get(folder, 0)->info->name, "model.transformer.wte.weight");
    for (i = 0; i < tsk_folder_count(folder); i++) {
        CHECK_INT(tsk_folder_get(folder, i)->info->dtype, dtype);
        sum += tsk_folder_get(folder, i)->info->size;
    }
    CHECK(sum == tsk_folder_weights_size(folder));
    tsk_folder_free(folder);
}

/* Mapped or read, a golden model computes the same bits. */
static void check_golden_reading(const char *name) {
    float *logits[2];
    tsk_model *models[2] = {NULL, NULL};
    static const int32_t ids[n_ids] = {1, 5, 39, 7, 39, 22, 0, 38, 9};
    char dir[128];
    int i;
    size_t size = 0;
    snprintf(dir, sizeof dir, "tests/golden/models/%s", name);
    for (i = 0; i < 2; i++) {
        tsk_model_options options = tsk_model_options_default();
        tsk_session *session = NULL;
        options.device = TSK_DEVICE_CPU;
        options.n_threads = 1;
        options.host.no_map = i;
        CHECK_INT(tsk_model_load(dir, &options, &models[i], NULL), TSK_OK);
        size = (size_t)(n_ids * tsk_model_get_config(models[i])->embedding_size) * sizeof(float);
        logits[i] = (float *)malloc(size);
        CHECK_INT(tsk_session_create(models[i], NULL, &session, NULL), TSK_OK);
        CHECK_INT(tsk_session_logits(session, ids, n_ids, 0, n_ids, logits[i], NULL), TSK_OK);
        tsk_session_free(session);
        tsk_model_free(models[i]);
    }
    CHECK(memcmp(logits[0], logits[1], size) == 0);
    free(logits[0]);
    free(logits[1]);
}

/* ---- memory follows what is used, not what the configuration claims */

/* All bytes ever asked for, and those of the largest block. */
typedef struct counted { size_t total, largest; } counted;

static void count_bytes(counted *c, size_t size) {
    c->total += size;
    if (size > c->largest) c->largest = size;
}
static void *counted_allocate(void *user, size_t size) {
    count_bytes((counted *)user, size);
    return malloc(size);
}
static void *counted_reallocate(void *user, void *block, size_t old_size, size_t new_size) {
    (void)old_size;
    count_bytes((counted *)user, new_size);
    return realloc(block, new_size);
}
static void counted_release(void *user, void *block) {
    (void)user;
    free(block);
}

/* What loading the folder, a forward pass over n_ids tokens and a generation as short ask for. */
static counted count_use(const char *dir, float *logits) {
    static const int32_t ids[n_ids] = {1, 5, 39, 7, 39, 22, 0, 38, 9};
    counted c = {0, 0};
    tsk_allocator allocator = {counted_allocate, counted_reallocate, counted_release, &c};
    tsk_model_options options = tsk_model_options_default();
    tsk_generate_options small = tsk_generate_options_default();
    tsk_model *model = NULL;
    tsk_session *session = NULL;
    tsk_result result;
    options.device = TSK_DEVICE_CPU;
    options.n_threads = 1;
    options.host.allocator = &allocator;
    small.gen_length = small.block_length = 8;
    CHECK_INT(tsk_model_load(dir, &options, &model, NULL), TSK_OK);
    CHECK_INT(tsk_session_create(model, &small, &session, NULL), TSK_OK);
    CHECK_INT(tsk_session_logits(session, ids, n_ids, 0, n_ids, logits, NULL), TSK_OK);
    CHECK_INT(tsk_generate(session, ids, n_ids, NULL, &result, NULL), TSK_OK);
    tsk_session_free(session);
    tsk_model_free(model);
    return c;
}

static void test_claimed_length(void) {
    static float real[n_ids * vocabulary], claimed[n_ids * vocabulary];
    counted little, much;
    fresh();
    little = count_use(write_folder(), real);
    set("max_sequence_length", "16777216");
    much = count_use(write_folder(), claimed);
    CHECK(memcmp(real, claimed, sizeof real) == 0);
    CHECK_INT(much.largest, little.largest);
    CHECK(much.total < little.total + 1000); /* (the text is longer) */
}

/* The lists of a folder that claims 4,096 layers end with those that it has. */
static void test_claimed_layers(void) {
    counted c = {0, 0};
    tsk_allocator allocator = {counted_allocate, counted_reallocate, counted_release, &c};
    tsk_host host = {&allocator, NULL, 0};
    tsk_folder *folder = NULL;
    fresh();
    CHECK_INT(tsk_folder_open(write_folder(), &host, &folder, NULL), TSK_OK);
    tsk_folder_free(folder);
    CHECK(c.total > 0 && c.total < 100000);
    c.total = c.largest = 0;
    set("n_layers", "4096");
    CHECK_INT(tsk_folder_open(write_folder(), &host, &folder, NULL), TSK_ERROR_TENSOR);
    CHECK(c.total > 0 && c.total < 100000);
}

/* ---- LLaDA-8B-Instruct's own config and index, over files with nothing in them */

static void check_big_folder(const char *dir, const tsk_json_value *map) {
    tsk_folder *folder = NULL;
    tsk_error error;
    const tsk_model_config *config;
    size_t i;
    memset(&error, 0, sizeof error);
    if (!test_check(tsk_folder_open(dir, NULL, &folder, &error) == TSK_OK, __FILE__, __LINE__, "%s", error.message))
        return;
    config = tsk_folder_config(folder);
    CHECK_INT(tsk_folder_count(folder), 291);
    CHECK(tsk_folder_weights_size(folder) == 16031162368u);
    /* what an estimate assumes before any file is there: bf16; 7,497,318,400 weights of 8 bits and an 8th, and the
       embedding; 2,128,609,280 of them so, the others of 4 bits and an 8th */
    CHECK(tsk__weights_size(config, TSK_WEIGHTS_AS_STORED) == 16031162368u);
    CHECK(tsk__weights_size(config, TSK_WEIGHTS_Q8) == 8650989568u);
    CHECK(tsk__weights_size(config, TSK_WEIGHTS_Q4) == 5966635008u);
    CHECK(config->d_model == 4096 && config->n_layers == 32 && config->n_heads == 32 && config->n_kv_heads == 32 &&
          config->head_dim == 128);
    CHECK(config->mlp_hidden_size == 12288 && config->vocab_size == 126464 && config->embedding_size == 126464 &&
          config->max_sequence_length == 4096);
    CHECK(config->mask_token_id == 126336 && config->eos_token_id == 126081 && config->pad_token_id == 126081);
    CHECK(config->rope_theta == 500000.0f && config->rms_norm_eps == 1e-5f && !config->weight_tying &&
          !config->qkv_bias && !config->linear_bias);
    CHECK_STRING(tsk_folder_get(folder, 0)->info->name, "model.transformer.wte.weight");
    CHECK_STRING(tsk_folder_get(folder, 290)->info->name, "model.transformer.ff_out.weight");
    for (i = 0; i < tsk_folder_count(folder); i++) {
        const tsk_folder_tensor *t = tsk_folder_get(folder, i);
        CHECK_STRING(t->shard, tsk_json_string(tsk_json_get(map, t->info->name), NULL));
    }
    tsk_folder_free(folder);
}

static void test_llada_8b(void) {
    tsk_json *index = golden_load("tests/golden/llada-8b-instruct/" INDEX);
    const tsk_json_value *map = tsk_json_get(tsk_json_root(index), "weight_map");
    uint64_t total = sparse_llada(tsk_test_temp_dir());
    CHECK(total == 16031162368u);
    CHECK_INT(tsk_json_count(map), 291);
    check_big_folder(tsk_test_temp_dir(), map);
    unlink(tsk_test_path("model-00004-of-00006.safetensors"));
    refuse_dir(tsk_test_temp_dir(), TSK_ERROR_IO, "model-00004-of-00006.safetensors", "No such file", "", __LINE__);
    tsk_json_free(index);
}

/* ---- options of loading */

static void refuse_options(tsk_model_options options, tsk_status status, const char *reason, int line) {
    tsk_model *model = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    test_check(tsk_model_load("tests/golden/models/mha-f32", &options, &model, &error) == status, __FILE__, line,
               "refused: %s", reason);
    test_check(!model && strstr(error.message, reason) != NULL, __FILE__, line, "\"%s\" lacks \"%s\"", error.message,
               reason);
    test_check(tsk_model_load("tests/golden/models/mha-f32", &options, &model, NULL) == status, __FILE__, line,
               "the same without a tsk_error: %s", reason);
}

static void test_options(void) {
    tsk_model_options good = tsk_model_options_default(), o;
    tsk_model *model = NULL;
    good.device = TSK_DEVICE_CPU;
#define REFUSE_OPTION(field, value, status, reason) \
    (o = good, o.field = (value), refuse_options(o, status, reason, __LINE__))
    REFUSE_OPTION(device, (tsk_device)9, TSK_ERROR_ARGUMENT, "device has no value 9");
    REFUSE_OPTION(device, TSK_DEVICE_CUDA, TSK_ERROR_DEVICE, "no CUDA device");
    REFUSE_OPTION(dtype, TSK_DTYPE_I8, TSK_ERROR_ARGUMENT, "not I8");
    REFUSE_OPTION(dtype, TSK_DTYPE_BF16, TSK_ERROR_UNSUPPORTED, "F32 only");
    REFUSE_OPTION(n_threads, 0, TSK_ERROR_ARGUMENT, "n_threads must be positive or TSK_AUTO, not 0");
    REFUSE_OPTION(n_threads, -2, TSK_ERROR_ARGUMENT, "n_threads");
    REFUSE_OPTION(device_index, -1, TSK_ERROR_ARGUMENT, "device_index");
#undef REFUSE_OPTION
    good.device = TSK_DEVICE_AUTO;
    CHECK_INT(tsk_model_load("tests/golden/models/mha-f32", &good, &model, NULL), TSK_OK);
    CHECK_CONTAINS(tsk_model_device_name(model), "thread");
    CHECK_CONTAINS(tsk_model_device_note(model), "CUDA");
    tsk_model_free(model);
    tsk_model_free(NULL);
}

int main(void) {
    static const char *const golden[] = {"mha-f32", "gqa-bf16", "odd-f16"};
    int i;
    check_golden_model("mha-f32", 3 + 4 * 9, TSK_DTYPE_F32);
    check_golden_model("gqa-bf16", 2 + 6 * 12, TSK_DTYPE_BF16);
    check_golden_model("odd-f16", 3 + 5 * 9, TSK_DTYPE_F16);
    for (i = 0; i < 3; i++) check_golden_reading(golden[i]);
    test_config_fields();
    test_config_relations();
    test_config_defaults();
    test_norm_bias();
    test_config_strangers();
    test_config_harmless();
    test_eos_ids();
    test_config_file();
    test_folder_names();
    test_tensors();
    test_quantised_tensors();
    test_cut_files();
    test_other_files();
    test_other_tokenizer();
    test_other_weights();
    test_links_and_folders();
    test_cut_after_loading();
    test_index();
    test_shards();
    test_index_strangers();
    test_storage();
    test_variants();
    test_claimed_length();
    test_claimed_layers();
    test_llada_8b();
    test_options();
    return test_end("test_config");
}
