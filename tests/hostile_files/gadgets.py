"""Functions of Python, numpy and torch that a pickle can call to run code: deny-lists of scanners missed most of them once.

Each stands in a pickle whose result is a good set of weights: who unpickles it sees nothing amiss.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.hostile_files.assemble import call, name, path, text, value, weights_and
from tests.hostile_files.case import Family, Place, Proof

FAMILY = Family("gadgets")


def loaded(file: Path, _: Place) -> Any:
    return torch.load(file, weights_only=False)


RUNS = Proof("runs", loaded)


def code(place: Place) -> str:
    return f"__import__('os').mkdir({str(place.canary)!r})"


def nested(place: Place) -> bytes:
    """Return a pickle that makes the canary."""
    return b"\x80\x04" + call(name("posix", "mkdir"), text(str(place.canary))) + b"."


def _imported(module: str) -> bytes:
    return call(name("importlib", "import_module"), text(module))


def _beside(place: Place, file: str, content: str | bytes) -> bytes:
    return text(str(place.write(file, content)))


GADGETS: dict[str, tuple[str, Callable[[Place], bytes]]] = {
    "posix.mkdir": ("posix.mkdir", lambda p: call(name("posix", "mkdir"), text(str(p.canary)))),
    "os.system": ("os.system", lambda p: call(name("os", "system"), text(f"mkdir '{p.canary}'"))),
    "subprocess": (
        "subprocess.check_output",
        lambda p: call(name("subprocess", "check_output"), value(["mkdir", str(p.canary)])),
    ),
    "exec": ("builtins.exec", lambda p: call(name("builtins", "exec"), text(code(p)))),
    "eval": ("builtins.eval", lambda p: call(name("builtins", "eval"), text(code(p)))),
    "eval under Python 2's name": ("builtins.eval", lambda p: b"\x80\x02" + call(name("__builtin__", "eval"), text(code(p)))),
    "getattr of an import": (
        "builtins.getattr",
        lambda p: call(
            call(name("builtins", "getattr"), call(name("builtins", "__import__"), text("os")), text("mkdir")),
            text(str(p.canary)),
        ),
    ),
    "map over exec": (
        "builtins.map",
        lambda p: call(name("builtins", "list"), call(name("builtins", "map"), name("builtins", "exec"), value([code(p)]))),
    ),
    "builtins of numpy": (
        "dict.get",
        lambda p: call(
            call(path("builtins", "dict.get"), path("numpy", "__builtins__"), text("exec")),
            text(code(p)),
        ),
    ),
    "operator.attrgetter": (
        "operator.attrgetter",
        lambda p: call(
            call(call(name("operator", "attrgetter"), text("mkdir")), call(name("builtins", "__import__"), text("os"))),
            text(str(p.canary)),
        ),
    ),
    "operator.methodcaller": (
        "operator.methodcaller",
        lambda p: call(call(name("operator", "methodcaller"), text("mkdir"), text(str(p.canary))), _imported("os")),
    ),
    "functools.partial": (
        "functools.partial",
        lambda p: call(call(name("functools", "partial"), name("os", "mkdir"), text(str(p.canary)))),
    ),
    "pkgutil.resolve_name": (
        "pkgutil.resolve_name",
        lambda p: call(call(name("pkgutil", "resolve_name"), text("os:mkdir")), text(str(p.canary))),
    ),
    "pydoc.locate": ("pydoc.locate", lambda p: call(call(name("pydoc", "locate"), text("os.mkdir")), text(str(p.canary)))),
    "pydoc.pipepager": ("pydoc.pipepager", lambda p: call(name("pydoc", "pipepager"), text("x"), text(f"mkdir '{p.canary}'"))),
    "runpy.run_path": ("runpy.run_path", lambda p: call(name("runpy", "run_path"), _beside(p, "payload.py", code(p)))),
    "timeit": (
        "timeit.timeit",
        lambda p: call(name("timeit", "timeit"), text(code(p)), text("pass"), name("time", "perf_counter"), value(1)),
    ),
    "cProfile": ("cProfile.run", lambda p: call(name("cProfile", "run"), text(code(p)))),
    "bdb": ("bdb.Bdb", lambda p: call(path("bdb", "Bdb.run"), call(name("bdb", "Bdb")), text(code(p)))),
    "code": (
        "code.InteractiveInterpreter",
        lambda p: call(
            path("code", "InteractiveInterpreter.runcode"), call(name("code", "InteractiveInterpreter")), text(code(p))
        ),
    ),
    "pathlib": (
        "pathlib.Path.write_text",
        lambda p: call(path("pathlib", "Path.write_text"), call(name("pathlib", "PosixPath"), text(str(p.canary))), text("x")),
    ),
    "open": ("_io.open", lambda p: call(name("_io", "open"), text(str(p.canary)), text("w"))),
    "FileIO": ("_io.FileIO", lambda p: call(name("_io", "FileIO"), text(str(p.canary)), text("w"))),
    "logging": ("logging.FileHandler", lambda p: call(name("logging", "FileHandler"), text(str(p.canary)))),
    "shutil": ("shutil.copyfile", lambda p: call(name("shutil", "copyfile"), text(str(p.secret)), text(str(p.canary)))),
    "urllib": (
        "urllib.request.urlretrieve",
        lambda p: call(name("urllib.request", "urlretrieve"), text(p.secret.as_uri()), text(str(p.canary))),
    ),
    "multiprocessing": (
        "multiprocessing.util.spawnv_passfds",
        lambda p: (
            call(
                name("multiprocessing.util", "spawnv_passfds"),
                value(b"/bin/sh"),
                value(["sh", "-c", f"mkdir '{p.canary}'"]),
                value([]),
            )
            + b"0"
            + call(name("time", "sleep"), value(0.3))
        ),
    ),
    "marshal and types": (
        "marshal.loads",
        lambda p: call(
            call(
                name("types", "FunctionType"),
                call(name("marshal", "loads"), value(__import__("marshal").dumps(compile(code(p), "x", "exec")))),
                b"}",
            )
        ),
    ),
    "numpy.f2py": (
        "numpy.f2py.crackfortran.getlincoef",
        lambda p: call(name("numpy.f2py.crackfortran", "getlincoef"), text(code(p)), b"}"),
    ),
    "numpy.load of a file beside": (
        "numpy.load",
        lambda p: call(name("numpy", "load"), _beside(p, "objects.pkl", nested(p)), b"N", b"\x88"),
    ),
    "pandas.read_pickle": ("pandas", lambda p: call(name("pandas", "read_pickle"), _beside(p, "frame.pkl", nested(p)))),
    "joblib": ("joblib", lambda p: call(name("joblib", "load"), _beside(p, "model.joblib", nested(p)))),
    "pickle.loads": ("_pickle.loads", lambda p: call(name("_pickle", "loads"), value(nested(p)))),
    "pickle.Unpickler": (
        "pickle._loads",
        lambda p: call(name("pickle", "_loads"), value(nested(p))),
    ),
    "sympy": ("sympy", lambda p: call(name("sympy", "sympify"), text(code(p)))),
    "torch.storage": (
        "torch.storage._load_from_bytes",
        lambda p: call(name("torch.storage", "_load_from_bytes"), value(_legacy(p))),
    ),
    "torch.jit": (
        "torch.jit.unsupported_tensor_ops.execWrapper",
        lambda p: call(name("torch.jit.unsupported_tensor_ops", "execWrapper"), text(code(p)), b"}", b"}"),
    ),
    "torch.fx guards": (
        "evaluate_guards_expression",
        lambda p: call(
            path("torch.fx.experimental.symbolic_shapes", "ShapeEnv.evaluate_guards_expression"), b"N", text(code(p)), value([])
        ),
    ),
    "torch.fx code": (
        "torch.fx.graph_module",
        lambda p: call(name("torch.fx.graph_module", "_forward_from_src"), text(code(p) + "\ndef forward(): pass"), b"}"),
    ),
    "torch.hub": ("torch.hub", lambda p: call(name("torch.hub", "_load_local"), _folder(p), text("entry"))),
    "torch.utils": (
        "torch.utils.collect_env.run",
        lambda p: call(name("torch.utils.collect_env", "run"), text(f"mkdir '{p.canary}'")),
    ),
    "torch configuration": (
        "load_config",
        lambda p: call(
            path("torch.utils._config_module", "ConfigModule.load_config"),
            name("torch.nn.functional", "relu"),
            value(nested(p)),
        ),
    ),
}


def _folder(place: Place) -> bytes:
    place.write("hubconf.py", code(place) + "\ndef entry(): pass\n")
    return text(str(place.at))


def _legacy(place: Place) -> bytes:
    return nested(place)


def _making(expression: Callable[[Place], bytes]) -> Callable[[Place], Any]:
    return lambda place: place.write("hostile.pt", weights_and(expression(place)))


QUICK = {"os.system", "getattr of an import", "torch.fx guards"}
# Which of the names in a pickle the message tells is the reader's choice.
ALSO = {"functools.partial": "os.mkdir", "marshal and types": "types.FunctionType", "map over exec": "builtins.exec"}
for called, (word, gadget) in GADGETS.items():
    FAMILY.add(called, _making(gadget), RUNS, word, ALSO.get(called, word), quick=called in QUICK)


def _import_beside(place: Place) -> None:
    """Write a module that does its harm when it is imported, into the folder that Python looks in first."""
    folder = place.canary.parent / "cwd"
    folder.mkdir(exist_ok=True)
    (folder / "payload_beside.py").write_text(code(place) + "\nx = 1\n")
    place.write("hostile.pt", weights_and(name("payload_beside", "x")))


FAMILY.add("an import alone", _import_beside, RUNS, "payload_beside")
