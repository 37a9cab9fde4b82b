#ifndef SECTION_GUARD_SYSTEM
#define SECTION_GUARD_SYSTEM

#if defined(TOKENSKIP_MALLOC) != defined(TOKENSKIP_REALLOC) || defined(TOKENSKIP_MALLOC) != defined(TOKENSKIP_FREE)
#error "define all or none of TOKENSKIP_MALLOC, TOKENSKIP_REALLOC and TOKENSKIP_FREE"
#endif

#if !defined(__linux__) && !defined(__APPLE__) && !defined(_WIN32)
#error "TokenSkip knows Linux, macOS and Windows; what another system needs is in the section platform"
#endif

/* Where CUDA has no headers and libraries in customary places it is found at run time; macOS has none. */
#if defined(_WIN32) && !defined(TOKENSKIP_NO_CUDA) && !defined(TOKENSKIP_CUDA_DLOPEN)
#define TOKENSKIP_CUDA_DLOPEN
#endif
#if defined(__APPLE__) && !defined(TOKENSKIP_NO_CUDA)
#define TOKENSKIP_NO_CUDA
#endif
#if defined(__APPLE__) && !defined(_DARWIN_C_SOURCE)
#define _DARWIN_C_SOURCE /* sysconf's names, where only POSIX was asked for */
#endif

#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef _WIN32
/* Here and not in the public part: it defines near, far, small and hundreds of names more. */
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#define TSK__LEAN_AND_MEAN
#endif
#ifndef NOMINMAX
#define NOMINMAX
#define TSK__NOMINMAX
#endif
#include <windows.h>
#ifdef TSK__LEAN_AND_MEAN
#undef WIN32_LEAN_AND_MEAN
#undef TSK__LEAN_AND_MEAN
#endif
#ifdef TSK__NOMINMAX
#undef NOMINMAX
#undef TSK__NOMINMAX
#endif
#include <io.h>
#include <process.h>
#include <wchar.h>
#if defined(_WIN32_WINNT) && _WIN32_WINNT < 0x0601
#error "TokenSkip needs Windows 7 or later: define _WIN32_WINNT as 0x0601 or more, or leave it alone"
#endif
#else
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(TOKENSKIP_CUDA_DLOPEN) && !defined(TOKENSKIP_NO_CUDA)
#include <dlfcn.h>
#endif
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__GNUC__)
#include <arm_neon.h>
#ifdef __linux__
#include <sys/auxv.h>
#endif
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

/* On 64-bit Windows gcc aligns the stack to 16 bytes, and before some later versions moves vectors of 32 and 64 to and
   from it as if it were aligned to their size (its bug 54412): the assembler gets moves for any address instead, which
   are as fast where the address is aligned. */
#if defined(_WIN32) && defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__asm__(".macro vmovaps operands:vararg\n\tvmovups \\operands\n\t.endm\n"
        "\t.macro vmovapd operands:vararg\n\tvmovupd \\operands\n\t.endm\n"
        "\t.macro vmovdqa operands:vararg\n\tvmovdqu \\operands\n\t.endm\n"
        "\t.macro vmovdqa32 operands:vararg\n\tvmovdqu32 \\operands\n\t.endm\n"
        "\t.macro vmovdqa64 operands:vararg\n\tvmovdqu64 \\operands\n\t.endm\n");
#endif

#endif /* SECTION_GUARD_SYSTEM */
