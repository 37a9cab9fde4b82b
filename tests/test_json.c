/* >>json: what is accepted, what is refused and where, values against hand-computed ones, writing, memory running
   out. */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_NO_CUDA
#include "../src/json.h"
#include "test.h"

#include <float.h>
#include <locale.h>
#include <math.h>

#define N(array) (sizeof(array) / sizeof *(array))

/* Valid text only: the document. */
static tsk_json *parse(const char *text) {
    tsk_error error;
    tsk_json *document = NULL;
    CHECK_INT(tsk_json_parse(text, strlen(text), NULL, NULL, &document, &error), TSK_OK);
    if (!document) printf("  '%.60s': %s\n", text, error.message);
    return document;
}

static void test_accepts(void) {
    static const char *const texts[] = {"0",
                                        " -0 ",
                                        "1.5e+10",
                                        "1E-2",
                                        "\"\"",
                                        "[]",
                                        "{}",
                                        "[ ]",
                                        "{ }",
                                        "\t\r\n null\n",
                                        "true",
                                        "false",
                                        "[1,[2,{\"a\":[]}],\"x\"]",
                                        "{\"\":{\"\":\"\"}}",
                                        "\"\x7f\"",
                                        "[1 , 2 ]",
                                        "{\"a\" : 1 , \"b\" : 2 }"};
    size_t i;
    for (i = 0; i < N(texts); i++) tsk_json_free(parse(texts[i]));
}

static void test_refuses(void) {
    static const struct {
        const char *text;
        size_t size;       /* 0: strlen */
        uint64_t offset;
        const char *message;
    } cases[] = {
        {"", 0, 0, "expected a value, found the end of the text"},
        {"  ", 0, 2, "expected a value, found the end of the text"},
        {"\xef\xbb\xbf{}", 0, 0, "byte order mark"},
        {"x", 0, 0, "line 1, column 1: expected a value, found 'x'"},
        {"\x01", 0, 0, "expected a value, found byte 0x01"},
        {"\xc3\xa9", 0, 0, "expected a value, found byte 0xC3"},
        {"{} x", 0, 3, "expected nothing more after the value, found 'x'"},
        {"1\0", 2, 1, "expected nothing more after the value, found byte 0x00"},
        {"[1\0]", 4, 2, "expected ',' or ']', found byte 0x00"},
        {"nul", 0, 0, "expected a value"},
        {"nulL", 0, 0, "expected a value"},
        {"True", 0, 0, "expected a value"},
        {"falsy", 0, 0, "expected a value"},
        {"truex", 0, 4, "expected nothing more after the value, found 'x'"},
        {"[", 0, 1, "expected a value, found the end of the text"},
        {"[1", 0, 2, "expected ',' or ']', found the end of the text"},
        {"[1 2]", 0, 3, "expected ',' or ']', found '2'"},
        {"[1,]", 0, 3, "expected a value, found ']'"},
        {"[,1]", 0, 1, "expected a value, found ','"},
        {"[1}", 0, 2, "expected ',' or ']', found '}'"},
        {"{", 0, 1, "expected a member name in double quotes, found the end"},
        {"{1:2}", 0, 1, "expected a member name in double quotes, found '1'"},
        {"{\"a\"}", 0, 4, "expected ':', found '}'"},
        {"{\"a\":}", 0, 5, "expected a value, found '}'"},
        {"{\"a\":1,}", 0, 7, "expected a member name in double quotes, found '}'"},
        {"{\"a\":1]", 0, 6, "expected ',' or '}', found ']'"},
        {"{\"a\" 1}", 0, 5, "expected ':', found '1'"},
        {"]", 0, 0, "expected a value, found ']'"},
        {"'a'", 0, 0, "expected a value"},
        {"-", 0, 1, "expected a digit, found the end of the text"},
        {"-a", 0, 1, "expected a digit, found 'a'"},
        {"+1", 0, 0, "expected a value, found '+'"},
        {".5", 0, 0, "expected a value, found '.'"},
        {"1.", 0, 2, "expected a digit"},
        {"1.e1", 0, 2, "expected a digit, found 'e'"},
        {"1e", 0, 2, "expected a digit"},
        {"1e+", 0, 3, "expected a digit"},
        {"01", 0, 0, "no leading zeros"},
        {"-01", 0, 1, "no leading zeros"},
        {"0x10", 0, 1, "expected nothing more after the value, found 'x'"},
        {"NaN", 0, 0, "expected a value, found 'N'"},
        {"Infinity", 0, 0, "expected a value"},
        {"-Infinity", 0, 1, "expected a digit, found 'I'"},
        {"\"", 0, 1, "expected the string's closing '\"', found the end of the text"},
        {"\"a", 0, 2, "closing"},
        {"\"a\\", 0, 3, "after a backslash, found the end of the text"},
        {"\"\\x\"", 0, 2, "expected one of \"\\/bfnrtu after a backslash, found 'x'"},
        {"\"\\\0\"", 4, 2, "after a backslash, found byte 0x00"},
        {"\"a\nb\"", 0, 2, "expected an escape in place of a control character, found byte 0x0A"},
        {"\"\x1f\"", 0, 1, "control character, found byte 0x1F"},
        {"\"a\0b\"", 5, 2, "control character, found byte 0x00"},
        {"\"\\u12\"", 0, 1, "four hexadecimal digits"},
        {"\"\\u12g4\"", 0, 1, "four hexadecimal digits"},
        {"\"\\u", 0, 1, "four hexadecimal digits"},
        {"\"\\ud800\"", 0, 1, "half of a surrogate pair"},
        {"\"\\udc00\"", 0, 1, "half of a surrogate pair"},
        {"\"\\ud800\\n\"", 0, 1, "half of a surrogate pair"},
        {"\"\\ud800\\ud800\"", 0, 1, "half of a surrogate pair"},
        {"\"\\ud800\\u0041\"", 0, 1, "half of a surrogate pair"},
        {"\"\\ud800\\uxxxx\"", 0, 1, "half of a surrogate pair"},
        {"\"\x80\"", 0, 1, "invalid UTF-8"},
        {"\"\xc0\xaf\"", 0, 1, "invalid UTF-8"},
        {"\"\xc1\xbf\"", 0, 1, "invalid UTF-8"},
        {"\"\xe0\x9f\xbf\"", 0, 1, "invalid UTF-8"},
        {"\"\xed\xa0\x80\"", 0, 1, "invalid UTF-8"},
        {"\"\xf0\x8f\xbf\xbf\"", 0, 1, "invalid UTF-8"},
        {"\"\xf4\x90\x80\x80\"", 0, 1, "invalid UTF-8"},
        {"\"\xf5\x80\x80\x80\"", 0, 1, "invalid UTF-8"},
        {"\"\xe2\x82\"", 0, 1, "invalid UTF-8"},
        {"\"\xe2\x82", 0, 1, "invalid UTF-8"},
        {"\"\xff\"", 0, 1, "invalid UTF-8"},
        {"{\"\xff\":1}", 0, 2, "invalid UTF-8"},
        {"[\"\\n\",\n \"\xc3\xa9\", x]", 0, 14, "line 2, column 7: expected a value, found 'x'"},
    };
    size_t i;
    for (i = 0; i < N(cases); i++) {
        tsk_error error;
        tsk_json *document = (tsk_json *)&error; /* must become NULL */
        /* an exact heap copy, so that a sanitizer sees a read beyond the end */
        size_t size = cases[i].size ? cases[i].size : strlen(cases[i].text);
        char *copy = (char *)malloc(size ? size : 1);
        memcpy(copy, cases[i].text, size);
        CHECK_INT(tsk_json_parse(copy, size, "some.json", NULL, &document, &error), TSK_ERROR_JSON);
        CHECK(document == NULL);
        CHECK_INT(error.status, TSK_ERROR_JSON);
        if (!CHECK_INT(error.offset, cases[i].offset) || !CHECK_CONTAINS(error.message, cases[i].message))
            printf("  in %s\n", cases[i].text);
        CHECK_CONTAINS(error.message, "'some.json', line ");
        CHECK_STRING(error.file, "some.json");
        CHECK_INT(tsk_json_parse(copy, size, NULL, NULL, &document, NULL), TSK_ERROR_JSON);
        free(copy);
    }
}

static void test_limits(void) {
    enum { deep = TOKENSKIP_JSON_MAX_DEPTH };
    char text[2 * deep + 3], path[1200];
    tsk_error error;
    tsk_json *document;
    int i;
    for (i = 0; i < deep; i++) text[i] = '[', text[deep + i] = ']';
    CHECK_INT(tsk_json_parse(text, 2 * deep, NULL, NULL, &document, &error), TSK_OK);
    tsk_json_free(document);
    memset(text, '[', sizeof text);
    CHECK_INT(tsk_json_parse(text, sizeof text, NULL, NULL, &document, &error), TSK_ERROR_JSON);
    CHECK_INT(error.offset, deep);
    CHECK_CONTAINS(error.message, "nested too deeply");
    CHECK_INT(tsk_json_parse("", UINT32_MAX, NULL, NULL, &document, &error),
              TSK_ERROR_JSON); /* refused before it is read */
    CHECK_CONTAINS(error.message, "4 GiB");
    CHECK_INT(tsk_json_parse(NULL, 0, NULL, NULL, &document, &error), TSK_ERROR_JSON);
    memset(path, 'p', sizeof path);
    memcpy(path + sizeof path - 8, "/x.json", 8);
    CHECK_INT(tsk_json_parse("?", 1, path, NULL, &document, &error), TSK_ERROR_JSON);
    CHECK_CONTAINS(error.message, "p/x.json', line 1, column 1: expected a value, found '?'");
}

static void test_values(void) {
    const char *text = "{\"a\": [1, \"two\", null, true, false, {}], \"b\": {\"c\": []}, \"a\": -7, \"\\u0000k\": 1}";
    tsk_json *document = parse(text);
    const tsk_json_value *root = tsk_json_root(document), *a, *value;
    size_t length = 99;
    int flag = 9;
    CHECK_INT(tsk_json_type_of(root), TSK_JSON_OBJECT);
    CHECK_INT(tsk_json_count(root), 4);
    CHECK(tsk_json_next(root) == NULL);
    CHECK(tsk_json_key(root, &length) == NULL);
    CHECK_INT(length, 0);
    a = tsk_json_first(root);
    CHECK_STRING(tsk_json_key(a, &length), "a");
    CHECK_INT(length, 1);
    CHECK_INT(tsk_json_type_of(a), TSK_JSON_ARRAY);
    CHECK_INT(tsk_json_offset(a), 6);
    CHECK_INT(tsk_json_count(a), 6);
    value = tsk_json_first(a);
    CHECK_INT(tsk_json_type_of(value), TSK_JSON_NUMBER);
    CHECK(tsk_json_key(value, NULL) == NULL);
    CHECK(tsk_json_string(value, &length) == NULL);
    CHECK_INT(length, 0);
    value = tsk_json_next(value);
    CHECK_INT(tsk_json_type_of(value), TSK_JSON_STRING);
    CHECK_STRING(tsk_json_string(value, &length), "two");
    CHECK_INT(length, 3);
    CHECK_INT(tsk_json_offset(value), 10);
    CHECK_INT(tsk_json_count(value), 0);
    CHECK(tsk_json_first(value) == NULL);
    value = tsk_json_next(value);
    CHECK_INT(tsk_json_type_of(value), TSK_JSON_NULL);
    CHECK(!tsk_json_bool(value, &flag));
    value = tsk_json_next(value);
    CHECK_INT(tsk_json_type_of(value), TSK_JSON_TRUE);
    CHECK(tsk_json_bool(value, &flag) && flag == 1);
    value = tsk_json_next(value);
    CHECK_INT(tsk_json_type_of(value), TSK_JSON_FALSE);
    CHECK(tsk_json_bool(value, &flag) && flag == 0);
    value = tsk_json_next(value);
    CHECK_INT(tsk_json_type_of(value), TSK_JSON_OBJECT);
    CHECK(tsk_json_first(value) == NULL);
    CHECK(tsk_json_next(value) == NULL);
    value = tsk_json_next(a);
    CHECK_STRING(tsk_json_key(value, NULL), "b");
    CHECK_INT(tsk_json_type_of(tsk_json_get(value, "c")), TSK_JSON_ARRAY);
    value = tsk_json_next(value);
    CHECK_STRING(tsk_json_key(value, NULL), "a"); /* the duplicate is there … */
    CHECK(tsk_json_get(root, "a") == value);      /* … and found */
    value = tsk_json_next(value);
    CHECK(memcmp(tsk_json_key(value, &length), "\0k", 3) == 0);
    CHECK_INT(length, 2);
    CHECK(tsk_json_next(value) == NULL);
    CHECK(tsk_json_get(root, "") == NULL);
    CHECK(tsk_json_get(root, "z") == NULL);
    CHECK(tsk_json_get(a, "a") == NULL);
    /* NULL goes through everything */
    CHECK(tsk_json_root(NULL) == NULL);
    CHECK_INT(tsk_json_type_of(tsk_json_get(tsk_json_get(root, "z"), "y")), TSK_JSON_NONE);
    CHECK(tsk_json_first(NULL) == NULL && tsk_json_next(NULL) == NULL && tsk_json_string(NULL, NULL) == NULL);
    CHECK(tsk_json_offset(NULL) == TSK_NO_OFFSET && tsk_json_count(NULL) == 0 && !tsk_json_bool(NULL, &flag));
    tsk_json_free(document);
    tsk_json_free(NULL);
}

static void test_strings(void) {
    static const struct {
        const char *text, *value;
        size_t length;
    } cases[] = {
        {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\/\b\f\n\r\t", 8},
        {"\"a\\u0000b\"", "a\0b", 3},
        {"\"\\u0041\\u00e9\\u20AC\"", "A\xc3\xa9\xe2\x82\xac", 6},
        {"\"\\uD83D\\uDE00x\"", "\xf0\x9f\x98\x80x", 5},
        {"\"\\ud800\\udc00\\udbff\\udfff\"", "\xf0\x90\x80\x80\xf4\x8f\xbf\xbf", 8},
        {"\"\\u007f\\u0080\\u07ff\\u0800\\uffff\"", "\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf", 11},
        {"\"\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf\"",
         "\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf", 21},
        {"\"\\n\xc3\xa9 plain\"", "\n\xc3\xa9 plain", 9}, /* multi-byte characters move as well */
    };
    size_t i, length;
    for (i = 0; i < N(cases); i++) {
        tsk_json *document = parse(cases[i].text);
        const char *value = tsk_json_string(tsk_json_root(document), &length);
        CHECK_INT(length, cases[i].length);
        CHECK(memcmp(value, cases[i].value, length + 1) == 0);
        tsk_json_free(document);
    }
}

static void test_integers(void) {
    static const struct {
        const char *text;
        int is_int64, is_uint64;
        int64_t i;
        uint64_t u;
    } cases[] = {
        {"0", 1, 1, 0, 0},
        {"-0", 1, 0, 0, 0},
        {"42", 1, 1, 42, 42},
        {"-1", 1, 0, -1, 0},
        {"9223372036854775807", 1, 1, INT64_MAX, INT64_MAX},
        {"9223372036854775808", 0, 1, 0, (uint64_t)INT64_MAX + 1},
        {"-9223372036854775808", 1, 0, INT64_MIN, 0},
        {"-9223372036854775809", 0, 0, 0, 0},
        {"18446744073709551615", 0, 1, 0, UINT64_MAX},
        {"18446744073709551616", 0, 0, 0, 0},
        {"18446744073709551620", 0, 0, 0, 0},
        {"100000000000000000000000", 0, 0, 0, 0},
        {"1.0", 1, 1, 1, 1},
        {"1e3", 1, 1, 1000, 1000},
        {"32.0", 1, 1, 32, 32},
        {"-32.00", 1, 0, -32, 0},
        {"3.2e1", 1, 1, 32, 32},
        {"3.2E+1", 1, 1, 32, 32},
        {"0.032e3", 1, 1, 32, 32},
        {"3200e-2", 1, 1, 32, 32},
        {"0.0", 1, 1, 0, 0},
        {"0e99999999999999999999", 1, 1, 0, 0},
        {"-0.0", 1, 0, 0, 0},
        {"9223372036854775807.0", 1, 1, INT64_MAX, INT64_MAX}, /* exactly: no double holds it */
        {"9.223372036854775807e18", 1, 1, INT64_MAX, INT64_MAX},
        {"9223372036854775808.0", 0, 1, 0, (uint64_t)INT64_MAX + 1},
        {"-9223372036854775808.0", 1, 0, INT64_MIN, 0},
        {"18446744073709551615.000", 0, 1, 0, UINT64_MAX},
        {"18446744073709551616.0", 0, 0, 0, 0},
        {"1844674407370955162e1", 0, 0, 0, 0},
        {"1e19", 0, 1, 0, 10000000000000000000u},
        {"1e20", 0, 0, 0, 0},
        {"1e99999999999999999999", 0, 0, 0, 0},
        {"1e-1", 0, 0, 0, 0},
        {"0.5", 0, 0, 0, 0},
        {"32.5", 0, 0, 0, 0},
        {"32.0000000000000000000000000000000000001", 0, 0, 0, 0}, /* a double would make it 32 */
        {"3.2", 0, 0, 0, 0},
        {"32e-2", 0, 0, 0, 0},
        {"1e-99999999999999999999", 0, 0, 0, 0},
        {"\"1\"", 0, 0, 0, 0},
    };
    size_t k;
    for (k = 0; k < N(cases); k++) {
        tsk_json *document = parse(cases[k].text);
        int64_t i = 0;
        uint64_t u = 0;
        CHECK_INT(tsk_json_int64(tsk_json_root(document), &i), cases[k].is_int64);
        CHECK_INT(tsk_json_uint64(tsk_json_root(document), &u), cases[k].is_uint64);
        CHECK(i == cases[k].i && u == cases[k].u);
        tsk_json_free(document);
    }
}

/* The bits of a number's double; 1 where it has none. */
static uint64_t double_bits(const char *text) {
    tsk_json *document = parse(text);
    double value = 0;
    uint64_t bits = 1;
    if (tsk_json_double(tsk_json_root(document), &value)) memcpy(&bits, &value, sizeof bits);
    tsk_json_free(document);
    return bits;
}

static void test_doubles(void) {
    static const struct {
        const char *text;
        uint64_t bits;
    } cases[] = {
        {"0", 0},
        {"-0", (uint64_t)1 << 63},
        {"-0.0e5", (uint64_t)1 << 63},
        {"0e999999999999999999999999", 0},
        {"1", 0x3ff0000000000000},
        {"-2.5", 0xc004000000000000},
        {"0.1", 0x3fb999999999999a},
        {"1e23", 0x44b52d02c7e14af6},
        {"9007199254740993", 0x4340000000000000},   /* 2^53 + 1: a tie, to even, down */
        {"9007199254740995", 0x4340000000000002},   /* 2^53 + 3: a tie, to even, up */
        {"9007199254740993.00000000000000000000000000000001", 0x4340000000000001},
        {"9007199254740992.99999999999999999999999999999999", 0x4340000000000000},
        {"2.2250738585072014e-308", 0x0010000000000000}, /* the smallest normal */
        {"2.2250738585072011e-308", 0x000fffffffffffff},
        {"4.9406564584124654e-324", 1},
        {"2.4703282292062328e-324", 1},              /* just above half the smallest */
        {"2.4703282292062327e-324", 0},                  /* just below */
        {"1e-400", 0},
        {"-1e-400", (uint64_t)1 << 63},
        {"1e-99999999999999999999", 0},
        {"1.7976931348623157e308", 0x7fefffffffffffff},
        {"1.7976931348623158e308", 0x7fefffffffffffff},  /* rounds down to DBL_MAX */
        {"123456789012345678901234567890", 0x45f8ee90ff6c373e},
        {"0.000000000000000000000000000000000000000000001e45", 0x3ff0000000000000},
        {"3.14159265358979323846264338327950288", 0x400921fb54442d18},
    };
    static const char *const beyond[] = {"1.7976931348623159e308", "1e309", "-1e400",
                                         "1e99999999999999999999", "\"1\"", "null"};
    char text[3000];
    double value;
    size_t i;
    for (i = 0; i < N(cases); i++)
        if (!CHECK(double_bits(cases[i].text) == cases[i].bits)) printf("  in %s\n", cases[i].text);
    for (i = 0; i < N(beyond); i++) {
        tsk_json *document = parse(beyond[i]);
        CHECK(!tsk_json_double(tsk_json_root(document), &value));
        tsk_json_free(document);
    }
    CHECK(!tsk_json_double(NULL, &value));
    /* 1 followed by 1,000 zeros and e-1000; the same with a last digit that breaks the tie of 2^53 + 1 */
    memset(text, '0', sizeof text);
    text[0] = '1';
    strcpy(text + 1001, "e-1000");
    CHECK(double_bits(text) == 0x3ff0000000000000);
    memset(text, '0', sizeof text);
    memcpy(text, "9007199254740993.", 17);
    strcpy(text + 2900, "1");
    CHECK(double_bits(text) == 0x4340000000000001);
    text[2900] = '0';
    CHECK(double_bits(text) == 0x4340000000000000);
}

static const char *written(tsk_text *text, double value) {
    tsk_json_writer writer = {NULL, TSK_OK, 0};
    writer.out = text;
    text->length = 0;
    tsk_json_write_double(&writer, value);
    return writer.status == TSK_OK ? text->data : NULL;
}

static void test_write_doubles(void) {
    static const struct {
        double value;
        const char *text;
    } cases[] = {
        {0, "0"},
        {-0.0, "-0.0"},
        {1, "1"},
        {-1, "-1"},
        {100, "100"},
        {0.1, "0.1"},
        {0.3, "0.3"},
        {0.1 + 0.2, "0.30000000000000004"},
        {1.0 / 3, "0.3333333333333333"},
        {-123.456, "-123.456"},
        {1e16, "10000000000000000"},
        {1e17, "1e17"},
        {1.5e300, "1.5e300"},
        {0.0001, "0.0001"},
        {0.00001234, "0.00001234"},
        {0.000001, "1e-6"},
        {-2.5e-9, "-2.5e-9"},
        {5e-324, "5e-324"},
        {2.2250738585072014e-308, "2.2250738585072014e-308"},
        {1.7976931348623157e308, "1.7976931348623157e308"},
        {9007199254740992.0, "9007199254740992"},
        {1e23, "1e23"},
        {5.684341886080802e-14, "5.684341886080802e-14"}, /* 2^-44 */
        {9.5367431640625e-7, "9.5367431640625e-7"},
        {966150072687957.25, "966150072687957.2"},
    };
    tsk_text text = {NULL, 0, 0, NULL};
    uint64_t state = 88172645463325252u, bits, back;
    size_t i;
    int wrong = 0;
    for (i = 0; i < N(cases); i++) CHECK_STRING(written(&text, cases[i].value), cases[i].text);
    CHECK_STRING(written(&text, HUGE_VAL), "null");
    CHECK_STRING(written(&text, -HUGE_VAL), "null");
    CHECK_STRING(written(&text, HUGE_VAL - HUGE_VAL), "null");
    for (i = 0; i < 20000; i++) { /* every pattern comes back */
        double value;
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        bits = i % 4 ? state : state & (((uint64_t)0x8010 << 48) - 1); /* a quarter of them subnormal */
        memcpy(&value, &bits, sizeof value);
        if (!(value >= -DBL_MAX && value <= DBL_MAX)) continue;
        back = double_bits(written(&text, value));
        test_passed--; /* double_bits counts its parse; 20,000 of them would drown the rest */
        if (back != bits || text.length > 24) wrong++;
    }
    CHECK_INT(wrong, 0);
    tsk_text_free(&text);
}

/* A decimal comma must change nothing. Skipped where the system has no such locale. */
static void test_locale(void) {
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "de_DE", "fr_FR"};
    tsk_text text = {NULL, 0, 0, NULL};
    size_t i;
    for (i = 0; i < N(names); i++)
        if (setlocale(LC_ALL, names[i])) break;
    CHECK(double_bits("1.5") == 0x3ff8000000000000);
    CHECK(double_bits("0.1234567890123456789012") == 0x3fbf9add3746f65f);
    CHECK_STRING(written(&text, 1.5), "1.5");
    CHECK_STRING(written(&text, 1.5e300), "1.5e300");
    tsk_text_free(&text);
    setlocale(LC_ALL, "C");
}

static void write_sample(tsk_json_writer *writer) {
    tsk_json_begin_object(writer);
    tsk_json_write_key(writer, "empty");
    tsk_json_begin_array(writer);
    tsk_json_end_array(writer);
    tsk_json_write_key(writer, "li\"st\n");
    tsk_json_begin_array(writer);
    tsk_json_write_int(writer, INT64_MIN);
    tsk_json_write_uint(writer, UINT64_MAX);
    tsk_json_write_double(writer, 0.5);
    tsk_json_write_bool(writer, 7);
    tsk_json_write_bool(writer, 0);
    tsk_json_write_null(writer);
    tsk_json_begin_object(writer);
    tsk_json_end_object(writer);
    tsk_json_begin_array(writer);
    tsk_json_write_string(writer, "", 0);
    tsk_json_end_array(writer);
    tsk_json_end_array(writer);
    tsk_json_write_key(writer, "end");
    tsk_json_write_string(writer, "x\0y", 3);
    tsk_json_end_object(writer);
}

static void test_write(void) {
    static const struct {
        const char *from, *to;
    } strings[] = {
        {"plain", "\"plain\""},
        {"\"\\/\b\f\n\r\t\x01\x1f\x7f", "\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\""},
        {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\""},
        {"a\xff" "b", "\"a\xef\xbf\xbd" "b\""},
        {"\xc0\xaf", "\"\xef\xbf\xbd\xef\xbf\xbd\""},
        {"\xe2\x82", "\"\xef\xbf\xbd\""},
        {"\xf0\x9f\x98z", "\"\xef\xbf\xbdz\""},
        {"\xed\xa0\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
        {"\x80\n", "\"\xef\xbf\xbd\\n\""},
    };
    tsk_text text = {NULL, 0, 0, NULL};
    tsk_json_writer writer = {NULL, TSK_OK, 0};
    tsk_json *document;
    size_t i;
    writer.out = &text;
    write_sample(&writer);
    CHECK_INT(writer.status, TSK_OK);
    CHECK_STRING(
        text.data,
        "{\"empty\":[],\"li\\\"st\\n\":[-9223372036854775808,18446744073709551615,0.5,true,false,null,{},[\"\"]],"
        "\"end\":\"x\\u0000y\"}");
    document = parse(text.data);
    CHECK_INT(tsk_json_count(tsk_json_get(tsk_json_root(document), "li\"st\n")), 8);
    tsk_json_free(document);
    for (i = 0; i < N(strings); i++) {
        text.length = 0;
        writer.needs_comma = 0;
        tsk_json_write_string(&writer, strings[i].from, strlen(strings[i].from));
        CHECK_STRING(text.data, strings[i].to);
    }
    tsk_text_free(&text);
}

static void test_memory(void) {
    char text[801];
    long n;
    int i;
    text[0] = '[';
    for (i = 0; i < 400; i++)
        text[2 * i + 1] = '1', text[2 * i + 2] = i < 399 ? ',' : ']'; /* more values than guessed */
    for (n = 0; n < 100; n++) {
        test_allocator counting = test_allocator_failing_at(n);
        tsk_allocator allocator = test_allocator_of(&counting);
        tsk_error error = TSK_ZERO;
        tsk_json *document = NULL;
        tsk_status status = tsk_json_parse(text, sizeof text, n % 2 ? "x.json" : NULL, &allocator, &document, &error);
        CHECK_INT(status, counting.failed ? TSK_ERROR_MEMORY : TSK_OK);
        CHECK_INT(error.status, status);
        CHECK((document != NULL) == (status == TSK_OK));
        CHECK_INT(tsk_json_count(tsk_json_root(document)), document ? 400 : 0);
        tsk_json_free(document);
        CHECK_INT(counting.alive, 0);
        if (!counting.failed) break;
    }
    CHECK(n > 3 && n < 100);
    for (n = 0; n < 100; n++) { /* the writer stops at the first failure and says so */
        test_allocator counting = test_allocator_failing_at(n);
        tsk_allocator allocator = test_allocator_of(&counting);
        tsk_text out = {NULL, 0, 0, NULL};
        tsk_json_writer writer = {NULL, TSK_OK, 0};
        out.allocator = &allocator;
        writer.out = &out;
        write_sample(&writer);
        CHECK_INT(writer.status, counting.failed ? TSK_ERROR_MEMORY : TSK_OK);
        tsk_text_free(&out);
        CHECK_INT(counting.alive, 0);
        if (!counting.failed) break;
    }
    CHECK(n > 1 && n < 100);
}

/* A text like a big tokenizer.json must not need four times its size. */
static void test_memory_use(void) {
    test_allocator counting = test_allocator_failing_at(-1);
    tsk_allocator allocator = test_allocator_of(&counting);
    tsk_text text = {NULL, 0, 0, NULL};
    tsk_json_writer writer = {NULL, TSK_OK, 0};
    tsk_json *document = NULL;
    const tsk_json_value *member;
    char word[32];
    int64_t i, id, wrong = 0;
    writer.out = &text;
    tsk_json_begin_object(&writer);
    for (i = 0; i < 150000; i++) {
        snprintf(word, sizeof word, "\xc4\xa0%lld\"", (long long)(i * i % 1000003));
        tsk_json_write_key(&writer, word);
        tsk_json_write_int(&writer, i);
    }
    tsk_json_end_object(&writer);
    CHECK_INT(tsk_json_parse(text.data, text.length, "vocab.json", &allocator, &document, NULL), TSK_OK);
    CHECK_INT(tsk_json_count(tsk_json_root(document)), 150000);
    for (i = 0, member = tsk_json_first(tsk_json_root(document)); member; member = tsk_json_next(member), i++) {
        snprintf(word, sizeof word, "\xc4\xa0%lld\"", (long long)(i * i % 1000003));
        if (strcmp(tsk_json_key(member, NULL), word) != 0 || !tsk_json_int64(member, &id) || id != i) wrong++;
    }
    CHECK_INT(wrong, 0);
    CHECK(counting.peak < 4 * text.length);
    tsk_json_free(document);
    tsk_text_free(&text);
}

int main(void) {
    test_accepts();
    test_refuses();
    test_limits();
    test_values();
    test_strings();
    test_integers();
    test_doubles();
    test_write_doubles();
    test_locale();
    test_write();
    test_memory();
    test_memory_use();
    return test_end("test_json");
}
