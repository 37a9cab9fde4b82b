#ifndef SECTION_GUARD_KERNELS_CEILINGS
#define SECTION_GUARD_KERNELS_CEILINGS

#include "device.cuh"

// ---- Ceilings
// --------------------------------------------------------------------------------------------------------------

// Reads n 16-byte pieces and nothing else, so it need not wait for its predecessor. Any grid; *out is never
// written in practice.
extern "C" __global__ void __launch_bounds__(TSK__CUDA_THREADS_read_stream)
    read_stream(const tsk__cuda_read_stream_args args) {
    const uint4 *p = (const uint4 *)args.from;
    u32 mixed = 0;
    u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x, step = (u64)gridDim.x * blockDim.x;
    for (; i + 3 * step < args.n; i += 4 * step) {
        uint4 a = p[i], b = p[i + step], c = p[i + 2 * step], d = p[i + 3 * step];
        mixed ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    if (mixed == 0x12345678) *args.out = mixed;
}

#endif /* SECTION_GUARD_KERNELS_CEILINGS */
