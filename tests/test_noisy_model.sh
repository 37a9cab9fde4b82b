# tools/make_noisy_model.py: what it changes, what it leaves, what it refuses. Run from the repository's root.
. tests/shell.sh
demo=examples/demo-model
exec < /dev/null

for python in python3 /usr/bin/python3 none; do
    "$python" -c 'import numpy' 2> /dev/null && break
done
if [ "$python" = none ]; then
    echo "test_noisy_model: skipped, there is no python3 with NumPy"
    echo "test_noisy_model: 1 passed, 0 failed"
    exit 0
fi

make_noisy() { # make_noisy ARGUMENTS...: as run
    "$python" tools/make_noisy_model.py "$@" > "$out" 2> "$err"
    rc=$?
}
makes() {
    make_noisy "$@"
    check "'$*' exits with 0" [ "$rc" -eq 0 ]
    check "'$*' says nothing" [ ! -s "$err" ]
}
refuses_noise() { # refuses_noise STATUS PATTERN ARGUMENTS...: one line, and nothing is left behind
    status=$1 pattern=$2
    shift 2
    before=$(ls "$work")
    make_noisy "$@"
    check "'$*' exits with $status" [ "$rc" -eq "$status" ]
    check "'$*' says one line" [ "$(wc -l < "$err")" -eq 1 ]
    check "'$*' says '$pattern'" says "^make_noisy_model.py: .*$pattern"
    check "'$*' leaves nothing" [ "$(ls "$work")" = "$before" ]
}
same_weights() { # same_weights A B
    for shard in "$1"/*.safetensors; do cmp -s "$shard" "$2/${shard##*/}" || return 1; done
}

# Measured by a reader of its own, for bf16: what the vectors' differences are, and each matrix's in deviations.
measure() {
    "$python" - "$1" "$2" << 'END'
import glob, json, os, struct, sys
import numpy as np
def read(folder):
    tensors = {}
    for path in glob.glob(folder + "/*.safetensors"):
        raw = open(path, "rb").read()
        start = 8 + struct.unpack("<Q", raw[:8])[0]
        for name, t in json.loads(raw[8:start]).items():
            if name == "__metadata__": continue
            assert t["dtype"] == "BF16"
            halves = np.frombuffer(raw[start + t["data_offsets"][0]:start + t["data_offsets"][1]], "<u2")
            words = np.zeros((len(halves), 2), "<u2")
            words[:, 1] = halves
            tensors[name] = len(t["shape"]), words.view("<f4")[:, 0].astype(float)
    return tensors
a, b = read(sys.argv[1]), read(sys.argv[2])
assert a.keys() == b.keys()
shares, draws = {}, []
for name in sorted(a):
    difference = b[name][1] - a[name][1]
    if a[name][0] < 2: assert not difference.any(), name; continue
    shares[name] = difference.std() / a[name][1].std()
    assert abs(difference.mean()) < 0.02 * a[name][1].std(), name
    draws.append(difference[:65536] / difference.std())
embedding = shares.pop("model.transformer.wte.weight")
far = max(abs(np.dot(x, y)) / len(x) for i, x in enumerate(draws) for y in draws[:i] if len(x) == len(y))
print("embedding %.2f, others %.2f to %.2f, matrices %d, alike %d" %
      (embedding, min(shares.values()), max(shares.values()), len(draws), far > 0.05))
END
}

test_noise() {
    makes $demo "$work/noisy"
    measure $demo "$work/noisy" > "$out" 2> "$err"
    check "the noise is as large as it should be, and no two matrices' alike" \
        prints '^embedding 0.20, others 0.40 to 0.40, matrices 85, alike 0$'
    for file in config.json tokenizer.json tokenizer_config.json generation_config.json model.safetensors.index.json; do
        check "$file is copied" cmp -s $demo/$file "$work/noisy/$file"
    done
    works generate -m "$work/noisy" -p "Who is Newton in physics?" --gen-length 32
    makes $demo "$work/again" --seed 0
    check "a seed gives the same model" same_weights "$work/noisy" "$work/again"
    makes $demo "$work/other" --seed 1 --noise 0.1 --embedding-noise 0
    measure $demo "$work/other" > "$out" 2> "$err"
    check "noise as asked" prints '^embedding 0.00, others 0.10 to 0.10,'
}

# No noise changes nothing, in any type of weights; less than rounding sees changes next to nothing.
test_types() {
    for model in mha-f32 gqa-bf16 odd-f16; do
        golden=tests/golden/models/$model
        makes $golden "$work/$model" --noise 0 --embedding-noise 0
        check "$model: no noise" same_weights $golden "$work/$model"
        makes $golden "$work/$model-noisy"
        check "$model: noise" eval "! same_weights $golden '$work/$model-noisy'"
        works generate -m "$work/$model-noisy" --prompt-ids 1,2,3 --gen-length 32 --block-length 8
    done
    # cut off instead of rounded, every other number would be another
    makes $demo "$work/tiny" --noise 1e-6 --embedding-noise 1e-6
    shard=model-00001-of-00002.safetensors
    check "rounded to the nearest" \
        [ "$(cmp -l $demo/$shard "$work/tiny/$shard" | wc -l)" -lt $(($(wc -c < $demo/$shard) / 100)) ]
}

test_refusals() {
    refuses_noise 1 'noisy: is there already' $demo "$work/noisy"
    check "it is as before" same_weights "$work/noisy" "$work/again"
    refuses_noise 1 'nowhere: no such folder' "$work/nowhere" "$work/x"
    refuses_noise 1 'config.json: No such file' tests "$work/x"
    refuses_noise 2 "invalid amount value: 'nan'" $demo "$work/x" --noise nan
    refuses_noise 2 "invalid amount value: '-1'" $demo "$work/x" --noise=-1
    refuses_noise 2 "invalid whole value: '-1'" $demo "$work/x" --seed=-1
    refuses_noise 2 'OUT' $demo
    mkdir "$work/broken"
    cp tests/golden/models/mha-f32/config.json "$work/broken"
    refuses_noise 1 'neither model.safetensors nor model.safetensors.index.json' "$work/broken" "$work/x"
    weights=tests/golden/models/mha-f32/model.safetensors
    for size in 0 7 100 $(($(wc -c < $weights) - 1)); do
        head -c "$size" $weights > "$work/broken/model.safetensors"
        refuses_noise 1 'broken/model.safetensors: ' "$work/broken" "$work/x"
    done
    { cat $weights; echo; } > "$work/broken/model.safetensors"
    refuses_noise 1 'bytes, and .* are there' "$work/broken" "$work/x"
    sed 's/"F32"/"I32"/g' $weights > "$work/broken/model.safetensors"
    refuses_noise 1 'is of type I32' "$work/broken" "$work/x"
    refuses_noise 1 'beyond what F16 holds' tests/golden/models/odd-f16 "$work/x" --noise 1e7
    cp $weights "$work/broken/model.safetensors"
    echo '{' > "$work/broken/config.json"
    refuses_noise 1 'config.json: not JSON' "$work/broken" "$work/x"
}

test_noise
test_types
test_refusals
echo "test_noisy_model: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
