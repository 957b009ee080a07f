"""Says which names a pickle may mention, call and make instances of. Nothing of any of them is ever built.

A file is read for its weights or its layers, and what stands beside them stays an inert record. So the rules need not keep
code out, which no list could: they keep files out that no honest program writes. A name that is *called* must be known here; a
name of Python's own library must be known here however it is used; any other class may have instances, since a checkpoint
often holds the author's own configuration, and then its package may be named.
"""

from __future__ import annotations

import sys

from audit.model.pickled.records import CALLED, Blocked, Name, Seen

# Found beside weights in ordinary checkpoints: optimizers, schedulers, hyperparameters, metrics, Lightning, omegaconf.
BESIDE_WEIGHTS = frozenset(
    {
        "_codecs.encode",
        "argparse.Namespace",
        "builtins.Ellipsis",
        "builtins.bool",
        "builtins.bytearray",
        "builtins.bytes",
        "builtins.complex",
        "builtins.dict",
        "builtins.float",
        "builtins.int",
        "builtins.list",
        "builtins.long",
        "builtins.object",
        "builtins.range",
        "builtins.slice",
        "builtins.str",
        "builtins.tuple",
        "builtins.unicode",
        "builtins.xrange",
        "collections.Counter",
        "collections.deque",
        "datetime.date",
        "datetime.datetime",
        "datetime.time",
        "datetime.timedelta",
        "datetime.timezone",
        "decimal.Decimal",
        "fractions.Fraction",
        "functools.partial",
        "numpy.bool_",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "numpy.ndarray",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePath",
        "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
        "pathlib.WindowsPath",
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
        "torch.device",
        "torch.nn.backends.thnn._get_thnn_function_backend",
        "torch.serialization._get_layout",
        "torchvision.transforms.functional.InterpolationMode",
        "types.SimpleNamespace",
        "typing.Any",
        "typing.Dict",
        "typing.List",
        "typing.Optional",
        "typing.Tuple",
        "typing.Union",
        "uuid.UUID",
    }
)

# How a pickle writes torch.relu: the attribute of that name of a class. Called in no other way; see `records`.
FUNCTION_OF_TORCH = "builtins.getattr"

# Packages whose names stand in checkpoints by themselves: classes of layers in settings, callbacks as keys.
_PACKAGES = frozenset({"torch", "torchvision", "torchaudio", "numpy", "lightning", "lightning_fabric", "pytorch_lightning"})
_PACKAGES |= {"omegaconf", "hydra", "timm", "transformers", "torchmetrics"}

_PYTHON = frozenset(sys.stdlib_module_names) | {"__builtin__", "__builtins__"}
# Older and other names of modules of Python's own library, on the systems and in the versions that files come from.
_PYTHON_ELSEWHERE = frozenset(
    {"commands", "os2", "popen2", "dl", "imp", "new", "asyncore", "distutils", "thread", "java", "org"}
)


def check(name: Name, called: bool) -> None:
    """Raise `Blocked` where no honest file mentions the name, or calls it."""
    full = name.full
    if full in CALLED or full in BESIDE_WEIGHTS or (full == FUNCTION_OF_TORCH and not called):
        return
    top = name.module.partition(".")[0]
    if called or top in _PYTHON or top in _PYTHON_ELSEWHERE or not top or not name.name:
        raise Blocked(full[:100])


def odd(seen: Seen) -> list[str]:
    """Return the names from packages that nothing else in the file comes from: torch would import them for no use."""
    known = _PACKAGES | {full.partition(".")[0] for full in seen.made}
    return [full for full in seen.mentioned if full.partition(".")[0] not in known and full not in BESIDE_WEIGHTS]
