"""What a command in the sandbox may read and write: Python, system libraries, the files that it names, its own folders."""

from __future__ import annotations

import os
import site
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from audit.errors import UsageError
from audit.sandbox.landlock import DEVICE, READ, WRITE, WRITE_FILE

MOST_BESIDE = 2000

SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt", "/nix/store", "/gnu/store", "/sys")
# Of /etc and /proc only what libraries look up: there are passwords and other processes in them.
SETTINGS = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "timezone", "passwd", "group", "nsswitch.conf", "host.conf",
    "fonts", "mime.types", "os-release", "lsb-release", "debian_version", "alternatives", "locale.alias", "machine-id",
    "OpenCL", "vulkan", "magic", "apache2/mime.types",
)  # fmt: skip
PROCESS = (
    "self", "cpuinfo", "meminfo", "stat", "version", "filesystems", "loadavg", "uptime", "devices", "modules", "cgroups", "sys",
    "driver", "mounts", "vmstat", "swaps", "interrupts",
)  # fmt: skip
DEVICES_READ = ("zero", "full", "random", "urandom")
DEVICES = ("nvidia", "dri", "kfd", "nvidiactl")  # of graphics processors, by how their names begin

# Only these reach the child: a token in the environment is not the network's business.
VARIABLES = ("PATH", "LANG", "LANGUAGE", "TZ", "TERM", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "LD_LIBRARY_PATH")
VARIABLES_BEGIN = (
    "LC_", "PYTHON", "CUDA", "NVIDIA_", "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "NUMEXPR_", "NUMBA_", "TORCH", "PYTORCH_",
)  # fmt: skip
SECRET = ("KEY", "TOKEN", "SECRET", "PASSW", "CREDENTIAL", "AUTH")
# Where libraries keep what they make along the way.
CACHES = {
    "HOME": "home",
    "TMPDIR": "tmp",
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "MPLCONFIGDIR": "matplotlib",
    "NUMBA_CACHE_DIR": "numba",
    "TORCH_HOME": "torch",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "CUDA_CACHE_PATH": "cuda",
}


def environment(private: Path) -> dict[str, str]:
    """Return the variables of the child; what libraries write goes to folders in `private`, which are made."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if (name in VARIABLES or name.startswith(VARIABLES_BEGIN)) and not any(word in name.upper() for word in SECRET)
    }
    for variable, folder in CACHES.items():
        (private / folder).mkdir(mode=0o700, exist_ok=True)
        passed[variable] = str(private / folder)
    passed["JOBLIB_MULTIPROCESSING"] = "0"  # it would look for shared semaphores, and warn that it may not make them
    if site.ENABLE_USER_SITE:
        passed["PYTHONUSERBASE"] = site.getuserbase()  # it would follow HOME
    return passed


def rules(files: Iterable[Path], folders: Iterable[Path], writable: Iterable[Path], home: Path) -> Iterator[tuple[Path, int]]:
    """Return what may be read, and what may be written, too.

    Parameters
    ----------
    files
        May be read; a folder with all that is in it.
    folders
        Folders of code: with all that is in them, but for the home folder and those above it, of which only the plain files.
    writable
        Folders.
    home
        The user's, which is not the child's.
    """
    for path in _readable():
        yield path, READ
    paths = [Path(entry) for entry in [*sys.path, *os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)] if entry]
    for folder in [*paths, *folders]:
        for path in _inside(folder, home):
            yield path, READ
    for path in files:
        yield path, READ
    yield Path("/dev/null"), READ | WRITE_FILE
    for device in _graphics():
        yield device, DEVICE
    for path in writable:
        yield path, WRITE


def check_writable(out: Path, home: Path, code: Iterable[Path]) -> None:
    """Refuse an output folder that holds what must not be written: a home folder, Python, audit itself, the user's code.

    Raises
    ------
    UsageError
        It does.
    """
    real = out.resolve()
    for kept in (home, Path.cwd(), Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parent, *code):
        if kept.resolve().is_relative_to(real):
            raise UsageError(f"--sandbox lets all of --out be written, and {out} holds {kept}: choose a folder of its own")


def _readable() -> Iterator[Path]:
    yield from map(Path, SYSTEM)
    yield from (Path("/etc", name) for name in SETTINGS)
    yield from (Path("/proc", name) for name in PROCESS)
    yield from (Path("/dev", name) for name in DEVICES_READ)
    yield from map(Path, (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix))
    package = Path(__file__).resolve().parent.parent
    yield package
    yield package.parent / "reports" / "templates"  # in a checkout


def _inside(folder: Path, home: Path) -> Iterator[Path]:
    real = folder.resolve()
    shared = (home, Path(tempfile.gettempdir()), Path("/tmp"))  # noqa: S108 - asked about, not written to
    if not any(place.resolve().is_relative_to(real) for place in shared):
        yield folder
        return
    if not folder.is_dir():
        return
    for number, entry in enumerate(os.scandir(folder)):
        if number >= MOST_BESIDE:
            return
        if not entry.name.startswith(".") and entry.is_file():
            yield Path(entry.path)


def _graphics() -> Iterator[Path]:
    try:
        entries = sorted(os.scandir("/dev"), key=lambda entry: entry.name)
    except OSError:
        return
    yield from (Path(entry.path) for entry in entries if entry.name.startswith(DEVICES))
