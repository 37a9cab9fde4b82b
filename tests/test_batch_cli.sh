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
    check "it says $1 of $2, the first at line $3: $4" \
        says "^tokenskip: $output.*: $1 of $2 requests failed, the first at line $3 of $input: .*$4"
}
id_list() { sed 's/^{"id":null,"line":\([0-9]*\),.*/line \1/; s/^{"id":\("[^"]*"\|[-0-9]*\),.*/\1/' "$@"; }
error_of_line() { grep -e "^{\"id\":null,\"line\":$1,\"error\":\".*$2" "$output" > /dev/null; }
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
{"id":"preset","prompt_ids":[1,2,3],"skip_preset":"seed","skip_threshold":1e-1,"skip_reference":"last-computed"}
{"id": "factor", "prompt_ids": [1, 2, 3], "factor": 1.5}
{"id": "frechet", "prompt_ids": [1, 2, 3], "frechet": 0.01}
{"id": "entropy", "prompt_ids": [1, 2, 3], "entropy_bound": 2}
{"id": "leap", "prompt_ids": [1, 2, 3], "threshold": 0.1, "local_leap": 0.05, "local_radius": 2}
{"id": "\u00e4\"\n", "prompt_ids": [1, 2, 3]}
END
    works_silently $small
    check "a result for each request" equal "$(wc -l < "$output")" 14
    check "each is JSON" all_json "$output"
    check "in order" [ "$(id_list "$output" | head -n 4 | tr '\n' ' ')" = '"plain" 7 -7 "7" ' ]
    alone() { # alone ID OPTIONS...: what generate makes of it
        id=$1
        shift
        "$tokenskip" generate -m $golden --prompt-ids 1,2,3 \
            --gen-length 32 --block-length 8 --threads 1 --json "$@" > "$work/alone"
        check "$id as alone" [ "$(result "$id" < "$output" | tokens)" = "$(tokens < "$work/alone")" ]
        check "$id has the fields of generate --json" \
            [ "$(result "$id" < "$output" | fields)" = "\"id\":$(fields < "$work/alone")" ]
    }
    fields() { grep -o '"[a-z_]*":' | tr -d '\n'; }
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
    alone '"frechet"' --frechet 0.01
    alone '"entropy"' --entropy-bound 2
    alone '"leap"' --threshold 0.1 --local-leap 0.05 --local-radius 2
    check "an id keeps its characters" grep -q -F '{"id":"ä\"\n","text"' "$output"

    rm "$output"
    works_silently $small --factor 2 --skip-masked --max-batch 3
    alone '"plain"' --factor 2 --skip-masked
    alone -7 --no-threshold --steps 16 --skip-masked
    alone '"factor"' --factor 1.5 --skip-masked

    # a preset takes the place of the command line's, which is none where TokenSkip is off
    cat > "$input" << 'END'
{"id": "default", "prompt_ids": [1, 2, 3], "skip_preset": "default"}
{"id": "seed", "prompt_ids": [1, 2, 3], "skip_preset": "seed"}
{"id": "off", "prompt_ids": [1, 2, 3], "skip_layer_k": 0}
END
    rm "$output"
    works_silently $small --no-threshold --skip-preset fast --skip-max-age 3
    skip() { sed 's/.*"skip":\({[^}]*}\).*/\1/'; }
    for how in 'default --skip-preset=default' 'seed --skip-preset=seed' 'off --skip-layer-k=0'; do
        alone "\"${how% *}\"" --no-threshold --skip-max-age 3 ${how#* }
        check "${how% *}: no option of the other preset" \
            [ "$(result "\"${how% *}\"" < "$output" | skip)" = "$(skip < "$work/alone")" ]
    done
}

# Tokens end where the text does, each request's as it asks. This model answers 9,8 with one token before its end, and
# 17 with none.
test_end() {
    cat > "$input" << 'END'
{"id": 1, "prompt_ids": [9, 8]}
{"id": 2, "prompt_ids": [9, 8], "pad": true}
{"id": 3, "prompt_ids": [9, 8], "no_eos_stop": true}
{"id": 4, "prompt_ids": [9, 8], "pad": false}
{"id": 5, "prompt_ids": [17]}
END
    ends="batch -m tests/golden/models/gqa-bf16 --input $input --output $output --gen-length 32 --block-length 8"
    count() { result "$1" < "$output" | tokens | tr -dc '0-9,' | awk -F, '{ n = NF } END { print n + 0 }'; }
    rm -f "$output"
    works_silently $ends
    check "up to the end" [ "$(count 1) $(count 2) $(count 3) $(count 4) $(count 5)" = "1 32 32 1 0" ]
    rm "$output"
    works_silently $ends --pad
    check "with --pad" [ "$(count 1) $(count 2) $(count 3) $(count 4) $(count 5)" = "32 32 32 1 32" ]
    rm "$output"
}

# A request shorter than the usual block is one block, whatever the command line's requests are.
test_short() {
    cat > "$input" << 'END'
{"id": 1, "prompt_ids": [1]}
{"id": 2, "prompt_ids": [1], "gen_length": 64}
{"id": 3, "prompt_ids": [1], "block_length": 8}
{"id": 4, "prompt_ids": [1], "gen_length": 5}
END
    blocks() { result "$1" < "$output" | sed 's/.*"blocks":\[\([^]]*\)\].*/\1/' | grep -o '"nfe"' | wc -l; }
    rm -f "$output"
    run batch -m $golden --input "$input" --output "$output" --gen-length 16 --no-eos-stop
    check "it works" [ "$rc" -eq 0 ]
    check "the command line's length is told once" one_line
    check "with its value" says 'gen-length 16 .* one block of 16$'
    check "1, 2, 2 and 1 blocks" [ "$(blocks 1) $(blocks 2) $(blocks 3) $(blocks 4)" = "1 2 2 1" ]
    rm "$output"
    run batch -m $golden --input "$input" --output "$output" --gen-length 16 --no-eos-stop --block-length 16
    check "a block's length on the command line is every request's" [ "$(blocks 1) $(blocks 2) $(blocks 3)" = "1 4 2" ]
    check "and must divide" error_of 4 '"gen_length.* 5 is not a multiple of --block-length 16'
}

# A whole number may be written with a point or an exponent.
test_whole_numbers() {
    cat > "$input" << END
{"id": 1.0, "prompt_ids": [1.0, 2e0, 30e-1], "gen_length": 32.0, "steps": 1.6e1, \
"seed": 7.00, "temperature": 1e0, "no_threshold": true}
{"id": 2, "prompt_ids": [1, 2, 3], "gen_length": 32, "steps": 16, "seed": 7, "temperature": 1, "no_threshold": true}
{"id": 1, "prompt_ids": [1]}
{"id": 3, "prompt_ids": [1], "gen_length": 32.5}
{"id": 4, "prompt_ids": [1.5]}
END
    rm -f "$output"
    run $small
    failures 3 5 3 'earlier line'
    check "1.0 is 1, and 32.0 is 32" [ "$(result 1 < "$output" | tokens)" = "$(result 2 < "$output" | tokens)" ]
    check "half a position is none" error_of 3 '"gen_length.* takes a whole number from 1 to 2147483647, not .32.5.'
    check "nor half a token" error_of 4 'number 0 is none'
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
        echo '{"id": "three", "prompt": "x", "prompt_ids": [1], "messages": []}'
        echo '{"id": "two lists", "prompt_ids": [1], "messages": []}'
        echo '{"id": "above", "prompt_ids": [1], "threshold": 1.5}'
        echo '{"id": "steps", "prompt_ids": [1], "steps": 0}'
        echo '{"id": "mixed", "prompt_ids": [1], "gen_length": 12}'
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
    failures 30 33 2 'not JSON'
    check "a result for each line" equal "$(wc -l < "$output")" 33
    check "each is JSON" all_json "$output"
    check "no id twice" [ -z "$(id_list "$output" | sort | uniq -d)" ]
    check "the first is answered, with its own prompt" \
        [ "$(result '"first"' < "$output" | grep -c '"prompt_tokens":\[1,2,3\]')" -eq 1 ]
    check "so is the last, without a newline" [ -n "$(result '"last"' < "$output" | tokens)" ]
    for n in 2 3 4 5 6 7 8 9; do check "line $n has no id, and its number" error_of_line $n .; done
    check "an earlier line's id" error_of_line 9 'first.*earlier line'
    check "no prompt" error_of '"none"' 'must be there'
    check "two prompts" error_of '"two"' 'only one of .\"prompt.\" and .\"prompt_ids.\" can be given'
    check "three prompts" error_of '"three"' 'only one of .\"prompt.\", .\"prompt_ids.\" and .\"messages.\" can'
    check "ids and messages" error_of '"two lists"' 'only one of .\"prompt_ids.\" and .\"messages.\" can'
    check "no threshold above 1" error_of '"above"' '.\"threshold.\" takes a number from 0 to 1, not .1.5.'
    check "no steps below 1" error_of '"steps"' '.\"steps.\" takes a whole number from 1'
    check "an option of the request, one of the command line" \
        error_of '"mixed"' '.\"gen_length.\" 12 is not a multiple of --block-length 8'
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
    check "two rules" error_of '"rules"' 'only one of ."threshold." and ."factor." can'
    check "a cache without TokenSkip" error_of '"cache"' 'dual only'
    cp "$output" "$work/before"
    run $small
    failures 30 33 2 'in an earlier run'
    check "a second run adds nothing" cmp -s "$output" "$work/before"
    rm "$output"
    run $small --order completed
    failures 30 33 2 'not JSON'
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
    cat > "$input" << END
{"id": 1, "prompt": "Who is Newton in physics?"}
{"id": 2, "messages": [{"role": "user", "content": "Who is Newton in physics?"}]}
{"id": 3, "prompt": "Who is Newton in physics?", "raw": true}
{"id": 4, "prompt": "Who is Newton in physics?", "system": "Be brief."}
{"id": 5, "messages": [{"role": "system", "content": "Be brief."}, \
{"role": "user", "content": "Who is Newton in physics?"}]}
{"id": 6, "prompt": "x", "system": "Be brief.", "raw": true}
{"id": 7, "messages": [], "gen_length": 32}
{"id": 8, "messages": [{"role": "user"}]}
{"id": 9, "prompt": "a\u0000b"}
{"id": 10, "prompt_ids": [1], "system": "Be brief."}
{"id": 11, "prompt": 3}
{"id": 12, "messages": [{"role": "user", "content": [\
{"type": "text", "text": "Who is "}, {"type": "text", "text": "Newton in physics?"}]}]}
{"id": 13, "messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}
END
    rm -f "$output"
    run batch -m $demo --input "$input" --output "$output" --gen-length 32
    failures 7 13 6 'chat template'
    prompt_of() { result "$1" < "$output" | sed 's/.*"prompt_tokens":\(\[[^]]*\]\).*/\1/'; }
    "$tokenskip" generate -m $demo -p "Who is Newton in physics?" --gen-length 32 > "$work/alone"
    check "generate's text" grep -q -F "{\"id\":1,\"text\":\"$(cat "$work/alone")\"," "$output"
    check "one message is a prompt" [ "$(prompt_of 1)" = "$(prompt_of 2)" ]
    check "in parts it is the same" [ "$(prompt_of 1)" = "$(prompt_of 12)" ]
    check "a part that is no text is named" error_of 13 'input_audio'
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

# ---- Ids ------------------------------------------------------------------------------------------------------------

# What has no id of its own goes by its line's number, which no id is equal to.
test_ids() {
    cat > "$input" << 'END'
nonsense
{"id": "line 1", "prompt_ids": [1]}
{"id": "#1", "prompt_ids": [1]}
{"id": 1, "prompt_ids": [1]}
{"id": "1", "prompt_ids": [1]}
{"id": null, "prompt_ids": [1]}
{"prompt_ids": [1]}
{"id": "\u00e4", "prompt_ids": [1]}
{"id": "ä", "prompt_ids": [1]}
{"id": "", "prompt_ids": [1]}
{"id": "line 12", "gen_length": 12, "prompt_ids": [1]}
{"id": 1, "prompt_ids": [1]}
END
    rm -f "$output"
    run $small
    failures 6 12 1 'not JSON'
    cp "$output" "$work/whole"
    id_list "$output" | tr '\n' ' ' > "$work/ids"
    check "ids and lines: $(cat "$work/ids")" \
        [ "$(cat "$work/ids")" = 'line 1 "line 1" "#1" 1 "1" line 6 line 7 "ä" line 9 "" "line 12" line 12 ' ]
    check "a request's own id has its result" [ -n "$(result '"line 1"' < "$output" | tokens)" ]
    run $small
    failures 6 12 1 'in an earlier run'
    check "nothing is done again" cmp -s "$output" "$work/whole"
    for line in 1 2 6 9 11 12; do
        sed ${line}d "$work/whole" > "$output"
        run $small
        check "line $line alone is done again" equal "$(wc -l < "$output")" 12
        check "line $line comes back" \
            [ "$(tail -n 1 "$output" | id_list)" = "$(sed -n ${line}p "$work/whole" | id_list)" ]
    done
    cat > "$work/mixed" << 'END'
{"id": "a", "prompt_ids": [1]}

not JSON
END
    cp "$work/mixed" "$input"
    rm "$output"
    run $small
    check "empty lines count as lines" error_of_line 3 'not JSON'
}

# Version 0.1 gave such lines the id "line N".
test_old_ids() {
    cat > "$input" << 'END'
nonsense
{"id":"line 1","prompt_ids":[1]}
{"id":"line 2","prompt_ids":[64]}
[]
{"id":"line 1","prompt_ids":[2]}
END
    unreadable='{"id":"line 1","error":"not JSON: line 1, column 1: expected a value, found '"'n'"' (at byte 0)"}'
    own='{"id":"line 1","text":null,"tokens":[5]}'
    refused='{"id":"line 2","error":"token 64 is outside the vocabulary"}'
    array='{"id":"line 4","error":"a request is a JSON object"}'
    twice='{"id":"line 5","error":"the id \"line 1\" was that of an earlier line"}'
    printf '%s\n' "$unreadable" "$own" "$refused" "$array" "$twice" > "$work/whole"
    cp "$work/whole" "$output"
    run $small
    failures 4 5 1 'in an earlier run'
    check "an old output is whole" cmp -s "$output" "$work/whole"
    for line in 1 2 3 4 5; do
        sed ${line}d "$work/whole" > "$output"
        run $small
        check "without its line $line: one more" equal "$(wc -l < "$output")" 5
        case $line in 2) new='"line 1"' ;; 3) new='"line 2"' ;; *) new="line $line" ;; esac
        check "which is $new" [ "$(tail -n 1 "$output" | id_list)" = "$new" ]
    done
    head -n 1 "$work/whole" > "$output"
    run $small
    check "cut after the first: the request of that id is not lost" \
        [ -n "$(result '"line 1"' < "$output" | tail -n 1 | tokens)" ]
    check "nothing twice" [ "$(id_list "$output" | tail -n 4 | tr '\n' ' ')" = '"line 1" "line 2" line 4 line 5 ' ]
}

# ---- Streams --------------------------------------------------------------------------------------------------------

test_streams() {
    { requests 20; echo 'not JSON'; } > "$input"
    rm -f "$output"
    run $small
    tokens < "$output" > "$work/tokens"
    id_list "$output" > "$work/ids"
    streams="batch -m $golden --input - --output - --gen-length 32 --block-length 8 --threads 1"
    run $streams < "$input"
    check "a failed request: exit status 1" [ "$rc" -eq 1 ]
    check "one line" one_line
    check "which names the streams" \
        says '^tokenskip: standard output: 1 of 21 requests failed, the first at line 21 of standard input: not JSON'
    check "the results" [ "$(tokens < "$out")" = "$(cat "$work/tokens")" ]
    check "their ids, in order" [ "$(id_list "$out")" = "$(cat "$work/ids")" ]
    check "each is JSON" all_json "$out"
    requests 20 | run $streams --order completed
    check "no file called -" [ ! -e ./- ]
    requests 20 > "$input"
    works batch -m $golden --input "$input" --output - --gen-length 32 --block-length 8 --shard 1/4
    check "a shard of it" [ "$(id_list "$out" | tr '\n' ' ')" = '"r2" "r6" "r10" "r14" "r18" ' ]
    rm "$output"
    run batch -m $golden --input - --output "$output" --gen-length 32 --block-length 8 < "$input"
    check "from a pipe to a file" equal "$(wc -l < "$output")" 20
    run batch -m $golden --input - --output "$output" --gen-length 32 --block-length 8 < "$input"
    check "which goes on, too" equal "$(wc -l < "$output")" 20
    cp "$input" "$work/before"
    "$tokenskip" batch -m $golden --input "$input" --output - >> "$input" 2> "$err"
    check "no output into the input" says 'it is the input'
    check "nothing was written to it" cmp -s "$input" "$work/before"
    if [ -e /dev/full ]; then
        "$tokenskip" $streams < "$input" > /dev/full 2> "$err"
        rc=$?
        check "a full stdout fails" [ "$rc" -eq 1 ]
        check "a full stdout: one line" one_line
    fi
}

# A result comes while the writer of the requests waits for it, with half of the next request written.
test_conversation() {
    mkfifo "$work/to" "$work/from"
    "$tokenskip" $streams < "$work/to" > "$work/from" 2> "$err" &
    pid=$!
    exec 3> "$work/to" 4< "$work/from"
    printf '{"id": "a", "prompt_ids": [1]}\nnot JSON\n{"id": "b", "pro' >&3
    timeout 60 head -n 1 <&4 > "$out"
    check "the first result" [ -n "$(result '"a"' < "$out" | tokens)" ]
    printf 'mpt_ids": [2]}\n' >&3
    timeout 60 sed '/"b"/q' <&4 > "$out"
    check "the result of a request in two pieces" [ -n "$(result '"b"' < "$out" | tokens)" ]
    kill -TERM $pid
    { wait $pid; } 2> /dev/null
    rc=$?
    exec 3>&- 4<&-
    check "a signal ends its waiting" [ "$rc" -ne 0 ]
    check "in one line" one_line
    rm "$work/to" "$work/from"
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
        check "cut after $bytes bytes of a line: nothing twice, nothing lost" \
            [ "$(id_list "$output")" = "$(id_list "$work/whole")" ]
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
        [ ! -s "$output" ] ||
            check "SIG$signal: whole lines" [ "$(tail -c 1 "$output" | od -An -c | tr -d ' ')" = '\n' ]
        [ "$rc" -eq 143 ] || check "SIG$signal: 143, or done" says 'requests failed'
        [ ! -s "$err" ] || check "SIG$signal: one line, or too early for one" one_line
    done
    run $small "$@"
    failures 4 154 151 ''
    check "SIG$signal $*: each result once" \
        [ "$(id_list "$output" | sort)" = "$( (seq -f '"r%g"' 150; seq -f 'line %g' 151 154) | sort)" ]
    check "SIG$signal $*: each is JSON" all_json "$output"
    [ $# -ne 0 ] || check "SIG$signal: in order" [ "$(id_list "$output" | head -n 150)" = "$(seq -f '"r%g"' 150)" ]
}

interrupted() { # interrupted STATUS RESULTS
    check "interrupted: $1" [ "$rc" -eq "$1" ]
    check "one line" one_line
    check "it says how far it came and how it goes on" \
        says "interrupted after $2 results; run again to go on with $output"
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
    [ "$(cat "$output".shard-*-of-"$1" | wc -l)" -eq "$2" ] &&
        [ "$(id_list "$output".shard-*-of-"$1" | sort -u | wc -l)" -eq "$2" ]
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
    check "the rank of a failed request says so" \
        grep -q "^tokenskip: $output.shard-0-of-3: 1 of 8 requests failed, the first at line 22 " "$work/err0"
    check "the others say nothing" [ ! -s "$work/err1" ]
    check "OpenMPI's ranks divide the input" shards_are_all 3 22
    check "and find the same" [ "$(cat "$output".shard-* | sort | tokens)" = "$(sort "$work/whole" | tokens)" ]
    check "every third line" [ "$(id_list "$output.shard-1-of-3" | head -n 3 | tr '\n' ' ')" = '"r2" "r5" "r8" ' ]
    check "no file beside them" [ ! -e "$output" ]
    check "an id of another rank's line" grep -q '^{"id":null,"line":22,"error"' "$output.shard-0-of-3"
    rm "$output".shard-*
    for i in 0 1; do
        SLURM_NTASKS=2 SLURM_PROCID=$i SLURM_LOCALID=$i \
            "$tokenskip" $small --device cpu > /dev/null 2>&1 || : > "$work/failed$i" &
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

# ---- Merging --------------------------------------------------------------------------------------------------------

merged=$work/merged.jsonl
is_whole() { # is_whole WHAT: $merged is what one run writes, but for the times
    check "$1: every result, in order" [ "$(id_list "$merged")" = "$(id_list "$work/whole")" ]
    check "$1: the same tokens" [ "$(tokens < "$merged")" = "$(tokens < "$work/whole")" ]
    check "$1: the same members" [ "$(grep -o '"[a-z_]*":' "$merged")" = "$(grep -o '"[a-z_]*":' "$work/whole")" ]
    check "$1: each is JSON" all_json "$merged"
}
shards() { # shards N OPTIONS...: all of them, one after another
    n=$1
    shift
    i=0
    while [ $i -lt "$n" ]; do
        run $small --shard $i/"$n" "$@"
        i=$((i + 1))
    done
}

test_merge() {
    {
        requests 17
        echo
        echo 'not JSON'
        echo '{"id": "bad", "prompt_ids": [64]}'
        requests 2
        echo '{"id": "last,request:1}", "prompt_ids": [1]}'
    } > "$input"
    rm -f "$output"*
    run $small
    cp "$output" "$work/whole"
    check "one run's lines have no number" [ "$(grep -c '"request":' "$output")" -eq 0 ]
    rm "$output"
    shards 3
    works_silently batch --merge "$output".shard-* --output "$merged"
    is_whole "three shards"
    works_silently batch --merge "$output.shard-2-of-3" "$output.shard-0-of-3" "$output.shard-1-of-3" --output "$merged"
    is_whole "named in another order, over what is there"
    works batch --output - --merge "$output".shard-*
    check "to standard output" cmp -s "$out" "$merged"
    works_silently batch --merge "$merged" --output "$work/again"
    check "one file is in order" cmp -s "$work/again" "$merged"
    sed 's/,"request":[0-9]*}$/}/' "$output.shard-0-of-3" > "$work/unnumbered"
    refuses 1 "$work/unnumbered, line 1: it does not say" \
        batch --merge "$work/unnumbered" "$output.shard-1-of-3" --output "$work/again"
    rm "$output"*
    shards 12 --order completed --max-batch 4
    works_silently batch --merge "$output".shard-* --output "$merged"
    is_whole "twelve shards, as completed"
    rm "$output"*
    run $small --shard 1/2
    head -n 3 "$output.shard-1-of-2" > "$work/part"
    mv "$work/part" "$output.shard-1-of-2"
    shards 5
    rm "$output.shard-4-of-5"
    run $small
    works_silently batch --merge "$output"* --output "$merged"
    is_whole "runs of two, five and one"
}

# A line whose result is nowhere, or twice, or broken, is named; what is there stays.
test_merge_refusals() {
    requests 8 > "$input"
    rm -f "$output"* "$merged"
    shards 2
    a=$output.shard-0-of-2 b=$output.shard-1-of-2
    merge="batch --merge $a $b --output $merged"
    refuses 2 'files to join' batch --merge --output "$merged"
    refuses 2 'output FILE' batch --merge "$a" "$b"
    refuses 2 'takes no --model' $merge -m $golden
    refuses 2 'takes no --input' $merge --input "$input"
    refuses 2 'takes no --shard' $merge --shard 0/1
    refuses 2 'without --merge' $small "$a"
    refuses 1 "nowhere" batch --merge "$a" "$work/nowhere" --output "$merged"
    refuses 1 "folder" batch --merge "$a" "$work" --output "$merged"
    refuses 1 "not a regular file" batch --merge "$a" /dev/null --output "$merged"
    refuses 1 "not a regular file" batch --merge "$a" "$b" --output /dev/full
    refuses 1 "cannot write '$work/no/where'" batch --merge "$a" "$b" --output "$work/no/where"
    refuses 1 "one of the files" batch --merge "$a" "$b" --output "$a"
    ln "$b" "$work/link2"
    refuses 1 "one of the files" batch --merge "$a" "$b" --output "$work/link2"
    refuses 1 "$a, line 1: the result of the id \"r1\" was in an earlier" \
        batch --merge "$a" "$b" "$a" --output "$merged"
    cp "$b" "$work/b"
    sed -n '1s/"r2"/"other"/p' "$work/b" > "$work/renamed"
    refuses 1 "$work/renamed, line 1: the result of request 2 is in $b, line 1, already" \
        batch --merge "$a" "$b" "$work/renamed" --output "$merged"
    check "renamed, it is alone" [ ! -e "$merged" ]
    sed 2d "$work/b" > "$b"
    refuses 1 "$a, line 3: it is the result of request 5, and that of request 4 is in none" $merge
    { cat "$work/b"; echo '{"id":"x"'; } > "$b"
    refuses 1 "$b, line 5: not a result" $merge
    { head -n 1 "$work/b"; echo; tail -n 3 "$work/b"; } > "$b"
    refuses 1 "$b, line 2: not a result" $merge
    { head -n 1 "$work/b"; echo '{"id":1.5}'; tail -n 3 "$work/b"; } > "$b"
    refuses 1 "$b, line 2: not a result" $merge
    head -c -40 "$work/b" > "$b"
    refuses 1 "$b, line 4: it is cut off" $merge
    head -c -1 "$work/b" > "$b"
    refuses 1 "$b, line 4: it is cut off" $merge
    check "nothing was written" [ ! -e "$merged" -a -z "$(ls -A "$work" | grep tmp)" ]
    cp "$work/b" "$b"
    echo 'mine' > "$merged"
    refuses 1 "$merged, line 1: not a result" $merge
    { cat "$a"; echo '{"id":"other","error":"x"}'; } > "$merged"
    cp "$merged" "$work/before"
    refuses 1 "$merged, line 5: a result that none of the files has" $merge
    check "what is there stays" cmp -s "$merged" "$work/before"
    run_with_room 4 batch --merge "$a" "$b" --output "$work/again2"
    check "a full disk fails" [ "$rc" -eq 1 ]
    check "a full disk: one line" one_line
    check "a full disk leaves nothing" [ ! -e "$work/again2" -a -z "$(ls -A "$work" | grep tmp)" ]
    cp "$a" "$merged"
    works_silently $merge
    check "results that are merged may be replaced" \
        [ "$(id_list "$merged" | tr '\n' ' ')" = '"r1" "r2" "r3" "r4" "r5" "r6" "r7" "r8" ' ]
    # as version 0.1 wrote them
    for file in "$a" "$b"; do sed 's/,"request":[0-9]*}$/}/' "$file" > "$work/old" && cp "$work/old" "$file"; done
    cp "$merged" "$work/before"
    works_silently batch --merge "$b" "$a" --output "$merged"
    check "by the files' names" cmp -s "$merged" "$work/before"
    cp "$a" "$work/a"
    refuses 1 "$work/a: its lines do not say where they belong, nor does its name" \
        batch --merge "$work/a" "$b" --output "$merged"
    head -n 2 "$a" > "$work/a" && cp "$work/a" "$a"
    refuses 1 "$b, line 3: it is the result of request 6, and that of request 5 is in none" \
        batch --merge "$a" "$b" --output "$merged"
}

# A shard without results leaves no file.
test_empty_shards() {
    requests 2 > "$input"
    rm -f "$output"*
    : > "$output.shard-3-of-4"
    shards 4
    check "no empty file" \
        [ "$(cd "$work" && ls output.jsonl* | tr '\n' ' ')" = "output.jsonl.shard-0-of-4 output.jsonl.shard-1-of-4 " ]
    shards 2
    check "nor where other files have it all" [ "$(cd "$work" && ls output.jsonl* | wc -l)" -eq 2 ]
    rm "$output"*
    run batch -m "$work/nomodel" --input "$input" --output "$output" --shard 0/2
    check "nor without a model" [ "$rc" -eq 1 -a ! -e "$output.shard-0-of-2" ]
    : > "$input"
    works_silently $small
    check "one process leaves its empty result" [ -f "$output" ]
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
test_end
test_short
test_whole_numbers
test_bad_lines
test_status
test_prompts
test_order
test_ids
test_old_ids
test_streams
test_conversation
test_cut_line
test_kill KILL
test_kill KILL --order completed --max-batch 5
test_kill TERM
test_endless_line
test_full_disk
test_lock
test_ranks
test_merge
test_merge_refusals
test_empty_shards
test_terminal
echo "test_batch_cli: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
