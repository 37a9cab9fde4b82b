/* The library for the tests that use its public side only; the others, which look inside, include it themselves. */
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_NO_CUDA
#include "../tokenskip.h"
