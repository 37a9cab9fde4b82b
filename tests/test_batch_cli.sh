# `batch` as a user runs it: results, order, resuming, ranks. Run from the repository's root.
. tests/shell.sh
golden=tests/golden/models/mha-f32
demo=examples/demo-model
input=$work/input.jsonl
output=$work/output.jsonl
unset OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_LOCAL_RANK SLURM_PROCID SLURM_NTASKS SLURM_LOCALID
exec < /dev/null

equal() { [ "$1" -eq "$2" ] 2> /dev/null; }
works_silently() {
    works "$@"
    check "'$*' says nothing on stdout" [ ! -s "$out" ]
}

small="batch -m $golden --input $input --output $output --gen-length 32 --block-length 8 --threads 1"
result() { grep -e "^{\"id\":$1,"; }                                    # result ID < OUTPUT
tokens() { sed -n 's/.*"tokens":\(\[[^]]*\]\).*/\1/p'; }
error_of() { result "$1" < "$output" | grep -q -e "\"error\":\".*$2"; }
failures() { # failures N TOTAL LINE REASON: what the last run says of them, beside its exit status
    check "failed requests: exit status 1" [ "$rc" -eq 1 ]
    check "one line" one_line
    check "it says $1 of $2, the first at line $3: $4" says "^tokenskip: $output.*: $1 of $2 requests failed, the first at line $3 of $input: .*$4"
}
id_list() { sed 's/^{"id":\("[^"]*"\|[-0-9]*\),.*/\1/' "$@"; }
all_json() { # each line an object of its own
    while read -r line; do
        printf '%s\n' "$line" > "$work/one"
        "$lint" "$work/one" > /dev/null 2>&1 || return 1
    done < "$1"
}
requests() { # requests N: some quick, some slow
    awk -v n="$1" 'BEGIN { for (i = 1; i <= n; i++)
        printf "{\"id\": \"r%d\", \"prompt_ids\": [%d, %d, 3], \"gen_length\": %d, \"no_eos_stop\": true%s}\n",
               i, i % 60, (i * 7) % 60, 8 + 8 * ((i * 5) % 9), i % 3 ? "" : ", \"no_threshold\": true" }'
}

# ---- Usage ----------------------------------------------------------------------------------------------------------

test_usage() {
    requests 2 > "$input"
    refuses 2 '--input' batch -m $golden --output "$output"
    refuses 2 '--output' batch -m $golden --input "$input"
    refuses 2 'needs -m' batch --input "$input" --output "$output"
    refuses 2 'input|completed' $small --order random
    refuses 2 'I/N' $small --shard 3/3
    refuses 2 'I/N' $small --shard -1/3
    refuses 2 'I/N' $small --shard 1
    refuses 2 'I/N' $small --shard 0/0
    refuses 2 'I/N' $small --shard 0/2x
    refuses 2 "'--json'" $small --json
    refuses 1 'nowhere.jsonl' batch -m $golden --input "$work/nowhere.jsonl" --output "$output"
    refuses 1 'folder' batch -m $golden --input "$work" --output "$output"
    refuses 1 'neither a regular file nor a pipe' batch -m $golden --input /dev/null --output "$output"
    refuses 1 'neither a regular file nor a pipe' batch -m $golden --input /dev/zero --output "$output"
    refuses 1 'nowhere/output' batch -m $golden --input "$input" --output "$work/nowhere/output"
    refuses 1 "cannot write '$work'" batch -m $golden --input "$input" --output "$work"
    refuses 1 'not a regular file' batch -m $golden --input "$input" --output /dev/null
    refuses 1 'it is the input' batch -m $golden --input "$input" --output "$input"
    check "the input is still there" equal "$(wc -l < "$input")" 2
    ln "$input" "$work/link"
    refuses 1 'it is the input' batch -m $golden --input "$input" --output "$work/link"
    refuses 1 "$work/nomodel" batch -m "$work/nomodel" --input "$input" --output "$output"
    refuses 1 'max_requests' $small --max-batch 0
    for kept in 'some text' '{"name": 1}' '[]' '{"id":1.5,"x":1}'; do
        printf '%s\nmore' "$kept" > "$work/kept"
        cp "$work/kept" "$work/before"
        refuses 1 'line 1: not a result' batch -m $golden --input "$input" --output "$work/kept"
        check "somebody else's file stays as it is" cmp -s "$work/kept" "$work/before"
    done
    printf 'no newline' > "$work/kept"
    refuses 1 'line 1: not a result' batch -m $golden --input "$input" --output "$work/kept"
    check "nothing of it is cut off" [ "$(cat "$work/kept")" = 'no newline' ]
}

# ---- Results --------------------------------------------------------------------------------------------------------

# Every request's options are its own; the command line's are the defaults.
test_requests() {
    cat > "$input" << 'END'
{"id": "plain", "prompt_ids": [1, 2, 3]}
{"id": 7, "prompt_ids": [1, 2, 3], "gen_length": 64}
{"id": -7, "prompt_ids": [1, 2, 3], "no_threshold": true, "steps": 16}
{"id": "7", "prompt_ids": [1, 2, 3], "temperature": 0.75, "seed": 18446744073709551615}

{"id": "choices", "prompt_ids": [1, 2, 3], "cache": "prefix", "remasking": "random", "skip_layer_k": 0}
{"id": "switches", "prompt_ids": [1, 2, 3], "eos_stop": false, "skip_masked": true, "skip_refresh": true}
{"id": "no", "prompt_ids": [1, 2, 3], "no_eos_stop": true, "no_skip_masked": false, "no_skip_refresh": false}
{"id": "refreshes", "prompt_ids": [1, 2, 3], "no_threshold": true, "refresh_rows": 5, "refresh_every": 2}
{"id": "preset", "prompt_ids": [1, 2, 3], "skip_preset": "seed", "skip_threshold": 1e-1, "skip_reference": "last-computed"}
{"id": "factor", "prompt_ids": [1, 2, 3], "factor": 1.5}
{"id": "\u00e4\"\n", "prompt_ids": [1, 2, 3]}
END
    works_silently $small
    check "a result for each request" equal "$(wc -l < "$output")" 11
    check "each is JSON" all_json "$output"
    check "in order" [ "$(id_list "$output" | head -n 4 | tr '\n' ' ')" = '"plain" 7 -7 "7" ' ]
    alone() { # alone ID OPTIONS...: what generate makes of it
        id=$1
        shift
        "$tokenskip" generate -m $golden --prompt-ids 1,2,3 --gen-length 32 --block-length 8 --threads 1 --json "$@" > "$work/alone"
        check "$id as alone" [ "$(result "$id" < "$output" | tokens)" = "$(tokens < "$work/alone")" ]
        check "$id has the fields of generate --json" [ "$(result "$id" < "$output" | grep -o '"[a-z_]*":' | tr -d '\n')" = "\"id\":$(grep -o '"[a-z_]*":' "$work/alone" | tr -d '\n')" ]
    }
    alone '"plain"'
    alone 7 --gen-length 64
    alone -7 --no-threshold --steps 16
    alone '"7"' --temperature 0.75 --seed 18446744073709551615
    alone '"choices"' --cache prefix --remasking random
    alone '"switches"' --no-eos-stop --skip-masked --skip-refresh
    alone '"no"' --no-eos-stop --skip-masked --skip-refresh
    alone '"refreshes"' --no-threshold --refresh-rows 5 --refresh-every 2
    alone '"preset"' --skip-preset seed --skip-threshold 0.1 --skip-reference last-computed
    alone '"factor"' --factor 1.5
    check "an id keeps its characters" grep -q -F '{"id":"ä\"\n","text"' "$output"

    rm "$output"
    works_silently $small --factor 2 --skip-masked --max-batch 3
    alone '"plain"' --factor 2 --skip-masked
    alone -7 --no-threshold --steps 16 --skip-masked
    alone '"factor"' --factor 1.5 --skip-masked
}

# A bad line never stops the others.
test_bad_lines() {
    {
        echo '{"id": "first", "prompt_ids": [1, 2, 3]}'
        echo 'not JSON'
        echo '{"id": "cut", "prompt_ids": [1, 2'
        echo '[1]'
        echo '{"prompt_ids": [1]}'
        echo '{"id": null, "prompt_ids": [1]}'
        echo '{"id": 1.5, "prompt_ids": [1]}'
        printf '{"id": "\377", "prompt_ids": [1]}\n'
        echo '{"id": "first", "prompt_ids": [4]}'
        echo '{"id": "none"}'
        echo '{"id": "two", "prompt": "x", "prompt_ids": [1]}'
        echo '{"id": "text", "prompt": "no tokenizer here"}'
        echo '{"id": "chat", "messages": [{"role": "user", "content": "x"}]}'
        echo '{"id": "ids", "prompt_ids": [1, -1]}'
        echo '{"id": "string", "prompt_ids": "1,2"}'
        echo '{"id": "outside", "prompt_ids": [1, 64]}'
        echo '{"id": "long", "prompt_ids": [1], "gen_length": 512}'
        echo '{"id": "multiple", "prompt_ids": [1], "gen_length": 33}'
        echo '{"id": "unknown", "prompt_ids": [1], "gen-length": 32}'
        echo '{"id": "device", "prompt_ids": [1], "device": "cpu"}'
        echo '{"id": "type", "prompt_ids": [1], "gen_length": "32"}'
        echo '{"id": "half", "prompt_ids": [1], "gen_length": 32.5}'
        echo '{"id": "bool", "prompt_ids": [1], "eos_stop": 1}'
        echo '{"id": "choice", "prompt_ids": [1], "cache": "most"}'
        echo '{"id": "rules", "prompt_ids": [1], "factor": 1, "threshold": 0.9}'
        echo '{"id": "cache", "prompt_ids": [1], "cache": "none", "skip_layer_k": 2}'
        echo '{"id": "line 30", "prompt_ids": [1, 2, 3]}'
        printf '{"id": "last", "prompt_ids": [1, 2, 3]}' # no newline
    } > "$input"
    rm -f "$output"
    run $small
    failures 25 28 2 'not JSON'
    check "a result for each line" equal "$(wc -l < "$output")" 28
    check "each is JSON" all_json "$output"
    check "no id twice" [ -z "$(id_list "$output" | sort | uniq -d)" ]
    check "the first is answered, with its own prompt" [ "$(result '"first"' < "$output" | grep -c '"prompt_tokens":\[1,2,3\]')" -eq 1 ]
    check "so is the last, without a newline" [ -n "$(result '"last"' < "$output" | tokens)" ]
    for n in 2 3 4 5 6 7 8 9; do check "line $n has its number for an id" error_of "\"line $n\"" .; done
    check "an earlier line's id" error_of '"line 9"' 'first.*earlier line'
    check "no prompt" error_of '"none"' 'must be there'
    check "two prompts" error_of '"two"' 'must be there'
    check "no tokenizer" error_of '"text"' 'tokenizer'
    check "none for messages" error_of '"chat"' 'tokenizer'
    check "an id below zero" error_of '"ids"' 'number 1'
    check "ids as a string" error_of '"string"' 'array'
    check "an id outside the table" error_of '"outside"' '64'
    check "too long" error_of '"long"' 'max_sequence_length'
    check "not a multiple" error_of '"multiple"' 'multiple'
    check "no such member" error_of '"unknown"' 'gen-length'
    check "an option of the whole run" error_of '"device"' 'device'
    check "a number as a string" error_of '"type"' 'a number'
    check "half a token" error_of '"half"' 'whole number'
    check "1 is not true" error_of '"bool"' 'true or false'
    check "no such choice" error_of '"choice"' 'dual|prefix|none'
    check "two rules" error_of '"rules"' 'exclude each other'
    check "a cache without TokenSkip" error_of '"cache"' 'dual only'
    cp "$output" "$work/before"
    run $small
    failures 25 28 2 'in an earlier run'
    check "a second run adds nothing" cmp -s "$output" "$work/before"
    rm "$output"
    run $small --order completed
    failures 25 28 2 'not JSON'
    : > "$input"
    rm "$output"
    works_silently $small
    check "no requests, no results" [ -f "$output" -a ! -s "$output" ]
    printf '\n\r\n' > "$input"
    works_silently $small
    check "empty lines are no requests" [ ! -s "$output" ]
}

# The exit status is that of the whole output, whichever run wrote a line.
test_status() {
    { requests 3; echo '{"id": "bad"}'; echo '{"id": "worse", "prompt_ids": [64]}'; } > "$input"
    rm -f "$output"
    run $small
    failures 2 5 4 'must be there'
    check "a result for each all the same" equal "$(wc -l < "$output")" 5
    grep -v '"error"' "$output" > "$work/kept"
    { cat "$work/kept"; result '"worse"' < "$output"; } > "$work/resumed"
    cp "$work/resumed" "$output"
    run $small
    failures 2 5 4 'must be there'
    check "a line that was taken out is done again" equal "$(wc -l < "$output")" 5
    { requests 3; echo '{"id": "bad", "prompt_ids": [3]}'; echo '{"id": "worse", "prompt_ids": [64]}'; } > "$input"
    cp "$work/resumed" "$output"
    run $small
    failures 1 5 5 'in an earlier run'
    { requests 3; echo '{"id": "bad", "prompt_ids": [3]}'; } > "$input"
    works_silently $small
    check "failures of requests that are no longer asked do not count" equal "$(wc -l < "$output")" 5
    { echo '{"id": "none"}'; echo '[]'; } > "$input"
    rm "$output"
    run $small
    failures 2 2 1 'must be there'
}

test_prompts() {
    cat > "$input" << 'END'
{"id": 1, "prompt": "Who is Newton in physics?"}
{"id": 2, "messages": [{"role": "user", "content": "Who is Newton in physics?"}]}
{"id": 3, "prompt": "Who is Newton in physics?", "raw": true}
{"id": 4, "prompt": "Who is Newton in physics?", "system": "Be brief."}
{"id": 5, "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is Newton in physics?"}]}
{"id": 6, "prompt": "x", "system": "Be brief.", "raw": true}
{"id": 7, "messages": [], "gen_length": 32}
{"id": 8, "messages": [{"role": "user"}]}
{"id": 9, "prompt": "a\u0000b"}
{"id": 10, "prompt_ids": [1], "system": "Be brief."}
{"id": 11, "prompt": 3}
END
    rm -f "$output"
    run batch -m $demo --input "$input" --output "$output" --gen-length 32
    failures 6 11 6 'chat template'
    prompt_of() { result "$1" < "$output" | sed 's/.*"prompt_tokens":\(\[[^]]*\]\).*/\1/'; }
    "$tokenskip" generate -m $demo -p "Who is Newton in physics?" --gen-length 32 > "$work/alone"
    check "generate's text" grep -q -F "{\"id\":1,\"text\":\"$(cat "$work/alone")\"," "$output"
    check "one message is a prompt" [ "$(prompt_of 1)" = "$(prompt_of 2)" ]
    check "raw is not" [ "$(prompt_of 1)" != "$(prompt_of 3)" ]
    check "a system message is one of two" [ "$(prompt_of 4)" = "$(prompt_of 5)" ]
    for n in 6 7 8 9 10 11; do check "request $n is refused" error_of $n .; done
    rm "$output"
    run batch -m $demo --input "$input" --output "$output" --gen-length 32 --system "Be brief."
    check "--system is the default" [ "$(prompt_of 1)" = "$(prompt_of 4)" ]
    check "and yields to raw" [ -n "$(result 3 < "$output" | tokens)" ]
}

# As completed: quick ones come before the slow one that stands first.
test_order() {
    {
        echo '{"id": "slow", "prompt_ids": [1], "gen_length": 128, "no_threshold": true, "no_eos_stop": true}'
        requests 20
    } > "$input"
    rm -f "$output"
    works_silently $small --order completed --max-batch 4
    check "as completed: all there" equal "$(wc -l < "$output")" 21
    check "as completed: quick ones come before the slow one" [ "$(id_list "$output" | head -n 1)" = '"r2"' ]
    sort "$output" | tokens > "$work/completed"
    rm "$output"
    works_silently $small --max-batch 4
    check "in input order" [ "$(id_list "$output" | tr -d '"' | tr '\n' ' ')" = "slow $(seq -f r%g 20 | tr '\n' ' ')" ]
    check "the same tokens" [ "$(sort "$output" | tokens)" = "$(cat "$work/completed")" ]
    rm "$output"
    works_silently $small --max-batch 1
    check "one at a time too" [ "$(sort "$output" | tokens)" = "$(cat "$work/completed")" ]
    rm "$output"
    works_silently $small --cache-tokens 140
    check "with little room too" [ "$(sort "$output" | tokens)" = "$(cat "$work/completed")" ]
}

# ---- Resuming -------------------------------------------------------------------------------------------------------

test_cut_line() {
    requests 12 > "$input"
    rm -f "$output"
    works_silently $small
    cp "$output" "$work/whole"
    for bytes in 1 5 6 7 40 700; do
        { head -n 4 "$work/whole"; sed -n 5p "$work/whole" | head -c $bytes; } > "$output"
        works_silently $small
        check "cut after $bytes bytes of a line: nothing twice, nothing lost" [ "$(id_list "$output")" = "$(id_list "$work/whole")" ]
        check "the same tokens" [ "$(tokens < "$output")" = "$(tokens < "$work/whole")" ]
    done
    head -c -1 "$work/whole" > "$output"
    works_silently $small
    check "only the newline is missing" [ "$(id_list "$output")" = "$(id_list "$work/whole")" ]
    check "what was written is not done again" [ "$(head -n 11 "$output")" = "$(head -n 11 "$work/whole")" ]
    { sed -n 5p "$work/whole"; sed -n 2p "$work/whole"; } > "$output"
    works_silently $small
    check "results from anywhere are skipped" [ "$(id_list "$output" | sort)" = "$(id_list "$work/whole" | sort)" ]
}

# Killed at any time, again and again: in the end each line has its result once.
test_kill() { # test_kill SIGNAL OPTIONS...
    signal=$1
    shift
    { requests 150; echo 'not JSON'; requests 3; } > "$input"
    rm -f "$output"
    for delay in 0.02 0.1 0.15 0.2 0.25 0.3 0.35; do
        "$tokenskip" $small "$@" > "$out" 2> "$err" &
        pid=$!
        sleep $delay
        kill -s "$signal" $pid 2> /dev/null
        { wait $pid; } 2> /dev/null
        rc=$?
        [ "$signal" = KILL ] && continue
        [ ! -s "$output" ] || check "SIG$signal: whole lines" [ "$(tail -c 1 "$output" | od -An -c | tr -d ' ')" = '\n' ]
        [ "$rc" -eq 143 ] || check "SIG$signal: 143, or done" says 'requests failed'
        [ ! -s "$err" ] || check "SIG$signal: one line, or too early for one" one_line
    done
    run $small "$@"
    failures 4 154 151 ''
    check "SIG$signal $*: each result once" [ "$(id_list "$output" | sort)" = "$( (seq -f '"r%g"' 150; seq -f '"line %g"' 151 154) | sort)" ]
    check "SIG$signal $*: each is JSON" all_json "$output"
    [ $# -ne 0 ] || check "SIG$signal: in order" [ "$(id_list "$output" | head -n 150)" = "$(seq -f '"r%g"' 150)" ]
}

interrupted() { # interrupted STATUS RESULTS
    check "interrupted: $1" [ "$rc" -eq "$1" ]
    check "one line" one_line
    check "it says how far it came and how it goes on" says "interrupted after $2 results; run again to go on with $output"
}

# A line without an end, of which some has been read when the signal comes; and one that never comes.
test_endless_line() {
    for signal in TERM INT; do
        rm -f "$output" "$work/pipe"
        mkfifo "$work/pipe"
        "$tokenskip" batch -m $golden --input "$work/pipe" --output "$output" > "$out" 2> "$err" &
        pid=$!
        {
            requests 1
            head -c 4000000 /dev/zero | tr '\0' x
            kill -s $signal $pid
            exec cat /dev/zero
        } > "$work/pipe" 2> /dev/null &
        writer=$!
        wait_for $pid
        kill $writer 2> /dev/null
        { wait $writer; } 2> /dev/null
        interrupted $([ $signal = TERM ] && echo 143 || echo 130) '[01]'
    done
    rm -f "$output" "$work/pipe"
    mkfifo "$work/pipe"
    "$tokenskip" $small --max-batch 1 --input "$work/pipe" > "$out" 2> "$err" &
    pid=$!
    exec 7> "$work/pipe"
    requests 3 >&7
    while [ "$(cat "$output" 2> /dev/null | wc -l)" -lt 2 ]; do sleep 0.05; done # then it waits for a fourth line
    kill -s TERM $pid
    wait_for $pid
    exec 7>&-
    interrupted 143 '[0-9]'
    check "what was written stays" all_json "$output"
}

test_full_disk() {
    requests 60 > "$input"
    rm -f "$output"
    run_with_room 8 $small
    check "a full disk fails" [ "$rc" -eq 1 ]
    check "a full disk: one line" one_line
    check "a full disk leaves whole lines" all_json "$output"
    works_silently $small
    check "and the rest comes later" [ "$(id_list "$output")" = "$(seq -f '"r%g"' 60)" ]
}

test_lock() {
    requests 300 > "$input"
    rm -f "$output"
    "$tokenskip" $small > /dev/null 2>&1 &
    pid=$!
    while [ ! -s "$output" ]; do sleep 0.02; done
    refuses 1 'another process' $small
    kill $pid 2> /dev/null
    { wait $pid; } 2> /dev/null
}

# ---- Ranks ----------------------------------------------------------------------------------------------------------

shards_are_all() { # shards_are_all N COUNT
    [ "$(cat "$output".shard-*-of-"$1" | wc -l)" -eq "$2" ] && [ "$(id_list "$output".shard-*-of-"$1" | sort -u | wc -l)" -eq "$2" ]
}

test_ranks() {
    { requests 20; echo 'not JSON'; requests 1; } > "$input" # line 22 has the id of line 1, another rank's
    rm -f "$output"
    run $small
    cp "$output" "$work/whole"
    rm "$output"
    for i in 0 1 2; do
        OMPI_COMM_WORLD_SIZE=3 OMPI_COMM_WORLD_RANK=$i OMPI_COMM_WORLD_LOCAL_RANK=$i SLURM_PROCID=0 SLURM_NTASKS=1 \
            "$tokenskip" $small > "$out" 2> "$work/err$i" || : > "$work/killed" &
    done
    wait
    check "no rank has mpirun kill the others" [ ! -e "$work/killed" ]
    check "the rank of a failed request says so" grep -q "^tokenskip: $output.shard-0-of-3: 1 of 8 requests failed, the first at line 22 " "$work/err0"
    check "the others say nothing" [ ! -s "$work/err1" ]
    check "OpenMPI's ranks divide the input" shards_are_all 3 22
    check "and find the same" [ "$(cat "$output".shard-* | sort | tokens)" = "$(sort "$work/whole" | tokens)" ]
    check "every third line" [ "$(id_list "$output.shard-1-of-3" | head -n 3 | tr '\n' ' ')" = '"r2" "r5" "r8" ' ]
    check "no file beside them" [ ! -e "$output" ]
    check "an id of another rank's line" grep -q '^{"id":"line 22","error"' "$output.shard-0-of-3"
    rm "$output".shard-*
    for i in 0 1; do
        SLURM_NTASKS=2 SLURM_PROCID=$i SLURM_LOCALID=$i "$tokenskip" $small --device cpu > /dev/null 2>&1 || : > "$work/failed$i" &
    done
    wait
    check "Slurm's ranks too" shards_are_all 2 22
    check "and both fail, with a failed request each" [ -e "$work/failed0" -a -e "$work/failed1" ]
    rm "$output".shard-0-of-2
    run $small --shard 0/1
    failures 2 22 21 'not JSON'
    check "another number of ranks does only what is missing" equal "$(wc -l < "$output")" 11
    rm "$output"*
    SLURM_NTASKS=2 SLURM_PROCID=1 run $small --shard 3/4
    check "--shard wins over a rank" [ "$(ls "$work" | grep -c 'output.jsonl')" -eq 1 -a -e "$output.shard-3-of-4" ]
    rm "$output"*
    SLURM_NTASKS=2 SLURM_PROCID=2 refuses 1 'SLURM_PROCID' $small
    OMPI_COMM_WORLD_SIZE=x OMPI_COMM_WORLD_RANK=0 refuses 1 'OMPI_COMM_WORLD_SIZE' $small
    SLURM_LOCALID=-1 refuses 1 'SLURM_LOCALID' $small
    rm -f "$output"*
}

test_terminal() {
    has_terminal test_terminal || return
    requests 40 > "$input"
    rm -f "$output"
    on_terminal -- "$tokenskip" $small
    check "progress has a rate and the time left" prints '[0-9] done, [0-9.]*/s, [0-9]* s left'
    check "and a last line" prints 'tokenskip: 40 requests, '
    requests 5000 > "$input"
    rm -f "$output"
    on_terminal see:" done, " type:"$ctrl_c" -- "$tokenskip" $small
    check "Ctrl-C: 130" [ "$rc" -eq 130 ]
    check "it says how far it came" prints 'tokenskip: interrupted after [0-9]* results; run again'
    check "whole lines" all_json "$output"
}

: > "$output"
test_usage
test_requests
test_bad_lines
test_status
test_prompts
test_order
test_cut_line
test_kill KILL
test_kill KILL --order completed --max-batch 5
test_kill TERM
test_endless_line
test_full_disk
test_lock
test_ranks
test_terminal
echo "test_batch_cli: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
