#!/usr/bin/env python3
"""Measures Platter beside Debian's qemu in the same run and prints a table with the ratios.

Each row runs our command and the peer's in turn, several rounds, and compares the medians of wall
time and of CPU time (user + system, children included). Ratios below 1 mean that Platter needs less.

    bench.py --platter build/release/platter [--rounds 5] [--dir /dev/shm] [--disk-dir /var/tmp] [ROW...]

ROW: parts of the names of the rows to run; default all. --check makes it exit with 1 when a row
misses its goal.
"""
import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Callable, Optional

MIB = 1 << 20


@dataclass
class Row:
    """One comparison of two argument vectors."""
    name: str
    ours: list
    peer: list
    cpu_goal: float = 1.0   # bound on the ratio of CPU times
    wall_goal: float = 1.0  # bound on the ratio of wall times
    per: Optional[int] = None   # number of requests, to print microseconds for each
    before: Optional[Callable[[], None]] = None  # called before each run, not timed
    absolute_ms: Optional[float] = None  # bound on our own wall time
    repeat: int = 1  # runs timed together, for very short commands


def timed(argv, repeat):
    start = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(repeat):
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if done.returncode != 0:
            sys.exit(f"error: {' '.join(argv)}: exit {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return wall / repeat, cpu / repeat


def measure(row, rounds):
    samples = {"ours": [], "peer": []}
    for _ in range(rounds):
        for who, argv in (("ours", row.ours), ("peer", row.peer)):
            if row.before:
                row.before()
            samples[who].append(timed(argv, row.repeat))
    return {who: tuple(statistics.median(s[i] for s in runs) for i in (0, 1)) for who, runs in samples.items()}


def make_data(path, size):
    """Real, compressible content with an eighth of random data."""
    sources = ("/usr/bin/git", "/usr/lib/x86_64-linux-gnu/libc.so.6", "/bin/bash")
    chunk = b"".join(open(p, "rb").read(4 * MIB) for p in sources if os.path.exists(p))
    piece = 64 * 1024
    with open(path, "wb") as f:
        for i in range(size // piece):
            at = (i * piece) % (len(chunk) - piece)
            f.write(os.urandom(piece) if i % 8 == 7 else chunk[at:at + piece])


def qemu(*argv):
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def rows(platter, scratch, disk):
    def both(*args):
        return [platter, "img", *args], ["qemu-img", *args]

    raw, small = f"{scratch}/data.raw", f"{scratch}/small.raw"
    qcow2, packed, packed_zstd = (f"{scratch}/{n}.qcow2" for n in ("data", "packed", "packed-zstd"))
    big, out = f"{scratch}/sparse.qcow2", f"{scratch}/out"
    make_data(raw, 512 * MIB)
    make_data(small, 128 * MIB)
    qemu("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
    qemu("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", small, packed)
    qemu("qemu-img", "convert", "-c", "-o", "compression_type=zstd", "-f", "raw", "-O", "qcow2", small, packed_zstd)
    qemu("qemu-img", "create", "-q", "-f", "qcow2", big, "1T")
    qemu("qemu-io", *(w for i in range(64) for w in ("-c", f"write -P {i + 1} {i * 16}G 1M")), big)

    def fresh():
        if os.path.exists(out):
            os.unlink(out)

    yield Row("info start-up", *both("info", qcow2), absolute_ms=3.0, repeat=20)
    yield Row("create qcow2 1T", *both("create", "-q", "-f", "qcow2", out, "1T"), before=fresh, repeat=5)
    yield Row("create qcow2 1T, metadata", *both("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", out, "1T"),
              before=fresh, cpu_goal=0.1)
    for target in ("qcow2", "raw"):
        for source, image in (("raw", raw), ("qcow2", qcow2)):
            if (source, target) != ("raw", "raw"):
                yield Row(f"convert {source} to {target}", *both("convert", "-f", source, "-O", target, image, out),
                          before=fresh, cpu_goal=0.75)
    yield Row("convert 1T holding 64M", *both("convert", "-f", "qcow2", "-O", "qcow2", big, out), before=fresh, cpu_goal=0.25)
    yield Row("convert -c zlib, 128M", *both("convert", "-c", "-f", "raw", "-O", "qcow2", small, out), before=fresh, cpu_goal=0.5)
    yield Row("convert -c zstd, 128M", *both("convert", "-c", "-o", "compression_type=zstd", "-f", "raw", "-O", "qcow2", small, out),
              before=fresh)
    yield Row("read packed zlib, 128M", *both("convert", "-f", "qcow2", "-O", "raw", packed, out), before=fresh, cpu_goal=0.75)
    yield Row("read packed zstd, 128M", *both("convert", "-f", "qcow2", "-O", "raw", packed_zstd, out), before=fresh)
    yield Row("check", *both("check", qcow2), repeat=5)
    yield Row("map 1T sparse", *both("map", "--output=json", big), repeat=5)
    yield Row("compare", *both("compare", "-f", "raw", "-F", "qcow2", raw, qcow2), cpu_goal=0.75)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platter", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", default="/dev/shm", help="where converted images go (tmpfs)")
    parser.add_argument("--disk-dir", default="/var/tmp", help="where the images for O_DIRECT I/O go (a real disk)")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("rows", nargs="*")
    args = parser.parse_args()
    if not shutil.which("qemu-img"):
        sys.exit("error: qemu-img is not installed (package qemu-utils)")
    missed, ran = [], 0
    with tempfile.TemporaryDirectory(dir=args.dir) as scratch, tempfile.TemporaryDirectory(dir=args.disk_dir) as disk:
        print(f"{'':34} {'wall ms':>19} {'CPU ms':>21}        ratio of medians")
        print(f"{'row':34} {'platter':>9} {'qemu':>9}  {'platter':>9} {'qemu':>9}   {'wall':>6} {'CPU':>6}")
        for row in rows(args.platter, scratch, disk):
            if args.rows and not any(part in row.name for part in args.rows):
                continue
            ran += 1
            result = measure(row, args.rounds)
            (our_wall, our_cpu), (peer_wall, peer_cpu) = result["ours"], result["peer"]
            wall, cpu = our_wall / peer_wall, our_cpu / max(peer_cpu, 1e-9)
            notes = []
            # Wall time on a shared machine wobbles by a few percent.
            if wall > row.wall_goal * 1.05:
                notes.append(f"wall goal {row.wall_goal:.2f}")
            if cpu > row.cpu_goal:
                notes.append(f"CPU goal {row.cpu_goal:.2f}")
            if row.absolute_ms and our_wall * 1000 > row.absolute_ms:
                notes.append(f"goal {row.absolute_ms} ms")
            if notes:
                missed.append(row.name)
            each = f"  {our_cpu / row.per * 1e6:.1f} us CPU each, qemu {peer_cpu / row.per * 1e6:.1f}" if row.per else ""
            print(f"{row.name:34} {our_wall * 1000:9.1f} {peer_wall * 1000:9.1f}  {our_cpu * 1000:9.1f} {peer_cpu * 1000:9.1f}   "
                  f"{wall:6.2f} {cpu:6.2f}{each}{'  MISSED: ' + ', '.join(notes) if notes else ''}", flush=True)
    print(f"{ran} rows, {len(missed)} missed their goal" + (f": {'; '.join(missed)}" if missed else ""))
    return 1 if args.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
