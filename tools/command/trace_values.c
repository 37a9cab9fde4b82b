/* Outputs of a pass, kept, and how another pass differs from them. */
#include "trace.h"

#include <math.h>

int trace_is_cache(const char *name) { return strncmp(name, "kv_", 3) == 0; }

const float *trace_row(const float *values, int is_cache, const uint64_t shape[3], int32_t row, uint64_t head,
                       uint64_t *width) {
    if (is_cache) {
        *width = shape[2];
        return values + (head * shape[1] + (uint64_t)row) * shape[2];
    }
    *width = shape[2] ? shape[1] * shape[2] : shape[1];
    return values + (uint64_t)row * *width;
}

static uint64_t value_count(int n_dims, const uint64_t shape[3]) {
    uint64_t n = 1;
    int i;
    for (i = 0; i < n_dims; i++) n *= shape[i];
    return n;
}

void trace_values_keep(trace_values *values, const tsk_trace_record *record) {
    trace_value *value;
    uint64_t n = value_count(record->n_dims, record->output_shape);
    if (values->count == values->capacity) {
        values->capacity = values->capacity ? 2 * values->capacity : 64;
        values->items = (trace_value *)cli_reallocate(values->items, values->capacity, sizeof *values->items);
    }
    value = &values->items[values->count++];
    memset(value, 0, sizeof *value);
    snprintf(value->name, sizeof value->name, "%s", record->name);
    snprintf(value->part, sizeof value->part, "%s", record->part);
    value->layer = record->layer;
    value->n_rows = record->n_rows;
    value->n_dims = record->n_dims;
    memcpy(value->shape, record->output_shape, sizeof value->shape);
    memcpy(value->input_shape, record->input_shape, sizeof value->input_shape);
    value->positions = (int32_t *)cli_copy(record->positions, (size_t)record->n_rows, sizeof *record->positions);
    value->values = (float *)cli_copy(record->output, (size_t)n, sizeof *record->output);
}

static int is_called(const trace_value *value, const char *name, const char *part) {
    return strcmp(value->name, name) == 0 && strcmp(value->part, part) == 0;
}

const trace_value *trace_values_find(trace_values *values, const char *name, const char *part) {
    size_t i;
    for (i = 0; i < values->count; i++) {
        size_t at = (values->next + i) % values->count;
        if (!is_called(&values->items[at], name, part)) continue;
        values->next = at + 1;
        return &values->items[at];
    }
    return NULL;
}

void trace_values_drop(trace_values *values) {
    size_t i;
    for (i = 0; i < values->count; i++) {
        free(values->items[i].values);
        values->items[i].values = NULL;
    }
}

void trace_values_clear(trace_values *values) {
    size_t i;
    for (i = 0; i < values->count; i++) {
        free(values->items[i].positions);
        free(values->items[i].values);
    }
    free(values->items);
    memset(values, 0, sizeof *values);
}

void trace_comparison_begin(trace_comparison *comparison, const trace_values *base) {
    size_t i;
    int32_t row;
    comparison->count = base->count;
    comparison->items = (trace_difference *)cli_allocate(base->count, sizeof *comparison->items);
    for (i = 0; i < base->count; i++) {
        trace_difference *difference = &comparison->items[i];
        difference->base = &base->items[i];
        difference->rows = (double *)cli_allocate((size_t)base->items[i].n_rows, sizeof *difference->rows);
        difference->max = -1;
        for (row = 0; row < base->items[i].n_rows; row++) difference->rows[row] = -1;
    }
}

/* Row `a` of the base against row `b` of the record. */
static void compare_row(trace_difference *difference, const tsk_trace_record *record, int32_t a, int32_t b) {
    const trace_value *base = difference->base;
    int is_cache = trace_is_cache(base->name);
    uint64_t head, heads = is_cache ? base->shape[0] : 1, width, i;
    double largest = 0;
    for (head = 0; head < heads; head++) {
        const float *x = trace_row(base->values, is_cache, base->shape, a, head, &width);
        const float *y = trace_row(record->output, is_cache, record->output_shape, b, head, &width);
        for (i = 0; i < width; i++) {
            double d = x[i] == y[i] ? 0 : (double)x[i] - (double)y[i];
            difference->squared_difference += d * d;
            difference->squared += (double)x[i] * (double)x[i];
            if (!(fabs(d) <= largest)) largest = fabs(d);
        }
    }
    difference->rows[a] = largest;
    if (!(largest <= difference->max)) difference->max = largest;
}

/* The positions of one are among the other's, in the same order: a block's that ran, then those of refresh_rows. */
void trace_comparison_add(trace_comparison *comparison, trace_values *base, const tsk_trace_record *record) {
    const trace_value *value = trace_values_find(base, record->name, record->part);
    trace_difference *difference;
    int32_t a = 0, b = 0;
    if (!value) return;
    difference = &comparison->items[value - base->items];
    memcpy(difference->other_shape, record->output_shape, sizeof difference->other_shape);
    while (a < value->n_rows && b < record->n_rows) {
        if (value->positions[a] == record->positions[b]) compare_row(difference, record, a++, b++);
        else if (value->n_rows - a > record->n_rows - b) a++;
        else b++;
    }
}

const trace_difference *trace_comparison_find(const trace_comparison *comparison, const char *name, const char *part) {
    size_t i;
    for (i = 0; i < comparison->count; i++)
        if (is_called(comparison->items[i].base, name, part)) return &comparison->items[i];
    return NULL;
}

double trace_comparison_max(const trace_comparison *comparison, const char *name, const char *part) {
    const trace_difference *difference = trace_comparison_find(comparison, name, part);
    return difference ? difference->max : -1;
}

void trace_comparison_clear(trace_comparison *comparison) {
    size_t i;
    for (i = 0; i < comparison->count; i++) free(comparison->items[i].rows);
    free(comparison->items);
    memset(comparison, 0, sizeof *comparison);
}

int32_t trace_argmax(const float *logits, int32_t n, int32_t mask_id) {
    int32_t i, best = -1;
    for (i = 0; i < n; i++)
        if (i != mask_id && (best < 0 || logits[i] > logits[best])) best = i;
    return best;
}

tsk_candidate trace_candidate(const float *logits, int32_t n, int32_t mask_id, int32_t position) {
    tsk_candidate candidate;
    double sum = 0, moment = 0;
    int32_t i;
    candidate.position = position;
    candidate.id = trace_argmax(logits, n, mask_id);
    for (i = 0; i < n; i++) {
        double z = (double)logits[i] - (double)logits[candidate.id];
        sum += exp(z);
        moment += exp(z) * z;
    }
    candidate.confidence = (float)(1 / sum);
    candidate.entropy = (float)(log(sum) - moment / sum);
    return candidate;
}
