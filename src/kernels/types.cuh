#ifndef SECTION_GUARD_KERNELS_TYPES
#define SECTION_GUARD_KERNELS_TYPES

#define TSK__KERNELS
#ifdef __CUDACC_RTC__  // which has no system's headers
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
struct bf16 { u16 bits; };

#endif /* SECTION_GUARD_KERNELS_TYPES */
