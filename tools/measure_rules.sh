#!/bin/sh
# Measures both rules of TokenSkip and both kinds of block starts on a model and its questions, each setting in turn
# with the plain dual cache, and draws the result. README's table and docs/rules.svg are made by
#     sh tools/measure_rules.sh examples/demo-model examples/demo-model/eval.jsonl OUT
# with one thread a run, as many runs at a time as JOBS says (1). OUT, a new folder, gets a file NAME.json for each
# setting (`eval --against --json`), table.md and rules.svg. The picture needs matplotlib (Debian: python3-matplotlib);
# PYTHON says which Python has it.
set -u
[ $# -eq 3 ] || { echo "usage: measure_rules.sh MODEL QUESTIONS.jsonl OUT" >&2; exit 2; }
model=$1 questions=$2 out=$3
command=${TOKENSKIP:-./tokenskip}
mkdir "$out" || exit 1

measure() { # measure NAME OPTIONS
    name=$1
    shift
    $command eval -m "$model" --data "$questions" --device cpu --threads 1 --json "$@" \
        --against "--skip-rule off --refresh full --window 0" > "$out/$name.json" 2> "$out/$name.err" ||
        { tail -n 1 "$out/$name.err" >&2; : > "$out/failed"; }
}
jobs_left=${JOBS:-1}
start() { # as measure, beside others
    measure "$@" &
    jobs_left=$((jobs_left - 1))
    [ "$jobs_left" -gt 0 ] || { wait; jobs_left=${JOBS:-1}; }
}

steps32="--no-threshold --steps 32" steps64="--no-threshold --steps 64"
start states $steps32 --skip-rule states
start rows $steps32 --skip-rule rows --refresh full
start rows-margin-0 $steps32 --rows-margin 0 --refresh full
start careful $steps32 --skip-preset careful
start near $steps32 --skip-rule rows --refresh near
start fast $steps32 --skip-preset fast
start rows-64-steps $steps64 --skip-rule rows --refresh full
start fast-64-steps $steps64 --skip-preset fast
start fast-gen-256 $steps64 --gen-length 256 --skip-preset fast
start rows-threshold --skip-rule rows --refresh full
start near-threshold --skip-rule rows --refresh near
start fast-threshold --skip-preset fast
wait
[ ! -e "$out/failed" ] || exit 1
rm -f "$out"/*.err
"${PYTHON:-python3}" "$(dirname "$0")/plot_rules.py" "$out"
