#ifndef SECTION_GUARD_KERNELS_ATTENTION
#define SECTION_GUARD_KERNELS_ATTENTION

#include "device.cuh"
#include "pieces.cuh"

// ---- Attention (bf16, matrix units): every row of a tile against all cached rows of its request, without a score matrix ---

// Grid (SPLITS, heads, tiles); ROW_WARPS warps of ROW_TILES * 16 query rows times KEY_WARPS that share each 64 keys. The
// cached rows are cut into SPLITS runs of whole key tiles; the block that finishes a (tile, head) last joins the runs in
// order. Two row tiles a warp halve what is read from shared memory for a product, but leave no registers for the query
// rows, which then lie in shared memory too. Without KEY_WARPS and SPLITS a row's result does not depend on its tile.
template <int HD, int ROW_WARPS, int ROW_TILES, int KEY_WARPS, int STAGES, int SPLITS> static __device__ __forceinline__ void attention(const attention_args &a) {
    const int threads = ROW_WARPS * KEY_WARPS * 32, warp_rows = ROW_TILES * 16, rows = ROW_WARPS * warp_rows, keys = 64, warp_keys = keys / KEY_WARPS, row_bytes = HD * 2, pieces = HD / 8;
    const int stage_bytes = 2 * keys * row_bytes, at_once = threads / pieces;  // rows that all threads together copy
    const bool q_shared = ROW_TILES > 1;
    extern __shared__ __align__(256) char memory[];  // [STAGES, K then V, 64, HD] bf16, then [rows, HD] where q_shared
    __shared__ int flag;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warp_row = warp % ROW_WARPS, warp_key = warp / ROW_WARPS;
    int head = blockIdx.y, kv_head = head / (a.n_heads / a.n_kv_heads), width = a.n_heads * HD;
    tile_entry tile = a.table.tiles[blockIdx.z];
    cache_entry cache = a.table.caches[tile.request];
    int key_tiles = (cache.length + keys - 1) / keys, a_split = (key_tiles + SPLITS - 1) / SPLITS;
    int begin = blockIdx.x * a_split, end = min(begin + a_split, key_tiles);
    // What this thread copies of a tile: one piece of every at_once'th row (8 divides that, so all are swizzled alike).
    int copied_row = threadIdx.x / pieces, copied_piece = threadIdx.x % pieces;
    u64 layer = (a.layer_offset + (u64)kv_head * HD) * cache.capacity;
    const bf16 *k = (const bf16 *)cache.k + layer, *v = (const bf16 *)cache.v + layer;
    u32 base = shared_address(memory), copy_to = base + swizzled(copied_row, copied_piece, pieces);

    auto fetch = [&](int key_tile) {
        if (key_tile < end) {
            u32 to = copy_to + (key_tile - begin) % STAGES * stage_bytes;
            u64 from = (u64)(key_tile * keys + copied_row) * HD + copied_piece * 8;
            int left = cache.length - key_tile * keys - copied_row;
#pragma unroll
            for (int row = 0; row < keys; row += at_once) {
                bool valid = row < left;
                u64 there = valid ? from + row * HD : 0;
                copy16_async(to + row * row_bytes, k + there, valid);
                copy16_async(to + (keys + row) * row_bytes, v + there, valid);
            }
        }
        copies_commit();
    };
    // Rows that this pass does not replace are there already: the first tiles come while the predecessor ends, and the next
    // ones come near.
    int fetched = 0;
    while (!q_shared && fetched < STAGES - 1 && ((begin + fetched) * keys > cache.last_written || (begin + fetched + 1) * keys <= cache.first_written)) fetch(begin + fetched++);
    if (SPLITS > 1)
        for (int i = threadIdx.x + fetched * keys * row_bytes / 128; i < (end - begin) * keys * row_bytes / 128; i += threads) {
            u64 offset = (u64)begin * keys * row_bytes + (u64)i * 128;
            if (offset >= (u64)cache.length * row_bytes) break;
            prefetch_l2((const char *)k + offset);
            prefetch_l2((const char *)v + offset);
        }
    let_successor_start();
    wait_for_predecessor();
    // This warp's query rows as left operands: of each row tile, row l/4 and the one 8 further, inner elements 2*(l%4) and 8
    // further.
    int first_row = warp_row * warp_rows, row0 = first_row + (lane >> 2);
    u32 q[HD / 16][4];
    if (q_shared) {  // (they come with the first key tile: none is fetched yet)
        for (int row = copied_row; row < rows; row += at_once)
            copy16_async(copy_to + STAGES * stage_bytes + (row - copied_row) * row_bytes, a.q + (u64)(tile.first + min(row, tile.count - 1)) * width + head * HD + copied_piece * 8, true);
    } else {
        const u32 *q0 = (const u32 *)(a.q + (u64)(tile.first + min(row0, tile.count - 1)) * width + head * HD) + (lane & 3);
        const u32 *q1 = (const u32 *)(a.q + (u64)(tile.first + min(row0 + 8, tile.count - 1)) * width + head * HD) + (lane & 3);
#pragma unroll
        for (int i = 0; i < HD / 16; i++) {
            q[i][0] = __ldcg(q0 + i * 8);
            q[i][1] = __ldcg(q1 + i * 8);
            q[i][2] = __ldcg(q0 + i * 8 + 4);
            q[i][3] = __ldcg(q1 + i * 8 + 4);
        }
    }
    while (fetched < STAGES - 1) fetch(begin + fetched++);

    float o[ROW_TILES][HD / 8][4], max[ROW_TILES][2], sum[ROW_TILES][2];  // (max in scores before scaling)
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++) {
        max[t][0] = max[t][1] = NEGATIVE;
        sum[t][0] = sum[t][1] = 0.0f;
#pragma unroll
        for (int i = 0; i < HD / 8; i++) o[t][i][0] = o[t][i][1] = o[t][i][2] = o[t][i][3] = 0.0f;
    }
    // Where this lane's matrices begin: K's and V's in a stage, q's. Further pieces are an exclusive or away, further rows a sum.
    u32 k_lane = swizzled(warp_key * warp_keys + (lane & 7) + (lane >> 4) * 8, lane >> 3 & 1, pieces);
    u32 v_lane = keys * row_bytes + swizzled(warp_key * warp_keys + (lane & 15), lane >> 4, pieces);
    u32 q_lane = base + STAGES * stage_bytes + swizzled(first_row + (lane & 15), lane >> 4, pieces);
    const float slack = 8.0f / a.scale;

    for (int key_tile = begin; key_tile < end; key_tile++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        fetch(key_tile + STAGES - 1);
        if (first_row >= tile.count) continue;  // (this warp only copies)
        u32 stage = base + (key_tile - begin) % STAGES * stage_bytes, k_from = stage + k_lane, v_from = stage + v_lane;
        float s[ROW_TILES][warp_keys / 8][4];
#pragma unroll
        for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
            for (int j = 0; j < warp_keys / 8; j++) s[t][j][0] = s[t][j][1] = s[t][j][2] = s[t][j][3] = 0.0f;
#pragma unroll
        for (int i = 0; i < HD / 16; i++) {
            u32 rows_q[ROW_TILES][4];
#pragma unroll
            for (int t = 0; t < ROW_TILES; t++)
                if (q_shared) load_matrices(rows_q[t], (q_lane ^ (i * 32)) + t * 16 * row_bytes);
                else
#pragma unroll
                    for (int e = 0; e < 4; e++) rows_q[t][e] = q[i][e];
#pragma unroll
            for (int j = 0; j < warp_keys / 8; j += 2) {
                u32 b[4];
                load_matrices(b, (k_from ^ (i * 32)) + j * 8 * row_bytes);
#pragma unroll
                for (int t = 0; t < ROW_TILES; t++) {
                    multiply_tile(s[t][j], rows_q[t], b[0], b[1]);
                    multiply_tile(s[t][j + 1], rows_q[t], b[2], b[3]);
                }
            }
        }
        if ((key_tile + 1) * keys > cache.length) {
            int left = cache.length - key_tile * keys - warp_key * warp_keys - (lane & 3) * 2;
#pragma unroll
            for (int j = 0; j < warp_keys / 8; j++)
#pragma unroll
                for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        if (j * 8 + (e & 1) >= left) s[t][j][e] = NEGATIVE;
        }
        // Weights are relative to a maximum that follows the true one only when that has gone 2^8 beyond it: rarely.
        float shrink[ROW_TILES][2];
        bool grows = false;
#pragma unroll
        for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float highest = NEGATIVE;
#pragma unroll
                for (int j = 0; j < warp_keys / 8; j++) highest = fmaxf(highest, fmaxf(s[t][j][half * 2], s[t][j][half * 2 + 1]));
                highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
                highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
                if (highest <= max[t][half] + slack) highest = max[t][half];
                else grows = true;
                shrink[t][half] = exp2_fast((max[t][half] - highest) * a.scale);
                max[t][half] = highest;
            }
        if (__any_sync(0xffffffffu, grows))
#pragma unroll
            for (int t = 0; t < ROW_TILES; t++) {
                sum[t][0] *= shrink[t][0];
                sum[t][1] *= shrink[t][1];
#pragma unroll
                for (int i = 0; i < HD / 8; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) o[t][i][e] *= shrink[t][e / 2];
            }
#pragma unroll
        for (int j = 0; j < warp_keys / 16; j++) {
            u32 w[ROW_TILES][4];
#pragma unroll
            for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
                for (int half = 0; half < 2; half++) {  // a maximum of nothing counts as 0: its keys' weights are 0
                    float minus = max[t][half] <= NEGATIVE ? 0.0f : -max[t][half] * a.scale, p[4];
#pragma unroll
                    for (int e = 0; e < 4; e++) p[e] = exp2_fast(fmaf(s[t][j * 2 + e / 2][half * 2 + (e & 1)], a.scale, minus));
                    sum[t][half] += p[0] + p[1] + p[2] + p[3];
                    w[t][half] = pack_bf16(p[0], p[1]);
                    w[t][2 + half] = pack_bf16(p[2], p[3]);
                }
#pragma unroll
            for (int i = 0; i < HD / 8; i += 2) {
                u32 b[4];
                load_matrices_transposed(b, (v_from ^ (i * 16)) + j * 16 * row_bytes);
#pragma unroll
                for (int t = 0; t < ROW_TILES; t++) {
                    multiply_tile(o[t][i], w[t], b[0], b[1]);
                    multiply_tile(o[t][i + 1], w[t], b[2], b[3]);
                }
            }
        }
    }
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            sum[t][half] = lanes_sum<4>(sum[t][half]);
            max[t][half] *= a.scale;
        }
    copies_wait<0>();

    // Warps that share rows join in shared memory, in their order.
    if (KEY_WARPS > 1) {
        __syncthreads();
        const int stride = ROW_TILES * (HD / 2 + 4) + 1;  // odd: no bank conflicts
        float *joined = (float *)memory + (warp_row * 32 + lane) * stride;
        if (warp_key > 0) {
            float *mine = joined + (warp_key - 1) * ROW_WARPS * 32 * stride;
#pragma unroll
            for (int t = 0; t < ROW_TILES; t++, mine += HD / 2 + 4) {
                mine[0] = max[t][0], mine[1] = max[t][1], mine[2] = sum[t][0], mine[3] = sum[t][1];
#pragma unroll
                for (int i = 0; i < HD / 8; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) mine[4 + i * 4 + e] = o[t][i][e];
            }
        }
        __syncthreads();
        if (warp_key == 0)
            for (int w = 1; w < KEY_WARPS; w++, joined += ROW_WARPS * 32 * stride)
#pragma unroll
                for (int t = 0; t < ROW_TILES; t++) {
                    const float *theirs = joined + t * (HD / 2 + 4);
                    float mine[2], other[2];
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        float highest = fmaxf(max[t][half], theirs[half]);
                        mine[half] = exp2_fast(max[t][half] - highest), other[half] = exp2_fast(theirs[half] - highest);
                        sum[t][half] = sum[t][half] * mine[half] + theirs[2 + half] * other[half];
                        max[t][half] = highest;
                    }
#pragma unroll
                    for (int i = 0; i < HD / 8; i++)
#pragma unroll
                        for (int e = 0; e < 4; e++) o[t][i][e] = o[t][i][e] * mine[e / 2] + theirs[4 + i * 4 + e] * other[e / 2];
                }
    }
    if (SPLITS > 1) {
        u64 group = (u64)blockIdx.z * a.n_heads + head;
        float *part = a.parts + (group * SPLITS + blockIdx.x) * rows * (HD + 2);
        if (warp_key == 0)
#pragma unroll
            for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int row = row0 + t * 16 + half * 8;
#pragma unroll
                    for (int i = 0; i < HD / 8; i++) *(float2 *)(part + row * HD + i * 8 + (lane & 3) * 2) = make_float2(o[t][i][half * 2], o[t][i][half * 2 + 1]);
                    if ((lane & 3) == 0) *(float2 *)(part + rows * HD + row * 2) = make_float2(max[t][half], sum[t][half]);
                }
        if (!last_to_arrive(a.counters + group, SPLITS, &flag)) return;
        // Four threads a row; all reads of a thread are under way at once.
        const float *all = a.parts + group * SPLITS * rows * (HD + 2);
        for (int row = threadIdx.x / 4; row < tile.count; row += threads / 4) {
            float share[SPLITS], highest = NEGATIVE, total = 0.0f;
            float2 state[SPLITS];
            float4 x[HD / 16];
#pragma unroll
            for (int i = 0; i < SPLITS; i++) {
                state[i] = __ldcg((const float2 *)(all + (u64)i * rows * (HD + 2) + rows * HD + row * 2));
                highest = fmaxf(highest, state[i].x);
            }
#pragma unroll
            for (int i = 0; i < SPLITS; i++) {
                share[i] = exp2_fast(state[i].x - highest);
                total += state[i].y * share[i];
            }
#pragma unroll
            for (int j = 0; j < HD / 16; j++) x[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
            for (int i = 0; i < SPLITS; i++)
#pragma unroll
                for (int j = 0; j < HD / 16; j++) {
                    float4 y = __ldcg((const float4 *)(all + (u64)i * rows * (HD + 2) + row * HD + j * 16 + (threadIdx.x & 3) * 4));
                    x[j].x += y.x * share[i], x[j].y += y.y * share[i], x[j].z += y.z * share[i], x[j].w += y.w * share[i];
                }
            float inverse = 1.0f / total;
            uint2 *to = (uint2 *)(a.out + (u64)(tile.first + row) * width + head * HD) + (threadIdx.x & 3);
#pragma unroll
            for (int j = 0; j < HD / 16; j++)
                to[j * 4] = make_uint2(pack_bf16(x[j].x * inverse, x[j].y * inverse), pack_bf16(x[j].z * inverse, x[j].w * inverse));
        }
        return;
    }
    if (warp_key == 0)
#pragma unroll
        for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = row0 + t * 16 + half * 8;
                float inverse = 1.0f / sum[t][half];
                u32 *to = (u32 *)(a.out + (u64)(tile.first + row) * width + head * HD) + (lane & 3);
                if (row < tile.count)
#pragma unroll
                    for (int i = 0; i < HD / 8; i++) to[i * 4] = pack_bf16(o[t][i][half * 2] * inverse, o[t][i][half * 2 + 1] * inverse);
            }
}
// Tiles of all sizes in one launch, each by the warps that suit it: the short ones, which wait for memory, fill the gaps that
// the long ones leave. What they have in common costs them nothing where two blocks fit on a multiprocessor
// in any case (160 KB and more).
template <int HD> static __device__ __forceinline__ void attention_any(const attention_args &a) {
    int count = a.table.tiles[blockIdx.z].count;
    if (count > 64) attention<HD, 4, 2, 1, 2, 1>(a);
    else if (count > 32) attention<HD, 4, 1, 1, 3, 1>(a);
    else attention<HD, 2, 1, 2, 3, 1>(a);
}
// Shared memory 768 * HD bytes, and 1 KB of their own: 97 of the 99 KB that the smaller GPUs have. All equal attend.
//   attention_few_<HD>: tiles of up to 32 rows, grid (1, n_heads, tiles), block 128, 1024 * HD bytes: where there are no more
//     blocks than multiprocessors, each has another stage's keys under way
//   attention_small_<HD>: tiles of up to 32 rows, grid (4, n_heads, tiles), block 256
//   attention_medium_<HD>: tiles of up to 64 rows, grid (4, n_heads, tiles), block 256
//   attention_large_<HD>: tiles of up to 128 rows, grid (1, n_heads, tiles), block 128
#define ATTENTION_KERNELS(HD) \
    extern "C" __global__ void __launch_bounds__(128, 1) attention_few_##HD(const __grid_constant__ attention_args a) { attention<HD, 2, 1, 2, 4, 1>(a); } \
    extern "C" __global__ void __launch_bounds__(256, 2) attention_small_##HD(const __grid_constant__ attention_args a) { attention<HD, 2, 1, 4, 3, TSK__CUDA_ATTENTION_SPLITS>(a); } \
    extern "C" __global__ void __launch_bounds__(256, 2) attention_medium_##HD(const __grid_constant__ attention_args a) { attention<HD, 4, 1, 2, 3, TSK__CUDA_ATTENTION_SPLITS>(a); } \
    extern "C" __global__ void __launch_bounds__(128, 2) attention_large_##HD(const __grid_constant__ attention_args a) { attention_any<HD>(a); }
ATTENTION_KERNELS(64)
ATTENTION_KERNELS(128)

#endif /* SECTION_GUARD_KERNELS_ATTENTION */
