"""Runs the same command lines with `platter` (called as qemu-img) and with qemu-img, each in a
directory of its own, and compares what they print, how they exit, and what images they leave.

A case is a list of steps. A step is a list of words for the image tool; a step that begins with
"io" is given to qemu-io, one that begins with "sh" to a shell, and one that begins with "peer" is
run with qemu-img on both sides, one that begins with "ours" with `platter` on both: these only set the
stage, as does "both", which is for `platter io` on the one side and qemu-io on the other. "marks" compares what bitmaps hold
(bitmap_marks.py). "shell" gives one line of arguments to the image tool through a shell. "limit" before
a step's words runs it where files may not grow beyond 512,000 bytes.

Alone, for a `platter` that a sanitizer watches: of every second case each step runs once, with `platter`
where it is compared otherwise, and what must hold is that no sanitizer has anything to say and nothing dies
or hangs. PLATTER_SEED (default 0), odd or even: which of two cases.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

OURS, THEIRS = 0, 1
REPORTED = 99  # exit code of a program about which a sanitizer had something to say


class Harness:
    def __init__(self, platter, words, alone=False):
        self.words = words  # only cases whose name contains one of these
        self.alone = alone
        self.seed = int(os.environ.get("PLATTER_SEED") or 0)
        self.seen = 0
        if alone:
            for sanitizer in ("ASAN", "UBSAN", "TSAN"):
                os.environ[sanitizer + "_OPTIONS"] = f"exitcode={REPORTED}"
        self.peer = shutil.which("qemu-img")
        self.peer_io = shutil.which("qemu-io")
        if not self.peer or not self.peer_io:
            print("qemu-img and qemu-io (Debian package qemu-utils) are missing: nothing to compare with")
            sys.exit(77)
        self.root = tempfile.mkdtemp(prefix="platter-img-")
        self.platter = os.path.abspath(platter)
        self.ours = os.path.join(self.root, "qemu-img")
        os.symlink(os.path.abspath(platter), self.ours)
        self.cases = self.pairs = self.images = 0
        self.failures = []
        self.lock = Lock()
        self.pool = ThreadPoolExecutor(max_workers=os.cpu_count())
        self.running = []

    def close(self):
        shutil.rmtree(self.root, ignore_errors=True)

    # What may differ between two runs a moment apart, or between two files of the same contents.
    @staticmethod
    def normal(text, directory):
        text = text.replace(directory, "DIR")
        # (qemu-img says it twice when the file below is what could not be opened.)
        text = re.sub(r"(Could not open '[^']*': )\1", r"\1", text)
        text = re.sub(r"disk size: (?!0 B)[\d.]+ [KMGTPE]?i?B", "disk size: N", text)
        text = re.sub(r"/dev/loop\d+", "/dev/loopN", text)
        text = re.sub(r'"actual-size": [1-9]\d*', '"actual-size": N', text)
        text = re.sub(r'"date-(n?)sec": \d+', r'"date-\1sec": N', text)
        text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE", text)
        text = re.sub(r"Run completed in \d+\.\d{3} seconds\.", "Run completed.", text)
        text = re.sub(r"#block\d+", "#block", text)
        # Of a LUKS image: what is random, and what was measured.
        text = re.sub(r'"(iters|master-key-iters)": \d+', r'"\1": N', text)
        text = re.sub(r"(iters): \d+", r"\1: N", text)
        text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", text)
        text = re.sub(r"qemu-img version .*\n(Copyright.*\n)?", "VERSION\n", text)
        return text

    # Whether `ours` says in one line, which may begin with a file's name, what `theirs` says.
    @staticmethod
    def in_one_line(ours, theirs, step):
        # (Both may have warned of something before.)
        ours, theirs = ours.splitlines(), theirs.splitlines()
        while ours and theirs and ours[0] == theirs[0]:
            del ours[0], theirs[0]
        if len(ours) != 1 or not theirs:
            return False
        rest = ours[0]
        for line in theirs:
            line = line.removeprefix("qemu-img: ").rstrip(".")
            if line not in rest:
                return False
            rest = rest.replace(line, "", 1)
        rest = rest.removeprefix("qemu-img: ")
        name = re.match(r"([^ ]*|json:.*|'.*'): ", rest)
        if name and any(name[1] in word for word in step):
            rest = rest[name.end():]
        return not rest.strip(" :.;")

    def run(self, side, step, directory):
        stage = step[0] if step else ""
        if stage == "sh":
            command = ["sh", "-c", step[1]]
        elif stage == "io":
            command = [self.peer_io] + step[1:]
        elif stage == "ours":
            command = [self.ours] + step[1:]
        elif stage == "peer":
            command = [self.peer] + step[1:]
        elif stage == "both":
            command = ([self.platter, "io"] if side == OURS else [self.peer_io]) + step[1:]
        elif stage == "marks":
            command = [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                                    "bitmap_marks.py")] + step[1:]
        elif stage == "limit":
            command = ["sh", "-c", 'ulimit -f 1000; exec "$0" "$@"',
                       self.ours if side == OURS else self.peer] + step[1:]
        elif stage == "shell":
            command = ["sh", "-c", "exec $0 " + step[1], self.ours if side == OURS else self.peer]
        else:
            command = [self.ours if side == OURS else self.peer] + step
        try:
            # QEMU gives up on LUKS when the clock tells it that no time has passed: then again.
            for _ in range(100):
                done = subprocess.run(command, cwd=directory, capture_output=True, timeout=120,
                                      stdin=subprocess.DEVNULL)
                if b"Unable to get accurate CPU usage" not in done.stderr:
                    break
        except subprocess.TimeoutExpired:
            return (-1, "", "no end within 120 seconds")
        return (done.returncode, done.stdout.decode(errors="replace"),
                done.stderr.decode(errors="replace"))

    def wanted(self, name):
        return not self.words or any(word in name for word in self.words)

    def fail(self, name, what):
        with self.lock:
            self.failures.append(name)
            print(f"FAILED {name}: {what}")

    def count(self, **counts):
        with self.lock:
            for what, number in counts.items():
                setattr(self, what, getattr(self, what) + number)

    def case(self, name, steps, images=(), errors="exact", outputs="exact"):
        """images: (file, format) that must show the same and pass a check afterwards.
        errors: "exact": the same words, ours in one line that may name the file too; or "any": both
        print something, or both nothing.
        outputs: "exact", or "skip"."""
        if not self.wanted(name):
            return
        self.seen += 1
        if self.alone and (self.seen + self.seed) % 2 != 0:
            return
        self.cases += 1
        self.running.append(
            self.pool.submit(self.run_case, self.cases, name, steps, images, errors, outputs))

    def run_case(self, number, name, steps, images, errors, outputs):
        directories = []
        if self.alone:
            return self.run_alone(number, name, steps)
        for side in ("ours", "theirs"):
            directory = os.path.join(self.root, f"{number}-{side}")
            os.mkdir(directory)
            directories.append(directory)
        for step in steps:
            results = [self.run(side, step, directories[side]) for side in (OURS, THEIRS)]
            if step[:1] and step[0] in ("sh", "io", "peer", "ours", "both"):
                for result in results:
                    if result[0] != 0:
                        self.fail(name, f"{step} exits {result[0]}: {result[2]}")
                continue
            self.count(pairs=1)
            ours, theirs = ([result[0]] + [self.normal(text, directories[side]) for text in result[1:]]
                            for side, result in enumerate(results))
            if errors == "any":
                ours[2], theirs[2] = bool(ours[2]), bool(theirs[2])
            if outputs == "skip":
                ours[1] = theirs[1] = ""
            if errors == "exact" and self.in_one_line(ours[2], theirs[2], step):
                ours[2] = theirs[2]
            if ours != theirs:
                # The part around the first difference.
                both = str(ours), str(theirs)
                at = len(os.path.commonprefix(both))
                a, b = (text[max(0, at - 200):at + 200] for text in both)
                self.fail(name, f"{' '.join(step)}\n  ours   {a}\n  theirs {b}")
        for image, kind in images:
            self.compare_images(name, image, kind, directories)
        for directory in directories:
            shutil.rmtree(directory)

    def run_alone(self, number, name, steps):
        directory = os.path.join(self.root, str(number))
        os.mkdir(directory)
        for step in steps:
            if step[:1] == ["marks"]:
                continue
            status, _, errors = self.run(OURS, step, directory)
            self.count(pairs=1)
            # (qemu-io's status is left to the comparison, where "abort" is meant to end it.)
            if status == REPORTED or "Sanitizer" in errors or "runtime error: " in errors or (
                    status < 0 and step[:1] not in (["io"], ["sh"], ["peer"])):
                self.fail(name, f"{' '.join(step)} ends with {status}: {errors}")
        shutil.rmtree(directory)

    def compare_images(self, name, image, kind, directories):
        self.count(images=1)
        paths = [os.path.join(directory, image) for directory in directories]
        same = subprocess.run([self.peer, "compare", "-f", kind, "-F", kind] + paths,
                              capture_output=True)
        if same.returncode != 0:
            self.fail(name, f"{image} differs: {same.stdout.decode()}{same.stderr.decode()}")
        if kind == "qcow2":
            check = subprocess.run([self.peer, "check", "-f", kind, paths[OURS]], capture_output=True)
            if check.returncode != 0:
                self.fail(name, f"{image} fails the check: {check.stdout.decode()}{check.stderr.decode()}")

    def finish(self):
        for case in self.running:
            case.result()
        what = (f"every second one, PLATTER_SEED={self.seed}, {self.pairs} commands, of which only sanitizers' "
                "reports count" if self.alone else
                f"{self.pairs} pairs of commands, {self.images} pairs of images")
        print(f"{self.cases} cases, {what}: {len(set(self.failures))} cases failed")
        return 1 if self.failures else 0
