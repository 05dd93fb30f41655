#!/bin/bash
# Makes an initrd that lets Debian's stock kernel mount its root from a virtio disk.
#   make_initrd.sh MODULES-DIR OUT      MODULES-DIR: .../lib/modules/VERSION
set -euo pipefail
modules=$1 out=$(realpath "$2") here=$(cd "$(dirname "$0")" && pwd)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree"/{dev,root,modules}
cc -O2 -Wall -Wextra -static -o "$tree/init" "$here/initrd.c"
# In the order of their dependencies; what the kernel has built in has no file.
number=10
for name in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_mmio virtio_blk; do
  file=$(find "$modules/kernel" -name "$name.ko" -print -quit)
  if [ -n "$file" ]; then
    cp "$file" "$tree/modules/$number-$name.ko"
    number=$((number + 1))
  fi
done
(cd "$tree" && find . | LC_ALL=C sort | cpio --quiet -o -H newc) | gzip -1 >"$out"
