#ifndef SECTION_GUARD_KERNELS_CLUSTER
#define SECTION_GUARD_KERNELS_CLUSTER

#include "device.cuh"

#if __CUDA_ARCH__ >= 900
// ---- Clusters: blocks that reach each other's shared memory
// ------------------------------------------------------------------

static __device__ __forceinline__ int cluster_rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// Orders nothing but barriers_publish and what has been waited for.
static __device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
static __device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
// The same place in another block's shared memory.
static __device__ __forceinline__ u32 peer_address(u32 address, int rank) {
    u32 there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}
// To another block's shared memory, whose barrier counts the bytes as they come.
static __device__ __forceinline__ void copy_to_peer(u32 to, u32 from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     to),
                 "r"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}
// 16 bytes, likewise.
static __device__ __forceinline__ void store_to_peer(u32 to, float4 x, u32 barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 "
                 "[%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
                 "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w), "r"(barrier)
                 : "memory");
}
static __device__ __forceinline__ void fence_cluster() { asm volatile("fence.acq_rel.cluster;" ::: "memory"); }
// Orders what the matrix units have read before; what threads have read or written only by fence_cluster.
static __device__ __forceinline__ void barrier_arrive_peer(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// To the same place of the blocks in `ranks`, whose barriers at the same place as this one's count the bytes.
static __device__ __forceinline__ void copy_box_to_peers(u32 to, const tensor_map *map, int column, int row,
                                                         u32 barrier, u32 ranks, u64 policy) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster."
                 "L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(to),
                 "l"(map), "r"(column), "r"(row), "r"(barrier), "h"((unsigned short)ranks), "l"(policy)
                 : "memory");
}
#endif

#endif /* SECTION_GUARD_KERNELS_CLUSTER */
