#ifndef SECTION_GUARD_PATTERN
#define SECTION_GUARD_PATTERN

#include "system.h"
#include "api.h"

// >>pattern ===========================================================================================================
/* Regular expressions with which quantised folders name modules, matched as Python's re.match does: at the beginning
   of the name, not necessarily to its end. What such files use is understood: characters, . \d \w \s and their
   opposites, escaped characters, classes, groups, (?:…), |, ^, $, and the repetitions * + ? {m} {m,} {m,n}, greedy or
   not. Anything else (look-around, back references, flags) is refused, never approximated.

   A pattern becomes a small program whose threads all run at once (Thompson, "Regular Expression Search Algorithm",
   CACM 1968), so that a hostile one takes no more time than its length times the name's. */

#define TSK__PATTERN_CODE 768
#define TSK__PATTERN_CLASSES 24
#define TSK__PATTERN_DEPTH 24

typedef enum tsk__pattern_op {
    TSK__PATTERN_CHARACTER, TSK__PATTERN_CLASS, TSK__PATTERN_START, TSK__PATTERN_END, TSK__PATTERN_SPLIT,
    TSK__PATTERN_JUMP, TSK__PATTERN_MATCH
} tsk__pattern_op;

typedef struct tsk__pattern_instruction {
    uint8_t op, argument;      /* the character, or which class */
    int16_t to;                /* split, jump: the other place to go on from, relative to this one */
} tsk__pattern_instruction;

typedef struct tsk__pattern {
    tsk__pattern_instruction code[TSK__PATTERN_CODE];
    uint8_t classes[TSK__PATTERN_CLASSES][32]; /* a bit a byte */
    int n, n_classes, depth;
    const char *at;            /* while it is read, */
    const char *problem;       /* and why it cannot be: NULL when it can */
} tsk__pattern;

static void tsk__pattern_emit(tsk__pattern *p, tsk__pattern_op op, int argument, int to) {
    if (p->n + 1 >= TSK__PATTERN_CODE) {
        p->problem = "is too long";
        return;
    }
    p->code[p->n].op = (uint8_t)op;
    p->code[p->n].argument = (uint8_t)argument;
    p->code[p->n++].to = (int16_t)to;
}

/* Makes room for one instruction in front of the code from `start` on, whose jumps all stay inside it. */
static void tsk__pattern_insert(tsk__pattern *p, int start, tsk__pattern_op op, int to) {
    tsk__pattern_emit(p, op, 0, to);
    if (p->problem) return;
    memmove(&p->code[start + 1], &p->code[start], (size_t)(p->n - 1 - start) * sizeof *p->code);
    p->code[start].op = (uint8_t)op;
    p->code[start].argument = 0;
    p->code[start].to = (int16_t)to;
}

static void tsk__pattern_add(uint8_t *set, int from, int to) {
    for (; from <= to; from++) set[from / 8] |= (uint8_t)(1 << from % 8);
}

/* The bytes that \d, \w, \s or their opposites stand for, added to a set; 0 for another letter. */
static int tsk__pattern_shorthand(char letter, uint8_t *set) {
    uint8_t own[32];
    int i;
    memset(own, 0, sizeof own);
    switch (letter | 0x20) {
    case 'd': tsk__pattern_add(own, '0', '9'); break;
    case 'w':
        tsk__pattern_add(own, '0', '9'), tsk__pattern_add(own, 'a', 'z'), tsk__pattern_add(own, 'A', 'Z');
        tsk__pattern_add(own, '_', '_');
        break;
    case 's': tsk__pattern_add(own, '\t', '\r'), tsk__pattern_add(own, ' ', ' '); break;
    default: return 0;
    }
    for (i = 0; i < 32; i++) set[i] |= letter & 0x20 ? own[i] : (uint8_t)~own[i];
    return 1;
}

/* The character that stands behind a backslash; -1 where it stands for something that is not understood. */
static int tsk__pattern_escaped(char c) {
    if (c == 't') return '\t';
    if (c == 'n') return '\n';
    if (!c || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) return -1;
    return (unsigned char)c;
}

static uint8_t *tsk__pattern_class(tsk__pattern *p) {
    if (p->n_classes == TSK__PATTERN_CLASSES) {
        p->problem = "has too many classes";
        p->n_classes--;
    }
    memset(p->classes[p->n_classes], 0, 32);
    tsk__pattern_emit(p, TSK__PATTERN_CLASS, p->n_classes, 0);
    return p->classes[p->n_classes++];
}

/* One character of a class, read behind p->at; -1 after a shorthand, which is added. */
static int tsk__pattern_class_character(tsk__pattern *p, uint8_t *set) {
    int c = (unsigned char)*p->at;
    if (c) p->at++;
    if (c != '\\') return c;
    if (tsk__pattern_shorthand(*p->at, set)) return p->at++, -1;
    c = tsk__pattern_escaped(*p->at);
    if (c < 0) p->problem = "has an escape that is not understood";
    else p->at++;
    return c;
}

/* Behind the bracket. */
static void tsk__pattern_brackets(tsk__pattern *p) {
    uint8_t *set = tsk__pattern_class(p);
    int negated = *p->at == '^', first = 1, i;
    p->at += negated;
    for (; !p->problem && (first || *p->at != ']'); first = 0) {
        int from = tsk__pattern_class_character(p, set), to = from;
        if (from == 0) p->problem = "has a class without an end";
        if (from > 0 && p->at[0] == '-' && p->at[1] != ']') {
            p->at++;
            to = tsk__pattern_class_character(p, set);
            if (to < from) p->problem = "has a range that runs backwards";
        }
        if (from > 0 && !p->problem) tsk__pattern_add(set, from, to);
    }
    if (!p->problem) p->at++;
    for (i = 0; negated && i < 32; i++) set[i] = (uint8_t)~set[i];
}

static void tsk__pattern_choice(tsk__pattern *p);

/* Behind the parenthesis. */
static void tsk__pattern_group(tsk__pattern *p) {
    if (p->at[0] == '?' && p->at[1] == ':') p->at += 2;
    else if (p->at[0] == '?') p->problem = "has a group that is not understood";
    if (++p->depth > TSK__PATTERN_DEPTH) p->problem = "is nested too deeply";
    if (!p->problem) tsk__pattern_choice(p);
    p->depth--;
    if (!p->problem && *p->at != ')') p->problem = "has a group without an end";
    if (!p->problem) p->at++;
}

/* One thing that may be repeated. */
static void tsk__pattern_atom(tsk__pattern *p) {
    const char c = *p->at++;
    int escaped;
    switch (c) {
    case '.': {
        uint8_t *set = tsk__pattern_class(p);
        memset(set, 0xff, 32);
        set['\n' / 8] &= (uint8_t)~(1 << '\n' % 8);
        break;
    }
    case '[': tsk__pattern_brackets(p); break;
    case '(': tsk__pattern_group(p); break;
    case '^': tsk__pattern_emit(p, TSK__PATTERN_START, 0, 0); break;
    case '$': tsk__pattern_emit(p, TSK__PATTERN_END, 0, 0); break;
    case '*': case '+': case '?': p->problem = "repeats nothing"; break;
    case '\\': {
        uint8_t set[32];
        memset(set, 0, sizeof set);
        if (tsk__pattern_shorthand(*p->at, set)) memcpy(tsk__pattern_class(p), set, sizeof set), p->at++;
        else if ((escaped = tsk__pattern_escaped(*p->at)) >= 0)
            tsk__pattern_emit(p, TSK__PATTERN_CHARACTER, escaped, 0), p->at++;
        else p->problem = "has an escape that is not understood";
        break;
    }
    default: tsk__pattern_emit(p, TSK__PATTERN_CHARACTER, (unsigned char)c, 0);
    }
}

/* {m}, {m,} or {m,n} at p->at: 1, and it is read; most -1: no end. Anything else in braces is characters. */
static int tsk__pattern_braces(tsk__pattern *p, int *least, int *most) {
    const char *c = p->at + 1;
    int *number = least, digits = 0;
    *least = 0, *most = 0;
    for (; *c != '}'; c++) {
        if (*c == ',' && number == least && digits) number = most, digits = 0;
        else if (*c >= '0' && *c <= '9' && *number < 1000) *number = *number * 10 + (*c - '0'), digits++;
        else return 0;
    }
    if (number == least) {
        if (!digits) return 0;
        *most = *least;
    } else if (!digits) *most = -1;
    p->at = c + 1;
    return 1;
}

/* The code from `start` to the end becomes `least` to `most` copies of itself. */
static void tsk__pattern_repeat(tsk__pattern *p, int start, int least, int most) {
    const int length = p->n - start;
    tsk__pattern_instruction copy[TSK__PATTERN_CODE];
    int i, j;
    memcpy(copy, &p->code[start], (size_t)length * sizeof *copy);
    p->n = start;
    for (i = 0; !p->problem && (i < least || i < most || (most < 0 && i == least)); i++) {
        if (i >= least) tsk__pattern_emit(p, TSK__PATTERN_SPLIT, 0, most < 0 ? length + 2 : length + 1);
        for (j = 0; j < length; j++) tsk__pattern_emit(p, (tsk__pattern_op)copy[j].op, copy[j].argument, copy[j].to);
        if (i >= least && most < 0) tsk__pattern_emit(p, TSK__PATTERN_JUMP, 0, -length - 1);
    }
}

static void tsk__pattern_repetition(tsk__pattern *p) {
    const int start = p->n;
    int least = 1, most = 1, repeated = 1;
    tsk__pattern_atom(p);
    if (p->problem) return;
    if (*p->at == '*') least = 0, most = -1, p->at++;
    else if (*p->at == '+') most = -1, p->at++;
    else if (*p->at == '?') least = 0, p->at++;
    else repeated = *p->at == '{' && tsk__pattern_braces(p, &least, &most);
    if (!repeated) return;
    if (*p->at == '?') p->at++; /* as few as can be: the same names match */
    if (*p->at == '*' || *p->at == '+' || *p->at == '?') p->problem = "repeats a repetition";
    else if (most >= 0 && most < least) p->problem = "repeats more than its most";
    else tsk__pattern_repeat(p, start, least, most);
}

/* Sequences between bars, up to a closing parenthesis or the end. */
static void tsk__pattern_choice(tsk__pattern *p) {
    const int start = p->n;
    while (!p->problem && *p->at && *p->at != ')' && *p->at != '|') tsk__pattern_repetition(p);
    if (!p->problem && *p->at == '|') {
        const int end = p->n + 2;  /* behind the split and the jump */
        int jump;
        p->at++;
        tsk__pattern_insert(p, start, TSK__PATTERN_SPLIT, end - start);
        jump = p->n;
        tsk__pattern_emit(p, TSK__PATTERN_JUMP, 0, 0);
        tsk__pattern_choice(p);
        p->code[jump < TSK__PATTERN_CODE ? jump : 0].to = (int16_t)(p->n - jump);
    }
}

/* Reads a pattern: NULL, or the problem with it, as the end of a sentence. */
static const char *tsk__pattern_read(tsk__pattern *p, const char *text) {
    p->n = p->n_classes = p->depth = 0;
    p->at = text;
    p->problem = NULL;
    tsk__pattern_choice(p);
    if (!p->problem && *p->at) p->problem = "has a parenthesis too many";
    p->code[p->n].op = TSK__PATTERN_MATCH;
    return p->problem;
}

/* The instructions that threads stand at. */
typedef struct tsk__pattern_threads {
    int16_t at[TSK__PATTERN_CODE];
    uint8_t is_in[TSK__PATTERN_CODE];
    int n;
} tsk__pattern_threads;

/* Adds a thread and all that it leads to without reading a character. `is_end`: the name ends here. */
static void tsk__pattern_thread(const tsk__pattern *p, tsk__pattern_threads *t, int start, int is_start, int is_end) {
    int16_t waiting[TSK__PATTERN_CODE + 1];
    int n = 0;
    waiting[n++] = (int16_t)start;
    while (n) {
        const int at = waiting[--n];
        const tsk__pattern_instruction *i = &p->code[at];
        if (t->is_in[at]) continue;
        t->is_in[at] = 1;
        switch (i->op) {
        case TSK__PATTERN_JUMP: waiting[n++] = (int16_t)(at + i->to); break;
        case TSK__PATTERN_SPLIT:
            waiting[n++] = (int16_t)(at + i->to);
            if (n <= TSK__PATTERN_CODE) waiting[n++] = (int16_t)(at + 1);
            break;
        case TSK__PATTERN_START: if (is_start) waiting[n++] = (int16_t)(at + 1); break;
        case TSK__PATTERN_END: if (is_end) waiting[n++] = (int16_t)(at + 1); break;
        default: t->at[t->n++] = (int16_t)at;
        }
    }
}

/* 1: the pattern, which has no problem, matches from the beginning of the name on. */
static int tsk__pattern_matches(const tsk__pattern *p, const char *name) {
    tsk__pattern_threads now, next;
    const char *c = name;
    memset(&now, 0, sizeof now);
    tsk__pattern_thread(p, &now, 0, 1, !*c);
    for (;; c++) {
        int i;
        memset(next.is_in, 0, sizeof next.is_in);
        next.n = 0;
        for (i = 0; i < now.n; i++) {
            const tsk__pattern_instruction *at = &p->code[now.at[i]];
            const unsigned char byte = (unsigned char)*c;
            if (at->op == TSK__PATTERN_MATCH) return 1;
            if (byte && (at->op == TSK__PATTERN_CHARACTER ? at->argument == byte
                                                          : p->classes[at->argument][byte / 8] >> byte % 8 & 1))
                tsk__pattern_thread(p, &next, now.at[i] + 1, 0, !c[1]);
        }
        if (!next.n) return 0;
        now = next;
    }
}

#endif /* SECTION_GUARD_PATTERN */
