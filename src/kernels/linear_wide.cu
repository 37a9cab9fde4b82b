#ifndef SECTION_GUARD_KERNELS_LINEAR_WIDE
#define SECTION_GUARD_KERNELS_LINEAR_WIDE

#include "device.cuh"
#include "cluster.cuh"
#include "linear_finish.cuh"
#include "linear.cu"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// ---- Linear maps for up to 128 rows (bf16, sm_90a)
// ------------------------------------------------------------------------ As the last, with matrix units that read
// both operands from shared memory, whose bandwidth would not suffice otherwise. Four blocks make a cluster, so that
// the way from L2 does. SPLIT of them make a tile together, each from a share of the columns, and each finishes a share
// of the rows; the others make other tiles from the same share of the input, of which each fetches a part for all.

#define WIDE_ROWS TSK__CUDA_WIDE_ROWS
#define WIDE_BOX TSK__CUDA_WIDE_BOX
#define WIDE_CLUSTER TSK__CUDA_WIDE_CLUSTER
#define WIDE_THREADS 256           // two warp groups that multiply, 64 rows each; then come the warps that
enum {
    WIDE_WEIGHTS = 8,
    WIDE_INPUT = 9,
    WIDE_SCALES = 10,
    WIDE_WARPS = TSK__CUDA_WIDE_WARPS
}; // fetch weights, fetch input, make scales (two)

// A matrix in shared memory as the matrix units want it told: rows of 128 bytes, swizzled, 8 of them 1024 bytes.
static __device__ __forceinline__ u64 matrix_descriptor(u32 address) {
    return (u64)(address >> 4 & 0x3fff) | (u64)1 << 16 | (u64)64 << 32 | (u64)1 << 62;
}
static __device__ __forceinline__ void wide_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
static __device__ __forceinline__ void wide_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> static __device__ __forceinline__ void wide_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
#define WIDE_4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define WIDE_8(i) WIDE_4(i), WIDE_4(i + 4)
#define WIDE_16(i) WIDE_8(i), WIDE_8(i + 8)
// c[64, N] += a[64, 16] * b[N, 16]^T by a warp group. Warp w of it holds rows 16w + lane/4 (c[4j], c[4j + 1]) and 8
// further (the next two), columns 8j + 2*(lane%4) and the next.
template <int N> static __device__ __forceinline__ void multiply_wide(float (&c)[N / 2], u64 a, u64 b);
#define WIDE_REGISTERS_40 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23" \
    ",%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39"
#define WIDE_REGISTERS_56 WIDE_REGISTERS_40 \
    ",%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55"
#define WIDE_REGISTERS_104 WIDE_REGISTERS_56 \
    ",%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79" \
    ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103"
#define WIDE_REGISTERS_108 WIDE_REGISTERS_104 \
    ",%104,%105,%106,%107"
// For N outputs: N / 2 registers, and the operands after them.
#define MULTIPLY_WIDE(N, REGISTERS, NEXT, ...) \
    template <> __device__ __forceinline__ void multiply_wide<N>(float (&c)[N / 2], u64 a, u64 b) { \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WIDE_REGISTERS_##REGISTERS \
                     "}, %" #REGISTERS ", %" #NEXT ", 1, 1, 1, 0, 0;" \
                     : __VA_ARGS__ \
                     : "l"(a), "l"(b)); \
    }
MULTIPLY_WIDE(80, 40, 41, WIDE_16(0), WIDE_16(16), WIDE_8(32))
MULTIPLY_WIDE(112, 56, 57, WIDE_16(0), WIDE_16(16), WIDE_16(32), WIDE_8(48))
MULTIPLY_WIDE(208, 104, 105, WIDE_16(0), WIDE_16(16), WIDE_16(32), WIDE_16(48), WIDE_16(64), WIDE_16(80), WIDE_8(96))
MULTIPLY_WIDE(216, 108, 109, WIDE_16(0), WIDE_16(16), WIDE_16(32), WIDE_16(48), WIDE_16(64), WIDE_16(80), WIDE_8(96),
              WIDE_4(104))
#undef WIDE_16
#undef WIDE_8
#undef WIDE_4

// As linear_walk: a tile's columns of 64 from `first` to `end`, and the SHARERS tiles that the cluster makes at a time.
template <int N, int SPLIT> struct wide_walk {
    static const int SHARERS = WIDE_CLUSTER / SPLIT;
    int share, sharer;          // which of a tile's, of the columns; which of the tiles
    int tile, tiles, chunk, first, end, stage, stages, phase;
    __device__ __forceinline__ wide_walk(const linear_args &a) {
        int chunks = (a.k + LINEAR_CHUNK - 1) / LINEAR_CHUNK, rank = cluster_rank();
        share = rank % SPLIT, sharer = rank / SPLIT;
        tile = (int)blockIdx.x / WIDE_CLUSTER * SHARERS;
        tiles = (a.n + N - 1) / N;
        first = chunks * share / SPLIT;
        end = chunks * (share + 1) / SPLIT;
        stages = a.stages;
        chunk = first;
        stage = phase = 0;
    }
    __device__ __forceinline__ int tile_peer(int of_share) const { return sharer * SPLIT + of_share; }  // ranks
    __device__ __forceinline__ int input_peer(int of_sharer) const { return of_sharer * SPLIT + share; }
    __device__ __forceinline__ int output(int width) const { return (tile + sharer) * width; }
    __device__ __forceinline__ int step() const { return (int)gridDim.x / SPLIT; }
    __device__ __forceinline__ bool more() const { return tile < tiles; }  // for all blocks of the cluster alike
    __device__ __forceinline__ bool is_last_tile() const { return tile + step() >= tiles; }
    __device__ __forceinline__ void next() {
        if (++stage == stages) stage = 0, phase ^= 1;
        if (++chunk == end) chunk = first, tile += step();
    }
};
struct wide_memory {
    float *own;                 // [128, sums_row] the block's sums, in the ring's place
    float *sums; // [SPLIT, 128 / SPLIT, sums_row] those of the rows that it finishes; with SPLIT 1 the same
    float *scales;
    u32 scaled, summed,
        read; // barriers: the scales; SPLIT > 1: the other shares' bytes, and all shares' having read theirs
};

// Of the boxes of WIDE_BOX rows this sharer's part, to all sharers.
template <int N, int SPLIT>
static __device__ __forceinline__ void wide_fetch_input(const linear_args &a, wide_walk<N, SPLIT> walk,
                                                        const linear_ring &ring) {
    const int boxes = WIDE_ROWS / WIDE_BOX / walk.SHARERS, box_bytes = WIDE_BOX * LINEAR_CHUNK * 2;
    u64 policy = read_often_policy();
    u32 ranks = 0;
    for (int i = 0; i < walk.SHARERS; i++) ranks |= 1u << walk.input_peer(i);
    for (int filled = 0; walk.more(); walk.next(), filled++) {
        u32 to = ring.memory + walk.stage * ring.stage_bytes + N * LINEAR_CHUNK * 2, full = ring.full + walk.stage * 8;
        ring.claim(walk, filled);
        barrier_expect(full, WIDE_ROWS * LINEAR_CHUNK * 2);
        for (int box = walk.sharer * boxes; box < (walk.sharer + 1) * boxes; box++)
            copy_box_to_peers(to + box * box_bytes, &a.input_map, walk.chunk * LINEAR_CHUNK, box * WIDE_BOX, full,
                              ranks, policy);
    }
}

template <int N, int SPLIT, class EPILOGUE>
static __device__ __forceinline__ void wide_multiply(const linear_args &a, wide_walk<N, SPLIT> walk,
                                                     const linear_ring &ring, const wide_memory &memory) {
    const int padded = sums_row(N), rows = WIDE_ROWS / SPLIT,
              rounds = (rows * EPILOGUE::a_row(N) + WIDE_THREADS - 1) / WIDE_THREADS;
    int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31;
    bool releases = lane < walk.SHARERS;  // to those that fill this block's stages
    int filler = walk.input_peer(lane % walk.SHARERS);
    float acc[N / 2];
    for (u32 tiles = 0; walk.more(); tiles++) {
        bool is_last = walk.is_last_tile();
        linear_sums t = {memory.sums, memory.scales,     a.bias,         SPLIT, rows, rows,
                         N,           walk.share * rows, walk.output(N), a.n};
        u32 last_empty = 0;
        linear_item item;
        EPILOGUE epilogue[rounds];
#pragma unroll
        for (int i = 0; i < rounds; i++) {
            item.place<EPILOGUE>(t, thread + i * WIDE_THREADS);
            if (item.exists<EPILOGUE>(t)) epilogue[i].begin(a, item);
        }
        if (SPLIT > 1 && thread == 0) barrier_expect(memory.summed, (SPLIT - 1) * rows * padded * 4);
#pragma unroll
        for (int i = 0; i < N / 2; i++) acc[i] = 0.0f;
        for (int left = walk.end - walk.first; left > 0; left--, walk.next()) {
            u32 w = ring.memory + walk.stage * ring.stage_bytes,
                x = w + N * LINEAR_CHUNK * 2 + (warp >> 2) * 64 * LINEAR_CHUNK * 2;
            barrier_wait(ring.full + walk.stage * 8, walk.phase);
            wide_begin();
#pragma unroll
            for (int kk = 0; kk < LINEAR_CHUNK / 16; kk++)
                multiply_wide<N>(acc, matrix_descriptor(x + kk * 32), matrix_descriptor(w + kk * 32));
            wide_commit();
            wide_wait<1>();  // for the stage before
            if (last_empty && releases) barrier_arrive_peer(peer_address(last_empty, filler));
            last_empty = left > walk.stages ? ring.empty + walk.stage * 8
                                            : 0; // the last ones are held: the sums take their place
        }
        wide_wait<0>();

        threads_sync<WIDE_THREADS>();  // the ring has been read
        // Where its row lies among the block's is where it lies among those that it finishes: only the others' need
        // copies.
        bool stays = warp * 16 / rows == walk.share;
        float *own = (stays ? memory.sums : memory.own) + (warp * 16 + (lane >> 2)) * padded;
#pragma unroll
        for (int i = 0; i < N / 2; i += 2)
            *(float2 *)(own + (i & 2) * 4 * padded + sums_place(i / 4 * 8 + (lane & 3) * 2)) =
                make_float2(acc[i], acc[i + 1]);
        if (SPLIT > 1) fence_copies();
#pragma unroll
        for (int i = 0; i < rounds; i++) {
            item.place<EPILOGUE>(t, thread + i * WIDE_THREADS);
            if (item.exists<EPILOGUE>(t)) epilogue[i].load(a, item);
        }
        if (tiles == 0) barrier_wait(memory.scaled, 0);
        threads_sync<WIDE_THREADS>();
        if (SPLIT > 1) {
            int peer = walk.tile_peer(thread % SPLIT);
            if (thread < SPLIT && thread != walk.share)
                copy_to_peer(peer_address(shared_address(memory.sums + walk.share * rows * padded), peer),
                             shared_address(memory.own + thread * rows * padded), rows * padded * 4,
                             peer_address(memory.summed, peer));
            barrier_wait(memory.summed, tiles & 1);
        }
        if (is_last) cluster_arrive();  // all that the others sent to this block has come
#pragma unroll
        for (int i = 0; i < rounds; i++) {
            item.place<EPILOGUE>(t, thread + i * WIDE_THREADS);
            if (item.exists<EPILOGUE>(t)) epilogue[i].finish(a, t, item);
        }
        if (is_last) return;
        fence_copies();
        if (SPLIT > 1) {
            fence_cluster();
            __syncwarp();
            if (lane < SPLIT) barrier_arrive_peer(peer_address(memory.read, walk.tile_peer(lane % SPLIT)));
            barrier_wait(memory.read, tiles & 1);
        } else threads_sync<WIDE_THREADS>();
        for (int stage = 0; stage < walk.stages && releases; stage++)
            barrier_arrive_peer(peer_address(ring.empty + stage * 8, filler));
    }
}

template <int N, int SPLIT, class EPILOGUE> static __device__ __forceinline__ void wide(const linear_args &a) {
    extern __shared__ __align__(1024) char linear_memory[];
    const int sums_bytes = WIDE_ROWS * sums_row(N) * 4;
    int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31;
    linear_ring ring = {shared_address(linear_memory), (N + WIDE_ROWS) * LINEAR_CHUNK * 2, 0, 0};
    int ring_bytes = a.stages * ring.stage_bytes;
    wide_memory memory;
    memory.own = (float *)linear_memory;
    memory.sums = SPLIT == 1 ? memory.own : (float *)(linear_memory + max(ring_bytes, sums_bytes));
    memory.scales = (float *)(linear_memory + max(ring_bytes, sums_bytes) + (SPLIT == 1 ? 0 : sums_bytes));
    ring.full = shared_address(memory.scales + WIDE_ROWS);
    ring.empty = ring.full + a.stages * 8;
    memory.scaled = ring.empty + a.stages * 8, memory.summed = memory.scaled + 8, memory.read = memory.summed + 8;
    wide_walk<N, SPLIT> walk(a);

    if (thread == 0) {
        for (int i = 0; i < a.stages; i++) {
            barrier_init(ring.full + i * 8, 2);
            barrier_init(ring.empty + i * 8, WIDE_THREADS / 32 * walk.SHARERS);
        }
        barrier_init(memory.scaled, 64);
        barrier_init(memory.summed, 1);
        barrier_init(memory.read, WIDE_THREADS / 32 * SPLIT);
        barriers_publish();
    }
    __syncthreads();
    cluster_arrive();
    let_successor_start();
    if (warp == WIDE_WEIGHTS) {  // as in linear; and no other block's memory is touched
        if (lane == 0) fetch_boxes(&a.weights_map, walk, ring, 0, N, true, read_once_policy());
        __syncwarp();
        cluster_wait();
        cluster_arrive();
    } else {
        wait_for_predecessor();
        cluster_wait();
        if (warp < WIDE_WEIGHTS) wide_multiply<N, SPLIT, EPILOGUE>(a, walk, ring, memory);
        else {
            if (warp == WIDE_INPUT && lane == 0) wide_fetch_input<N, SPLIT>(a, walk, ring);
            if (warp >= WIDE_SCALES) {
                make_scales(a, memory.scales, WIDE_ROWS, warp - WIDE_SCALES, WIDE_WARPS - WIDE_SCALES);
                barrier_arrive(memory.scaled);
            }
            __syncwarp();
            cluster_arrive();
        }
    }
    cluster_wait();  // none ends while another may reach into its memory, or a copy of its own is on its way
}

// wide_<kind>: as linear_<kind>, up to 128 rows. Grid: whole clusters of WIDE_CLUSTER; block WIDE_WARPS * 32;
// weights_map: boxes of a tile's N rows, input_map: of 32; shared memory: the larger of stages * (N + 128) * 128 and
// 512 * sums_row(N), with SPLIT > 1 another 512 * sums_row(N), + 512 + stages * 16 + 24. At least 2 stages, and no more
// than every block has of a tile.
#define WIDE_KERNEL(kind, N, SPLIT) \
    extern "C" __global__ void __cluster_dims__(WIDE_CLUSTER, 1, 1) __launch_bounds__(WIDE_WARPS * 32, 1) \
        wide_##kind(const __grid_constant__ linear_args a) { \
        wide<N, SPLIT, kind##_epilogue>(a); \
    }
WIDE_KERNEL(qkv, TSK__CUDA_WIDE_QKV, 1)
WIDE_KERNEL(out, TSK__CUDA_WIDE_OUT, TSK__CUDA_WIDE_OUT_SPLIT)
WIDE_KERNEL(gate_up, TSK__CUDA_WIDE_GATE_UP, 1)
WIDE_KERNEL(head, TSK__CUDA_WIDE_HEAD, 1)
#endif

#endif /* SECTION_GUARD_KERNELS_LINEAR_WIDE */
