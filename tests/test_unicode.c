/* Character classes and NFC over every code point, against hashes made by the reference
   (tests/golden/tokenizer/make.mjs). */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_NO_CUDA
#include "../src/bpe.h"
#include "golden.h"

static tsk__unicode unicode;

static uint64_t fnv(uint64_t hash, const char *text, size_t size) {
    while (size--) hash = (hash ^ (unsigned char)*text++) * UINT64_C(0x100000001b3);
    return hash;
}

static int is_hash(uint64_t hash, const tsk_json_value *golden) {
    char text[32];
    snprintf(text, sizeof text, "%llx", (unsigned long long)hash);
    return golden_is(golden, "hash", text);
}

/* The kinds that a class of the golden file is made of, as bits. */
static int kinds_of(const tsk_json_value *golden) {
    if (golden_is(golden, "class", "\\p{L}")) return TSK__BPE_LETTERS;
    if (golden_is(golden, "class", "\\p{N}")) return TSK__BPE_NUMBERS;
    if (golden_is(golden, "class", "\\s")) return TSK__BPE_SPACES;
    if (golden_is(golden, "class", "[\\p{Lu}\\p{Lt}]")) return 1 << TSK__UNICODE_UPPER;
    if (golden_is(golden, "class", "[\\p{Lm}\\p{Lo}]")) return 1 << TSK__UNICODE_LETTER;
    if (golden_is(golden, "class", "\\p{Ll}")) return 1 << TSK__UNICODE_LOWER;
    return golden_is(golden, "class", "\\p{M}") ? 1 << TSK__UNICODE_MARK : 0;
}

static void test_class(const tsk_json_value *golden) {
    int kinds = kinds_of(golden), count = 0;
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    uint32_t c;
    for (c = 0; c < 0x110000; c++) {
        char text[4];
        if ((c >= 0xd800 && c < 0xe000) || !(1 << (tsk__unicode_property(&unicode, c) & TSK__UNICODE_KIND) & kinds))
            continue;
        count++;
        hash = fnv(hash, text, (size_t)(tsk__json_put_utf8(text, c) - text));
    }
    CHECK_INT(count, golden_int(golden, "count", 0));
    test_check(is_hash(hash, golden), __FILE__, __LINE__, "class %s",
               tsk_json_string(tsk_json_get(golden, "class"), NULL));
}

static void test_around(const tsk_json_value *golden) {
    size_t n_before, n_after;
    const char *before = tsk_json_string(tsk_json_get(golden, "before"), &n_before),
               *after = tsk_json_string(tsk_json_get(golden, "after"), &n_after);
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    tsk_text out;
    uint32_t c;
    memset(&out, 0, sizeof out);
    for (c = 0; c < 0x110000; c++) {
        char text[32], *to = text + n_before;
        if (c >= 0xd800 && c < 0xe000) continue;
        memcpy(text, before, n_before);
        to = tsk__json_put_utf8(to, c);
        memcpy(to, after, n_after);
        out.length = 0;
        if (tsk__unicode_nfc(&unicode, text, (size_t)(to - text) + n_after, &out) != TSK_OK) exit(1);
        hash = fnv(hash, out.data, out.length);
    }
    test_check(is_hash(hash, golden), __FILE__, __LINE__, "NFC of '%s' and every code point and '%s'", before, after);
    tsk_text_free(&out);
}

static void test_text(const tsk_json_value *golden) {
    size_t n, n_nfc;
    const char *text = tsk_json_string(tsk_json_get(golden, "text"), &n),
               *nfc = tsk_json_string(tsk_json_get(golden, "nfc"), &n_nfc);
    tsk_text out, again;
    memset(&out, 0, sizeof out);
    memset(&again, 0, sizeof again);
    CHECK(tsk__unicode_nfc(&unicode, text, n, &out) == TSK_OK);
    test_check(out.length == n_nfc && memcmp(out.data, nfc, n_nfc) == 0, __FILE__, __LINE__,
               "NFC of '%s': '%s', expected '%s'", text, out.data, nfc);
    CHECK(tsk__unicode_nfc(&unicode, out.data, out.length, &again) == TSK_OK);
    CHECK(again.length == n_nfc && memcmp(again.data, nfc, n_nfc) == 0);
    tsk_text_free(&out);
    tsk_text_free(&again);
}

static void test_goldens(void) {
    size_t size;
    char *file = read_file("tests/golden/tokenizer/unicode.jsonl", &size), *line, *end;
    if (!CHECK(file != NULL)) return;
    for (line = file; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        tsk_json *document = NULL;
        const tsk_json_value *golden;
        if (!CHECK(tsk_json_parse(line, (size_t)(end - line), "unicode.jsonl", NULL, &document, NULL) == TSK_OK))
            continue;
        golden = tsk_json_root(document);
        if (tsk_json_get(golden, "class")) test_class(golden);
        else if (tsk_json_get(golden, "before")) test_around(golden);
        else test_text(golden);
        tsk_json_free(document);
    }
    free(file);
}

/* A megabyte of accents in the worst order must not take longer than one in order. */
static void test_many_marks(void) {
    enum { n = 200000 };
    char *text = (char *)malloc(2 * n + 1);
    tsk_text out;
    size_t i;
    if (!text) return;
    memset(&out, 0, sizeof out);
    text[0] = 'e';
    for (i = 0; i < n; i++)
        memcpy(text + 1 + 2 * i, i % 2 ? "\xcc\xa3" : "\xcd\x85",
               2); /* U+0323 below, U+0345 iota: class 220 after 240 */
    CHECK(tsk__unicode_nfc(&unicode, text, 2 * n + 1, &out) == TSK_OK);
    CHECK(out.length == 2 * n - 2 + 3 &&
          memcmp(out.data, "\xe1\xba\xb9\xcc\xa3", 5) == 0); /* U+1EB9 and the other dots */
    CHECK(memcmp(out.data + out.length - 4, "\xcd\x85\xcd\x85", 4) == 0);
    tsk_text_free(&out);
    free(text);
}

static void test_utf8(void) {
    static const struct { const char *text; size_t size, invalid;
    } cases[] = {{"", 0, 0},
                 {"abc", 3, 3},
                 {"12345678\xff", 9, 8},
                 {"\xc3\xa9", 2, 2},
                 {"\xc3", 1, 0},
                 {"a\xc0\x80", 3, 1},
                 {"\xed\xa0\x80", 3, 0},
                 {"\xed\x9f\xbf", 3, 3},
                 {"\xf4\x8f\xbf\xbf", 4, 4},
                 {"\xf4\x90\x80\x80", 4, 0},
                 {"\xe0\x80\x80", 3, 0},
                 {"1234567\xc3\xa9 12345678\x80", 19, 18}};
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_INT(tsk__unicode_invalid(cases[i].text, cases[i].size), cases[i].invalid);
}

static void test_memory(void) {
    long n;
    for (n = 0; n < 1000; n++) {
        test_allocator counting = test_allocator_failing_at(n);
        tsk_allocator allocator = test_allocator_of(&counting);
        tsk__unicode other;
        tsk_text out;
        memset(&out, 0, sizeof out);
        out.allocator = &allocator;
        if (tsk__unicode_create(&other, &allocator) &&
            tsk__unicode_nfc(&other, "xe\xcc\x81\xcd\x85\xcc\xa3 \xea\xb0\x80", 12, &out) != TSK_OK)
            CHECK(counting.failed);
        tsk__unicode_destroy(&other);
        tsk_text_free(&out);
        CHECK_INT(counting.alive, 0);
        if (!counting.failed) break;
    }
    CHECK(n > 3 && n < 1000);
}

int main(void) {
    if (!tsk__unicode_create(&unicode, NULL)) return 1;
    test_goldens();
    test_many_marks();
    test_utf8();
    test_memory();
    tsk__unicode_destroy(&unicode);
    return test_end("test_unicode");
}
