# What `make test-arm` needs from Debian, installed where it is missing (as root): a compiler for aarch64 with its C
# library, and qemu's emulation of programs.
needed=
command -v aarch64-linux-gnu-gcc > /dev/null || needed="gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
command -v qemu-aarch64 > /dev/null || needed="$needed qemu-user"
[ -z "$needed" ] || { apt-get update -qq && apt-get install -y -qq --no-install-recommends $needed; }
