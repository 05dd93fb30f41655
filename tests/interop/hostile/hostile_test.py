#!/usr/bin/env python3
"""Images that refer to what they should not, and images that want too much, as a whole command meets
them: what must not be opened is not opened, each command ends within a second of CPU time and 64 MiB
of memory beyond the file itself, and says in one line what is wrong. Names of cases: the numbers of
the project's list of hostile input (I: parsing, R: references, X: exhaustion).

    hostile_test.py BUILD/platter [--sanitized] [WORD...]     only cases whose name contains a WORD

--sanitized: a sanitizer watches, which takes time and memory of its own: the bounds are wider.
"""
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

SECONDS, MIB = 1.0, 1 << 20
PLATTER = os.path.abspath(sys.argv[1])
SANITIZED = "--sanitized" in sys.argv[2:]
WORDS = [word for word in sys.argv[2:] if word != "--sanitized"]
# Several times the time; what has been freed is kept for a while, and a shadow of all memory.
SLOWER, BESIDE = (10, 640 * MIB) if SANITIZED else (1, 0)
CASES = []


def case(function):
    CASES.append(function)
    return function


class Outcome:
    def __init__(self, status, out, err, cpu, rss):
        self.status, self.out, self.err, self.cpu, self.rss = status, out, err, cpu, rss


def platter(*words, seconds=SECONDS, extra=0, timeout=60):
    """Runs a command within its bounds; `extra`: bytes of memory that it may take beyond 64 MiB."""
    command = [PLATTER, *map(str, words)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        timer = threading.Timer(timeout * SLOWER, child.kill)
        timer.start()
        _, status, usage = os.wait4(child.pid, 0)
        timer.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        result = Outcome(child.returncode, out.read().decode(errors="replace"),
                         err.read().decode(errors="replace"), usage.ru_utime + usage.ru_stime,
                         usage.ru_maxrss * 1024)
    shown = " ".join(command)[:300]
    assert result.status in (0, 1, 2, 3), f"{shown}: ended with {result.status}: {result.err[:500]}"
    assert result.cpu < seconds * SLOWER, f"{shown}: {result.cpu:.2f} s of CPU time"
    assert result.rss < 64 * MIB + BESIDE + extra, f"{shown}: {result.rss // MIB} MiB of memory"
    return result


def refused(word, *command, **bounds):
    result = platter(*command, **bounds)
    assert result.status == 1, f"{command}: exit code {result.status}, {result.out}"
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, f"{command}: {len(lines)} lines of errors: {result.err[:2000]}"
    assert word in lines[0], f"{command}: '{word}' is not in: {lines[0]}"
    return result


def done(*command, **bounds):
    result = platter(*command, **bounds)
    assert result.status == 0, f"{command}: exit code {result.status}: {result.err}"
    return result


def peer(*words):
    subprocess.run(["qemu-img", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


class Watch:
    """Tells whether anyone else opens a file: a lease on it is broken by that."""

    def __init__(self, path):
        self.path, self.opened = path, False

    def __enter__(self):
        self.fd = os.open(self.path, os.O_RDWR)
        self.before = signal.signal(signal.SIGIO, self.broken)
        fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        return self

    def broken(self, *_):
        self.opened = True
        fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def __exit__(self, *_):
        os.close(self.fd)
        signal.signal(signal.SIGIO, self.before)


def secret(name="secret"):
    with open(name, "wb") as file:
        file.write(b"root:x:0:0\n".ljust(65536, b"."))
    return os.path.abspath(name)


def poke(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def with_data_file(name, reference):
    """A qcow2 image whose external data file is `reference`."""
    peer("create", "-q", "-f", "qcow2", "-o", f"data_file={os.path.abspath('outside')}", name, "1M")
    with open(name, "rb") as file:
        head = bytearray(file.read(65536))
    at = struct.unpack_from(">I", head, 100)[0]
    while struct.unpack_from(">I", head, at)[0] != 0x44415441:
        at += 8 + (struct.unpack_from(">I", head, at + 4)[0] + 7) // 8 * 8
    text = reference.encode()
    poke(name, at, struct.pack(">II", 0x44415441, len(text)) + text.ljust((len(text) + 7) // 8 * 8, b"\0") + bytes(8))


@case
def r1_info_and_check_do_not_open_the_backing_file():
    path = secret()
    peer("create", "-q", "-f", "qcow2", "-b", path, "-F", "raw", "top")
    with Watch(path) as watch:
        done("img", "info", "top")
        done("img", "info", "--output=json", "top")
        done("img", "check", "top")
        done("img", "snapshot", "-l", "top")
        assert not watch.opened, "the backing file was opened"
        platter("img", "map", "top")  # which may be told to wait until the lease is given up
        assert watch.opened, "this test does not see who opens a file"


@case
def r2_info_does_not_open_the_data_file():
    path = secret()
    with_data_file("image", path)
    with Watch(path) as watch:
        done("img", "info", "image")
        done("img", "info", "--output=json", "image")
        assert not watch.opened, "the data file was opened"


@case
def r3_info_follows_no_data_file_that_is_a_description():
    path = secret()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket")
    listener.listen()
    listener.setblocking(False)
    where = os.path.abspath("socket")
    for reference in ("json:" + json.dumps({"driver": "raw", "file": {"driver": "file", "filename": path}}),
                      "json:" + json.dumps({"driver": "nbd", "server": {"type": "unix", "path": where}}),
                      f"nbd:unix:{where}", f"nbd+unix:///?socket={where}", "fat:rw:."):
        with_data_file("image", reference)
        with Watch(path) as watch:
            platter("img", "info", "image")
            assert not watch.opened, f"{reference}: the file was opened"
        try:
            listener.accept()
            raise AssertionError(f"{reference}: a connection was made")
        except BlockingIOError:
            pass


@case
def r5_info_makes_no_connection():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket")
    listener.listen()
    listener.setblocking(False)
    where = os.path.abspath("socket")
    for reference in (f"nbd:unix:{where}", f"nbd+unix:///x?socket={where}", "http://127.0.0.1:9/x", "ssh://127.0.0.1/x"):
        peer("create", "-q", "-u", "-f", "qcow2", "-b", reference, "-F", "raw", "top", "1M")
        done("img", "info", "top")
        done("img", "check", "top")
        try:
            listener.accept()
            raise AssertionError(f"{reference}: a connection was made")
        except BlockingIOError:
            pass
        result = platter("img", "convert", "-O", "raw", "top", "out")
        assert result.status == 1 and len(result.err.strip().splitlines()) == 1, result.err


@case
def r7_loops_of_one_two_and_many():
    for count in (1, 2, 20):
        names = [f"loop{count}.{i}" for i in range(count)]
        for i, name in enumerate(names):
            peer("create", "-q", "-f", "qcow2", name, "1M")
            peer("rebase", "-u", "-f", "qcow2", "-b", names[(i + 1) % count], "-F", "qcow2", name)
        done("img", "info", names[0])
        refused("loop", "img", "info", "--backing-chain", names[0])
        for command in (("map", names[0]), ("convert", "-O", "raw", names[0], "out"), ("compare", names[0], names[0])):
            result = platter("img", *command)
            assert result.status in (1, 2) and "loop" in result.err, (command, result.err)


@case
def r7_the_image_is_its_own_data_file():
    with_data_file("image", os.path.abspath("image"))
    for command in (("img", "convert", "-O", "raw", "image", "out"), ("io", "-c", "write 0 64k", "image")):
        refused("loop", *command)


@case
def r8_special_files():
    os.mkfifo("fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket")
    os.mkdir("directory")
    os.symlink("fifo", "link")
    for name in ("fifo", "socket", "directory", "link", "/dev/zero", "/dev/tty"):
        for verb in (("info",), ("check",), ("map",), ("measure", "-O", "qcow2")):
            result = platter("img", *verb, name, timeout=10)
            assert result.status == 1, (verb, name, result.out)
            assert len(result.err.strip().splitlines()) == 1 and name in result.err, result.err
        peer("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", "top", "1M")
        result = platter("img", "convert", "-O", "raw", "top", "out", timeout=10)
        assert result.status == 1 and name in result.err, result.err


@case
def r9_a_relative_backing_name_is_of_the_images_directory():
    os.makedirs("a/b")
    peer("create", "-q", "-f", "raw", "a/base", "1M")
    poke("a/base", 0, b"right")
    peer("create", "-q", "-f", "raw", "base", "1M")
    poke("base", 0, b"wrong")
    peer("create", "-q", "-u", "-f", "qcow2", "-b", "../base", "-F", "raw", "a/b/top", "1M")
    os.symlink("a/b/top", "link")
    done("img", "convert", "-O", "raw", "a/b/top", "out")
    with open("out", "rb") as file:
        assert file.read(5) == b"right"
    os.rename("a/b", "b")
    os.remove("base")
    refused("base", "img", "convert", "-O", "raw", "b/top", "out")


@case
def r10_valid_as_two_formats():
    peer("create", "-q", "-f", "qcow2", "image", "1M")
    poke("image", 512, b"EFI PART".ljust(92, b"\0"))
    assert json.loads(done("img", "info", "--output=json", "image").out)["format"] == "qcow2"
    assert json.loads(done("img", "info", "--output=json", "-f", "raw", "image").out)["format"] == "raw"
    done("img", "convert", "-f", "raw", "-O", "raw", "image", "out")
    with open("image", "rb") as one, open("out", "rb") as two:
        image, out = one.read(), two.read()
        assert out.startswith(image) and len(out) - len(image) < 512


@case
def i25_a_raw_disk_with_a_format_header_stays_raw():
    peer("create", "-q", "-f", "raw", "disk", "1M")
    result = platter("io", "-c", "write -P 0x51 0 512", "disk")
    assert result.status == 0, result.err
    # QFI\xfb from a guest, into a disk that was probed.
    with open("pattern", "wb") as file:
        file.write(b"QFI\xfb" + struct.pack(">I", 3) + bytes(504))
    result = platter("io", "-c", "write -s pattern 0 512", "disk")
    assert "Operation not permitted" in result.out + result.err, result.out + result.err
    with open("disk", "rb") as file:
        assert file.read(4) != b"QFI\xfb", "a format header was written to a probed raw disk"
    assert "raw" in result.out + result.err, result.out + result.err


@case
def i28_sizes_that_differ_along_a_chain():
    with open("base", "wb") as file:
        file.write(b"b" * 3333)
    peer("create", "-q", "-u", "-f", "qcow2", "-b", "base", "-F", "raw", "larger", "1M")
    peer("create", "-q", "-u", "-f", "qcow2", "-b", "base", "-F", "raw", "smaller", "1K")
    done("img", "convert", "-O", "raw", "larger", "out")
    peer("compare", "larger", "out")
    done("img", "convert", "-O", "raw", "smaller", "out")
    peer("compare", "smaller", "out")
    peer("resize", "-q", "--shrink", "larger", "1536")
    done("img", "check", "larger")
    done("img", "convert", "-O", "raw", "larger", "out")
    peer("compare", "larger", "out")


def chain(length):
    """A chain of so many empty layers, by name and number."""
    peer("create", "-q", "-u", "-f", "qcow2", "-o", "cluster_size=512", "-b", "layer.X", "-F", "qcow2", "model", "64K")
    with open("model", "rb") as file:
        model = file.read()
    at, size = struct.unpack_from(">QI", model, 8)
    for i in range(length):
        below = f"layer.{i - 1}".encode()
        image = bytearray(model)
        image[at:at + 512 - at % 512] = bytes(512 - at % 512)
        image[at:at + len(below)] = below
        struct.pack_into(">I", image, 16, len(below) if i else 0)
        struct.pack_into(">Q", image, 8, at if i else 0)
        with open(f"layer.{i}", "wb") as file:
            file.write(image)
    return f"layer.{length - 1}"


@case
def x2_long_chains():
    top = chain(1000)
    done("img", "info", top)
    done("img", "map", top)
    for i in range(1000):
        os.remove(f"layer.{i}")
    top = chain(10000)
    done("img", "info", top)
    result = platter("img", "map", top, seconds=10, extra=512 * MIB)
    if result.status != 0:
        assert result.status == 1 and len(result.err.strip().splitlines()) == 1, result.err[:1000]


@case
def x4_the_largest_l1_in_every_layer():
    below = []
    for i in range(40):
        peer("create", "-q", "-u", "-f", "qcow2", "-o", "cluster_size=2M", *below, f"layer.{i}", "2048P")
        below = ["-b", f"layer.{i}", "-F", "qcow2"]
    done("img", "info", "layer.39")
    done("img", "info", "--backing-chain", "layer.39", seconds=2)
    result = platter("io", "-r", "-c", "read 0 4096", "layer.39", seconds=10, extra=512 * MIB)
    assert result.status == 0, result.err


def one_table_named_by_all(name, cluster_bits, entries, flag=0):
    """An image with an L1 table of 32 MiB, all of whose entries name one L2 table, of `entries`."""
    cluster = 1 << cluster_bits
    count = 4 << 20
    l1, table = cluster, cluster + max(32 * MIB, cluster)
    refcounts, data = table + cluster, table + 3 * cluster
    size = min(count << (2 * cluster_bits - 3), (1 << 63) - 4096)
    with open(name, "wb") as file:
        file.write(struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, cluster_bits, size, 0, count, l1,
                               refcounts, 1, 0, 0, 0, 0, 0, 4, 104))
        file.seek(l1)
        for _ in range(64):  # not in one piece: a child's peak begins with ours
            file.write(struct.pack(">Q", table | flag) * (count // 64))
        file.seek(table)
        file.write(struct.pack(f">{cluster // 8}Q", *(entries(i, data) for i in range(cluster // 8))))
        file.seek(refcounts)
        file.write(struct.pack(">Q", refcounts + cluster))
        file.seek(refcounts + cluster)
        file.write(struct.pack(">H", 1) * (cluster // 2))
        file.truncate(data + cluster)


@case
def x4_one_table_named_by_all_of_the_largest_l1():
    kinds = {"zeroes": lambda i, data: 1, "nothing": lambda i, data: 0,
             "holes": lambda i, data: data if i % 2 else 0, "data": lambda i, data: data}
    for bits, kind in ((9, "zeroes"), (16, "holes"), (16, "data"), (21, "nothing")):
        one_table_named_by_all("image", bits, kinds[kind], 1 << 63 if kind == "data" else 0)
        done("img", "info", "image")
        # The 32 MiB table is there, and so is its memory; and where it is compared with counts.
        result = platter("img", "check", "image", extra=32 * MIB)
        assert result.status == 2, result.out[:500] + result.err[:500]
        for verb in (("map",), ("map", "--output=json")):
            result = refused("the same L2 tables again and again", "img", *verb, "image")
            assert result.out.count("\n") < 5, result.out[:500]
        # (Where the target cannot be as large as that, it says so.)
        result = platter("img", "convert", "-O", "raw", "image", "out")
        assert result.status == 1 and ("the same L2 tables" in result.err or "too large" in result.err), result.err
        result = platter("img", "compare", "image", "image", extra=32 * MIB)
        assert result.status > 1 and "the same L2 tables" in result.err, (result.status, result.err)
        # What does not go through all of it works.
        done("io", "-r", "-c", "read 0 64k", "image")


@case
def x5_snapshots_with_much_extra_data():
    peer("create", "-q", "-f", "qcow2", "image", "64M")
    peer("snapshot", "-c", "one", "image")
    with open("image", "rb") as file:
        head = file.read(72)
        at = struct.unpack_from(">Q", head, 64)[0]
        file.seek(at)
        one = bytearray(file.read(64))
    size = (os.path.getsize("image") + 65535) // 65536 * 65536
    for extra, count in ((960, 65536), (1000, 61000)):
        struct.pack_into(">HH", one, 12, 1, 3)
        struct.pack_into(">I", one, 36, extra)
        entry = bytes(one[:64]) + bytes(extra - 24) + b"1one"
        entry = entry.ljust((len(entry) + 7) // 8 * 8, b"\0")
        with open("image", "r+b") as file:
            file.seek(size)
            for _ in range(count):  # not in one piece: a child's peak begins with ours
                file.write(entry)
            file.truncate((size + len(entry) * count + 65535) // 65536 * 65536)
        poke("image", 60, struct.pack(">IQ", count, size))
        assert len(entry) * count <= 64 * MIB
        done("img", "info", "image")
        done("img", "info", "--output=json", "image")
        done("img", "snapshot", "-l", "image")
        done("img", "map", "image")
        platter("img", "check", "image")


@case
def i3_data_is_read_without_a_refcount_table():
    peer("create", "-q", "-f", "qcow2", "good", "4M")
    subprocess.run(["qemu-io", "-c", "write -P 7 0 1M", "good"], check=True, stdout=subprocess.DEVNULL)
    for at, value, said in ((56, struct.pack(">I", 1000), "too large"), (56, struct.pack(">I", 128), "beyond the end"),
                            (48, struct.pack(">Q", 0x10200), "not a multiple"),
                            (48, struct.pack(">Q", 1 << 40), "beyond the end"),
                            (48, struct.pack(">Q", 1 << 62), "above the limit"),
                            (48, struct.pack(">Q", 0), "refcount_table_offset is 0"),
                            (56, struct.pack(">I", 0), "refcount_table_clusters is 0")):
        shutil.copy("good", "image")
        poke("image", at, value)
        done("img", "info", "image")
        done("img", "map", "image")
        done("img", "convert", "-O", "raw", "image", "out")
        peer("compare", "-f", "raw", "-F", "qcow2", "out", "good")
        refused(said, "io", "-c", "write 3M 64k", "image")
        assert platter("img", "check", "image").status == 2
        done("img", "check", "-r", "all", "image")
        peer("check", "image")
        peer("compare", "image", "good")
        done("io", "-c", "write 3M 64k", "image")


@case
def x7_the_largest_disks():
    peer("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", "image", "2048P")
    for verb in (("info",), ("check",), ("map",), ("measure", "-O", "qcow2"), ("measure", "-O", "raw")):
        platter("img", *verb, "image", extra=32 * MIB)
    peer("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", "other", "2048P")
    done("img", "compare", "image", "other", extra=64 * MIB)
    huge = "driver=raw,file.driver=null-co,file.size=9223372036854775296,file.read-zeroes=on"
    for verb in (("info",), ("map",), ("measure", "-O", "raw")):
        platter("img", *verb, "--image-opts", huge)
    result = platter("img", "convert", "-S", "0", "--image-opts", huge, "-O", "raw", "out", timeout=30)
    assert result.status == 1 and len(result.err.strip().splitlines()) == 1, result.err


@case
def new_tables_keep_to_the_cache():
    """Not hostile, but much: 64 MiB of new L2 tables, of which the cache holds half."""
    peer("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "tables", "64M")
    done("img", "resize", "-q", "--preallocation=metadata", "tables", "32G", seconds=10)
    peer("check", "-q", "tables")


@case
def x11_a_packed_cluster_that_wants_a_huge_window():
    peer("create", "-q", "-f", "qcow2", "-o", "compression_type=zstd,preallocation=metadata", "image", "1M")
    with open("image", "rb") as file:
        head = file.read(112)
    l1 = struct.unpack_from(">Q", head, 40)[0]
    with open("image", "rb") as file:
        file.seek(l1)
        l2 = struct.unpack(">Q", file.read(8))[0] & 0x00fffffffffffe00
        file.seek(l2)
        data = struct.unpack(">Q", file.read(8))[0] & 0x00fffffffffffe00
    # A frame with a window of 2 GiB, its content one block of 65536 times one byte.
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + struct.pack("<I", 65536 << 3 | 1 << 1 | 1)[:3] + b"x"
    poke("image", data, frame.ljust(512, b"\0"))
    poke("image", l2, struct.pack(">Q", 1 << 62 | data))
    result = platter("img", "convert", "-O", "raw", "image", "out")
    assert result.status in (0, 1), result.err


def main():
    for tool in ("qemu-img",):
        if not shutil.which(tool):
            print(f"skipped: {tool} is not installed")
            return 77
    failures = 0
    for function in CASES:
        name = function.__name__
        if WORDS and not any(word in name for word in WORDS):
            continue
        directory = tempfile.mkdtemp(prefix="platter-hostile-", dir=os.environ.get("TMPDIR", "/tmp"))
        os.chdir(directory)
        start = time.monotonic()
        try:
            function()
            print(f"ok    {name} ({time.monotonic() - start:.1f} s)")
        except (AssertionError, subprocess.CalledProcessError) as error:
            failures += 1
            print(f"FAIL  {name}: {error}")
        finally:
            os.chdir("/")
            shutil.rmtree(directory)
        sys.stdout.flush()
    print(f"{failures} failed")
    return 1 if failures else 0


sys.exit(main())
