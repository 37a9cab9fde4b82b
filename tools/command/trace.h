/* What the parts of `tokenskip trace` share. A trace is three things, any of which may be missing: the two-step
   comparison of the notebook that this command replaces, the step-by-step logs of a generation without and one with
   TokenSkip, and the values of their passes in a file. Out of memory ends the program, as everywhere in the command. */
#ifndef TRACE_H
#define TRACE_H

#include "cli.h"

/* Says that a signal came. CLI_FAILED. */
int trace_interrupted(void);

/* ---- Values kept of a pass, and differences from them ----------------------------------------------------------- */

typedef struct trace_value {
    char name[40], part[4];
    int32_t layer, n_rows;
    int32_t *positions;        /* [n_rows] */
    int n_dims;
    uint64_t shape[3];         /* as tsk_trace_record's output_shape */
    uint64_t input_shape[2];
    float *values;
} trace_value;

typedef struct trace_values {
    trace_value *items;
    size_t count, capacity;
    size_t next;               /* where the last search ended: records come in the same order every time */
} trace_values;

/* The caller's part of a tracing callback: keeps a copy of the record's output. */
void trace_values_keep(trace_values *values, const tsk_trace_record *record);
const trace_value *trace_values_find(trace_values *values, const char *name, const char *part);
/* Frees the values alone: shapes and positions stay, for the comparisons already made. */
void trace_values_drop(trace_values *values);
void trace_values_clear(trace_values *values);

/* How one record of a pass differs from the same record of another, row by row. */
typedef struct trace_difference {
    const trace_value *base;   /* a row is a position: of [n_rows, ...] the first index, of caches the second */
    uint64_t other_shape[3];   /* 0s: no row ran in the other pass */
    double *rows;              /* [base->n_rows] largest magnitude; -1 where the other pass has no such row */
    double max;                /* over all rows of both; -1: there are none */
    double squared_difference, squared; /* sums over the rows of both: relative L2 is the root of their quotient */
} trace_difference;

typedef struct trace_comparison {
    trace_difference *items;   /* [count] one for each value of the base */
    size_t count;
} trace_comparison;

/* Base must stay as it is while the comparison lives. */
void trace_comparison_begin(trace_comparison *comparison, const trace_values *base);
void trace_comparison_add(trace_comparison *comparison, trace_values *base, const tsk_trace_record *record);
const trace_difference *trace_comparison_find(const trace_comparison *comparison, const char *name, const char *part);
/* The largest difference of a record, -1 where it is missing. */
double trace_comparison_max(const trace_comparison *comparison, const char *name, const char *part);
void trace_comparison_clear(trace_comparison *comparison);

/* Where row `row` begins for head `head` (0 but for caches), and how many values lie there. */
const float *trace_row(const float *values, int is_cache, const uint64_t shape[3], int32_t row, uint64_t head,
                       uint64_t *width);
int trace_is_cache(const char *name);

/* The largest logit's id, the mask's left out; first wins. */
int32_t trace_argmax(const float *logits, int32_t n, int32_t mask_id);
/* The same as a candidate: with its softmax among all, and the softmax's entropy. */
tsk_candidate trace_candidate(const float *logits, int32_t n, int32_t mask_id, int32_t position);

/* ---- The two-step comparison ------------------------------------------------------------------------------------ */

typedef struct notebook {
    int is_there;
    int32_t canvas_length, n_filled;     /* masks of the canvas that the initial forward's argmax filled */
    uint64_t kv_shape[3];
    int32_t n_positions, *positions;     /* the block */
    uint8_t *masked;                     /* [n_positions] in step 1 */
    trace_values base0, base1;           /* the baseline's two steps */
    trace_comparison step0, exact1, given1; /* TokenSkip's step 0, its step 1 with threshold 1.0, with the given one */
    uint8_t *active;                     /* [n_positions] step 1, given threshold */
    int32_t n_cosines;
    float *cosines;                      /* [n_positions, n_cosines] */
    int32_t *argmax_base, *argmax_given; /* [n_positions] step 1 */
} notebook;

int notebook_run(notebook *notes, const cli_engine *engine, const cli_settings *settings, const tsk_tokens *prompt);
void notebook_free(notebook *notes);
/* Tokens by verdict, and by whether they are masked. */
void notebook_count(const notebook *notes, int32_t *stable, int32_t *masked, int32_t *stable_masked);
/* Least and mean cosine of a token. */
void notebook_cosine(const notebook *notes, int32_t token, double *least, double *mean);

/* ---- Shadow: the full pass beside the one with skipped tokens, from the same state
   -------------------------------- */

enum { SHADOW_AGES = 64 };               /* older tokens count with the oldest */

/* Over masked tokens. */
typedef struct shadow_error {
    uint64_t n, flips;
    double kl, kl_max;                   /* KL(full || skipped) in nats: sum, largest */
    double confidence, confidence_max;   /* magnitude of the difference of the predictions' probabilities: sum,
                                            largest */
} shadow_error;

/* Sums of squares: of the difference, of the full pass. */
typedef struct shadow_norm { double difference, full; } shadow_norm;

typedef struct shadow_layer {
    shadow_norm active;                  /* outputs of the tokens that ran */
    shadow_norm stable;                  /* what stands for a skipped token's output: its last one (reuse), its layer-K
                                            state (exit) */
    shadow_norm kv;                      /* cached K and V rows of skipped tokens against fresh ones */
} shadow_layer;

typedef struct shadow_step {
    shadow_error error;
    float *kl;                           /* [n_positions of the step] -1 where not masked */
    float *confidence_errors;
    uint8_t *flips;
    int32_t *full_predictions;           /* -1 where not masked */
    float *full_confidences;             /* likewise */
    uint8_t *full_commits;               /* what the full pass would have committed; all 0 where that is drawn */
    int32_t n_missed;                    /* of these, rows that were left out */
    shadow_layer *layers;                /* [n_layers] */
} shadow_step;

typedef struct shadow_totals {
    shadow_error all, by_age[SHADOW_AGES + 1];
    uint64_t skipped_by_age[SHADOW_AGES + 1];
    shadow_norm kv_by_age[SHADOW_AGES + 1];
    shadow_layer *layers;                /* [n_layers] */
    uint64_t steps;
} shadow_totals;

typedef struct shadow shadow;

double shadow_relative(const shadow_norm *norm); /* relative L2; 0 where there is nothing */

/* ---- Why a row ran ---------------------------------------------------------------------------------------------- */

typedef enum row_reason {
    ROW_LEFT_OUT,    /* it did not, by the rule `rows` */
    ROW_STABLE,      /* it did not run the upper layers, by the rule `states` */
    ROW_START,       /* the block's first pass runs all */
    ROW_COMMITTED,   /* the pass before committed it */
    ROW_CANDIDATE,   /* rows: it may be committed */
    ROW_AHEAD,       /* rows: it stands beside one that was committed */
    ROW_MASKED,      /* states: masked tokens always run */
    ROW_MOVED,       /* states: its mean cosine is not above the threshold, */
    ROW_OUTLIER,     /* or one of its cosines is below the outlier limit, */
    ROW_AGE,         /* or it was skipped for long enough */
    ROW_ALL,         /* everything runs in this step */
    ROW_NO_STATES    /* states: there is nothing to compare with */
} row_reason;

const char *reason_name(row_reason reason); /* for people */
const char *reason_key(row_reason reason);  /* for JSON */

/* ---- Generations, step by step ---------------------------------------------------------------------------------- */

typedef struct step_log {
    int32_t pass, block, block_step, n_positions, n_cosines;
    int32_t *positions, *predictions;
    float *confidences, *cosines;
    uint8_t *committed, *active, *masked; /* masked: before this pass */
    int32_t n_masked, n_active, n_stable_masked, masks_left, n_rows;
    uint64_t computed, total;            /* token-layers of this pass; 0s where nothing is counted: no TokenSkip, no
                                            block step */
    shadow_step *shadow;                 /* NULL: not run here */
    uint8_t *reasons;                    /* [n_positions] of row_reason */
} step_log;

typedef struct generation_log {
    step_log *steps;
    size_t count, capacity;
    tsk_result result;                   /* counts; its pointers are NULL but for the copies below */
    int32_t *canvas;                     /* [canvas_length] at the end */
    int32_t canvas_length, n_prompt;
    tsk_block_result *blocks;
    int32_t n_blocks;
    shadow_totals shadow;                /* layers NULL: no shadow mode */
} generation_log;

/* Fills in every step's reasons. `resolved`: the generation's options, without TSK_AUTO. */
void reasons_find(generation_log *log, const tsk_generate_options *resolved);
/* The least and the mean cosine of a step's token i; the step has cosines. */
void reason_cosines(const step_log *step, int32_t i, double *least, double *mean);

/* Where values of the generations go, and what went wrong with them. */
typedef struct trace_dump {
    tsk_safetensors_writer *writer;      /* NULL: no dump */
    const char *pattern;                 /* NULL: everything */
    int32_t first_pass, last_pass, first_layer, last_layer;
    const char *prefix;                  /* "" or "skip." */
    /* of every tensor in the file, in its order */
    int32_t *passes, *layers;            /* [n_tensors] -1: of no layer */
    size_t n_tensors, n_values, capacity;
    /* the pass under way */
    int32_t *positions, n_positions;     /* the rows that began it, in order */
    uint8_t *ran;                        /* [layers, n_positions] */
    uint64_t bytes;
    int failed;
    tsk_error error;
} trace_dump;

/* Before the model is loaded. */
int dump_open(trace_dump *dump, const cli_settings *settings);
/* Says how much the dump can become, before it is made; refuses layers that the model has not. */
int dump_estimate(trace_dump *dump, const cli_settings *settings, const tsk_model_config *config,
                  const tsk_generate_options *const *generations, int n_generations, const tsk_tokens *prompt);
/* The pass has ended: which rows it had, and which layers they ran. */
void dump_step(trace_dump *dump, const tsk_step *step);
void dump_record(trace_dump *dump, const tsk_trace_record *record);
struct trace;
int dump_finish(trace_dump *dump, const struct trace *trace);
void dump_abandon(trace_dump *dump);

/* `options`: of this generation. `shadowed`: the full pass is run beside every step. */
int generation_run(generation_log *log, const cli_engine *engine, const cli_settings *settings,
                   const tsk_generate_options *options, const tsk_tokens *prompt, int shadowed, trace_dump *dump);
void generation_free(generation_log *log);

/* A shadow of `main`, whose steps it is told about: before each, and with every record of it. */
int shadow_begin(shadow **out, const cli_engine *engine, const tsk_generate_options *options, tsk_session *main);
int shadow_before(shadow *shadow, int starts_block, int is_refresh);
void shadow_record(shadow *shadow, const tsk_trace_record *record);
/* Moves what was found to the step's log, and adds it to the totals. */
void shadow_after(shadow *shadow, step_log *step, shadow_totals *totals);
void shadow_free(shadow *shadow);
void shadow_step_free(shadow_step *step);

/* ---- Everything, and its three forms ---------------------------------------------------------------------------- */

/* What one of two generations made of the position at which they part. */
typedef struct parting_side {
    int32_t pass, block, block_step;     /* that committed it; -1: none did, an early end filled it */
    int32_t id;
    double confidence;                   /* with which it was committed; -1 likewise */
    double probabilities[2];             /* in that pass, of the baseline's token and of the other; -1: not known */
} parting_side;

typedef struct trace_parting {
    int32_t position;                    /* in the canvas; -1: no token differs */
    int32_t first_other_pass;            /* the first that commits other positions or tokens; -1: none */
    parting_side sides[2];               /* the baseline, the given settings */
} trace_parting;

typedef struct trace {
    const cli_engine *engine;
    const cli_settings *settings;
    tsk_generate_options versus;         /* the baseline's */
    const char *names[2];                /* of the baseline and of the given settings */
    const tsk_model_config *config;
    int32_t layer_k;                     /* resolved, of the generation; 0: it compares no states */
    int32_t notes_k;                     /* of the two-step comparison, which is by states; 0: there is none */
    int leaves_out;                      /* the settings are not the baseline's: there are two generations */
    const tsk_tokens *prompt;
    notebook notes;
    generation_log baseline, skip;       /* skip.count 0: the settings are the baseline's */
    trace_parting parting;               /* where there are two */
} trace;

/* Whether both have decoded this position, otherwise. */
int trace_differs(const trace *t, int32_t position);
/* Compares the two generations, of which it runs as much again as it takes to know the probabilities. */
int parting_find(trace *t);
void parting_text(const trace *t, tsk_text *out);

/* The first block step that meets a condition: masked tokens among the stable ones; all stable while masks remain. */
const step_log *trace_first_stable_masked(const generation_log *log);
const step_log *trace_first_all_stable(const generation_log *log);
/* Generated tokens that differ from the baseline's, of those decoded in both. */
int32_t trace_differing_tokens(const trace *t, int32_t *compared);
void trace_conclusion(const trace *t, tsk_text *out);
const char *trace_rule(const trace *t); /* "off", "states" or "rows" */
/* What a token is, in words that a terminal and a page can show; "" without a tokenizer. */
void trace_token_text(const trace *t, int32_t id, tsk_text *out);

/* The members of an object: `options`, of this trace's model. */
void trace_options_json(const trace *t, tsk_json_writer *json, const tsk_generate_options *options);

void trace_text(const trace *t, tsk_text *out);
void trace_json(const trace *t, tsk_json_writer *json);
int trace_html(const trace *t, const char *path);

#endif
