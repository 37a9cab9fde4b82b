#!/bin/sh
# The demo model's accuracy on the GPU in bf16 is within one point of the CPU's, at the default generation length, over
# all of its questions. accuracy.sh ./tokenskip examples/demo-model
command=${1:-./tokenskip}
model=${2:-examples/demo-model}
data=${3:-$model/eval.jsonl}
. tests/cuda/gpu.sh
accuracy() { # accuracy DEVICE DTYPE
    "$command" eval -m "$model" --data "$data" --device "$1" --dtype "$2" --json |
        sed -n 's/.*"accuracy": *\([0-9.eE+-]*\).*/\1/p'
}
need_gpu "the demo model's accuracy"
gpu=$(accuracy cuda bf16)
cpu=$(accuracy cpu f32)
echo "accuracy: GPU in bf16 ${gpu:-none}, CPU ${cpu:-none}"
[ -n "$gpu" ] && [ -n "$cpu" ] || { echo "failed: no accuracy"; exit 1; }
awk -v gpu="$gpu" -v cpu="$cpu" 'BEGIN { d = gpu - cpu; if (d < 0) d = -d; exit !(cpu > 0.5 && d <= 0.01 + 1e-9) }' ||
    { echo "failed: more than a point apart, or hardly an answer right"; exit 1; }
