/* >>cpu_integer: products of integer weights, under every kernel set that this machine can run, against the formula in
   plain loops, to the bit: whatever the codes, groups, zeros and shapes, the rows beside a row, tiles and threads. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "../src/cpu_backend.h"
#include "seeded.h"

static const char *const set_names[] = {"portable", "avx2", "avxvnni", "avx512vnni"};

static void *must(void *block) {
    if (!block) exit(2);
    return block;
}

/* ---- a matrix of random codes */

typedef struct format {
    tsk_dtype dtype, scale_dtype;
    int bits, has_zeros;
    int32_t group;                 /* 0: one a row */
} format;

typedef struct matrix {
    tsk__weight w;
    char *block;                   /* data lies one byte into it: at any address */
    void *scales;
    int16_t *zeros;
    float *bias;
} matrix;

static void make_matrix(matrix *m, const format *f, int32_t rows, int32_t cols, int has_bias) {
    tsk__weight *w = &m->w;
    size_t i, n, groups;
    memset(m, 0, sizeof *m);
    w->dtype = f->dtype, w->scale_dtype = f->scale_dtype, w->bits = f->bits;
    w->rows = rows, w->cols = cols, w->scale_rows = 1, w->group = f->group ? f->group : cols;
    n = (size_t)rows * tsk__weight_stride(w), groups = (size_t)rows * tsk__weight_n_groups(w);
    m->block = (char *)must(malloc(n + 1));
    for (i = 0; i < n; i++) m->block[1 + i] = (char)(random_word() >> 24);
    m->scales = must(malloc(groups * sizeof(float)));
    for (i = 0; i < groups; i++) {
        const float scale = 0.001f + (float)random_below(1000) * 1e-5f;
        const uint16_t bf16 = tsk__bf16_from_float(scale);
        if (f->scale_dtype == TSK_DTYPE_F32) memcpy((float *)m->scales + i, &scale, sizeof scale);
        else memcpy((uint16_t *)m->scales + i, &bf16, sizeof bf16);
    }
    if (f->has_zeros) {
        m->zeros = (int16_t *)must(malloc(groups * sizeof *m->zeros));
        for (i = 0; i < groups; i++)
            m->zeros[i] = (int16_t)(random_below(1 << f->bits) - (f->dtype == TSK_DTYPE_I8 ? 128 : 0));
    }
    if (has_bias) {
        m->bias = (float *)must(malloc((size_t)rows * sizeof *m->bias));
        for (i = 0; i < (size_t)rows; i++) m->bias[i] = random_normal();
    }
    w->data = m->block + 1, w->scales = m->scales, w->zeros = m->zeros, w->bias = m->bias;
}

static void free_matrix(matrix *m) { free(m->block), free(m->scales), free(m->zeros), free(m->bias); }

static int code_of(const matrix *m, int32_t row, int32_t col) {
    const tsk__weight *w = &m->w;
    const int width = w->dtype == TSK_DTYPE_I8 ? 8 : w->bits;
    const size_t bit = (size_t)col * (size_t)width;
    const unsigned char byte = (unsigned char)m->block[1 + (size_t)row * tsk__weight_stride(w) + bit / 8];
    return w->dtype == TSK_DTYPE_I8 ? (int)(signed char)byte : byte >> bit % 8 & ((1 << width) - 1);
}

static int zero_of(const matrix *m, size_t group) {
    return m->zeros ? m->zeros[group] : m->w.dtype == TSK_DTYPE_I8 ? 0 : 1 << (m->w.bits - 1);
}

/* ---- the formula */

/* Activations of a group: codes and scale. Each statement rounds once. */
static float plain_quantise(const float *x, int n, int *codes) {
    float largest = 0, inverse, v;
    int i;
    for (i = 0; i < n; i++) {
        if (!(fabsf(x[i]) <= FLT_MAX)) return NAN;
        if (fabsf(x[i]) > largest) largest = fabsf(x[i]);
    }
    inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
    for (i = 0; i < n; i++) {
        v = x[i] * inverse;
        codes[i] = (int)lrintf(v);
    }
    return largest > 1e-30f ? largest * (1.0f / 127.0f) : 0.0f;
}

/* One output of one row. `group`: of the activations. */
static float plain_output(const matrix *m, const float *x, int32_t row, int32_t group) {
    volatile float y = 0, term, scale; /* (no two operations become one) */
    int codes[128];
    int32_t k, i;
    for (k = 0; k < m->w.cols; k += group) {
        const size_t own = (size_t)row * tsk__weight_n_groups(&m->w) + (size_t)(k / m->w.group);
        const float scale_x = plain_quantise(x + k, group, codes);
        long sum = 0;
        for (i = 0; i < group && scale_x == scale_x; i++)
            sum += (long)(code_of(m, row, k + i) - zero_of(m, own)) * codes[i];
        scale = tsk__float_at(m->w.scale_dtype, m->scales, own) * scale_x;
        term = (float)sum * scale;
        y = k ? y + term : term;
    }
    if (m->bias) y = y + m->bias[row];
    return y;
}

/* ---- products */

static tsk__cpu_model cpu;
static tsk_model_config config;

static void make_model(const char *set, int threads) {
    memset(&cpu, 0, sizeof cpu), memset(&config, 0, sizeof config);
    config.d_model = 1024, config.n_heads = 2, config.n_kv_heads = 2, config.head_dim = 512;
    config.mlp_hidden_size = 1024, config.embedding_size = 32;
    cpu.config = &config;
    cpu.kernels = tsk__cpu_kernels_select();
    cpu.integer = set ? tsk__cpu_integer_by_name(set) : NULL;
    cpu.pool = threads > 1 ? tsk__pool_create(NULL, threads) : NULL;
}

static void run(const matrix *m, int count, int32_t n, const float *x, float **y) {
    tsk__cpu_scratch scratch;
    tsk__cpu_product product;
    void *memory = must(malloc(tsk__cpu_scratch_init(&scratch, &config, 1, n, NULL)));
    int i;
    tsk__cpu_scratch_init(&scratch, &config, 1, n, memory);
    memset(&product, 0, sizeof product);
    product.n = n, product.count = count, product.x = x;
    for (i = 0; i < count; i++) product.w[i] = &m[i].w, product.y[i] = y[i];
    tsk__cpu_product_run(&cpu, &product, &scratch);
    free(memory);
}

static float *make_rows(int32_t n, int32_t cols) {
    float *x = (float *)must(malloc((size_t)n * (size_t)cols * sizeof *x));
    int32_t i;
    for (i = 0; i < n * cols; i++) x[i] = random_normal() * (i % 97 == 5 ? 20.0f : 1.0f);
    if (n > 2) memset(x + 2 * cols, 0, 32 * sizeof *x);      /* a group of zeroes, and one of hardly more */
    if (n > 3) for (i = 0; i < 32; i++) x[3 * cols + i] = 1e-38f;
    return x;
}

static int same_float(float a, float b) { return a == b || (a != a && b != b); }

static void check_product(const format *f, int32_t rows, int32_t cols, int32_t n, int has_bias) {
    matrix m;
    float *x = make_rows(n, cols), *y = (float *)must(malloc((size_t)(n * rows) * sizeof *y)), *one[1];
    const int32_t whole = f->group ? f->group : cols,
                  group = whole % 128 == 0 ? 128 : whole % 64 == 0 ? 64 : 32;
    int32_t i, o, wrong = 0;
    make_matrix(&m, f, rows, cols, has_bias);
    CHECK_INT(tsk__cpu_integer_group(&m.w), group);
    if (n > 4) x[4 * cols + cols - 1] = INFINITY;
    if (n > 5) x[5 * cols] = NAN;
    one[0] = y;
    run(&m, 1, n, x, one);
    for (i = 0; i < n; i++)
        for (o = 0; o < rows; o++) wrong += !same_float(y[i * rows + o], plain_output(&m, x + i * cols, o, group));
    test_check(!wrong, __FILE__, __LINE__, "%s: %d bits of type %d, groups of %d, [%d, %d], %d rows: %d of %d differ",
               cpu.integer->name, f->bits, (int)f->dtype, (int)f->group, (int)rows, (int)cols, (int)n, (int)wrong,
               (int)(n * rows));
    free_matrix(&m), free(x), free(y);
}

static const format formats[] = {
    {TSK_DTYPE_U8, TSK_DTYPE_BF16, 8, 0, 128}, {TSK_DTYPE_U8, TSK_DTYPE_BF16, 4, 0, 128},
    {TSK_DTYPE_U8, TSK_DTYPE_BF16, 4, 0, 64},  {TSK_DTYPE_U8, TSK_DTYPE_F32, 4, 1, 32},
    {TSK_DTYPE_U8, TSK_DTYPE_F32, 8, 1, 32},   {TSK_DTYPE_U8, TSK_DTYPE_BF16, 8, 0, 0},
    {TSK_DTYPE_U8, TSK_DTYPE_F32, 4, 1, 0},    {TSK_DTYPE_I8, TSK_DTYPE_F32, 8, 0, 0},
    {TSK_DTYPE_I8, TSK_DTYPE_BF16, 8, 1, 0},   {TSK_DTYPE_U8, TSK_DTYPE_BF16, 4, 1, 256}};
enum { n_formats = sizeof formats / sizeof *formats };

/* Extremes: the largest codes, everywhere of one sign, do not overflow. */
static void check_extremes(int bits, int weight, float activation) {
    format f = {TSK_DTYPE_U8, TSK_DTYPE_F32, 8, 0, 128};
    matrix m;
    float x[256], y[40], *one[1];
    int32_t i;
    f.bits = bits;
    make_matrix(&m, &f, 40, 256, 0);
    memset(m.block, weight, (size_t)m.w.rows * tsk__weight_stride(&m.w) + 1);
    for (i = 0; i < 256; i++) x[i] = activation;
    one[0] = y;
    run(&m, 1, 1, x, one);
    for (i = 0; i < 40; i++) CHECK(y[i] == plain_output(&m, x, i, 128));
    free_matrix(&m);
}

static void check_set(const char *name) {
    static const int32_t sizes[][3] = {{64, 256, 5}, {1, 128, 1}, {33, 640, 13}, {50, 1024, 7}, {97, 512, 24}};
    size_t s;
    int f;
    make_model(name, 1);
    if (!cpu.integer) {
        printf("skipped: integer kernels %s, which this machine has not\n", name);
        return;
    }
    for (f = 0; f < n_formats; f++)
        for (s = 0; s < sizeof sizes / sizeof *sizes; s++)
            if (formats[f].group <= sizes[s][1] && sizes[s][1] % (formats[f].group ? formats[f].group : 1) == 0)
                check_product(&formats[f], sizes[s][0], sizes[s][1], sizes[s][2], f & 1);
    check_product(&formats[2], 40, 192, 3, 0); /* columns that 128 does not divide */
    check_product(&formats[5], 40, 160, 3, 0);
    for (f = 0; f < 4; f++) check_extremes(f & 1 ? 8 : 4, f >> 1 ? 0xff : 0, f & 1 ? -3.0f : 3.0f);
}

/* A row's outputs are the same alone, among others, with any number of threads, and beside other matrices. */
static void test_neighbours(void) {
    enum { rows = 70, cols = 512, n = 29 };
    matrix m[3];
    float *x = make_rows(n, cols), *all[3], *alone[3];
    int i, t;
    for (i = 0; i < 3; i++) {
        make_matrix(&m[i], &formats[i == 2 ? 0 : 1], rows, cols, 0);
        all[i] = (float *)must(malloc(n * rows * sizeof(float)));
        alone[i] = (float *)must(malloc(n * rows * sizeof(float)));
    }
    make_model(tsk__cpu_integer_select()->name, 1);
    run(m, 3, n, x, all);
    for (t = 1; t < 4; t++) {
        make_model(tsk__cpu_integer_select()->name, t);
        run(m, 3, n, x, alone);
        for (i = 0; i < 3; i++) CHECK(memcmp(all[i], alone[i], n * rows * sizeof(float)) == 0);
        for (i = 0; i < n; i++) {
            run(m + 2, 1, 1, x + i * cols, alone);
            CHECK(memcmp(all[2] + i * rows, alone[0], rows * sizeof(float)) == 0);
        }
        if (cpu.pool) tsk__pool_destroy(NULL, cpu.pool);
    }
    for (i = 0; i < 3; i++) free_matrix(&m[i]), free(all[i]), free(alone[i]);
    free(x);
}

/* What has no integer kernels is multiplied by its values; so is everything where activations stay f32. */
static void test_by_values(void) {
    format f = {TSK_DTYPE_U8, TSK_DTYPE_F32, 8, 1, 32};
    matrix m;
    float *x = make_rows(9, 256), y[9 * 40], *one[1], w[256];
    int32_t order[256], i, k, o;
    double sum, largest = 0;
    int turn;
    one[0] = y;
    for (turn = 0; turn < 4; turn++) {
        make_model(turn ? "portable" : NULL, 1);
        make_matrix(&m, &f, 40, 256, 0);
        for (i = 0; i < 256; i++) order[i] = random_below(8);
        if (turn == 1) m.w.groups = order;
        if (turn == 2) {
            m.w.dtype = TSK_DTYPE_F8_E4M3;
            for (i = 0; i < 40 * 256; i++) if ((m.block[1 + i] & 127) == 127) m.block[1 + i] = 0;
        }
        if (turn == 3) m.w.scale_rows = 2;
        if (turn) CHECK_INT(tsk__cpu_integer_group(&m.w), 0);
        run(&m, 1, 9, x, one);
        for (o = 0; o < 40; o++) {
            tsk__weight_values(&m.w, o, 0, 256, w);
            for (i = 0; i < 9; i++) {
                for (sum = 0, k = 0; k < 256; k++) sum += (double)w[k] * (double)x[i * 256 + k];
                if (fabs(sum) > largest) largest = fabs(sum);
                CHECK(fabs(sum - (double)y[i * 40 + o]) <= 1e-5 * (largest + 1));
            }
        }
        free_matrix(&m);
    }
    free(x);
}

/* The codes are near the values: an 8-bit product is within a percent of the exact one. */
static void test_accuracy(void) {
    matrix m;
    float x[8 * 1024], y[8 * 64], *one[1], w[1024];
    double error = 0, square = 0, sum;
    int32_t i, k, o;
    for (i = 0; i < 8 * 1024; i++) x[i] = random_normal();
    make_model(tsk__cpu_integer_select()->name, 1);
    make_matrix(&m, &formats[0], 64, 1024, 0);
    one[0] = y;
    run(&m, 1, 8, x, one);
    for (o = 0; o < 64; o++) {
        tsk__weight_values(&m.w, o, 0, 1024, w);
        for (i = 0; i < 8; i++) {
            for (sum = 0, k = 0; k < 1024; k++) sum += (double)w[k] * (double)x[i * 1024 + k];
            error += (sum - (double)y[i * 64 + o]) * (sum - (double)y[i * 64 + o]);
            square += sum * sum;
        }
    }
    CHECK(sqrt(error / square) < 0.01);
    free_matrix(&m);
}

int main(void) {
    size_t i;
    for (i = 0; i < sizeof set_names / sizeof *set_names; i++) check_set(set_names[i]);
    test_neighbours();
    test_by_values();
    test_accuracy();
    CHECK(!tsk__cpu_integer_by_name("none"));
    return test_end("test_integer");
}
