/* Shared by the tokenizer's fuzzers: a folder in memory, a small tokenizer to start from, and what must hold for
   any. */
#ifndef TSK_TOKENIZER_FILES_H
#define TSK_TOKENIZER_FILES_H

/* Vocabulary: the 95 printable ASCII characters except space and the two that JSON escapes, Ġ for space, Ċ for newline,
   the bytes of é and U+0301, and a few merges. */
static const char *fuzz_vocabulary(void) {
    static char text[2048];
    int c, n = 0;
    char *to = text;
    if (text[0]) return text;
    *to++ = '{';
    for (c = '!'; c <= '~'; c++)
        if (c != '"' && c != '\\') to += sprintf(to, "\"%c\":%d,", c, n++);
    to +=
        sprintf(to, "\"\xc4\xa0\":%d,\"\xc4\x8a\":%d,\"\xc3\x83\":%d,\"\xc2\xa9\":%d,\"\xc3\x8c\":%d,\"\xc4\xa3\":%d,",
                n, n + 1, n + 2, n + 3, n + 4, n + 5);
    sprintf(to, "\"aa\":%d,\"aaaa\":%d,\"th\":%d,\"the\":%d,\"\xc4\xa0the\":%d,\"\xc3\x83\xc2\xa9\":%d}", n + 6, n + 7,
            n + 8, n + 9, n + 10, n + 11);
    return text;
}
static const char fuzz_merges[] = "t h\nth e\n\xc4\xa0 the\na a\naa aa\n\xc3\x83 \xc2\xa9\n";

typedef struct fuzz_file {
    const char *name;
    const void *data;
    size_t size;
} fuzz_file;

typedef struct fuzz_folder {
    fuzz_file files[4];
    int count;
} fuzz_folder;

static tsk_status fuzz_open(void *user, const char *path, void **file, uint64_t *size, char *reason,
                            size_t reason_size) {
    fuzz_folder *folder = (fuzz_folder *)user;
    const char *name = strrchr(path, '/');
    int i;
    (void)reason, (void)reason_size;
    for (i = 0; i < folder->count; i++)
        if (name && strcmp(name + 1, folder->files[i].name) == 0) {
            *file = &folder->files[i];
            *size = folder->files[i].size;
            return TSK_OK;
        }
    return TSK_ERROR_IO;
}
static tsk_status fuzz_read(void *user, void *file, uint64_t offset, void *buffer, size_t size, char *reason,
                            size_t reason_size) {
    const fuzz_file *from = (const fuzz_file *)file;
    (void)user, (void)reason, (void)reason_size;
    if (offset > from->size || size > from->size - offset) abort();
    if (size) memcpy(buffer, (const char *)from->data + offset, size);
    return TSK_OK;
}
static void fuzz_close(void *user, void *file) { (void)user, (void)file; }

static void fuzz_add(fuzz_folder *folder, const char *name, const void *data, size_t size) {
    fuzz_file *file = &folder->files[folder->count++];
    file->name = name;
    file->data = data;
    file->size = size;
}

/* NULL when refused, which must come with a reason. */
static tsk_tokenizer *fuzz_load(fuzz_folder *folder) {
    tsk_file_callbacks files = {fuzz_open, fuzz_read, NULL, fuzz_close, NULL};
    tsk_host host = {NULL, NULL, 0};
    tsk_tokenizer *tokenizer = NULL;
    tsk_error error;
    tsk_status status;
    memset(&error, 0, sizeof error);
    files.user = folder;
    host.files = &files;
    status = tsk_tokenizer_load("folder", &host, &tokenizer, &error);
    if ((status == TSK_OK) != (tokenizer != NULL) ||
        (status != TSK_OK && (error.status != status || !error.message[0])))
        abort();
    return tokenizer;
}

/* Decoding whole and by pieces must agree, and give UTF-8 in every piece. Returns the text; the caller frees it. */
static tsk_text fuzz_decode(const tsk_tokenizer *tokenizer, const int32_t *ids, int32_t count, int skip) {
    tsk_text whole, pieces;
    tsk_decoder decoder;
    int32_t i;
    size_t seen = 0;
    memset(&whole, 0, sizeof whole);
    memset(&pieces, 0, sizeof pieces);
    memset(&decoder, 0, sizeof decoder);
    decoder.skip_special = skip;
    if (tsk_tokenizer_decode(tokenizer, ids, count, skip, &whole, NULL) != TSK_OK) abort();
    for (i = 0; i <= count; i++) {
        tsk_status status = i < count ? tsk_decoder_push(tokenizer, &decoder, ids[i], &pieces, NULL)
                                      : tsk_decoder_flush(&decoder, &pieces);
        if (status != TSK_OK ||
            (pieces.length > seen &&
             tsk__unicode_invalid(pieces.data + seen, pieces.length - seen) != pieces.length - seen))
            abort();
        seen = pieces.length;
    }
    if (pieces.length != whole.length || (whole.length && memcmp(pieces.data, whole.data, whole.length) != 0)) abort();
    tsk_text_free(&pieces);
    return whole;
}

/* Both ways of encoding; ids must be the tokenizer's. */
static tsk_tokens fuzz_encode(const tsk_tokenizer *tokenizer, const char *text, size_t size, int special) {
    tsk_tokens tokens;
    tsk_error error;
    size_t invalid = tsk__unicode_invalid(text, size);
    int32_t i;
    tsk_status status;
    memset(&tokens, 0, sizeof tokens);
    memset(&error, 0, sizeof error);
    status = tsk_tokenizer_encode(tokenizer, text, size, special, &tokens, &error);
    if ((status == TSK_OK) != (invalid == size) || (status != TSK_OK && (error.offset != invalid || tokens.count)))
        abort();
    for (i = 0; i < tokens.count; i++)
        if (!tsk_tokenizer_token(tokenizer, tokens.ids[i], NULL)) abort();
    return tokens;
}

#endif
