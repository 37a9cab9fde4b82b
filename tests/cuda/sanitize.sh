#!/bin/sh
# compute-sanitizer over one generation of the demo model, kernels from the cache (warmed first: NVRTC under the sanitizer is
# slow). `bench` is no use here: its ceilings take for ever under racecheck. sanitize.sh ./tokenskip examples/demo-model
set -e
command=${1:-./tokenskip}
model=${2:-examples/demo-model}
command -v compute-sanitizer > /dev/null || { echo "skipped: no compute-sanitizer"; exit 0; }
run="$command generate -m $model -p 7+5= --gen-length 32 --device cuda"
$run > /dev/null
for tool in memcheck racecheck; do
    echo "compute-sanitizer --tool $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 1 $run 2>&1 | tail -n 3
done
