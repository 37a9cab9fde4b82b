#ifndef SECTION_GUARD_SYSTEM
#define SECTION_GUARD_SYSTEM

#if defined(TOKENSKIP_MALLOC) != defined(TOKENSKIP_REALLOC) || defined(TOKENSKIP_MALLOC) != defined(TOKENSKIP_FREE)
#error "define all or none of TOKENSKIP_MALLOC, TOKENSKIP_REALLOC and TOKENSKIP_FREE"
#endif

#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__GNUC__)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif
#if defined(TOKENSKIP_CUDA_DLOPEN) && !defined(TOKENSKIP_NO_CUDA)
#include <dlfcn.h>
#endif

#ifndef TOKENSKIP_MALLOC
#define TOKENSKIP_MALLOC(size) malloc(size)
#define TOKENSKIP_REALLOC(block, size) realloc(block, size)
#define TOKENSKIP_FREE(block) free(block)
#endif

/* Of a small function with very many callers, none of them in a hurry: inlined into all of them it costs 4 % of the
   header's code and as much of its compile time. */
#ifdef __GNUC__
#define TSK__NOT_INLINE __attribute__((__noinline__))
#else
#define TSK__NOT_INLINE
#endif

/* Where one instruction of every processor multiplies and adds, compilers put it for any a * b + c, and round once
   where other machines round twice. From here to the end of the implementation they may not. (x86 has none unless it
   is asked for. In front of arm_neon.h this would keep programs from inlining what that header has.) */
#if defined(__GNUC__) && !defined(__x86_64__) && !defined(__i386__)
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")
#endif
#endif

#endif /* SECTION_GUARD_SYSTEM */
