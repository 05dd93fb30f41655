#!/usr/bin/env python3
"""`platter img` beside Debian's qemu-img: the same command lines, compared output against output.

    img_parity.py BUILD/platter [--alone] [PART] [WORD...]

PART is one of PARTS below: only these cases. WORD: only cases whose name contains a WORD.
--alone: `platter` was built with sanitizers: runs every second case without comparing, and looks for their reports.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import amend_cases  # noqa: E402
import bench_cases  # noqa: E402
import bitmap_cases  # noqa: E402
import encrypted_chain_cases  # noqa: E402
import encryption_cases  # noqa: E402
import harness  # noqa: E402
import key_slot_cases  # noqa: E402
import option_cases  # noqa: E402
import qcow2_cases  # noqa: E402
import raw_cases  # noqa: E402
import rename_cases  # noqa: E402
import resize_cases  # noqa: E402
import sharing_cases  # noqa: E402
import stream_cases  # noqa: E402
import truncation_cases  # noqa: E402

os.environ["TZ"] = "UTC"
os.environ["LC_ALL"] = "C.UTF-8"
PARTS = {
    "raw": [raw_cases, sharing_cases],
    "options": [option_cases],
    "qcow2": [qcow2_cases, rename_cases, resize_cases],
    "amend": [amend_cases, bench_cases, bitmap_cases, stream_cases],
    "encryption": [encryption_cases, key_slot_cases, encrypted_chain_cases],
    "truncation": [truncation_cases],
}
words = [word for word in sys.argv[2:] if word != "--alone"]
parts = [PARTS[words.pop(0)]] if words and words[0] in PARTS else PARTS.values()
run = harness.Harness(sys.argv[1], words, alone="--alone" in sys.argv[2:])
try:
    for part in parts:
        for cases in part:
            cases.run(run)
    status = run.finish()
finally:
    run.close()
sys.exit(status)
