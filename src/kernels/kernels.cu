// kernels.cu: the CUDA kernels of TokenSkip, compiled at run time by NVRTC for the GPU at hand (sm_80 and up).
//
// It includes nothing. bf16 values travel as their 16 bits; arithmetic is f32 unless said otherwise, and the matrix units
// multiply bf16 with f32 accumulation. Conventions:
//   - Weights are [n_out, n_in] row-major, activations [rows, width] row-major, both with the inner size contiguous.
//   - A kernel named name_bf16 / name_f32 is one template instantiated for both activation types.
//   - "Equals" names the CPU operation of the backend table that the kernel, alone or with its neighbours, stands for.
//   - On sm_90 and later a kernel may start while its predecessor still runs (programmatic dependent launch): whatever stands
//     before wait_for_predecessor() may read weights, the row table, the host's lists and cached rows that the pass does not
//     write, and writes nothing global. pass_begin and slide are never launched so, nor is what follows pass_begin or decide.
//   - No result depends on the order in which blocks run: partial sums are added in a fixed order, whoever adds them.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
struct bf16 { u16 bits; };

// ---- The row table (see tsk__rows): filled by pass_begin from the host's image, read by everything else ---------------

// number: in the list of begin; token: where the request has no canvas here; flags: ROW_*, see tsk__row_flag
struct row_entry { int token, position, request, slot, active, number, flags, pad; };
#define ROW_MAY_SKIP 1
#define ROW_SKIPS 2
#define ROW_REMEMBER 4
#define ROW_IF_RAN 8
#define ROW_OUTPUT 16
#define ROW_DECIDED (ROW_MAY_SKIP | ROW_SKIPS)
struct cache_entry {      // is tsk__kv
    char *k, *v, *states, *outputs;
    int *tokens;
    struct prediction_entry *predictions;
    int length, capacity, n_slots, n_states;
    int first_written, last_written;  // positions that the pass replaces lie between
    float skip_threshold, skip_outlier;
};
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
static __device__ __forceinline__ void prefetch_l2(const void *from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
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
// For what is rounded to bf16 next.
static __device__ __forceinline__ float silu_fast(float x) { return __fdividef(x, 1.0f + exp2_fast(-1.44269504f * x)); }
// Sum over groups of `width` neighbouring lanes, the same tree every time.
template <int WIDTH> static __device__ __forceinline__ float lanes_sum(float x) {
#pragma unroll
    for (int step = 1; step < WIDTH; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
static __device__ const float NEGATIVE = -3.0e38f;  // stands for minus infinity where a difference of two must not be NaN

// Barriers in shared memory with phases: a phase ends when `count` arrivals have come, and announced bytes. A wait names the
// phase by its parity, so whoever waits must wait for every phase, or might take the last but one for the one meant.
static __device__ __forceinline__ void barrier_init(u32 barrier, u32 count) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory"); }
static __device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(barrier) : "memory");
}
static __device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    u32 done;
    do {
#if __CUDA_ARCH__ >= 900
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
#else
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
#endif
    } while (!done);
}

// __syncthreads of the block's first THREADS threads.
template <int THREADS> static __device__ __forceinline__ void threads_sync() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

struct __align__(64) tensor_map { u64 words[16]; };  // is CUtensorMap
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
static __device__ __forceinline__ void copy_box(u32 to, const tensor_map *map, int column, int row, u32 barrier, u64 policy) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(map), "r"(column), "r"(row),
                 "r"(barrier), "l"(policy)
                 : "memory");
}
#else
// An arrival that comes when this thread's copies so far have.
static __device__ __forceinline__ void barrier_arrive_copied(u32 barrier) { asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory"); }
#endif

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
// rms(x) * weight is made in two halves: the kernel that writes x also leaves x * weight, rounded, and the sums of squares
// over every 16 columns; the map that reads them multiplies its finished sums by the row's scale.

#define SQUARES_TILE 16
static __device__ __forceinline__ int squares_tiles(int d) { return (d + SQUARES_TILE - 1) / SQUARES_TILE; }
static __device__ __forceinline__ int squares_row(int d) { return (squares_tiles(d) + 3) / 4 * 4; }
// By 8 neighbouring lanes, in an order that depends on d only.
static __device__ __forceinline__ float row_scale(const float *squares, int d, float eps, int lane8) {
    float sum = 0.0f;
    int tiles = squares_tiles(d);
#pragma unroll 8
    for (int t = lane8 * 4; t < tiles; t += 32) {
        float4 four = *(const float4 *)(squares + t);
        sum += four.x;
        if (t + 1 < tiles) sum += four.y;
        if (t + 2 < tiles) sum += four.z;
        if (t + 3 < tiles) sum += four.w;
    }
    return rsqrtf(lanes_sum<8>(sum) / (float)d + eps);
}
static __device__ __forceinline__ float squares_of_piece(uint4 x) {
    u32 pairs[4] = {x.x, x.y, x.z, x.w};
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sum += low_f32(pairs[i]) * low_f32(pairs[i]);
        sum += high_f32(pairs[i]) * high_f32(pairs[i]);
    }
    return sum;
}
static __device__ __forceinline__ uint4 multiply_piece(uint4 a, uint4 b) {
    return make_uint4(multiply_bf16x2(a.x, b.x), multiply_bf16x2(a.y, b.y), multiply_bf16x2(a.z, b.z), multiply_bf16x2(a.w, b.w));
}

// ---- Skinny linear maps (bf16): weights read once at memory speed ---------------------------------------------------------
// out[m, n] = input[m, k] * weights[n, k]^T for up to 64 rows m. A block makes whole tiles of 16 * pieces outputs, so many
// that all multiprocessors get the same number (the host chooses `pieces`): no sum waits for another block.
//
//     a warp that fetches weights --> ring in shared memory --> 12 warps, each for 16 of the outputs and all rows;
//     a warp that fetches input   -->  stages of 64 columns     stages go round among `groups` of `pieces` warps
//
// (Before sm_90, which has the copy engine, four warps fetch both.)
// Weights depend on no predecessor: their ring is filled while it still runs, and goes on being filled through a tile's
// end, so that memory is never left idle. At a tile's end the groups' sums meet in shared memory, are added in order of
// the groups, and go through the map's epilogue. Weights are the left operand of the matrix units, the input the right one.

#define LINEAR_CHUNK 64
#define LINEAR_WARPS 12            // that multiply; and the most pieces of a tile
#define LINEAR_GROUPS 6            // most of them
#define LINEAR_THREADS (LINEAR_WARPS * 32)
#if __CUDA_ARCH__ >= 900
#define LINEAR_FETCHERS 64         // the copy engine does the work
#else
#define LINEAR_FETCHERS 128
#endif

struct linear_args {
    tensor_map weights_map, input_map;  // sm_90 and later: boxes of 64 columns of a tile's rows, and of all rows
    const bf16 *weights;        // [n, k]
    const bf16 *bias;           // [n] or NULL
    const bf16 *input;          // [m, k]; qkv and gate_up: x times the norm's weight
    const float *squares_in;    // qkv, gate_up: [m, squares_row(k)] of x; NULL: the input is not scaled
    float eps;
    int m, n, k;
    int pieces, groups, stages, pad;
    rows_table table;
    bf16 *out;                  // qkv: q [m, n_heads*head_dim]; out: x [m, n]; gate_up: hidden [m, mlp]
    const bf16 *norm;           // out: [n] weight of the norm that x goes through next; any after the last layer
    bf16 *normed;               // out: [m, n] the new x times it
    float *squares_out;         // out: [m, squares_row(n)] of the new x
    int n_heads, n_kv_heads, head_dim, mlp;
    u64 layer_offset;           // qkv: layer * n_kv_heads * head_dim, times a cache's capacity: elements before the layer
    bf16 *tap0, *tap1, *tap2, *tap3;  // qkv: q, k, v before RoPE, k after; out: projection; gate_up: gate, up. NULL: not wanted
    const struct draw_entry *draws;   // head: [m]
    struct head_entry *heads;         // head: [tiles, m]
    float *logits;                    // head: [m, n] or NULL
};

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

// Never 0 and never 1; equals tsk__random_from_word.
static __device__ __forceinline__ double uniform_of(u32 word) { return ((double)word + 0.5) * (1.0 / 4294967296.0); }

struct draw_entry { float temperature; int mask_token_id; u64 seed; u32 position, pass; };  // is tsk__draw
struct prediction_entry { int id; float confidence, logit, log_sum_exp; };                  // is tsk__prediction
struct head_entry { double score; int id; float logit, max, sum; };                         // best of some ids; sum of exp(logit - max) over all of them

static __device__ __forceinline__ head_entry head_none() {
    head_entry none = {-1.0 / 0.0, 0x7fffffff, 0.0f, NEGATIVE, 0.0f};
    return none;
}
static __device__ __forceinline__ double head_score(const draw_entry &draw, int id, float logit) {
    if (!(draw.temperature > 0.0f)) return (double)logit;
    u32 c[4] = {(u32)id >> 2, draw.position, draw.pass, 0};
    philox4x32(c, (u32)draw.seed, (u32)(draw.seed >> 32));
    double u = uniform_of((id & 2) ? ((id & 1) ? c[3] : c[2]) : ((id & 1) ? c[1] : c[0]));
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
// A NaN is never better than what there is (which is head_none at first); the sum that it makes NaN tells of it.
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

// Rows of 16-byte pieces in shared memory, piece p of row r at place p ^ (r & 7): eight rows' equal pieces, which the matrix
// units load together, lie in different banks. With 8 pieces a row it is what the copy engine writes (128-byte swizzle).
static __device__ __forceinline__ u32 swizzled(int row, int piece, int pieces_a_row) { return (u32)(row * pieces_a_row + (piece ^ (row & 7))) * 16; }

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

static __device__ __forceinline__ void store_pieces(bf16 *to, uint4 low, uint4 high, int half) {
    *(uint4 *)to = low;
    *(uint4 *)(to + half) = high;
}

// How long a row of sums is (4 more keep rows apart in the banks) and where a column lies in it: equal fours of neighbouring
// items are in different banks.
static __device__ constexpr int sums_row(int width) { return (width + 15) / 16 * 16 + 4; }
static __device__ __forceinline__ int sums_place(int column) { return column ^ (column >> 5 & 3) << 2; }

// A tile's sums and what is done to all of them.
struct linear_sums {
    const float *sums;          // [groups, rows, sums_row(width)], columns at sums_place
    const float *scales;        // [rows] of the norm
    const bf16 *bias;           // [n] or NULL
    int groups, rows, width;
    int first_row, first;       // input row and output that the tile begins with
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
    template <class EPILOGUE> __device__ __forceinline__ bool exists(const linear_sums &t) const { return number / 32 * 32 < t.rows * EPILOGUE::a_row(t.width); }
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
        for (int i = 0; i < at_once; i++, from += t.rows * sums_row(t.width))
            if (first + i < t.groups) parts[i][0] = *(const float4 *)(from + low), parts[i][1] = *(const float4 *)(from + high);
#pragma unroll
        for (int i = 0; i < at_once; i++)
            if (first + i < t.groups) {
                y[0] += parts[i][0].x, y[1] += parts[i][0].y, y[2] += parts[i][0].z, y[3] += parts[i][0].w;
                y[4] += parts[i][1].x, y[5] += parts[i][1].y, y[6] += parts[i][1].z, y[7] += parts[i][1].w;
            }
    }
    float scale = t.scales[row];
#pragma unroll
    for (int e = 0; e < 8; e++) y[e] = y[e] * scale + (t.bias && t.first + column + e < t.n ? load(t.bias + t.first + column + e) : 0.0f);
}
static __device__ __forceinline__ uint4 pack_piece(const float (&y)[8]) {
    return make_uint4(pack_bf16(y[0], y[1]), pack_bf16(y[2], y[3]), pack_bf16(y[4], y[5]), pack_bf16(y[6], y[7]));
}

// The epilogues. `begin` and then `load` fetch what does not depend on the sums: load's addresses may depend on what begin
// fetched, so that a thread with several items begins them all before it loads the first.

// qkv: RoPE on q and k; q to its buffer, k and v to their rows of the cache unless the row is inactive. Of every 16 outputs
// the second 8 are the first ones' partners in RoPE (see `place`).
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
        for (int e = 0; e < 4; e++) ((float4 *)turn)[e] = ((const float4 *)(a.table.rope + (u64)i.row * (a.head_dim / 2) + p.d))[e];
        if (p.is_q) return;
        const cache_entry &entry = a.table.caches[request];
        cache = (bf16 *)(p.is_v ? entry.v : entry.k), capacity = entry.capacity;
    }
    __device__ __forceinline__ void finish(const linear_args &a, const linear_sums &t, const linear_item &i) const {
        if (!valid) return;
        place p(a, i.output);
        int half = a.head_dim / 2;
        u64 tap = ((u64)i.row * (p.is_q ? a.n_heads : a.n_kv_heads) + p.head) * a.head_dim + p.d;
        bf16 *before = p.is_q ? a.tap0 : p.is_v ? a.tap2 : a.tap1;
        float y[8];
        linear_result(t, i.row, i.column, y);
        uint4 low = pack_piece(y);
        linear_result(t, i.row, i.column + 8, y);
        uint4 high = pack_piece(y);
        if (before) store_pieces(before + tap, low, high, half);
        if (!p.is_v) {
            uint4 turned = rope_piece(low, high, turn, -1.0f);
            high = rope_piece(high, low, turn, 1.0f);
            low = turned;
        }
        if (p.is_q) {
            store_pieces(a.out + tap, low, high, half);
            return;
        }
        if (!p.is_v && a.tap3) store_pieces(a.tap3 + tap, low, high, half);
        if (active) store_pieces(cache + (a.layer_offset + (u64)p.head * a.head_dim) * capacity + (u64)position * a.head_dim + p.d, low, high, half);
    }
};

static __device__ __forceinline__ u32 add_bf16x2(u32 a, u32 b) { return pack_bf16(low_f32(a) + low_f32(b), high_f32(a) + high_f32(b)); }
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
        if (valid) x = *(const uint4 *)(a.out + (u64)i.row * a.n + i.output), norm = *(const uint4 *)(a.norm + i.output), active = a.table.rows[i.row].active;
    }
    __device__ __forceinline__ void finish(const linear_args &a, const linear_sums &t, const linear_item &i) const {
        uint4 sum = x;
        if (valid) {
            float y[8];
            linear_result(t, i.row, i.column, y);
            uint4 projection = pack_piece(y);
            if (active) {
                sum = make_uint4(add_bf16x2(x.x, projection.x), add_bf16x2(x.y, projection.y), add_bf16x2(x.z, projection.z), add_bf16x2(x.w, projection.w));
                *(uint4 *)(a.out + (u64)i.row * a.n + i.output) = sum;
            }
            if (a.tap0) *(uint4 *)(a.tap0 + (u64)i.row * a.n + i.output) = projection;
            *(uint4 *)(a.normed + (u64)i.row * a.n + i.output) = multiply_piece(sum, norm);
        }
        float squares = lanes_sum<SQUARES_TILE / 8>(squares_of_piece(sum));
        if (valid && i.output % SQUARES_TILE == 0) a.squares_out[(u64)i.row * squares_row(a.n) + i.output / SQUARES_TILE] = squares;
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
        if (a.tap0) *(uint4 *)(a.tap0 + at) = pack_piece(gate);
        if (a.tap1) *(uint4 *)(a.tap1 + at) = pack_piece(up);
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
template <int THREADS, class EPILOGUE> static __device__ __forceinline__ void finish_tile(const linear_args &a, const linear_sums &t, linear_item item, EPILOGUE epilogue) {
    for (;;) {
        epilogue.finish(a, t, item);
        item.place<EPILOGUE>(t, item.number + THREADS);
        if (!item.exists<EPILOGUE>(t)) return;
        epilogue.begin(a, item);
        epilogue.load(a, item);
    }
}

// What a block works on: stage after stage of the ring, 64 columns each, tile after tile.
struct linear_walk {
    int tile, chunk, chunks, tiles, stage, stages, phase;
    __device__ __forceinline__ linear_walk(const linear_args &a, int width) {
        tile = blockIdx.x;
        tiles = (a.n + width - 1) / width;
        chunks = (a.k + LINEAR_CHUNK - 1) / LINEAR_CHUNK;
        stages = a.stages;
        chunk = stage = phase = 0;
    }
    __device__ __forceinline__ int output(int width) const { return tile * width; }  // that the tile begins with
    __device__ __forceinline__ bool more() const { return tile < tiles; }
    __device__ __forceinline__ void next() {
        if (++stage == stages) stage = 0, phase ^= 1;
        if (++chunk == chunks) chunk = 0, tile += gridDim.x;
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
// By one thread: boxes of `rows` rows, tile after tile (weights) or always the same (input), to `offset` in each stage. A
// thread of its own for either: what one waits for does not hold up the other.
template <class WALK> static __device__ __forceinline__ void fetch_boxes(const tensor_map *map, WALK walk, const linear_ring &ring, u32 offset, int rows, bool by_tile, u64 policy) {
    for (int filled = 0; walk.more(); walk.next(), filled++) {
        ring.claim(walk, filled);
        barrier_expect(ring.full + walk.stage * 8, rows * LINEAR_CHUNK * 2);
        copy_box(ring.memory + walk.stage * ring.stage_bytes + offset, map, walk.chunk * LINEAR_CHUNK, by_tile ? walk.output(rows) : 0, ring.full + walk.stage * 8, policy);
    }
}
#else
// By LINEAR_FETCHERS threads: rows first .. first + count - 1 of a matrix [end, k], 16 bytes a thread.
static __device__ __forceinline__ void fetch_rows(const bf16 *from, int first, int count, int end, int k, int at, u32 to, int thread) {
    int column = at + (thread & 7) * 8;
    for (int row = thread >> 3; row < count; row += LINEAR_FETCHERS / 8) {
        bool valid = first + row < end && column < k;
        copy16_async(to + swizzled(row, thread & 7, 8), from + (valid ? (u64)(first + row) * k + column : 0), valid);
    }
}
static __device__ __forceinline__ void fetch(const linear_args &a, linear_walk walk, const linear_ring &ring, int width, int rows, int thread) {
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
        if (a.squares_in) scale = row_scale(a.squares_in + (u64)min(row, a.m - 1) * squares_row(a.k), a.k, a.eps, lane & 7);
        if ((lane & 7) == 0) scales[row] = scale;
    }
}

template <int M, class EPILOGUE> static __device__ __forceinline__ void linear(const linear_args &a) {
    const int m_sub = M / 8;  // 8-row pieces
    extern __shared__ __align__(1024) char linear_memory[];
    int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31, width = a.pieces * 16;
    linear_ring ring = {shared_address(linear_memory), (u32)(width + M) * LINEAR_CHUNK * 2, 0, 0};
    float *sums = (float *)(linear_memory + a.stages * ring.stage_bytes), *scales = sums + a.groups * M * (width + 4);
    ring.full = shared_address(scales + M);
    ring.empty = ring.full + a.stages * 8;
    linear_walk walk(a, width);

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
        barriers_publish();
#endif
    }
    __syncthreads();
    let_successor_start();
#if __CUDA_ARCH__ >= 900
    if (warp == LINEAR_WARPS) {  // nothing of the pass writes weights: this warp waits for no predecessor
        if (lane == 0) fetch_boxes(&a.weights_map, walk, ring, 0, width, true, read_once_policy());
        return;
    }
    wait_for_predecessor();
    if (warp > LINEAR_WARPS) {
        if (lane == 0) fetch_boxes(&a.input_map, walk, ring, width * LINEAR_CHUNK * 2, M, false, read_often_policy());
        return;
    }
#else
    if (thread >= LINEAR_THREADS) return fetch(a, walk, ring, width, M, thread - LINEAR_THREADS);
#endif
    make_scales(a, scales, M, warp, LINEAR_WARPS);  // while the first stages come

    // A group always meets the same stages of the ring (their number is a multiple of the groups'): it waits for every phase.
    int group = warp / a.pieces, piece = warp - group * a.pieces, turn = 0, tiles = 0;
    float acc[m_sub][4];
    for (; walk.more(); tiles++) {
        linear_sums t = {sums, scales, a.bias, a.groups, M, width, 0, walk.output(width), a.n};
        linear_item item;
        EPILOGUE epilogue;
        item.place<EPILOGUE>(t, thread);
        epilogue.begin(a, item);
        epilogue.load(a, item);
#pragma unroll
        for (int j = 0; j < m_sub; j++) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0.0f;
        for (int chunk = 0; chunk < walk.chunks; chunk++, walk.next(), turn = turn + 1 == a.groups ? 0 : turn + 1) {
            if (turn != group) continue;
            u32 w_base = ring.memory + walk.stage * ring.stage_bytes, x_base = w_base + width * LINEAR_CHUNK * 2;
            barrier_wait(ring.full + walk.stage * 8, walk.phase);
#pragma unroll
            for (int kk = 0; kk < LINEAR_CHUNK / 16; kk++) {
                u32 w[4];
                load_matrices(w, w_base + swizzled(piece * 16 + (lane & 15), kk * 2 + (lane >> 4), 8));
#pragma unroll
                for (int j = 0; j < m_sub; j += 2) {
                    u32 x[4];
                    load_matrices(x, x_base + swizzled(j * 8 + (lane & 7) + (lane >> 4) * 8, kk * 2 + (lane >> 3 & 1), 8));
                    multiply_tile(acc[j], w, x[0], x[1]);
                    multiply_tile(acc[j + 1], w, x[2], x[3]);
                }
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(ring.empty + walk.stage * 8);
        }

        if (tiles > 0) threads_sync<LINEAR_THREADS>();  // the last tile's sums have been read
        if (group < a.groups) {
            float *to = sums + group * M * (width + 4) + (lane & 3) * 2 * (width + 4);
            int places[2] = {sums_place(piece * 16 + (lane >> 2)), sums_place(piece * 16 + 8 + (lane >> 2))};
#pragma unroll
            for (int j = 0; j < m_sub; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) to[(j * 8 + (e & 1)) * (width + 4) + places[e >> 1]] = acc[j][e];
        }
        threads_sync<LINEAR_THREADS>();
        finish_tile<LINEAR_THREADS>(a, t, item, epilogue);
    }
}

// linear_<kind>_<M>: up to M rows. Grid: one block a multiprocessor, at most the number of tiles; block LINEAR_THREADS +
// LINEAR_FETCHERS; shared memory: `stages`, a multiple of `groups`, of (16 pieces + M) * 128 bytes, + groups * M * (16 pieces
// + 4) * 4 + M * 4 + stages * 16. groups * pieces <= LINEAR_WARPS. bf16 in and out, f32 sums.
//   qkv: equals qkv (norm, projection, bias, RoPE, cache write); head_dim % 16 == 0
//   out: equals attn_out and down (projection, residual); pieces even
//   gate_up: equals gate_up (norm, both projections, silu(gate) * up); weights alternate 8 rows of gate, 8 of up
//   head: the first stage of head; head_finish is the second
#define LINEAR_KERNELS(M) \
    extern "C" __global__ void __launch_bounds__(LINEAR_THREADS + LINEAR_FETCHERS, 1) linear_qkv_##M(const __grid_constant__ linear_args a) { linear<M, qkv_epilogue>(a); } \
    extern "C" __global__ void __launch_bounds__(LINEAR_THREADS + LINEAR_FETCHERS, 1) linear_out_##M(const __grid_constant__ linear_args a) { linear<M, out_epilogue>(a); } \
    extern "C" __global__ void __launch_bounds__(LINEAR_THREADS + LINEAR_FETCHERS, 1) linear_gate_up_##M(const __grid_constant__ linear_args a) { linear<M, gate_up_epilogue>(a); } \
    extern "C" __global__ void __launch_bounds__(LINEAR_THREADS + LINEAR_FETCHERS, 1) linear_head_##M(const __grid_constant__ linear_args a) { linear<M, head_epilogue>(a); }
LINEAR_KERNELS(32)
LINEAR_KERNELS(64)

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// ---- Linear maps for up to 128 rows (bf16, sm_90a) ------------------------------------------------------------------------
// As the last, with matrix units that read both operands from shared memory, whose bandwidth would not suffice otherwise.
// Four blocks make a cluster, so that the way from L2 does. SPLIT of them make a tile together, each from a share of the
// columns, and each finishes a share of the rows; the others make other tiles from the same share of the input, of which
// each fetches a part for all.

#define WIDE_ROWS 128
#define WIDE_BOX 32                // rows of the input that are fetched at a time
#define WIDE_CLUSTER 4
#define WIDE_THREADS 256           // two warp groups that multiply, 64 rows each; then come the warps that
enum { WIDE_WEIGHTS = 8, WIDE_INPUT = 9, WIDE_SCALES = 10, WIDE_WARPS = 12 };  // fetch weights, fetch input, and make scales (two)

static __device__ __forceinline__ int cluster_rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// Orders nothing but barriers_publish and what has been waited for.
static __device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
static __device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
// The same place in another block's shared memory.
static __device__ __forceinline__ u32 peer_address(u32 address, int rank) {
    u32 there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}
// To another block's shared memory, whose barrier counts the bytes as they come.
static __device__ __forceinline__ void copy_to_peer(u32 to, u32 from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "r"(from), "r"(bytes), "r"(barrier) : "memory");
}
static __device__ __forceinline__ void fence_cluster() { asm volatile("fence.acq_rel.cluster;" ::: "memory"); }
// Orders what the matrix units have read before; what threads have read or written only by fence_cluster.
static __device__ __forceinline__ void barrier_arrive_peer(u32 barrier) { asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory"); }
// To the same place of the blocks in `ranks`, whose barriers at the same place as this one's count the bytes.
static __device__ __forceinline__ void copy_box_to_peers(u32 to, const tensor_map *map, int column, int row, u32 barrier, u32 ranks, u64 policy) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(to), "l"(map),
                 "r"(column), "r"(row), "r"(barrier), "h"((unsigned short)ranks), "l"(policy)
                 : "memory");
}

// A matrix in shared memory as the matrix units want it told: rows of 128 bytes, swizzled, 8 of them 1024 bytes.
static __device__ __forceinline__ u64 matrix_descriptor(u32 address) { return (u64)(address >> 4 & 0x3fff) | (u64)1 << 16 | (u64)64 << 32 | (u64)1 << 62; }
static __device__ __forceinline__ void wide_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
static __device__ __forceinline__ void wide_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> static __device__ __forceinline__ void wide_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }
#define WIDE_4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define WIDE_8(i) WIDE_4(i), WIDE_4(i + 4)
#define WIDE_16(i) WIDE_8(i), WIDE_8(i + 8)
// c[64, N] += a[64, 16] * b[N, 16]^T by a warp group. Warp w of it holds rows 16w + lane/4 (c[4j], c[4j + 1]) and 8 further
// (the next two), columns 8j + 2*(lane%4) and the next.
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
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" WIDE_REGISTERS_##REGISTERS "}, %" #REGISTERS ", %" #NEXT ", 1, 1, 1, 0, 0;" \
                     : __VA_ARGS__ \
                     : "l"(a), "l"(b)); \
    }
MULTIPLY_WIDE(80, 40, 41, WIDE_16(0), WIDE_16(16), WIDE_8(32))
MULTIPLY_WIDE(112, 56, 57, WIDE_16(0), WIDE_16(16), WIDE_16(32), WIDE_8(48))
MULTIPLY_WIDE(208, 104, 105, WIDE_16(0), WIDE_16(16), WIDE_16(32), WIDE_16(48), WIDE_16(64), WIDE_16(80), WIDE_8(96))
MULTIPLY_WIDE(216, 108, 109, WIDE_16(0), WIDE_16(16), WIDE_16(32), WIDE_16(48), WIDE_16(64), WIDE_16(80), WIDE_8(96), WIDE_4(104))
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
    float *sums;                // [SPLIT, 128 / SPLIT, sums_row] those of the rows that it finishes; with SPLIT 1 the same
    float *scales;
    u32 scaled, summed, read;   // barriers: the scales; SPLIT > 1: the other shares' bytes, and all shares' having read theirs
};

// Of the boxes of WIDE_BOX rows this sharer's part, to all sharers.
template <int N, int SPLIT> static __device__ __forceinline__ void wide_fetch_input(const linear_args &a, wide_walk<N, SPLIT> walk, const linear_ring &ring) {
    const int boxes = WIDE_ROWS / WIDE_BOX / walk.SHARERS, box_bytes = WIDE_BOX * LINEAR_CHUNK * 2;
    u64 policy = read_often_policy();
    u32 ranks = 0;
    for (int i = 0; i < walk.SHARERS; i++) ranks |= 1u << walk.input_peer(i);
    for (int filled = 0; walk.more(); walk.next(), filled++) {
        u32 to = ring.memory + walk.stage * ring.stage_bytes + N * LINEAR_CHUNK * 2, full = ring.full + walk.stage * 8;
        ring.claim(walk, filled);
        barrier_expect(full, WIDE_ROWS * LINEAR_CHUNK * 2);
        for (int box = walk.sharer * boxes; box < (walk.sharer + 1) * boxes; box++)
            copy_box_to_peers(to + box * box_bytes, &a.input_map, walk.chunk * LINEAR_CHUNK, box * WIDE_BOX, full, ranks, policy);
    }
}

template <int N, int SPLIT, class EPILOGUE> static __device__ __forceinline__ void wide_multiply(const linear_args &a, wide_walk<N, SPLIT> walk, const linear_ring &ring, const wide_memory &memory) {
    const int padded = sums_row(N), rows = WIDE_ROWS / SPLIT, rounds = (rows * EPILOGUE::a_row(N) + WIDE_THREADS - 1) / WIDE_THREADS;
    int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31;
    bool releases = lane < walk.SHARERS;  // to those that fill this block's stages
    int filler = walk.input_peer(lane % walk.SHARERS);
    float acc[N / 2];
    for (u32 tiles = 0; walk.more(); tiles++) {
        bool is_last = walk.is_last_tile();
        linear_sums t = {memory.sums, memory.scales, a.bias, SPLIT, rows, N, walk.share * rows, walk.output(N), a.n};
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
            u32 w = ring.memory + walk.stage * ring.stage_bytes, x = w + N * LINEAR_CHUNK * 2 + (warp >> 2) * 64 * LINEAR_CHUNK * 2;
            barrier_wait(ring.full + walk.stage * 8, walk.phase);
            wide_begin();
#pragma unroll
            for (int kk = 0; kk < LINEAR_CHUNK / 16; kk++) multiply_wide<N>(acc, matrix_descriptor(x + kk * 32), matrix_descriptor(w + kk * 32));
            wide_commit();
            wide_wait<1>();  // for the stage before
            if (last_empty && releases) barrier_arrive_peer(peer_address(last_empty, filler));
            last_empty = left > walk.stages ? ring.empty + walk.stage * 8 : 0;  // the last ones are held: the sums take their place
        }
        wide_wait<0>();

        threads_sync<WIDE_THREADS>();  // the ring has been read
        // Where its row lies among the block's is where it lies among those that it finishes: only the others' need copies.
        bool stays = warp * 16 / rows == walk.share;
        float *own = (stays ? memory.sums : memory.own) + (warp * 16 + (lane >> 2)) * padded;
#pragma unroll
        for (int i = 0; i < N / 2; i += 2) *(float2 *)(own + (i & 2) * 4 * padded + sums_place(i / 4 * 8 + (lane & 3) * 2)) = make_float2(acc[i], acc[i + 1]);
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
                copy_to_peer(peer_address(shared_address(memory.sums + walk.share * rows * padded), peer), shared_address(memory.own + thread * rows * padded), rows * padded * 4,
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
        for (int stage = 0; stage < walk.stages && releases; stage++) barrier_arrive_peer(peer_address(ring.empty + stage * 8, filler));
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

// wide_<kind>: as linear_<kind>, up to 128 rows. Grid: whole clusters of WIDE_CLUSTER; block WIDE_WARPS * 32; weights_map:
// boxes of a tile's N rows, input_map: of 32; shared memory: the larger of stages * (N + 128) * 128 and 512 * sums_row(N), with
// SPLIT > 1 another 512 * sums_row(N), + 512 + stages * 16 + 24. At least 2 stages, and no more than every block has of a tile.
#define WIDE_KERNEL(kind, N, SPLIT) \
    extern "C" __global__ void __cluster_dims__(WIDE_CLUSTER, 1, 1) __launch_bounds__(WIDE_WARPS * 32, 1) wide_##kind(const __grid_constant__ linear_args a) { wide<N, SPLIT, kind##_epilogue>(a); }
WIDE_KERNEL(qkv, 112, 1)
WIDE_KERNEL(out, 80, 2)
WIDE_KERNEL(gate_up, 208, 1)
WIDE_KERNEL(head, 216, 1)
#endif

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
            prefetch_l2((const char *)k + offset);
            prefetch_l2((const char *)v + offset);
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
// the long ones leave. What they have in common costs them nothing where two blocks fit on a multiprocessor
// in any case (160 KB and more).
template <int HD> static __device__ __forceinline__ void attention_any(const attention_args &a) {
    int count = a.table.tiles[blockIdx.z].count;
    if (count > 64) attention<HD, 4, 2, 1, 2, 1>(a);
    else if (count > 32) attention<HD, 4, 1, 1, 3, 1>(a);
    else attention<HD, 2, 1, 2, 3, 1>(a);
}
// Shared memory 768 * HD bytes, and 1 KB of their own: 97 of the 99 KB that the smaller GPUs have. All equal attend.
//   attention_few_<HD>: tiles of up to 32 rows, grid (1, n_heads, tiles), block 128, 1024 * HD bytes: where there are no more
//     blocks than multiprocessors, each has another stage's keys under way
//   attention_small_<HD>: tiles of up to 32 rows, grid (4, n_heads, tiles), block 256
//   attention_medium_<HD>: tiles of up to 64 rows, grid (4, n_heads, tiles), block 256
//   attention_large_<HD>: tiles of up to 128 rows, grid (1, n_heads, tiles), block 128
#define ATTENTION_KERNELS(HD) \
    extern "C" __global__ void __launch_bounds__(128, 1) attention_few_##HD(const __grid_constant__ attention_args a) { attention<HD, 2, 1, 2, 4, 1>(a); } \
    extern "C" __global__ void __launch_bounds__(256, 2) attention_small_##HD(const __grid_constant__ attention_args a) { attention<HD, 2, 1, 4, 3, 4>(a); } \
    extern "C" __global__ void __launch_bounds__(256, 2) attention_medium_##HD(const __grid_constant__ attention_args a) { attention<HD, 4, 1, 2, 3, 4>(a); } \
    extern "C" __global__ void __launch_bounds__(128, 2) attention_large_##HD(const __grid_constant__ attention_args a) { attention_any<HD>(a); }
ATTENTION_KERNELS(64)
ATTENTION_KERNELS(128)

// ---- What is skipped and what is committed ------------------------------------------------------------------------------

// Whether a row whose last states resemble these is skipped; cosines[state * stride]. Equals tsk__skip_similar.
static __device__ __forceinline__ bool is_similar(const float *cosines, int n_states, int stride, float threshold, float outlier) {
    double sum = 0.0;
    for (int state = 0; state < n_states; state++) {
        float c = cosines[(u64)state * stride];
        if (!(c >= outlier)) return false;
        sum += (double)c;
    }
    return n_states > 0 && sum / n_states > (double)threshold;
}

// Decides about the rows whose request compares n_states states; cosines [n_states, stride]. `skipped` and its copy for the
// host are [rows of begin]. `masks`: skipped rows become inactive. One thread a row: grid ceil(n / 128), block 128. Equals decide.
extern "C" __global__ void __launch_bounds__(128) decide(rows_table table, int n, int n_states, const float *cosines, int stride, int masks, int *skipped, int *host_skipped) {
    int i = blockIdx.x * 128 + threadIdx.x;
    wait_for_predecessor();
    if (i >= n) return;
    row_entry row = table.rows[i];
    const cache_entry *cache = &table.caches[row.request];
    if (cache->n_states != n_states || !(row.flags & ROW_DECIDED)) return;
    bool skips = (row.flags & ROW_SKIPS) || is_similar(cosines + row.number, n_states, stride, cache->skip_threshold, cache->skip_outlier);
    skipped[row.number] = host_skipped[row.number] = skips;
    if (masks && skips) table.rows[i].active = 0;
}

struct candidate_entry { int position, slot, head; };                                       // is tsk__candidate
struct selection_entry { int request, first, n, commits, transfer, quota; float threshold, factor; int is_random; u32 pass; u64 seed; };  // is tsk__selection
struct choice_entry { int id; float confidence, log_sum_exp; int is_committed; };           // is tsk__choice

// The two equal the functions of these names in >>schedule.
static __device__ __forceinline__ bool select_accepts(const selection_entry &s, int rank, float confidence) {
    if (s.transfer == 0) return rank <= s.quota;
    if (s.transfer == 1) return confidence >= s.threshold;
    return (double)confidence >= 1.0 - (double)s.factor / (rank + 1);
}
static __device__ __forceinline__ bool select_is_better(float a, float b) { return a > b || (a == a && b != b); }
static __device__ __forceinline__ float random_confidence(u64 seed, int position, u32 pass) {
    u32 c[4] = {0, (u32)position, pass, 1};
    philox4x32(c, (u32)seed, (u32)(seed >> 32));
    return (float)uniform_of(c[0]);
}

// One request's candidates: their predictions, of the head's rows or kept from an earlier pass, are ranked, and those that
// the rule takes are written to the canvas. All rules take the best ones, so that a candidate's rank says whether it is among
// them. confidences [candidates] is scratch; selections, candidates and choices are the host's. Grid selections, block 128.
// Equals select.
extern "C" __global__ void __launch_bounds__(128) select_tokens(rows_table table, const selection_entry *selections, const candidate_entry *candidates, const prediction_entry *predictions,
                                                                float *confidences, choice_entry *choices) {
    selection_entry s = selections[blockIdx.x];
    const cache_entry cache = table.caches[s.request];
    candidates += s.first, confidences += s.first, choices += s.first;
    let_successor_start();
    wait_for_predecessor();
    for (int i = threadIdx.x; i < s.n; i += 128) {
        candidate_entry c = candidates[i];
        if (c.head >= 0) cache.predictions[c.slot] = predictions[c.head];
        confidences[i] = s.is_random ? random_confidence(s.seed, c.position, s.pass) : cache.predictions[c.slot].confidence;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < s.n; i += 128) {
        candidate_entry c = candidates[i];
        choice_entry choice = {cache.predictions[c.slot].id, confidences[i], cache.predictions[c.slot].log_sum_exp, 0};
        int rank = 1;
        for (int j = 0; j < s.n; j++) rank += j < i ? !select_is_better(choice.confidence, confidences[j]) : select_is_better(confidences[j], choice.confidence);
        choice.is_committed = s.commits && (rank == 1 || select_accepts(s, rank, choice.confidence));
        if (choice.is_committed) cache.tokens[c.position] = choice.id;
        choices[i] = choice;
    }
}

// ---- The beginning and the end of a pass --------------------------------------------------------------------------------

// Copies the host's row table to the device and prepares RoPE's angles; then tells the host that its image may change.
// Grid n + 1, block 64. `image` is pinned host memory: rows [n] here, caches and tiles by the last block.
extern "C" __global__ void pass_begin(const uint4 *rows, const uint4 *caches, const uint4 *tiles, int n, int n_caches, int n_tiles, rows_table table,
                                      const float *frequencies, int half, u32 *state, volatile u32 *fetched) {
    __shared__ int flag;
    wait_for_predecessor();
    if (blockIdx.x == n) {
        for (int i = threadIdx.x; i < n_caches * (int)(sizeof(cache_entry) / 16); i += 64) ((uint4 *)table.caches)[i] = caches[i];
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

// By 512 threads: n values move down, a piece at a time, first to last; a piece is read whole before any of it is written,
// and what is written lies below all that is still to be read.
template <class V> static __device__ __forceinline__ void slide_values(V *to, const V *from, u64 n) {
    for (u64 first = 0; first < n; first += 2048) {
        u64 at = first + threadIdx.x;
        V values[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (at + i * 512 < n) values[i] = from[at + i * 512];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (at + i * 512 < n) to[at + i * 512] = values[i];
    }
}
// Grid planes, block 512; all sizes even. Never launched before its predecessor ends. Equals slide.
extern "C" __global__ void __launch_bounds__(512) slide(char *base, u64 pitch, u64 to, u64 from, u64 size) {
    char *plane = base + blockIdx.x * pitch;
    if ((to | from | size | (u64)plane) % 16 == 0) slide_values((uint4 *)(plane + to), (const uint4 *)(plane + from), size / 16);
    else slide_values((u16 *)(plane + to), (const u16 *)(plane + from), size / 2);
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
static __device__ __forceinline__ void pre_norm_row(const bf16 *x, const bf16 *weight, bf16 *normed, float *squares, int d) {
    row_squares(x, d, squares);
    for (int i = threadIdx.x; i < d / 8; i += 256) ((uint4 *)normed)[i] = multiply_piece(((const uint4 *)x)[i], ((const uint4 *)weight)[i]);
}
static __device__ __forceinline__ void pre_norm_row(const float *, const float *, float *, float *, int) {}
// normed [n, d] = x * weight and squares [n, squares_row(d)] of x, after something other than a linear map wrote it. Grid n, block 256.
extern "C" __global__ void __launch_bounds__(256) pre_norm(const bf16 *x, const bf16 *weight, bf16 *normed, float *squares, int d) {
    u64 row = blockIdx.x;
    let_successor_start();
    wait_for_predecessor();
    pre_norm_row(x + row * d, weight, normed + row * d, squares + row * squares_row(d), d);
}

// x[i] = table[token of row i], where active; and the first half of the first norm where `weight` (bf16). Grid n, block 256.
// Equals embed.
template <class T> static __device__ __forceinline__ void embed(const T *embedding, rows_table table, T *x, const T *weight, T *normed, float *squares, int d) {
    let_successor_start();
    wait_for_predecessor();
    u64 row = blockIdx.x;
    row_entry entry = table.rows[row];
    const int *canvas = table.caches[entry.request].tokens;
    const T *from = embedding + (u64)(canvas ? canvas[entry.position] : entry.token) * d;
    if (entry.active) copy_row(x + row * d, from, d);
    if (weight) pre_norm_row(entry.active ? from : x + row * d, weight, normed + row * d, squares + row * squares_row(d), d);
}

// out[i] = rms(x[index[i]]) * weight, index NULL: i. Grid n, block 256, shared memory 4 * squares_row(d) bytes.
template <class T> static __device__ __forceinline__ void norm(const T *x, const int *index, const T *weight, T *out, int d, float eps) {
    extern __shared__ __align__(16) float tile_squares[];
    __shared__ float scale;
    let_successor_start();
    wait_for_predecessor();
    x += (u64)(index ? index[blockIdx.x] : (int)blockIdx.x) * d;
    out += (u64)blockIdx.x * d;
    row_squares(x, d, tile_squares);
    __syncthreads();
    if (threadIdx.x < 32) {
        float s = row_scale(tile_squares, d, eps, threadIdx.x & 7);
        if (threadIdx.x == 0) scale = s;
    }
    __syncthreads();
    if (sizeof(T) == 2 && d % 8 == 0) {
        for (int i = threadIdx.x; i < d / 8; i += 256) ((uint4 *)out)[i] = normalised(((const uint4 *)x)[i], scale, ((const uint4 *)weight)[i]);
        return;
    }
    for (int i = threadIdx.x; i < d; i += 256) store(out + i, rounded(load(x + i) * scale, x) * load(weight + i));
}

// y [n, (n_heads + 2 n_kv_heads) * head_dim] + bias, in the order of `place`: RoPE, q to its buffer, k and v to the cache. Grid n, block 256.
struct rope_args {
    rows_table table;
    int n_heads, n_kv_heads, head_dim;
    u64 layer_offset;
};
// Where 8 neighbouring values, or one, of a row's q, k or v come from and go to.
template <class T> struct rope_place {
    int d, is_v, apart;      // apart: from a value to its partner in y
    u64 at, tap;
    T *before, *after, *to;  // before RoPE and after for a trace (NULL: not wanted); NULL: the row is inactive
};
// `first`: which of the (n_heads + 2 n_kv_heads) * head_dim / 2 places of a first half.
template <class T> static __device__ __forceinline__ rope_place<T> rope_place_of(const rope_args &a, const row_entry &entry, const cache_entry &cache, int row, int first, T *q, T *tap_q,
                                                                                 T *tap_k, T *tap_v, T *tap_rope) {
    int hd = a.head_dim, half = hd / 2, head = first / half, kv = head - a.n_heads;
    rope_place<T> p;
    p.d = first - head * half;
    p.apart = half % 8 ? half : 8;  // see `place`
    p.at = (u64)head * hd + (half % 8 ? p.d : p.d / 8 * 16 + p.d % 8);
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
        uint4 low = *(const uint4 *)(y + p.at), high = *(const uint4 *)(y + p.at + p.apart);
        if (bias) low = add_bias(low, bias + p.at), high = add_bias(high, bias + p.at + p.apart);
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
        float low = load(y + p.at), high = load(y + p.at + p.apart);
        if (bias) low = rounded(low + load(bias + p.at), y), high = rounded(high + load(bias + p.at + p.apart), y);
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

// cosines[row] = cos(x[row], its slot's state `state`), also the host's copy of them, and x becomes the pass's own state.
// Inactive rows and rows without a slot or that state do nothing. Grid n, block 256. Equals compare.
template <class T> static __device__ __forceinline__ void compare(const T *x, rows_table table, int state, float *cosines, float *host_cosines, int d) {
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
        double cosine = (double)dot / (lengths > 1e-8 ? lengths : 1e-8);
        cosines[entry.number] = host_cosines[entry.number] = cosine > 1.0 ? 1.0f : (float)cosine;  // (what is no number stays none)
    }
    copy_row(state_row<T>(cache, entry.slot, 1, state, d), x, d);
}

// What a row's flags ask for after the layers: block (row, state) copies the pass's own state over the one to compare with;
// block (row, states) stores the output, or takes the stored one where the row was skipped. Grid (n, states + 1), block 256.
// Equals keep.
template <class T> static __device__ __forceinline__ void keep(T *x, rows_table table, const int *skipped, int d) {
    let_successor_start();
    wait_for_predecessor();
    row_entry entry = table.rows[blockIdx.x];
    cache_entry cache = table.caches[entry.request];
    bool was_skipped = (entry.flags & ROW_DECIDED) && skipped[entry.number];
    if (entry.slot < 0) return;
    if (blockIdx.y + 1 == gridDim.y) {
        T *output = (T *)cache.outputs + (u64)entry.slot * d;
        x += (u64)blockIdx.x * d;
        if (entry.flags & ROW_OUTPUT) copy_row(was_skipped ? x : output, was_skipped ? output : x, d);
    } else if ((entry.flags & ROW_REMEMBER) && !(was_skipped && (entry.flags & ROW_IF_RAN)) && blockIdx.y < cache.n_states)
        copy_row(state_row<T>(cache, entry.slot, 0, blockIdx.y, d), state_row<T>(cache, entry.slot, 1, blockIdx.y, d), d);
}

// to[i] = from[index[i]], or to[index[i]] = from[i] (scatter). Grid n, block 256. Equals compact and expand.
template <class T> static __device__ __forceinline__ void move_rows(T *to, const T *from, const int *index, int scatter, int d) {
    let_successor_start();
    wait_for_predecessor();
    u64 i = blockIdx.x, j = index[blockIdx.x];
    copy_row(to + (scatter ? j : i) * d, from + (scatter ? i : j) * d, d);
}

// ---- Loading: stored values to weights ------------------------------------------------------------------------------------

// Where element e of a tensor of `columns` columns goes: rows follow each other from `first_row` on (interleave 0), in groups
// of 8 that alternate with another tensor's (1: gate, 2: up), or in groups of 8 of a head's first half that alternate with
// its second half's (3: q, k and v; half_head is a multiple of 8).
struct placing { u64 columns, first_row; int interleave, half_head; };
static __device__ __forceinline__ u64 place(const placing &p, u64 e) {
    u64 row = e / p.columns, column = e - row * p.columns;
    if (p.interleave == 3) {
        u64 head = row / (2 * p.half_head), d = row - head * (2 * p.half_head);
        row = head * (2 * p.half_head) + d % p.half_head / 8 * 16 + d / p.half_head * 8 + d % 8;
    } else if (p.interleave) row = row / 8 * 16 + row % 8 + (p.interleave == 2 ? 8 : 0);
    return (p.first_row + row) * p.columns + column;
}
enum { STORED_F32, STORED_F16, STORED_BF16 };
// Elements first .. first + count - 1 of a tensor, from their stored form. Any grid, block 256.
template <class T> static __device__ __forceinline__ void convert(const void *from, int stored, T *to, u64 first, u64 count, placing p) {
    wait_for_predecessor();
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
    wait_for_predecessor();
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
    wait_for_predecessor();
    for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) store(to + i, value);
}

#define ROW_KERNELS(T, S) \
    extern "C" __global__ void __launch_bounds__(256) embed_##S(const T *embedding, rows_table table, T *x, const T *weight, T *normed, float *squares, int d) { embed(embedding, table, x, weight, normed, squares, d); } \
    extern "C" __global__ void __launch_bounds__(256) norm_##S(const T *x, const int *index, const T *weight, T *out, int d, float eps) { norm(x, index, weight, out, d, eps); } \
    extern "C" __global__ void __launch_bounds__(256) rope_cache_##S(const T *y, const T *bias, const __grid_constant__ rope_args a, T *q, T *tap_q, T *tap_k, T *tap_v, T *tap_rope) { rope_cache(y, bias, a, q, tap_q, tap_k, tap_v, tap_rope); } \
    extern "C" __global__ void __launch_bounds__(128) silu_##S(const T *y, const T *bias, T *hidden, int mlp, T *tap_gate, T *tap_up) { silu_product(y, bias, hidden, mlp, tap_gate, tap_up); } \
    extern "C" __global__ void __launch_bounds__(256) residual_##S(const T *y, const T *bias, rows_table table, T *x, int d, T *tap) { residual(y, bias, table, x, d, tap); } \
    extern "C" __global__ void __launch_bounds__(128) attend_##S(const T *q, T *out, rows_table table, int n_heads, int n_kv_heads, int hd, float scale, u64 layer_offset) { attend(q, out, table, n_heads, n_kv_heads, hd, scale, layer_offset); } \
    extern "C" __global__ void __launch_bounds__(256) compare_##S(const T *x, rows_table table, int state, float *cosines, float *host_cosines, int d) { compare(x, table, state, cosines, host_cosines, d); } \
    extern "C" __global__ void __launch_bounds__(256) keep_##S(T *x, rows_table table, const int *skipped, int d) { keep(x, table, skipped, d); } \
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

// Second stage: joins a row's tiles, in an order that depends on their number only. Where all logits are NaN it predicts an
// id still, and not the mask. Grid m, block 128.
extern "C" __global__ void __launch_bounds__(128) head_finish(const head_entry *heads, int n_tiles, int m, const draw_entry *draws, prediction_entry *predictions) {
    __shared__ head_entry parts[128];
    let_successor_start();
    wait_for_predecessor();
    head_entry best = head_none();
    for (int t = threadIdx.x; t < n_tiles; t += 128) best = head_merge(best, heads[(u64)t * m + blockIdx.x]);
    parts[threadIdx.x] = best;
    for (int step = 64; step > 0; step /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < step) parts[threadIdx.x] = head_merge(parts[threadIdx.x], parts[threadIdx.x + step]);
    }
    if (threadIdx.x == 0) {
        best = parts[0];
        prediction_entry p;
        p.id = best.id == 0x7fffffff ? draws[blockIdx.x].mask_token_id == 0 : best.id;
        p.logit = best.logit;
        p.log_sum_exp = best.max + logf(best.sum);
        p.confidence = expf(p.logit - p.log_sum_exp);
        predictions[blockIdx.x] = p;
    }
}

// ---- Ceilings --------------------------------------------------------------------------------------------------------------

// Reads n 16-byte pieces and nothing else, so it need not wait for its predecessor. Any grid, block 512; *out is never
// written in practice.
extern "C" __global__ void __launch_bounds__(512) read_stream(const uint4 *p, u64 n, u32 *out) {
    u32 mixed = 0;
    u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x, step = (u64)gridDim.x * blockDim.x;
    for (; i + 3 * step < n; i += 4 * step) {
        uint4 a = p[i], b = p[i + step], c = p[i + 2 * step], d = p[i + 3 * step];
        mixed ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    if (mixed == 0x12345678) *out = mixed;
}
