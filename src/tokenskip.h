#include "api.h"

/* =====================================================================================================================
   Stop here if you only use the library. What follows is the implementation; its sections are marked // >>name.
   ================================================================================================================== */
#ifdef TOKENSKIP_IMPLEMENTATION
#ifndef TOKENSKIP__IMPLEMENTED
#define TOKENSKIP__IMPLEMENTED

#include "system.h"

#ifdef __cplusplus
extern "C" {
#endif

#include "error.h"
#include "memory.h"
#include "platform.h"
#include "pool.h"
#include "hash.h"
#include "number.h"
#include "quantise.h"
#include "json.h"
#include "safetensors.h"
#include "unicode.h"
#include "bpe.h"
#include "template.h"
#include "pattern.h"
#include "formats.h"
#include "family.h"
#include "config.h"
#include "random.h"
#include "weights.h"
#include "skip.h"
#include "schedule.h"
#include "backend.h"
#include "storage.h"
#include "cpu_vectors.h"
#include "cpu_integer.h"
#include "cpu.h"
#include "cpu_weights.h"
#include "cpu_backend.h"
#include "cuda_driver.h"
#include "kernels/shared.h"
#include "cuda_backend.h"
#include "cuda_compile.h"
#include "cuda_plan.h"
#include "cuda_weights.h"
#include "cuda_stream.h"
#include "cuda.h"
#include "model.h"
#include "export.h"
#include "trace.h"
#include "forward.h"
#include "request.h"
#include "session.h"
#include "batch.h"
#include "public.h"

#ifdef __cplusplus
}
#endif

/* A program's own a * b + c is its own affair again (see the system headers above). */
#if defined(__GNUC__) && !defined(__x86_64__) && !defined(__i386__)
#ifdef __clang__
#pragma STDC FP_CONTRACT DEFAULT
#else
#pragma GCC pop_options
#endif
#endif
#endif /* TOKENSKIP__IMPLEMENTED */
#endif /* TOKENSKIP_IMPLEMENTATION */
