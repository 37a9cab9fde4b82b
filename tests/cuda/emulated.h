/* Enough of a GPU to run the kernels of src/kernels on the CPU: every CUDA thread is a fiber, and what the kernels say
   in PTX is said here in C++ (see emulated.awk; the kernels' text includes this file after its types). Which fibers run
   next, and when a copy on its way arrives, is drawn from a seed, so that orders come about that a GPU would show once
   in a year. What a GPU would not tell is an error: barriers used before they are made or arrived at too often, places
   outside shared memory, copies from or to a block that has ended, a kernel in which nothing goes on.

   Simplified: shared memory is coherent (a missing fence is not noticed), matrix units work at once. */
#ifndef TSK_EMULATED_H
#define TSK_EMULATED_H

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <ucontext.h>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#ifdef EMULATE_SM80
#define __CUDA_ARCH__ 800
#else
#define __CUDA_ARCH__ 900
#define __CUDA_ARCH_FEAT_SM90_ALL
#endif

struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) uint2 { u32 x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct dim3 { u32 x, y, z; };
static inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
static inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

/* What a tensor map says here, in place of what the driver makes of it: boxes of 64 columns. */
struct matrix_map { const bf16 *matrix; int rows, columns, box_rows; };
static inline tensor_map tensor_map_of(const matrix_map &m) {
    tensor_map map = tensor_map();
    memcpy(&map, &m, sizeof m);
    return map;
}
static inline matrix_map matrix_map_of(const tensor_map &map) {
    matrix_map m;
    memcpy(&m, &map, sizeof m);
    return m;
}

/* ---- threads, blocks, the machine */

struct meeting { long held = 0; int here = 0; };                     /* of threads at a barrier of the classic kind */
struct barrier_state { int expected = 0, missing = 0; long bytes = 0; u32 phase = 0; };
struct block_state {
    dim3 index;
    u32 size, n_alive;                                               /* shared memory's; threads that have not ended */
    std::vector<uint4> room;
    char *shared;
    int shared_int;
    std::map<u32, barrier_state> barriers;
    meeting meetings[2], warps[32];
    u64 lanes[32][32][8];                                            /* what the lanes of a warp show each other */
};
struct thread_state {
    ucontext_t context;
    block_state *block;
    dim3 index;
    bool ended;
    long cluster_round;
    std::vector<std::vector<std::function<void()>>> copies;          /* groups of its own asynchronous ones, the last
                                                                        open */
};
static struct {
    dim3 grid;
    int threads, cluster;                                            /* of a block; blocks of a cluster */
    std::vector<block_state> blocks;
    std::vector<thread_state> fibers;
    std::vector<meeting> clusters;
    std::vector<std::function<bool()>> copies;                       /* the copy engine's; each tells whether it has
                                                                        come */
    thread_state *now;
    ucontext_t scheduler;
    std::mt19937 chance;
    long progress;
    std::function<void()> kernel;
} machine;

[[noreturn]] static inline void emulated_error(const char *what) {
    printf("emulated: %s (block %u %u %u)\n", what, machine.now->block->index.x, machine.now->block->index.y,
           machine.now->block->index.z);
    exit(1);
}
static inline u32 chance_of(u32 n) { return machine.chance() % n; }
static inline void pause_thread() { swapcontext(&machine.now->context, &machine.scheduler); }

#define threadIdx (machine.now->index)
#define blockIdx (machine.now->block->index)
#define gridDim (machine.grid)
static inline char *emulated_shared() { return machine.now->block->shared; }
static inline int *emulated_shared_int() { return &machine.now->block->shared_int; }

static inline void meet(meeting &m, int expected) {
    long round = m.held;
    if (++m.here == expected) m.here = 0, m.held++, machine.progress++;
    while (m.held == round) pause_thread();
}
static inline void __syncthreads() { meet(machine.now->block->meetings[0], machine.threads); }
template <int THREADS> static inline void threads_sync() {
    if (threadIdx.x >= THREADS) emulated_error("threads_sync by a thread that it does not count");
    meet(machine.now->block->meetings[1], THREADS);
}
static inline void __syncwarp() { meet(machine.now->block->warps[threadIdx.x / 32], 32); }
static inline u64 (&warp_lanes())[32][8] { return machine.now->block->lanes[threadIdx.x / 32]; }
template <class T> static inline T __shfl_xor_sync(u32, T value, int step) {
    u64(&lanes)[32][8] = warp_lanes();
    u32 lane = threadIdx.x & 31;
    T other;
    memcpy(lanes[lane], &value, sizeof value);
    __syncwarp();
    memcpy(&other, lanes[lane ^ step], sizeof other);
    __syncwarp();
    return other;
}
static inline bool __any_sync(u32, bool value) {
    for (int step = 1; step < 32; step *= 2) value |= __shfl_xor_sync(0, (int)value, step) != 0;
    return value;
}

/* ---- arithmetic */

using std::max;
using std::min;
static inline float __uint_as_float(u32 bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline u32 __umulhi(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float exp2_fast(float x) { return exp2f(x); }
template <class T> static inline T __ldcg(const T *p) { return *p; }
static inline float value_of(u16 bits) { return __uint_as_float((u32)bits << 16); }
static inline u16 nearest_bf16(float x) {
    u32 bits;
    memcpy(&bits, &x, sizeof bits);
    return x != x ? 0x7fff : (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline u32 pack_bf16(float low, float high) { return nearest_bf16(low) | (u32)nearest_bf16(high) << 16; }
static inline u32 multiply_bf16x2(u32 a, u32 b) {
    return pack_bf16(value_of((u16)a) * value_of((u16)b), value_of((u16)(a >> 16)) * value_of((u16)(b >> 16)));
}

/* ---- shared memory's addresses: the block's own, or with the rank in the cluster, from 1, in the upper byte */

static inline u32 __cvta_generic_to_shared(const void *p) { return (u32)((const char *)p - emulated_shared()); }
static inline block_state *block_of(u32 address) {
    block_state *first = machine.now->block - blockIdx.x % (u32)machine.cluster,
                *block = address >> 24 ? first + (address >> 24) - 1 : machine.now->block;
    if (!block->n_alive) emulated_error("shared memory of a block that has ended");
    return block;
}
static inline char *shared_at(u32 address, u32 size) {
    block_state *block = block_of(address);
    if ((address & 0xffffff) + size > block->size) emulated_error("a place outside shared memory");
    return block->shared + (address & 0xffffff);
}
static inline int cluster_rank() { return (int)(blockIdx.x % (u32)machine.cluster); }
static inline u32 peer_address(u32 address, int rank) { return address | (u32)(rank + 1) << 24; }
static inline meeting &own_cluster() {
    return machine.clusters[(size_t)(machine.now->block - machine.blocks.data()) / (size_t)machine.cluster];
}
static inline void cluster_arrive() {
    meeting &m = own_cluster();
    machine.now->cluster_round = m.held;
    if (++m.here == machine.threads * machine.cluster) m.here = 0, m.held++, machine.progress++;
}
static inline void cluster_wait() {
    while (own_cluster().held == machine.now->cluster_round) pause_thread();
}
static inline void fence_cluster() {}
static inline void fence_copies() {}

/* ---- barriers with phases */

static inline barrier_state &barrier_at(u32 address) {
    shared_at(address, 8);
    std::map<u32, barrier_state> &all = block_of(address)->barriers;
    if (all.find(address & 0xffffff) == all.end()) emulated_error("a barrier that nobody made");
    return all[address & 0xffffff];
}
static inline void barrier_turn(barrier_state &b) {
    if (b.missing < 0) emulated_error("a barrier with more arrivals than it counts");
    if (b.missing == 0 && b.bytes == 0) b.missing = b.expected, b.phase ^= 1, machine.progress++;
}
static inline void barrier_init(u32 address, u32 count) {
    barrier_state b;
    shared_at(address, 8);
    if (address % 8) emulated_error("a barrier at an odd place");
    b.expected = b.missing = (int)count;
    machine.now->block->barriers[address] = b;
}
static inline void barriers_publish() {}
static inline void barrier_expect(u32 address, u32 bytes) {
    barrier_state &b = barrier_at(address);
    b.bytes += bytes, b.missing--;
    barrier_turn(b);
}
static inline void barrier_arrive(u32 address) { barrier_expect(address, 0); }
static inline void barrier_arrive_peer(u32 address) { barrier_arrive(address); }
static inline void barrier_wait(u32 address, u32 parity) {
    while (barrier_at(address).phase == parity) pause_thread();
}

/* ---- copies */

static inline void let_successor_start() {}
static inline void wait_for_predecessor() {
    for (u32 i = chance_of(6); i > 0; i--) pause_thread();
}
static inline u64 read_once_policy() { return 0; }
static inline u64 read_often_policy() { return 0; }
static inline void prefetch_l2(const void *) {}

/* A thread's own ones come at once, or when they are waited for or a barrier is told of them. */
static inline void copy16_async(u32 to, const void *from, bool valid) {
    char *there = shared_at(to, 16);
    std::vector<std::vector<std::function<void()>>> &groups = machine.now->copies;
    auto copy = [=]() { valid ? memcpy(there, from, 16) : memset(there, 0, 16); };
    if (groups.empty()) groups.emplace_back();
    if (chance_of(2)) copy();
    else groups.back().push_back(copy);
}
static inline void copies_commit() {
    if (machine.now->copies.empty()) machine.now->copies.emplace_back();
    machine.now->copies.emplace_back();
}
template <int PENDING> static inline void copies_wait() {
    std::vector<std::vector<std::function<void()>>> &groups = machine.now->copies;
    while (groups.size() > PENDING + 1) {  /* (the open one has not been committed) */
        for (auto &copy : groups.front()) copy();
        groups.erase(groups.begin());
    }
}

/* The arrival comes with the copies. */
static inline void barrier_arrive_copied(u32 address) {
    auto copies = std::move(machine.now->copies);
    barrier_state *b = &barrier_at(address);
    machine.now->copies.clear();
    machine.copies.push_back([=]() {
        if (chance_of(4)) return false;
        for (auto &group : copies)
            for (auto &copy : group) copy();
        b->missing--;
        barrier_turn(*b);
        return true;
    });
}

static inline void bytes_come(block_state *block, u32 barrier, u32 bytes) {
    barrier_state &b = block->barriers.at(barrier & 0xffffff);
    b.bytes -= bytes;
    barrier_turn(b);
}
static inline void fetch_box(block_state *block, u32 to, const tensor_map &from, int column, int row, u32 barrier) {
    matrix_map map = matrix_map_of(from);
    if (to % 1024 || to + (u32)map.box_rows * 128 > block->size) emulated_error("a box at an odd place");
    machine.copies.push_back([=]() {
        if (chance_of(4)) return false;
        if (!block->n_alive) emulated_error("a box for a block that has ended");
        for (int r = 0; r < map.box_rows; r++)
            for (int c = 0; c < 64; c++) {
                bool is_inside = row + r < map.rows && column + c < map.columns;
                bf16 value =
                    is_inside ? map.matrix[(size_t)(row + r) * (size_t)map.columns + (size_t)(column + c)] : bf16{0};
                memcpy(block->shared + to + r * 128 + (c / 8 ^ (r & 7)) * 16 + c % 8 * 2, &value, 2);
            }
        bytes_come(block, barrier, (u32)map.box_rows * 128);
        return true;
    });
}
static inline void copy_box(u32 to, const tensor_map *map, int column, int row, u32 barrier, u64) {
    fetch_box(machine.now->block, to, *map, column, row, barrier);
}
static inline void copy_box_to_peers(u32 to, const tensor_map *map, int column, int row, u32 barrier, u32 ranks, u64) {
    for (int rank = 0; rank < machine.cluster; rank++)
        if (ranks >> rank & 1) fetch_box(block_of(peer_address(0, rank)), to, *map, column, row, barrier);
}
/* Slow, so that whoever does not wait for it is found out. */
static inline void copy_to_peer(u32 to, u32 from, u32 bytes, u32 barrier) {
    block_state *source = machine.now->block, *target = block_of(to);
    char *there = shared_at(to, bytes), *here = shared_at(from, bytes);
    if (target == source || block_of(barrier) != target)
        emulated_error("a bulk copy to the block itself, or another's barrier");
    if ((to | from | bytes) % 16) emulated_error("a bulk copy at an odd place");
    machine.copies.push_back([=]() {
        if (chance_of(40)) return false;
        if (!source->n_alive || !target->n_alive) emulated_error("a bulk copy from or to a block that has ended");
        memcpy(there, here, bytes);
        bytes_come(target, barrier, bytes);
        return true;
    });
}

static inline void store_to_peer(u32 to, float4 x, u32 barrier) {
    block_state *target = block_of(to);
    char *there = shared_at(to, 16);
    if (block_of(barrier) != target) emulated_error("a store to a block, and another's barrier");
    machine.copies.push_back([=]() {
        if (chance_of(8)) return false;
        if (!target->n_alive) emulated_error("a store to a block that has ended");
        memcpy(there, &x, 16);
        bytes_come(target, barrier, 16);
        return true;
    });
}

static inline bool last_to_arrive(u32 *counter, u32 expected, int *shared_flag) {
    __syncthreads();
    if (threadIdx.x == 0) {
        *shared_flag = ++*counter == expected;
        if (*shared_flag) *counter = 0;
    }
    __syncthreads();
    return *shared_flag != 0;
}

/* ---- matrix units. Lane l holds of a left operand rows l/4 and 8 further, columns 2*(l%4), the next, and both 8
   further. */

static inline void load_matrices_from(u32 (&r)[4], u32 address, bool transposed) {
    u64(&lanes)[32][8] = warp_lanes();
    u32 lane = threadIdx.x & 31;
    lanes[lane][0] = address;
    __syncwarp();
    for (u32 i = 0; i < 4; i++)
        for (u32 half = 0; half < 2; half++) {
            u32 row = transposed ? lane % 4 * 2 + half : lane / 4, column = transposed ? lane / 4 : lane % 4 * 2 + half;
            memcpy((char *)&r[i] + half * 2, shared_at((u32)lanes[i * 8 + row][0], 16) + column * 2, 2);
        }
    __syncwarp();
}
static inline void load_matrices(u32 (&r)[4], u32 address) { load_matrices_from(r, address, false); }
static inline void load_matrices_transposed(u32 (&r)[4], u32 address) { load_matrices_from(r, address, true); }
static inline void multiply_tile(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    u64(&lanes)[32][8] = warp_lanes();
    u32 lane = threadIdx.x & 31;
    for (int i = 0; i < 4; i++) lanes[lane][i] = a[i];
    lanes[lane][4] = b0, lanes[lane][5] = b1;
    __syncwarp();
    for (u32 e = 0; e < 4; e++) {
        u32 row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
        for (u32 k = 0; k < 16; k++) {
            u64 left = lanes[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2],
                right = lanes[column * 4 + k % 8 / 2][4 + k / 8];
            c[e] += value_of((u16)(left >> k % 2 * 16)) * value_of((u16)(right >> k % 2 * 16));
        }
    }
    __syncwarp();
}

static inline void wide_begin() {}
static inline void wide_commit() {}
template <int PENDING> static inline void wide_wait() {
    if (chance_of(8) == 0) pause_thread();
}
/* Element of a matrix that a descriptor tells of (see matrix_descriptor); `column` of the 16 from there. */
static inline float wide_element(u64 descriptor, u32 row, u32 column) {
    u32 at = (u32)(descriptor & 0x3fff) << 4, byte = at % 128 + column * 2;
    bf16 value;
    if ((at - at % 128) % 1024) emulated_error("a matrix at an odd place");
    memcpy(&value, shared_at(at - at % 128 + row * 128 + (byte / 16 ^ (row & 7)) * 16 + byte % 16, 2), 2);
    return value_of(value.bits);
}
template <int N> static inline void multiply_wide(float (&c)[N / 2], u64 a, u64 b) {
    u32 lane = threadIdx.x & 31, first = threadIdx.x / 32 % 4 * 16 + lane / 4;
    for (u32 k = 0; k < 16; k++) {
        float rows[2] = {wide_element(a, first, k), wide_element(a, first + 8, k)};
        for (u32 i = 0; i < N / 2; i++) c[i] += rows[i / 2 % 2] * wide_element(b, i / 4 * 8 + lane % 4 * 2 + i % 2, k);
    }
}

/* ---- launching */

static inline void run_thread() {
    machine.kernel();
    machine.now->ended = true;
    machine.progress++;
    if (--machine.now->block->n_alive == 0)
        memset(machine.now->block->shared, 0xff, machine.now->block->size); /* its successor's */
    pause_thread();
}

/* One round over all threads that may run: some blocks and some warps do not. */
static inline size_t run_round() {
    size_t n = machine.fibers.size(), first = machine.chance() % n, left = 0;
    u32 blocks = machine.chance(), warps = machine.chance();
    for (size_t i = 0; i < n; i++) {
        thread_state &t = machine.fibers[(first + i) % n];
        size_t block = (size_t)(t.block - machine.blocks.data());
        if (t.ended) continue;
        left++;
        if ((blocks >> block % 16 & 3) == 0 || (warps >> (t.index.x / 32 + block) % 16 & 3) == 0) continue;
        machine.now = &t;
        swapcontext(&machine.scheduler, &t.context);
    }
    for (size_t i = 0; i < machine.copies.size();)
        if (machine.copies[i]()) machine.copies.erase(machine.copies.begin() + (long)i), machine.progress++;
        else i++;
    return left;
}

/* Shared memory begins as NaN. */
static inline void launch_emulated(std::function<void()> kernel, dim3 grid, int threads, int cluster, u32 shared,
                                   u32 seed) {
    const size_t stack = 96 * 1024, n_blocks = (size_t)grid.x * grid.y * grid.z;
    static std::vector<std::vector<char>> stacks;
    long last = -1;
    int idle = 0;
    machine.kernel = kernel, machine.grid = grid, machine.threads = threads, machine.cluster = cluster;
    machine.chance.seed(seed);
    machine.blocks.assign(n_blocks, block_state());
    machine.clusters.assign(n_blocks / (size_t)cluster, meeting());
    machine.fibers.assign(n_blocks * (size_t)threads, thread_state());
    while (stacks.size() < machine.fibers.size()) stacks.emplace_back(stack);
    for (size_t i = 0; i < n_blocks; i++) {
        block_state &b = machine.blocks[i];
        b.index = {(u32)(i % grid.x), (u32)(i / grid.x % grid.y), (u32)(i / grid.x / grid.y)};
        b.size = shared, b.n_alive = (u32)threads;
        b.room.assign(shared / 16 + 65, {~0u, ~0u, ~0u, ~0u});
        b.shared = (char *)b.room.data() + (1024 - (size_t)b.room.data() % 1024) % 1024;
    }
    for (size_t i = 0; i < machine.fibers.size(); i++) {
        thread_state &t = machine.fibers[i];
        t.block = &machine.blocks[i / (size_t)threads];
        t.index = {(u32)(i % (size_t)threads), 0, 0};
        getcontext(&t.context);
        t.context.uc_stack.ss_sp = stacks[i].data(), t.context.uc_stack.ss_size = stack;
        makecontext(&t.context, run_thread, 0);
    }
    while (run_round()) {
        idle = machine.progress == last && machine.copies.empty() ? idle + 1 : 0;
        last = machine.progress;
        if (idle > 2000) emulated_error("nothing goes on");
    }
    if (!machine.copies.empty()) emulated_error("copies on their way after the kernel's end");
}
#endif
