#!/usr/bin/env python3
"""No /dev/kvm, one that is something else, one that may not be opened: one plain line each."""

import errno
import os
import subprocess
import sys

from guestlib import SKIP, Bench, fail


def main():
    with Bench("--guest", needs_kvm=False) as bench:
        private = ["unshare", "--mount"] + (["--user", "--map-root-user"] if os.geteuid() else [])
        allowed = subprocess.run(private + ["mount", "-t", "tmpfs", "none", "/mnt"], check=False,
                                 capture_output=True, text=True)
        if allowed.returncode:
            print("SKIPPED: this machine has no private mounts: " + allowed.stderr.strip())
            sys.exit(SKIP)
        for prepare, words in (
                (":", ("could not open '/dev/kvm'", "No such file", "kvm module")),
                (": >/dev/kvm", ("'/dev/kvm' is not a KVM device",)),
                ("ln -s kvm /dev/kvm", ("could not open '/dev/kvm'", os.strerror(errno.ELOOP)))):
            script = f'mount -t tmpfs none /dev && {prepare} && exec "$@"'
            for command in ([bench.platter, "run", "--kernel", bench.options.guest],
                            [bench.platter, "run", "--probe"]):
                done = subprocess.run(private + ["sh", "-c", script, "sh"] + command, check=False,
                                      stdin=subprocess.DEVNULL, capture_output=True, text=True)
                print(done.stderr, end="", flush=True)
                if done.returncode != 1 or len(done.stderr.splitlines()) != 1:
                    fail(f"{prepare}: exit code {done.returncode}: {done.stderr}")
                for word in words:
                    if word not in done.stderr:
                        fail(f"{prepare}: the message lacks '{word}': {done.stderr}")


main()
