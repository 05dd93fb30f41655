"""Odd uses of options: sizes, names with options in JSON, what contradicts or overrides what."""

SETUP = [["peer", "create", "-q", "r", "1M"],
         ["io", "-f", "raw", "-c", "write -P 1 64k 100k", "-c", "write -P 2 700k 4k", "r"]]
QCOW2 = [["peer", "create", "-q", "-f", "qcow2", "a", "1M"],
         ["io", "-f", "qcow2", "-c", "write -P 3 0 100k", "-c", "write -z 256k 64k", "a"]]
OVERLAY = SETUP + QCOW2 + [["peer", "create", "-q", "-f", "qcow2", "-b", "a", "-F", "qcow2", "b", "2M"],
                           ["io", "-f", "qcow2", "-c", "write -P 4 64k 64k", "b"]]
RAW = '"driver":"raw","file":{"driver":"file","filename":"r"}'


def run(h):
    def line(*words, before=SETUP, images=(), **how):
        h.case("option " + " ".join(words)[:120], list(before) + [list(words)], images, **how)

    def lines(texts, before=SETUP, images=(), **how):
        for text in texts:
            line(*text.split(), before=before, images=images, **how)

    names(line)
    sizes(line, lines)
    converts(lines)
    line("convert", "-O", "qcow2", "--source-image-opts", "driver=raw,file.filename=r", "x")
    line("create", "-f", "qcow2", "-o", "lazy_refcounts=yes", "x", "1M", images=[("x", "qcow2")])
    lines(["create -o nocow x 1M", "create -f qcow2 -o nofoo x 1M"])
    lines([f"measure -O qcow2 -o {options} --size 1M" for options in
           ("nocow=on", "extent_size_hint=1M", "backing_fmt=raw", "data_file=", "data_file=d", "data_file_raw=on",
            "compat=0.10,data_file=d")])
    lines(["amend -o help a", "amend -o help b", "amend -o help r"], before=OVERLAY, errors="any")
    lines(["compare -p nofile a", "compare -p a nofile", "compare --image-opts -F raw file.filename=r file.filename=r",
           "commit -b a a", "commit -b nofile a", "commit a", "map file:r", "map -f raw file:a", "snapshot a -U",
           "snapshot -U -l a", "snapshot a"], before=OVERLAY)
    line("commit", "-b", "", "b", before=OVERLAY, images=[("a", "qcow2"), ("b", "qcow2")])
    h.case("option compare -s packed", QCOW2 + [["peer", "convert", "-c", "-O", "qcow2", "a", "p"],
                                                ["compare", "-s", "a", "p"], ["compare", "-s", "p", "a"]])
    for text in ('{"qom-type":"secret","id":"s","data":"x"}', "{", '{"qom-type":"secret"}',
                 '{"qom-type":"secret","id":"s"}', "{'qom-type':'secret','id':'s','data':'x'}"):
        line("info", "--object", text, "r")


def sizes(line, lines):
    for size in ("1.7k", "1.3k", "1.9999999999999999999k", "0.1k", "1.k", "16E", "99999999999999999999",
                 "9223372036854775807", "9223372036854774784", "9223372035781033984", "8E"):
        if not size.startswith("92233720357"):
            line("resize", "--shrink", "-f", "raw", "r", size, images=[("r", "raw")] if "k" in size else ())
        line("resize", "-f", "raw", "r", "+" + size, errors="any")
        line("measure", "--size", size)
        line("map", "--output=json", "-s", size, "r")
    lines(["bench -c 1 -s 1.7k r", "dd count=1.7k if=r of=x"], images=[("r", "raw")])
    lines([f"create -f qcow2 -o {name}=99999999999999999999 x 1M" for name in ("size", "cluster_size")])


def names(line):
    for text in ("", "foo", "{", "{}", "[]", "1", '"r"', "null", "true", "{1:2}", '{"a"}', '{"a":}', '{"a" 1}', '{"a":1,}',
                 '{"a":1 "b":2}', '{"a":[1 2]}', '{"a":[1,]}', "[", "[1", "]", "}", "{]", '{"a":1}}', '{"a":1} x', "@", "A", '"',
                 '{"driver":"raw', '{"a":"\t"}', '{"a":01}', '{"a":-}', '{"a":1.}', '{"a":1e}', '{"a":tru}', "%s",
                 r'{"a":"\q"}', r'{"a":"\ud800"}', r'{"a":"\u00"}', r'{"a":"\ud800\u0041"}', '{"a":1,"a":2}',
                 "{" + RAW + "}", "{" + RAW + "} ", "{" + RAW + "} x", "{" + RAW.replace('"', "'") + "}",
                 r'{"driver":"raw","file":{"driver":"file","filename":"\u0072"}}',
                 "{" + RAW + ',"offset":"1k"}', "{" + RAW + ',"offset":-512}', "{" + RAW + ',"offset":true}',
                 "{" + RAW + ',"read-only":true}', "{" + RAW + ',"foo":{"a":1}}', "{" + RAW + ',"cache":"none"}',
                 '{"driver":"raw","file.driver":"file","file.filename":"r"}', '{"file.filename":"r"}',
                 '{"driver":"foo"}'):
        line("info", "json:" + text)
    line("info", "json:" + "[" * 1100, errors="any")
    # A format that is given beside the name is worth more than the name's own.
    whole, flat = "json:{" + RAW + "}", 'json:{"driver":"raw","file.driver":"file","file.filename":"r"}'
    packed = 'json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"b"}}'
    for name, kinds in ((whole, ("raw", "qcow2", "foo")), (flat, ("raw", "qcow2")), (packed, ("raw", "qcow2"))):
        for kind in kinds:
            line("info", "-f", kind, name, before=OVERLAY)
            line("convert", "-f", kind, "-O", "raw", name, "x", before=OVERLAY)
            line("create", "-f", "qcow2", "-b", name, "-F", kind, "x", before=OVERLAY, errors="any")
    line("info", packed, before=OVERLAY)
    line("map", "--output=json", packed, before=OVERLAY)
    for name in ("file:r", "file:b", "file:./b", "file:$"):
        for words in (["info"], ["info", "--output=json"], ["info", "--backing-chain"]):
            line(*words, name, before=OVERLAY)
    for share in ("off", "on", "yes", "foo"):
        line("info", "-U", "--image-opts", f"driver=raw,file.filename=r,force-share={share}")
    for text in ("r", "help", "r,driver=raw", "driver=raw", "", "driver=raw,file.filename=r"):
        line("info", "--image-opts", text)
        line("convert", "-n", "--target-image-opts", "r", text, before=SETUP if "=" not in text else SETUP + [["sh", "cp r s"]],
             errors="any")


def converts(lines):
    result = [("x", "qcow2")]
    # What the source holds nothing for is the source's zeroes, where it stands on nothing (any more).
    wide = OVERLAY + [["peer", "create", "-q", "w", "3M"], ["io", "-f", "raw", "-c", "write -P 9 0 3M", "w"]]
    lines(["convert -O qcow2 -B w -F raw a x", "convert -O qcow2 -B w -F raw -c a x",
           "convert -O qcow2 -B w -F raw -S 0 a x", "convert -O qcow2 -B a -F qcow2 b x"], before=wide, images=result)
    kept = QCOW2 + [["peer", "snapshot", "-c", "s1", "a"], ["io", "-f", "qcow2", "-c", "write -P 5 512k 64k", "a"],
                    ["peer", "create", "-q", "w", "1M"], ["io", "-f", "raw", "-c", "write -P 9 0 1M", "w"]]
    lines(["convert -l s1 -O qcow2 -B w -F raw a x", "convert -O qcow2 -B w -F raw a x"], before=kept, images=result)
    lines([f"convert -O qcow2 -o size={size} r x" for size in ("2M", "512k", "0", "1M,size=3M", "7E")], images=result)
    lines(["convert -o size=2M r x"], images=[("x", "raw")])
    # The caller knows that the target is zeroes, also of one that stands on another.
    lines(["convert -n --target-is-zero -O qcow2 r x", "convert -n --target-is-zero -S 0 -O qcow2 r x"], images=result,
          before=SETUP + [["peer", "create", "-q", "-f", "qcow2", "e", "1M"],
                          ["peer", "create", "-q", "-f", "qcow2", "-b", "e", "-F", "qcow2", "x"]])
    lines(["convert -n -c -O raw r s"], before=SETUP + [["peer", "create", "-q", "s", "512k"]])
