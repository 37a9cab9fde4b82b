#ifndef SECTION_GUARD_CUDA_PLAN
#define SECTION_GUARD_CUDA_PLAN

#include "cuda_driver.h"
#include "kernels/shared.h"
#include "cuda_backend.h"

// >>cuda_plan =========================================================================================================
/* How the linear maps' work is cut for few rows: arithmetic on the model's shape and the device's numbers. */

#ifdef TOKENSKIP__HAS_CUDA

/* What a block of a linear map needs of shared memory besides the ring; and for every stage of it. */
static int32_t tsk__cuda_plan_fixed(int32_t split, int32_t pieces, int32_t groups, int32_t rows) {
    return (groups + split - 1) * rows * TSK__CUDA_SUMS_ROW(16 * pieces) * 4 + rows * 4 + 16;
}
static int32_t tsk__cuda_plan_stage(int32_t pieces, int32_t rows) {
    return (16 * pieces + rows) * TSK__CUDA_LINEAR_CHUNK * 2 + 16;
}
/* Stages that fit in `shared` bytes: a multiple of the groups, 0 when there are too few to keep memory busy. */
static int32_t tsk__cuda_plan_stages(int32_t split, int32_t pieces, int32_t groups, int32_t rows, int32_t shared) {
    int32_t room = shared - tsk__cuda_plan_fixed(split, pieces, groups, rows),
            stages = room > 0 ? room / tsk__cuda_plan_stage(pieces, rows) / groups * groups : 0;
    return stages < 3 || stages < 2 * groups ? 0 : stages;
}
static const int32_t tsk__cuda_plan_rows[2] = {32, 64};  /* that the two kernels of a map take at the most */
/* Whether both kernels have the stages. */
static int tsk__cuda_plan_fits(int32_t split, int32_t pieces, int32_t groups, int32_t shared) {
    return tsk__cuda_plan_stages(split, pieces, groups, tsk__cuda_plan_rows[0], shared) &&
           tsk__cuda_plan_stages(split, pieces, groups, tsk__cuda_plan_rows[1], shared);
}
/* More than half of a multiprocessor's shared memory, so that two blocks of one map never share a multiprocessor while
   another is idle. */
#define TSK__CUDA_ALONE 118000

/* Chooses the tile width for which the busiest multiprocessor has the fewest outputs; among equals the widest, which
   reads the input least often. Then as many groups as there are warps and stages for, the same for 32 and 64 rows, so
   that a row's sums do not depend on how many there are. 0: the device has too little shared memory. */
static int tsk__cuda_plan_map(const tsk__cuda_backend *b, tsk__cuda_map map, tsk__cuda_plan *plan) {
    int is_out = map == TSK__CUDA_MAP_OUT || map == TSK__CUDA_MAP_DOWN;
    int32_t split = is_out && b->arch >= 90 ? TSK__CUDA_LINEAR_SPLIT : 1, most = b->n_multiprocessors / split * split;
    int32_t pieces, groups, best = INT32_MAX, i, step = is_out ? 2 : 1;
    plan->split = split;
    plan->pieces = 0;
    for (pieces = step; pieces <= TSK__CUDA_LINEAR_WARPS && most; pieces += step) {
        int32_t blocks = (plan->n + 16 * pieces - 1) / (16 * pieces) * split,
                cost = (blocks + most - 1) / most * pieces;
        if (cost > best || !tsk__cuda_plan_fits(split, pieces, 1, b->shared_limit)) continue;
        best = cost;
        plan->pieces = pieces;
        plan->blocks = blocks < most ? blocks : most;
    }
    if (!plan->pieces) return 0;
    groups = TSK__CUDA_LINEAR_WARPS / plan->pieces;
    if (groups > TSK__CUDA_LINEAR_GROUPS - split + 1) groups = TSK__CUDA_LINEAR_GROUPS - split + 1;
    while (groups > 1 && !tsk__cuda_plan_fits(split, plan->pieces, groups, b->shared_limit)) groups--;
    plan->groups = groups;
    for (i = 0; i < 2; i++) {
        int32_t rows = tsk__cuda_plan_rows[i];
        plan->stages[i] = tsk__cuda_plan_stages(split, plan->pieces, groups, rows, b->shared_limit);
        plan->shared[i] = tsk__cuda_plan_fixed(split, plan->pieces, groups, rows) +
                          plan->stages[i] * tsk__cuda_plan_stage(plan->pieces, rows);
        if (b->shared_limit >= TSK__CUDA_ALONE && plan->shared[i] < TSK__CUDA_ALONE)
            plan->shared[i] = TSK__CUDA_ALONE;
    }
    return 1;
}
static int tsk__cuda_plan_maps(tsk__cuda_backend *b) {
    const tsk_model_config *c = b->base.config;
    int32_t d = c->d_model, n[TSK__CUDA_MAPS], k[TSK__CUDA_MAPS], i;
    n[TSK__CUDA_MAP_QKV] = b->qkv_width, n[TSK__CUDA_MAP_OUT] = d, n[TSK__CUDA_MAP_GATE_UP] = b->gate_up_rows,
    n[TSK__CUDA_MAP_DOWN] = d, n[TSK__CUDA_MAP_HEAD] = c->embedding_size;
    k[TSK__CUDA_MAP_QKV] = d, k[TSK__CUDA_MAP_OUT] = b->q_width, k[TSK__CUDA_MAP_GATE_UP] = d,
    k[TSK__CUDA_MAP_DOWN] = c->mlp_hidden_size, k[TSK__CUDA_MAP_HEAD] = d;
    for (i = 0; i < TSK__CUDA_MAPS; i++) {
        b->plans[i].n = n[i];
        b->plans[i].k = k[i];
        if (!tsk__cuda_plan_map(b, (tsk__cuda_map)i, &b->plans[i])) return 0;
    }
    return 1;
}

/* The wide maps: a tile's outputs, how many blocks share its columns, and the most stages that were of use (see
   kernels/linear.cu). */
static const struct { tsk__cuda_kernel kernel; int32_t width, split, most_stages; } tsk__cuda_wide[TSK__CUDA_MAPS] = {
    {TSK__CUDA_wide_qkv, TSK__CUDA_WIDE_QKV, 1, 8},
    {TSK__CUDA_wide_out, TSK__CUDA_WIDE_OUT, TSK__CUDA_WIDE_OUT_SPLIT, 6},
    {TSK__CUDA_wide_gate_up, TSK__CUDA_WIDE_GATE_UP, 1, 8},
    {TSK__CUDA_wide_out, TSK__CUDA_WIDE_OUT, TSK__CUDA_WIDE_OUT_SPLIT, 6},
    {TSK__CUDA_wide_head, TSK__CUDA_WIDE_HEAD, 1, 8}};

static int32_t tsk__cuda_wide_tiles(const tsk__cuda_backend *b, int map) {
    return (b->plans[map].n + tsk__cuda_wide[map].width - 1) / tsk__cuda_wide[map].width;
}

/* Clusters of a kernel that the device runs at the same time. */
static CUresult tsk__cuda_clusters(const tsk__cuda_backend *b, int map, int *clusters) {
    CUlaunchConfig config;
    CUlaunchAttribute attribute;
    memset(&config, 0, sizeof config);
    memset(&attribute, 0, sizeof attribute);
    config.gridDimX = TSK__CUDA_WIDE_CLUSTER, config.gridDimY = config.gridDimZ = 1;
    config.blockDimX = TSK__CUDA_WIDE_WARPS * 32, config.blockDimY = config.blockDimZ = 1;
    config.sharedMemBytes = (unsigned int)b->plans[map].wide_shared;
    attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attribute.value.clusterDim.x = TSK__CUDA_WIDE_CLUSTER,
    attribute.value.clusterDim.y = attribute.value.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return b->api.cuOccupancyMaxActiveClusters(clusters, b->kernels[tsk__cuda_wide[map].kernel], &config);
}

/* 0: too little shared memory, or columns for two stages of every block. */
static int tsk__cuda_plan_wide_memory(const tsk__cuda_backend *b, int map, tsk__cuda_plan *plan) {
    int32_t width = tsk__cuda_wide[map].width, split = tsk__cuda_wide[map].split,
            stage = (width + TSK__CUDA_WIDE_ROWS) * TSK__CUDA_LINEAR_CHUNK * 2;
    int32_t sums = TSK__CUDA_WIDE_ROWS * TSK__CUDA_SUMS_ROW(width) * 4,
            others = (split > 1 ? sums : 0) + TSK__CUDA_WIDE_ROWS * 4 + 24;
    int32_t stages = (b->shared_limit - others) / (stage + 16),
            chunks = (plan->k + TSK__CUDA_LINEAR_CHUNK - 1) / TSK__CUDA_LINEAR_CHUNK / split;
    if (stages > chunks) stages = chunks;
    if (stages > tsk__cuda_wide[map].most_stages) stages = tsk__cuda_wide[map].most_stages;
    plan->wide_stages = stages;
    plan->wide_shared = (stages * stage > sums ? stages * stage : sums) + others + stages * 16;
    return stages >= 2 && plan->wide_shared <= b->shared_limit;
}

/* Whether the wide maps are there and worth it: not where most blocks would wait for a few that have one tile more. */
static tsk_status tsk__cuda_plan_wide(tsk__cuda_backend *b, tsk_error *error) {
    CUresult result = CUDA_SUCCESS;
    int map, fits = tsk__cuda_has_hopper_kernels(b) && b->has_few_rows;
    for (map = 0; map < TSK__CUDA_MAPS && fits && result == CUDA_SUCCESS; map++) {
        tsk__cuda_plan *plan = &b->plans[map];
        int at_once = 0;
        int32_t sharers = TSK__CUDA_WIDE_CLUSTER / tsk__cuda_wide[map].split, tiles = tsk__cuda_wide_tiles(b, map),
                clusters = (tiles + sharers - 1) / sharers, rounds;
        fits = tsk__cuda_plan_wide_memory(b, map, plan);
        if (fits) result = tsk__cuda_clusters(b, map, &at_once);
        if (!fits || result != CUDA_SUCCESS || at_once < 1) fits = 0;
        else {
            rounds = (clusters + at_once - 1) / at_once;
            fits = rounds == 1 || 4 * (int64_t)clusters >= 3 * (int64_t)rounds * at_once;
            plan->wide_blocks = TSK__CUDA_WIDE_CLUSTER * (clusters < at_once ? clusters : at_once);
        }
    }
    b->has_wide = fits;
    return tsk__cuda_fail(&b->api, error, result, "asking for clusters");
}

/* Rows that a pass may have to go through the fused maps. */
static int32_t tsk__cuda_fused_rows(const tsk__cuda_backend *b) {
    return b->has_wide ? TSK__CUDA_WIDE_ROWS : b->has_few_rows ? TSK__CUDA_FEW_ROWS : 0;
}

/* Describes a bf16 matrix [rows, columns] to the copy engine, in boxes of box_rows rows and a chunk's columns, swizzled
   as the kernels read them. Before sm_90 there is none. */
static CUresult tsk__cuda_encode(const tsk__cuda_backend *b, CUdeviceptr address, uint64_t rows, uint64_t columns,
                                 int32_t box_rows, tsk__cuda_tensor_map *out) {
    char room[2 * sizeof(CUtensorMap)];
    CUtensorMap *map = (CUtensorMap *)(void *)(room + (64 - (uintptr_t)room % 64) % 64);  /* the driver wants it aligned
                                                                                             to 64 */
    cuuint64_t size[2], row_bytes[1];
    cuuint32_t box[2], every[2];
    CUresult result;
    if (b->arch < 90) return CUDA_SUCCESS;
    size[0] = columns, size[1] = rows, row_bytes[0] = columns * 2;
    box[0] = TSK__CUDA_LINEAR_CHUNK, box[1] = (cuuint32_t)box_rows;
    every[0] = every[1] = 1;
    result =
        b->api.cuTensorMapEncodeTiled(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)(uintptr_t)address, size,
                                      row_bytes, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result == CUDA_SUCCESS) memcpy(out, map, sizeof *out);
    return result;
}
static CUresult tsk__cuda_encode_map(const tsk__cuda_backend *b, int map, CUdeviceptr weights,
                                     tsk__cuda_tensor_map *out, tsk__cuda_tensor_map *wide_out) {
    uint64_t n = (uint64_t)b->plans[map].n, k = (uint64_t)b->plans[map].k;
    CUresult result = tsk__cuda_encode(b, weights, n, k, 16 * b->plans[map].pieces, out);
    if (result == CUDA_SUCCESS && b->has_wide)
        result = tsk__cuda_encode(b, weights, n, k, tsk__cuda_wide[map].width, wide_out);
    return result;
}
static tsk_status tsk__cuda_encode_weights(tsk__cuda_backend *b, tsk_error *error) {
    CUresult result = CUDA_SUCCESS;
    int32_t l, i;
    if (!b->has_few_rows) return TSK_OK;
    for (l = 0; l < b->base.config->n_layers; l++) {
        tsk__cuda_layer *layer = &b->layers[l];
        CUdeviceptr weights[TSK__CUDA_MAP_HEAD];
        weights[TSK__CUDA_MAP_QKV] = layer->qkv, weights[TSK__CUDA_MAP_OUT] = layer->attn_out,
        weights[TSK__CUDA_MAP_GATE_UP] = layer->gate_up, weights[TSK__CUDA_MAP_DOWN] = layer->down;
        for (i = 0; i < TSK__CUDA_MAP_HEAD && result == CUDA_SUCCESS; i++)
            result = tsk__cuda_encode_map(b, i, weights[i], &layer->maps[i], &layer->wide_maps[i]);
    }
    if (result == CUDA_SUCCESS)
        result = tsk__cuda_encode_map(b, TSK__CUDA_MAP_HEAD, b->head, &b->head_map, &b->head_wide_map);
    return tsk__cuda_fail(&b->api, error, result, "describing the weights");
}

#endif /* TOKENSKIP__HAS_CUDA */

#endif /* SECTION_GUARD_CUDA_PLAN */
