#ifndef SECTION_GUARD_FORMATS
#define SECTION_GUARD_FORMATS

#include "error.h"
#include "memory.h"
#include "json.h"
#include "pattern.h"

// >>formats ===========================================================================================================
/* What a quantised folder says of itself: "quantization_config" of config.json (or GPTQ's quantize_config.json) becomes
   rules that say of every linear map how its tensors are laid out, or that it is not quantised. What is not understood
   is refused by its name. Tensors and their shapes are the business of >>config, their values that of >>weights.

   Layouts, for a map of `rows` outputs and `cols` inputs, G = cols / group groups of columns, b bits a code; words are
   int32, filled from their lowest bits on. value = scale * (code - zero), in f32.

     PACKED  compressed-tensors, pack-quantized
               X.weight_packed  [rows, cols b/32] words along the columns; code = stored
               X.weight_scale   [rows, G]; X.weight_zero_point [rows b/32, G] words along the rows, where asymmetric;
               X.weight_shape   [2] = rows, cols; X.weight_g_idx [cols]: each column's group, where ordered
               zero             2^(b-1) where symmetric (the format stores code and zero with 2^(b-1) added)
     BYTES   compressed-tensors, int-quantized and naive-quantized
               X.weight I8 [rows, cols]; X.weight_scale [rows, 1], [rows, G] or one for all; X.weight_zero_point I8
     FP8     compressed-tensors, float-quantized: X.weight F8_E4M3 [rows, cols]; X.weight_scale one for all, [rows, 1]
             or one for each block of rows and columns; "fp8" (DeepSeek's): the last, as X.weight_scale_inv
     GPTQ    X.qweight [cols b/32, rows] words along the columns; X.scales [G, rows]; X.g_idx [cols];
             X.qzeros [G, rows b/32] words along the rows, one less than the zero unless the format is gptq_v2
     AWQ     version gemm: X.qweight [cols, rows b/32] and X.qzeros [G, rows b/32] words along the rows, in the order
             0 2 4 6 1 3 5 7; X.scales [G, rows] */

typedef enum tsk__layout {
    TSK__LAYOUT_PACKED, TSK__LAYOUT_BYTES, TSK__LAYOUT_FP8, TSK__LAYOUT_GPTQ, TSK__LAYOUT_AWQ
} tsk__layout;

typedef struct tsk__scheme {
    tsk__layout layout;
    int32_t bits;
    int32_t group;             /* columns that share a scale; 0: all of a row */
    int32_t scale_rows;        /* rows that share one; 0: all */
    const char *scales;        /* how the scales' tensor is named behind the map's name */
    int has_zeros;             /* 0: symmetric */
    int zero_added;            /* to what is stored as a zero */
    int is_ordered;            /* 1: a tensor says each column's group; PACKED only, GPTQ's may always be there */
} tsk__scheme;

typedef enum tsk__format_kind {
    TSK__FORMAT_NAME,          /* the map's name */
    TSK__FORMAT_PATTERN,       /* see >>pattern */
    TSK__FORMAT_CLASS,         /* "Linear", "Embedding" */
    TSK__FORMAT_PART           /* some of the name */
} tsk__format_kind;

typedef struct tsk__format_rule {
    tsk__format_kind kind;
    const char *text;          /* in the document */
    int32_t scheme;            /* index, or -1: not quantised */
} tsk__format_rule;

typedef struct tsk__formats {
    const tsk_allocator *allocator;
    const char *method;        /* "compressed-tensors", ...; NULL: nothing is quantised */
    tsk__scheme *schemes;
    tsk__format_rule *rules;   /* the first that applies counts: by kind, then as they stand in the file */
    size_t n_schemes, scheme_capacity, n_rules, rule_capacity;
} tsk__formats;

typedef struct tsk__formats_reader {
    tsk__formats *formats;
    const char *path, *key;    /* the file, and what the object is there; NULL: all of it */
    tsk_error *error;
    tsk_status status;         /* the first failure; later reads do nothing */
} tsk__formats_reader;

static void tsk__formats_free(tsk__formats *f) {
    tsk__memory_delete(f->allocator, f->schemes);
    tsk__memory_delete(f->allocator, f->rules);
    f->schemes = NULL, f->rules = NULL;
}

/* "'path': "quantization_config": ..." */
static void TSK__PRINTF(3, 4)
    tsk__formats_refuse(tsk__formats_reader *r, const tsk_json_value *at, const char *format, ...) {
    char message[300];
    va_list arguments;
    if (r->status != TSK_OK) return;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    r->status = tsk__error_set(r->error, TSK_ERROR_UNSUPPORTED, r->path, at ? tsk_json_offset(at) : TSK_NO_OFFSET,
                               "'%s': %s%s%s%s", tsk__error_path(r->path), r->key ? "\"" : "",
                               r->key ? r->key : "", r->key ? "\": " : "", message);
}

static int tsk__formats_absent(const tsk_json_value *value) {
    tsk_json_type type = tsk_json_type_of(value);
    return type == TSK_JSON_NONE || type == TSK_JSON_NULL;
}

static int64_t tsk__formats_integer(tsk__formats_reader *r, const tsk_json_value *object, const char *key,
                                    int64_t fallback) {
    const tsk_json_value *value = tsk_json_get(object, key);
    int64_t number = fallback;
    if (!tsk__formats_absent(value) && !tsk_json_int64(value, &number))
        tsk__formats_refuse(r, value, "\"%s\" must be an integer", key);
    return number;
}

static int tsk__formats_switch(tsk__formats_reader *r, const tsk_json_value *object, const char *key, int fallback) {
    const tsk_json_value *value = tsk_json_get(object, key);
    int truth = fallback;
    if (!tsk__formats_absent(value) && !tsk_json_bool(value, &truth))
        tsk__formats_refuse(r, value, "\"%s\" must be true or false", key);
    return truth;
}

/* `fallback` where the key is absent; "" after a failure. */
static const char *tsk__formats_text(tsk__formats_reader *r, const tsk_json_value *object, const char *key,
                                     const char *fallback) {
    const tsk_json_value *value = tsk_json_get(object, key);
    const char *text = tsk_json_string(value, NULL);
    if (tsk__formats_absent(value)) return fallback;
    if (!text) tsk__formats_refuse(r, value, "\"%s\" must be a text", key);
    return text ? text : "";
}

/* A key that must have this value, or be absent. */
static void tsk__formats_only(tsk__formats_reader *r, const tsk_json_value *object, const char *key,
                              const char *only) {
    const char *text = tsk__formats_text(r, object, key, only);
    if (r->status == TSK_OK && strcmp(text, only) != 0)
        tsk__formats_refuse(r, tsk_json_get(object, key), "\"%s\" is \"%.60s\"; only \"%s\" is supported", key, text,
                            only);
}

static void tsk__formats_without(tsk__formats_reader *r, const tsk_json_value *object, const char *key) {
    const tsk_json_value *value = tsk_json_get(object, key);
    if (!tsk__formats_absent(value) && !(tsk_json_type_of(value) == TSK_JSON_OBJECT && !tsk_json_count(value)))
        tsk__formats_refuse(r, value, "\"%s\" is not supported", key);
}

static int32_t tsk__formats_add_scheme(tsk__formats_reader *r, const tsk__scheme *scheme) {
    tsk__formats *f = r->formats;
    if (r->status != TSK_OK) return -1;
    if (!tsk__memory_reserve(f->allocator, &f->schemes, &f->scheme_capacity, f->n_schemes + 1, sizeof *f->schemes)) {
        r->status = tsk__error_memory(r->error, "quantisation schemes", (f->n_schemes + 1) * sizeof *f->schemes);
        return -1;
    }
    f->schemes[f->n_schemes] = *scheme;
    return (int32_t)f->n_schemes++;
}

/* Behind those of the same or an earlier kind, and behind all that leave something out. */
static void tsk__formats_add_rule(tsk__formats_reader *r, tsk__format_kind kind, const tsk_json_value *value,
                                  const char *text, int32_t scheme) {
    tsk__formats *f = r->formats;
    size_t at = f->n_rules;
    const char *problem;
    tsk__pattern pattern;
    if (r->status != TSK_OK) return;
    if (!text) {
        tsk__formats_refuse(r, value, "a module must be named by a text");
        return;
    }
    if (kind == TSK__FORMAT_PATTERN && (problem = tsk__pattern_read(&pattern, text)) != NULL) {
        tsk__formats_refuse(r, value, "the pattern \"%.80s\" %s", text, problem);
        return;
    }
    if (!tsk__memory_reserve(f->allocator, &f->rules, &f->rule_capacity, f->n_rules + 1, sizeof *f->rules)) {
        r->status = tsk__error_memory(r->error, "quantisation rules", (f->n_rules + 1) * sizeof *f->rules);
        return;
    }
    while (at > 0 && f->rules[at - 1].scheme >= 0 && f->rules[at - 1].kind > kind) {
        f->rules[at] = f->rules[at - 1];
        at--;
    }
    f->rules[at].kind = kind;
    f->rules[at].text = text;
    f->rules[at].scheme = scheme;
    f->n_rules++;
}

/* ---- compressed-tensors */

/* "re:pattern", a class, or a module's name. */
static void tsk__formats_add_target(tsk__formats_reader *r, const tsk_json_value *value, int32_t scheme) {
    const char *text = tsk_json_string(value, NULL);
    if (text && strncmp(text, "re:", 3) == 0) tsk__formats_add_rule(r, TSK__FORMAT_PATTERN, value, text + 3, scheme);
    else if (text && (strcmp(text, "Linear") == 0 || strcmp(text, "Embedding") == 0))
        tsk__formats_add_rule(r, TSK__FORMAT_CLASS, value, text, scheme);
    else tsk__formats_add_rule(r, TSK__FORMAT_NAME, value, text, scheme);
}

static void tsk__formats_add_targets(tsk__formats_reader *r, const tsk_json_value *list, const char *key,
                                     int32_t scheme) {
    const tsk_json_value *element;
    if (tsk__formats_absent(list)) return;
    if (tsk_json_type_of(list) != TSK_JSON_ARRAY) tsk__formats_refuse(r, list, "\"%s\" must be a list", key);
    for (element = tsk_json_first(list); element; element = tsk_json_next(element))
        tsk__formats_add_target(r, element, scheme);
}

static tsk__layout tsk__formats_layout(tsk__formats_reader *r, const tsk_json_value *group, const char *format,
                                       int is_float) {
    if (strcmp(format, "pack-quantized") == 0 && !is_float) return TSK__LAYOUT_PACKED;
    if (strcmp(format, "int-quantized") == 0 && !is_float) return TSK__LAYOUT_BYTES;
    if (strcmp(format, "naive-quantized") == 0) return is_float ? TSK__LAYOUT_FP8 : TSK__LAYOUT_BYTES;
    if (strcmp(format, "float-quantized") == 0 && is_float) return TSK__LAYOUT_FP8;
    tsk__formats_refuse(r, group, "format \"%.60s\" of %s weights is not supported", format,
                        is_float ? "float" : "int");
    return TSK__LAYOUT_PACKED;
}

/* [rows, columns] of a block of weights. */
static void tsk__formats_block(tsk__formats_reader *r, const tsk_json_value *list, const char *key, tsk__scheme *s) {
    int64_t size[2] = {0, 0};
    const tsk_json_value *element = tsk_json_first(list);
    int i;
    for (i = 0; i < 2; i++, element = tsk_json_next(element))
        if (!tsk_json_int64(element, &size[i]) || size[i] < 1 || size[i] > 1 << 20) size[0] = 0;
    if (tsk_json_count(list) != 2 || !size[0]) tsk__formats_refuse(r, list, "\"%s\" must be two sizes", key);
    s->scale_rows = (int32_t)size[0];
    s->group = (int32_t)size[1];
}

static void tsk__formats_strategy(tsk__formats_reader *r, const tsk_json_value *weights, tsk__scheme *s) {
    const char *strategy = tsk__formats_text(r, weights, "strategy", "tensor");
    const int64_t group = tsk__formats_integer(r, weights, "group_size", -1);
    s->group = 0;
    s->scale_rows = 1;
    if (strcmp(strategy, "tensor") == 0) s->scale_rows = 0;
    else if (strcmp(strategy, "channel") == 0) return;
    else if (strcmp(strategy, "group") == 0 && s->layout != TSK__LAYOUT_FP8) {
        s->group = group < 0 ? 0 : (int32_t)(group > INT32_MAX ? INT32_MAX : group);
        if (group == 0) tsk__formats_refuse(r, tsk_json_get(weights, "group_size"), "\"group_size\" is 0");
    } else if (strcmp(strategy, "block") == 0 && s->layout == TSK__LAYOUT_FP8)
        tsk__formats_block(r, tsk_json_get(weights, "block_structure"), "block_structure", s);
    else tsk__formats_refuse(r, tsk_json_get(weights, "strategy"), "strategy \"%.60s\" is not supported", strategy);
    if (!s->scale_rows && s->layout == TSK__LAYOUT_PACKED)
        tsk__formats_refuse(r, weights, "one scale for all of a packed tensor is not supported");
}

static void tsk__formats_group(tsk__formats_reader *r, const tsk_json_value *group, const char *format) {
    const tsk_json_value *weights = tsk_json_get(group, "weights");
    const char *type = tsk__formats_text(r, weights, "type", "int");
    const char *order = tsk__formats_text(r, weights, "actorder", "");
    const int64_t bits = tsk__formats_integer(r, weights, "num_bits", 8);
    const int is_float = strcmp(type, "float") == 0;
    tsk__scheme s;
    if (tsk__formats_absent(weights)) return; /* it is of activations alone */
    memset(&s, 0, sizeof s);
    format = tsk__formats_text(r, group, "format", format);
    if (!is_float && strcmp(type, "int") != 0)
        tsk__formats_refuse(r, weights, "weights of type \"%.60s\" are not supported", type);
    if (bits != 8 && (bits != 4 || is_float))
        tsk__formats_refuse(r, tsk_json_get(weights, "num_bits"), "%s weights of %lld bits (format \"%.60s\") are not "
                            "supported", type, (long long)bits, format);
    s.layout = tsk__formats_layout(r, group, format, is_float);
    if (s.layout == TSK__LAYOUT_BYTES && bits != 8)
        tsk__formats_refuse(r, weights, "format \"%.60s\" of %d bits is not supported", format, (int)bits);
    s.bits = (int32_t)bits;
    s.scales = ".weight_scale";
    s.has_zeros = !tsk__formats_switch(r, weights, "symmetric", 1);
    s.is_ordered = strcmp(order, "group") == 0 || strcmp(order, "dynamic") == 0;
    if (*order && !s.is_ordered && strcmp(order, "weight") != 0 && strcmp(order, "static") != 0)
        tsk__formats_refuse(r, tsk_json_get(weights, "actorder"), "\"actorder\" \"%.60s\" is not supported", order);
    if (s.has_zeros && is_float) tsk__formats_refuse(r, weights, "asymmetric weights of type float are not supported");
    if (tsk__formats_switch(r, weights, "dynamic", 0))
        tsk__formats_refuse(r, tsk_json_get(weights, "dynamic"), "weights that are quantised anew are not supported");
    tsk__formats_strategy(r, weights, &s);
    tsk__formats_add_targets(r, tsk_json_get(group, "targets"), "targets", tsk__formats_add_scheme(r, &s));
}

static void tsk__formats_compressed_tensors(tsk__formats_reader *r, const tsk_json_value *config) {
    const char *format = tsk__formats_text(r, config, "format", "dense");
    const tsk_json_value *groups = tsk_json_get(config, "config_groups"), *sparsity, *group;
    if (tsk_json_type_of(groups) != TSK_JSON_OBJECT || !tsk_json_count(groups))
        tsk__formats_refuse(r, groups ? groups : config, "\"config_groups\" must be an object of groups");
    sparsity = tsk_json_get(config, "sparsity_config");
    if (!tsk__formats_absent(sparsity) && tsk_json_count(sparsity)) tsk__formats_only(r, sparsity, "format", "dense");
    tsk__formats_without(r, config, "kv_cache_scheme");
    tsk__formats_without(r, config, "transform_config");
    tsk__formats_add_targets(r, tsk_json_get(config, "ignore"), "ignore", -1);
    for (group = tsk_json_first(groups); group; group = tsk_json_next(group)) tsk__formats_group(r, group, format);
}

/* ---- GPTQ */

/* bits, group_size, sym of an object, on top of what `s` has. */
static void tsk__formats_gptq_scheme(tsk__formats_reader *r, const tsk_json_value *config, tsk__scheme *s) {
    const int64_t bits = tsk__formats_integer(r, config, "bits", s->bits);
    const int64_t group = tsk__formats_integer(r, config, "group_size", s->group ? s->group : -1);
    if (bits != 4 && bits != 8)
        tsk__formats_refuse(r, tsk_json_get(config, "bits"), "GPTQ of %lld bits is not supported: only 4 and 8",
                            (long long)bits);
    if (group == 0 || group < -1 || group > 1 << 20)
        tsk__formats_refuse(r, tsk_json_get(config, "group_size"), "\"group_size\" is %lld", (long long)group);
    s->bits = (int32_t)bits;
    s->group = group < 0 ? 0 : (int32_t)group;
}

/* "dynamic": an object of patterns; "-:…" names maps that are not quantised, others have settings of their own. The
   first that matches counts. */
static void tsk__formats_gptq_dynamic(tsk__formats_reader *r, const tsk_json_value *dynamic, const tsk__scheme *all) {
    const tsk_json_value *member;
    if (tsk__formats_absent(dynamic)) return;
    if (tsk_json_type_of(dynamic) != TSK_JSON_OBJECT)
        tsk__formats_refuse(r, dynamic, "\"dynamic\" must be an object");
    for (member = tsk_json_first(dynamic); member; member = tsk_json_next(member)) {
        const char *pattern = tsk_json_key(member, NULL);
        const int has_sign = strncmp(pattern, "-:", 2) == 0 || strncmp(pattern, "+:", 2) == 0;
        tsk__scheme own = *all;
        if (strncmp(pattern, "-:", 2) == 0) {
            tsk__formats_add_rule(r, TSK__FORMAT_PATTERN, member, pattern + 2, -1);
            continue;
        }
        tsk__formats_gptq_scheme(r, member, &own);
        tsk__formats_add_rule(r, TSK__FORMAT_PATTERN, member, pattern + (has_sign ? 2 : 0),
                              tsk__formats_add_scheme(r, &own));
    }
}

static void tsk__formats_gptq(tsk__formats_reader *r, const tsk_json_value *config) {
    const char *format = tsk__formats_text(r, config, "checkpoint_format",
                                           tsk__formats_text(r, config, "format", "gptq"));
    tsk__scheme s;
    memset(&s, 0, sizeof s);
    s.layout = TSK__LAYOUT_GPTQ;
    s.scales = ".scales";
    s.scale_rows = 1;
    s.has_zeros = 1;
    s.is_ordered = 1;
    s.zero_added = strcmp(format, "gptq") == 0;
    if (!s.zero_added && strcmp(format, "gptq_v2") != 0)
        tsk__formats_refuse(r, config, "GPTQ format \"%.60s\" is not supported", format);
    tsk__formats_only(r, config, "pack_dtype", "int32");
    tsk__formats_gptq_scheme(r, config, &s);
    tsk__formats_gptq_dynamic(r, tsk_json_get(config, "dynamic"), &s);
    tsk__formats_add_rule(r, TSK__FORMAT_CLASS, config, "Linear", tsk__formats_add_scheme(r, &s));
}

/* ---- AWQ, FP8 */

/* A list of parts of names that are not quantised. */
static void tsk__formats_left_out(tsk__formats_reader *r, const tsk_json_value *list, const char *key) {
    const tsk_json_value *element;
    if (tsk__formats_absent(list)) return;
    if (tsk_json_type_of(list) != TSK_JSON_ARRAY) tsk__formats_refuse(r, list, "\"%s\" must be a list", key);
    for (element = tsk_json_first(list); element; element = tsk_json_next(element))
        tsk__formats_add_rule(r, TSK__FORMAT_PART, element, tsk_json_string(element, NULL), -1);
}

static void tsk__formats_awq(tsk__formats_reader *r, const tsk_json_value *config) {
    const int64_t bits = tsk__formats_integer(r, config, "bits", 4);
    const int64_t group = tsk__formats_integer(r, config, "group_size", 128);
    tsk__scheme s;
    memset(&s, 0, sizeof s);
    tsk__formats_only(r, config, "version", "gemm");
    if (bits != 4) tsk__formats_refuse(r, config, "AWQ of %lld bits is not supported: only 4", (long long)bits);
    if (group == 0 || group < -1 || group > 1 << 20)
        tsk__formats_refuse(r, config, "\"group_size\" is %lld", (long long)group);
    if (!tsk__formats_switch(r, config, "zero_point", 1))
        tsk__formats_refuse(r, config, "AWQ without zero points is not supported");
    s.layout = TSK__LAYOUT_AWQ;
    s.bits = 4;
    s.group = group < 0 ? 0 : (int32_t)group;
    s.scale_rows = 1;
    s.scales = ".scales";
    s.has_zeros = 1;
    tsk__formats_left_out(r, tsk_json_get(config, "modules_to_not_convert"), "modules_to_not_convert");
    tsk__formats_add_rule(r, TSK__FORMAT_CLASS, config, "Linear", tsk__formats_add_scheme(r, &s));
}

static void tsk__formats_fp8(tsk__formats_reader *r, const tsk_json_value *config) {
    tsk__scheme s;
    memset(&s, 0, sizeof s);
    tsk__formats_only(r, config, "fmt", "e4m3");
    s.layout = TSK__LAYOUT_FP8;
    s.bits = 8;
    s.scales = ".weight_scale_inv";
    tsk__formats_block(r, tsk_json_get(config, "weight_block_size"), "weight_block_size", &s);
    tsk__formats_left_out(r, tsk_json_get(config, "modules_to_not_convert"), "modules_to_not_convert");
    tsk__formats_add_rule(r, TSK__FORMAT_CLASS, config, "Linear", tsk__formats_add_scheme(r, &s));
}

/* ---- the whole */

/* From the object that a folder has, whose document must stay: all of a file, or its member `key`. `fallback` is the
   method of one that names none, or NULL. After a failure there is nothing to free. */
static tsk_status tsk__formats_read(tsk__formats *f, const tsk_json_value *config, const char *key,
                                    const char *fallback, const char *path, const tsk_allocator *allocator,
                                    tsk_error *error) {
    static const struct { const char *method; void (*read)(tsk__formats_reader *, const tsk_json_value *); } methods[] =
        {{"compressed-tensors", tsk__formats_compressed_tensors}, {"gptq", tsk__formats_gptq},
         {"awq", tsk__formats_awq}, {"fp8", tsk__formats_fp8}};
    tsk__formats_reader r;
    const char *method;
    size_t i;
    memset(f, 0, sizeof *f);
    f->allocator = allocator;
    r.formats = f, r.path = path, r.key = key, r.error = error, r.status = TSK_OK;
    method = tsk__formats_text(&r, config, "quant_method", fallback);
    for (i = 0; method && r.status == TSK_OK && !f->method && i < sizeof methods / sizeof *methods; i++)
        if (strcmp(method, methods[i].method) == 0) {
            f->method = methods[i].method;
            methods[i].read(&r, config);
        }
    if (!f->method)
        tsk__formats_refuse(&r, config,
                            "the method \"%.60s\" is not supported: use the folder of BF16, F16 or F32 weights that it "
                            "was made from", method ? method : "(none named)");
    if (r.status != TSK_OK) tsk__formats_free(f);
    return r.status;
}

static int tsk__format_applies(const tsk__format_rule *rule, const char *module, int is_embedding) {
    tsk__pattern pattern;
    switch (rule->kind) {
    case TSK__FORMAT_NAME: return strcmp(rule->text, module) == 0;
    case TSK__FORMAT_PART: return strstr(module, rule->text) != NULL;
    case TSK__FORMAT_CLASS: return strcmp(rule->text, is_embedding ? "Embedding" : "Linear") == 0;
    default: return !tsk__pattern_read(&pattern, rule->text) && tsk__pattern_matches(&pattern, module);
    }
}

/* How the map of that name is quantised; NULL: not at all. */
static const tsk__scheme *tsk__formats_scheme(const tsk__formats *f, const char *module, int is_embedding) {
    size_t i;
    for (i = 0; i < f->n_rules; i++)
        if (tsk__format_applies(&f->rules[i], module, is_embedding))
            return f->rules[i].scheme < 0 ? NULL : &f->schemes[f->rules[i].scheme];
    return NULL;
}

/* ---- the tensors of a map */

typedef enum tsk__role {
    TSK__ROLE_VALUES, TSK__ROLE_SCALES, TSK__ROLE_ZEROS, TSK__ROLE_ORDER, TSK__ROLE_SHAPE, TSK__ROLES
} tsk__role;

typedef struct tsk__role_tensor {
    const char *suffix;        /* behind the map's name; NULL: the layout has none */
    tsk_dtype dtypes[3];       /* that it may have; AUTO: no more */
    int n_dims, or_fewer;      /* or_fewer: any number of dimensions, of that many elements */
    int is_optional;
    uint64_t shape[2];
} tsk__role_tensor;

static void tsk__role_types(tsk__role_tensor *t, tsk_dtype a, tsk_dtype b, tsk_dtype c) {
    t->dtypes[0] = a, t->dtypes[1] = b, t->dtypes[2] = c;
}

static void tsk__role_shape(tsk__role_tensor *t, const char *suffix, uint64_t rows, uint64_t cols) {
    t->suffix = suffix;
    t->n_dims = 2;
    t->shape[0] = rows;
    t->shape[1] = cols;
}

/* Groups of `size` in n; 0: one group. */
static uint64_t tsk__scheme_groups(uint64_t n, int32_t size) {
    return size ? (n + (uint64_t)size - 1) / (uint64_t)size : 1;
}

/* What a map of that shape has for a role. */
static void tsk__scheme_tensor(const tsk__scheme *s, tsk__role role, uint64_t rows, uint64_t cols,
                               tsk__role_tensor *t) {
    const uint64_t bits = (uint64_t)s->bits, groups = tsk__scheme_groups(cols, s->group);
    const uint64_t row_words = (cols * bits + 31) / 32, col_words = (rows * bits + 31) / 32;
    const uint64_t scale_rows = tsk__scheme_groups(rows, s->scale_rows);
    const int is_input_first = s->layout == TSK__LAYOUT_GPTQ || s->layout == TSK__LAYOUT_AWQ;
    memset(t, 0, sizeof *t);
    tsk__role_types(t, TSK_DTYPE_I32, TSK_DTYPE_AUTO, TSK_DTYPE_AUTO);
    switch (role) {
    case TSK__ROLE_VALUES:
        if (s->layout == TSK__LAYOUT_PACKED) tsk__role_shape(t, ".weight_packed", rows, row_words);
        else if (s->layout == TSK__LAYOUT_GPTQ) tsk__role_shape(t, ".qweight", row_words, rows);
        else if (s->layout == TSK__LAYOUT_AWQ) tsk__role_shape(t, ".qweight", cols, col_words);
        else {
            tsk__role_shape(t, ".weight", rows, cols);
            t->dtypes[0] = s->layout == TSK__LAYOUT_FP8 ? TSK_DTYPE_F8_E4M3 : TSK_DTYPE_I8;
        }
        return;
    case TSK__ROLE_SCALES:
        tsk__role_types(t, TSK_DTYPE_BF16, TSK_DTYPE_F16, TSK_DTYPE_F32);
        if (is_input_first) tsk__role_shape(t, s->scales, groups, rows);
        else tsk__role_shape(t, s->scales, scale_rows, groups);
        t->or_fewer = groups == 1;
        return;
    case TSK__ROLE_ZEROS:
        if (!s->has_zeros) return;
        if (is_input_first) tsk__role_shape(t, ".qzeros", groups, col_words);
        else if (s->layout == TSK__LAYOUT_PACKED) tsk__role_shape(t, ".weight_zero_point", col_words, groups);
        else {
            tsk__role_shape(t, ".weight_zero_point", scale_rows, groups);
            t->dtypes[0] = TSK_DTYPE_I8;
            t->or_fewer = groups == 1;
        }
        return;
    case TSK__ROLE_ORDER:
        if (!s->is_ordered) return;
        tsk__role_shape(t, s->layout == TSK__LAYOUT_GPTQ ? ".g_idx" : ".weight_g_idx", cols, 1);
        t->n_dims = 1;
        t->is_optional = s->layout == TSK__LAYOUT_GPTQ;
        return;
    default:
        if (s->layout != TSK__LAYOUT_PACKED) return;
        tsk__role_shape(t, ".weight_shape", 2, 1);
        tsk__role_types(t, TSK_DTYPE_I64, TSK_DTYPE_I32, TSK_DTYPE_AUTO);
        t->n_dims = 1;
    }
}

#endif /* SECTION_GUARD_FORMATS */
