"""`platter img snapshot -r`, which qemu-img does not have: what QEMU's tools say of the image then."""
from stream_cases import Stage

OPTIONS = ["", "compat=0.10", "cluster_size=512", "extended_l2=on", "lazy_refcounts=on", "refcount_bits=64"]


def listed(stage):
    """Ids and names, as qemu-img lists them."""
    lines = stage.peer("snapshot", "-l", "a").stdout.decode().splitlines()[2:]
    return [line.split()[:2] for line in lines]


def renamed(h, options):
    stage = Stage(h, f"snapshot -r {options}")
    stage.peer("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), "a", "8M")
    for value, name in ((1, "one"), (2, "two"), (3, "twice"), (4, "twice"), (5, "five")):
        stage.io("a", f"write -P {value} 64k 1M", f"write -P {value} {value}M 100k")
        stage.peer("snapshot", "-c", name, "a")
        stage.peer("convert", "-O", "raw", "a", f"shown{value}")
    stage.io("a", "write -P 9 64k 1M")
    stage.peer("convert", "-O", "raw", "a", "shown9")
    for words, names in ((["-r", "one", "--to", "first"], "first two twice twice five"),
                         (["--rename=2", "--to=second"], "first second twice twice five"),
                         (["-q", "-r", "five", "--to", "twice"], "first second twice"),
                         (["-r", "first", "--to", "second"], "second twice"),
                         (["-r", "second", "--to", "second"], "second twice")):
        done = stage.ours("snapshot", *words, "a")
        stage.expect("output", done.stdout + done.stderr, b"")
        stage.expect("list", " ".join(name for _, name in listed(stage)), names)
        stage.peer("check", "a")
    stage.expect("list", listed(stage), [["1", "second"], ["5", "twice"]])
    for value, name in ((1, "second"), (5, "twice")):
        stage.peer("convert", "-l", f"snapshot.name={name}", "-O", "raw", "a", "shown")
        stage.peer("compare", "-f", "raw", "-F", "raw", "shown", f"shown{value}")
    stage.peer("compare", "-f", "qcow2", "-F", "raw", "a", "shown9")
    # QEMU goes on with it.
    stage.peer("snapshot", "-a", "second", "a")
    stage.peer("compare", "-f", "qcow2", "-F", "raw", "a", "shown1")
    stage.peer("snapshot", "-d", "twice", "a")
    stage.peer("check", "a")


def refused(h):
    stage = Stage(h, "snapshot -r, refused")
    stage.peer("create", "-q", "-f", "qcow2", "a", "8M")
    stage.peer("create", "-q", "-f", "raw", "raw", "8M")
    stage.peer("snapshot", "-c", "one", "a")
    for words, said in ((["-r", "x", "--to", "y", "a"], "a: Could not rename snapshot 'x' to 'y': snapshot 'x' not found"),
                        (["-r", "one", "--to", "", "a"], "the new name is empty"),
                        (["-r", "one", "--to", "x" * 256, "a"], "the name has 256 bytes, 255 is the limit"),
                        (["-r", "one", "--to", "y", "raw"], "Block driver does not support snapshots"),
                        (["-r", "one", "a"], "'-r' expects a new name: '--to NAME'"),
                        (["-l", "--to", "y", "a"], "'--to' goes with '-r'"),
                        (["-l", "-r", "one", "--to", "y", "a"], "Cannot mix '-l', '-a', '-c', '-d', '-r'"),
                        (["-r", "one", "--to", "y", "-d", "one", "a"], "Cannot mix '-l', '-a', '-c', '-d', '-r'")):
        done = stage.ours("snapshot", *words, status=1)
        stage.expect(f"{words[:4]}: the error says so", said in done.stderr.decode(), True)
        stage.expect("output", done.stdout, b"")
        stage.expect("list", listed(stage), [["1", "one"]])


def run(h):
    for options in OPTIONS:
        if h.wanted(f"snapshot -r {options}"):
            h.running.append(h.pool.submit(renamed, h, options))
    if h.wanted("snapshot -r, refused"):
        h.running.append(h.pool.submit(refused, h))
