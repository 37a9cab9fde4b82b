# What the tests of the command share: `.` it from the repository's root. TOKENSKIP=path tests another build, and
# TOKENSKIP_TEST_PROGRAMS=folder has the programs that tests run elsewhere than in tests/.
tokenskip=${TOKENSKIP:-./tokenskip}
programs=${TOKENSKIP_TEST_PROGRAMS:-./tests}
lint=$programs/json_lint
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
out=$work/out
err=$work/err
rc=0
: > "$out"
: > "$err"
passed=0
failed=0
LC_ALL=C
export LC_ALL

check() { # check WHAT CONDITION...
    what=$1
    shift
    if "$@"; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "failed: $what"
        echo "  exit status $rc, stdout: $(head -c 300 "$out")"
        echo "  stderr: $(head -c 2000 "$err")"
    fi
}

run() { # run ARGUMENTS...: $rc, $out, $err; standard input is the caller's
    "$tokenskip" "$@" > "$out" 2> "$err"
    rc=$?
}

# The same where no file may grow beyond so many blocks of 512 bytes (in some shells 1024), as on a disk that fills up.
run_with_room() { # run_with_room BLOCKS ARGUMENTS...
    blocks=$1
    shift
    (ulimit -f "$blocks" && exec "$tokenskip" "$@") > "$out" 2> "$err"
    rc=$?
}

# A command on a terminal, which shows its stdout and stderr in $out, under these steps (tests/on_terminal.c has them).
# A test that asks has_terminal first is skipped, with a word, on a system that has none to lend.
on_terminal() { # on_terminal STEP... -- COMMAND...
    TERM=${terminal:-xterm} "$programs/on_terminal" "$@" > "$out" 2> "$err" < /dev/null
    rc=$?
}

has_terminal() { # has_terminal NAME
    "$programs/on_terminal" -- true > /dev/null && return
    echo "$1: skipped, there is no terminal to be had"
    return 1
}

# Typed on one; what drives one.
newline='
'
ctrl_c=$(printf '\003')
ctrl_d=$(printf '\004')
escape=$(printf '\033')

# The end of a command in the background, which a minute is enough for: $rc is its exit status, or 137.
wait_for() { # wait_for PID
    { sleep 60; kill -s KILL "$1"; } > /dev/null 2>&1 &
    watchdog=$!
    { wait "$1"; } 2> /dev/null
    rc=$?
    kill $watchdog 2> /dev/null
}

# What is on stderr beside the lines of progress that a slow machine takes long enough for.
progress='^tokenskip: \(loading\|eval\|batch\|trying\|bench\|plain dual cache\|[0-9]* of [0-9]*\): '
messages() { grep -v -e "$progress" "$err"; }

one_line() { [ "$(messages | wc -l)" -eq 1 ] && [ "$(messages | head -c 11)" = "tokenskip: " ]; }
says_nothing() { [ -z "$(messages)" ]; }
says() { grep -q -e "$1" "$err"; }
prints() { grep -q -e "$1" "$out"; }
lacks() { ! prints "$1"; }
is_json() { [ "$(wc -l < "$out")" -eq 1 ] && "$lint" "$out" > /dev/null 2>&1; }

# A failure has its exit status, one line that holds PATTERN, and nothing on stdout.
refuses() { # refuses STATUS PATTERN ARGUMENTS...
    status=$1 pattern=$2
    shift 2
    run "$@" < /dev/null
    check "'$*' exits with $status" [ "$rc" -eq "$status" ]
    check "'$*' prints nothing" [ ! -s "$out" ]
    check "'$*' says one line" one_line
    check "'$*' says '$pattern'" says "$pattern"
}

works() { # works ARGUMENTS...
    run "$@"
    check "'$*' exits with 0" [ "$rc" -eq 0 ]
    check "'$*' says nothing on stderr" says_nothing
}
