# README.md and a translation of it, block by block: awk -f readme.awk README.md README.zh-CN.md. The first place where
# they differ is the one line of output; nothing, where they agree. A block is a heading, a line of code, a row of a
# table, an item of a list, or a paragraph.
#
# Equal are: code, but for what follows "  # " in indented lines; of everything else the spans of code, the links and
# the figures, each in any order, and in a table's row in theirs; levels of headings, cells of rows, the first two
# columns of the table of options. What has English words there has Chinese ones here.
#
# -v sums=FILE: a hash of each block of README.md that has words, as it was when it was translated; a block whose words
# have changed since is a difference, too. -v write=1 prints these hashes instead.

function fail(message) {
    if (!told) print message
    told = 1
}

function begin(what, words) {
    n = ++blocks[file]
    kind[file, n] = what
    text[file, n] = words
    line[file, n] = FNR
}

FNR == 1 {
    file++
    name[file] = FILENAME
    state = ""
    fenced = 0
}
/^```/ {
    begin("a line of code", $0)
    fenced = !fenced
    state = ""
    next
}
fenced || (/^    / && state == "") {
    begin("a line of code", $0)
    next
}
/^ *$/ {
    state = ""
    next
}
/^#+ / {
    begin("a heading", $0)
    state = ""
    next
}
/^\|/ {
    begin("a table's row", $0)
    state = ""
    next
}
/^- / {
    begin("an item of a list", $0)
    state = "item"
    next
}
state != "" {
    sub(/^ */, "")
    text[file, blocks[file]] = text[file, blocks[file]] " " $0
    next
}
{
    begin("a paragraph", $0)
    state = "paragraph"
}

# The list of what matches in a text, one after another; sorted, if asked for.
function matches(words, pattern, sorted,    found, count, i, j, held, all) {
    count = 0
    while (match(words, pattern)) {
        found[++count] = substr(words, RSTART, RLENGTH)
        words = substr(words, RSTART + RLENGTH)
    }
    if (sorted)
        for (i = 2; i <= count; i++) {
            held = found[i]
            for (j = i - 1; j >= 1 && found[j] "" > held ""; j--) found[j + 1] = found[j]
            found[j + 1] = held
        }
    all = ""
    for (i = 1; i <= count; i++) all = all (i > 1 ? "  " : "") found[i]
    return all
}

function hash(words,    i, h) {
    h = 7
    for (i = 1; i <= length(words); i++) h = (h * 131 + ordinal[substr(words, i, 1)]) % 2147483647
    return h
}

function place(f, i) { return name[f] ":" (i <= blocks[f] ? line[f, i] : "end") }

function shown(f, i,    words) {
    if (i > blocks[f]) return "the end of the file"
    words = text[f, i]
    if (length(words) > 90) {
        words = substr(words, 1, 90)
        sub(/[\300-\377]?[\200-\277]*$/, "", words) # (no part of a character)
        words = words "..."
    }
    return kind[f, i] " (" words ")"
}

function compare(i, what, here, there) {
    if (here != there)
        fail(place(2, i) ": " what " [" here "], which " place(1, i) " has as [" there "], in " shown(1, i))
}

function command(words,    at) { # an indented line without its comment, but with the sign that there is one
    at = match(words, /  # /)
    if (words !~ /^    / || !at) return words
    words = substr(words, 1, at)
    sub(/ +$/, "", words)
    return words "  #"
}

function links(words,    all) {
    all = matches(words, "\\]\\([^)]*\\)", 1)
    sub(/\(README(\.zh-CN)?\.md\)/, "(the other README)", all)
    return all
}

# What remains of a block's words without code, links' targets and names.
function plain(words) {
    gsub(/`[^`]*`/, "", words)
    gsub(/\]\([^)]*\)/, "]", words)
    return words
}

function compare_block(i,    here, there, mine, theirs, k, c) {
    here = text[2, i]
    there = text[1, i]
    if (kind[1, i] != kind[2, i]) {
        fail(place(2, i) ": " shown(2, i) ", where " place(1, i) " has " shown(1, i))
        return
    }
    if (kind[1, i] == "a line of code") {
        compare(i, "the code is", command(here), command(there))
        return
    }
    if (kind[1, i] == "a heading") compare(i, "the heading's level is", matches(here, "^#+"), matches(there, "^#+"))
    compare(i, "the code is", matches(here, "`[^`]*`", 1), matches(there, "`[^`]*`", 1))
    compare(i, "the links are", links(here), links(there))
    k = kind[1, i] != "a table's row"
    compare(i, "the figures are", matches(here, "[0-9]+([.,][0-9]+)*", k), matches(there, "[0-9]+([.,][0-9]+)*", k))
    if (!k) {
        gsub(/\\\|/, "\\!", here)
        gsub(/\\\|/, "\\!", there)
        c = split(here, mine, "|")
        compare(i, "the cells of the row are", c, split(there, theirs, "|"))
        options = is_options
        is_options = is_options || there ~ /^\| option \|/
        if (options) {
            compare(i, "the option is", mine[2], theirs[2])
            compare(i, "the default is", mine[3], theirs[3])
        }
    } else is_options = 0
    if (kind[1, i] != "a heading" && plain(there) ~ /(^|[^A-Za-z])[a-z][a-z][a-z]+/ && !links_only(there) &&
        here !~ /[\343-\351][\200-\277][\200-\277]/)
        fail(place(2, i) ": it is not translated: " shown(2, i))
}

function links_only(words) { return words ~ /^\[[^]]*\]\([^)]*\)$/ }

END {
    for (i = 1; i < 256; i++) ordinal[sprintf("%c", i)] = i
    if (write) {
        for (i = 1; i <= blocks[1]; i++) if (kind[1, i] != "a line of code") print hash(text[1, i])
        exit
    }
    for (i = 1; i <= blocks[1] || i <= blocks[2]; i++) compare_block(i)
    k = 0
    for (i = 1; i <= blocks[1]; i++)
        if (sums && kind[1, i] != "a line of code") {
            if ((getline sum < sums) <= 0) sum = ""
            if (sum != hash(text[1, i]))
                fail(place(1, i) ": not yet translated, or changed since: " shown(1, i) "; translate it at " \
                    place(2, i) ", then run: sh tests/test_readme.sh --translated")
        }
    if (sums && (getline sum < sums) > 0)
        fail(name[1] ": its end was translated and is gone; run: sh tests/test_readme.sh --translated")
    exit told
}
