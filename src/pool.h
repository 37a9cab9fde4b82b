#ifndef SECTION_GUARD_POOL
#define SECTION_GUARD_POOL

#include "memory.h"
#include "platform.h"

// >>pool ==============================================================================================================
/* Worker threads. One pool a model. A parallel section hands out numbered tasks; which thread runs which never changes
   a result, so a section that finds the pool busy with another session's work simply runs on its own thread. Sections
   of a small model last some 20 microseconds, less than waking a thread: workers therefore spin a little before they
   sleep. `ticket` holds (generation:16, count:24, next:24) so that one atomic says which section a claimed task belongs
   to; its function and context cannot change before that task is done. */

typedef void (*tsk__task)(void *context, int task);

#define TSK__POOL_MAX_THREADS 256
#define TSK__POOL_MAX_TASKS 0xffffff
#define TSK__POOL_SPINS 4000

typedef struct tsk__pool {
    int n_threads;             /* the calling thread included */
    int n_started;
    uint64_t process;           /* whose threads they are: after a fork the child has none of them */
    int stop;
    uint64_t ticket __attribute__((aligned(8))); /* (which it is not everywhere by itself) */
    int done;
    int n_sleeping;
    tsk__task run;
    void *context;
    tsk__mutex section;   /* held by the thread whose section runs */
    tsk__mutex sleep;
    tsk__condition wake;
    tsk__thread threads[TSK__POOL_MAX_THREADS];
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
        tsk__mutex_lock(&pool->sleep);
        __atomic_add_fetch(&pool->n_sleeping, 1, __ATOMIC_SEQ_CST);
        while (!tsk__pool_has_work(pool) && !__atomic_load_n(&pool->stop, __ATOMIC_ACQUIRE))
            tsk__condition_wait(&pool->wake, &pool->sleep);
        __atomic_sub_fetch(&pool->n_sleeping, 1, __ATOMIC_SEQ_CST);
        tsk__mutex_unlock(&pool->sleep);
    }
    return NULL;
}

static void tsk__pool_wake(tsk__pool *pool) {
    if (__atomic_load_n(&pool->n_sleeping, __ATOMIC_SEQ_CST) == 0) return;
    tsk__mutex_lock(&pool->sleep);
    tsk__condition_wake_all(&pool->wake);
    tsk__mutex_unlock(&pool->sleep);
}

/* Whether the workers live in this process. A forked child has no worker threads, and the locks may stay held for
   ever. */
static int tsk__pool_is_here(const tsk__pool *pool) { return pool->process == tsk__process_number(); }

/* Runs run(context, 0 .. n_tasks-1), returns when all are done. `pool` may be NULL. */
static void tsk__parallel(tsk__pool *pool, int n_tasks, tsk__task run, void *context) {
    uint64_t ticket;
    int task;
    if (!pool || pool->n_started == 0 || n_tasks < 2 || !tsk__pool_is_here(pool) || n_tasks > TSK__POOL_MAX_TASKS ||
        !tsk__mutex_try(&pool->section)) {
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
        else tsk__thread_yield();
    }
    tsk__mutex_unlock(&pool->section);
}

/* n_threads 0: one a processor. A system that refuses a thread leaves fewer, which is no error. NULL: out of memory. */
static tsk__pool *tsk__pool_create(const tsk_allocator *allocator, int n_threads) {
    tsk__pool *pool = (tsk__pool *)tsk__memory_new_zeroed(allocator, 1, sizeof *pool);
    if (!pool) return NULL;
    if (n_threads <= 0) n_threads = tsk__processors();
    if (n_threads > TSK__POOL_MAX_THREADS) n_threads = TSK__POOL_MAX_THREADS;
    pool->process = tsk__process_number();
    tsk__mutex_create(&pool->section);
    tsk__mutex_create(&pool->sleep);
    tsk__condition_create(&pool->wake);
    while (pool->n_started < n_threads - 1 &&
           tsk__thread_start(&pool->threads[pool->n_started], tsk__pool_worker, pool))
        pool->n_started++;
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
    tsk__mutex_lock(&pool->sleep);
    __atomic_store_n(&pool->stop, 1, __ATOMIC_RELEASE);
    tsk__condition_wake_all(&pool->wake);
    tsk__mutex_unlock(&pool->sleep);
    for (i = 0; i < pool->n_started; i++) tsk__thread_join(pool->threads[i]);
    tsk__condition_destroy(&pool->wake);
    tsk__mutex_destroy(&pool->sleep);
    tsk__mutex_destroy(&pool->section);
    tsk__memory_delete(allocator, pool);
}

#endif /* SECTION_GUARD_POOL */
