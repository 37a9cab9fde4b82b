# `quantize`, and weights that are quantised on load: both compute the same, other programs' layout, what is refused.
# Run from the repository's root.
. tests/shell.sh
demo=examples/demo-model
question="What is 84 + 23 - 39?"

# The answer with everything that is counted, but for times and what the folder is called.
answer() { # answer ARGUMENTS...
    works generate "$@" -p "$question" --json
    sed 's/"timing":{[^}]*},*//' "$out"
}

for weights in q4 q8; do
    works quantize $demo "$work/$weights" --weights $weights
    check "$weights: it says what was made" prints '^in all '
    answer -m $demo --weights $weights > "$work/on-load"
    answer -m "$work/$weights" > "$work/stored"
    check "$weights: a folder answers as its weights on load do" cmp -s "$work/on-load" "$work/stored"
    for file in tokenizer.json tokenizer_config.json generation_config.json; do
        check "$weights: $file goes along" cmp -s $demo/$file "$work/$weights/$file"
    done
    works inspect "$work/$weights" --json
    check "$weights: inspect says how it is quantised" prints '"quant_method":"compressed-tensors"'
    check "$weights: and of how many parameters" prints '"n_parameters":6658304'
    cp "$out" "$work/inspected"
    works inspect $demo --weights $weights --json
    check "$weights: inspect knows it beforehand" [ "$(sed 's/.*"formats":\(\[[^]]*\]\).*/\1/' "$out")" = \
        "$(sed 's/.*"formats":\(\[[^]]*\]\).*/\1/' "$work/inspected")" ]
done
works quantize $demo "$work/default"
check "the default is q4" cmp -s "$work/default/model.safetensors" "$work/q4/model.safetensors"
works quantize $demo "$work/again" --threads 1
check "threads change nothing" cmp -s "$work/again/model.safetensors" "$work/q4/model.safetensors"

# f32 computes with the values; without it, what is quantised on load and what is stored stay equal
answer -m $demo --weights q4 --dtype f32 > "$work/on-load"
answer -m "$work/q4" --dtype f32 > "$work/stored"
check "so it is in f32" cmp -s "$work/on-load" "$work/stored"

# in a batch each request gets the tokens that it gets alone
tokens() { sed 's/.*"tokens":\(\[[^]]*\]\).*/\1/'; }
for prompt in "$question" "Sort these numbers: 9, 3, 7." "Who is Newton in physics?"; do
    echo "{\"id\": \"$prompt\", \"prompt\": \"$prompt\"}"
    works generate -m "$work/q4" -p "$prompt" --json
    tokens < "$out" >> "$work/alone"
done > "$work/requests.jsonl"
works batch -m "$work/q4" --input "$work/requests.jsonl" --output "$work/results.jsonl" --threads 2
tokens < "$work/results.jsonl" > "$work/together"
check "a batch answers as each request alone" cmp -s "$work/alone" "$work/together"

refuses 2 "two folders" quantize
refuses 2 "two folders" quantize $demo
refuses 2 "two folders" quantize $demo a b
refuses 2 "q8|q4" quantize $demo "$work/x" --weights q5
refuses 2 "as-stored|q8|q4" generate -m $demo --weights q5 -p x
refuses 1 "holds a model already" quantize $demo "$work/q4"
check "... which stays" [ -s "$work/q4/config.json" ]
refuses 1 "is quantised already (compressed-tensors)" quantize "$work/q4" "$work/x"
check "... and leaves no folder" [ ! -e "$work/x" ]
refuses 1 "is quantised already (compressed-tensors)" generate -m "$work/q4" --weights q8 -p x
refuses 1 "is quantised already (compressed-tensors)" inspect "$work/q4" --weights q8
refuses 1 "nowhere" quantize "$work/nowhere" "$work/x"
check "... leaves none either" [ ! -e "$work/x" ]
: > "$work/file"
refuses 1 "no folder" quantize $demo "$work/file"
refuses 1 "nowhere/x" quantize $demo "$work/nowhere/x"
refuses 1 "no matrix can be quantised" quantize tests/golden/models/odd-f16 "$work/x"
check "... and what was written is gone" [ ! -e "$work/x" ]

# what is in a folder already stays, whatever comes of it
for file in model.safetensors model.safetensors.index.json tokenizer.json; do
    rm -rf "$work/theirs" && mkdir "$work/theirs" && echo mine > "$work/theirs/$file"
    refuses 1 "theirs/$file' is there already" quantize $demo "$work/theirs"
    check "... and stays alone" [ "$(ls "$work/theirs")$(cat "$work/theirs/$file")" = "${file}mine" ]
done

# a disk that fills up
if [ "$(uname)" = Linux ]; then
    run_with_room 4000 quantize $demo "$work/x"
    check "a full disk is an error" [ "$rc" -ne 0 ]
    check "... and nothing half-written stays" [ ! -e "$work/x/config.json" ]
fi

echo "test_quantize: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
