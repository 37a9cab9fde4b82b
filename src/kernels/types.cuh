#ifndef SECTION_GUARD_KERNELS_TYPES
#define SECTION_GUARD_KERNELS_TYPES

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

#endif /* SECTION_GUARD_KERNELS_TYPES */
