#include "system.h"
#include "visual.h"

#include <signal.h>

/* A turn's text; roles alternate after the system message, if there is one. */
typedef struct turn {
    const char *role;
    char *content;
} turn;

typedef struct chat {
    cli_engine engine;
    cli_settings *settings;
    visual view;
    turn *turns;
    size_t count, capacity;
    int failed;             /* a message could not be answered, or stdout not be written */
    tsk_text input;         /* read from stdin */
    size_t taken, searched; /* of it: taken as lines; looked through for the end of the next one */
    int is_interactive;     /* somebody types: Ctrl-C ends an answer, and only then the conversation */
    int is_left;            /* by a signal */
    /* the answer being printed */
    tsk_decoder decoder;
    int ended;              /* its end-of-sequence token has come */
    int written_to_nowhere; /* stdout failed: no use going on */
} chat;

/* ---- History ---------------------------------------------------------------------------------------------------- */

static void add_turn(chat *c, const char *role, const char *text, size_t length) {
    turn *turns = c->turns;
    char *copy = (char *)malloc(length + 1);
    if (c->count == c->capacity) {
        c->capacity = c->capacity * 2 + 8;
        turns = (turn *)realloc(turns, c->capacity * sizeof *turns);
    }
    if (!turns || !copy) exit(cli_fail("out of memory"));
    if (length) memcpy(copy, text, length);
    copy[length] = 0;
    c->turns = turns;
    c->turns[c->count].role = role;
    c->turns[c->count++].content = copy;
}

static void remove_turns(chat *c, size_t first, size_t n) {
    size_t i;
    if (!n) return;
    for (i = first; i < first + n; i++) free(c->turns[i].content);
    memmove(c->turns + first, c->turns + first + n, (c->count - first - n) * sizeof *c->turns);
    c->count -= n;
}

static size_t system_turns(const chat *c) { return c->settings->system ? 1 : 0; }

static void reset(chat *c) {
    remove_turns(c, 0, c->count);
    if (c->settings->system) add_turn(c, "system", c->settings->system, strlen(c->settings->system));
}

/* The system message and the turns from `first` on. */
static int encode(const chat *c, size_t first, tsk_tokens *out) {
    tsk_chat_options options = cli_chat_options(c->settings);
    tsk_error error = {0};
    tsk_message *messages = (tsk_message *)malloc(c->count * sizeof *messages);
    size_t i, count = 0;
    int status = CLI_OK;
    if (!messages) exit(cli_fail("out of memory"));
    for (i = 0; i < c->count; i++) {
        if (i >= system_turns(c) && i < first) continue;
        messages[count].role = c->turns[i].role;
        messages[count++].content = c->turns[i].content;
    }
    out->count = 0;
    if (tsk_chat_encode_with(c->engine.tokenizer, messages, count, &options, out, &error) != TSK_OK)
        status = cli_fail_with(&error, NULL);
    free(messages);
    return status;
}

/* Encodes the conversation. The oldest exchanges go while it and an answer do not fit the model's context, but only
   for a message that fits once they are gone. */
static int encode_within_context(chat *c, tsk_tokens *prompt) {
    int32_t limit = tsk_model_get_config(c->engine.model)->max_sequence_length,
            room = limit - c->settings->generate.gen_length;
    size_t oldest = system_turns(c), first = oldest;
    for (;; first += 2) {
        if (encode(c, first, prompt) != CLI_OK) return CLI_FAILED;
        if (room > 0 && prompt->count <= room) break;
        if (first + 1 >= c->count)
            return cli_fail(
                "the message makes %d tokens, and %d fit beside an answer of %d in the model's context of %d",
                (int)prompt->count, (int)(room > 0 ? room : 0), (int)c->settings->generate.gen_length, (int)limit);
    }
    if (first > oldest)
        cli_warn("the conversation outgrew the context of %d tokens: its oldest %zu exchanges are forgotten",
                 (int)limit, (first - oldest) / 2);
    remove_turns(c, oldest, first - oldest);
    return CLI_OK;
}

/* ---- Answering -------------------------------------------------------------------------------------------------- */

static void write_piece(chat *c, const tsk_text *piece) {
    if (!piece->length || c->written_to_nowhere) return;
    if (cli_write(piece->data, piece->length) != CLI_OK) c->written_to_nowhere = c->failed = 1;
}

static int ends_text(const chat *c, int32_t id) {
    const tsk_model_config *config = tsk_model_get_config(c->engine.model);
    return tsk_config_is_eos(config, id) || id == tsk_chat_end_of_turn(c->engine.tokenizer);
}

/* Text goes out a finished block at a time: what stands in one changes no more. */
static void stream_block(chat *c, const tsk_step *step) {
    tsk_text piece = {0};
    int32_t i;
    for (i = 0; i < step->n_positions && !c->ended; i++) {
        int32_t id = step->canvas[step->positions[i]];
        if (step->positions[i] < step->prompt_length) continue;
        if (ends_text(c, id)) c->ended = 1;
        else tsk_decoder_push(c->engine.tokenizer, &c->decoder, id, &piece, NULL);
    }
    write_piece(c, &piece);
    tsk_text_free(&piece);
}

static int on_step(void *user, const tsk_step *step) {
    chat *c = (chat *)user;
    if (c->view.is_on) visual_step(&c->view, step);
    else if (step->masks_left == 0) stream_block(c, step);
    return c->written_to_nowhere;
}

static void finish_answer(chat *c, const tsk_result *result) {
    tsk_text answer = {0}, piece = {0};
    if (cli_result_text(&c->engine, result, &answer) != CLI_OK) c->failed = 1;
    if (c->view.is_on) cli_append_bytes(&piece, answer.data, answer.length);
    else tsk_decoder_flush(&c->decoder, &piece);
    cli_append(&piece, "\n");
    write_piece(c, &piece);
    add_turn(c, "assistant", answer.data, answer.length);
    if (result->finish_reason == TSK_FINISH_CANCELLED && !c->written_to_nowhere)
        cli_warn("interrupted: this answer is incomplete");
    tsk_text_free(&answer);
    tsk_text_free(&piece);
}

/* After an answer: whether the signal that came in it was meant for the conversation. One that comes from here on is
   left for the next wait. */
static void heed_signal(chat *c) {
    int noted = cli_interrupted();
    if (noted == SIGTERM || (noted && !c->is_interactive)) c->is_left = 1;
    else if (noted) cli_forget_interrupt();
}

/* A message that cannot be answered is taken back, and the conversation goes on. */
static void answer(chat *c, const char *line, size_t length) {
    tsk_tokens prompt = {0};
    tsk_error error = {0};
    tsk_result result;
    int status;
    add_turn(c, "user", line, length);
    memset(&c->decoder, 0, sizeof c->decoder);
    c->decoder.skip_special = 1;
    c->ended = 0;
    status = encode_within_context(c, &prompt);
    if (status == CLI_OK) {
        if (tsk_generate(c->engine.session, prompt.ids, prompt.count, NULL, &result, &error) != TSK_OK)
            status = CLI_FAILED;
        visual_end(&c->view);
        if (status == CLI_OK) finish_answer(c, &result);
        else cli_fail_with(&error, NULL);
        heed_signal(c);
    }
    if (status != CLI_OK) {
        remove_turns(c, c->count - 1, 1);
        c->failed = 1;
    }
    tsk_tokens_free(&prompt);
}

/* ---- The conversation ------------------------------------------------------------------------------------------- */

static void command_line(chat *c, const char *line) {
    if (strcmp(line, "/reset") == 0) {
        reset(c);
        cli_note("a new conversation");
    } else {
        cli_warn("no command %s: there are /reset and /exit", line);
    }
}

/* A whole line that has been read, without its end; NULL: there is none yet. */
static char *take_line(chat *c, size_t *length) {
    char *line, *newline;
    if (c->searched == c->input.length) return NULL;
    newline = (char *)memchr(c->input.data + c->searched, '\n', c->input.length - c->searched);
    c->searched = newline ? (size_t)(newline - c->input.data) + 1 : c->input.length;
    if (!newline) return NULL;
    line = c->input.data + c->taken;
    *length = (size_t)(newline - line);
    c->taken = c->searched;
    while (*length && line[*length - 1] == '\r') --*length;
    line[*length] = 0;
    return line;
}

/* What is left of the lines moves to the front, and more is read behind it. 1: it was; 0: the end; -1: an error. */
static int read_more(chat *c) {
    char bytes[4096];
    ssize_t n = cli_read(SYSTEM_STDIN, bytes, sizeof bytes);
    if (n < 0) return -1;
    if (c->taken) memmove(c->input.data, c->input.data + c->taken, c->input.length - c->taken);
    c->input.length -= c->taken;
    c->searched -= c->taken;
    c->taken = 0;
    if (n == 0 && c->input.length) cli_append_bytes(&c->input, "\n", 1); /* a last line without one */
    else if (n == 0) return 0;
    cli_append_bytes(&c->input, bytes, (size_t)n);
    return 1;
}

/* `text`: the prompt, or the end of its line. */
static void show(const chat *c, const char *text) {
    if (c->is_interactive && system_is_terminal(SYSTEM_STDERR)) fputs(text, stderr);
}

/* Ctrl-C where nothing is under way may be a slip, and the conversation would be lost. What was typed of a line is
   gone, as with a shell. */
static void ask_before_leaving(chat *c) {
    cli_forget_interrupt();
    c->input.length = c->taken = c->searched = 0;
    show(c, "\n");
    cli_warn("Ctrl-C once more leaves, as " SYSTEM_END_KEYS " does");
    show(c, "> ");
}

/* The next message; NULL: there is none any more. */
static char *next_line(chat *c, size_t *length) {
    char *line;
    int asked = 0, more = 1;
    show(c, "> ");
    while (!(line = take_line(c, length)) && more > 0) {
        more = read_more(c);
        if (more >= 0 || errno != EINTR) continue;
        c->is_left = !c->is_interactive || asked || cli_interrupted() == SIGTERM;
        if (c->is_left) break;
        ask_before_leaving(c);
        asked = more = 1;
    }
    if (more < 0 && !c->is_left) c->failed = cli_fail("cannot read standard input: %s", strerror(errno));
    if (!line) show(c, "\n");
    return line;
}

static void converse(chat *c) {
    char *line;
    size_t length;
    while (!c->written_to_nowhere && !c->is_left && (line = next_line(c, &length))) {
        if (strcmp(line, "/exit") == 0) break;
        if (strlen(line) != length) c->failed = cli_fail("standard input: a NUL byte in a message");
        else if (line[0] == '/') command_line(c, line);
        else if (length > 0) answer(c, line, length);
    }
}

int cmd_chat(cli_settings *settings) {
    chat c;
    int status;
    memset(&c, 0, sizeof c);
    c.settings = settings;
    c.is_interactive = system_is_terminal(SYSTEM_STDIN);
    cli_catch_interrupts();
    status = cli_load_model(&c.engine, settings);
    if (status == CLI_OK && !c.engine.tokenizer)
        status = cli_fail("%s: no tokenizer.json: chat needs one", settings->model_dir);
    if (status == CLI_OK) {
        visual_begin(&c.view, &c.engine, settings);
        settings->generate.on_step = on_step;
        settings->generate.user = &c;
        status = cli_open_session(&c.engine, settings);
    }
    if (status == CLI_OK) {
        reset(&c);
        cli_note("%s; /reset forgets the conversation, /exit or " SYSTEM_END_KEYS " ends it, Ctrl-C ends an answer",
                 tsk_model_device_name(c.engine.model));
        if (settings->prompt) answer(&c, settings->prompt, strlen(settings->prompt));
        converse(&c);
        if (c.is_left && !c.is_interactive) cli_fail("interrupted: messages after this one are not answered");
        status = c.failed || c.is_left ? CLI_FAILED : CLI_OK;
    }
    tsk_text_free(&c.input);
    remove_turns(&c, 0, c.count);
    free(c.turns);
    cli_engine_free(&c.engine);
    return status;
}
