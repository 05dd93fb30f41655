#!/usr/bin/env python3
"""Keeps out of the sources what g++ 12 makes wrong code of, and coroutines that outlive their captures.

  check_coroutines.py ROOT | --self-test

In a statement with co_await there is
  * no braced temporary `T{...}`, unless `static_assert(std::is_trivially_destructible_v<T>)` stands
    somewhere in the sources; and no `{...}` whose type cannot be seen;
  * no lambda with a capture;
  * no `? co_await ... : co_await ...`.
Such temporaries are destroyed twice (tests/unit/exec/tripwire_test.cpp). And
  * no lambda with a capture is itself a coroutine: it does not own what it has captured. Tests have
    such, as they wait for the end where the lambda stands.
A text-based check: it looks at statements, and at the words before a brace.
"""
import os
import re
import sys

ROOMS = ("block", "formats", "virtio", "tools", "tests", "docs")
EXEMPT = "tests/unit/exec/tripwire_test.cpp"  # shows what comes of it
CLOSER = {"(": ")", "[": "]", "{": "}"}
TRIVIAL = re.compile(r"static_assert\(\s*std::is_trivially_destructible_v<\s*(?:\w+::)*(\w+)\s*>")
NOISE = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|(?<!\w)\'(?:\\.|[^\'\\\n])+\'', re.S)
AWAIT = re.compile(r"(?<!operator )\bco_await\b")
NUMBERS = {"bool", "char", "int", "unsigned", "long", "double", "size_t", "ptrdiff_t", "byte"} | {
    f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)}
COROUTINE = re.compile(r"\bco_(?:await|return|yield)\b")


def blank(text):
    """The text without comments and strings, every line where it was."""
    return NOISE.sub(lambda m: '""' + "\n" * m[0].count("\n") if m[0][0] in '"R' else
                     re.sub(r"[^\n]", " ", m[0]), text)


def close_of(text, at):
    """Where the bracket that opens at `at` closes."""
    depth = 0
    for i in range(at, len(text)):
        if text[i] in "([{":
            depth += 1
        elif text[i] in ")]}":
            depth -= 1
            if depth == 0:
                return i
    return len(text)


def open_of(text, at):
    """Where the bracket that closes at `at` opens."""
    depth = 0
    for i in range(at, -1, -1):
        if text[i] in ")]}":
            depth += 1
        elif text[i] in "([{":
            depth -= 1
            if depth == 0:
                return i
    return 0


def statement_around(text, at):
    """(begin, end) of the expression in which the co_await at `at` stands, heads of blocks aside."""
    begin = at
    inside = False  # in a bracket that has not been closed by `at`
    while begin > 0:
        c = text[begin - 1]
        if c in ";{" or (c == "}" and not inside and not re.match(r"\s*[-,).;+*/<>=?:&|]", text[begin:])):
            break  # (A block ended there, not a temporary.)
        if c in ")]}":
            begin = open_of(text, begin - 1)
            continue
        if c in "([":
            inside = True
        begin -= 1
    end, depth = at, 0
    while end < len(text):
        c = text[end]
        if c == ";" and depth <= 0:
            break
        if c == "{" and depth <= 0 and re.search(r"\)\s*$", text[at:end]) and depth < 0:
            break  # the block that an `if (co_await ...)` governs
        if c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
            if c == "}" and depth < 0:
                break
        end += 1
    return begin, end


def lambdas(text, begin, end):
    """(where, captures, body's begin or None, body's end) of each lambda."""
    for match in re.finditer(r"\[", text[begin:end]):
        at = begin + match.start()
        before = text[:at].rstrip()
        # A subscript follows a name or a bracket; an attribute is a double bracket.
        word = re.search(r"(\w+)$", before)
        if before.endswith((")", "]")) or (word and word[1] not in ("return", "co_return", "co_await", "case")):
            continue
        if text[at + 1] == "[" or before.endswith("["):
            continue
        close = close_of(text, at)
        # Parameters, specifiers, a return type; then the body.
        tail = re.match(r"\s*(?:<[^{}()]*>\s*)?", text[close + 1:])
        rest = close + 1 + tail.end()
        if text[rest:rest + 1] == "(":
            rest = close_of(text, rest) + 1
        head = re.match(r"[^;{}()]*(?:\([^(){}]*\)[^;{}()]*)?\{", text[rest:])
        if not head:
            continue
        body = rest + head.end() - 1
        yield at, text[at + 1:close].strip(), body, close_of(text, body)


def line_of(text, at):
    return text.count("\n", 0, at) + 1


def mistakes_in(text, trivial, lambdas_too=True):
    """[(line, what)] in the text of one file."""
    text = blank(text)
    found = set()
    for match in AWAIT.finditer(text):
        begin, end = statement_around(text, match.start())
        before = text[begin:match.start()].rstrip()
        if before.endswith("?") or (before.endswith(":") and "?" in before):
            found.add((line_of(text, match.start()), "a co_await in an arm of ?:"))
        inner = list(lambdas(text, begin, end))
        # (The co_await may stand in the body of a lambda whose head is part of the statement.)
        inner = [one for one in inner if not one[2] < match.start() < one[3]]
        bodies = [(one[2], one[3]) for one in inner]
        for at, captures, _, _ in inner:
            if captures:
                found.add((line_of(text, at), "a capturing lambda in a statement with co_await"))
        for brace in range(begin, end):
            if text[brace] != "{" or any(a <= brace <= b for a, b in bodies):
                continue
            before = text[begin:brace].rstrip()
            name = re.search(r"(\w+)(?:<[^<>;]*>)?$", before)
            if before.endswith(("(", ",")):
                found.add((line_of(text, brace), "a braced temporary without a type in a statement with co_await"))
            elif name and name[1] not in trivial:
                found.add((line_of(text, brace), f"a temporary {name[1]}{{}} in a statement with co_await: name it, or "
                           "assert std::is_trivially_destructible_v of it"))
    everywhere = list(lambdas(text, 0, len(text))) if lambdas_too else []
    for at, captures, body, end in everywhere:
        nested = [(b, e) for _, _, b, e in everywhere if body < b and e < end]
        own = "".join(c for i, c in enumerate(text[body:end], body) if not any(b <= i <= e for b, e in nested))
        if captures and COROUTINE.search(own):
            found.add((line_of(text, at), "a lambda with captures is a coroutine"))
    return sorted(found)


def self_test():
    trivial = {"Flags", "uint64_t"}
    good = """
      auto a = co_await write(x, Flags{.fua = true});
      if (ready) { co_await a; }
      auto f = [&] { return 1; }; auto b = co_await call(f);
      for (auto& x : {1, 2}) { co_await x; }
      auto c = co_await call([](int v) { return v; });
      const char* s = "co_await f({1})"; // co_await f({1})
      while (more) co_await next();
      block_on([](Node& n) -> Task<void> { auto r = co_await n.read(v[3]); co_return; });
      run([&] { return free(x); });
      Header h{.a = 1}; co_await h;
      struct A { B operator co_await() noexcept { return B{1}; } };
      auto n = co_await f(std::uint64_t{1} << 3);
      [[maybe_unused]] auto d = co_await e;
      if (auto x = co_await f(); !x) { g(T{1}); }
      auto i = early ? f() : g(); auto j = co_await i;
      switch (k ? 1 : 2) { case 1: co_await f(); }
    """
    bad = [
        "auto a = co_await write(x, {.fua = true});", "auto a = co_await check(CheckRequest{});",
        "co_await Awaiter{x};", "auto r = co_await call([x] { return x; });",
        "auto r = co_await call(\n  1, [&](int v) mutable -> int { return v + x; });",
        "run([x]() -> Task<void> { co_return; });", "auto f = [this] { co_await y; };",
        "g(Pair{1, 2}, co_await y);", "auto r = co_await call(std::vector<int>{1, 2});",
        "r = early ? co_await a : b;", "r = early\n  ? a\n  : co_await b;",
    ]
    failed = [f"wrongly found: {line}: {what}" for line, what in mistakes_in(good, trivial)]
    failed += [f"missed: {text}" for text in bad if not mistakes_in(text, trivial)]
    for line in failed:
        print(line)
    return 1 if failed else 0


def main():
    if sys.argv[1] == "--self-test":
        return self_test()
    root = sys.argv[1]
    texts = {}
    for room in ROOMS:
        for folder, _, names in os.walk(os.path.join(root, room)):
            for name in names:
                if name.endswith((".h", ".cpp")):
                    path = os.path.join(folder, name)
                    with open(path, encoding="utf-8") as file:
                        texts[os.path.relpath(path, root)] = file.read()
    trivial = NUMBERS | {name for text in texts.values() for name in TRIVIAL.findall(text)}
    wrong, awaits = 0, 0
    for path in sorted(texts):
        if path == EXEMPT or "co_" not in texts[path]:
            continue
        awaits += len(AWAIT.findall(texts[path]))
        for line, what in mistakes_in(texts[path], trivial, not path.startswith("tests/")):
            wrong += 1
            print(f"{path}:{line}: {what}")
    print(f"{len(texts)} files, {awaits} times co_await, {wrong} mistakes")
    # (Nothing found at all would mean that it looked in the wrong place.)
    return 1 if wrong or awaits < 100 else 0


sys.exit(main())
