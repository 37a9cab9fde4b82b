#ifndef SECTION_GUARD_BACKEND
#define SECTION_GUARD_BACKEND

#include "system.h"
#include "api.h"

// >>backend ===========================================================================================================
/* What a backend must be able to do, at the grain at which operations fuse on a GPU. The transformer (>>forward) is
   written once over this table. Addresses (void *) are the backend's own, host memory on the CPU and device memory on a
   GPU: no code outside the backend dereferences them; upload and download move data to and from them.

   Every operation works on a list of rows. A row is one position of one request; its K and V live in that request's
   cache, and it attends to the first positions there, as many as are visible to it. So a full forward, a block's step,
   a TokenSkip subset and a packed batch are the same code with different lists. Activations are row-major [n, width]
   in the backend's activation type; sums are f32, and the order of every sum depends on the model and on how many
   positions are visible only, never on how many rows there are or who their neighbours are. */

/* The frequency of pair i of a head. The angle of a position is the position times this. Frequency and angle are
   rounded to f32 as in PyTorch; at position 4000 the difference shows. */
static float tsk__rope_frequency(const tsk_model_config *config, int32_t i) {
    return (float)(1.0 / pow((double)config->rope_theta, 2.0 * i / config->head_dim));
}

/* How the head turns a row's logits into a prediction (see >>schedule for the meaning). */
typedef struct tsk__draw {
    float temperature;         /* 0: plain argmax */
    int32_t mask_token_id;     /* never predicted */
    uint64_t seed;
    uint32_t position, pass;   /* of the random draws */
} tsk__draw;

typedef struct tsk__prediction {
    int32_t id;
    float confidence;          /* softmax probability of `id` under the logits without noise */
    float logit, log_sum_exp;  /* of `id`; over all ids */
    float entropy;             /* of the same softmax, in nats */
} tsk__prediction;

/* What a backend keeps of one request. Positions 0 .. length - 1 of `capacity` are valid. `states` and `outputs` are
   TokenSkip's, one slot for each position of the block being decoded, NULL where not needed; in a refresh under
   skip_refresh `states` has a slot for each position of the canvas instead. */
typedef struct tsk__kv {
    void *k, *v;               /* [n_layers, n_kv_heads, capacity, head_dim] each */
    int32_t length, capacity;
    void *tokens;              /* [length] int32: the canvas, in which select commits; NULL: the list of rows has the
                                  ids */
    void *predictions;         /* [block's positions] tsk__prediction: the last of each, whatever the slots of `states`
                                  are */
    float skip_threshold, skip_outlier; /* for decide */
    void *states;              /* [2, n_states, n_slots, d_model]: h_1 .. h_{K-1}; first those that a token is compared
                                  with, then those of the pass under way */
    void *outputs;             /* [n_slots, d_model]: last computed h_L */
    int32_t n_slots, n_states;
    int32_t has_reference;     /* 0: the first half of `states` holds nothing yet, and no cosine means anything */
} tsk__kv;

/* What the pass does with a row that has a slot. A row is skipped only if `decide` decided about it and chose so; every
   other row runs. */
typedef enum tsk__row_flag {
    TSK__ROW_MAY_SKIP = 1,     /* decide: skipped if its cosines say so */
    TSK__ROW_SKIPS = 2,        /* decide: skipped */
    TSK__ROW_REMEMBER = 4,     /* keep: the pass's states become those that the next pass is compared with, */
    TSK__ROW_IF_RAN = 8,       /* provided that it ran */
    TSK__ROW_OUTPUT = 16,      /* keep: its output is stored if it ran, and the stored one taken if it was skipped */
    TSK__ROW_DECIDED = TSK__ROW_MAY_SKIP | TSK__ROW_SKIPS /* decide says something of the row */
} tsk__row_flag;

/* The rows of a pass; host memory, valid during `begin` and, but for the ids, until the next. */
typedef struct tsk__rows {
    int32_t n;
    const int32_t *tokens;     /* [n] ids of requests that have no canvas in the backend (which is uploaded before
                                  begin) */
    const int32_t *positions;  /* [n] in the canvas of its request */
    const int32_t *requests;   /* [n] which cache */
    const int32_t *slots;      /* [n] in its request's states and outputs; -1: none */
    const int32_t *flags;      /* [n] of tsk__row_flag; NULL: none */
    const int32_t *visible;    /* [n] attends to positions 0 .. visible[i] - 1; NULL: to its cache's length */
    const tsk__kv *caches;     /* [n_requests] */
    int32_t n_requests;
} tsk__rows;

/* What a traced pass captures inside of fused operations: where to. Any pointer may be NULL. */
typedef struct tsk__captures {
    void *norm;                /* [n, d_model] the normalised input */
    void *q, *k, *v;           /* [n, n_heads * head_dim], [n, n_kv_heads * head_dim] twice: before RoPE, with bias */
    void *q_norm, *k_norm;     /* as q and k, normed by head; where the family does so */
    void *k_rope;              /* [n, n_kv_heads * head_dim] after RoPE (q after RoPE is an output anyway) */
    void *gate, *up;           /* [n, mlp_hidden_size] outputs of ff_proj and up_proj */
    void *projection;          /* [n, d_model] output of attn_out or ff_out, before the residual is added */
} tsk__captures;

/* A position that a request may commit in this pass. */
typedef struct tsk__commit_candidate {
    int32_t position;          /* in the canvas */
    int32_t slot;              /* in the block: where its last prediction lies */
    int32_t head;              /* which of the head's rows predicts it now; -1: none, the last prediction holds */
} tsk__commit_candidate;

/* How one request commits (see >>schedule). */
typedef struct tsk__commit_rule {
    int32_t request;           /* which cache */
    int32_t first, n;          /* candidates, in order of position */
    int32_t commits;           /* 0: nothing is committed, the host chooses */
    tsk_transfer_rule rule;
    int32_t is_random;         /* the confidence is a uniform draw of seed and pass */
    uint32_t pass;
    uint64_t seed;
} tsk__commit_rule;

/* What became of a candidate. */
typedef struct tsk__choice {
    int32_t id;                /* its prediction */
    float confidence, entropy;
    float log_sum_exp;         /* over all ids of its row's logits: no finite number where they are none */
    int32_t is_committed;
} tsk__choice;

/* One request's or one batch's order of work, with the activations that fused operations hand to each other. A
   backend's own struct begins with this one. */
typedef struct tsk__stream {
    struct tsk__backend *backend;
    int32_t max_rows;
    void *x;                   /* [max_rows, d_model] the residual stream */
    void *q;                   /* [max_rows, n_heads * head_dim] after RoPE */
    void *attention;           /* [max_rows, n_heads * head_dim] */
    void *hidden;              /* [max_rows, mlp_hidden_size] silu(gate) * up */
    void *predictions;         /* [max_rows] tsk__prediction, of the last head's rows */
    /* host memory, valid after wait */
    float *cosines;            /* [n_states, max_rows] */
    int32_t *skipped;          /* [max_rows] by the row's number in the list of begin; of rows that are DECIDED */
    tsk__choice *choices;      /* [max_rows] by the candidate's number */
} tsk__stream;

typedef struct tsk__backend_ops {
    /* A subset of up to this many rows runs by masking the other rows' writes (see mask and decide); a larger one runs
       compacted. 0: always compacted. */
    int32_t masked_rows;

    void (*destroy)(struct tsk__backend *backend);         /* with all that it has allocated */
    void (*describe)(const struct tsk__backend *backend, char *out, size_t size); /* "CPU, AVX-512, 2 threads", ... */
    tsk_status (*ceilings)(struct tsk__backend *backend, tsk_ceilings *out,
                           tsk_error *error); /* see tsk_model_ceilings */
    uint64_t (*available)(struct tsk__backend *backend);  /* bytes that could still be allocated, about; UINT64_MAX:
                                                             unknown */
    tsk_status (*stream_create)(struct tsk__backend *backend, int32_t max_rows, int32_t n_states, tsk__stream **out,
                                tsk_error *error);
    void (*stream_destroy)(tsk__stream *stream);
    void *(*allocate)(struct tsk__backend *backend, uint64_t size);        /* NULL when refused */
    void (*release)(struct tsk__backend *backend, void *address);
    void (*copy)(tsk__stream *stream, void *to, const void *from, uint64_t size); /* within the backend */
    /* In each of `planes` stretches of memory that begin `pitch` bytes after each other, the first at `base`, `size`
       bytes move from offset `from` down to offset `to`; the two may overlap. */
    void (*slide)(tsk__stream *stream, void *base, int32_t planes, uint64_t pitch, uint64_t to, uint64_t from,
                  uint64_t size);
    void (*upload)(tsk__stream *stream, void *to, const void *from, uint64_t size); /* from the host, which may change
                                                                                       it at once */
    /* `count` values of the activation type from address to host f32. Waits. */
    void (*download)(tsk__stream *stream, float *to, const void *from, uint64_t count);
    /* All work so far is done; the first failure since the last wait. */
    tsk_status (*wait)(tsk__stream *stream, tsk_error *error);

    /* Operations act on the rows of the last begin, in order, and report failures at the next wait. */
    void (*begin)(tsk__stream *stream, const tsk__rows *rows);
    /* From here on rows with active[i] == 0 write neither K and V nor x, and are not compared (n <= masked_rows). NULL:
       all do. */
    void (*mask)(tsk__stream *stream, const int32_t *active);
    void (*embed)(tsk__stream *stream);
    void (*qkv)(tsk__stream *stream, int32_t layer, const tsk__captures *captures);
    void (*attend)(tsk__stream *stream, int32_t layer);
    void (*attn_out)(tsk__stream *stream, int32_t layer, const tsk__captures *captures);
    void (*gate_up)(tsk__stream *stream, int32_t layer, const tsk__captures *captures);
    void (*down)(tsk__stream *stream, int32_t layer, const tsk__captures *captures);
    /* For each row with a slot whose request has that state: cosines[state * max_rows + i] becomes the cosine of x and
       the slot's state in the first half, at most 1; then x is stored as the slot's state in the second half. i is the
       row's number in the list of begin. */
    void (*compare)(tsk__stream *stream, int32_t state);
    /* Decides about the requests that compare n_states states, after all of these were compared. A row with MAY_SKIP is
       skipped if tsk__skip_similar says so of its cosines; a row with SKIPS is skipped. In a list of up to masked_rows
       rows, skipped rows are masked from here on. */
    void (*decide)(tsk__stream *stream, int32_t n_states);
    /* After the layers, on the whole list, for each row by its flags. REMEMBER: copies the second half of the row's
       states over the first. OUTPUT: outputs[slot] = x[i] if the row ran, x[i] = outputs[slot] if it was skipped. */
    void (*keep)(tsk__stream *stream);
    /* Rows index[0 .. n-1] of the list of begin become the pass's rows, whose x moves to the front of a buffer of their
       own; a compacted list is first expanded. expand writes their x back among the others and restores the list. */
    void (*compact)(tsk__stream *stream, int32_t n, const int32_t *index);
    void (*expand)(tsk__stream *stream);
    /* Final norm and head over rows index[0 .. n-1] of x: predictions[j] for index[j]. x stays. */
    void (*head)(tsk__stream *stream, int32_t n, const int32_t *index, const tsk__draw *draws);
    /* After the head: every candidate's prediction is kept in its slot, and those that their request's rule takes (see
       tsk_select) are written to its canvas. choices[i] of candidate i. */
    void (*select)(tsk__stream *stream, int32_t n, const tsk__commit_rule *rules, int32_t n_candidates,
                   const tsk__commit_candidate *candidates);
    /* The same rows' final norm [n, d_model] (may be NULL) and logits [n, embedding_size], to host f32. Waits. */
    void (*logits)(tsk__stream *stream, int32_t n, const int32_t *index, float *norm, float *logits);

    /* Recorded sections, NULL where a backend has none. replay returns 1 when it ran section `key` as recorded; on 0
       the caller runs the operations between record and finish. A section does the same for equal keys. */
    int (*replay)(tsk__stream *stream, uint64_t key);
    void (*record)(tsk__stream *stream, uint64_t key);
    void (*finish)(tsk__stream *stream);
} tsk__backend_ops;

struct tsk__source; /* of weights, see >>weights */

/* How a backend comes to be. */
typedef struct tsk__backend_kind {
    tsk_device device;
    /* 1 if this machine has such a device; else 0 and `why`. */
    int (*available)(int device_index, char *why, size_t why_size);
    /* The backend with its weights in place; `config` must outlive it. Fails with *out NULL. */
    tsk_status (*create)(const tsk_model_config *config, const struct tsk__source *source,
                         const tsk_model_options *options, struct tsk__backend **out, tsk_error *error);
    int keeps_codes;           /* 0: its source has to give the values of quantised weights */
} tsk__backend_kind;

typedef struct tsk__backend {
    const tsk__backend_ops *ops;
    const tsk_model_config *config;
    uint32_t element_size;     /* of an activation */
} tsk__backend;

/* Whether a subset of a pass of n rows runs by masking, which the backend can do to itself (see decide), or by
   compaction. */
static int tsk__backend_masks(const tsk__backend *b, int32_t n) { return n <= b->ops->masked_rows; }

/* Whether passes should be cut at the same layers whether or not something is decided there: a backend that records
   sections then runs plain and skipping steps from the same recordings. */
static int tsk__backend_wants_same_sections(const tsk__backend *b) { return b->ops->replay != NULL; }

#endif /* SECTION_GUARD_BACKEND */
