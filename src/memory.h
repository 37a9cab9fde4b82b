#ifndef SECTION_GUARD_MEMORY
#define SECTION_GUARD_MEMORY

#include "system.h"
#include "api.h"

// >>memory ============================================================================================================
/* The host's allocator behind four checked calls, and the two growable buffers of the API. */

static void *tsk__memory_default_allocate(void *user, size_t size) {
    (void)user;
    return TOKENSKIP_MALLOC(size);
}
static void *tsk__memory_default_reallocate(void *user, void *block, size_t old_size, size_t new_size) {
    (void)user;
    (void)old_size;
    return TOKENSKIP_REALLOC(block, new_size);
}
static void tsk__memory_default_release(void *user, void *block) {
    (void)user;
    TOKENSKIP_FREE(block);
}

static const tsk_allocator tsk__memory_default = {tsk__memory_default_allocate, tsk__memory_default_reallocate,
                                                  tsk__memory_default_release, NULL};

static const tsk_allocator *tsk__memory_allocator(const tsk_host *host) {
    return host && host->allocator ? host->allocator : &tsk__memory_default;
}

/* NULL for count * size beyond size_t as for any other failure. A zero count gives a block too. */
static TSK__NOT_INLINE void *tsk__memory_new(const tsk_allocator *allocator, size_t count, size_t size) {
    if (size && count > SIZE_MAX / size) return NULL;
    if (!allocator) allocator = &tsk__memory_default;
    return allocator->allocate(allocator->user, count && size ? count * size : 1);
}

static TSK__NOT_INLINE void *tsk__memory_new_zeroed(const tsk_allocator *allocator, size_t count, size_t size) {
    void *block = tsk__memory_new(allocator, count, size);
    if (block) memset(block, 0, count * size);
    return block;
}

static TSK__NOT_INLINE void tsk__memory_delete(const tsk_allocator *allocator, void *block) {
    if (!allocator) allocator = &tsk__memory_default;
    if (block) allocator->release(allocator->user, block);
}

/* Makes room for `needed` elements in *block, which holds *capacity; grows by half at least. 0 when out of memory, with
   the block as it was. `block` is the address of a pointer of any type. */
static int tsk__memory_reserve(const tsk_allocator *allocator, void *block, size_t *capacity, size_t needed,
                               size_t size) {
    void *old_block, *new_block;
    size_t wanted = *capacity + *capacity / 2;
    if (needed <= *capacity) return 1;
    if (!allocator) allocator = &tsk__memory_default;
    if (wanted < needed) wanted = needed;
    if (wanted < 16) wanted = 16;
    if (wanted > SIZE_MAX / size) return 0;
    memcpy(&old_block, block, sizeof old_block);
    new_block = old_block ? allocator->reallocate(allocator->user, old_block, *capacity * size, wanted * size)
                          : allocator->allocate(allocator->user, wanted * size);
    if (!new_block) return 0;
    memcpy(block, &new_block, sizeof new_block);
    *capacity = wanted;
    return 1;
}

/* Blocks that are freed together. */
typedef struct tsk__blocks {
    const tsk_allocator *allocator;
    void **blocks;
    size_t n, capacity;
} tsk__blocks;

static void *tsk__blocks_new(tsk__blocks *b, size_t count, size_t size) {
    void *block;
    if (!tsk__memory_reserve(b->allocator, &b->blocks, &b->capacity, b->n + 1, sizeof *b->blocks)) return NULL;
    block = tsk__memory_new(b->allocator, count, size);
    if (block) b->blocks[b->n++] = block;
    return block;
}

static void tsk__blocks_free(tsk__blocks *b) {
    size_t i;
    for (i = 0; i < b->n; i++) tsk__memory_delete(b->allocator, b->blocks[i]);
    tsk__memory_delete(b->allocator, b->blocks);
    b->blocks = NULL;
    b->n = b->capacity = 0;
}

static char *tsk__memory_copy_string(const tsk_allocator *allocator, const char *text) {
    size_t size = strlen(text) + 1;
    char *copy = (char *)tsk__memory_new(allocator, size, 1);
    if (copy) memcpy(copy, text, size);
    return copy;
}

tsk_status tsk_text_append(tsk_text *text, const char *bytes, size_t size) {
    if (!text || (!bytes && size)) return TSK_ERROR_ARGUMENT;
    if (size >= SIZE_MAX - text->length) return TSK_ERROR_MEMORY;
    if (!tsk__memory_reserve(text->allocator, &text->data, &text->capacity, text->length + size + 1, 1))
        return TSK_ERROR_MEMORY;
    if (size) memcpy(text->data + text->length, bytes, size);
    text->length += size;
    text->data[text->length] = 0;
    return TSK_OK;
}

void tsk_text_free(tsk_text *text) {
    if (!text) return;
    tsk__memory_delete(text->allocator, text->data);
    text->data = NULL;
    text->length = text->capacity = 0;
}

/* Room for `more` ids behind those that are there; 0 when out of memory, or of what an int32_t counts. */
static int tsk__tokens_reserve(tsk_tokens *tokens, size_t more) {
    size_t count = (size_t)tokens->count, capacity = (size_t)tokens->capacity;
    if (more > (size_t)INT32_MAX - count) return 0;
    if (!tsk__memory_reserve(tokens->allocator, &tokens->ids, &capacity, count + more, sizeof *tokens->ids)) return 0;
    tokens->capacity = capacity > INT32_MAX ? INT32_MAX : (int32_t)capacity;
    return 1;
}

tsk_status tsk_tokens_append(tsk_tokens *tokens, const int32_t *ids, int32_t count) {
    if (!tokens || count < 0 || (!ids && count)) return TSK_ERROR_ARGUMENT;
    if (!tsk__tokens_reserve(tokens, (size_t)count)) return TSK_ERROR_MEMORY;
    if (count) memcpy(tokens->ids + tokens->count, ids, (size_t)count * sizeof *ids);
    tokens->count += count;
    return TSK_OK;
}

void tsk_tokens_free(tsk_tokens *tokens) {
    if (!tokens) return;
    tsk__memory_delete(tokens->allocator, tokens->ids);
    tokens->ids = NULL;
    tokens->count = tokens->capacity = 0;
}

#endif /* SECTION_GUARD_MEMORY */
