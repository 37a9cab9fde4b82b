#!/bin/sh
# Measures the rules that say how many predictions a step commits on a model and its questions, each in turn with the
# threshold 0.9. The tables of docs/benchmarks.md are made by
#     sh tools/measure_commits.sh examples/demo-model examples/demo-model/eval.jsonl OUT
# with one thread a run, as many runs at a time as JOBS says (1). OUT, a new folder, gets a file NAME.json for each
# setting (`eval --against --json`) and table.md. PYTHON says which Python makes the table (python3).
set -u
[ $# -eq 3 ] || { echo "usage: measure_commits.sh MODEL QUESTIONS.jsonl OUT" >&2; exit 2; }
model=$1 questions=$2 out=$3
command=${TOKENSKIP:-./tokenskip}
mkdir "$out" || exit 1

measure() { # measure NAME OPTIONS
    name=$1
    shift
    $command eval -m "$model" --data "$questions" --device cpu --threads 1 --json "$@" --against "--threshold 0.9" \
        > "$out/$name.json" 2> "$out/$name.err" ||
        { tail -n 1 "$out/$name.err" >&2; : > "$out/failed"; }
}
jobs_left=${JOBS:-1}
start() { # as measure, beside others; the options are the name
    measure "$(echo "$*" | sed 's/^--//; s/ --/, /g')" "$@" &
    jobs_left=$((jobs_left - 1))
    [ "$jobs_left" -gt 0 ] || { wait; jobs_left=${JOBS:-1}; }
}

for threshold in 0.7 0.95; do start --threshold $threshold; done
for factor in 0.5 1; do start --factor $factor; done
for delta in 0.02 0.25 0.5; do start --frechet $delta; done
for gamma in 0.01 0.03 0.1 0.3 1; do start --entropy-bound $gamma; done
for threshold in 0.75 0.5; do start --local-leap $threshold; done
wait
[ ! -e "$out/failed" ] || exit 1
rm -f "$out"/*.err
"${PYTHON:-python3}" "$(dirname "$0")/table_commits.py" "$out"
