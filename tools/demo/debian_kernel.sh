#!/bin/bash
# Fetches Debian's own kernel (package linux-image-cloud-amd64) and makes the initrd that it needs to
# mount its root from a virtio disk.
#   debian_kernel.sh DIR        leaves DIR/vmlinuz and DIR/initrd.gz
# What DIR has already of the same version is kept.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

depends() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image-/ {print $2; exit}'; }
package=$(depends)
if [ -z "$package" ]; then  # the package lists were never fetched
  as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo -n)
  "${as_root[@]}" apt-get update -q >log 2>&1 || { tail -n 3 log >&2; die "could not fetch Debian's package lists"; }
  package=$(depends)
  [ -n "$package" ] || die "there is no package linux-image-cloud-amd64"
fi

if [ "$(cat package 2>/dev/null)" != "$package" ]; then
  rm -rf unpacked ./*.deb
  apt-get download -q "$package" >log 2>&1 || { tail -n 3 log >&2; die "could not fetch the package $package"; }
  dpkg -x ./*.deb unpacked
  rm ./*.deb
  cp unpacked/boot/vmlinuz-* vmlinuz
  echo "$package" >package
fi
"$here/make_initrd.sh" unpacked/lib/modules/* initrd.gz
