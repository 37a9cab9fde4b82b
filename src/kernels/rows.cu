#ifndef SECTION_GUARD_KERNELS_ROWS
#define SECTION_GUARD_KERNELS_ROWS

#include "device.cuh"
#include "norm.cuh"
#include "pieces.cuh"
#include "moving.cu"

// ---- Row-wise kernels, for both activation types
// -------------------------------------------------------------------------

// squares[tile] of one row, in the order in which finish_out makes them. Block 256.
template <class T> static __device__ __forceinline__ void row_squares(const T *x, int d, float *squares) {
    for (int first = threadIdx.x * 8; first < (d + 255) / 256 * 256; first += 256 * 8) {
        float sum = 0.0f;
        if (sizeof(T) == 2 && d % 8 == 0) {
            if (first < d) sum = squares_of_piece(*(const uint4 *)(x + first));
        } else
            for (int i = first; i < first + 8; i++) {
                float value = i < d ? load(x + i) : 0.0f;
                sum += value * value;
            }
        sum = lanes_sum<SQUARES_TILE / 8>(sum);
        if (first % SQUARES_TILE == 0 && first < d) squares[first / SQUARES_TILE] = sum;
    }
}

// The first half of a norm of one row (see RMS norm above). Block 256.
static __device__ __forceinline__ void pre_norm_row(const bf16 *x, const bf16 *weight, bf16 *normed, float *squares,
                                                    int d) {
    row_squares(x, d, squares);
    for (int i = threadIdx.x; i < d / 8; i += 256)
        ((uint4 *)normed)[i] = multiply_piece(((const uint4 *)x)[i], ((const uint4 *)weight)[i]);
}
static __device__ __forceinline__ void pre_norm_row(const float *, const float *, float *, float *, int) {}
// After something other than a linear map wrote x. Grid n.
extern "C" __global__ void __launch_bounds__(TSK__CUDA_THREADS_pre_norm) pre_norm(const tsk__cuda_pre_norm_args a) {
    u64 row = blockIdx.x;
    let_successor_start();
    wait_for_predecessor();
    pre_norm_row(a.x + row * a.d, a.weight, a.normed + row * a.d, a.squares + row * squares_row(a.d), a.d);
}

// x[i] = embedding[token of row i], where active; and the first half of the first norm where there is its `weight`.
// Grid n. Equals embed.
template <class T> static __device__ __forceinline__ void embed(const tsk__cuda_embed_args &a) {
    let_successor_start();
    wait_for_predecessor();
    u64 row = blockIdx.x;
    int d = a.d;
    T *x = (T *)a.x + row * d;
    row_entry entry = a.table.rows[row];
    const int *canvas = a.table.caches[entry.request].tokens;
    const T *from = (const T *)a.embedding + (u64)(canvas ? canvas[entry.position] : entry.token) * d;
    if (entry.active) copy_row(x, from, d);
    if (a.weight)
        pre_norm_row(entry.active ? from : x, (const T *)a.weight, (T *)a.normed + row * d,
                     a.squares + row * squares_row(d), d);
}
KERNEL_OF_BOTH_TYPES(embed)

// A norm's first pieces of x and weight, two a thread, stay in registers between the sums and the result.
struct norm_pieces {
    static const int count = 2, columns = count * TSK__CUDA_THREADS_norm * 8;
    uint4 x[count], weight[count];
    static __device__ __forceinline__ int column(int i) { return (i * TSK__CUDA_THREADS_norm + (int)threadIdx.x) * 8; }
    __device__ __forceinline__ void load(uint4 (&pieces)[count], const void *from, int d) {
#pragma unroll
        for (int i = 0; i < count; i++)
            pieces[i] = column(i) < d ? *(const uint4 *)((const bf16 *)from + column(i)) : make_uint4(0, 0, 0, 0);
    }
    // In the order in which row_squares makes them.
    __device__ __forceinline__ void make_squares(float *squares, int d) const {
#pragma unroll
        for (int i = 0; i < count; i++) {
            float sum = lanes_sum<SQUARES_TILE / 8>(squares_of_piece(x[i]));
            if (column(i) % SQUARES_TILE == 0 && column(i) < d) squares[column(i) / SQUARES_TILE] = sum;
        }
    }
    __device__ __forceinline__ void store(void *to, float scale, int d) const {
#pragma unroll
        for (int i = 0; i < count; i++)
            if (column(i) < d) *(uint4 *)((bf16 *)to + column(i)) = normalised(x[i], scale, weight[i]);
    }
};
// out[i] = rms(x[index[i]]) * weight, index NULL: i. Grid n, shared memory 4 * squares_row(d) bytes.
template <class T> static __device__ __forceinline__ void norm(const tsk__cuda_norm_args &a) {
    extern __shared__ __align__(16) float tile_squares[];
    int d = a.d;
    const T *weight = (const T *)a.weight;
    T *out = (T *)a.out + (u64)blockIdx.x * d;
    bool is_short = sizeof(T) == 2 && d % 8 == 0 && d <= norm_pieces::columns;
    norm_pieces pieces;
    if (is_short) pieces.load(pieces.weight, weight, d);
    let_successor_start();
    wait_for_predecessor();
    const T *x = (const T *)a.x + (u64)(a.index ? a.index[blockIdx.x] : (int)blockIdx.x) * d;
    if (is_short) {
        pieces.load(pieces.x, x, d);
        pieces.make_squares(tile_squares, d);
    } else row_squares(x, d, tile_squares);
    __syncthreads();
    float scale = row_scale(tile_squares, d, a.eps, threadIdx.x & 7);  // by every warp for itself
    if (is_short) {
        pieces.store(out, scale, d);
        return;
    }
    if (sizeof(T) == 2 && d % 8 == 0) {
        for (int i = threadIdx.x; i < d / 8; i += TSK__CUDA_THREADS_norm)
            ((uint4 *)out)[i] = normalised(((const uint4 *)x)[i], scale, ((const uint4 *)weight)[i]);
        return;
    }
    for (int i = threadIdx.x; i < d; i += TSK__CUDA_THREADS_norm)
        store(out + i, rounded(load(x + i) * scale, x) * load(weight + i));
}

KERNEL_OF_BOTH_TYPES(norm)

// rms of each head of q and k, times the weight; for families that norm them. A warp a head, in an order that depends
// on head_dim only. Grid n.
template <class T> static __device__ __forceinline__ void norm_heads(const tsk__cuda_norm_heads_args &a) {
    let_successor_start();
    wait_for_predecessor();
    int hd = a.head_dim, half = hd / 2, row = blockIdx.x, lane = threadIdx.x & 31;
    T *y = (T *)a.y + (u64)row * (a.n_heads + 2 * a.n_kv_heads) * hd;
    for (int head = threadIdx.x / 32; head < a.n_heads + a.n_kv_heads; head += TSK__CUDA_THREADS_norm_heads / 32) {
        int is_q = head < a.n_heads;
        const T *weight = (const T *)(is_q ? a.q_weight : a.k_weight);
        T *at = y + (u64)head * hd, *kept = (T *)a.captures[is_q ? 0 : 1];
        if (kept)
            kept += is_q ? ((u64)row * a.n_heads + head) * hd : ((u64)row * a.n_kv_heads + head - a.n_heads) * hd;
        float sum = 0.0f, scale;
        for (int i = lane; i < hd; i += 32) sum += load(at + i) * load(at + i);
        scale = rsqrtf(lanes_sum<32>(sum) / (float)hd + a.eps);
        for (int i = lane; i < hd; i += 32) {
            int d = half % 8 ? i : i / 16 * 8 + i % 8 + (i / 8 % 2) * half;  // see TSK__CUDA_ROWS_HALVES
            if (kept) store(kept + d, load(at + i));
            store(at + i, rounded(load(at + i) * scale, at) * load(weight + d));
        }
    }
}

KERNEL_OF_BOTH_TYPES(norm_heads)

// Where 8 neighbouring values, or one, of a row's q, k or v come from and go to.
template <class T> struct rope_place {
    int d, is_v, apart;      // apart: from a value to its partner in y
    u64 at, row_at;
    T *before, *after, *to;  // before RoPE and after for a trace (NULL: not wanted); NULL: the row is inactive
};
// `first`: which of the (n_heads + 2 n_kv_heads) * head_dim / 2 places of a first half.
template <class T> static __device__ __forceinline__ rope_place<T> rope_place_of(const tsk__cuda_rope_cache_args &a,
                                                                                 const row_entry &entry,
                                                                                 const cache_entry &cache, int first) {
    int hd = a.head_dim, half = hd / 2, head = first / half, kv = head - a.n_heads, row = blockIdx.x;
    rope_place<T> p;
    p.d = first - head * half;
    p.apart = half % 8 ? half : 8;  // see TSK__CUDA_ROWS_HALVES
    p.at = (u64)head * hd + (half % 8 ? p.d : p.d / 8 * 16 + p.d % 8);
    p.is_v = kv >= a.n_kv_heads;
    if (p.is_v) kv -= a.n_kv_heads;
    p.row_at = ((u64)row * (head < a.n_heads ? a.n_heads : a.n_kv_heads) + (head < a.n_heads ? head : kv)) * hd + p.d;
    p.before = (T *)(head < a.n_heads ? a.captures[0] : p.is_v ? a.captures[2] : a.captures[1]);
    p.after = (T *)(head < a.n_heads || p.is_v ? 0 : a.captures[3]);
    p.to = (T *)a.q + ((u64)row * a.n_heads + head) * hd + p.d;
    if (head >= a.n_heads)
        p.to = (T *)(p.is_v ? cache.v : cache.k) + (a.layer_offset + (u64)kv * hd) * cache.capacity +
               (u64)entry.position * hd + p.d;
    if (head >= a.n_heads && !entry.active) p.to = 0;
    return p;
}
static __device__ __forceinline__ u32 add_bias(u32 x, u32 bias) {
    return pack_bf16(low_f32(x) + low_f32(bias), high_f32(x) + high_f32(bias));
}
static __device__ __forceinline__ uint4 add_bias(uint4 x, const bf16 *bias) {
    uint4 b = *(const uint4 *)bias;
    return make_uint4(add_bias(x.x, b.x), add_bias(x.y, b.y), add_bias(x.z, b.z), add_bias(x.w, b.w));
}
// The same 16 bytes at a time; head_dim % 16 == 0.
static __device__ __forceinline__ void rope_cache_pieces(const tsk__cuda_rope_cache_args &a, const row_entry &entry,
                                                         const cache_entry &cache, const bf16 *y, const bf16 *bias) {
    int half = a.head_dim / 2, row = blockIdx.x, pieces = (a.n_heads + 2 * a.n_kv_heads) * half / 8;
    for (int i = threadIdx.x; i < pieces; i += TSK__CUDA_THREADS_rope_cache) {
        rope_place<bf16> p = rope_place_of<bf16>(a, entry, cache, i * 8);
        uint4 low = *(const uint4 *)(y + p.at), high = *(const uint4 *)(y + p.at + p.apart);
        if (bias) low = add_bias(low, bias + p.at), high = add_bias(high, bias + p.at + p.apart);
        if (p.before) store_pieces(p.before + p.row_at, low, high, half);
        if (!p.is_v) {
            const float2 *turn = a.table.rope + (u64)row * half + p.d;
            uint4 turned = rope_piece(low, high, turn, -1.0f);
            high = rope_piece(high, low, turn, 1.0f);
            low = turned;
        }
        if (p.after) store_pieces(p.after + p.row_at, low, high, half);
        if (p.to) store_pieces(p.to, low, high, half);
    }
}
static __device__ __forceinline__ void rope_cache_pieces(const tsk__cuda_rope_cache_args &, const row_entry &,
                                                         const cache_entry &, const float *, const float *) {}
// RoPE of y + bias; q goes to its buffer, k and v to the cache. Grid n.
template <class T> static __device__ __forceinline__ void rope_cache(const tsk__cuda_rope_cache_args &a) {
    int half = a.head_dim / 2, row = blockIdx.x, heads = a.n_heads + 2 * a.n_kv_heads;
    row_entry entry = a.table.rows[row];  // while the predecessor ends, like all that it does not write
    cache_entry cache = a.table.caches[entry.request];
    let_successor_start();
    wait_for_predecessor();
    const T *y = (const T *)a.y + (u64)row * heads * a.head_dim, *bias = (const T *)a.bias;
    if (sizeof(T) == 2 && half % 8 == 0) {
        rope_cache_pieces(a, entry, cache, y, bias);
        return;
    }
    for (int i = threadIdx.x; i < heads * half; i += TSK__CUDA_THREADS_rope_cache) {
        rope_place<T> p = rope_place_of<T>(a, entry, cache, i);
        float low = load(y + p.at), high = load(y + p.at + p.apart);
        if (bias) low = rounded(low + load(bias + p.at), y), high = rounded(high + load(bias + p.at + p.apart), y);
        if (p.before) store(p.before + p.row_at, low), store(p.before + p.row_at + half, high);
        if (!p.is_v) {
            float2 r = a.table.rope[(u64)row * half + p.d];
            float turned = low * r.x - high * r.y;
            high = high * r.x + low * r.y;
            low = turned;
        }
        if (p.after) store(p.after + p.row_at, low), store(p.after + p.row_at + half, high);
        if (p.to) store(p.to, low), store(p.to + half, high);
    }
}

KERNEL_OF_BOTH_TYPES(rope_cache)

// hidden = silu(gate) * up of y + bias. Grid (n, ceil(mlp / 8 / threads)).
template <class T> static __device__ __forceinline__ void silu(const tsk__cuda_silu_args &a) {
    const T *y = (const T *)a.y, *bias = (const T *)a.bias;
    T *hidden = (T *)a.hidden, *captured_gate = (T *)a.captured_gate, *captured_up = (T *)a.captured_up;
    int mlp = a.mlp;
    let_successor_start();
    wait_for_predecessor();
    int group = blockIdx.y * TSK__CUDA_THREADS_silu + threadIdx.x, groups = (mlp + 7) / 8;
    u64 row = blockIdx.x;
    if (group >= groups) return;
    float gate[8], up[8];
    const T *from = y + (row * groups + group) * 16;
    if (sizeof(T) == 2) {
        uint4 g = ((const uint4 *)from)[0], u = ((const uint4 *)from)[1];
        u32 gs[4] = {g.x, g.y, g.z, g.w}, us[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
        for (int i = 0; i < 8; i++)
            gate[i] = i & 1 ? high_f32(gs[i / 2]) : low_f32(gs[i / 2]),
            up[i] = i & 1 ? high_f32(us[i / 2]) : low_f32(us[i / 2]);
    } else
#pragma unroll
        for (int i = 0; i < 8; i++) gate[i] = load(from + i), up[i] = load(from + 8 + i);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (bias)
            gate[i] = rounded(gate[i] + load(bias + group * 16 + i), y),
            up[i] = rounded(up[i] + load(bias + group * 16 + 8 + i), y);
        u64 at = row * mlp + group * 8 + i;
        if (group * 8 + i < mlp) {
            if (captured_gate) store(captured_gate + at, gate[i]);
            if (captured_up) store(captured_up + at, up[i]);
        }
        gate[i] = rounded(sizeof(T) == 2 ? silu_fast(gate[i]) : silu(gate[i]), y) * up[i];
    }
    T *to = hidden + row * mlp + group * 8;
    if (sizeof(T) == 2 && mlp % 8 == 0)
        *(uint4 *)to = make_uint4(pack_bf16(gate[0], gate[1]), pack_bf16(gate[2], gate[3]),
                                  pack_bf16(gate[4], gate[5]), pack_bf16(gate[6], gate[7]));
    else
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (group * 8 + i < mlp) store(to + i, gate[i]);
}

KERNEL_OF_BOTH_TYPES(silu)

// x += y + bias, rows with active 0 excepted. Grid n.
template <class T> static __device__ __forceinline__ void residual(const tsk__cuda_residual_args &a) {
    const T *y = (const T *)a.y, *bias = (const T *)a.bias;
    T *x = (T *)a.x, *captured = (T *)a.captured;
    int d = a.d;
    let_successor_start();
    wait_for_predecessor();
    u64 row = blockIdx.x;
    bool active = a.table.rows[row].active != 0;
    for (int i = threadIdx.x; i < d; i += TSK__CUDA_THREADS_residual) {
        float value = load(y + row * d + i);
        if (bias) value = rounded(value + load(bias + i), y);
        if (captured) store(captured + row * d + i, value);
        if (active) store(x + row * d + i, load(x + row * d + i) + value);
    }
}

KERNEL_OF_BOTH_TYPES(residual)

#endif /* SECTION_GUARD_KERNELS_ROWS */
