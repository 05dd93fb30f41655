#!/usr/bin/env python3
"""Makes a qcow2 image `disk` whose tables are wrong.

usage: io_damage.py WHAT [REFERENCE]

The first guest cluster is said to lie where WHAT is: header, l1, l2, refcount-table, refcount-block,
snapshots, snapshot-l1, bitmaps; or "unaligned", amid a cluster. With REFERENCE "table" it is the L2
table that is said to lie there.
"""
import struct
import subprocess
import sys

MAKE = """
qemu-img create -q -f qcow2 disk 4M
qemu-io -f qcow2 -c 'write -q 0 128k' disk
qemu-img snapshot -c s disk
qemu-io -f qcow2 -c 'write -q 0 128k' disk
qemu-img bitmap --add disk b
"""
OFFSET = 0x00fffffffffffe00
COPIED = 1 << 63
BITMAPS = 0x23852875


def structures(image):
    def word(at):
        return struct.unpack_from(">Q", image, at)[0]

    places = {"header": 0, "refcount-table": word(48), "l1": word(40), "snapshots": word(64)}
    places["refcount-block"] = word(places["refcount-table"])
    places["l2"] = word(places["l1"]) & OFFSET
    places["snapshot-l1"] = word(places["snapshots"])
    places["unaligned"] = (word(places["l2"]) & OFFSET) + 512
    at = struct.unpack_from(">I", image, 100)[0]
    while (kind := struct.unpack_from(">II", image, at))[0] != 0:
        if kind[0] == BITMAPS:
            places["bitmaps"] = word(at + 24)
        at += 8 + (kind[1] + 7 & ~7)
    return places


def main():
    subprocess.run(["sh", "-e", "-c", MAKE], check=True)
    with open("disk", "r+b") as file:
        places = structures(file.read())
        file.seek(places["l1" if "table" in sys.argv[2:] else "l2"])
        file.write(struct.pack(">Q", COPIED | places[sys.argv[1]]))


if __name__ == "__main__":
    main()
