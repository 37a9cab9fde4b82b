# What `make test-arm` needs from Debian, installed where it is missing (as root): a compiler for aarch64 with its C
# library, and qemu's emulation of programs. Debian has no gcc for aarch64 beside gcc-multilib, which the compile matrix
# uses: where that is installed it stays, and clang takes gcc's place.
links() { echo 'int main(void) { return 0; }' | "$@" -x c - -o /dev/null 2> /dev/null; }
needed=
if ! links aarch64-linux-gnu-gcc && ! links clang --target=aarch64-linux-gnu; then
    if dpkg -s gcc-multilib > /dev/null 2>&1; then
        needed="clang binutils-aarch64-linux-gnu libgcc-$(gcc -dumpversion)-dev-arm64-cross libc6-dev-arm64-cross"
    else
        needed="gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
    fi
fi
command -v qemu-aarch64 > /dev/null || needed="$needed qemu-user"
[ -z "$needed" ] || { apt-get update -qq && apt-get install -y -qq --no-install-recommends --no-remove $needed; }
