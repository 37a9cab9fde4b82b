#!/bin/sh
# compute-sanitizer's memcheck and racecheck: over generations of the demo model in bf16 and f32 with TokenSkip that
# skips, and over test_cuda's operations in bf16 for two small shapes that have attention kernels of their own. Kernels
# come from the cache (warmed first: NVRTC under the sanitizer is slow). All at once: four minutes at most. (`bench` is
# no use here: its ceilings take for ever under racecheck.) Memcheck sees every kernel. So does racecheck, but CUDA
# 13.0's gets through the wide maps on one of the shapes only, where a block makes no more than a tile (see
# tests/bench/NOTES.md).
# sanitize.sh ./tokenskip examples/demo-model build/tests/test_cuda
command=${1:-./tokenskip}
model=${2:-examples/demo-model}
operations=${3:-build/tests/test_cuda}
. tests/cuda/gpu.sh
PATH=$PATH:/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer
command -v compute-sanitizer > /dev/null || { echo "skipped: no compute-sanitizer"; exit 0; }
need_gpu compute-sanitizer
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
n=0

check() { # check TOOL SECONDS COMMAND...: beside the others; a report tells how it ended
    n=$((n + 1))
    run_check "$@" > "$dir/$n.report" 2>&1 &
}

run_check() {
    log=$dir/$n.log tool=$1 limit=$2
    shift 2
    echo "compute-sanitizer --tool $tool $*"
    timeout 60 "$@" > "$log" 2>&1 || { echo "failed: it fails alone"; tail -n 40 "$log"; return; }
    timeout "$limit" compute-sanitizer --tool "$tool" --error-exitcode 9 "$@" > "$log" 2>&1
    rc=$?
    case $rc in
    0) grep SUMMARY "$log" ;;
    124) echo "failed: not done after $limit s" ;;
    *) echo "failed: exit status $rc"; grep '=====' "$log" | head -n 60; grep -v '=====' "$log" | tail -n 10 ;;
    esac
}

generation() { # generation TOOL SECONDS DTYPE LENGTH BLOCK STEPS
    check "$1" "$2" "$command" generate -m "$model" -p 7+5= --gen-length "$4" --block-length "$5" \
        --no-threshold --steps "$6" --no-eos-stop \
        --skip-masked --skip-threshold 0.5 --skip-outlier -1 --skip-refresh --device cuda --dtype "$3"
}

generation memcheck 240 bf16 64 16 16
generation memcheck 240 f32 64 16 16
check memcheck 240 "$operations" few
check memcheck 240 "$operations" wide
check memcheck 240 "$operations" rounds
generation racecheck 240 bf16 32 16 8
generation racecheck 240 f32 4 4 2
check racecheck 240 "$operations" few
check racecheck 240 "$operations" tiles
check racecheck 240 "$operations" wide 1
wait
cat "$dir"/*.report
[ "$(cat "$dir"/*.report | grep -c SUMMARY)" = "$n" ] && ! grep -q '^failed' "$dir"/*.report
