/* A folder with LLaDA-8B-Instruct's own config and index over six shards with the right headers and holes for data: 16
   GB to look at, a few kilobytes on disk. Include after golden.h. */
#ifndef TSK_SPARSE_H
#define TSK_SPARSE_H

/* The shape of a tensor of it, from its name. */
static int sparse_shape(const char *name, uint64_t shape[2]) {
    const uint64_t d = 4096, mlp = 12288, rows = 126464;
    shape[0] = shape[1] = d;
    if (strstr(name, "norm.weight") || strstr(name, "ln_f.weight")) return 1;
    if (strcmp(name, "model.transformer.wte.weight") == 0 || strcmp(name, "model.transformer.ff_out.weight") == 0)
        shape[0] = rows;
    else if (strstr(name, "ff_proj") || strstr(name, "up_proj")) shape[0] = mlp;
    else if (strstr(name, "ff_out")) shape[1] = mlp;
    return 2;
}

/* A file with the right header and a hole for data. */
static uint64_t sparse_shard(const char *dir, const tsk_json_value *map, const char *shard) {
    tsk_text text;
    const tsk_json_value *entry;
    uint64_t at = 0, shape[2];
    char line[400], path[600];
    unsigned char length[8];
    FILE *file;
    int i;
    snprintf(path, sizeof path, "%s/%s", dir, shard);
    file = fopen(path, "wb");
    memset(&text, 0, sizeof text);
    for (entry = tsk_json_first(map); entry; entry = tsk_json_next(entry)) {
        const char *name = tsk_json_key(entry, NULL);
        int n_dims = sparse_shape(name, shape);
        uint64_t size = 2 * shape[0] * (n_dims == 2 ? shape[1] : 1);
        if (strcmp(tsk_json_string(entry, NULL), shard) != 0) continue;
        snprintf(line, sizeof line,
                 n_dims == 2 ? "%c\"%s\":{\"dtype\":\"BF16\",\"data_offsets\":[%llu,%llu],\"shape\":[%llu,%llu]}"
                             : "%c\"%s\":{\"dtype\":\"BF16\",\"data_offsets\":[%llu,%llu],\"shape\":[%llu]}",
                 text.length ? ',' : '{', name, (unsigned long long)at, (unsigned long long)(at + size),
                 (unsigned long long)shape[0], (unsigned long long)shape[1]);
        tsk_text_append(&text, line, strlen(line));
        at += size;
    }
    tsk_text_append(&text, "}", 1);
    for (i = 0; i < 8; i++) length[i] = (unsigned char)(text.length >> 8 * i & 0xff);
    if (!file || fwrite(length, 1, 8, file) != 8 || fwrite(text.data, 1, text.length, file) != text.length ||
        fflush(file) != 0 || ftruncate(fileno(file), (off_t)(8 + text.length + at)) != 0)
        exit(2);
    fclose(file);
    tsk_text_free(&text);
    return at;
}

static void sparse_copy(const char *dir, const char *name) {
    char path[600];
    size_t size;
    char *bytes;
    snprintf(path, sizeof path, "tests/golden/llada-8b-instruct/%s", name);
    bytes = read_file(path, &size);
    if (!bytes) exit(2);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    write_file(path, bytes, size);
    free(bytes);
}

/* Writes the folder's files into `dir`; returns the bytes that its tensors take. */
static TEST_UNUSED uint64_t sparse_llada(const char *dir) {
    tsk_json *index = golden_load("tests/golden/llada-8b-instruct/model.safetensors.index.json");
    uint64_t total = 0;
    char name[64];
    int i;
    sparse_copy(dir, "config.json");
    sparse_copy(dir, "model.safetensors.index.json");
    for (i = 1; i <= 6; i++) {
        snprintf(name, sizeof name, "model-%05d-of-00006.safetensors", i);
        total += sparse_shard(dir, tsk_json_get(tsk_json_root(index), "weight_map"), name);
    }
    tsk_json_free(index);
    return total;
}

#endif
