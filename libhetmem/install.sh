#!/bin/sh
# Installs the C interface, for cc and pkg-config to find: sh libhetmem/install.sh PREFIX [LIBRARY]
#
#   PREFIX/include/hetmem.h, and hetmem_mirror.h, which it includes
#   PREFIX/lib/libhetmem.so.0, and libhetmem.so for the linker
#   PREFIX/lib/pkgconfig/hetmem.pc
#
# LIBRARY is what `cargo build --release` made, target/release/libhetmem.so, unless another is named. With DESTDIR in the environment, the files
# go below it and name each other as if it were not there.
set -eu

source=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: sh libhetmem/install.sh PREFIX [LIBRARY]" >&2
    exit 2
fi
prefix=$1
library=${2:-$source/target/release/libhetmem.so}
case $prefix in
    *[!A-Za-z0-9_./+-]*) echo "the prefix $prefix has characters that a pkg-config file can't take unquoted" >&2; exit 2 ;;
    /*) ;;
    *) echo "the prefix $prefix is not an absolute path" >&2; exit 2 ;;
esac
if [ ! -f "$library" ]; then
    echo "there is no $library; run cargo build --release first" >&2
    exit 1
fi

root=${DESTDIR:-}$prefix
header=$source/include/hetmem.h
part() { sed -n "s/^#define HETMEM_VERSION_$1 //p" "$header"; }
version=$(part MAJOR).$(part MINOR).$(part PATCH)

mkdir -p "$root/include" "$root/lib/pkgconfig"
cp "$header" "$source/include/hetmem_mirror.h" "$root/include/"
# A new file, as programs may have the old one mapped.
cp "$library" "$root/lib/libhetmem.so.0.new"
mv "$root/lib/libhetmem.so.0.new" "$root/lib/libhetmem.so.0"
ln -sf libhetmem.so.0 "$root/lib/libhetmem.so"
sed -e "s|@PREFIX@|$prefix|" -e "s|@VERSION@|$version|" "$source/libhetmem/hetmem.pc.in" >"$root/lib/pkgconfig/hetmem.pc"
