/* Whatever parses is walked, written, parsed again and written again: both writings must be the same. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "../../tokenskip.h"

static tsk_text writings[2]; /* kept, so that few executions allocate */

/* Written without fraction and exponent, as integers are: the others, though they may be whole, are written as
   doubles. */
static int is_plain(const tsk_json_value *value) {
    const char *text = tsk__json_text(value) + value->start;
    uint32_t i;
    for (i = 0; i < value->length; i++)
        if (text[i] == '.' || text[i] == 'e' || text[i] == 'E') return 0;
    return 1;
}

static void write_number(tsk_json_writer *writer, const tsk_json_value *value) {
    int64_t i;
    uint64_t u;
    double d;
    int is_unsigned = tsk_json_uint64(value, &u), is_signed = tsk_json_int64(value, &i);
    if (is_unsigned && is_signed && u != (uint64_t)i) abort();
    if (is_unsigned && is_plain(value)) tsk_json_write_uint(writer, u);
    else if (is_signed && is_plain(value)) tsk_json_write_int(writer, i);
    else tsk_json_write_double(writer, tsk_json_double(value, &d) ? d : 0);
}

static void write_value(tsk_json_writer *writer, const tsk_json_value *value) {
    const tsk_json_value *child = tsk_json_first(value), *found;
    tsk_json_type type = tsk_json_type_of(value);
    size_t length = 0, count = 0;
    const char *text;
    int flag = 2;
    if (type == TSK_JSON_OBJECT) tsk_json_begin_object(writer);
    if (type == TSK_JSON_ARRAY) tsk_json_begin_array(writer);
    for (; child; child = tsk_json_next(child), count++) {
        text = tsk_json_key(child, &length);
        if ((text != NULL) != (type == TSK_JSON_OBJECT) || tsk_json_offset(child) <= tsk_json_offset(value)) abort();
        if (text && strlen(text) == length && count < 8) {
            found = tsk_json_get(value, text);
            if (!found || tsk_json_offset(found) < tsk_json_offset(child)) abort();
        }
        if (text) tsk_json_write_key(writer, text);
        write_value(writer, child);
    }
    if (count != tsk_json_count(value)) abort();
    if (type == TSK_JSON_OBJECT) tsk_json_end_object(writer);
    if (type == TSK_JSON_ARRAY) tsk_json_end_array(writer);
    if (type == TSK_JSON_NUMBER) write_number(writer, value);
    if (type == TSK_JSON_NULL) tsk_json_write_null(writer);
    if (tsk_json_bool(value, &flag)) tsk_json_write_bool(writer, flag);
    text = tsk_json_string(value, &length);
    if (text && text[length]) abort();
    if (text) tsk_json_write_string(writer, text, length);
}

/* 1 when the text was accepted, and then written to *out. */
static int rewrite(const char *text, size_t size, tsk_text *out) {
    tsk_json *document;
    tsk_json_writer writer = {NULL, TSK_OK, 0};
    tsk_error error;
    if (tsk_json_parse(text, size, "fuzz", NULL, &document, &error) != TSK_OK) {
        if (document || error.offset > size || !error.message[0]) abort();
        return 0;
    }
    out->length = 0;
    writer.out = out;
    write_value(&writer, tsk_json_root(document));
    if (writer.status != TSK_OK) abort();
    tsk_json_free(document);
    return 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!rewrite((const char *)data, size, &writings[0])) return 0;
    if (!rewrite(writings[0].data, writings[0].length, &writings[1])) abort();
    if (strcmp(writings[0].data, writings[1].data) != 0) abort();
    return 0;
}
