#!/usr/bin/env python3
"""Random scripts through `platter io` and qemu-io: same output, same exit status, same disks.

usage: io_random.py PLATTER [--seed N] [--scripts N] [--seconds N] [--commands N]

Script number N is the same wherever it runs. A script that comes out differently is cut down to the
commands that matter before it is shown. Exit status 77: qemu-io or qemu-img is not installed.
"""
import argparse
import concurrent.futures
import itertools
import os
import random
import shutil
import sys
import tempfile
import time

from io_harness import Case, examine

SIZE = 4 << 20
BACKED = [["qemu-img", "create", "-q", "-f", "qcow2", "base", "3M"],
          ["qemu-io", "-f", "qcow2", "-c", "write -q -P 3 64k 256k", "-c", "write -q -P 4 2M 700k",
           "-c", "write -q -z 512k 128k", "base"]]
# What images there are: (format, options of create, what is run before, whether there is a VM state)
IMAGES = [
    ("raw", "", []),
    ("qcow2", "", []),
    ("qcow2", "compat=0.10", []),
    ("qcow2", "extended_l2=on", []),
    ("qcow2", "extended_l2=on,cluster_size=16k", []),
    ("qcow2", "cluster_size=512", []),
    ("qcow2", "cluster_size=4k,refcount_bits=1", []),
    ("qcow2", "cluster_size=2M,lazy_refcounts=on", []),
    ("qcow2", "compression_type=zstd", []),
    ("qcow2", "data_file=data", []),
    ("qcow2", "data_file=data,data_file_raw=on", []),
    ("qcow2", "backing_file=base,backing_fmt=qcow2", BACKED),
    ("qcow2", "compat=0.10,backing_file=base,backing_fmt=qcow2", BACKED),
    ("qcow2", "extended_l2=on,backing_file=base,backing_fmt=qcow2", BACKED),
    ("qcow2", "cluster_size=1k,backing_file=base,backing_fmt=qcow2", BACKED),
]
PROGRAM_OPTIONS = [[], [], [], ["-t", "writeback"], ["-t", "unsafe"], ["-m"], ["-C"], ["-d", "ignore"], ["-r"], ["-s"]]
NONSENSE = ["x", "-1", "9E", "0x", "1zz", "2G", "-Z", "", "1.5k", "8M", "4194305", "-P"]


class Script:
    def __init__(self, number, commands):
        self.random = random.Random(number)
        rng = self.random
        self.format, self.create, self.setup = rng.choice(IMAGES)
        self.options = list(rng.choice(PROGRAM_OPTIONS))
        if "compat=0.10,backing" in self.create and "-C" in self.options:
            self.options = []  # see write()
        # Past the page cache, here or after a reopen.
        self.direct = rng.random() < 0.2
        if self.direct:
            self.options += rng.choice([[], ["-n"]])
        # Each is a list of lines that only make sense together.
        self.steps = [self.command() for _ in range(commands)]
        # (qemu-io packs nothing over what is there already.)
        if self.format == "qcow2" and rng.random() < 0.5:
            places = rng.sample(range(SIZE >> 16), 3)
            self.steps[:0] = [[f"write -c {self.pattern()}{place << 16} {rng.choice([65536, 65536, 4096, 100])}"]
                              for place in places]

    def number(self, most):
        rng = self.random
        kind = rng.random()
        if kind < 0.35:
            return rng.randrange(0, most >> 16) << 16
        if kind < 0.55:
            return rng.randrange(0, most >> 12) << 12
        if kind < 0.75:
            return rng.randrange(0, most >> 9) << 9
        return rng.randrange(0, most)

    def length(self):
        rng = self.random
        # (A read of nothing makes qemu-io copy a whole cluster.)
        return rng.choice([1 if "-C" in self.options else 0, 1, 511, 512, 1000, 2048, 4096, 8192, 32768, 65536, 65536, 65536, 70000, 131072, 196608,
                           rng.randrange(1, 300000), rng.randrange(1, 600) << 9])

    def range(self):
        rng = self.random
        start, length = self.number(SIZE), self.length()
        if rng.random() < 0.04:
            start = rng.choice([SIZE, SIZE - 512, SIZE - 3, SIZE + 65536, 0])
        if rng.random() < 0.02:
            length = rng.choice([SIZE, SIZE * 2, 2147483136, 2147483137])
        return f"{start} {length}"

    def zero_range(self):
        """Past the page cache parts of sectors are written, here and never by qemu-io."""
        start, length = map(int, self.range().split())
        return f"{start & ~511} {-(-length // 512) * 512}" if self.direct else f"{start} {length}"

    def flags(self, letters):
        """Some of these letters; a letter that takes an argument is given with it."""
        rng = self.random
        chosen = [letter for letter in letters if rng.random() < 0.18]
        rng.shuffle(chosen)
        return "".join(f"-{flag} " for flag in chosen)

    def pattern(self, chance=0.6):
        rng = self.random
        return f"-P {rng.choice([rng.randrange(256), 0, 3, 4, 7])} " if rng.random() < chance else ""

    def write(self):
        rng = self.random
        # (Of images of version 2, qemu-io zeroes nothing without fallback, and over a backing image
        # it stores zeroes that are there already.)
        old = "compat=0.10" in self.create
        if rng.random() < 0.3 and not (old and "backing" in self.create):
            flags = "-z " + self.flags(["u", "u", "f", "C", "q"] + ([] if old or "-C" in self.options else ["n"]))
            return [f"write {flags}{self.zero_range()}"]
        return [f"write {self.flags(['f', 'C', 'q', 'q', 'u'])}{self.pattern()}{self.range()}"]

    def command(self):
        rng = self.random
        if rng.random() < 0.02:
            return [f"{rng.choice(['read', 'write', 'discard', 'alloc', 'truncate', 'writev', 'reopen', 'aio_read'])} "
                    + " ".join(rng.choice(NONSENSE) for _ in range(rng.randrange(4)))]
        kind = rng.choices(range(12), [20, 12, 5, 5, 8, 10, 6, 3, 3, 3, 4, 2])[0]
        if kind == 0:
            return self.write()
        if kind == 1:
            limits = rng.choice(["", "", "", "-s 512 ", "-l 512 ", "-s 10 -l 100 "])
            view = "-v " if rng.random() < 0.05 else ""
            length = "" if not view else " 40"
            where = self.range() if not view else f"{self.number(SIZE)}{length}"
            return [f"read {self.flags(['C', 'q'])}{view}{limits}{self.pattern(0.7)}{where}"]
        if kind == 2:
            lengths = " ".join(str(self.length()) for _ in range(rng.randrange(1, 4)))
            return [f"{rng.choice(['readv', 'writev'])} {self.flags(['q', 'C'])}{self.pattern()}{self.number(SIZE)} {lengths}"]
        if kind == 3:
            flags = self.flags(["q", "C"])
            lengths = " ".join(str(self.length()) for _ in range(rng.randrange(1, 3)))
            name = rng.choice(["aio_read", "aio_write"])
            if name == "aio_write" and rng.random() < 0.3 and "compat=0.10" not in self.create:
                return [f"aio_write -z {self.flags(['u', 'f'])}{self.zero_range()}", "aio_flush"]
            return [f"{name} {flags}{self.pattern()}{self.number(SIZE)} {lengths}", "aio_flush"]
        if kind == 4:
            return [f"discard {self.flags(['C', 'q'])}{self.range()}"]
        if kind == 5:
            return ["map"]
        if kind == 6:
            return [f"alloc {self.range()}" if rng.random() < 0.7 else f"alloc {self.number(SIZE)}"]
        if kind == 7:
            return [rng.choice(["flush", "length", "info"])]
        if kind == 8:
            mode = rng.choice(["", "", "", "-m off ", "-m metadata ", "-m falloc ", "-m full "])
            return [f"truncate {mode}{rng.choice([SIZE, SIZE, 5 << 20, 3 << 20, 3 * SIZE // 2 + 512, self.number(2 * SIZE)])}"]
        if kind == 9:
            # (qemu-io cannot open an overlay that nobody sees a second time.)
            caches = ["-c writeback", "-c unsafe"] + ["-c none"] * self.direct
            return ["length" if "-s" in self.options else "reopen " + rng.choice(caches + ["-r", "-w", "-o discard=ignore",
                                            "-o discard=unmap", "-o detect-zeroes=on", "-o detect-zeroes=off",
                                            "-o detect-zeroes=unmap", "-o foo=bar", "-o read-only=on", "-r -o read-only=off"])]
        if kind == 10:
            start, length = self.number(1 << 20), self.length()
            return [f"{rng.choice(['write -b ', 'read -b '])}{self.pattern()}{start} {length}"]
        flags = rng.choice(["", "-r ", "-n " if self.direct else "-m ", "-t writeback ", "-d off "])
        return ["close", f"open {flags}-o driver={self.format} disk"]

    def case(self, steps):
        return Case("random", [line for step in steps for line in step], fmt=self.format, options=self.options,
                    setup=self.setup, create=self.create)


def show(script, steps, found):
    print(f"  image: {script.format} {script.create}; options: {' '.join(script.options)}")
    for line in itertools.chain(*steps):
        print(f"    -c '{line}'")
    for text in found:
        print("  " + text)


def cut_down(script, program, work, steps, found):
    """The commands without which the two would be alike; long runs are tried first."""
    counter = itertools.count()
    length = len(steps) // 2
    while length >= 1:
        at = 0
        while at < len(steps):
            fewer = steps[:at] + steps[at + length:]
            directory = f"{work}-{next(counter)}"
            less = examine(script.case(fewer), program, directory) if fewer else []
            shutil.rmtree(directory, ignore_errors=True)
            if less:
                steps, found = fewer, less
            else:
                at += length
        length //= 2
    return steps, found


def run(number, program, work, commands):
    script = Script(number, commands)
    directory = os.path.join(work, str(number))
    found = examine(script.case(script.steps), program, directory)
    shutil.rmtree(directory, ignore_errors=True)
    if found:
        return script, *cut_down(script, program, directory, script.steps, found)
    return script, script.steps, found


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("platter")
    parser.add_argument("--seed", type=int, default=1, help="the first script's number")
    parser.add_argument("--scripts", type=int, default=16)
    parser.add_argument("--seconds", type=float, help="as many scripts as fit in this time")
    parser.add_argument("--commands", type=int, default=25, help="in one script")
    arguments = parser.parse_args()
    if not shutil.which("qemu-io") or not shutil.which("qemu-img"):
        print("SKIP: qemu-io and qemu-img (Debian: qemu-utils) are not installed")
        return 77
    end = time.monotonic() + arguments.seconds if arguments.seconds else None
    numbers = itertools.count(arguments.seed) if end else range(arguments.seed, arguments.seed + arguments.scripts)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    done = failed = 0
    with tempfile.TemporaryDirectory(prefix="io_random", dir=memory) as work:
        program = os.path.join(work, "bin", "qemu-io")
        os.makedirs(os.path.dirname(program))
        os.symlink(os.path.abspath(arguments.platter), program)
        with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            waiting = iter(numbers)
            while batch := list(itertools.islice(waiting, 8)):
                results = [pool.submit(run, number, program, work, arguments.commands) for number in batch]
                for number, result in zip(batch, results):
                    script, steps, found = result.result()
                    done += 1
                    if found:
                        failed += 1
                        print(f"DIFFERS script {number}")
                        show(script, steps, found)
                        sys.stdout.flush()
                if end and time.monotonic() > end:
                    break
    print(f"{done} scripts, {failed} differ")
    return 1 if failed or not done else 0


if __name__ == "__main__":
    sys.exit(main())
