#ifndef SECTION_GUARD_PLATFORM
#define SECTION_GUARD_PLATFORM

#include "error.h"
#include "memory.h"

// >>platform ==========================================================================================================
/* Everything that is not C99: files, time, secret numbers, threads. Another operating system is this section's work. */

/* ---- files: the host's callbacks where given, else descriptors */

typedef struct tsk__file {
    const tsk_file_callbacks *callbacks;  /* NULL: a descriptor */
    void *handle;
    int descriptor;
    uint64_t size;
    const void *map;                      /* the whole file, or NULL */
} tsk__file;

static const char *tsk__file_not_regular(mode_t mode) {
    if (S_ISDIR(mode)) return "is a directory";
    if (S_ISFIFO(mode)) return "is a FIFO, not a regular file";
    return "is not a regular file";
}

/* On failure nothing is left open. */
static tsk_status tsk__file_open(tsk__file *file, const char *path, const tsk_host *host, tsk_error *error) {
    struct stat status;
    memset(&status, 0, sizeof status);
    memset(file, 0, sizeof *file);
    file->descriptor = -1;
    if (host && host->files) {
        char reason[256] = "";
        tsk_status result = host->files->open(host->files->user, path, &file->handle, &file->size, reason, sizeof reason);
        if (result != TSK_OK)
            return tsk__error_set(error, TSK_ERROR_IO, path, TSK_NO_OFFSET, "cannot open '%s': %s", tsk__error_path(path), reason[0] ? reason : "the host refused");
        file->callbacks = host->files;
        return TSK_OK;
    }
    /* O_NONBLOCK: opening a FIFO would otherwise wait for a writer. It means nothing to a regular file. */
    do file->descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    while (file->descriptor < 0 && errno == EINTR);
    if (file->descriptor < 0)
        return tsk__error_set(error, TSK_ERROR_IO, path, TSK_NO_OFFSET, "cannot open '%s': %s", tsk__error_path(path), strerror(errno));
    if (fstat(file->descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
        close(file->descriptor);
        file->descriptor = -1;
        return tsk__error_set(error, TSK_ERROR_IO, path, TSK_NO_OFFSET, "cannot open '%s': it %s", tsk__error_path(path), tsk__file_not_regular(status.st_mode));
    }
    file->size = (uint64_t)status.st_size;
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

/* Whether there is a file of that name, be it a link that leads nowhere; any other trouble shows when it is opened for
   its contents. */
static int tsk__file_exists(const char *path, const tsk_host *host) {
    struct stat status;
    tsk__file file;
    if (!host || !host->files) return lstat(path, &status) == 0;
    if (tsk__file_open(&file, path, host, NULL) != TSK_OK) return 0;
    tsk__file_close(&file);
    return 1;
}

/* Exactly `size` bytes, or an error that names `path`. */
static tsk_status tsk__file_read(const tsk__file *file, const char *path, uint64_t offset, void *buffer, size_t size, tsk_error *error) {
    char *to = (char *)buffer;
    size_t done = 0;
    if (offset > file->size || size > file->size - offset)
        return tsk__error_set(error, TSK_ERROR_IO, path, offset, "'%s' ends at byte %llu, before the %llu bytes wanted from %llu", tsk__error_path(path),
                              (unsigned long long)file->size, (unsigned long long)size, (unsigned long long)offset);
    if (file->callbacks) {
        char reason[256] = "";
        if (file->callbacks->read(file->callbacks->user, file->handle, offset, buffer, size, reason, sizeof reason) != TSK_OK)
            return tsk__error_set(error, TSK_ERROR_IO, path, offset, "cannot read '%s': %s", tsk__error_path(path), reason[0] ? reason : "the host refused");
        return TSK_OK;
    }
    while (done < size) {
        size_t step = size - done < ((size_t)1 << 30) ? size - done : (size_t)1 << 30; /* Linux reads at most 2 GiB a call */
        ssize_t n = pread(file->descriptor, to + done, step, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return tsk__error_set(error, TSK_ERROR_IO, path, offset + done, "cannot read '%s': %s", tsk__error_path(path), strerror(errno));
        if (n == 0) return tsk__error_set(error, TSK_ERROR_IO, path, offset + done, "'%s' was cut short while it was read", tsk__error_path(path));
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
        status = tsk__error_set(error, TSK_ERROR_IO, path, TSK_NO_OFFSET, "'%s' has %llu bytes, more than the %llu allowed here", tsk__error_path(path),
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

/* ---- conditions, by the clock of tsk__time_ms */

static void tsk__condition_init(pthread_cond_t *condition) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* Waits to be woken, or until `deadline`; 0 when that has passed. May wake for no reason. `mutex` is held. */
static int tsk__condition_wait(pthread_cond_t *condition, pthread_mutex_t *mutex, double deadline) {
    struct timespec until;
    until.tv_sec = (time_t)(deadline / 1e3);
    until.tv_nsec = (long)((deadline - (double)until.tv_sec * 1e3) * 1e6);
    return pthread_cond_timedwait(condition, mutex, &until) != ETIMEDOUT;
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

/* Bytes that the system says it could still give, caches that it would drop included; UINT64_MAX where it does not say. */
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
        out[i] = ((uint64_t)now.tv_nsec << 32 ^ (uint64_t)now.tv_sec ^ (uint64_t)getpid() << 40 ^ (uint64_t)(uintptr_t)out) * (2 * i + UINT64_C(0x9e3779b97f4a7c15));
}

/* ---- worker threads
   One pool a model. A parallel section hands out numbered tasks; which thread runs which never changes a result, so a
   section that finds the pool busy with another session's work simply runs on its own thread. Sections of a small
   model last some 20 microseconds, less than waking a thread: workers therefore spin a little before they sleep.
   `ticket` holds (generation:16, count:24, next:24) so that one atomic says which section a claimed task belongs to;
   its function and context cannot change before that task is done. */

typedef void (*tsk__task)(void *context, int task);

#define TSK__POOL_MAX_THREADS 256
#define TSK__POOL_MAX_TASKS 0xffffff
#define TSK__POOL_SPINS 4000

typedef struct tsk__pool {
    int n_threads;             /* the calling thread included */
    int n_started;
    pid_t process;             /* whose threads they are: after a fork the child has none of them */
    int stop;
    uint64_t ticket;
    int done;
    int n_sleeping;
    tsk__task run;
    void *context;
    pthread_mutex_t section;   /* held by the thread whose section runs */
    pthread_mutex_t sleep;
    pthread_cond_t wake;
    pthread_t threads[TSK__POOL_MAX_THREADS];
} tsk__pool;

static void tsk__pool_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Runs one task of the current section; 0 when none is left. */
static int tsk__pool_run_one(tsk__pool *pool) {
    uint64_t ticket = __atomic_load_n(&pool->ticket, __ATOMIC_ACQUIRE);
    for (;;) {
        int next = (int)(ticket & TSK__POOL_MAX_TASKS), count = (int)(ticket >> 24 & TSK__POOL_MAX_TASKS);
        if (next >= count) return 0;
        if (__atomic_compare_exchange_n(&pool->ticket, &ticket, ticket + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
            pool->run(pool->context, next);
            __atomic_add_fetch(&pool->done, 1, __ATOMIC_RELEASE);
            return 1;
        }
    }
}

static int tsk__pool_has_work(const tsk__pool *pool) {
    uint64_t ticket = __atomic_load_n(&pool->ticket, __ATOMIC_SEQ_CST);
    return (ticket & TSK__POOL_MAX_TASKS) < (ticket >> 24 & TSK__POOL_MAX_TASKS);
}

static void *tsk__pool_worker(void *argument) {
    tsk__pool *pool = (tsk__pool *)argument;
    while (!__atomic_load_n(&pool->stop, __ATOMIC_ACQUIRE)) {
        int spin;
        while (tsk__pool_run_one(pool)) {
        }
        for (spin = 0; spin < TSK__POOL_SPINS && !tsk__pool_has_work(pool); spin++) tsk__pool_pause();
        if (spin < TSK__POOL_SPINS) continue;
        pthread_mutex_lock(&pool->sleep);
        __atomic_add_fetch(&pool->n_sleeping, 1, __ATOMIC_SEQ_CST);
        while (!tsk__pool_has_work(pool) && !__atomic_load_n(&pool->stop, __ATOMIC_ACQUIRE)) pthread_cond_wait(&pool->wake, &pool->sleep);
        __atomic_sub_fetch(&pool->n_sleeping, 1, __ATOMIC_SEQ_CST);
        pthread_mutex_unlock(&pool->sleep);
    }
    return NULL;
}

static void tsk__pool_wake(tsk__pool *pool) {
    if (__atomic_load_n(&pool->n_sleeping, __ATOMIC_SEQ_CST) == 0) return;
    pthread_mutex_lock(&pool->sleep);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->sleep);
}

/* Whether the workers live in this process. In a forked child nobody would take a task, and the locks may be held for ever. */
static int tsk__pool_is_here(const tsk__pool *pool) { return pool->process == getpid(); }

/* Runs run(context, 0 .. n_tasks-1), returns when all are done. `pool` may be NULL. */
static void tsk__parallel(tsk__pool *pool, int n_tasks, tsk__task run, void *context) {
    uint64_t ticket;
    int task;
    if (!pool || pool->n_started == 0 || n_tasks < 2 || !tsk__pool_is_here(pool) || n_tasks > TSK__POOL_MAX_TASKS || pthread_mutex_trylock(&pool->section) != 0) {
        for (task = 0; task < n_tasks; task++) run(context, task);
        return;
    }
    pool->run = run;
    pool->context = context;
    __atomic_store_n(&pool->done, 0, __ATOMIC_RELAXED);
    ticket = __atomic_load_n(&pool->ticket, __ATOMIC_RELAXED);
    __atomic_store_n(&pool->ticket, ((ticket >> 48) + 1) << 48 | (uint64_t)n_tasks << 24, __ATOMIC_SEQ_CST);
    tsk__pool_wake(pool);
    while (tsk__pool_run_one(pool)) {
    }
    for (task = 0; __atomic_load_n(&pool->done, __ATOMIC_ACQUIRE) < n_tasks; task++) {
        if (task < TSK__POOL_SPINS) tsk__pool_pause();
        else sched_yield();
    }
    pthread_mutex_unlock(&pool->section);
}

static int tsk__processors(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > TSK__POOL_MAX_THREADS ? TSK__POOL_MAX_THREADS : (int)n;
}

/* n_threads 0: one a processor. A system that refuses a thread leaves fewer, which is no error. NULL: out of memory. */
static tsk__pool *tsk__pool_create(const tsk_allocator *allocator, int n_threads) {
    tsk__pool *pool = (tsk__pool *)tsk__memory_new_zeroed(allocator, 1, sizeof *pool);
    if (!pool) return NULL;
    if (n_threads <= 0) n_threads = tsk__processors();
    if (n_threads > TSK__POOL_MAX_THREADS) n_threads = TSK__POOL_MAX_THREADS;
    pool->process = getpid();
    pthread_mutex_init(&pool->section, NULL);
    pthread_mutex_init(&pool->sleep, NULL);
    pthread_cond_init(&pool->wake, NULL);
    while (pool->n_started < n_threads - 1 && pthread_create(&pool->threads[pool->n_started], NULL, tsk__pool_worker, pool) == 0) pool->n_started++;
    pool->n_threads = pool->n_started + 1;
    return pool;
}

static void tsk__pool_destroy(const tsk_allocator *allocator, tsk__pool *pool) {
    int i;
    if (!pool) return;
    if (!tsk__pool_is_here(pool)) {
        tsk__memory_delete(allocator, pool);
        return;
    }
    pthread_mutex_lock(&pool->sleep);
    __atomic_store_n(&pool->stop, 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->sleep);
    for (i = 0; i < pool->n_started; i++) pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->sleep);
    pthread_mutex_destroy(&pool->section);
    tsk__memory_delete(allocator, pool);
}

#endif /* SECTION_GUARD_PLATFORM */
