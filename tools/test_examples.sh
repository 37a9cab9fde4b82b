# test_examples.sh MODEL: each built example runs, prints something, and says so when there is no model.
model=$1
passed=0
failed=0

check() { # check WHAT CONDITION...
    what=$1
    shift
    if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "failed: $what"; fi
}

for source in examples/*.c examples/*.cpp; do
    name=$(basename "${source%.*}")
    program=build/examples/$name
    if [ ! -x "$program" ]; then
        case $source in
        *.cpp) echo "$source: skipped, not built without a C++ compiler"; continue ;;
        esac
    fi
    output=$("$program" "$model" 2>&1)
    check "$name exits with 0: $output" [ $? -eq 0 ]
    check "$name prints something" [ -n "$output" ]
    output=$("$program" build/no-such-model 2>&1)
    check "$name without a model exits with 1: $output" [ $? -eq 1 ]
    check "$name without a model says why: $output" [ -n "$output" ]
done
echo "examples: $passed passed, $failed failed"
[ "$failed" = 0 ]
