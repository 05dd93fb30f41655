"""Command lines on encrypted images. Images are of the AES method where any will do: a LUKS image has a
UUID of its own, and QEMU cannot always measure how much work a short time is."""

SECRET = ["--object", "secret,id=s0,data=abc"]
OPEN = "driver=qcow2,encrypt.key-secret=s0,file.filename="


def run(h):
    def line(name, *words, before=(), images=(), **how):
        h.case(name, list(before) + [list(words)], images, **how)

    made = [["peer", "create", "-q", *SECRET, "-f", "qcow2", "-o",
             "encrypt.format=aes,encrypt.key-secret=s0", "a", "4M"]]
    for options in ("encrypt.format=foo", "encrypt.format=luks", "encrypt.format=aes",
                    "encrypt.format=luks,encrypt.key-secret=s1", "encrypt.key-secret=s0",
                    "encrypt.format=luks,encrypt.key-secret=s0,encrypt.cipher-alg=foo",
                    "encrypt.format=luks,encrypt.key-secret=s0,encrypt.cipher-mode=foo",
                    "encrypt.format=luks,encrypt.key-secret=s0,encrypt.ivgen-alg=foo",
                    "encrypt.format=luks,encrypt.key-secret=s0,encrypt.hash-alg=foo",
                    "encrypt.cipher-alg=aes-256", "encrypt.foo=1", "encryption=on",
                    "encrypt.format=aes,encrypt.key-secret=s0,encrypt.cipher-alg=aes-256",
                    "encryption=on,encrypt.format=aes,encrypt.key-secret=s0"):
        line(f"create encrypted refused {options}", "create", *SECRET, "-f", "qcow2", "-o", options,
             "x", "1M")
    line("create encrypted", "create", *SECRET, "-f", "qcow2", "-o",
         "encrypt.format=aes,encrypt.key-secret=s0", "x", "1M")
    line("create encrypted old spelling", "create", *SECRET, "-f", "qcow2", "-o",
         "encryption=on,encrypt.key-secret=s0", "x", "1M")
    for output in ("human", "json"):
        line(f"info encrypted {output}", "info", f"--output={output}", "a", before=made)
        line(f"measure encrypted {output}", "measure", f"--output={output}", *SECRET, "-O", "qcow2",
             "--size", "4M", "-o", "encrypt.format=luks,encrypt.key-secret=s0")
    line("measure encrypted without key", "measure", "-O", "qcow2", "--size", "4M", "-o",
         "encrypt.format=luks")
    for verb in (["check"], ["map"], ["map", "--output=json"], ["snapshot", "-c", "s"]):
        line(f"encrypted {' '.join(verb)} without key", *verb, "a", before=made)
        line(f"encrypted {' '.join(verb)}", *verb, *SECRET, "--image-opts", OPEN + "a", before=made)
        line(f"encrypted {' '.join(verb)} without secret", *verb, "--image-opts", OPEN + "a",
             before=made, errors="any")
    line("encrypted check as luks", "check", *SECRET, "--image-opts",
         OPEN + "a,encrypt.format=luks", before=made)
    line("encrypted convert packed", "convert", *SECRET, "-c", "-O", "qcow2", "-o",
         "encrypt.format=luks,encrypt.key-secret=s0", "p", "q",
         before=[["peer", "create", "-q", "-f", "qcow2", "p", "1M"]])
    for secret in ("secret,id=s0,format=base64,data=YW!j", "secret,id=s0,format=base65,data=YWJj",
                   "secret,id=s0,data=abc,keyid=k1", "secret,id=s0,file=/nonexistent"):
        line(f"bad secret {secret}", "check", "--object", secret, "--image-opts", OPEN + "a",
             before=made)
