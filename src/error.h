#ifndef SECTION_GUARD_ERROR
#define SECTION_GUARD_ERROR

#include "system.h"
#include "api.h"

// >>error =============================================================================================================
/* Every failure is made by tsk__error_set, at the place that knows the input's name, and handed up unchanged. */

#if defined(__GNUC__)
#define TSK__PRINTF(text, first) __attribute__((__format__(__printf__, text, first)))
#else
#define TSK__PRINTF(text, first)
#endif

const char *tsk_status_string(tsk_status status) {
    static const char *const strings[] = {
#define TSK__STATUS_TEXT(name, text) text,
        TSK_STATUS_LIST(TSK__STATUS_TEXT)
#undef TSK__STATUS_TEXT
    };
    return (int)status >= 0 && (int)status < (int)TSK_STATUS_COUNT ? strings[(int)status] : "unknown status";
}

/* Untrusted names end up in messages: control characters would break the promise of one line. */
static void tsk__error_one_line(char *text) {
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f) *text = '?';
}

/* The end of a long path: in full it would push the reason out of the message. Never cuts a UTF-8 character. */
static TSK__NOT_INLINE const char *tsk__error_path(const char *path) {
    size_t length = strlen(path), i = length > 200 ? length - 200 : 0;
    while (i && (path[i] & 0xc0) == 0x80) i++;
    return path + i;
}

/* Fills all of `error` (may be NULL), whatever was in it, and returns `status`, so that callers write
   `return tsk__error_set(...)`. `file` may be NULL. */
static TSK__NOT_INLINE tsk_status TSK__PRINTF(5, 6)
    tsk__error_set(tsk_error *error, tsk_status status, const char *file, uint64_t offset, const char *format, ...) {
    va_list arguments;
    size_t length;
    if (!error) return status;
    memset(error, 0, sizeof *error);
    error->status = status;
    error->offset = offset;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    tsk__error_one_line(error->message);
    length = file ? strlen(file) : 0;
    if (length >= sizeof error->file) file += length - (sizeof error->file - 1);
    if (file) snprintf(error->file, sizeof error->file, "%s", file);
    tsk__error_one_line(error->file);
    return status;
}

static TSK__NOT_INLINE tsk_status tsk__error_memory(tsk_error *error, const char *what, uint64_t size) {
    return tsk__error_set(error, TSK_ERROR_MEMORY, NULL, TSK_NO_OFFSET, "out of memory: %llu bytes for %s",
                          (unsigned long long)size, what);
}

static TSK__NOT_INLINE tsk_status tsk__error_null(tsk_error *error, const char *function, const char *parameter) {
    return tsk__error_set(error, TSK_ERROR_ARGUMENT, NULL, TSK_NO_OFFSET, "%s: %s is NULL", function, parameter);
}

#endif /* SECTION_GUARD_ERROR */
