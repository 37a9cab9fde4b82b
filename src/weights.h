#ifndef SECTION_GUARD_WEIGHTS
#define SECTION_GUARD_WEIGHTS

#include "error.h"
#include "memory.h"
#include "pool.h"
#include "number.h"
#include "quantise.h"
#include "safetensors.h"
#include "formats.h"
#include "family.h"
#include "config.h"
#include "random.h"

// >>weights ===========================================================================================================
/* What a backend keeps of the weights, where they come from, and the one loader that brings the two together: it walks
   the weights that a configuration implies, asks the source for each, and hands it to the backend, which keeps it where
   it lies, copies it, or places it in a layout of its own.

   The type that weights are stored in is their own, whatever the activations' type is. A matrix may be kept as codes,
   integers or 8-bit floats, with scales (see >>quantise, >>formats): a code's value is scale * (code - zero) in f32.
   Codes lie in rows, as compressed-tensors packs them, so that such a file is used where it is mapped; other layouts
   are brought into that one. */

/* ---- what a backend keeps of a weight */

typedef struct tsk__weight {
    const void *data;          /* plain: [rows, cols], aligned to its elements. Codes: rows of tsk__weight_stride bytes,
                                  at any address */
    const void *scales;        /* codes: [ceil(rows / scale_rows), ceil(cols / group)] of scale_dtype; plain: NULL */
    const int16_t *zeros;      /* codes, shaped as the scales: what is subtracted first; NULL: tsk__weight_zero */
    const int32_t *groups;     /* codes, [cols]: the group of each column; NULL: column / group */
    const float *bias;         /* [rows] or NULL */
    tsk_dtype dtype;           /* plain: F32, F16, BF16. Codes: U8 (unsigned, of `bits` bits, lowest first), I8,
                                  F8_E4M3 */
    int32_t rows, cols;        /* outputs, inputs; a vector has one column */
    int32_t bits;              /* of a code; 0: plain */
    int32_t group, scale_rows; /* columns and rows that share a scale */
    tsk_dtype scale_dtype;     /* F32, F16, BF16 */
} tsk__weight;

/* Bytes from row to row. Rows of codes begin at whole words. */
static size_t tsk__weight_stride(const tsk__weight *w) {
    if (!w->bits) return (size_t)w->cols * tsk_dtype_size(w->dtype);
    return w->dtype == TSK_DTYPE_U8 ? ((size_t)w->cols * (size_t)w->bits + 31) / 32 * 4 : (size_t)w->cols;
}

static size_t tsk__weight_n_groups(const tsk__weight *w) {
    return ((size_t)w->cols + (size_t)w->group - 1) / (size_t)w->group;
}

/* The first scale of a row: index into scales and zeros. */
static size_t tsk__weight_scale_row(const tsk__weight *w, int32_t row) {
    return (size_t)(row / w->scale_rows) * tsk__weight_n_groups(w);
}

/* The zero of symmetric codes. */
static int tsk__weight_zero(const tsk__weight *w) { return w->dtype == TSK_DTYPE_U8 ? 1 << (w->bits - 1) : 0; }

static float tsk__float_at(tsk_dtype dtype, const void *values, size_t i) {
    float value;
    tsk__floats_from(dtype, (const char *)values + i * tsk_dtype_size(dtype), 1, &value);
    return value;
}

/* The code of a column, as a number. */
static float tsk__weight_code(const tsk__weight *w, const uint8_t *row, int32_t col) {
    if (w->dtype == TSK_DTYPE_F8_E4M3) return tsk__float_from_e4m3(row[col]);
    if (w->dtype == TSK_DTYPE_I8) return (float)(int8_t)row[col];
    return (float)(w->bits == 4 ? row[col / 2] >> col % 2 * 4 & 15 : row[col]);
}

/* Values of `count` columns of a row, from `first` on: scale * (code - zero), in f32. */
static void tsk__weight_values(const tsk__weight *w, int32_t row, int32_t first, int32_t count, float *out) {
    const char *data = (const char *)w->data + (size_t)row * tsk__weight_stride(w);
    int32_t i, group = -1;
    float scale = 0, zero = 0;
    size_t scales;
    if (!w->bits) {
        tsk__floats_from(w->dtype, data + (size_t)first * tsk_dtype_size(w->dtype), (uint64_t)count, out);
        return;
    }
    scales = tsk__weight_scale_row(w, row);
    for (i = 0; i < count; i++) {
        const int32_t col = first + i, own = w->groups ? w->groups[col] : col / w->group;
        if (own != group) {
            group = own;
            scale = tsk__float_at(w->scale_dtype, w->scales, scales + (size_t)group);
            zero = w->zeros ? (float)w->zeros[scales + (size_t)group] : (float)tsk__weight_zero(w);
        }
        out[i] = (tsk__weight_code(w, (const uint8_t *)data, col) - zero) * scale;
    }
}

/* ---- which matrices are quantised on load */

#define TSK__WEIGHTS_Q8_GROUP 128  /* a quarter less error than one scale a row, for an eighth of a bit a weight */
#define TSK__WEIGHTS_Q4_GROUP 128

/* Bits of the codes that a weight gets, and *group; 0: it stays as it is stored. At 4 bits the maps that are most
   sensitive keep 8, the second of each feed-forward network and the head. A table of embeddings is quantised only if it
   is the head, too. */
static int tsk__weights_bits(const tsk_model_config *c, const tsk__weight_id *id, tsk_weights weights,
                             int32_t *group) {
    uint64_t shape[2];
    int bits = weights == TSK_WEIGHTS_Q4 ? 4 : 8;
    *group = 0;
    if (weights == TSK_WEIGHTS_AS_STORED || tsk__family_is_vector(c, id)) return 0;
    if (id->part == (int)TSK__PART_EMBEDDING && !c->weight_tying) return 0;
    if (id->part == (int)TSK__PART_EMBEDDING || id->part == (int)TSK__PART_HEAD || id->part == (int)TSK__PART_FF_OUT)
        bits = 8;
    tsk__family_shape(c, id, shape);
    *group = tsk__quantise_group_size((int32_t)shape[1], bits == 4 ? TSK__WEIGHTS_Q4_GROUP : TSK__WEIGHTS_Q8_GROUP);
    return *group ? bits : 0;
}

/* Bytes of a quantised matrix. */
static uint64_t tsk__weights_quantised_size(const uint64_t shape[2], int bits, int32_t group) {
    return shape[0] * (shape[1] * (uint64_t)bits / 8 + shape[1] / (uint64_t)group * sizeof(uint16_t));
}

/* Bytes of all weights of a configuration; what is not quantised counts as bf16. */
static uint64_t tsk__weights_size(const tsk_model_config *c, tsk_weights weights) {
    tsk__weight_id id = tsk__family_first();
    uint64_t size = 0, shape[2];
    do {
        int32_t group;
        int bits = tsk__weights_bits(c, &id, weights, &group);
        tsk__family_shape(c, &id, shape);
        size += bits ? tsk__weights_quantised_size(shape, bits, group) : shape[0] * shape[1] * 2;
    } while (tsk__family_next(c, &id));
    return size;
}

/* ---- sources */

/* A tensor of a folder. */
typedef struct tsk__stored_part {
    const tsk_safetensors *file;
    const tsk_tensor_info *info;   /* NULL: there is none */
} tsk__stored_part;

/* A weight as its source has it. */
typedef struct tsk__stored {
    const char *name;          /* in messages */
    tsk_dtype dtype;           /* of its values; of its codes where it is quantised */
    int32_t rows, cols;        /* as in tsk__weight */
    uint64_t size;             /* in bytes, of all its tensors */
    const void *data;          /* where values or codes are in memory, at any address; NULL: they must be read */
    tsk__stored_part parts[TSK__ROLES]; /* a folder's: where they are read */
    const tsk__scheme *scheme; /* how it is quantised; NULL: it is not */
    const tsk__weight *kept;   /* dequantised values: of this (see tsk__dequantising) */
    int is_made;               /* random: a backend may make them itself, as tsk__random_fill_chunk does, */
    uint32_t number;           /* which of the model's matrices, */
    float scale;               /* uniform on [-scale, scale); 0: all are ones */
} tsk__stored;

typedef struct tsk__source {
    const tsk_model_config *config;
    void (*find)(const struct tsk__source *source, const tsk__weight_id *id, tsk__stored *out);
    /* `size` bytes of values or codes from byte `offset` on. */
    tsk_status (*read)(const struct tsk__source *source, const tsk__stored *stored, uint64_t offset, void *out,
                       size_t size, tsk_error *error);
    tsk_weights weights;       /* what the loader is to make of plain weights */
    const tsk__weight *kept;   /* a source of dequantised values: what it makes them of (see tsk__dequantising), */
    const struct tsk__source *inner; /* and where the rest comes from */
    const tsk_folder *folder;  /* NULL: random */
    uint64_t seed;             /* of random values, */
    tsk__pool *pool;           /* and who helps to make them and to quantise; NULL: nobody */
} tsk__source;

static void tsk__source_folder_find(const tsk__source *source, const tsk__weight_id *id, tsk__stored *out) {
    const tsk__stored_part *values = &out->parts[TSK__ROLE_VALUES];
    uint64_t shape[2];
    int role;
    memset(out, 0, sizeof *out);
    for (role = 0; role < (int)TSK__ROLES; role++) {
        tsk__stored_part *part = &out->parts[role];
        part->info = tsk__folder_find_role(source->folder, id, (tsk__role)role, &part->file, &out->scheme);
        if (part->info) out->size += part->info->size;
    }
    tsk__family_shape(source->config, id, shape);
    out->name = values->info->name;
    out->dtype = values->info->dtype;
    out->rows = (int32_t)shape[0];
    out->cols = (int32_t)shape[1];
    out->data = tsk_safetensors_data(values->file, values->info);
}

static tsk_status tsk__source_folder_read(const tsk__source *source, const tsk__stored *stored, uint64_t offset,
                                          void *out, size_t size, tsk_error *error) {
    const tsk__stored_part *values = &stored->parts[TSK__ROLE_VALUES];
    (void)source;
    return tsk_safetensors_read(values->file, values->info, offset, out, size, error);
}

/* The tensors of a folder, which has been checked to have them all, and must outlive what is loaded. */
static tsk__source tsk__source_of_folder(const tsk_folder *folder) {
    tsk__source source;
    memset(&source, 0, sizeof source);
    source.config = &folder->config;
    source.find = tsk__source_folder_find;
    source.read = tsk__source_folder_read;
    source.folder = folder;
    return source;
}

/* ---- random weights: for benchmarks, where only their shape and an ordinary spread matter. Matrices in bf16, norms of
   ones, biases of zeros. */

typedef struct tsk__random_fill {
    uint16_t *values;              /* [count] bf16, from the matrix's element `first` on */
    uint64_t first, count, seed;
    uint32_t number;
    float scale;
} tsk__random_fill;

#define TSK__RANDOM_FILL_CHUNK ((uint64_t)1 << 16)

/* Uniform on [-scale, scale): eight values a Philox call, 16 bits each. */
static void tsk__random_fill_chunk(void *context, int chunk) {
    const tsk__random_fill *f = (const tsk__random_fill *)context;
    uint64_t begin = (uint64_t)chunk * TSK__RANDOM_FILL_CHUNK, end = begin + TSK__RANDOM_FILL_CHUNK, at;
    uint32_t words[4];
    for (at = begin; at < end && at < f->count; at++) {
        uint64_t i = f->first + at;
        float value;
        if (i % 8 == 0 || at == begin)
            tsk__random_words(f->seed, (uint32_t)(i / 8), (uint32_t)(i / 8 >> 32), f->number, 2, words);
        value = (float)(words[i % 8 / 2] >> (i % 2 * 16) & 0xffff) / 32768.0f - 1.0f;
        f->values[at] = tsk__bf16_from_float(f->scale * value);
    }
}

/* Which of the model's matrices it is, norms not counted. */
static uint32_t tsk__random_number(const tsk_model_config *c, const tsk__weight_id *id) {
    uint32_t in_layer = 0, before = 0;
    tsk__weight_id other = tsk__weight_id_of(0, (tsk__part)0, 0);
    for (; other.part < (int)TSK__PART_COUNT; other.part++) {
        if (tsk__family_is_vector(c, &other)) continue;
        in_layer += (uint32_t)tsk__family_each(c, other.part);
        if (other.part < id->part) before += (uint32_t)tsk__family_each(c, other.part);
    }
    if (id->part == (int)TSK__PART_EMBEDDING) return 0;
    if (id->layer < 0) return 1 + (uint32_t)c->n_layers * in_layer;
    return 1 + (uint32_t)id->layer * in_layer + before + (uint32_t)id->expert;
}

static void tsk__source_random_find(const tsk__source *source, const tsk__weight_id *id, tsk__stored *out) {
    int is_vector = tsk__family_is_vector(source->config, id);
    uint64_t shape[2];
    tsk__family_shape(source->config, id, shape);
    memset(out, 0, sizeof *out);
    out->name = "random weights";
    out->dtype = is_vector ? TSK_DTYPE_F32 : TSK_DTYPE_BF16;
    out->rows = (int32_t)shape[0];
    out->cols = (int32_t)shape[1];
    out->size = shape[0] * shape[1] * tsk_dtype_size(out->dtype);
    out->is_made = !id->is_bias;
    if (is_vector) return;
    out->number = tsk__random_number(source->config, id);
    out->scale = sqrtf(3.0f / (float)out->cols); /* keeps the variance of what goes through */
}

static tsk_status tsk__source_random_read(const tsk__source *source, const tsk__stored *stored, uint64_t offset,
                                          void *out, size_t size, tsk_error *error) {
    tsk__random_fill fill;
    size_t i;
    (void)error;
    if (stored->dtype == TSK_DTYPE_F32) {
        for (i = 0; i < size / sizeof(float); i++) ((float *)out)[i] = stored->is_made ? 1.0f : 0.0f;
        return TSK_OK;
    }
    fill.values = (uint16_t *)out;
    fill.first = offset / sizeof *fill.values;
    fill.count = size / sizeof *fill.values;
    fill.seed = source->seed;
    fill.number = stored->number;
    fill.scale = stored->scale;
    tsk__parallel(source->pool, (int)((fill.count + TSK__RANDOM_FILL_CHUNK - 1) / TSK__RANDOM_FILL_CHUNK),
                  tsk__random_fill_chunk, &fill);
    return TSK_OK;
}

static tsk__source tsk__source_of_random(const tsk_model_config *config, uint64_t seed) {
    tsk__source source;
    memset(&source, 0, sizeof source);
    source.config = config;
    source.find = tsk__source_random_find;
    source.read = tsk__source_random_read;
    source.seed = seed;
    return source;
}

/* ---- the loader */

/* What a backend does with a weight. */
typedef tsk_status (*tsk__weights_put)(void *backend, const tsk__weight_id *id, const tsk__stored *stored,
                                       tsk_error *error);

/* Hands every weight to the backend, in the model's order, until it fails. */
static tsk_status tsk__weights_load(const tsk__source *source, tsk__weights_put put, void *backend, tsk_error *error) {
    tsk__weight_id id = tsk__family_first();
    tsk__stored stored;
    tsk_status status;
    do {
        source->find(source, &id, &stored);
        status = put(backend, &id, &stored, error);
    } while (status == TSK_OK && tsk__family_next(source->config, &id));
    return status;
}

static uint64_t tsk__weights_total(const tsk__source *source) {
    tsk__weight_id id = tsk__family_first();
    tsk__stored stored;
    uint64_t total = 0;
    do {
        source->find(source, &id, &stored);
        total += stored.size;
    } while (tsk__family_next(source->config, &id));
    return total;
}

/* ---- a matrix becomes what a backend keeps: where it lies, if it can stay there, else in `blocks` */

/* Memory for `what`. */
static void *tsk__weights_new(tsk__blocks *blocks, const char *what, uint64_t count, size_t size, tsk_error *error) {
    void *block = count > SIZE_MAX ? NULL : tsk__blocks_new(blocks, (size_t)count, size);
    if (!block) tsk__error_memory(error, what, count * size);
    return block;
}

static tsk_status tsk__weight_plain(tsk__blocks *blocks, const tsk__source *source, const tsk__stored *stored,
                                    tsk__weight *out, tsk_error *error) {
    void *copy;
    out->dtype = stored->dtype;
    out->rows = stored->rows;
    out->cols = stored->cols;
    out->data = stored->data;
    if (stored->data && (uintptr_t)stored->data % tsk_dtype_size(stored->dtype) == 0) return TSK_OK;
    copy = tsk__weights_new(blocks, stored->name, stored->size, 1, error);
    if (!copy) return TSK_ERROR_MEMORY;
    out->data = copy;
    if (!stored->data) return source->read(source, stored, 0, copy, (size_t)stored->size, error);
    memcpy(copy, stored->data, (size_t)stored->size);
    return TSK_OK;
}

/* ---- quantising */

#define TSK__WEIGHTS_PIECE ((uint64_t)4 << 20) /* bytes of values that are read at a time where they are not mapped */

typedef struct tsk__quantising {
    const tsk__weight *weight;     /* codes */
    tsk_dtype dtype;               /* of the values */
    const char *values;            /* of rows `first` on, */
    int32_t first, n, tasks;       /* n rows */
} tsk__quantising;

static void tsk__quantising_task(void *context, int task) {
    const tsk__quantising *q = (const tsk__quantising *)context;
    const tsk__weight *w = q->weight;
    const size_t from = (size_t)w->cols * tsk_dtype_size(q->dtype), to = tsk__weight_stride(w);
    int32_t i = (int32_t)((int64_t)q->n * task / q->tasks), end = (int32_t)((int64_t)q->n * (task + 1) / q->tasks);
    for (; i < end; i++)
        tsk__quantise_row(q->dtype, q->values + (size_t)i * from, w->cols, w->group, w->bits,
                          (uint8_t *)(uintptr_t)w->data + (size_t)(q->first + i) * to,
                          (uint16_t *)(uintptr_t)w->scales + (size_t)(q->first + i) * tsk__weight_n_groups(w));
}

static tsk_status tsk__quantising_check(const tsk__weight *w, const tsk__stored *stored, tsk_error *error) {
    const size_t groups = tsk__weight_n_groups(w);
    const tsk__stored_part *values = &stored->parts[TSK__ROLE_VALUES];
    size_t i, n = (size_t)w->rows * groups;
    for (i = 0; i < n; i++)
        if (!((const uint16_t *)w->scales)[i])
            return tsk__error_set(error, TSK_ERROR_TENSOR, NULL, values->info ? values->info->offset : TSK_NO_OFFSET,
                                  "tensor '%.120s': row %llu has a value that is no finite number in columns %llu to "
                                  "%llu, and cannot be quantised", stored->name, (unsigned long long)(i / groups),
                                  (unsigned long long)(i % groups * (size_t)w->group),
                                  (unsigned long long)((i % groups + 1) * (size_t)w->group - 1));
    return TSK_OK;
}

/* The values of a plain matrix to codes of so many bits, in new memory; the source's pool helps. */
static tsk_status tsk__weight_quantise(tsk__blocks *blocks, const tsk__source *source, const tsk__stored *stored,
                                       int bits, int32_t group, tsk__weight *out, tsk_error *error) {
    const uint64_t row = (uint64_t)stored->cols * tsk_dtype_size(stored->dtype);
    const int32_t rows = stored->rows,
                  piece = stored->data || row * (uint64_t)rows <= TSK__WEIGHTS_PIECE ? rows
                          : row > TSK__WEIGHTS_PIECE ? 1 : (int32_t)(TSK__WEIGHTS_PIECE / row);
    const tsk_allocator *allocator = blocks->allocator;
    tsk__quantising q;
    char *buffer = NULL;
    tsk_status status = TSK_OK;
    out->rows = rows, out->cols = stored->cols;
    out->dtype = TSK_DTYPE_U8, out->bits = bits;
    out->group = group, out->scale_rows = 1;
    out->scale_dtype = TSK_DTYPE_BF16;
    out->data = tsk__weights_new(blocks, stored->name, (uint64_t)rows, tsk__weight_stride(out), error);
    if (!out->data) return TSK_ERROR_MEMORY;
    out->scales = tsk__weights_new(blocks, stored->name, (uint64_t)rows * tsk__weight_n_groups(out), 2, error);
    if (!out->scales) return TSK_ERROR_MEMORY;
    if (!stored->data) {
        buffer = (char *)tsk__memory_new(allocator, (size_t)piece, (size_t)row);
        if (!buffer) return tsk__error_memory(error, stored->name, row * (uint64_t)piece);
    }
    q.weight = out, q.dtype = stored->dtype;
    for (q.first = 0; q.first < rows && status == TSK_OK; q.first += piece) {
        const uint64_t at = (uint64_t)q.first * row;
        q.n = rows - q.first < piece ? rows - q.first : piece;
        q.values = stored->data ? (const char *)stored->data + at : buffer;
        q.tasks = q.n < 256 ? q.n : 256;
        if (!stored->data) status = source->read(source, stored, at, buffer, (size_t)(row * (uint64_t)q.n), error);
        if (status == TSK_OK) tsk__parallel(source->pool, q.tasks, tsk__quantising_task, &q);
    }
    tsk__memory_delete(allocator, buffer);
    return status == TSK_OK ? tsk__quantising_check(out, stored, error) : status;
}

/* ---- unpacking: the tensors of a quantised folder (see >>formats) become codes in rows, scales and zeros likewise */

typedef struct tsk__unpacking {
    const tsk__stored *stored;
    tsk__blocks *blocks, *temporary; /* what stays, and what does not */
    tsk__weight *out;
    tsk_error *error;
} tsk__unpacking;

/* The bytes of a role's tensor, mapped or read to `into`. */
static tsk_status tsk__unpack_bytes(const tsk__unpacking *u, tsk__role role, tsk__blocks *into, const void **out) {
    const tsk__stored_part *part = &u->stored->parts[role];
    void *copy;
    *out = tsk_safetensors_data(part->file, part->info);
    if (*out) return TSK_OK;
    *out = copy = tsk__weights_new(into, part->info->name, part->info->size, 1, u->error);
    if (!copy) return TSK_ERROR_MEMORY;
    return tsk_safetensors_read(part->file, part->info, 0, copy, (size_t)part->info->size, u->error);
}

static uint32_t tsk__unpack_word(const void *words, size_t i) {
    uint32_t word;
    memcpy(&word, (const char *)words + i * sizeof word, sizeof word);
    return word;
}

/* Where AWQ puts a row's code: the half byte of its word, counted from the lowest. */
static int tsk__unpack_awq_place(size_t row) {
    static const uint8_t places[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    return places[row % 8];
}

/* "'path': tensor 'name': ..." */
static tsk_status TSK__PRINTF(3, 4)
    tsk__unpack_fail(const tsk__unpacking *u, tsk__role role, const char *format, ...) {
    const tsk__stored_part *part = &u->stored->parts[role];
    char message[240];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return tsk__error_set(u->error, TSK_ERROR_TENSOR, part->file->path, part->info->offset, "'%s': tensor '%.120s' %s",
                          tsk__error_path(part->file->path), part->info->name, message);
}

/* X.weight_shape must say what config.json says. */
static tsk_status tsk__unpack_shape(const tsk__unpacking *u) {
    const tsk_tensor_info *info = u->stored->parts[TSK__ROLE_SHAPE].info;
    const void *bytes;
    int64_t shape[2];
    int32_t words[2];
    tsk_status status;
    if (!info) return TSK_OK;
    status = tsk__unpack_bytes(u, TSK__ROLE_SHAPE, u->temporary, &bytes);
    if (status != TSK_OK) return status;
    if (info->dtype == TSK_DTYPE_I64) memcpy(shape, bytes, sizeof shape);
    else memcpy(words, bytes, sizeof words), shape[0] = words[0], shape[1] = words[1];
    if (shape[0] == u->stored->rows && shape[1] == u->stored->cols) return TSK_OK;
    return tsk__unpack_fail(u, TSK__ROLE_SHAPE, "says [%lld, %lld]; expected [%d, %d] by config.json",
                            (long long)shape[0], (long long)shape[1], (int)u->stored->rows, (int)u->stored->cols);
}

/* Words along the columns, row by row. */
static void tsk__unpack_gptq(const tsk__weight *w, const void *from, uint32_t *to) {
    const size_t rows = (size_t)w->rows, words = tsk__weight_stride(w) / 4;
    size_t row, word, block;
    for (block = 0; block < words; block += 16)
        for (row = 0; row < rows; row++)
            for (word = block; word < words && word < block + 16; word++)
                to[row * words + word] = tsk__unpack_word(from, word * rows + row);
}

static void tsk__unpack_awq(const tsk__weight *w, const void *from, uint32_t *to) {
    const size_t rows = (size_t)w->rows, cols = (size_t)w->cols, words = tsk__weight_stride(w) / 4;
    size_t row, col;
    memset(to, 0, rows * words * sizeof *to);
    for (col = 0; col < cols; col++)
        for (row = 0; row < rows; row++) {
            const uint32_t code = tsk__unpack_word(from, col * (rows / 8) + row / 8) >> 4 * tsk__unpack_awq_place(row);
            to[row * words + col / 8] |= (code & 15) << col % 8 * 4;
        }
}

static tsk_status tsk__unpack_codes(const tsk__unpacking *u) {
    const tsk__layout layout = u->stored->scheme->layout;
    const int stays = layout != TSK__LAYOUT_GPTQ && layout != TSK__LAYOUT_AWQ;
    const void *from;
    uint32_t *to;
    tsk_status status = tsk__unpack_bytes(u, TSK__ROLE_VALUES, stays ? u->blocks : u->temporary, &from);
    u->out->data = from;
    if (status != TSK_OK || stays) return status;
    to = (uint32_t *)tsk__weights_new(u->blocks, u->stored->name, (uint64_t)u->out->rows, tsk__weight_stride(u->out),
                                      u->error);
    if (!to) return TSK_ERROR_MEMORY;
    if (layout == TSK__LAYOUT_GPTQ) tsk__unpack_gptq(u->out, from, to);
    else tsk__unpack_awq(u->out, from, to);
    u->out->data = to;
    return TSK_OK;
}

/* n numbers, none of them negative, infinite or NaN. */
static tsk_status tsk__unpack_check_scales(const tsk__unpacking *u, const void *scales, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) {
        const float scale = tsk__float_at(u->out->scale_dtype, scales, i);
        if (!(scale >= 0 && scale <= FLT_MAX))
            return tsk__unpack_fail(u, TSK__ROLE_SCALES, "has scale %g as its number %llu; expected a finite one that "
                                    "is not negative", (double)scale, (unsigned long long)i);
    }
    return TSK_OK;
}

static tsk_status tsk__unpack_scales(const tsk__unpacking *u) {
    const tsk__stored_part *part = &u->stored->parts[TSK__ROLE_SCALES];
    const tsk__layout layout = u->stored->scheme->layout;
    const int is_input_first = layout == TSK__LAYOUT_GPTQ || layout == TSK__LAYOUT_AWQ;
    const size_t size = tsk_dtype_size(part->info->dtype), n = (size_t)(part->info->size / size),
                 groups = tsk__weight_n_groups(u->out), rows = n / groups;
    const void *from;
    char *to;
    size_t i;
    tsk_status status = tsk__unpack_bytes(u, TSK__ROLE_SCALES, u->blocks, &from);
    u->out->scale_dtype = part->info->dtype;
    if (status == TSK_OK) status = tsk__unpack_check_scales(u, from, n);
    u->out->scales = from;
    if (status != TSK_OK || (!is_input_first && (uintptr_t)from % size == 0)) return status;
    to = (char *)tsk__weights_new(u->blocks, part->info->name, n, size, u->error);
    if (!to) return TSK_ERROR_MEMORY;
    u->out->scales = to;
    for (i = 0; i < n; i++)
        memcpy(to + i * size, (const char *)from + (is_input_first ? i % groups * rows + i / groups : i) * size, size);
    return TSK_OK;
}

/* The zero of a row and group. */
static int16_t tsk__unpack_zero(const tsk__unpacking *u, const void *from, size_t row, size_t group) {
    const tsk__scheme *s = u->stored->scheme;
    const size_t bits = (size_t)s->bits, groups = tsk__weight_n_groups(u->out), codes = 32 / bits;
    const size_t words = ((size_t)u->out->rows + codes - 1) / codes, mask = ((size_t)1 << bits) - 1;
    size_t place = row % codes * bits;
    if (s->layout == TSK__LAYOUT_BYTES) return ((const int8_t *)from)[row * groups + group];
    if (s->layout == TSK__LAYOUT_PACKED)
        return (int16_t)(tsk__unpack_word(from, row / codes * groups + group) >> place & mask);
    if (s->layout == TSK__LAYOUT_AWQ) place = 4 * (size_t)tsk__unpack_awq_place(row);
    return (int16_t)(((tsk__unpack_word(from, group * words + row / codes) >> place) + (size_t)s->zero_added) & mask);
}

static tsk_status tsk__unpack_zeros(const tsk__unpacking *u) {
    const tsk_tensor_info *info = u->stored->parts[TSK__ROLE_ZEROS].info;
    const size_t groups = tsk__weight_n_groups(u->out),
                 rows = tsk__weight_scale_row(u->out, u->out->rows - 1) / groups + 1;
    const void *from;
    int16_t *to;
    size_t row, group;
    tsk_status status;
    if (!info) return TSK_OK;
    status = tsk__unpack_bytes(u, TSK__ROLE_ZEROS, u->temporary, &from);
    if (status != TSK_OK) return status;
    u->out->zeros = to = (int16_t *)tsk__weights_new(u->blocks, info->name, (uint64_t)rows * groups, sizeof *to,
                                                     u->error);
    if (!to) return TSK_ERROR_MEMORY;
    for (row = 0; row < rows; row++)
        for (group = 0; group < groups; group++) *to++ = tsk__unpack_zero(u, from, row, group);
    return TSK_OK;
}

/* Groups that are those of neighbouring columns need no list. */
static tsk_status tsk__unpack_order(const tsk__unpacking *u) {
    const tsk_tensor_info *info = u->stored->parts[TSK__ROLE_ORDER].info;
    const size_t groups = tsk__weight_n_groups(u->out);
    const void *from;
    int32_t *to, col, in_order = 1;
    tsk_status status;
    if (!info) return TSK_OK;
    status = tsk__unpack_bytes(u, TSK__ROLE_ORDER, u->temporary, &from);
    if (status != TSK_OK) return status;
    to = (int32_t *)tsk__weights_new(u->blocks, info->name, (uint64_t)u->out->cols, sizeof *to, u->error);
    if (!to) return TSK_ERROR_MEMORY;
    for (col = 0; col < u->out->cols; col++) {
        to[col] = (int32_t)tsk__unpack_word(from, (size_t)col);
        if (to[col] < 0 || (size_t)to[col] >= groups)
            return tsk__unpack_fail(u, TSK__ROLE_ORDER, "puts column %d into group %d of %llu", (int)col, (int)to[col],
                                    (unsigned long long)groups);
        in_order &= to[col] == col / u->out->group;
    }
    if (!in_order) u->out->groups = to;
    return TSK_OK;
}

static tsk_status tsk__weight_unpack(tsk__blocks *blocks, const tsk__stored *stored, tsk__weight *out,
                                     tsk_error *error) {
    const tsk__scheme *s = stored->scheme;
    tsk__blocks temporary;
    tsk__unpacking u;
    tsk_status status;
    memset(&temporary, 0, sizeof temporary);
    temporary.allocator = blocks->allocator;
    u.stored = stored, u.blocks = blocks, u.temporary = &temporary, u.out = out, u.error = error;
    out->rows = stored->rows, out->cols = stored->cols;
    out->bits = s->bits;
    out->group = s->group ? s->group : stored->cols;
    out->scale_rows = s->scale_rows ? s->scale_rows : stored->rows;
    out->dtype = s->layout == TSK__LAYOUT_FP8     ? TSK_DTYPE_F8_E4M3
                 : s->layout == TSK__LAYOUT_BYTES ? TSK_DTYPE_I8
                                                  : TSK_DTYPE_U8;
    status = tsk__unpack_shape(&u);
    if (status == TSK_OK) status = tsk__unpack_codes(&u);
    if (status == TSK_OK) status = tsk__unpack_scales(&u);
    if (status == TSK_OK) status = tsk__unpack_zeros(&u);
    if (status == TSK_OK) status = tsk__unpack_order(&u);
    tsk__blocks_free(&temporary);
    return status;
}

/* A matrix as the source asks for it to be kept. `out` begins as zeroes; `blocks` and the source's files must outlive
   it. */
static tsk_status tsk__weight_take(tsk__blocks *blocks, const tsk__source *source, const tsk__weight_id *id,
                                   const tsk__stored *stored, tsk__weight *out, tsk_error *error) {
    int32_t group;
    int bits;
    if (stored->scheme) return tsk__weight_unpack(blocks, stored, out, error);
    bits = tsk__weights_bits(source->config, id, source->weights, &group);
    if (bits) return tsk__weight_quantise(blocks, source, stored, bits, group, out, error);
    return tsk__weight_plain(blocks, source, stored, out, error);
}

/* ---- dequantising: for a backend that keeps no codes, a source that quantises or unpacks matrices in host memory and
   gives out their values in f32 */

typedef struct tsk__dequantising {
    tsk__source source;
    tsk__blocks blocks;
    tsk__weight *kept;             /* by tsk__family_index; no bits: as the inner source has it */
} tsk__dequantising;

static void tsk__source_dequantised_find(const tsk__source *source, const tsk__weight_id *id, tsk__stored *out) {
    const size_t index = tsk__family_index(source->config, id->layer, (tsk__part)id->part, id->expert);
    source->inner->find(source->inner, id, out);
    if (id->is_bias || !source->kept[index].bits) return;
    out->kept = &source->kept[index];
    out->dtype = TSK_DTYPE_F32;
    out->data = NULL;
    out->size = (uint64_t)out->rows * (uint64_t)out->cols * sizeof(float);
    out->is_made = 0;
    out->scheme = NULL;
}

static tsk_status tsk__source_dequantised_read(const tsk__source *source, const tsk__stored *stored, uint64_t offset,
                                               void *out, size_t size, tsk_error *error) {
    const tsk__weight *w = stored->kept;
    uint64_t at = offset / sizeof(float);
    float *to = (float *)out;
    size_t left = size / sizeof(float);
    if (!w) return source->inner->read(source->inner, stored, offset, out, size, error);
    while (left) {
        const int32_t row = (int32_t)(at / (uint64_t)w->cols), first = (int32_t)(at % (uint64_t)w->cols);
        const size_t n = left < (size_t)(w->cols - first) ? left : (size_t)(w->cols - first);
        tsk__weight_values(w, row, first, (int32_t)n, to);
        to += n, at += n, left -= n;
    }
    return TSK_OK;
}

static tsk_status tsk__dequantising_put(void *context, const tsk__weight_id *id, const tsk__stored *stored,
                                        tsk_error *error) {
    tsk__dequantising *d = (tsk__dequantising *)context;
    const tsk__source *from = d->source.inner;
    int32_t group;
    if (tsk__family_is_vector(from->config, id) ||
        (!stored->scheme && !tsk__weights_bits(from->config, id, from->weights, &group)))
        return TSK_OK;
    return tsk__weight_take(&d->blocks, from, id, stored,
                            &d->kept[tsk__family_index(from->config, id->layer, (tsk__part)id->part, id->expert)],
                            error);
}

static void tsk__dequantising_close(tsk__dequantising *d) { tsk__blocks_free(&d->blocks); }

/* After a failure there is nothing to close. `from` must outlive it. */
static tsk_status tsk__dequantising_open(tsk__dequantising *d, const tsk__source *from, const tsk_allocator *allocator,
                                         tsk_error *error) {
    const size_t count = tsk__family_count(from->config);
    tsk_status status;
    memset(d, 0, sizeof *d);
    d->blocks.allocator = allocator;
    d->source = *from;
    d->source.weights = TSK_WEIGHTS_AS_STORED;
    d->source.find = tsk__source_dequantised_find;
    d->source.read = tsk__source_dequantised_read;
    d->source.inner = from;
    d->kept = (tsk__weight *)tsk__weights_new(&d->blocks, "the list of weights", count, sizeof *d->kept, error);
    if (!d->kept) {
        tsk__blocks_free(&d->blocks);
        return TSK_ERROR_MEMORY;
    }
    memset(d->kept, 0, count * sizeof *d->kept);
    d->source.kept = d->kept;
    status = tsk__weights_load(from, tsk__dequantising_put, d, error);
    if (status != TSK_OK) tsk__dequantising_close(d);
    return status;
}

#endif /* SECTION_GUARD_WEIGHTS */
