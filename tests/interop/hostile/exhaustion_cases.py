"""Images that want too much time or memory (X: exhaustion, I: parsing)."""
import os
import shutil
import struct
import subprocess

from harness import case, done, MIB, peer, platter, poke, refused


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
