#!/bin/bash
# Platter's main job, from nothing: installs the Debian packages that are missing, builds, creates a
# disk, puts a bootable guest on it, snapshots it, makes a clone, boots the guest from the clone
# under KVM with virtio-blk, and shows what became of the disks.
#
#   tools/demo.sh            all of that, in a scratch folder that is removed in the end
#   KEEP=1 tools/demo.sh     keeps the scratch folder
# PLATTER_GUEST_KERNEL: a Linux kernel for machines whose /dev/kvm emulates ring 0 (see below).
# PLATTER_BUILD: a folder with a finished build, to use instead of making one.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin  # mke2fs: Debian has them in the superuser's PATH only
# (The name is meant from where the caller stands.)
if [ -n "${PLATTER_BUILD:-}" ]; then PLATTER_BUILD=$(realpath -m -- "$PLATTER_BUILD"); fi
if [ -n "${PLATTER_GUEST_KERNEL:-}" ]; then PLATTER_GUEST_KERNEL=$(realpath -m -- "$PLATTER_GUEST_KERNEL"); fi
cd "$(dirname "$0")/.."
source_dir=$PWD
. tools/progress.sh
demo=$source_dir/tools/demo

bold='' dim='' plain=''
if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; fi
step() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
say() { printf '   %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
run() { printf '%s$ %s%s\n' "$dim" "${*//"$platter"/platter}" "$plain"; "$@"; }

step "Installing what is missing"
tools/setup.sh build

step "Building"
build=${PLATTER_BUILD:-$source_dir/build/release}
platter=$build/platter
if [ -n "${PLATTER_BUILD:-}" ]; then
  [ -x "$platter" ] || die "PLATTER_BUILD: there is no finished build in '$build'"
  say "using the build in $build"
else
  cmake --preset release >/dev/null || die "could not configure the build (run 'cmake --preset release' to see why)"
  cmake --build --preset release --target platter guest_boot_sector 2>&1 | progress_of_build platter || die "the build failed"
  say "built in $build"
fi

scratch=$(mktemp -d "${TMPDIR:-/tmp}/platter-demo.XXXXXX")
if [ -n "${KEEP:-}" ]; then say "working in $scratch"; else trap 'rm -rf "$scratch"' EXIT; fi
cd "$scratch"

step "Looking at this machine"
kind=$("$platter" run --probe 2>&1) || die "this machine cannot run guests: $kind"
say "$kind"
case $kind in
  hardware:*) speed=fast ;;
  *) speed=slow ;;
esac

if [ "$speed" = fast ]; then
  "$demo/debian_kernel.sh" "$scratch/kernel" || die "there is no guest kernel"
  guest=linux
  say "guest: Debian's own kernel, because KVM runs ring 0 on this machine's processor"
  boot=(--kernel kernel/vmlinuz --initrd kernel/initrd.gz --append 'console=ttyS0 quiet panic=-1')
elif [ -n "${PLATTER_GUEST_KERNEL:-}" ]; then
  [ -r "$PLATTER_GUEST_KERNEL" ] || die "PLATTER_GUEST_KERNEL: cannot read '$PLATTER_GUEST_KERNEL'"
  guest=linux
  kernel=$PLATTER_GUEST_KERNEL
  case $kernel in *.xz) xz -dc "$kernel" >vmlinux; kernel=$scratch/vmlinux ;; esac
  say "guest: the patched Linux kernel that PLATTER_GUEST_KERNEL names, because KVM emulates ring 0"
  say "here and stock kernels do not survive that; the boot takes about half a minute"
  boot=(--kernel "$kernel" --append 'console=ttyS0 quiet root=/dev/vda rw init=/sbin/init panic=-1 reboot=k lpj=1000000 tsc=reliable no_timer_check noxsave clearcpuid=popcnt,smap,smep mitigations=off rodata=off')
else
  guest=firmware
  say "guest: a boot program under SeaBIOS, because KVM emulates ring 0 here, which stock Linux kernels"
  say "do not survive, and PLATTER_GUEST_KERNEL names no kernel that does; it takes about 15 seconds"
  boot=()
fi

step "Creating a disk and putting a guest on it"
if [ "$guest" = linux ]; then
  mkdir -p root/{sbin,dev,proc,sys,root}
  cc -O2 -Wall -static -o root/sbin/init "$demo/init.c"
  echo "hello from the base image" >root/greeting
  mke2fs -q -t ext4 -d root filesystem.raw 48M
else
  cp "$build/tests/guest/guest_boot_sector" filesystem.raw
  truncate -s 8M filesystem.raw
fi
run "$platter" img create -f qcow2 base.qcow2 "$(stat -c %s filesystem.raw)"
run "$platter" img convert -n -f raw -O qcow2 filesystem.raw base.qcow2

step "Taking a snapshot of it"
run "$platter" img snapshot -c installed base.qcow2
run "$platter" img snapshot -l base.qcow2

step "Making a clone: an overlay that shares the base's data"
run "$platter" img create -f qcow2 -b base.qcow2 -F qcow2 clone.qcow2
before=$(sha256sum <base.qcow2 | cut -c1-64)

step "Booting the guest from the clone (virtio-blk under KVM)"
bus=virtio-pci
[ "$guest" != linux ] || [ "$speed" = fast ] || bus=virtio-mmio
run "$platter" run --memory 256M "${boot[@]}" --disk "clone.qcow2,format=qcow2,bus=$bus" </dev/null | tee console.log
case $guest in
  linux) grep -q 'guest: done' console.log || die "the guest did not report success" ;;
  firmware) grep -q 'BIOS PASS' console.log || die "the boot program did not report success" ;;
esac

step "What the guest wrote is in the clone"
run "$platter" img map clone.qcow2
run "$platter" img check clone.qcow2
run "$platter" img info clone.qcow2

step "The base is unchanged"
[ "$(sha256sum <base.qcow2 | cut -c1-64)" = "$before" ] || die "the base has changed"
say "its checksum is the same as before: $before"

step "A snapshot brings the old state back"
run "$platter" img snapshot -c after-boot clone.qcow2
run "$platter" img commit -d clone.qcow2
say "the clone's writes are in the base now, so it must differ from what was installed:"
if run "$platter" img compare base.qcow2 filesystem.raw; then die "the commit did not reach the base"; fi
say "it does; now back to the snapshot, after which they must be the same:"
run "$platter" img snapshot -a installed base.qcow2
run "$platter" img compare base.qcow2 filesystem.raw
run "$platter" img check base.qcow2

step "Done"
say "a guest has booted from a clone and written to it, the base stayed as it was, and after a commit its"
say "snapshot brought the old state back"
