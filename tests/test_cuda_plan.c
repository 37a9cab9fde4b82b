/* How the linear maps' work is cut for a GPU: what must hold of a plan whatever the device and the model's shape. It
   needs no GPU. */
#define TOKENSKIP_CUDA_DLOPEN
#define TOKENSKIP_IMPLEMENTATION
#include "../src/cuda_plan.h"

#include "test.h"

/* compute capability x 10, multiprocessors, bytes of shared memory of a block */
typedef struct gpu { const char *name; int arch, multiprocessors, shared; } gpu;
static const gpu gpus[] = {{"H200, H100", 90, 132, 232448}, {"H100 PCIe", 90, 114, 232448},
                           {"A100", 80, 108, 166912},       {"L40S", 89, 142, 101376},
                           {"RTX 5090", 120, 170, 101376},  {"RTX 5050", 120, 20, 101376},
                           {"one of all", 90, 1, 232448}};
typedef struct shape { const char *name; int d, heads, kv_heads, head_dim, mlp, vocabulary; } shape;
static const shape shapes[] = {{"LLaDA-8B", 4096, 32, 32, 128, 12288, 126464},
                               {"1B", 2048, 16, 16, 128, 5632, 126464},
                               {"grouped", 2560, 20, 4, 128, 9728, 151936},
                               {"small", 64, 4, 2, 16, 96, 512},
                               {"odd", 264, 3, 1, 32, 520, 1000}};

static void check_map(const gpu *g, int map, const tsk__cuda_plan *p) {
    int is_out = map == TSK__CUDA_MAP_OUT || map == TSK__CUDA_MAP_DOWN, i;
    int tiles = (p->n + 16 * p->pieces - 1) / (16 * p->pieces), at_once = p->blocks / p->split;
    CHECK_INT(p->split, is_out && g->arch >= 90 ? TSK__CUDA_LINEAR_SPLIT : 1);
    CHECK(p->pieces >= 1 && p->pieces * p->groups <= TSK__CUDA_LINEAR_WARPS);
    CHECK(p->groups >= 1 && p->groups + p->split - 1 <= TSK__CUDA_LINEAR_GROUPS);
    CHECK(p->blocks > 0 && p->blocks <= g->multiprocessors && p->blocks % p->split == 0);
    CHECK(at_once <= tiles);
    for (i = 0; i < 2; i++) {
        int rows = i == 0 ? 32 : 64, width = 16 * p->pieces, stages = p->stages[i];
        int parts = p->groups + p->split - 1;
        CHECK(p->shared[i] <= g->shared);
        /* what kernels/linear.cu lays out */
        CHECK(p->shared[i] >=
              stages * (width + rows) * 128 + parts * rows * (width + 4) * 4 + rows * 4 + stages * 16 + 16);
        CHECK(stages >= 3 && stages % p->groups == 0);
    }
}

/* Outputs that the busiest multiprocessor makes, of columns shared `split` ways. */
static int busiest(const tsk__cuda_plan *p, int pieces, int multiprocessors) {
    int tiles = (p->n + 16 * pieces - 1) / (16 * pieces), at_once = multiprocessors / p->split;
    return (tiles + at_once - 1) / at_once * pieces * 16;
}

int main(void) {
    size_t i, j;
    int planned = 0;
    for (i = 0; i < sizeof gpus / sizeof *gpus; i++)
        for (j = 0; j < sizeof shapes / sizeof *shapes; j++) {
            const gpu *g = &gpus[i];
            const shape *s = &shapes[j];
            tsk_model_config config;
            tsk__cuda_backend b;
            int map, fits, pieces;
            memset(&config, 0, sizeof config), memset(&b, 0, sizeof b);
            config.d_model = s->d, config.n_heads = s->heads, config.n_kv_heads = s->kv_heads;
            config.head_dim = s->head_dim, config.mlp_hidden_size = s->mlp, config.embedding_size = s->vocabulary;
            b.base.config = &config, b.arch = g->arch, b.n_multiprocessors = g->multiprocessors;
            b.shared_limit = g->shared;
            b.q_width = s->heads * s->head_dim, b.qkv_width = (s->heads + 2 * s->kv_heads) * s->head_dim;
            b.gate_up_rows = s->mlp * 2;
            fits = tsk__cuda_plan_maps(&b);
            CHECK(fits == (g->multiprocessors > 1)); /* (a pair of blocks has no place on one) */
            planned += fits;
            for (map = 0; map < TSK__CUDA_MAPS && fits; map++) {
                const tsk__cuda_plan *p = &b.plans[map];
                check_map(g, map, p);
                /* no other width that has room leaves the busiest one less to do */
                for (pieces = map == TSK__CUDA_MAP_OUT || map == TSK__CUDA_MAP_DOWN ? 2 : 1;
                     pieces <= TSK__CUDA_LINEAR_WARPS; pieces += 2)
                    CHECK(busiest(p, p->pieces, g->multiprocessors) <= busiest(p, pieces, g->multiprocessors) ||
                          !tsk__cuda_plan_fits(p->split, pieces, 1, g->shared));
                /* the shape and the GPU that the kernels were measured with: a tile a block, in one round */
                if (i == 0 && j == 0 && map != TSK__CUDA_MAP_HEAD) {
                    CHECK_INT(p->blocks, 128);
                    CHECK_INT(busiest(p, p->pieces, 132), 16 * p->pieces);
                }
            }
        }
    CHECK_INT(planned, 30);
    return test_end("test_cuda_plan");
}
