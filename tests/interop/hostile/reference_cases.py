"""Images that refer to what they should not (R: references, I: parsing)."""
import json
import os
import socket
import struct

from harness import case, done, peer, platter, poke, refused, secret, Watch, with_data_file


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
