"""The single door for processes on the login side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launcher.errors import SchedulerError
from launcher.scheduler import process
from launcher.scheduler.local import tree
from launcher.scheduler.process import ProcessTimeout, run

from .conftest import until

pytestmark = pytest.mark.unit


def test_result_and_lines() -> None:
    lines: list[str] = []
    done = run(["sh", "-c", "echo one; echo two >&2; printf three; exit 4"], on_line=lines.append)
    assert (done.returncode, done.stdout, done.stderr) == (4, "one\nthree", "two\n")
    assert sorted(lines) == ["one", "three", "two"]
    assert run(["sh", "-c", "kill -9 $$"]).returncode == -9
    assert run(["cat"]).stdout == ""  # stdin is empty


def test_no_shell_its_own_folder_and_environment(tmp_path: Path) -> None:
    assert run(["echo", "$HOME; ls", "*"]).stdout == "$HOME; ls *\n"
    done = run(["/bin/sh", "-c", "pwd; echo $ONLY"], cwd=tmp_path, env={"ONLY": "this"})
    assert done.stdout == f"{tmp_path}\nthis\n"


def test_missing_program() -> None:
    with pytest.raises(SchedulerError, match="cannot start no-such-program") as raised:
        run(["no-such-program"])
    assert "on PATH" in raised.value.hint


def test_much_output_on_both_sides() -> None:
    done = run([sys.executable, "-c", "import sys; sys.stdout.write('o' * 300000); sys.stderr.write('e' * 300000)"])
    assert (len(done.stdout), len(done.stderr)) == (300000, 300000)


def test_time_is_up_for_the_whole_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TERMINATE_SECONDS", 0.3)
    note = tmp_path / "pids"
    started = time.monotonic()
    with pytest.raises(ProcessTimeout, match="did not end"):
        run(["sh", "-c", f"trap '' TERM; sleep 600 & echo $$ $! >{note}; wait; sleep 600"], timeout=0.3)
    assert time.monotonic() - started < 5
    for pid in note.read_text().split():
        until(lambda pid=pid: (state := tree.stat(int(pid))) is None or state[0] in "ZX", f"the end of {pid}")


def test_ctrl_c_ends_the_group(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = f"from launcher.scheduler.process import run; run(['sh', '-c', 'echo $$ >{note}; sleep 600; true'])"
    caller = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    until(lambda: note.exists() and note.read_text().strip(), "the process")
    caller.send_signal(signal.SIGINT)
    assert caller.wait(timeout=20) != 0
    pid = int(note.read_text())
    until(lambda: (state := tree.stat(pid)) is None or state[0] in "ZX", "the process's end")


def test_from_a_thread() -> None:
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(run(["echo", "hello"]).stdout))
    thread.start()
    thread.join(10)
    assert results == ["hello\n"]
    assert os.getpid()
