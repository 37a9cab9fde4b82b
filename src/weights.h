#ifndef SECTION_GUARD_WEIGHTS
#define SECTION_GUARD_WEIGHTS

#include "pool.h"
#include "number.h"
#include "safetensors.h"
#include "family.h"
#include "config.h"
#include "random.h"

// >>weights ===========================================================================================================
/* What a backend keeps of the weights, where they come from, and the one loader that brings the two together: it walks
   the weights that a configuration implies, asks the source for each, and hands it to the backend, which keeps it where
   it lies, copies it, or places it in a layout of its own.

   The type that weights are stored in is their own, whatever the activations' type is. */

typedef struct tsk__weight {
    const void *data;          /* [rows, cols], aligned to its elements */
    const void *scales;        /* NULL: the elements are the values. A type whose elements are small integers will have
                                  here what they are multiplied by, a row of scales for every row */
    const float *bias;         /* [rows] or NULL */
    tsk_dtype dtype;           /* of `data` */
    int32_t rows, cols;        /* outputs, inputs; a vector has one column */
} tsk__weight;

/* ---- sources */

/* A weight as its source has it. */
typedef struct tsk__stored {
    const char *name;          /* in messages */
    tsk_dtype dtype;
    int32_t rows, cols;        /* as in tsk__weight */
    uint64_t size;             /* in bytes */
    const void *data;          /* where they are in memory, at any address; NULL: they must be read */
    const tsk_safetensors *file;   /* a folder's: where they are read */
    const tsk_tensor_info *info;
    int is_made;               /* random: a backend may make them itself, as tsk__random_fill_chunk does, */
    uint32_t number;           /* which of the model's matrices, */
    float scale;               /* uniform on [-scale, scale); 0: all are ones */
} tsk__stored;

typedef struct tsk__source {
    const tsk_model_config *config;
    void (*find)(const struct tsk__source *source, const tsk__weight_id *id, tsk__stored *out);
    /* `size` bytes of it from byte `offset` on. */
    tsk_status (*read)(const struct tsk__source *source, const tsk__stored *stored, uint64_t offset, void *out,
                       size_t size, tsk_error *error);
    const tsk_folder *folder;  /* NULL: random */
    uint64_t seed;             /* of random values, */
    tsk__pool *pool;           /* and who helps to make them; NULL: nobody */
} tsk__source;

static void tsk__source_folder_find(const tsk__source *source, const tsk__weight_id *id, tsk__stored *out) {
    memset(out, 0, sizeof *out);
    out->info = tsk__folder_find(source->folder, id, &out->file);
    out->name = out->info->name;
    out->dtype = out->info->dtype;
    out->rows = (int32_t)out->info->shape[0];
    out->cols = out->info->n_dims > 1 ? (int32_t)out->info->shape[1] : 1;
    out->size = out->info->size;
    out->data = tsk_safetensors_data(out->file, out->info);
}

static tsk_status tsk__source_folder_read(const tsk__source *source, const tsk__stored *stored, uint64_t offset,
                                          void *out, size_t size, tsk_error *error) {
    (void)source;
    return tsk_safetensors_read(stored->file, stored->info, offset, out, size, error);
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

#endif /* SECTION_GUARD_WEIGHTS */
