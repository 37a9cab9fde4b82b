# What is installed, as far as seconds tell: the files, what the library exports, the pkg-config files, and that manual
# page and completions have all that the help has. tests/packages/run.sh does the rest. Run from the repository's root.
. tests/shell.sh
compiler=${CC:-cc}
golden=tests/golden/models/mha-f32
unset MAKEFLAGS MAKELEVEL MFLAGS
version=$(sed -n 's/^#define TOKENSKIP_VERSION_M[A-Z]* //p' tokenskip.h | paste -s -d .)
soversion=$version
version=$version.$(sed -n 's/^#define TOKENSKIP_VERSION_PATCH //p' tokenskip.h)

make_it() { # make_it ARGUMENTS...: $rc, $out, $err
    ${MAKE:-make} "$@" > "$out" 2> "$err"
    rc=$?
}

fails() { ! "$@"; }

# ---- What is exported -----------------------------------------------------------------------------------------------

# The API as the compiler sees it, not as tools/make_exports.awk reads it.
api() { # api FROM_LINE TO_LINE
    { echo '#define TOKENSKIP_API EXPORTED'; sed -n "$1,$2p" tokenskip.h | grep -v '^ *#'; } |
        "$compiler" -E -P -x c - | tr '\n' ' ' | tr ';' '\n' |
        sed -n 's/.*EXPORTED [^(]*[ *]\(tsk_[a-z0-9_]*\) *(.*/\1/p' | sort
}

test_exports() {
    library=build/libtokenskip.so
    first=$(grep -n '^#ifdef __cplusplus' tokenskip.h | head -n 1 | cut -d : -f 1)
    line=$(grep -n '^/\* ---- Not for embedding -' tokenskip.h | cut -d : -f 1)
    last=$(grep -n '^#ifdef TOKENSKIP_IMPLEMENTATION' tokenskip.h | tail -n 1 | cut -d : -f 1)
    api "$first" "$line" > "$work/public"
    api "$line" "$last" > "$work/private"
    check "the API has functions" [ "$(wc -l < "$work/public")" -gt 50 ]
    check "... and some not for embedding" [ "$(wc -l < "$work/private")" -gt 20 ]
    nm -D --defined-only "$library" > "$out" 2> "$err"
    check "the library can be read" [ -s "$out" ]
    sed -n "s/.* T \(.*\)@@TOKENSKIP_$soversion\$/\1/p" "$out" | sort > "$work/exported"
    check "the library exports the API: $(diff "$work/public" "$work/exported")" cmp -s "$work/public" "$work/exported"
    sed -n "s/.* T \(.*\)@@TOKENSKIP_${version}_PRIVATE\$/\1/p" "$out" | sort > "$work/exported"
    check "what is not for embedding has a version of its own: $(diff "$work/private" "$work/exported")" \
        cmp -s "$work/private" "$work/exported"
    check "it exports nothing else: $(grep -v -e ' T tsk_' -e ' A TOKENSKIP_' "$out")" \
        [ "$(grep -v -c -e ' T tsk_' -e ' A TOKENSKIP_' "$out")" -eq 0 ]
    readelf -d "$library" > "$out" 2> "$err"
    check "its soname has the minor version" prints "SONAME.*\[libtokenskip.so.$soversion\]"
    check "it needs no CUDA" lacks 'NEEDED.*\(cuda\|nvrtc\|cublas\)'

    sed 's/^TOKENSKIP_API .*tsk_version(void);/TOKENSKIP_API int32_t version(void);/' tokenskip.h > "$work/strange.h"
    awk -f tools/make_exports.awk "$work/strange.h" > "$out" 2> "$err"
    rc=$?
    check "a function of the API that is not tsk_ is refused" [ "$rc" -ne 0 ]
    check "... in one line that names it" [ "$(wc -l < "$err")" -eq 1 ]
    check "... " says "'version'"
    awk -f tools/make_exports.awk /dev/null > "$out" 2> "$err"
    rc=$?
    check "so is a file that is not the header" [ "$rc" -ne 0 -a "$(wc -l < "$err")" -eq 1 ]
}

# ---- Installing -----------------------------------------------------------------------------------------------------

test_install() {
    root=$work/root
    make_it install DESTDIR="$root" PREFIX=/opt/skip
    check "make install works" [ "$rc" -eq 0 ]
    check "... says nothing on stderr" [ ! -s "$err" ]
    check "... builds nothing twice" lacks "^$compiler "
    (cd "$root/opt/skip" && find . ! -type d | sort) > "$work/list"
    cat > "$work/expected" << END
./bin/tokenskip
./include/tokenskip/kernels.cu.h
./include/tokenskip/tokenskip.h
./lib/cmake/tokenskip/tokenskip-config-version.cmake
./lib/cmake/tokenskip/tokenskip-config.cmake
./lib/libtokenskip.so
./lib/libtokenskip.so.$soversion
./lib/libtokenskip.so.$version
./lib/pkgconfig/tokenskip-shared.pc
./lib/pkgconfig/tokenskip.pc
./share/bash-completion/completions/tokenskip
./share/fish/vendor_completions.d/tokenskip.fish
./share/man/man1/tokenskip.1
./share/zsh/site-functions/_tokenskip
END
    check "it installs these files: $(diff "$work/expected" "$work/list")" cmp -s "$work/expected" "$work/list"
    check "... and none outside the prefix" [ "$(find "$root" ! -type d | grep -v -c "^$root/opt/skip/")" -eq 0 ]
    check "no template is left unfilled" \
        fails grep -r -q '@[a-z_]*@' "$root/opt/skip/lib/cmake" "$root/opt/skip/lib/pkgconfig"
    check "no file names the folder it was packed in" fails grep -r -q "$root" "$root"
    "$root/opt/skip/bin/tokenskip" --version > "$out" 2> "$err"
    check "the installed command runs" prints "^tokenskip $version"

    test_pkg_config
    make_it uninstall DESTDIR="$root" PREFIX=/opt/skip
    check "make uninstall works" [ "$rc" -eq 0 ]
    check "... and leaves no file: $(find "$root" ! -type d)" [ -z "$(find "$root" ! -type d)" ]
    check "... nor a folder of its own" [ -z "$(find "$root" -name tokenskip)" ]

    make_it install DESTDIR="$root" PREFIX=/usr libdir=/usr/lib/some-triplet includedir=/elsewhere bindir=/usr/games
    check "folders can be given one by one" [ -f "$root/usr/lib/some-triplet/pkgconfig/tokenskip.pc" -a \
        -f "$root/elsewhere/tokenskip/tokenskip.h" -a -x "$root/usr/games/tokenskip" ]
    check "pkg-config's file has one that is not under the prefix" \
        grep -q '^includedir=/elsewhere$' "$root/usr/lib/some-triplet/pkgconfig/tokenskip.pc"
    check "CMake's has it, too" \
        grep -q '"/elsewhere/tokenskip"' "$root/usr/lib/some-triplet/cmake/tokenskip/tokenskip-config.cmake"
    for wrong in PREFIX=relative PREFIX= 'PREFIX=/a b' 'libdir=/usr/$$x'; do
        make_it install DESTDIR="$work/none" "$wrong"
        check "make install $wrong is refused" [ "$rc" -ne 0 ]
        check "... in one line" [ "$(grep -c '^make install: ' "$err")" -eq 1 ]
        check "... and nothing is installed" [ ! -e "$work/none" ]
    done
}

# A program with the header's implementation in it, and one with the library, give the same tokens.
test_pkg_config() {
    if ! command -v pkg-config > /dev/null; then
        echo "pkg-config files: skipped, there is no pkg-config"
        return
    fi
    PKG_CONFIG_LIBDIR=$root/opt/skip/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$root
    export PKG_CONFIG_LIBDIR PKG_CONFIG_SYSROOT_DIR
    for name in tokenskip tokenskip-shared; do
        pkg-config --validate "$name" > "$out" 2> "$err"
        rc=$?
        check "$name.pc is valid" [ "$rc" -eq 0 ]
        check "$name.pc has the header's version" [ "$(pkg-config --modversion "$name")" = "$version" ]
    done
    "$compiler" -DAPP_HAS_IMPLEMENTATION tests/packages/app.c $(pkg-config --cflags --libs tokenskip) \
        -o "$work/app_header" > "$out" 2> "$err"
    check "a program compiles with tokenskip.pc" [ -x "$work/app_header" ]
    "$work/app_header" $golden > "$work/tokens" 2> "$err"
    check "... and runs" grep -q "^$version.*: [0-9 ]*$" "$work/tokens"
    "$compiler" tests/packages/app.c $(pkg-config --cflags --libs tokenskip-shared) -o "$work/app_shared" \
        > "$out" 2> "$err"
    check "one links with tokenskip-shared.pc" [ -x "$work/app_shared" ]
    readelf -d "$work/app_shared" > "$out" 2> "$err"
    check "... and needs this soname" prints "NEEDED.*\[libtokenskip.so.$soversion\]"
    LD_LIBRARY_PATH=$root/opt/skip/lib "$work/app_shared" $golden > "$out" 2> "$err"
    check "... and gives the same tokens" cmp -s "$work/tokens" "$out"
    unset PKG_CONFIG_LIBDIR PKG_CONFIG_SYSROOT_DIR
}

# ---- Manual page and completions ------------------------------------------------------------------------------------

# "command option negatable-or-not" for all that the help has.
options() {
    for command in $("$tokenskip" help | sed -n '/^commands:/,/^$/s/^  \([^ ]*\) .*/\1/p'); do
        "$tokenskip" help "$command" | sed -n "s/^  .\{4\}--\(\[no-\]\)\{0,1\}\([a-z-]*\).*/$command \2 \1/p"
    done | grep -v ' help $'
}

offers() { # offers WORD...: $out
    bash tests/packages/complete.bash build/share/tokenskip.bash "$@" > "$out" 2> "$err"
    rc=$?
}

are() { [ "$(echo $(cat "$out"))" = "$*" ]; }

test_pages() {
    options > "$work/options"
    check "the help has options" [ "$(wc -l < "$work/options")" -gt 100 ]
    sed 's/\\-/-/g; s/\\f[BIR]//g' build/share/tokenskip.1 > "$work/page"
    cut -d ' ' -f 2- "$work/options" | sort -u | while read -r option negatable; do
        grep -q -F -e "--$negatable$option" "$work/page" || echo "$option"
    done > "$work/missing"
    check "the manual page has every option: $(cat "$work/missing")" [ ! -s "$work/missing" ]
    while read -r command option negatable; do
        sed -n "/^        $command)/,/^            ;;/p" build/share/_tokenskip > "$work/zsh"
        grep -q -e "[{,']--$option[=},']" "$work/zsh" || echo "$command --$option"
        [ -z "$negatable" ] || grep -q -e "--no-$option" "$work/zsh" || echo "$command --no-$option"
    done < "$work/options" > "$work/missing"
    check "zsh's completion has every option of every command: $(cat "$work/missing")" [ ! -s "$work/missing" ]
    while read -r command option negatable; do
        grep -q -e "__tokenskip_is .*\b$command\b.* -l $option " build/share/tokenskip.fish || echo "$command --$option"
        [ -z "$negatable" ] || grep -q -e "-l no-$option " build/share/tokenskip.fish || echo "$command --no-$option"
    done < "$work/options" > "$work/missing"
    check "so has fish's: $(cat "$work/missing")" [ ! -s "$work/missing" ]

    # The makers read the help strictly: what they do not understand they refuse.
    sed 's/^      --gen-length N  /      --gen-length N N/' build/share/help.txt > "$work/help.txt"
    awk -f tools/pages/help.awk -f tools/pages/bash.awk "$work/help.txt" > "$out" 2> "$err"
    rc=$?
    check "a help that cannot be read is refused" [ "$rc" -ne 0 ]
    check "... in one line with its number" [ "$(grep -c 'help.awk: .*, line [0-9]*: ' "$err")" -eq 1 ]
    sed '/^usage: tokenskip chat/,/--help/d' build/share/help.txt > "$work/help.txt"
    awk -f tools/pages/help.awk -f tools/pages/man.awk "$work/help.txt" > "$out" 2> "$err"
    rc=$?
    check "so is one of too few commands" [ "$rc" -ne 0 ]
    check "... which names what is missing" says "'chat' is missing"
    mkdir -p "$work/pages"
    sh tools/make_pages.sh ./no-such-command "$work/pages" > "$out" 2> "$err"
    rc=$?
    check "no pages without a command" [ "$rc" -eq 2 -a "$(wc -l < "$err")" -eq 1 ]

    # The page's examples work, on the demo model.
    sed -n '/^\.SH EXAMPLES/,$s/^tokenskip //p' build/share/tokenskip.1 |
        sed 's/\\-/-/g; s/LLaDA-8B-Instruct/examples\/demo-model/' > "$work/examples"
    check "the page has examples" [ "$(wc -l < "$work/examples")" -ge 3 ]
    echo '{"id": 1, "prompt": "Who is Newton?", "gen_length": 8}' > "$work/in.jsonl"
    while read -r line; do
        line=$(echo "$line" | sed "s|in.jsonl|$work/&|; s|out.jsonl|$work/&|")
        eval "run $line" < /dev/null
        check "tokenskip $line" [ "$rc" -eq 0 ]
    done < "$work/examples"

    if command -v mandoc > /dev/null; then
        mandoc -Tlint build/share/tokenskip.1 > "$out" 2>&1
        check "mandoc has nothing to say of the manual page" [ ! -s "$out" ]
    else
        echo "mandoc -Tlint: skipped, there is no mandoc"
    fi
}

test_bash() {
    if ! command -v bash > /dev/null; then
        echo "bash completion: skipped, there is no bash"
        return
    fi
    offers tokenskip ''
    check "bash: the commands" are "$(echo $(cut -d " " -f 1 "$work/options" | uniq)) help --help --version"
    for command in $(cut -d ' ' -f 1 "$work/options" | uniq); do
        offers tokenskip "$command" --
        sed -n "s/^$command \([^ ]*\).*/--\1/p" "$work/options" | sort > "$work/expected"
        check "bash: the options of $command" [ "$(sort "$out")" = "$({ cat "$work/expected"; echo --help; } | sort)" ]
        offers tokenskip "$command" --no-
        sed -n -e "s/^$command \([^ ]*\) \[no-\]/--no-\1/p" -e "s/^$command \(no-[^ ]*\) /--\1/p" "$work/options" |
            sort > "$work/expected"
        check "bash: the negative ones of $command" [ "$(sort "$out")" = "$(cat "$work/expected")" ]
    done
    offers tokenskip gen
    check "bash: the end of a command" are generate
    offers tokenskip help ''
    check "bash: help takes a command" prints '^sweep$'
    offers tokenskip help chat ''
    check "bash: ... but only one" [ ! -s "$out" ]
    offers tokenskip generate --cache ''
    check "bash: a choice's values" are dual prefix none block
    offers tokenskip generate --cache =
    check "bash: ... after =" are dual prefix none block
    offers tokenskip generate --cache = p
    check "bash: ... begun" are prefix
    offers tokenskip batch --device c
    check "bash: a device" are cpu cuda
    offers tokenskip chat --skip-preset ''
    check "bash: the presets" are $("$tokenskip" help chat | sed -n 's/^ *--skip-preset \([^ ]*\).*/\1/p' | tr '|' ' ')
    check "bash: ... among them fast" prints '^fast$'
    offers tokenskip generate -m ''
    check "bash: -m takes a folder" are compopt -o filenames -o dirnames
    offers tokenskip trace --html ''
    check "bash: --html takes a file" are compopt -o bashdefault -o default
    offers tokenskip inspect ''
    check "bash: inspect takes a path" are compopt -o bashdefault -o default
    offers tokenskip batch --merge x
    check "bash: so does batch, after --merge" are compopt -o bashdefault -o default
    offers tokenskip generate --seed ''
    check "bash: nothing is known of a number" [ ! -s "$out" ]
    offers tokenskip bench --prompt ''
    check "bash: nor of another command's option of that name" [ ! -s "$out" ]
    offers tokenskip frobnicate --
    check "bash: nothing of a command that there is not" [ ! -s "$out" -a ! -s "$err" ]

    has_terminal "bash completion on a terminal" || return
    tab=$(printf '\t') kill_line=$(printf '\025')
    PS1='ready> ' terminal=dumb on_terminal see:"ready> " type:". build/share/tokenskip.bash$newline" see:"ready> " \
        type:"tokenskip generate -m examples/de${tab}" see:"examples/demo-model/" type:" --cac${tab}pre${tab}" \
        see:"--cache prefix" type:"${kill_line}exit 0$newline" -- bash --norc --noprofile -i
    check "bash: keys on a terminal" [ "$rc" -eq 0 ]
}

# ---- Versions that stand in several places --------------------------------------------------------------------------

test_versions() {
    debian=$(sed -n '1s/^tokenskip (\([^)-]*\).*/\1/p' packaging/debian/changelog)
    header=$(sed -n 's/^#define TOKENSKIP_VERSION_STRING "\(.*\)"/\1/p' tokenskip.h)
    check "debian/changelog ($debian) has the header's version ($header)" [ "$debian" = "$(echo "$header" | tr - '~')" ]
    check "the Debian package is named after the soname" \
        grep -q "^Package: libtokenskip$soversion$" packaging/debian/control
    check "stability.md names the soname" grep -q "libtokenskip.so.$soversion" docs/stability.md
}

test_exports
test_install
test_pages
test_bash
test_versions
echo "test_packages: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
