"""Raw images that another process writes and shares: who may look at them."""
import subprocess

from stream_cases import Stage

LOOKS = (["info", "-f", "raw", "held"], ["info", "held"], ["map", "-f", "raw", "held"], ["map", "held"],
         ["check", "-f", "raw", "held"], ["compare", "-f", "raw", "-F", "raw", "held", "other"], ["compare", "other", "held"],
         ["measure", "-f", "raw", "-O", "qcow2", "held"], ["measure", "-O", "qcow2", "held"], ["snapshot", "-l", "held"],
         ["bench", "-c", "10", "-f", "raw", "held"], ["dd", "-f", "raw", "if=held", "of=copy"], ["dd", "if=held", "of=copy"],
         ["convert", "-f", "raw", "-O", "raw", "held", "copy2"], ["convert", "-O", "qcow2", "held", "copy2"])
# qemu-img would.
REFUSED = (["resize", "-f", "raw", "held", "9M"], ["create", "-q", "-f", "raw", "held", "8M"],
           ["convert", "-O", "raw", "other", "held"], ["dd", "if=held", "of=held"])


def held(h):
    stage = Stage(h, "raw image in use")
    for name in ("held", "other"):
        stage.peer("create", "-q", "-f", "raw", name, "8M")
    with subprocess.Popen([h.peer_io, "-f", "raw", "held"], cwd=stage.path, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as user:
        user.stdin.write(b"write -P 1 0 64k\n")
        user.stdin.flush()
        user.stdout.readline()  # it has opened the image
        user.stdin.write(b"write -P 0 0 64k\n")
        user.stdin.flush()
        for words in LOOKS:
            theirs, ours = (subprocess.run([program, *words], cwd=stage.path, capture_output=True, timeout=120)
                            for program in (h.peer, h.ours))
            stage.expect(f"exit status of {words}", ours.returncode, theirs.returncode)
            stage.expect(f"lock that {words} misses", b"Failed to get" in ours.stderr, b"Failed to get" in theirs.stderr)
        for words in REFUSED:
            done = stage.ours(*words, status=1)
            stage.expect(f"lock that {words} misses", b"Failed to get" in done.stderr, True)
        user.communicate(timeout=60)


def run(h):
    if h.wanted("raw image in use"):
        h.running.append(h.pool.submit(held, h))
