#!/usr/bin/env python3
"""Prints the ranges that a persistent bitmap has marked, as QEMU reads it: qemu-nbd exports the
bitmap, and qemu-img map shows what the export says.

    bitmap_marks.py IMAGE BITMAP
"""
import json
import os
import subprocess
import sys
import tempfile
import time

image, bitmap = sys.argv[1:]
with tempfile.TemporaryDirectory() as directory:
    socket = os.path.join(directory, "s")
    server = subprocess.Popen(["qemu-nbd", "-r", "-t", "-f", "qcow2", "-B", bitmap, "-k", socket, image])
    try:
        # The server listens once it has opened the image, or ends.
        while not os.path.exists(socket) and server.poll() is None:
            time.sleep(0.01)
        answer = subprocess.run(
            ["qemu-img", "map", "--output=json", "--image-opts",
             f"driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"],
            capture_output=True, text=True)
    finally:
        if server.poll() is None:
            server.terminate()
        server.wait()
if answer.returncode != 0:
    sys.exit(answer.stderr.strip() or "no answer")
for extent in json.loads(answer.stdout):
    # What is dirty is shown as a hole.
    if not extent["data"]:
        print(extent["start"], extent["length"])
