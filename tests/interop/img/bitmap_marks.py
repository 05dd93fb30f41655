#!/usr/bin/env python3
"""Prints the ranges that a persistent bitmap has marked, as QEMU reads it: qemu-nbd exports the
bitmap, and qemu-img map shows what the export says.

    bitmap_marks.py IMAGE BITMAP
"""
import json
import os
import socket
import subprocess
import sys
import tempfile

image, bitmap = sys.argv[1:]
with tempfile.TemporaryDirectory() as directory:
    path = os.path.join(directory, "s")
    with socket.socket(socket.AF_UNIX) as listener:
        # The server gets a socket that listens already: until it serves, who connects waits. (One
        # that it makes is there before it listens, and a SIGTERM before it serves would be lost.)
        listener.bind(path)
        listener.listen()
        server = subprocess.Popen(
            ["sh", "-c", f'LISTEN_PID=$$ LISTEN_FDS=1 exec qemu-nbd "$@" 3<&{listener.fileno()}', "sh",
             "-r", "-t", "-f", "qcow2", "-B", bitmap, image], pass_fds=[listener.fileno()])
    try:
        answer = subprocess.run(
            ["qemu-img", "map", "--output=json", "--image-opts",
             f"driver=nbd,server.type=unix,server.path={path},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"],
            capture_output=True, text=True)
    finally:
        server.terminate()
        server.wait()
if answer.returncode != 0:
    sys.exit(answer.stderr.strip() or "no answer")
for extent in json.loads(answer.stdout):
    # What is dirty is shown as a hole.
    if not extent["data"]:
        print(extent["start"], extent["length"])
