/* make_sparse DIR: LLaDA-8B-Instruct's folder with holes for weights, for tests of the command. */
#define TOKENSKIP_NO_CUDA
#define TOKENSKIP_IMPLEMENTATION
#include "../tokenskip.h"
#include "golden.h"
#include "sparse.h"

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    return sparse_llada(argv[1]) == 16031162368u ? 0 : 1;
}
