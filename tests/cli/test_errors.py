"""How commands fail: where, what, what to do next, the exit code, and never a traceback for a user's fault."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.cli import run
from launcher.cli.messages import if_interrupted
from launcher.errors import Fault, InputError, SchedulerError
from launcher.rundir import RunDir

pytestmark = pytest.mark.unit

Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (["statsu"], "error: no command 'statsu'", "did you mean `swiftlaunch status`?"),
        (["status"], "error: Missing argument 'RUN'.", "`swiftlaunch status --help` shows how to call it"),
        (["runs", "--nope"], "error: No such option", "`swiftlaunch runs --help` shows how to call it"),
        (["status", "chain-smu"], "error: no run 'chain-smu'", "did you mean chain-sum?"),
        (["cancel", "latest", "trian"], "has no stage 'trian'", "did you mean train?"),
        (["logs", "latest", "serve"], "rank-0.log: serve has no such log yet", "--batch shows the job script's log"),
        (["plan", "/nowhere/recipe.toml"], "error: /nowhere/recipe.toml: ", ""),
        (["sites", "--site", "locla"], "error: there is no site 'locla'", "did you mean"),
        (["models", "show", "smollm2-135m-instrct"], "is not a known model", "did you mean smollm2-135m-instruct"),
    ],
    ids=" ".join,
)
def test_a_fault_of_the_user(
    words: list[str], error: str, hint: str, run_dir: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    if hint:
        assert lines[1].startswith("hint: ")
        assert hint in lines[1]
    assert "\x1b" not in err


def test_a_fault_of_the_user_leaves_the_program_quietly(swiftlaunch: Program) -> None:
    finished = swiftlaunch("status", "chain-smu")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == "error: no run 'chain-smu'\nhint: did you mean chain-sum?\n"


def test_every_fault_of_an_input_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise InputError([Fault("recipe.toml:3 train.steps", "is 0", "write 1 or more"), Fault("data", "is missing")])

    monkeypatch.setattr("launcher.cli.runs._rebuild", fail)
    assert run(["runs", "--rebuild"]) == 2
    assert capsys.readouterr().err == (
        "error: recipe.toml:3 train.steps: is 0\nhint: write 1 or more\nerror: data: is missing\n"
    )


@pytest.mark.parametrize(("error", "code"), [(SchedulerError("sbatch said no"), 1), (KeyboardInterrupt(), 130)])
def test_exit_code_follows_the_error(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("launcher.cli.runs._rebuild", fail)
    assert run(["runs", "--rebuild"]) == code
    text = capsys.readouterr().err
    assert text == ("error: sbatch said no\n" if code == 1 else "interrupted: nothing was changed\n")


def test_an_interruption_says_what_exists(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with if_interrupted("the run goes on; swiftlaunch status a1"):
            raise KeyboardInterrupt

    monkeypatch.setattr("launcher.cli.runs._rebuild", fail)
    assert run(["runs", "--rebuild"]) == 130
    assert capsys.readouterr().err == "interrupted: the run goes on; swiftlaunch status a1\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("launcher.cli.runs._rebuild", fail)
    with pytest.raises(ZeroDivisionError):
        run(["runs", "--rebuild"])


@pytest.mark.parametrize("words", ["schema", "show latest", "show latest --json"])
def test_a_reader_that_leaves_early_is_no_error(words: str, swiftlaunch: Program) -> None:
    line = f"{sys.executable} -m launcher {words} | head -c 10"
    finished = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert len(finished.stdout) == 10
    assert finished.stderr == ""


def test_a_damaged_index_says_how_it_is_made_again(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    from launcher.registry import registry_path
    from launcher.scheduler import default_state_dir

    index = registry_path(default_state_dir())
    index.write_text("not a database at all, and long enough to be looked at" * 4)
    assert run(["runs"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {index}: the index of runs cannot be used: ")
    assert "delete it; `swiftlaunch runs --rebuild`" in err


def test_a_home_that_cannot_be_written_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(["runs", "--rebuild"]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/file/swiftlaunch: Not a directory\n"


def test_what_to_type_next_is_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", str(tmp_path / "my recipe.toml")]) == 0
    assert f"`swiftlaunch plan '{tmp_path}/my recipe.toml'`" in capsys.readouterr().err


def test_init_does_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    assert run(["init", str(recipe)]) == 0
    text = recipe.read_text()
    assert "[train]" in text
    recipe.write_text("mine")
    assert run(["init", str(recipe)]) == 2
    assert recipe.read_text() == "mine"
    assert f"error: {recipe}: is there already\nhint: " in capsys.readouterr().err
