#!/usr/bin/env python3
"""SeaBIOS boots our sector from a virtio disk, and INT 13h reads and writes it."""

import struct

from guestlib import Bench, fail


def check_description(sector):
    """The fixed ACPI description as the firmware placed it: complete, and with pointers."""
    signature, length = struct.unpack_from("<4sI", sector)
    if signature != b"FACP" or length != 276 or sum(sector[:length]) % 256:
        fail(f"the firmware's FADT is {signature} of {length} bytes")
    facs, dsdt = struct.unpack_from("<II", sector, 36)
    wide, = struct.unpack_from("<Q", sector, 140)
    control, = struct.unpack_from("<I", sector, 64)
    if not facs or facs % 64 or not dsdt or wide != dsdt or control != 0x604:
        fail(f"FADT: FACS {facs:#x}, DSDT {dsdt:#x} and {wide:#x}, PM1a control {control:#x}")


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
        for bus in ("virtio-pci", "virtio-mmio"):
            boot_from(bench, bus, start, boot + from_host)


def boot_from(bench, bus, start, head):
    disk, log = bench.path("disk.qcow2"), bench.path("bios.log")
    bench.img("convert", "-f", "raw", "-O", "qcow2", start, disk)
    console, _ = bench.run_guest("--memory", "64M", "--disk", f"{disk},format=qcow2,bus={bus}",
                                 "--debug-log", log)
    if "BIOS PASS" not in console or "FAIL" in console:
        with open(log, encoding="latin-1") as file:
            print(file.read())
        fail("the boot sector did not pass")
    bench.check_image(disk)
    with open(bench.raw_copies(disk), "rb") as file:
        content = file.read()
    expected = bytearray(head)
    expected += bytes((8 << 20) - len(expected))
    expected[100 * 512:108 * 512] = head[512:]
    expected[200 * 512:216 * 512] = b"\xa5\x5a" * (16 * 256)
    expected[300 * 512:301 * 512] = content[300 * 512:301 * 512]
    check_description(content[300 * 512:301 * 512])
    if content != bytes(expected):
        fail("the disk is not what the boot sector should have made of it")


main()
