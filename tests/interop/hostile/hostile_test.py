#!/usr/bin/env python3
"""Images that refer to what they should not, and images that want too much, as a whole command meets
them: what must not be opened is not opened, each command ends within a second of CPU time and 64 MiB
of memory beyond the file itself, and says in one line what is wrong. Names of cases: the numbers of
the project's list of hostile input (I: parsing, R: references, X: exhaustion).

    hostile_test.py BUILD/platter [--sanitized] [WORD...]     only cases whose name contains a WORD

--sanitized: a sanitizer watches, which takes time and memory of its own: the bounds are wider.
"""
import os
import shutil
import subprocess
import sys
import tempfile
import time

import harness
import reference_cases  # noqa: F401 (adds its cases)
import exhaustion_cases  # noqa: F401


def main():
    for tool in ("qemu-img",):
        if not shutil.which(tool):
            print(f"skipped: {tool} is not installed")
            return 77
    failures = 0
    for function in harness.CASES:
        name = function.__name__
        if harness.WORDS and not any(word in name for word in harness.WORDS):
            continue
        directory = tempfile.mkdtemp(prefix="platter-hostile-", dir=os.environ.get("TMPDIR", "/tmp"))
        os.chdir(directory)
        start = time.monotonic()
        try:
            function()
            print(f"ok    {name} ({time.monotonic() - start:.1f} s)")
        except (AssertionError, subprocess.CalledProcessError) as error:
            failures += 1
            print(f"FAIL  {name}: {error}")
        finally:
            os.chdir("/")
            shutil.rmtree(directory)
        sys.stdout.flush()
    print(f"{failures} failed")
    return 1 if failures else 0


sys.exit(main())
