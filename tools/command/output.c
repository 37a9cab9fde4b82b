#include "output.h"
#include "system.h"

static int cannot_write(const char *path, const char *reason) {
    return cli_fail("cannot write '%s': %s", path, reason);
}

/* A name beside `path`, so that renaming stays within one file system. Never somebody else's file. */
static int open_temporary(const char *path, tsk_text *name) {
    char tail[64];
    int descriptor;
    snprintf(tail, sizeof tail, ".tokenskip-%ld.tmp", system_process_number());
    cli_append_bytes(name, path, system_folder_length(path));
    cli_append_bytes(name, tail, strlen(tail));
    descriptor = system_open(name->data, SYSTEM_CREATE);
    if (descriptor < 0) cannot_write(path, strerror(errno));
    return descriptor;
}

/* Renaming would replace a device or fail on a folder only at the end. */
static int check_kind(const char *path) {
    system_file file;
    if (!path[0]) return cannot_write(path, "the path is empty");
    if (system_look(path, &file) != 0 || file.kind == SYSTEM_REGULAR) return CLI_OK;
    return cannot_write(path, file.kind == SYSTEM_FOLDER ? "is a folder" : "not a regular file");
}

int output_check(const char *path) {
    tsk_text name = {0};
    int descriptor, status = check_kind(path);
    if (status != CLI_OK) return status;
    descriptor = open_temporary(path, &name);
    if (descriptor >= 0) {
        system_close(descriptor);
        system_remove(name.data);
    }
    tsk_text_free(&name);
    return descriptor >= 0 ? CLI_OK : CLI_FAILED;
}

int output_check_apart(const char *option, const char *path, const char *other_option, const char *other_path) {
    system_file a, b;
    if (!path || !other_path) return CLI_OK;
    if (strcmp(path, other_path) != 0 &&
        (system_look(path, &a) != 0 || system_look(other_path, &b) != 0 || !system_is_same(&a, &b)))
        return CLI_OK;
    return cli_usage_error("%s and %s name one file", option, other_option);
}

static int write_all(int descriptor, const char *bytes, size_t size) {
    size_t done = 0;
    while (done < size) {
        ssize_t n = system_write(descriptor, bytes + done, size - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return 0;
        done += (size_t)n;
    }
    return 1;
}

int output_open(output_file *file, const char *path) {
    int status = check_kind(path);
    memset(file, 0, sizeof *file);
    file->path = path;
    file->descriptor = status == CLI_OK ? open_temporary(path, &file->name) : -1;
    return file->descriptor >= 0 ? CLI_OK : CLI_FAILED;
}

int output_append(output_file *file, const char *bytes, size_t size) {
    return write_all(file->descriptor, bytes, size) ? CLI_OK : cannot_write(file->path, strerror(errno));
}

int output_close(output_file *file, int status) {
    if (file->descriptor >= 0) {
        /* some file systems tell of a full disk only here */
        if (system_close(file->descriptor) != 0 && status == CLI_OK) status = cannot_write(file->path, strerror(errno));
        if (status == CLI_OK && system_rename(file->name.data, file->path) != 0)
            status = cannot_write(file->path, strerror(errno));
        if (status != CLI_OK) system_remove(file->name.data);
    }
    tsk_text_free(&file->name);
    return status;
}

int output_write(const char *path, const char *bytes, size_t size) {
    output_file file;
    int status = output_open(&file, path);
    if (status == CLI_OK) status = output_append(&file, bytes, size);
    return output_close(&file, status);
}
