/* Which part of the input, and which GPU, is this process's when a launcher started several. */
#include "batch.h"

static int bad_variable(const char *name, const char *value) {
    return cli_fail("%s is '%s', which is no rank", name, value);
}

/* "I/N", cut at the slash. */
static int read_shard(const char *text, batch_shard *shard) {
    char index[24];
    size_t n = strcspn(text, "/");
    if (n < sizeof index && text[n]) {
        memcpy(index, text, n);
        index[n] = 0;
        if (cli_read_int(text + n + 1, 1, INT32_MAX, &shard->count) &&
            cli_read_int(index, 0, shard->count - 1, &shard->index))
            return CLI_OK;
    }
    return cli_usage_error("--shard takes I/N, from 0/N to N-1/N, not '%s'", text);
}

int batch_shard_find(const cli_settings *settings, batch_shard *shard) {
    static const char *const names[][2] = {{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
                                           {"SLURM_PROCID", "SLURM_NTASKS"}};
    size_t i;
    shard->index = 0;
    shard->count = 1;
    if (settings->shard) return read_shard(settings->shard, shard);
    for (i = 0; i < 2; i++) { /* OpenMPI first: under mpirun in a Slurm job, Slurm's rank is that of mpirun */
        const char *rank = getenv(names[i][0]), *size = getenv(names[i][1]);
        if (!rank || !size) continue;
        if (!cli_read_int(size, 1, INT32_MAX, &shard->count)) return bad_variable(names[i][1], size);
        if (!cli_read_int(rank, 0, shard->count - 1, &shard->index)) return bad_variable(names[i][0], rank);
        break;
    }
    return CLI_OK;
}

/* How many GPUs the launcher lets this process see, or 0 where it says nothing: Slurm may give each task one of its
   own, which then is number 0 to it. */
static int64_t visible_devices(void) {
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    int64_t n = 1;
    if (!list) return 0;
    for (; *list; list++) n += *list == ',';
    return n;
}

int batch_is_under_mpirun(void) {
    const char *size = getenv("OMPI_COMM_WORLD_SIZE");
    int64_t count;
    return size && cli_read_int(size, 2, INT32_MAX, &count);
}

int batch_choose_device(cli_settings *settings) {
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"};
    int64_t rank, visible = visible_devices();
    size_t i;
    if (settings->has_device_index || settings->model.device == TSK_DEVICE_CPU) return CLI_OK;
    for (i = 0; i < 2; i++) {
        const char *value = getenv(names[i]);
        if (!value) continue;
        if (!cli_read_int(value, 0, INT32_MAX, &rank)) return bad_variable(names[i], value);
        settings->model.device_index = (int)(visible ? rank % visible : rank);
        break;
    }
    return CLI_OK;
}
