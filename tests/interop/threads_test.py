#!/usr/bin/env python3
"""Whole commands whose work is spread over threads: packing and unpacking, encryption, checksums of
passwords, blocking calls. Mostly for a `platter` that the thread sanitizer watches: any report fails.

    threads_test.py BUILD/platter
"""
import os
import random
import subprocess
import sys
import tempfile

PLATTER = os.path.abspath(sys.argv[1])
REPORTED = 99  # exit code of a program about which a sanitizer had something to say
SIZE = 6 << 20
SECRET = ["--object", "secret,id=s0,data=abc"]
LUKS = "encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=10"
commands = 0


def platter(*words, status=0):
    global commands
    commands += 1
    done = subprocess.run([PLATTER, *words], capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL)
    if done.returncode != status or "Sanitizer" in done.stderr or "runtime error: " in done.stderr:
        sys.exit(f"error: {' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def img(*words, **how):
    return platter("img", *words, **how)


def io(image, *requests, options=()):
    return platter("io", *options, *[word for request in requests for word in ("-c", request)], image)


def content(seed):
    """A disk of text, noise, and nothing."""
    source = random.Random(seed)
    parts = []
    for _ in range(SIZE >> 18):
        kind = source.randrange(3)
        noise = source.randbytes(1 << 18 if kind == 0 else 512)
        parts.append(noise if kind == 0 else noise * 512 if kind == 1 else bytes(1 << 18))
    return b"".join(parts)


def write(name, data):
    with open(name, "wb") as file:
        file.write(data)


def packed():
    write("disk", content(1))
    for method in ("zlib", "zstd"):
        for how in ([], ["-W"], ["-m", "16"], ["-m", "1"]):
            options = f"compression_type={method},cluster_size=16k"
            img("convert", "-c", *how, "-f", "raw", "-O", "qcow2", "-o", options, "disk", "packed")
            img("compare", "-f", "raw", "-F", "qcow2", "disk", "packed")
        img("check", "packed")
        # Unpacking, many at once; then writes beside what is packed.
        img("convert", "-m", "16", "-W", "-O", "raw", "packed", "out")
        img("compare", "-f", "raw", "-F", "raw", "disk", "out")
        requests = [f"aio_{verb} {at}k 48k" for at in range(0, 6000, 400) for verb in ("write -P 7", "read")]
        io("packed", *requests, "aio_flush", "write -c -P 3 4M 16k", options=["-f", "qcow2"])
        img("check", "packed")


def encrypted():
    write("disk", content(2))
    name = "driver=qcow2,encrypt.key-secret=s0,file.filename=secret"
    img("create", *SECRET, "-f", "qcow2", "-o", LUKS, "secret", str(SIZE))
    img("convert", *SECRET, "-n", "-m", "16", "-W", "--target-image-opts", "-f", "raw", "disk", name)
    img("convert", *SECRET, "--image-opts", "-m", "16", "-O", "raw", name, "out")
    img("compare", "-f", "raw", "-F", "raw", "disk", "out")
    img("amend", *SECRET, "--object", "secret,id=s1,data=def", "--image-opts", "-o",
        "encrypt.state=active,encrypt.new-secret=s1,encrypt.iter-time=10", name)


def chains():
    write("disk", content(3))
    img("convert", "-f", "raw", "-O", "qcow2", "disk", "base")
    img("create", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top")
    io("top", *[f"aio_write -P 9 {at}k 40k" for at in range(0, 6000, 300)], "aio_flush", options=["-f", "qcow2"])
    io("top", *[f"aio_read {at}k 64k" for at in range(0, 6000, 100)], "aio_flush", options=["-C", "-f", "qcow2"])
    img("snapshot", "-c", "one", "top")
    img("convert", "-f", "qcow2", "-O", "raw", "top", "before")
    img("rebase", "-f", "qcow2", "-b", "", "top")
    img("compare", "top", "before")
    img("convert", "-O", "qcow2", "-B", "base", "-F", "qcow2", "before", "over")
    img("commit", "over")
    img("compare", "base", "before")
    img("resize", "--preallocation=falloc", "top", "8M")
    img("check", "-r", "leaks", "top")
    platter("img", "bench", "-f", "qcow2", "-w", "-c", "500", "-d", "32", "-S", "12288", "top")
    img("dd", "-f", "qcow2", "-O", "raw", "bs=64k", "if=top", "of=out")


def main():
    for sanitizer in ("ASAN", "UBSAN", "TSAN"):
        os.environ[sanitizer + "_OPTIONS"] = f"exitcode={REPORTED}"
    with tempfile.TemporaryDirectory(prefix="platter-threads-") as directory:
        os.chdir(directory)
        for part in (packed, encrypted, chains):
            part()
        os.chdir("/")
    print(f"{commands} commands")
    return 0


sys.exit(main())
