"""Command lines of `amend` on the key slots of LUKS images, and who can open them afterwards. Where it
does not matter who made an image or filled a slot, `platter` did: it takes QEMU a second or two of CPU to
measure how much work 10 milliseconds are."""

SECRETS = [word for n, text in enumerate(("abc", "def", "ghi"))
           for word in ("--object", f"secret,id=s{n},data={text}")]


def name(secret, image="a"):
    return f"driver=qcow2,encrypt.key-secret={secret},file.filename={image}"


def run(h):
    made = [["ours", "create", "-q", *SECRETS, "-f", "qcow2", "-o",
             "encrypt.format=luks,encrypt.key-secret=s0,encrypt.iter-time=10", "a", "4M"]]

    def slots(*words, secret="s0", force=False, by=()):
        options = ",".join("encrypt." + word for word in words)
        return [*by, "amend", *SECRETS, *(["--force"] if force else []), "--image-opts", "-o", options,
                name(secret)]

    def add(secret, *words, by=()):
        return slots("state=active", f"new-secret={secret}", "iter-time=10", *words, by=by)

    # What both say about each passphrase and about the slots; and what the other program can open.
    looks = [["check", *SECRETS, "--image-opts", name(f"s{n}")] for n in range(3)]
    looks += [["info", "a"], ["info", "--output=json", "a"]]

    def amended(title, steps, opens=(), **how):
        peer_opens = [["peer", "check", "-q", *SECRETS, "--image-opts", name(secret)]
                      for secret in opens]
        reads = [["io", *SECRETS, "--image-opts", "-c", "read -P 7 1M 64k", name(secret)]
                 for secret in opens]
        fill = [["io", *SECRETS, "--image-opts", "-c", "write -P 7 1M 64k", name("s0")]]
        h.case(f"key slots {title}", made + fill + steps + looks + peer_opens + reads, **how)

    peer, ours = ("peer",), ("ours",)
    by_peer = [["peer"] + made[0][1:]]
    h.case("key slots of an image that QEMU made", by_peer + [add("s1", by=ours)] + looks
           + [slots("state=inactive", "old-secret=s0", secret="s1")] + looks)
    amended("add", [add("s1")], ["s0", "s1"])
    amended("add the same", [add("s0")], ["s0"])
    amended("add 3", [add("s1", "keyslot=3")], ["s0", "s1"])
    amended("add 6 and 7", [add("s1", "keyslot=6", by=ours), add("s2", "keyslot=7")],
            ["s0", "s1", "s2"])
    amended("add beside QEMU's", [add("s1", by=peer), add("s2")], ["s0", "s1", "s2"])
    amended("QEMU adds beside ours", [add("s1", by=ours), add("s2", by=peer)], ["s0", "s1", "s2"])
    amended("add with the new one",
            [add("s1", by=ours), slots("state=active", "new-secret=s2", "iter-time=10", secret="s1")],
            ["s0", "s1", "s2"])
    eight = [add("s1", by=ours) for _ in range(7)]
    amended("all eight", eight[:6] + [add("s1"), add("s2")], ["s0", "s1"])
    amended("erase 0", [add("s1", by=ours), slots("state=inactive", "keyslot=0")], ["s1"])
    amended("QEMU erases 0", [add("s1", by=ours), slots("state=inactive", "keyslot=0", by=peer)], ["s1"])
    amended("erase by passphrase", [add("s1", by=ours), add("s0", "keyslot=5", by=ours),
                                    slots("state=inactive", "old-secret=s0")], ["s1"])
    amended("erase, add again", [add("s1", by=ours), slots("state=inactive", "keyslot=0"),
                                 slots("state=active", "new-secret=s2", "iter-time=10", secret="s1")],
            ["s1", "s2"])
    amended("erase by slot and passphrase", [add("s1", by=ours),
                                             slots("state=inactive", "keyslot=1", "old-secret=s1")],
            ["s0"])
    amended("erase by slot and another's passphrase",
            [add("s1", by=ours), slots("state=inactive", "keyslot=0", "old-secret=s1")], ["s0", "s1"])
    amended("erase by idle slot and passphrase",
            [add("s1", by=ours), slots("state=inactive", "keyslot=5", "old-secret=s1")], ["s0", "s1"])
    amended("erase an idle one", [add("s1", by=ours), slots("state=inactive", "keyslot=4")], ["s0", "s1"])
    amended("erase an idle one by force", [add("s1", by=ours), slots("state=inactive", "keyslot=4", force=True)],
            ["s0", "s1"])
    amended("erase an idle one of one", [slots("state=inactive", "keyslot=4")], ["s0"])
    amended("erase the last", [slots("state=inactive", "keyslot=0")], ["s0"])
    amended("erase the last by passphrase", [slots("state=inactive", "old-secret=s0")], ["s0"])
    amended("erase all by passphrase", [add("s0", by=ours), slots("state=inactive", "old-secret=s0")], ["s0"])
    amended("erase by a passphrase that fits none", [slots("state=inactive", "old-secret=s2")], ["s0"])
    amended("erase the last by force", [slots("state=inactive", "keyslot=0", force=True)])
    amended("erase all by force", [add("s0", by=ours), slots("state=inactive", "old-secret=s0", force=True)])
    amended("overwrite", [add("s1", "keyslot=0")], ["s0"])
    amended("overwrite by force", [slots("state=active", "keyslot=0", "new-secret=s1", "iter-time=10",
                                         force=True)], ["s1"])
    amended("overwrite one of eight by force",
            eight + [slots("state=active", "keyslot=0", "new-secret=s2", "iter-time=10",
                           force=True)], ["s1", "s2"])
    h.case("key slots and more",
           made + [["amend", *SECRETS, "--image-opts", "-o", "refcount_bits=8,encrypt.keyslot=2,"
                    "encrypt.state=active,encrypt.new-secret=s1,encrypt.iter-time=10", name("s0")]]
           + looks + [["peer", "check", "-q", *SECRETS, "--image-opts", name("s1")]])
    for title, words in {
            "no state": ["new-secret=s1"],
            "bad state": ["state=foo", "new-secret=s1"],
            "empty state": ["state=", "new-secret=s1"],
            "no new secret": ["state=active"],
            "no new secret, slot": ["state=active", "keyslot=1"],
            "unknown new secret": ["state=active", "new-secret=s9"],
            "old secret with active": ["state=active", "new-secret=s1", "old-secret=s0"],
            "slot 8": ["state=active", "new-secret=s1", "keyslot=8"],
            "slot x": ["state=active", "new-secret=s1", "keyslot=x"],
            "time x": ["state=active", "new-secret=s1", "iter-time=x"],
            "slot 2^63": ["state=active", "new-secret=s1", "keyslot=9223372036854775808"],
            "erase slot 8": ["state=inactive", "keyslot=8"],
            "erase nothing": ["state=inactive"],
            "erase with new secret": ["state=inactive", "keyslot=0", "new-secret=s1"],
            "erase with time": ["state=inactive", "keyslot=0", "iter-time=10"],
            "erase by unknown secret": ["state=inactive", "old-secret=s9"],
            "erase slot 8 by unknown secret": ["state=inactive", "old-secret=s9", "keyslot=8"],
            "iter-time alone": ["iter-time=10"],
            "unknown": ["foo=1", "state=active"],
    }.items():
        amended(f"refused: {title}", [slots(*words)], ["s0"])
    amended("opened with the wrong passphrase", [slots("state=active", "new-secret=s1", secret="s1")],
            ["s0"])
    amended("opened without one", [["amend", *SECRETS, "-f", "qcow2", "-o",
                                    "encrypt.state=active,encrypt.new-secret=s1", "a"]], ["s0"])
    h.case("key slots of the old method",
           [["peer", "create", "-q", *SECRETS, "-f", "qcow2", "-o",
             "encrypt.format=aes,encrypt.key-secret=s0", "a", "4M"],
            slots("state=active", "new-secret=s1")])
    h.case("key slots of none",
           [["peer", "create", "-q", "-f", "qcow2", "a", "4M"],
            ["amend", *SECRETS, "-f", "qcow2", "-o", "encrypt.state=active,encrypt.new-secret=s1", "a"]])
    h.case("amend -o help", [["amend", "-f", "qcow2", "-o", "help"]])
