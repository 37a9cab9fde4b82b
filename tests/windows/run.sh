#!/bin/sh
# `make test-windows`: the unit tests and the command, built for Windows, under wine; what the command answers is what
# Linux's answers, to the token.
#     tests/windows/run.sh install        mingw-w64 and wine from Debian, where they are missing
#     tests/windows/run.sh test NAME...   runs build/windows/tests/NAME.exe, then the command
cd "$(dirname "$0")/../.." || exit 1
if [ "$1" = install ]; then
    command -v x86_64-w64-mingw32-gcc > /dev/null && command -v wine > /dev/null && exit 0
    packages="gcc-mingw-w64-x86-64 g++-mingw-w64-x86-64 gcc-mingw-w64-i686 g++-mingw-w64-i686 wine wine64"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends $packages; } > /dev/null ||
        { echo "test-windows: no mingw-w64 or wine, and they could not be installed" >&2; exit 1; }
    exit 0
fi
shift

. tests/shell.sh
linux=./tokenskip
windows=build/windows/tokenskip.exe
demo=examples/demo-model
# a Windows of its own, with neither windows nor a browser, to which names are UTF-8
LC_ALL=C.UTF-8
WINEPREFIX=$PWD/build/windows/wine WINEDEBUG=-all WINEDLLOVERRIDES='mscoree=;mshtml=' DISPLAY=
export WINEPREFIX WINEDEBUG WINEDLLOVERRIDES DISPLAY
mkdir -p build/windows
[ -d "$WINEPREFIX" ] || wineboot -i > /dev/null 2>&1
wine() { command wine "$@"; }

# ---- the unit tests

unit_passed=0 unit_failed=0
for name in "$@"; do
    log=build/windows/$name.log
    wine "build/windows/tests/$name.exe" > "$log" 2>&1
    rc=$?
    counts=$(tail -n 1 "$log" | tr -d '\r' | sed -n "s/^$name: \([0-9]*\) passed, \([0-9]*\) failed\$/\1 \2/p")
    [ -n "$counts" ] && { [ "$rc" -eq 0 ] || [ "${counts#* }" -ne 0 ]; } || counts="0 1"
    [ "${counts#* }" -eq 0 ] || { grep 'failed:' "$log" || tail -n 20 "$log"; } | head -n 20
    echo "$name: ${counts% *} passed, ${counts#* } failed"
    unit_passed=$((unit_passed + ${counts% *})) unit_failed=$((unit_failed + ${counts#* }))
done

# ---- the command

run() { # run ARGUMENTS...
    wine $windows "$@" > "$out" 2> "$err"
    rc=$?
}

# Times are no results, and the names of the devices differ in the number of threads at most.
results() { sed -E 's/"[a-z_]*(_ms|seconds|per_second|seconds_per_answer)":[-0-9.e]+/"":0/g'; }

# The same exit status, the same on both streams. Standard input is $in.
in=/dev/null
same() { # same WHAT ARGUMENTS...
    case_=$1
    shift
    $linux "$@" < "$in" > "$work/linux.out" 2> "$work/linux.err"
    expected=$?
    wine $windows "$@" < "$in" > "$work/windows.out" 2> "$err"
    rc=$?
    results < "$work/linux.out" > "$work/expected"
    results < "$work/windows.out" > "$out"
    check "$case_: exit status $expected" [ "$rc" -eq "$expected" ]
    check "$case_: the same output" cmp -s "$work/expected" "$out"
    grep -v -e "$progress" "$work/linux.err" > "$work/expected.err"
    grep -v -e "$progress" "$err" > "$work/said"
    check "$case_: the same messages as \"$(cat "$work/expected.err")\"" cmp -s "$work/expected.err" "$work/said"
}

same "--help" --help
same "--version" --version
same "help eval" help eval
same "no command"
same "an unknown option" generate -m $demo -p x --nonsense
same "a value that makes no sense" generate -m $demo -p x --gen-length=-3
same "a folder that is not there" generate -m no/such/folder -p x
same "a name in UTF-8 that is not there" inspect 'żółć/模型'
refuses 1 "README.md/config.json" generate -m README.md -p x
same "a folder for a file" template -m $demo --messages tests
same "no JSON" template -m $demo --messages README.md
same "a damaged model" inspect README.md

printf 'Zażółć gęślą jaźń\r\n你好 😀 \032 after\n\001 raw' > "$work/text"
printf 'not UTF-8: \377' > "$work/bytes"
in=$work/bytes
same "tokenize what is no text" tokenize -m $demo
in=$work/text
same "tokenize" tokenize -m $demo
same "tokenize --jsonl" tokenize -m $demo --jsonl
$linux tokenize -m $demo < "$work/text" > "$work/ids"
in=$work/ids
same "tokenize --decode, bytes as they are" tokenize -m $demo --decode
in=/dev/null
same "inspect" inspect $demo
same "inspect --json" inspect $demo --json
echo '[{"role": "user", "content": "Hello ż"}]' > "$work/messages.json"
same "template" template -m $demo --messages "$work/messages.json"

same "generate" generate -m $demo -p "Who is Newton in physics?" --gen-length 32
for options in "" "--no-threshold --steps 32" "--temperature 0.8 --seed 5" "--cache none" \
    "--skip-layer-k 1 --skip-threshold 0.9 --skip-policy exit" "--dtype f32 --threads 1"; do
    same "generate $options" generate -m $demo -p "What is 84 + 23 - 39? żółć" --gen-length 64 --json $options
done
echo "A prompt from a file" > "$work/prompt"
in=$work/prompt
same "generate, the prompt from a file" generate -m $demo --gen-length 32
in=/dev/null
for model in mha-f32 gqa-bf16; do
    same "generate with ids, $model" generate -m tests/golden/models/$model --prompt-ids 5,6,70,8 --gen-length 32 \
        --block-length 8 --json
done
same "eval" eval -m $demo --data $demo/eval.jsonl --limit 6 --json
same "trace" trace -m tests/golden/models/mha-f32 --prompt-ids 5,6,70,8 --gen-length 16 --block-length 8 --json

# from a pipe
printf 'What is 2 + 3?\n' | wine $windows generate -m $demo --gen-length 32 > "$out" 2> "$err"
rc=$?
check "a pipe: the same answer" [ "$(cat "$out")" = "$($linux generate -m $demo -p 'What is 2 + 3?' --gen-length 32)" ]

# files: names in UTF-8, a path beyond 260 characters, what is there before is replaced
long=$work/$(printf '%0100d/%0100d' 1 2)
mkdir -p "$long" && cp -r $demo "$long/mödel 模型"
run generate -m "$long/mödel 模型" -p "What is 2 + 3?" --gen-length 32
check "a long path in UTF-8: the same answer" \
    [ "$(cat "$out")" = "$($linux generate -m $demo -p 'What is 2 + 3?' --gen-length 32)" ]
dump="$long/wynik ł.safetensors"
echo old > "$dump"
run trace -m tests/golden/models/mha-f32 --prompt-ids 5,6 --gen-length 8 --block-length 8 --dump "$dump" \
    --dump-pattern 'pass[0-1].layer_?.*put'
check "trace --dump: exit status 0" [ "$rc" -eq 0 ]
$linux trace -m tests/golden/models/mha-f32 --prompt-ids 5,6 --gen-length 8 --block-length 8 \
    --dump "$work/linux.safetensors" --dump-pattern 'pass[0-1].layer_?.*put' > "$work/linux.out" 2>&1
$linux inspect --json "$dump" | sed 's/"path":"[^"]*"//' > "$work/windows.list"
$linux inspect --json "$work/linux.safetensors" | sed 's/"path":"[^"]*"//' > "$work/linux.list"
check "trace --dump has the same values under the same names" \
    [ "$(grep -c block_ "$work/linux.list")" -gt 0 -a "$(cat "$work/windows.list")" = "$(cat "$work/linux.list")" ]
check "... and left nothing else beside it" [ "$(ls -A "$long" | wc -l)" -eq 2 ]
run trace -m tests/golden/models/mha-f32 --prompt-ids 5,6 --gen-length 8 --block-length 8 --html "$long/strona ż.html"
check "trace --html: exit status 0" [ "$rc" -eq 0 ]
check "... a page" grep -q '</html>' "$long/strona ż.html"

# batch: an output that is gone on with, shards, and their merging into an output that is there
for i in 1 2 3 4 5; do
    echo "{\"id\": \"r$i ż\", \"prompt\": \"What is $i + 3?\", \"gen_length\": 32}"
done > "$work/requests"
echo '{"id": 6, "prompt": 7}' >> "$work/requests"
batch="batch -m $demo --input $work/requests"
$linux $batch --output "$work/linux.jsonl" 2> "$work/linux.err"
expected=$?
$linux $batch --output - 2> "$work/linux.err" | head -n 2 > "$work/wy nik.jsonl"
printf '{"id":"r3' >> "$work/wy nik.jsonl"
run $batch --output "$work/wy nik.jsonl"
check "batch: exit status $expected" [ "$rc" -eq "$expected" ]
results < "$work/linux.jsonl" > "$work/expected"
results < "$work/wy nik.jsonl" > "$work/got"
check "batch goes on to the same results" cmp -s "$work/expected" "$work/got"
for shard in 0 1; do run $batch --output "$work/s.jsonl" --shard $shard/2; done
check "two shards" [ "$(cat "$work"/s.jsonl.shard-*-of-2 | wc -l)" -eq 6 ]
head -n 1 "$work/linux.jsonl" > "$work/s.jsonl"
run batch --merge "$work/s.jsonl.shard-0-of-2" "$work/s.jsonl.shard-1-of-2" --output "$work/s.jsonl"
check "batch --merge: exit status 0" [ "$rc" -eq 0 ]
results < "$work/s.jsonl" > "$work/got"
check "batch --merge joins them over what was there" cmp -s "$work/expected" "$work/got"
run $batch --output "$work/s.jsonl" --shard 0/1
check "a batch that is done already does nothing" cmp -s "$work/expected" "$work/got"
run $batch --output "$work"
check "batch into a folder: refused" [ "$rc" -eq 1 ]

# The console, which wine draws a character at a time: keys, their UTF-8, colours, Ctrl-C and the end of the input.
on_console() { # on_console STEP... -- ARGUMENTS...
    ./tests/on_terminal "$@" > "$work/drawn" 2> "$err" < /dev/null
    rc=$?
    sed "s/$escape\[[0-9;?]*[a-zA-Z]//g" "$work/drawn" | tr -d '\r ' > "$out"
}
start="stty raw -echo; exec wine $windows"
enter=$(printf '\r')
ctrl_z=$(printf '\032')
if has_terminal test_windows; then
    TERM=xterm
    export TERM
    answer=$($linux generate -m $demo -p "Say it: ż" | tr -d ' ')
    on_console 'see:>' "type:Say it: ż$enter" 'see:>' "type:/exit$enter" -- sh -c "$start chat -m $demo"
    check "chat: /exit leaves with 0" [ "$rc" -eq 0 ]
    check "chat: the same answer" prints "$(printf '%s' "$answer" | head -n 1 | cut -c 1-20)"
    on_console 'see:>' "type:$ctrl_z$enter" -- sh -c "$start chat -m $demo"
    check "chat: Ctrl-Z leaves with 0" [ "$rc" -eq 0 ]
    on_console 'see:>' "type:$ctrl_c" 'see:>' "type:$ctrl_c" -- wine $windows chat -m $demo
    check "chat: Ctrl-C twice leaves with 130" [ "$rc" -eq 130 ]
    on_console 'see:#' "type:$ctrl_c" -- wine $windows eval -m $demo --data $demo/eval.jsonl
    check "eval: Ctrl-C ends it with 130" [ "$rc" -eq 130 ]
fi

echo "the command: $passed passed, $failed failed"
passed=$((passed + unit_passed)) failed=$((failed + unit_failed))
echo "test_windows: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
