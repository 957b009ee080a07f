"""Names that mean harm: each would become markup, a command or an escape in one of the formats if it were written as it is."""

from __future__ import annotations

HTML = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    '" onfocus="alert(1)" autofocus="',
    "<svg/onload=alert(1)>",
    "</title><svg onload=alert(1)>",
    "</style><script>alert(1)</script>",
    "</details></figure></main><h1>Pass</h1>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<base href=//example.invalid>",
    "<meta http-equiv=refresh content='0;url=//example.invalid'>",
    "<a href=javascript:alert(1)>x</a>",
    "<math><mtext></p><img src=x onerror=alert(1)>",
    "<textarea>",
    "<plaintext>",
    "<!--",
    "&lt;b&gt;&#60;b&#62;&amp;lt;",
    "{{7*7}}{% include '/etc/passwd' %}{# gone #}",
]
XML = [
    "]]><failure message='x'/>",
    "]]></failure></testcase><testcase name='pass'/>",
    "<![CDATA[<b>",
    '" type="x"><skipped/>',
    "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>&b;",
    "<?xml version='1.0'?><?php echo 1 ?>",
    "--><testsuites/><!--",
    "&undefined;",
    "nul\x00and\x0bvertical\x1fus",
    "\ufffe\uffff\ufdd0",
    "\ud800 lone \udfff",
]
SVG = [
    "</svg><script>alert(1)</script>",
    "</text><a href='javascript:alert(1)'>x</a>",
    "<image href='http://example.invalid/x.png'/>",
    "<foreignObject><body onload=alert(1)>",
    "$\\frac{}{$",
    "$$x^2$$ \\href{javascript:alert(1)}{x}",
]
JSON = [
    '"},{"level":"none","x":"',
    '\\"],"results":[]}',
    "\\u0022\\u005d",
    "[x](javascript:alert(1)) {0} {{1}}",
    "[\\[x\\]](sarif:/runs/0/results/0)",
    "file:///etc/passwd",
    "//example.invalid/share",
    "../../../../etc/passwd?x=1#y",
    "C:\\Windows\\x.pt",
    "NaN",
]
MARKDOWN = [
    "[x](javascript:alert(1))",
    "![x](https://example.invalid/x.png)",
    "<https://example.invalid>",
    "https://example.invalid/?a=1 and www.example.invalid",
    "| a | b |",
    "a\n| b | c |\n|---|---|",
    "a\\|b\\\\|c",
    "\n\n# A heading\n\n- a list",
    "```\ncode\n```",
    "`code` **bold** _it_ ~~no~~",
    "- [x] done",
    "1. one",
    "===",
    "---",
    "> quoted",
    "@everyone and #1 and GH-1 and :+1:",
    "[^1]: a note",
    "$`x`$ and $$y$$",
    "<details open><summary>pass</summary>",
]
COMMANDS = [
    "::error::pwned",
    "x\n::error file=a.py,line=1::pwned",
    "x\r::add-mask::a",
    "x\r\n::stop-commands::never",
    " \t::set-output name=exit-code::0",
    "##[error]pwned",
    "name ##[add-mask]a",
    "##[stop-commands]never",
    "##vso[task.complete result=Succeeded;]",
    "##teamcity[buildStatus status='SUCCESS']",
    "x,line=1::y%0A::error::z",
    "100%25 %0D%0A::debug::x",
    "::group::x\n::endgroup::",
]
TERMINAL = [
    "\x1b[31mred\x1b[0m \x1b[2J",
    "\x1b]8;;http://example.invalid\x07link\x1b]8;;\x07",
    "\x1b]0;title\x07",
    "\x9b31m and \x90q",
    "pass\rfail",
    "\x08\x08\x08\x08pass",
    "\u202egnp.exe\u202c",
    "\u2066left\u2069 \u200fright\u200e \u061c",
    "zero\u200bwidth\ufeff\u2060\u00ad",
    "line\u2028paragraph\u2029next\x85",
    "\ue000private \U000e0041tag",
    "section_start:1:x\r\x1b[0Kx",
]
YAML = [
    "key: !!python/object/apply:os.system [id]",
    "*alias &anchor",
    "x: |\n  y\n---\n...",
    "%TAG ! tag:example.invalid,2000:",
]
LONG = ["x" * 5000, "<b>" * 2000, "Z̸͎̈á̵̲l̴͇̑g̵̝̈́o " * 50]
ALL = [*HTML, *XML, *SVG, *JSON, *MARKDOWN, *COMMANDS, *TERMINAL, *YAML, *LONG]

# What GitHub's runner knows by name (`Runner.Worker/ActionCommandManager.cs` of actions/runner).
KNOWN = {"add-mask", "add-matcher", "add-path", "debug", "echo", "endgroup", "error", "group", "notice", "remove-matcher"}
KNOWN |= {"save-state", "set-env", "set-output", "stop-commands", "warning"}


def commands(log: str) -> list[tuple[str, dict[str, str], str]]:
    """Return the commands that GitHub's runner would find in a log, each as its name, properties and data.

    A line ends where .NET's reader ends it. ``::name key=value::data`` counts behind blanks, too; ``##[name key=value]data``
    counts wherever it stands.
    """
    found = []
    for line in log.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        one = _second(line) or _first(line)
        if one is not None and one[0].lower() in KNOWN:
            found.append(one)
    return found


def _second(line: str) -> tuple[str, dict[str, str], str] | None:
    begun = line.lstrip()
    if not begun.startswith("::") or (end := begun.find("::", 2)) < 0:
        return None
    name, _, properties = begun[2:end].partition(" ")
    read = {"%0D": "\r", "%0A": "\n", "%25": "%"}
    pairs = [part.split("=", 1) for part in properties.strip().split(",") if "=" in part]
    held = {key: _unescaped(value, {"%3A": ":", "%2C": ",", **read}) for key, value in pairs}
    return name, held, _unescaped(begun[end + 2 :], read)


def _first(line: str) -> tuple[str, dict[str, str], str] | None:
    begin = line.find("##[")
    if begin < 0 or (end := line.find("]", begin)) < 0:
        return None
    return line[begin + 3 : end].split(" ", maxsplit=1)[0], {}, line[end + 1 :]


def _unescaped(text: str, read: dict[str, str]) -> str:
    for escape, char in read.items():
        text = text.replace(escape, char)
    return text
