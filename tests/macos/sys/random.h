/* macOS's own, in which there is no getrandom. */
#ifndef TEST_MACOS_RANDOM_H
#define TEST_MACOS_RANDOM_H
#include <stddef.h>
#ifdef __cplusplus
extern "C"
#endif
int getentropy(void *buffer, size_t size);
#endif
