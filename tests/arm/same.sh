# same.sh COMMAND...: the tokenskip command of another processor (with its emulator) beside this machine's: the same
# answers, and the same bytes of every value of a generation. Run from the repository's root.
. tests/shell.sh
there() { "$@" > "$out" 2> "$err" < /dev/null; }

# 24 of the demo model's questions: text, tokens and what was counted, but for the times
awk 'NR % 20 == 1 { sub(/^{/, "{\"id\": " NR ", "); sub(/, "answer":.*/, "}"); print }' \
    examples/demo-model/eval.jsonl > "$work/questions"
questions="batch -m examples/demo-model --input $work/questions --gen-length 64"
run $questions --output "$work/here" < /dev/null
there "$@" $questions --output "$work/there"
if grep -q '"CPU, portable C' "$work/here"; then
    echo "skipped: this processor has no fused multiply-add, and other last bits"
    echo "same: 0 passed, 0 failed"
    exit 0
fi
for side in here there; do sed 's/,"timing":.*//' "$work/$side" > "$work/$side.answers"; done
check "the other processor's vectors were used" grep -q '"CPU, NEON' "$work/there"
check "24 questions" [ "$(wc -l < "$work/here.answers")" -eq 24 ]
check "the same answers, token by token" cmp "$work/here.answers" "$work/there.answers"

# every value: F32, F16 and BF16 weights of the golden models, whole generations; a refresh of the demo model
values() { # values MODEL ARGUMENTS -- COMMAND...
    model=$1 arguments=$2
    shift 3
    run trace -m "$model" $arguments --dump "$work/here.safetensors" < /dev/null
    there "$@" trace -m "$model" $arguments --dump "$work/there.safetensors"
    check "$model: there are values" [ "$(wc -c < "$work/here.safetensors")" -gt 1000000 ]
    check "$model: the same bytes" cmp "$work/here.safetensors" "$work/there.safetensors"
}
for model in mha-f32 odd-f16 gqa-bf16; do
    values tests/golden/models/$model "--prompt-ids 5,6,7,8 --gen-length 16 --block-length 8" -- "$@"
done
values examples/demo-model "--prompt-ids 7,9,400,30,12 --gen-length 32 --passes 0..1" -- "$@"

echo "same: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
