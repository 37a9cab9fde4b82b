#!/bin/bash
# run.sh, which `make test-package` runs after building command, library and pages: TokenSkip as a stranger gets it.
#
#   cmake     its CMakeLists.txt builds, passes the tests under ctest, and installs what `make install` does
#   stranger  a project finds it in five ways: both installs by find_package, add_subdirectory, FetchContent of a folder
#             and of an archive
#   shells    manual page and completions under groff, mandoc, bash, zsh and fish
#   debian    packages build in a clean root without a network, lintian accepts them, and they work in another root
#
# Arguments name the parts to run; none: all. It needs Debian, root and apt-get, which brings what is missing, and takes
# minutes; DEB_BUILD_OPTIONS=nocheck leaves the tests out of Debian's build. Run from the repository's root.
parts=${*:-cmake stranger shells debian}
for part in $parts; do
    case $part in
    cmake | stranger | shells | debian) ;;
    *) echo "test-package: there is no part '$part': cmake, stranger, shells, debian" >&2; exit 2 ;;
    esac
done
. tests/shell.sh
golden=$PWD/tests/golden/models/mha-f32
unset MAKEFLAGS MAKELEVEL MFLAGS
export DEBIAN_FRONTEND=noninteractive
version=$(./tokenskip --version | sed 's/^tokenskip //; s/-dev$//') || exit 1
debian_version=$(sed -n '1s/^tokenskip (\(.*\)).*/\1/p' packaging/debian/changelog)

needed=
needs() { command -v "$1" > /dev/null || needed="$needed $2"; } # needs COMMAND PACKAGE
case " $parts " in *" cmake "* | *" stranger "*) needs cmake cmake ;; esac
case " $parts " in *" shells "*) for name in groff mandoc zsh fish; do needs $name $name; done; needs man man-db ;; esac
case " $parts " in *" debian "*) needs mmdebstrap mmdebstrap; needs dpkg-source dpkg-dev; needs lintian lintian ;; esac
if [ -n "$needed" ]; then
    if ! command -v apt-get > /dev/null || [ "$(id -u)" -ne 0 ]; then
        echo "test-package:$needed missing, and only root on Debian can install it here" >&2
        exit 1
    fi
    apt-get update -qq && apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends $needed || exit 1
fi

logged() { # logged COMMAND...: $rc, $out, $err; what failed is shown at length
    "$@" > "$out" 2> "$err" < /dev/null
    rc=$?
    [ "$rc" -eq 0 ] || { tail -n 60 "$out"; tail -n 20 "$err"; } >&2
    return "$rc"
}

# The source as it would be packed, from what lies here: git's files, or, in an unpacked archive, all but what is built.
pack_source() { # pack_source NAME ARCHIVE
    if git rev-parse --git-dir > /dev/null 2>&1; then git ls-files -z --cached --others --exclude-standard
    else find . -path ./build -prune -o \( -type f -o -type l \) -print0; fi |
        tar --null --ignore-failed-read --exclude=./tokenskip --sort=name --owner=0 --group=0 \
            --transform="s|^\(\./\)\{0,1\}|$1/|" -czf "$2" -T -
}

fails() { ! "$@" 2> /dev/null; }

list_of() { (cd "$1" && find . ! -type d | sort); }

# ---- CMake ----------------------------------------------------------------------------------------------------------

test_cmake() {
    logged cmake -S . -B "$work/cmake" -DCMAKE_INSTALL_PREFIX=/opt/skip -DCMAKE_INSTALL_LIBDIR=lib
    check "CMake configures" [ "$rc" -eq 0 ]
    logged cmake --build "$work/cmake" -j "$(nproc)"
    check "... builds" [ "$rc" -eq 0 ]
    (cd "$work/cmake" && logged ctest --output-on-failure -j "$(nproc)")
    check "... and passes the tests: $(grep 'tests passed' "$out")" grep -q '^100% tests passed' "$out"
    DESTDIR=$work/cmake_root logged cmake --install "$work/cmake"
    check "it installs" [ "$rc" -eq 0 ]
    logged make install DESTDIR="$work/make_root" PREFIX=/opt/skip
    list_of "$work/make_root" > "$work/make_list"
    list_of "$work/cmake_root" > "$work/cmake_list"
    check "... what make does: $(diff "$work/make_list" "$work/cmake_list")" cmp -s "$work/make_list" "$work/cmake_list"
    grep -v -e /bin/ -e libtokenskip "$work/make_list" | while read -r file; do
        cmp -s "$work/make_root/$file" "$work/cmake_root/$file" || echo "$file"
    done > "$out"
    check "... byte by byte, but for what is compiled: $(cat "$out")" [ ! -s "$out" ]
    nm -D --defined-only build/libtokenskip.so | sed 's/.* //' | sort > "$work/make_list"
    nm -D --defined-only "$work/cmake_root/opt/skip/lib/libtokenskip.so" | sed 's/.* //' | sort > "$work/cmake_list"
    check "its library exports the same" cmp -s "$work/make_list" "$work/cmake_list"
    readelf -d "$work/cmake_root/opt/skip/lib/libtokenskip.so" > "$out"
    check "... under the same soname" prints "SONAME.*\[libtokenskip.so.${version%.*}\]"
}

# ---- A stranger's project -------------------------------------------------------------------------------------------

stranger() { # stranger NAME CMAKE_ARGUMENT...
    name=$1
    shift
    mkdir -p "$work/$name"
    logged cmake -S "$work/project" -B "$work/$name" -DMODEL="$golden" -DCMAKE_BUILD_TYPE=Debug "$@"
    check "$name: configures" [ "$rc" -eq 0 ]
    logged cmake --build "$work/$name"
    check "$name: builds" [ "$rc" -eq 0 ]
    (cd "$work/$name" && logged ctest --output-on-failure -j "$(nproc)")
    check "$name: its programs run" grep -q '^100% tests passed.* 2$' "$out"
    check "$name: a build runs the command" grep -q "^tokenskip $version" "$work/$name/version.txt"
    "$work/$name/app_header" "$golden" > "$work/header"
    "$work/$name/app_shared" "$golden" > "$work/shared"
    check "$name: both give the same tokens" cmp -s "$work/header" "$work/shared"
}

test_stranger() {
    # (away from the repository, where nothing but the given way leads to it)
    mkdir -p "$work/project"
    cp tests/packages/CMakeLists.txt tests/packages/app.c "$work/project"
    logged make install DESTDIR="$work/moved" PREFIX=/usr/local
    stranger find_make -DWAY=find_package -DCMAKE_PREFIX_PATH="$work/moved/usr/local"
    if [ -d "$work/cmake_root" ]; then
        stranger find_cmake -DWAY=find_package -DCMAKE_PREFIX_PATH="$work/cmake_root/opt/skip"
    fi
    for asked in 0.1 0.3 1.0; do
        sed "s/find_package(tokenskip 0.2/find_package(tokenskip $asked/" tests/packages/CMakeLists.txt \
            > "$work/project/CMakeLists.txt"
        cmake -S "$work/project" -B "$work/asked_$asked" -DWAY=find_package \
            -DCMAKE_PREFIX_PATH="$work/moved/usr/local" > "$out" 2> "$err"
        rc=$?
        check "find_package: who asks for $asked does not get $version" [ "$rc" -ne 0 ]
    done
    for asked in "${version%%.*}" "$version" "${version%.*}...<0.3" "$version EXACT"; do
        sed "s/find_package(tokenskip 0.2/find_package(tokenskip $asked/" tests/packages/CMakeLists.txt \
            > "$work/project/CMakeLists.txt"
        logged cmake -S "$work/project" -B "$work/asked" -DWAY=find_package -DCMAKE_PREFIX_PATH="$work/moved/usr/local"
        check "find_package: who asks for $asked gets $version" [ "$rc" -eq 0 ]
    done
    cp tests/packages/CMakeLists.txt "$work/project"
    rm "$work/moved/usr/local/bin/tokenskip"
    cmake -S "$work/project" -B "$work/no_command" -DWAY=find_package -DCMAKE_PREFIX_PATH="$work/moved/usr/local" \
        > "$out" 2> "$err"
    check "find_package: a missing component is named" says "tokenskip has no 'command' here"

    pack_source tokenskip-source "$work/source.tar.gz"
    mkdir "$work/source"
    tar -xzf "$work/source.tar.gz" -C "$work/source" --strip-components=1
    stranger add_subdirectory -DWAY=add_subdirectory -DTOKENSKIP_SOURCE="$work/source"
    stranger fetch_folder -DWAY=FetchContent -DTOKENSKIP_SOURCE="$work/source"
    stranger fetch_archive -DWAY=FetchContent -DTOKENSKIP_SOURCE="file://$work/source.tar.gz"
    check "the source is as it was" [ -z "$(find "$work/source" -newer "$work/source.tar.gz" -type f)" ]
    logged cmake --install "$work/fetch_archive" --prefix "$work/nothing"
    check "in another project nothing is installed" [ ! -e "$work/nothing/bin" -a ! -e "$work/nothing/lib" ]
}

# ---- Manual page and completions ------------------------------------------------------------------------------------

test_shells() {
    groff -man -Tutf8 -ww -z build/share/tokenskip.1 > "$out" 2>&1
    check "groff has nothing to say of the manual page" [ ! -s "$out" ]
    mandoc -Tlint build/share/tokenskip.1 > "$out" 2>&1
    check "nor has mandoc" [ ! -s "$out" ]
    MANWIDTH=80 man -l build/share/tokenskip.1 > "$out" 2> "$err"
    check "man shows it" prints 'SHARED OPTIONS'
    check "... and says nothing" [ ! -s "$err" ]
    check "... within 80 columns" [ "$(awk 'length > 80' "$out" | grep -c .)" -eq 0 ]

    zsh -n build/share/_tokenskip > "$out" 2>&1
    check "zsh reads its completion" [ ! -s "$out" ]
    fish --no-execute build/share/tokenskip.fish > "$out" 2>&1
    check "fish reads its completion" [ ! -s "$out" ]
    fish_offers "tokenskip gen" generate
    fish_offers "tokenskip help swe" sweep
    fish_offers "tokenskip generate --ca" --cache
    fish_offers "tokenskip generate --cache " "dual none prefix"
    fish_offers "tokenskip generate --cache=p" --cache=prefix
    fish_offers "tokenskip batch --device c" "cpu cuda"
    fish_offers "tokenskip bench --shape llada-1" llada-1b
    fish_offers "tokenskip generate -m examples/de" examples/demo-model/
    fish_offers "tokenskip generate -m READ" ""
    fish_offers "tokenskip trace --html READ" README.md
    fish_offers "tokenskip inspect READ" README.md
    fish_offers "tokenskip tokenize READ" ""
    fish_offers "tokenskip generate --no-sk" "--no-skip-masked --no-skip-refresh --no-skip-warm-start"
    fish_offers "tokenskip template --gen" ""
    fish_offers "tokenskip generate --seed " ""
    fish_offers "tokenskip chat -p generate --da" ""

    has_terminal "zsh completion on a terminal" || return
    mkdir -p "$work/zsh"
    cp build/share/_tokenskip "$work/zsh"
    tab=$(printf '\t')
    zsh_types "tokenskip gen${tab}" "generate"
    zsh_types "tokenskip generate --cac${tab}pr${tab}" "generate --cache=prefix"
    zsh_types "tokenskip help swe${tab}" "help sweep"
    zsh_types "tokenskip bench --shape llada-1${tab}" "bench --shape llada-1b"
    zsh_types "tokenskip generate -m examples/demo${tab}" "generate -m examples/demo-model"
    zsh_types "tokenskip inspect READ${tab}" "inspect README.md"
    zsh_types "tokenskip chat --no-skip-w${tab}" "chat --no-skip-warm-start"
    zsh_types "tokenskip batch --device cud${tab}" "batch --device cuda"
}

fish_offers() { # fish_offers LINE WORDS
    HOME=$work fish --no-config -c "source build/share/tokenskip.fish; complete -C '$1'" > "$out" 2> "$err"
    check "fish: '$1' may become '$2'" [ "$(echo $(sed 's/\t.*//' "$out" | sort))" = "$2" ]
}

# The line is run, by a function that says which words it got: what a line editor draws is hard to read.
zsh_types() { # zsh_types KEYS WORDS
    setup="fpath=($work/zsh \$fpath); autoload -Uz compinit; compinit -D -u; tokenskip() { print -r \"<\$*>\"; }"
    HOME=$work PROMPT='ready> ' on_terminal see:"ready> " type:"$setup$newline" see:"ready> " \
        type:"$1$newline" see:"<$2>" see:"ready> " type:"exit 0$newline" -- zsh -f -i
    check "zsh: '$1' becomes '$2'" [ "$rc" -eq 0 ]
}

# ---- Debian ---------------------------------------------------------------------------------------------------------

# The packages of Build-Depends, for a root that is made with them; debhelper-compat is a virtual one.
build_depends() {
    sed -n '/^Build-Depends:/,/^[A-Z]/s/^ \([a-z0-9.+-]*\).*/\1/p' packaging/debian/control |
        sed 's/^debhelper-compat$/debhelper/' | paste -s -d ,
}

test_debian() {
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    name=tokenskip-${debian_version%-*}
    mkdir "$work/debian"
    pack_source "$name" "$work/debian/tokenskip_${debian_version%-*}.orig.tar.gz"
    tar -xzf "$work/debian/tokenskip_${debian_version%-*}.orig.tar.gz" -C "$work/debian"
    cp -R packaging/debian "$work/debian/$name/debian"
    check "the source has no debian folder of its own" \
        fails tar -tzf "$work/debian/tokenskip_${debian_version%-*}.orig.tar.gz" "$name/debian"
    (cd "$work/debian" && logged dpkg-source -b "$name")
    check "dpkg-source packs it" [ "$rc" -eq 0 ]

    # A root of build-essential and what the package asks for; the build itself runs as a user and without a network.
    mkdir "$work/built"
    cat > "$work/build" << END
set -e
export DEB_BUILD_OPTIONS='$DEB_BUILD_OPTIONS'
useradd --create-home builder
chown -R builder /build
cd /build
runuser -u builder -- dpkg-source -x tokenskip_$debian_version.dsc built
cd built
dpkg-checkbuilddeps
unshare --net runuser -u builder -- dpkg-buildpackage -us -uc -j$(nproc)
cd ..
mkdir out
mv *.deb *.buildinfo *.changes *.dsc *.tar.* out
END
    logged mmdebstrap --variant=buildd --include="$(build_depends)" \
        --customize-hook='mkdir "$1/build"' \
        --customize-hook="cp '$work/debian'/tokenskip_* '$work/build' \"\$1/build\"" \
        --customize-hook='chroot "$1" sh /build/build' \
        --customize-hook="cp \"\$1\"/build/out/* '$work/built'" "$suite" /dev/null
    check "packages build in a clean root" [ "$rc" -eq 0 ]
    [ "$rc" -eq 0 ] || return
    for package in tokenskip libtokenskip${version%.*} libtokenskip-dev; do
        check "... among them $package" [ -n "$(ls "$work/built/${package}_${debian_version}"_*.deb)" ]
    done
    grep ' passed, [0-9]* failed$' "$out" | tail -n 1
    dpkg-deb --info "$work/built/tokenskip_${debian_version}"_*.deb > "$out"
    check "the command needs the C library only" [ "$(sed -n 's/^ Depends: //p' "$out" | grep -c ,)" -eq 0 ]

    changes=$(ls "$work/built"/*_"$(dpkg --print-architecture)".changes)
    lintian --allow-root --tag-display-limit 0 --fail-on error,warning "$changes" > "$work/lintian" 2> "$err"
    rc=$?
    cp "$work/lintian" "$out"
    cat "$work/lintian"
    check "lintian has no error or warning" [ "$rc" -eq 0 ]

    # Another root, with what a program needs to be compiled, and these packages.
    mkdir "$work/source_of_tests"
    tar -xzf "$work/debian/tokenskip_${debian_version%-*}.orig.tar.gz" -C "$work/source_of_tests" --strip-components=1
    cp -R packaging/debian "$work/source_of_tests/debian"
    rm -rf "$work/source_of_tests/examples/demo-model"
    logged mmdebstrap --variant=minbase --include="gcc,libc6-dev,pkgconf,man-db" \
        --customize-hook="cp -R '$work/source_of_tests' \"\$1/source\"; mkdir \"\$1/packages\"" \
        --customize-hook="cp '$work/built'/*.deb \"\$1/packages\"; rm -f \"\$1\"/packages/*-dbgsym_*" \
        --customize-hook='chroot "$1" sh -c "dpkg -i /packages/*.deb"' \
        --customize-hook='chroot "$1" sh -c "cd /source && sh debian/tests/build-programs"' \
        --customize-hook='chroot "$1" sh -c "dpkg --purge tokenskip libtokenskip-dev libtokenskip'"${version%.*}"'"' \
        --customize-hook='test -z "$(find "$1/usr/include" "$1/usr/lib" "$1/usr/bin" -name "*tokenskip*")"' \
        "$suite" /dev/null
    check "they install in a clean root, programs compile with them, and they go again" [ "$rc" -eq 0 ]
}

for part in $parts; do
    started=$(date +%s)
    "test_$part"
    echo "test-package: $part took $(($(date +%s) - started)) s"
done
echo "test-package: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
