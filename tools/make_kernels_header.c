/* kernels.cu -> kernels.cu.h: the file as an array with one string literal per line. make_kernels_header IN OUT */
#include <stdio.h>

static void put_line(FILE *out, const char *line) {
    fputs("    \"", out);
    for (; *line && *line != '\n'; line++) {
        if (*line == '"' || *line == '\\') fputc('\\', out);
        /* "??" could begin a trigraph */
        if (*line == '?') fputs("\\?", out);
        else fputc(*line, out);
    }
    fputs("\\n\",\n", out);
}

int main(int argc, char **argv) {
    char line[4096];
    FILE *in, *out;
    if (argc != 3) return fprintf(stderr, "usage: make_kernels_header kernels.cu kernels.cu.h\n"), 2;
    in = fopen(argv[1], "r");
    out = in ? fopen(argv[2], "w") : NULL;
    if (!in || !out) return perror(in ? argv[2] : argv[1]), 1;
    fputs("/* Made from kernels.cu by tools/make_kernels_header.c (make kernels): change that file, not this one. */\n"
          "static const char *const tsk__kernels_source[] = {\n", out);
    while (fgets(line, sizeof line, in)) put_line(out, line);
    fputs("};\n", out);
    fclose(in);
    if (fclose(out) != 0) return perror(argv[2]), 1;
    return 0;
}
