"""Site -> plan.Environment, and what names a locked environment."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.errors import UserError
from launcher.plan import Environment
from launcher.sites import (
    Network,
    Node,
    Site,
    SiteEnvironment,
    import_command,
    lacks,
    lock_hash,
    lock_hashes,
    read_lock,
    resolve_environment,
    usable_python,
    versions,
)

pytestmark = pytest.mark.unit

HASH = "0123456789ab"


def site(environment: SiteEnvironment, **changes: object) -> Site:
    whole = Site(
        name="s",
        path="/s.toml",
        scheduler="slurm",
        runs_dir="/scratch/runs",
        models_dir="/scratch/models",
        environments_dir="/envs",
        node=Node(cpus=1, memory_mib=1024),
        environments={environment.role: environment},
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_locked_is_a_virtual_environment_named_by_its_lock() -> None:
    found = resolve_environment(site(SiteEnvironment("train", "locked", python="/usr/bin/python3.11")), "train", HASH)
    assert found == Environment("train", "venv", f"/envs/train-{HASH}/bin/python", lock=f"train {HASH}")


def test_own_environments_have_no_lock() -> None:
    modules = SiteEnvironment("vllm", "modules", python="python3", modules=("cuda", "vllm"))
    assert resolve_environment(site(modules), "vllm", HASH) == Environment(
        "vllm", "modules", "python3", modules=("cuda", "vllm")
    )


def test_containers_see_runs_and_models() -> None:
    container = SiteEnvironment("train", "apptainer", python="python3", image="/i.sif", mounts=("/data:/data:ro",))
    found = resolve_environment(site(container), "train", "")
    assert found.mounts == ("/data:/data:ro", "/scratch/runs:/scratch/runs", "/scratch/models:/scratch/models")


def test_a_mount_above_is_enough_one_at_another_place_is_not() -> None:
    above = SiteEnvironment("train", "pyxis", image="a", mounts=("/scratch:/scratch",))
    assert resolve_environment(site(above), "train", "").mounts == ("/scratch:/scratch",)
    moved = SiteEnvironment("train", "pyxis", image="a", mounts=("/scratch:/mnt",))
    assert "/scratch/runs:/scratch/runs" in resolve_environment(site(moved), "train", "").mounts


def test_variables_of_the_role_win_over_the_sites() -> None:
    environment = SiteEnvironment("train", "locked", variables=(("A", "role"), ("NCCL_SOCKET_IFNAME", "ib1")))
    network = Network(interface="ib0", rendezvous_host="head")
    found = resolve_environment(
        site(environment, variables=(("A", "site"), ("B", "site")), network=network), "train", HASH
    )
    assert dict(found.variables) == {
        "GLOO_SOCKET_IFNAME": "ib0",
        "NCCL_SOCKET_IFNAME": "ib1",
        "SWIFTLAUNCH_RENDEZVOUS_HOST": "head",
        "A": "role",
        "B": "site",
    }


def test_a_missing_role_says_what_to_add() -> None:
    with pytest.raises(UserError, match="no environment for gptq") as caught:
        resolve_environment(site(SiteEnvironment("train", "locked")), "gptq", HASH)
    assert 'gptq = { kind = "locked" }' in caught.value.hint


def test_the_hash_follows_lock_text_and_python(tmp_path: Path) -> None:
    (tmp_path / "environments").mkdir()
    lock = tmp_path / "environments/train.txt"
    lock.write_text("six==1.16.0\n")
    first = lock_hash(site(SiteEnvironment("train", "locked")), "train", tmp_path)
    same = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    assert len(first) == 12
    assert lock_hash(site(SiteEnvironment("train", "locked", python=same)), "train", tmp_path) == first
    other = site(SiteEnvironment("train", "locked", python="/usr/bin/python3.99"))
    assert lock_hash(other, "train", tmp_path) != first
    lock.write_text("six==1.17.0\n")
    assert lock_hash(site(SiteEnvironment("train", "locked")), "train", tmp_path) != first


def test_the_sites_own_lock_is_taken(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("six==1.16.0\n")
    here = site(SiteEnvironment("train", "locked", lock=str(own)))
    assert list(lock_hashes(here, tmp_path)) == ["train"]
    own.unlink()
    assert lock_hashes(here, tmp_path) == {}
    with pytest.raises(UserError, match="no lock file for train"):
        read_lock(here, "train", tmp_path)


def test_head_comments_of_a_lock(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text(
        "# About this lock\n# pip: --no-deps --extra-index-url 'a b'\n# import: torch, megatron.core\n# disk: 4G\n"
        "--find-links /x\ntorch==2.13.0 \\\n    --hash=sha256:00\nzope.x==1\n"
    )
    lock = read_lock(site(SiteEnvironment("train", "locked", lock=str(own))), "train", tmp_path)
    assert lock.pip_options == ("--no-deps", "--extra-index-url", "a b")
    assert lock.imports == ("torch", "megatron.core")
    assert lock.requirements == ("torch==2.13.0", "zope.x==1")
    assert lock.disk_mib == 4096
    own.write_text("# disk: lots\n")
    with pytest.raises(UserError, match="'lots' is not a size"):
        read_lock(site(SiteEnvironment("train", "locked", lock=str(own))), "train", tmp_path)


def test_usable_python_wants_a_whole_build(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("six==1.16.0\n")
    here = site(SiteEnvironment("train", "locked", lock=str(own)), environments_dir=str(tmp_path))
    folder = tmp_path / f"train-{lock_hash(here, 'train', tmp_path)}"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to(sys.executable)
    assert usable_python(here, "train", tmp_path) == ""
    (folder / "complete.json").write_text("{}")
    assert usable_python(here, "train", tmp_path) == str(folder / "bin/python")
    assert usable_python(here, "gptq", tmp_path) == ""
    assert (
        usable_python(site(SiteEnvironment("vllm", "venv", python=sys.executable)), "vllm", tmp_path) == sys.executable
    )
    assert usable_python(site(SiteEnvironment("vllm", "venv", python="/none")), "vllm", tmp_path) == ""


def test_import_commands_by_kind() -> None:
    plain = import_command(Environment("train", "venv", "/v/bin/python"), ("json", "os.path"))
    assert plain[:2] == ["/v/bin/python", "-c"]
    assert plain[2].splitlines()[0] == "import json, os.path"
    container = Environment("train", "apptainer", "python3", image="/i.sif", mounts=("/a:/a",))
    assert import_command(container, ("json",))[:6] == ["apptainer", "exec", "--bind", "/a:/a", "/i.sif", "python3"]
    modules = import_command(Environment("train", "modules", "python3", modules=("a b",)), ("json",))
    assert modules[:2] == ["bash", "-lc"]
    assert modules[2].startswith("module purge && module load 'a b' && exec python3 -c ")


def test_versions_are_those_of_the_installed_packages(tmp_path: Path) -> None:
    (tmp_path / "stale.py").write_text("__version__ = '0.1'\n")
    (tmp_path / "plain.py").write_text("")
    for name, tops in (("stale", "stale"), ("plain-core", "plain")):
        about = tmp_path / f"{name.replace('-', '_')}-2.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n")
        (about / "top_level.txt").write_text(tops)
    (tmp_path / "loose.py").write_text("__version__ = '3.1'\n")
    (tmp_path / "bare.py").write_text("")
    command = import_command(Environment("train", "venv", sys.executable), ("stale", "plain", "loose", "bare"))
    done = subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert versions(done.stdout) == {"stale": "2.0", "plain": "2.0", "loose": "3.1", "bare": "?"}


def test_versions_are_read_back() -> None:
    assert versions("noise\nversion torch 2.13.0+cpu\nversion six ?\n") == {"torch": "2.13.0+cpu", "six": "?"}


def test_packages_are_looked_for_in_the_lock_or_in_the_folder(tmp_path: Path) -> None:
    lock = tmp_path / "environments/train.txt"
    lock.parent.mkdir()
    lock.write_text("# import: wandb\nmlflow-skinny==3.17.2\nwandbox==1.0\n")
    locked = site(SiteEnvironment("train", "locked"))
    assert not lacks(locked, "train", tmp_path, "mlflow")
    assert lacks(locked, "train", tmp_path, "wandb")

    home = tmp_path / "venv"
    python, packages = home / "bin/python", home / "lib/python3.11/site-packages"
    for folder in (python.parent, packages / "mlflow"):
        folder.mkdir(parents=True)
    python.touch(mode=0o755)
    (packages / "mlflow/__init__.py").touch()
    own = site(SiteEnvironment("train", "venv", python=str(python)))
    assert not lacks(own, "train", tmp_path, "wandb")  # no pyvenv.cfg: packages may be anywhere
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    assert lacks(own, "train", tmp_path, "wandb")
    assert not lacks(own, "train", tmp_path, "mlflow")
    assert not lacks(site(SiteEnvironment("train", "pyxis", image="x.sqsh")), "train", tmp_path, "wandb")
