#ifndef SECTION_GUARD_CONFIG
#define SECTION_GUARD_CONFIG

#include "error.h"
#include "memory.h"
#include "platform.h"
#include "json.h"
#include "safetensors.h"
#include "formats.h"
#include "family.h"

// >>config ============================================================================================================
/* config.json, read by its family's rows, and the tensors that it promises. A folder is checked completely before a
   weight is read: every tensor that the architecture needs is there once, in a type that the backends read and the
   shape that the configuration implies; no tensor is there that the architecture would silently ignore. */

#define TSK__CONFIG_MAX_FILE ((size_t)64 << 20)

typedef struct tsk__config_reader {
    const tsk_json_value *root;
    const char *path;
    const tsk__family *family;
    tsk_error *error;
    tsk_status status;         /* the first failure; later reads do nothing */
} tsk__config_reader;

static void tsk__config_fail(tsk__config_reader *reader, const tsk_json_value *value, const char *key,
                             const char *expected) {
    if (reader->status == TSK_OK)
        reader->status =
            tsk__error_set(reader->error, TSK_ERROR_CONFIG, reader->path,
                           value ? tsk_json_offset(value) : TSK_NO_OFFSET, "'%s': \"%s\" %s %s",
                           tsk__error_path(reader->path), key, value ? "must be" : "is missing: it must be", expected);
}

static int tsk__config_absent(const tsk_json_value *value) {
    tsk_json_type type = tsk_json_type_of(value);
    return type == TSK_JSON_NONE || type == TSK_JSON_NULL;
}

/* The integer in [low, high] that `value` must be. */
static int32_t tsk__config_integer(tsk__config_reader *reader, const tsk_json_value *value, const char *key,
                                   int64_t low, int64_t high) {
    int64_t number = low;
    char expected[80];
    if (reader->status != TSK_OK) return (int32_t)low;
    if (tsk_json_int64(value, &number) && number >= low && number <= high) return (int32_t)number;
    snprintf(expected, sizeof expected, "an integer from %lld to %lld", (long long)low, (long long)high);
    tsk__config_fail(reader, value, key, expected);
    return (int32_t)low;
}

/* An integer in [low, high]; `fallback` where the key is absent or null, an error there when fallback < low. */
static int32_t tsk__config_int(tsk__config_reader *reader, const char *key, int64_t low, int64_t high,
                               int64_t fallback) {
    const tsk_json_value *value = tsk_json_get(reader->root, key);
    if (tsk__config_absent(value) && fallback >= low) return (int32_t)fallback;
    return tsk__config_integer(reader, value, key, low, high);
}

/* `fallback` where the value is absent, an error there where that is not positive. */
static float tsk__config_positive(tsk__config_reader *reader, const tsk_json_value *value, const char *key,
                                  double fallback) {
    double number = fallback;
    if (reader->status != TSK_OK || (tsk__config_absent(value) && fallback > 0)) return (float)fallback;
    if (!tsk_json_double(value, &number) || !(number > 0) || number > 1e12)
        tsk__config_fail(reader, value, key, "a positive number");
    return (float)number;
}

/* `fallback` where the key is absent; null is false, as it is to the families' own code. */
static int tsk__config_bool(tsk__config_reader *reader, const char *key, int fallback) {
    const tsk_json_value *value = tsk_json_get(reader->root, key);
    int truth = 0;
    if (reader->status != TSK_OK || !value) return fallback;
    if (tsk_json_type_of(value) != TSK_JSON_NULL && !tsk_json_bool(value, &truth))
        tsk__config_fail(reader, value, key, "true or false");
    return truth;
}

/* "'path': "key" …". A model that asks for something that the backends do not compute is refused, not approximated. */
static void TSK__PRINTF(4, 5) tsk__config_refuse(tsk__config_reader *reader, const tsk_json_value *value,
                                                 const char *key, const char *format, ...) {
    char message[240];
    va_list arguments;
    if (reader->status != TSK_OK) return;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    reader->status = tsk__error_set(reader->error, TSK_ERROR_UNSUPPORTED, reader->path,
                                    value ? tsk_json_offset(value) : TSK_NO_OFFSET,
                                    "'%s': \"%s\"%s", tsk__error_path(reader->path), key, message);
}

/* ---- which family it is
   That of model_type; among several of one model_type the architecture decides. */

/* "a" is supported; "a", "b" are supported: the families' model types, or the architectures of one model_type. */
static void tsk__config_supported(const char *model_type, char *out, size_t size) {
    size_t used = 0, n = 0;
    int i;
    for (i = 0; i < TSK__FAMILIES; i++) {
        const tsk__family *f = &tsk__families[i];
        const char *name = model_type ? f->architecture : f->model_type;
        if (model_type && strcmp(f->model_type, model_type) != 0) continue;
        if (!model_type && i > 0 && strcmp(name, tsk__families[i - 1].model_type) == 0) continue;
        if (used < size) used += (size_t)snprintf(out + used, size - used, "%s\"%s\"", n++ ? ", " : "", name);
    }
    if (used < size) snprintf(out + used, size - used, n > 1 ? " are supported" : " is supported");
}

/* A text that should be another: `missing` says more where there is none at all. */
static void tsk__config_refuse_text(tsk__config_reader *reader, const char *key, const char *supported,
                                    const char *missing) {
    const tsk_json_value *value = tsk_json_get(reader->root, key);
    const char *text = tsk_json_string(value, NULL);
    if (text) tsk__config_refuse(reader, value, key, " is \"%.60s\"; only %s", text, supported);
    else if (value) tsk__config_refuse(reader, value, key, " is not given as text; only %s", supported);
    else tsk__config_refuse(reader, value, key, " is missing%s; only %s", missing, supported);
}

static void tsk__config_find_family(tsk__config_reader *reader) {
    const char *type = tsk_json_string(tsk_json_get(reader->root, "model_type"), NULL);
    const char *architecture = tsk_json_string(tsk_json_first(tsk_json_get(reader->root, "architectures")), NULL);
    char supported[160];
    int i;
    for (i = 0; i < TSK__FAMILIES && type; i++) {
        const tsk__family *f = &tsk__families[i];
        if (strcmp(f->model_type, type) != 0) continue;
        if (!reader->family) reader->family = f;
        if (architecture && strcmp(f->architecture, architecture) == 0) {
            reader->family = f;
            return;
        }
    }
    if (reader->family) return;
    tsk__config_supported(NULL, supported, sizeof supported);
    tsk__config_refuse_text(reader, "model_type", supported, "");
}

static void tsk__config_check_architectures(tsk__config_reader *reader) {
    const tsk_json_value *value = tsk_json_get(reader->root, "architectures"), *element;
    char supported[160];
    if (tsk__config_absent(value) || reader->status != TSK_OK) return;
    if (tsk_json_type_of(value) != TSK_JSON_ARRAY) tsk__config_fail(reader, value, "architectures", "a list of names");
    tsk__config_supported(reader->family->model_type, supported, sizeof supported);
    for (element = tsk_json_first(value); element && reader->status == TSK_OK; element = tsk_json_next(element)) {
        const char *name = tsk_json_string(element, NULL);
        if (!name) tsk__config_fail(reader, element, "architectures", "a list of names");
        else if (strcmp(name, reader->family->architecture) != 0)
            tsk__config_refuse(reader, element, "architectures", " names \"%.60s\"; only %s", name, supported);
    }
}

/* ---- what decides which network of the family: see tsk__family_demand */

static void tsk__config_demand_text(tsk__config_reader *reader, const tsk__family_demand *demand) {
    const char *text = tsk_json_string(tsk_json_get(reader->root, demand->key), NULL);
    const char *family = reader->family->name;
    char supported[80], missing[120] = "";
    if (text && strcmp(text, demand->only) == 0) return;
    snprintf(supported, sizeof supported, "\"%s\" is supported", demand->only);
    if (demand->left_out)
        snprintf(missing, sizeof missing, ", and %s's default for it is \"%s\"", family, demand->left_out);
    tsk__config_refuse_text(reader, demand->key, supported, missing);
}

static void tsk__config_demand_switch(tsk__config_reader *reader, const tsk__family_demand *demand) {
    static const char *const names[] = {"false", "true"};
    const tsk_json_value *value = tsk_json_get(reader->root, demand->key);
    int supported = strcmp(demand->only, "true") == 0;
    int fallback = demand->left_out ? strcmp(demand->left_out, "true") == 0 : !supported;
    if (tsk__config_bool(reader, demand->key, fallback) == supported) return;
    if (value) tsk__config_refuse(reader, value, demand->key, ": %s is not supported", names[!supported]);
    else if (!demand->left_out)
        tsk__config_refuse(reader, value, demand->key, " is missing; only %s is supported", demand->only);
    else
        tsk__config_refuse(reader, value, demand->key,
                           " is missing, and %s's default for it is %s; only %s is supported",
                           reader->family->name, demand->left_out, demand->only);
}

static void tsk__config_demand_follows(tsk__config_reader *reader, const tsk__family_demand *demand) {
    const tsk_json_value *value = tsk_json_get(reader->root, demand->key);
    int supported = strcmp(demand->only, "true") == 0;
    if (!tsk__config_absent(value)) tsk__config_demand_switch(reader, demand);
    else if (tsk__config_bool(reader, demand->left_out, supported) != supported)
        tsk__config_refuse(reader, value, demand->key, " is %s, which %s takes as \"%s\": %s; only %s is supported",
                           value ? "null" : "missing", reader->family->name, demand->left_out,
                           supported ? "false" : "true", demand->only);
}

static void tsk__config_demand_one(tsk__config_reader *reader, const tsk__family_demand *demand) {
    int32_t number = tsk__config_int(reader, demand->key, 1, INT32_MAX, 1);
    if (number != 1)
        tsk__config_refuse(reader, tsk_json_get(reader->root, demand->key), demand->key,
                           " is %d; only 1 is supported", (int)number);
}

/* How the family reads a key; NULL: not at all. */
static const tsk__family_key *tsk__config_key(const tsk__family *family, const char *key) {
    size_t i;
    for (i = 0; i < family->n_keys; i++)
        if (strcmp(family->keys[i].key, key) == 0) return &family->keys[i];
    return NULL;
}

/* Refuses RoPE scaling. The type "default", which transformers also writes, means plain RoPE and is accepted. */
static void tsk__config_demand_plain_rope(tsk__config_reader *reader, const tsk__family_demand *demand) {
    const tsk_json_value *value = tsk_json_get(reader->root, demand->key), *theta = tsk_json_get(value, "rope_theta");
    const tsk_json_value *given = tsk_json_get(value, "rope_type"), *type = given ? given : tsk_json_get(value, "type");
    const char *name = tsk_json_string(type, NULL);
    const tsk__family_key *key = tsk__config_key(reader->family, "rope_theta");
    double own = key ? key->value : 0, number = 0;
    if (tsk__config_absent(value) || reader->status != TSK_OK) return;
    if (!name || strcmp(name, "default") != 0) {
        tsk__config_refuse(reader, value, demand->key, ": rotary positions of the type \"%.60s\" are not supported",
                           name ? name : "unknown");
        return;
    }
    if (!tsk_json_double(tsk_json_get(reader->root, "rope_theta"), &own) && key && key->kind == TSK__KEY_THETA) return;
    if (theta && (!tsk_json_double(theta, &number) || number < own || number > own))
        tsk__config_refuse(reader, theta, demand->key, " has a rope_theta of its own, other than the configuration's");
}

#define TSK__CONFIG_UNQUANTISED "use the folder of BF16, F16 or F32 weights that it was made from"

static void tsk__config_demand_absent(tsk__config_reader *reader, const tsk__family_demand *demand) {
    const tsk_json_value *value = tsk_json_get(reader->root, demand->key);
    if (!tsk__config_absent(value)) tsk__config_refuse(reader, value, demand->key, " is not supported");
}

static void tsk__config_demand_all(tsk__config_reader *reader, const tsk__family_demand *demand) {
    const tsk_json_value *value = tsk_json_get(reader->root, demand->key), *element;
    if (tsk__config_absent(value) && demand->left_out) return;
    if (tsk_json_type_of(value) != TSK_JSON_ARRAY) tsk__config_fail(reader, value, demand->key, "a list of names");
    for (element = tsk_json_first(value); element && reader->status == TSK_OK; element = tsk_json_next(element)) {
        const char *name = tsk_json_string(element, NULL);
        if (!name) tsk__config_fail(reader, element, demand->key, "a list of names");
        else if (strcmp(name, demand->only) != 0)
            tsk__config_refuse(reader, element, demand->key, " names \"%.60s\"; only \"%s\" is supported", name,
                               demand->only);
    }
}

static void tsk__config_demand(tsk__config_reader *reader, const tsk__family_demand *demand) {
    switch (demand->kind) {
    case TSK__DEMAND_TEXT: tsk__config_demand_text(reader, demand); break;
    case TSK__DEMAND_SWITCH: tsk__config_demand_switch(reader, demand); break;
    case TSK__DEMAND_FOLLOWS: tsk__config_demand_follows(reader, demand); break;
    case TSK__DEMAND_ONE: tsk__config_demand_one(reader, demand); break;
    case TSK__DEMAND_ABSENT: tsk__config_demand_absent(reader, demand); break;
    case TSK__DEMAND_ALL: tsk__config_demand_all(reader, demand); break;
    case TSK__DEMAND_PLAIN_ROPE: tsk__config_demand_plain_rope(reader, demand); break;
    }
}

/* ---- relations between fields */

/* Also for configurations that a host program made itself. `where` names it in messages. */
static tsk_status tsk__config_check_sizes(const tsk_model_config *c, const char *where, tsk_error *error) {
#define TSK__CONFIG_REQUIRE(condition, ...) \
    if (!(condition)) return tsk__error_set(error, TSK_ERROR_CONFIG, where, TSK_NO_OFFSET, __VA_ARGS__)
    TSK__CONFIG_REQUIRE((int)c->family >= 0 && (int)c->family < TSK__FAMILIES, "'%s': family has no value %d",
                        tsk__error_path(where), (int)c->family);
    TSK__CONFIG_REQUIRE(c->d_model > 0 && c->n_layers > 0 && c->n_heads > 0 && c->n_kv_heads > 0 && c->head_dim > 0 &&
                            c->mlp_hidden_size > 0 && c->vocab_size > 0 && c->embedding_size > 0 &&
                            c->max_sequence_length > 0,
                        "'%s': every size must be positive", tsk__error_path(where));
    TSK__CONFIG_REQUIRE(c->d_model <= 1 << 17 && c->n_layers <= 1 << 12 && c->mlp_hidden_size <= 1 << 20 &&
                            c->embedding_size <= 1 << 24 && c->max_sequence_length <= TSK__MAX_LENGTH &&
                            c->n_heads <= 1 << 12,
                        "'%s': a size is beyond what any model of this architecture has", tsk__error_path(where));
    TSK__CONFIG_REQUIRE(tsk__family_of(c)->has_head_dim || (int64_t)c->n_heads * c->head_dim == c->d_model,
                        "'%s': d_model %d is not n_heads %d times a whole head size", tsk__error_path(where),
                        (int)c->d_model, (int)c->n_heads);
    TSK__CONFIG_REQUIRE(c->head_dim <= 1 << 17, "'%s': head size %d is beyond what any model of this architecture has",
                        tsk__error_path(where), (int)c->head_dim);
    TSK__CONFIG_REQUIRE(!tsk__family_of(c)->by_blocks || (c->block_length > 0 && c->block_length <= TSK__MAX_BLOCK),
                        "'%s': block_length %d is not from 1 to %d", tsk__error_path(where), (int)c->block_length,
                        TSK__MAX_BLOCK);
    TSK__CONFIG_REQUIRE(c->head_dim % 2 == 0, "'%s': head size %d is odd, which rotary positions cannot have",
                        tsk__error_path(where), (int)c->head_dim);
    TSK__CONFIG_REQUIRE(c->n_kv_heads <= c->n_heads && c->n_heads % c->n_kv_heads == 0,
                        "'%s': n_heads %d is not a multiple of n_kv_heads %d", tsk__error_path(where), (int)c->n_heads,
                        (int)c->n_kv_heads);
    TSK__CONFIG_REQUIRE(c->embedding_size >= c->vocab_size, "'%s': embedding_size %d is below vocab_size %d",
                        tsk__error_path(where), (int)c->embedding_size, (int)c->vocab_size);
    TSK__CONFIG_REQUIRE(c->mask_token_id >= 0 && c->mask_token_id < c->embedding_size,
                        "'%s': mask_token_id %d is outside the vocabulary of %d", tsk__error_path(where),
                        (int)c->mask_token_id, (int)c->embedding_size);
    TSK__CONFIG_REQUIRE(c->rope_theta > 0 && c->rms_norm_eps > 0 && c->rope_theta <= FLT_MAX,
                        "'%s': rope_theta and rms_norm_eps must be positive", tsk__error_path(where));
    return TSK_OK;
}

static tsk_status tsk__config_check_eos(const tsk_model_config *c, const char *where, tsk_error *error) {
    int32_t i;
    TSK__CONFIG_REQUIRE(c->n_eos_token_ids >= 0 && c->n_eos_token_ids <= TSK_MAX_EOS_TOKENS,
                        "'%s': n_eos_token_ids %d is not from 0 to %d",
                        tsk__error_path(where), (int)c->n_eos_token_ids, TSK_MAX_EOS_TOKENS);
    for (i = -1; i < c->n_eos_token_ids; i++) {
        int32_t id = i < 0 ? c->eos_token_id : c->eos_token_ids[i];
        TSK__CONFIG_REQUIRE(id >= 0 && id < c->embedding_size,
                            "'%s': eos_token_id %d is outside the vocabulary of %d", tsk__error_path(where),
                            (int)id, (int)c->embedding_size);
        TSK__CONFIG_REQUIRE(id != c->mask_token_id, "'%s': mask_token_id and eos_token_id are both %d",
                            tsk__error_path(where), (int)id);
    }
    return TSK_OK;
}
#undef TSK__CONFIG_REQUIRE

static tsk_status tsk__config_check(const tsk_model_config *c, const char *where, tsk_error *error) {
    tsk_status status = tsk__config_check_sizes(c, where, error);
    return status == TSK_OK ? tsk__config_check_eos(c, where, error) : status;
}

int tsk_config_is_eos(const tsk_model_config *config, int32_t id) {
    int32_t i;
    if (!config) return 0;
    for (i = 0; i < config->n_eos_token_ids; i++)
        if (config->eos_token_ids[i] == id) return 1;
    return id == config->eos_token_id;
}

static void tsk__config_add_eos(tsk__config_reader *reader, const tsk_json_value *value, tsk_model_config *c) {
    int32_t id = tsk__config_integer(reader, value, "eos_token_id", 0, INT32_MAX);
    if (reader->status != TSK_OK || tsk_config_is_eos(c, id)) return;
    if (c->n_eos_token_ids == TSK_MAX_EOS_TOKENS)
        tsk__config_refuse(reader, value, "eos_token_id", ": more than %d tokens that end a text are not supported",
                           TSK_MAX_EOS_TOKENS);
    else c->eos_token_ids[c->n_eos_token_ids++] = id;
    c->eos_token_id = c->eos_token_ids[0];
}

/* Adds the end-of-sequence ids of config.json or generation_config.json, one or a list, that are not there yet. */
static void tsk__config_read_eos(tsk__config_reader *reader, tsk_model_config *c) {
    const tsk_json_value *value = tsk_json_get(reader->root, "eos_token_id"), *element;
    if (tsk__config_absent(value)) return;
    if (tsk_json_type_of(value) != TSK_JSON_ARRAY) tsk__config_add_eos(reader, value, c);
    for (element = tsk_json_first(value); element; element = tsk_json_next(element))
        tsk__config_add_eos(reader, element, c);
}

/* multi_query_attention is the older way to say how many there are: 1 or n_heads. */
static int32_t tsk__config_kv_heads(tsk__config_reader *reader, int32_t n_heads) {
    const tsk_json_value *multi_query = tsk_json_get(reader->root, "multi_query_attention");
    int is_single = tsk__config_bool(reader, "multi_query_attention", 0);
    int32_t older = is_single ? 1 : n_heads, n = tsk__config_int(reader, "n_kv_heads", 1, 1 << 12, older);
    if (reader->status == TSK_OK && !tsk__config_absent(multi_query) && n != older)
        reader->status = tsk__error_set(reader->error, TSK_ERROR_CONFIG, reader->path, tsk_json_offset(multi_query),
                                        "'%s': \"multi_query_attention\" %s means n_kv_heads %d, but that is %d",
                                        tsk__error_path(reader->path),
                                        is_single ? "true" : "false", (int)older, (int)n);
    return n;
}

/* ---- reading: see tsk__family_key */

/* What stands in for a key that is missing: 1 and *out; 0 where it must be there. */
static int tsk__config_otherwise(const tsk__family_key *key, const tsk_json_value *value, const tsk_model_config *c,
                                 int32_t *out) {
    if (key->missing == TSK__MISSING_ERROR || (key->missing == TSK__MISSING_NULL_FIELD && !value)) return 0;
    if (key->missing == TSK__MISSING_VALUE) *out = (int32_t)key->value;
    else memcpy(out, (const char *)c + key->of, sizeof *out);
    return 1;
}

static int32_t tsk__config_read_integer(tsk__config_reader *reader, const tsk__family_key *key,
                                        const tsk_model_config *c) {
    const tsk_json_value *value = tsk_json_get(reader->root, key->key);
    int32_t number;
    if (tsk__config_absent(value) && tsk__config_otherwise(key, value, c, &number)) return number;
    return tsk__config_integer(reader, value, key->key, key->low, key->high);
}

static int tsk__config_read_switch(tsk__config_reader *reader, const tsk__family_key *key, const tsk_model_config *c) {
    const tsk_json_value *value = tsk_json_get(reader->root, key->key);
    int32_t fallback = 0;
    if (!tsk__config_otherwise(key, NULL, c, &fallback) && tsk__config_absent(value))
        tsk__config_fail(reader, value, key->key, "true or false");
    return tsk__config_bool(reader, key->key, fallback);
}

/* Where the file has it in both places, >>family's demands have seen to it that they agree. */
static float tsk__config_read_positive(tsk__config_reader *reader, const tsk__family_key *key) {
    const tsk_json_value *value = tsk_json_get(reader->root, key->key);
    if (key->kind == TSK__KEY_THETA && tsk__config_absent(value))
        value = tsk_json_get(tsk_json_get(reader->root, "rope_parameters"), key->key);
    return tsk__config_positive(reader, value, key->key, key->missing == TSK__MISSING_ERROR ? 0 : key->value);
}

static void tsk__config_read_key(tsk__config_reader *reader, const tsk__family_key *key, tsk_model_config *c) {
    char *field = (char *)c + key->field;
    int32_t integer = 0, of = 0;
    float number;
    switch (key->kind) {
    case TSK__KEY_INTEGER: integer = tsk__config_read_integer(reader, key, c); break;
    case TSK__KEY_KV_HEADS: integer = tsk__config_kv_heads(reader, c->n_heads); break;
    case TSK__KEY_SWITCH: integer = tsk__config_read_switch(reader, key, c); break;
    case TSK__KEY_RATIO:
        memcpy(&of, (const char *)c + key->of, sizeof of);
        integer = of * tsk__config_read_integer(reader, key, c);
        break;
    case TSK__KEY_FIXED: integer = (int32_t)key->value; break;
    case TSK__KEY_POSITIVE:
    case TSK__KEY_THETA:
        number = tsk__config_read_positive(reader, key);
        memcpy(field, &number, sizeof number);
        return;
    case TSK__KEY_END_IDS: tsk__config_read_eos(reader, c); return;
    }
    memcpy(field, &integer, sizeof integer);
}

/* A head's size where the file does not say it. */
static void tsk__config_derive_head_dim(tsk__config_reader *reader, tsk_model_config *c) {
    if (reader->status != TSK_OK || c->n_heads <= 0 || c->head_dim) return;
    c->head_dim = c->d_model / c->n_heads;
    if (c->head_dim * c->n_heads == c->d_model || !reader->family->has_head_dim) return;
    tsk__config_fail(reader, NULL, "head_dim", "there where the heads do not share out hidden_size");
}

static void tsk__config_read(tsk__config_reader *reader, tsk_model_config *c) {
    const tsk__family *family;
    size_t i;
    memset(c, 0, sizeof *c);
    tsk__config_find_family(reader);
    if (reader->status != TSK_OK) return;
    family = reader->family;
    c->family = (tsk_family)(family - tsk__families);
    c->eos_token_id = -1;
    tsk__config_check_architectures(reader);
    for (i = 0; i < family->n_demands; i++) tsk__config_demand(reader, &family->demands[i]);
    for (i = 0; i < family->n_keys; i++) tsk__config_read_key(reader, &family->keys[i], c);
    tsk__config_derive_head_dim(reader, c);
    c->qkv_bias |= c->linear_bias;
}

static tsk_status tsk__config_open(tsk__config_reader *reader, const tsk_json *document, const char *path,
                                   tsk_error *error) {
    reader->root = tsk_json_root(document);
    reader->path = path;
    reader->family = NULL;
    reader->error = error;
    reader->status = TSK_OK;
    if (tsk_json_type_of(reader->root) == TSK_JSON_OBJECT) return TSK_OK;
    return tsk__error_set(error, TSK_ERROR_CONFIG, path, 0, "'%s' holds no JSON object", tsk__error_path(path));
}

/* config.json. It may leave the end-of-sequence id to generation_config.json: then that is -1. */
static tsk_status tsk__config_parse(const tsk_json *document, const char *path, tsk_model_config *out,
                                    tsk_error *error) {
    tsk__config_reader reader;
    tsk_status status = tsk__config_open(&reader, document, path, error);
    if (status != TSK_OK) return status;
    tsk__config_read(&reader, out);
    if (reader.status == TSK_OK) reader.status = tsk__config_check_sizes(out, path, error);
    return reader.status == TSK_OK && out->n_eos_token_ids ? tsk__config_check_eos(out, path, error) : reader.status;
}

/* generation_config.json, of which only the end-of-sequence ids count. */
static tsk_status tsk__config_parse_generation(const tsk_json *document, const char *path, tsk_model_config *out,
                                               tsk_error *error) {
    tsk__config_reader reader;
    tsk_status status = tsk__config_open(&reader, document, path, error);
    if (status != TSK_OK) return status;
    tsk__config_read_eos(&reader, out);
    return reader.status == TSK_OK && out->n_eos_token_ids ? tsk__config_check_eos(out, path, error) : reader.status;
}

/* ---- the folder */

typedef struct tsk__shard {
    const char *name;          /* in the index document, or a constant */
    tsk_safetensors *file;
} tsk__shard;

typedef struct tsk__index_entry { /* one line of the index */
    const char *tensor, *shard;
    uint64_t offset;
} tsk__index_entry;

/* What else is known of a tensor. */
typedef struct tsk__folder_place {
    int32_t shard;
    tsk__role role;
    const tsk__scheme *scheme; /* NULL: the tensor is the weight */
} tsk__folder_place;

/* Tensors by which weight they are, so that a loader asks for what it needs by meaning. */
struct tsk_folder {
    tsk_host host;
    tsk_model_config config;
    tsk_json *index;           /* NULL: one file */
    tsk__index_entry *entries; /* [n_entries] the index, sorted by tensor name */
    size_t n_entries;
    tsk__shard *shards;
    size_t n_shards, shard_capacity;
    tsk_json *settings;        /* config.json, or quantize_config.json where that says how weights are quantised */
    tsk__formats formats;      /* texts in `settings` */
    tsk_folder_tensor *tensors; /* [n_tensors] in the model's order; those of a quantised map in the order of roles */
    tsk__folder_place *places; /* [n_tensors] */
    int32_t *lookup;           /* [n_lookup] by tsk__folder_slot: index into tensors, -1 for none */
    size_t n_tensors, tensor_capacity, place_capacity, n_lookup, lookup_capacity;
    size_t dir_length;
    char path[1];              /* the folder's path and room for a file name */
};

#define TSK__FOLDER_NAME_ROOM 300

/* The folder's path with `name` appended; valid until the next call. */
static const char *tsk__folder_path(tsk_folder *folder, const char *name) {
    snprintf(folder->path + folder->dir_length, TSK__FOLDER_NAME_ROOM, "/%s", name);
    return folder->path;
}

static int tsk__folder_compare_entries(const void *a, const void *b) {
    return strcmp(((const tsk__index_entry *)a)->tensor, ((const tsk__index_entry *)b)->tensor);
}

static const tsk__index_entry *tsk__folder_entry_of(const tsk_folder *folder, const char *tensor) {
    tsk__index_entry key;
    key.tensor = tensor;
    key.shard = NULL;
    key.offset = 0;
    return folder->n_entries ? (const tsk__index_entry *)bsearch(&key, folder->entries, folder->n_entries, sizeof key,
                                                                 tsk__folder_compare_entries)
                             : NULL;
}

/* A shard must be a file of this folder: an index from a stranger could otherwise name any file of the machine. */
static int tsk__folder_name_ok(const char *name, size_t length) {
    return length > 0 && length < 256 && strlen(name) == length && !strchr(name, '/') && !strchr(name, '\\') &&
           strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static tsk_status tsk__folder_json(tsk_folder *folder, const char *name, tsk_json **out, tsk_error *error) {
    tsk_text text;
    tsk_status status;
    const char *path = tsk__folder_path(folder, name);
    memset(&text, 0, sizeof text);
    text.allocator = folder->host.allocator;
    status = tsk_read_file(path, TSK__CONFIG_MAX_FILE, &folder->host, &text, error);
    if (status == TSK_OK) status = tsk_json_parse(text.data, text.length, path, folder->host.allocator, out, error);
    tsk_text_free(&text);
    return status;
}

static int tsk__folder_has(tsk_folder *folder, const char *name) {
    return tsk__file_exists(tsk__folder_path(folder, name), &folder->host);
}

static tsk_status tsk__folder_read_index(tsk_folder *folder, tsk_error *error) {
    static const char name[] = "model.safetensors.index.json";
    const tsk_json_value *map, *entry;
    size_t i = 0, length, key_length;
    tsk_status status = tsk__folder_json(folder, name, &folder->index, error);
    const char *path = tsk__folder_path(folder, name);
    if (status != TSK_OK) return status;
    map = tsk_json_get(tsk_json_root(folder->index), "weight_map");
    if (tsk_json_type_of(map) != TSK_JSON_OBJECT)
        return tsk__error_set(error, TSK_ERROR_CONFIG, path, TSK_NO_OFFSET, "'%s': \"weight_map\" must be an object",
                              tsk__error_path(path));
    folder->n_entries = tsk_json_count(map);
    folder->entries =
        (tsk__index_entry *)tsk__memory_new(folder->host.allocator, folder->n_entries, sizeof *folder->entries);
    if (!folder->entries) return tsk__error_memory(error, path, folder->n_entries * sizeof *folder->entries);
    for (entry = tsk_json_first(map); entry; entry = tsk_json_next(entry), i++) {
        folder->entries[i].tensor = tsk_json_key(entry, &key_length);
        folder->entries[i].shard = tsk_json_string(entry, &length);
        folder->entries[i].offset = tsk_json_offset(entry);
        if (!folder->entries[i].shard || !tsk__folder_name_ok(folder->entries[i].shard, length))
            return tsk__error_set(error, TSK_ERROR_CONFIG, path, tsk_json_offset(entry),
                                  "'%s': tensor '%.80s' must name a file of this folder, not '%.80s'",
                                  tsk__error_path(path), folder->entries[i].tensor,
                                  folder->entries[i].shard ? folder->entries[i].shard : "something that is no text");
    }
    qsort(folder->entries, folder->n_entries, sizeof *folder->entries, tsk__folder_compare_entries);
    for (i = 1; i < folder->n_entries; i++)
        if (strcmp(folder->entries[i].tensor, folder->entries[i - 1].tensor) == 0)
            return tsk__error_set(error, TSK_ERROR_CONFIG, path, folder->entries[i].offset,
                                  "'%s': tensor '%.80s' is listed twice", tsk__error_path(path),
                                  folder->entries[i].tensor);
    return TSK_OK;
}

/* The shard of that name, opened when first asked for. */
static tsk_status tsk__folder_shard(tsk_folder *folder, const char *name, int32_t *out, tsk_error *error) {
    size_t i;
    tsk_status status;
    for (i = 0; i < folder->n_shards && strcmp(folder->shards[i].name, name) != 0; i++) {
    }
    *out = (int32_t)i;
    if (i < folder->n_shards) return TSK_OK;
    if (!tsk__memory_reserve(folder->host.allocator, &folder->shards, &folder->shard_capacity, i + 1,
                             sizeof *folder->shards))
        return tsk__error_memory(error, "the list of shards", (i + 1) * sizeof *folder->shards);
    folder->shards[i].name = name;
    folder->shards[i].file = NULL;
    status = tsk_safetensors_open(tsk__folder_path(folder, name), &folder->host, &folder->shards[i].file, error);
    if (status == TSK_OK) folder->n_shards++;
    return status;
}

static void tsk__folder_shape_text(int n_dims, const uint64_t *shape, char *out, size_t size) {
    int i;
    size_t used = (size_t)snprintf(out, size, "[");
    for (i = 0; i < n_dims && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%llu", i ? ", " : "", (unsigned long long)shape[i]);
    if (used < size) snprintf(out + used, size - used, "]");
}

/* "F32, F16 or BF16" */
static void tsk__folder_type_names(const tsk_dtype *dtypes, char *out, size_t size) {
    size_t used = 0;
    int i;
    for (i = 0; i < 3 && dtypes[i] != TSK_DTYPE_AUTO && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s",
                                 !i ? "" : i == 2 || dtypes[i + 1] == TSK_DTYPE_AUTO ? " or " : ", ",
                                 tsk_dtype_name(dtypes[i]));
}

static int tsk__folder_has_shape(const tsk_tensor_info *info, const tsk__role_tensor *expected) {
    uint64_t count = 1, wanted = 1;
    int i;
    if (info->n_dims == expected->n_dims &&
        memcmp(info->shape, expected->shape, (size_t)info->n_dims * sizeof *info->shape) == 0)
        return 1;
    for (i = 0; i < info->n_dims; i++) count *= info->shape[i];
    for (i = 0; i < expected->n_dims; i++) wanted *= expected->shape[i];
    return expected->or_fewer && info->n_dims < expected->n_dims && count == wanted;
}

static tsk_status tsk__folder_check_tensor(tsk_folder *folder, const tsk_tensor_info *info, const char *shard,
                                           const tsk__role_tensor *tensor, tsk_error *error) {
    char expected[64], found[200];
    const char *path = tsk__folder_path(folder, shard);
    if (info->dtype == TSK_DTYPE_AUTO || (info->dtype != tensor->dtypes[0] && info->dtype != tensor->dtypes[1] &&
                                          info->dtype != tensor->dtypes[2])) {
        tsk__folder_type_names(tensor->dtypes, expected, sizeof expected);
        return tsk__error_set(error, TSK_ERROR_TENSOR, path, info->offset,
                              "'%s': tensor '%.120s' has type %s; expected %s", tsk__error_path(path), info->name,
                              tsk_dtype_name(info->dtype), expected);
    }
    if (tsk__folder_has_shape(info, tensor)) return TSK_OK;
    tsk__folder_shape_text(tensor->n_dims, tensor->shape, expected, sizeof expected);
    tsk__folder_shape_text(info->n_dims, info->shape, found, sizeof found);
    return tsk__error_set(error, TSK_ERROR_TENSOR, path, info->offset,
                          "'%s': tensor '%.120s' has shape %s; expected %s by config.json", tsk__error_path(path),
                          info->name, found, expected);
}

static size_t tsk__folder_slot(const tsk_folder *folder, const tsk__weight_id *id) {
    size_t index = tsk__family_index(&folder->config, id->layer, (tsk__part)id->part, id->expert);
    return index * 2 + (size_t)id->is_bias;
}

/* Makes room for one more tensor, and for slots up to its own, so that a claim of more layers than the files hold costs
   nothing. */
static tsk_status tsk__folder_grow(tsk_folder *folder, size_t slot, tsk_error *error) {
    const tsk_allocator *allocator = folder->host.allocator;
    size_t needed = folder->n_tensors + 1;
    if (!tsk__memory_reserve(allocator, &folder->tensors, &folder->tensor_capacity, needed, sizeof *folder->tensors) ||
        !tsk__memory_reserve(allocator, &folder->places, &folder->place_capacity, needed, sizeof *folder->places) ||
        !tsk__memory_reserve(allocator, &folder->lookup, &folder->lookup_capacity, slot + 1, sizeof(int32_t)))
        return tsk__error_memory(error, "the list of tensors", needed * sizeof *folder->tensors);
    while (folder->n_lookup <= slot) folder->lookup[folder->n_lookup++] = -1;
    return TSK_OK;
}

static tsk_status tsk__folder_missing(tsk_folder *folder, const char *file, const char *tensor, tsk_error *error) {
    const char *path = tsk__folder_path(folder, file);
    return tsk__error_set(error, TSK_ERROR_TENSOR, path, TSK_NO_OFFSET, "'%s': tensor '%s' is missing",
                          tsk__error_path(path), tensor);
}

/* The file that a tensor of that name should be in, opened; *info NULL where neither the index nor the file has it. */
static tsk_status tsk__folder_look_up(tsk_folder *folder, const char *name, int32_t *shard,
                                      const tsk_tensor_info **info, tsk_error *error) {
    const tsk__index_entry *listed = tsk__folder_entry_of(folder, name);
    tsk_status status;
    *info = NULL;
    *shard = -1;
    if (folder->index && !listed) return TSK_OK;
    status = tsk__folder_shard(folder, listed ? listed->shard : "model.safetensors", shard, error);
    if (status == TSK_OK) *info = tsk_safetensors_find(folder->shards[*shard].file, name);
    return status;
}

static tsk_status tsk__folder_add_tensor(tsk_folder *folder, const tsk__weight_id *id, const char *name,
                                         const tsk__role_tensor *expected, tsk__folder_place place,
                                         tsk_error *error) {
    const tsk_tensor_info *info;
    size_t slot = tsk__folder_slot(folder, id);
    tsk_status status = tsk__folder_grow(folder, slot, error);
    if (status == TSK_OK) status = tsk__folder_look_up(folder, name, &place.shard, &info, error);
    if (status != TSK_OK) return status;
    if (!info && expected->is_optional) return TSK_OK;
    if (!info)
        return tsk__folder_missing(folder, place.shard < 0 ? "model.safetensors.index.json"
                                                           : folder->shards[place.shard].name, name, error);
    folder->tensors[folder->n_tensors].shard = folder->shards[place.shard].name;
    folder->tensors[folder->n_tensors].info = info;
    folder->places[folder->n_tensors] = place;
    if (place.role == TSK__ROLE_VALUES) folder->lookup[slot] = (int32_t)folder->n_tensors;
    folder->n_tensors++;
    return tsk__folder_check_tensor(folder, info, folder->shards[place.shard].name, expected, error);
}

static tsk_status tsk__folder_add_plain(tsk_folder *folder, const tsk__weight_id *id, const char *name,
                                        tsk_error *error) {
    tsk__role_tensor expected;
    tsk__folder_place place;
    memset(&expected, 0, sizeof expected);
    memset(&place, 0, sizeof place);
    tsk__family_shape(&folder->config, id, expected.shape);
    tsk__role_types(&expected, TSK_DTYPE_F32, TSK_DTYPE_F16, TSK_DTYPE_BF16);
    expected.n_dims = tsk__family_is_vector(&folder->config, id) ? 1 : 2;
    return tsk__folder_add_tensor(folder, id, name, &expected, place, error);
}

/* Sizes that the layout cannot have. `name` is the map's. */
static tsk_status tsk__folder_check_scheme(tsk_folder *folder, const tsk__scheme *s, const char *name,
                                           const uint64_t shape[2], tsk_error *error) {
    const char *path = tsk__folder_path(folder, "config.json");
    const uint64_t words = 32 / (uint64_t)s->bits;
    if (s->layout != TSK__LAYOUT_FP8 && s->group && shape[1] % (uint64_t)s->group)
        return tsk__error_set(error, TSK_ERROR_TENSOR, path, TSK_NO_OFFSET,
                              "'%s': groups of %d do not divide the %llu columns of '%.120s'", tsk__error_path(path),
                              (int)s->group, (unsigned long long)shape[1], name);
    if ((s->layout == TSK__LAYOUT_GPTQ && (shape[0] % words || shape[1] % words)) ||
        (s->layout == TSK__LAYOUT_AWQ && shape[0] % words))
        return tsk__error_set(error, TSK_ERROR_TENSOR, path, TSK_NO_OFFSET,
                              "'%s': words of %llu codes do not divide the shape [%llu, %llu] of '%.120s'",
                              tsk__error_path(path), (unsigned long long)words, (unsigned long long)shape[0],
                              (unsigned long long)shape[1], name);
    return TSK_OK;
}

static tsk_status tsk__folder_add_quantised(tsk_folder *folder, const tsk__weight_id *id, const tsk__scheme *scheme,
                                            const char *module, tsk_error *error) {
    char name[TSK__FAMILY_NAME + 24];
    tsk__role_tensor expected;
    tsk__folder_place place;
    uint64_t shape[2];
    tsk_status status;
    int role;
    tsk__family_shape(&folder->config, id, shape);
    status = tsk__folder_check_scheme(folder, scheme, module, shape, error);
    place.shard = -1;
    place.scheme = scheme;
    for (role = 0; role < (int)TSK__ROLES && status == TSK_OK; role++) {
        place.role = (tsk__role)role;
        tsk__scheme_tensor(scheme, place.role, shape[0], shape[1], &expected);
        if (!expected.suffix) continue;
        snprintf(name, sizeof name, "%s%s", module, expected.suffix);
        status = tsk__folder_add_tensor(folder, id, name, &expected, place, error);
    }
    return status;
}

/* GPTQ and AWQ do not say of all maps whether they are quantised: what tensor is there decides. */
static tsk_status tsk__folder_is_plain(tsk_folder *folder, const tsk__scheme *scheme, const char *weight, int *is_plain,
                                       tsk_error *error) {
    const tsk_tensor_info *info = NULL;
    int32_t shard;
    tsk_status status = TSK_OK;
    if (scheme->layout == TSK__LAYOUT_GPTQ || scheme->layout == TSK__LAYOUT_AWQ)
        status = tsk__folder_look_up(folder, weight, &shard, &info, error);
    *is_plain = info != NULL;
    return status;
}

static tsk_status tsk__folder_add(tsk_folder *folder, const tsk__weight_id *id, tsk_error *error) {
    char name[TSK__FAMILY_NAME], module[TSK__FAMILY_NAME];
    const tsk__scheme *scheme = NULL;
    size_t length;
    tsk_status status = TSK_OK;
    int is_plain = 0;
    tsk__family_name(&folder->config, id, name);
    memcpy(module, name, sizeof module);
    length = strlen(module);
    if (length > 7 && strcmp(module + length - 7, ".weight") == 0) module[length - 7] = 0;
    if (!tsk__family_is_vector(&folder->config, id))
        scheme = tsk__formats_scheme(&folder->formats, module, id->part == (int)TSK__PART_EMBEDDING);
    if (scheme) status = tsk__folder_is_plain(folder, scheme, name, &is_plain, error);
    if (status != TSK_OK) return status;
    if (scheme && !is_plain) return tsk__folder_add_quantised(folder, id, scheme, module, error);
    return tsk__folder_add_plain(folder, id, name, error);
}

/* Weights of another architecture must not be dropped in silence. Two kinds are known to be harmless: tables of rotary
   frequencies, and the head of a model whose head is tied. */
static int tsk__folder_is_harmless(const tsk_folder *folder, const char *name) {
    size_t length = strlen(name);
    if (length >= 8 && strcmp(name + length - 8, "inv_freq") == 0) return 1;
    return folder->config.weight_tying &&
           strcmp(name, tsk__family_part_of(&folder->config, TSK__PART_HEAD)->weight) == 0;
}

static int tsk__folder_compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static tsk_status tsk__folder_check_unknown(tsk_folder *folder, tsk_error *error) {
    const char **known = (const char **)tsk__memory_new(folder->host.allocator, folder->n_tensors, sizeof *known);
    tsk_status status = TSK_OK;
    size_t i, j;
    if (!known) return tsk__error_memory(error, "tensor names", folder->n_tensors * sizeof *known);
    for (i = 0; i < folder->n_tensors; i++) known[i] = folder->tensors[i].info->name;
    qsort(known, folder->n_tensors, sizeof *known, tsk__folder_compare_names);
    for (i = 0; i < folder->n_entries && status == TSK_OK; i++) {
        const char *name = folder->entries[i].tensor, *path;
        if (bsearch(&name, known, folder->n_tensors, sizeof *known, tsk__folder_compare_names) ||
            tsk__folder_is_harmless(folder, name))
            continue;
        path = tsk__folder_path(folder, "model.safetensors.index.json");
        status = tsk__error_set(error, TSK_ERROR_TENSOR, path, folder->entries[i].offset,
                                "'%s': tensor '%.120s' is not part of this architecture", tsk__error_path(path), name);
    }
    for (i = 0; i < folder->n_shards && status == TSK_OK; i++) {
        for (j = 0; j < tsk_safetensors_count(folder->shards[i].file) && status == TSK_OK; j++) {
            const tsk_tensor_info *info = tsk_safetensors_get(folder->shards[i].file, j);
            const tsk__index_entry *listed = tsk__folder_entry_of(folder, info->name);
            const char *path;
            if (bsearch(&info->name, known, folder->n_tensors, sizeof *known, tsk__folder_compare_names)
                    ? !folder->index || (listed && strcmp(listed->shard, folder->shards[i].name) == 0)
                    : tsk__folder_is_harmless(folder, info->name))
                continue;
            path = tsk__folder_path(folder, folder->shards[i].name);
            status = listed && strcmp(listed->shard, folder->shards[i].name) != 0
                         ? tsk__error_set(error, TSK_ERROR_TENSOR, path, info->offset,
                                          "'%s': tensor '%.120s' is also here, but the index places it in '%s'",
                                          tsk__error_path(path), info->name, listed->shard)
                         : tsk__error_set(error, TSK_ERROR_TENSOR, path, info->offset,
                                          "'%s': tensor '%.120s' is not part of this architecture",
                                          tsk__error_path(path), info->name);
        }
    }
    tsk__memory_delete(folder->host.allocator, known);
    return status;
}

static int tsk__folder_ends_with(const char *name, const char *suffix) {
    size_t length = strlen(name), end = strlen(suffix);
    return length >= end && strcmp(name + length - end, suffix) == 0;
}

/* The first of the folder's tensors, as far as they are known, whose name ends so; NULL for none. */
static const char *tsk__folder_suffixed(const tsk_folder *folder, const char *suffix) {
    size_t i, j;
    for (i = 0; i < folder->n_entries; i++)
        if (tsk__folder_ends_with(folder->entries[i].tensor, suffix)) return folder->entries[i].tensor;
    for (i = 0; i < folder->n_shards; i++)
        for (j = 0; j < tsk_safetensors_count(folder->shards[i].file); j++) {
            const char *name = tsk_safetensors_get(folder->shards[i].file, j)->name;
            if (tsk__folder_ends_with(name, suffix)) return name;
        }
    return NULL;
}

/* Where tensors are not as they should be: TSK_OK, or an error that says that they are quantised, by the names that the
   usual programs give to what they add. */
static tsk_status tsk__folder_check_quantised(tsk_folder *folder, tsk_error *error) {
    static const struct { const char *suffix, *method;
    } marks[] = {{".qweight", "GPTQ or AWQ"},
                 {".qzeros", "GPTQ or AWQ"},
                 {".weight_packed", "compressed-tensors"},
                 {".weight.quant_map", "bitsandbytes"},
                 {".weight.absmax", "bitsandbytes"},
                 {".SCB", "bitsandbytes"},
                 {".weight_scale_inv", "FP8 in blocks"},
                 {".weight_scale", "compressed-tensors or FP8"},
                 {".W_q", "HQQ"},
                 {".codebooks", "AQLM"},
                 {".scales", "MLX or GPTQ"}};
    size_t i;
    for (i = 0; i < sizeof marks / sizeof marks[0]; i++) {
        const char *name = tsk__folder_suffixed(folder, marks[i].suffix);
        if (!name) continue;
        folder->path[folder->dir_length] = 0;
        return tsk__error_set(
            error, TSK_ERROR_UNSUPPORTED, folder->path, TSK_NO_OFFSET,
            "'%s': quantised weights (%s: tensor '%.80s') are not supported: " TSK__CONFIG_UNQUANTISED,
            tsk__error_path(folder->path), marks[i].method, name);
    }
    return TSK_OK;
}

static tsk_status tsk__folder_resolve(tsk_folder *folder, tsk_error *error) {
    tsk__weight_id id = tsk__family_first();
    tsk_status status;
    do status = tsk__folder_add(folder, &id, error);
    while (status == TSK_OK && tsk__family_next(&folder->config, &id));
    return status == TSK_OK ? tsk__folder_check_unknown(folder, error) : status;
}

/* The tensor that a weight has for a role, and its file; NULL where it has none. *scheme (may be NULL) becomes how the
   weight is quantised, NULL where it is not. */
static const tsk_tensor_info *tsk__folder_find_role(const tsk_folder *folder, const tsk__weight_id *id, tsk__role role,
                                                    const tsk_safetensors **file, const tsk__scheme **scheme) {
    size_t slot = tsk__folder_slot(folder, id), i;
    if (slot >= folder->n_lookup || folder->lookup[slot] < 0) return NULL;
    i = (size_t)folder->lookup[slot];
    if (scheme) *scheme = folder->places[i].scheme;
    while (folder->places[i].role != role)
        if (++i == folder->n_tensors || folder->places[i].role == TSK__ROLE_VALUES) return NULL;
    *file = folder->shards[folder->places[i].shard].file;
    return folder->tensors[i].info;
}

/* config.json, which stays open. How its weights are quantised may stand in quantize_config.json instead, as GPTQ's
   older programs wrote it. */
static tsk_status tsk__folder_read_settings(tsk_folder *folder, tsk_error *error) {
    const tsk_json_value *value = NULL;
    const char *name = "config.json", *key = "quantization_config", *fallback = NULL;
    tsk_status status = tsk__folder_json(folder, name, &folder->settings, error);
    if (status == TSK_OK)
        status = tsk__config_parse(folder->settings, tsk__folder_path(folder, name), &folder->config, error);
    if (status == TSK_OK) value = tsk_json_get(tsk_json_root(folder->settings), key);
    if (status == TSK_OK && tsk__config_absent(value)) { /* its older name */
        key = "compression_config", fallback = "compressed-tensors";
        value = tsk_json_get(tsk_json_root(folder->settings), key);
    }
    if (status == TSK_OK && tsk__config_absent(value) && tsk__folder_has(folder, "quantize_config.json")) {
        name = "quantize_config.json", key = NULL, fallback = "gptq";
        tsk_json_free(folder->settings);
        folder->settings = NULL;
        status = tsk__folder_json(folder, name, &folder->settings, error);
        value = tsk_json_root(folder->settings);
    }
    if (status != TSK_OK || tsk__config_absent(value)) return status;
    return tsk__formats_read(&folder->formats, value, key, fallback, tsk__folder_path(folder, name),
                             folder->host.allocator, error);
}

static tsk_status tsk__folder_read_generation(tsk_folder *folder, tsk_error *error) {
    static const char name[] = "generation_config.json";
    tsk_json *document = NULL;
    tsk_status status = tsk__folder_json(folder, name, &document, error);
    if (status == TSK_OK)
        status = tsk__config_parse_generation(document, tsk__folder_path(folder, name), &folder->config, error);
    tsk_json_free(document);
    return status;
}

static tsk_status tsk__folder_read_config(tsk_folder *folder, tsk_error *error) {
    tsk_status status = tsk__folder_read_settings(folder, error);
    const char *path;
    if (status == TSK_OK && tsk__folder_has(folder, "generation_config.json"))
        status = tsk__folder_read_generation(folder, error);
    path = tsk__folder_path(folder, "config.json");
    if (status == TSK_OK && !folder->config.n_eos_token_ids)
        status = tsk__error_set(error, TSK_ERROR_CONFIG, path, TSK_NO_OFFSET,
                                "'%s': \"eos_token_id\" is missing, in generation_config.json too",
                                tsk__error_path(path));
    return status;
}

static tsk_status tsk__folder_load(tsk_folder *folder, tsk_error *error) {
    tsk_status status = tsk__folder_read_config(folder, error), quantised;
    if (status == TSK_OK && !tsk__folder_has(folder, "model.safetensors")) {
        if (!tsk__folder_has(folder, "model.safetensors.index.json")) {
            int pickled =
                tsk__folder_has(folder, "pytorch_model.bin") || tsk__folder_has(folder, "pytorch_model.bin.index.json");
            folder->path[folder->dir_length] = 0;
            return tsk__error_set(error, TSK_ERROR_IO, folder->path, TSK_NO_OFFSET,
                                  "'%s' holds neither model.safetensors nor model.safetensors.index.json%s",
                                  tsk__error_path(folder->path),
                                  pickled
                                      ? "; the weights in its pytorch_model.bin must first be converted to safetensors"
                                      : "");
        }
        status = tsk__folder_read_index(folder, error);
    }
    if (status == TSK_OK) status = tsk__folder_resolve(folder, error);
    quantised = status == TSK_ERROR_TENSOR && !folder->formats.method ? tsk__folder_check_quantised(folder, error)
                                                                      : TSK_OK;
    return quantised == TSK_OK ? status : quantised;
}

/* A folder of which nothing has been read. */
static tsk_status tsk__folder_new(const char *dir, const tsk_host *host, tsk_folder **out, tsk_error *error) {
    const tsk_allocator *allocator = tsk__memory_allocator(host);
    size_t length = dir ? strlen(dir) : 0;
    tsk_folder *folder;
    *out = NULL;
    if (!length) return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "no model folder given");
    while (length > 1 && dir[length - 1] == '/') length--;
    folder = (tsk_folder *)tsk__memory_new_zeroed(allocator, 1, sizeof *folder + length + TSK__FOLDER_NAME_ROOM);
    if (!folder) return tsk__error_memory(error, dir, sizeof *folder + length);
    if (host) folder->host = *host;
    folder->host.allocator = allocator;
    memcpy(folder->path, dir, length);
    folder->dir_length = length;
    *out = folder;
    return TSK_OK;
}

tsk_status tsk_folder_open(const char *dir, const tsk_host *host, tsk_folder **out, tsk_error *error) {
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_folder_open", "out");
    status = tsk__folder_new(dir, host, out, error);
    if (status == TSK_OK) status = tsk__folder_load(*out, error);
    if (status == TSK_OK) return TSK_OK;
    tsk_folder_free(*out);
    *out = NULL;
    return status;
}

tsk_status tsk_config_load(const char *dir, const tsk_host *host, tsk_model_config *out, tsk_error *error) {
    tsk_folder *folder = NULL;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_config_load", "out");
    memset(out, 0, sizeof *out);
    status = tsk__folder_new(dir, host, &folder, error);
    if (status == TSK_OK) status = tsk__folder_read_config(folder, error);
    if (status == TSK_OK) *out = folder->config;
    tsk_folder_free(folder);
    return status;
}

const char *tsk_family_name(tsk_family family) {
    return (int)family >= 0 && (int)family < TSK__FAMILIES ? tsk__families[(int)family].name : "";
}

int tsk_config_by_blocks(const tsk_model_config *config) {
    return config && (int)config->family >= 0 && (int)config->family < TSK__FAMILIES &&
           tsk__family_of(config)->by_blocks;
}

void tsk_folder_free(tsk_folder *folder) {
    const tsk_allocator *allocator;
    size_t i;
    if (!folder) return;
    allocator = folder->host.allocator;
    for (i = 0; i < folder->n_shards; i++) tsk_safetensors_free(folder->shards[i].file);
    tsk__memory_delete(allocator, folder->shards);
    tsk__memory_delete(allocator, folder->entries);
    tsk__memory_delete(allocator, folder->tensors);
    tsk__memory_delete(allocator, folder->places);
    tsk__memory_delete(allocator, folder->lookup);
    tsk_json_free(folder->index);
    tsk__formats_free(&folder->formats);
    tsk_json_free(folder->settings);
    tsk__memory_delete(allocator, folder);
}

const tsk_model_config *tsk_folder_config(const tsk_folder *folder) { return folder ? &folder->config : NULL; }
const char *tsk_folder_quant_method(const tsk_folder *folder) { return folder ? folder->formats.method : NULL; }
size_t tsk_folder_count(const tsk_folder *folder) { return folder ? folder->n_tensors : 0; }
const tsk_folder_tensor *tsk_folder_get(const tsk_folder *folder, size_t index) {
    return folder && index < folder->n_tensors ? &folder->tensors[index] : NULL;
}
uint64_t tsk_folder_weights_size(const tsk_folder *folder) {
    uint64_t sum = 0;
    size_t i;
    for (i = 0; folder && i < folder->n_tensors; i++) sum += folder->tensors[i].info->size;
    return sum;
}

#endif /* SECTION_GUARD_CONFIG */
