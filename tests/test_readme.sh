# README.zh-CN.md is README.md in Chinese: tests/readme.awk says what has to be equal. Every change of README.md's words
# has to be translated: then `sh tests/test_readme.sh --translated` notes in tests/readme.sums that it is. Run from the
# repository's root.
. tests/shell.sh
english=README.md
chinese=README.zh-CN.md
sums=tests/readme.sums

compare() { # compare README TRANSLATION SUMS
    awk -v sums="$3" -f tests/readme.awk "$1" "$2" > "$out" 2> "$err"
    rc=$?
}

if [ "$1" = --translated ]; then
    compare $english $chinese ''
    [ "$rc" -eq 0 ] || { cat "$out" "$err"; exit 1; }
    awk -v write=1 -f tests/readme.awk $english $chinese > $sums
    exit
fi

compare $english $chinese $sums
check "the translation is whole: $(cat "$out")" [ "$rc" -eq 0 -a ! -s "$out" ]
long=$(tr -d '\200-\277' < $chinese | awk '!/^\|/ && length($0) > 120 { print FNR }')
check "no line of $chinese but a table's is over 120 characters: $(echo $long)" [ -z "$long" ]

# The comparison itself: one change, and one line that tells where.
differs() { # differs WHAT FILE SED PATTERN [BEGINS]: the line is the changed one, or that where its block begins
    cp $english "$work/README.md"
    cp $chinese "$work/README.zh-CN.md"
    sed "$3" "$2" > "$work/$2"
    number=$(cmp "$2" "$work/$2" | sed 's/.*line //')
    [ -z "$5" ] || number=$(grep -n -e "$5" "$2" | sed 's/:.*//')
    compare "$work/README.md" "$work/README.zh-CN.md" $sums
    check "$1: it differs" [ "$rc" -eq 1 ]
    check "$1: one line" [ "$(wc -l < "$out")" -eq 1 ]
    check "$1: at line $number: $4" grep -q -e "$2:$number: .*$4\|$4.*$2:$number" "$out"
}
differs "a command" $chinese 's/generate -m LLaDA-8B-Instruct -p/& -p/' 'the code is'
differs "a program" $chinese 's/^    puts(/    fputs(/' 'the code is'
differs "a program's comment" $chinese 's/# PYTHONPATH/# PATH/' 'the code is'
differs "a comment that is gone" $chinese 's/  # 构建.*//' 'the code is'
differs "a table's figure" $chinese 's/| 0.36 | 433 |/| 0.36 | 443 |/' 'the figures are'
differs "figures in another order" $chinese 's/| 0.36 | 433 |/| 433 | 0.36 |/' 'the figures are'
differs "a figure in the text" $chinese 's/8\.0 ms/8.1 ms/' 'the figures are' '^步数多'
differs "an option" $chinese 's/^| `--pad`/| `--pads`/' 'the code is'
differs "a default" $chinese 's/| last-step |/| last-computed |/' 'the default is'
differs "a default in words" $english 's/| low_confidence |/| random |/' 'the default is'
differs "a cell too many" $chinese 's/^| `TOKENSKIP_NO_CUDA`.*/& |/' 'the cells'
differs "a link" $chinese 's/(docs\/rules.svg)/(docs\/rule.svg)/' 'the links are'
differs "a heading's level" $chinese 's/^## LLaDA/#&/' 'level'
differs "an item that is gone" $chinese '/^- 消息中/,/请传/d' 'the code is'
differs "a row that is not translated" $chinese 's/^| `bench` | .*/| `bench` | times a shape |/' 'not translated'
differs "a new row" $english 's/^| `bench` .*/&\n| `new` | what is new |/' 'the code is\|row'
differs "a new word" $english 's/^MIT licence/The &/' 'changed since'
differs "a word less" $english 's/No Python, no build/No build/' 'changed since' '^Masked-diffusion'
printf '\nMore.\n' | cat $english - > "$work/README.md"
compare "$work/README.md" $chinese $sums
check "a paragraph more at the end" grep -q "$chinese:end: the end of the file, where .*README.md:.* (More.)" "$out"

echo "test_readme: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
