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
   - Generates with LLaDA's schedule, a confidence threshold or Fast-dLLM's factor rule; with no cache, a prefix cache
     or a dual cache, or by blocks where the model attends by blocks; with TokenSkip on top of the last two; fills gaps
     inside a given text (infilling).
   - Shows what happens: a callback after every forward pass, a callback for every intermediate tensor, and copies of a
     generation's state to compare variants from.
   - Runs many requests at once (continuous batching), in f32 each with the tokens it would get alone.
   - Runs on the CPU (AVX-512, AVX2, NEON or portable C, chosen at run time) and on NVIDIA GPUs from compute capability
     8.0 up.

WHAT IT DOES NOT DO
   - It does not train, download or quantise models, and does not read GGUF, pickle or ONNX.
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
   >>error  >>memory  >>platform  >>pool  >>hash  >>number  >>json  >>safetensors  >>unicode  >>bpe  >>template
   >>family  >>config  >>random  >>weights  >>skip  >>schedule  >>backend  >>storage  >>cpu  >>cpu_weights
   >>cpu_backend  >>cuda_driver  >>cuda_shared  >>cuda_backend  >>cuda_compile  >>cuda_plan  >>cuda_weights
   >>cuda_stream  >>cuda  >>model  >>trace  >>forward  >>request  >>session  >>batch  >>public
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
    TSK_DTYPE_F32, TSK_DTYPE_F16, TSK_DTYPE_BF16, /* the three that weights may have */
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
    tsk_dtype dtype;        /* AUTO           activations and cache. CPU: F32. CUDA: BF16 (auto) or F32 */
    int n_threads;          /* TSK_AUTO       CPU threads, the calling one included; 1: no workers; auto: one a
                                              processor */
    const char *kernel_cache_dir; /* NULL     where compiled CUDA kernels are kept; NULL: $XDG_CACHE_HOME/tokenskip
                                              or ~/.cache/tokenskip; "": nowhere */
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
typedef enum tsk_transfer { TSK_TRANSFER_SCHEDULE, TSK_TRANSFER_THRESHOLD, TSK_TRANSFER_FACTOR } tsk_transfer;
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
    float threshold;             /* 0.9             THRESHOLD: commit every candidate at least this confident */
    float factor;                /* 1.0             FACTOR: Fast-dLLM's dynamic rule */
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
    float entropy;               /* of the distribution that it is drawn from, in nats; -1: not computed (this version
                                    never computes it) */
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

/* How many predictions a step commits, and which: the best one always, then the next best while the rule takes it. */
typedef struct tsk_transfer_rule {
    tsk_transfer transfer;
    float threshold;             /* THRESHOLD: those at least this confident */
    float factor;                /* FACTOR f: the n-th best where its confidence is at least 1 - f/(n+1) (Wu et al.,
                                    "Fast-dLLM", 2025) */
    int32_t quota;               /* SCHEDULE: this many */
} tsk_transfer_rule;

/* Applies the rule to candidates [n], of which it reads the confidences; of equal ones the first is the better, and one
   that is no number the worst. Writes commit [n]; returns how many are committed (n <= 0, or NULL: 0, and nothing is
   written). */
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
    int64_t weights_size;        /* TSK_AUTO       bytes, of tsk_folder_weights_size; auto: bf16 weights of that
                                                   config */
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
TOKENSKIP_API uint64_t tsk_folder_weights_size(const tsk_folder *folder);

/* ---- Tracing ---------------------------------------------------------------------------------------------------- */

/* mean, unbiased standard deviation, extremes and mean magnitude of a record's output */
typedef struct tsk_stats { double mean, std, min, max, abs_mean; } tsk_stats;

/* Names: embedding, block_{i}, block_{i}_attn_norm, _q_proj, _k_proj, _v_proj, _q_norm, _k_norm (where the family norms
   q and k by head), _rope (parts q and k), _attn_out, _ff_norm, _ff_proj, _up_proj, _ffn_out; kv_{i} (parts k and v, as
   cached after the pass); final_norm, logits. */
typedef struct tsk_trace_record {
    const char *name;
    const char *part;            /* "", or "q", "k", "v" where a name has two outputs */
    int32_t pass, layer;         /* layer -1 outside the blocks */
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

/* =====================================================================================================================
   Stop here if you only use the library. What follows is the implementation; its sections are marked // >>name.
   ================================================================================================================== */
#ifdef TOKENSKIP_IMPLEMENTATION
#ifndef TOKENSKIP__IMPLEMENTED
#define TOKENSKIP__IMPLEMENTED

#if defined(TOKENSKIP_MALLOC) != defined(TOKENSKIP_REALLOC) || defined(TOKENSKIP_MALLOC) != defined(TOKENSKIP_FREE)
#error "define all or none of TOKENSKIP_MALLOC, TOKENSKIP_REALLOC and TOKENSKIP_FREE"
#endif

#if !defined(__linux__) && !defined(__APPLE__) && !defined(_WIN32)
#error "TokenSkip knows Linux, macOS and Windows; what another system needs is in the section platform"
#endif

/* Where CUDA has no headers and libraries in customary places it is found at run time; macOS has none. */
#if defined(_WIN32) && !defined(TOKENSKIP_NO_CUDA) && !defined(TOKENSKIP_CUDA_DLOPEN)
#define TOKENSKIP_CUDA_DLOPEN
#endif
#if defined(__APPLE__) && !defined(TOKENSKIP_NO_CUDA)
#define TOKENSKIP_NO_CUDA
#endif
#if defined(__APPLE__) && !defined(_DARWIN_C_SOURCE)
#define _DARWIN_C_SOURCE /* sysconf's names, where only POSIX was asked for */
#endif

#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef _WIN32
/* Here and not in the public part: it defines near, far, small and hundreds of names more. */
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#define TSK__LEAN_AND_MEAN
#endif
#ifndef NOMINMAX
#define NOMINMAX
#define TSK__NOMINMAX
#endif
#include <windows.h>
#ifdef TSK__LEAN_AND_MEAN
#undef WIN32_LEAN_AND_MEAN
#undef TSK__LEAN_AND_MEAN
#endif
#ifdef TSK__NOMINMAX
#undef NOMINMAX
#undef TSK__NOMINMAX
#endif
#include <io.h>
#include <process.h>
#include <wchar.h>
#if defined(_WIN32_WINNT) && _WIN32_WINNT < 0x0601
#error "TokenSkip needs Windows 7 or later: define _WIN32_WINNT as 0x0601 or more, or leave it alone"
#endif
#else
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(TOKENSKIP_CUDA_DLOPEN) && !defined(TOKENSKIP_NO_CUDA)
#include <dlfcn.h>
#endif
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__GNUC__)
#include <arm_neon.h>
#ifdef __linux__
#include <sys/auxv.h>
#endif
#endif

#ifndef TOKENSKIP_MALLOC
#define TOKENSKIP_MALLOC(size) malloc(size)
#define TOKENSKIP_REALLOC(block, size) realloc(block, size)
#define TOKENSKIP_FREE(block) free(block)
#endif

/* Of a small function with very many callers, none of them in a hurry: inlined into all of them it costs 4 % of the
   header's code and as much of its compile time. */
#ifdef __GNUC__
#define TSK__NOT_INLINE __attribute__((__noinline__))
#else
#define TSK__NOT_INLINE
#endif

/* Where one instruction of every processor multiplies and adds, compilers put it for any a * b + c, and round once
   where other machines round twice. From here to the end of the implementation they may not. (x86 has none unless it
   is asked for. In front of arm_neon.h this would keep programs from inlining what that header has.) */
#if defined(__GNUC__) && !defined(__x86_64__) && !defined(__i386__)
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif
#endif

/* On 64-bit Windows gcc aligns the stack to 16 bytes, and before some later versions moves vectors of 32 and 64 to and
   from it as if it were aligned to their size (its bug 54412): the assembler gets moves for any address instead, which
   are as fast where the address is aligned. */
#if defined(_WIN32) && defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__asm__(".macro vmovaps operands:vararg\n\tvmovups \\operands\n\t.endm\n"
        "\t.macro vmovapd operands:vararg\n\tvmovupd \\operands\n\t.endm\n"
        "\t.macro vmovdqa operands:vararg\n\tvmovdqu \\operands\n\t.endm\n"
        "\t.macro vmovdqa32 operands:vararg\n\tvmovdqu32 \\operands\n\t.endm\n"
        "\t.macro vmovdqa64 operands:vararg\n\tvmovdqu64 \\operands\n\t.endm\n");
#endif

#ifdef __cplusplus
extern "C" {
#endif

// >>error =============================================================================================================
/* Every failure is made by tsk__error_set, at the place that knows the input's name, and handed up unchanged. */

#if defined(__GNUC__)
#define TSK__PRINTF(text, first) __attribute__((__format__(__printf__, text, first)))
#else
#define TSK__PRINTF(text, first)
#endif

const char *tsk_status_string(tsk_status status) {
    static const char *const strings[] = {
#define TSK__STATUS_TEXT(name, text) text,
        TSK_STATUS_LIST(TSK__STATUS_TEXT)
#undef TSK__STATUS_TEXT
    };
    return (int)status >= 0 && (int)status < (int)TSK_STATUS_COUNT ? strings[(int)status] : "unknown status";
}

/* Untrusted names end up in messages: control characters would break the promise of one line. */
static void tsk__error_one_line(char *text) {
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f) *text = '?';
}

/* The end of a long path: in full it would push the reason out of the message. Never cuts a UTF-8 character. */
static TSK__NOT_INLINE const char *tsk__error_path(const char *path) {
    size_t length = strlen(path), i = length > 200 ? length - 200 : 0;
    while (i && (path[i] & 0xc0) == 0x80) i++;
    return path + i;
}

/* Fills all of `error` (may be NULL), whatever was in it, and returns `status`, so that callers write
   `return tsk__error_set(...)`. `file` may be NULL. */
static TSK__NOT_INLINE tsk_status TSK__PRINTF(5, 6)
    tsk__error_set(tsk_error *error, tsk_status status, const char *file, uint64_t offset, const char *format, ...) {
    va_list arguments;
    size_t length;
    if (!error) return status;
    memset(error, 0, sizeof *error);
    error->status = status;
    error->offset = offset;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    tsk__error_one_line(error->message);
    length = file ? strlen(file) : 0;
    if (length >= sizeof error->file) file += length - (sizeof error->file - 1);
    if (file) snprintf(error->file, sizeof error->file, "%s", file);
    tsk__error_one_line(error->file);
    return status;
}

static TSK__NOT_INLINE tsk_status tsk__error_memory(tsk_error *error, const char *what, uint64_t size) {
    return tsk__error_set(error, TSK_ERROR_MEMORY, NULL, TSK_NO_OFFSET, "out of memory: %llu bytes for %s",
                          (unsigned long long)size, what);
}

static TSK__NOT_INLINE tsk_status tsk__error_null(tsk_error *error, const char *function, const char *parameter) {
    return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "%s: %s is NULL", function, parameter);
}

// >>memory ============================================================================================================
/* The host's allocator behind four checked calls, and the two growable buffers of the API. */

static void *tsk__memory_default_allocate(void *user, size_t size) {
    (void)user;
    return TOKENSKIP_MALLOC(size);
}
static void *tsk__memory_default_reallocate(void *user, void *block, size_t old_size, size_t new_size) {
    (void)user;
    (void)old_size;
    return TOKENSKIP_REALLOC(block, new_size);
}
static void tsk__memory_default_release(void *user, void *block) {
    (void)user;
    TOKENSKIP_FREE(block);
}

static const tsk_allocator tsk__memory_default = {tsk__memory_default_allocate, tsk__memory_default_reallocate,
                                                  tsk__memory_default_release, NULL};

static const tsk_allocator *tsk__memory_allocator(const tsk_host *host) {
    return host && host->allocator ? host->allocator : &tsk__memory_default;
}

/* NULL for count * size beyond size_t as for any other failure. A zero count gives a block too. */
static TSK__NOT_INLINE void *tsk__memory_new(const tsk_allocator *allocator, size_t count, size_t size) {
    if (size && count > SIZE_MAX / size) return NULL;
    if (!allocator) allocator = &tsk__memory_default;
    return allocator->allocate(allocator->user, count && size ? count * size : 1);
}

static TSK__NOT_INLINE void *tsk__memory_new_zeroed(const tsk_allocator *allocator, size_t count, size_t size) {
    void *block = tsk__memory_new(allocator, count, size);
    if (block) memset(block, 0, count * size);
    return block;
}

static TSK__NOT_INLINE void tsk__memory_delete(const tsk_allocator *allocator, void *block) {
    if (!allocator) allocator = &tsk__memory_default;
    if (block) allocator->release(allocator->user, block);
}

/* Makes room for `needed` elements in *block, which holds *capacity; grows by half at least. 0 when out of memory, with
   the block as it was. `block` is the address of a pointer of any type. */
static int tsk__memory_reserve(const tsk_allocator *allocator, void *block, size_t *capacity, size_t needed,
                               size_t size) {
    void *old_block, *new_block;
    size_t wanted = *capacity + *capacity / 2;
    if (needed <= *capacity) return 1;
    if (!allocator) allocator = &tsk__memory_default;
    if (wanted < needed) wanted = needed;
    if (wanted < 16) wanted = 16;
    if (wanted > SIZE_MAX / size) return 0;
    memcpy(&old_block, block, sizeof old_block);
    new_block = old_block ? allocator->reallocate(allocator->user, old_block, *capacity * size, wanted * size)
                          : allocator->allocate(allocator->user, wanted * size);
    if (!new_block) return 0;
    memcpy(block, &new_block, sizeof new_block);
    *capacity = wanted;
    return 1;
}

static char *tsk__memory_copy_string(const tsk_allocator *allocator, const char *text) {
    size_t size = strlen(text) + 1;
    char *copy = (char *)tsk__memory_new(allocator, size, 1);
    if (copy) memcpy(copy, text, size);
    return copy;
}

tsk_status tsk_text_append(tsk_text *text, const char *bytes, size_t size) {
    if (!text || (!bytes && size)) return TSK_ERROR_ARGUMENT;
    if (size >= SIZE_MAX - text->length) return TSK_ERROR_MEMORY;
    if (!tsk__memory_reserve(text->allocator, &text->data, &text->capacity, text->length + size + 1, 1))
        return TSK_ERROR_MEMORY;
    if (size) memcpy(text->data + text->length, bytes, size);
    text->length += size;
    text->data[text->length] = 0;
    return TSK_OK;
}

void tsk_text_free(tsk_text *text) {
    if (!text) return;
    tsk__memory_delete(text->allocator, text->data);
    text->data = NULL;
    text->length = text->capacity = 0;
}

/* Room for `more` ids behind those that are there; 0 when out of memory, or of what an int32_t counts. */
static int tsk__tokens_reserve(tsk_tokens *tokens, size_t more) {
    size_t count = (size_t)tokens->count, capacity = (size_t)tokens->capacity;
    if (more > (size_t)INT32_MAX - count) return 0;
    if (!tsk__memory_reserve(tokens->allocator, &tokens->ids, &capacity, count + more, sizeof *tokens->ids)) return 0;
    tokens->capacity = capacity > INT32_MAX ? INT32_MAX : (int32_t)capacity;
    return 1;
}

tsk_status tsk_tokens_append(tsk_tokens *tokens, const int32_t *ids, int32_t count) {
    if (!tokens || count < 0 || (!ids && count)) return TSK_ERROR_ARGUMENT;
    if (!tsk__tokens_reserve(tokens, (size_t)count)) return TSK_ERROR_MEMORY;
    if (count) memcpy(tokens->ids + tokens->count, ids, (size_t)count * sizeof *ids);
    tokens->count += count;
    return TSK_OK;
}

void tsk_tokens_free(tsk_tokens *tokens) {
    if (!tokens) return;
    tsk__memory_delete(tokens->allocator, tokens->ids);
    tokens->ids = NULL;
    tokens->count = tokens->capacity = 0;
}

// >>platform ==========================================================================================================
/* Every call of the operating system: files, folders, memory, time, threads and locks, the processor, libraries found
   at run time. Each group of calls is there for POSIX (Linux, macOS) and for Windows, in this order; what is built on
   them is written once. A call of ours that fails leaves its reason in errno, on every system. Another operating system
   is this section's work. */

#ifndef _WIN32

/* Another number in a forked child. */
static uint64_t tsk__process_number(void) { return (uint64_t)getpid(); }

/* ---- descriptors and paths, POSIX */

/* What keeps a file of that mode from being read or written over; NULL for a regular one. */
static const char *tsk__file_obstacle(mode_t mode) {
    if (S_ISREG(mode)) return NULL;
    if (S_ISDIR(mode)) return "is a directory";
    if (S_ISFIFO(mode)) return "is a FIFO, not a regular file";
    return "is not a regular file";
}

/* On 32-bit Linux glibc's plain calls take 32-bit offsets, unless _FILE_OFFSET_BITS was 64 before the first header;
   where the including file came first, it was not. glibc has the calls with 64-bit offsets in any case, and declares
   them only where they were asked for. */
#if defined(__GLIBC__) && defined(__WORDSIZE)
#if __WORDSIZE == 32 && !defined(__USE_FILE_OFFSET64)
#define TSK__PLATFORM_OFFSET64
#endif
#endif

#ifdef TSK__PLATFORM_OFFSET64
#ifndef __USE_LARGEFILE64
extern int open64(const char *path, int flags, ...);
extern int64_t lseek64(int descriptor, int64_t offset, int whence);
extern ssize_t pread64(int descriptor, void *buffer, size_t size, int64_t offset);
extern ssize_t pwrite64(int descriptor, const void *buffer, size_t size, int64_t offset);
#endif
static int tsk__descriptor_open(const char *path, int flags) { return open64(path, flags, 0666); }
static int64_t tsk__descriptor_read(int d, void *to, size_t size, uint64_t offset) {
    return pread64(d, to, size, (int64_t)offset);
}
static int64_t tsk__descriptor_write(int d, const void *from, size_t size, uint64_t offset) {
    return pwrite64(d, from, size, (int64_t)offset);
}
/* fstat refuses files that are larger than it can tell, which only regular files are. */
static const char *tsk__descriptor_size(int d, uint64_t *size) {
    struct stat status;
    int64_t end = lseek64(d, 0, SEEK_END);
    *size = end < 0 ? 0 : (uint64_t)end;
    if (fstat(d, &status) == 0) return tsk__file_obstacle(status.st_mode);
    return errno == EOVERFLOW ? NULL : strerror(errno);
}
#else
static int tsk__descriptor_open(const char *path, int flags) { return open(path, flags, 0666); }
static int64_t tsk__descriptor_read(int d, void *to, size_t size, uint64_t offset) {
    return pread(d, to, size, (off_t)offset);
}
static int64_t tsk__descriptor_write(int d, const void *from, size_t size, uint64_t offset) {
    return pwrite(d, from, size, (off_t)offset);
}
/* The size of a regular file; of anything else, why not. */
static const char *tsk__descriptor_size(int d, uint64_t *size) {
    struct stat status;
    if (fstat(d, &status) != 0) return strerror(errno);
    *size = (uint64_t)status.st_size;
    return tsk__file_obstacle(status.st_mode);
}
#endif

/* To read. O_NONBLOCK: opening a FIFO would otherwise wait for a writer. It means nothing to a regular file. */
static int tsk__descriptor_open_input(const char *path) {
    int descriptor;
    do descriptor = tsk__descriptor_open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    while (descriptor < 0 && errno == EINTR);
    return descriptor;
}

/* To write and read back. O_EXCL: never somebody else's file, nor through a link that somebody put there. */
static int tsk__descriptor_create(const char *path) {
    int descriptor;
    do descriptor = tsk__descriptor_open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC);
    while (descriptor < 0 && errno == EINTR);
    return descriptor;
}

static int tsk__descriptor_close(int d) { return close(d); }

/* All `size` bytes for reading, or NULL. */
static const void *tsk__descriptor_map(int d, size_t size) {
    void *address = mmap(NULL, size, PROT_READ, MAP_SHARED, d, 0);
    return address == MAP_FAILED ? NULL : address;
}
static void tsk__unmap(const void *address, size_t size) { munmap((void *)(uintptr_t)address, size); }

/* The file of that name loses it, and vanishes when it is closed, whatever happens. */
static int tsk__descriptor_hide(int d, const char *path) {
    (void)d;
    return unlink(path);
}

/* What is there and is no regular file; NULL also where nothing is. */
static const char *tsk__path_obstacle(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 ? tsk__file_obstacle(status.st_mode) : NULL;
}

/* A dangling link counts. */
static int tsk__path_exists(const char *path) {
    struct stat status;
    return lstat(path, &status) == 0;
}

static int tsk__path_remove(const char *path) { return unlink(path); }

/* `from` takes the name `to`, of a file that may be there, in one step. */
static int tsk__path_rename(const char *from, const char *to) { return rename(from, to); }

#define TSK__PATH_SEPARATORS "/"

/* How long the folder's part is, with its separator. */
static size_t tsk__path_folder_length(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) + 1 : 0;
}

#else

static uint64_t tsk__process_number(void) { return GetCurrentProcessId(); }

/* ---- descriptors and paths, Windows: the C library's descriptors over handles of our own opening */

enum { TSK__PATH_ROOM = 4096 }; /* UTF-16 units, as many as Linux has bytes for a path */

/* The reason of the last call, as an errno. */
static void tsk__windows_errno(void) {
    static const struct { DWORD code; int number; } reasons[] = {
        {ERROR_FILE_NOT_FOUND, ENOENT}, {ERROR_PATH_NOT_FOUND, ENOENT}, {ERROR_INVALID_NAME, ENOENT},
        {ERROR_BAD_PATHNAME, ENOENT}, {ERROR_BAD_NETPATH, ENOENT}, {ERROR_BAD_NET_NAME, ENOENT},
        {ERROR_INVALID_DRIVE, ENOENT}, {ERROR_DIRECTORY, ENOTDIR}, {ERROR_ACCESS_DENIED, EACCES},
        {ERROR_SHARING_VIOLATION, EACCES}, {ERROR_LOCK_VIOLATION, EACCES}, {ERROR_WRITE_PROTECT, EROFS},
        {ERROR_FILE_EXISTS, EEXIST}, {ERROR_ALREADY_EXISTS, EEXIST}, {ERROR_TOO_MANY_OPEN_FILES, EMFILE},
        {ERROR_DISK_FULL, ENOSPC}, {ERROR_HANDLE_DISK_FULL, ENOSPC}, {ERROR_NOT_ENOUGH_MEMORY, ENOMEM},
        {ERROR_OUTOFMEMORY, ENOMEM}, {ERROR_FILENAME_EXCED_RANGE, ENAMETOOLONG}};
    const DWORD code = GetLastError();
    size_t i;
    errno = EIO;
    for (i = 0; i < sizeof reasons / sizeof *reasons; i++)
        if (reasons[i].code == code) errno = reasons[i].number;
}

typedef struct tsk__wide_path { wchar_t text[8 + TSK__PATH_ROOM]; } tsk__wide_path; /* in front: room for a prefix */

/* A path in UTF-8 as the system's calls take it: in UTF-16, absolute, and where it is long with the prefix that allows
   more than 260. It lies in *room. NULL: it cannot be one. */
static const wchar_t *tsk__wide_path_of(const char *path, tsk__wide_path *room) {
    wchar_t given[TSK__PATH_ROOM], *c, *full = room->text + 8;
    DWORD length;
    if (!MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, given, TSK__PATH_ROOM)) {
        errno = GetLastError() == ERROR_INSUFFICIENT_BUFFER ? ENAMETOOLONG : EILSEQ;
        return NULL;
    }
    for (c = given; *c; c++)
        if (*c == L'/') *c = L'\\';
    length = GetFullPathNameW(given, TSK__PATH_ROOM, full, NULL);
    if (!length || length >= TSK__PATH_ROOM) {
        errno = length ? ENAMETOOLONG : ENOENT;
        return NULL;
    }
    if (length < 248 || wcsncmp(full, L"\\\\?\\", 4) == 0 || wcsncmp(full, L"\\\\.\\", 4) == 0) return full;
    if (wcsncmp(full, L"\\\\", 2) != 0) return wmemcpy(full - 4, L"\\\\?\\", 4);
    return wmemcpy(full + 1 - 7, L"\\\\?\\UNC", 7);
}

/* Others may do with the file what they like, as they may on POSIX. A folder opens, too, which is found out later. */
static HANDLE tsk__handle_open(const char *path, DWORD access, DWORD how) {
    const DWORD share = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    tsk__wide_path room;
    const wchar_t *wide = tsk__wide_path_of(path, &room);
    HANDLE handle = INVALID_HANDLE_VALUE;
    if (!wide) return handle;
    handle = CreateFileW(wide, access, share, NULL, how, FILE_FLAG_BACKUP_SEMANTICS, NULL);
    if (handle == INVALID_HANDLE_VALUE) tsk__windows_errno();
    return handle;
}

static int tsk__descriptor_of(HANDLE handle) {
    int descriptor;
    if (handle == INVALID_HANDLE_VALUE) return -1;
    descriptor = _open_osfhandle((intptr_t)handle, _O_BINARY | _O_NOINHERIT);
    if (descriptor < 0) CloseHandle(handle);
    return descriptor;
}
static HANDLE tsk__descriptor_handle(int d) { return (HANDLE)_get_osfhandle(d); }

/* The size of a regular file; of anything else, why not. */
static const char *tsk__handle_size(HANDLE handle, uint64_t *size) {
    const DWORD type = GetFileType(handle);
    BY_HANDLE_FILE_INFORMATION status;
    *size = 0;
    if (type == FILE_TYPE_PIPE) return "is a pipe, not a regular file";
    if (type != FILE_TYPE_DISK || !GetFileInformationByHandle(handle, &status)) return "is not a regular file";
    if (status.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY) return "is a directory";
    *size = (uint64_t)status.nFileSizeHigh << 32 | status.nFileSizeLow;
    return NULL;
}
static const char *tsk__descriptor_size(int d, uint64_t *size) {
    return tsk__handle_size(tsk__descriptor_handle(d), size);
}

/* At most 4 GiB. */
static int64_t tsk__descriptor_read(int d, void *to, size_t size, uint64_t offset) {
    OVERLAPPED at;
    DWORD n = 0;
    memset(&at, 0, sizeof at);
    at.Offset = (DWORD)offset;
    at.OffsetHigh = (DWORD)(offset >> 32);
    if (ReadFile(tsk__descriptor_handle(d), to, (DWORD)size, &n, &at)) return n;
    if (GetLastError() == ERROR_HANDLE_EOF) return 0;
    tsk__windows_errno();
    return -1;
}
static int64_t tsk__descriptor_write(int d, const void *from, size_t size, uint64_t offset) {
    OVERLAPPED at;
    DWORD n = 0;
    memset(&at, 0, sizeof at);
    at.Offset = (DWORD)offset;
    at.OffsetHigh = (DWORD)(offset >> 32);
    if (WriteFile(tsk__descriptor_handle(d), from, (DWORD)size, &n, &at)) return n;
    tsk__windows_errno();
    return -1;
}

/* To read. */
static int tsk__descriptor_open_input(const char *path) {
    return tsk__descriptor_of(tsk__handle_open(path, GENERIC_READ, OPEN_EXISTING));
}

static DWORD tsk__path_attributes(const char *path) {
    tsk__wide_path room;
    const wchar_t *wide = tsk__wide_path_of(path, &room);
    DWORD attributes = wide ? GetFileAttributesW(wide) : INVALID_FILE_ATTRIBUTES;
    if (wide && attributes == INVALID_FILE_ATTRIBUTES) tsk__windows_errno();
    return attributes;
}

/* A link that leads nowhere counts, and so does a file that has lost its name but is still open. */
static int tsk__path_exists(const char *path) {
    return tsk__path_attributes(path) != INVALID_FILE_ATTRIBUTES || errno == EACCES;
}

/* To write and read back; never somebody else's file. A name that is taken in such a way is refused as if the folder
   were. */
static int tsk__descriptor_create(const char *path) {
    int d = tsk__descriptor_of(tsk__handle_open(path, GENERIC_READ | GENERIC_WRITE | DELETE, CREATE_NEW));
    if (d < 0 && errno == EACCES) errno = tsk__path_exists(path) ? EEXIST : EACCES;
    return d;
}

static int tsk__descriptor_close(int d) { return _close(d); }

/* All `size` bytes for reading, or NULL. */
static const void *tsk__descriptor_map(int d, size_t size) {
    const void *address;
    HANDLE mapping = CreateFileMappingW(tsk__descriptor_handle(d), NULL, PAGE_READONLY, 0, 0, NULL);
    if (!mapping) return NULL;
    address = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, size);
    CloseHandle(mapping); /* the view keeps it */
    return address;
}
static void tsk__unmap(const void *address, size_t size) {
    (void)size;
    UnmapViewOfFile(address);
}

/* The file vanishes when it is closed, whatever happens. Until then nobody can have its name. */
static int tsk__descriptor_hide(int d, const char *path) {
    FILE_DISPOSITION_INFO disposition;
    (void)path;
    disposition.DeleteFile = TRUE;
    if (SetFileInformationByHandle(tsk__descriptor_handle(d), FileDispositionInfo, &disposition, sizeof disposition))
        return 0;
    tsk__windows_errno();
    return -1;
}

/* What is there and is no regular file; NULL also where nothing is. */
static const char *tsk__path_obstacle(const char *path) {
    uint64_t size;
    HANDLE handle = tsk__handle_open(path, 0, OPEN_EXISTING);
    const char *obstacle = handle == INVALID_HANDLE_VALUE ? NULL : tsk__handle_size(handle, &size);
    if (handle != INVALID_HANDLE_VALUE) CloseHandle(handle);
    return obstacle;
}

static int tsk__path_remove(const char *path) {
    tsk__wide_path room;
    const wchar_t *wide = tsk__wide_path_of(path, &room);
    if (!wide) return -1;
    if (DeleteFileW(wide)) return 0;
    tsk__windows_errno();
    return -1;
}

/* `from` takes the name `to`, of a file that may be there, in one step. */
static int tsk__path_rename(const char *from, const char *to) {
    tsk__wide_path from_room, to_room;
    const wchar_t *wide_from = tsk__wide_path_of(from, &from_room), *wide_to = tsk__wide_path_of(to, &to_room);
    if (!wide_from || !wide_to) return -1;
    if (MoveFileExW(wide_from, wide_to, MOVEFILE_REPLACE_EXISTING)) return 0;
    tsk__windows_errno();
    return -1;
}

#define TSK__PATH_SEPARATORS "/\\"

/* How long the folder's part is, with its separator, or the drive's with its colon. */
static size_t tsk__path_folder_length(const char *path) {
    size_t length = strlen(path);
    while (length && !strchr(TSK__PATH_SEPARATORS, path[length - 1]) && !(length == 2 && path[1] == ':')) length--;
    return length;
}

#endif

/* ---- files: the host's callbacks where given, else descriptors */

typedef struct tsk__file {
    const tsk_file_callbacks *callbacks;  /* NULL: a descriptor */
    void *handle;
    int descriptor;
    uint64_t size;
    const void *map;                      /* the whole file, or NULL */
} tsk__file;

/* On failure nothing is left open. */
static tsk_status tsk__file_open(tsk__file *file, const char *path, const tsk_host *host, tsk_error *error) {
    const char *obstacle;
    memset(file, 0, sizeof *file);
    file->descriptor = -1;
    if (host && host->files) {
        char reason[256] = "";
        tsk_status result =
            host->files->open(host->files->user, path, &file->handle, &file->size, reason, sizeof reason);
        if (result != TSK_OK)
            return tsk__error_set(error, TSK_ERROR_IO, path, TSK_NO_OFFSET, "cannot open '%s': %s",
                                  tsk__error_path(path), reason[0] ? reason : "the host refused");
        file->callbacks = host->files;
        return TSK_OK;
    }
    file->descriptor = tsk__descriptor_open_input(path);
    if (file->descriptor < 0)
        return tsk__error_set(error, TSK_ERROR_IO, path, TSK_NO_OFFSET, "cannot open '%s': %s", tsk__error_path(path),
                              strerror(errno));
    obstacle = tsk__descriptor_size(file->descriptor, &file->size);
    if (obstacle) {
        tsk__descriptor_close(file->descriptor);
        file->descriptor = -1;
        return tsk__error_set(error, TSK_ERROR_IO, path, TSK_NO_OFFSET, "cannot open '%s': it %s",
                              tsk__error_path(path), obstacle);
    }
    return TSK_OK;
}

static void tsk__file_close(tsk__file *file) {
    if (file->callbacks) file->callbacks->close(file->callbacks->user, file->handle);
    else {
        if (file->map) tsk__unmap(file->map, (size_t)file->size);
        if (file->descriptor >= 0) tsk__descriptor_close(file->descriptor);
    }
    memset(file, 0, sizeof *file);
    file->descriptor = -1;
}

/* Whether there is a file of that name; a dangling link counts as one. Every other problem is reported when the file is
   opened. */
static int tsk__file_exists(const char *path, const tsk_host *host) {
    tsk__file file;
    if (!host || !host->files) return tsk__path_exists(path);
    if (tsk__file_open(&file, path, host, NULL) != TSK_OK) return 0;
    tsk__file_close(&file);
    return 1;
}

/* Exactly `size` bytes, or an error that names `path`. */
static tsk_status tsk__file_read(const tsk__file *file, const char *path, uint64_t offset, void *buffer, size_t size,
                                 tsk_error *error) {
    char *to = (char *)buffer;
    size_t done = 0;
    if (offset > file->size || size > file->size - offset)
        return tsk__error_set(error, TSK_ERROR_IO, path, offset,
                              "'%s' ends at byte %llu, before the %llu bytes wanted from %llu", tsk__error_path(path),
                              (unsigned long long)file->size, (unsigned long long)size, (unsigned long long)offset);
    if (file->callbacks) {
        char reason[256] = "";
        if (file->callbacks->read(file->callbacks->user, file->handle, offset, buffer, size, reason, sizeof reason) !=
            TSK_OK)
            return tsk__error_set(error, TSK_ERROR_IO, path, offset, "cannot read '%s': %s", tsk__error_path(path),
                                  reason[0] ? reason : "the host refused");
        return TSK_OK;
    }
    while (done < size) {
        size_t step = size - done < ((size_t)1 << 30) ? size - done : (size_t)1 << 30; /* Linux reads at most 2 GiB a
                                                                                          call */
        int64_t n = tsk__descriptor_read(file->descriptor, to + done, step, offset + done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return tsk__error_set(error, TSK_ERROR_IO, path, offset + done, "cannot read '%s': %s",
                                  tsk__error_path(path), strerror(errno));
        if (n == 0)
            return tsk__error_set(error, TSK_ERROR_IO, path, offset + done, "'%s' was cut short while it was read",
                                  tsk__error_path(path));
        done += (size_t)n;
    }
    return TSK_OK;
}

/* The file's bytes, or NULL where it cannot or should not be mapped (then use tsk__file_read). */
static const void *tsk__file_map(tsk__file *file, const tsk_host *host) {
    if (file->map || (host && host->no_map) || file->size == 0 || file->size > SIZE_MAX) return file->map;
    if (file->callbacks) {
        file->map = file->callbacks->map ? file->callbacks->map(file->callbacks->user, file->handle) : NULL;
    } else file->map = tsk__descriptor_map(file->descriptor, (size_t)file->size);
    return file->map;
}

tsk_status tsk_read_file(const char *path, size_t max_size, const tsk_host *host, tsk_text *out, tsk_error *error) {
    tsk__file file;
    tsk_status status;
    if (!path) return tsk__error_null(error, "tsk_read_file", "path");
    if (!out) return tsk__error_null(error, "tsk_read_file", "out");
    status = tsk__file_open(&file, path, host, error);
    if (status != TSK_OK) return status;
    if (file.size > max_size)
        status = tsk__error_set(error, TSK_ERROR_IO, path, TSK_NO_OFFSET,
                                "'%s' has %llu bytes, more than the %llu allowed here", tsk__error_path(path),
                                (unsigned long long)file.size, (unsigned long long)max_size);
    else if (file.size >= SIZE_MAX - out->length - 1 ||
             !tsk__memory_reserve(out->allocator, &out->data, &out->capacity, out->length + (size_t)file.size + 1, 1))
        status = tsk__error_memory(error, path, file.size);
    else {
        status = tsk__file_read(&file, path, 0, out->data + out->length, (size_t)file.size, error);
        if (status == TSK_OK) out->length += (size_t)file.size;
        out->data[out->length] = 0;
    }
    tsk__file_close(&file);
    return status;
}

/* ---- a file that appears whole or not at all
   Everything goes to a temporary file in the same folder, which takes the real name in one step at the end. */

typedef struct tsk__output {
    const tsk_allocator *allocator;
    char *path, *temporary;   /* temporary is "" once that name is gone */
    int descriptor;
} tsk__output;

static tsk_status tsk__output_fail(const tsk__output *output, tsk_error *error, const char *reason) {
    return tsk__error_set(error, TSK_ERROR_IO, output->path, TSK_NO_OFFSET, "cannot write '%s': %s",
                          tsk__error_path(output->path), reason);
}

/* Closes, and removes the temporary file. Harmless on one that is zeroed but for its descriptor of -1. */
static void tsk__output_abandon(tsk__output *output) {
    if (output->descriptor >= 0) tsk__descriptor_close(output->descriptor);
    if (output->descriptor >= 0 && output->temporary[0]) tsk__path_remove(output->temporary);
    tsk__memory_delete(output->allocator, output->temporary);
    tsk__memory_delete(output->allocator, output->path);
    memset(output, 0, sizeof *output);
    output->descriptor = -1;
}

/* Why `path` cannot be had, or NULL. Renaming over a folder fails only at the end, and over a device (/dev/null) works
   but should not. */
static const char *tsk__output_obstacle(const char *path) {
    return path[0] ? tsk__path_obstacle(path) : "the path is empty";
}

static int tsk__output_create(char *temporary, size_t size, int folder_length, const char *path) {
    int attempt, descriptor = -1;
    for (attempt = 0; attempt < 1000 && descriptor < 0; attempt++) {
        snprintf(temporary, size, "%.*s.tokenskip-%lu-%d.tmp", folder_length, path,
                 (unsigned long)tsk__process_number(), attempt);
        descriptor = tsk__descriptor_create(temporary);
        if (descriptor < 0 && errno != EEXIST) break;
    }
    return descriptor;
}

static tsk_status tsk__output_open(tsk__output *output, const char *path, const tsk_allocator *allocator,
                                   tsk_error *error) {
    const char *obstacle = tsk__output_obstacle(path);
    size_t folder_length = tsk__path_folder_length(path), size = folder_length + 64;
    tsk_status status = TSK_OK;
    memset(output, 0, sizeof *output);
    output->allocator = allocator;
    output->descriptor = -1;
    output->path = tsk__memory_copy_string(allocator, path);
    output->temporary = (char *)tsk__memory_new(allocator, size, 1);
    if (!output->path || !output->temporary) status = tsk__error_memory(error, "a path", size);
    else if (obstacle) status = tsk__output_fail(output, error, obstacle);
    else {
        output->descriptor = tsk__output_create(output->temporary, size, (int)folder_length, path);
        if (output->descriptor < 0) status = tsk__output_fail(output, error, strerror(errno));
    }
    if (status != TSK_OK) tsk__output_abandon(output);
    return status;
}

static tsk_status tsk__output_write(const tsk__output *output, uint64_t offset, const void *bytes, size_t size,
                                    tsk_error *error) {
    const char *from = (const char *)bytes;
    size_t done = 0;
    while (done < size) {
        size_t step = size - done < ((size_t)1 << 30) ? size - done : (size_t)1 << 30;
        int64_t n = tsk__descriptor_write(output->descriptor, from + done, step, offset + done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return tsk__output_fail(output, error, n < 0 ? strerror(errno) : "nothing could be written");
        done += (size_t)n;
    }
    return TSK_OK;
}

/* Bytes of the output so far, back from it. How many of `size` could be had; negative on an error. */
static int64_t tsk__output_read(const tsk__output *output, uint64_t offset, void *buffer, size_t size) {
    int64_t n;
    do n = tsk__descriptor_read(output->descriptor, buffer, size, offset);
    while (n < 0 && errno == EINTR);
    return n;
}

/* From now on the output has no name: it vanishes with the process, whatever happens. */
static tsk_status tsk__output_hide(tsk__output *output, tsk_error *error) {
    if (tsk__descriptor_hide(output->descriptor, output->temporary) != 0)
        return tsk__output_fail(output, error, strerror(errno));
    output->temporary[0] = 0;
    return TSK_OK;
}

/* The file takes its name. Frees the output, whether or not it works. Some file systems tell of a full disk in
   close. */
static tsk_status tsk__output_commit(tsk__output *output, tsk_error *error) {
    int descriptor = output->descriptor;
    tsk_status status = TSK_OK;
    output->descriptor = -1;
    if (tsk__descriptor_close(descriptor) != 0 || tsk__path_rename(output->temporary, output->path) != 0) {
        status = tsk__output_fail(output, error, strerror(errno));
        tsk__path_remove(output->temporary);
    }
    tsk__output_abandon(output);
    return status;
}

/* What a file with these first bytes is, where it is something that people often have in a model file's place: a text
   that follows "it is" and says what to do. NULL: none of those. */
static const char *tsk__file_recognise(const void *bytes, size_t size) {
    static const struct { const char *magic; size_t length; const char *what; } kinds[] = {
        {"version https://git-lfs.github.com/spec/", 40,
         "a Git LFS pointer in the file's place: run `git lfs pull` in its folder"},
        {"GGUF", 4, "a GGUF file, which is not supported: use the safetensors folder that it was made from"},
        {"PK\3\4", 4,
         "a zip archive, as PyTorch's .bin and .pt files are: use the model's safetensors files, or convert it"},
        {"PK\5\6", 4, "an empty zip archive"},
        {"\x1f\x8b\x08", 3, "compressed with gzip: decompress it first"},
        {"\x28\xb5\x2f\xfd", 4, "compressed with zstd: decompress it first"},
        {"\xfd" "7zXZ", 5, "compressed with xz: decompress it first"},
        {"BZh", 3, "compressed with bzip2: decompress it first"},
        {"\x89HDF\r\n\x1a\n", 8, "an HDF5 file, as Keras writes them: use the model's safetensors files"},
        {"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16, "zero bytes, as an unfinished download leaves them: download it again"}};
    static const char pickle[] = "\x8a\x95}](c"; /* what follows a pickle's version: a frame, or a value's kind */
    const unsigned char *text = (const unsigned char *)bytes;
    size_t i;
    for (i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (size >= kinds[i].length && memcmp(bytes, kinds[i].magic, kinds[i].length) == 0) return kinds[i].what;
    if (size > 2 && text[0] == 0x80 && text[1] >= 2 && text[1] <= 5 && text[2] && strchr(pickle, (char)text[2]))
        return "a Python pickle, as old PyTorch files are: use the model's safetensors files, or convert it";
    for (i = 0; i < size && (text[i] == ' ' || (text[i] >= '\t' && text[i] <= '\r')); i++) {
    }
    if (i == size || text[i] != '<') return NULL;
    return "an HTML or XML page, as a server sends in a file's place: download it again";
}

#ifndef _WIN32

/* ---- time, POSIX */

static double tsk__time_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

/* ---- memory, POSIX
   Bytes that the system has, and those that it says it could still give, caches that it would drop included; UINT64_MAX
   where it does not say. */

#ifdef __linux__
/* A line of the system's account of its memory. */
static uint64_t tsk__memory_line(const char *name) {
    unsigned long long kilobytes = 0;
    char line[128];
    size_t length = strlen(name);
    int found = 0;
    FILE *file = fopen("/proc/meminfo", "r");
    while (file && !found && fgets(line, sizeof line, file))
        found = strncmp(line, name, length) == 0 && sscanf(line + length, ": %llu", &kilobytes) == 1;
    if (file) fclose(file);
    return found ? (uint64_t)kilobytes * 1024 : UINT64_MAX;
}
static uint64_t tsk__memory_available(void) { return tsk__memory_line("MemAvailable"); }
static uint64_t tsk__memory_total(void) { return tsk__memory_line("MemTotal"); }
#else
static uint64_t tsk__memory_available(void) { return UINT64_MAX; }
static uint64_t tsk__memory_total(void) {
    const long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    return pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size : UINT64_MAX;
}
#endif

/* ---- numbers that nobody outside knows, POSIX */

#ifdef __linux__
static int tsk__random_bytes(void *out, size_t size) { return getrandom(out, size, GRND_NONBLOCK) == (ssize_t)size; }
#else
static int tsk__random_bytes(void *out, size_t size) { return getentropy(out, size) == 0; } /* at most 256 */
#endif

/* ---- threads, locks and conditions, POSIX */

typedef pthread_mutex_t tsk__mutex;
typedef pthread_cond_t tsk__condition;
typedef pthread_t tsk__thread;

static void tsk__mutex_create(tsk__mutex *m) { pthread_mutex_init(m, NULL); }
static void tsk__mutex_destroy(tsk__mutex *m) { pthread_mutex_destroy(m); }
static void tsk__mutex_lock(tsk__mutex *m) { pthread_mutex_lock(m); }
static int tsk__mutex_try(tsk__mutex *m) { return pthread_mutex_trylock(m) == 0; }
static void tsk__mutex_unlock(tsk__mutex *m) { pthread_mutex_unlock(m); }

static struct timespec tsk__timespec_of(double milliseconds) {
    struct timespec time;
    time.tv_sec = (time_t)(milliseconds / 1e3);
    time.tv_nsec = (long)((milliseconds - (double)time.tv_sec * 1e3) * 1e6);
    return time;
}

/* tsk__condition_wait_until: may wake for no reason, as may tsk__condition_wait. 0 when `deadline`, by the clock of
   tsk__time_ms, has passed. */
#ifdef __linux__
static void tsk__condition_create(tsk__condition *c) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(c, &attributes);
    pthread_condattr_destroy(&attributes);
}
static int tsk__condition_wait_until(tsk__condition *c, tsk__mutex *m, double deadline) {
    const struct timespec until = tsk__timespec_of(deadline);
    return pthread_cond_timedwait(c, m, &until) != ETIMEDOUT;
}
#else
/* (declared by pthread.h only where POSIX alone was not asked for) */
extern int pthread_cond_timedwait_relative_np(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *time);
static void tsk__condition_create(tsk__condition *c) { pthread_cond_init(c, NULL); }
static int tsk__condition_wait_until(tsk__condition *c, tsk__mutex *m, double deadline) {
    const double left = deadline - tsk__time_ms();
    const struct timespec time = tsk__timespec_of(left > 0 ? left : 0);
    return pthread_cond_timedwait_relative_np(c, m, &time) != ETIMEDOUT;
}
#endif
static void tsk__condition_destroy(tsk__condition *c) { pthread_cond_destroy(c); }
static void tsk__condition_wait(tsk__condition *c, tsk__mutex *m) { pthread_cond_wait(c, m); }
static void tsk__condition_wake_all(tsk__condition *c) { pthread_cond_broadcast(c); }

/* *t stays where it is until the thread is joined. 0 where the system refuses one. */
static int tsk__thread_start(tsk__thread *t, void *(*run)(void *context), void *context) {
    return pthread_create(t, NULL, run, context) == 0;
}
static void tsk__thread_join(tsk__thread t) { pthread_join(t, NULL); }
static void tsk__thread_yield(void) { sched_yield(); }

static int tsk__processors_online(void) {
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 1 << 16 ? 1 << 16 : (int)n;
}

#else

/* ---- time, Windows */

static double tsk__time_ms(void) {
    LARGE_INTEGER now, frequency;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&frequency);
    return (double)now.QuadPart * 1e3 / (double)frequency.QuadPart;
}

/* ---- memory, Windows */

static MEMORYSTATUSEX tsk__memory_status(void) {
    MEMORYSTATUSEX status;
    memset(&status, 0, sizeof status);
    status.dwLength = sizeof status;
    if (!GlobalMemoryStatusEx(&status)) status.ullTotalPhys = status.ullAvailPhys = UINT64_MAX;
    return status;
}
static uint64_t tsk__memory_available(void) { return tsk__memory_status().ullAvailPhys; }
static uint64_t tsk__memory_total(void) { return tsk__memory_status().ullTotalPhys; }

/* ---- numbers that nobody outside knows, Windows: RtlGenRandom, which advapi32 has under this name */

extern BOOLEAN NTAPI SystemFunction036(PVOID out, ULONG size);
static int tsk__random_bytes(void *out, size_t size) { return SystemFunction036(out, (ULONG)size) != 0; }

/* ---- threads, locks and conditions, Windows */

typedef SRWLOCK tsk__mutex;
typedef CONDITION_VARIABLE tsk__condition;
typedef struct tsk__thread {
    HANDLE handle;
    void *(*run)(void *context);
    void *context;
} tsk__thread;

static void tsk__mutex_create(tsk__mutex *m) { InitializeSRWLock(m); }
static void tsk__mutex_destroy(tsk__mutex *m) { (void)m; }
static void tsk__mutex_lock(tsk__mutex *m) { AcquireSRWLockExclusive(m); }
static int tsk__mutex_try(tsk__mutex *m) { return TryAcquireSRWLockExclusive(m) != 0; }
static void tsk__mutex_unlock(tsk__mutex *m) { ReleaseSRWLockExclusive(m); }

static void tsk__condition_create(tsk__condition *c) { InitializeConditionVariable(c); }
static void tsk__condition_destroy(tsk__condition *c) { (void)c; }
/* May wake for no reason, as may the next. */
static void tsk__condition_wait(tsk__condition *c, tsk__mutex *m) { SleepConditionVariableSRW(c, m, INFINITE, 0); }
/* The same until `deadline`, by the clock of tsk__time_ms; 0 when that has passed. Rounded up: a wait of 0 is none. */
static int tsk__condition_wait_until(tsk__condition *c, tsk__mutex *m, double deadline) {
    const double left = deadline - tsk__time_ms(), most = 1e9;
    const DWORD milliseconds = left <= 0 ? 0 : (DWORD)((left < most ? left : most) + 1);
    if (SleepConditionVariableSRW(c, m, milliseconds, 0)) return 1;
    return tsk__time_ms() < deadline;
}
static void tsk__condition_wake_all(tsk__condition *c) { WakeAllConditionVariable(c); }

static unsigned __stdcall tsk__thread_main(void *thread) {
    const tsk__thread *t = (const tsk__thread *)thread;
    t->run(t->context);
    return 0;
}
/* *t stays where it is until the thread is joined. 0 where the system refuses one. */
static int tsk__thread_start(tsk__thread *t, void *(*run)(void *context), void *context) {
    t->run = run;
    t->context = context;
    t->handle = (HANDLE)_beginthreadex(NULL, 0, tsk__thread_main, t, 0, NULL);
    return t->handle != NULL;
}
static void tsk__thread_join(tsk__thread t) {
    WaitForSingleObject(t.handle, INFINITE);
    CloseHandle(t.handle);
}
static void tsk__thread_yield(void) { SwitchToThread(); }

/* Of the process's group, which has 64 at most: a thread runs on no others unless it asks for them. */
static int tsk__processors_online(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return (int)info.dwNumberOfProcessors;
}

#endif

static int tsk__processors(void) {
    const int n = tsk__processors_online();
    return n < 1 ? 1 : n;
}

/* Where the system has no random numbers to give, the clock and the process are the next best. */
static void tsk__random_numbers(uint64_t *out, size_t count) {
    uint64_t now;
    size_t i;
    if (tsk__random_bytes(out, count * sizeof *out)) return;
    now = (uint64_t)(tsk__time_ms() * 1e6);
    for (i = 0; i < count; i++)
        out[i] = (now << 32 ^ now >> 32 ^ tsk__process_number() << 40 ^ (uint64_t)(uintptr_t)out) *
                 (2 * i + UINT64_C(0x9e3779b97f4a7c15));
}

/* ---- the processor */

#if defined(__x86_64__) && defined(__GNUC__)
#define TSK__PLATFORM_X86 1
#else
#define TSK__PLATFORM_X86 0
#endif
#if defined(__aarch64__) && defined(__GNUC__)
#define TSK__PLATFORM_ARM 1
#else
#define TSK__PLATFORM_ARM 0
#endif

#if TSK__PLATFORM_X86
/* What the processor has and the operating system saves: bit 1 AVX2 + FMA + F16C, bit 2 AVX-512F as well. */
static int tsk__processor_features(void) {
    uint32_t a, b, c, d, low, high;
    const uint32_t fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29,
                   wanted = fma | osxsave | avx | f16c;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & wanted) != wanted) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0x6) != 0x6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & 1u << 5)) return 0;
    return (low & 0xe0) == 0xe0 && (b & 1u << 16) ? 3 : 1;
}
#elif TSK__PLATFORM_ARM
/* Bit 1 NEON, bit 2 its dot products of int8 (for kernels of quantised weights, when there are any). */
static int tsk__processor_features(void) {
#ifdef __linux__
    const unsigned long has = getauxval(AT_HWCAP);
    return (has & HWCAP_ASIMD ? 1 : 0) | (has & HWCAP_ASIMDDP ? 2 : 0);
#else
    return 3; /* every processor of Apple's has both */
#endif
}
#endif

/* ---- what only a backend on a GPU asks of the system */

#ifndef TOKENSKIP_NO_CUDA
#ifndef _WIN32

static void tsk__thread_sleep(int milliseconds) {
    struct timespec pause;
    pause.tv_sec = milliseconds / 1000;
    pause.tv_nsec = milliseconds % 1000 * 1000000L;
    nanosleep(&pause, NULL);
}

/* DIR/tokenskip in the user's folder for caches, or 0 where there is none. */
static int tsk__cache_folder(char *out, size_t size) {
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int length = 0;
    if (xdg && xdg[0] == '/') length = snprintf(out, size, "%s/tokenskip", xdg);
    else if (home && home[0] == '/') length = snprintf(out, size, "%s/.cache/tokenskip", home);
    return length > 0 && (size_t)length < size;
}

/* For this user alone. 0 where it could not be made and is not there. */
static int tsk__make_folder(const char *path) { return mkdir(path, 0700) == 0 || errno == EEXIST; }

#ifdef TOKENSKIP_CUDA_DLOPEN
static void *tsk__library_open(const char *name) { return dlopen(name, RTLD_NOW | RTLD_LOCAL); }
static void *tsk__library_find(void *library, const char *name) { return dlsym(library, name); }
#endif

#else

static void tsk__thread_sleep(int milliseconds) { Sleep((DWORD)milliseconds); }

/* DIR\tokenskip in the user's folder for what belongs to this machine, or 0 where there is none. */
static int tsk__cache_folder(char *out, size_t size) {
    static const char name[] = "\\tokenskip";
    wchar_t folder[TSK__PATH_ROOM];
    const DWORD n = GetEnvironmentVariableW(L"LOCALAPPDATA", folder, TSK__PATH_ROOM);
    int length;
    if (!n || n >= TSK__PATH_ROOM) return 0;
    length = WideCharToMultiByte(CP_UTF8, 0, folder, (int)n, out, (int)size, NULL, NULL);
    if (length <= 0 || (size_t)length + sizeof name > size) return 0;
    memcpy(out + length, name, sizeof name);
    return 1;
}

/* It belongs to whom the folder belongs that it lies in. 0 where it could not be made and is not there. */
static int tsk__make_folder(const char *path) {
    tsk__wide_path room;
    const wchar_t *wide = tsk__wide_path_of(path, &room);
    return wide && (CreateDirectoryW(wide, NULL) || GetLastError() == ERROR_ALREADY_EXISTS);
}

#ifdef TOKENSKIP_CUDA_DLOPEN
/* In the system's folder and the program's, then in those of PATH, where CUDA's installer puts its own; never in the
   current folder. Its own libraries are looked for beside it. */
static void *tsk__library_open(const char *name) {
    wchar_t wide[64], path[MAX_PATH], folders[1 << 15]; /* PATH's own limit */
    HMODULE library;
    DWORD n;
    if (!MultiByteToWideChar(CP_UTF8, 0, name, -1, wide, 64)) return NULL;
    library = LoadLibraryExW(wide, NULL, LOAD_LIBRARY_SEARCH_DEFAULT_DIRS);
    if (library) return (void *)library;
    n = GetEnvironmentVariableW(L"PATH", folders, 1 << 15);
    if (!n || n >= 1 << 15) return NULL;
    n = SearchPathW(folders, wide, NULL, MAX_PATH, path, NULL);
    if (!n || n >= MAX_PATH) return NULL;
    return (void *)LoadLibraryExW(path, NULL, LOAD_WITH_ALTERED_SEARCH_PATH);
}
static void *tsk__library_find(void *library, const char *name) {
    return (void *)(uintptr_t)GetProcAddress((HMODULE)library, name);
}
#endif

#endif

/* The folder, and those that it lies in, are there, or are made. `path` is the same after it. */
static int tsk__make_folders(char *path) {
    size_t i;
    for (i = 1; path[0] && path[i]; i++) {
        const char separator = path[i];
        if (!strchr(TSK__PATH_SEPARATORS, separator)) continue;
        path[i] = 0;
        tsk__make_folder(path);
        path[i] = separator;
    }
    return tsk__make_folder(path);
}
#endif

// >>pool ==============================================================================================================
/* Worker threads. One pool a model. A parallel section hands out numbered tasks; which thread runs which never changes
   a result, so a section that finds the pool busy with another session's work simply runs on its own thread. Sections
   of a small model last some 20 microseconds, less than waking a thread: workers therefore spin a little before they
   sleep. `ticket` holds (generation:16, count:24, next:24) so that one atomic says which section a claimed task belongs
   to; its function and context cannot change before that task is done. */

typedef void (*tsk__task)(void *context, int task);

#define TSK__POOL_MAX_THREADS 256
#define TSK__POOL_MAX_TASKS 0xffffff
#define TSK__POOL_SPINS 4000

typedef struct tsk__pool {
    int n_threads;             /* the calling thread included */
    int n_started;
    uint64_t process;           /* whose threads they are: after a fork the child has none of them */
    int stop;
    uint64_t ticket __attribute__((aligned(8))); /* (which it is not everywhere by itself) */
    int done;
    int n_sleeping;
    tsk__task run;
    void *context;
    tsk__mutex section;   /* held by the thread whose section runs */
    tsk__mutex sleep;
    tsk__condition wake;
    tsk__thread threads[TSK__POOL_MAX_THREADS];
} tsk__pool;

static void tsk__pool_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Runs one task of the current section; 0 when none is left. */
static int tsk__pool_run_one(tsk__pool *pool) {
    uint64_t ticket = __atomic_load_n(&pool->ticket, __ATOMIC_ACQUIRE);
    for (;;) {
        int next = (int)(ticket & TSK__POOL_MAX_TASKS), count = (int)(ticket >> 24 & TSK__POOL_MAX_TASKS);
        if (next >= count) return 0;
        if (__atomic_compare_exchange_n(&pool->ticket, &ticket, ticket + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
            pool->run(pool->context, next);
            __atomic_add_fetch(&pool->done, 1, __ATOMIC_RELEASE);
            return 1;
        }
    }
}

static int tsk__pool_has_work(const tsk__pool *pool) {
    uint64_t ticket = __atomic_load_n(&pool->ticket, __ATOMIC_SEQ_CST);
    return (ticket & TSK__POOL_MAX_TASKS) < (ticket >> 24 & TSK__POOL_MAX_TASKS);
}

static void *tsk__pool_worker(void *argument) {
    tsk__pool *pool = (tsk__pool *)argument;
    while (!__atomic_load_n(&pool->stop, __ATOMIC_ACQUIRE)) {
        int spin;
        while (tsk__pool_run_one(pool)) {
        }
        for (spin = 0; spin < TSK__POOL_SPINS && !tsk__pool_has_work(pool); spin++) tsk__pool_pause();
        if (spin < TSK__POOL_SPINS) continue;
        tsk__mutex_lock(&pool->sleep);
        __atomic_add_fetch(&pool->n_sleeping, 1, __ATOMIC_SEQ_CST);
        while (!tsk__pool_has_work(pool) && !__atomic_load_n(&pool->stop, __ATOMIC_ACQUIRE))
            tsk__condition_wait(&pool->wake, &pool->sleep);
        __atomic_sub_fetch(&pool->n_sleeping, 1, __ATOMIC_SEQ_CST);
        tsk__mutex_unlock(&pool->sleep);
    }
    return NULL;
}

static void tsk__pool_wake(tsk__pool *pool) {
    if (__atomic_load_n(&pool->n_sleeping, __ATOMIC_SEQ_CST) == 0) return;
    tsk__mutex_lock(&pool->sleep);
    tsk__condition_wake_all(&pool->wake);
    tsk__mutex_unlock(&pool->sleep);
}

/* Whether the workers live in this process. A forked child has no worker threads, and the locks may stay held for
   ever. */
static int tsk__pool_is_here(const tsk__pool *pool) { return pool->process == tsk__process_number(); }

/* Runs run(context, 0 .. n_tasks-1), returns when all are done. `pool` may be NULL. */
static void tsk__parallel(tsk__pool *pool, int n_tasks, tsk__task run, void *context) {
    uint64_t ticket;
    int task;
    if (!pool || pool->n_started == 0 || n_tasks < 2 || !tsk__pool_is_here(pool) || n_tasks > TSK__POOL_MAX_TASKS ||
        !tsk__mutex_try(&pool->section)) {
        for (task = 0; task < n_tasks; task++) run(context, task);
        return;
    }
    pool->run = run;
    pool->context = context;
    __atomic_store_n(&pool->done, 0, __ATOMIC_RELAXED);
    ticket = __atomic_load_n(&pool->ticket, __ATOMIC_RELAXED);
    __atomic_store_n(&pool->ticket, ((ticket >> 48) + 1) << 48 | (uint64_t)n_tasks << 24, __ATOMIC_SEQ_CST);
    tsk__pool_wake(pool);
    while (tsk__pool_run_one(pool)) {
    }
    for (task = 0; __atomic_load_n(&pool->done, __ATOMIC_ACQUIRE) < n_tasks; task++) {
        if (task < TSK__POOL_SPINS) tsk__pool_pause();
        else tsk__thread_yield();
    }
    tsk__mutex_unlock(&pool->section);
}

/* n_threads 0: one a processor. A system that refuses a thread leaves fewer, which is no error. NULL: out of memory. */
static tsk__pool *tsk__pool_create(const tsk_allocator *allocator, int n_threads) {
    tsk__pool *pool = (tsk__pool *)tsk__memory_new_zeroed(allocator, 1, sizeof *pool);
    if (!pool) return NULL;
    if (n_threads <= 0) n_threads = tsk__processors();
    if (n_threads > TSK__POOL_MAX_THREADS) n_threads = TSK__POOL_MAX_THREADS;
    pool->process = tsk__process_number();
    tsk__mutex_create(&pool->section);
    tsk__mutex_create(&pool->sleep);
    tsk__condition_create(&pool->wake);
    while (pool->n_started < n_threads - 1 &&
           tsk__thread_start(&pool->threads[pool->n_started], tsk__pool_worker, pool))
        pool->n_started++;
    pool->n_threads = pool->n_started + 1;
    return pool;
}

static void tsk__pool_destroy(const tsk_allocator *allocator, tsk__pool *pool) {
    int i;
    if (!pool) return;
    if (!tsk__pool_is_here(pool)) {
        tsk__memory_delete(allocator, pool);
        return;
    }
    tsk__mutex_lock(&pool->sleep);
    __atomic_store_n(&pool->stop, 1, __ATOMIC_RELEASE);
    tsk__condition_wake_all(&pool->wake);
    tsk__mutex_unlock(&pool->sleep);
    for (i = 0; i < pool->n_started; i++) tsk__thread_join(pool->threads[i]);
    tsk__condition_destroy(&pool->wake);
    tsk__mutex_destroy(&pool->sleep);
    tsk__mutex_destroy(&pool->section);
    tsk__memory_delete(allocator, pool);
}

// >>hash ==============================================================================================================
/* Hash tables for strings from untrusted files. Whoever writes a file could choose strings that a known hash function
   puts into one place; the time to load would then grow with the square of the file's size. So the hash has a secret
   random key. No result depends on the key. */

typedef struct tsk__hash_key {
    uint64_t a, b;
} tsk__hash_key;

static tsk__hash_key tsk__hash_key_new(void) {
    tsk__hash_key key;
    uint64_t numbers[2];
    tsk__random_numbers(numbers, 2);
    key.a = numbers[0];
    key.b = numbers[1];
    return key;
}

static uint64_t tsk__hash_rotate(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

static void tsk__hash_round(uint64_t v[4]) {
    v[0] += v[1], v[2] += v[3];
    v[1] = tsk__hash_rotate(v[1], 13) ^ v[0], v[3] = tsk__hash_rotate(v[3], 16) ^ v[2];
    v[0] = tsk__hash_rotate(v[0], 32);
    v[2] += v[1], v[0] += v[3];
    v[1] = tsk__hash_rotate(v[1], 17) ^ v[2], v[3] = tsk__hash_rotate(v[3], 21) ^ v[0];
    v[2] = tsk__hash_rotate(v[2], 32);
}

/* SipHash with one round a word and three at the end (J.-P. Aumasson and D. J. Bernstein, "SipHash: a fast short-input
   PRF", 2012). Words are read as the machine has them: the value stays in this process. */
static uint64_t tsk__hash(tsk__hash_key key, const void *bytes, size_t size) {
    const char *from = (const char *)bytes;
    uint64_t v[4], word, last = (uint64_t)size << 56;
    size_t left = size;
    v[0] = key.a ^ UINT64_C(0x736f6d6570736575), v[1] = key.b ^ UINT64_C(0x646f72616e646f6d);
    v[2] = key.a ^ UINT64_C(0x6c7967656e657261), v[3] = key.b ^ UINT64_C(0x7465646279746573);
    for (; left >= 8; left -= 8, from += 8) {
        memcpy(&word, from, 8);
        v[3] ^= word;
        tsk__hash_round(v);
        v[0] ^= word;
    }
    while (left--) last ^= (uint64_t)(unsigned char)from[left] << 8 * left;
    v[3] ^= last;
    tsk__hash_round(v);
    v[0] ^= last;
    v[2] ^= 0xff;
    tsk__hash_round(v);
    tsk__hash_round(v);
    tsk__hash_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

// >>number ============================================================================================================
/* The floating-point formats that weights and activations are stored in, as f32 and back. */

static float tsk__float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Subnormals and infinities included. */
static float tsk__float_from_half(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, rest = half & 0x7fffu;
    float value;
    if (rest >= 0x7c00u) return tsk__float_from_bits(sign | 0x7f800000u | rest << 13);
    value = tsk__float_from_bits(rest << 13) * 5.192296858534828e33f; /* 2^112: the exponents' biases differ */
    return sign ? -value : value;
}

static float tsk__float_from_bf16(uint16_t bf16) { return tsk__float_from_bits((uint32_t)bf16 << 16); }

/* To the nearest, ties to even; no NaN. */
static uint16_t tsk__bf16_from_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* to[count] from as many values of type F32, F16 or BF16 at any address, which may be the last bytes of `to` itself. */
static void tsk__floats_from(tsk_dtype dtype, const void *from, uint64_t count, float *to) {
    const char *bytes = (const char *)from;
    uint16_t bits;
    uint64_t i;
    if (dtype == TSK_DTYPE_F32) memmove(to, from, (size_t)count * sizeof *to);
    else if (dtype == TSK_DTYPE_BF16)
        for (i = 0; i < count; i++, bytes += 2) memcpy(&bits, bytes, 2), to[i] = tsk__float_from_bf16(bits);
    else
        for (i = 0; i < count; i++, bytes += 2) memcpy(&bits, bytes, 2), to[i] = tsk__float_from_half(bits);
}

// >>json ==============================================================================================================
/* tokenizer.json has hundreds of thousands of values and comes from strangers. A document is therefore two blocks: its
   own copy of the text, in which strings are decoded in place (an escape is never shorter than what it stands for), and
   one array of 24-byte values in the order of the text, each with the index of its next sibling. No function recurses:
   while a container is open, `next` holds its parent's index. A number is kept as text and converted when it is asked
   for. */

struct tsk_json_value {
    uint32_t start;       /* of its first byte in the text, which tells the type */
    uint32_t length;      /* bytes of a string (decoded) or number; elements or members of a container */
    uint32_t key;         /* where the member name's bytes start; 0 outside objects (a name never starts at 0) */
    uint32_t key_length;
    uint32_t next;        /* index of the next sibling, 0 for none; of the parent while a container is open */
    uint32_t index;       /* its own: it leads to element 0, which is no value but holds the text's address */
};

struct tsk_json {
    const tsk_allocator *allocator;
    char *text;              /* NUL-terminated */
    tsk_json_value *values;  /* [count]; the root is number 1 */
    size_t count, capacity;
};

static const char *tsk__json_text(const tsk_json_value *value) {
    const char *text;
    memcpy(&text, value - value->index, sizeof text);
    return text;
}

/* ---- text */

/* The UTF-8 sequence at s, of which `left` > 0 bytes are there: its length, or, when it is not valid, how many bytes
   one U+FFFD stands for (Unicode's "maximal subpart"). Overlong forms, surrogates and beyond U+10FFFF are not valid. */
static size_t tsk__json_utf8(const char *text, size_t left, int *valid) {
    const unsigned char *s = (const unsigned char *)text;
    unsigned low = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
    unsigned high = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
    size_t i, n = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    *valid = s[0] < 0x80;
    if (s[0] < 0xc2 || s[0] > 0xf4) return 1;
    for (i = 1; i < n; i++) {
        if (i >= left || s[i] < low || s[i] > high) return i;
        low = 0x80;
        high = 0xbf;
    }
    *valid = 1;
    return n;
}

static char *tsk__json_put_utf8(char *to, uint32_t c) {
    if (c < 0x80) *to++ = (char)c;
    else if (c < 0x800) *to++ = (char)(0xc0 | c >> 6);
    else if (c < 0x10000) *to++ = (char)(0xe0 | c >> 12);
    else *to++ = (char)(0xf0 | c >> 18);
    if (c >= 0x10000) *to++ = (char)(0x80 | (c >> 12 & 0x3f));
    if (c >= 0x800) *to++ = (char)(0x80 | (c >> 6 & 0x3f));
    if (c >= 0x80) *to++ = (char)(0x80 | (c & 0x3f));
    return to;
}

/* ---- parsing */

typedef struct tsk__json_parser {
    const char *original;    /* the caller's text, for line numbers: decoding writes newlines into the copy */
    size_t size;
    const char *name;        /* may be NULL */
    tsk_error *error;
    tsk_json *document;
    char *text;              /* the copy: reading stops at its NUL, so few places check the size */
    size_t at;
    uint32_t parent, previous; /* the open container and the last value in it, 0 for none */
    int depth;
} tsk__json_parser;

static tsk_status tsk__json_fail(const tsk__json_parser *parser, size_t at, const char *what) {
    size_t i, line = 1, column = 1;
    const char *quote = parser->name ? "'" : "";
    for (i = 0; i < at; i++) {
        if (parser->original[i] == '\n') line++, column = 1;
        else if ((parser->original[i] & 0xc0) != 0x80) column++;
    }
    return tsk__error_set(parser->error, TSK_ERROR_JSON, parser->name, at, "%s%s%s%sline %llu, column %llu: %s", quote,
                          parser->name ? tsk__error_path(parser->name) : "", quote, parser->name ? ", " : "",
                          (unsigned long long)line, (unsigned long long)column, what);
}

static tsk_status tsk__json_expected(const tsk__json_parser *parser, size_t at, const char *what) {
    char message[128];
    unsigned char found = at < parser->size ? (unsigned char)parser->original[at] : 0;
    if (at >= parser->size) snprintf(message, sizeof message, "expected %s, found the end of the text", what);
    else if (found > 0x20 && found < 0x7f) snprintf(message, sizeof message, "expected %s, found '%c'", what, found);
    else snprintf(message, sizeof message, "expected %s, found byte 0x%02X", what, found);
    return tsk__json_fail(parser, at, message);
}

static void tsk__json_skip_space(tsk__json_parser *parser) {
    const char *text = parser->text;
    size_t at = parser->at;
    while (text[at] == ' ' || text[at] == '\n' || text[at] == '\r' || text[at] == '\t') at++;
    parser->at = at;
}

/* The four hexadecimal digits at `at`, or -1. */
static int32_t tsk__json_hex4(const char *text) {
    int32_t value = 0;
    int i;
    for (i = 0; i < 4; i++) {
        char c = text[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* \uXXXX at parser->at (its backslash). A surrogate is half a character: alone it has no UTF-8, so it is refused. */
static tsk_status tsk__json_unicode_escape(tsk__json_parser *parser, char **write) {
    const char *text = parser->text + parser->at;
    int32_t c = tsk__json_hex4(text + 2), low;
    if (c < 0) return tsk__json_fail(parser, parser->at, "expected four hexadecimal digits after \\u");
    parser->at += 6;
    if (c >= 0xd800 && c < 0xe000) {
        low = c < 0xdc00 && text[6] == '\\' && text[7] == 'u' ? tsk__json_hex4(text + 8) : -1;
        if (low < 0xdc00 || low >= 0xe000)
            return tsk__json_fail(parser, parser->at - 6, "half of a surrogate pair without its other half");
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        parser->at += 6;
    }
    *write = tsk__json_put_utf8(*write, (uint32_t)c);
    return TSK_OK;
}

static tsk_status tsk__json_escape(tsk__json_parser *parser, char **write) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = parser->text[parser->at + 1];
    const char *found = c ? strchr(from, c) : NULL;
    if (c == 'u') return tsk__json_unicode_escape(parser, write);
    if (!found) return tsk__json_expected(parser, parser->at + 1, "one of \"\\/bfnrtu after a backslash");
    *(*write)++ = to[found - from];
    parser->at += 2;
    return TSK_OK;
}

/* One byte or character that is neither plain ASCII nor the closing quote. */
static tsk_status tsk__json_special(tsk__json_parser *parser, char **write) {
    const char *from = parser->text + parser->at;
    size_t n;
    int valid;
    if (*from == '\\') return tsk__json_escape(parser, write);
    if (parser->at >= parser->size) return tsk__json_expected(parser, parser->at, "the string's closing '\"'");
    if ((unsigned char)*from < 0x20)
        return tsk__json_expected(parser, parser->at, "an escape in place of a control character");
    n = tsk__json_utf8(from, parser->size - parser->at, &valid);
    if (!valid) return tsk__json_fail(parser, parser->at, "invalid UTF-8 in a string");
    if (*write != from) memmove(*write, from, n);
    *write += n;
    parser->at += n;
    return TSK_OK;
}

/* From the opening quote at parser->at; decodes in place, right behind that quote, and ends it with a NUL. */
static tsk_status tsk__json_parse_string(tsk__json_parser *parser, uint32_t *length) {
    char *first = parser->text + parser->at + 1, *write = first, *read = first;
    for (;;) {
        unsigned char c = (unsigned char)*read;
        if (c == '"') break;
        if (c >= 0x20 && c < 0x80 && c != '\\') {
            *write++ = *read++;
        } else {
            tsk_status status;
            parser->at = (size_t)(read - parser->text);
            status = tsk__json_special(parser, &write);
            if (status != TSK_OK) return status;
            read = parser->text + parser->at;
        }
    }
    parser->at = (size_t)(read - parser->text) + 1;
    *write = 0;
    *length = (uint32_t)(write - first);
    return TSK_OK;
}

static int tsk__json_is_digit(char c) { return c >= '0' && c <= '9'; }

static tsk_status tsk__json_digits(tsk__json_parser *parser) {
    if (!tsk__json_is_digit(parser->text[parser->at])) return tsk__json_expected(parser, parser->at, "a digit");
    while (tsk__json_is_digit(parser->text[parser->at])) parser->at++;
    return TSK_OK;
}

static tsk_status tsk__json_parse_number(tsk__json_parser *parser) {
    const char *text = parser->text;
    tsk_status status;
    if (text[parser->at] == '-') parser->at++;
    if (text[parser->at] == '0' && tsk__json_is_digit(text[parser->at + 1]))
        return tsk__json_fail(parser, parser->at, "a number has no leading zeros");
    status = tsk__json_digits(parser);
    if (status == TSK_OK && text[parser->at] == '.') {
        parser->at++;
        status = tsk__json_digits(parser);
    }
    if (status == TSK_OK && (text[parser->at] == 'e' || text[parser->at] == 'E')) {
        parser->at++;
        if (text[parser->at] == '+' || text[parser->at] == '-') parser->at++;
        status = tsk__json_digits(parser);
    }
    return status;
}

static tsk_status tsk__json_parse_word(tsk__json_parser *parser, const char *word) {
    size_t length = strlen(word);
    if (strncmp(parser->text + parser->at, word, length) != 0) return tsk__json_expected(parser, parser->at, "a value");
    parser->at += length;
    return TSK_OK;
}

/* A new last child of the open container; NULL when out of memory. */
static tsk_json_value *tsk__json_add(tsk__json_parser *parser, uint32_t key, uint32_t key_length) {
    tsk_json *document = parser->document;
    tsk_json_value *value;
    if (document->count == document->capacity &&
        !tsk__memory_reserve(document->allocator, &document->values, &document->capacity, document->count + 1,
                             sizeof *value))
        return NULL;
    value = &document->values[document->count];
    value->start = (uint32_t)parser->at;
    value->length = 0;
    value->key = key;
    value->key_length = key_length;
    value->next = 0;
    value->index = (uint32_t)document->count++;
    if (parser->previous) document->values[parser->previous].next = value->index;
    if (parser->parent) document->values[parser->parent].length++;
    parser->previous = value->index;
    return value;
}

static tsk_status tsk__json_open(tsk__json_parser *parser, tsk_json_value *container) {
    if (parser->depth == TOKENSKIP_JSON_MAX_DEPTH) return tsk__json_fail(parser, parser->at, "nested too deeply");
    container->next = parser->parent;
    parser->parent = container->index;
    parser->previous = 0;
    parser->depth++;
    parser->at++;
    return TSK_OK;
}

static void tsk__json_close(tsk__json_parser *parser) {
    tsk_json_value *container = &parser->document->values[parser->parent];
    parser->previous = parser->parent;
    parser->parent = container->next;
    container->next = 0;
    parser->depth--;
    parser->at++;
}

/* The value at parser->at; of a container only its beginning. */
static tsk_status tsk__json_parse_value(tsk__json_parser *parser, uint32_t key, uint32_t key_length) {
    tsk_json_value *value;
    tsk_status status;
    char c = parser->text[parser->at];
    int is_number = c == '-' || tsk__json_is_digit(c);
    if (!is_number && (!c || !strchr("{[\"tfn", c))) return tsk__json_expected(parser, parser->at, "a value");
    value = tsk__json_add(parser, key, key_length);
    if (!value)
        return tsk__error_memory(parser->error, parser->name ? tsk__error_path(parser->name) : "JSON values",
                                 (uint64_t)parser->document->count * sizeof *value);
    if (c == '{' || c == '[') return tsk__json_open(parser, value);
    if (c == '"') return tsk__json_parse_string(parser, &value->length);
    if (!is_number) return tsk__json_parse_word(parser, c == 't' ? "true" : c == 'f' ? "false" : "null");
    status = tsk__json_parse_number(parser);
    value->length = (uint32_t)(parser->at - value->start);
    return status;
}

static tsk_status tsk__json_parse_key(tsk__json_parser *parser, uint32_t *key, uint32_t *key_length) {
    tsk_status status;
    *key = (uint32_t)parser->at + 1;
    if (parser->text[parser->at] != '"')
        return tsk__json_expected(parser, parser->at, "a member name in double quotes");
    status = tsk__json_parse_string(parser, key_length);
    if (status != TSK_OK) return status;
    tsk__json_skip_space(parser);
    if (parser->text[parser->at] != ':') return tsk__json_expected(parser, parser->at, "':'");
    parser->at++;
    tsk__json_skip_space(parser);
    return TSK_OK;
}

/* The next element or member of the open container, or its end. */
static tsk_status tsk__json_parse_next(tsk__json_parser *parser) {
    const tsk_json_value *container = &parser->document->values[parser->parent];
    int is_object = parser->text[container->start] == '{';
    uint32_t key = 0, key_length = 0;
    tsk_status status = TSK_OK;
    tsk__json_skip_space(parser);
    if (parser->text[parser->at] == (is_object ? '}' : ']')) {
        tsk__json_close(parser);
        return TSK_OK;
    }
    if (container->length) {
        if (parser->text[parser->at] != ',')
            return tsk__json_expected(parser, parser->at, is_object ? "',' or '}'" : "',' or ']'");
        parser->at++;
        tsk__json_skip_space(parser);
    }
    if (is_object) status = tsk__json_parse_key(parser, &key, &key_length);
    return status == TSK_OK ? tsk__json_parse_value(parser, key, key_length) : status;
}

static tsk_status tsk__json_parse_text(tsk__json_parser *parser) {
    tsk_status status;
    if (strncmp(parser->text, "\xef\xbb\xbf", 3) == 0)
        return tsk__json_fail(parser, 0, "a byte order mark is not part of JSON");
    tsk__json_skip_space(parser);
    status = tsk__json_parse_value(parser, 0, 0);
    while (status == TSK_OK && parser->parent) status = tsk__json_parse_next(parser);
    if (status != TSK_OK) return status;
    tsk__json_skip_space(parser);
    return parser->at == parser->size ? TSK_OK : tsk__json_expected(parser, parser->at, "nothing more after the value");
}

/* Every value but the root follows '[', '{' or ','. Counting those (in strings too) first mostly saves the array from
   growing, which would need room for two; the cap is for texts whose strings are full of commas. */
static size_t tsk__json_guess_count(const char *text, size_t size) {
    size_t i, count = 2;
    for (i = 0; i < size; i++) count += (size_t)(text[i] == ',') + (size_t)((text[i] | 0x20) == '{');
    return count < size / 8 + 16 ? count : size / 8 + 16;
}

/* `document` zeroed but for its allocator. */
static int tsk__json_allocate(tsk_json *document, const char *text, size_t size) {
    document->capacity = tsk__json_guess_count(text, size);
    document->text = (char *)tsk__memory_new(document->allocator, size + 1, 1);
    document->values =
        (tsk_json_value *)tsk__memory_new(document->allocator, document->capacity, sizeof *document->values);
    if (!document->text || !document->values) return 0;
    memset(document->values, 0, sizeof *document->values);
    if (size) memcpy(document->text, text, size);
    document->text[size] = 0;
    document->count = 1;
    return 1;
}

/* A named file that is something else altogether is told by that, not by its first byte. */
static tsk_status tsk__json_fail_file(const tsk__json_parser *parser) {
    const char *what = parser->name ? tsk__file_recognise(parser->original, parser->size) : NULL;
    if (!what) return TSK_ERROR_JSON;
    return tsk__error_set(parser->error, TSK_ERROR_JSON, parser->name, 0, "'%s' holds no JSON: it is %s",
                          tsk__error_path(parser->name), what);
}

tsk_status tsk_json_parse(const char *text, size_t size, const char *name, const tsk_allocator *allocator,
                          tsk_json **out, tsk_error *error) {
    tsk__json_parser parser;
    tsk_json *document;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_json_parse", "out");
    *out = NULL;
    if (!text && size) return tsk__error_null(error, "tsk_json_parse", "text");
    memset(&parser, 0, sizeof parser);
    parser.original = text;
    parser.size = size;
    parser.name = name;
    parser.error = error;
    if (size >= UINT32_MAX) return tsk__json_fail(&parser, 0, "a text of 4 GiB or more is not supported");
    document = (tsk_json *)tsk__memory_new_zeroed(allocator, 1, sizeof *document);
    if (document) document->allocator = allocator;
    if (!document || !tsk__json_allocate(document, text, size)) {
        tsk_json_free(document);
        return tsk__error_memory(error, name ? tsk__error_path(name) : "a JSON text", size);
    }
    parser.document = document;
    parser.text = document->text;
    status = tsk__json_parse_text(&parser);
    if (status != TSK_OK) {
        tsk_json_free(document);
        return status == TSK_ERROR_JSON ? tsk__json_fail_file(&parser) : status;
    }
    memcpy(document->values, &document->text, sizeof document->text); /* element 0: see tsk__json_text */
    *out = document;
    return TSK_OK;
}

void tsk_json_free(tsk_json *document) {
    const tsk_allocator *allocator = document ? document->allocator : NULL;
    if (!document) return;
    tsk__memory_delete(allocator, document->text);
    tsk__memory_delete(allocator, document->values);
    tsk__memory_delete(allocator, document);
}

/* ---- looking */

const tsk_json_value *tsk_json_root(const tsk_json *document) { return document ? document->values + 1 : NULL; }

tsk_json_type tsk_json_type_of(const tsk_json_value *value) {
    if (!value) return TSK_JSON_NONE;
    switch (tsk__json_text(value)[value->start]) {
        case '{': return TSK_JSON_OBJECT;
        case '[': return TSK_JSON_ARRAY;
        case '"': return TSK_JSON_STRING;
        case 't': return TSK_JSON_TRUE;
        case 'f': return TSK_JSON_FALSE;
        case 'n': return TSK_JSON_NULL;
        default: return TSK_JSON_NUMBER;
    }
}

uint64_t tsk_json_offset(const tsk_json_value *value) { return value ? value->start : TSK_NO_OFFSET; }

size_t tsk_json_count(const tsk_json_value *value) {
    tsk_json_type type = tsk_json_type_of(value);
    return type == TSK_JSON_ARRAY || type == TSK_JSON_OBJECT ? value->length : 0;
}

const tsk_json_value *tsk_json_first(const tsk_json_value *container) {
    return tsk_json_count(container) ? container + 1 : NULL;
}

const tsk_json_value *tsk_json_next(const tsk_json_value *value) {
    return value && value->next ? value + (value->next - value->index) : NULL;
}

const char *tsk_json_key(const tsk_json_value *member, size_t *length) {
    int has_key = member && member->key;
    if (length) *length = has_key ? member->key_length : 0;
    return has_key ? tsk__json_text(member) + member->key : NULL;
}

const tsk_json_value *tsk_json_get(const tsk_json_value *object, const char *key) {
    const tsk_json_value *member, *found = NULL;
    const char *text;
    size_t length = key ? strlen(key) : 0;
    if (!key || tsk_json_type_of(object) != TSK_JSON_OBJECT) return NULL;
    text = tsk__json_text(object);
    for (member = tsk_json_first(object); member; member = tsk_json_next(member))
        if (member->key_length == length && memcmp(text + member->key, key, length) == 0) found = member;
    return found;
}

const char *tsk_json_string(const tsk_json_value *value, size_t *length) {
    int is_string = tsk_json_type_of(value) == TSK_JSON_STRING;
    if (length) *length = is_string ? value->length : 0;
    return is_string ? tsk__json_text(value) + value->start + 1 : NULL;
}

int tsk_json_bool(const tsk_json_value *value, int *out) {
    tsk_json_type type = tsk_json_type_of(value);
    if (!out || (type != TSK_JSON_TRUE && type != TSK_JSON_FALSE)) return 0;
    *out = type == TSK_JSON_TRUE;
    return 1;
}

/* ---- integers */

/* What a number's text says: `count` significant digits, the last of which stands for 10^exponent. */
typedef struct tsk__json_decimal {
    const char *first;  /* the first digit that is not 0; a point may lie between the digits */
    int64_t count;
    int64_t exponent;
} tsk__json_decimal;

static void tsk__json_decimal_scan(tsk__json_decimal *decimal, const char *text, uint32_t length) {
    const char *end = text + length;
    int64_t written = 0, after_point = 0;
    int point = 0, negative;
    memset(decimal, 0, sizeof *decimal);
    for (; text < end && *text != 'e' && *text != 'E'; text++) {
        if (*text == '.') point = 1;
        if (!tsk__json_is_digit(*text)) continue;
        after_point += point;
        if (*text != '0' && !decimal->first) decimal->first = text;
        if (decimal->first) decimal->count++;
    }
    if (text < end) text++;
    negative = text < end && *text == '-';
    for (; text < end; text++)
        if (tsk__json_is_digit(*text) && written < (int64_t)1 << 40) written = written * 10 + (*text - '0');
    decimal->exponent = (negative ? -written : written) - after_point;
}

/* The magnitude of a whole number that fits 64 bits, however it is written: 32, 32.0, 3.2e1. */
static int tsk__json_integer(const tsk_json_value *value, int *is_negative, uint64_t *out) {
    tsk__json_decimal decimal;
    const char *text, *next;
    uint64_t result = 0;
    int64_t i, whole;
    if (!out || tsk_json_type_of(value) != TSK_JSON_NUMBER) return 0;
    text = tsk__json_text(value) + value->start;
    *is_negative = text[0] == '-';
    tsk__json_decimal_scan(&decimal, text, value->length);
    whole = decimal.first ? decimal.count + decimal.exponent : 0; /* digits before the point */
    if (whole > 20) return 0;
    for (i = 0, next = decimal.first; i < decimal.count || i < whole; i++) {
        unsigned digit = 0;
        if (i < decimal.count) {
            if (*next == '.') next++;
            digit = (unsigned)(*next++ - '0');
        }
        if (i >= whole ? digit != 0 : result > (UINT64_MAX - digit) / 10) return 0;
        if (i < whole) result = result * 10 + digit;
    }
    *out = result;
    return 1;
}

int tsk_json_uint64(const tsk_json_value *value, uint64_t *out) {
    uint64_t magnitude;
    int is_negative;
    if (!out || !tsk__json_integer(value, &is_negative, &magnitude) || is_negative) return 0;
    *out = magnitude;
    return 1;
}

int tsk_json_int64(const tsk_json_value *value, int64_t *out) {
    uint64_t magnitude;
    int is_negative;
    if (!out || !tsk__json_integer(value, &is_negative, &magnitude) ||
        magnitude > (uint64_t)INT64_MAX + (is_negative ? 1 : 0))
        return 0;
    if (is_negative && magnitude) *out = -(int64_t)(magnitude - 1) - 1; /* -2^63 has no positive twin to negate */
    else *out = (int64_t)magnitude;
    return 1;
}

/* ---- doubles
   strtod and printf follow the locale's decimal point, so both directions are done here, in exact integers: slow beside
   the famous fast algorithms, but right by construction, and few numbers need it. */

/* 120 words: a number of 801 digits against 10^1131, the worst that reading needs, has 3,759 bits. */
typedef struct tsk__json_big {
    int n;                /* words in use; the last is not 0 */
    uint32_t words[120];  /* the lowest first */
} tsk__json_big;

static void tsk__json_big_set(tsk__json_big *big, uint64_t value) {
    big->n = value >> 32 ? 2 : value ? 1 : 0;
    big->words[0] = (uint32_t)value;
    big->words[1] = (uint32_t)(value >> 32);
}

static void tsk__json_big_multiply_add(tsk__json_big *big, uint32_t factor, uint32_t addend) {
    uint64_t carry = addend;
    int i;
    for (i = 0; i < big->n; i++) {
        carry += (uint64_t)big->words[i] * factor;
        big->words[i] = (uint32_t)carry;
        carry >>= 32;
    }
    if (carry) big->words[big->n++] = (uint32_t)carry;
}

static void tsk__json_big_multiply_power10(tsk__json_big *big, int exponent) {
    for (; exponent >= 9; exponent -= 9) tsk__json_big_multiply_add(big, 1000000000u, 0);
    for (; exponent > 0; exponent--) tsk__json_big_multiply_add(big, 10, 0);
}

static void tsk__json_big_shift_left(tsk__json_big *big, int bits) {
    int i, words = bits / 32;
    if (big->n == 0) return;
    if (bits % 32) tsk__json_big_multiply_add(big, (uint32_t)1 << bits % 32, 0);
    for (i = big->n - 1; i >= 0 && words; i--) big->words[i + words] = big->words[i];
    for (i = 0; i < words; i++) big->words[i] = 0;
    big->n += words;
}

static int tsk__json_bits(uint64_t value) {
    int bits = 0;
    for (; value; value >>= 1) bits++;
    return bits;
}

static int tsk__json_big_bits(const tsk__json_big *big) {
    return big->n ? 32 * (big->n - 1) + tsk__json_bits(big->words[big->n - 1]) : 0;
}

static int tsk__json_big_compare(const tsk__json_big *a, const tsk__json_big *b) {
    int i;
    if (a->n != b->n) return a->n < b->n ? -1 : 1;
    for (i = a->n - 1; i >= 0; i--)
        if (a->words[i] != b->words[i]) return a->words[i] < b->words[i] ? -1 : 1;
    return 0;
}

static void tsk__json_big_add(tsk__json_big *a, const tsk__json_big *b) {
    uint64_t carry = 0;
    int i;
    for (i = 0; i < a->n || i < b->n; i++) {
        carry += (i < a->n ? a->words[i] : 0);
        carry += (i < b->n ? b->words[i] : 0);
        a->words[i] = (uint32_t)carry;
        carry >>= 32;
    }
    a->n = i;
    if (carry) a->words[a->n++] = (uint32_t)carry;
}

/* a -= b, where a >= b */
static void tsk__json_big_subtract(tsk__json_big *a, const tsk__json_big *b) {
    uint64_t borrow = 0;
    int i;
    for (i = 0; i < a->n; i++) {
        uint64_t taken = (i < b->n ? b->words[i] : 0) + borrow;
        borrow = a->words[i] < taken;
        a->words[i] -= (uint32_t)taken;
    }
    while (a->n && a->words[a->n - 1] == 0) a->n--;
}

/* (mantissa + a bit more if `more`) * 2^exponent, rounded to nearest, ties to even; mantissa of 55 or 56 bits. The
   result as the bits of a double, which may be infinity. */
static uint64_t tsk__json_round(uint64_t mantissa, int more, int exponent) {
    int bits = tsk__json_bits(mantissa), top = exponent + bits - 1;
    int keep = top < -1022 ? 53 - (-1022 - top) : 53, drop = bits - keep;
    uint64_t kept, rest, half;
    if (keep < 0) return 0;
    kept = mantissa >> drop;
    rest = mantissa - (kept << drop);
    half = (uint64_t)1 << (drop - 1);
    if (rest > half || (rest == half && (more || (kept & 1)))) kept++;
    if (top < -1022) return kept; /* subnormal; a carry into the first normal number is right as it stands */
    if (top > 1023) return (uint64_t)2047 << 52;
    return ((uint64_t)(top + 1022) << 52) + kept; /* the leading bit counts the exponent up, as a carry does once
                                                     more */
}

/* digits * 10^exponent, exactly: align both to the same length, then take 56 bits of the quotient one by one. */
static uint64_t tsk__json_divide(tsk__json_big *digits, int exponent) {
    tsk__json_big divisor;
    uint64_t quotient = 0;
    int i, lead;
    tsk__json_big_set(&divisor, 1);
    tsk__json_big_multiply_power10(exponent < 0 ? &divisor : digits, exponent < 0 ? -exponent : exponent);
    lead = tsk__json_big_bits(digits) - tsk__json_big_bits(&divisor);
    tsk__json_big_shift_left(lead < 0 ? digits : &divisor, lead < 0 ? -lead : lead);
    for (i = 0; i < 56; i++) {
        int fits = tsk__json_big_compare(digits, &divisor) >= 0;
        if (fits) tsk__json_big_subtract(digits, &divisor);
        quotient = quotient << 1 | (uint64_t)fits;
        tsk__json_big_shift_left(digits, 1);
    }
    return tsk__json_round(quotient, digits->n != 0, lead - 55);
}

#define TSK__JSON_DIGITS 800 /* no tie between two doubles has more than 768 digits */

/* The bits of the double nearest to a decimal that is not 0. */
static uint64_t tsk__json_decimal_exact(const tsk__json_decimal *decimal) {
    tsk__json_big digits;
    const char *digit = decimal->first;
    int64_t taken = 0, exponent = decimal->exponent, i;
    int more = 0;
    if (decimal->count + exponent > 310) return (uint64_t)2047 << 52;
    if (decimal->count + exponent < -330) return 0;
    tsk__json_big_set(&digits, 0);
    for (i = 0; i < decimal->count; digit++) {
        if (*digit == '.') continue;
        i++;
        if (taken < TSK__JSON_DIGITS) tsk__json_big_multiply_add(&digits, 10, (uint32_t)(*digit - '0')), taken++;
        else if (*digit != '0') more = 1;
    }
    exponent += decimal->count - taken;
    if (more) tsk__json_big_multiply_add(&digits, 10, 1), exponent--; /* beyond all ties any 1 will do */
    return tsk__json_divide(&digits, (int)exponent);
}

/* Up to 2^53 and 10^22 both factors are doubles, and one operation on exact operands rounds correctly (W. D. Clinger,
   "How to read floating point numbers accurately", 1990), unless the machine computes in more than double. */
static int tsk__json_decimal_quick(const tsk__json_decimal *decimal, double *out) {
#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD >= 0 && FLT_EVAL_METHOD <= 1
    static const double powers[23] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                      1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    const char *digit = decimal->first;
    uint64_t value = 0;
    int64_t i;
    if (decimal->count > 18 || decimal->exponent < -22 || decimal->exponent > 22) return 0;
    for (i = 0; i < decimal->count; digit++)
        if (*digit != '.') value = value * 10 + (uint64_t)(*digit - '0'), i++;
    if (value > (uint64_t)1 << 53) return 0;
    *out = decimal->exponent < 0 ? (double)value / powers[-decimal->exponent]
                                 : (double)value * powers[decimal->exponent];
    return 1;
#else
    (void)decimal;
    (void)out;
    return 0;
#endif
}

int tsk_json_double(const tsk_json_value *value, double *out) {
    tsk__json_decimal decimal;
    const char *text;
    double result = 0;
    if (!out || tsk_json_type_of(value) != TSK_JSON_NUMBER) return 0;
    text = tsk__json_text(value) + value->start;
    tsk__json_decimal_scan(&decimal, text, value->length);
    if (decimal.first && !tsk__json_decimal_quick(&decimal, &result)) {
        uint64_t bits = tsk__json_decimal_exact(&decimal);
        if (bits >> 52 == 2047) return 0;
        memcpy(&result, &bits, sizeof result);
    }
    *out = text[0] == '-' ? -result : result;
    return 1;
}

/* ---- writing */

/* Whatever is written goes through the next two. Without a writer nothing is. */
static void tsk__json_put(tsk_json_writer *writer, const char *bytes, size_t size) {
    if (writer && writer->status == TSK_OK) writer->status = tsk_text_append(writer->out, bytes, size);
}

static void tsk__json_put_value(tsk_json_writer *writer, const char *bytes, size_t size) {
    if (!writer) return;
    if (writer->needs_comma) tsk__json_put(writer, ",", 1);
    tsk__json_put(writer, bytes, size);
    writer->needs_comma = 1;
}

static void tsk__json_put_bracket(tsk_json_writer *writer, const char *bracket) {
    tsk__json_put_value(writer, bracket, 1);
    if (writer) writer->needs_comma = 0;
}

/* The end of a container follows its last value without a comma. */
static void tsk__json_put_end(tsk_json_writer *writer, const char *bracket) {
    if (writer) writer->needs_comma = 0;
    tsk__json_put_value(writer, bracket, 1);
}

void tsk_json_begin_object(tsk_json_writer *writer) { tsk__json_put_bracket(writer, "{"); }
void tsk_json_end_object(tsk_json_writer *writer) { tsk__json_put_end(writer, "}"); }
void tsk_json_begin_array(tsk_json_writer *writer) { tsk__json_put_bracket(writer, "["); }
void tsk_json_end_array(tsk_json_writer *writer) { tsk__json_put_end(writer, "]"); }

static void tsk__json_put_control(tsk_json_writer *writer, char c) {
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    const char *found = c ? strchr(from, c) : NULL;
    char escape[8];
    if (found) snprintf(escape, sizeof escape, "\\%c", to[found - from]);
    else snprintf(escape, sizeof escape, "\\u%04x", (unsigned)c);
    tsk__json_put(writer, escape, strlen(escape));
}

void tsk_json_write_string(tsk_json_writer *writer, const char *text, size_t length) {
    size_t i = 0, done = 0; /* text[done, i) is plain and waits to be written at once */
    if (!text && length) {
        if (writer && writer->status == TSK_OK) writer->status = TSK_ERROR_ARGUMENT;
        return;
    }
    tsk__json_put_value(writer, "\"", 1);
    while (i < length) {
        unsigned char c = (unsigned char)text[i];
        int valid = c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
        size_t n = valid || c < 0x80 ? 1 : tsk__json_utf8(text + i, length - i, &valid);
        if (!valid) {
            tsk__json_put(writer, text + done, i - done);
            done = i + n;
            if (c < 0x80) tsk__json_put_control(writer, text[i]);
            else tsk__json_put(writer, "\xef\xbf\xbd", 3);
        }
        i += n;
    }
    if (length > done) tsk__json_put(writer, text + done, length - done);
    tsk__json_put(writer, "\"", 1);
}

void tsk_json_write_key(tsk_json_writer *writer, const char *key) {
    tsk_json_write_string(writer, key, key ? strlen(key) : 1);
    tsk__json_put(writer, ":", 1);
    if (writer) writer->needs_comma = 0;
}

void tsk_json_write_int(tsk_json_writer *writer, int64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)value);
    tsk__json_put_value(writer, text, strlen(text));
}

void tsk_json_write_uint(tsk_json_writer *writer, uint64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    tsk__json_put_value(writer, text, strlen(text));
}

void tsk_json_write_bool(tsk_json_writer *writer, int value) {
    tsk__json_put_value(writer, value ? "true" : "false", value ? 4 : 5);
}

void tsk_json_write_null(tsk_json_writer *writer) { tsk__json_put_value(writer, "null", 4); }

/* The shortest decimal that reads back as a double is any that lies between the two midpoints to its neighbours (G. L.
   Steele and J. L. White, "How to print floating-point numbers accurately", 1990). In units of 1/scale: the value's
   rest `value`, and its distances to the midpoints. A midpoint itself reads back when the mantissa is even. */
typedef struct tsk__json_shortest {
    tsk__json_big value, scale, above, below;
    int is_even;
} tsk__json_shortest;

/* Does value + above reach the midpoint of (or go beyond) one whole scale? */
static int tsk__json_shortest_is_high(const tsk__json_shortest *state) {
    tsk__json_big sum = state->value;
    tsk__json_big_add(&sum, &state->above);
    return tsk__json_big_compare(&sum, &state->scale) > (state->is_even ? -1 : 0);
}

/* Sets up value / scale = v / 10^k in [1/10, 1) and returns k; v = mantissa * 2^exponent. */
static int tsk__json_shortest_begin(tsk__json_shortest *state, uint64_t mantissa, int exponent, int is_power_of_2) {
    int wide = is_power_of_2 ? 2 : 1; /* below a power of two the neighbour is half as far */
    int lead = exponent + tsk__json_bits(mantissa) - 1;
    int k = (lead * 78913 - (lead < 0 ? 262143 : 0)) / 262144 + 1; /* 78913/2^18 is log10(2); rounded down */
    tsk__json_big_set(&state->value, mantissa);
    tsk__json_big_set(&state->scale, 1);
    tsk__json_big_set(&state->above, 1);
    tsk__json_big_set(&state->below, 1);
    state->is_even = !(mantissa & 1);
    tsk__json_big_shift_left(&state->value, wide + (exponent > 0 ? exponent : 0));
    tsk__json_big_shift_left(&state->scale, wide + (exponent < 0 ? -exponent : 0));
    tsk__json_big_shift_left(&state->above, wide - 1 + (exponent > 0 ? exponent : 0));
    tsk__json_big_shift_left(&state->below, exponent > 0 ? exponent : 0);
    if (k > 0) tsk__json_big_multiply_power10(&state->scale, k);
    if (k < 0) {
        tsk__json_big_multiply_power10(&state->value, -k);
        tsk__json_big_multiply_power10(&state->above, -k);
        tsk__json_big_multiply_power10(&state->below, -k);
    }
    if (!tsk__json_shortest_is_high(state)) return k;
    tsk__json_big_multiply_add(&state->scale, 10, 0);
    return k + 1;
}

/* Writes the digits of 0.ddd * 10^*k to `digits` [17]; returns how many. */
static int tsk__json_shortest_digits(double value, char *digits, int *k) {
    tsk__json_shortest state;
    uint64_t bits, mantissa;
    int n = 0, digit = 0, is_low = 0, is_high = 0, exponent, half;
    memcpy(&bits, &value, sizeof bits);
    exponent = (int)(bits >> 52 & 2047);
    mantissa = (bits & (((uint64_t)1 << 52) - 1)) | (exponent ? (uint64_t)1 << 52 : 0);
    *k = tsk__json_shortest_begin(&state, mantissa, (exponent ? exponent : 1) - 1075,
                                  exponent > 1 && mantissa == (uint64_t)1 << 52);
    while (!is_low && !is_high) {
        tsk__json_big_multiply_add(&state.value, 10, 0);
        tsk__json_big_multiply_add(&state.above, 10, 0);
        tsk__json_big_multiply_add(&state.below, 10, 0);
        for (digit = 0; tsk__json_big_compare(&state.value, &state.scale) >= 0; digit++)
            tsk__json_big_subtract(&state.value, &state.scale);
        is_low = tsk__json_big_compare(&state.value, &state.below) < (state.is_even ? 1 : 0);
        is_high = tsk__json_shortest_is_high(&state);
        digits[n++] = (char)('0' + digit);
    }
    tsk__json_big_multiply_add(&state.value, 2, 0);
    half = tsk__json_big_compare(&state.value, &state.scale);
    if (is_high && (!is_low || half > 0 || (half == 0 && digit % 2))) digits[n - 1]++; /* a tie: the even digit */
    return n;
}

void tsk_json_write_double(tsk_json_writer *writer, double value) {
    char digits[20], text[64];
    int n, k;
    if (!(value >= -DBL_MAX && value <= DBL_MAX)) {
        tsk_json_write_null(writer);
        return;
    }
    if (value == 0) {
        uint64_t bits;
        memcpy(&bits, &value, sizeof bits);
        tsk__json_put_value(writer, bits ? "-0.0" : "0", bits ? 4 : 1); /* "-0" is an integer to many readers */
        return;
    }
    n = tsk__json_shortest_digits(value < 0 ? -value : value, digits, &k);
    if (n <= k && k <= 17)
        snprintf(text, sizeof text, "%s%.*s%.*s", value < 0 ? "-" : "", n, digits, k - n, "0000000000000000");
    else if (0 < k && k <= 17)
        snprintf(text, sizeof text, "%s%.*s.%.*s", value < 0 ? "-" : "", k, digits, n - k, digits + k);
    else if (-5 < k && k <= 0) snprintf(text, sizeof text, "%s0.%.*s%.*s", value < 0 ? "-" : "", -k, "0000", n, digits);
    else
        snprintf(text, sizeof text, "%s%c%s%.*se%d", value < 0 ? "-" : "", digits[0], n > 1 ? "." : "", n - 1,
                 digits + 1, k - 1);
    tsk__json_put_value(writer, text, strlen(text));
}

// >>safetensors =======================================================================================================
/* A file of named arrays: the length of a JSON header (8 bytes, little-endian), the header, the data. A file is
   believed only if everything in its header agrees with everything else and with the file's size, since whoever uses a
   tensor later trusts its offset and size blindly. Names are sorted and searched, not hashed: whoever chooses the names
   could make a fixed hash function collide. Stricter than the format's first implementation in one point: an entry has
   its three members and nothing else. */

/* ---- element types */

static const struct {
    const char *name;
    size_t size;
} tsk__dtypes[] = {{"auto", 0},    {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F64", 8}, {"F8_E4M3", 1},
                   {"F8_E5M2", 1}, {"I64", 8}, {"I32", 4}, {"I16", 2},  {"I8", 1},  {"U64", 8},
                   {"U32", 4},     {"U16", 2}, {"U8", 1},  {"BOOL", 1}};

static int tsk__dtype_is_known(tsk_dtype dtype) { return (int)dtype >= 0 && (int)dtype < (int)TSK_DTYPE_COUNT; }

const char *tsk_dtype_name(tsk_dtype dtype) {
    return tsk__dtype_is_known(dtype) ? tsk__dtypes[(int)dtype].name : "unknown";
}

size_t tsk_dtype_size(tsk_dtype dtype) { return tsk__dtype_is_known(dtype) ? tsk__dtypes[(int)dtype].size : 0; }

/* AUTO when there is none of that name. */
static tsk_dtype tsk__dtype_from_name(const char *name) {
    int i;
    for (i = 1; i < (int)TSK_DTYPE_COUNT; i++)
        if (strcmp(name, tsk__dtypes[i].name) == 0) return (tsk_dtype)i;
    return TSK_DTYPE_AUTO;
}

/* shape's product times the element size; 0 when that does not fit 64 bits. */
static int tsk__safetensors_size(tsk_dtype dtype, int n_dims, const uint64_t *shape, uint64_t *size) {
    uint64_t product = tsk_dtype_size(dtype);
    int i;
    for (i = 0; i < n_dims; i++) {
        if (shape[i] && product > UINT64_MAX / shape[i]) return 0;
        product *= shape[i];
    }
    *size = product;
    return 1;
}

/* ---- reading */

#define TSK__SAFETENSORS_MAX_HEADER 100000000u /* the format's own limit */

struct tsk_safetensors {
    const tsk_allocator *allocator;
    char *path;
    tsk__file file;
    tsk_json *header;
    tsk_tensor_info *tensors;         /* [count] in the order of their offsets */
    const tsk_tensor_info **by_name;  /* [count] in the order of their names */
    size_t count;
    uint64_t data_start;
};

/* "'path': …", at `offset` in the file. */
static tsk_status TSK__PRINTF(4, 5)
    tsk__safetensors_fail(const tsk_safetensors *file, uint64_t offset, tsk_error *error, const char *format, ...) {
    char message[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return tsk__error_set(error, TSK_ERROR_SAFETENSORS, file->path, offset, "'%s': %s", tsk__error_path(file->path),
                          message);
}

/* "'path': tensor 'name': …", at the header's `value`. */
static tsk_status TSK__PRINTF(5, 6)
    tsk__safetensors_fail_tensor(const tsk_safetensors *file, const char *name, const tsk_json_value *value,
                                 tsk_error *error, const char *format, ...) {
    char message[240];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return tsk__safetensors_fail(file, value ? 8 + tsk_json_offset(value) : TSK_NO_OFFSET, error, "tensor '%.120s': %s",
                                 name, message);
}

/* The beginning of a text, to be quoted: as much of its first line as is printable; "" where the bytes are no text. */
static void tsk__safetensors_first_line(const char *bytes, size_t size, char *line, size_t room) {
    size_t i, n = 0;
    int ended = 0;
    for (i = 0; i < size; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if ((c < 0x20 && (c < '\t' || c > '\r')) || c == 0x7f || c >= 0xf8) n = 0, i = size;
        else if (c < 0x20) ended = ended || n;
        else if (!ended && c < 0x7f && n + 1 < room) line[n++] = (char)c;
        else ended = 1;
    }
    line[n] = 0;
}

/* The file cannot be a safetensors file, for `reason`. If its first bytes show what it is instead, the error says
   so. */
static tsk_status tsk__safetensors_fail_file(const tsk_safetensors *file, uint64_t offset, const char *reason,
                                             tsk_error *error) {
    char head[512], line[48] = "";
    const char *what;
    size_t size = file->file.size < sizeof head ? (size_t)file->file.size : sizeof head;
    tsk_status status = tsk__file_read(&file->file, file->path, 0, head, size, error);
    if (status != TSK_OK) return status;
    what = tsk__file_recognise(head, size);
    if (size >= 8) tsk__safetensors_first_line(head, size, line, sizeof line);
    if (!size) return tsk__safetensors_fail(file, 0, error, "no safetensors file: it is empty");
    if (what) return tsk__safetensors_fail(file, 0, error, "no safetensors file: it is %s", what);
    if (line[0])
        return tsk__safetensors_fail(file, 0, error, "no safetensors file: it is %s, \"%s\"",
                                     line[0] == '{' || line[0] == '[' ? "JSON" : "text", line);
    return tsk__safetensors_fail(file, offset, error, "%s", reason);
}

/* The header's text to *text (the caller frees it) and its length to *size. */
static tsk_status tsk__safetensors_read_header(const tsk_safetensors *file, char **text, size_t *size,
                                               tsk_error *error) {
    unsigned char bytes[8];
    char reason[120];
    uint64_t length = 0;
    tsk_status status;
    int i;
    snprintf(reason, sizeof reason, "the file has %llu bytes, too few for a header",
             (unsigned long long)file->file.size);
    if (file->file.size < 8) return tsk__safetensors_fail_file(file, 0, reason, error);
    status = tsk__file_read(&file->file, file->path, 0, bytes, sizeof bytes, error);
    if (status != TSK_OK) return status;
    for (i = 7; i >= 0; i--) length = length << 8 | bytes[i];
    snprintf(reason, sizeof reason, "a header of %llu bytes is beyond the limit of %u (is it a safetensors file?)",
             (unsigned long long)length, TSK__SAFETENSORS_MAX_HEADER);
    if (length > TSK__SAFETENSORS_MAX_HEADER) return tsk__safetensors_fail_file(file, 0, reason, error);
    snprintf(reason, sizeof reason, "the file has %llu bytes, but its header alone should have %llu: it is cut",
             (unsigned long long)file->file.size, (unsigned long long)length);
    if (length > file->file.size - 8) return tsk__safetensors_fail_file(file, 0, reason, error);
    *size = (size_t)length;
    *text = (char *)tsk__memory_new(file->allocator, (size_t)length, 1);
    if (!*text) return tsk__error_memory(error, "a safetensors header", length);
    status = tsk__file_read(&file->file, file->path, 8, *text, (size_t)length, error);
    if (status == TSK_OK && (length == 0 || (*text)[0] != '{'))
        status = tsk__safetensors_fail_file(file, 8, "the header does not begin with '{'", error);
    return status;
}

static tsk_status tsk__safetensors_parse_header(tsk_safetensors *file, tsk_error *error) {
    char *text = NULL;
    size_t size = 0;
    tsk_error inner;
    tsk_status status = tsk__safetensors_read_header(file, &text, &size, error);
    file->data_start = 8 + (uint64_t)size;
    if (status == TSK_OK) {
        status = tsk_json_parse(text, size, NULL, file->allocator, &file->header, &inner);
        if (status == TSK_ERROR_JSON)
            status = tsk__safetensors_fail(file, 8 + inner.offset, error, "the header is not JSON: %s", inner.message);
        else if (status != TSK_OK) status = tsk__error_memory(error, "a safetensors header", size);
    }
    tsk__memory_delete(file->allocator, text);
    return status;
}

static tsk_status tsk__safetensors_check_metadata(const tsk_safetensors *file, const tsk_json_value *metadata,
                                                  tsk_error *error) {
    const tsk_json_value *member;
    if (metadata != tsk_json_get(tsk_json_root(file->header), "__metadata__"))
        return tsk__safetensors_fail(file, 8 + tsk_json_offset(metadata), error, "__metadata__ appears twice");
    if (tsk_json_type_of(metadata) != TSK_JSON_OBJECT)
        return tsk__safetensors_fail(file, 8 + tsk_json_offset(metadata), error, "__metadata__ is not an object");
    for (member = tsk_json_first(metadata); member; member = tsk_json_next(member))
        if (!tsk_json_string(member, NULL))
            return tsk__safetensors_fail(file, 8 + tsk_json_offset(member), error,
                                         "__metadata__ member '%.120s' is not a string", tsk_json_key(member, NULL));
    return TSK_OK;
}

/* "dtype": the name of an element type. */
static tsk_status tsk__safetensors_parse_dtype(const tsk_safetensors *file, tsk_tensor_info *tensor,
                                               const tsk_json_value *value, tsk_error *error) {
    const char *name = tsk_json_string(value, NULL);
    if (!name) return tsk__safetensors_fail_tensor(file, tensor->name, value, error, "dtype is not a string");
    tensor->dtype = tsk__dtype_from_name(name);
    if (tensor->dtype == TSK_DTYPE_AUTO)
        return tsk__safetensors_fail_tensor(file, tensor->name, value, error, "unknown dtype '%.40s'", name);
    return TSK_OK;
}

/* An array of at most `max` integers to `numbers`; how many there are to *n. */
static tsk_status tsk__safetensors_parse_numbers(const tsk_safetensors *file, const char *name, const char *what,
                                                 const tsk_json_value *value, size_t max, uint64_t *numbers, int *n,
                                                 tsk_error *error) {
    const tsk_json_value *element;
    *n = 0;
    if (tsk_json_type_of(value) != TSK_JSON_ARRAY)
        return tsk__safetensors_fail_tensor(file, name, value, error, "%s is not an array", what);
    if (tsk_json_count(value) > max)
        return tsk__safetensors_fail_tensor(file, name, value, error, "%s has %llu numbers, more than %d", what,
                                            (unsigned long long)tsk_json_count(value), (int)max);
    for (element = tsk_json_first(value); element; element = tsk_json_next(element))
        if (!tsk_json_uint64(element, &numbers[(*n)++]))
            return tsk__safetensors_fail_tensor(file, name, element, error,
                                                "%s has an element that is not an integer from 0 to 2^64 - 1", what);
    return TSK_OK;
}

/* Its place in the data: within the file, and as large as shape and dtype say. */
static tsk_status tsk__safetensors_place(const tsk_safetensors *file, tsk_tensor_info *tensor,
                                         const tsk_json_value *entry, uint64_t begin, uint64_t end, tsk_error *error) {
    uint64_t available = file->file.size - file->data_start, size;
    if (begin > end)
        return tsk__safetensors_fail_tensor(file, tensor->name, entry, error, "data_offsets [%llu, %llu] run backwards",
                                            (unsigned long long)begin, (unsigned long long)end);
    if (end > available)
        return tsk__safetensors_fail_tensor(file, tensor->name, entry, error,
                                            "data_offsets [%llu, %llu] lie beyond the file's %llu bytes of data: "
                                            "the file is cut",
                                            (unsigned long long)begin, (unsigned long long)end,
                                            (unsigned long long)available);
    if (!tsk__safetensors_size(tensor->dtype, tensor->n_dims, tensor->shape, &size))
        return tsk__safetensors_fail_tensor(file, tensor->name, entry, error,
                                            "shape times dtype size does not fit 64 bits");
    if (size != end - begin)
        return tsk__safetensors_fail_tensor(file, tensor->name, entry, error,
                                            "shape and dtype %s make %llu bytes, but data_offsets span %llu",
                                            tsk_dtype_name(tensor->dtype), (unsigned long long)size,
                                            (unsigned long long)(end - begin));
    tensor->offset = file->data_start + begin;
    tensor->size = size;
    return TSK_OK;
}

static tsk_status tsk__safetensors_parse_tensor(const tsk_safetensors *file, const tsk_json_value *entry,
                                                tsk_tensor_info *tensor, tsk_error *error) {
    const tsk_json_value *dtype = tsk_json_get(entry, "dtype"), *shape = tsk_json_get(entry, "shape");
    const tsk_json_value *offsets = tsk_json_get(entry, "data_offsets");
    uint64_t range[2] = {0, 0};
    size_t length;
    tsk_status status;
    int n;
    tensor->name = tsk_json_key(entry, &length);
    if (strlen(tensor->name) != length)
        return tsk__safetensors_fail_tensor(file, tensor->name, entry, error, "a NUL character in the name");
    if (!dtype || !shape || !offsets || tsk_json_count(entry) != 3)
        return tsk__safetensors_fail_tensor(file, tensor->name, entry, error,
                                            "expected an object of exactly dtype, shape and data_offsets");
    status = tsk__safetensors_parse_dtype(file, tensor, dtype, error);
    if (status == TSK_OK)
        status = tsk__safetensors_parse_numbers(file, tensor->name, "shape", shape, TSK_MAX_DIMS, tensor->shape,
                                                &tensor->n_dims, error);
    if (status == TSK_OK)
        status = tsk__safetensors_parse_numbers(file, tensor->name, "data_offsets", offsets, 2, range, &n, error);
    if (status == TSK_OK && n != 2)
        status = tsk__safetensors_fail_tensor(file, tensor->name, offsets, error, "data_offsets needs two numbers");
    return status == TSK_OK ? tsk__safetensors_place(file, tensor, entry, range[0], range[1], error) : status;
}

static tsk_status tsk__safetensors_parse_entries(tsk_safetensors *file, tsk_error *error) {
    const tsk_json_value *root = tsk_json_root(file->header), *entry;
    file->tensors =
        (tsk_tensor_info *)tsk__memory_new_zeroed(file->allocator, tsk_json_count(root), sizeof *file->tensors);
    file->by_name =
        (const tsk_tensor_info **)tsk__memory_new(file->allocator, tsk_json_count(root), sizeof *file->by_name);
    if (!file->tensors || !file->by_name)
        return tsk__error_memory(error, "the list of tensors", (uint64_t)tsk_json_count(root) * sizeof *file->tensors);
    for (entry = tsk_json_first(root); entry; entry = tsk_json_next(entry)) {
        size_t length;
        const char *name = tsk_json_key(entry, &length);
        int is_metadata = length == 12 && memcmp(name, "__metadata__", 12) == 0;
        tsk_status status = is_metadata
                                ? tsk__safetensors_check_metadata(file, entry, error)
                                : tsk__safetensors_parse_tensor(file, entry, &file->tensors[file->count++], error);
        if (status != TSK_OK) return status;
    }
    return TSK_OK;
}

/* By offset; an empty tensor before the one that starts where it does; else as in the header, where names lie in
   order. */
static int tsk__safetensors_compare_offsets(const void *a, const void *b) {
    const tsk_tensor_info *left = (const tsk_tensor_info *)a, *right = (const tsk_tensor_info *)b;
    if (left->offset != right->offset) return left->offset < right->offset ? -1 : 1;
    if (left->size != right->size) return left->size < right->size ? -1 : 1;
    return left->name < right->name ? -1 : left->name > right->name;
}

static int tsk__safetensors_compare_names(const void *a, const void *b) {
    return strcmp((*(const tsk_tensor_info *const *)a)->name, (*(const tsk_tensor_info *const *)b)->name);
}

/* Every byte of the data belongs to exactly one tensor. */
static tsk_status tsk__safetensors_check_layout(const tsk_safetensors *file, tsk_error *error) {
    uint64_t expected = file->data_start;
    size_t i;
    for (i = 0; i < file->count; i++) {
        const tsk_tensor_info *tensor = &file->tensors[i];
        if (tensor->offset != expected)
            return tsk__safetensors_fail_tensor(file, tensor->name, NULL, error,
                                                "its data begins at %llu, but the data before it ends at %llu: %s",
                                                (unsigned long long)(tensor->offset - file->data_start),
                                                (unsigned long long)(expected - file->data_start),
                                                tensor->offset < expected ? "an overlap" : "a hole");
        expected += tensor->size;
    }
    if (expected != file->file.size)
        return tsk__safetensors_fail(file, expected, error, "the tensors end at byte %llu, but the file has %llu",
                                     (unsigned long long)expected, (unsigned long long)file->file.size);
    return TSK_OK;
}

static tsk_status tsk__safetensors_sort(tsk_safetensors *file, tsk_error *error) {
    tsk_status status;
    size_t i;
    qsort(file->tensors, file->count, sizeof *file->tensors, tsk__safetensors_compare_offsets);
    for (i = 0; i < file->count; i++) file->by_name[i] = &file->tensors[i];
    qsort(file->by_name, file->count, sizeof *file->by_name, tsk__safetensors_compare_names);
    status = tsk__safetensors_check_layout(file, error);
    for (i = 1; i < file->count && status == TSK_OK; i++)
        if (strcmp(file->by_name[i - 1]->name, file->by_name[i]->name) == 0)
            status = tsk__safetensors_fail_tensor(file, file->by_name[i]->name, NULL, error, "the name appears twice");
    return status;
}

tsk_status tsk_safetensors_open(const char *path, const tsk_host *host, tsk_safetensors **out, tsk_error *error) {
    const tsk_allocator *allocator = tsk__memory_allocator(host);
    tsk_safetensors *file;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_safetensors_open", "out");
    *out = NULL;
    if (!path) return tsk__error_null(error, "tsk_safetensors_open", "path");
    file = (tsk_safetensors *)tsk__memory_new_zeroed(allocator, 1, sizeof *file);
    if (!file) return tsk__error_memory(error, "a safetensors file", sizeof *file);
    file->allocator = allocator;
    file->file.descriptor = -1;
    file->path = tsk__memory_copy_string(allocator, path);
    status = file->path ? tsk__file_open(&file->file, path, host, error)
                        : tsk__error_memory(error, "a path", strlen(path) + 1);
    if (status == TSK_OK) status = tsk__safetensors_parse_header(file, error);
    if (status == TSK_OK) status = tsk__safetensors_parse_entries(file, error);
    if (status == TSK_OK) status = tsk__safetensors_sort(file, error);
    if (status != TSK_OK) {
        tsk_safetensors_free(file);
        return status;
    }
    tsk__file_map(&file->file, host);
    *out = file;
    return TSK_OK;
}

void tsk_safetensors_free(tsk_safetensors *file) {
    const tsk_allocator *allocator = file ? file->allocator : NULL;
    if (!file) return;
    tsk__file_close(&file->file);
    tsk_json_free(file->header);
    tsk__memory_delete(allocator, file->tensors);
    tsk__memory_delete(allocator, (void *)file->by_name);
    tsk__memory_delete(allocator, file->path);
    tsk__memory_delete(allocator, file);
}

size_t tsk_safetensors_count(const tsk_safetensors *file) { return file ? file->count : 0; }

const tsk_tensor_info *tsk_safetensors_get(const tsk_safetensors *file, size_t index) {
    return file && index < file->count ? &file->tensors[index] : NULL;
}

const tsk_tensor_info *tsk_safetensors_find(const tsk_safetensors *file, const char *name) {
    size_t low = 0, high = file && name ? file->count : 0;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, file->by_name[middle]->name);
        if (order == 0) return file->by_name[middle];
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

const tsk_json_value *tsk_safetensors_metadata(const tsk_safetensors *file) {
    return file ? tsk_json_get(tsk_json_root(file->header), "__metadata__") : NULL;
}

const void *tsk_safetensors_data(const tsk_safetensors *file, const tsk_tensor_info *tensor) {
    return file && tensor && file->file.map ? (const char *)file->file.map + tensor->offset : NULL;
}

tsk_status tsk_safetensors_read(const tsk_safetensors *file, const tsk_tensor_info *tensor, uint64_t offset,
                                void *buffer, size_t size, tsk_error *error) {
    if (!file) return tsk__error_null(error, "tsk_safetensors_read", "file");
    if (!tensor) return tsk__error_null(error, "tsk_safetensors_read", "tensor");
    if (!buffer && size) return tsk__error_null(error, "tsk_safetensors_read", "buffer");
    if (offset > tensor->size || size > tensor->size - offset)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, file->path, tensor->offset,
                              "%llu bytes from %llu of tensor '%.120s' are beyond its %llu", (unsigned long long)size,
                              (unsigned long long)offset, tensor->name, (unsigned long long)tensor->size);
    return tsk__file_read(&file->file, file->path, tensor->offset + offset, buffer, size, error);
}

/* ---- writing
   The header stands first in the file but is complete last. So the data goes to a second, unnamed temporary file, which
   disappears with the process, and is copied behind the header at the end. */

struct tsk_safetensors_writer {
    const tsk_allocator *allocator;
    tsk__output data;
    uint64_t data_size;
    tsk_text header;        /* so far, without the closing brace */
    tsk_json_writer json;
    int is_finished;
    size_t *slots;          /* [n_slots] hash table: where in the header a name starts, 0 where free */
    tsk__hash_key key;      /* of its hash */
    size_t n_slots, n_names; /* n_slots is a power of two */
};

tsk_status tsk_safetensors_writer_open(const char *path, const tsk_allocator *allocator, tsk_safetensors_writer **out,
                                       tsk_error *error) {
    tsk_safetensors_writer *writer;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_safetensors_writer_open", "out");
    *out = NULL;
    if (!path) return tsk__error_null(error, "tsk_safetensors_writer_open", "path");
    writer = (tsk_safetensors_writer *)tsk__memory_new_zeroed(allocator, 1, sizeof *writer);
    if (!writer) return tsk__error_memory(error, "a safetensors writer", sizeof *writer);
    writer->allocator = writer->header.allocator = allocator;
    writer->json.out = &writer->header;
    writer->key = tsk__hash_key_new();
    status = tsk__output_open(&writer->data, path, allocator, error);
    if (status == TSK_OK) status = tsk__output_hide(&writer->data, error);
    if (status == TSK_OK) {
        tsk_json_begin_object(&writer->json);
        if (writer->json.status != TSK_OK) status = tsk__error_memory(error, "a safetensors header", 64);
    }
    if (status != TSK_OK) tsk_safetensors_writer_free(writer);
    else *out = writer;
    return status;
}

void tsk_safetensors_writer_free(tsk_safetensors_writer *writer) {
    const tsk_allocator *allocator = writer ? writer->allocator : NULL;
    if (!writer) return;
    tsk__output_abandon(&writer->data);
    tsk_text_free(&writer->header);
    tsk__memory_delete(allocator, writer->slots);
    tsk__memory_delete(allocator, writer);
}

static tsk_status tsk__safetensors_refuse(const tsk_safetensors_writer *writer, const char *name, const char *reason,
                                          tsk_error *error) {
    return tsk__error_set(error, TSK_ERROR_ARGUMENT, writer->data.path, TSK_NO_OFFSET,
                          "cannot write '%s': tensor '%.120s': %s", tsk__error_path(writer->data.path), name, reason);
}

/* Of the quoted name at the header's byte `start`, quotes and escapes included. */
static size_t tsk__safetensors_name_length(const tsk_safetensors_writer *writer, size_t start) {
    const char *name = writer->header.data + start;
    size_t i = 1;
    while (name[i] != '"') i += name[i] == '\\' ? 2 : 1;
    return i + 1;
}

/* The slot of the name at `start`: where an equal name is, or where it should go. */
static size_t *tsk__safetensors_slot(const tsk_safetensors_writer *writer, size_t start) {
    const char *header = writer->header.data;
    size_t i, length = tsk__safetensors_name_length(writer, start);
    for (i = (size_t)tsk__hash(writer->key, header + start, length);; i++) {
        size_t *slot = &writer->slots[i & (writer->n_slots - 1)];
        if (!*slot || strncmp(header + *slot, header + start, length) == 0) return slot; /* neither holds a NUL */
    }
}

/* Keeps half of the table free. 0 when out of memory. */
static int tsk__safetensors_grow_slots(tsk_safetensors_writer *writer) {
    size_t *old = writer->slots;
    size_t i, n_old = writer->n_slots;
    if (2 * (writer->n_names + 1) <= n_old) return 1;
    writer->slots = (size_t *)tsk__memory_new_zeroed(writer->allocator, n_old ? 2 * n_old : 64, sizeof *old);
    if (!writer->slots) {
        writer->slots = old;
        return 0;
    }
    writer->n_slots = n_old ? 2 * n_old : 64;
    for (i = 0; i < n_old; i++)
        if (old[i]) *tsk__safetensors_slot(writer, old[i]) = old[i];
    tsk__memory_delete(writer->allocator, old);
    return 1;
}

/* Why a tensor cannot be written, whatever is in the file already; NULL when it can. */
static const char *tsk__safetensors_objection(const tsk_safetensors_writer *writer, const char *name, tsk_dtype dtype,
                                              int n_dims, const uint64_t *shape, const void *data, uint64_t *size) {
    size_t i, n, length = strlen(name);
    int valid = 1;
    for (i = 0; i < length && valid; i += n) n = tsk__json_utf8(name + i, length - i, &valid);
    if (!valid) return "the name is not UTF-8";
    if (strcmp(name, "__metadata__") == 0) return "this name is the format's own";
    if (tsk_dtype_size(dtype) == 0) return "unknown dtype";
    if (n_dims < 0 || n_dims > TSK_MAX_DIMS) return "too many dimensions";
    if (!tsk__safetensors_size(dtype, n_dims, shape, size)) return "shape times dtype size does not fit 64 bits";
    if (*size > SIZE_MAX || *size > (uint64_t)INT64_MAX / 2 - writer->data_size) return "larger than a file can be";
    return *size && !data ? "no data" : NULL;
}

static void tsk__safetensors_write_entry(tsk_safetensors_writer *writer, tsk_dtype dtype, int n_dims,
                                         const uint64_t *shape, uint64_t size) {
    tsk_json_writer *json = &writer->json;
    int i;
    tsk_json_begin_object(json);
    tsk_json_write_key(json, "dtype");
    tsk_json_write_string(json, tsk_dtype_name(dtype), strlen(tsk_dtype_name(dtype)));
    tsk_json_write_key(json, "shape");
    tsk_json_begin_array(json);
    for (i = 0; i < n_dims; i++) tsk_json_write_uint(json, shape[i]);
    tsk_json_end_array(json);
    tsk_json_write_key(json, "data_offsets");
    tsk_json_begin_array(json);
    tsk_json_write_uint(json, writer->data_size);
    tsk_json_write_uint(json, writer->data_size + size);
    tsk_json_end_array(json);
    tsk_json_end_object(json);
}

/* Whatever fails, the writer is as it was: the tensor can be added again, or left out. */
tsk_status tsk_safetensors_writer_add(tsk_safetensors_writer *writer, const char *name, tsk_dtype dtype, int n_dims,
                                      const uint64_t *shape, const void *data, tsk_error *error) {
    uint64_t size = 0;
    size_t old_length, start, *slot = NULL;
    const char *objection;
    tsk_status status = TSK_OK;
    if (!writer) return tsk__error_null(error, "tsk_safetensors_writer_add", "writer");
    if (!name) return tsk__error_null(error, "tsk_safetensors_writer_add", "name");
    if (!shape && n_dims > 0) return tsk__error_null(error, "tsk_safetensors_writer_add", "shape");
    old_length = writer->header.length;
    start = old_length + (writer->n_names ? 1 : 0);
    objection = writer->is_finished ? "the file is finished"
                                    : tsk__safetensors_objection(writer, name, dtype, n_dims, shape, data, &size);
    if (objection) return tsk__safetensors_refuse(writer, name, objection, error);
    tsk_json_write_key(&writer->json, name);
    tsk__safetensors_write_entry(writer, dtype, n_dims, shape, size);
    if (writer->json.status != TSK_OK || !tsk__safetensors_grow_slots(writer))
        status = tsk__error_memory(error, "a safetensors header", old_length);
    else if (writer->header.length > TSK__SAFETENSORS_MAX_HEADER - 16)
        status = tsk__safetensors_refuse(writer, name, "the header would be longer than the format allows", error);
    else {
        slot = tsk__safetensors_slot(writer, start);
        if (*slot) status = tsk__safetensors_refuse(writer, name, "the name is there already", error);
        else status = tsk__output_write(&writer->data, writer->data_size, data, (size_t)size, error);
    }
    if (status == TSK_OK) {
        *slot = start;
        writer->n_names++;
        writer->data_size += size;
    } else {
        writer->header.length = old_length;
        writer->header.data[old_length] = 0;
        writer->json.status = TSK_OK;
        writer->json.needs_comma = writer->n_names != 0;
    }
    return status;
}

/* The data behind the header, a piece at a time. */
static tsk_status tsk__safetensors_copy_data(const tsk_safetensors_writer *writer, const tsk__output *output,
                                             uint64_t start, tsk_error *error) {
    size_t piece = (size_t)1 << 20;
    uint64_t done = 0;
    void *buffer = tsk__memory_new(writer->allocator, piece, 1);
    tsk_status status = buffer ? TSK_OK : tsk__error_memory(error, "copying tensors", piece);
    while (status == TSK_OK && done < writer->data_size) {
        size_t wanted = writer->data_size - done < piece ? (size_t)(writer->data_size - done) : piece;
        int64_t n = tsk__output_read(&writer->data, done, buffer, wanted);
        if (n <= 0)
            status = tsk__output_fail(&writer->data, error, n < 0 ? strerror(errno) : "the temporary file was cut");
        else status = tsk__output_write(output, start + done, buffer, (size_t)n, error);
        if (status == TSK_OK) done += (uint64_t)n;
    }
    tsk__memory_delete(writer->allocator, buffer);
    return status;
}

/* Length, header, spaces up to a multiple of 8 (so that the data is aligned), data. */
static tsk_status tsk__safetensors_write_file(tsk_safetensors_writer *writer, const tsk__output *output,
                                              tsk_error *error) {
    unsigned char length[8];
    tsk_status status;
    int i;
    tsk_json_end_object(&writer->json);
    if (writer->json.status == TSK_OK)
        writer->json.status = tsk_text_append(&writer->header, "       ", (8 - writer->header.length % 8) % 8);
    if (writer->json.status != TSK_OK) return tsk__error_memory(error, "a safetensors header", writer->header.length);
    for (i = 0; i < 8; i++) length[i] = (unsigned char)((uint64_t)writer->header.length >> 8 * i);
    status = tsk__output_write(output, 0, length, sizeof length, error);
    if (status == TSK_OK) status = tsk__output_write(output, 8, writer->header.data, writer->header.length, error);
    return status == TSK_OK ? tsk__safetensors_copy_data(writer, output, 8 + (uint64_t)writer->header.length, error)
                            : status;
}

tsk_status tsk_safetensors_writer_finish(tsk_safetensors_writer *writer, tsk_error *error) {
    tsk__output output;
    tsk_status status;
    if (!writer) return tsk__error_null(error, "tsk_safetensors_writer_finish", "writer");
    if (writer->is_finished)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, writer->data.path, TSK_NO_OFFSET, "'%s' is finished already",
                              tsk__error_path(writer->data.path));
    writer->is_finished = 1;
    status = tsk__output_open(&output, writer->data.path, writer->allocator, error);
    if (status == TSK_OK) {
        status = tsk__safetensors_write_file(writer, &output, error);
        if (status == TSK_OK) status = tsk__output_commit(&output, error);
        else tsk__output_abandon(&output);
    }
    return status;
}

// >>unicode ===========================================================================================================
/* Character classes and NFC, exactly as the reference tokenizer has them. Its regular expressions follow Unicode 16,
   its normalizer about Unicode 9, so the tables are taken from its behaviour and not from the Unicode database. UTF-8
   itself is read and written by the two functions of >>json. */

enum {
    TSK__UNICODE_OTHER,
    TSK__UNICODE_UPPER,    /* Lu, Lt */
    TSK__UNICODE_LOWER,    /* Ll */
    TSK__UNICODE_LETTER,   /* Lm, Lo */
    TSK__UNICODE_MARK,     /* M */
    TSK__UNICODE_NUMBER,   /* N */
    TSK__UNICODE_SPACE,    /* \s */
    TSK__UNICODE_KIND = 7, /* the bits of the seven above */
    TSK__UNICODE_WORD = 8, /* \w */
    TSK__UNICODE_UNSTABLE = 16 /* NFC may change it, move it or join it to what stands before: text without is NFC */
};

/* ---- begin of tables: made by tools/make_unicode_tables.mjs, do not edit */
/* 3427 runs that cover all code points from 0: length * 32 + property */
static const uint32_t tsk__unicode_runs[] = {
    288, 166, 576, 38, 480, 333, 224, 841, 128, 40, 32, 842, 320, 38, 832, 38, 288, 43, 224, 69, 32, 42, 96, 37, 43, 32,
    101, 32, 745, 32, 233, 778, 32, 266, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42,
    41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41,
    42, 41, 42, 41, 42, 41, 74, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 74, 41, 42, 41, 42, 41, 42,
    41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41,
    42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 73, 42, 41, 42, 41, 106, 73, 42, 41, 42, 73, 42, 105, 74, 137, 42, 73,
    42, 105, 106, 73, 42, 73, 42, 41, 42, 41, 42, 73, 42, 41, 74, 41, 42, 73, 42, 105, 42, 41, 42, 73, 74, 43, 41, 106,
    139, 73, 42, 73, 42, 73, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 74, 41, 42, 41, 42, 41, 42,
    41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 74, 73, 42, 41, 42, 105, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41,
    42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42,
    41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 234, 73, 42, 73, 74, 41, 42, 137, 42, 41, 42,
    41, 42, 41, 42, 41, 2218, 43, 874, 587, 128, 395, 448, 171, 224, 43, 32, 43, 544, 2556, 44, 1052, 41, 42, 41, 42,
    59, 32, 41, 42, 64, 43, 106, 48, 41, 192, 41, 48, 105, 32, 41, 32, 73, 42, 553, 32, 297, 1130, 41, 74, 105, 106, 41,
    42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 170, 41, 42, 32, 41, 42, 73,
    74, 1641, 1546, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41,
    42, 41, 42, 41, 42, 41, 42, 41, 42, 32, 188, 76, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41,
    42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42,
    41, 42, 41, 42, 41, 42, 41, 42, 73, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 74, 41, 42, 41, 42, 41, 42, 41,
    42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42,
    41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41,
    42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42,
    41, 42, 32, 1225, 64, 43, 192, 1322, 256, 1468, 32, 60, 32, 92, 32, 92, 32, 60, 256, 875, 128, 139, 928, 380, 160,
    1387, 700, 333, 128, 75, 60, 3179, 32, 43, 252, 64, 220, 75, 92, 32, 156, 75, 333, 107, 64, 43, 512, 43, 60, 971,
    892, 64, 2859, 364, 43, 448, 333, 1067, 316, 75, 128, 43, 64, 44, 64, 715, 156, 43, 316, 43, 124, 43, 188, 576, 811,
    124, 128, 363, 160, 779, 32, 203, 256, 300, 1355, 332, 476, 32, 956, 140, 1739, 76, 60, 43, 492, 60, 76, 43, 156,
    108, 283, 75, 76, 64, 333, 32, 523, 108, 32, 267, 64, 75, 64, 715, 32, 235, 32, 43, 96, 139, 64, 60, 43, 60, 204,
    64, 76, 64, 76, 60, 43, 256, 60, 128, 91, 32, 59, 75, 76, 64, 333, 75, 64, 197, 64, 43, 32, 44, 64, 108, 32, 203,
    128, 75, 64, 715, 32, 235, 32, 43, 59, 32, 43, 59, 32, 75, 64, 60, 32, 172, 128, 76, 64, 76, 60, 96, 44, 224, 123,
    43, 32, 59, 224, 333, 76, 107, 44, 352, 108, 32, 299, 32, 107, 32, 715, 32, 235, 32, 75, 32, 171, 64, 60, 43, 268,
    32, 108, 32, 76, 60, 64, 43, 480, 75, 76, 64, 333, 288, 43, 204, 32, 108, 32, 267, 64, 75, 64, 715, 32, 235, 32, 75,
    32, 171, 64, 60, 43, 60, 204, 64, 76, 64, 76, 60, 224, 44, 92, 128, 91, 32, 107, 76, 64, 333, 32, 43, 197, 320, 44,
    43, 32, 203, 96, 107, 32, 139, 96, 75, 32, 43, 32, 75, 96, 75, 96, 107, 96, 395, 128, 60, 140, 96, 108, 32, 108, 60,
    64, 43, 192, 60, 448, 333, 101, 416, 172, 267, 32, 107, 32, 747, 32, 523, 64, 44, 43, 236, 32, 108, 32, 108, 60,
    224, 92, 32, 107, 64, 43, 64, 75, 76, 64, 333, 256, 229, 32, 43, 108, 32, 267, 32, 107, 32, 747, 32, 331, 32, 171,
    64, 60, 43, 140, 60, 76, 32, 108, 32, 108, 60, 224, 92, 192, 75, 32, 75, 76, 64, 333, 32, 75, 44, 384, 140, 299, 32,
    107, 32, 1323, 76, 43, 60, 204, 32, 108, 32, 108, 60, 43, 160, 107, 60, 229, 107, 76, 64, 333, 293, 32, 203, 32,
    108, 32, 587, 96, 779, 32, 299, 32, 43, 64, 235, 96, 60, 128, 60, 172, 32, 44, 32, 236, 60, 192, 333, 64, 76, 416,
    1547, 44, 75, 140, 124, 160, 235, 44, 156, 108, 32, 333, 1248, 75, 32, 43, 32, 171, 32, 779, 32, 43, 32, 331, 44,
    75, 140, 92, 108, 43, 64, 171, 32, 43, 32, 156, 108, 32, 333, 64, 139, 1024, 43, 736, 92, 192, 333, 325, 32, 60, 32,
    60, 32, 60, 128, 76, 107, 59, 139, 32, 139, 59, 139, 59, 139, 59, 139, 59, 395, 59, 107, 128, 220, 44, 60, 44, 156,
    76, 188, 32, 92, 171, 204, 60, 140, 32, 140, 60, 140, 60, 140, 60, 140, 60, 396, 60, 108, 288, 60, 1824, 1387, 108,
    60, 268, 60, 44, 92, 140, 43, 333, 192, 203, 140, 139, 108, 43, 108, 75, 236, 107, 140, 427, 364, 60, 43, 44, 333,
    140, 64, 1225, 32, 41, 160, 41, 64, 1386, 32, 43, 106, 3115, 699, 1611, 891, 4299, 32, 139, 64, 235, 32, 43, 32,
    139, 64, 1323, 32, 139, 64, 1067, 32, 139, 64, 235, 32, 43, 32, 139, 64, 491, 32, 1835, 32, 139, 64, 2155, 64, 124,
    288, 645, 96, 523, 512, 2761, 64, 202, 96, 19851, 64, 555, 38, 843, 160, 2411, 96, 109, 267, 224, 587, 76, 60, 44,
    288, 619, 76, 60, 352, 587, 76, 384, 427, 32, 107, 32, 76, 384, 1675, 972, 60, 44, 96, 43, 128, 43, 60, 64, 333,
    192, 325, 544, 108, 32, 44, 333, 192, 2859, 224, 171, 76, 1099, 60, 43, 160, 2251, 320, 1003, 32, 396, 128, 300,
    124, 320, 333, 971, 64, 171, 352, 1419, 128, 843, 192, 333, 37, 1184, 747, 92, 108, 128, 1707, 332, 32, 60, 652,
    284, 64, 60, 333, 192, 333, 416, 43, 256, 476, 556, 1568, 172, 1515, 92, 460, 60, 267, 96, 333, 544, 316, 384, 108,
    971, 300, 92, 76, 75, 333, 1419, 60, 364, 92, 384, 1163, 620, 60, 256, 333, 96, 107, 333, 1163, 64, 298, 41, 42,
    160, 1385, 64, 105, 512, 124, 32, 444, 44, 252, 139, 60, 203, 60, 75, 44, 92, 43, 160, 1418, 2027, 426, 43, 1098,
    1195, 1756, 172, 188, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41,
    42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42,
    41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41,
    42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42,
    41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41,
    42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 298, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42,
    41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41,
    42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42,
    41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 298, 265, 202, 64, 201, 64, 266,
    265, 266, 265, 202, 64, 201, 64, 266, 32, 41, 32, 41, 32, 41, 32, 41, 266, 265, 42, 58, 42, 58, 42, 58, 42, 58, 42,
    58, 42, 58, 42, 58, 64, 266, 265, 266, 265, 266, 265, 170, 32, 74, 105, 57, 41, 32, 58, 96, 106, 32, 74, 41, 57, 41,
    57, 41, 96, 106, 58, 64, 74, 105, 57, 128, 106, 58, 138, 105, 57, 41, 32, 80, 64, 106, 32, 74, 41, 57, 41, 57, 41,
    48, 64, 86, 294, 32, 72, 832, 70, 160, 38, 480, 72, 608, 40, 320, 38, 512, 37, 43, 64, 197, 160, 43, 325, 192, 427,
    1632, 444, 140, 60, 108, 412, 544, 41, 128, 41, 64, 42, 105, 74, 105, 42, 32, 41, 96, 169, 192, 41, 32, 57, 32, 41,
    32, 89, 73, 32, 42, 137, 42, 139, 42, 64, 74, 73, 160, 41, 138, 128, 42, 32, 517, 1133, 41, 42, 141, 37, 13280, 80,
    9888, 1925, 832, 1672, 709, 20160, 965, 26880, 48, 9312, 1545, 1546, 41, 42, 105, 74, 41, 42, 41, 42, 41, 42, 137,
    42, 41, 74, 41, 202, 75, 105, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42,
    41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41,
    42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42,
    41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 74, 192, 41, 42, 41, 42, 124, 41, 42,
    288, 37, 64, 1226, 32, 42, 160, 42, 64, 1803, 224, 43, 480, 60, 747, 288, 235, 32, 235, 32, 235, 32, 235, 32, 235,
    32, 235, 32, 235, 32, 235, 32, 1052, 1504, 43, 14848, 38, 128, 75, 45, 800, 301, 220, 32, 171, 64, 109, 75, 128,
    2763, 64, 92, 64, 107, 32, 2891, 32, 139, 160, 1387, 32, 3019, 96, 133, 320, 1035, 1536, 523, 1024, 325, 960, 261,
    32, 485, 1024, 325, 1248, 485, 10240, 210955, 2048, 709035, 2144, 1483, 64, 8619, 96, 523, 333, 75, 640, 41, 42, 41,
    42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42,
    41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 43, 60, 108, 32, 348, 32, 43, 41, 42, 41, 42, 41, 42, 41,
    42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 75, 92, 2251, 333, 92, 1184,
    299, 64, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 106, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42,
    41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41,
    42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 43, 266, 41, 42, 41, 42, 73, 42,
    41, 42, 41, 42, 41, 42, 41, 42, 43, 64, 41, 42, 41, 42, 43, 41, 42, 41, 106, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42,
    41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 169, 42, 169, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42, 41, 42,
    137, 42, 41, 42, 73, 42, 64, 41, 42, 32, 42, 32, 42, 41, 42, 41, 42, 41, 42, 41, 672, 107, 41, 42, 107, 42, 235, 44,
    107, 60, 139, 44, 747, 172, 128, 44, 96, 197, 320, 1675, 384, 76, 1611, 524, 60, 44, 320, 333, 192, 604, 203, 96,
    43, 32, 75, 44, 333, 907, 172, 124, 64, 747, 396, 60, 384, 939, 96, 140, 1515, 60, 396, 60, 448, 43, 333, 192, 171,
    44, 331, 333, 171, 32, 1323, 460, 288, 107, 44, 267, 76, 64, 333, 192, 747, 96, 43, 108, 1611, 60, 43, 124, 75, 92,
    171, 92, 43, 60, 43, 768, 107, 64, 363, 172, 64, 107, 44, 60, 320, 203, 64, 203, 64, 203, 288, 235, 32, 235, 32,
    1386, 32, 139, 298, 43, 192, 2570, 1131, 268, 32, 44, 60, 64, 333, 192, 357515, 384, 747, 128, 1579, 270464, 8667,
    75, 59, 43, 59, 75, 347, 43, 59, 43, 59, 75, 91, 107, 2203, 64, 3419, 1216, 234, 384, 170, 160, 59, 60, 59, 299, 32,
    443, 32, 187, 32, 59, 32, 91, 32, 91, 32, 315, 3179, 1056, 11627, 576, 2059, 64, 1739, 1280, 395, 128, 524, 512,
    540, 96, 72, 768, 104, 1024, 171, 32, 4331, 608, 333, 224, 841, 128, 40, 32, 842, 352, 2859, 96, 203, 64, 203, 64,
    203, 64, 107, 1120, 395, 32, 843, 32, 619, 32, 75, 32, 491, 64, 459, 1088, 3947, 384, 1445, 384, 1709, 133, 544, 69,
    3616, 60, 4160, 939, 96, 1579, 480, 60, 869, 128, 1035, 133, 288, 651, 45, 267, 45, 160, 1227, 188, 160, 971, 64,
    1163, 128, 267, 32, 173, 1344, 1289, 1290, 2507, 64, 333, 192, 1161, 128, 1162, 128, 1291, 256, 1675, 384, 361, 32,
    489, 32, 233, 32, 73, 32, 362, 32, 490, 32, 234, 32, 74, 96, 1675, 384, 9963, 288, 715, 320, 267, 768, 203, 32,
    1355, 32, 299, 2208, 203, 64, 43, 32, 1419, 32, 75, 96, 43, 64, 747, 64, 261, 747, 64, 229, 1003, 256, 293, 1536,
    619, 32, 75, 160, 165, 715, 197, 128, 843, 2240, 1803, 128, 69, 75, 517, 64, 1477, 43, 108, 32, 76, 160, 44, 60, 44,
    60, 139, 32, 107, 32, 939, 64, 124, 128, 60, 293, 736, 939, 69, 32, 939, 101, 1024, 267, 32, 907, 92, 128, 165, 512,
    1739, 320, 715, 64, 261, 619, 160, 261, 587, 736, 229, 2560, 2347, 1760, 1641, 416, 1642, 224, 197, 1163, 140, 256,
    333, 192, 333, 203, 713, 96, 172, 32, 43, 714, 6976, 997, 32, 1355, 32, 76, 96, 75, 512, 107, 1760, 140, 939, 325,
    43, 256, 715, 364, 133, 864, 587, 140, 1344, 683, 229, 640, 747, 288, 108, 1707, 460, 60, 352, 645, 333, 44, 75, 76,
    43, 288, 60, 108, 1451, 300, 92, 224, 44, 416, 811, 224, 333, 192, 124, 1163, 60, 364, 92, 32, 333, 128, 43, 76, 43,
    256, 1131, 60, 64, 43, 288, 108, 1547, 428, 60, 139, 128, 44, 60, 76, 32, 76, 333, 43, 32, 43, 128, 645, 352, 587,
    32, 811, 300, 92, 44, 192, 44, 75, 44, 1984, 235, 32, 43, 32, 139, 32, 491, 32, 331, 224, 1515, 332, 92, 160, 333,
    192, 140, 32, 267, 64, 75, 64, 715, 32, 235, 32, 75, 32, 171, 32, 44, 60, 43, 60, 204, 64, 76, 64, 76, 60, 64, 43,
    192, 60, 160, 171, 76, 64, 252, 96, 188, 352, 331, 32, 43, 64, 43, 32, 1227, 32, 43, 300, 32, 44, 64, 44, 32, 140,
    32, 172, 43, 44, 43, 416, 76, 928, 1707, 428, 60, 108, 60, 139, 160, 333, 128, 44, 107, 960, 1547, 60, 300, 60, 76,
    60, 140, 92, 75, 32, 43, 256, 333, 5312, 1515, 60, 204, 64, 236, 92, 736, 139, 76, 1088, 1547, 492, 60, 44, 96, 43,
    352, 333, 1216, 1387, 364, 92, 43, 224, 333, 192, 653, 896, 875, 64, 460, 60, 128, 333, 69, 128, 235, 5920, 1419,
    492, 3232, 1033, 1034, 333, 293, 384, 267, 64, 43, 64, 267, 32, 75, 32, 779, 204, 32, 76, 64, 140, 43, 44, 43, 76,
    384, 333, 2240, 267, 64, 1259, 236, 64, 236, 43, 32, 43, 44, 864, 43, 332, 1291, 236, 43, 140, 256, 44, 256, 43,
    364, 1483, 524, 96, 43, 576, 2347, 6368, 1067, 480, 333, 192, 299, 32, 1195, 268, 32, 236, 60, 43, 480, 333, 613,
    160, 971, 64, 716, 32, 460, 2336, 235, 32, 75, 32, 1227, 204, 96, 44, 32, 76, 32, 236, 43, 44, 256, 333, 192, 203,
    32, 75, 32, 1035, 172, 32, 76, 32, 172, 43, 224, 333, 9920, 619, 140, 288, 76, 43, 44, 427, 32, 1099, 236, 96, 172,
    416, 333, 44, 2720, 43, 480, 677, 1376, 29515, 3264, 3565, 544, 6283, 84352, 3115, 480, 34315, 512, 44, 203, 492,
    320, 127851, 160, 18667, 218912, 971, 588, 333, 55488, 18219, 224, 1003, 32, 333, 192, 2539, 32, 333, 192, 971, 64,
    188, 352, 1547, 252, 288, 139, 384, 333, 32, 229, 32, 683, 160, 619, 13824, 1451, 96, 333, 6336, 1033, 1034, 741,
    3360, 2411, 128, 44, 43, 1772, 224, 140, 427, 2048, 75, 32, 43, 44, 352, 76, 448, 196363, 256, 39627, 1312, 331,
    285920, 139, 32, 235, 32, 75, 32, 9323, 480, 43, 928, 107, 64, 43, 448, 139, 256, 12683, 73856, 3435, 160, 427, 96,
    299, 224, 331, 96, 44, 60, 133664, 333, 16576, 1484, 64, 748, 17120, 240, 188, 96, 220, 256, 284, 64, 252, 960, 156,
    416, 208, 4128, 124, 3936, 645, 384, 645, 3456, 805, 4320, 841, 842, 841, 234, 32, 586, 841, 842, 41, 32, 73, 64,
    41, 64, 73, 64, 137, 32, 265, 138, 32, 42, 32, 234, 32, 362, 841, 842, 73, 32, 137, 64, 265, 32, 233, 32, 842, 73,
    32, 137, 32, 169, 32, 41, 96, 233, 32, 842, 841, 842, 841, 842, 841, 842, 841, 842, 841, 842, 841, 906, 64, 809, 32,
    810, 32, 202, 809, 32, 810, 32, 202, 809, 32, 810, 32, 202, 809, 32, 810, 32, 202, 809, 32, 810, 32, 202, 41, 42,
    64, 1613, 16384, 1772, 128, 1612, 256, 44, 448, 44, 704, 172, 32, 492, 35328, 330, 43, 650, 192, 202, 6816, 252, 32,
    572, 64, 252, 32, 92, 32, 188, 160, 1995, 1056, 44, 3584, 1451, 96, 236, 235, 64, 333, 128, 43, 10272, 971, 44, 544,
    1419, 140, 333, 15040, 907, 140, 333, 6848, 971, 76, 43, 333, 15520, 235, 32, 139, 32, 75, 32, 491, 32, 6315, 64,
    293, 252, 1312, 1097, 1098, 252, 43, 128, 333, 25312, 1893, 32, 101, 32, 133, 2432, 1445, 32, 485, 6208, 139, 32,
    875, 32, 75, 32, 43, 64, 43, 32, 331, 32, 139, 32, 43, 32, 43, 192, 43, 128, 43, 32, 43, 32, 43, 32, 107, 32, 75,
    32, 43, 64, 43, 32, 43, 32, 43, 32, 43, 32, 43, 32, 75, 32, 43, 64, 139, 32, 235, 32, 139, 32, 139, 32, 43, 32, 331,
    32, 555, 160, 107, 32, 171, 32, 555, 18560, 421, 1120, 840, 192, 840, 192, 840, 85184, 333, 32960, 1367051, 1024,
    132939, 192, 7115, 64, 184395, 448, 239147, 480, 19915, 78912, 17371, 48192, 158059, 160, 134155, 22784512, 7692,
    6275584,
};
/* 334 runs of code points that combine: the first, length * 64 + class (classes numbered in their order) */
static const uint32_t tsk__unicode_orders[][2] = {
    {768,1394}, {789,115}, {790,301}, {794,115}, {795,107}, {796,365}, {801,169}, {803,301}, {807,169}, {809,749},
    {820,321}, {825,301}, {829,242}, {834,114}, {837,118}, {838,114}, {839,237}, {842,242}, {845,173}, {848,242},
    {851,301}, {855,114}, {856,115}, {857,173}, {859,114}, {860,116}, {861,181}, {863,116}, {864,181}, {866,116},
    {867,882}, {1155,370}, {1425,109}, {1426,306}, {1430,109}, {1431,242}, {1434,110}, {1435,109}, {1436,434},
    {1442,429}, {1448,178}, {1450,109}, {1451,178}, {1453,110}, {1454,113}, {1455,114}, {1456,69}, {1457,70}, {1458,71},
    {1459,72}, {1460,73}, {1461,74}, {1462,75}, {1463,76}, {1464,77}, {1465,142}, {1467,79}, {1468,80}, {1469,81},
    {1471,82}, {1473,83}, {1474,84}, {1476,114}, {1477,109}, {1479,77}, {1552,562}, {1560,89}, {1561,90}, {1562,91},
    {1611,86}, {1612,87}, {1613,88}, {1614,89}, {1615,90}, {1616,91}, {1617,92}, {1618,93}, {1619,178}, {1621,173},
    {1623,370}, {1628,109}, {1629,178}, {1631,109}, {1648,94}, {1750,498}, {1759,306}, {1763,109}, {1764,114},
    {1767,178}, {1770,109}, {1771,178}, {1773,109}, {1809,95}, {1840,114}, {1841,109}, {1842,178}, {1844,109},
    {1845,178}, {1847,237}, {1850,114}, {1851,173}, {1853,114}, {1854,109}, {1855,242}, {1858,109}, {1859,114},
    {1860,109}, {1861,114}, {1862,109}, {1863,114}, {1864,109}, {1865,178}, {2027,498}, {2034,109}, {2035,114},
    {2070,306}, {2075,626}, {2085,242}, {2089,370}, {2137,237}, {2260,946}, {2275,109}, {2276,178}, {2278,109},
    {2279,178}, {2281,109}, {2282,242}, {2285,237}, {2288,86}, {2289,87}, {2290,88}, {2291,242}, {2294,109}, {2295,178},
    {2297,173}, {2299,370}, {2364,66}, {2381,68}, {2385,114}, {2386,109}, {2387,178}, {2492,66}, {2509,68}, {2620,66},
    {2637,68}, {2748,66}, {2765,68}, {2876,66}, {2893,68}, {3021,68}, {3149,68}, {3157,96}, {3158,97}, {3260,66},
    {3277,68}, {3405,68}, {3530,68}, {3640,162}, {3642,68}, {3656,291}, {3768,164}, {3784,293}, {3864,173}, {3893,109},
    {3895,109}, {3897,107}, {3953,102}, {3954,103}, {3956,104}, {3962,295}, {3968,103}, {3970,178}, {3972,68},
    {3974,178}, {4038,109}, {4151,66}, {4153,132}, {4237,109}, {4957,242}, {5908,68}, {5940,68}, {6098,68}, {6109,114},
    {6313,113}, {6457,110}, {6458,114}, {6459,109}, {6679,114}, {6680,109}, {6752,68}, {6773,562}, {6783,109},
    {6832,370}, {6837,429}, {6843,178}, {6845,109}, {6964,66}, {6980,68}, {7019,114}, {7020,109}, {7021,498},
    {7082,132}, {7142,66}, {7154,132}, {7223,66}, {7376,242}, {7380,65}, {7381,365}, {7386,178}, {7388,301}, {7392,114},
    {7394,449}, {7405,109}, {7412,114}, {7416,178}, {7616,178}, {7618,109}, {7619,498}, {7626,109}, {7627,178},
    {7629,117}, {7630,106}, {7631,109}, {7632,105}, {7633,2418}, {7675,114}, {7676,116}, {7677,109}, {7678,114},
    {7679,109}, {8400,178}, {8402,129}, {8404,306}, {8408,193}, {8411,178}, {8417,114}, {8421,129}, {8423,114},
    {8424,109}, {8425,114}, {8426,129}, {8428,301}, {8432,114}, {11503,242}, {11647,68}, {11744,2098}, {12330,108},
    {12331,113}, {12332,115}, {12333,110}, {12334,175}, {12441,131}, {42607,114}, {42612,690}, {42654,178}, {42736,178},
    {43014,68}, {43204,68}, {43232,1202}, {43307,237}, {43347,68}, {43443,66}, {43456,68}, {43696,114}, {43698,178},
    {43700,109}, {43703,178}, {43710,178}, {43713,114}, {43766,68}, {44013,68}, {64286,85}, {65056,498}, {65063,493},
    {65070,178}, {66045,109}, {66272,109}, {66422,370}, {68109,109}, {68111,114}, {68152,114}, {68153,65}, {68154,109},
    {68159,68}, {68325,114}, {68326,109}, {69702,68}, {69759,68}, {69817,68}, {69818,66}, {69888,242}, {69939,132},
    {70003,66}, {70080,68}, {70090,66}, {70197,68}, {70198,66}, {70377,66}, {70378,68}, {70460,66}, {70477,68},
    {70502,498}, {70512,370}, {70722,68}, {70726,66}, {70850,68}, {70851,66}, {71103,68}, {71104,66}, {71231,68},
    {71350,68}, {71351,66}, {71467,68}, {72767,68}, {92912,321}, {92976,498}, {113822,65}, {119141,171}, {119143,193},
    {119149,112}, {119150,363}, {119163,557}, {119173,370}, {119178,173}, {119210,306}, {119362,242}, {122880,498},
    {122888,1138}, {122907,498}, {122915,178}, {122918,370}, {125136,493}, {125252,434}, {125258,66},
};
/* 2060 decompositions by one step, ascending: code point, first half, second half (0: there is none) */
static const uint32_t tsk__unicode_steps[][3] = {
    {192,65,768}, {193,65,769}, {194,65,770}, {195,65,771}, {196,65,776}, {197,65,778}, {199,67,807}, {200,69,768},
    {201,69,769}, {202,69,770}, {203,69,776}, {204,73,768}, {205,73,769}, {206,73,770}, {207,73,776}, {209,78,771},
    {210,79,768}, {211,79,769}, {212,79,770}, {213,79,771}, {214,79,776}, {217,85,768}, {218,85,769}, {219,85,770},
    {220,85,776}, {221,89,769}, {224,97,768}, {225,97,769}, {226,97,770}, {227,97,771}, {228,97,776}, {229,97,778},
    {231,99,807}, {232,101,768}, {233,101,769}, {234,101,770}, {235,101,776}, {236,105,768}, {237,105,769},
    {238,105,770}, {239,105,776}, {241,110,771}, {242,111,768}, {243,111,769}, {244,111,770}, {245,111,771},
    {246,111,776}, {249,117,768}, {250,117,769}, {251,117,770}, {252,117,776}, {253,121,769}, {255,121,776},
    {256,65,772}, {257,97,772}, {258,65,774}, {259,97,774}, {260,65,808}, {261,97,808}, {262,67,769}, {263,99,769},
    {264,67,770}, {265,99,770}, {266,67,775}, {267,99,775}, {268,67,780}, {269,99,780}, {270,68,780}, {271,100,780},
    {274,69,772}, {275,101,772}, {276,69,774}, {277,101,774}, {278,69,775}, {279,101,775}, {280,69,808}, {281,101,808},
    {282,69,780}, {283,101,780}, {284,71,770}, {285,103,770}, {286,71,774}, {287,103,774}, {288,71,775}, {289,103,775},
    {290,71,807}, {291,103,807}, {292,72,770}, {293,104,770}, {296,73,771}, {297,105,771}, {298,73,772}, {299,105,772},
    {300,73,774}, {301,105,774}, {302,73,808}, {303,105,808}, {304,73,775}, {308,74,770}, {309,106,770}, {310,75,807},
    {311,107,807}, {313,76,769}, {314,108,769}, {315,76,807}, {316,108,807}, {317,76,780}, {318,108,780}, {323,78,769},
    {324,110,769}, {325,78,807}, {326,110,807}, {327,78,780}, {328,110,780}, {332,79,772}, {333,111,772}, {334,79,774},
    {335,111,774}, {336,79,779}, {337,111,779}, {340,82,769}, {341,114,769}, {342,82,807}, {343,114,807}, {344,82,780},
    {345,114,780}, {346,83,769}, {347,115,769}, {348,83,770}, {349,115,770}, {350,83,807}, {351,115,807}, {352,83,780},
    {353,115,780}, {354,84,807}, {355,116,807}, {356,84,780}, {357,116,780}, {360,85,771}, {361,117,771}, {362,85,772},
    {363,117,772}, {364,85,774}, {365,117,774}, {366,85,778}, {367,117,778}, {368,85,779}, {369,117,779}, {370,85,808},
    {371,117,808}, {372,87,770}, {373,119,770}, {374,89,770}, {375,121,770}, {376,89,776}, {377,90,769}, {378,122,769},
    {379,90,775}, {380,122,775}, {381,90,780}, {382,122,780}, {416,79,795}, {417,111,795}, {431,85,795}, {432,117,795},
    {461,65,780}, {462,97,780}, {463,73,780}, {464,105,780}, {465,79,780}, {466,111,780}, {467,85,780}, {468,117,780},
    {469,220,772}, {470,252,772}, {471,220,769}, {472,252,769}, {473,220,780}, {474,252,780}, {475,220,768},
    {476,252,768}, {478,196,772}, {479,228,772}, {480,550,772}, {481,551,772}, {482,198,772}, {483,230,772},
    {486,71,780}, {487,103,780}, {488,75,780}, {489,107,780}, {490,79,808}, {491,111,808}, {492,490,772}, {493,491,772},
    {494,439,780}, {495,658,780}, {496,106,780}, {500,71,769}, {501,103,769}, {504,78,768}, {505,110,768},
    {506,197,769}, {507,229,769}, {508,198,769}, {509,230,769}, {510,216,769}, {511,248,769}, {512,65,783},
    {513,97,783}, {514,65,785}, {515,97,785}, {516,69,783}, {517,101,783}, {518,69,785}, {519,101,785}, {520,73,783},
    {521,105,783}, {522,73,785}, {523,105,785}, {524,79,783}, {525,111,783}, {526,79,785}, {527,111,785}, {528,82,783},
    {529,114,783}, {530,82,785}, {531,114,785}, {532,85,783}, {533,117,783}, {534,85,785}, {535,117,785}, {536,83,806},
    {537,115,806}, {538,84,806}, {539,116,806}, {542,72,780}, {543,104,780}, {550,65,775}, {551,97,775}, {552,69,807},
    {553,101,807}, {554,214,772}, {555,246,772}, {556,213,772}, {557,245,772}, {558,79,775}, {559,111,775},
    {560,558,772}, {561,559,772}, {562,89,772}, {563,121,772}, {832,768,0}, {833,769,0}, {835,787,0}, {836,776,769},
    {884,697,0}, {894,59,0}, {901,168,769}, {902,913,769}, {903,183,0}, {904,917,769}, {905,919,769}, {906,921,769},
    {908,927,769}, {910,933,769}, {911,937,769}, {912,970,769}, {938,921,776}, {939,933,776}, {940,945,769},
    {941,949,769}, {942,951,769}, {943,953,769}, {944,971,769}, {970,953,776}, {971,965,776}, {972,959,769},
    {973,965,769}, {974,969,769}, {979,978,769}, {980,978,776}, {1024,1045,768}, {1025,1045,776}, {1027,1043,769},
    {1031,1030,776}, {1036,1050,769}, {1037,1048,768}, {1038,1059,774}, {1049,1048,774}, {1081,1080,774},
    {1104,1077,768}, {1105,1077,776}, {1107,1075,769}, {1111,1110,776}, {1116,1082,769}, {1117,1080,768},
    {1118,1091,774}, {1142,1140,783}, {1143,1141,783}, {1217,1046,774}, {1218,1078,774}, {1232,1040,774},
    {1233,1072,774}, {1234,1040,776}, {1235,1072,776}, {1238,1045,774}, {1239,1077,774}, {1242,1240,776},
    {1243,1241,776}, {1244,1046,776}, {1245,1078,776}, {1246,1047,776}, {1247,1079,776}, {1250,1048,772},
    {1251,1080,772}, {1252,1048,776}, {1253,1080,776}, {1254,1054,776}, {1255,1086,776}, {1258,1256,776},
    {1259,1257,776}, {1260,1069,776}, {1261,1101,776}, {1262,1059,772}, {1263,1091,772}, {1264,1059,776},
    {1265,1091,776}, {1266,1059,779}, {1267,1091,779}, {1268,1063,776}, {1269,1095,776}, {1272,1067,776},
    {1273,1099,776}, {1570,1575,1619}, {1571,1575,1620}, {1572,1608,1620}, {1573,1575,1621}, {1574,1610,1620},
    {1728,1749,1620}, {1730,1729,1620}, {1747,1746,1620}, {2345,2344,2364}, {2353,2352,2364}, {2356,2355,2364},
    {2392,2325,2364}, {2393,2326,2364}, {2394,2327,2364}, {2395,2332,2364}, {2396,2337,2364}, {2397,2338,2364},
    {2398,2347,2364}, {2399,2351,2364}, {2507,2503,2494}, {2508,2503,2519}, {2524,2465,2492}, {2525,2466,2492},
    {2527,2479,2492}, {2611,2610,2620}, {2614,2616,2620}, {2649,2582,2620}, {2650,2583,2620}, {2651,2588,2620},
    {2654,2603,2620}, {2888,2887,2902}, {2891,2887,2878}, {2892,2887,2903}, {2908,2849,2876}, {2909,2850,2876},
    {2964,2962,3031}, {3018,3014,3006}, {3019,3015,3006}, {3020,3014,3031}, {3144,3142,3158}, {3264,3263,3285},
    {3271,3270,3285}, {3272,3270,3286}, {3274,3270,3266}, {3275,3274,3285}, {3402,3398,3390}, {3403,3399,3390},
    {3404,3398,3415}, {3546,3545,3530}, {3548,3545,3535}, {3549,3548,3530}, {3550,3545,3551}, {3907,3906,4023},
    {3917,3916,4023}, {3922,3921,4023}, {3927,3926,4023}, {3932,3931,4023}, {3945,3904,4021}, {3955,3953,3954},
    {3957,3953,3956}, {3958,4018,3968}, {3960,4019,3968}, {3969,3953,3968}, {3987,3986,4023}, {3997,3996,4023},
    {4002,4001,4023}, {4007,4006,4023}, {4012,4011,4023}, {4025,3984,4021}, {4134,4133,4142}, {6918,6917,6965},
    {6920,6919,6965}, {6922,6921,6965}, {6924,6923,6965}, {6926,6925,6965}, {6930,6929,6965}, {6971,6970,6965},
    {6973,6972,6965}, {6976,6974,6965}, {6977,6975,6965}, {6979,6978,6965}, {7680,65,805}, {7681,97,805}, {7682,66,775},
    {7683,98,775}, {7684,66,803}, {7685,98,803}, {7686,66,817}, {7687,98,817}, {7688,199,769}, {7689,231,769},
    {7690,68,775}, {7691,100,775}, {7692,68,803}, {7693,100,803}, {7694,68,817}, {7695,100,817}, {7696,68,807},
    {7697,100,807}, {7698,68,813}, {7699,100,813}, {7700,274,768}, {7701,275,768}, {7702,274,769}, {7703,275,769},
    {7704,69,813}, {7705,101,813}, {7706,69,816}, {7707,101,816}, {7708,552,774}, {7709,553,774}, {7710,70,775},
    {7711,102,775}, {7712,71,772}, {7713,103,772}, {7714,72,775}, {7715,104,775}, {7716,72,803}, {7717,104,803},
    {7718,72,776}, {7719,104,776}, {7720,72,807}, {7721,104,807}, {7722,72,814}, {7723,104,814}, {7724,73,816},
    {7725,105,816}, {7726,207,769}, {7727,239,769}, {7728,75,769}, {7729,107,769}, {7730,75,803}, {7731,107,803},
    {7732,75,817}, {7733,107,817}, {7734,76,803}, {7735,108,803}, {7736,7734,772}, {7737,7735,772}, {7738,76,817},
    {7739,108,817}, {7740,76,813}, {7741,108,813}, {7742,77,769}, {7743,109,769}, {7744,77,775}, {7745,109,775},
    {7746,77,803}, {7747,109,803}, {7748,78,775}, {7749,110,775}, {7750,78,803}, {7751,110,803}, {7752,78,817},
    {7753,110,817}, {7754,78,813}, {7755,110,813}, {7756,213,769}, {7757,245,769}, {7758,213,776}, {7759,245,776},
    {7760,332,768}, {7761,333,768}, {7762,332,769}, {7763,333,769}, {7764,80,769}, {7765,112,769}, {7766,80,775},
    {7767,112,775}, {7768,82,775}, {7769,114,775}, {7770,82,803}, {7771,114,803}, {7772,7770,772}, {7773,7771,772},
    {7774,82,817}, {7775,114,817}, {7776,83,775}, {7777,115,775}, {7778,83,803}, {7779,115,803}, {7780,346,775},
    {7781,347,775}, {7782,352,775}, {7783,353,775}, {7784,7778,775}, {7785,7779,775}, {7786,84,775}, {7787,116,775},
    {7788,84,803}, {7789,116,803}, {7790,84,817}, {7791,116,817}, {7792,84,813}, {7793,116,813}, {7794,85,804},
    {7795,117,804}, {7796,85,816}, {7797,117,816}, {7798,85,813}, {7799,117,813}, {7800,360,769}, {7801,361,769},
    {7802,362,776}, {7803,363,776}, {7804,86,771}, {7805,118,771}, {7806,86,803}, {7807,118,803}, {7808,87,768},
    {7809,119,768}, {7810,87,769}, {7811,119,769}, {7812,87,776}, {7813,119,776}, {7814,87,775}, {7815,119,775},
    {7816,87,803}, {7817,119,803}, {7818,88,775}, {7819,120,775}, {7820,88,776}, {7821,120,776}, {7822,89,775},
    {7823,121,775}, {7824,90,770}, {7825,122,770}, {7826,90,803}, {7827,122,803}, {7828,90,817}, {7829,122,817},
    {7830,104,817}, {7831,116,776}, {7832,119,778}, {7833,121,778}, {7835,383,775}, {7840,65,803}, {7841,97,803},
    {7842,65,777}, {7843,97,777}, {7844,194,769}, {7845,226,769}, {7846,194,768}, {7847,226,768}, {7848,194,777},
    {7849,226,777}, {7850,194,771}, {7851,226,771}, {7852,7840,770}, {7853,7841,770}, {7854,258,769}, {7855,259,769},
    {7856,258,768}, {7857,259,768}, {7858,258,777}, {7859,259,777}, {7860,258,771}, {7861,259,771}, {7862,7840,774},
    {7863,7841,774}, {7864,69,803}, {7865,101,803}, {7866,69,777}, {7867,101,777}, {7868,69,771}, {7869,101,771},
    {7870,202,769}, {7871,234,769}, {7872,202,768}, {7873,234,768}, {7874,202,777}, {7875,234,777}, {7876,202,771},
    {7877,234,771}, {7878,7864,770}, {7879,7865,770}, {7880,73,777}, {7881,105,777}, {7882,73,803}, {7883,105,803},
    {7884,79,803}, {7885,111,803}, {7886,79,777}, {7887,111,777}, {7888,212,769}, {7889,244,769}, {7890,212,768},
    {7891,244,768}, {7892,212,777}, {7893,244,777}, {7894,212,771}, {7895,244,771}, {7896,7884,770}, {7897,7885,770},
    {7898,416,769}, {7899,417,769}, {7900,416,768}, {7901,417,768}, {7902,416,777}, {7903,417,777}, {7904,416,771},
    {7905,417,771}, {7906,416,803}, {7907,417,803}, {7908,85,803}, {7909,117,803}, {7910,85,777}, {7911,117,777},
    {7912,431,769}, {7913,432,769}, {7914,431,768}, {7915,432,768}, {7916,431,777}, {7917,432,777}, {7918,431,771},
    {7919,432,771}, {7920,431,803}, {7921,432,803}, {7922,89,768}, {7923,121,768}, {7924,89,803}, {7925,121,803},
    {7926,89,777}, {7927,121,777}, {7928,89,771}, {7929,121,771}, {7936,945,787}, {7937,945,788}, {7938,7936,768},
    {7939,7937,768}, {7940,7936,769}, {7941,7937,769}, {7942,7936,834}, {7943,7937,834}, {7944,913,787}, {7945,913,788},
    {7946,7944,768}, {7947,7945,768}, {7948,7944,769}, {7949,7945,769}, {7950,7944,834}, {7951,7945,834},
    {7952,949,787}, {7953,949,788}, {7954,7952,768}, {7955,7953,768}, {7956,7952,769}, {7957,7953,769}, {7960,917,787},
    {7961,917,788}, {7962,7960,768}, {7963,7961,768}, {7964,7960,769}, {7965,7961,769}, {7968,951,787}, {7969,951,788},
    {7970,7968,768}, {7971,7969,768}, {7972,7968,769}, {7973,7969,769}, {7974,7968,834}, {7975,7969,834},
    {7976,919,787}, {7977,919,788}, {7978,7976,768}, {7979,7977,768}, {7980,7976,769}, {7981,7977,769}, {7982,7976,834},
    {7983,7977,834}, {7984,953,787}, {7985,953,788}, {7986,7984,768}, {7987,7985,768}, {7988,7984,769}, {7989,7985,769},
    {7990,7984,834}, {7991,7985,834}, {7992,921,787}, {7993,921,788}, {7994,7992,768}, {7995,7993,768}, {7996,7992,769},
    {7997,7993,769}, {7998,7992,834}, {7999,7993,834}, {8000,959,787}, {8001,959,788}, {8002,8000,768}, {8003,8001,768},
    {8004,8000,769}, {8005,8001,769}, {8008,927,787}, {8009,927,788}, {8010,8008,768}, {8011,8009,768}, {8012,8008,769},
    {8013,8009,769}, {8016,965,787}, {8017,965,788}, {8018,8016,768}, {8019,8017,768}, {8020,8016,769}, {8021,8017,769},
    {8022,8016,834}, {8023,8017,834}, {8025,933,788}, {8027,8025,768}, {8029,8025,769}, {8031,8025,834}, {8032,969,787},
    {8033,969,788}, {8034,8032,768}, {8035,8033,768}, {8036,8032,769}, {8037,8033,769}, {8038,8032,834},
    {8039,8033,834}, {8040,937,787}, {8041,937,788}, {8042,8040,768}, {8043,8041,768}, {8044,8040,769}, {8045,8041,769},
    {8046,8040,834}, {8047,8041,834}, {8048,945,768}, {8049,945,769}, {8050,949,768}, {8051,949,769}, {8052,951,768},
    {8053,951,769}, {8054,953,768}, {8055,953,769}, {8056,959,768}, {8057,959,769}, {8058,965,768}, {8059,965,769},
    {8060,969,768}, {8061,969,769}, {8064,7936,837}, {8065,7937,837}, {8066,7938,837}, {8067,7939,837}, {8068,7940,837},
    {8069,7941,837}, {8070,7942,837}, {8071,7943,837}, {8072,7944,837}, {8073,7945,837}, {8074,7946,837},
    {8075,7947,837}, {8076,7948,837}, {8077,7949,837}, {8078,7950,837}, {8079,7951,837}, {8080,7968,837},
    {8081,7969,837}, {8082,7970,837}, {8083,7971,837}, {8084,7972,837}, {8085,7973,837}, {8086,7974,837},
    {8087,7975,837}, {8088,7976,837}, {8089,7977,837}, {8090,7978,837}, {8091,7979,837}, {8092,7980,837},
    {8093,7981,837}, {8094,7982,837}, {8095,7983,837}, {8096,8032,837}, {8097,8033,837}, {8098,8034,837},
    {8099,8035,837}, {8100,8036,837}, {8101,8037,837}, {8102,8038,837}, {8103,8039,837}, {8104,8040,837},
    {8105,8041,837}, {8106,8042,837}, {8107,8043,837}, {8108,8044,837}, {8109,8045,837}, {8110,8046,837},
    {8111,8047,837}, {8112,945,774}, {8113,945,772}, {8114,8048,837}, {8115,945,837}, {8116,940,837}, {8118,945,834},
    {8119,8118,837}, {8120,913,774}, {8121,913,772}, {8122,913,768}, {8123,913,769}, {8124,913,837}, {8126,953,0},
    {8129,168,834}, {8130,8052,837}, {8131,951,837}, {8132,942,837}, {8134,951,834}, {8135,8134,837}, {8136,917,768},
    {8137,917,769}, {8138,919,768}, {8139,919,769}, {8140,919,837}, {8141,8127,768}, {8142,8127,769}, {8143,8127,834},
    {8144,953,774}, {8145,953,772}, {8146,970,768}, {8147,970,769}, {8150,953,834}, {8151,970,834}, {8152,921,774},
    {8153,921,772}, {8154,921,768}, {8155,921,769}, {8157,8190,768}, {8158,8190,769}, {8159,8190,834}, {8160,965,774},
    {8161,965,772}, {8162,971,768}, {8163,971,769}, {8164,961,787}, {8165,961,788}, {8166,965,834}, {8167,971,834},
    {8168,933,774}, {8169,933,772}, {8170,933,768}, {8171,933,769}, {8172,929,788}, {8173,168,768}, {8174,168,769},
    {8175,96,0}, {8178,8060,837}, {8179,969,837}, {8180,974,837}, {8182,969,834}, {8183,8182,837}, {8184,927,768},
    {8185,927,769}, {8186,937,768}, {8187,937,769}, {8188,937,837}, {8189,180,0}, {8192,8194,0}, {8193,8195,0},
    {8486,937,0}, {8490,75,0}, {8491,65,778}, {8602,8592,824}, {8603,8594,824}, {8622,8596,824}, {8653,8656,824},
    {8654,8660,824}, {8655,8658,824}, {8708,8707,824}, {8713,8712,824}, {8716,8715,824}, {8740,8739,824},
    {8742,8741,824}, {8769,8764,824}, {8772,8771,824}, {8775,8773,824}, {8777,8776,824}, {8800,61,824}, {8802,8801,824},
    {8813,8781,824}, {8814,60,824}, {8815,62,824}, {8816,8804,824}, {8817,8805,824}, {8820,8818,824}, {8821,8819,824},
    {8824,8822,824}, {8825,8823,824}, {8832,8826,824}, {8833,8827,824}, {8836,8834,824}, {8837,8835,824},
    {8840,8838,824}, {8841,8839,824}, {8876,8866,824}, {8877,8872,824}, {8878,8873,824}, {8879,8875,824},
    {8928,8828,824}, {8929,8829,824}, {8930,8849,824}, {8931,8850,824}, {8938,8882,824}, {8939,8883,824},
    {8940,8884,824}, {8941,8885,824}, {9001,12296,0}, {9002,12297,0}, {10972,10973,824}, {12364,12363,12441},
    {12366,12365,12441}, {12368,12367,12441}, {12370,12369,12441}, {12372,12371,12441}, {12374,12373,12441},
    {12376,12375,12441}, {12378,12377,12441}, {12380,12379,12441}, {12382,12381,12441}, {12384,12383,12441},
    {12386,12385,12441}, {12389,12388,12441}, {12391,12390,12441}, {12393,12392,12441}, {12400,12399,12441},
    {12401,12399,12442}, {12403,12402,12441}, {12404,12402,12442}, {12406,12405,12441}, {12407,12405,12442},
    {12409,12408,12441}, {12410,12408,12442}, {12412,12411,12441}, {12413,12411,12442}, {12436,12358,12441},
    {12446,12445,12441}, {12460,12459,12441}, {12462,12461,12441}, {12464,12463,12441}, {12466,12465,12441},
    {12468,12467,12441}, {12470,12469,12441}, {12472,12471,12441}, {12474,12473,12441}, {12476,12475,12441},
    {12478,12477,12441}, {12480,12479,12441}, {12482,12481,12441}, {12485,12484,12441}, {12487,12486,12441},
    {12489,12488,12441}, {12496,12495,12441}, {12497,12495,12442}, {12499,12498,12441}, {12500,12498,12442},
    {12502,12501,12441}, {12503,12501,12442}, {12505,12504,12441}, {12506,12504,12442}, {12508,12507,12441},
    {12509,12507,12442}, {12532,12454,12441}, {12535,12527,12441}, {12536,12528,12441}, {12537,12529,12441},
    {12538,12530,12441}, {12542,12541,12441}, {63744,35912,0}, {63745,26356,0}, {63746,36554,0}, {63747,36040,0},
    {63748,28369,0}, {63749,20018,0}, {63750,21477,0}, {63751,40860,0}, {63752,40860,0}, {63753,22865,0},
    {63754,37329,0}, {63755,21895,0}, {63756,22856,0}, {63757,25078,0}, {63758,30313,0}, {63759,32645,0},
    {63760,34367,0}, {63761,34746,0}, {63762,35064,0}, {63763,37007,0}, {63764,27138,0}, {63765,27931,0},
    {63766,28889,0}, {63767,29662,0}, {63768,33853,0}, {63769,37226,0}, {63770,39409,0}, {63771,20098,0},
    {63772,21365,0}, {63773,27396,0}, {63774,29211,0}, {63775,34349,0}, {63776,40478,0}, {63777,23888,0},
    {63778,28651,0}, {63779,34253,0}, {63780,35172,0}, {63781,25289,0}, {63782,33240,0}, {63783,34847,0},
    {63784,24266,0}, {63785,26391,0}, {63786,28010,0}, {63787,29436,0}, {63788,37070,0}, {63789,20358,0},
    {63790,20919,0}, {63791,21214,0}, {63792,25796,0}, {63793,27347,0}, {63794,29200,0}, {63795,30439,0},
    {63796,32769,0}, {63797,34310,0}, {63798,34396,0}, {63799,36335,0}, {63800,38706,0}, {63801,39791,0},
    {63802,40442,0}, {63803,30860,0}, {63804,31103,0}, {63805,32160,0}, {63806,33737,0}, {63807,37636,0},
    {63808,40575,0}, {63809,35542,0}, {63810,22751,0}, {63811,24324,0}, {63812,31840,0}, {63813,32894,0},
    {63814,29282,0}, {63815,30922,0}, {63816,36034,0}, {63817,38647,0}, {63818,22744,0}, {63819,23650,0},
    {63820,27155,0}, {63821,28122,0}, {63822,28431,0}, {63823,32047,0}, {63824,32311,0}, {63825,38475,0},
    {63826,21202,0}, {63827,32907,0}, {63828,20956,0}, {63829,20940,0}, {63830,31260,0}, {63831,32190,0},
    {63832,33777,0}, {63833,38517,0}, {63834,35712,0}, {63835,25295,0}, {63836,27138,0}, {63837,35582,0},
    {63838,20025,0}, {63839,23527,0}, {63840,24594,0}, {63841,29575,0}, {63842,30064,0}, {63843,21271,0},
    {63844,30971,0}, {63845,20415,0}, {63846,24489,0}, {63847,19981,0}, {63848,27852,0}, {63849,25976,0},
    {63850,32034,0}, {63851,21443,0}, {63852,22622,0}, {63853,30465,0}, {63854,33865,0}, {63855,35498,0},
    {63856,27578,0}, {63857,36784,0}, {63858,27784,0}, {63859,25342,0}, {63860,33509,0}, {63861,25504,0},
    {63862,30053,0}, {63863,20142,0}, {63864,20841,0}, {63865,20937,0}, {63866,26753,0}, {63867,31975,0},
    {63868,33391,0}, {63869,35538,0}, {63870,37327,0}, {63871,21237,0}, {63872,21570,0}, {63873,22899,0},
    {63874,24300,0}, {63875,26053,0}, {63876,28670,0}, {63877,31018,0}, {63878,38317,0}, {63879,39530,0},
    {63880,40599,0}, {63881,40654,0}, {63882,21147,0}, {63883,26310,0}, {63884,27511,0}, {63885,36706,0},
    {63886,24180,0}, {63887,24976,0}, {63888,25088,0}, {63889,25754,0}, {63890,28451,0}, {63891,29001,0},
    {63892,29833,0}, {63893,31178,0}, {63894,32244,0}, {63895,32879,0}, {63896,36646,0}, {63897,34030,0},
    {63898,36899,0}, {63899,37706,0}, {63900,21015,0}, {63901,21155,0}, {63902,21693,0}, {63903,28872,0},
    {63904,35010,0}, {63905,35498,0}, {63906,24265,0}, {63907,24565,0}, {63908,25467,0}, {63909,27566,0},
    {63910,31806,0}, {63911,29557,0}, {63912,20196,0}, {63913,22265,0}, {63914,23527,0}, {63915,23994,0},
    {63916,24604,0}, {63917,29618,0}, {63918,29801,0}, {63919,32666,0}, {63920,32838,0}, {63921,37428,0},
    {63922,38646,0}, {63923,38728,0}, {63924,38936,0}, {63925,20363,0}, {63926,31150,0}, {63927,37300,0},
    {63928,38584,0}, {63929,24801,0}, {63930,20102,0}, {63931,20698,0}, {63932,23534,0}, {63933,23615,0},
    {63934,26009,0}, {63935,27138,0}, {63936,29134,0}, {63937,30274,0}, {63938,34044,0}, {63939,36988,0},
    {63940,40845,0}, {63941,26248,0}, {63942,38446,0}, {63943,21129,0}, {63944,26491,0}, {63945,26611,0},
    {63946,27969,0}, {63947,28316,0}, {63948,29705,0}, {63949,30041,0}, {63950,30827,0}, {63951,32016,0},
    {63952,39006,0}, {63953,20845,0}, {63954,25134,0}, {63955,38520,0}, {63956,20523,0}, {63957,23833,0},
    {63958,28138,0}, {63959,36650,0}, {63960,24459,0}, {63961,24900,0}, {63962,26647,0}, {63963,29575,0},
    {63964,38534,0}, {63965,21033,0}, {63966,21519,0}, {63967,23653,0}, {63968,26131,0}, {63969,26446,0},
    {63970,26792,0}, {63971,27877,0}, {63972,29702,0}, {63973,30178,0}, {63974,32633,0}, {63975,35023,0},
    {63976,35041,0}, {63977,37324,0}, {63978,38626,0}, {63979,21311,0}, {63980,28346,0}, {63981,21533,0},
    {63982,29136,0}, {63983,29848,0}, {63984,34298,0}, {63985,38563,0}, {63986,40023,0}, {63987,40607,0},
    {63988,26519,0}, {63989,28107,0}, {63990,33256,0}, {63991,31435,0}, {63992,31520,0}, {63993,31890,0},
    {63994,29376,0}, {63995,28825,0}, {63996,35672,0}, {63997,20160,0}, {63998,33590,0}, {63999,21050,0},
    {64000,20999,0}, {64001,24230,0}, {64002,25299,0}, {64003,31958,0}, {64004,23429,0}, {64005,27934,0},
    {64006,26292,0}, {64007,36667,0}, {64008,34892,0}, {64009,38477,0}, {64010,35211,0}, {64011,24275,0},
    {64012,20800,0}, {64013,21952,0}, {64016,22618,0}, {64018,26228,0}, {64021,20958,0}, {64022,29482,0},
    {64023,30410,0}, {64024,31036,0}, {64025,31070,0}, {64026,31077,0}, {64027,31119,0}, {64028,38742,0},
    {64029,31934,0}, {64030,32701,0}, {64032,34322,0}, {64034,35576,0}, {64037,36920,0}, {64038,37117,0},
    {64042,39151,0}, {64043,39164,0}, {64044,39208,0}, {64045,40372,0}, {64046,37086,0}, {64047,38583,0},
    {64048,20398,0}, {64049,20711,0}, {64050,20813,0}, {64051,21193,0}, {64052,21220,0}, {64053,21329,0},
    {64054,21917,0}, {64055,22022,0}, {64056,22120,0}, {64057,22592,0}, {64058,22696,0}, {64059,23652,0},
    {64060,23662,0}, {64061,24724,0}, {64062,24936,0}, {64063,24974,0}, {64064,25074,0}, {64065,25935,0},
    {64066,26082,0}, {64067,26257,0}, {64068,26757,0}, {64069,28023,0}, {64070,28186,0}, {64071,28450,0},
    {64072,29038,0}, {64073,29227,0}, {64074,29730,0}, {64075,30865,0}, {64076,31038,0}, {64077,31049,0},
    {64078,31048,0}, {64079,31056,0}, {64080,31062,0}, {64081,31069,0}, {64082,31117,0}, {64083,31118,0},
    {64084,31296,0}, {64085,31361,0}, {64086,31680,0}, {64087,32244,0}, {64088,32265,0}, {64089,32321,0},
    {64090,32626,0}, {64091,32773,0}, {64092,33261,0}, {64093,33401,0}, {64094,33401,0}, {64095,33879,0},
    {64096,35088,0}, {64097,35222,0}, {64098,35585,0}, {64099,35641,0}, {64100,36051,0}, {64101,36104,0},
    {64102,36790,0}, {64103,36920,0}, {64104,38627,0}, {64105,38911,0}, {64106,38971,0}, {64107,24693,0},
    {64108,148206,0}, {64109,33304,0}, {64112,20006,0}, {64113,20917,0}, {64114,20840,0}, {64115,20352,0},
    {64116,20805,0}, {64117,20864,0}, {64118,21191,0}, {64119,21242,0}, {64120,21917,0}, {64121,21845,0},
    {64122,21913,0}, {64123,21986,0}, {64124,22618,0}, {64125,22707,0}, {64126,22852,0}, {64127,22868,0},
    {64128,23138,0}, {64129,23336,0}, {64130,24274,0}, {64131,24281,0}, {64132,24425,0}, {64133,24493,0},
    {64134,24792,0}, {64135,24910,0}, {64136,24840,0}, {64137,24974,0}, {64138,24928,0}, {64139,25074,0},
    {64140,25140,0}, {64141,25540,0}, {64142,25628,0}, {64143,25682,0}, {64144,25942,0}, {64145,26228,0},
    {64146,26391,0}, {64147,26395,0}, {64148,26454,0}, {64149,27513,0}, {64150,27578,0}, {64151,27969,0},
    {64152,28379,0}, {64153,28363,0}, {64154,28450,0}, {64155,28702,0}, {64156,29038,0}, {64157,30631,0},
    {64158,29237,0}, {64159,29359,0}, {64160,29482,0}, {64161,29809,0}, {64162,29958,0}, {64163,30011,0},
    {64164,30237,0}, {64165,30239,0}, {64166,30410,0}, {64167,30427,0}, {64168,30452,0}, {64169,30538,0},
    {64170,30528,0}, {64171,30924,0}, {64172,31409,0}, {64173,31680,0}, {64174,31867,0}, {64175,32091,0},
    {64176,32244,0}, {64177,32574,0}, {64178,32773,0}, {64179,33618,0}, {64180,33775,0}, {64181,34681,0},
    {64182,35137,0}, {64183,35206,0}, {64184,35222,0}, {64185,35519,0}, {64186,35576,0}, {64187,35531,0},
    {64188,35585,0}, {64189,35582,0}, {64190,35565,0}, {64191,35641,0}, {64192,35722,0}, {64193,36104,0},
    {64194,36664,0}, {64195,36978,0}, {64196,37273,0}, {64197,37494,0}, {64198,38524,0}, {64199,38627,0},
    {64200,38742,0}, {64201,38875,0}, {64202,38911,0}, {64203,38923,0}, {64204,38971,0}, {64205,39698,0},
    {64206,40860,0}, {64207,141386,0}, {64208,141380,0}, {64209,144341,0}, {64210,15261,0}, {64211,16408,0},
    {64212,16441,0}, {64213,152137,0}, {64214,154832,0}, {64215,163539,0}, {64216,40771,0}, {64217,40846,0},
    {64285,1497,1460}, {64287,1522,1463}, {64298,1513,1473}, {64299,1513,1474}, {64300,64329,1473}, {64301,64329,1474},
    {64302,1488,1463}, {64303,1488,1464}, {64304,1488,1468}, {64305,1489,1468}, {64306,1490,1468}, {64307,1491,1468},
    {64308,1492,1468}, {64309,1493,1468}, {64310,1494,1468}, {64312,1496,1468}, {64313,1497,1468}, {64314,1498,1468},
    {64315,1499,1468}, {64316,1500,1468}, {64318,1502,1468}, {64320,1504,1468}, {64321,1505,1468}, {64323,1507,1468},
    {64324,1508,1468}, {64326,1510,1468}, {64327,1511,1468}, {64328,1512,1468}, {64329,1513,1468}, {64330,1514,1468},
    {64331,1493,1465}, {64332,1489,1471}, {64333,1499,1471}, {64334,1508,1471}, {69786,69785,69818},
    {69788,69787,69818}, {69803,69797,69818}, {69934,69937,69927}, {69935,69938,69927}, {70475,70471,70462},
    {70476,70471,70487}, {70843,70841,70842}, {70844,70841,70832}, {70846,70841,70845}, {71098,71096,71087},
    {71099,71097,71087}, {119134,119127,119141}, {119135,119128,119141}, {119136,119135,119150}, {119137,119135,119151},
    {119138,119135,119152}, {119139,119135,119153}, {119140,119135,119154}, {119227,119225,119141},
    {119228,119226,119141}, {119229,119227,119150}, {119230,119228,119150}, {119231,119227,119151},
    {119232,119228,119151}, {194560,20029,0}, {194561,20024,0}, {194562,20033,0}, {194563,131362,0}, {194564,20320,0},
    {194565,20398,0}, {194566,20411,0}, {194567,20482,0}, {194568,20602,0}, {194569,20633,0}, {194570,20711,0},
    {194571,20687,0}, {194572,13470,0}, {194573,132666,0}, {194574,20813,0}, {194575,20820,0}, {194576,20836,0},
    {194577,20855,0}, {194578,132380,0}, {194579,13497,0}, {194580,20839,0}, {194581,20877,0}, {194582,132427,0},
    {194583,20887,0}, {194584,20900,0}, {194585,20172,0}, {194586,20908,0}, {194587,20917,0}, {194588,168415,0},
    {194589,20981,0}, {194590,20995,0}, {194591,13535,0}, {194592,21051,0}, {194593,21062,0}, {194594,21106,0},
    {194595,21111,0}, {194596,13589,0}, {194597,21191,0}, {194598,21193,0}, {194599,21220,0}, {194600,21242,0},
    {194601,21253,0}, {194602,21254,0}, {194603,21271,0}, {194604,21321,0}, {194605,21329,0}, {194606,21338,0},
    {194607,21363,0}, {194608,21373,0}, {194609,21375,0}, {194610,21375,0}, {194611,21375,0}, {194612,133676,0},
    {194613,28784,0}, {194614,21450,0}, {194615,21471,0}, {194616,133987,0}, {194617,21483,0}, {194618,21489,0},
    {194619,21510,0}, {194620,21662,0}, {194621,21560,0}, {194622,21576,0}, {194623,21608,0}, {194624,21666,0},
    {194625,21750,0}, {194626,21776,0}, {194627,21843,0}, {194628,21859,0}, {194629,21892,0}, {194630,21892,0},
    {194631,21913,0}, {194632,21931,0}, {194633,21939,0}, {194634,21954,0}, {194635,22294,0}, {194636,22022,0},
    {194637,22295,0}, {194638,22097,0}, {194639,22132,0}, {194640,20999,0}, {194641,22766,0}, {194642,22478,0},
    {194643,22516,0}, {194644,22541,0}, {194645,22411,0}, {194646,22578,0}, {194647,22577,0}, {194648,22700,0},
    {194649,136420,0}, {194650,22770,0}, {194651,22775,0}, {194652,22790,0}, {194653,22810,0}, {194654,22818,0},
    {194655,22882,0}, {194656,136872,0}, {194657,136938,0}, {194658,23020,0}, {194659,23067,0}, {194660,23079,0},
    {194661,23000,0}, {194662,23142,0}, {194663,14062,0}, {194664,14076,0}, {194665,23304,0}, {194666,23358,0},
    {194667,23358,0}, {194668,137672,0}, {194669,23491,0}, {194670,23512,0}, {194671,23527,0}, {194672,23539,0},
    {194673,138008,0}, {194674,23551,0}, {194675,23558,0}, {194676,24403,0}, {194677,23586,0}, {194678,14209,0},
    {194679,23648,0}, {194680,23662,0}, {194681,23744,0}, {194682,23693,0}, {194683,138724,0}, {194684,23875,0},
    {194685,138726,0}, {194686,23918,0}, {194687,23915,0}, {194688,23932,0}, {194689,24033,0}, {194690,24034,0},
    {194691,14383,0}, {194692,24061,0}, {194693,24104,0}, {194694,24125,0}, {194695,24169,0}, {194696,14434,0},
    {194697,139651,0}, {194698,14460,0}, {194699,24240,0}, {194700,24243,0}, {194701,24246,0}, {194702,24266,0},
    {194703,172946,0}, {194704,24318,0}, {194705,140081,0}, {194706,140081,0}, {194707,33281,0}, {194708,24354,0},
    {194709,24354,0}, {194710,14535,0}, {194711,144056,0}, {194712,156122,0}, {194713,24418,0}, {194714,24427,0},
    {194715,14563,0}, {194716,24474,0}, {194717,24525,0}, {194718,24535,0}, {194719,24569,0}, {194720,24705,0},
    {194721,14650,0}, {194722,14620,0}, {194723,24724,0}, {194724,141012,0}, {194725,24775,0}, {194726,24904,0},
    {194727,24908,0}, {194728,24910,0}, {194729,24908,0}, {194730,24954,0}, {194731,24974,0}, {194732,25010,0},
    {194733,24996,0}, {194734,25007,0}, {194735,25054,0}, {194736,25074,0}, {194737,25078,0}, {194738,25104,0},
    {194739,25115,0}, {194740,25181,0}, {194741,25265,0}, {194742,25300,0}, {194743,25424,0}, {194744,142092,0},
    {194745,25405,0}, {194746,25340,0}, {194747,25448,0}, {194748,25475,0}, {194749,25572,0}, {194750,142321,0},
    {194751,25634,0}, {194752,25541,0}, {194753,25513,0}, {194754,14894,0}, {194755,25705,0}, {194756,25726,0},
    {194757,25757,0}, {194758,25719,0}, {194759,14956,0}, {194760,25935,0}, {194761,25964,0}, {194762,143370,0},
    {194763,26083,0}, {194764,26360,0}, {194765,26185,0}, {194766,15129,0}, {194767,26257,0}, {194768,15112,0},
    {194769,15076,0}, {194770,20882,0}, {194771,20885,0}, {194772,26368,0}, {194773,26268,0}, {194774,32941,0},
    {194775,17369,0}, {194776,26391,0}, {194777,26395,0}, {194778,26401,0}, {194779,26462,0}, {194780,26451,0},
    {194781,144323,0}, {194782,15177,0}, {194783,26618,0}, {194784,26501,0}, {194785,26706,0}, {194786,26757,0},
    {194787,144493,0}, {194788,26766,0}, {194789,26655,0}, {194790,26900,0}, {194791,15261,0}, {194792,26946,0},
    {194793,27043,0}, {194794,27114,0}, {194795,27304,0}, {194796,145059,0}, {194797,27355,0}, {194798,15384,0},
    {194799,27425,0}, {194800,145575,0}, {194801,27476,0}, {194802,15438,0}, {194803,27506,0}, {194804,27551,0},
    {194805,27578,0}, {194806,27579,0}, {194807,146061,0}, {194808,138507,0}, {194809,146170,0}, {194810,27726,0},
    {194811,146620,0}, {194812,27839,0}, {194813,27853,0}, {194814,27751,0}, {194815,27926,0}, {194816,27966,0},
    {194817,28023,0}, {194818,27969,0}, {194819,28009,0}, {194820,28024,0}, {194821,28037,0}, {194822,146718,0},
    {194823,27956,0}, {194824,28207,0}, {194825,28270,0}, {194826,15667,0}, {194827,28363,0}, {194828,28359,0},
    {194829,147153,0}, {194830,28153,0}, {194831,28526,0}, {194832,147294,0}, {194833,147342,0}, {194834,28614,0},
    {194835,28729,0}, {194836,28702,0}, {194837,28699,0}, {194838,15766,0}, {194839,28746,0}, {194840,28797,0},
    {194841,28791,0}, {194842,28845,0}, {194843,132389,0}, {194844,28997,0}, {194845,148067,0}, {194846,29084,0},
    {194847,148395,0}, {194848,29224,0}, {194849,29237,0}, {194850,29264,0}, {194851,149000,0}, {194852,29312,0},
    {194853,29333,0}, {194854,149301,0}, {194855,149524,0}, {194856,29562,0}, {194857,29579,0}, {194858,16044,0},
    {194859,29605,0}, {194860,16056,0}, {194861,16056,0}, {194862,29767,0}, {194863,29788,0}, {194864,29809,0},
    {194865,29829,0}, {194866,29898,0}, {194867,16155,0}, {194868,29988,0}, {194869,150582,0}, {194870,30014,0},
    {194871,150674,0}, {194872,30064,0}, {194873,139679,0}, {194874,30224,0}, {194875,151457,0}, {194876,151480,0},
    {194877,151620,0}, {194878,16380,0}, {194879,16392,0}, {194880,30452,0}, {194881,151795,0}, {194882,151794,0},
    {194883,151833,0}, {194884,151859,0}, {194885,30494,0}, {194886,30495,0}, {194887,30495,0}, {194888,30538,0},
    {194889,16441,0}, {194890,30603,0}, {194891,16454,0}, {194892,16534,0}, {194893,152605,0}, {194894,30798,0},
    {194895,30860,0}, {194896,30924,0}, {194897,16611,0}, {194898,153126,0}, {194899,31062,0}, {194900,153242,0},
    {194901,153285,0}, {194902,31119,0}, {194903,31211,0}, {194904,16687,0}, {194905,31296,0}, {194906,31306,0},
    {194907,31311,0}, {194908,153980,0}, {194909,154279,0}, {194910,154279,0}, {194911,31470,0}, {194912,16898,0},
    {194913,154539,0}, {194914,31686,0}, {194915,31689,0}, {194916,16935,0}, {194917,154752,0}, {194918,31954,0},
    {194919,17056,0}, {194920,31976,0}, {194921,31971,0}, {194922,32000,0}, {194923,155526,0}, {194924,32099,0},
    {194925,17153,0}, {194926,32199,0}, {194927,32258,0}, {194928,32325,0}, {194929,17204,0}, {194930,156200,0},
    {194931,156231,0}, {194932,17241,0}, {194933,156377,0}, {194934,32634,0}, {194935,156478,0}, {194936,32661,0},
    {194937,32762,0}, {194938,32773,0}, {194939,156890,0}, {194940,156963,0}, {194941,32864,0}, {194942,157096,0},
    {194943,32880,0}, {194944,144223,0}, {194945,17365,0}, {194946,32946,0}, {194947,33027,0}, {194948,17419,0},
    {194949,33086,0}, {194950,23221,0}, {194951,157607,0}, {194952,157621,0}, {194953,144275,0}, {194954,144284,0},
    {194955,33281,0}, {194956,33284,0}, {194957,36766,0}, {194958,17515,0}, {194959,33425,0}, {194960,33419,0},
    {194961,33437,0}, {194962,21171,0}, {194963,33457,0}, {194964,33459,0}, {194965,33469,0}, {194966,33510,0},
    {194967,158524,0}, {194968,33509,0}, {194969,33565,0}, {194970,33635,0}, {194971,33709,0}, {194972,33571,0},
    {194973,33725,0}, {194974,33767,0}, {194975,33879,0}, {194976,33619,0}, {194977,33738,0}, {194978,33740,0},
    {194979,33756,0}, {194980,158774,0}, {194981,159083,0}, {194982,158933,0}, {194983,17707,0}, {194984,34033,0},
    {194985,34035,0}, {194986,34070,0}, {194987,160714,0}, {194988,34148,0}, {194989,159532,0}, {194990,17757,0},
    {194991,17761,0}, {194992,159665,0}, {194993,159954,0}, {194994,17771,0}, {194995,34384,0}, {194996,34396,0},
    {194997,34407,0}, {194998,34409,0}, {194999,34473,0}, {195000,34440,0}, {195001,34574,0}, {195002,34530,0},
    {195003,34681,0}, {195004,34600,0}, {195005,34667,0}, {195006,34694,0}, {195007,17879,0}, {195008,34785,0},
    {195009,34817,0}, {195010,17913,0}, {195011,34912,0}, {195012,34915,0}, {195013,161383,0}, {195014,35031,0},
    {195015,35038,0}, {195016,17973,0}, {195017,35066,0}, {195018,13499,0}, {195019,161966,0}, {195020,162150,0},
    {195021,18110,0}, {195022,18119,0}, {195023,35488,0}, {195024,35565,0}, {195025,35722,0}, {195026,35925,0},
    {195027,162984,0}, {195028,36011,0}, {195029,36033,0}, {195030,36123,0}, {195031,36215,0}, {195032,163631,0},
    {195033,133124,0}, {195034,36299,0}, {195035,36284,0}, {195036,36336,0}, {195037,133342,0}, {195038,36564,0},
    {195039,36664,0}, {195040,165330,0}, {195041,165357,0}, {195042,37012,0}, {195043,37105,0}, {195044,37137,0},
    {195045,165678,0}, {195046,37147,0}, {195047,37432,0}, {195048,37591,0}, {195049,37592,0}, {195050,37500,0},
    {195051,37881,0}, {195052,37909,0}, {195053,166906,0}, {195054,38283,0}, {195055,18837,0}, {195056,38327,0},
    {195057,167287,0}, {195058,18918,0}, {195059,38595,0}, {195060,23986,0}, {195061,38691,0}, {195062,168261,0},
    {195063,168474,0}, {195064,19054,0}, {195065,19062,0}, {195066,38880,0}, {195067,168970,0}, {195068,19122,0},
    {195069,169110,0}, {195070,38923,0}, {195071,38923,0}, {195072,38953,0}, {195073,169398,0}, {195074,39138,0},
    {195075,19251,0}, {195076,39209,0}, {195077,39335,0}, {195078,39362,0}, {195079,39422,0}, {195080,19406,0},
    {195081,170800,0}, {195082,39698,0}, {195083,40000,0}, {195084,40189,0}, {195085,19662,0}, {195086,19693,0},
    {195087,40295,0}, {195088,172238,0}, {195089,19704,0}, {195090,172293,0}, {195091,172558,0}, {195092,172689,0},
    {195093,40635,0}, {195094,19798,0}, {195095,40697,0}, {195096,40702,0}, {195097,40709,0}, {195098,40719,0},
    {195099,40726,0}, {195100,40763,0}, {195101,173568,0},
};
/* 940 of them compose again: their places in tsk__unicode_steps, ordered by the two halves */
static const uint16_t tsk__unicode_compositions[] = {
    912, 909, 913, 0, 1, 2, 3, 53, 55, 238, 4, 572, 5, 165, 208, 210, 570, 415, 57, 417, 419, 421, 59, 61, 63, 65, 6,
    425, 67, 427, 431, 433, 429, 7, 8, 9, 598, 69, 71, 73, 10, 596, 77, 212, 214, 594, 240, 75, 439, 441, 445, 198, 79,
    447, 81, 83, 187, 85, 87, 449, 453, 236, 451, 455, 457, 11, 12, 13, 89, 91, 93, 97, 14, 610, 167, 216, 218, 612, 95,
    459, 98, 463, 189, 465, 100, 467, 102, 106, 469, 104, 475, 473, 477, 479, 481, 200, 108, 15, 483, 112, 485, 110,
    489, 487, 16, 17, 18, 19, 114, 116, 246, 20, 616, 118, 169, 220, 222, 161, 614, 191, 499, 501, 120, 503, 124, 224,
    226, 505, 122, 509, 126, 128, 511, 132, 513, 232, 130, 521, 136, 523, 234, 134, 527, 525, 21, 22, 23, 138, 140, 142,
    24, 640, 144, 146, 171, 228, 230, 163, 638, 529, 148, 533, 531, 539, 541, 543, 545, 150, 549, 547, 551, 553, 555,
    652, 25, 152, 658, 250, 557, 154, 656, 654, 155, 559, 157, 159, 561, 563, 26, 27, 28, 29, 54, 56, 239, 30, 573, 31,
    166, 209, 211, 571, 416, 58, 418, 420, 422, 60, 62, 64, 66, 32, 426, 68, 428, 432, 434, 430, 33, 34, 35, 599, 70,
    72, 74, 36, 597, 78, 213, 215, 595, 241, 76, 440, 442, 446, 199, 80, 448, 82, 84, 188, 86, 88, 450, 454, 237, 452,
    456, 458, 565, 37, 38, 39, 90, 92, 94, 40, 611, 168, 217, 219, 613, 96, 460, 99, 197, 464, 190, 466, 101, 468, 103,
    107, 470, 105, 476, 474, 478, 480, 482, 201, 109, 41, 484, 113, 486, 111, 490, 488, 42, 43, 44, 45, 115, 117, 247,
    46, 617, 119, 170, 221, 223, 162, 615, 192, 500, 502, 121, 504, 125, 225, 227, 506, 123, 510, 127, 129, 512, 133,
    514, 233, 131, 522, 566, 137, 524, 235, 135, 528, 526, 47, 48, 49, 139, 141, 143, 50, 641, 145, 147, 172, 229, 231,
    164, 639, 530, 149, 534, 532, 540, 542, 544, 546, 151, 550, 548, 567, 552, 554, 556, 653, 51, 153, 659, 251, 558,
    52, 657, 568, 655, 156, 560, 158, 160, 562, 564, 875, 258, 835, 576, 574, 580, 578, 181, 202, 204, 185, 423, 602,
    600, 606, 604, 461, 620, 618, 624, 622, 491, 244, 493, 242, 206, 179, 175, 173, 177, 577, 575, 581, 579, 182, 203,
    205, 186, 424, 603, 601, 607, 605, 462, 621, 619, 625, 623, 492, 245, 494, 243, 207, 180, 176, 174, 178, 586, 584,
    590, 588, 587, 585, 591, 589, 435, 437, 436, 438, 495, 497, 496, 498, 515, 516, 517, 518, 535, 536, 537, 538, 569,
    630, 628, 634, 632, 636, 631, 629, 635, 633, 637, 644, 642, 648, 646, 650, 645, 643, 649, 647, 651, 195, 193, 194,
    183, 184, 443, 444, 248, 249, 196, 831, 259, 830, 829, 668, 669, 833, 841, 261, 682, 683, 843, 262, 696, 697, 845,
    857, 263, 856, 855, 268, 712, 713, 883, 264, 726, 727, 874, 872, 265, 871, 870, 269, 740, 885, 266, 752, 753, 887,
    826, 838, 760, 270, 823, 822, 660, 661, 827, 825, 762, 271, 676, 677, 764, 272, 688, 689, 839, 837, 766, 273, 850,
    849, 275, 704, 705, 853, 768, 277, 720, 721, 866, 867, 770, 278, 863, 862, 276, 732, 733, 868, 772, 279, 744, 745,
    881, 879, 851, 267, 854, 864, 274, 869, 880, 280, 281, 285, 302, 304, 284, 282, 306, 283, 300, 310, 312, 287, 314,
    289, 316, 286, 318, 324, 288, 326, 328, 330, 332, 322, 303, 305, 293, 291, 307, 292, 301, 311, 313, 296, 315, 290,
    317, 295, 319, 325, 297, 327, 329, 331, 333, 323, 294, 298, 299, 308, 309, 320, 321, 334, 335, 337, 336, 338, 340,
    341, 339, 342, 343, 344, 353, 354, 365, 364, 366, 369, 370, 372, 371, 373, 374, 377, 375, 376, 378, 379, 381, 380,
    382, 383, 385, 384, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 471, 472, 507, 508, 519, 520, 582,
    592, 583, 593, 608, 609, 626, 627, 662, 664, 666, 774, 663, 665, 667, 775, 776, 777, 778, 779, 780, 781, 670, 672,
    674, 782, 671, 673, 675, 783, 784, 785, 786, 787, 788, 789, 678, 680, 679, 681, 684, 686, 685, 687, 690, 692, 694,
    790, 691, 693, 695, 791, 792, 793, 794, 795, 796, 797, 698, 700, 702, 798, 699, 701, 703, 799, 800, 801, 802, 803,
    804, 805, 706, 708, 710, 707, 709, 711, 714, 716, 718, 715, 717, 719, 722, 724, 723, 725, 728, 730, 729, 731, 734,
    736, 738, 735, 737, 739, 741, 742, 743, 746, 748, 750, 806, 747, 749, 751, 807, 808, 809, 810, 811, 812, 813, 754,
    756, 758, 814, 755, 757, 759, 815, 816, 817, 818, 819, 820, 821, 824, 836, 878, 828, 846, 847, 848, 840, 882, 859,
    860, 861, 894, 895, 896, 897, 899, 898, 900, 901, 902, 903, 904, 905, 906, 907, 908, 911, 910, 914, 915, 916, 917,
    918, 919, 920, 921, 930, 931, 922, 923, 924, 925, 932, 933, 926, 927, 928, 929, 934, 935, 936, 937, 966, 941, 942,
    943, 944, 945, 946, 947, 948, 949, 950, 951, 952, 953, 954, 955, 956, 957, 958, 959, 960, 961, 962, 963, 964, 965,
    967, 993, 968, 969, 970, 971, 972, 973, 974, 975, 976, 977, 978, 979, 980, 981, 982, 983, 984, 985, 986, 987, 988,
    989, 990, 991, 992, 994, 995, 996, 997, 998, 1493, 1494, 1495, 1496, 1497, 1498, 1499, 1501, 1500, 1502, 1503, 1504,
};
/* ---- end of tables */

/* ---- classes */

/* The runs spread out over pages of 256 code points, those of one value kept once: about 80 KB a tokenizer, and two
   loads a character where a binary search over the runs would cost twelve branches. */
typedef struct tsk__unicode {
    const tsk_allocator *allocator;
    uint16_t pages[0x110000 >> 8]; /* number of its block */
    unsigned char *blocks;         /* [n_blocks, 256] properties; block 0 begins with ASCII */
    size_t n_blocks, capacity;
} tsk__unicode;

static int tsk__unicode_property(const tsk__unicode *unicode, uint32_t c) {
    return unicode->blocks[((size_t)unicode->pages[c >> 8] << 8) + (c & 255)];
}

static int tsk__unicode_create(tsk__unicode *unicode, const tsk_allocator *allocator) {
    uint16_t same[32]; /* number + 1 of the block with nothing but this property */
    size_t run, c = 0;
    memset(unicode, 0, sizeof *unicode);
    memset(same, 0, sizeof same);
    unicode->allocator = allocator;
    for (run = 0; run < sizeof tsk__unicode_runs / sizeof *tsk__unicode_runs; run++) {
        int property = (int)(tsk__unicode_runs[run] & 31);
        size_t n, end = c + (tsk__unicode_runs[run] >> 5);
        for (; c < end; c += n) {
            n = 256 - (c & 255) < end - c ? 256 - (c & 255) : end - c;
            if (n == 256 && same[property]) {
                unicode->pages[c >> 8] = (uint16_t)(same[property] - 1);
                continue;
            }
            if ((c & 255) == 0) {
                if (!tsk__memory_reserve(allocator, &unicode->blocks, &unicode->capacity, (unicode->n_blocks + 1) * 256,
                                         1))
                    return 0;
                unicode->pages[c >> 8] = (uint16_t)unicode->n_blocks++;
                if (n == 256) same[property] = (uint16_t)unicode->n_blocks;
            }
            memset(unicode->blocks + (unicode->n_blocks - 1) * 256 + (c & 255), property, n);
        }
    }
    return 1;
}

static void tsk__unicode_destroy(tsk__unicode *unicode) { tsk__memory_delete(unicode->allocator, unicode->blocks); }

/* The character at s of text known to be UTF-8; returns its length. */
static size_t tsk__unicode_next(const char *text, uint32_t *c) {
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80) return *c = s[0], 1;
    if (s[0] < 0xe0) return *c = (uint32_t)(s[0] & 0x1f) << 6 | (s[1] & 0x3f), 2;
    if (s[0] < 0xf0) return *c = (uint32_t)(s[0] & 0x0f) << 12 | (uint32_t)(s[1] & 0x3f) << 6 | (s[2] & 0x3f), 3;
    return *c = (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3f) << 12 | (uint32_t)(s[2] & 0x3f) << 6 |
                (s[3] & 0x3f),
           4;
}

/* Where the character before `at` > 0 starts. */
static size_t tsk__unicode_before(const char *text, size_t at) {
    do at--;
    while (((unsigned char)text[at] & 0xc0) == 0x80);
    return at;
}

/* Where the first byte stands that is no part of valid UTF-8; `size` when all is. */
static size_t tsk__unicode_invalid(const char *text, size_t size) {
    const unsigned char *s = (const unsigned char *)text;
    size_t at = 0;
    while (at < size) {
        uint64_t eight;
        size_t left = size - at, n;
        int valid;
        if (s[at] < 0x80) {
            if (left >= 8) memcpy(&eight, text + at, 8);
            else eight = UINT64_MAX;
            at += eight & 0x8080808080808080u ? 1 : 8;
        } else if (left >= 3 && s[at] - 0xe1u < 0x0cu && (s[at + 1] & 0xc0) == 0x80 && (s[at + 2] & 0xc0) == 0x80)
            at += 3; /* E1 .. EC take any two */
        else if (left >= 2 && s[at] - 0xc2u < 0x1eu && (s[at + 1] & 0xc0) == 0x80) at += 2;
        else {
            n = tsk__json_utf8(text + at, left, &valid);
            if (!valid) return at;
            at += n;
        }
    }
    return size;
}

/* ---- NFC */

/* Combines nothing, so 0; else a number that orders as the combining classes do. */
static uint32_t tsk__unicode_order(const tsk__unicode *unicode, uint32_t c) {
    size_t low = 0, high = sizeof tsk__unicode_orders / sizeof *tsk__unicode_orders;
    if (!(tsk__unicode_property(unicode, c) & TSK__UNICODE_UNSTABLE)) return 0;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (tsk__unicode_orders[middle][0] <= c) low = middle;
        else high = middle;
    }
    if (c - tsk__unicode_orders[low][0] >= tsk__unicode_orders[low][1] >> 6) return 0; /* also c before the first */
    return tsk__unicode_orders[low][1] & 63;
}

/* The entry of tsk__unicode_steps for c, or NULL. */
static const uint32_t *tsk__unicode_step(uint32_t c) {
    size_t low = 0, high = sizeof tsk__unicode_steps / sizeof *tsk__unicode_steps;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (tsk__unicode_steps[middle][0] <= c) low = middle;
        else high = middle;
    }
    return tsk__unicode_steps[low][0] == c ? tsk__unicode_steps[low] : NULL;
}

/* Hangul goes by arithmetic: 19 leading × 21 vowels × (27 trailing + none). */
enum {
    TSK__HANGUL = 0xac00,
    TSK__HANGUL_L = 0x1100,
    TSK__HANGUL_V = 0x1161,
    TSK__HANGUL_T = 0x11a7,
    TSK__HANGUL_COUNT = 11172
};

/* What a and b make together; 0 when nothing. */
static uint32_t tsk__unicode_compose(uint32_t a, uint32_t b) {
    size_t low = 0, high = sizeof tsk__unicode_compositions / sizeof *tsk__unicode_compositions;
    const uint32_t *step;
    if (a - TSK__HANGUL_L < 19 && b - TSK__HANGUL_V < 21)
        return TSK__HANGUL + ((a - TSK__HANGUL_L) * 21 + (b - TSK__HANGUL_V)) * 28;
    if (a - TSK__HANGUL < TSK__HANGUL_COUNT && (a - TSK__HANGUL) % 28 == 0 && b - TSK__HANGUL_T - 1 < 27)
        return a + (b - TSK__HANGUL_T);
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        step = tsk__unicode_steps[tsk__unicode_compositions[middle]];
        if (step[1] < a || (step[1] == a && step[2] <= b)) low = middle;
        else high = middle;
    }
    step = tsk__unicode_steps[tsk__unicode_compositions[low]];
    return step[1] == a && step[2] == b ? step[0] : 0;
}

typedef struct tsk__unicode_symbol {
    uint32_t c, order;
} tsk__unicode_symbol;

/* A stretch of text that starts at a stable character (or at the start) and ends before the next. */
typedef struct tsk__unicode_stretch {
    const tsk__unicode *unicode;
    const tsk_allocator *allocator;
    tsk__unicode_symbol *symbols, *sorted;
    size_t count, capacity, sorted_capacity;
} tsk__unicode_stretch;

static int tsk__unicode_push(tsk__unicode_stretch *stretch, uint32_t c) {
    tsk__unicode_symbol *symbol;
    if (!tsk__memory_reserve(stretch->allocator, &stretch->symbols, &stretch->capacity, stretch->count + 1,
                             sizeof *symbol))
        return 0;
    symbol = &stretch->symbols[stretch->count++];
    symbol->c = c;
    symbol->order = tsk__unicode_order(stretch->unicode, c);
    return 1;
}

static int tsk__unicode_push_decomposed(tsk__unicode_stretch *stretch, uint32_t c) {
    const uint32_t *step = tsk__unicode_step(c);
    if (step)
        return tsk__unicode_push_decomposed(stretch, step[1]) && (!step[2] || tsk__unicode_push(stretch, step[2]));
    if (c - TSK__HANGUL >= TSK__HANGUL_COUNT) return tsk__unicode_push(stretch, c);
    c -= TSK__HANGUL;
    return tsk__unicode_push(stretch, TSK__HANGUL_L + c / 588) &&
           tsk__unicode_push(stretch, TSK__HANGUL_V + c % 588 / 28) &&
           (c % 28 == 0 || tsk__unicode_push(stretch, TSK__HANGUL_T + c % 28));
}

/* Sorts the combining characters from `from` to `to` by order, equal ones left in theirs. One pass an order and no
   more, since a stranger may send a megabyte of accents; in most text nothing is out of place. */
static int tsk__unicode_sort(tsk__unicode_stretch *stretch, size_t from, size_t to) {
    tsk__unicode_symbol *symbols = stretch->symbols + from;
    size_t i, n = 0, count = to - from;
    uint32_t order;
    for (i = 1; i < count && symbols[i - 1].order <= symbols[i].order; i++) {
    }
    if (i >= count) return 1;
    if (!tsk__memory_reserve(stretch->allocator, &stretch->sorted, &stretch->sorted_capacity, count, sizeof *symbols))
        return 0;
    for (order = 1; n < count; order++)
        for (i = 0; i < count; i++)
            if (symbols[i].order == order) stretch->sorted[n++] = symbols[i];
    memcpy(symbols, stretch->sorted, count * sizeof *symbols);
    return 1;
}

static int tsk__unicode_reorder(tsk__unicode_stretch *stretch) {
    size_t i, from = 0;
    for (i = 0; i <= stretch->count; i++) {
        if (i < stretch->count && stretch->symbols[i].order) continue;
        if (!tsk__unicode_sort(stretch, from, i)) return 0;
        from = i + 1;
    }
    return 1;
}

/* A character composes with the last starter if no character is kept between them, or if the last one kept there has a
   lower order. */
static void tsk__unicode_recompose(tsk__unicode_stretch *stretch) {
    tsk__unicode_symbol *symbols = stretch->symbols;
    size_t i, n = 0, starter = SIZE_MAX;
    for (i = 0; i < stretch->count; i++) {
        int is_next = starter != SIZE_MAX && (n == starter + 1 || symbols[n - 1].order < symbols[i].order);
        uint32_t joined = is_next ? tsk__unicode_compose(symbols[starter].c, symbols[i].c) : 0;
        if (joined) {
            symbols[starter].c = joined;
            continue;
        }
        if (symbols[i].order == 0) starter = n;
        symbols[n++] = symbols[i];
    }
    stretch->count = n;
}

static tsk_status tsk__unicode_append_stretch(tsk__unicode_stretch *stretch, const char *text, size_t size,
                                              tsk_text *out) {
    tsk_status status = TSK_OK;
    size_t at = 0, i;
    stretch->count = 0;
    while (at < size) {
        uint32_t c;
        at += tsk__unicode_next(text + at, &c);
        if (!tsk__unicode_push_decomposed(stretch, c)) return TSK_ERROR_MEMORY;
    }
    if (!tsk__unicode_reorder(stretch)) return TSK_ERROR_MEMORY;
    tsk__unicode_recompose(stretch);
    for (i = 0; i < stretch->count && status == TSK_OK; i++) {
        char buffer[4];
        status = tsk_text_append(out, buffer, (size_t)(tsk__json_put_utf8(buffer, stretch->symbols[i].c) - buffer));
    }
    return status;
}

/* The first unstable character at or after `at`, or `size`. No character below U+0300 is one, hence no lead byte below
   0xcc, so that plain and Latin text costs a comparison a byte. */
static size_t tsk__unicode_unstable(const tsk__unicode *unicode, const char *text, size_t at, size_t size) {
    for (; at < size; at++) {
        uint32_t c;
        if ((unsigned char)text[at] < 0xcc) continue;
        tsk__unicode_next(text + at, &c);
        if (tsk__unicode_property(unicode, c) & TSK__UNICODE_UNSTABLE) break;
    }
    return at;
}

/* The first stable character at or after `at`, or `size`. */
static size_t tsk__unicode_stable(const tsk__unicode *unicode, const char *text, size_t at, size_t size) {
    while (at < size) {
        uint32_t c;
        size_t n = tsk__unicode_next(text + at, &c);
        if (!(tsk__unicode_property(unicode, c) & TSK__UNICODE_UNSTABLE)) break;
        at += n;
    }
    return at;
}

/* Appends NFC of valid UTF-8 text. `out` also lends its allocator. */
static tsk_status tsk__unicode_nfc(const tsk__unicode *unicode, const char *text, size_t size, tsk_text *out) {
    tsk__unicode_stretch stretch;
    tsk_status status = TSK_OK;
    size_t at = 0;
    memset(&stretch, 0, sizeof stretch);
    stretch.unicode = unicode;
    stretch.allocator = out->allocator;
    while (at < size && status == TSK_OK) {
        size_t unstable = tsk__unicode_unstable(unicode, text, at, size);
        size_t from = unstable > at && unstable < size ? tsk__unicode_before(text, unstable) : unstable;
        size_t to = tsk__unicode_stable(unicode, text, unstable, size);
        status = tsk_text_append(out, text + at, from - at);
        if (status == TSK_OK && from < to) status = tsk__unicode_append_stretch(&stretch, text + from, to - from, out);
        at = to;
    }
    tsk__memory_delete(stretch.allocator, stretch.symbols);
    tsk__memory_delete(stretch.allocator, stretch.sorted);
    return status;
}

// >>bpe ===============================================================================================================
/* Byte-level BPE as Hugging Face's tokenizers does it: added tokens are cut out of the text, the rest is normalised and
   split into pieces by a regular expression, and in each piece the neighbouring pair of lowest rank is merged until no
   pair has one.

       "Hi there<|eot_id|>"  →  "Hi there", <|eot_id|>  →  "Hi", " there", …  →  H i → Hi,  Ġ t h e r e → Ġthere

   The regular expressions in use are a handful; each is a hand-written scanner known by its exact text, and any other
   is refused at load. In vocabularies a byte is written as a printable character (space as Ġ); here text stays bytes,
   and only tokens are translated, once, at load. */

enum {
    TSK__BPE_MAX_STEPS = 8,          /* regular expressions in a row */
    TSK__BPE_MAX_ADDED_LENGTH = 512, /* bytes of an added token: bounds the work where text is full of its beginnings */
    TSK__BPE_WAYS = 4,               /* pieces that the cache keeps of those with the same place */
    TSK__BPE_SHORT = 48,             /* pieces up to here are merged by looking at every pair, longer ones with a
                                        tree */
    TSK__BPE_FAN = 16,               /* children of a node of that tree */
    TSK__BPE_MAX_LEVELS = 9          /* 16^8 is 2^32 symbols */
};

#define TSK__BPE_NO_RANK UINT32_MAX
#ifndef TSK__BPE_CHARS_FROM
#define TSK__BPE_CHARS_FROM 8192     /* merges from which a table of whole characters pays; tests want it always */
#endif
#define TSK__BPE_MAX_FILE ((size_t)512 << 20)

/* The end of the piece that starts at `at` < size. */
typedef size_t (*tsk__bpe_scanner)(const tsk__unicode *unicode, const char *text, size_t at, size_t size);

typedef struct tsk__bpe_token {
    uint32_t text, text_length;   /* place in texts: as the vocabulary writes it, a NUL after it */
    uint32_t bytes, bytes_length; /* place in bytes: what it decodes to */
    uint32_t hash;                /* of the text */
    int32_t id;
    uint32_t added;               /* while loading: place in added + 1, 0 for none */
    unsigned char is_special;
} tsk__bpe_token;

typedef struct tsk__bpe_merge {
    int32_t left, right;          /* ids */
    uint32_t rank;
    int32_t id;                   /* what they become */
} tsk__bpe_merge;

typedef struct tsk__bpe_added {
    const char *pattern;          /* what to look for, in texts; set when loading ends */
    uint32_t place, length;
    uint32_t shorter;             /* the longest other that this one begins with: place in the matcher + 1, 0 for
                                     none */
    int32_t id;
    unsigned char single_word, lstrip, rstrip, normalized;
    unsigned char is_declared;    /* while loading: added_tokens_decoder has it */
    unsigned char is_unsaid;      /* while loading: `normalized` is what follows from its not being special */
} tsk__bpe_added;

/* Added tokens that are looked for at the same stage, in the order of their bytes. */
typedef struct tsk__bpe_matcher {
    const tsk__bpe_added *added;
    size_t count;
    unsigned char first[256];     /* 1 for bytes that begin one */
} tsk__bpe_matcher;

/* Characters of two or three bytes that may be taken whole when a piece is cut into its first symbols. This gives the
   result of merging bytes if two conditions hold: no merge joins a part of the character with a neighbour, and every
   merge of the whole character ranks behind the merges that make it. Then the merges inside the character never compete
   with others. Whether a rule can join a part with a neighbour is told by the neighbour's byte; sets are of 256
   bits. */
typedef struct tsk__bpe_chars {
    int32_t ids[65536];           /* by code point: the token, or -1 */
    uint8_t lead[64][32];         /* by a first byte (its low bits): bytes before it that end something a rule joins
                                     with it */
    uint8_t lead_two[1024][32];   /* likewise with the first two bytes of three */
    uint8_t tail[64][32];         /* by a last byte: bytes after it that begin something a rule joins with it */
    uint8_t tail_two[4096][32];   /* likewise with the last two */
} tsk__bpe_chars;

struct tsk_tokenizer {
    const tsk_allocator *allocator;
    tsk__unicode unicode;
    tsk_text texts, bytes;
    tsk__bpe_token *tokens;
    size_t n_tokens, tokens_capacity, n_model; /* the first n_model are the model's own, the rest added tokens */
    uint32_t *by_id;              /* [n_ids] place in tokens + 1, 0 for none */
    size_t n_ids, ids_capacity;
    size_t n_vocabulary_ids;      /* n_ids without tokenizer_config.json, whose tokens the model need not have rows
                                     for */
    uint32_t *slots;              /* [slot_mask + 1] hash table over token texts: place + 1 */
    size_t slot_mask;
    tsk__hash_key key;            /* of its hash */
    uint64_t merge_keys[3];       /* of the hash of two ids */
    tsk__bpe_merge *merges;       /* [merge_mask + 1] hash table */
    uint16_t *merge_tags;         /* [merge_mask + 1] bits of the hash, 0 for a free place: most pairs have no merge,
                                     and to see that takes an eighth of the memory */
    size_t merge_mask;
    int32_t byte_ids[256];        /* -1: no token, and the byte vanishes, as in the reference */
    tsk__bpe_chars *chars;        /* NULL: not worth it, or some byte has no token */
    tsk__bpe_added *added;
    size_t n_added, added_capacity;
    tsk__bpe_matcher raw, normalized; /* looked for before and after normalisation */
    tsk__bpe_scanner steps[TSK__BPE_MAX_STEPS];
    size_t n_steps, longest;      /* longest: bytes of the longest token text */
    int nfc, nfc_first, ignore_merges;
    int template_kind;            /* the rest belongs to >>template */
    const char *template_system;
    tsk_text bos, template_file;
    uint64_t template_length, template_hash;
};

/* ---- the byte alphabet */

/* The character that stands for a byte: itself where it prints, else the next free one from U+0100. */
static uint32_t tsk__bpe_alphabet(unsigned byte) {
    if (byte <= 0x20) return 0x100 + byte;
    if (byte >= 0x7f && byte <= 0xa0) return 0x121 + (byte - 0x7f);
    return byte == 0xad ? 0x143 : byte;
}

/* The byte that a character stands for, or -1. */
static int tsk__bpe_alphabet_byte(uint32_t c) {
    if (c >= 0x100 && c <= 0x120) return (int)(c - 0x100);
    if (c >= 0x121 && c <= 0x142) return (int)(c - 0x121 + 0x7f);
    if (c == 0x143) return 0xad;
    return c > 0x20 && c < 0x100 && tsk__bpe_alphabet(c) == c ? (int)c : -1;
}

/* Appends what a token text decodes to. One character outside the alphabet makes the whole of it stand for itself. */
static tsk_status tsk__bpe_append_bytes(const char *text, size_t size, tsk_text *out) {
    size_t at = 0, start = out->length;
    while (at < size) {
        uint32_t c;
        size_t n = tsk__unicode_next(text + at, &c);
        int byte = tsk__bpe_alphabet_byte(c);
        char one = (char)byte;
        if (byte < 0) {
            out->length = start;
            return tsk_text_append(out, text, size);
        }
        if (tsk_text_append(out, &one, 1) != TSK_OK) return TSK_ERROR_MEMORY;
        at += n;
    }
    return TSK_OK;
}

/* ---- the vocabulary */

static uint32_t tsk__bpe_hash(const tsk_tokenizer *tokenizer, const char *text, size_t size) {
    return (uint32_t)tsk__hash(tokenizer->key, text, size);
}

/* The token's place in the slots, or the free place where it would stand. */
static size_t tsk__bpe_slot(const tsk_tokenizer *tokenizer, const char *text, size_t size, uint32_t hash) {
    size_t slot = hash & tokenizer->slot_mask;
    for (; tokenizer->slots[slot]; slot = (slot + 1) & tokenizer->slot_mask) {
        const tsk__bpe_token *token = &tokenizer->tokens[tokenizer->slots[slot] - 1];
        if (token->hash == hash && token->text_length == size &&
            memcmp(tokenizer->texts.data + token->text, text, size) == 0)
            break;
    }
    return slot;
}

static const tsk__bpe_token *tsk__bpe_find(const tsk_tokenizer *tokenizer, const char *text, size_t size) {
    uint32_t place = tokenizer->slots[tsk__bpe_slot(tokenizer, text, size, tsk__bpe_hash(tokenizer, text, size))];
    return place ? &tokenizer->tokens[place - 1] : NULL;
}

static const tsk__bpe_token *tsk__bpe_token_of(const tsk_tokenizer *tokenizer, int32_t id) {
    uint32_t place = tokenizer && id >= 0 && (size_t)id < tokenizer->n_ids ? tokenizer->by_id[id] : 0;
    return place ? &tokenizer->tokens[place - 1] : NULL;
}

int32_t tsk_tokenizer_size(const tsk_tokenizer *tokenizer) { return tokenizer ? (int32_t)tokenizer->n_ids : 0; }

int32_t tsk_tokenizer_id(const tsk_tokenizer *tokenizer, const char *token) {
    const tsk__bpe_token *found = tokenizer && token ? tsk__bpe_find(tokenizer, token, strlen(token)) : NULL;
    return found ? found->id : -1;
}

int tsk_tokenizer_is_special(const tsk_tokenizer *tokenizer, int32_t id) {
    const tsk__bpe_token *token = tsk__bpe_token_of(tokenizer, id);
    return token ? token->is_special : 0;
}

const char *tsk_tokenizer_token(const tsk_tokenizer *tokenizer, int32_t id, size_t *length) {
    const tsk__bpe_token *token = tsk__bpe_token_of(tokenizer, id);
    if (length) *length = token ? token->text_length : 0;
    return token ? tokenizer->texts.data + token->text : NULL;
}

/* ---- merges */

/* With secret factors two pairs fall together as rarely as by chance, whoever chose them (M. Dietzfelbinger, "Universal
   hashing and k-wise independent random variables via integer arithmetic without primes", 1996); what follows scatters
   pairs that lie in a row. SipHash would do, too, but every two symbols of a text are looked up. */
static uint64_t tsk__bpe_merge_hash(const tsk_tokenizer *tokenizer, int32_t left, int32_t right) {
    const uint64_t *keys = tokenizer->merge_keys;
    uint64_t hash = (uint32_t)left * keys[0] + (uint32_t)right * keys[1] + keys[2];
    return (hash ^ hash >> 32) * UINT64_C(0x9e3779b97f4a7c15);
}

static uint16_t tsk__bpe_merge_tag(uint64_t hash) { return (uint16_t)(hash >> 16 | 1); }

/* The place of the merge of two ids, or the free one where it would stand. */
static size_t tsk__bpe_merge_slot(const tsk_tokenizer *tokenizer, int32_t left, int32_t right) {
    uint64_t hash = tsk__bpe_merge_hash(tokenizer, left, right);
    size_t slot = (size_t)(hash >> 32) & tokenizer->merge_mask;
    uint16_t tag = tsk__bpe_merge_tag(hash);
    for (; tokenizer->merge_tags[slot]; slot = (slot + 1) & tokenizer->merge_mask)
        if (tokenizer->merge_tags[slot] == tag && tokenizer->merges[slot].left == left &&
            tokenizer->merges[slot].right == right)
            break;
    return slot;
}

static const tsk__bpe_merge tsk__bpe_no_merge = {-1, -1, TSK__BPE_NO_RANK, -1};

/* The merge of two ids, or one of rank TSK__BPE_NO_RANK. */
static const tsk__bpe_merge *tsk__bpe_merge_of(const tsk_tokenizer *tokenizer, int32_t left, int32_t right) {
    size_t slot = tsk__bpe_merge_slot(tokenizer, left, right);
    return tokenizer->merge_tags[slot] ? &tokenizer->merges[slot] : &tsk__bpe_no_merge;
}

/* ---- scanners: one regular expression each */

enum {
    TSK__BPE_LETTERS = 1 << TSK__UNICODE_UPPER | 1 << TSK__UNICODE_LOWER | 1 << TSK__UNICODE_LETTER, /* \p{L} */
    TSK__BPE_SYMBOLS = 1 << TSK__UNICODE_OTHER | 1 << TSK__UNICODE_MARK, /* [^\s\p{L}\p{N}] */
    TSK__BPE_CAPITALS = 1 << TSK__UNICODE_UPPER | 1 << TSK__UNICODE_LETTER |
                        1 << TSK__UNICODE_MARK, /* [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] */
    TSK__BPE_SMALL =
        1 << TSK__UNICODE_LOWER | 1 << TSK__UNICODE_LETTER | 1 << TSK__UNICODE_MARK, /* [\p{Ll}\p{Lm}\p{Lo}\p{M}] */
    TSK__BPE_NUMBERS = 1 << TSK__UNICODE_NUMBER,
    TSK__BPE_SPACES = 1 << TSK__UNICODE_SPACE
};

/* 1 << the kind of the character at `at`, whose length goes to *n; 0 at the end. */
static int tsk__bpe_kind(const tsk__unicode *unicode, const char *text, size_t at, size_t size, size_t *n) {
    uint32_t c;
    *n = 0;
    if (at >= size) return 0;
    *n = 1;
    if ((unsigned char)text[at] < 0x80) return 1 << (unicode->blocks[(unsigned char)text[at]] & TSK__UNICODE_KIND);
    *n = tsk__unicode_next(text + at, &c);
    return 1 << (tsk__unicode_property(unicode, c) & TSK__UNICODE_KIND);
}

/* The end of the run of characters of these kinds. */
static size_t tsk__bpe_run(const tsk__unicode *unicode, const char *text, size_t at, size_t size, int kinds) {
    size_t n;
    while (tsk__bpe_kind(unicode, text, at, size, &n) & kinds) at += n;
    return at;
}

/* 's|'t|'re|'ve|'m|'ll|'d : its length at `at`, or 0. In any case U+017F counts as an s. */
static size_t tsk__bpe_contraction(const char *text, size_t at, size_t size, int any_case) {
    char a, b;
    if (size - at < 2 || text[at] != '\'') return 0;
    a = text[at + 1];
    b = size - at > 2 ? text[at + 2] : '\0';
    if (any_case && a == '\xc5' && b == '\xbf') return 3;
    if (any_case && a >= 'A' && a <= 'Z') a = (char)(a | 0x20);
    if (any_case && b >= 'A' && b <= 'Z') b = (char)(b | 0x20);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+ ; without newlines only the latter two. */
static size_t tsk__bpe_spaces(const tsk__unicode *unicode, const char *text, size_t at, size_t size, int newlines) {
    size_t n, last = at, newline = 0, end = at;
    while (tsk__bpe_kind(unicode, text, end, size, &n) & TSK__BPE_SPACES) {
        last = end;
        end += n;
        if (text[last] == '\n' || text[last] == '\r') newline = end;
    }
    if (newlines && newline) return newline;
    return end < size && last > at ? last : end; /* the last of several goes to what follows it */
}

/*  ?[^\s\p{L}\p{N}]+[\r\n]* and then spaces; with slash [\r\n/]*. */
static size_t tsk__bpe_symbols(const tsk__unicode *unicode, const char *text, size_t at, size_t size, int slash) {
    size_t n, start = at + (text[at] == ' ');
    if (!(tsk__bpe_kind(unicode, text, start, size, &n) & TSK__BPE_SYMBOLS))
        return tsk__bpe_spaces(unicode, text, at, size, 1);
    at = tsk__bpe_run(unicode, text, start + n, size, TSK__BPE_SYMBOLS);
    while (at < size && (text[at] == '\r' || text[at] == '\n' || (slash && text[at] == '/'))) at++;
    return at;
}

/* \p{N}{1,most} */
static size_t tsk__bpe_digits(const tsk__unicode *unicode, const char *text, size_t at, size_t size, int most) {
    size_t n;
    while (most-- > 0 && tsk__bpe_kind(unicode, text, at, size, &n) & TSK__BPE_NUMBERS) at += n;
    return at;
}

/* Whether [^\r\n\p{L}\p{N}] takes the character at `at`, of this kind. */
static int tsk__bpe_is_prefix(const char *text, size_t at, int kind) {
    return !(kind & (TSK__BPE_LETTERS | TSK__BPE_NUMBERS)) && text[at] != '\r' && text[at] != '\n';
}

static size_t tsk__bpe_words(const tsk__unicode *unicode, const char *text, size_t at, size_t size, int most_digits) {
    size_t n, next, contraction = text[at] == '\'' ? tsk__bpe_contraction(text, at, size, 1) : 0;
    int kind = tsk__bpe_kind(unicode, text, at, size, &n);
    if (contraction) return at + contraction;
    if (kind & TSK__BPE_LETTERS) return tsk__bpe_run(unicode, text, at + n, size, TSK__BPE_LETTERS);
    if (kind & TSK__BPE_NUMBERS) return tsk__bpe_digits(unicode, text, at, size, most_digits);
    if (tsk__bpe_is_prefix(text, at, kind) && tsk__bpe_kind(unicode, text, at + n, size, &next) & TSK__BPE_LETTERS)
        return tsk__bpe_run(unicode, text, at + n + next, size, TSK__BPE_LETTERS);
    return tsk__bpe_symbols(unicode, text, at, size, 0);
}

static size_t tsk__bpe_scan_qwen(const tsk__unicode *unicode, const char *text, size_t at, size_t size) {
    return tsk__bpe_words(unicode, text, at, size, 1);
}

static size_t tsk__bpe_scan_llama3(const tsk__unicode *unicode, const char *text, size_t at, size_t size) {
    return tsk__bpe_words(unicode, text, at, size, 3);
}

static size_t tsk__bpe_scan_gpt2(const tsk__unicode *unicode, const char *text, size_t at, size_t size) {
    size_t n, start = at + (text[at] == ' '),
              contraction = text[at] == '\'' ? tsk__bpe_contraction(text, at, size, 0) : 0;
    int kind = tsk__bpe_kind(unicode, text, start, size, &n);
    if (contraction) return at + contraction;
    if (kind & TSK__BPE_LETTERS) kind = TSK__BPE_LETTERS;
    else if (kind & TSK__BPE_SYMBOLS) kind = TSK__BPE_SYMBOLS;
    else if (!(kind & TSK__BPE_NUMBERS)) return tsk__bpe_spaces(unicode, text, at, size, 0);
    return tsk__bpe_run(unicode, text, start + n, size, kind);
}

/* CAPITALS*SMALL+ from `at`: its end, or 0. Where no small letter follows the capitals, CAPITALS* gives back up to the
   last character that is in both sets, and SMALL+ takes just that one. */
static size_t tsk__bpe_capitals_small(const tsk__unicode *unicode, const char *text, size_t at, size_t size) {
    size_t n, both = 0;
    int kind;
    while ((kind = tsk__bpe_kind(unicode, text, at, size, &n)) & TSK__BPE_CAPITALS) {
        at += n;
        if (kind & TSK__BPE_SMALL) both = at;
    }
    return kind & TSK__BPE_SMALL ? tsk__bpe_run(unicode, text, at, size, TSK__BPE_SMALL) : both;
}

/* The two word alternatives of GPT-4o, the second being CAPITALS+SMALL*, each with and then without a character in
   front. */
static size_t tsk__bpe_cased_word(const tsk__unicode *unicode, const char *text, size_t at, size_t size) {
    size_t n, end, from;
    int kind = tsk__bpe_kind(unicode, text, at, size, &n);
    int prefix = tsk__bpe_is_prefix(text, at, kind);
    if (kind & TSK__BPE_NUMBERS) return 0;
    end = prefix ? tsk__bpe_capitals_small(unicode, text, at + n, size) : 0;
    if (!end) end = tsk__bpe_capitals_small(unicode, text, at, size);
    if (end) return end;
    from = prefix ? at + n : at;
    end = tsk__bpe_run(unicode, text, from, size, TSK__BPE_CAPITALS); /* all of one kind: else the first would have
                                                                         matched */
    return end > from ? end : 0;
}

static size_t tsk__bpe_scan_gpt4o(const tsk__unicode *unicode, const char *text, size_t at, size_t size) {
    size_t end = tsk__bpe_cased_word(unicode, text, at, size);
    if (end) return end + (end < size ? tsk__bpe_contraction(text, end, size, 1) : 0);
    end = tsk__bpe_digits(unicode, text, at, size, 3);
    return end > at ? end : tsk__bpe_symbols(unicode, text, at, size, 1);
}

static const struct tsk__bpe_pattern {
    const char *regex;
    tsk__bpe_scanner scanner;
} tsk__bpe_patterns[] = {
    /* LLaDA. Its possessive repeats and its \s*[\r\n] without a + take the same text as Qwen's do. */
    {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| "
     "?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+",
     tsk__bpe_scan_qwen},
    /* Qwen2, Qwen2.5, Qwen3, Dream */
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
     "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
     tsk__bpe_scan_qwen},
    /* Llama-3, GPT-4 */
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
     "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
     tsk__bpe_scan_llama3},
    /* GPT-2; ByteLevel with use_regex means this one too */
    {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", tsk__bpe_scan_gpt2},
    /* GPT-4o */
    {"[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'"
     "ll|'d)?|"
     "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'"
     "ll|'d)?|"
     "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
     tsk__bpe_scan_gpt4o}};

/* ---- a piece */

/* A piece that was met before: its bytes are still in the text and its tokens in the output. */
typedef struct tsk__bpe_cached {
    uint32_t piece, out;          /* where they start */
    uint32_t hash;
    uint16_t length, count;       /* length 0: a free place */
} tsk__bpe_cached;

/* Symbols of a long piece as a list, and over the rank of each pair a tree of least ranks, 16 children a node: the next
   merge is found from the top down and a change is carried from the bottom up, in 5 steps of 16 for a megabyte. A heap
   would have to carry outdated entries and walks all over memory. */
typedef struct tsk__bpe_list {
    uint32_t *next, *previous;    /* [count] */
    uint32_t *levels[TSK__BPE_MAX_LEVELS]; /* level 0: [count] rank of symbol i with its next; the last level has at
                                              most 16 */
    int n_levels;
    uint32_t *block;              /* one allocation for all of it */
    size_t capacity;
} tsk__bpe_list;

/* A stretch of the text: an added token, or (id -1) text to be split. */
typedef struct tsk__bpe_span {
    size_t start, end;
    int32_t id;
} tsk__bpe_span;

/* Bytes in which no added token may begin or end. */
typedef struct tsk__bpe_range {
    size_t start, end;
} tsk__bpe_range;

/* Everything that one call needs; the tokenizer itself is shared by threads and never written. */
typedef struct tsk__bpe_encoder {
    const tsk_tokenizer *tokenizer;
    const tsk_allocator *allocator;
    tsk_tokens *out;
    const char *text;
    size_t size;
    tsk__bpe_span *spans, *new_spans;
    size_t n_spans, spans_capacity, n_new_spans, new_spans_capacity;
    const tsk__bpe_range *ranges; /* ascending */
    size_t n_ranges;
    tsk__bpe_range *new_ranges;   /* the same in normalised text */
    size_t n_new_ranges, new_ranges_capacity;
    tsk_text normal;              /* the normalised text; it does not move while pieces are cached */
    tsk_text word;                /* a piece in the byte alphabet */
    tsk__bpe_cached *cache;       /* [cache_mask + 1, TSK__BPE_WAYS], or NULL */
    size_t cache_mask;
    size_t first_out;             /* what the output held before */
    tsk__bpe_list list;
} tsk__bpe_encoder;

typedef struct tsk__bpe_symbol {
    int32_t id;
    const tsk__bpe_merge *merge;  /* with the symbol after it */
} tsk__bpe_symbol;

/* ids: the bytes' own tokens, replaced by the result. Returns how many are left. */
static size_t tsk__bpe_merge_short(const tsk_tokenizer *tokenizer, int32_t *ids, size_t count) {
    tsk__bpe_symbol symbols[TSK__BPE_SHORT];
    size_t i;
    for (i = 0; i < count; i++) {
        symbols[i].id = ids[i];
        symbols[i].merge = i + 1 < count ? tsk__bpe_merge_of(tokenizer, ids[i], ids[i + 1]) : NULL;
    }
    while (count > 1) {
        size_t best = 0;
        for (i = 1; i + 1 < count; i++)
            if (symbols[i].merge->rank < symbols[best].merge->rank) best = i;
        if (symbols[best].merge->rank == TSK__BPE_NO_RANK) break;
        symbols[best].id = symbols[best].merge->id;
        count--;
        for (i = best + 1; i < count; i++) symbols[i] = symbols[i + 1];
        if (best + 1 < count)
            symbols[best].merge = tsk__bpe_merge_of(tokenizer, symbols[best].id, symbols[best + 1].id);
        if (best > 0) symbols[best - 1].merge = tsk__bpe_merge_of(tokenizer, symbols[best - 1].id, symbols[best].id);
    }
    for (i = 0; i < count; i++) ids[i] = symbols[i].id;
    return count;
}

static uint32_t tsk__bpe_least(const uint32_t *ranks) {
    uint32_t least = ranks[0];
    int i;
    for (i = 1; i < TSK__BPE_FAN; i++) least = ranks[i] < least ? ranks[i] : least;
    return least;
}

static void tsk__bpe_list_set(tsk__bpe_list *list, size_t at, uint32_t rank) {
    int level;
    list->levels[0][at] = rank;
    for (level = 1; level < list->n_levels; level++) {
        uint32_t least = tsk__bpe_least(list->levels[level - 1] + at / TSK__BPE_FAN * TSK__BPE_FAN);
        at /= TSK__BPE_FAN;
        if (list->levels[level][at] == least) return;
        list->levels[level][at] = least;
    }
}

/* The leftmost pair of the lowest rank, SIZE_MAX when none has one. */
static size_t tsk__bpe_list_best(const tsk__bpe_list *list) {
    int level = list->n_levels - 1;
    uint32_t least = tsk__bpe_least(list->levels[level]);
    size_t at = 0;
    if (least == TSK__BPE_NO_RANK) return SIZE_MAX;
    for (; level >= 0; level--) {
        at *= TSK__BPE_FAN;
        while (list->levels[level][at] != least) at++;
    }
    return at;
}

/* Room for `count` symbols, level 0 filled by the caller, afterwards. 0: out of memory. */
static int tsk__bpe_list_reserve(tsk__bpe_encoder *encoder, size_t count) {
    tsk__bpe_list *list = &encoder->list;
    size_t places[TSK__BPE_MAX_LEVELS], total = 2 * count, n = count;
    int level;
    list->n_levels = 0;
    do {
        size_t padded = (n + TSK__BPE_FAN - 1) / TSK__BPE_FAN * TSK__BPE_FAN;
        places[list->n_levels++] = total;
        total += padded;
        n = padded / TSK__BPE_FAN;
    } while (n > 1);
    if (!tsk__memory_reserve(encoder->allocator, &list->block, &list->capacity, total, sizeof *list->block)) return 0;
    memset(list->block + 2 * count, 0xff, (total - 2 * count) * sizeof *list->block); /* TSK__BPE_NO_RANK everywhere */
    list->next = list->block;
    list->previous = list->block + count;
    for (level = 0; level < list->n_levels; level++) list->levels[level] = list->block + places[level];
    return 1;
}

static void tsk__bpe_list_fill(tsk__bpe_list *list, const tsk_tokenizer *tokenizer, const int32_t *ids, size_t count) {
    size_t i, n;
    int level;
    for (i = 0; i < count; i++) {
        list->next[i] = (uint32_t)(i + 1);
        list->previous[i] = (uint32_t)i - 1;
        if (i + 1 < count) list->levels[0][i] = tsk__bpe_merge_of(tokenizer, ids[i], ids[i + 1])->rank;
    }
    for (n = count, level = 1; level < list->n_levels; level++) {
        n = (n + TSK__BPE_FAN - 1) / TSK__BPE_FAN;
        for (i = 0; i < n; i++) list->levels[level][i] = tsk__bpe_least(list->levels[level - 1] + i * TSK__BPE_FAN);
    }
}

/* As tsk__bpe_merge_short, for any length; SIZE_MAX: out of memory. */
static size_t tsk__bpe_merge_long(tsk__bpe_encoder *encoder, int32_t *ids, size_t count) {
    const tsk_tokenizer *tokenizer = encoder->tokenizer;
    tsk__bpe_list *list = &encoder->list;
    size_t at, n = 0;
    if (!tsk__bpe_list_reserve(encoder, count)) return SIZE_MAX;
    tsk__bpe_list_fill(list, tokenizer, ids, count);
    while ((at = tsk__bpe_list_best(list)) != SIZE_MAX) {
        size_t right = list->next[at], next = list->next[right], previous = list->previous[at];
        ids[at] = tsk__bpe_merge_of(tokenizer, ids[at], ids[right])->id;
        list->next[at] = (uint32_t)next;
        if (next < count) list->previous[next] = (uint32_t)at;
        tsk__bpe_list_set(list, right, TSK__BPE_NO_RANK);
        tsk__bpe_list_set(list, at,
                          next < count ? tsk__bpe_merge_of(tokenizer, ids[at], ids[next])->rank : TSK__BPE_NO_RANK);
        if (at > 0) tsk__bpe_list_set(list, previous, tsk__bpe_merge_of(tokenizer, ids[previous], ids[at])->rank);
    }
    for (at = 0; at < count; at = list->next[at]) ids[n++] = ids[at];
    return n;
}

/* The token that the whole piece is, for ignore_merges; NULL when none. */
static const tsk__bpe_token *tsk__bpe_whole(tsk__bpe_encoder *encoder, const char *piece, size_t size) {
    const tsk__bpe_token *found;
    char *to;
    size_t i;
    if (size > encoder->tokenizer->longest) return NULL;
    to = encoder->word.data;
    for (i = 0; i < size; i++) to = tsk__json_put_utf8(to, tsk__bpe_alphabet((unsigned char)piece[i]));
    found = tsk__bpe_find(encoder->tokenizer, encoder->word.data, (size_t)(to - encoder->word.data));
    return found && (size_t)(found - encoder->tokenizer->tokens) < encoder->tokenizer->n_model ? found : NULL;
}

/* ---- characters taken whole (see tsk__bpe_chars) */

/* The code point and length of the character of two or three bytes at `s`, of which `left` are there; else 0. */
static size_t tsk__bpe_char(const unsigned char *s, size_t left, uint32_t *c) {
    if (s[0] < 0xc2 || s[0] >= 0xf0 || left < (s[0] < 0xe0 ? 2u : 3u) || (s[1] & 0xc0) != 0x80) return 0;
    *c = (uint32_t)(s[0] & 0x1f) << 6 | (s[1] & 0x3f);
    if (s[0] < 0xe0) return 2;
    *c = (uint32_t)(s[0] & 0x0f) << 12 | (uint32_t)(s[1] & 0x3f) << 6 | (s[2] & 0x3f);
    return (s[2] & 0xc0) == 0x80 ? 3 : 0;
}

static int tsk__bpe_in(const uint8_t set[32], unsigned char byte) { return set[byte >> 3] >> (byte & 7) & 1; }
static void tsk__bpe_include(uint8_t set[32], unsigned char byte) { set[byte >> 3] |= (uint8_t)(1 << (byte & 7)); }
static size_t tsk__bpe_two(unsigned char a, unsigned char b) { return (size_t)(a & 0x3f) << 6 | (b & 0x3f); }
static size_t tsk__bpe_lead_two(unsigned char a, unsigned char b) { return (size_t)(a & 0x0f) << 6 | (b & 0x3f); }

/* The token of the character at `at`, of n bytes, where neighbours cannot take part of it; else -1. */
static int32_t tsk__bpe_whole_char(const tsk__bpe_chars *chars, const unsigned char *piece, size_t at, size_t size,
                                   size_t n, uint32_t c) {
    const unsigned char *s = piece + at, *last = s + n - 1;
    if (at && (tsk__bpe_in(chars->lead[s[0] & 0x3f], s[-1]) ||
               (n == 3 && tsk__bpe_in(chars->lead_two[tsk__bpe_lead_two(s[0], s[1])], s[-1]))))
        return -1;
    if (at + n < size && (tsk__bpe_in(chars->tail[*last & 0x3f], last[1]) ||
                          (n == 3 && tsk__bpe_in(chars->tail_two[tsk__bpe_two(s[1], s[2])], last[1]))))
        return -1;
    return chars->ids[c];
}

/* The symbols that merging begins with; returns how many. */
static size_t tsk__bpe_first_symbols(const tsk_tokenizer *tokenizer, const char *piece, size_t size, int32_t *ids) {
    const unsigned char *bytes = (const unsigned char *)piece;
    size_t i, n = 0, length;
    uint32_t c = 0;
    for (i = 0; i < size; i += length) {
        length = tokenizer->chars ? tsk__bpe_char(bytes + i, size - i, &c) : 0;
        ids[n] = length ? tsk__bpe_whole_char(tokenizer->chars, bytes, i, size, length, c) : -1;
        if (!length || ids[n] < 0) {
            length = 1;
            ids[n] = tokenizer->byte_ids[bytes[i]];
        }
        if (ids[n] >= 0) n++;
    }
    return n;
}

/* Appends the ids of a piece, worked out anew. There is room for one a byte. */
static tsk_status tsk__bpe_encode_new(tsk__bpe_encoder *encoder, const char *piece, size_t size) {
    const tsk_tokenizer *tokenizer = encoder->tokenizer;
    int32_t *ids = encoder->out->ids + encoder->out->count;
    const tsk__bpe_token *whole = tokenizer->ignore_merges ? tsk__bpe_whole(encoder, piece, size) : NULL;
    size_t n = 0;
    if (whole) {
        ids[n++] = whole->id;
    } else {
        n = tsk__bpe_first_symbols(tokenizer, piece, size, ids);
        n = n <= TSK__BPE_SHORT ? tsk__bpe_merge_short(tokenizer, ids, n) : tsk__bpe_merge_long(encoder, ids, n);
        if (n == SIZE_MAX) return TSK_ERROR_MEMORY;
    }
    encoder->out->count += (int32_t)n;
    return TSK_OK;
}

static uint64_t tsk__bpe_mix(uint64_t a, uint64_t b) {
    a = (a ^ b) * UINT64_C(0x9e3779b97f4a7c15);
    return a ^ a >> 32;
}

/* Of a piece. The hash has no secret key: pieces that collide only make the cache useless. */
static uint32_t tsk__bpe_piece_hash(const char *text, size_t size) {
    uint64_t hash = size, part;
    for (; size >= 8; size -= 8, text += 8) {
        memcpy(&part, text, 8);
        hash = tsk__bpe_mix(hash, part);
    }
    part = 0;
    if (size >= 4) {
        uint32_t low, high;
        memcpy(&low, text, 4);
        memcpy(&high, text + size - 4, 4);
        part = (uint64_t)high << 32 | low;
    } else if (size) {
        const unsigned char *bytes = (const unsigned char *)text;
        part = (uint64_t)bytes[0] << 16 | (uint64_t)bytes[size / 2] << 8 | bytes[size - 1];
    }
    return (uint32_t)tsk__bpe_mix(hash, part);
}

/* The cached piece, or the place for it: a free one, else one of the four by chance. */
static tsk__bpe_cached *tsk__bpe_cache_place(const tsk__bpe_encoder *encoder, const char *piece, size_t size,
                                             uint32_t hash) {
    tsk__bpe_cached *set = &encoder->cache[(hash & encoder->cache_mask) * TSK__BPE_WAYS];
    int way;
    for (way = 0; way < TSK__BPE_WAYS; way++)
        if (set[way].length == 0 || (set[way].hash == hash && set[way].length == size &&
                                     memcmp(encoder->text + set[way].piece, piece, size) == 0))
            return &set[way];
    set = &set[hash >> 30];
    set->length = 0;
    return set;
}

static tsk_status tsk__bpe_encode_piece(tsk__bpe_encoder *encoder, const char *piece, size_t size) {
    tsk_tokens *out = encoder->out;
    tsk__bpe_cached *cached;
    size_t i, start = (size_t)out->count;
    uint32_t hash;
    if (!tsk__tokens_reserve(out, size)) return TSK_ERROR_MEMORY;
    if (!encoder->cache || size > UINT16_MAX) return tsk__bpe_encode_new(encoder, piece, size);
    hash = tsk__bpe_piece_hash(piece, size);
    cached = tsk__bpe_cache_place(encoder, piece, size, hash);
    if (cached->length) {
        const int32_t *ids = out->ids + encoder->first_out + cached->out;
        for (i = 0; i < cached->count; i++) out->ids[start + i] = ids[i];
        out->count += cached->count;
        return TSK_OK;
    }
    if (tsk__bpe_encode_new(encoder, piece, size) != TSK_OK) return TSK_ERROR_MEMORY;
    cached->piece = (uint32_t)(piece - encoder->text);
    cached->out = (uint32_t)(start - encoder->first_out);
    cached->hash = hash;
    cached->length = (uint16_t)size;
    cached->count = (uint16_t)((size_t)out->count - start);
    return TSK_OK;
}

/* Each regular expression splits the pieces of the one before it. */
static tsk_status tsk__bpe_encode_text(tsk__bpe_encoder *encoder, size_t step, const char *text, size_t size) {
    tsk_status status = TSK_OK;
    size_t at = 0;
    if (step == encoder->tokenizer->n_steps) return size ? tsk__bpe_encode_piece(encoder, text, size) : TSK_OK;
    while (at < size && status == TSK_OK) {
        size_t end = encoder->tokenizer->steps[step](&encoder->tokenizer->unicode, text, at, size);
        status = tsk__bpe_encode_text(encoder, step + 1, text + at, end - at);
        at = end;
    }
    return status;
}

/* ---- added tokens in text */

/* How many bytes `a` and `b` have in common from `n` on, of `end` that both have, counted from their start. */
static size_t tsk__bpe_common(const char *a, const char *b, size_t n, size_t end) {
    uint64_t x, y;
    for (; n + 8 <= end; n += 8) {
        memcpy(&x, a + n, 8);
        memcpy(&y, b + n, 8);
        if (x != y) break;
    }
    while (n < end && a[n] == b[n]) n++;
    return n;
}

/* The longest added token that starts at `at` and ends by `limit`, or NULL. The last token that is not behind the text
   in the order of bytes begins with all tokens that the text begins with. What both ends of the search have in common
   with the text is not compared again. */
static const tsk__bpe_added *tsk__bpe_longest(const tsk__bpe_matcher *matcher, const char *text, size_t at,
                                              size_t limit) {
    size_t low = 0, high = matcher->count, low_common = 0, high_common = 0, left = limit - at;
    text += at;
    while (low < high) { /* all before `low` are not behind the text; `high` and all after it are */
        size_t middle = (low + high) / 2, n = low_common < high_common ? low_common : high_common;
        const char *pattern = matcher->added[middle].pattern;
        size_t length = matcher->added[middle].length;
        n = tsk__bpe_common(pattern, text, n, length < left ? length : left);
        if (n == length || (n < left && (unsigned char)pattern[n] < (unsigned char)text[n])) {
            low = middle + 1;
            low_common = n;
        } else {
            high = middle;
            high_common = n;
        }
    }
    while (low && matcher->added[low - 1].length > low_common) low = matcher->added[low - 1].shorter;
    return low ? &matcher->added[low - 1] : NULL;
}

static int tsk__bpe_push_span(tsk__bpe_encoder *encoder, size_t start, size_t end, int32_t id) {
    tsk__bpe_span *span;
    if (!tsk__memory_reserve(encoder->allocator, &encoder->new_spans, &encoder->new_spans_capacity,
                             encoder->n_new_spans + 1, sizeof *span))
        return 0;
    span = &encoder->new_spans[encoder->n_new_spans++];
    span->start = start;
    span->end = end;
    span->id = id;
    return 1;
}

/* Whether a word character stands right before `start` or right after `end` within [from, to). */
static int tsk__bpe_touches_word(const tsk__bpe_encoder *encoder, size_t from, size_t start, size_t end, size_t to) {
    const tsk__unicode *unicode = &encoder->tokenizer->unicode;
    int property = 0;
    uint32_t c;
    if (start > from) {
        tsk__unicode_next(encoder->text + tsk__unicode_before(encoder->text, start), &c);
        property |= tsk__unicode_property(unicode, c);
    }
    if (end < to) {
        tsk__unicode_next(encoder->text + end, &c);
        property |= tsk__unicode_property(unicode, c);
    }
    return property & TSK__UNICODE_WORD;
}

static size_t tsk__bpe_strip_left(const tsk__bpe_encoder *encoder, size_t from, size_t at) {
    while (at > from) {
        size_t n, before = tsk__unicode_before(encoder->text, at);
        if (!(tsk__bpe_kind(&encoder->tokenizer->unicode, encoder->text, before, at, &n) & TSK__BPE_SPACES)) break;
        at = before;
    }
    return at;
}

/* Cuts the added tokens out of a text span. `range` is the first of the ranges that may matter. */
static int tsk__bpe_match_span(tsk__bpe_encoder *encoder, const tsk__bpe_matcher *matcher, const tsk__bpe_span *span,
                               size_t *range) {
    size_t done = span->start, at = span->start, end = span->end, space_end = 0;
    while (at < end) {
        const tsk__bpe_added *added;
        size_t from, stop, limit = end;
        while (*range < encoder->n_ranges && encoder->ranges[*range].end <= at) ++*range;
        if (*range < encoder->n_ranges && encoder->ranges[*range].start < end) limit = encoder->ranges[*range].start;
        if (limit <= at) {
            at = encoder->ranges[*range].end;
            continue;
        }
        while (at < limit && !matcher->first[(unsigned char)encoder->text[at]]) at++;
        added = at < limit ? tsk__bpe_longest(matcher, encoder->text, at, limit) : NULL;
        if (!added) {
            at += at < limit;
            continue;
        }
        from = at;
        stop = at += added->length;
        if (added->single_word && tsk__bpe_touches_word(encoder, span->start, from, stop, end)) continue;
        if (added->lstrip) from = from > done ? tsk__bpe_strip_left(encoder, done, from) : done;
        if (added->rstrip) {
            if (stop >= space_end)
                space_end = tsk__bpe_run(&encoder->tokenizer->unicode, encoder->text, stop, end, TSK__BPE_SPACES);
            stop = space_end;
        }
        if (from >= stop) continue; /* the one before took it along with its spaces */
        /* One that does not strip to its left may start before `done`, in such spaces: the reference takes it too. */
        if (done < from && !tsk__bpe_push_span(encoder, done, from, -1)) return 0;
        if (!tsk__bpe_push_span(encoder, from, stop, added->id)) return 0;
        done = stop;
    }
    return done == end || tsk__bpe_push_span(encoder, done, end, -1);
}

/* The new spans become the spans. */
static void tsk__bpe_take_spans(tsk__bpe_encoder *encoder) {
    tsk__bpe_span *spans = encoder->spans;
    size_t capacity = encoder->spans_capacity;
    encoder->spans = encoder->new_spans;
    encoder->spans_capacity = encoder->new_spans_capacity;
    encoder->n_spans = encoder->n_new_spans;
    encoder->new_spans = spans;
    encoder->new_spans_capacity = capacity;
    encoder->n_new_spans = 0;
}

static tsk_status tsk__bpe_match(tsk__bpe_encoder *encoder, const tsk__bpe_matcher *matcher) {
    size_t i, range = 0;
    if (matcher->count == 0) return TSK_OK;
    for (i = 0; i < encoder->n_spans; i++) {
        const tsk__bpe_span *span = &encoder->spans[i];
        if (span->id >= 0 ? !tsk__bpe_push_span(encoder, span->start, span->end, span->id)
                          : !tsk__bpe_match_span(encoder, matcher, span, &range))
            return TSK_ERROR_MEMORY;
    }
    tsk__bpe_take_spans(encoder);
    return TSK_OK;
}

/* ---- normalisation */

/* Normalises text[*at, to), notes it as a range if it is one, and moves *at there. */
static tsk_status tsk__bpe_normalize_part(tsk__bpe_encoder *encoder, size_t *at, size_t to, int is_range) {
    size_t start = encoder->normal.length;
    tsk_status status = tsk__unicode_nfc(&encoder->tokenizer->unicode, encoder->text + *at, to - *at, &encoder->normal);
    *at = to;
    if (status != TSK_OK || !is_range) return status;
    if (!tsk__memory_reserve(encoder->allocator, &encoder->new_ranges, &encoder->new_ranges_capacity,
                             encoder->n_new_ranges + 1, sizeof *encoder->new_ranges))
        return TSK_ERROR_MEMORY;
    encoder->new_ranges[encoder->n_new_ranges].start = start;
    encoder->new_ranges[encoder->n_new_ranges++].end = encoder->normal.length;
    return TSK_OK;
}

/* A range begins and ends where NFC joins nothing: it is widened until it does. */
static tsk_status tsk__bpe_normalize_span(tsk__bpe_encoder *encoder, tsk__bpe_span *span, size_t *range) {
    const tsk__unicode *unicode = &encoder->tokenizer->unicode;
    size_t at = span->start, start = encoder->normal.length;
    tsk_status status = TSK_OK;
    while (status == TSK_OK && *range < encoder->n_ranges && encoder->ranges[*range].start < span->end) {
        size_t from = encoder->ranges[*range].start, to = encoder->ranges[*range].end;
        if (to > span->end) to = span->end;
        else ++*range;
        if (to <= at) {
            if (to == span->end) break;
            continue;
        }
        if (from < at) from = at;
        while (from > at && tsk__unicode_unstable(unicode, encoder->text, from, from + 1) == from)
            from = tsk__unicode_before(encoder->text, from);
        to = tsk__unicode_stable(unicode, encoder->text, to, span->end);
        status = tsk__bpe_normalize_part(encoder, &at, from, 0);
        if (status == TSK_OK) status = tsk__bpe_normalize_part(encoder, &at, to, 1);
        if (at == span->end) break;
    }
    if (status == TSK_OK) status = tsk__bpe_normalize_part(encoder, &at, span->end, 0);
    span->start = start;
    span->end = encoder->normal.length;
    return status;
}

/* The text spans become spans of encoder->normal. Added tokens need no text any more. */
static tsk_status tsk__bpe_normalize(tsk__bpe_encoder *encoder) {
    tsk_status status = TSK_OK;
    size_t i, range = 0;
    if (tsk__unicode_unstable(&encoder->tokenizer->unicode, encoder->text, 0, encoder->size) == encoder->size)
        return TSK_OK;
    for (i = 0; i < encoder->n_spans && status == TSK_OK; i++)
        if (encoder->spans[i].id < 0) status = tsk__bpe_normalize_span(encoder, &encoder->spans[i], &range);
    encoder->text = encoder->normal.data;
    encoder->size = encoder->normal.length;
    encoder->ranges = encoder->new_ranges;
    encoder->n_ranges = encoder->n_new_ranges;
    return status;
}

/* ---- a text */

static tsk_status tsk__bpe_encode_stages(tsk__bpe_encoder *encoder, int is_plain) {
    const tsk_tokenizer *tokenizer = encoder->tokenizer;
    tsk_status status = TSK_OK;
    if (tokenizer->nfc_first) status = tsk__bpe_normalize(encoder);
    if (status == TSK_OK && !is_plain) status = tsk__bpe_match(encoder, &tokenizer->raw);
    if (status == TSK_OK && tokenizer->nfc && !tokenizer->nfc_first) status = tsk__bpe_normalize(encoder);
    if (status == TSK_OK && !is_plain) status = tsk__bpe_match(encoder, &tokenizer->normalized);
    return status;
}

/* The cache is a call's own, so that threads share nothing, and in proportion to the text, so that a short one pays
   nothing for it. */
static tsk_status tsk__bpe_encode_prepare(tsk__bpe_encoder *encoder) {
    size_t n = 16;
    if (encoder->size >= UINT32_MAX) return TSK_ERROR_MEMORY;
    if (encoder->tokenizer->ignore_merges &&
        !tsk__memory_reserve(encoder->allocator, &encoder->word.data, &encoder->word.capacity,
                             2 * encoder->tokenizer->longest + 1, 1))
        return TSK_ERROR_MEMORY;
    if (encoder->size < 256) return TSK_OK;
    while (n < encoder->size / 64 && n < 16384) n *= 2;
    encoder->cache =
        (tsk__bpe_cached *)tsk__memory_new_zeroed(encoder->allocator, n * TSK__BPE_WAYS, sizeof *encoder->cache);
    encoder->cache_mask = n - 1;
    return encoder->cache ? TSK_OK : TSK_ERROR_MEMORY;
}

static tsk_status tsk__bpe_encode_spans(tsk__bpe_encoder *encoder) {
    tsk_status status = tsk__bpe_encode_prepare(encoder);
    size_t i;
    for (i = 0; i < encoder->n_spans && status == TSK_OK; i++) {
        const tsk__bpe_span *span = &encoder->spans[i];
        if (span->id >= 0) status = tsk_tokens_append(encoder->out, &span->id, 1);
        else status = tsk__bpe_encode_text(encoder, 0, encoder->text + span->start, span->end - span->start);
    }
    return status;
}

/* Added tokens are recognised outside of `ranges` (ascending, apart); nowhere if is_plain. Scratch memory comes from
   the caller's own allocator, since the tokenizer's may belong to another thread. */
static tsk_status tsk__bpe_encode(const tsk_tokenizer *tokenizer, const char *text, size_t size, int is_plain,
                                  const tsk__bpe_range *ranges, size_t n_ranges, tsk_tokens *out, tsk_error *error) {
    tsk__bpe_encoder encoder;
    tsk_status status;
    int32_t count = out->count;
    size_t invalid = tsk__unicode_invalid(text, size);
    if (size == 0) return TSK_OK;
    if (invalid < size)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, invalid, "the text is not UTF-8 at byte %llu",
                              (unsigned long long)invalid);
    memset(&encoder, 0, sizeof encoder);
    encoder.tokenizer = tokenizer;
    encoder.allocator = encoder.normal.allocator = out->allocator;
    encoder.out = out;
    encoder.text = text;
    encoder.size = size;
    encoder.first_out = (size_t)count;
    encoder.ranges = ranges;
    encoder.n_ranges = n_ranges;
    status = tsk__bpe_push_span(&encoder, 0, size, -1) ? TSK_OK : TSK_ERROR_MEMORY;
    tsk__bpe_take_spans(&encoder);
    if (status == TSK_OK) status = tsk__bpe_encode_stages(&encoder, is_plain);
    if (status == TSK_OK) status = tsk__bpe_encode_spans(&encoder);
    tsk__memory_delete(encoder.allocator, encoder.spans);
    tsk__memory_delete(encoder.allocator, encoder.new_spans);
    tsk__memory_delete(encoder.allocator, encoder.new_ranges);
    tsk__memory_delete(encoder.allocator, encoder.normal.data);
    tsk__memory_delete(encoder.allocator, encoder.word.data);
    tsk__memory_delete(encoder.allocator, encoder.cache);
    tsk__memory_delete(encoder.allocator, encoder.list.block);
    if (status == TSK_OK) return TSK_OK;
    out->count = count;
    return tsk__error_memory(error, "encoding text", size);
}

/* A model folder need not have a tokenizer, and tsk_model_tokenizer then gives NULL. */
static tsk_status tsk__bpe_no_tokenizer(tsk_error *error) {
    return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                          "no tokenizer given: does the model's folder have one?");
}

tsk_status tsk_tokenizer_encode(const tsk_tokenizer *tokenizer, const char *text, size_t size, int special_in_text,
                                tsk_tokens *out, tsk_error *error) {
    if (!tokenizer) return tsk__bpe_no_tokenizer(error);
    if (!text && size) return tsk__error_null(error, "tsk_tokenizer_encode", "text");
    if (!out) return tsk__error_null(error, "tsk_tokenizer_encode", "out");
    return tsk__bpe_encode(tokenizer, text, size, !special_in_text, NULL, 0, out, error);
}

/* ---- decoding */

/* Settles as much of decoder->pending as can be told: whole characters and, for bytes that can become none, U+FFFD each
   time the reference writes one. */
static tsk_status tsk__bpe_settle(tsk_decoder *decoder, int is_last, tsk_text *out) {
    while (decoder->n_pending > 0) {
        char *pending = (char *)decoder->pending;
        int valid;
        size_t left = (size_t)decoder->n_pending, n = tsk__json_utf8(pending, left, &valid);
        if (!valid && n == left && !is_last && decoder->pending[0] >= 0xc2 && decoder->pending[0] <= 0xf4)
            return TSK_OK;
        if (tsk_text_append(out, valid ? pending : "\xef\xbf\xbd", valid ? n : 3) != TSK_OK) return TSK_ERROR_MEMORY;
        memmove(pending, pending + n, left - n);
        decoder->n_pending -= (int)n;
    }
    return TSK_OK;
}

tsk_status tsk_decoder_push(const tsk_tokenizer *tokenizer, tsk_decoder *decoder, int32_t id, tsk_text *out,
                            tsk_error *error) {
    const tsk__bpe_token *token = tsk__bpe_token_of(tokenizer, id);
    const char *bytes;
    size_t at = 0;
    if (!tokenizer) return tsk__bpe_no_tokenizer(error);
    if (!decoder) return tsk__error_null(error, "tsk_decoder_push", "decoder");
    if (!out) return tsk__error_null(error, "tsk_decoder_push", "out");
    if (!token || (decoder->skip_special && token->is_special)) return TSK_OK;
    bytes = tokenizer->bytes.data + token->bytes;
    while (at < token->bytes_length) {
        size_t n = decoder->n_pending ? 0 : tsk__unicode_invalid(bytes + at, token->bytes_length - at);
        tsk_status status = tsk_text_append(out, bytes + at, n);
        at += n;
        if (status == TSK_OK && at < token->bytes_length) {
            decoder->pending[decoder->n_pending++] = (unsigned char)bytes[at++];
            status = tsk__bpe_settle(decoder, 0, out);
        }
        if (status != TSK_OK) return tsk__error_memory(error, "decoded text", out->length + token->bytes_length);
    }
    return TSK_OK;
}

tsk_status tsk_decoder_flush(tsk_decoder *decoder, tsk_text *out) {
    return decoder && out ? tsk__bpe_settle(decoder, 1, out) : TSK_ERROR_ARGUMENT;
}

tsk_status tsk_tokenizer_decode(const tsk_tokenizer *tokenizer, const int32_t *ids, int32_t count, int skip_special,
                                tsk_text *out, tsk_error *error) {
    tsk_decoder decoder;
    size_t length;
    int32_t i;
    tsk_status status = TSK_OK;
    if (!tokenizer) return tsk__bpe_no_tokenizer(error);
    if (!out) return tsk__error_null(error, "tsk_tokenizer_decode", "out");
    if (!ids && count > 0) return tsk__error_null(error, "tsk_tokenizer_decode", "ids");
    if (count < 0)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "tsk_tokenizer_decode: a count of %d",
                              (int)count);
    length = out->length;
    memset(&decoder, 0, sizeof decoder);
    decoder.skip_special = skip_special;
    for (i = 0; i < count && status == TSK_OK; i++) status = tsk_decoder_push(tokenizer, &decoder, ids[i], out, error);
    if (status == TSK_OK && tsk_decoder_flush(&decoder, out) != TSK_OK)
        status = tsk__error_memory(error, "decoded text", out->length);
    if (status != TSK_OK) out->length = length;
    return status;
}

/* Only where no token can follow is half a character at the end no longer waited for. */
tsk_status tsk_step_text(const tsk_tokenizer *tokenizer, const tsk_step *step, tsk_text *out, tsk_error *error) {
    const int32_t *tokens;
    tsk_decoder decoder;
    size_t length;
    int32_t i;
    tsk_status status = TSK_OK;
    if (!tokenizer) return tsk__bpe_no_tokenizer(error);
    if (!step) return tsk__error_null(error, "tsk_step_text", "step");
    if (!out) return tsk__error_null(error, "tsk_step_text", "out");
    tokens = step->canvas + step->prompt_length;
    length = out->length;
    memset(&decoder, 0, sizeof decoder);
    decoder.skip_special = 1;
    for (i = 0; i < step->n_final && status == TSK_OK; i++)
        status = tsk_decoder_push(tokenizer, &decoder, tokens[i], out, error);
    if (status == TSK_OK && (i == step->canvas_length - step->prompt_length || tokens[i] != step->mask_token_id) &&
        tsk_decoder_flush(&decoder, out) != TSK_OK)
        status = tsk__error_memory(error, "decoded text", out->length);
    if (status != TSK_OK) out->length = length;
    return status;
}

/* ---- loading */

typedef struct tsk__bpe_loader {
    tsk_tokenizer *tokenizer;
    const char *file;             /* the one being read, for messages */
    tsk_error *error;
    int is_byte_level;            /* its pre-tokenizer has had a ByteLevel */
} tsk__bpe_loader;

static tsk_status tsk__bpe_bad(const tsk__bpe_loader *loader, const tsk_json_value *value, const char *what) {
    return tsk__error_set(loader->error, TSK_ERROR_TOKENIZER, loader->file, tsk_json_offset(value), "'%s': %s",
                          tsk__error_path(loader->file), what);
}

static tsk_status tsk__bpe_unsupported(const tsk__bpe_loader *loader, const tsk_json_value *value, const char *part,
                                       const char *what) {
    return tsk__error_set(loader->error, TSK_ERROR_UNSUPPORTED, loader->file, tsk_json_offset(value),
                          "'%s': %s %.300s is not supported", tsk__error_path(loader->file), part, what);
}

static tsk_status tsk__bpe_no_memory(const tsk__bpe_loader *loader) {
    return tsk__error_memory(loader->error, loader->file, loader->tokenizer->texts.length);
}

static int tsk__bpe_is(const tsk_json_value *value, const char *text) {
    size_t length;
    const char *string = tsk_json_string(value, &length);
    return string && length == strlen(text) && memcmp(string, text, length) == 0;
}

static int tsk__bpe_is_absent(const tsk_json_value *value) { return tsk_json_type_of(value) <= TSK_JSON_NULL; }

/* A part (normalizer, decoder, …) whose type is none of those we know. */
static tsk_status tsk__bpe_unknown(const tsk__bpe_loader *loader, const tsk_json_value *value, const char *part) {
    const char *type = tsk_json_string(tsk_json_get(value, "type"), NULL);
    if (tsk__bpe_is_absent(value)) return tsk__bpe_unsupported(loader, value, part, "null");
    return tsk__bpe_unsupported(loader, value, part, type ? type : "without a type");
}

/* A true or false member, `*out` as it was when there is none. */
static tsk_status tsk__bpe_flag(const tsk__bpe_loader *loader, const tsk_json_value *object, const char *key,
                                int *out) {
    const tsk_json_value *value = tsk_json_get(object, key);
    char what[64];
    if (tsk__bpe_is_absent(value) || tsk_json_bool(value, out)) return TSK_OK;
    snprintf(what, sizeof what, "%s is neither true nor false", key);
    return tsk__bpe_bad(loader, value, what);
}

/* ---- loading: tokens */

/* Sizes the hash table for `count` tokens: at most half full. */
static int tsk__bpe_make_slots(tsk_tokenizer *tokenizer, size_t count) {
    size_t n = 64;
    while (n < 2 * count) n *= 2;
    tokenizer->slots = (uint32_t *)tsk__memory_new_zeroed(tokenizer->allocator, n, sizeof *tokenizer->slots);
    tokenizer->slot_mask = n - 1;
    return tokenizer->slots != NULL;
}

/* Ids may have gaps, but a table by id must not let a small file ask for gigabytes. */
static tsk_status tsk__bpe_give_id(const tsk__bpe_loader *loader, const tsk_json_value *value, uint64_t id,
                                   size_t place) {
    tsk_tokenizer *tokenizer = loader->tokenizer;
    char what[160];
    if (id >= ((uint64_t)1 << 20) + 8 * (uint64_t)tokenizer->tokens_capacity || id > INT32_MAX) {
        snprintf(what, sizeof what, "id %llu is far beyond the number of tokens", (unsigned long long)id);
        return tsk__bpe_bad(loader, value, what);
    }
    if (id >= tokenizer->n_ids) {
        if (!tsk__memory_reserve(tokenizer->allocator, &tokenizer->by_id, &tokenizer->ids_capacity, (size_t)id + 1,
                                 sizeof *tokenizer->by_id))
            return tsk__bpe_no_memory(loader);
        memset(tokenizer->by_id + tokenizer->n_ids, 0, ((size_t)id + 1 - tokenizer->n_ids) * sizeof *tokenizer->by_id);
        tokenizer->n_ids = (size_t)id + 1;
    }
    if (tokenizer->by_id[id]) {
        snprintf(what, sizeof what, "id %llu belongs to two tokens", (unsigned long long)id);
        return tsk__bpe_bad(loader, value, what);
    }
    tokenizer->by_id[id] = (uint32_t)place + 1;
    return TSK_OK;
}

/* tokens, slots and texts have room for it. */
static tsk_status tsk__bpe_add_token(const tsk__bpe_loader *loader, const tsk_json_value *value, const char *text,
                                     size_t length, uint64_t id) {
    tsk_tokenizer *tokenizer = loader->tokenizer;
    tsk__bpe_token *token = &tokenizer->tokens[tokenizer->n_tokens];
    uint32_t hash = tsk__bpe_hash(tokenizer, text, length);
    size_t slot = tsk__bpe_slot(tokenizer, text, length, hash);
    tsk_status status;
    if (tokenizer->slots[slot]) return tsk__bpe_bad(loader, value, "the vocabulary has this token twice");
    status = tsk__bpe_give_id(loader, value, id, tokenizer->n_tokens);
    if (status != TSK_OK) return status;
    memset(token, 0, sizeof *token);
    token->text = (uint32_t)tokenizer->texts.length;
    token->text_length = (uint32_t)length;
    token->hash = hash;
    token->id = (int32_t)id;
    token->bytes = (uint32_t)tokenizer->bytes.length;
    if (tsk_text_append(&tokenizer->texts, text, length) != TSK_OK ||
        tsk_text_append(&tokenizer->texts, "", 1) != TSK_OK ||
        tsk__bpe_append_bytes(text, length, &tokenizer->bytes) != TSK_OK)
        return tsk__bpe_no_memory(loader);
    token->bytes_length = (uint32_t)tokenizer->bytes.length - token->bytes;
    tokenizer->slots[slot] = (uint32_t)++tokenizer->n_tokens;
    if (length > tokenizer->longest) tokenizer->longest = length;
    return TSK_OK;
}

/* Room for the vocabulary and `n_added` more. */
static tsk_status tsk__bpe_load_vocabulary(const tsk__bpe_loader *loader, const tsk_json_value *vocabulary,
                                           size_t n_added) {
    tsk_tokenizer *tokenizer = loader->tokenizer;
    const tsk_json_value *value;
    tsk_status status = TSK_OK;
    size_t count = tsk_json_count(vocabulary) + n_added, length, size = 1;
    unsigned byte;
    if (tsk_json_type_of(vocabulary) != TSK_JSON_OBJECT)
        return tsk__bpe_bad(loader, vocabulary, "the vocabulary is no object of tokens and ids");
    for (value = tsk_json_first(vocabulary); value; value = tsk_json_next(value)) {
        tsk_json_key(value, &length);
        size += length + 1;
    }
    if (!tsk__memory_reserve(tokenizer->allocator, &tokenizer->tokens, &tokenizer->tokens_capacity, count + 1,
                             sizeof *tokenizer->tokens) ||
        !tsk__memory_reserve(tokenizer->allocator, &tokenizer->texts.data, &tokenizer->texts.capacity, size, 1) ||
        !tsk__memory_reserve(tokenizer->allocator, &tokenizer->bytes.data, &tokenizer->bytes.capacity, size, 1) ||
        !tsk__bpe_make_slots(tokenizer, count))
        return tsk__bpe_no_memory(loader);
    for (value = tsk_json_first(vocabulary); value && status == TSK_OK; value = tsk_json_next(value)) {
        uint64_t id;
        const char *key = tsk_json_key(value, &length);
        if (!tsk_json_uint64(value, &id)) return tsk__bpe_bad(loader, value, "a token's id is no whole number from 0");
        status = tsk__bpe_add_token(loader, value, key, length, id);
    }
    for (byte = 0; byte < 256; byte++) {
        char text[4];
        const tsk__bpe_token *token =
            tsk__bpe_find(tokenizer, text, (size_t)(tsk__json_put_utf8(text, tsk__bpe_alphabet(byte)) - text));
        tokenizer->byte_ids[byte] = token ? token->id : -1;
    }
    tokenizer->n_model = tokenizer->n_tokens;
    return status;
}

/* ---- loading: merges */

static tsk_status tsk__bpe_make_merges(const tsk__bpe_loader *loader, size_t count) {
    tsk_tokenizer *tokenizer = loader->tokenizer;
    size_t n = 64;
    while (n < count + count / 2) n *= 2;
    tokenizer->merges = (tsk__bpe_merge *)tsk__memory_new(tokenizer->allocator, n, sizeof *tokenizer->merges);
    tokenizer->merge_tags = (uint16_t *)tsk__memory_new_zeroed(tokenizer->allocator, n, sizeof *tokenizer->merge_tags);
    tokenizer->merge_mask = n - 1;
    return tokenizer->merges && tokenizer->merge_tags ? TSK_OK : tsk__bpe_no_memory(loader);
}

/* `joined` is the two halves one after the other, split at `half`. */
static tsk_status tsk__bpe_add_merge(const tsk__bpe_loader *loader, uint64_t offset, const char *joined, size_t half,
                                     size_t size, uint32_t rank) {
    tsk_tokenizer *tokenizer = loader->tokenizer;
    const tsk__bpe_token *left = tsk__bpe_find(tokenizer, joined, half);
    const tsk__bpe_token *right = tsk__bpe_find(tokenizer, joined + half, size - half);
    const tsk__bpe_token *both = tsk__bpe_find(tokenizer, joined, size);
    tsk__bpe_merge *merge;
    size_t slot;
    if (!left || !right || !both) {
        size_t from = left && !right ? half : 0, to = !left ? half : size;
        return tsk__error_set(loader->error, TSK_ERROR_TOKENIZER, loader->file, offset,
                              "'%s': merge %lu needs the token '%.*s', which is not in the vocabulary",
                              tsk__error_path(loader->file), (unsigned long)rank,
                              (int)(to - from < 200 ? to - from : 200), joined + from);
    }
    slot = tsk__bpe_merge_slot(tokenizer, left->id, right->id);
    tokenizer->merge_tags[slot] = tsk__bpe_merge_tag(tsk__bpe_merge_hash(tokenizer, left->id, right->id));
    merge = &tokenizer->merges[slot];
    merge->left = left->id;
    merge->right = right->id;
    merge->rank = rank; /* of a merge listed twice the last counts, as in the reference */
    merge->id = both->id;
    return TSK_OK;
}

/* "left right", which is brought together in `joined`. */
static tsk_status tsk__bpe_add_merge_line(const tsk__bpe_loader *loader, uint64_t offset, const char *line, size_t size,
                                          uint32_t rank, tsk_text *joined) {
    const char *space = (const char *)memchr(line, ' ', size);
    size_t half = space ? (size_t)(space - line) : 0;
    if (!space || memchr(space + 1, ' ', size - half - 1))
        return tsk__error_set(loader->error, TSK_ERROR_TOKENIZER, loader->file, offset,
                              "'%s': merge %lu is not two tokens with a space between: '%.*s'",
                              tsk__error_path(loader->file), (unsigned long)rank, (int)(size < 200 ? size : 200), line);
    joined->length = 0;
    if (tsk_text_append(joined, line, half) != TSK_OK || tsk_text_append(joined, space + 1, size - half - 1) != TSK_OK)
        return tsk__bpe_no_memory(loader);
    return tsk__bpe_add_merge(loader, offset, joined->data, half, size - 1, rank);
}

static tsk_status tsk__bpe_add_merge_pair(const tsk__bpe_loader *loader, const tsk_json_value *pair, uint32_t rank,
                                          tsk_text *joined) {
    const tsk_json_value *first = tsk_json_first(pair);
    size_t half, size;
    const char *left = tsk_json_string(first, &half), *right = tsk_json_string(tsk_json_next(first), &size);
    if (!left || !right || tsk_json_count(pair) != 2)
        return tsk__bpe_bad(loader, pair, "a merge is not a pair of tokens");
    joined->length = 0;
    if (tsk_text_append(joined, left, half) != TSK_OK || tsk_text_append(joined, right, size) != TSK_OK)
        return tsk__bpe_no_memory(loader);
    return tsk__bpe_add_merge(loader, tsk_json_offset(pair), joined->data, half, half + size, rank);
}

static int tsk__bpe_is_version_line(const char *line, size_t size) {
    return size >= 8 && memcmp(line, "#version", 8) == 0;
}

/* What the rule `left` `right` means for the characters that it touches. lowest: of the rules for a whole character. */
static void tsk__bpe_note_rule(const tsk_tokenizer *tokenizer, const tsk__bpe_merge *rule, uint32_t *lowest) {
    const tsk__bpe_token *a = tsk__bpe_token_of(tokenizer, rule->left), *b = tsk__bpe_token_of(tokenizer, rule->right);
    const unsigned char *left = (const unsigned char *)tokenizer->bytes.data + a->bytes,
                        *right = (const unsigned char *)tokenizer->bytes.data + b->bytes;
    size_t n_left = a->bytes_length, n_right = b->bytes_length;
    tsk__bpe_chars *chars = tokenizer->chars;
    uint32_t c = 0;
    if (!n_left || !n_right) return;
    if (n_right == 1 && right[0] >= 0xc2) tsk__bpe_include(chars->lead[right[0] & 0x3f], left[n_left - 1]);
    if (n_right == 2 && right[0] >= 0xe0 && right[0] < 0xf0)
        tsk__bpe_include(chars->lead_two[tsk__bpe_lead_two(right[0], right[1])], left[n_left - 1]);
    if ((right[0] & 0xc0) != 0x80) {  /* of parts, only the character's last bytes stand before another one */
        if (n_left == 1 && (left[0] & 0xc0) == 0x80) tsk__bpe_include(chars->tail[left[0] & 0x3f], right[0]);
        if (n_left == 2 && (left[0] & 0xc0) == 0x80)
            tsk__bpe_include(chars->tail_two[tsk__bpe_two(left[0], left[1])], right[0]);
    }
    if (tsk__bpe_char(left, n_left, &c) == n_left && rule->rank < lowest[c]) lowest[c] = rule->rank;
    if (tsk__bpe_char(right, n_right, &c) == n_right && rule->rank < lowest[c]) lowest[c] = rule->rank;
}

/* What n bytes merge to, by themselves, and the highest rank that it takes; -1 when they do not become one. */
static int32_t tsk__bpe_merge_char(const tsk_tokenizer *tokenizer, const unsigned char *s, size_t n,
                                   uint32_t *highest) {
    int32_t ids[3];
    const tsk__bpe_merge *first, *second;
    size_t i;
    for (i = 0; i < n; i++) ids[i] = tokenizer->byte_ids[s[i]];
    first = tsk__bpe_merge_of(tokenizer, ids[0], ids[1]);
    *highest = first->rank;
    if (n == 2) return first->rank == TSK__BPE_NO_RANK ? -1 : first->id;
    second = tsk__bpe_merge_of(tokenizer, ids[1], ids[2]);
    if (second->rank < first->rank) {
        *highest = second->rank;
        second = tsk__bpe_merge_of(tokenizer, ids[0], second->id);
    } else if (first->rank != TSK__BPE_NO_RANK) second = tsk__bpe_merge_of(tokenizer, first->id, ids[2]);
    else return -1;
    if (second->rank != TSK__BPE_NO_RANK && second->rank > *highest) *highest = second->rank;
    return second->rank == TSK__BPE_NO_RANK ? -1 : second->id;
}

/* For large vocabularies, once the merges are known. */
static tsk_status tsk__bpe_make_chars(const tsk__bpe_loader *loader, size_t n_merges) {
    tsk_tokenizer *tokenizer = loader->tokenizer;
    uint32_t *lowest, c, highest;
    size_t i;
    for (i = 0; i < 256; i++)
        if (tokenizer->byte_ids[i] < 0) return TSK_OK;
    if (n_merges < TSK__BPE_CHARS_FROM) return TSK_OK;
    tokenizer->chars = (tsk__bpe_chars *)tsk__memory_new_zeroed(tokenizer->allocator, 1, sizeof *tokenizer->chars);
    lowest = (uint32_t *)tsk__memory_new(tokenizer->allocator, 65536, sizeof *lowest);
    if (!tokenizer->chars || !lowest) {
        tsk__memory_delete(tokenizer->allocator, lowest);
        return tsk__bpe_no_memory(loader);
    }
    for (c = 0; c < 65536; c++) lowest[c] = TSK__BPE_NO_RANK;
    for (i = 0; i <= tokenizer->merge_mask; i++)
        if (tokenizer->merge_tags[i]) tsk__bpe_note_rule(tokenizer, &tokenizer->merges[i], lowest);
    for (c = 0; c < 65536; c++) {
        char text[4];
        size_t n = (size_t)(tsk__json_put_utf8(text, c) - text);
        tokenizer->chars->ids[c] =
            n > 1 ? tsk__bpe_merge_char(tokenizer, (const unsigned char *)text, n, &highest) : -1;
        if (n > 1 && highest >= lowest[c]) tokenizer->chars->ids[c] = -1;
    }
    tsk__memory_delete(tokenizer->allocator, lowest);
    return TSK_OK;
}

/* The merges of tokenizer.json, in either form. */
static tsk_status tsk__bpe_load_merges(const tsk__bpe_loader *loader, const tsk_json_value *merges) {
    const tsk_json_value *value;
    tsk_text joined;
    tsk_status status;
    uint32_t rank = 0;
    if (tsk_json_type_of(merges) != TSK_JSON_ARRAY) return tsk__bpe_bad(loader, merges, "the merges are no list");
    memset(&joined, 0, sizeof joined);
    joined.allocator = loader->tokenizer->allocator;
    status = tsk__bpe_make_merges(loader, tsk_json_count(merges));
    for (value = tsk_json_first(merges); value && status == TSK_OK; value = tsk_json_next(value)) {
        size_t size;
        const char *line = tsk_json_string(value, &size);
        if (!line) status = tsk__bpe_add_merge_pair(loader, value, rank++, &joined);
        else if (!tsk__bpe_is_version_line(line, size))
            status = tsk__bpe_add_merge_line(loader, tsk_json_offset(value), line, size, rank++, &joined);
    }
    tsk_text_free(&joined);
    return status == TSK_OK ? tsk__bpe_make_chars(loader, rank) : status;
}

/* merges.txt: a merge a line, empty ones and the one with the version apart. */
static tsk_status tsk__bpe_load_merge_lines(const tsk__bpe_loader *loader, const char *text, size_t size) {
    tsk_text joined;
    tsk_status status;
    size_t at, end, count = 0;
    uint32_t rank = 0;
    for (at = 0; at < size; at++) count += text[at] == '\n';
    memset(&joined, 0, sizeof joined);
    joined.allocator = loader->tokenizer->allocator;
    status = tsk__bpe_make_merges(loader, count + 1);
    for (at = 0; at < size && status == TSK_OK; at = end + 1) {
        const char *line = text + at, *newline = (const char *)memchr(line, '\n', size - at);
        size_t length = newline ? (size_t)(newline - line) : size - at;
        end = at + length;
        if (length && line[length - 1] == '\r') length--;
        if (length && !tsk__bpe_is_version_line(line, length))
            status = tsk__bpe_add_merge_line(loader, at, line, length, rank++, &joined);
    }
    tsk_text_free(&joined);
    return status == TSK_OK ? tsk__bpe_make_chars(loader, rank) : status;
}

/* ---- loading: added tokens */

/* What a file says of an added token. */
typedef struct tsk__bpe_entry {
    const tsk_json_value *value;  /* for messages */
    const char *content;
    size_t length;
    int special, single_word, lstrip, rstrip;
    int normalized;               /* -1: not said, and then the opposite of special */
} tsk__bpe_entry;

/* Members that are absent mean what the reference's own default is. */
static tsk_status tsk__bpe_read_entry(const tsk__bpe_loader *loader, const tsk_json_value *value,
                                      tsk__bpe_entry *entry) {
    tsk_status status;
    memset(entry, 0, sizeof *entry);
    entry->value = value;
    entry->normalized = -1;
    entry->content = tsk_json_string(tsk_json_get(value, "content"), &entry->length);
    if (!entry->content) return tsk__bpe_bad(loader, value, "an added token has no content");
    if ((status = tsk__bpe_flag(loader, value, "special", &entry->special)) != TSK_OK ||
        (status = tsk__bpe_flag(loader, value, "single_word", &entry->single_word)) != TSK_OK ||
        (status = tsk__bpe_flag(loader, value, "lstrip", &entry->lstrip)) != TSK_OK ||
        (status = tsk__bpe_flag(loader, value, "rstrip", &entry->rstrip)) != TSK_OK)
        return status;
    return tsk__bpe_flag(loader, value, "normalized", &entry->normalized);
}

/* The token becomes an added one, or is so from now on in this way; it gets `new_id` if the vocabulary has it not. One
   that was special stays it. added, tokens and slots have room for it. */
static tsk_status tsk__bpe_put_added(const tsk__bpe_loader *loader, const tsk__bpe_entry *entry, uint64_t new_id) {
    tsk_tokenizer *tokenizer = loader->tokenizer;
    const tsk__bpe_token *found = tsk__bpe_find(tokenizer, entry->content, entry->length);
    tsk__bpe_token *token = &tokenizer->tokens[found ? (size_t)(found - tokenizer->tokens) : tokenizer->n_tokens];
    tsk__bpe_added *added;
    tsk_status status = TSK_OK;
    if (entry->length > TSK__BPE_MAX_ADDED_LENGTH)
        return tsk__bpe_unsupported(loader, entry->value, "an added token", "of more than 512 bytes");
    if (!found) status = tsk__bpe_add_token(loader, entry->value, entry->content, entry->length, new_id);
    if (status != TSK_OK) return status;
    if (!token->added) token->added = (uint32_t)++tokenizer->n_added;
    if (entry->special) token->is_special = 1;
    added = &tokenizer->added[token->added - 1];
    memset(added, 0, sizeof *added);
    added->id = token->id;
    added->place = token->text;
    added->length = token->text_length;
    added->single_word = (unsigned char)entry->single_word;
    added->lstrip = (unsigned char)entry->lstrip;
    added->rstrip = (unsigned char)entry->rstrip;
    added->normalized = (unsigned char)(entry->normalized < 0 ? !entry->special : entry->normalized);
    added->is_unsaid = entry->normalized < 0;
    return TSK_OK;
}

/* The added token of that text, or NULL. */
static tsk__bpe_added *tsk__bpe_find_added(const tsk_tokenizer *tokenizer, const tsk__bpe_entry *entry) {
    const tsk__bpe_token *found = tsk__bpe_find(tokenizer, entry->content, entry->length);
    return found && found->added ? &tokenizer->added[found->added - 1] : NULL;
}

static tsk_status tsk__bpe_reserve_added(const tsk__bpe_loader *loader, size_t count) {
    tsk_tokenizer *tokenizer = loader->tokenizer;
    int done = tsk__memory_reserve(tokenizer->allocator, &tokenizer->added, &tokenizer->added_capacity, count + 1,
                                   sizeof *tokenizer->added);
    return done ? TSK_OK : tsk__bpe_no_memory(loader);
}

/* The list in tokenizer.json. The reference ignores the ids in it: a token that the vocabulary lacks gets the number of
   tokens so far as its id. Gaps in the written ids are accepted. Two tokens with one id, or ids out of order, are an
   error, since it is unclear which token the file means. */
static tsk_status tsk__bpe_load_added_list(const tsk__bpe_loader *loader, const tsk_json_value *list) {
    const tsk_tokenizer *tokenizer = loader->tokenizer;
    const tsk_json_value *value;
    uint64_t least = 0;
    if (!tsk__bpe_is_absent(list) && tsk_json_type_of(list) != TSK_JSON_ARRAY)
        return tsk__bpe_bad(loader, list, "added_tokens is no list");
    for (value = tsk_json_first(list); value; value = tsk_json_next(value)) {
        tsk__bpe_entry entry;
        const tsk__bpe_token *found;
        uint64_t id, before = tokenizer->n_tokens;
        tsk_status status;
        if (!tsk_json_uint64(tsk_json_get(value, "id"), &id))
            return tsk__bpe_bad(loader, value, "an added token's id is no whole number from 0");
        status = tsk__bpe_read_entry(loader, value, &entry);
        if (status != TSK_OK) return status;
        if (entry.length == 0) continue;
        found = tsk__bpe_find(tokenizer, entry.content, entry.length);
        if (found && found->added) return tsk__bpe_bad(loader, value, "this added token is listed twice");
        if (found && (uint64_t)found->id != id)
            return tsk__bpe_bad(loader, value, "this added token has another id in the vocabulary");
        if (!found && (id < least || id > INT32_MAX || (id != before && tsk__bpe_token_of(tokenizer, (int32_t)id))))
            return tsk__bpe_bad(loader, value, "this added token's id is another token's, or the ids do not ascend");
        if (!found) least = id + 1;
        status = tsk__bpe_put_added(loader, &entry, before);
        if (status != TSK_OK) return status;
    }
    return TSK_OK;
}

/* A token that is looked for in normalised text is looked for, and decoded, in normalised form. */
static tsk_status tsk__bpe_normalize_added(const tsk__bpe_loader *loader, tsk__bpe_added *added) {
    tsk_tokenizer *tokenizer = loader->tokenizer;
    tsk__bpe_token *token = &tokenizer->tokens[tokenizer->by_id[added->id] - 1];
    size_t room = tokenizer->texts.length + 4 * (size_t)added->length + 1; /* NFC at most triples it: texts will not
                                                                              move */
    if (tsk__unicode_unstable(&tokenizer->unicode, tokenizer->texts.data, added->place,
                              (size_t)added->place + added->length) == (size_t)added->place + added->length)
        return TSK_OK;
    if (room > UINT32_MAX ||
        !tsk__memory_reserve(tokenizer->allocator, &tokenizer->texts.data, &tokenizer->texts.capacity, room, 1))
        return tsk__bpe_no_memory(loader);
    room = tokenizer->texts.length;
    token->bytes = (uint32_t)tokenizer->bytes.length;
    if (tsk__unicode_nfc(&tokenizer->unicode, tokenizer->texts.data + added->place, added->length, &tokenizer->texts) !=
            TSK_OK ||
        tsk__bpe_append_bytes(tokenizer->texts.data + room, tokenizer->texts.length - room, &tokenizer->bytes) !=
            TSK_OK)
        return tsk__bpe_no_memory(loader);
    token->bytes_length = (uint32_t)tokenizer->bytes.length - token->bytes;
    added->place = (uint32_t)room;
    added->length = (uint32_t)(tokenizer->texts.length - room);
    return TSK_OK;
}

static int tsk__bpe_compare_added(const void *a, const void *b) {
    const tsk__bpe_added *x = (const tsk__bpe_added *)a, *y = (const tsk__bpe_added *)b;
    int order = x->normalized - y->normalized;
    if (!order) order = memcmp(x->pattern, y->pattern, x->length < y->length ? x->length : y->length);
    return order ? order : (x->length > y->length) - (x->length < y->length);
}

static void tsk__bpe_make_matcher(tsk__bpe_matcher *matcher, tsk__bpe_added *added, size_t count) {
    size_t i, shorter; /* a place + 1 */
    matcher->added = added;
    matcher->count = count;
    for (i = 0; i < count; i++) {
        matcher->first[(unsigned char)added[i].pattern[0]] = 1;
        for (shorter = i; shorter; shorter = added[shorter - 1].shorter) {
            const tsk__bpe_added *other = &added[shorter - 1];
            if (other->length < added[i].length && memcmp(other->pattern, added[i].pattern, other->length) == 0) break;
        }
        added[i].shorter = (uint32_t)shorter;
    }
}

/* Last of all: texts stay where they are from now on. */
static tsk_status tsk__bpe_make_matchers(const tsk__bpe_loader *loader) {
    tsk_tokenizer *tokenizer = loader->tokenizer;
    tsk__bpe_added *added = tokenizer->added;
    tsk_status status = TSK_OK;
    size_t i, n_raw = 0;
    for (i = 0; i < tokenizer->n_added && status == TSK_OK; i++) {
        if (tokenizer->nfc_first) added[i].normalized = 0; /* there is but one stage then */
        if (added[i].normalized && tokenizer->nfc) status = tsk__bpe_normalize_added(loader, &added[i]);
        n_raw += !added[i].normalized;
    }
    if (status != TSK_OK) return status;
    for (i = 0; i < tokenizer->n_added; i++) added[i].pattern = tokenizer->texts.data + added[i].place;
    if (tokenizer->n_added) qsort(added, tokenizer->n_added, sizeof *added, tsk__bpe_compare_added);
    for (i = 1; i < tokenizer->n_added; i++)
        if (tsk__bpe_compare_added(&added[i - 1], &added[i]) == 0)
            return tsk__bpe_bad(loader, NULL, "two added tokens are the same in normal form");
    tsk__bpe_make_matcher(&tokenizer->raw, added, n_raw);
    tsk__bpe_make_matcher(&tokenizer->normalized, added + n_raw, tokenizer->n_added - n_raw);
    return TSK_OK;
}

/* ---- loading: tokenizer.json */

static tsk_status tsk__bpe_load_pattern(const tsk__bpe_loader *loader, const tsk_json_value *split) {
    tsk_tokenizer *tokenizer = loader->tokenizer;
    const tsk_json_value *pattern = tsk_json_get(split, "pattern"), *regex = tsk_json_get(pattern, "Regex"),
                         *behavior = tsk_json_get(split, "behavior");
    const char *text = tsk_json_string(regex, NULL);
    int invert = 0, is_removed = tsk__bpe_is(behavior, "Removed");
    tsk_status status = tsk__bpe_flag(loader, split, "invert", &invert);
    size_t i;
    if (status != TSK_OK) return status;
    /* The scanners leave nothing between matches, so that keeping the matches only (Removed, inverted) is the same. */
    if (!(tsk__bpe_is(behavior, "Isolated") && !invert) && !(is_removed && invert))
        return tsk__bpe_unsupported(loader, split, "pre_tokenizer Split with this behavior:",
                                    tsk_json_string(behavior, NULL) ? tsk_json_string(behavior, NULL) : "none");
    if (!text) return tsk__bpe_unsupported(loader, pattern, "pre_tokenizer Split without a Regex", "pattern");
    for (i = 0; i < sizeof tsk__bpe_patterns / sizeof *tsk__bpe_patterns; i++) {
        if (!tsk__bpe_is(regex, tsk__bpe_patterns[i].regex)) continue;
        if (tokenizer->n_steps == TSK__BPE_MAX_STEPS)
            return tsk__bpe_unsupported(loader, split, "pre_tokenizer", "with more than 8 steps");
        tokenizer->steps[tokenizer->n_steps++] = tsk__bpe_patterns[i].scanner;
        return TSK_OK;
    }
    return tsk__bpe_unsupported(loader, regex, "the regular expression", text);
}

static tsk_status tsk__bpe_load_pre_tokenizer(tsk__bpe_loader *loader, const tsk_json_value *value, int is_inner) {
    tsk_tokenizer *tokenizer = loader->tokenizer;
    const tsk_json_value *type = tsk_json_get(value, "type");
    tsk_status status = TSK_OK;
    int add_prefix_space = 0, use_regex = 1;
    if (loader->is_byte_level) return tsk__bpe_unsupported(loader, value, "pre_tokenizer", "after ByteLevel");
    if (tsk__bpe_is(type, "Split")) return tsk__bpe_load_pattern(loader, value);
    if (tsk__bpe_is(type, "Sequence") && !is_inner) {
        for (value = tsk_json_first(tsk_json_get(value, "pretokenizers")); value && status == TSK_OK;
             value = tsk_json_next(value))
            status = tsk__bpe_load_pre_tokenizer(loader, value, 1);
        return status;
    }
    if (!tsk__bpe_is(type, "ByteLevel")) return tsk__bpe_unknown(loader, value, "pre_tokenizer");
    if ((status = tsk__bpe_flag(loader, value, "add_prefix_space", &add_prefix_space)) != TSK_OK ||
        (status = tsk__bpe_flag(loader, value, "use_regex", &use_regex)) != TSK_OK)
        return status;
    if (add_prefix_space)
        return tsk__bpe_unsupported(loader, value, "pre_tokenizer ByteLevel with", "add_prefix_space");
    if (use_regex && tokenizer->n_steps == TSK__BPE_MAX_STEPS)
        return tsk__bpe_unsupported(loader, value, "pre_tokenizer", "with more than 8 steps");
    if (use_regex) tokenizer->steps[tokenizer->n_steps++] = tsk__bpe_scan_gpt2;
    loader->is_byte_level = 1;
    return TSK_OK;
}

/* It adds tokens at the ends, which we never do, so all that matters is that it does nothing else. */
static tsk_status tsk__bpe_check_post_processor(const tsk__bpe_loader *loader, const tsk_json_value *value,
                                                int is_inner) {
    const tsk_json_value *type = tsk_json_get(value, "type");
    tsk_status status = TSK_OK;
    if ((tsk__bpe_is_absent(value) && !is_inner) || tsk__bpe_is(type, "ByteLevel") ||
        tsk__bpe_is(type, "TemplateProcessing"))
        return TSK_OK;
    if (!tsk__bpe_is(type, "Sequence") || is_inner) return tsk__bpe_unknown(loader, value, "post_processor");
    for (value = tsk_json_first(tsk_json_get(value, "processors")); value && status == TSK_OK;
         value = tsk_json_next(value))
        status = tsk__bpe_check_post_processor(loader, value, 1);
    return status;
}

/* Options of the model that change nothing when empty. */
static tsk_status tsk__bpe_check_model(const tsk__bpe_loader *loader, const tsk_json_value *model) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const tsk_json_value *type = tsk_json_get(model, "type"), *dropout = tsk_json_get(model, "dropout");
    double probability = 0;
    int byte_fallback = 0;
    tsk_status status = tsk__bpe_flag(loader, model, "byte_fallback", &byte_fallback);
    size_t i;
    if (status != TSK_OK) return status;
    if (tsk_json_type_of(model) != TSK_JSON_OBJECT) return tsk__bpe_bad(loader, model, "there is no model");
    if (!tsk__bpe_is_absent(type) && !tsk__bpe_is(type, "BPE")) return tsk__bpe_unknown(loader, model, "model");
    if (!tsk__bpe_is_absent(dropout) && (!tsk_json_double(dropout, &probability) || probability != 0))
        return tsk__bpe_unsupported(loader, dropout, "model with", "dropout");
    if (byte_fallback) return tsk__bpe_unsupported(loader, model, "model with", "byte_fallback");
    for (i = 0; i < 2; i++) {
        const tsk_json_value *affix = tsk_json_get(model, affixes[i]);
        if (!tsk__bpe_is_absent(affix) && !tsk__bpe_is(affix, ""))
            return tsk__bpe_unsupported(loader, affix, "model with", affixes[i]);
    }
    return TSK_OK;
}

static tsk_status tsk__bpe_load_model(const tsk__bpe_loader *loader, const tsk_json_value *model, size_t n_added) {
    tsk_tokenizer *tokenizer = loader->tokenizer;
    tsk_status status = tsk__bpe_check_model(loader, model);
    size_t byte;
    if (status == TSK_OK) status = tsk__bpe_flag(loader, model, "ignore_merges", &tokenizer->ignore_merges);
    if (status == TSK_OK) status = tsk__bpe_load_vocabulary(loader, tsk_json_get(model, "vocab"), n_added);
    if (status == TSK_OK) status = tsk__bpe_load_merges(loader, tsk_json_get(model, "merges"));
    if (status != TSK_OK || tsk__bpe_is_absent(tsk_json_get(model, "unk_token"))) return status;
    for (byte = 0; byte < 256;
         byte++) /* it stands for characters without a token, of which most vocabularies have none */
        if (tokenizer->byte_ids[byte] < 0)
            return tsk__bpe_unsupported(loader, tsk_json_get(model, "unk_token"), "model with", "unk_token");
    return TSK_OK;
}

/* n_declared: added tokens that tokenizer_config.json may bring. */
static tsk_status tsk__bpe_load_json(tsk__bpe_loader *loader, const tsk_json_value *root, size_t n_declared) {
    tsk_tokenizer *tokenizer = loader->tokenizer;
    const tsk_json_value *version = tsk_json_get(root, "version"), *normalizer = tsk_json_get(root, "normalizer");
    const tsk_json_value *decoder = tsk_json_get(root, "decoder"), *added = tsk_json_get(root, "added_tokens");
    static const char *const limits[] = {"truncation", "padding"};
    tsk_status status;
    size_t i;
    if (tsk_json_type_of(root) != TSK_JSON_OBJECT) return tsk__bpe_bad(loader, root, "it holds no JSON object");
    if (version && !tsk__bpe_is(version, "1.0"))
        return tsk__bpe_unsupported(loader, version, "another version", "than 1.0");
    for (i = 0; i < 2; i++)
        if (!tsk__bpe_is_absent(tsk_json_get(root, limits[i])))
            return tsk__bpe_unsupported(loader, tsk_json_get(root, limits[i]), "a tokenizer with", limits[i]);
    tokenizer->nfc = tsk__bpe_is(tsk_json_get(normalizer, "type"), "NFC");
    if (!tokenizer->nfc && !tsk__bpe_is_absent(normalizer)) return tsk__bpe_unknown(loader, normalizer, "normalizer");
    status = tsk__bpe_load_pre_tokenizer(loader, tsk_json_get(root, "pre_tokenizer"), 0);
    if (status == TSK_OK && !loader->is_byte_level)
        status =
            tsk__bpe_unsupported(loader, tsk_json_get(root, "pre_tokenizer"), "a pre_tokenizer", "without ByteLevel");
    if (status == TSK_OK) status = tsk__bpe_check_post_processor(loader, tsk_json_get(root, "post_processor"), 0);
    if (status == TSK_OK && !tsk__bpe_is(tsk_json_get(decoder, "type"), "ByteLevel"))
        status = tsk__bpe_unknown(loader, decoder, "decoder");
    n_declared += tsk_json_count(added);
    if (status == TSK_OK) status = tsk__bpe_load_model(loader, tsk_json_get(root, "model"), n_declared);
    if (status == TSK_OK) status = tsk__bpe_reserve_added(loader, n_declared);
    return status == TSK_OK ? tsk__bpe_load_added_list(loader, added) : status;
}

/* ---- loading: added tokens of tokenizer_config.json, as the transformers library adds them to tokenizer.json's */

/* Members that name a special token, in the order in which they are added, and lists of such. */
static const char *const tsk__bpe_named[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                             "pad_token", "cls_token", "mask_token"};
static const char *const tsk__bpe_named_lists[] = {"additional_special_tokens", "extra_special_tokens"};
enum { TSK__BPE_N_NAMED = 7, TSK__BPE_N_NAMED_LISTS = 2 };

/* No fewer than the tokens that it may add. */
static size_t tsk__bpe_count_declared(const tsk_json_value *config) {
    size_t i, count = tsk_json_count(tsk_json_get(config, "added_tokens_decoder")) + TSK__BPE_N_NAMED + 1;
    for (i = 0; i < TSK__BPE_N_NAMED_LISTS; i++) count += tsk_json_count(tsk_json_get(config, tsk__bpe_named_lists[i]));
    return count;
}

/* The text of "bos_token" and its like, which are a string or an object with the content; or NULL. */
static const char *tsk__bpe_named_text(const tsk_json_value *value, size_t *length) {
    return tsk_json_string(tsk_json_type_of(value) == TSK_JSON_OBJECT ? tsk_json_get(value, "content") : value, length);
}

/* A member of added_tokens_decoder with its id, which is its name. */
typedef struct tsk__bpe_declared {
    const tsk_json_value *value;
    uint64_t id;
} tsk__bpe_declared;

static int tsk__bpe_compare_declared(const void *a, const void *b) {
    const tsk__bpe_declared *x = (const tsk__bpe_declared *)a, *y = (const tsk__bpe_declared *)b;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* To `list`, by ascending id. */
static tsk_status tsk__bpe_read_declared(const tsk__bpe_loader *loader, const tsk_json_value *map,
                                         tsk__bpe_declared *list) {
    const tsk_json_value *value;
    size_t n = 0, length, i;
    for (value = tsk_json_first(map); value; value = tsk_json_next(value)) {
        const char *key = tsk_json_key(value, &length);
        uint64_t id = 0;
        for (i = 0; i < length && i < 10 && tsk__json_is_digit(key[i]); i++) id = id * 10 + (uint64_t)(key[i] - '0');
        if (i == 0 || i < length || id > INT32_MAX)
            return tsk__bpe_bad(loader, value, "an added token's id is no whole number from 0 to 2147483647");
        list[n].value = value;
        list[n++].id = id;
    }
    if (n) qsort(list, n, sizeof *list, tsk__bpe_compare_declared);
    return TSK_OK;
}

/* Beside vocab.json (is_believed) the id is the token's. Beside a tokenizer.json it only tells the order: a token that
   is there keeps its id, and a new one gets the number of tokens so far, since that is what the library did with which
   the model was trained. An id that another token has is an error in either case: nobody could tell which of the two
   the file means. */
static tsk_status tsk__bpe_put_declared(const tsk__bpe_loader *loader, const tsk__bpe_declared *declared,
                                        int is_believed) {
    const tsk_json_value *value = declared->value;
    const tsk_tokenizer *tokenizer = loader->tokenizer;
    const tsk__bpe_token *owner = tsk__bpe_token_of(tokenizer, (int32_t)declared->id), *found;
    tsk__bpe_added *added;
    tsk__bpe_entry entry;
    tsk_status status = tsk__bpe_read_entry(loader, value, &entry);
    if (status != TSK_OK || entry.length == 0) return status;
    found = tsk__bpe_find(tokenizer, entry.content, entry.length);
    added = tsk__bpe_find_added(tokenizer, &entry);
    if (added && added->is_declared) return tsk__bpe_bad(loader, value, "this added token is listed twice");
    if (found && is_believed && (uint64_t)found->id != declared->id)
        return tsk__bpe_bad(loader, value, "this added token has another id in the vocabulary");
    if (owner && owner != found) return tsk__bpe_bad(loader, value, "this added token's id is another token's");
    status = tsk__bpe_put_added(loader, &entry, is_believed ? declared->id : tokenizer->n_tokens);
    if (status == TSK_OK) tsk__bpe_find_added(tokenizer, &entry)->is_declared = 1;
    return status;
}

static tsk_status tsk__bpe_load_added_map(const tsk__bpe_loader *loader, const tsk_json_value *map, int is_believed) {
    const tsk_allocator *allocator = loader->tokenizer->allocator;
    size_t i, count = tsk_json_count(map);
    tsk__bpe_declared *list;
    tsk_status status;
    if (tsk__bpe_is_absent(map)) return TSK_OK;
    if (tsk_json_type_of(map) != TSK_JSON_OBJECT)
        return tsk__bpe_bad(loader, map, "added_tokens_decoder is no object of ids and tokens");
    list = (tsk__bpe_declared *)tsk__memory_new(allocator, count, sizeof *list);
    if (!list) return tsk__bpe_no_memory(loader);
    status = tsk__bpe_read_declared(loader, map, list);
    for (i = 0; i < count && status == TSK_OK; i++) status = tsk__bpe_put_declared(loader, &list[i], is_believed);
    tsk__memory_delete(allocator, list);
    return status;
}

/* A token with a name is special. One that is added already stays as it is, but that added_tokens_decoder's are made
   special; one that nobody has gets the number of tokens so far. */
static tsk_status tsk__bpe_put_named(const tsk__bpe_loader *loader, const tsk__bpe_entry *entry) {
    tsk_tokenizer *tokenizer = loader->tokenizer;
    tsk__bpe_added *added = entry->length ? tsk__bpe_find_added(tokenizer, entry) : NULL;
    if (entry->length == 0) return TSK_OK;
    if (!added) return tsk__bpe_put_added(loader, entry, tokenizer->n_tokens);
    if (!added->is_declared) return TSK_OK;
    tokenizer->tokens[tokenizer->by_id[added->id] - 1].is_special = 1;
    if (added->is_unsaid) added->normalized = 0;
    return TSK_OK;
}

static tsk_status tsk__bpe_load_named(const tsk__bpe_loader *loader, const tsk_json_value *value, const char *name) {
    tsk__bpe_entry entry;
    tsk_status status = TSK_OK;
    char what[96];
    if (tsk__bpe_is_absent(value)) return TSK_OK;
    memset(&entry, 0, sizeof entry);
    if (tsk_json_type_of(value) == TSK_JSON_OBJECT) status = tsk__bpe_read_entry(loader, value, &entry);
    if (status != TSK_OK) return status;
    entry.value = value;
    entry.content = tsk__bpe_named_text(value, &entry.length);
    entry.special = 1;
    if (entry.content) return tsk__bpe_put_named(loader, &entry);
    snprintf(what, sizeof what, "%s is neither a string nor an object with \"content\"", name);
    return tsk__bpe_bad(loader, value, what);
}

static tsk_status tsk__bpe_load_named_list(const tsk__bpe_loader *loader, const tsk_json_value *list,
                                           const char *name) {
    const tsk_json_value *value;
    tsk_json_type type = tsk_json_type_of(list);
    tsk_status status = TSK_OK;
    char what[96];
    if (!tsk__bpe_is_absent(list) && type != TSK_JSON_ARRAY && type != TSK_JSON_OBJECT) {
        snprintf(what, sizeof what, "%s is no list", name);
        return tsk__bpe_bad(loader, list, what);
    }
    for (value = tsk_json_first(list); value && status == TSK_OK; value = tsk_json_next(value))
        status = tsk__bpe_load_named(loader, value, name);
    return status;
}

/* Room for them is there. */
static tsk_status tsk__bpe_load_declared(const tsk__bpe_loader *loader, const tsk_json_value *config, int is_believed) {
    tsk_status status = tsk__bpe_load_added_map(loader, tsk_json_get(config, "added_tokens_decoder"), is_believed);
    size_t i;
    for (i = 0; i < TSK__BPE_N_NAMED && status == TSK_OK; i++)
        status = tsk__bpe_load_named(loader, tsk_json_get(config, tsk__bpe_named[i]), tsk__bpe_named[i]);
    for (i = 0; i < TSK__BPE_N_NAMED_LISTS && status == TSK_OK; i++) {
        const char *name = tsk__bpe_named_lists[i];
        status = tsk__bpe_load_named_list(loader, tsk_json_get(config, name), name);
    }
    return status;
}

/* ---- loading: vocab.json and merges.txt, where there is no tokenizer.json */

/* What the tokenizer class does, which the files themselves do not say. */
static tsk_status tsk__bpe_load_class(tsk__bpe_loader *loader, const tsk_json_value *config) {
    tsk_tokenizer *tokenizer = loader->tokenizer;
    const tsk_json_value *type = tsk_json_get(config, "tokenizer_class");
    int add_prefix_space = 0;
    tsk_status status = tsk__bpe_flag(loader, config, "add_prefix_space", &add_prefix_space);
    int is_gpt2 = tsk__bpe_is(type, "GPT2Tokenizer") || tsk__bpe_is(type, "GPT2TokenizerFast");
    int is_qwen = tsk__bpe_is(type, "Qwen2Tokenizer") || tsk__bpe_is(type, "Qwen2TokenizerFast");
    int is_dream = tsk__bpe_is(type, "DreamTokenizer");
    if (status != TSK_OK) return status;
    if (add_prefix_space) return tsk__bpe_unsupported(loader, config, "a tokenizer with", "add_prefix_space");
    if (!is_gpt2 && !is_qwen && !is_dream)
        return tsk__bpe_unsupported(loader, type ? type : config, "without a tokenizer.json, tokenizer_class",
                                    type && tsk_json_string(type, NULL) ? tsk_json_string(type, NULL) : "missing:");
    tokenizer->nfc = !is_gpt2;
    tokenizer->nfc_first = is_dream; /* its own code normalises before it looks for added tokens */
    tokenizer->steps[tokenizer->n_steps++] = is_gpt2 ? tsk__bpe_scan_gpt2 : tsk__bpe_scan_qwen;
    return TSK_OK;
}

/* What these classes name when the file names nothing. */
static tsk_status tsk__bpe_load_class_named(const tsk__bpe_loader *loader) {
    tsk__bpe_entry entry;
    memset(&entry, 0, sizeof entry);
    entry.content = "<|endoftext|>";
    entry.length = 13;
    entry.special = 1;
    return tsk__bpe_find(loader->tokenizer, entry.content, entry.length) ? tsk__bpe_put_named(loader, &entry) : TSK_OK;
}

/* ---- loading: the files */

typedef struct tsk__bpe_folder {
    const tsk_host *host;
    const tsk_allocator *allocator;
    tsk_error *error;
    char *path;                   /* of the file that was asked for last */
    size_t dir_length;
} tsk__bpe_folder;

enum { TSK__BPE_FOLDER_ROOM = 32 }; /* for a slash and the longest of the names below */

static tsk_status tsk__bpe_folder_open(tsk__bpe_folder *folder, const char *dir, const tsk_host *host,
                                       tsk_error *error) {
    folder->host = host;
    folder->allocator = tsk__memory_allocator(host);
    folder->error = error;
    folder->dir_length = strlen(dir);
    folder->path = (char *)tsk__memory_new(folder->allocator, folder->dir_length + TSK__BPE_FOLDER_ROOM, 1);
    if (!folder->path) return tsk__error_memory(error, dir, folder->dir_length);
    memcpy(folder->path, dir, folder->dir_length + 1);
    return TSK_OK;
}

static const char *tsk__bpe_folder_path(tsk__bpe_folder *folder, const char *name) {
    snprintf(folder->path + folder->dir_length, TSK__BPE_FOLDER_ROOM, "/%s", name);
    return folder->path;
}

static int tsk__bpe_folder_has(tsk__bpe_folder *folder, const char *name) {
    return tsk__file_exists(tsk__bpe_folder_path(folder, name), folder->host);
}

static tsk_status tsk__bpe_folder_read(tsk__bpe_folder *folder, const char *name, tsk_text *out) {
    memset(out, 0, sizeof *out);
    out->allocator = folder->allocator;
    return tsk_read_file(tsk__bpe_folder_path(folder, name), TSK__BPE_MAX_FILE, folder->host, out, folder->error);
}

/* The same of a file that is plain text, so that anything can stand in its place unnoticed. */
static tsk_status tsk__bpe_folder_text(tsk__bpe_folder *folder, const char *name, tsk_text *out) {
    tsk_status status = tsk__bpe_folder_read(folder, name, out);
    const char *what = status == TSK_OK && out->length ? tsk__file_recognise(out->data, out->length) : NULL;
    if (!what) return status;
    tsk_text_free(out);
    return tsk__error_set(folder->error, TSK_ERROR_TOKENIZER, folder->path, 0, "'%s': no text: it is %s",
                          tsk__error_path(folder->path), what);
}

static tsk_status tsk__bpe_folder_json(tsk__bpe_folder *folder, const char *name, tsk_json **out) {
    tsk_text text;
    tsk_status status = tsk__bpe_folder_read(folder, name, &text);
    if (status == TSK_OK)
        status = tsk_json_parse(text.data, text.length, folder->path, folder->allocator, out, folder->error);
    tsk_text_free(&text);
    return status;
}

/* config: the root of tokenizer_config.json, or NULL. */
static tsk_status tsk__bpe_load_tokenizer_json(tsk__bpe_folder *folder, tsk__bpe_loader *loader,
                                               const tsk_json_value *config) {
    tsk_json *document = NULL;
    tsk_status status = tsk__bpe_folder_json(folder, "tokenizer.json", &document);
    if (status == TSK_OK) status = tsk__bpe_load_json(loader, tsk_json_root(document), tsk__bpe_count_declared(config));
    tsk_json_free(document);
    loader->tokenizer->n_vocabulary_ids = loader->tokenizer->n_ids;
    if (status != TSK_OK || !config) return status;
    tsk__bpe_folder_path(folder, "tokenizer_config.json");
    return tsk__bpe_load_declared(loader, config, 0);
}

static tsk_status tsk__bpe_load_vocab_json(tsk__bpe_folder *folder, tsk__bpe_loader *loader, size_t n_added) {
    tsk_json *document = NULL;
    tsk_status status = tsk__bpe_folder_json(folder, "vocab.json", &document);
    if (status == TSK_OK) status = tsk__bpe_load_vocabulary(loader, tsk_json_root(document), n_added);
    loader->tokenizer->n_vocabulary_ids = loader->tokenizer->n_ids;
    tsk_json_free(document);
    return status;
}

static tsk_status tsk__bpe_load_merges_txt(tsk__bpe_folder *folder, tsk__bpe_loader *loader) {
    tsk_text text;
    tsk_status status = tsk__bpe_folder_text(folder, "merges.txt", &text);
    size_t invalid = status == TSK_OK ? tsk__unicode_invalid(text.data, text.length) : text.length;
    if (invalid < text.length)
        status =
            tsk__error_set(folder->error, TSK_ERROR_TOKENIZER, loader->file, invalid, "'%s' is not UTF-8 at byte %llu",
                           tsk__error_path(loader->file), (unsigned long long)invalid);
    if (status == TSK_OK) status = tsk__bpe_load_merge_lines(loader, text.data, text.length);
    tsk_text_free(&text);
    return status;
}

static tsk_status tsk__bpe_load_two_files(tsk__bpe_folder *folder, tsk__bpe_loader *loader,
                                          const tsk_json_value *config) {
    size_t n_added = tsk__bpe_count_declared(config);
    tsk_status status = tsk__bpe_load_vocab_json(folder, loader, n_added);
    if (status == TSK_OK) status = tsk__bpe_load_merges_txt(folder, loader);
    if (status == TSK_OK) status = tsk__bpe_reserve_added(loader, n_added);
    tsk__bpe_folder_path(folder, "tokenizer_config.json");
    if (status == TSK_OK) status = tsk__bpe_load_class(loader, config);
    if (status == TSK_OK) status = tsk__bpe_load_declared(loader, config, 1);
    return status == TSK_OK ? tsk__bpe_load_class_named(loader) : status;
}

/* config may be NULL: then there is no tokenizer_config.json. */
static tsk_status tsk__bpe_load(tsk_tokenizer *tokenizer, tsk__bpe_folder *folder, const tsk_json_value *config) {
    tsk__bpe_loader loader;
    tsk_status status;
    uint64_t i;
    memset(&loader, 0, sizeof loader);
    loader.tokenizer = tokenizer;
    tokenizer->key = tsk__hash_key_new();
    for (i = 0; i < 3; i++) tokenizer->merge_keys[i] = tsk__hash(tokenizer->key, &i, sizeof i);
    loader.file = folder->path; /* always the file asked for last, which is the one that messages are about */
    loader.error = folder->error;
    if (!tsk__unicode_create(&tokenizer->unicode, tokenizer->allocator))
        return tsk__error_memory(folder->error, "Unicode tables", 100000);
    if (tsk__bpe_folder_has(folder, "tokenizer.json") || !tsk__bpe_folder_has(folder, "vocab.json"))
        status = tsk__bpe_load_tokenizer_json(folder, &loader, config);
    else status = tsk__bpe_load_two_files(folder, &loader, config);
    return status == TSK_OK ? tsk__bpe_make_matchers(&loader) : status;
}

static void tsk__bpe_destroy(tsk_tokenizer *tokenizer) {
    tsk__unicode_destroy(&tokenizer->unicode);
    tsk_text_free(&tokenizer->texts);
    tsk_text_free(&tokenizer->bytes);
    tsk__memory_delete(tokenizer->allocator, tokenizer->tokens);
    tsk__memory_delete(tokenizer->allocator, tokenizer->by_id);
    tsk__memory_delete(tokenizer->allocator, tokenizer->slots);
    tsk__memory_delete(tokenizer->allocator, tokenizer->merges);
    tsk__memory_delete(tokenizer->allocator, tokenizer->merge_tags);
    tsk__memory_delete(tokenizer->allocator, tokenizer->chars);
    tsk__memory_delete(tokenizer->allocator, tokenizer->added);
}

// >>template ==========================================================================================================
/* Chat templates are small programs in Jinja. The templates of the supported models are known here by the length and
   hash of their text, and rendered in C. Only what the API can express is rendered: roles and text, no tools, the
   assistant's header at the end. Any other template is an error, because a prompt that is almost right makes a model's
   answers worse without a sign.
   While rendering, the places of the messages' own text are noted, so that special tokens written out in it can be kept
   from taking effect. */

enum {
    TSK__TEMPLATE_NONE,           /* the folder has none */
    TSK__TEMPLATE_UNKNOWN,
    TSK__TEMPLATE_HEADERS,        /* <|start_header_id|>role<|end_header_id|> … <|eot_id|> */
    TSK__TEMPLATE_CHATML,         /* <|im_start|>role … <|im_end|> */
    TSK__TEMPLATE_QWEN3,          /* the same with thoughts */
    TSK__TEMPLATE_ROLES           /* <role>HUMAN</role> … <|role_end|> */
};

static const struct tsk__template_known {
    uint64_t length, hash;        /* FNV-1a, 64 bits */
    int kind;
    const char *system;           /* what the system says when the messages do not; NULL: nothing */
} tsk__template_table[] = {
    /* LLaDA, LLaDA-1.5, the first Llama-3: the header is always added */
    {348, UINT64_C(0x74891e390e614ae2), TSK__TEMPLATE_HEADERS, NULL},
    /* Llama-3: the header is added when asked for */
    {389, UINT64_C(0x0e60067a5537498e), TSK__TEMPLATE_HEADERS, NULL},
    /* Ling 2, after which LLaDA-MoE's and LLaDA 2's prompts are formed */
    {3972, UINT64_C(0xf713ce92a3ddea76), TSK__TEMPLATE_ROLES, NULL},
    /* Dream, Qwen2.5's base models */
    {2426, UINT64_C(0x16bc91fc7006a16d), TSK__TEMPLATE_CHATML, "You are a helpful assistant."},
    /* Qwen2.5 */
    {2506, UINT64_C(0xe642ce246d7f2e3d), TSK__TEMPLATE_CHATML,
     "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
    /* Qwen2 */
    {328, UINT64_C(0x8a87094e0e1e24c5), TSK__TEMPLATE_CHATML, "You are a helpful assistant."},
    /* Qwen1.5 */
    {327, UINT64_C(0xc867da37c989d41f), TSK__TEMPLATE_CHATML, "You are a helpful assistant"},
    /* ChatML as the transformers library once had it by default */
    {196, UINT64_C(0x88bf4138d5c826f0), TSK__TEMPLATE_CHATML, NULL},
    /* Qwen3 */
    {4116, UINT64_C(0x2bfdb7aa9754484e), TSK__TEMPLATE_QWEN3, NULL}};

/* Hash and length of the text as Jinja reads it: CR LF and CR are newlines, and one at the end, which editors put
   there, is left out. */
static uint64_t tsk__template_hash(const char *text, size_t size, uint64_t *length) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    size_t i;
    if (size && text[size - 1] == '\n') size--;
    if (size && text[size - 1] == '\r') size--;
    *length = 0;
    for (i = 0; i < size; i++) {
        if (text[i] == '\r' && i + 1 < size && text[i + 1] == '\n') continue;
        hash = (hash ^ (unsigned char)(text[i] == '\r' ? '\n' : text[i])) * UINT64_C(0x100000001b3);
        ++*length;
    }
    return hash;
}

/* ---- loading */

static tsk_status tsk__template_note(tsk_tokenizer *tokenizer, const char *text, size_t size, const char *file,
                                     tsk_error *error) {
    size_t i;
    tokenizer->template_hash = tsk__template_hash(text, size, &tokenizer->template_length);
    tokenizer->template_kind = TSK__TEMPLATE_UNKNOWN;
    for (i = 0; i < sizeof tsk__template_table / sizeof *tsk__template_table; i++) {
        const struct tsk__template_known *known = &tsk__template_table[i];
        if (known->length != tokenizer->template_length || known->hash != tokenizer->template_hash) continue;
        tokenizer->template_kind = known->kind;
        tokenizer->template_system = known->system;
    }
    if (tsk_text_append(&tokenizer->template_file, file, strlen(file)) != TSK_OK)
        return tsk__error_memory(error, file, strlen(file));
    return TSK_OK;
}

/* "chat_template" is a text, or a list of named ones of which "default" is the one. */
static const char *tsk__template_of(const tsk_json_value *config, size_t *length) {
    const tsk_json_value *value = tsk_json_get(config, "chat_template"), *one;
    if (tsk_json_type_of(value) == TSK_JSON_ARRAY)
        for (one = tsk_json_first(value); one; one = tsk_json_next(one))
            if (tsk__bpe_is(tsk_json_get(one, "name"), "default"))
                return tsk_json_string(tsk_json_get(one, "template"), length);
    return tsk_json_string(value, length);
}

/* A file of its own goes before the one in tokenizer_config.json. */
static tsk_status tsk__template_load(tsk_tokenizer *tokenizer, tsk__bpe_folder *folder, const tsk_json_value *config) {
    size_t length;
    const char *bos = tsk__bpe_named_text(tsk_json_get(config, "bos_token"), &length), *text;
    tsk_status status = TSK_OK;
    if (bos && tsk_text_append(&tokenizer->bos, bos, length) != TSK_OK)
        return tsk__error_memory(folder->error, "bos_token", length);
    if (tsk__bpe_folder_has(folder, "chat_template.jinja")) {
        tsk_text file;
        status = tsk__bpe_folder_read(folder, "chat_template.jinja", &file);
        if (status == TSK_OK)
            status = tsk__template_note(tokenizer, file.data, file.length, folder->path, folder->error);
        tsk_text_free(&file);
        return status;
    }
    text = tsk__template_of(config, &length);
    return text ? tsk__template_note(tokenizer, text, length, tsk__bpe_folder_path(folder, "tokenizer_config.json"),
                                     folder->error)
                : TSK_OK;
}

void tsk_tokenizer_free(tsk_tokenizer *tokenizer) {
    if (!tokenizer) return;
    tsk__bpe_destroy(tokenizer);
    tsk_text_free(&tokenizer->bos);
    tsk_text_free(&tokenizer->template_file);
    tsk__memory_delete(tokenizer->allocator, tokenizer);
}

tsk_status tsk_tokenizer_load(const char *dir, const tsk_host *host, tsk_tokenizer **out, tsk_error *error) {
    const tsk_allocator *allocator = tsk__memory_allocator(host);
    tsk_tokenizer *tokenizer;
    tsk_json *config = NULL;
    tsk__bpe_folder folder;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_tokenizer_load", "out");
    *out = NULL;
    if (!dir) return tsk__error_null(error, "tsk_tokenizer_load", "dir");
    tokenizer = (tsk_tokenizer *)tsk__memory_new_zeroed(allocator, 1, sizeof *tokenizer);
    if (!tokenizer) return tsk__error_memory(error, "a tokenizer", sizeof *tokenizer);
    tokenizer->allocator = tokenizer->texts.allocator = tokenizer->bytes.allocator = tokenizer->bos.allocator =
        tokenizer->template_file.allocator = allocator;
    status = tsk__bpe_folder_open(&folder, dir, host, error);
    if (status == TSK_OK && tsk__bpe_folder_has(&folder, "tokenizer_config.json"))
        status = tsk__bpe_folder_json(&folder, "tokenizer_config.json", &config);
    if (status == TSK_OK) status = tsk__bpe_load(tokenizer, &folder, tsk_json_root(config));
    if (status == TSK_OK) status = tsk__template_load(tokenizer, &folder, tsk_json_root(config));
    tsk_json_free(config);
    tsk__memory_delete(allocator, folder.path);
    if (status == TSK_OK) *out = tokenizer;
    else tsk_tokenizer_free(tokenizer);
    return status;
}

/* ---- rendering */

typedef struct tsk__template_writer {
    tsk_text text;
    tsk__bpe_range *ranges;       /* where the messages' own text is */
    size_t n_ranges, capacity;
    tsk_status status;            /* the first failure; afterwards nothing is written */
} tsk__template_writer;

static void tsk__template_put(tsk__template_writer *writer, const char *text) {
    if (writer->status == TSK_OK) writer->status = tsk_text_append(&writer->text, text, strlen(text));
}

/* Text of a message. */
static void tsk__template_put_own(tsk__template_writer *writer, const char *text, size_t size) {
    if (writer->status != TSK_OK || size == 0) return;
    if (!tsk__memory_reserve(writer->text.allocator, &writer->ranges, &writer->capacity, writer->n_ranges + 1,
                             sizeof *writer->ranges)) {
        writer->status = TSK_ERROR_MEMORY;
        return;
    }
    writer->ranges[writer->n_ranges].start = writer->text.length;
    writer->status = tsk_text_append(&writer->text, text, size);
    writer->ranges[writer->n_ranges++].end = writer->text.length;
}

/* As Python's str.strip sees it: Unicode's white space and the four information separators. */
static int tsk__template_is_space(const tsk_tokenizer *tokenizer, const char *text, size_t at, size_t *n) {
    uint32_t c;
    *n = tsk__unicode_next(text + at, &c);
    return (tsk__unicode_property(&tokenizer->unicode, c) & TSK__UNICODE_KIND) == TSK__UNICODE_SPACE ||
           (c >= 0x1c && c <= 0x1f);
}

static void tsk__template_put_trimmed(tsk__template_writer *writer, const tsk_tokenizer *tokenizer, const char *text) {
    size_t n, start = 0, end = strlen(text);
    while (start < end && tsk__template_is_space(tokenizer, text, start, &n)) start += n;
    while (end > start && tsk__template_is_space(tokenizer, text, tsk__unicode_before(text, end), &n)) end -= n;
    tsk__template_put_own(writer, text + start, end - start);
}

static void tsk__template_headers(tsk__template_writer *writer, const tsk_tokenizer *tokenizer,
                                  const tsk_message *messages, size_t count) {
    size_t i;
    for (i = 0; i < count; i++) {
        if (i == 0) tsk__template_put(writer, tokenizer->bos.data);
        tsk__template_put(writer, "<|start_header_id|>");
        tsk__template_put_own(writer, messages[i].role, strlen(messages[i].role));
        tsk__template_put(writer, "<|end_header_id|>\n\n");
        tsk__template_put_trimmed(writer, tokenizer, messages[i].content);
        tsk__template_put(writer, "<|eot_id|>");
    }
    tsk__template_put(writer, "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

static void tsk__template_chatml(tsk__template_writer *writer, const tsk_tokenizer *tokenizer,
                                 const tsk_message *messages, size_t count) {
    size_t i;
    if (tokenizer->template_system && count && strcmp(messages[0].role, "system") != 0) {
        tsk__template_put(writer, "<|im_start|>system\n");
        tsk__template_put(writer, tokenizer->template_system);
        tsk__template_put(writer, "<|im_end|>\n");
    }
    for (i = 0; i < count; i++) {
        tsk__template_put(writer, "<|im_start|>");
        tsk__template_put_own(writer, messages[i].role, strlen(messages[i].role));
        tsk__template_put(writer, "\n");
        tsk__template_put_own(writer, messages[i].content, strlen(messages[i].content));
        tsk__template_put(writer, "<|im_end|>\n");
    }
    tsk__template_put(writer, "<|im_start|>assistant\n");
}

/* The last question, before which an assistant's thoughts are left out: the last message of the user that is not a
   tool's answer. */
static size_t tsk__template_last_query(const tsk_message *messages, size_t count) {
    static const char head[] = "<tool_response>", tail[] = "</tool_response>";
    size_t i;
    for (i = count; i > 0; i--) {
        const char *content = messages[i - 1].content;
        size_t length = strlen(content);
        int is_tool = strncmp(content, head, sizeof head - 1) == 0 && length >= sizeof tail - 1 &&
                      strcmp(content + length - (sizeof tail - 1), tail) == 0;
        if (strcmp(messages[i - 1].role, "user") == 0 && !is_tool) return i - 1;
    }
    return count - 1;
}

/* Splits "<think>thoughts</think>answer" as the templates do: the thoughts are what stands before the first </think>,
   after the last <think> in it; the answer what follows the last </think>. */
static void tsk__template_split(const char *content, const char **thoughts, size_t *n_thoughts, const char **answer) {
    const char *end = strstr(content, "</think>"), *start = content, *next;
    *answer = content;
    *thoughts = content;
    *n_thoughts = 0;
    if (!end) return;
    for (next = end; next; next = strstr(*answer, "</think>")) *answer = next + 8;
    while (**answer == '\n') ++*answer;
    while (end > start && end[-1] == '\n') end--;
    for (next = strstr(start, "<think>"); next && next + 7 <= end; next = strstr(start, "<think>")) start = next + 7;
    while (start < end && *start == '\n') start++;
    *thoughts = start;
    *n_thoughts = (size_t)(end - start);
}

/* An assistant's message. Thoughts appear only after the last query, and then if there are any or if `always`; `plain`
   goes before an answer without. */
static void tsk__template_answer(tsk__template_writer *writer, const char *content, int is_after_query, int always,
                                 const char *plain) {
    const char *thoughts, *answer;
    size_t n;
    tsk__template_split(content, &thoughts, &n, &answer);
    if (is_after_query && (n || always)) {
        tsk__template_put(writer, "\n<think>\n");
        tsk__template_put_own(writer, thoughts, n);
        tsk__template_put(writer, "\n</think>\n\n");
        while (*answer == '\n') answer++;
    } else {
        tsk__template_put(writer, plain);
    }
    tsk__template_put_own(writer, answer, strlen(answer));
}

/* `thinking` 0 ends the thoughts before they begin. */
static void tsk__template_qwen3(tsk__template_writer *writer, const tsk_message *messages, size_t count, int thinking) {
    size_t i, last_query = tsk__template_last_query(messages, count);
    for (i = 0; i < count; i++) {
        tsk__template_put(writer, "<|im_start|>");
        tsk__template_put(writer, messages[i].role);
        if (strcmp(messages[i].role, "assistant") == 0) {
            tsk__template_answer(writer, messages[i].content, i > last_query, i + 1 == count, "\n");
        } else {
            tsk__template_put(writer, "\n");
            tsk__template_put_own(writer, messages[i].content, strlen(messages[i].content));
        }
        tsk__template_put(writer, "<|im_end|>\n");
    }
    tsk__template_put(writer, "<|im_start|>assistant\n");
    if (thinking == 0) tsk__template_put(writer, "<think>\n\n</think>\n\n");
}

static void tsk__template_roles(tsk__template_writer *writer, const tsk_message *messages, size_t count) {
    size_t i = 0, last_query = tsk__template_last_query(messages, count);
    tsk__template_put(writer, "<role>SYSTEM</role>");
    if (strcmp(messages[0].role, "system") == 0) {
        tsk__template_put_own(writer, messages[0].content, strlen(messages[0].content));
        tsk__template_put(writer, "\n");
        i = 1;
    }
    tsk__template_put(writer, "detailed thinking off<|role_end|>");
    for (; i < count; i++) {
        if (strcmp(messages[i].role, "assistant") == 0) {
            tsk__template_put(writer, "<role>ASSISTANT</role>");
            tsk__template_answer(writer, messages[i].content, i > last_query, 0, "");
        } else {
            tsk__template_put(writer,
                              strcmp(messages[i].role, "user") == 0 ? "<role>HUMAN</role>" : "<role>SYSTEM</role>");
            tsk__template_put_own(writer, messages[i].content, strlen(messages[i].content));
        }
        tsk__template_put(writer, "<|role_end|>");
    }
    tsk__template_put(writer, "<role>ASSISTANT</role>");
}

static tsk_status tsk__template_check_message(const tsk_tokenizer *tokenizer, const tsk_message *message, size_t number,
                                              tsk_error *error) {
    const char *const texts[] = {message->role, message->content};
    size_t i;
    for (i = 0; i < 2; i++) {
        size_t length = texts[i] ? strlen(texts[i]) : 0,
               invalid = texts[i] ? tsk__unicode_invalid(texts[i], length) : 0;
        if (!texts[i])
            return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "message %lu has no %s",
                                  (unsigned long)number, i ? "content" : "role");
        if (invalid < length)
            return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, invalid,
                                  "the %s of message %lu is not UTF-8 at byte %llu", i ? "content" : "role",
                                  (unsigned long)number, (unsigned long long)invalid);
    }
    /* The others treat a fourth role as a tool or drop it. */
    if (tokenizer->template_kind == TSK__TEMPLATE_HEADERS || strcmp(message->role, "system") == 0 ||
        strcmp(message->role, "user") == 0 || strcmp(message->role, "assistant") == 0)
        return TSK_OK;
    return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                          "message %lu has the role '%.40s', not system, user or assistant", (unsigned long)number,
                          message->role);
}

static tsk_status tsk__template_check(const tsk_tokenizer *tokenizer, const tsk_message *messages, size_t count,
                                      tsk_error *error) {
    const char *file;
    tsk_status status = TSK_OK;
    size_t i;
    if (!tokenizer) return tsk__bpe_no_tokenizer(error);
    if (!messages && count)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "the messages are NULL");
    file = tokenizer->template_file.data;
    if (tokenizer->template_kind == TSK__TEMPLATE_NONE)
        return tsk__error_set(
            error, TSK_ERROR_TEMPLATE, NULL, TSK_NO_OFFSET,
            "the tokenizer has no chat template: neither a chat_template.jinja nor one in tokenizer_config.json");
    if (tokenizer->template_kind == TSK__TEMPLATE_UNKNOWN)
        return tsk__error_set(error, TSK_ERROR_TEMPLATE, file, TSK_NO_OFFSET,
                              "the chat template in '%s' (%llu bytes, FNV-1a %016llx) is none of those known: LLaDA, "
                              "LLaDA 2, Dream, Qwen 1.5 to 3, ChatML, Llama 3",
                              tsk__error_path(file), (unsigned long long)tokenizer->template_length,
                              (unsigned long long)tokenizer->template_hash);
    if (tokenizer->template_kind == TSK__TEMPLATE_HEADERS && count && tokenizer->bos.length == 0)
        return tsk__error_set(error, TSK_ERROR_TEMPLATE, file, TSK_NO_OFFSET,
                              "the chat template in '%s' needs a bos_token, which tokenizer_config.json lacks",
                              tsk__error_path(file));
    if (count == 0 && tokenizer->template_kind != TSK__TEMPLATE_HEADERS)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "there are no messages to render");
    for (i = 0; i < count && status == TSK_OK; i++)
        status = tsk__template_check_message(tokenizer, &messages[i], i, error);
    return status;
}

/* The writer is to be freed by the caller in any case. */
static tsk_status tsk__template_render(const tsk_tokenizer *tokenizer, const tsk_message *messages, size_t count,
                                       int thinking, tsk__template_writer *writer, tsk_error *error) {
    tsk_status status = tsk__template_check(tokenizer, messages, count, error);
    if (status != TSK_OK) return status;
    if (thinking != TSK_AUTO && tokenizer->template_kind != TSK__TEMPLATE_QWEN3)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, tokenizer->template_file.data, TSK_NO_OFFSET,
                              "the chat template in '%s' has no switch for thinking",
                              tsk__error_path(tokenizer->template_file.data));
    switch (tokenizer->template_kind) {
        case TSK__TEMPLATE_HEADERS: tsk__template_headers(writer, tokenizer, messages, count); break;
        case TSK__TEMPLATE_CHATML: tsk__template_chatml(writer, tokenizer, messages, count); break;
        case TSK__TEMPLATE_QWEN3: tsk__template_qwen3(writer, messages, count, thinking); break;
        default: tsk__template_roles(writer, messages, count); break;
    }
    return writer->status == TSK_OK ? TSK_OK : tsk__error_memory(error, "a rendered conversation", writer->text.length);
}

static void tsk__template_writer_free(tsk__template_writer *writer) {
    tsk__memory_delete(writer->text.allocator, writer->ranges);
    tsk_text_free(&writer->text);
}

tsk_chat_options tsk_chat_options_default(void) {
    tsk_chat_options o;
    o.special_in_text = 0;
    o.thinking = TSK_AUTO;
    return o;
}

static tsk_status tsk__template_check_options(const tsk_chat_options *o, tsk_error *error) {
    if (o->thinking == TSK_AUTO || o->thinking == 0 || o->thinking == 1) return TSK_OK;
    return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "thinking must be 0, 1 or TSK_AUTO, not %d",
                          o->thinking);
}

tsk_status tsk_chat_render(const tsk_tokenizer *tokenizer, const tsk_message *messages, size_t count, tsk_text *out,
                           tsk_error *error) {
    if (!out) return tsk__error_null(error, "tsk_chat_render", "out");
    return tsk_chat_render_with(tokenizer, messages, count, NULL, out, error);
}

tsk_status tsk_chat_render_with(const tsk_tokenizer *tokenizer, const tsk_message *messages, size_t count,
                                const tsk_chat_options *options, tsk_text *out, tsk_error *error) {
    tsk_chat_options o = options ? *options : tsk_chat_options_default();
    tsk__template_writer writer;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_chat_render_with", "out");
    status = tsk__template_check_options(&o, error);
    if (status != TSK_OK) return status;
    memset(&writer, 0, sizeof writer);
    writer.text.allocator = out->allocator;
    status = tsk__template_render(tokenizer, messages, count, o.thinking, &writer, error);
    if (status == TSK_OK && tsk_text_append(out, writer.text.data, writer.text.length) != TSK_OK)
        status = tsk__error_memory(error, "a rendered conversation", writer.text.length);
    tsk__template_writer_free(&writer);
    return status;
}

tsk_status tsk_chat_encode(const tsk_tokenizer *tokenizer, const tsk_message *messages, size_t count,
                           int special_in_text, tsk_tokens *out, tsk_error *error) {
    tsk_chat_options o = tsk_chat_options_default();
    o.special_in_text = special_in_text;
    if (!out) return tsk__error_null(error, "tsk_chat_encode", "out");
    return tsk_chat_encode_with(tokenizer, messages, count, &o, out, error);
}

tsk_status tsk_chat_encode_with(const tsk_tokenizer *tokenizer, const tsk_message *messages, size_t count,
                                const tsk_chat_options *options, tsk_tokens *out, tsk_error *error) {
    tsk_chat_options o = options ? *options : tsk_chat_options_default();
    tsk__template_writer writer;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_chat_encode_with", "out");
    status = tsk__template_check_options(&o, error);
    if (status != TSK_OK) return status;
    memset(&writer, 0, sizeof writer);
    writer.text.allocator = out->allocator;
    status = tsk__template_render(tokenizer, messages, count, o.thinking, &writer, error);
    if (status == TSK_OK)
        status = tsk__bpe_encode(tokenizer, writer.text.data, writer.text.length, 0, writer.ranges,
                                 o.special_in_text ? 0 : writer.n_ranges, out, error);
    tsk__template_writer_free(&writer);
    return status;
}

int32_t tsk_chat_end_of_turn(const tsk_tokenizer *tokenizer) {
    if (!tokenizer) return -1;
    switch (tokenizer->template_kind) {
        case TSK__TEMPLATE_HEADERS: return tsk_tokenizer_id(tokenizer, "<|eot_id|>");
        case TSK__TEMPLATE_CHATML:
        case TSK__TEMPLATE_QWEN3: return tsk_tokenizer_id(tokenizer, "<|im_end|>");
        case TSK__TEMPLATE_ROLES: return tsk_tokenizer_id(tokenizer, "<|role_end|>");
        default: return -1;
    }
}

// >>family ============================================================================================================
/* What makes a model this model, as data: an entry of tsk__families for every kind of network. >>config reads
   config.json by an entry's rows, folders and loaders find tensors by its names; no other section knows either.

   A family to come is an entry here and a value of tsk_family (api.h). What it has and these have not gets a column or
   a line, together with the code that reads it:
     q, k and v in one tensor     where in its tensor a part begins: a column of tsk__family_part, for sources
     a router                     a member of tsk__part, with an operation in the backends
     experts                      a letter of tsk__family_size for how many, which `each` of a part names
     layers of two kinds          tsk__family_has, which is asked for every layer
     part of a head turned        a field of the configuration beside head_dim, for tsk__rope_frequency
   The chat template is the tokenizer's: >>template knows it by its text, whatever the model. */

/* ---- what config.json must say, in the order in which it is checked. Keys that no row names are ignored. */

typedef enum tsk__demand_kind {
    TSK__DEMAND_TEXT,          /* this text */
    TSK__DEMAND_SWITCH,        /* true, or false; null is false */
    TSK__DEMAND_FOLLOWS,       /* a switch; left out or null it is what the switch named by `left_out` is */
    TSK__DEMAND_ONE,           /* the number 1, which it is when left out */
    TSK__DEMAND_ABSENT,        /* nothing, or null */
    TSK__DEMAND_ALL,           /* a list, each element of which is this text */
    TSK__DEMAND_PLAIN_ROPE,    /* nothing, null, or positions turned as rope_theta says */
    TSK__DEMAND_PLAIN_WEIGHTS  /* nothing, or null: else the weights are quantised */
} tsk__demand_kind;

typedef struct tsk__family_demand {
    const char *key;
    tsk__demand_kind kind;
    const char *only;          /* what the backends compute */
    const char *left_out;      /* what the family's own code takes where the key is missing; NULL: it may not be */
} tsk__family_demand;

/* ---- what is read from it, in order */

typedef enum tsk__key_kind {
    TSK__KEY_INTEGER,          /* from low to high */
    TSK__KEY_RATIO,            /* likewise; the field becomes `of` times it */
    TSK__KEY_KV_HEADS,         /* likewise, beside "multi_query_attention", an older key for the same */
    TSK__KEY_POSITIVE,         /* a number above 0 */
    TSK__KEY_THETA,            /* likewise; newer files have it inside "rope_parameters" */
    TSK__KEY_SWITCH,           /* true or false; null is false, or missing where the key must be there */
    TSK__KEY_FIXED,            /* `value`, whatever the file says: the network has no choice of it */
    TSK__KEY_END_IDS           /* one id or a list; more may stand in generation_config.json, and all may */
} tsk__key_kind;

typedef enum tsk__key_missing {    /* null is missing too, but for a switch */
    TSK__MISSING_ERROR,
    TSK__MISSING_VALUE,        /* it is `value` */
    TSK__MISSING_FIELD,        /* it is what the field `of` is by then */
    TSK__MISSING_NULL_FIELD    /* null: what the field `of` is; not there at all: an error */
} tsk__key_missing;

typedef struct tsk__family_key {
    const char *key;
    tsk__key_kind kind;
    size_t field;              /* where in tsk_model_config it goes: int32_t, float or int by its kind */
    int64_t low, high;
    tsk__key_missing missing;
    double value;
    size_t of;
} tsk__family_key;

/* ---- weights */

/* The maps of a layer, each matrix with its norm or bias where it has one; then those outside the layers. */
typedef enum tsk__part {
    TSK__PART_ATTN_NORM, TSK__PART_Q, TSK__PART_K, TSK__PART_V, TSK__PART_Q_NORM, TSK__PART_K_NORM, TSK__PART_ATTN_OUT,
    TSK__PART_FF_NORM, TSK__PART_FF_PROJ, TSK__PART_UP_PROJ, TSK__PART_FF_OUT, TSK__PART_COUNT,
    TSK__PART_EMBEDDING = TSK__PART_COUNT, TSK__PART_FINAL_NORM, TSK__PART_HEAD, TSK__PART_ALL
} tsk__part;

/* Sizes by letter: see tsk__family_size. */
typedef struct tsk__family_part {
    const char *weight, *bias; /* tensors' names, {i} for the layer and {e} for the expert; NULL: the family has none */
    char rows, cols;           /* outputs, inputs; cols '-': a vector */
    char each;                 /* how many a layer has: '-' one */
    char has_bias;             /* 'q': where qkv_bias says so, 'l': linear_bias, '-': never */
} tsk__family_part;

typedef struct tsk__family {
    const char *name;          /* in messages */
    const char *model_type, *architecture;  /* config.json's; `architectures` may be missing there */
    const tsk__family_demand *demands;
    size_t n_demands;
    const tsk__family_key *keys;
    size_t n_keys;
    const tsk__family_part *parts;          /* [TSK__PART_ALL] */
    int has_head_dim;          /* 1: a head's size is a number of its own; 0: it is d_model / n_heads */
    int by_blocks;             /* 1: a token attends to its block and to those before it; 0: to all tokens */
    int is_shifted;            /* 1: row i predicts position i + 1 (position 0: row 0); 0: row i predicts position i */
    int32_t small_block;       /* where by_blocks: positions of a block that are decoded before the next ones; 0: all */
    int skips;                 /* 1: TokenSkip is on where nobody says otherwise. Only families whose accuracy with it
                                  has been measured */
} tsk__family;

/* ---- LLaDA
   A key that the file leaves out has the default of LLaDA's own class (ModelConfig in configuration_llada.py). These
   are GPT-2's, and most of them describe another network. Sizes and ids have defaults there too, but those fit no LLaDA
   model: they must be written. Other keys of LLaDA's are for training (dropout, init_*), ways to compute the same
   (flash_attention, rope_full_precision, precision, use_cache), or parts of what is refused (alibi_bias_max,
   attention_layer_norm_with_affine). */

static const tsk__family_demand tsk__llada_demands[] = {
    {"quantization_config", TSK__DEMAND_PLAIN_WEIGHTS, NULL, NULL},
    {"compression_config", TSK__DEMAND_PLAIN_WEIGHTS, NULL, NULL},
    {"block_type", TSK__DEMAND_TEXT, "llama", "sequential"},
    {"layer_norm_type", TSK__DEMAND_TEXT, "rms", "default"},
    {"activation_type", TSK__DEMAND_TEXT, "silu", "swiglu"},
    {"rope", TSK__DEMAND_SWITCH, "true", "false"},
    {"layer_norm_with_affine", TSK__DEMAND_SWITCH, "true", "true"},
    {"alibi", TSK__DEMAND_SWITCH, "false", "false"},
    {"attention_layer_norm", TSK__DEMAND_SWITCH, "false", "false"},
    {"input_emb_norm", TSK__DEMAND_SWITCH, "false", "false"},
    {"scale_logits", TSK__DEMAND_SWITCH, "false", "false"},
    {"bias_for_layer_norm", TSK__DEMAND_FOLLOWS, "false", "include_bias"},
    {"block_group_size", TSK__DEMAND_ONE, NULL, NULL},
    {"rope_scaling", TSK__DEMAND_PLAIN_ROPE, NULL, NULL},
    {"rope_parameters", TSK__DEMAND_PLAIN_ROPE, NULL, NULL},
    {"clip_qkv", TSK__DEMAND_ABSENT, NULL, NULL}};

#define TSK__FIELD(name) offsetof(tsk_model_config, name)
#define TSK__MAX_LENGTH (1 << 24) /* an f32, of which angles are made, holds no odd position beyond it */

static const tsk__family_key tsk__llada_keys[] = {
    {"d_model", TSK__KEY_INTEGER, TSK__FIELD(d_model), 1, 1 << 17, TSK__MISSING_ERROR, 0, 0},
    {"n_layers", TSK__KEY_INTEGER, TSK__FIELD(n_layers), 1, 1 << 12, TSK__MISSING_ERROR, 0, 0},
    {"n_heads", TSK__KEY_INTEGER, TSK__FIELD(n_heads), 1, 1 << 12, TSK__MISSING_ERROR, 0, 0},
    {"n_kv_heads", TSK__KEY_KV_HEADS, TSK__FIELD(n_kv_heads), 1, 1 << 12, TSK__MISSING_FIELD, 0, TSK__FIELD(n_heads)},
    {"mlp_ratio", TSK__KEY_RATIO, TSK__FIELD(mlp_hidden_size), 1, 64, TSK__MISSING_VALUE, 4, TSK__FIELD(d_model)},
    {"mlp_hidden_size", TSK__KEY_INTEGER, TSK__FIELD(mlp_hidden_size), 1, 1 << 20,
     TSK__MISSING_FIELD, 0, TSK__FIELD(mlp_hidden_size)},
    {"vocab_size", TSK__KEY_INTEGER, TSK__FIELD(vocab_size), 1, 1 << 24, TSK__MISSING_ERROR, 0, 0},
    /* left out it would be 50304 */
    {"embedding_size", TSK__KEY_INTEGER, TSK__FIELD(embedding_size), 1, 1 << 24,
     TSK__MISSING_NULL_FIELD, 0, TSK__FIELD(vocab_size)},
    {"max_sequence_length", TSK__KEY_INTEGER, TSK__FIELD(max_sequence_length), 1, TSK__MAX_LENGTH,
     TSK__MISSING_ERROR, 0, 0},
    {"mask_token_id", TSK__KEY_INTEGER, TSK__FIELD(mask_token_id), 0, INT32_MAX, TSK__MISSING_ERROR, 0, 0},
    {"eos_token_id", TSK__KEY_END_IDS, TSK__FIELD(eos_token_ids), 0, INT32_MAX, TSK__MISSING_VALUE, 0, 0},
    {"pad_token_id", TSK__KEY_INTEGER, TSK__FIELD(pad_token_id), -1, INT32_MAX, TSK__MISSING_VALUE, -1, 0},
    {"rope_theta", TSK__KEY_POSITIVE, TSK__FIELD(rope_theta), 0, 0, TSK__MISSING_VALUE, 10000.0, 0},
    {"rms_norm_eps", TSK__KEY_POSITIVE, TSK__FIELD(rms_norm_eps), 0, 0, TSK__MISSING_VALUE, 1e-5, 0},
    {"weight_tying", TSK__KEY_SWITCH, TSK__FIELD(weight_tying), 0, 0, TSK__MISSING_VALUE, 1, 0},
    {"include_bias", TSK__KEY_SWITCH, TSK__FIELD(linear_bias), 0, 0, TSK__MISSING_VALUE, 0, 0},
    {"include_qkv_bias", TSK__KEY_SWITCH, TSK__FIELD(qkv_bias), 0, 0, TSK__MISSING_FIELD, 0, TSK__FIELD(linear_bias)}};

#define TSK__LLADA_NAMES(name) "model.transformer." name ".weight", "model.transformer." name ".bias"

static const tsk__family_part tsk__llada_parts[TSK__PART_ALL] = {
    {TSK__LLADA_NAMES("blocks.{i}.attn_norm"), 'd', '-', '-', '-'},
    {TSK__LLADA_NAMES("blocks.{i}.q_proj"), 'q', 'd', '-', 'q'},
    {TSK__LLADA_NAMES("blocks.{i}.k_proj"), 'k', 'd', '-', 'q'},
    {TSK__LLADA_NAMES("blocks.{i}.v_proj"), 'k', 'd', '-', 'q'},
    {NULL, NULL, 'h', '-', '-', '-'},
    {NULL, NULL, 'h', '-', '-', '-'},
    {TSK__LLADA_NAMES("blocks.{i}.attn_out"), 'd', 'q', '-', 'l'},
    {TSK__LLADA_NAMES("blocks.{i}.ff_norm"), 'd', '-', '-', '-'},
    {TSK__LLADA_NAMES("blocks.{i}.ff_proj"), 'm', 'd', '-', 'l'},
    {TSK__LLADA_NAMES("blocks.{i}.up_proj"), 'm', 'd', '-', 'l'},
    {TSK__LLADA_NAMES("blocks.{i}.ff_out"), 'd', 'm', '-', 'l'},
    {TSK__LLADA_NAMES("wte"), 'e', 'd', '-', '-'},
    {TSK__LLADA_NAMES("ln_f"), 'd', '-', '-', '-'},
    {TSK__LLADA_NAMES("ff_out"), 'e', 'd', '-', 'l'}};

/* ---- models of Qwen's networks: SDAR and TraDo (Qwen3), Fast-dLLM v2, Dream, DiffuCoder and Dream-Coder (Qwen2.5)
   What the network depends on must be written, since the defaults of these classes fit no released model. Other keys
   are for training (attention_dropout, initializer_range, ep_size), for other ways to compute the same (use_cache,
   attn_implementation), or parts of what is refused (sliding_window, max_window_layers). */

#define TSK__QWEN_DEMANDS \
    {"quantization_config", TSK__DEMAND_PLAIN_WEIGHTS, NULL, NULL}, \
    {"compression_config", TSK__DEMAND_PLAIN_WEIGHTS, NULL, NULL}, \
    {"hidden_act", TSK__DEMAND_TEXT, "silu", NULL}, \
    {"rope_scaling", TSK__DEMAND_PLAIN_ROPE, NULL, NULL}, \
    {"rope_parameters", TSK__DEMAND_PLAIN_ROPE, NULL, NULL}, \
    {"use_sliding_window", TSK__DEMAND_SWITCH, "false", "false"}

static const tsk__family_demand tsk__sdar_demands[] = {
    TSK__QWEN_DEMANDS,
    {"attention_bias", TSK__DEMAND_SWITCH, "false", NULL},
    {"use_regular_causal", TSK__DEMAND_SWITCH, "false", "false"}, /* a prompt's tokens would see those before them */
    {"layer_types", TSK__DEMAND_ALL, "full_attention", "full_attention"}};

static const tsk__family_demand tsk__dream_demands[] = {
    TSK__QWEN_DEMANDS,
    {"layer_types", TSK__DEMAND_ALL, "full_attention", "full_attention"}};

static const tsk__family_demand tsk__fast_dllm_demands[] = {
    TSK__QWEN_DEMANDS,
    {"layer_types", TSK__DEMAND_ALL, "full_attention", NULL}};

#define TSK__QWEN_KEYS \
    {"hidden_size", TSK__KEY_INTEGER, TSK__FIELD(d_model), 1, 1 << 17, TSK__MISSING_ERROR, 0, 0}, \
    {"num_hidden_layers", TSK__KEY_INTEGER, TSK__FIELD(n_layers), 1, 1 << 12, TSK__MISSING_ERROR, 0, 0}, \
    {"num_attention_heads", TSK__KEY_INTEGER, TSK__FIELD(n_heads), 1, 1 << 12, TSK__MISSING_ERROR, 0, 0}, \
    {"num_key_value_heads", TSK__KEY_INTEGER, TSK__FIELD(n_kv_heads), 1, 1 << 12, TSK__MISSING_ERROR, 0, 0}, \
    {"head_dim", TSK__KEY_INTEGER, TSK__FIELD(head_dim), 1, 1 << 12, TSK__MISSING_VALUE, 0, 0}, \
    {"intermediate_size", TSK__KEY_INTEGER, TSK__FIELD(mlp_hidden_size), 1, 1 << 20, TSK__MISSING_ERROR, 0, 0}, \
    {"vocab_size", TSK__KEY_INTEGER, TSK__FIELD(vocab_size), 1, 1 << 24, TSK__MISSING_ERROR, 0, 0}, \
    {"vocab_size", TSK__KEY_INTEGER, TSK__FIELD(embedding_size), 1, 1 << 24, TSK__MISSING_ERROR, 0, 0}, \
    {"max_position_embeddings", TSK__KEY_INTEGER, TSK__FIELD(max_sequence_length), 1, TSK__MAX_LENGTH, \
     TSK__MISSING_ERROR, 0, 0}, \
    {"eos_token_id", TSK__KEY_END_IDS, TSK__FIELD(eos_token_ids), 0, INT32_MAX, TSK__MISSING_VALUE, 0, 0}, \
    {"pad_token_id", TSK__KEY_INTEGER, TSK__FIELD(pad_token_id), -1, INT32_MAX, TSK__MISSING_VALUE, -1, 0}, \
    {"rope_theta", TSK__KEY_THETA, TSK__FIELD(rope_theta), 0, 0, TSK__MISSING_ERROR, 0, 0}, \
    {"rms_norm_eps", TSK__KEY_POSITIVE, TSK__FIELD(rms_norm_eps), 0, 0, TSK__MISSING_ERROR, 0, 0}, \
    {"tie_word_embeddings", TSK__KEY_SWITCH, TSK__FIELD(weight_tying), 0, 0, TSK__MISSING_ERROR, 0, 0}

#define TSK__MAX_BLOCK (1 << 12)

static const tsk__family_key tsk__sdar_keys[] = {
    TSK__QWEN_KEYS,
    {"mask_token_id", TSK__KEY_INTEGER, TSK__FIELD(mask_token_id), 0, INT32_MAX, TSK__MISSING_ERROR, 0, 0},
    {"block_size", TSK__KEY_INTEGER, TSK__FIELD(block_length), 1, TSK__MAX_BLOCK, TSK__MISSING_ERROR, 0, 0}};

static const tsk__family_key tsk__fast_dllm_keys[] = {
    TSK__QWEN_KEYS,
    {"mask_token_id", TSK__KEY_INTEGER, TSK__FIELD(mask_token_id), 0, INT32_MAX, TSK__MISSING_VALUE, 151665, 0},
    {"bd_size", TSK__KEY_INTEGER, TSK__FIELD(block_length), 1, TSK__MAX_BLOCK, TSK__MISSING_ERROR, 0, 0},
    {"qkv_bias", TSK__KEY_FIXED, TSK__FIELD(qkv_bias), 0, 0, TSK__MISSING_VALUE, 1, 0}};

static const tsk__family_key tsk__dream_keys[] = {
    TSK__QWEN_KEYS,
    {"mask_token_id", TSK__KEY_INTEGER, TSK__FIELD(mask_token_id), 0, INT32_MAX, TSK__MISSING_ERROR, 0, 0},
    {"qkv_bias", TSK__KEY_FIXED, TSK__FIELD(qkv_bias), 0, 0, TSK__MISSING_VALUE, 1, 0}};

#define TSK__QWEN_NAMES(name) "model." name ".weight", "model." name ".bias"
#define TSK__QWEN_NORM(name) "model." name ".weight", NULL
/* q_norm and k_norm: norms of each head of q and k, before RoPE; NULL in Qwen2.5. */
#define TSK__QWEN_PARTS(q_norm, k_norm) \
    { \
        {TSK__QWEN_NORM("layers.{i}.input_layernorm"), 'd', '-', '-', '-'}, \
        {TSK__QWEN_NAMES("layers.{i}.self_attn.q_proj"), 'q', 'd', '-', 'q'}, \
        {TSK__QWEN_NAMES("layers.{i}.self_attn.k_proj"), 'k', 'd', '-', 'q'}, \
        {TSK__QWEN_NAMES("layers.{i}.self_attn.v_proj"), 'k', 'd', '-', 'q'}, \
        {q_norm, NULL, 'h', '-', '-', '-'}, \
        {k_norm, NULL, 'h', '-', '-', '-'}, \
        {TSK__QWEN_NAMES("layers.{i}.self_attn.o_proj"), 'd', 'q', '-', '-'}, \
        {TSK__QWEN_NORM("layers.{i}.post_attention_layernorm"), 'd', '-', '-', '-'}, \
        {TSK__QWEN_NAMES("layers.{i}.mlp.gate_proj"), 'm', 'd', '-', '-'}, \
        {TSK__QWEN_NAMES("layers.{i}.mlp.up_proj"), 'm', 'd', '-', '-'}, \
        {TSK__QWEN_NAMES("layers.{i}.mlp.down_proj"), 'd', 'm', '-', '-'}, \
        {TSK__QWEN_NORM("embed_tokens"), 'e', 'd', '-', '-'}, \
        {TSK__QWEN_NORM("norm"), 'd', '-', '-', '-'}, \
        {"lm_head.weight", NULL, 'e', 'd', '-', '-'} \
    }

static const tsk__family_part tsk__qwen2_parts[TSK__PART_ALL] = TSK__QWEN_PARTS(NULL, NULL);
static const tsk__family_part tsk__qwen3_parts[TSK__PART_ALL] =
    TSK__QWEN_PARTS("model.layers.{i}.self_attn.q_norm.weight", "model.layers.{i}.self_attn.k_norm.weight");

/* ---- the table */

#define TSK__COUNT_OF(array) (sizeof(array) / sizeof *(array))

/* In the order of tsk_family. Several may share a model_type; their architectures then differ. */
static const tsk__family tsk__families[] = {
    {"LLaDA", "llada", "LLaDAModelLM", tsk__llada_demands, TSK__COUNT_OF(tsk__llada_demands), tsk__llada_keys,
     TSK__COUNT_OF(tsk__llada_keys), tsk__llada_parts, 0, 0, 0, 0, 1},
    {"SDAR", "sdar", "SDARForCausalLM", tsk__sdar_demands, TSK__COUNT_OF(tsk__sdar_demands), tsk__sdar_keys,
     TSK__COUNT_OF(tsk__sdar_keys), tsk__qwen3_parts, 1, 1, 0, 0, 0},
    {"Fast-dLLM v2", "Fast_dLLM_Qwen", "Fast_dLLM_QwenForCausalLM", tsk__fast_dllm_demands,
     TSK__COUNT_OF(tsk__fast_dllm_demands), tsk__fast_dllm_keys, TSK__COUNT_OF(tsk__fast_dllm_keys), tsk__qwen2_parts,
     1, 1, 1, 8, 0},
    {"Dream", "Dream", "DreamModel", tsk__dream_demands, TSK__COUNT_OF(tsk__dream_demands), tsk__dream_keys,
     TSK__COUNT_OF(tsk__dream_keys), tsk__qwen2_parts, 1, 0, 1, 0, 0}};

#define TSK__FAMILIES ((int)TSK__COUNT_OF(tsk__families))

static const tsk__family *tsk__family_of(const tsk_model_config *c) { return &tsk__families[c->family]; }

/* ---- the weights that a configuration implies */

/* Which weight: of a layer, or outside the layers (-1). */
typedef struct tsk__weight_id {
    int32_t layer;
    int part;                  /* of tsk__part */
    int32_t expert;            /* 0 where there are none */
    int is_bias;
} tsk__weight_id;

static tsk__weight_id tsk__weight_id_of(int32_t layer, tsk__part part, int is_bias) {
    tsk__weight_id id;
    id.layer = layer;
    id.part = (int)part;
    id.expert = 0;
    id.is_bias = is_bias;
    return id;
}

/* d d_model, q all query heads, k all key heads, h one head, m mlp_hidden_size, e embedding_size, - one. */
static uint64_t tsk__family_size(const tsk_model_config *c, char letter) {
    switch (letter) {
    case 'd': return (uint64_t)c->d_model;
    case 'q': return (uint64_t)c->n_heads * (uint64_t)c->head_dim;
    case 'k': return (uint64_t)c->n_kv_heads * (uint64_t)c->head_dim;
    case 'h': return (uint64_t)c->head_dim;
    case 'm': return (uint64_t)c->mlp_hidden_size;
    case 'e': return (uint64_t)c->embedding_size;
    default: return 1;
    }
}

static const tsk__family_part *tsk__family_part_of(const tsk_model_config *c, int part) {
    return &tsk__family_of(c)->parts[part];
}

/* How many weights of that part stand beside each other in the table: one, or the experts. */
static int32_t tsk__family_each(const tsk_model_config *c, int part) {
    return (int32_t)tsk__family_size(c, tsk__family_part_of(c, part)->each);
}

/* 1: a model of this configuration has that weight. A tied head has none of its own. */
static int tsk__family_has(const tsk_model_config *c, const tsk__weight_id *id) {
    const tsk__family_part *p = tsk__family_part_of(c, id->part);
    if (!p->weight || (id->part == (int)TSK__PART_HEAD && c->weight_tying)) return 0;
    return !id->is_bias || (p->has_bias == 'q' && c->qkv_bias) || (p->has_bias == 'l' && c->linear_bias);
}

/* 1: norms and biases. */
static int tsk__family_is_vector(const tsk_model_config *c, const tsk__weight_id *id) {
    return id->is_bias || tsk__family_part_of(c, id->part)->cols == '-';
}

/* shape[0] outputs, shape[1] inputs, 1 of a vector. */
static void tsk__family_shape(const tsk_model_config *c, const tsk__weight_id *id, uint64_t shape[2]) {
    shape[0] = tsk__family_size(c, tsk__family_part_of(c, id->part)->rows);
    shape[1] = tsk__family_is_vector(c, id) ? 1 : tsk__family_size(c, tsk__family_part_of(c, id->part)->cols);
}

#define TSK__FAMILY_NAME 96

/* The tensor's name. */
static void tsk__family_name(const tsk_model_config *c, const tsk__weight_id *id, char name[TSK__FAMILY_NAME]) {
    const tsk__family_part *p = tsk__family_part_of(c, id->part);
    const char *from = id->is_bias ? p->bias : p->weight;
    int used = 0;
    while (*from && used < TSK__FAMILY_NAME - 12) {
        if (*from != '{') {
            name[used++] = *from++;
            continue;
        }
        used += snprintf(name + used, (size_t)(TSK__FAMILY_NAME - used), "%d",
                         (int)(from[1] == 'e' ? id->expert : id->layer));
        from += 3;
    }
    name[used] = 0;
}

/* Every weight in the model's order, each bias after its matrix:
       for (id = tsk__family_first(), more = 1; more; more = tsk__family_next(c, &id)) */
static tsk__weight_id tsk__family_first(void) { return tsk__weight_id_of(-1, TSK__PART_EMBEDDING, 0); }

/* To the next that a model may have; 0 after the last. */
static int tsk__family_step(const tsk_model_config *c, tsk__weight_id *id) {
    id->is_bias = !id->is_bias;
    if (id->is_bias || ++id->expert < tsk__family_each(c, id->part)) return 1;
    id->expert = 0;
    id->part++;
    if (id->layer < 0 && id->part != (int)TSK__PART_EMBEDDING + 1) return id->part < (int)TSK__PART_ALL;
    if (id->layer >= 0 && id->part < (int)TSK__PART_COUNT) return 1;
    if (++id->layer < c->n_layers) id->part = 0;
    else id->layer = -1, id->part = (int)TSK__PART_FINAL_NORM;
    return 1;
}
static int tsk__family_next(const tsk_model_config *c, tsk__weight_id *id) {
    while (tsk__family_step(c, id))
        if (tsk__family_has(c, id)) return 1;
    return 0;
}

/* The place of a matrix or norm in a table of all: first those outside the layers, then layer by layer. */
static size_t tsk__family_index(const tsk_model_config *c, int32_t layer, tsk__part part, int32_t expert) {
    size_t before = 0, outside = 0, in_layer = 0;
    int p;
    for (p = 0; p < (int)TSK__PART_ALL; p++) {
        *(p < (int)TSK__PART_COUNT ? &in_layer : &outside) += (size_t)tsk__family_each(c, p);
        if (p < (int)part && (layer < 0) == (p >= (int)TSK__PART_COUNT)) before += (size_t)tsk__family_each(c, p);
    }
    return (layer < 0 ? 0 : outside + (size_t)layer * in_layer) + before + (size_t)expert;
}

/* Places in that table. */
static size_t tsk__family_count(const tsk_model_config *c) {
    return tsk__family_index(c, c->n_layers, (tsk__part)0, 0);
}

// >>config ============================================================================================================
/* config.json, read by its family's rows, and the tensors that it promises. A folder is checked completely before a
   weight is read: every tensor that the architecture needs is there once, in a type that the backends read and the
   shape that the configuration implies; no tensor is there that the architecture would silently ignore. */

#define TSK__CONFIG_MAX_FILE ((size_t)64 << 20)

typedef struct tsk__config_reader {
    const tsk_json_value *root;
    const char *path;
    const tsk__family *family;
    tsk_error *error;
    tsk_status status;         /* the first failure; later reads do nothing */
} tsk__config_reader;

static void tsk__config_fail(tsk__config_reader *reader, const tsk_json_value *value, const char *key,
                             const char *expected) {
    if (reader->status == TSK_OK)
        reader->status =
            tsk__error_set(reader->error, TSK_ERROR_CONFIG, reader->path,
                           value ? tsk_json_offset(value) : TSK_NO_OFFSET, "'%s': \"%s\" %s %s",
                           tsk__error_path(reader->path), key, value ? "must be" : "is missing: it must be", expected);
}

static int tsk__config_absent(const tsk_json_value *value) {
    tsk_json_type type = tsk_json_type_of(value);
    return type == TSK_JSON_NONE || type == TSK_JSON_NULL;
}

/* The integer in [low, high] that `value` must be. */
static int32_t tsk__config_integer(tsk__config_reader *reader, const tsk_json_value *value, const char *key,
                                   int64_t low, int64_t high) {
    int64_t number = low;
    char expected[80];
    if (reader->status != TSK_OK) return (int32_t)low;
    if (tsk_json_int64(value, &number) && number >= low && number <= high) return (int32_t)number;
    snprintf(expected, sizeof expected, "an integer from %lld to %lld", (long long)low, (long long)high);
    tsk__config_fail(reader, value, key, expected);
    return (int32_t)low;
}

/* An integer in [low, high]; `fallback` where the key is absent or null, an error there when fallback < low. */
static int32_t tsk__config_int(tsk__config_reader *reader, const char *key, int64_t low, int64_t high,
                               int64_t fallback) {
    const tsk_json_value *value = tsk_json_get(reader->root, key);
    if (tsk__config_absent(value) && fallback >= low) return (int32_t)fallback;
    return tsk__config_integer(reader, value, key, low, high);
}

/* `fallback` where the value is absent, an error there where that is not positive. */
static float tsk__config_positive(tsk__config_reader *reader, const tsk_json_value *value, const char *key,
                                  double fallback) {
    double number = fallback;
    if (reader->status != TSK_OK || (tsk__config_absent(value) && fallback > 0)) return (float)fallback;
    if (!tsk_json_double(value, &number) || !(number > 0) || number > 1e12)
        tsk__config_fail(reader, value, key, "a positive number");
    return (float)number;
}

/* `fallback` where the key is absent; null is false, as it is to the families' own code. */
static int tsk__config_bool(tsk__config_reader *reader, const char *key, int fallback) {
    const tsk_json_value *value = tsk_json_get(reader->root, key);
    int truth = 0;
    if (reader->status != TSK_OK || !value) return fallback;
    if (tsk_json_type_of(value) != TSK_JSON_NULL && !tsk_json_bool(value, &truth))
        tsk__config_fail(reader, value, key, "true or false");
    return truth;
}

/* "'path': "key" …". A model that asks for something that the backends do not compute is refused, not approximated. */
static void TSK__PRINTF(4, 5) tsk__config_refuse(tsk__config_reader *reader, const tsk_json_value *value,
                                                 const char *key, const char *format, ...) {
    char message[240];
    va_list arguments;
    if (reader->status != TSK_OK) return;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    reader->status = tsk__error_set(reader->error, TSK_ERROR_UNSUPPORTED, reader->path,
                                    value ? tsk_json_offset(value) : TSK_NO_OFFSET,
                                    "'%s': \"%s\"%s", tsk__error_path(reader->path), key, message);
}

/* ---- which family it is
   That of model_type; among several of one model_type the architecture decides. */

/* "a" is supported; "a", "b" are supported: the families' model types, or the architectures of one model_type. */
static void tsk__config_supported(const char *model_type, char *out, size_t size) {
    size_t used = 0, n = 0;
    int i;
    for (i = 0; i < TSK__FAMILIES; i++) {
        const tsk__family *f = &tsk__families[i];
        const char *name = model_type ? f->architecture : f->model_type;
        if (model_type && strcmp(f->model_type, model_type) != 0) continue;
        if (!model_type && i > 0 && strcmp(name, tsk__families[i - 1].model_type) == 0) continue;
        if (used < size) used += (size_t)snprintf(out + used, size - used, "%s\"%s\"", n++ ? ", " : "", name);
    }
    if (used < size) snprintf(out + used, size - used, n > 1 ? " are supported" : " is supported");
}

/* A text that should be another: `missing` says more where there is none at all. */
static void tsk__config_refuse_text(tsk__config_reader *reader, const char *key, const char *supported,
                                    const char *missing) {
    const tsk_json_value *value = tsk_json_get(reader->root, key);
    const char *text = tsk_json_string(value, NULL);
    if (text) tsk__config_refuse(reader, value, key, " is \"%.60s\"; only %s", text, supported);
    else if (value) tsk__config_refuse(reader, value, key, " is not given as text; only %s", supported);
    else tsk__config_refuse(reader, value, key, " is missing%s; only %s", missing, supported);
}

static void tsk__config_find_family(tsk__config_reader *reader) {
    const char *type = tsk_json_string(tsk_json_get(reader->root, "model_type"), NULL);
    const char *architecture = tsk_json_string(tsk_json_first(tsk_json_get(reader->root, "architectures")), NULL);
    char supported[160];
    int i;
    for (i = 0; i < TSK__FAMILIES && type; i++) {
        const tsk__family *f = &tsk__families[i];
        if (strcmp(f->model_type, type) != 0) continue;
        if (!reader->family) reader->family = f;
        if (architecture && strcmp(f->architecture, architecture) == 0) {
            reader->family = f;
            return;
        }
    }
    if (reader->family) return;
    tsk__config_supported(NULL, supported, sizeof supported);
    tsk__config_refuse_text(reader, "model_type", supported, "");
}

static void tsk__config_check_architectures(tsk__config_reader *reader) {
    const tsk_json_value *value = tsk_json_get(reader->root, "architectures"), *element;
    char supported[160];
    if (tsk__config_absent(value) || reader->status != TSK_OK) return;
    if (tsk_json_type_of(value) != TSK_JSON_ARRAY) tsk__config_fail(reader, value, "architectures", "a list of names");
    tsk__config_supported(reader->family->model_type, supported, sizeof supported);
    for (element = tsk_json_first(value); element && reader->status == TSK_OK; element = tsk_json_next(element)) {
        const char *name = tsk_json_string(element, NULL);
        if (!name) tsk__config_fail(reader, element, "architectures", "a list of names");
        else if (strcmp(name, reader->family->architecture) != 0)
            tsk__config_refuse(reader, element, "architectures", " names \"%.60s\"; only %s", name, supported);
    }
}

/* ---- what decides which network of the family: see tsk__family_demand */

static void tsk__config_demand_text(tsk__config_reader *reader, const tsk__family_demand *demand) {
    const char *text = tsk_json_string(tsk_json_get(reader->root, demand->key), NULL);
    const char *family = reader->family->name;
    char supported[80], missing[120] = "";
    if (text && strcmp(text, demand->only) == 0) return;
    snprintf(supported, sizeof supported, "\"%s\" is supported", demand->only);
    if (demand->left_out)
        snprintf(missing, sizeof missing, ", and %s's default for it is \"%s\"", family, demand->left_out);
    tsk__config_refuse_text(reader, demand->key, supported, missing);
}

static void tsk__config_demand_switch(tsk__config_reader *reader, const tsk__family_demand *demand) {
    static const char *const names[] = {"false", "true"};
    const tsk_json_value *value = tsk_json_get(reader->root, demand->key);
    int supported = strcmp(demand->only, "true") == 0;
    int fallback = demand->left_out ? strcmp(demand->left_out, "true") == 0 : !supported;
    if (tsk__config_bool(reader, demand->key, fallback) == supported) return;
    if (value) tsk__config_refuse(reader, value, demand->key, ": %s is not supported", names[!supported]);
    else if (!demand->left_out)
        tsk__config_refuse(reader, value, demand->key, " is missing; only %s is supported", demand->only);
    else
        tsk__config_refuse(reader, value, demand->key,
                           " is missing, and %s's default for it is %s; only %s is supported",
                           reader->family->name, demand->left_out, demand->only);
}

static void tsk__config_demand_follows(tsk__config_reader *reader, const tsk__family_demand *demand) {
    const tsk_json_value *value = tsk_json_get(reader->root, demand->key);
    int supported = strcmp(demand->only, "true") == 0;
    if (!tsk__config_absent(value)) tsk__config_demand_switch(reader, demand);
    else if (tsk__config_bool(reader, demand->left_out, supported) != supported)
        tsk__config_refuse(reader, value, demand->key, " is %s, which %s takes as \"%s\": %s; only %s is supported",
                           value ? "null" : "missing", reader->family->name, demand->left_out,
                           supported ? "false" : "true", demand->only);
}

static void tsk__config_demand_one(tsk__config_reader *reader, const tsk__family_demand *demand) {
    int32_t number = tsk__config_int(reader, demand->key, 1, INT32_MAX, 1);
    if (number != 1)
        tsk__config_refuse(reader, tsk_json_get(reader->root, demand->key), demand->key,
                           " is %d; only 1 is supported", (int)number);
}

/* How the family reads a key; NULL: not at all. */
static const tsk__family_key *tsk__config_key(const tsk__family *family, const char *key) {
    size_t i;
    for (i = 0; i < family->n_keys; i++)
        if (strcmp(family->keys[i].key, key) == 0) return &family->keys[i];
    return NULL;
}

/* Refuses RoPE scaling. The type "default", which transformers also writes, means plain RoPE and is accepted. */
static void tsk__config_demand_plain_rope(tsk__config_reader *reader, const tsk__family_demand *demand) {
    const tsk_json_value *value = tsk_json_get(reader->root, demand->key), *theta = tsk_json_get(value, "rope_theta");
    const tsk_json_value *given = tsk_json_get(value, "rope_type"), *type = given ? given : tsk_json_get(value, "type");
    const char *name = tsk_json_string(type, NULL);
    const tsk__family_key *key = tsk__config_key(reader->family, "rope_theta");
    double own = key ? key->value : 0, number = 0;
    if (tsk__config_absent(value) || reader->status != TSK_OK) return;
    if (!name || strcmp(name, "default") != 0) {
        tsk__config_refuse(reader, value, demand->key, ": rotary positions of the type \"%.60s\" are not supported",
                           name ? name : "unknown");
        return;
    }
    if (!tsk_json_double(tsk_json_get(reader->root, "rope_theta"), &own) && key && key->kind == TSK__KEY_THETA) return;
    if (theta && (!tsk_json_double(theta, &number) || number < own || number > own))
        tsk__config_refuse(reader, theta, demand->key, " has a rope_theta of its own, other than the configuration's");
}

#define TSK__CONFIG_UNQUANTISED "use the folder of BF16, F16 or F32 weights that it was made from"

static void tsk__config_demand_plain_weights(tsk__config_reader *reader, const tsk__family_demand *demand) {
    const tsk_json_value *value = tsk_json_get(reader->root, demand->key);
    const char *method = tsk_json_string(tsk_json_get(value, "quant_method"), NULL);
    if (tsk__config_absent(value)) return;
    tsk__config_refuse(reader, value, demand->key,
                       ": quantised weights (%.60s) are not supported: " TSK__CONFIG_UNQUANTISED,
                       method ? method : "no method named");
}

static void tsk__config_demand_absent(tsk__config_reader *reader, const tsk__family_demand *demand) {
    const tsk_json_value *value = tsk_json_get(reader->root, demand->key);
    if (!tsk__config_absent(value)) tsk__config_refuse(reader, value, demand->key, " is not supported");
}

static void tsk__config_demand_all(tsk__config_reader *reader, const tsk__family_demand *demand) {
    const tsk_json_value *value = tsk_json_get(reader->root, demand->key), *element;
    if (tsk__config_absent(value) && demand->left_out) return;
    if (tsk_json_type_of(value) != TSK_JSON_ARRAY) tsk__config_fail(reader, value, demand->key, "a list of names");
    for (element = tsk_json_first(value); element && reader->status == TSK_OK; element = tsk_json_next(element)) {
        const char *name = tsk_json_string(element, NULL);
        if (!name) tsk__config_fail(reader, element, demand->key, "a list of names");
        else if (strcmp(name, demand->only) != 0)
            tsk__config_refuse(reader, element, demand->key, " names \"%.60s\"; only \"%s\" is supported", name,
                               demand->only);
    }
}

static void tsk__config_demand(tsk__config_reader *reader, const tsk__family_demand *demand) {
    switch (demand->kind) {
    case TSK__DEMAND_TEXT: tsk__config_demand_text(reader, demand); break;
    case TSK__DEMAND_SWITCH: tsk__config_demand_switch(reader, demand); break;
    case TSK__DEMAND_FOLLOWS: tsk__config_demand_follows(reader, demand); break;
    case TSK__DEMAND_ONE: tsk__config_demand_one(reader, demand); break;
    case TSK__DEMAND_ABSENT: tsk__config_demand_absent(reader, demand); break;
    case TSK__DEMAND_ALL: tsk__config_demand_all(reader, demand); break;
    case TSK__DEMAND_PLAIN_ROPE: tsk__config_demand_plain_rope(reader, demand); break;
    case TSK__DEMAND_PLAIN_WEIGHTS: tsk__config_demand_plain_weights(reader, demand); break;
    }
}

/* ---- relations between fields */

/* Also for configurations that a host program made itself. `where` names it in messages. */
static tsk_status tsk__config_check_sizes(const tsk_model_config *c, const char *where, tsk_error *error) {
#define TSK__CONFIG_REQUIRE(condition, ...) \
    if (!(condition)) return tsk__error_set(error, TSK_ERROR_CONFIG, where, TSK_NO_OFFSET, __VA_ARGS__)
    TSK__CONFIG_REQUIRE((int)c->family >= 0 && (int)c->family < TSK__FAMILIES, "'%s': family has no value %d",
                        tsk__error_path(where), (int)c->family);
    TSK__CONFIG_REQUIRE(c->d_model > 0 && c->n_layers > 0 && c->n_heads > 0 && c->n_kv_heads > 0 && c->head_dim > 0 &&
                            c->mlp_hidden_size > 0 && c->vocab_size > 0 && c->embedding_size > 0 &&
                            c->max_sequence_length > 0,
                        "'%s': every size must be positive", tsk__error_path(where));
    TSK__CONFIG_REQUIRE(c->d_model <= 1 << 17 && c->n_layers <= 1 << 12 && c->mlp_hidden_size <= 1 << 20 &&
                            c->embedding_size <= 1 << 24 && c->max_sequence_length <= TSK__MAX_LENGTH &&
                            c->n_heads <= 1 << 12,
                        "'%s': a size is beyond what any model of this architecture has", tsk__error_path(where));
    TSK__CONFIG_REQUIRE(tsk__family_of(c)->has_head_dim || (int64_t)c->n_heads * c->head_dim == c->d_model,
                        "'%s': d_model %d is not n_heads %d times a whole head size", tsk__error_path(where),
                        (int)c->d_model, (int)c->n_heads);
    TSK__CONFIG_REQUIRE(c->head_dim <= 1 << 17, "'%s': head size %d is beyond what any model of this architecture has",
                        tsk__error_path(where), (int)c->head_dim);
    TSK__CONFIG_REQUIRE(!tsk__family_of(c)->by_blocks || (c->block_length > 0 && c->block_length <= TSK__MAX_BLOCK),
                        "'%s': block_length %d is not from 1 to %d", tsk__error_path(where), (int)c->block_length,
                        TSK__MAX_BLOCK);
    TSK__CONFIG_REQUIRE(c->head_dim % 2 == 0, "'%s': head size %d is odd, which rotary positions cannot have",
                        tsk__error_path(where), (int)c->head_dim);
    TSK__CONFIG_REQUIRE(c->n_kv_heads <= c->n_heads && c->n_heads % c->n_kv_heads == 0,
                        "'%s': n_heads %d is not a multiple of n_kv_heads %d", tsk__error_path(where), (int)c->n_heads,
                        (int)c->n_kv_heads);
    TSK__CONFIG_REQUIRE(c->embedding_size >= c->vocab_size, "'%s': embedding_size %d is below vocab_size %d",
                        tsk__error_path(where), (int)c->embedding_size, (int)c->vocab_size);
    TSK__CONFIG_REQUIRE(c->mask_token_id >= 0 && c->mask_token_id < c->embedding_size,
                        "'%s': mask_token_id %d is outside the vocabulary of %d", tsk__error_path(where),
                        (int)c->mask_token_id, (int)c->embedding_size);
    TSK__CONFIG_REQUIRE(c->rope_theta > 0 && c->rms_norm_eps > 0 && c->rope_theta <= FLT_MAX,
                        "'%s': rope_theta and rms_norm_eps must be positive", tsk__error_path(where));
    return TSK_OK;
}

static tsk_status tsk__config_check_eos(const tsk_model_config *c, const char *where, tsk_error *error) {
    int32_t i;
    TSK__CONFIG_REQUIRE(c->n_eos_token_ids >= 0 && c->n_eos_token_ids <= TSK_MAX_EOS_TOKENS,
                        "'%s': n_eos_token_ids %d is not from 0 to %d",
                        tsk__error_path(where), (int)c->n_eos_token_ids, TSK_MAX_EOS_TOKENS);
    for (i = -1; i < c->n_eos_token_ids; i++) {
        int32_t id = i < 0 ? c->eos_token_id : c->eos_token_ids[i];
        TSK__CONFIG_REQUIRE(id >= 0 && id < c->embedding_size,
                            "'%s': eos_token_id %d is outside the vocabulary of %d", tsk__error_path(where),
                            (int)id, (int)c->embedding_size);
        TSK__CONFIG_REQUIRE(id != c->mask_token_id, "'%s': mask_token_id and eos_token_id are both %d",
                            tsk__error_path(where), (int)id);
    }
    return TSK_OK;
}
#undef TSK__CONFIG_REQUIRE

static tsk_status tsk__config_check(const tsk_model_config *c, const char *where, tsk_error *error) {
    tsk_status status = tsk__config_check_sizes(c, where, error);
    return status == TSK_OK ? tsk__config_check_eos(c, where, error) : status;
}

int tsk_config_is_eos(const tsk_model_config *config, int32_t id) {
    int32_t i;
    if (!config) return 0;
    for (i = 0; i < config->n_eos_token_ids; i++)
        if (config->eos_token_ids[i] == id) return 1;
    return id == config->eos_token_id;
}

static void tsk__config_add_eos(tsk__config_reader *reader, const tsk_json_value *value, tsk_model_config *c) {
    int32_t id = tsk__config_integer(reader, value, "eos_token_id", 0, INT32_MAX);
    if (reader->status != TSK_OK || tsk_config_is_eos(c, id)) return;
    if (c->n_eos_token_ids == TSK_MAX_EOS_TOKENS)
        tsk__config_refuse(reader, value, "eos_token_id", ": more than %d tokens that end a text are not supported",
                           TSK_MAX_EOS_TOKENS);
    else c->eos_token_ids[c->n_eos_token_ids++] = id;
    c->eos_token_id = c->eos_token_ids[0];
}

/* Adds the end-of-sequence ids of config.json or generation_config.json, one or a list, that are not there yet. */
static void tsk__config_read_eos(tsk__config_reader *reader, tsk_model_config *c) {
    const tsk_json_value *value = tsk_json_get(reader->root, "eos_token_id"), *element;
    if (tsk__config_absent(value)) return;
    if (tsk_json_type_of(value) != TSK_JSON_ARRAY) tsk__config_add_eos(reader, value, c);
    for (element = tsk_json_first(value); element; element = tsk_json_next(element))
        tsk__config_add_eos(reader, element, c);
}

/* multi_query_attention is the older way to say how many there are: 1 or n_heads. */
static int32_t tsk__config_kv_heads(tsk__config_reader *reader, int32_t n_heads) {
    const tsk_json_value *multi_query = tsk_json_get(reader->root, "multi_query_attention");
    int is_single = tsk__config_bool(reader, "multi_query_attention", 0);
    int32_t older = is_single ? 1 : n_heads, n = tsk__config_int(reader, "n_kv_heads", 1, 1 << 12, older);
    if (reader->status == TSK_OK && !tsk__config_absent(multi_query) && n != older)
        reader->status = tsk__error_set(reader->error, TSK_ERROR_CONFIG, reader->path, tsk_json_offset(multi_query),
                                        "'%s': \"multi_query_attention\" %s means n_kv_heads %d, but that is %d",
                                        tsk__error_path(reader->path),
                                        is_single ? "true" : "false", (int)older, (int)n);
    return n;
}

/* ---- reading: see tsk__family_key */

/* What stands in for a key that is missing: 1 and *out; 0 where it must be there. */
static int tsk__config_otherwise(const tsk__family_key *key, const tsk_json_value *value, const tsk_model_config *c,
                                 int32_t *out) {
    if (key->missing == TSK__MISSING_ERROR || (key->missing == TSK__MISSING_NULL_FIELD && !value)) return 0;
    if (key->missing == TSK__MISSING_VALUE) *out = (int32_t)key->value;
    else memcpy(out, (const char *)c + key->of, sizeof *out);
    return 1;
}

static int32_t tsk__config_read_integer(tsk__config_reader *reader, const tsk__family_key *key,
                                        const tsk_model_config *c) {
    const tsk_json_value *value = tsk_json_get(reader->root, key->key);
    int32_t number;
    if (tsk__config_absent(value) && tsk__config_otherwise(key, value, c, &number)) return number;
    return tsk__config_integer(reader, value, key->key, key->low, key->high);
}

static int tsk__config_read_switch(tsk__config_reader *reader, const tsk__family_key *key, const tsk_model_config *c) {
    const tsk_json_value *value = tsk_json_get(reader->root, key->key);
    int32_t fallback = 0;
    if (!tsk__config_otherwise(key, NULL, c, &fallback) && tsk__config_absent(value))
        tsk__config_fail(reader, value, key->key, "true or false");
    return tsk__config_bool(reader, key->key, fallback);
}

/* Where the file has it in both places, >>family's demands have seen to it that they agree. */
static float tsk__config_read_positive(tsk__config_reader *reader, const tsk__family_key *key) {
    const tsk_json_value *value = tsk_json_get(reader->root, key->key);
    if (key->kind == TSK__KEY_THETA && tsk__config_absent(value))
        value = tsk_json_get(tsk_json_get(reader->root, "rope_parameters"), key->key);
    return tsk__config_positive(reader, value, key->key, key->missing == TSK__MISSING_ERROR ? 0 : key->value);
}

static void tsk__config_read_key(tsk__config_reader *reader, const tsk__family_key *key, tsk_model_config *c) {
    char *field = (char *)c + key->field;
    int32_t integer = 0, of = 0;
    float number;
    switch (key->kind) {
    case TSK__KEY_INTEGER: integer = tsk__config_read_integer(reader, key, c); break;
    case TSK__KEY_KV_HEADS: integer = tsk__config_kv_heads(reader, c->n_heads); break;
    case TSK__KEY_SWITCH: integer = tsk__config_read_switch(reader, key, c); break;
    case TSK__KEY_RATIO:
        memcpy(&of, (const char *)c + key->of, sizeof of);
        integer = of * tsk__config_read_integer(reader, key, c);
        break;
    case TSK__KEY_FIXED: integer = (int32_t)key->value; break;
    case TSK__KEY_POSITIVE:
    case TSK__KEY_THETA:
        number = tsk__config_read_positive(reader, key);
        memcpy(field, &number, sizeof number);
        return;
    case TSK__KEY_END_IDS: tsk__config_read_eos(reader, c); return;
    }
    memcpy(field, &integer, sizeof integer);
}

/* A head's size where the file does not say it. */
static void tsk__config_derive_head_dim(tsk__config_reader *reader, tsk_model_config *c) {
    if (reader->status != TSK_OK || c->n_heads <= 0 || c->head_dim) return;
    c->head_dim = c->d_model / c->n_heads;
    if (c->head_dim * c->n_heads == c->d_model || !reader->family->has_head_dim) return;
    tsk__config_fail(reader, NULL, "head_dim", "there where the heads do not share out hidden_size");
}

static void tsk__config_read(tsk__config_reader *reader, tsk_model_config *c) {
    const tsk__family *family;
    size_t i;
    memset(c, 0, sizeof *c);
    tsk__config_find_family(reader);
    if (reader->status != TSK_OK) return;
    family = reader->family;
    c->family = (tsk_family)(family - tsk__families);
    c->eos_token_id = -1;
    tsk__config_check_architectures(reader);
    for (i = 0; i < family->n_demands; i++) tsk__config_demand(reader, &family->demands[i]);
    for (i = 0; i < family->n_keys; i++) tsk__config_read_key(reader, &family->keys[i], c);
    tsk__config_derive_head_dim(reader, c);
    c->qkv_bias |= c->linear_bias;
}

static tsk_status tsk__config_open(tsk__config_reader *reader, const tsk_json *document, const char *path,
                                   tsk_error *error) {
    reader->root = tsk_json_root(document);
    reader->path = path;
    reader->family = NULL;
    reader->error = error;
    reader->status = TSK_OK;
    if (tsk_json_type_of(reader->root) == TSK_JSON_OBJECT) return TSK_OK;
    return tsk__error_set(error, TSK_ERROR_CONFIG, path, 0, "'%s' holds no JSON object", tsk__error_path(path));
}

/* config.json. It may leave the end-of-sequence id to generation_config.json: then that is -1. */
static tsk_status tsk__config_parse(const tsk_json *document, const char *path, tsk_model_config *out,
                                    tsk_error *error) {
    tsk__config_reader reader;
    tsk_status status = tsk__config_open(&reader, document, path, error);
    if (status != TSK_OK) return status;
    tsk__config_read(&reader, out);
    if (reader.status == TSK_OK) reader.status = tsk__config_check_sizes(out, path, error);
    return reader.status == TSK_OK && out->n_eos_token_ids ? tsk__config_check_eos(out, path, error) : reader.status;
}

/* generation_config.json, of which only the end-of-sequence ids count. */
static tsk_status tsk__config_parse_generation(const tsk_json *document, const char *path, tsk_model_config *out,
                                               tsk_error *error) {
    tsk__config_reader reader;
    tsk_status status = tsk__config_open(&reader, document, path, error);
    if (status != TSK_OK) return status;
    tsk__config_read_eos(&reader, out);
    return reader.status == TSK_OK && out->n_eos_token_ids ? tsk__config_check_eos(out, path, error) : reader.status;
}

/* Bytes of all tensors in bf16. */
static uint64_t tsk__config_weights_size(const tsk_model_config *c) {
    tsk__weight_id id = tsk__family_first();
    uint64_t size = 0, shape[2];
    do {
        tsk__family_shape(c, &id, shape);
        size += shape[0] * shape[1] * 2;
    } while (tsk__family_next(c, &id));
    return size;
}

/* ---- the folder */

typedef struct tsk__shard {
    const char *name;          /* in the index document, or a constant */
    tsk_safetensors *file;
} tsk__shard;

typedef struct tsk__index_entry { /* one line of the index */
    const char *tensor, *shard;
    uint64_t offset;
} tsk__index_entry;

/* Tensors by which weight they are, so that a loader asks for what it needs by meaning. */
struct tsk_folder {
    tsk_host host;
    tsk_model_config config;
    tsk_json *index;           /* NULL: one file */
    tsk__index_entry *entries; /* [n_entries] the index, sorted by tensor name */
    size_t n_entries;
    tsk__shard *shards;
    size_t n_shards, shard_capacity;
    tsk_folder_tensor *tensors; /* [n_tensors] in the model's order */
    int32_t *tensor_shard;     /* [n_tensors] */
    int32_t *lookup;           /* [n_lookup] by tsk__folder_slot: index into tensors, -1 for none */
    size_t n_tensors, tensor_capacity, tensor_shard_capacity, n_lookup, lookup_capacity;
    size_t dir_length;
    char path[1];              /* the folder's path and room for a file name */
};

#define TSK__FOLDER_NAME_ROOM 300

/* The folder's path with `name` appended; valid until the next call. */
static const char *tsk__folder_path(tsk_folder *folder, const char *name) {
    snprintf(folder->path + folder->dir_length, TSK__FOLDER_NAME_ROOM, "/%s", name);
    return folder->path;
}

static int tsk__folder_compare_entries(const void *a, const void *b) {
    return strcmp(((const tsk__index_entry *)a)->tensor, ((const tsk__index_entry *)b)->tensor);
}

static const tsk__index_entry *tsk__folder_entry_of(const tsk_folder *folder, const char *tensor) {
    tsk__index_entry key;
    key.tensor = tensor;
    key.shard = NULL;
    key.offset = 0;
    return folder->n_entries ? (const tsk__index_entry *)bsearch(&key, folder->entries, folder->n_entries, sizeof key,
                                                                 tsk__folder_compare_entries)
                             : NULL;
}

/* A shard must be a file of this folder: an index from a stranger could otherwise name any file of the machine. */
static int tsk__folder_name_ok(const char *name, size_t length) {
    return length > 0 && length < 256 && strlen(name) == length && !strchr(name, '/') && !strchr(name, '\\') &&
           strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static tsk_status tsk__folder_json(tsk_folder *folder, const char *name, tsk_json **out, tsk_error *error) {
    tsk_text text;
    tsk_status status;
    const char *path = tsk__folder_path(folder, name);
    memset(&text, 0, sizeof text);
    text.allocator = folder->host.allocator;
    status = tsk_read_file(path, TSK__CONFIG_MAX_FILE, &folder->host, &text, error);
    if (status == TSK_OK) status = tsk_json_parse(text.data, text.length, path, folder->host.allocator, out, error);
    tsk_text_free(&text);
    return status;
}

static int tsk__folder_has(tsk_folder *folder, const char *name) {
    return tsk__file_exists(tsk__folder_path(folder, name), &folder->host);
}

static tsk_status tsk__folder_read_index(tsk_folder *folder, tsk_error *error) {
    static const char name[] = "model.safetensors.index.json";
    const tsk_json_value *map, *entry;
    size_t i = 0, length, key_length;
    tsk_status status = tsk__folder_json(folder, name, &folder->index, error);
    const char *path = tsk__folder_path(folder, name);
    if (status != TSK_OK) return status;
    map = tsk_json_get(tsk_json_root(folder->index), "weight_map");
    if (tsk_json_type_of(map) != TSK_JSON_OBJECT)
        return tsk__error_set(error, TSK_ERROR_CONFIG, path, TSK_NO_OFFSET, "'%s': \"weight_map\" must be an object",
                              tsk__error_path(path));
    folder->n_entries = tsk_json_count(map);
    folder->entries =
        (tsk__index_entry *)tsk__memory_new(folder->host.allocator, folder->n_entries, sizeof *folder->entries);
    if (!folder->entries) return tsk__error_memory(error, path, folder->n_entries * sizeof *folder->entries);
    for (entry = tsk_json_first(map); entry; entry = tsk_json_next(entry), i++) {
        folder->entries[i].tensor = tsk_json_key(entry, &key_length);
        folder->entries[i].shard = tsk_json_string(entry, &length);
        folder->entries[i].offset = tsk_json_offset(entry);
        if (!folder->entries[i].shard || !tsk__folder_name_ok(folder->entries[i].shard, length))
            return tsk__error_set(error, TSK_ERROR_CONFIG, path, tsk_json_offset(entry),
                                  "'%s': tensor '%.80s' must name a file of this folder, not '%.80s'",
                                  tsk__error_path(path), folder->entries[i].tensor,
                                  folder->entries[i].shard ? folder->entries[i].shard : "something that is no text");
    }
    qsort(folder->entries, folder->n_entries, sizeof *folder->entries, tsk__folder_compare_entries);
    for (i = 1; i < folder->n_entries; i++)
        if (strcmp(folder->entries[i].tensor, folder->entries[i - 1].tensor) == 0)
            return tsk__error_set(error, TSK_ERROR_CONFIG, path, folder->entries[i].offset,
                                  "'%s': tensor '%.80s' is listed twice", tsk__error_path(path),
                                  folder->entries[i].tensor);
    return TSK_OK;
}

/* The shard of that name, opened when first asked for. */
static tsk_status tsk__folder_shard(tsk_folder *folder, const char *name, int32_t *out, tsk_error *error) {
    size_t i;
    tsk_status status;
    for (i = 0; i < folder->n_shards && strcmp(folder->shards[i].name, name) != 0; i++) {
    }
    *out = (int32_t)i;
    if (i < folder->n_shards) return TSK_OK;
    if (!tsk__memory_reserve(folder->host.allocator, &folder->shards, &folder->shard_capacity, i + 1,
                             sizeof *folder->shards))
        return tsk__error_memory(error, "the list of shards", (i + 1) * sizeof *folder->shards);
    folder->shards[i].name = name;
    folder->shards[i].file = NULL;
    status = tsk_safetensors_open(tsk__folder_path(folder, name), &folder->host, &folder->shards[i].file, error);
    if (status == TSK_OK) folder->n_shards++;
    return status;
}

static void tsk__folder_shape_text(int n_dims, const uint64_t *shape, char *out, size_t size) {
    int i;
    size_t used = (size_t)snprintf(out, size, "[");
    for (i = 0; i < n_dims && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%llu", i ? ", " : "", (unsigned long long)shape[i]);
    if (used < size) snprintf(out + used, size - used, "]");
}

static tsk_status tsk__folder_check_tensor(tsk_folder *folder, const tsk_tensor_info *info, const char *shard,
                                           int n_dims, const uint64_t *shape, tsk_error *error) {
    char expected[64], found[200];
    const char *path = tsk__folder_path(folder, shard);
    if (info->dtype != TSK_DTYPE_F32 && info->dtype != TSK_DTYPE_F16 && info->dtype != TSK_DTYPE_BF16)
        return tsk__error_set(error, TSK_ERROR_TENSOR, path, info->offset,
                              "'%s': tensor '%.120s' has type %s; expected F32, F16 or BF16", tsk__error_path(path),
                              info->name, tsk_dtype_name(info->dtype));
    if (info->n_dims == n_dims && memcmp(info->shape, shape, (size_t)n_dims * sizeof *shape) == 0) return TSK_OK;
    tsk__folder_shape_text(n_dims, shape, expected, sizeof expected);
    tsk__folder_shape_text(info->n_dims, info->shape, found, sizeof found);
    return tsk__error_set(error, TSK_ERROR_TENSOR, path, info->offset,
                          "'%s': tensor '%.120s' has shape %s; expected %s by config.json", tsk__error_path(path),
                          info->name, found, expected);
}

static size_t tsk__folder_slot(const tsk_folder *folder, const tsk__weight_id *id) {
    size_t index = tsk__family_index(&folder->config, id->layer, (tsk__part)id->part, id->expert);
    return index * 2 + (size_t)id->is_bias;
}

/* Makes room for one more tensor, and for slots up to its own, so that a claim of more layers than the files hold costs
   nothing. */
static tsk_status tsk__folder_grow(tsk_folder *folder, size_t slot, tsk_error *error) {
    const tsk_allocator *allocator = folder->host.allocator;
    size_t needed = folder->n_tensors + 1;
    if (!tsk__memory_reserve(allocator, &folder->tensors, &folder->tensor_capacity, needed, sizeof *folder->tensors) ||
        !tsk__memory_reserve(allocator, &folder->tensor_shard, &folder->tensor_shard_capacity, needed,
                             sizeof(int32_t)) ||
        !tsk__memory_reserve(allocator, &folder->lookup, &folder->lookup_capacity, slot + 1, sizeof(int32_t)))
        return tsk__error_memory(error, "the list of tensors", needed * sizeof *folder->tensors);
    while (folder->n_lookup <= slot) folder->lookup[folder->n_lookup++] = -1;
    return TSK_OK;
}

static tsk_status tsk__folder_missing(tsk_folder *folder, const char *file, const char *tensor, tsk_error *error) {
    const char *path = tsk__folder_path(folder, file);
    return tsk__error_set(error, TSK_ERROR_TENSOR, path, TSK_NO_OFFSET, "'%s': tensor '%s' is missing",
                          tsk__error_path(path), tensor);
}

static tsk_status tsk__folder_add(tsk_folder *folder, const tsk__weight_id *id, tsk_error *error) {
    char name[TSK__FAMILY_NAME];
    uint64_t shape[2];
    const tsk__index_entry *listed;
    tsk_folder_tensor *tensor;
    int32_t shard;
    tsk_status status = tsk__folder_grow(folder, tsk__folder_slot(folder, id), error);
    if (status != TSK_OK) return status;
    tsk__family_name(&folder->config, id, name);
    tsk__family_shape(&folder->config, id, shape);
    listed = tsk__folder_entry_of(folder, name);
    if (folder->index && !listed) return tsk__folder_missing(folder, "model.safetensors.index.json", name, error);
    status = tsk__folder_shard(folder, listed ? listed->shard : "model.safetensors", &shard, error);
    if (status != TSK_OK) return status;
    tensor = &folder->tensors[folder->n_tensors];
    tensor->shard = folder->shards[shard].name;
    tensor->info = tsk_safetensors_find(folder->shards[shard].file, name);
    if (!tensor->info) return tsk__folder_missing(folder, tensor->shard, name, error);
    folder->tensor_shard[folder->n_tensors] = shard;
    folder->lookup[tsk__folder_slot(folder, id)] = (int32_t)folder->n_tensors++;
    return tsk__folder_check_tensor(folder, tensor->info, tensor->shard,
                                    tsk__family_is_vector(&folder->config, id) ? 1 : 2, shape, error);
}

/* Weights of another architecture must not be dropped in silence. Two kinds are known to be harmless: tables of rotary
   frequencies, and the head of a model whose head is tied. */
static int tsk__folder_is_harmless(const tsk_folder *folder, const char *name) {
    size_t length = strlen(name);
    if (length >= 8 && strcmp(name + length - 8, "inv_freq") == 0) return 1;
    return folder->config.weight_tying &&
           strcmp(name, tsk__family_part_of(&folder->config, TSK__PART_HEAD)->weight) == 0;
}

static int tsk__folder_compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static tsk_status tsk__folder_check_unknown(tsk_folder *folder, tsk_error *error) {
    const char **known = (const char **)tsk__memory_new(folder->host.allocator, folder->n_tensors, sizeof *known);
    tsk_status status = TSK_OK;
    size_t i, j;
    if (!known) return tsk__error_memory(error, "tensor names", folder->n_tensors * sizeof *known);
    for (i = 0; i < folder->n_tensors; i++) known[i] = folder->tensors[i].info->name;
    qsort(known, folder->n_tensors, sizeof *known, tsk__folder_compare_names);
    for (i = 0; i < folder->n_entries && status == TSK_OK; i++) {
        const char *name = folder->entries[i].tensor, *path;
        if (bsearch(&name, known, folder->n_tensors, sizeof *known, tsk__folder_compare_names) ||
            tsk__folder_is_harmless(folder, name))
            continue;
        path = tsk__folder_path(folder, "model.safetensors.index.json");
        status = tsk__error_set(error, TSK_ERROR_TENSOR, path, folder->entries[i].offset,
                                "'%s': tensor '%.120s' is not part of this architecture", tsk__error_path(path), name);
    }
    for (i = 0; i < folder->n_shards && status == TSK_OK; i++) {
        for (j = 0; j < tsk_safetensors_count(folder->shards[i].file) && status == TSK_OK; j++) {
            const tsk_tensor_info *info = tsk_safetensors_get(folder->shards[i].file, j);
            const tsk__index_entry *listed = tsk__folder_entry_of(folder, info->name);
            const char *path;
            if (bsearch(&info->name, known, folder->n_tensors, sizeof *known, tsk__folder_compare_names)
                    ? !folder->index || (listed && strcmp(listed->shard, folder->shards[i].name) == 0)
                    : tsk__folder_is_harmless(folder, info->name))
                continue;
            path = tsk__folder_path(folder, folder->shards[i].name);
            status = listed && strcmp(listed->shard, folder->shards[i].name) != 0
                         ? tsk__error_set(error, TSK_ERROR_TENSOR, path, info->offset,
                                          "'%s': tensor '%.120s' is also here, but the index places it in '%s'",
                                          tsk__error_path(path), info->name, listed->shard)
                         : tsk__error_set(error, TSK_ERROR_TENSOR, path, info->offset,
                                          "'%s': tensor '%.120s' is not part of this architecture",
                                          tsk__error_path(path), info->name);
        }
    }
    tsk__memory_delete(folder->host.allocator, known);
    return status;
}

static int tsk__folder_ends_with(const char *name, const char *suffix) {
    size_t length = strlen(name), end = strlen(suffix);
    return length >= end && strcmp(name + length - end, suffix) == 0;
}

/* The first of the folder's tensors, as far as they are known, whose name ends so; NULL for none. */
static const char *tsk__folder_suffixed(const tsk_folder *folder, const char *suffix) {
    size_t i, j;
    for (i = 0; i < folder->n_entries; i++)
        if (tsk__folder_ends_with(folder->entries[i].tensor, suffix)) return folder->entries[i].tensor;
    for (i = 0; i < folder->n_shards; i++)
        for (j = 0; j < tsk_safetensors_count(folder->shards[i].file); j++) {
            const char *name = tsk_safetensors_get(folder->shards[i].file, j)->name;
            if (tsk__folder_ends_with(name, suffix)) return name;
        }
    return NULL;
}

/* Where tensors are not as they should be: TSK_OK, or an error that says that they are quantised, by the names that the
   usual programs give to what they add. */
static tsk_status tsk__folder_check_quantised(tsk_folder *folder, tsk_error *error) {
    static const struct { const char *suffix, *method;
    } marks[] = {{".qweight", "GPTQ or AWQ"},
                 {".qzeros", "GPTQ or AWQ"},
                 {".weight_packed", "compressed-tensors"},
                 {".weight.quant_map", "bitsandbytes"},
                 {".weight.absmax", "bitsandbytes"},
                 {".SCB", "bitsandbytes"},
                 {".weight_scale_inv", "FP8 in blocks"},
                 {".weight_scale", "compressed-tensors or FP8"},
                 {".W_q", "HQQ"},
                 {".codebooks", "AQLM"},
                 {".scales", "MLX or GPTQ"}};
    size_t i;
    for (i = 0; i < sizeof marks / sizeof marks[0]; i++) {
        const char *name = tsk__folder_suffixed(folder, marks[i].suffix);
        if (!name) continue;
        folder->path[folder->dir_length] = 0;
        return tsk__error_set(
            error, TSK_ERROR_UNSUPPORTED, folder->path, TSK_NO_OFFSET,
            "'%s': quantised weights (%s: tensor '%.80s') are not supported: " TSK__CONFIG_UNQUANTISED,
            tsk__error_path(folder->path), marks[i].method, name);
    }
    return TSK_OK;
}

static tsk_status tsk__folder_resolve(tsk_folder *folder, tsk_error *error) {
    tsk__weight_id id = tsk__family_first();
    tsk_status status;
    do status = tsk__folder_add(folder, &id, error);
    while (status == TSK_OK && tsk__family_next(&folder->config, &id));
    return status == TSK_OK ? tsk__folder_check_unknown(folder, error) : status;
}

/* The tensor of a weight and its file, or NULL where the model has none. */
static const tsk_tensor_info *tsk__folder_find(const tsk_folder *folder, const tsk__weight_id *id,
                                               const tsk_safetensors **file) {
    size_t slot = tsk__folder_slot(folder, id);
    int32_t i = slot < folder->n_lookup ? folder->lookup[slot] : -1;
    if (i < 0) return NULL;
    *file = folder->shards[folder->tensor_shard[i]].file;
    return folder->tensors[i].info;
}

typedef tsk_status (*tsk__config_parser)(const tsk_json *document, const char *path, tsk_model_config *out,
                                         tsk_error *error);

static tsk_status tsk__folder_configure(tsk_folder *folder, const char *name, tsk__config_parser parse,
                                        tsk_error *error) {
    tsk_json *document = NULL;
    tsk_status status = tsk__folder_json(folder, name, &document, error);
    if (status == TSK_OK) status = parse(document, tsk__folder_path(folder, name), &folder->config, error);
    tsk_json_free(document);
    return status;
}

static tsk_status tsk__folder_read_config(tsk_folder *folder, tsk_error *error) {
    tsk_status status = tsk__folder_configure(folder, "config.json", tsk__config_parse, error);
    const char *path;
    if (status == TSK_OK && tsk__folder_has(folder, "generation_config.json"))
        status = tsk__folder_configure(folder, "generation_config.json", tsk__config_parse_generation, error);
    path = tsk__folder_path(folder, "config.json");
    if (status == TSK_OK && !folder->config.n_eos_token_ids)
        status = tsk__error_set(error, TSK_ERROR_CONFIG, path, TSK_NO_OFFSET,
                                "'%s': \"eos_token_id\" is missing, in generation_config.json too",
                                tsk__error_path(path));
    return status;
}

static tsk_status tsk__folder_load(tsk_folder *folder, tsk_error *error) {
    tsk_status status = tsk__folder_read_config(folder, error), quantised;
    if (status == TSK_OK && !tsk__folder_has(folder, "model.safetensors")) {
        if (!tsk__folder_has(folder, "model.safetensors.index.json")) {
            int pickled =
                tsk__folder_has(folder, "pytorch_model.bin") || tsk__folder_has(folder, "pytorch_model.bin.index.json");
            folder->path[folder->dir_length] = 0;
            return tsk__error_set(error, TSK_ERROR_IO, folder->path, TSK_NO_OFFSET,
                                  "'%s' holds neither model.safetensors nor model.safetensors.index.json%s",
                                  tsk__error_path(folder->path),
                                  pickled
                                      ? "; the weights in its pytorch_model.bin must first be converted to safetensors"
                                      : "");
        }
        status = tsk__folder_read_index(folder, error);
    }
    if (status == TSK_OK) status = tsk__folder_resolve(folder, error);
    quantised = status == TSK_ERROR_TENSOR ? tsk__folder_check_quantised(folder, error) : TSK_OK;
    return quantised == TSK_OK ? status : quantised;
}

/* A folder of which nothing has been read. */
static tsk_status tsk__folder_new(const char *dir, const tsk_host *host, tsk_folder **out, tsk_error *error) {
    const tsk_allocator *allocator = tsk__memory_allocator(host);
    size_t length = dir ? strlen(dir) : 0;
    tsk_folder *folder;
    *out = NULL;
    if (!length) return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "no model folder given");
    while (length > 1 && dir[length - 1] == '/') length--;
    folder = (tsk_folder *)tsk__memory_new_zeroed(allocator, 1, sizeof *folder + length + TSK__FOLDER_NAME_ROOM);
    if (!folder) return tsk__error_memory(error, dir, sizeof *folder + length);
    if (host) folder->host = *host;
    folder->host.allocator = allocator;
    memcpy(folder->path, dir, length);
    folder->dir_length = length;
    *out = folder;
    return TSK_OK;
}

tsk_status tsk_folder_open(const char *dir, const tsk_host *host, tsk_folder **out, tsk_error *error) {
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_folder_open", "out");
    status = tsk__folder_new(dir, host, out, error);
    if (status == TSK_OK) status = tsk__folder_load(*out, error);
    if (status == TSK_OK) return TSK_OK;
    tsk_folder_free(*out);
    *out = NULL;
    return status;
}

tsk_status tsk_config_load(const char *dir, const tsk_host *host, tsk_model_config *out, tsk_error *error) {
    tsk_folder *folder = NULL;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_config_load", "out");
    memset(out, 0, sizeof *out);
    status = tsk__folder_new(dir, host, &folder, error);
    if (status == TSK_OK) status = tsk__folder_read_config(folder, error);
    if (status == TSK_OK) *out = folder->config;
    tsk_folder_free(folder);
    return status;
}

const char *tsk_family_name(tsk_family family) {
    return (int)family >= 0 && (int)family < TSK__FAMILIES ? tsk__families[(int)family].name : "";
}

int tsk_config_by_blocks(const tsk_model_config *config) {
    return config && (int)config->family >= 0 && (int)config->family < TSK__FAMILIES &&
           tsk__family_of(config)->by_blocks;
}

void tsk_folder_free(tsk_folder *folder) {
    const tsk_allocator *allocator;
    size_t i;
    if (!folder) return;
    allocator = folder->host.allocator;
    for (i = 0; i < folder->n_shards; i++) tsk_safetensors_free(folder->shards[i].file);
    tsk__memory_delete(allocator, folder->shards);
    tsk__memory_delete(allocator, folder->entries);
    tsk__memory_delete(allocator, folder->tensors);
    tsk__memory_delete(allocator, folder->tensor_shard);
    tsk__memory_delete(allocator, folder->lookup);
    tsk_json_free(folder->index);
    tsk__memory_delete(allocator, folder);
}

const tsk_model_config *tsk_folder_config(const tsk_folder *folder) { return folder ? &folder->config : NULL; }
size_t tsk_folder_count(const tsk_folder *folder) { return folder ? folder->n_tensors : 0; }
const tsk_folder_tensor *tsk_folder_get(const tsk_folder *folder, size_t index) {
    return folder && index < folder->n_tensors ? &folder->tensors[index] : NULL;
}
uint64_t tsk_folder_weights_size(const tsk_folder *folder) {
    uint64_t sum = 0;
    size_t i;
    for (i = 0; folder && i < folder->n_tensors; i++) sum += folder->tensors[i].info->size;
    return sum;
}

// >>random ============================================================================================================
/* A counter-based generator: a draw is a function of the seed and of what it is for (step, position, vocabulary id), so
   every backend, batch and thread count draws the same numbers, in any order. */

/* One round: two 32 x 32 -> 64 bit products, their halves crossed and mixed with the key. */
static void tsk__random_round(uint32_t c[4], uint32_t key0, uint32_t key1) {
    const uint64_t p = (uint64_t)0xD2511F53u * c[0], q = (uint64_t)0xCD9E8D57u * c[2];
    c[0] = (uint32_t)(q >> 32) ^ c[1] ^ key0;
    c[2] = (uint32_t)(p >> 32) ^ c[3] ^ key1;
    c[1] = (uint32_t)q;
    c[3] = (uint32_t)p;
}

void tsk_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c[4], key0, key1;
    int round;
    if (!counter || !key || !out) return;
    key0 = key[0];
    key1 = key[1];
    memcpy(c, counter, sizeof c);
    for (round = 0; round < 10; round++, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) tsk__random_round(c, key0, key1);
    memcpy(out, c, sizeof c);
}

static void tsk__random_words(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t out[4]) {
    uint32_t counter[4], key[2];
    counter[0] = c0;
    counter[1] = c1;
    counter[2] = c2;
    counter[3] = c3;
    key[0] = (uint32_t)seed;
    key[1] = (uint32_t)(seed >> 32);
    tsk_philox4x32(counter, key, out);
}

/* Never 0 and never 1: its logarithm, and that of minus its logarithm, are finite. */
static double tsk__random_from_word(uint32_t word) { return ((double)word + 0.5) * (1.0 / 4294967296.0); }

static double tsk__random_uniform(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, int lane) {
    uint32_t words[4];
    tsk__random_words(seed, c0, c1, c2, c3, words);
    return tsk__random_from_word(words[lane]);
}

/* The confidence of a position in a pass, under remasking RANDOM. */
static float tsk__random_confidence(uint64_t seed, int32_t position, uint32_t pass) {
    return (float)tsk__random_uniform(seed, 0, (uint32_t)position, pass, 1, 0);
}

// >>weights ===========================================================================================================
/* What a backend keeps of the weights, where they come from, and the one loader that brings the two together: it walks
   the weights that a configuration implies, asks the source for each, and hands it to the backend, which keeps it where
   it lies, copies it, or places it in a layout of its own.

   The type that weights are stored in is their own, whatever the activations' type is. */

typedef struct tsk__weight {
    const void *data;          /* [rows, cols], aligned to its elements */
    const void *scales;        /* NULL: the elements are the values. A type whose elements are small integers will have
                                  here what they are multiplied by, a row of scales for every row */
    const float *bias;         /* [rows] or NULL */
    tsk_dtype dtype;           /* of `data` */
    int32_t rows, cols;        /* outputs, inputs; a vector has one column */
} tsk__weight;

/* ---- sources */

/* A weight as its source has it. */
typedef struct tsk__stored {
    const char *name;          /* in messages */
    tsk_dtype dtype;
    int32_t rows, cols;        /* as in tsk__weight */
    uint64_t size;             /* in bytes */
    const void *data;          /* where they are in memory, at any address; NULL: they must be read */
    const tsk_safetensors *file;   /* a folder's: where they are read */
    const tsk_tensor_info *info;
    int is_made;               /* random: a backend may make them itself, as tsk__random_fill_chunk does, */
    uint32_t number;           /* which of the model's matrices, */
    float scale;               /* uniform on [-scale, scale); 0: all are ones */
} tsk__stored;

typedef struct tsk__source {
    const tsk_model_config *config;
    void (*find)(const struct tsk__source *source, const tsk__weight_id *id, tsk__stored *out);
    /* `size` bytes of it from byte `offset` on. */
    tsk_status (*read)(const struct tsk__source *source, const tsk__stored *stored, uint64_t offset, void *out,
                       size_t size, tsk_error *error);
    const tsk_folder *folder;  /* NULL: random */
    uint64_t seed;             /* of random values, */
    tsk__pool *pool;           /* and who helps to make them; NULL: nobody */
} tsk__source;

static void tsk__source_folder_find(const tsk__source *source, const tsk__weight_id *id, tsk__stored *out) {
    memset(out, 0, sizeof *out);
    out->info = tsk__folder_find(source->folder, id, &out->file);
    out->name = out->info->name;
    out->dtype = out->info->dtype;
    out->rows = (int32_t)out->info->shape[0];
    out->cols = out->info->n_dims > 1 ? (int32_t)out->info->shape[1] : 1;
    out->size = out->info->size;
    out->data = tsk_safetensors_data(out->file, out->info);
}

static tsk_status tsk__source_folder_read(const tsk__source *source, const tsk__stored *stored, uint64_t offset,
                                          void *out, size_t size, tsk_error *error) {
    (void)source;
    return tsk_safetensors_read(stored->file, stored->info, offset, out, size, error);
}

/* The tensors of a folder, which has been checked to have them all, and must outlive what is loaded. */
static tsk__source tsk__source_of_folder(const tsk_folder *folder) {
    tsk__source source;
    memset(&source, 0, sizeof source);
    source.config = &folder->config;
    source.find = tsk__source_folder_find;
    source.read = tsk__source_folder_read;
    source.folder = folder;
    return source;
}

/* ---- random weights: for benchmarks, where only their shape and an ordinary spread matter. Matrices in bf16, norms of
   ones, biases of zeros. */

typedef struct tsk__random_fill {
    uint16_t *values;              /* [count] bf16, from the matrix's element `first` on */
    uint64_t first, count, seed;
    uint32_t number;
    float scale;
} tsk__random_fill;

#define TSK__RANDOM_FILL_CHUNK ((uint64_t)1 << 16)

/* Uniform on [-scale, scale): eight values a Philox call, 16 bits each. */
static void tsk__random_fill_chunk(void *context, int chunk) {
    const tsk__random_fill *f = (const tsk__random_fill *)context;
    uint64_t begin = (uint64_t)chunk * TSK__RANDOM_FILL_CHUNK, end = begin + TSK__RANDOM_FILL_CHUNK, at;
    uint32_t words[4];
    for (at = begin; at < end && at < f->count; at++) {
        uint64_t i = f->first + at;
        float value;
        if (i % 8 == 0 || at == begin)
            tsk__random_words(f->seed, (uint32_t)(i / 8), (uint32_t)(i / 8 >> 32), f->number, 2, words);
        value = (float)(words[i % 8 / 2] >> (i % 2 * 16) & 0xffff) / 32768.0f - 1.0f;
        f->values[at] = tsk__bf16_from_float(f->scale * value);
    }
}

/* Which of the model's matrices it is, norms not counted. */
static uint32_t tsk__random_number(const tsk_model_config *c, const tsk__weight_id *id) {
    uint32_t in_layer = 0, before = 0;
    tsk__weight_id other = tsk__weight_id_of(0, (tsk__part)0, 0);
    for (; other.part < (int)TSK__PART_COUNT; other.part++) {
        if (tsk__family_is_vector(c, &other)) continue;
        in_layer += (uint32_t)tsk__family_each(c, other.part);
        if (other.part < id->part) before += (uint32_t)tsk__family_each(c, other.part);
    }
    if (id->part == (int)TSK__PART_EMBEDDING) return 0;
    if (id->layer < 0) return 1 + (uint32_t)c->n_layers * in_layer;
    return 1 + (uint32_t)id->layer * in_layer + before + (uint32_t)id->expert;
}

static void tsk__source_random_find(const tsk__source *source, const tsk__weight_id *id, tsk__stored *out) {
    int is_vector = tsk__family_is_vector(source->config, id);
    uint64_t shape[2];
    tsk__family_shape(source->config, id, shape);
    memset(out, 0, sizeof *out);
    out->name = "random weights";
    out->dtype = is_vector ? TSK_DTYPE_F32 : TSK_DTYPE_BF16;
    out->rows = (int32_t)shape[0];
    out->cols = (int32_t)shape[1];
    out->size = shape[0] * shape[1] * tsk_dtype_size(out->dtype);
    out->is_made = !id->is_bias;
    if (is_vector) return;
    out->number = tsk__random_number(source->config, id);
    out->scale = sqrtf(3.0f / (float)out->cols); /* keeps the variance of what goes through */
}

static tsk_status tsk__source_random_read(const tsk__source *source, const tsk__stored *stored, uint64_t offset,
                                          void *out, size_t size, tsk_error *error) {
    tsk__random_fill fill;
    size_t i;
    (void)error;
    if (stored->dtype == TSK_DTYPE_F32) {
        for (i = 0; i < size / sizeof(float); i++) ((float *)out)[i] = stored->is_made ? 1.0f : 0.0f;
        return TSK_OK;
    }
    fill.values = (uint16_t *)out;
    fill.first = offset / sizeof *fill.values;
    fill.count = size / sizeof *fill.values;
    fill.seed = source->seed;
    fill.number = stored->number;
    fill.scale = stored->scale;
    tsk__parallel(source->pool, (int)((fill.count + TSK__RANDOM_FILL_CHUNK - 1) / TSK__RANDOM_FILL_CHUNK),
                  tsk__random_fill_chunk, &fill);
    return TSK_OK;
}

static tsk__source tsk__source_of_random(const tsk_model_config *config, uint64_t seed) {
    tsk__source source;
    memset(&source, 0, sizeof source);
    source.config = config;
    source.find = tsk__source_random_find;
    source.read = tsk__source_random_read;
    source.seed = seed;
    return source;
}

/* ---- the loader */

/* What a backend does with a weight. */
typedef tsk_status (*tsk__weights_put)(void *backend, const tsk__weight_id *id, const tsk__stored *stored,
                                       tsk_error *error);

/* Hands every weight to the backend, in the model's order, until it fails. */
static tsk_status tsk__weights_load(const tsk__source *source, tsk__weights_put put, void *backend, tsk_error *error) {
    tsk__weight_id id = tsk__family_first();
    tsk__stored stored;
    tsk_status status;
    do {
        source->find(source, &id, &stored);
        status = put(backend, &id, &stored, error);
    } while (status == TSK_OK && tsk__family_next(source->config, &id));
    return status;
}

static uint64_t tsk__weights_total(const tsk__source *source) {
    tsk__weight_id id = tsk__family_first();
    tsk__stored stored;
    uint64_t total = 0;
    do {
        source->find(source, &id, &stored);
        total += stored.size;
    } while (tsk__family_next(source->config, &id));
    return total;
}

// >>skip ==============================================================================================================
/* TokenSkip's two rules. By STATES, tokens of a block may be stable in a step, and stable tokens skip layers K and up:
   a token's id, mask and age say whether it may be stable; the cosines from the lower layers then say whether it is.
   By ROWS, a step leaves out those tokens that cannot change what it commits, with all layers. This section does no
   arithmetic on states. */

/* ---- by states */

typedef struct tsk__skip_token {
    int32_t id;                /* its id now */
    int32_t computed_id;       /* the id with which its upper layers last ran: their K and V were made from it */
    int32_t age, refresh_age;  /* steps, and refreshes, in a row that it was skipped */
    int is_masked;
} tsk__skip_token;

/* `age` is the token's in steps or in refreshes, whichever is decided about. */
static int tsk__skip_is_allowed(const tsk_generate_options *o, const tsk__skip_token *token, int32_t age) {
    if (token->is_masked && !o->skip.masked) return 0;
    if (token->id != token->computed_id) return 0;
    return o->skip.max_age <= 0 || age < o->skip.max_age;
}

/* cosines[state * stride], state 0 .. n_states-1, of this token. The outlier test looks at each layer, the threshold at
   their mean; `mean > threshold` is strict, so that a threshold of 1 never skips. */
static int tsk__skip_similar(const float *cosines, int32_t n_states, int32_t stride, float threshold, float outlier) {
    double sum = 0;
    int32_t l;
    for (l = 0; l < n_states; l++) {
        float c = cosines[(size_t)l * (size_t)stride];
        if (!(c >= outlier)) return 0;
        sum += (double)c;
    }
    return n_states > 0 && sum / n_states > (double)threshold;
}

/* ---- by rows */

/* A position of the block, in the order of the block's list. */
typedef struct tsk__skip_slot {
    int is_masked;
    int is_changed;                /* its id is not the one with which it last ran */
    float confidence;              /* masked: of its last prediction, or by which this pass would rank it */
} tsk__skip_slot;

/* Whether a is the better confidence; one that is no number comes after all others. */
static int tsk__skip_is_better(float a, float b) { return a > b || (a == a && b != b); }

/* The `most` best masked slots run; of equals the first. */
static void tsk__skip_add_best(const tsk__skip_slot *slots, int32_t n, int32_t most, uint8_t *runs) {
    int32_t i, chosen, n_masked = 0;
    for (i = 0; i < n; i++) n_masked += slots[i].is_masked;
    for (i = 0; i < n && most >= n_masked; i++) runs[i] |= slots[i].is_masked != 0;
    for (chosen = 0; most < n_masked && chosen < most; chosen++) {
        int32_t best = -1;
        for (i = 0; i < n; i++)
            if (slots[i].is_masked && !runs[i] &&
                (best < 0 || tsk__skip_is_better(slots[i].confidence, slots[best].confidence)))
                best = i;
        runs[best] = 1;
    }
}

/* Of the masked slots on one side of slot `from` the `ahead` nearest run. */
static void tsk__skip_add_near(const tsk__skip_slot *slots, int32_t n, int32_t from, int32_t step, int32_t ahead,
                               uint8_t *runs) {
    int32_t i;
    for (i = from + step; ahead > 0 && i >= 0 && i < n; i += step) {
        if (!slots[i].is_masked) continue;
        runs[i] = 1;
        ahead--;
    }
}

/* runs[i] becomes 1 for the slots that run in a pass after the block's first: the `most` best masked ones, the changed
   ones, and on either side of each of these the `ahead` nearest masked ones. */
static void tsk__skip_rows(const tsk__skip_slot *slots, int32_t n, int32_t most, int32_t ahead, uint8_t *runs) {
    int32_t i;
    memset(runs, 0, (size_t)n);
    tsk__skip_add_best(slots, n, most, runs);
    for (i = 0; i < n; i++) {
        if (!slots[i].is_changed) continue;
        runs[i] = 1;
        tsk__skip_add_near(slots, n, i, -1, ahead, runs);
        tsk__skip_add_near(slots, n, i, 1, ahead, runs);
    }
}

// >>schedule ==========================================================================================================
/* How many predictions a step commits, and which. */

void tsk_num_transfer_tokens(int32_t mask_count, int32_t steps, int32_t *out) {
    int32_t i;
    for (i = 0; out && i < steps; i++) out[i] = mask_count / steps + (i < mask_count % steps);
}

static int tsk__select_accepts(const tsk_transfer_rule *rule, int32_t rank, float confidence) {
    switch (rule->transfer) {
    case TSK_TRANSFER_SCHEDULE: return rank <= rule->quota;
    case TSK_TRANSFER_THRESHOLD: return confidence >= rule->threshold;
    default: return (double)confidence >= 1.0 - (double)rule->factor / (rank + 1);
    }
}

/* All three rules commit candidates in order of confidence until one is not accepted. This is enough because confidence
   falls with the rank and FACTOR's bound rises. Confidence i is at confidences[i * stride]. */
static int32_t tsk__select(const tsk_transfer_rule *rule, int32_t n, const float *confidences, size_t stride,
                           uint8_t *commit) {
    int32_t rank, i;
    memset(commit, 0, (size_t)n);
    for (rank = 1; rank <= n; rank++) {
        int32_t best = -1;
        for (i = 0; i < n; i++)
            if (!commit[i] && (best < 0 || tsk__skip_is_better(confidences[(size_t)i * stride],
                                                               confidences[(size_t)best * stride])))
                best = i;
        if (rank > 1 && !tsk__select_accepts(rule, rank, confidences[(size_t)best * stride])) break;
        commit[best] = 1;
    }
    return rank - 1;
}

int32_t tsk_select(const tsk_transfer_rule *rule, int32_t n, const tsk_candidate *candidates, uint8_t *commit) {
    if (n <= 0 || !rule || !candidates || !commit) return 0;
    return tsk__select(rule, n, &candidates->confidence, sizeof *candidates / sizeof(float), commit);
}

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
    int32_t transfer, quota;   /* as tsk_select takes them, likewise the next two */
    float threshold, factor;
    int32_t is_random;         /* the confidence is a uniform draw of seed and pass */
    uint32_t pass;
    uint64_t seed;
} tsk__commit_rule;

/* What became of a candidate. */
typedef struct tsk__choice {
    int32_t id;                /* its prediction */
    float confidence;
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

// >>storage ===========================================================================================================
/* What lies in a backend's memory beside weights and activations: the cache of a request, the arena in which a batch
   has the caches of many, and the buffers of a traced pass. It is written once over what every backend does with its
   memory (allocate, release, copy, slide, upload, download): the sections below use these objects and compute no
   address. */

/* ---- the cache of a request */

typedef enum tsk__cache_part {
    TSK__CACHE_K, TSK__CACHE_V,    /* [n_layers, n_kv_heads, capacity, head_dim] each, unless an arena holds them */
    TSK__CACHE_CANVAS,             /* [length] int32: the backend's canvas, in which select commits */
    TSK__CACHE_PREDICTIONS,        /* [n_slots] tsk__prediction: the last of each slot */
    TSK__CACHE_STATES,             /* [2, n_states, n_slots, d_model] (see tsk__kv) */
    TSK__CACHE_REFRESH_STATES,     /* [2, n_states, length, d_model]: the same with a slot for each position */
    TSK__CACHE_OUTPUTS,            /* [n_slots, d_model] last computed h_L */
    TSK__CACHE_RESIDUAL,           /* [length, d_model] the residual stream of a refresh that was cut by layers */
    TSK__CACHE_PARTS
} tsk__cache_part;

/* How much a cache holds. */
typedef struct tsk__cache_shape {
    int32_t length;                /* positions of the canvas */
    int32_t capacity;              /* that there is room for in K and V: as many, or more */
    int32_t n_kept;                /* of these, so many from 0 on keep what they have when the cache is resized */
    int32_t n_slots, n_states;     /* positions of the longest block; states of each that are compared */
    int has_refresh_states, has_outputs, has_residual;
} tsk__cache_shape;

/* Room for the K and V of n_tokens positions, of many caches. */
typedef struct tsk__arena {
    tsk__backend *backend;
    int32_t n_tokens;
    void *k, *v;                   /* [n_layers, n_kv_heads, n_tokens, head_dim] each */
} tsk__arena;

typedef struct tsk__cache {
    tsk__backend *backend;
    tsk__cache_shape shape;
    const tsk__arena *arena;       /* that K and V lie in from position `offset` on; NULL: they are parts */
    int32_t offset;
    void *parts[TSK__CACHE_PARTS];
    uint64_t sizes[TSK__CACHE_PARTS]; /* bytes allocated: an earlier shape may have needed more */
} tsk__cache;

/* Bytes of K, or of V, of `length` positions. */
static uint64_t tsk__storage_kv_size(const tsk_model_config *c, uint64_t element_size, int32_t length) {
    return (uint64_t)c->n_layers * (uint64_t)c->n_kv_heads * (uint64_t)length * (uint64_t)c->head_dim * element_size;
}

static uint64_t tsk__storage_row_size(const tsk__backend *b) { return (uint64_t)b->config->d_model * b->element_size; }

/* Bytes that a part takes in this shape; 0: it has none. */
static uint64_t tsk__cache_part_size(const tsk__cache *c, tsk__cache_part part) {
    const tsk__cache_shape *s = &c->shape;
    uint64_t row = tsk__storage_row_size(c->backend), states = 2 * (uint64_t)s->n_states * row;
    switch (part) {
    case TSK__CACHE_K:
    case TSK__CACHE_V:
        return c->arena ? 0 : tsk__storage_kv_size(c->backend->config, c->backend->element_size, s->capacity);
    case TSK__CACHE_CANVAS: return (uint64_t)s->length * sizeof(int32_t);
    case TSK__CACHE_PREDICTIONS: return (uint64_t)s->n_slots * sizeof(tsk__prediction);
    case TSK__CACHE_STATES: return states * (uint64_t)s->n_slots;
    case TSK__CACHE_REFRESH_STATES: return s->has_refresh_states ? states * (uint64_t)s->length : 0;
    case TSK__CACHE_OUTPUTS: return s->has_outputs ? row * (uint64_t)s->n_slots : 0;
    case TSK__CACHE_RESIDUAL: return s->has_residual ? row * (uint64_t)s->length : 0;
    default: return 0;
    }
}

static const char *tsk__cache_part_name(tsk__cache_part part) {
    static const char *const names[] = {"the K cache",         "the V cache",
                                        "the canvas",          "the block's predictions",
                                        "TokenSkip's states",  "skip_refresh's states",
                                        "TokenSkip's outputs", "a cut refresh"};
    return names[part];
}

/* Grows one part; its contents are not kept. */
static tsk_status tsk__cache_grow(tsk__cache *c, tsk__cache_part part, tsk_error *error) {
    const tsk__backend_ops *ops = c->backend->ops;
    uint64_t size = tsk__cache_part_size(c, part);
    if (size <= c->sizes[part]) return TSK_OK;
    if (c->parts[part]) ops->release(c->backend, c->parts[part]);
    c->sizes[part] = 0;
    c->parts[part] = ops->allocate(c->backend, size);
    if (!c->parts[part]) return tsk__error_memory(error, tsk__cache_part_name(part), size);
    c->sizes[part] = size;
    return TSK_OK;
}

/* K or V, which had room for `before` positions, in new memory with its first n_kept ones. */
static tsk_status tsk__cache_rebuild(tsk__cache *c, tsk__cache_part part, int32_t before, tsk__stream *stream,
                                     tsk_error *error) {
    const tsk_model_config *m = c->backend->config;
    const tsk__backend_ops *ops = c->backend->ops;
    uint64_t token = (uint64_t)m->head_dim * c->backend->element_size, size = tsk__cache_part_size(c, part);
    char *to = (char *)ops->allocate(c->backend, size), *from = (char *)c->parts[part];
    int32_t plane;
    tsk_status status;
    if (!to) return tsk__error_memory(error, tsk__cache_part_name(part), size);
    for (plane = 0; plane < m->n_layers * m->n_kv_heads; plane++)
        ops->copy(stream, to + (uint64_t)plane * (uint64_t)c->shape.capacity * token,
                  from + (uint64_t)plane * (uint64_t)before * token, (uint64_t)c->shape.n_kept * token);
    status = ops->wait(stream, error);
    ops->release(c->backend, c->parts[part]);
    c->parts[part] = to;
    c->sizes[part] = size;
    return status;
}

/* Room for that much. The contents mean nothing after it, but for K and V of the shape's n_kept positions: where there
   are some, `stream` copies. On failure the cache can only be resized again, keeping nothing, or freed. */
static tsk_status tsk__cache_resize(tsk__cache *c, const tsk__cache_shape *shape, tsk__stream *stream,
                                    tsk_error *error) {
    int32_t before = c->shape.capacity;
    tsk_status status = TSK_OK;
    int i;
    c->shape = *shape;
    for (i = 0; i < TSK__CACHE_PARTS && status == TSK_OK; i++) {
        int is_rebuilt = i <= TSK__CACHE_V && shape->n_kept && shape->capacity != before;
        status = is_rebuilt ? tsk__cache_rebuild(c, (tsk__cache_part)i, before, stream, error)
                            : tsk__cache_grow(c, (tsk__cache_part)i, error);
    }
    return status;
}

static void tsk__cache_free(tsk__cache *c) {
    int i;
    for (i = 0; i < TSK__CACHE_PARTS; i++) {
        if (c->parts[i]) c->backend->ops->release(c->backend, c->parts[i]);
        c->parts[i] = NULL;
        c->sizes[i] = 0;
    }
}

/* What a pass is told of the cache. `of_refresh`: TokenSkip's states are those of refreshes. */
static tsk__kv tsk__cache_view(const tsk__cache *c, int of_refresh) {
    uint64_t start = (uint64_t)c->offset * (uint64_t)c->backend->config->head_dim * c->backend->element_size;
    tsk__kv kv;
    memset(&kv, 0, sizeof kv);
    kv.k = c->arena ? (char *)c->arena->k + start : c->parts[TSK__CACHE_K];
    kv.v = c->arena ? (char *)c->arena->v + start : c->parts[TSK__CACHE_V];
    kv.length = c->shape.length;
    kv.capacity = c->arena ? c->arena->n_tokens : c->shape.capacity;
    kv.tokens = c->parts[TSK__CACHE_CANVAS];
    kv.predictions = c->parts[TSK__CACHE_PREDICTIONS];
    kv.states = c->parts[of_refresh ? TSK__CACHE_REFRESH_STATES : TSK__CACHE_STATES];
    kv.outputs = c->parts[TSK__CACHE_OUTPUTS];
    kv.n_slots = of_refresh ? c->shape.length : c->shape.n_slots;
    kv.n_states = c->shape.n_states;
    return kv;
}

static void tsk__cache_set_canvas(tsk__cache *c, tsk__stream *stream, const int32_t *canvas) {
    c->backend->ops->upload(stream, c->parts[TSK__CACHE_CANVAS], canvas, (uint64_t)c->shape.length * sizeof *canvas);
}

/* Copies the parts that both need in the same size, of caches that lie in no arena. is_same [TSK__CACHE_PARTS]: 1 for
   those, and for what `to` does not need. */
static void tsk__cache_copy(tsk__cache *to, const tsk__cache *from, tsk__stream *stream, int *is_same) {
    int i;
    for (i = 0; i < TSK__CACHE_PARTS; i++) {
        uint64_t size = tsk__cache_part_size(to, (tsk__cache_part)i);
        is_same[i] = size == 0 || size == tsk__cache_part_size(from, (tsk__cache_part)i);
        if (size && is_same[i]) to->backend->ops->copy(stream, to->parts[i], from->parts[i], size);
    }
}

/* Row `index` of a part whose rows are d_model wide. */
static void *tsk__cache_row(const tsk__cache *c, tsk__cache_part part, uint64_t index) {
    return (char *)c->parts[part] + index * tsk__storage_row_size(c->backend);
}

/* The state of a slot becomes that which a refresh has just left for a position (in the second half of its states). */
static void tsk__cache_adopt_state(tsk__cache *c, tsk__stream *stream, int32_t slot, int32_t position, int32_t state) {
    uint64_t to = (uint64_t)state * (uint64_t)c->shape.n_slots + (uint64_t)slot;
    uint64_t from = (uint64_t)(c->shape.n_states + state) * (uint64_t)c->shape.length + (uint64_t)position;
    c->backend->ops->copy(stream, tsk__cache_row(c, TSK__CACHE_STATES, to),
                          tsk__cache_row(c, TSK__CACHE_REFRESH_STATES, from), tsk__storage_row_size(c->backend));
}

/* Row `row` of the residual stream becomes the output of a slot. */
static void tsk__cache_adopt_output(tsk__cache *c, tsk__stream *stream, int32_t slot, int32_t row) {
    uint64_t size = tsk__storage_row_size(c->backend);
    c->backend->ops->copy(stream, tsk__cache_row(c, TSK__CACHE_OUTPUTS, (uint64_t)slot),
                          (const char *)stream->x + (uint64_t)row * size, size);
}

/* n rows of the residual stream, from number `first` on, are put aside, or come back. */
static void tsk__cache_save_residual(tsk__cache *c, tsk__stream *stream, int32_t first, int32_t n) {
    uint64_t size = tsk__storage_row_size(c->backend);
    c->backend->ops->copy(stream, c->parts[TSK__CACHE_RESIDUAL], (const char *)stream->x + (uint64_t)first * size,
                          (uint64_t)n * size);
}
static void tsk__cache_load_residual(const tsk__cache *c, tsk__stream *stream, int32_t first, int32_t n) {
    uint64_t size = tsk__storage_row_size(c->backend);
    c->backend->ops->copy(stream, (char *)stream->x + (uint64_t)first * size, c->parts[TSK__CACHE_RESIDUAL],
                          (uint64_t)n * size);
}

/* K (or V) of a layer, as a pass sees it, to host f32 [n_kv_heads, length, head_dim]. Waits. */
static void tsk__kv_read(const tsk__kv *kv, tsk__stream *stream, int32_t layer, int is_v, float *out) {
    const tsk__backend *b = stream->backend;
    uint64_t head_dim = (uint64_t)b->config->head_dim, n = (uint64_t)kv->length * head_dim,
             plane = (uint64_t)kv->capacity * head_dim * b->element_size;
    int32_t h;
    for (h = 0; h < b->config->n_kv_heads; h++) {
        uint64_t from = ((uint64_t)layer * (uint64_t)b->config->n_kv_heads + (uint64_t)h) * plane;
        b->ops->download(stream, out + (uint64_t)h * n, (const char *)(is_v ? kv->v : kv->k) + from, n);
    }
}

/* ---- the arena of a batch */

static void tsk__arena_free(tsk__arena *a) {
    if (a->k) a->backend->ops->release(a->backend, a->k);
    if (a->v) a->backend->ops->release(a->backend, a->v);
    a->k = a->v = NULL;
}

static tsk_status tsk__arena_create(tsk__arena *a, tsk__backend *backend, int32_t n_tokens, tsk_error *error) {
    uint64_t size = tsk__storage_kv_size(backend->config, backend->element_size, n_tokens);
    a->backend = backend;
    a->n_tokens = n_tokens;
    a->k = backend->ops->allocate(backend, size);
    a->v = a->k ? backend->ops->allocate(backend, size) : NULL;
    if (a->k && a->v) return TSK_OK;
    tsk__arena_free(a);
    return tsk__error_memory(error, "the batch's cache", 2 * size);
}

/* The cache's K and V are the arena's from position `offset` on. */
static void tsk__cache_place(tsk__cache *c, const tsk__arena *arena, int32_t offset) {
    c->arena = arena;
    c->offset = offset;
}

/* Moves K and V down to `offset`. */
static void tsk__cache_move(tsk__cache *c, tsk__stream *stream, int32_t offset) {
    const tsk_model_config *m = c->backend->config;
    uint64_t token = (uint64_t)m->head_dim * c->backend->element_size, plane = (uint64_t)c->arena->n_tokens * token;
    uint64_t to = (uint64_t)offset * token, from = (uint64_t)c->offset * token,
             size = (uint64_t)c->shape.length * token;
    c->backend->ops->slide(stream, c->arena->k, m->n_layers * m->n_kv_heads, plane, to, from, size);
    c->backend->ops->slide(stream, c->arena->v, m->n_layers * m->n_kv_heads, plane, to, from, size);
    c->offset = offset;
}

/* ---- the buffers of a traced pass */

/* What a tracer watches a stream with: the captures, and x before a layer and between its halves. */
typedef struct tsk__watch {
    tsk__stream *stream;           /* NULL: there are no buffers */
    tsk__captures captures;
    void *block_input, *middle;    /* [max_rows, d_model] */
} tsk__watch;

#define TSK__WATCH_BUFFERS 12

/* The buffers, each with its width; at most TSK__WATCH_BUFFERS. */
static int tsk__watch_list(tsk__watch *w, const tsk_model_config *c, void ***buffers, uint64_t *widths) {
    uint64_t d = (uint64_t)c->d_model, q = (uint64_t)c->n_heads * (uint64_t)c->head_dim,
             k = (uint64_t)c->n_kv_heads * (uint64_t)c->head_dim;
    uint64_t m = (uint64_t)c->mlp_hidden_size;
    int n = 0;
#define TSK__WATCH_BUFFER(field, width) (buffers[n] = &(field), widths[n++] = (width))
    TSK__WATCH_BUFFER(w->captures.norm, d);
    TSK__WATCH_BUFFER(w->captures.q, q);
    TSK__WATCH_BUFFER(w->captures.k, k);
    TSK__WATCH_BUFFER(w->captures.v, k);
    if (tsk__family_part_of(c, TSK__PART_Q_NORM)->weight) TSK__WATCH_BUFFER(w->captures.q_norm, q);
    if (tsk__family_part_of(c, TSK__PART_K_NORM)->weight) TSK__WATCH_BUFFER(w->captures.k_norm, k);
    TSK__WATCH_BUFFER(w->captures.k_rope, k);
    TSK__WATCH_BUFFER(w->captures.gate, m);
    TSK__WATCH_BUFFER(w->captures.up, m);
    TSK__WATCH_BUFFER(w->captures.projection, d);
    TSK__WATCH_BUFFER(w->block_input, d);
    TSK__WATCH_BUFFER(w->middle, d);
#undef TSK__WATCH_BUFFER
    return n;
}

static void tsk__watch_free(tsk__watch *w) {
    void **buffers[TSK__WATCH_BUFFERS];
    uint64_t widths[TSK__WATCH_BUFFERS];
    int i, n;
    if (!w->stream) return;
    n = tsk__watch_list(w, w->stream->backend->config, buffers, widths);
    for (i = 0; i < n; i++) {
        if (*buffers[i]) w->stream->backend->ops->release(w->stream->backend, *buffers[i]);
        *buffers[i] = NULL;
    }
    w->stream = NULL;
}

/* Buffers for all rows that the stream may have. */
static tsk_status tsk__watch_create(tsk__watch *w, tsk__stream *stream, tsk_error *error) {
    tsk__backend *b = stream->backend;
    void **buffers[TSK__WATCH_BUFFERS];
    uint64_t widths[TSK__WATCH_BUFFERS];
    int i, n;
    w->stream = stream;
    n = tsk__watch_list(w, b->config, buffers, widths);
    for (i = 0; i < n; i++) {
        uint64_t size = (uint64_t)stream->max_rows * widths[i] * b->element_size;
        *buffers[i] = b->ops->allocate(b, size);
        if (*buffers[i]) continue;
        tsk__watch_free(w);
        return tsk__error_memory(error, "tracing buffers", size);
    }
    return TSK_OK;
}

/* n rows of x as they are now, into block_input or middle. */
static void tsk__watch_x(const tsk__watch *w, void *to, int32_t n) {
    w->stream->backend->ops->copy(w->stream, to, w->stream->x, (uint64_t)n * tsk__storage_row_size(w->stream->backend));
}

/* n rows of activations, of a capture or of the stream, to host f32 [n, width]. Waits. */
static void tsk__stream_read(tsk__stream *stream, const void *rows, int32_t n, uint64_t width, float *out) {
    stream->backend->ops->download(stream, out, rows, (uint64_t)n * width);
}

// >>cpu ===============================================================================================================
/* The CPU backend: f32 activations, weights used where they lie (F32, F16 or BF16, usually a mapped file).

   Everything that multiplies is one core: a panel of 32 outputs is copied from the weights, converted and transposed,
   into [k][32] f32, and then serves every row of the pass:

       weights [out][in]            panel [k][32]               y[row][32] += x[row][k] * panel[k]
       out 0  k k k k k k ...       k 0  o o o o ... o
       out 1  k k k k k k ...  -->  k 1  o o o o ... o    -->   vectors lie along the outputs, so that an output is
       ...                          ...                         one chain of additions over k in a single lane

   That chain, cut every TSK__CPU_DEPTH steps (more exact, and the panel stays in the first cache level), is the same
   for every row, whatever tile the row falls in, however wide the vectors are and however many threads run: results are
   therefore bit for bit the same for all of these. Attention runs on the same core: K is a weight matrix
   [position][head_dim], and V already is a panel.

   The vector code is written once, in macros over the few primitives that differ between instruction sets. Sets:
   AVX-512F, AVX2 + FMA + F16C, and NEON, found at run time: these multiply and add in one rounding, and give the same
   bits. And 128-bit vectors in plain C for any other machine, which round twice. Infinities and NaN are needed: do not
   compile with -ffast-math. An operation uses up to 80 KB of stack and allocates nothing. */

#define TSK__CPU_X86 TSK__PLATFORM_X86
#define TSK__CPU_ARM TSK__PLATFORM_ARM

#if TSK__CPU_X86
#ifdef __cplusplus
}
#endif
/* GCC takes the deliberately undefined registers of its own AVX-512 intrinsics for a mistake. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#ifdef __cplusplus
extern "C" {
#endif
#endif

#define TSK__CPU_WIDTH 32          /* outputs in a panel */
#define TSK__CPU_DEPTH 256 /* steps of k in a panel, and keys in a block of attention: part of the sum's order */
#define TSK__CPU_QUERIES 32        /* query rows that share a packed block of keys */
#define TSK__CPU_CHUNK 256         /* vocabulary rows in a chunk of the head: part of the sum's order */
#define TSK__CPU_HEAD_ROWS 128     /* rows in a sweep of the head, which bounds its scratch memory */
#define TSK__CPU_MAX_TILE 12       /* rows in the largest tile of any kernel set */
#define TSK__CPU_SERIAL 131072     /* multiplications worth less than waking another thread for */
#define TSK__CPU_ALIGNED __attribute__((aligned(64)))

/* The block of weights that a task packs next. It is prefetched line by line during the multiplication, because the
   processor's own prefetcher does not follow 32 streams. */
typedef struct tsk__cpu_prefetch {
    const char *base;              /* of its first row */
    size_t stride;                 /* bytes from row to row */
    int32_t at, lines;             /* the next line, of how many; line i is the (i / 32)th of row i % 32 */
} tsk__cpu_prefetch;

/* What differs between instruction sets. */
typedef struct tsk__cpu_kernels {
    const char *name, *description;
    int tile_rows;                 /* the most rows `tile` takes */
    /* panel[k][32] = rows first .. first+31 (the last row again where there are fewer), columns k0 .. k0+kn-1 */
    void (*pack)(const tsk__weight *w, int32_t first, int32_t k0, int32_t kn, float *panel);
    /* y[rows][32] = or += x[rows][kn] * panel[kn][32] */
    void (*tile)(int rows, const float *x, size_t ldx, int32_t kn, const float *panel, size_t ldp, float *y, size_t ldy,
                 int add, tsk__cpu_prefetch *prefetch);
    float (*dot)(const float *x, const float *y, int32_t n);
    float (*scale_max)(float *x, int32_t n, float scale);  /* x *= scale, the largest; n a multiple of 16 */
    float (*exp_sum)(float *x, int32_t n, float max);      /* x = exp(x - max), their sum; n a multiple of 16 */
    void (*silu)(float *gate, const float *up, int32_t n); /* gate = gate / (1 + exp(-gate)) * up */
    void (*add)(float *y, const float *x, int32_t n);      /* y += x */
    void (*scale)(const float *x, float scale, const float *weight, float *out,
                  int32_t n); /* out = x * scale * weight */
} tsk__cpu_kernels;

typedef struct tsk__cpu_model {
    const tsk_model_config *config;
    const tsk_allocator *allocator;
    tsk__pool *pool;
    const tsk__cpu_kernels *kernels;
    tsk__weight *weights;              /* by tsk__family_index; norms and biases in f32, a tied head the embedding */
    float *rope_frequencies;           /* [head_dim / 2] */
    void **blocks;                     /* what was allocated for the weights */
    size_t n_blocks, block_capacity;
} tsk__cpu_model;

static const tsk__weight *tsk__cpu_weight(const tsk__cpu_model *model, int32_t layer, tsk__part part) {
    return &model->weights[tsk__family_index(model->config, layer, part, 0)];
}
/* NULL where the family has no such norm. */
static const float *tsk__cpu_norm_weight(const tsk__cpu_model *model, int32_t layer, tsk__part part) {
    return (const float *)tsk__cpu_weight(model, layer, part)->data;
}

/* ---- vector primitives: load, store, set, add, sub, mul, div, fma, min, max; and
   pow2(t)         2^n, where t = n + 1.5 * 2^23
   from(x, low, v) v where not x < low, else 0
   half(p)         as many IEEE half floats from memory
   even, odd       the two bf16 in every 32 bits, as f32
   columns         the first four columns of as many rows, `stride` bytes apart, as four vectors
   min and max give their second argument when either is NaN, so that NaN passes through. */

#define TSK__INLINE static inline __attribute__((always_inline))

typedef float tsk__v128 __attribute__((vector_size(16)));
typedef int32_t tsk__i128 __attribute__((vector_size(16)));
typedef uint32_t tsk__u128 __attribute__((vector_size(16)));
#define TSK__TARGET_v128

TSK__INLINE tsk__v128 tsk__v128_load(const float *p) { tsk__v128 v; memcpy(&v, p, sizeof v); return v; }
TSK__INLINE void tsk__v128_store(float *p, tsk__v128 v) { memcpy(p, &v, sizeof v); }
TSK__INLINE tsk__v128 tsk__v128_set(float a) { tsk__v128 v = {a, a, a, a}; return v; }
TSK__INLINE tsk__v128 tsk__v128_add(tsk__v128 a, tsk__v128 b) { return a + b; }
TSK__INLINE tsk__v128 tsk__v128_sub(tsk__v128 a, tsk__v128 b) { return a - b; }
TSK__INLINE tsk__v128 tsk__v128_mul(tsk__v128 a, tsk__v128 b) { return a * b; }
TSK__INLINE tsk__v128 tsk__v128_div(tsk__v128 a, tsk__v128 b) { return a / b; }
TSK__INLINE tsk__v128 tsk__v128_fma(tsk__v128 a, tsk__v128 b, tsk__v128 c) { return a * b + c; }
TSK__INLINE tsk__v128 tsk__v128_choose(tsk__i128 which, tsk__v128 a, tsk__v128 b) {
    return (tsk__v128)((which & (tsk__i128)a) | (~which & (tsk__i128)b));
}
TSK__INLINE tsk__v128 tsk__v128_min(tsk__v128 a, tsk__v128 b) { return tsk__v128_choose((tsk__i128)(a < b), a, b); }
TSK__INLINE tsk__v128 tsk__v128_max(tsk__v128 a, tsk__v128 b) { return tsk__v128_choose((tsk__i128)(a > b), a, b); }
TSK__INLINE tsk__v128 tsk__v128_pow2(tsk__v128 t) { return (tsk__v128)(((tsk__u128)t + 127) << 23); }
TSK__INLINE tsk__v128 tsk__v128_from(tsk__v128 x, tsk__v128 low, tsk__v128 v) {
    return (tsk__v128)(~(tsk__i128)(x < low) & (tsk__i128)v);
}
TSK__INLINE tsk__v128 tsk__v128_half(const char *p) {
    uint16_t h[4];
    tsk__v128 v;
    memcpy(h, p, sizeof h);
    v[0] = tsk__float_from_half(h[0]);
    v[1] = tsk__float_from_half(h[1]);
    v[2] = tsk__float_from_half(h[2]);
    v[3] = tsk__float_from_half(h[3]);
    return v;
}
TSK__INLINE tsk__v128 tsk__v128_even(tsk__v128 v) { return (tsk__v128)((tsk__u128)v << 16); }
TSK__INLINE tsk__v128 tsk__v128_odd(tsk__v128 v) { return (tsk__v128)((tsk__u128)v & 0xffff0000u); }
TSK__INLINE float tsk__v128_one(const char *p) { float a; memcpy(&a, p, sizeof a); return a; }
TSK__INLINE tsk__v128 tsk__v128_column(const char *rows, size_t stride) {
    tsk__v128 v = {tsk__v128_one(rows), tsk__v128_one(rows + stride), tsk__v128_one(rows + 2 * stride),
                   tsk__v128_one(rows + 3 * stride)};
    return v;
}
TSK__INLINE void tsk__v128_columns(const char *rows, size_t stride, tsk__v128 *c0, tsk__v128 *c1, tsk__v128 *c2,
                                   tsk__v128 *c3) {
    *c0 = tsk__v128_column(rows, stride);
    *c1 = tsk__v128_column(rows + 4, stride);
    *c2 = tsk__v128_column(rows + 8, stride);
    *c3 = tsk__v128_column(rows + 12, stride);
}

#if TSK__CPU_X86
typedef __m256 tsk__v256;
#define TSK__TARGET_v256 __attribute__((target("avx2,fma,f16c")))
#define TSK__INLINE_v256 TSK__INLINE TSK__TARGET_v256

TSK__INLINE_v256 __m256 tsk__v256_load(const float *p) { return _mm256_loadu_ps(p); }
TSK__INLINE_v256 void tsk__v256_store(float *p, __m256 v) { _mm256_storeu_ps(p, v); }
TSK__INLINE_v256 __m256 tsk__v256_set(float a) { return _mm256_set1_ps(a); }
TSK__INLINE_v256 __m256 tsk__v256_add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
TSK__INLINE_v256 __m256 tsk__v256_sub(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }
TSK__INLINE_v256 __m256 tsk__v256_mul(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
TSK__INLINE_v256 __m256 tsk__v256_div(__m256 a, __m256 b) { return _mm256_div_ps(a, b); }
TSK__INLINE_v256 __m256 tsk__v256_fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
TSK__INLINE_v256 __m256 tsk__v256_min(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
TSK__INLINE_v256 __m256 tsk__v256_max(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
TSK__INLINE_v256 __m256 tsk__v256_pow2(__m256 t) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(t), _mm256_set1_epi32(127)), 23));
}
TSK__INLINE_v256 __m256 tsk__v256_from(__m256 x, __m256 low, __m256 v) {
    return _mm256_and_ps(_mm256_cmp_ps(x, low, _CMP_NLT_UQ), v);
}
TSK__INLINE_v256 __m256 tsk__v256_half(const char *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
TSK__INLINE_v256 __m256 tsk__v256_even(__m256 v) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 16));
}
TSK__INLINE_v256 __m256 tsk__v256_odd(__m256 v) {
    return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(~0xffff)));
}
TSK__INLINE_v256 __m128 tsk__v256_four(const char *p) { return _mm_loadu_ps((const float *)(const void *)p); }
/* Rows i and i + 4, four columns of each. */
TSK__INLINE_v256 __m256 tsk__v256_rows(const char *rows, size_t stride) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(tsk__v256_four(rows)), tsk__v256_four(rows + 4 * stride), 1);
}
TSK__INLINE_v256 void tsk__v256_columns(const char *rows, size_t stride, __m256 *c0, __m256 *c1, __m256 *c2,
                                        __m256 *c3) {
    const __m256 r0 = tsk__v256_rows(rows, stride), r1 = tsk__v256_rows(rows + stride, stride);
    const __m256 r2 = tsk__v256_rows(rows + 2 * stride, stride), r3 = tsk__v256_rows(rows + 3 * stride, stride);
    const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(r0, r1)), b = _mm256_castps_pd(_mm256_unpacklo_ps(r2, r3));
    const __m256d c = _mm256_castps_pd(_mm256_unpackhi_ps(r0, r1)), d = _mm256_castps_pd(_mm256_unpackhi_ps(r2, r3));
    *c0 = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
    *c1 = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    *c2 = _mm256_castpd_ps(_mm256_unpacklo_pd(c, d));
    *c3 = _mm256_castpd_ps(_mm256_unpackhi_pd(c, d));
}

typedef __m512 tsk__v512;
#define TSK__TARGET_v512 __attribute__((target("avx512f")))
#define TSK__INLINE_v512 TSK__INLINE TSK__TARGET_v512

TSK__INLINE_v512 __m512 tsk__v512_load(const float *p) { return _mm512_loadu_ps(p); }
TSK__INLINE_v512 void tsk__v512_store(float *p, __m512 v) { _mm512_storeu_ps(p, v); }
TSK__INLINE_v512 __m512 tsk__v512_set(float a) { return _mm512_set1_ps(a); }
TSK__INLINE_v512 __m512 tsk__v512_add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
TSK__INLINE_v512 __m512 tsk__v512_sub(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }
TSK__INLINE_v512 __m512 tsk__v512_mul(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
TSK__INLINE_v512 __m512 tsk__v512_div(__m512 a, __m512 b) { return _mm512_div_ps(a, b); }
TSK__INLINE_v512 __m512 tsk__v512_fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
TSK__INLINE_v512 __m512 tsk__v512_min(__m512 a, __m512 b) { return _mm512_min_ps(a, b); }
TSK__INLINE_v512 __m512 tsk__v512_max(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
TSK__INLINE_v512 __m512 tsk__v512_pow2(__m512 t) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_castps_si512(t), _mm512_set1_epi32(127)), 23));
}
TSK__INLINE_v512 __m512 tsk__v512_from(__m512 x, __m512 low, __m512 v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, low, _CMP_NLT_UQ), v);
}
TSK__INLINE_v512 __m512 tsk__v512_half(const char *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
TSK__INLINE_v512 __m512 tsk__v512_even(__m512 v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 16));
}
TSK__INLINE_v512 __m512 tsk__v512_odd(__m512 v) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(~0xffff)));
}
TSK__INLINE_v512 __m128 tsk__v512_four(const char *p) { return _mm_loadu_ps((const float *)(const void *)p); }
/* Rows i, i + 4, i + 8 and i + 12, four columns of each. */
TSK__INLINE_v512 __m512 tsk__v512_rows(const char *rows, size_t stride) {
    const __m512 a =
        _mm512_insertf32x4(_mm512_castps128_ps512(tsk__v512_four(rows)), tsk__v512_four(rows + 4 * stride), 1);
    return _mm512_insertf32x4(_mm512_insertf32x4(a, tsk__v512_four(rows + 8 * stride), 2),
                              tsk__v512_four(rows + 12 * stride), 3);
}
TSK__INLINE_v512 void tsk__v512_columns(const char *rows, size_t stride, __m512 *c0, __m512 *c1, __m512 *c2,
                                        __m512 *c3) {
    const __m512 r0 = tsk__v512_rows(rows, stride), r1 = tsk__v512_rows(rows + stride, stride);
    const __m512 r2 = tsk__v512_rows(rows + 2 * stride, stride), r3 = tsk__v512_rows(rows + 3 * stride, stride);
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(r0, r1)), b = _mm512_castps_pd(_mm512_unpacklo_ps(r2, r3));
    const __m512d c = _mm512_castps_pd(_mm512_unpackhi_ps(r0, r1)), d = _mm512_castps_pd(_mm512_unpackhi_ps(r2, r3));
    *c0 = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
    *c1 = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    *c2 = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
    *c3 = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
}
#endif

#if TSK__CPU_ARM
typedef float32x4_t tsk__neon;
#define TSK__TARGET_neon

TSK__INLINE float32x4_t tsk__neon_load(const float *p) { return vld1q_f32(p); }
TSK__INLINE void tsk__neon_store(float *p, float32x4_t v) { vst1q_f32(p, v); }
TSK__INLINE float32x4_t tsk__neon_set(float a) { return vdupq_n_f32(a); }
TSK__INLINE float32x4_t tsk__neon_add(float32x4_t a, float32x4_t b) { return vaddq_f32(a, b); }
TSK__INLINE float32x4_t tsk__neon_sub(float32x4_t a, float32x4_t b) { return vsubq_f32(a, b); }
TSK__INLINE float32x4_t tsk__neon_mul(float32x4_t a, float32x4_t b) { return vmulq_f32(a, b); }
TSK__INLINE float32x4_t tsk__neon_div(float32x4_t a, float32x4_t b) { return vdivq_f32(a, b); }
TSK__INLINE float32x4_t tsk__neon_fma(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
/* (not vminq, vmaxq: they give NaN for NaN in either place) */
TSK__INLINE float32x4_t tsk__neon_min(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
TSK__INLINE float32x4_t tsk__neon_max(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
TSK__INLINE float32x4_t tsk__neon_pow2(float32x4_t t) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vaddq_u32(vreinterpretq_u32_f32(t), vdupq_n_u32(127)), 23));
}
TSK__INLINE float32x4_t tsk__neon_from(float32x4_t x, float32x4_t low, float32x4_t v) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), vcltq_f32(x, low)));
}
TSK__INLINE float32x4_t tsk__neon_half(const char *p) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8((const uint8_t *)p)));
}
TSK__INLINE float32x4_t tsk__neon_even(float32x4_t v) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(v), 16));
}
TSK__INLINE float32x4_t tsk__neon_odd(float32x4_t v) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0xffff0000u)));
}
TSK__INLINE float32x4_t tsk__neon_four(const char *p) { return vreinterpretq_f32_u8(vld1q_u8((const uint8_t *)p)); }
TSK__INLINE void tsk__neon_columns(const char *rows, size_t stride, float32x4_t *c0, float32x4_t *c1, float32x4_t *c2,
                                   float32x4_t *c3) {
    const float32x4_t r0 = tsk__neon_four(rows), r1 = tsk__neon_four(rows + stride);
    const float32x4_t r2 = tsk__neon_four(rows + 2 * stride), r3 = tsk__neon_four(rows + 3 * stride);
    const float64x2_t a = vreinterpretq_f64_f32(vtrn1q_f32(r0, r1)), b = vreinterpretq_f64_f32(vtrn1q_f32(r2, r3));
    const float64x2_t c = vreinterpretq_f64_f32(vtrn2q_f32(r0, r1)), d = vreinterpretq_f64_f32(vtrn2q_f32(r2, r3));
    *c0 = vreinterpretq_f32_f64(vtrn1q_f64(a, b));
    *c1 = vreinterpretq_f32_f64(vtrn1q_f64(c, d));
    *c2 = vreinterpretq_f32_f64(vtrn2q_f64(a, b));
    *c3 = vreinterpretq_f32_f64(vtrn2q_f64(c, d));
}
#endif

/* ---- kernels over those primitives. V names the set, LANES is its vector's length. */

/* Adds 16 partial sums, in an order of its own that no instruction set changes. */
static float tsk__cpu_sum16(float lanes[16]) {
    int width, i;
    for (width = 8; width; width /= 2)
        for (i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

#define TSK__CPU_EXP_LOW -87.3365448f  /* below it the result would be subnormal, and is 0 */
#define TSK__CPU_EXP_HIGH 88.37f       /* above it the exponent would overflow: the result stays 2.39e38 */

/* exp within 1.1 ulp: x = n ln 2 + r with |r| <= ln 2 / 2, then 1 + r + r^2 q(r) by a minimax polynomial of our own
   (relative error 4e-9), times 2^n. Adding 1.5 * 2^23 rounds to the integer n and leaves it in the low bits. */
#define TSK__CPU_DEFINE_EXP(V) \
TSK__INLINE TSK__TARGET_##V tsk__##V tsk__##V##_exp(tsk__##V x) { \
    const tsk__##V magic = tsk__##V##_set(12582912.0f), low = tsk__##V##_set(TSK__CPU_EXP_LOW); \
    const tsk__##V c = tsk__##V##_max(low, tsk__##V##_min(tsk__##V##_set(TSK__CPU_EXP_HIGH), x)); \
    const tsk__##V t = tsk__##V##_fma(c, tsk__##V##_set(1.44269502f), magic), n = tsk__##V##_sub(t, magic); \
    tsk__##V r = tsk__##V##_fma(n, tsk__##V##_set(-0.693145751953f), c), q = tsk__##V##_set(0.00138144672f); \
    r = tsk__##V##_fma(n, tsk__##V##_set(-1.42860677e-06f), r); \
    q = tsk__##V##_fma(q, r, tsk__##V##_set(0.00836878084f)); \
    q = tsk__##V##_fma(q, r, tsk__##V##_set(0.0416683927f)); \
    q = tsk__##V##_fma(q, r, tsk__##V##_set(0.166665196f)); \
    q = tsk__##V##_fma(q, r, tsk__##V##_set(0.49999994f)); \
    q = tsk__##V##_add(tsk__##V##_fma(tsk__##V##_mul(r, r), q, r), tsk__##V##_set(1.0f)); \
    return tsk__##V##_from(x, low, tsk__##V##_mul(q, tsk__##V##_pow2(t))); \
}

/* Elementwise, a short last vector through a copy. */
#define TSK__CPU_DEFINE_SILU(V, LANES) \
TSK__INLINE TSK__TARGET_##V void tsk__cpu_##V##_silu_vector(float *gate, const float *up) { \
    const tsk__##V g = tsk__##V##_load(gate), one = tsk__##V##_set(1.0f); \
    const tsk__##V e = tsk__##V##_exp(tsk__##V##_sub(tsk__##V##_set(0.0f), g)); \
    tsk__##V##_store(gate, tsk__##V##_mul(tsk__##V##_div(g, tsk__##V##_add(one, e)), tsk__##V##_load(up))); \
} \
static TSK__TARGET_##V void tsk__cpu_##V##_silu(float *gate, const float *up, int32_t n) { \
    float g[LANES] = {0}, u[LANES] = {0}; \
    int32_t i, rest = n % (LANES); \
    for (i = 0; i + (LANES) <= n; i += (LANES)) tsk__cpu_##V##_silu_vector(gate + i, up + i); \
    if (!rest) return; \
    memcpy(g, gate + i, (size_t)rest * sizeof *g); \
    memcpy(u, up + i, (size_t)rest * sizeof *u); \
    tsk__cpu_##V##_silu_vector(g, u); \
    memcpy(gate + i, g, (size_t)rest * sizeof *g); \
}

/* Products and sums alone: a scalar rounds as a lane does, so the tails need no care. */
#define TSK__CPU_DEFINE_ELEMENTWISE(V, LANES) \
static TSK__TARGET_##V void tsk__cpu_##V##_add(float *y, const float *x, int32_t n) { \
    int32_t i; \
    for (i = 0; i + (LANES) <= n; i += (LANES)) \
        tsk__##V##_store(y + i, tsk__##V##_add(tsk__##V##_load(y + i), tsk__##V##_load(x + i))); \
    for (; i < n; i++) y[i] += x[i]; \
} \
static TSK__TARGET_##V void tsk__cpu_##V##_scale(const float *x, float scale, const float *weight, float *out, \
                                                 int32_t n) { \
    const tsk__##V s = tsk__##V##_set(scale); \
    int32_t i; \
    for (i = 0; i + (LANES) <= n; i += (LANES)) \
        tsk__##V##_store(out + i, \
                         tsk__##V##_mul(tsk__##V##_mul(tsk__##V##_load(x + i), s), tsk__##V##_load(weight + i))); \
    for (; i < n; i++) out[i] = x[i] * scale * weight[i]; \
}

/* Reductions keep 16 partial sums in every instruction set, so that all add in the same order. */
#define TSK__CPU_DEFINE_REDUCTIONS(V, LANES) \
TSK__INLINE TSK__TARGET_##V void tsk__cpu_##V##_dot_step(float lanes[16], const float *x, const float *y) { \
    int i; \
    for (i = 0; i < 16; i += (LANES)) \
        tsk__##V##_store(lanes + i, \
                         tsk__##V##_fma(tsk__##V##_load(x + i), tsk__##V##_load(y + i), tsk__##V##_load(lanes + i))); \
} \
static TSK__TARGET_##V float tsk__cpu_##V##_dot(const float *x, const float *y, int32_t n) { \
    float lanes[16] = {0}, last_x[16] = {0}, last_y[16] = {0}; \
    int32_t i; \
    for (i = 0; i + 16 <= n; i += 16) tsk__cpu_##V##_dot_step(lanes, x + i, y + i); \
    memcpy(last_x, x + i, (size_t)(n - i) * sizeof *x); \
    memcpy(last_y, y + i, (size_t)(n - i) * sizeof *y); \
    tsk__cpu_##V##_dot_step(lanes, last_x, last_y); \
    return tsk__cpu_sum16(lanes); \
} \
static TSK__TARGET_##V float tsk__cpu_##V##_scale_max(float *x, int32_t n, float scale) { \
    float lanes[LANES]; \
    tsk__##V max = tsk__##V##_set(-INFINITY), v; \
    int32_t i; \
    for (i = 0; i < n; i += (LANES)) { \
        v = tsk__##V##_mul(tsk__##V##_load(x + i), tsk__##V##_set(scale)); \
        tsk__##V##_store(x + i, v); \
        max = tsk__##V##_max(v, max); \
    } \
    tsk__##V##_store(lanes, max); \
    for (i = 1; i < (LANES); i++) \
        if (lanes[i] > lanes[0]) lanes[0] = lanes[i]; \
    return lanes[0]; \
} \
static TSK__TARGET_##V float tsk__cpu_##V##_exp_sum(float *x, int32_t n, float max) { \
    float lanes[16] = {0}; \
    tsk__##V v; \
    int32_t i; \
    for (i = 0; i < n; i += (LANES)) { \
        v = tsk__##V##_exp(tsk__##V##_sub(tsk__##V##_load(x + i), tsk__##V##_set(max))); \
        tsk__##V##_store(x + i, v); \
        tsk__##V##_store(lanes + i % 16, tsk__##V##_add(tsk__##V##_load(lanes + i % 16), v)); \
    } \
    return tsk__cpu_sum16(lanes); \
}

/* Transposes LANES rows of 64 bytes at a time, where they lie or, at the edges and for F16, from a copy. Two bf16 move
   as one 32-bit word and part only on their way out. */
#define TSK__CPU_DEFINE_PACK(V, LANES) \
TSK__INLINE TSK__TARGET_##V void tsk__cpu_##V##_pack_block(tsk_dtype dtype, const char *rows, size_t stride, \
                                                           float *to) { \
    int c; \
    for (c = 0; c < 16; c += 4, rows += 16) { \
        tsk__##V v0, v1, v2, v3; \
        tsk__##V##_columns(rows, stride, &v0, &v1, &v2, &v3); \
        if (dtype == TSK_DTYPE_BF16) { \
            tsk__##V##_store(to, tsk__##V##_even(v0)); \
            tsk__##V##_store(to + TSK__CPU_WIDTH, tsk__##V##_odd(v0)); \
            tsk__##V##_store(to + 2 * TSK__CPU_WIDTH, tsk__##V##_even(v1)); \
            tsk__##V##_store(to + 3 * TSK__CPU_WIDTH, tsk__##V##_odd(v1)); \
            tsk__##V##_store(to + 4 * TSK__CPU_WIDTH, tsk__##V##_even(v2)); \
            tsk__##V##_store(to + 5 * TSK__CPU_WIDTH, tsk__##V##_odd(v2)); \
            tsk__##V##_store(to + 6 * TSK__CPU_WIDTH, tsk__##V##_even(v3)); \
            tsk__##V##_store(to + 7 * TSK__CPU_WIDTH, tsk__##V##_odd(v3)); \
            to += 8 * TSK__CPU_WIDTH; \
        } else { \
            tsk__##V##_store(to, v0); \
            tsk__##V##_store(to + TSK__CPU_WIDTH, v1); \
            tsk__##V##_store(to + 2 * TSK__CPU_WIDTH, v2); \
            tsk__##V##_store(to + 3 * TSK__CPU_WIDTH, v3); \
            to += 4 * TSK__CPU_WIDTH; \
        } \
    } \
} \
/* One row's next `count` elements, as 64 bytes, zeroes behind them. */ \
TSK__INLINE TSK__TARGET_##V void tsk__cpu_##V##_pack_copy(tsk_dtype dtype, const char *from, int32_t count, \
                                                          int32_t step, char *to) { \
    char part[64] TSK__CPU_ALIGNED; \
    int i; \
    if (count < step) { \
        memset(part, 0, sizeof part); \
        memcpy(part, from, (size_t)count * (dtype == TSK_DTYPE_F32 ? 4 : 2)); \
        from = part; \
    } \
    for (i = 0; i < 64; i += 4 * (LANES)) \
        tsk__##V##_store((float *)(void *)(to + i), \
                         dtype == TSK_DTYPE_F16 ? tsk__##V##_half(from + i / 2) \
                                                : tsk__##V##_load((const float *)(const void *)(from + i))); \
} \
TSK__INLINE TSK__TARGET_##V void tsk__cpu_##V##_pack_as(tsk_dtype dtype, const tsk__weight *w, int32_t first, \
                                                        int32_t k0, int32_t kn, float *panel) { \
    const size_t size = dtype == TSK_DTYPE_F32 ? 4 : 2, stride = (size_t)w->cols * size; \
    const int32_t step = dtype == TSK_DTYPE_BF16 ? 32 : 16; \
    char copy[(LANES) * 64] TSK__CPU_ALIGNED; \
    int32_t o, k, i; \
    for (o = 0; o < TSK__CPU_WIDTH; o += (LANES)) \
        for (k = 0; k < kn; k += step) { \
            float *to = panel + (size_t)k * TSK__CPU_WIDTH + o; \
            const char *data = (const char *)w->data + (size_t)(k0 + k) * size; \
            const int32_t row = first + o, count = kn - k < step ? kn - k : step; \
            if (dtype != TSK_DTYPE_F16 && count == step && row + (LANES) <= w->rows) { \
                tsk__cpu_##V##_pack_block(dtype, data + (size_t)row * stride, stride, to); \
                continue; \
            } \
            for (i = 0; i < (LANES); i++) \
                tsk__cpu_##V##_pack_copy(dtype, \
                                         data + (size_t)(row + i < w->rows ? row + i : w->rows - 1) * stride, \
                                         count, step, copy + 64 * i); \
            tsk__cpu_##V##_pack_block(dtype, copy, 64, to); \
        } \
} \
static TSK__TARGET_##V void tsk__cpu_##V##_pack(const tsk__weight *w, int32_t first, int32_t k0, int32_t kn, \
                                                float *panel) { \
    if (w->dtype == TSK_DTYPE_F32) tsk__cpu_##V##_pack_as(TSK_DTYPE_F32, w, first, k0, kn, panel); \
    else if (w->dtype == TSK_DTYPE_BF16) tsk__cpu_##V##_pack_as(TSK_DTYPE_BF16, w, first, k0, kn, panel); \
    else tsk__cpu_##V##_pack_as(TSK_DTYPE_F16, w, first, k0, kn, panel); \
}

TSK__INLINE void tsk__cpu_fetch(tsk__cpu_prefetch *prefetch) {
    if (prefetch->at >= prefetch->lines) return;
    __builtin_prefetch(prefetch->base + (size_t)(prefetch->at % TSK__CPU_WIDTH) * prefetch->stride +
                           (size_t)(prefetch->at / TSK__CPU_WIDTH) * 64,
                       0, 2);
    prefetch->at++;
}

/* Two vectors of outputs by `rows` rows stay in registers over the whole depth. `rows` is a constant wherever this is
   inlined, so the conditions vanish; names instead of an array, since compilers keep arrays in memory below -O3. */
#define TSK__CPU_TILE_STEP(V, r, from) \
    if (rows > (r)) { \
        const tsk__##V v = tsk__##V##_set(from); \
        a##r = tsk__##V##_fma(v, w0, a##r); \
        b##r = tsk__##V##_fma(v, w1, b##r); \
    }
#define TSK__CPU_TILE_STORE(V, LANES, r) \
    if (rows > (r)) { \
        float *to = y + (r) * ldy; \
        if (add) { \
            a##r = tsk__##V##_add(tsk__##V##_load(to), a##r); \
            b##r = tsk__##V##_add(tsk__##V##_load(to + (LANES)), b##r); \
        } \
        tsk__##V##_store(to, a##r); \
        tsk__##V##_store(to + (LANES), b##r); \
    }
#define TSK__CPU_DEFINE_TILE(V, LANES, CASES) \
TSK__INLINE TSK__TARGET_##V void tsk__cpu_##V##_tile_rows(const int rows, const float *x, size_t ldx, int32_t kn, \
                                                          const float *panel, size_t ldp, float *y, size_t ldy, \
                                                          int add, tsk__cpu_prefetch *prefetch) { \
    const tsk__##V zero = tsk__##V##_set(0.0f); \
    tsk__##V a0 = zero, a1 = zero, a2 = zero, a3 = zero, a4 = zero, a5 = zero; \
    tsk__##V a6 = zero, a7 = zero, a8 = zero, a9 = zero, a10 = zero, a11 = zero; \
    tsk__##V b0 = zero, b1 = zero, b2 = zero, b3 = zero, b4 = zero, b5 = zero; \
    tsk__##V b6 = zero, b7 = zero, b8 = zero, b9 = zero, b10 = zero, b11 = zero; \
    const float *x3 = rows > 3 ? x + 3 * ldx : x, *x6 = rows > 6 ? x + 6 * ldx : x, *x9 = rows > 9 ? x + 9 * ldx : x; \
    tsk__cpu_prefetch next = *prefetch; \
    for (; kn > 0; kn--, panel += ldp, x++, x3++, x6++, x9++) { \
        const tsk__##V w0 = tsk__##V##_load(panel), w1 = tsk__##V##_load(panel + (LANES)); \
        tsk__cpu_fetch(&next); \
        if (rows <= 6) tsk__cpu_fetch(&next); /* half the multiplications to hide it behind */ \
        TSK__CPU_TILE_STEP(V, 0, x[0]) TSK__CPU_TILE_STEP(V, 1, x[ldx]) TSK__CPU_TILE_STEP(V, 2, x[2 * ldx]) \
        TSK__CPU_TILE_STEP(V, 3, x3[0]) TSK__CPU_TILE_STEP(V, 4, x3[ldx]) TSK__CPU_TILE_STEP(V, 5, x3[2 * ldx]) \
        TSK__CPU_TILE_STEP(V, 6, x6[0]) TSK__CPU_TILE_STEP(V, 7, x6[ldx]) TSK__CPU_TILE_STEP(V, 8, x6[2 * ldx]) \
        TSK__CPU_TILE_STEP(V, 9, x9[0]) TSK__CPU_TILE_STEP(V, 10, x9[ldx]) TSK__CPU_TILE_STEP(V, 11, x9[2 * ldx]) \
    } \
    prefetch->at = next.at; \
    TSK__CPU_TILE_STORE(V, LANES, 0) TSK__CPU_TILE_STORE(V, LANES, 1) TSK__CPU_TILE_STORE(V, LANES, 2) \
    TSK__CPU_TILE_STORE(V, LANES, 3) TSK__CPU_TILE_STORE(V, LANES, 4) TSK__CPU_TILE_STORE(V, LANES, 5) \
    TSK__CPU_TILE_STORE(V, LANES, 6) TSK__CPU_TILE_STORE(V, LANES, 7) TSK__CPU_TILE_STORE(V, LANES, 8) \
    TSK__CPU_TILE_STORE(V, LANES, 9) TSK__CPU_TILE_STORE(V, LANES, 10) TSK__CPU_TILE_STORE(V, LANES, 11) \
} \
static TSK__TARGET_##V void tsk__cpu_##V##_tile(int rows, const float *x, size_t ldx, int32_t kn, \
                                                const float *panel, size_t ldp, float *y, \
                                                size_t ldy, int add, tsk__cpu_prefetch *prefetch) { \
    int o; \
    for (o = 0; o < TSK__CPU_WIDTH; o += 2 * (LANES)) \
        switch (rows) { CASES(V) } \
}
#define TSK__CPU_TILE_CASE(V, r) \
    case r: \
        tsk__cpu_##V##_tile_rows(r, x, ldx, kn, panel + o, ldp, y + o, ldy, add, prefetch); \
        break;
#define TSK__CPU_TILE_CASES_6(V) TSK__CPU_TILE_CASE(V, 1) TSK__CPU_TILE_CASE(V, 2) TSK__CPU_TILE_CASE(V, 3) \
    TSK__CPU_TILE_CASE(V, 4) TSK__CPU_TILE_CASE(V, 5) TSK__CPU_TILE_CASE(V, 6)
#define TSK__CPU_TILE_CASES_10(V) TSK__CPU_TILE_CASES_6(V) TSK__CPU_TILE_CASE(V, 7) TSK__CPU_TILE_CASE(V, 8) \
    TSK__CPU_TILE_CASE(V, 9) TSK__CPU_TILE_CASE(V, 10)
#define TSK__CPU_TILE_CASES_12(V) TSK__CPU_TILE_CASES_10(V) TSK__CPU_TILE_CASE(V, 11) TSK__CPU_TILE_CASE(V, 12)

#define TSK__CPU_DEFINE_KERNELS(V, LANES, ROWS, NAME, DESCRIPTION) \
    TSK__CPU_DEFINE_EXP(V) \
    TSK__CPU_DEFINE_SILU(V, LANES) \
    TSK__CPU_DEFINE_ELEMENTWISE(V, LANES) \
    TSK__CPU_DEFINE_REDUCTIONS(V, LANES) \
    TSK__CPU_DEFINE_PACK(V, LANES) \
    TSK__CPU_DEFINE_TILE(V, LANES, TSK__CPU_TILE_CASES_##ROWS) \
    static const tsk__cpu_kernels tsk__cpu_##V = {NAME, DESCRIPTION, ROWS, \
                                                  tsk__cpu_##V##_pack, tsk__cpu_##V##_tile, tsk__cpu_##V##_dot, \
                                                  tsk__cpu_##V##_scale_max, tsk__cpu_##V##_exp_sum, \
                                                  tsk__cpu_##V##_silu, tsk__cpu_##V##_add, tsk__cpu_##V##_scale};

TSK__CPU_DEFINE_KERNELS(v128, 4, 6, "portable", "portable C")
#if TSK__CPU_X86
TSK__CPU_DEFINE_KERNELS(v256, 8, 6, "avx2", "AVX2")
TSK__CPU_DEFINE_KERNELS(v512, 16, 12, "avx512", "AVX-512")
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#endif
#if TSK__CPU_ARM
/* (of 32 registers: with more rows both compilers keep a sum in memory) */
TSK__CPU_DEFINE_KERNELS(neon, 4, 10, "neon", "NEON")
#endif

/* NULL when there is no such set or the machine cannot run it. */
static const tsk__cpu_kernels *tsk__cpu_kernels_by_name(const char *name) {
#if TSK__CPU_X86
    const int features = tsk__processor_features();
    if ((features & 2) && strcmp(name, tsk__cpu_v512.name) == 0) return &tsk__cpu_v512;
    if ((features & 1) && strcmp(name, tsk__cpu_v256.name) == 0) return &tsk__cpu_v256;
#elif TSK__CPU_ARM
    if ((tsk__processor_features() & 1) && strcmp(name, tsk__cpu_neon.name) == 0) return &tsk__cpu_neon;
#endif
    return strcmp(name, tsk__cpu_v128.name) == 0 ? &tsk__cpu_v128 : NULL;
}

static const tsk__cpu_kernels *tsk__cpu_kernels_select(void) {
    const tsk__cpu_kernels *kernels = tsk__cpu_kernels_by_name("avx512");
    if (!kernels) kernels = tsk__cpu_kernels_by_name("avx2");
    if (!kernels) kernels = tsk__cpu_kernels_by_name("neon");
    return kernels ? kernels : &tsk__cpu_v128;
}

/* "CPU, AVX-512, 2 threads" */
static void tsk__cpu_describe(const tsk__cpu_kernels *kernels, const tsk__pool *pool, char *out, size_t size) {
    const int n = pool ? pool->n_threads : 1;
    snprintf(out, size, "CPU, %s, %d thread%s", kernels->description, n, n == 1 ? "" : "s");
}

/* ---- scratch memory */

/* One row's share of the softmax in a chunk of the vocabulary. */
typedef struct tsk__cpu_best {
    double score;                  /* the best id's logit, with noise if there is any */
    int32_t id;                    /* -1: none (only the mask, or all NaN) */
    float logit;                   /* without noise */
    float max, sum;                /* of all logits; of exp(logit - max) */
} tsk__cpu_best;

typedef struct tsk__cpu_scratch {
    float *norm;                   /* [n, d_model] */
    float *k, *v;                  /* [n, n_kv_heads * head_dim] */
    float *wide;                   /* [n, max(d_model, mlp_hidden_size)] up_proj's output; a projection before the
                                      residual */
    int32_t *spans;                /* [n + 1] */
    int32_t *rotated;              /* [n] the position that `rotations` has of a row, -1 for none yet */
    float *rotations;              /* [n, head_dim] head_dim / 2 cosines of a position's angles, then their sines */
    tsk__cpu_best *best;           /* [chunks of the vocabulary, min(n, TSK__CPU_HEAD_ROWS)] */
} tsk__cpu_scratch;

/* The next `count` elements of the block at `memory`, which may be NULL when only *used is wanted. */
static void *tsk__cpu_take(void *memory, size_t *used, size_t count, size_t size) {
    void *block = memory ? (char *)memory + *used : NULL;
    *used += (count * size + 63) / 64 * 64;
    return block;
}

/* Lays the buffers for passes of up to n rows into `memory` (best aligned to 64 bytes) and returns the bytes they take;
   with memory NULL it only does the latter. */
static size_t tsk__cpu_scratch_init(tsk__cpu_scratch *scratch, const tsk_model_config *config, int32_t n,
                                    void *memory) {
    const size_t rows = (size_t)n, kv = (size_t)config->n_kv_heads * (size_t)config->head_dim;
    const size_t d = (size_t)config->d_model, mlp = (size_t)config->mlp_hidden_size;
    const size_t chunks = ((size_t)config->embedding_size + TSK__CPU_CHUNK - 1) / TSK__CPU_CHUNK;
    size_t used = 0;
    int32_t i;
    scratch->norm = (float *)tsk__cpu_take(memory, &used, rows * d, sizeof(float));
    scratch->k = (float *)tsk__cpu_take(memory, &used, rows * kv, sizeof(float));
    scratch->v = (float *)tsk__cpu_take(memory, &used, rows * kv, sizeof(float));
    scratch->wide = (float *)tsk__cpu_take(memory, &used, rows * (d > mlp ? d : mlp), sizeof(float));
    scratch->spans = (int32_t *)tsk__cpu_take(memory, &used, rows + 1, sizeof(int32_t));
    scratch->rotated = (int32_t *)tsk__cpu_take(memory, &used, rows, sizeof(int32_t));
    scratch->rotations = (float *)tsk__cpu_take(memory, &used, rows * (size_t)config->head_dim, sizeof(float));
    scratch->best =
        (tsk__cpu_best *)tsk__cpu_take(memory, &used, chunks * (rows < TSK__CPU_HEAD_ROWS ? rows : TSK__CPU_HEAD_ROWS),
                                       sizeof(tsk__cpu_best));
    for (i = 0; memory && i < n; i++) scratch->rotated[i] = -1;
    return used;
}

/* ---- work for the pool */

/* Splits rows into slices each worth a thread's while. Row functions treat every row alike, so slices change
   nothing. */
typedef void (*tsk__cpu_row_function)(const void *context, int32_t first, int32_t last);
typedef struct tsk__cpu_slices {
    tsk__cpu_row_function run;
    const void *context;
    int32_t n, count;
} tsk__cpu_slices;

#define TSK__CPU_SLICE 16384  /* elements in a slice of elementwise work: a few microseconds */

static void tsk__cpu_slice(void *context, int task) {
    const tsk__cpu_slices *slices = (const tsk__cpu_slices *)context;
    slices->run(slices->context, (int32_t)((int64_t)slices->n * task / slices->count),
                (int32_t)((int64_t)slices->n * (task + 1) / slices->count));
}

static void tsk__cpu_rows(const tsk__cpu_model *model, int32_t n, size_t elements_per_row, tsk__cpu_row_function run,
                          const void *context) {
    const size_t wanted = (size_t)n * elements_per_row / TSK__CPU_SLICE;
    tsk__cpu_slices slices;
    slices.run = run;
    slices.context = context;
    slices.n = n;
    slices.count = wanted < 1 ? 1 : wanted > (size_t)n ? n : wanted > 1024 ? 1024 : (int32_t)wanted;
    tsk__parallel(model->pool, slices.count, tsk__cpu_slice, &slices);
}

/* `work` in multiplications. A section on no pool runs on the calling thread. */
static void tsk__cpu_tasks(const tsk__cpu_model *model, int32_t n, uint64_t work, tsk__task run, void *context) {
    tsk__parallel(work < TSK__CPU_SERIAL ? NULL : model->pool, n, run, context);
}

/* ---- the core: rows times a panel, and a whole matrix as panels */

/* y[n][width] = or += x[n][kn] * panel[kn][width]. Rows are shared out evenly between tiles, so none is thin. */
static void tsk__cpu_multiply(const tsk__cpu_kernels *kernels, int32_t n, const float *x, size_t ldx, int32_t kn,
                              const float *panel, size_t ldp, float *y, size_t ldy, int32_t width, int add,
                              tsk__cpu_prefetch *prefetch) {
    const int32_t tiles = (n + kernels->tile_rows - 1) / kernels->tile_rows;
    float edge[TSK__CPU_MAX_TILE][TSK__CPU_WIDTH] TSK__CPU_ALIGNED;
    int32_t tile, i, o;
    for (tile = 0; tile < tiles; tile++) {
        const int32_t first = (int32_t)((int64_t)n * tile / tiles),
                      rows = (int32_t)((int64_t)n * (tile + 1) / tiles) - first;
        float *to = y + (size_t)first * ldy;
        if (width == TSK__CPU_WIDTH) {
            kernels->tile(rows, x + (size_t)first * ldx, ldx, kn, panel, ldp, to, ldy, add, prefetch);
            continue;
        }
        kernels->tile(rows, x + (size_t)first * ldx, ldx, kn, panel, ldp, edge[0], TSK__CPU_WIDTH, 0, prefetch);
        for (i = 0; i < rows; i++, to += ldy)
            for (o = 0; o < width; o++) to[o] = add ? to[o] + edge[i][o] : edge[i][o];
    }
}

static int32_t tsk__cpu_panels(const tsk__weight *w) { return (w->rows + TSK__CPU_WIDTH - 1) / TSK__CPU_WIDTH; }
static int32_t tsk__cpu_width(const tsk__weight *w, int32_t first) {
    return w->rows - first < TSK__CPU_WIDTH ? w->rows - first : TSK__CPU_WIDTH;
}

/* Outputs first .. first+31 of a matrix. */
typedef struct tsk__cpu_part {
    const tsk__weight *w;          /* NULL: none */
    int32_t first;
} tsk__cpu_part;

static tsk__cpu_part tsk__cpu_part_of(const tsk__weight *w, int32_t first) {
    tsk__cpu_part part;
    part.w = w;
    part.first = first;
    return part;
}

static tsk__cpu_prefetch tsk__cpu_prefetch_of(tsk__cpu_part part, int32_t k) {
    tsk__cpu_prefetch prefetch;
    size_t size, depth;
    memset(&prefetch, 0, sizeof prefetch);
    if (!part.w || part.w->rows - part.first < TSK__CPU_WIDTH) return prefetch;
    size = part.w->dtype == TSK_DTYPE_F32 ? 4 : 2;
    depth = (size_t)(part.w->cols - k < TSK__CPU_DEPTH ? part.w->cols - k : TSK__CPU_DEPTH);
    prefetch.stride = (size_t)part.w->cols * size;
    prefetch.base = (const char *)part.w->data + (size_t)part.first * prefetch.stride + (size_t)k * size;
    prefetch.lines = (int32_t)((depth * size + 63) / 64) * TSK__CPU_WIDTH;
    return prefetch;
}

/* y[n, ldy] = x[n, w->cols] * W^T + bias for one part; `y` points at its first output. `next` is what the caller does
   after it. */
static void tsk__cpu_panel(const tsk__cpu_kernels *kernels, tsk__cpu_part part, tsk__cpu_part next, int32_t n,
                           const float *x, float *y, size_t ldy) {
    float panel[TSK__CPU_DEPTH * TSK__CPU_WIDTH] TSK__CPU_ALIGNED;
    const tsk__weight *w = part.w;
    const int32_t width = tsk__cpu_width(w, part.first);
    int32_t k, i;
    for (k = 0; k < w->cols; k += TSK__CPU_DEPTH) {
        const int last = w->cols - k <= TSK__CPU_DEPTH;
        const int32_t kn = last ? w->cols - k : TSK__CPU_DEPTH;
        tsk__cpu_prefetch prefetch =
            last ? tsk__cpu_prefetch_of(next, 0) : tsk__cpu_prefetch_of(part, k + TSK__CPU_DEPTH);
        kernels->pack(w, part.first, k, kn, panel);
        tsk__cpu_multiply(kernels, n, x + k, (size_t)w->cols, kn, panel, TSK__CPU_WIDTH, y, ldy, width, k > 0,
                          &prefetch);
    }
    if (!w->bias) return;
    for (i = 0; i < n; i++, y += ldy) kernels->add(y, w->bias + part.first, width);
}

/* Panels are handed out in runs, so that a task's next panel is known: as many runs as threads, or a few times that. */
static int32_t tsk__cpu_runs(const tsk__cpu_model *model, int32_t panels) {
    const int32_t threads = model->pool ? model->pool->n_threads : 1, each = panels / (4 * threads);
    const int32_t runs = threads * (each < 1 ? 1 : each > 8 ? 8 : each);
    return runs < panels ? runs : panels;
}

/* Up to three matrices on the same input in one section; the sum goes onto `residual` where there is one. */
typedef struct tsk__cpu_product {
    const tsk__cpu_kernels *kernels;
    int32_t n, count, panels, runs;
    const float *x;                /* [n, cols] */
    const tsk__weight *w[3];
    float *y[3];                   /* [n, rows] */
    float *residual;               /* [n, rows of w[0]] or NULL */
} tsk__cpu_product;

/* The panel'th of all the matrices' panels; *y gets its output. */
static tsk__cpu_part tsk__cpu_product_part(const tsk__cpu_product *p, int32_t panel, float **y) {
    int32_t which = 0;
    while (which < p->count - 1 && panel >= tsk__cpu_panels(p->w[which])) panel -= tsk__cpu_panels(p->w[which++]);
    *y = p->y[which] + panel * TSK__CPU_WIDTH;
    return tsk__cpu_part_of(p->w[which], panel * TSK__CPU_WIDTH);
}

static void tsk__cpu_product_add(const tsk__cpu_product *p, tsk__cpu_part part, const float *y) {
    const size_t ld = (size_t)part.w->rows;
    const int32_t width = tsk__cpu_width(part.w, part.first);
    float *residual = p->residual + part.first;
    int32_t i;
    for (i = 0; i < p->n; i++, y += ld, residual += ld) p->kernels->add(residual, y, width);
}

static void tsk__cpu_product_task(void *context, int task) {
    const tsk__cpu_product *p = (const tsk__cpu_product *)context;
    const int32_t end = (int32_t)((int64_t)p->panels * (task + 1) / p->runs);
    int32_t panel = (int32_t)((int64_t)p->panels * task / p->runs);
    float *y, *next_y = NULL;
    tsk__cpu_part part = tsk__cpu_product_part(p, panel, &y), next;
    for (; panel < end; panel++, part = next, y = next_y) {
        next = panel + 1 < end ? tsk__cpu_product_part(p, panel + 1, &next_y) : tsk__cpu_part_of(NULL, 0);
        tsk__cpu_panel(p->kernels, part, next, p->n, p->x, y, (size_t)part.w->rows);
        if (p->residual) tsk__cpu_product_add(p, part, y);
    }
}

static uint64_t tsk__cpu_work(int32_t n, const tsk__weight *w) {
    return (uint64_t)n * (uint64_t)w->rows * (uint64_t)w->cols;
}

static void tsk__cpu_product_run(const tsk__cpu_model *model, tsk__cpu_product *product) {
    int32_t i;
    uint64_t work = 0;
    product->kernels = model->kernels;
    product->panels = 0;
    for (i = 0; i < product->count; i++) {
        product->panels += tsk__cpu_panels(product->w[i]);
        work += tsk__cpu_work(product->n, product->w[i]);
    }
    product->runs = tsk__cpu_runs(model, product->panels);
    tsk__cpu_tasks(model, product->runs, work, tsk__cpu_product_task, product);
}

static void tsk__cpu_capture(void *captured, const float *from, size_t count) {
    if (captured) memcpy(captured, from, count * sizeof *from);
}

/* y += x W^T + bias, by way of scratch->wide */
static void tsk__cpu_add_product(const tsk__cpu_model *model, const tsk__weight *w, int32_t n, const float *x, float *y,
                                 tsk__cpu_scratch *scratch, const tsk__captures *captures) {
    tsk__cpu_product product;
    memset(&product, 0, sizeof product);
    product.n = n;
    product.count = 1;
    product.x = x;
    product.w[0] = w;
    product.y[0] = scratch->wide;
    product.residual = y;
    tsk__cpu_product_run(model, &product);
    if (captures) tsk__cpu_capture(captures->projection, scratch->wide, (size_t)n * (size_t)w->rows);
}

/* ---- rows: copies, norms, cosines */

typedef struct tsk__cpu_copy {
    size_t width;
    const float *src;
    const int32_t *from, *to;      /* row numbers; NULL: 0, 1, 2, ... */
    float *dst;
} tsk__cpu_copy;

static void tsk__cpu_copy_rows(const void *context, int32_t first, int32_t last) {
    const tsk__cpu_copy *c = (const tsk__cpu_copy *)context;
    int32_t i;
    for (i = first; i < last; i++)
        memcpy(c->dst + (size_t)(c->to ? c->to[i] : i) * c->width,
               c->src + (size_t)(c->from ? c->from[i] : i) * c->width, c->width * sizeof(float));
}

static void tsk__cpu_copy_run(const tsk__cpu_model *model, int32_t n, int32_t width, const float *src,
                              const int32_t *from, const int32_t *to, float *dst) {
    tsk__cpu_copy copy;
    copy.width = (size_t)width;
    copy.src = src;
    copy.from = from;
    copy.to = to;
    copy.dst = dst;
    tsk__cpu_rows(model, n, copy.width, tsk__cpu_copy_rows, &copy);
}

/* dst[i] = src[index[i]], rows of `width` */
static void tsk__cpu_gather(const tsk__cpu_model *model, int32_t n, int32_t width, const float *src,
                            const int32_t *index, float *dst) {
    tsk__cpu_copy_run(model, n, width, src, index, NULL, dst);
}

/* dst[index[i]] = src[i]; no index twice */
static void tsk__cpu_scatter(const tsk__cpu_model *model, int32_t n, int32_t width, const float *src,
                             const int32_t *index, float *dst) {
    tsk__cpu_copy_run(model, n, width, src, NULL, index, dst);
}

typedef struct tsk__cpu_lookup {
    const tsk__weight *table;
    const int32_t *ids;            /* [n] */
    float *out;                    /* [n, table->cols] */
} tsk__cpu_lookup;

static void tsk__cpu_lookup_rows(const void *context, int32_t first, int32_t last) {
    const tsk__cpu_lookup *c = (const tsk__cpu_lookup *)context;
    const size_t d = (size_t)c->table->cols;
    int32_t i;
    for (i = first; i < last; i++) {
        const char *row = (const char *)c->table->data + (size_t)c->ids[i] * d * tsk_dtype_size(c->table->dtype);
        tsk__floats_from(c->table->dtype, row, d, c->out + (size_t)i * d);
    }
}

/* x[n, d_model] */
static void tsk__cpu_embed(const tsk__cpu_model *model, const tsk__rows *rows, float *x) {
    tsk__cpu_lookup lookup;
    lookup.table = tsk__cpu_weight(model, -1, TSK__PART_EMBEDDING);
    lookup.ids = rows->tokens;
    lookup.out = x;
    tsk__cpu_rows(model, rows->n, (size_t)lookup.table->cols, tsk__cpu_lookup_rows, &lookup);
}

typedef struct tsk__cpu_norm {
    const tsk__cpu_model *model;
    const float *weight, *x;       /* [d_model], [n, d_model] */
    float *out;                    /* [n, d_model] */
} tsk__cpu_norm;

static void tsk__cpu_norm_rows(const void *context, int32_t first, int32_t last) {
    const tsk__cpu_norm *c = (const tsk__cpu_norm *)context;
    const int32_t d = c->model->config->d_model;
    int32_t i;
    for (i = first; i < last; i++) {
        const float *x = c->x + (size_t)i * (size_t)d;
        const double mean = (double)c->model->kernels->dot(x, x, d) / d;
        const float scale = (float)(1.0 / sqrt(mean + (double)c->model->config->rms_norm_eps));
        c->model->kernels->scale(x, scale, c->weight, c->out + (size_t)i * (size_t)d, d);
    }
}

static void tsk__cpu_norm_run(const tsk__cpu_model *model, int32_t n, const float *weight, const float *x, float *out,
                              const tsk__captures *captures) {
    const size_t d = (size_t)model->config->d_model;
    tsk__cpu_norm norm;
    norm.model = model;
    norm.weight = weight;
    norm.x = x;
    norm.out = out;
    tsk__cpu_rows(model, n, 2 * d, tsk__cpu_norm_rows, &norm);
    if (captures) tsk__cpu_capture(captures->norm, out, (size_t)n * d);
}

/* out[n, d_model]; may be x itself */
static void tsk__cpu_final_norm(const tsk__cpu_model *model, int32_t n, const float *x, float *out) {
    tsk__cpu_norm_run(model, n, tsk__cpu_norm_weight(model, -1, TSK__PART_FINAL_NORM), x, out, NULL);
}

typedef struct tsk__cpu_cosines {
    const tsk__cpu_model *model;
    const float *a, *b;            /* [n, d_model] */
    float *out;                    /* [n] */
} tsk__cpu_cosines;

static void tsk__cpu_cosine_rows(const void *context, int32_t first, int32_t last) {
    const tsk__cpu_cosines *c = (const tsk__cpu_cosines *)context;
    const tsk__cpu_kernels *kernels = c->model->kernels;
    const int32_t d = c->model->config->d_model;
    int32_t i;
    for (i = first; i < last; i++) {
        const float *a = c->a + (size_t)i * (size_t)d, *b = c->b + (size_t)i * (size_t)d;
        const double norms = sqrt((double)kernels->dot(a, a, d)) * sqrt((double)kernels->dot(b, b, d));
        const double cosine = (double)kernels->dot(a, b, d) / (norms > 1e-8 ? norms : 1e-8);
        c->out[i] = cosine > 1.0 ? 1.0f : (float)cosine;
    }
}

/* out[n] = min(1, cos(a[i], b[i])); 0 with a zero vector */
static void tsk__cpu_cosine(const tsk__cpu_model *model, int32_t n, const float *a, const float *b, float *out) {
    tsk__cpu_cosines cosines;
    cosines.model = model;
    cosines.a = a;
    cosines.b = b;
    cosines.out = out;
    tsk__cpu_rows(model, n, 3 * (size_t)model->config->d_model, tsk__cpu_cosine_rows, &cosines);
}

/* ---- rotary embedding and cache rows */

/* rotations[head_dim] of a position. */
static void tsk__cpu_rope_rotation(const tsk__cpu_model *model, int32_t position, float *rotations) {
    const int32_t half = model->config->head_dim / 2;
    int32_t i;
    for (i = 0; i < half; i++) {
        const float angle = (float)position * model->rope_frequencies[i];
        rotations[i] = (float)cos((double)angle);
        rotations[half + i] = (float)sin((double)angle);
    }
}

/* to[head_dim] = from[head_dim] with pairs (i, i + half) rotated; to may be from. */
static void tsk__cpu_rope_head(const float *from, const float *cosines, const float *sines, int32_t half, float *to) {
    int32_t i;
    for (i = 0; i < half; i++) {
        const float a = from[i], b = from[half + i];
        to[i] = a * cosines[i] - b * sines[i];
        to[half + i] = b * cosines[i] + a * sines[i];
    }
}

/* The first cached position of a layer's K or V head: [length, head_dim]. */
static float *tsk__cpu_cached(const tsk_model_config *config, const tsk__kv *kv, const void *rows, int32_t layer,
                              int32_t head) {
    return (float *)(uintptr_t)rows + ((size_t)layer * (size_t)config->n_kv_heads + (size_t)head) *
                                          (size_t)kv->capacity * (size_t)config->head_dim;
}

typedef struct tsk__cpu_rope {
    const tsk__cpu_model *model;
    int32_t layer;
    const tsk__rows *rows;
    const float *q_norm, *k_norm;  /* [head_dim] or NULL */
    float *q;                      /* [n, n_heads * head_dim], normed and rotated in place */
    float *k;                      /* [n, n_kv_heads * head_dim], normed in place, then to the cache */
    const float *v;                /* likewise, as it is */
    const tsk__captures *captures; /* or NULL */
    int32_t *rotated;              /* as in tsk__cpu_scratch */
    float *rotations;
} tsk__cpu_rope;

/* The cosines and sines of row i's position. They are computed in the first layer and kept for the other layers, and
   for a next pass over the same rows. */
static const float *tsk__cpu_rope_rotations(const tsk__cpu_rope *c, int32_t i) {
    float *rotations = c->rotations + (size_t)i * (size_t)c->model->config->head_dim;
    if (c->rotated[i] != c->rows->positions[i]) tsk__cpu_rope_rotation(c->model, c->rows->positions[i], rotations);
    c->rotated[i] = c->rows->positions[i];
    return rotations;
}

/* Each of a row's heads [n_heads, head_dim], and a copy of them to row i of `captured` where that is wanted. */
static void tsk__cpu_norm_heads(const tsk__cpu_model *model, const float *weight, float *x, int32_t n_heads, int32_t i,
                                void *captured) {
    const int32_t hd = model->config->head_dim;
    int32_t head;
    if (!weight) return;
    for (head = 0; head < n_heads; head++) {
        float *at = x + (size_t)head * (size_t)hd;
        const double mean = (double)model->kernels->dot(at, at, hd) / hd;
        model->kernels->scale(at, (float)(1.0 / sqrt(mean + (double)model->config->rms_norm_eps)), weight, at, hd);
    }
    if (captured)
        memcpy((float *)captured + (size_t)i * (size_t)n_heads * (size_t)hd, x,
               (size_t)n_heads * (size_t)hd * sizeof *x);
}

static void tsk__cpu_rope_rows(const void *context, int32_t first, int32_t last) {
    const tsk__cpu_rope *c = (const tsk__cpu_rope *)context;
    const tsk_model_config *config = c->model->config;
    const size_t hd = (size_t)config->head_dim, half = hd / 2;
    int32_t i, head;
    for (i = first; i < last; i++) {
        const size_t position = (size_t)c->rows->positions[i];
        const tsk__kv *kv = &c->rows->caches[c->rows->requests[i]];
        const float *cosines = tsk__cpu_rope_rotations(c, i), *sines = cosines + half;
        float *q = c->q + (size_t)i * (size_t)config->n_heads * hd;
        tsk__cpu_norm_heads(c->model, c->q_norm, q, config->n_heads, i, c->captures ? c->captures->q_norm : NULL);
        tsk__cpu_norm_heads(c->model, c->k_norm, c->k + (size_t)i * (size_t)config->n_kv_heads * hd,
                            config->n_kv_heads, i, c->captures ? c->captures->k_norm : NULL);
        for (head = 0; head < config->n_heads; head++, q += hd) tsk__cpu_rope_head(q, cosines, sines, (int32_t)half, q);
        for (head = 0; head < config->n_kv_heads; head++) {
            const size_t at = ((size_t)i * (size_t)config->n_kv_heads + (size_t)head) * hd;
            float *k = tsk__cpu_cached(config, kv, kv->k, c->layer, head) + position * hd;
            tsk__cpu_rope_head(c->k + at, cosines, sines, (int32_t)half, k);
            memcpy(tsk__cpu_cached(config, kv, kv->v, c->layer, head) + position * hd, c->v + at, hd * sizeof(float));
            if (c->captures && c->captures->k_rope)
                memcpy((float *)c->captures->k_rope + at, k, hd * sizeof(float));
        }
    }
}

/* q_out[n, n_heads * head_dim] after RoPE; K after RoPE and V go to the caches. */
static void tsk__cpu_qkv(const tsk__cpu_model *model, int32_t layer, const tsk__rows *rows, const float *x,
                         float *q_out, tsk__cpu_scratch *scratch, const tsk__captures *captures) {
    const tsk__weight *wq = tsk__cpu_weight(model, layer, TSK__PART_Q);
    const tsk__weight *wk = tsk__cpu_weight(model, layer, TSK__PART_K);
    const size_t n = (size_t)rows->n, q_width = (size_t)wq->rows, kv_width = (size_t)wk->rows;
    tsk__cpu_product product;
    tsk__cpu_rope rope;
    tsk__cpu_norm_run(model, rows->n, tsk__cpu_norm_weight(model, layer, TSK__PART_ATTN_NORM), x, scratch->norm,
                      captures);
    memset(&product, 0, sizeof product);
    product.n = rows->n;
    product.count = 3;
    product.x = scratch->norm;
    product.w[0] = wq;
    product.w[1] = wk;
    product.w[2] = tsk__cpu_weight(model, layer, TSK__PART_V);
    product.y[0] = q_out;
    product.y[1] = scratch->k;
    product.y[2] = scratch->v;
    tsk__cpu_product_run(model, &product);
    if (captures) {
        tsk__cpu_capture(captures->q, q_out, n * q_width);
        tsk__cpu_capture(captures->k, scratch->k, n * kv_width);
        tsk__cpu_capture(captures->v, scratch->v, n * kv_width);
    }
    rope.model = model;
    rope.layer = layer;
    rope.rows = rows;
    rope.q_norm = tsk__cpu_norm_weight(model, layer, TSK__PART_Q_NORM);
    rope.k_norm = tsk__cpu_norm_weight(model, layer, TSK__PART_K_NORM);
    rope.q = q_out;
    rope.k = scratch->k;
    rope.v = scratch->v;
    rope.captures = captures;
    rope.rotated = scratch->rotated;
    rope.rotations = scratch->rotations;
    tsk__cpu_rows(model, rows->n, q_width + 2 * kv_width, tsk__cpu_rope_rows, &rope);
}

/* ---- attention
   Blocks of TSK__CPU_DEPTH keys, counted from position 0, with the running maximum and sum of an online softmax: what
   is added in which order depends on the length alone. The query heads that share a K/V head share its packed block. */

typedef struct tsk__cpu_attend {
    const tsk__cpu_model *model;
    int32_t layer;
    const tsk__rows *rows;
    const int32_t *spans;          /* rows spans[i] .. spans[i+1]-1 are of one request */
    const float *q;                /* [n, n_heads * head_dim] */
    float *out;                    /* [n, n_heads * head_dim] */
} tsk__cpu_attend;

/* One task's part of the above: `n` rows by `heads` query heads of one K/V head. Row (h, i) of scores is h * n + i. */
typedef struct tsk__cpu_attend_group {
    const tsk__cpu_kernels *kernels;
    int32_t n, heads, head_dim;
    size_t ld;                     /* n_heads * head_dim */
    const float *q;
    float *out;                    /* at the first row and head */
    float scores[TSK__CPU_QUERIES][TSK__CPU_DEPTH] TSK__CPU_ALIGNED;
    float panel[TSK__CPU_DEPTH * TSK__CPU_WIDTH] TSK__CPU_ALIGNED;
    float max[TSK__CPU_QUERIES], sum[TSK__CPU_QUERIES];
    tsk__cpu_prefetch prefetch;    /* none: a head's cached rows lie one after another */
} tsk__cpu_attend_group;

/* scores[.][0 .. count-1] = q k^T for keys first .. first+count-1 */
static void tsk__cpu_attend_scores(tsk__cpu_attend_group *g, const tsk__weight *keys, int32_t first, int32_t count) {
    int32_t key, k, h;
    for (key = 0; key < count; key += TSK__CPU_WIDTH)
        for (k = 0; k < g->head_dim; k += TSK__CPU_DEPTH) {
            const int32_t kn = g->head_dim - k < TSK__CPU_DEPTH ? g->head_dim - k : TSK__CPU_DEPTH;
            g->kernels->pack(keys, first + key, k, kn, g->panel);
            for (h = 0; h < g->heads; h++)  /* always the full width: the block's last keys are overwritten below */
                tsk__cpu_multiply(g->kernels, g->n, g->q + (size_t)h * (size_t)g->head_dim + k, g->ld, kn, g->panel,
                                  TSK__CPU_WIDTH, &g->scores[h * g->n][key], TSK__CPU_DEPTH, TSK__CPU_WIDTH, k > 0,
                                  &g->prefetch);
        }
}

/* Turns scores into weights against the new running maximum, to which the earlier blocks' output is rescaled. */
static void tsk__cpu_attend_softmax(tsk__cpu_attend_group *g, int32_t count, float scale, int first_block) {
    const int32_t padded = (count + 15) / 16 * 16;
    int32_t r, i;
    for (r = 0; r < g->heads * g->n; r++) {
        float *out = g->out + (size_t)(r % g->n) * g->ld + (size_t)(r / g->n) * (size_t)g->head_dim;
        float max, fade;
        for (i = count; i < padded; i++) g->scores[r][i] = -INFINITY;
        max = g->kernels->scale_max(g->scores[r], padded, scale);
        if (first_block) {
            g->max[r] = max;
            g->sum[r] = g->kernels->exp_sum(g->scores[r], padded, max);
            continue;
        }
        if (max < g->max[r]) max = g->max[r];
        fade = (float)exp((double)(g->max[r] - max));
        g->max[r] = max;
        g->sum[r] = g->sum[r] * fade + g->kernels->exp_sum(g->scores[r], padded, max);
        for (i = 0; i < g->head_dim; i++) out[i] *= fade;
    }
}

/* out += weights[.][count] * v[count, head_dim] */
static void tsk__cpu_attend_values(tsk__cpu_attend_group *g, const float *v, int32_t count, int add) {
    int32_t o, h, i;
    for (o = 0; o < g->head_dim; o += TSK__CPU_WIDTH) {
        const int32_t width = g->head_dim - o < TSK__CPU_WIDTH ? g->head_dim - o : TSK__CPU_WIDTH;
        const float *panel = v + o;
        size_t ldp = (size_t)g->head_dim;
        if (width < TSK__CPU_WIDTH) {  /* a full tile would read past the row, and past the last one past the cache */
            memset(g->panel, 0, sizeof g->panel);
            for (i = 0; i < count; i++)
                memcpy(g->panel + i * TSK__CPU_WIDTH, v + (size_t)i * (size_t)g->head_dim + o,
                       (size_t)width * sizeof *v);
            panel = g->panel;
            ldp = TSK__CPU_WIDTH;
        }
        for (h = 0; h < g->heads; h++)
            tsk__cpu_multiply(g->kernels, g->n, g->scores[h * g->n], TSK__CPU_DEPTH, count, panel, ldp,
                              g->out + (size_t)h * (size_t)g->head_dim + o, g->ld, width, add, &g->prefetch);
    }
}

static void tsk__cpu_attend_finish(tsk__cpu_attend_group *g) {
    int32_t r, i;
    for (r = 0; r < g->heads * g->n; r++) {
        float *out = g->out + (size_t)(r % g->n) * g->ld + (size_t)(r / g->n) * (size_t)g->head_dim;
        const float scale = 1.0f / g->sum[r];
        for (i = 0; i < g->head_dim; i++) out[i] *= scale;
    }
}

static void tsk__cpu_attend_group_run(tsk__cpu_attend_group *g, const tsk__weight *keys, const float *v) {
    const float scale = (float)(1.0 / sqrt((double)g->head_dim));
    int32_t first;
    for (first = 0; first < keys->rows; first += TSK__CPU_DEPTH) {
        const int32_t count = keys->rows - first < TSK__CPU_DEPTH ? keys->rows - first : TSK__CPU_DEPTH;
        tsk__cpu_attend_scores(g, keys, first, count);
        tsk__cpu_attend_softmax(g, count, scale, first == 0);
        tsk__cpu_attend_values(g, v + (size_t)first * (size_t)g->head_dim, count, first > 0);
    }
    tsk__cpu_attend_finish(g);
}

/* How many cached positions a row attends to. */
static int32_t tsk__cpu_visible(const tsk__rows *rows, int32_t row) {
    return rows->visible ? rows->visible[row] : rows->caches[rows->requests[row]].length;
}

static void tsk__cpu_attend_task(void *context, int task) {
    const tsk__cpu_attend *c = (const tsk__cpu_attend *)context;
    const tsk_model_config *config = c->model->config;
    const int32_t span = task / config->n_kv_heads, head = task % config->n_kv_heads,
                  group = config->n_heads / config->n_kv_heads;
    const int32_t row = c->spans[span];
    const tsk__kv *kv = &c->rows->caches[c->rows->requests[row]];
    const float *v = tsk__cpu_cached(config, kv, kv->v, c->layer, head);
    tsk__cpu_attend_group g;
    tsk__weight keys;
    int32_t done;
    memset(&keys, 0, sizeof keys);
    keys.data = tsk__cpu_cached(config, kv, kv->k, c->layer, head);
    keys.dtype = TSK_DTYPE_F32;
    keys.rows = tsk__cpu_visible(c->rows, row);
    keys.cols = config->head_dim;
    memset(&g.prefetch, 0, sizeof g.prefetch);
    g.kernels = c->model->kernels;
    g.n = c->spans[span + 1] - row;
    g.head_dim = config->head_dim;
    g.ld = (size_t)config->n_heads * (size_t)config->head_dim;
    for (done = 0; done < group; done += g.heads) {
        const size_t at = (size_t)row * g.ld + ((size_t)head * (size_t)group + (size_t)done) * (size_t)g.head_dim;
        g.heads = group - done < TSK__CPU_QUERIES / g.n ? group - done : TSK__CPU_QUERIES / g.n;
        g.q = c->q + at;
        g.out = c->out + at;
        tsk__cpu_attend_group_run(&g, &keys, v);
    }
}

/* Cuts the rows into spans of one request, to which equally much is visible, that fit a task; returns how many. */
static int32_t tsk__cpu_attend_spans(const tsk__rows *rows, int32_t most, int32_t *spans) {
    int32_t i, count = 0;
    for (i = 0; i < rows->n; i++)
        if (i == 0 || rows->requests[i] != rows->requests[i - 1] || i - spans[count - 1] == most ||
            tsk__cpu_visible(rows, i) != tsk__cpu_visible(rows, i - 1))
            spans[count++] = i;
    spans[count] = rows->n;
    return count;
}

/* out[n, n_heads * head_dim] = softmax(q k^T / sqrt(head_dim)) v over what each row sees. `out` must not be q. */
static void tsk__cpu_attention(const tsk__cpu_model *model, int32_t layer, const tsk__rows *rows, const float *q,
                               float *out, tsk__cpu_scratch *scratch) {
    const tsk_model_config *config = model->config;
    const int32_t group = config->n_heads / config->n_kv_heads;
    const int32_t count =
        tsk__cpu_attend_spans(rows, group < TSK__CPU_QUERIES ? TSK__CPU_QUERIES / group : 1, scratch->spans);
    uint64_t work = 0;
    tsk__cpu_attend attend;
    int32_t i;
    attend.model = model;
    attend.layer = layer;
    attend.rows = rows;
    attend.spans = scratch->spans;
    attend.q = q;
    attend.out = out;
    for (i = 0; i < rows->n; i++) work += (uint64_t)tsk__cpu_visible(rows, i);
    work *= 2 * (uint64_t)config->n_heads * (uint64_t)config->head_dim;
    tsk__cpu_tasks(model, count * config->n_kv_heads, work, tsk__cpu_attend_task, &attend);
}

/* ---- the other products of a layer */

/* x[n, d_model] += att[n, n_heads * head_dim] W^T */
static void tsk__cpu_attn_out(const tsk__cpu_model *model, int32_t layer, int32_t n, const float *att, float *x,
                              const tsk__captures *captures, tsk__cpu_scratch *scratch) {
    tsk__cpu_add_product(model, tsk__cpu_weight(model, layer, TSK__PART_ATTN_OUT), n, att, x, scratch, captures);
}

/* x[n, d_model] += h[n, mlp_hidden_size] W^T */
static void tsk__cpu_down(const tsk__cpu_model *model, int32_t layer, int32_t n, const float *h, float *x,
                          const tsk__captures *captures, tsk__cpu_scratch *scratch) {
    tsk__cpu_add_product(model, tsk__cpu_weight(model, layer, TSK__PART_FF_OUT), n, h, x, scratch, captures);
}

typedef struct tsk__cpu_gate {
    const tsk__cpu_kernels *kernels;
    const tsk__weight *gate, *up;
    int32_t n, panels, runs;
    const float *x;                /* [n, d_model] */
    float *h, *wide;               /* [n, mlp_hidden_size] gate, then the product; up */
    float *captured;               /* [n, mlp_hidden_size] gate before it is overwritten, or NULL */
} tsk__cpu_gate;

static void tsk__cpu_gate_panel(const tsk__cpu_gate *c, int32_t first, tsk__cpu_part next) {
    const tsk__cpu_part gate = tsk__cpu_part_of(c->gate, first), up = tsk__cpu_part_of(c->up, first);
    const int32_t width = tsk__cpu_width(c->gate, first);
    const size_t ld = (size_t)c->gate->rows;
    size_t at = (size_t)first;
    int32_t i;
    tsk__cpu_panel(c->kernels, gate, up, c->n, c->x, c->h + first, ld);
    tsk__cpu_panel(c->kernels, up, next, c->n, c->x, c->wide + first, ld);
    for (i = 0; i < c->n; i++, at += ld) {
        if (c->captured) memcpy(c->captured + at, c->h + at, (size_t)width * sizeof *c->h);
        c->kernels->silu(c->h + at, c->wide + at, width);
    }
}

static void tsk__cpu_gate_task(void *context, int task) {
    const tsk__cpu_gate *c = (const tsk__cpu_gate *)context;
    const int32_t end = (int32_t)((int64_t)c->panels * (task + 1) / c->runs);
    int32_t panel;
    for (panel = (int32_t)((int64_t)c->panels * task / c->runs); panel < end; panel++)
        tsk__cpu_gate_panel(c, panel * TSK__CPU_WIDTH,
                            tsk__cpu_part_of(panel + 1 < end ? c->gate : NULL, (panel + 1) * TSK__CPU_WIDTH));
}

/* h[n, mlp_hidden_size] = silu(ff_proj(norm(x))) * up_proj(norm(x)) */
static void tsk__cpu_gate_up(const tsk__cpu_model *model, int32_t layer, int32_t n, const float *x, float *h,
                             tsk__cpu_scratch *scratch, const tsk__captures *captures) {
    tsk__cpu_gate gate;
    tsk__cpu_norm_run(model, n, tsk__cpu_norm_weight(model, layer, TSK__PART_FF_NORM), x, scratch->norm, captures);
    gate.kernels = model->kernels;
    gate.gate = tsk__cpu_weight(model, layer, TSK__PART_FF_PROJ);
    gate.up = tsk__cpu_weight(model, layer, TSK__PART_UP_PROJ);
    gate.n = n;
    gate.x = scratch->norm;
    gate.h = h;
    gate.wide = scratch->wide;
    gate.captured = captures ? (float *)captures->gate : NULL;
    gate.panels = tsk__cpu_panels(gate.gate);
    gate.runs = tsk__cpu_runs(model, gate.panels);
    tsk__cpu_tasks(model, gate.runs, 2 * tsk__cpu_work(n, gate.gate), tsk__cpu_gate_task, &gate);
    if (captures) tsk__cpu_capture(captures->up, scratch->wide, (size_t)n * (size_t)gate.up->rows);
}

/* ---- the head */

/* out[n, embedding_size] */
static void tsk__cpu_logits(const tsk__cpu_model *model, int32_t n, const float *normed, float *out) {
    tsk__cpu_product product;
    memset(&product, 0, sizeof product);
    product.n = n;
    product.count = 1;
    product.x = normed;
    product.w[0] = tsk__cpu_weight(model, -1, TSK__PART_HEAD);
    product.y[0] = out;
    tsk__cpu_product_run(model, &product);
}

typedef struct tsk__cpu_head_job {
    const tsk__cpu_model *model;
    int32_t n;
    const float *x;                /* [n, d_model] */
    const tsk__draw *draws;        /* [n] */
    tsk__cpu_best *best;           /* [chunks, n] */
} tsk__cpu_head_job;

/* The first of the largest logits; -1 when all are -inf or NaN. */
static int32_t tsk__cpu_argmax(const float *logits, int32_t n) {
    float best = -INFINITY;
    int32_t i, id = -1;
    for (i = 0; i < n; i++)
        if (logits[i] > best) {
            best = logits[i];
            id = i;
        }
    return id;
}

/* A bound on -log(-log u) that costs no logarithm: -log u >= 1 - u, and 1 - u is the complement's word. A little more,
   so that no rounding makes it less than the noise. */
static double tsk__cpu_noise_bound(uint32_t word) {
    const uint32_t rest = ~word;
    const int bits = rest ? 31 - __builtin_clz(rest) : -1;
    return 0.693147180559945309 * (32 - bits) + 1e-6;
}

/* Gumbel-max over ids first .. first+n-1. Logarithms are only taken for ids whose bound beats the best so far, which
   are few. */
static void tsk__cpu_draw(const tsk__draw *draw, const float *logits, int32_t first, int32_t n, tsk__cpu_best *best) {
    const double temperature = (double)draw->temperature;
    uint32_t words[4];
    int32_t i;
    for (i = 0; i < n; i++) {
        const uint32_t id = (uint32_t)(first + i);
        double score;
        if (i == 0 || (id & 3) == 0) tsk__random_words(draw->seed, id >> 2, draw->position, draw->pass, 0, words);
        if (!((double)logits[i] + temperature * tsk__cpu_noise_bound(words[id & 3]) > best->score)) continue;
        score = (double)logits[i] - temperature * log(-log(tsk__random_from_word(words[id & 3])));
        if (!(score > best->score)) continue;
        best->score = score;
        best->id = (int32_t)id;
        best->logit = logits[i];
    }
}

/* One row, one chunk. `logits` [n up to a multiple of 16] is overwritten. The mask id counts in the sum only. */
static void tsk__cpu_head_row(const tsk__cpu_kernels *kernels, const tsk__draw *draw, float *logits, int32_t first,
                              int32_t n, tsk__cpu_best *best) {
    const int32_t mask = draw->mask_token_id - first, padded = (n + 15) / 16 * 16;
    const int holds_mask = mask >= 0 && mask < n;
    const float mask_logit = holds_mask ? logits[mask] : 0.0f;
    int32_t i;
    best->score = -INFINITY;
    best->id = -1;
    best->logit = -INFINITY;
    if (holds_mask) logits[mask] = -INFINITY;
    if (draw->temperature > 0.0f) tsk__cpu_draw(draw, logits, first, n, best);
    else if ((i = tsk__cpu_argmax(logits, n)) >= 0) {
        best->id = first + i;
        best->logit = logits[i];
        best->score = (double)logits[i];
    }
    if (holds_mask) logits[mask] = mask_logit;
    for (i = n; i < padded; i++) logits[i] = -INFINITY;
    best->max = kernels->scale_max(logits, padded, 1.0f);
    best->sum = kernels->exp_sum(logits, padded, best->max);
}

static void tsk__cpu_head_task(void *context, int task) {
    const tsk__cpu_head_job *c = (const tsk__cpu_head_job *)context;
    const tsk__cpu_kernels *kernels = c->model->kernels;
    const tsk__weight *w = tsk__cpu_weight(c->model, -1, TSK__PART_HEAD);
    const int32_t first = task * TSK__CPU_CHUNK,
                  count = w->rows - first < TSK__CPU_CHUNK ? w->rows - first : TSK__CPU_CHUNK;
    tsk__cpu_best *best = c->best + (size_t)task * (size_t)c->n;
    float logits[TSK__CPU_QUERIES][TSK__CPU_CHUNK] TSK__CPU_ALIGNED;
    int32_t row, i, o;
    for (row = 0; row < c->n; row += TSK__CPU_QUERIES) {
        const int32_t n = c->n - row < TSK__CPU_QUERIES ? c->n - row : TSK__CPU_QUERIES;
        for (o = 0; o < count; o += TSK__CPU_WIDTH) {
            const tsk__cpu_part next =
                tsk__cpu_part_of(o + TSK__CPU_WIDTH < count ? w : NULL, first + o + TSK__CPU_WIDTH);
            tsk__cpu_panel(kernels, tsk__cpu_part_of(w, first + o), next, n, c->x + (size_t)row * (size_t)w->cols,
                           &logits[0][o], TSK__CPU_CHUNK);
        }
        for (i = 0; i < n; i++) tsk__cpu_head_row(kernels, &c->draws[row + i], logits[i], first, count, &best[row + i]);
    }
}

/* A row's chunks, best[0], best[n], best[2n], ..., in order of ids: > keeps the lowest of equals. */
static void tsk__cpu_head_combine(const tsk__cpu_best *best, int32_t n, int32_t chunks, int32_t mask,
                                  tsk__prediction *out) {
    const tsk__cpu_best *b, *winner = best;
    double sum = 0.0, lse;
    float max = -INFINITY;
    int32_t chunk;
    for (chunk = 0, b = best; chunk < chunks; chunk++, b += n) {
        if (b->id >= 0 && (winner->id < 0 || b->score > winner->score)) winner = b;
        if (b->max > max) max = b->max;
    }
    for (chunk = 0, b = best; chunk < chunks; chunk++, b += n)
        sum += (double)b->sum * exp((double)b->max - (double)max);
    lse = (double)max + log(sum);
    out->id = winner->id >= 0 ? winner->id : mask == 0;  /* all NaN: still an id, and not the mask */
    out->logit = winner->logit;
    out->log_sum_exp = (float)lse;
    out->confidence = (float)exp((double)winner->logit - lse);
}

/* out[n] from normed[n, d_model] and draws[n]; the logits exist a chunk at a time only. */
static void tsk__cpu_head(const tsk__cpu_model *model, int32_t n, const float *normed, const tsk__draw *draws,
                          tsk__prediction *out, tsk__cpu_scratch *scratch) {
    const tsk__weight *head = tsk__cpu_weight(model, -1, TSK__PART_HEAD);
    const int32_t chunks = (head->rows + TSK__CPU_CHUNK - 1) / TSK__CPU_CHUNK;
    int32_t row, i;
    for (row = 0; row < n; row += TSK__CPU_HEAD_ROWS) {
        tsk__cpu_head_job job;
        job.model = model;
        job.n = n - row < TSK__CPU_HEAD_ROWS ? n - row : TSK__CPU_HEAD_ROWS;
        job.x = normed + (size_t)row * (size_t)head->cols;
        job.draws = draws + row;
        job.best = scratch->best;
        tsk__cpu_tasks(model, chunks, tsk__cpu_work(job.n, head), tsk__cpu_head_task, &job);
        for (i = 0; i < job.n; i++)
            tsk__cpu_head_combine(job.best + i, job.n, chunks, draws[row + i].mask_token_id, &out[row + i]);
    }
}

// >>cpu_weights =======================================================================================================
/* How weights get to the CPU: a tensor stays where it is mapped, in the type that it is stored in. Only what is
   misaligned or not mapped is copied, and norms and biases, a few kilobytes, are converted to f32. */

typedef struct tsk__cpu_loading {
    tsk__cpu_model *model;
    const tsk__source *source;
    const tsk_model_options *options;
    uint64_t done, total;          /* bytes */
} tsk__cpu_loading;

static int tsk__cpu_is_aligned(const tsk__stored *stored) {
    return stored->data && (uintptr_t)stored->data % tsk_dtype_size(stored->dtype) == 0;
}

/* Memory that lives as long as the model. */
static void *tsk__cpu_allocate(tsk__cpu_model *model, size_t count, size_t size) {
    void *block;
    if (!tsk__memory_reserve(model->allocator, &model->blocks, &model->block_capacity, model->n_blocks + 1,
                             sizeof *model->blocks))
        return NULL;
    block = tsk__memory_new(model->allocator, count, size);
    if (block) model->blocks[model->n_blocks++] = block;
    return block;
}

static tsk_status tsk__cpu_put_matrix(tsk__cpu_loading *l, const tsk__stored *stored, tsk__weight *out,
                                      tsk_error *error) {
    void *copy;
    out->dtype = stored->dtype;
    out->rows = stored->rows;
    out->cols = stored->cols;
    out->data = stored->data;
    if (tsk__cpu_is_aligned(stored)) return TSK_OK;
    copy = stored->size > SIZE_MAX ? NULL : tsk__cpu_allocate(l->model, (size_t)stored->size, 1);
    if (!copy) return tsk__error_memory(error, stored->name, stored->size);
    out->data = copy;
    if (!stored->data) return l->source->read(l->source, stored, 0, copy, (size_t)stored->size, error);
    memcpy(copy, stored->data, (size_t)stored->size);
    return TSK_OK;
}

static tsk_status tsk__cpu_put_vector(tsk__cpu_loading *l, const tsk__stored *stored, const float **out,
                                      tsk_error *error) {
    float *values;
    const void *from = stored->data;
    tsk_status status = TSK_OK;
    *out = (const float *)from;
    if (stored->dtype == TSK_DTYPE_F32 && tsk__cpu_is_aligned(stored)) return TSK_OK;
    values = (float *)tsk__cpu_allocate(l->model, (size_t)stored->rows, sizeof *values);
    if (!values) return tsk__error_memory(error, stored->name, stored->size);
    if (!from) {  /* read to the end of the room that they are widened in */
        char *end = (char *)(values + stored->rows) - stored->size;
        from = end;
        status = l->source->read(l->source, stored, 0, end, (size_t)stored->size, error);
    }
    if (status == TSK_OK) tsk__floats_from(stored->dtype, from, (uint64_t)stored->rows, values);
    *out = values;
    return status;
}

static tsk_status tsk__cpu_put(void *loading, const tsk__weight_id *id, const tsk__stored *stored, tsk_error *error) {
    tsk__cpu_loading *l = (tsk__cpu_loading *)loading;
    const tsk_model_config *c = l->model->config;
    const tsk_model_options *o = l->options;
    tsk__weight *w = &l->model->weights[tsk__family_index(c, id->layer, (tsk__part)id->part, id->expert)];
    const float *vector = NULL;
    tsk_status status;
    if (!tsk__family_is_vector(c, id)) status = tsk__cpu_put_matrix(l, stored, w, error);
    else {
        status = tsk__cpu_put_vector(l, stored, &vector, error);
        if (id->is_bias) w->bias = vector;
        else w->data = vector, w->dtype = TSK_DTYPE_F32, w->rows = stored->rows, w->cols = 1;
    }
    if (status != TSK_OK) return status;
    l->done += stored->size;
    if (o->progress) o->progress(o->user, l->done, l->total);
    if (o->cancel && o->cancel(o->user))
        return tsk__error_set(error, TSK_ERROR_CANCELLED, NULL, TSK_NO_OFFSET, "loading was cancelled");
    return TSK_OK;
}

/* Needs the model's configuration and allocator. tsk__cpu_weights_free frees what was loaded, after a failure too. */
static tsk_status tsk__cpu_load_weights(tsk__cpu_model *model, const tsk__source *source, const tsk_model_options *o,
                                        tsk_error *error) {
    const tsk_model_config *c = model->config;
    size_t count = tsk__family_count(c);
    tsk__cpu_loading loading;
    tsk_status status;
    model->weights = (tsk__weight *)tsk__cpu_allocate(model, count, sizeof *model->weights);
    if (!model->weights) return tsk__error_memory(error, "the list of weights", count * sizeof *model->weights);
    memset(model->weights, 0, count * sizeof *model->weights);
    loading.model = model;
    loading.source = source;
    loading.options = o;
    loading.done = 0;
    loading.total = tsk__weights_total(source);
    status = tsk__weights_load(source, tsk__cpu_put, &loading, error);
    if (c->weight_tying)
        model->weights[tsk__family_index(c, -1, TSK__PART_HEAD, 0)] = *tsk__cpu_weight(model, -1, TSK__PART_EMBEDDING);
    return status;
}

static void tsk__cpu_weights_free(tsk__cpu_model *model) {
    size_t i;
    for (i = 0; i < model->n_blocks; i++) tsk__memory_delete(model->allocator, model->blocks[i]);
    tsk__memory_delete(model->allocator, model->blocks);
}

// >>cpu_backend =======================================================================================================
/* The table of the CPU backend: rows are gathered, handed to the operations of >>cpu, and put back. */

typedef struct tsk__cpu_backend {
    tsk__backend base;
    tsk__cpu_model model;
    const tsk_allocator *allocator;
} tsk__cpu_backend;

typedef struct tsk__cpu_stream {
    tsk__stream base;
    tsk__rows rows;                /* of begin, then of compact */
    tsk__rows all_rows;
    const int32_t *compacted;      /* index into all_rows, or NULL */
    int32_t *compact_lists;        /* [5, max_rows] tokens, positions, requests, slots, visible */
    float *compact_x, *full_x;     /* [max_rows, d_model]; base.x is one of them */
    float *head_rows;              /* [max_rows, d_model] final norm of the rows asked for */
    int32_t *tokens;               /* [max_rows] ids of the list of begin */
    float *confidences;            /* [max_rows] of one request's candidates, */
    uint8_t *commits;              /* [max_rows] and which of them it commits */
    void *scratch_memory;
    tsk__cpu_scratch scratch;
} tsk__cpu_stream;

static const tsk__cpu_model *tsk__cpu_model_of(const tsk__stream *s) {
    return &((const tsk__cpu_backend *)(const void *)s->backend)->model;
}
static tsk__cpu_stream *tsk__cpu_stream_of(tsk__stream *s) { return (tsk__cpu_stream *)(void *)s; }
static const tsk_allocator *tsk__cpu_allocator_of(const tsk__backend *backend) {
    return ((const tsk__cpu_backend *)(const void *)backend)->allocator;
}

static void tsk__cpu_stream_destroy(tsk__stream *stream) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    const tsk_allocator *allocator = tsk__cpu_allocator_of(stream->backend);
    tsk__memory_delete(allocator, s->base.q);
    tsk__memory_delete(allocator, s->base.attention);
    tsk__memory_delete(allocator, s->base.hidden);
    tsk__memory_delete(allocator, s->base.cosines);
    tsk__memory_delete(allocator, s->base.skipped);
    tsk__memory_delete(allocator, s->base.predictions);
    tsk__memory_delete(allocator, s->base.choices);
    tsk__memory_delete(allocator, s->tokens);
    tsk__memory_delete(allocator, s->confidences);
    tsk__memory_delete(allocator, s->commits);
    tsk__memory_delete(allocator, s->compact_lists);
    tsk__memory_delete(allocator, s->compact_x);
    tsk__memory_delete(allocator, s->full_x);
    tsk__memory_delete(allocator, s->head_rows);
    tsk__memory_delete(allocator, s->scratch_memory);
    tsk__memory_delete(allocator, s);
}

static tsk_status tsk__cpu_stream_create(tsk__backend *backend, int32_t max_rows, int32_t n_states, tsk__stream **out,
                                         tsk_error *error) {
    const tsk_model_config *c = backend->config;
    const tsk_allocator *allocator = tsk__cpu_allocator_of(backend);
    size_t rows = (size_t)max_rows, d = (size_t)c->d_model, q = (size_t)c->n_heads * (size_t)c->head_dim, scratch_size;
    tsk__cpu_stream *s = (tsk__cpu_stream *)tsk__memory_new_zeroed(allocator, 1, sizeof *s);
    if (!s) return tsk__error_memory(error, "a stream", sizeof *s);
    s->base.backend = backend;
    s->base.max_rows = max_rows;
    s->full_x = (float *)tsk__memory_new(allocator, rows * d, sizeof(float));
    s->compact_x = (float *)tsk__memory_new(allocator, rows * d, sizeof(float));
    s->head_rows = (float *)tsk__memory_new(allocator, rows * d, sizeof(float));
    s->base.q = tsk__memory_new(allocator, rows * q, sizeof(float));
    s->base.attention = tsk__memory_new(allocator, rows * q, sizeof(float));
    s->base.hidden = tsk__memory_new(allocator, rows * (size_t)c->mlp_hidden_size, sizeof(float));
    s->base.cosines = (float *)tsk__memory_new_zeroed(allocator, rows * (size_t)n_states, sizeof(float));
    s->base.skipped = (int32_t *)tsk__memory_new_zeroed(allocator, rows, sizeof *s->base.skipped);
    s->base.predictions = tsk__memory_new(allocator, rows, sizeof(tsk__prediction));
    s->base.choices = (tsk__choice *)tsk__memory_new(allocator, rows, sizeof *s->base.choices);
    s->tokens = (int32_t *)tsk__memory_new(allocator, rows, sizeof *s->tokens);
    s->confidences = (float *)tsk__memory_new(allocator, rows, sizeof *s->confidences);
    s->commits = (uint8_t *)tsk__memory_new(allocator, rows, sizeof *s->commits);
    s->compact_lists = (int32_t *)tsk__memory_new(allocator, rows * 5, sizeof(int32_t));
    scratch_size = tsk__cpu_scratch_init(&s->scratch, c, max_rows, NULL);
    s->scratch_memory = tsk__memory_new(allocator, scratch_size, 1);
    if (!s->full_x || !s->compact_x || !s->head_rows || !s->base.q || !s->base.attention || !s->base.hidden ||
        !s->base.cosines || !s->base.skipped || !s->base.predictions || !s->base.choices || !s->tokens ||
        !s->confidences || !s->commits || !s->compact_lists || !s->scratch_memory) {
        tsk__cpu_stream_destroy(&s->base);
        return tsk__error_memory(error, "the activations of a pass",
                                 rows * (3 * d + 2 * q + (size_t)c->mlp_hidden_size) * sizeof(float) + scratch_size);
    }
    tsk__cpu_scratch_init(&s->scratch, c, max_rows, s->scratch_memory);
    s->base.x = s->full_x;
    *out = &s->base;
    return TSK_OK;
}

static uint64_t tsk__cpu_backend_available(tsk__backend *backend) {
    (void)backend;
    return tsk__memory_available();
}
static void *tsk__cpu_backend_allocate(tsk__backend *backend, uint64_t size) {
    return size > SIZE_MAX ? NULL : tsk__memory_new(tsk__cpu_allocator_of(backend), (size_t)size, 1);
}
static void tsk__cpu_backend_release(tsk__backend *backend, void *address) {
    tsk__memory_delete(tsk__cpu_allocator_of(backend), address);
}
static void tsk__cpu_backend_copy(tsk__stream *s, void *to, const void *from, uint64_t size) {
    (void)s;
    memmove(to, from, (size_t)size);
}
static void tsk__cpu_backend_slide(tsk__stream *s, void *base, int32_t planes, uint64_t pitch, uint64_t to,
                                   uint64_t from, uint64_t size) {
    char *plane = (char *)base;
    int32_t i;
    (void)s;
    for (i = 0; i < planes; i++, plane += pitch) memmove(plane + to, plane + from, (size_t)size);
}
static void tsk__cpu_backend_upload(tsk__stream *s, void *to, const void *from, uint64_t size) {
    (void)s;
    memcpy(to, from, (size_t)size);
}
static void tsk__cpu_backend_download(tsk__stream *s, float *to, const void *from, uint64_t count) {
    (void)s;
    memcpy(to, from, (size_t)count * sizeof(float));
}
static tsk_status tsk__cpu_backend_wait(tsk__stream *s, tsk_error *error) {
    (void)s;
    (void)error;
    return TSK_OK;
}

static void tsk__cpu_backend_begin(tsk__stream *stream, const tsk__rows *rows) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    int32_t i;
    for (i = 0; i < rows->n; i++) {
        const int32_t *canvas = (const int32_t *)rows->caches[rows->requests[i]].tokens;
        s->tokens[i] = canvas ? canvas[rows->positions[i]] : rows->tokens[i];
    }
    s->all_rows = *rows;
    s->all_rows.tokens = s->tokens;
    s->rows = s->all_rows;
    s->compacted = NULL;
    s->base.x = s->full_x;
}
static void tsk__cpu_backend_embed(tsk__stream *s) {
    tsk__cpu_embed(tsk__cpu_model_of(s), &tsk__cpu_stream_of(s)->rows, (float *)s->x);
}
static void tsk__cpu_backend_qkv(tsk__stream *s, int32_t layer, const tsk__captures *captures) {
    tsk__cpu_qkv(tsk__cpu_model_of(s), layer, &tsk__cpu_stream_of(s)->rows, (const float *)s->x, (float *)s->q,
                 &tsk__cpu_stream_of(s)->scratch, captures);
}
static void tsk__cpu_backend_attend(tsk__stream *s, int32_t layer) {
    tsk__cpu_attention(tsk__cpu_model_of(s), layer, &tsk__cpu_stream_of(s)->rows, (const float *)s->q,
                       (float *)s->attention, &tsk__cpu_stream_of(s)->scratch);
}
static void tsk__cpu_backend_attn_out(tsk__stream *s, int32_t layer, const tsk__captures *captures) {
    tsk__cpu_attn_out(tsk__cpu_model_of(s), layer, tsk__cpu_stream_of(s)->rows.n, (const float *)s->attention,
                      (float *)s->x, captures, &tsk__cpu_stream_of(s)->scratch);
}
static void tsk__cpu_backend_gate_up(tsk__stream *s, int32_t layer, const tsk__captures *captures) {
    tsk__cpu_gate_up(tsk__cpu_model_of(s), layer, tsk__cpu_stream_of(s)->rows.n, (const float *)s->x,
                     (float *)s->hidden, &tsk__cpu_stream_of(s)->scratch, captures);
}
static void tsk__cpu_backend_down(tsk__stream *s, int32_t layer, const tsk__captures *captures) {
    tsk__cpu_down(tsk__cpu_model_of(s), layer, tsk__cpu_stream_of(s)->rows.n, (const float *)s->hidden, (float *)s->x,
                  captures, &tsk__cpu_stream_of(s)->scratch);
}

/* A row of one half (0: to compare with, 1: of the pass) of a request's states. */
static float *tsk__cpu_state(const tsk__cpu_stream *s, int32_t row, int half, int32_t state) {
    const tsk__kv *kv = &s->rows.caches[s->rows.requests[row]];
    size_t index =
        ((size_t)half * (size_t)kv->n_states + (size_t)state) * (size_t)kv->n_slots + (size_t)s->rows.slots[row];
    return (float *)kv->states + index * (size_t)s->base.backend->config->d_model;
}

static void tsk__cpu_backend_compare(tsk__stream *stream, int32_t state) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    size_t d = (size_t)stream->backend->config->d_model;
    int32_t i;
    for (i = 0; i < s->rows.n; i++) {
        const float *x = (const float *)stream->x + (size_t)i * d;
        size_t row = (size_t)(s->compacted ? s->compacted[i] : i);
        if (s->rows.slots[i] < 0 || state >= s->rows.caches[s->rows.requests[i]].n_states) continue;
        if (s->rows.caches[s->rows.requests[i]].has_reference)
            tsk__cpu_cosine(tsk__cpu_model_of(stream), 1, x, tsk__cpu_state(s, i, 0, state),
                            &stream->cosines[(size_t)state * (size_t)stream->max_rows + row]);
        memcpy(tsk__cpu_state(s, i, 1, state), x, d * sizeof *x);
    }
}

static void tsk__cpu_backend_decide(tsk__stream *stream, int32_t n_states) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    int32_t i;
    for (i = 0; i < s->rows.n; i++) {
        const tsk__kv *kv = &s->rows.caches[s->rows.requests[i]];
        int32_t row = s->compacted ? s->compacted[i] : i, flags = s->all_rows.flags ? s->all_rows.flags[row] : 0;
        if (kv->n_states != n_states || !(flags & TSK__ROW_DECIDED)) continue;
        stream->skipped[row] =
            (flags & TSK__ROW_SKIPS) ||
            tsk__skip_similar(stream->cosines + row, n_states, stream->max_rows, kv->skip_threshold, kv->skip_outlier);
    }
}

static void tsk__cpu_backend_keep(tsk__stream *stream) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    size_t d = (size_t)stream->backend->config->d_model;
    int32_t i, state;
    for (i = 0; i < s->rows.n && s->rows.flags; i++) {
        const tsk__kv *kv = &s->rows.caches[s->rows.requests[i]];
        int32_t flags = s->rows.flags[i];
        int skipped = (flags & TSK__ROW_DECIDED) && stream->skipped[i];
        float *x = (float *)stream->x + (size_t)i * d, *output;
        if (s->rows.slots[i] < 0) continue;
        for (state = 0; (flags & TSK__ROW_REMEMBER) && !(skipped && (flags & TSK__ROW_IF_RAN)) && state < kv->n_states;
             state++)
            memcpy(tsk__cpu_state(s, i, 0, state), tsk__cpu_state(s, i, 1, state), d * sizeof *x);
        if (!(flags & TSK__ROW_OUTPUT)) continue;
        output = (float *)kv->outputs + (size_t)s->rows.slots[i] * d;
        memcpy(skipped ? x : output, skipped ? output : x, d * sizeof *x);
    }
}

static void tsk__cpu_backend_expand(tsk__stream *stream) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    if (s->compacted)
        tsk__cpu_scatter(tsk__cpu_model_of(stream), s->rows.n, stream->backend->config->d_model, s->compact_x,
                         s->compacted, s->full_x);
    s->rows = s->all_rows;
    s->compacted = NULL;
    s->base.x = s->full_x;
}

static void tsk__cpu_backend_compact(tsk__stream *stream, int32_t n, const int32_t *index) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    int32_t i, *tokens = s->compact_lists, *positions = tokens + stream->max_rows,
               *requests = positions + stream->max_rows, *slots = requests + stream->max_rows,
               *visible = slots + stream->max_rows;
    tsk__cpu_backend_expand(stream);
    for (i = 0; i < n; i++) {
        tokens[i] = s->all_rows.tokens[index[i]];
        positions[i] = s->all_rows.positions[index[i]];
        requests[i] = s->all_rows.requests[index[i]];
        slots[i] = s->all_rows.slots[index[i]];
        visible[i] = tsk__cpu_visible(&s->all_rows, index[i]);
    }
    tsk__cpu_gather(tsk__cpu_model_of(stream), n, stream->backend->config->d_model, s->full_x, index, s->compact_x);
    s->rows.n = n;
    s->rows.tokens = tokens;
    s->rows.positions = positions;
    s->rows.requests = requests;
    s->rows.slots = slots;
    s->rows.visible = visible;
    s->compacted = index;
    s->base.x = s->compact_x;
}

static void tsk__cpu_select_rows(tsk__stream *stream, int32_t n, const int32_t *index) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    tsk__cpu_gather(tsk__cpu_model_of(stream), n, stream->backend->config->d_model, (const float *)stream->x, index,
                    s->head_rows);
    tsk__cpu_final_norm(tsk__cpu_model_of(stream), n, s->head_rows, s->head_rows);
}
static void tsk__cpu_backend_head(tsk__stream *stream, int32_t n, const int32_t *index, const tsk__draw *draws) {
    tsk__cpu_select_rows(stream, n, index);
    tsk__cpu_head(tsk__cpu_model_of(stream), n, tsk__cpu_stream_of(stream)->head_rows, draws,
                  (tsk__prediction *)stream->predictions, &tsk__cpu_stream_of(stream)->scratch);
}

/* Fills in the choices of one request's candidates: ids and confidences. */
static void tsk__cpu_fill_choices(tsk__stream *stream, const tsk__commit_rule *o,
                                  const tsk__commit_candidate *candidates) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    tsk__prediction *last = (tsk__prediction *)s->all_rows.caches[o->request].predictions;
    int32_t i;
    for (i = 0; i < o->n; i++) {
        const tsk__commit_candidate *c = &candidates[o->first + i];
        tsk__choice *choice = &stream->choices[o->first + i];
        if (c->head >= 0) last[c->slot] = ((const tsk__prediction *)stream->predictions)[c->head];
        choice->id = last[c->slot].id;
        choice->log_sum_exp = last[c->slot].log_sum_exp;
        choice->confidence =
            o->is_random ? tsk__random_confidence(o->seed, c->position, o->pass) : last[c->slot].confidence;
        s->confidences[i] = choice->confidence;
    }
}
static void tsk__cpu_backend_select(tsk__stream *stream, int32_t n, const tsk__commit_rule *rules, int32_t n_candidates,
                                    const tsk__commit_candidate *candidates) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    int32_t r, i;
    (void)n_candidates;
    for (r = 0; r < n; r++) {
        const tsk__commit_rule *o = &rules[r];
        int32_t *canvas = (int32_t *)s->all_rows.caches[o->request].tokens;
        tsk_transfer_rule rule;
        tsk__cpu_fill_choices(stream, o, candidates);
        memset(s->commits, 0, (size_t)o->n);
        rule.transfer = (tsk_transfer)o->transfer;
        rule.threshold = o->threshold;
        rule.factor = o->factor;
        rule.quota = o->quota;
        if (o->commits && o->n) tsk__select(&rule, o->n, s->confidences, 1, s->commits);
        for (i = 0; i < o->n; i++) {
            stream->choices[o->first + i].is_committed = s->commits[i];
            if (s->commits[i]) canvas[candidates[o->first + i].position] = stream->choices[o->first + i].id;
        }
    }
}
static void tsk__cpu_backend_logits(tsk__stream *stream, int32_t n, const int32_t *index, float *norm, float *logits) {
    tsk__cpu_stream *s = tsk__cpu_stream_of(stream);
    tsk__cpu_select_rows(stream, n, index);
    if (norm) memcpy(norm, s->head_rows, (size_t)n * (size_t)stream->backend->config->d_model * sizeof *norm);
    tsk__cpu_logits(tsk__cpu_model_of(stream), n, s->head_rows, logits);
}

/* ---- ceilings, for benchmarks */

#define TSK__CPU_CEILING_BYTES ((uint64_t)256 << 20)
#define TSK__CPU_CEILING_REPEATS 5

typedef struct tsk__cpu_ceiling_read {
    const uint64_t *words;
    uint64_t words_per_task;
    uint64_t sums[TSK__POOL_MAX_THREADS];
} tsk__cpu_ceiling_read;

static void tsk__cpu_ceiling_read_task(void *context, int task) {
    tsk__cpu_ceiling_read *r = (tsk__cpu_ceiling_read *)context;
    const uint64_t *words = r->words + (uint64_t)task * r->words_per_task;
    uint64_t a = 0, b = 0, c = 0, d = 0, i;
    for (i = 0; i + 4 <= r->words_per_task; i += 4) {
        a += words[i];
        b += words[i + 1];
        c += words[i + 2];
        d += words[i + 3];
    }
    r->sums[task] = a + b + c + d;
}

/* The best of a few readings of a buffer far larger than a core's caches. */
static tsk_status tsk__cpu_ceiling_bytes(const tsk__cpu_backend *b, double *out, tsk_error *error) {
    uint64_t *words = (uint64_t *)tsk__memory_new(b->allocator, (size_t)TSK__CPU_CEILING_BYTES, 1);
    tsk__cpu_ceiling_read read;
    double best = 0;
    int i;
    if (!words) return tsk__error_memory(error, "measuring bandwidth", TSK__CPU_CEILING_BYTES);
    memset(words, 1, (size_t)TSK__CPU_CEILING_BYTES);
    read.words = words;
    read.words_per_task = TSK__CPU_CEILING_BYTES / sizeof *words / (uint64_t)b->model.pool->n_threads;
    for (i = 0; i < TSK__CPU_CEILING_REPEATS; i++) {
        double start = tsk__time_ms(), rate;
        tsk__parallel(b->model.pool, b->model.pool->n_threads, tsk__cpu_ceiling_read_task, &read);
        rate = (double)(read.words_per_task * sizeof *words * (uint64_t)b->model.pool->n_threads) /
               ((tsk__time_ms() - start) * 1e-3);
        if (rate > best) best = rate;
    }
    tsk__memory_delete(b->allocator, words);
    *out = best;
    return TSK_OK;
}

/* The library's own product in a shape that suits it: many rows, f32 weights that stay in cache. */
static tsk_status tsk__cpu_ceiling_flops(const tsk__cpu_backend *b, double *out, tsk_error *error) {
    enum { rows = 256, size = 1024 };
    float *memory =
        (float *)tsk__memory_new_zeroed(b->allocator, (size_t)2 * rows * size + (size_t)size * size, sizeof *memory);
    tsk__weight weights;
    tsk__cpu_product product;
    double best = 0;
    int i;
    if (!memory)
        return tsk__error_memory(error, "measuring arithmetic", sizeof *memory * (2 * rows * size + size * size));
    for (i = 0; i < rows * size + size * size; i++) memory[i] = (float)(i % 97) * 0.01f - 0.5f;
    memset(&weights, 0, sizeof weights);
    weights.data = memory;
    weights.dtype = TSK_DTYPE_F32;
    weights.rows = weights.cols = size;
    memset(&product, 0, sizeof product);
    product.n = rows;
    product.count = 1;
    product.w[0] = &weights;
    product.x = memory + size * size;
    product.y[0] = memory + size * size + rows * size;
    for (i = 0; i < TSK__CPU_CEILING_REPEATS; i++) {
        double start = tsk__time_ms(), rate;
        tsk__cpu_product_run(&b->model, &product);
        rate = (double)(2 * rows * size * size) / ((tsk__time_ms() - start) * 1e-3);
        if (rate > best) best = rate;
    }
    tsk__memory_delete(b->allocator, memory);
    *out = best;
    return TSK_OK;
}

static tsk_status tsk__cpu_backend_ceilings(tsk__backend *backend, tsk_ceilings *out, tsk_error *error) {
    const tsk__cpu_backend *b = (const tsk__cpu_backend *)(const void *)backend;
    tsk_status status = tsk__cpu_ceiling_bytes(b, &out->bytes_per_second, error);
    return status == TSK_OK ? tsk__cpu_ceiling_flops(b, &out->flops_per_second, error) : status;
}

/* ---- the table */

static void tsk__cpu_backend_destroy(tsk__backend *backend) {
    tsk__cpu_model *model = &((tsk__cpu_backend *)(void *)backend)->model;
    const tsk_allocator *allocator = tsk__cpu_allocator_of(backend);
    tsk__pool_destroy(allocator, model->pool);
    tsk__cpu_weights_free(model);
    tsk__memory_delete(allocator, backend);
}
static void tsk__cpu_backend_describe(const tsk__backend *backend, char *out, size_t size) {
    const tsk__cpu_backend *b = (const tsk__cpu_backend *)(const void *)backend;
    tsk__cpu_describe(b->model.kernels, b->model.pool, out, size);
}

/* No recorded sections, and subsets always run compacted: a masked row would cost as much as any. */
static const tsk__backend_ops tsk__cpu_backend_ops = {0,
                                                      tsk__cpu_backend_destroy,
                                                      tsk__cpu_backend_describe,
                                                      tsk__cpu_backend_ceilings,
                                                      tsk__cpu_backend_available,
                                                      tsk__cpu_stream_create,
                                                      tsk__cpu_stream_destroy,
                                                      tsk__cpu_backend_allocate,
                                                      tsk__cpu_backend_release,
                                                      tsk__cpu_backend_copy,
                                                      tsk__cpu_backend_slide,
                                                      tsk__cpu_backend_upload,
                                                      tsk__cpu_backend_download,
                                                      tsk__cpu_backend_wait,
                                                      tsk__cpu_backend_begin,
                                                      NULL,
                                                      tsk__cpu_backend_embed,
                                                      tsk__cpu_backend_qkv,
                                                      tsk__cpu_backend_attend,
                                                      tsk__cpu_backend_attn_out,
                                                      tsk__cpu_backend_gate_up,
                                                      tsk__cpu_backend_down,
                                                      tsk__cpu_backend_compare,
                                                      tsk__cpu_backend_decide,
                                                      tsk__cpu_backend_keep,
                                                      tsk__cpu_backend_compact,
                                                      tsk__cpu_backend_expand,
                                                      tsk__cpu_backend_head,
                                                      tsk__cpu_backend_select,
                                                      tsk__cpu_backend_logits,
                                                      NULL,
                                                      NULL,
                                                      NULL};

static int tsk__cpu_backend_usable(int device_index, char *why, size_t why_size) {
    (void)device_index, (void)why, (void)why_size;
    return 1;
}

static tsk_status tsk__cpu_backend_fill(tsk__cpu_backend *b, const tsk__source *source, const tsk_model_options *o,
                                        tsk_error *error) {
    const tsk_model_config *config = b->base.config;
    const int32_t half = config->head_dim / 2;
    tsk__cpu_model *model = &b->model;
    tsk__source helped = *source;
    int32_t i;
    model->rope_frequencies = (float *)tsk__cpu_allocate(model, (size_t)half, sizeof(float));
    if (!model->rope_frequencies)
        return tsk__error_memory(error, "rotary frequencies", (uint64_t)half * sizeof(float));
    for (i = 0; i < half; i++) model->rope_frequencies[i] = tsk__rope_frequency(config, i);
    model->pool = tsk__pool_create(b->allocator, o->n_threads);
    if (!model->pool) return tsk__error_memory(error, "worker threads", sizeof *model->pool);
    helped.pool = model->pool;
    return tsk__cpu_load_weights(model, &helped, o, error);
}

static tsk_status tsk__cpu_backend_create(const tsk_model_config *config, const tsk__source *source,
                                          const tsk_model_options *o, tsk__backend **out, tsk_error *error) {
    const tsk_allocator *allocator = tsk__memory_allocator(&o->host);
    tsk__cpu_backend *b = (tsk__cpu_backend *)tsk__memory_new_zeroed(allocator, 1, sizeof *b);
    tsk_status status;
    *out = NULL;
    if (!b) return tsk__error_memory(error, "the CPU backend", sizeof *b);
    b->base.ops = &tsk__cpu_backend_ops;
    b->base.config = b->model.config = config;
    b->base.element_size = sizeof(float);
    b->allocator = b->model.allocator = allocator;
    b->model.kernels = tsk__cpu_kernels_select();
    status = tsk__cpu_backend_fill(b, source, o, error);
    if (status != TSK_OK) tsk__cpu_backend_destroy(&b->base);
    else *out = &b->base;
    return status;
}

static const tsk__backend_kind tsk__cpu_backend_kind = {TSK_DEVICE_CPU, tsk__cpu_backend_usable,
                                                        tsk__cpu_backend_create};

// >>cuda_driver =======================================================================================================
/* The second backend: NVIDIA GPUs from compute capability 8.0 up, through the driver API. The kernels (src/kernels) are
   compiled by NVRTC for the GPU at hand and kept on disk. Weights lie in one arena on the device, laid out for the
   kernels: q, k and v rows in one matrix, 8 rows of a head's first half alternating with their partners in RoPE, and 8
   rows of gate with 8 of up. Ways through the layers:

       bf16, up to 64 rows    few fused kernels that read every weight once (linear_*), recorded as CUDA graphs
       bf16, up to 128 rows   on compute capability 9.0 the same with other kernels (wide_*), recorded when they come
       again bf16, more rows        cuBLAS for the matrix products, row-wise kernels between them f32                   
       as the last, with a matrix product of our own that adds in one order whatever the rows

   What varies from pass to pass (positions, cache addresses, which rows may be skipped) reaches the kernels through a
   table that the pass's first kernel fetches from pinned host memory, so that a recorded section stays good for the
   stream's life. Tokens and predictions stay on the device, which masks the rows that it decides to skip, in the table,
   and commits; the host is left a word for each row and each candidate, and learns that work is done by watching a
   pinned word. Where it needs no answer in a pass's middle (TokenSkip with masked tokens always running) all of the
   pass is launched at once. */

#ifndef TOKENSKIP_NO_CUDA
#define TOKENSKIP__HAS_CUDA

#ifdef __cplusplus
}  /* extern "C": the CUDA headers have templates */
#endif
#ifndef TOKENSKIP_CUDA_DLOPEN
#if defined(__has_include)
#if !__has_include(<cuda.h>)
#error "cuda.h not found. Give its folder with -I (often /usr/local/cuda/include), or define TOKENSKIP_CUDA_DLOPEN \
to look for CUDA at run time, or TOKENSKIP_NO_CUDA to do without"
#endif
#endif
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#endif
#ifndef CUDA_NO_HALF
#define CUDA_NO_HALF  /* no types named `half` in the host program's C++ */
#define TSK__CUDA_NO_HALF
#endif
#include <cublas_v2.h>
#include <cuda.h>
#include <nvrtc.h>
#ifdef TSK__CUDA_NO_HALF
#undef CUDA_NO_HALF
#undef TSK__CUDA_NO_HALF
#endif
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif
#endif
#ifdef __cplusplus
extern "C" {
#endif

#include "kernels.cu.h"

/* ---- the three libraries' functions */

#ifdef TOKENSKIP_CUDA_DLOPEN
/* What is needed of their headers, which are not. */
typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;
typedef int CUdevice_attribute;
typedef int CUfunction_attribute;
typedef int CUstreamCaptureMode;
typedef struct CUtensorMap { uint64_t opaque[16]; } CUtensorMap;
typedef int CUtensorMapDataType;
typedef int CUtensorMapInterleave;
typedef int CUtensorMapSwizzle;
typedef int CUtensorMapL2promotion;
typedef int CUtensorMapFloatOOBfill;
typedef uint32_t cuuint32_t;
typedef uint64_t cuuint64_t;
typedef struct CUlaunchAttribute {
    int id;
    char pad[4];
    union {
        char pad[64];
        struct { unsigned int x, y, z; } clusterDim;
        int programmaticStreamSerializationAllowed;
    } value;
} CUlaunchAttribute;
typedef struct CUlaunchConfig {
    unsigned int gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes;
    CUstream hStream;
    CUlaunchAttribute *attrs;
    unsigned int numAttrs;
} CUlaunchConfig;
typedef int nvrtcResult;
typedef struct _nvrtcProgram *nvrtcProgram;
typedef int cublasStatus_t;
typedef struct cublasContext *cublasHandle_t;
typedef int cublasOperation_t;
typedef int cudaDataType;
typedef int cublasComputeType_t;
typedef int cublasGemmAlgo_t;
enum {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_READY = 600,
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
    CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
    CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9,
    CU_STREAM_NON_BLOCKING = 1,
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1,
    CU_EVENT_DISABLE_TIMING = 2,
    CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION = 4,
    CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6,
    CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9,
    CU_TENSOR_MAP_INTERLEAVE_NONE = 0,
    CU_TENSOR_MAP_SWIZZLE_128B = 3,
    CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3,
    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0,
    NVRTC_SUCCESS = 0,
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_OP_N = 0,
    CUBLAS_OP_T = 1,
    CUDA_R_32F = 0,
    CUDA_R_16BF = 14,
    CUBLAS_COMPUTE_32F = 68,
    CUBLAS_GEMM_DEFAULT = -1
};
#endif

/* X(result type, name in the library, parameters). The _v2 names are what the headers' macros mean. */
#define TSK__CUDA_DRIVER(X) \
    X(CUresult, cuInit, (unsigned int)) \
    X(CUresult, cuDriverGetVersion, (int *)) \
    X(CUresult, cuGetErrorString, (CUresult, const char **)) \
    X(CUresult, cuDeviceGetCount, (int *)) \
    X(CUresult, cuDeviceGet, (CUdevice *, int)) \
    X(CUresult, cuDeviceGetName, (char *, int, CUdevice)) \
    X(CUresult, cuDeviceGetAttribute, (int *, CUdevice_attribute, CUdevice)) \
    X(CUresult, cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice)) \
    X(CUresult, cuDevicePrimaryCtxRelease_v2, (CUdevice)) \
    X(CUresult, cuCtxPushCurrent_v2, (CUcontext)) \
    X(CUresult, cuCtxPopCurrent_v2, (CUcontext *)) \
    X(CUresult, cuMemGetInfo_v2, (size_t *, size_t *)) \
    X(CUresult, cuMemAlloc_v2, (CUdeviceptr *, size_t)) \
    X(CUresult, cuMemFree_v2, (CUdeviceptr)) \
    X(CUresult, cuMemHostAlloc, (void **, size_t, unsigned int)) \
    X(CUresult, cuMemFreeHost, (void *)) \
    X(CUresult, cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void *, size_t, CUstream)) \
    X(CUresult, cuMemcpyDtoHAsync_v2, (void *, CUdeviceptr, size_t, CUstream)) \
    X(CUresult, cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream)) \
    X(CUresult, cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream)) \
    X(CUresult, cuModuleLoadData, (CUmodule *, const void *)) \
    X(CUresult, cuModuleUnload, (CUmodule)) \
    X(CUresult, cuModuleGetFunction, (CUfunction *, CUmodule, const char *)) \
    X(CUresult, cuFuncSetAttribute, (CUfunction, CUfunction_attribute, int)) \
    X(CUresult, cuTensorMapEncodeTiled, (CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, \
                                         const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, \
                                         CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, \
                                         CUtensorMapFloatOOBfill)) \
    X(CUresult, cuOccupancyMaxActiveClusters, (int *, CUfunction, const CUlaunchConfig *)) \
    X(CUresult, cuLaunchKernelEx, (const CUlaunchConfig *, CUfunction, void **, void **)) \
    X(CUresult, cuStreamCreate, (CUstream *, unsigned int)) \
    X(CUresult, cuStreamDestroy_v2, (CUstream)) \
    X(CUresult, cuStreamSynchronize, (CUstream)) \
    X(CUresult, cuStreamQuery, (CUstream)) \
    X(CUresult, cuStreamBeginCapture_v2, (CUstream, CUstreamCaptureMode)) \
    X(CUresult, cuStreamEndCapture, (CUstream, CUgraph *)) \
    X(CUresult, cuGraphInstantiateWithFlags, (CUgraphExec *, CUgraph, unsigned long long)) \
    X(CUresult, cuGraphLaunch, (CUgraphExec, CUstream)) \
    X(CUresult, cuGraphExecDestroy, (CUgraphExec)) \
    X(CUresult, cuGraphDestroy, (CUgraph)) \
    X(CUresult, cuEventCreate, (CUevent *, unsigned int)) \
    X(CUresult, cuEventRecord, (CUevent, CUstream)) \
    X(CUresult, cuEventSynchronize, (CUevent)) \
    X(CUresult, cuEventDestroy_v2, (CUevent))
#define TSK__CUDA_NVRTC(X) \
    X(nvrtcResult, nvrtcCreateProgram, (nvrtcProgram *, const char *, const char *, int, const char *const *, \
                                        const char *const *)) \
    X(nvrtcResult, nvrtcCompileProgram, (nvrtcProgram, int, const char *const *)) \
    X(nvrtcResult, nvrtcGetCUBINSize, (nvrtcProgram, size_t *)) \
    X(nvrtcResult, nvrtcGetCUBIN, (nvrtcProgram, char *)) \
    X(nvrtcResult, nvrtcGetProgramLogSize, (nvrtcProgram, size_t *)) \
    X(nvrtcResult, nvrtcGetProgramLog, (nvrtcProgram, char *)) \
    X(nvrtcResult, nvrtcDestroyProgram, (nvrtcProgram *))
#define TSK__CUDA_CUBLAS(X) \
    X(cublasStatus_t, cublasCreate_v2, (cublasHandle_t *)) \
    X(cublasStatus_t, cublasDestroy_v2, (cublasHandle_t)) \
    X(cublasStatus_t, cublasSetStream_v2, (cublasHandle_t, CUstream)) \
    X(cublasStatus_t, cublasSetWorkspace_v2, (cublasHandle_t, void *, size_t)) \
    X(cublasStatus_t, cublasGemmEx, \
      (cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void *, const void *, cudaDataType, \
       int, const void *, cudaDataType, int, const void *, void *, cudaDataType, int, cublasComputeType_t, \
       cublasGemmAlgo_t))

typedef struct tsk__cuda_api {
#define TSK__CUDA_FIELD(type, name, parameters) type (*name) parameters;
    TSK__CUDA_DRIVER(TSK__CUDA_FIELD)
    TSK__CUDA_NVRTC(TSK__CUDA_FIELD)
    TSK__CUDA_CUBLAS(TSK__CUDA_FIELD)
#undef TSK__CUDA_FIELD
} tsk__cuda_api;

typedef enum tsk__cuda_library {
    TSK__CUDA_LIBRARY_DRIVER,
    TSK__CUDA_LIBRARY_NVRTC,
    TSK__CUDA_LIBRARY_CUBLAS
} tsk__cuda_library;

/* Fills a library's part of `api`. 0 with `why` when it is not there. */
#ifdef TOKENSKIP_CUDA_DLOPEN
/* ISO C has no cast from dlsym's object pointer to a function's. */
static int tsk__cuda_symbol(void *library, const char *name, void *function, char *why, size_t why_size) {
    void *address = tsk__library_find(library, name);
    memcpy(function, &address, sizeof address);
    if (!address) snprintf(why, why_size, "%s is missing from its library", name);
    return address != NULL;
}

static int tsk__cuda_load(tsk__cuda_api *api, tsk__cuda_library which, char *why, size_t why_size) {
#ifdef _WIN32
    static const char *const names[3][5] = {{"nvcuda.dll", NULL, NULL, NULL, NULL},
                                            {"nvrtc64_130_0.dll", "nvrtc64_120_0.dll", NULL, NULL, NULL},
                                            {"cublas64_13.dll", "cublas64_12.dll", NULL, NULL, NULL}};
#else
    static const char *const names[3][5] = {{"libcuda.so.1", "libcuda.so", NULL, NULL, NULL},
                                            {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so",
                                             "/usr/local/cuda/lib64/libnvrtc.so", NULL},
                                            {"libcublas.so.13", "libcublas.so.12", "libcublas.so",
                                             "/usr/local/cuda/lib64/libcublas.so", NULL}};
#endif
    void *library = NULL;
    int i;
    /* Never unloaded: CUDA's libraries do not like it, and others in this process may use them. */
    for (i = 0; !library && names[which][i]; i++) library = tsk__library_open(names[which][i]);
    if (!library) {
        snprintf(why, why_size, "%s not found", names[which][0]);
        return 0;
    }
#define TSK__CUDA_FIND(type, name, parameters) \
    if (!tsk__cuda_symbol(library, #name, &api->name, why, why_size)) return 0;
    if (which == TSK__CUDA_LIBRARY_DRIVER) { TSK__CUDA_DRIVER(TSK__CUDA_FIND) }
    if (which == TSK__CUDA_LIBRARY_NVRTC) { TSK__CUDA_NVRTC(TSK__CUDA_FIND) }
    if (which == TSK__CUDA_LIBRARY_CUBLAS) { TSK__CUDA_CUBLAS(TSK__CUDA_FIND) }
#undef TSK__CUDA_FIND
    return 1;
}
#else
static int tsk__cuda_load(tsk__cuda_api *api, tsk__cuda_library which, char *why, size_t why_size) {
    (void)which;
    (void)why;
    (void)why_size;
#define TSK__CUDA_LINKED(type, name, parameters) api->name = name;
    TSK__CUDA_DRIVER(TSK__CUDA_LINKED)
    TSK__CUDA_NVRTC(TSK__CUDA_LINKED)
    TSK__CUDA_CUBLAS(TSK__CUDA_LINKED)
#undef TSK__CUDA_LINKED
    return 1;
}
#endif

static const char *tsk__cuda_error_text(const tsk__cuda_api *api, CUresult result) {
    const char *text = NULL;
    if (api->cuGetErrorString) api->cuGetErrorString(result, &text);
    return text ? text : "unknown CUDA error";
}

/* Loads the driver and counts its devices; 0 with the reason when it cannot be used. */
static int tsk__cuda_count(tsk__cuda_api *api, int *count, char *why, size_t why_size) {
    CUresult result;
    memset(api, 0, sizeof *api);
    *count = 0;
    if (!tsk__cuda_load(api, TSK__CUDA_LIBRARY_DRIVER, why, why_size)) return 0;
    result = api->cuInit(0);
    if (result == CUDA_SUCCESS) result = api->cuDeviceGetCount(count);
    if (result != CUDA_SUCCESS) snprintf(why, why_size, "CUDA says: %s", tsk__cuda_error_text(api, result));
    return result == CUDA_SUCCESS;
}

/* 1 when device `index` of `count` can be used; else 0 with the reason. */
static int tsk__cuda_usable(const tsk__cuda_api *api, int index, int count, char *why, size_t why_size) {
    CUdevice device;
    CUresult result;
    int major = 0;
    if (index < 0 || index >= count) {
        snprintf(why, why_size, "there is no CUDA device %d (%d found)", index, count);
        return 0;
    }
    result = api->cuDeviceGet(&device, index);
    if (result == CUDA_SUCCESS)
        result = api->cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
    if (result != CUDA_SUCCESS) {
        snprintf(why, why_size, "CUDA says of device %d: %s", index, tsk__cuda_error_text(api, result));
        return 0;
    }
    if (major < 8) {
        snprintf(why, why_size, "CUDA device %d has compute capability %d.x, 8.0 is needed", index, major);
        return 0;
    }
    return 1;
}

static int tsk__cuda_available(int index, char *why, size_t why_size) {
    tsk__cuda_api api;
    int count;
    return tsk__cuda_count(&api, &count, why, why_size) && tsk__cuda_usable(&api, index, count, why, why_size);
}

/* The memory of a device is asked for in its primary context, which models share. */
static CUresult tsk__cuda_device_memory(const tsk__cuda_api *api, CUdevice device, size_t *available, size_t *total) {
    CUcontext context;
    CUresult result = api->cuDevicePrimaryCtxRetain(&context, device);
    if (result != CUDA_SUCCESS) return result;
    result = api->cuCtxPushCurrent_v2(context);
    if (result == CUDA_SUCCESS) {
        result = api->cuMemGetInfo_v2(available, total);
        api->cuCtxPopCurrent_v2(&context);
    }
    api->cuDevicePrimaryCtxRelease_v2(device);
    return result;
}

static void tsk__cuda_device_info(const tsk__cuda_api *api, int index, int count, tsk_device_info *out) {
    CUdevice device;
    CUresult result;
    size_t available = 0, total = 0;
    memset(out, 0, sizeof *out);
    out->device = TSK_DEVICE_CUDA;
    out->index = index;
    if (index < count && api->cuDeviceGet(&device, index) == CUDA_SUCCESS &&
        api->cuDeviceGetName(out->name, (int)sizeof out->name, device) != CUDA_SUCCESS)
        out->name[0] = 0;
    if (!tsk__cuda_usable(api, index, count, out->unusable, sizeof out->unusable)) return;
    result = api->cuDeviceGet(&device, index);
    if (result == CUDA_SUCCESS) result = tsk__cuda_device_memory(api, device, &available, &total);
    if (result != CUDA_SUCCESS)
        snprintf(out->unusable, sizeof out->unusable, "CUDA says of device %d: %s", index,
                 tsk__cuda_error_text(api, result));
    out->memory_free = available;
    out->memory_total = total;
}

/* The devices, into out [room] (may be NULL), and how many there are. Where there is none, one entry says why. */
static int32_t tsk__cuda_devices(tsk_device_info *out, int32_t room) {
    tsk__cuda_api api;
    char why[sizeof out->unusable] = "";
    int count, i, is_open = tsk__cuda_count(&api, &count, why, sizeof why), n = count > 0 ? count : 1;
    for (i = 0; out && i < n && i < room; i++) {
        memset(&out[i], 0, sizeof out[i]);
        out[i].device = TSK_DEVICE_CUDA;
        snprintf(out[i].unusable, sizeof out[i].unusable, "%s", why);
        if (is_open) tsk__cuda_device_info(&api, i, count, &out[i]);
    }
    return n;
}

#else

static int32_t tsk__cuda_devices(tsk_device_info *out, int32_t room) {
    if (!out || room < 1) return 1;
    memset(out, 0, sizeof *out);
    out->device = TSK_DEVICE_CUDA;
    snprintf(out->unusable, sizeof out->unusable, "built without CUDA");
    return 1;
}

#endif /* TOKENSKIP_NO_CUDA */

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
    float confidence, logit, log_sum_exp;
} tsk__cuda_prediction;
TSK__CUDA_CHECK_SIZE(prediction, 16);

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

/* The best of some ids; the sum of exp(logit - max) is over all of them. */
typedef struct tsk__cuda_head_entry {
    double score;
    int32_t id;
    float logit, max, sum;
} tsk__cuda_head_entry;
TSK__CUDA_CHECK_SIZE(head_entry, 24);

/* As tsk__commit_candidate, tsk__commit_rule and tsk__choice. */
typedef struct tsk__cuda_commit_candidate { int32_t position, slot, head; } tsk__cuda_commit_candidate;
typedef struct tsk__cuda_commit_rule {
    int32_t request, first, n, commits, transfer, quota;
    float threshold, factor;
    int32_t is_random;
    uint32_t pass;
    uint64_t seed;
} tsk__cuda_commit_rule;
typedef struct tsk__cuda_choice {
    int32_t id;
    float confidence, log_sum_exp;
    int32_t is_committed;
} tsk__cuda_choice;
TSK__CUDA_CHECK_SIZE(commit_candidate, 12);
TSK__CUDA_CHECK_SIZE(commit_rule, 48);
TSK__CUDA_CHECK_SIZE(choice, 16);

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
    TSK__DEVICE(float) confidences;        /* [candidates] scratch */
    TSK__DEVICE(tsk__cuda_choice) choices;
} tsk__cuda_select_tokens_args;
TSK__CUDA_CHECK_SIZE(select_tokens_args, 72);

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

// >>cuda_backend ======================================================================================================
/* What the CUDA sections share: the kernels' names and arguments, the backend itself, launching. */

#ifdef TOKENSKIP__HAS_CUDA

/* ---- what the kernels read of the backend's structs lies as they take it to lie (kernels/shared.h) */

#define TSK__CUDA_SAME(type, member) \
    (offsetof(tsk__cuda_##type, member) == offsetof(tsk__##type, member) && \
     sizeof(((tsk__cuda_##type *)0)->member) == sizeof(((tsk__##type *)0)->member))
#define TSK__CUDA_CHECK_SAME(type, members) \
    TSK__CUDA_CHECK(same_##type, sizeof(tsk__cuda_##type) == sizeof(tsk__##type) && (members))
TSK__CUDA_CHECK_SAME(draw, TSK__CUDA_SAME(draw, temperature) && TSK__CUDA_SAME(draw, mask_token_id) &&
    TSK__CUDA_SAME(draw, seed) && TSK__CUDA_SAME(draw, position) && TSK__CUDA_SAME(draw, pass));
TSK__CUDA_CHECK_SAME(prediction, TSK__CUDA_SAME(prediction, id) && TSK__CUDA_SAME(prediction, confidence) &&
    TSK__CUDA_SAME(prediction, logit) && TSK__CUDA_SAME(prediction, log_sum_exp));
TSK__CUDA_CHECK_SAME(commit_candidate, TSK__CUDA_SAME(commit_candidate, position) &&
                                           TSK__CUDA_SAME(commit_candidate, slot) &&
                                           TSK__CUDA_SAME(commit_candidate, head));
TSK__CUDA_CHECK_SAME(commit_rule, TSK__CUDA_SAME(commit_rule, request) && TSK__CUDA_SAME(commit_rule, first) &&
                                      TSK__CUDA_SAME(commit_rule, n) && TSK__CUDA_SAME(commit_rule, commits) &&
                                      TSK__CUDA_SAME(commit_rule, transfer) && TSK__CUDA_SAME(commit_rule, quota) &&
                                      TSK__CUDA_SAME(commit_rule, threshold) && TSK__CUDA_SAME(commit_rule, factor) &&
                                      TSK__CUDA_SAME(commit_rule, is_random) && TSK__CUDA_SAME(commit_rule, pass) &&
                                      TSK__CUDA_SAME(commit_rule, seed));
TSK__CUDA_CHECK_SAME(choice, TSK__CUDA_SAME(choice, id) && TSK__CUDA_SAME(choice, confidence) &&
    TSK__CUDA_SAME(choice, log_sum_exp) && TSK__CUDA_SAME(choice, is_committed));
TSK__CUDA_CHECK(row_flags,
                TSK__CUDA_ROW_MAY_SKIP == (int)TSK__ROW_MAY_SKIP && TSK__CUDA_ROW_SKIPS == (int)TSK__ROW_SKIPS &&
                    TSK__CUDA_ROW_REMEMBER == (int)TSK__ROW_REMEMBER && TSK__CUDA_ROW_IF_RAN == (int)TSK__ROW_IF_RAN &&
                    TSK__CUDA_ROW_OUTPUT == (int)TSK__ROW_OUTPUT);

#define TSK__CUDA_SPLIT_ROWS 256      /* attention's keys are split while tiles make up no more rows than this */
#define TSK__CUDA_HEAD_ROWS 1024      /* rows that go through the head together, beyond the fused maps' */
#define TSK__CUDA_HEAD_SLICE 8192     /* ids whose logits lie in memory at once */
#define TSK__CUDA_LOGITS_ROWS 32      /* rows whose whole logits lie in memory at once, where they are asked for */
#define TSK__CUDA_WORKSPACE \
    ((uint64_t)32 << 20) /* cuBLAS's; it wants as much on Hopper, and none of its own under capture */

/* X(name, kinds): T: name_f32 or name_bf16 by the activation type; -: one for all, or bf16 only; W: likewise, on sm_90
   alone. The order is that of the enumeration below. */
#define TSK__CUDA_KERNELS(X) \
    X(pass_begin, '-') \
    X(pass_signal, '-') X(slide, '-') X(embed, 'T') X(pre_norm, '-') X(norm, 'T') X(norm_heads, 'T') \
        X(rope_cache, 'T') X(silu, 'T') \
        X(residual, 'T') X(attend, 'T') X(compare, 'T') X(decide, '-') X(keep, 'T') X(select_tokens, '-') \
            X(move_rows, 'T') X(convert, 'T') X(randomise, 'T') X(fill, 'T') X(exact_f32, '-') X(head_tiles, '-') \
                X(head_finish, '-') X(read_stream, '-') X(linear_qkv_32, '-') X(linear_qkv_64, '-') \
                    X(linear_out_32, '-') X(linear_out_64, '-') X(linear_gate_up_32, '-') X(linear_gate_up_64, '-') \
                        X(linear_head_32, '-') X(linear_head_64, '-') X(wide_qkv, 'W') X(wide_out, 'W') \
                            X(wide_gate_up, 'W') X(wide_head, 'W') X(attention_few_64, '-') X(attention_few_128, '-') \
                                X(attention_small_64, '-') X(attention_small_128, '-') X(attention_medium_64, '-') \
                                    X(attention_medium_128, '-') X(attention_large_64, '-') \
                                        X(attention_large_128, '-')

typedef enum tsk__cuda_kernel {
#define TSK__CUDA_KERNEL_ENUM(name, kind) TSK__CUDA_##name,
    TSK__CUDA_KERNELS(TSK__CUDA_KERNEL_ENUM)
#undef TSK__CUDA_KERNEL_ENUM
    TSK__CUDA_KERNEL_COUNT
} tsk__cuda_kernel;

/* The bf16 attention kernels (see kernels/attention.cu): for tiles of up to so many rows, keys split so many ways,
   bytes of shared memory for an element of a head. `kernel` is the one for head_dim 64; 128's follows it. */
typedef enum tsk__cuda_attention {
    TSK__CUDA_ATTENTION_FEW,
    TSK__CUDA_ATTENTION_SMALL,
    TSK__CUDA_ATTENTION_MEDIUM,
    TSK__CUDA_ATTENTION_LARGE
} tsk__cuda_attention;
static const struct { int kernel; int32_t rows; uint32_t splits, threads, bytes; } tsk__cuda_attentions[] = {
    {TSK__CUDA_attention_few_64, 32, 1, TSK__CUDA_THREADS_attention_few, 1024},
    {TSK__CUDA_attention_small_64, 32, TSK__CUDA_ATTENTION_SPLITS, TSK__CUDA_THREADS_attention_small, 768},
    {TSK__CUDA_attention_medium_64, 64, TSK__CUDA_ATTENTION_SPLITS, TSK__CUDA_THREADS_attention_medium, 768},
    {TSK__CUDA_attention_large_64, 128, 1, TSK__CUDA_THREADS_attention_large, 768},
};
#define TSK__CUDA_FEW_SHARED \
    (128 * 1024) /* attention_few's for the larger head_dim: not every GPU has it for a block */

/* ---- the backend */

/* The linear maps that have kernels of their own for few rows, and how a map's work is cut for those (see
   kernels/linear.cu). */
typedef enum tsk__cuda_map {
    TSK__CUDA_MAP_QKV,
    TSK__CUDA_MAP_OUT,
    TSK__CUDA_MAP_GATE_UP,
    TSK__CUDA_MAP_DOWN,
    TSK__CUDA_MAP_HEAD,
    TSK__CUDA_MAPS
} tsk__cuda_map;
typedef struct tsk__cuda_plan {
    int32_t n, k, pieces, groups, blocks;
    int32_t split;                 /* blocks that share a tile's columns */
    int32_t stages[2];             /* for up to 32 and up to 64 rows */
    int32_t shared[2];
    int32_t wide_stages, wide_shared, wide_blocks;
} tsk__cuda_plan;

typedef struct tsk__cuda_layer {
    tsk__cuda_tensor_map maps[TSK__CUDA_MAP_HEAD], wide_maps[TSK__CUDA_MAP_HEAD];
    CUdeviceptr q_norm, k_norm;    /* 0: the family norms neither */
    CUdeviceptr attn_norm, qkv, qkv_bias, attn_out, attn_out_bias, ff_norm, gate_up, gate_up_bias, down, down_bias;
} tsk__cuda_layer;

typedef struct tsk__cuda_backend {
    tsk__backend base;
    const tsk_allocator *allocator;
    tsk__cuda_api api;
    CUdevice device;
    CUcontext context;             /* the device's primary one, shared with the host program */
    CUmodule module;
    CUfunction kernels[TSK__CUDA_KERNEL_COUNT];
    char name[112];
    int arch, n_multiprocessors, shared_limit, driver_version;
    int is_f32;
    int norms_heads;                 /* q and k are normed by head */
    int has_few_rows;                /* shapes fit the fused kernels, */
    int has_wide;                  /* and those for more rows, which the device has */
    int has_flash;                 /* … and attention's */
    int32_t q_width, kv_width, qkv_width, gate_up_rows;
    tsk__cuda_plan plans[TSK__CUDA_MAPS];
    tsk__cuda_tensor_map head_map, head_wide_map;
    CUdeviceptr arena, frequencies, embedding, final_norm, head, head_bias;
    tsk__cuda_layer *layers;
} tsk__cuda_backend;

/* Whether the kernels for Hopper alone (kind W) are compiled: its matrix units' instructions are in no later GPU's. */
static int tsk__cuda_has_hopper_kernels(const tsk__cuda_backend *b) { return b->arch == 90; }

static tsk__cuda_backend *tsk__cuda_backend_of(tsk__backend *backend) { return (tsk__cuda_backend *)(void *)backend; }

static tsk_status tsk__cuda_fail(const tsk__cuda_api *api, tsk_error *error, CUresult result, const char *what) {
    if (result == CUDA_SUCCESS) return TSK_OK;
    return tsk__error_set(error, result == CUDA_ERROR_OUT_OF_MEMORY ? TSK_ERROR_MEMORY : TSK_ERROR_DEVICE, NULL,
                          TSK_NO_OFFSET, "CUDA, %s: %s", what, tsk__cuda_error_text(api, result));
}

/* Every call that touches the device stands between these: the host program's own current context is not disturbed. */
static void tsk__cuda_enter(tsk__cuda_backend *b) { b->api.cuCtxPushCurrent_v2(b->context); }
static void tsk__cuda_leave(tsk__cuda_backend *b) {
    CUcontext ignored;
    b->api.cuCtxPopCurrent_v2(&ignored);
}

/* `args` is the kernel's struct of arguments (see kernels/shared.h). */
static CUresult tsk__cuda_launch_on(tsk__cuda_backend *b, CUstream stream, tsk__cuda_kernel kernel, uint32_t gx,
                                    uint32_t gy, uint32_t gz, uint32_t block, uint32_t shared, int overlaps,
                                    const void *args) {
    void *parameters[1];
    CUlaunchConfig config;
    CUlaunchAttribute attribute;
    memset(&config, 0, sizeof config);
    memset(&attribute, 0, sizeof attribute);
    config.gridDimX = gx, config.gridDimY = gy, config.gridDimZ = gz;
    config.blockDimX = block, config.blockDimY = config.blockDimZ = 1;
    config.sharedMemBytes = shared;
    config.hStream = stream;
    attribute.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
    parameters[0] = (void *)(uintptr_t)args;  /* which the driver only reads */
    config.attrs = &attribute;
    config.numAttrs = overlaps && b->arch >= 90 ? 1 : 0;
    return b->api.cuLaunchKernelEx(&config, b->kernels[kernel], parameters, NULL);
}

#endif /* TOKENSKIP__HAS_CUDA */

// >>cuda_compile ======================================================================================================
/* The kernels, compiled once a machine and driver, and kept on disk. */

#ifdef TOKENSKIP__HAS_CUDA

/* A cache file: this, then the cubin. */
typedef struct tsk__cuda_cubin_head { char magic[8]; uint64_t size, checksum; } tsk__cuda_cubin_head;
static const char tsk__cuda_cubin_magic[8] = {'t', 's', 'k', 'c', 'u', 'b', 'n', '1'};

static uint64_t tsk__cuda_hash(uint64_t hash, const void *bytes, size_t size) {
    const unsigned char *p = (const unsigned char *)bytes;
    size_t i;
    for (i = 0; i < size; i++) hash = (hash ^ p[i]) * 0x100000001b3u;  /* FNV-1a */
    return hash;
}
#define TSK__CUDA_HASH_START 0xcbf29ce484222325u

static tsk_status tsk__cuda_source(tsk_text *out) {
    size_t i;
    for (i = 0; i < sizeof tsk__kernels_source / sizeof *tsk__kernels_source; i++)
        if (tsk_text_append(out, tsk__kernels_source[i], strlen(tsk__kernels_source[i])) != TSK_OK)
            return TSK_ERROR_MEMORY;
    return TSK_OK;
}

/* NVRTC's options; the architecture is the first. */
static void tsk__cuda_options(const tsk__cuda_backend *b, char arch[64], const char *options[2]) {
    snprintf(arch, 64, "--gpu-architecture=sm_%d%s", b->arch, tsk__cuda_has_hopper_kernels(b) ? "a" : "");
    options[0] = arch;
    options[1] = "--std=c++17";
}

/* Hands what the compiler says to the host, line by line. Without memory for it there is only the error. */
static void tsk__cuda_log(const tsk__cuda_backend *b, nvrtcProgram program, const tsk_model_options *o) {
    size_t size = 0;
    char *text, *line, *end;
    if (!o->log || b->api.nvrtcGetProgramLogSize(program, &size) != NVRTC_SUCCESS) return;
    text = (char *)tsk__memory_new_zeroed(b->allocator, size + 1, 1);
    if (text && b->api.nvrtcGetProgramLog(program, text) == NVRTC_SUCCESS)
        for (line = text; *line; line = end) {
            end = line + strcspn(line, "\n");
            if (*end) *end++ = 0;
            if (*line) o->log(o->user, line);
        }
    tsk__memory_delete(b->allocator, text);
}

/* Compiles `source`; where that fails, o->log is told all that the compiler says. */
static tsk_status tsk__cuda_compile(tsk__cuda_backend *b, const char *source, const char *const *options, int n_options,
                                    const tsk_model_options *o, tsk_text *cubin, tsk_error *error) {
    const tsk__cuda_api *api = &b->api;
    nvrtcProgram program;
    nvrtcResult result;
    char why[160], *room;
    size_t size = 0;
    tsk_status status = TSK_OK;
    if (!tsk__cuda_load(&b->api, TSK__CUDA_LIBRARY_NVRTC, why, sizeof why))
        return tsk__error_set(error, TSK_ERROR_COMPILE, NULL, TSK_NO_OFFSET,
                              "the CUDA kernels are not compiled yet, and cannot be: %s", why);
    if (api->nvrtcCreateProgram(&program, source, "kernels.cu", 0, NULL, NULL) != NVRTC_SUCCESS)
        return tsk__error_set(error, TSK_ERROR_COMPILE, NULL, TSK_NO_OFFSET, "NVRTC cannot start");
    result = api->nvrtcCompileProgram(program, n_options, options);
    if (result != NVRTC_SUCCESS) {
        tsk__cuda_log(b, program, o);
        status = tsk__error_set(error, TSK_ERROR_COMPILE, "kernels.cu", TSK_NO_OFFSET,
                                "NVRTC cannot compile kernels.cu with %s (error %d): the log tells why", options[0],
                                (int)result);
    } else if (api->nvrtcGetCUBINSize(program, &size) != NVRTC_SUCCESS || size == 0)
        status = tsk__error_set(error, TSK_ERROR_COMPILE, NULL, TSK_NO_OFFSET, "NVRTC made no machine code for %s",
                                options[0]);
    else if ((room = (char *)tsk__memory_new_zeroed(cubin->allocator, size, 1)) == NULL)
        status = tsk__error_memory(error, "compiled kernels", size);
    else {
        if (api->nvrtcGetCUBIN(program, room) != NVRTC_SUCCESS)
            status = tsk__error_set(error, TSK_ERROR_COMPILE, NULL, TSK_NO_OFFSET, "NVRTC lost its result");
        else if (tsk_text_append(cubin, room, size) != TSK_OK)
            status = tsk__error_memory(error, "compiled kernels", size);
        tsk__memory_delete(cubin->allocator, room);
    }
    api->nvrtcDestroyProgram(&program);
    return status;
}

/* The cache folder, made where missing, into out; 0: there is none. */
static int tsk__cuda_cache_dir(const char *wanted, char *out, size_t size) {
    int length;
    if (!wanted) return tsk__cache_folder(out, size) && tsk__make_folders(out);
    length = snprintf(out, size, "%s", wanted);
    return length > 0 && (size_t)length < size && tsk__make_folders(out);
}

/* A cache file's cubin, or 0 for one that is not there, cut short or damaged. */
static int tsk__cuda_cache_read(const char *path, tsk_text *cubin) {
    tsk_text file;
    tsk__cuda_cubin_head head;
    int good = 0;
    memset(&file, 0, sizeof file);
    file.allocator = cubin->allocator;
    if (tsk_read_file(path, (size_t)1 << 28, NULL, &file, NULL) == TSK_OK && file.length >= sizeof head) {
        memcpy(&head, file.data, sizeof head);
        good =
            memcmp(head.magic, tsk__cuda_cubin_magic, sizeof head.magic) == 0 &&
            head.size == file.length - sizeof head &&
            head.checksum == tsk__cuda_hash(TSK__CUDA_HASH_START, file.data + sizeof head, file.length - sizeof head) &&
            tsk_text_append(cubin, file.data + sizeof head, file.length - sizeof head) == TSK_OK;
    }
    tsk_text_free(&file);
    return good;
}

/* Another process sees a whole file or none. A cache that cannot be written is no error: the next start compiles
   again. */
static void tsk__cuda_cache_write(const char *path, const tsk_text *cubin) {
    tsk__cuda_cubin_head head;
    tsk__output output;
    tsk_status status;
    memcpy(head.magic, tsk__cuda_cubin_magic, sizeof head.magic);
    head.size = cubin->length;
    head.checksum = tsk__cuda_hash(TSK__CUDA_HASH_START, cubin->data, cubin->length);
    if (tsk__output_open(&output, path, cubin->allocator, NULL) != TSK_OK) return;
    status = tsk__output_write(&output, 0, &head, sizeof head, NULL);
    if (status == TSK_OK) status = tsk__output_write(&output, sizeof head, cubin->data, cubin->length, NULL);
    if (status == TSK_OK) tsk__output_commit(&output, NULL);
    else tsk__output_abandon(&output);
}

static tsk_status tsk__cuda_cubin(tsk__cuda_backend *b, const tsk_model_options *o, tsk_text *cubin, tsk_error *error) {
    char arch[64], dir[1024], path[1100];
    const char *options[2];
    tsk_text source;
    uint64_t hash = TSK__CUDA_HASH_START;
    int i, has_path = 0;
    tsk_status status;
    memset(&source, 0, sizeof source);
    source.allocator = b->allocator;
    tsk__cuda_options(b, arch, options);
    status = tsk__cuda_source(&source);
    if (status == TSK_OK && !(o->kernel_cache_dir && !o->kernel_cache_dir[0]) &&
        tsk__cuda_cache_dir(o->kernel_cache_dir, dir, sizeof dir)) {
        hash = tsk__cuda_hash(hash, source.data, source.length);
        for (i = 0; i < 2; i++) hash = tsk__cuda_hash(hash, options[i], strlen(options[i]));
        hash = tsk__cuda_hash(hash, &b->driver_version, sizeof b->driver_version);
        snprintf(path, sizeof path, "%s/kernels-sm_%d-%016llx.cubin", dir, b->arch, (unsigned long long)hash);
        has_path = 1;
    }
    if (status != TSK_OK) status = tsk__error_memory(error, "the kernels' source", source.length);
    else if (!has_path || !tsk__cuda_cache_read(path, cubin)) {
        if (o->log) o->log(o->user, "compiling the CUDA kernels for this GPU (once)");
        status = tsk__cuda_compile(b, source.data, options, 2, o, cubin, error);
        if (status == TSK_OK && has_path) tsk__cuda_cache_write(path, cubin);
    }
    tsk_text_free(&source);
    return status;
}

/* The most dynamic shared memory that the kernel is launched with; 0: within the limit that needs no attribute. */
static int32_t tsk__cuda_shared_most(const tsk__cuda_backend *b, int kernel) {
    if (kernel == TSK__CUDA_norm) return 48 * 1024;
    if (kernel < TSK__CUDA_linear_qkv_32) return 0;
    if (kernel < TSK__CUDA_attention_few_64) return b->shared_limit;
    if (kernel < TSK__CUDA_attention_small_64 && TSK__CUDA_FEW_SHARED <= b->shared_limit) return TSK__CUDA_FEW_SHARED;
    return 96 * 1024;
}

static tsk_status tsk__cuda_find_kernels(tsk__cuda_backend *b, tsk_error *error) {
    static const struct { const char *name; char kind; } kernels[TSK__CUDA_KERNEL_COUNT] = {
#define TSK__CUDA_KERNEL_NAME(name, kind) {#name, kind},
        TSK__CUDA_KERNELS(TSK__CUDA_KERNEL_NAME)
#undef TSK__CUDA_KERNEL_NAME
    };
    CUresult result = CUDA_SUCCESS;
    char name[64];
    int i;
    for (i = 0; i < (int)TSK__CUDA_KERNEL_COUNT && result == CUDA_SUCCESS; i++) {
        if (kernels[i].kind == 'W' && !tsk__cuda_has_hopper_kernels(b)) continue;
        snprintf(name, sizeof name, "%s%s", kernels[i].name,
                 kernels[i].kind != 'T' ? ""
                 : b->is_f32            ? "_f32"
                                        : "_bf16");
        result = b->api.cuModuleGetFunction(&b->kernels[i], b->module, name);
        if (result == CUDA_SUCCESS && tsk__cuda_shared_most(b, i))
            result = b->api.cuFuncSetAttribute(b->kernels[i], CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                               tsk__cuda_shared_most(b, i));
        /* One division of the multiprocessors' memory for all: kernels that want different ones cannot overlap. */
        if (result == CUDA_SUCCESS)
            result = b->api.cuFuncSetAttribute(b->kernels[i], CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100);
    }
    return tsk__cuda_fail(&b->api, error, result, name);
}

static tsk_status tsk__cuda_load_kernels(tsk__cuda_backend *b, const tsk_model_options *o, tsk_error *error) {
    tsk_text cubin;
    tsk_status status;
    memset(&cubin, 0, sizeof cubin);
    cubin.allocator = b->allocator;
    status = tsk__cuda_cubin(b, o, &cubin, error);
    if (status == TSK_OK)
        status = tsk__cuda_fail(&b->api, error, b->api.cuModuleLoadData(&b->module, cubin.data), "loading the kernels");
    tsk_text_free(&cubin);
    return status == TSK_OK ? tsk__cuda_find_kernels(b, error) : status;
}

#endif /* TOKENSKIP__HAS_CUDA */

// >>cuda_plan =========================================================================================================
/* How the linear maps' work is cut for few rows: arithmetic on the model's shape and the device's numbers. */

#ifdef TOKENSKIP__HAS_CUDA

/* What a block of a linear map needs of shared memory besides the ring; and for every stage of it. */
static int32_t tsk__cuda_plan_fixed(int32_t split, int32_t pieces, int32_t groups, int32_t rows) {
    return (groups + split - 1) * rows * TSK__CUDA_SUMS_ROW(16 * pieces) * 4 + rows * 4 + 16;
}
static int32_t tsk__cuda_plan_stage(int32_t pieces, int32_t rows) {
    return (16 * pieces + rows) * TSK__CUDA_LINEAR_CHUNK * 2 + 16;
}
/* Stages that fit in `shared` bytes: a multiple of the groups, 0 when there are too few to keep memory busy. */
static int32_t tsk__cuda_plan_stages(int32_t split, int32_t pieces, int32_t groups, int32_t rows, int32_t shared) {
    int32_t room = shared - tsk__cuda_plan_fixed(split, pieces, groups, rows),
            stages = room > 0 ? room / tsk__cuda_plan_stage(pieces, rows) / groups * groups : 0;
    return stages < 3 || stages < 2 * groups ? 0 : stages;
}
static const int32_t tsk__cuda_plan_rows[2] = {32, 64};  /* that the two kernels of a map take at the most */
/* Whether both kernels have the stages. */
static int tsk__cuda_plan_fits(int32_t split, int32_t pieces, int32_t groups, int32_t shared) {
    return tsk__cuda_plan_stages(split, pieces, groups, tsk__cuda_plan_rows[0], shared) &&
           tsk__cuda_plan_stages(split, pieces, groups, tsk__cuda_plan_rows[1], shared);
}
/* More than half of a multiprocessor's shared memory, so that two blocks of one map never share a multiprocessor while
   another is idle. */
#define TSK__CUDA_ALONE 118000

/* Chooses the tile width for which the busiest multiprocessor has the fewest outputs; among equals the widest, which
   reads the input least often. Then as many groups as there are warps and stages for, the same for 32 and 64 rows, so
   that a row's sums do not depend on how many there are. 0: the device has too little shared memory. */
static int tsk__cuda_plan_map(const tsk__cuda_backend *b, tsk__cuda_map map, tsk__cuda_plan *plan) {
    int is_out = map == TSK__CUDA_MAP_OUT || map == TSK__CUDA_MAP_DOWN;
    int32_t split = is_out && b->arch >= 90 ? TSK__CUDA_LINEAR_SPLIT : 1, most = b->n_multiprocessors / split * split;
    int32_t pieces, groups, best = INT32_MAX, i, step = is_out ? 2 : 1;
    plan->split = split;
    plan->pieces = 0;
    for (pieces = step; pieces <= TSK__CUDA_LINEAR_WARPS && most; pieces += step) {
        int32_t blocks = (plan->n + 16 * pieces - 1) / (16 * pieces) * split,
                cost = (blocks + most - 1) / most * pieces;
        if (cost > best || !tsk__cuda_plan_fits(split, pieces, 1, b->shared_limit)) continue;
        best = cost;
        plan->pieces = pieces;
        plan->blocks = blocks < most ? blocks : most;
    }
    if (!plan->pieces) return 0;
    groups = TSK__CUDA_LINEAR_WARPS / plan->pieces;
    if (groups > TSK__CUDA_LINEAR_GROUPS - split + 1) groups = TSK__CUDA_LINEAR_GROUPS - split + 1;
    while (groups > 1 && !tsk__cuda_plan_fits(split, plan->pieces, groups, b->shared_limit)) groups--;
    plan->groups = groups;
    for (i = 0; i < 2; i++) {
        int32_t rows = tsk__cuda_plan_rows[i];
        plan->stages[i] = tsk__cuda_plan_stages(split, plan->pieces, groups, rows, b->shared_limit);
        plan->shared[i] = tsk__cuda_plan_fixed(split, plan->pieces, groups, rows) +
                          plan->stages[i] * tsk__cuda_plan_stage(plan->pieces, rows);
        if (b->shared_limit >= TSK__CUDA_ALONE && plan->shared[i] < TSK__CUDA_ALONE)
            plan->shared[i] = TSK__CUDA_ALONE;
    }
    return 1;
}
static int tsk__cuda_plan_maps(tsk__cuda_backend *b) {
    const tsk_model_config *c = b->base.config;
    int32_t d = c->d_model, n[TSK__CUDA_MAPS], k[TSK__CUDA_MAPS], i;
    n[TSK__CUDA_MAP_QKV] = b->qkv_width, n[TSK__CUDA_MAP_OUT] = d, n[TSK__CUDA_MAP_GATE_UP] = b->gate_up_rows,
    n[TSK__CUDA_MAP_DOWN] = d, n[TSK__CUDA_MAP_HEAD] = c->embedding_size;
    k[TSK__CUDA_MAP_QKV] = d, k[TSK__CUDA_MAP_OUT] = b->q_width, k[TSK__CUDA_MAP_GATE_UP] = d,
    k[TSK__CUDA_MAP_DOWN] = c->mlp_hidden_size, k[TSK__CUDA_MAP_HEAD] = d;
    for (i = 0; i < TSK__CUDA_MAPS; i++) {
        b->plans[i].n = n[i];
        b->plans[i].k = k[i];
        if (!tsk__cuda_plan_map(b, (tsk__cuda_map)i, &b->plans[i])) return 0;
    }
    return 1;
}

/* The wide maps: a tile's outputs, how many blocks share its columns, and the most stages that were of use (see
   kernels/linear.cu). */
static const struct { tsk__cuda_kernel kernel; int32_t width, split, most_stages; } tsk__cuda_wide[TSK__CUDA_MAPS] = {
    {TSK__CUDA_wide_qkv, TSK__CUDA_WIDE_QKV, 1, 8},
    {TSK__CUDA_wide_out, TSK__CUDA_WIDE_OUT, TSK__CUDA_WIDE_OUT_SPLIT, 6},
    {TSK__CUDA_wide_gate_up, TSK__CUDA_WIDE_GATE_UP, 1, 8},
    {TSK__CUDA_wide_out, TSK__CUDA_WIDE_OUT, TSK__CUDA_WIDE_OUT_SPLIT, 6},
    {TSK__CUDA_wide_head, TSK__CUDA_WIDE_HEAD, 1, 8}};

static int32_t tsk__cuda_wide_tiles(const tsk__cuda_backend *b, int map) {
    return (b->plans[map].n + tsk__cuda_wide[map].width - 1) / tsk__cuda_wide[map].width;
}

/* Clusters of a kernel that the device runs at the same time. */
static CUresult tsk__cuda_clusters(const tsk__cuda_backend *b, int map, int *clusters) {
    CUlaunchConfig config;
    CUlaunchAttribute attribute;
    memset(&config, 0, sizeof config);
    memset(&attribute, 0, sizeof attribute);
    config.gridDimX = TSK__CUDA_WIDE_CLUSTER, config.gridDimY = config.gridDimZ = 1;
    config.blockDimX = TSK__CUDA_WIDE_WARPS * 32, config.blockDimY = config.blockDimZ = 1;
    config.sharedMemBytes = (unsigned int)b->plans[map].wide_shared;
    attribute.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    attribute.value.clusterDim.x = TSK__CUDA_WIDE_CLUSTER,
    attribute.value.clusterDim.y = attribute.value.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return b->api.cuOccupancyMaxActiveClusters(clusters, b->kernels[tsk__cuda_wide[map].kernel], &config);
}

/* 0: too little shared memory, or columns for two stages of every block. */
static int tsk__cuda_plan_wide_memory(const tsk__cuda_backend *b, int map, tsk__cuda_plan *plan) {
    int32_t width = tsk__cuda_wide[map].width, split = tsk__cuda_wide[map].split,
            stage = (width + TSK__CUDA_WIDE_ROWS) * TSK__CUDA_LINEAR_CHUNK * 2;
    int32_t sums = TSK__CUDA_WIDE_ROWS * TSK__CUDA_SUMS_ROW(width) * 4,
            others = (split > 1 ? sums : 0) + TSK__CUDA_WIDE_ROWS * 4 + 24;
    int32_t stages = (b->shared_limit - others) / (stage + 16),
            chunks = (plan->k + TSK__CUDA_LINEAR_CHUNK - 1) / TSK__CUDA_LINEAR_CHUNK / split;
    if (stages > chunks) stages = chunks;
    if (stages > tsk__cuda_wide[map].most_stages) stages = tsk__cuda_wide[map].most_stages;
    plan->wide_stages = stages;
    plan->wide_shared = (stages * stage > sums ? stages * stage : sums) + others + stages * 16;
    return stages >= 2 && plan->wide_shared <= b->shared_limit;
}

/* Whether the wide maps are there and worth it: not where most blocks would wait for a few that have one tile more. */
static tsk_status tsk__cuda_plan_wide(tsk__cuda_backend *b, tsk_error *error) {
    CUresult result = CUDA_SUCCESS;
    int map, fits = tsk__cuda_has_hopper_kernels(b) && b->has_few_rows;
    for (map = 0; map < TSK__CUDA_MAPS && fits && result == CUDA_SUCCESS; map++) {
        tsk__cuda_plan *plan = &b->plans[map];
        int at_once = 0;
        int32_t sharers = TSK__CUDA_WIDE_CLUSTER / tsk__cuda_wide[map].split, tiles = tsk__cuda_wide_tiles(b, map),
                clusters = (tiles + sharers - 1) / sharers, rounds;
        fits = tsk__cuda_plan_wide_memory(b, map, plan);
        if (fits) result = tsk__cuda_clusters(b, map, &at_once);
        if (!fits || result != CUDA_SUCCESS || at_once < 1) fits = 0;
        else {
            rounds = (clusters + at_once - 1) / at_once;
            fits = rounds == 1 || 4 * (int64_t)clusters >= 3 * (int64_t)rounds * at_once;
            plan->wide_blocks = TSK__CUDA_WIDE_CLUSTER * (clusters < at_once ? clusters : at_once);
        }
    }
    b->has_wide = fits;
    return tsk__cuda_fail(&b->api, error, result, "asking for clusters");
}

/* Rows that a pass may have to go through the fused maps. */
static int32_t tsk__cuda_fused_rows(const tsk__cuda_backend *b) {
    return b->has_wide ? TSK__CUDA_WIDE_ROWS : b->has_few_rows ? TSK__CUDA_FEW_ROWS : 0;
}

/* Describes a bf16 matrix [rows, columns] to the copy engine, in boxes of box_rows rows and a chunk's columns, swizzled
   as the kernels read them. Before sm_90 there is none. */
static CUresult tsk__cuda_encode(const tsk__cuda_backend *b, CUdeviceptr address, uint64_t rows, uint64_t columns,
                                 int32_t box_rows, tsk__cuda_tensor_map *out) {
    char room[2 * sizeof(CUtensorMap)];
    CUtensorMap *map = (CUtensorMap *)(void *)(room + (64 - (uintptr_t)room % 64) % 64);  /* the driver wants it aligned
                                                                                             to 64 */
    cuuint64_t size[2], row_bytes[1];
    cuuint32_t box[2], every[2];
    CUresult result;
    if (b->arch < 90) return CUDA_SUCCESS;
    size[0] = columns, size[1] = rows, row_bytes[0] = columns * 2;
    box[0] = TSK__CUDA_LINEAR_CHUNK, box[1] = (cuuint32_t)box_rows;
    every[0] = every[1] = 1;
    result =
        b->api.cuTensorMapEncodeTiled(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)(uintptr_t)address, size,
                                      row_bytes, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result == CUDA_SUCCESS) memcpy(out, map, sizeof *out);
    return result;
}
static CUresult tsk__cuda_encode_map(const tsk__cuda_backend *b, int map, CUdeviceptr weights,
                                     tsk__cuda_tensor_map *out, tsk__cuda_tensor_map *wide_out) {
    uint64_t n = (uint64_t)b->plans[map].n, k = (uint64_t)b->plans[map].k;
    CUresult result = tsk__cuda_encode(b, weights, n, k, 16 * b->plans[map].pieces, out);
    if (result == CUDA_SUCCESS && b->has_wide)
        result = tsk__cuda_encode(b, weights, n, k, tsk__cuda_wide[map].width, wide_out);
    return result;
}
static tsk_status tsk__cuda_encode_weights(tsk__cuda_backend *b, tsk_error *error) {
    CUresult result = CUDA_SUCCESS;
    int32_t l, i;
    if (!b->has_few_rows) return TSK_OK;
    for (l = 0; l < b->base.config->n_layers; l++) {
        tsk__cuda_layer *layer = &b->layers[l];
        CUdeviceptr weights[TSK__CUDA_MAP_HEAD];
        weights[TSK__CUDA_MAP_QKV] = layer->qkv, weights[TSK__CUDA_MAP_OUT] = layer->attn_out,
        weights[TSK__CUDA_MAP_GATE_UP] = layer->gate_up, weights[TSK__CUDA_MAP_DOWN] = layer->down;
        for (i = 0; i < TSK__CUDA_MAP_HEAD && result == CUDA_SUCCESS; i++)
            result = tsk__cuda_encode_map(b, i, weights[i], &layer->maps[i], &layer->wide_maps[i]);
    }
    if (result == CUDA_SUCCESS)
        result = tsk__cuda_encode_map(b, TSK__CUDA_MAP_HEAD, b->head, &b->head_map, &b->head_wide_map);
    return tsk__cuda_fail(&b->api, error, result, "describing the weights");
}

#endif /* TOKENSKIP__HAS_CUDA */

// >>cuda_weights ======================================================================================================
/* Where the weights lie on the device, and how they get there. */

#ifdef TOKENSKIP__HAS_CUDA

/* ---- weights: where they lie */

/* Where a tensor goes: the matrix that it is part of, and how its rows lie in it. */
typedef struct tsk__cuda_destination {
    CUdeviceptr matrix;
    tsk__cuda_row_order row_order;
} tsk__cuda_destination;

static uint64_t tsk__cuda_take(uint64_t *used, uint64_t count, uint64_t element) {
    uint64_t at = *used;
    *used = (at + count * element + 255) & ~(uint64_t)255;
    return at;
}

/* The type that matrices have in the arena, whatever they are stored in: the one that the kernels multiply, today that
   of the activations. Norms and biases have the activations' in any case. */
static tsk_dtype tsk__cuda_weights_dtype(const tsk__cuda_backend *b) {
    return b->is_f32 ? TSK_DTYPE_F32 : TSK_DTYPE_BF16;
}

/* Where a weight's address is kept; several may share a room. NULL: the kernels know of none. */
static CUdeviceptr *tsk__cuda_room(tsk__cuda_backend *b, const tsk__weight_id *id) {
    tsk__cuda_layer *layer = &b->layers[id->layer < 0 ? 0 : id->layer];
    switch (id->part) {
    case TSK__PART_ATTN_NORM: return id->is_bias ? NULL : &layer->attn_norm;
    case TSK__PART_Q: case TSK__PART_K: case TSK__PART_V: return id->is_bias ? &layer->qkv_bias : &layer->qkv;
    case TSK__PART_Q_NORM: return id->is_bias ? NULL : &layer->q_norm;
    case TSK__PART_K_NORM: return id->is_bias ? NULL : &layer->k_norm;
    case TSK__PART_ATTN_OUT: return id->is_bias ? &layer->attn_out_bias : &layer->attn_out;
    case TSK__PART_FF_NORM: return id->is_bias ? NULL : &layer->ff_norm;
    case TSK__PART_FF_PROJ: case TSK__PART_UP_PROJ: return id->is_bias ? &layer->gate_up_bias : &layer->gate_up;
    case TSK__PART_FF_OUT: return id->is_bias ? &layer->down_bias : &layer->down;
    case TSK__PART_EMBEDDING: return id->is_bias ? NULL : &b->embedding;
    case TSK__PART_FINAL_NORM: return id->is_bias ? NULL : &b->final_norm;
    case TSK__PART_HEAD: return id->is_bias ? &b->head_bias : &b->head;
    default: return NULL;
    }
}

/* Rows of the room that a part is the first in. */
static uint64_t tsk__cuda_room_rows(const tsk__cuda_backend *b, const tsk__weight_id *id) {
    uint64_t shape[2];
    if (id->part == TSK__PART_Q) return (uint64_t)b->qkv_width;
    if (id->part == TSK__PART_FF_PROJ) return (uint64_t)b->gate_up_rows;
    tsk__family_shape(b->base.config, id, shape);
    return shape[0];
}

/* A room at the end of what is used, for a part that is the first in it. */
static void tsk__cuda_lay_out(tsk__cuda_backend *b, const tsk__weight_id *id, CUdeviceptr base, uint64_t *used) {
    const tsk_model_config *c = b->base.config;
    uint64_t element = tsk__family_is_vector(c, id) ? b->base.element_size : tsk_dtype_size(tsk__cuda_weights_dtype(b));
    CUdeviceptr *room = tsk__cuda_room(b, id);
    uint64_t shape[2];
    tsk__weight_id before = *id;
    before.part--;
    if (!room || (id->part > 0 && room == tsk__cuda_room(b, &before))) return;
    tsk__family_shape(c, id, shape);
    *room = tsk__family_has(c, id) ? base + tsk__cuda_take(used, tsk__cuda_room_rows(b, id) * shape[1], element) : 0;
}

/* Addresses, from `base` on, of everything in the arena; returns its size. With base 0 it only counts. */
static uint64_t tsk__cuda_layout(tsk__cuda_backend *b, CUdeviceptr base) {
    const tsk_model_config *c = b->base.config;
    uint64_t used = 0;
    tsk__weight_id id = tsk__weight_id_of(-1, TSK__PART_EMBEDDING, 0);
    b->frequencies = base + tsk__cuda_take(&used, (uint64_t)c->head_dim / 2, sizeof(float));
    for (; id.layer < c->n_layers; id.layer++) {
        int end = id.layer < 0 ? (int)TSK__PART_ALL : (int)TSK__PART_COUNT;
        for (id.part = id.layer < 0 ? (int)TSK__PART_COUNT : 0; id.part < end; id.part++)
            for (id.is_bias = 0; id.is_bias < 2; id.is_bias++) tsk__cuda_lay_out(b, &id, base, &used);
    }
    if (c->weight_tying) b->head = b->embedding;
    return used;
}

static tsk__cuda_destination tsk__cuda_destination_of(tsk__cuda_backend *b, const tsk__weight_id *id) {
    const tsk_model_config *c = b->base.config;
    uint64_t shape[2];
    tsk__cuda_destination d;
    memset(&d, 0, sizeof d);
    tsk__family_shape(c, id, shape);
    d.matrix = *tsk__cuda_room(b, id);
    d.row_order.columns = shape[1];
    switch (id->part) {
    case TSK__PART_Q: case TSK__PART_K: case TSK__PART_V:
        if (c->head_dim % 16 == 0)
            d.row_order.interleave = TSK__CUDA_ROWS_HALVES, d.row_order.half_head = c->head_dim / 2;
        if (id->part != TSK__PART_Q) d.row_order.first_row = (uint64_t)b->q_width;
        if (id->part == TSK__PART_V) d.row_order.first_row += (uint64_t)b->kv_width;
        break;
    case TSK__PART_FF_PROJ: d.row_order.interleave = TSK__CUDA_ROWS_FIRST; break;
    case TSK__PART_UP_PROJ: d.row_order.interleave = TSK__CUDA_ROWS_SECOND; break;
    default: break;
    }
    return d;
}

static tsk_status tsk__cuda_arena(tsk__cuda_backend *b, tsk_error *error) {
    const tsk_model_config *c = b->base.config;
    uint64_t size = tsk__cuda_layout(b, 0);
    size_t available = 0, total = 0;
    CUresult result = b->api.cuMemGetInfo_v2(&available, &total);
    int32_t half = c->head_dim / 2, i;
    float *frequencies;
    if (result != CUDA_SUCCESS) return tsk__cuda_fail(&b->api, error, result, "asking for free memory");
    result =
        size > SIZE_MAX || size > available ? CUDA_ERROR_OUT_OF_MEMORY : b->api.cuMemAlloc_v2(&b->arena, (size_t)size);
    if (result == CUDA_ERROR_OUT_OF_MEMORY)
        return tsk__error_set(error, TSK_ERROR_MEMORY, NULL, TSK_NO_OFFSET,
                              "the model needs %.2f GB on the CUDA device, %.2f GB of its %.2f GB are free",
                              (double)size * 1e-9, (double)available * 1e-9, (double)total * 1e-9);
    if (result != CUDA_SUCCESS) return tsk__cuda_fail(&b->api, error, result, "memory for the weights");
    tsk__cuda_layout(b, b->arena);
    frequencies = (float *)tsk__memory_new(b->allocator, (size_t)half, sizeof *frequencies);
    if (!frequencies) return tsk__error_memory(error, "rotary frequencies", (uint64_t)half * sizeof *frequencies);
    for (i = 0; i < half; i++) frequencies[i] = tsk__rope_frequency(c, i);
    /* gate_up's padding, and whatever else no tensor fills, must be zeros */
    result = b->api.cuMemsetD8Async(b->arena, 0, (size_t)size, NULL);
    if (result == CUDA_SUCCESS)
        result = b->api.cuMemcpyHtoDAsync_v2(b->frequencies, frequencies, (size_t)half * sizeof *frequencies, NULL);
    if (result == CUDA_SUCCESS) result = b->api.cuStreamSynchronize(NULL);
    tsk__memory_delete(b->allocator, frequencies);
    return tsk__cuda_fail(&b->api, error, result, "clearing the weights");
}

/* ---- weights: reading. Each reader takes the next piece of a tensor, reads it into a pinned buffer while its last one
   is still being copied, and has a kernel put the values into their places in the activations' type. */

#define TSK__CUDA_PIECE ((uint64_t)4 << 20)
#define TSK__CUDA_READERS 12

typedef struct tsk__cuda_piece {
    tsk__stored stored;
    tsk__cuda_destination destination;
    uint64_t offset, size;         /* in bytes, of the tensor */
} tsk__cuda_piece;

typedef struct tsk__cuda_loading {
    tsk__cuda_backend *backend;
    const tsk__source *source;
    tsk__cuda_piece *pieces;
    size_t n_pieces, piece_capacity;
    uint64_t total;                /* bytes of all pieces */
    int made;                      /* some weights are made on the device */
    size_t next;                   /* shared between the readers, likewise the next two */
    uint64_t done;
    int stop;
} tsk__cuda_loading;

typedef struct tsk__cuda_reader {
    tsk__cuda_loading *loading;
    CUstream stream;
    CUevent copied[2];
    char *pinned;                  /* [2, TSK__CUDA_PIECE] */
    CUdeviceptr staging;           /* likewise */
    tsk__thread thread;
    int started;
    tsk_status status;
    tsk_error error;
} tsk__cuda_reader;

static tsk_status tsk__cuda_read_piece(tsk__cuda_reader *r, const tsk__cuda_piece *p, int half) {
    tsk__cuda_backend *b = r->loading->backend;
    const tsk__cuda_api *api = &b->api;
    char *pinned = r->pinned + (uint64_t)half * TSK__CUDA_PIECE;
    CUdeviceptr staging = r->staging + (uint64_t)half * TSK__CUDA_PIECE;
    tsk_dtype dtype = p->stored.dtype;
    uint64_t element = tsk_dtype_size(dtype);
    const char *mapped = (const char *)p->stored.data;
    const tsk__source *source = r->loading->source;
    tsk__cuda_convert_args a;
    CUresult result = api->cuEventSynchronize(r->copied[half]);
    memset(&a, 0, sizeof a);
    a.from = staging, a.to = p->destination.matrix, a.row_order = p->destination.row_order;
    a.first = p->offset / element, a.count = p->size / element;
    a.stored = dtype == TSK_DTYPE_F32   ? TSK__CUDA_STORED_F32
               : dtype == TSK_DTYPE_F16 ? TSK__CUDA_STORED_F16
                                        : TSK__CUDA_STORED_BF16;
    if (result != CUDA_SUCCESS) return tsk__cuda_fail(api, &r->error, result, "copying weights");
    if (mapped) memcpy(pinned, mapped + p->offset, (size_t)p->size);
    else {
        tsk_status status = source->read(source, &p->stored, p->offset, pinned, (size_t)p->size, &r->error);
        if (status != TSK_OK) return status;
    }
    result = api->cuMemcpyHtoDAsync_v2(staging, pinned, (size_t)p->size, r->stream);
    if (result == CUDA_SUCCESS)
        result = tsk__cuda_launch_on(b, r->stream, TSK__CUDA_convert, 256, 1, 1, TSK__CUDA_THREADS_convert, 0, 0, &a);
    if (result == CUDA_SUCCESS) result = api->cuEventRecord(r->copied[half], r->stream);
    return tsk__cuda_fail(api, &r->error, result, "copying weights");
}

static void *tsk__cuda_read(void *argument) {
    tsk__cuda_reader *r = (tsk__cuda_reader *)argument;
    tsk__cuda_loading *l = r->loading;
    int half = 0;
    tsk__cuda_enter(l->backend);
    while (r->status == TSK_OK && !__atomic_load_n(&l->stop, __ATOMIC_RELAXED)) {
        size_t i = __atomic_fetch_add(&l->next, 1, __ATOMIC_RELAXED);
        if (i >= l->n_pieces) break;
        r->status = tsk__cuda_read_piece(r, &l->pieces[i], half);
        half = !half;
        __atomic_fetch_add(&l->done, l->pieces[i].size, __ATOMIC_RELAXED);
    }
    if (r->status == TSK_OK)
        r->status = tsk__cuda_fail(&l->backend->api, &r->error, l->backend->api.cuStreamSynchronize(r->stream),
                                   "copying weights");
    if (r->status != TSK_OK) __atomic_store_n(&l->stop, 1, __ATOMIC_RELAXED);
    tsk__cuda_leave(l->backend);
    return NULL;
}

/* Random values are made where they are to lie. */
static tsk_status tsk__cuda_make(tsk__cuda_loading *l, const tsk__stored *stored, tsk__cuda_destination destination,
                                 tsk_error *error) {
    tsk__cuda_backend *b = l->backend;
    uint64_t count = (uint64_t)stored->rows * (uint64_t)stored->cols;
    uint32_t blocks = (uint32_t)b->n_multiprocessors * 8;
    tsk__cuda_fill_args ones;
    tsk__cuda_randomise_args random;
    CUresult result;
    memset(&ones, 0, sizeof ones);
    ones.to = destination.matrix, ones.count = count, ones.value = 1.0f;
    memset(&random, 0, sizeof random);
    random.to = destination.matrix, random.count = count, random.row_order = destination.row_order;
    random.seed = l->source->seed, random.tensor = stored->number, random.scale = stored->scale;
    l->made = 1;
    if (stored->scale > 0)
        result =
            tsk__cuda_launch_on(b, NULL, TSK__CUDA_randomise, blocks, 1, 1, TSK__CUDA_THREADS_randomise, 0, 0, &random);
    else result = tsk__cuda_launch_on(b, NULL, TSK__CUDA_fill, 16, 1, 1, TSK__CUDA_THREADS_fill, 0, 0, &ones);
    return tsk__cuda_fail(&b->api, error, result, "random weights");
}

/* Cuts a weight into pieces for the readers. */
static tsk_status tsk__cuda_put(void *loading, const tsk__weight_id *id, const tsk__stored *stored, tsk_error *error) {
    tsk__cuda_loading *l = (tsk__cuda_loading *)loading;
    tsk__cuda_destination destination = tsk__cuda_destination_of(l->backend, id);
    uint64_t offset;
    if (stored->is_made) return tsk__cuda_make(l, stored, destination, error);
    for (offset = 0; offset < stored->size; offset += TSK__CUDA_PIECE) {
        tsk__cuda_piece *piece;
        if (!tsk__memory_reserve(l->backend->allocator, &l->pieces, &l->piece_capacity, l->n_pieces + 1, sizeof *piece))
            return tsk__error_memory(error, "the list of weights", (l->n_pieces + 1) * sizeof *piece);
        piece = &l->pieces[l->n_pieces++];
        piece->stored = *stored;
        piece->destination = destination;
        piece->offset = offset;
        piece->size = stored->size - offset < TSK__CUDA_PIECE ? stored->size - offset : TSK__CUDA_PIECE;
        l->total += piece->size;
    }
    return TSK_OK;
}

static CUresult tsk__cuda_reader_open(tsk__cuda_reader *r, tsk__cuda_loading *loading) {
    const tsk__cuda_api *api = &loading->backend->api;
    CUresult result = api->cuStreamCreate(&r->stream, CU_STREAM_NON_BLOCKING);
    void *pinned = NULL;
    r->loading = loading;
    if (result == CUDA_SUCCESS) result = api->cuEventCreate(&r->copied[0], CU_EVENT_DISABLE_TIMING);
    if (result == CUDA_SUCCESS) result = api->cuEventCreate(&r->copied[1], CU_EVENT_DISABLE_TIMING);
    if (result == CUDA_SUCCESS) result = api->cuMemHostAlloc(&pinned, (size_t)(2 * TSK__CUDA_PIECE), 0);
    r->pinned = (char *)pinned;
    if (result == CUDA_SUCCESS) result = api->cuMemAlloc_v2(&r->staging, (size_t)(2 * TSK__CUDA_PIECE));
    return result;
}

static void tsk__cuda_reader_close(tsk__cuda_reader *r, const tsk__cuda_api *api) {
    if (r->started) tsk__thread_join(r->thread);
    if (r->stream) api->cuStreamSynchronize(r->stream);
    if (r->copied[0]) api->cuEventDestroy_v2(r->copied[0]);
    if (r->copied[1]) api->cuEventDestroy_v2(r->copied[1]);
    if (r->pinned) api->cuMemFreeHost(r->pinned);
    if (r->staging) api->cuMemFree_v2(r->staging);
    if (r->stream) api->cuStreamDestroy_v2(r->stream);
}

/* Progress and cancelling are the host's own functions: they are called on its own thread, which watches the
   readers. */
static void tsk__cuda_watch(tsk__cuda_loading *l, const tsk_model_options *o, int *cancelled) {
    uint64_t reported = UINT64_MAX;
    for (;;) {
        uint64_t done = __atomic_load_n(&l->done, __ATOMIC_RELAXED);
        if (o->progress && done != reported) o->progress(o->user, done, l->total);
        reported = done;
        if (o->cancel && !*cancelled && o->cancel(o->user)) {
            *cancelled = 1;
            __atomic_store_n(&l->stop, 1, __ATOMIC_RELAXED);
        }
        if (done >= l->total || __atomic_load_n(&l->stop, __ATOMIC_RELAXED)) return;
        tsk__thread_sleep(1);
    }
}

static tsk_status tsk__cuda_read_pieces(tsk__cuda_loading *l, const tsk_model_options *o, tsk_error *error) {
    tsk__cuda_backend *b = l->backend;
    tsk__cuda_reader *readers =
        (tsk__cuda_reader *)tsk__memory_new_zeroed(b->allocator, TSK__CUDA_READERS, sizeof *readers);
    tsk_status status = TSK_OK;
    int n_readers = tsk__processors(), n_started = 0, cancelled = 0, r;
    if (!readers) return tsk__error_memory(error, "buffers for loading", TSK__CUDA_READERS * sizeof *readers);
    if (n_readers > TSK__CUDA_READERS) n_readers = TSK__CUDA_READERS;
    if ((size_t)n_readers > l->n_pieces) n_readers = (int)l->n_pieces;
    for (r = 0; status == TSK_OK && r < n_readers; r++) {
        CUresult result = tsk__cuda_reader_open(&readers[r], l);
        status = tsk__cuda_fail(&b->api, error, result, "buffers for loading");
    }
    for (r = 0; status == TSK_OK && r < n_readers; r++) {
        readers[r].started = tsk__thread_start(&readers[r].thread, tsk__cuda_read, &readers[r]);
        n_started += readers[r].started;
    }
    if (status == TSK_OK && n_started) tsk__cuda_watch(l, o, &cancelled);
    else if (status == TSK_OK && n_readers) tsk__cuda_read(&readers[0]);  /* the system refuses threads: this one
                                                                             reads */
    for (r = 0; r < n_readers; r++) tsk__cuda_reader_close(&readers[r], &b->api);
    for (r = 0; r < n_readers && status == TSK_OK; r++) {
        if (readers[r].status != TSK_OK && error) *error = readers[r].error;  /* its log, if any, changes hands */
        status = readers[r].status;
    }
    if (status == TSK_OK && cancelled)
        status = tsk__error_set(error, TSK_ERROR_CANCELLED, NULL, TSK_NO_OFFSET, "loading was cancelled");
    tsk__memory_delete(b->allocator, readers);
    return status;
}

/* Fills the arena, laid out before, from the source. */
static tsk_status tsk__cuda_load_weights(tsk__cuda_backend *b, const tsk__source *source, const tsk_model_options *o,
                                         tsk_error *error) {
    tsk__cuda_loading loading;
    tsk_status status;
    memset(&loading, 0, sizeof loading);
    loading.backend = b;
    loading.source = source;
    status = tsk__weights_load(source, tsk__cuda_put, &loading, error);
    if (status == TSK_OK && loading.made)
        status = tsk__cuda_fail(&b->api, error, b->api.cuStreamSynchronize(NULL), "random weights");
    if (status == TSK_OK && loading.n_pieces) status = tsk__cuda_read_pieces(&loading, o, error);
    tsk__memory_delete(b->allocator, loading.pieces);
    return status;
}

#endif /* TOKENSKIP__HAS_CUDA */

// >>cuda_stream =======================================================================================================
/* One session's or batch's order of work on the device: its buffers, the lists in pinned memory, and the rows of a
   pass. */

#ifdef TOKENSKIP__HAS_CUDA

/* ---- streams */

/* A recorded section: a graph, and the shape of the pass that it was recorded for. */
typedef struct tsk__cuda_section {
    uint64_t key;
    int32_t n, n_requests, n_tiles;
    tsk__cuda_attention attention;
    int fetches;                   /* it begins with fetching the row table */
    const void *x;                 /* the rows' states: all rows', or where compact put some */
    CUgraphExec graph;
} tsk__cuda_section;
#define TSK__CUDA_SEEN 4
#define TSK__CUDA_SECTIONS 64

/* Lists in pinned memory, which the host and the device both read and write. */
typedef struct tsk__cuda_pinned {
    char *memory;
    tsk__cuda_row *rows;           /* [max_rows] image of the row table */
    tsk__cuda_cache *caches;       /* [max_rows] */
    tsk__cuda_tile *tiles;         /* [max_rows] */
    volatile uint32_t *fetched, *signalled;
    char *arguments;               /* lists of operations: on their way to the device, or read where they are */
    uint64_t arguments_size, arguments_used;
} tsk__cuda_pinned;

/* A stream's own device memory. */
typedef struct tsk__cuda_memory {
    CUdeviceptr memory, arguments, counters, state_words, squares, attention_parts, heads, scratch, normed, compact_x,
        full_x, workspace, logits;
    CUdeviceptr cosines, skipped;  /* what the host has copies of */
    CUdeviceptr confidences;       /* [max_rows] select's scratch */
    CUdeviceptr compact_index;     /* [max_rows] the list that compact narrowed to */
    tsk__cuda_table table;
    tsk__cuda_tensor_map inputs[3][2];  /* normed, attention, hidden: boxes of 32 and of 64 rows */
} tsk__cuda_memory;

/* The pass under way. */
typedef struct tsk__cuda_pass {
    int32_t n, all_n, n_requests;
    int32_t n_tiles;               /* attention's */
    tsk__cuda_attention attention; /* the kernel for them */
    int32_t compacted;             /* rows of the list that compact narrowed to, 0: not narrowed */
    int is_dirty;                  /* the device has not fetched the row table's last change */
    CUdeviceptr normed_for;        /* the norm whose first half x has gone through, to `normed` and `squares`; 0:
                                      none */
} tsk__cuda_pass;

/* What has been launched so far. */
typedef struct tsk__cuda_issued {
    uint32_t fetches, signals;     /* how many of them */
    int needs_signal;
    int can_overlap;               /* what was launched last is a kernel, and the next one may begin while it ends */
} tsk__cuda_issued;

/* The sections that are recorded, and those that may be. */
typedef struct tsk__cuda_recorded {
    int is_recording;
    tsk__cuda_section recording;   /* what is being recorded */
    tsk__cuda_section sections[TSK__CUDA_SECTIONS];
    int n_sections, next_section;
    tsk__cuda_section seen[TSK__CUDA_SEEN];  /* of many rows, lately, and not recorded */
    int next_seen;
} tsk__cuda_recorded;

typedef struct tsk__cuda_stream {
    tsk__stream base;
    tsk__cuda_backend *backend;
    CUstream stream;
    cublasHandle_t cublas;
    int32_t n_states;
    CUresult failure;
    const char *failed;            /* in which operation */
    tsk__cuda_pinned pinned;
    tsk__cuda_memory device;
    tsk__cuda_pass pass;
    tsk__cuda_issued issued;
    tsk__cuda_recorded recorded;
} tsk__cuda_stream;

static tsk__cuda_stream *tsk__cuda_stream_of(tsk__stream *s) { return (tsk__cuda_stream *)(void *)s; }
static CUdeviceptr tsk__cuda_address(const void *address) { return (CUdeviceptr)(uintptr_t)address; }
static void *tsk__cuda_pointer(CUdeviceptr address) { return (void *)(uintptr_t)address; }

static void tsk__cuda_note(tsk__cuda_stream *s, CUresult result, const char *what) {
    if (result == CUDA_SUCCESS || s->failure != CUDA_SUCCESS) return;
    s->failure = result;
    s->failed = what;
}

#define TSK__CUDA_UNKNOWN ((CUresult)999)  /* CUDA_ERROR_UNKNOWN: something went wrong, and CUDA has no word for it */

/* Watches a pinned word until it counts what is expected, or the stream fails. If the stream has ended and the word has
   not reached the count, kernels were lost, and that is a failure. */
static void tsk__cuda_await(tsk__cuda_stream *s, const volatile uint32_t *word, uint32_t expected, const char *what) {
    uint32_t spins = 0;
    while (s->failure == CUDA_SUCCESS && __atomic_load_n(word, __ATOMIC_ACQUIRE) != expected) {
        if (++spins % 4096 == 0) {
            CUresult result = s->backend->api.cuStreamQuery(s->stream);
            if (result != CUDA_ERROR_NOT_READY) tsk__cuda_note(s, result, what);
            if (result == CUDA_SUCCESS && __atomic_load_n(word, __ATOMIC_ACQUIRE) != expected)
                tsk__cuda_note(s, TSK__CUDA_UNKNOWN, what);
            if (spins > 1u << 20) tsk__thread_yield();
        }
        tsk__pool_pause();
    }
}

/* The row table's image may be changed again: what was launched to fetch it has. */
static void tsk__cuda_wait_fetched(tsk__cuda_stream *s) {
    tsk__cuda_await(s, s->pinned.fetched, s->issued.fetches, "fetching the rows");
}

static void tsk__cuda_fetch_rows(tsk__cuda_stream *s) {
    tsk__cuda_backend *b = s->backend;
    tsk__cuda_pass_begin_args a;
    a.rows = tsk__cuda_address(s->pinned.rows), a.caches = tsk__cuda_address(s->pinned.caches),
    a.tiles = tsk__cuda_address(s->pinned.tiles);
    a.table = s->device.table;
    a.frequencies = b->frequencies;
    a.state = s->device.state_words;
    a.fetched = tsk__cuda_address((const void *)(uintptr_t)s->pinned.fetched);
    a.n = s->pass.n, a.n_caches = s->pass.n_requests, a.n_tiles = s->pass.n_tiles,
    a.half = b->base.config->head_dim / 2;
    tsk__cuda_note(s,
                   tsk__cuda_launch_on(b, s->stream, TSK__CUDA_pass_begin, (uint32_t)s->pass.n + 1, 1, 1,
                                       TSK__CUDA_THREADS_pass_begin, 0, 0, &a),
                   "pass_begin");
    s->issued.fetches++;
    s->pass.is_dirty = 0;
    s->issued.can_overlap = 0;  /* what follows may read the table before it waits for its predecessor */
}

static void tsk__cuda_launch(tsk__cuda_stream *s, tsk__cuda_kernel kernel, uint32_t gx, uint32_t gy, uint32_t gz,
                             uint32_t block, uint32_t shared, const void *args, const char *what) {
    if (s->failure != CUDA_SUCCESS) return;
    if (s->pass.is_dirty) tsk__cuda_fetch_rows(s);
    tsk__cuda_note(s,
                   tsk__cuda_launch_on(s->backend, s->stream, kernel, gx, gy, gz, block, shared, s->issued.can_overlap,
                                       args),
                   what);
    s->issued.can_overlap = 1;
    s->issued.needs_signal = 1;
}

static void tsk__cuda_signal(tsk__cuda_stream *s) {
    tsk__cuda_pass_signal_args a;
    a.count = s->device.state_words + 8;
    a.signalled = tsk__cuda_address((const void *)(uintptr_t)s->pinned.signalled);
    tsk__cuda_launch(s, TSK__CUDA_pass_signal, 1, 1, 1, 1, 0, &a, "pass_signal");
    s->issued.signals++;
    s->issued.needs_signal = 0;
}

static tsk_status tsk__cuda_backend_wait(tsk__stream *stream, tsk_error *error) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    tsk_status status = TSK_OK;
    tsk__cuda_enter(s->backend);
    if (s->issued.needs_signal) tsk__cuda_signal(s);
    tsk__cuda_await(s, s->pinned.signalled, s->issued.signals, "waiting");
    if (s->failure != CUDA_SUCCESS) {
        s->backend->api.cuStreamSynchronize(s->stream);
        status = tsk__cuda_fail(&s->backend->api, error, s->failure, s->failed);
        s->failure = CUDA_SUCCESS;
        s->issued.signals = *s->pinned.signalled;
        s->issued.fetches = *s->pinned.fetched;
        s->pass.is_dirty = 1;
    }
    s->pinned.arguments_used = 0;
    tsk__cuda_leave(s->backend);
    return status;
}

/* A place in the ring of pinned memory from which lists are copied to the device, or where the device reads them. It is
   valid until the next wait. Do not call this inside a recorded section, which would record the list's contents. */
static uint64_t tsk__cuda_argument_room(tsk__cuda_stream *s, uint64_t size) {
    uint64_t at = s->pinned.arguments_used, room = (size + 15) & ~(uint64_t)15;
    if (at + room > s->pinned.arguments_size) {  /* as good as a wait: everything that used the ring is done */
        tsk__cuda_note(s, s->backend->api.cuStreamSynchronize(s->stream), "making room for arguments");
        at = 0;
    }
    s->pinned.arguments_used = at + room;
    return at;
}
static uint64_t tsk__cuda_argument_place(tsk__cuda_stream *s, const void *values, uint64_t size) {
    uint64_t at = tsk__cuda_argument_room(s, size);
    memcpy(s->pinned.arguments + at, values, (size_t)size);
    return at;
}

/* Two lists beside each other, the second at a multiple of 16 bytes: *second_at after the first. */
static uint64_t tsk__cuda_argument_pair(tsk__cuda_stream *s, const void *first, uint64_t first_size, const void *second,
                                        uint64_t second_size, uint64_t *second_at) {
    uint64_t at;
    *second_at = (first_size + 15) & ~(uint64_t)15;
    at = tsk__cuda_argument_room(s, *second_at + second_size);
    memcpy(s->pinned.arguments + at, first, (size_t)first_size);
    memcpy(s->pinned.arguments + at + *second_at, second, (size_t)second_size);
    return at;
}

static void tsk__cuda_upload(tsk__cuda_stream *s, CUdeviceptr to, uint64_t at, uint64_t size) {
    tsk__cuda_note(s, s->backend->api.cuMemcpyHtoDAsync_v2(to, s->pinned.arguments + at, (size_t)size, s->stream),
                   "copying arguments");
    s->issued.can_overlap = 0;
}

static uint64_t tsk__cuda_backend_available(tsk__backend *backend) {
    tsk__cuda_backend *b = tsk__cuda_backend_of(backend);
    size_t available = 0, total = 0;
    CUresult result;
    tsk__cuda_enter(b);
    result = b->api.cuMemGetInfo_v2(&available, &total);
    tsk__cuda_leave(b);
    return result == CUDA_SUCCESS ? (uint64_t)available : UINT64_MAX;
}

static void *tsk__cuda_backend_allocate(tsk__backend *backend, uint64_t size) {
    tsk__cuda_backend *b = tsk__cuda_backend_of(backend);
    CUdeviceptr address = 0;
    if (size > SIZE_MAX) return NULL;
    tsk__cuda_enter(b);
    if (b->api.cuMemAlloc_v2(&address, size ? (size_t)size : 1) != CUDA_SUCCESS) address = 0;
    tsk__cuda_leave(b);
    return tsk__cuda_pointer(address);
}

static void tsk__cuda_backend_release(tsk__backend *backend, void *address) {
    tsk__cuda_backend *b = tsk__cuda_backend_of(backend);
    if (!address) return;
    tsk__cuda_enter(b);
    b->api.cuMemFree_v2(tsk__cuda_address(address));
    tsk__cuda_leave(b);
}

static void tsk__cuda_backend_copy(tsk__stream *stream, void *to, const void *from, uint64_t size) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    if (!size || s->failure != CUDA_SUCCESS) return;
    tsk__cuda_enter(s->backend);
    tsk__cuda_note(s,
                   s->backend->api.cuMemcpyDtoDAsync_v2(tsk__cuda_address(to), tsk__cuda_address(from), (size_t)size,
                                                        s->stream),
                   "copying");
    if (tsk__cuda_address(to) >= s->device.full_x && tsk__cuda_address(to) < s->device.normed)
        s->pass.normed_for = 0; /* into x, compacted or not */
    s->issued.can_overlap = 0;
    s->issued.needs_signal = 1;
    tsk__cuda_leave(s->backend);
}

static void tsk__cuda_backend_slide(tsk__stream *stream, void *base, int32_t planes, uint64_t pitch, uint64_t to,
                                    uint64_t from, uint64_t size) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    tsk__cuda_slide_args a;
    if (!size || s->failure != CUDA_SUCCESS) return;
    a.base = tsk__cuda_address(base);
    a.pitch = pitch, a.to = to, a.from = from, a.size = size;
    tsk__cuda_enter(s->backend);
    tsk__cuda_note(s,
                   tsk__cuda_launch_on(s->backend, s->stream, TSK__CUDA_slide, (uint32_t)planes, 1, 1,
                                       TSK__CUDA_THREADS_slide, 0, 0, &a),
                   "moving a cache");
    s->issued.can_overlap = 0;
    s->issued.needs_signal = 1;
    tsk__cuda_leave(s->backend);
}

static void tsk__cuda_backend_upload(tsk__stream *stream, void *to, const void *from, uint64_t size) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    uint64_t done, piece;
    tsk__cuda_enter(s->backend);
    for (done = 0; done < size && s->failure == CUDA_SUCCESS; done += piece) {
        piece = size - done < s->pinned.arguments_size ? size - done : s->pinned.arguments_size;
        tsk__cuda_upload(s, tsk__cuda_address(to) + done, tsk__cuda_argument_place(s, (const char *)from + done, piece),
                         piece);
    }
    s->issued.needs_signal = 1;
    tsk__cuda_leave(s->backend);
}

/* bf16 values land in the upper half of `to`, from where they are widened in place, first to last. */
static void tsk__cuda_download(tsk__cuda_stream *s, float *to, CUdeviceptr from, uint64_t count, uint32_t element) {
    char *raw = (char *)to + (element == 2 ? count * 2 : 0);
    if (s->failure == CUDA_SUCCESS)
        tsk__cuda_note(s, s->backend->api.cuMemcpyDtoHAsync_v2(raw, from, (size_t)(count * element), s->stream),
                       "downloading");
    if (s->failure == CUDA_SUCCESS) tsk__cuda_note(s, s->backend->api.cuStreamSynchronize(s->stream), "downloading");
    s->issued.can_overlap = 0;
    if (s->failure != CUDA_SUCCESS) {
        memset(to, 0, (size_t)count * sizeof *to);
        return;
    }
    if (element == 2) tsk__floats_from(TSK_DTYPE_BF16, raw, count, to);
}

static void tsk__cuda_backend_download(tsk__stream *stream, float *to, const void *from, uint64_t count) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    tsk__cuda_enter(s->backend);
    tsk__cuda_download(s, to, tsk__cuda_address(from), count, s->backend->base.element_size);
    tsk__cuda_leave(s->backend);
}

static void tsk__cuda_backend_stream_destroy(tsk__stream *stream) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    tsk__cuda_backend *b = s->backend;
    int i;
    tsk__cuda_enter(b);
    if (s->stream) b->api.cuStreamSynchronize(s->stream);
    for (i = 0; i < s->recorded.n_sections; i++) b->api.cuGraphExecDestroy(s->recorded.sections[i].graph);
    if (s->cublas) b->api.cublasDestroy_v2(s->cublas);
    if (s->device.memory) b->api.cuMemFree_v2(s->device.memory);
    if (s->device.logits) b->api.cuMemFree_v2(s->device.logits);
    if (s->pinned.memory) b->api.cuMemFreeHost(s->pinned.memory);
    if (s->stream) b->api.cuStreamDestroy_v2(s->stream);
    tsk__cuda_leave(b);
    tsk__memory_delete(b->allocator, s);
}

static int32_t tsk__cuda_head_rows(int32_t rows) { return rows < TSK__CUDA_HEAD_ROWS ? rows : TSK__CUDA_HEAD_ROWS; }

/* Tiles of the head where it is one of the fused maps. */
static int32_t tsk__cuda_head_tiles(const tsk__cuda_backend *b, int32_t m) {
    int32_t width = 16 * b->plans[TSK__CUDA_MAP_HEAD].pieces;
    return m > TSK__CUDA_FEW_ROWS ? tsk__cuda_wide_tiles(b, TSK__CUDA_MAP_HEAD)
                                  : (b->base.config->embedding_size + width - 1) / width;
}
/* Entries for all tiles and rows, whichever way the head goes. */
static uint64_t tsk__cuda_head_entries(const tsk__cuda_backend *b, int32_t max_rows) {
    uint64_t most =
        ((uint64_t)b->base.config->embedding_size / TSK__CUDA_HEAD_TILE + 1) * (uint64_t)tsk__cuda_head_rows(max_rows);
    int32_t rows;
    for (rows = TSK__CUDA_FEW_ROWS; rows <= tsk__cuda_fused_rows(b); rows += TSK__CUDA_WIDE_ROWS - TSK__CUDA_FEW_ROWS) {
        uint64_t entries = (uint64_t)tsk__cuda_head_tiles(b, rows) * (uint64_t)rows;
        if (entries > most) most = entries;
    }
    return most;
}

static CUresult tsk__cuda_encode_inputs(tsk__cuda_stream *s) {
    const tsk__cuda_backend *b = s->backend;
    uint64_t columns[3];
    CUdeviceptr addresses[3];
    CUresult result = CUDA_SUCCESS;
    int i;
    addresses[0] = s->device.normed, addresses[1] = tsk__cuda_address(s->base.attention),
    addresses[2] = tsk__cuda_address(s->base.hidden);
    columns[0] = (uint64_t)b->base.config->d_model, columns[1] = (uint64_t)b->q_width,
    columns[2] = (uint64_t)b->base.config->mlp_hidden_size;
    for (i = 0; i < 6 && result == CUDA_SUCCESS && b->has_few_rows; i++)
        result = tsk__cuda_encode(b, addresses[i / 2], (uint64_t)s->base.max_rows, columns[i / 2],
                                  tsk__cuda_plan_rows[i % 2], &s->device.inputs[i / 2][i % 2]);
    return result;
}

/* Addresses of the stream's device memory, or its size with base 0. */
static uint64_t tsk__cuda_stream_layout(tsk__cuda_stream *s, CUdeviceptr base) {
    const tsk__cuda_backend *b = s->backend;
    const tsk_model_config *c = b->base.config;
    uint64_t rows = (uint64_t)s->base.max_rows, d = (uint64_t)c->d_model, e = b->base.element_size, used = 0;
    uint64_t wide = (uint64_t)(b->qkv_width > b->gate_up_rows ? b->qkv_width : b->gate_up_rows);
    int has_scratch = s->base.max_rows > tsk__cuda_fused_rows(b) || b->norms_heads;
    s->device.full_x = base + tsk__cuda_take(&used, rows * d, e);
    s->device.compact_x = base + tsk__cuda_take(&used, rows * d, e);
    s->device.normed = base + tsk__cuda_take(&used, rows * d, e);
    s->base.q = tsk__cuda_pointer(base + tsk__cuda_take(&used, rows * (uint64_t)b->q_width, e));
    s->base.attention = tsk__cuda_pointer(base + tsk__cuda_take(&used, rows * (uint64_t)b->q_width, e));
    s->base.hidden = tsk__cuda_pointer(base + tsk__cuda_take(&used, rows * (uint64_t)c->mlp_hidden_size, e));
    s->device.scratch = base + tsk__cuda_take(&used, has_scratch ? rows * (wide > d ? wide : d) : 0, e);
    s->device.table.rows = base + tsk__cuda_take(&used, rows, sizeof(tsk__cuda_row));
    s->device.table.caches = base + tsk__cuda_take(&used, rows, sizeof(tsk__cuda_cache));
    s->device.table.tiles = base + tsk__cuda_take(&used, rows, sizeof(tsk__cuda_tile));
    s->device.table.rope = base + tsk__cuda_take(&used, rows * (uint64_t)(c->head_dim / 2), 2 * sizeof(float));
    s->device.squares = base + tsk__cuda_take(&used, rows * (uint64_t)TSK__CUDA_SQUARES_ROW(c->d_model), sizeof(float));
    s->device.attention_parts =
        base + tsk__cuda_take(&used,
                              b->has_flash ? (uint64_t)c->n_heads * TSK__CUDA_ATTENTION_SPLITS * TSK__CUDA_SPLIT_ROWS *
                                                 ((uint64_t)c->head_dim + 2)
                                           : 0,
                              sizeof(float));
    s->device.heads =
        base + tsk__cuda_take(&used, tsk__cuda_head_entries(b, s->base.max_rows), sizeof(tsk__cuda_head_entry));
    s->device.counters = base + tsk__cuda_take(&used, (uint64_t)c->n_heads * rows, sizeof(uint32_t));
    s->device.state_words = base + tsk__cuda_take(&used, 4, sizeof(uint32_t));
    s->device.arguments = base + tsk__cuda_take(&used, s->pinned.arguments_size, 1);
    s->device.compact_index = base + tsk__cuda_take(&used, rows, sizeof(int32_t));
    s->device.cosines = base + tsk__cuda_take(&used, rows * (uint64_t)s->n_states, sizeof(float));
    s->device.skipped = base + tsk__cuda_take(&used, rows, sizeof(int32_t));
    s->base.predictions = tsk__cuda_pointer(base + tsk__cuda_take(&used, rows, sizeof(tsk__prediction)));
    s->device.confidences = base + tsk__cuda_take(&used, rows, sizeof(float));
    s->device.workspace = base + tsk__cuda_take(&used, b->is_f32 ? 0 : TSK__CUDA_WORKSPACE, 1);
    return used;
}

static CUresult tsk__cuda_stream_pinned(tsk__cuda_stream *s) {
    uint64_t rows = (uint64_t)s->base.max_rows, used = 0, size, at[9];
    void *pinned = NULL;
    CUresult result;
    at[0] = tsk__cuda_take(&used, rows, sizeof(tsk__cuda_row));
    at[1] = tsk__cuda_take(&used, rows, sizeof(tsk__cuda_cache));
    at[2] = tsk__cuda_take(&used, rows, sizeof(tsk__cuda_tile));
    at[3] = tsk__cuda_take(&used, 1, 4);
    at[4] = tsk__cuda_take(&used, 1, 4);
    at[5] = tsk__cuda_take(&used, rows * (uint64_t)s->n_states, sizeof(float));
    at[6] = tsk__cuda_take(&used, rows, sizeof(int32_t));
    at[7] = tsk__cuda_take(&used, rows, sizeof(tsk__choice));
    at[8] = tsk__cuda_take(&used, s->pinned.arguments_size, 1);
    size = used;
    result = s->backend->api.cuMemHostAlloc(&pinned, (size_t)size, 0);
    if (result != CUDA_SUCCESS) return result;
    memset(pinned, 0, (size_t)size);
    s->pinned.memory = (char *)pinned;
    s->pinned.rows = (tsk__cuda_row *)(void *)(s->pinned.memory + at[0]);
    s->pinned.caches = (tsk__cuda_cache *)(void *)(s->pinned.memory + at[1]);
    s->pinned.tiles = (tsk__cuda_tile *)(void *)(s->pinned.memory + at[2]);
    s->pinned.fetched = (volatile uint32_t *)(void *)(s->pinned.memory + at[3]);
    s->pinned.signalled = (volatile uint32_t *)(void *)(s->pinned.memory + at[4]);
    s->base.cosines = (float *)(void *)(s->pinned.memory + at[5]);
    s->base.skipped = (int32_t *)(void *)(s->pinned.memory + at[6]);
    s->base.choices = (tsk__choice *)(void *)(s->pinned.memory + at[7]);
    s->pinned.arguments = s->pinned.memory + at[8];
    return CUDA_SUCCESS;
}

static tsk_status tsk__cuda_stream_cublas(tsk__cuda_stream *s, tsk_error *error) {
    tsk__cuda_backend *b = s->backend;
    if (b->is_f32 || s->base.max_rows <= tsk__cuda_fused_rows(b)) return TSK_OK;
    if (b->api.cublasCreate_v2(&s->cublas) != CUBLAS_STATUS_SUCCESS) {
        s->cublas = NULL;
        return tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET, "cuBLAS cannot start");
    }
    if (b->api.cublasSetStream_v2(s->cublas, s->stream) != CUBLAS_STATUS_SUCCESS ||
        b->api.cublasSetWorkspace_v2(s->cublas, tsk__cuda_pointer(s->device.workspace), TSK__CUDA_WORKSPACE) !=
            CUBLAS_STATUS_SUCCESS)
        return tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET, "cuBLAS does not take its stream");
    return TSK_OK;
}

static tsk_status tsk__cuda_backend_stream_create(tsk__backend *backend, int32_t max_rows, int32_t n_states,
                                                  tsk__stream **out, tsk_error *error) {
    tsk__cuda_backend *b = tsk__cuda_backend_of(backend);
    tsk__cuda_stream *s = (tsk__cuda_stream *)tsk__memory_new_zeroed(b->allocator, 1, sizeof *s);
    tsk_status status;
    CUresult result;
    uint64_t size;
    if (!s) return tsk__error_memory(error, "a stream", sizeof *s);
    s->base.backend = backend;
    s->base.max_rows = max_rows;
    s->backend = b;
    s->n_states = n_states;
    /* a pass's lists; logits pass the draws of TSK__CUDA_LOGITS_ROWS rows, however few there are */
    s->pinned.arguments_size =
        2 * ((uint64_t)(max_rows > TSK__CUDA_LOGITS_ROWS ? max_rows : TSK__CUDA_LOGITS_ROWS) *
                 (2 * sizeof(int32_t) + sizeof(tsk__draw) + sizeof(tsk__commit_candidate) + sizeof(tsk__commit_rule)) +
             128);
    tsk__cuda_enter(b);
    result = b->api.cuStreamCreate(&s->stream, CU_STREAM_NON_BLOCKING);
    if (result == CUDA_SUCCESS) result = tsk__cuda_stream_pinned(s);
    size = tsk__cuda_stream_layout(s, 0);
    if (result == CUDA_SUCCESS)
        result = size > SIZE_MAX ? CUDA_ERROR_OUT_OF_MEMORY : b->api.cuMemAlloc_v2(&s->device.memory, (size_t)size);
    if (result == CUDA_SUCCESS) {
        tsk__cuda_stream_layout(s, s->device.memory);
        result = tsk__cuda_encode_inputs(s);
        if (result == CUDA_SUCCESS) result = b->api.cuMemsetD8Async(s->device.memory, 0, (size_t)size, s->stream);
    }
    status = result == CUDA_ERROR_OUT_OF_MEMORY ? tsk__error_memory(error, "a pass on the CUDA device", size)
                                                : tsk__cuda_fail(&b->api, error, result, "a stream");
    if (status == TSK_OK) status = tsk__cuda_stream_cublas(s, error);
    tsk__cuda_leave(b);
    s->base.x = tsk__cuda_pointer(s->device.full_x);
    if (status != TSK_OK) tsk__cuda_backend_stream_destroy(&s->base);
    else *out = &s->base;
    return status;
}

/* ---- rows */

/* Runs of rows of one request with equally much visible to them, cut into tiles of up to `rows`; says the longest
   tile. */
static int32_t tsk__cuda_cut_tiles(tsk__cuda_stream *s, int32_t rows) {
    int32_t first, count, longest = 0;
    s->pass.n_tiles = 0;
    for (first = 0; first < s->pass.n; first += count) {
        tsk__cuda_tile *tile = &s->pinned.tiles[s->pass.n_tiles++];
        const tsk__cuda_row *row = &s->pinned.rows[first];
        for (count = 1; first + count < s->pass.n && count < rows && row[count].request == row->request &&
                        row[count].visible == row->visible;)
            count++;
        tile->first = first, tile->count = count, tile->request = row->request, tile->visible = row->visible;
        if (count > longest) longest = count;
    }
    return longest;
}

/* Chooses attention's tiles. If there are too few heads and tiles to fill the multiprocessors, tiles are small and
   their keys are split. If they just suffice, tiles are small and keys whole, with more loads in flight.
   Otherwise tiles are large. */
static void tsk__cuda_make_tiles(tsk__cuda_stream *s) {
    const tsk__cuda_backend *b = s->backend;
    const int32_t heads = b->base.config->n_heads, at_once = 2 * b->n_multiprocessors;
    int32_t i, n, last;
    s->pass.is_dirty = 1;
    s->pass.attention = tsk__cuda_cut_tiles(s, 64) <= 32 ? TSK__CUDA_ATTENTION_SMALL : TSK__CUDA_ATTENTION_MEDIUM;
    if (s->pass.n_tiles * tsk__cuda_attentions[s->pass.attention].rows <= TSK__CUDA_SPLIT_ROWS &&
        4 * s->pass.n_tiles * heads < 3 * b->n_multiprocessors)
        return;
    if (s->pass.attention == TSK__CUDA_ATTENTION_SMALL && s->pass.n_tiles * heads <= b->n_multiprocessors &&
        TSK__CUDA_FEW_SHARED <= b->shared_limit) {
        s->pass.attention = TSK__CUDA_ATTENTION_FEW;
        return;
    }
    s->pass.attention = TSK__CUDA_ATTENTION_LARGE;
    tsk__cuda_cut_tiles(s, 128);
    /* Whole tiles among the last, if these leave more than half of the multiprocessors idle, are halved: no result
       changes, as both halves have more than 32 rows (see attention_large). */
    n = s->pass.n_tiles;
    last = (n * heads % at_once + heads - 1) / heads;
    for (i = 2 * last * heads <= at_once ? n - last : n; i < n; i++)
        if (s->pinned.tiles[i].count > 96) {
            tsk__cuda_tile *half = &s->pinned.tiles[s->pass.n_tiles++];
            *half = s->pinned.tiles[i];
            half->first += 64, half->count -= 64;
            s->pinned.tiles[i].count = 64;
        }
}

static void tsk__cuda_backend_begin(tsk__stream *stream, const tsk__rows *rows) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    int32_t i;
    tsk__cuda_enter(s->backend);
    tsk__cuda_wait_fetched(s);
    tsk__cuda_leave(s->backend);
    s->pass.n = s->pass.all_n = rows->n;
    s->pass.n_requests = rows->n_requests;
    s->pass.compacted = 0;
    s->pass.normed_for = 0;
    s->base.x = tsk__cuda_pointer(s->device.full_x);
    for (i = 0; i < rows->n; i++) {
        tsk__cuda_row *row = &s->pinned.rows[i];
        row->token = rows->tokens[i];
        row->position = rows->positions[i];
        row->request = rows->requests[i];
        row->slot = rows->slots ? rows->slots[i] : -1;
        row->active = 1;
        row->number = i;
        row->flags = rows->flags ? rows->flags[i] : 0;
        row->visible = rows->visible ? rows->visible[i] : rows->caches[rows->requests[i]].length;
    }
    for (i = 0; i < rows->n_requests; i++) {
        const tsk__kv *kv = &rows->caches[i];
        tsk__cuda_cache *cache = &s->pinned.caches[i];
        cache->k = tsk__cuda_address(kv->k);
        cache->v = tsk__cuda_address(kv->v);
        cache->states = tsk__cuda_address(kv->states);
        cache->outputs = tsk__cuda_address(kv->outputs);
        cache->tokens = tsk__cuda_address(kv->tokens);
        cache->predictions = tsk__cuda_address(kv->predictions);
        cache->capacity = kv->capacity;
        cache->n_slots = kv->n_slots;
        cache->n_states = kv->n_states;
        cache->first_written = INT32_MAX;
        cache->last_written = -1;
        cache->skip_threshold = kv->skip_threshold;
        cache->skip_outlier = kv->skip_outlier;
    }
    for (i = 0; i < rows->n; i++) {
        tsk__cuda_cache *cache = &s->pinned.caches[rows->requests[i]];
        if (rows->positions[i] < cache->first_written) cache->first_written = rows->positions[i];
        if (rows->positions[i] > cache->last_written) cache->last_written = rows->positions[i];
    }
    tsk__cuda_make_tiles(s);
}

static void tsk__cuda_backend_mask(tsk__stream *stream, const int32_t *active) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    int32_t i;
    tsk__cuda_enter(s->backend);
    tsk__cuda_wait_fetched(s);
    tsk__cuda_leave(s->backend);
    for (i = 0; i < s->pass.n; i++) s->pinned.rows[i].active = active ? active[i] != 0 : 1;
    s->pass.is_dirty = 1;
}

#endif /* TOKENSKIP__HAS_CUDA */

// >>cuda ==============================================================================================================
/* The operations of the backend on the device, recorded sections, and the table. */

#ifdef TOKENSKIP__HAS_CUDA

static CUdeviceptr tsk__cuda_x(const tsk__cuda_stream *s) { return tsk__cuda_address(s->base.x); }
static int tsk__cuda_is_fused(const tsk__cuda_stream *s) { return s->pass.n <= tsk__cuda_fused_rows(s->backend); }
static uint64_t tsk__cuda_layer_offset(const tsk_model_config *c, int32_t layer) {
    return (uint64_t)layer * (uint64_t)c->n_kv_heads * (uint64_t)c->head_dim;
}

/* Computes the first half of a norm, unless the kernel that last wrote x has done it. */
static void tsk__cuda_need_normed(tsk__cuda_stream *s, CUdeviceptr norm) {
    tsk__cuda_pre_norm_args a;
    if (s->pass.normed_for == norm) return;
    memset(&a, 0, sizeof a);
    a.x = tsk__cuda_x(s), a.weight = norm, a.normed = s->device.normed, a.squares = s->device.squares;
    a.d = s->backend->base.config->d_model;
    tsk__cuda_launch(s, TSK__CUDA_pre_norm, (uint32_t)s->pass.n, 1, 1, TSK__CUDA_THREADS_pre_norm, 0, &a, "pre_norm");
    s->pass.normed_for = norm;
}

static void tsk__cuda_embed(tsk__cuda_stream *s) {
    CUdeviceptr norm = tsk__cuda_is_fused(s) ? s->backend->layers[0].attn_norm : 0;
    tsk__cuda_embed_args a;
    memset(&a, 0, sizeof a);
    a.embedding = s->backend->embedding;
    a.table = s->device.table;
    a.x = tsk__cuda_x(s);
    a.weight = norm, a.normed = s->device.normed, a.squares = s->device.squares;
    a.d = s->backend->base.config->d_model;
    tsk__cuda_launch(s, TSK__CUDA_embed, (uint32_t)s->pass.n, 1, 1, TSK__CUDA_THREADS_embed, 0, &a, "embed");
    s->pass.normed_for = norm;
}

static void tsk__cuda_norm(tsk__cuda_stream *s, int32_t n, CUdeviceptr index, CUdeviceptr weight, CUdeviceptr out) {
    const tsk_model_config *c = s->backend->base.config;
    tsk__cuda_norm_args a;
    a.x = tsk__cuda_x(s), a.index = index, a.weight = weight, a.out = out;
    a.d = c->d_model, a.eps = c->rms_norm_eps;
    tsk__cuda_launch(s, TSK__CUDA_norm, (uint32_t)n, 1, 1, TSK__CUDA_THREADS_norm,
                     (uint32_t)TSK__CUDA_SQUARES_ROW(a.d) * 4, &a, "norm");
    if (out == s->device.normed) s->pass.normed_for = 0;
}

/* What a linear map for few rows is launched as; the kernel for more than 32 follows. input: which of the stream's, see
   its `inputs`. */
static const struct { tsk__cuda_kernel kernel; int input; const char *name;
} tsk__cuda_map_launches[TSK__CUDA_MAPS] = {{TSK__CUDA_linear_qkv_32, 0, "linear_qkv"},
                                            {TSK__CUDA_linear_out_32, 1, "linear_out"},
                                            {TSK__CUDA_linear_gate_up_32, 0, "linear_gate_up"},
                                            {TSK__CUDA_linear_out_32, 2, "linear_out"},
                                            {TSK__CUDA_linear_head_32, 0, "linear_head"}};

/* What all of them take alike. The head belongs to no layer. */
static tsk__cuda_linear_args tsk__cuda_linear_common(const tsk__cuda_stream *s, tsk__cuda_map map, int32_t m,
                                                     const tsk__cuda_layer *layer) {
    const tsk__cuda_backend *b = s->backend;
    const tsk_model_config *c = b->base.config;
    const tsk__cuda_plan *plan = &b->plans[map];
    int input = tsk__cuda_map_launches[map].input, is_wide = m > TSK__CUDA_FEW_ROWS;
    tsk__cuda_linear_args a;
    memset(&a, 0, sizeof a);
    a.weights_map = layer ? (is_wide ? layer->wide_maps : layer->maps)[map] : is_wide ? b->head_wide_map : b->head_map;
    a.input_map = s->device.inputs[input][m > 32 && !is_wide];
    a.input = input == 0 ? s->device.normed : tsk__cuda_address(input == 1 ? s->base.attention : s->base.hidden);
    a.m = m, a.n = plan->n, a.k = plan->k;
    a.pieces = plan->pieces, a.groups = plan->groups, a.stages = is_wide ? plan->wide_stages : plan->stages[m > 32];
    a.eps = c->rms_norm_eps;
    a.table = s->device.table;
    a.n_heads = c->n_heads, a.n_kv_heads = c->n_kv_heads, a.head_dim = c->head_dim, a.mlp = c->mlp_hidden_size;
    return a;
}

static void tsk__cuda_linear(tsk__cuda_stream *s, tsk__cuda_map map, const tsk__cuda_linear_args *a) {
    const tsk__cuda_plan *plan = &s->backend->plans[map];
    const char *name = tsk__cuda_map_launches[map].name;
    tsk__cuda_kernel kernel = tsk__cuda_map_launches[map].kernel;
    uint32_t fetchers = s->backend->arch >= 90 ? TSK__CUDA_LINEAR_FETCHERS : TSK__CUDA_LINEAR_FETCHERS_80;
    int is_64 = a->m > 32;
    if (a->m > TSK__CUDA_FEW_ROWS)
        tsk__cuda_launch(s, tsk__cuda_wide[map].kernel, (uint32_t)plan->wide_blocks, 1, 1, TSK__CUDA_WIDE_WARPS * 32,
                         (uint32_t)plan->wide_shared, a, name);
    else
        tsk__cuda_launch(s, (tsk__cuda_kernel)((int)kernel + is_64), (uint32_t)plan->blocks, 1, 1,
                         TSK__CUDA_LINEAR_WARPS * 32 + fetchers, (uint32_t)plan->shared[is_64], a, name);
}

/* out[m, n] = input[m, k] * weights[n, k]^T, plus out where `add`. out_f32: f32 results of bf16 values. */
static void tsk__cuda_product(tsk__cuda_stream *s, CUdeviceptr input, CUdeviceptr weights, CUdeviceptr out, int32_t m,
                              int32_t n, int32_t k, int add, int out_f32) {
    tsk__cuda_backend *b = s->backend;
    const float one = 1.0f, beta = add ? 1.0f : 0.0f;
    if (s->failure != CUDA_SUCCESS) return;
    if (b->is_f32) {
        tsk__cuda_exact_f32_args a;
        memset(&a, 0, sizeof a);
        a.input = input, a.weights = weights, a.out = out;
        a.m = m, a.n = n, a.k = k;
        tsk__cuda_launch(s, TSK__CUDA_exact_f32, (uint32_t)(n + 63) / 64, (uint32_t)(m + 31) / 32, 1,
                         TSK__CUDA_THREADS_exact_f32, 0, &a, "exact_f32");
        return;
    }
    if (b->api.cublasGemmEx(s->cublas, CUBLAS_OP_T, CUBLAS_OP_N, n, m, k, &one, tsk__cuda_pointer(weights), CUDA_R_16BF,
                            k, tsk__cuda_pointer(input), CUDA_R_16BF, k, &beta, tsk__cuda_pointer(out),
                            out_f32 ? CUDA_R_32F : CUDA_R_16BF, n, CUBLAS_COMPUTE_32F,
                            CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS)
        tsk__cuda_note(s, TSK__CUDA_UNKNOWN, "a cuBLAS product");
    s->issued.can_overlap = 1;  /* our kernels wait for whatever comes before them */
    s->issued.needs_signal = 1;
}

/* The heads of q and k, in the scratch buffer; to `captured` go q and k as they were. */
static void tsk__cuda_norm_heads(tsk__cuda_stream *s, const tsk__cuda_layer *w, const CUdeviceptr *captured) {
    const tsk_model_config *c = s->backend->base.config;
    tsk__cuda_norm_heads_args a;
    memset(&a, 0, sizeof a);
    a.y = s->device.scratch, a.q_weight = w->q_norm, a.k_weight = w->k_norm;
    a.captures[0] = captured[0], a.captures[1] = captured[1];
    a.n_heads = c->n_heads, a.n_kv_heads = c->n_kv_heads, a.head_dim = c->head_dim, a.eps = c->rms_norm_eps;
    tsk__cuda_launch(s, TSK__CUDA_norm_heads, (uint32_t)s->pass.n, 1, 1, TSK__CUDA_THREADS_norm_heads, 0, &a,
                     "norm_heads");
}

/* Where q and k are normed by head, the fused map for few rows, which turns them at once, is of no use. */
static void tsk__cuda_qkv(tsk__cuda_stream *s, int32_t layer, const tsk__captures *captures) {
    tsk__cuda_backend *b = s->backend;
    const tsk_model_config *c = b->base.config;
    const tsk__cuda_layer *w = &b->layers[layer];
    CUdeviceptr captured[4], bias = w->qkv_bias;
    tsk__cuda_rope_cache_args rope;
    captured[0] = captures ? tsk__cuda_address(captures->q) : 0,
    captured[1] = captures ? tsk__cuda_address(captures->k) : 0,
    captured[2] = captures ? tsk__cuda_address(captures->v) : 0;
    captured[3] = captures ? tsk__cuda_address(captures->k_rope) : 0;
    if (captures && captures->norm) tsk__cuda_norm(s, s->pass.n, 0, w->attn_norm, tsk__cuda_address(captures->norm));
    if (tsk__cuda_is_fused(s) && !b->norms_heads) {
        tsk__cuda_linear_args a = tsk__cuda_linear_common(s, TSK__CUDA_MAP_QKV, s->pass.n, w);
        tsk__cuda_need_normed(s, w->attn_norm);
        a.weights = w->qkv, a.bias = bias, a.squares_in = s->device.squares;
        a.out = tsk__cuda_address(s->base.q);
        a.layer_offset = tsk__cuda_layer_offset(c, layer);
        memcpy(a.captures, captured, sizeof captured);
        tsk__cuda_linear(s, TSK__CUDA_MAP_QKV, &a);
        return;
    }
    tsk__cuda_norm(s, s->pass.n, 0, w->attn_norm, s->device.normed);
    tsk__cuda_product(s, s->device.normed, w->qkv, s->device.scratch, s->pass.n, b->qkv_width, c->d_model, 0, 0);
    if (b->norms_heads) {
        tsk__cuda_norm_heads(s, w, captured);
        captured[0] = captures ? tsk__cuda_address(captures->q_norm) : 0;
        captured[1] = captures ? tsk__cuda_address(captures->k_norm) : 0;
    }
    memset(&rope, 0, sizeof rope);
    rope.y = s->device.scratch, rope.bias = bias, rope.q = tsk__cuda_address(s->base.q);
    rope.table = s->device.table;
    memcpy(rope.captures, captured, sizeof captured);
    rope.n_heads = c->n_heads, rope.n_kv_heads = c->n_kv_heads, rope.head_dim = c->head_dim;
    rope.layer_offset = tsk__cuda_layer_offset(c, layer);
    tsk__cuda_launch(s, TSK__CUDA_rope_cache, (uint32_t)s->pass.n, 1, 1, TSK__CUDA_THREADS_rope_cache, 0, &rope,
                     "rope_cache");
}

/* By the kernels for a head_dim of 64 or 128, bf16. */
static void tsk__cuda_attend_tiles(tsk__cuda_stream *s, int32_t layer, float scale) {
    const tsk_model_config *c = s->backend->base.config;
    tsk__cuda_attention_args a;
    tsk__cuda_kernel kernel = (tsk__cuda_kernel)(tsk__cuda_attentions[s->pass.attention].kernel + (c->head_dim == 128));
    memset(&a, 0, sizeof a);
    a.q = tsk__cuda_address(s->base.q), a.out = tsk__cuda_address(s->base.attention);
    a.table = s->device.table;
    a.parts = s->device.attention_parts;
    a.counters = s->device.counters;
    a.layer_offset = tsk__cuda_layer_offset(c, layer);
    a.scale = scale * 1.44269504088896340736f;
    a.n_heads = c->n_heads, a.n_kv_heads = c->n_kv_heads;
    tsk__cuda_launch(s, kernel, tsk__cuda_attentions[s->pass.attention].splits, (uint32_t)c->n_heads,
                     (uint32_t)s->pass.n_tiles, tsk__cuda_attentions[s->pass.attention].threads,
                     tsk__cuda_attentions[s->pass.attention].bytes * (uint32_t)c->head_dim, &a, "attention");
}

static void tsk__cuda_attend(tsk__cuda_stream *s, int32_t layer) {
    const tsk_model_config *c = s->backend->base.config;
    float scale = (float)(1.0 / sqrt((double)c->head_dim));
    tsk__cuda_attend_args a;
    if (s->backend->has_flash) {
        tsk__cuda_attend_tiles(s, layer, scale);
        return;
    }
    a.q = tsk__cuda_address(s->base.q), a.out = tsk__cuda_address(s->base.attention);
    a.table = s->device.table;
    a.layer_offset = tsk__cuda_layer_offset(c, layer);
    a.n_heads = c->n_heads, a.n_kv_heads = c->n_kv_heads, a.head_dim = c->head_dim;
    a.scale = scale;
    tsk__cuda_launch(s, TSK__CUDA_attend, (uint32_t)s->pass.n, (uint32_t)c->n_heads, 1, TSK__CUDA_THREADS_attend, 0, &a,
                     "attend");
}

/* attn_out and down (`map` says which): x += input * weights^T + bias. */
static void tsk__cuda_out(tsk__cuda_stream *s, int32_t layer, tsk__cuda_map map, const tsk__captures *captures) {
    tsk__cuda_backend *b = s->backend;
    const tsk__cuda_layer *w = &b->layers[layer];
    int is_down = map == TSK__CUDA_MAP_DOWN;
    int32_t d = b->base.config->d_model, k = is_down ? b->base.config->mlp_hidden_size : b->q_width;
    CUdeviceptr input = tsk__cuda_address(is_down ? s->base.hidden : s->base.attention),
                weights = is_down ? w->down : w->attn_out, bias = is_down ? w->down_bias : w->attn_out_bias;
    /* after the last layer any will do: the head goes through its own norm */
    CUdeviceptr next_norm = !is_down                               ? w->ff_norm
                            : layer + 1 < b->base.config->n_layers ? w[1].attn_norm
                                                                   : b->final_norm;
    CUdeviceptr captured = captures ? tsk__cuda_address(captures->projection) : 0, x = tsk__cuda_x(s);
    tsk__cuda_residual_args residual;
    if (tsk__cuda_is_fused(s)) {
        tsk__cuda_linear_args a = tsk__cuda_linear_common(s, map, s->pass.n, w);
        a.weights = weights, a.bias = bias, a.out = x;
        a.norm = next_norm, a.normed = s->device.normed, a.squares_out = s->device.squares;
        a.captures[0] = captured;
        tsk__cuda_linear(s, map, &a);
        s->pass.normed_for = next_norm;
        return;
    }
    s->pass.normed_for = 0;
    if (!b->is_f32 && !bias && s->pass.n > TSK__CUDA_FEW_ROWS) {  /* no row is masked: cuBLAS adds to x itself; a trace
                                                                     sees the projection alone */
        if (captured) tsk__cuda_product(s, input, weights, captured, s->pass.n, d, k, 0, 0);
        tsk__cuda_product(s, input, weights, x, s->pass.n, d, k, 1, 0);
        return;
    }
    tsk__cuda_product(s, input, weights, s->device.scratch, s->pass.n, d, k, 0, 0);
    memset(&residual, 0, sizeof residual);
    residual.y = s->device.scratch, residual.bias = bias, residual.x = x, residual.captured = captured;
    residual.table = s->device.table;
    residual.d = d;
    tsk__cuda_launch(s, TSK__CUDA_residual, (uint32_t)s->pass.n, 1, 1, TSK__CUDA_THREADS_residual, 0, &residual,
                     "residual");
}

static void tsk__cuda_gate_up(tsk__cuda_stream *s, int32_t layer, const tsk__captures *captures) {
    tsk__cuda_backend *b = s->backend;
    const tsk_model_config *c = b->base.config;
    const tsk__cuda_layer *w = &b->layers[layer];
    CUdeviceptr gate = captures ? tsk__cuda_address(captures->gate) : 0,
                up = captures ? tsk__cuda_address(captures->up) : 0, bias = w->gate_up_bias;
    tsk__cuda_silu_args silu;
    if (captures && captures->norm) tsk__cuda_norm(s, s->pass.n, 0, w->ff_norm, tsk__cuda_address(captures->norm));
    if (tsk__cuda_is_fused(s)) {
        tsk__cuda_linear_args a = tsk__cuda_linear_common(s, TSK__CUDA_MAP_GATE_UP, s->pass.n, w);
        tsk__cuda_need_normed(s, w->ff_norm);
        a.weights = w->gate_up, a.bias = bias, a.squares_in = s->device.squares;
        a.out = tsk__cuda_address(s->base.hidden);
        a.captures[0] = gate, a.captures[1] = up;
        tsk__cuda_linear(s, TSK__CUDA_MAP_GATE_UP, &a);
        return;
    }
    tsk__cuda_norm(s, s->pass.n, 0, w->ff_norm, s->device.normed);
    tsk__cuda_product(s, s->device.normed, w->gate_up, s->device.scratch, s->pass.n, b->gate_up_rows, c->d_model, 0, 0);
    memset(&silu, 0, sizeof silu);
    silu.y = s->device.scratch, silu.bias = bias, silu.hidden = tsk__cuda_address(s->base.hidden);
    silu.captured_gate = gate, silu.captured_up = up;
    silu.mlp = c->mlp_hidden_size;
    tsk__cuda_launch(s, TSK__CUDA_silu, (uint32_t)s->pass.n,
                     (uint32_t)((silu.mlp + 7) / 8 + TSK__CUDA_THREADS_silu - 1) / TSK__CUDA_THREADS_silu, 1,
                     TSK__CUDA_THREADS_silu, 0, &silu, "silu");
}

static void tsk__cuda_compare(tsk__cuda_stream *s, int32_t state) {
    uint64_t at = (uint64_t)state * (uint64_t)s->base.max_rows;
    tsk__cuda_compare_args a;
    a.x = tsk__cuda_x(s);
    a.table = s->device.table;
    a.cosines = s->device.cosines + at * sizeof(float), a.host_cosines = tsk__cuda_address(s->base.cosines + at);
    a.state = state, a.d = s->backend->base.config->d_model;
    tsk__cuda_launch(s, TSK__CUDA_compare, (uint32_t)s->pass.n, 1, 1, TSK__CUDA_THREADS_compare, 0, &a, "compare");
}

static void tsk__cuda_decide(tsk__cuda_stream *s, int32_t n_states) {
    tsk__cuda_decide_args a;
    a.table = s->device.table;
    a.cosines = s->device.cosines;
    a.skipped = s->device.skipped, a.host_skipped = tsk__cuda_address(s->base.skipped);
    a.n = s->pass.n, a.n_states = n_states, a.stride = s->base.max_rows, a.masks = s->pass.n <= TSK__CUDA_FEW_ROWS;
    tsk__cuda_launch(s, TSK__CUDA_decide,
                     (uint32_t)(s->pass.n + TSK__CUDA_THREADS_decide - 1) / TSK__CUDA_THREADS_decide, 1, 1,
                     TSK__CUDA_THREADS_decide, 0, &a, "decide");
    s->issued.can_overlap = 0;  /* what follows may read the table before it waits for its predecessor */
}

static void tsk__cuda_keep(tsk__cuda_stream *s) {
    tsk__cuda_keep_args a;
    memset(&a, 0, sizeof a);
    a.x = tsk__cuda_x(s);
    a.table = s->device.table;
    a.skipped = s->device.skipped;
    a.d = s->backend->base.config->d_model;
    tsk__cuda_launch(s, TSK__CUDA_keep, (uint32_t)s->pass.n, (uint32_t)s->n_states + 1, 1, TSK__CUDA_THREADS_keep, 0,
                     &a, "keep");
    s->pass.normed_for = 0;
}

/* The kernel reads the lists where the host leaves them: a copy would take longer than their few words. */
static void tsk__cuda_select(tsk__cuda_stream *s, int32_t n, const tsk__commit_rule *rules, int32_t n_candidates,
                             const tsk__commit_candidate *candidates) {
    uint64_t candidates_at, at = tsk__cuda_argument_pair(s, rules, (uint64_t)n * sizeof *rules, candidates,
                                                         (uint64_t)n_candidates * sizeof *candidates, &candidates_at);
    tsk__cuda_select_tokens_args a;
    a.table = s->device.table;
    a.rules = tsk__cuda_address(s->pinned.arguments + at), a.candidates = a.rules + candidates_at;
    a.predictions = tsk__cuda_address(s->base.predictions);
    a.confidences = s->device.confidences;
    a.choices = tsk__cuda_address(s->base.choices);
    tsk__cuda_launch(s, TSK__CUDA_select_tokens, (uint32_t)n, 1, 1, TSK__CUDA_THREADS_select_tokens, 0, &a,
                     "select_tokens");
}

static void tsk__cuda_move(tsk__cuda_stream *s, CUdeviceptr to, CUdeviceptr from, CUdeviceptr index, int32_t scatter,
                           int32_t n) {
    tsk__cuda_move_rows_args a;
    a.to = to, a.from = from, a.index = index;
    a.scatter = scatter, a.d = s->backend->base.config->d_model;
    tsk__cuda_launch(s, TSK__CUDA_move_rows, (uint32_t)n, 1, 1, TSK__CUDA_THREADS_move_rows, 0, &a, "move_rows");
    s->pass.normed_for = 0;
}

/* The list of begin again. Compacting only reordered the rows in the image; every entry keeps its number, so the old
   order can be restored. */
static void tsk__cuda_expand(tsk__cuda_stream *s) {
    int32_t i;
    if (!s->pass.compacted) return;
    tsk__cuda_move(s, s->device.full_x, s->device.compact_x, s->device.compact_index, 1, s->pass.n);
    tsk__cuda_wait_fetched(s);
    for (i = 0; i < s->pass.all_n; i++)  /* a permutation: every swap puts one row where it belongs */
        while (s->pinned.rows[i].number != i) {
            tsk__cuda_row row = s->pinned.rows[s->pinned.rows[i].number];
            s->pinned.rows[s->pinned.rows[i].number] = s->pinned.rows[i];
            s->pinned.rows[i] = row;
        }
    s->pass.n = s->pass.all_n;
    s->pass.compacted = 0;
    s->base.x = tsk__cuda_pointer(s->device.full_x);
    tsk__cuda_make_tiles(s);
}

static void tsk__cuda_compact(tsk__cuda_stream *s, int32_t n, const int32_t *index) {
    int32_t i, j;
    tsk__cuda_expand(s);
    /* at a place of its own: expand reads it after any number of waits */
    tsk__cuda_upload(s, s->device.compact_index, tsk__cuda_argument_place(s, index, (uint64_t)n * sizeof *index),
                     (uint64_t)n * sizeof *index);
    tsk__cuda_move(s, s->device.compact_x, s->device.full_x, s->device.compact_index, 0, n);
    tsk__cuda_wait_fetched(s);
    for (i = 0; i < n; i++) {  /* the wanted row may have been swapped away: its number tells where to */
        tsk__cuda_row row = s->pinned.rows[i];
        for (j = index[i]; s->pinned.rows[j].number != index[i]; j = s->pinned.rows[j].number) {
        }
        s->pinned.rows[i] = s->pinned.rows[j];
        s->pinned.rows[j] = row;
    }
    s->pass.n = n;
    s->pass.compacted = n;
    s->base.x = tsk__cuda_pointer(s->device.compact_x);
    tsk__cuda_make_tiles(s);
}

/* ---- the head: one of the linear maps for few rows; for more, matrix products over slices of the vocabulary, whose
   logits are reduced before the next slice takes their place */

/* Of m rows, the first of which is number `first` of the head's. */
static void tsk__cuda_head_finish(tsk__cuda_stream *s, int32_t m, int32_t tiles, CUdeviceptr draws, int32_t first) {
    tsk__cuda_head_finish_args a;
    a.heads = s->device.heads, a.draws = draws;
    a.predictions = tsk__cuda_address(s->base.predictions) + (uint64_t)first * sizeof(tsk__prediction);
    a.n_tiles = tiles, a.m = m;
    tsk__cuda_launch(s, TSK__CUDA_head_finish, (uint32_t)m, 1, 1, TSK__CUDA_THREADS_head_finish, 0, &a, "head_finish");
}

/* Of no more normalised rows than the fused maps take: their predictions, or, where there is room for them, logits. */
static void tsk__cuda_head_fused(tsk__cuda_stream *s, int32_t m, CUdeviceptr draws, CUdeviceptr logits) {
    tsk__cuda_backend *b = s->backend;
    tsk__cuda_linear_args a = tsk__cuda_linear_common(s, TSK__CUDA_MAP_HEAD, m, NULL);
    a.weights = b->head, a.bias = b->head_bias;
    a.draws = draws, a.heads = s->device.heads, a.logits = logits;
    tsk__cuda_linear(s, TSK__CUDA_MAP_HEAD, &a);
    if (!logits) tsk__cuda_head_finish(s, m, tsk__cuda_head_tiles(b, m), draws, 0);
}

/* Logits of ids first .. first + n - 1 of the normalised rows, into [m, n]; their tiles into heads. */
static void tsk__cuda_head_slice(tsk__cuda_stream *s, int32_t m, CUdeviceptr draws, CUdeviceptr logits, int32_t first,
                                 int32_t n) {
    tsk__cuda_backend *b = s->backend;
    int32_t d = b->base.config->d_model, tiles = (n + TSK__CUDA_HEAD_TILE - 1) / TSK__CUDA_HEAD_TILE;
    uint64_t before = (uint64_t)first * (uint64_t)d * tsk_dtype_size(tsk__cuda_weights_dtype(b));
    tsk__cuda_head_tiles_args a;
    memset(&a, 0, sizeof a);
    a.logits = logits, a.bias = b->head_bias, a.draws = draws, a.heads = s->device.heads;
    a.first = first, a.n = n, a.bias_is_bf16 = !b->is_f32;
    tsk__cuda_product(s, s->device.normed, b->head + before, logits, m, n, d, 0, 1);
    tsk__cuda_launch(s, TSK__CUDA_head_tiles, (uint32_t)tiles, (uint32_t)m, 1, TSK__CUDA_THREADS_head_tiles, 0, &a,
                     "head_tiles");
}

/* Logits that there is room for: a slice's of all rows of a chunk, or all of a few rows'. */
static uint64_t tsk__cuda_logits_room(const tsk__cuda_stream *s) {
    uint64_t slice = (uint64_t)tsk__cuda_head_rows(s->base.max_rows) * TSK__CUDA_HEAD_SLICE,
             whole = (uint64_t)TSK__CUDA_LOGITS_ROWS * (uint64_t)s->backend->base.config->embedding_size;
    return slice > whole ? slice : whole;
}

/* Up to TSK__CUDA_HEAD_ROWS rows, from number `first_row` of the head's on. Slices are of whole tiles and as wide as
   there is room for: of a narrow one the product reads its weights at half of memory's rate. */
static void tsk__cuda_head_sliced(tsk__cuda_stream *s, int32_t m, CUdeviceptr index, CUdeviceptr draws,
                                  int32_t first_row) {
    int32_t vocabulary = s->backend->base.config->embedding_size, first,
            width = (int32_t)(tsk__cuda_logits_room(s) / (uint64_t)m / TSK__CUDA_HEAD_TILE) * TSK__CUDA_HEAD_TILE;
    tsk__cuda_norm(s, m, index, s->backend->final_norm, s->device.normed);
    for (first = 0; first < vocabulary; first += width)
        tsk__cuda_head_slice(s, m, draws, s->device.logits, first,
                             vocabulary - first < width ? vocabulary - first : width);
    tsk__cuda_head_finish(s, m, (vocabulary + TSK__CUDA_HEAD_TILE - 1) / TSK__CUDA_HEAD_TILE, draws, first_row);
}

/* Memory for logits, made when first needed. */
static int tsk__cuda_need_logits(tsk__cuda_stream *s) {
    if (!s->device.logits)
        tsk__cuda_note(
            s, s->backend->api.cuMemAlloc_v2(&s->device.logits, (size_t)(tsk__cuda_logits_room(s) * sizeof(float))),
            "memory for logits");
    return s->failure == CUDA_SUCCESS;
}

/* The rows' and the draws' copies on the device, in one upload: a second one's place could be the first one's. */
static CUdeviceptr tsk__cuda_head_lists(tsk__cuda_stream *s, int32_t n, const int32_t *index, int32_t n_draws,
                                        const tsk__draw *draws, CUdeviceptr *draws_there) {
    uint64_t draws_size = (uint64_t)n_draws * sizeof *draws, draws_at,
             at = tsk__cuda_argument_pair(s, index, (uint64_t)n * sizeof *index, draws, draws_size, &draws_at);
    tsk__cuda_upload(s, s->device.arguments + at, at, draws_at + draws_size);
    *draws_there = s->device.arguments + at + draws_at;
    return s->device.arguments + at;
}

static void tsk__cuda_head(tsk__cuda_stream *s, int32_t n, const int32_t *index, const tsk__draw *draws) {
    int is_fused = n <= tsk__cuda_fused_rows(s->backend);
    int32_t i;
    CUdeviceptr all_draws, indices = tsk__cuda_head_lists(s, n, index, n, draws, &all_draws);
    if (is_fused) {
        tsk__cuda_norm(s, n, indices, s->backend->final_norm, s->device.normed);
        tsk__cuda_head_fused(s, n, all_draws, 0);
    } else if (tsk__cuda_need_logits(s))
        for (i = 0; i < n; i += TSK__CUDA_HEAD_ROWS)
            tsk__cuda_head_sliced(s, tsk__cuda_head_rows(n - i), indices + (uint64_t)i * sizeof *index,
                                  all_draws + (uint64_t)i * sizeof *draws, i);
}

static void tsk__cuda_logits(tsk__cuda_stream *s, int32_t n, const int32_t *index, float *norm, float *logits) {
    const tsk__cuda_backend *b = s->backend;
    uint64_t d = (uint64_t)b->base.config->d_model, vocabulary = (uint64_t)b->base.config->embedding_size;
    tsk__draw draws[TSK__CUDA_LOGITS_ROWS];
    int32_t i;
    memset(draws, 0, sizeof draws);
    if (!tsk__cuda_need_logits(s)) return;
    for (i = 0; i < n; i += TSK__CUDA_LOGITS_ROWS) {
        int32_t m = n - i < TSK__CUDA_LOGITS_ROWS ? n - i : TSK__CUDA_LOGITS_ROWS;
        CUdeviceptr no_draws, indices = tsk__cuda_head_lists(s, m, index + i, TSK__CUDA_LOGITS_ROWS, draws, &no_draws);
        tsk__cuda_norm(s, m, indices, b->final_norm, s->device.normed);
        if (norm)
            tsk__cuda_download(s, norm + (uint64_t)i * d, s->device.normed, (uint64_t)m * d, b->base.element_size);
        if (b->has_few_rows) tsk__cuda_head_fused(s, m, no_draws, s->device.logits);
        else tsk__cuda_head_slice(s, m, no_draws, s->device.logits, 0, (int32_t)vocabulary);
        tsk__cuda_download(s, logits + (uint64_t)i * vocabulary, s->device.logits, (uint64_t)m * vocabulary,
                           sizeof(float));
    }
}

/* ---- recorded sections */

/* cuBLAS chooses and prepares kernels at its own times: what uses it is not recorded. Nor are long passes of kernels
   that take longer than they take to launch. */
static int tsk__cuda_records(const tsk__cuda_stream *s) {
    return s->backend->is_f32 ? s->pass.n <= TSK__CUDA_FEW_ROWS : tsk__cuda_is_fused(s);
}

/* The section that the stream is about to run. */
static tsk__cuda_section tsk__cuda_section_now(const tsk__cuda_stream *s, uint64_t key) {
    tsk__cuda_section section;
    section.key = key;
    section.n = s->pass.n, section.n_requests = s->pass.n_requests, section.n_tiles = s->pass.n_tiles,
    section.attention = s->pass.attention;
    section.fetches = s->pass.is_dirty;
    section.x = s->base.x;
    section.graph = NULL;
    return section;
}
static int tsk__cuda_is_same_section(const tsk__cuda_section *a, const tsk__cuda_section *b) {
    return a->key == b->key && a->n == b->n && a->n_requests == b->n_requests && a->n_tiles == b->n_tiles &&
           a->attention == b->attention && a->fetches == b->fetches && a->x == b->x;
}

/* A section of more than TSK__CUDA_FEW_ROWS rows is recorded only if an equal one is among the last TSK__CUDA_SEEN that
   were not recorded, as in a steady batch. Combinations of many requests seldom repeat, and recording one costs as much
   as several launches save. */
static int tsk__cuda_recurs(tsk__cuda_stream *s, uint64_t key) {
    tsk__cuda_section now = tsk__cuda_section_now(s, key);
    int i;
    if (s->pass.all_n <= TSK__CUDA_FEW_ROWS) return 1;
    for (i = 0; i < TSK__CUDA_SEEN; i++)
        if (tsk__cuda_is_same_section(&s->recorded.seen[i], &now)) return 1;
    s->recorded.seen[s->recorded.next_seen] = now;
    s->recorded.next_seen = (s->recorded.next_seen + 1) % TSK__CUDA_SEEN;
    return 0;
}

static int tsk__cuda_replay(tsk__cuda_stream *s, uint64_t key) {
    tsk__cuda_section now = tsk__cuda_section_now(s, key);
    int i;
    if (!tsk__cuda_records(s) || s->failure != CUDA_SUCCESS) return 0;
    for (i = 0; i < s->recorded.n_sections && !tsk__cuda_is_same_section(&s->recorded.sections[i], &now); i++) {
    }
    if (i == s->recorded.n_sections) return 0;
    tsk__cuda_note(s, s->backend->api.cuGraphLaunch(s->recorded.sections[i].graph, s->stream), "a recorded section");
    s->issued.fetches += now.fetches != 0;
    s->pass.is_dirty = 0;
    s->pass.normed_for = 0;
    s->issued.can_overlap = 0;
    s->issued.needs_signal = 1;
    return 1;
}

static void tsk__cuda_record(tsk__cuda_stream *s, uint64_t key) {
    if (!tsk__cuda_records(s) || s->failure != CUDA_SUCCESS || !tsk__cuda_recurs(s, key)) return;
    s->pass.normed_for = 0;  /* a section does not rely on what was left before it, but for the row table */
    s->issued.can_overlap = 0;
    s->recorded.recording = tsk__cuda_section_now(s, key);
    tsk__cuda_note(s,
                   s->backend->api.cuStreamBeginCapture_v2(s->stream,
                                                           (CUstreamCaptureMode)CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
                   "recording");
    s->recorded.is_recording = s->failure == CUDA_SUCCESS;
}

static void tsk__cuda_finish(tsk__cuda_stream *s) {
    const tsk__cuda_api *api = &s->backend->api;
    tsk__cuda_section *section;
    CUgraph graph = NULL;
    CUgraphExec executable = NULL;
    CUresult result;
    if (!s->recorded.is_recording) return;
    s->recorded.is_recording = 0;
    result = api->cuStreamEndCapture(s->stream, &graph);
    tsk__cuda_note(s, result, "recording");
    if (s->failure == CUDA_SUCCESS)
        tsk__cuda_note(s, api->cuGraphInstantiateWithFlags(&executable, graph, 0), "recording");
    if (graph) api->cuGraphDestroy(graph);
    if (s->failure != CUDA_SUCCESS) return;
    if (s->recorded.n_sections == TSK__CUDA_SECTIONS) {
        api->cuStreamSynchronize(s->stream);
        api->cuGraphExecDestroy(s->recorded.sections[s->recorded.next_section].graph);
    } else s->recorded.next_section = s->recorded.n_sections++;
    section = &s->recorded.sections[s->recorded.next_section];
    s->recorded.next_section = (s->recorded.next_section + 1) % TSK__CUDA_SECTIONS;
    *section = s->recorded.recording;
    section->graph = executable;
    s->pass.normed_for = 0;
    tsk__cuda_note(s, api->cuGraphLaunch(executable, s->stream), "a recorded section");
    s->issued.can_overlap = 0;
}

/* ---- the table: every entry works in the backend's context */

#define TSK__CUDA_OPERATION(name, parameters, call) \
    static void tsk__cuda_backend_##name parameters { \
        tsk__cuda_stream *s = tsk__cuda_stream_of(stream); \
        tsk__cuda_enter(s->backend); \
        call; \
        tsk__cuda_leave(s->backend); \
    }
TSK__CUDA_OPERATION(embed, (tsk__stream *stream), tsk__cuda_embed(s))
TSK__CUDA_OPERATION(qkv, (tsk__stream * stream, int32_t layer, const tsk__captures *captures),
                    tsk__cuda_qkv(s, layer, captures))
TSK__CUDA_OPERATION(attend, (tsk__stream *stream, int32_t layer), tsk__cuda_attend(s, layer))
TSK__CUDA_OPERATION(attn_out, (tsk__stream * stream, int32_t layer, const tsk__captures *captures),
                    tsk__cuda_out(s, layer, TSK__CUDA_MAP_OUT, captures))
TSK__CUDA_OPERATION(gate_up, (tsk__stream * stream, int32_t layer, const tsk__captures *captures),
                    tsk__cuda_gate_up(s, layer, captures))
TSK__CUDA_OPERATION(down, (tsk__stream * stream, int32_t layer, const tsk__captures *captures),
                    tsk__cuda_out(s, layer, TSK__CUDA_MAP_DOWN, captures))
TSK__CUDA_OPERATION(compare, (tsk__stream *stream, int32_t state), tsk__cuda_compare(s, state))
TSK__CUDA_OPERATION(decide, (tsk__stream *stream, int32_t n_states), tsk__cuda_decide(s, n_states))
TSK__CUDA_OPERATION(keep, (tsk__stream *stream), tsk__cuda_keep(s))
TSK__CUDA_OPERATION(select,
                    (tsk__stream * stream, int32_t n, const tsk__commit_rule *rules, int32_t n_candidates,
                     const tsk__commit_candidate *candidates),
                    tsk__cuda_select(s, n, rules, n_candidates, candidates))
TSK__CUDA_OPERATION(compact, (tsk__stream *stream, int32_t n, const int32_t *index), tsk__cuda_compact(s, n, index))
TSK__CUDA_OPERATION(expand, (tsk__stream *stream), tsk__cuda_expand(s))
TSK__CUDA_OPERATION(head, (tsk__stream * stream, int32_t n, const int32_t *index, const tsk__draw *draws),
                    tsk__cuda_head(s, n, index, draws))
TSK__CUDA_OPERATION(logits, (tsk__stream * stream, int32_t n, const int32_t *index, float *norm, float *logits),
                    tsk__cuda_logits(s, n, index, norm, logits))
TSK__CUDA_OPERATION(record, (tsk__stream *stream, uint64_t key), tsk__cuda_record(s, key))
TSK__CUDA_OPERATION(finish, (tsk__stream *stream), tsk__cuda_finish(s))
#undef TSK__CUDA_OPERATION
static int tsk__cuda_backend_replay(tsk__stream *stream, uint64_t key) {
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    int result;
    tsk__cuda_enter(s->backend);
    result = tsk__cuda_replay(s, key);
    tsk__cuda_leave(s->backend);
    return result;
}

static void tsk__cuda_backend_destroy(tsk__backend *backend);
static tsk_status tsk__cuda_ceilings(tsk__backend *backend, tsk_ceilings *out, tsk_error *error);
static void tsk__cuda_backend_describe(const tsk__backend *backend, char *out, size_t size) {
    snprintf(out, size, "%s", ((const tsk__cuda_backend *)(const void *)backend)->name);
}

static const tsk__backend_ops tsk__cuda_backend_ops = {TSK__CUDA_FEW_ROWS,
                                                       tsk__cuda_backend_destroy,
                                                       tsk__cuda_backend_describe,
                                                       tsk__cuda_ceilings,
                                                       tsk__cuda_backend_available,
                                                       tsk__cuda_backend_stream_create,
                                                       tsk__cuda_backend_stream_destroy,
                                                       tsk__cuda_backend_allocate,
                                                       tsk__cuda_backend_release,
                                                       tsk__cuda_backend_copy,
                                                       tsk__cuda_backend_slide,
                                                       tsk__cuda_backend_upload,
                                                       tsk__cuda_backend_download,
                                                       tsk__cuda_backend_wait,
                                                       tsk__cuda_backend_begin,
                                                       tsk__cuda_backend_mask,
                                                       tsk__cuda_backend_embed,
                                                       tsk__cuda_backend_qkv,
                                                       tsk__cuda_backend_attend,
                                                       tsk__cuda_backend_attn_out,
                                                       tsk__cuda_backend_gate_up,
                                                       tsk__cuda_backend_down,
                                                       tsk__cuda_backend_compare,
                                                       tsk__cuda_backend_decide,
                                                       tsk__cuda_backend_keep,
                                                       tsk__cuda_backend_compact,
                                                       tsk__cuda_backend_expand,
                                                       tsk__cuda_backend_head,
                                                       tsk__cuda_backend_select,
                                                       tsk__cuda_backend_logits,
                                                       tsk__cuda_backend_replay,
                                                       tsk__cuda_backend_record,
                                                       tsk__cuda_backend_finish};

/* ---- creating and destroying */

static void tsk__cuda_backend_destroy(tsk__backend *backend) {
    tsk__cuda_backend *b;
    if (!backend) return;
    b = tsk__cuda_backend_of(backend);
    if (b->context) {
        tsk__cuda_enter(b);
        if (b->arena) b->api.cuMemFree_v2(b->arena);
        if (b->module) b->api.cuModuleUnload(b->module);
        tsk__cuda_leave(b);
        b->api.cuDevicePrimaryCtxRelease_v2(b->device);
    }
    tsk__memory_delete(b->allocator, b->layers);
    tsk__memory_delete(b->allocator, b);
}

/* The device, its context and what they can do. */
static tsk_status tsk__cuda_open(tsk__cuda_backend *b, int index, tsk_error *error) {
    tsk__cuda_api *api = &b->api;
    int major = 0, minor = 0;
    CUresult result = api->cuInit(0);
    if (result == CUDA_SUCCESS) result = api->cuDeviceGet(&b->device, index);
    if (result == CUDA_SUCCESS) result = api->cuDriverGetVersion(&b->driver_version);
    if (result == CUDA_SUCCESS) result = api->cuDeviceGetName(b->name, (int)sizeof b->name, b->device);
    if (result == CUDA_SUCCESS)
        result = api->cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, b->device);
    if (result == CUDA_SUCCESS)
        result = api->cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, b->device);
    if (result == CUDA_SUCCESS)
        result = api->cuDeviceGetAttribute(&b->n_multiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, b->device);
    if (result == CUDA_SUCCESS)
        result = api->cuDeviceGetAttribute(&b->shared_limit, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
                                           b->device);
    if (result == CUDA_SUCCESS) result = api->cuDevicePrimaryCtxRetain(&b->context, b->device);
    if (result != CUDA_SUCCESS) b->context = NULL;
    b->arch = major * 10 + minor;
    return tsk__cuda_fail(api, error, result, "opening the device");
}

/* Which of the fast ways the model's shapes allow; others take the general ones. */
static void tsk__cuda_choose(tsk__cuda_backend *b) {
    const tsk_model_config *c = b->base.config;
    int32_t hd = c->head_dim;
    b->norms_heads = tsk__family_part_of(c, TSK__PART_Q_NORM)->weight != NULL;
    b->q_width = c->n_heads * hd;
    b->kv_width = c->n_kv_heads * hd;
    b->qkv_width = b->q_width + 2 * b->kv_width;
    b->gate_up_rows = (c->mlp_hidden_size + 7) / 8 * 16;
    b->has_few_rows =
        !b->is_f32 && hd % 16 == 0 && c->d_model % 8 == 0 && c->mlp_hidden_size % 8 == 0 && tsk__cuda_plan_maps(b);
    b->has_flash = !b->is_f32 && (hd == 64 || hd == 128);
}

static tsk_status tsk__cuda_backend_create(const tsk_model_config *config, const tsk__source *source,
                                           const tsk_model_options *o, tsk__backend **out, tsk_error *error) {
    const tsk_allocator *allocator = tsk__memory_allocator(&o->host);
    tsk__cuda_backend *b = (tsk__cuda_backend *)tsk__memory_new_zeroed(allocator, 1, sizeof *b);
    tsk_status status = TSK_OK;
    char why[160] = "";
    *out = NULL;
    if (!b) return tsk__error_memory(error, "the CUDA backend", sizeof *b);
    b->allocator = allocator;
    b->is_f32 = o->dtype == TSK_DTYPE_F32;
    b->base.ops = &tsk__cuda_backend_ops;
    b->base.config = config;
    b->base.element_size = b->is_f32 ? 4 : 2;
    b->layers = (tsk__cuda_layer *)tsk__memory_new_zeroed(allocator, (size_t)config->n_layers, sizeof *b->layers);
    if (!b->layers)
        status = tsk__error_memory(error, "the list of layers", (uint64_t)config->n_layers * sizeof *b->layers);
    else if (config->head_dim > 256 || config->head_dim % 2 || config->d_model > 1 << 20)
        status = tsk__error_set(error, TSK_ERROR_UNSUPPORTED, NULL, TSK_NO_OFFSET,
                                "the CUDA backend takes an even head_dim up to 256, not %d", (int)config->head_dim);
    else if (!tsk__cuda_load(&b->api, TSK__CUDA_LIBRARY_DRIVER, why, sizeof why) ||
             (!b->is_f32 && !tsk__cuda_load(&b->api, TSK__CUDA_LIBRARY_CUBLAS, why, sizeof why)))
        status = tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET, "CUDA cannot be used: %s", why);
    if (status == TSK_OK) status = tsk__cuda_open(b, o->device_index, error);
    if (status == TSK_OK) {
        tsk__cuda_choose(b);
        tsk__cuda_enter(b);
        status = tsk__cuda_load_kernels(b, o, error);
        if (status == TSK_OK) status = tsk__cuda_plan_wide(b, error);
        if (status == TSK_OK) status = tsk__cuda_arena(b, error);
        if (status == TSK_OK) status = tsk__cuda_encode_weights(b, error);
        if (status == TSK_OK) status = tsk__cuda_load_weights(b, source, o, error);
        tsk__cuda_leave(b);
    }
    if (status != TSK_OK) tsk__cuda_backend_destroy(&b->base);
    else *out = &b->base;
    return status;
}

/* ---- ceilings, for benchmarks */

/* The best of some runs, in milliseconds; `product` or else the read-only stream. */
static double tsk__cuda_time(tsk__cuda_stream *s, int product, CUdeviceptr memory, uint64_t bytes, int32_t size) {
    uint64_t third = (uint64_t)size * (uint64_t)size * s->backend->base.element_size, pieces = bytes / 16;
    double best = 1e30;
    tsk__cuda_read_stream_args a;
    uint32_t blocks = (uint32_t)s->backend->n_multiprocessors * 8;
    int i, repeat, repeats = product && !s->backend->is_f32 ? 20 : 1;
    a.from = memory, a.n = pieces, a.out = s->device.state_words;
    for (i = 0; i < 6 && s->failure == CUDA_SUCCESS; i++) {
        double start = tsk__time_ms();
        for (repeat = 0; repeat < repeats; repeat++) {
            if (product) tsk__cuda_product(s, memory, memory + third, memory + 2 * third, size, size, size, 0, 0);
            else
                tsk__cuda_launch(s, TSK__CUDA_read_stream, blocks, 1, 1, TSK__CUDA_THREADS_read_stream, 0, &a,
                                 "read_stream");
        }
        tsk__cuda_note(s, s->backend->api.cuStreamSynchronize(s->stream), "measuring");
        start = (tsk__time_ms() - start) / repeats;
        if (start < best) best = start;
    }
    return best;
}

static tsk_status tsk__cuda_ceilings(tsk__backend *backend, tsk_ceilings *out, tsk_error *error) {
    tsk__cuda_backend *b = tsk__cuda_backend_of(backend);
    int32_t size = b->is_f32 ? 2048 : 8192, rows = tsk__cuda_fused_rows(b) + 1;  /* for which there is cuBLAS */
    uint64_t bytes = (uint64_t)1 << 30, count = bytes / b->base.element_size;
    tsk__cuda_randomise_args a;
    tsk__stream *stream = NULL;
    tsk_status status = tsk__cuda_backend_stream_create(backend, rows, 0, &stream, error);
    tsk__cuda_stream *s = tsk__cuda_stream_of(stream);
    CUdeviceptr memory = 0;
    if (status != TSK_OK) return status;
    memory = tsk__cuda_address(tsk__cuda_backend_allocate(backend, bytes));
    if (!memory) status = tsk__error_memory(error, "measuring", bytes);
    else {
        memset(&a, 0, sizeof a);
        a.to = memory, a.count = count, a.seed = 1, a.scale = 1.0f;
        a.row_order.columns = 1;
        tsk__cuda_enter(b);
        tsk__cuda_launch(s, TSK__CUDA_randomise, (uint32_t)b->n_multiprocessors * 8, 1, 1, TSK__CUDA_THREADS_randomise,
                         0, &a, "randomise");
        out->bytes_per_second = (double)bytes / (tsk__cuda_time(s, 0, memory, bytes, 0) * 1e-3);
        out->flops_per_second = 2.0 * size * (double)size * size / (tsk__cuda_time(s, 1, memory, bytes, size) * 1e-3);
        tsk__cuda_leave(b);
        status = tsk__cuda_backend_wait(stream, error);
    }
    tsk__cuda_backend_release(backend, tsk__cuda_pointer(memory));
    tsk__cuda_backend_stream_destroy(stream);
    return status;
}

#else

/* Without CUDA there is no such device, and why. */
static int tsk__cuda_available(int index, char *why, size_t why_size) {
    (void)index;
    snprintf(why, why_size, "built without CUDA");
    return 0;
}
static tsk_status tsk__cuda_backend_create(const tsk_model_config *config, const tsk__source *source,
                                           const tsk_model_options *o, tsk__backend **out, tsk_error *error) {
    (void)config, (void)source, (void)o;
    *out = NULL;
    return tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET, "built without CUDA");
}

#endif /* TOKENSKIP__HAS_CUDA */

static const tsk__backend_kind tsk__cuda_backend_kind = {TSK_DEVICE_CUDA, tsk__cuda_available,
                                                         tsk__cuda_backend_create};

// >>model =============================================================================================================
/* Loading: a checked folder, or random values, become weights in a backend. */

struct tsk_model {
    tsk_host host;
    const tsk_allocator *allocator;
    tsk_model_config config;
    tsk_tokenizer *tokenizer;
    tsk_folder *folder;            /* keeps the mappings alive */
    tsk__backend *backend;
    char device_name[128], device_note[256];
};

/* ---- loading */

tsk_model_options tsk_model_options_default(void) {
    tsk_model_options o;
    memset(&o, 0, sizeof o);
    o.n_threads = TSK_AUTO;
    return o;
}

static tsk_status tsk__model_check_options(const tsk_model_options *o, tsk_error *error) {
    if ((int)o->device < 0 || o->device > TSK_DEVICE_CUDA)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "device has no value %d", (int)o->device);
    if (o->dtype != TSK_DTYPE_AUTO && o->dtype != TSK_DTYPE_F32 && o->dtype != TSK_DTYPE_BF16)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "activations are F32 or BF16, not %s",
                              tsk_dtype_name(o->dtype));
    if (o->device == TSK_DEVICE_CPU && o->dtype == TSK_DTYPE_BF16)
        return tsk__error_set(error, TSK_ERROR_UNSUPPORTED, NULL, TSK_NO_OFFSET, "the CPU's activations are F32 only");
    if (o->n_threads != TSK_AUTO && o->n_threads < 1)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "n_threads must be positive or TSK_AUTO, not %d", o->n_threads);
    if (o->device_index < 0)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "device_index must be zero or positive, not %d", o->device_index);
    return TSK_OK;
}

/* The preferred first. A new backend is one more entry. */
static const tsk__backend_kind *const tsk__backend_kinds[] = {&tsk__cuda_backend_kind, &tsk__cpu_backend_kind};

/* The first kind that the options allow and this machine has. Why a kind was passed over stays in device_note. */
static tsk_status tsk__model_backend_kind(tsk_model *model, const tsk_model_options *o, const tsk__backend_kind **out,
                                          tsk_error *error) {
    size_t i;
    for (i = 0; i < sizeof tsk__backend_kinds / sizeof *tsk__backend_kinds; i++) {
        *out = tsk__backend_kinds[i];
        if (o->device != TSK_DEVICE_AUTO && o->device != (*out)->device) continue;
        if ((*out)->available(o->device_index, model->device_note, sizeof model->device_note)) return TSK_OK;
    }
    return tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET, "no CUDA device: %s", model->device_note);
}

static tsk_status tsk__model_backend(tsk_model *model, const tsk__source *source, const tsk_model_options *o,
                                     tsk_error *error) {
    const tsk__backend_kind *kind;
    tsk_status status = tsk__model_backend_kind(model, o, &kind, error);
    if (status == TSK_OK && kind->device == TSK_DEVICE_CPU && o->dtype == TSK_DTYPE_BF16)
        return tsk__error_set(error, TSK_ERROR_UNSUPPORTED, NULL, TSK_NO_OFFSET,
                              "the CPU's activations are F32 only (no CUDA device: %s)", model->device_note);
    if (status == TSK_OK) status = kind->create(&model->config, source, o, &model->backend, error);
    if (status == TSK_OK) model->backend->ops->describe(model->backend, model->device_name, sizeof model->device_name);
    return status;
}

static tsk_status tsk__model_new(const tsk_model_options *options, tsk_model **out, tsk_error *error) {
    const tsk_allocator *allocator = tsk__memory_allocator(&options->host);
    tsk_status status = tsk__model_check_options(options, error);
    *out = NULL;
    if (status != TSK_OK) return status;
    *out = (tsk_model *)tsk__memory_new_zeroed(allocator, 1, sizeof **out);
    if (!*out) return tsk__error_memory(error, "a model", sizeof **out);
    (*out)->host = options->host;
    (*out)->allocator = (*out)->host.allocator = allocator;
    return TSK_OK;
}

/* A folder without tokenizer files is a model for callers who bring ids; one with broken files is an error. */
static tsk_status tsk__model_tokenizer_load(tsk_model *model, tsk_error *error) {
    tsk_folder *folder = model->folder;
    tsk_status status;
    if (!tsk__folder_has(folder, "tokenizer.json") && !tsk__folder_has(folder, "vocab.json")) return TSK_OK;
    folder->path[folder->dir_length] = 0;
    status = tsk_tokenizer_load(folder->path, &model->host, &model->tokenizer, error);
    if (status == TSK_OK && model->tokenizer->n_vocabulary_ids > (size_t)model->config.embedding_size) {
        return tsk__error_set(error, TSK_ERROR_TOKENIZER, folder->path, TSK_NO_OFFSET,
                              "'%s': the tokenizer has ids up to %d, the model's embedding has %d rows",
                              tsk__error_path(folder->path), (int)model->tokenizer->n_vocabulary_ids - 1,
                              (int)model->config.embedding_size);
    }
    return status;
}

tsk_status tsk_model_load(const char *dir, const tsk_model_options *options, tsk_model **out, tsk_error *error) {
    tsk_model_options defaults = tsk_model_options_default();
    tsk__source source;
    tsk_model *model;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_model_load", "out");
    *out = NULL;
    if (!dir) return tsk__error_null(error, "tsk_model_load", "dir");
    if (!options) options = &defaults;
    status = tsk__model_new(options, &model, error);
    if (status != TSK_OK) return status;
    status = tsk_folder_open(dir, &model->host, &model->folder, error);
    if (status == TSK_OK) {
        model->config = model->folder->config;
        if (!options->no_tokenizer) status = tsk__model_tokenizer_load(model, error);
    }
    if (status == TSK_OK) {
        source = tsk__source_of_folder(model->folder);
        status = tsk__model_backend(model, &source, options, error);
    }
    if (status != TSK_OK) tsk_model_free(model);
    else *out = model;
    return status;
}

tsk_status tsk_model_random(const tsk_model_config *config, uint64_t seed, const tsk_model_options *options,
                            tsk_model **out, tsk_error *error) {
    tsk_model_options defaults = tsk_model_options_default();
    tsk__source source;
    tsk_model *model;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_model_random", "out");
    *out = NULL;
    if (!options) options = &defaults;
    if (!config) return tsk__error_null(error, "tsk_model_random", "config");
    status = tsk__config_check(config, "random model", error);
    if (status == TSK_OK) status = tsk__model_new(options, &model, error);
    if (status != TSK_OK) return status;
    model->config = *config;
    source = tsk__source_of_random(&model->config, seed);
    status = tsk__model_backend(model, &source, options, error);
    if (status != TSK_OK) tsk_model_free(model);
    else *out = model;
    return status;
}

void tsk_model_free(tsk_model *model) {
    const tsk_allocator *allocator;
    if (!model) return;
    allocator = model->allocator;
    if (model->backend) model->backend->ops->destroy(model->backend);
    tsk_tokenizer_free(model->tokenizer);
    tsk_folder_free(model->folder);
    tsk__memory_delete(allocator, model);
}

const tsk_model_config *tsk_model_get_config(const tsk_model *model) { return model ? &model->config : NULL; }
const tsk_tokenizer *tsk_model_tokenizer(const tsk_model *model) { return model ? model->tokenizer : NULL; }
const char *tsk_model_device_name(const tsk_model *model) { return model ? model->device_name : ""; }
const char *tsk_model_device_note(const tsk_model *model) { return model ? model->device_note : ""; }
tsk_dtype tsk_model_dtype(const tsk_model *model) {
    if (!model) return TSK_DTYPE_AUTO;
    return model->backend->element_size == sizeof(float) ? TSK_DTYPE_F32 : TSK_DTYPE_BF16;
}

// >>trace =============================================================================================================
/* Records of what a pass computes. The forward pass asks tsk__trace_on; if that says no, no other code of this section
   runs. A traced operation writes what it computes anyway into extra buffers (its captures), from where values come to
   the host, so that tracing cannot change a result. */

typedef struct tsk__tracer {
    tsk_trace_options options;     /* on_record NULL: off */
    char *pattern;
    const tsk_allocator *allocator;
    tsk__watch watch;              /* the buffers on the stream that is traced */
    float *input, *output;         /* host */
    size_t input_capacity, output_capacity;
    int32_t pass;
    tsk_status status;             /* TSK_ERROR_MEMORY once a buffer could not be had */
} tsk__tracer;

/* Shell-like match: on a mismatch only the last * can take one character more. */
static int tsk__trace_match(const char *pattern, const char *text) {
    const char *star = NULL, *retry = NULL;
    while (*text) {
        if (*pattern == '*') {
            star = pattern++;
            retry = text;
        } else if (*pattern == '?' || *pattern == *text) {
            pattern++;
            text++;
        } else if (star) {
            pattern = star + 1;
            text = ++retry;
        } else return 0;
    }
    while (*pattern == '*') pattern++;
    return !*pattern;
}

static int tsk__trace_on(const tsk__tracer *t) {
    return t && t->options.on_record && t->pass >= t->options.first_pass && t->pass <= t->options.last_pass;
}

static int tsk__trace_wants(const tsk__tracer *t, const char *name, int32_t layer) {
    if (layer >= 0 && (layer < t->options.first_layer || layer > t->options.last_layer)) return 0;
    return t->status == TSK_OK && (!t->pattern || tsk__trace_match(t->pattern, name));
}

/* mean and deviation in two passes over doubles: a one-pass sum of squares cancels for large means. */
static tsk_stats tsk__trace_stats(const float *values, uint64_t n) {
    tsk_stats s;
    double sum = 0, magnitude = 0, squares = 0;
    uint64_t i;
    memset(&s, 0, sizeof s);
    if (!n) return s;
    s.min = s.max = (double)values[0];
    for (i = 0; i < n; i++) {
        double v = (double)values[i];
        sum += v;
        magnitude += fabs(v);
        if (v < s.min) s.min = v;
        if (v > s.max) s.max = v;
    }
    s.mean = sum / (double)n;
    s.abs_mean = magnitude / (double)n;
    for (i = 0; i < n; i++) squares += ((double)values[i] - s.mean) * ((double)values[i] - s.mean);
    s.std = n > 1 ? sqrt(squares / (double)(n - 1)) : 0;
    return s;
}

static int tsk__trace_room(tsk__tracer *t, float **buffer, size_t *capacity, uint64_t n) {
    if (n <= SIZE_MAX / sizeof **buffer &&
        tsk__memory_reserve(t->allocator, buffer, capacity, (size_t)n, sizeof **buffer))
        return 1;
    t->status = TSK_ERROR_MEMORY;
    return 0;
}

static void tsk__trace_free(tsk__tracer *t) {
    tsk__watch_free(&t->watch);
    tsk__memory_delete(t->allocator, t->input);
    tsk__memory_delete(t->allocator, t->output);
    t->input = t->output = NULL;
    t->input_capacity = t->output_capacity = 0;
}

static tsk_status tsk__trace_attach(tsk__tracer *t, tsk__stream *stream, tsk_error *error) {
    if (t->watch.stream == stream) return TSK_OK;
    tsk__trace_free(t);
    return tsk__watch_create(&t->watch, stream, error);
}

/* What a record is about, but for its values. `keep` [n]: rows to leave out have 0 (NULL: all rows). */
typedef struct tsk__traced {
    const char *name, *part;
    int32_t layer, n_rows;
    const int32_t *positions, *keep;
} tsk__traced;

/* Brings n_rows * width values to the host and drops the rows that did not run. */
static int tsk__trace_fetch(tsk__tracer *t, const tsk__traced *what, const void *from, uint64_t width, float **buffer,
                            size_t *capacity) {
    int32_t i, kept = 0;
    if (!tsk__trace_room(t, buffer, capacity, (uint64_t)what->n_rows * width)) return 0;
    tsk__stream_read(t->watch.stream, from, what->n_rows, width, *buffer);
    for (i = 0; what->keep && i < what->n_rows; i++)
        if (what->keep[i] && kept++ != i)
            memmove(*buffer + (uint64_t)(kept - 1) * width, *buffer + (uint64_t)i * width,
                    (size_t)width * sizeof **buffer);
    return 1;
}

static void tsk__trace_deliver(tsk__tracer *t, tsk_trace_record *record, const float *input, const float *output) {
    uint64_t n = 1;
    int i;
    for (i = 0; i < record->n_dims; i++) n *= record->output_shape[i];
    record->pass = t->pass;
    record->stats = tsk__trace_stats(output, n);
    record->input = t->options.values ? input : NULL;
    record->output = t->options.values ? output : NULL;
    t->options.on_record(t->options.user, record);
}

/* A record of rows: input [n_rows, in_width] (in_width 0: none), output [n_rows, heads, out_width / heads], heads 1
   being [n_rows, out_width]. */
static void tsk__trace_rows(tsk__tracer *t, const tsk__traced *what, const void *input, uint64_t in_width,
                            const void *output, uint64_t out_width, uint64_t heads) {
    tsk_trace_record record;
    int32_t *positions = NULL, i, n = 0;
    if (!tsk__trace_wants(t, what->name, what->layer)) return;
    if (!tsk__trace_fetch(t, what, output, out_width, &t->output, &t->output_capacity)) return;
    if (in_width && t->options.values && !tsk__trace_fetch(t, what, input, in_width, &t->input, &t->input_capacity))
        return;
    memset(&record, 0, sizeof record);
    positions = (int32_t *)tsk__memory_new(t->allocator, (size_t)what->n_rows, sizeof *positions);
    if (!positions) {
        t->status = TSK_ERROR_MEMORY;
        return;
    }
    for (i = 0; i < what->n_rows; i++)
        if (!what->keep || what->keep[i]) positions[n++] = what->positions[i];
    record.name = what->name;
    record.part = what->part;
    record.layer = what->layer;
    record.n_rows = n;
    record.positions = positions;
    record.input_shape[0] = in_width ? (uint64_t)n : 0;
    record.input_shape[1] = in_width;
    record.output_shape[0] = (uint64_t)n;
    record.output_shape[1] = heads > 1 ? heads : out_width;
    record.output_shape[2] = heads > 1 ? out_width / heads : 0;
    record.n_dims = heads > 1 ? 3 : 2;
    if (n) tsk__trace_deliver(t, &record, in_width ? t->input : NULL, t->output);
    tsk__memory_delete(t->allocator, positions);
}

/* Records of the first half of a layer (norm, projections, RoPE, attention output), then of the second. */
static void tsk__trace_attention(tsk__tracer *t, int32_t layer, const tsk__traced *rows) {
    const tsk_model_config *c = t->watch.stream->backend->config;
    uint64_t d = (uint64_t)c->d_model, q = (uint64_t)(c->n_heads * c->head_dim),
             k = (uint64_t)(c->n_kv_heads * c->head_dim);
    const void *q_norm = t->watch.captures.q_norm, *k_norm = t->watch.captures.k_norm;
    char name[48];
    tsk__traced what = *rows;
    what.name = name;
    what.layer = layer;
#define TSK__TRACE_RECORD(suffix, which, from, in_width, to, out_width, heads) \
    do { \
        snprintf(name, sizeof name, "block_%d%s", (int)layer, suffix); \
        what.part = which; \
        tsk__trace_rows(t, &what, from, in_width, to, out_width, heads); \
    } while (0)
    TSK__TRACE_RECORD("_attn_norm", "", t->watch.block_input, d, t->watch.captures.norm, d, 1);
    TSK__TRACE_RECORD("_q_proj", "", t->watch.captures.norm, d, t->watch.captures.q, q, 1);
    TSK__TRACE_RECORD("_k_proj", "", t->watch.captures.norm, d, t->watch.captures.k, k, 1);
    TSK__TRACE_RECORD("_v_proj", "", t->watch.captures.norm, d, t->watch.captures.v, k, 1);
    if (q_norm) TSK__TRACE_RECORD("_q_norm", "", t->watch.captures.q, q, q_norm, q, 1);
    if (k_norm) TSK__TRACE_RECORD("_k_norm", "", t->watch.captures.k, k, k_norm, k, 1);
    TSK__TRACE_RECORD("_rope", "q", q_norm ? q_norm : t->watch.captures.q, q, t->watch.stream->q, q,
                      (uint64_t)c->n_heads);
    TSK__TRACE_RECORD("_rope", "k", k_norm ? k_norm : t->watch.captures.k, k, t->watch.captures.k_rope, k,
                      (uint64_t)c->n_kv_heads);
    TSK__TRACE_RECORD("_attn_out", "", t->watch.stream->attention, q, t->watch.captures.projection, d, 1);
}

static void tsk__trace_mlp(tsk__tracer *t, int32_t layer, const tsk__traced *rows) {
    const tsk_model_config *c = t->watch.stream->backend->config;
    uint64_t d = (uint64_t)c->d_model, m = (uint64_t)c->mlp_hidden_size;
    char name[48];
    tsk__traced what = *rows;
    what.name = name;
    what.layer = layer;
    TSK__TRACE_RECORD("_ff_norm", "", t->watch.middle, d, t->watch.captures.norm, d, 1);
    TSK__TRACE_RECORD("_ff_proj", "", t->watch.captures.norm, d, t->watch.captures.gate, m, 1);
    TSK__TRACE_RECORD("_up_proj", "", t->watch.captures.norm, d, t->watch.captures.up, m, 1);
    TSK__TRACE_RECORD("_ffn_out", "", t->watch.stream->hidden, m, t->watch.captures.projection, d, 1);
    TSK__TRACE_RECORD("", "", t->watch.block_input, d, t->watch.stream->x, d, 1);
#undef TSK__TRACE_RECORD
}

/* K or V of every layer as cached now: [n_kv_heads, length, head_dim]. */
static void tsk__trace_caches(tsk__tracer *t, const tsk__kv *kv) {
    const tsk_model_config *c = t->watch.stream->backend->config;
    uint64_t count = (uint64_t)c->n_kv_heads * (uint64_t)kv->length * (uint64_t)c->head_dim;
    int32_t layer, *positions = (int32_t *)tsk__memory_new(t->allocator, (size_t)kv->length, sizeof *positions);
    int part;
    if (!positions) t->status = TSK_ERROR_MEMORY;
    for (layer = 0; positions && layer < kv->length; layer++) positions[layer] = layer;
    for (layer = 0; layer < c->n_layers; layer++) {
        char name[48];
        snprintf(name, sizeof name, "kv_%d", (int)layer);
        for (part = 0; part < 2 && tsk__trace_wants(t, name, layer); part++) {
            tsk_trace_record record;
            if (!tsk__trace_room(t, &t->output, &t->output_capacity, count)) break;
            tsk__kv_read(kv, t->watch.stream, layer, part, t->output);
            memset(&record, 0, sizeof record);
            record.name = name;
            record.part = part ? "v" : "k";
            record.layer = layer;
            record.n_rows = kv->length;
            record.positions = positions;
            record.n_dims = 3;
            record.output_shape[0] = (uint64_t)c->n_kv_heads;
            record.output_shape[1] = (uint64_t)kv->length;
            record.output_shape[2] = (uint64_t)c->head_dim;
            tsk__trace_deliver(t, &record, NULL, t->output);
        }
    }
    tsk__memory_delete(t->allocator, positions);
}

/* final_norm and logits of all rows; index [n] = 0 .. n-1. */
static void tsk__trace_head(tsk__tracer *t, int32_t n, const int32_t *positions, const int32_t *index) {
    const tsk_model_config *c = t->watch.stream->backend->config;
    uint64_t d = (uint64_t)c->d_model, e = (uint64_t)c->embedding_size;
    int norm = tsk__trace_wants(t, "final_norm", -1), logits = tsk__trace_wants(t, "logits", -1), which;
    float *x = NULL;
    size_t x_capacity = 0;
    if (!norm && !logits) return;
    if (!tsk__trace_room(t, &t->input, &t->input_capacity, (uint64_t)n * d) ||
        !tsk__trace_room(t, &t->output, &t->output_capacity, (uint64_t)n * e))
        return;
    if (!tsk__trace_room(t, &x, &x_capacity, (uint64_t)n * d)) return;
    tsk__stream_read(t->watch.stream, t->watch.stream->x, n, d, x);
    t->watch.stream->backend->ops->logits(t->watch.stream, n, index, t->input, t->output);
    for (which = 0; which < 2; which++) {
        tsk_trace_record record;
        if (!(which ? logits : norm)) continue;
        memset(&record, 0, sizeof record);
        record.name = which ? "logits" : "final_norm";
        record.part = "";
        record.layer = -1;
        record.n_rows = n;
        record.positions = positions;
        record.n_dims = 2;
        record.input_shape[0] = record.output_shape[0] = (uint64_t)n;
        record.input_shape[1] = d;
        record.output_shape[1] = which ? e : d;
        tsk__trace_deliver(t, &record, which ? t->input : x, which ? t->output : t->input);
    }
    tsk__memory_delete(t->allocator, x);
}

// >>forward ===========================================================================================================
/* The transformer, once, over the backend's operations. A pass is a list of rows of one or more requests that goes
   through the layers; on the way it can be narrowed to some of its rows, those that TokenSkip finds active or whose
   request has work at this layer, and widened again. */

typedef struct tsk__pass {
    tsk__backend *backend;
    tsk__stream *stream;
    const tsk_allocator *allocator;
    tsk__tracer *tracer;
    int32_t max_rows;
    int32_t n;                     /* rows */
    int32_t *tokens, *positions, *requests, *slots, *visible; /* [max_rows] as tsk__rows */
    int32_t *flags;                /* [max_rows] of tsk__row_flag */
    int32_t *active;               /* [max_rows] 0: skips the upper layers, once that is known */
    int32_t *running;              /* [max_rows] 0: not in the layers that run now */
    int32_t *narrowed;             /* [max_rows] indices of the running rows while narrowed */
    int32_t *narrowed_positions;   /* [max_rows] their positions */
    int32_t n_running;
    int is_masked, is_compact;     /* how it is narrowed now; neither: not */
    int masks_itself;              /* 1: the backend masks the rows that it decides to skip, and no other row is left
                                      out in this pass */
    tsk__kv *caches;               /* [max_requests] */
    int32_t n_requests, max_requests;
    int32_t n_head;                /* rows that need predictions */
    int32_t *head;                 /* [max_rows] their indices */
    tsk__draw *draws;              /* [max_rows] */
    int32_t n_rules, n_candidates;
    tsk__commit_rule *rules;       /* [max_requests] */
    tsk__commit_candidate *candidates; /* [max_rows] */
} tsk__pass;

/* Bytes of activations, about: x three times (whole, compacted, for the head), q and attention, k and v, gate and
   up. */
static uint64_t tsk__pass_size(const tsk_model_config *c, uint64_t element_size, int32_t rows) {
    return (uint64_t)rows * element_size *
           (3 * (uint64_t)c->d_model + 2 * (uint64_t)c->n_heads * (uint64_t)c->head_dim +
            2 * (uint64_t)c->n_kv_heads * (uint64_t)c->head_dim + 2 * (uint64_t)c->mlp_hidden_size);
}

static void tsk__pass_free(tsk__pass *p) {
    if (p->stream) p->backend->ops->stream_destroy(p->stream);
    tsk__memory_delete(p->allocator, p->tokens);
    tsk__memory_delete(p->allocator, p->caches);
    tsk__memory_delete(p->allocator, p->draws);
    tsk__memory_delete(p->allocator, p->rules);
    tsk__memory_delete(p->allocator, p->candidates);
    p->stream = NULL;
    p->tokens = NULL;
    p->caches = NULL;
    p->draws = NULL;
    p->rules = NULL;
    p->candidates = NULL;
    p->max_rows = 0;
}

/* Room for max_rows rows of max_requests requests, n_states TokenSkip states a row. */
static tsk_status tsk__pass_create(tsk__pass *p, tsk__backend *backend, const tsk_allocator *allocator,
                                   int32_t max_rows, int32_t max_requests, int32_t n_states, tsk_error *error) {
    int32_t **lists[] = {&p->tokens, &p->positions, &p->requests, &p->slots,              &p->visible, &p->flags,
                         &p->active, &p->running,   &p->narrowed, &p->narrowed_positions, &p->head};
    size_t n_lists = sizeof lists / sizeof lists[0], i;
    tsk_status status;
    int32_t *block;
    memset(p, 0, sizeof *p);
    p->backend = backend;
    p->allocator = allocator;
    block = (int32_t *)tsk__memory_new(allocator, n_lists * (size_t)max_rows, sizeof *block);
    for (i = 0; i < n_lists && block; i++) *lists[i] = block + i * (size_t)max_rows;
    p->caches = (tsk__kv *)tsk__memory_new(allocator, (size_t)max_requests, sizeof *p->caches);
    p->draws = (tsk__draw *)tsk__memory_new(allocator, (size_t)max_rows, sizeof *p->draws);
    p->rules = (tsk__commit_rule *)tsk__memory_new(allocator, (size_t)max_requests, sizeof *p->rules);
    p->candidates = (tsk__commit_candidate *)tsk__memory_new(allocator, (size_t)max_rows, sizeof *p->candidates);
    if (!block || !p->caches || !p->draws || !p->rules || !p->candidates)
        status = tsk__error_memory(error, "the rows of a pass", n_lists * (uint64_t)max_rows * sizeof *block);
    else status = backend->ops->stream_create(backend, max_rows, n_states, &p->stream, error);
    if (status != TSK_OK) tsk__pass_free(p);
    else p->max_rows = max_rows;
    p->max_requests = max_requests;
    return status;
}

static void tsk__pass_reset(tsk__pass *p) { p->n = p->n_requests = p->n_head = p->n_rules = p->n_candidates = 0; }

/* A row of the last request added, to which all of its cache is visible. */
static void tsk__pass_add_row(tsk__pass *p, int32_t token, int32_t position, int32_t slot) {
    p->tokens[p->n] = token;
    p->positions[p->n] = position;
    p->requests[p->n] = p->n_requests - 1;
    p->slots[p->n] = slot;
    p->visible[p->n] = p->caches[p->n_requests - 1].length;
    p->flags[p->n] = 0;
    p->active[p->n++] = 1;
}

static void tsk__pass_begin(tsk__pass *p) {
    tsk__rows rows;
    rows.n = p->n;
    rows.tokens = p->tokens;
    rows.positions = p->positions;
    rows.requests = p->requests;
    rows.slots = p->slots;
    rows.flags = p->flags;
    rows.visible = p->visible;
    rows.caches = p->caches;
    rows.n_requests = p->n_requests;
    p->n_running = p->n;
    p->is_masked = p->is_compact = p->masks_itself = 0;
    p->backend->ops->begin(p->stream, &rows);
}

/* All rows run again. */
static void tsk__pass_widen(tsk__pass *p) {
    if (p->is_masked) p->backend->ops->mask(p->stream, NULL);
    if (p->is_compact) p->backend->ops->expand(p->stream);
    p->is_masked = p->is_compact = 0;
    p->n_running = p->n;
}

/* Leaves out the rows with running[i] == 0 and returns how many rows remain. If none remains, the caller runs nothing
   before the next change. If the backend masks rows itself, this only counts. */
static int32_t tsk__pass_narrow(tsk__pass *p) {
    int32_t i, n = 0;
    for (i = 0; i < p->n; i++) n += p->running[i] != 0;
    if (p->masks_itself) return n;
    tsk__pass_widen(p);
    if (n == p->n || n == 0) return n;
    for (i = 0, n = 0; i < p->n; i++) {
        if (!p->running[i]) continue;
        p->narrowed[n] = i;
        p->narrowed_positions[n++] = p->positions[i];
    }
    p->n_running = n;
    p->is_masked = tsk__backend_masks(p->backend, p->n);
    p->is_compact = !p->is_masked;
    if (p->is_masked) p->backend->ops->mask(p->stream, p->running);
    else p->backend->ops->compact(p->stream, n, p->narrowed);
    return n;
}

static tsk__traced tsk__pass_traced(const tsk__pass *p) {
    tsk__traced rows;
    memset(&rows, 0, sizeof rows);
    rows.layer = -1;
    rows.n_rows = p->is_compact ? p->n_running : p->n;
    rows.positions = p->is_compact ? p->narrowed_positions : p->positions;
    rows.keep = p->is_masked ? p->running : NULL;
    return rows;
}

static void tsk__forward_layer(tsk__pass *p, int32_t layer) {
    const tsk__backend_ops *ops = p->backend->ops;
    tsk__tracer *tracer = tsk__trace_on(p->tracer) ? p->tracer : NULL;
    const tsk__captures *captures = tracer ? &tracer->watch.captures : NULL;
    tsk__traced rows = tsk__pass_traced(p);
    if (tracer) tsk__watch_x(&tracer->watch, tracer->watch.block_input, rows.n_rows);
    ops->qkv(p->stream, layer, captures);
    ops->attend(p->stream, layer);
    ops->attn_out(p->stream, layer, captures);
    if (tracer) {
        tsk__trace_attention(tracer, layer, &rows);
        tsk__watch_x(&tracer->watch, tracer->watch.middle, rows.n_rows);
    }
    ops->gate_up(p->stream, layer, captures);
    ops->down(p->stream, layer, captures);
    if (tracer) tsk__trace_mlp(tracer, layer, &rows);
}

/* Layers first .. last-1, the embedding before layer 0. After layer l < n_states its output, h_{l+1}, is compared with
   the request's state of that number; requests whose lower layers end here, all of whose states have been compared, are
   decided about. Short passes are recorded by backends that can. */
static void tsk__forward_layers(tsk__pass *p, int32_t first, int32_t last, int32_t n_states) {
    const tsk__backend_ops *ops = p->backend->ops;
    int traced = tsk__trace_on(p->tracer);
    int recorded = ops->replay && !traced;
    uint64_t key = (uint64_t)first << 32 | (uint64_t)last << 16 | (uint64_t)n_states;  /* (layers: 4096 at the most) */
    int32_t layer;
    if (recorded && ops->replay(p->stream, key)) return;
    if (recorded) ops->record(p->stream, key);
    if (first == 0) {
        ops->embed(p->stream);
        if (traced) {
            tsk__traced rows = tsk__pass_traced(p);
            rows.name = "embedding";
            rows.part = "";
            tsk__trace_rows(p->tracer, &rows, NULL, 0, p->stream->x, (uint64_t)p->backend->config->d_model, 1);
        }
    }
    for (layer = first; layer < last; layer++) {
        tsk__forward_layer(p, layer);
        if (layer < n_states) ops->compare(p->stream, layer);
    }
    if (last > 1 && last <= n_states + 1) ops->decide(p->stream, last - 1);
    if (recorded) ops->finish(p->stream);
}

/* A row's prediction is wanted, with these draws. */
static void tsk__pass_add_head(tsk__pass *p, int32_t row, const tsk__draw *draw) {
    p->head[p->n_head] = row;
    p->draws[p->n_head++] = *draw;
}

static void tsk__forward_head(tsk__pass *p) {
    if (tsk__trace_on(p->tracer)) {
        int32_t i, r;
        for (i = 0; i < p->n; i++) p->narrowed[i] = i;
        tsk__trace_head(p->tracer, p->n, p->positions, p->narrowed);
        for (r = 0; r < p->n_requests; r++) {
            tsk__trace_caches(p->tracer, &p->caches[r]);
        }
    }
    if (p->n_head) p->backend->ops->head(p->stream, p->n_head, p->head, p->draws);
    if (p->n_candidates) p->backend->ops->select(p->stream, p->n_rules, p->rules, p->n_candidates, p->candidates);
}

// >>request ===========================================================================================================
/* One generation: a canvas of tokens, its blocks, its caches and its TokenSkip state. A request plans the rows of its
   next pass, which of them may be skipped and how its predictions are committed. The backend decides and commits, so
   that a GPU need not wait for the host in a pass's middle; the request takes note of both when the pass has ended.
   tsk__requests_pass drives any number of requests through one pass. A session is one request with a pass of its
   own. */

/* Where a generation is. Plain values: a copy of a session takes them as they are, but for the result's addresses. */
typedef struct tsk__generation {
    int32_t n_prompt, length;      /* length = n_prompt + gen_length, by blocks rounded up to whole ones */
    int32_t infill_count;          /* masked positions of the prompt that are a block of their own */
    int32_t n_masks;               /* masked positions of the canvas at the start */
    int32_t n_blocks, block;       /* the infilling block, where there is one, is block 0 */
    int32_t n_positions;           /* of the current block */
    int32_t visible;               /* passes of this block see the positions below it, and no others */
    int32_t n_started;             /* blocks that had a pass, the current one included */
    int32_t block_step, block_masks;  /* passes done in it; masks at its start */
    uint32_t pass;
    int is_started;                /* 0: there is no generation, and of the rest of this struct nothing means
                                      anything */
    int is_finished;
    int has_previous;              /* 1: `states` holds those of an earlier pass of this block */
    int has_outputs;               /* so are its outputs, where they are kept */
    int has_refresh;               /* 1: the cache holds the states of an earlier refresh (skip.refresh) */
    tsk_result result;
} tsk__generation;

/* Which positions a pass runs; the last two are refreshes. */
typedef enum tsk__pass_kind {
    TSK__PASS_STEP,                /* of the block, those that the rule `rows` leaves, and refresh_rows' */
    TSK__PASS_SUFFIX,              /* from the block's first on: a step of cache prefix */
    TSK__PASS_PROMPT,              /* by blocks: some of the prompt's whole blocks, whose K and V become final */
    TSK__PASS_STORE,               /* by blocks: all of the block, likewise */
    TSK__PASS_NEAR,                /* what has changed, the block, masks behind it, and refresh_rows' */
    TSK__PASS_FULL                 /* all that is visible */
} tsk__pass_kind;

/* The pass under way. */
typedef struct tsk__request_pass {
    tsk__pass_kind kind;
    int32_t first_row, n_rows;
    int32_t n_further;             /* of them, refresh_rows' */
    int32_t n_ran;                 /* rows that ran all layers, once that is known */
    int32_t first_candidate, n_candidates; /* masked positions of the block */
    int32_t stretch_begin, stretch_end; /* slots among which candidates are looked for */
    int32_t next_position;         /* of the next block, its first, which a pass that makes K and V final predicts where
                                      logits are shifted; -1: none */
    int32_t first_layer, last_layer;  /* that the pass runs of this request */
    int is_deciding;               /* some tokens may be stable */
    int is_probe;                  /* the pass only looks: its kind is set already, and nothing is committed */
    int runs_all;                  /* a probe's step leaves nothing out */
} tsk__request_pass;

/* A batch may cut a refresh by layers, so that it does not hold up the others' steps: the next pass goes on at
   `next_layer` for at most `layer_budget` layers (0: all), from the residual stream put aside in the cache. */
typedef struct tsk__request_cut {
    int is_allowed;                /* the batch limits row_layers */
    int32_t prompt_rows;           /* by blocks a prompt is cut by rows instead: at most so many, 0: no limit */
    int32_t next_layer, layer_budget;
    double pending_ms;             /* of the parts so far */
} tsk__request_cut;

/* Arrays over the canvas, [length]. */
typedef struct tsk__request_canvas {
    int is_uploaded;               /* the backend's canvas is the same as this one */
    int32_t *ids;
    int32_t *kept_ids;             /* while a probe looks at others */
    tsk__skip_token *tokens;
    int32_t *nearest;              /* all positions, by their distance from the block (refresh_rows) */
    uint32_t *computed_passes;     /* the pass that last ran all layers of a position */
    uint8_t *refresh_active;       /* the decision of a refresh under way */
    uint8_t *is_listed;            /* while a list of positions is made: already in it. Of a pass that is NEAR: it runs
                                      the position */
} tsk__request_canvas;

/* Arrays over the slots of the current block, [max block]. */
typedef struct tsk__request_block {
    int32_t *positions;
    int32_t *predictions;
    float *confidences;
    uint8_t *committed, *active;
    uint8_t *is_predicted;         /* a pass of this block has predicted the slot */
    int32_t *rows;                 /* the slot's row in the pass under way; -1: the pass leaves it out */
    int32_t *sources;              /* the row that predicts the slot's position: its own, or where logits are shifted
                                      that of the position before; -1: the pass leaves it out */
    uint8_t *runs;                 /* the slots that a pass of kind STEP runs, */
    uint8_t *before;               /* and those before which it runs a row outside the block, which predicts them */
    tsk__skip_slot *ranked;        /* while they are chosen */
    float *cosines;                /* [max block, n_states] of the last pass that compared, for the step callback */
    tsk_candidate *candidates;     /* as on_select is told of them, and where it answers */
    uint8_t *candidate_commits;
} tsk__request_block;

/* The result's arrays. */
typedef struct tsk__request_counts {
    tsk_block_result *blocks;      /* [n_blocks] */
    int32_t *active, *stable_masked; /* [n_masks]: a pass commits at least one token */
} tsk__request_counts;

typedef struct tsk__request {
    const tsk_model_config *config;
    tsk__backend *backend;
    const tsk_allocator *allocator;
    tsk_generate_options options;  /* every TSK_AUTO resolved */
    int32_t n_states;              /* K - 1 where states are compared, in block steps or in refreshes, else 0 */
    int32_t force_active, force_refresh; /* as tsk_session_force has them */
    int keeps_outputs;             /* h_L of the block's tokens are stored */
    tsk__cache cache;
    int32_t n_final;               /* by blocks: the K and V of so many positions are final, those of canvas.ids; more
                                      than one generation may use them */

    tsk__generation gen;
    tsk_error failure;             /* what ended it; its status is TSK_OK while nothing has */
    int is_running;                /* a session's pass is under way: callbacks may not begin another */
    int is_reporting;              /* its step callback is: the pass's commits are there, but r->gen has not moved on */
    tsk__request_pass pass;
    tsk__request_cut cut;

    void *memory;                  /* the arrays below, in one allocation: see tsk__request_layout */
    tsk__request_canvas canvas;
    tsk__request_block block;
    tsk__request_counts counts;
} tsk__request;

/* ---- options */

tsk_generate_options tsk_generate_options_default(void) {
    tsk_generate_options o;
    memset(&o, 0, sizeof o);
    o.gen_length = 128;
    o.block_length = o.small_block = TSK_AUTO;
    o.steps = TSK_AUTO;
    o.cache = TSK_CACHE_AUTO;
    o.prompt_rows = TSK_AUTO;
    o.transfer = TSK_TRANSFER_THRESHOLD;
    o.threshold = 0.9f;
    o.factor = 1.0f;
    o.eos_stop = 1;
    o.end_of_turn_id = TSK_AUTO;
    o.skip.rule = TSK_SKIP_RULE_AUTO;
    o.skip.rows_margin = 4;
    o.skip.layer_k = TSK_AUTO;
    o.skip.threshold = 0.95f;
    o.skip.outlier = 0.7f;
    o.refresh = TSK_REFRESH_AUTO;
    o.refresh_near = 16;
    o.refresh_every = TSK_AUTO;
    return o;
}

/* The rule first: what K is where nobody says so depends on it. */
static void tsk__options_resolve_skip(tsk_skip_options *skip, tsk_cache cache, const tsk_model_config *config) {
    const int32_t n_layers = config->n_layers;
    if (skip->rule == TSK_SKIP_RULE_AUTO && skip->layer_k == TSK_AUTO)
        skip->rule =
            cache == TSK_CACHE_DUAL && tsk__family_of(config)->skips ? TSK_SKIP_RULE_ROWS : TSK_SKIP_RULE_OFF;
    if (skip->rule == TSK_SKIP_RULE_AUTO) skip->rule = skip->layer_k > 0 ? TSK_SKIP_RULE_STATES : TSK_SKIP_RULE_OFF;
    if (skip->layer_k != TSK_AUTO) return;
    skip->layer_k = n_layers / 4 > 2 ? n_layers / 4 : 2;
    if (skip->rule == TSK_SKIP_RULE_OFF) skip->layer_k = 0;
}

#define TSK__USUAL_BLOCK 32
#define TSK__USUAL_PROMPT_ROWS 2048 /* as good as all at once on a GPU, with activations of a size known beforehand */

static void tsk__options_resolve_blocks(tsk_generate_options *o, const tsk_model_config *config) {
    const tsk__family *family = tsk__family_of(config);
    int32_t usual = family->small_block;
    if (o->cache == TSK_CACHE_AUTO) o->cache = family->by_blocks ? TSK_CACHE_BLOCK : TSK_CACHE_DUAL;
    if (o->block_length == TSK_AUTO) o->block_length = family->by_blocks ? config->block_length : TSK__USUAL_BLOCK;
    if (o->small_block == TSK_AUTO) o->small_block = usual && o->block_length % usual == 0 ? usual : 0;
    if (o->steps == TSK_AUTO && o->cache != TSK_CACHE_BLOCK) o->steps = o->gen_length;
    if (o->prompt_rows == TSK_AUTO) o->prompt_rows = TSK__USUAL_PROMPT_ROWS;
}

static void tsk__options_resolve(tsk_generate_options *o, const tsk_model_config *config,
                                 const tsk_tokenizer *tokenizer) {
    tsk__options_resolve_blocks(o, config);
    tsk__options_resolve_skip(&o->skip, o->cache, config);
    if (o->refresh == TSK_REFRESH_AUTO) o->refresh = TSK_REFRESH_FULL;
    if (o->refresh_every == TSK_AUTO) o->refresh_every = o->refresh == TSK_REFRESH_FULL;
    if (o->end_of_turn_id == TSK_AUTO) o->end_of_turn_id = tokenizer ? tsk_chat_end_of_turn(tokenizer) : TSK_NONE;
}

#define TSK__OPTIONS_REQUIRE(condition, ...) \
    if (!(condition)) return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, __VA_ARGS__)

/* The caches that the family has. */
static tsk_status tsk__options_check_cache(const tsk_generate_options *o, const tsk_model_config *config,
                                           tsk_error *error) {
    static const char *const caches[] = {"dual", "prefix", "none", "block"};
    const tsk__family *family = tsk__family_of(config);
    int by_blocks = o->cache == TSK_CACHE_BLOCK;
    TSK__OPTIONS_REQUIRE((int)o->cache >= 0 && o->cache <= TSK_CACHE_BLOCK, "cache has no value %d", (int)o->cache);
    TSK__OPTIONS_REQUIRE(family->by_blocks || !by_blocks, "cache block needs attention by blocks, which %s has not",
                         family->name);
    TSK__OPTIONS_REQUIRE(by_blocks || !family->by_blocks, "cache %s: %s has attention by blocks, and cache block only",
                         caches[o->cache], family->name);
    return TSK_OK;
}

/* What has to do with attention by blocks; small_block alone is also what other families must leave alone. */
static tsk_status tsk__options_check_blocks(const tsk_generate_options *o, const tsk_model_config *config,
                                            tsk_error *error) {
    int by_blocks = o->cache == TSK_CACHE_BLOCK;
    TSK__OPTIONS_REQUIRE(o->small_block >= 0, "small_block must be zero or positive, not %d", (int)o->small_block);
    TSK__OPTIONS_REQUIRE(o->small_block == 0 || by_blocks, "small_block %d needs cache block", (int)o->small_block);
    TSK__OPTIONS_REQUIRE(o->small_block == 0 || o->block_length % o->small_block == 0,
                         "block_length %d is not a multiple of small_block %d", (int)o->block_length,
                         (int)o->small_block);
    TSK__OPTIONS_REQUIRE(o->prompt_rows > 0, "prompt_rows must be positive, not %d", (int)o->prompt_rows);
    if (!by_blocks) return TSK_OK;
    TSK__OPTIONS_REQUIRE(o->block_length <= config->max_sequence_length,
                         "block_length %d is beyond the model's max_sequence_length %d", (int)o->block_length,
                         (int)config->max_sequence_length);
    TSK__OPTIONS_REQUIRE(o->refresh == TSK_REFRESH_FULL && o->refresh_window == 0 && o->refresh_rows == 0 &&
                             o->refresh_every == 1 && !o->skip.refresh && !o->skip.warm_start,
                         "with cache block nothing is refreshed: refresh near, refresh_window, refresh_rows, "
                         "refresh_every, skip_refresh and skip_warm_start need another cache");
    return TSK_OK;
}

/* How the answer is cut into blocks and steps. */
static tsk_status tsk__options_check_lengths(const tsk_generate_options *o, const tsk_model_config *config,
                                             tsk_error *error) {
    int by_blocks = o->cache == TSK_CACHE_BLOCK;
    int32_t n_blocks;
    TSK__OPTIONS_REQUIRE(o->gen_length > 0, "gen_length must be positive, not %d", (int)o->gen_length);
    TSK__OPTIONS_REQUIRE(o->block_length > 0, "block_length must be positive, not %d", (int)o->block_length);
    TSK__OPTIONS_REQUIRE(by_blocks || o->gen_length % o->block_length == 0,
                         "gen_length %d is not a multiple of block_length %d", (int)o->gen_length,
                         (int)o->block_length);
    TSK__OPTIONS_REQUIRE(o->gen_length <= config->max_sequence_length,
                         "gen_length %d is beyond the model's max_sequence_length %d", (int)o->gen_length,
                         (int)config->max_sequence_length);
    n_blocks = o->gen_length / o->block_length;
    TSK__OPTIONS_REQUIRE(o->steps > 0 || (by_blocks && o->steps == TSK_AUTO), "steps must be positive, not %d",
                         (int)o->steps);
    TSK__OPTIONS_REQUIRE(by_blocks || o->steps % n_blocks == 0,
                         "steps %d is not a multiple of the number of blocks, %d", (int)o->steps, (int)n_blocks);
    return TSK_OK;
}

static tsk_status tsk__options_check(const tsk_generate_options *o, const tsk_model_config *config, tsk_error *error) {
    int in_blocks = o->cache == TSK_CACHE_DUAL || o->cache == TSK_CACHE_BLOCK;
    tsk_status status = tsk__options_check_cache(o, config, error);
    if (status == TSK_OK) status = tsk__options_check_lengths(o, config, error);
    if (status == TSK_OK) status = tsk__options_check_blocks(o, config, error);
    if (status != TSK_OK) return status;
    TSK__OPTIONS_REQUIRE((int)o->transfer >= 0 && o->transfer <= TSK_TRANSFER_FACTOR, "transfer has no value %d",
                         (int)o->transfer);
    TSK__OPTIONS_REQUIRE((int)o->remasking >= 0 && o->remasking <= TSK_REMASKING_RANDOM, "remasking has no value %d",
                         (int)o->remasking);
    TSK__OPTIONS_REQUIRE((int)o->skip.policy >= 0 && o->skip.policy <= TSK_SKIP_EXIT, "skip_policy has no value %d",
                         (int)o->skip.policy);
    TSK__OPTIONS_REQUIRE((int)o->skip.reference >= 0 && o->skip.reference <= TSK_SKIP_LAST_COMPUTED,
                         "skip_reference has no value %d", (int)o->skip.reference);
    TSK__OPTIONS_REQUIRE(o->threshold == o->threshold && fabsf(o->threshold) <= FLT_MAX,
                         "threshold must be a finite number");
    TSK__OPTIONS_REQUIRE(o->factor > 0 && o->factor <= FLT_MAX, "factor must be a positive number");
    TSK__OPTIONS_REQUIRE(o->temperature >= 0 && o->temperature <= FLT_MAX,
                         "temperature must be zero or a positive number");
    TSK__OPTIONS_REQUIRE(o->skip.threshold == o->skip.threshold && fabsf(o->skip.threshold) <= FLT_MAX,
                         "skip_threshold must be a finite number");
    TSK__OPTIONS_REQUIRE(o->skip.outlier == o->skip.outlier && fabsf(o->skip.outlier) <= FLT_MAX,
                         "skip_outlier must be a finite number");
    TSK__OPTIONS_REQUIRE((int)o->skip.rule >= 0 && o->skip.rule <= TSK_SKIP_RULE_ROWS, "skip_rule has no value %d",
                         (int)o->skip.rule);
    TSK__OPTIONS_REQUIRE((int)o->refresh >= 0 && o->refresh <= TSK_REFRESH_NEAR, "refresh has no value %d",
                         (int)o->refresh);
    TSK__OPTIONS_REQUIRE(o->skip.layer_k >= 0, "skip_layer_k must be zero or positive, not %d", (int)o->skip.layer_k);
    TSK__OPTIONS_REQUIRE(o->skip.rule != TSK_SKIP_RULE_ROWS || in_blocks,
                         "skip_rule rows needs cache dual: other caches run more than the block in each pass");
    TSK__OPTIONS_REQUIRE(o->skip.rule == TSK_SKIP_RULE_OFF || o->skip.layer_k == 0 || in_blocks,
                         "skip_layer_k %d needs cache dual: TokenSkip lives in the dual cache's block steps",
                         (int)o->skip.layer_k);
    TSK__OPTIONS_REQUIRE(o->skip.rule != TSK_SKIP_RULE_STATES || o->skip.layer_k > 0,
                         "skip_rule states needs a skip_layer_k above 0");
    TSK__OPTIONS_REQUIRE(o->skip.rows_margin >= 0, "skip_rows_margin must be zero or positive, not %d",
                         (int)o->skip.rows_margin);
    TSK__OPTIONS_REQUIRE(o->skip.rows_ahead >= 0, "skip_rows_ahead must be zero or positive, not %d",
                         (int)o->skip.rows_ahead);
    TSK__OPTIONS_REQUIRE(o->skip.max_age >= 0 && o->skip.full_every >= 0,
                         "skip_max_age and skip_full_every must be zero or positive");
    TSK__OPTIONS_REQUIRE(!o->skip.refresh || o->skip.rule != TSK_SKIP_RULE_OFF,
                         "skip_refresh needs TokenSkip: skip_rule is off");
    TSK__OPTIONS_REQUIRE(!o->skip.refresh || o->skip.layer_k > 0, "skip_refresh needs TokenSkip: skip_layer_k is 0");
    TSK__OPTIONS_REQUIRE(!o->skip.refresh || o->refresh == TSK_REFRESH_FULL,
                         "skip_refresh needs refresh full: with near there is next to nothing that it could skip");
    TSK__OPTIONS_REQUIRE(!o->skip.refresh || o->refresh_window == 0,
                         "skip_refresh and refresh_window %d exclude each other", (int)o->refresh_window);
    TSK__OPTIONS_REQUIRE(o->refresh == TSK_REFRESH_FULL || o->cache == TSK_CACHE_DUAL, "refresh near needs cache dual");
    TSK__OPTIONS_REQUIRE(o->refresh_near >= 0, "refresh_near must be zero or positive, not %d", (int)o->refresh_near);
    TSK__OPTIONS_REQUIRE(o->refresh_window >= 0, "refresh_window must be zero or positive, not %d",
                         (int)o->refresh_window);
    TSK__OPTIONS_REQUIRE(o->refresh_window == 0 || o->cache == TSK_CACHE_DUAL, "refresh_window %d needs cache dual",
                         (int)o->refresh_window);
    TSK__OPTIONS_REQUIRE(o->refresh_rows >= 0, "refresh_rows must be zero or positive, not %d", (int)o->refresh_rows);
    TSK__OPTIONS_REQUIRE(o->refresh_rows == 0 || o->cache == TSK_CACHE_DUAL,
                         "refresh_rows %d needs cache dual: other caches leave no rows out that a step could add",
                         (int)o->refresh_rows);
    TSK__OPTIONS_REQUIRE(o->refresh_every >= 0, "refresh_every must be zero or positive, not %d",
                         (int)o->refresh_every);
    TSK__OPTIONS_REQUIRE(o->refresh_every == 1 || o->cache != TSK_CACHE_NONE,
                         "refresh_every %d needs a cache: without one every pass is a forward of the whole canvas",
                         (int)o->refresh_every);
    TSK__OPTIONS_REQUIRE(o->refresh_window == 0 || o->refresh == TSK_REFRESH_NEAR || o->refresh_every == 1,
                         "refresh_window %d and refresh full need refresh_every 1, not %d: what comes into the window "
                         "has to be computed at the block's start",
                         (int)o->refresh_window, (int)o->refresh_every);
    TSK__OPTIONS_REQUIRE(o->end_of_turn_id >= TSK_NONE && o->end_of_turn_id < config->embedding_size,
                         "end_of_turn_id %d is outside the vocabulary of %d", (int)o->end_of_turn_id,
                         (int)config->embedding_size);
    return TSK_OK;
}
#undef TSK__OPTIONS_REQUIRE

/* Positions of the canvas: prompt and answer, by blocks rounded up to whole ones. */
static int64_t tsk__options_canvas(const tsk_generate_options *o, int32_t n_prompt) {
    int64_t length = (int64_t)n_prompt + o->gen_length;
    if (o->cache == TSK_CACHE_BLOCK) length += (o->block_length - length % o->block_length) % o->block_length;
    return length;
}

/* By blocks: rows of the largest piece of a prompt, whole blocks. */
static int32_t tsk__options_piece(const tsk_generate_options *o, int32_t limit) {
    int32_t n_blocks = (limit && limit < o->prompt_rows ? limit : o->prompt_rows) / o->block_length;
    return (n_blocks > 1 ? n_blocks : 1) * o->block_length;
}

/* How many states of a token are compared: none where every layer, or none, is below K. */
static int32_t tsk__options_n_states(const tsk_generate_options *o, const tsk_model_config *config) {
    if (o->skip.rule != TSK_SKIP_RULE_STATES && !o->skip.refresh) return 0;
    return o->skip.layer_k >= 2 && o->skip.layer_k < config->n_layers ? o->skip.layer_k - 1 : 0;
}

/* ---- memory of a request */

static int32_t tsk__request_max_block(const tsk__request *r) {
    return r->options.block_length > r->gen.infill_count ? r->options.block_length : r->gen.infill_count;
}

/* Lays the arrays out from `base`, or only measures when it is NULL. Requests with equal gen_length, block_length and
   prompt have arrays of equal sizes, except `cosines`. It comes last, so that a copy takes all others in one piece;
   *shared is their size. */
static size_t tsk__request_layout(tsk__request *r, char *base, size_t *shared) {
    size_t length = (size_t)r->gen.length, block = (size_t)tsk__request_max_block(r), masks = (size_t)r->gen.n_masks,
           used = 0;
#define TSK__REQUEST_ARRAY(type, field, count) \
    do { \
        if (base) r->field = (type *)(void *)(base + used); \
        used += ((count) * sizeof(type) + 15) & ~(size_t)15; \
    } while (0)
    TSK__REQUEST_ARRAY(int32_t, canvas.ids, length);
    TSK__REQUEST_ARRAY(int32_t, canvas.kept_ids, length);
    TSK__REQUEST_ARRAY(int32_t, block.positions, block);
    TSK__REQUEST_ARRAY(int32_t, block.rows, block);
    TSK__REQUEST_ARRAY(int32_t, block.sources, block);
    TSK__REQUEST_ARRAY(tsk__skip_slot, block.ranked, block);
    TSK__REQUEST_ARRAY(uint8_t, block.runs, block);
    TSK__REQUEST_ARRAY(uint8_t, block.before, block);
    TSK__REQUEST_ARRAY(tsk__skip_token, canvas.tokens, length);
    TSK__REQUEST_ARRAY(int32_t, canvas.nearest, length);
    TSK__REQUEST_ARRAY(uint32_t, canvas.computed_passes, length);
    TSK__REQUEST_ARRAY(uint8_t, canvas.is_listed, length);
    TSK__REQUEST_ARRAY(int32_t, block.predictions, block);
    TSK__REQUEST_ARRAY(float, block.confidences, block);
    TSK__REQUEST_ARRAY(uint8_t, block.committed, block);
    TSK__REQUEST_ARRAY(uint8_t, block.active, block);
    TSK__REQUEST_ARRAY(uint8_t, block.is_predicted, block);
    TSK__REQUEST_ARRAY(uint8_t, canvas.refresh_active, length);
    TSK__REQUEST_ARRAY(tsk_candidate, block.candidates, block);
    TSK__REQUEST_ARRAY(uint8_t, block.candidate_commits, block);
    TSK__REQUEST_ARRAY(tsk_block_result, counts.blocks, (size_t)r->gen.n_blocks);
    TSK__REQUEST_ARRAY(int32_t, counts.active, masks);
    TSK__REQUEST_ARRAY(int32_t, counts.stable_masked, masks);
    *shared = used;
    TSK__REQUEST_ARRAY(float, block.cosines, block * (size_t)r->n_states);
#undef TSK__REQUEST_ARRAY
    return used;
}

/* Room in the backend for a canvas of `length` tokens, and K and V of `capacity`. Those of the first n_final positions
   stay; `stream` may be NULL where these are none. */
static tsk_status tsk__request_device_memory(tsk__request *r, int32_t length, int32_t capacity, tsk__stream *stream,
                                             tsk_error *error) {
    tsk__cache_shape shape;
    memset(&shape, 0, sizeof shape);
    shape.length = length;
    shape.capacity = capacity;
    shape.n_kept = r->n_final;
    shape.n_slots = tsk__request_max_block(r);
    shape.n_states = r->n_states;
    shape.has_refresh_states = r->options.skip.refresh && r->n_states;
    shape.has_outputs = r->keeps_outputs;
    shape.has_residual = r->cut.is_allowed;
    return tsk__cache_resize(&r->cache, &shape, stream, error);
}

static tsk_status tsk__force_check(const char *function, int32_t n_active, int32_t n_refresh, tsk_error *error) {
    if (n_active >= TSK_AUTO && n_refresh >= TSK_AUTO) return TSK_OK;
    return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                          "%s: n_active %d and n_refresh %d must be -1 or more", function, (int)n_active,
                          (int)n_refresh);
}

static void tsk__request_free(tsk__request *r) {
    tsk__cache_free(&r->cache);
    tsk__memory_delete(r->allocator, r->memory);
    r->memory = NULL;
    r->n_final = 0;
    r->gen.is_started = 0;
}

/* ---- start */

static tsk_status tsk__request_check_ids(const tsk__request *r, const char *what, const int32_t *ids, int32_t n,
                                         tsk_error *error) {
    int32_t i;
    for (i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= r->config->embedding_size)
            return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                                  "%s: id %d at position %d is outside the vocabulary of %d", what, (int)ids[i], (int)i,
                                  (int)r->config->embedding_size);
    return TSK_OK;
}

static int32_t tsk__count_masks(const int32_t *ids, int32_t n, int32_t mask) {
    int32_t i, count = 0;
    for (i = 0; i < n; i++) count += ids[i] == mask;
    return count;
}

static int tsk__request_is_masked(const tsk__request *r, int32_t slot) {
    return r->canvas.ids[r->block.positions[slot]] == r->config->mask_token_id;
}

/* In the current block. */
static int32_t tsk__request_masks_left(const tsk__request *r) {
    int32_t i, masks_left = 0;
    for (i = 0; i < r->gen.n_positions; i++) masks_left += tsk__request_is_masked(r, i);
    return masks_left;
}

/* Row i predicts position i + 1. */
static int tsk__request_is_shifted(const tsk__request *r) { return tsk__family_of(r->config)->is_shifted; }

static int tsk__request_by_blocks(const tsk__request *r) { return r->options.cache == TSK_CACHE_BLOCK; }

/* By blocks: where the prompt's whole blocks end, which run before the first block. */
static int32_t tsk__request_prompt_end(const tsk__request *r) {
    return r->gen.n_prompt / r->options.block_length * r->options.block_length;
}

static int32_t tsk__request_block_end(const tsk__request *r) { return r->block.positions[r->gen.n_positions - 1] + 1; }

static int tsk__request_ends(const tsk__request *r, int32_t id) {
    return tsk_config_is_eos(r->config, id) || id == r->options.end_of_turn_id;
}

/* An end-of-sequence token in a finished block of the generated part, given or generated, ends everything after it. */
static int tsk__request_hit_end(const tsk__request *r) {
    int32_t i;
    if (!r->options.eos_stop || (r->gen.infill_count && r->gen.block == 0)) return 0;
    for (i = 0; i < r->gen.n_positions; i++) {
        int32_t at = r->block.positions[i] - r->gen.n_prompt; /* by blocks some are the prompt's, or are cut off */
        if (at >= 0 && at < r->options.gen_length && tsk__request_ends(r, r->canvas.ids[r->block.positions[i]]))
            return 1;
    }
    return 0;
}

static void tsk__request_end_early(tsk__request *r) {
    int32_t i;
    for (i = r->gen.n_prompt; i < r->gen.length; i++)
        if (r->canvas.ids[i] == r->config->mask_token_id) r->canvas.ids[i] = r->config->eos_token_id;
    r->canvas.is_uploaded = 0;
    r->gen.result.finish_reason = TSK_FINISH_EOS;
    r->gen.is_finished = 1;
}

/* Adds a position of the canvas that is not there yet to the n of `nearest`; returns how many there are now. */
static int32_t tsk__request_list(tsk__request *r, int32_t n, int32_t position) {
    if (position < 0 || position >= r->gen.length || r->canvas.is_listed[position]) return n;
    r->canvas.is_listed[position] = 1;
    r->canvas.nearest[n] = position;
    return n + 1;
}

/* Lists the canvas by distance from the block, its own positions first, by walking outwards from all of them at once;
   of two positions as far away the lower comes first. */
static void tsk__request_list_nearest(tsk__request *r) {
    int32_t i, n = 0;
    memset(r->canvas.is_listed, 0, (size_t)r->gen.length * sizeof *r->canvas.is_listed);
    for (i = 0; i < r->gen.n_positions; i++) n = tsk__request_list(r, n, r->block.positions[i]);
    for (i = 0; i < n; i++) {
        n = tsk__request_list(r, n, r->canvas.nearest[i] - 1);
        n = tsk__request_list(r, n, r->canvas.nearest[i] + 1);
    }
}

/* How many positions the passes of the current block see: by blocks none behind it; else up to the end of the window
   behind it, or to the last token that is there already, if that is further. */
static int32_t tsk__request_visible(const tsk__request *r) {
    int32_t visible = r->gen.length, end = tsk__request_block_end(r);
    if (tsk__request_by_blocks(r)) return end;
    if (!r->options.refresh_window) return visible;
    while (visible > end && visible - end > r->options.refresh_window &&
           r->canvas.ids[visible - 1] == r->config->mask_token_id)
        visible--;
    return visible;
}

/* Makes block number r->gen.block the current one. */
static void tsk__request_enter_block(tsk__request *r) {
    int has_infill = r->gen.infill_count > 0;
    int32_t i, start = tsk__request_by_blocks(r) ? tsk__request_prompt_end(r) : r->gen.n_prompt;
    int32_t first = start + (r->gen.block - has_infill) * r->options.block_length;
    r->gen.n_positions = 0;
    if (has_infill && r->gen.block == 0) {
        for (i = 0; i < r->gen.n_prompt; i++)
            if (r->canvas.ids[i] == r->config->mask_token_id) r->block.positions[r->gen.n_positions++] = i;
    } else {
        for (i = 0; i < r->options.block_length; i++) r->block.positions[r->gen.n_positions++] = first + i;
    }
    r->gen.visible = tsk__request_visible(r);
    r->gen.block_masks = tsk__request_masks_left(r);
    r->gen.block_step = 0;
    r->gen.has_previous = r->gen.has_outputs = 0;
    for (i = 0; i < r->gen.n_positions; i++) {
        r->block.is_predicted[i] = 0;
        r->block.predictions[i] = r->canvas.ids[r->block.positions[i]];
        r->block.confidences[i] = 0;
    }
    r->gen.result.n_blocks = r->gen.block + 1;
    r->gen.n_started += r->gen.block_masks > 0;
    if (r->options.refresh_rows) tsk__request_list_nearest(r);
}

/* By blocks: whether the block's K and V are needed, since masks are left behind it. */
static int tsk__request_must_store(const tsk__request *r) {
    int32_t end = tsk__request_block_end(r);
    return tsk__request_by_blocks(r) &&
           tsk__count_masks(r->canvas.ids + end, r->gen.length - end, r->config->mask_token_id) > 0;
}

/* From number r->gen.block on the next block for which a pass has to run becomes the current one: it holds a mask, or
   must be stored. None: the generation is over. */
static void tsk__request_next_block(tsk__request *r) {
    for (; r->gen.block < r->gen.n_blocks; r->gen.block++) {
        tsk__request_enter_block(r);
        if (r->gen.block_masks) return;
        if (tsk__request_hit_end(r)) {
            tsk__request_end_early(r);
            return;
        }
        if (tsk__request_must_store(r)) return;
    }
    r->gen.is_finished = 1;
    r->gen.result.finish_reason = TSK_FINISH_LENGTH;
}

/* The result's arrays are the request's own. */
static void tsk__request_point_result(tsk__request *r) {
    tsk_result *result = &r->gen.result;
    result->tokens = r->canvas.ids + r->gen.n_prompt;
    result->canvas = r->canvas.ids;
    result->blocks = r->counts.blocks;
    result->active = r->counts.active;
    result->stable_masked = r->counts.stable_masked;
}

/* What follows from the options, and the memory for the generation that r->gen tells the sizes of, with K and V of
   `capacity` positions. *before: that of the generation before, for the caller to free once nothing of it is needed any
   more. */
static tsk_status tsk__request_allocate(tsk__request *r, int32_t capacity, tsk__stream *stream, void **before,
                                        tsk_error *error) {
    size_t size, shared;
    r->n_states = tsk__options_n_states(&r->options, r->config);
    r->keeps_outputs =
        r->n_states && r->options.skip.rule == TSK_SKIP_RULE_STATES && r->options.skip.policy == TSK_SKIP_REUSE;
    size = tsk__request_layout(r, NULL, &shared);
    *before = r->memory;
    r->memory = tsk__memory_new_zeroed(r->allocator, 1, size);
    if (!r->memory) return tsk__error_memory(error, "a generation", size);
    tsk__request_layout(r, (char *)r->memory, &shared);
    tsk__request_point_result(r);
    r->canvas.is_uploaded = 0;
    r->cut.next_layer = 0;
    r->cut.pending_ms = 0;
    memset(&r->failure, 0, sizeof r->failure);
    return tsk__request_device_memory(r, r->gen.length, capacity, stream, error);
}

/* By blocks: the prompt's whole blocks are computed once, before anything in them could be predicted. */
static tsk_status tsk__request_check_blocks(const tsk__request *r, const int32_t *prompt, int32_t n_prompt,
                                            tsk_error *error) {
    const int32_t block = r->options.block_length, end = n_prompt / block * block;
    int32_t i;
    if (tsk__options_canvas(&r->options, n_prompt) > r->config->max_sequence_length)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "%d prompt tokens and gen_length %d, in whole blocks of %d, are more than the model's "
                              "max_sequence_length %d",
                              (int)n_prompt, (int)r->options.gen_length, (int)block,
                              (int)r->config->max_sequence_length);
    for (i = 0; i < end; i++)
        if (prompt[i] == r->config->mask_token_id)
            return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                                  "the prompt has a mask at position %d: with cache block only positions from %d on, "
                                  "behind its whole blocks of %d, can be filled",
                                  (int)i, (int)end, (int)block);
    return TSK_OK;
}

static tsk_status tsk__request_check_start(const tsk__request *r, const int32_t *prompt, int32_t n_prompt,
                                           const int32_t *generated, tsk_error *error) {
    const tsk_generate_options *o = &r->options;
    tsk_status status;
    if (n_prompt < 0 || (n_prompt && !prompt))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "the prompt's length %d has no tokens to it", (int)n_prompt);
    if (n_prompt > r->config->max_sequence_length - o->gen_length)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "%d prompt tokens and gen_length %d are more than the model's max_sequence_length %d",
                              (int)n_prompt, (int)o->gen_length, (int)r->config->max_sequence_length);
    status = tsk__request_check_ids(r, "the prompt", prompt, n_prompt, error);
    if (status == TSK_OK && tsk__request_by_blocks(r)) status = tsk__request_check_blocks(r, prompt, n_prompt, error);
    if (status == TSK_OK && generated)
        status = tsk__request_check_ids(r, "the generated part", generated, o->gen_length, error);
    return status;
}

/* By blocks: how many positions of a new prompt are finished already, in whole blocks. Where logits are shifted, its
   last whole block must run if it has a mask behind it to predict. */
static int32_t tsk__request_finished(const tsk__request *r, const int32_t *prompt, int32_t n_prompt,
                                     const int32_t *generated) {
    const int32_t block = r->options.block_length, end = n_prompt / block * block, mask = r->config->mask_token_id;
    int32_t n = 0, first = end < n_prompt ? prompt[end] : generated ? generated[0] : mask;
    if (!tsk__request_by_blocks(r)) return 0;
    while (n < r->n_final && n < end && r->canvas.ids[n] == prompt[n]) n++;
    n = n / block * block;
    if (n && n == end && tsk__request_is_shifted(r) && first == mask) n -= block;
    return n;
}

/* What r->gen says of the sizes of a generation of these tokens. */
static void tsk__request_measure(tsk__request *r, const int32_t *prompt, int32_t n_prompt, const int32_t *generated) {
    const tsk_generate_options *o = &r->options;
    const int32_t mask = r->config->mask_token_id, holes = tsk__count_masks(prompt, n_prompt, mask);
    r->gen.n_prompt = r->gen.result.n_prompt = n_prompt;
    r->gen.result.n_tokens = o->gen_length;
    r->gen.length = (int32_t)tsk__options_canvas(o, n_prompt);
    r->gen.n_masks = holes + (generated ? tsk__count_masks(generated, o->gen_length, mask) : o->gen_length) +
                     r->gen.length - n_prompt - o->gen_length;
    r->gen.infill_count = tsk__request_by_blocks(r) ? 0 : holes;
    r->gen.n_blocks = tsk__request_by_blocks(r) ? r->gen.length / o->block_length - n_prompt / o->block_length
                                                : o->gen_length / o->block_length + (holes > 0);
}

/* On failure there is no generation. `stream`: of the generation before, NULL where there was none. */
static tsk_status tsk__request_start(tsk__request *r, const int32_t *prompt, int32_t n_prompt, const int32_t *generated,
                                     tsk__stream *stream, tsk_error *error) {
    const tsk_generate_options *o = &r->options;
    const int32_t mask = r->config->mask_token_id;
    void *before = NULL; /* the arrays of the generation before, which the prompt may be of */
    int32_t i, n_final = 0, capacity;
    tsk_status status = tsk__request_check_start(r, prompt, n_prompt, generated, error);
    memset(&r->gen, 0, sizeof r->gen);
    if (status == TSK_OK && stream) n_final = tsk__request_finished(r, prompt, n_prompt, generated);
    r->n_final = n_final;
    if (status != TSK_OK) return status;
    tsk__request_measure(r, prompt, n_prompt, generated);
    capacity = n_final && r->cache.shape.capacity > r->gen.length ? r->cache.shape.capacity : r->gen.length;
    status = tsk__request_allocate(r, capacity, stream, &before, error);
    if (status != TSK_OK) {
        r->n_final = 0;
        tsk__memory_delete(r->allocator, before);
        return status;
    }
    if (n_prompt) memcpy(r->canvas.ids, prompt, (size_t)n_prompt * sizeof *prompt);
    for (i = 0; i < r->gen.length - n_prompt; i++)
        r->canvas.ids[n_prompt + i] = generated && i < o->gen_length ? generated[i] : mask;
    tsk__memory_delete(r->allocator, before);
    for (i = 0; i < r->gen.length; i++) r->canvas.tokens[i].computed_id = -1;
    r->gen.is_started = 1;
    tsk__request_next_block(r);
    return TSK_OK;
}

/* ---- one pass: plan, take the decision, predict, finish */

/* Whether some visible position has never run: the first block's pass is to fill the cache. */
static int tsk__request_has_gaps(const tsk__request *r) {
    int32_t i;
    for (i = 0; i < r->gen.visible && r->canvas.tokens[i].computed_id >= 0;) i++;
    return i < r->gen.visible;
}

/* Which positions the next pass runs. */
static tsk__pass_kind tsk__request_next_kind(const tsk__request *r) {
    const tsk_generate_options *o = &r->options;
    if (tsk__request_by_blocks(r) && r->n_final < tsk__request_prompt_end(r)) return TSK__PASS_PROMPT;
    if (tsk__request_by_blocks(r)) return tsk__request_masks_left(r) ? TSK__PASS_STEP : TSK__PASS_STORE;
    if (o->cache == TSK_CACHE_NONE) return TSK__PASS_FULL;
    if (r->gen.block_step == 0) {
        int32_t started = r->gen.n_started - 1;
        if (started == 0 || (o->refresh_every && started % o->refresh_every == 0)) return TSK__PASS_FULL;
        if (o->refresh == TSK_REFRESH_NEAR) return TSK__PASS_NEAR;
        if (tsk__request_has_gaps(r)) return TSK__PASS_FULL; /* (a copy of a session with a window) */
    }
    return o->cache == TSK_CACHE_PREFIX ? TSK__PASS_SUFFIX : TSK__PASS_STEP;
}

static int tsk__request_is_refresh(const tsk__request *r) { return r->pass.kind >= TSK__PASS_NEAR; }

/* By blocks: makes K and V final, and is no part of the block's steps. */
static int tsk__request_is_final(const tsk__request *r) {
    return r->pass.kind == TSK__PASS_PROMPT || r->pass.kind == TSK__PASS_STORE;
}

/* How many steps the schedule has for a block. */
static int32_t tsk__request_steps(const tsk__request *r) {
    int32_t steps;
    if (!tsk__request_by_blocks(r)) return r->options.steps / (r->options.gen_length / r->options.block_length);
    if (r->options.steps == TSK_AUTO) return r->options.block_length;
    steps = r->options.steps / r->gen.n_blocks;
    return steps > 1 ? steps : 1;
}

/* This step's share of the block's masks by LLaDA's schedule; beyond the schedule's end, one. */
static int32_t tsk__request_quota(const tsk__request *r) {
    int32_t steps = tsk__request_steps(r);
    if (r->gen.block_step >= steps) return 1;
    return r->gen.block_masks / steps + (r->gen.block_step < r->gen.block_masks % steps);
}

/* Whether `position` has another id now than the one from which its K and V are. */
static int tsk__request_is_changed(const tsk__request *r, int32_t position) {
    return r->canvas.ids[position] != r->canvas.tokens[position].computed_id;
}

/* Whether this step leaves nothing out, whatever the rule. */
static int tsk__request_runs_all(const tsk__request *r) {
    return r->gen.block_step == 0 || r->pass.runs_all ||
           (r->options.skip.full_every > 0 && r->gen.block_step % r->options.skip.full_every == 0);
}

/* The number of the pass in random draws: how a prompt is cut does not change what is drawn. */
static uint32_t tsk__request_draw_pass(const tsk__request *r) {
    return r->gen.pass - (uint32_t)r->gen.result.prompt_passes;
}

/* Whether this pass may commit the position of a slot, if it is predicted. */
static int tsk__request_is_candidate(const tsk__request *r, int32_t slot) {
    return slot >= r->pass.stretch_begin && slot < r->pass.stretch_end && tsk__request_is_masked(r, slot);
}

/* The slots that this pass may commit: of the first small block that holds a mask, or all. */
static void tsk__request_choose_stretch(tsk__request *r) {
    int32_t size = r->options.small_block, first = 0;
    r->pass.stretch_begin = 0;
    r->pass.stretch_end = r->gen.n_positions;
    if (!size) return;
    while (first < r->gen.n_positions && !tsk__request_is_masked(r, first)) first++;
    r->pass.stretch_begin = first / size * size;
    r->pass.stretch_end = r->pass.stretch_begin + size;
}

/* The slot whose row predicts a slot's position: its own, or where logits are shifted the one before. -1: that is no
   row of the block. */
static int32_t tsk__request_predictor(const tsk__request *r, int32_t slot) {
    if (!tsk__request_is_shifted(r) || r->block.positions[slot] == 0) return slot;
    return slot > 0 && r->block.positions[slot - 1] == r->block.positions[slot] - 1 ? slot - 1 : -1;
}

/* Whether a pass has to run the row before a slot's position, outside the block, for it to be predicted. By blocks that
   has been done before the block began. */
static int tsk__request_needs_before(const tsk__request *r, int32_t slot) {
    return !tsk__request_by_blocks(r) && tsk__request_predictor(r, slot) < 0 && tsk__request_is_candidate(r, slot);
}

/* The rule `rows`: what it knows of the block's positions. Returns how many are changed. */
static int32_t tsk__request_rank(const tsk__request *r) {
    int32_t i, n_changed = 0;
    for (i = 0; i < r->gen.n_positions; i++) {
        tsk__skip_slot *slot = &r->block.ranked[i];
        slot->is_masked = tsk__request_is_candidate(r, i);
        slot->is_changed = tsk__request_is_changed(r, r->block.positions[i]);
        slot->confidence = r->options.remasking == TSK_REMASKING_RANDOM
                               ? tsk__random_confidence(r->options.seed, r->block.positions[i],
                                                        tsk__request_draw_pass(r))
                               : r->block.confidences[i];
        n_changed += slot->is_changed;
    }
    return n_changed;
}

/* By force: the rule's with as many masked ones as make up n, then the others in order until there are n. */
static void tsk__request_force_rows(const tsk__request *r, int32_t n_changed) {
    int32_t i, left = r->force_active;
    tsk__skip_rows(r->block.ranked, r->gen.n_positions, left > n_changed ? left - n_changed : 1, 0, r->block.runs);
    for (i = 0; i < r->gen.n_positions; i++) left -= r->block.runs[i];
    for (i = 0; i < r->gen.n_positions && left > 0; i++) {
        left -= !r->block.runs[i];
        r->block.runs[i] = 1;
    }
}

/* Shifted logits: from the masked slots that are to be predicted to the rows that do so. */
static void tsk__request_shift_rows(const tsk__request *r) {
    const tsk__skip_slot *slots = r->block.ranked;
    uint8_t *runs = r->block.runs;
    int32_t i, n = r->gen.n_positions;
    for (i = 0; i < n; i++) r->block.before[i] = r->block.before[i] && runs[i];
    for (i = 0; i < n; i++) {
        int is_own = slots[i].is_masked && runs[i] && tsk__request_predictor(r, i) == i;
        int is_next = i + 1 < n && slots[i + 1].is_masked && runs[i + 1] && tsk__request_predictor(r, i + 1) == i;
        runs[i] = slots[i].is_changed || (runs[i] && !slots[i].is_masked) || is_own || is_next;
    }
}

/* Which of the block's positions a step runs. */
static void tsk__request_choose_rows(const tsk__request *r) {
    const tsk_generate_options *o = &r->options;
    int32_t i, most = r->gen.n_positions, n_changed;
    memset(r->block.runs, 1, (size_t)r->gen.n_positions);
    for (i = 0; i < r->gen.n_positions; i++) r->block.before[i] = (uint8_t)tsk__request_needs_before(r, i);
    if (o->skip.rule != TSK_SKIP_RULE_ROWS || tsk__request_runs_all(r) || !tsk__request_masks_left(r)) return;
    n_changed = tsk__request_rank(r);
    if (r->force_active >= 0) {
        tsk__request_force_rows(r, n_changed);
        if (tsk__request_is_shifted(r)) tsk__request_shift_rows(r);
        return;
    }
    if (o->transfer == TSK_TRANSFER_SCHEDULE && !o->on_select) {
        int32_t quota = tsk__request_quota(r);
        if (quota < 1) quota = 1;
        if (o->skip.rows_margin < most - quota) most = quota + o->skip.rows_margin;
    }
    tsk__skip_rows(r->block.ranked, r->gen.n_positions, most, o->skip.rows_ahead, r->block.runs);
    if (tsk__request_is_shifted(r)) tsk__request_shift_rows(r);
}

/* Which positions a pass of kind NEAR runs, refresh_rows' not counted, in canvas.is_listed; returns how many. */
static int32_t tsk__request_choose_near(const tsk__request *r) {
    int32_t i, n = 0, end = r->block.positions[r->gen.n_positions - 1] + 1;
    for (i = 0; i < r->gen.visible; i++)
        r->canvas.is_listed[i] =
            tsk__request_is_changed(r, i) || (i >= end && i - end < r->options.refresh_near &&
                                              r->canvas.ids[i] == r->config->mask_token_id);
    for (i = 0; i < r->gen.n_positions; i++) {
        r->canvas.is_listed[r->block.positions[i]] = 1;
        if (tsk__request_needs_before(r, i)) r->canvas.is_listed[r->block.positions[i] - 1] = 1;
    }
    for (i = 0; i < r->gen.visible; i++) n += r->canvas.is_listed[i];
    return n;
}

/* Where a step of cache prefix begins. */
static int32_t tsk__request_suffix(const tsk__request *r) {
    return r->block.positions[0] - tsk__request_needs_before(r, 0);
}

/* Whether a step runs a position outside the block because it predicts one of the block's. */
static int tsk__request_is_before(const tsk__request *r, int32_t position) {
    int32_t i;
    for (i = 0; i < r->gen.n_positions; i++)
        if (r->block.before[i] && r->block.positions[i] == position + 1) return 1;
    return 0;
}

/* Chooses the positions of the next pass; returns how many rows it has. Asked again before that pass, it gives the
   same. */
static int32_t tsk__request_choose(tsk__request *r) {
    tsk__request_pass *pass = &r->pass;
    int32_t i, n = 0, outside;
    if (!pass->is_probe) pass->kind = tsk__request_next_kind(r);
    pass->n_further = 0;
    tsk__request_choose_stretch(r);
    if (pass->kind == TSK__PASS_PROMPT) {
        n = tsk__options_piece(&r->options, r->cut.prompt_rows);
        outside = tsk__request_prompt_end(r) - r->n_final;
        return n < outside ? n : outside;
    }
    if (pass->kind == TSK__PASS_FULL) return r->gen.visible;
    if (pass->kind == TSK__PASS_SUFFIX) return r->gen.visible - tsk__request_suffix(r);
    if (pass->kind == TSK__PASS_NEAR) {
        n = tsk__request_choose_near(r);
        outside = r->gen.visible - n;
    } else {
        tsk__request_choose_rows(r);
        outside = r->gen.visible - r->gen.n_positions;
        for (i = 0; i < r->gen.n_positions; i++) {
            n += r->block.runs[i] + r->block.before[i];
            outside -= r->block.before[i];
        }
    }
    pass->n_further = r->options.refresh_rows < outside ? r->options.refresh_rows : outside;
    return n + pass->n_further;
}

/* How fresh a position's K and V are: a pass number plus 1, or 0 (the least) if they were computed from another id than
   the position has now; usually that was a mask. */
static uint32_t tsk__request_freshness(const tsk__request *r, int32_t position) {
    return tsk__request_is_changed(r, position) ? 0 : 1 + r->canvas.computed_passes[position];
}

/* refresh_rows' positions: those whose K and V are the stalest, near the block first. They are no part of the block:
   without a slot they have no states, are never skipped and predict nothing. */
static void tsk__request_choose_further(const tsk__request *r, int32_t *positions) {
    int32_t n = 0, i;
    uint32_t stalest = 0;
    while (n < r->pass.n_further) {
        uint32_t next = UINT32_MAX;
        for (i = r->gen.n_positions; i < r->gen.length && n < r->pass.n_further; i++) {
            int32_t position = r->canvas.nearest[i];
            uint32_t freshness = tsk__request_freshness(r, position);
            if (position >= r->gen.visible) continue;
            if (r->pass.kind == TSK__PASS_NEAR && r->canvas.is_listed[position]) continue;
            if (r->pass.kind == TSK__PASS_STEP && tsk__request_is_before(r, position)) continue;
            if (freshness > stalest && freshness < next) next = freshness;
            if (freshness != stalest) continue;
            positions[n++] = position;
        }
        stalest = next;
    }
}

/* A refresh under skip.refresh has states of its own, of every position of the canvas. (A copy of a session with a
   window may be in a block that does not see all of it.) */
static int tsk__request_skips_refresh(const tsk__request *r) {
    return r->pass.kind == TSK__PASS_FULL && r->n_states && r->options.skip.refresh && r->gen.visible == r->gen.length;
}

/* Whether block steps compare states. */
static int tsk__request_compares(const tsk__request *r) {
    return r->n_states && r->options.skip.rule == TSK_SKIP_RULE_STATES && !tsk__request_is_final(r);
}

/* Rows of the largest pass that the generation may have. */
static int32_t tsk__request_most_rows(const tsk__request *r) {
    int32_t piece = tsk__options_piece(&r->options, 0), prompt = tsk__request_prompt_end(r);
    if (!tsk__request_by_blocks(r)) return r->gen.length;
    if (piece > prompt) piece = prompt;
    return piece > r->options.block_length ? piece : r->options.block_length;
}

/* Whether the pass under way is the last part of the request's forward pass: usually its only one. */
static int tsk__request_completes(const tsk__request *r) { return r->pass.last_layer == r->config->n_layers; }

/* A refresh compares states only if they are kept for later. */
static int tsk__request_keeps_states(const tsk__request *r) {
    if (tsk__request_skips_refresh(r)) return 1;
    return tsk__request_compares(r) && (!tsk__request_is_refresh(r) || r->options.skip.warm_start);
}

/* Adds rows first .. visible-1 of the canvas, of a pass that is NEAR those that are listed. */
static void tsk__request_add_canvas(tsk__request *r, tsk__pass *p, int32_t first) {
    /* Block rows of a refresh have slots only where something of them is kept. */
    int keeps = tsk__request_compares(r) && (r->options.skip.warm_start || r->keeps_outputs);
    int by_position = tsk__request_skips_refresh(r), is_own = !tsk__request_is_shifted(r);
    int32_t i, slot = 0, before = -1; /* the row of the position before */
    for (i = first; i < r->gen.visible; i++) {
        int in_block = slot < r->gen.n_positions && r->block.positions[slot] == i;
        if (r->pass.kind == TSK__PASS_NEAR && !r->canvas.is_listed[i]) {
            before = -1;
            continue;
        }
        if (in_block) {
            r->block.rows[slot] = p->n;
            r->block.sources[slot] = is_own || i == 0 ? p->n : before;
        }
        before = p->n;
        tsk__pass_add_row(p, r->canvas.ids[i], i, by_position ? i : in_block && keeps ? slot : -1);
        slot += in_block;
    }
}

/* Adds the next n rows of the prompt's whole blocks. */
static void tsk__request_add_prompt(tsk__request *r, tsk__pass *p, int32_t n) {
    const int32_t block = r->options.block_length;
    int32_t i;
    for (i = 0; i < r->gen.n_positions; i++) r->block.rows[i] = r->block.sources[i] = -1;
    for (i = r->n_final; i < r->n_final + n; i++) {
        tsk__pass_add_row(p, r->canvas.ids[i], i, -1);
        p->visible[p->n - 1] = (i / block + 1) * block;
    }
}

/* Adds the rows of a step of caches dual and block, or of a storing pass. */
static void tsk__request_add_step(tsk__request *r, tsk__pass *p, const int32_t *further) {
    int32_t i;
    for (i = 0; i < r->gen.n_positions; i++) {
        int32_t position = r->block.positions[i], predictor = tsk__request_predictor(r, i), before = -1;
        if (r->block.before[i]) {
            before = p->n;
            tsk__pass_add_row(p, r->canvas.ids[position - 1], position - 1, -1);
        }
        r->block.rows[i] = r->block.runs[i] ? p->n : -1;
        r->block.sources[i] = predictor < 0 ? before : r->block.rows[predictor];
        if (r->block.runs[i])
            tsk__pass_add_row(p, r->canvas.ids[position], position, tsk__request_compares(r) ? i : -1);
    }
    for (i = 0; i < r->pass.n_further; i++) tsk__pass_add_row(p, r->canvas.ids[further[i]], further[i], -1);
}

/* Adds the request and its rows. */
static void tsk__request_plan_rows(tsk__request *r, tsk__pass *p) {
    int32_t i, n, *further = p->narrowed; /* (free until the layers run) */
    tsk__kv *kv = &p->caches[p->n_requests];
    n = tsk__request_choose(r);
    tsk__request_choose_further(r, further);
    r->pass.first_row = p->n;
    *kv = tsk__cache_view(&r->cache, tsk__request_skips_refresh(r));
    kv->length = r->pass.kind == TSK__PASS_PROMPT ? r->n_final + n : r->gen.visible;
    kv->skip_threshold = r->options.skip.threshold;
    kv->skip_outlier = r->options.skip.outlier;
    kv->has_reference = tsk__request_skips_refresh(r) ? r->gen.has_refresh : r->gen.has_previous;
    p->n_requests++;
    if (r->pass.kind == TSK__PASS_PROMPT) tsk__request_add_prompt(r, p, n);
    else if (r->pass.kind == TSK__PASS_STEP || r->pass.kind == TSK__PASS_STORE) tsk__request_add_step(r, p, further);
    else {
        for (i = 0; i < r->pass.n_further; i++) r->canvas.is_listed[further[i]] = 1;
        tsk__request_add_canvas(r, p, r->pass.kind == TSK__PASS_SUFFIX ? tsk__request_suffix(r) : 0);
    }
    r->pass.n_rows = p->n - r->pass.first_row;
}

/* Which of the model's layers. */
static void tsk__request_plan_layers(tsk__request *r) {
    r->pass.first_layer = r->cut.next_layer;
    r->pass.last_layer = r->config->n_layers;
    if (tsk__request_is_refresh(r) && r->cut.layer_budget &&
        r->pass.last_layer - r->pass.first_layer > r->cut.layer_budget)
        r->pass.last_layer = r->pass.first_layer + r->cut.layer_budget;
    /* The decision needs the cosines of all lower layers, which a pass does not leave to the next. */
    if (r->pass.is_deciding && r->pass.first_layer == 0 && r->pass.last_layer <= r->n_states + 1)
        r->pass.last_layer = r->n_states + 2;
}

/* Whether the token at `position` may skip the upper layers, if its cosines allow. */
static int32_t tsk__request_may_skip(tsk__request *r, int32_t position, int32_t age) {
    tsk__skip_token *token = &r->canvas.tokens[position];
    token->id = r->canvas.ids[position];
    token->is_masked = token->id == r->config->mask_token_id;
    return tsk__skip_is_allowed(&r->options, token, age) ? TSK__ROW_MAY_SKIP : 0;
}

/* Whether rows may be skipped by force: not in a block's first pass, nor in a probe that leaves nothing out, nor where
   the outputs that they would take are missing. */
static int tsk__request_may_force(const tsk__request *r) {
    return r->force_active >= 0 && r->gen.block_step > 0 && !r->pass.runs_all &&
           (r->gen.has_outputs || !r->keeps_outputs);
}

/* Whether a slot's row predicts another's that is masked: what holds for masked tokens holds for it, too. */
static int tsk__request_predicts_mask(const tsk__request *r, int32_t slot) {
    return slot + 1 < r->gen.n_positions && tsk__request_predictor(r, slot + 1) == slot &&
           tsk__request_is_masked(r, slot + 1);
}

static void tsk__request_plan_step_skips(tsk__request *r, tsk__pass *p) {
    int all = tsk__request_runs_all(r);
    int32_t i;
    for (i = 0; i < r->gen.n_positions; i++) {
        int32_t *flags = &p->flags[r->block.rows[i]];
        if (tsk__request_may_force(r)) *flags |= i < r->force_active ? 0 : TSK__ROW_SKIPS;
        else if (!all && (r->options.skip.masked || !tsk__request_predicts_mask(r, i)))
            *flags |= tsk__request_may_skip(r, r->block.positions[i], r->canvas.tokens[r->block.positions[i]].age);
    }
}

/* Positions of the block about to be decoded always run: their predictions are what the refresh is for. */
static void tsk__request_plan_refresh_skips(tsk__request *r, tsk__pass *p) {
    int32_t i, slot = 0, outside = 0;
    for (i = 0; i < r->gen.length; i++) {
        int32_t *flags = &p->flags[r->pass.first_row + i];
        int in_block = slot < r->gen.n_positions && r->block.positions[slot] == i;
        int predicts =
            tsk__request_is_shifted(r) && slot < r->gen.n_positions && r->block.positions[slot] == i + 1;
        if (predicts && !in_block) continue;
        if (!in_block && r->force_refresh >= 0) *flags |= outside < r->force_refresh ? 0 : TSK__ROW_SKIPS;
        else if (!in_block) *flags |= tsk__request_may_skip(r, i, r->canvas.tokens[i].refresh_age);
        slot += in_block;
        outside += !in_block;
    }
}

/* Chooses the rows whose states of this pass become the reference. LAST_STEP: all rows of the block. LAST_COMPUTED, and
   every refresh: the rows that ran all layers. (For a refresh that was cut, its first part told which.) If there was no
   reference before: all rows. */
static void tsk__request_plan_states(const tsk__request *r, tsk__pass *p) {
    int of_those_that_ran =
        tsk__request_is_refresh(r) || (r->gen.has_previous && r->options.skip.reference == TSK_SKIP_LAST_COMPUTED);
    int if_ran = r->pass.is_deciding && of_those_that_ran ? TSK__ROW_IF_RAN : 0;
    int32_t i;
    for (i = 0; tsk__request_skips_refresh(r) && i < r->gen.length; i++)
        if (p->active[r->pass.first_row + i]) p->flags[r->pass.first_row + i] |= TSK__ROW_REMEMBER | if_ran;
    if (tsk__request_skips_refresh(r)) return;
    for (i = 0; i < r->gen.n_positions; i++) p->flags[r->block.rows[i]] |= TSK__ROW_REMEMBER | if_ran;
}

static void tsk__request_plan(tsk__request *r, tsk__pass *p) {
    int32_t i;
    tsk__request_plan_rows(r, p);
    if (tsk__request_is_refresh(r)) r->pass.is_deciding = tsk__request_skips_refresh(r) && r->gen.has_refresh;
    /* (of a block's first pass all rows run: nothing that a skipped one could fall back on is there) */
    else
        r->pass.is_deciding = tsk__request_compares(r) && (r->gen.has_previous || tsk__request_may_force(r));
    tsk__request_plan_layers(r);
    for (i = 0; r->pass.is_deciding && r->cut.next_layer && i < r->pass.n_rows; i++)
        p->active[r->pass.first_row + i] = r->canvas.refresh_active[i];
    if (r->pass.is_deciding && !r->cut.next_layer && tsk__request_is_refresh(r)) tsk__request_plan_refresh_skips(r, p);
    if (r->pass.is_deciding && !tsk__request_is_refresh(r)) tsk__request_plan_step_skips(r, p);
    if (!tsk__request_completes(r)) return;
    if (tsk__request_keeps_states(r)) tsk__request_plan_states(r, p);
    for (i = 0; r->keeps_outputs && !tsk__request_is_final(r) && !tsk__request_skips_refresh(r) &&
                i < r->gen.n_positions;
         i++)
        p->flags[r->block.rows[i]] |= TSK__ROW_OUTPUT;
}

/* The backend's canvas, where the host has changed its own. Until the pass has succeeded, its contents are unknown, so
   is_uploaded stays 0. */
static void tsk__request_upload(tsk__request *r, tsk__pass *p) {
    if (!r->canvas.is_uploaded) tsk__cache_set_canvas(&r->cache, p->stream, r->canvas.ids);
    r->canvas.is_uploaded = 0;
}

/* Takes the backend's decision about this request's rows. */
static void tsk__request_take_decision(tsk__request *r, tsk__pass *p) {
    int32_t i;
    for (i = 0; i < r->pass.n_rows; i++) {
        int32_t row = r->pass.first_row + i;
        if (p->flags[row] & TSK__ROW_DECIDED) p->active[row] = !p->stream->skipped[row];
        if (tsk__request_skips_refresh(r)) r->canvas.refresh_active[i] = (uint8_t)p->active[row];
    }
}

/* Whether the token of a slot ran all layers, as far as the decision is known. */
static int tsk__request_ran(const tsk__request *r, const tsk__pass *p, int32_t slot) {
    return r->block.rows[slot] >= 0 && p->active[r->block.rows[slot]];
}

/* Layers that every row runs of a pass in which some skip the others. */
static uint64_t tsk__request_lower_layers(const tsk__request *r) {
    return (uint64_t)(r->options.skip.layer_k < r->config->n_layers ? r->options.skip.layer_k : r->config->n_layers);
}

/* All layers of a position ran: its K and V come from the id it has. */
static void tsk__request_note_computed(tsk__request *r, int32_t position) {
    r->canvas.tokens[position].computed_id = r->canvas.ids[position];
    r->canvas.computed_passes[position] = r->gen.pass;
}

/* How long tokens have been skipped: the canvas in refreshes, the block in steps. */
static void tsk__request_note_ages(tsk__request *r) {
    int32_t i;
    for (i = 0; i < r->gen.n_positions && !tsk__request_is_final(r); i++) {
        tsk__skip_token *token = &r->canvas.tokens[r->block.positions[i]];
        token->age = tsk__request_is_refresh(r) || r->block.active[i] ? 0 : token->age + 1;
    }
    if (!tsk__request_skips_refresh(r)) return;
    for (i = 0; i < r->gen.length; i++) {
        tsk__skip_token *token = &r->canvas.tokens[i];
        token->refresh_age = r->canvas.refresh_active[i] ? 0 : token->refresh_age + 1;
    }
    r->gen.has_refresh = 1;
}

/* After the layers: which rows ran all of them, so that K and V there come from the ids that the positions have. */
static void tsk__request_note_active(tsk__request *r, const tsk__pass *p) {
    int32_t i, row;
    r->pass.n_ran = 0;
    for (row = r->pass.first_row; row < r->pass.first_row + r->pass.n_rows; row++) {
        r->pass.n_ran += p->active[row] != 0;
        if (p->active[row]) tsk__request_note_computed(r, p->positions[row]);
        if (tsk__request_skips_refresh(r)) r->canvas.refresh_active[row - r->pass.first_row] = p->active[row] != 0;
    }
    for (i = 0; i < r->gen.n_positions; i++) r->block.active[i] = (uint8_t)tsk__request_ran(r, p, i);
    tsk__request_note_ages(r);
}

/* A refresh under skip.refresh numbers states by position: what the block's steps need of it is copied to their
   slots. */
static void tsk__request_keep_refresh(tsk__request *r, const tsk__pass *p) {
    int32_t i, state;
    if (!tsk__request_skips_refresh(r)) return;
    for (i = 0; i < r->gen.n_positions; i++) {
        int32_t position = r->block.positions[i];
        for (state = 0; tsk__request_compares(r) && r->options.skip.warm_start && state < r->n_states; state++)
            tsk__cache_adopt_state(&r->cache, p->stream, i, position, state);
        if (r->keeps_outputs) tsk__cache_adopt_output(&r->cache, p->stream, i, r->block.rows[i]);
    }
}

/* A masked token whose prediction is up to a stable one keeps its last prediction under `reuse`, if it has one, unless
   this step draws anew. */
static int tsk__request_reuses(const tsk__request *r, const tsk__pass *p, int32_t slot) {
    return !p->active[r->block.sources[slot]] && r->options.skip.policy == TSK_SKIP_REUSE &&
           r->options.temperature == 0 && r->block.is_predicted[slot];
}

/* Shifted logits: the last row of a pass that makes K and V final predicts the next block's first position, which is
   filled at once, with the most probable token. */
static void tsk__request_add_next(tsk__request *r, tsk__pass *p) {
    tsk__commit_candidate *candidate = &p->candidates[p->n_candidates];
    int32_t row = r->pass.first_row + r->pass.n_rows - 1, next = p->positions[row] + 1;
    int is_last = r->pass.kind == TSK__PASS_STORE || next == tsk__request_prompt_end(r);
    tsk__draw draw;
    r->pass.next_position = -1;
    r->pass.first_candidate = p->n_candidates;
    r->pass.n_candidates = 0;
    if (!tsk__request_is_shifted(r) || !is_last || next >= r->gen.length ||
        r->canvas.ids[next] != r->config->mask_token_id)
        return;
    memset(&draw, 0, sizeof draw);
    draw.mask_token_id = r->config->mask_token_id;
    draw.position = (uint32_t)next;
    candidate->position = next;
    candidate->slot = 0;
    candidate->head = p->n_head;
    tsk__pass_add_head(p, row, &draw);
    p->n_candidates++;
    r->pass.n_candidates = 1;
    r->pass.next_position = next;
}

/* Candidates are the block's masked positions whose prediction the pass has not left out; the head predicts them from
   rows that ran. */
static void tsk__request_add_candidates(tsk__request *r, tsk__pass *p) {
    tsk__draw draw;
    int32_t i;
    r->pass.next_position = -1;
    draw.temperature = r->options.temperature;
    draw.mask_token_id = r->config->mask_token_id;
    draw.seed = r->options.seed;
    draw.pass = tsk__request_draw_pass(r);
    r->pass.first_candidate = p->n_candidates;
    for (i = 0; i < r->gen.n_positions; i++) {
        tsk__commit_candidate *candidate = &p->candidates[p->n_candidates];
        int32_t row = r->block.sources[i];
        if (!tsk__request_is_candidate(r, i) || row < 0) continue;
        candidate->position = r->block.positions[i];
        candidate->slot = i;
        candidate->head = tsk__request_reuses(r, p, i) ? -1 : p->n_head;
        r->block.is_predicted[i] = 1;
        p->n_candidates++;
        draw.position = (uint32_t)r->block.positions[i];
        if (candidate->head >= 0) tsk__pass_add_head(p, row, &draw);
    }
    r->pass.n_candidates = p->n_candidates - r->pass.first_candidate;
}

/* The rule by which the backend commits candidates; a user's own is followed on the host. */
static void tsk__request_add_rule(const tsk__request *r, int32_t number, tsk__pass *p) {
    const tsk_generate_options *o = &r->options;
    tsk__commit_rule *rule = &p->rules[p->n_rules++];
    memset(rule, 0, sizeof *rule);
    rule->request = number;
    rule->first = r->pass.first_candidate;
    rule->n = r->pass.n_candidates;
    rule->commits = !r->pass.is_probe && !o->on_select;
    rule->transfer = (int32_t)o->transfer;
    rule->quota = tsk__request_quota(r);
    rule->threshold = o->threshold;
    rule->factor = o->factor;
    rule->is_random = o->remasking == TSK_REMASKING_RANDOM;
    rule->seed = o->seed;
    rule->pass = tsk__request_draw_pass(r);
    if (!tsk__request_is_final(r)) return;
    rule->commits = 1;
    rule->transfer = TSK_TRANSFER_SCHEDULE;
    rule->quota = 1;
    rule->is_random = 0;
}

/* Whether a candidate's choice can be one: its logits are numbers, its id is of the vocabulary and not the mask. */
static tsk_status tsk__request_check_choice(const tsk__request *r, int32_t position, const tsk__choice *choice,
                                            tsk_error *error) {
    if (!(fabsf(choice->log_sum_exp) <= FLT_MAX))
        return tsk__error_set(error, TSK_ERROR_NUMERIC, NULL, TSK_NO_OFFSET,
                              "pass %u: the logits of position %d are no numbers (their log-sum-exp is %s)",
                              (unsigned)r->gen.pass, (int)position,
                              choice->log_sum_exp != choice->log_sum_exp ? "NaN"
                              : choice->log_sum_exp > 0                  ? "infinite"
                                                                         : "minus infinity");
    if (choice->id < 0 || choice->id >= r->config->embedding_size || choice->id == r->config->mask_token_id)
        return tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET,
                              "pass %u: the device predicts id %d for position %d, which cannot be",
                              (unsigned)r->gen.pass, (int)choice->id, (int)position);
    return TSK_OK;
}

/* A probe may look at anything. Of a generation's passes each commits a token: that is why it ends, and how many passes
   there is room to count. */
static tsk_status tsk__request_check_choices(const tsk__request *r, const tsk__pass *p, tsk_error *error) {
    int32_t i, n_committed = 0;
    for (i = r->pass.first_candidate; i < r->pass.first_candidate + r->pass.n_candidates; i++) {
        tsk_status status = tsk__request_check_choice(r, p->candidates[i].position, &p->stream->choices[i], error);
        if (status != TSK_OK) return status;
        n_committed += p->stream->choices[i].is_committed != 0;
    }
    if (!n_committed && (tsk__request_is_final(r) ? r->pass.n_candidates > 0 : !r->options.on_select))
        return tsk__error_set(error, TSK_ERROR_DEVICE, NULL, TSK_NO_OFFSET,
                              "pass %u: the device commits none of %d predictions", (unsigned)r->gen.pass,
                              (int)r->pass.n_candidates);
    return TSK_OK;
}

/* What the pass predicts for the block. Masked positions that it left out keep their last prediction. */
static void tsk__request_take_predictions(tsk__request *r, const tsk__pass *p) {
    int32_t i;
    for (i = r->pass.first_candidate; i < r->pass.first_candidate + r->pass.n_candidates; i++) {
        r->block.predictions[p->candidates[i].slot] = p->stream->choices[i].id;
        r->block.confidences[p->candidates[i].slot] = p->stream->choices[i].confidence;
    }
}

/* The same, and what the backend has committed of it. */
static void tsk__request_take_choices(tsk__request *r, const tsk__pass *p) {
    int32_t i;
    for (i = 0; i < r->gen.n_positions; i++) {
        r->block.committed[i] = 0;
        if (tsk__request_is_masked(r, i)) continue;
        r->block.predictions[i] = r->canvas.ids[r->block.positions[i]];
        r->block.confidences[i] = 1.0f;
    }
    if (tsk__request_is_final(r)) {
        if (r->pass.n_candidates) r->canvas.ids[r->pass.next_position] = p->stream->choices[r->pass.first_candidate].id;
        return;
    }
    tsk__request_take_predictions(r, p);
    for (i = r->pass.first_candidate; i < r->pass.first_candidate + r->pass.n_candidates; i++) {
        const tsk__choice *choice = &p->stream->choices[i];
        int32_t slot = p->candidates[i].slot;
        r->block.committed[slot] = choice->is_committed != 0;
        if (choice->is_committed) r->canvas.ids[r->block.positions[slot]] = choice->id;
    }
}

/* Commits by the user's own rule. One that chooses nothing falls back to the best candidate: a schedule of one. */
static void tsk__request_commit(tsk__request *r, const tsk__pass *p) {
    const tsk_generate_options *o = &r->options;
    const tsk__commit_candidate *candidates = p->candidates + r->pass.first_candidate;
    const tsk__choice *choices = p->stream->choices + r->pass.first_candidate;
    tsk_transfer_rule best;
    tsk_selection selection;
    int32_t i, n = r->pass.n_candidates, chosen = 0;
    for (i = 0; i < n; i++) {
        r->block.candidates[i].position = candidates[i].position;
        r->block.candidates[i].id = choices[i].id;
        r->block.candidates[i].confidence = choices[i].confidence;
        r->block.candidates[i].entropy = -1;
        r->block.candidate_commits[i] = 0;
    }
    memset(&selection, 0, sizeof selection);
    selection.pass = (int32_t)r->gen.pass;
    selection.block = r->gen.block;
    selection.block_step = r->gen.block_step;
    selection.quota = tsk__request_quota(r);
    selection.n = n;
    selection.candidates = r->block.candidates;
    selection.commit = r->block.candidate_commits;
    o->on_select(o->user, &selection);
    for (i = 0; i < n; i++) chosen += r->block.candidate_commits[i] != 0;
    memset(&best, 0, sizeof best);
    best.transfer = TSK_TRANSFER_SCHEDULE;
    best.quota = 1;
    if (!chosen) tsk_select(&best, n, r->block.candidates, r->block.candidate_commits);
    for (i = 0; i < n; i++) {
        if (!r->block.candidate_commits[i]) continue;
        r->block.committed[candidates[i].slot] = 1;
        r->canvas.ids[candidates[i].position] = choices[i].id;
    }
    r->canvas.is_uploaded = 0;
}

/* Refreshes count their token-layers where they leave some out, or may. */
static void tsk__request_count_refresh(tsk__request *r, double ms) {
    tsk_result *result = &r->gen.result;
    uint64_t layers = (uint64_t)r->config->n_layers, length = (uint64_t)r->gen.length, lower = 0, all = 0;
    result->refresh_ms += ms;
    result->refreshes++;
    if (!r->options.skip.refresh && r->options.refresh == TSK_REFRESH_FULL && !r->options.refresh_window) return;
    if (r->options.skip.refresh) lower = tsk__request_lower_layers(r), all = length;
    result->refresh_token_layers_total += length * layers;
    result->refresh_token_layers_computed += all * lower + (uint64_t)r->pass.n_ran * (layers - lower);
}

/* By states every token of the block runs the lower layers. */
static void tsk__request_count_step(tsk__request *r, double ms) {
    tsk_result *result = &r->gen.result;
    uint64_t rows = (uint64_t)r->gen.n_positions, layers = (uint64_t)r->config->n_layers;
    uint64_t lower = r->options.skip.rule == TSK_SKIP_RULE_STATES ? tsk__request_lower_layers(r) : 0;
    int32_t i, n_active = 0, n_stable_masked = 0;
    result->block_step_ms += ms;
    result->block_steps++;
    if (r->pass.kind != TSK__PASS_STEP) return;
    for (i = 0; i < r->gen.n_positions; i++) {
        n_active += r->block.active[i];
        n_stable_masked += !r->block.active[i] && (tsk__request_is_masked(r, i) || r->block.committed[i]);
    }
    r->counts.active[result->n_block_steps] = n_active;
    r->counts.stable_masked[result->n_block_steps++] = n_stable_masked;
    result->token_layers_total += rows * layers;
    result->token_layers_computed += rows * lower + (uint64_t)n_active * (layers - lower);
}

static void tsk__request_count_final(tsk__request *r, double ms) {
    tsk_result *result = &r->gen.result;
    int is_prompt = r->pass.kind == TSK__PASS_PROMPT;
    *(is_prompt ? &result->prompt_passes : &result->storing_passes) += 1;
    *(is_prompt ? &result->prompt_ms : &result->storing_ms) += ms;
}

static void tsk__request_count(tsk__request *r, double ms) {
    tsk_result *result = &r->gen.result;
    result->nfe++;
    result->total_ms += ms;
    result->rows += (uint64_t)r->pass.n_ran;
    result->refreshed_rows += (uint64_t)r->pass.n_further;
    r->counts.blocks[r->gen.block].nfe += r->pass.kind != TSK__PASS_PROMPT;
    if (tsk__request_is_final(r)) tsk__request_count_final(r, ms);
    else if (tsk__request_is_refresh(r)) tsk__request_count_refresh(r, ms);
    else tsk__request_count_step(r, ms);
}

static void tsk__request_cancel(tsk__request *r) {
    r->gen.result.finish_reason = TSK_FINISH_CANCELLED;
    r->gen.is_finished = 1;
}

/* Whether the pass has compared the block's states with earlier ones. */
static int tsk__request_has_cosines(const tsk__request *r) {
    return tsk__request_compares(r) && !tsk__request_is_refresh(r) && r->gen.has_previous;
}

/* Generated tokens before the first that is masked or ends the text. */
static int32_t tsk__request_final(const tsk__request *r) {
    const int32_t *tokens = r->canvas.ids + r->gen.n_prompt;
    int32_t n = 0;
    while (n < r->options.gen_length && tokens[n] != r->config->mask_token_id && !tsk__request_ends(r, tokens[n])) n++;
    return n;
}

/* Tells the step callback; nonzero when it wants to end. */
static int tsk__request_report(tsk__request *r, int32_t masks_left) {
    tsk_step step;
    int32_t i;
    if (!r->options.on_step) return 0;
    memset(&step, 0, sizeof step);
    step.pass = (int32_t)r->gen.pass;
    step.block = r->gen.block;
    step.block_step = r->gen.block_step;
    step.is_refresh = tsk__request_is_refresh(r);
    step.is_prompt = r->pass.kind == TSK__PASS_PROMPT;
    step.is_storing = r->pass.kind == TSK__PASS_STORE;
    step.next_committed = r->pass.next_position;
    step.n_rows = r->pass.n_ran;
    step.n_positions = r->gen.n_positions;
    step.positions = r->block.positions;
    step.predictions = r->block.predictions;
    step.confidences = r->block.confidences;
    step.committed = r->block.committed;
    step.active = r->block.active;
    for (i = 0; i < r->gen.n_positions; i++) {
        step.n_active += r->block.active[i];
        if (!step.is_prompt)
            step.n_stable_masked += !r->block.active[i] && (tsk__request_is_masked(r, i) || r->block.committed[i]);
    }
    step.masks_left = masks_left;
    step.canvas_length = r->gen.length;
    step.prompt_length = r->gen.n_prompt;
    step.canvas = r->canvas.ids;
    step.mask_token_id = r->config->mask_token_id;
    step.n_final = tsk__request_final(r);
    step.n_cosines = tsk__request_has_cosines(r) ? r->n_states : 0;
    step.cosines = step.n_cosines ? r->block.cosines : NULL;
    return r->options.on_step(r->options.user, &step);
}

/* The stream's cosines belong to the next pass: the step callback gets a copy. */
static void tsk__request_take_cosines(tsk__request *r, const tsk__pass *p) {
    int32_t i, state;
    if (!tsk__request_has_cosines(r)) return;
    for (i = 0; i < r->gen.n_positions; i++)
        for (state = 0; state < r->n_states; state++)
            r->block.cosines[(size_t)i * (size_t)r->n_states + (size_t)state] =
                p->stream->cosines[(size_t)state * (size_t)p->max_rows + (size_t)r->block.rows[i]];
}

/* After a pass. A block step always leaves states to compare with; a refresh does so with skip.warm_start only. A piece
   of the prompt is no pass of the block. */
static void tsk__request_move_on(tsk__request *r) {
    if (r->pass.kind == TSK__PASS_PROMPT) {
        r->gen.pass++;
        return;
    }
    if (tsk__request_compares(r) && (!tsk__request_is_refresh(r) || r->options.skip.warm_start))
        r->gen.has_previous = 1;
    r->gen.has_outputs = r->keeps_outputs;
    r->gen.pass++;
    r->gen.block_step++;
}

/* Behind a pass that took part in the generation: to the next block, or the end, where this block holds no mask any
   more. */
static void tsk__request_advance(tsk__request *r, int32_t masks_left) {
    int is_prompt = r->pass.kind == TSK__PASS_PROMPT, is_stored = r->pass.kind == TSK__PASS_STORE;
    tsk__request_move_on(r);
    if (is_prompt) r->n_final += r->pass.n_rows;
    if (is_stored) r->n_final = r->gen.visible;
    if (is_prompt ? r->n_final < tsk__request_prompt_end(r) : masks_left) return;
    if (!is_prompt && !is_stored && tsk__request_hit_end(r)) {
        tsk__request_end_early(r);
        return;
    }
    if (!is_prompt && !is_stored && tsk__request_must_store(r)) return;
    r->gen.block += !is_prompt;
    tsk__request_next_block(r); /* (after the prompt: the same, in which its first position may be filled now) */
}

/* Takes note of a pass that has ended well. What it predicts may end the generation with an error of its own. */
static void tsk__request_finish(tsk__request *r, const tsk__pass *p, double ms) {
    int32_t masks_left;
    int stop;
    if (tsk__request_check_choices(r, p, &r->failure) != TSK_OK) {
        r->gen.is_finished = 1;
        return;
    }
    tsk__request_take_choices(r, p);
    if (r->options.on_select && !tsk__request_is_final(r)) tsk__request_commit(r, p);
    tsk__request_count(r, ms);
    masks_left = tsk__request_masks_left(r);
    r->counts.blocks[r->gen.block].mask_residual = masks_left;
    r->is_reporting = 1;
    stop = tsk__request_report(r, masks_left);
    r->is_reporting = 0;
    tsk__request_advance(r, masks_left);
    if (stop && !r->gen.is_finished) tsk__request_cancel(r);
}

/* Restores the residual stream of requests whose refresh was cut by layers and goes on in this pass. */
static void tsk__requests_resume(tsk__request *const *requests, int32_t n, tsk__pass *p) {
    int32_t i;
    for (i = 0; i < n; i++)
        if (requests[i]->pass.first_layer > 0)
            tsk__cache_load_residual(&requests[i]->cache, p->stream, requests[i]->pass.first_row,
                                     requests[i]->pass.n_rows);
}

/* Saves the residual stream of requests whose refresh is cut by layers and goes on in the next pass. */
static void tsk__requests_suspend(tsk__request *const *requests, int32_t n, tsk__pass *p) {
    int32_t i;
    for (i = 0; i < n; i++)
        if (!tsk__request_completes(requests[i]))
            tsk__cache_save_residual(&requests[i]->cache, p->stream, requests[i]->pass.first_row,
                                     requests[i]->pass.n_rows);
}

/* Whether a request's rows change at `layer`: they come, go, or are decided about. */
static int tsk__request_changes_at(const tsk__request *r, int32_t layer) {
    int may_decide =
        r->pass.is_deciding || (tsk__request_keeps_states(r) && tsk__backend_wants_same_sections(r->backend));
    return layer == r->pass.first_layer || layer == r->pass.last_layer || (may_decide && layer == r->n_states + 1);
}

static int32_t tsk__requests_next_change(tsk__request *const *requests, int32_t n, int32_t layer, int32_t n_layers) {
    int32_t i;
    for (layer++; layer < n_layers; layer++)
        for (i = 0; i < n; i++)
            if (tsk__request_changes_at(requests[i], layer)) return layer;
    return n_layers;
}

/* Whether the request is decided about, and where: at the end of its lower layers. */
static int tsk__request_decides_at(const tsk__request *r, int32_t layer) {
    return r->pass.is_deciding && layer == r->n_states + 1 && layer >= r->pass.first_layer &&
           layer < r->pass.last_layer;
}

/* Waits for the decision about the requests whose K is `layer`. */
static tsk_status tsk__requests_decide(tsk__request *const *requests, int32_t n, tsk__pass *p, int32_t layer,
                                       tsk_error *error) {
    tsk_status status = TSK_OK;
    int32_t i;
    int waited = 0;
    for (i = 0; i < n && status == TSK_OK; i++) {
        if (!tsk__request_decides_at(requests[i], layer)) continue;
        if (!waited++) status = p->backend->ops->wait(p->stream, error);
        if (status == TSK_OK) tsk__request_take_decision(requests[i], p);
    }
    return status;
}

/* Whether the backend can carry out the decision alone: all that changes is which rows run above K, and the backend
   masks rows. */
static int tsk__requests_are_masked_by_backend(tsk__request *const *requests, int32_t n, const tsk__pass *p) {
    int32_t i;
    if (!tsk__backend_masks(p->backend, p->n) || tsk__trace_on(p->tracer)) return 0;
    for (i = 0; i < n; i++)
        if (requests[i]->pass.first_layer != 0 || !tsk__request_completes(requests[i])) return 0;
    return 1;
}

/* Whether the host can wait for the decision until the pass has ended. It can if some row runs whatever is decided, and
   if every row whose prediction is wanted runs. */
static int tsk__requests_can_decide_late(tsk__request *const *requests, int32_t n, const tsk__pass *p) {
    int32_t i, row, certain = 0;
    for (i = 0; i < n; i++) {
        const tsk__request *r = requests[i];
        if (!r->pass.is_deciding) continue;
        if (tsk__request_is_refresh(r) || r->options.skip.masked || r->force_active >= 0) return 0;
    }
    for (row = 0; row < p->n && !certain; row++) certain = !(p->flags[row] & TSK__ROW_DECIDED);
    return p->masks_itself && certain;
}

/* Narrows the pass to the rows that have work at `layer`; returns how many. */
static int32_t tsk__requests_narrow(tsk__request *const *requests, int32_t n, tsk__pass *p, int32_t layer) {
    int32_t i, row;
    for (i = 0; i < n; i++) {
        const tsk__request *r = requests[i];
        int here = layer >= r->pass.first_layer && layer < r->pass.last_layer;
        for (row = r->pass.first_row; row < r->pass.first_row + r->pass.n_rows; row++)
            p->running[row] = here && p->active[row];
    }
    return tsk__pass_narrow(p);
}

/* Plans the pass of n requests; returns the largest number of states that one of them compares. */
static int32_t tsk__requests_plan(tsk__request *const *requests, int32_t n, tsk__pass *p) {
    int32_t i, n_states = 0;
    tsk__pass_reset(p);
    for (i = 0; i < n; i++) {
        tsk__request_plan(requests[i], p);
        tsk__request_upload(requests[i], p);
        if (tsk__request_keeps_states(requests[i]) && requests[i]->n_states > n_states)
            n_states = requests[i]->n_states;
    }
    return n_states;
}

/* What follows the layers, of the requests that have run all of them. */
static void tsk__requests_predict(tsk__request *const *requests, int32_t n, tsk__pass *p) {
    int32_t i, row, n_kept = 0;
    for (row = 0; row < p->n; row++) n_kept += (p->flags[row] & (TSK__ROW_REMEMBER | TSK__ROW_OUTPUT)) != 0;
    for (i = 0; i < n; i++)
        if (tsk__request_completes(requests[i])) tsk__request_keep_refresh(requests[i], p);
    if (n_kept) p->backend->ops->keep(p->stream);
    for (i = 0; i < n; i++) {
        if (!tsk__request_completes(requests[i])) continue;
        if (tsk__request_is_final(requests[i])) tsk__request_add_next(requests[i], p);
        else tsk__request_add_candidates(requests[i], p);
        tsk__request_add_rule(requests[i], i, p);
    }
    tsk__forward_head(p);
}

/* One forward pass for n requests, none of them finished; choices and cosines are there after it. */
static tsk_status tsk__requests_forward(tsk__request *const *requests, int32_t n, tsk__pass *p, tsk_error *error) {
    int32_t i, layer, next, n_states = tsk__requests_plan(requests, n, p), n_layers = p->backend->config->n_layers;
    int decides_late;
    tsk_status status = TSK_OK;
    if (p->tracer) p->tracer->pass = (int32_t)requests[0]->gen.pass;
    tsk__pass_begin(p);
    p->masks_itself = tsk__requests_are_masked_by_backend(requests, n, p);
    decides_late = tsk__requests_can_decide_late(requests, n, p);
    tsk__requests_resume(requests, n, p);
    for (layer = 0; layer < n_layers; layer = next) {
        next = tsk__requests_next_change(requests, n, layer, n_layers);
        if (!decides_late) status = tsk__requests_decide(requests, n, p, layer, error);
        if (status != TSK_OK) return status;
        if (tsk__requests_narrow(requests, n, p, layer)) tsk__forward_layers(p, layer, next, n_states);
    }
    tsk__pass_widen(p);
    tsk__requests_suspend(requests, n, p);
    tsk__requests_predict(requests, n, p);
    status = p->backend->ops->wait(p->stream, error);
    if (status == TSK_OK && p->tracer && p->tracer->status != TSK_OK) status = tsk__error_memory(error, "tracing", 0);
    for (i = 0; i < n && status == TSK_OK; i++) {
        requests[i]->canvas.is_uploaded = 1;
        if (decides_late && requests[i]->pass.is_deciding) tsk__request_take_decision(requests[i], p);
        if (tsk__request_completes(requests[i])) tsk__request_note_active(requests[i], p);
        tsk__request_take_cosines(requests[i], p);
    }
    return status;
}

static tsk_status tsk__requests_pass(tsk__request *const *requests, int32_t n, tsk__pass *p, tsk_error *error) {
    double start = tsk__time_ms();
    int32_t i;
    tsk_status status = tsk__requests_forward(requests, n, p, error);
    for (i = 0; i < n && status == TSK_OK; i++) {
        tsk__request *r = requests[i];
        r->cut.pending_ms += tsk__time_ms() - start;
        r->cut.next_layer = tsk__request_completes(r) ? 0 : r->pass.last_layer;
        if (r->cut.next_layer) continue;
        tsk__request_finish(r, p, r->cut.pending_ms);
        r->cut.pending_ms = 0;
    }
    return status;
}

static void tsk__request_result(const tsk__request *r, tsk_result *result) {
    int32_t i;
    memset(result, 0, sizeof *result);
    if (!r->gen.is_started) return;
    *result = r->gen.result;
    result->mask_residual =
        tsk__count_masks(r->canvas.ids, r->gen.n_prompt + result->n_tokens, r->config->mask_token_id);
    for (i = 0; i < result->n_tokens && !tsk__request_ends(r, result->tokens[i]); i++) {
    }
    result->n_before_end = i;
}

// >>session ===========================================================================================================
/* A session is one request with a pass of its own. */

struct tsk_session {
    tsk_model *model;
    tsk__request request;
    tsk__pass pass;
    int32_t pass_states;           /* that its stream has room for */
    int32_t n_probed;              /* rows of the last call, if it was a probe: the stream still holds them */
    tsk__tracer tracer;
};

void tsk_generate_options_resolve(const tsk_model *model, tsk_generate_options *options) {
    if (model && options) tsk__options_resolve(options, &model->config, model->tokenizer);
}

tsk_status tsk_session_create(tsk_model *model, const tsk_generate_options *options, tsk_session **out,
                              tsk_error *error) {
    tsk_generate_options resolved = options ? *options : tsk_generate_options_default();
    tsk_session *session;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_session_create", "out");
    *out = NULL;
    if (!model) return tsk__error_null(error, "tsk_session_create", "model");
    tsk__options_resolve(&resolved, &model->config, model->tokenizer);
    status = tsk__options_check(&resolved, &model->config, error);
    if (status != TSK_OK) return status;
    session = (tsk_session *)tsk__memory_new_zeroed(model->allocator, 1, sizeof *session);
    if (!session) return tsk__error_memory(error, "a session", sizeof *session);
    session->model = model;
    session->tracer.allocator = model->allocator;
    session->request.config = &model->config;
    session->request.backend = model->backend;
    session->request.allocator = model->allocator;
    session->request.options = resolved;
    session->request.cache.backend = model->backend;
    session->request.force_active = session->request.force_refresh = TSK_AUTO;
    session->request.gen.is_finished = 1;
    *out = session;
    return TSK_OK;
}

void tsk_session_free(tsk_session *session) {
    if (!session) return;
    tsk__trace_free(&session->tracer);
    tsk__memory_delete(session->model->allocator, session->tracer.pattern);
    tsk__request_free(&session->request);
    tsk__pass_free(&session->pass);
    tsk__memory_delete(session->model->allocator, session);
}

/* A pass with room for `rows` rows. Streams only grow: one session's prompts differ in length. */
static tsk_status tsk__session_room(tsk_session *session, int32_t rows, int32_t n_states, tsk_error *error) {
    tsk_status status = TSK_OK;
    if (session->pass.max_rows < rows || session->pass_states < n_states) {
        tsk__trace_free(&session->tracer);
        tsk__pass_free(&session->pass);
        status = tsk__pass_create(&session->pass, session->model->backend, session->model->allocator, rows, 1, n_states,
                                  error);
        session->pass_states = n_states;
    }
    session->pass.tracer = session->tracer.options.on_record ? &session->tracer : NULL;
    session->tracer.status = TSK_OK;
    if (status == TSK_OK && session->pass.tracer)
        status = tsk__trace_attach(&session->tracer, session->pass.stream, error);
    return status;
}

/* Refuses a call from a callback of the session's own pass. */
static tsk_status tsk__request_check_outside(const tsk__request *r, const char *function, tsk_error *error) {
    if (!r->is_running) return TSK_OK;
    return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                          "%s of a session from a callback of its own pass", function);
}

/* A generation that an error has ended stays ended: its error is given again. */
static tsk_status tsk__request_check_runs(const tsk__request *r, const char *function, tsk_error *error) {
    if (!r->gen.is_started)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "%s before tsk_session_start", function);
    if (r->failure.status != TSK_OK)
        return tsk__error_set(error, r->failure.status, NULL, TSK_NO_OFFSET, "%s", r->failure.message);
    return TSK_OK;
}

/* A session's own pass: what stops it ends the generation. */
static tsk_status tsk__session_forward(tsk_session *session,
                                       tsk_status (*run)(tsk__request *const *requests, int32_t n, tsk__pass *p,
                                                         tsk_error *error),
                                       tsk_error *error) {
    tsk__request *r = &session->request;
    tsk_status status;
    r->is_running = 1;
    status = run(&r, 1, &session->pass, &r->failure);
    r->is_running = 0;
    if (status != TSK_OK) r->failure.status = status;
    if (r->failure.status != TSK_OK) r->gen.is_finished = 1;
    return tsk__request_check_runs(r, "a pass", error);
}

tsk_status tsk_session_start(tsk_session *session, const int32_t *prompt, int32_t n_prompt, const int32_t *generated,
                             tsk_error *error) {
    tsk__request *r;
    tsk_status status;
    if (!session) return tsk__error_null(error, "tsk_session_start", "session");
    r = &session->request;
    status = tsk__request_check_outside(r, "tsk_session_start", error);
    if (status != TSK_OK) return status;
    session->n_probed = 0;
    status = tsk__request_start(r, prompt, n_prompt, generated, session->pass.stream, error);
    if (status == TSK_OK) status = tsk__session_room(session, tsk__request_most_rows(r), r->n_states, error);
    if (status != TSK_OK) r->gen.is_started = 0;
    return status;
}

/* Asks the host, whose callback may not use the session. */
static int tsk__session_is_cancelled(tsk__request *r) {
    int answer;
    if (!r->options.cancel) return 0;
    r->is_running = 1;
    answer = r->options.cancel(r->options.user);
    r->is_running = 0;
    return answer;
}

tsk_status tsk_session_step(tsk_session *session, int *finished, tsk_error *error) {
    tsk__request *r;
    tsk_status status;
    if (!session) return tsk__error_null(error, "tsk_session_step", "session");
    if (!finished) return tsk__error_null(error, "tsk_session_step", "finished");
    r = &session->request;
    status = tsk__request_check_outside(r, "tsk_session_step", error);
    if (status == TSK_OK) status = tsk__request_check_runs(r, "tsk_session_step", error);
    if (status != TSK_OK) return status;
    session->n_probed = 0;
    if (!r->gen.is_finished && tsk__session_is_cancelled(r)) tsk__request_cancel(r);
    if (!r->gen.is_finished) status = tsk__session_forward(session, tsk__requests_pass, error);
    *finished = r->gen.is_finished;
    return status;
}

void tsk_session_result(const tsk_session *session, tsk_result *result) {
    if (!result) return;
    if (session) tsk__request_result(&session->request, result);
    else memset(result, 0, sizeof *result);
}

tsk_status tsk_generate(tsk_session *session, const int32_t *prompt, int32_t n_prompt, const int32_t *generated,
                        tsk_result *result, tsk_error *error) {
    int finished = 0;
    tsk_status status;
    if (!result) return tsk__error_null(error, "tsk_generate", "result");
    status = tsk_session_start(session, prompt, n_prompt, generated, error);
    while (status == TSK_OK && !finished) status = tsk_session_step(session, &finished, error);
    if (status == TSK_OK) tsk_session_result(session, result);
    return status;
}

/* ---- looking at a pass without taking it */

/* How the two sessions must agree for a copy of one to be a state of the other. */
static tsk_status tsk__session_check_copy(const tsk_session *to, const tsk_session *from, tsk_error *error) {
    const tsk_generate_options *a, *b;
    if (!to) return tsk__error_null(error, "tsk_session_copy", "to");
    if (!from) return tsk__error_null(error, "tsk_session_copy", "from");
    if (to->model != from->model)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "the sessions are of different models");
    a = &to->request.options;
    b = &from->request.options;
    if (a->gen_length != b->gen_length || a->block_length != b->block_length)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "the sessions differ in gen_length or block_length");
    if (to != from && to->request.is_running)
        return tsk__request_check_outside(&to->request, "tsk_session_copy into", error);
    if (!from->request.is_reporting && from->request.is_running)
        return tsk__request_check_outside(&from->request, "tsk_session_copy", error);
    return tsk__request_check_runs(&from->request, "tsk_session_copy", error);
}

/* A session copied from its own step callback has taken the pass, but r->gen has still to move on. Where that leads is
   said by the options of the original. */
static void tsk__request_advance_copy(tsk__request *to, const tsk__request *from) {
    tsk_generate_options own = to->options;
    int32_t n_states = to->n_states;
    int keeps_outputs = to->keeps_outputs;
    to->options = from->options;
    to->n_states = from->n_states;
    to->keeps_outputs = from->keeps_outputs;
    to->pass.n_rows = from->pass.n_rows;
    tsk__request_advance(to, tsk__request_masks_left(to));
    to->options = own;
    to->n_states = n_states;
    to->keeps_outputs = keeps_outputs;
}

/* A copy takes r->gen, the arrays before `cosines`, and every part that both caches have at the same size. */
static tsk_status tsk__session_copy_state(tsk_session *to, const tsk_session *from, tsk_error *error) {
    tsk__request *a = &to->request;
    const tsk__request *b = &from->request;
    int is_copied[TSK__CACHE_PARTS];
    void *before = NULL;
    size_t shared;
    tsk_status status;
    to->n_probed = 0;
    a->gen = b->gen;
    a->gen.is_started = 0;
    a->n_final = 0;
    status = tsk__request_allocate(a, b->cache.shape.capacity, NULL, &before, error);
    tsk__memory_delete(a->allocator, before);
    if (status == TSK_OK) status = tsk__session_room(to, tsk__request_most_rows(a), a->n_states, error);
    if (status != TSK_OK) return status;
    a->n_final = b->n_final;
    a->pass.kind = b->pass.kind;
    tsk__request_layout(a, NULL, &shared);
    memcpy(a->memory, b->memory, shared);
    if (b->is_reporting) tsk__request_advance_copy(a, b);
    if (a->gen.n_positions && a->gen.block_step == 0) a->gen.visible = tsk__request_visible(a);
    if (a->options.refresh_rows && a->gen.n_positions) tsk__request_list_nearest(a);
    tsk__cache_copy(&a->cache, &b->cache, to->pass.stream, is_copied);
    /* If the states are of another K, or the outputs are missing, or its steps do not go on to compare, the copy has no
       reference. */
    a->gen.has_previous = a->gen.has_previous && tsk__request_compares(a) && is_copied[TSK__CACHE_STATES] &&
                          is_copied[TSK__CACHE_OUTPUTS];
    a->gen.has_outputs = a->gen.has_outputs && is_copied[TSK__CACHE_OUTPUTS];
    a->gen.has_refresh = a->gen.has_refresh && is_copied[TSK__CACHE_REFRESH_STATES] && a->options.skip.refresh;
    status = a->backend->ops->wait(to->pass.stream, error);
    if (status == TSK_OK) a->gen.is_started = 1;
    return status;
}

tsk_status tsk_session_copy(tsk_session *to, const tsk_session *from, tsk_error *error) {
    tsk_status status = tsk__session_check_copy(to, from, error);
    return status != TSK_OK || to == from ? status : tsk__session_copy_state(to, from, error);
}

tsk_status tsk_session_probe(tsk_session *session, const int32_t *canvas, tsk_probe_kind kind, tsk_probe *out,
                             tsk_error *error) {
    tsk__request *r;
    tsk__pass *p;
    size_t size;
    int32_t i;
    tsk_status status;
    if (!session) return tsk__error_null(error, "tsk_session_probe", "session");
    if (!out) return tsk__error_null(error, "tsk_session_probe", "out");
    memset(out, 0, sizeof *out);
    r = &session->request;
    p = &session->pass;
    status = tsk__request_check_outside(r, "tsk_session_probe", error);
    if (status == TSK_OK) status = tsk__request_check_runs(r, "tsk_session_probe", error);
    if (status != TSK_OK) return status;
    session->n_probed = 0;
    size = (size_t)r->gen.length * sizeof *canvas;
    if (!r->gen.n_positions)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "tsk_session_probe of a generation that had nothing to do");
    if ((int)kind < 0 || kind > TSK_PROBE_REFRESH)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "tsk_session_probe has no kind %d",
                              (int)kind);
    if (kind == TSK_PROBE_REFRESH && tsk__request_by_blocks(r))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "with cache block nothing is refreshed that could be probed");
    if (tsk__request_by_blocks(r) && r->n_final < tsk__request_prompt_end(r))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "a block step cannot be probed before the prompt's whole blocks have run");
    if (kind != TSK_PROBE_REFRESH && r->options.cache != TSK_CACHE_DUAL && !tsk__request_by_blocks(r))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "a block step can be probed with cache dual only");
    if (kind != TSK_PROBE_REFRESH && r->gen.pass == 0 && !tsk__request_by_blocks(r))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "a block step cannot be probed before the first pass: nothing is cached yet");
    if (kind != TSK_PROBE_REFRESH && !tsk__request_by_blocks(r) && tsk__request_has_gaps(r))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "a block step cannot be probed before the block's first pass: of what the window shows "
                              "not all is cached yet");
    if (canvas) {
        status = tsk__request_check_ids(r, "the canvas", canvas, r->gen.length, error);
        if (status != TSK_OK) return status;
        memcpy(r->canvas.kept_ids, r->canvas.ids, size);
        memcpy(r->canvas.ids, canvas, size);
        r->canvas.is_uploaded = 0;
    }
    r->pass.is_probe = 1;
    r->pass.kind = kind == TSK_PROBE_REFRESH ? TSK__PASS_FULL : TSK__PASS_STEP;
    r->pass.runs_all = kind == TSK_PROBE_STEP_ALL;
    status = tsk__session_forward(session, tsk__requests_forward, error);
    r->pass.is_probe = r->pass.runs_all = 0;
    if (status == TSK_OK) {
        out->n_positions = r->gen.n_positions;
        out->positions = r->block.positions;
        out->active = r->block.active;
        out->n_cosines = tsk__request_has_cosines(r) ? r->n_states : 0;
        out->cosines = out->n_cosines ? r->block.cosines : NULL;
        for (i = 0; i < r->gen.n_positions; i++)
            if (r->block.sources[i] >= 0) p->head[session->n_probed++] = r->block.sources[i];
        tsk__request_take_predictions(r, p);
        tsk__request_move_on(r);
    }
    if (canvas) {
        memcpy(r->canvas.ids, r->canvas.kept_ids, size);
        r->canvas.is_uploaded = 0;
    }
    return status;
}

/* From the front of `values` [n_positions, width], where those of the probe's rows are, to the rows' slots. */
static void tsk__session_spread(const tsk_session *session, float *values, size_t width) {
    const tsk__request *r = &session->request;
    int32_t slot = r->gen.n_positions, from = session->n_probed;
    while (slot-- > 0) {
        float *to = values + (size_t)slot * width;
        size_t i;
        if (r->block.sources[slot] >= 0) memmove(to, values + (size_t)--from * width, width * sizeof *to);
        else
            for (i = 0; i < width; i++) to[i] = NAN;
    }
}

tsk_status tsk_session_probe_logits(tsk_session *session, float *final_norm, float *logits, tsk_error *error) {
    tsk__pass *p;
    tsk_status status;
    if (!session) return tsk__error_null(error, "tsk_session_probe_logits", "session");
    if (!logits) return tsk__error_null(error, "tsk_session_probe_logits", "logits");
    if (!session->n_probed)
        return tsk__error_set(
            error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
            "tsk_session_probe_logits must follow tsk_session_probe, with no other call between them");
    p = &session->pass;
    p->backend->ops->logits(p->stream, session->n_probed, p->head, final_norm, logits);
    status = p->backend->ops->wait(p->stream, error);
    if (status != TSK_OK) {
        session->n_probed = 0;
        return status;
    }
    tsk__session_spread(session, logits, (size_t)session->model->config.embedding_size);
    if (final_norm) tsk__session_spread(session, final_norm, (size_t)session->model->config.d_model);
    return TSK_OK;
}

/* One forward over `tokens`, whose caches take the place of the generation's. */
static tsk_status tsk__session_logits(tsk_session *session, const int32_t *tokens, int32_t n, int32_t first,
                                      int32_t count, float *logits, tsk_error *error) {
    tsk__request *r = &session->request;
    tsk__pass *p = &session->pass;
    tsk_status status;
    int32_t i;
    r->gen.is_started = 0;
    r->n_final = 0;
    status = tsk__request_device_memory(r, n, n, NULL, error);
    if (status == TSK_OK) status = tsk__session_room(session, n, 0, error);
    if (status != TSK_OK) return status;
    tsk__pass_reset(p);
    p->tracer = NULL;
    p->caches[p->n_requests] = tsk__cache_view(&r->cache, 0);
    p->caches[p->n_requests].n_states = 0;
    p->caches[p->n_requests++].tokens = NULL;  /* the canvas stays as it is */
    for (i = 0; i < n; i++) {
        int32_t end = (i / r->options.block_length + 1) * r->options.block_length;
        tsk__pass_add_row(p, tokens[i], i, -1);
        if (tsk__request_by_blocks(r) && end < n) p->visible[i] = end;
    }
    tsk__pass_begin(p);
    tsk__forward_layers(p, 0, r->config->n_layers, 0);
    for (i = 0; i < count; i++) p->head[i] = first + i;
    p->backend->ops->logits(p->stream, count, p->head, NULL, logits);
    return p->backend->ops->wait(p->stream, error);
}

tsk_status tsk_session_logits(tsk_session *session, const int32_t *tokens, int32_t n, int32_t first, int32_t count,
                              float *logits, tsk_error *error) {
    const tsk_model_config *c;
    tsk_status status;
    if (!session) return tsk__error_null(error, "tsk_session_logits", "session");
    if (!tokens) return tsk__error_null(error, "tsk_session_logits", "tokens");
    if (!logits) return tsk__error_null(error, "tsk_session_logits", "logits");
    status = tsk__request_check_outside(&session->request, "tsk_session_logits", error);
    c = session->request.config;
    if (status == TSK_OK && (n <= 0 || n > c->max_sequence_length || first < 0 || count <= 0 || count > n - first))
        status = tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                                "logits of %d positions from %d on, of %d tokens (the model takes at most %d)",
                                (int)count, (int)first, (int)n, (int)c->max_sequence_length);
    if (status == TSK_OK) status = tsk__request_check_ids(&session->request, "the tokens", tokens, n, error);
    if (status != TSK_OK) return status;
    session->n_probed = 0;
    return tsk__session_logits(session, tokens, n, first, count, logits, error);
}

tsk_status tsk_session_force(tsk_session *session, int32_t n_active, int32_t n_refresh, tsk_error *error) {
    tsk_status status;
    if (!session) return tsk__error_null(error, "tsk_session_force", "session");
    status = tsk__request_check_outside(&session->request, "tsk_session_force", error);
    if (status == TSK_OK) status = tsk__force_check("tsk_session_force", n_active, n_refresh, error);
    if (status != TSK_OK) return status;
    session->request.force_active = n_active;
    session->request.force_refresh = n_refresh;
    return TSK_OK;
}

tsk_trace_options tsk_trace_options_default(void) {
    tsk_trace_options o;
    memset(&o, 0, sizeof o);
    o.last_layer = o.last_pass = INT32_MAX;
    return o;
}

tsk_status tsk_session_trace(tsk_session *session, const tsk_trace_options *options, tsk_error *error) {
    tsk__tracer *t;
    char *pattern = NULL;
    tsk_status status;
    if (!session) return tsk__error_null(error, "tsk_session_trace", "session");
    status = tsk__request_check_outside(&session->request, "tsk_session_trace", error);
    if (status != TSK_OK) return status;
    t = &session->tracer;
    if (options && !options->on_record)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "tracing without on_record");
    if (options && options->pattern) {
        size_t size = strlen(options->pattern) + 1;
        pattern = (char *)tsk__memory_new(t->allocator, size, 1);
        if (!pattern) return tsk__error_memory(error, "a trace pattern", size);
        memcpy(pattern, options->pattern, size);
    }
    tsk__trace_free(t);
    tsk__memory_delete(t->allocator, t->pattern);
    t->pattern = pattern;
    memset(&t->options, 0, sizeof t->options);
    if (options) t->options = *options;
    t->options.pattern = pattern;
    /* A generation under way goes on, from here with or without records. */
    session->pass.tracer = NULL;
    if (options && session->pass.stream) {
        status = tsk__trace_attach(t, session->pass.stream, error);
        if (status != TSK_OK) memset(&t->options, 0, sizeof t->options);
        else session->pass.tracer = t;
        return status;
    }
    return TSK_OK;
}

// >>batch =============================================================================================================
/* Continuous batching: every step packs the rows of all requests in flight into one pass, each at its own block and
   step, and gives the place of a finished one to the next in the queue. Their caches are stretches of one arena; when
   only scattered room is left, stretches are moved together, so a request waits for room only while there is none. */

typedef struct tsk__batch_entry {
    struct tsk__batch_entry *next; /* in the queue */
    uint64_t id;
    void *user;
    tsk_generate_options options;  /* resolved */
    int32_t n_prompt, length;      /* length: of the canvas */
    int has_generated, is_cancelled;
    int32_t offset;                /* of its stretch of the arena, while in flight */
    tsk__request *request;         /* while in flight */
    int32_t ids[1];                /* [n_prompt + gen_length] */
} tsk__batch_entry;

typedef struct tsk__batch_queue {
    tsk__batch_entry *first, *last;
    int32_t n;
} tsk__batch_queue;

struct tsk_batch {
    tsk_model *model;
    tsk_batch_options options;
    tsk__mutex lock;             /* of the queues, the ids and the cancel flags: what other threads may touch */
    tsk__condition changed;        /* by another thread: n_changes has grown */
    uint64_t n_changes, n_seen;    /* n_seen: when the last wait ended */
    tsk__batch_queue waiting;      /* in order */
    tsk__batch_queue ending;       /* cancelled while they waited: on_done is to come */
    uint64_t next_id;
    tsk__batch_entry **in_flight;  /* [max_requests] in order of arrival */
    int32_t n_in_flight;
    uint64_t turn;                 /* the id of the one that comes first in the next pass, if it is still in flight */
    int is_stepping;
    tsk__request *requests;        /* [max_requests] */
    tsk__request **free_requests, **packed; /* [max_requests] */
    int32_t n_free;
    tsk__arena arena;              /* of cache_tokens */
    tsk__pass pass;
    int32_t pass_states;
};

static void tsk__batch_queue_push(tsk__batch_queue *queue, tsk__batch_entry *entry) {
    entry->next = NULL;
    if (queue->last) queue->last->next = entry;
    else queue->first = entry;
    queue->last = entry;
    queue->n++;
}

static tsk__batch_entry *tsk__batch_queue_pop(tsk__batch_queue *queue) {
    tsk__batch_entry *entry = queue->first;
    if (!entry) return NULL;
    queue->first = entry->next;
    if (!queue->first) queue->last = NULL;
    queue->n--;
    return entry;
}

/* Takes the entry of that id out, wherever it stands; NULL when it is not there. */
static tsk__batch_entry *tsk__batch_queue_take(tsk__batch_queue *queue, uint64_t id) {
    tsk__batch_entry *before = NULL, *entry = queue->first;
    for (; entry && entry->id != id; entry = entry->next) before = entry;
    if (!entry || !before) return entry ? tsk__batch_queue_pop(queue) : NULL;
    before->next = entry->next;
    if (queue->last == entry) queue->last = before;
    queue->n--;
    return entry;
}

static void tsk__batch_queue_free(tsk__batch_queue *queue, const tsk_allocator *allocator) {
    tsk__batch_entry *entry;
    while ((entry = tsk__batch_queue_pop(queue)) != NULL) tsk__memory_delete(allocator, entry);
}

tsk_batch_options tsk_batch_options_default(void) {
    tsk_batch_options o;
    memset(&o, 0, sizeof o);
    o.max_requests = 16;
    o.max_queued = TSK_NONE;
    o.cache_tokens = o.max_rows = TSK_AUTO;
    return o;
}

/* How many tokens of cache the device has room for, beside the activations of a pass of up to max_rows of them. A tenth
   of its memory is left to others. */
static uint64_t tsk__batch_fitting_tokens(const tsk_model *model, int32_t max_rows) {
    const tsk_model_config *c = &model->config;
    uint64_t element = model->backend->element_size,
             available = model->backend->ops->available(model->backend) / 10 * 9;
    uint64_t token = 2 * tsk__storage_kv_size(c, element, 1), row = 2 * tsk__pass_size(c, element, 1),
             fitting = available / (token + row);
    return fitting > (uint64_t)max_rows ? (available - (uint64_t)max_rows * row) / token : fitting;
}

/* cache_tokens where the host leaves it to us. */
static tsk_status tsk__batch_choose_cache(const tsk_model *model, tsk_batch_options *o, int32_t max_rows,
                                          tsk_error *error) {
    uint64_t wanted = (uint64_t)o->max_requests * (uint64_t)model->config.max_sequence_length,
             fitting = tsk__batch_fitting_tokens(model, max_rows);
    char line[160];
    if (!fitting)
        return tsk__error_memory(error, "a token of the batch's cache, and no more is free beside the model",
                                 2 * tsk__storage_kv_size(&model->config, model->backend->element_size, 1));
    if (fitting > INT32_MAX) fitting = INT32_MAX;
    o->cache_tokens = (int32_t)(wanted < fitting ? wanted : fitting);
    if (wanted <= fitting || !o->log) return TSK_OK;
    snprintf(line, sizeof line,
             "the batch's cache holds %d tokens, what memory is free for, of the %llu that %d requests of %d take",
             (int)o->cache_tokens, (unsigned long long)wanted, (int)o->max_requests,
             (int)model->config.max_sequence_length);
    o->log(o->user, line);
    return TSK_OK;
}

/* max_rows, before it is known how many the cache holds. */
static int32_t tsk__batch_wanted_rows(const tsk_batch_options *o, const tsk_model_config *c) {
    if (o->max_rows != TSK_AUTO) return o->max_rows;
    return c->max_sequence_length > 32 * o->max_requests ? c->max_sequence_length : 32 * o->max_requests;
}

static tsk_status tsk__batch_check_options(const tsk_batch_options *o, tsk_error *error) {
    if (o->max_requests < 1 || o->max_requests > 1 << 16)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "max_requests must be from 1 to 65536, not %d", (int)o->max_requests);
    if ((o->cache_tokens != TSK_AUTO && o->cache_tokens < 1) || (o->max_rows != TSK_AUTO && o->max_rows < 1))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "cache_tokens %d and max_rows %d must be positive or TSK_AUTO", (int)o->cache_tokens,
                              (int)o->max_rows);
    if (o->max_queued != TSK_NONE && o->max_queued < 1)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "max_queued must be positive or TSK_NONE, not %d", (int)o->max_queued);
    if (o->row_layers < 0)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "row_layers must be zero or positive, not %lld", (long long)o->row_layers);
    return TSK_OK;
}

static tsk_status tsk__batch_resolve(const tsk_model *model, tsk_batch_options *o, tsk_error *error) {
    const tsk_model_config *c = &model->config;
    tsk_status status = tsk__batch_check_options(o, error);
    int32_t max_rows;
    if (status != TSK_OK) return status;
    max_rows = tsk__batch_wanted_rows(o, c);
    if (o->cache_tokens == TSK_AUTO) status = tsk__batch_choose_cache(model, o, max_rows, error);
    /* (a pass has no more rows than the cache has tokens) */
    o->max_rows = o->max_rows != TSK_AUTO || max_rows < o->cache_tokens ? max_rows : o->cache_tokens;
    return status;
}

static tsk_status tsk__batch_allocate(tsk_batch *b, tsk_error *error) {
    const tsk_allocator *allocator = b->model->allocator;
    size_t n = (size_t)b->options.max_requests;
    int32_t i;
    b->in_flight = (tsk__batch_entry **)tsk__memory_new(allocator, n, sizeof *b->in_flight);
    b->requests = (tsk__request *)tsk__memory_new_zeroed(allocator, n, sizeof *b->requests);
    b->free_requests = (tsk__request **)tsk__memory_new(allocator, n, sizeof *b->free_requests);
    b->packed = (tsk__request **)tsk__memory_new(allocator, n, sizeof *b->packed);
    if (!b->in_flight || !b->requests || !b->free_requests || !b->packed)
        return tsk__error_memory(error, "a batch", n * sizeof *b->requests);
    for (i = 0; i < b->options.max_requests; i++) {
        b->requests[i].config = &b->model->config;
        b->requests[i].backend = b->model->backend;
        b->requests[i].allocator = allocator;
        b->requests[i].force_active = b->requests[i].force_refresh = TSK_AUTO;
        b->requests[i].cut.is_allowed = b->options.row_layers > 0;
        b->requests[i].cache.backend = b->model->backend;
        b->free_requests[b->n_free++] = &b->requests[i];
    }
    return tsk__arena_create(&b->arena, b->model->backend, b->options.cache_tokens, error);
}

tsk_status tsk_batch_create(tsk_model *model, const tsk_batch_options *options, tsk_batch **out, tsk_error *error) {
    tsk_batch_options resolved = options ? *options : tsk_batch_options_default();
    tsk_batch *b;
    tsk_status status;
    if (!out) return tsk__error_null(error, "tsk_batch_create", "out");
    *out = NULL;
    if (!model) return tsk__error_null(error, "tsk_batch_create", "model");
    status = tsk__batch_resolve(model, &resolved, error);
    if (status != TSK_OK) return status;
    b = (tsk_batch *)tsk__memory_new_zeroed(model->allocator, 1, sizeof *b);
    if (!b) return tsk__error_memory(error, "a batch", sizeof *b);
    b->model = model;
    b->options = resolved;
    tsk__mutex_create(&b->lock);
    tsk__condition_create(&b->changed);
    status = tsk__batch_allocate(b, error);
    if (status != TSK_OK) tsk_batch_free(b);
    else *out = b;
    return status;
}

void tsk_batch_free(tsk_batch *b) {
    const tsk_allocator *allocator;
    int32_t i;
    if (!b) return;
    allocator = b->model->allocator;
    tsk__batch_queue_free(&b->waiting, allocator);
    tsk__batch_queue_free(&b->ending, allocator);
    for (i = 0; i < b->n_in_flight; i++) tsk__memory_delete(allocator, b->in_flight[i]);
    for (i = 0; b->requests && i < b->options.max_requests; i++) tsk__request_free(&b->requests[i]);
    tsk__arena_free(&b->arena);
    tsk__pass_free(&b->pass);
    tsk__memory_delete(allocator, b->in_flight);
    tsk__memory_delete(allocator, b->requests);
    tsk__memory_delete(allocator, b->free_requests);
    tsk__memory_delete(allocator, b->packed);
    tsk__condition_destroy(&b->changed);
    tsk__mutex_destroy(&b->lock);
    tsk__memory_delete(allocator, b);
}

/* ---- submitting and cancelling, from any thread */

static tsk_status tsk__batch_check(const tsk_batch *b, const tsk_generate_options *o, const int32_t *prompt,
                                   int32_t n_prompt, const int32_t *generated, tsk_error *error) {
    tsk__request request;
    tsk_status status = tsk__options_check(o, &b->model->config, error);
    if (status != TSK_OK) return status;
    memset(&request, 0, sizeof request);
    request.config = &b->model->config;
    request.options = *o;
    status = tsk__request_check_start(&request, prompt, n_prompt, generated, error);
    if (status != TSK_OK) return status;
    if (tsk__options_canvas(o, n_prompt) > b->options.cache_tokens)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "%d prompt tokens and gen_length %d can never fit the batch's cache_tokens %d",
                              (int)n_prompt, (int)o->gen_length, (int)b->options.cache_tokens);
    if (o->cache == TSK_CACHE_BLOCK && o->block_length > b->options.max_rows)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "a block of %d can never fit the batch's max_rows %d", (int)o->block_length,
                              (int)b->options.max_rows);
    if (o->cache != TSK_CACHE_BLOCK && n_prompt + o->gen_length > b->options.max_rows)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "%d prompt tokens and gen_length %d can never fit the batch's max_rows %d", (int)n_prompt,
                              (int)o->gen_length, (int)b->options.max_rows);
    return TSK_OK;
}

/* Ends a wait. The lock is held. */
static void tsk__batch_wake(tsk_batch *b) {
    b->n_changes++;
    tsk__condition_wake_all(&b->changed);
}

tsk_status tsk_batch_submit(tsk_batch *b, const int32_t *prompt, int32_t n_prompt, const int32_t *generated,
                            const tsk_generate_options *options, void *request_user, uint64_t *id, tsk_error *error) {
    tsk_generate_options o = options ? *options : tsk_generate_options_default();
    tsk__batch_entry *entry;
    size_t size;
    int32_t i;
    int is_full;
    tsk_status status;
    if (!b) return tsk__error_null(error, "tsk_batch_submit", "batch");
    tsk__options_resolve(&o, &b->model->config, b->model->tokenizer);
    status = tsk__batch_check(b, &o, prompt, n_prompt, generated, error);
    if (status != TSK_OK) return status;
    size = sizeof *entry + ((size_t)n_prompt + (size_t)o.gen_length) * sizeof *prompt;
    entry = (tsk__batch_entry *)tsk__memory_new_zeroed(b->model->allocator, 1, size);
    if (!entry) return tsk__error_memory(error, "a request", size);
    entry->user = request_user;
    entry->options = o;
    entry->n_prompt = n_prompt;
    entry->length = (int32_t)tsk__options_canvas(&o, n_prompt);
    entry->has_generated = generated != NULL;
    if (n_prompt) memcpy(entry->ids, prompt, (size_t)n_prompt * sizeof *prompt);
    for (i = 0; i < o.gen_length; i++)
        entry->ids[n_prompt + i] = generated ? generated[i] : b->model->config.mask_token_id;
    tsk__mutex_lock(&b->lock);
    is_full = b->options.max_queued != TSK_NONE && b->waiting.n >= b->options.max_queued;
    if (!is_full) {
        entry->id = ++b->next_id;
        if (id) *id = entry->id; /* before anyone can see the request done */
        tsk__batch_queue_push(&b->waiting, entry);
        tsk__batch_wake(b);
    }
    tsk__mutex_unlock(&b->lock);
    if (!is_full) return TSK_OK;
    tsk__memory_delete(b->model->allocator, entry);
    return tsk__error_set(error, TSK_ERROR_FULL, NULL, TSK_NO_OFFSET,
                          "the batch's queue is full: max_queued %d requests wait", (int)b->options.max_queued);
}

void tsk_batch_cancel(tsk_batch *b, uint64_t id) {
    tsk__batch_entry *entry;
    int32_t i;
    if (!b) return;
    tsk__mutex_lock(&b->lock);
    entry = tsk__batch_queue_take(&b->waiting, id);
    if (entry) tsk__batch_queue_push(&b->ending, entry);
    for (i = 0; i < b->n_in_flight; i++)
        if (b->in_flight[i]->id == id) b->in_flight[i]->is_cancelled = 1;
    tsk__batch_wake(b);
    tsk__mutex_unlock(&b->lock);
}

int tsk_batch_wait(tsk_batch *b, int32_t timeout_ms) {
    double deadline = tsk__time_ms() + timeout_ms;
    int has_work, in_time = 1;
    if (!b) return 0;
    tsk__mutex_lock(&b->lock);
    /* (a change between the last wait and this one ends this one at once) */
    while (!(has_work = b->n_in_flight || b->waiting.n || b->ending.n) && b->n_changes == b->n_seen && in_time) {
        if (timeout_ms < 0) tsk__condition_wait(&b->changed, &b->lock);
        else in_time = tsk__condition_wait_until(&b->changed, &b->lock, deadline);
    }
    b->n_seen = b->n_changes;
    tsk__mutex_unlock(&b->lock);
    return has_work;
}

/* ---- the arena */

/* The first hole of `length` tokens, or -1. */
static int32_t tsk__batch_hole(const tsk_batch *b, int32_t length) {
    int32_t offset = 0, i;
    for (i = 0; i < b->n_in_flight; i++) {
        const tsk__batch_entry *e = b->in_flight[i];
        if (e->offset + e->length <= offset || e->offset >= offset + length) continue;
        offset = e->offset + e->length; /* past this one, and look at all again */
        i = -1;
    }
    return offset <= b->options.cache_tokens - length ? offset : -1;
}

static void tsk__batch_compact(tsk_batch *b) {
    int32_t end = 0, i, moved;
    for (moved = 0; moved < b->n_in_flight; moved++) {
        tsk__batch_entry *lowest = NULL;
        for (i = 0; i < b->n_in_flight; i++)
            if (b->in_flight[i]->offset >= end && (!lowest || b->in_flight[i]->offset < lowest->offset))
                lowest = b->in_flight[i];
        if (lowest->offset > end) tsk__cache_move(&lowest->request->cache, b->pass.stream, end);
        lowest->offset = end;
        end += lowest->length;
    }
}

/* A stretch for `length` tokens, or -1 while there is not that much room in all. */
static int32_t tsk__batch_place(tsk_batch *b, int32_t length) {
    int32_t used = 0, i, hole = tsk__batch_hole(b, length);
    if (hole >= 0) return hole;
    for (i = 0; i < b->n_in_flight; i++) used += b->in_flight[i]->length;
    if (used > b->options.cache_tokens - length) return -1;
    tsk__batch_compact(b);
    return used;
}

/* ---- one step */

/* Room in the pass for TokenSkip's states. A pass holds nothing that is needed after it, so a larger one can replace it
   between two passes. If that fails, the requests in flight go on with the old one. */
static tsk_status tsk__batch_room(tsk_batch *b, int32_t n_states, tsk_error *error) {
    tsk__pass larger;
    tsk_status status;
    if (b->pass.max_rows && b->pass_states >= n_states) return TSK_OK;
    status = tsk__pass_create(&larger, b->model->backend, b->model->allocator, b->options.max_rows,
                              b->options.max_requests, n_states, error);
    if (status != TSK_OK) return status;
    tsk__pass_free(&b->pass);
    b->pass = larger;
    b->pass_states = n_states;
    return TSK_OK;
}

/* Hands the outcome to the host and gives the place back. `i` is the entry's number among those in flight. */
static void tsk__batch_finish(tsk_batch *b, int32_t i, const tsk_error *error) {
    tsk__batch_entry *entry = b->in_flight[i];
    tsk_result result;
    tsk__mutex_lock(&b->lock);
    memmove(b->in_flight + i, b->in_flight + i + 1, (size_t)(b->n_in_flight - i - 1) * sizeof *b->in_flight);
    b->n_in_flight--;
    b->free_requests[b->n_free++] = entry->request;
    tsk__mutex_unlock(&b->lock);
    tsk__request_result(entry->request, &result);
    if (!error && entry->request->failure.status != TSK_OK) error = &entry->request->failure;
    if (b->options.on_done) b->options.on_done(b->options.user, entry->id, entry->user, error ? NULL : &result, error);
    tsk__memory_delete(b->model->allocator, entry);
}

static tsk_status tsk__batch_launch(tsk_batch *b, tsk__batch_entry *entry, int32_t offset, tsk_error *error) {
    tsk__request *r = b->free_requests[b->n_free - 1];
    int32_t n_states = tsk__options_n_states(&entry->options, &b->model->config);
    tsk_status status = tsk__batch_room(b, n_states > b->pass_states ? n_states : b->pass_states, error);
    tsk__mutex_lock(&b->lock);
    b->n_free--;
    b->in_flight[b->n_in_flight++] = entry;
    tsk__mutex_unlock(&b->lock);
    entry->request = r;
    entry->offset = offset;
    r->options = entry->options;
    tsk__cache_place(&r->cache, &b->arena, offset);
    if (status == TSK_OK)
        status = tsk__request_start(r, entry->ids, entry->n_prompt,
                                    entry->has_generated ? entry->ids + entry->n_prompt : NULL, NULL, error);
    return status;
}

/* Fills free places from the queue, in order: a later request does not overtake one that does not fit yet. A request
   that cannot start ends with its error and does not affect the others. */
static void tsk__batch_admit(tsk_batch *b) {
    while (b->n_free) {
        tsk__batch_entry *entry;
        tsk_error error;
        int32_t offset;
        int is_first;
        tsk__mutex_lock(&b->lock);
        entry = b->waiting.first;
        tsk__mutex_unlock(&b->lock);
        if (!entry) return;
        offset = tsk__batch_place(b, entry->length);
        if (offset < 0) return;
        tsk__mutex_lock(&b->lock);
        is_first = b->waiting.first == entry; /* unless it was cancelled meanwhile; only a step frees it */
        if (is_first) tsk__batch_queue_pop(&b->waiting);
        tsk__mutex_unlock(&b->lock);
        if (!is_first) continue;
        if (tsk__batch_launch(b, entry, offset, &error) != TSK_OK) tsk__batch_finish(b, b->n_in_flight - 1, &error);
    }
}

/* Who comes first: the one whose turn it is, else the next that has come after it, else the oldest. */
static int32_t tsk__batch_turn(const tsk_batch *b) {
    int32_t i;
    for (i = 0; i < b->n_in_flight; i++)
        if (b->in_flight[i]->id >= b->turn) return i;
    return 0;
}

/* How many rows the request's next pass has. A prompt by blocks is cut to the room there is, and to its share of the
   row-layer budget; the first in the pass gets one block at least. 0: it has to wait. */
static int32_t tsk__batch_choose(tsk__request *r, int32_t room, int64_t budget, int is_first) {
    const int32_t block = r->options.block_length;
    int64_t share = budget > 0 ? budget / r->config->n_layers : budget < 0 ? 0 : room;
    int32_t rows;
    if (share > room) share = room;
    if (is_first && share < block) share = block;
    r->cut.prompt_rows = share > 0 ? (int32_t)share : 1;
    rows = tsk__request_choose(r);
    return r->pass.kind == TSK__PASS_PROMPT && share < block ? 0 : rows;
}

/* Chooses who takes part in the pass. The first that had to wait comes first in the next one; where nobody had to, the
   order rotates. Refreshes take their shares of the row-layer budget in that order. A refresh whose share is less than
   a layer waits, or gets one layer if nobody comes before it. */
static int32_t tsk__batch_pack(tsk_batch *b, tsk_batch_status *status) {
    int32_t n = 0, i, room = b->options.max_rows;
    int64_t budget = b->options.row_layers;
    const int32_t start = tsk__batch_turn(b);
    uint64_t waits = 0; /* the first that has to */
    for (i = 0; i < b->n_in_flight; i++) {
        tsk__batch_entry *entry = b->in_flight[(start + i) % b->n_in_flight];
        tsk__request *r = entry->request;
        int32_t rows = tsk__batch_choose(r, room, budget, n == 0), layers = r->config->n_layers - r->cut.next_layer;
        if (rows > room || rows == 0) {
            if (!waits) waits = entry->id;
            continue;
        }
        r->cut.layer_budget = 0;
        if (budget && tsk__request_is_refresh(r)) {
            int64_t share = budget > 0 ? budget / rows : 0;
            if (share < 1 && n) {
                if (!waits) waits = entry->id;
                continue;
            }
            r->cut.layer_budget = share < 1 ? 1 : share < layers ? (int32_t)share : layers;
            layers = r->cut.layer_budget;
            budget -= (int64_t)layers * rows;
            if (budget == 0) budget = -1;
        }
        if (budget && r->pass.kind == TSK__PASS_PROMPT) {
            budget -= (int64_t)layers * rows;
            if (budget <= 0) budget = -1;
        }
        room -= rows;
        status->rows += rows;
        status->row_layers += (int64_t)rows * layers;
        b->packed[n++] = r;
    }
    if (!waits && b->n_in_flight) waits = b->in_flight[(start + 1) % b->n_in_flight]->id;
    b->turn = waits;
    return n;
}

/* The outcome of a request that was cancelled before it had a place. */
static void tsk__batch_report_ending(tsk_batch *b, tsk__batch_entry *entry) {
    tsk__request request;
    tsk_result result;
    memset(&request, 0, sizeof request);
    request.config = &b->model->config;
    request.options = entry->options;
    request.canvas.ids = entry->ids;
    request.gen.is_started = 1;
    request.gen.n_prompt = request.gen.result.n_prompt = entry->n_prompt;
    request.gen.length = entry->n_prompt + entry->options.gen_length;
    request.gen.result.n_tokens = entry->options.gen_length;
    tsk__request_point_result(&request);
    tsk__request_cancel(&request);
    tsk__request_result(&request, &result);
    if (b->options.on_done) b->options.on_done(b->options.user, entry->id, entry->user, &result, NULL);
}

static void tsk__batch_finish_ending(tsk_batch *b) {
    tsk__batch_entry *entry;
    do {
        tsk__mutex_lock(&b->lock);
        entry = tsk__batch_queue_pop(&b->ending);
        tsk__mutex_unlock(&b->lock);
        if (entry) tsk__batch_report_ending(b, entry);
        tsk__memory_delete(b->model->allocator, entry);
    } while (entry);
}

/* Requests that the host wants to end, by id or by their own callback. */
static void tsk__batch_drop_cancelled(tsk_batch *b) {
    int32_t i;
    for (i = 0; i < b->n_in_flight; i++) {
        tsk__batch_entry *entry = b->in_flight[i];
        int cancelled;
        tsk__mutex_lock(&b->lock);
        cancelled = entry->is_cancelled;
        tsk__mutex_unlock(&b->lock);
        if (!entry->request->gen.is_finished &&
            (cancelled || (entry->options.cancel && entry->options.cancel(entry->options.user))))
            tsk__request_cancel(entry->request);
    }
}

static void tsk__batch_finish_ended(tsk_batch *b) {
    int32_t i;
    for (i = b->n_in_flight - 1; i >= 0; i--)
        if (b->in_flight[i]->request->gen.is_finished) tsk__batch_finish(b, i, NULL);
}

/* One pass over those chosen; on failure all of them end with its error. */
static tsk_status tsk__batch_run(tsk_batch *b, int32_t n, tsk_error *error) {
    tsk_status status = n ? tsk__requests_pass(b->packed, n, &b->pass, error) : TSK_OK;
    int32_t i, j;
    for (i = b->n_in_flight - 1; status != TSK_OK && i >= 0; i--)
        for (j = 0; j < n; j++)
            if (b->in_flight[i]->request == b->packed[j]) {
                tsk__batch_finish(b, i, error);
                break;
            }
    return status;
}

tsk_status tsk_batch_step(tsk_batch *b, tsk_batch_status *status, tsk_error *error) {
    tsk_batch_status own;
    tsk_error own_error;           /* on_done is told what went wrong even where the caller does not ask */
    tsk_status result;
    double start = tsk__time_ms();
    if (!b) return tsk__error_null(error, "tsk_batch_step", "batch");
    if (b->is_stepping)
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "tsk_batch_step from a callback of the same batch's step");
    if (!error) error = &own_error;
    if (!status) status = &own;
    memset(status, 0, sizeof *status);
    b->is_stepping = 1;
    tsk__batch_finish_ending(b);
    tsk__batch_admit(b);
    tsk__batch_drop_cancelled(b);
    tsk__batch_finish_ended(b);
    result = tsk__batch_run(b, tsk__batch_pack(b, status), error);
    tsk__batch_finish_ended(b);
    b->is_stepping = 0;
    tsk__mutex_lock(&b->lock);
    status->in_flight = b->n_in_flight;
    status->queued = b->waiting.n;
    status->ending = b->ending.n;
    tsk__mutex_unlock(&b->lock);
    status->ms = tsk__time_ms() - start;
    return result;
}

tsk_status tsk_batch_force(tsk_batch *b, int32_t n_active, int32_t n_refresh, tsk_error *error) {
    int32_t i;
    tsk_status status;
    if (!b) return tsk__error_null(error, "tsk_batch_force", "batch");
    status = tsk__force_check("tsk_batch_force", n_active, n_refresh, error);
    for (i = 0; i < b->options.max_requests && status == TSK_OK; i++) {
        b->requests[i].force_active = n_active;
        b->requests[i].force_refresh = n_refresh;
    }
    return status;
}

tsk_status tsk_batch_drain(tsk_batch *b, tsk_error *error) {
    tsk_batch_status status;
    tsk_status result;
    do result = tsk_batch_step(b, &status, error);
    while (result == TSK_OK && (status.in_flight || status.queued || status.ending));
    return result;
}

// >>public ============================================================================================================
/* What is left: questions about a device and about memory, asked without a generation. */

int32_t tsk_version(void) {
    return TOKENSKIP_VERSION_MAJOR * 10000 + TOKENSKIP_VERSION_MINOR * 100 + TOKENSKIP_VERSION_PATCH;
}
const char *tsk_version_string(void) { return TOKENSKIP_VERSION_STRING; }

static void tsk__device_cpu(tsk_device_info *out) {
    uint64_t total = tsk__memory_total(), available = tsk__memory_available();
    int n = tsk__processors();
    memset(out, 0, sizeof *out);
    out->device = TSK_DEVICE_CPU;
    snprintf(out->name, sizeof out->name, "CPU, %s, %d processor%s", tsk__cpu_kernels_select()->description, n,
             n == 1 ? "" : "s");
    out->memory_total = total == UINT64_MAX ? 0 : total;
    out->memory_free = available == UINT64_MAX ? 0 : available;
}

int32_t tsk_devices(tsk_device_info *devices, int32_t room) {
    if (!devices) room = 0;
    if (room > 0) tsk__device_cpu(&devices[0]);
    return 1 + tsk__cuda_devices(room > 1 ? devices + 1 : NULL, room - 1);
}

tsk_status tsk_model_ceilings(tsk_model *model, tsk_ceilings *out, tsk_error *error) {
    if (!model) return tsk__error_null(error, "tsk_model_ceilings", "model");
    if (!out) return tsk__error_null(error, "tsk_model_ceilings", "out");
    memset(out, 0, sizeof *out);
    return model->backend->ops->ceilings(model->backend, out, error);
}

tsk_memory_query tsk_memory_query_default(void) {
    tsk_memory_query q;
    memset(&q, 0, sizeof q);
    q.weights_size = TSK_AUTO;
    q.canvas = TSK_AUTO;
    return q;
}

/* What a pass of so many rows takes on the host: lists, and on the CPU the activations. */
static uint64_t tsk__estimate_cpu_pass(const tsk_model_config *c, uint64_t rows, uint64_t states) {
    uint64_t q = (uint64_t)c->n_heads * (uint64_t)c->head_dim;
    tsk__cpu_scratch scratch;
    return tsk__cpu_scratch_init(&scratch, c, (int32_t)rows, NULL) +
           rows * sizeof(float) * (3 * (uint64_t)c->d_model + 2 * q + (uint64_t)c->mlp_hidden_size + states + 20);
}

/* On a GPU: x three times, q and attention, gate times up, and where rows are many what its matrix products leave;
   tables; the parts of split attention; the best of each tile of the head; cuBLAS's workspace; logits. The numbers are
   those of >>cuda_backend, which is not there in every build; a test compares the sum with what a stream allocates. */
static uint64_t tsk__estimate_cuda_pass(const tsk_model_config *c, uint64_t element, uint64_t rows, uint64_t states) {
    uint64_t d = (uint64_t)c->d_model, q = (uint64_t)c->n_heads * (uint64_t)c->head_dim,
             mlp = (uint64_t)c->mlp_hidden_size;
    uint64_t qkv = q + 2 * (uint64_t)c->n_kv_heads * (uint64_t)c->head_dim, wide = qkv > 2 * mlp ? qkv : 2 * mlp;
    uint64_t vocabulary = (uint64_t)c->embedding_size, head_rows = rows < 1024 ? rows : 1024, slice = head_rows * 8192;
    uint64_t logits = slice > 32 * vocabulary ? slice : 32 * vocabulary, size;
    int has_scratch = rows > (element == 2 ? 64 : 0) || tsk__family_part_of(c, TSK__PART_Q_NORM)->weight;
    size = rows * element * (3 * d + 2 * q + mlp + (has_scratch ? wide > d ? wide : d : 0));
    size += rows * sizeof(float) * (d / 16 + (uint64_t)c->n_heads + (uint64_t)c->head_dim + states + 128);
    size += (vocabulary / 1024 + 1) * head_rows * 24 + logits * sizeof(float);
    if (element == 4) return size;
    return size + ((uint64_t)32 << 20) +
           (c->head_dim == 64 || c->head_dim == 128 ? (uint64_t)c->n_heads * 4096 * ((uint64_t)c->head_dim + 2) : 0);
}

/* What a request has beside its cache. */
static uint64_t tsk__estimate_request(const tsk_model_config *c, const tsk_generate_options *o, uint64_t element,
                                      uint64_t canvas, uint64_t states, int may_be_cut) {
    uint64_t row = (uint64_t)c->d_model * element, slots = (uint64_t)o->block_length;
    return (2 * states + (states && o->skip.policy == TSK_SKIP_REUSE)) * slots * row +
           (o->skip.refresh ? 2 * states * canvas * row : 0) + (may_be_cut ? canvas * row : 0) +
           canvas * 12 * sizeof(int32_t);
}

static tsk_status tsk__estimate_check(tsk_memory_query *q, tsk_generate_options *o, tsk_error *error) {
    tsk_status status = tsk__config_check(q->config, "memory estimate", error);
    if (status != TSK_OK) return status;
    tsk__options_resolve(o, q->config, NULL);
    status = tsk__options_check(o, q->config, error);
    if (status == TSK_OK && q->batch) status = tsk__batch_check_options(q->batch, error);
    if (status != TSK_OK) return status;
    if (q->device == TSK_DEVICE_AUTO) q->device = q->dtype == TSK_DTYPE_BF16 ? TSK_DEVICE_CUDA : TSK_DEVICE_CPU;
    if (q->dtype == TSK_DTYPE_AUTO) q->dtype = q->device == TSK_DEVICE_CUDA ? TSK_DTYPE_BF16 : TSK_DTYPE_F32;
    if (q->canvas == TSK_AUTO) q->canvas = q->config->max_sequence_length;
    if ((q->device != TSK_DEVICE_CPU && q->device != TSK_DEVICE_CUDA) ||
        (q->dtype != TSK_DTYPE_F32 && (q->dtype != TSK_DTYPE_BF16 || q->device == TSK_DEVICE_CPU)))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "a memory estimate is of F32 on the CPU, or of F32 or BF16 on a GPU");
    if (q->canvas <= 0 || (q->weights_size < 0 && q->weights_size != TSK_AUTO))
        return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET,
                              "a memory estimate of %d tokens and %lld bytes of weights", (int)q->canvas,
                              (long long)q->weights_size);
    return TSK_OK;
}

tsk_status tsk_memory_estimate(const tsk_memory_query *query, tsk_memory *out, tsk_error *error) {
    tsk_memory_query q;
    tsk_generate_options o;
    tsk_status status;
    uint64_t element, states, rows, tokens, requests;
    if (!query) return tsk__error_null(error, "tsk_memory_estimate", "query");
    if (!query->config) return tsk__error_null(error, "tsk_memory_estimate", "config");
    if (!out) return tsk__error_null(error, "tsk_memory_estimate", "out");
    q = *query;
    o = q.generate ? *q.generate : tsk_generate_options_default();
    status = tsk__estimate_check(&q, &o, error);
    if (status != TSK_OK) return status;
    element = tsk_dtype_size(q.dtype);
    states = (uint64_t)tsk__options_n_states(&o, q.config);
    requests = q.batch ? (uint64_t)q.batch->max_requests : 1;
    tokens = !q.batch                            ? (uint64_t)q.canvas
             : q.batch->cache_tokens != TSK_AUTO ? (uint64_t)q.batch->cache_tokens
                                                 : requests * (uint64_t)q.config->max_sequence_length;
    rows = q.batch ? (uint64_t)tsk__batch_wanted_rows(q.batch, q.config) : (uint64_t)q.canvas;
    if (!q.batch && o.cache == TSK_CACHE_BLOCK && rows > (uint64_t)tsk__options_piece(&o, 0))
        rows = (uint64_t)tsk__options_piece(&o, 0);
    if (q.batch && q.batch->max_rows == TSK_AUTO && rows > tokens) rows = tokens;
    out->weights = q.weights_size != TSK_AUTO ? (uint64_t)q.weights_size : tsk__config_weights_size(q.config);
    out->cache = 2 * tokens * tsk__storage_kv_size(q.config, element, 1);
    out->workspace = requests * tsk__estimate_request(q.config, &o, element, (uint64_t)q.canvas, states,
                                                      q.batch && q.batch->row_layers > 0);
    out->workspace += q.device == TSK_DEVICE_CUDA ? tsk__estimate_cuda_pass(q.config, element, rows, states)
                                                  : tsk__estimate_cpu_pass(q.config, rows, states);
    return TSK_OK;
}

#ifdef __cplusplus
}
#endif

/* A program's own a * b + c is its own affair again (see the system headers above). */
#if defined(__GNUC__) && !defined(__x86_64__) && !defined(__i386__)
#ifdef __clang__
#pragma STDC FP_CONTRACT DEFAULT
#else
#pragma GCC pop_options
#endif
#endif
#endif /* TOKENSKIP__IMPLEMENTED */
#endif /* TOKENSKIP_IMPLEMENTATION */
