#ifndef SECTION_GUARD_KERNELS_LINEAR_FINISH
#define SECTION_GUARD_KERNELS_LINEAR_FINISH

#include "device.cuh"
#include "norm.cuh"
#include "draw.cuh"
#include "pieces.cuh"

// ---- Skinny linear maps (bf16): weights read once at memory speed
// --------------------------------------------------------- out[m, n] = input[m, k] * weights[n, k]^T for up to 64 rows
// m. A block makes whole tiles of 16 * pieces outputs, so many that all multiprocessors get the same number (the host
// chooses `pieces`): no sum waits for another block, but for the one that shares its columns.
//
//     a warp that fetches weights --> ring in shared memory --> 12 warps, each for 16 of the outputs and all rows;
//     a warp that fetches input   -->  stages of 64 columns     stages go round among `groups` of `pieces` warps
//
// (Before sm_90, which has the copy engine, four warps fetch both.)
// Weights depend on no predecessor: their ring is filled while it still runs, and goes on being filled through a tile's
// end, so that memory is never left idle. At a tile's end the groups' sums meet in shared memory, are added in order of
// the groups, and go through the map's epilogue. Weights are the left operand of the matrix units, the input the right
// one.
//
// From sm_90 on the two blocks of a cluster make a tile of out and down together, each from half of the columns: twice
// as wide, so that a block reads half as much of the input, which comes from L2 at little more than memory's rate. Each
// sends the other the sums of half of the rows, and finishes the other half.

#define LINEAR_CHUNK TSK__CUDA_LINEAR_CHUNK
#define LINEAR_WARPS TSK__CUDA_LINEAR_WARPS
#define LINEAR_GROUPS TSK__CUDA_LINEAR_GROUPS
#define LINEAR_THREADS (LINEAR_WARPS * 32)
#if __CUDA_ARCH__ >= 900
#define LINEAR_FETCHERS TSK__CUDA_LINEAR_FETCHERS
#else
#define LINEAR_FETCHERS TSK__CUDA_LINEAR_FETCHERS_80
#endif

// How long a row of sums is, and where a column lies in it: equal fours of neighbouring items are in different banks.
static __device__ constexpr int sums_row(int width) { return TSK__CUDA_SUMS_ROW(width); }
static __device__ __forceinline__ int sums_place(int column) { return column ^ (column >> 5 & 3) << 2; }

// A tile's sums and what is done to all of them.
struct linear_sums {
    const float *sums;          // [parts, part_rows, sums_row(width)], from first_row on; columns at sums_place
    const float *scales;        // [rows] of the norm
    const bf16 *bias;           // [n] or NULL
    int parts, part_rows, rows, width;
    int first_row, first;       // of `rows` input rows, and of the tile's outputs
    int n;
};
// What a thread does of a tile at a time: from `column` on of a row, as much as an epilogue's `step` says.
struct linear_item {
    int number, row, column, output;  // row: of the input
    template <class EPILOGUE> __device__ __forceinline__ void place(const linear_sums &t, int at) {
        int a_row = EPILOGUE::a_row(t.width);
        number = at;
        row = t.first_row + at / a_row;
        column = at % a_row * EPILOGUE::step;
        output = t.first + column;
    }
    // Whole warps go on together.
    template <class EPILOGUE> __device__ __forceinline__ bool exists(const linear_sums &t) const {
        return number / 32 * 32 < t.rows * EPILOGUE::a_row(t.width);
    }
};
// Results column .. column + 7 of a row.
static __device__ __forceinline__ void linear_result(const linear_sums &t, int row, int column, float (&y)[8]) {
    const int at_once = 3;  // all would not fit into the registers
    const float *from = t.sums + (u32)(row - t.first_row) * sums_row(t.width);
    int low = sums_place(column), high = low ^ 4;
#pragma unroll
    for (int e = 0; e < 8; e++) y[e] = 0.0f;
#pragma unroll
    for (int first = 0; first < LINEAR_GROUPS; first += at_once) {
        float4 parts[at_once][2];
#pragma unroll
        for (int i = 0; i < at_once; i++, from += t.part_rows * sums_row(t.width))
            if (first + i < t.parts)
                parts[i][0] = *(const float4 *)(from + low), parts[i][1] = *(const float4 *)(from + high);
#pragma unroll
        for (int i = 0; i < at_once; i++)
            if (first + i < t.parts) {
                y[0] += parts[i][0].x, y[1] += parts[i][0].y, y[2] += parts[i][0].z, y[3] += parts[i][0].w;
                y[4] += parts[i][1].x, y[5] += parts[i][1].y, y[6] += parts[i][1].z, y[7] += parts[i][1].w;
            }
    }
    float scale = t.scales[row];
#pragma unroll
    for (int e = 0; e < 8; e++)
        y[e] = y[e] * scale + (t.bias && t.first + column + e < t.n ? load(t.bias + t.first + column + e) : 0.0f);
}
static __device__ __forceinline__ uint4 pack_piece(const float (&y)[8]) {
    return make_uint4(pack_bf16(y[0], y[1]), pack_bf16(y[2], y[3]), pack_bf16(y[4], y[5]), pack_bf16(y[6], y[7]));
}

// The epilogues. `begin` and then `load` fetch what does not depend on the sums: load's addresses may depend on what
// begin fetched, so that a thread with several items begins them all before it loads the first.

// qkv: RoPE on q and k; q to its buffer, k and v to their rows of the cache unless the row is inactive. Of every 16
// outputs the second 8 are the first ones' partners in RoPE (see tsk__cuda_row_order).
struct qkv_epilogue {
    static const int step = 16;
    static __device__ constexpr int a_row(int width) { return width / step; }
    bool valid;
    int position, request, active, capacity;
    bf16 *cache;                // k's or v's
    float2 turn[8];
    // Of an item's outputs: the head, among q's or k's and v's, and the first partner's place in it.
    struct place {
        bool is_q, is_v;
        int head, d;
        __device__ __forceinline__ place(const linear_args &a, int output) {
            head = output / a.head_dim, d = (output - head * a.head_dim) / 2;
            is_q = head < a.n_heads, is_v = head >= a.n_heads + a.n_kv_heads;
            if (!is_q) head -= a.n_heads + (is_v ? a.n_kv_heads : 0);
        }
    };
    __device__ __forceinline__ void begin(const linear_args &a, const linear_item &i) {
        valid = i.row < a.m && i.output < a.n;
        if (!valid) return;
        const row_entry &entry = a.table.rows[i.row];
        position = entry.position, request = entry.request, active = entry.active;
    }
    __device__ __forceinline__ void load(const linear_args &a, const linear_item &i) {
        if (!valid) return;
        place p(a, i.output);
#pragma unroll
        for (int e = 0; e < 4; e++)
            ((float4 *)turn)[e] = ((const float4 *)(a.table.rope + (u64)i.row * (a.head_dim / 2) + p.d))[e];
        if (p.is_q) return;
        const cache_entry &entry = a.table.caches[request];
        cache = (bf16 *)(p.is_v ? entry.v : entry.k), capacity = entry.capacity;
    }
    __device__ __forceinline__ void finish(const linear_args &a, const linear_sums &t, const linear_item &i) const {
        if (!valid) return;
        place p(a, i.output);
        int half = a.head_dim / 2;
        u64 row_at = ((u64)i.row * (p.is_q ? a.n_heads : a.n_kv_heads) + p.head) * a.head_dim + p.d;
        bf16 *before = p.is_q ? a.captures[0] : p.is_v ? a.captures[2] : a.captures[1];
        float y[8];
        linear_result(t, i.row, i.column, y);
        uint4 low = pack_piece(y);
        linear_result(t, i.row, i.column + 8, y);
        uint4 high = pack_piece(y);
        if (before) store_pieces(before + row_at, low, high, half);
        if (!p.is_v) {
            uint4 turned = rope_piece(low, high, turn, -1.0f);
            high = rope_piece(high, low, turn, 1.0f);
            low = turned;
        }
        if (p.is_q) {
            store_pieces(a.out + row_at, low, high, half);
            return;
        }
        if (!p.is_v && a.captures[3]) store_pieces(a.captures[3] + row_at, low, high, half);
        if (active)
            store_pieces(cache + (a.layer_offset + (u64)p.head * a.head_dim) * capacity + (u64)position * a.head_dim +
                             p.d,
                         low, high, half);
    }
};

static __device__ __forceinline__ u32 add_bf16x2(u32 a, u32 b) {
    return pack_bf16(low_f32(a) + low_f32(b), high_f32(a) + high_f32(b));
}
// attn_out and down: x += projection unless the row is inactive, and what the next norm needs of it.
struct out_epilogue {
    static const int step = 8;
    static __device__ constexpr int a_row(int width) { return width / step; }
    bool valid;
    int active;
    uint4 x, norm;
    __device__ __forceinline__ void begin(const linear_args &, const linear_item &) {}
    __device__ __forceinline__ void load(const linear_args &a, const linear_item &i) {
        valid = i.row < a.m && i.output < a.n;
        x = make_uint4(0, 0, 0, 0);
        if (valid)
            x = *(const uint4 *)(a.out + (u64)i.row * a.n + i.output), norm = *(const uint4 *)(a.norm + i.output),
            active = a.table.rows[i.row].active;
    }
    __device__ __forceinline__ void finish(const linear_args &a, const linear_sums &t, const linear_item &i) const {
        uint4 sum = x;
        if (valid) {
            float y[8];
            linear_result(t, i.row, i.column, y);
            uint4 projection = pack_piece(y);
            if (active) {
                sum = make_uint4(add_bf16x2(x.x, projection.x), add_bf16x2(x.y, projection.y),
                                 add_bf16x2(x.z, projection.z), add_bf16x2(x.w, projection.w));
                *(uint4 *)(a.out + (u64)i.row * a.n + i.output) = sum;
            }
            if (a.captures[0]) *(uint4 *)(a.captures[0] + (u64)i.row * a.n + i.output) = projection;
            *(uint4 *)(a.normed + (u64)i.row * a.n + i.output) = multiply_piece(sum, norm);
        }
        float squares = lanes_sum<SQUARES_TILE / 8>(squares_of_piece(sum));
        if (valid && i.output % SQUARES_TILE == 0)
            a.squares_out[(u64)i.row * squares_row(a.n) + i.output / SQUARES_TILE] = squares;
    }
};

// gate_up: silu(gate) * up to hidden; 8 rows of gate and the same 8 of up alternate in the weights.
struct gate_up_epilogue {
    static const int step = 16;
    static __device__ constexpr int a_row(int width) { return width / step; }
    __device__ __forceinline__ void begin(const linear_args &, const linear_item &) {}
    __device__ __forceinline__ void load(const linear_args &, const linear_item &) {}
    __device__ __forceinline__ void finish(const linear_args &a, const linear_sums &t, const linear_item &i) const {
        const bf16 *type = 0;
        if (i.row >= a.m || i.output / 2 >= a.mlp) return;
        float gate[8], up[8];
        linear_result(t, i.row, i.column, gate);
        linear_result(t, i.row, i.column + 8, up);
        u64 at = (u64)i.row * a.mlp + i.output / 2;
        if (a.captures[0]) *(uint4 *)(a.captures[0] + at) = pack_piece(gate);
        if (a.captures[1]) *(uint4 *)(a.captures[1] + at) = pack_piece(up);
#pragma unroll
        for (int e = 0; e < 8; e++) gate[e] = rounded(silu_fast(rounded(gate[e], type)), type) * rounded(up[e], type);
        *(uint4 *)(a.out + at) = pack_piece(gate);
    }
};

// The head: every row's best id and sum of exponentials over the tile's ids, by 8 lanes a row.
struct head_epilogue {
    static const int step = 8;  // and every 64 columns again
    static __device__ constexpr int a_row(int) { return 8; }
    __device__ __forceinline__ void begin(const linear_args &, const linear_item &) {}
    __device__ __forceinline__ void load(const linear_args &, const linear_item &) {}
    __device__ __forceinline__ void finish(const linear_args &a, const linear_sums &t, const linear_item &i) const {
        head_entry best = head_none();
        if (i.row < a.m) {
            draw_entry draw = a.draws[i.row];
            for (int column = i.column; column < t.width; column += 64) {
                int id = t.first + column;
                float y[8];
                linear_result(t, i.row, column, y);
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    if (id + e >= a.n) continue;
                    if (a.logits) a.logits[(u64)i.row * a.n + id + e] = y[e];
                    best = head_merge(best, head_of(draw, id + e, y[e]));
                }
            }
        }
#pragma unroll
        for (int lanes = 1; lanes < 8; lanes *= 2) best = head_merge(best, head_shuffle(best, lanes));
        if (i.row < a.m && i.column == 0 && t.first < a.n) a.heads[(u64)(t.first / t.width) * a.m + i.row] = best;
    }
};

// All items of a tile, by THREADS threads; the first is loaded.
template <int THREADS, class EPILOGUE>
static __device__ __forceinline__ void finish_tile(const linear_args &a, const linear_sums &t, linear_item item,
                                                   EPILOGUE epilogue) {
    while (item.exists<EPILOGUE>(t)) {
        epilogue.finish(a, t, item);
        item.place<EPILOGUE>(t, item.number + THREADS);
        epilogue.begin(a, item);
        epilogue.load(a, item);
    }
}

#endif /* SECTION_GUARD_KERNELS_LINEAR_FINISH */
