"""Configurations: a file of options can neither name code nor exhaust its reader, and is read as it looks."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from tests.hostile_files.case import Family, Place, Proof

FAMILY = Family("configurations", file="hostile.toml", kind="config")


def parsed(file: Path, _: Place) -> Any:
    return tomllib.loads(file.read_text(errors="surrogateescape"))


def honoured(file: Path, place: Place) -> Any:
    """Do what the file asks for, as a tool does that takes code from its configuration."""
    from audit.usercode import load_code

    held = parsed(file, place)
    for section in held.values():
        for key in ("arch", "preprocess"):
            if key in section:
                return load_code(section[key], key).function()
    return None


def trusted(file: Path, place: Place) -> Any:
    """Open the model that lies beside as the file says: trusted."""
    import torch

    if parsed(file, place)["model"].get("trust_model") or parsed(file, place)["model"].get("trust"):
        return torch.load(place.at / "model.pt", weights_only=False)
    return None


def _code(place: Place) -> str:
    place.write("evil.py", f"import os\nos.mkdir({str(place.canary)!r})\ndef f(*_): pass\n")
    return str(place.at / "evil.py") + ":f"


def _model(place: Place) -> None:
    from tests.hostile_files.assemble import call, name, text, weights_and

    place.write("model.pt", weights_and(call(name("posix", "mkdir"), text(str(place.canary)))))


RUNS = Proof("runs", honoured)
add = FAMILY.add
add(
    "an architecture",
    lambda p: p.write("hostile.toml", f"[model]\narch = '{_code(p)}'\n"),
    RUNS,
    "'arch' in [model] runs code",
    quick=True,
)
add("a preprocessing", lambda p: p.write("hostile.toml", f"[data]\npreprocess = '{_code(p)}'\n"), RUNS, "runs code")
add("an architecture under [run]", lambda p: p.write("hostile.toml", f"[run]\narch = '{_code(p)}'\n"), RUNS, "runs code")
add(
    "code in a section of a check",
    lambda p: p.write("hostile.toml", f"[performance]\npreprocess = '{_code(p)}'\n"),
    RUNS,
    "performance.preprocess",
)
add(
    "code in a section of its own",
    lambda p: p.write("hostile.toml", f"[plugins]\narch = '{_code(p)}'\n"),
    RUNS,
    "no section [plugins]",
)
add("a key in quotes", lambda p: p.write("hostile.toml", f"[model]\n\"\\u0061rch\" = '{_code(p)}'\n"), RUNS, "runs code")


def _trusting(key: str) -> Any:
    def make(place: Place) -> None:
        _model(place)
        place.write("hostile.toml", f"[model]\n{key} = true\n")

    return make


add("trust", _trusting("trust_model"), Proof("runs", trusted), "runs code")
add("trust in other words", _trusting("trust"), Proof("runs", trusted), "runs code")


YAML = "!!python/object/apply:os.mkdir ['{canary}']\n"


def as_yaml(file: Path, place: Place) -> Any:
    """Do what an unsafe reader of YAML does with this one tag: call what it names."""
    import re

    try:
        import yaml
    except ImportError:
        called, path = re.fullmatch(r"!!python/object/apply:os\.(\w+) \['(.*)'\]\n", file.read_text()).groups()  # type: ignore[union-attr]
        return getattr(__import__("os"), called)(path)
    return yaml.load(file.read_text(), Loader=yaml.UnsafeLoader)  # noqa: S506


add(
    "YAML that calls",
    lambda p: p.write("hostile.yaml", YAML.format(canary=p.canary)),
    Proof("runs", as_yaml),
    "not TOML",
    file="hostile.yaml",
    quick=True,
)


def _aliases(place: Place) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    place.write("hostile.yaml", "\n".join(lines))


def expanded(file: Path, _: Place) -> Any:
    """Write out what each alias stands for, as a reader of YAML does that compares or prints."""
    import re

    held: dict[str, str] = {}
    for line in file.read_text().splitlines():
        key, body = re.fullmatch(r"(\w+): &\w+ \[(.*)\]", line).groups()  # type: ignore[union-attr]
        held[key] = ",".join(held[part[1:]] if part.startswith("*") else part for part in body.split(", "))
    return held


add("YAML that doubles sixty times", _aliases, Proof("exhausts", expanded), "not TOML", file="hostile.yaml")


def _quoted(place: Place) -> None:
    place.write("hostile.toml", '"' + '"."'.join(["a"] * 30_000) + '" = 1')


def _in_lists(place: Place) -> None:
    place.write("hostile.toml", "a = " + "[" * 50_000 + "]" * 50_000)


EXHAUSTS = Proof("exhausts", parsed)
add("a dotted key of 100,000 parts", ".".join(["a"] * 60_000) + " = 1", EXHAUSTS, "dots")
add("a dotted key in quotes", _quoted, EXHAUSTS, "dots")
add("a dotted section", "[" + ".".join(["a"] * 60_000) + "]", EXHAUSTS, "dots")
add("lists in lists", _in_lists, Proof("fixed", parsed, "recursion"), "nested")
add(
    "tables in tables",
    "a = " + "{b = " * 50 + "1" + "}" * 50,
    Proof("fixed", lambda f, p: _nested(parsed(f, p)), "deep"),
    "nested",
)


def _nested(held: Any, depth: int = 0) -> Any:
    """Walk as a careless validator does, which stops at some depth with an error of its own."""
    if depth > 40:
        raise RecursionError("too deep")
    return [_nested(part, depth + 1) for part in (held.values() if isinstance(held, dict) else [])]


def _sections(place: Place) -> None:
    place.write("hostile.toml", "\n".join(f"[run.a{'.b' * 480}{i}]" for i in range(250)))


add("many long sections", _sections, Proof("differs", lambda f, p: [len(parsed(f, p)["run"]), 0]), "nested")
add("a number of 5,000 digits", "[run]\nseed = " + "7" * 5_000, Proof("fixed", parsed, "Exceeds"), "Exceeds the limit")
add(
    "a number beyond all bounds",
    f"[run]\nseed = {2**200}\n",
    Proof("differs", lambda f, p: [parsed(f, p)["run"]["seed"], 2**63]),
    "seed",
)
add(
    "a batch of 10**18",
    "[run]\nbatch_size = 1000000000000000000\nsamples = 99999999999999999999999\n",
    Proof("differs", lambda f, p: [parsed(f, p)["run"]["batch_size"], 256]),
    "samples",
)
add(
    "infinite limits",
    "[[policy.limit]]\nmetric = 'performance.accuracy'\nmin = -inf\n",
    Proof("differs", lambda f, p: [parsed(f, p)["policy"]["limit"][0]["min"], 0]),
    "policy.limit",
)
add(
    "a confidence of NaN",
    "[policy]\nconfidence = nan\n",
    Proof("differs", lambda f, p: [parsed(f, p)["policy"]["confidence"] >= 0.8, True]),
    "confidence",
)
add("keys twice", "[run]\nseed = 1\nseed = 2\n", Proof("fixed", parsed, "overwrite"), "not TOML")
add(
    "dates where numbers stand",
    "[run]\nseed = 1979-05-27\n",
    Proof("differs", lambda f, p: [type(parsed(f, p)["run"]["seed"]), int]),
    "run.seed",
)
add("names in letters that look alike", "[run]\nsеed = 3\n", Proof("fixed", parsed, "Invalid|Expected"), "not TOML")
add(
    "names that turn the text round",
    '["run\u202e"]\nseed = 3\n',
    Proof("differs", lambda f, p: [next(iter(parsed(f, p))), "run"]),
    "no section",
)
add(
    "names that command the terminal",
    '["\\u001b[2J\\u001b[31mrun"]\nseed = 3\n',
    Proof("escapes", lambda f, p: next(iter(parsed(f, p)))),
    "no section",
    quick=True,
)
add(
    "bytes that are no text",
    b"[run]\nseed = 3 # \xff\xfe\n",
    Proof("fixed", lambda f, p: f.read_text("utf-8"), "decode"),
    "not TOML",
)
add("NUL", b"[run]\nseed = 3\0\n", Proof("fixed", parsed, ""), "not TOML")
add("comments of 300 kB", "#" * 300_000, Proof("differs", lambda f, p: [f.stat().st_size > 262_144, False]), "too large")


def _link(place: Place) -> None:
    (place.at / "hostile.toml").symlink_to("/dev/zero")


add("a link to a device", _link, Proof("exhausts", lambda f, p: f.read_bytes()), "device")
add(
    "an output folder outside",
    lambda p: p.write("hostile.toml", "[run]\nout = '/proc/1/audit'\n[run.odd]\n"),
    Proof("differs", lambda f, p: [parsed(f, p)["run"]["out"], "audit-out"]),
    "run.odd",
)
