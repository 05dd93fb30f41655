#!/usr/bin/env python3
"""Every way a machine can end: exit code, message, disks closed; and starts that fail."""

import errno
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import time

from guestlib import Bench, fail


def ended(bench, letter, code, *words, arguments=()):
    _, errors = bench.run_guest("--kernel", bench.options.guest, "--memory", "16M", "--append",
                                letter, *arguments, expect=code)
    for word in words:
        if word not in errors:
            fail(f"the message lacks '{word}'")


def refused(bench, *arguments, words):
    _, errors = bench.run_guest(*arguments, expect=1)
    if len(errors.strip().splitlines()) > 2:
        fail("the message has more than two lines")
    for word in words:
        if word not in errors:
            fail(f"the message lacks '{word}'")


def wait_until_ready(read):
    text = b""
    while b"ready" not in text or not text.endswith(b"\n"):
        piece = read()
        if not piece:
            fail(f"the guest ended before it was ready: {text}")
        text += piece


def by_signal(bench, number, code):
    disk = bench.path("signal.qcow2")
    bench.img("create", "-q", "-f", "qcow2", disk, "1M")
    process = subprocess.Popen([bench.platter, "run", "--kernel", bench.options.guest, "--memory",
                                "16M", "--append", "h", "--disk", disk + ",format=qcow2"],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    wait_until_ready(lambda: os.read(process.stdout.fileno(), 100))
    process.send_signal(number)
    if process.wait(300) != code:
        fail(f"signal {number}: exit code {process.returncode} instead of {code}")
    process.stdout.close()
    bench.check_image(disk)


def wait_for_system_calls(process, *numbers):
    """Waits, but not for ever, until threads of the process are in each of these system calls."""
    deadline = time.monotonic() + 20
    missing = set(numbers)
    while missing and time.monotonic() < deadline:
        missing = set(numbers)
        for thread in os.listdir(f"/proc/{process.pid}/task"):
            try:
                with open(f"/proc/{process.pid}/task/{thread}/syscall", encoding="ascii") as file:
                    missing.discard(file.read().split()[0])
            except OSError:
                pass
        time.sleep(0.01)
    if missing:
        print(f"-- no thread was seen in system call {missing}", flush=True)


def by_signal_with_full_output(bench, cpus, letter):
    """A reader that does not read blocks the guest, but not the end: neither the processor that
    writes, nor another one that waits for it."""
    process = subprocess.Popen([bench.platter, "run", "--kernel", bench.options.guest, "--memory",
                                "16M", "--cpus", str(cpus), "--append", letter],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    # Single bytes fill a pipe that nobody has read from to the last one, so it is known when the next
    # one has to wait.
    output = process.stdout.fileno()
    capacity = fcntl.fcntl(output, fcntl.F_GETPIPE_SZ)
    deadline = time.monotonic() + 300
    while struct.unpack("i", fcntl.ioctl(output, termios.FIONREAD, b"    "))[0] < capacity:
        if process.poll() is not None or time.monotonic() > deadline:
            fail("the guest did not fill the pipe")
        time.sleep(0.01)
    process.stdin.write(b"some input")
    process.stdin.flush()
    write_call, futex_call = "1", "202"
    wait_for_system_calls(process, *(write_call, futex_call)[:cpus])
    process.send_signal(signal.SIGTERM)
    try:
        if process.wait(60) != 143:
            fail(f"SIGTERM with full output: exit code {process.returncode}")
    except subprocess.TimeoutExpired:
        process.kill()
        fail(f"SIGTERM with full output and {cpus} processors did not end the machine")
    if os.read(output, 7) != b"ready\nf":
        fail("the output does not begin as it should")
    process.stdin.close()
    process.stdout.close()


def by_keys(bench):
    """Ctrl-A X on a terminal; other bytes after Ctrl-A reach the guest."""
    process, terminal = pty.fork()
    if process == 0:
        os.execv(bench.platter, [bench.platter, "run", "--kernel", bench.options.guest, "--memory",
                                 "16M", "--append", "i"])
    wait_until_ready(lambda: os.read(terminal, 100))
    os.write(terminal, b"a\x01\x01b")
    text = b""
    while b"b" not in text:
        text += os.read(terminal, 100)
    if text != b"a\x01b":
        fail(f"the guest echoed {text}")
    os.write(terminal, b"\x01x")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            if os.waitstatus_to_exitcode(status) != 0:
                fail(f"Ctrl-A X: exit code {os.waitstatus_to_exitcode(status)}")
            os.close(terminal)
            return
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    fail("Ctrl-A X did not end the machine")


def by_kernel_formats(bench):
    """bzImage at its 64-bit and its 32-bit entry, and PVH, each with command line and initrd; the
    zero page leads to the ACPI tables (the bare guest looks at PVH's start info)."""
    initrd = bench.path("initrd")
    with open(initrd, "wb") as file:
        file.write(b"the initrd\n" * 1000)
    narrow = bench.path("bzimage32")
    with open(bench.options.bzimage, "rb") as file:
        image = bytearray(file.read())
    image[0x236] = 0  # no 64-bit entry
    with open(narrow, "wb") as file:
        file.write(image)
    for kernel, words in ((bench.options.bzimage, "entry 64: "), (narrow, "entry 32: ")):
        console, _ = bench.run_guest("--kernel", kernel, "--memory", "16M", "--initrd", initrd,
                                     "--append", "some words\n", quiet=True)
        if console != words + "RSD PTR some words\n" + "the initrd\n" * 1000:
            fail(f"the kernel said {console[:100]!r}")
    console, _ = bench.run_guest("--kernel", bench.options.guest, "--memory", "16M", "--initrd",
                                 initrd, "--append", "m", quiet=True)
    if console != "ready\n" + "the initrd\n" * 1000:
        fail(f"the PVH kernel said {console[:100]!r}")
    refused(bench, "--kernel", bench.options.bzimage, "--append", "x" * 256,
            words=["command line has 256 bytes, and at most 255 fit"])
    huge = bench.path("huge")
    with open(huge, "wb") as file:
        file.truncate(64 << 20)
    refused(bench, "--kernel", bench.options.bzimage, "--memory", "16M", "--initrd", huge,
            words=["do not fit"])


def with_disks(bench):
    """Power-off and reset leave disks clean; a disk that cannot be flushed is told."""
    disk = bench.path("end.qcow2")
    bench.img("create", "-q", "-f", "qcow2", disk, "1M")
    for letter in ("o", "r"):
        ended(bench, letter, 0, arguments=("--disk", disk + ",format=qcow2"))
        bench.check_image(disk)
    broken = bench.path("broken.raw")
    with open(broken, "wb") as file:
        file.truncate(1 << 20)
    node = {"driver": "raw", "file": {
        "driver": "blkdebug", "image": {"driver": "file", "filename": broken},
        "inject-error": [{"event": "none", "iotype": "flush", "errno": errno.ENOSPC}]}}
    ended(bench, "o", 4, "could not flush", "broken.raw", os.strerror(errno.ENOSPC),
          arguments=("--disk", "json:" + json.dumps(node).replace(",", ",,")))


def open_files(process):
    files = {}
    for number in os.listdir(f"/proc/{process}/fd"):
        try:
            files[number] = os.readlink(f"/proc/{process}/fd/{number}")
        except OSError:
            pass  # closed meanwhile
    return files


def standard_files(bench):
    """Answers that cannot be written are told; files that are closed at the start are not replaced by
    the machine's own."""
    for arguments in (["--probe"], ["--probe", "--json"], ["--help"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([bench.platter, "run", *arguments], stdout=full, check=False,
                                  stderr=subprocess.PIPE, text=True)
        if done.returncode != 1 or os.strerror(errno.ENOSPC) not in done.stderr:
            fail(f"{arguments} to /dev/full: exit code {done.returncode}, {done.stderr!r}")
    process = subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", bench.platter, "run",
                                "--kernel", bench.options.guest, "--memory", "16M", "--append", "h"])
    files = {}
    deadline = time.monotonic() + 300
    while not any("kvm-vcpu" in name for name in files.values()):
        if process.poll() is not None or time.monotonic() > deadline:
            fail("a machine with closed standard files did not start")
        files = open_files(process.pid)
    process.send_signal(signal.SIGTERM)
    if process.wait(300) != 143:
        fail(f"closed standard files: exit code {process.returncode}")
    if [files.get(number) for number in "012"] != ["/dev/null"] * 3:
        fail(f"what was opened took the place of closed standard files: {files}")
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", bench.platter, "img", "info",
                           bench.options.guest], check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode != 1 or os.strerror(errno.EBADF) not in done.stderr:
        fail(f"closed standard output: exit code {done.returncode}, {done.stderr!r}")


def without_threads(bench):
    """A process whose address space has no room for the stack of another thread says so."""
    limits = ["prlimit", f"--stack={1 << 30}"]
    if subprocess.run([*limits, f"--as={2 << 30}", bench.platter, "--version"],
                      capture_output=True, check=False).returncode != 0:
        print("-- a build with sanitizers needs all address space: no threads were refused")
        return
    # One thread serves the disks; the next ones are the processors'.
    for cpu in range(2):
        command = [*limits, f"--as={(2 + cpu) << 30}", bench.platter, "run", "--kernel",
                   bench.options.guest, "--memory", "16M", "--append", "h", "--cpus", "2"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=300, check=False)
        if (done.returncode != 3
                or f"could not start the thread of virtual CPU {cpu}:" not in done.stderr):
            fail(f"without threads: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def main():
    with Bench("--guest", "--bzimage") as bench:
        by_kernel_formats(bench)
        with_disks(bench)
        standard_files(bench)
        ended(bench, "t", 2, "triple fault", "rip=")
        ended(bench, "e", 3, "KVM cannot carry out an instruction", "dd 05 00 00 00 d8", "rip=")
        by_signal(bench, signal.SIGTERM, 143)
        by_signal(bench, signal.SIGINT, 130)
        by_signal(bench, signal.SIGHUP, 143)
        by_signal_with_full_output(bench, 1, "f")
        by_signal_with_full_output(bench, 2, "b")
        by_keys(bench)
        without_threads(bench)

        typed = b"hello\x01x" + b"more than the port keeps " * 2700 + b"q"
        with open(bench.path("input"), "wb") as file:
            file.write(typed)
        with open(bench.path("input"), "rb") as file:
            console, _ = bench.run_guest("--kernel", bench.options.guest, "--memory", "16M",
                                         "--append", "i", stdin=file, quiet=True)
        if console != "ready\n" + typed.decode():
            fail(f"piped input came back as {len(console)} bytes: {console[:100]!r}")
        log = bench.path("serial.log")
        bench.run_guest("--kernel", bench.options.guest, "--memory", "16M", "--append", "o",
                        "--serial", "file:" + log)
        with open(log, encoding="ascii") as file:
            if file.read() != "ready\n":
                fail("--serial file: did not get the console")

        missing = bench.path("missing")
        guest = bench.options.guest
        refused(bench, "--kernel", missing, words=["missing", "No such file"])
        refused(bench, "--kernel", guest, "--disk", missing + ",format=raw",
                words=["missing", "No such file"])
        refused(bench, "--kernel", guest, "--disk", "x,cache=fast", words=["cache=fast"])
        refused(bench, "--kernel", guest, "--disk", "driver=qcow2", words=["'driver=qcow2'"])
        refused(bench, "--kernel", guest, "--memory", "lots", words=["--memory lots"])
        refused(bench, "--kernel", guest, "--json", words=["--json", "--probe"])
        many = bench.path("many.raw")
        with open(many, "wb") as file:
            file.truncate(1 << 20)
        disks = ["--disk", many + ",format=raw,readonly=on"] * 32
        refused(bench, "--kernel", guest, *disks, words=["more than 31 virtio-pci disks"])
        refused(bench, "--firmware", guest, words=["firmware", guest])
        text = bench.path("text")
        with open(text, "w", encoding="ascii") as file:
            file.write("not a kernel\n")
        refused(bench, "--kernel", text, words=[text, "neither a Linux bzImage nor an ELF file"])


main()
