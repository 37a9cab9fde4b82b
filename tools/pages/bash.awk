# bash.awk: the completion of bash, after help.awk.
END {
    finish_reading()
    print "# bash completion of tokenskip, made from its help (tools/pages/bash.awk)."
    print "_tokenskip() {"
    print "    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}"
    print "    local command=${COMP_WORDS[1]} options= paths="
    print "    COMPREPLY=()"
    print "    # --option=value comes in three words"
    print "    if [[ $current == = ]]; then current="
    print "    elif [[ $previous == = ]]; then previous=${COMP_WORDS[COMP_CWORD-2]}; fi"
    names = ""
    for (c = 0; c < n_commands; c++) names = names " " commands[c]
    print "    if ((COMP_CWORD == 1)); then"
    print "        COMPREPLY=($(compgen -W '" trim(names) " help --help --version' -- \"$current\"))"
    print "        return"
    print "    fi"
    print "    if [[ $command == help ]]; then"
    print "        ((COMP_CWORD == 2)) && COMPREPLY=($(compgen -W '" trim(names) "' -- \"$current\"))"
    print "        return"
    print "    fi"
    print "    case \"$command $previous\" in"
    for (o = 0; o < n_options; o++) {
        kind = value_kind(o)
        if (kind == "nothing") continue
        if (kind == "choice") action = "COMPREPLY=($(compgen -W '" choices(o) "' -- \"$current\"))"
        else if (kind == "folder") action = "compopt -o filenames -o dirnames"
        else if (kind == "file") action = "compopt -o bashdefault -o default"
        else action = ""
        print "    " patterns(o) ") " (action == "" ? "" : action "; ") "return ;;"
    }
    print "    esac"
    print "    case $command in"
    for (c = 0; c < n_commands; c++) {
        plain = ""
        negated = ""
        for (o = 0; o < n_options; o++) {
            if (!has_option(commands[c], o)) continue
            plain = plain (letter[o] == "" ? " " : " -" letter[o] " ") long[o]
            if (negatable[o]) negated = negated " --no-" substr(long[o], 3)
        }
        print "    " commands[c] ")"
        print "        options='" trim(plain) " -h --help'"
        # (the negative forms would double the list: they are shown when asked for)
        if (negated != "") print "        [[ $current == --n* ]] && options+='" negated "'"
        if (takes_paths[commands[c]]) print "        paths=yes"
        print "        ;;"
    }
    print "    esac"
    print "    if [[ $current == -* || (! $current && ! $paths) ]]; then"
    print "        COMPREPLY=($(compgen -W \"$options\" -- \"$current\"))"
    print "    elif [[ $paths ]]; then"
    print "        compopt -o bashdefault -o default"
    print "    fi"
    print "}"
    print "complete -F _tokenskip tokenskip"
}

# "eval --data"|"sweep --data"
function patterns(o,    names, n, i, result) {
    n = split(trim(owners[o]), names, " ")
    for (i = 1; i <= n; i++) {
        result = result (i > 1 ? "|" : "") "\"" names[i] " " long[o] "\""
        if (letter[o] != "") result = result "|\"" names[i] " -" letter[o] "\""
    }
    return result
}
