/* >>quantise, >>formats and >>weights: what the layouts of quantised folders stand for, to the last bit of f32 (goldens
   of tests/golden/quantised.py); that a quantised model computes in f32 what the model of its values computes; the rule
   that makes codes; and the refusal of what is damaged or not supported. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "../src/session.h"
#include "../src/export.h"
#include "../src/public.h"
#include "golden.h"
#include "random_model.h"

static const char *const folders[] = {
    "ct-int4", "ct-int4-asymmetric", "ct-int4-ordered", "ct-int8-channel", "ct-mixed-tied", "ct-int-quantized",
    "ct-int-asymmetric", "ct-fp8-tensor", "ct-fp8-channel", "ct-fp8-block", "fp8-block", "gptq-v1", "gptq-v1-zeros",
    "gptq-v2-ordered", "gptq-dynamic", "awq"};
enum { n_folders = sizeof folders / sizeof *folders };

static tsk_model *load(const char *dir, tsk_dtype dtype, tsk_weights weights, int no_map) {
    tsk_model_options o = tsk_model_options_default();
    tsk_model *model = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    o.device = TSK_DEVICE_CPU, o.dtype = dtype, o.weights = weights, o.n_threads = 2, o.host.no_map = no_map;
    must(tsk_model_load(dir, &o, &model, &error), &error);
    return model;
}

static const tsk__weight *weight_of(const tsk_model *model, const tsk__weight_id *id) {
    const tsk__cpu_model *cpu = &((const tsk__cpu_backend *)(const void *)model->backend)->model;
    return &cpu->weights[tsk__family_index(&model->config, id->layer, (tsk__part)id->part, id->expert)];
}

static float *values_of(const tsk__weight *w) {
    float *values = (float *)malloc((size_t)w->rows * (size_t)w->cols * sizeof *values);
    int32_t row;
    if (!values) exit(2);
    for (row = 0; row < w->rows; row++)
        tsk__weight_values(w, row, 0, w->cols, values + (size_t)row * (size_t)w->cols);
    return values;
}

/* ---- the layouts */

static uint64_t fnv1a(const float *values, size_t n) {
    const unsigned char *bytes = (const unsigned char *)(const void *)values;
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    size_t i;
    for (i = 0; i < n * sizeof *values; i++) hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
    return hash;
}

static void check_ends(const tsk_json_value *list, const float *values, const char *what) {
    const tsk_json_value *v;
    double value = 0;
    for (v = tsk_json_first(list); v; v = tsk_json_next(v), values++)
        test_check(tsk_json_double(v, &value) && (float)value == *values, __FILE__, __LINE__, "%s: %.9g, not %.9g",
                   what, (double)*values, value);
}

/* Every quantised matrix that the golden has: its values, whether the file is mapped or read. */
static void check_layout(const char *name, const tsk_json_value *golden, int no_map) {
    tsk_model *model = load(tsk_test_path(name), TSK_DTYPE_F32, TSK_WEIGHTS_AS_STORED, no_map);
    tsk__weight_id id = tsk__family_first();
    size_t n = 0;
    do {
        char tensor[TSK__FAMILY_NAME], hash[20];
        const tsk_json_value *expected;
        const tsk__weight *w = weight_of(model, &id);
        float *values;
        if (tsk__family_is_vector(&model->config, &id)) continue;
        tsk__family_name(&model->config, &id, tensor);
        tensor[strlen(tensor) - 7] = 0;
        expected = tsk_json_get(golden, tensor);
        CHECK_INT(w->bits != 0, expected != NULL);
        if (!expected) continue;
        n++;
        values = values_of(w);
        check_ends(tsk_json_get(expected, "first"), values, tensor);
        check_ends(tsk_json_get(expected, "last"), values + (size_t)w->rows * (size_t)w->cols - 8, tensor);
        snprintf(hash, sizeof hash, "%016llx",
                 (unsigned long long)fnv1a(values, (size_t)w->rows * (size_t)w->cols));
        test_check(golden_is(expected, "fnv1a", hash), __FILE__, __LINE__, "%s: all of %s", name, tensor);
        free(values);
    } while (tsk__family_next(&model->config, &id));
    CHECK_INT(n, tsk_json_count(golden));
    tsk_model_free(model);
}

/* ---- a folder's files, copied so that a test can change them */

static const char *const files[] = {"config.json", "quantize_config.json", "model.safetensors"};

static void copy_folder_as(const char *name, const char *copy) {
    char from[1200], to[1200];
    size_t i, size;
    mkdir(tsk_test_path(copy), 0700);
    for (i = 0; i < sizeof files / sizeof *files; i++) {
        char *bytes;
        FILE *file;
        snprintf(from, sizeof from, "tests/golden/models/quantised/%s/%s", name, files[i]);
        snprintf(to, sizeof to, "%s/%s", tsk_test_path(copy), files[i]);
        remove(to);
        file = fopen(from, "rb");
        if (!file) continue;
        fclose(file);
        bytes = read_file(from, &size);
        write_file(to, bytes, size);
        free(bytes);
    }
}

static void copy_folder(const char *name) { copy_folder_as(name, name); }

/* The first occurrence of a text in one of its files becomes another of any length. */
static void replace(const char *name, const char *file, const char *from, const char *to) {
    char path[1200], *bytes, *at, *changed;
    size_t size, before;
    snprintf(path, sizeof path, "%s/%s", tsk_test_path(name), file);
    bytes = read_file(path, &size);
    at = strstr(bytes, from);
    if (!CHECK(at != NULL)) exit(2);
    before = (size_t)(at - bytes);
    changed = (char *)malloc(size + strlen(to) + 1);
    if (!changed) exit(2);
    memcpy(changed, bytes, before);
    memcpy(changed + before, to, strlen(to));
    memcpy(changed + before + strlen(to), at + strlen(from), size - before - strlen(from));
    write_file(path, changed, size - strlen(from) + strlen(to));
    free(bytes), free(changed);
}

/* Bytes of a tensor, from byte `offset` on. */
static void patch(const char *name, const char *tensor, uint64_t offset, const void *bytes, size_t size) {
    char path[1200], *all;
    size_t length;
    tsk_safetensors *file = NULL;
    const tsk_tensor_info *info;
    snprintf(path, sizeof path, "%s/model.safetensors", tsk_test_path(name));
    if (!CHECK(tsk_safetensors_open(path, NULL, &file, NULL) == TSK_OK)) exit(2);
    info = tsk_safetensors_find(file, tensor);
    if (!CHECK(info && offset + size <= info->size)) exit(2);
    all = read_file(path, &length);
    memcpy(all + info->offset + offset, bytes, size);
    tsk_safetensors_free(file);
    write_file(path, all, length);
    free(all);
}

/* ---- generations: those of the model of the values */

/* A folder of plain F32 weights with the values of a model, which was loaded from one of that name; its path. */
static const char *write_values(const tsk_model *model, const char *loaded) {
    static const char name[] = "values";
    const tsk_model_config *c = &model->config;
    tsk__weight_id id = tsk__family_first();
    tsk_safetensors_writer *writer = NULL;
    char path[1200];
    copy_folder_as(loaded, name);
    snprintf(path, sizeof path, "%s/quantize_config.json", tsk_test_path(name));
    if (remove(path) != 0) replace(name, "config.json", "\"quantization_config\"", "\"was\"");
    snprintf(path, sizeof path, "%s/model.safetensors", tsk_test_path(name));
    must(tsk_safetensors_writer_open(path, NULL, &writer, NULL), NULL);
    do {
        char tensor[TSK__FAMILY_NAME];
        uint64_t dims[2];
        const tsk__weight *w = weight_of(model, &id);
        float *values = id.is_bias || tsk__family_is_vector(c, &id) ? NULL : values_of(w);
        tsk__family_name(c, &id, tensor);
        tsk__family_shape(c, &id, dims);
        must(tsk_safetensors_writer_add(writer, tensor, TSK_DTYPE_F32, values ? 2 : 1, dims,
                                        values ? values : id.is_bias ? w->bias : (const float *)w->data, NULL), NULL);
        free(values);
    } while (tsk__family_next(c, &id));
    must(tsk_safetensors_writer_finish(writer, NULL), NULL);
    tsk_safetensors_writer_free(writer);
    return tsk_test_path(name);
}

typedef struct answer { int32_t tokens[32], n; float logits[16 * 64]; } answer;

static void generate_with(tsk_model *model, tsk_generate_options o, answer *a) {
    static const int32_t prompt[5] = {3, 1, 4, 1, 5};
    tsk_session *session = NULL;
    tsk_result result;
    tsk_probe probe;
    tsk_error error;
    memset(&error, 0, sizeof error), memset(a, 0, sizeof *a);
    must(tsk_session_create(model, &o, &session, &error), &error);
    must(tsk_session_start(session, prompt, 5, NULL, &error), &error);
    must(tsk_session_probe(session, NULL, TSK_PROBE_REFRESH, &probe, &error), &error);
    must(tsk_session_probe_logits(session, NULL, a->logits, &error), &error);
    must(tsk_generate(session, prompt, 5, NULL, &result, &error), &error);
    a->n = result.n_tokens;
    memcpy(a->tokens, result.tokens, (size_t)a->n * sizeof *a->tokens);
    tsk_session_free(session);
}

static tsk_generate_options usual(void) {
    tsk_generate_options o = tsk_generate_options_default();
    o.gen_length = 32, o.block_length = 16, o.transfer = TSK_TRANSFER_SCHEDULE, o.steps = 16, o.eos_stop = 0;
    return o;
}

static void generate(tsk_model *model, answer *a) { generate_with(model, usual(), a); }

/* With activations quantised, too: other logits, near those of f32; the same ones whatever the threads, and with a rule
   that has nothing to leave out. */
static void check_integers(const char *name) {
    tsk_model_options o = tsk_model_options_default();
    tsk_generate_options plain = usual(), skipping = usual();
    tsk_model *model = NULL, *exact = load(tsk_test_path(name), TSK_DTYPE_F32, TSK_WEIGHTS_AS_STORED, 0);
    static answer a, b;
    double error = 0, square = 0;
    int threads, has_integers = 0;
    size_t i;
    generate(exact, &a);
    for (threads = 1; threads < 4; threads++) {
        o.device = TSK_DEVICE_CPU, o.n_threads = threads;
        must(tsk_model_load(tsk_test_path(name), &o, &model, NULL), NULL);
        has_integers = strstr(tsk_model_device_name(model), "integers") != NULL;
        generate(model, threads == 1 ? &a : &b);
        if (threads > 1) CHECK(memcmp(&a, &b, sizeof a) == 0);
        if (threads < 3) tsk_model_free(model);
    }
    CHECK_INT(has_integers, strstr(name, "fp8") == NULL && strstr(name, "ordered") == NULL);
    plain.skip.rule = TSK_SKIP_RULE_OFF;
    skipping.skip.rule = TSK_SKIP_RULE_STATES, skipping.skip.layer_k = 1, skipping.skip.threshold = 1.0f;
    generate_with(model, plain, &a), generate_with(model, skipping, &b);
    CHECK(memcmp(&a, &b, sizeof a) == 0);
    generate(exact, &b);
    for (i = 0; i < 16 * (size_t)model->config.embedding_size; i++) {
        error += ((double)a.logits[i] - (double)b.logits[i]) * ((double)a.logits[i] - (double)b.logits[i]);
        square += (double)b.logits[i] * (double)b.logits[i];
    }
    test_check(has_integers ? error > 0 && sqrt(error / square) < 0.05 : error <= 0, __FILE__, __LINE__,
               "%s: logits are %g from those of f32", name, sqrt(error / square));
    tsk_model_free(model), tsk_model_free(exact);
}

static void check_generation(const char *name) {
    tsk_model *quantised = load(tsk_test_path(name), TSK_DTYPE_F32, TSK_WEIGHTS_AS_STORED, 0);
    tsk_model *plain;
    static answer a, b;
    generate(quantised, &a);
    plain = load(write_values(quantised, name), TSK_DTYPE_F32, TSK_WEIGHTS_AS_STORED, 0);
    generate(plain, &b);
    CHECK_INT(a.n, 32);
    test_check(memcmp(&a, &b, sizeof a) == 0, __FILE__, __LINE__, "%s: logits and tokens are those of its values",
               name);
    tsk_model_free(quantised), tsk_model_free(plain);
}

/* ---- the source of values, for backends that keep no codes */

static void check_dequantising(const char *name) {
    tsk_folder *folder = NULL;
    tsk__dequantising d;
    tsk__source source;
    tsk__weight_id id = tsk__family_first();
    tsk_model *model = load(tsk_test_path(name), TSK_DTYPE_F32, TSK_WEIGHTS_AS_STORED, 0);
    must(tsk_folder_open(tsk_test_path(name), NULL, &folder, NULL), NULL);
    source = tsk__source_of_folder(folder);
    must(tsk__dequantising_open(&d, &source, NULL, NULL), NULL);
    do {
        const tsk__weight *w = weight_of(model, &id);
        static float values[96 * 96];
        tsk__stored stored;
        float *expected;
        uint64_t at, n;
        if (tsk__family_is_vector(&model->config, &id)) continue;
        d.source.find(&d.source, &id, &stored);
        CHECK(!stored.scheme && (stored.dtype == TSK_DTYPE_F32) == (w->bits != 0));
        if (!w->bits) continue;
        CHECK_INT(stored.size, (uint64_t)w->rows * (uint64_t)w->cols * 4);
        for (at = 0; at < stored.size; at += n) { /* in pieces that end anywhere */
            n = stored.size - at < 1212 ? stored.size - at : 1212;
            must(d.source.read(&d.source, &stored, at, (char *)values + at, (size_t)n, NULL), NULL);
        }
        expected = values_of(w);
        CHECK(memcmp(values, expected, (size_t)stored.size) == 0);
        free(expected);
    } while (tsk__family_next(&model->config, &id));
    tsk__dequantising_close(&d);
    tsk_folder_free(folder);
    tsk_model_free(model);
}

static void test_layouts(void) {
    tsk_json *goldens = golden_load("tests/golden/quantised.json");
    int i;
    for (i = 0; i < n_folders; i++) {
        const tsk_json_value *golden = tsk_json_get(tsk_json_root(goldens), folders[i]);
        copy_folder(folders[i]);
        if (!CHECK(golden != NULL)) continue;
        check_layout(folders[i], golden, 0);
        check_layout(folders[i], golden, 1);
        check_dequantising(folders[i]);
        check_integers(folders[i]);
        check_generation(folders[i]);
    }
    tsk_json_free(goldens);
}

/* ---- the rule */

/* Sum of squared errors of x[n] for a scale, every code the nearest. */
static double plain_error(const float *x, int n, double scale, int bits) {
    const double high = (1 << (bits - 1)) - 1;
    double sum = 0;
    int i;
    for (i = 0; i < n; i++) {
        double code = floor((double)x[i] / scale + 0.5);
        code = code > high ? high : code < -high - 1 ? -high - 1 : code;
        sum += ((double)x[i] - code * scale) * ((double)x[i] - code * scale);
    }
    return sum;
}

static double rounded(double scale) { return (double)tsk__float_from_bf16(tsk__bf16_from_float((float)scale)); }

static void check_rule(int bits, int32_t group, int kind) {
    const int zero = 1 << (bits - 1);
    float x[TSK__QUANTISE_GROUP], largest = 0;
    uint8_t packed[TSK__QUANTISE_GROUP];
    uint16_t scales[1];
    double error = 0, scale, best, factor;
    int32_t i;
    for (i = 0; i < group; i++) {
        x[i] = random_normal() * (kind == 1 && i % 17 == 0 ? 8.0f : 1.0f) * (kind == 2 ? 1e-6f : 0.02f);
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    }
    tsk__quantise_row(TSK_DTYPE_F32, x, group, group, bits, packed, scales);
    scale = (double)tsk__float_from_bf16(scales[0]);
    CHECK(scale > 0);
    for (i = 0; i < group; i++) {
        const int code = (bits == 4 ? packed[i / 2] >> i % 2 * 4 & 15 : packed[i]) - zero;
        error += ((double)x[i] - code * scale) * ((double)x[i] - code * scale);
    }
    CHECK(fabs(error - plain_error(x, group, scale, bits)) <= 1e-5 * error);
    /* no worse than the largest code for the largest value; not much worse than the best of very many scales */
    best = plain_error(x, group, rounded((double)largest / (zero - 1)), bits);
    CHECK(error <= best * 1.00001);
    for (factor = 0.6; factor < 1.05; factor += 0.001) {
        const double other = plain_error(x, group, rounded((double)largest / (zero - 1) * factor), bits);
        if (other < best) best = other;
    }
    test_check(error <= best * (bits == 4 ? 1.1 : 1.6), __FILE__, __LINE__, "%d bits, %d columns: error %g, best %g",
               bits, (int)group, error, best);
}

static void test_rule(void) {
    static const int32_t groups[] = {32, 64, 128};
    float x[64], infinite[64];
    uint8_t packed[64];
    uint16_t scales[2];
    uint16_t half[64];
    int i, bits;
    for (i = 0; i < 180; i++) check_rule(i & 1 ? 8 : 4, groups[i / 2 % 3], i % 5 % 3);
    /* whole multiples of a scale that a bf16 holds come back, the lowest code among them */
    for (bits = 4; bits <= 8; bits += 4) {
        for (i = 0; i < 64; i++) x[i] = 0.375f * (float)((i * 7 % (1 << bits)) - (1 << (bits - 1)));
        x[0] = -0.375f * (float)(1 << (bits - 1)), x[1] = 0.375f * (float)((1 << (bits - 1)) - 1);
        tsk__quantise_row(TSK_DTYPE_F32, x, 64, 64, bits, packed, scales);
        CHECK(tsk__float_from_bf16(scales[0]) == 0.375f);
        for (i = 0; i < 64; i++)
            CHECK(0.375f * (float)((bits == 4 ? packed[i / 2] >> i % 2 * 4 & 15 : packed[i]) - (1 << (bits - 1))) ==
                  x[i]);
    }
    /* zeroes; a type of 16 bits; what is no number */
    memset(x, 0, sizeof x);
    tsk__quantise_row(TSK_DTYPE_F32, x, 64, 32, 4, packed, scales);
    for (i = 0; i < 32; i++) CHECK_INT(packed[i], 0x88);
    CHECK(tsk__float_from_bf16(scales[0]) == 1.0f && tsk__float_from_bf16(scales[1]) == 1.0f);
    for (i = 0; i < 64; i++) half[i] = tsk__bf16_from_float((float)(i - 32));
    tsk__quantise_row(TSK_DTYPE_BF16, half, 64, 64, 8, packed, scales);
    for (i = 0; i < 64; i++) CHECK_INT(lroundf((float)(packed[i] - 128) * tsk__float_from_bf16(scales[0])), i - 32);
    for (i = 0; i < 64; i++) infinite[i] = i == 40 ? INFINITY : i == 3 ? NAN : 1.0f;
    tsk__quantise_row(TSK_DTYPE_F32, infinite, 64, 32, 8, packed, scales);
    CHECK(!scales[0] && !scales[1]);
    CHECK_INT(tsk__quantise_group_size(4096, 128), 128);
    CHECK_INT(tsk__quantise_group_size(4096 + 64, 128), 64);
    CHECK_INT(tsk__quantise_group_size(352, 128), 32);
    CHECK_INT(tsk__quantise_group_size(40, 128), 0);
}

/* ---- on load */

static void check_on_load(tsk_weights weights, int tied, int no_map) {
    static const shape shapes[2] = {{"on-load", 128, 2, 4, 2, 96, 40, 1, 1, 0, 1.0f},
                                    {"on-load-tied", 192, 1, 4, 4, 72, 40, 0, 0, 1, 1.0f}};
    const char *dir = random_model_folder(&shapes[tied]);
    tsk_model *stored = load(dir, TSK_DTYPE_F32, TSK_WEIGHTS_AS_STORED, 0),
              *model = load(dir, TSK_DTYPE_F32, weights, no_map);
    tsk__weight_id id = tsk__family_first();
    uint64_t bytes = 0, formats_bytes = 0;
    tsk_weights_format formats[8];
    tsk_folder *folder = NULL;
    int32_t n, i;
    answer a;
    do {
        const tsk__weight *w = weight_of(model, &id), *plain = weight_of(stored, &id);
        const int is_small = weights == TSK_WEIGHTS_Q4 && id.part != (int)TSK__PART_EMBEDDING &&
                             id.part != (int)TSK__PART_HEAD && id.part != (int)TSK__PART_FF_OUT;
        const int32_t group = w->cols % 128 == 0 ? 128 : w->cols % 64 == 0 ? 64 : w->cols % 32 == 0 ? 32 : 0;
        float *values, *wanted;
        double error = 0, square = 0;
        size_t k;
        if (tsk__family_is_vector(&model->config, &id)) {
            bytes += (uint64_t)plain->rows * 2;
            continue;
        }
        if (!group || (id.part == (int)TSK__PART_EMBEDDING && !tied)) {
            CHECK(w->dtype == TSK_DTYPE_BF16 && !w->bits);
            bytes += (uint64_t)w->rows * (uint64_t)w->cols * 2;
            continue;
        }
        CHECK_INT(w->bits, is_small ? 4 : 8);
        CHECK_INT(w->group, group);
        CHECK(w->dtype == TSK_DTYPE_U8 && w->scale_dtype == TSK_DTYPE_BF16 && w->scale_rows == 1 && !w->zeros);
        CHECK(!w->bias == !plain->bias);
        bytes += (uint64_t)w->rows * ((uint64_t)w->cols * (uint64_t)w->bits / 8 + (uint64_t)(w->cols / group) * 2);
        values = values_of(w), wanted = values_of(plain);
        for (k = 0; k < (size_t)w->rows * (size_t)w->cols; k++) {
            error += ((double)values[k] - (double)wanted[k]) * ((double)values[k] - (double)wanted[k]);
            square += (double)wanted[k] * (double)wanted[k];
        }
        CHECK(sqrt(error / square) < (w->bits == 4 ? 0.12 : 0.008));
        free(values), free(wanted);
    } while (tsk__family_next(&model->config, &id));
    must(tsk_folder_open(dir, NULL, &folder, NULL), NULL);
    n = tsk_folder_formats(folder, weights, formats, 8);
    for (i = 0; i < n && i < 8; i++) formats_bytes += formats[i].bytes;
    CHECK_INT(formats_bytes, bytes);
    CHECK_INT(tsk__weights_size(&model->config, weights), bytes);
    tsk_folder_free(folder);
    generate(model, &a);
    CHECK_INT(a.n, 32);
    tsk_model_free(model), tsk_model_free(stored);
}

/* ---- writing a folder: what is loaded from it is what is quantised on load */

static void check_same(const tsk_model *a, const tsk_model *b) {
    tsk__weight_id id = tsk__family_first();
    do {
        const tsk__weight *v = weight_of(a, &id), *w = weight_of(b, &id);
        float *x, *y;
        CHECK(v->bits == w->bits && v->group == w->group && v->dtype == w->dtype);
        if (tsk__family_is_vector(&a->config, &id)) continue;
        x = values_of(v), y = values_of(w);
        CHECK(memcmp(x, y, (size_t)v->rows * (size_t)v->cols * sizeof *x) == 0);
        if (v->bits) CHECK(memcmp(v->data, w->data, (size_t)v->rows * tsk__weight_stride(v)) == 0);
        free(x), free(y);
    } while (tsk__family_next(&a->config, &id));
}

static int has_file(const char *folder, const char *name) {
    char path[1200];
    FILE *file;
    snprintf(path, sizeof path, "%s/%s", tsk_test_path(folder), name);
    file = fopen(path, "rb");
    if (file) fclose(file);
    return file != NULL;
}

static void remove_files(const char *folder) {
    static const char *const names[] = {"config.json", "model.safetensors", "model.safetensors.index.json"};
    char path[1200];
    int i, n;
    for (n = 2; n < 30; n++)
        for (i = 1; i <= n; i++) {
            snprintf(path, sizeof path, "%s/model-%05d-of-%05d.safetensors", tsk_test_path(folder), i, n);
            remove(path);
        }
    for (i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", tsk_test_path(folder), names[i]);
        remove(path);
    }
}

typedef struct watched { int calls, until; uint64_t done, total; } watched;
static void on_progress(void *user, uint64_t done, uint64_t total) {
    watched *w = (watched *)user;
    CHECK(done > w->done && done <= total && (!w->total || w->total == total));
    w->done = done, w->total = total;
}
static int on_cancel(void *user) { return ++((watched *)user)->calls == ((watched *)user)->until; }

/* No file of a folder is there that only an interrupted call could have left. */
static void check_empty(const char *folder) {
    char name[80];
    int i, n, found = 0;
    for (n = 2; n < 30; n++)
        for (i = 1; i <= n; i++) {
            snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", i, n);
            found += has_file(folder, name);
        }
    CHECK_INT(found, 0);
    CHECK(!has_file(folder, "model.safetensors") && !has_file(folder, "config.json") &&
          !has_file(folder, "model.safetensors.index.json"));
}

static void check_export(const char *name, tsk_weights weights, uint64_t shard_size) {
    tsk_quantize_options o = tsk_quantize_options_default();
    tsk_model *loaded, *written;
    tsk_folder *folder = NULL;
    tsk_error error;
    watched w;
    memset(&error, 0, sizeof error), memset(&w, 0, sizeof w);
    o.weights = weights, o.n_threads = 2, o.progress = on_progress, o.cancel = on_cancel, o.user = &w;
    if (shard_size) o.shard_size = shard_size;
    mkdir(tsk_test_path("written"), 0700);
    remove_files("written");
    for (w.until = 1; w.until < 12; w.until += 4) { /* cancelled: nothing stays */
        w.calls = 0, w.done = 0;
        CHECK_INT(tsk_quantize(tsk_test_path(name), tsk_test_path("written"), &o, &error), TSK_ERROR_CANCELLED);
        check_empty("written");
    }
    w.until = 0, w.done = 0;
    must(tsk_quantize(tsk_test_path(name), tsk_test_path("written"), &o, &error), &error);
    CHECK(w.done == w.total && w.total > 0);
    CHECK_INT(has_file("written", "model.safetensors"), !shard_size);
    CHECK_INT(has_file("written", "model.safetensors.index.json"), shard_size != 0);
    CHECK_INT(tsk_quantize(tsk_test_path(name), tsk_test_path("written"), &o, &error), TSK_ERROR_ARGUMENT);
    CHECK_CONTAINS(error.message, "holds a model already");
    must(tsk_folder_open(tsk_test_path("written"), NULL, &folder, &error), &error);
    CHECK_STRING(tsk_folder_quant_method(folder), "compressed-tensors");
    tsk_folder_free(folder);
    loaded = load(tsk_test_path(name), TSK_DTYPE_F32, weights, 0);
    written = load(tsk_test_path("written"), TSK_DTYPE_F32, TSK_WEIGHTS_AS_STORED, 0);
    check_same(loaded, written);
    tsk_model_free(loaded), tsk_model_free(written);
}

/* A null where the settings go; a settings file in its place. */
static void test_export(void) {
    tsk_quantize_options o = tsk_quantize_options_default();
    tsk_error error;
    memset(&error, 0, sizeof error);
    check_export("on-load", TSK_WEIGHTS_Q4, 0);
    check_export("on-load", TSK_WEIGHTS_Q8, 20000);
    check_export("on-load-tied", TSK_WEIGHTS_Q4, 1);
    replace("on-load", "config.json", "\"rope\": true", "\"quantization_config\": null, \"rope\": true");
    check_export("on-load", TSK_WEIGHTS_Q4, 0);
    remove_files("written");
    o.weights = TSK_WEIGHTS_AS_STORED;
    CHECK_INT(tsk_quantize(tsk_test_path("on-load"), tsk_test_path("written"), &o, &error), TSK_ERROR_ARGUMENT);
    o.weights = TSK_WEIGHTS_Q8, o.shard_size = 0;
    CHECK_INT(tsk_quantize(tsk_test_path("on-load"), tsk_test_path("written"), &o, &error), TSK_ERROR_ARGUMENT);
    o.shard_size = 1000, o.n_threads = 0;
    CHECK_INT(tsk_quantize(tsk_test_path("on-load"), tsk_test_path("written"), &o, &error), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_quantize(tsk_test_path("on-load"), tsk_test_path("nowhere"), NULL, &error), TSK_ERROR_IO);
    CHECK_INT(tsk_quantize(NULL, "x", NULL, &error), TSK_ERROR_ARGUMENT);
    CHECK_INT(tsk_quantize("x", NULL, NULL, &error), TSK_ERROR_ARGUMENT);
    check_empty("written");
}

/* Each allocation of writing fails once: nothing is lost, and nothing stays. */
static void test_export_allocations(void) {
    long n;
    for (n = 0; n < 4000; n++) {
        test_allocator counting = test_allocator_failing_at(n);
        tsk_allocator allocator = test_allocator_of(&counting);
        tsk_quantize_options o = tsk_quantize_options_default();
        tsk_status status;
        o.host.allocator = &allocator, o.n_threads = 1, o.shard_size = 20000;
        status = tsk_quantize(tsk_test_path("on-load-tied"), tsk_test_path("written"), &o, NULL);
        CHECK(status == (counting.failed ? TSK_ERROR_MEMORY : TSK_OK));
        if (!CHECK(counting.alive == 0) || !counting.failed) break;
        check_empty("written");
    }
    CHECK(n > 20 && n < 4000);
}

/* ---- what is refused */

static void refused(const char *name, tsk_weights weights, tsk_status status, const char *part, const char *other) {
    tsk_model_options o = tsk_model_options_default();
    tsk_model *model = NULL;
    tsk_error error;
    memset(&error, 0, sizeof error);
    o.device = TSK_DEVICE_CPU, o.n_threads = 1, o.weights = weights;
    CHECK_INT(tsk_model_load(tsk_test_path(name), &o, &model, &error), status);
    CHECK_CONTAINS(error.message, part);
    CHECK_CONTAINS(error.message, other);
    CHECK(!model);
}

static void refused_setting(const char *name, const char *from, const char *to, const char *part) {
    copy_folder(name);
    replace(name, "config.json", from, to);
    refused(name, TSK_WEIGHTS_AS_STORED, TSK_ERROR_UNSUPPORTED, part, "config.json': \"quantization_config\": ");
}

static void refused_value(const char *name, const char *tensor, uint64_t offset, const void *bytes, size_t size,
                          const char *part) {
    char full[200];
    copy_folder(name);
    snprintf(full, sizeof full, "model.transformer.%s", tensor);
    patch(name, full, offset, bytes, size);
    refused(name, TSK_WEIGHTS_AS_STORED, TSK_ERROR_TENSOR, part, full);
}

static void test_refused_values(void) {
    static const uint16_t nan16 = 0x7fc0, infinite16 = 0x7f80, minus16 = 0xbf80, half_nan = 0x7e00, half_minus = 0x8401;
    static const float minus32 = -1.0f;
    static const int64_t wrong_rows = 65;
    static const int32_t below = -1, beyond = 2;
    refused_value("ct-int4", "blocks.0.k_proj.weight_scale", 6, &nan16, 2, "scale nan as its number 3");
    refused_value("ct-int4", "blocks.0.k_proj.weight_scale", 0, &infinite16, 2, "scale inf as its number 0");
    refused_value("ct-mixed-tied", "wte.weight_scale", 2, &minus16, 2, "scale -1 as its number 1");
    refused_value("gptq-v1", "blocks.0.ff_out.scales", 4, &half_nan, 2, "scale nan as its number 2");
    refused_value("awq", "blocks.0.q_proj.scales", 8, &half_minus, 2, "as its number 4");
    refused_value("ct-fp8-channel", "ff_out.weight_scale", 12, &minus32, 4, "scale -1 as its number 3");
    refused_value("ct-int4", "blocks.0.up_proj.weight_shape", 0, &wrong_rows, 8, "says [65, 64]; expected [96, 64]");
    refused_value("ct-int4-ordered", "blocks.0.v_proj.weight_g_idx", 8, &beyond, 4, "column 2 into group 2 of 2");
    refused_value("gptq-v2-ordered", "blocks.0.v_proj.g_idx", 4, &below, 4, "column 1 into group -1 of 2");
}

static void test_refused_settings(void) {
    refused_setting("ct-int4", "\"num_bits\": 4", "\"num_bits\": 3", "int weights of 3 bits");
    refused_setting("ct-int4", "\"pack-quantized\"", "\"marlin-24\"", "format \"marlin-24\" of int weights");
    refused_setting("ct-int4", "\"pack-quantized\"", "\"nvfp4-pack-quantized\"", "nvfp4-pack-quantized");
    refused_setting("ct-int4", "\"kv_cache_scheme\": null", "\"kv_cache_scheme\": {\"num_bits\": 8}",
                    "\"kv_cache_scheme\" is not supported");
    refused_setting("ct-int4", "\"actorder\": null", "\"actorder\": \"sideways\"", "\"sideways\"");
    refused_setting("ct-int4", "\"strategy\": \"group\"", "\"strategy\": \"attn_head\"", "strategy \"attn_head\"");
    refused_setting("ct-int4", "\"type\": \"int\"", "\"type\": \"uint\"", "type \"uint\"");
    refused_setting("ct-int4", "\"group_size\": 32", "\"group_size\": 0", "\"group_size\" is 0");
    refused_setting("ct-int4", "\"dynamic\": false", "\"dynamic\": true", "quantised anew");
    refused_setting("ct-int4", "\"symmetric\": true", "\"symmetric\": 3", "\"symmetric\" must be true or false");
    refused_setting("ct-int4-ordered", "re:.*blocks", "re:(?!x).*blocks", "the pattern \"(?!x)");
    refused_setting("ct-fp8-block", "\"num_bits\": 8", "\"num_bits\": 4", "float weights of 4 bits");
    refused_setting("ct-fp8-tensor", "\"strategy\": \"tensor\"", "\"strategy\": \"group\"", "strategy \"group\"");
    refused_setting("gptq-v1", "\"bits\": 4", "\"bits\": 2", "GPTQ of 2 bits");
    refused_setting("gptq-v1", "\"checkpoint_format\": \"gptq\"", "\"checkpoint_format\": \"marlin\"", "\"marlin\"");
    refused_setting("gptq-v1", "\"group_size\": 32", "\"group_size\": -2", "\"group_size\" is -2");
    refused_setting("awq", "\"gemm\"", "\"gemv\"", "\"gemv\"; only \"gemm\"");
    refused_setting("awq", "\"bits\": 4", "\"bits\": 8", "AWQ of 8 bits");
    refused_setting("awq", "\"zero_point\": true", "\"zero_point\": false", "without zero points");
    refused_setting("fp8-block", "\"fmt\": \"e4m3\"", "\"fmt\": \"e5m2\"", "\"e5m2\"");
    refused_setting("awq", "\"awq\"", "\"bitsandbytes\"", "the method \"bitsandbytes\" is not supported");
    refused_setting("awq", "\"quant_method\": \"awq\"", "\"load_in_4bit\": true", "(none named)");
}

static void test_refused_shapes(void) {
    copy_folder("ct-int4");
    replace("ct-int4", "config.json", "\"group_size\": 32", "\"group_size\": 48");
    refused("ct-int4", TSK_WEIGHTS_AS_STORED, TSK_ERROR_TENSOR, "groups of 48 do not divide the 64 columns",
            "blocks.0.q_proj");
    copy_folder("ct-int4");
    replace("ct-int4", "config.json", "\"group_size\": 32", "\"group_size\": 64");
    refused("ct-int4", TSK_WEIGHTS_AS_STORED, TSK_ERROR_TENSOR, "has shape [64, 2]; expected [64, 1]",
            "blocks.0.q_proj.weight_scale");
    copy_folder("ct-int4");
    replace("ct-int4", "config.json", "\"num_bits\": 4", "\"num_bits\": 8");
    refused("ct-int4", TSK_WEIGHTS_AS_STORED, TSK_ERROR_TENSOR, "has shape [64, 8]; expected [64, 16]",
            "blocks.0.q_proj.weight_packed");
    copy_folder("ct-int4");
    replace("ct-int4", "config.json", "\"symmetric\": true", "\"symmetric\": false");
    refused("ct-int4", TSK_WEIGHTS_AS_STORED, TSK_ERROR_TENSOR, "is missing", "weight_zero_point");
    copy_folder("ct-int4");
    replace("ct-int4", "config.json", "\"model.transformer.ff_out\"\n", "\"lm_head\"\n");
    refused("ct-int4", TSK_WEIGHTS_AS_STORED, TSK_ERROR_TENSOR, "is missing", "transformer.ff_out.weight_packed");
    copy_folder("ct-int4-ordered");
    replace("ct-int4-ordered", "config.json", "\"actorder\": \"group\"", "\"actorder\": null");
    refused("ct-int4-ordered", TSK_WEIGHTS_AS_STORED, TSK_ERROR_TENSOR, "is not part of this architecture",
            "weight_g_idx");
    copy_folder("ct-int-quantized");
    refused("ct-int-quantized", TSK_WEIGHTS_Q4, TSK_ERROR_UNSUPPORTED, "is quantised already (compressed-tensors)",
            "only be used as stored");
}

/* A value that is no number cannot be quantised; its tensor, row and columns are named. */
static void test_refused_on_load(void) {
    static const shape s = {"spoiled", 64, 1, 2, 2, 64, 40, 0, 0, 0, 1.0f};
    static const uint16_t nan16 = 0x7fc0;
    random_model_folder(&s);
    patch("spoiled", "model.transformer.blocks.0.k_proj.weight", (5 * 64 + 33) * 2, &nan16, 2);
    refused("spoiled", TSK_WEIGHTS_Q8, TSK_ERROR_TENSOR, "model.transformer.blocks.0.k_proj.weight",
            "row 5 has a value that is no finite number in columns 0 to 63");
    refused("spoiled", (tsk_weights)7, TSK_ERROR_ARGUMENT, "weights has no value 7", "");
}

/* Each allocation of loading fails once: nothing is lost. */
static void check_allocations(const char *name, tsk_weights weights, int no_map) {
    long n;
    for (n = 0; n < 4000; n++) {
        test_allocator counting = test_allocator_failing_at(n);
        tsk_allocator allocator = test_allocator_of(&counting);
        tsk_model_options o = tsk_model_options_default();
        tsk_model *model = NULL;
        tsk_status status;
        o.host.allocator = &allocator, o.host.no_map = no_map;
        o.device = TSK_DEVICE_CPU, o.n_threads = 1, o.weights = weights;
        status = tsk_model_load(tsk_test_path(name), &o, &model, NULL);
        CHECK(status == TSK_OK ? model && !counting.failed : status == TSK_ERROR_MEMORY && !model);
        tsk_model_free(model);
        if (!CHECK(counting.alive == 0) || !counting.failed) break;
    }
    CHECK(n > 20 && n < 4000);
}

static void test_allocations(void) {
    static const char *const names[] = {"ct-int4-asymmetric", "gptq-v2-ordered", "awq", "ct-fp8-block"};
    size_t i;
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        copy_folder(names[i]);
        check_allocations(names[i], TSK_WEIGHTS_AS_STORED, (int)i & 1);
        check_allocations(names[i], TSK_WEIGHTS_AS_STORED, !((int)i & 1));
    }
    check_allocations("on-load", TSK_WEIGHTS_Q4, 0);
    check_allocations("on-load-tied", TSK_WEIGHTS_Q8, 1);
}

int main(void) {
    int i;
    test_rule();
    test_layouts();
    for (i = 0; i < 8; i++) check_on_load(i & 1 ? TSK_WEIGHTS_Q4 : TSK_WEIGHTS_Q8, i >> 1 & 1, i >> 2);
    test_allocations();
    test_export();
    test_export_allocations();
    test_refused_values();
    test_refused_settings();
    test_refused_shapes();
    test_refused_on_load();
    return test_end("test_quantised");
}
