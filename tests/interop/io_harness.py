"""Runs one script with `platter io` and with qemu-io, on equal images, and tells what differs.

Timings are blanked out before comparing.
"""
import os
import re
import signal
import subprocess

STATISTICS = re.compile(r"ops; .* ops/sec\)")
MACHINE = re.compile(r"^(\d+,1),\d+:\d\d:\d\d\.\d\d,\d+\.\d{3},\d+\.\d{3}$", re.M)
TIME = re.compile(r"1 ops; (\d\d\.\d\d sec|\d+:\d\d:\d\d\.\d\d) \((\d[\d.e+]*) ?(bytes|[KMGTPE]iB)?/sec and \d+\.\d{4} ops/sec\)")
RANDOM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|iters: \d+")  # of LUKS
NODE = re.compile(r"#block\d+|node '[^']*'")


class Case:
    """One script, run on fresh images. `setup` gives image name -> qemu-img create arguments."""

    def __init__(self, name, commands, image="disk", fmt="qcow2", size="4M", options=(), setup=(),
                 stdin=None, stderr=True, unordered=False, create="", readable=True, together=False):
        self.name = name
        self.commands = commands
        self.image = image
        self.fmt = fmt
        self.size = size
        self.options = list(options)
        self.setup = list(setup)
        self.stdin = stdin
        self.stderr = stderr and not together
        self.unordered = unordered
        self.create = create
        self.together = together  # what is printed and what is complained of, in one stream
        self.readable = readable  # without more ado, to compare the images


def normalise(text, unordered):
    text = MACHINE.sub(r"\1,TIME", STATISTICS.sub("ops; TIME", text))
    text = RANDOM.sub("RANDOM", NODE.sub("NODE", text))
    lines = text.splitlines()
    return sorted(lines) if unordered else lines


def prepare(case, directory):
    os.makedirs(directory)
    for arguments in case.setup:
        subprocess.run(arguments, cwd=directory, check=True, stdout=subprocess.DEVNULL)
    path = os.path.join(directory, "disk")
    if case.fmt and not os.path.exists(path):
        command = ["qemu-img", "create", "-q", "-f", case.fmt]
        if case.create:
            command += ["-o", case.create]
        subprocess.run(command + ["disk", case.size], cwd=directory, check=True)


def run(program, case, directory):
    command = [program] + case.options
    if case.fmt and "--image-opts" not in case.options and "-f" not in case.options:
        command += ["-f", case.fmt]
    for line in case.commands:
        command += ["-c", line]
    if case.image:
        command.append(case.image)
    done = subprocess.run(command, cwd=directory, input=case.stdin, stdout=subprocess.PIPE, timeout=30,
                          stderr=subprocess.STDOUT if case.together else subprocess.PIPE, text=True, errors="replace")
    return done


def differences(case, ours, theirs):
    found = []
    if ours.returncode != theirs.returncode:
        found.append(f"exit status {ours.returncode}, qemu-io has {theirs.returncode}")
    for stream in ("stdout", "stderr"):
        if stream == "stderr" and not case.stderr:
            continue
        mine = normalise(getattr(ours, stream), case.unordered)
        other = normalise(getattr(theirs, stream), case.unordered)
        if mine != other:
            at = next((i for i, (a, b) in enumerate(zip(mine, other)) if a != b), min(len(mine), len(other)))
            found.append(f"{stream} differs in line {at + 1}:\n      ours: {mine[at:at + 3]}\n"
                         f"    theirs: {other[at:at + 3]}")
    for line in ours.stdout.splitlines():
        if " ops; " in line and not TIME.search(line):
            found.append(f"statistics are not of the usual form: {line}")
    return found


def images(case, directory):
    """What to tell qemu-img of the image in that directory."""
    text = f"driver={case.fmt},file.filename={os.path.join(directory, 'disk')}"
    if "data_file=" in case.create:
        text += f",data-file.filename={os.path.join(directory, 'data')}"
    return text


def compare_images(case, ours, theirs):
    if not case.fmt or not case.readable:
        return []
    def img(*command):
        done = subprocess.run(["qemu-img", *command], capture_output=True, text=True)
        return done.returncode, (done.stdout + done.stderr).strip()

    found = []
    status, text = img("compare", "--image-opts", images(case, ours), images(case, theirs))
    if status != 0:
        found.append(f"images: {text}")
    if case.fmt == "qcow2":
        status, text = img("check", "--image-opts", images(case, ours))
        # (Space that QEMU loses, too, is no difference.)
        if status != 0 and status != img("check", "--image-opts", images(case, theirs))[0]:
            found.append(f"check: {text}")
    return found


def examine(case, program, work):
    """What differs between the two tools, as lines of text; nothing if all is alike."""
    ours = os.path.join(work, "ours")
    theirs = os.path.join(work, "theirs")
    prepare(case, ours)
    prepare(case, theirs)
    try:
        mine, other = run(program, case, ours), run("qemu-io", case, theirs)
        if other.returncode == -signal.SIGABRT and "abort" not in case.commands:
            return []  # an assertion of its own
        found = differences(case, mine, other)
    except subprocess.TimeoutExpired as expired:
        return [f"timeout: {expired.cmd[0]}"]
    return found or compare_images(case, ours, theirs)
