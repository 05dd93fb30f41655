"""Persistent dirty bitmaps: `bitmap`, what other verbs do with them, and what both programs mark."""
import shutil


def run(h):
    def line(name, *words, before=(), images=(), **how):
        h.case(f"bitmap {name}", list(before) + [list(words)], images, **how)

    made = [["peer", "create", "-q", "-f", "qcow2", "a", "10M"],
            ["peer", "bitmap", "--add", "a", "b"], ["peer", "bitmap", "--add", "-g", "4k", "--disable", "a", "c"]]
    broken = made + [["sh", "cp a saved; qemu-io -c 'write 0 1M' a; dd if=saved of=/dev/null 2>&1"],
                     # As a crash leaves it: QEMU flags bitmaps while the image is open for writing.
                     ["sh", "qemu-io -c 'write 3M 64k' -c abort a || true"]]
    words_refused(h, line, made)
    operations(h, line, made)
    verbs(h, line, made, broken)
    if shutil.which("qemu-nbd"):
        marks(h)
    else:
        print("qemu-nbd (Debian package qemu-utils) is missing: marks are not compared")


def words_refused(h, line, made):
    for words in ("", "a", "a b", "--add", "--add a", "--add a b x", "--clear -g 512 a b", "-x a b",
                  "--merge b -F raw a b", "--clear -b a a b", "--add --merge", "--add -f", "--help x --bogus",
                  "--add --image-opts -f qcow2 driver=qcow2,file.filename=a z", "--object foo --add a b",
                  "--add -f foo a z"):
        line("refused " + words, "bitmap", *words.split(), before=made,
             errors="any" if "foo" in words else "exact", outputs="skip")
    for words in ("--add a b", "--add -g 100 a z", "--add -g 513 a z", "--add -g 4G a z", "--add -g 8192P a z",
                  "--remove a z", "--clear a z", "--enable a z", "--disable a z", "--merge z a b", "--merge b a z",
                  "--merge z a z", "--merge b -b nofile a b", "--add nofile b", "--remove --remove a b",
                  "--add r b", "--add -f raw r b", "--clear -f raw r b", "--merge s -b r -F raw a b",
                  "--merge s -b big a b", "--add v2 b", "--clear v2 b"):
        line("refused " + words, "bitmap", *words.split(),
             before=made + [["peer", "create", "-q", "r", "10M"],
                            ["peer", "create", "-q", "-f", "qcow2", "big", "11M"],
                            ["peer", "bitmap", "--add", "big", "s"],
                            ["peer", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "v2", "10M"]],
             images=[("a", "qcow2")])
    line("granularity is no number", "bitmap", "--add", "-g", "x", "a", "z", before=made, errors="any")
    line("empty name", "bitmap", "--add", "a", "", before=made)
    line("long name", "bitmap", "--add", "a", "x" * 1024, before=made)
    line("longest name", "bitmap", "--add", "a", "x" * 1023, before=made, images=[("a", "qcow2")])
    line("granularity too small for the disk", "bitmap", "--add", "-g", "512", "h", "b",
         before=[["peer", "create", "-q", "-f", "qcow2", "h", "1P"]])


def operations(h, line, made):
    for words in ("--add a z", "--add -g 512 a z", "--add -g 2G a z", "--add -g 0 a z", "--add --disable a z",
                  "--remove a b", "--clear a b", "--enable a c", "--disable a b", "--enable --disable --clear a b",
                  "--merge c a b", "--merge b --merge c a b", "--remove --add -g 1M a b", "--add --merge b a z",
                  "--merge b --disable a c", "--add --remove a z", "--add --image-opts driver=qcow2,file.filename=a z",
                  "--add -f qcow2 a z"):
        h.case(f"bitmap {words}", made + [["bitmap", *words.split()], ["info", "a"], ["info", "--output=json", "a"],
                                          ["check", "-q", "a"]], [("a", "qcow2")])
    h.case("bitmap remove all", made + [["bitmap", "--remove", "a", "b"], ["bitmap", "--remove", "a", "c"],
                                        ["info", "a"]], [("a", "qcow2")])
    # What was done before a step that fails stays.
    h.case("bitmap fails in the middle", made + [["bitmap", "--disable", "--merge", "z", "--enable", "a", "b"],
                                                 ["info", "a"]], [("a", "qcow2")])
    for options in ("cluster_size=512", "cluster_size=2k", "cluster_size=2M"):
        h.case(f"bitmap default granularity {options}",
               [["peer", "create", "-q", "-f", "qcow2", "-o", options, "a", "10M"],
                ["bitmap", "--add", "a", "b"], ["info", "a"]], [("a", "qcow2")])


def verbs(h, line, made, broken):
    for words in ("measure -O qcow2 a", "measure -O qcow2 --output=json a", "measure -O raw a",
                  "measure -O qcow2 -o cluster_size=4k a", "measure -O qcow2 -o compat=0.10 a", "info a",
                  "info --output=json a", "check --output=json a"):
        line(words, *words.split(), before=made)
        line("broken " + words, *words.split(), before=broken, errors="any" if "check" in words else "exact",
             outputs="skip" if "check" in words else "exact")
    for words in ("--clear a b", "--enable a b", "--disable a b", "--merge c a b", "--merge b a c", "--merge b a b",
                  "--add a b"):
        line("broken " + words, "bitmap", *words.split(), before=broken)
    h.case("bitmap broken --remove", broken + [["bitmap", "--remove", "a", "b"], ["bitmap", "--remove", "a", "c"],
                                               ["info", "a"]], [("a", "qcow2")])
    for words in ("a 20M", "--shrink a 5M", "a +0"):
        h.case(f"bitmap resize {words}", made + [["resize", *words.split()], ["info", "a"]], [("a", "qcow2")])
    line("broken resize", "resize", "a", "20M", before=broken)
    h.case("bitmap snapshots", made + [["snapshot", "-c", "s", "a"], ["snapshot", "-a", "s", "a"],
                                       ["snapshot", "-d", "s", "a"], ["info", "a"]], [("a", "qcow2")])
    for words in ("-O qcow2 a x", "-O qcow2 --skip-broken-bitmaps a x", "-O raw a x", "-O qcow2 a a x",
                  "-O qcow2 -o cluster_size=4k a x", "-O qcow2 -o compat=0.10 a x", "-n -O qcow2 a other",
                  "-n -O qcow2 a has", "-n -O raw a r", "-O qcow2 r x", "-O qcow2 v2 x", "-c -O qcow2 a x"):
        before = made + [["peer", "create", "-q", "-f", "qcow2", "other", "10M"],
                         ["peer", "create", "-q", "-f", "qcow2", "has", "10M"], ["peer", "bitmap", "--add", "has", "c"],
                         ["peer", "create", "-q", "r", "10M"],
                         ["peer", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "v2", "10M"]]
        # (Of a target that cannot hold bitmaps, qemu-img leaves the beginnings.)
        looked_at = "raw" not in words and "compat=0.10" not in words
        h.case(f"bitmap convert {words}",
               before + [["convert", "--bitmaps", *words.split()]] +
               ([["info", "-f", "qcow2", words.split()[-1]]] if looked_at else []))
    h.case("bitmap convert into a larger one", made + [["peer", "create", "-q", "-f", "qcow2", "x", "20M"],
                                                       ["convert", "-n", "--bitmaps", "-O", "qcow2", "a", "x"],
                                                       ["info", "x"]])
    # All that there is room for: as many clusters as the image then has.
    h.case("bitmap convert where there is little room",
           [["peer", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "a", "10M"]] +
           [["peer", "bitmap", "--add", "-g", "4k", "a", name] for name in "bcdefg"] +
           [["sh", "qemu-io -c 'write 0 424k' a"],
            ["limit", "convert", "--bitmaps", "-O", "qcow2", "-o", "cluster_size=4k", "a", "x"],
            ["info", "x"], ["marks", "x", "g"]])
    for words in ("", "--skip-broken-bitmaps"):
        h.case(f"bitmap convert broken {words}",
               broken + [["convert", "--bitmaps", *words.split(), "-O", "qcow2", "a", "x"], ["info", "x"]])
    over = [["peer", "create", "-q", "-f", "qcow2", "base", "10M"], ["peer", "bitmap", "--add", "base", "b"],
            ["peer", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "a"],
            ["peer", "bitmap", "--add", "a", "b"], ["sh", "qemu-io -c 'write 1M 1M' a"]]
    h.case("bitmap commit", over + [["commit", "-q", "a"], ["info", "a"], ["info", "base"]],
           [("a", "qcow2"), ("base", "qcow2")])
    h.case("bitmap rebase", over + [["rebase", "-b", "", "a"], ["info", "a"]], [("a", "qcow2")])
    h.case("bitmap of an overlay without its backing file",
           over + [["sh", "rm base"], ["bitmap", "--clear", "a", "b"], ["info", "a"]])


# Each program does the same, then QEMU tells what the bitmaps in both images have marked.
def marks(h):
    for options in ("cluster_size=64k", "cluster_size=512", "cluster_size=2M,refcount_bits=1"):
        make = [["create", "-q", "-f", "qcow2", "-o", options, "a", "100M"], ["bitmap", "--add", "a", "b"],
                ["bitmap", "--add", "-g", "512", "a", "fine"], ["bitmap", "--add", "-g", "1M", "--disable", "a", "off"],
                ["bitmap", "--add", "-g", "2G", "a", "coarse"]]
        writes = [["both", "-c", "write 1M 64k", "-c", "write 5000 513", "-c", "write -z 20M 1M",
                   "-c", "write -z 33M 700", "-c", "discard 40M 4M", "a"]]
        packed = [["both", "-c", "write -c 52M 2M", "a"]]
        more = [["both", "-c", "write 60M 3M", "-c", "write 104857088 512", "a"]]
        look = [["marks", "a", name] for name in ("b", "fine", "off", "coarse")] + [["check", "-q", "a"], ["info", "a"]]
        h.case(f"bitmap marks {options}", make + writes + packed + look, [("a", "qcow2")])
        h.case(f"bitmap marks of images QEMU made {options}",
               [["peer", *step] for step in make] + writes + packed + look, [("a", "qcow2")])
        h.case(f"bitmap marks that QEMU adds to {options}",
               make + writes + [["io", *more[0][1:]]] + look, [("a", "qcow2")])
        h.case(f"bitmap marks and changes {options}",
               make + writes + [["bitmap", "--merge", "b", "a", "off"], ["bitmap", "--disable", "a", "fine"],
                                ["bitmap", "--clear", "a", "b"]] + more +
               [["bitmap", "--merge", "coarse", "--merge", "fine", "a", "b"], ["bitmap", "--enable", "a", "off"]] +
               writes + look, [("a", "qcow2")])
        for size in ("200M", "101M", "--shrink 61M", "--shrink 1M") if "64k" in options else ():
            h.case(f"bitmap marks after resize {size} {options}",
                   make + writes + [["resize", "-q", *size.split()[:-1], "a", size.split()[-1]]] +
                   [["both", "-c", "write 0 512", "a"]] + look, [("a", "qcow2")])
        h.case(f"bitmap marks converted {options}",
               make + writes + [["convert", "--bitmaps", "-O", "qcow2", "-o", "cluster_size=8k", "a", "x"]] +
               [["marks", "x", name] for name in ("b", "fine", "off", "coarse")] + [["check", "-q", "x"]],
               [("x", "qcow2")])
        h.case(f"bitmap marks merged from another image {options}",
               make + writes + [["peer", "create", "-q", "-f", "qcow2", "x", "100M"],
                                ["bitmap", "--add", "--merge", "fine", "-b", "a", "x", "z"], ["marks", "x", "z"],
                                ["bitmap", "--merge", "coarse", "-b", "a", "-F", "qcow2", "x", "z"],
                                ["marks", "x", "z"]], [("x", "qcow2")])
    make = [["bitmap", "--add", "-g", "512", "a", "fine"], ["bitmap", "--add", "a", "b"]]
    writes = [["both", "-c", "write 1M 64k", "-c", "write 5000 513", "-c", "write -z 20M 1M", "-c",
               "write -z 33M 700", "-c", "discard 40M 4M", "a"]]
    look = [["marks", "a", name] for name in ("b", "fine")] + [["check", "-q", "a"], ["info", "a"]]
    for options in ("extended_l2=on", "data_file=d", "lazy_refcounts=on,refcount_bits=64"):
        h.case(f"bitmap marks {options}",
               [["create", "-q", "-f", "qcow2", "-o", options, "a", "100M"]] + make + writes + look,
               [("a", "qcow2")] if "data" not in options else [])
    # Repairing leaves them as they are.
    for what, place in (("refcounts", 0x2000a), ("refcount table", 0x10000)):
        h.case(f"bitmap marks after a repair of the {what}",
               [["create", "-q", "-f", "qcow2", "a", "100M"]] + make + writes +
               [["sh", f"printf '\\0\\0\\0\\0\\0\\0\\0\\0' | dd of=a bs=1 seek={place} conv=notrunc"],
                ["check", "-q", "-r", "all", "a"]] + look, [("a", "qcow2")], errors="any")
    for options in ("refcount_bits=1", "refcount_bits=64", "lazy_refcounts=on", "size=120M"):
        h.case(f"bitmap marks after amend {options}",
               [["create", "-q", "-f", "qcow2", "a", "100M"]] + make + writes +
               [["amend", "-o", options, "a"], ["both", "-c", "write 90M 1M", "a"]] + look, [("a", "qcow2")])
    over = [["peer", "create", "-q", "-f", "qcow2", "base", "10M"], ["peer", "bitmap", "--add", "base", "b"],
            ["peer", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "a"],
            ["peer", "bitmap", "--add", "a", "b"], ["both", "-c", "write 1M 1M", "-c", "write -z 5M 1M", "a"]]
    h.case("bitmap marks after commit", over + [["commit", "-q", "a"], ["marks", "a", "b"], ["marks", "base", "b"]])
    h.case("bitmap marks after snapshots",
           over + [["snapshot", "-c", "s", "a"], ["both", "-c", "write 7M 1M", "a"], ["marks", "a", "b"]])
