#!/usr/bin/env python3
"""Linux with its root file system on a qcow2 clone: mounts, reads, writes, syncs, switches off."""

import os
import shutil
import subprocess
import sys

from guestlib import SKIP, Bench, digest, fail

ARGUMENTS = "console=ttyS0 quiet root=/dev/vda rw init=/sbin/init panic=-1 reboot=k"
# What the kernel for slow nested KVM needs on top (see the kernel's own notes).
SLOW_ARGUMENTS = (" lpj=1000000 tsc=reliable no_timer_check noxsave clearcpuid=popcnt,smap,smep "
                  "mitigations=off rodata=off")


def named_kernel(bench):
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
    return None


def choose_guest(bench, hardware):
    """The arguments that boot a kernel of this machine's kind, and whether it is Debian's own."""
    named = os.environ.get("PLATTER_GUEST_KERNEL", "")
    if named == "debian" or (hardware and not named):
        directory = bench.options.kernel_directory
        fetched = subprocess.run([bench.options.debian_kernel, directory], check=False,
                                 stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if fetched.returncode:
            print("SKIPPED: no guest kernel: " + fetched.stderr.strip())
            sys.exit(SKIP)
        return ["--kernel", os.path.join(directory, "vmlinuz"), "--cpus", "2", "--memory", "256M",
                "--initrd", os.path.join(directory, "initrd.gz")], True
    kernel = named_kernel(bench)
    if not kernel:
        print("SKIPPED: no guest kernel for a KVM that emulates ring 0 "
              "(name one with PLATTER_GUEST_KERNEL)")
        sys.exit(SKIP)
    return ["--kernel", kernel, "--memory", "64M"], False


def make_root(bench):
    """An ext4 image with our init and two files."""
    tree = bench.path("tree")
    for directory in ("sbin", "dev", "proc", "sys"):
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
    with Bench("--init", "--bus", "--debian-kernel", "--kernel-directory") as bench:
        hardware = bench.probe()["kind"] == "hardware"
        guest, debian = choose_guest(bench, hardware)
        root, from_host = make_root(bench)
        base, clone = bench.path("base.qcow2"), bench.path("clone.qcow2")
        bench.img("convert", "-f", "raw", "-O", "qcow2", root, base)
        bench.img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", clone)
        before = digest(base)
        console, _ = bench.run_guest(
            *guest, "--disk", f"{clone},format=qcow2,bus=virtio-{bench.options.bus}",
            "--append", ARGUMENTS + ("" if hardware else SLOW_ARGUMENTS), timeout=1100)
        if "LINUX PASS" not in console:
            fail("the guest's init did not pass")
        # The init says what it asks the kernel for next, and the machine has ended without failure.
        # A kernel without ACPI cannot switch off; Debian's finds both processors and the switch.
        if debian and "processors: 2, end: power-off" not in console:
            fail("the guest did not find its processors and the power switch")
        print("-- the guest ended the machine by "
              + ("power-off" if "end: power-off" in console else "a restart: its kernel has no ACPI"))
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
