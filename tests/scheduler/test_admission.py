"""What is asked of Slurm before a submission: commands are real executables on PATH that print recorded text."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.plan import Environment, Plan, Resources, Stage
from launcher.scheduler.admission import look, told_limits

pytestmark = pytest.mark.unit

RECORDED = Path(__file__).with_name("recorded") / "23.02"
CONFIG = (RECORDED / "config.txt").read_text()


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site with limits, whose queue holds two jobs of ours; each command notes its words in NAME.args."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("getpass.getuser", lambda: "root")
    os.symlink("/bin/cat", tmp_path / "cat")
    command(tmp_path, "squeue", "printf '7\\n8\\n'")
    command(tmp_path, "sshare", f"cat {RECORDED}/shares.txt")
    command(
        tmp_path, "sbatch", "echo 'sbatch: Job 9 to start at 2026-11-23T02:24:36 using 2 processors on nodes n1' >&2"
    )
    scontrol(tmp_path)
    command(
        tmp_path,
        "sacctmgr",
        f'case "$*" in *qos*Flags*) cat {RECORDED}/qos.txt ;; *DefaultAccount*) echo lab ;; '
        f"*account=lab*) echo 'test|lab|||root|normal||02:00:00||gres/gpu=8||' ;; *account=*) ;; "
        f"*) echo 'test|lab|root|||long,normal||02:00:00|cpu=20,node=3||4|' ;; esac",
    )
    return tmp_path


def command(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>{folder}/{name}.args\n{body}\n')
    path.chmod(0o755)


def scontrol(folder: Path, config: str = CONFIG) -> None:
    (folder / "config").write_text(config)
    asked = f"ping) echo 'Slurmctld(primary) at vm is UP' ;; *config*) cat {folder}/config ;;"
    command(folder, "scontrol", f'case "$*" in {asked} *) cat {RECORDED}/partitions.txt ;; esac')


def plan(**resources: object) -> Plan:
    """Two stages that ask for the same, the second after the first."""
    base = {"nodes": 1, "tasks_per_node": 1, "cpus_per_task": 2, "gpus_per_node": 0, "memory_mib": 1000}
    need = Resources(**{**base, "time_limit_minutes": 60, "partition": "main", **resources})  # type: ignore[arg-type]
    first = Stage("train", "train", need, Environment("train", "venv", "/python"), {})
    stages = (first, replace(first, name="export", worker="export", depends_on=("train",)))
    return Plan("r", "r", "/runs/r", "s", "slurm", "root", "1", "", "", {}, {}, "", stages)


SCRIPTS = {
    name: f"#!/bin/bash\n#SBATCH --job-name=r:{name}\n#SBATCH --comment='r:{name}'\n#SBATCH --nodes=1\nsrun\n"
    for name in ("train", "export")
}


def test_a_plan_that_fits(commands: Path) -> None:
    answer = look(plan(), SCRIPTS)
    assert (answer.faults, answer.trouble) == ((), "")
    assert [stage for stage, _ in answer.starts] == ["train"]  # export waits for it
    assert answer.fair_share.startswith("fair share 1.00 of 1 in account lab")
    assert len((commands / "sbatch.args").read_text().splitlines()) == 1  # both ask for the same


def test_what_is_over_a_limit_is_told_for_every_stage(commands: Path) -> None:
    answer = look(plan(time_limit_minutes=180, cpus_per_task=30), SCRIPTS)
    found = [(fault.where, fault.message) for fault in answer.faults]
    for stage in ("train", "export"):
        assert (f"stage {stage}", "asks for 3 h 00 min; root in account lab gives a job 2 h 00 min") in found
        assert (f"stage {stage}", "asks for 30 CPUs; root in account lab allows one job 20 CPUs at a time") in found
    assert len(found) == 4
    assert answer.faults[0].hint.startswith("lower resources.train.time_limit")


def test_the_queue_must_have_room_for_all_of_it(commands: Path) -> None:
    command(commands, "squeue", "printf '7\\n8\\n9\\n'")
    (fault,) = look(plan(), SCRIPTS).faults
    assert fault.message == "root in account lab allows 4 jobs in the queue; you have 3, and this run adds 2"
    assert look(plan(), SCRIPTS, replaced=1).faults == ()
    (fault,) = look(plan(), SCRIPTS, tasks={"train": 100}).faults
    assert fault.message.endswith("this run adds 101")


def test_a_refusal_of_slurm(commands: Path) -> None:
    command(commands, "sbatch", "echo 'allocation failure: Invalid qos specification' >&2; exit 1")
    answer = look(plan(time_limit_minutes=180), SCRIPTS)
    assert [fault.message for fault in answer.faults] == ["Slurm refuses it: Invalid qos specification"] * 2
    assert "set resources.export.qos" in answer.faults[1].hint


def test_nodes_that_are_away_are_no_refusal(commands: Path) -> None:
    command(commands, "sbatch", "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1")
    command(commands, "sinfo", "printf 'n1|idle\\nn2|drained\\nn2|drained\\nn3|idle*\\n'")
    answer = look(plan(), SCRIPTS)
    assert answer.faults == ()
    assert answer.notes == ("export, train cannot be placed now: 2 of 3 nodes are down, drained or do not answer",)
    command(commands, "sinfo", "printf 'n1|idle\\nn2|mixed\\nn3|idle~\\n'")
    assert len(look(plan(), SCRIPTS).faults) == 2


def test_limits_that_do_not_count_are_not_asked_for(commands: Path) -> None:
    scontrol(commands, CONFIG.replace("associations,limits,qos", "none").replace("multifactor", "basic"))
    command(commands, "squeue", "exit 1")
    answer = look(plan(cpus_per_task=30), SCRIPTS)
    assert (answer.faults, answer.fair_share) == ((), "")
    assert not (commands / "sacctmgr.args").exists()
    assert look(plan(nodes=3), SCRIPTS).faults[0].message.endswith("partition main gives a job 2 nodes")
    assert told_limits() == (True, "only those of partitions count here")


def test_a_site_that_tells_nothing(commands: Path) -> None:
    (commands / "sacctmgr").unlink()
    (commands / "sshare").unlink()
    answer = look(plan(cpus_per_task=30), SCRIPTS)
    assert (answer.faults, answer.fair_share, answer.trouble) == ((), "", "")
    told, found = told_limits()
    assert not told
    assert "does not tell" in found


def test_without_slurm_or_an_answer(commands: Path) -> None:
    command(commands, "scontrol", "echo 'Slurmctld(primary) at vm is DOWN'; exit 1")
    assert "does not answer" in look(plan(), SCRIPTS).trouble
    assert not (commands / "sbatch.args").exists()
    (commands / "sbatch").unlink()
    assert look(plan(), SCRIPTS).trouble == "sbatch is not on PATH"


def test_secrets_stay_here(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OTHER", "other")
    command(commands, "sbatch", f'echo "$OTHER $HF_TOKEN" >{commands}/environ')
    look(replace(plan(), secrets=("HF_TOKEN",)), SCRIPTS)
    assert (commands / "environ").read_text().split() == ["other"]
