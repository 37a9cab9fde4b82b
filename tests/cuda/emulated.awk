# Makes C++ of the first part of the kernels' joined text, which has the linear maps, attention, the two decisions and
# the head: functions that hold PTX are left out (emulated.h has its own of the same names), and shared memory is asked
# for.
# Functions begin in column 1 and end where their braces do.
function braces(line, opened) { opened = gsub(/{/, "{", line); return opened - gsub(/}/, "}", line) }
/^\/\/ ---- The beginning and the end of a pass/ { exit }
/^template <int N> .* multiply_wide\(.*;$/ { next }
/^MULTIPLY_WIDE\(/ { while ($0 !~ /\)$/) getline; next }
/^\/\/ ---- Small helpers/ { print "#include \"emulated.h\"" }
!inside && /^(template <[^>]*> )?(static )?__device__ [^;]*({|$)/ { inside = 1; depth = 0; text = ""; has_body = 0 }
inside {
    text = text $0 "\n"
    depth += braces($0)
    if ($0 ~ /{/) has_body = 1
    if (has_body ? depth > 0 : $0 !~ /;$/) next
    inside = 0
    if (text ~ /asm( volatile)?\(/) next
    $0 = substr(text, 1, length(text) - 1)
}
{
    while (match($0, /extern __shared__ (__align__\([0-9]+\) )?char [a-z_]+\[\];/)) {
        declaration = substr($0, RSTART, RLENGTH)
        name = declaration
        sub(/\[\];$/, "", name)
        sub(/.* /, "", name)
        $0 = substr($0, 1, RSTART - 1) "char *" name " = emulated_shared();" substr($0, RSTART + RLENGTH)
    }
    if (match($0, /__shared__ head_entry parts\[[A-Za-z0-9_]+\];/))
        $0 = "    head_entry *parts = (head_entry *)emulated_shared();"
    gsub(/__shared__ int flag;/, "int \\&flag = *emulated_shared_int();")
    print
}
