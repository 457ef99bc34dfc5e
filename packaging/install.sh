#!/bin/sh
# Installs all of hetmem below a folder: sh packaging/install.sh PREFIX [FOLDER]
#
#   PREFIX/bin/hetmem
#   PREFIX/lib, PREFIX/include      what libhetmem/install.sh says, and libhetmem_dmirror.so
#   PREFIX/share                    manual pages; completions for bash, zsh and fish
#
# FOLDER is where `cargo build --release` made them, target/release unless another is named. With DESTDIR in the environment, the files go below it
# and name each other as if it were not there.
set -eu

source=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: sh packaging/install.sh PREFIX [FOLDER]" >&2
    exit 2
fi
prefix=$1
built=${2:-$source/target/release}
for file in hetmem libhetmem.so libhetmem_dmirror.so; do
    if [ ! -f "$built/$file" ]; then
        echo "there is no $built/$file; run cargo build --release first" >&2
        exit 1
    fi
done

# Checks the prefix, too.
sh "$source/libhetmem/install.sh" "$prefix" "$built/libhetmem.so"
root=${DESTDIR:-}$prefix
mkdir -p "$root/bin"
# New files, as processes may have the old ones mapped.
put() {
    cp "$built/$1" "$root/$2/$1.new"
    mv "$root/$2/$1.new" "$root/$2/$1"
}
put hetmem bin
put libhetmem_dmirror.so lib
"$built/hetmem" pages "$root/share"
