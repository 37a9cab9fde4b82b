# `eval --against`: two settings on the same questions, counted by hand from what `generate` answers. Run from the
# repository's root.
. tests/shell.sh
demo=examples/demo-model
exec < /dev/null

equal() { [ -n "$1" ] && [ "$1" -eq "$2" ] 2> /dev/null; }
near() { awk -v a="$1" -v b="$2" -v far="${3:-1e-9}" 'BEGIN { d = a - b; exit !(a != "" && d < far && d > -far) }'; }

# The parts of --json, and the first `member NAME` of what is piped in.
given() { sed 's/,"against":.*//' "$out"; }
against() { sed 's/.*,"against":{\(.*\)},"paired":.*/\1/' "$out"; }
paired() { sed 's/.*,"paired"://' "$out"; }
member() { grep -o "\"$1\":\(\[[^]]*\]\|[-0-9.e+]*\)" | head -n 1 | cut -d: -f2; }
# What two runs have in common: all but the times.
counts() { sed 's/^{//; s/}*$//; s/,*"\(tokens_per_second\|[a-z_]*seconds_per_answer\)":[-0-9.e+]*//g'; }

# ---- What is counted ------------------------------------------------------------------------------------------------

# Settings A go on where settings B are cut off: a long answer differs, a short one does not.
a="--gen-length 32 --no-threshold --steps 32"
b="--gen-length 16 --block-length 16 --steps 16"
newton="Who is Newton in physics?"
sorting="Sort these numbers: 9, 3, 7."

last_word() { tr -s ' \n' '\n' < "$out" | grep . | tail -n 1; }
tokens() { sed 's/.*"tokens":\(\[[^]]*\]\).*/\1/' "$out"; }
answers() { # answers NAME OPTIONS...: to both questions: $work/NAME.newton, .sorting, each a line, with .tokens
    name=$1
    shift
    works generate -m $demo "$@" -p "$newton"
    last_word > "$work/$name.newton"
    works generate -m $demo "$@" -p "$newton" --json
    tokens > "$work/$name.newton.tokens"
    works generate -m $demo "$@" -p "$sorting"
    last_word > "$work/$name.sorting"
    works generate -m $demo "$@" -p "$sorting" --json
    tokens > "$work/$name.sorting.tokens"
}
ask() { printf '{"prompt": "%s", "answer": "%s", "kind": "%s"}\n' "$1" "$2" "$3"; }

# Ten questions whose answers are the model's own: six that only A has, one that only B has, two of both, one of none.
test_counts() {
    answers a $a
    answers b $a $b
    check "A and B differ in Newton" [ "$(cat "$work/a.newton")" != "$(cat "$work/b.newton")" ]
    check "and not in sorting" cmp -s "$work/a.sorting.tokens" "$work/b.sorting.tokens"
    {
        for i in 1 2 3 4; do ask "$newton" "$(cat "$work/a.newton")" long; done
        ask "$newton" "$(cat "$work/b.newton")" cut
        ask "$sorting" "$(cat "$work/a.sorting")" short
        ask "$newton" "nothing like it" cut
        ask "$sorting" "$(cat "$work/b.sorting")" short
        for i in 1 2; do ask "$newton" "$(cat "$work/a.newton")" long; done
    } > "$work/ten.jsonl"
    works eval -m $demo --data "$work/ten.jsonl" $a --against "$b" --json
    check "--json" is_json
    check "n" equal "$(paired | member n)" 10
    check "gained" equal "$(paired | member gained)" 6
    check "lost" equal "$(paired | member lost)" 1
    check "identical: the two that are short" equal "$(paired | member identical)" 2
    check "the difference" near "$(paired | member difference)" 0.5
    # 2 * (1 + 7) of 2^7 ways; Newcombe's method 10 for 2, 6, 1, 1 and Wilson's for 8 and 3 of 10, in Python
    check "p" near "$(paired | member p)" 0.125
    check "the interval's lower end" near "$(paired | member interval | tr -d '[]' | cut -d, -f1)" 0.021517279991427885
    check "the interval's upper end" near "$(paired | member interval | tr -d '[]' | cut -d, -f2)" 0.7636411836951833
    check "A's accuracy" near "$(given | member accuracy)" 0.8
    check "B's accuracy" near "$(against | member accuracy)" 0.3
    check "A's interval" near "$(given | member accuracy_interval | tr -d '[]' | cut -d, -f1)" 0.4901624715366417
    check "B's interval" near "$(against | member accuracy_interval | tr -d '[]' | cut -d, -f2)" 0.6032218525388546
    kinds='{"long":{"n":6,"gained":6,"lost":0},"cut":{"n":2,"gained":0,"lost":1},"short":{"n":2,"gained":0,"lost":0}}'
    check "by kind" [ "$(paired | grep -c -F "\"by_kind\":$kinds")" -eq 1 ]
    check "A by kind" [ "$(given | grep -c -F '"by_kind":{"long":1,"cut":0,"short":1}')" -eq 1 ]
    check "B by kind" [ "$(against | grep -c -F '"by_kind":{"long":0,"cut":0.5,"short":1}')" -eq 1 ]
    works eval -m $demo --data "$work/ten.jsonl" $a --against "$b"
    check "the table's accuracies" prints '^accuracy  *80\.0 %  *30\.0 %$'
    check "those that are right" prints '^right  *8  *3$'
    check "gained and lost" prints '^Of 10 questions 6 gained, 1 lost: +50\.0 points, .* +2\.2 to +76\.4$'
    check "p in the table" prints "McNemar's exact test: p = 0.125$"
    check "identical answers in the table" prints '^2 of 10 answers identical'
    check "a kind in the table" prints '^cut  *2  *0.0 %  *50.0 %  *0  *1$'
    # the other way round
    works eval -m $demo --data "$work/ten.jsonl" $a $b --against "--gen-length 32 --block-length 32 --steps 32" --json
    check "swapped: gained" equal "$(paired | member gained)" 1
    check "swapped: lost" equal "$(paired | member lost)" 6
    check "swapped: the difference" near "$(paired | member difference)" -0.5
}

# Nothing to choose between.
test_same() {
    for settings in "" "--skip-layer-k 3"; do
        works eval -m $demo --data "$work/ten.jsonl" $a --skip-layer-k 3 --against "$settings" --json
        check "the same: nothing gained" equal "$(paired | member gained)" 0
        check "the same: nothing lost" equal "$(paired | member lost)" 0
        check "the same: all identical" equal "$(paired | member identical)" 10
        check "the same: p" near "$(paired | member p)" 1
        check "the same: no difference" near "$(paired | member difference)" 0
        check "the same counts" [ "$(given | counts)" = "$(against | counts)" ]
    done
}

# ---- What SETTINGS are ----------------------------------------------------------------------------------------------

# Each side is what eval says of it alone: same_as GIVEN SETTINGS ALONE; the last: how the second stands alone.
same_as() {
    works eval -m $demo --data "$work/three.jsonl" $1 --against "$2" --json
    given | counts > "$work/first"
    against | counts > "$work/second"
    works eval -m $demo --data "$work/three.jsonl" $1 --json
    check "'$1' as alone" [ "$(counts < "$out")" = "$(cat "$work/first")" ]
    eval "works eval -m $demo --data \"$work/three.jsonl\" $3 --json"
    check "'$2' over '$1' is '$3'" [ "$(counts < "$out")" = "$(cat "$work/second")" ]
}

test_settings() {
    awk 'NR % 160 == 1' $demo/eval.jsonl > "$work/three.jsonl"
    fixed="--no-threshold --steps 16 --gen-length 32"
    same_as "$fixed" "--skip-layer-k 0" "$fixed --skip-layer-k 0"
    check "they differ" [ "$(sed 's/.*mean_rows//' "$work/first")" != "$(sed 's/.*mean_rows//' "$work/second")" ]
    same_as "--cache prefix $fixed" "--cache=none" "$fixed --cache none"
    same_as "$fixed" "--cache prefix" "$fixed --cache prefix"
    # a transfer rule overrules the other
    same_as "$fixed" "--threshold 0.5" "--threshold 0.5 --gen-length 32"
    same_as "$fixed" "--frechet 0.1" "--frechet 0.1 --gen-length 32"
    same_as "--threshold 0.99 --local-leap 0.5" "--local-radius 1" "--threshold 0.99 --local-leap 0.5 --local-radius 1"
    same_as "--local-leap 0.5" "--entropy-bound 0.3" "--entropy-bound 0.3"
    same_as "--factor 1.5 --gen-length 32" " --no-threshold	--steps  16 " "$fixed"
    same_as "$fixed" "--temperature 0.7 --seed 3" "$fixed --temperature 0.7 --seed 3"
    # a preset takes the place of the one before, and is none where TokenSkip is off; what else was given stays
    same_as "$fixed --skip-preset fast" "--skip-preset default" "$fixed"
    same_as "$fixed --skip-preset fast" "--skip-preset seed" "$fixed --skip-preset seed"
    same_as "$fixed --skip-preset fast" "--skip-layer-k 0" "$fixed --skip-layer-k 0"
    same_as "$fixed --skip-preset fast" "--cache none" "$fixed --cache none"
    same_as "$fixed --skip-preset fast --skip-masked" "--skip-preset default" "$fixed --skip-masked"
    same_as "$fixed --skip-preset fast" "--no-skip-refresh" "$fixed --skip-preset fast --no-skip-refresh"
    # quotes, for what has blanks in it
    system="--system 'Be \"brief\" and kind.' --skip-layer-k 0"
    same_as "$fixed" "$system" "$fixed $system"
    same_as "$fixed" '--system="You are Tom'"'"'s."' "$fixed --system \"You are Tom's.\""
}

test_refusals() {
    eval="eval -m $demo --data $work/ten.jsonl"
    over="^tokenskip: --against: "
    refuses 2 "$over'--device' is no option of a generation" $eval --against '--device cpu'
    refuses 2 "$over'-m' is no option of a generation" $eval --against '-m x'
    refuses 2 "$over'--data=x' is no option of a generation" $eval --against '--data=x'
    refuses 2 "$over'--json' is no option of a generation" $eval --against --json
    refuses 2 "$over'--threads' is no option of a generation" $eval --against '--skip-layer-k 0 --threads 1'
    refuses 2 "$over'--against' is no option of a generation" $eval --against '--against x'
    refuses 2 "${over}eval has no option '--frobnicate'" $eval --against '--frobnicate'
    refuses 2 "${over}eval has no option '--help'" $eval --against --help
    refuses 2 "${over}eval takes no argument 'word'" $eval --against '--no-threshold word'
    refuses 2 "$over--threshold takes a number from 0 to 1, not '2'" $eval --against '--threshold 2'
    refuses 2 "$over--gen-length needs a value: N" $eval --against '--skip-layer-k 0 --gen-length'
    refuses 2 "$over--raw takes no value" $eval --against '--raw=1'
    refuses 2 "${over}only one of --threshold and --factor" $eval --against '--threshold 0.5 --factor 1'
    refuses 2 "$over--steps 3 is not a multiple of the number of blocks, 2" $eval --gen-length 64 --against '--steps 3'
    refuses 2 "$over--skip-layer-k 3 works with --cache dual only" $eval --skip-layer-k 3 --against '--cache none'
    refuses 2 "$over--skip-refresh needs TokenSkip" $eval --skip-preset seed --skip-refresh --against '--skip-layer-k 0'
    refuses 2 "$over--system needs the chat template" $eval --raw --against "--system 'Be brief.'"
    refuses 2 "$over--skip-preset takes default, fast, careful or seed, not 'x'" $eval --against '--skip-preset x'
    refuses 2 "${over}a quote has no end" $eval --against "--system 'Be brief."
    refuses 2 'against needs a value' $eval --against
    refuses 2 "has no option '--against'" sweep -m $demo --data "$work/ten.jsonl" --svg "$work/x.svg" --against ''
    # what only the model can say, of either side
    refuses 1 "${over}.*ten.jsonl, line 1: .*512" $eval --against '--gen-length 512'
    refuses 1 "^tokenskip: [^-].*ten.jsonl, line 1: .*512" $eval --gen-length 512 --against '--gen-length 32'
}

# ---- Two models -----------------------------------------------------------------------------------------------------

divergence() { sed 's/.*,"divergence"://' "$out"; }
below() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && a + 0 < b) }'; }

test_models() {
    eval="eval -m $demo --data $work/ten.jsonl --threads 1 --json"
    works $eval --against-model $demo
    check "a model beside itself: JSON" is_json
    check "its logits are the same" [ "$(divergence | member mean_kl)" = 0 ]
    check "to the last bit" [ "$(divergence | member mean_logit_difference)" = 0 ]
    check "of all predictions" [ "$(divergence | member same_prediction)" = 1 ]
    check "of ten prompts" equal "$(divergence | member prompts)" 10
    check "and all answers" equal "$(paired | member identical)" 10
    check "both have as many right" [ "$(given | member accuracy)" = "$(against | member accuracy)" ]
    for weights in q8 q4; do
        works $eval --weights $weights --against-model $demo
        cp "$out" "$work/$weights.json"
        check "$weights: other logits" below 0 "$(divergence | member mean_kl)"
        works quantize $demo "$work/$weights" --weights $weights
        works eval -m "$work/$weights" --data "$work/ten.jsonl" --threads 1 --json --against-model $demo
        check "$weights: those of a folder of such weights" [ "$(divergence)" = \
            "$(sed 's/.*,"divergence"://' "$work/$weights.json")" ]
    done
    eight=$(sed 's/.*,"divergence"://' "$work/q8.json" | member mean_kl)
    four=$(sed 's/.*,"divergence"://' "$work/q4.json" | member mean_kl)
    check "fewer bits, further away: $eight, $four" below "$eight" "$four"
    works $eval --against-model "$work/q4" --against "--cache none"
    check "other settings of the other model" equal "$(against | member mean_refreshes | cut -d. -f1)" \
        "$(against | member mean_nfe | cut -d. -f1)"
    works eval -m $demo --data "$work/ten.jsonl" --weights q4 --against-model $demo
    check "the table says it, too" prints '^mean KL divergence 0[.][0-9]* nats'
    refuses 1 "nowhere" $eval --against-model "$work/nowhere"
    refuses 1 "vocabulary of 64 and mask 63" $eval --against-model tests/golden/models/mha-f32
    refuses 2 "needs a value" $eval --against-model
    refuses 2 "no option of a generation" $eval --against "--against-model x"
}

# ---- Signals --------------------------------------------------------------------------------------------------------

test_interrupts() {
    has_terminal test_interrupts || return
    awk 'BEGIN { for (i = 0; i < 500; i++) print "{\"prompt\": \"a\", \"answer\": \"b\"}" }' > "$work/many.jsonl"
    for how in "type:$ctrl_c 130" 'kill:15 143'; do
        status=${how##* }
        on_terminal see:"/500, " "${how% *}" -- sh -c 'said=$0; exec "$@" > "$said"' "$work/said" \
            "$tokenskip" eval -m $demo --data "$work/many.jsonl" --against "--cache none"
        check "interrupted: $status" [ "$rc" -eq "$status" ]
        check "no figures" [ ! -s "$work/said" ]
        check "what is incomplete, of both" prints 'tokenskip: interrupted after [0-9]* of 500 questions: '
    done
}

test_counts
test_same
test_settings
test_refusals
test_models
test_interrupts
echo "test_eval: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
