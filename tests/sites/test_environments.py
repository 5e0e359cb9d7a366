"""Locked environments, built for real: whole, interrupted, side by side, and without a registry."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import environments
from launcher.environments import _pip_fault, remove, status, sync
from launcher.errors import EnvironmentFault, UserError
from launcher.sites import Site

pytestmark = pytest.mark.local

MakeSite = Callable[[str], Site]
FRUIT = "# import: apple, pear\napple==1.0\npear==1.0\n"
SYNC = """
import os, signal, sys
from pathlib import Path
from launcher import environments
from launcher.sites import load_site
site = load_site(Path(sys.argv[1]), Path("/"))
def show(done, total, what):
    print(f"{done}/{total} {what}", flush=True)
    if what == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
state = environments.sync(site, "train", show)
print("present", state.present, flush=True)
"""


def quiet(done: int, total: int, what: str) -> None:
    """No progress shown."""


def start_sync(site: Site, killed_at: str = "") -> subprocess.Popen[str]:
    """A sync in another process, which kills itself when it says that."""
    return subprocess.Popen([sys.executable, "-c", SYNC, site.path, killed_at], stdout=subprocess.PIPE, text=True)


def run_python(site: Site, code: str) -> str:
    done = subprocess.run([status(site, "train").python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.usefixtures("no_registry")
def test_without_a_registry_and_with_it(locked_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    site = locked_site("# import: six\n# disk: 40M\nsix==1.16.0\n")
    before = status(site, "train")
    assert (before.present, before.broken) == (False, "")
    with pytest.raises(EnvironmentFault, match=r"registry could not be reached at six==1\.16\.0") as caught:
        sync(site, "train", quiet)
    assert caught.value.exit_code == 1
    assert "it resumes" in caught.value.hint
    assert "existing venv, module or image" in caught.value.hint
    assert not status(site, "train").present

    monkeypatch.undo()  # from here on the registry that this machine is set up for
    seen: list[tuple[int, int, str]] = []
    state = sync(site, "train", lambda *line: seen.append(line))
    assert state.present
    assert state.packages >= 1
    assert state.size_mib > 1
    assert [what for _, _, what in seen] == ["make the virtual environment", "six", "unpack 1 package", "first import"]
    assert seen[-1][:2] == (1, 1)
    assert run_python(site, "import six; print(six.__version__)") == "1.16.0"
    record = json.loads((Path(state.python).parents[1] / "complete.json").read_text())
    assert record["packages"]["six"] == "1.16.0"
    assert record["lock_hash"] in state.python
    again: list[str] = []
    assert sync(site, "train", lambda done, total, what: again.append(what)) == state
    assert again == []
    assert remove(site, "train") == pytest.approx(state.size_mib, abs=1)
    assert not status(site, "train").present
    assert not Path(state.python).parents[1].exists()
    assert remove(site, "train") == 0


def test_killed_and_resumed(wheels: Path, locked_site: MakeSite) -> None:
    site = locked_site(FRUIT)
    first = start_sync(site, killed_at="apple")
    first.communicate(timeout=60)
    assert first.returncode == -signal.SIGKILL
    folder = Path(status(site, "train").python).parents[1]
    assert status(site, "train").broken == "its build did not end; sync goes on with it"
    made = (folder / "pyvenv.cfg").stat().st_mtime_ns
    assert sync(site, "train", quiet).present
    assert (folder / "pyvenv.cfg").stat().st_mtime_ns == made, "the environment was made anew"
    assert run_python(site, "import apple, pear; print(pear.__version__)") == "1.0"

    # a package cut off while it was unpacked: its metadata is there, which pip takes for installed
    (folder / "complete.json").unlink()
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "pear.py").unlink()
    record = packages / "pear-1.0.dist-info/RECORD"
    record.write_text("".join(line for line in record.open() if "INSTALLER" not in line))
    assert sync(site, "train", quiet).present
    assert run_python(site, "import pear; print(pear.__version__)") == "1.0"

    # the interpreter is gone after an upgrade of the machine
    (folder / "bin/python").unlink()
    (folder / "bin/python").symlink_to("/none/python")
    assert "interpreter it was built with is gone" in status(site, "train").broken
    assert sync(site, "train", quiet).present


def test_two_at_once_build_once(
    tmp_path: Path, wheels: Path, locked_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    # packages on PYTHONPATH stay out: pip would take them for installed
    for wheel in wheels.iterdir():
        zipfile.ZipFile(wheel).extractall(tmp_path / "elsewhere")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    site = locked_site(FRUIT)
    both = [start_sync(site), start_sync(site)]
    printed = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all(text.endswith("present True\n") for text in printed)
    builders = [text for text in printed if "make the virtual environment" in text]
    (waiter,) = [text for text in printed if text not in builders]
    assert len(builders) == 1
    assert "wait for another sync of train-" in waiter or waiter == "present True\n"
    folder = Path(status(site, "train").python).parents[1]
    assert list(folder.glob("lib/python*/site-packages/apple.py"))


def test_what_does_not_import_is_not_whole(tmp_path: Path, wheels: Path, locked_site: MakeSite) -> None:
    # the lock's own options reach pip: pear is found in another folder
    (tmp_path / "more").mkdir()
    (wheels / "pear-1.0-py3-none-any.whl").rename(tmp_path / "more/pear-1.0-py3-none-any.whl")
    site = locked_site(f"# pip: --find-links {tmp_path}/more\n# import: apple, pear, plum\napple==1.0\npear==1.0\n")
    with pytest.raises(EnvironmentFault, match=r"cannot import apple, pear, plum: ModuleNotFoundError: No .* 'plum'"):
        sync(site, "train", quiet)
    state = status(site, "train")
    assert (state.present, bool(state.broken)) == (False, True)
    assert list(Path(state.python).parents[1].glob("lib/python*/site-packages/pear.py"))


def test_disk_space_is_looked_at_first(locked_site: MakeSite) -> None:
    site = locked_site("# disk: 9000T\nsix==1.16.0\n")
    with pytest.raises(EnvironmentFault, match=r"the environment needs 9000\.0 TiB more"):
        sync(site, "train", quiet)


def test_a_folder_that_cannot_be_written(tmp_path: Path, locked_site: MakeSite) -> None:
    site = locked_site("six==1.16.0\n")
    (tmp_path / "envs").write_text("a file")
    with pytest.raises(EnvironmentFault, match="cannot write to"):
        sync(site, "train", quiet)


def test_status_of_own_environments(tmp_path: Path, make_site: MakeSite) -> None:
    (tmp_path / "there.sif").touch()
    site = make_site(
        f'train = {{ kind = "venv", python = "{sys.executable}" }}\n'
        'gptq = { kind = "venv", python = "/none/bin/python" }\n'
        f'vllm = {{ kind = "apptainer", image = "{tmp_path}/there.sif" }}\n'
        'sglang = { kind = "apptainer", image = "/none.sif" }\n'
        'compressor = { kind = "modules", modules = ["compressor"] }\n'
        'transformers = { kind = "locked", lock = "/none/lock.txt" }\n',
    )
    found = {role: (status(site, role).present, status(site, role).broken) for role in site.environments}
    assert found == {
        "train": (True, ""),
        "gptq": (False, "there is no interpreter at /none/bin/python"),
        "vllm": (True, ""),
        "sglang": (False, "there is no image at /none.sif"),
        "compressor": (True, ""),
        "transformers": (False, "there is no lock file /none/lock.txt"),
    }
    for verb in (lambda: sync(site, "train", quiet), lambda: remove(site, "train")):
        with pytest.raises(UserError, match="is yours"):
            verb()
    with pytest.raises(UserError, match="no lock file for transformers"):
        sync(site, "transformers", quiet)


def test_unknown_roles(make_site: MakeSite) -> None:
    site = make_site('train = { kind = "locked" }')
    for verb in (environments.lock_path, environments.status, environments.remove):
        with pytest.raises(UserError, match="no environment for 'trian'") as caught:
            verb(site, "trian")
        assert caught.value.hint == "it has: train"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            "Collecting six==9.9\nERROR: Could not find a version that satisfies the requirement six==9.9 (from "
            "versions: 1.16.0)\nERROR: No matching distribution found for six==9.9",
            "the registry has no six==9.9 for this Python and machine",
        ),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated",
            "torch is not the file that the lock pins (hash)",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "the disk is full at torch",
        ),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError: [Errno -3] Temporary "
            "failure in name resolution': /simple/x/\nERROR: No matching distribution found for x==1",
            "the package registry could not be reached at x==1",
        ),
        (
            "  error: subprocess-exited-with-error\nERROR: Failed building wheel for x",
            "pip failed at torch: Failed building",
        ),
    ],
)
def test_what_pip_says_is_explained(output: str, message: str) -> None:
    fault = _pip_fault(output.splitlines(), "torch", Path("/e/sync.log"))
    assert message in str(fault)
    assert fault.hint
