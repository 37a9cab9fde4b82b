/* The options of all subcommands in one table, from which they are parsed and their --help is printed. */
#include "cli.h"

#include <errno.h>
#include <float.h>
#include <math.h>

/* Where an option was given: cli_settings.given. Those of the command line are the defaults of a request. */
enum { GIVEN_HERE = 1, GIVEN_BEFORE = 2 };

typedef enum option_kind {
    KIND_SWITCH, KIND_INT, KIND_SEED, KIND_FLOAT, KIND_TEXT, KIND_CHOICE, KIND_IDS, KIND_DEVICE, KIND_DTYPE
} option_kind;

/* From `least` to `most`; without `least` itself where it is `open`. */
typedef struct option_range {
    double least, most;
    int open;
} option_range;

typedef struct cli_option {
    const char *name;
    char letter;           /* its one-letter form, or 0 */
    unsigned commands;     /* which subcommands have it */
    option_kind kind;
    option_range range;    /* of a number */
    size_t field;          /* offset in cli_settings */
    const char *argument;  /* as --help shows it; a choice: its values in the order of their numbers */
    const char *help;
} cli_option;

#define FIELD(name) offsetof(cli_settings, name)
#define NO_RANGE {0, 0, 0}
#define RANGE(least, most) {least, most, 0}
#define FROM(least) {least, INT32_MAX, 0}
#define ABOVE(least) {least, FLT_MAX, 1}
#define ENGINES (CLI_GENERATE | CLI_CHAT | CLI_EVAL | CLI_TRACE | CLI_CALIBRATE | CLI_SWEEP | CLI_BATCH)
/* of one generation: a request of batch and what stands in --against may have their own */
#define GENERATION (ENGINES | CLI_REQUEST | CLI_AGAINST)

static const cli_option table[] = {
    {"model", 'm', ENGINES | CLI_TOKENIZE | CLI_TEMPLATE | CLI_BENCH, KIND_TEXT, NO_RANGE, FIELD(model_dir), "DIR",
     "the model's folder"},
    {"prompt", 'p', CLI_GENERATE | CLI_CHAT | CLI_TRACE, KIND_TEXT, NO_RANGE, FIELD(prompt), "TEXT",
     "the prompt; chat: the first message"},
    {"prompt-ids", 0, CLI_GENERATE | CLI_TRACE, KIND_IDS, NO_RANGE, FIELD(prompt_ids), "IDS",
     "the prompt as token ids: 1,2,3"},
    {"system", 0, GENERATION, KIND_TEXT, NO_RANGE, FIELD(system), "TEXT", "a system message before the prompt"},
    {"thinking", 0, GENERATION | CLI_TEMPLATE, KIND_SWITCH, NO_RANGE, FIELD(thinking), "",
     "the chat template's switch for thoughts, where it\nhas one (Qwen3: on)"},
    {"raw", 0, GENERATION & ~CLI_CHAT, KIND_SWITCH, NO_RANGE, FIELD(raw), "",
     "no chat template; special tokens in the prompt count"},
    {"data", 0, CLI_EVAL | CLI_CALIBRATE | CLI_SWEEP, KIND_TEXT, NO_RANGE, FIELD(data), "FILE",
     "lines of {\"prompt\", \"answer\", \"kind\"}"},
    {"messages", 0, CLI_TEMPLATE, KIND_TEXT, NO_RANGE, FIELD(messages), "FILE",
     "[{\"role\", \"content\"}, ...]; -: standard input"},
    {"input", 0, CLI_BATCH, KIND_TEXT, NO_RANGE, FIELD(input), "FILE", "the requests, one a line (-: standard input)"},
    {"output", 0, CLI_BATCH, KIND_TEXT, NO_RANGE, FIELD(output), "FILE",
     "the results, one a line; what is there already is\nnot done again (-: standard output)"},
    {"merge", 0, CLI_BATCH, KIND_SWITCH, NO_RANGE, FIELD(merge), "",
     "join the results of shards, in the input's order"},
    {"order", 0, CLI_BATCH, KIND_CHOICE, NO_RANGE, FIELD(order), "input|completed", "of the results (input)"},
    {"max-batch", 0, CLI_BATCH, KIND_INT, RANGE(1, 65536), FIELD(max_batch), "N", "requests at a time (16)"},
    {"cache-tokens", 0, CLI_BATCH, KIND_INT, FROM(0), FIELD(cache_tokens), "N",
     "tokens the cache holds, of all requests together\n(0: max-batch times the model's longest sequence, or\nwhat "
     "memory is free for)"},
    {"shard", 0, CLI_BATCH, KIND_TEXT, NO_RANGE, FIELD(shard), "I/N",
     "only part I of N, from 0/N on (the rank under mpirun or srun)"},
    {"jsonl", 0, CLI_TOKENIZE, KIND_SWITCH, NO_RANGE, FIELD(jsonl), "", "each line a JSON string, or an array of ids"},
    {"decode", 0, CLI_TOKENIZE, KIND_SWITCH, NO_RANGE, FIELD(decode), "", "ids to text"},

    {"keep-masks", 0, CLI_TRACE, KIND_SWITCH, NO_RANGE, FIELD(keep_masks), "",
     "compare two steps with masks, not filled in"},
    {"blocks", 0, CLI_TRACE, KIND_INT, FROM(1), FIELD(blocks), "N", "run only the first N blocks (all)"},
    {"versus", 0, CLI_TRACE, KIND_TEXT, NO_RANGE, FIELD(versus), "SETTINGS",
     "compare with the generation of these options (the\nplain dual cache: '--skip-rule off'); what they do\nnot name "
     "is as given here"},
    {"notebook", 0, CLI_TRACE, KIND_SWITCH, NO_RANGE, FIELD(notebook), "",
     "two steps of the first block, value by value"},
    {"shadow", 0, CLI_TRACE, KIND_SWITCH, NO_RANGE, FIELD(shadow), "", "run the full pass beside every step"},
    {"html", 0, CLI_TRACE, KIND_TEXT, NO_RANGE, FIELD(html), "FILE", "a page to look at"},
    {"dump", 0, CLI_TRACE, KIND_TEXT, NO_RANGE, FIELD(dump), "FILE", "all values, as .safetensors"},
    {"dump-pattern", 0, CLI_TRACE, KIND_TEXT, NO_RANGE, FIELD(dump_pattern), "PATTERN",
     "only values whose names match: 'pass*.layer_?_rope.q'"},
    {"passes", 0, CLI_TRACE, KIND_TEXT, NO_RANGE, FIELD(passes), "A..B",
     "only values of these passes (A..: from A on)"},
    {"layers", 0, CLI_TRACE, KIND_TEXT, NO_RANGE, FIELD(layers), "A..B",
     "only values of these layers, and of none"},
    {"max-error", 0, CLI_CALIBRATE, KIND_FLOAT, RANGE(0, 1), FIELD(max_error), "R",
     "share of answers that may be lost, gained ones taken\noff; changed ones where FILE has no answers"},
    {"minutes", 0, CLI_CALIBRATE | CLI_SWEEP, KIND_FLOAT, ABOVE(0), FIELD(minutes), "N",
     "how long to search at most, loading left out (5)"},
    {"save", 0, CLI_CALIBRATE, KIND_TEXT, NO_RANGE, FIELD(save), "FILE", "writes the options for --settings to read"},
    {"svg", 0, CLI_CALIBRATE | CLI_SWEEP, KIND_TEXT, NO_RANGE, FIELD(svg), "FILE", "where the picture goes"},
    {"limit", 0, CLI_EVAL | CLI_CALIBRATE | CLI_SWEEP, KIND_INT, FROM(1), FIELD(limit), "N",
     "N questions, evenly spread (all)"},
    {"against", 0, CLI_EVAL, KIND_TEXT, NO_RANGE, FIELD(against), "SETTINGS",
     "answer every question under these options, too:\n\"--cache dual --skip-layer-k 0\"; what they do not\nname is as "
     "given here"},
    {"against-model", 0, CLI_EVAL, KIND_TEXT, NO_RANGE, FIELD(against_model), "DIR",
     "answer every question with this model as well, its\nweights as stored, and compare logits, too"},

    {"settings", 0, GENERATION & ~CLI_REQUEST, KIND_TEXT, NO_RANGE, FIELD(settings_file), "FILE",
     "options of a generation from a file, as calibrate\n--save writes them; those given here win"},
    {"gen-length", 0, GENERATION, KIND_INT, FROM(1), FIELD(generate.gen_length), "N",
     "positions to fill after the prompt (128)"},
    {"block-length", 0, GENERATION, KIND_INT, FROM(1), FIELD(generate.block_length), "N",
     "positions decoded together (the model's, where it has\nblocks; else 32, and a shorter gen-length is one block)"},
    {"small-block", 0, GENERATION, KIND_INT, FROM(0), FIELD(generate.small_block), "N",
     "block: N positions of a block are filled before the\nnext N; 0: all together (Fast-dLLM v2: 8, others: 0)"},
    {"steps", 0, GENERATION, KIND_INT, FROM(1), FIELD(generate.steps), "N",
     "steps over all blocks (gen-length; block: a block's\nlength for each)"},
    {"cache", 0, GENERATION, KIND_CHOICE, NO_RANGE, FIELD(cache), "dual|prefix|none|block",
     "what a step need not recompute (dual; block, and no\nother, where the model attends by blocks)"},
    {"prompt-rows", 0, GENERATION, KIND_INT, FROM(1), FIELD(generate.prompt_rows), "N",
     "block: at most N tokens of the prompt in one pass\n(2048)"},
    {"threshold", 0, GENERATION, KIND_FLOAT, RANGE(0, 1), FIELD(generate.threshold), "X",
     "commit what is at least this confident (0.9)"},
    {"no-threshold", 0, GENERATION, KIND_SWITCH, NO_RANGE, FIELD(no_threshold), "",
     "commit a fixed number each step instead"},
    {"factor", 0, GENERATION, KIND_FLOAT, ABOVE(0), FIELD(generate.factor), "F", "Fast-dLLM's dynamic rule instead"},
    {"frechet", 0, GENERATION, KIND_FLOAT, RANGE(0, 1), FIELD(generate.frechet), "D",
     "Fast-dLLM++'s rule instead (0.25 in its paper)"},
    {"entropy-bound", 0, GENERATION, KIND_FLOAT, RANGE(0, FLT_MAX), FIELD(generate.entropy_bound), "G",
     "EB-Sampler's rule instead: entropies up to G nats,\nthe largest not counted (try 0.1)"},
    {"local-leap", 0, GENERATION, KIND_FLOAT, RANGE(0, 1), FIELD(generate.local_leap), "X",
     "LocalLeap: also commit what is at least this\nconfident, beside what --threshold commits (0.75 in\nits code)"},
    {"local-radius", 0, GENERATION, KIND_INT, FROM(0), FIELD(generate.local_radius), "N",
     "local-leap: up to so many positions beside it (4)"},
    {"temperature", 0, GENERATION, KIND_FLOAT, RANGE(0, FLT_MAX), FIELD(generate.temperature), "T",
     "above 0: Gumbel-max sampling (0)"},
    {"seed", 0, GENERATION, KIND_SEED, NO_RANGE, FIELD(generate.seed), "N", "of every random draw (0)"},
    {"remasking", 0, GENERATION, KIND_CHOICE, NO_RANGE, FIELD(remasking), "low_confidence|random",
     "what is committed first (low_confidence)"},
    {"eos-stop", 0, GENERATION, KIND_SWITCH, NO_RANGE, FIELD(generate.eos_stop), "",
     "end with the block that ends the text (on)"},
    {"pad", 0, CLI_GENERATE | CLI_BATCH | CLI_REQUEST, KIND_SWITCH, NO_RANGE, FIELD(pad), "",
     "tokens to gen-length, beyond the end of the text"},

    {"skip-rule", 0, GENERATION | CLI_BENCH, KIND_CHOICE, NO_RANGE, FIELD(skip_rule), "off|states|rows",
     "what a block step leaves out: nothing, upper\nlayers of tokens whose states hardly moved, or rows\nthat cannot "
     "change what it commits (the rule whose\noptions are given; else rows with cache dual)"},
    {"rows-margin", 0, GENERATION, KIND_INT, FROM(0), FIELD(generate.skip.rows_margin), "N",
     "rows: without a threshold, N masked tokens run\nbeyond those that the step commits (4)"},
    {"rows-ahead", 0, GENERATION, KIND_INT, FROM(0), FIELD(generate.skip.rows_ahead), "N",
     "rows: on either side of a token just committed N\nmasked ones run (0)"},
    {"skip-layer-k", 0, GENERATION | CLI_BENCH, KIND_INT, FROM(0), FIELD(generate.skip.layer_k), "K",
     "states: layers every token runs; 0: TokenSkip off\n(max(2, layers/4) with cache dual)"},
    {"skip-threshold", 0, GENERATION, KIND_FLOAT, RANGE(-1, 1), FIELD(generate.skip.threshold), "X",
     "stable: mean cosine above this (0.95) ..."},
    {"skip-outlier", 0, GENERATION, KIND_FLOAT, RANGE(-1, 1), FIELD(generate.skip.outlier), "X",
     "... and no layer's below this (0.7)"},
    {"skip-masked", 0, GENERATION, KIND_SWITCH, NO_RANGE, FIELD(generate.skip.masked), "",
     "masked tokens may be stable too"},
    {"skip-policy", 0, GENERATION, KIND_CHOICE, NO_RANGE, FIELD(skip_policy), "reuse|exit",
     "a stable token's output (reuse)"},
    {"skip-reference", 0, GENERATION, KIND_CHOICE, NO_RANGE, FIELD(skip_reference), "last-step|last-computed",
     "what a token is compared with (last-step)"},
    {"skip-max-age", 0, GENERATION, KIND_INT, FROM(0), FIELD(generate.skip.max_age), "N",
     "a token runs after N skipped steps (0: never)"},
    {"skip-full-every", 0, GENERATION, KIND_INT, FROM(0), FIELD(generate.skip.full_every), "N",
     "every N-th block step runs everything (0: none)"},
    {"skip-warm-start", 0, GENERATION, KIND_SWITCH, NO_RANGE, FIELD(generate.skip.warm_start), "",
     "compare the first block step with the refresh"},
    {"skip-refresh", 0, GENERATION, KIND_SWITCH, NO_RANGE, FIELD(generate.skip.refresh), "",
     "TokenSkip in block-start forwards too"},
    {"refresh", 0, GENERATION, KIND_CHOICE, NO_RANGE, FIELD(refresh), "full|near",
     "a block starts with a pass over the canvas, or over\nwhat has changed, the block and the masks behind it\n(full; "
     "near where --near or --window is given)"},
    {"near", 0, GENERATION, KIND_INT, FROM(0), FIELD(generate.refresh_near), "N",
     "near: masks up to N positions behind the block (16)"},
    {"window", 0, GENERATION, KIND_INT, FROM(0), FIELD(generate.refresh_window), "N",
     "no pass sees masks further behind the block than N\npositions (0: it sees all)"},
    {"refresh-rows", 0, GENERATION, KIND_INT, FROM(0), FIELD(generate.refresh_rows), "R",
     "further rows that every block step computes, the\nstalest of the canvas first (0)"},
    {"refresh-every", 0, GENERATION, KIND_INT, FROM(0), FIELD(generate.refresh_every), "N",
     "only every N-th block starts with a pass over the\nwhole canvas; 0: only the first (1; near: 0)"},
    {"skip-preset", 0, GENERATION, KIND_TEXT, NO_RANGE, FIELD(preset), "default|fast|careful|seed",
     "a named set of these options: fast (rows; refresh\nnear, near 32, window 32), careful (rows, ahead 1;\nrefresh "
     "full), seed (states: exit, masked tokens\ntoo, 0.95, 0.7; for study)"},

    {"shape", 0, CLI_BENCH, KIND_TEXT, NO_RANGE, FIELD(shape),
     "llada-8b|llada-1b|tiny|sdar-1.7b|sdar-8b|fast-dllm-v2-7b|dream-7b", "random weights in a model's shape (tiny)"},
    {"prompt", 0, CLI_BENCH, KIND_INT, FROM(1), FIELD(bench_prompt), "N", "tokens of the prompt (128)"},
    {"gen", 0, CLI_BENCH, KIND_INT, FROM(1), FIELD(bench_gen), "N", "positions after the prompt (128)"},
    {"block", 0, CLI_BENCH, KIND_INT, FROM(1), FIELD(bench_block), "N", "positions of a block (32)"},
    {"batch", 0, CLI_BENCH, KIND_INT, FROM(1), FIELD(batch), "N", "requests in each pass, all at the same step (1)"},
    {"active", 0, CLI_BENCH, KIND_IDS, NO_RANGE, FIELD(active), "A,B,...",
     "a run each with so many tokens above layer K"},
    {"refresh-active", 0, CLI_BENCH, KIND_IDS, NO_RANGE, FIELD(refresh_active), "A,B,...",
     "a run each of refreshes with the block and so\nmany more tokens above layer K (skip-refresh)"},
    {"repeat", 0, CLI_BENCH, KIND_INT, FROM(1), FIELD(repeat), "N", "blocks measured in each run (3)"},

    {"device", 0, ENGINES | CLI_BENCH, KIND_DEVICE, NO_RANGE, 0, "auto|cpu|cuda[:N]", "where it runs (auto)"},
    {"dtype", 0, ENGINES | CLI_BENCH, KIND_DTYPE, NO_RANGE, 0, "auto|f32|bf16", "of activations and cache (auto)"},
    {"weights", 0, ENGINES | CLI_BENCH | CLI_INSPECT, KIND_CHOICE, NO_RANGE, FIELD(weights), "as-stored|q8|q4",
     "what matrices are held as: quantised on load to 8\nbits, or most of them to 4 (as-stored)"},
    {"weights", 0, CLI_QUANTIZE, KIND_CHOICE, NO_RANGE, FIELD(quantize), "q8|q4",
     "8 bits, or 4 for most matrices (q4)"},
    {"threads", 0, ENGINES | CLI_BENCH | CLI_QUANTIZE, KIND_INT, RANGE(0, 1024), FIELD(model.n_threads), "N",
     "CPU threads (0: one a processor)"},
    {"visual", 0, CLI_GENERATE | CLI_CHAT | CLI_TRACE, KIND_SWITCH, NO_RANGE, FIELD(visual), "",
     "show the blocks filling in, in the terminal"},
    {"json", 0, CLI_GENERATE | CLI_INSPECT | CLI_EVAL | CLI_BENCH | CLI_TRACE | CLI_CALIBRATE | CLI_SWEEP, KIND_SWITCH,
     NO_RANGE, FIELD(json), "", "one JSON object"},
};
enum { N_OPTIONS = sizeof table / sizeof table[0] };
/* settings.given has a place for each option, or this does not compile */
typedef char options_fit_in_given[N_OPTIONS <= CLI_MAX_OPTIONS ? 1 : -1];

/* Named sets of the skip options, as a user would write them. Cache block has no block starts, to which some apply. */
static const struct { const char *preset, *option, *value; } presets[] = {
    {"default", NULL, NULL},
    /* measured on the demo model with one token a step: README, "What it gains" */
    {"fast", "skip-rule", "rows"},
    {"fast", "refresh", "near"},
    {"fast", "near", "32"},
    {"fast", "window", "32"},
    {"careful", "skip-rule", "rows"},
    {"careful", "rows-ahead", "1"},
    {"careful", "refresh", "full"},
    {"seed", "skip-rule", "states"},
    {"seed", "skip-policy", "exit"},
    {"seed", "skip-masked", "on"},
    {"seed", "skip-threshold", "0.95"},
    {"seed", "skip-outlier", "0.7"},
    {"seed", "skip-reference", "last-step"},
};

/* ---- Numbers ---------------------------------------------------------------------------------------------------- */

/* The command never calls setlocale, so strtoll and strtod read in the "C" locale. They would also skip white space
   and take hexadecimal: the first character and the character set are checked before. */
int cli_read_int(const char *text, int64_t min, int64_t max, int64_t *out) {
    char *end;
    long long value;
    if (text[0] != '-' && (text[0] < '0' || text[0] > '9')) return 0;
    errno = 0;
    value = strtoll(text, &end, 10);
    if (end == text || *end || errno || value < min || value > max) return 0;
    *out = value;
    return 1;
}

static int read_seed(const char *text, uint64_t *out) {
    char *end;
    if (text[0] < '0' || text[0] > '9') return 0;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return !*end && !errno;
}

/* Infinities and NaN are read, to be refused by name. */
static int read_double(const char *text, double *out) {
    char *end;
    int is_word = strspn(text, "+-infatyINFATY") == strlen(text);
    if (!text[0] || (!is_word && strspn(text, "+-.0123456789eE") != strlen(text))) return 0;
    *out = strtod(text, &end);
    return end != text && !*end;
}

static int is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

int cli_read_ids(const char *text, tsk_tokens *out) {
    const char *at = text;
    for (;;) {
        char number[16];
        size_t length;
        int64_t value;
        int32_t id;
        while (is_space(*at)) at++;
        length = strcspn(at, ", \t\r\n");
        if (length == 0 || length >= sizeof number) return 0;
        memcpy(number, at, length);
        number[length] = 0;
        if (!cli_read_int(number, 0, INT32_MAX, &value)) return 0;
        id = (int32_t)value;
        if (tsk_tokens_append(out, &id, 1) != TSK_OK) return 0;
        at += length;
        while (is_space(*at)) at++;
        if (!*at) return 1;
        if (*at == ',') at++;
    }
}

/* ---- Setting one option ----------------------------------------------------------------------------------------- */

/* The number of `value` in "a|b|c", or -1. */
static int choice_number(const char *choices, const char *value) {
    size_t length = strlen(value);
    int number = 0;
    for (;; number++) {
        size_t n = strcspn(choices, "|");
        if (n == length && strncmp(choices, value, n) == 0) return number;
        if (!choices[n]) return -1;
        choices += n + 1;
    }
}

static int read_device(const char *value, tsk_model_options *options) {
    int64_t index = 0;
    if (strcmp(value, "auto") == 0) options->device = TSK_DEVICE_AUTO;
    else if (strcmp(value, "cpu") == 0) options->device = TSK_DEVICE_CPU;
    else if (strcmp(value, "cuda") == 0) options->device = TSK_DEVICE_CUDA;
    else if (strncmp(value, "cuda:", 5) == 0 && cli_read_int(value + 5, 0, INT32_MAX, &index))
        options->device = TSK_DEVICE_CUDA;
    else return 0;
    options->device_index = (int)index;
    return 1;
}

static int read_dtype(const char *value, tsk_dtype *out) {
    static const tsk_dtype dtypes[] = {TSK_DTYPE_AUTO, TSK_DTYPE_F32, TSK_DTYPE_BF16};
    int number = choice_number("auto|f32|bf16", value);
    if (number >= 0) *out = dtypes[number];
    return number >= 0;
}

/* How many characters a name or a range takes in a message. */
enum { SHOWN = 96 };

/* What the user has written, or may write: "--gen-length"; in a request's line "\"gen_length\"", but for what the
   command line has given. */
static const char *show_name(const cli_settings *settings, const cli_option *option, char out[SHOWN]) {
    int is_member = settings->is_request && settings->given[option - table] != GIVEN_BEFORE;
    char *c;
    snprintf(out, SHOWN, is_member ? "\"%s\"" : "--%s", option->name);
    for (c = out; is_member && *c; c++)
        if (*c == '-') *c = '_';
    return out;
}

static int bad_value(const cli_settings *settings, const cli_option *option, const char *allowed, const char *value) {
    char name[SHOWN];
    return cli_usage_error("%s takes %s, not '%s'", show_name(settings, option, name), allowed, value);
}

static int bad_number(const cli_settings *settings, const cli_option *option, const char *value) {
    const option_range *range = &option->range;
    char allowed[SHOWN], most[32] = " on";
    if (range->most < FLT_MAX) snprintf(most, sizeof most, " to %.10g", range->most);
    snprintf(allowed, sizeof allowed, "%s %s %.10g%s", option->kind == KIND_INT ? "a whole number" : "a number",
             range->open ? "above" : "from", range->least, range->open ? "" : most);
    return bad_value(settings, option, allowed, value);
}

/* NaN is in no range. */
static int is_in_range(const option_range *range, double number) {
    return (range->open ? number > range->least : number >= range->least) && number <= range->most;
}

/* As a float, too: 1e-99 is not above 0. */
static int set_float(const cli_settings *settings, const cli_option *option, const char *value, float *out) {
    double number;
    if (!read_double(value, &number) || !is_in_range(&option->range, number) ||
        !is_in_range(&option->range, (double)(float)number))
        return bad_number(settings, option, value);
    *out = (float)number;
    return CLI_CONTINUE;
}

static int set_int(const cli_settings *settings, const cli_option *option, const char *value, int32_t *out) {
    int64_t number;
    if (!cli_read_int(value, (int64_t)option->range.least, (int64_t)option->range.most, &number))
        return bad_number(settings, option, value);
    *out = (int32_t)number;
    return CLI_CONTINUE;
}

static int set_ids(const cli_settings *settings, const cli_option *option, const char *value, tsk_tokens *out) {
    out->count = 0;
    return cli_read_ids(value, out) ? CLI_CONTINUE : bad_value(settings, option, "numbers like 1,2,3", value);
}

static int set_choice(const cli_settings *settings, const cli_option *option, const char *value, int *out) {
    int number = choice_number(option->argument, value);
    if (number < 0) return bad_value(settings, option, option->argument, value);
    *out = number;
    return CLI_CONTINUE;
}

/* A switch takes no value on the command line; "on" and "off" come from its --no- form and from presets. */
static int set_option(cli_settings *settings, const cli_option *option, const char *value) {
    void *field = (char *)settings + option->field;
    switch (option->kind) {
    case KIND_SWITCH: *(int *)field = strcmp(value, "on") == 0; return CLI_CONTINUE;
    case KIND_TEXT: *(const char **)field = value; return CLI_CONTINUE;
    case KIND_INT: return set_int(settings, option, value, (int32_t *)field);
    case KIND_FLOAT: return set_float(settings, option, value, (float *)field);
    case KIND_CHOICE: return set_choice(settings, option, value, (int *)field);
    case KIND_IDS: return set_ids(settings, option, value, (tsk_tokens *)field);
    case KIND_SEED:
        if (read_seed(value, (uint64_t *)field)) return CLI_CONTINUE;
        return bad_value(settings, option, "a whole number from 0 to 18446744073709551615", value);
    case KIND_DEVICE:
        settings->has_device_index = strchr(value, ':') != NULL;
        if (read_device(value, &settings->model)) return CLI_CONTINUE;
        return bad_value(settings, option, option->argument, value);
    case KIND_DTYPE:
        if (read_dtype(value, &settings->model.dtype)) return CLI_CONTINUE;
        return bad_value(settings, option, option->argument, value);
    }
    return CLI_CONTINUE;
}

/* ---- The command line ------------------------------------------------------------------------------------------- */

static const cli_option *find_option(unsigned command, const char *name, size_t length) {
    int i;
    for (i = 0; i < N_OPTIONS; i++)
        if ((table[i].commands & command) && strlen(table[i].name) == length &&
            strncmp(table[i].name, name, length) == 0)
            return &table[i];
    return NULL;
}

/* Finds "-m", "--name" and, for switches, "--no-name"; *value becomes "on" or "off" for a switch, the text after '='
   where there is one ("-m=DIR"), else NULL. */
static const cli_option *match_argument(unsigned command, const char *argument, const char **value) {
    const cli_option *option;
    const char *name = argument + 2;
    size_t length = strcspn(argument[1] == '-' ? name : "", "=");
    int i;
    *value = NULL;
    if (argument[1] != '-') {
        if (argument[2] && argument[2] != '=') return NULL;
        if (argument[2]) *value = argument + 3;
        for (i = 0; i < N_OPTIONS; i++)
            if ((table[i].commands & command) && table[i].letter && table[i].letter == argument[1]) return &table[i];
        return NULL;
    }
    option = find_option(command, name, length);
    if (option) {
        if (name[length] == '=') *value = name + length + 1;
        else if (option->kind == KIND_SWITCH) *value = "on";
        return option;
    }
    if (strncmp(name, "no-", 3) != 0 || name[length] == '=') return NULL;
    option = find_option(command, name + 3, length - 3);
    *value = "off";
    return option && option->kind == KIND_SWITCH && option->field != FIELD(no_threshold) ? option : NULL;
}

int cli_given(const cli_settings *settings, const char *name) {
    int i;
    for (i = 0; i < N_OPTIONS; i++)
        if (settings->given[i] == GIVEN_HERE && strcmp(table[i].name, name) == 0) return 1;
    return 0;
}

static void print_option(tsk_text *out, const cli_option *option) {
    char left[64];
    const char *help = option->help;
    snprintf(left, sizeof left, "%s%s%s", option->name, option->argument[0] ? " " : "", option->argument);
    if (option->letter) cli_append(out, "  -%c, --%-30s", option->letter, left);
    else if (option->kind == KIND_SWITCH && option->field != FIELD(no_threshold))
        cli_append(out, "      --[no-]%-25s", left);
    else cli_append(out, "      --%-30s", left);
    if (strlen(left) > 30 || (option->kind == KIND_SWITCH && strlen(left) > 25)) cli_append(out, "\n%38s", "");
    for (;;) {
        size_t n = strcspn(help, "\n");
        cli_append(out, "%.*s\n", (int)n, help);
        if (!help[n]) break;
        help += n + 1;
        cli_append(out, "%38s", "");
    }
}

int cli_print_help(const cli_command *command) {
    tsk_text out = {0};
    int i, status;
    cli_append(&out, "usage: tokenskip %s %s\n\n%s\n", command->name, command->usage, command->summary);
    if (command->notes[0]) cli_append(&out, "\n%s", command->notes);
    cli_append(&out, "\noptions (defaults in parentheses):\n");
    for (i = 0; i < N_OPTIONS; i++)
        if (table[i].commands & command->bit) print_option(&out, &table[i]);
    cli_append(&out, "  -h, --help                          this text\n");
    status = cli_write(out.data, out.length);
    tsk_text_free(&out);
    return status;
}

static int is_help(const char *argument) { return strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0; }

/* One argument, and the value after it where it takes one. */
static int next_option(const cli_command *command, int argc, char **argv, int *i, const cli_option **out,
                       const char **out_value) {
    const char *argument = argv[*i], *value, *unused;
    const cli_option *option = match_argument(command->bit, argument, &value);
    if (!option && command->bit == CLI_AGAINST && match_argument(CLI_EVAL | CLI_TRACE, argument, &value))
        return cli_usage_error("'%s' is no option of a generation: it holds for both settings", argument);
    if (!option)
        return cli_usage_error("%s has no option '%s' (tokenskip %s --help lists them)", command->name, argument,
                               command->name);
    if (option->kind == KIND_SWITCH && strchr(argument, '='))
        return cli_usage_error("--%s takes no value", option->name);
    if (!value) {
        value = *i + 1 < argc ? argv[++*i] : NULL;
        /* an option where a value should stand is a forgotten value, unless options are the value */
        if (!value ||
            (option->field != FIELD(against) && option->field != FIELD(versus) &&
             (is_help(value) ||
              (value[0] == '-' && value[1] == '-' && match_argument(command->bit, value, &unused)))))
            return cli_usage_error("%s needs a value: %s", argument, option->argument);
    }
    *out = option;
    *out_value = value;
    return CLI_CONTINUE;
}

static int parse_option(cli_settings *settings, const cli_command *command, int argc, char **argv, int *i) {
    const cli_option *option = NULL;
    const char *value = NULL;
    int status = next_option(command, argc, argv, i, &option, &value);
    if (status != CLI_CONTINUE) return status;
    settings->given[option - table] = GIVEN_HERE;
    return set_option(settings, option, value);
}

static int parse_positional(cli_settings *settings, const cli_command *command, const char *argument) {
    if (command->bit == CLI_BATCH) {
        settings->paths = (const char **)cli_reallocate(settings->paths, settings->n_paths + 1,
                                                        sizeof *settings->paths);
        settings->paths[settings->n_paths++] = argument;
        return CLI_CONTINUE;
    }
    if (command->bit == CLI_QUANTIZE && settings->path) {
        if (settings->output)
            return cli_usage_error("quantize takes two folders, and got '%s', '%s' and '%s'", settings->path,
                                   settings->output, argument);
        settings->output = argument;
        return CLI_CONTINUE;
    }
    if (command->bit != CLI_INSPECT && command->bit != CLI_QUANTIZE)
        return cli_usage_error("%s takes no argument '%s'", command->name, argument);
    if (settings->path)
        return cli_usage_error("inspect takes one path, and got '%s' and '%s'", settings->path, argument);
    settings->path = argument;
    return CLI_CONTINUE;
}

/* ---- What belongs together -------------------------------------------------------------------------------------- */

/* An option of a generation, which the command at hand may not have. */
static const cli_option *generation_option(const char *name) { return find_option(GENERATION, name, strlen(name)); }

static const char *shown(const cli_settings *settings, const char *name, char out[SHOWN]) {
    return show_name(settings, generation_option(name), out);
}

/* Here or, of a request, on the command line. */
static int is_given_at_all(const cli_settings *settings, const char *name) {
    return settings->given[generation_option(name) - table] != 0;
}

/* Of so many options that say the same thing, one at most may be there. */
static int only_one_of(const cli_settings *settings, int n, const cli_option *const *options, const int *is_there) {
    char list[6 * SHOWN] = "", name[SHOWN];
    int i, count = 0, left = 0;
    for (i = 0; i < n; i++) left += is_there[i];
    if (left < 2) return CLI_CONTINUE;
    for (i = 0; i < n; i++) {
        size_t end = strlen(list);
        if (!is_there[i]) continue;
        left--;
        snprintf(list + end, sizeof list - end, "%s%s", !count++ ? "" : left ? ", " : " and ",
                 show_name(settings, options[i], name));
    }
    return cli_usage_error("only one of %s can be given", list);
}

static int is_of_block_starts(const char *name) {
    return strcmp(name, "refresh") == 0 || strcmp(name, "near") == 0 || strcmp(name, "window") == 0;
}

static int apply_preset(cli_settings *settings) {
    size_t i;
    int known = 0;
    if (!settings->preset) return CLI_CONTINUE;
    for (i = 0; i < sizeof presets / sizeof presets[0]; i++) {
        if (strcmp(presets[i].preset, settings->preset) != 0) continue;
        known = 1;
        if (!presets[i].option || cli_given(settings, presets[i].option)) continue;
        if (settings->cache == (int)TSK_CACHE_BLOCK && is_of_block_starts(presets[i].option)) continue;
        set_option(settings, generation_option(presets[i].option), presets[i].value);
    }
    if (known) return CLI_CONTINUE;
    return bad_value(settings, generation_option("skip-preset"), "default, fast, careful or seed", settings->preset);
}

/* The options of which one says what the transfer rule is. LocalLeap's threshold belongs to it. */
enum { N_TRANSFERS = 6 };
static const struct { const char *option; tsk_transfer transfer; } transfers[N_TRANSFERS] = {
    {"threshold", TSK_TRANSFER_THRESHOLD}, {"no-threshold", TSK_TRANSFER_SCHEDULE}, {"factor", TSK_TRANSFER_FACTOR},
    {"frechet", TSK_TRANSFER_FRECHET},     {"entropy-bound", TSK_TRANSFER_ENTROPY}, {"local-leap", TSK_TRANSFER_LEAP},
};

static int transfer_is_given(const cli_settings *settings) {
    int i;
    for (i = 0; i < N_TRANSFERS; i++)
        if (cli_given(settings, transfers[i].option)) return 1;
    return 0;
}

static int choose_transfer(cli_settings *settings) {
    const cli_option *options[N_TRANSFERS];
    int is_there[N_TRANSFERS], i;
    settings->generate.transfer = TSK_TRANSFER_THRESHOLD;
    for (i = 0; i < N_TRANSFERS; i++) {
        options[i] = generation_option(transfers[i].option);
        is_there[i] = transfers[i].transfer == TSK_TRANSFER_SCHEDULE ? settings->no_threshold
                                                                     : cli_given(settings, transfers[i].option);
        if (is_there[i]) settings->generate.transfer = transfers[i].transfer;
    }
    if (settings->generate.transfer == TSK_TRANSFER_LEAP) is_there[0] = 0;
    return only_one_of(settings, N_TRANSFERS, options, is_there);
}

static int check_transfer(const cli_settings *settings) {
    char name[SHOWN], needs[SHOWN];
    if (!cli_given(settings, "local-radius") || settings->generate.transfer == TSK_TRANSFER_LEAP) return CLI_CONTINUE;
    return cli_usage_error("%s needs %s", shown(settings, "local-radius", name), shown(settings, "local-leap", needs));
}

/* Which caches there are depends on the model. One whose configuration cannot be read is for loading to complain of. */
static void choose_cache(cli_settings *settings) {
    tsk_model_config config;
    tsk_error error;
    if (settings->model_dir && tsk_config_load(settings->model_dir, NULL, &config, &error) == TSK_OK)
        settings->by_blocks = tsk_config_by_blocks(&config);
    if (settings->cache == TSK_CACHE_AUTO) settings->cache = settings->by_blocks ? TSK_CACHE_BLOCK : TSK_CACHE_DUAL;
}

/* An answer shorter than the default block is one block, but for a model with blocks of its own. */
static void choose_block_length(cli_settings *settings) {
    tsk_generate_options *o = &settings->generate;
    int32_t usual = 32;
    if (settings->by_blocks || is_given_at_all(settings, "block-length")) return;
    o->block_length = o->gen_length < usual ? o->gen_length : usual;
    if (!settings->is_request && cli_given(settings, "gen-length") && o->block_length < usual)
        cli_warn("--gen-length %d is less than a block of %d: the answer is one block of %d", (int)o->gen_length,
                 (int)usual, (int)o->block_length);
}

static int check_lengths(const cli_settings *settings) {
    const tsk_generate_options *o = &settings->generate;
    char a[SHOWN], b[SHOWN];
    int32_t blocks;
    if (settings->by_blocks != (settings->cache == (int)TSK_CACHE_BLOCK))
        return cli_usage_error(settings->by_blocks ? "the model attends by blocks, and works with %s block only"
                                                   : "%s block works with models that attend by blocks only",
                               shown(settings, "cache", a));
    if (!settings->by_blocks && is_given_at_all(settings, "small-block") && o->small_block)
        return cli_usage_error("%s %d works with %s block only", shown(settings, "small-block", a),
                               (int)o->small_block, shown(settings, "cache", b));
    if (settings->by_blocks) return CLI_CONTINUE;
    blocks = o->gen_length / o->block_length;
    if (o->gen_length % o->block_length != 0)
        return cli_usage_error("%s %d is not a multiple of %s %d", shown(settings, "gen-length", a), (int)o->gen_length,
                               shown(settings, "block-length", b), (int)o->block_length);
    if (o->steps != TSK_AUTO && o->steps % blocks != 0)
        return cli_usage_error("%s %d is not a multiple of the number of blocks, %d", shown(settings, "steps", a),
                               (int)o->steps, (int)blocks);
    return CLI_CONTINUE;
}

static int check_prompt(const cli_settings *settings, const cli_command *command) {
    const cli_option *options[2];
    int is_there[2], ids = cli_given(settings, "prompt-ids");
    options[0] = find_option(command->bit, "prompt", 6);
    options[1] = find_option(command->bit, "prompt-ids", 10);
    is_there[0] = settings->prompt != NULL;
    is_there[1] = ids;
    if (ids && settings->system) return cli_usage_error("--system needs a prompt as text, not as --prompt-ids");
    if (settings->raw && settings->thinking != TSK_AUTO)
        return cli_usage_error("--thinking needs the chat template, which --raw leaves out");
    if (settings->raw && settings->system)
        return cli_usage_error("--system needs the chat template, which --raw leaves out");
    return ids ? only_one_of(settings, 2, options, is_there) : CLI_CONTINUE;
}

/* The first of these options that is given here, or at all; NULL: none. */
static const char *given_of(const cli_settings *settings, const char *const *names, int here) {
    for (; *names; names++)
        if (here ? cli_given(settings, *names) : is_given_at_all(settings, *names)) return *names;
    return NULL;
}

/* Of rule states' options; a switch that is off says nothing. */
static const char *states_given(const cli_settings *settings, int here) {
    static const char *const names[] = {"skip-layer-k", "skip-threshold", "skip-outlier", "skip-policy",
                                        "skip-reference", "skip-max-age", NULL};
    static const char *const masked[] = {"skip-masked", NULL}, *const warm[] = {"skip-warm-start", NULL};
    const char *name = given_of(settings, names, here);
    if (!name && settings->generate.skip.masked) name = given_of(settings, masked, here);
    if (!name && settings->generate.skip.warm_start) name = given_of(settings, warm, here);
    return name;
}

/* Whether a step runs the block and no more, of which TokenSkip may leave something out. */
static int runs_blocks(const cli_settings *settings) {
    return settings->cache == (int)TSK_CACHE_DUAL || settings->cache == (int)TSK_CACHE_BLOCK;
}

/* Without --skip-rule the rule is the one whose options are given; what a request gives comes before the command
   line. A K of 0 is for the library to read. */
static int choose_rule(cli_settings *settings) {
    static const char *const of_rows[] = {"rows-margin", "rows-ahead", NULL};
    tsk_skip_options *skip = &settings->generate.skip;
    char a[SHOWN], b[SHOWN], c[SHOWN];
    int here;
    skip->rule = (tsk_skip_rule)settings->skip_rule;
    for (here = 1; here >= 0 && skip->rule == TSK_SKIP_RULE_AUTO; here--) {
        const char *states = states_given(settings, here), *rows = given_of(settings, of_rows, here);
        if (states && rows)
            return cli_usage_error("%s is of rule states and %s of rule rows: say %s states or rows",
                                   shown(settings, states, a), shown(settings, rows, b),
                                   shown(settings, "skip-rule", c));
        if (rows) skip->rule = TSK_SKIP_RULE_ROWS;
        if (states && (skip->layer_k != TSK_AUTO || !runs_blocks(settings))) return CLI_CONTINUE;
        if (states) skip->rule = TSK_SKIP_RULE_STATES;
    }
    return CLI_CONTINUE;
}

static void choose_refresh(cli_settings *settings) {
    tsk_generate_options *o = &settings->generate;
    o->refresh = (tsk_refresh)settings->refresh;
    if (o->refresh == TSK_REFRESH_AUTO && (is_given_at_all(settings, "near") || o->refresh_window > 0))
        o->refresh = TSK_REFRESH_NEAR;
}

/* The option by which the user came to what they say, the first with its `value`. */
static const char *shown_of(const cli_settings *settings, const char *const *names, const char *value,
                            char out[2 * SHOWN]) {
    const char *name = given_of(settings, names, 0);
    char text[SHOWN];
    snprintf(out, 2 * SHOWN, "%s%s%s", shown(settings, name ? name : names[0], text),
             !name || name == names[0] ? " " : "", !name || name == names[0] ? value : "");
    return out;
}

static int check_rows(const cli_settings *settings) {
    static const char *const of_rows[] = {"skip-rule", "rows-margin", "rows-ahead", "skip-preset", NULL};
    static const char *const of_states[] = {"skip-rule", "skip-preset", NULL};
    static const char *const of_near[] = {"refresh", "near", "window", "skip-preset", NULL};
    const tsk_generate_options *o = &settings->generate;
    int is_dual = settings->cache == (int)TSK_CACHE_DUAL, is_near = o->refresh == TSK_REFRESH_NEAR;
    char a[SHOWN], b[SHOWN], near[2 * SHOWN], rows[2 * SHOWN];
    shown(settings, "cache", b);
    shown_of(settings, of_near, "near", near);
    shown_of(settings, of_rows, "rows", rows);
    if (!runs_blocks(settings) && o->skip.rule == TSK_SKIP_RULE_ROWS)
        return cli_usage_error("%s works with %s dual only", rows, b);
    if (!runs_blocks(settings) && o->skip.rule == TSK_SKIP_RULE_STATES && o->skip.layer_k == TSK_AUTO)
        return cli_usage_error("%s works with %s dual only", shown_of(settings, of_states, "states", rows), b);
    if (!is_dual && (is_near || o->refresh_window > 0))
        return cli_usage_error("%s works with %s dual only", near, b);
    if (o->skip.refresh && (is_near || o->refresh_window > 0))
        return cli_usage_error("%s and %s exclude each other", near, shown(settings, "skip-refresh", b));
    if (!is_near &&
        (cli_given(settings, "near") || (is_given_at_all(settings, "near") && !cli_given(settings, "refresh"))))
        return cli_usage_error("%s works with %s near only", shown(settings, "near", a), shown(settings, "refresh", b));
    if (!is_near && o->refresh_window > 0 && o->refresh_every != TSK_AUTO && o->refresh_every != 1)
        return cli_usage_error("%s needs %s near, or %s 1", shown(settings, "window", a), "--refresh",
                               shown(settings, "refresh-every", b));
    return CLI_CONTINUE;
}

static int has_token_skip(const cli_settings *settings) {
    const tsk_skip_options *skip = &settings->generate.skip;
    return runs_blocks(settings) && skip->layer_k != 0 && skip->rule != TSK_SKIP_RULE_OFF;
}

/* What the caches do not have. A K or a row count beyond the model is for the library to say. */
static int check_skip(const cli_settings *settings) {
    const tsk_generate_options *o = &settings->generate;
    int is_dual = settings->cache == (int)TSK_CACHE_DUAL;
    const char *from = is_given_at_all(settings, "skip-refresh") ? "skip-refresh" : "skip-preset";
    char a[SHOWN], b[SHOWN], c[SHOWN];
    shown(settings, "cache", b);
    if (o->skip.rule == TSK_SKIP_RULE_STATES && o->skip.layer_k == 0)
        return cli_usage_error("%s states needs a %s above 0", shown(settings, "skip-rule", a),
                               shown(settings, "skip-layer-k", c));
    if (o->skip.rule == TSK_SKIP_RULE_OFF && o->skip.refresh)
        return cli_usage_error("%s and %s off exclude each other", shown(settings, from, a),
                               shown(settings, "skip-rule", c));
    if (!runs_blocks(settings) && o->skip.layer_k > 0 && o->skip.rule != TSK_SKIP_RULE_OFF)
        return cli_usage_error("%s %d works with %s dual only", shown(settings, "skip-layer-k", a),
                               (int)o->skip.layer_k, b);
    if (o->skip.refresh && !has_token_skip(settings))
        return cli_usage_error("%s needs TokenSkip: %s dual and a %s above 0", shown(settings, from, a), b,
                               shown(settings, "skip-layer-k", c));
    if (!is_dual && o->refresh_rows > 0)
        return cli_usage_error("%s %d works with %s dual only", shown(settings, "refresh-rows", a),
                               (int)o->refresh_rows, b);
    if (settings->by_blocks && (o->skip.refresh || o->skip.warm_start || o->refresh_every != TSK_AUTO))
        return cli_usage_error("%s block refreshes nothing: %s works with other caches only", b,
                               shown(settings,
                                     o->skip.refresh      ? "skip-refresh"
                                     : o->skip.warm_start ? "skip-warm-start"
                                                          : "refresh-every",
                                     a));
    if (settings->cache == (int)TSK_CACHE_NONE && o->refresh_every != 1 && o->refresh_every != TSK_AUTO)
        return cli_usage_error("%s %d works with %s dual and prefix only", shown(settings, "refresh-every", a),
                               (int)o->refresh_every, b);
    return CLI_CONTINUE;
}

/* What every generation's options must have in common, those of the command line and those of a request. */
static int check_generation(cli_settings *settings) {
    int status;
    choose_block_length(settings);
    status = check_lengths(settings);
    if (status == CLI_CONTINUE) status = check_transfer(settings);
    if (status == CLI_CONTINUE) status = choose_rule(settings);
    choose_refresh(settings);
    if (status == CLI_CONTINUE) status = check_rows(settings);
    return status == CLI_CONTINUE ? check_skip(settings) : status;
}

/* A choice's values stand in the table in the order of the enumeration they mean. */
static void copy_choices(cli_settings *settings) {
    settings->generate.cache = (tsk_cache)settings->cache;
    settings->generate.remasking = (tsk_remasking)settings->remasking;
    if (!settings->model.n_threads) settings->model.n_threads = TSK_AUTO;
    settings->model.weights = (tsk_weights)settings->weights;
    settings->generate.skip.policy = (tsk_skip_policy)settings->skip_policy;
    settings->generate.skip.reference = (tsk_skip_reference)settings->skip_reference;
}

/* `batch --merge` is a command of its own, but for its name. */
static int check_merge(const cli_settings *settings) {
    if (!settings->n_paths || !settings->output)
        return cli_usage_error("batch --merge needs the files to join and --output FILE");
    if (settings->input || settings->model_dir || settings->shard)
        return cli_usage_error("batch --merge takes no --%s",
                               settings->input ? "input" : settings->model_dir ? "model" : "shard");
    return CLI_CONTINUE;
}

static int check_required(const cli_settings *settings, const cli_command *command) {
    const cli_option *model = find_option(command->bit, "model", 5);
    if (settings->merge) return check_merge(settings);
    if (settings->n_paths)
        return cli_usage_error("%s takes no argument '%s' without --merge", command->name, settings->paths[0]);
    if (model && command->bit != CLI_BENCH && !settings->model_dir)
        return cli_usage_error("%s needs -m DIR, the model's folder", command->name);
    if (command->bit == CLI_BENCH && settings->model_dir && settings->shape)
        return cli_usage_error("only one of --model and --shape can be given");
    if (command->bit == CLI_INSPECT && !settings->path)
        return cli_usage_error("inspect needs a path: a .safetensors file or a model folder");
    if (command->bit == CLI_QUANTIZE && !settings->output)
        return cli_usage_error("quantize needs two folders: the model's, and the one to write");
    if (find_option(command->bit, "data", 4) && !settings->data)
        return cli_usage_error("%s needs --data FILE.jsonl", command->name);
    if (command->bit == CLI_SWEEP && !settings->svg) return cli_usage_error("sweep needs --svg FILE");
    if (command->bit == CLI_CALIBRATE && !cli_given(settings, "max-error"))
        return cli_usage_error("calibrate needs --max-error R");
    if (command->bit == CLI_BATCH && (!settings->input || !settings->output))
        return cli_usage_error("batch needs --input FILE and --output FILE");
    if (command->bit == CLI_TEMPLATE && !settings->messages)
        return cli_usage_error("template needs --messages FILE.json");
    return CLI_CONTINUE;
}

/* ---- Options in a text: a file of --settings, --against, --versus ----------------------------------------------- */

/* Words between white space, which quotes of either kind keep together; NULL when one does not end. One block, which
   the caller frees. */
static char **split(const char *text, int *n) {
    size_t length = strlen(text), most = length / 2 + 1;
    char **words = (char **)cli_allocate(most * sizeof *words + length + 1, 1), *to = (char *)(words + most);
    *n = 0;
    for (;;) {
        text += strspn(text, " \t\r\n");
        if (!*text) return words;
        words[(*n)++] = to;
        while (*text && !strchr(" \t\r\n", *text)) {
            int is_quoted = *text == '\'' || *text == '"';
            size_t size = 1;
            if (is_quoted) {
                const char *end = strchr(text + 1, *text);
                if (!end) return free(words), NULL;
                size = (size_t)(end - ++text);
            }
            memcpy(to, text, size);
            to += size;
            text += size + (size_t)is_quoted;
        }
        *to++ = 0;
    }
}

/* The words of all files of --settings: options point into them. */
typedef struct settings_text {
    struct settings_text *next;
    char **words;
} settings_text;
static settings_text *settings_texts;

void cli_settings_files_free(void) {
    while (settings_texts) {
        settings_text *next = settings_texts->next;
        free(settings_texts->words);
        free(settings_texts);
        settings_texts = next;
    }
}

/* Lines that begin with # become blank. */
static void blank_comments(char *text) {
    while (*text) {
        size_t blanks = strspn(text, " \t"), length = strcspn(text, "\n");
        if (text[blanks] == '#') memset(text, ' ', length);
        text += length + (text[length] == '\n');
    }
}

static int is_transfer(const cli_option *option) {
    int i;
    for (i = 0; i < N_TRANSFERS; i++)
        if (strcmp(transfers[i].option, option->name) == 0) return 1;
    return strcmp("local-radius", option->name) == 0;
}

/* One option of a file. The command line's own value wins, and so does its transfer rule. */
static int parse_file_option(cli_settings *settings, const cli_command *command, int n_words, char **words, int *i,
                             const cli_settings *given) {
    const cli_option *option = NULL;
    const char *value = NULL;
    cli_settings unused = *settings;
    int status = next_option(command, n_words, words, i, &option, &value);
    if (status != CLI_CONTINUE) return status;
    if (option->field == FIELD(settings_file)) return cli_usage_error("--settings cannot name a further file");
    if (given->given[option - table] == GIVEN_HERE || (transfer_is_given(given) && is_transfer(option)))
        return set_option(&unused, option, value); /* it must make sense all the same */
    settings->given[option - table] = GIVEN_HERE;
    return set_option(settings, option, value);
}

/* The options of --settings come before those given beside it, which win. */
static int read_settings(cli_settings *settings) {
    static const cli_command command = {CLI_AGAINST, "a file of settings", "", "", "", NULL};
    const char *path = settings->settings_file;
    const cli_settings given = *settings;
    int n_words = 0, i, status;
    settings_text *kept;
    tsk_text text = {0};
    char **words = NULL;
    if (!path) return CLI_CONTINUE;
    status = cli_read_file(path, 1 << 16, &text) == CLI_OK ? CLI_CONTINUE : CLI_FAILED;
    cli_place_messages(path);
    if (status == CLI_CONTINUE && text.data) {
        if (strlen(text.data) != text.length) status = cli_fail("no text: it holds a NUL byte");
        blank_comments(text.data);
        if (status == CLI_CONTINUE) words = split(text.data, &n_words);
        if (status == CLI_CONTINUE && !words) status = cli_fail("a quote has no end");
    }
    for (i = 0; i < n_words && status == CLI_CONTINUE; i++) {
        if (words[i][0] != '-' || !words[i][1]) status = parse_positional(settings, &command, words[i]);
        else status = parse_file_option(settings, &command, n_words, words, &i, &given);
    }
    cli_place_messages(NULL);
    kept = (settings_text *)cli_allocate(1, sizeof *kept);
    kept->words = words;
    kept->next = settings_texts;
    settings_texts = kept;
    tsk_text_free(&text);
    return status;
}

static int finish(cli_settings *settings, const cli_command *command) {
    int status = check_required(settings, command);
    if (status == CLI_CONTINUE) status = read_settings(settings);
    if (status == CLI_CONTINUE && find_option(command->bit, "gen-length", 10)) choose_cache(settings);
    if (status == CLI_CONTINUE) status = apply_preset(settings);
    if (status == CLI_CONTINUE) status = choose_transfer(settings);
    if (status == CLI_CONTINUE) status = check_prompt(settings, command);
    if (status == CLI_CONTINUE && find_option(command->bit, "gen-length", 10)) status = check_generation(settings);
    copy_choices(settings);
    return status;
}

static void set_defaults(cli_settings *settings) {
    memset(settings, 0, sizeof *settings);
    settings->model = tsk_model_options_default();
    settings->model.log = cli_log;
    settings->generate = tsk_generate_options_default();
    settings->bench_prompt = settings->bench_gen = 128;
    settings->bench_block = 32;
    settings->batch = 1;
    settings->repeat = 3;
    settings->minutes = 5;
    settings->cache = TSK_CACHE_AUTO;
    settings->thinking = TSK_AUTO;
    settings->skip_rule = TSK_SKIP_RULE_AUTO;
    settings->refresh = TSK_REFRESH_AUTO;
    settings->max_batch = 16;
    settings->quantize = 1;
}

int cli_parse(cli_settings *settings, const cli_command *command, int argc, char **argv) {
    int i, only_paths = 0, status = CLI_CONTINUE;
    set_defaults(settings);
    for (i = 0; i < argc && status == CLI_CONTINUE; i++) {
        if (!only_paths && strcmp(argv[i], "--") == 0) only_paths = 1;
        else if (only_paths || argv[i][0] != '-' || !argv[i][1]) status = parse_positional(settings, command, argv[i]);
        else if (is_help(argv[i])) return cli_print_help(command);
        else status = parse_option(settings, command, argc, argv, &i);
    }
    return status == CLI_CONTINUE ? finish(settings, command) : status;
}

/* ---- A request in JSON ------------------------------------------------------------------------------------------ */

void cli_request_begin(cli_settings *request, const cli_settings *defaults) {
    int i;
    *request = *defaults;
    memset(&request->prompt_ids, 0, sizeof request->prompt_ids); /* these three stay the command line's */
    memset(&request->active, 0, sizeof request->active);
    memset(&request->refresh_active, 0, sizeof request->refresh_active);
    for (i = 0; i < N_OPTIONS; i++) request->given[i] = request->given[i] ? GIVEN_BEFORE : 0;
    request->is_request = 1;
    request->preset = NULL;
    request->settings_file = NULL;
}

/* The value as it would stand on the command line; NULL when it is not of the option's type. A whole number may be
   written as 32.0; any other keeps its digits, so that the same strict reading decides. */
static const char *argument_of(const cli_option *option, const char *sense, const tsk_json_value *value,
                               const char *line, char number[64]) {
    const char *text = line + tsk_json_offset(value);
    size_t length;
    uint64_t whole;
    int on;
    switch (option->kind) {
    case KIND_SWITCH:
        return !tsk_json_bool(value, &on) ? NULL : on == (strcmp(sense, "on") == 0) ? "on" : "off";
    case KIND_INT: case KIND_SEED: case KIND_FLOAT:
        length = strspn(text, "+-.0123456789eE");
        if (tsk_json_type_of(value) != TSK_JSON_NUMBER || length > 63) return NULL;
        if (option->kind != KIND_FLOAT && tsk_json_uint64(value, &whole)) {
            snprintf(number, 64, "%llu", (unsigned long long)whole);
            return number;
        }
        memcpy(number, text, length);
        number[length] = 0;
        return number;
    default:
        text = tsk_json_string(value, &length);
        return text && strlen(text) == length ? text : NULL;
    }
}

static const char *type_name(option_kind kind) {
    return kind == KIND_SWITCH ? "true or false" : kind == KIND_TEXT || kind == KIND_CHOICE ? "a string" : "a number";
}

int cli_request_set(cli_settings *request, const char *key, const tsk_json_value *value, const char *line) {
    char name[66] = "--", number[64];
    const cli_option *option = NULL;
    const char *sense, *argument;
    size_t i, length = strlen(key);
    if (length < sizeof name - 2 && !strpbrk(key, "-=")) {
        for (i = 0; i <= length; i++) name[i + 2] = (char)(key[i] == '_' ? '-' : key[i]);
        option = match_argument(CLI_REQUEST, name, &sense);
    }
    if (!option) return cli_usage_error("a request has no member \"%.100s\"", key);
    argument = argument_of(option, sense ? sense : "on", value, line, number);
    if (!argument) return cli_usage_error("\"%s\" must be %s", key, type_name(option->kind));
    request->given[option - table] = GIVEN_HERE;
    return set_option(request, option, argument);
}

/* Gives what only the command line's preset has set its default again. */
static void leave_preset(cli_settings *request) {
    cli_settings defaults;
    size_t i;
    set_defaults(&defaults);
    for (i = 0; i < sizeof presets / sizeof presets[0]; i++) {
        const cli_option *option = presets[i].option ? generation_option(presets[i].option) : NULL;
        if (!option || request->given[option - table]) continue;
        memcpy((char *)request + option->field, (const char *)&defaults + option->field,
               option->kind == KIND_FLOAT ? sizeof(float) : sizeof(int32_t));
    }
}

int cli_request_end(cli_settings *request) {
    int status;
    if (request->preset || !has_token_skip(request)) leave_preset(request);
    status = apply_preset(request);
    if (transfer_is_given(request)) {
        if (!cli_given(request, "no-threshold")) request->no_threshold = 0; /* the command line's choice is overruled */
        if (status == CLI_CONTINUE) status = choose_transfer(request);
    }
    copy_choices(request);
    return status == CLI_CONTINUE ? check_generation(request) : status;
}

/* ---- Settings in one text: --against, --versus ------------------------------------------------------------------- */

static int parse_words(cli_settings *against, const cli_command *command, int n_words, char **words) {
    int i, status = CLI_CONTINUE;
    for (i = 0; i < n_words && status == CLI_CONTINUE; i++)
        status = words[i][0] == '-' && words[i][1] ? parse_option(against, command, n_words, words, &i)
                                                   : parse_positional(against, command, words[i]);
    if (status == CLI_CONTINUE) status = read_settings(against);
    if (status == CLI_CONTINUE) status = check_prompt(against, command);
    return status == CLI_CONTINUE ? cli_request_end(against) : status;
}

int cli_parse_against(cli_settings *against, const cli_settings *given, const char *name, const char *option,
                      const char *text, char ***words) {
    cli_command command = {CLI_AGAINST, NULL, "", "", "", NULL};
    int n_words, status;
    command.name = name;
    cli_request_begin(against, given);
    against->is_request = 0;
    cli_place_messages(option);
    *words = split(text, &n_words);
    status = *words ? parse_words(against, &command, n_words, *words)
                    : cli_usage_error("a quote has no end: %s", text);
    cli_place_messages(NULL);
    return status;
}

void cli_settings_free(cli_settings *settings) {
    tsk_tokens_free(&settings->prompt_ids);
    tsk_tokens_free(&settings->active);
    tsk_tokens_free(&settings->refresh_active);
    free(settings->paths);
    settings->paths = NULL;
}
