# `trace`, `calibrate` and `sweep` as a user runs them. Run from the repository's root. Models with random
# weights are enough here; test_seed_failure.sh uses the demo model.
. tests/shell.sh
golden=tests/golden/models/gqa-bf16
exec < /dev/null

nothing_in() { [ -z "$(ls -A "$1")" ]; }

short="--prompt-ids 5,6,7,8 --gen-length 16 --block-length 8"
seed="--skip-masked --skip-policy exit --skip-threshold 0.9 --skip-outlier -1"

# ---- The report -----------------------------------------------------------------------------------------------------

test_help() {
    for command in trace calibrate sweep; do
        works $command --help
        check "help of '$command' has a usage line" prints "^usage: tokenskip $command "
    done
}

# What tells most comes first; the notebook's sections, in its order, come where they are asked for.
test_sections() {
    cat > "$work/sections" <<'END'
== Where the answers part
== Conclusion
== Generation: mask residual and length
== Step by step
== Initial forward
== Step 0: baseline against TokenSkip with nothing to compare with: nothing differs, as it must be: PASS
== Step 1: baseline against TokenSkip with threshold 1.0: nothing differs, as it must be: PASS
== Step 1: baseline against TokenSkip with threshold 0.9
== Input shapes, layer by layer
== Q, K, V projections
== RoPE
== Attention output
== FFN
== Cosines with step 0, and the verdict
== KV cache: nothing differs
== Final hidden states, token by token
== Logits, token by token
== Summary of the two steps
END
    works trace -m $golden $short $seed --notebook
    grep '^== ' "$out" > "$work/found"
    check "the sections are the notebook's" cmp -s "$work/sections" "$work/found"
    works trace -m $golden $short $seed
    head -n 4 "$work/sections" > "$work/first"
    grep '^== ' "$out" > "$work/found"
    check "without --notebook they are not there" cmp -s "$work/first" "$work/found"
    works trace -m $golden $short --skip-threshold 1 --skip-outlier -1 --notebook
    check "sections in which nothing differs take a line each" \
        [ "$(grep -c '^== .*: nothing differs' "$out")" -eq 11 ]
}

# The seed's rule on the demo model: answers part, and the report leads with where.
part_of() { sed -n "s/.*\"parting\":{\(.*\),\"comparison\":.*/\1/p" "$out"; } # of the JSON
field() { part_of | sed "s/.*\"$1\":{\([^}]*\)}.*/\1/" | grep -o "\"$2\":[0-9.e-]*" | cut -d : -f 2; }

test_parting() {
    question="What is 84 + 23 - 39?"
    slow="-m examples/demo-model --gen-length 32 --no-threshold"
    works trace $slow -p "$question" --skip-preset seed
    check "both texts stand beside each other" prints '^plain dual cache  *| TokenSkip$'
    check "differences are marked" prints '^.*⟦.*⟧.* | .*⟦.*⟧'
    check "the position is named" prints '^The first token that differs is at position [0-9]*, the answer.s token '
    check "and the passes" prints '^  committed in  *pass [0-9]*: block 0 step [0-9]* *pass [0-9]*: block 0 step '
    check "and both probabilities of both tokens" [ "$(grep -c '^  probability of "' "$out")" -eq 2 ]
    works trace $slow -p "$question" --skip-preset seed --json
    check "it is JSON" is_json
    position=$(part_of | sed 's/.*"position":\([0-9]*\).*/\1/')
    first=$(part_of | sed 's/.*"first_other_pass":\([0-9]*\).*/\1/')
    check "the passes part before, or with, the tokens" [ "$first" -le "$(field given pass)" ]
    check "tokens differ" [ "$(field given token)" -ne "$(field baseline token)" ]
    for side in baseline given; do # a pass's confidence is the probability of what it commits
        field $side confidence > "$work/committed"
        field $side ${side}_token_probability >> "$work/committed"
        check "$side: the probability is the confidence: $(tr '\n' ' ' < "$work/committed")" \
            awk '{ v[NR] = $1 } END { exit !(NR == 2 && v[1] - v[2] < 1e-4 && v[2] - v[1] < 1e-4) }' "$work/committed"
        check "$side prefers its own token" awk -v a="$(field $side baseline_token_probability)" \
            -v b="$(field $side given_token_probability)" -v s=$side 'BEGIN { exit !(s == "given" ? b > a : a > b) }'
    done
    check "the position is one of those that differ" \
        [ -n "$(part_of | sed 's/.*"positions":\[\([^]]*\)\].*/,\1,/' | grep ",$position,")" ]
    works trace $slow -p "$question" --skip-rule rows --rows-margin 32
    check "the same answer is said in a line" prints '^all 32 tokens are the same$'
    works trace $slow -p "$question" --skip-rule rows --skip-full-every 1
    check "and the same passes" prints '^every pass commits the same$'
}

test_versus() {
    slow="-m examples/demo-model --gen-length 32 --no-threshold -p 41+1"
    works trace $slow --versus ''
    check "the same settings: every pass commits the same" prints '^every pass commits the same$'
    works trace $slow --skip-rule off --versus "--threshold 0.5"
    check "any two settings: TokenSkip off on both sides" prints '^compared: --threshold 0.5 (baseline) and the given s'
    check "the given ones take a pass a token" prints '^given  *nfe=32,'
    check "the others fewer" lacks '^baseline  *nfe=32,'
    works trace $slow --versus "--gen-length 64 --skip-rule off" --json
    check "another length" is_json
    check "is told" prints '"versus":"--gen-length 64 --skip-rule off"'
    refuses 2 "^tokenskip: --versus: '-p' is no option of a generation" trace $slow --versus '-p x'
    refuses 2 "^tokenskip: --versus: trace has no option '--nonesuch'" trace $slow --versus '--nonesuch'
    refuses 2 "the prompt is the same for both" trace $slow --versus '--system x'
    refuses 1 "^tokenskip: --versus: .*max_sequence_length" trace $slow --versus '--gen-length 65536'
    refuses 2 "a quote has no end" trace $slow --versus "--cache 'none"
}

# Reasons: what ran is what the pass before committed, the surest of the masked, and neighbours; what did not is asked
# of the full pass.
test_reasons() {
    slow="-m examples/demo-model --gen-length 32 --no-threshold -p 41+1"
    works trace $slow --rows-ahead 1 --shadow
    check "the block's first pass needs no reasons" prints '^block 0 step 0: mask=32, rows=[0-9]* (block start)'
    check "margin 4: five may be committed" \
        prints '^  ran: 1 just committed, 5 may be committed, [12] ahead; 2[0-9] left'
    check "the full pass is asked" prints '^  of these the full pass would commit '
    works trace $slow --rows-margin 2
    check "margin 2: three" prints '^  ran: 1 just committed, 3 may be committed; 28 left out, masked ones at '
    works trace -m examples/demo-model --gen-length 32 -p 41+1 --threshold 0.9999
    check "by threshold: all masked" prints '^  ran: [0-9]* just committed, [0-9]* may be committed$'
    works trace $slow --skip-threshold 0.9 --skip-outlier -1
    check "states: masked tokens always run" prints '^  ran: 1 just committed, 2[0-9] masked; [0-9]* stable'
    check "stable ones by their cosines" prints '^  stable by mean cosines of 0.9[0-9]* to [01].[0-9]*, none below '
    works trace $slow --rows-ahead 1 --json --shadow
    for reason in start committed candidate ahead left_out; do
        check "JSON has the reason $reason" prints "\"$reason\""
    done
    check "and what the full pass would commit" prints '"full_commits":\[[01,]*1[01,]*\]'
}

test_seed_policy() {
    works trace -m $golden $short $seed --notebook
    check "step 0 and threshold 1.0 are exact" [ "$(grep -c 'nothing differs, as it must be: PASS' "$out")" -eq 2 ]
    check "every mask is filled" prints '^16 masks filled'
    check "all are stable" prints '^active: 0, stable: 8$'
    check "the split is marked" prints '^layer  2: baseline=\[8, 48\], skip=N/A <-- split'
    check "nothing runs above it" prints '^layer  5 attn_out baseline=\[8, 48\], skip=N/A$'
    check "the conclusion names block and step" prints 'judged stable first at block 0, step 2 '
    check "and says what happens" prints 'they keep layer-2 states: generation is damaged'
}

test_default_policy() {
    works trace -m $golden $short --skip-threshold 0.9 --skip-outlier -1 --notebook
    check "step 0 and threshold 1.0 are exact" [ "$(grep -c 'nothing differs, as it must be: PASS' "$out")" -eq 2 ]
    check "no masked token is skipped" prints '^no masked token was judged stable'
    check "nobody is told of damage" lacks damaged
    works trace -m $golden $short --skip-masked --skip-threshold 0.9 --skip-outlier -1
    check "reuse keeps predictions" prints 'they keep their last computed predictions'
}

test_options() {
    works trace -m $golden $short --keep-masks --notebook
    check "masks are kept" prints '^masks kept$'
    check "and are there in step 1" prints '(masked)$'
    works trace -m $golden $short --keep-masks --no-threshold $seed --notebook
    check "cached rows that differ are named" prints '^ *K differs at [0-9]* positions: 4 5 6 7 '
    check "not below the split" prints '^layer  1: K diff=0.000000, V diff=0.000000$'
    works trace -m $golden $short --no-eos-stop --blocks 1
    check "one block of two runs" lacks '^block 1 '
    works trace -m $golden $short --no-eos-stop --blocks 2
    check "two blocks run" prints '^block 1: done, mask residual 0'
    works trace -m $golden $short --skip-layer-k 0
    check "TokenSkip off is said" prints 'TokenSkip is off'
    works trace -m $golden $short --cache none
    works trace -m $golden $short --cache prefix
    works trace -m $golden $short --skip-layer-k 99 --notebook
    check "K beyond the layers skips nobody" prints 'no states are compared'
    works trace -m $golden --prompt-ids 5,70,7,8 --gen-length 8 --block-length 8 --notebook
    check "a masked prompt position is a block of its own" prints '^block: 1 positions from 1 to 1$'
}

# ---- JSON -----------------------------------------------------------------------------------------------------------

test_json() {
    works trace -m $golden $short $seed --json
    check "it is JSON" is_json
    check "exact steps pass" prints '"step0":{"logits_diff":0,"pass":true'
    check "the first hit is in it" prints '"first_stable_masked":{"block":0,"step":2,'
    check "no shadow unless asked" prints '"shadow":null,"first_stable_masked"'
    works trace -m $golden $short $seed --json --shadow
    check "with shadow it is JSON" is_json
    check "errors by age" prints '"by_age":\[{"age":0,'
    check "errors by layer" prints '"by_layer":{"active":\[0,0,'
    # In the first step after a block's start everything runs: the shadow agrees with it.
    check "nothing skipped, nothing flipped" \
        prints '"step":1,[^{]*"shadow":{"masked":7,"flips":0,"kl_mean":0,"kl_max":0,'
    works trace -m $golden $short --json --skip-refresh --no-eos-stop --shadow --skip-threshold 0.5 --skip-outlier -1
    check "skip_refresh: JSON" is_json
}

# Blocks that start without a refresh, and rows beside the block. A token is skipped where its mean cosine is above the
# threshold: at 1 nobody is, and every step is its full pass.
test_rarer_refreshes() {
    rarer="$short --gen-length 32 --no-eos-stop --no-threshold --refresh-every 3 --refresh-rows 5"
    works trace -m $golden $rarer $seed --notebook
    check "step 0 and threshold 1.0 are exact" [ "$(grep -c 'nothing differs, as it must be: PASS' "$out")" -eq 2 ]
    works trace -m $golden $rarer $seed --keep-masks --shadow --json
    check "it is JSON" is_json
    check "the options are in it" prints '"refresh_every":3,"refresh_rows":5'
    check "32 passes, two of them refreshes: 30 steps have a full pass beside them" prints '"shadow":{"steps":30,'
    # masked tokens are 8 + 7 + ... + 1 in a block, and 28 after its refresh
    works trace -m $golden $rarer --skip-masked --skip-threshold 1 --shadow --json
    check "nobody skipped, nothing different" \
        prints '"shadow":{"steps":30,"masked":128,"flips":0,"kl_mean":0,"kl_max":0,'
    works trace -m $golden $rarer --skip-masked --skip-threshold 1 --skip-refresh --shadow --json
    check "nor with --skip-refresh" prints '"shadow":{"steps":32,"masked":144,"flips":0,"kl_mean":0,"kl_max":0,'
}

# ---- The dump -------------------------------------------------------------------------------------------------------

tensors() { "$tokenskip" inspect "$1"; }

test_dump() {
    works trace -m $golden $short --dump "$work/all.safetensors"
    check "its values fit together: $("$programs/dump_check" "$work/all.safetensors" 6 4 | head -n 3)" \
        "$programs/dump_check" "$work/all.safetensors" 6 4 > /dev/null
    tensors "$work/all.safetensors" > "$out"
    for line in 'pass0.embedding.output  *F32  *\[20, 48\]' 'pass0.logits.output  *F32  *\[20, 72\]' \
        'pass1.layer_5.input  *F32  *\[8, 48\]' 'pass1.layer_5.output  *F32  *\[8, 48\]' \
        'pass1.layer_0_rope.q  *F32  *\[8, 6, 8\]' 'pass1.layer_0_rope.k  *F32  *\[8, 2, 8\]' \
        'pass1.kv_3.k  *F32  *\[2, 20, 8\]' 'pass1.kv_3.v  *F32  *\[2, 20, 8\]' \
        'pass1.layer_2_ffn_out.input  *F32  *\[8, 40\]' 'pass1.final_norm.output  *F32  *\[8, 48\]' \
        'skip.pass1.layer_0.output  *F32'; do
        check "dump has $line" prints "^$line"
    done
    works trace -m $golden $short --dump "$work/some.safetensors" --dump-pattern 'pass*.layer_0_rope.?' --passes 1..2
    tensors "$work/some.safetensors" > "$out"
    # two values and four small tensors of each pass, of two generations; the index
    check "patterns and passes limit it" [ "$(grep -c ' F32 ' "$out")" -eq 4 ]
    check "what tells of the values stays" prints '^22 tensors'
    check "to those asked for" prints '^pass2.layer_0_rope.k '
    works trace -m $golden $short $seed --dump "$work/skip.safetensors" --dump-pattern 'skip.pass*.layer_5.output'
    tensors "$work/skip.safetensors" > "$out"
    check "a pass that skips nobody has all rows" prints '^skip.pass1.layer_5.output  *F32  *\[8, 48\]'
    check "one that skips some has the rest" prints '^skip.pass2.layer_5.output  *F32  *\[1, 48\]'
    works trace -m $golden $short --dump "$work/layers.safetensors" --layers 2..3 --passes 1
    tensors "$work/layers.safetensors" > "$out"
    check "layers limit it" [ "$(grep -c '^pass1.layer_[23]_q_proj.output' "$out")" -eq 2 ]
    check "to themselves" lacks 'layer_[0145]'
    check "and what has no layer" prints '^pass1.logits.output'
    check "who ran is told of these layers" prints '^pass1.ran  *U8  *\[2, 8\]'
    works trace -m $golden $short --skip-layer-k 0 --dump "$work/off.safetensors"
    tensors "$work/off.safetensors" > "$out"
    check "TokenSkip off: its passes are not there" lacks 'skip\.'
}

# How large it can become is said first, and is never too little; by the schedule of the plain dual cache it is exact.
dump_said() { # dump_said OPTIONS...: $most and $size of a dump, in MB
    on_terminal -- "$tokenskip" trace -m examples/demo-model -p "41+1" --gen-length 64 "$@" --dump "$work/sized"
    most=$(sed -n 's/.*: at most \([0-9]*\) MB of values.*/\1/p' "$out")
    size=$(($(wc -c < "$work/sized") / 1000000))
    check "'$*': at most ${most:-nothing} MB, and there are $size" [ "${most:-0}" -ge "$size" ]
}

test_dump_size() {
    has_terminal test_dump_size || return
    dump_said
    dump_said --no-threshold --steps 8 --skip-rule off --no-eos-stop
    check "by the schedule it is near ($most, $size)" [ $((20 * most)) -le $((21 * size + 20)) ]
    dump_said --no-threshold --steps 8 --skip-rule off --no-eos-stop --passes 2..5 --layers 3..4
    check "also of some passes and layers ($most, $size)" [ $((20 * most)) -le $((21 * size + 20)) ]
    dump_said --no-threshold --steps 8 --skip-rule off --no-eos-stop --dump-pattern 'pass*.l*'
    check "and by a pattern ($most, $size)" [ $((20 * most)) -le $((21 * size + 20)) ]
    dump_said --no-threshold --rows-ahead 1
    dump_said --cache none --no-threshold --steps 4
    dump_said --cache prefix
}

# The ten lines of docs/dump.md, where there is NumPy.
test_dump_lines() {
    for python in python3 /usr/bin/python3 none; do "$python" -c 'import numpy' 2> /dev/null && break; done
    if [ "$python" = none ]; then
        echo "the lines of docs/dump.md: skipped, no Python with NumPy"
        return
    fi
    works trace -m $golden $short --no-eos-stop --no-threshold --dump "$work/dump.safetensors"
    awk '/^```python$/ { inside = 1; next } /^```$/ { inside = 0 } inside' docs/dump.md > "$work/load.py"
    check "there are ten lines" [ "$(awk '/^$/ { exit } { n++ } END { print n }' "$work/load.py")" -eq 10 ]
    (cd "$work" && "$python" load.py) > "$out" 2> "$err"
    rc=$?
    check "they run" [ "$rc" -eq 0 ]
    check "and print what the page says they do" prints '^pass 3: layer 2, rows \[[0-9 ]*\], ([0-9]*, 48)$'
}

# Without NumPy (-S: without anything that was installed) the Python checks say so.
test_without_numpy() {
    if ! command -v python3 > /dev/null; then
        echo "checks without NumPy: skipped, no Python"
        return
    fi
    for script in reference.py check_dump.py; do
        python3 -E -S tests/golden/$script --check > "$out" 2> "$err"
        rc=$?
        check "$script without NumPy fails" [ "$rc" -eq 1 ]
        check "$script without NumPy says what it needs" says "^$script: .*NumPy.*python3-numpy"
        check "in one line" [ "$(wc -l < "$err")" -eq 1 ]
    done
}

# The dump's values are those of the NumPy reference, pass by pass, where there is NumPy.
test_reference() {
    for python in python3 /usr/bin/python3 none; do "$python" -c 'import numpy' 2> /dev/null && break; done
    if [ "$python" = none ]; then
        echo "dump against the reference: skipped, no Python with NumPy"
        return
    fi
    "$python" tests/golden/check_dump.py --program "$tokenskip" \
        "mha-f32 none schedule" "odd-f16 prefix threshold" "gqa-bf16 dual factor" "eos dual" \
        "skip mha-f32 schedule" "skip gqa-bf16 masked exit" "skip odd-f16 masked reuse" "skip everything" \
        "refresh gqa-bf16 masked" "rows, every gqa-bf16 threshold" "rows skip exit" > "$out" 2> "$err"
    rc=$?
    check "every value of eleven generations is the reference's: $(head -n 3 "$out")" [ "$rc" -eq 0 ]
}

# The generation is the one that `generate` makes.
test_same_tokens() {
    for options in "" "$seed" "--cache none" "--no-threshold --temperature 0.7 --seed 3" \
        "$seed --no-threshold --refresh-every 2 --refresh-rows 3"; do
        run generate -m $golden $short $options --pad --json
        tokens=$(sed 's/.*"tokens":\[\([^]]*\)\].*/\1/' "$out")
        run trace -m $golden $short $options --json --dump "$work/again.safetensors" --html "$work/again.html"
        check "trace $options generates the same" grep -q "\"canvas\":\[5,6,7,8,$tokens\]" "$out"
    done
}

# ---- Bad input ------------------------------------------------------------------------------------------------------

test_refusals() {
    mkdir "$work/empty"
    refuses 2 'needs --dump' trace -m $golden $short --passes 1
    refuses 2 'needs --dump' trace -m $golden $short --dump-pattern '*'
    refuses 2 'needs --dump' trace -m $golden $short --layers 1
    refuses 2 'layers takes A..B' trace -m $golden $short --dump "$work/empty/x" --layers x
    refuses 1 'the model has the layers 0 to 5' trace -m $golden $short --dump "$work/empty/x" --layers 6..
    refuses 2 'takes A..B' trace -m $golden $short --dump "$work/empty/x" --passes 3..1
    refuses 2 'takes A..B' trace -m $golden $short --dump "$work/empty/x" --passes ..
    refuses 2 'takes a whole number from 1 to' trace -m $golden $short --blocks 0
    refuses 2 'shadow needs TokenSkip' trace -m $golden $short --shadow --cache none
    refuses 1 'No such file' trace -m $golden $short --dump "$work/nowhere/x"
    refuses 1 'No such file' trace -m $golden $short --html "$work/nowhere/x"
    refuses 2 'one file' trace -m $golden $short --html "$work/empty/x" --dump "$work/empty/x"
    refuses 1 'not a regular file' trace -m $golden $short --dump /dev/full
    refuses 1 'not a regular file' trace -m $golden $short --html /dev/full
    refuses 1 'nothing to dump' trace -m $golden $short --dump "$work/empty/x" --dump-pattern 'nothing*'
    refuses 1 'max_sequence_length' \
        trace -m $golden --prompt-ids 5 --gen-length 512 --dump "$work/empty/x" --html "$work/empty/y"
    refuses 1 'outside the vocabulary' trace -m $golden --prompt-ids 5000 --dump "$work/empty/x" --html "$work/empty/y"
    check "nothing is left behind" nothing_in "$work/empty"
}

# A file system that fills up. Only root can make one.
test_full_disk() {
    mkdir "$work/disk"
    mount -t tmpfs -o size=256k tmpfs "$work/disk" 2> /dev/null || { echo "full disk: skipped, it takes root"; return; }
    refuses 1 'No space left' trace -m $golden $short --dump "$work/disk/x.safetensors"
    check "no dump is left behind" nothing_in "$work/disk"
    head -c 200000 /dev/zero > "$work/disk/ballast"
    refuses 1 'No space left' trace -m $golden $short --html "$work/disk/x.html"
    check "no page is left behind" [ "$(ls -A "$work/disk")" = ballast ]
    umount "$work/disk"
}

# The same without root: a limit on the size of files.
test_no_room() {
    mkdir "$work/room"
    for file in dump html; do
        run_with_room 40 trace -m $golden $short --$file "$work/room/x"
        check "--$file without room fails" [ "$rc" -eq 1 ]
        check "--$file without room: one line" one_line
        check "--$file without room names the file" says "room/x'"
        check "--$file without room prints nothing" [ ! -s "$out" ]
        check "--$file without room leaves nothing behind" nothing_in "$work/room"
    done
    echo old > "$work/room/x"
    run_with_room 40 trace -m $golden $short --dump "$work/room/x"
    check "a file that was there stays" [ "$(cat "$work/room/x")" = old ]
    check "alone" [ "$(ls -A "$work/room")" = x ]
    run_with_room 4 trace -m $golden $short --json
    check "--json without room fails" [ "$rc" -eq 1 ]
    check "--json without room: one line" one_line
    check "--json without room says where" says 'standard output'
    head -n 1 examples/demo-model/eval.jsonl > "$work/question.jsonl"
    run_with_room 4 sweep -m examples/demo-model --gen-length 32 --data "$work/question.jsonl" --svg "$work/room/y"
    check "sweep without room fails" [ "$rc" -eq 1 ]
    check "sweep without room leaves nothing behind" [ "$(ls -A "$work/room")" = x ]
}

# Ctrl-C in the middle: one line, and neither file.
test_interrupt() {
    has_terminal test_interrupt || return
    mkdir "$work/cut"
    long="--gen-length 240 --block-length 240 --no-threshold --no-eos-stop"
    on_terminal see:"pass 3, " kill:15 -- \
        "$tokenskip" trace -m $golden --prompt-ids 5 $long --shadow --visual --dump "$work/cut/x" --html "$work/cut/y"
    check "an interrupted trace exits with 143" [ "$rc" -eq 143 ]
    check "it says what is incomplete" prints 'tokenskip: interrupted: the trace is incomplete'
    check "it leaves nothing" nothing_in "$work/cut"
    on_terminal see:"pass 3, " type:"$ctrl_c" -- "$tokenskip" trace -m $golden --prompt-ids 5 $long --visual --json
    check "Ctrl-C: 130" [ "$rc" -eq 130 ]
    check "no JSON" lacks '{'
    awk 'BEGIN { for (i = 0; i < 64; i++) print "{\"prompt\": \"a b c\", \"answer\": \"x\"}" }' > "$work/many.jsonl"
    many="-m examples/demo-model --data $work/many.jsonl --gen-length 256 --no-threshold"
    on_terminal see:"settings, 0 questions" type:"$ctrl_c" -- \
        "$tokenskip" calibrate $many --max-error 0.01 --json --save "$work/cut/z"
    check "calibrate: 130" [ "$rc" -eq 130 ]
    check "it says what is incomplete" prints 'tokenskip: interrupted after [0-9]* of 64 questions: the search is incom'
    check "it names no options" lacks 'skip-rule'
    check "it leaves nothing" nothing_in "$work/cut"
    on_terminal see:"settings, 0 questions" kill:15 -- "$tokenskip" sweep $many --svg "$work/cut/z"
    check "sweep: 143" [ "$rc" -eq 143 ]
    check "it says what is incomplete" prints 'tokenskip: interrupted after [0-9]* of 64 questions: the search is incom'
    check "it leaves nothing" nothing_in "$work/cut"
    on_terminal see:"run 1 of" type:"$ctrl_c" -- \
        "$tokenskip" bench -m examples/demo-model --gen 256 --repeat 100000 --active 4,8
    check "bench: 130" [ "$rc" -eq 130 ]
    check "it says what is incomplete" prints 'tokenskip: interrupted: the measurements are incomplete'
}

test_searches() {
    : > "$work/none.jsonl"
    echo '{"prompt": "x"}' > "$work/no_answer.jsonl"
    for command in "calibrate --max-error 0.01" "sweep --svg $work/x.svg"; do
        refuses 1 'no questions in it' $command -m $golden --data "$work/none.jsonl"
        refuses 1 'No such file' $command -m $golden --data "$work/nowhere.jsonl"
        refuses 2 'needs -m DIR' $command --data "$work/none.jsonl"
        refuses 2 'needs --data' $command -m $golden
        refuses 2 'takes a whole number from 1 to' $command -m $golden --data "$work/none.jsonl" --limit 0
        refuses 2 'cache dual' $command -m $golden --data "$work/none.jsonl" --cache none
        refuses 2 '--minutes takes a number above 0' $command -m $golden --data "$work/none.jsonl" --minutes 0
    done
    refuses 2 'needs --svg' sweep -m $golden --data "$work/none.jsonl"
    cp "$work/none.jsonl" "$work/data.jsonl"
    refuses 2 '--svg and --data name one file' sweep -m $golden --data "$work/data.jsonl" --svg "$work/./data.jsonl"
    refuses 2 '--save and --data name one file' calibrate -m $golden --data "$work/data.jsonl" --max-error 0 \
        --save "$work/data.jsonl"
    refuses 2 '--save and --svg name one file' calibrate -m $golden --data "$work/data.jsonl" --max-error 0 \
        --save "$work/new" --svg "$work/new"
    check "... and the data stay" cmp -s "$work/none.jsonl" "$work/data.jsonl"
    models=tests/golden/models
    refuses 2 'which this model has only where' trace -m $models/dream-f32 --prompt-ids 1,2,3 --shadow
    refuses 2 'a model that attends by blocks has not' trace -m $models/sdar-bf16 --prompt-ids 1,2,3 --shadow
    refuses 2 'needs --max-error' calibrate -m $golden --data "$work/none.jsonl"
    refuses 2 'number from 0 to 1' calibrate -m $golden --data "$work/none.jsonl" --max-error 2
    refuses 1 'No such file' sweep -m $golden --data "$work/no_answer.jsonl" --svg "$work/nowhere/x.svg"
    refuses 1 'No such file' calibrate -m $golden --data "$work/no_answer.jsonl" --max-error 0 --save "$work/nowhere/x"
    check "no picture is left behind" [ ! -e "$work/x.svg" ]
}

# What calibrate says of its settings is what `eval --against` counts.
member() { grep -o "\"$1\":[0-9.e-]*" | head -n 1 | cut -d : -f 2; }
tried() { # tried OPTIONS: what the search says of them
    sed 's/.*"tried":\[//' "$work/found" | grep -o "{\"options\":\"$1\"[^}]*}"
}

test_calibrate() {
    awk 'NR % 60 == 1' examples/demo-model/eval.jsonl > "$work/eight.jsonl"
    demo="-m examples/demo-model --gen-length 64 --threads 1"
    works calibrate $demo --data "$work/eight.jsonl" --max-error 0 --minutes 30 --no-threshold --steps 32 --json \
        --save "$work/saved" --svg "$work/calibrate.svg"
    check "it is JSON" is_json
    cp "$out" "$work/found"
    check "all questions are answered" grep -q '"questions":8,"out_of_time":false' "$work/found"
    found=$(sed 's/{"options":"\([^"]*\)".*/\1/' "$work/found")
    error=$(member error < "$work/found")
    check "its error is within the budget ($error)" [ "$error" = 0 ]
    check "the rule of commitment was given and stays" [ "${found#*threshold}" = "$found" ]
    check "the plain dual cache is told of" grep -q '"plain":{"options":"plain dual cache","n":8,' "$work/found"
    check "the last ones answered everything" [ "$(grep -o '"n":8' "$work/found" | wc -l)" -ge 7 ]
    check "others fewer" grep -q '"n":4' "$work/found"
    for options in "$found" "--skip-rule rows --refresh full" "--skip-rule off --refresh full"; do
        n=$(tried "$options" | member n)
        awk -v n="$n" 'n == 8 || NR % 2 == 1' "$work/eight.jsonl" > "$work/asked.jsonl"
        run eval $demo --data "$work/asked.jsonl" --no-threshold --steps 32 $options \
            --against "--skip-rule off --refresh full --refresh-every 1 --window 0" --json
        for field in gained lost; do
            check "'$options' has as many $field as eval counts" \
                [ "$(tried "$options" | member $field)" = "$(sed 's/.*"paired"://' "$out" | member $field)" ]
        done
        check "and as many passes" [ "$(tried "$options" | member mean_nfe)" = "$(member mean_nfe < "$out")" ]
        check "and rows" [ "$(tried "$options" | member mean_rows)" = "$(member mean_rows < "$out")" ]
    done
    check "nothing is lost by the plain one" [ "$(tried "--skip-rule off --refresh full" | member changed)" = 0 ]
    check "what is saved is what is found" [ "$(tail -n 1 "$work/saved")" = "$found" ]
    check "under a comment" [ "$(head -c 21 "$work/saved")" = "# tokenskip calibrate" ]
    run generate $demo -p hi --no-threshold --steps 32 $found --json
    sed 's/"timing".*//' "$out" > "$work/typed"
    run generate $demo -p hi --no-threshold --steps 32 --settings "$work/saved" --json
    sed 's/"timing".*//' "$out" > "$work/read"
    check "--settings reads it" cmp -s "$work/typed" "$work/read"
    picture_is_good "$work/calibrate.svg"
    # without answers, changed ones are errors; a rule that is given stays
    sed 's/, "answer": "[^"]*"//' "$work/eight.jsonl" | head -n 4 > "$work/prompts.jsonl"
    works calibrate $demo --data "$work/prompts.jsonl" --max-error 0 --skip-rule rows --refresh full --minutes 0.001
    check "the first line can be pasted" prints '^--[a-z-]* [0-9.]*'
    check "of changed answers it is told" prints '^ time   an answer   other  passes'
    check "everybody has a share of the first questions" \
        prints '^4 questions; [0-9]* settings tried, these are the last'
    check "the rule that was given is not tried again" lacks 'states\|near'
}

# Axes begin where the data does, points are all there, and no number lies on another.
picture_is_good() {
    check "the picture is whole" [ "$(tail -n 1 "$1")" = '</svg>' ]
    check "it asks for nothing from outside" [ "$(grep -c 'href\|url(\|@import' "$1")" -eq 0 ]
    grep -o '<circle [^>]*data-time=[^>]*' "$1" | sed 's/[a-z-]*="\([^"]*\)"/\1/g' > "$work/points"
    check "numbers keep off each other" awk '
        { x[NR] = $2; y[NR] = $3 }
        END {
            for (i = 1; i <= NR; i++)
                for (j = 1; j < i; j++) if ((x[i] - x[j]) ^ 2 + (y[i] - y[j]) ^ 2 < 18 ^ 2) bad++
            exit bad > 0 || NR < 2
        }' "$work/points"
    grep 'text-anchor="middle">[0-9.]*</text>' "$1" | grep 'class="tick"' |
        sed 's/.*>\([0-9.]*\)<.*/\1/' | sort -n > "$work/ticks"
    check "the axis begins where the data does: $(tr '\n' ' ' < "$work/ticks")" awk '
        FNR == NR { tick[n++] = $1; next }
        { if (!seen++ || $6 < least) least = $6; if ($6 > most) most = $6 }
        END {
            step = tick[1] - tick[0]
            exit !(tick[0] <= least && least < tick[0] + 2 * step && most <= tick[n - 1])
        }
        ' "$work/ticks" "$work/points"
}

test_sweep() {
    awk 'NR % 80 == 1' examples/demo-model/eval.jsonl > "$work/six.jsonl"
    sweep="sweep -m examples/demo-model --data $work/six.jsonl --svg $work/sweep.svg --gen-length 32 --no-threshold"
    works $sweep --json
    check "it is JSON" is_json
    for rule in off states rows; do
        check "rule $rule is tried" prints "\"options\":\"--skip-rule $rule"
    done
    picture_is_good "$work/sweep.svg"
    works $sweep --skip-rule rows --refresh near
    check "a table on the terminal" prints '^ 1.00 .* plain dual cache$'
    works $sweep --limit 1
    check "one question is enough" prints '^1 questions; '
}

# ---- The page -------------------------------------------------------------------------------------------------------

test_page() {
    works trace -m $golden $short $seed --html "$work/page.html"
    cp "$work/page.html" "$out"
    check "the page is whole" [ "$(tail -n 1 "$out")" = '</html>' ]
    check "its data are in it" prints '"conclusion":"masked tokens were judged stable'
    check "it asks for nothing from outside" lacks 'src=\|https\{0,1\}://[^w]'
    check "only its own script ends" [ "$(grep -c '</script>' "$out")" -eq 2 ]
}

test_help
test_sections
test_parting
test_versus
test_reasons
test_seed_policy
test_default_policy
test_options
test_json
test_rarer_refreshes
test_dump
test_dump_size
test_dump_lines
test_without_numpy
test_reference
test_same_tokens
test_refusals
test_full_disk
test_no_room
test_interrupt
test_searches
test_calibrate
test_sweep
test_page

echo "test_trace: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
