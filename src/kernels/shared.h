#ifndef SECTION_GUARD_CUDA_SHARED
#define SECTION_GUARD_CUDA_SHARED

// >>cuda_shared =======================================================================================================
/* What the CUDA kernels and the host that launches them share: structs and constants. Both compile this text, as CUDA,
   C99 and C++11; the kernels define TSK__KERNELS before it. An address on the device is a pointer to the kernels and a
   64-bit number to the host. No struct leaves padding to a compiler: all lay it out alike, and its size is checked.
   tsk__cuda_NAME_args is what the kernel NAME takes, or NAME_f32 and NAME_bf16 where there is one for either type of
   activations: void addresses are then of values of that type. The kernels' own files tell what they do. */

#ifdef TSK__KERNELS
#define TSK__DEVICE(type) type *
#define TSK__DEVICE_ALIGNED(bytes) alignas(bytes)
#else
#define TSK__DEVICE(type) uint64_t
#define TSK__DEVICE_ALIGNED(bytes)  /* of the device's copy, which the driver makes */
#endif

/* A condition on constants, checked by whichever compiler reads this. */
#define TSK__CUDA_CHECK(name, condition) typedef char tsk__cuda_check_##name[(condition) ? 1 : -1]
#define TSK__CUDA_CHECK_SIZE(name, bytes) TSK__CUDA_CHECK(size_of_##name, sizeof(tsk__cuda_##name) == (bytes))

/* ---- threads of a block, of the kernel NAME in TSK__CUDA_THREADS_NAME; those of linear_* and wide_* are further
   down */

#define TSK__CUDA_THREADS_pass_begin 64
#define TSK__CUDA_THREADS_slide 512
#define TSK__CUDA_THREADS_embed 256
#define TSK__CUDA_THREADS_pre_norm 256
#define TSK__CUDA_THREADS_norm 256
#define TSK__CUDA_THREADS_rope_cache 256
#define TSK__CUDA_THREADS_norm_heads 256
#define TSK__CUDA_THREADS_silu 128
#define TSK__CUDA_THREADS_residual 256
#define TSK__CUDA_THREADS_attend 128
#define TSK__CUDA_THREADS_compare 256
#define TSK__CUDA_THREADS_decide 128
#define TSK__CUDA_THREADS_keep 256
#define TSK__CUDA_THREADS_select_tokens 128
#define TSK__CUDA_THREADS_move_rows 256
#define TSK__CUDA_THREADS_convert 256
#define TSK__CUDA_THREADS_randomise 256
#define TSK__CUDA_THREADS_fill 256
#define TSK__CUDA_THREADS_exact_f32 256
#define TSK__CUDA_THREADS_head_tiles 128
#define TSK__CUDA_THREADS_head_finish 128
#define TSK__CUDA_THREADS_read_stream 512
#define TSK__CUDA_THREADS_attention_few 128
#define TSK__CUDA_THREADS_attention_small 256
#define TSK__CUDA_THREADS_attention_medium 256
#define TSK__CUDA_THREADS_attention_large 128

/* ---- the row table: filled by pass_begin from the host's image, read by all that follows */

/* Of a row: tsk__row_flag. */
#define TSK__CUDA_ROW_MAY_SKIP 1
#define TSK__CUDA_ROW_SKIPS 2
#define TSK__CUDA_ROW_REMEMBER 4
#define TSK__CUDA_ROW_IF_RAN 8
#define TSK__CUDA_ROW_OUTPUT 16
#define TSK__CUDA_ROW_DECIDED (TSK__CUDA_ROW_MAY_SKIP | TSK__CUDA_ROW_SKIPS)

typedef struct tsk__cuda_row {
    int32_t token;                 /* where the request has no canvas on the device */
    int32_t position, request, slot, active;
    int32_t number;                /* in the list of begin */
    int32_t flags;
    int32_t visible;               /* it attends to so many positions, from 0 on */
} tsk__cuda_row;
TSK__CUDA_CHECK_SIZE(row, 32);

/* As tsk__prediction. */
typedef struct tsk__cuda_prediction {
    int32_t id;
    float confidence, logit, log_sum_exp, entropy;
} tsk__cuda_prediction;
TSK__CUDA_CHECK_SIZE(prediction, 20);

/* What a pass needs of a request's tsk__kv. */
typedef struct tsk__cuda_cache {
    TSK__DEVICE(void) k;
    TSK__DEVICE(void) v;
    TSK__DEVICE(void) states;
    TSK__DEVICE(void) outputs;
    TSK__DEVICE(int32_t) tokens;
    TSK__DEVICE(tsk__cuda_prediction) predictions;
    int32_t capacity, n_slots, n_states, pad;
    int32_t first_written, last_written; /* positions that the pass replaces lie between */
    float skip_threshold, skip_outlier;
} tsk__cuda_cache;
TSK__CUDA_CHECK_SIZE(cache, 80);

/* Consecutive rows of one request, with equally much visible to them: what attention works on. */
typedef struct tsk__cuda_tile { int32_t first, count, request, visible; } tsk__cuda_tile;
TSK__CUDA_CHECK_SIZE(tile, 16);

typedef struct tsk__cuda_table {
    TSK__DEVICE(tsk__cuda_row) rows;       /* [n] */
    TSK__DEVICE(tsk__cuda_cache) caches;   /* [n_requests] */
    TSK__DEVICE(tsk__cuda_tile) tiles;     /* [n_tiles] */
    TSK__DEVICE(struct float2) rope;       /* [n, head_dim / 2] (cos, sin) of each row's position */
} tsk__cuda_table;
TSK__CUDA_CHECK_SIZE(table, 32);

/* ---- the beginning and the end of a pass */

typedef struct tsk__cuda_pass_begin_args {
    TSK__DEVICE(const tsk__cuda_row) rows;      /* [n] the host's image of the table, likewise the next two */
    TSK__DEVICE(const tsk__cuda_cache) caches;  /* [n_caches] */
    TSK__DEVICE(const tsk__cuda_tile) tiles;    /* [n_tiles] */
    tsk__cuda_table table;
    TSK__DEVICE(const float) frequencies;  /* [half] RoPE's */
    TSK__DEVICE(uint32_t) state;           /* [2] blocks that are done, zero between kernels; and fetches so far, */
    TSK__DEVICE(volatile uint32_t) fetched; /* of which the host is told here */
    int32_t n, n_caches, n_tiles, half;
} tsk__cuda_pass_begin_args;
TSK__CUDA_CHECK_SIZE(pass_begin_args, 96);

typedef struct tsk__cuda_pass_signal_args {
    TSK__DEVICE(uint32_t) count;           /* signals so far, of which the host is told in `signalled` */
    TSK__DEVICE(volatile uint32_t) signalled;
} tsk__cuda_pass_signal_args;
TSK__CUDA_CHECK_SIZE(pass_signal_args, 16);

/* ---- draws, candidates and choices */

/* As tsk__draw. */
typedef struct tsk__cuda_draw {
    float temperature;
    int32_t mask_token_id;
    uint64_t seed;
    uint32_t position, pass;
} tsk__cuda_draw;
TSK__CUDA_CHECK_SIZE(draw, 24);

/* The best of some ids; over all of them the sums of exp(logit - max) and of exp(logit - max) * (logit - max). */
typedef struct tsk__cuda_head_entry {
    double score;
    int32_t id;
    float logit, max, sum, moment;
    int32_t pad;
} tsk__cuda_head_entry;
TSK__CUDA_CHECK_SIZE(head_entry, 32);

/* As tsk_transfer_rule, with its tsk_transfer. */
#define TSK__CUDA_TRANSFER_SCHEDULE 0
#define TSK__CUDA_TRANSFER_THRESHOLD 1
#define TSK__CUDA_TRANSFER_FACTOR 2
#define TSK__CUDA_TRANSFER_FRECHET 3
#define TSK__CUDA_TRANSFER_ENTROPY 4
#define TSK__CUDA_TRANSFER_LEAP 5
typedef struct tsk__cuda_transfer_rule {
    int32_t transfer;
    float threshold, factor, frechet, entropy_bound, local_leap;
    int32_t local_radius, quota;
} tsk__cuda_transfer_rule;
TSK__CUDA_CHECK_SIZE(transfer_rule, 32);

/* As tsk__commit_candidate, tsk__commit_rule and tsk__choice. */
typedef struct tsk__cuda_commit_candidate { int32_t position, slot, head; } tsk__cuda_commit_candidate;
typedef struct tsk__cuda_commit_rule {
    int32_t request, first, n, commits;
    tsk__cuda_transfer_rule rule;
    int32_t is_random;
    uint32_t pass;
    uint64_t seed;
} tsk__cuda_commit_rule;
typedef struct tsk__cuda_choice {
    int32_t id;
    float confidence, entropy, log_sum_exp;
    int32_t is_committed;
} tsk__cuda_choice;
TSK__CUDA_CHECK_SIZE(commit_candidate, 12);
TSK__CUDA_CHECK_SIZE(commit_rule, 64);
TSK__CUDA_CHECK_SIZE(choice, 20);

typedef struct tsk__cuda_decide_args {
    tsk__cuda_table table;
    TSK__DEVICE(const float) cosines;      /* [n_states, stride] */
    TSK__DEVICE(int32_t) skipped;          /* [rows of begin], and the host's copy */
    TSK__DEVICE(int32_t) host_skipped;
    int32_t n, n_states, stride;
    int32_t masks;                         /* skipped rows become inactive */
} tsk__cuda_decide_args;
TSK__CUDA_CHECK_SIZE(decide_args, 72);

typedef struct tsk__cuda_select_tokens_args {
    tsk__cuda_table table;
    TSK__DEVICE(const tsk__cuda_commit_rule) rules;       /* the host's, likewise candidates and choices */
    TSK__DEVICE(const tsk__cuda_commit_candidate) candidates;
    TSK__DEVICE(const tsk__cuda_prediction) predictions;  /* of the head's rows */
    TSK__DEVICE(float) confidences;        /* [candidates] scratch, likewise order: each rule's from the best down */
    TSK__DEVICE(int32_t) order;
    TSK__DEVICE(tsk__cuda_choice) choices;
} tsk__cuda_select_tokens_args;
TSK__CUDA_CHECK_SIZE(select_tokens_args, 80);

/* ---- norms: sums of squares are kept for every so many columns of a row, in rows of whole 16 bytes */

#define TSK__CUDA_SQUARES_TILE 16
#define TSK__CUDA_SQUARES_TILES(d) (((d) + TSK__CUDA_SQUARES_TILE - 1) / TSK__CUDA_SQUARES_TILE)
#define TSK__CUDA_SQUARES_ROW(d) ((TSK__CUDA_SQUARES_TILES(d) + 3) / 4 * 4)

/* ---- linear maps for few rows, and the wide ones for more */

#define TSK__CUDA_FEW_ROWS 64         /* rows up to which a pass takes the linear_* kernels, and is recorded */
#define TSK__CUDA_LINEAR_CHUNK 64     /* columns at a time */
#define TSK__CUDA_LINEAR_WARPS 12     /* that multiply; and the most pieces of a tile, which are of 16 outputs */
#define TSK__CUDA_LINEAR_GROUPS 6     /* most of them that the warps are divided into */
#define TSK__CUDA_LINEAR_SPLIT 2      /* blocks that share the columns of a tile of out and down, from sm_90 on */
#define TSK__CUDA_LINEAR_FETCHERS 64  /* threads that fetch, where the copy engine does the work, */
#define TSK__CUDA_LINEAR_FETCHERS_80 128  /* and before sm_90, where they do */

#define TSK__CUDA_WIDE_ROWS 128       /* rows up to which the wide_* kernels are taken, where there are any */
#define TSK__CUDA_WIDE_BOX 32         /* rows of the input that are fetched at a time */
#define TSK__CUDA_WIDE_CLUSTER 4      /* blocks */
#define TSK__CUDA_WIDE_WARPS 12
/* A tile's outputs; and how many blocks share the columns of one. */
#define TSK__CUDA_WIDE_QKV 112
#define TSK__CUDA_WIDE_OUT 80
#define TSK__CUDA_WIDE_GATE_UP 208
#define TSK__CUDA_WIDE_HEAD 216
#define TSK__CUDA_WIDE_OUT_SPLIT 2

/* Floats of a row of a tile's sums in shared memory: 4 more than whole sixteens keep rows apart in the banks. */
#define TSK__CUDA_SUMS_ROW(width) (((width) + 15) / 16 * 16 + 4)

/* A CUtensorMap. */
typedef struct TSK__DEVICE_ALIGNED(64) tsk__cuda_tensor_map { uint64_t words[16]; } tsk__cuda_tensor_map;
TSK__CUDA_CHECK_SIZE(tensor_map, 128);

/* linear_* and wide_*. */
typedef struct tsk__cuda_linear_args {
    /* sm_90 and later: boxes of 64 columns of a tile's rows, and of all rows */
    tsk__cuda_tensor_map weights_map, input_map;
    TSK__DEVICE(const bf16) weights;       /* [n, k] */
    TSK__DEVICE(const bf16) bias;          /* [n] or NULL */
    TSK__DEVICE(const bf16) input;         /* [m, k]; qkv and gate_up: x times the norm's weight */
    TSK__DEVICE(const float) squares_in;   /* qkv, gate_up: [m, squares_row(k)] of x; NULL: the input is not scaled */
    float eps;
    int32_t m, n, k;
    int32_t pieces, groups, stages, pad;
    tsk__cuda_table table;
    TSK__DEVICE(bf16) out;                 /* qkv: q [m, n_heads * head_dim]; out: x [m, n]; gate_up: hidden [m, mlp] */
    TSK__DEVICE(const bf16) norm;  /* out: [n] weight of the norm that x goes through next; after the last layer any */
    TSK__DEVICE(bf16) normed;              /* out: [m, n] the new x times it */
    TSK__DEVICE(float) squares_out;        /* out: [m, squares_row(n)] of the new x */
    int32_t n_heads, n_kv_heads, head_dim, mlp;
    uint64_t layer_offset;  /* qkv: layer * n_kv_heads * head_dim; a cache's capacity times that lie before it */
    TSK__DEVICE(bf16) captures[4];  /* or NULL. qkv: q, k, v before RoPE, k after; out: projection; gate_up: both */
    TSK__DEVICE(const tsk__cuda_draw) draws;   /* head: [m] */
    TSK__DEVICE(tsk__cuda_head_entry) heads;   /* head: [tiles, m] */
    TSK__DEVICE(float) logits;             /* head: [m, n] or NULL */
    uint64_t end_pad[6];                   /* to a multiple of the tensor maps' alignment */
} tsk__cuda_linear_args;
TSK__CUDA_CHECK_SIZE(linear_args, 512);

/* ---- attention */

#define TSK__CUDA_ATTENTION_SPLITS 4  /* runs that attention_small and attention_medium divide a request's keys into */

typedef struct tsk__cuda_attention_args {
    TSK__DEVICE(const bf16) q;             /* [n, n_heads * head_dim] */
    TSK__DEVICE(bf16) out;                 /* [n, n_heads * head_dim] */
    tsk__cuda_table table;
    TSK__DEVICE(float) parts;  /* [tiles, heads, splits, rows of a tile, head_dim + 2]: sums; then of the weights
                                              the maximum and the total */
    TSK__DEVICE(uint32_t) counters;        /* [tiles * heads], zero between kernels */
    uint64_t layer_offset;                 /* as in tsk__cuda_linear_args */
    float scale;                           /* 1 / sqrt(head_dim) * log2(e) */
    int32_t n_heads, n_kv_heads, pad;
} tsk__cuda_attention_args;
TSK__CUDA_CHECK_SIZE(attention_args, 88);

/* Of any head_dim. */
typedef struct tsk__cuda_attend_args {
    TSK__DEVICE(const void) q;             /* [n, n_heads * head_dim] */
    TSK__DEVICE(void) out;                 /* [n, n_heads * head_dim] */
    tsk__cuda_table table;
    uint64_t layer_offset;                 /* as in tsk__cuda_linear_args */
    int32_t n_heads, n_kv_heads, head_dim;
    float scale;                           /* 1 / sqrt(head_dim) */
} tsk__cuda_attend_args;
TSK__CUDA_CHECK_SIZE(attend_args, 72);

/* ---- what is done to rows one by one; what a trace captures is written where captures point, which may be NULL */

typedef struct tsk__cuda_embed_args {
    TSK__DEVICE(const void) embedding;     /* [ids, d] */
    tsk__cuda_table table;
    TSK__DEVICE(void) x;                   /* [n, d] */
    TSK__DEVICE(const void) weight;        /* bf16: of the first norm, to make its first half; NULL: do not */
    TSK__DEVICE(void) normed;              /* as in pre_norm, likewise squares */
    TSK__DEVICE(float) squares;
    int32_t d, pad;
} tsk__cuda_embed_args;
TSK__CUDA_CHECK_SIZE(embed_args, 80);

typedef struct tsk__cuda_pre_norm_args {
    TSK__DEVICE(const bf16) x;             /* [n, d] */
    TSK__DEVICE(const bf16) weight;        /* [d] */
    TSK__DEVICE(bf16) normed;              /* [n, d] x * weight */
    TSK__DEVICE(float) squares;            /* [n, squares_row(d)] of x */
    int32_t d, pad;
} tsk__cuda_pre_norm_args;
TSK__CUDA_CHECK_SIZE(pre_norm_args, 40);

typedef struct tsk__cuda_norm_args {
    TSK__DEVICE(const void) x;             /* [rows, d] */
    TSK__DEVICE(const int32_t) index;      /* [n] which of the rows; NULL: the first ones */
    TSK__DEVICE(const void) weight;        /* [d] */
    TSK__DEVICE(void) out;                 /* [n, d] */
    int32_t d;
    float eps;
} tsk__cuda_norm_args;
TSK__CUDA_CHECK_SIZE(norm_args, 40);

typedef struct tsk__cuda_rope_cache_args {
    TSK__DEVICE(const void) y;             /* [n, (n_heads + 2 * n_kv_heads) * head_dim], as ROWS_HALVES has it; */
    TSK__DEVICE(const void) bias;          /* as a row of y; NULL: none */
    tsk__cuda_table table;
    TSK__DEVICE(void) q;                   /* [n, n_heads * head_dim] */
    TSK__DEVICE(void) captures[4];         /* q, k and v before RoPE, k after */
    uint64_t layer_offset;                 /* as in tsk__cuda_linear_args */
    int32_t n_heads, n_kv_heads, head_dim, pad;
} tsk__cuda_rope_cache_args;
TSK__CUDA_CHECK_SIZE(rope_cache_args, 112);

typedef struct tsk__cuda_norm_heads_args {
    TSK__DEVICE(void) y;                   /* as above, without a bias: the heads of q and k are normed in place */
    TSK__DEVICE(const void) q_weight;      /* [head_dim] */
    TSK__DEVICE(const void) k_weight;
    TSK__DEVICE(void) captures[2];         /* q and k as they were; NULL: not wanted */
    int32_t n_heads, n_kv_heads, head_dim;
    float eps;
} tsk__cuda_norm_heads_args;
TSK__CUDA_CHECK_SIZE(norm_heads_args, 56);

typedef struct tsk__cuda_silu_args {
    TSK__DEVICE(const void) y;             /* [n, 16 * ceil(mlp / 8)], 8 columns of gate and 8 of up in turn */
    TSK__DEVICE(const void) bias;          /* NULL: none */
    TSK__DEVICE(void) hidden;              /* [n, mlp] */
    TSK__DEVICE(void) captured_gate;
    TSK__DEVICE(void) captured_up;
    int32_t mlp, pad;
} tsk__cuda_silu_args;
TSK__CUDA_CHECK_SIZE(silu_args, 48);

typedef struct tsk__cuda_residual_args {
    TSK__DEVICE(const void) y;             /* [n, d] */
    TSK__DEVICE(const void) bias;          /* [d] or NULL */
    tsk__cuda_table table;
    TSK__DEVICE(void) x;                   /* [n, d] */
    TSK__DEVICE(void) captured;
    int32_t d, pad;
} tsk__cuda_residual_args;
TSK__CUDA_CHECK_SIZE(residual_args, 72);

/* ---- TokenSkip's states */

typedef struct tsk__cuda_compare_args {
    TSK__DEVICE(const void) x;             /* [n, d] */
    tsk__cuda_table table;
    TSK__DEVICE(float) cosines;            /* [rows of begin] of this state, and the host's copy */
    TSK__DEVICE(float) host_cosines;
    int32_t state, d;
} tsk__cuda_compare_args;
TSK__CUDA_CHECK_SIZE(compare_args, 64);

typedef struct tsk__cuda_keep_args {
    TSK__DEVICE(void) x;                   /* [n, d] */
    tsk__cuda_table table;
    TSK__DEVICE(const int32_t) skipped;    /* [rows of begin] */
    int32_t d, pad;
} tsk__cuda_keep_args;
TSK__CUDA_CHECK_SIZE(keep_args, 56);

/* ---- moving */

/* `size` bytes of each plane, the first at `base`, from offset `from` down to `to`. */
typedef struct tsk__cuda_slide_args {
    TSK__DEVICE(char) base;
    uint64_t pitch, to, from, size;
} tsk__cuda_slide_args;
TSK__CUDA_CHECK_SIZE(slide_args, 40);

typedef struct tsk__cuda_move_rows_args {
    TSK__DEVICE(void) to;                  /* rows of d */
    TSK__DEVICE(const void) from;
    TSK__DEVICE(const int32_t) index;      /* [n] rows of `from`; scatter: of `to` */
    int32_t scatter, d;
} tsk__cuda_move_rows_args;
TSK__CUDA_CHECK_SIZE(move_rows_args, 32);

/* ---- the matrix product in f32 */

typedef struct tsk__cuda_exact_f32_args {
    TSK__DEVICE(const float) input;        /* [m, k] */
    TSK__DEVICE(const float) weights;      /* [n, k] */
    TSK__DEVICE(float) out;                /* [m, n] */
    int32_t m, n, k, pad;
} tsk__cuda_exact_f32_args;
TSK__CUDA_CHECK_SIZE(exact_f32_args, 40);

/* ---- the head, where logits lie in memory */

#define TSK__CUDA_HEAD_TILE 1024      /* ids of a tile of head_tiles */

typedef struct tsk__cuda_head_tiles_args {
    TSK__DEVICE(float) logits;             /* [m, n] of ids first .. first + n - 1; the bias is added in place */
    TSK__DEVICE(const void) bias;          /* [ids] f32, or bf16, or NULL */
    TSK__DEVICE(const tsk__cuda_draw) draws;  /* [m] */
    TSK__DEVICE(tsk__cuda_head_entry) heads;  /* [tiles, m] */
    int32_t first, n, bias_is_bf16, pad;
} tsk__cuda_head_tiles_args;
TSK__CUDA_CHECK_SIZE(head_tiles_args, 48);

typedef struct tsk__cuda_head_finish_args {
    TSK__DEVICE(const tsk__cuda_head_entry) heads;     /* [n_tiles, m] */
    TSK__DEVICE(const tsk__cuda_draw) draws;           /* [m] */
    TSK__DEVICE(tsk__cuda_prediction) predictions;     /* [m] */
    int32_t n_tiles, m;
} tsk__cuda_head_finish_args;
TSK__CUDA_CHECK_SIZE(head_finish_args, 32);

/* ---- loading */

/* The stored type of a tensor's elements. */
#define TSK__CUDA_STORED_F32 0
#define TSK__CUDA_STORED_F16 1
#define TSK__CUDA_STORED_BF16 2

/* How a tensor's rows, of `columns` columns, lie among those of the matrix that it is part of, from first_row on: one
   after another; in groups of 8 that alternate with another tensor's; or in groups of 8 of a head's first half that
   alternate with its second half's, where half_head is a multiple of 8. */
#define TSK__CUDA_ROWS_IN_ORDER 0
#define TSK__CUDA_ROWS_FIRST 1        /* gate, before up */
#define TSK__CUDA_ROWS_SECOND 2       /* up */
#define TSK__CUDA_ROWS_HALVES 3       /* q, k and v */
typedef struct tsk__cuda_row_order {
    uint64_t columns, first_row;
    int32_t interleave, half_head;
} tsk__cuda_row_order;
TSK__CUDA_CHECK_SIZE(row_order, 24);

typedef struct tsk__cuda_convert_args {
    TSK__DEVICE(const void) from;          /* [count] of the stored type: elements from number `first` of a tensor on */
    TSK__DEVICE(void) to;                  /* the matrix that it is part of */
    uint64_t first, count;
    tsk__cuda_row_order row_order;
    int32_t stored, pad;                   /* TSK__CUDA_STORED_* */
} tsk__cuda_convert_args;
TSK__CUDA_CHECK_SIZE(convert_args, 64);

typedef struct tsk__cuda_randomise_args {
    TSK__DEVICE(void) to;
    uint64_t count, seed;
    tsk__cuda_row_order row_order;
    uint32_t tensor;                       /* its number in the generator's counter */
    float scale;
} tsk__cuda_randomise_args;
TSK__CUDA_CHECK_SIZE(randomise_args, 56);

typedef struct tsk__cuda_fill_args {
    TSK__DEVICE(void) to;
    uint64_t count;
    float value;
    int32_t pad;
} tsk__cuda_fill_args;
TSK__CUDA_CHECK_SIZE(fill_args, 24);

/* ---- ceilings */

typedef struct tsk__cuda_read_stream_args {
    TSK__DEVICE(const void) from;          /* [n] pieces of 16 bytes */
    uint64_t n;
    TSK__DEVICE(uint32_t) out;             /* practically never written */
} tsk__cuda_read_stream_args;
TSK__CUDA_CHECK_SIZE(read_stream_args, 24);

#endif /* SECTION_GUARD_CUDA_SHARED */
