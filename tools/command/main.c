/* The `tokenskip` command: finds the subcommand and runs it. */
#include "system.h"

#define PROMPT_NOTE \
    "The prompt comes from -p, from --prompt-ids, or from standard input (without its last newline).\n"

static const cli_command commands[] = {
    {CLI_GENERATE, "generate", "-m DIR (-p TEXT | --prompt-ids IDS | < FILE) [options]", "Answers one prompt.",
     PROMPT_NOTE "A folder without a tokenizer works with --prompt-ids; ids are printed then.\n", cmd_generate},
    {CLI_CHAT, "chat", "-m DIR [options]", "A conversation in the terminal.",
     "One line is one message. /reset forgets the conversation; /exit or " SYSTEM_END_KEYS
     " ends it, with exit status 0.\n"
     "Ctrl-C ends the answer under way, of which what came is kept. At the prompt it asks, and once more it ends the\n"
     "conversation, with 130. Where messages do not come from a terminal, it ends the conversation at once.\n",
     cmd_chat},
    {CLI_TOKENIZE, "tokenize", "-m DIR [--jsonl] [--decode] < FILE", "Text to token ids, and back.",
     "Special tokens written out in the text are recognised; none is added.\n", cmd_tokenize},
    {CLI_TEMPLATE, "template", "-m DIR --messages FILE.json", "Renders a conversation by the model's chat template.",
     "A message's content is a string or a list of {\"type\": \"text\", \"text\"}, whose texts follow one another.\n",
     cmd_template},
    {CLI_INSPECT, "inspect", "PATH [--weights q8|q4] [--json]",
     "What is in a .safetensors file or a model folder, without reading weights.", "", cmd_inspect},
    {CLI_QUANTIZE, "quantize", "DIR OUT [--weights q4|q8]", "Writes a model's folder with quantised weights.",
     "Matrices become integers of 8 or 4 bits with a scale for every 128 columns (64 or 32 where 128 does not divide "
     "them);\n"
     "at 4 bits the second map of each feed-forward network and the head keep 8. The embedding stays as it is, unless "
     "it is\n"
     "the head, too. OUT is a folder in compressed-tensors' format (pack-quantized) that loads by mapping, with the "
     "tokenizer's\n"
     "files. It must hold no config.json; that comes last, so that a folder that has one is whole. After a failure or "
     "an\n"
     "interruption what was written is removed.\n",
     cmd_quantize},
    {CLI_EVAL, "eval", "-m DIR --data FILE.jsonl [options]", "How many answers are right.",
     "An answer is right when the generated text, trimmed, ends with it, and nothing, a space, or punctuation other "
     "than\n"
     "'-' and '.' stands before it. What an answer took is printed too, on average:\n"
     "  mean_nfe                forward passes\n"
     "  mean_refreshes          those over the whole canvas; with cache none, all of them\n"
     "  mean_rows               positions that passes ran through all layers, summed over the passes: what TokenSkip "
     "skips is\n"
     "                          not in it, what --refresh-rows adds is\n"
     "  cpu_seconds_per_answer  processor time of generating, on all threads, their spinning for work included\n"
     "  accuracy_interval       95 % interval of the accuracy (Wilson's)\n"
     "--against answers every question under two settings on one loaded model, in turn, and compares them. SETTINGS\n"
     "is options of a generation as one types them here, in one argument; quotes keep a text with blanks together.\n"
     "What it does not name is as on the command line, so that the two differ in nothing that it does not say. A\n"
     "preset in it takes the place of the command line's. Where it is empty, both are the same, and what differs is\n"
     "noise. Both answer the first question once before, uncounted: who reads the weights first waits for them.\n"
     "--against-model answers them with a second model, which has the same vocabulary: with the weights that another\n"
     "was quantised from, say. Both are given the same 64 prompts, too, evenly spread, and the states that the second\n"
     "one takes their first blocks through; the logits of masked positions are compared (\"divergence\" of --json):\n"
     "  mean_kl                 Kullback-Leibler divergence from the second model's distribution to the first's, nats\n"
     "  mean_logit_difference   mean |difference| of a logit\n"
     "  same_prediction         share of the positions where both predict the same token\n"
     "--json has the other settings' figures in \"against\", and in \"paired\":\n"
     "  gained, lost            questions that only the given settings answer right; only those of --against\n"
     "  difference, interval    of the accuracies, with its 95 % interval (Newcombe's for paired proportions, method "
     "10)\n"
     "  p                       McNemar's exact test, two-sided: where both were as good, gained and lost would be as\n"
     "                          far apart with this probability\n"
     "  identical               answers with the same tokens up to the end of the text\n"
     "  seconds_ratio           time of the given settings over that of --against's\n",
     cmd_eval},
    {CLI_BENCH, "bench", "[--shape NAME | -m DIR] [options]",
     "Times block steps and refreshes against what the machine can do.",
     "A floor is the time that reading the weights and the cache, or the products, would take at the measured "
     "ceilings.\n",
     cmd_bench},
    {CLI_TRACE, "trace", "-m DIR (-p TEXT | --prompt-ids IDS | < FILE) [options]",
     "What TokenSkip does to a generation, pass by pass.",
     PROMPT_NOTE
     "Compares the generation with the plain dual cache's, or with that of --versus, and begins with where the two\n"
     "answers part: the first token that differs, the passes that committed it, and the probabilities of both tokens\n"
     "in both. Then, pass by pass, which rows ran and why; with --shadow also what the full pass, from the same\n"
     "state, would have committed of the others. --notebook adds two steps of the first block with TokenSkip off and\n"
     "on, value by value, all from the same state.\n"
     "A value in a dump is called pass0.layer_3.output, or skip.pass0... of the second generation.\n",
     cmd_trace},
    {CLI_CALIBRATE, "calibrate", "-m DIR --data FILE.jsonl --max-error R [options]",
     "The fastest settings within an error budget.",
     "Tries both rules of TokenSkip, kinds of block starts, windows and rules of commitment; what is given of one of\n"
     "the three stays as it is. All settings answer a few questions, the better half of them twice as many, and so\n"
     "on until all questions are answered or --minutes are over. Each is compared, question by question, with the\n"
     "plain dual cache. The first line printed is the options found, to be pasted; --save keeps them for --settings.\n",
     cmd_calibrate},
    {CLI_SWEEP, "sweep", "-m DIR --data FILE.jsonl --svg FILE [options]",
     "Accuracy against time over the same settings, as a picture.",
     "The settings are those that calibrate tries. Kept, round by round, are those that the fewest others beat both\n"
     "in time and in errors.\n",
     cmd_sweep},
    {CLI_BATCH, "batch", "-m DIR --input FILE --output FILE [options], or batch --merge FILE... --output FILE",
     "Answers many requests at once.",
     "A line of the input is a request: {\"id\": a string or whole number, \"prompt\" or \"prompt_ids\" or "
     "\"messages\"}, and any\n"
     "generation option under its name with underscores: \"gen_length\": 64, \"skip_masked\": true. Options given here "
     "are the\n"
     "defaults. A line of the output is its id and what generate --json prints, or its id and \"error\". A line "
     "without an id\n"
     "of its own (unreadable, or with an earlier line's id) gets \"id\": null and \"line\": its number. Failed "
     "requests\n"
     "do not stop the others: once every line has its result, the exit status is 1 if any failed, and stderr says how\n"
     "many, and which was the first. Under mpirun, which kills all ranks when one exits so, it is 0 then, and only "
     "stderr\n"
     "tells.\n"
     "Run again after an interruption, it goes on where it was: ids that the output has are skipped, those with an "
     "error too,\n"
     "which still count as failed. A line taken out of the output is done again.\n"
     "From a pipe (--input -) requests are answered as they come; --output - writes the results to standard output.\n"
     "--shard I/N, or the rank that mpirun or srun gives, takes every N-th line from the (I+1)-th on and writes\n"
     "OUTPUT.shard-I-of-N; the local rank chooses the GPU unless --device names one. One process in a Slurm job of "
     "several\n"
     "tasks, without srun, needs --shard 0/1. A run with another number of shards does what all of these files lack.\n"
     "Lines of a shard end in \"request\", the number of theirs in the input. --merge joins such files by it, and "
     "leaves\n"
     "it out; it refuses a file that is cut off, and a request that has two results, or none where a later one has "
     "its.\n",
     cmd_batch},
};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static int print_overview(void) {
    tsk_text out = {0};
    int i, status;
    cli_append(&out,
               "usage: tokenskip COMMAND [options]\n\nRuns masked-diffusion language models (LLaDA).\n\ncommands:\n");
    for (i = 0; i < N_COMMANDS; i++) cli_append(&out, "  %-10s %s\n", commands[i].name, commands[i].summary);
    cli_append(&out, "\n`tokenskip help COMMAND`, or `tokenskip COMMAND --help`, lists a command's options;\n"
                     "`tokenskip --version` says which version this is.\n"
                     "Exit status: 0 success, 1 failure, 2 wrong usage or an option's value that makes no sense,\n"
                     "130 and 143 after SIGINT (Ctrl-C) and SIGTERM.\n"
                     "A terminal gets a text's control characters as \\u001b; pipes and files get the bytes.\n");
    status = cli_write(out.data, out.length);
    tsk_text_free(&out);
    return status;
}

static int print_version(void) {
    static const char line[] = "tokenskip " TOKENSKIP_VERSION_STRING "\n";
    return cli_write(line, sizeof line - 1);
}

static int run_command(const cli_command *command, int argc, char **argv) {
    cli_settings settings;
    int status = cli_parse(&settings, command, argc, argv);
    if (status == CLI_CONTINUE) status = command->run(&settings);
    cli_settings_free(&settings);
    cli_settings_files_free();
    return cli_exit_status(status);
}

static const cli_command *find_command(const char *name) {
    int i;
    for (i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i].name, name) == 0) return &commands[i];
    cli_usage_error("no command '%s' (tokenskip --help lists them)", name);
    return NULL;
}

/* The arguments after `help`. */
static int help(int argc, char **argv) {
    const cli_command *command;
    if (argc == 0) return print_overview();
    if (argc > 1) return cli_usage_error("help takes one command, and got '%s' and '%s'", argv[0], argv[1]);
    command = find_command(argv[0]);
    return command ? cli_print_help(command) : CLI_USAGE;
}

int main(int argc, char **argv) {
    const cli_command *command;
    system_begin(&argc, &argv);
    if (argc < 2) return cli_usage_error("no command (tokenskip --help lists them)");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) return print_overview();
    if (strcmp(argv[1], "--version") == 0) return print_version();
    if (strcmp(argv[1], "help") == 0) return help(argc - 2, argv + 2);
    command = find_command(argv[1]);
    return command ? run_command(command, argc - 2, argv + 2) : CLI_USAGE;
}
