#!/usr/bin/env python3
"""The same scripts through `platter io` and qemu-io: same output, same exit status, same disks.

usage: io_parity.py PLATTER [-k WORD] [-v]

Timings are blanked out before comparing. Exit status 77: qemu-io or qemu-img is not installed.
"""
import argparse
import concurrent.futures
import os
import random
import shutil
import subprocess
import sys
import tempfile

from io_harness import Case, examine

READS = [
    "read 0 4k", "read -C 0 4k", "read -q 0 4k", "read -P 5 0 4k", "read -P 0 0 4k", "read -P 5 -s 512 0 4k",
    "read -P 5 -s 512 -l 512 0 4k", "read -P 5 -s 512 -l 51200 0 4k", "read -s 512 -l 512 0 4k",
    "read -P 256 0 4k", "read -P xyz 0 4k", "read -P 0xff 0 4k", "read -v 0 40", "read -v 513 40", "read x 4k",
    "read 0 4G", "read 0 2147483136", "read 0 2147483137", "read 0 16M", "read 16M 1k", "read 0 0", "read 0 1zz",
    "read 0 1.5k", "read 0 9999999999999999999", "read", "read 0", "read 0 1 2", "read -Z 0 1", "read -P",
    "read -1 4k", "read 0 512 -P 0", "read -q -- 0 512", "read --foo 0 512", "read -s 512 -P 1 0 512",
    "read -l 0 -P 1 0 512", "read -P 1 -s x 0 512", "read -P 1 -l x 0 512", "read -P 1 -s 600 0 512",
    "read -p 0 512", "read 0x10 0x200", "read 1k 1KB", "read 1B 1b", "read 0 1e3", "read 0 .5k", "read 0 1.",
    "read +1 +4", "read 7E 8", "read 8E 8", "read 4194303 1", "read 4194303 2", "r 0 512", "read  0   512 ",
    "readv 0 512 512", "readv -P 0x5 0 512 512", "readv -P 0 0 512 512", "readv -v 0 16 5", "readv -C 0 16 5",
    "readv 0 16M", "readv 0", "readv x 5", "readv -Z 0 5", "readv 0 1000 0 5", "readv 0 1G 1G", "readv 0 2G 1",
    "readv -q 0 7",
]
WRITES = [
    "write -q 0 512", "write", "write 0 4k", "write -P 7 0 64k", "write -z 0 4k", "write -z -P 3 0 4k",
    "write -u 0 4k", "write -n 0 4k", "write -z -u 64k 64k", "write -b -z 0 64k", "write -c -f 0 64k",
    "write -b -f 0 64k", "write -f 0 64k", "write -p 64k 64k", "write -s pattern 1M 70000", "read -v 1M 40",
    "write -s missing 0 64k", "write -s empty 0 64k", "write -s empty -P 3 0 64k", "write -s empty -z 0 64k",
    "write 600 1", "write 4M 512", "write 4000k 1M", "write 0 2147483137", "write -z 0 4G", "write -c 0 600",
    "write -c 3 512", "write -b 3 512", "write -C 0 512", "write -q -C 0 512", "write -P 0x1ff 0 1", "w 5 6",
    "writev 0 512 1k 600", "writev -P 0x5 0 512 1k 513", "writev -z 0 512", "writev -q -f 0 512",
    "writev 0 512 x", "writev 4M 512 512", "writev 0", "writev -C 0 1000 0 5", "read -P 0xcd 0 512",
]
IMAGE = [
    "write -q 64k 100k", "write -q 2M 1M", "map", "map 3", "alloc 0", "alloc 64k", "alloc 64k 64k", "alloc 0 4M",
    "alloc 512 1", "alloc 0 11M", "alloc 11M 4", "alloc x", "alloc 0 x", "alloc -1", "alloc 64k 1000",
    "alloc 64k 4G", "alloc", "alloc 1 2 3", "a 64k", "a", "a 1 2 3", "length", "l", "length 3", "l 3", "flush", "flush 1", "f", "f 1", "d 0",
    "discard 64k 64k", "discard -C 64k 64k", "discard -q 0 64k", "discard 0 16M", "discard 0 4G", "discard x 1",
    "discard 0 y", "discard 0", "discard -Z 0 1", "map", "truncate 8M", "length", "truncate x", "truncate -5",
    "truncate", "truncate 1 2", "truncate -Z 3", "truncate -m bad 9M", "map", "t 3M", "length", "map",
    "read -P 0 64k 64k", "read -P 0xcd 2M 1M",
]
CONTROL = [
    "", "foo", "help foo", "help read write", "help x y z", "sleep 1", "sleep x", "sleep", "sleep -5", "sleep 0x1",
    "sleep 1k", "sigraise x", "sigraise 0", "sigraise 999", "sigraise -1", "break x y", "break read_aio A",
    "break x", "resume A", "resume", "remove_break A", "wait_break", "abort 1", "aio_flush 1", "help", "?",
    "help sleep", "help abort", "help map", "help q", "help h", "help c", "close", "length", "close",
    "open", "open a b", "open -Z", "open -t foo disk", "open -d foo disk", "open -i foo disk", "open -o",
    "open missing", "length", "open -o driver=FORMAT disk", "length", "open disk", "close", "open -r disk -o driver=FORMAT",
    "write 0 512", "read 0 512", "close", "open -U -r -o driver=FORMAT disk", "length", "close", "open -U disk",
    "open -t none -o driver=FORMAT disk", "write 0 512", "c", "o -n -o driver=FORMAT,file.filename=disk", "write 0 512",
    "close", "open -o driver=FORMAT,foo=bar disk",
]
REOPEN = [
    "reopen", "reopen -r", "write 0 512", "reopen -w", "write 0 512", "reopen -r -w", "reopen -Z", "reopen foo",
    "reopen -c none", "write 0 512", "reopen -c foo", "reopen -o foo=on", "reopen -r -o read-only=on",
    "reopen -c none -o cache.direct=on", "reopen -o cache.direct=on", "read 0 512", "reopen -c writeback",
    "reopen -o discard=unmap", "reopen -o", "reopen -o driver=raw", "write -P 3 7 9", "read -P 3 7 9",
    "reopen -o detect-zeroes=unmap,discard=ignore", "reopen -o detect-zeroes=unmap", "reopen -o discard=ignore",
    "reopen -o file.locking=on", "reopen -o file.filename=x", "reopen -o file.foo=x", "reopen -o file.driver=raw",
    "reopen -o file.driver=file", "reopen -o file.aio=native", "reopen -o file.drop-cache=off", "reopen -o file.read-only=on",
    "reopen -o backing=x", "reopen -o backing=", "reopen -o file=x", "reopen -o read-only=on", "reopen -o read-only=maybe",
    "reopen -o auto-read-only=on", "reopen -o force-share=on", "reopen -r -o force-share=on", "write 0 512", "read 0 512",
]
AIO = [
    "aio_write 0 4k", "aio_flush", "aio_read 0 4k", "aio_flush", "aio_read -P 3 0 4k", "aio_flush",
    "aio_read -C 0 4k 8k", "aio_flush", "aio_read -q 0 4k", "aio_read -v 0 20", "aio_flush", "aio_read -i 0 4k",
    "aio_write -i 0 4k", "aio_read 20M 4k", "aio_flush", "aio_write 20M 4k", "aio_flush",
    "aio_write -z 0 4k 4k", "aio_write -u 0 4k", "aio_write x 4k", "aio_write 0 x", "aio_write 0",
    "aio_read x 4k", "aio_read 0", "aio_write -P 500 0 5", "aio_read -P xx 0 5", "aio_write 0 1k 1k 3k", "aio_flush",
    "aio_write -P 9 64k 64k", "aio_flush", "aio_write -f -P 8 70000 5", "aio_flush", "read -P 9 64k 4464",
    "aio_write -Z 0 1", "aio_read -Z 0 1", "aio_read 0 4k", "length", "aio_flush", "aio_read 0 0", "aio_flush",
    "aio_write -q 1M 1M", "aio_read 0 4k",
]


def random_script(seed):
    """Reads, writes, zeroes and discards of any alignment, verified as a plain array would be."""
    rng = random.Random(seed)
    size = 4 << 20
    disk = bytearray(size)
    lines = []
    for _ in range(60):
        length = rng.choice([1, 511, 512, 4096, 5000, 65536, 70000, 200000])
        offset = rng.randrange(0, size - length)
        if rng.random() < 0.5:
            offset &= ~0xffff
        value = rng.randrange(1, 256)
        kind = rng.randrange(4)
        if kind == 0:
            lines.append(f"write -P {value} {offset} {length}")
            disk[offset:offset + length] = bytes([value]) * length
        elif kind == 1:
            lines.append(f"write -z {rng.choice(['', '-u '])}{offset} {length}")
            disk[offset:offset + length] = bytes(length)
        elif kind == 2:
            half = length // 2
            lines.append(f"writev -P {value} {offset} {half} {length - half}")
            disk[offset:offset + length] = bytes([value]) * length
        else:
            lines.append(f"aio_write -P {value} {offset} {length}")
            lines.append("aio_flush")
            disk[offset:offset + length] = bytes([value]) * length
        at = rng.randrange(0, size - 16)
        lines.append(f"read -v {at} 16")
        run_end = at
        while run_end < size and disk[run_end] == disk[at] and run_end - at < 100000:
            run_end += 1
        lines.append(f"read -P {disk[at]} {at} {run_end - at}")
    return lines


FILES = [["sh", "-c", r"printf '!@#$ ~_AZaz09\377\200' > pattern; : > empty"]]
INTERACTIVE = ("read 0 512\nlength\n\n   \nfoo\nread\nwrite -q 0 4k\nread -v 0 16\naio_read -q 0 4k\naio_flush\n"
               "quit\nlength\n")


def with_format(commands, fmt):
    return [line.replace("FORMAT", fmt) for line in commands]


def cases_of(fmt):
    yield Case("reads", READS, fmt=fmt)
    yield Case("reads, misaligned, past the page cache", READS, fmt=fmt, options=["-m", "-n"])
    yield Case("writes", WRITES, fmt=fmt, setup=FILES)
    yield Case("writes, misaligned, past the page cache", WRITES, fmt=fmt, setup=FILES, options=["-m", "-t", "none"])
    yield Case("writes to a read-only image", WRITES + AIO, fmt=fmt, setup=FILES, options=["-r"], unordered=True)
    yield Case("image", IMAGE, fmt=fmt)
    yield Case("control", with_format(CONTROL, fmt), fmt=fmt)
    yield Case("reopen", REOPEN, fmt=fmt)
    if fmt == "raw":
        yield Case("window", WINDOW, fmt=fmt)
        yield Case("shrinking", [f"truncate -m {mode} 3M" for mode in ("falloc", "metadata", "full", "off")], fmt=fmt)
    yield Case("aio", AIO, fmt=fmt)
    yield Case("interactive", [], fmt=fmt, stdin=INTERACTIVE)
    yield Case("interactive, errors amid answers", [], fmt=fmt, stdin="read 0 512\nread\nread 0 512\nfoo\nlength\n",
               together=True)
    yield Case("interactive, no newline at the end", [], fmt=fmt, stdin="read 0 512\nlength\nfoo")
    yield Case("nothing open", READS[:3] + ["map", "length", "help l", "quit 1 2", "length"], fmt="", image=None)
    yield Case("signal", ["length", "sigraise 15"], fmt=fmt)
    yield Case("crash", ["abort"], fmt=fmt)
    yield Case("cache modes", ["write 0 4k"], fmt=fmt, options=["-t", "directsync", "-d", "ignore", "-i", "threads"])
    for mode in ("cache", "discard", "aio"):
        yield Case(f"bad {mode} mode", ["length"], fmt=fmt, options=[f"--{mode}", "foo"])
    yield Case("native aio needs direct", ["length"], fmt=fmt, options=["-k"])
    yield Case("native aio", ["length", "read 0 4k"], fmt=fmt, options=["-k", "-n"])
    yield Case("force share", ["length"], fmt=fmt, options=["-U"])
    yield Case("force share, snapshot", ["length", "write 0 512", "read -v 0 16"], fmt=fmt, options=["-U", "-s"])
    yield Case("force share, reading", ["length"], fmt=fmt, options=["-U", "-r"])
    for share in ("off", "on", "foo"):
        yield Case(f"force share, and force-share={share}", ["length"], fmt=fmt, options=["-U", "-r", "--image-opts"],
                   image=f"driver={fmt},file.filename=disk,force-share={share}")
        yield Case(f"open with force share, and force-share={share}",
                   [f"open -U -r -o driver={fmt},file.filename=disk,force-share={share}", "length"], fmt=fmt, image=None)
    yield Case("image options", ["length", "write 0 4k"], fmt=fmt, options=["--image-opts"],
               image=f"driver={fmt},file.driver=file,file.filename=disk")
    yield Case("json name", ["length", "write 0 4k"], fmt=fmt,
               image='json:{"driver":"%s","file":{"driver":"file","filename":"disk"}}' % fmt)
    yield Case("secret object", ["length"], fmt=fmt, options=["--object", "secret,id=x,data=abc"])
    for text in ('{"qom-type":"secret","id":"s","data":"x"}', "{'qom-type':'secret','id':'s','data':'x'}",
                 '{"qom-type":"secret"}', '{"id":"s"}', '{"qom-type":"foo","id":"s"}', "{", "", "id=x", "secret,id=1",
                 "secret,help", "secret,?", "secret,id=s,help", "secret,id=x,data=y,format=foo", "foo", "foo,id=x",
                 "authz-list,id=a,policy=deny", "authz-list,id=a,policy=foo", "authz-list,id=a,foo=1", "authz-list,help",
                 "authz-simple,id=a", "authz-list,id=1", "throttle-group,id=t,x-iops-total=5", "throttle-group,help",
                 "throttle-group,id=t,x-iops-total=z", "throttle-group,id=t,limits.iops-total=3", "throttle-group",
                 "thread-context,id=c"):
        if fmt == "raw":
            yield Case(f"object {text}", ["length"], fmt=fmt, options=["--object", text])
    for kind in ("authz-list,id=a", "secret,id=a,data=x"):
        yield Case(f"two objects of one name, {kind}", ["length"], fmt=fmt,
                   options=["--object", "authz-list,id=a", "--object", kind])
    yield Case("bad object", ["length"], fmt=fmt, options=["--object", "foo,id=x"])
    yield Case("trace", ["length"], fmt=fmt, options=["-T", "foo"])
    yield Case("missing file", ["length"], fmt=fmt, image="missing")
    yield Case("quit", ["quit", "length"], fmt=fmt)
    for seed in range(2):
        yield Case(f"random {seed}", random_script(seed), fmt=fmt)
    yield Case("breakpoints", BREAK_RAW if fmt == "raw" else BREAK, fmt=fmt, options=["--image-opts"], stderr=True,
               image=f"driver={fmt},file.driver=blkdebug,file.image.driver=file,file.image.filename=disk")
    for event in ("pwritev", "pwritev_zero", "pwritev_done"):
        yield Case(f"error at {event}", ["write 0 64k", "write 0 64k", "write -z 128k 4k", "write -z -u 1M 64k", "write 0 4k"],
                   fmt=fmt, options=["--image-opts"], stderr=True,
                   image=f"driver={fmt},file.driver=blkdebug,file.inject-error.0.event={event},"
                         "file.inject-error.0.once=on,file.image.driver=file,file.image.filename=disk")
        yield Case(f"error at a sector, {event}", ["write 0 64k", "write 64k 64k", "flush"], fmt=fmt, options=["--image-opts"],
                   image=f"driver={fmt},file.driver=blkdebug,file.inject-error.0.event={event},"
                         "file.inject-error.0.sector=99999999,file.inject-error.0.errno=28,"
                         "file.inject-error.0.once=on,file.image.driver=file,file.image.filename=disk")
    yield Case("breakpoints by name", ["aio_write 0 64k", "aio_flush", "break write_aio A", "aio_write 0 64k",
                                       "wait_break A", "resume A", "aio_flush"], fmt=fmt, image="blkdebug::disk")


BREAK = [
    "break nonsense A", "break write_aio", "resume A", "remove_break A", "break read_aio A", "remove_break A",
    "remove_break A", "write -q 0 64k", "break write_aio A", "aio_write -P 1 0 64k", "wait_break A", "read -P 0xcd 0 64k",
    "resume A", "aio_flush", "read -P 1 0 64k", "break write_aio A", "aio_write -P 2 0 64k", "wait_break A",
    "remove_break A", "aio_flush", "resume A",
]
BREAK_RAW = [
    "break nonsense A", "break write_aio", "resume A", "remove_break A", "break read_aio A", "remove_break A",
    "remove_break A", "resume B",
    *(line for event in ("pwritev", "pwritev_done", "flush_to_os")
      for line in (f"break {event} A", "aio_write 0 64k", "wait_break A", "length", "resume A", "aio_flush")),
]
WINDOW = [
    "write -q -P 1 0 1M", "write -q -P 2 1M 1M", "reopen -o offset=1M", "length", "read -P 2 0 512", "reopen -r", "length",
    "reopen -o size=1M", "length", "reopen -w -o offset=0", "length", "read -P 1 0 1M", "truncate 2M", "reopen -o size=1000",
    "reopen -o size=8M", "reopen -o offset=8M", "reopen -o size=foo", "reopen -o offset=3,size=1M", "length", "write -P 3 0 512",
    "reopen -o offset=0,size=4M", "read -P 3 3 512", "map",
]
# What becomes of clusters of which a part is zeroed or discarded.
PARTS = [
    "write -z 100k 1k", "map", "write -z -u 200k 3k", "map", "write -P 5 300k 20k", "write -z 301k 1k", "write -z -u 310k 70k",
    "map", "alloc 256k 128k", "write -z -n 500k 1k", "write -z -u -n 301k 60k", "map", "discard 300k 4k", "map", "discard 256k 64k",
    "map", "write -z 1M 100k", "write -z -u 2M 64k", "map", "discard 2M 64k", "map", "write -z 4193k 1k", "map",
    "write -z -u -n 2239491 32768", "write -z 3000001 1", "alloc 2M 2M", "read -P 0 1M 2M", "map",
]


BAD_OPTIONS = [
    "foo=bar", "file.foo=bar", "cache.direct=maybe", "cache.no-flush=1", "read-only=maybe", "auto-read-only=maybe",
    "force-share=on", "force-share=maybe", "discard=foo", "detect-zeroes=foo", "detect-zeroes=unmap,discard=ignore",
    "overlap-check=foo", "overlap-check.foo=on", "overlap-check.template=foo",
    "overlap-check=none,overlap-check.template=all", "overlap-check.main-header=maybe", "lazy-refcounts=maybe",
    "l2-cache-size=foo", "l2-cache-size=2M,refcount-cache-size=2M,cache-size=1M", "l2-cache-size=2M,cache-size=1M",
    "refcount-cache-size=2M,cache-size=1M", "l2-cache-entry-size=3", "l2-cache-entry-size=256k",
    "cache-clean-interval=99999999999", "cache-clean-interval=foo", "discard-no-unref=on",
    "pass-discard-request=maybe", "encrypt.format=luks,encrypt.key-secret=nope", "encrypt.key-secret=nope",
    "encrypt.format=foo", "node-name=1", "node-name=a,file.node-name=a", "backing=nope", "backing.driver=nosuch",
    "backing.file.filename=missing", "backing.driver=raw,backing.file.filename=missing", "driver=raw",
]
BAD_FAULTS = [
    "file.inject-error.0.event=foo", "file.inject-error.0.errno=5",
    "file.inject-error.0.event=read_aio,file.inject-error.0.foo=5",
    "file.inject-error.0.event=read_aio,file.inject-error.0.iotype=foo", "file.align=3", "file.max-transfer=3",
    "file.config=missing", "file.config=empty", "file.config=bad",
    "file.set-state.0.event=read_aio,file.set-state.0.state=foo",
    "file.inject-error.0.event=read_aio,file.inject-error.0.errno=0",
    "file.inject-error.0.event=write_aio,file.inject-error.0.errno=-5",
    "file.inject-error.0.event=write_aio,file.inject-error.0.errno=foo",
    "file.inject-error.0.event=write_aio,file.inject-error.0.errno=0",
    "file.inject-error.0.event=write_aio,file.inject-error.0.sector=foo", "file.take-child-perms.0=write",
    "file.take-child-perms.0=write,file.unshare-child-perms.0=write",
]
BAD_NODES = [
    "driver=nosuch,file.filename=disk", "driver=qcow2", "driver=qcow2,file=nope",
    "driver=qcow2,file.driver=nosuch,file.filename=disk", "driver=qcow2,file.driver=file",
    "driver=qcow2,file.driver=file,file.filename=missing", "driver=qcow2,file.filename=missing",
    "driver=raw,file.filename=disk,foo=bar", "driver=file,filename=disk,foo=bar", "driver=file", "filename=disk",
    "filename=missing", "file.filename=disk", "foo=bar", "driver=qcow2,file.driver=blkdebug",
    "driver=qcow2,file.driver=blkdebug,file.image.filename=missing",
    "driver=qcow2,file.driver=file,file.filename=disk,file.aio=foo",
    "driver=qcow2,file.driver=file,file.filename=disk,file.aio=native",
    "driver=qcow2,file.driver=file,file.filename=disk,file.locking=maybe",
    "driver=qcow2,file.driver=file,file.filename=disk,file.x-check-cache-dropped=on",
    "driver=qcow2,file.driver=file,file.filename=disk,file.drop-cache=off", "driver=raw,file.filename=disk,offset=3",
    "driver=raw,file.filename=disk,size=3", "driver=raw,file.filename=disk,offset=1T",
    "driver=raw,file.filename=disk,size=1T", "driver=raw,file.filename=disk,offset=foo",
    "driver=raw,file.driver=null-co", "driver=null-co", "driver=copy-on-read",
    "driver=copy-on-read,file.filename=disk,foo=on", "driver=qcow2,file.filename=rawdisk",
    "driver=qcow2,file.filename=.", "driver=file,filename=.", "driver=raw,file.filename=noperm/x",
    "driver=qcow2,file.filename=nodir/x", "driver=qcow2,file.filename=disk,", "driver=qcow2,,file.filename=disk",
    "driver=", "driver=qcow2,file.filename=dir/disk", "driver=qcow2,file.filename=broken",
    "driver=qcow2,file.filename=loop", "driver=qcow2,file.filename=nobase", "driver=qcow2,file.filename=badfmt",
]
BAD_JSON = [
    '{"driver":"qcow2"}', '{"driver":"nosuch"}', "{}",
    '{"driver":"qcow2","file":{"driver":"file","filename":"missing"}}',
    '{"driver":"qcow2","file":{"driver":"file","filename":"disk"},"foo":1}',
    "{'driver':'qcow2','file':{'driver':'file','filename':'disk'}}", "{'driver':'qcow2','driver':'raw'}", "[]",
    '{"driver":"qcow2"', '{"file":{"filename":"disk"}}', '{"filename":"disk"}', '{"filename":"missing"}', '{"a":01}',
    '{"driver":"qcow2","file":"disk"}', '{"driver":"qcow2","file":["disk"]}',
    '{"driver":"qcow2","file.filename":"missing"}', '{"driver":["qcow2"]}', '{"driver":{}}',
    "{'driver':'qcow2','file':{'driver':'file','filename':'d\\u0069sk'}}",
    '{"driver":"qcow2","file":{"driver":"file","filename":"disk"},"backing":null}', "", '"x"', '{"a":}', '{"a"1}',
    '{"a":1"b":2}', "{,}", "{1:1}", '{"a":foo}', '{"a":"x', '{"a":"\\x"}', '{"a":"\\ud800"}', '{"a":[1,]}', '{"a":-}',
    '{"a":1.}', "{}{}", "]",
]
BAD_NAMES = [
    "missing", "nodir/x", "foo:bar", ".", "blkdebug::missing", "blkdebug:missing:disk", "blkdebug:disk", "file:missing",
    "empty", "-r .", "-U disk", "-C missing", "-k missing", "-k disk", "-C -r disk", "-C -r missing", "fd:5", "over -r",
]


def opens():
    """Every way of opening, one after the other; what does open is closed again."""
    lines = ["driver=qcow2,file.filename=disk," + options for options in BAD_OPTIONS]
    lines += ["driver=qcow2,file.driver=blkdebug,file.image.filename=disk," + options for options in BAD_FAULTS]
    lines = ["-o " + options for options in lines + BAD_NODES] + ["json:" + text for text in BAD_JSON] + BAD_NAMES
    return [command for line in lines for command in ("open " + line, "close")]


def only_qcow2():
    backed = [["qemu-img", "create", "-q", "-f", "qcow2", "base", "4M"],
              ["qemu-io", "-f", "qcow2", "-c", "write -q -P 3 64k 256k", "-c", "write -q -P 4 2M 1M", "base"],
              ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "disk"]]
    packed = ["write -q 128k 64k", "write -c -P 5 0 64k", "write -c 64k 64k", "write -c 0 4k", "write -c -z 128k 64k", "map", "read -P 5 0 64k",
              "write -P 6 4k 4k", "read -P 6 4k 4k", "read -P 5 8k 56k"]
    yield Case("info", ["info", "i", "info 3"])
    yield Case("reopen, keys", ["reopen -o encrypt.key-secret=x", "reopen -o encrypt.format=luks", "write 0 512"])
    yield Case("opens", opens(), image=None, setup=[["touch", "empty"]])
    yield Case("single quotes", ["length", "write 0 4k"], image="json:{'driver':'qcow2','file':{'driver':'file','filename':'disk'}}")
    yield Case("single quotes in a backing file's name", ["length", "read 0 4k"], setup=[
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b",
         "json:{'driver':'raw','file':{'driver':'null-co','size':4194304,'read-zeroes':true}}", "disk"]])
    for number, options in enumerate(["driver=nosuch", "filename=disk", "file.filename=missing", "driver=qcow2,file.filename=disk,foo=bar"]):
        yield Case(f"image options, bad {number}", ["length"], options=["--image-opts"], image=options)
    yield Case("info, all features", ["info"], options=["-r"], create="extended_l2=on,lazy_refcounts=on,compression_type=zstd,"
               "refcount_bits=64,cluster_size=16k")
    yield Case("info, old version", ["info"], create="compat=0.10")
    yield Case("backing", ["map", "read -P 3 64k 256k", "write -P 7 100k 10k", "map", "alloc 64k 64k", "read -P 3 64k 36k",
                           "read -P 7 100k 10k", "discard 64k 64k", "map", "write -z 2M 64k", "read -P 0 2M 64k",
                           "read -P 4 2112k 64k", "truncate 5M", "map", "info"], setup=backed)
    yield Case("snapshot", ["write -P 1 0 64k", "map", "read -P 1 0 64k", "read -P 3 64k 64k"], setup=backed, options=["-s"])
    yield Case("snapshot, reading", ["write 0 64k", "map"], setup=backed, options=["-s", "-r"])
    yield Case("copy on read", ["read -P 3 64k 4k", "map", "read -P 0 1M 512", "map"], setup=backed, options=["-C"])
    yield Case("copy on read, reopened", ["reopen -r", "reopen -o read-only=on", "reopen -o driver=qcow2", "read 2M 512",
                                          "reopen -o lazy-refcounts=on", "write 0 512", "map"], setup=backed, options=["-C"])
    yield Case("copy on read, nothing below", ["read 64k 512", "map", "read 1M 70000", "map"], options=["-C"])
    yield Case("copy on read, reading", ["length"], setup=backed, options=["-C", "-r"])
    yield Case("packed", packed)
    state = ["write -b 0 512", "write -b -P 9 1M 1024", "read -b -P 9 1M 1024", "read -b -P 0xcd 0 512",
             "read -b -P 0 64k 512", "read -b 3 512", "read -b 0 600", "map", "read -P 0 0 4M", "length"]
    yield Case("zeroes of whole clusters", ["write -z 0 64k", "map", "write -z 128k 128k", "map", "write -P 3 512k 64k", "write -z 512k 64k",
                                            "map", "discard 0 64k", "map", "write -z 1M 3M", "map", "read -P 0 0 4M"])
    yield Case("zeroes of whole clusters, old version", ["write -z 0 64k", "map", "write -P 3 512k 64k", "write -z 512k 64k", "map"],
               create="compat=0.10")
    yield Case("vm state", state)
    yield Case("vm state, small clusters", state, create="cluster_size=512")
    faulty = "driver=qcow2,file.driver=blkdebug,file.image.filename=disk,file.inject-error.0.event="
    for event in ("vmstate_save", "vmstate_load", "l1_shrink_write_table", "l1_shrink_free_l2_clusters", "cluster_free"):
        yield Case(f"error at {event}, told", ["write -b -q 0 64k", "read -b -q 0 512", "write -b -q 0 64k", "read -b -q 0 512"],
                   options=["--image-opts"], image=f"{faulty}{event},file.inject-error.0.once=on")
    for number in ("0", "9999", "0x1c"):
        yield Case(f"errno {number}", ["write 0 64k", "read 0 64k"], options=["--image-opts"],
                   image=f"{faulty}write_aio,file.inject-error.0.once=on,file.inject-error.0.errno={number}")
    for event in ("write_aio", "flush_to_os"):
        yield Case(f"close fails after {event}", ["write 0 64k", "flush"], options=["--image-opts"], image=faulty + event)
    for rights in ("take-child-perms.0=write", "unshare-child-perms.0=write"):
        yield Case(f"rights, {rights}", ["write 0 64k"], options=["--image-opts"],
                   image=f"driver=qcow2,file.driver=blkdebug,file.image.filename=disk,file.{rights}")
    yield Case("too long", ["truncate 7E", "truncate 8E", "length"])
    for options in ("read-only=on", "file.read-only=on"):
        yield Case(f"image options, {options}", ["write 0 512"], options=["--image-opts"], image=f"driver=qcow2,file.filename=disk,{options}")
    for create in ("", "extended_l2=on", "extended_l2=on,cluster_size=16k", "cluster_size=512"):
        yield Case(f"parts of clusters, {create}", PARTS, create=create)
        over = ("," if create else "") + "backing_file=base,backing_fmt=qcow2"
        yield Case(f"parts of clusters over others, {create}", PARTS, create=create + over, setup=backed[:2])
    yield Case("packed zeroes", ["reopen -o detect-zeroes=on", "write -c -P 0 0 64k", "write -c -P 0 128k 4k", "map"])
    yield from corrupt()
    yield from encrypted()
    yield Case("preallocation", ["truncate -m off 5M", "truncate -m metadata 6M", "truncate -m falloc 7M",
                                 "truncate -m full 8M", "map", "length"])
    yield Case("reopen, qcow2's options", [
        "reopen -o lazy-refcounts=on", "write -P 5 0 64k", "reopen -o l2-cache-size=128k",
        "reopen -o cache-clean-interval=3", "reopen -o lazy-refcounts=off,l2-cache-entry-size=4k,pass-discard-request=on",
        "read -P 5 0 64k", "reopen -o l2-cache-size=3,cache-size=1", "reopen -o overlap-check=foo",
        "reopen -o overlap-check=all", "reopen -o overlap-check.template=none", "reopen -o overlap-check.foo=off",
        "reopen -o lazy-refcounts=maybe", "reopen -r -o refcount-cache-size=1M", "reopen -w", "write -P 6 1M 64k",
        "read -P 6 1M 64k", "read -P 5 0 64k"])
    yield Case("zeroes without fallback", ["write -q 0 256k", "write -z -n 0 64k", "write -z -u -n 64k 128k", "map"])
    for seed, create in enumerate(("cluster_size=512", "cluster_size=2M", "compat=0.10", "lazy_refcounts=on")):
        yield Case(f"image, {create}", IMAGE, create=create)
        yield Case(f"random, {create}", random_script(seed + 2), create=create)


def corrupt():
    """L2 entries that refer to metadata, and tables at places where none can be."""
    damage = [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "io_damage.py")]
    for place in ("header", "l1", "l2", "refcount-table", "refcount-block", "snapshots", "snapshot-l1", "bitmaps", "unaligned"):
        yield Case(f"corrupt, {place}", ["write 0 64k", "write 0 64k"], setup=[damage + [place]], readable=False)
    reads = ["read 0 512", "read 64k 512", "map"]
    yield Case("corrupt, read only", reads[:2], options=["-r"], setup=[damage + ["unaligned"]], readable=False)
    yield Case("corrupt, L2 table's place", reads, options=["-r"], setup=[damage + ["unaligned", "table"]], readable=False)


def encrypted():
    secret = "secret,id=s,data=abc"
    commands = ["write -P 4 100 1000", "read -P 4 100 1000", "map", "write -z 64k 1k", "map", "write -P 7 200k 100k", "info",
                "discard 0 64k", "map", "read -v 0 20", "read -P 7 200k 100k", "writev -P 9 1M 512 70000", "read -P 9 1M 70512",
                "truncate 5M", "map", "write -b 0 512", "read -b 0 512", "reopen -r", "reopen -w",
                "reopen -o encrypt.format=luks", "reopen -o encrypt.key-secret=x", "read 0 512", "reopen -o encrypt.foo=x",
                "reopen -o encrypt.format=foo"]
    for kind in ("luks", "aes"):
        # (qemu-img gives up on LUKS when the clock tells it that no time has passed: then again.)
        options = f"encrypt.format={kind},encrypt.key-secret=s" + (",encrypt.iter-time=10" if kind == "luks" else "")
        create = f"qemu-img create -q --object {secret} -f qcow2 -o {options} disk 4M"
        setup = [["sh", "-c", f"for i in 1 2 3 4 5; do {create} 2>/dev/null && exit 0; done; {create}"]]
        image = "driver=qcow2,file.filename=disk,"
        yield Case(f"encrypted, {kind}", commands, setup=setup, options=["--object", secret, "--image-opts"],
                   image=image + "encrypt.key-secret=s", readable=False)
        opens = ["key-secret=w", "key-secret=nope", "format=luks,encrypt.key-secret=s", "format=aes,encrypt.key-secret=s",
                 "format=foo,encrypt.key-secret=s", "key-secret=s,encrypt.foo=s"]
        yield Case(f"encrypted, {kind}, opened", [line for how in opens for line in (f"open -o {image}encrypt.{how}", "close")],
                   setup=setup, readable=False, image=None, options=["--object", secret, "--object", "secret,id=w,data=abx"])


def unread(program, directory):
    """What a program does with commands that come after nobody reads its output any more."""
    os.makedirs(directory)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "disk", "4M"], cwd=directory, check=True)
    with subprocess.Popen([program, "-t", "writeback", "disk"], cwd=directory, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        process.stdin.write(b"write -P 5 0 64k\n")
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        try:
            process.stdin.write(b"write -P 6 1M 64k\nquit\n")
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has died: the status tells
        status = process.wait(timeout=30)
    found = [status]
    for words in ("read -P 5 0 64k", "read -P 6 1M 64k"):
        found.append(subprocess.run(["qemu-io", "-r", "-c", words, "disk"], cwd=directory, capture_output=True).returncode)
    return found


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("platter")
    parser.add_argument("-k", default="", help="run only cases whose name has this in it")
    parser.add_argument("-v", action="store_true", help="name every case")
    arguments = parser.parse_args()
    if not shutil.which("qemu-io") or not shutil.which("qemu-img"):
        print("SKIP: qemu-io and qemu-img (Debian: qemu-utils) are not installed")
        return 77

    failed = passed = commands = 0
    # In memory where possible: every write is flushed, and the disk under the test is not the point.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="io_parity", dir=memory) as work:
        ours = os.path.join(work, "bin", "qemu-io")
        os.makedirs(os.path.dirname(ours))
        os.symlink(os.path.abspath(arguments.platter), ours)
        cases = [(fmt, case) for fmt in ("raw", "qcow2") for case in cases_of(fmt)]
        cases += [("qcow2", case) for case in only_qcow2()]
        named = [(f"{fmt}: {case.name}", case) for fmt, case in cases]
        chosen = [(name, case) for name, case in named if arguments.k in name]
        with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            results = [pool.submit(examine, case, ours, os.path.join(work, str(number)))
                       for number, (_, case) in enumerate(chosen)]
        for (name, case), result in zip(chosen, results):
            found = result.result()
            commands += len(case.commands)
            if found:
                failed += 1
                print(f"FAILED {name}")
                for text in found:
                    print("  " + text)
            else:
                passed += 1
                if arguments.v:
                    print(f"ok     {name}")
        if arguments.k in "output that nobody reads":
            ours_did, theirs_did = unread(ours, os.path.join(work, "unread")), unread("qemu-io", os.path.join(work, "unread2"))
            if ours_did != theirs_did:
                failed += 1
                print(f"FAILED output that nobody reads\n  status and what reads find: {ours_did}, with qemu-io {theirs_did}")
            else:
                passed += 1
    print(f"{passed} scripts ({commands} commands) alike, {failed} not")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
