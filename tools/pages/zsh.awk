# zsh.awk: the completion of zsh, after help.awk.
END {
    finish_reading()
    print "#compdef tokenskip"
    print "# zsh completion of tokenskip, made from its help (tools/pages/zsh.awk)."
    print "_tokenskip() {"
    print "    local curcontext=$curcontext state line ret=1"
    print "    local -a commands"
    print "    typeset -A opt_args"
    print "    commands=("
    for (c = 0; c < n_commands; c++) print "        " quoted(described(commands[c]) ":" summaries[commands[c]])
    print "        'help:Lists the options of a command.'"
    print "    )"
    print "    _arguments -C '(- *)'{-h,--help}'[what it does]' '(- *)--version[which version it is]' \\"
    print "        '1: :->command' '*:: :->arguments' && ret=0"
    print "    case $state in"
    print "    command) _describe -t commands command commands && ret=0 ;;"
    print "    arguments)"
    print "        case $words[1] in"
    for (c = 0; c < n_commands; c++) {
        print "        " commands[c] ")"
        print "            _arguments -S \\"
        for (o = 0; o < n_options; o++)
            if (has_option(commands[c], o)) print "                " specification(o) " \\"
        if (takes_paths[commands[c]]) print "                '*:file:_files' \\"
        print "                '(- *)'{-h,--help}'[its options]' && ret=0"
        print "            ;;"
    }
    print "        help) ((CURRENT == 2)) && _describe -t commands command commands && ret=0 ;;"
    print "        esac"
    print "        ;;"
    print "    esac"
    print "    return ret"
    print "}"
    print "_tokenskip \"$@\""
}

function specification(o,    kind, tail, name) {
    kind = value_kind(o)
    name = described(argument[o])
    if (kind == "nothing") tail = ""
    else if (kind == "choice") tail = ":value:(" choices(o) ")"
    else if (kind == "folder") tail = ":" name ":_directories"
    else if (kind == "file") tail = ":" name ":_files"
    else tail = ":" name ": "
    tail = quoted("[" explained(text[o]) "]" tail)
    if (kind == "nothing") {
        if (!negatable[o]) return quoted(long[o]) tail
        name = "--no-" substr(long[o], 3)
        return quoted("(" long[o] " " name ")") "{" long[o] "," name "}" tail
    }
    if (letter[o] == "") return quoted(long[o] "=") tail
    return quoted("(-" letter[o] " " long[o] ")") "{-" letter[o] "," long[o] "=}" tail
}

function described(s) { return replace(replace(s, "\\", "\\\\"), ":", "\\:") }

function explained(s) { return replace(replace(replace(s, "\\", "\\\\"), "[", "\\["), "]", "\\]") }

function quoted(s) { return "'" replace(s, "'", "'\\''") "'" }
