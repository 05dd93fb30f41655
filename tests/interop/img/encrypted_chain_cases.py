"""Chains of encrypted and plain images, and copies between them: what both programs say, and what the
disks hold afterwards. Mostly with the AES method, as QEMU cannot always measure what LUKS costs."""

SECRETS = ["--object", "secret,id=s0,data=abc", "--object", "secret,id=s1,data=def"]
AES = "encrypt.format=aes,encrypt.key-secret=s0"
LUKS = "encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=10"


def opts(image, key="s0", more=""):
    return f"driver=qcow2,file.filename={image}" + (f",encrypt.key-secret={key}" if key else "") + more


def json(image, key="s0"):
    secret = f'"encrypt.key-secret":"{key}",' if key else ""
    return f'json:{{"driver":"qcow2",{secret}"file":{{"driver":"file","filename":"{image}"}}}}'


def run(h):
    def io(name, *commands):
        return ["io", *SECRETS, "--image-opts"] + [w for c in commands for w in ("-c", c)] + [name]

    def create(image, size="4M", encryption="", backing=None, fmt="qcow2"):
        options = [] if not encryption else ["-o", encryption]
        below = [] if not backing else ["-b", backing, "-F", fmt]
        # LUKS by us: it takes QEMU long to measure how much work a short time is.
        return ["ours" if encryption.startswith("encrypt.format=luks") else "peer", "create", "-q", *SECRETS, "-f", "qcow2", *options, *below,
                *(["-u"] if backing else []), image, size]

    def verb(name, *words):
        return [name, *SECRETS, *words]

    # Reading is left to QEMU on both sides: what each side has made holds the same.
    def reads(name, *commands):
        return io(name, *commands)

    for method, encryption in (("aes", AES), ("luks", LUKS)):
        # A disk of its own.
        alone = [create("e", encryption=encryption),
                 io(opts("e"), "write -P 1 0 1M", "write -P 2 2M 100k")]
        full = ["read -P 1 0 1M", "read -P 0 1M 1M", "read -P 2 2M 100k"]
        h.case(f"{method} to plain", alone + [
            verb("convert", "--image-opts", "-O", "qcow2", opts("e"), "p"), ["compare", "p", "p"],
            reads("driver=qcow2,file.filename=p", *full)], [("p", "qcow2")])
        h.case(f"{method} to raw by json name", alone + [
            verb("convert", "-O", "raw", json("e"), "r")], [("r", "raw")])
        h.case(f"plain to {method}", [
            create("p"), io(opts("p", None), "write -P 1 0 1M", "write -P 2 2M 100k"),
            verb("convert", "-O", "qcow2", "-o", encryption, "p", "e"),
            verb("check", "--image-opts", opts("e")), reads(opts("e"), *full)])
        h.case(f"{method} into {method}, another key", alone + [
            create("f", encryption=encryption.replace("s0", "s1")),
            verb("convert", "-n", "--image-opts", "--target-image-opts", opts("e"), opts("f", "s1")),
            verb("compare", "--image-opts", opts("e"), opts("f", "s1")),
            reads(opts("f", "s1"), *full)])
        h.case(f"{method} compared", alone + [
            create("p"), io(opts("p", None), "write -P 1 0 1M", "write -P 2 2M 100k"),
            verb("compare", "--image-opts", opts("e"), opts("p", None)),
            io(opts("p", None), "write -P 3 3M 512"),
            verb("compare", "--image-opts", opts("e"), opts("p", None)),
            verb("compare", "-s", "--image-opts", opts("e"), opts("p", None))])
        h.case(f"{method} resized", alone + [
            verb("resize", "--image-opts", opts("e"), "6M"),
            verb("resize", "--shrink", "--image-opts", opts("e"), "2112k"),
            verb("resize", "--image-opts", opts("e"), "3M"),
            verb("check", "--image-opts", opts("e")),
            reads(opts("e"), "read -P 1 0 1M", "read -P 2 2M 64k", "read -P 0 2112k 960k")])
        h.case(f"{method} snapshots", alone + [
            verb("snapshot", "-c", "s", "--image-opts", opts("e")),
            io(opts("e"), "write -P 9 0 100k"),
            verb("snapshot", "-a", "s", "--image-opts", opts("e")),
            verb("snapshot", "-d", "s", "--image-opts", opts("e")),
            # (The place of the new L1 table, and so where the image ends, is each program's own.)
            verb("check", "-q", "--image-opts", opts("e")), reads(opts("e"), *full)])

        # An encrypted overlay on a plain base.
        over = [create("b"), io(opts("b", None), "write -P 5 0 2M", "write -P 6 3M 1M"),
                create("e", encryption=encryption, backing="b"),
                io(opts("e"), "write -P 7 1M 100k", "write -P 8 3M 3k", "write -z 100k 200k")]
        shown = ["read -P 5 0 100k", "read -P 0 100k 200k", "read -P 5 300k 724k", "read -P 7 1M 100k",
                 "read -P 8 3M 3k", "read -P 6 3075k 1021k"]
        h.case(f"{method} overlay", over + [
            verb("map", "--image-opts", opts("e")), verb("check", "--image-opts", opts("e")),
            verb("convert", "--image-opts", "-O", "raw", opts("e"), "r"),
            reads(opts("e"), *shown)], [("r", "raw")])
        h.case(f"{method} overlay committed", over + [
            verb("commit", "--image-opts", opts("e")), reads(opts("b", None), *shown),
            reads(opts("e"), *shown), verb("map", "--image-opts", opts("e"))], [("b", "qcow2")])
        other = [create("c", "3M"), io(opts("c", None), "write -P 5 0 1M", "write -P 4 1M 1M")]
        h.case(f"{method} overlay rebased", over + other + [
            verb("rebase", "--image-opts", "-b", json("c", None), "-F", "qcow2", opts("e")),
            verb("check", "--image-opts", opts("e")), reads(opts("e"), *shown)])
        h.case(f"{method} overlay made independent", over + [
            verb("rebase", "--image-opts", "-b", "", opts("e")),
            ["sh", "rm b"], reads(opts("e"), *shown)])

        # A plain overlay on an encrypted base.
        key = ",backing.encrypt.key-secret=s0"
        under = alone + [create("o", backing="e"),
                         io(opts("o", None, key), "write -P 7 512k 100k", "write -P 8 2M 3k")]
        shown = ["read -P 1 0 512k", "read -P 7 512k 100k", "read -P 1 612k 412k", "read -P 8 2M 3k",
                 "read -P 2 2051k 97k", "read -P 0 3M 1M"]
        h.case(f"overlay on {method}", under + [
            verb("map", "--image-opts", opts("o", None, key)),
            verb("convert", "--image-opts", "-O", "raw", opts("o", None, key), "r")], [("r", "raw")])
        h.case(f"overlay on {method} committed", under + [
            verb("commit", "--image-opts", opts("o", None, key)), reads(opts("e"), *shown),
            verb("check", "--image-opts", opts("e"))])
        h.case(f"overlay on {method} rebased", under + [
            create("c", "3M"), verb("rebase", "--image-opts", "-b", json("c", None), "-F",
                                    "qcow2", opts("o", None, key)),
            ["check", "o"], reads(opts("o", None), *shown)])
        h.case(f"rebased onto {method}", under + [
            create("p"), verb("rebase", "-u", "-b", "p", "-F", "qcow2", "o"),
            verb("rebase", "-b", json("e"), "-F", "qcow2", "o"),
            reads(opts("o", None), "read -P 0 0 512k", "read -P 7 512k 100k", "read -P 0 3M 1M")])

    made = [create("e", encryption=AES), create("l", encryption=LUKS),
            create("o", backing="e"), create("p")]
    for title, step in {
            "convert without key": ["convert", "-O", "raw", "e", "r"],
            "convert, key unknown": ["convert", "--image-opts", "-O", "raw", opts("e", "s9"), "r"],
            "convert, wrong key": verb("convert", "--image-opts", "-O", "raw", opts("l", "s1"), "r"),
            "convert by json, wrong key": verb("convert", "-O", "raw", json("l", "s1"), "r"),
            "convert by json, key unknown": verb("convert", "-O", "raw", json("l", "s9"), "r"),
            "convert into without key": verb("convert", "-n", "-O", "qcow2", "p", "e"),
            "convert, target key unknown": verb("convert", "-O", "qcow2", "-o",
                                                AES.replace("s0", "s9"), "p", "x"),
            "resize without key": ["resize", "-f", "qcow2", "e", "8M"],
            "commit without key": ["commit", "-f", "qcow2", "o"],
            "rebase without key": ["rebase", "-f", "qcow2", "-b", "p", "-F", "qcow2", "o"],
            "rebase onto without key": ["rebase", "-f", "qcow2", "-b", "e", "-F", "qcow2", "o"],
            "compare without key": ["compare", "p", "e"],
            "compare, wrong key": verb("compare", "--image-opts", opts("p", None), opts("l", "s1")),
            "dd without key": ["dd", "if=e", "of=r"],
            "measure without key": ["measure", "-O", "raw", "e"],
            "info of an overlay": ["info", "--backing-chain", "o"],
            "map of an overlay without key": ["map", "o"],
            "key for a plain image": verb("check", "--image-opts", opts("p")),
            "luks said of aes": verb("check", "--image-opts", opts("e", more=",encrypt.format=luks")),
            "aes said of luks": verb("check", "--image-opts", opts("l", more=",encrypt.format=aes")),
    }.items():
        h.case(f"encrypted: {title}", made + [step])
