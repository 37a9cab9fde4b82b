# man.awk: tokenskip.1, after help.awk; -v version=0.2.0 -v date=2026-01-31. An option of one command stands under it;
# those that several share stand once, under SHARED OPTIONS.
END {
    finish_reading()
    print ".\\\" Made from the command's help (tools/pages/man.awk)."
    print ".TH TOKENSKIP 1 \"" date "\" \"TokenSkip " version "\" \"User Commands\""
    print ".nh\n.ad l"
    print ".SH NAME"
    print "tokenskip \\- runs masked-diffusion language models (LLaDA)"
    print ".SH SYNOPSIS"
    for (c = 0; c < n_commands; c++)
        say((c ? ".br\n" : "") ".B tokenskip " escaped(commands[c]) "\n" usage(commands[c]))
    print ".br\n.B tokenskip help\n.RI [ COMMAND ]"
    print ".br\n.B tokenskip \\-\\-version"
    print ".SH DESCRIPTION"
    say("Runs masked-diffusion language models of LLaDA's architecture from a Hugging Face model folder, as it is, " \
        "on the CPU or an NVIDIA GPU.")
    print "An option's default stands in parentheses."
    print "A switch is turned off by"
    print ".BR \\-\\-no\\- ,"
    print "as in"
    print ".BR \\-\\-no\\-skip\\-refresh ."
    overview_paragraphs(0)
    print ".SH COMMANDS"
    for (c = 0; c < n_commands; c++) print_command(commands[c])
    print ".SH SHARED OPTIONS"
    for (o = 0; o < n_options; o++) if (is_shared(o) && !(owners[o] in is_printed)) print_options_of(owners[o])
    print ".SH EXIT STATUS"
    overview_paragraphs(1)
    print ".SH FILES"
    print ".TP"
    print ".IR $XDG_CACHE_HOME /tokenskip/ ,\\ or\\  ~/.cache/tokenskip/"
    say("CUDA kernels, compiled for the GPUs of this machine. They can be deleted: the next start makes them again.")
    print ".SH EXAMPLES"
    example("What is in a model's folder, and the memory it takes:", "inspect LLaDA-8B-Instruct")
    example("Ask it, and watch the answer come:", "generate -m LLaDA-8B-Instruct -p \"Who is Newton?\" --visual")
    example("Answer a file of requests:", "batch -m LLaDA-8B-Instruct --input in.jsonl --output out.jsonl")
}

# The overview's last lines are paragraphs, each up to a line that ends in a full stop.
function overview_paragraphs(is_status,    i, paragraph) {
    for (i = 0; i < n_overview; i++) {
        paragraph = paragraph (paragraph == "" ? "" : "\n") overview[i]
        if (overview[i] !~ /\.$/) continue
        if ((paragraph ~ /^Exit status: /) == is_status) {
            sub(/^Exit status: /, "", paragraph)
            say((is_status ? "" : ".PP\n") escaped_lines(paragraph))
        }
        paragraph = ""
    }
}

function print_command(name,    o, line, shared) {
    print ".SS \"tokenskip " escaped(name) "\""
    say(usage(name) "\n.PP\n" escaped(summaries[name]))
    print_notes(name)
    for (o = 0; o < n_options; o++) {
        if (!has_option(name, o)) continue
        if (!is_shared(o)) print_option(o)
        else shared = shared (shared == "" ? "" : ",\n") "\\fB" escaped(long[o]) "\\fR"
    }
    if (shared != "") print ".PP\nShared options:\n" shared ".\n"
}

# What stands after the command's name, its options in bold.
function usage(name,    words, n, i, result) {
    n = split(usages[name], words, " ")
    for (i = 1; i <= n; i++) {
        match(words[i], /-[-a-z]+/)
        if (words[i] ~ /^[\[(]?-/)
            words[i] = escaped(substr(words[i], 1, RSTART - 1)) "\\fB" escaped(substr(words[i], RSTART, RLENGTH)) \
                "\\fR" escaped(substr(words[i], RSTART + RLENGTH))
        else words[i] = escaped(words[i])
        result = result (i > 1 ? " " : "") words[i]
    }
    return result
}

# A line that two blanks begin is an entry of a list, "  name   what it is"; one with more goes on with it.
function print_notes(name,    i, line, is_entry) {
    if (n_notes[name]) print ".PP"
    for (i = 0; i < n_notes[name]; i++) {
        line = notes[name, i]
        if (line == "") { if (i + 1 < n_notes[name]) print ".PP"; is_entry = 0 }
        else if (line ~ /^  [^ ]([^ ]| [^ ])*  +[^ ]/) {
            line = substr(line, 3)
            match(line, /  +/)
            say(".TP\n\\fB" escaped(substr(line, 1, RSTART - 1)) "\\fR\n" escaped(substr(line, RSTART + RLENGTH)))
            is_entry = 1
        } else {
            if (is_entry && line !~ /^ /) { print ".PP"; is_entry = 0 }
            say(escaped(trim(line)))
        }
    }
}

function print_option(o,    line) {
    line = (letter[o] == "" ? "" : "\\fB\\-" letter[o] "\\fR, ")
    if (negatable[o]) line = line "\\fB\\-\\-\\fR[\\fBno\\-\\fR]\\fB" escaped(substr(long[o], 3)) "\\fR"
    else line = line "\\fB" escaped(long[o]) "\\fR"
    if (argument[o] != "") line = line " \\fI" escaped(argument[o]) "\\fR"
    say(".TP\n" line "\n" escaped(text[o]))
}

function print_options_of(these,    o) {
    is_printed[these] = 1
    print ".SS \"Of " escaped(replace(trim(these), " ", ", ")) "\""
    for (o = 0; o < n_options; o++) if (owners[o] == these) print_option(o)
}

function is_shared(o) { return index(trim(owners[o]), " ") > 0 }

function example(what, line) {
    print (n_examples++ ? ".PP\n" : "") escaped(what) "\n.PP\n.EX\ntokenskip " escaped(line) "\n.EE"
}

function escaped_lines(s,    lines, n, i, result) {
    n = split(s, lines, "\n")
    for (i = 1; i <= n; i++) result = result (i > 1 ? "\n" : "") escaped(lines[i])
    return result
}

# Prints lines, those of text broken after 78 characters at the latest.
function say(s,    lines, words, n, m, i, j, line) {
    n = split(s, lines, "\n")
    for (i = 1; i <= n; i++) {
        if (lines[i] ~ /^\./) { print lines[i]; continue }
        m = split(lines[i], words, " ")
        line = words[1]
        for (j = 2; j <= m; j++)
            # (a line that begins with one of these would be a request)
            if (length(line) + length(words[j]) < 78 || words[j] ~ /^[.]/) line = line " " words[j]
            else { print line; line = words[j] }
        print line
    }
}

# roff reads backslashes, and makes typographic signs of some others. No line may begin with a dot or an apostrophe.
function escaped(s) {
    s = replace(s, "\\", "\\e")
    s = replace(s, "-", "\\-")
    s = replace(s, "'", "\\(aq")
    s = replace(s, "`", "\\(ga")
    s = replace(s, "^", "\\(ha")
    s = replace(s, "~", "\\(ti")
    return (substr(s, 1, 1) == "." ? "\\&" : "") s
}
