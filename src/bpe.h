#ifndef SECTION_GUARD_BPE
#define SECTION_GUARD_BPE

#include "error.h"
#include "memory.h"
#include "platform.h"
#include "hash.h"
#include "json.h"
#include "unicode.h"

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

#endif /* SECTION_GUARD_BPE */
