"""The doctor: real checks of this machine, and of sites that it cannot be."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launcher import doctor
from launcher.doctor import Check, checks, file_system
from launcher.sites import Network, Node, Partition, Site, SiteEnvironment

pytestmark = pytest.mark.unit

MakeSite = Callable[[str], Site]


def by_name(site: Site) -> dict[str, Check]:
    found = checks(site)
    assert all(check.advice for check in found if check.level != "ok"), "every finding says what to do"
    return {check.name: check for check in found}


def program(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def slurm_site(make_site: MakeSite) -> Site:
    return replace(make_site(""), scheduler="slurm", partitions=(Partition("gpu"), Partition("gone")))


def test_this_machine(make_site: MakeSite, tmp_path: Path) -> None:
    site = replace(make_site(""), network=Network("lo", "127.0.0.1"))
    before = sorted(tmp_path.rglob("*"))
    found = by_name(site)
    assert sorted(tmp_path.rglob("*")) == before, "the doctor leaves nothing behind"
    assert {name: check.level for name, check in found.items()} == {
        "python": "ok",
        "bash": "ok",
        "runs_dir": found["runs_dir"].level,  # warn where little room is left
        "models_dir": found["models_dir"].level,
        "environments_dir": found["environments_dir"].level,
        "file locks": "ok",
        "interface": "ok",
        "host name": "ok",
        "machine": "ok",
    }
    assert "free" in found["runs_dir"].found
    assert found["host name"].found == "127.0.0.1 is 127.0.0.1"


def test_a_machine_that_is_not_this_one(make_site: MakeSite) -> None:
    node = Node(cpus=1, memory_mib=2**40, gpus=64)
    found = by_name(replace(make_site(""), node=node, network=Network("ib77", "nowhere.invalid")))
    assert (found["machine"].level, found["GPUs"].level) == ("warn", "fail")
    assert found["interface"].level == "fail"
    assert "lo" in found["interface"].advice
    assert found["host name"].level == "warn"


def test_environments(make_site: MakeSite, tmp_path: Path) -> None:
    broken = tmp_path / "broken-python3"
    program(tmp_path, "broken-python3", "echo 'Traceback' >&2; echo \"ImportError: libcudart.so\" >&2; exit 1")
    (tmp_path / "lock.txt").write_text("six==1.16.0\n")
    site = make_site(
        f'train = {{ kind = "venv", python = "{broken}" }}\n'
        'gptq = { kind = "venv", python = "/none/bin/python" }\n'
        f'transformers = {{ kind = "locked", lock = "{tmp_path}/lock.txt" }}\n'
        'compressor = { kind = "locked", lock = "/none.txt" }\n'
        'vllm = { kind = "apptainer", image = "/none.sif" }\n'
    )
    found = by_name(site)
    assert found["environment train"] == Check(
        "environment train",
        "fail",
        "cannot import torch, transformers, megatron.core: ImportError: libcudart.so",
        "install what is missing, or correct environments.train of the site",
    )
    assert (found["environment gptq"].level, found["environment gptq"].found) == (
        "fail",
        "no interpreter at /none/bin/python",
    )
    assert found["environment transformers"].level == "warn"
    assert found["environment transformers"].advice == "run: swiftlaunch env sync transformers"
    assert found["environment compressor"].found == "there is no lock file for compressor"
    assert found["environment vllm"].found == "no image at /none.sif"


def test_an_environment_that_works(make_site: MakeSite, tmp_path: Path) -> None:
    for name in ("torch", "transformers"):
        (tmp_path / f"{name}.py").write_text("__version__ = '1.2'\n")
    program(tmp_path, "python", f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"')
    site = make_site(f'transformers = {{ kind = "venv", python = "{tmp_path}/python" }}')
    assert by_name(site)["environment transformers"] == Check(
        "environment transformers", "ok", "torch 1.2, transformers 1.2"
    )


def test_without_slurm(slurm_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "bash", "echo bash 5")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    found = by_name(slurm_site)
    for name in ("sbatch", "squeue", "scontrol", "srun", "scancel"):
        assert (found[name].level, found[name].found) == ("fail", "not found")
    assert "controller" not in found


def test_slurm_answers(slurm_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    for name in ("squeue", "scancel"):
        program(folder, name, "exit 0")
    program(folder, "sbatch", "echo slurm 23.11.4")
    program(folder, "scontrol", "echo 'Slurmctld(primary) at head is UP'")
    program(folder, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    program(folder, "sinfo", "echo gpu; echo debug")
    program(folder, "srun", "echo '  --container-image=[USER@]...'")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    site = replace(slurm_site, environments={"train": SiteEnvironment("train", "pyxis", "python3", image="a#b")})
    found = by_name(site)
    assert found["controller"] == Check("controller", "ok", "Slurmctld(primary) at head is UP (slurm 23.11.4)")
    assert found["accounting"].level == "warn"
    assert found["partition gpu"].level == "ok"
    assert found["partition gone"].level == "fail"
    assert found["partition gone"].advice == "correct the site file; the scheduler has: debug, gpu"
    assert found["pyxis"].level == "ok"
    assert found["environment train"].found == "a#b; only a job can look into it"
    program(folder, "scontrol", "echo 'Slurmctld(primary) at head is DOWN'; exit 1")
    program(folder, "srun", "echo nothing")
    found = by_name(site)
    assert found["controller"].level == "fail"
    assert found["pyxis"].level == "fail"


def test_a_folder_that_cannot_be_written(make_site: MakeSite) -> None:
    found = by_name(replace(make_site(""), runs_dir="/proc/runs"))
    assert found["runs_dir"].level == "fail"
    assert found["file locks"].level == "fail"


@pytest.mark.parametrize("kind", ["ext4", "xfs", "overlay", "tmpfs", "btrfs"])
def test_a_slurm_site_wants_a_shared_file_system(slurm_site: Site, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK_MIB", 0)  # which would be told first
    monkeypatch.setattr(doctor, "file_system", lambda path, mounts: kind)
    assert "compute nodes must see it" in by_name(slurm_site)["runs_dir"].advice
    monkeypatch.setattr(doctor, "file_system", lambda path, mounts: "lustre")
    assert by_name(slurm_site)["runs_dir"].level == "ok"


def test_file_system_of_a_path() -> None:
    mounts = "/dev/a / ext4 rw 0 0\nmds@tcp:/l /scratch lustre rw 0 0\nhome:/h /my\\040home nfs4 rw 0 0\nbroken\n"
    assert file_system(Path("/scratch/runs"), mounts) == "lustre"
    assert file_system(Path("/scratchy/runs"), mounts) == "ext4"
    assert file_system(Path("/my home/x"), mounts) == "nfs4"
    assert file_system(Path("/x"), mounts + "b / overlay rw 0 0\n") == "overlay"
    assert file_system(Path("/x"), "") == ""


def test_progress_counts_to_its_total(make_site: MakeSite) -> None:
    seen: list[tuple[int, int, str]] = []
    site = make_site('train = { kind = "venv", python = "/none/python" }')
    checks(site, lambda *line: seen.append(line))
    assert [done for done, _, _ in seen] == list(range(len(seen)))
    assert {total for _, total, _ in seen} == {len(seen)}
