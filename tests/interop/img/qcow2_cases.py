"""Command lines on qcow2 images: chains, snapshots, compression, checks and repairs."""


def run(h):
    def line(name, *words, before=(), images=(), **how):
        h.case(name, list(before) + [list(words)], images, **how)

    def io(image, *commands):
        return ["io", "-f", "qcow2"] + [word for command in commands for word in ("-c", command)] + [image]

    data = [["peer", "create", "-q", "-f", "qcow2", "a", "10M"],
            io("a", "write -P 1 0 100k", "write -z 1M 128k", "write -P 2 5M 64k")]
    chain = data + [["peer", "create", "-q", "-f", "qcow2", "-b", "a", "-F", "qcow2", "b"],
                    io("b", "write -P 3 64k 64k", "write -P 4 5M 4k", "write -z 7M 64k")]
    three = chain + [["peer", "create", "-q", "-f", "qcow2", "-b", "b", "-F", "qcow2", "c", "12M"],
                     io("c", "write -P 5 11M 10k", "discard 0 64k", "write -P 6 2M 1M")]
    rawbase = [["peer", "create", "-q", "base", "4M"], ["io", "-f", "raw", "-c", "write -P 1 0 1M", "base"]]
    packed = data + [["peer", "convert", "-c", "-O", "qcow2", "a", "p"]]
    snaps = data + [["peer", "snapshot", "-c", "s1", "a"], io("a", "write -P 7 0 64k"),
                    ["peer", "snapshot", "-c", "second one", "a"], io("a", "write -P 8 2M 64k")]

    create(h, line, rawbase, data)
    subclusters(h, io)
    looks(h, line, data, chain, three, packed, snaps)
    snapshots(h, line, snaps)
    changes(h, line, io, data, chain, three, rawbase)
    checks(h, line, io, data, packed)
    conversions(h, line, data, chain, three, packed, snaps, rawbase)


def subclusters(h, io):
    """Parts of clusters that are not allocated, though their clusters are."""
    made = [["peer", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "a", "10M"],
            io("a", "write -P 2 3M 6k", "write -P 3 5M 512", "write -z 6M 4k", "write -P 4 7M 200k", "discard 7M 4k")]
    over = made + [["peer", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "-b", "a", "-F", "qcow2", "b", "12M"],
                   io("b", "write -P 5 3080k 2k", "write -P 6 8M 2k", "write -P 7 11M 100k")]
    for name, before in (("a", made), ("b", over)):
        h.case(f"map of subclusters {name}", before + [["map", "--output=json", name], ["map", name],
                                                       ["convert", "-O", "qcow2", name, "x"],
                                                       ["compare", name, "x"]], [("x", "qcow2")])


def create(h, line, rawbase, data):
    for words in ([], ["-q"], ["-o", "compat=0.10"], ["-o", "compat=1.1"], ["-o", "compat=v3"],
                  ["-o", "cluster_size=512"], ["-o", "cluster_size=2M"], ["-o", "cluster_size=4k"],
                  ["-o", "lazy_refcounts=on"], ["-o", "lazy_refcounts"], ["-o", "nolazy_refcounts"],
                  ["-o", "refcount_bits=1"], ["-o", "refcount_bits=64"], ["-o", "refcount_bits=0x10"],
                  ["-o", "refcount_bits=010"],
                  ["-o", "compression_type=zstd"], ["-o", "preallocation=metadata"],
                  ["-o", "preallocation=falloc"], ["-o", "preallocation=full"],
                  ["-o", "nocow=off"], ["-o", "cluster_size=1M,lazy_refcounts=on,refcount_bits=8"],
                  ["-o", "preallocation=off", "-o", "compat=v2"]):
        steps = [["create", "-f", "qcow2", *words, "x", "5M"], ["info", "x"], ["check", "x"],
                 ["info", "--output=json", "x"], ["map", "--output=json", "x"]]
        h.case(f"create qcow2 {' '.join(words)}", steps, [("x", "qcow2")])
    for size in ("0", "1", "1000", "512", "1G", "1.5T", "63T"):
        h.case(f"create qcow2 {size}", [["create", "-f", "qcow2", "x", size], ["info", "x"]],
               [("x", "qcow2")])
    for words in (["-o", "cluster_size=3"], ["-o", "cluster_size=4M"], ["-o", "cluster_size=foo"],
                  ["-o", "lazy_refcounts=foo"], ["-o", "refcount_bits=7"], ["-o", "refcount_bits=x"],
                  ["-o", "refcount_bits=0x"], ["-o", "refcount_bits=16k"], ["-o", "refcount_bits="],
                  ["-o", "refcount_bits=99999999999999999999"],
                  ["-o", "compat=2"], ["-o", "compression_type=foo"], ["-o", "preallocation=foo"],
                  ["-o", "compat=0.10,lazy_refcounts=on"], ["-o", "compat=0.10,refcount_bits=8"],
                  ["-o", "compat=0.10,compression_type=zstd"], ["-o", "foo=bar"], ["-F", "raw"],
                  ["-o", "backing_fmt=raw"]):
        line(f"create qcow2 refused {' '.join(words)}", "create", "-f", "qcow2", *words, "x", "1M",
             errors="any" if "cluster_size=foo" in words else "exact")
    line("create qcow2 too large", "create", "-f", "qcow2", "x", "7E")
    line("create qcow2 small clusters too large", "create", "-f", "qcow2", "-o", "cluster_size=512",
         "x", "1T")
    line("create qcow2 help", "create", "-f", "qcow2", "-o", "help")
    line("create qcow2 help with file", "create", "-f", "qcow2", "-o", "help", "x", "1M")
    for words in (["-b", "base", "-F", "raw"], ["-b", "base", "-F", "raw", "-u"],
                  ["-o", "backing_file=base,backing_fmt=raw"]):
        h.case(f"overlay {' '.join(words)}",
               rawbase + [["create", "-f", "qcow2", *words, "x", "6M"], ["info", "x"],
                          ["info", "--backing-chain", "x"], ["map", "x"]], [("x", "qcow2")])
    line("overlay takes size", "create", "-f", "qcow2", "-b", "base", "-F", "raw", "x", before=rawbase,
         images=[("x", "qcow2")])
    line("overlay in directory", "create", "-f", "qcow2", "-b", "base", "-F", "raw", "d/x",
         before=rawbase + [["sh", "mkdir d; cp base d/"]], images=[("d/x", "qcow2")])
    h.case("overlay in directory info",
           rawbase + [["sh", "mkdir d; cp base d/"],
                      ["create", "-f", "qcow2", "-b", "base", "-F", "raw", "d/x"],
                      ["info", "d/x"], ["info", "--output=json", "--backing-chain", "d/x"]])
    for words in (["-b", "base"], ["-b", "nofile", "-F", "raw"], ["-b", "base", "-F", "foo"],
                  ["-b", "", "-F", "raw"], ["-b", "base", "-u"], ["-b", "nofile", "-F", "raw", "-u"],
                  ["-b", "base", "-F", "qcow2"]):
        line(f"overlay refused {' '.join(words)}", "create", "-f", "qcow2", *words, "x", before=rawbase,
             errors="any")
    for words in (["create", "-f", "qcow2", "-u", "-b", "nofile", "-F", "foo", "x", "1M"],
                  ["convert", "-O", "qcow2", "-B", "base", "-F", "foo", "a", "x"],
                  ["convert", "-O", "qcow2", "-B", "nofile", "-F", "raw", "a", "x"]):
        h.case(f"backing of no use {' '.join(words)}", rawbase + data + [words])
    line("overlay with a raw data file", "create", "-f", "qcow2", "-o", "data_file=df,data_file_raw=on",
         "-b", "base", "-F", "raw", "x", "1M", before=rawbase)
    line("convert snapshot of raw", "convert", "-l", "s1", "base", "x", before=rawbase)
    for words in (["create", "foo:x", "1M"], ["convert", "base", "foo:x"]):
        line(f"unknown protocol {words[0]}", *words, before=rawbase)
    for number in ("0x8", "010", "0x11", "8x", "-1", ""):
        line(f"convert -m {number}", "convert", "-m", number, "base", "x", before=rawbase)
    line("overlay of itself", "create", "-f", "qcow2", "-b", "x", "-F", "qcow2", "x", "1M")
    line("create over old", "create", "-f", "qcow2", "a", "3M", before=data, images=[("a", "qcow2")])


def looks(h, line, data, chain, three, packed, snaps):
    v2 = [["peer", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "a", "3M"]]
    zstd = [["peer", "create", "-q", "-f", "qcow2", "-o", "compression_type=zstd", "a", "3M"]]
    for what, before, name in (("data", data, "a"), ("chain", chain, "b"), ("three", three, "c"),
                               ("packed", packed, "p"), ("snaps", snaps, "a"), ("v2", v2, "a"),
                               ("zstd", zstd, "a")):
        for words in ([], ["--output=json"], ["--backing-chain"], ["--backing-chain", "--output=json"],
                      ["-f", "qcow2", "-U"], ["-f", "raw"]):
            line(f"info {what} {' '.join(words)}", "info", *words, name, before=before)
        for words in (["--output=json"], [], ["-s", "32k", "-l", "5M", "--output=json"],
                      ["-s", "64k", "-l", "64k"], ["-U", "-f", "qcow2", "--output=json"]):
            line(f"map {what} {' '.join(words)}", "map", *words, name, before=before)
        for words in ([], ["--output=json"], ["-q"], ["-f", "qcow2"], ["-U"], ["-T", "none"]):
            line(f"check {what} {' '.join(words)}", "check", *words, name, before=before)
        for words in (["-O", "qcow2"], ["-O", "qcow2", "--output=json"], ["-O", "raw"],
                      ["-O", "qcow2", "-o", "cluster_size=4k"], ["-O", "qcow2", "-o", "compat=0.10"]):
            line(f"measure {what} {' '.join(words)}", "measure", *words, name, before=before)
        line(f"snapshot list {what}", "snapshot", "-l", name, before=before)
    for size in ("0", "1M", "1G", "1T", "1000"):
        for options in ([], ["-o", "cluster_size=512"], ["-o", "preallocation=full"],
                        ["-o", "refcount_bits=64,cluster_size=2M"]):
            line(f"measure {size} {' '.join(options)}", "measure", "-O", "qcow2", *options, "--size", size)
    for option in ("=foo", "=all", "=none", ".template=foo", ".main-header=foo", ".bogus=on", "=all,overlap-check.template=none",
                   "=all,overlap-check.template=all", ".main-header=off,overlap-check.inactive-l2=on"):
        line(f"overlap check {option}", "check", "--image-opts", f"driver=qcow2,file.filename=a,overlap-check{option}",
             before=data)
    for words in (["--image-opts", "driver=qcow2,file.filename=a"],
                  ["--image-opts", "driver=qcow2,file.driver=file,file.filename=a"],
                  ["--image-opts", "--output=json", "driver=qcow2,file.filename=a,lazy-refcounts=on"],
                  ['json:{"driver":"qcow2","file":{"driver":"file","filename":"a"}}'],
                  ["--image-opts", "driver=qcow2,file.filename=a,foo=bar"],
                  ["--image-opts", "driver=qcow2,file.driver=raw,file.offset=0,file.file.filename=a"]):
        line(f"info {' '.join(words)}", "info", *words, before=data,
             errors="exact", outputs="skip" if "raw" in words[-1] else "exact")
    alone = '{"driver":"qcow2","backing":%s,"file":{"driver":"file","filename":"b"}}'
    for verb in (["info"], ["check"], ["snapshot", "-l"], ["map"], ["rebase", "-u", "-b", "a", "-F", "qcow2"]):
        line(f"backing null {verb[0]}", *verb, "json:" + alone % "null", before=chain,
             outputs="skip" if verb == ["info"] else "exact")  # (how the image is called)
    line("backing of another kind info", "info", "json:" + alone % '"node"', before=chain)
    line("info missing backing", "info", "b", before=chain + [["sh", "rm a"]])
    line("info chain missing backing", "info", "--backing-chain", "b", before=chain + [["sh", "rm a"]],
         errors="any")
    line("map missing backing", "map", "b", before=chain + [["sh", "rm a"]])
    line("info cut short", "info", "x", before=data + [["sh", "head -c 40 a > x"]], errors="any")


def snapshots(h, line, snaps):
    listing = ["snapshot", "-l", "a"]
    for steps in ([["snapshot", "-c", "s3", "a"], listing], [["snapshot", "-d", "s1", "a"], listing],
                  [["snapshot", "-d", "2", "a"], listing], [["snapshot", "-a", "s1", "a"], listing],
                  [["snapshot", "-a", "second one", "a"], ["map", "a"]],
                  [["snapshot", "-c", "s1", "a"], ["snapshot", "-d", "s1", "a"], listing],
                  [["snapshot", "-c", "2", "a"], ["snapshot", "-d", "2", "a"], listing],
                  [["snapshot", "-a", "nosnap", "a"]], [["snapshot", "-d", "nosnap", "a"]],
                  [["snapshot", "-a", "s1", "a"], ["snapshot", "-d", "s1", "a"],
                   ["snapshot", "-d", "second one", "a"], ["check", "-q", "a"], ["info", "a"]],
                  [["snapshot", "-q", "-c", "\u00e4 \"quoted\" name", "a"], ["info", "--output=json", "a"]],
                  [["snapshot", "-c", "a name that is longer than its column", "a"], listing],
                  [["snapshot", "-U", "-l", "a"]], [["snapshot", "a"]],
                  [["snapshot", "--image-opts", "-l", "driver=qcow2,file.filename=a"]]):
        h.case("snapshot " + " | ".join(" ".join(step[1:]) for step in steps), snaps + steps,
               [("a", "qcow2")])
    line("snapshot shared write", "snapshot", "-U", "-c", "x", "a", before=snaps, errors="any")
    for name in ("s1", "2", "snapshot.id=1", "snapshot.name=s1", "snapshot.id=1,snapshot.name=s1",
                 "snapshot.id=2,snapshot.name=s1", "nosnap", "snapshot.foo=1"):
        found = name not in ("nosnap", "snapshot.foo=1", "snapshot.id=2,snapshot.name=s1")
        line(f"convert -l {name}", "convert", "-l", name, "-O", "qcow2", "a", "x", before=snaps,
             images=[("x", "qcow2")] if found else ())
        line(f"measure -l {name}", "measure", "-l", name, "-O", "qcow2", "a", before=snaps)


def changes(h, line, io, data, chain, three, rawbase):
    for size, words in (("20M", []), ("+1M", []), ("-1M", []), ("-1M", ["--shrink"]),
                        ("1M", ["--shrink"]), ("10M", []), ("1000", ["--shrink"]), ("10485761", []),
                        ("30M", ["--preallocation=metadata"]), ("30M", ["--preallocation=full"]),
                        ("30M", ["--preallocation=falloc"]), ("7E", []), ("512", ["--shrink"])):
        h.case(f"resize qcow2 {size} {' '.join(words)}",
               data + [["resize", "-f", "qcow2", *words, "a", size], ["info", "a"]], [("a", "qcow2")],
               errors="any" if size == "7E" else "exact")
    h.case("resize overlay", chain + [["resize", "b", "15M"], ["map", "--output=json", "b"]],
           [("b", "qcow2")])

    other = rawbase + [["sh", "cp --sparse=never base base2"],
                       ["io", "-f", "raw", "-c", "write -P 9 512k 64k", "base2"],
                       ["peer", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "o"]]
    written = other + [io("o", "write -P 3 600k 4k", "write -z 0 64k")]
    info = ["info", "o"]
    for steps in ([["rebase", "-b", "base2", "-F", "raw", "o"], info, ["map", "o"]],
                  [["rebase", "-b", "", "o"], info, ["map", "o"]],
                  [["rebase", "-u", "-b", "base2", "-F", "raw", "o"], info],
                  [["rebase", "-u", "-b", "", "o"], info],
                  [["rebase", "-b", "base", "-F", "raw", "o"], info, ["map", "--output=json", "o"]],
                  [["rebase", "-p", "-q", "-b", "base2", "-F", "raw", "o"], info],
                  [["rebase", "-t", "none", "-T", "none", "-b", "base2", "-F", "raw", "o"], info]):
        for what, before in (("empty", other), ("written", written)):
            h.case(f"rebase {what} " + " ".join(steps[0][1:]), before + steps, [("o", "qcow2")])
    for words in (["-b", "nofile", "-F", "raw"], ["-F", "foo", "-b", "base"], ["-b", "base"],
                  ["-u", "-b", "base"], ["-t", "foo", "-b", "base"], ["-T", "foo", "-b", "base"]):
        line(f"rebase refused {' '.join(words)}", "rebase", *words, "o", before=other,
             images=[("o", "qcow2")])
    raw_data = [["peer", "create", "-q", "-f", "qcow2", "-o", "data_file=d,data_file_raw=on", "o", "1M"]]
    long_name = "n" * 1024
    for before, words in ((other, ["-u", "-b", long_name, "-F", "raw"]), (raw_data, ["-b", "base", "-F", "raw"]),
                          (raw_data, ["-u", "-b", "base", "-F", "raw"])):
        h.case(f"rebase impossible {' '.join(words)[:40]}",
               rawbase + before + [["rebase", "-f", "qcow2", *words, "o"], info],
               [] if before is raw_data else [("o", "qcow2")], errors="any")
    # What is written into a raw data file behind the disk's old end is on the disk.
    h.case("resize with a raw data file",
           [["peer", "create", "-q", "-f", "qcow2", "-o", "data_file=d,data_file_raw=on", "a", "4M"],
            ["resize", "a", "6M"], ["io", "-f", "raw", "-c", "write -P 7 5M 64k", "d"],
            ["io", "-c", "read -P 7 5M 64k", "a"], ["map", "--output=json", "a"], ["check", "a"]])
    # Where the space ends before the new size.
    for mode in ("metadata", "falloc", "full"):
        h.case(f"resize without room, {mode}",
               [["peer", "create", "-q", "-f", "qcow2", "a", "1M"], ["io", "-c", "write -P 7 0 128k", "a"],
                ["limit", "resize", f"--preallocation={mode}", "a", "100M"], ["info", "a"]], [("a", "qcow2")],
               errors="any", outputs="skip")
    # Zeroes behind the end of the old backing file stay zeroes, and take no space.
    h.case("rebase off a shorter backing file",
           [["peer", "create", "-q", "-f", "raw", "short", "1M"], ["io", "-f", "raw", "-c", "write -P 1 0 1M", "short"],
            ["peer", "create", "-q", "-f", "qcow2", "-b", "short", "-F", "raw", "o", "8M"],
            ["peer", "create", "-q", "-f", "qcow2", "long", "8M"], io("long", "write -P 7 0 8M"),
            ["rebase", "-b", "long", "-F", "qcow2", "o"], ["map", "--output=json", "o"]], [("o", "qcow2")])
    # What lay behind the new end is gone from the data file, and does not come back.
    h.case("shrink with a data file",
           [["peer", "create", "-q", "-f", "qcow2", "-o", "data_file=d", "a", "8M"], io("a", "write -P 9 0 8M"),
            ["resize", "--shrink", "a", "2M"], ["sh", "test $(stat -c %s d) = 2097152"], ["check", "a"],
            ["map", "--output=json", "a"], ["resize", "a", "8M"], ["io", "-c", "read -P 9 0 2M", "-c", "read -P 0 2M 6M", "a"],
            ["check", "a"]])
    h.case("rebase within chain", three + [["rebase", "-b", "a", "-F", "qcow2", "c"], ["map", "c"],
                                           ["info", "c"]], [("c", "qcow2")])
    h.case("rebase chain away", three + [["rebase", "-b", "", "c"], ["info", "c"]], [("c", "qcow2")])

    for words in ([], ["-d"], ["-q"], ["-f", "qcow2"], ["-t", "none"], ["-b", "a"], ["-r", "100M"]):
        h.case(f"commit {' '.join(words)}",
               chain + [["commit", *words, "b"], ["map", "a"], ["info", "b"],
                        ["map", "b"]], [("a", "qcow2"), ("b", "qcow2")])
    h.case("commit grows", three + [["commit", "c"], ["info", "b"]], [("b", "qcow2"), ("c", "qcow2")])
    # The base by other names: in full, by another path, from a directory of its own.
    for name in ("$PWD/a", "./a", "$PWD/../$(basename $PWD)/a", "link"):
        for verb, rest in (("commit -b", "c"), ("rebase -F qcow2 -b", "c")):
            h.case(f"{verb} {name}", three + [["sh", "ln -s a link"],
                                              ["shell", f"{verb} {name} {rest}"], ["map", "c"]],
                   [("a", "qcow2"), ("c", "qcow2")])
    deep = three + [["sh", "mkdir d; mv a b c d"]]
    for name in ("a", "$PWD/d/a"):
        h.case(f"commit -b {name} in directory", deep + [["shell", f"commit -b {name} d/c"]],
               [("d/a", "qcow2"), ("d/c", "qcow2")])
    h.case("commit to bottom", three + [["commit", "-b", "a", "c"], ["info", "a"]], [("a", "qcow2")])
    h.case("commit to raw", rawbase + [["peer", "create", "-q", "-f", "qcow2", "-b", "base", "-F",
                                        "raw", "o", "6M"], io("o", "write -P 3 5M 64k", "write -z 0 64k"),
                                       ["commit", "o"]], [("base", "raw"), ("o", "qcow2")])
    for words in (["-b", "nofile"], ["-t", "foo"], ["-r", "foo"]):
        line(f"commit refused {' '.join(words)}", "commit", *words, "b", before=chain,
             images=[("a", "qcow2"), ("b", "qcow2")])
    line("commit without backing", "commit", "a", before=data)
    for words in (["-s", "b", "a"], ["b", "a"], ["-s", "a", "a"], ["a", "e"], ["-s", "a", "e"], ["e", "b"]):
        line(f"compare {' '.join(words)}", "compare", *words,
             before=chain + [["peer", "create", "-q", "-f", "qcow2", "e", "10M"]])


def checks(h, line, io, data, packed):
    # A refcount too many (a leak) and one too few (corruption) for the first data cluster.
    def poke(offset, value):
        return ["sh", f"printf '\\{value >> 6 & 7:o}{value >> 3 & 7:o}{value & 7:o}' | "
                      f"dd of=a bs=1 seek={offset} conv=notrunc status=none"]
    refcount = 2 * 65536 + 8 * 2 + 1  # of the cluster at 0x80000
    leak = data + [poke(refcount, 2)]
    lost = data + [poke(refcount, 0)]
    dirty = data + [poke(79, 1)]
    for what, before in (("leak", leak), ("corrupt", lost), ("dirty", dirty)):
        for words in ([], ["--output=json"], ["-q"], ["-r", "leaks"], ["-r", "all"],
                      ["-r", "all", "--output=json"]):
            h.case(f"check {what} {' '.join(words)}",
                   before + [["check", *words, "a"], ["check", "a"]],
                   [("a", "qcow2")] if "all" in words else ())


def conversions(h, line, data, chain, three, packed, snaps, rawbase):
    sources = (("data", data, "a"), ("chain", chain, "b"), ("three", three, "c"), ("packed", packed, "p"),
               ("raw", rawbase, "base"))
    look = ["map", "--output=json", "x"]
    for what, before, name in sources:
        for words in ([], ["-W"], ["-c"], ["-S", "0"], ["-m", "1"], ["-o", "cluster_size=4k"],
                      ["-o", "compat=0.10"], ["-o", "refcount_bits=1"], ["-o", "compression_type=zstd", "-c"],
                      ["-o", "preallocation=metadata"], ["-t", "none"]):
            steps = [["convert", "-O", "qcow2", *words, name, "x"], ["info", "x"], ["check", "x"]]
            if "-c" in words or "-W" in words:
                steps.pop()  # packed sizes differ with the compressor, places with the order
            elif "preallocation=metadata" not in words:
                steps.append(look)  # (holes within preallocated clusters are the file system's)
            h.case(f"convert {what} to qcow2 {' '.join(words)}", before + steps, [("x", "qcow2")])
        h.case(f"convert {what} to raw", before + [["convert", name, "x"]], [("x", "raw")])
    h.case("convert overlay onto same base", chain + [["convert", "-O", "qcow2", "-B", "a", "-F", "qcow2",
                                                       "b", "x"], look, ["info", "x"]], [("x", "qcow2")])
    h.case("convert overlay with -o backing", chain + [["convert", "-O", "qcow2", "-o",
                                                        "backing_file=a,backing_fmt=qcow2", "b", "x"], look],
           [("x", "qcow2")])
    h.case("convert into existing", chain + [["peer", "create", "-q", "-f", "qcow2", "x", "12M"],
                                             ["convert", "-n", "-O", "qcow2", "b", "x"]],
           [("x", "qcow2")])
    h.case("convert joined", chain + [["convert", "-O", "qcow2", "b", "a", "x"], look], [("x", "qcow2")])
    for words in (["-B", "a"], ["-o", "backing_file=a"], ["-c", "-o", "preallocation=metadata"],
                  ["-c", "-C"], ["-o", "cluster_size=3"], ["-o", "compression_type=foo"],
                  ["-l", "nosnap"]):
        line(f"convert qcow2 refused {' '.join(words)}", "convert", "-O", "qcow2", *words, "a", "x",
             before=data)
    for words in (["-O", "qcow2"], ["-O", "raw"], ["-O", "qcow2", "--skip-broken-bitmaps"]):
        line(f"convert --bitmaps {' '.join(words)}", "convert", "--bitmaps", *words, "a", "x",
             before=data, images=[("x", "qcow2")] if "raw" not in words else ())
    line("convert --bitmaps of raw", "convert", "--bitmaps", "-O", "qcow2", "base", "x", before=rawbase)
    line("convert two to overlay", "convert", "-O", "qcow2", "-B", "a", "-F", "qcow2", "a", "a", "x",
         before=data)
    line("convert two snapshots", "convert", "-O", "qcow2", "-l", "s1", "a", "a", "x", before=snaps)
    line("convert missing backing", "convert", "-O", "qcow2", "b", "x", before=chain + [["sh", "rm a"]])
