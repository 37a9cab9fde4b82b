#ifndef SECTION_GUARD_KERNELS_PIECES
#define SECTION_GUARD_KERNELS_PIECES

#include "device.cuh"

// ---- Pieces of 16 bytes
// -----------------------------------------------------------------------------------------------

// Rows of 16-byte pieces in shared memory, piece p of row r at place p ^ (r & 7): eight rows' equal pieces, which the
// matrix units load together, lie in different banks. With 8 pieces a row it is what the copy engine writes (128-byte
// swizzle).
static __device__ __forceinline__ u32 swizzled(int row, int piece, int pieces_a_row) {
    return (u32)(row * pieces_a_row + (piece ^ (row & 7))) * 16;
}

// RoPE of 8 neighbouring values: `own` rotated with its partners half a head away; sign -1 for the first half, +1 for
// the second.
static __device__ __forceinline__ uint4 rope_piece(uint4 own, uint4 other, const float2 *rope, float sign) {
    u32 x[4] = {own.x, own.y, own.z, own.w}, y[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 r0 = rope[2 * i], r1 = rope[2 * i + 1];
        x[i] = pack_bf16(low_f32(x[i]) * r0.x + sign * low_f32(y[i]) * r0.y,
                         high_f32(x[i]) * r1.x + sign * high_f32(y[i]) * r1.y);
    }
    return make_uint4(x[0], x[1], x[2], x[3]);
}

static __device__ __forceinline__ void store_pieces(bf16 *to, uint4 low, uint4 high, int half) {
    *(uint4 *)to = low;
    *(uint4 *)(to + half) = high;
}

#endif /* SECTION_GUARD_KERNELS_PIECES */
