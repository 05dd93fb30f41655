"""Command lines of `amend`."""


def run(h):
    def io(image, *commands):
        return ["io", "-f", "qcow2"] + [word for command in commands for word in ("-c", command)] + [image]

    def amended(name, steps, options, after=(), **how):
        looks = [["amend", "-f", "qcow2", "-o", options, "a"], ["check", "-q", "a"],
                 ["peer", "check", "a"], ["info", "--output=json", "a"]]
        h.case(f"amend {name}", steps + looks + list(after), [("a", "qcow2")], **how)

    fresh = [["peer", "create", "-q", "-f", "qcow2", "a", "10M"]]
    old = [["peer", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "a", "10M"]]
    content = [io("a", "write -P 1 0 100k", "write -z 1M 128k", "write -P 2 5M 64k",
                  "write -z 5M 64k", "write -P 3 7M 1M")]
    # Where zeroed clusters keep their space, QEMU's downgrade gives images with snapshots wrong flags
    # and can overwrite a snapshot's data: ours is tested by tests/unit/qcow2/amend_test.cpp.
    plain = [io("a", "write -P 1 0 100k", "write -z 1M 128k", "write -P 2 5M 64k")]
    snaps = [["peer", "snapshot", "-c", "s1", "a"], io("a", "write -P 7 0 64k"),
             ["peer", "snapshot", "-c", "s2", "a"], io("a", "write -P 8 2M 64k")]
    back = [["peer", "snapshot", "-a", "s1", "a"], ["peer", "check", "a"],
            ["peer", "compare", "-f", "qcow2", "-F", "qcow2", "a", "a"]]
    base = [["peer", "create", "-q", "base", "12M"], ["io", "-f", "raw", "-c", "write -P 9 0 12M", "base"],
            ["peer", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "a"]]

    amended("nothing", fresh + content, "compat=1.1")
    amended("upgrade", old + content, "compat=1.1", [io("a", "write -z 0 64k", "read -P 0 0 64k")])
    amended("upgrade with snapshots", old + content + snaps, "compat=v3", back)
    amended("downgrade", fresh + content, "compat=0.10", [io("a", "write -P 4 0 64k")])
    amended("downgrade with snapshots", fresh + plain + snaps, "compat=0.10", back)
    amended("downgrade over a base", base + content, "compat=0.10")
    amended("downgrade over a base with snapshots", base + plain + snaps, "compat=v2", back)
    amended("downgrade lazy", fresh + [["peer", "amend", "-o", "lazy_refcounts=on", "a"]] + content,
            "compat=0.10")
    for bits in (1, 2, 8, 32, 64):
        amended(f"refcount_bits={bits}", fresh + content, f"refcount_bits={bits}",
                [io("a", "write -P 5 3M 1M", "discard 0 64k"), ["check", "-q", "a"]])
    amended("refcount_bits=2 with snapshots", fresh + content + snaps, "refcount_bits=2")
    for bits in (8, 64):
        amended(f"refcount_bits={bits} with snapshots", fresh + content + snaps,
                f"refcount_bits={bits}", back)
    amended("refcount_bits=1 with snapshots", fresh + content + snaps, "refcount_bits=1", back)
    amended("upgrade and refcount_bits", old + content, "compat=1.1,refcount_bits=4")
    amended("lazy on", fresh + content, "lazy_refcounts=on", [io("a", "write -P 5 3M 1M")])
    amended("lazy off", fresh + [["peer", "amend", "-o", "lazy_refcounts=on", "a"]] + content,
            "lazy_refcounts=off")
    for size in ("20M", "5M", "10485760", "0"):
        amended(f"size {size}", fresh + content, f"size={size}")
    amended("size and downgrade", fresh + content, "size=12M,compat=0.10")
    amended("the same backing file", base, "backing_file=base,backing_fmt=raw")

    for option in ("compat=0.9", "compat=0.10,refcount_bits=8", "refcount_bits=7", "refcount_bits=128",
                   "refcount_bits=0", "data_file=x", "data_file_raw=on", "size=100", "nosuch=1",
                   "lazy_refcounts=maybe", "compat=0.10,lazy_refcounts=on"):
        amended(f"refused {option}", fresh + content, option)
    # QEMU says these in two lines.
    for option in ("cluster_size=4k", "preallocation=full", "extended_l2=on", "compression_type=zstd",
                   "encrypt.format=luks", "encryption=on", "backing_fmt=raw", "backing_file=zz"):
        amended(f"refused {option}", fresh + content, option, errors="any")
    # (QEMU makes a zlib image out of one with zstd, whatever it holds.)
    for create in ("extended_l2=on", "refcount_bits=1"):
        amended(f"no downgrade of {create}",
                [["peer", "create", "-q", "-f", "qcow2", "-o", create, "a", "10M"]] + content,
                "compat=0.10")
    amended("no downgrade after a resize", fresh + content + snaps + [["peer", "resize", "-q", "a", "11M"]],
            "compat=0.10")
    h.case("amend without options", fresh + [["amend", "a"]])
    h.case("amend raw", [["peer", "create", "-q", "r", "1M"], ["amend", "-f", "raw", "-o", "size=1M", "r"]])
    h.case("amend nothing named", [["amend", "-o", "compat=1.1"]])
    h.case("amend what is not there", [["amend", "-o", "compat=1.1", "none"]])
    h.case("amend -p", fresh + [["amend", "-p", "-f", "qcow2", "-o", "compat=0.10", "a"]], outputs="skip")
