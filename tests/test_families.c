/* The configurations of released models of every family beside LLaDA, over sparse files of their size: sizes, tensors
   and defaults are as their cards have them; every key that the network depends on must be there, and what the library
   does not compute is refused by name. */
#include "../tokenskip.h"
#include "golden.h"

#include <unistd.h>

typedef struct pair { const char *key, *value; } pair;

/* What is the same for Qwen's networks; the rest of a config.json follows. */
#define QWEN_COMMON \
    {"hidden_act", "\"silu\""}, {"rope_scaling", "null"}, {"use_sliding_window", "false"}, \
    {"attention_dropout", "0.0"}, {"initializer_range", "0.02"}, {"use_cache", "true"}, {"sliding_window", "null"}, \
    {"max_window_layers", "28"}, {"torch_dtype", "\"bfloat16\""}, {"transformers_version", "\"4.52.3\""}

static const pair sdar_8b[] = {
    {"architectures", "[\"SDARForCausalLM\"]"}, {"model_type", "\"sdar\""}, {"hidden_size", "4096"},
    {"num_hidden_layers", "36"}, {"num_attention_heads", "32"}, {"num_key_value_heads", "8"}, {"head_dim", "128"},
    {"intermediate_size", "12288"}, {"vocab_size", "151936"}, {"tie_word_embeddings", "false"},
    {"rope_theta", "1000000"}, {"rms_norm_eps", "1e-06"}, {"attention_bias", "false"}, {"block_size", "4"},
    {"mask_token_id", "151669"}, {"bos_token_id", "151643"}, {"eos_token_id", "151643"},
    {"max_position_embeddings", "32768"}, {"ep_size", "1"}, {"fuse_cross_entropy", "true"}, {"debug", "false"},
    {"auto_map", "{\"AutoModel\": \"modeling_sdar.SDARForCausalLM\"}"}, QWEN_COMMON, {NULL, NULL}};

static const pair sdar_17b[] = {
    {"architectures", "[\"SDARForCausalLM\"]"}, {"model_type", "\"sdar\""}, {"hidden_size", "2048"},
    {"num_hidden_layers", "28"}, {"num_attention_heads", "16"}, {"num_key_value_heads", "8"}, {"head_dim", "128"},
    {"intermediate_size", "6144"}, {"vocab_size", "151936"}, {"tie_word_embeddings", "true"},
    {"rope_parameters", "{\"rope_type\": \"default\", \"rope_theta\": 1000000.0}"}, {"rms_norm_eps", "1e-06"},
    {"attention_bias", "false"}, {"block_size", "16"}, {"mask_token_id", "151669"}, {"eos_token_id", "151643"},
    {"max_position_embeddings", "32768"}, {"dtype", "\"bfloat16\""}, QWEN_COMMON, {NULL, NULL}};

static const pair fast_7b[] = {
    {"architectures", "[\"Fast_dLLM_QwenForCausalLM\"]"}, {"model_type", "\"Fast_dLLM_Qwen\""}, {"hidden_size", "3584"},
    {"num_hidden_layers", "28"}, {"num_attention_heads", "28"}, {"num_key_value_heads", "4"},
    {"intermediate_size", "18944"}, {"vocab_size", "152064"}, {"tie_word_embeddings", "false"},
    {"rope_theta", "1000000.0"}, {"rms_norm_eps", "1e-06"}, {"bd_size", "32"}, {"bos_token_id", "151643"},
    {"eos_token_id", "151645"}, {"max_position_embeddings", "32768"},
    {"layer_types", "[\"full_attention\", \"full_attention\"]"}, QWEN_COMMON, {NULL, NULL}};

static const pair dream_7b[] = {
    {"architectures", "[\"DreamModel\"]"}, {"model_type", "\"Dream\""}, {"hidden_size", "3584"},
    {"num_hidden_layers", "28"}, {"num_attention_heads", "28"}, {"num_key_value_heads", "4"},
    {"intermediate_size", "18944"}, {"vocab_size", "152064"}, {"tie_word_embeddings", "false"},
    {"rope_theta", "1000000.0"}, {"rms_norm_eps", "1e-06"}, {"mask_token_id", "151666"}, {"bos_token_id", "151643"},
    {"eos_token_id", "151643"}, {"pad_token_id", "151643"}, {"max_position_embeddings", "131072"}, QWEN_COMMON,
    {NULL, NULL}};

typedef struct released {
    const char *name;
    const pair *config;
    tsk_family family;
    int32_t d, layers, heads, kv_heads, head_dim, mlp, vocabulary, mask, block;
    int has_norms, has_biases, is_tied;
    int n_tensors;
    uint64_t bytes;
} released;

static const released models[] = {
    {"SDAR-8B", sdar_8b, TSK_FAMILY_SDAR, 4096, 36, 32, 8, 128, 12288, 151936, 151669, 4, 1, 0, 0, 399,
     /* Qwen3-8B's 8,190,735,360 values */ UINT64_C(8190735360) * 2},
    {"SDAR-1.7B", sdar_17b, TSK_FAMILY_SDAR, 2048, 28, 16, 8, 128, 6144, 151936, 151669, 16, 1, 0, 1, 310,
     /* Qwen3-1.7B's 1,720,574,976 */ UINT64_C(1720574976) * 2},
    {"Fast-dLLM v2 7B", fast_7b, TSK_FAMILY_FAST_DLLM_V2, 3584, 28, 28, 4, 128, 18944, 152064, 151665, 32, 0, 1, 0, 339,
     /* Qwen2.5-7B's 7,615,616,512 */ UINT64_C(7615616512) * 2},
    {"Dream-7B", dream_7b, TSK_FAMILY_DREAM, 3584, 28, 28, 4, 128, 18944, 152064, 151666, 0, 0, 1, 0, 339,
     UINT64_C(7615616512) * 2}};
enum { n_models = sizeof models / sizeof models[0] };

/* ---- writing folders */

/* config.json with one key more, or another value (NULL: without it). */
static void write_config(const pair *config, const char *key, const char *value) {
    tsk_text text;
    int found = 0;
    memset(&text, 0, sizeof text);
    tsk_text_append(&text, "{", 1);
    for (; config->key || (key && value && !found); config += config->key != NULL) {
        int is_changed = !config->key || (key && strcmp(config->key, key) == 0);
        const char *name = config->key ? config->key : key, *written = is_changed ? value : config->value;
        found |= is_changed;
        if (!written) continue;
        if (text.length > 1) tsk_text_append(&text, ",\n", 2);
        tsk_text_append(&text, "\"", 1);
        tsk_text_append(&text, name, strlen(name));
        tsk_text_append(&text, "\": ", 3);
        tsk_text_append(&text, written, strlen(written));
    }
    tsk_text_append(&text, "}\n", 2);
    write_file(tsk_test_path("config.json"), text.data, text.length);
    tsk_text_free(&text);
}

enum { n_shards = 3, max_header = 1 << 18 };

typedef struct shard {
    char header[max_header];
    size_t used;
    uint64_t size;
} shard;

static shard shards[n_shards];
static char index_text[1 << 18];
static size_t index_used;
static int n_written;

/* One more tensor, in one of the shards by turns; cols 0: a vector. */
static void add(const char *name, int32_t rows, int32_t cols) {
    int number = n_written++ % n_shards;
    shard *s = &shards[number];
    uint64_t size = 2 * (uint64_t)rows * (uint64_t)(cols ? cols : 1);
    char shape[64];
    snprintf(shape, sizeof shape, cols ? "%d, %d" : "%d", (int)rows, (int)cols);
    s->used += (size_t)snprintf(s->header + s->used, max_header - s->used,
                                "%s\"%s\": {\"dtype\": \"BF16\", \"shape\": [%s], \"data_offsets\": [%llu, %llu]}",
                                s->used ? ", " : "{", name, shape, (unsigned long long)s->size,
                                (unsigned long long)(s->size + size));
    s->size += size;
    index_used += (size_t)snprintf(index_text + index_used, sizeof index_text - index_used,
                                   "%s\"%s\": \"model-%05d-of-%05d.safetensors\"", index_used ? ",\n" : "", name,
                                   number + 1, (int)n_shards);
}

static void add_in_layer(int32_t layer, const char *name, int32_t rows, int32_t cols) {
    char full[96];
    snprintf(full, sizeof full, "model.layers.%d.%s", (int)layer, name);
    add(full, rows, cols);
}

static void write_shard(int number) {
    char name[64];
    unsigned char length[8];
    shard *s = &shards[number];
    FILE *file;
    int i;
    s->header[s->used++] = '}';
    for (i = 0; i < 8; i++) length[i] = (unsigned char)(s->used >> 8 * i & 0xff);
    snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", number + 1, (int)n_shards);
    file = fopen(tsk_test_path(name), "wb");
    if (!file || fwrite(length, 1, 8, file) != 8 || fwrite(s->header, 1, s->used, file) != s->used ||
        fflush(file) != 0 || ftruncate(fileno(file), (off_t)(8 + s->used + s->size)) != 0)
        exit(2);
    fclose(file);
}

/* The index, and shards with holes for data. */
static void write_tensors(const released *m) {
    static const char *const qkv[] = {"q", "k", "v"};
    int32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim, layer;
    char name[64];
    tsk_text text;
    int i;
    memset(shards, 0, sizeof shards);
    index_used = 0;
    n_written = 0;
    add("model.embed_tokens.weight", m->vocabulary, m->d);
    for (layer = 0; layer < m->layers; layer++) {
        add_in_layer(layer, "input_layernorm.weight", m->d, 0);
        for (i = 0; i < 3; i++) {
            snprintf(name, sizeof name, "self_attn.%s_proj.weight", qkv[i]);
            add_in_layer(layer, name, i ? kv : q, m->d);
            snprintf(name, sizeof name, "self_attn.%s_proj.bias", qkv[i]);
            if (m->has_biases) add_in_layer(layer, name, i ? kv : q, 0);
            snprintf(name, sizeof name, "self_attn.%s_norm.weight", qkv[i]);
            if (m->has_norms && i < 2) add_in_layer(layer, name, m->head_dim, 0);
        }
        add_in_layer(layer, "self_attn.o_proj.weight", m->d, q);
        add_in_layer(layer, "post_attention_layernorm.weight", m->d, 0);
        add_in_layer(layer, "mlp.gate_proj.weight", m->mlp, m->d);
        add_in_layer(layer, "mlp.up_proj.weight", m->mlp, m->d);
        add_in_layer(layer, "mlp.down_proj.weight", m->d, m->mlp);
    }
    add("model.norm.weight", m->d, 0);
    if (!m->is_tied) add("lm_head.weight", m->vocabulary, m->d);
    for (i = 0; i < n_shards; i++) write_shard(i);
    memset(&text, 0, sizeof text);
    tsk_text_append(&text, "{\"metadata\": {\"total_size\": 1e3}, \"weight_map\": {", 49);
    tsk_text_append(&text, index_text, index_used);
    tsk_text_append(&text, "}}\n", 3);
    write_file(tsk_test_path("model.safetensors.index.json"), text.data, text.length);
    tsk_text_free(&text);
}

/* ---- released models */

static void check_released(const released *m) {
    tsk_folder *folder = NULL;
    tsk_memory_query query = tsk_memory_query_default();
    tsk_memory memory;
    const tsk_model_config *c;
    tsk_error error;
    memset(&error, 0, sizeof error);
    write_config(m->config, NULL, NULL);
    write_tensors(m);
    if (!test_check(tsk_folder_open(tsk_test_temp_dir(), NULL, &folder, &error) == TSK_OK, __FILE__, __LINE__, "%s: %s",
                    m->name, error.message))
        return;
    c = tsk_folder_config(folder);
    CHECK_INT(c->family, m->family);
    CHECK(strncmp(m->name, tsk_family_name(c->family), strlen(tsk_family_name(c->family))) == 0);
    CHECK(c->d_model == m->d && c->n_layers == m->layers && c->n_heads == m->heads && c->n_kv_heads == m->kv_heads);
    CHECK(c->head_dim == m->head_dim && c->mlp_hidden_size == m->mlp && c->vocab_size == m->vocabulary);
    CHECK(c->embedding_size == m->vocabulary && c->mask_token_id == m->mask && c->block_length == m->block);
    CHECK(c->rope_theta == 1e6f && c->rms_norm_eps == 1e-6f && !c->weight_tying == !m->is_tied);
    CHECK(!c->qkv_bias == !m->has_biases && !c->linear_bias && tsk_config_by_blocks(c) == (m->block > 0));
    CHECK_INT(tsk_folder_count(folder), m->n_tensors);
    CHECK(tsk_folder_weights_size(folder) == m->bytes);
    query.config = c;
    query.dtype = TSK_DTYPE_BF16;
    query.canvas = 1280;
    CHECK_INT(tsk_memory_estimate(&query, &memory, &error), TSK_OK);
    CHECK(memory.weights == m->bytes);
    CHECK(memory.cache == (uint64_t)2 * 2 * (uint64_t)(m->layers * m->kv_heads * m->head_dim) * 1280);
    tsk_folder_free(folder);
}

/* A head beside an embedding that is the head is not used; without either, a head is missing. */
static void test_heads(void) {
    released m = models[1];
    tsk_folder *folder = NULL;
    tsk_error error;
    m.is_tied = 0;
    write_config(m.config, NULL, NULL);
    write_tensors(&m);
    CHECK_INT(tsk_folder_open(tsk_test_temp_dir(), NULL, &folder, &error), TSK_OK);
    CHECK_INT(tsk_folder_count(folder), 310);
    tsk_folder_free(folder);
    m.is_tied = 1;
    write_config(m.config, "tie_word_embeddings", "false");
    write_tensors(&m);
    CHECK_INT(tsk_folder_open(tsk_test_temp_dir(), NULL, &folder, &error), TSK_ERROR_TENSOR);
    CHECK_CONTAINS(error.message, "'lm_head.weight' is missing");
    m.is_tied = 0, m.has_norms = 0;
    write_tensors(&m);
    CHECK_INT(tsk_folder_open(tsk_test_temp_dir(), NULL, &folder, &error), TSK_ERROR_TENSOR);
    CHECK_CONTAINS(error.message, "'model.layers.0.self_attn.q_norm.weight' is missing");
    m.has_norms = m.has_biases = 1;
    write_tensors(&m);
    CHECK_INT(tsk_folder_open(tsk_test_temp_dir(), NULL, &folder, &error), TSK_ERROR_TENSOR);
    CHECK_CONTAINS(error.message, "bias' is not part of this architecture");
}

/* ---- what must be there, and what is refused */

/* With `line` below 0 the message speaks of another field, or names it otherwise. */
static void refuse(const pair *config, const char *key, const char *value, tsk_status status, const char *why,
                   int line) {
    tsk_model_config c;
    tsk_error error;
    memset(&error, 0, sizeof error);
    write_config(config, key, value);
    test_check(tsk_config_load(tsk_test_temp_dir(), NULL, &c, &error) == status, __FILE__, line, "%s: %s", key,
               error.message);
    test_check(strstr(error.message, why) && (line < 0 || strstr(error.message, key)), __FILE__, line,
               "\"%s\" lacks \"%s\" or %s", error.message, why, key);
    test_check(strstr(error.file, "config.json") != NULL, __FILE__, line, "%s: no file", key);
}

static void accept(const pair *config, const char *key, const char *value, int line) {
    tsk_model_config c;
    tsk_error error;
    write_config(config, key, value);
    test_check(tsk_config_load(tsk_test_temp_dir(), NULL, &c, &error) == TSK_OK, __FILE__, line, "%s: %s", key,
               error.message);
}

static void test_required(void) {
    static const char *const common[] = {"hidden_size", "num_hidden_layers", "num_attention_heads",
                                         "num_key_value_heads", "intermediate_size", "vocab_size",
                                         "tie_word_embeddings", "rms_norm_eps", "max_position_embeddings"};
    size_t i;
    int m;
    for (m = 0; m < n_models; m++)
        for (i = 0; i < sizeof common / sizeof common[0]; i++) {
            refuse(models[m].config, common[i], NULL, TSK_ERROR_CONFIG, "is missing", __LINE__);
            refuse(models[m].config, common[i], "null", TSK_ERROR_CONFIG, "must be", __LINE__);
            refuse(models[m].config, common[i], "\"many\"", TSK_ERROR_CONFIG, "must be", __LINE__);
        }
    for (m = 0; m < n_models; m++) {
        refuse(models[m].config, "hidden_act", NULL, TSK_ERROR_UNSUPPORTED, "is missing; only \"silu\"", __LINE__);
        refuse(models[m].config, "eos_token_id", NULL, TSK_ERROR_CONFIG, "is missing", __LINE__);
    }
    refuse(sdar_8b, "rope_theta", NULL, TSK_ERROR_CONFIG, "is missing", __LINE__);
    refuse(sdar_17b, "rope_parameters", "{\"rope_type\": \"default\"}", TSK_ERROR_CONFIG, "\"rope_theta\" is missing",
           -__LINE__);
    refuse(sdar_8b, "block_size", NULL, TSK_ERROR_CONFIG, "is missing", __LINE__);
    refuse(sdar_8b, "block_size", "0", TSK_ERROR_CONFIG, "from 1 to 4096", __LINE__);
    refuse(sdar_8b, "mask_token_id", NULL, TSK_ERROR_CONFIG, "is missing", __LINE__);
    refuse(sdar_8b, "attention_bias", NULL, TSK_ERROR_UNSUPPORTED, "is missing; only false is supported", __LINE__);
    refuse(fast_7b, "bd_size", NULL, TSK_ERROR_CONFIG, "is missing", __LINE__);
    refuse(fast_7b, "layer_types", NULL, TSK_ERROR_CONFIG, "is missing", __LINE__);
    /* what has a value of its own */
    accept(sdar_8b, "head_dim", NULL, __LINE__); /* 4096 / 32 */
    accept(fast_7b, "mask_token_id", "7", __LINE__);
    accept(sdar_8b, "use_sliding_window", NULL, __LINE__);
}

static void test_refused(void) {
    int m;
    for (m = 0; m < n_models; m++) {
        const pair *c = models[m].config;
        refuse(c, "use_sliding_window", "true", TSK_ERROR_UNSUPPORTED, "true is not supported", __LINE__);
        refuse(c, "rope_scaling", "{\"rope_type\": \"yarn\", \"factor\": 4.0}", TSK_ERROR_UNSUPPORTED, "yarn",
               __LINE__);
        refuse(c, "quantization_config", "{\"quant_method\": \"hqq\"}", TSK_ERROR_UNSUPPORTED, "hqq", __LINE__);
        refuse(c, "hidden_act", "\"gelu\"", TSK_ERROR_UNSUPPORTED, "only \"silu\" is supported", __LINE__);
        refuse(c, "layer_types", "[\"full_attention\", \"sliding_attention\"]", TSK_ERROR_UNSUPPORTED,
               "names \"sliding_attention\"", __LINE__);
        refuse(c, "layer_types", "[7]", TSK_ERROR_CONFIG, "a list of names", __LINE__);
        refuse(c, "architectures", "[\"LLaDAModelLM\"]", TSK_ERROR_UNSUPPORTED, "names \"LLaDAModelLM\"", __LINE__);
        refuse(c, "num_key_value_heads", "5", TSK_ERROR_CONFIG, "not a multiple of n_kv_heads 5", -__LINE__);
        refuse(c, "mask_token_id", "999999", TSK_ERROR_CONFIG, "outside the vocabulary", __LINE__);
        refuse(c, "head_dim", "127", TSK_ERROR_CONFIG, "odd", -__LINE__);
        accept(c, "rope_scaling", "{\"rope_type\": \"default\"}", __LINE__);
        accept(c, "head_dim", "64", __LINE__);
    }
    refuse(dream_7b, "mask_token_id", NULL, TSK_ERROR_CONFIG, "is missing", __LINE__);
    refuse(dream_7b, "architectures", "[\"DreamForCausalLM\"]", TSK_ERROR_UNSUPPORTED,
           "names \"DreamForCausalLM\"; only \"DreamModel\" is supported", __LINE__); /* DreamReasoner */
    refuse(sdar_8b, "model_type", "\"sdar_moe\"", TSK_ERROR_UNSUPPORTED, "\"sdar_moe\"; only \"llada\", \"sdar\"",
           __LINE__);
    refuse(sdar_8b, "attention_bias", "true", TSK_ERROR_UNSUPPORTED, "true is not supported", __LINE__);
    refuse(sdar_8b, "use_regular_causal", "true", TSK_ERROR_UNSUPPORTED, "true is not supported", __LINE__);
    refuse(sdar_8b, "rope_parameters", "{\"rope_type\": \"default\", \"rope_theta\": 10000}", TSK_ERROR_UNSUPPORTED,
           "other than the configuration's", __LINE__);
    accept(sdar_8b, "rope_parameters", "{\"rope_type\": \"default\", \"rope_theta\": 1000000}", __LINE__);
    refuse(fast_7b, "hidden_size", "3600", TSK_ERROR_CONFIG, "heads do not share out hidden_size", -__LINE__);
}

int main(void) {
    int i;
    for (i = 0; i < n_models; i++) check_released(&models[i]);
    test_heads();
    test_required();
    test_refused();
    return test_end("test_families");
}
