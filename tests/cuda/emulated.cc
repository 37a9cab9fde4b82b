/* The kernels that have most to go wrong in them, the linear maps and attention, run on the CPU (emulated.h) in orders
   drawn from seeds, beside plain loops in double: what can be known of them without a GPU. As sm_90 has them, or with
   EMULATE_SM80 as GPUs before it do. */
#include "emulated_kernels.h" /* made of kernels.cu by emulated.awk */

#include "../test.h"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define WIDE(kind) wide_##kind
#else
#define WIDE(kind) NULL
#endif

typedef std::vector<bf16> values;

static std::mt19937 dice(7);

static values random_values(size_t n, float scale) {
    values v(n);
    for (bf16 &x : v) x.bits = nearest_bf16(((int)(dice() % 2001) - 1000) / 1000.0f * scale);
    return v;
}
static float at(const values &v, size_t i) { return value_of(v[i].bits); }

/* |got - expected| / |expected|; any NaN is a large error. */
struct difference {
    double of = 0, size = 0;
    void add(double got, double expected) {
        of += got == got ? (got - expected) * (got - expected) : 1e30;
        size += expected * expected;
    }
    double relative() const { return sqrt(of / (size > 0 ? size : 1)); }
};
static void check_error(const difference &d, double bound, const char *what, int m, int n, int k, u32 seed) {
    if (!CHECK(d.relative() <= bound))
        printf("%s, %d rows, %d outputs of %d, seed %u: off by %g\n", what, m, n, k, seed, d.relative());
}

/* ---- the linear maps */

/* How a map is launched: pieces and groups of those for few rows, width of the wide. */
struct form { bool is_wide; int pieces, groups, width, split, stages, blocks; };

struct map_case {
    int m, n, k;
    u32 seed;
    values weights, input;
    std::vector<float> squares, results; /* [m, n]: scaled sums */
    linear_args args;
    map_case(const form &f, int m_, int n_, int k_, bool is_scaled, u32 seed_)
        : m(m_), n(n_), k(k_), seed(seed_), weights(random_values((size_t)n_ * k_, 1)),
          input(random_values((size_t)128 * k_, 1)), squares((size_t)m_ * squares_row(k_), NAN),
          results((size_t)m_ * n_) {
        args = linear_args();
        args.m = m, args.n = n, args.k = k, args.eps = 1e-5f, args.stages = f.stages, args.pieces = f.pieces,
        args.groups = f.groups;
        args.weights = weights.data(), args.input = input.data();
        args.weights_map = tensor_map_of({weights.data(), n, k, f.is_wide ? f.width : f.pieces * 16});
        args.input_map = tensor_map_of({input.data(), 128, k, f.is_wide || m <= 32 ? 32 : 64});
        if (is_scaled) args.squares_in = squares.data();
        for (int r = 0; r < m; r++) {
            double total = 0;
            for (int t = 0; t < squares_tiles(k); t++)
                total += squares[(size_t)r * squares_row(k) + t] = (float)(1 + dice() % 5);
            for (int o = 0; o < n; o++) {
                double sum = 0;
                for (int i = 0; i < k; i++)
                    sum += (double)at(weights, (size_t)o * k + i) * at(input, (size_t)r * k + i);
                results[(size_t)r * n + o] = (float)(is_scaled ? sum / sqrt(total / k + 1e-5) : sum);
            }
        }
    }
    /* Shared memory as the kernels' comments have it. */
    void run(const form &f, void (*few_32)(const linear_args), void (*few_64)(const linear_args),
             void (*wide)(const linear_args)) {
        const linear_args &a = args;
        (void)wide;
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
        if (f.is_wide) {
            int ring = f.stages * (f.width + 128) * 128, sums = 512 * sums_row(f.width);
            launch_emulated([&a, wide]() { wide(a); }, {(u32)f.blocks, 1, 1}, WIDE_WARPS * 32, WIDE_CLUSTER,
                            (u32)(max(ring, sums) + (f.split > 1 ? sums : 0) + 512 + f.stages * 16 + 24), seed);
            return;
        }
#endif
        int rows = m > 32 ? 64 : 32, width = f.pieces * 16;
        launch_emulated([&a, few_32, few_64]() { a.m > 32 ? few_64(a) : few_32(a); }, {(u32)f.blocks, 1, 1},
                        LINEAR_THREADS + LINEAR_FETCHERS, f.split,
                        (u32)(f.stages * (width + rows) * 128 + (f.groups + f.split - 1) * rows * (width + 4) * 4 +
                              rows * 4 + f.stages * 16 + 16),
                        seed);
    }
};

static std::vector<row_entry> table_rows(int m, int n_requests) {
    std::vector<row_entry> rows((size_t)m);
    for (int i = 0; i < m; i++) {
        rows[i] = row_entry();
        rows[i].request = i * n_requests / m,
        rows[i].position = 3 + i - (rows[i].request * m + n_requests - 1) / n_requests,
        rows[i].active = i != 1 && dice() % 4 != 0;
    }
    return rows;
}

static void test_out(const form &f, int m, int n, int k, u32 seed) {
    map_case c(f, m, n, k, false, seed);
    values before = random_values((size_t)m * n, 20), x = before, norm = random_values((size_t)n, 1),
           normed((size_t)m * n, bf16{0x7fff});
    std::vector<float> squares((size_t)m * squares_row(n), NAN);
    std::vector<row_entry> rows = table_rows(m, 1);
    difference sums, halves, totals;
    c.args.out = x.data(), c.args.norm = norm.data(), c.args.normed = normed.data(),
    c.args.squares_out = squares.data(), c.args.table.rows = rows.data();
    c.run(f, linear_out_32, linear_out_64, WIDE(out));
    for (int r = 0; r < m; r++)
        for (int o = 0; o < n; o++) {
            size_t i = (size_t)r * n + o;
            sums.add(at(x, i), at(before, i) + (rows[r].active ? (double)c.results[i] : 0));
            halves.add(at(normed, i), (double)at(x, i) * at(norm, (size_t)o));
            if (o % 16) continue;
            double total = 0;
            for (int e = o; e < min(n, o + 16); e++)
                total += (double)at(x, (size_t)r * n + e) * at(x, (size_t)r * n + e);
            totals.add(squares[(size_t)r * squares_row(n) + o / 16], total);
        }
    check_error(sums, 5e-3, "out", m, n, k, seed);
    check_error(halves, 5e-3, "out, the next norm's half", m, n, k, seed);
    check_error(totals, 1e-5, "out, squares", m, n, k, seed);
}

static void test_gate_up(const form &f, int m, int mlp, int k, u32 seed) {
    int n = (mlp + 7) / 8 * 16;
    map_case c(f, m, n, k, true, seed);
    values hidden((size_t)m * mlp, bf16{0x7fff});
    difference d;
    c.args.out = hidden.data(), c.args.mlp = mlp;
    c.run(f, linear_gate_up_32, linear_gate_up_64, WIDE(gate_up));
    for (int r = 0; r < m; r++)
        for (int i = 0; i < mlp; i++) {
            const float *pair = &c.results[(size_t)r * n + i / 8 * 16 + i % 8];
            d.add(at(hidden, (size_t)r * mlp + i), pair[0] / (1 + exp(-(double)pair[0])) * pair[8]);
        }
    check_error(d, 1e-2, "gate_up", m, n, k, seed);
}

static void test_qkv(const form &f, int m, int heads, int kv_heads, int hd, int k, u32 seed) {
    const int n = (heads + 2 * kv_heads) * hd, half = hd / 2, n_requests = 3, capacity = 60;
    map_case c(f, m, n, k, true, seed);
    values q((size_t)m * heads * hd, bf16{0x7fff});
    const size_t size = (size_t)2 * kv_heads * hd * capacity; /* of two layers, of which the second is written */
    values k_cache = random_values(n_requests * size, 1), v_cache = random_values(n_requests * size, 1),
           k_before = k_cache, v_before = v_cache;
    std::vector<cache_entry> caches(n_requests);
    std::vector<row_entry> rows = table_rows(m, n_requests);
    std::vector<float2> rope((size_t)m * half);
    difference d;
    int kept = 0, touched = 0;
    for (int r = 0; r < n_requests; r++)
        caches[r] = cache_entry(), caches[r].k = (char *)&k_cache[r * size], caches[r].v = (char *)&v_cache[r * size],
        caches[r].capacity = capacity;
    for (size_t i = 0; i < rope.size(); i++) rope[i] = {cosf((float)i), sinf((float)i)};
    c.args.out = q.data(), c.args.n_heads = heads, c.args.n_kv_heads = kv_heads, c.args.head_dim = hd,
    c.args.layer_offset = (u64)kv_heads * hd;
    c.args.table.rows = rows.data(), c.args.table.caches = caches.data(), c.args.table.rope = rope.data();
    c.run(f, linear_qkv_32, linear_qkv_64, WIDE(qkv));
    for (int r = 0; r < m; r++)
        for (int h = 0; h < heads + 2 * kv_heads; h++)
            for (int i = 0; i < half; i++) {
                const float *pair = &c.results[(size_t)r * n + h * hd + i / 8 * 16 + i % 8];
                float2 turn = h < heads + kv_heads ? rope[(size_t)r * half + i] : float2{1, 0};
                double low = (double)pair[0] * turn.x - (double)pair[8] * turn.y,
                       high = (double)pair[8] * turn.x + (double)pair[0] * turn.y;
                if (h < heads) {
                    size_t there = ((size_t)r * heads + h) * hd + i;
                    d.add(at(q, there), low), d.add(at(q, there + half), high);
                    continue;
                }
                bool is_v = h >= heads + kv_heads;
                size_t there = rows[r].request * size +
                               ((size_t)(kv_heads + (h - heads) % kv_heads) * capacity + rows[r].position) * hd + i;
                values &cache = is_v ? v_cache : k_cache, &before = is_v ? v_before : k_before;
                if (rows[r].active) d.add(at(cache, there), low), d.add(at(cache, there + half), high);
                else
                    kept++, touched += cache[there].bits != before[there].bits ||
                                       cache[there + half].bits != before[there + half].bits;
            }
    check_error(d, 5e-3, "qkv", m, n, k, seed);
    CHECK(kept > 0);
    CHECK_INT(touched, 0);
}

static void test_head(const form &f, int m, int n, int k, u32 seed) {
    const int width = f.is_wide ? f.width : f.pieces * 16, tiles = (n + width - 1) / width, mask_id = 5;
    map_case c(f, m, n, k, false, seed);
    std::vector<draw_entry> draws((size_t)m);
    std::vector<head_entry> heads((size_t)tiles * m + 8 * m);
    std::vector<float> logits((size_t)m * n, NAN);
    difference d, sums, entropies;
    int wrong = 0;
    for (draw_entry &draw : draws) draw = draw_entry(), draw.mask_token_id = mask_id;
    for (head_entry &entry : heads) entry.id = -77;
    c.args.draws = draws.data(), c.args.heads = heads.data(), c.args.logits = logits.data();
    c.run(f, linear_head_32, linear_head_64, WIDE(head));
    for (int r = 0; r < m; r++) {
        head_entry all = head_none();
        int best = -1;
        double sum = 0, moment = 0;
        for (int o = 0; o < n; o++) {
            double y = c.results[(size_t)r * n + o];
            d.add(logits[(size_t)r * n + o], y);
            sum += exp(y), moment += exp(y) * y;
            if (o != mask_id && (best < 0 || logits[(size_t)r * n + o] > logits[(size_t)r * n + best])) best = o;
        }
        for (int t = 0; t < tiles; t++) all = head_merge(all, heads[(size_t)t * m + r]);
        wrong += all.id != best;
        sums.add(log((double)all.sum) + all.max, log(sum));
        entropies.add(log((double)all.sum) - (double)all.moment / all.sum, log(sum) - moment / sum);
    }
    for (size_t i = (size_t)tiles * m; i < heads.size(); i++)
        wrong += heads[i].id != -77; /* for tiles that there are not */
    check_error(d, 1e-5, "head, logits", m, n, k, seed);
    check_error(sums, 1e-5, "head, log-sum-exp", m, n, k, seed);
    check_error(entropies, 1e-5, "head, entropy", m, n, k, seed);
    CHECK_INT(wrong, 0);
}

static void test_maps(u32 seed) {
    /* several tiles a block; columns and outputs that are no whole chunks and tiles; fewer tiles than blocks */
    const form few = {false, 2, 6 - LINEAR_SPLIT, 0, LINEAR_SPLIT, 12 - 2 * LINEAR_SPLIT, 2 * LINEAR_SPLIT},
               some = {false, 4, 3, 0, 1, 6, 3}, others = {false, 3, 4, 0, 1, 8, 3};
    const form out = {true, 0, 0, 80, 2, 3, 8}, out_again = {true, 0, 0, 80, 2, 2, 4}, qkv = {true, 0, 0, 112, 1, 4, 4},
               gate_up = {true, 0, 0, 208, 1, 2, 4}, head = {true, 0, 0, 216, 1, 2, 4};
    test_out(few, 24, 160, 520, seed), test_out(few, 64, 128, 512, seed);
    test_gate_up(some, 30, 200, 264, seed), test_gate_up(some, 33, 96, 200, seed);
    test_qkv(others, 50, 2, 1, 64, 192, seed), test_qkv(others, 9, 3, 3, 16, 264, seed);
    test_head(some, 20, 300, 256, seed);
    if (!WIDE(out)) return;
    test_out(out, 128, 256, 512, seed), test_out(out_again, 97, 400, 328, seed), test_out(out_again, 70, 80, 256, seed);
    test_qkv(qkv, 128, 4, 2, 64, 256, seed), test_qkv(qkv, 77, 2, 1, 128, 264, seed);
    test_gate_up(gate_up, 128, 600, 192, seed), test_gate_up(gate_up, 97, 264, 136, seed);
    test_head(head, 70, 1000, 128, seed);
}

/* ---- attention */

struct tile_case { int rows, cached; };

/* A request for each tile; all that it has cached beyond what is visible is NaN. */
static void test_attention(void (*kernel)(const attention_args), const std::vector<tile_case> &tiles, int splits,
                           int tile_rows, int threads, int bytes, int heads, int kv_heads, int hd, u32 seed) {
    const int layer = 1;
    int n = 0;
    std::vector<cache_entry> caches;
    std::vector<tile_entry> entries;
    std::vector<values> k, v;
    for (const tile_case &t : tiles) {
        int capacity = t.cached + (int)(dice() % 9);
        cache_entry c = cache_entry();
        tile_entry e = {n, t.rows, (int)caches.size(), t.cached};
        for (std::vector<values> *cache : {&k, &v}) {
            cache->push_back(random_values((size_t)2 * kv_heads * capacity * hd, 1.5f));
            for (size_t i = 0; i < cache->back().size(); i++)
                if ((int)(i / hd % capacity) >= t.cached) cache->back()[i].bits = 0x7fff;
        }
        c.k = (char *)k.back().data(), c.v = (char *)v.back().data(), c.capacity = capacity;
        c.first_written = t.cached / 2, c.last_written = t.cached / 2 + t.rows;
        caches.push_back(c), entries.push_back(e);
        n += t.rows;
    }
    values q = random_values((size_t)n * heads * hd, 1.5f), out((size_t)n * heads * hd, bf16{0x7fff});
    std::vector<float> parts(tiles.size() * heads * splits * tile_rows * (hd + 2), NAN);
    std::vector<u32> counters(tiles.size() * heads, 0);
    attention_args a = attention_args();
    difference d;
    a.q = q.data(), a.out = out.data(), a.parts = parts.data(), a.counters = counters.data();
    a.table.caches = caches.data(), a.table.tiles = entries.data();
    a.scale = (float)(1 / sqrt((double)hd) * 1.4426950408889634), a.n_heads = heads, a.n_kv_heads = kv_heads,
    a.layer_offset = (u64)layer * kv_heads * hd;
    launch_emulated([&a, kernel]() { kernel(a); }, {(u32)splits, (u32)heads, (u32)tiles.size()}, threads, 1,
                    (u32)(bytes * hd), seed);
    for (size_t t = 0; t < tiles.size(); t++)
        for (int row = 0; row < tiles[t].rows; row++)
            for (int h = 0; h < heads; h++) {
                size_t from = ((size_t)(entries[t].first + row) * heads + h) * hd,
                       base = (size_t)(layer * kv_heads + h / (heads / kv_heads)) * caches[t].capacity * hd;
                std::vector<double> weights((size_t)tiles[t].cached), sums((size_t)hd, 0);
                double total = 0;
                for (int key = 0; key < tiles[t].cached; key++) {
                    double score = 0;
                    for (int i = 0; i < hd; i++)
                        score += (double)at(q, from + i) * at(k[t], base + (size_t)key * hd + i);
                    total += weights[key] = exp(score / sqrt((double)hd));
                    for (int i = 0; i < hd; i++) sums[i] += weights[key] * at(v[t], base + (size_t)key * hd + i);
                }
                for (int i = 0; i < hd; i++) d.add(at(out, from + i), sums[i] / total);
            }
    check_error(d, 1e-2, "attention", n, heads, hd, seed);
    for (u32 counter : counters) CHECK_INT(counter, 0);
}

/* ---- what is skipped and what is committed */

/* Rows in another order than in the list of begin, of requests that compare two or three states. */
static void test_decide(u32 seed) {
    const int n = 300, stride = 320, states = 3;
    std::vector<cache_entry> caches(3);
    std::vector<row_entry> rows((size_t)n);
    std::vector<float> cosines((size_t)states * stride, NAN);
    std::vector<int> skipped((size_t)n, -5), host(skipped);
    rows_table table = rows_table();
    int wrong = 0, n_of[2] = {0, 0};
    for (int r = 0; r < 3; r++)
        caches[r] = cache_entry(), caches[r].n_states = r == 1 ? 2 : states, caches[r].skip_threshold = 0.6f,
        caches[r].skip_outlier = 0.3f;
    for (int i = 0; i < n; i++) {
        rows[i] = row_entry();
        rows[i].request = i % 3, rows[i].number = (i * 7 + 11) % n, rows[i].active = 1;
        rows[i].flags = (dice() % 4   ? TSK__CUDA_ROW_MAY_SKIP
                         : dice() % 2 ? TSK__CUDA_ROW_SKIPS
                                      : 0) |
                        TSK__CUDA_ROW_OUTPUT;
        for (int state = 0; state < states; state++)
            cosines[(size_t)state * stride + rows[i].number] = dice() % 50 ? (float)(dice() % 1000) / 1000 + 0.2f : NAN;
    }
    table.rows = rows.data(), table.caches = caches.data();
    tsk__cuda_decide_args a = {table, cosines.data(), skipped.data(), host.data(), n, states, stride, 1};
    launch_emulated([&]() { decide(a); }, {3, 1, 1}, 128, 1, 0, seed);
    for (int i = 0; i < n; i++) {
        int number = rows[i].number, expected = -5;
        double sum = 0;
        bool near = true;
        for (int state = 0; state < states; state++)
            sum += cosines[(size_t)state * stride + number],
                near = near && cosines[(size_t)state * stride + number] >= 0.3f;
        if (rows[i].request != 1 && (rows[i].flags & TSK__CUDA_ROW_MAY_SKIP))
            expected = near && sum / states > (double)0.6f, n_of[expected]++;
        if (rows[i].request != 1 && (rows[i].flags & TSK__CUDA_ROW_SKIPS)) expected = 1;
        wrong += skipped[number] != expected || host[number] != expected || rows[i].active != (expected != 1);
    }
    CHECK_INT(wrong, 0);
    CHECK(n_of[0] > 20 && n_of[1] > 20);
}

/* Logits of which some are NaN: the best of the others, never the mask, whatever its id is; the sum of all tells of the
   NaN. */
static void test_head(u32 seed) {
    const int n = 2500, m = 12, tiles = (n + 1023) / 1024;
    std::vector<float> logits((size_t)m * n);
    std::vector<draw_entry> draws((size_t)m);
    std::vector<head_entry> heads((size_t)tiles * m, head_none());
    std::vector<prediction_entry> got((size_t)m);
    int wrong = 0;
    for (int row = 0; row < m; row++) {
        draws[row] = draw_entry();
        draws[row].mask_token_id = row % 3 == 0 ? 0 : row % 3 == 1 ? n - 1 : 1100;
        for (int id = 0; id < n; id++) logits[(size_t)row * n + id] = (float)(dice() % 100000) / 10000;
        logits[(size_t)row * n + draws[row].mask_token_id] = 50;
        for (int id = 0; id < n; id++)
            if (row < 3 || (row < 6 && (id < 1500 || id == n - 2)) || (row < 9 && dice() % 200 == 0))
                logits[(size_t)row * n + id] = NAN;
    }
    tsk__cuda_head_tiles_args first = {logits.data(), NULL, draws.data(), heads.data(), 0, n, 0, 0};
    tsk__cuda_head_finish_args second = {heads.data(), draws.data(), got.data(), tiles, m};
    launch_emulated([&]() { head_tiles(first); }, {(u32)tiles, (u32)m, 1}, 128, 1, 4 * sizeof(head_entry), seed);
    launch_emulated([&]() { head_finish(second); }, {(u32)m, 1, 1}, 128, 1, 128 * sizeof(head_entry), seed);
    for (int row = 0; row < m; row++) {
        const float *l = &logits[(size_t)row * n];
        int best = -1, mask = draws[row].mask_token_id;
        double sum = 0, moment = 0;
        for (int id = 0; id < n; id++) {
            sum += exp((double)l[id]), moment += exp((double)l[id]) * l[id];
            if (id != mask && l[id] == l[id] && (best < 0 || l[id] > l[best])) best = id;
        }
        wrong += got[row].id != (best < 0 ? mask == 0 : best);
        wrong +=
            row < 9 ? got[row].log_sum_exp == got[row].log_sum_exp : !(fabs(got[row].log_sum_exp - log(sum)) < 1e-3);
        wrong += row < 9 ? got[row].entropy == got[row].entropy
                         : !(fabs(got[row].entropy - (log(sum) - moment / sum)) < 1e-4);
    }
    CHECK_INT(wrong, 0);
}

/* The rules as they are told: candidates from the surest down, the first of equal ones first, as long as the rule takes
   them. */
static void test_select(u32 seed) {
    const int n_requests = 6, most = 300;
    std::vector<cache_entry> caches(n_requests);
    std::vector<std::vector<int>> canvases, before;
    std::vector<std::vector<prediction_entry>> kept;
    std::vector<commit_rule> rules;
    std::vector<commit_candidate> candidates;
    std::vector<prediction_entry> predictions;
    rows_table table = rows_table();
    int wrong = 0;
    for (int r = 0; r < n_requests; r++) {
        commit_rule s = commit_rule();
        s.request = r, s.first = (int)candidates.size(), s.n = r == 0 ? 1 : 2 + (int)(dice() % (most - 1)),
        s.commits = r != 5, s.rule.transfer = r == 5 ? 0 : (r + (int)seed) % 6, s.is_random = r == 4, s.pass = 3;
        s.rule.quota = 1 + (int)(dice() % (s.n + 3)), s.rule.threshold = 0.5f, s.rule.local_leap = 0.25f;
        s.rule.factor = 0.5f + (float)(dice() % 40), s.rule.frechet = 0.02f, s.rule.local_radius = 2, s.seed = 77;
        s.rule.entropy_bound = (float)(dice() % 64) / 8;
        canvases.emplace_back((size_t)(2 * most), -1), kept.emplace_back((size_t)most);
        for (prediction_entry &p : kept.back())
            p = {(int)(dice() % 1000), (float)(dice() % 17) / 16, 0, (float)(dice() % 99), (float)(dice() % 64) / 64};
        for (int i = 0; i < s.n; i++) {
            commit_candidate c = {2 * i + (int)(dice() % 2), s.n - 1 - i, dice() % 3 ? (int)predictions.size() : -1};
            if (c.head >= 0)
                predictions.push_back(
                    {(int)(dice() % 1000), dice() % 40 ? (float)(dice() % 17) / 16 : NAN, 0, (float)(dice() % 99),
                     (float)(dice() % 64) / 64});
            candidates.push_back(c);
        }
        rules.push_back(s);
    }
    before = canvases;
    for (int r = 0; r < n_requests; r++)
        caches[r] = cache_entry(), caches[r].tokens = canvases[r].data(), caches[r].predictions = kept[r].data();
    std::vector<std::vector<prediction_entry>> expected = kept;
    std::vector<float> scratch(candidates.size(), NAN);
    std::vector<int> ranked(candidates.size(), -1);
    std::vector<choice_entry> choices(candidates.size());
    table.caches = caches.data();
    tsk__cuda_select_tokens_args a = {table,          rules.data(), candidates.data(), predictions.data(),
                                      scratch.data(), ranked.data(), choices.data()};
    launch_emulated([&]() { select_tokens(a); }, {(u32)n_requests, 1, 1}, 128, 1, 0, seed);
    for (const commit_rule &s : rules) {
        const commit_candidate *c = &candidates[(size_t)s.first];
        const choice_entry *got = &choices[(size_t)s.first];
        std::vector<prediction_entry> &last = expected[(size_t)s.request];
        std::vector<float> sure((size_t)s.n);
        std::vector<int> order((size_t)s.n), commits((size_t)s.n, 0);
        for (int i = 0; i < s.n; i++) {
            if (c[i].head >= 0) last[(size_t)c[i].slot] = predictions[(size_t)c[i].head];
            u32 words[4] = {0, (u32)c[i].position, s.pass, 1};
            philox4x32(words, (u32)s.seed, 0);
            sure[i] =
                s.is_random ? (float)(((double)words[0] + 0.5) / 4294967296.0) : last[(size_t)c[i].slot].confidence,
            order[i] = i;
        }
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
            return (sure[a] == sure[a] ? sure[a] : -1) > (sure[b] == sure[b] ? sure[b] : -1);
        });
        const transfer_rule &rule = s.rule;
        double together = 1, entropy = 0, largest = 0;
        for (int rank = 1; rank <= s.n && s.commits && rule.transfer != 5; rank++) {
            const int at = order[rank - 1];
            double confidence = sure[at], h = last[(size_t)c[at].slot].entropy;
            together += confidence - 1, entropy += h, largest = h > largest ? h : largest;
            bool takes = rule.transfer == 0   ? rank <= rule.quota
                         : rule.transfer == 1 ? confidence >= rule.threshold
                         : rule.transfer == 2 ? confidence >= 1.0 - (double)rule.factor / (rank + 1)
                         : rule.transfer == 3 ? (together > 0 ? together : 0) - (1 - confidence) > rule.frechet
                                              : entropy - largest <= rule.entropy_bound;
            if (rank > 1 && !takes) break;
            commits[at] = 1;
        }
        for (int i = 0; i < s.n && s.commits && rule.transfer == 5; i++) {
            bool is_near = false;
            for (int j = 0; j < s.n; j++)
                is_near |= sure[j] >= rule.threshold && abs(c[j].position - c[i].position) <= rule.local_radius;
            commits[i] = i == order[0] || sure[i] >= rule.threshold || (is_near && sure[i] >= rule.local_leap);
        }
        for (int i = 0; i < s.n; i++) {
            int id = last[(size_t)c[i].slot].id;
            wrong += got[i].id != id || memcmp(&got[i].confidence, &sure[i], sizeof sure[i]) != 0 ||
                     got[i].is_committed != commits[i];
            wrong += got[i].log_sum_exp != last[(size_t)c[i].slot].log_sum_exp ||
                     got[i].entropy != last[(size_t)c[i].slot].entropy;
            if (commits[i]) before[(size_t)s.request][(size_t)c[i].position] = id;
        }
        wrong += before[(size_t)s.request] != canvases[(size_t)s.request];
        wrong += memcmp(last.data(), kept[(size_t)s.request].data(), last.size() * sizeof last[0]) != 0;
    }
    CHECK_INT(wrong, 0);
}

int main() {
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (u32 seed = 0; seed < 3; seed++) {
        test_maps(seed);
        test_decide(seed), test_select(seed), test_head(seed);
        test_attention(attention_few_64, {{32, 520}, {9, 65}, {32, 256}, {1, 1}}, 1, 32, 128, 1024, 2, 1, 64, seed);
        test_attention(attention_few_128, {{20, 330}}, 1, 32, 128, 1024, 2, 2, 128, seed);
        test_attention(attention_small_64, {{32, 300}, {9, 65}, {1, 1}}, 4, 32, 256, 768, 2, 1, 64, seed);
        test_attention(attention_small_128, {{17, 200}}, 4, 32, 256, 768, 1, 1, 128, seed);
        test_attention(attention_medium_64, {{64, 130}, {40, 520}}, 4, 64, 256, 768, 2, 2, 64, seed);
        test_attention(attention_large_64, {{128, 260}, {100, 100}, {64, 64}, {33, 190}, {32, 129}, {3, 70}}, 1, 128,
                       128, 768, 2, 1, 64, seed);
        test_attention(attention_large_128, {{70, 90}, {20, 140}}, 1, 128, 128, 768, 1, 1, 128, seed);
    }
    return test_end(WIDE(out) ? "test_emulated" : "test_emulated_sm80");
}
