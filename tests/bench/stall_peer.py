#!/usr/bin/env python3
"""What stall_bench.cpp measures, of qemu-storage-daemon: a stream of 4 KiB writes over NBD, one at a
time, while a transaction takes an internal snapshot. Prints the longest of them and what 99.9 % of
them did not exceed, in seconds.

    stall_peer.py IMAGE
"""
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

REQUEST, SPAN, BESIDES = 4096, 16 << 30, 0.3


def connect(path, daemon):
    end = time.monotonic() + 30
    while True:
        one = socket.socket(socket.AF_UNIX)
        try:
            one.connect(path)
            return one
        except OSError:
            one.close()
            if daemon.poll() is not None or time.monotonic() > end:
                sys.exit("error: qemu-storage-daemon does not answer")
            time.sleep(0.01)


def receive(one, size):
    data = b""
    while len(data) < size:
        more = one.recv(size - len(data))
        if not more:
            sys.exit("error: qemu-storage-daemon has hung up")
        data += more
    return data


class Disk:
    def __init__(self, one):
        self.socket = one
        receive(one, 18)
        one.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 1) + b"q")
        self.size = struct.unpack(">QH", receive(one, 10))[0]

    def write(self, offset, data):
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 1, 0, offset, len(data)) + data)
        if struct.unpack(">IIQ", receive(self.socket, 16))[1] != 0:
            sys.exit("error: qemu-storage-daemon cannot write")


class Monitor:
    def __init__(self, one):
        self.lines = one.makefile("rw")
        self.lines.readline()
        self.run("qmp_capabilities")

    def run(self, command, **arguments):
        print(json.dumps({"execute": command, "arguments": arguments}), file=self.lines, flush=True)
        while True:
            answer = json.loads(self.lines.readline())
            if "error" in answer:
                sys.exit(f"error: {command}: {answer['error']['desc']}")
            if "return" in answer:
                return


def main():
    image = sys.argv[1]
    with tempfile.TemporaryDirectory() as scratch:
        nbd, qmp = os.path.join(scratch, "nbd"), os.path.join(scratch, "qmp")
        daemon = subprocess.Popen(
            ["qemu-storage-daemon", "--blockdev", f"file,node-name=f,filename={image},discard=unmap",
             "--blockdev", "qcow2,node-name=q,file=f", "--nbd-server", f"addr.type=unix,addr.path={nbd}",
             "--export", "nbd,id=e,node-name=q,name=q,writable=on",
             "--chardev", f"socket,path={qmp},server=on,wait=off,id=c", "--monitor", "chardev=c"],
            stdin=subprocess.DEVNULL)
        try:
            monitor, disk = Monitor(connect(qmp, daemon)), Disk(connect(nbd, daemon))
            writes, ended = [], threading.Event()

            def guest():
                choose, data = random.Random(1), b"\x5a" * REQUEST
                slots = min(SPAN, disk.size) // REQUEST
                while not ended.is_set():
                    offset = choose.randrange(slots) * REQUEST
                    begin = time.monotonic()
                    disk.write(offset, data)
                    writes.append((begin, time.monotonic()))

            thread = threading.Thread(target=guest)
            thread.start()
            time.sleep(BESIDES)
            start = time.monotonic()
            monitor.run("transaction", actions=[{"type": "blockdev-snapshot-internal-sync",
                                                 "data": {"device": "q", "name": "s"}}])
            end = time.monotonic()
            time.sleep(BESIDES)
            ended.set()
            thread.join()
            monitor.run("quit")
            daemon.wait()
        finally:
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()
    seconds = sorted(b - a for a, b in writes if b >= start and a <= end)
    print(f"{seconds[-1]:.6f} {seconds[(len(seconds) * 999 + 999) // 1000 - 1]:.6f}")
    print(f"{len(seconds)} writes in {end - start:.3f} s", file=sys.stderr)


main()
