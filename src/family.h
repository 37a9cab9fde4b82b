#ifndef SECTION_GUARD_FAMILY
#define SECTION_GUARD_FAMILY

#include "system.h"
#include "api.h"

// >>family ============================================================================================================
/* What makes a model this model, as data: an entry of tsk__families for every kind of network. >>config reads
   config.json by an entry's rows, folders and loaders find tensors by its names; no other section knows either.

   A family to come is an entry here and a value of tsk_family (api.h). What it has and these have not gets a column or
   a line, together with the code that reads it:
     q, k and v in one tensor     where in its tensor a part begins: a column of tsk__family_part, for sources
     a router                     a member of tsk__part, with an operation in the backends
     experts                      a letter of tsk__family_size for how many, which `each` of a part names
     layers of two kinds          tsk__family_has, which is asked for every layer
     part of a head turned        a field of the configuration beside head_dim, for tsk__rope_frequency
   The chat template is the tokenizer's: >>template knows it by its text, whatever the model. */

/* ---- what config.json must say, in the order in which it is checked. Keys that no row names are ignored. */

typedef enum tsk__demand_kind {
    TSK__DEMAND_TEXT,          /* this text */
    TSK__DEMAND_SWITCH,        /* true, or false; null is false */
    TSK__DEMAND_FOLLOWS,       /* a switch; left out or null it is what the switch named by `left_out` is */
    TSK__DEMAND_ONE,           /* the number 1, which it is when left out */
    TSK__DEMAND_ABSENT,        /* nothing, or null */
    TSK__DEMAND_ALL,           /* a list, each element of which is this text */
    TSK__DEMAND_PLAIN_ROPE     /* nothing, null, or positions turned as rope_theta says */
} tsk__demand_kind;

typedef struct tsk__family_demand {
    const char *key;
    tsk__demand_kind kind;
    const char *only;          /* what the backends compute */
    const char *left_out;      /* what the family's own code takes where the key is missing; NULL: it may not be */
} tsk__family_demand;

/* ---- what is read from it, in order */

typedef enum tsk__key_kind {
    TSK__KEY_INTEGER,          /* from low to high */
    TSK__KEY_RATIO,            /* likewise; the field becomes `of` times it */
    TSK__KEY_KV_HEADS,         /* likewise, beside "multi_query_attention", an older key for the same */
    TSK__KEY_POSITIVE,         /* a number above 0 */
    TSK__KEY_THETA,            /* likewise; newer files have it inside "rope_parameters" */
    TSK__KEY_SWITCH,           /* true or false; null is false, or missing where the key must be there */
    TSK__KEY_FIXED,            /* `value`, whatever the file says: the network has no choice of it */
    TSK__KEY_END_IDS           /* one id or a list; more may stand in generation_config.json, and all may */
} tsk__key_kind;

typedef enum tsk__key_missing {    /* null is missing too, but for a switch */
    TSK__MISSING_ERROR,
    TSK__MISSING_VALUE,        /* it is `value` */
    TSK__MISSING_FIELD,        /* it is what the field `of` is by then */
    TSK__MISSING_NULL_FIELD    /* null: what the field `of` is; not there at all: an error */
} tsk__key_missing;

typedef struct tsk__family_key {
    const char *key;
    tsk__key_kind kind;
    size_t field;              /* where in tsk_model_config it goes: int32_t, float or int by its kind */
    int64_t low, high;
    tsk__key_missing missing;
    double value;
    size_t of;
} tsk__family_key;

/* ---- weights */

/* The maps of a layer, each matrix with its norm or bias where it has one; then those outside the layers. */
typedef enum tsk__part {
    TSK__PART_ATTN_NORM, TSK__PART_Q, TSK__PART_K, TSK__PART_V, TSK__PART_Q_NORM, TSK__PART_K_NORM, TSK__PART_ATTN_OUT,
    TSK__PART_FF_NORM, TSK__PART_FF_PROJ, TSK__PART_UP_PROJ, TSK__PART_FF_OUT, TSK__PART_COUNT,
    TSK__PART_EMBEDDING = TSK__PART_COUNT, TSK__PART_FINAL_NORM, TSK__PART_HEAD, TSK__PART_ALL
} tsk__part;

/* Sizes by letter: see tsk__family_size. */
typedef struct tsk__family_part {
    const char *weight, *bias; /* tensors' names, {i} for the layer and {e} for the expert; NULL: the family has none */
    char rows, cols;           /* outputs, inputs; cols '-': a vector */
    char each;                 /* how many a layer has: '-' one */
    char has_bias;             /* 'q': where qkv_bias says so, 'l': linear_bias, '-': never */
} tsk__family_part;

typedef struct tsk__family {
    const char *name;          /* in messages */
    const char *model_type, *architecture;  /* config.json's; `architectures` may be missing there */
    const tsk__family_demand *demands;
    size_t n_demands;
    const tsk__family_key *keys;
    size_t n_keys;
    const tsk__family_part *parts;          /* [TSK__PART_ALL] */
    int has_head_dim;          /* 1: a head's size is a number of its own; 0: it is d_model / n_heads */
    int by_blocks;             /* 1: a token attends to its block and to those before it; 0: to all tokens */
    int is_shifted;            /* 1: row i predicts position i + 1 (position 0: row 0); 0: row i predicts position i */
    int32_t small_block;       /* where by_blocks: positions of a block that are decoded before the next ones; 0: all */
    int skips;                 /* 1: TokenSkip is on where nobody says otherwise. Only families whose accuracy with it
                                  has been measured */
} tsk__family;

/* ---- LLaDA
   A key that the file leaves out has the default of LLaDA's own class (ModelConfig in configuration_llada.py). These
   are GPT-2's, and most of them describe another network. Sizes and ids have defaults there too, but those fit no LLaDA
   model: they must be written. Other keys of LLaDA's are for training (dropout, init_*), ways to compute the same
   (flash_attention, rope_full_precision, precision, use_cache), or parts of what is refused (alibi_bias_max,
   attention_layer_norm_with_affine). */

static const tsk__family_demand tsk__llada_demands[] = {
    {"block_type", TSK__DEMAND_TEXT, "llama", "sequential"},
    {"layer_norm_type", TSK__DEMAND_TEXT, "rms", "default"},
    {"activation_type", TSK__DEMAND_TEXT, "silu", "swiglu"},
    {"rope", TSK__DEMAND_SWITCH, "true", "false"},
    {"layer_norm_with_affine", TSK__DEMAND_SWITCH, "true", "true"},
    {"alibi", TSK__DEMAND_SWITCH, "false", "false"},
    {"attention_layer_norm", TSK__DEMAND_SWITCH, "false", "false"},
    {"input_emb_norm", TSK__DEMAND_SWITCH, "false", "false"},
    {"scale_logits", TSK__DEMAND_SWITCH, "false", "false"},
    {"bias_for_layer_norm", TSK__DEMAND_FOLLOWS, "false", "include_bias"},
    {"block_group_size", TSK__DEMAND_ONE, NULL, NULL},
    {"rope_scaling", TSK__DEMAND_PLAIN_ROPE, NULL, NULL},
    {"rope_parameters", TSK__DEMAND_PLAIN_ROPE, NULL, NULL},
    {"clip_qkv", TSK__DEMAND_ABSENT, NULL, NULL}};

#define TSK__FIELD(name) offsetof(tsk_model_config, name)
#define TSK__MAX_LENGTH (1 << 24) /* an f32, of which angles are made, holds no odd position beyond it */

static const tsk__family_key tsk__llada_keys[] = {
    {"d_model", TSK__KEY_INTEGER, TSK__FIELD(d_model), 1, 1 << 17, TSK__MISSING_ERROR, 0, 0},
    {"n_layers", TSK__KEY_INTEGER, TSK__FIELD(n_layers), 1, 1 << 12, TSK__MISSING_ERROR, 0, 0},
    {"n_heads", TSK__KEY_INTEGER, TSK__FIELD(n_heads), 1, 1 << 12, TSK__MISSING_ERROR, 0, 0},
    {"n_kv_heads", TSK__KEY_KV_HEADS, TSK__FIELD(n_kv_heads), 1, 1 << 12, TSK__MISSING_FIELD, 0, TSK__FIELD(n_heads)},
    {"mlp_ratio", TSK__KEY_RATIO, TSK__FIELD(mlp_hidden_size), 1, 64, TSK__MISSING_VALUE, 4, TSK__FIELD(d_model)},
    {"mlp_hidden_size", TSK__KEY_INTEGER, TSK__FIELD(mlp_hidden_size), 1, 1 << 20,
     TSK__MISSING_FIELD, 0, TSK__FIELD(mlp_hidden_size)},
    {"vocab_size", TSK__KEY_INTEGER, TSK__FIELD(vocab_size), 1, 1 << 24, TSK__MISSING_ERROR, 0, 0},
    /* left out it would be 50304 */
    {"embedding_size", TSK__KEY_INTEGER, TSK__FIELD(embedding_size), 1, 1 << 24,
     TSK__MISSING_NULL_FIELD, 0, TSK__FIELD(vocab_size)},
    {"max_sequence_length", TSK__KEY_INTEGER, TSK__FIELD(max_sequence_length), 1, TSK__MAX_LENGTH,
     TSK__MISSING_ERROR, 0, 0},
    {"mask_token_id", TSK__KEY_INTEGER, TSK__FIELD(mask_token_id), 0, INT32_MAX, TSK__MISSING_ERROR, 0, 0},
    {"eos_token_id", TSK__KEY_END_IDS, TSK__FIELD(eos_token_ids), 0, INT32_MAX, TSK__MISSING_VALUE, 0, 0},
    {"pad_token_id", TSK__KEY_INTEGER, TSK__FIELD(pad_token_id), -1, INT32_MAX, TSK__MISSING_VALUE, -1, 0},
    {"rope_theta", TSK__KEY_POSITIVE, TSK__FIELD(rope_theta), 0, 0, TSK__MISSING_VALUE, 10000.0, 0},
    {"rms_norm_eps", TSK__KEY_POSITIVE, TSK__FIELD(rms_norm_eps), 0, 0, TSK__MISSING_VALUE, 1e-5, 0},
    {"weight_tying", TSK__KEY_SWITCH, TSK__FIELD(weight_tying), 0, 0, TSK__MISSING_VALUE, 1, 0},
    {"include_bias", TSK__KEY_SWITCH, TSK__FIELD(linear_bias), 0, 0, TSK__MISSING_VALUE, 0, 0},
    {"include_qkv_bias", TSK__KEY_SWITCH, TSK__FIELD(qkv_bias), 0, 0, TSK__MISSING_FIELD, 0, TSK__FIELD(linear_bias)}};

#define TSK__LLADA_NAMES(name) "model.transformer." name ".weight", "model.transformer." name ".bias"

static const tsk__family_part tsk__llada_parts[TSK__PART_ALL] = {
    {TSK__LLADA_NAMES("blocks.{i}.attn_norm"), 'd', '-', '-', '-'},
    {TSK__LLADA_NAMES("blocks.{i}.q_proj"), 'q', 'd', '-', 'q'},
    {TSK__LLADA_NAMES("blocks.{i}.k_proj"), 'k', 'd', '-', 'q'},
    {TSK__LLADA_NAMES("blocks.{i}.v_proj"), 'k', 'd', '-', 'q'},
    {NULL, NULL, 'h', '-', '-', '-'},
    {NULL, NULL, 'h', '-', '-', '-'},
    {TSK__LLADA_NAMES("blocks.{i}.attn_out"), 'd', 'q', '-', 'l'},
    {TSK__LLADA_NAMES("blocks.{i}.ff_norm"), 'd', '-', '-', '-'},
    {TSK__LLADA_NAMES("blocks.{i}.ff_proj"), 'm', 'd', '-', 'l'},
    {TSK__LLADA_NAMES("blocks.{i}.up_proj"), 'm', 'd', '-', 'l'},
    {TSK__LLADA_NAMES("blocks.{i}.ff_out"), 'd', 'm', '-', 'l'},
    {TSK__LLADA_NAMES("wte"), 'e', 'd', '-', '-'},
    {TSK__LLADA_NAMES("ln_f"), 'd', '-', '-', '-'},
    {TSK__LLADA_NAMES("ff_out"), 'e', 'd', '-', 'l'}};

/* ---- models of Qwen's networks: SDAR and TraDo (Qwen3), Fast-dLLM v2, Dream, DiffuCoder and Dream-Coder (Qwen2.5)
   What the network depends on must be written, since the defaults of these classes fit no released model. Other keys
   are for training (attention_dropout, initializer_range, ep_size), for other ways to compute the same (use_cache,
   attn_implementation), or parts of what is refused (sliding_window, max_window_layers). */

#define TSK__QWEN_DEMANDS \
    {"hidden_act", TSK__DEMAND_TEXT, "silu", NULL}, \
    {"rope_scaling", TSK__DEMAND_PLAIN_ROPE, NULL, NULL}, \
    {"rope_parameters", TSK__DEMAND_PLAIN_ROPE, NULL, NULL}, \
    {"use_sliding_window", TSK__DEMAND_SWITCH, "false", "false"}

static const tsk__family_demand tsk__sdar_demands[] = {
    TSK__QWEN_DEMANDS,
    {"attention_bias", TSK__DEMAND_SWITCH, "false", NULL},
    {"use_regular_causal", TSK__DEMAND_SWITCH, "false", "false"}, /* a prompt's tokens would see those before them */
    {"layer_types", TSK__DEMAND_ALL, "full_attention", "full_attention"}};

static const tsk__family_demand tsk__dream_demands[] = {
    TSK__QWEN_DEMANDS,
    {"layer_types", TSK__DEMAND_ALL, "full_attention", "full_attention"}};

static const tsk__family_demand tsk__fast_dllm_demands[] = {
    TSK__QWEN_DEMANDS,
    {"layer_types", TSK__DEMAND_ALL, "full_attention", NULL}};

#define TSK__QWEN_KEYS \
    {"hidden_size", TSK__KEY_INTEGER, TSK__FIELD(d_model), 1, 1 << 17, TSK__MISSING_ERROR, 0, 0}, \
    {"num_hidden_layers", TSK__KEY_INTEGER, TSK__FIELD(n_layers), 1, 1 << 12, TSK__MISSING_ERROR, 0, 0}, \
    {"num_attention_heads", TSK__KEY_INTEGER, TSK__FIELD(n_heads), 1, 1 << 12, TSK__MISSING_ERROR, 0, 0}, \
    {"num_key_value_heads", TSK__KEY_INTEGER, TSK__FIELD(n_kv_heads), 1, 1 << 12, TSK__MISSING_ERROR, 0, 0}, \
    {"head_dim", TSK__KEY_INTEGER, TSK__FIELD(head_dim), 1, 1 << 12, TSK__MISSING_VALUE, 0, 0}, \
    {"intermediate_size", TSK__KEY_INTEGER, TSK__FIELD(mlp_hidden_size), 1, 1 << 20, TSK__MISSING_ERROR, 0, 0}, \
    {"vocab_size", TSK__KEY_INTEGER, TSK__FIELD(vocab_size), 1, 1 << 24, TSK__MISSING_ERROR, 0, 0}, \
    {"vocab_size", TSK__KEY_INTEGER, TSK__FIELD(embedding_size), 1, 1 << 24, TSK__MISSING_ERROR, 0, 0}, \
    {"max_position_embeddings", TSK__KEY_INTEGER, TSK__FIELD(max_sequence_length), 1, TSK__MAX_LENGTH, \
     TSK__MISSING_ERROR, 0, 0}, \
    {"eos_token_id", TSK__KEY_END_IDS, TSK__FIELD(eos_token_ids), 0, INT32_MAX, TSK__MISSING_VALUE, 0, 0}, \
    {"pad_token_id", TSK__KEY_INTEGER, TSK__FIELD(pad_token_id), -1, INT32_MAX, TSK__MISSING_VALUE, -1, 0}, \
    {"rope_theta", TSK__KEY_THETA, TSK__FIELD(rope_theta), 0, 0, TSK__MISSING_ERROR, 0, 0}, \
    {"rms_norm_eps", TSK__KEY_POSITIVE, TSK__FIELD(rms_norm_eps), 0, 0, TSK__MISSING_ERROR, 0, 0}, \
    {"tie_word_embeddings", TSK__KEY_SWITCH, TSK__FIELD(weight_tying), 0, 0, TSK__MISSING_ERROR, 0, 0}

#define TSK__MAX_BLOCK (1 << 12)

static const tsk__family_key tsk__sdar_keys[] = {
    TSK__QWEN_KEYS,
    {"mask_token_id", TSK__KEY_INTEGER, TSK__FIELD(mask_token_id), 0, INT32_MAX, TSK__MISSING_ERROR, 0, 0},
    {"block_size", TSK__KEY_INTEGER, TSK__FIELD(block_length), 1, TSK__MAX_BLOCK, TSK__MISSING_ERROR, 0, 0}};

static const tsk__family_key tsk__fast_dllm_keys[] = {
    TSK__QWEN_KEYS,
    {"mask_token_id", TSK__KEY_INTEGER, TSK__FIELD(mask_token_id), 0, INT32_MAX, TSK__MISSING_VALUE, 151665, 0},
    {"bd_size", TSK__KEY_INTEGER, TSK__FIELD(block_length), 1, TSK__MAX_BLOCK, TSK__MISSING_ERROR, 0, 0},
    {"qkv_bias", TSK__KEY_FIXED, TSK__FIELD(qkv_bias), 0, 0, TSK__MISSING_VALUE, 1, 0}};

static const tsk__family_key tsk__dream_keys[] = {
    TSK__QWEN_KEYS,
    {"mask_token_id", TSK__KEY_INTEGER, TSK__FIELD(mask_token_id), 0, INT32_MAX, TSK__MISSING_ERROR, 0, 0},
    {"qkv_bias", TSK__KEY_FIXED, TSK__FIELD(qkv_bias), 0, 0, TSK__MISSING_VALUE, 1, 0}};

#define TSK__QWEN_NAMES(name) "model." name ".weight", "model." name ".bias"
#define TSK__QWEN_NORM(name) "model." name ".weight", NULL
/* q_norm and k_norm: norms of each head of q and k, before RoPE; NULL in Qwen2.5. */
#define TSK__QWEN_PARTS(q_norm, k_norm) \
    { \
        {TSK__QWEN_NORM("layers.{i}.input_layernorm"), 'd', '-', '-', '-'}, \
        {TSK__QWEN_NAMES("layers.{i}.self_attn.q_proj"), 'q', 'd', '-', 'q'}, \
        {TSK__QWEN_NAMES("layers.{i}.self_attn.k_proj"), 'k', 'd', '-', 'q'}, \
        {TSK__QWEN_NAMES("layers.{i}.self_attn.v_proj"), 'k', 'd', '-', 'q'}, \
        {q_norm, NULL, 'h', '-', '-', '-'}, \
        {k_norm, NULL, 'h', '-', '-', '-'}, \
        {TSK__QWEN_NAMES("layers.{i}.self_attn.o_proj"), 'd', 'q', '-', '-'}, \
        {TSK__QWEN_NORM("layers.{i}.post_attention_layernorm"), 'd', '-', '-', '-'}, \
        {TSK__QWEN_NAMES("layers.{i}.mlp.gate_proj"), 'm', 'd', '-', '-'}, \
        {TSK__QWEN_NAMES("layers.{i}.mlp.up_proj"), 'm', 'd', '-', '-'}, \
        {TSK__QWEN_NAMES("layers.{i}.mlp.down_proj"), 'd', 'm', '-', '-'}, \
        {TSK__QWEN_NORM("embed_tokens"), 'e', 'd', '-', '-'}, \
        {TSK__QWEN_NORM("norm"), 'd', '-', '-', '-'}, \
        {"lm_head.weight", NULL, 'e', 'd', '-', '-'} \
    }

static const tsk__family_part tsk__qwen2_parts[TSK__PART_ALL] = TSK__QWEN_PARTS(NULL, NULL);
static const tsk__family_part tsk__qwen3_parts[TSK__PART_ALL] =
    TSK__QWEN_PARTS("model.layers.{i}.self_attn.q_norm.weight", "model.layers.{i}.self_attn.k_norm.weight");

/* ---- the table */

#define TSK__COUNT_OF(array) (sizeof(array) / sizeof *(array))

/* In the order of tsk_family. Several may share a model_type; their architectures then differ. */
static const tsk__family tsk__families[] = {
    {"LLaDA", "llada", "LLaDAModelLM", tsk__llada_demands, TSK__COUNT_OF(tsk__llada_demands), tsk__llada_keys,
     TSK__COUNT_OF(tsk__llada_keys), tsk__llada_parts, 0, 0, 0, 0, 1},
    {"SDAR", "sdar", "SDARForCausalLM", tsk__sdar_demands, TSK__COUNT_OF(tsk__sdar_demands), tsk__sdar_keys,
     TSK__COUNT_OF(tsk__sdar_keys), tsk__qwen3_parts, 1, 1, 0, 0, 0},
    {"Fast-dLLM v2", "Fast_dLLM_Qwen", "Fast_dLLM_QwenForCausalLM", tsk__fast_dllm_demands,
     TSK__COUNT_OF(tsk__fast_dllm_demands), tsk__fast_dllm_keys, TSK__COUNT_OF(tsk__fast_dllm_keys), tsk__qwen2_parts,
     1, 1, 1, 8, 0},
    {"Dream", "Dream", "DreamModel", tsk__dream_demands, TSK__COUNT_OF(tsk__dream_demands), tsk__dream_keys,
     TSK__COUNT_OF(tsk__dream_keys), tsk__qwen2_parts, 1, 0, 1, 0, 0}};

#define TSK__FAMILIES ((int)TSK__COUNT_OF(tsk__families))

static const tsk__family *tsk__family_of(const tsk_model_config *c) { return &tsk__families[c->family]; }

/* ---- the weights that a configuration implies */

/* Which weight: of a layer, or outside the layers (-1). */
typedef struct tsk__weight_id {
    int32_t layer;
    int part;                  /* of tsk__part */
    int32_t expert;            /* 0 where there are none */
    int is_bias;
} tsk__weight_id;

static tsk__weight_id tsk__weight_id_of(int32_t layer, tsk__part part, int is_bias) {
    tsk__weight_id id;
    id.layer = layer;
    id.part = (int)part;
    id.expert = 0;
    id.is_bias = is_bias;
    return id;
}

/* d d_model, q all query heads, k all key heads, h one head, m mlp_hidden_size, e embedding_size, - one. */
static uint64_t tsk__family_size(const tsk_model_config *c, char letter) {
    switch (letter) {
    case 'd': return (uint64_t)c->d_model;
    case 'q': return (uint64_t)c->n_heads * (uint64_t)c->head_dim;
    case 'k': return (uint64_t)c->n_kv_heads * (uint64_t)c->head_dim;
    case 'h': return (uint64_t)c->head_dim;
    case 'm': return (uint64_t)c->mlp_hidden_size;
    case 'e': return (uint64_t)c->embedding_size;
    default: return 1;
    }
}

static const tsk__family_part *tsk__family_part_of(const tsk_model_config *c, int part) {
    return &tsk__family_of(c)->parts[part];
}

/* How many weights of that part stand beside each other in the table: one, or the experts. */
static int32_t tsk__family_each(const tsk_model_config *c, int part) {
    return (int32_t)tsk__family_size(c, tsk__family_part_of(c, part)->each);
}

/* 1: a model of this configuration has that weight. A tied head has none of its own. */
static int tsk__family_has(const tsk_model_config *c, const tsk__weight_id *id) {
    const tsk__family_part *p = tsk__family_part_of(c, id->part);
    if (!p->weight || (id->part == (int)TSK__PART_HEAD && c->weight_tying)) return 0;
    return !id->is_bias || (p->has_bias == 'q' && c->qkv_bias) || (p->has_bias == 'l' && c->linear_bias);
}

/* 1: norms and biases. */
static int tsk__family_is_vector(const tsk_model_config *c, const tsk__weight_id *id) {
    return id->is_bias || tsk__family_part_of(c, id->part)->cols == '-';
}

/* shape[0] outputs, shape[1] inputs, 1 of a vector. */
static void tsk__family_shape(const tsk_model_config *c, const tsk__weight_id *id, uint64_t shape[2]) {
    shape[0] = tsk__family_size(c, tsk__family_part_of(c, id->part)->rows);
    shape[1] = tsk__family_is_vector(c, id) ? 1 : tsk__family_size(c, tsk__family_part_of(c, id->part)->cols);
}

#define TSK__FAMILY_NAME 96

/* The tensor's name. */
static void tsk__family_name(const tsk_model_config *c, const tsk__weight_id *id, char name[TSK__FAMILY_NAME]) {
    const tsk__family_part *p = tsk__family_part_of(c, id->part);
    const char *from = id->is_bias ? p->bias : p->weight;
    int used = 0;
    while (*from && used < TSK__FAMILY_NAME - 12) {
        if (*from != '{') {
            name[used++] = *from++;
            continue;
        }
        used += snprintf(name + used, (size_t)(TSK__FAMILY_NAME - used), "%d",
                         (int)(from[1] == 'e' ? id->expert : id->layer));
        from += 3;
    }
    name[used] = 0;
}

/* Every weight in the model's order, each bias after its matrix:
       for (id = tsk__family_first(), more = 1; more; more = tsk__family_next(c, &id)) */
static tsk__weight_id tsk__family_first(void) { return tsk__weight_id_of(-1, TSK__PART_EMBEDDING, 0); }

/* To the next that a model may have; 0 after the last. */
static int tsk__family_step(const tsk_model_config *c, tsk__weight_id *id) {
    id->is_bias = !id->is_bias;
    if (id->is_bias || ++id->expert < tsk__family_each(c, id->part)) return 1;
    id->expert = 0;
    id->part++;
    if (id->layer < 0 && id->part != (int)TSK__PART_EMBEDDING + 1) return id->part < (int)TSK__PART_ALL;
    if (id->layer >= 0 && id->part < (int)TSK__PART_COUNT) return 1;
    if (++id->layer < c->n_layers) id->part = 0;
    else id->layer = -1, id->part = (int)TSK__PART_FINAL_NORM;
    return 1;
}
static int tsk__family_next(const tsk_model_config *c, tsk__weight_id *id) {
    while (tsk__family_step(c, id))
        if (tsk__family_has(c, id)) return 1;
    return 0;
}

/* The place of a matrix or norm in a table of all: first those outside the layers, then layer by layer. */
static size_t tsk__family_index(const tsk_model_config *c, int32_t layer, tsk__part part, int32_t expert) {
    size_t before = 0, outside = 0, in_layer = 0;
    int p;
    for (p = 0; p < (int)TSK__PART_ALL; p++) {
        *(p < (int)TSK__PART_COUNT ? &in_layer : &outside) += (size_t)tsk__family_each(c, p);
        if (p < (int)part && (layer < 0) == (p >= (int)TSK__PART_COUNT)) before += (size_t)tsk__family_each(c, p);
    }
    return (layer < 0 ? 0 : outside + (size_t)layer * in_layer) + before + (size_t)expert;
}

/* Places in that table. */
static size_t tsk__family_count(const tsk_model_config *c) {
    return tsk__family_index(c, c->n_layers, (tsk__part)0, 0);
}

#endif /* SECTION_GUARD_FAMILY */
