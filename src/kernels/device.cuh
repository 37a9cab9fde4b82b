#ifndef SECTION_GUARD_KERNELS_DEVICE
#define SECTION_GUARD_KERNELS_DEVICE

#include "types.cuh"
#include "shared.h"

// ---- Shared structs by shorter names
// --------------------------------------------------------------------------------------

typedef tsk__cuda_row row_entry;
typedef tsk__cuda_cache cache_entry;
typedef tsk__cuda_tile tile_entry;
typedef tsk__cuda_table rows_table;
typedef tsk__cuda_draw draw_entry;
typedef tsk__cuda_prediction prediction_entry;
typedef tsk__cuda_head_entry head_entry;
typedef tsk__cuda_commit_candidate commit_candidate;
typedef tsk__cuda_transfer_rule transfer_rule;
typedef tsk__cuda_commit_rule commit_rule;
typedef tsk__cuda_choice choice_entry;
typedef tsk__cuda_tensor_map tensor_map;
typedef tsk__cuda_linear_args linear_args;
typedef tsk__cuda_attention_args attention_args;

// The kernels name_f32 and name_bf16 of a template `name`. (Arguments are passed by value, not as a __grid_constant__:
// the compiler then knows that they are the same for all threads, and takes branches that depend on them out of loops.)
#define KERNEL_OF_BOTH_TYPES(name) \
    extern "C" __global__ void __launch_bounds__(TSK__CUDA_THREADS_##name) \
        name##_f32(const tsk__cuda_##name##_args a) { name<float>(a); } \
    extern "C" __global__ void __launch_bounds__(TSK__CUDA_THREADS_##name) \
        name##_bf16(const tsk__cuda_##name##_args a) { name<bf16>(a); }

// ---- Small helpers
// ------------------------------------------------------------------------------------------------------

static __device__ __forceinline__ void let_successor_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
static __device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

static __device__ __forceinline__ float bits_to_f32(u32 bits) { return __uint_as_float(bits); }
static __device__ __forceinline__ float load(const float *p) { return *p; }
static __device__ __forceinline__ float load(const bf16 *p) { return bits_to_f32((u32)p->bits << 16); }
// Two f32 to packed bf16, round to nearest even; `low` lands in the low half.
static __device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
static __device__ __forceinline__ float low_f32(u32 packed) { return bits_to_f32(packed << 16); }
static __device__ __forceinline__ float high_f32(u32 packed) { return bits_to_f32(packed & 0xffff0000u); }
// Rounds to the activation type without leaving f32.
static __device__ __forceinline__ float rounded(float x, const float *) { return x; }
static __device__ __forceinline__ float rounded(float x, const bf16 *) { return low_f32(pack_bf16(x, 0.0f)); }
static __device__ __forceinline__ void store(float *p, float x) { *p = x; }
static __device__ __forceinline__ void store(bf16 *p, float x) { p->bits = (u16)pack_bf16(x, 0.0f); }
// a*b on both halves, rounded once: fma with -0 works from sm_80 on, mul.bf16x2 only from sm_90.
static __device__ __forceinline__ u32 multiply_bf16x2(u32 a, u32 b) {
    u32 product;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
    return product;
}

// bf16(bf16(x * scale) * weight) of 8 values, as the model's own rounding has it.
static __device__ __forceinline__ uint4 normalised(uint4 x, float scale, uint4 weight) {
    x.x = multiply_bf16x2(pack_bf16(low_f32(x.x) * scale, high_f32(x.x) * scale), weight.x);
    x.y = multiply_bf16x2(pack_bf16(low_f32(x.y) * scale, high_f32(x.y) * scale), weight.y);
    x.z = multiply_bf16x2(pack_bf16(low_f32(x.z) * scale, high_f32(x.z) * scale), weight.z);
    x.w = multiply_bf16x2(pack_bf16(low_f32(x.w) * scale, high_f32(x.w) * scale), weight.w);
    return x;
}

static __device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }
// 16 bytes to shared memory, asynchronously; zeros when !valid (the source is then not read).
static __device__ __forceinline__ void copy16_async(u32 to, const void *from, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
}
static __device__ __forceinline__ void prefetch_l2(const void *from) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}
static __device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> static __device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

static __device__ __forceinline__ void load_matrices(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}
static __device__ __forceinline__ void load_matrices_transposed(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}
// c[16, 8] += a[16, 16] * b[16, 8]. Lane l holds c rows l/4 (c0, c1) and l/4 + 8 (c2, c3), columns 2*(l%4) and the
// next.
static __device__ __forceinline__ void multiply_tile(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
static __device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
static __device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }
// For what is rounded to bf16 next.
static __device__ __forceinline__ float silu_fast(float x) { return __fdividef(x, 1.0f + exp2_fast(-1.44269504f * x)); }
// Sum over groups of `width` neighbouring lanes, the same tree every time.
template <int WIDTH> static __device__ __forceinline__ float lanes_sum(float x) {
#pragma unroll
    for (int step = 1; step < WIDTH; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
// Stands for minus infinity where a difference of two must not be NaN.
static __device__ const float NEGATIVE = -3.0e38f;

// Barriers in shared memory with phases: a phase ends when `count` arrivals have come, and announced bytes. A wait
// names the phase by its parity, so whoever waits must wait for every phase, or might take the last but one for the one
// meant.
static __device__ __forceinline__ void barrier_init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
static __device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(barrier) : "memory");
}
static __device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    u32 done;
    do {
#if __CUDA_ARCH__ >= 900
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
#else
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
#endif
    } while (!done);
}

// __syncthreads of the block's first THREADS threads.
template <int THREADS> static __device__ __forceinline__ void threads_sync() {
    asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory");
}

#if __CUDA_ARCH__ >= 900
// An arrival that announces bytes, which the copy engine reports as they come.
static __device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// What this thread has read and written of shared memory comes before what the copy engine does there after a barrier.
static __device__ __forceinline__ void fence_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// What a barrier_init left is there for the copy engine too.
static __device__ __forceinline__ void barriers_publish() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    fence_copies();
}
static __device__ __forceinline__ u64 read_once_policy() {
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
static __device__ __forceinline__ u64 read_often_policy() {
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
// A box of the map's size, from (column, row) on, to shared memory; zeros where the matrix ends.
static __device__ __forceinline__ void copy_box(u32 to, const tensor_map *map, int column, int row, u32 barrier,
                                                u64 policy) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
                 "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
                 : "memory");
}
#else
// An arrival that comes when this thread's copies so far have.
static __device__ __forceinline__ void barrier_arrive_copied(u32 barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}
#endif

// Whether this block is the last of `expected` to come here for `counter`, which is zero again afterwards. Global
// writes made by all threads of the earlier ones are then visible. Every thread of the block calls it.
static __device__ __forceinline__ bool last_to_arrive(u32 *counter, u32 expected, int *shared_flag) {
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 before;  // releases what the barrier gathered, and acquires what the earlier ones released
        asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
        if (before == expected - 1) *counter = 0;
        *shared_flag = before == expected - 1;
    }
    __syncthreads();
    return *shared_flag != 0;
}

#endif /* SECTION_GUARD_KERNELS_DEVICE */
