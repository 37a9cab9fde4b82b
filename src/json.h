#ifndef SECTION_GUARD_JSON
#define SECTION_GUARD_JSON

#include "error.h"
#include "memory.h"
#include "platform.h"

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

#endif /* SECTION_GUARD_JSON */
