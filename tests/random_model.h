/* Small models of random weights, of any shape that the library takes, biases included: config.json and bf16
   safetensors in a folder of their own, so that every backend reads the same. For tests that include the
   implementation. */
#ifndef TSK_RANDOM_MODEL_H
#define TSK_RANDOM_MODEL_H

#include "seeded.h"

typedef struct shape {
    const char *name;
    int32_t d, layers, heads, kv_heads, mlp, vocabulary;
    int qkv_bias, linear_bias, tied;
    float head_gain;           /* 1: logits of variance 1, whose confidences are all small */
} shape;

static TEST_UNUSED void must(tsk_status status, const tsk_error *error) {
    if (status == TSK_OK) return;
    printf("%s: %s\n", tsk_status_string(status), error ? error->message : "");
    exit(2);
}

static TEST_UNUSED tsk_model_config config_of(const shape *s) {
    tsk_model_config c;
    memset(&c, 0, sizeof c);
    c.d_model = s->d, c.n_layers = s->layers, c.n_heads = s->heads, c.n_kv_heads = s->kv_heads,
    c.head_dim = s->d / s->heads, c.mlp_hidden_size = s->mlp;
    c.vocab_size = c.embedding_size = s->vocabulary;
    c.max_sequence_length = 1024;
    c.mask_token_id = s->vocabulary - 2, c.eos_token_id = s->vocabulary - 1, c.pad_token_id = s->vocabulary - 1;
    c.rope_theta = 10000.0f, c.rms_norm_eps = 1e-5f;
    c.qkv_bias = s->qkv_bias || s->linear_bias, c.linear_bias = s->linear_bias, c.weight_tying = s->tied;
    return c;
}

static TEST_UNUSED void write_random_tensor(tsk_safetensors_writer *writer, const tsk_model_config *c, const shape *s,
                                            const tsk__weight_id *id) {
    char name[TSK__FAMILY_NAME];
    int part = id->part, is_vector = tsk__family_is_vector(c, id);
    uint64_t dims[2], count, i;
    float scale, middle;
    uint16_t *values;
    tsk_error error;
    memset(&error, 0, sizeof error);
    tsk__family_name(c, id, name);
    tsk__family_shape(c, id, dims);
    count = dims[0] * dims[1];
    middle = is_vector && !id->is_bias ? 1.0f : 0.0f;  /* norms */
    scale = is_vector ? 0.3f : part == TSK__PART_EMBEDDING ? 1.0f : 1.0f / sqrtf((float)dims[1]);
    if (part == TSK__PART_HEAD || (part == TSK__PART_EMBEDDING && s->tied)) scale = s->head_gain / sqrtf((float)s->d);
    values = (uint16_t *)malloc((size_t)count * sizeof *values);
    if (!values) exit(2);
    for (i = 0; i < count; i++) values[i] = tsk__bf16_from_float(middle + scale * random_normal());
    must(tsk_safetensors_writer_add(writer, name, TSK_DTYPE_BF16, is_vector ? 1 : 2, dims, values, &error), &error);
    free(values);
}

/* The folder's path: one a name. */
static TEST_UNUSED const char *random_model_folder(const shape *s) {
    tsk_model_config c = config_of(s);
    tsk_safetensors_writer *writer = NULL;
    tsk_error error;
    char dir[900], path[1000], text[1000];
    int outside;
    memset(&error, 0, sizeof error);
    snprintf(dir, sizeof dir, "%s", tsk_test_path(s->name));
    mkdir(dir, 0700);
    snprintf(path, sizeof path, "%s/config.json", dir);
    snprintf(text, sizeof text,
             "{\"model_type\": \"llada\", \"d_model\": %d, \"n_layers\": %d, \"n_heads\": %d, \"n_kv_heads\": %d, "
             "\"mlp_hidden_size\": %d, \"vocab_size\": %d,"
             " \"embedding_size\": %d, \"max_sequence_length\": %d, \"mask_token_id\": %d, \"eos_token_id\": %d, "
             "\"pad_token_id\": %d, \"rope_theta\": 10000.0,"
             " \"rms_norm_eps\": 1e-05, \"weight_tying\": %s, \"include_bias\": %s, \"include_qkv_bias\": %s,"
             " \"bias_for_layer_norm\": false, \"rope\": true, \"block_type\": \"llama\","
             " \"layer_norm_type\": \"rms\", \"activation_type\": \"silu\"}",
             (int)c.d_model, (int)c.n_layers, (int)c.n_heads, (int)c.n_kv_heads, (int)c.mlp_hidden_size,
             (int)c.vocab_size, (int)c.embedding_size, (int)c.max_sequence_length, (int)c.mask_token_id,
             (int)c.eos_token_id, (int)c.pad_token_id, s->tied ? "true" : "false", s->linear_bias ? "true" : "false",
             s->qkv_bias ? "true" : "false");
    write_text(path, text);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    must(tsk_safetensors_writer_open(path, NULL, &writer, &error), &error);
    for (outside = 1; outside >= 0; outside--) {
        tsk__weight_id id = tsk__family_first();
        do
            if ((id.layer < 0) == outside) write_random_tensor(writer, &c, s, &id);
        while (tsk__family_next(&c, &id));
    }
    must(tsk_safetensors_writer_finish(writer, &error), &error);
    tsk_safetensors_writer_free(writer);
    return tsk_test_path(s->name);
}

static TEST_UNUSED tsk_model *load_model(const char *dir, tsk_device device, tsk_dtype dtype) {
    tsk_model_options o = tsk_model_options_default();
    tsk_model *model = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    o.device = device;
    o.dtype = dtype;
    must(tsk_model_load(dir, &o, &model, &error), &error);
    return model;
}

#endif
