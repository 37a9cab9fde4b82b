/* Makes the two files that one vendors from the sources in src/.

       make_headers join ROOT OUT       ROOT with every file that it includes from its own folder in the include's place
       make_headers quote ROOT OUT      the same as an array of one string literal per line, for a compiler at run time

   An included file is written once, without its guard (the lines that name SECTION_GUARD_...), where the root includes
   it. The root lists the files in order; a file that includes one further down is an error, so the list is the order of
   use. Includes of what is not in the folder stay. OUT is written whole or not at all. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LINE = 4096, MAX_FILES = 128 };

static struct {
    FILE *out;
    int quotes;
    int n_blank;                        /* blank lines before this one: two in a row become one */
    char *written[MAX_FILES];           /* paths, in order */
    int n_written;
} maker;

static int fail(const char *path, int line, const char *what, const char *which) {
    fprintf(stderr, "%s:%d: %s%s\n", path, line, what, which);
    return 0;
}

/* The line as it stands, or as a string literal with its newline. */
static void put_line(const char *line) {
    int blank = line[strspn(line, " \t\r\n")] == 0;
    if (blank && maker.n_blank) return;
    maker.n_blank = blank;
    if (!maker.quotes) {
        fputs(line, maker.out);
        return;
    }
    fputs("    \"", maker.out);
    for (; *line && *line != '\n'; line++) {
        if (*line == '"' || *line == '\\') fputc('\\', maker.out);
        if (*line == '?') fputs("\\?", maker.out); /* "??" could begin a trigraph */
        else fputc(*line, maker.out);
    }
    fputs("\\n\",\n", maker.out);
}

static int is_written(const char *path) {
    int i;
    for (i = 0; i < maker.n_written; i++)
        if (strcmp(maker.written[i], path) == 0) return 1;
    return 0;
}

/* The file named by an include line, beside `from`: 1 and its path where there is such a file. */
static int included_file(const char *from, const char *line, char *path) {
    const char *slash = strrchr(from, '/');
    int folder = slash ? (int)(slash + 1 - from) : 0;
    char name[256];
    FILE *file;
    if (sscanf(line, "#include \"%255[^\"]\"", name) != 1) return 0;
    snprintf(path, MAX_LINE, "%.*s%s", folder, from, name);
    file = fopen(path, "r");
    if (file) fclose(file);
    return file != NULL;
}

static int is_guard(const char *line) { return line[0] == '#' && strstr(line, " SECTION_GUARD_") != NULL; }

static int join(const char *path, int is_root) {
    char line[MAX_LINE], other[MAX_LINE];
    int number = 0, good = 1;
    FILE *in = fopen(path, "r");
    if (!in) return fail(path, 0, "cannot be read", "");
    while (good && fgets(line, sizeof line, in)) {
        number++;
        if (!strchr(line, '\n')) good = fail(path, number, "a line without an end, or too long", "");
        else if (is_guard(line)) continue;
        else if (!included_file(path, line, other)) put_line(line);
        else if (is_written(other)) continue;
        else if (!is_root) good = fail(path, number, "includes a file that stands below it in the root: ", other);
        else good = join(other, 0);
    }
    fclose(in);
    if (!good) return 0;
    if (maker.n_written == MAX_FILES) return fail(path, number, "too many files", "");
    maker.written[maker.n_written] = (char *)malloc(strlen(path) + 1);
    if (!maker.written[maker.n_written]) return fail(path, number, "out of memory", "");
    strcpy(maker.written[maker.n_written++], path);
    return 1;
}

int main(int argc, char **argv) {
    char temporary[MAX_LINE];
    int good;
    if (argc != 4 || (strcmp(argv[1], "join") != 0 && strcmp(argv[1], "quote") != 0)) {
        fprintf(stderr, "usage: make_headers join|quote ROOT OUT\n");
        return 2;
    }
    snprintf(temporary, sizeof temporary, "%s.new", argv[3]);
    maker.quotes = strcmp(argv[1], "quote") == 0;
    maker.out = fopen(temporary, "w");
    if (!maker.out) return perror(temporary), 1;
    if (maker.quotes)
        fprintf(maker.out, "/* Made from %s and what it includes (make headers): change those files, not this one. */\n"
                           "static const char *const tsk__kernels_source[] = {\n", argv[2]);
    good = join(argv[2], 1);
    if (maker.quotes) fputs("};\n", maker.out);
    while (maker.n_written > 0) free(maker.written[--maker.n_written]);
    if (fclose(maker.out) != 0) good = 0, perror(temporary);
    if (good && rename(temporary, argv[3]) != 0) good = 0, perror(argv[3]);
    if (!good) remove(temporary);
    return !good;
}
