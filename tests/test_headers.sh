# tokenskip.h and kernels.cu.h are what src/ makes, each section compiles alone, a section that uses one below it is
# refused, and no line is too long. Run from the repository's root.
. tests/shell.sh
make=build/make_headers
compiler=${CC:-cc}

"$make" join src/tokenskip.h "$work/tokenskip.h" > "$out" 2> "$err"
check "src/ makes tokenskip.h (stale: run make headers)" cmp -s "$work/tokenskip.h" tokenskip.h
"$make" quote src/kernels/kernels.cu "$work/kernels.cu.h" > "$out" 2> "$err"
check "src/ makes kernels.cu.h (stale: run make headers)" cmp -s "$work/kernels.cu.h" kernels.cu.h
check "no include of src/ is left in the header" [ "$(grep -c '^#include "' tokenskip.h)" -eq 1 ]
check "... nor in the kernels" [ "$(grep -c '#include [\]"' kernels.cu.h)" -eq 0 ]

listed=$(sed -n '/^CONTENTS/,/^   Each/s/^   >>/>>/p' src/api.h | tr -s ' ' '\n' | tr -d '>')
check "the manual lists the sections" [ "$listed" = "$(sed -n 's/^\/\/ >>\([a-z_]*\) =*$/\1/p' tokenskip.h)" ]

for section in src/*.h; do
    echo "#include \"$section\"" > "$work/alone.c"
    "$compiler" -I. -Isrc -DTOKENSKIP_IMPLEMENTATION -DTOKENSKIP_CUDA_DLOPEN -Wall -Werror -Wno-unused -fsyntax-only \
        "$work/alone.c" > "$out" 2> "$err"
    rc=$?
    check "$section compiles alone" [ "$rc" -eq 0 ]
done

# The sections above the backends neither touch a backend's memory by themselves nor ask which backends were compiled
# in.
above="src/model.h src/trace.h src/forward.h src/request.h src/session.h src/batch.h src/public.h"
check "no section above >>storage uses the backend's memory" \
    [ -z "$(grep -nE 'ops->(allocate|release|copy|slide|upload|download)' $above)" ]
check "no section above the backends has an #ifdef of CUDA" [ -z "$(grep -nE '^#.*CUDA' $above)" ]

calls='open close read write pread pwrite rename unlink dlopen dlsym pthread_[a-z_]* getenv mkdir stat fstat lstat'
calls="$calls fopen fclose getpid"
calls="$calls sched_yield nanosleep clock_gettime sysconf mmap munmap __get_cpuid[a-z_]* getrandom"
for call in $calls; do
    found=$(grep -nE "(^|[^>.a-z_A-Z*])$call\\(" $(ls src/*.h | grep -v -e platform.h -e api.h))
    check "only >>platform calls $call: $found" [ -z "$found" ]
done
# Windows has thousands of functions, whose names begin like no other: GetLastError.
found=$(grep -nE '(^|[^a-z_A-Z0-9#"])([A-Z][a-z]+[A-Z][A-Za-z]*|_w?(open|close|read|write|beginthreadex)[a-z0-9_]*)\(' \
    $(ls src/*.h | grep -v -e platform.h -e api.h))
check "only >>platform calls Windows: $found" [ -z "$found" ]
found=$(grep -lE 'include <(windows|unistd|sys/)' src/*.h | grep -v -e src/system.h)
check "only system.h includes the system's headers: $found" [ -z "$found" ]
found=$(grep -nE '#include <(windows|io|unistd|fcntl|poll|glob|fnmatch|sys/[a-z]*)\.h>' tools/command/*.[ch] |
    grep -v -e system.c -e sys/types.h)
check "of the command only system.c includes the system's headers: $found" [ -z "$found" ]

echo '#include "src/tokenskip.h"' > "$work/alone.c"
"$compiler" -U__linux__ -I. -DTOKENSKIP_IMPLEMENTATION -DTOKENSKIP_NO_CUDA -fsyntax-only "$work/alone.c" \
    > "$out" 2> "$err"
check "another system is refused, with the names of those that are known" grep -q 'Linux, macOS and Windows' "$err"

# The longest lines: 120 characters in what is written by hand. (UTF-8 has one byte of a character outside \200-\277.)
long=$(find Makefile CMakeLists.txt packaging src tests tools examples python -name node_modules -prune -o \
    -path tests/golden -prune -o -type f \( -name Makefile -o -name CMakeLists.txt -o -name '*.in' -o -name '*.sed' \
    -o -name '*.[ch]' -o -name '*.cc' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.bash' \
    -o -name '*.sh' -o -name '*.py' -o -name '*.mjs' -o -name '*.awk' -o -name '*.html' \) -print | sort |
    while read -r file; do
        tr -d '\200-\277' < "$file" | awk -v file="$file" 'length($0) > 120 { print file ":" NR }'
    done)
check "no line is over 120 characters: $(echo $long)" [ -z "$long" ]

# The maker itself, on sections of one line.
mkdir "$work/src"
printf '#include "low.h"\n#include "high.h"\n#include <stdio.h>\n' > "$work/src/root.h"
guard=SECTION_GUARD_LOW
printf "#ifndef $guard\n#define $guard\nint low;\n#endif /* $guard */\n" > "$work/src/low.h"
printf '#include "low.h"\n\n\n\nint high; /* "\\ ?? */\n#include "elsewhere.h"\n' > "$work/src/high.h"
"$make" join "$work/src/root.h" "$work/joined.h" > "$out" 2> "$err"
printf 'int low;\n\nint high; /* "\\ ?? */\n#include "elsewhere.h"\n#include <stdio.h>\n' > "$work/expected.h"
check "each file once, without its guard; other includes stay" cmp -s "$work/joined.h" "$work/expected.h"
"$make" quote "$work/src/root.h" "$work/quoted.h" > "$out" 2> "$err"
cat > "$work/print.c" << 'END'
#include <stdio.h>
#include "quoted.h"
int main(void) {
    unsigned i;
    for (i = 0; i < sizeof tsk__kernels_source / sizeof *tsk__kernels_source; i++)
        fputs(tsk__kernels_source[i], stdout);
    return 0;
}
END
"$compiler" "$work/print.c" -o "$work/print" 2> "$err" && "$work/print" > "$out"
check "quoted lines compile to the joined text" cmp -s "$out" "$work/expected.h"
printf '#include "high.h"\n' >> "$work/src/low.h"
"$make" join "$work/src/root.h" "$work/joined.h" > "$out" 2> "$err"
rc=$?
check "a section may not include one below it" [ "$rc" -eq 1 ]
check "... and the error says which" grep -q 'low.h:5: .*high.h' "$err"
check "... and the file is as it was" cmp -s "$work/joined.h" "$work/expected.h"
"$make" join "$work/none.h" "$work/joined.h" > "$out" 2> "$err"
rc=$?
check "a missing root is an error" [ "$rc" -eq 1 ]

echo "test_headers: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
