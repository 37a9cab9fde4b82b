# fish.awk: the completion of fish, after help.awk.
END {
    finish_reading()
    print "# fish completion of tokenskip, made from its help (tools/pages/fish.awk)."
    print ""
    print "# Whether the command is one of these; without arguments: whether there is none yet."
    print "function __tokenskip_is"
    print "    set -l words (commandline -opc)"
    print "    if test (count $argv) -eq 0"
    print "        test (count $words) -eq 1"
    print "    else"
    print "        test (count $words) -gt 1; and contains -- $words[2] $argv"
    print "    end"
    print "end"
    print ""
    print "complete -c tokenskip -f"
    print "complete -c tokenskip -n __tokenskip_is -s h -l help -d 'what it does'"
    print "complete -c tokenskip -n __tokenskip_is -l version -d 'which version it is'"
    for (c = 0; c < n_commands; c++) {
        print "complete -c tokenskip -n __tokenskip_is -a " commands[c] " -d " quoted(summaries[commands[c]])
        names = names " " commands[c]
        if (takes_paths[commands[c]]) with_paths = with_paths " " commands[c]
    }
    print "complete -c tokenskip -n __tokenskip_is -a help -d 'Lists the options of a command.'"
    print "complete -c tokenskip -n '__tokenskip_is help; and test (count (commandline -opc)) -eq 2' \\"
    print "    -a '" trim(names) "'"
    print "complete -c tokenskip -n '__tokenskip_is" names "' -s h -l help -d 'its options'"
    if (with_paths != "") print "complete -c tokenskip -n '__tokenskip_is" with_paths "' -F"
    for (o = 0; o < n_options; o++) {
        kind = value_kind(o)
        condition = "complete -c tokenskip -n '__tokenskip_is " trim(owners[o]) "'"
        option = (letter[o] == "" ? "" : " -s " letter[o]) " -l " substr(long[o], 3)
        if (kind == "choice") option = option " -x -a '" choices(o) "'"
        else if (kind == "folder") option = option " -x -a '(__fish_complete_directories)'"
        else if (kind == "file") option = option " -r -F"
        else if (kind == "other") option = option " -x"
        print condition option " -d " quoted(text[o])
        if (negatable[o]) print condition " -l no-" substr(long[o], 3) " -d " quoted("not: " text[o])
    }
}

function quoted(s) { return "'" replace(replace(s, "\\", "\\\\"), "'", "\\'") "'" }
