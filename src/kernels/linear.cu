#ifndef SECTION_GUARD_KERNELS_LINEAR
#define SECTION_GUARD_KERNELS_LINEAR

#include "device.cuh"
#include "norm.cuh"
#include "pieces.cuh"
#include "cluster.cuh"
#include "linear_finish.cuh"

// What a block works on: stage after stage of the ring, 64 columns each, tile after tile; of a tile its share of the
// columns, where SPLIT blocks make one together.
template <int SPLIT> struct linear_walk {
    int share, tile, tiles, chunk, first, end, stage, stages, phase;
    __device__ __forceinline__ linear_walk(const linear_args &a, int width) {
        int chunks = max((a.k + LINEAR_CHUNK - 1) / LINEAR_CHUNK, SPLIT);  // (zeros beyond the last)
        share = (int)blockIdx.x % SPLIT, tile = (int)blockIdx.x / SPLIT;
        tiles = (a.n + width - 1) / width;
        first = chunks * share / SPLIT, end = chunks * (share + 1) / SPLIT;
        stages = a.stages;
        chunk = first;
        stage = phase = 0;
    }
    __device__ __forceinline__ int output(int width) const { return tile * width; }  // that the tile begins with
    __device__ __forceinline__ int step() const { return (int)gridDim.x / SPLIT; }
    __device__ __forceinline__ bool more() const { return tile < tiles; }
    __device__ __forceinline__ void next() {
        if (++stage == stages) stage = 0, phase ^= 1;
        if (++chunk == end) chunk = first, tile += step();
    }
};
struct linear_ring {
    u32 memory, stage_bytes;
    u32 full, empty;            // a barrier for each stage
    // Waits until the stage may be filled again; `filled` of them were.
    template <class WALK> __device__ __forceinline__ void claim(const WALK &w, int filled) const {
        if (filled >= w.stages) barrier_wait(empty + w.stage * 8, w.phase ^ 1);
    }
};

#if __CUDA_ARCH__ >= 900
// By one thread: boxes of `rows` rows, tile after tile (weights) or always the same (input), to `offset` in each stage.
// A thread of its own for either: what one waits for does not hold up the other.
template <class WALK>
static __device__ __forceinline__ void fetch_boxes(const tensor_map *map, WALK walk, const linear_ring &ring,
                                                   u32 offset, int rows, bool by_tile, u64 policy) {
    for (int filled = 0; walk.more(); walk.next(), filled++) {
        ring.claim(walk, filled);
        barrier_expect(ring.full + walk.stage * 8, rows * LINEAR_CHUNK * 2);
        copy_box(ring.memory + walk.stage * ring.stage_bytes + offset, map, walk.chunk * LINEAR_CHUNK,
                 by_tile ? walk.output(rows) : 0, ring.full + walk.stage * 8, policy);
    }
}
#else
// By LINEAR_FETCHERS threads: rows first .. first + count - 1 of a matrix [end, k], 16 bytes a thread.
static __device__ __forceinline__ void fetch_rows(const bf16 *from, int first, int count, int end, int k, int at,
                                                  u32 to, int thread) {
    int column = at + (thread & 7) * 8;
    for (int row = thread >> 3; row < count; row += LINEAR_FETCHERS / 8) {
        bool valid = first + row < end && column < k;
        copy16_async(to + swizzled(row, thread & 7, 8), from + (valid ? (u64)(first + row) * k + column : 0), valid);
    }
}
static __device__ __forceinline__ void fetch(const linear_args &a, linear_walk<1> walk, const linear_ring &ring,
                                             int width, int rows, int thread) {
    for (int filled = 0; walk.more(); walk.next(), filled++) {
        u32 to = ring.memory + walk.stage * ring.stage_bytes;
        ring.claim(walk, filled);
        fetch_rows(a.weights, walk.tile * width, width, a.n, a.k, walk.chunk * LINEAR_CHUNK, to, thread);
        fetch_rows(a.input, 0, rows, a.m, a.k, walk.chunk * LINEAR_CHUNK, to + width * LINEAR_CHUNK * 2, thread);
        barrier_arrive_copied(ring.full + walk.stage * 8);
    }
    copies_commit();
    copies_wait<0>();  // a thread that has ended need not answer for its copies
}
#endif

// The norm's scales of `rows` rows, by `warps` warps of which this is number `warp`: 8 lanes a row.
static __device__ __forceinline__ void make_scales(const linear_args &a, float *scales, int rows, int warp, int warps) {
    int lane = threadIdx.x & 31;
    for (int row = warp * 4 + (lane >> 3); row < rows; row += warps * 4) {
        float scale = 1.0f;
        if (a.squares_in)
            scale = row_scale(a.squares_in + (u64)min(row, a.m - 1) * squares_row(a.k), a.k, a.eps, lane & 7);
        if ((lane & 7) == 0) scales[row] = scale;
    }
}

// What a warp makes of a stage: the products of 16 outputs, `piece` of the tile's, and all M rows, whose sums `acc`
// are.
template <int M>
static __device__ __forceinline__ void multiply_stage(float (&acc)[M / 8][4], u32 weights, u32 input, int piece) {
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int kk = 0; kk < LINEAR_CHUNK / 16; kk++) {
        u32 w[4];
        load_matrices(w, weights + swizzled(piece * 16 + (lane & 15), kk * 2 + (lane >> 4), 8));
#pragma unroll
        for (int j = 0; j < M / 8; j += 2) {
            u32 x[4];
            load_matrices(x, input + swizzled(j * 8 + (lane & 7) + (lane >> 4) * 8, kk * 2 + (lane >> 3 & 1), 8));
            multiply_tile(acc[j], w, x[0], x[1]);
            multiply_tile(acc[j + 1], w, x[2], x[3]);
        }
    }
}
// To the group's part of a tile's sums in shared memory.
template <int M>
static __device__ __forceinline__ void store_sums(const float (&acc)[M / 8][4], float *sums, int group, int piece,
                                                  int width) {
    int lane = threadIdx.x & 31;
    float *to = sums + group * M * (width + 4) + (lane & 3) * 2 * (width + 4);
    int places[2] = {sums_place(piece * 16 + (lane >> 2)), sums_place(piece * 16 + 8 + (lane >> 2))};
#pragma unroll
    for (int j = 0; j < M / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) to[(j * 8 + (e & 1)) * (width + 4) + places[e >> 1]] = acc[j][e];
}
#if __CUDA_ARCH__ >= 900
// Of a tile that two blocks make: what this one's groups have of the other's rows, added up, to the place of one group
// more there, whose `barrier` counts the bytes.
template <int M> static __device__ __forceinline__ void send_sums(const float *sums, int groups, int width, int share,
                                                                  u32 barrier) {
    const int rows = M / 2, row = sums_row(width), first = (1 - share) * rows;
    u32 to = peer_address(shared_address(sums + groups * M * row), 1 - share),
        counter = peer_address(barrier, 1 - share);
    for (int i = threadIdx.x; i < rows * width / 4; i += LINEAR_THREADS) {
        int at = (first + i / (width / 4)) * row + i % (width / 4) * 4;
        float4 total = *(const float4 *)(sums + at);
        for (int group = 1; group < groups; group++) {
            float4 x = *(const float4 *)(sums + group * M * row + at);
            total.x += x.x, total.y += x.y, total.z += x.z, total.w += x.w;
        }
        store_to_peer(to + at * 4, total, counter);
    }
}
#endif

template <int M, int SPLIT, class EPILOGUE> static __device__ __forceinline__ void linear(const linear_args &a) {
    const int rows = M / SPLIT;  // that a block finishes
    extern __shared__ __align__(1024) char linear_memory[];
    int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31, width = a.pieces * 16;
    linear_ring ring = {shared_address(linear_memory), (u32)(width + M) * LINEAR_CHUNK * 2, 0, 0};
    float *sums = (float *)(linear_memory + a.stages * ring.stage_bytes),
          *scales = sums + (a.groups + SPLIT - 1) * M * (width + 4);
    ring.full = shared_address(scales + M);
    ring.empty = ring.full + a.stages * 8;
#if __CUDA_ARCH__ >= 900
    // SPLIT > 1: the other block's sums have come; it has read this one's.
    u32 summed = ring.empty + a.stages * 8, read = summed + 8;
#endif
    linear_walk<SPLIT> walk(a, width);

    if (thread == 0) {
        for (int i = 0; i < a.stages; i++) {
#if __CUDA_ARCH__ >= 900
            barrier_init(ring.full + i * 8, 2);
#else
            barrier_init(ring.full + i * 8, LINEAR_FETCHERS);
#endif
            barrier_init(ring.empty + i * 8, a.pieces);
        }
#if __CUDA_ARCH__ >= 900
        barrier_init(summed, 1), barrier_init(read, 1);
        barriers_publish();
#endif
    }
    __syncthreads();
#if __CUDA_ARCH__ >= 900
    if (SPLIT > 1) cluster_arrive();
#endif
    let_successor_start();
#if __CUDA_ARCH__ >= 900
    if (warp == LINEAR_WARPS) {  // nothing of the pass writes weights: this warp waits for no predecessor
        if (lane == 0) fetch_boxes(&a.weights_map, walk, ring, 0, width, true, read_once_policy());
        __syncwarp();
        if (SPLIT > 1) cluster_wait();
        return;
    }
    wait_for_predecessor();
    if (warp > LINEAR_WARPS) {
        if (lane == 0) fetch_boxes(&a.input_map, walk, ring, width * LINEAR_CHUNK * 2, M, false, read_often_policy());
        __syncwarp();
        if (SPLIT > 1) cluster_wait();
        return;
    }
    if (SPLIT > 1) cluster_wait();  // the other's barriers are there
#else
    if (thread >= LINEAR_THREADS) return fetch(a, walk, ring, width, M, thread - LINEAR_THREADS);
#endif
    make_scales(a, scales, M, warp, LINEAR_WARPS);  // while the first stages come

    // A group always meets the same stages of the ring (their number is a multiple of the groups'): it waits for every
    // phase.
    int group = warp / a.pieces, piece = warp - group * a.pieces, turn = 0;
    float acc[M / 8][4];
    for (u32 tiles = 0; walk.more(); tiles++) {
        const float *first_sums = sums + walk.share * rows * (width + 4);
        linear_sums t = {first_sums, scales, a.bias, a.groups + SPLIT - 1, M, rows, width, walk.share * rows,
                         walk.output(width), a.n};
        linear_item item;
        EPILOGUE epilogue;
        item.place<EPILOGUE>(t, thread);
        epilogue.begin(a, item);
        epilogue.load(a, item);
#if __CUDA_ARCH__ >= 900
        if (SPLIT > 1 && thread == 0) barrier_expect(summed, rows * width * 4);
#endif
#pragma unroll
        for (int j = 0; j < M / 8; j++) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0.0f;
        for (int left = walk.end - walk.first; left > 0;
             left--, walk.next(), turn = turn + 1 == a.groups ? 0 : turn + 1) {
            if (turn != group) continue;
            u32 w_base = ring.memory + walk.stage * ring.stage_bytes, x_base = w_base + width * LINEAR_CHUNK * 2;
            barrier_wait(ring.full + walk.stage * 8, walk.phase);
            multiply_stage<M>(acc, w_base, x_base, piece);
            __syncwarp();
            if (lane == 0) barrier_arrive(ring.empty + walk.stage * 8);
        }

        if (tiles > 0) threads_sync<LINEAR_THREADS>();  // the last tile's sums have been read
        if (group < a.groups) store_sums<M>(acc, sums, group, piece, width);
        threads_sync<LINEAR_THREADS>();
#if __CUDA_ARCH__ >= 900
        if (SPLIT > 1) {
            if (tiles > 0) barrier_wait(read, (tiles - 1) & 1);
            send_sums<M>(sums, a.groups, width, walk.share, summed);
            barrier_wait(summed, tiles & 1);
        }
#endif
        finish_tile<LINEAR_THREADS>(a, t, item, epilogue);
#if __CUDA_ARCH__ >= 900
        if (SPLIT > 1 && walk.more()) {
            threads_sync<LINEAR_THREADS>();
            fence_cluster();
            if (thread == 0) barrier_arrive_peer(peer_address(read, 1 - walk.share));
        }
#endif
    }
}

// linear_<kind>_<M>: up to M rows. Grid: one block a multiprocessor, at most the number of tiles, for out times
// LINEAR_SPLIT; block LINEAR_THREADS + LINEAR_FETCHERS; shared memory: `stages`, a multiple of `groups`, of
// (16 pieces + M) * 128 bytes, + parts * M * (16 pieces + 4) * 4 + M * 4 + stages * 16 + 16, where parts, at most
// LINEAR_GROUPS, are the groups and for out LINEAR_SPLIT - 1 more. groups * pieces <= LINEAR_WARPS. bf16 in and out,
// f32 sums.
//   qkv: equals qkv (norm, projection, bias, RoPE, cache write); head_dim % 16 == 0
//   out: equals attn_out and down (projection, residual); pieces even
//   gate_up: equals gate_up (norm, both projections, silu(gate) * up); weights alternate 8 rows of gate, 8 of up
//   head: the first stage of head; head_finish is the second
#if __CUDA_ARCH__ >= 900
#define LINEAR_SPLIT TSK__CUDA_LINEAR_SPLIT
#define LINEAR_PAIRS __cluster_dims__(LINEAR_SPLIT, 1, 1)
#else
#define LINEAR_SPLIT 1
#define LINEAR_PAIRS
#endif
#define LINEAR_KERNELS(M) \
    extern "C" __global__ void __launch_bounds__(LINEAR_THREADS + LINEAR_FETCHERS, 1) \
        linear_qkv_##M(const __grid_constant__ linear_args a) { \
        linear<M, 1, qkv_epilogue>(a); \
    } \
    extern "C" __global__ void LINEAR_PAIRS __launch_bounds__(LINEAR_THREADS + LINEAR_FETCHERS, 1) \
        linear_out_##M(const __grid_constant__ linear_args a) { \
        linear<M, LINEAR_SPLIT, out_epilogue>(a); \
    } \
    extern "C" __global__ void __launch_bounds__(LINEAR_THREADS + LINEAR_FETCHERS, 1) \
        linear_gate_up_##M(const __grid_constant__ linear_args a) { \
        linear<M, 1, gate_up_epilogue>(a); \
    } \
    extern "C" __global__ void __launch_bounds__(LINEAR_THREADS + LINEAR_FETCHERS, 1) \
        linear_head_##M(const __grid_constant__ linear_args a) { \
        linear<M, 1, head_epilogue>(a); \
    }
LINEAR_KERNELS(32)
LINEAR_KERNELS(64)

#endif /* SECTION_GUARD_KERNELS_LINEAR */
