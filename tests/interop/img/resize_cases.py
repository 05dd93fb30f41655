"""`platter img resize -p`, which qemu-img does not have."""
from stream_cases import Stage


def shown(h, kind, words, size):
    stage = Stage(h, f"resize -p {kind} {' '.join(words)} {size}")
    stage.peer("create", "-q", "-f", kind, "a", "20M")
    stage.call(stage.h.peer_io, "-f", kind, "-c", "write -P 1 0 20M", "a")
    done = stage.ours("resize", "-p", "-f", kind, *words, "a", size)
    stage.expect("error output", done.stderr, b"")
    lines = done.stdout.decode()
    stage.expect("start", lines.startswith("    (0.00/100%)\r"), True)
    stage.expect("end", lines.endswith("    (100.00/100%)\r\nImage resized.\n"), True)
    percents = [float(line.split("(")[1].split("/")[0]) for line in lines.split("\r")[:-1]]
    stage.expect("order", percents, sorted(percents))
    if "--preallocation=full" in words:
        stage.expect("something in between", len(percents) > 4, True)
    quiet = stage.ours("resize", "-p", "-q", "-f", kind, "--shrink", "a", "5M")
    stage.expect("quiet", quiet.stdout + quiet.stderr, b"")
    if kind == "qcow2":
        stage.peer("check", "a")


def run(h):
    for kind in ("raw", "qcow2"):
        for words, size in ((["--shrink"], "10M"), ([], "40M"), (["--preallocation=falloc"], "40M"),
                            (["--preallocation=full"], "40M")):
            if h.wanted("resize -p"):
                h.running.append(h.pool.submit(shown, h, kind, words, size))
