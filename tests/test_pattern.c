/* >>pattern: names and patterns with what Python's re.match says of them (each line was tried with Python 3.11), and
   what is refused. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "../src/pattern.h"
#include "test.h"

static const struct { const char *pattern, *name; int matches; } cases[] = {
    {"lm_head", "lm_head", 1}, {"lm_head", "lm_head.weight", 1}, {"lm_head", "model.lm_head", 0},
    {".*lm_head", "model.lm_head", 1}, {"", "anything", 1}, {".*", "", 1}, {".+", "", 0},
    {".*\\.ff_out$", "model.transformer.blocks.3.ff_out", 1}, {".*\\.ff_out$", "model.transformer.blocks.3.ff_outs", 0},
    {"model\\.layers\\.1$", "model.layers.1", 1}, {"model\\.layers\\.1$", "model.layers.11", 0},
    {"model.layers.1$", "modelxlayersx1", 1}, {".*\\.(0|1|17)\\..*", "blocks.17.q_proj", 1},
    {".*\\.(0|1|17)\\..*", "blocks.7.q_proj", 0}, {".*\\.(?:q|k)_proj", "blocks.7.k_proj", 1},
    {".*\\.(?:q|k)_proj", "blocks.7.v_proj", 0}, {"[a-c]+x", "abcabcx", 1}, {"[a-c]+x", "abdx", 0},
    {"[^.]+\\.q", "layer.q", 1}, {"[^.]+\\.q", "la.yer.q", 0}, {"a{2,3}b", "ab", 0}, {"a{2,3}b", "aab", 1},
    {"a{2,3}b", "aaab", 1}, {"a{2,3}b", "aaaab", 0}, {"a{3}$", "aaa", 1}, {"a{3}$", "aa", 0}, {"a{2,}$", "aaaaa", 1},
    {"a{,2}", "a{,2}", 1}, {"a{x", "a{x", 1}, {"\\d+\\.\\w+", "12.up_proj", 1}, {"\\d+\\.\\w+", "x.up_proj", 0},
    {"[\\d.]+$", "1.2.3", 1}, {"\\D+$", "abc", 1}, {"\\D+$", "ab1", 0}, {"a?b", "b", 1}, {"a?b", "aab", 0},
    {"(ab)*c", "ababc", 1}, {"(ab)*c", "abac", 0}, {"(a|b|)+c", "abbac", 1}, {"a||b", "zzz", 1}, {"(a|bc)d", "bcd", 1},
    {"(a|b)(c|d)$", "bd", 1}, {"(a|b)(c|d)$", "b", 0}, {".*?x$", "aaax", 1}, {"^a", "a", 1}, {"b|^a", "a", 1},
    {"x^a", "xa", 0}, {"a$b", "ab", 0}, {"[]a]+$", "]a", 1}, {"[a\\-z]+$", "-z", 1}, {"[a\\-z]+$", "b", 0},
    {"[a-]+$", "-a", 1}, {"(((a)))$", "a", 1}, {"(a*)*$", "aaaa", 1}, {"(a*)*$", "aab", 0}, {"(a|a)*b", "aaaac", 0},
    {"((ab){2}|c){2}$", "ababc", 1}, {"((ab){2}|c){2}$", "abc", 0}, {"self_attn|mlp", "mlp.gate", 1},
    {"\\.", ".", 1}, {"\\.", "a", 0}, {"a\\+b", "a+b", 1}};

static const struct { const char *pattern, *problem; } refused[] = {
    {"(?=a)b", "not understood"}, {"(?!a)b", "not understood"}, {"(?P<n>a)", "not understood"},
    {"(?i)a", "not understood"}, {"a\\b", "escape"}, {"(a)\\1", "escape"}, {"a\\", "escape"}, {"[a", "without an end"},
    {"[", "without an end"}, {"(a", "without an end"}, {"a)", "too many"}, {"*a", "repeats nothing"},
    {"a**", "repeats a repetition"}, {"a+*", "repeats a repetition"}, {"[z-a]", "backwards"}, {"a{3,2}", "its most"},
    {"(((a{40}){40}){40})", "too long"}, {"[\\q]", "escape"}};

/* n times the text. */
static const char *many(const char *text, int n, char *out, size_t size) {
    size_t used = 0;
    while (n--) used += (size_t)snprintf(out + used, size - used, "%s", text);
    return out;
}

int main(void) {
    static tsk__pattern p;
    static char pattern[20000], name[20000];
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *problem = tsk__pattern_read(&p, cases[i].pattern);
        test_check(!problem, __FILE__, __LINE__, "'%s' %s", cases[i].pattern, problem ? problem : "");
        if (!problem)
            test_check(tsk__pattern_matches(&p, cases[i].name) == cases[i].matches, __FILE__, __LINE__,
                       "'%s' and '%s'", cases[i].pattern, cases[i].name);
    }
    for (i = 0; i < sizeof refused / sizeof *refused; i++) {
        const char *problem = tsk__pattern_read(&p, refused[i].pattern);
        if (CHECK(problem)) CHECK_CONTAINS(problem, refused[i].problem);
    }
    /* what takes others for ever */
    CHECK(!tsk__pattern_read(&p, many("(a*)*", 40, pattern, sizeof pattern)));
    CHECK(tsk__pattern_matches(&p, many("a", 5000, name, sizeof name)));
    CHECK(!tsk__pattern_read(&p, "(a|aa)+$"));
    many("a", 5000, name, sizeof name);
    CHECK(!tsk__pattern_matches(&p, strcat(name, "b")));
    CHECK(tsk__pattern_read(&p, many("(", 200, pattern, sizeof pattern)) != NULL);
    CHECK(tsk__pattern_read(&p, many("a|", 5000, pattern, sizeof pattern)) != NULL);
    CHECK(tsk__pattern_read(&p, many("[a]", 100, pattern, sizeof pattern)) != NULL);
    CHECK(tsk__pattern_read(&p, many("ab", 5000, pattern, sizeof pattern)) != NULL);
    return test_end("test_pattern");
}
