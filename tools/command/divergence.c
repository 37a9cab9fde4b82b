#include "divergence.h"

#include <math.h>

typedef struct probing {
    divergence *sums;
    const tsk_model_config *config;
    tsk_session *session, *other;
    int32_t *canvas;           /* of the other's generation; [length] */
    int32_t length;
    int is_first_block;
    float *logits, *other_logits; /* [block_length, embedding_size] */
} probing;

static int on_step(void *user, const tsk_step *step) {
    probing *p = (probing *)user;
    memcpy(p->canvas, step->canvas, (size_t)step->canvas_length * sizeof *p->canvas);
    p->is_first_block = step->block == 0 && step->masks_left > 0;
    return 0;
}

static double log_sum(const float *logits, int32_t n) {
    double most = -INFINITY, sum = 0;
    int32_t i;
    for (i = 0; i < n; i++)
        if ((double)logits[i] > most) most = (double)logits[i];
    for (i = 0; i < n; i++) sum += exp((double)logits[i] - most);
    return most + log(sum);
}

static int32_t best_of(const float *logits, int32_t n) {
    int32_t i, best = 0;
    for (i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

static void add_position(divergence *d, const float *a, const float *b, int32_t n) {
    const double sum_a = log_sum(a, n), sum_b = log_sum(b, n);
    double kl = 0, difference = 0;
    int32_t i;
    for (i = 0; i < n; i++) {
        const double log_a = (double)a[i] - sum_a, log_b = (double)b[i] - sum_b;
        kl += exp(log_b) * (log_b - log_a);
        difference += fabs((double)a[i] - (double)b[i]);
    }
    d->positions++;
    d->kl += kl;
    d->differences += difference / n;
    d->same_best += best_of(a, n) == best_of(b, n);
}

/* Both models' logits of the block as it stands. */
static int compare_state(probing *p, tsk_error *error) {
    tsk_probe probe;
    int32_t i, n = p->config->embedding_size;
    if (tsk_session_probe(p->session, p->canvas, TSK_PROBE_REFRESH, &probe, error) != TSK_OK ||
        tsk_session_probe_logits(p->session, NULL, p->logits, error) != TSK_OK ||
        tsk_session_probe(p->other, p->canvas, TSK_PROBE_REFRESH, &probe, error) != TSK_OK ||
        tsk_session_probe_logits(p->other, NULL, p->other_logits, error) != TSK_OK)
        return 0;
    for (i = 0; i < probe.n_positions; i++)
        if (p->canvas[probe.positions[i]] == p->config->mask_token_id)
            add_position(p->sums, p->logits + (size_t)i * (size_t)n, p->other_logits + (size_t)i * (size_t)n, n);
    return 1;
}

static int compare_prompt(probing *p, const tsk_tokens *prompt, int32_t gen_length, tsk_error *error) {
    int finished = 0;
    int32_t i;
    p->length = prompt->count + gen_length;
    p->canvas = (int32_t *)cli_reallocate(p->canvas, (size_t)p->length, sizeof *p->canvas);
    memcpy(p->canvas, prompt->ids, (size_t)prompt->count * sizeof *p->canvas);
    for (i = prompt->count; i < p->length; i++) p->canvas[i] = p->config->mask_token_id;
    if (tsk_session_start(p->session, prompt->ids, prompt->count, NULL, error) != TSK_OK ||
        tsk_session_start(p->other, prompt->ids, prompt->count, NULL, error) != TSK_OK)
        return 0;
    for (p->is_first_block = 1; p->is_first_block && !finished;) {
        if (!compare_state(p, error)) return 0;
        p->is_first_block = 0;
        if (tsk_session_step(p->other, &finished, error) != TSK_OK) return 0;
    }
    p->sums->prompts++;
    return 1;
}

static int open_sessions(probing *p, const cli_engine *engine, const cli_engine *other, const cli_settings *settings,
                         tsk_generate_options *options) {
    tsk_error error = {0};
    *options = settings->generate;
    cli_make_plain(options);
    p->config = tsk_model_get_config(engine->model);
    options->on_step = on_step;
    options->user = p;
    if (tsk_session_create(other->model, options, &p->other, &error) != TSK_OK) return cli_fail_with(&error, NULL);
    options->on_step = NULL;
    if (tsk_session_create(engine->model, options, &p->session, &error) != TSK_OK) return cli_fail_with(&error, NULL);
    p->logits = (float *)cli_allocate((size_t)options->block_length * (size_t)p->config->embedding_size, sizeof(float));
    p->other_logits =
        (float *)cli_allocate((size_t)options->block_length * (size_t)p->config->embedding_size, sizeof(float));
    return CLI_OK;
}

static int compare_question(probing *p, const cli_engine *engine, const cli_settings *settings, const question *q,
                            int32_t gen_length) {
    tsk_tokens prompt = {0};
    tsk_error error = {0};
    char where[512];
    int status;
    snprintf(where, sizeof where, "%s, line %zu", settings->data, q->line);
    status = cli_encode_prompt(engine, settings, q->prompt, q->prompt_length, where, &prompt);
    if (status == CLI_OK && !compare_prompt(p, &prompt, gen_length, &error)) status = cli_fail_with(&error, where);
    tsk_tokens_free(&prompt);
    return status;
}

int divergence_measure(divergence *d, const cli_engine *engine, const cli_engine *other, const cli_settings *settings,
                       const question_list *questions, const char *label) {
    const size_t n = questions->count < DIVERGENCE_PROMPTS ? questions->count : DIVERGENCE_PROMPTS;
    tsk_generate_options options;
    probing p;
    char tail[64];
    size_t i;
    int status;
    memset(&p, 0, sizeof p), memset(d, 0, sizeof *d);
    p.sums = d;
    status = open_sessions(&p, engine, other, settings, &options);
    for (i = 0; i < n && status == CLI_OK; i++) {
        snprintf(tail, sizeof tail, "%zu/%zu", i, n);
        cli_progress(label, (double)i / (double)n, tail);
        status = compare_question(&p, engine, settings, &questions->items[i * questions->count / n],
                                  options.gen_length);
        if (status == CLI_OK && cli_interrupted()) status = cli_fail("interrupted: nothing is printed or written");
    }
    cli_progress_clear();
    tsk_session_free(p.session), tsk_session_free(p.other);
    free(p.canvas), free(p.logits), free(p.other_logits);
    return status;
}
