#!/usr/bin/env python3
"""`platter img` beside Debian's qemu-img: the same command lines, compared output against output.

    img_parity.py BUILD/platter [WORD...]     only cases whose name contains a WORD
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
import qcow2_cases  # noqa: E402
import raw_cases  # noqa: E402
import stream_cases  # noqa: E402
import truncation_cases  # noqa: E402

os.environ["TZ"] = "UTC"
os.environ["LC_ALL"] = "C.UTF-8"
run = harness.Harness(sys.argv[1], sys.argv[2:])
try:
    raw_cases.run(run)
    amend_cases.run(run)
    bench_cases.run(run)
    qcow2_cases.run(run)
    bitmap_cases.run(run)
    encryption_cases.run(run)
    stream_cases.run(run)
    key_slot_cases.run(run)
    encrypted_chain_cases.run(run)
    truncation_cases.run(run)
    status = run.finish()
finally:
    run.close()
sys.exit(status)
