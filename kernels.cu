// kernels.cu: the CUDA kernels of TokenSkip, compiled at run time by NVRTC for the GPU at hand (sm_80 and up).
//
// It includes nothing. bf16 values travel as their 16 bits; arithmetic is f32 unless said otherwise, and the matrix units
// multiply bf16 with f32 accumulation. Conventions:
//   - Weights are [n_out, n_in] row-major, activations [rows, width] row-major, both with the inner size contiguous.
//   - A kernel named name_bf16 / name_f32 is one template instantiated for both activation types.
//   - "Equals" names the CPU operation of the backend table that the kernel, alone or with its neighbours, stands for.
//   - On sm_90 and later every kernel may start while its predecessor still runs (programmatic dependent launch): whatever
//     stands before wait_for_predecessor() may read weights and the row table only, and writes nothing global.
//   - No result depends on the order in which blocks run: partial sums are added in a fixed order, whoever adds them.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
struct bf16 { u16 bits; };

// ---- The row table (see tsk__rows): filled by pass_begin from the host's image, read by everything else ---------------

struct row_entry { int token, position, request, slot, active, number, pad[2]; };  // number: in the list of begin
struct cache_entry { char *k, *v, *states, *outputs; int length, capacity, n_slots, n_states, first_written, last_written, pad[2]; };  // positions that the pass replaces lie between
struct tile_entry { int first, count, request, pad; };  // consecutive rows of one request: what attention works on

struct rows_table {
    row_entry *rows;      // [n]
    cache_entry *caches;  // [n_requests]
    tile_entry *tiles;    // [n_tiles]
    float2 *rope;         // [n, head_dim / 2] (cos, sin) of each row's position
};

// ---- Small helpers ------------------------------------------------------------------------------------------------------

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
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
static __device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> static __device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

static __device__ __forceinline__ void load_matrices(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
static __device__ __forceinline__ void load_matrices_transposed(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
// c[16, 8] += a[16, 16] * b[16, 8]. Lane l holds c rows l/4 (c0, c1) and l/4 + 8 (c2, c3), columns 2*(l%4) and the next.
static __device__ __forceinline__ void multiply_tile(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
static __device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
static __device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }
// Sum over groups of `width` neighbouring lanes, the same tree every time.
template <int WIDTH> static __device__ __forceinline__ float lanes_sum(float x) {
#pragma unroll
    for (int step = 1; step < WIDTH; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
static __device__ const float NEGATIVE = -3.0e38f;  // stands for minus infinity where a difference of two must not be NaN

// Whether this block is the last of `expected` to come here for `counter`, which is zero again afterwards. Global writes
// made by all threads of the earlier ones are then visible. Every thread of the block calls it.
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

// ---- RMS norm -----------------------------------------------------------------------------------------------------------
// The sum of squares of a row is made in two stages, so that the kernel that writes x can leave the first one behind:
// squares[row, tile] over 128 columns (16 lanes of 8 values each), then the tiles by 8 lanes.

static __device__ __forceinline__ float row_scale(const float *squares, int n_tiles, int d, float eps, int lane8) {
    float sum = 0.0f;
    for (int t = lane8; t < n_tiles; t += 8) sum += squares[t];
    return rsqrtf(lanes_sum<8>(sum) / (float)d + eps);
}

// ---- Skinny linear maps (bf16): weights read once at memory speed ---------------------------------------------------------
// out[m, n] = input[m, k] * weights[n, k]^T for up to 64 rows m. The work is cut into tiles of 128 outputs times chunks of
// 64 inputs, numbered tile by tile, and every block gets the same number of consecutive chunks: all multiprocessors stream
// equally many bytes, in one wave. A tile that two or more blocks share is finished by whichever comes last, adding the
// parts in block order. Weights go through a ring of chunks in shared memory that is filled before the
// predecessor has finished; weights are the left operand of the matrix units, the activations the right one.

#define LINEAR_TILE 128
#define LINEAR_CHUNK 64
#define LINEAR_THREADS 256
#ifndef LINEAR_RING
#define LINEAR_RING 102400  // bytes of shared memory
#endif

struct linear_args {
    const bf16 *weights;        // [n, k]
    const bf16 *bias;           // [n] or NULL
    const bf16 *input;          // [rows, k]
    const int *index;           // [m] rows of input, or NULL: 0 .. m-1
    const bf16 *norm;           // [k] weight of the RMS norm applied to the input (qkv, gate_up and head)
    const float *squares_in;    // [rows, k / 128] of the input rows
    float eps;
    int m, n, k;
    float4 *partials;           // [2 * gridDim.x, accumulators of a block]
    u32 *counters;              // [tiles], zero between kernels
    rows_table table;
    bf16 *out;                  // qkv: q [m, n_heads*head_dim]; out_proj: x [m, n]; gate_up: hidden [m, mlp]
    float *squares_out;         // out_proj: [m, n / 128] of the new x
    int n_heads, n_kv_heads, head_dim, mlp;
    u64 layer_offset;           // qkv: layer * n_kv_heads * head_dim, times a cache's capacity: elements before the layer
    bf16 *tap0, *tap1, *tap2, *tap3;  // qkv: q, k, v before RoPE, k after; out_proj: projection; gate_up: gate, up. NULL: not wanted
    const struct draw_entry *draws;   // head: [m]
    struct head_entry *heads;         // head: [tiles, m]
    float *logits;                    // head: [m, n] or NULL
};

enum { LINEAR_QKV, LINEAR_OUT, LINEAR_GATE_UP, LINEAR_HEAD };

// ---- Random draws and the head's reduction ----

// Philox4x32-10; equals tsk_philox4x32.
static __device__ __forceinline__ void philox4x32(u32 (&c)[4], u32 k0, u32 k1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u32 high0 = __umulhi(0xD2511F53u, c[0]), low0 = 0xD2511F53u * c[0];
        u32 high1 = __umulhi(0xCD9E8D57u, c[2]), low1 = 0xCD9E8D57u * c[2];
        c[0] = high1 ^ c[1] ^ k0;
        c[1] = low1;
        c[2] = high0 ^ c[3] ^ k1;
        c[3] = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

struct draw_entry { float temperature; int mask_token_id; u64 seed; u32 position, pass; };  // is tsk__draw
struct prediction_entry { int id; float confidence, logit, log_sum_exp; };                  // is tsk__prediction
struct head_entry { double score; int id; float logit, max, sum; };  // best of some ids; sum of exp(logit - max) over all of them

static __device__ __forceinline__ head_entry head_none() {
    head_entry none = {-1.0 / 0.0, 0x7fffffff, 0.0f, NEGATIVE, 0.0f};
    return none;
}
static __device__ __forceinline__ double head_score(const draw_entry &draw, int id, float logit) {
    if (!(draw.temperature > 0.0f)) return (double)logit;
    u32 c[4] = {(u32)id >> 2, draw.position, draw.pass, 0};
    philox4x32(c, (u32)draw.seed, (u32)(draw.seed >> 32));
    u32 word = (id & 2) ? ((id & 1) ? c[3] : c[2]) : ((id & 1) ? c[1] : c[0]);
    double u = ((double)word + 0.5) * (1.0 / 4294967296.0);
    return (double)logit - (double)draw.temperature * log(-log(u));
}
static __device__ __forceinline__ head_entry head_of(const draw_entry &draw, int id, float logit) {
    head_entry e = head_none();
    e.max = logit;
    e.sum = 1.0f;
    if (id != draw.mask_token_id) {
        e.score = head_score(draw, id, logit);
        e.id = id;
        e.logit = logit;
    }
    return e;
}
static __device__ __forceinline__ head_entry head_merge(const head_entry &a, const head_entry &b) {
    head_entry e = (b.score > a.score || (b.score == a.score && b.id < a.id)) ? b : a;
    float max = fmaxf(a.max, b.max);
    e.sum = a.sum * expf(a.max - max) + b.sum * expf(b.max - max);
    e.max = max;
    return e;
}
static __device__ __forceinline__ head_entry head_shuffle(const head_entry &e, int lanes) {
    head_entry o;
    o.score = __shfl_xor_sync(0xffffffffu, e.score, lanes);
    o.id = __shfl_xor_sync(0xffffffffu, e.id, lanes);
    o.logit = __shfl_xor_sync(0xffffffffu, e.logit, lanes);
    o.max = __shfl_xor_sync(0xffffffffu, e.max, lanes);
    o.sum = __shfl_xor_sync(0xffffffffu, e.sum, lanes);
    return o;
}

// ---- The shared-memory tile of results: [rows, 128] bf16 in 16-byte pieces, piece p of row r at place p ^ (r & 7), so that
// neither the column-wise writes nor the row-wise reads meet in one bank.

static __device__ __forceinline__ u32 swizzled(int row, int piece, int pieces_a_row) { return (u32)(row * pieces_a_row + (piece ^ (row & 7))) * 16; }
static __device__ __forceinline__ uint4 tile_piece(const char *tile, int row, int piece) { return *(const uint4 *)(tile + swizzled(row, piece, 16)); }
static __device__ __forceinline__ void tile_set(char *tile, int row, int column, float x) {
    ((u16 *)(tile + swizzled(row, column >> 3, 16)))[column & 7] = (u16)pack_bf16(x, 0.0f);
}

// RoPE of 8 neighbouring values: `own` rotated with its partners half a head away; sign -1 for the first half, +1 for the second.
static __device__ __forceinline__ uint4 rope_piece(uint4 own, uint4 other, const float2 *rope, float sign) {
    u32 x[4] = {own.x, own.y, own.z, own.w}, y[4] = {other.x, other.y, other.z, other.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 r0 = rope[2 * i], r1 = rope[2 * i + 1];
        x[i] = pack_bf16(low_f32(x[i]) * r0.x + sign * low_f32(y[i]) * r0.y, high_f32(x[i]) * r1.x + sign * high_f32(y[i]) * r1.y);
    }
    return make_uint4(x[0], x[1], x[2], x[3]);
}

// Epilogue of qkv: RoPE on q and k; q to its buffer, k and v to their rows of the cache unless the row is inactive.
static __device__ __forceinline__ void finish_qkv(const linear_args &a, const char *tile, int first) {
    int pieces = a.m * 16, half = a.head_dim / 2;
    for (int i = threadIdx.x; i < pieces; i += LINEAR_THREADS) {
        int row = i >> 4, piece = i & 15, column = first + piece * 8;
        if (column >= a.n) continue;
        int head = column / a.head_dim, d = column - head * a.head_dim;
        uint4 value = tile_piece(tile, row, piece);
        row_entry entry = a.table.rows[row];
        int kv = head - a.n_heads, is_v = kv >= a.n_kv_heads;
        if (is_v) kv -= a.n_kv_heads;
        bf16 *tap = kv < 0 && !is_v ? a.tap0 : is_v ? a.tap2 : a.tap1;
        int tap_width = (head < a.n_heads ? a.n_heads : a.n_kv_heads) * a.head_dim, tap_column = (head < a.n_heads ? head : kv) * a.head_dim + d;
        if (tap) *(uint4 *)(tap + (u64)row * tap_width + tap_column) = value;
        if (!is_v) {
            int second = d >= half;
            uint4 other = tile_piece(tile, row, second ? piece - half / 8 : piece + half / 8);
            value = rope_piece(value, other, a.table.rope + (u64)row * half + (second ? d - half : d), second ? 1.0f : -1.0f);
        }
        if (head < a.n_heads) {
            *(uint4 *)(a.out + (u64)row * a.n_heads * a.head_dim + column) = value;
            continue;
        }
        if (!is_v && a.tap3) *(uint4 *)(a.tap3 + (u64)row * tap_width + tap_column) = value;
        if (!entry.active) continue;
        cache_entry cache = a.table.caches[entry.request];
        bf16 *to = (bf16 *)(is_v ? cache.v : cache.k) + a.layer_offset * cache.capacity;
        *(uint4 *)(to + ((u64)kv * cache.capacity + entry.position) * a.head_dim + d) = value;
    }
}

static __device__ __forceinline__ u32 add_bf16x2(u32 a, u32 b, float &squares, bool write) {
    u32 sum = write ? pack_bf16(low_f32(a) + low_f32(b), high_f32(a) + high_f32(b)) : a;
    squares += low_f32(sum) * low_f32(sum);
    squares += high_f32(sum) * high_f32(sum);
    return sum;
}
// Epilogue of attn_out and down: x += projection unless the row is inactive, and the squares of what x is now.
static __device__ __forceinline__ void finish_out(const linear_args &a, const char *tile, int tile_index) {
    int first = tile_index * LINEAR_TILE;
    for (int i = threadIdx.x; i < (a.m + 1) / 2 * 32; i += LINEAR_THREADS) {  // whole warps: lanes_sum needs them
        int row = i >> 4, piece = i & 15, column = first + piece * 8;
        bool valid = row < a.m && column < a.n;
        float squares = 0.0f;
        if (valid) {
            uint4 y = tile_piece(tile, row, piece), *to = (uint4 *)(a.out + (u64)row * a.n + column), x = *to;
            bool active = a.table.rows[row].active != 0;
            x.x = add_bf16x2(x.x, y.x, squares, active);
            x.y = add_bf16x2(x.y, y.y, squares, active);
            x.z = add_bf16x2(x.z, y.z, squares, active);
            x.w = add_bf16x2(x.w, y.w, squares, active);
            if (active) *to = x;
            if (a.tap0) *(uint4 *)(a.tap0 + (u64)row * a.n + column) = y;
        }
        squares = lanes_sum<16>(squares);
        if (valid && piece == 0) a.squares_out[(u64)row * ((a.n + 127) / 128) + tile_index] = squares;
    }
}
// Epilogue of gate_up: the tile's 64 products to hidden.
static __device__ __forceinline__ void finish_gate_up(const linear_args &a, const char *tile, int tile_index) {
    int first = tile_index * (LINEAR_TILE / 2);
    for (int i = threadIdx.x; i < a.m * 8; i += LINEAR_THREADS) {
        int row = i >> 3, piece = i & 7, column = first + piece * 8;
        if (column < a.mlp) *(uint4 *)(a.out + (u64)row * a.mlp + column) = tile_piece(tile, row, piece);
    }
}

template <int M, int KIND> struct linear_shape {
    static const int warps_m = M >= 64 ? 2 : 1, warps_n = 8 / warps_m;  // how the 8 warps share a tile
    static const int n_sub = LINEAR_TILE / 16 / warps_n;                // 16-output pieces of a warp
    static const int m_sub = M / 8 / warps_m;                           // 8-row pieces of a warp
    static const int stage_bytes = (LINEAR_TILE + M) * LINEAR_CHUNK * 2;
    static const int stages = LINEAR_RING / stage_bytes;
    static const bool normed = KIND != LINEAR_OUT;
};

// Epilogue of the head: every row's best id and sum of exponentials over the tile's 128 ids.
template <int M, int KIND>
static __device__ __forceinline__ void finish_head(const linear_args &a, float (&acc)[linear_shape<M, KIND>::n_sub][linear_shape<M, KIND>::m_sub][4],
                                                   char *scratch, int tile_index) {
    typedef linear_shape<M, KIND> shape;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warp_n = warp % shape::warps_n, warp_m = warp / shape::warps_n;
    head_entry *parts = (head_entry *)scratch;  // [warps_n, M]
#pragma unroll
    for (int j = 0; j < shape::m_sub; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = warp_m * (M / shape::warps_m) + j * 8 + (lane & 3) * 2 + half;
            head_entry best = head_none();
            if (row < a.m) {
                draw_entry draw = a.draws[row];
#pragma unroll
                for (int i = 0; i < shape::n_sub * 2; i++) {
                    int id = tile_index * LINEAR_TILE + (warp_n * shape::n_sub + i / 2) * 16 + (i & 1) * 8 + (lane >> 2);
                    float logit = acc[i / 2][j][(i & 1) * 2 + half] + (a.bias && id < a.n ? load(a.bias + id) : 0.0f);
                    if (id >= a.n) continue;
                    if (a.logits) a.logits[(u64)row * a.n + id] = logit;
                    best = head_merge(best, head_of(draw, id, logit));
                }
            }
            for (int lanes = 4; lanes < 32; lanes *= 2) best = head_merge(best, head_shuffle(best, lanes));
            if (lane < 4) parts[warp_n * M + row] = best;
        }
    __syncthreads();
    for (int row = threadIdx.x; row < a.m; row += LINEAR_THREADS) {
        head_entry best = parts[row];
        for (int w = 1; w < shape::warps_n; w++) best = head_merge(best, parts[w * M + row]);
        a.heads[(u64)tile_index * a.m + row] = best;
    }
}

// Everything after a tile's sums are complete.
template <int M, int KIND>
static __device__ __forceinline__ void finish_tile(const linear_args &a, float (&acc)[linear_shape<M, KIND>::n_sub][linear_shape<M, KIND>::m_sub][4],
                                                   char *scratch, int tile_index) {
    typedef linear_shape<M, KIND> shape;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warp_n = warp % shape::warps_n, warp_m = warp / shape::warps_n;
    if (KIND == LINEAR_HEAD) finish_head<M, KIND>(a, acc, scratch, tile_index);
#pragma unroll
    for (int i = 0; i < (KIND == LINEAR_HEAD ? 0 : shape::n_sub); i++) {
        int sub = warp_n * shape::n_sub + i, n0 = tile_index * LINEAR_TILE + sub * 16 + (lane >> 2);
        float bias0 = a.bias && n0 < a.n ? load(a.bias + n0) : 0.0f, bias1 = a.bias && n0 + 8 < a.n ? load(a.bias + n0 + 8) : 0.0f;
#pragma unroll
        for (int j = 0; j < shape::m_sub; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = warp_m * (M / shape::warps_m) + j * 8 + (lane & 3) * 2 + half;
                float y0 = acc[i][j][half] + bias0, y1 = acc[i][j][2 + half] + bias1;
                if (KIND == LINEAR_GATE_UP) {  // 8 rows of gate and the same 8 of up alternate in the weights
                    const bf16 *type = 0;
                    float gate = rounded(y0, type), up = rounded(y1, type);
                    int column = tile_index * 64 + sub * 8 + (lane >> 2);
                    if (a.tap0 && row < a.m && column < a.mlp) store(a.tap0 + (u64)row * a.mlp + column, gate);
                    if (a.tap1 && row < a.m && column < a.mlp) store(a.tap1 + (u64)row * a.mlp + column, up);
                    tile_set(scratch, row, sub * 8 + (lane >> 2), rounded(silu(gate), type) * up);
                } else {
                    tile_set(scratch, row, sub * 16 + (lane >> 2), y0);
                    tile_set(scratch, row, sub * 16 + (lane >> 2) + 8, y1);
                }
            }
    }
    if (KIND != LINEAR_HEAD) __syncthreads();
    if (KIND == LINEAR_QKV) finish_qkv(a, scratch, tile_index * LINEAR_TILE);
    if (KIND == LINEAR_OUT) finish_out(a, scratch, tile_index);
    if (KIND == LINEAR_GATE_UP) finish_gate_up(a, scratch, tile_index);
}

template <int N_SUB, int M_SUB> static __device__ __forceinline__ void clear(float (&acc)[N_SUB][M_SUB][4]) {
#pragma unroll
    for (int i = 0; i < N_SUB; i++)
#pragma unroll
        for (int j = 0; j < M_SUB; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) acc[i][j][e] = 0.0f;
}

// Adds the other blocks' parts of a tile to `acc`, in block order. False: another block will do it.
template <int N_SUB, int M_SUB>
static __device__ __forceinline__ bool gather_parts(const linear_args &a, float (&acc)[N_SUB][M_SUB][4], int tile_index, int chunks,
                                                    u64 total, bool starts_tile, int *shared_flag) {
    const int n = N_SUB * M_SUB, size = n * LINEAR_THREADS, at_once = n <= 4 ? 4 : 2;
    u64 begin = (u64)tile_index * chunks;
    // The block that holds chunk c is the largest b with b * total / blocks <= c.
    int first = (int)(((begin + 1) * gridDim.x - 1) / total), last = (int)(((begin + chunks) * gridDim.x - 1) / total);
    if (first == last) return true;
    float4 *mine = a.partials + (u64)(2 * blockIdx.x + (starts_tile ? 1 : 0)) * size + threadIdx.x;
#pragma unroll
    for (int i = 0; i < n; i++) {
        const float(&c)[4] = acc[i / M_SUB][i % M_SUB];
        __stcg(mine + i * LINEAR_THREADS, make_float4(c[0], c[1], c[2], c[3]));
    }
    if (!last_to_arrive(a.counters + tile_index, (u32)(last - first + 1), shared_flag)) return false;
    clear(acc);
    for (int b = first; b <= last; b += at_once) {  // several parts are on their way at once
        float4 parts[at_once][n];
#pragma unroll
        for (int e = 0; e < at_once; e++)
#pragma unroll
            for (int i = 0; i < n; i++)
                parts[e][i] = b + e > last ? make_float4(0.0f, 0.0f, 0.0f, 0.0f)
                                           : __ldcg(a.partials + (u64)(2 * (b + e) + (b + e == first ? 1 : 0)) * size + i * LINEAR_THREADS + threadIdx.x);
#pragma unroll
        for (int e = 0; e < at_once; e++)
#pragma unroll
            for (int i = 0; i < n; i++) {
                float(&c)[4] = acc[i / M_SUB][i % M_SUB];
                c[0] += parts[e][i].x, c[1] += parts[e][i].y, c[2] += parts[e][i].z, c[3] += parts[e][i].w;
            }
    }
    return true;
}

template <int M, int KIND> static __device__ __forceinline__ void linear(const linear_args &a) {
    typedef linear_shape<M, KIND> shape;
    const int stages = shape::stages, pieces = M / 32;  // 16-byte pieces of an activation chunk that a thread moves
    const int weights_bytes = LINEAR_TILE * LINEAR_CHUNK * 2, stage_bytes = shape::stage_bytes;
    extern __shared__ __align__(128) char memory[];
    char *ring = memory;                                    // [stages]: weights [128, 64], input [M, 64] bf16
    int *flag = (int *)(ring + stages * stage_bytes);
    uint4 *norm = (uint4 *)(flag + 4);                      // [k] bf16 weights of the norm
    int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31, warp_n = warp % shape::warps_n, warp_m = warp / shape::warps_n;
    int chunks = (a.k + LINEAR_CHUNK - 1) / LINEAR_CHUNK, tiles = (a.n + LINEAR_TILE - 1) / LINEAR_TILE;
    u64 total = (u64)tiles * chunks;
    int begin = (int)(blockIdx.x * total / gridDim.x), end = (int)((blockIdx.x + 1) * total / gridDim.x);
    int my_row = thread >> 3, my_piece = thread & 7;  // of the 32 rows * 8 pieces that the block moves at once

    let_successor_start();
    int w_tile = begin / chunks, w_chunk = begin % chunks, x_chunk = w_chunk;  // what to fetch next
    auto fetch_weights = [&](int stage) {
        u32 to = shared_address(ring) + stage * stage_bytes;
        int column = w_chunk * LINEAR_CHUNK + my_piece * 8;
#pragma unroll
        for (int i = 0; i < LINEAR_TILE / 32; i++) {
            int row = my_row + 32 * i, n = w_tile * LINEAR_TILE + row;
            bool valid = n < a.n && column < a.k;
            copy16_async(to + swizzled(row, my_piece, 8), a.weights + (valid ? (u64)n * a.k + column : 0), valid);
        }
        if (++w_chunk == chunks) w_chunk = 0, w_tile++;
    };
    if (shape::normed)
        for (int i = thread; i < a.k / 8; i += LINEAR_THREADS) copy16_async(shared_address(norm + i), a.norm + i * 8, true);
    copies_commit();
    int in_flight = min(stages, end - begin);
    for (int s = 0; s < in_flight; s++) fetch_weights(s);
    copies_commit();
    wait_for_predecessor();

    // The input goes through the same ring, as far ahead as the weights: its reads queue behind theirs.
    u64 my_input[pieces];  // element offsets of this thread's rows; rows beyond m read as zeros
#pragma unroll
    for (int i = 0; i < pieces; i++) {
        int row = my_row + 32 * i;
        my_input[i] = (u64)(row < a.m ? (KIND == LINEAR_HEAD ? a.index[row] : row) : 0) * a.k;
    }
    auto fetch_input = [&](int stage) {
        u32 to = shared_address(ring) + stage * stage_bytes + weights_bytes;
        int column = x_chunk * LINEAR_CHUNK + my_piece * 8;
#pragma unroll
        for (int i = 0; i < pieces; i++) {
            bool valid = my_row + 32 * i < a.m && column < a.k;
            copy16_async(to + swizzled(my_row + 32 * i, my_piece, 8), a.input + (valid ? my_input[i] + column : 0), valid);
        }
        if (++x_chunk == chunks) x_chunk = 0;
    };
    for (int s = 0; s < stages; s++) {
        if (s < in_flight) fetch_input(s);
        copies_commit();
    }
    float my_scale[pieces];
    if (shape::normed) {
        int n_tiles = (a.k + 127) / 128;
#pragma unroll
        for (int i = 0; i < pieces; i++) my_scale[i] = row_scale(a.squares_in + my_input[i] / a.k * n_tiles, n_tiles, a.k, a.eps, lane & 7);
    }
    // A thread normalises what it copied itself, so that no barrier is needed in between.
    auto normalise_input = [&](char *input, int chunk) {
        uint4 weight = norm[min(chunk * (LINEAR_CHUNK / 8) + my_piece, a.k / 8 - 1)];
#pragma unroll
        for (int i = 0; i < pieces; i++) {
            uint4 *at = (uint4 *)(input + swizzled(my_row + 32 * i, my_piece, 8));
            *at = normalised(*at, my_scale[i], weight);
        }
    };
    if (shape::normed) {  // the norm's weights, which other threads copied
        copies_wait<stages + 1>();
        __syncthreads();
    }

    float acc[shape::n_sub][shape::m_sub][4];
    clear(acc);

    int tile = begin / chunks, chunk = begin % chunks, stage = 0, previous = stages - 1, to_fetch = end - begin - in_flight;
    bool starts_tile = chunk == 0;
    for (int it = begin; it < end; it++) {
        char *weights = ring + stage * stage_bytes, *input = weights + weights_bytes;
        copies_wait<stages - 2>();
        if (shape::normed) normalise_input(input, chunk);
        __syncthreads();  // the chunk is there, and everybody has left the one before it: its place is free
        if (it > begin) {
            if (to_fetch > 0) fetch_weights(previous), fetch_input(previous), to_fetch--;
            copies_commit();
        }
        u32 w_base = shared_address(weights), x_base = shared_address(input);
#pragma unroll
        for (int kk = 0; kk < LINEAR_CHUNK / 16; kk++) {
            u32 w[shape::n_sub][4];
#pragma unroll
            for (int i = 0; i < shape::n_sub; i++)
                load_matrices(w[i], w_base + swizzled((warp_n * shape::n_sub + i) * 16 + (lane & 15), kk * 2 + (lane >> 4), 8));
#pragma unroll
            for (int j = 0; j < shape::m_sub; j += 2) {
                u32 x[4];
                load_matrices(x, x_base + swizzled(warp_m * (M / shape::warps_m) + j * 8 + (lane & 7) + (lane >> 4) * 8, kk * 2 + (lane >> 3 & 1), 8));
#pragma unroll
                for (int i = 0; i < shape::n_sub; i++) {
                    multiply_tile(acc[i][j], w[i], x[0], x[1]);
                    multiply_tile(acc[i][j + 1], w[i], x[2], x[3]);
                }
            }
        }
        previous = stage;
        if (++stage == stages) stage = 0;
        if (++chunk < chunks && it + 1 < end) continue;

        __syncthreads();  // this chunk's place, refilled only in the next round, becomes the results' tile
        if (gather_parts(a, acc, tile, chunks, total, starts_tile, flag)) finish_tile<M, KIND>(a, acc, weights, tile);
        __syncthreads();
        clear(acc);
        starts_tile = true;
        chunk = 0;
        tile++;
    }
}

// linear_<kind>_<M>: up to M rows. Grid: one block a multiprocessor (at most the number of chunks); block 256; shared memory
// LINEAR_RING rounded down to whole stages of (128 + M) * 128 bytes, + 16, + 2 k for the norm; better more than half of a
// multiprocessor's, so that two blocks do not meet on one and leave another idle. bf16 in and out, f32 sums.
//   qkv: equals qkv (norm, projection, bias, RoPE, cache write); 128 % head_dim == 0, head_dim % 16 == 0
//   out: equals attn_out and down (projection, residual)
//   gate_up: equals gate_up (norm, both projections, silu(gate) * up); weights alternate 8 rows of gate, 8 of up
//   head: the first stage of head; head_finish is the second
#define LINEAR_KERNELS(M) \
    extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, 2) linear_qkv_##M(const __grid_constant__ linear_args a) { linear<M, LINEAR_QKV>(a); } \
    extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, 2) linear_out_##M(const __grid_constant__ linear_args a) { linear<M, LINEAR_OUT>(a); } \
    extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, 2) linear_gate_up_##M(const __grid_constant__ linear_args a) { linear<M, LINEAR_GATE_UP>(a); } \
    extern "C" __global__ void __launch_bounds__(LINEAR_THREADS, 2) linear_head_##M(const __grid_constant__ linear_args a) { linear<M, LINEAR_HEAD>(a); }
LINEAR_KERNELS(32)
LINEAR_KERNELS(64)

// ---- Attention (bf16, matrix units): every row of a tile against all cached rows of its request, without a score matrix ---

struct attention_args {
    const bf16 *q;        // [n, n_heads * head_dim]
    bf16 *out;            // [n, n_heads * head_dim]
    rows_table table;
    float *parts;         // [tiles, heads, splits, rows of a tile, HD + 2]: sum, then maximum and total of the weights
    u32 *counters;        // [tiles * heads], zero between kernels
    float scale;          // 1 / sqrt(head_dim) * log2(e)
    int n_heads, n_kv_heads;
    u64 layer_offset;     // layer * n_kv_heads * head_dim
};

// Grid (SPLITS, heads, tiles); ROW_WARPS warps of ROW_TILES * 16 query rows times KEY_WARPS that share each 64 keys. The
// cached rows are cut into SPLITS runs of whole key tiles; the block that finishes a (tile, head) last joins the runs in
// order. Two row tiles a warp halve what is read from shared memory for a product, but leave no registers for the query
// rows, which then lie in shared memory too. Without KEY_WARPS and SPLITS a row's result does not depend on its tile.
template <int HD, int ROW_WARPS, int ROW_TILES, int KEY_WARPS, int STAGES, int SPLITS> static __device__ __forceinline__ void attention(const attention_args &a) {
    const int threads = ROW_WARPS * KEY_WARPS * 32, warp_rows = ROW_TILES * 16, rows = ROW_WARPS * warp_rows, keys = 64, warp_keys = keys / KEY_WARPS, row_bytes = HD * 2, pieces = HD / 8;
    const int stage_bytes = 2 * keys * row_bytes, at_once = threads / pieces;  // rows that all threads together copy
    const bool q_shared = ROW_TILES > 1;
    extern __shared__ __align__(256) char memory[];  // [STAGES, K then V, 64, HD] bf16, then [rows, HD] where q_shared
    __shared__ int flag;
    int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warp_row = warp % ROW_WARPS, warp_key = warp / ROW_WARPS;
    int head = blockIdx.y, kv_head = head / (a.n_heads / a.n_kv_heads), width = a.n_heads * HD;
    tile_entry tile = a.table.tiles[blockIdx.z];
    cache_entry cache = a.table.caches[tile.request];
    int key_tiles = (cache.length + keys - 1) / keys, a_split = (key_tiles + SPLITS - 1) / SPLITS;
    int begin = blockIdx.x * a_split, end = min(begin + a_split, key_tiles);
    // What this thread copies of a tile: one piece of every at_once'th row (8 divides that, so all are swizzled alike).
    int copied_row = threadIdx.x / pieces, copied_piece = threadIdx.x % pieces;
    u64 layer = (a.layer_offset + (u64)kv_head * HD) * cache.capacity;
    const bf16 *k = (const bf16 *)cache.k + layer, *v = (const bf16 *)cache.v + layer;
    u32 base = shared_address(memory), copy_to = base + swizzled(copied_row, copied_piece, pieces);

    auto fetch = [&](int key_tile) {
        if (key_tile < end) {
            u32 to = copy_to + (key_tile - begin) % STAGES * stage_bytes;
            u64 from = (u64)(key_tile * keys + copied_row) * HD + copied_piece * 8;
            int left = cache.length - key_tile * keys - copied_row;
#pragma unroll
            for (int row = 0; row < keys; row += at_once) {
                bool valid = row < left;
                u64 there = valid ? from + row * HD : 0;
                copy16_async(to + row * row_bytes, k + there, valid);
                copy16_async(to + (keys + row) * row_bytes, v + there, valid);
            }
        }
        copies_commit();
    };
    // Rows that this pass does not replace are there already: the first tiles come while the predecessor ends, and the next
    // ones come near.
    int fetched = 0;
    while (!q_shared && fetched < STAGES - 1 && ((begin + fetched) * keys > cache.last_written || (begin + fetched + 1) * keys <= cache.first_written)) fetch(begin + fetched++);
    if (SPLITS > 1)
        for (int i = threadIdx.x + fetched * keys * row_bytes / 128; i < (end - begin) * keys * row_bytes / 128; i += threads) {
            u64 offset = (u64)begin * keys * row_bytes + (u64)i * 128;
            if (offset >= (u64)cache.length * row_bytes) break;
            asm volatile("prefetch.global.L2 [%0];" ::"l"((const char *)k + offset));
            asm volatile("prefetch.global.L2 [%0];" ::"l"((const char *)v + offset));
        }
    let_successor_start();
    wait_for_predecessor();
    // This warp's query rows as left operands: of each row tile, row l/4 and the one 8 further, inner elements 2*(l%4) and 8
    // further.
    int first_row = warp_row * warp_rows, row0 = first_row + (lane >> 2);
    u32 q[HD / 16][4];
    if (q_shared) {  // (they come with the first key tile: none is fetched yet)
        for (int row = copied_row; row < rows; row += at_once)
            copy16_async(copy_to + STAGES * stage_bytes + (row - copied_row) * row_bytes, a.q + (u64)(tile.first + min(row, tile.count - 1)) * width + head * HD + copied_piece * 8, true);
    } else {
        const u32 *q0 = (const u32 *)(a.q + (u64)(tile.first + min(row0, tile.count - 1)) * width + head * HD) + (lane & 3);
        const u32 *q1 = (const u32 *)(a.q + (u64)(tile.first + min(row0 + 8, tile.count - 1)) * width + head * HD) + (lane & 3);
#pragma unroll
        for (int i = 0; i < HD / 16; i++) {
            q[i][0] = __ldcg(q0 + i * 8);
            q[i][1] = __ldcg(q1 + i * 8);
            q[i][2] = __ldcg(q0 + i * 8 + 4);
            q[i][3] = __ldcg(q1 + i * 8 + 4);
        }
    }
    while (fetched < STAGES - 1) fetch(begin + fetched++);

    float o[ROW_TILES][HD / 8][4], max[ROW_TILES][2], sum[ROW_TILES][2];  // (max in scores before scaling)
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++) {
        max[t][0] = max[t][1] = NEGATIVE;
        sum[t][0] = sum[t][1] = 0.0f;
#pragma unroll
        for (int i = 0; i < HD / 8; i++) o[t][i][0] = o[t][i][1] = o[t][i][2] = o[t][i][3] = 0.0f;
    }
    // Where this lane's matrices begin: K's and V's in a stage, q's. Further pieces are an exclusive or away, further rows a sum.
    u32 k_lane = swizzled(warp_key * warp_keys + (lane & 7) + (lane >> 4) * 8, lane >> 3 & 1, pieces);
    u32 v_lane = keys * row_bytes + swizzled(warp_key * warp_keys + (lane & 15), lane >> 4, pieces);
    u32 q_lane = base + STAGES * stage_bytes + swizzled(first_row + (lane & 15), lane >> 4, pieces);
    const float slack = 8.0f / a.scale;

    for (int key_tile = begin; key_tile < end; key_tile++) {
        copies_wait<STAGES - 2>();
        __syncthreads();
        fetch(key_tile + STAGES - 1);
        if (first_row >= tile.count) continue;  // (this warp only copies)
        u32 stage = base + (key_tile - begin) % STAGES * stage_bytes, k_from = stage + k_lane, v_from = stage + v_lane;
        float s[ROW_TILES][warp_keys / 8][4];
#pragma unroll
        for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
            for (int j = 0; j < warp_keys / 8; j++) s[t][j][0] = s[t][j][1] = s[t][j][2] = s[t][j][3] = 0.0f;
#pragma unroll
        for (int i = 0; i < HD / 16; i++) {
            u32 rows_q[ROW_TILES][4];
#pragma unroll
            for (int t = 0; t < ROW_TILES; t++)
                if (q_shared) load_matrices(rows_q[t], (q_lane ^ (i * 32)) + t * 16 * row_bytes);
                else
#pragma unroll
                    for (int e = 0; e < 4; e++) rows_q[t][e] = q[i][e];
#pragma unroll
            for (int j = 0; j < warp_keys / 8; j += 2) {
                u32 b[4];
                load_matrices(b, (k_from ^ (i * 32)) + j * 8 * row_bytes);
#pragma unroll
                for (int t = 0; t < ROW_TILES; t++) {
                    multiply_tile(s[t][j], rows_q[t], b[0], b[1]);
                    multiply_tile(s[t][j + 1], rows_q[t], b[2], b[3]);
                }
            }
        }
        if ((key_tile + 1) * keys > cache.length) {
            int left = cache.length - key_tile * keys - warp_key * warp_keys - (lane & 3) * 2;
#pragma unroll
            for (int j = 0; j < warp_keys / 8; j++)
#pragma unroll
                for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        if (j * 8 + (e & 1) >= left) s[t][j][e] = NEGATIVE;
        }
        // Weights are relative to a maximum that follows the true one only when that has gone 2^8 beyond it: rarely.
        float shrink[ROW_TILES][2];
        bool grows = false;
#pragma unroll
        for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float highest = NEGATIVE;
#pragma unroll
                for (int j = 0; j < warp_keys / 8; j++) highest = fmaxf(highest, fmaxf(s[t][j][half * 2], s[t][j][half * 2 + 1]));
                highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
                highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
                if (highest <= max[t][half] + slack) highest = max[t][half];
                else grows = true;
                shrink[t][half] = exp2_fast((max[t][half] - highest) * a.scale);
                max[t][half] = highest;
            }
        if (__any_sync(0xffffffffu, grows))
#pragma unroll
            for (int t = 0; t < ROW_TILES; t++) {
                sum[t][0] *= shrink[t][0];
                sum[t][1] *= shrink[t][1];
#pragma unroll
                for (int i = 0; i < HD / 8; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) o[t][i][e] *= shrink[t][e / 2];
            }
#pragma unroll
        for (int j = 0; j < warp_keys / 16; j++) {
            u32 w[ROW_TILES][4];
#pragma unroll
            for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
                for (int half = 0; half < 2; half++) {  // a maximum of nothing counts as 0: its keys' weights are 0
                    float minus = max[t][half] <= NEGATIVE ? 0.0f : -max[t][half] * a.scale, p[4];
#pragma unroll
                    for (int e = 0; e < 4; e++) p[e] = exp2_fast(fmaf(s[t][j * 2 + e / 2][half * 2 + (e & 1)], a.scale, minus));
                    sum[t][half] += p[0] + p[1] + p[2] + p[3];
                    w[t][half] = pack_bf16(p[0], p[1]);
                    w[t][2 + half] = pack_bf16(p[2], p[3]);
                }
#pragma unroll
            for (int i = 0; i < HD / 8; i += 2) {
                u32 b[4];
                load_matrices_transposed(b, (v_from ^ (i * 16)) + j * 16 * row_bytes);
#pragma unroll
                for (int t = 0; t < ROW_TILES; t++) {
                    multiply_tile(o[t][i], w[t], b[0], b[1]);
                    multiply_tile(o[t][i + 1], w[t], b[2], b[3]);
                }
            }
        }
    }
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            sum[t][half] = lanes_sum<4>(sum[t][half]);
            max[t][half] *= a.scale;
        }
    copies_wait<0>();

    // Warps that share rows join in shared memory, in their order.
    if (KEY_WARPS > 1) {
        __syncthreads();
        const int stride = ROW_TILES * (HD / 2 + 4) + 1;  // odd: no bank conflicts
        float *joined = (float *)memory + (warp_row * 32 + lane) * stride;
        if (warp_key > 0) {
            float *mine = joined + (warp_key - 1) * ROW_WARPS * 32 * stride;
#pragma unroll
            for (int t = 0; t < ROW_TILES; t++, mine += HD / 2 + 4) {
                mine[0] = max[t][0], mine[1] = max[t][1], mine[2] = sum[t][0], mine[3] = sum[t][1];
#pragma unroll
                for (int i = 0; i < HD / 8; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) mine[4 + i * 4 + e] = o[t][i][e];
            }
        }
        __syncthreads();
        if (warp_key == 0)
            for (int w = 1; w < KEY_WARPS; w++, joined += ROW_WARPS * 32 * stride)
#pragma unroll
                for (int t = 0; t < ROW_TILES; t++) {
                    const float *theirs = joined + t * (HD / 2 + 4);
                    float mine[2], other[2];
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        float highest = fmaxf(max[t][half], theirs[half]);
                        mine[half] = exp2_fast(max[t][half] - highest), other[half] = exp2_fast(theirs[half] - highest);
                        sum[t][half] = sum[t][half] * mine[half] + theirs[2 + half] * other[half];
                        max[t][half] = highest;
                    }
#pragma unroll
                    for (int i = 0; i < HD / 8; i++)
#pragma unroll
                        for (int e = 0; e < 4; e++) o[t][i][e] = o[t][i][e] * mine[e / 2] + theirs[4 + i * 4 + e] * other[e / 2];
                }
    }
    if (SPLITS > 1) {
        u64 group = (u64)blockIdx.z * a.n_heads + head;
        float *part = a.parts + (group * SPLITS + blockIdx.x) * rows * (HD + 2);
        if (warp_key == 0)
#pragma unroll
            for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int row = row0 + t * 16 + half * 8;
#pragma unroll
                    for (int i = 0; i < HD / 8; i++) *(float2 *)(part + row * HD + i * 8 + (lane & 3) * 2) = make_float2(o[t][i][half * 2], o[t][i][half * 2 + 1]);
                    if ((lane & 3) == 0) *(float2 *)(part + rows * HD + row * 2) = make_float2(max[t][half], sum[t][half]);
                }
        if (!last_to_arrive(a.counters + group, SPLITS, &flag)) return;
        // Four threads a row; all reads of a thread are under way at once.
        const float *all = a.parts + group * SPLITS * rows * (HD + 2);
        for (int row = threadIdx.x / 4; row < tile.count; row += threads / 4) {
            float share[SPLITS], highest = NEGATIVE, total = 0.0f;
            float2 state[SPLITS];
            float4 x[HD / 16];
#pragma unroll
            for (int i = 0; i < SPLITS; i++) {
                state[i] = __ldcg((const float2 *)(all + (u64)i * rows * (HD + 2) + rows * HD + row * 2));
                highest = fmaxf(highest, state[i].x);
            }
#pragma unroll
            for (int i = 0; i < SPLITS; i++) {
                share[i] = exp2_fast(state[i].x - highest);
                total += state[i].y * share[i];
            }
#pragma unroll
            for (int j = 0; j < HD / 16; j++) x[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
            for (int i = 0; i < SPLITS; i++)
#pragma unroll
                for (int j = 0; j < HD / 16; j++) {
                    float4 y = __ldcg((const float4 *)(all + (u64)i * rows * (HD + 2) + row * HD + j * 16 + (threadIdx.x & 3) * 4));
                    x[j].x += y.x * share[i], x[j].y += y.y * share[i], x[j].z += y.z * share[i], x[j].w += y.w * share[i];
                }
            float inverse = 1.0f / total;
            uint2 *to = (uint2 *)(a.out + (u64)(tile.first + row) * width + head * HD) + (threadIdx.x & 3);
#pragma unroll
            for (int j = 0; j < HD / 16; j++)
                to[j * 4] = make_uint2(pack_bf16(x[j].x * inverse, x[j].y * inverse), pack_bf16(x[j].z * inverse, x[j].w * inverse));
        }
        return;
    }
    if (warp_key == 0)
#pragma unroll
        for (int t = 0; t < ROW_TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = row0 + t * 16 + half * 8;
                float inverse = 1.0f / sum[t][half];
                u32 *to = (u32 *)(a.out + (u64)(tile.first + row) * width + head * HD) + (lane & 3);
                if (row < tile.count)
#pragma unroll
                    for (int i = 0; i < HD / 8; i++) to[i * 4] = pack_bf16(o[t][i][half * 2] * inverse, o[t][i][half * 2 + 1] * inverse);
            }
}
// Tiles of all sizes in one launch, each by the warps that suit it: the short ones, which wait for memory, fill the gaps that
// the long ones leave. What they have in common costs them nothing: two blocks fit on a multiprocessor in any case.
template <int HD> static __device__ __forceinline__ void attention_any(const attention_args &a) {
    int count = a.table.tiles[blockIdx.z].count;
    if (count > 64) attention<HD, 4, 2, 1, 2, 1>(a);
    else if (count > 32) attention<HD, 4, 1, 1, 3, 1>(a);
    else attention<HD, 2, 1, 2, 3, 1>(a);
}
// Shared memory 768 * HD bytes. All equal attend.
//   attention_small_<HD>: tiles of up to 32 rows, grid (4, n_heads, tiles), block 256
//   attention_medium_<HD>: tiles of up to 64 rows, grid (4, n_heads, tiles), block 256
//   attention_large_<HD>: tiles of up to 128 rows, grid (1, n_heads, tiles), block 128
#define ATTENTION_KERNELS(HD) \
    extern "C" __global__ void __launch_bounds__(256, 2) attention_small_##HD(const __grid_constant__ attention_args a) { attention<HD, 2, 1, 4, 3, 4>(a); } \
    extern "C" __global__ void __launch_bounds__(256, 2) attention_medium_##HD(const __grid_constant__ attention_args a) { attention<HD, 4, 1, 2, 3, 4>(a); } \
    extern "C" __global__ void __launch_bounds__(128, 2) attention_large_##HD(const __grid_constant__ attention_args a) { attention_any<HD>(a); }
ATTENTION_KERNELS(64)
ATTENTION_KERNELS(128)

// ---- The beginning and the end of a pass --------------------------------------------------------------------------------

// Copies the host's row table to the device and prepares RoPE's angles; then tells the host that its image may change.
// Grid n + 1, block 64. `image` is pinned host memory: rows [n] here, caches and tiles by the last block.
extern "C" __global__ void pass_begin(const uint4 *rows, const uint4 *caches, const uint4 *tiles, int n, int n_caches, int n_tiles, rows_table table,
                                      const float *frequencies, int half, u32 *state, volatile u32 *fetched) {
    __shared__ int flag;
    wait_for_predecessor();
    if (blockIdx.x == n) {
        for (int i = threadIdx.x; i < n_caches * 4; i += 64) ((uint4 *)table.caches)[i] = caches[i];
        for (int i = threadIdx.x; i < n_tiles; i += 64) ((uint4 *)table.tiles)[i] = tiles[i];
    } else {
        __shared__ uint4 row[2];
        if (threadIdx.x < 2) ((uint4 *)table.rows)[blockIdx.x * 2 + threadIdx.x] = row[threadIdx.x] = rows[blockIdx.x * 2 + threadIdx.x];
        __syncthreads();
        float position = (float)((const row_entry *)row)->position;
        for (int i = threadIdx.x; i < half; i += 64) {  // the angle is f32, as in the model's own code; its cosine exact
            double s, c;
            sincos((double)(position * frequencies[i]), &s, &c);
            table.rope[(u64)blockIdx.x * half + i] = make_float2((float)c, (float)s);
        }
    }
    if (last_to_arrive(state, n + 1, &flag) && threadIdx.x == 0) *fetched = ++state[1];
}

// Counts in pinned host memory that everything before it is done. Grid 1, block 1.
extern "C" __global__ void pass_signal(u32 *count, volatile u32 *signalled) {
    wait_for_predecessor();
    __threadfence_system();
    *signalled = ++*count;
}

// ---- Row-wise kernels, for both activation types -------------------------------------------------------------------------

template <class T> static __device__ __forceinline__ void copy_row(T *to, const T *from, int d) {
    if (d * sizeof(T) % 16 == 0)
        for (int i = threadIdx.x; i < (int)(d * sizeof(T) / 16); i += blockDim.x) ((uint4 *)to)[i] = ((const uint4 *)from)[i];
    else
        for (int i = threadIdx.x; i < d; i += blockDim.x) to[i] = from[i];
}

// squares[tile] of one row, in the order in which finish_out makes them. Block 256.
template <class T> static __device__ __forceinline__ void row_squares(const T *x, int d, float *squares) {
    int n_tiles = (d + 127) / 128;
    for (int t = threadIdx.x >> 4; t < (n_tiles + 15) / 16 * 16; t += 16) {
        float sum = 0.0f;
        int first = t * 128 + (threadIdx.x & 15) * 8;
        if (sizeof(T) == 2 && d % 8 == 0) {
            if (first < d) {
                uint4 v = *(const uint4 *)(x + first);
                u32 pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    sum += low_f32(pairs[i]) * low_f32(pairs[i]);
                    sum += high_f32(pairs[i]) * high_f32(pairs[i]);
                }
            }
        } else
            for (int i = first; i < first + 8; i++) {
                float value = i < d ? load(x + i) : 0.0f;
                sum += value * value;
            }
        sum = lanes_sum<16>(sum);
        if ((threadIdx.x & 15) == 0 && t < n_tiles) squares[t] = sum;
    }
}

// x[i] = table[token of row i], where active. Grid n, block 256. Equals embed.
template <class T> static __device__ __forceinline__ void embed(const T *embedding, rows_table table, T *x, float *squares, int d) {
    let_successor_start();
    wait_for_predecessor();
    row_entry entry = table.rows[blockIdx.x];
    const T *from = embedding + (u64)entry.token * d;
    x += (u64)blockIdx.x * d;
    if (entry.active) copy_row(x, from, d);
    row_squares(entry.active ? from : x, d, squares + (u64)blockIdx.x * ((d + 127) / 128));
}

// squares [n, d/128] of x, after something other than a linear map wrote it. Grid n, block 256.
template <class T> static __device__ __forceinline__ void squares_of(const T *x, float *squares, int d) {
    let_successor_start();
    wait_for_predecessor();
    row_squares(x + (u64)blockIdx.x * d, d, squares + (u64)blockIdx.x * ((d + 127) / 128));
}

// out[i] = rms(x[index[i]]) * weight, index NULL: i. Grid n, block 256, shared memory 4 * ceil(d / 128) bytes.
template <class T> static __device__ __forceinline__ void norm(const T *x, const int *index, const T *weight, T *out, int d, float eps) {
    extern __shared__ float tile_squares[];
    __shared__ float scale;
    let_successor_start();
    wait_for_predecessor();
    x += (u64)(index ? index[blockIdx.x] : (int)blockIdx.x) * d;
    out += (u64)blockIdx.x * d;
    row_squares(x, d, tile_squares);
    __syncthreads();
    if (threadIdx.x < 32) {
        float s = row_scale(tile_squares, (d + 127) / 128, d, eps, threadIdx.x & 7);
        if (threadIdx.x == 0) scale = s;
    }
    __syncthreads();
    if (sizeof(T) == 2 && d % 8 == 0) {
        for (int i = threadIdx.x; i < d / 8; i += 256) ((uint4 *)out)[i] = normalised(((const uint4 *)x)[i], scale, ((const uint4 *)weight)[i]);
        return;
    }
    for (int i = threadIdx.x; i < d; i += 256) store(out + i, rounded(load(x + i) * scale, x) * load(weight + i));
}

// y [n, (n_heads + 2 n_kv_heads) * head_dim] + bias: RoPE, q to its buffer, k and v to the cache. Grid n, block 256.
struct rope_args {
    rows_table table;
    int n_heads, n_kv_heads, head_dim;
    u64 layer_offset;
};
// Where 8 neighbouring values, or one, of a row's q, k or v come from and go to.
template <class T> struct rope_place {
    int d, is_v;
    u64 at, tap;
    T *before, *after, *to;  // before RoPE and after for a trace (NULL: not wanted); NULL: the row is inactive
};
// `first`: which of the (n_heads + 2 n_kv_heads) * head_dim / 2 places of a first half.
template <class T> static __device__ __forceinline__ rope_place<T> rope_place_of(const rope_args &a, const row_entry &entry, const cache_entry &cache, int row, int first, T *q, T *tap_q,
                                                                                 T *tap_k, T *tap_v, T *tap_rope) {
    int hd = a.head_dim, half = hd / 2, head = first / half, kv = head - a.n_heads;
    rope_place<T> p;
    p.d = first - head * half;
    p.at = (u64)head * hd + p.d;
    p.is_v = kv >= a.n_kv_heads;
    if (p.is_v) kv -= a.n_kv_heads;
    p.tap = ((u64)row * (head < a.n_heads ? a.n_heads : a.n_kv_heads) + (head < a.n_heads ? head : kv)) * hd + p.d;
    p.before = head < a.n_heads ? tap_q : p.is_v ? tap_v : tap_k;
    p.after = head < a.n_heads || p.is_v ? 0 : tap_rope;
    p.to = q + ((u64)row * a.n_heads + head) * hd + p.d;
    if (head >= a.n_heads) p.to = (T *)(p.is_v ? cache.v : cache.k) + (a.layer_offset + (u64)kv * hd) * cache.capacity + (u64)entry.position * hd + p.d;
    if (head >= a.n_heads && !entry.active) p.to = 0;
    return p;
}
static __device__ __forceinline__ void store_pieces(bf16 *to, uint4 low, uint4 high, int half) {
    *(uint4 *)to = low;
    *(uint4 *)(to + half) = high;
}
static __device__ __forceinline__ u32 add_bias(u32 x, u32 bias) { return pack_bf16(low_f32(x) + low_f32(bias), high_f32(x) + high_f32(bias)); }
static __device__ __forceinline__ uint4 add_bias(uint4 x, const bf16 *bias) {
    uint4 b = *(const uint4 *)bias;
    return make_uint4(add_bias(x.x, b.x), add_bias(x.y, b.y), add_bias(x.z, b.z), add_bias(x.w, b.w));
}
// The same 16 bytes at a time; head_dim % 16 == 0.
static __device__ __forceinline__ void rope_cache_pieces(const bf16 *y, const bf16 *bias, const rope_args &a, const row_entry &entry, const cache_entry &cache, bf16 *q, bf16 *tap_q,
                                                         bf16 *tap_k, bf16 *tap_v, bf16 *tap_rope) {
    int half = a.head_dim / 2, row = blockIdx.x, pieces = (a.n_heads + 2 * a.n_kv_heads) * half / 8;
    for (int i = threadIdx.x; i < pieces; i += 256) {
        rope_place<bf16> p = rope_place_of(a, entry, cache, row, i * 8, q, tap_q, tap_k, tap_v, tap_rope);
        uint4 low = *(const uint4 *)(y + p.at), high = *(const uint4 *)(y + p.at + half);
        if (bias) low = add_bias(low, bias + p.at), high = add_bias(high, bias + p.at + half);
        if (p.before) store_pieces(p.before + p.tap, low, high, half);
        if (!p.is_v) {
            const float2 *turn = a.table.rope + (u64)row * half + p.d;
            uint4 turned = rope_piece(low, high, turn, -1.0f);
            high = rope_piece(high, low, turn, 1.0f);
            low = turned;
        }
        if (p.after) store_pieces(p.after + p.tap, low, high, half);
        if (p.to) store_pieces(p.to, low, high, half);
    }
}
static __device__ __forceinline__ void rope_cache_pieces(const float *, const float *, const rope_args &, const row_entry &, const cache_entry &, float *, float *, float *, float *, float *) {}
template <class T> static __device__ __forceinline__ void rope_cache(const T *y, const T *bias, const rope_args &a, T *q, T *tap_q, T *tap_k, T *tap_v, T *tap_rope) {
    let_successor_start();
    wait_for_predecessor();
    int half = a.head_dim / 2, row = blockIdx.x, heads = a.n_heads + 2 * a.n_kv_heads;
    row_entry entry = a.table.rows[row];
    cache_entry cache = a.table.caches[entry.request];
    y += (u64)row * heads * a.head_dim;
    if (sizeof(T) == 2 && half % 8 == 0) {
        rope_cache_pieces(y, bias, a, entry, cache, q, tap_q, tap_k, tap_v, tap_rope);
        return;
    }
    for (int i = threadIdx.x; i < heads * half; i += 256) {
        rope_place<T> p = rope_place_of(a, entry, cache, row, i, q, tap_q, tap_k, tap_v, tap_rope);
        float low = load(y + p.at), high = load(y + p.at + half);
        if (bias) low = rounded(low + load(bias + p.at), y), high = rounded(high + load(bias + p.at + half), y);
        if (p.before) store(p.before + p.tap, low), store(p.before + p.tap + half, high);
        if (!p.is_v) {
            float2 r = a.table.rope[(u64)row * half + p.d];
            float turned = low * r.x - high * r.y;
            high = high * r.x + low * r.y;
            low = turned;
        }
        if (p.after) store(p.after + p.tap, low), store(p.after + p.tap + half, high);
        if (p.to) store(p.to, low), store(p.to + half, high);
    }
}

// hidden = silu(gate) * up of y [n, 16 * ceil(mlp / 8)], in which 8 values of gate and 8 of up alternate. Grid (n, ceil(mlp / 1024)), block 128.
template <class T> static __device__ __forceinline__ void silu_product(const T *y, const T *bias, T *hidden, int mlp, T *tap_gate, T *tap_up) {
    let_successor_start();
    wait_for_predecessor();
    int group = blockIdx.y * 128 + threadIdx.x, groups = (mlp + 7) / 8;
    u64 row = blockIdx.x;
    if (group >= groups) return;
    float gate[8], up[8];
    const T *from = y + (row * groups + group) * 16;
    if (sizeof(T) == 2) {
        uint4 g = ((const uint4 *)from)[0], u = ((const uint4 *)from)[1];
        u32 gs[4] = {g.x, g.y, g.z, g.w}, us[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
        for (int i = 0; i < 8; i++) gate[i] = i & 1 ? high_f32(gs[i / 2]) : low_f32(gs[i / 2]), up[i] = i & 1 ? high_f32(us[i / 2]) : low_f32(us[i / 2]);
    } else
#pragma unroll
        for (int i = 0; i < 8; i++) gate[i] = load(from + i), up[i] = load(from + 8 + i);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (bias) gate[i] = rounded(gate[i] + load(bias + group * 16 + i), y), up[i] = rounded(up[i] + load(bias + group * 16 + 8 + i), y);
        u64 at = row * mlp + group * 8 + i;
        if (group * 8 + i < mlp) {
            if (tap_gate) store(tap_gate + at, gate[i]);
            if (tap_up) store(tap_up + at, up[i]);
        }
        gate[i] = rounded(silu(gate[i]), y) * up[i];
    }
    T *to = hidden + row * mlp + group * 8;
    if (sizeof(T) == 2 && mlp % 8 == 0)
        *(uint4 *)to = make_uint4(pack_bf16(gate[0], gate[1]), pack_bf16(gate[2], gate[3]), pack_bf16(gate[4], gate[5]), pack_bf16(gate[6], gate[7]));
    else
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (group * 8 + i < mlp) store(to + i, gate[i]);
}

// x += y + bias, rows with active 0 excepted. Grid n, block 256.
template <class T> static __device__ __forceinline__ void residual(const T *y, const T *bias, rows_table table, T *x, int d, T *tap) {
    let_successor_start();
    wait_for_predecessor();
    u64 row = blockIdx.x;
    bool active = table.rows[row].active != 0;
    for (int i = threadIdx.x; i < d; i += 256) {
        float value = load(y + row * d + i);
        if (bias) value = rounded(value + load(bias + i), y);
        if (tap) store(tap + row * d + i, value);
        if (active) store(x + row * d + i, load(x + row * d + i) + value);
    }
}

// Attention for any head_dim up to 256: one query row and head a block, 128 keys at a time, one key a thread for the scores
// and one column a thread for the sums. The order of every sum depends on the cached length only. Grid (n, n_heads), block 128.
template <class T> static __device__ __forceinline__ void attend(const T *q, T *out, rows_table table, int n_heads, int n_kv_heads, int hd, float scale, u64 layer_offset) {
    __shared__ float query[256], weight[128], parts[4];
    let_successor_start();
    wait_for_predecessor();
    int row = blockIdx.x, head = blockIdx.y, kv = head / (n_heads / n_kv_heads), thread = threadIdx.x;
    cache_entry cache = table.caches[table.rows[row].request];
    const T *k = (const T *)cache.k + (layer_offset + (u64)kv * hd) * cache.capacity, *v = (const T *)cache.v + (layer_offset + (u64)kv * hd) * cache.capacity;
    q += ((u64)row * n_heads + head) * hd;
    out += ((u64)row * n_heads + head) * hd;
    for (int d = thread; d < hd; d += 128) query[d] = load(q + d);
    float max = NEGATIVE, sum = 0.0f, o[2] = {0.0f, 0.0f};
    for (int first = 0; first < cache.length; first += 128) {
        int count = min(128, cache.length - first);
        float score = NEGATIVE, new_max = NEGATIVE, total = 0.0f;
        __syncthreads();
        if (thread < count) {
            const T *key = k + (u64)(first + thread) * hd;
            float dot = 0.0f;
            for (int d = 0; d < hd; d++) dot = fmaf(query[d], load(key + d), dot);
            score = dot * scale;
        }
        float warp_max = score;
        for (int lanes = 16; lanes > 0; lanes /= 2) warp_max = fmaxf(warp_max, __shfl_xor_sync(0xffffffffu, warp_max, lanes));
        if ((thread & 31) == 0) parts[thread >> 5] = warp_max;
        __syncthreads();
        new_max = fmaxf(max, fmaxf(fmaxf(parts[0], parts[1]), fmaxf(parts[2], parts[3])));
        float w = thread < count ? expf(score - new_max) : 0.0f;
        weight[thread] = w;
        w = lanes_sum<32>(w);
        __syncthreads();
        if ((thread & 31) == 0) parts[thread >> 5] = w;
        __syncthreads();
        total = parts[0] + parts[1] + parts[2] + parts[3];
        float shrink = expf(max - new_max);
        sum = sum * shrink + total;
        max = new_max;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int d = thread + e * 128;
            if (d >= hd) continue;
            float x = 0.0f;
            for (int j = 0; j < count; j++) x = fmaf(weight[j], load(v + (u64)(first + j) * hd + d), x);
            o[e] = o[e] * shrink + x;
        }
    }
#pragma unroll
    for (int e = 0; e < 2; e++)
        if (thread + e * 128 < hd) store(out + thread + e * 128, o[e] / sum);
}

// A row of a request's states [2, n_states, n_slots, d]: half 0 is compared with, half 1 the pass's own.
template <class T> static __device__ __forceinline__ T *state_row(const cache_entry &cache, int slot, int half, int state, int d) {
    return (T *)cache.states + ((u64)(half * cache.n_states + state) * cache.n_slots + slot) * d;
}

// cosines[row] = cos(x[row], its slot's state `state`), and x becomes the pass's own state. Inactive rows and rows without
// a slot or that state do nothing.
// Grid n, block 256. Equals compare.
template <class T> static __device__ __forceinline__ void compare(const T *x, rows_table table, int state, float *cosines, int d) {
    __shared__ float parts[3][8];
    let_successor_start();
    wait_for_predecessor();
    row_entry entry = table.rows[blockIdx.x];
    cache_entry cache = table.caches[entry.request];
    if (!entry.active || !cache.states || entry.slot < 0 || state >= cache.n_states) return;
    const T *reference = state_row<T>(cache, entry.slot, 0, state, d);
    float dot = 0.0f, xx = 0.0f, rr = 0.0f;
    x += (u64)blockIdx.x * d;
    for (int i = threadIdx.x; i < d; i += 256) {
        float a = load(x + i), b = load(reference + i);
        dot = fmaf(a, b, dot);
        xx = fmaf(a, a, xx);
        rr = fmaf(b, b, rr);
    }
    dot = lanes_sum<32>(dot);
    xx = lanes_sum<32>(xx);
    rr = lanes_sum<32>(rr);
    if ((threadIdx.x & 31) == 0) parts[0][threadIdx.x >> 5] = dot, parts[1][threadIdx.x >> 5] = xx, parts[2][threadIdx.x >> 5] = rr;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < 8; w++) dot += parts[0][w], xx += parts[1][w], rr += parts[2][w];
        double lengths = sqrt((double)xx) * sqrt((double)rr);
        cosines[entry.number] = fminf(1.0f, (float)((double)dot / (lengths > 1e-8 ? lengths : 1e-8)));
    }
    copy_row(state_row<T>(cache, entry.slot, 1, state, d), x, d);
}

// The pass's own states become the ones to compare with where which[row]. Grid (n, states), block 256. Equals remember.
template <class T> static __device__ __forceinline__ void remember(rows_table table, const int *which, int d) {
    let_successor_start();
    wait_for_predecessor();
    row_entry entry = table.rows[blockIdx.x];
    cache_entry cache = table.caches[entry.request];
    if (!which[blockIdx.x] || !cache.states || entry.slot < 0 || blockIdx.y >= cache.n_states) return;
    copy_row(state_row<T>(cache, entry.slot, 0, blockIdx.y, d), state_row<T>(cache, entry.slot, 1, blockIdx.y, d), d);
}

// outputs[slot] = x[row] (store_them) or back, where which[row]. Grid n, block 256. Equals store_outputs and load_outputs.
template <class T> static __device__ __forceinline__ void outputs(T *x, rows_table table, const int *which, int store_them, int d) {
    let_successor_start();
    wait_for_predecessor();
    row_entry entry = table.rows[blockIdx.x];
    cache_entry cache = table.caches[entry.request];
    if (!which[blockIdx.x] || !cache.outputs || entry.slot < 0) return;
    T *output = (T *)cache.outputs + (u64)entry.slot * d;
    x += (u64)blockIdx.x * d;
    copy_row(store_them ? output : x, store_them ? x : output, d);
}

// to[i] = from[index[i]], or to[index[i]] = from[i] (scatter). Grid n, block 256. Equals compact and expand.
template <class T> static __device__ __forceinline__ void move_rows(T *to, const T *from, const int *index, int scatter, int d) {
    let_successor_start();
    wait_for_predecessor();
    u64 i = blockIdx.x, j = index[blockIdx.x];
    copy_row(to + (scatter ? j : i) * d, from + (scatter ? i : j) * d, d);
}

// ---- Loading: stored values to weights ------------------------------------------------------------------------------------

// Where element e of a tensor of `columns` columns goes: rows follow each other from `first_row` on (interleave 0), or in
// groups of 8 that alternate with another tensor's (1: gate, 2: up).
struct placing { u64 columns, first_row; int interleave; };
static __device__ __forceinline__ u64 place(const placing &p, u64 e) {
    u64 row = e / p.columns, column = e - row * p.columns;
    if (p.interleave) row = row / 8 * 16 + row % 8 + (p.interleave == 2 ? 8 : 0);
    return (p.first_row + row) * p.columns + column;
}
enum { STORED_F32, STORED_F16, STORED_BF16 };
// Elements first .. first + count - 1 of a tensor, from their stored form. Any grid, block 256.
template <class T> static __device__ __forceinline__ void convert(const void *from, int stored, T *to, u64 first, u64 count, placing p) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
        float value;
        if (stored == STORED_F32) value = ((const float *)from)[i];
        else if (stored == STORED_BF16) value = load((const bf16 *)from + i);
        else asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(((const u16 *)from)[i]));
        store(to + place(p, first + i), value);
    }
}
// Random bf16 weights, uniform on [-scale, scale): eight values a Philox call, 16 bits each, as tsk__random_fill_chunk has
// them. Any grid, block 256.
template <class T> static __device__ __forceinline__ void randomise(T *to, u64 count, placing p, u64 seed, u32 tensor, float scale) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < (count + 7) / 8; i += (u64)gridDim.x * blockDim.x) {
        u32 c[4] = {(u32)i, (u32)(i >> 32), tensor, 2};
        const bf16 *type = 0;
        philox4x32(c, (u32)seed, (u32)(seed >> 32));
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (i * 8 + j < count) store(to + place(p, i * 8 + j), rounded(scale * ((float)(c[j / 2] >> (j % 2 * 16) & 0xffff) / 32768.0f - 1.0f), type));
    }
}
// Every element `value`. Any grid, block 256.
template <class T> static __device__ __forceinline__ void fill(T *to, u64 count, float value) {
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) store(to + i, value);
}

#define ROW_KERNELS(T, S) \
    extern "C" __global__ void __launch_bounds__(256) embed_##S(const T *embedding, rows_table table, T *x, float *squares, int d) { embed(embedding, table, x, squares, d); } \
    extern "C" __global__ void __launch_bounds__(256) squares_##S(const T *x, float *squares, int d) { squares_of(x, squares, d); } \
    extern "C" __global__ void __launch_bounds__(256) norm_##S(const T *x, const int *index, const T *weight, T *out, int d, float eps) { norm(x, index, weight, out, d, eps); } \
    extern "C" __global__ void __launch_bounds__(256) rope_cache_##S(const T *y, const T *bias, const __grid_constant__ rope_args a, T *q, T *tap_q, T *tap_k, T *tap_v, T *tap_rope) { rope_cache(y, bias, a, q, tap_q, tap_k, tap_v, tap_rope); } \
    extern "C" __global__ void __launch_bounds__(128) silu_##S(const T *y, const T *bias, T *hidden, int mlp, T *tap_gate, T *tap_up) { silu_product(y, bias, hidden, mlp, tap_gate, tap_up); } \
    extern "C" __global__ void __launch_bounds__(256) residual_##S(const T *y, const T *bias, rows_table table, T *x, int d, T *tap) { residual(y, bias, table, x, d, tap); } \
    extern "C" __global__ void __launch_bounds__(128) attend_##S(const T *q, T *out, rows_table table, int n_heads, int n_kv_heads, int hd, float scale, u64 layer_offset) { attend(q, out, table, n_heads, n_kv_heads, hd, scale, layer_offset); } \
    extern "C" __global__ void __launch_bounds__(256) compare_##S(const T *x, rows_table table, int state, float *cosines, int d) { compare(x, table, state, cosines, d); } \
    extern "C" __global__ void __launch_bounds__(256) remember_##S(rows_table table, const int *which, int d) { remember<T>(table, which, d); } \
    extern "C" __global__ void __launch_bounds__(256) outputs_##S(T *x, rows_table table, const int *which, int store_them, int d) { outputs(x, table, which, store_them, d); } \
    extern "C" __global__ void __launch_bounds__(256) move_rows_##S(T *to, const T *from, const int *index, int scatter, int d) { move_rows(to, from, index, scatter, d); } \
    extern "C" __global__ void __launch_bounds__(256) convert_##S(const void *from, int stored, T *to, u64 first, u64 count, placing p) { convert(from, stored, to, first, count, p); } \
    extern "C" __global__ void __launch_bounds__(256) randomise_##S(T *to, u64 count, placing p, u64 seed, u32 tensor, float scale) { randomise(to, count, p, seed, tensor, scale); } \
    extern "C" __global__ void __launch_bounds__(256) fill_##S(T *to, u64 count, float value) { fill(to, count, value); }
ROW_KERNELS(float, f32)
ROW_KERNELS(bf16, bf16)

// ---- f32 linear map --------------------------------------------------------------------------------------------------------

// out[m, n] = input[m, k] * weights[n, k]^T, every output summed by one thread in the order of k, whatever m is. Grid
// (ceil(n / 64), ceil(m / 32)), block 256: each thread 2 rows and 4 columns.
extern "C" __global__ void __launch_bounds__(256) exact_f32(const float *input, const float *weights, float *out, int m, int n, int k) {
    __shared__ float x[32][17], w[64][17];
    int thread = threadIdx.x, column = thread & 15, row = thread >> 4, first_n = blockIdx.x * 64, first_m = blockIdx.y * 32;
    float acc[2][4] = {};
    let_successor_start();
    wait_for_predecessor();
    for (int base = 0; base < k; base += 16) {
        for (int i = row; i < 32; i += 16) x[i][column] = first_m + i < m && base + column < k ? input[(u64)(first_m + i) * k + base + column] : 0.0f;
        for (int i = row; i < 64; i += 16) w[i][column] = first_n + i < n && base + column < k ? weights[(u64)(first_n + i) * k + base + column] : 0.0f;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 16; i++)
#pragma unroll
            for (int r = 0; r < 2; r++)
#pragma unroll
                for (int c = 0; c < 4; c++) acc[r][c] = fmaf(x[row + r * 16][i], w[column + c * 16][i], acc[r][c]);
        __syncthreads();
    }
    for (int r = 0; r < 2; r++)
        for (int c = 0; c < 4; c++) {
            int i = first_m + row + r * 16, j = first_n + column + c * 16;
            if (i < m && j < n) out[(u64)i * n + j] = acc[r][c];
        }
}

// ---- The head's two stages -------------------------------------------------------------------------------------------------

// First stage where the logits lie in memory: of ids first .. first + n - 1, [m, n] f32, bias added in place; a tile is 1024
// ids. Grid (ceil(n / 1024), m), block 128.
extern "C" __global__ void __launch_bounds__(128) head_tiles(float *logits, const void *bias, int bias_is_bf16, const draw_entry *draws, head_entry *heads, int first, int n) {
    __shared__ head_entry parts[4];
    let_successor_start();
    wait_for_predecessor();
    draw_entry draw = draws[blockIdx.y];
    head_entry best = head_none();
    logits += (u64)blockIdx.y * n;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int at = blockIdx.x * 1024 + i * 128 + threadIdx.x, id = first + at;
        if (at >= n) continue;
        float logit = logits[at];
        if (bias) logits[at] = logit = logit + (bias_is_bf16 ? load((const bf16 *)bias + id) : ((const float *)bias)[id]);
        best = head_merge(best, head_of(draw, id, logit));
    }
    for (int lanes = 1; lanes < 32; lanes *= 2) best = head_merge(best, head_shuffle(best, lanes));
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < 4; w++) best = head_merge(best, parts[w]);
        heads[(u64)(first / 1024 + blockIdx.x) * gridDim.y + blockIdx.y] = best;
    }
}

// Second stage: joins a row's tiles, in an order that depends on their number only. Grid m, block 128.
extern "C" __global__ void __launch_bounds__(128) head_finish(const head_entry *heads, int n_tiles, int m, prediction_entry *predictions) {
    __shared__ head_entry parts[128];
    let_successor_start();
    wait_for_predecessor();
    head_entry best = head_none();
    for (int t = threadIdx.x; t < n_tiles; t += 128) best = head_merge(best, heads[(u64)t * m + blockIdx.x]);
    parts[threadIdx.x] = best;
    for (int step = 64; step > 0; step /= 2) {
        __syncthreads();
        if (threadIdx.x < step) parts[threadIdx.x] = head_merge(parts[threadIdx.x], parts[threadIdx.x + step]);
    }
    if (threadIdx.x == 0) {
        best = parts[0];
        prediction_entry p;
        p.id = best.id == 0x7fffffff ? 0 : best.id;
        p.logit = best.logit;
        p.log_sum_exp = best.max + logf(best.sum);
        p.confidence = expf(p.logit - p.log_sum_exp);
        predictions[blockIdx.x] = p;
    }
}

// ---- Ceilings --------------------------------------------------------------------------------------------------------------

// Reads n 16-byte pieces and nothing else. Any grid, block 512; *out is never written in practice.
extern "C" __global__ void __launch_bounds__(512) read_stream(const uint4 *p, u64 n, u32 *out) {
    u32 mixed = 0;
    u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x, step = (u64)gridDim.x * blockDim.x;
    for (; i + 3 * step < n; i += 4 * step) {
        uint4 a = p[i], b = p[i + step], c = p[i + 2 * step], d = p[i + 3 * step];
        mixed ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    if (mixed == 0x12345678) *out = mixed;
}
