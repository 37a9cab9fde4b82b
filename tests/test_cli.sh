# The command as a user runs it: exit statuses, what goes to stdout and to stderr, and JSON that adds up.
# Run from the repository's root.
. tests/shell.sh
golden=tests/golden/models/mha-f32
demo=examples/demo-model

# ---- JSON, as far as a shell can read it ----------------------------------------------------------------------------

number() { sed -n "s/.*[{,]\"$1\":\\(-*[0-9][0-9.e+-]*\\).*/\\1/p" "$out"; }   # the last member of that name
top_number() { sed 's/"blocks":.*//' "$out" | sed -n "s/.*[{,]\"$1\":\\(-*[0-9][0-9]*\\).*/\\1/p"; }
list() { sed -n "s/.*\"$1\":\\[\\([^]]*\\)\\].*/\\1/p" "$out"; }
list_length() { list "$1" | awk -F, '{ n = NF } END { print n + 0 }'; }
list_sum() { list "$1" | awk -F, '{ for (i = 1; i <= NF; i++) s += $i } END { print s + 0 }'; }
blocks() { sed 's/.*"blocks":\[\([^]]*\)\].*/\1/' "$out"; }
blocks_sum() { blocks | grep -o "\"$1\":[0-9]*" | awk -F: '{ s += $2 } END { print s + 0 }'; }
block_count() { blocks | grep -o '"nfe"' | wc -l; }
equal() { [ -n "$1" ] && [ "$1" -eq "$2" ] 2> /dev/null; }

# ---- Usage ----------------------------------------------------------------------------------------------------------

test_help() {
    for command in "" generate chat tokenize template inspect quantize eval bench batch; do
        works $command --help
        check "help of '$command' has a usage line" prints '^usage: tokenskip'
    done
    works --help
    cp "$out" "$work/overview"
    works help
    check "help is --help" cmp -s "$out" "$work/overview"
    for command in generate chat tokenize template inspect quantize eval bench trace calibrate sweep batch; do
        works $command --help
        cp "$out" "$work/help"
        works help $command
        check "help $command is $command --help" cmp -s "$out" "$work/help"
        works $command -h
        check "so is $command -h" cmp -s "$out" "$work/help"
    done
    refuses 2 "'frobnicate'" help frobnicate
    refuses 2 "one command" help generate chat
    works chat --help
    check "help of chat says what leaves, and how" prints 'Ctrl-D ends it, with exit status 0'
    check "and what Ctrl-C does where" prints 'At the prompt it asks, and once more it ends the$'
    works --help
    check "help has the exit statuses" prints '130 and 143 after SIGINT'
    works --version
    check "version" prints '^tokenskip [0-9]*\.[0-9]*\.[0-9]*\(-dev\)\{0,1\}$'
    refuses 2 'no command'
    refuses 2 "'frobnicate'" frobnicate
}

test_usage() {
    generate="generate -m $golden --prompt-ids 1,2,3"
    refuses 2 "'--frobnicate'" $generate --frobnicate
    refuses 2 "'-x'" $generate -x
    refuses 2 "'--trace'" $generate --trace
    refuses 2 "'--no-gen-length'" $generate --no-gen-length
    refuses 2 'needs a value' $generate --gen-length
    refuses 2 'needs a value' $generate --gen-length --json
    refuses 2 'needs a value' $generate --gen-length --help
    refuses 2 'needs a value' generate -m
    refuses 2 "'-mDIR'" generate -mDIR
    refuses 2 'takes no value' $generate --json=yes
    refuses 2 "'extra'" $generate extra
    refuses 2 'needs -m DIR' generate -p hello
    refuses 2 'only one of --prompt and --prompt-ids' $generate -p hello
    refuses 2 'prompt-ids' $generate --system hello
    refuses 2 'only one of --threshold and --no-threshold' $generate --threshold 0.9 --no-threshold
    refuses 2 'only one of --threshold and --factor' $generate --factor 1 --threshold 0.9
    refuses 2 'only one of --no-threshold and --factor' $generate --no-threshold --factor 1
    refuses 2 'only one of --threshold, --no-threshold and --factor' $generate --no-threshold --factor 1 --threshold 1
    refuses 2 'only one of --frechet and --entropy-bound' $generate --frechet 0.1 --entropy-bound 1
    refuses 2 'only one of --no-threshold and --local-leap' $generate --no-threshold --local-leap 0.7
    refuses 2 '--local-radius needs --local-leap' $generate --local-radius 3
    refuses 2 '--cache dual' $generate --cache none --skip-layer-k 2
    refuses 2 '--cache dual' $generate --skip-layer-k 1 --cache prefix
    refuses 2 'dual|prefix|none' $generate --cache most
    refuses 2 'reuse|exit' $generate --skip-policy reus
    refuses 2 "'nonesuch'" $generate --skip-preset nonesuch
    refuses 2 'whole number' $generate --gen-length 32x
    refuses 2 'whole number' $generate --gen-length ' 32'
    refuses 2 'whole number' $generate --gen-length 32.0
    refuses 2 'whole number' $generate --gen-length 0x20
    refuses 2 'whole number' $generate --gen-length -32
    refuses 2 'whole number' $generate --gen-length 4294967328
    refuses 2 'whole number' $generate --seed -1
    refuses 2 'whole number' $generate --seed 18446744073709551616
    refuses 2 'takes a number' $generate --threshold 0,9
    refuses 2 'takes a number' $generate --threshold 0.9.1
    refuses 2 'takes a number' $generate --threshold ''
    refuses 2 'takes a number' $generate --threshold 0x1
    refuses 2 '1,2,3' generate -m $golden --prompt-ids 1,,2
    refuses 2 '1,2,3' generate -m $golden --prompt-ids 1,2,
    refuses 2 '1,2,3' generate -m $golden --prompt-ids 1,-2
    refuses 2 '1,2,3' generate -m $golden --prompt-ids ''
    refuses 2 'cuda' $generate --device cuda:x
    refuses 2 'auto|f32|bf16' $generate --dtype f16
    refuses 2 '--raw' generate -m $golden -p hello --raw --system hello
    refuses 2 'path' inspect
    refuses 2 'one path' inspect a b
    refuses 2 '--data' eval -m $golden
    refuses 2 '--messages' template -m $golden
    refuses 2 'llada-8b' bench --shape llada-9b
    refuses 2 'only one of' bench --shape tiny -m $golden
}

# A template without a switch for thoughts is not rendered as if it had one.
test_thinking() {
    refuses 1 'has no switch for thinking' generate -m $demo -p hello --no-thinking
    echo '[{"role": "user", "content": "hello"}]' > "$work/messages.json"
    refuses 1 'has no switch for thinking' template -m $demo --messages "$work/messages.json" --thinking
    refuses 2 'raw leaves out' generate -m $demo -p hello --raw --no-thinking
}

# Models that attend by blocks: their cache, their options, what --json counts.
test_blocks() {
    sdar=tests/golden/models/sdar-bf16 fast=tests/golden/models/fast-dllm-bf16 dream=tests/golden/models/dream-f32
    ids='--prompt-ids 5,6,7,8,9,10,11,12,13,14'
    works inspect $sdar --json
    check "inspect names the family" prints '"family":"SDAR"'
    check "... and its block" equal "$(number block_length)" 4
    works generate -m $sdar $ids --gen-length 11 --no-eos-stop --no-threshold --json
    check "by blocks: JSON" is_json
    check "one piece of the prompt's two blocks of four" equal "$(number prompt_passes)" 1
    check "the last of four blocks is not stored" equal "$(number storing_passes)" 3
    check "two tokens are the prompt's, three beyond the answer" equal "$(top_number nfe)" $((1 + 3 + 2 + 4 + 4 + 4))
    check "blocks count their storing passes" equal "$(blocks_sum nfe)" $((3 + 2 + 4 + 4 + 4))
    check "eleven tokens" equal "$(list_length tokens)" 11
    list tokens > "$work/whole"
    works generate -m $sdar $ids --gen-length 11 --no-eos-stop --no-threshold --json --prompt-rows 4
    check "two pieces" equal "$(number prompt_passes)" 2
    list tokens > "$work/pieces"
    check "a prompt in pieces changes nothing" cmp -s "$work/whole" "$work/pieces"
    works generate -m $sdar $ids --gen-length 11 --skip-preset fast --json
    works generate -m $fast $ids --gen-length 11 --small-block 4 --block-length 16 --json
    works generate -m $dream $ids --gen-length 16 --block-length 16 --cache prefix --json
    check "no piece of a prompt" equal "$(number prompt_passes)" 0
    for cache in dual prefix none; do
        refuses 2 'attends by blocks, and works with --cache block only' generate -m $sdar $ids --cache $cache
    done
    refuses 2 'block works with models that attend by blocks only' generate -m $golden $ids --cache block
    refuses 2 'small-block 8 works with --cache block only' generate -m $dream $ids --small-block 8
    refuses 2 'near works with --cache dual only' generate -m $sdar $ids --near 4
    refuses 2 'refresh-every works with other caches only' generate -m $sdar $ids --refresh-every 2
    refuses 2 'skip-warm-start works with other caches only' generate -m $sdar $ids --skip-warm-start
    refuses 1 'is not a multiple of small_block 3' generate -m $sdar $ids --small-block 3
    refuses 1 'mask at position 1' generate -m $sdar --prompt-ids 5,72,7,8 --gen-length 4
    for rule in off rows states; do
        works trace -m $sdar $ids --gen-length 8 --skip-rule $rule
        works trace -m $fast $ids --gen-length 8 --skip-rule $rule --json --html "$work/trace.html" \
            --dump "$work/trace.safetensors"
        check "a trace by blocks" is_json
    done
    works bench -m $sdar --prompt 10 --gen 8 --block 4 --repeat 1 --threads 1 --json
    check "bench by blocks times the prompt" prints '"prompt_rows":8,'
    works bench -m $dream --prompt 8 --gen 16 --block 8 --repeat 1 --threads 1 --json
    refuses 2 'refreshes nothing' bench -m $sdar --prompt 8 --gen 8 --block 4 --refresh-active 2
}

# An option's value that makes no sense, whatever the model: the line names the option, the value and what is allowed.
refuses_value() { refuses 2 "^tokenskip: $1 takes .*$2.*'$4'\$" $generate "$3" "$4"; }

# Options of a generation from a file: the same as typed, but for those that are typed too.
test_settings_file() {
    settings_file=$work/settings
    printf '# found by calibrate\n--no-threshold --steps 16\n\t# rows\n--rows-margin 2 --near=8' > "$settings_file"
    printf ' --system "Be \047brief\047."\n' >> "$settings_file"
    same_answer() { # same_answer "OPTIONS WITH THE FILE" OPTIONS...
        "$tokenskip" generate -m $demo -p hi --gen-length 32 --json --threads 1 $1 2> "$err" | counted > "$work/a"
        shift
        "$tokenskip" generate -m $demo -p hi --gen-length 32 --json --threads 1 "$@" 2>> "$err" | counted > "$work/b"
        check "a file and '$*': $(head -c 200 "$err")" [ -s "$work/a" -a ! -s "$err" ]
        check "a file is as good as '$*'" cmp -s "$work/a" "$work/b"
    }
    counted() { sed 's/"timing".*//'; }
    given="--no-threshold --steps 16 --rows-margin 2 --near 8"
    same_answer "--settings $settings_file" $given --system "Be 'brief'."
    same_answer "--rows-margin 1 --settings $settings_file --steps 8" \
        --no-threshold --steps 8 --rows-margin 1 --near 8 --system "Be 'brief'."
    same_answer "--settings $settings_file --frechet 0.1" \
        --frechet 0.1 --steps 16 --rows-margin 2 --near 8 --system "Be 'brief'."
    echo "--skip-preset fast" > "$settings_file"
    same_answer "--settings $settings_file --near 3" --skip-preset fast --near 3
    : > "$settings_file"
    same_answer "--settings $settings_file"
    for command in "eval --data $work/settings.jsonl" "trace -p hi" "batch --input - --output -" \
        "eval --data $work/settings.jsonl --against"; do
        printf '{"prompt": "hi", "answer": "x"}\n' > "$work/settings.jsonl"
        echo "--steps 3" > "$settings_file" # of four blocks
        case $command in *against) set -- "--settings $settings_file" ;; *) set -- --settings "$settings_file" ;; esac
        run $command "$@" -m $demo < /dev/null
        check "$command reads the file" says "steps.* 3 is not a multiple of the number of blocks"
    done
    one="generate -m $demo --prompt-ids 5 --settings"
    refuses 1 "No such file" $one "$work/nowhere"
    echo "--threshold 2" > "$settings_file"
    refuses 2 "^tokenskip: $settings_file: --threshold takes a number from 0 to 1" $one "$settings_file"
    refuses 2 "^tokenskip: $settings_file: --threshold takes a number from 0 to 1" $one "$settings_file" --threshold 0.5
    echo "--threads 2" > "$settings_file"
    refuses 2 "^tokenskip: $settings_file: '--threads' is no option of a generation" $one "$settings_file"
    echo "--settings x" > "$settings_file"
    refuses 2 "^tokenskip: $settings_file: --settings cannot name a further file" $one "$settings_file"
    echo "word" > "$settings_file"
    refuses 2 "^tokenskip: $settings_file: a file of settings takes no argument 'word'" $one "$settings_file"
    echo "--system 'x" > "$settings_file"
    refuses 1 "^tokenskip: $settings_file: a quote has no end" $one "$settings_file"
    printf -- '--steps 8\0 x' > "$settings_file"
    refuses 1 "^tokenskip: $settings_file: no text" $one "$settings_file"
    head -c 70000 /dev/zero | tr '\0' ' ' > "$settings_file"
    refuses 1 "settings" $one "$settings_file"
}

test_values() {
    for value in nan NaN -nan inf -infinity 1e999 1.5 1.0001 -0.1 x; do
        refuses_value --threshold 'a number from 0 to 1,' --threshold "$value"
    done
    for value in 0 -1 1e-99 nan inf; do refuses_value --factor 'a number above 0,' --factor "$value"; done
    for value in -0.1 1.1 nan; do refuses_value --frechet 'a number from 0 to 1,' --frechet "$value"; done
    for value in -1 nan inf; do refuses_value --entropy-bound 'a number from 0 on,' --entropy-bound "$value"; done
    for value in -1 1.5 x; do refuses_value --local-leap 'a number from 0 to 1,' --local-leap "$value"; done
    for value in -0.5 nan inf; do refuses_value --temperature 'a number from 0 on,' --temperature "$value"; done
    for option in --skip-threshold --skip-outlier; do
        for value in -1.5 2 nan; do refuses_value $option 'a number from -1 to 1,' $option "$value"; done
    done
    for option in --gen-length --block-length --steps; do
        for value in 0 -1 x 2147483648; do
            refuses_value $option 'a whole number from 1 to 2147483647,' $option "$value"
        done
    done
    for option in --skip-layer-k --skip-max-age --skip-full-every --refresh-rows --refresh-every --rows-margin \
        --rows-ahead --near --window; do
        for value in -1 x 2147483648; do
            refuses_value $option 'a whole number from 0 to 2147483647,' $option "$value"
        done
    done
    refuses_value --skip-rule 'off|states|rows' --skip-rule row
    refuses_value --refresh 'full|near' --refresh far
    for value in 1025 -1 1e3; do refuses_value --threads 'a whole number from 0 to 1024,' --threads "$value"; done
    refuses 2 'gen-length 100 is not a multiple of --block-length 32' $generate --gen-length 100
    refuses 2 'gen-length 16 is not a multiple of --block-length 32' $generate --gen-length 16 --block-length 32
    refuses 2 'steps 3 is not a multiple of the number of blocks, 2' $generate --gen-length 64 --steps 3
    refuses 2 'skip-refresh needs TokenSkip' $generate --skip-refresh --skip-layer-k 0
    refuses 2 'skip-refresh needs TokenSkip' $generate --skip-refresh --cache prefix
    refuses 2 'skip-preset works with --cache dual only' $generate --skip-preset fast --cache none
    refuses 2 'refresh-rows 4 works with --cache dual' $generate --refresh-rows 4 --cache prefix
    refuses 2 'refresh-every 2 works with --cache dual and prefix' $generate --refresh-every 2 --cache none
    refuses 2 '^tokenskip: --skip-rule rows works with --cache dual only$' $generate --skip-rule rows --cache prefix
    refuses 2 '^tokenskip: --skip-rule states works with --cache dual only$' $generate --skip-rule states --cache none
    refuses 2 '^tokenskip: --rows-margin works with --cache dual only$' $generate --rows-margin 0 --cache none
    refuses 2 '^tokenskip: --rows-ahead works with --cache dual only$' $generate --rows-ahead 1 --cache prefix
    refuses 2 '^tokenskip: --refresh near works with --cache dual only$' $generate --refresh near --cache prefix
    refuses 2 '^tokenskip: --near works with --cache dual only$' $generate --near 4 --cache none
    refuses 2 '^tokenskip: --window works with --cache dual only$' $generate --window 32 --cache prefix
    refuses 2 '^tokenskip: --near works with --refresh near only$' $generate --near 4 --refresh full
    refuses 2 '^tokenskip: --near and --skip-refresh exclude each other$' $generate --near 4 --skip-refresh
    refuses 2 '^tokenskip: --refresh near and --skip-refresh exclude' $generate --refresh near --skip-refresh
    refuses 2 '^tokenskip: --window and --skip-refresh exclude each other$' $generate --window 8 --skip-refresh
    refuses 2 'window needs --refresh near, or --refresh-every 1' $generate --window 8 --refresh full --refresh-every 2
    refuses 2 'skip-masked is of rule states and --rows-ahead of rule rows: say --skip-rule' \
        $generate --skip-masked --rows-ahead 1
    refuses 2 'skip-refresh and --skip-rule off exclude each other' $generate --skip-refresh --skip-rule off
    refuses 2 'skip-rule states needs a --skip-layer-k above 0' $generate --skip-rule states --skip-layer-k 0
    refuses 2 'max-batch takes a whole number from 1' batch -m $golden --input x --output y --max-batch 0
    refuses 2 'limit takes a whole number from 1' eval -m $golden --data x --limit 0
    for option in prompt gen block batch repeat; do
        refuses 2 "$option takes a whole number from 1" bench --$option 0
    done
    refuses 2 'multiple of --block' bench --gen 10 --block 8
    refuses 2 '--active 9' bench --gen 16 --block 8 --active 9
    refuses 2 'active 0 and --skip-rule rows exclude' bench --gen 16 --block 8 --active 0 --skip-rule rows
    refuses 2 'active needs TokenSkip' bench --gen 16 --block 8 --active 2 --skip-rule off
    # the commands that generate have the same options
    for command in chat "eval --data x" trace "calibrate --max-error 0 --data x" "sweep --svg x --data x" \
        "batch --input x --output y"; do
        for option in --gen-length --steps --refresh-every --seed --factor --temperature --skip-max-age \
            --refresh-rows; do
            refuses 2 "$option takes " $command -m $golden $option -1
        done
        refuses 2 'a number from 0 to 1,' $command -m $golden --threshold 2
        refuses 2 'multiple' $command -m $golden --gen-length 33
    done
}

# What the model cannot do is a failure, not wrong usage.
test_arguments() {
    refuses 1 'max_sequence_length' $generate --gen-length 1024
    refuses 1 'max_sequence_length' $generate --gen-length 256
    refuses 1 'max_sequence_length' \
        generate -m $golden --prompt-ids "$(awk 'BEGIN { for (i = 0; i < 300; i++) print 1 }')"
    refuses 1 '64' generate -m $golden --prompt-ids 1,2,64
    refuses 1 '2147483647' generate -m $golden --prompt-ids 1,2147483647
    refuses 1 'tokenizer' generate -m $golden -p hello
    refuses 1 'tokenizer' chat -m $golden
}

# ---- Broken models --------------------------------------------------------------------------------------------------

broken() { # a fresh copy to break
    rm -rf "$work/model"
    cp -r "$golden" "$work/model"
    chmod -R u+w "$work/model"
}

refuses_model() { # by everything that loads it
    refuses 1 "$1" generate -m "$work/model" --prompt-ids 1,2,3
    refuses 1 "$1" inspect "$work/model"
}

test_broken_models() {
    refuses 1 "$work/nowhere" generate -m "$work/nowhere" --prompt-ids 1
    refuses 1 "$work/nowhere" inspect "$work/nowhere"
    mkdir "$work/empty"
    refuses 1 'config.json' generate -m "$work/empty" --prompt-ids 1
    refuses 1 'config.json' inspect "$work/empty"
    refuses 1 'config.json' generate -m "$work/empty" -p hello
    refuses 1 'tokenizer.json' tokenize -m "$work/empty"
    refuses 1 'test_cli.sh' generate -m tests/test_cli.sh --prompt-ids 1

    broken; rm "$work/model/model.safetensors"; refuses_model 'model.safetensors'
    broken; : > "$work/model/model.safetensors"; refuses_model 'model.safetensors'
    for bytes in 100000 7; do
        broken; head -c $bytes "$golden/model.safetensors" > "$work/model/model.safetensors"
        refuses_model 'model.safetensors'
    done
    broken; echo more >> "$work/model/model.safetensors"; refuses_model 'model.safetensors'
    broken
    printf '\377\377\377\377\377\377\377\177' > "$work/model/model.safetensors"
    tail -c +9 "$golden/model.safetensors" >> "$work/model/model.safetensors"
    refuses_model 'model.safetensors'
    broken; : > "$work/model/config.json"; refuses_model 'config.json'
    broken; grep -v '"rope":' "$golden/config.json" > "$work/model/config.json"; refuses_model '"rope" is missing'
    broken
    printf 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n' > "$work/model/model.safetensors"
    refuses_model 'git lfs pull'
    broken; echo '{"eos_token_id": [1, 1000]}' > "$work/model/generation_config.json"
    refuses_model 'generation_config.json.*1000'
    broken; echo '{"d_model": 32' > "$work/model/config.json"; refuses_model 'config.json'
    broken; sed 's/"mlp_hidden_size": *[0-9]*/"mlp_hidden_size": 40/' "$golden/config.json" > "$work/model/config.json"
    refuses_model 'ff_proj'
    broken; sed 's/"n_layers": *[0-9]*/"n_layers": 5/' "$golden/config.json" > "$work/model/config.json"
    refuses_model 'blocks.4'

    rm -rf "$work/model"
    cp -r tests/golden/models/gqa-bf16 "$work/model"
    chmod -R u+w "$work/model"
    shard=model-00002-of-00003.safetensors
    head -c 5000 "tests/golden/models/gqa-bf16/$shard" > "$work/model/$shard"
    refuses_model "$shard"
    rm "$work/model/$shard"
    refuses_model "$shard"
}

# ---- generate -------------------------------------------------------------------------------------------------------

# What the numbers of one generation have to do with each other. The golden model has 4 layers.
adds_up() { # adds_up WHAT BLOCK_LENGTH GEN_LENGTH K, or "rows" for that rule
    block=$2 length=$3 k=$4
    steps=$(list_length active) refreshes=$(number refreshes) block_steps=$(number block_steps)
    check "$1: is one JSON object" is_json
    check "$1: $length tokens" equal "$(list_length tokens)" "$length"
    check "$1: no mask is left" equal "$(top_number mask_residual)" 0
    check "$1: no block has one left" equal "$(blocks_sum mask_residual)" 0
    check "$1: the blocks' passes are all passes" equal "$(blocks_sum nfe)" "$(top_number nfe)"
    check "$1: passes are refreshes and block steps" equal "$(top_number nfe)" $((refreshes + block_steps))
    check "$1: a count of stable tokens each step" equal "$(list_length stable_masked)" "$steps"
    check "$1: token-layers" equal "$(number token_layers_total)" $((steps * block * 4))
    computed=$(number token_layers_computed)
    if [ "$k" = rows ]; then check "$1: the rows computed" equal "$computed" $(($(list_sum active) * 4))
    elif [ "$k" -eq 0 ]; then check "$1: all of them computed" equal "$computed" $((steps * block * 4))
    else check "$1: those computed" equal "$computed" $((steps * block * k + $(list_sum active) * (4 - k))); fi
}

test_generate() {
    options="--gen-length 32 --block-length 8 --no-eos-stop"
    works $generate $options
    check "ids are printed where there is no tokenizer" [ "$(wc -w < "$out")" -eq 32 ]
    works $generate $options --json
    adds_up "dual" 8 32 rows
    check "no tokenizer, no text" prints '^{"text":null,'
    check "the prompt is repeated" prints '"prompt_tokens":\[1,2,3\]'
    check "it went to the end" prints '"finish_reason":"length"'
    check "four blocks" equal "$(block_count)" 4
    check "four refreshes" equal "$(number refreshes)" 4
    check "a block step for each other pass" equal "$(list_length active)" "$(number block_steps)"
    tokens=$(list tokens)

    works $generate $options --json --threads 1
    check "threads change nothing" [ "$(list tokens)" = "$tokens" ]
    works generate --no-eos-stop --json -m "$golden" --block-length=8 --gen-length=32 '--prompt-ids=1 2 3'
    check "neither does the order of options" [ "$(list tokens)" = "$tokens" ]
    works generate -m=$golden --prompt-ids=1,2,3 $options --json
    check "nor -m=DIR" [ "$(list tokens)" = "$tokens" ]
    works $generate $options --json --visual
    check "nor --visual, which draws nothing here" [ "$(list tokens)" = "$tokens" ]
    works $generate $options --json --no-json --json --skip-masked --no-skip-masked
    check "a --no- form takes a switch back" [ "$(list tokens)" = "$tokens" ]

    works $generate $options --json --skip-layer-k 0
    adds_up "TokenSkip off" 8 32 0
    plain=$(list tokens)
    works $generate $options --json --skip-threshold 1
    adds_up "skip-threshold 1" 8 32 2
    check "skip-threshold 1 is plain dual cache" [ "$(list tokens)" = "$plain" ]
    works $generate $options --json --skip-layer-k 4
    check "so is K = all layers" [ "$(list tokens)" = "$plain" ]

    for more in "--no-threshold" "--factor 1.5" "--frechet 0.01" "--entropy-bound 2" \
        "--local-leap 0.1 --threshold 0.2 --local-radius 1" "--temperature 0.7 --seed 3" "--remasking random" \
        "--skip-preset seed" \
        "--skip-policy exit --skip-masked --skip-threshold -1 --skip-outlier -1" \
        "--skip-reference last-computed --skip-max-age 2" "--skip-full-every 3 --skip-warm-start"; do
        works $generate $options --json $more
        case "$more" in *--skip-[mprtw]*) adds_up "$more" 8 32 2 ;; *) adds_up "$more" 8 32 rows ;; esac
    done
    works $generate $options --json --skip-refresh
    adds_up "--skip-refresh" 8 32 rows
    check "refreshes of 35 positions are counted" equal "$(number refresh_token_layers_total)" $((4 * 35 * 4))
    check "some of them skipped" [ "$(number refresh_token_layers_computed)" -lt $((4 * 35 * 4)) ]
    works $generate $options --json --no-threshold --refresh-every 3 --refresh-rows 2
    check "two of four blocks start with a refresh" equal "$(number refreshes)" 2
    check "two more rows in each other pass" equal "$(number refreshed_rows)" $((2 * 30))
    check "which are no token-layers of the blocks" equal "$(number token_layers_total)" $((30 * 8 * 4))
    works $generate $options --json --no-threshold
    check "one token a step by default" equal "$(top_number nfe)" 32
    works $generate $options --json --no-threshold --steps 8
    check "so many steps as asked for" equal "$(top_number nfe)" 8

    for cache in none prefix; do
        works $generate $options --json --cache $cache
        check "$cache: is one JSON object" is_json
        check "$cache: no block steps are listed" equal "$(list_length active)" 0
        check "$cache: no token-layers are counted" equal "$(number token_layers_total)" 0
        check "$cache: the blocks' passes are all passes" equal "$(blocks_sum nfe)" "$(top_number nfe)"
    done
    works generate -m $golden --prompt-ids 1,63,3,63,5 --json --gen-length 32 --block-length 8 --no-eos-stop
    check "infilling: is one JSON object" is_json
    check "infilling: a block more" equal "$(block_count)" 5
    check "infilling: its passes count" equal "$(blocks_sum nfe)" "$(top_number nfe)"
    check "infilling: the prompt's masks are filled" [ "$(list prompt_tokens | tr , '\n' | grep -c -x 63)" -eq 0 ]
    check "infilling: the rest of the prompt stays" \
        [ "$(list prompt_tokens | sed 's/,[0-9]*,3,[0-9]*,/,?,3,?,/')" = "1,?,3,?,5" ]
}

# Fewer than 32 positions are one block, unless a block's length is given.
test_short() {
    for length in 1 8 31; do
        run $generate --gen-length $length --no-eos-stop --json
        check "gen-length $length works" [ "$rc" -eq 0 ]
        check "gen-length $length is one block" equal "$(block_count)" 1
        check "of so many tokens" equal "$(list_length tokens)" $length
        check "a line says so" one_line
        check "with its length" says "one block of $length\$"
        cut -d '"' -f 1-6 "$out" > "$work/short"
        works $generate --gen-length $length --block-length $length --no-eos-stop --json
        check "as with --block-length $length" [ "$(cut -d '"' -f 1-6 "$out")" = "$(cat "$work/short")" ]
    done
    works $generate --gen-length 32 --no-eos-stop --json
    check "32 are a block" equal "$(block_count)" 1
    works $generate --gen-length 16 --block-length 8 --no-eos-stop --json
    check "a block's length that is given counts" equal "$(block_count)" 2
}

# Tokens end where the text does, before the token that ends it; --pad and --no-eos-stop show them all.
test_end() {
    ends="generate -m tests/golden/models/gqa-bf16 --gen-length 32 --block-length 8 --json" # its eos_token_id is 1
    for prompt in 1,2,3 9,8 60 14 17 24; do
        works $ends --prompt-ids $prompt --pad
        padded=$(list tokens) reason=$(sed 's/.*"finish_reason":"\([a-z]*\)".*/\1/' "$out")
        check "$prompt: --pad shows all, $reason" equal "$(list_length tokens)" 32
        before=$(echo "$padded" | tr , '\n' | awk '$1 == 1 { exit } { printf "%s%s", n++ ? "," : "", $1 }')
        works $ends --prompt-ids $prompt
        check "$prompt: tokens before the first 1" [ "$(list tokens)" = "$before" ]
        check "$prompt: fewer, where one ends the text" [ "$reason" = length -o "$before" != "$padded" ]
        works $ends --prompt-ids $prompt --pad --no-pad --no-json
        check "$prompt: as ids without --json" [ "$(tr ' ' , < "$out")" = "$before" ]
        works $ends --prompt-ids $prompt --no-eos-stop
        check "$prompt: --no-eos-stop shows all" equal "$(list_length tokens)" 32
    done
    works generate -m "$demo" -p "Who is Newton in physics?" --json
    shown=$(list tokens)
    text=$(sed 's/^{"text":"\(.*\)","tokens".*/\1/' "$out")
    check "the demo model's answer ends early" prints '"finish_reason":"eos"'
    echo "[$shown]" > "$work/shown"
    works tokenize -m "$demo" --jsonl --decode < "$work/shown"
    check "its tokens are its text, and nothing else" [ "$(cat "$out")" = "\"$text\"" ]
    works generate -m "$demo" -p "Who is Newton in physics?" --json --pad
    check "padded: the same and more" [ "$(list tokens | cut -c 1-$((${#shown} + 1)))" = "$shown," ]
    check "padded: to gen-length" equal "$(list_length tokens)" 128
    last=$(sed -n 's/.*"eos_token_id": *\([0-9]*\).*/\1/p' "$demo/config.json")
    check "with end-of-sequence tokens" [ "$(list tokens | tr , '\n' | tail -n 96 | sort -u)" = "$last" ]
}

# A preset yields to options beside it, wherever they stand.
test_presets() {
    options="--gen-length 32 --block-length 8 --no-eos-stop --json"
    skip() { list active; }
    works $generate $options --skip-preset seed
    seed=$(skip)
    works $generate $options --skip-policy exit --skip-masked --skip-threshold 0.95 --skip-outlier 0.7 \
        --skip-reference last-step
    check "preset seed is its five options" [ "$(skip)" = "$seed" ]
    works $generate $options --skip-preset fast
    fast="$(skip) $(number refresh_token_layers_computed)"
    works $generate $options --skip-rule rows --refresh near --near 32 --window 32
    check "preset fast is its four options" [ "$(skip) $(number refresh_token_layers_computed)" = "$fast" ]
    works $generate $options --no-threshold --skip-preset careful
    careful=$(skip)
    works $generate $options --no-threshold --skip-rule rows --rows-ahead 1 --refresh full
    check "preset careful is its three options" [ "$(skip)" = "$careful" ]
    works $generate $options --skip-preset default
    default=$(skip)
    works $generate $options
    check "preset default changes nothing" [ "$(skip)" = "$default" ]
    works $generate $options --skip-preset seed --skip-threshold 1
    after=$(skip)
    works $generate $options --skip-threshold 1 --skip-preset seed
    check "an option before the preset wins too" [ "$(skip)" = "$after" ]
    works $generate $options --skip-rule states
    states=$(skip)
    works $generate $options --no-skip-masked --skip-preset seed --skip-policy reuse
    check "all options beside it win" [ "$(skip)" = "$states" ]
}

# Every command, with descriptor 5 for stdout.
fails_to_write() { # fails_to_write WHAT REASON
    printf '[{"role": "user", "content": "Hello"}]' > "$work/messages.json"
    eval_line a b > "$work/one.jsonl"
    for arguments in "$generate --gen-length 32" "$generate --gen-length 32 --json" "chat -m $demo --gen-length 32" \
        "--help" "--version" "generate --help" "inspect $golden" \
        "tokenize -m $demo" "template -m $demo --messages $work/messages.json" \
        "eval -m $demo --data $work/one.jsonl --gen-length 32" \
        "trace -m $golden --prompt-ids 1 --gen-length 8 --block-length 8"; do
        echo "Who is Newton in physics?" | "$tokenskip" $arguments >&5 2> "$err"
        rc=$?
        : > "$out"
        check "$1 fails '$arguments'" [ "$rc" -eq 1 ]
        check "$1: one line" one_line
        check "$1: the reason" says "cannot write to standard output: $2"
    done
}

test_output() {
    if [ -e /dev/full ]; then
        exec 5> /dev/full
        fails_to_write "a full disk" 'No space left'
    fi
    rm -f "$work/pipe"
    mkfifo "$work/pipe"
    exec 4<> "$work/pipe" 5> "$work/pipe" 4>&- # a pipe that nobody reads any more
    fails_to_write "a reader that left" 'Broken pipe'
    exec 5>&-
    "$tokenskip" $generate --gen-length 32 >&- 2> "$err"
    rc=$?
    check "a closed stdout fails" [ "$rc" -eq 1 ]
    check "a closed stdout: one line" one_line
}

# ---- The other commands ---------------------------------------------------------------------------------------------

# The real model's config and index over files with nothing in them: all of it is listed, and no weight is read.
test_inspect_llada() {
    mkdir "$work/llada" && "$programs/make_sparse" "$work/llada" || return
    works inspect "$work/llada"
    check "LLaDA-8B: 291 tensors" [ "$(grep -c '^model[.]transformer[.]' "$out")" -eq 291 ]
    works inspect "$work/llada" --json
    check "LLaDA-8B: JSON" is_json
    check "LLaDA-8B: its bytes" prints 16031162368
}

test_inspect() {
    works inspect "$golden"
    check "all tensors are listed" equal "$(grep -c 'model.transformer' "$out")" 39
    works inspect "$golden" --json
    check "inspect --json" is_json
    check "39 tensors" equal "$(number n_tensors)" 39
    broken; echo '{"eos_token_id": [7, 5]}' > "$work/model/generation_config.json"
    works inspect "$work/model"
    check "the ids that end a text" prints "eos_token_ids .* 7 5\$"
    works inspect "$work/model" --json
    check "the ids that end a text, as JSON" prints '"eos_token_ids":[[][0-9]*,7,5[]]'
    works inspect "$golden/model.safetensors" --json
    check "inspect FILE --json" is_json
    check "39 tensors in the file" equal "$(number n_tensors)" 39
    works inspect tests/golden/models/gqa-bf16
    check "shards are named" prints 'model-00003-of-00003.safetensors'
    refuses 1 'config.json' inspect tests/golden/models/mha-f32/config.json
    works inspect tests/golden/models/quantised/gptq-dynamic
    check "formats" prints '8 bits, one scale an output, zeros  *1 of'
    check "that the folder is quantised" prints '^weights (gptq)$'
    works inspect tests/golden/models/quantised/ct-fp8-block --json
    check "formats as JSON" prints '"name":"F8_E4M3, blocks of 48 x 40","bits":8,"n_tensors":8'
}

test_bench() {
    works bench --prompt 8 --gen 16 --block 8 --repeat 1 --threads 1 --json --weights q4
    check "bench of quantised weights" prints '"weights":"q4"'
    works bench --prompt 8 --gen 16 --block 8 --repeat 1 --threads 1 --json --active 0,4,8
    check "bench --json" is_json
    check "a run for each --active" equal "$(grep -o '"active"' "$out" | wc -l)" 3
    check "every block step of a block is measured" equal "$(number block_steps)" 7
    works bench --prompt 8 --gen 16 --block 8 --repeat 1 --threads 1 --json --active 4,8 --batch 3
    check "bench --batch --json" is_json
    check "every block step of all requests is measured" equal "$(number block_steps)" 7
    check "a block step has the rows of all requests" equal "$(number block_step_rows)" 24
    check "and a refresh" equal "$(number refresh_rows)" 72
    works bench -m "$golden" --prompt 8 --gen 16 --block 8 --repeat 1 --threads 1
    check "bench of a model folder" prints 'block step'
}

# ---- With the demo model --------------------------------------------------------------------------------------------

test_tokenize() {
    printf '"Who is Newton?"\n"na\\u00efve \\ud83d\\ude00\\n"\n""\n' > "$work/text.jsonl"
    works tokenize -m "$demo" --jsonl < "$work/text.jsonl"
    check "a line of ids for each string" [ "$(wc -l < "$out")" -eq 3 ]
    check "no ids for no text" [ "$(tail -n 1 "$out")" = "[]" ]
    cp "$out" "$work/ids.jsonl"
    works tokenize -m "$demo" --jsonl --decode < "$work/ids.jsonl"
    check "ids decode to the text" [ "$(head -n 1 "$out")" = '"Who is Newton?"' ]
    check "and so do characters beyond ASCII" [ "$(sed -n 2p "$out" | tr -d '\n' | wc -c)" -ge 10 ]
    cp "$out" "$work/again"
    works tokenize -m "$demo" --jsonl < "$work/again"
    check "and their ids are the same again" cmp -s "$out" "$work/ids.jsonl"
    printf 'Who is Newton?' > "$work/text"
    works tokenize -m "$demo" < "$work/text"
    cp "$out" "$work/ids"
    works tokenize -m "$demo" --decode < "$work/ids"
    check "plain text comes back" cmp -s "$out" "$work/text"
    works tokenize -m "$demo" < /dev/null
    works tokenize -m "$demo" --decode < /dev/null
    check "nothing decodes to nothing" [ ! -s "$out" ]
    for line in 'Who' '12' '["a"]' '"a' '"\ud800"' ''; do
        printf '"good"\n%s\n' "$line" > "$work/bad.jsonl"
        run tokenize -m "$demo" --jsonl < "$work/bad.jsonl"
        check "'$line' is refused" [ "$rc" -eq 1 ]
        check "'$line': its line is named" says 'line 2'
        check "'$line': nothing is printed" [ ! -s "$out" ]
    done
    printf 'bad \377 byte' > "$work/text"
    run tokenize -m "$demo" < "$work/text"
    check "invalid UTF-8 is refused" [ "$rc" -eq 1 ]
    check "invalid UTF-8: one line with its place" says '4'
    echo 'one two' > "$work/text"
    run tokenize -m "$demo" --decode < "$work/text"
    check "words are no ids" [ "$rc" -eq 1 ]
}

# A token that tokenizer_config.json alone declares, and the model has no row for: no harm until it is used.
test_declared() {
    mkdir "$work/declared"
    for file in "$demo"/*; do ln -s "$PWD/$file" "$work/declared/"; done
    rm "$work/declared/tokenizer_config.json"
    sed 's/"added_tokens_decoder": {/&"1024": {"content": "<new>", "special": true},/' \
        "$demo/tokenizer_config.json" > "$work/declared/tokenizer_config.json"
    echo '"a<new>b"' > "$work/text"
    works tokenize -m "$work/declared" --jsonl < "$work/text"
    check "it is an added token" prints '^\[64,1024,65\]$'
    works generate -m "$work/declared" -p "Hello" --gen-length 32 --json
    check "generating works" is_json
    refuses 1 'id 1024' generate -m "$work/declared" --raw -p 'a<new>' --gen-length 32
}

test_template() {
    messages='[{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hello"}]'
    printf '%s' "$messages" > "$work/messages.json"
    works template -m "$demo" --messages "$work/messages.json"
    check "the template ends a turn" prints '<|eot_id|>'
    check "the template trims" prints '^Be brief\.<|eot_id|>'
    check "it ends with the assistant's header" prints '<|start_header_id|>assistant<|end_header_id|>'
    for messages in '{}' '[1]' '[{"role": "user"}]' '[{"content": "x"}]' '[{"role": "user", "content": 1}]' \
        '[{"role": "user", "content": "a\u0000b"}]' '['; do
        printf '%s' "$messages" > "$work/messages.json"
        refuses 1 'messages.json' template -m "$demo" --messages "$work/messages.json"
    done
    refuses 1 'nowhere.json' template -m "$demo" --messages "$work/nowhere.json"
    refuses 1 'directory' template -m "$demo" --messages "$work"
    refuses 1 'standard input' template -m "$demo" --messages -

    printf '[{"role": "user", "content": "caf\\u00e9 <x>"}]' > "$work/messages.json"
    works template -m "$demo" --messages "$work/messages.json"
    cp "$out" "$work/whole"
    works template -m "$demo" --messages - < "$work/messages.json"
    check "- is standard input" cmp -s "$out" "$work/whole"
    cat "$work/messages.json" | {
        run template -m "$demo" --messages /dev/stdin
        cmp -s "$out" "$work/whole" && echo same > "$work/piped"
    }
    check "a pipe has a name, too" [ -s "$work/piped" ]
    mkfifo "$work/fifo"
    cat "$work/messages.json" > "$work/fifo" &
    works template -m "$demo" --messages "$work/fifo"
    check "and so has a FIFO" cmp -s "$out" "$work/whole"

    parts='{"type": "text", "text": "caf"}, {"type": "text", "text": ""}'
    parts=$parts', {"text": "\u00e9 <", "type": "text"}, {"type": "text", "text": "x>"}'
    printf '[{"role": "user", "content": [%s]}]' "$parts" > "$work/messages.json"
    works template -m "$demo" --messages "$work/messages.json"
    check "parts follow one another" cmp -s "$out" "$work/whole"
    for part in '"x"' '{}' '{"type": 3}' '{"type": "text"}' '{"type": "text", "text": ["x"]}' \
        '{"type": "text", "text": "a\u0000b"}' '{"type": "image_url", "image_url": {"url": "x"}}'; do
        parts='{"type": "text", "text": "x"}, '$part
        printf '[{"role": "user", "content": [%s]}]' "$parts" > "$work/messages.json"
        refuses 1 'message 0 has a part' template -m "$demo" --messages "$work/messages.json"
    done
    check "a part of another type is named" says '"image_url"'
}

test_demo() {
    works generate -m "$demo" -p "Who is Newton in physics?"
    answer=$(cat "$out")
    check "the demo model has an answer" [ -n "$answer" ]
    check "no escape codes in a pipe" [ "$(tr -d '\033' < "$out" | wc -c)" -eq "$(wc -c < "$out")" ]
    works generate -m "$demo" -p "Who is Newton in physics?" --visual
    check "--visual leaves the text alone" [ "$(cat "$out")" = "$answer" ]
    echo "Who is Newton in physics?" > "$work/prompt"
    works generate -m "$demo" < "$work/prompt"
    check "a prompt from standard input" [ "$(cat "$out")" = "$answer" ]
    works generate -m "$demo" -p "Who is Newton in physics?" --json
    check "generate --json with text" is_json
    ids=$(list prompt_tokens)
    text=$(sed 's/^{"text":"\(.*\)","tokens".*/\1/' "$out")
    check "the same text" [ "$text" = "$answer" ]
    tokens=$(list tokens)
    works generate -m "$demo" --prompt-ids "$ids" --json
    check "the prompt's ids give the same tokens" [ "$(list tokens)" = "$tokens" ]
    refuses 1 'UTF-8' generate -m "$demo" -p "$(printf 'bad \377 byte')"
    refuses 1 'max_sequence_length' \
        generate -m "$demo" -p "$(awk 'BEGIN { for (i = 0; i < 9000; i++) printf "word " }')"
}

test_chat() {
    printf 'Who is Newton in physics?\n\n/reset\nWhat is the capital of France?\n/exit\nnot read\n' > "$work/talk"
    works chat -m "$demo" < "$work/talk"
    check "two answers" [ "$(wc -l < "$out")" -eq 2 ]
    check "the first is generate's" [ "$(head -n 1 "$out")" = "$answer" ]
    awk 'BEGIN { for (i = 0; i < 9000; i++) printf "word "; print "\nWho is Newton in physics?" }' > "$work/talk"
    run chat -m "$demo" < "$work/talk"
    check "a message too long fails" [ "$rc" -eq 1 ]
    check "a message too long: one line" one_line
    check "and the conversation goes on" [ "$(cat "$out")" = "$answer" ]
    for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo "Who is Newton in physics?"; done > "$work/talk"
    run chat -m "$demo" < "$work/talk"
    check "a long conversation: exit status 0" [ "$rc" -eq 0 ]
    check "it forgets its beginning" [ "$(wc -l < "$out")" -eq 12 ]
    check "and says so" says '^tokenskip: the conversation outgrew the context of 512 tokens: its oldest [1-9]'
    check "nothing else" [ "$(grep -v -c 'outgrew the context' "$err")" -eq 0 ]
    works chat -m "$demo" < /dev/null
    printf 'Who is Newton in physics?' > "$work/talk" # no newline
    works chat -m "$demo" < "$work/talk"
    check "a last line without an end" [ "$(cat "$out")" = "$answer" ]
    printf '/nonesuch\r\nWho is Newton in physics?\r\n' > "$work/talk"
    run chat -m "$demo" < "$work/talk"
    check "a command that is none is told" says '^tokenskip: no command /nonesuch: there are /reset and /exit$'
    check "and the conversation goes on" [ "$(cat "$out")" = "$answer" ]
    awk 'BEGIN { for (i = 0; i < 30; i++) print "/reset"; for (i = 0; i < 20000; i++) printf "word "
        print "\nWho is Newton in physics?" }' > "$work/talk"
    run chat -m "$demo" < "$work/talk"
    check "lines of every length" [ "$(cat "$out")" = "$answer" ]
}

# The answers that eval accepts, with the model's own words as the key.
eval_line() { printf '{"prompt": "Who is Newton in physics?", "answer": "%s", "kind": "%s"}\n' "$1" "$2"; }

# eval's means of a single question are what generate counts: eval_counts OPTIONS...
eval_counts() {
    one="-m $demo --no-eos-stop --gen-length 64 --no-threshold --steps 16 --threads 1"
    works generate $one -p "Who is Newton in physics?" "$@" --json
    passes=$(top_number nfe) refreshes=$(number refreshes) canvas=$((64 + $(list_length prompt_tokens)))
    total=$(number refresh_token_layers_total) computed=$(number refresh_token_layers_computed)
    left_out=$(((total - computed) / (12 - 3))) # of 12 layers all run 3
    case "$*" in *near*) left_out=$(((total - computed) / 12)) ;; esac # or none
    rows=$((refreshes * canvas - left_out + $(list_sum active) + $(number refreshed_rows)))
    # prefix lists no rows of its steps: here 7 in each block, to the canvas's end, 64 and 32 positions
    case "$*" in *prefix*) rows=$((rows + 7 * 64 + 7 * 32)) ;; esac
    works eval $one --data "$work/one.jsonl" "$@" --json
    check "$*: forward passes" equal "$(number mean_nfe)" "$passes"
    check "$*: refreshes" equal "$(number mean_refreshes)" "$refreshes"
    check "$*: rows" equal "$(number mean_rows)" "$rows"
}

test_eval_counts() {
    eval_line a b > "$work/one.jsonl"
    eval_counts --skip-layer-k 0
    check "a refresh a block" equal "$refreshes" 2
    check "all of the canvas in it, all of the block in each other pass" equal "$rows" $((2 * canvas + 14 * 32))
    eval_counts --skip-layer-k 3
    check "TokenSkip leaves rows out" [ "$rows" -lt $((2 * canvas + 14 * 32)) ]
    eval_counts --skip-masked --skip-threshold 0.9 --skip-outlier -1 --skip-max-age 2 --skip-refresh
    check "in refreshes too" [ "$left_out" -gt 0 ]
    eval_counts --skip-rule rows --refresh near --near 8 --window 16
    check "and rule rows, with refresh near" [ "$rows" -lt $((canvas + 32 * 14)) ]
    eval_counts --skip-layer-k 12 --skip-refresh
    check "not with K = all layers" equal "$rows" $((2 * canvas + 14 * 32))
    eval_counts --skip-layer-k 0 --refresh-every 2 --refresh-rows 4
    check "rarer refreshes, further rows" equal "$rows" $((canvas + 15 * (32 + 4)))
    eval_counts --cache prefix
    eval_counts --cache none
    check "without a cache every pass is a refresh" equal "$refreshes" 16
    # one question twice: means; and one thread takes no more processor time than time
    eval_line a b >> "$work/one.jsonl"
    works eval $one --data "$work/one.jsonl" --cache none --json
    check "the mean of two refreshes" equal "$(number mean_refreshes)" 16
    check "the mean of two rows" equal "$(number mean_rows)" "$rows"
    check "processor time" awk -v cpu="$(number cpu_seconds_per_answer)" -v all="$(number seconds_per_answer)" \
        'BEGIN { exit !(cpu > 0 && cpu < 1.5 * all) }'
    works eval $one --data "$work/one.jsonl" --cache none
    check "the table has all three" \
        prints "^16.0 refreshes, $rows.0 rows through all layers and [0-9.]* s of processor time an answer"
}

test_eval() {
    last=${answer##* }
    eval_line "$answer" whole > "$work/eval.jsonl"
    eval_line "$last" word >> "$work/eval.jsonl"
    eval_line "${last#?}" part >> "$work/eval.jsonl"
    eval_line "nothing like it" other >> "$work/eval.jsonl"
    eval_line "$last" other >> "$work/eval.jsonl"
    works eval -m "$demo" --data "$work/eval.jsonl" --json
    check "eval --json" is_json
    check "n" equal "$(number n)" 5
    check "accuracy" prints '"accuracy":0.6,'
    check "by kind" prints '"by_kind":{"whole":1,"word":1,"part":0,"other":0.5}'
    works eval -m "$demo" --data "$work/eval.jsonl"
    check "eval's table" prints '3 of 5'
    works eval -m "$demo" --data "$work/eval.jsonl" --limit 2 --json
    check "--limit: so many" equal "$(number n)" 2
    check "spread evenly: the first and the third" prints '"by_kind":{"whole":1,"part":0}'
    works eval -m "$demo" --data "$work/eval.jsonl" --limit 9 --json
    check "--limit beyond them: all" equal "$(number n)" 5
    for line in '' '{' '[]' '{"prompt": "a"}' '{"answer": "a"}' '{"prompt": "a", "answer": 1}' \
        '{"prompt": "a", "answer": ""}'; do
        { eval_line a b; printf '%s\n' "$line"; eval_line a b; } > "$work/eval.jsonl"
        [ -z "$line" ] || refuses 1 'line 2' eval -m "$demo" --data "$work/eval.jsonl"
    done
    refuses 1 'nowhere.jsonl' eval -m "$demo" --data "$work/nowhere.jsonl"
    : > "$work/eval.jsonl"
    refuses 1 'no questions' eval -m "$demo" --data "$work/eval.jsonl"
    refuses 1 'standard input: no questions' eval -m "$demo" --data -
}

# The drawing hides the cursor and shows it again; the text comes last.
test_terminal() {
    has_terminal test_terminal || return
    on_terminal -- "$tokenskip" $generate --gen-length 32 --visual
    check "--visual on a terminal" [ "$rc" -eq 0 ]
    check "it hides the cursor" prints "$escape\[?25l"
    check "and shows it again" prints "$escape\[?25h"
    check "it is coloured" prints "$escape\[1;32m"
    NO_COLOR=1 on_terminal -- "$tokenskip" $generate --gen-length 32 --visual
    check "not with NO_COLOR" lacks "$escape\[[0-9;]*3[0-9]m"
    terminal=dumb on_terminal -- "$tokenskip" $generate --gen-length 32 --visual
    check "a dumb terminal gets no escape codes" lacks "$escape"
}

# A model whose every full stop is ESC, by its tokenizer: what it says would drive a terminal.
test_control_characters() {
    has_terminal test_control_characters || return
    cp -r "$demo" "$work/escapes"
    sed -e 's/"\.": 13,/"\.": ESC,/' -e 's/"\xc4\x9b": 215,/"\xc4\x9b": 13,/' -e 's/"\.": ESC,/"\.": 215,/' \
        "$demo/tokenizer.json" > "$work/escapes/tokenizer.json"
    ask="generate -m $work/escapes --gen-length 32 -p"
    works $ask "Who is Newton in physics?"
    check "a pipe gets the bytes" [ "$(cat "$out")" = "${answer%.}$escape" ]
    for terminal in xterm dumb; do
        on_terminal -- "$tokenskip" $ask "Who is Newton in physics?"
        check "generate on a terminal: no ESC" lacks "$escape"
        check "generate on a terminal: it is seen" prints "^${answer%.}.u001b"
        on_terminal see:"> " type:"Who is Newton in physics?$newline" see:"motion" see:"> " type:"$ctrl_d" -- \
            "$tokenskip" chat -m "$work/escapes" --gen-length 32
        check "chat on a terminal: no ESC" lacks "$escape"
        check "chat on a terminal: it is seen" prints "${answer%.}.u001b"
        check "chat: Ctrl-D leaves with 0" [ "$rc" -eq 0 ]
    done
    unset terminal
    on_terminal -- "$tokenskip" $ask "Who is Newton in physics?" --visual
    check "--visual: escape codes of its own only" lacks "motion$escape[^[]"
    check "--visual: drawn and printed" [ "$(tr '\r' '\n' < "$out" | grep -c 'u001b')" -ge 2 ]
    check "--visual: the last print" [ "$(tail -n 2 "$out" | head -n 1 | grep -c "${answer%.}.u001b")" -eq 1 ]
    on_terminal -- "$tokenskip" $ask "Who is Newton in physics?" --json
    check "JSON on a terminal" lacks "$escape"
    printf '[{"role": "user", "content": "a\\u202eb\\u009b2Jc\\nd"}]' > "$work/messages.json"
    on_terminal -- "$tokenskip" template -m "$demo" --messages "$work/messages.json"
    check "what changes direction, and C1" prints 'a.u202eb.u009b2Jc.$'
    check "the line ends where it ended" prints '^d<|eot_id|>'
    name="$work/a$escape[31mb${newline}c"
    on_terminal -- "$tokenskip" batch -m $golden --input "$name" --output "$work/x"
    check "a file's name in a message" prints 'a.u001b\[31mb.u000ac'
    check "no ESC" lacks "$escape"
    refuses 1 "a$escape\[31mb.u000ac" batch -m $golden --input "$name" --output "$work/x"
    on_terminal -- "$tokenskip" generate -m "$work/a$escape[31mb" -p hello
    check "in one of the library" lacks "$escape"
    on_terminal -- "$tokenskip" "frob$escape[2J"
    check "an argument in a message" prints 'frob.u001b\[2J'
}

# ---- Signals --------------------------------------------------------------------------------------------------------

nothing_said() { [ ! -s "$work/said" ]; }

# Of each command it is seen first that it is at work. Its stdout is a file, which stays empty.
test_interrupts() {
    has_terminal test_interrupts || return
    long="--gen-length 448 --no-threshold --no-eos-stop"
    ask="generate -m $demo -p hello $long --visual"
    apart='said=$0; exec "$@" > "$said"'
    for how in 'type:$ctrl_c 130' 'kill:15 143'; do
        step=$(eval echo "${how% *}") status=${how#* }
        for json in "" --json; do
            on_terminal see:"pass 3, " "$step" -- sh -c "$apart" "$work/said" "$tokenskip" $ask $json
            check "generate $json: $status" [ "$rc" -eq "$status" ]
            check "generate $json: no part of an answer" nothing_said
            check "generate $json: what is incomplete" \
                prints 'tokenskip: interrupted after [0-9]* forward passes, with [0-9]* masks left: the answer is inc'
            cursor=$(grep -o "$escape\[?25." "$out" | tail -n 1)
            check "generate $json: the cursor is shown again" [ "$cursor" = "$escape[?25h" ]
        done
        awk 'BEGIN { for (i = 0; i < 500; i++) print "{\"prompt\": \"a\", \"answer\": \"b\"}" }' > "$work/many.jsonl"
        on_terminal see:"1/500" "$step" -- sh -c "$apart" "$work/said" \
            "$tokenskip" eval -m "$demo" --data "$work/many.jsonl" --json
        check "eval: $status" [ "$rc" -eq "$status" ]
        check "eval: no figures" nothing_said
        check "eval: what is incomplete" prints 'tokenskip: interrupted after [0-9]* of 500 questions'
        # a prompt that does not end
        on_terminal see:"Ctrl-D ends it" type:"half a prompt$newline" see:"prompt" "$step" -- \
            sh -c "$apart" "$work/said" "$tokenskip" generate -m "$demo"
        check "a prompt: $status" [ "$rc" -eq "$status" ]
        check "a prompt: no answer" nothing_said
        check "a prompt: what happened" prints 'tokenskip: interrupted while reading standard input'
    done
}

test_chat_interrupts() {
    has_terminal test_chat_interrupts || return
    talk="chat -m $demo --no-eos-stop --gen-length 256 --no-threshold --visual"
    question="Who is Newton in physics?$newline"
    on_terminal see:"> " type:"$ctrl_c" see:"once more leaves" see:"> " type:"$ctrl_c" -- "$tokenskip" $talk
    check "Ctrl-C twice at the prompt: 130" [ "$rc" -eq 130 ]
    check "asked once" [ "$(grep -c 'once more leaves' "$out")" -eq 1 ]
    on_terminal see:"> " type:"$ctrl_c" see:"once more leaves" see:"> " type:"/reset$newline" \
        see:"> " type:"$ctrl_c" see:"once more leaves" see:"> " type:"$ctrl_d" -- "$tokenskip" $talk
    check "a line in between: asked again, and Ctrl-D leaves with 0" [ "$rc" -eq 0 ]
    on_terminal see:"> " type:"$question" see:"pass 3, " type:"$ctrl_c" see:"incomplete" \
        see:"> " type:"$question" see:"pass 3, " type:"$ctrl_c" see:"incomplete" see:"> " type:"/exit$newline" -- \
        "$tokenskip" $talk
    check "Ctrl-C ends an answer, and the next, and no more: 0" [ "$rc" -eq 0 ]
    check "it does not ask then" lacks 'once more leaves'
    on_terminal see:"> " type:"$question" see:"pass 3, " kill:15 -- "$tokenskip" $talk
    check "SIGTERM in an answer: 143" [ "$rc" -eq 143 ]
    check "what is incomplete" prints 'tokenskip: interrupted: this answer is incomplete'
    on_terminal see:"> " kill:15 -- "$tokenskip" $talk
    check "SIGTERM at the prompt: 143" [ "$rc" -eq 143 ]
    # nobody is there to be asked
    rm -f "$work/pipe"
    mkfifo "$work/pipe"
    for signal in INT TERM; do
        : > "$out"
        "$tokenskip" chat -m "$demo" < "$work/pipe" > "$out" 2> "$err" &
        pid=$!
        exec 6> "$work/pipe"
        echo "Who is Newton in physics?" >&6
        until [ "$(tail -c 1 "$out" | wc -l)" -eq 1 ]; do sleep 0.05; done # the answer's end
        kill -s $signal $pid
        wait_for $pid
        exec 6>&-
        check "SIG$signal off a terminal" [ "$rc" -eq $([ $signal = INT ] && echo 130 || echo 143) ]
        check "what is incomplete" says '^tokenskip: interrupted: messages after this one are not answered$'
    done
}

test_help
test_usage
test_settings_file
test_values
test_arguments
test_broken_models
test_generate
test_short
test_end
test_presets
test_output
test_inspect
test_inspect_llada
test_bench
test_thinking
test_blocks
test_terminal
test_tokenize
test_declared
test_template
test_demo
test_chat
test_control_characters
test_interrupts
test_chat_interrupts
test_eval
test_eval_counts
echo "test_cli: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
