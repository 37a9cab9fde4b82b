# install.sh install|uninstall: what `make install` and `make uninstall` do, in one list of files for both. The Makefile
# gives the folders in the environment, and builds what is installed before. Run from the repository's root.
action=$1

fail() {
    echo "make $action: $*" >&2
    exit 1
}

version() { sed -n "s/^#define TOKENSKIP_VERSION_$1 //p" tokenskip.h; }
version_major=$(version MAJOR)
version_minor=$(version MINOR)
soversion=$version_major.$version_minor
version=$soversion.$(version PATCH)

# These stand in files that pkg-config and CMake read, each with its own quoting.
for name in prefix bindir libdir includedir mandir pkgconfigdir cmakedir bashcompletiondir zshcompletiondir \
    fishcompletiondir; do
    eval "value=\$$name"
    case $value in
    /*) ;;
    *) fail "$name is '$value', and must begin with /" ;;
    esac
    case $value in
    *[!A-Za-z0-9/._+~@:,=-]*) fail "$name is '$value', and may hold letters, digits and / . _ + ~ @ : , = - only" ;;
    esac
done

# relative FOLDER FROM: FOLDER as FROM sees it where both are under the prefix, so that the prefix may be moved.
relative() {
    case $1/ in "$prefix"/*) ;; *) echo "$1"; return ;; esac
    case $2/ in "$prefix"/*) ;; *) echo "$1"; return ;; esac
    up=$(echo "${2#"$prefix"}" | sed 's/[^/][^/]*/../g; s/^\/*//; s/\/*$//; s/\/\/*/\//g')
    echo "$up${1#"$prefix"}"
}

fill() { # fill TEMPLATE
    sed -e "s|@prefix@|$prefix|g" -e "s|@version@|$version|g" -e "s|@soversion@|$soversion|g" \
        -e "s|@version_major@|$version_major|g" -e "s|@version_minor@|$version_minor|g" \
        -e "s|@pc_libdir@|$(under_prefix "$libdir")|g" -e "s|@pc_includedir@|$(under_prefix "$includedir")|g" \
        -e "s|@cmake_libdir@|$(relative "$libdir" "$cmakedir")|g" \
        -e "s|@cmake_includedir@|$(relative "$includedir" "$cmakedir")|g" \
        -e "s|@cmake_bindir@|$(relative "$bindir" "$cmakedir")|g" "packaging/$1"
}

under_prefix() {
    case $1/ in
    "$prefix"/*) echo "\${prefix}${1#"$prefix"}" ;;
    *) echo "$1" ;;
    esac
}

# ---- One list, two meanings -----------------------------------------------------------------------------------------

say_and_run() {
    echo "$@"
    "$@" || fail "'$*' failed"
}

put() { # put program|data SOURCE FOLDER NAME
    target=$DESTDIR$3/$4
    if [ "$action" = uninstall ]; then say_and_run rm -f "$target"; return; fi
    [ -d "$DESTDIR$3" ] || say_and_run $INSTALL -d "$DESTDIR$3"
    # (INSTALL may be a command with options: it is split into words)
    if [ "$1" = program ]; then say_and_run $INSTALL_PROGRAM "$2" "$target"
    else say_and_run $INSTALL_DATA "$2" "$target"; fi
}

put_filled() { # put_filled TEMPLATE FOLDER NAME
    if [ "$action" = install ]; then fill "$1" > "$work/$3" || fail "packaging/$1 cannot be filled"; fi
    put data "$work/$3" "$2" "$3"
}

put_link() { # put_link FILE FOLDER NAME
    if [ "$action" = uninstall ]; then say_and_run rm -f "$DESTDIR$2/$3"
    else say_and_run ln -sf "$1" "$DESTDIR$2/$3"; fi
}

remove_folder() { # of our own, where nothing else is in it
    if [ "$action" = uninstall ] && [ -d "$DESTDIR$1" ]; then rmdir "$DESTDIR$1" 2> /dev/null; fi
    return 0
}

case $action in
install | uninstall) ;;
*) echo "usage: make install, or make uninstall" >&2; exit 2 ;;
esac
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

put program tokenskip "$bindir" tokenskip
put data tokenskip.h "$includedir/tokenskip" tokenskip.h
put data kernels.cu.h "$includedir/tokenskip" kernels.cu.h
remove_folder "$includedir/tokenskip"
put data build/libtokenskip.so "$libdir" "libtokenskip.so.$version"
put_link "libtokenskip.so.$version" "$libdir" "libtokenskip.so.$soversion"
put_link "libtokenskip.so.$soversion" "$libdir" libtokenskip.so
put_filled tokenskip.pc.in "$pkgconfigdir" tokenskip.pc
put_filled tokenskip-shared.pc.in "$pkgconfigdir" tokenskip-shared.pc
put_filled tokenskip-config.cmake.in "$cmakedir" tokenskip-config.cmake
put_filled tokenskip-config-version.cmake.in "$cmakedir" tokenskip-config-version.cmake
remove_folder "$cmakedir"
put data build/share/tokenskip.1 "$mandir/man1" tokenskip.1
put data build/share/tokenskip.bash "$bashcompletiondir" tokenskip
put data build/share/_tokenskip "$zshcompletiondir" _tokenskip
put data build/share/tokenskip.fish "$fishcompletiondir" tokenskip.fish

# The system's list of libraries, where this is the system itself and not a tree to pack.
if [ -z "$DESTDIR" ] && [ "$(id -u)" -eq 0 ] && command -v ldconfig > /dev/null; then say_and_run ldconfig; fi
