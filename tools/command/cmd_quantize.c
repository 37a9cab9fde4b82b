#include "system.h"

static void on_progress(void *user, uint64_t done, uint64_t total) {
    char tail[64], size[32];
    double fraction = total ? (double)done / (double)total : 1, start = *(const double *)user;
    if (cli_now_ms() - start < 200) return;
    snprintf(tail, sizeof tail, "%3.0f%% of %s", fraction * 100, cli_size_string(total, size, sizeof size));
    cli_progress("quantising", fraction, tail);
}

static int on_cancel(void *user) {
    (void)user;
    cli_progress_again();
    return cli_interrupted() != 0;
}

/* "model: 84 matrices of 4 bits ..." */
static int print_result(const char *out, double seconds) {
    tsk_weights_format formats[8];
    tsk_folder *folder = NULL;
    tsk_text text = {0};
    tsk_error error = {0};
    char size[32];
    int32_t n, i;
    int status;
    if (tsk_folder_open(out, NULL, &folder, &error) != TSK_OK) return cli_fail_with(&error, NULL);
    n = tsk_folder_formats(folder, TSK_WEIGHTS_AS_STORED, formats, 8);
    for (i = 0; i < n && i < 8; i++)
        cli_append(&text, "%-32s %5d tensors, %s\n", formats[i].name, (int)formats[i].n_tensors,
                   cli_size_string(formats[i].bytes, size, sizeof size));
    cli_append(&text, "%-32s %s, in %.1f s\n", "in all",
               cli_size_string(tsk_folder_weights_size(folder), size, sizeof size), seconds);
    status = cli_write(text.data, text.length);
    tsk_text_free(&text);
    tsk_folder_free(folder);
    return status;
}

int cmd_quantize(cli_settings *settings) {
    tsk_quantize_options options = tsk_quantize_options_default();
    tsk_error error = {0};
    double start = cli_now_ms();
    const char *out = settings->output;
    system_file info;
    int is_new = system_look(out, &info) != 0;
    tsk_status status;
    if (!is_new && info.kind != SYSTEM_FOLDER) return cli_fail("'%s' is there already, and no folder", out);
    if (is_new && system_make_folder(out) != 0) return cli_fail("cannot make '%s': %s", out, strerror(errno));
    cli_catch_interrupts();
    options.weights = settings->quantize == 0 ? TSK_WEIGHTS_Q8 : TSK_WEIGHTS_Q4;
    options.n_threads = settings->model.n_threads;
    options.progress = on_progress;
    options.cancel = on_cancel;
    options.user = &start;
    status = tsk_quantize(settings->path, out, &options, &error);
    cli_progress_clear();
    if (status == TSK_OK) return print_result(out, (cli_now_ms() - start) * 1e-3);
    if (is_new) system_remove_folder(out);
    if (cli_interrupted()) return cli_fail("interrupted while quantising %s: nothing was written", settings->path);
    return cli_fail_with(&error, NULL);
}
