#ifndef SECTION_GUARD_PLATFORM
#define SECTION_GUARD_PLATFORM

#include "error.h"
#include "memory.h"

// >>platform ==========================================================================================================
/* Every call of the operating system: files, folders, memory, time, threads and locks, the processor, libraries found
   at run time. Another operating system is this section's work. */

/* ---- 64-bit offsets
   On 32-bit Linux glibc's plain calls take 32-bit offsets, unless _FILE_OFFSET_BITS was 64 before the first header;
   where the including file came first, it was not. glibc has the calls with 64-bit offsets in any case, and declares
   them only where they were asked for. */

#if defined(__GLIBC__) && defined(__WORDSIZE)
#if __WORDSIZE == 32 && !defined(__USE_FILE_OFFSET64)
#define TSK__PLATFORM_OFFSET64
#endif
#endif

/* What keeps a file of that mode from being read or written over; NULL for a regular one. */
static const char *tsk__file_obstacle(mode_t mode) {
    if (S_ISREG(mode)) return NULL;
    if (S_ISDIR(mode)) return "is a directory";
    if (S_ISFIFO(mode)) return "is a FIFO, not a regular file";
    return "is not a regular file";
}

#ifdef TSK__PLATFORM_OFFSET64
#ifndef __USE_LARGEFILE64
extern int open64(const char *path, int flags, ...);
extern int64_t lseek64(int descriptor, int64_t offset, int whence);
extern ssize_t pread64(int descriptor, void *buffer, size_t size, int64_t offset);
extern ssize_t pwrite64(int descriptor, const void *buffer, size_t size, int64_t offset);
#endif
static int tsk__descriptor_open(const char *path, int flags) { return open64(path, flags, 0666); }
static ssize_t tsk__descriptor_read(int d, void *to, size_t size, uint64_t offset) {
    return pread64(d, to, size, (int64_t)offset);
}
static ssize_t tsk__descriptor_write(int d, const void *from, size_t size, uint64_t offset) {
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
static ssize_t tsk__descriptor_read(int d, void *to, size_t size, uint64_t offset) {
    return pread(d, to, size, (off_t)offset);
}
static ssize_t tsk__descriptor_write(int d, const void *from, size_t size, uint64_t offset) {
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
    /* O_NONBLOCK: opening a FIFO would otherwise wait for a writer. It means nothing to a regular file. */
    do file->descriptor = tsk__descriptor_open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    while (file->descriptor < 0 && errno == EINTR);
    if (file->descriptor < 0)
        return tsk__error_set(error, TSK_ERROR_IO, path, TSK_NO_OFFSET, "cannot open '%s': %s", tsk__error_path(path),
                              strerror(errno));
    obstacle = tsk__descriptor_size(file->descriptor, &file->size);
    if (obstacle) {
        close(file->descriptor);
        file->descriptor = -1;
        return tsk__error_set(error, TSK_ERROR_IO, path, TSK_NO_OFFSET, "cannot open '%s': it %s",
                              tsk__error_path(path), obstacle);
    }
    return TSK_OK;
}

static void tsk__file_close(tsk__file *file) {
    if (file->callbacks) file->callbacks->close(file->callbacks->user, file->handle);
    else {
        if (file->map) munmap((void *)(uintptr_t)file->map, (size_t)file->size);
        if (file->descriptor >= 0) close(file->descriptor);
    }
    memset(file, 0, sizeof *file);
    file->descriptor = -1;
}

/* Whether there is a file of that name; a dangling link counts as one. Every other problem is reported when the file is
   opened. */
static int tsk__file_exists(const char *path, const tsk_host *host) {
    struct stat status;
    tsk__file file;
    if (!host || !host->files) return lstat(path, &status) == 0;
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
        ssize_t n = tsk__descriptor_read(file->descriptor, to + done, step, offset + done);
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
    } else {
        void *address = mmap(NULL, (size_t)file->size, PROT_READ, MAP_SHARED, file->descriptor, 0);
        file->map = address == MAP_FAILED ? NULL : address;
    }
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
    if (output->descriptor >= 0) close(output->descriptor);
    if (output->descriptor >= 0 && output->temporary[0]) unlink(output->temporary);
    tsk__memory_delete(output->allocator, output->temporary);
    tsk__memory_delete(output->allocator, output->path);
    memset(output, 0, sizeof *output);
    output->descriptor = -1;
}

/* Why `path` cannot be had, or NULL. Renaming over a folder fails only at the end, and over a device (/dev/null) works
   but should not. */
static const char *tsk__output_obstacle(const char *path) {
    struct stat status;
    if (!path[0]) return "the path is empty";
    return stat(path, &status) == 0 ? tsk__file_obstacle(status.st_mode) : NULL;
}

/* O_EXCL: never somebody else's file, nor through a link that somebody put there. */
static int tsk__output_create(char *temporary, size_t size, int folder_length, const char *path) {
    int attempt, descriptor = -1;
    for (attempt = 0; attempt < 1000 && descriptor < 0; attempt++) {
        snprintf(temporary, size, "%.*s.tokenskip-%ld-%d.tmp", folder_length, path, (long)getpid(), attempt);
        descriptor = tsk__descriptor_open(temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC);
        if (descriptor < 0 && errno != EEXIST && errno != EINTR) break;
    }
    return descriptor;
}

static tsk_status tsk__output_open(tsk__output *output, const char *path, const tsk_allocator *allocator,
                                   tsk_error *error) {
    const char *slash = strrchr(path, '/'), *obstacle = tsk__output_obstacle(path);
    size_t folder_length = slash ? (size_t)(slash - path) + 1 : 0, size = folder_length + 64;
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
        ssize_t n = tsk__descriptor_write(output->descriptor, from + done, step, offset + done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return tsk__output_fail(output, error, n < 0 ? strerror(errno) : "nothing could be written");
        done += (size_t)n;
    }
    return TSK_OK;
}

/* Bytes of the output so far, back from it. How many of `size` could be had; negative on an error. */
static int64_t tsk__output_read(const tsk__output *output, uint64_t offset, void *buffer, size_t size) {
    ssize_t n;
    do n = tsk__descriptor_read(output->descriptor, buffer, size, offset);
    while (n < 0 && errno == EINTR);
    return n;
}

/* From now on the output has no name: it vanishes with the process, whatever happens. */
static tsk_status tsk__output_hide(tsk__output *output, tsk_error *error) {
    if (unlink(output->temporary) != 0) return tsk__output_fail(output, error, strerror(errno));
    output->temporary[0] = 0;
    return TSK_OK;
}

/* The file takes its name. Frees the output, whether or not it works. Some file systems tell of a full disk in
   close. */
static tsk_status tsk__output_commit(tsk__output *output, tsk_error *error) {
    int descriptor = output->descriptor;
    tsk_status status = TSK_OK;
    output->descriptor = -1;
    if (close(descriptor) != 0 || rename(output->temporary, output->path) != 0) {
        status = tsk__output_fail(output, error, strerror(errno));
        unlink(output->temporary);
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

/* ---- time */

static double tsk__time_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

/* ---- memory */

/* A line of the system's account of its memory, in bytes; UINT64_MAX where it does not say. */
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

/* Bytes that the system says it could still give, caches that it would drop included; UINT64_MAX where it does not
   say. */
static uint64_t tsk__memory_available(void) { return tsk__memory_line("MemAvailable"); }
static uint64_t tsk__memory_total(void) { return tsk__memory_line("MemTotal"); }

/* ---- numbers that nobody outside knows */

/* Where the system has no random numbers to give, the clock and the process are the next best. */
static void tsk__random_numbers(uint64_t *out, size_t count) {
    struct timespec now;
    size_t i;
    if (getrandom(out, count * sizeof *out, GRND_NONBLOCK) == (ssize_t)(count * sizeof *out)) return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    for (i = 0; i < count; i++)
        out[i] =
            ((uint64_t)now.tv_nsec << 32 ^ (uint64_t)now.tv_sec ^ (uint64_t)getpid() << 40 ^ (uint64_t)(uintptr_t)out) *
            (2 * i + UINT64_C(0x9e3779b97f4a7c15));
}

/* ---- threads, locks and conditions */

typedef pthread_mutex_t tsk__mutex;
typedef pthread_cond_t tsk__condition;
typedef pthread_t tsk__thread;

static void tsk__mutex_create(tsk__mutex *m) { pthread_mutex_init(m, NULL); }
static void tsk__mutex_destroy(tsk__mutex *m) { pthread_mutex_destroy(m); }
static void tsk__mutex_lock(tsk__mutex *m) { pthread_mutex_lock(m); }
static int tsk__mutex_try(tsk__mutex *m) { return pthread_mutex_trylock(m) == 0; }
static void tsk__mutex_unlock(tsk__mutex *m) { pthread_mutex_unlock(m); }

static void tsk__condition_create(tsk__condition *c) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(c, &attributes);
    pthread_condattr_destroy(&attributes);
}
static void tsk__condition_destroy(tsk__condition *c) { pthread_cond_destroy(c); }
/* May wake for no reason, as may the next. */
static void tsk__condition_wait(tsk__condition *c, tsk__mutex *m) { pthread_cond_wait(c, m); }
/* The same until `deadline`, by the clock of tsk__time_ms; 0 when that has passed. */
static int tsk__condition_wait_until(tsk__condition *c, tsk__mutex *m, double deadline) {
    struct timespec until;
    until.tv_sec = (time_t)(deadline / 1e3);
    until.tv_nsec = (long)((deadline - (double)until.tv_sec * 1e3) * 1e6);
    return pthread_cond_timedwait(c, m, &until) != ETIMEDOUT;
}
static void tsk__condition_wake_all(tsk__condition *c) { pthread_cond_broadcast(c); }

/* 0 where the system refuses one. */
static int tsk__thread_start(tsk__thread *t, void *(*run)(void *context), void *context) {
    return pthread_create(t, NULL, run, context) == 0;
}
static void tsk__thread_join(tsk__thread t) { pthread_join(t, NULL); }
static void tsk__thread_yield(void) { sched_yield(); }

/* Another number in a forked child. */
static uint64_t tsk__process_number(void) { return (uint64_t)getpid(); }

static int tsk__processors(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > 1 << 16 ? 1 << 16 : (int)n;
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
/* What the processor has and the operating system saves: bit 1 AVX2 + FMA + F16C, bit 2 AVX-512F as well. */
static int tsk__processor_features(void) {
    uint32_t a, b, c, d, low, high;
    const uint32_t fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29,
                   wanted = fma | osxsave | avx | f16c;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & wanted) != wanted) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0x6) != 0x6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & 1u << 5)) return 0;
    return (low & 0xe0) == 0xe0 && (b & 1u << 16) ? 3 : 1;
}
#elif TSK__PLATFORM_ARM
/* Bit 1 NEON, bit 2 its dot products of int8 (for kernels of quantised weights, when there are any). */
static int tsk__processor_features(void) {
    const unsigned long has = getauxval(AT_HWCAP);
    return (has & HWCAP_ASIMD ? 1 : 0) | (has & HWCAP_ASIMDDP ? 2 : 0);
}
#endif

/* ---- what only a backend on a GPU asks of the system */

#ifndef TOKENSKIP_NO_CUDA
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

/* The folder, and those that it lies in, are there, or are made for this user alone. `path` is the same after it. */
static int tsk__make_folders(char *path) {
    char *slash;
    for (slash = path[0] ? strchr(path + 1, '/') : NULL; slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0700);  /* fails where it exists, which is well */
        *slash = '/';
    }
    return mkdir(path, 0700) == 0 || errno == EEXIST;
}
#endif

#if defined(TOKENSKIP_CUDA_DLOPEN) && !defined(TOKENSKIP_NO_CUDA)
static void *tsk__library_open(const char *name) { return dlopen(name, RTLD_NOW | RTLD_LOCAL); }
static void *tsk__library_find(void *library, const char *name) { return dlsym(library, name); }
#endif

#endif /* SECTION_GUARD_PLATFORM */
