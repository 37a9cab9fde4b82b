#ifndef SECTION_GUARD_PLATFORM
#define SECTION_GUARD_PLATFORM

#include "error.h"
#include "memory.h"

// >>platform ==========================================================================================================
/* Every call of the operating system: files, folders, memory, time, threads and locks, the processor, libraries found
   at run time. Each group of calls is there for POSIX (Linux, macOS) and for Windows, in this order; what is built on
   them is written once. A call of ours that fails leaves its reason in errno, on every system. Another operating system
   is this section's work. */

#ifndef _WIN32

/* Another number in a forked child. */
static uint64_t tsk__process_number(void) { return (uint64_t)getpid(); }

/* ---- descriptors and paths, POSIX */

/* What keeps a file of that mode from being read or written over; NULL for a regular one. */
static const char *tsk__file_obstacle(mode_t mode) {
    if (S_ISREG(mode)) return NULL;
    if (S_ISDIR(mode)) return "is a directory";
    if (S_ISFIFO(mode)) return "is a FIFO, not a regular file";
    return "is not a regular file";
}

/* On 32-bit Linux glibc's plain calls take 32-bit offsets, unless _FILE_OFFSET_BITS was 64 before the first header;
   where the including file came first, it was not. glibc has the calls with 64-bit offsets in any case, and declares
   them only where they were asked for. */
#if defined(__GLIBC__) && defined(__WORDSIZE)
#if __WORDSIZE == 32 && !defined(__USE_FILE_OFFSET64)
#define TSK__PLATFORM_OFFSET64
#endif
#endif

#ifdef TSK__PLATFORM_OFFSET64
#ifndef __USE_LARGEFILE64
extern int open64(const char *path, int flags, ...);
extern int64_t lseek64(int descriptor, int64_t offset, int whence);
extern ssize_t pread64(int descriptor, void *buffer, size_t size, int64_t offset);
extern ssize_t pwrite64(int descriptor, const void *buffer, size_t size, int64_t offset);
#endif
static int tsk__descriptor_open(const char *path, int flags) { return open64(path, flags, 0666); }
static int64_t tsk__descriptor_read(int d, void *to, size_t size, uint64_t offset) {
    return pread64(d, to, size, (int64_t)offset);
}
static int64_t tsk__descriptor_write(int d, const void *from, size_t size, uint64_t offset) {
    return pwrite64(d, from, size, (int64_t)offset);
}
/* fstat refuses files that are larger than it can tell, which only regular files are. */
static const char *tsk__descriptor_size(int d, uint64_t *size) {
    struct stat status;
    int64_t end = lseek64(d, 0, SEEK_END);
    *size = end < 0 ? 0 : (uint64_t)end;
    if (fstat(d, &status) == 0) return tsk__file_obstacle(status.st_mode);
    return errno == EOVERFLOW ? NULL : strerror(errno);
}
#else
static int tsk__descriptor_open(const char *path, int flags) { return open(path, flags, 0666); }
static int64_t tsk__descriptor_read(int d, void *to, size_t size, uint64_t offset) {
    return pread(d, to, size, (off_t)offset);
}
static int64_t tsk__descriptor_write(int d, const void *from, size_t size, uint64_t offset) {
    return pwrite(d, from, size, (off_t)offset);
}
/* The size of a regular file; of anything else, why not. */
static const char *tsk__descriptor_size(int d, uint64_t *size) {
    struct stat status;
    if (fstat(d, &status) != 0) return strerror(errno);
    *size = (uint64_t)status.st_size;
    return tsk__file_obstacle(status.st_mode);
}
#endif

/* To read. O_NONBLOCK: opening a FIFO would otherwise wait for a writer. It means nothing to a regular file. */
static int tsk__descriptor_open_input(const char *path) {
    int descriptor;
    do descriptor = tsk__descriptor_open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    while (descriptor < 0 && errno == EINTR);
    return descriptor;
}

/* To write and read back. O_EXCL: never somebody else's file, nor through a link that somebody put there. */
static int tsk__descriptor_create(const char *path) {
    int descriptor;
    do descriptor = tsk__descriptor_open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC);
    while (descriptor < 0 && errno == EINTR);
    return descriptor;
}

static int tsk__descriptor_close(int d) { return close(d); }

/* All `size` bytes for reading, or NULL. */
static const void *tsk__descriptor_map(int d, size_t size) {
    void *address = mmap(NULL, size, PROT_READ, MAP_SHARED, d, 0);
    return address == MAP_FAILED ? NULL : address;
}
static void tsk__unmap(const void *address, size_t size) { munmap((void *)(uintptr_t)address, size); }

/* The file of that name loses it, and vanishes when it is closed, whatever happens. */
static int tsk__descriptor_hide(int d, const char *path) {
    (void)d;
    return unlink(path);
}

/* What is there and is no regular file; NULL also where nothing is. */
static const char *tsk__path_obstacle(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 ? tsk__file_obstacle(status.st_mode) : NULL;
}

/* A dangling link counts. */
static int tsk__path_exists(const char *path) {
    struct stat status;
    return lstat(path, &status) == 0;
}

static int tsk__path_remove(const char *path) { return unlink(path); }

/* `from` takes the name `to`, of a file that may be there, in one step. */
static int tsk__path_rename(const char *from, const char *to) { return rename(from, to); }

#define TSK__PATH_SEPARATORS "/"

/* How long the folder's part is, with its separator. */
static size_t tsk__path_folder_length(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) + 1 : 0;
}

#else

static uint64_t tsk__process_number(void) { return GetCurrentProcessId(); }

/* ---- descriptors and paths, Windows: the C library's descriptors over handles of our own opening */

enum { TSK__PATH_ROOM = 4096 }; /* UTF-16 units, as many as Linux has bytes for a path */

/* The reason of the last call, as an errno. */
static void tsk__windows_errno(void) {
    static const struct { DWORD code; int number; } reasons[] = {
        {ERROR_FILE_NOT_FOUND, ENOENT}, {ERROR_PATH_NOT_FOUND, ENOENT}, {ERROR_INVALID_NAME, ENOENT},
        {ERROR_BAD_PATHNAME, ENOENT}, {ERROR_BAD_NETPATH, ENOENT}, {ERROR_BAD_NET_NAME, ENOENT},
        {ERROR_INVALID_DRIVE, ENOENT}, {ERROR_DIRECTORY, ENOTDIR}, {ERROR_ACCESS_DENIED, EACCES},
        {ERROR_SHARING_VIOLATION, EACCES}, {ERROR_LOCK_VIOLATION, EACCES}, {ERROR_WRITE_PROTECT, EROFS},
        {ERROR_FILE_EXISTS, EEXIST}, {ERROR_ALREADY_EXISTS, EEXIST}, {ERROR_TOO_MANY_OPEN_FILES, EMFILE},
        {ERROR_DISK_FULL, ENOSPC}, {ERROR_HANDLE_DISK_FULL, ENOSPC}, {ERROR_NOT_ENOUGH_MEMORY, ENOMEM},
        {ERROR_OUTOFMEMORY, ENOMEM}, {ERROR_FILENAME_EXCED_RANGE, ENAMETOOLONG}};
    const DWORD code = GetLastError();
    size_t i;
    errno = EIO;
    for (i = 0; i < sizeof reasons / sizeof *reasons; i++)
        if (reasons[i].code == code) errno = reasons[i].number;
}

typedef struct tsk__wide_path { wchar_t text[8 + TSK__PATH_ROOM]; } tsk__wide_path; /* in front: room for a prefix */

/* A path in UTF-8 as the system's calls take it: in UTF-16, absolute, and where it is long with the prefix that allows
   more than 260. It lies in *room. NULL: it cannot be one. */
static const wchar_t *tsk__wide_path_of(const char *path, tsk__wide_path *room) {
    wchar_t given[TSK__PATH_ROOM], *c, *full = room->text + 8;
    DWORD length;
    if (!MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, given, TSK__PATH_ROOM)) {
        errno = GetLastError() == ERROR_INSUFFICIENT_BUFFER ? ENAMETOOLONG : EILSEQ;
        return NULL;
    }
    for (c = given; *c; c++)
        if (*c == L'/') *c = L'\\';
    length = GetFullPathNameW(given, TSK__PATH_ROOM, full, NULL);
    if (!length || length >= TSK__PATH_ROOM) {
        errno = length ? ENAMETOOLONG : ENOENT;
        return NULL;
    }
    if (length < 248 || wcsncmp(full, L"\\\\?\\", 4) == 0 || wcsncmp(full, L"\\\\.\\", 4) == 0) return full;
    if (wcsncmp(full, L"\\\\", 2) != 0) return wmemcpy(full - 4, L"\\\\?\\", 4);
    return wmemcpy(full + 1 - 7, L"\\\\?\\UNC", 7);
}

/* Others may do with the file what they like, as they may on POSIX. A folder opens, too, which is found out later. */
static HANDLE tsk__handle_open(const char *path, DWORD access, DWORD how) {
    const DWORD share = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    tsk__wide_path room;
    const wchar_t *wide = tsk__wide_path_of(path, &room);
    HANDLE handle = INVALID_HANDLE_VALUE;
    if (!wide) return handle;
    handle = CreateFileW(wide, access, share, NULL, how, FILE_FLAG_BACKUP_SEMANTICS, NULL);
    if (handle == INVALID_HANDLE_VALUE) tsk__windows_errno();
    return handle;
}

static int tsk__descriptor_of(HANDLE handle) {
    int descriptor;
    if (handle == INVALID_HANDLE_VALUE) return -1;
    descriptor = _open_osfhandle((intptr_t)handle, _O_BINARY | _O_NOINHERIT);
    if (descriptor < 0) CloseHandle(handle);
    return descriptor;
}
static HANDLE tsk__descriptor_handle(int d) { return (HANDLE)_get_osfhandle(d); }

/* The size of a regular file; of anything else, why not. */
static const char *tsk__handle_size(HANDLE handle, uint64_t *size) {
    const DWORD type = GetFileType(handle);
    BY_HANDLE_FILE_INFORMATION status;
    *size = 0;
    if (type == FILE_TYPE_PIPE) return "is a pipe, not a regular file";
    if (type != FILE_TYPE_DISK || !GetFileInformationByHandle(handle, &status)) return "is not a regular file";
    if (status.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY) return "is a directory";
    *size = (uint64_t)status.nFileSizeHigh << 32 | status.nFileSizeLow;
    return NULL;
}
static const char *tsk__descriptor_size(int d, uint64_t *size) {
    return tsk__handle_size(tsk__descriptor_handle(d), size);
}

/* At most 4 GiB. */
static int64_t tsk__descriptor_read(int d, void *to, size_t size, uint64_t offset) {
    OVERLAPPED at;
    DWORD n = 0;
    memset(&at, 0, sizeof at);
    at.Offset = (DWORD)offset;
    at.OffsetHigh = (DWORD)(offset >> 32);
    if (ReadFile(tsk__descriptor_handle(d), to, (DWORD)size, &n, &at)) return n;
    if (GetLastError() == ERROR_HANDLE_EOF) return 0;
    tsk__windows_errno();
    return -1;
}
static int64_t tsk__descriptor_write(int d, const void *from, size_t size, uint64_t offset) {
    OVERLAPPED at;
    DWORD n = 0;
    memset(&at, 0, sizeof at);
    at.Offset = (DWORD)offset;
    at.OffsetHigh = (DWORD)(offset >> 32);
    if (WriteFile(tsk__descriptor_handle(d), from, (DWORD)size, &n, &at)) return n;
    tsk__windows_errno();
    return -1;
}

/* To read. */
static int tsk__descriptor_open_input(const char *path) {
    return tsk__descriptor_of(tsk__handle_open(path, GENERIC_READ, OPEN_EXISTING));
}

static DWORD tsk__path_attributes(const char *path) {
    tsk__wide_path room;
    const wchar_t *wide = tsk__wide_path_of(path, &room);
    DWORD attributes = wide ? GetFileAttributesW(wide) : INVALID_FILE_ATTRIBUTES;
    if (wide && attributes == INVALID_FILE_ATTRIBUTES) tsk__windows_errno();
    return attributes;
}

/* A link that leads nowhere counts, and so does a file that has lost its name but is still open. */
static int tsk__path_exists(const char *path) {
    return tsk__path_attributes(path) != INVALID_FILE_ATTRIBUTES || errno == EACCES;
}

/* To write and read back; never somebody else's file. A name that is taken in such a way is refused as if the folder
   were. */
static int tsk__descriptor_create(const char *path) {
    int d = tsk__descriptor_of(tsk__handle_open(path, GENERIC_READ | GENERIC_WRITE | DELETE, CREATE_NEW));
    if (d < 0 && errno == EACCES) errno = tsk__path_exists(path) ? EEXIST : EACCES;
    return d;
}

static int tsk__descriptor_close(int d) { return _close(d); }

/* All `size` bytes for reading, or NULL. */
static const void *tsk__descriptor_map(int d, size_t size) {
    const void *address;
    HANDLE mapping = CreateFileMappingW(tsk__descriptor_handle(d), NULL, PAGE_READONLY, 0, 0, NULL);
    if (!mapping) return NULL;
    address = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, size);
    CloseHandle(mapping); /* the view keeps it */
    return address;
}
static void tsk__unmap(const void *address, size_t size) {
    (void)size;
    UnmapViewOfFile(address);
}

/* The file vanishes when it is closed, whatever happens. Until then nobody can have its name. */
static int tsk__descriptor_hide(int d, const char *path) {
    FILE_DISPOSITION_INFO disposition;
    (void)path;
    disposition.DeleteFile = TRUE;
    if (SetFileInformationByHandle(tsk__descriptor_handle(d), FileDispositionInfo, &disposition, sizeof disposition))
        return 0;
    tsk__windows_errno();
    return -1;
}

/* What is there and is no regular file; NULL also where nothing is. */
static const char *tsk__path_obstacle(const char *path) {
    uint64_t size;
    HANDLE handle = tsk__handle_open(path, 0, OPEN_EXISTING);
    const char *obstacle = handle == INVALID_HANDLE_VALUE ? NULL : tsk__handle_size(handle, &size);
    if (handle != INVALID_HANDLE_VALUE) CloseHandle(handle);
    return obstacle;
}

static int tsk__path_remove(const char *path) {
    tsk__wide_path room;
    const wchar_t *wide = tsk__wide_path_of(path, &room);
    if (!wide) return -1;
    if (DeleteFileW(wide)) return 0;
    tsk__windows_errno();
    return -1;
}

/* `from` takes the name `to`, of a file that may be there, in one step. */
static int tsk__path_rename(const char *from, const char *to) {
    tsk__wide_path from_room, to_room;
    const wchar_t *wide_from = tsk__wide_path_of(from, &from_room), *wide_to = tsk__wide_path_of(to, &to_room);
    if (!wide_from || !wide_to) return -1;
    if (MoveFileExW(wide_from, wide_to, MOVEFILE_REPLACE_EXISTING)) return 0;
    tsk__windows_errno();
    return -1;
}

#define TSK__PATH_SEPARATORS "/\\"

/* How long the folder's part is, with its separator, or the drive's with its colon. */
static size_t tsk__path_folder_length(const char *path) {
    size_t length = strlen(path);
    while (length && !strchr(TSK__PATH_SEPARATORS, path[length - 1]) && !(length == 2 && path[1] == ':')) length--;
    return length;
}

#endif

/* ---- files: the host's callbacks where given, else descriptors */

typedef struct tsk__file {
    const tsk_file_callbacks *callbacks;  /* NULL: a descriptor */
    void *handle;
    int descriptor;
    uint64_t size;
    const void *map;                      /* the whole file, or NULL */
} tsk__file;

/* On failure nothing is left open. */
static tsk_status tsk__file_open(tsk__file *file, const char *path, const tsk_host *host, tsk_error *error) {
    const char *obstacle;
    memset(file, 0, sizeof *file);
    file->descriptor = -1;
    if (host && host->files) {
        char reason[256] = "";
        tsk_status result =
            host->files->open(host->files->user, path, &file->handle, &file->size, reason, sizeof reason);
        if (result != TSK_OK)
            return tsk__error_set(error, TSK_ERROR_IO, path, TSK_NO_OFFSET, "cannot open '%s': %s",
                                  tsk__error_path(path), reason[0] ? reason : "the host refused");
        file->callbacks = host->files;
        return TSK_OK;
    }
    file->descriptor = tsk__descriptor_open_input(path);
    if (file->descriptor < 0)
        return tsk__error_set(error, TSK_ERROR_IO, path, TSK_NO_OFFSET, "cannot open '%s': %s", tsk__error_path(path),
                              strerror(errno));
    obstacle = tsk__descriptor_size(file->descriptor, &file->size);
    if (obstacle) {
        tsk__descriptor_close(file->descriptor);
        file->descriptor = -1;
        return tsk__error_set(error, TSK_ERROR_IO, path, TSK_NO_OFFSET, "cannot open '%s': it %s",
                              tsk__error_path(path), obstacle);
    }
    return TSK_OK;
}

static void tsk__file_close(tsk__file *file) {
    if (file->callbacks) file->callbacks->close(file->callbacks->user, file->handle);
    else {
        if (file->map) tsk__unmap(file->map, (size_t)file->size);
        if (file->descriptor >= 0) tsk__descriptor_close(file->descriptor);
    }
    memset(file, 0, sizeof *file);
    file->descriptor = -1;
}

/* Whether there is a file of that name; a dangling link counts as one. Every other problem is reported when the file is
   opened. */
static int tsk__file_exists(const char *path, const tsk_host *host) {
    tsk__file file;
    if (!host || !host->files) return tsk__path_exists(path);
    if (tsk__file_open(&file, path, host, NULL) != TSK_OK) return 0;
    tsk__file_close(&file);
    return 1;
}

/* Exactly `size` bytes, or an error that names `path`. */
static tsk_status tsk__file_read(const tsk__file *file, const char *path, uint64_t offset, void *buffer, size_t size,
                                 tsk_error *error) {
    char *to = (char *)buffer;
    size_t done = 0;
    if (offset > file->size || size > file->size - offset)
        return tsk__error_set(error, TSK_ERROR_IO, path, offset,
                              "'%s' ends at byte %llu, before the %llu bytes wanted from %llu", tsk__error_path(path),
                              (unsigned long long)file->size, (unsigned long long)size, (unsigned long long)offset);
    if (file->callbacks) {
        char reason[256] = "";
        if (file->callbacks->read(file->callbacks->user, file->handle, offset, buffer, size, reason, sizeof reason) !=
            TSK_OK)
            return tsk__error_set(error, TSK_ERROR_IO, path, offset, "cannot read '%s': %s", tsk__error_path(path),
                                  reason[0] ? reason : "the host refused");
        return TSK_OK;
    }
    while (done < size) {
        size_t step = size - done < ((size_t)1 << 30) ? size - done : (size_t)1 << 30; /* Linux reads at most 2 GiB a
                                                                                          call */
        int64_t n = tsk__descriptor_read(file->descriptor, to + done, step, offset + done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0)
            return tsk__error_set(error, TSK_ERROR_IO, path, offset + done, "cannot read '%s': %s",
                                  tsk__error_path(path), strerror(errno));
        if (n == 0)
            return tsk__error_set(error, TSK_ERROR_IO, path, offset + done, "'%s' was cut short while it was read",
                                  tsk__error_path(path));
        done += (size_t)n;
    }
    return TSK_OK;
}

/* The file's bytes, or NULL where it cannot or should not be mapped (then use tsk__file_read). */
static const void *tsk__file_map(tsk__file *file, const tsk_host *host) {
    if (file->map || (host && host->no_map) || file->size == 0 || file->size > SIZE_MAX) return file->map;
    if (file->callbacks) {
        file->map = file->callbacks->map ? file->callbacks->map(file->callbacks->user, file->handle) : NULL;
    } else file->map = tsk__descriptor_map(file->descriptor, (size_t)file->size);
    return file->map;
}

tsk_status tsk_read_file(const char *path, size_t max_size, const tsk_host *host, tsk_text *out, tsk_error *error) {
    tsk__file file;
    tsk_status status;
    if (!path) return tsk__error_null(error, "tsk_read_file", "path");
    if (!out) return tsk__error_null(error, "tsk_read_file", "out");
    status = tsk__file_open(&file, path, host, error);
    if (status != TSK_OK) return status;
    if (file.size > max_size)
        status = tsk__error_set(error, TSK_ERROR_IO, path, TSK_NO_OFFSET,
                                "'%s' has %llu bytes, more than the %llu allowed here", tsk__error_path(path),
                                (unsigned long long)file.size, (unsigned long long)max_size);
    else if (file.size >= SIZE_MAX - out->length - 1 ||
             !tsk__memory_reserve(out->allocator, &out->data, &out->capacity, out->length + (size_t)file.size + 1, 1))
        status = tsk__error_memory(error, path, file.size);
    else {
        status = tsk__file_read(&file, path, 0, out->data + out->length, (size_t)file.size, error);
        if (status == TSK_OK) out->length += (size_t)file.size;
        out->data[out->length] = 0;
    }
    tsk__file_close(&file);
    return status;
}

/* ---- a file that appears whole or not at all
   Everything goes to a temporary file in the same folder, which takes the real name in one step at the end. */

typedef struct tsk__output {
    const tsk_allocator *allocator;
    char *path, *temporary;   /* temporary is "" once that name is gone */
    int descriptor;
} tsk__output;

static tsk_status tsk__output_fail(const tsk__output *output, tsk_error *error, const char *reason) {
    return tsk__error_set(error, TSK_ERROR_IO, output->path, TSK_NO_OFFSET, "cannot write '%s': %s",
                          tsk__error_path(output->path), reason);
}

/* Closes, and removes the temporary file. Harmless on one that is zeroed but for its descriptor of -1. */
static void tsk__output_abandon(tsk__output *output) {
    if (output->descriptor >= 0) tsk__descriptor_close(output->descriptor);
    if (output->descriptor >= 0 && output->temporary[0]) tsk__path_remove(output->temporary);
    tsk__memory_delete(output->allocator, output->temporary);
    tsk__memory_delete(output->allocator, output->path);
    memset(output, 0, sizeof *output);
    output->descriptor = -1;
}

/* Why `path` cannot be had, or NULL. Renaming over a folder fails only at the end, and over a device (/dev/null) works
   but should not. */
static const char *tsk__output_obstacle(const char *path) {
    return path[0] ? tsk__path_obstacle(path) : "the path is empty";
}

static int tsk__output_create(char *temporary, size_t size, int folder_length, const char *path) {
    int attempt, descriptor = -1;
    for (attempt = 0; attempt < 1000 && descriptor < 0; attempt++) {
        snprintf(temporary, size, "%.*s.tokenskip-%lu-%d.tmp", folder_length, path,
                 (unsigned long)tsk__process_number(), attempt);
        descriptor = tsk__descriptor_create(temporary);
        if (descriptor < 0 && errno != EEXIST) break;
    }
    return descriptor;
}

static tsk_status tsk__output_open(tsk__output *output, const char *path, const tsk_allocator *allocator,
                                   tsk_error *error) {
    const char *obstacle = tsk__output_obstacle(path);
    size_t folder_length = tsk__path_folder_length(path), size = folder_length + 64;
    tsk_status status = TSK_OK;
    memset(output, 0, sizeof *output);
    output->allocator = allocator;
    output->descriptor = -1;
    output->path = tsk__memory_copy_string(allocator, path);
    output->temporary = (char *)tsk__memory_new(allocator, size, 1);
    if (!output->path || !output->temporary) status = tsk__error_memory(error, "a path", size);
    else if (obstacle) status = tsk__output_fail(output, error, obstacle);
    else {
        output->descriptor = tsk__output_create(output->temporary, size, (int)folder_length, path);
        if (output->descriptor < 0) status = tsk__output_fail(output, error, strerror(errno));
    }
    if (status != TSK_OK) tsk__output_abandon(output);
    return status;
}

static tsk_status tsk__output_write(const tsk__output *output, uint64_t offset, const void *bytes, size_t size,
                                    tsk_error *error) {
    const char *from = (const char *)bytes;
    size_t done = 0;
    while (done < size) {
        size_t step = size - done < ((size_t)1 << 30) ? size - done : (size_t)1 << 30;
        int64_t n = tsk__descriptor_write(output->descriptor, from + done, step, offset + done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return tsk__output_fail(output, error, n < 0 ? strerror(errno) : "nothing could be written");
        done += (size_t)n;
    }
    return TSK_OK;
}

/* Bytes of the output so far, back from it. How many of `size` could be had; negative on an error. */
static int64_t tsk__output_read(const tsk__output *output, uint64_t offset, void *buffer, size_t size) {
    int64_t n;
    do n = tsk__descriptor_read(output->descriptor, buffer, size, offset);
    while (n < 0 && errno == EINTR);
    return n;
}

/* From now on the output has no name: it vanishes with the process, whatever happens. */
static tsk_status tsk__output_hide(tsk__output *output, tsk_error *error) {
    if (tsk__descriptor_hide(output->descriptor, output->temporary) != 0)
        return tsk__output_fail(output, error, strerror(errno));
    output->temporary[0] = 0;
    return TSK_OK;
}

/* The file takes its name. Frees the output, whether or not it works. Some file systems tell of a full disk in
   close. */
static tsk_status tsk__output_commit(tsk__output *output, tsk_error *error) {
    int descriptor = output->descriptor;
    tsk_status status = TSK_OK;
    output->descriptor = -1;
    if (tsk__descriptor_close(descriptor) != 0 || tsk__path_rename(output->temporary, output->path) != 0) {
        status = tsk__output_fail(output, error, strerror(errno));
        tsk__path_remove(output->temporary);
    }
    tsk__output_abandon(output);
    return status;
}

/* What a file with these first bytes is, where it is something that people often have in a model file's place: a text
   that follows "it is" and says what to do. NULL: none of those. */
static const char *tsk__file_recognise(const void *bytes, size_t size) {
    static const struct { const char *magic; size_t length; const char *what; } kinds[] = {
        {"version https://git-lfs.github.com/spec/", 40,
         "a Git LFS pointer in the file's place: run `git lfs pull` in its folder"},
        {"GGUF", 4, "a GGUF file, which is not supported: use the safetensors folder that it was made from"},
        {"PK\3\4", 4,
         "a zip archive, as PyTorch's .bin and .pt files are: use the model's safetensors files, or convert it"},
        {"PK\5\6", 4, "an empty zip archive"},
        {"\x1f\x8b\x08", 3, "compressed with gzip: decompress it first"},
        {"\x28\xb5\x2f\xfd", 4, "compressed with zstd: decompress it first"},
        {"\xfd" "7zXZ", 5, "compressed with xz: decompress it first"},
        {"BZh", 3, "compressed with bzip2: decompress it first"},
        {"\x89HDF\r\n\x1a\n", 8, "an HDF5 file, as Keras writes them: use the model's safetensors files"},
        {"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16, "zero bytes, as an unfinished download leaves them: download it again"}};
    static const char pickle[] = "\x8a\x95}](c"; /* what follows a pickle's version: a frame, or a value's kind */
    const unsigned char *text = (const unsigned char *)bytes;
    size_t i;
    for (i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (size >= kinds[i].length && memcmp(bytes, kinds[i].magic, kinds[i].length) == 0) return kinds[i].what;
    if (size > 2 && text[0] == 0x80 && text[1] >= 2 && text[1] <= 5 && text[2] && strchr(pickle, (char)text[2]))
        return "a Python pickle, as old PyTorch files are: use the model's safetensors files, or convert it";
    for (i = 0; i < size && (text[i] == ' ' || (text[i] >= '\t' && text[i] <= '\r')); i++) {
    }
    if (i == size || text[i] != '<') return NULL;
    return "an HTML or XML page, as a server sends in a file's place: download it again";
}

#ifndef _WIN32

/* ---- time, POSIX */

static double tsk__time_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

/* ---- memory, POSIX
   Bytes that the system has, and those that it says it could still give, caches that it would drop included; UINT64_MAX
   where it does not say. */

#ifdef __linux__
/* A line of the system's account of its memory. */
static uint64_t tsk__memory_line(const char *name) {
    unsigned long long kilobytes = 0;
    char line[128];
    size_t length = strlen(name);
    int found = 0;
    FILE *file = fopen("/proc/meminfo", "r");
    while (file && !found && fgets(line, sizeof line, file))
        found = strncmp(line, name, length) == 0 && sscanf(line + length, ": %llu", &kilobytes) == 1;
    if (file) fclose(file);
    return found ? (uint64_t)kilobytes * 1024 : UINT64_MAX;
}
static uint64_t tsk__memory_available(void) { return tsk__memory_line("MemAvailable"); }
static uint64_t tsk__memory_total(void) { return tsk__memory_line("MemTotal"); }
#else
static uint64_t tsk__memory_available(void) { return UINT64_MAX; }
static uint64_t tsk__memory_total(void) {
    const long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    return pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size : UINT64_MAX;
}
#endif

/* ---- numbers that nobody outside knows, POSIX */

#ifdef __linux__
static int tsk__random_bytes(void *out, size_t size) { return getrandom(out, size, GRND_NONBLOCK) == (ssize_t)size; }
#else
static int tsk__random_bytes(void *out, size_t size) { return getentropy(out, size) == 0; } /* at most 256 */
#endif

/* ---- threads, locks and conditions, POSIX */

typedef pthread_mutex_t tsk__mutex;
typedef pthread_cond_t tsk__condition;
typedef pthread_t tsk__thread;

static void tsk__mutex_create(tsk__mutex *m) { pthread_mutex_init(m, NULL); }
static void tsk__mutex_destroy(tsk__mutex *m) { pthread_mutex_destroy(m); }
static void tsk__mutex_lock(tsk__mutex *m) { pthread_mutex_lock(m); }
static int tsk__mutex_try(tsk__mutex *m) { return pthread_mutex_trylock(m) == 0; }
static void tsk__mutex_unlock(tsk__mutex *m) { pthread_mutex_unlock(m); }

static struct timespec tsk__timespec_of(double milliseconds) {
    struct timespec time;
    time.tv_sec = (time_t)(milliseconds / 1e3);
    time.tv_nsec = (long)((milliseconds - (double)time.tv_sec * 1e3) * 1e6);
    return time;
}

/* tsk__condition_wait_until: may wake for no reason, as may tsk__condition_wait. 0 when `deadline`, by the clock of
   tsk__time_ms, has passed. */
#ifdef __linux__
static void tsk__condition_create(tsk__condition *c) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(c, &attributes);
    pthread_condattr_destroy(&attributes);
}
static int tsk__condition_wait_until(tsk__condition *c, tsk__mutex *m, double deadline) {
    const struct timespec until = tsk__timespec_of(deadline);
    return pthread_cond_timedwait(c, m, &until) != ETIMEDOUT;
}
#else
/* (declared by pthread.h only where POSIX alone was not asked for) */
extern int pthread_cond_timedwait_relative_np(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *time);
static void tsk__condition_create(tsk__condition *c) { pthread_cond_init(c, NULL); }
static int tsk__condition_wait_until(tsk__condition *c, tsk__mutex *m, double deadline) {
    const double left = deadline - tsk__time_ms();
    const struct timespec time = tsk__timespec_of(left > 0 ? left : 0);
    return pthread_cond_timedwait_relative_np(c, m, &time) != ETIMEDOUT;
}
#endif
static void tsk__condition_destroy(tsk__condition *c) { pthread_cond_destroy(c); }
static void tsk__condition_wait(tsk__condition *c, tsk__mutex *m) { pthread_cond_wait(c, m); }
static void tsk__condition_wake_all(tsk__condition *c) { pthread_cond_broadcast(c); }

/* *t stays where it is until the thread is joined. 0 where the system refuses one. */
static int tsk__thread_start(tsk__thread *t, void *(*run)(void *context), void *context) {
    return pthread_create(t, NULL, run, context) == 0;
}
static void tsk__thread_join(tsk__thread t) { pthread_join(t, NULL); }
static void tsk__thread_yield(void) { sched_yield(); }

static int tsk__processors_online(void) {
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 1 << 16 ? 1 << 16 : (int)n;
}

#else

/* ---- time, Windows */

static double tsk__time_ms(void) {
    LARGE_INTEGER now, frequency;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&frequency);
    return (double)now.QuadPart * 1e3 / (double)frequency.QuadPart;
}

/* ---- memory, Windows */

static MEMORYSTATUSEX tsk__memory_status(void) {
    MEMORYSTATUSEX status;
    memset(&status, 0, sizeof status);
    status.dwLength = sizeof status;
    if (!GlobalMemoryStatusEx(&status)) status.ullTotalPhys = status.ullAvailPhys = UINT64_MAX;
    return status;
}
static uint64_t tsk__memory_available(void) { return tsk__memory_status().ullAvailPhys; }
static uint64_t tsk__memory_total(void) { return tsk__memory_status().ullTotalPhys; }

/* ---- numbers that nobody outside knows, Windows: RtlGenRandom, which advapi32 has under this name */

extern BOOLEAN NTAPI SystemFunction036(PVOID out, ULONG size);
static int tsk__random_bytes(void *out, size_t size) { return SystemFunction036(out, (ULONG)size) != 0; }

/* ---- threads, locks and conditions, Windows */

typedef SRWLOCK tsk__mutex;
typedef CONDITION_VARIABLE tsk__condition;
typedef struct tsk__thread {
    HANDLE handle;
    void *(*run)(void *context);
    void *context;
} tsk__thread;

static void tsk__mutex_create(tsk__mutex *m) { InitializeSRWLock(m); }
static void tsk__mutex_destroy(tsk__mutex *m) { (void)m; }
static void tsk__mutex_lock(tsk__mutex *m) { AcquireSRWLockExclusive(m); }
static int tsk__mutex_try(tsk__mutex *m) { return TryAcquireSRWLockExclusive(m) != 0; }
static void tsk__mutex_unlock(tsk__mutex *m) { ReleaseSRWLockExclusive(m); }

static void tsk__condition_create(tsk__condition *c) { InitializeConditionVariable(c); }
static void tsk__condition_destroy(tsk__condition *c) { (void)c; }
/* May wake for no reason, as may the next. */
static void tsk__condition_wait(tsk__condition *c, tsk__mutex *m) { SleepConditionVariableSRW(c, m, INFINITE, 0); }
/* The same until `deadline`, by the clock of tsk__time_ms; 0 when that has passed. Rounded up: a wait of 0 is none. */
static int tsk__condition_wait_until(tsk__condition *c, tsk__mutex *m, double deadline) {
    const double left = deadline - tsk__time_ms(), most = 1e9;
    const DWORD milliseconds = left <= 0 ? 0 : (DWORD)((left < most ? left : most) + 1);
    if (SleepConditionVariableSRW(c, m, milliseconds, 0)) return 1;
    return tsk__time_ms() < deadline;
}
static void tsk__condition_wake_all(tsk__condition *c) { WakeAllConditionVariable(c); }

static unsigned __stdcall tsk__thread_main(void *thread) {
    const tsk__thread *t = (const tsk__thread *)thread;
    t->run(t->context);
    return 0;
}
/* *t stays where it is until the thread is joined. 0 where the system refuses one. */
static int tsk__thread_start(tsk__thread *t, void *(*run)(void *context), void *context) {
    t->run = run;
    t->context = context;
    t->handle = (HANDLE)_beginthreadex(NULL, 0, tsk__thread_main, t, 0, NULL);
    return t->handle != NULL;
}
static void tsk__thread_join(tsk__thread t) {
    WaitForSingleObject(t.handle, INFINITE);
    CloseHandle(t.handle);
}
static void tsk__thread_yield(void) { SwitchToThread(); }

/* Of the process's group, which has 64 at most: a thread runs on no others unless it asks for them. */
static int tsk__processors_online(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return (int)info.dwNumberOfProcessors;
}

#endif

static int tsk__processors(void) {
    const int n = tsk__processors_online();
    return n < 1 ? 1 : n;
}

/* Where the system has no random numbers to give, the clock and the process are the next best. */
static void tsk__random_numbers(uint64_t *out, size_t count) {
    uint64_t now;
    size_t i;
    if (tsk__random_bytes(out, count * sizeof *out)) return;
    now = (uint64_t)(tsk__time_ms() * 1e6);
    for (i = 0; i < count; i++)
        out[i] = (now << 32 ^ now >> 32 ^ tsk__process_number() << 40 ^ (uint64_t)(uintptr_t)out) *
                 (2 * i + UINT64_C(0x9e3779b97f4a7c15));
}

/* ---- the processor */

#if defined(__x86_64__) && defined(__GNUC__)
#define TSK__PLATFORM_X86 1
#else
#define TSK__PLATFORM_X86 0
#endif
#if defined(__aarch64__) && defined(__GNUC__)
#define TSK__PLATFORM_ARM 1
#else
#define TSK__PLATFORM_ARM 0
#endif

#if TSK__PLATFORM_X86
/* What the processor has and the operating system saves: bit 1 AVX2 + FMA + F16C, and with it bit 2 AVX-512F, bit 4
   AVX-512BW and VNNI, bit 8 AVX-VNNI. */
static int tsk__processor_features(void) {
    uint32_t a, b, c, d, low, high;
    int features = 1;
    const uint32_t fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29,
                   wanted = fma | osxsave | avx | f16c;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & wanted) != wanted) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0x6) != 0x6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & 1u << 5)) return 0;
    if ((low & 0xe0) == 0xe0 && (b & 1u << 16)) features |= b & 1u << 30 && c & 1u << 11 ? 6 : 2;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4)) features |= 8;
    return features;
}
#elif TSK__PLATFORM_ARM
/* Bit 1 NEON, bit 2 its dot products of int8 (for kernels of quantised weights, when there are any). */
static int tsk__processor_features(void) {
#ifdef __linux__
    const unsigned long has = getauxval(AT_HWCAP);
    return (has & HWCAP_ASIMD ? 1 : 0) | (has & HWCAP_ASIMDDP ? 2 : 0);
#else
    return 3; /* every processor of Apple's has both */
#endif
}
#endif

/* ---- what only a backend on a GPU asks of the system */

#ifndef TOKENSKIP_NO_CUDA
#ifndef _WIN32

static void tsk__thread_sleep(int milliseconds) {
    struct timespec pause;
    pause.tv_sec = milliseconds / 1000;
    pause.tv_nsec = milliseconds % 1000 * 1000000L;
    nanosleep(&pause, NULL);
}

/* DIR/tokenskip in the user's folder for caches, or 0 where there is none. */
static int tsk__cache_folder(char *out, size_t size) {
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int length = 0;
    if (xdg && xdg[0] == '/') length = snprintf(out, size, "%s/tokenskip", xdg);
    else if (home && home[0] == '/') length = snprintf(out, size, "%s/.cache/tokenskip", home);
    return length > 0 && (size_t)length < size;
}

/* For this user alone. 0 where it could not be made and is not there. */
static int tsk__make_folder(const char *path) { return mkdir(path, 0700) == 0 || errno == EEXIST; }

#ifdef TOKENSKIP_CUDA_DLOPEN
static void *tsk__library_open(const char *name) { return dlopen(name, RTLD_NOW | RTLD_LOCAL); }
static void *tsk__library_find(void *library, const char *name) { return dlsym(library, name); }
#endif

#else

static void tsk__thread_sleep(int milliseconds) { Sleep((DWORD)milliseconds); }

/* DIR\tokenskip in the user's folder for what belongs to this machine, or 0 where there is none. */
static int tsk__cache_folder(char *out, size_t size) {
    static const char name[] = "\\tokenskip";
    wchar_t folder[TSK__PATH_ROOM];
    const DWORD n = GetEnvironmentVariableW(L"LOCALAPPDATA", folder, TSK__PATH_ROOM);
    int length;
    if (!n || n >= TSK__PATH_ROOM) return 0;
    length = WideCharToMultiByte(CP_UTF8, 0, folder, (int)n, out, (int)size, NULL, NULL);
    if (length <= 0 || (size_t)length + sizeof name > size) return 0;
    memcpy(out + length, name, sizeof name);
    return 1;
}

/* It belongs to whom the folder belongs that it lies in. 0 where it could not be made and is not there. */
static int tsk__make_folder(const char *path) {
    tsk__wide_path room;
    const wchar_t *wide = tsk__wide_path_of(path, &room);
    return wide && (CreateDirectoryW(wide, NULL) || GetLastError() == ERROR_ALREADY_EXISTS);
}

#ifdef TOKENSKIP_CUDA_DLOPEN
/* In the system's folder and the program's, then in those of PATH, where CUDA's installer puts its own; never in the
   current folder. Its own libraries are looked for beside it. */
static void *tsk__library_open(const char *name) {
    wchar_t wide[64], path[MAX_PATH], folders[1 << 15]; /* PATH's own limit */
    HMODULE library;
    DWORD n;
    if (!MultiByteToWideChar(CP_UTF8, 0, name, -1, wide, 64)) return NULL;
    library = LoadLibraryExW(wide, NULL, LOAD_LIBRARY_SEARCH_DEFAULT_DIRS);
    if (library) return (void *)library;
    n = GetEnvironmentVariableW(L"PATH", folders, 1 << 15);
    if (!n || n >= 1 << 15) return NULL;
    n = SearchPathW(folders, wide, NULL, MAX_PATH, path, NULL);
    if (!n || n >= MAX_PATH) return NULL;
    return (void *)LoadLibraryExW(path, NULL, LOAD_WITH_ALTERED_SEARCH_PATH);
}
static void *tsk__library_find(void *library, const char *name) {
    return (void *)(uintptr_t)GetProcAddress((HMODULE)library, name);
}
#endif

#endif

/* The folder, and those that it lies in, are there, or are made. `path` is the same after it. */
static int tsk__make_folders(char *path) {
    size_t i;
    for (i = 1; path[0] && path[i]; i++) {
        const char separator = path[i];
        if (!strchr(TSK__PATH_SEPARATORS, separator)) continue;
        path[i] = 0;
        tsk__make_folder(path);
        path[i] = separator;
    }
    return tsk__make_folder(path);
}
#endif

#endif /* SECTION_GUARD_PLATFORM */
