"""The walls of ``--sandbox``: what a trusted file does without them it cannot do behind them, and the audit goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audit import sandbox
from audit.errors import UsageError
from audit.result import Result
from audit.sandbox import landlock, paths, seccomp
from tests import hostile

SECRET = "tr0ub4dor"  # noqa: S105

needs_walls = pytest.mark.skipif(bool(sandbox.lacking()), reason=f"the system lacks {' and '.join(sandbox.lacking())}")

# Each attempt ends with None where it is done, or with an exception; what it leaves is looked for from outside.
ATTEMPTS = """
    def write_outside(): open(place + "/outside.txt", "w").write("here")
    def write_home(): open(place + "/home/left.txt", "w").write("here")
    def append_outside(): open(place + "/kept.txt", "a").write("here")
    def truncate_outside(): os.truncate(place + "/cut.txt", 0)
    def empty_by_reading():
        os.close(os.open(place + "/emptied.txt", os.O_RDONLY | os.O_TRUNC))
    def remove_outside(): os.unlink(place + "/removed.txt")
    def rename_outside(): os.rename(place + "/renamed.txt", out + "/renamed.txt")
    def change_mode(): os.chmod(place + "/kept.txt", 0o777)
    def make_a_file_that_runs_as_its_owner():
        os.close(os.open(out + "/set-id", os.O_WRONLY | os.O_CREAT, 0o4755))
        assert os.stat(out + "/set-id").st_mode & 0o4000
    def change_times(): os.utime(place + "/kept.txt", (1, 1))
    def make_a_link(): os.symlink(place, out + "/link")
    def make_a_hard_link(): os.link(place + "/home/.ssh/id_rsa", out + "/hard")
    def make_a_pipe(): os.mkfifo(out + "/pipe")
    def read_key(): assert "KEY" in open(place + "/home/.ssh/id_rsa").read()
    def read_environment(): assert os.environ["SOME_TOKEN"]
    def read_environment_of_others():
        held = b""
        for entry in os.listdir("/proc"):
            try: held += open("/proc/" + entry + "/environ", "rb").read()
            except OSError: pass
        assert b"tr0ub" + b"4dor" in held
    def read_memory_of_others(): open("/proc/%d/mem" % victim, "rb").close()
    def tcp_connect(): socket.create_connection(("127.0.0.1", port), timeout=5).close()
    def tcp_listen():
        with socket.socket() as s: s.bind(("127.0.0.1", 0)); s.listen()
    def udp_send():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: assert s.sendto(b"here", ("127.0.0.1", udp))
    def abstract_socket():
        with socket.socket(socket.AF_UNIX) as s: s.connect("\\0" + abstract)
    def path_socket():
        with socket.socket(socket.AF_UNIX) as s: s.connect(place + "/daemon.sock")
    def datagram_pair():
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.close(); b.close()
    def kill_a_process(): os.kill(victim, signal.SIGKILL)
    def limit_a_process():
        resource.prlimit(victim, resource.RLIMIT_NOFILE, (99, 99))
    def new_namespace():
        pid = os.fork()
        if not pid: os._exit(0 if ctypes.CDLL(None).unshare(0x10000000) == 0 else 1)
        assert os.waitpid(pid, 0)[1] == 0
    def leave_a_process():
        beat = "import time\\nwhile True:\\n open(%r, 'a').write('.'); time.sleep(0.05)" % (out + "/beats.txt")
        left = subprocess.Popen([sys.executable, "-S", "-c", beat], start_new_session=True, stdout=-3, stderr=-3)
        open(out + "/left.txt", "w").write(str(left.pid))
"""
RUN_THEM = """
import ctypes, json, os, resource, signal, socket, subprocess, sys
place, out, port, udp, abstract, victim = {place!r}, {out!r}, {port}, {udp}, {abstract!r}, {victim}
def attempt():
{attempts}
    said = dict()
    for name, function in list(locals().items()):
        if callable(function):
            try: function()
            except BaseException as error: said[name] = type(error).__name__
            else: said[name] = "done"
    open(out + "/attempts.json", "w").write(json.dumps(said))
attempt()
"""


class Runs:
    """Runs source text when it is unpickled."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (self.source, {}))


@dataclass(frozen=True)
class World:
    """A folder with things that a file would like to reach, and who listens there."""

    place: Path
    port: int
    udp: int
    abstract: str
    victim: subprocess.Popen[bytes]
    reached: list[socket.socket]

    def env(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.place / "home"), "SOME_TOKEN": SECRET, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    (tmp_path / "home" / ".ssh" / "id_rsa").write_text("KEY")
    for name in ("kept", "cut", "emptied", "removed", "renamed"):
        (tmp_path / f"{name}.txt").write_text("as it was")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "nets.py").write_text(hostile.NETS)
    x, y = hostile.rows()
    np.savez(tmp_path / "code" / "good.npz", x=x, y=y)
    tcp = socket.create_server(("127.0.0.1", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    abstract, by_path = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    name = f"audit-test-{os.getpid()}"
    abstract.bind(f"\0{name}")
    by_path.bind(str(tmp_path / "daemon.sock"))
    for server in (tcp, udp, abstract, by_path):
        server.setblocking(False)
        if server is not udp:
            server.listen()
    victim = subprocess.Popen(["sleep", "300"])
    yield World(tmp_path, tcp.getsockname()[1], udp.getsockname()[1], name, victim, [tcp, udp, abstract, by_path])
    victim.kill()
    victim.wait()
    for server in (tcp, udp, abstract, by_path):
        server.close()


def write_model(world: World, source: str, name: str = "model.pt") -> Path:
    path = world.place / "code" / name
    torch.save({"state_dict": hostile.net().state_dict(), "more": Runs(textwrap.dedent(source))}, path)
    return path


def command(world: World, model: Path, *more: str | Path) -> list[str]:
    code = world.place / "code"
    words = ["run", model, "--arch", f"{code}/nets.py:Net", "--data", code / "good.npz", "--out", world.place / "out"]
    words += ["--trust-model", "--checks", "performance", *more]
    return [sys.executable, "-m", "audit", *map(str, words)]


def attempted(world: World, *more: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    out = world.place / "out"
    source = RUN_THEM.format(
        attempts=ATTEMPTS, place=str(world.place), out=str(out), port=world.port, udp=world.udp,
        abstract=world.abstract, victim=world.victim.pid,
    )  # fmt: skip
    done = subprocess.run(
        command(world, write_model(world, source), *more), env=world.env(), capture_output=True, text=True, timeout=120
    )
    said = json.loads((out / "attempts.json").read_text()) if (out / "attempts.json").exists() else {}
    return done, said


def was_reached(server: socket.socket) -> bool:
    try:
        server.recv(10) if server.type == socket.SOCK_DGRAM else server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def still_beats(out: Path) -> bool:
    before = (out / "beats.txt").stat().st_size if (out / "beats.txt").exists() else 0
    time.sleep(0.6)
    return (out / "beats.txt").exists() and (out / "beats.txt").stat().st_size > before


LIVE = 27  # attempts in the text above


@pytest.mark.slow
@needs_walls
def test_nothing_that_a_trusted_file_tries_gets_through_the_walls(world: World):
    done, said = attempted(world, "--sandbox")
    assert done.returncode == 0, done.stderr
    place, out = world.place, world.place / "out"
    assert len(said) == LIVE
    # A process may be started; that it ends with the audit is seen below.
    assert {name for name, how in said.items() if how == "done"} == {"leave_a_process"}, said
    assert not (place / "outside.txt").exists()
    assert not (place / "home" / "left.txt").exists()
    for name in ("kept", "cut", "emptied", "removed", "renamed"):
        assert (place / f"{name}.txt").read_text() == "as it was"
    assert not [server for server in world.reached if was_reached(server)]
    assert world.victim.poll() is None
    assert not still_beats(out)
    assert {p.name for p in out.iterdir() if not p.name.startswith(".")} <= {
        "attempts.json", "beats.txt", "left.txt", "result.json", "report.html", "summary.md", "junit.xml", "artifacts",
    }  # fmt: skip
    result = Result.load(out)
    assert result.model.trusted
    assert "no network" in result.spec.sandbox
    assert "Landlock" in result.spec.sandbox
    for file in ("report.html", "summary.md"):
        page = (out / file).read_text()
        assert "in a sandbox" in page
        assert "no network" in page


@pytest.mark.slow
def test_the_attempts_are_live(world: World):
    """Otherwise the test above would prove nothing: without walls each is done."""
    done, said = attempted(world)
    left = world.place / "out" / "left.txt"
    try:
        assert done.returncode == 0, done.stderr
        assert len(said) == LIVE
        not_done = {name for name, how in said.items() if how != "done"}
        # Some systems forbid these to anyone.
        assert not_done <= {"new_namespace", "read_memory_of_others"}, said
        assert (world.place / "outside.txt").exists()
        assert all(was_reached(server) for server in world.reached)
        world.victim.wait(timeout=5)
        assert still_beats(world.place / "out")
        assert Result.load(world.place / "out").spec.sandbox == ""
        assert "with the rights of who ran the audit" in (world.place / "out" / "summary.md").read_text()
    finally:
        if left.exists():
            os.kill(int(left.read_text()), signal.SIGKILL)


@needs_walls
@pytest.mark.slow
def test_the_same_is_found_inside_the_walls_and_kept_work_is_shared(world: World):
    model = write_model(world, "pass")
    results = []
    for more in ([], ["--sandbox"]):
        done = subprocess.run(command(world, model, *more), env=world.env(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results.append(Result.load(world.place / "out"))
    plain, walled = results
    assert walled["performance"].metrics == plain["performance"].metrics
    assert walled.spec.config == plain.spec.config
    assert walled.checks[0].cost.forwards <= plain.checks[0].cost.forwards


@needs_walls
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once(world: World, number: int):
    model = write_model(world, f"import time; open({str(world.place / 'out' / 'begun')!r}, 'w').close(); time.sleep(100)")
    child = subprocess.Popen(
        command(world, model, "--sandbox"), env=world.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (world.place / "out" / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130, err
    assert err.count("interrupted") == 1


@needs_walls
@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "code", "word"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV); os.abort()", 5, "killed by signal"),
        ("import ctypes; ctypes.string_at(0)", 5, "killed by signal SIGSEGV"),
        ("raise SystemExit(0)", 5, "SystemExit"),
        ("raise ValueError('no weights here')", 3, "no weights here"),
        ("import os; os._exit(0)", 5, "nothing was concluded"),
    ],
)
def test_the_exit_code_is_the_commands(world: World, source: str, code: int, word: str):
    done = subprocess.run(
        command(world, write_model(world, source), "--sandbox"), env=world.env(), capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr


@needs_walls
@pytest.mark.slow
def test_nothing_private_is_left_behind(world: World):
    (world.place / "tmp").mkdir()
    model = write_model(world, "import os, pathlib; [pathlib.Path(os.environ[v], 'x').mkdir() for v in ('HOME', 'TMPDIR')]")
    done = subprocess.run(
        command(world, model, "--sandbox"),
        env={**world.env(), "TMPDIR": str(world.place / "tmp")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not list((world.place / "tmp").iterdir())


@needs_walls
@pytest.mark.slow
def test_explain_writes_its_page_and_nothing_beside_it(world: World):
    page = world.place / "pages" / "page.html"
    model = write_model(world, f"import os; os.makedirs({str(page.parent)!r})")
    code = world.place / "code"
    words = ["explain", model, "--index", "0", "--arch", f"{code}/nets.py:Net", "--data", code / "good.npz", "--out", page]
    words += ["--trust-model", "--sandbox", "--method", "saliency"]
    done = subprocess.run([sys.executable, "-m", "audit", *map(str, words)], env=world.env(), capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "Permission" in done.stderr
    assert not page.parent.exists()
    write_model(world, "pass")
    done = subprocess.run([sys.executable, "-m", "audit", *map(str, words)], env=world.env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert page.read_text().startswith("<!")
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


@needs_walls
@pytest.mark.slow
def test_data_that_the_configuration_names_can_be_read(world: World):
    (world.place / "elsewhere").mkdir()
    (world.place / "code" / "good.npz").rename(world.place / "elsewhere" / "good.npz")
    config = world.place / "audit.toml"
    config.write_text(f'[data]\nsource = "{world.place}/elsewhere/good.npz"\n[run]\nout = "{world.place}/named"\n')
    model = write_model(world, "pass")
    words = ["run", model, "--arch", f"{world.place}/code/nets.py:Net", "--config", config, "--checks", "performance"]
    words += ["--trust-model", "--sandbox"]
    done = subprocess.run([sys.executable, "-m", "audit", *map(str, words)], env=world.env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (world.place / "named" / "result.json").exists()


@needs_walls
@pytest.mark.slow
@pytest.mark.parametrize("where", ["home", ".", "code"])
def test_a_folder_that_holds_more_than_results_is_refused(world: World, where: str):
    model = write_model(world, "pass")
    done = subprocess.run(
        [*command(world, model, "--sandbox"), "--out", str(world.place / where)],
        env=world.env(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "choose a folder of its own" in done.stderr
    assert not (world.place / where / "result.json").exists()


# --- where the system lacks it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name", "value", "word"),
    [
        (landlock, "version", lambda: 0, "Landlock"),
        (seccomp, "lacking", lambda: "filters of system calls (seccomp)", "seccomp"),
        (sys, "platform", "darwin", "Linux (this is darwin)"),
    ],
)
def test_without_walls_nothing_is_run(monkeypatch, module, name, value, word):
    monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("something was run"))
    with pytest.raises(UsageError, match="nothing was run") as refused:
        sandbox.enter(sandbox.Wanted())
    assert word in str(refused.value)
    assert refused.value.exit_code == 2


WITHOUT = """
import os, sys
from audit.sandbox import landlock, namespaces
namespaces.isolate = lambda: False
version = landlock.version
landlock.version = lambda: min({version}, version())
from audit.cli import main
main()
"""


@needs_walls
@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2, 3, 5, 6])
def test_without_namespaces_and_with_older_kernels_the_walls_hold(world: World, monkeypatch, version: int):
    """The file rules of an older kernel cover less; the filter of calls makes up for it."""
    code = WITHOUT.format(version=version)
    start = sandbox.START.replace("from audit.cli import main; main()", f"exec({code!r})")
    patched = f"import audit.sandbox; audit.sandbox.START = {start!r}\n{code}"
    source = RUN_THEM.format(
        attempts=ATTEMPTS, place=str(world.place), out=str(world.place / "out"), port=world.port, udp=world.udp,
        abstract=world.abstract, victim=world.victim.pid,
    )  # fmt: skip
    words = command(world, write_model(world, source), "--sandbox")[3:]
    done = subprocess.run([sys.executable, "-c", patched, *words], env=world.env(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads((world.place / "out" / "attempts.json").read_text())
    assert {name for name, how in said.items() if how == "done"} == {"leave_a_process"}, said
    assert world.victim.poll() is None
    assert not still_beats(world.place / "out")
    walls = Result.load(world.place / "out").spec.sandbox
    assert f"Landlock {min(version, landlock.version())}" in walls
    assert "namespaces" not in walls


# --- its parts ---------------------------------------------------------------------------------------------------------


def test_the_environment_of_the_child_holds_no_secrets(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PYTHON_KEYRING_PASSWORD", "SSH_AUTH_SOCK", "LD_PRELOAD", "MY_SETTING"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    held = paths.environment(tmp_path)
    assert SECRET not in held.values()
    assert (held["OMP_NUM_THREADS"], held["LC_ALL"], held["PATH"]) == ("3", "C.UTF-8", os.environ["PATH"])
    assert Path(held["HOME"]).parent == tmp_path
    assert Path(held["TMPDIR"]).is_dir()


def test_of_the_home_folder_only_plain_files_are_read(tmp_path):
    for name in (".netrc", "nets.py"):
        (tmp_path / name).touch()
    (tmp_path / "letters").mkdir()
    allowed = {path for path, _ in paths.rules([], [tmp_path], [], home=tmp_path)}
    assert tmp_path / "nets.py" in allowed
    assert not {tmp_path, tmp_path / ".netrc", tmp_path / "letters"} & allowed
    allowed = {path for path, _ in paths.rules([], [tmp_path / "letters"], [], home=tmp_path)}
    assert tmp_path / "letters" in allowed


def test_a_filter_is_made_of_jumps_that_stay_inside_it():
    for column, arch in ((0, 0xC000003E), (1, 0xC00000B7)):
        for every in (True, False):
            ops = seccomp._program(seccomp.Also(every, every, every), 4321, column, arch)
            assert len(ops) < 4096, "the kernel's limit"
            for at, (code, yes, no, _) in enumerate(ops):
                if code & 0x07 == 0x05:
                    assert at + 1 + max(yes, no) < len(ops)
            assert ops[-1][0] == 0x06


@pytest.mark.skipif(not Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").exists(), reason="no kernel headers here")
def test_the_numbers_of_calls_are_the_kernels():
    for column, header in ((0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")):
        numbers = {}
        for line in Path(header).read_text().splitlines():
            words = line.split()
            if len(words) == 3 and words[0] == "#define" and words[1].startswith("__NR") and words[2].isdigit():
                numbers[words[1].removeprefix("__NR3264_").removeprefix("__NR_")] = int(words[2])
        for name, pair in seccomp.FORBIDDEN.items():
            if name in numbers:
                assert pair[column] == numbers[name], name
            else:
                assert pair[column] is None or pair[column] > 450, f"{name}: newer than these headers"


def test_no_wall_is_claimed_where_none_stands():
    assert sandbox.kind() == ""
