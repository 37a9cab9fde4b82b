/* json_lint FILE: exit status 0 when the library's JSON parser accepts the file, 1 (and why, on stderr) when not. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "../tokenskip.h"

int main(int argc, char **argv) {
    tsk_text text = {0};
    tsk_error error = {0};
    tsk_json *document = NULL;
    if (argc != 2) {
        fprintf(stderr, "usage: json_lint FILE\n");
        return 2;
    }
    if (tsk_read_file(argv[1], SIZE_MAX, NULL, &text, &error) == TSK_OK)
        tsk_json_parse(text.data, text.length, argv[1], NULL, &document, &error);
    if (!document) fprintf(stderr, "%s\n", error.message);
    tsk_text_free(&text);
    tsk_json_free(document);
    return document ? 0 : 1;
}
