# help.awk: reads what `tokenskip help` and then `tokenskip help COMMAND` of every command print, for the makers beside
# it (make_pages.sh runs them). What they find:
#
#     n_commands, commands[c]     the names, in the overview's order; summaries[name], usages[name]
#     n_notes[name], notes[name, i]           the lines between the summary and the options
#     takes_paths[name]                       whether it takes files or folders that belong to no option
#     overview[i], i < n_overview             the lines after the overview's list of commands
#     n_options, and of option o: long[o], letter[o] ("" for none), argument[o], text[o], negatable[o]
#     owners[o]                               the commands that have it, with blanks around each
#
# An option that several commands have is one option where name, argument and text are the same.

FNR == 1 { is_overview = 0 }
/^usage: tokenskip COMMAND/ { is_overview = 1; next }
/^usage: tokenskip / {
    if (is_listing) read_error("the overview's list of commands does not end")
    is_overview = is_options = 0
    command = $3
    usages[command] = $0
    sub(/^usage: tokenskip [^ ]+ ?/, "", usages[command])
    if (!(command in summaries)) read_error("'" command "' is no command of the overview")
    n_notes[command] = 0
    is_known[command] = 1
    seen_summary = 0
    next
}

is_overview && /^commands:$/ { is_listing = 1; next }
is_overview && is_listing && /^$/ { is_listing = 0; is_tail = 1; next }
is_overview && is_listing {
    commands[n_commands++] = $1
    summaries[$1] = $0
    sub(/^ *[^ ]+ +/, "", summaries[$1])
    next
}
is_overview && is_tail { overview[n_overview++] = $0; next }
is_overview { next }

/^options \(/ { is_options = 1; last = ""; next }
!is_options && $0 == summaries[command] && !seen_summary { seen_summary = 1; next }
!is_options { if ($0 != "" || n_notes[command]) notes[command, n_notes[command]++] = $0; next }

# An option: two blanks, "-m, " or four blanks, its name and argument up to column 38, its text from column 39 on. Where
# the name is too long, the text begins on the next line.
/^  (-[a-zA-Z], |    )--/ {
    finish_option()
    left = $0
    right = ""
    if (substr($0, 38, 1) == " ") { left = substr($0, 1, 38); right = substr($0, 39) }
    sub(/^ +/, "", left)
    sub(/ +$/, "", left)
    if (left !~ /^(-[a-zA-Z], )?--[^ ]+( [^ ]+)?$/) read_error("no option can be read from '" left "'")
    last = left
    next
}
/^                                      [^ ]/ && last != "" {
    right = right (right == "" ? "" : " ") substr($0, 39)
    next
}
{ read_error("'" $0 "' is no line of options") }

function finish_option(    one, name, value, key) {
    if (last == "") return
    one = ""
    if (last ~ /^-[a-zA-Z], /) { one = substr(last, 2, 1); last = substr(last, 5) }
    name = last
    sub(/ .*/, "", name)
    value = index(last, " ") ? substr(last, index(last, " ") + 1) : ""
    key = last SUBSEP one SUBSEP right
    last = ""
    if (name == "--help") return
    if (!(key in known)) {
        known[key] = n_options++
        negatable[known[key]] = sub(/^--\[no-\]/, "--", name)
        long[known[key]] = name
        letter[known[key]] = one
        argument[known[key]] = value
        text[known[key]] = right
        owners[known[key]] = " "
    }
    owners[known[key]] = owners[known[key]] command " "
}

function read_error(message) {
    print "help.awk: " FILENAME ", line " FNR ": " message > "/dev/stderr"
    failed = 1
    exit 1
}

# Called first in the END of every maker.
function finish_reading(    c) {
    if (failed) exit 1
    finish_option()
    if (!n_commands || !n_options) read_error("it has no commands, or no options")
    for (c = 0; c < n_commands; c++) {
        if (!(commands[c] in is_known)) read_error("the help of '" commands[c] "' is missing")
        takes_paths[commands[c]] = find_paths(commands[c])
    }
}

# A word like FILE, FILE... or PATH in the usage, which neither an option takes nor the standard input's "<".
function find_paths(name,    words, n, i, before) {
    n = split(usages[name], words, /[ ,()|]+/)
    for (i = 1; i <= n; i++)
        if (words[i] ~ /^\[?(FILE|PATH|DIR)(\.\.\.)?\]?$/) {
            before = i > 1 ? words[i - 1] : ""
            if (before != "<" && !(before ~ /^\[?-/ && takes_value(name, before))) return 1
        }
    return 0
}

function takes_value(name, word,    o) {
    sub(/^\[/, "", word)
    for (o = 0; o < n_options; o++)
        if (has_option(name, o) && (word == long[o] || word == "-" letter[o])) return argument[o] != ""
    return 0
}

function has_option(name, o) { return index(owners[o], " " name " ") > 0 }

# What can stand after the option: "choice" (see choices), "folder", "file", "other", "nothing".
function value_kind(o) {
    if (argument[o] == "") return "nothing"
    if (index(argument[o], "|")) return "choice"
    return argument[o] == "DIR" ? "folder" : argument[o] == "FILE" ? "file" : "other"
}

# "auto|cpu|cuda[:N]" -> "auto cpu cuda"
function choices(o,    values) {
    values = argument[o]
    gsub(/\[[^]]*\]/, "", values)
    gsub(/\|/, " ", values)
    return values
}

function trim(s) {
    gsub(/^ +| +$/, "", s)
    return s
}

# `with` for every `what`, a string: gsub reads backslashes differently from one awk to the next.
function replace(s, what, with,    at, result) {
    while ((at = index(s, what)) > 0) {
        result = result substr(s, 1, at - 1) with
        s = substr(s, at + length(what))
    }
    return result s
}
