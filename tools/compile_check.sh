# compile_check.sh FOLDER COMPILER STANDARD VARIANT LEVEL: one cell of `make compile-matrix`. Prints "ok ..." or the
# compiler's messages and "failed ...". Variants:
#   default    CUDA linked: needs cuda.h; where there is none the header's #error must name the other two builds
#   no-cuda    TOKENSKIP_NO_CUDA
#   dlopen     TOKENSKIP_CUDA_DLOPEN
#   static     TOKENSKIP_STATIC, in one translation unit
#   no-cuda-h  the default build without cuda.h in reach
#   m32        a 32-bit program in GNU mode, a system header first, reads a file of 3 GiB
#   aarch64    for ARM, where there is a compiler for it: without CUDA, and with CUDA found at run time
#   tools      the command's sources, at every warning
#   windows    64-bit Windows by mingw-w64: with CUDA and without, windows.h before the header, the command; a file that
#              only uses the library gets none of windows.h's names
#   windows32  32-bit Windows, compiled only
#   macos      compiled as for macOS with Linux's headers, and those of tests/macos where the two differ: calls nothing
#              but what macOS has (tests/macos/functions.txt)
#   manual     the programs that the header's manual and README show, as they stand there; both answer
folder=$1 compiler=$2 standard=$3 variant=$4 level=$5
here=$folder/$compiler.$standard.$variant.$level.files
cuda=${CUDA_HOME:-/usr/local/cuda}
case $standard in
c++*) language=c++ driver=$(echo "$compiler" | sed 's/^gcc$/g++/; s/^clang$/clang++/') ;;
*) language=c driver=$compiler ;;
esac
case $variant-$compiler in
windows-gcc) driver=x86_64-w64-mingw32-$driver ;;
windows32-gcc) driver=i686-w64-mingw32-$driver ;;
windows-clang) driver="$driver --target=x86_64-w64-mingw32" ;;
esac
# in C, strict: no GNU mode, the header included first
compile="$driver -std=$standard -$level -Wall -Wextra -Wpedantic -Wshadow -Werror -I."
libraries="-lm -lpthread -ldl"

finish() { # finish STATUS WORDS...
    status=$1
    shift
    if [ "$status" -ne 0 ]; then
        head -n 40 "$here/messages"
        echo "failed $compiler $standard $variant $level $*"
    else
        echo "ok $compiler $standard $variant $level $*"
    fi
    rm -rf "$here"
    exit 0
}

command -v "${driver%% *}" > /dev/null || { echo "skipped $compiler $standard $variant $level: no $driver"; exit 0; }
rm -rf "$here"
mkdir -p "$here"
printf '#define TOKENSKIP_IMPLEMENTATION\n#include "tokenskip.h"\n' > "$here/implementation.$language"
cat > "$here/user.$language" << 'END'
#include "tokenskip.h"
#include <stdio.h>
int main(void) { puts(tsk_status_string(TSK_OK)); return 0; }
END

# Two translation units, one with the implementation, and the program they make.
two_units() { # two_units FLAGS LINK_FLAGS
    $compile $1 -x $language -c "$here/implementation.$language" -o "$here/implementation.o" &&
    $compile $1 -x $language -c "$here/user.$language" -o "$here/user.o" &&
    { [ "$2" = no-link ] || $driver "$here/implementation.o" "$here/user.o" -o "$here/program" $2 $libraries; } &&
    { [ -n "$2" ] || "$here/program"; } # linked CUDA libraries may be stubs: a machine without a driver cannot run it
}

finds_cuda_h() { echo '#include <cuda.h>' | $driver $1 -x $language -E - > /dev/null 2>&1; }

# The #error must come, and name both ways out.
must_refuse() {
    if $compile -x $language -c "$here/implementation.$language" -o "$here/implementation.o" 2> "$here/messages"; then
        echo "it compiled without cuda.h" >> "$here/messages"
        return 1
    fi
    grep -q TOKENSKIP_NO_CUDA "$here/messages" && grep -q TOKENSKIP_CUDA_DLOPEN "$here/messages"
}

# As a user would.
shown_program() { # shown_program SOURCE
    $driver -std=$standard -$level -Wall -Wextra -Werror -I. -x $language "$1" -o "$here/program" $libraries &&
        [ -n "$("$here/program")" ]
}

# What the library is made of, on Windows.
windows_units() {
    echo '#define TOKENSKIP_STATIC
#include <windows.h>
#define TOKENSKIP_IMPLEMENTATION
#include "tokenskip.h"
int near_and_far(void) { return tsk_version(); }' > "$here/after.$language"
    echo 'static int near, far, small, interface, min, max, IN, OUT, ERROR, CONST;
#include "tokenskip.h"
int names(void); int names(void) { return near + far + small + interface + min + max + IN + OUT + ERROR + CONST; }
#ifdef _WINDOWS_
#error "the public part of the header brings windows.h"
#endif' > "$here/names.$language"
    echo '#include "tokenskip.h"
int near, far;' > "$here/names_after.$language"
    for unit in implementation after names names_after; do
        # (windows.h has a type `byte`, which names of ours may shadow)
        case $unit in after) shadow=-Wno-shadow ;; *) shadow= ;; esac
        $compile $shadow -x $language -c "$here/$unit.$language" -o "$here/$unit.o" || return 1
    done
    $compile -DTOKENSKIP_NO_CUDA -x $language -c "$here/implementation.$language" -o "$here/implementation.o"
}

macos="-U__linux__ -Ulinux -U__linux -D__APPLE__ -isystem tests/macos"
# No other functions but those that macOS has, too. (Names with two underscores and with 64 are of Linux's headers,
# sincos is gcc's own for sin and cos.)
macos_calls() { # macos_calls OBJECT
    nm -u "$1" | awk '{ sub(/64$/, "", $2); print $2 }' |
        grep -vE '^(__|_GLOBAL|tsk_|cli_|system_|sincos$)' |
        sort -u > "$here/calls"
    tr ' ' '\n' < tests/macos/functions.txt | sort -u | comm -23 "$here/calls" - > "$here/unknown"
    [ ! -s "$here/unknown" ] || { echo "macOS has no:" $(cat "$here/unknown"); return 1; }
}

case $variant in
windows | windows32)
    echo '#include <windows.h>' | $driver -x $language -fsyntax-only - 2> /dev/null ||
        { echo "skipped $compiler $standard $variant $level: no windows.h for $driver"; exit 0; }
    [ $variant = windows ] || compile="$compile -msse2"
    windows_units > "$here/messages" 2>&1 || finish 1
    [ $variant = windows ] && [ $language = c ] || finish 0
    for source in tools/command/*.c; do
        $compile -Ibuild -c "$source" -o "$here/tool.o" >> "$here/messages" 2>&1 || finish 1 "$source"
    done
    finish 0 "(and the command)" ;;
macos)
    # (in GNU mode, as macOS's headers show all that they have by themselves)
    compile="$driver -std=$standard -$level -Wall -Wextra -Wpedantic -Wshadow -Werror -I. $macos"
    { $compile -x $language -c "$here/implementation.$language" -o "$here/implementation.o" &&
        macos_calls "$here/implementation.o"; } > "$here/messages" 2>&1 || finish 1
    [ $language = c ] || finish 0
    $compile -D_DEFAULT_SOURCE -Ibuild -c tools/command/system.c -o "$here/tool.o" > "$here/messages" 2>&1 &&
        macos_calls "$here/tool.o" >> "$here/messages" 2>&1
    finish $? "(and the command's system)" ;;
manual)
    sed -n '/^A COMPLETE PROGRAM/,/^WHAT IT DOES/s/^       //p' tokenskip.h > "$here/manual.$language"
    sed -n '/^```c$/,/^```$/{/^```/!p;}' README.md > "$here/readme.$language"
    [ "$language" = c ] || cp examples/embed.cpp "$here/embed.c++"
    { [ "$language" = c ] || shown_program "$here/embed.c++"; } > "$here/messages" 2>&1 || finish 1 "embed.cpp"
    { grep -q main "$here/manual.$language" && shown_program "$here/manual.$language" &&
        grep -q main "$here/readme.$language" && shown_program "$here/readme.$language"; } > "$here/messages" 2>&1
    finish $? ;;
no-cuda) two_units -DTOKENSKIP_NO_CUDA "" > "$here/messages" 2>&1; finish $? ;;
dlopen) two_units -DTOKENSKIP_CUDA_DLOPEN "" > "$here/messages" 2>&1; finish $? ;;
static)
    printf '#define TOKENSKIP_STATIC\n#define TOKENSKIP_IMPLEMENTATION\n' > "$here/one.$language"
    cat "$here/user.$language" >> "$here/one.$language"
    $compile -DTOKENSKIP_NO_CUDA -x $language "$here/one.$language" \
        -o "$here/program" $libraries > "$here/messages" 2>&1 && "$here/program" >> "$here/messages"
    finish $? ;;
m32)
    printf '#include <errno.h>\nint main(void) { return 0; }\n' |
        $driver -m32 -x $language - -o "$here/probe" 2> /dev/null ||
        { echo "skipped $compiler $standard $variant $level: no 32-bit libraries"; exit 0; }
    cat > "$here/large.$language" << 'END'
#include <stdio.h>
#define TOKENSKIP_IMPLEMENTATION
#define TOKENSKIP_NO_CUDA
#include "tokenskip.h"
int main(int argc, char **argv) {
    tsk_safetensors *file;
    tsk_error error;
    unsigned char last = 0;
    const tsk_tensor_info *t;
    memset(&error, 0, sizeof error);
    if (argc < 2 || sizeof(off_t) != 4 || tsk_safetensors_open(argv[1], NULL, &file, &error))
        return printf("%s\n", error.message), 1;
    t = tsk_safetensors_get(file, 0);
    if (tsk_safetensors_read(file, t, t->size - 1, &last, 1, &error)) return printf("%s\n", error.message), 1;
    tsk_safetensors_free(file);
    return last != '!';
}
END
    header='{"t":{"dtype":"U8","shape":[3221225472],"data_offsets":[0,3221225472]}} '
    printf "\\$(printf %o ${#header})\\0\\0\\0\\0\\0\\0\\0%s" "$header" > "$here/large.safetensors"
    printf '!' | dd of="$here/large.safetensors" bs=1 seek=$((8 + ${#header} + 3221225471)) conv=notrunc 2> /dev/null
    { $driver -std=$standard -$level -m32 -Wall -Wextra -Wno-psabi -Werror -I. "$here/large.$language" \
        -o "$here/program" -lm -lpthread &&
        "$here/program" "$here/large.safetensors"; } > "$here/messages" 2>&1
    finish $? ;;
aarch64)
    target=aarch64-linux-gnu
    case $compiler in
    gcc) driver=$target-$driver ;;
    *) driver="$driver --target=$target" ;;
    esac
    echo '#include <stdio.h>' | $driver -x $language -fsyntax-only - 2> /dev/null ||
        { echo "skipped $compiler $standard $variant $level: no compiler for $target"; exit 0; }
    compile="$driver ${compile#* }"
    { two_units -DTOKENSKIP_NO_CUDA no-link && two_units -DTOKENSKIP_CUDA_DLOPEN no-link; } \
        > "$here/messages" 2>&1
    finish $? "(compiled, not run)" ;;
tools)
    for source in tools/command/*.c; do
        case $source in tools/command/library.c) continue ;; esac
        $compile -Ibuild -c "$source" -o "$here/tool.o" >> "$here/messages" 2>&1 || finish 1 "$source"
    done
    ! grep -n 'tsk__' tools/command/*.[ch] > "$here/messages"
    finish $? "(and no private name)" ;;
no-cuda-h)
    if finds_cuda_h ""; then
        echo "skipped $compiler $standard $variant $level: cuda.h is among the system's headers"
    else
        must_refuse
        finish $? "(the #error)"
    fi ;;
default)
    if ! finds_cuda_h "-I$cuda/include"; then
        must_refuse
        finish $? "(no cuda.h: the #error)"
    fi
    # linked where the libraries are; only compiled where a machine has no more than the headers
    link="-L$cuda/lib64 -L$cuda/lib64/stubs -lcuda -lnvrtc -lcublas"
    echo 'int main(void) { return 0; }' | $driver -x $language - -o "$here/probe" $link > /dev/null 2>&1 || link=no-link
    two_units "-isystem $cuda/include" "$link" > "$here/messages" 2>&1
    finish $? "($([ "$link" = no-link ] && echo compiled, not linked || echo linked))" ;;
esac
