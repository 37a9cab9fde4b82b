/* >>family and >>weights: which weights a configuration implies, in what order and under which names; that the loader
   hands over each of them once, as its source has it; random values against Philox. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "../src/model.h"
#include "test.h"

enum { layers = 3, heads = 4, kv_heads = 2, head = 6, width = heads * head, mlp = 11, vocabulary = 20 };

static tsk_model_config config_of(int qkv_bias, int linear_bias, int tied) {
    tsk_model_config c;
    memset(&c, 0, sizeof c);
    c.d_model = width, c.n_layers = layers, c.n_heads = heads, c.n_kv_heads = kv_heads, c.head_dim = head;
    c.mlp_hidden_size = mlp, c.vocab_size = c.embedding_size = vocabulary, c.max_sequence_length = 64;
    c.mask_token_id = 1, c.rope_theta = 10000, c.rms_norm_eps = 1e-5f;
    c.qkv_bias = qkv_bias, c.linear_bias = linear_bias, c.weight_tying = tied;
    return c;
}

/* ---- what a configuration implies */

/* A weight as LLaDA's files have it: bias 'q' or 'l' with one of the two kinds, '-' never. */
typedef struct expected { const char *name; int rows, cols; char bias; } expected;

static const expected in_layer[] = {
    {"attn_norm", width, 1, '-'}, {"q_proj", width, width, 'q'}, {"k_proj", kv_heads * head, width, 'q'},
    {"v_proj", kv_heads * head, width, 'q'}, {"attn_out", width, width, 'l'}, {"ff_norm", width, 1, '-'},
    {"ff_proj", mlp, width, 'l'}, {"up_proj", mlp, width, 'l'}, {"ff_out", width, mlp, 'l'}};

/* The same as Qwen's networks have them; of q_norm and k_norm 'n': where they are normed. The heads' size is not
   width / heads. */
enum { own_head = 10 };
static const expected in_qwen_layer[] = {
    {"input_layernorm", width, 1, '-'}, {"self_attn.q_proj", heads * own_head, width, 'q'},
    {"self_attn.k_proj", kv_heads * own_head, width, 'q'}, {"self_attn.v_proj", kv_heads * own_head, width, 'q'},
    {"self_attn.q_norm", own_head, 1, 'n'}, {"self_attn.k_norm", own_head, 1, 'n'},
    {"self_attn.o_proj", width, heads * own_head, '-'}, {"post_attention_layernorm", width, 1, '-'},
    {"mlp.gate_proj", mlp, width, '-'}, {"mlp.up_proj", mlp, width, '-'}, {"mlp.down_proj", width, mlp, '-'}};

typedef struct walk { const tsk_model_config *config; tsk__weight_id id; int more; } walk;

/* The walk stands at this weight, and at its bias after it where there is one. */
static void expect(walk *w, const char *prefix, const expected *e) {
    const tsk_model_config *c = w->config;
    int has_bias = (e->bias == 'q' && c->qkv_bias) || (e->bias == 'l' && c->linear_bias), bias;
    for (bias = 0; bias <= has_bias; bias++) {
        char name[TSK__FAMILY_NAME], want[100];
        uint64_t shape[2];
        if (!CHECK(w->more)) return;
        snprintf(want, sizeof want, "%s%s.%s", prefix, e->name, bias ? "bias" : "weight");
        tsk__family_name(c, &w->id, name);
        tsk__family_shape(c, &w->id, shape);
        CHECK_STRING(name, want);
        CHECK_INT(shape[0], e->rows);
        CHECK_INT(shape[1], bias ? 1 : e->cols);
        CHECK_INT(tsk__family_is_vector(c, &w->id), bias || e->cols == 1);
        w->more = tsk__family_next(c, &w->id);
    }
}

static void check_walk(int qkv_bias, int linear_bias, int tied) {
    static const expected embedding = {"wte", vocabulary, width, '-'}, norm = {"ln_f", width, 1, '-'},
                          output = {"ff_out", vocabulary, width, 'l'};
    tsk_model_config c = config_of(qkv_bias, linear_bias, tied);
    char prefix[40];
    int layer;
    size_t part;
    walk w;
    w.config = &c, w.id = tsk__family_first(), w.more = 1;
    expect(&w, "model.transformer.", &embedding);
    for (layer = 0; layer < layers; layer++) {
        snprintf(prefix, sizeof prefix, "model.transformer.blocks.%d.", layer);
        for (part = 0; part < sizeof in_layer / sizeof *in_layer; part++) expect(&w, prefix, &in_layer[part]);
    }
    expect(&w, "model.transformer.", &norm);
    if (!tied) expect(&w, "model.transformer.", &output);
    CHECK(!w.more);
}

static void check_qwen_walk(tsk_family family, int has_norms, int qkv_bias, int tied) {
    static const expected embedding = {"embed_tokens", vocabulary, width, '-'}, norm = {"norm", width, 1, '-'},
                          output = {"lm_head", vocabulary, width, '-'};
    tsk_model_config c = config_of(qkv_bias, 0, tied);
    char prefix[40];
    int layer;
    size_t part;
    walk w;
    c.family = family, c.head_dim = own_head, c.block_length = 4;
    w.config = &c, w.id = tsk__family_first(), w.more = 1;
    expect(&w, "model.", &embedding);
    for (layer = 0; layer < layers; layer++) {
        snprintf(prefix, sizeof prefix, "model.layers.%d.", layer);
        for (part = 0; part < sizeof in_qwen_layer / sizeof *in_qwen_layer; part++)
            if (in_qwen_layer[part].bias != 'n' || has_norms) expect(&w, prefix, &in_qwen_layer[part]);
    }
    expect(&w, "model.", &norm);
    if (!tied) expect(&w, "", &output);
    CHECK(!w.more);
}

/* Every place of the table belongs to one weight. */
static void test_index(void) {
    tsk_model_config c = config_of(0, 0, 1);
    int taken[3 + layers * TSK__PART_COUNT], layer, part;
    size_t i;
    memset(taken, 0, sizeof taken);
    if (!CHECK_INT(tsk__family_count(&c), sizeof taken / sizeof *taken)) return;
    for (layer = -1; layer < layers; layer++)
        for (part = layer < 0 ? TSK__PART_COUNT : 0; part < (layer < 0 ? TSK__PART_ALL : TSK__PART_COUNT); part++) {
            size_t at = tsk__family_index(&c, layer, (tsk__part)part, 0);
            if (CHECK(at < sizeof taken / sizeof *taken)) taken[at]++;
        }
    for (i = 0; i < sizeof taken / sizeof *taken; i++) CHECK_INT(taken[i], 1);
}

/* A configuration that a host program made may name no family at all. */
static void test_no_family(void) {
    static const int values[] = {-1, TSK__FAMILIES, 1000};
    size_t i;
    for (i = 0; i < sizeof values / sizeof *values; i++) {
        tsk_model_config c = config_of(0, 0, 0);
        tsk_model *model = NULL;
        tsk_error error;
        memset(&error, 0, sizeof error);
        memcpy(&c.family, &values[i], sizeof c.family); /* no value of the type */
        CHECK_INT(tsk_model_random(&c, 1, NULL, &model, &error), TSK_ERROR_CONFIG);
        CHECK_CONTAINS(error.message, "family has no value");
        CHECK(!model);
    }
}

/* ---- random values */

/* Element i of the model's matrix `number`: 16 bits of a Philox word on [-scale, scale), rounded to bf16. */
static uint16_t value_of(uint64_t seed, uint32_t number, uint64_t i, float scale) {
    uint32_t counter[4], key[2], words[4], bits;
    float value;
    counter[0] = (uint32_t)(i / 8), counter[1] = 0, counter[2] = number, counter[3] = 2;
    key[0] = (uint32_t)seed, key[1] = (uint32_t)(seed >> 32);
    tsk_philox4x32(counter, key, words);
    value = scale * ((float)(words[i % 8 / 2] >> (i % 2 * 16) & 0xffff) / 32768.0f - 1.0f);
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Whole or in pieces from anywhere, alone or with helpers, the values are the same. */
static void check_random(const tsk__source *source, tsk__weight_id id, uint32_t number, uint64_t rows, uint64_t cols) {
    static uint16_t values[300 * 300];
    const float scale = sqrtf(3.0f / (float)cols);
    tsk__stored stored;
    uint64_t i, wrong = 0, first, count;
    source->find(source, &id, &stored);
    CHECK_INT(stored.dtype, TSK_DTYPE_BF16);
    CHECK_INT(stored.rows, rows);
    CHECK_INT(stored.cols, cols);
    CHECK_INT(stored.size, rows * cols * 2);
    CHECK(stored.is_made && !stored.data);
    for (first = 0; first < rows * cols; first += count) {
        count = first % 3 ? 70001 : 13;
        if (count > rows * cols - first) count = rows * cols - first;
        CHECK(source->read(source, &stored, first * 2, values + first, (size_t)count * 2, NULL) == TSK_OK);
    }
    for (i = 0; i < rows * cols; i++) wrong += values[i] != value_of(source->seed, number, i, scale);
    CHECK_INT(wrong, 0);
}

static void test_random_source(void) {
    tsk_model_config c = config_of(0, 0, 0);
    tsk__source source;
    tsk__stored stored;
    tsk__weight_id norm = tsk__weight_id_of(2, TSK__PART_FF_NORM, 0);
    float ones[width];
    int helped, i;
    c.embedding_size = c.vocab_size = 300, c.d_model = 288, c.head_dim = 72;
    source = tsk__source_of_random(&c, UINT64_C(0x123456789));
    for (helped = 0; helped < 2; helped++) {
        source.pool = helped ? tsk__pool_create(NULL, 3) : NULL;
        check_random(&source, tsk__weight_id_of(-1, TSK__PART_EMBEDDING, 0), 0, 300, 288);
        check_random(&source, tsk__weight_id_of(0, TSK__PART_Q, 0), 1, 288, 288);
        check_random(&source, tsk__weight_id_of(2, TSK__PART_FF_OUT, 0), 21, 288, mlp); /* seven matrices a layer */
        check_random(&source, tsk__weight_id_of(-1, TSK__PART_HEAD, 0), 22, 300, 288);
        if (source.pool) tsk__pool_destroy(NULL, source.pool);
    }
    source.find(&source, &norm, &stored);
    CHECK_INT(stored.dtype, TSK_DTYPE_F32);
    CHECK_INT(stored.size, 288 * 4);
    CHECK(source.read(&source, &stored, 0, ones, sizeof ones, NULL) == TSK_OK);
    for (i = 0; i < width; i++) CHECK(ones[i] == 1.0f);
}

/* ---- the loader */

typedef struct sink { tsk_folder *folder; size_t n, until; uint64_t bytes; } sink;

/* The folder's next tensor: what is handed over has its name, type, shape and bytes. */
static tsk_status take(void *backend, const tsk__weight_id *id, const tsk__stored *stored, tsk_error *error) {
    sink *s = (sink *)backend;
    const tsk_folder_tensor *tensor = tsk_folder_get(s->folder, s->n);
    tsk_safetensors *file = NULL;
    char name[TSK__FAMILY_NAME], path[200];
    char *bytes = (char *)malloc((size_t)stored->size);
    if (s->n == s->until) {
        free(bytes);
        return tsk__error_set(error, TSK_ERROR_CANCELLED, NULL, TSK_NO_OFFSET, "enough");
    }
    s->n++;
    s->bytes += stored->size;
    tsk__family_name(tsk_folder_config(s->folder), id, name);
    CHECK_STRING(name, tensor->info->name);
    CHECK_STRING(stored->name, name);
    CHECK_INT(stored->dtype, tensor->info->dtype);
    CHECK_INT(stored->rows, tensor->info->shape[0]);
    CHECK_INT(stored->cols, tensor->info->n_dims == 2 ? tensor->info->shape[1] : 1);
    CHECK_INT(stored->size, tensor->info->size);
    snprintf(path, sizeof path, "tests/golden/models/gqa-bf16/%s", tensor->shard);
    if (bytes && CHECK(tsk_safetensors_open(path, NULL, &file, NULL) == TSK_OK) && CHECK(stored->data != NULL)) {
        const tsk_tensor_info *info = tsk_safetensors_find(file, name);
        CHECK(tsk_safetensors_read(file, info, 0, bytes, (size_t)info->size, NULL) == TSK_OK);
        CHECK(memcmp(bytes, stored->data, (size_t)info->size) == 0);
    }
    tsk_safetensors_free(file);
    free(bytes);
    return TSK_OK;
}

static void test_loader(void) {
    tsk__source source;
    tsk_error error;
    sink s;
    memset(&s, 0, sizeof s), memset(&error, 0, sizeof error);
    if (!CHECK(tsk_folder_open("tests/golden/models/gqa-bf16", NULL, &s.folder, NULL) == TSK_OK)) return;
    source = tsk__source_of_folder(s.folder);
    s.until = SIZE_MAX;
    CHECK(tsk__weights_load(&source, take, &s, &error) == TSK_OK);
    CHECK_INT(s.n, tsk_folder_count(s.folder));
    CHECK_INT(s.bytes, tsk_folder_weights_size(s.folder));
    CHECK_INT(tsk__weights_total(&source), tsk_folder_weights_size(s.folder));
    s.n = 0, s.until = 5; /* a backend that fails is handed nothing more */
    CHECK(tsk__weights_load(&source, take, &s, &error) == TSK_ERROR_CANCELLED);
    CHECK_INT(s.n, 5);
    tsk_folder_free(s.folder);
}

/* ---- on the CPU: in place where that can be, else copied; the values are the tensor's either way */

static void test_cpu_places(void) {
    tsk_model_options options = tsk_model_options_default();
    tsk_model *model = NULL;
    tsk_model_config c;
    const tsk__cpu_model *cpu;
    int32_t layer;
    int part;
    options.device = TSK_DEVICE_CPU;
    options.n_threads = 1;
    if (!CHECK(tsk_model_load("tests/golden/models/gqa-bf16", &options, &model, NULL) == TSK_OK)) return;
    c = *tsk_model_get_config(model);
    cpu = &((tsk__cpu_backend *)(void *)model->backend)->model;
    for (layer = 0; layer < c.n_layers; layer++)
        for (part = 0; part < (int)TSK__PART_COUNT; part++) {
            tsk__weight_id id = tsk__weight_id_of(layer, (tsk__part)part, 0);
            const tsk__weight *w = tsk__cpu_weight(cpu, layer, (tsk__part)part);
            const tsk_safetensors *file;
            const tsk_tensor_info *info = tsk__folder_find_role(model->folder, &id, TSK__ROLE_VALUES, &file, NULL);
            const char *mapped = info ? (const char *)tsk_safetensors_data(file, info) : NULL;
            if (!tsk__family_has(&c, &id)) {
                CHECK(!info && !w->data);
                continue;
            }
            CHECK_INT(w->rows, info->shape[0]);
            if (tsk__family_is_vector(&c, &id)) {
                CHECK_INT(w->dtype, TSK_DTYPE_F32);
                CHECK(((const float *)w->data)[3] == tsk__float_from_bf16(((const uint16_t *)(const void *)mapped)[3]));
            } else CHECK(w->data == mapped || (uintptr_t)mapped % 2 != 0);
            CHECK(!w->bias == !(c.qkv_bias && part >= (int)TSK__PART_Q && part <= (int)TSK__PART_V));
        }
    tsk_model_free(model);
}

int main(void) {
    int i;
    for (i = 0; i < 8; i++) check_walk(i & 1, i >> 1 & 1, i >> 2 & 1);
    for (i = 0; i < 2; i++) {
        check_qwen_walk(TSK_FAMILY_SDAR, 1, 0, i);
        check_qwen_walk(TSK_FAMILY_FAST_DLLM_V2, 0, 1, i);
        check_qwen_walk(TSK_FAMILY_DREAM, 0, 1, i);
    }
    test_index();
    test_no_family();
    test_random_source();
    test_loader();
    test_cpu_places();
    return test_end("test_weights");
}
