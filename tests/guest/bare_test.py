#!/usr/bin/env python3
"""The bare guest's workload on a raw image and on a qcow2 clone, and its result on the host."""

import os
import re
import struct
import subprocess

from guestlib import Bench, digest, fail

MULTIPLIER = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
ZERO, DISCARDED, LAST_WORDS = 0, 0xFFFFFFFF, 0x1A57
POWER_OFF = "GUEST PASS\npower-off by ACPI: port 1540 value 8192\n"


def pattern(sector, generation):
    seed = sector << 32 | generation
    return struct.pack("<64Q", seed, *((seed + i) * MULTIPLIER & MASK for i in range(1, 64)))


def compare_with_table(raw, console):
    """Every sector of the stripes holds what the guest's table says."""
    found = re.search(r"table: queues (\d+) stripe (\d+) sector (\d+)", console)
    if not found:
        fail("the guest wrote no table")
    queues, stripe, first = map(int, found.groups())
    with open(raw, "rb") as file:
        file.seek(first * 512)
        table = struct.unpack(f"<{queues * stripe}I", file.read(queues * stripe * 4))
        for sector, expected in enumerate(table):
            file.seek(sector * 512)
            data = file.read(512)
            generation = expected
            if expected == DISCARDED:
                generation = struct.unpack("<I", data[:4])[0]
            if data != (bytes(512) if generation == ZERO else pattern(sector, generation)):
                fail(f"sector {sector} does not hold what the guest wrote (generation {expected})")
        file.seek(-512, os.SEEK_END)
        last = file.tell() // 512
        if file.read() != pattern(last, LAST_WORDS):
            fail("what was written after the last flush did not survive the power-off")
    written = sum(1 for expected in table if expected not in (ZERO, DISCARDED))
    print(f"-- {written} of {len(table)} sectors hold the guest's last writes", flush=True)


def run(bench, disk, cpus, queues, operations, seed, *more):
    console, _ = bench.run_guest(
        *more,
        "--kernel", bench.options.guest, "--memory", "32M", "--cpus", str(cpus),
        "--disk", f"{disk},queues={queues},bus=virtio-{bench.options.bus}",
        "--append", f"cpus={cpus} queues={queues} operations={operations} seed={seed}")
    if not console.endswith(POWER_OFF):
        fail("the guest did not pass, or did not find the switch")
    return console


def refused_with_stalled_errors(bench, image):
    bench.img("create", "-q", "-f", "raw", image, "32M")
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for piece in (bytes(4096), b"x"):
        try:
            while True:
                os.write(writer, piece)
        except BlockingIOError:
            pass
    os.set_blocking(writer, True)
    command = [bench.platter, "run", "--kernel", bench.options.guest, "--memory", "32M", "--disk",
               f"{image},bus=virtio-{bench.options.bus}", "--append", "refusals=2 queues=1"]
    print("+ " + " ".join(command) + " 2>(a full pipe)", flush=True)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=writer, timeout=100, check=False)
    except subprocess.TimeoutExpired:
        fail("the guest waits for who does not read the messages")
    if done.returncode != 0 or not done.stdout.decode().endswith(POWER_OFF):
        fail(f"with stalled messages: exit code {done.returncode}, {done.stdout}")
    os.close(reader)
    os.close(writer)


def main():
    with Bench("--guest", "--bus") as bench:
        raw = bench.path("disk.raw")
        bench.img("create", "-q", "-f", "raw", raw, "32M")
        console = run(bench, raw + ",format=raw", 2, 4, 500, 1)
        compare_with_table(raw, console)

        # A clone of an image with something in it: the guest sees that only where it does not look.
        base, clone = bench.path("base.qcow2"), bench.path("clone.qcow2")
        bench.img("create", "-q", "-f", "qcow2", base, "32M")
        bench.call("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 30M 1M", base)
        before = digest(base)
        for cache, cpus, queues, options in (
                ("writeback", 2, 4, "cluster_size=64k"),
                ("none", 1, 2, "cluster_size=4k,refcount_bits=1"),
                ("writethrough", 2, 2, "compat=0.10")):
            bench.img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", "-o", options, clone)
            console = run(bench, f"{clone},format=qcow2,cache={cache}", cpus, queues, 300, 7)
            bench.check_image(clone)
            copy = bench.raw_copies(clone)
            compare_with_table(copy, console)
            bench.call("qemu-io", "-r", "-f", "raw", "-c", "read -P 0x5a 30M 1M", copy)
        if digest(base) != before:
            fail("the base image changed")

        # An encrypted disk, and a throw-away overlay on it.
        encrypted, copy = bench.path("encrypted.qcow2"), bench.path("decrypted.raw")
        secret = ("--object", "secret,id=key,data=passphrase")
        bench.img("create", "-q", *secret, "-f", "qcow2", "-o",
                  "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=50", encrypted, "32M")
        disk = f"{encrypted},format=qcow2,encrypt.key-secret=key"
        before = digest(encrypted)
        run(bench, disk + ",snapshot=on", 2, 2, 100, 3, *secret)
        if digest(encrypted) != before:
            fail("snapshot=on changed the encrypted image")
        console = run(bench, disk, 2, 4, 300, 5, *secret)
        name = f"driver=qcow2,encrypt.key-secret=key,file.filename={encrypted}"
        bench.call("qemu-img", "check", "-q", *secret, "--image-opts", name)
        bench.call("qemu-img", "convert", *secret, "--image-opts", "-O", "raw", name, copy)
        compare_with_table(copy, console)
        _, errors = bench.run_guest("--kernel", bench.options.guest, "--disk",
                                    f"{encrypted},format=qcow2", expect=1)
        if "encrypt.key-secret" not in errors:
            fail("a disk without its key is refused without naming it")

        # Caches whose promises only a power cut could tell apart, and fewer threads than queues.
        for cache, threads in (("directsync", 2), ("unsafe", 1)):
            bench.img("create", "-q", "-f", "qcow2", clone, "32M")
            console = run(bench, f"{clone},format=qcow2,cache={cache}", 2, 4, 60, 11,
                          "--io-threads", str(threads))
            bench.check_image(clone)
            compare_with_table(bench.raw_copies(clone), console)

        # What may not be written is refused in the guest, and is as it was afterwards.
        image = bench.path("image")
        for options, mode in (("format=qcow2,readonly=on", 1), ("format=raw,readonly=on", 1),
                              ("cache=none", 2)):
            image_format = "qcow2" if "qcow2" in options else "raw"
            bench.img("create", "-q", "-f", image_format, image, "32M")
            before = digest(image)
            console, _ = bench.run_guest(
                "--kernel", bench.options.guest, "--memory", "32M", "--disk",
                f"{image},{options},bus=virtio-{bench.options.bus}",
                "--append", f"refusals={mode} queues=1")
            if not console.endswith(POWER_OFF):
                fail("the guest was not refused as it should be")
            if mode == 1 and digest(image) != before:
                fail("a read-only image changed")
            if mode == 2:
                with open(image, "rb") as file:
                    if file.read(1024) != bytes(512) + pattern(1, 1):
                        fail("the start of a guessed raw image is not as the guard leaves it")

        # A refused request is told; a reader that does not read holds up neither guest nor end.
        refused_with_stalled_errors(bench, image)

        # Node options instead of a name.
        bench.img("create", "-q", "-f", "raw", image, "32M")
        console = run(bench, f"driver=raw,,file.driver=file,,file.filename={image}", 1, 1, 30, 2)
        compare_with_table(image, console)
        bench.img("create", "-q", "-f", "raw", image, "32M")
        before = digest(image)
        run(bench, f"driver=raw,,file.filename={image},snapshot=on", 1, 1, 30, 3)
        if digest(image) != before:
            fail("snapshot=on changed the image of node options")

        # snapshot=on leaves the file as it was.
        empty = bench.path("empty.raw")
        bench.img("create", "-q", "-f", "raw", empty, "32M")
        before = digest(empty)
        run(bench, empty + ",format=raw,snapshot=on", 2, 2, 100, 3)
        if digest(empty) != before:
            fail("snapshot=on changed the image")


main()
