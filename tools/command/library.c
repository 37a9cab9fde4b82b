/* The library's implementation, compiled once for the command. CUDA, where there is any, is found at run time. */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_CUDA_DLOPEN
#include "tokenskip.h"
