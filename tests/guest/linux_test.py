#!/usr/bin/env python3
"""Linux with its root file system on a qcow2 clone: mounts, reads, writes, syncs, restarts."""

import os
import shutil
import subprocess
import sys

from guestlib import Bench, digest, fail

ARGUMENTS = ("console=ttyS0 quiet root=/dev/vda rw init=/sbin/init panic=-1 reboot=k")
# What the kernel for slow nested KVM needs on top (see the kernel's own notes).
SLOW_ARGUMENTS = (" lpj=1000000 tsc=reliable no_timer_check noxsave clearcpuid=popcnt,smap,smep "
                  "mitigations=off rodata=off")


def find_kernel(bench):
    """PLATTER_GUEST_KERNEL, or the kernel kept beside the source tree; unpacked when it is .xz."""
    here = os.path.dirname(os.path.abspath(__file__))
    candidates = [os.environ.get("PLATTER_GUEST_KERNEL", "")]
    candidates += [os.path.join(here, *[".."] * up, "shared", "guests", "vmlinux.xz")
                   for up in (3, 4)]
    for kernel in candidates:
        if kernel and os.path.exists(kernel):
            if not kernel.endswith(".xz"):
                return kernel
            unpacked = bench.path("vmlinux")
            with open(unpacked, "wb") as out:
                subprocess.run(["xz", "-dc", kernel], stdout=out, check=True)
            return unpacked
    print("SKIPPED: no guest kernel (name one with PLATTER_GUEST_KERNEL)")
    sys.exit(77)


def make_root(bench):
    """An ext4 image with our init and two files."""
    tree = bench.path("tree")
    for directory in ("sbin", "dev", "proc"):
        os.makedirs(os.path.join(tree, directory))
    shutil.copy(bench.options.init, os.path.join(tree, "sbin", "init"))
    with open(os.path.join(tree, "from-host"), "wb") as file:
        file.write(bytes(i * 7 & 0xFF for i in range(300_000)))
    with open(os.path.join(tree, "to-delete"), "wb") as file:
        file.write(b"gone soon\n" * 1000)
    image = bench.path("root.raw")
    with open(image, "wb") as file:
        file.truncate(32 << 20)
    bench.call("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, image)
    return image, os.path.join(tree, "from-host")


def main():
    with Bench("--init", "--bus") as bench:
        kernel = find_kernel(bench)
        root, from_host = make_root(bench)
        base, clone = bench.path("base.qcow2"), bench.path("clone.qcow2")
        bench.img("convert", "-f", "raw", "-O", "qcow2", root, base)
        bench.img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", clone)
        before = digest(base)
        slow = bench.probe()["kind"] != "hardware"
        console, _ = bench.run_guest(
            "--kernel", kernel, "--memory", "64M",
            "--disk", f"{clone},format=qcow2,bus=virtio-{bench.options.bus}",
            "--append", ARGUMENTS + (SLOW_ARGUMENTS if slow else ""), timeout=1100)
        if "LINUX PASS" not in console:
            fail("the guest's init did not pass")
        if digest(base) != before:
            fail("the base image changed")
        bench.check_image(clone)
        raw = bench.raw_copies(clone)
        bench.call("e2fsck", "-fn", raw)
        copied = bench.path("copied")
        bench.call("debugfs", "-R", f"dump /from-guest {copied}", raw)
        if digest(copied) != digest(from_host):
            fail("the file that the guest copied is not the one it was given")
        listing = bench.call("debugfs", "-R", "ls -p /", raw)
        if "/to-delete/" in listing or "/work/" not in listing:
            fail("the root directory is not as the guest left it:\n" + listing)


main()
