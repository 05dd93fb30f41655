"""What the guest tests share: where things are, running a machine, checking images."""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

SKIP = 77


def fail(message):
    print("FAILED: " + message, flush=True)
    sys.exit(1)


class Bench:
    """A test's tools and its scratch directory, removed at the end."""

    def __init__(self, *arguments, needs_kvm=True):
        parser = argparse.ArgumentParser()
        parser.add_argument("--platter", required=True)
        for argument in arguments:
            parser.add_argument(argument)
        self.options = parser.parse_args()
        self.platter = self.options.platter
        if needs_kvm and not os.path.exists("/dev/kvm"):
            print("SKIPPED: this machine has no /dev/kvm")
            sys.exit(SKIP)
        self.directory = tempfile.mkdtemp(prefix="platter-guest-")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.directory)

    def path(self, name):
        return os.path.join(self.directory, name)

    def call(self, *command, accept=(0,), **keywords):
        """Runs a command to its end and gives its standard output."""
        done = subprocess.run(command, capture_output=True, text=True, check=False, **keywords)
        if done.returncode not in accept:
            fail(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def img(self, *arguments, **keywords):
        return self.call(self.platter, "img", *arguments, **keywords)

    def probe(self):
        return json.loads(self.call(self.platter, "run", "--probe", "--json"))

    def run_guest(self, *arguments, timeout=550, expect=0, stdin=subprocess.DEVNULL,
                  quiet=False):
        """Runs a machine to its end; gives what it said on the console."""
        command = [self.platter, "run", *arguments]
        print("+ " + " ".join(command), flush=True)
        start = time.monotonic()
        try:
            done = subprocess.run(command, stdin=stdin, capture_output=True, timeout=timeout,
                                  check=False)
        except subprocess.TimeoutExpired as late:
            fail(f"the guest took more than {timeout} s; it said:\n"
                 + (late.stdout or b"").decode(errors="replace"))
        console = done.stdout.decode(errors="replace")
        print(("" if quiet else console) + done.stderr.decode(errors="replace"), end="", flush=True)
        print(f"-- {time.monotonic() - start:.1f} s, exit code {done.returncode}", flush=True)
        if done.returncode != expect:
            fail(f"exit code {done.returncode} instead of {expect}")
        return console, done.stderr.decode(errors="replace")

    def check_image(self, name, image_format="qcow2"):
        """Both checkers find nothing."""
        self.img("check", "-q", "-f", image_format, name)
        self.call("qemu-img", "check", "-q", "-f", image_format, name)

    def raw_copies(self, name, image_format="qcow2"):
        """The image as raw files, once by our convert and once by QEMU's; they are the same."""
        ours, theirs = self.path("ours.raw"), self.path("theirs.raw")
        self.img("convert", "-f", image_format, "-O", "raw", name, ours)
        self.call("qemu-img", "convert", "-f", image_format, "-O", "raw", name, theirs)
        if digest(ours) != digest(theirs):
            fail(f"{name} reads differently with platter img and qemu-img")
        return ours


def digest(name):
    value = hashlib.sha256()
    with open(name, "rb") as file:
        while chunk := file.read(1 << 20):
            value.update(chunk)
    return value.hexdigest()
