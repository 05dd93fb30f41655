#!/usr/bin/env python3
"""Checks that a ctest label selects the tests of all the programs that it should.

usage: check_labels.py CTEST BUILD_DIR LABEL PROGRAM...

A program whose tests lose their label still builds, and no test fails: they are just not run any
more in the part that selects by that label.
"""
import json
import subprocess
import sys


def main():
    ctest, build, label, *programs = sys.argv[1:]
    if not programs:
        sys.exit(f"error: no program is said to have tests labelled '{label}'")
    listing = subprocess.run(
        [ctest, "--test-dir", build, "--show-only=json-v1", "-L", label],
        check=True, stdout=subprocess.PIPE, text=True).stdout
    tests = json.loads(listing)["tests"]
    wrong = False
    for program in programs:
        own = [test for test in tests if test["name"].startswith(program + ".")]
        print(f"{program}: {len(own)} tests labelled {label}")
        wrong |= not own
        for test in own:
            properties = {entry["name"]: entry["value"] for entry in test["properties"]}
            if "TIMEOUT" not in properties:
                print(f"{test['name']}: has lost its time limit")
                wrong = True
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
