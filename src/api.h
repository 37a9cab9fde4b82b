/* tokenskip.h - masked-diffusion language models (LLaDA) from C and C++, with TokenSkip; one header, no dependencies.
   MIT licence (see LICENSE). Version below, changes in CHANGELOG.md. Made from src/api.h and src/<section>.h (make
   headers).

DO THIS
   In ONE C or C++ file:

       #define TOKENSKIP_IMPLEMENTATION
       #define TOKENSKIP_NO_CUDA            // CPU only; see BUILD for the GPU
       #include "tokenskip.h"

   and plain #include "tokenskip.h" everywhere else. Then:  cc -O2 app.c -lm -lpthread

A COMPLETE PROGRAM

       #define TOKENSKIP_IMPLEMENTATION
       #define TOKENSKIP_NO_CUDA
       #include "tokenskip.h"
       #include <stdio.h>
       int main(void) {
           tsk_error error;
           tsk_model *model; tsk_session *session; tsk_result result;
           tsk_message question = {"user", "Who is Newton in physics?"};
           tsk_tokens prompt = TSK_ZERO; tsk_text answer = TSK_ZERO;
           if (tsk_model_load("examples/demo-model", NULL, &model, &error) ||
               tsk_session_create(model, NULL, &session, &error) ||
               tsk_chat_encode(tsk_model_tokenizer(model), &question, 1, 0, &prompt, &error) ||
               tsk_generate(session, prompt.ids, prompt.count, NULL, &result, &error) ||
               tsk_tokenizer_decode(tsk_model_tokenizer(model), result.tokens, result.n_before_end, 1, &answer, &error))
               return fprintf(stderr, "%s\n", error.message), 1;
           puts(answer.data ? answer.data : "");
           tsk_text_free(&answer); tsk_tokens_free(&prompt); tsk_session_free(session); tsk_model_free(model);
           return 0;
       }

WHAT IT DOES
   - Loads a Hugging Face folder as it is: config.json, model.safetensors or its shards, tokenizer.json, chat template.
   - Holds weights as they are, or as integers of 8 or 4 bits with scales (weights in tsk_model_options, tsk_quantize);
     reads quantised folders of compressed-tensors, GPTQ, AWQ and FP8.
   - Generates with LLaDA's schedule, a confidence threshold, or one of four rules from the literature (TSK_TRANSFER_*);
     with no cache, a prefix cache or a dual cache, or by blocks where the model attends by blocks; with TokenSkip on
     top of the last two; fills gaps inside a given text (infilling).
   - Shows what happens: a callback after every forward pass, a callback for every intermediate tensor, and copies of a
     generation's state to compare variants from.
   - Runs many requests at once (continuous batching), in f32 each with the tokens it would get alone.
   - Runs on the CPU (AVX-512, AVX2, NEON or portable C, chosen at run time; integer weights by AVX-512 VNNI, AVX-VNNI,
     AVX2 or portable C) and on NVIDIA GPUs from compute capability 8.0 up.

WHAT IT DOES NOT DO
   - It does not train or download models, and does not read GGUF, pickle or ONNX.
   - It does not run autoregressive models. Of masked-diffusion models it runs LLaDA's architecture (LLaDA-8B,
     LLaDA-1.5), SDAR's (SDAR without experts, TraDo), Fast-dLLM v2's and Dream's (Dream, DiffuCoder, Dream-Coder; not
     their own schedule and orders); others are refused by name, not approximated.
   - It never prints, exits, or keeps global state. All errors are return values with a message that names the input.
   - "TokenSkip" here is not the chain-of-thought compression method of the same name (Xia et al., 2025).

BUILD AND LINK
   Linux, Windows (mingw-w64) or macOS; gcc or clang, C99 or C++11. With -std=c99 include this header before any system
   header in the file that has TOKENSKIP_IMPLEMENTATION (it asks for POSIX); on Windows that file gets windows.h, others
   do not. Paths are UTF-8. Optimise (-O2): without it everything still works, slowly. Not with -ffast-math: results and
   checks rely on infinities and on the order of sums. Threads that call it need 128 KB of stack. For the GPU keep
   kernels.cu.h beside this file: it is the kernels' source, which NVRTC compiles at run time (the driver, NVRTC and
   cuBLAS from CUDA 12 on). On Windows nothing is linked and TOKENSKIP_CUDA_DLOPEN is the default; macOS has no CUDA.
     TOKENSKIP_NO_CUDA        CPU only:  cc -O2 app.c -lm -lpthread
     TOKENSKIP_CUDA_DLOPEN    finds the CUDA driver, NVRTC and cuBLAS at run time if they are there, else uses the CPU;
                              needs no CUDA headers:  cc -O2 app.c -lm -lpthread -ldl
     neither                  links them:  cc -O2 app.c -I$CUDA/include -L$CUDA/lib64 -lcuda -lnvrtc -lcublas -lm
     -lpthread

CONFIGURATION (define before the implementation)
     TOKENSKIP_STATIC                        all functions static, for use in one file
     TOKENSKIP_API                           your own linkage, e.g. __declspec or visibility
     TOKENSKIP_MALLOC, _REALLOC, _FREE       all or none; the default allocator (a tsk_allocator in the options
     overrides it)
     TOKENSKIP_JSON_MAX_DEPTH                512

HOW MASKED DIFFUSION WRITES
   The answer starts as masks. A pass of the transformer, which looks both ways, predicts all of them at once; the
   predictions that it is sure of are committed, the rest stay masked for the next pass. Blocks of block_length are
   finished left to right:

       prompt              block 0              block 1
       Who is Newton ?     ░ ░ ░ ░ ░ ░ ░ ░      ░ ░ ░ ░ ░ ░ ░ ░      pass 0, the whole canvas (a "refresh")
       Who is Newton ?     ░ Newton was ░ ░ ░ ░ ░   ░ ░ ░ ░ ░ ░ ░ ░  pass 1, block 0 only
       Who is Newton ?     Isaac Newton was an English ░ ░ ░  …      pass 2

   An autoregressive model reads all its weights once a token; here one reading of the weights can commit many tokens.
   This has a cost: K and V of every token depend on all other tokens, so every cache is an approximation. Fast-dLLM's
   dual cache (Wu et al. 2025) runs each further pass on the block's tokens only, replaces their K and V in place, and
   keeps everything else's as the refresh at the block's start left it:

       cache     a pass after the block's first computes          K and V of the rest
       none      prompt, blocks before, block, blocks after       computed every time
       prefix    block and blocks after                           prompt and earlier blocks: from the refresh
       dual      block                                            all others: from the refresh

   A refresh computes as many rows as the canvas has. refresh_every N keeps only every N-th refresh; the other blocks
   start with a block step. refresh NEAR starts a block with far fewer rows:

       runs, all layers      positions whose token has changed since they last ran (the last commits), the block, and
                             the masks up to refresh_near positions behind it
       keeps K and V         everything else: a prompt runs once, a finished token once after its commit
       refresh_window W      masks further behind the block than W positions are neither computed nor attended to

   Where logits are shifted (Dream: row i predicts position i + 1) a block's first position is predicted by the row
   before the block: while it is masked, that row runs, too.

   With refresh_rows R each such pass of the dual cache also computes R rows outside the block and replaces their K and
   V. It takes first the rows whose token has changed since they were computed (the last tokens committed to a finished
   block were computed as masks), then the rows computed longest ago; among equals, those nearest to the block. These
   rows are not part of the block. They run all layers whatever TokenSkip decides, and nothing is predicted for them.
   They count as refreshed_rows, not as active rows or token-layers.

   Models with attention by blocks (SDAR, Fast-dLLM v2) are the exception. Positions are counted from 0 in blocks; a
   token attends to its own block, both ways, and to the blocks before it, so that no K and V of a finished block depend
   on what comes after. Their cache is BLOCK, and it is exact:

       prompt's whole blocks      run once, in pieces of up to prompt_rows rows; K and V are final
       a block, until no mask     steps of its rows, against the final K and V of all before it; the prompt's rest is
       is left in it              the head of the first block
       a finished block           one storing pass over all its rows makes its K and V final; none where nothing follows

   The canvas is rounded up to whole blocks, the result cut to gen_length. A session's next generation goes on from the
   final K and V of the tokens that its prompt has in common with what the session holds.

WHAT TOKENSKIP ADDS
   A block step computes a row for every token of the block, and most of these rows change nothing. skip.rule says which
   of them are left out.

   ROWS leaves rows out of the pass altogether. After a block's first pass, a pass consists of
       - the tokens committed by the pass before: what was computed for them was computed from masks;
       - the masked tokens that may be committed now: by the schedule (TSK_TRANSFER_SCHEDULE) as many as it commits plus
         skip.rows_margin, the most confident ones of their last prediction; by any other transfer rule all of them;
       - on either side of each token just committed, the skip.rows_ahead nearest masked ones.
   Only masked tokens that ran can be committed. The others keep their K and V and their last prediction.

       pass t      ▒ ■ □ · · □ · ·      ■ just committed, □ may be committed now: these rows run, through all layers
       pass t+1    · ▒ ■ · □ · □ ·      · masked, ▒ committed before: left out

   The schedule commits as many tokens in each pass as it would without the rule. No mask is ever left over: at least
   one of the masked tokens runs. The result equals the plain dual cache bit for bit if skip.full_every is 1.

   STATES keeps all rows and leaves out layers. TokenSkip runs layers 0 .. K-1 for all tokens of the block, compares
   each token's states h_1 .. h_{K-1} with those it had, and lets the ones that hardly moved skip layers K and up:

       layer L-1   ·  ■  ·  ·  ■  ■  ·  ·      ■ active: computed, its K and V rows replaced
         …         ·  ■  ·  ·  ■  ■  ·  ·      · stable: skipped, its K and V rows stay as last computed
       layer K     ·  ■  ·  ·  ■  ■  ·  ·
       ---------  min cosine >= skip.outlier, mean cosine > skip.threshold, same id as when last computed
       layer K-1   ■  ■  ■  ■  ■  ■  ■  ■
         …         ■  ■  ■  ■  ■  ■  ■  ■
       layer 0     ■  ■  ■  ■  ■  ■  ■  ■

   Two things keep its output right. A masked token always runs (unless skip.masked): it is still waiting for a
   prediction from the upper layers. And a stable token's output is its last computed one (skip.policy REUSE), not its
   half-way state (EXIT, here for study: where masked tokens are skipped too, it ruins generations). Every token is
   active, and the result equals the plain dual cache bit for bit, if skip.threshold is 1, if K >= n_layers, or if there
   is no earlier state to compare with.
   skip.refresh does the same inside the whole-canvas pass at a block's start, from the second one on, under either
   rule.
   With cache BLOCK both rules work within the steps of a block. A storing pass runs every row, so that what was left
   out leaves no trace beyond its block. TokenSkip is off there by default: its accuracy has not been measured.
   TokenSkip saves time on CPUs, in refreshes and in large batches. A GPU with one sequence spends its time reading
   weights; leaving out some of 32 tokens does not shorten that. Measure with `tokenskip bench`.

THREADS AND OWNERSHIP
   A tsk_model is immutable: any number of threads may use it. A tsk_session belongs to one thread at a time. What a
   function gives out through `**out` you free with the matching _free; sessions and batches before their model.
   Results are the same for any number of threads, and whether traced or not.
   After fork() a child may use and free what the parent had made with a CPU model, on one thread, provided that no
   other thread was inside the library at the fork. CUDA does not outlive a fork: with a model on a GPU a child may only
   exec or _exit, and loads its own model if it wants one.
   Callbacks run inside the library: they may copy, cancel and submit where their description says so, and may not begin
   another pass of the same session or batch, nor free it.

WHAT STAYS
   The API changes only with the minor version (0.2, 0.3): CHANGELOG.md says what changes for a program, and what to do.
   What stands under "Not for embedding", at the end of the API, serves the command, tests and benchmarks; it may change
   with any version.

SECURITY
   Model folders may come from strangers: every length, offset, shape and id in them is checked before use. Two things
   are yours to decide. Mapped files: someone who cuts a weight file while it is in use ends your process with SIGBUS;
   set tsk_host.no_map to read files instead. Special tokens in user text: see tsk_tokenizer_encode.

CONTENTS OF THE IMPLEMENTATION (search for the marker)
   >>error  >>memory  >>platform  >>pool  >>hash  >>number  >>quantise  >>json  >>safetensors  >>unicode  >>bpe
   >>template  >>pattern  >>formats  >>family  >>config  >>random  >>weights  >>skip  >>schedule  >>backend
   >>storage  >>cpu_vectors  >>cpu_integer  >>cpu  >>cpu_weights  >>cpu_backend  >>cuda_driver  >>cuda_shared
   >>cuda_backend  >>cuda_compile  >>cuda_plan  >>cuda_weights  >>cuda_stream  >>cuda  >>model  >>export  >>trace
   >>forward  >>request  >>session  >>batch  >>public
   Each section uses only those above it, and can be read alone.
*/

/* Strict modes (-std=c99) hide POSIX: ask for it, which works only if no system header came before. In GNU modes POSIX
   is declared already, and defining this would hide other declarations from the including file. */
#if defined(TOKENSKIP_IMPLEMENTATION) && defined(__STRICT_ANSI__) && !defined(_POSIX_C_SOURCE) && !defined(_GNU_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif
#if defined(TOKENSKIP_IMPLEMENTATION) && defined(__STRICT_ANSI__) && !defined(_FILE_OFFSET_BITS)
#define _FILE_OFFSET_BITS 64
#endif

#ifndef TOKENSKIP_H
#define TOKENSKIP_H

#include <stddef.h>
#include <stdint.h>

#define TOKENSKIP_VERSION_MAJOR 0
#define TOKENSKIP_VERSION_MINOR 2
#define TOKENSKIP_VERSION_PATCH 0
#define TOKENSKIP_VERSION_STRING "0.2.0-dev"

#ifndef TOKENSKIP_API
#if defined(TOKENSKIP_STATIC) && defined(__GNUC__)
#define TOKENSKIP_API static __attribute__((unused))
#elif defined(TOKENSKIP_STATIC)
#define TOKENSKIP_API static
#else
#define TOKENSKIP_API extern
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Status and errors ------------------------------------------------------------------------------------------ */

/* The initialiser of a struct that begins as all zeroes, in the form that no compiler of either language warns of. */
#ifdef __cplusplus
#define TSK_ZERO {}
#else
#define TSK_ZERO {0}
#endif

/* One list makes the enumeration and its strings, so that they cannot drift apart. */
#define TSK_STATUS_LIST(X) \
    X(TSK_OK, "ok") \
    X(TSK_ERROR_ARGUMENT, "invalid argument") \
    X(TSK_ERROR_MEMORY, "out of memory") \
    X(TSK_ERROR_IO, "input/output error") \
    X(TSK_ERROR_JSON, "malformed JSON") \
    X(TSK_ERROR_SAFETENSORS, "malformed safetensors file") \
    X(TSK_ERROR_CONFIG, "invalid model configuration") \
    X(TSK_ERROR_TENSOR, "tensor missing or not as the configuration says") \
    X(TSK_ERROR_TOKENIZER, "invalid tokenizer") \
    X(TSK_ERROR_TEMPLATE, "unknown chat template") \
    X(TSK_ERROR_UNSUPPORTED, "not supported") \
    X(TSK_ERROR_DEVICE, "device error") \
    X(TSK_ERROR_COMPILE, "kernel compilation failed") \
    X(TSK_ERROR_CANCELLED, "cancelled") \
    X(TSK_ERROR_NUMERIC, "logits that are no numbers") \
    X(TSK_ERROR_FULL, "the queue is full")

typedef enum tsk_status {
#define TSK__STATUS_ENUM(name, text) name,
    TSK_STATUS_LIST(TSK__STATUS_ENUM)
#undef TSK__STATUS_ENUM
    TSK_STATUS_COUNT
} tsk_status;

/* What went wrong, with which input, and where. Plain data: it owns nothing, needs no initialiser and can be copied.
   Functions that can fail take a pointer to one as their last parameter, or NULL (not tsk_text_append,
   tsk_tokens_append and tsk_decoder_flush, which fail only for want of memory or for a NULL). A call that fails writes
   all of it; one that succeeds leaves it alone; none reads it. */
typedef struct tsk_error {
    uint64_t offset;    /* byte offset in `file` or in the text, TSK_NO_OFFSET when there is none */
    tsk_status status;
    char message[512];  /* one line, no newline: what was wrong with which input, what was expected, what was found */
    char file[256];     /* the file it is about, "" when none (a longer path keeps its end) */
} tsk_error;

#define TSK_NO_OFFSET UINT64_MAX

/* NULL, in every function below: where an object, an input or a place for a result is wanted, TSK_ERROR_ARGUMENT with
   the parameter's name. Functions that return a value then return the one that means nothing (0, -1 for an id, NULL, ""
   for a name); those that end an object do nothing. What may be NULL says so. */

/* Of numbers in options. No other number leaves a choice to the library; 0 is always meant. */
#define TSK_AUTO (-1)   /* the library chooses */
#define TSK_NONE (-2)   /* none at all */

/* The fixed English text of a status; "unknown status" outside the enumeration. Never NULL. */
TOKENSKIP_API const char *tsk_status_string(tsk_status status);

/* The version of the implementation that the program runs, as the macros above have that of this header:
   major * 10000 + minor * 100 + patch, and the text. */
TOKENSKIP_API int32_t tsk_version(void);
TOKENSKIP_API const char *tsk_version_string(void);

/* ---- Host services: memory, files ------------------------------------------------------------------------------- */

/* All three or none. `old_size` lets an arena implement reallocate. A NULL return is reported as TSK_ERROR_MEMORY.
   The library calls these functions on the threads that call it, never on its own worker threads. If several threads
   use the library at once, the functions must be thread-safe. */
typedef struct tsk_allocator {
    void *(*allocate)(void *user, size_t size);
    void *(*reallocate)(void *user, void *block, size_t old_size, size_t new_size);
    void (*release)(void *user, void *block);
    void *user;
} tsk_allocator;

/* File access, so that a host can load from its own archive. `open` gives a handle and the size in bytes; `read` fills
   exactly `size` bytes from `offset` or fails; `map`, which may be NULL, returns the whole file's address, valid until
   `close`, or NULL when it cannot map. Return TSK_OK, or TSK_ERROR_IO with `reason` filled with why (NUL-terminated,
   at most reason_size bytes). `read` may be called from several threads at once. */
typedef struct tsk_file_callbacks {
    tsk_status (*open)(void *user, const char *path, void **file, uint64_t *size, char *reason, size_t reason_size);
    tsk_status (*read)(void *user, void *file, uint64_t offset, void *buffer, size_t size, char *reason,
                       size_t reason_size);
    const void *(*map)(void *user, void *file);
    void (*close)(void *user, void *file);
    void *user;
} tsk_file_callbacks;

/* Every loading function takes one; NULL means all defaults. The structs it points to must outlive what was loaded. */
typedef struct tsk_host {
    const tsk_allocator *allocator;    /* NULL: TOKENSKIP_MALLOC, TOKENSKIP_REALLOC, TOKENSKIP_FREE */
    const tsk_file_callbacks *files;   /* NULL: the operating system's files */
    int no_map;                        /* 1: files are read, never mapped, so a file cut while in use cannot raise
                                          SIGBUS */
} tsk_host;

/* A growable byte string. Start from all zeroes (then it uses the default allocator); free with tsk_text_free. */
typedef struct tsk_text {
    char *data;         /* NUL-terminated whenever not NULL; the NUL is not counted */
    size_t length;
    size_t capacity;
    const tsk_allocator *allocator;
} tsk_text;

/* A growable list of token ids, used like tsk_text. */
typedef struct tsk_tokens {
    int32_t *ids;       /* [count] */
    int32_t count;      /* (an int32_t counts tokens everywhere; a list that would grow beyond it is out of memory) */
    int32_t capacity;
    const tsk_allocator *allocator;
} tsk_tokens;

TOKENSKIP_API tsk_status tsk_text_append(tsk_text *text, const char *bytes, size_t size);
TOKENSKIP_API void tsk_text_free(tsk_text *text);
TOKENSKIP_API tsk_status tsk_tokens_append(tsk_tokens *tokens, const int32_t *ids, int32_t count);
TOKENSKIP_API void tsk_tokens_free(tsk_tokens *tokens);

/* The whole of a file appended to `out`, through the host's file callbacks. Fails beyond max_size bytes. */
TOKENSKIP_API tsk_status tsk_read_file(const char *path, size_t max_size, const tsk_host *host, tsk_text *out,
                                       tsk_error *error);

/* ---- Tokenizer and chat template -------------------------------------------------------------------------------- */

typedef struct tsk_tokenizer tsk_tokenizer;

/* Loads DIR/tokenizer.json, or vocab.json and merges.txt where there is none, and, where present, tokenizer_config.json
   and chat_template.jinja. Tokens that tokenizer_config.json declares (added_tokens_decoder) or names (eos_token and
   its like) are added tokens beside those of tokenizer.json, with the ids that the transformers library gives them; the
   model need not have rows for them. Immutable afterwards; threads share it. */
TOKENSKIP_API tsk_status tsk_tokenizer_load(const char *dir, const tsk_host *host, tsk_tokenizer **out,
                                            tsk_error *error);
TOKENSKIP_API void tsk_tokenizer_free(tsk_tokenizer *tokenizer);
/* One more than the largest id. */
TOKENSKIP_API int32_t tsk_tokenizer_size(const tsk_tokenizer *tokenizer);
/* The id of an exact token string (special or not, as in the vocabulary), or -1. */
TOKENSKIP_API int32_t tsk_tokenizer_id(const tsk_tokenizer *tokenizer, const char *token);
TOKENSKIP_API int tsk_tokenizer_is_special(const tsk_tokenizer *tokenizer, int32_t id);
/* The token string as the vocabulary holds it (byte-level alphabet), or NULL for an id without one. */
TOKENSKIP_API const char *tsk_tokenizer_token(const tsk_tokenizer *tokenizer, int32_t id, size_t *length);

/* Appends the ids of UTF-8 `text`. No token is added at either end. special_in_text 1: added tokens written out in the
   text ("<|eot_id|>") become their ids; 0: such strings are ordinary text. Security: pass 0 for text that you do not
   trust; otherwise its author can end their turn and start one of another role. Invalid UTF-8 is an error that says
   where. */
TOKENSKIP_API tsk_status tsk_tokenizer_encode(const tsk_tokenizer *tokenizer, const char *text, size_t size,
                                              int special_in_text, tsk_tokens *out, tsk_error *error);
/* Appends the text of `ids`; ids without a token give nothing; bytes that are not UTF-8 become U+FFFD.
   clean_up_tokenization_spaces in tokenizer_config.json is ignored. Where it is true, the transformers library removes
   the spaces before . , ? ! and some apostrophes ("a , b" becomes "a, b"), which damages code and quotations. In
   LLaDA's models it is false. */
TOKENSKIP_API tsk_status tsk_tokenizer_decode(const tsk_tokenizer *tokenizer, const int32_t *ids, int32_t count,
                                              int skip_special, tsk_text *out, tsk_error *error);

/* Decoding a token at a time: text comes out in whole UTF-8 characters only. Start from all zeroes. The pieces, flush
   included, joined, equal tsk_tokenizer_decode of all the ids. */
typedef struct tsk_decoder {
    unsigned char pending[4];
    int n_pending;
    int skip_special;
} tsk_decoder;

TOKENSKIP_API tsk_status tsk_decoder_push(const tsk_tokenizer *tokenizer, tsk_decoder *decoder, int32_t id,
                                          tsk_text *out, tsk_error *error);
TOKENSKIP_API tsk_status tsk_decoder_flush(tsk_decoder *decoder, tsk_text *out);

typedef struct tsk_message {
    const char *role;     /* "system", "user" or "assistant" */
    const char *content;  /* UTF-8, NUL-terminated */
} tsk_message;

/* Appends the conversation rendered by the model's chat template, the assistant's header at its end included. Known
   templates (LLaDA, LLaDA 2, ChatML as Qwen and Dream have it, Llama 3) are rendered exactly; any other is
   TSK_ERROR_TEMPLATE, and a role that the template does not provide for TSK_ERROR_ARGUMENT. */
TOKENSKIP_API tsk_status tsk_chat_render(const tsk_tokenizer *tokenizer, const tsk_message *messages, size_t count,
                                         tsk_text *out, tsk_error *error);
/* The same as token ids, ready to generate from. special_in_text governs the messages' own text only (see
   tsk_tokenizer_encode): pass 0 unless you trust it. */
TOKENSKIP_API tsk_status tsk_chat_encode(const tsk_tokenizer *tokenizer, const tsk_message *messages, size_t count,
                                         int special_in_text, tsk_tokens *out, tsk_error *error);
/*                                  default         meaning */
typedef struct tsk_chat_options {
    int special_in_text;         /* 0               as above */
    int thinking;                /* TSK_AUTO        the template's switch for thoughts (Qwen3's enable_thinking): 1 on,
                                                    0 off; auto: as the template has it. TSK_ERROR_ARGUMENT for a
                                                    template without such a switch */
} tsk_chat_options;

TOKENSKIP_API tsk_chat_options tsk_chat_options_default(void);
/* The two above with options (NULL: all defaults); rendering reads `thinking` only. */
TOKENSKIP_API tsk_status tsk_chat_render_with(const tsk_tokenizer *tokenizer, const tsk_message *messages, size_t count,
                                              const tsk_chat_options *options, tsk_text *out, tsk_error *error);
TOKENSKIP_API tsk_status tsk_chat_encode_with(const tsk_tokenizer *tokenizer, const tsk_message *messages, size_t count,
                                              const tsk_chat_options *options, tsk_tokens *out, tsk_error *error);
/* The token with which the template ends a turn (LLaDA: <|eot_id|>), or -1. */
TOKENSKIP_API int32_t tsk_chat_end_of_turn(const tsk_tokenizer *tokenizer);

/* ---- Model ------------------------------------------------------------------------------------------------------ */

typedef enum tsk_dtype {
    TSK_DTYPE_AUTO,
    TSK_DTYPE_F32, TSK_DTYPE_F16, TSK_DTYPE_BF16, /* the three that plain weights may have */
    TSK_DTYPE_F64, TSK_DTYPE_F8_E4M3, TSK_DTYPE_F8_E5M2, TSK_DTYPE_I64, TSK_DTYPE_I32, TSK_DTYPE_I16, TSK_DTYPE_I8,
    TSK_DTYPE_U64, TSK_DTYPE_U32, TSK_DTYPE_U16, TSK_DTYPE_U8, TSK_DTYPE_BOOL,
    TSK_DTYPE_COUNT
} tsk_dtype;

TOKENSKIP_API const char *tsk_dtype_name(tsk_dtype dtype);  /* as safetensors writes it: "BF16"; "auto" for AUTO */
TOKENSKIP_API size_t tsk_dtype_size(tsk_dtype dtype);       /* bytes an element; 0 for AUTO */

#define TSK_MAX_EOS_TOKENS 16

typedef enum tsk_family {
    TSK_FAMILY_LLADA,              /* LLaDA-8B, LLaDA-1.5, and models of other sizes built as they are */
    TSK_FAMILY_SDAR,               /* SDAR and TraDo: Qwen3's network (q and k normed by head), attention by blocks */
    TSK_FAMILY_FAST_DLLM_V2,       /* Fast-dLLM v2: Qwen2.5's (q, k and v have biases), attention by blocks, logits
                                      shifted: row i predicts position i + 1 */
    TSK_FAMILY_DREAM               /* Dream, DiffuCoder, Dream-Coder: Qwen2.5's, all tokens see all, logits shifted */
} tsk_family;

typedef struct tsk_model_config {
    int32_t d_model, n_layers, n_heads, n_kv_heads, mlp_hidden_size;
    int32_t head_dim;              /* LLaDA: d_model / n_heads; others have it beside these */
    int32_t vocab_size;            /* as config.json has it */
    int32_t embedding_size;        /* rows of the embedding and of the head, >= vocab_size; ids are below it */
    int32_t max_sequence_length;
    int32_t mask_token_id, eos_token_id, pad_token_id;   /* pad: -1 when the config has none */
    int32_t n_eos_token_ids;       /* ids that end a generation: those of config.json, then those that only
                                      generation_config.json has; the first is eos_token_id. 0: eos_token_id alone */
    int32_t eos_token_ids[TSK_MAX_EOS_TOKENS];
    float rope_theta, rms_norm_eps;
    int weight_tying;              /* 1: the head is the embedding table */
    int qkv_bias;                  /* 1: q_proj, k_proj, v_proj have biases */
    int linear_bias;               /* 1: every other linear map (not the norms) has one too */
    tsk_family family;             /* which network the sizes are of */
    int32_t block_length;          /* families with attention by blocks: positions of a block, counted from 0; else 0 */
} tsk_model_config;

/* A model folder, opened and checked without reading any weights: config.json, the end-of-sequence ids of
   generation_config.json where there is one, the safetensors headers, every tensor's presence, type and shape. */
typedef struct tsk_folder tsk_folder;

struct tsk_tensor_info;

typedef struct tsk_folder_tensor {
    const struct tsk_tensor_info *info; /* see the end of this file */
    const char *shard;             /* the file's name inside the folder */
} tsk_folder_tensor;

TOKENSKIP_API tsk_status tsk_folder_open(const char *dir, const tsk_host *host, tsk_folder **out, tsk_error *error);
TOKENSKIP_API void tsk_folder_free(tsk_folder *folder);
TOKENSKIP_API const tsk_model_config *tsk_folder_config(const tsk_folder *folder);
/* How the folder is quantised: "compressed-tensors", "gptq", "awq" or "fp8"; NULL: it is not. */
TOKENSKIP_API const char *tsk_folder_quant_method(const tsk_folder *folder);
/* The configuration alone: reads config.json and generation_config.json and looks at no other file. */
TOKENSKIP_API tsk_status tsk_config_load(const char *dir, const tsk_host *host, tsk_model_config *out,
                                         tsk_error *error);
/* "LLaDA", "SDAR", "Fast-dLLM v2", "Dream"; "" outside the enumeration. */
TOKENSKIP_API const char *tsk_family_name(tsk_family family);
/* 1: the network attends by blocks of block_length, so that cache BLOCK is its only one. */
TOKENSKIP_API int tsk_config_by_blocks(const tsk_model_config *config);
/* 1: one of the configuration's end-of-sequence ids. */
TOKENSKIP_API int tsk_config_is_eos(const tsk_model_config *config, int32_t id);
TOKENSKIP_API size_t tsk_folder_count(const tsk_folder *folder);
TOKENSKIP_API const tsk_folder_tensor *tsk_folder_get(const tsk_folder *folder,
                                                      size_t index); /* in the model's order */

/* What matrices of weights are held as: AS_STORED as the folder has them; else as integers with a scale for every 128
   columns of an output (or 64, or 32, where 128 does not divide them; where 32 does not, a matrix stays as it is). Q8:
   8 bits. Q4: 4 bits, and 8 for the second map of every feed-forward network and for the head, which are the most
   sensitive. The embedding stays as it is, unless it is the head, too: then both are one table of 8 bits. */
typedef enum tsk_weights { TSK_WEIGHTS_AS_STORED, TSK_WEIGHTS_Q8, TSK_WEIGHTS_Q4 } tsk_weights;

/*                             default        meaning */
typedef struct tsk_quantize_options {
    tsk_host host;          /* {0}            memory, and files that are read */
    tsk_weights weights;    /* Q4             Q4 or Q8 */
    uint64_t shard_size;    /* 5000000000     bytes of tensors that a file of weights may hold; it holds one at least */
    int n_threads;          /* TSK_AUTO       the calling one included; auto: one a processor */
    void (*progress)(void *user, uint64_t done_bytes, uint64_t total_bytes); /* NULL; of the weights in `dir` */
    int (*cancel)(void *user);           /* NULL  asked after each weight; nonzero ends it with TSK_ERROR_CANCELLED */
    void *user;             /* NULL           handed to the two above */
} tsk_quantize_options;

TOKENSKIP_API tsk_quantize_options tsk_quantize_options_default(void);
/* Writes the model of folder `dir`, whose weights are not quantised, into folder `out`, which must be there and hold
   none of the files that this writes: weights as tsk_model_load would make them (compressed-tensors, pack-quantized:
   other programs read it, and loading maps it), the tokenizer's files, config.json with "quantization_config". Takes
   memory for one matrix. Files appear whole, config.json last; after a failure those that were written are removed
   again. */
TOKENSKIP_API tsk_status tsk_quantize(const char *dir, const char *out, const tsk_quantize_options *options,
                                      tsk_error *error);

typedef enum tsk_device { TSK_DEVICE_AUTO, TSK_DEVICE_CPU, TSK_DEVICE_CUDA } tsk_device;

/* A device that a model can be loaded to, or the reason why not. */
typedef struct tsk_device_info {
    tsk_device device;             /* CPU or CUDA */
    int32_t index;                 /* what device_index has to be */
    char name[128];                /* "CPU, AVX-512, 8 processors", "NVIDIA H200"; "" where there is no device to
                                      name */
    uint64_t memory_total;         /* bytes, and how many are free now; 0: not known */
    uint64_t memory_free;
    char unusable[256];            /* why it cannot be used, "" where it can */
} tsk_device_info;

/* Lists the CPU, then the CUDA devices in the driver's order; where there are none, one entry for CUDA says why. Writes
   the first `room` of them to devices [room] (NULL: none), and returns how many there are. Asks the driver, which takes
   up to a second a GPU. */
TOKENSKIP_API int32_t tsk_devices(tsk_device_info *devices, int32_t room);

/*                             default        meaning */
typedef struct tsk_model_options {
    tsk_host host;          /* {0}            memory and files */
    tsk_device device;      /* AUTO           the first CUDA device where there is one, else the CPU */
    int device_index;       /* 0              which CUDA device */
    tsk_dtype dtype;        /* AUTO           activations and cache. CPU: F32; with integer weights AUTO also
                                              quantises the inputs of products, F32 does not, and multiplies by the
                                              weights' values. CUDA: BF16 (auto) or F32 */
    int n_threads;          /* TSK_AUTO       CPU threads, the calling one included; 1: no workers; auto: one a
                                              processor */
    const char *kernel_cache_dir; /* NULL     where compiled CUDA kernels are kept; NULL: $XDG_CACHE_HOME/tokenskip
                                              or ~/.cache/tokenskip; "": nowhere */
    tsk_weights weights;    /* AS_STORED      what matrices are held as. Q8 and Q4 quantise them while loading: on the
                                              CPU, and not those of a folder that is quantised already */
    int no_tokenizer;       /* 0              1: do not load a tokenizer. 0: load it if the folder has one */
    void (*progress)(void *user, uint64_t done_bytes, uint64_t total_bytes); /* NULL; while loading */
    int (*cancel)(void *user);           /* NULL  asked while loading; nonzero ends it with TSK_ERROR_CANCELLED */
    void (*log)(void *user, const char *line); /* NULL  remarks, one line each, and every line of the log of a compiler
                                            that fails, before the call does; the library itself never prints */
    void *user;             /* NULL           handed to the three above */
} tsk_model_options;

typedef struct tsk_model tsk_model;

TOKENSKIP_API tsk_model_options tsk_model_options_default(void);
/* `options` NULL: all defaults. Immutable once loaded; any number of threads and sessions share it. Free it after its
   sessions. */
TOKENSKIP_API tsk_status tsk_model_load(const char *dir, const tsk_model_options *options, tsk_model **out,
                                        tsk_error *error);
TOKENSKIP_API void tsk_model_free(tsk_model *model);
TOKENSKIP_API const tsk_model_config *tsk_model_get_config(const tsk_model *model);
TOKENSKIP_API const tsk_tokenizer *tsk_model_tokenizer(const tsk_model *model);   /* NULL when it has none */
TOKENSKIP_API const char *tsk_model_device_name(const tsk_model *model);          /* "CPU, AVX-512, 2 threads", … */
TOKENSKIP_API tsk_dtype tsk_model_dtype(const tsk_model *model); /* of activations and cache: F32 or BF16 */
/* Why device AUTO did not use CUDA ("" when it did or was not asked to). */
TOKENSKIP_API const char *tsk_model_device_note(const tsk_model *model);

/* ---- Generation ------------------------------------------------------------------------------------------------- */

/* AUTO: BLOCK for the families with attention by blocks, which have no other; DUAL for all others, which do not have
   BLOCK. */
typedef enum tsk_cache {
    TSK_CACHE_AUTO = TSK_AUTO, TSK_CACHE_DUAL, TSK_CACHE_PREFIX, TSK_CACHE_NONE, TSK_CACHE_BLOCK
} tsk_cache;
/* The rule that says how many predictions a step commits: see tsk_transfer_rule. */
typedef enum tsk_transfer {
    TSK_TRANSFER_SCHEDULE, TSK_TRANSFER_THRESHOLD, TSK_TRANSFER_FACTOR, TSK_TRANSFER_FRECHET, TSK_TRANSFER_ENTROPY,
    TSK_TRANSFER_LEAP
} tsk_transfer;
typedef enum tsk_remasking { TSK_REMASKING_LOW_CONFIDENCE, TSK_REMASKING_RANDOM } tsk_remasking;
/* AUTO: STATES where layer_k is above 0, OFF where it is 0; where it is TSK_AUTO too, ROWS with cache DUAL and family
   LLADA, else OFF. */
typedef enum tsk_skip_rule {
    TSK_SKIP_RULE_AUTO = TSK_AUTO, TSK_SKIP_RULE_OFF, TSK_SKIP_RULE_STATES, TSK_SKIP_RULE_ROWS
} tsk_skip_rule;
typedef enum tsk_skip_policy { TSK_SKIP_REUSE, TSK_SKIP_EXIT } tsk_skip_policy;
typedef enum tsk_skip_reference { TSK_SKIP_LAST_STEP, TSK_SKIP_LAST_COMPUTED } tsk_skip_reference;
/* AUTO: FULL. */
typedef enum tsk_refresh { TSK_REFRESH_AUTO = TSK_AUTO, TSK_REFRESH_FULL, TSK_REFRESH_NEAR } tsk_refresh;
typedef enum tsk_finish { TSK_FINISH_NONE, TSK_FINISH_LENGTH, TSK_FINISH_EOS, TSK_FINISH_CANCELLED } tsk_finish;

struct tsk_step;
struct tsk_selection;

/* TokenSkip. Messages write a field of it as skip_layer_k and so on, the name that it has in the command and its
   files. */
/*                                  default         meaning */
typedef struct tsk_skip_options {
    tsk_skip_rule rule;          /* AUTO            what a block step leaves out: nothing (OFF), upper layers of tokens
                                                    whose STATES hardly moved, or ROWS that cannot change what it
                                                    commits */
    /* ROWS: */
    int32_t rows_margin;         /* 4               by the schedule, so many masked tokens run beyond those that the
                                                    step commits */
    int32_t rows_ahead;          /* 0               on either side of a token just committed so many masked ones run */
    /* STATES, and refreshes under skip.refresh: */
    int32_t layer_k;             /* TSK_AUTO        K: layers that every token runs; 0: no TokenSkip by states; auto:
                                                    max(2, n_layers/4), with rule OFF 0 */
    float threshold;             /* 0.95            stable: mean cosine above this … */
    float outlier;               /* 0.7             … and no layer's below this */
    tsk_skip_policy policy;      /* REUSE           a stable token's output: its last computed one, or its layer-K
                                                    state */
    int masked;                  /* 0               1: masked tokens may be stable too */
    tsk_skip_reference reference; /* LAST_STEP      the states a token is compared with */
    int32_t max_age;             /* 0               n > 0: after n skipped steps in a row a token runs */
    int32_t full_every;          /* 0               n > 0: every n-th block step runs everything */
    int warm_start;              /* 0               1: the first block step after a refresh compares with it */
    int refresh;                 /* 0               1: TokenSkip in block-start forwards too */
} tsk_skip_options;

/*                                  default         meaning */
typedef struct tsk_generate_options {
    int32_t gen_length;          /* 128             positions to fill after the prompt */
    int32_t block_length;        /* TSK_AUTO        divides gen_length, with cache BLOCK need not; auto: the model's,
                                                    else 32 */
    int32_t small_block;         /* TSK_AUTO        with cache BLOCK: so many positions of a block are filled before the
                                                    next of them; divides block_length. 0: all together; auto: 8 for
                                                    FAST_DLLM_V2 where that divides it, else 0 */
    int32_t steps;               /* TSK_AUTO        over all blocks; a multiple of their number (with cache BLOCK it is
                                                    rounded down to one). Auto: gen_length; with cache BLOCK it stays
                                                    auto: a block's length for every block */
    tsk_cache cache;             /* AUTO            what a step recomputes: the block (DUAL, BLOCK); block to end
                                                    (PREFIX); all (NONE) */
    int32_t prompt_rows;         /* TSK_AUTO        with cache BLOCK: at most so many rows of the prompt in one pass, in
                                                    whole blocks, one at least; auto: 2048 */
    tsk_transfer transfer;       /* THRESHOLD       the rule that says how many predictions a step commits */
    float threshold;             /* 0.9             THRESHOLD: commit every candidate at least this confident; LEAP:
                                                    the anchors' confidence */
    float factor;                /* 1.0             FACTOR: Fast-dLLM's dynamic rule */
    float frechet;               /* 0.25            FRECHET: Fast-dLLM++'s rule, its delta; from 0 to 1 */
    float entropy_bound;         /* 0.1             ENTROPY: EB-Sampler's rule, its gamma in nats; 0 or more */
    float local_leap;            /* 0.75            LEAP: LocalLeap's lower threshold, which holds beside an anchor */
    int32_t local_radius;        /* 4               LEAP: up to so many positions from an anchor; 0 or more */
    float temperature;           /* 0               > 0: Gumbel-max sampling */
    tsk_remasking remasking;     /* LOW_CONFIDENCE  what confidence means: the prediction's probability; RANDOM: a
                                                    draw */
    uint64_t seed;               /* 0               of every random draw */
    int eos_stop;                /* 1               a finished block with an end-of-sequence token ends the
                                                    generation */
    int32_t end_of_turn_id;      /* TSK_AUTO        a further token that ends it; auto: the chat template's; TSK_NONE:
                                                    none */
    tsk_skip_options skip;       /*                 TokenSkip: above */
    tsk_refresh refresh;         /* AUTO            a block starts with a pass over the canvas (FULL), or over what has
                                                    changed since the last pass, the block and the masks behind it
                                                    (NEAR) */
    int32_t refresh_near;        /* 16              NEAR: how many positions behind the block */
    int32_t refresh_window;      /* 0               W: passes see no mask further behind the block than W positions; 0:
                                                    they see all */
    int32_t refresh_rows;        /* 0               R: with cache DUAL every block step computes R further rows of the
                                                    canvas, the stalest first */
    int32_t refresh_every;       /* TSK_AUTO        n: the first block to start, and only every n-th from there on,
                                                    starts with a pass over all that is visible; the others with one
                                                    that is NEAR, or with a block step. 0: only the first; auto: 0 with
                                                    NEAR, else 1 */
    /* After every forward pass. Nonzero ends the generation (TSK_FINISH_CANCELLED; what is committed stays). */
    int (*on_step)(void *user, const struct tsk_step *step);              /* NULL */
    /* A decoding rule of your own, in place of `transfer`: see tsk_selection. */
    void (*on_select)(void *user, const struct tsk_selection *selection); /* NULL */
    int (*cancel)(void *user);   /* NULL            asked before every forward pass; nonzero ends the generation */
    void *user;                  /* NULL            handed to the callbacks */
} tsk_generate_options;

/* What one forward pass did. Pointers are valid during the callback. */
typedef struct tsk_step {
    int32_t pass;                /* number of this forward pass in the generation, from 0 */
    int32_t block;               /* number of the block, from 0 (an infilling block comes first) */
    int32_t block_step;          /* 0: the forward at the block's start */
    int is_refresh;              /* 1: a pass over the canvas, or one that refresh NEAR makes */
    int is_prompt, is_storing;   /* cache BLOCK: 1: a piece of the prompt, before the first block; the last pass of a
                                    block, which makes its K and V final. All three 0: a block step */
    int32_t next_committed;      /* where logits are shifted: the first position of the next block (of a piece of the
                                    prompt: of this block), if this pass has filled it; else -1 */
    int32_t n_positions;         /* positions of the block */
    const int32_t *positions;    /* [n_positions] in the canvas */
    const int32_t *predictions;  /* [n_positions] the id each masked position would get; its token where not masked */
    const float *confidences;    /* [n_positions] of the predictions; 1 where it was not masked */
    const float *entropies;      /* [n_positions] of the predictions' distributions, in nats; 0 where it was not
                                    masked */
    const uint8_t *committed;    /* [n_positions] 1: committed by this pass */
    const uint8_t *active;       /* [n_positions] 0: skipped the upper layers (STATES) or all (ROWS) */
    int32_t n_active, n_stable_masked;
    int32_t n_rows;              /* that ran all layers, of the block or not */
    int32_t n_cosines;           /* K - 1 where this pass compared states, else 0 */
    const float *cosines;        /* [n_positions, n_cosines] of h_1 .. h_{K-1} with the reference, or NULL */
    int32_t masks_left;          /* in the block */
    int32_t canvas_length, prompt_length; /* cache BLOCK: the canvas is whole blocks, more than is asked for */
    const int32_t *canvas;       /* [canvas_length] after the commit; mask_token_id where still masked */
    int32_t mask_token_id;
    int32_t n_final;             /* generated tokens before the first that is masked or ends the text */
} tsk_step;

/* What a masked position would get. */
typedef struct tsk_candidate {
    int32_t position;            /* in the canvas */
    int32_t id;                  /* the prediction */
    float confidence;            /* of it, as `remasking` has it */
    float entropy;               /* of the softmax of its position's logits, without noise, in nats */
} tsk_candidate;

/* What a decoding rule of the host's own decides about: which of the candidates this pass commits. If it sets none,
   the most confident candidate is committed, so that the generation ends. The addresses are valid during the
   callback. */
typedef struct tsk_selection {
    int32_t pass, block, block_step; /* as in tsk_step */
    int32_t quota;               /* how many LLaDA's schedule would commit in this step */
    int32_t n;                   /* masked positions of the block, 1 or more */
    const tsk_candidate *candidates; /* [n] in order of position */
    uint8_t *commit;             /* [n] all 0; to be set, nonzero for those that the pass commits */
} tsk_selection;

/* How many predictions a step commits, and which. The best one always; then, by all rules but LEAP, the next best while
   the rule takes it. c_1 >= c_2 >= ... are the confidences, h_1, h_2, ... the entropies in that order. */
typedef struct tsk_transfer_rule {
    tsk_transfer transfer;
    float threshold;             /* THRESHOLD: those at least this confident */
    float factor;                /* FACTOR f: the n-th best where c_n >= 1 - f/(n+1) (Wu et al., "Fast-dLLM", 2025) */
    float frechet;               /* FRECHET d: the n-th best where max(0, c_1 + ... + c_n - (n-1)) - (1 - c_n) > d: what
                                    Frechet's inequality leaves of the probability that all n are right, less the n-th
                                    one's doubt ("Fast-dLLM++", arXiv 2606.02955) */
    float entropy_bound;         /* ENTROPY g: the n-th best where h_1 + ... + h_n - max(h_1, ..., h_n) <= g (Ben-Hamu
                                    et al., EB-Sampler, arXiv 2505.24857) */
    float local_leap;            /* LEAP: those of at least the confidence `threshold`, which are anchors, and those of
                                    at least this one that lie at most … (LocalLeap, arXiv 2510.07081) */
    int32_t local_radius;        /* … so many positions from an anchor */
    int32_t quota;               /* SCHEDULE: this many */
} tsk_transfer_rule;

/* Applies the rule to candidates [n], of which it reads the confidences, ENTROPY also the entropies (one below 0 or no
   number is not taken) and LEAP the positions. Of equal confidences the first is the better, and one that is no number
   the worst. Writes commit [n]; returns how many are committed (n <= 0, or NULL: 0, and nothing is written). */
TOKENSKIP_API int32_t tsk_select(const tsk_transfer_rule *rule, int32_t n, const tsk_candidate *candidates,
                                 uint8_t *commit);
/* For a program that shows an answer as it forms: appends the text that is final after this step, of the first n_final
   generated tokens without the special ones. What the step before gave is the beginning of what this one gives: a
   character whose last bytes are still to come is left out. To be called from on_step. */
TOKENSKIP_API tsk_status tsk_step_text(const tsk_tokenizer *tokenizer, const tsk_step *step, tsk_text *out,
                                       tsk_error *error);

typedef struct tsk_block_result { int32_t nfe, mask_residual; } tsk_block_result;

/* Pointers belong to the session and stay valid until its next start, whose prompt may be of them, a copy into it, or
   its end. */
typedef struct tsk_result {
    const int32_t *tokens;       /* [n_tokens] the generated part; after an early stop the rest is eos_token_id */
    int32_t n_tokens;            /* gen_length */
    int32_t n_before_end;        /* tokens before the first end-of-sequence or end-of-turn token */
    const int32_t *canvas;       /* [n_prompt + n_tokens], with the prompt's masks filled */
    int32_t n_prompt;
    int32_t nfe;                 /* forward passes, each counted once whatever its size */
    int32_t prompt_passes, storing_passes; /* of them, with cache BLOCK: pieces of the prompt; passes that made a
                                    block's K and V final, which count in the block's own nfe too */
    int32_t mask_residual;       /* masks left: 0 unless cancelled */
    tsk_finish finish_reason;
    const tsk_block_result *blocks; /* [n_blocks] blocks reached, the infilling one included */
    int32_t n_blocks;
    const int32_t *active;       /* [n_block_steps] rows above layer K in each block step (caches DUAL, BLOCK) */
    const int32_t *stable_masked; /* [n_block_steps] stable rows that were masked */
    int32_t n_block_steps;
    uint64_t token_layers_computed, token_layers_total;                  /* block steps of caches DUAL and BLOCK */
    uint64_t refresh_token_layers_computed, refresh_token_layers_total;  /* refreshes, if they leave something out:
                                    with skip.refresh, refresh NEAR or a window; total: of the whole canvas each */
    uint64_t refreshed_rows;     /* those that refresh_rows added, all layers of each */
    uint64_t rows;               /* that ran all layers, in all passes */
    double refresh_ms, block_step_ms, total_ms;  /* wall-clock sums; is_refresh in tsk_step says which is which */
    double prompt_ms, storing_ms; /* likewise */
    int32_t refreshes, block_steps;
} tsk_result;

typedef struct tsk_session tsk_session;

TOKENSKIP_API tsk_generate_options tsk_generate_options_default(void);
/* Every field that is TSK_AUTO becomes what the library chooses for this model; nothing is checked. */
TOKENSKIP_API void tsk_generate_options_resolve(const tsk_model *model, tsk_generate_options *options);
/* Checks the options (NULL: all defaults) against the model. A session runs any number of generations, one after
   another. */
TOKENSKIP_API tsk_status tsk_session_create(tsk_model *model, const tsk_generate_options *options, tsk_session **out,
                                            tsk_error *error);
TOKENSKIP_API void tsk_session_free(tsk_session *session);
/* A session has one of four states: not started, generating, finished, failed. A start that fails leaves it not
   started; so does a copy or logits call that fails after its arguments were accepted. A step or probe whose pass fails
   leaves it failed: every further step returns the same error. A copy, logits, step or probe call whose arguments are
   refused changes nothing. Calls that need a generation return TSK_ERROR_ARGUMENT without one. */
/* Begins a generation. `prompt` [n_prompt] may hold mask_token_id: those positions are filled first (infilling); with
   cache BLOCK only behind the prompt's whole blocks, where they are masks of the first block like any others.
   `generated` is NULL (all masked) or [gen_length] with mask_token_id where free and, elsewhere, ids that stay.
   With cache BLOCK the session keeps the K and V of finished blocks, and a generation whose prompt begins with the
   tokens of such blocks, as the next question of a conversation does, does not compute them again. */
TOKENSKIP_API tsk_status tsk_session_start(tsk_session *session, const int32_t *prompt, int32_t n_prompt,
                                           const int32_t *generated, tsk_error *error);
/* One forward pass and its commits. *finished becomes 1 once nothing is left to do. TSK_ERROR_NUMERIC: the logits of a
   masked position are no numbers (NaN, or an infinite sum of exponentials), as of a model with damaged weights. */
TOKENSKIP_API tsk_status tsk_session_step(tsk_session *session, int *finished, tsk_error *error);
/* The state so far; all zeroes while there is no generation. */
TOKENSKIP_API void tsk_session_result(const tsk_session *session, tsk_result *result);
/* start, step until finished, result. Cancelling is no error: finish_reason says so. */
TOKENSKIP_API tsk_status tsk_generate(tsk_session *session, const int32_t *prompt, int32_t n_prompt,
                                      const int32_t *generated, tsk_result *result, tsk_error *error);
/* One full forward over `tokens` [n]: logits of rows [first, first + count) to `logits` [count, embedding_size]
   (shifted ones predict the position behind the row). With cache BLOCK attention is by blocks of block_length.
   The call uses the session's caches: it ends a generation in progress and leaves the session not started. */
TOKENSKIP_API tsk_status tsk_session_logits(tsk_session *session, const int32_t *tokens, int32_t n, int32_t first,
                                            int32_t count, float *logits, tsk_error *error);

/* ---- Batches: many requests in flight at once (continuous batching) */

typedef struct tsk_batch tsk_batch;

/*                                  default        meaning */
typedef struct tsk_batch_options {
    int32_t max_requests;        /* 16             in flight at once; the others wait in order */
    int32_t max_queued;          /* TSK_NONE       that may wait for a place; TSK_NONE: no bound */
    int32_t cache_tokens;        /* TSK_AUTO       canvas tokens that the cache holds in all; auto: max_requests times
                                                   the model's max_sequence_length, or as many as the device's free
                                                   memory takes */
    int32_t max_rows;            /* TSK_AUTO       rows of one pass; auto: max_sequence_length, or 32 a request if
                                                   more */
    int64_t row_layers;          /* 0              rows times layers that refreshes may add to a pass: a refresh of a
                                                   long canvas is spread over several passes, some layers in each, so
                                                   that other requests do not wait; 0: no limit */
    /* A request is over: its result, or the error that ended it (then result is NULL). Called from tsk_batch_step;
       pointers are valid during the call. It may submit and cancel. */
    void (*on_done)(void *user, uint64_t id, void *request_user, const tsk_result *result,
                    const tsk_error *error); /* NULL */
    void (*log)(void *user, const char *line); /* NULL  remarks of tsk_batch_create, one line each: a cache that is
                                                        smaller than asked */
    void *user;                  /* NULL           handed to the two above */
} tsk_batch_options;

/* What one step of the batch did, and what is left. */
typedef struct tsk_batch_status {
    int32_t in_flight, queued;   /* after the step */
    int32_t ending;              /* cancelled while they queued, since the step began: on_done comes with the next
                                    step */
    int32_t rows;                /* in the pass */
    int64_t row_layers;          /* rows times layers, as if no token skipped any */
    double ms;                   /* wall-clock time of the pass */
} tsk_batch_status;

TOKENSKIP_API tsk_batch_options tsk_batch_options_default(void);
TOKENSKIP_API tsk_status tsk_batch_create(tsk_model *model, const tsk_batch_options *options, tsk_batch **out,
                                          tsk_error *error);
/* Frees everything. Requests that have not ended are dropped; on_done is not called for them. */
TOKENSKIP_API void tsk_batch_free(tsk_batch *batch);
/* Adds a request, as tsk_session_create and tsk_session_start would check it; everything is copied. *id (may be NULL)
   numbers requests from 1. A request that can never fit is refused; the message gives its size and the limit.
   TSK_ERROR_FULL: max_queued wait already. on_step, on_select and cancel of its options are called from tsk_batch_step,
   with the options' own `user`. Any thread may call this at any time. */
TOKENSKIP_API tsk_status tsk_batch_submit(tsk_batch *batch, const int32_t *prompt, int32_t n_prompt,
                                          const int32_t *generated, const tsk_generate_options *options,
                                          void *request_user, uint64_t *id, tsk_error *error);
/* The request ends with finish_reason CANCELLED: one in flight before its next pass; one that queues leaves the queue
   at once, and on_done comes at the start of the next step. Unknown or finished ids are ignored. Any thread. */
TOKENSKIP_API void tsk_batch_cancel(tsk_batch *batch, uint64_t id);
/* One forward pass over whatever has work, from one thread at a time. In f32 a request's tokens are those it would get
   alone. An error that is returned concerns the whole pass: every request of that pass ends, and on_done gets the
   error. A failure of one request only (TSK_ERROR_NUMERIC: its logits are no numbers) ends that request; the step then
   returns TSK_OK. */
TOKENSKIP_API tsk_status tsk_batch_step(tsk_batch *batch, tsk_batch_status *status, tsk_error *error);
/* For the thread that steps: waits until there is something for a step to do, and returns 1. 0: timeout_ms have passed
   (TSK_NONE: there is no limit), or submit or cancel has been called since the wait before and yet there is nothing to
   do: tsk_batch_cancel(batch, 0) is how another thread ends a wait. */
TOKENSKIP_API int tsk_batch_wait(tsk_batch *batch, int32_t timeout_ms);
/* Steps until nothing is in flight, queued or ending. */
TOKENSKIP_API tsk_status tsk_batch_drain(tsk_batch *batch, tsk_error *error);

/* ---- Memory */

/* What is to be estimated, before anything is loaded.
                                   default        meaning */
typedef struct tsk_memory_query {
    const tsk_model_config *config; /* NULL       the model's; must be given */
    int64_t weights_size;        /* TSK_AUTO       bytes, of tsk_folder_weights_size; auto: of that config, bf16 where
                                                   `weights` does not quantise it */
    tsk_weights weights;         /* AS_STORED      what matrices are held as; of a folder that is quantised, Q8 or Q4
                                                   (where weights_size is given, the two mean the same) */
    tsk_device device;           /* AUTO           where it will run; AUTO: a GPU where dtype is BF16, else the CPU */
    tsk_dtype dtype;             /* AUTO           activations and cache; AUTO: BF16 on a GPU, F32 on the CPU */
    int32_t canvas;              /* TSK_AUTO       a request's prompt and generated tokens; auto: max_sequence_length */
    const tsk_generate_options *generate; /* NULL  all defaults */
    const tsk_batch_options *batch; /* NULL        one session; else a batch of these options, all places taken */
} tsk_memory_query;

/* Bytes. */
typedef struct tsk_memory {
    uint64_t weights;            /* mapped on the CPU, allocated on a GPU */
    uint64_t cache;              /* K and V */
    uint64_t workspace;          /* activations and TokenSkip's states, on the device and beside it: within a twentieth
                                    of what is allocated for models of a realistic size */
} tsk_memory;

TOKENSKIP_API tsk_memory_query tsk_memory_query_default(void);
TOKENSKIP_API tsk_status tsk_memory_estimate(const tsk_memory_query *query, tsk_memory *out, tsk_error *error);
/* Bytes of the folder's weights, as stored. */
TOKENSKIP_API uint64_t tsk_folder_weights_size(const tsk_folder *folder);

/* What some of a model's weights are held as. */
typedef struct tsk_weights_format {
    char name[80];               /* "BF16"; "4 bits, groups of 128"; "F8_E4M3, blocks of 128 x 128"; ... */
    tsk_dtype dtype;             /* of values, or of codes: U8 for integers of `bits` bits, I8, F8_E4M3 */
    int32_t bits;                /* of a code; 0: not quantised */
    int32_t n_tensors;           /* weights of the model: a quantised matrix is one */
    uint64_t n_parameters, bytes; /* scales and zeros included */
} tsk_weights_format;
/* The formats that the folder's weights would be held in, in the order in which the model first has them: the first
   `room` of them to formats [room] (NULL: none). Returns how many there are. Asked for Q8 or Q4 of a folder that is
   quantised already, it answers for AS_STORED. */
TOKENSKIP_API int32_t tsk_folder_formats(const tsk_folder *folder, tsk_weights weights, tsk_weights_format *formats,
                                         int32_t room);

/* ---- Tracing ---------------------------------------------------------------------------------------------------- */

/* mean, unbiased standard deviation, extremes and mean magnitude of a record's output */
typedef struct tsk_stats { double mean, std, min, max, abs_mean; } tsk_stats;

/* Names: embedding, layer_{i}, layer_{i}_attn_norm, _q_proj, _k_proj, _v_proj, _q_norm, _k_norm (where the family norms
   q and k by head), _rope (parts q and k), _attn_out, _ff_norm, _ff_proj, _up_proj, _ffn_out; kv_{i} (parts k and v, as
   cached after the pass); final_norm, logits. */
typedef struct tsk_trace_record {
    const char *name;
    const char *part;            /* "", or "q", "k", "v" where a name has two outputs */
    int32_t pass, layer;         /* layer -1 outside the layers */
    int32_t n_rows;              /* rows that ran here */
    const int32_t *positions;    /* [n_rows] in the canvas; for caches 0 .. cached length - 1 */
    int n_dims;                  /* of output_shape */
    uint64_t input_shape[3];     /* [n_rows, width], 0s where the record has no single input */
    uint64_t output_shape[3];    /* [n_rows, width]; rope [n_rows, n_heads, head_dim]; caches [n_kv_heads, length,
                                    head_dim] */
    tsk_stats stats;             /* of the output */
    const float *input;          /* values, row-major, or NULL unless asked for */
    const float *output;
} tsk_trace_record;

/*                                       default       meaning */
typedef struct tsk_trace_options {
    const char *pattern;              /* NULL          which names: * and ? as in a shell; NULL: all */
    int32_t first_layer, last_layer;  /* 0, INT32_MAX  records of these layers (those without a layer always) */
    int32_t first_pass, last_pass;    /* 0, INT32_MAX */
    int values;                       /* 0             1: records carry input and output values */
    void (*on_record)(void *user, const tsk_trace_record *record);
    void *user;
} tsk_trace_options;

TOKENSKIP_API tsk_trace_options tsk_trace_options_default(void);
/* Records of every later pass of this session go to options->on_record; NULL options end tracing. No result changes. A
   traced pass computes every record, final_norm and logits included, for all its rows. */
TOKENSKIP_API tsk_status tsk_session_trace(tsk_session *session, const tsk_trace_options *options, tsk_error *error);

/* ---- Not for embedding ------------------------------------------------------------------------------------------ */
/* What follows serves the command, tests, benchmarks and studies: formats that the library reads and writes for its own
   needs, passes taken apart, measuring. It works as it says; but where names and meanings of all
   above change with the minor version only, these may change with any version. CHANGELOG.md says so. */

/* ---- JSON */

#ifndef TOKENSKIP_JSON_MAX_DEPTH
#define TOKENSKIP_JSON_MAX_DEPTH 512
#endif

/* RFC 8259, UTF-8 checked (half a surrogate pair, a byte order mark: refused), at most TOKENSKIP_JSON_MAX_DEPTH levels
   deep, less than 4 GiB. A document keeps its own copy of everything; values stay valid until it is freed. Duplicate
   member names are kept, in order, and tsk_json_get finds the last. */
typedef struct tsk_json tsk_json;
typedef struct tsk_json_value tsk_json_value;

typedef enum tsk_json_type {
    TSK_JSON_NONE, /* the type of a NULL value pointer: chained look-ups need no checks in between */
    TSK_JSON_NULL, TSK_JSON_FALSE, TSK_JSON_TRUE, TSK_JSON_NUMBER, TSK_JSON_STRING, TSK_JSON_ARRAY, TSK_JSON_OBJECT
} tsk_json_type;

/* Parses `size` bytes (no NUL needed). `name` appears in errors as the file; may be NULL. */
TOKENSKIP_API tsk_status tsk_json_parse(const char *text, size_t size, const char *name, const tsk_allocator *allocator,
                                        tsk_json **out, tsk_error *error);
TOKENSKIP_API void tsk_json_free(tsk_json *document);
TOKENSKIP_API const tsk_json_value *tsk_json_root(const tsk_json *document);
TOKENSKIP_API tsk_json_type tsk_json_type_of(const tsk_json_value *value);
TOKENSKIP_API uint64_t tsk_json_offset(const tsk_json_value *value);      /* where it starts in the text */
TOKENSKIP_API size_t tsk_json_count(const tsk_json_value *value);         /* elements or members; 0 for anything else */
TOKENSKIP_API const tsk_json_value *tsk_json_first(const tsk_json_value *container);  /* NULL when empty */
TOKENSKIP_API const tsk_json_value *tsk_json_next(const tsk_json_value *value); /* the sibling after it, or NULL */
TOKENSKIP_API const char *tsk_json_key(const tsk_json_value *member, size_t *length); /* NULL outside an object */
TOKENSKIP_API const tsk_json_value *tsk_json_get(const tsk_json_value *object,
                                                 const char *key); /* last with that name, or NULL */
/* Strings may hold NUL bytes (\u0000); they are NUL-terminated as well. `length` may be NULL. NULL when not a
   string. */
TOKENSKIP_API const char *tsk_json_string(const tsk_json_value *value, size_t *length);
/* These return 1 and fill `out` when the value is of that kind (integers: a whole number in range, however it is
   written: 32.0 and 3.2e1 are 32), else 0. */
TOKENSKIP_API int tsk_json_double(const tsk_json_value *value, double *out);   /* correctly rounded; 0 beyond DBL_MAX */
TOKENSKIP_API int tsk_json_int64(const tsk_json_value *value, int64_t *out);
TOKENSKIP_API int tsk_json_uint64(const tsk_json_value *value, uint64_t *out);
TOKENSKIP_API int tsk_json_bool(const tsk_json_value *value, int *out);

/* Writing: call the functions in the order of the document; the writer adds commas and escapes. The first failed
   allocation sets `status`, and later calls do nothing. Invalid UTF-8 is written as U+FFFD; NaN and infinities as null.
   Doubles are printed with the fewest digits that read back the same (17 at most), whatever the locale. Start from {0}
   with `out` set. */
typedef struct tsk_json_writer {
    tsk_text *out;
    tsk_status status;
    int needs_comma;
} tsk_json_writer;

TOKENSKIP_API void tsk_json_begin_object(tsk_json_writer *writer);
TOKENSKIP_API void tsk_json_end_object(tsk_json_writer *writer);
TOKENSKIP_API void tsk_json_begin_array(tsk_json_writer *writer);
TOKENSKIP_API void tsk_json_end_array(tsk_json_writer *writer);
TOKENSKIP_API void tsk_json_write_key(tsk_json_writer *writer, const char *key);
TOKENSKIP_API void tsk_json_write_string(tsk_json_writer *writer, const char *text, size_t length);
TOKENSKIP_API void tsk_json_write_int(tsk_json_writer *writer, int64_t value);
TOKENSKIP_API void tsk_json_write_uint(tsk_json_writer *writer, uint64_t value);
TOKENSKIP_API void tsk_json_write_double(tsk_json_writer *writer, double value);
TOKENSKIP_API void tsk_json_write_bool(tsk_json_writer *writer, int value);
TOKENSKIP_API void tsk_json_write_null(tsk_json_writer *writer);

/* ---- safetensors */

#define TSK_MAX_DIMS 8

typedef struct tsk_tensor_info {
    const char *name;             /* owned by the file handle */
    tsk_dtype dtype;
    int n_dims;                   /* 0: a scalar */
    uint64_t shape[TSK_MAX_DIMS];
    uint64_t offset;              /* of its first byte, from the start of the file */
    uint64_t size;                /* in bytes */
} tsk_tensor_info;

typedef struct tsk_safetensors tsk_safetensors;

/* Reads and checks the header only. Tensors keep the order of their offsets. */
TOKENSKIP_API tsk_status tsk_safetensors_open(const char *path, const tsk_host *host, tsk_safetensors **out,
                                              tsk_error *error);
TOKENSKIP_API void tsk_safetensors_free(tsk_safetensors *file);
TOKENSKIP_API size_t tsk_safetensors_count(const tsk_safetensors *file);
TOKENSKIP_API const tsk_tensor_info *tsk_safetensors_get(const tsk_safetensors *file, size_t index);  /* NULL outside */
TOKENSKIP_API const tsk_tensor_info *tsk_safetensors_find(const tsk_safetensors *file, const char *name);
/* The __metadata__ member (string to string), or NULL. */
TOKENSKIP_API const tsk_json_value *tsk_safetensors_metadata(const tsk_safetensors *file);
/* The tensor's bytes in the mapped file (maybe not aligned), or NULL where the file is not mapped. */
TOKENSKIP_API const void *tsk_safetensors_data(const tsk_safetensors *file, const tsk_tensor_info *tensor);
/* Copies `size` bytes of the tensor, from byte `offset` of it, into `buffer`. Any number of threads at once. */
TOKENSKIP_API tsk_status tsk_safetensors_read(const tsk_safetensors *file, const tsk_tensor_info *tensor,
                                              uint64_t offset, void *buffer, size_t size, tsk_error *error);

/* Writing: tensors are streamed to a temporary file beside `path`, which takes the name `path` only in finish; until
   then, and after any failure, `path` is untouched. After finish, whatever became of it, the writer is only good for
   tsk_safetensors_writer_free, which abandons a file that is not finished and leaves no other file behind. */
typedef struct tsk_safetensors_writer tsk_safetensors_writer;

TOKENSKIP_API tsk_status tsk_safetensors_writer_open(const char *path, const tsk_allocator *allocator,
                                                     tsk_safetensors_writer **out, tsk_error *error);
TOKENSKIP_API tsk_status tsk_safetensors_writer_add(tsk_safetensors_writer *writer, const char *name, tsk_dtype dtype,
                                                    int n_dims, const uint64_t *shape, const void *data,
                                                    tsk_error *error);
/* The file's __metadata__: `n` texts under keys of their own, in this order; a later call takes the place of an earlier
   one. */
TOKENSKIP_API tsk_status tsk_safetensors_writer_metadata(tsk_safetensors_writer *writer, int32_t n,
                                                         const char *const *keys, const char *const *values,
                                                         tsk_error *error);
TOKENSKIP_API tsk_status tsk_safetensors_writer_finish(tsk_safetensors_writer *writer, tsk_error *error);
TOKENSKIP_API void tsk_safetensors_writer_free(tsk_safetensors_writer *writer);

/* ---- A model without a folder */

/* A model of the given shape with seeded random BF16 weights, norms of ones, biases of zeros, and no tokenizer, for
   benchmarks and tests. */
TOKENSKIP_API tsk_status tsk_model_random(const tsk_model_config *config, uint64_t seed,
                                          const tsk_model_options *options, tsk_model **out, tsk_error *error);

/* ---- Looking at a pass without taking it: for comparing variants from the same state */

/* Gives `to` the state of `from`: canvas, caches, place in the generation and, where both have the same K, TokenSkip's
   states (with skip.policy REUSE only those of a session that keeps outputs too). Both are sessions of one model with
   the same gen_length and block_length; their other options may differ. `from` may be copied inside its own on_step
   callback; `to` then gets the state that `from` will have after that step. */
TOKENSKIP_API tsk_status tsk_session_copy(tsk_session *to, const tsk_session *from, tsk_error *error);

/* STEP: a block step under the session's rule (cache DUAL; caches must be there of all that is visible: with a window
   the block has had its first pass). STEP_ALL: one that leaves nothing out, by force neither. REFRESH: the canvas, as
   far as it is visible. */
typedef enum tsk_probe_kind { TSK_PROBE_STEP, TSK_PROBE_STEP_ALL, TSK_PROBE_REFRESH } tsk_probe_kind;

/* Pointers are valid until the session's next call. */
typedef struct tsk_probe {
    int32_t n_positions;         /* of the current block */
    const int32_t *positions;    /* [n_positions] in the canvas */
    const uint8_t *active;       /* [n_positions] */
    int32_t n_cosines;           /* as in tsk_step */
    const float *cosines;        /* [n_positions, n_cosines] */
} tsk_probe;

/* The current block's next forward pass, committing nothing: the canvas stays; caches, TokenSkip's states and the count
   of block steps move on as in a step. `canvas` [n_prompt + gen_length] is what the pass runs on, NULL the session's
   own. */
TOKENSKIP_API tsk_status tsk_session_probe(tsk_session *session, const int32_t *canvas, tsk_probe_kind kind,
                                           tsk_probe *out, tsk_error *error);
/* Right after a probe, before any other call of the session: final_norm [n_positions, d_model] (may be NULL) and logits
   [n_positions, embedding_size] of the rows that predict the block's positions, for a stable token the values that its
   skip.policy gives it. Of a row that rule ROWS left out, or that is outside the block and has nothing to predict:
   NaN. */
TOKENSKIP_API tsk_status tsk_session_probe_logits(tsk_session *session, float *final_norm, float *logits,
                                                  tsk_error *error);

/* ---- Measuring */

/* What the model's device can do at most, measured now (about a second), for benchmarks to compare with. */
typedef struct tsk_ceilings {
    double bytes_per_second;     /* reading a buffer much larger than any cache, all threads */
    double flops_per_second;     /* the library's largest matrix product, in the activations' type, all threads */
} tsk_ceilings;
TOKENSKIP_API tsk_status tsk_model_ceilings(tsk_model *model, tsk_ceilings *out, tsk_error *error);

/* For benchmarks and tests: so many rows are active, whatever their states say. n_active n >= 0: in a block's passes
   after the first exactly its first n tokens; with rule ROWS the changed ones, the best masked ones (one at least) and,
   if these are fewer than n, others. n_refresh n >= 0: with skip.refresh, of the positions
   outside the block exactly the first n are, in refreshes after the first; TSK_AUTO: as ever. Of a session from its
   next pass on; of a batch all requests from its next step on (from the thread that steps it). */
TOKENSKIP_API tsk_status tsk_session_force(tsk_session *session, int32_t n_active, int32_t n_refresh, tsk_error *error);
TOKENSKIP_API tsk_status tsk_batch_force(tsk_batch *batch, int32_t n_active, int32_t n_refresh, tsk_error *error);

/* ---- Parts of the algorithm that can be used, and tested, alone */

/* LLaDA's get_num_transfer_tokens: mask_count/steps each, the first mask_count % steps one more. out [steps]. */
TOKENSKIP_API void tsk_num_transfer_tokens(int32_t mask_count, int32_t steps, int32_t *out);
/* Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011). */
TOKENSKIP_API void tsk_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

#ifdef __cplusplus
}
#endif

#endif /* TOKENSKIP_H */
