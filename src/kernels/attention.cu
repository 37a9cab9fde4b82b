#ifndef SECTION_GUARD_KERNELS_ATTENTION
#define SECTION_GUARD_KERNELS_ATTENTION

#include "device.cuh"
#include "pieces.cuh"

// ---- Attention (bf16, matrix units): a tile's rows against the cached rows visible to them, without a score matrix

// How a kernel is cut: ROW_WARPS warps of ROW_TILES * 16 query rows times KEY_WARPS that share each 64 keys, which
// come through a ring of STAGES. The cached rows are cut into SPLITS runs of whole key tiles; the block that finishes
// a (tile, head) last joins the runs in order. Two row tiles a warp halve what is read from shared memory for a
// product, but leave no registers for the query rows, which then lie in shared memory too. Without KEY_WARPS and
// SPLITS a row's result does not depend on its tile.
template <int HD_, int ROW_WARPS_, int ROW_TILES_, int KEY_WARPS_, int STAGES_, int SPLITS_> struct attention_shape {
    static const int HD = HD_, ROW_WARPS = ROW_WARPS_, ROW_TILES = ROW_TILES_, KEY_WARPS = KEY_WARPS_;
    static const int STAGES = STAGES_, SPLITS = SPLITS_;
    static const int threads = ROW_WARPS * KEY_WARPS * 32, warp_rows = ROW_TILES * 16, rows = ROW_WARPS * warp_rows;
    static const int keys = 64, warp_keys = keys / KEY_WARPS;  // of a key tile; of it, a warp's
    static const int row_bytes = HD * 2, pieces = HD / 8, stage_bytes = 2 * keys * row_bytes;
    static const int at_once = threads / pieces;  // rows that all threads together copy
    static const bool q_shared = ROW_TILES > 1;
};

// What the block works on, and what this thread does of it. Shared memory: [STAGES, K then V, 64, HD] bf16, then, where
// q_shared, [rows, HD].
template <class S> struct attention_work {
    int warp_row, warp_key, lane, head, width;
    tile_entry tile;
    int begin, end;             // key tiles of this block's run
    const bf16 *k, *v;          // of the head's rows of the layer
    int copied_row, copied_piece;
    u32 base, copy_to;          // of shared memory; where this thread's first copy of a stage goes
    int first_row, row0;        // the warp's first query row in the tile, and this lane's

    // A thread copies of a tile one piece of every at_once'th row (8 divides that, so all are swizzled alike).
    __device__ __forceinline__ attention_work(const attention_args &a, const cache_entry &cache, const char *memory) {
        int warp = threadIdx.x >> 5, kv_head, key_tiles, a_split;
        lane = threadIdx.x & 31, warp_row = warp % S::ROW_WARPS, warp_key = warp / S::ROW_WARPS;
        head = blockIdx.y, kv_head = head / (a.n_heads / a.n_kv_heads), width = a.n_heads * S::HD;
        tile = a.table.tiles[blockIdx.z];
        key_tiles = (tile.visible + S::keys - 1) / S::keys, a_split = (key_tiles + S::SPLITS - 1) / S::SPLITS;
        begin = blockIdx.x * a_split, end = min(begin + a_split, key_tiles);
        copied_row = threadIdx.x / S::pieces, copied_piece = threadIdx.x % S::pieces;
        u64 layer = (a.layer_offset + (u64)kv_head * S::HD) * cache.capacity;
        k = (const bf16 *)cache.k + layer, v = (const bf16 *)cache.v + layer;
        base = shared_address(memory), copy_to = base + swizzled(copied_row, copied_piece, S::pieces);
        first_row = warp_row * S::warp_rows, row0 = first_row + (lane >> 2);
    }
    __device__ __forceinline__ u32 stage_offset(int key_tile) const {
        return (key_tile - begin) % S::STAGES * S::stage_bytes;
    }
    // Of the tile's row in q and out; a query's, whose row may be beyond the tile's end, is that of the last row then.
    __device__ __forceinline__ u64 row_offset(int row) const { return (u64)(tile.first + row) * width + head * S::HD; }
    __device__ __forceinline__ u64 query_offset(int row) const { return row_offset(min(row, tile.count - 1)); }
};

// The ring's next stage, where there are keys for it; a group of copies in any case.
template <class S> static __device__ __forceinline__ void attention_fetch(const attention_work<S> &w, int key_tile) {
    if (key_tile < w.end) {
        u32 to = w.copy_to + w.stage_offset(key_tile);
        u64 from = (u64)(key_tile * S::keys + w.copied_row) * S::HD + w.copied_piece * 8;
        int left = w.tile.visible - key_tile * S::keys - w.copied_row;
#pragma unroll
        for (int row = 0; row < S::keys; row += S::at_once) {
            bool valid = row < left;
            u64 there = valid ? from + row * S::HD : 0;
            copy16_async(to + row * S::row_bytes, w.k + there, valid);
            copy16_async(to + (S::keys + row) * S::row_bytes, w.v + there, valid);
        }
    }
    copies_commit();
}

// The cached rows of the block's run beyond the `fetched` tiles come near.
template <class S> static __device__ __forceinline__ void attention_prefetch(const attention_work<S> &w, int fetched) {
    const int lines = S::keys * S::row_bytes / 128;  // of a tile
    for (int i = threadIdx.x + fetched * lines; i < (w.end - w.begin) * lines; i += S::threads) {
        u64 offset = (u64)w.begin * S::keys * S::row_bytes + (u64)i * 128;
        if (offset >= (u64)w.tile.visible * S::row_bytes) break;
        prefetch_l2((const char *)w.k + offset);
        prefetch_l2((const char *)w.v + offset);
    }
}

// The tile's query rows to shared memory (they come with the first key tile: none is fetched yet).
template <class S>
static __device__ __forceinline__ void attention_fetch_queries(const attention_args &a, const attention_work<S> &w) {
    for (int row = w.copied_row; row < S::rows; row += S::at_once)
        copy16_async(w.copy_to + S::STAGES * S::stage_bytes + (row - w.copied_row) * S::row_bytes,
                     a.q + w.query_offset(row) + w.copied_piece * 8, true);
}
// Or this warp's as left operands: row l/4 and the one 8 further, inner elements 2*(l%4) and 8 further.
template <class S>
static __device__ __forceinline__ void attention_load_queries(const attention_args &a, const attention_work<S> &w,
                                                              u32 (&q)[S::HD / 16][4]) {
    const u32 *q0 = (const u32 *)(a.q + w.query_offset(w.row0)) + (w.lane & 3);
    const u32 *q1 = (const u32 *)(a.q + w.query_offset(w.row0 + 8)) + (w.lane & 3);
#pragma unroll
    for (int i = 0; i < S::HD / 16; i++) {
        q[i][0] = __ldcg(q0 + i * 8);
        q[i][1] = __ldcg(q1 + i * 8);
        q[i][2] = __ldcg(q0 + i * 8 + 4);
        q[i][3] = __ldcg(q1 + i * 8 + 4);
    }
}

// A lane's part of what is known of the warp's rows, for each row tile: of row l/4 and the one 8 further.
template <class S> struct attention_sums {
    float o[S::ROW_TILES][S::HD / 8][4];  // sums of V by weight
    float max[S::ROW_TILES][2];           // of the scores before scaling, about; after `close` scaled
    float sum[S::ROW_TILES][2];           // of the weights
    __device__ __forceinline__ attention_sums() {
#pragma unroll
        for (int t = 0; t < S::ROW_TILES; t++) {
            max[t][0] = max[t][1] = NEGATIVE;
            sum[t][0] = sum[t][1] = 0.0f;
#pragma unroll
            for (int i = 0; i < S::HD / 8; i++) o[t][i][0] = o[t][i][1] = o[t][i][2] = o[t][i][3] = 0.0f;
        }
    }
    __device__ __forceinline__ void close(float scale) {
#pragma unroll
        for (int t = 0; t < S::ROW_TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                sum[t][half] = lanes_sum<4>(sum[t][half]);
                max[t][half] *= scale;
            }
    }
};
// Of a warp's rows and keys.
template <class S> struct attention_scores { float of[S::ROW_TILES][S::warp_keys / 8][4]; };

// Scores of the warp's keys of a stage. q_from, k_from: where this lane's matrices begin; further pieces are an
// exclusive or away, further rows a sum.
template <class S>
static __device__ __forceinline__ void attention_score(attention_scores<S> &s, const u32 (&q)[S::HD / 16][4],
                                                       u32 q_from, u32 k_from) {
#pragma unroll
    for (int t = 0; t < S::ROW_TILES; t++)
#pragma unroll
        for (int j = 0; j < S::warp_keys / 8; j++) s.of[t][j][0] = s.of[t][j][1] = s.of[t][j][2] = s.of[t][j][3] = 0.0f;
#pragma unroll
    for (int i = 0; i < S::HD / 16; i++) {
        u32 rows_q[S::ROW_TILES][4];
#pragma unroll
        for (int t = 0; t < S::ROW_TILES; t++)
            if (S::q_shared) load_matrices(rows_q[t], (q_from ^ (i * 32)) + t * 16 * S::row_bytes);
            else
#pragma unroll
                for (int e = 0; e < 4; e++) rows_q[t][e] = q[i][e];
#pragma unroll
        for (int j = 0; j < S::warp_keys / 8; j += 2) {
            u32 b[4];
            load_matrices(b, (k_from ^ (i * 32)) + j * 8 * S::row_bytes);
#pragma unroll
            for (int t = 0; t < S::ROW_TILES; t++) {
                multiply_tile(s.of[t][j], rows_q[t], b[0], b[1]);
                multiply_tile(s.of[t][j + 1], rows_q[t], b[2], b[3]);
            }
        }
    }
}

// Keys beyond what is visible count for nothing; `left`: keys from this lane's first on.
template <class S> static __device__ __forceinline__ void attention_cut_off(attention_scores<S> &s, int left) {
#pragma unroll
    for (int j = 0; j < S::warp_keys / 8; j++)
#pragma unroll
        for (int t = 0; t < S::ROW_TILES; t++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (j * 8 + (e & 1) >= left) s.of[t][j][e] = NEGATIVE;
}

// Weights are relative to a maximum that follows the true one only when that has gone 2^8 beyond it: rarely.
template <class S>
static __device__ __forceinline__ void attention_follow_maximum(attention_sums<S> &sums, const attention_scores<S> &s,
                                                                float scale, float slack) {
    float shrink[S::ROW_TILES][2];
    bool grows = false;
#pragma unroll
    for (int t = 0; t < S::ROW_TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float highest = NEGATIVE;
#pragma unroll
            for (int j = 0; j < S::warp_keys / 8; j++)
                highest = fmaxf(highest, fmaxf(s.of[t][j][half * 2], s.of[t][j][half * 2 + 1]));
            highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
            highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
            if (highest <= sums.max[t][half] + slack) highest = sums.max[t][half];
            else grows = true;
            shrink[t][half] = exp2_fast((sums.max[t][half] - highest) * scale);
            sums.max[t][half] = highest;
        }
    if (__any_sync(0xffffffffu, grows))
#pragma unroll
        for (int t = 0; t < S::ROW_TILES; t++) {
            sums.sum[t][0] *= shrink[t][0];
            sums.sum[t][1] *= shrink[t][1];
#pragma unroll
            for (int i = 0; i < S::HD / 8; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) sums.o[t][i][e] *= shrink[t][e / 2];
        }
}

// The keys' values by the weights of their scores. v_from as k_from in attention_score.
template <class S>
static __device__ __forceinline__ void attention_add_values(attention_sums<S> &sums, const attention_scores<S> &s,
                                                            u32 v_from, float scale) {
#pragma unroll
    for (int j = 0; j < S::warp_keys / 16; j++) {
        u32 w[S::ROW_TILES][4];
#pragma unroll
        for (int t = 0; t < S::ROW_TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {  // a maximum of nothing counts as 0: its keys' weights are 0
                float minus = sums.max[t][half] <= NEGATIVE ? 0.0f : -sums.max[t][half] * scale, p[4];
#pragma unroll
                for (int e = 0; e < 4; e++)
                    p[e] = exp2_fast(fmaf(s.of[t][j * 2 + e / 2][half * 2 + (e & 1)], scale, minus));
                sums.sum[t][half] += p[0] + p[1] + p[2] + p[3];
                w[t][half] = pack_bf16(p[0], p[1]);
                w[t][2 + half] = pack_bf16(p[2], p[3]);
            }
#pragma unroll
        for (int i = 0; i < S::HD / 8; i += 2) {
            u32 b[4];
            load_matrices_transposed(b, (v_from ^ (i * 16)) + j * 16 * S::row_bytes);
#pragma unroll
            for (int t = 0; t < S::ROW_TILES; t++) {
                multiply_tile(sums.o[t][i], w[t], b[0], b[1]);
                multiply_tile(sums.o[t][i + 1], w[t], b[2], b[3]);
            }
        }
    }
}

// What a warp knows of its rows, in shared memory: for each share of the keys [rows, padded] sums, then [rows] maximum
// and total.
template <class S> struct attention_shared {
    static const int padded = S::HD + 8, state = S::KEY_WARPS * S::rows * padded;
    // Threads that join a row's sums, every one four columns at a time.
    static const int a_row = S::threads / S::rows, fours = S::HD / 4 / a_row;
};
template <class S>
static __device__ __forceinline__ void attention_lay_down(const attention_sums<S> &sums, const attention_work<S> &w,
                                                          float *shared) {
    typedef attention_shared<S> A;
#pragma unroll
    for (int t = 0; t < S::ROW_TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = w.warp_key * S::rows + w.row0 + t * 16 + half * 8;
#pragma unroll
            for (int i = 0; i < S::HD / 8; i++)
                *(float2 *)(shared + row * A::padded + i * 8 + (w.lane & 3) * 2) =
                    make_float2(sums.o[t][i][half * 2], sums.o[t][i][half * 2 + 1]);
            if ((w.lane & 3) == 0)
                *(float2 *)(shared + A::state + row * 2) = make_float2(sums.max[t][half], sums.sum[t][half]);
        }
}

// Some sums of a row that this thread joins, with their maximum and total; `state` and `at` tell where each lies.
template <int PARTS, int FOURS> struct attention_joined {
    float4 x[FOURS];
    float highest, total;
    template <class STATE, class AT> __device__ __forceinline__ attention_joined(const STATE &state, const AT &at) {
        float2 states[PARTS];
        highest = NEGATIVE, total = 0.0f;
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            states[i] = state(i);
            highest = fmaxf(highest, states[i].x);
        }
#pragma unroll
        for (int j = 0; j < FOURS; j++) x[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            float share = exp2_fast(states[i].x - highest);
            total += states[i].y * share;
#pragma unroll
            for (int j = 0; j < FOURS; j++) {
                float4 y = at(i, j);
                x[j].x += y.x * share, x[j].y += y.y * share, x[j].z += y.z * share, x[j].w += y.w * share;
            }
        }
    }
};
template <class S, int FOURS>
static __device__ __forceinline__ void attention_store_row(const attention_args &a, const attention_work<S> &w, int row,
                                                           int first, const float4 (&x)[FOURS], float total) {
    float inverse = 1.0f / total;
    bf16 *to = a.out + w.row_offset(row) + first * 4;
#pragma unroll
    for (int j = 0; j < FOURS; j++)
        *(uint2 *)(to + j * attention_shared<S>::a_row * 4) = make_uint2(
            pack_bf16(x[j].x * inverse, x[j].y * inverse), pack_bf16(x[j].z * inverse, x[j].w * inverse));
}
// Warps that share rows join: the result, or, of a run, `part` for the block that joins the runs: [rows, HD] sums, then
// [rows] maximum and total.
template <class S>
static __device__ __forceinline__ void attention_join_warps(const attention_args &a, const attention_sums<S> &sums,
                                                            const attention_work<S> &w, float *shared, float *part) {
    typedef attention_shared<S> A;
    int row = threadIdx.x / A::a_row, first = threadIdx.x % A::a_row;
    __syncthreads();  // the ring has been read
    attention_lay_down(sums, w, shared);
    __syncthreads();
    if (row >= w.tile.count) return;
    attention_joined<S::KEY_WARPS, A::fours> joined(
        [=](int i) { return *(const float2 *)(shared + A::state + (i * S::rows + row) * 2); },
        [=](int i, int j) {
            return *(const float4 *)(shared + (i * S::rows + row) * A::padded + (first + j * A::a_row) * 4);
        });
    if (S::SPLITS == 1) attention_store_row(a, w, row, first, joined.x, joined.total);
    else {
#pragma unroll
        for (int j = 0; j < A::fours; j++) *(float4 *)(part + row * S::HD + (first + j * A::a_row) * 4) = joined.x[j];
        if (first == 0) *(float2 *)(part + S::rows * S::HD + row * 2) = make_float2(joined.highest, joined.total);
    }
}
// The runs' sums to the result; all reads of a thread are under way at once.
template <class S>
static __device__ __forceinline__ void attention_join_parts(const attention_args &a, const attention_work<S> &w,
                                                            const float *parts) {
    typedef attention_shared<S> A;
    const int part_floats = S::rows * (S::HD + 2);
    int row = threadIdx.x / A::a_row, first = threadIdx.x % A::a_row;
    if (row >= w.tile.count) return;
    attention_joined<S::SPLITS, A::fours> joined(
        [=](int i) { return __ldcg((const float2 *)(parts + (u64)i * part_floats + S::rows * S::HD + row * 2)); },
        [=](int i, int j) {
            return __ldcg(
                (const float4 *)(parts + (u64)i * part_floats + row * S::HD + (first + j * A::a_row) * 4));
        });
    attention_store_row(a, w, row, first, joined.x, joined.total);
}

template <class S>
static __device__ __forceinline__ void attention_store(const attention_args &a, const attention_sums<S> &sums,
                                                       const attention_work<S> &w) {
#pragma unroll
    for (int t = 0; t < S::ROW_TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = w.row0 + t * 16 + half * 8;
            float inverse = 1.0f / sums.sum[t][half];
            u32 *to = (u32 *)(a.out + w.row_offset(row)) + (w.lane & 3);
            if (row < w.tile.count)
#pragma unroll
                for (int i = 0; i < S::HD / 8; i++)
                    to[i * 4] = pack_bf16(sums.o[t][i][half * 2] * inverse, sums.o[t][i][half * 2 + 1] * inverse);
        }
}

// Grid (SPLITS, heads, tiles).
template <class S> static __device__ __forceinline__ void attention(const attention_args &a) {
    extern __shared__ __align__(256) char memory[];
    __shared__ int flag;
    cache_entry cache = a.table.caches[a.table.tiles[blockIdx.z].request];
    attention_work<S> w(a, cache, memory);
    int fetched = 0;
    // Rows that this pass does not replace are there already: the first tiles come while the predecessor ends, and the
    // next ones come near.
    while (!S::q_shared && fetched < S::STAGES - 1 &&
           ((w.begin + fetched) * S::keys > cache.last_written ||
            (w.begin + fetched + 1) * S::keys <= cache.first_written))
        attention_fetch(w, w.begin + fetched++);
    if (S::SPLITS > 1) attention_prefetch(w, fetched);
    let_successor_start();
    wait_for_predecessor();
    u32 q[S::HD / 16][4];
    if (S::q_shared) attention_fetch_queries(a, w);
    else attention_load_queries(a, w, q);
    while (fetched < S::STAGES - 1) attention_fetch(w, w.begin + fetched++);

    attention_sums<S> sums;
    int lane = w.lane, first_key = w.warp_key * S::warp_keys;
    u32 k_lane = swizzled(first_key + (lane & 7) + (lane >> 4) * 8, lane >> 3 & 1, S::pieces);
    u32 v_lane = S::keys * S::row_bytes + swizzled(first_key + (lane & 15), lane >> 4, S::pieces);
    u32 q_lane = w.base + S::STAGES * S::stage_bytes + swizzled(w.first_row + (lane & 15), lane >> 4, S::pieces);
    const float slack = 8.0f / a.scale;
    for (int key_tile = w.begin; key_tile < w.end; key_tile++) {
        copies_wait<S::STAGES - 2>();
        __syncthreads();
        attention_fetch(w, key_tile + S::STAGES - 1);
        if (w.first_row >= w.tile.count) continue;  // (this warp only copies)
        u32 stage = w.base + w.stage_offset(key_tile);
        attention_scores<S> s;
        attention_score<S>(s, q, q_lane, stage + k_lane);
        if ((key_tile + 1) * S::keys > w.tile.visible)
            attention_cut_off(s, w.tile.visible - key_tile * S::keys - first_key - (lane & 3) * 2);
        attention_follow_maximum(sums, s, a.scale, slack);
        attention_add_values(sums, s, stage + v_lane, a.scale);
    }
    sums.close(a.scale);
    copies_wait<0>();

    if (S::KEY_WARPS == 1) attention_store(a, sums, w);
    else {
        u64 group = (u64)blockIdx.z * a.n_heads + w.head;
        float *parts = a.parts + group * S::SPLITS * S::rows * (S::HD + 2);
        attention_join_warps(a, sums, w, (float *)memory, parts + blockIdx.x * S::rows * (S::HD + 2));
        if (S::SPLITS > 1 && last_to_arrive(a.counters + group, S::SPLITS, &flag)) attention_join_parts(a, w, parts);
    }
}
// Tiles of all sizes in one launch, each by the warps that suit it: the short ones, which wait for memory, fill the
// gaps that the long ones leave. What they have in common costs them nothing where two blocks fit on a multiprocessor
// in any case (160 KB and more).
template <int HD> static __device__ __forceinline__ void attention_any(const attention_args &a) {
    int count = a.table.tiles[blockIdx.z].count;
    if (count > 64) attention<attention_shape<HD, 4, 2, 1, 2, 1>>(a);
    else if (count > 32) attention<attention_shape<HD, 4, 1, 1, 3, 1>>(a);
    else attention<attention_shape<HD, 2, 1, 2, 3, 1>>(a);
}
// Shared memory 768 * HD bytes, and 1 KB of their own: 97 of the 99 KB that the smaller GPUs have. All equal attend.
//   attention_few_<HD>: tiles of up to 32 rows, grid (1, n_heads, tiles), 1024 * HD bytes: where there are
//     no more blocks than multiprocessors, each has another stage's keys under way
//   attention_small_<HD>: tiles of up to 32 rows, grid (4, n_heads, tiles)
//   attention_medium_<HD>: tiles of up to 64 rows, grid (4, n_heads, tiles)
//   attention_large_<HD>: tiles of up to 128 rows, grid (1, n_heads, tiles)
#define ATTENTION_KERNEL(name, HD, blocks, WORK) \
    extern "C" __global__ void __launch_bounds__(TSK__CUDA_THREADS_attention_##name, blocks) \
        attention_##name##_##HD(const __grid_constant__ attention_args a) { WORK(a); }
#define ATTENTION_KERNELS(HD) \
    ATTENTION_KERNEL(few, HD, 1, (attention<attention_shape<HD, 2, 1, 2, 4, 1>>)) \
    ATTENTION_KERNEL(small, HD, 2, (attention<attention_shape<HD, 2, 1, 4, 3, TSK__CUDA_ATTENTION_SPLITS>>)) \
    ATTENTION_KERNEL(medium, HD, 2, (attention<attention_shape<HD, 4, 1, 2, 3, TSK__CUDA_ATTENTION_SPLITS>>)) \
    ATTENTION_KERNEL(large, HD, 2, attention_any<HD>)
ATTENTION_KERNELS(64)
ATTENTION_KERNELS(128)

#endif /* SECTION_GUARD_KERNELS_ATTENTION */
