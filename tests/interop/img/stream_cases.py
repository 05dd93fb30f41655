"""`platter img stream`, which qemu-img does not have: what QEMU's tools say of its result. And long
work that a signal ends: what is left, and how the process ends.
"""
import os
import signal
import subprocess
import tempfile

CHAINS = ["", "compat=0.10", "cluster_size=4k", "cluster_size=2M", "extended_l2=on",
          "lazy_refcounts=on", "refcount_bits=64"]


class Stage:
    """A directory with commands of both sides."""

    def __init__(self, h, name):
        self.h, self.name = h, name
        self.path = tempfile.mkdtemp(dir=h.root)

    def call(self, *words, status=0):
        done = subprocess.run(words, cwd=self.path, capture_output=True, timeout=120,
                              stdin=subprocess.DEVNULL)
        if done.returncode != status:
            self.h.fail(self.name, f"{words} exits {done.returncode}: {done.stderr.decode()}")
        return done

    def peer(self, *words, status=0):
        return self.call(self.h.peer, *words, status=status)

    def ours(self, *words, status=0):
        return self.call(self.h.ours, *words, status=status)

    def io(self, image, *commands):
        self.call(self.h.peer_io, *(word for command in commands for word in ("-c", command)), image)

    def expect(self, what, ours, theirs):
        if ours != theirs:
            self.h.fail(self.name, f"{what}: {ours!r}, not {theirs!r}")

    def backing(self, image):
        text = self.peer("info", "-U", image).stdout.decode()
        return [line.split(": ", 1)[1] for line in text.splitlines() if line.startswith("backing file:")]


def chain(stage, options):
    """base (raw) <- low <- middle <- top; `before` holds what top shows."""
    extra = ["-o", options] if options else []
    stage.peer("create", "-q", "-f", "raw", "base", "9M")
    stage.call(stage.h.peer_io, "-f", "raw", "-c", "write -P 1 0 8M", "base")
    for name, below, kind in (("low", "base", "raw"), ("middle", "low", "qcow2"), ("top", "middle", "qcow2")):
        stage.peer("create", "-q", "-f", "qcow2", *extra, "-b", below, "-F", kind, name, "10M")
    stage.io("low", "write -P 2 1M 300k", "write -z 4M 200k")
    stage.io("middle", "write -P 3 1200k 5k", "write -z 5000k 100k", "write -P 3 9900k 100k")
    stage.io("top", "write -P 4 1111k 3k", "write -z 2M 64k", "write -P 4 6M 1M")
    stage.peer("convert", "-O", "raw", "top", "before")


def after(stage, image="top"):
    stage.peer("compare", image, "before")
    stage.peer("check", image)


def streamed(h, options):
    stage = Stage(h, f"stream {options}")
    chain(stage, options)
    for words, backing in ((["-b", "low", "top"], ["low (actual path: low)"]), (["-p", "top"], [])):
        done = stage.ours("stream", *words)
        stage.expect("error output", done.stderr, b"")
        stage.expect("end of output", done.stdout.decode().endswith("Image streamed.\n"), True)
        if "-p" in words:
            stage.expect("progress", done.stdout.startswith(b"    (0.00/100%)\r"), True)
            stage.expect("progress", b"    (100.00/100%)\r\n" in done.stdout, True)
        stage.expect("backing file", [line.split(" (")[0] for line in stage.backing("top")],
                     [line.split(" (")[0] for line in backing])
        after(stage)
    for name in ("low", "middle", "base"):
        os.remove(os.path.join(stage.path, name))
    after(stage)
    stage.expect("no output", stage.ours("stream", "-q", "top").stdout, b"")


def elsewhere(h):
    """Images in several directories: the new reference leads to the same file."""
    stage = Stage(h, "stream elsewhere")
    for directory in ("one", "two"):
        os.mkdir(os.path.join(stage.path, directory))
    stage.peer("create", "-q", "-f", "qcow2", "one/base", "4M")
    stage.io("one/base", "write -P 1 0 4M")
    stage.peer("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "one/middle")
    stage.io("one/middle", "write -P 2 1M 1M")
    stage.peer("create", "-q", "-f", "qcow2", "-b", "../one/middle", "-F", "qcow2", "two/top")
    stage.peer("convert", "-O", "raw", "two/top", "before")
    stage.ours("stream", "-q", "-b", "base", "two/top")
    after(stage, "two/top")
    stage.expect("backing file", len(stage.backing("two/top")), 1)
    os.remove(os.path.join(stage.path, "one/middle"))
    after(stage, "two/top")


def refused(h):
    stage = Stage(h, "stream refused")
    chain(stage, "")
    for words, text in ((["-b", "nobody", "top"], "Did not find 'nobody' in the backing chain of 'top'"),
                        (["absent"], "Could not open 'absent': No such file or directory"),
                        ([], "Expecting one image file name")):
        done = stage.ours("stream", *words, status=1)
        stage.expect("error", text in done.stderr.decode(), True)
    stage.peer("snapshot", "-c", "s", "top")
    done = stage.ours("stream", "top", status=1)
    stage.expect("error", "internal snapshots" in done.stderr.decode(), True)
    stage.expect("backing file", len(stage.backing("top")), 1)
    after(stage)


def interrupted(h, number, words, name, left):
    """Sends the signal as soon as the work has begun, as its progress shows."""
    stage = Stage(h, f"signal {name} {number}")
    chain(stage, "")
    with subprocess.Popen([h.ours, *words], cwd=stage.path, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        line = b""
        while not line.endswith(b"%)\r") or b"(0.00/" in line:
            byte = process.stdout.read(1)
            if not byte:
                break
            line = byte if line.endswith(b"\r") else line + byte
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        stage.expect("end", process.returncode, -number)
    stage.expect("error", f"{name} cancelled: " in errors.decode(), True)
    for image in ("low", "middle", "top"):
        stage.peer("check", image)
    if name != "commit":
        stage.expect("backing file", len(stage.backing("top")), 1)
    after(stage)
    stage.expect("target", os.path.exists(os.path.join(stage.path, "out")), left)


def asked(h):
    """SIGUSR1 without -p: a line of progress."""
    stage = Stage(h, "signal SIGUSR1")
    chain(stage, "")
    command = [h.ours, "convert", "-r", "2M", "-O", "raw", "top", "out"]
    with subprocess.Popen(command, cwd=stage.path, stderr=subprocess.PIPE) as process:
        line = b""
        # Before the tool is ready for it the signal would kill it: its target shows that it is.
        while not os.path.exists(os.path.join(stage.path, "out")) and process.poll() is None:
            pass
        process.send_signal(signal.SIGUSR1)
        line = process.stderr.readline()
        process.terminate()
        process.communicate(timeout=60)
    stage.expect("progress", line.startswith(b"    (") and line.endswith(b"/100%)\n"), True)


def run(h):
    for options in CHAINS:
        if h.wanted(f"stream {options}"):
            h.running.append(h.pool.submit(streamed, h, options))
    single = [(elsewhere, ()), (refused, ()), (asked, ())]
    slow = ["-p", "-r", "2M"]
    for number in (signal.SIGINT, signal.SIGTERM):
        single += [(interrupted, (number, ["convert", *slow, "-O", "qcow2", "top", "out"], "convert", False)),
                   (interrupted, (number, ["commit", *slow, "top"], "commit", False)),
                   (interrupted, (number, ["stream", *slow, "top"], "stream", False))]
    for work, arguments in single:
        if h.wanted("stream") or h.wanted("signal"):
            h.running.append(h.pool.submit(work, h, *arguments))
