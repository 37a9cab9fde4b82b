# make_pages.sh COMMAND FOLDER: writes the manual page and the completions of bash, zsh and fish to FOLDER, from what
# COMMAND, a built tokenskip that runs here, says with `help`. Run from the repository's root.
command=$1 folder=$2
if [ ! -f tools/pages/help.awk ] || [ ! -x "$command" ] || [ ! -d "$folder" ]; then
    echo "usage, in the repository's root: make_pages.sh COMMAND FOLDER" >&2
    exit 2
fi
LC_ALL=C
export LC_ALL

# The page has the date of the source, so that two builds of it are the same: SOURCE_DATE_EPOCH, or the header's time.
if [ -n "$SOURCE_DATE_EPOCH" ]; then date=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%d)
else date=$(date -u -r tokenskip.h +%Y-%m-%d); fi || exit 1
version=$("$command" --version | sed 's/^tokenskip //')

help=$folder/help.txt
"$command" help > "$help" || exit 1
for name in $(sed -n '/^commands:/,/^$/s/^  \([^ ]*\) .*/\1/p' "$help"); do
    "$command" help "$name" >> "$help" || exit 1
done

make_page() { # make_page MAKER NAME
    awk -v version="$version" -v date="$date" -f tools/pages/help.awk -f "tools/pages/$1.awk" "$help" \
        > "$folder/$2.new" && mv "$folder/$2.new" "$folder/$2"
}
make_page man tokenskip.1 && make_page bash tokenskip.bash && make_page zsh _tokenskip && make_page fish tokenskip.fish
