"""bench: the command line, what is announced, what is left in the image. The time is masked."""

SETUP = [["peer", "create", "-q", "a", "1M"],
         ["io", "-f", "raw", "-c", "write -P 1 64k 100k", "-c", "write -P 2 700k 4k", "a"]]
QCOW2 = [["peer", "create", "-q", "-f", "qcow2", "q", "1M"],
         ["io", "-f", "qcow2", "-c", "write -P 1 64k 100k", "q"]]


def run(h):
    def line(name, *words, before=SETUP, images=(), **how):
        h.case(f"bench {name or ' '.join(words)}", list(before) + [["bench", *words]], images, **how)

    for words in ("a", "-c 10 a", "-c 0x10 a", "-c 010 a", "-c 0 a", "-c 0 -d 0 a", "-c 9 -d 1 a", "-c 9 -d 0x20 a",
                  "-c 3 -s 64k a", "-c 3 -s 0 a", "-c 3 -S 0 a", "-c 3 -S 70000 a", "-c 3 -s 1M a",
                  "-c 20 -s 100 a", "-c 20 -s 512 -t none a", "-c 3 -o 3000 a", "-c 3 -o 0x200 a", "-c 3 -o 1k a",
                  "-q -c 3 a", "-U -c 3 a", "--no-drain -c 3 a", "--pattern=5 -c 3 a", "-i threads -c 2 a",
                  "-i io_uring -c 2 a", "-n -t none -c 2 a", "-i native -t directsync -c 2 a", "-c 2 -d 100000 a",
                  "-f raw -c 3 a", "--image-opts driver=raw,file.filename=a -c 2"):
        line("", *words.split())

    for words in ("-c x", "-c -1", "-c 1k", "-c 2147483648", "-c 99999999999999999999", "-d x", "-d 2147483648",
                  "-t foo", "-i foo", "-n", "-i native", "-t writethrough -n", "--flush-interval=2",
                  "--flush-interval=x -w", "--flush-interval=2 -w", "--pattern=300 -w", "--pattern=-1 -w", "-s 3G",
                  "-S 3G", "-o 9E", "-f qcow2", "-f foo", "-f raw --image-opts", "-U -w", "-z", "--output=json", "b",
                  "--object secret,id=s,data=x", "-c", "--pattern"):
        line("refused " + words, *words.split(), "a")
    for words in ("-o x", "-o -1", "-s x", "-S x", "-s -1"):
        line("refused " + words, *words.split(), "a", errors="any")
    line("without a name")
    line("missing file", "-c", "3", "nofile")
    line("missing file, native", "-c", "3", "-n", "nofile")

    # What lies behind the end fails.
    for words in ("-o 2M", "-o 1M", "-o 1048000", "-s 2M", "-s 1000000 -S 500000", "-w -o 1M", "-w -s 1000000 -S 500000"):
        line("behind the end " + words, "-f", "raw", "-c", "3", "-d", "1", *words.split(), "a")

    # Writes leave the same image: each request's place, size and bytes.
    for words in ("-c 10", "-c 10 --pattern=7", "-c 10 --pattern=0x41 -S 70000", "-c 5 -s 100k -o 13",
                  "-c 200 -d 7 --pattern=9 -S 4097", "-c 5000 -d 7 -s 512 -S 37376 --pattern=9", "-c 10 -d 3 -t none -S 5000 --pattern=1",
                  "-c 10 -d 3 -t unsafe --pattern=1", "-c 10 -d 3 -t writethrough --pattern=1",
                  "-c 10 -d 3 --flush-interval=3 --pattern=2", "-c 10 -d 3 --flush-interval=4 --pattern=2",
                  "-c 10 -d 1 --flush-interval=1 --pattern=2", "-c 10 -d 3 --flush-interval=100 --pattern=2",
                  "-c 10 -d 3 --flush-interval=3 --no-drain --pattern=2", "-c 10 -d 3 --flush-interval=0 --pattern=2",
                  "-c 50 -d 1 --flush-interval=1 --no-drain --pattern=2", "-c 0 --pattern=2", "-c 3 -s 0"):
        line("writes " + words, "-w", "-f", "raw", *words.split(), "a", images=[("a", "raw")])
        line("writes qcow2 " + words, "-w", "-f", "qcow2", *words.split(), "q", before=QCOW2, images=[("q", "qcow2")])
    line("writes a probed image", "-w", "-c", "3", "--pattern=65", "a", images=[("a", "raw")])
    line("reads qcow2", "-c", "300", "-S", "5000", "q", before=QCOW2)
    line("reads an overlay", "-c", "300", "-S", "5000", "o",
         before=QCOW2 + [["peer", "create", "-q", "-f", "qcow2", "-b", "q", "-F", "qcow2", "o"]])
