#!/usr/bin/env python3
"""Checks that #include arrows between rooms run one way.

  tools -> virtio, formats, block      virtio -> block      formats -> block
  inside block: base <- exec <- node <- crypto, adapters, filters, jobs; exports see all of block

A room may always include itself. Usage: check_layers.py SOURCE_DIR | --self-test
"""
import os
import re
import sys
import tempfile

BLOCK = ["base", "exec", "node", "crypto", "adapters", "filters", "jobs", "exports"]
# Rooms of block, and what each may see beside itself.
ALLOWED = {
    "block/base": [],
    "block/exec": ["block/base"],
    "block/node": ["block/base", "block/exec"],
    "block/crypto": ["block/base", "block/exec", "block/node"],
    "block/adapters": ["block/base", "block/exec", "block/node"],
    "block/filters": ["block/base", "block/exec", "block/node"],
    "block/jobs": ["block/base", "block/exec", "block/node", "block/filters"],
    "block/exports": ["block/" + room for room in BLOCK],
}
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)


def room_of(path):
    """The room of a source path, or None for what is no part of the house."""
    parts = path.split("/")
    if parts[0] == "block":
        return "/".join(parts[:2])
    return parts[0] if parts[0] in ("formats", "virtio", "tools") else None


def may_include(source, target):
    a, b = room_of(source), room_of(target)
    if a == b:
        # Formats do not know each other.
        if a == "formats":
            return source.split("/")[1] == target.split("/")[1] or target.count("/") == 1
        return True
    if a.startswith("block/"):
        return b in ALLOWED.get(a, [])
    if a in ("formats", "virtio"):
        return b.startswith("block/")
    return a == "tools"


def mistakes(root):
    """Finds (number of files looked at, list of lines)."""
    bad = []
    seen = 0
    for top in ("block", "formats", "virtio", "tools"):
        for folder, _, files in os.walk(os.path.join(root, top)):
            for name in sorted(files):
                if not name.endswith((".h", ".cpp")):
                    continue
                path = os.path.join(folder, name)
                source = os.path.relpath(path, root)
                with open(path, encoding="utf-8") as file:
                    text = file.read()
                seen += 1
                for target in INCLUDE.findall(text):
                    if room_of(target) is None:
                        bad.append(f'{source}: "{target}" is not named from the top of the project')
                    elif not os.path.exists(os.path.join(root, target)):
                        bad.append(f'{source}: "{target}" does not exist')
                    elif not may_include(source, target):
                        bad.append(f'{source}: {room_of(source)} must not include "{target}"')
                if name.endswith(".h") and "#pragma once" not in text:
                    bad.append(f"{source}: no #pragma once")
    return seen, bad


def self_test():
    """A house with one arrow of each wrong kind: every one must be found, and no right one."""
    files = {
        "block/base/a.h": ["block/exec/b.h"],
        "block/exec/b.h": ["block/base/a.h"],
        "block/node/c.h": ["block/adapters/d.h", "block/exec/b.h"],
        "block/adapters/d.h": ["block/filters/e.h", "block/node/c.h"],
        "block/filters/e.h": ["formats/x/f.h"],
        "formats/x/f.h": ["block/node/c.h", "formats/y/g.h", "virtio/h.h"],
        "formats/y/g.h": [],
        "virtio/h.h": ["tools/run/i.h", "block/exec/b.h", "h.h"],
        "tools/run/i.h": ["virtio/h.h", "formats/x/f.h", "block/none.h"],
    }
    wrong = {
        ("block/base/a.h", "block/exec/b.h"), ("block/node/c.h", "block/adapters/d.h"),
        ("block/adapters/d.h", "block/filters/e.h"), ("block/filters/e.h", "formats/x/f.h"),
        ("formats/x/f.h", "formats/y/g.h"), ("formats/x/f.h", "virtio/h.h"),
        ("virtio/h.h", "tools/run/i.h"), ("virtio/h.h", "h.h"), ("tools/run/i.h", "block/none.h"),
    }
    with tempfile.TemporaryDirectory() as root:
        for name, includes in files.items():
            path = os.path.join(root, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write("#pragma once\n" + "".join(f'#include "{i}"\n' for i in includes))
        _, bad = mistakes(root)
    found = {(line.split(":")[0], line.split('"')[1]) for line in bad}
    for line in sorted(wrong ^ found):
        print("missed or wrongly found:", line)
    return 1 if wrong != found else 0


def main():
    if sys.argv[1] == "--self-test":
        return self_test()
    seen, bad = mistakes(sys.argv[1])
    for line in bad:
        print(line)
    print(f"{seen} files, {len(bad)} mistakes")
    # (Nothing found at all would mean that it looked in the wrong place.)
    return 1 if bad or seen < 20 else 0


sys.exit(main())
