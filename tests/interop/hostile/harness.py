"""How the cases run commands, what they hold them to, and what several of them set up."""
import fcntl
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading

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
