/* dump_check FILE N_LAYERS BLOCK_START: whether the values of a dump of `tokenskip trace` fit together. What one record
   puts out is what the next takes in; cached rows are those just computed; TokenSkip's first two passes, which skip
   nobody, equal the baseline's bit by bit. Says what does not fit, and fails. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "tokenskip.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static tsk_safetensors *file;
static int failures, comparisons;

static const tsk_tensor_info *find(const char *format, const char *prefix, int layer) {
    char name[128];
    snprintf(name, sizeof name, format, prefix, layer);
    return tsk_safetensors_find(file, name);
}

static float *values(const tsk_tensor_info *tensor) {
    float *buffer = (float *)malloc(tensor->size + 1);
    if (!buffer || tsk_safetensors_read(file, tensor, 0, buffer, tensor->size, NULL) != TSK_OK) exit(1);
    return buffer;
}

static void same(const tsk_tensor_info *a, const tsk_tensor_info *b, const char *what) {
    float *x, *y;
    comparisons++;
    if (!a || !b || a->size != b->size || a->dtype != b->dtype) {
        printf("%s: %s\n", what, !a || !b ? "not there" : "not of one size and type");
        failures++;
        return;
    }
    x = values(a);
    y = values(b);
    if (memcmp(x, y, a->size) != 0) {
        printf("%s: %s and %s differ\n", what, a->name, b->name);
        failures++;
    }
    free(x);
    free(y);
}

/* rows [n, heads, dim] (or [n, heads * dim]) against cache [heads, length, dim], where the rows are positions
   first .. first + n - 1. */
static void cached(const tsk_tensor_info *rows, const tsk_tensor_info *cache, uint64_t first, const char *what) {
    uint64_t row, head, heads, length, dim;
    float *x, *y;
    comparisons++;
    if (!rows || !cache || cache->n_dims != 3) {
        printf("%s: not there\n", what);
        failures++;
        return;
    }
    heads = cache->shape[0];
    length = cache->shape[1];
    dim = cache->shape[2];
    x = values(rows);
    y = values(cache);
    for (row = 0; row < rows->shape[0]; row++)
        for (head = 0; head < heads; head++)
            if (memcmp(x + (row * heads + head) * dim, y + (head * length + first + row) * dim, dim * sizeof *x) != 0) {
                printf("%s: row %d of %s is not in %s\n", what, (int)row, rows->name, cache->name);
                failures++;
                row = rows->shape[0] - 1;
                break;
            }
    free(x);
    free(y);
}

static void check_pass(const char *prefix, int n_layers, uint64_t first) {
    int l;
    same(find("%s.embedding.output", prefix, 0), find("%s.layer_%d.input", prefix, 0), "embedding");
    for (l = 0; l < n_layers; l++) {
        same(find("%s.layer_%d.input", prefix, l), find("%s.layer_%d_attn_norm.input", prefix, l), "layer to norm");
        same(find("%s.layer_%d_attn_norm.output", prefix, l), find("%s.layer_%d_q_proj.input", prefix, l), "norm to q");
        same(find("%s.layer_%d_attn_norm.output", prefix, l), find("%s.layer_%d_v_proj.input", prefix, l), "norm to v");
        same(find("%s.layer_%d_ff_norm.output", prefix, l), find("%s.layer_%d_ff_proj.input", prefix, l), "norm to ff");
        same(find("%s.layer_%d_ff_norm.output", prefix, l), find("%s.layer_%d_up_proj.input", prefix, l), "norm to up");
        if (l + 1 < n_layers)
            same(find("%s.layer_%d.output", prefix, l), find("%s.layer_%d.input", prefix, l + 1), "layer to layer");
        cached(find("%s.layer_%d_rope.k", prefix, l), find("%s.kv_%d.k", prefix, l), first, "K");
        cached(find("%s.layer_%d_v_proj.output", prefix, l), find("%s.kv_%d.v", prefix, l), first, "V");
    }
    same(find("%s.layer_%d.output", prefix, n_layers - 1), find("%s.final_norm.input", prefix, 0), "to the last norm");
}

/* Whether skip.pass{n} is pass{n}. */
static void check_equal(const char *pass) {
    char prefix[32];
    size_t i;
    snprintf(prefix, sizeof prefix, "%s.", pass);
    for (i = 0; i < tsk_safetensors_count(file); i++) {
        const tsk_tensor_info *tensor = tsk_safetensors_get(file, i);
        if (strncmp(tensor->name, prefix, strlen(prefix)) == 0)
            same(tensor, find("skip.%s", tensor->name, 0), "TokenSkip");
    }
}

int main(int argc, char **argv) {
    tsk_error error = {0};
    int n_layers = argc == 4 ? atoi(argv[2]) : 0;
    uint64_t first = argc == 4 ? (uint64_t)atoi(argv[3]) : 0;
    if (n_layers <= 0) {
        puts("usage: dump_check FILE N_LAYERS BLOCK_START");
        return 2;
    }
    if (tsk_safetensors_open(argv[1], NULL, &file, &error) != TSK_OK) {
        puts(error.message);
        return 1;
    }
    check_pass("pass0", n_layers, 0);
    check_pass("pass1", n_layers, first);
    check_pass("skip.pass0", n_layers, 0);
    check_equal("pass0");
    check_equal("pass1");
    tsk_safetensors_free(file);
    if (failures == 0) printf("%d comparisons\n", comparisons);
    return failures != 0;
}
