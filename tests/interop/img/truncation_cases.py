"""Images cut off at every cluster boundary, and in the middle of a cluster: `check`, with and without
repair, counts what qemu-img counts and exits as it does.

Four differences are meant (docs/img.md): a repair also mends what qemu-img leaves as it is, after which
both find nothing to say; a table that ends beyond the file, but by less than a cluster,
is an error; a bitmap directory that is gone is counted, where qemu-img does not open the image; and
nothing is repaired by the references of an L1 or snapshot table that is gone.
"""
import json
import os
import subprocess

import harness

CLUSTER_SIZES = (512, 4096, 65536)
OPTIONS = ("compat=0.10", "compat=1.1", "refcount_bits=1", "extended_l2=on")
CONTENTS = ("plain", "snapshots", "bitmaps", "packed", "all")
MODES = ([], ["-r", "all"])
MOST_CUTS = 20
GONE = "cut off within its L1 or snapshot table"


def run(h):
    for size in CLUSTER_SIZES:
        for options in OPTIONS:
            for contents in CONTENTS:
                name = f"truncated {size} {options} {contents}"
                if not h.wanted(name) or not possible(size, options, contents):
                    continue
                h.cases += 1
                h.running.append(h.pool.submit(cut_everywhere, h, h.cases, name, size, options, contents))


def possible(size, options, contents):
    if options == "extended_l2=on" and size < 16384:
        return False
    if options == "compat=0.10" and contents in ("bitmaps", "all"):
        return False
    return options != "refcount_bits=1" or contents in ("plain", "bitmaps", "packed")


def make(h, image, size, options, contents):
    def peer(*words):
        subprocess.run([h.peer, *words], check=True, stdout=subprocess.DEVNULL)

    def io(*commands):
        words = [word for command in commands for word in ("-c", command)]
        subprocess.run([h.peer_io, "-f", "qcow2", *words, image], check=True, stdout=subprocess.DEVNULL)

    peer("create", "-q", "-f", "qcow2", "-o", f"{options},cluster_size={size}", image, str(70 * size))
    io(f"write -P 1 0 {3 * size}", f"write -P 2 {10 * size} {2 * size}", f"write -P 3 {65 * size} {size}")
    if contents in ("packed", "all"):
        io(f"write -c -P 3 {30 * size} {size}", f"write -c -P 4 {31 * size} {size}")
    if contents in ("snapshots", "all"):
        peer("snapshot", "-c", "s1", image)
        io(f"write -P 5 {size} {2 * size}", f"discard {10 * size} {size}")
        peer("snapshot", "-c", "s2", image)
        io(f"write -P 5 {64 * size} {2 * size}")
    if contents in ("bitmaps", "all"):
        peer("bitmap", "--add", "-g", str(size), image, "b0")
        io(f"write -P 6 {4 * size} {2 * size}")
        peer("bitmap", "--add", "--disable", image, "b1")


def check(program, image, mode):
    """Exit status, what the JSON says, and the lines about errors."""
    words = [program, "check", "--output=json", "-f", "qcow2", *mode, image]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    said = json.loads(done.stdout) if done.stdout else {}
    said.pop("filename", None)
    return done.returncode, said, done.stderr.splitlines()


def alike(ours, theirs, size):
    if ours[:2] == theirs[:2]:
        return True
    if ours[0] == 1 and GONE in ours[2][-1]:
        return True
    if theirs[0] == 1 and "itmap" in theirs[2][-1]:
        return ours[0] in (1, 2)
    more = [line for line in ours[2] if line not in theirs[2]]
    if not more or any("end of the file" not in line or int(line.split()[-1], 16) % size == 0 for line in more):
        return False
    counts = [{**said, "image-end-offset": 0} for said in (ours[1], theirs[1])]
    counts[1]["corruptions"] = counts[1].get("corruptions", 0) + len(more)
    return counts[0] == counts[1]


def cut_everywhere(h, number, name, size, options, contents):
    image = os.path.join(h.root, f"{number}-whole")
    make(h, image, size, options, contents)
    with open(image, "rb") as file:
        whole = file.read()
    os.unlink(image)
    cuts = list(range(size, len(whole), size))
    cuts = cuts[::len(cuts) // MOST_CUTS + 1]
    cuts += [cut + size // 2 for cut in cuts[::4] if cut + size // 2 < len(whole)]
    for cut in cuts:
        for mode in MODES:
            results = []
            mended = False
            for side, program in ((harness.OURS, h.ours), (harness.THEIRS, h.peer)):
                piece = os.path.join(h.root, f"{number}-{side}")
                with open(piece, "wb") as file:
                    file.write(whole[:cut])
                results.append(check(program, piece, mode))
                if side == harness.OURS and results[0][1].get("corruptions-fixed"):
                    mended = all(check(other, piece, [])[0] == 0 for other in (h.ours, h.peer))
                os.unlink(piece)
            h.count(pairs=1)
            if not alike(*results, size) and not (mended and results[0][0] == 0 and results[1][0] in (0, 2)):
                h.fail(name, f"cut at {cut} of {len(whole)}, check {' '.join(mode)}\n  ours   {results[0]}\n"
                             f"  theirs {results[1]}")
