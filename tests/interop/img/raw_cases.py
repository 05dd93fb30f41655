"""Command lines that need no other format than raw, and block devices."""
import os
import shutil
import subprocess

RAW = "-f raw"


def devices(h):
    """A loop device, which is gone again at the end of the case."""
    if os.geteuid() != 0 or not shutil.which("losetup"):
        print("not root, or losetup (Debian package util-linux) is missing: no block devices are looked at")
        return
    if subprocess.run(["losetup", "-f"], capture_output=True).returncode != 0:
        print("this machine has no loop devices: no block devices are looked at")
        return
    made = [["sh", "truncate -s 8M f; losetup -f --show f > name"]]
    gone = [["sh", "losetup -d $(cat name)"]]
    for content, create in (("raw", []), ("qcow2", [["sh", "qemu-img create -q -f qcow2 $(cat name) 4M"]])):
        looks = [["shell", f"{words} $(cat name)"] for words in
                 ("info", "info --output=json", "map --output=json", "measure -O qcow2")]
        h.case(f"block device {content}", made + create + looks + gone)


def run(h):
    devices(h)
    data = ["io", "-f", "raw", "-c", "write -P 1 64k 100k", "-c", "write -P 2 700k 4k", "a"]
    setup = [["peer", "create", "-q", "a", "1M"], data]

    def line(name, *words, before=(), images=(), **how):
        h.case(name, list(before) + [list(words)], images, **how)

    # The command line itself.
    for words in ([], ["foo"], ["-Z"], ["create"], ["info"], ["convert"], ["check"], ["map"],
                  ["snapshot"], ["resize"], ["compare"], ["measure"], ["rebase"], ["commit"],
                  ["convert", "a"], ["resize", "a"], ["compare", "a"], ["info", "a", "b"]):
        line("usage " + " ".join(words), *words)
    for verb in ("create", "info", "convert", "check", "map", "snapshot", "compare",
                 "rebase", "commit"):
        line(f"usage {verb} -Z", verb, "-Z")
        line(f"usage {verb} --nonsense", verb, "--nonsense", "a")
        line(f"usage {verb} --object", verb, "--object")
    for verb, flags in {"create": "fobF", "info": "f", "convert": "fOBFolSmrtT", "check": "frT",
                        "map": "fsl", "snapshot": "acd", "compare": "fFT",
                        "rebase": "fFbtT", "commit": "ftbr"}.items():
        for flag in flags:
            line(f"usage {verb} -{flag} without value", verb, f"-{flag}")

    # Files that are not there, or not what they are said to be.
    for words in (["info"], ["map"], ["check"], ["measure", "-O", "raw"], ["snapshot", "-l"],
                  ["rebase", "-u", "-b", ""], ["commit"], ["convert", "-O", "raw"]):
        tail = ["x"] if words[0] == "convert" else []
        line(f"missing {words[0]}", *words, "nofile", *tail)
    line("missing resize", "resize", "nofile", "1M")
    for first, second in (("nofile", "a"), ("a", "nofile")):
        line(f"missing compare {first}", "compare", first, second, before=setup)
    line("missing directory", "create", "nodir/x", "1M")
    line("missing name", "info", "")
    line("directory", "info", ".")
    for verb in ("info", "map", "check", "measure"):
        line(f"unknown format {verb}", verb, "-f", "foo", "a", before=setup)
        line(f"not qcow2 {verb}", verb, "-f", "qcow2", "a", before=setup)
        line(f"two formats {verb}", verb, "--image-opts", "-f", "raw", "filename=a", before=setup,
             errors="exact" if verb != "measure" else "any")

    # create
    for size in ("1M", "1.5G", "512", "1000", "0", "7k", "3T", "1b", "0x1000", "1."):
        line(f"create {size}", "create", "-f", "raw", "x", size, images=[("x", "raw")], errors="any")
    for size in ("1Q", "foo", "9E", "16E", "99999999999999999999", "1M1", "", " 1", "1 M", "-1", "7E",
                 "1e3", ".5M"):
        line(f"create bad size {size}", "create", "-f", "raw", "x", size, errors="any")
    line("create bad size text", "create", "-f", "raw", "x", "foo")
    line("create too large", "create", "-f", "raw", "x", "9E")
    line("create without size", "create", "x")
    line("create quietly", "create", "-q", "x", "1M")
    line("create with too much", "create", "x", "1M", "2M")
    line("create unknown format", "create", "-f", "foo", "x", "1M")
    line("create unknown option", "create", "-o", "foo=bar", "x", "1M")
    line("create size option", "create", "-o", "size=1M", "x")
    line("create two sizes", "create", "-o", "size=1M", "x", "2M")
    line("create empty options", "create", "-o", "", "x", "1M")
    line("create comma", "create", "-o", "size=1M,", "x")
    for mode in ("off", "falloc", "full"):
        line(f"create preallocation {mode}", "create", "-o", f"preallocation={mode}", "x", "1M",
             images=[("x", "raw")])
    line("create preallocation foo", "create", "-o", "preallocation=foo", "x", "1M")
    line("create two lists", "create", "-o", "nocow=off", "-o", "preallocation=full", "x", "1M")
    line("create with backing", "create", "-b", "a", "-F", "raw", "x", "1M", before=setup)
    line("create null", "create", "-f", "null-co", "x", "1M")
    line("create options help", "create", "-f", "raw", "-o", "help")
    line("create options help with file", "create", "-f", "raw", "-o", "help", "x", "1M")
    line("create over old", "create", "a", "2M", before=setup, images=[("a", "raw")])
    line("create secret", "create", "--object", "secret,id=s,data=x", "x", "1M")
    for bad in ("secret", "secret,id=s", "secret,id=1,data=x", "foo,id=s", "id=s",
                "secret,id=s,data=x,foo=bar"):
        line(f"create bad object {bad}", "create", "--object", bad, "x", "1M", errors="any")

    # info
    odd = [["sh", "printf x > a; truncate -s 1000 a"]]
    for before, what in ((setup, "data"), (odd, "odd"), ([["sh", ": > a"]], "empty")):
        for words in ([], ["--output=json"], ["--output", "human"], ["-f", "raw"], ["-U"],
                      ["--backing-chain"], ["--backing-chain", "--output=json"], ["--out=json"]):
            line(f"info {what} {' '.join(words)}", "info", *words, "a", before=before)
    line("info bad output", "info", "--output=foo", "a", before=setup)
    line("info image-opts", "info", "--image-opts", "driver=raw,file.filename=a", before=setup)
    line("info offset", "info", "--image-opts", "driver=raw,offset=512,file.filename=a", before=setup)
    line("info json name", "info", 'json:{"driver":"raw","file":{"driver":"file","filename":"a"}}',
         before=setup)
    line("info unknown open option", "info", "--image-opts", "driver=raw,file.filename=a,foo=bar",
         before=setup)
    line("info bad json", "info", "json:{foo", before=setup, errors="any")
    line("info file: prefix", "info", "file:a", before=setup)
    line("info comma in name", "info", "a,b", before=[["peer", "create", "-q", "a,b", "1M"]])
    line("info file driver", "info", "-f", "file", "a", before=setup)
    line("info null", "info", "--image-opts", "driver=null-co,size=1M")

    # map
    for before, what in ((setup, "data"), (odd, "odd"), ([["sh", ": > a"]], "empty")):
        for words in ([], ["--output=json"], ["-s", "32k"], ["-s", "64k", "-l", "8k", "--output=json"],
                      ["--start-offset=1M", "--output=json"], ["--max-length", "100k"],
                      ["-s", "20M", "--output=json"], ["-f", "raw", "-U"]):
            line(f"map {what} {' '.join(words)}", "map", *words, "a", before=before)
    line("map bad start", "map", "-s", "foo", "a", before=setup)
    line("map bad length", "map", "-l", "foo", "a", before=setup)

    # resize
    for size in ("2M", "+1M", "-512k", "1M", "+0", "512", "3000000"):
        for extra in ([], ["--shrink"], ["-q"]):
            line(f"resize {size} {' '.join(extra)}", "resize", "-f", "raw", *extra, "a", size,
                 before=setup, images=[("a", "raw")])
    for size in ("-100M", "9E", "0"):
        line(f"resize bad {size}", "resize", "-f", "raw", "a", size, before=setup, images=[("a", "raw")])
    for size in ("foo", "", "+", "--help"):
        line(f"resize junk {size}", "resize", "-f", "raw", "a", size, before=setup, errors="any")
    line("resize probed", "resize", "a", "2M", before=setup)
    for mode, size in (("full", "2M"), ("falloc", "2M"), ("off", "2M"), ("full", "512k"),
                       ("metadata", "2M"), ("foo", "2M")):
        line(f"resize {mode} {size}", "resize", "-f", "raw", f"--preallocation={mode}", "a", size,
             before=setup, images=[("a", "raw")])
    line("resize two files", "resize", "-f", "raw", "a", "b", "2M", before=setup)

    # check, snapshot, rebase and commit, which raw images do not have
    line("check raw", "check", "a", before=setup)
    line("check raw json", "check", "--output=json", "a", before=setup)
    line("check bad repair", "check", "-r", "foo", "a", before=setup)
    line("check bad cache", "check", "-T", "foo", "a", before=setup, errors="any")
    line("snapshot list raw", "snapshot", "-l", "a", before=setup)
    line("snapshot mixed", "snapshot", "-l", "-c", "x", "a", before=setup)
    for action in "cad":
        line(f"snapshot -{action} raw", "snapshot", f"-{action}", "x", "a", before=setup, errors="any")
    line("rebase raw", "rebase", "-f", "raw", "-u", "-b", "b", "-F", "raw", "a", before=setup)
    line("rebase no backing", "rebase", "a", before=setup)
    line("commit raw", "commit", "-f", "raw", "a", before=setup)

    # measure
    for words in (["a"], ["--size", "1G"], ["--size=1000"], ["--output=json", "a"], ["-O", "raw", "a"],
                  ["--size", "1G", "a"], ["--size", "foo"], ["--size", "9E"], ["-f", "raw", "--size", "1M"],
                  ["-l", "s", "--size", "1M"], ["-O", "foo", "a"], ["-O", "raw", "-o", "foo=bar", "a"],
                  ["-O", "file", "a"], ["-O", "null-co", "a"], ["a", "b"], ["-U", "a"]):
        line(f"measure {' '.join(words)}", "measure", *words, before=setup)

    # compare
    second = [["sh", "cp --sparse=never a b"]]
    changed = second + [["io", "-f", "raw", "-c", "write -P 9 300k 1", "b"]]
    longer = second + [["sh", "truncate -s 2M b"]]
    longer_data = longer + [["io", "-f", "raw", "-c", "write -P 9 1500k 1", "b"]]
    for before, what in ((second, "same"), (changed, "changed"), (longer, "longer"),
                         (longer_data, "longer with data")):
        for words in ([], ["-q"], ["-f", "raw", "-F", "raw"], ["-T", "none"], ["-U"], ["-p"]):
            for pair in (["a", "b"], ["b", "a"]):
                line(f"compare {what} {' '.join(words + pair)}", "compare", *words, *pair,
                     before=setup + before, outputs="skip" if "-p" in words else "exact")
    line("compare strict sizes", "compare", "-s", "a", "b", before=setup + longer)
    line("compare strict self", "compare", "-s", "a", "a", before=setup)
    line("compare bad cache", "compare", "-T", "foo", "a", "a", before=setup)
    line("compare bad format", "compare", "-f", "foo", "a", "a", before=setup)

    convert(h, setup, odd, line)
    dd(line, setup)


def dd(line, setup):
    for words in ([], ["bs=1k", "count=2"], ["bs=64k", "skip=1"], ["bs=1k", "skip=5000"], ["bs=1M"],
                  ["count=0"], ["bs=64k", "skip=16"], ["-f", "raw", "-O", "raw", "bs=128k", "count=3"], ["-U"]):
        line(f"dd {' '.join(words)}", "dd", *words, "if=a", "of=x", before=setup, images=[("x", "raw")])
    line("dd to qcow2", "dd", "-O", "qcow2", "bs=32k", "skip=2", "if=a", "of=x", before=setup,
         images=[("x", "qcow2")])
    for words in (["bs=foo"], ["bs=0"], ["count=x"], ["skip=-1"], ["foo=1"], ["foo"], ["if=nofile"],
                  ["of=nodir/x"], ["-Z"], ["-O", "null-co"]):
        line(f"dd refused {' '.join(words)}", "dd", "if=a", "of=x", *words, before=setup)
    line("dd unknown format", "dd", "-O", "foo", "if=a", "of=x", before=setup, errors="any")
    line("dd nothing", "dd")
    line("dd without output", "dd", "if=a", before=setup)


def convert(h, setup, odd, line):
    for words in ([], ["-W"], ["-m", "1"], ["-m", "16", "-W"], ["-S", "0"], ["-S", "64k"], ["-S", "512"],
                  ["-C"], ["-t", "none"], ["-T", "none"], ["-t", "writethrough"], ["-q"], ["-U"],
                  ["-r", "100M"], ["--salvage"], ["-f", "raw"], ["-o", "preallocation=full"],
                  ["--image-opts"]):
        source = "driver=raw,file.filename=a" if "--image-opts" in words else "a"
        line(f"convert {' '.join(words)}", "convert", "-O", "raw", *words, source, "x", before=setup,
             images=[("x", "raw")])
    line("convert map", "convert", "a", "x", before=setup)
    # (qemu-img always writes the first block of a new file, which then is no hole.)
    h.case("convert keeps holes", setup + [["io", "-f", "raw", "-c", "write -P 3 0 4k", "a"],
                                           ["convert", "a", "x"], ["map", "--output=json", "x"]])
    line("convert odd", "convert", "a", "x", before=odd, images=[("x", "raw")])
    line("convert joined", "convert", "a", "a", "x", before=setup, images=[("x", "raw")])
    line("convert joined odd", "convert", "a", "a", "x", before=odd, images=[("x", "raw")])
    old = setup + [["peer", "create", "-q", "x", "2M"], ["io", "-f", "raw", "-c", "write -P 5 0 2M", "x"]]
    line("convert -n", "convert", "-n", "a", "x", before=old, images=[("x", "raw")])
    line("convert -n -S 0", "convert", "-n", "-S", "0", "a", "x", before=old, images=[("x", "raw")])
    line("convert -n zero target", "convert", "-n", "--target-is-zero", "a", "x", images=[("x", "raw")],
         before=setup + [["peer", "create", "-q", "x", "1M"]])
    line("convert -n target options", "convert", "-n", "--target-image-opts", "a",
         "driver=raw,file.filename=x", before=old, images=[("x", "raw")])
    line("convert over old", "convert", "a", "x", before=old, images=[("x", "raw")])
    line("convert -n too small", "convert", "-n", "a", "x", images=[("x", "raw")],
         before=setup + [["peer", "create", "-q", "x", "512k"]])
    line("convert -n missing", "convert", "-n", "a", "x", before=setup)
    line("convert onto itself", "convert", "a", "a", before=setup, images=[("a", "raw")], errors="any")
    for words in (["-S", "foo"], ["-S", "1"], ["-S", "20M"], ["-m", "0"], ["-m", "17"], ["-m", "x"],
                  ["-c"], ["-C", "-S", "4k"], ["-t", "foo"], ["-T", "foo"], ["-r", "foo"],
                  ["-B", "a"], ["-B", "a", "-F", "raw"], ["-n", "-o", "foo=bar"], ["--target-is-zero"],
                  ["--skip-broken-bitmaps"], ["-s", "s1"], ["-O", "foo"], ["-O", "null-co"],
                  ["-o", "preallocation=foo"], ["-o", "foo=1"], ["--salvage", "-C"], ["-f", "foo"],
                  ["-f", "qcow2"], ["--target-image-opts"], ["-l", "snapshot.foo=1"],
                  ["-f", "raw", "--image-opts"], ["-F", "raw"]):
        line(f"convert refused {' '.join(words)}", "convert", *words, "a", "x", before=setup)
    line("convert beyond the size limit", "limit", "convert", "a", "x", before=setup, errors="any")
    line("create beyond the size limit", "limit", "create", "x", "2M", errors="any")
    line("convert to missing directory", "convert", "a", "nodir/x", before=setup)
    line("convert snapshot of raw", "convert", "-l", "s", "a", "x", before=setup, errors="any")
    line("convert three names", "convert", "a", "nofile", "x", before=setup)
