"""The rows of bench.py: what is run, how often, and the goals."""
import os
from dataclasses import dataclass
from typing import Callable, Optional

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PEER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "stall_peer.py")


@dataclass
class Row:
    """One comparison of two argument vectors, which `command` makes: (ours, the peer's)."""
    name: str
    command: Callable[[], tuple]
    cpu_goal: float = 1.0   # bound on the ratio of CPU times
    wall_goal: float = 1.0  # bound on the ratio of wall times
    per: Optional[int] = None  # number of requests: figures are for one of them
    wall_ms: Optional[float] = None  # bound on our own wall time
    cpu_ms: Optional[float] = None  # bound on our own CPU time
    before: Optional[Callable[[], None]] = None  # called before each run, not timed
    stdin: Optional[Callable[[], str]] = None  # a file to read commands from
    repeat: int = 1  # runs timed together, for very short commands
    rounds: int = 100  # at most so many, for what takes long
    floor: bool = False  # ours is no program of ours, but what any must cost: no goal
    prints: Optional[int] = None  # instead of wall time, this one of the seconds that it prints; CPU time is no goal


def rows(images):
    i = images

    def both(*words):
        """The same words for both; a function among them is called when the row runs."""
        def make():
            plain = [word() if callable(word) else str(word) for word in words]
            return [i.platter, "img", *plain], ["qemu-img", *plain]
        return make

    def raw():
        return i.raw

    def qcow2():
        return i.qcow2

    yield Row("info start-up", both("info", qcow2), wall_ms=2, repeat=20)
    yield Row("create qcow2 1T", both("create", "-q", "-f", "qcow2", i.out, "1T"), before=i.fresh, repeat=5)
    yield Row("create 1T, metadata", both("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", i.out, "1T"),
              before=i.fresh, cpu_ms=400, rounds=3)
    yield from copies(i, both)
    yield from tables(i, both)
    yield from requests(i, both)
    yield from allocations(i, both)
    yield from chains(i, both)


def copies(i, both):
    def convert(source, target, image, *options):
        return both("convert", *options, "-f", source, "-O", target, image, i.out)

    def small():
        return i.small_raw

    yield Row("convert raw to qcow2, 512M", convert("raw", "qcow2", lambda: i.raw), before=i.fresh, cpu_goal=0.75, cpu_ms=350)
    yield Row("convert qcow2 to qcow2, 512M", convert("qcow2", "qcow2", lambda: i.qcow2), before=i.fresh, cpu_goal=0.75, cpu_ms=350)
    yield Row("convert qcow2 to raw, 512M", convert("qcow2", "raw", lambda: i.qcow2), before=i.fresh, cpu_goal=0.75, cpu_ms=350)
    yield Row("convert raw to raw, 512M", convert("raw", "raw", lambda: i.raw), before=i.fresh, cpu_goal=0.75, cpu_ms=350)
    yield Row("dd bs=512K in the place of platter", lambda: (
        ["dd", "bs=512K", "status=none", f"if={i.raw}", f"of={i.out}"],
        ["qemu-img", "convert", "-f", "raw", "-O", "raw", i.raw, i.out]), before=i.fresh, floor=True)
    yield Row("convert 1T holding 64M", convert("qcow2", "qcow2", lambda: i.sparse), before=i.fresh, cpu_ms=200)
    yield Row("convert -c zlib, 128M", convert("raw", "qcow2", small, "-c"), before=i.fresh, cpu_ms=3500 / 4, rounds=3)
    yield Row("convert -c zstd, 128M", convert("raw", "qcow2", small, "-c", "-o", "compression_type=zstd"),
              before=i.fresh, cpu_ms=3500 / 4)
    yield Row("read packed zlib, 128M", convert("qcow2", "raw", lambda: i.packed), before=i.fresh, cpu_ms=1500 / 4)
    yield Row("read packed zstd, 128M", convert("qcow2", "raw", lambda: i.packed_zstd), before=i.fresh, cpu_ms=1500 / 4)
    yield Row("compare, 512M", both("compare", "-f", "raw", "-F", "qcow2", lambda: i.raw, lambda: i.qcow2),
              cpu_ms=800 * 512 / 2458)
    yield Row("commit 32M", both("commit", "-q", "-d", lambda: i.overlay), repeat=3)
    yield Row("rebase 128M", both("rebase", "-q", "-b", lambda: i.other_base, "-F", "qcow2", i.out),
              before=i.copied(lambda: i.overlay))


def tables(i, both):
    def full():
        return i.full

    yield Row("check, 512M", both("check", "-q", lambda: i.qcow2), repeat=5)
    yield Row("check 1T, all metadata", both("check", "-q", full), cpu_ms=500, rounds=3)
    yield Row("map 1T sparse", both("map", "--output=json", lambda: i.sparse), repeat=5)
    yield Row("map 1T, all metadata", both("map", "--output=json", full), cpu_ms=200)
    yield Row("measure 1T sparse", both("measure", "-O", "qcow2", lambda: i.sparse), repeat=5)
    for name, flag, start in (("create", "-c", lambda: i.full), ("apply", "-a", lambda: i.full_with_snapshot),
                              ("delete", "-d", lambda: i.full_with_snapshot)):
        yield Row(f"snapshot {name} 1T, all metadata", both("snapshot", flag, "s", i.out), before=i.copied(start),
                  cpu_ms=1000, rounds=1)

    def stall():
        return [os.path.join(os.path.dirname(i.platter), "tests", "bench_stall"), i.out], [PEER, i.out]
    for number, which in enumerate(("longest write", "99.9 % of writes")):
        yield Row(f"{which}, snapshot of 1T meanwhile", stall, before=i.copied(full), prints=number, rounds=1)


def requests(i, both):
    """4 KiB requests. A step that shares no factor with the size visits the disk in a scattered order."""
    scattered = 37 * MIB + 3 * 4 * KIB
    for where, cache, counts in (("O_DIRECT", ["-t", "none", "-n"], {1: 15000, 64: 80000}),
                                 ("tmpfs", ["-t", "writeback"], {1: 60000, 64: 100000})):
        for fmt in ("raw", "qcow2"):
            def image(where=where, fmt=fmt):
                name = fmt if where == "tmpfs" else f"disk_{fmt}"
                return getattr(i, name)
            for depth, count in counts.items():
                for order, step in (("random", scattered), ("sequential", 4 * KIB)):
                    for verb, flags in (("read", []), ("write", ["-w", "--pattern=90"])):
                        yield Row(f"4K {order} {verb}, {fmt}, depth {depth}, {where}",
                                  both("bench", "-f", fmt, *cache, "-c", count, "-d", depth, "-s", 4096, "-S", step, *flags, image),
                                  per=count, cpu_goal=0.75 if depth == 64 else 1.0)
    count = 20000
    for verb in ("read", "write"):
        def command():
            return ([i.platter, "io", "-f", "qcow2", i.qcow2], ["qemu-io", "-f", "qcow2", i.qcow2])
        yield Row(f"io: scripted 4K {verb}", command, stdin=lambda verb=verb: i.script(verb, count), per=count,
                  cpu_ms=8e-3 * count, rounds=3)


def allocations(i, both):
    """Writes to clusters that are not there yet; look-ups in tables that are not in memory."""
    for size, name in ((4 * KIB, "4K"), (64 * KIB, "64K")):
        goal = 15e-3 if size == 4 * KIB else 28e-3
        for depth in (1, 32):
            count = 16000
            yield Row(f"{name} write to new clusters, depth {depth}",
                      both("bench", "-f", "qcow2", "-w", "--pattern=90", "-c", count, "-d", depth, "-s", size, "-S", 64 * KIB, i.out),
                      before=i.empty_target(), per=count, cpu_ms=goal * count, rounds=3)
    # Enough to fill the cache several times over: what counts is a look-up that has to make room.
    count = 60000
    yield Row("4K random read, 1T, tables not in memory",
              both("bench", "-f", "qcow2", "-c", count, "-d", 1, "-s", 4096, "-S", 1567 * MIB + 36 * KIB, lambda: i.full),
              per=count, cpu_ms=10e-3 * count, rounds=3)


def chains(i, both):
    for depth in (1, 10, 50):
        count = 40000
        yield Row(f"4K random read, chain of {depth}",
                  both("bench", "-f", "qcow2", "-c", count, "-d", 16, "-s", 4096, "-S", 37 * MIB + 3 * 4 * KIB,
                       lambda depth=depth: i.chain(depth)),
                  per=count, cpu_ms=6e-3 * count, rounds=3)
    yield Row("open a chain of 1,000", both("bench", "-f", "qcow2", "-c", 1, lambda: i.long_chain), wall_ms=1000, rounds=1)
