#!/usr/bin/env python3
"""SeaBIOS boots our sector from virtio-blk-pci, and INT 13h reads and writes the disk."""

from guestlib import Bench, fail


def main():
    with Bench("--guest") as bench:
        start = bench.path("start.raw")
        with open(bench.options.guest, "rb") as sector:
            boot = sector.read()
        if len(boot) != 512:
            fail(f"the boot sector has {len(boot)} bytes")
        from_host = bytes(i * 13 & 0xFF for i in range(8 * 512))
        with open(start, "wb") as file:
            file.write(boot + from_host)
            file.truncate(8 << 20)
        disk = bench.path("disk.qcow2")
        bench.img("convert", "-f", "raw", "-O", "qcow2", start, disk)
        console, _ = bench.run_guest("--memory", "64M", "--disk", disk + ",format=qcow2",
                                     "--debug-log", bench.path("bios.log"))
        if "BIOS PASS" not in console:
            with open(bench.path("bios.log"), encoding="latin-1") as log:
                print(log.read())
            fail("the boot sector did not pass")
        bench.check_image(disk)
        with open(bench.raw_copies(disk), "rb") as file:
            content = file.read()
        expected = bytearray(boot + from_host)
        expected += bytes((8 << 20) - len(expected))
        expected[100 * 512:108 * 512] = from_host
        expected[200 * 512:216 * 512] = b"\xa5\x5a" * (16 * 256)
        if content != bytes(expected):
            fail("the disk is not what the boot sector should have made of it")


main()
