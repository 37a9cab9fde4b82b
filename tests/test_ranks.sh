# `batch` on several processes: OpenMPI's mpirun on one machine and as on two, and what Slurm's srun sets. `make
# test-ranks` runs it, not `make test`; it installs OpenMPI from Debian where there is none. Run from the repository's
# root.
. tests/shell.sh
unset OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_LOCAL_RANK SLURM_PROCID SLURM_NTASKS SLURM_LOCALID
exec < /dev/null
if ! command -v mpirun > /dev/null; then
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends openmpi-bin; } > "$out" 2>&1 ||
        { cat "$out"; echo "test_ranks: no mpirun, and it could not be installed" >&2; exit 1; }
fi
root=$PWD
# the folder that the lines of README.md and docs/batch.md are run in; physical, as /proc has it
run=$work/run
mkdir "$run" "$work/bin" && run=$(cd "$run" && pwd -P)
ln -s "$(realpath "$tokenskip")" "$run/tokenskip"
ln -s "$root/examples" "$run/examples"
count=24
# 32 to 128 positions, a step each, so that a rank's results come one after another
awk -v n=$count 'NR <= n { sub(/^{/, "{\"id\": \"q" NR "\", "); sub(/"answer".*/, "")
        print $0 "\"no_threshold\": true, \"no_eos_stop\": true, \"gen_length\": " 32 + 32 * (int((NR - 1) / 4) % 4) "}"
    }' \
    examples/demo-model/eval.jsonl > "$run/questions.jsonl"

# What a container needs where the line does not say so: mpirun as root, and more ranks than processors.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
# The other machines are this one: what mpirun would start by `ssh MACHINE COMMAND` is started here.
printf '#!/bin/sh\necho "$1" >> "%s/machines"\nshift\nexec sh -c "$*"\n' "$work" > "$work/bin/remote"
export OMPI_MCA_plm_rsh_agent="$work/bin/remote"

# srun and sbatch as far as `batch` sees them: each task with the variables that Slurm documents, tasks in blocks of
# nodes; a task that fails stops no other, and the exit status is the highest.
cat > "$work/bin/srun" << 'END'
#!/bin/sh
[ "$1" = -n ] && SLURM_NTASKS=$2 && shift 2
export SLURM_NTASKS SLURM_STEP_NUM_TASKS=$SLURM_NTASKS
nodes=${SLURM_NNODES:-1} i=0 pids= worst=0
while [ $i -lt "$SLURM_NTASKS" ]; do
    each=$((SLURM_NTASKS / nodes))
    SLURM_PROCID=$i SLURM_LOCALID=$((i % each)) SLURM_NODEID=$((i / each)) "$@" &
    pids="$pids $!" i=$((i + 1))
done
for pid in $pids; do
    wait $pid
    status=$?
    [ $status -le $worst ] || worst=$status
done
exit $worst
END
cat > "$work/bin/sbatch" << 'END'
#!/bin/sh
export SLURM_NNODES SLURM_NTASKS SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
while [ $# -gt 1 ]; do
    case $1 in
    --nodes) SLURM_NNODES=$2 ;;
    --ntasks-per-node) SLURM_NTASKS=$((SLURM_NNODES * $2)) ;;
    --gpus-per-task) export CUDA_VISIBLE_DEVICES=0 ;;
    --wrap) wrap=$2 ;;
    esac
    shift 2
done
exec sh -c "$wrap"
END
chmod +x "$work"/bin/*
PATH=$work/bin:$PATH

shell() { # shell LINE: in $run; $rc, $out, $err
    (cd "$run" && eval "exec $1") > "$out" 2> "$err" < /dev/null # (of which mpirun reads all there is)
    rc=$?
}
equal() { [ "$1" -eq "$2" ] 2> /dev/null; }
id_list() { sed 's/^{"id":\("[^"]*"\),.*/\1/' "$@"; }
timeless() { sed 's/"timing":{[^}]*}//' "$@"; }
lines() { cat "$@" 2> /dev/null | wc -l; }
input='-m examples/demo-model --input questions.jsonl --output answers.jsonl'

shell "./tokenskip batch $input"
check "one process answers all" equal "$(lines "$run/answers.jsonl")" $count
timeless "$run/answers.jsonl" > "$work/whole"
rm "$run"/answers.jsonl*

# The shards, merged by the line of README.md, are what one process writes, but for the times.
merge=$(sed -n 's/^    \(.*batch --merge .*\)/\1/p' README.md)
merged_is_whole() { # merged_is_whole WHAT
    check "$1: $count results in all" equal "$(lines "$run"/answers.jsonl.shard-*)" $count
    check "$1: nothing lost, nothing twice" equal "$(id_list "$run"/answers.jsonl.shard-* | sort -u | wc -l)" $count
    shell "$merge"
    check "$1: the files merge" [ "$rc" -eq 0 ]
    check "$1: as one process answers" [ "$(timeless "$run/answers.jsonl")" = "$(cat "$work/whole")" ]
    rm -f "$run"/answers.jsonl*
}

# ---- The lines of the documentation ---------------------------------------------------------------------------------

# (the demo model on the CPU in LLaDA-8B's place)
documented() {
    cat README.md docs/batch.md | sed -e ':next' -e '/\\$/N' -e 's/ *\\\n */ /' -e 't next' |
        sed -n 's/^    \(\(mpirun\|srun\|sbatch\) .*\)/\1/p' |
        sed 's/-m LLaDA-8B-Instruct --device cuda/-m examples\/demo-model/'
}
documented > "$work/documented"
for launcher in 'mpirun -n 4' 'mpirun --allow-run-as-root --oversubscribe -n 4' 'mpirun --host' 'srun -n 4' sbatch; do
    check "the documentation has '$launcher'" grep -q -e "^$launcher" "$work/documented"
done
check "and a line that merges: $merge" equal "$(printf '%s\n' "$merge" | grep -c merge)" 1
tried=0
while read -r line; do
    tried=$((tried + 1))
    case $line in
    sbatch*) ranks=16 ;;
    *--host*) ranks=4 ;;
    *) ranks=$(printf '%s\n' "$line" | sed 's/.* -n \([0-9]*\) .*/\1/') ;;
    esac
    shell "$line"
    check "$line: exit status 0" [ "$rc" -eq 0 ]
    check "$line: nothing on stdout" [ ! -s "$out" ]
    check "$line: nothing on stderr" says_nothing
    check "$line: $ranks files" equal "$(ls "$run"/answers.jsonl.shard-*-of-"$ranks" | wc -l)" "$ranks"
    check "$line: only these" equal "$(ls "$run"/answers.jsonl* | wc -l)" "$ranks"
    merged_is_whole "$line"
done < "$work/documented"
check "every line was run" equal "$tried" "$(lines "$work/documented")"
check "two machines were asked" [ "$(sort "$work/machines" | tr '\n' ' ')" = 'node1 node2 ' ]

# ---- A rank is killed -----------------------------------------------------------------------------------------------

# The process in $run whose environment has the variable.
process_of() { # process_of NAME=VALUE
    for process in /proc/[0-9]*; do
        [ "$(readlink "$process/cwd" 2> /dev/null)" = "$run" ] &&
            [ "$(tr '\0' ' ' 2> /dev/null < "$process/cmdline" | grep -c '^./tokenskip batch ')" -eq 1 ] &&
            tr '\0' '\n' 2> /dev/null < "$process/environ" | grep -q -x -e "$1" && echo "${process#/proc/}"
    done
}

killed() { # killed RANK RANKS VARIABLE LINE: it has some of its results, not all; $rc, and the files in $work/before
    file=$run/answers.jsonl.shard-$1-of-$2
    (cd "$run" && eval "exec $4") > "$out" 2> "$err" &
    launcher=$!
    tries=0
    victim=
    while [ -z "$victim" ] && [ $tries -lt 300 ]; do victim=$(process_of "$3=$1") tries=$((tries + 1)); done
    tries=0
    while [ ! -s "$file" ] && [ $tries -lt 6000 ]; do sleep 0.01; tries=$((tries + 1)); done
    [ -z "$victim" ] || kill -s KILL $victim
    check "$4: there is one process of rank $1: $victim" equal "$(echo "$victim" | wc -w)" 1
    wait_for $launcher
    check "$4: in the middle, after $(lines "$file") of $((count / $2))" \
        [ "$(lines "$file")" -ge 1 -a "$(lines "$file")" -lt $((count / $2)) ]
    check "$4: a killed rank is a failure" [ "$rc" -ne 0 ]
    tries=0
    while [ -n "$(process_of "$3=.*")" ] && [ $tries -lt 500 ]; do sleep 0.02; tries=$((tries + 1)); done
    check "$4: no process is left" [ -z "$(process_of "$3=.*")" ]
    # what a kill within a write leaves: the beginning of a line
    printf '{"id":"q' >> "$file"
    rm -rf "$work/before"
    mkdir "$work/before"
    cp "$run"/answers.jsonl.shard-* "$work/before"
}

# What was whole before a resumed run is there as it was, and first.
kept() { # kept WHAT
    for before in "$work"/before/*; do
        n=$(tr -dc '\n' < "$before" | wc -c)
        check "$1: ${before##*/} keeps its $n results" \
            [ "$(head -n "$n" "$before")" = "$(head -n "$n" "$run/${before##*/}")" ]
    done
}

for ranks in 2 4; do
    line="mpirun --allow-run-as-root --oversubscribe -n $ranks ./tokenskip batch $input"
    killed 1 $ranks OMPI_COMM_WORLD_RANK "$line"
    check "$line: mpirun says which rank" says 'rank 1 .*signal 9'
    shell "$line"
    check "$line, again: exit status 0" [ "$rc" -eq 0 ]
    kept "$line, again"
    merged_is_whole "$line, again"
done

line="mpirun -n 4 ./tokenskip batch $input"
killed 2 4 OMPI_COMM_WORLD_RANK "$line"
shell "mpirun -n 2 ./tokenskip batch $input"
check "goes on with two ranks" [ "$rc" -eq 0 ]
check "... and the cut line stays in the way of --merge" \
    sh -c "cd '$run' && ! $merge 2> /dev/null"
n=$(tr -dc '\n' < "$run/answers.jsonl.shard-2-of-4" | wc -c)
head -n "$n" "$run/answers.jsonl.shard-2-of-4" > "$work/cut" && cp "$work/cut" "$run/answers.jsonl.shard-2-of-4"
merged_is_whole "with two ranks"

line="srun -n 4 ./tokenskip batch $input"
killed 2 4 SLURM_PROCID "$line"
check "$line: srun has the other ranks go on" equal "$(cat "$run"/answers.jsonl.shard-[013]-of-4 | wc -l)" 18
shell "$line"
check "$line, again: exit status 0" [ "$rc" -eq 0 ]
kept "$line, again"
merged_is_whole "$line, again"

# ---- The rest -------------------------------------------------------------------------------------------------------

export SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0
shell "mpirun -n 2 ./tokenskip batch $input"
check "mpirun in a Slurm job: OpenMPI's ranks" equal "$(ls "$run"/answers.jsonl.shard-*-of-2 | wc -l)" 2
merged_is_whole "mpirun in a Slurm job"
export SLURM_NTASKS=4
shell "./tokenskip batch $input --shard 0/1"
check "one process in a job of four tasks, with --shard 0/1" \
    [ "$(timeless "$run/answers.jsonl")" = "$(cat "$work/whole")" ]
rm -f "$run"/answers.jsonl*
unset SLURM_PROCID SLURM_NTASKS SLURM_LOCALID

# A request that fails ends no rank, and is told.
{ head -n 3 "$run/questions.jsonl"; echo '{"id": "bad", "prompt_ids": [-1]}'; } > "$run/bad.jsonl"
bad='./tokenskip batch -m examples/demo-model --input bad.jsonl --output answers.jsonl'
shell "mpirun -n 2 $bad"
check "a failed request under mpirun: exit status 0" [ "$rc" -eq 0 ]
check "stderr tells" says '^tokenskip: answers.jsonl.shard-1-of-2: 1 of 2 requests failed, the first at line 4 '
check "the others are there" equal "$(cat "$run"/answers.jsonl.shard-* | grep -c '"text":')" 3
rm -f "$run"/answers.jsonl*
shell "srun -n 2 $bad"
check "under srun: exit status 1" [ "$rc" -eq 1 ]
check "stderr tells" says '^tokenskip: answers.jsonl.shard-1-of-2: 1 of 2 requests failed, the first at line 4 '
check "the others are there" equal "$(cat "$run"/answers.jsonl.shard-* | grep -c '"text":')" 3

echo "test_ranks: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
