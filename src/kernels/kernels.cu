// kernels.cu: the CUDA kernels of TokenSkip, compiled at run time by NVRTC for the GPU at hand (sm_80 and up).
//
// It needs no header of the system. bf16 values travel as their 16 bits; arithmetic is f32 unless said otherwise, and
// the matrix units multiply bf16 with f32 accumulation. Conventions:
//   - Weights are [n_out, n_in] row-major, activations [rows, width] row-major, both with the inner size contiguous.
//   - A kernel named name_bf16 / name_f32 is one template instantiated for both activation types.
//   - "Equals" names the CPU operation of the backend table that the kernel, alone or with its neighbours, stands for.
//   - On sm_90 and later a kernel may start while its predecessor still runs (programmatic dependent launch): whatever
// stands
//     before wait_for_predecessor() may read weights, the row table, the host's lists and cached rows that the pass
// does not
//     write, and writes nothing global. pass_begin and slide are never launched so, nor is what follows pass_begin or
// decide.
//   - No result depends on the order in which blocks run: partial sums are added in a fixed order, whoever adds them.

#include "types.cuh"
#include "shared.h"
#include "device.cuh"
#include "norm.cuh"
#include "draw.cuh"
#include "pieces.cuh"
#include "cluster.cuh"
#include "linear_finish.cuh"
#include "linear.cu"
#include "linear_wide.cu"
#include "attention.cu"
#include "skip_select.cu"
#include "head.cu"
#include "pass.cu"
#include "moving.cu"
#include "rows.cu"
#include "attend.cu"
#include "states.cu"
#include "loading.cu"
#include "linear_f32.cu"
#include "ceilings.cu"
