#!/usr/bin/env python3
"""Measures Platter beside Debian's qemu in the same run and prints a table with the ratios.

Each row runs our command and the peer's in turn, several rounds, and compares the medians of wall
time and of CPU time (user + system, children included). Ratios below 1 mean that Platter needs less.
One run more shows the most memory that each has resident at once.
docs/performance.md says what each row is.

    bench.py --platter build/release/platter [--rounds 5] [--dir /dev/shm] [--disk-dir /var/tmp] [ROW...]

ROW: parts of the names of the rows to run; default all. --check makes it exit with 1 when a row
misses its goal.
"""
import argparse
import mmap
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from images import MIB, Images  # noqa: E402
from rows import rows  # noqa: E402

# Wall time on a shared machine wobbles by a few percent.
WALL_TOLERANCE = 1.05


# More than the runs of any row take from memory at once.
POOL_BYTES = 1024 * MIB


def pool_of_pages():
    """Free memory that stays backed by the host for as long as the result is kept.

    A virtual machine may give free memory back to its host in blocks of 2 MiB (free page reporting), and
    whoever is given such a page next waits for the host: up to four times as long as the copy that is
    measured. One page kept in each MiB leaves no block that is wholly free, and what is free
    in broken blocks is given out first.
    """
    pool = mmap.mmap(-1, POOL_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    for start in range(0, POOL_BYTES, MIB):
        pool.madvise(mmap.MADV_DONTNEED, start + mmap.PAGESIZE, MIB - mmap.PAGESIZE)
    return pool


def timed(row, argv):
    stdin = open(row.stdin()) if row.stdin else subprocess.DEVNULL
    start = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(row.repeat):
        done = subprocess.run(argv, stdin=stdin, stderr=subprocess.PIPE,
                              stdout=subprocess.DEVNULL if row.prints is None else subprocess.PIPE)
        if done.returncode != 0:
            sys.exit(f"error: {' '.join(argv)}: exit {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    if row.stdin:
        stdin.close()
    if row.prints is not None:
        wall = float(done.stdout.split()[row.prints])
    return wall / row.repeat, cpu / row.repeat


def peak_memory(row, argv):
    """The most bytes resident at once. A child's own figure starts from this process's, hence time(1)."""
    with tempfile.NamedTemporaryFile("r") as report, open(row.stdin() if row.stdin else os.devnull) as stdin:
        subprocess.run(["time", "-f", "%M", "-o", report.name, *argv], stdin=stdin, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return int(report.read()) * 1024


def measure(row, rounds):
    """(wall seconds, CPU seconds, peak bytes), ours and the peer's."""
    for argv in row.command():
        if not shutil.which(argv[0]):
            sys.exit(f"error: {argv[0]} is missing: build the target {os.path.basename(argv[0])}")
    samples = ([], [])
    if row.before:
        row.before()
    pool = pool_of_pages()
    for number in range(min(rounds, row.rounds)):
        sides = list(enumerate(row.command()))
        # Whoever comes second may find the caches warmer, or the disk's allowance used up.
        for side, argv in sides if number % 2 == 0 else reversed(sides):
            if row.before:
                row.before()
            samples[side].append(timed(row, argv))
    pool.close()
    result = []
    for runs, argv in zip(samples, row.command()):
        if row.before:
            row.before()
        wall, cpu = (statistics.median(run[part] for run in runs) for part in (0, 1))
        result.append((wall, cpu, peak_memory(row, argv)))
    return result


class Verdict:
    def __init__(self, row, result):
        (our_wall, our_cpu, our_peak), (peer_wall, peer_cpu, peer_peak) = result
        self.wall, self.cpu = our_wall / peer_wall, our_cpu / max(peer_cpu, 1e-9)
        self.peaks = [peer_peak / MIB, our_peak / MIB]
        scale, unit = (1e6 / row.per, "us") if row.per else (1e3, "ms")
        self.goals, self.met = [], self.wall <= row.wall_goal * WALL_TOLERANCE
        self.met = self.met and (row.prints is not None or self.cpu <= row.cpu_goal)
        self.met = self.met and our_peak <= peer_peak
        if row.wall_ms:
            self.goals.append(f"wall {row.wall_ms / 1e3 * scale:.3g} {unit}")
            self.met = self.met and our_wall * 1e3 <= row.wall_ms
        if row.cpu_ms:
            self.goals.append(f"CPU {row.cpu_ms / 1e3 * scale:.3g} {unit}")
            self.met = self.met and our_cpu * 1e3 <= row.cpu_ms
        if row.cpu_goal < 1 or not self.goals:
            self.goals.append(f"ratio {row.cpu_goal:g}")
        if row.floor:
            self.goals, self.met = ["none"], True
        self.figures = [time * scale for time in (peer_wall, peer_cpu, our_wall, our_cpu)]
        self.unit = unit

    def markdown(self, name):
        figures = [f"{figure:.4g}" for figure in self.figures]
        return (f"| {name} | {self.unit} | {' | '.join(figures)} | {self.wall:.2f} | {self.cpu:.2f} | "
                f"{self.peaks[0]:.1f} | {self.peaks[1]:.1f} | "
                f"{', '.join(self.goals)} | {'yes' if self.met else 'no'} |")

    def line(self, name):
        figures = " ".join(f"{figure:9.4g}" for figure in self.figures)
        return (f"{name:46} {figures} {self.unit}  {self.wall:5.2f} {self.cpu:5.2f} {self.peaks[0]:7.1f} {self.peaks[1]:7.1f}  "
                f"{'met   ' if self.met else 'MISSED'} {', '.join(self.goals)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platter", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", default="/dev/shm", help="where most images go (tmpfs; 4 GiB are needed)")
    parser.add_argument("--disk-dir", default="/var/tmp", help="where the images for O_DIRECT I/O go (a real disk)")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--markdown", action="store_true", help="a table for docs/performance.md")
    parser.add_argument("--list", action="store_true", help="print the names of the rows only")
    parser.add_argument("rows", nargs="*")
    args = parser.parse_args()
    for program, package in (("qemu-img", "qemu-utils"), ("qemu-io", "qemu-utils"), ("time", "time"),
                             ("qemu-storage-daemon", "qemu-system-common")):
        if not shutil.which(program):
            sys.exit(f"error: {program} is missing (Debian package {package})")
    missed, ran = [], 0
    with tempfile.TemporaryDirectory(dir=args.dir) as scratch, tempfile.TemporaryDirectory(dir=args.disk_dir) as disk:
        if args.markdown:
            print("| row | unit | qemu wall | qemu CPU | platter wall | platter CPU | wall ratio | CPU ratio | qemu MiB | platter MiB | goal | met |")
            print("| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --- | --- |")
        elif not args.list:
            print(f"{'':46} {'qemu':>19} {'platter':>19}     platter/qemu    peak MiB")
            print(f"{'row':46} {'wall':>9} {'CPU':>9} {'wall':>9} {'CPU':>9}      wall   CPU    qemu platter  goal")
        for row in rows(Images(os.path.abspath(args.platter), scratch, disk)):
            if args.rows and not any(part in row.name for part in args.rows):
                continue
            if args.list:
                print(row.name)
                continue
            ran += 1
            verdict = Verdict(row, measure(row, args.rounds))
            if not verdict.met:
                missed.append(row.name)
            print((verdict.markdown if args.markdown else verdict.line)(row.name), flush=True)
    if not args.list and not args.markdown:
        print(f"{ran} rows, {len(missed)} missed their goal" + (f": {'; '.join(missed)}" if missed else ""))
    return 1 if args.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
