#!/usr/bin/env python3
"""tools/demo.sh with the build at hand: it ends well, and its output shows what it claims."""

import os
import re
import signal
import subprocess
import sys

from guestlib import SKIP, Bench, fail


def section(output, title):
    """What the demo printed in the step with this title."""
    # (A line that the packages' script prints begins with a small letter.)
    found = re.search(rf"^== {re.escape(title)}\n(.*?)(?=^== [A-Z]|\Z)", output,
                      re.MULTILINE | re.DOTALL)
    if not found:
        fail(f"the demo has no step '{title}'")
    return found.group(1)


def expect(output, title, *patterns):
    text = section(output, title)
    for pattern in patterns:
        if not re.search(pattern, text, re.MULTILINE):
            fail(f"the step '{title}' does not show {pattern!r}")


def main():
    with Bench("--source", "--build") as bench:
        source = bench.options.source
        setup = subprocess.run([os.path.join(source, "tools", "setup.sh"), "check"], check=False,
                               capture_output=True, text=True)
        if setup.returncode:  # a test installs nothing
            print("SKIPPED: " + setup.stdout.strip())
            sys.exit(SKIP)
        environment = dict(os.environ, PLATTER_BUILD=bench.options.build, TMPDIR=bench.directory)
        if environment.get("PLATTER_GUEST_KERNEL") == "debian":  # the demo chooses by the machine
            del environment["PLATTER_GUEST_KERNEL"]
        for up in ([".."], ["..", ".."]):
            kept = os.path.join(source, *up, "shared", "guests", "vmlinux.xz")
            if "PLATTER_GUEST_KERNEL" not in environment and os.path.exists(kept):
                environment["PLATTER_GUEST_KERNEL"] = kept
        # A session of its own, so that its guest can be ended along with it.
        demo = subprocess.Popen([os.path.join(source, "tools", "demo.sh")], env=environment,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            output, _ = demo.communicate(timeout=550)
        except subprocess.TimeoutExpired:
            os.killpg(demo.pid, signal.SIGTERM)
            output, _ = demo.communicate()
            print(output, flush=True)
            fail("the demo took more than 550 s")
        print(output, flush=True)
        if demo.returncode:
            fail(f"exit code {demo.returncode}")

        expect(output, "Installing what is missing", r"^== packages: all \d+ are installed$")
        expect(output, "Building", r"^   using the build in " + re.escape(bench.options.build))
        expect(output, "Taking a snapshot of it", r"^\d+ +installed ")
        linux = "a boot program under SeaBIOS" not in output
        boot = section(output, "Booting the guest from the clone (virtio-blk under KVM)")
        if linux:
            wanted = (r"guest: read /greeting: hello from the base image",
                      r"guest: wrote and synced /boots", r"guest:   boot 1\r?$", r"guest: done",
                      r"guest: (switching off|restarting)")
        else:
            wanted = (r"BIOS PASS",)
        for pattern in wanted:
            if not re.search(pattern, boot, re.MULTILINE):
                fail(f"the guest did not say {pattern!r}")
        # The clone has data of its own after the boot, and is sound.
        expect(output, "What the guest wrote is in the clone",
               r"^(0|0x[0-9a-f]+) +0x[0-9a-f]+ +0x[0-9a-f]+ +clone\.qcow2$",
               r"^No errors were found on the image\.$", r"^backing file: base\.qcow2")
        expect(output, "The base is unchanged",
               r"its checksum is the same as before: [0-9a-f]{64}$")
        # Different after the commit, the same again once the snapshot is back.
        expect(output, "A snapshot brings the old state back", r"^Content mismatch at offset \d+!$",
               r"^Images are identical\.$", r"^No errors were found on the image\.$")
        section(output, "Done")
        left = [name for name in os.listdir(bench.directory) if name.startswith("platter-demo")]
        if left:
            fail(f"the demo left {left} behind")


main()
