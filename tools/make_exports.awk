# make_exports.awk: reads tokenskip.h and prints the version script of the shared library: every function of the API and
# nothing else. Those under "Not for embedding" may change with any version (docs/stability.md), so they have a node of
# their own that names the exact version: a program that calls them starts with that version only, or says why not.
#
#     awk -f tools/make_exports.awk tokenskip.h > exports.map

/^#define TOKENSKIP_VERSION_(MAJOR|MINOR|PATCH) / { version[substr($2, 19)] = $3 }
/^\/\* ---- Not for embedding -/ { is_private = 1 }

# The name stands before the first parenthesis, on the line of TOKENSKIP_API or on one after it.
/^TOKENSKIP_API / { declaration = "" }
/^TOKENSKIP_API /, /\(/ {
    declaration = declaration " " $0
    if (index($0, "(")) {
        sub(/\(.*/, "", declaration)
        sub(/.*[ *]/, "", declaration)
        if (declaration !~ /^tsk_[a-z0-9_]+$/) fail("line " NR " declares '" declaration "', which is no tsk_ name")
        if (is_private) private_names = private_names "        " declaration ";\n"
        else public_names = public_names "        " declaration ";\n"
    }
}

function fail(text) {
    print "make_exports.awk: " FILENAME ": " text > "/dev/stderr"
    failed = 1
    exit 1
}

END {
    if (failed) exit 1
    if (version["MAJOR"] == "" || version["MINOR"] == "" || version["PATCH"] == "") fail("it names no version")
    if (public_names == "" || private_names == "") fail("it has no API, or no part that is not for embedding")
    minor = "TOKENSKIP_" version["MAJOR"] "." version["MINOR"]
    print minor " {\n    global:\n" public_names "    local:\n        *;\n};"
    print minor "." version["PATCH"] "_PRIVATE {\n    global:\n" private_names "} " minor ";"
}
