# run_test.sh LOG COMMAND...: runs a test, keeps what it prints in LOG and shows it where something failed. The last
# line of LOG counts, "name: N passed, N failed", also for a test that crashed or never compiled. Always succeeds: who
# sums the logs up decides.
log=$1
shift
name=$(basename "$log" .log)
program=$1

if [ "$program" != sh ] && [ ! -x "$program" ]; then
    echo "$program was not built" > "$log"
    status=127
else
    "$@" > "$log" 2>&1
    status=$?
fi

counts=$(tail -n 1 "$log" | sed -n 's/^[A-Za-z0-9_ ]*: \([0-9]* passed, [0-9]* failed\)$/\1/p')
failed=$(echo "$counts" | sed 's/.*passed, \([0-9]*\) failed/\1/')
case $counts in
'') counts="0 passed, 1 failed"; echo "(no counts at the end: exit status $status)" >> "$log" ;;
*) sed '$d' "$log" > "$log.body" && mv "$log.body" "$log"
   if [ "$failed" = 0 ] && [ "$status" != 0 ]; then
       counts="${counts%0 failed}1 failed"
       echo "(exit status $status)" >> "$log"
   fi ;;
esac

case $counts in
*" 0 failed") ;;
*) tail -n 60 "$log" ;;
esac
grep -i 'skipped' "$log"
echo "$name: $counts" >> "$log"
echo "$name: $counts"
