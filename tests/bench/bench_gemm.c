/* The CPU backend's products beside OpenBLAS's sgemm, on the same numbers of threads. Not a test and not part of the
   library. On Debian: apt-get install libopenblas-dev, then

       cc -O2 tests/bench/bench_gemm.c -o bench_gemm -lopenblas -lm -lpthread
       env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE ./bench_gemm [kernel set [M K N]]

   y[M, N] = x[M, K] W[N, K]^T. Every call uses the next of several copies of W, together larger than a second cache
   level; the peers take turns in rounds, each after a pause in which the other's threads have gone to sleep, and the
   figures are medians. Ratios are to OpenBLAS, f32. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "../../tokenskip.h"

#include <cblas.h>
void openblas_set_num_threads(int n);

enum { OPENBLAS, F32, BF16, F16, N_PEERS, ROUNDS = 3, EACH = 13, REPEATS = ROUNDS * EACH, COPIES_BYTES = 64 << 20 };
static const tsk_dtype dtypes[] = {TSK_DTYPE_F32, TSK_DTYPE_F32, TSK_DTYPE_BF16, TSK_DTYPE_F16};

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, compare);
    return x[n / 2];
}

static void run_ours(const tsk__cpu_model *model, tsk_dtype dtype, const void *w, int m, int n, int k, const float *x,
                     float *y) {
    tsk__weight matrix;
    tsk__cpu_product product;
    memset(&matrix, 0, sizeof matrix);
    matrix.data = w;
    matrix.dtype = dtype;
    matrix.rows = n;
    matrix.cols = k;
    memset(&product, 0, sizeof product);
    product.n = m;
    product.count = 1;
    product.x = x;
    product.w[0] = &matrix;
    product.y[0] = y;
    tsk__cpu_product_run(model, &product, NULL);
}

/* Microseconds for one product, the median over REPEATS of a few calls each. */
static void bench(const tsk__cpu_model *model, int m, int n, int k) {
    const size_t size = (size_t)n * (size_t)k, work = 2 * size * (size_t)m;
    const int copies = (int)(COPIES_BYTES / (size * 4)) + 2, calls = (int)(20000000 / work) + 1;
    float *x = (float *)malloc((size_t)m * (size_t)k * 4), *y = (float *)malloc((size_t)m * (size_t)n * 4);
    char *w = (char *)malloc(size * 4 * (size_t)copies);
    double times[N_PEERS][REPEATS], us[N_PEERS];
    int peer, round, repeat, call, next = 0;
    const struct timespec pause = {0, 50000000};
    size_t i;
    for (i = 0; i < (size_t)m * (size_t)k; i++) x[i] = (float)(i % 17) / 17 - 0.5f;
    /* 0x3c003c00 and the like: a small number as f32, as two bf16 and as two F16 */
    for (i = 0; i < size * (size_t)copies; i++)
        ((uint32_t *)(void *)w)[i] = 0x3c003c00u + (uint32_t)(i % 13) * 0x10001u;
    for (round = 0; round < ROUNDS; round++)
        for (peer = 0; peer < N_PEERS; peer++) {
            nanosleep(&pause, NULL);
            for (repeat = -3; repeat < EACH; repeat++) {
                const double start = tsk__time_ms();
                for (call = 0; call < calls; call++, next = (next + 1) % copies) {
                    const void *weights = w + (size_t)next * size * 4;
                    if (peer == OPENBLAS)
                        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1, x, k, (const float *)weights,
                                    k, 0, y, n);
                    else
                        run_ours(model, dtypes[peer], weights, m, n, k, x, y);
                }
                if (repeat >= 0) times[peer][round * EACH + repeat] = (tsk__time_ms() - start) * 1e3 / calls;
            }
        }
    for (peer = 0; peer < N_PEERS; peer++) us[peer] = median(times[peer], REPEATS);
    printf("%7d %5d %6d %6d %10.1f %8.1f %8.1f %8.1f %8.1f %8.2f %6.2f %6.2f\n", model->pool->n_threads, m, k, n,
           us[OPENBLAS], (double)work / us[OPENBLAS] / 1e3, (double)work / us[F32] / 1e3, (double)work / us[BF16] / 1e3,
           (double)work / us[F16] / 1e3, us[OPENBLAS] / us[F32], us[OPENBLAS] / us[BF16], us[OPENBLAS] / us[F16]);
    free(x);
    free(y);
    free(w);
}

int main(int argc, char **argv) {
    static const int shapes[][3] = {{32, 2816, 1024}, {32, 1024, 2816},  {32, 4096, 4096}, {8, 2816, 1024},
                                    {1, 2816, 1024},  {128, 2816, 1024}, {32, 192, 192},   {32, 512, 192},
                                    {32, 192, 512},   {8, 512, 192},     {200, 192, 192},  {200, 512, 192},
                                    {200, 192, 512}};
    tsk__cpu_model model;
    size_t i;
    int threads;
    memset(&model, 0, sizeof model);
    model.kernels = argc > 1 ? tsk__cpu_kernels_by_name(argv[1]) : tsk__cpu_kernels_select();
    if (!model.kernels) return fprintf(stderr, "no kernel set '%s' here\n", argv[1]), 1;
    printf("%s; GFLOP/s, and the ratio to OpenBLAS\n", model.kernels->description);
    printf("threads     M      K      N OpenBLAS us OpenBLAS  our f32     bf16      F16      f32   bf16    F16\n");
    for (threads = 1; threads <= 2; threads++) {
        model.pool = tsk__pool_create(NULL, threads);
        openblas_set_num_threads(threads);
        if (argc > 4) bench(&model, atoi(argv[2]), atoi(argv[4]), atoi(argv[3]));
        else
            for (i = 0; i < sizeof shapes / sizeof *shapes; i++)
                bench(&model, shapes[i][0], shapes[i][1], shapes[i][2]);
        tsk__pool_destroy(NULL, model.pool);
    }
    return 0;
}
