#!/bin/sh
# Makes a Debian package of what `cargo build --release` made: sh packaging/debian.sh [FOLDER]
#
# It goes into FOLDER, target unless another is named, and its name is printed. It has the command, the libraries, the headers, the file for pkg-config,
# manual pages, and completions. DEBFULLNAME and DEBEMAIL in the environment say who maintains it.
set -eu

source=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
built=$source/target/release
folder=${1:-$source/target}
mkdir -p "$folder"
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
# What is made is everybody's to read.
umask 022
chmod 755 "$root"

DESTDIR=$root sh "$source/packaging/install.sh" /usr
# Where Debian's zsh looks.
mv "$root/usr/share/zsh/site-functions" "$root/usr/share/zsh/vendor-completions"
version=$("$built/hetmem" --version)
version=${version#hetmem }
architecture=$(dpkg --print-architecture)
binaries="$root/usr/bin/hetmem $root/usr/lib/libhetmem.so.0 $root/usr/lib/libhetmem_dmirror.so"
# Names of functions stay: they tell where a panic came from.
# shellcheck disable=SC2086
strip --strip-debug $binaries
chmod 755 "$root/usr/bin/hetmem"
chmod 644 "$root"/usr/lib/*.so*
find "$root/usr/share/man" -type f -exec gzip -9n {} +

doc=$root/usr/share/doc/hetmem
mkdir -p "$doc"
gzip -9nc "$source/CHANGELOG.md" >"$doc/changelog.gz"
# What is linked in is under licences that ask for their text to come along.
(cd "$source" && cargo metadata --format-version 1 --locked --quiet --filter-platform "$(rustc -vV | sed -n 's/^host: //p')") |
    python3 "$source/.ci/crates.py" notices | gzip -9nc >"$doc/notices.gz"
{
    printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n'
    printf 'Comment: notices.gz has the licences of what is linked in.\n\n'
    printf 'Files: *\nCopyright: the hetmem authors\nLicense: MIT or Apache-2.0\n\n'
    printf 'License: MIT\n'
    sed -e 's/^$/./' -e 's/^/ /' "$source/LICENSE-MIT"
    printf '\nLicense: Apache-2.0\n The text is in /usr/share/common-licenses/Apache-2.0.\n'
} >"$doc/copyright"

# The newest version of the C library that a symbol is taken from.
# shellcheck disable=SC2086
glibc=$(objdump -T $binaries | sed -n 's/.*(\{0,1\}GLIBC_\([0-9.]*\).*/\1/p' | sort -Vu | tail -n 1)
mkdir "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<CONTROL
Package: hetmem
Version: $version
Architecture: $architecture
Maintainer: ${DEBFULLNAME:-the hetmem authors} <${DEBEMAIL:-hetmem@example.invalid}>
Installed-Size: $(du -ks "$root/usr" | cut -f 1)
Depends: libc6 (>= $glibc), libgcc-s1
Section: utils
Priority: optional
Description: heterogeneous memory management in user space
 Runs programs, unmodified ones too, with their anonymous memory managed: pages
 move between system memory and the memory of devices while the program runs.
 With the library for programs that manage memory of their own.
CONTROL
# Who installs it need not set a path for the loader.
printf 'activate-noawait ldconfig\n' >"$root/DEBIAN/triggers"
(cd "$root" && find usr -type f -exec md5sum {} +) >"$root/DEBIAN/md5sums"

package=$folder/hetmem_${version}_$architecture.deb
dpkg-deb --root-owner-group -Zxz --build "$root" "$package" >/dev/null
echo "$package"
