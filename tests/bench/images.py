"""The images that the rows of bench.py use. Each is made when the first row asks for it."""
import os
import shutil
import subprocess
from functools import cached_property

MIB = 1 << 20


def quietly(*argv):
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def make_data(path, size):
    """Real, compressible content with an eighth of random data."""
    sources = ("/usr/bin/git", "/usr/lib/x86_64-linux-gnu/libc.so.6", "/bin/bash")
    chunk = b"".join(open(p, "rb").read(4 * MIB) for p in sources if os.path.exists(p))
    piece = 64 * 1024
    with open(path, "wb") as f:
        for i in range(size // piece):
            at = (i * piece) % (len(chunk) - piece)
            f.write(os.urandom(piece) if i % 8 == 7 else chunk[at:at + piece])
    return path


class Images:
    def __init__(self, platter, scratch, disk):
        self.platter, self.scratch, self.disk = platter, scratch, disk
        self.out = f"{scratch}/out"

    def img(self, *words):
        quietly(self.platter, "img", *words)

    def fresh(self):
        """No target."""
        if os.path.exists(self.out):
            os.unlink(self.out)

    def empty_target(self, *options):
        """A function that makes an empty image of 64 GiB at `out`."""
        def make():
            self.fresh()
            self.img("create", "-q", "-f", "qcow2", *options, self.out, "64G")
        return make

    def copied(self, source):
        """A function that puts a copy of `source` at `out`."""
        def make():
            self.fresh()
            quietly("cp", "--sparse=always", source(), self.out)
        return make

    def converted(self, name, source, *options):
        path = f"{self.scratch}/{name}.qcow2"
        self.img("convert", *options, "-f", "raw", "-O", "qcow2", source, path)
        return path

    @cached_property
    def raw(self):
        return make_data(f"{self.scratch}/data.raw", 512 * MIB)

    @cached_property
    def qcow2(self):
        return self.converted("data", self.raw)

    @cached_property
    def small_raw(self):
        return make_data(f"{self.scratch}/small.raw", 128 * MIB)

    @cached_property
    def small_qcow2(self):
        return self.converted("small", self.small_raw)

    @cached_property
    def packed(self):
        return self.converted("packed", self.small_raw, "-c")

    @cached_property
    def packed_zstd(self):
        return self.converted("packed-zstd", self.small_raw, "-c", "-o", "compression_type=zstd")

    @cached_property
    def sparse(self):
        """1 TiB holding 64 MiB."""
        path = f"{self.scratch}/sparse.qcow2"
        self.img("create", "-q", "-f", "qcow2", path, "1T")
        quietly("qemu-io", *(w for i in range(64) for w in ("-c", f"write -P {i + 1} {i * 16}G 1M")), path)
        return path

    @cached_property
    def full(self):
        """1 TiB with all metadata."""
        path = f"{self.scratch}/full.qcow2"
        self.img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "1T")
        return path

    @cached_property
    def full_with_snapshot(self):
        path = f"{self.scratch}/full-snapshot.qcow2"
        quietly("cp", "--sparse=always", self.full, path)
        self.img("snapshot", "-c", "s", path)
        return path

    @cached_property
    def disk_raw(self):
        path = make_data(f"{self.disk}/io.raw", 1024 * MIB)
        os.sync()
        return path

    @cached_property
    def disk_qcow2(self):
        path = f"{self.disk}/io.qcow2"
        self.img("convert", "-f", "raw", "-O", "qcow2", self.disk_raw, path)
        os.sync()
        return path

    def chain(self, depth):
        """`depth` overlays, each with an eighth of its 256 MiB of its own, on a full base."""
        top = f"{self.scratch}/chain-{depth}-{depth}.qcow2"
        if os.path.exists(top):
            return top
        below = f"{self.scratch}/chain-{depth}-0.qcow2"
        self.img("create", "-q", "-f", "qcow2", below, "256M")
        quietly("qemu-io", "-c", "write -P 1 0 256M", below)
        for i in range(1, depth + 1):
            path = f"{self.scratch}/chain-{depth}-{i}.qcow2"
            self.img("create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", path)
            quietly("qemu-io", "-c", f"write -P {i} {i * 29 % 224}M 2M", path)
            below = path
        return top

    @cached_property
    def long_chain(self):
        """1,000 overlays."""
        folder = f"{self.scratch}/long"
        os.mkdir(folder)
        self.img("create", "-q", "-f", "qcow2", f"{folder}/0", "256M")
        for i in range(1, 1001):
            self.img("create", "-q", "-f", "qcow2", "-u", "-b", str(i - 1), "-F", "qcow2", f"{folder}/{i}", "256M")
        return f"{folder}/1000"

    @cached_property
    def overlay(self):
        """32 MiB of its own on small_qcow2."""
        path = f"{self.scratch}/overlay.qcow2"
        self.img("create", "-q", "-f", "qcow2", "-b", self.small_qcow2, "-F", "qcow2", path)
        quietly("qemu-io", *(w for i in range(8) for w in ("-c", f"write -P {i + 1} {i * 16}M 4M")), path)
        return path

    @cached_property
    def other_base(self):
        path = f"{self.scratch}/other-base.qcow2"
        shutil.copy(self.small_qcow2, path)
        return path

    def script(self, verb, count):
        """Commands for the I/O tool, scattered over 512 MiB."""
        path = f"{self.scratch}/script-{verb}"
        with open(path, "w") as f:
            for i in range(count):
                f.write(f"{verb} {i * 7919 % 131072 * 4096} 4k\n")
        return path
