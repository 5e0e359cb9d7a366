"""The Slurm client: recorded output of Slurm 22.05.8, and commands that are real executables on PATH."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from launcher.errors import SchedulerError, UserError
from launcher.scheduler import open_scheduler
from launcher.scheduler.base import Job, Scheduler, whole_array
from launcher.scheduler.slurm.text import merge, parse_sacct, parse_squeue, pick
from launcher.states import State

pytestmark = pytest.mark.unit

# squeue -h -r -o SQUEUE_FORMAT
SQUEUE = """\
5_4|PENDING|2026-11-22T23:25:13|N/A||JobArrayTaskLimit|j5.sh|arr
6|PENDING|2026-11-22T23:25:14|2026-11-22T23:25:20||BeginTime|j6.sh|rq
5_2|RUNNING|2026-11-22T23:25:13|2026-11-22T23:25:15|node1|None|j5.sh|arr
5_3|RUNNING|2026-11-22T23:25:13|2026-11-22T23:25:15|node1|None|j5.sh|arr
7|RUNNING|2026-11-22T23:25:13|2026-11-22T23:25:13|node1|None|j7.sh|long
"""
# sacct -P -n -D -X -o SACCT_FIELDS, a second later and at the end
SACCT_EARLY = """\
1|COMPLETED|0:0|2026-11-22T23:25:13|2026-11-22T23:25:13|2026-11-22T23:25:15|node1|None|a:b|tok:1
2|FAILED|3:0|2026-11-22T23:25:13|2026-11-22T23:25:13|2026-11-22T23:25:13|node1|None|j2.sh|tok:2
6|REQUEUED|0:0|2026-11-22T23:25:13|2026-11-22T23:25:13|2026-11-22T23:25:13|node1|None|j6.sh|rq
7|RUNNING|0:0|2026-11-22T23:25:13|2026-11-22T23:25:13|Unknown|node1|None|j7.sh|
"""
SACCT_END = """\
7|CANCELLED by 0|0:0|2026-11-22T23:25:13|2026-11-22T23:25:13|2026-11-22T23:25:15|node1|None|j7.sh|long
5_0|COMPLETED|0:0|2026-11-22T23:25:13|2026-11-22T23:25:13|2026-11-22T23:25:15|node1|None|j5.sh|arr
5_1|COMPLETED|0:0|2026-11-22T23:25:13|2026-11-22T23:25:13|2026-11-22T23:25:14|node1|None|j5.sh|arr
5_2|FAILED|1:0|2026-11-22T23:25:13|2026-11-22T23:25:15|2026-11-22T23:25:16|node1|JobArrayTaskLimit|j5.sh|arr
5_3|COMPLETED|0:0|2026-11-22T23:25:13|2026-11-22T23:25:15|2026-11-22T23:25:16|node1|JobArrayTaskLimit|j5.sh|arr
6|REQUEUED|0:0|2026-11-22T23:25:13|2026-11-22T23:25:13|2026-11-22T23:25:13|node1|None|j6.sh|rq
6|COMPLETED|0:0|2026-11-22T23:25:14|2026-11-22T23:25:20|2026-11-22T23:25:20|node1|BeginTime|j6.sh|rq
"""


def test_squeue() -> None:
    jobs = {job.job_id: job for job in parse_squeue(SQUEUE)}
    assert list(jobs) == ["5_4", "6", "5_2", "5_3", "7"]
    assert (jobs["5_4"].state, jobs["5_4"].reason, jobs["5_4"].comment) == (State.PENDING, "JobArrayTaskLimit", "arr")
    assert jobs["6"].started is None  # squeue's is an estimate
    assert (jobs["7"].state, jobs["7"].nodes, jobs["7"].reason) == (State.RUNNING, "node1", "")
    expected = time.mktime((2026, 11, 22, 23, 25, 13, 0, 0, -1))
    assert (jobs["7"].submitted, jobs["7"].started) == (expected, expected)


def test_sacct() -> None:
    early = {job.job_id: job for job in parse_sacct(SACCT_EARLY)}
    assert (early["1"].state, early["1"].exit_code, early["1"].name) == (State.COMPLETED, 0, "a:b")
    assert (early["2"].state, early["2"].exit_code) == (State.FAILED, 3)
    assert (early["6"].state, early["6"].restarts) == (State.REQUEUED, 0)
    assert (early["7"].state, early["7"].exit_code, early["7"].ended) == (State.RUNNING, None, None)
    end = {job.job_id: job for job in parse_sacct(SACCT_END)}
    assert end["7"].state is State.CANCELLED
    assert (end["6"].state, end["6"].restarts, end["6"].reason) == (State.COMPLETED, 1, "")
    assert end["5_2"].exit_code == 1


@pytest.mark.parametrize(
    ("line", "job"),
    [
        (
            "8|CANCELLED by 1000|0:15|Unknown|Unknown|Unknown|None assigned|None|n|",
            Job("8", "n", State.CANCELLED, exit_code=0, signal=15),
        ),
        ("8|OUT_OF_ME+|0:125|N/A|N/A|N/A|n1|None|n|", Job("8", "n", State.OUT_OF_MEMORY, 0, 125, nodes="n1")),
        ("2+0|NODE_FAIL|1:0|N/A|N/A|N/A|n1|None|n|c|d", Job("2", "n", State.NODE_FAIL, 1, nodes="n1", comment="c|d")),
        ("8|SOMETHING_NEW|0:0|N/A|N/A|N/A||None|n|", Job("8", "n", State.UNKNOWN)),
    ],
)
def test_odd_lines_of_sacct(line: str, job: Job) -> None:
    assert parse_sacct(line) == [job]


def test_waiting_tasks_are_one_line_of_sacct() -> None:
    jobs = parse_sacct("12_[3-5,9%2]|PENDING|0:0|Unknown|Unknown|Unknown|None assigned|Priority|n|")
    assert [job.job_id for job in jobs] == ["12_3", "12_4", "12_5", "12_9"]
    assert {job.state for job in jobs} == {State.PENDING}


def test_garbage_is_passed_over() -> None:
    assert parse_sacct("\nsacct: warning\n") == []
    assert parse_squeue("slurm_load_jobs error\n|||\n") == []


def test_the_queue_knows_better_than_accounting() -> None:
    known = merge(parse_squeue(SQUEUE), parse_sacct(SACCT_EARLY))
    assert pick("6", known).state is State.PENDING  # requeued
    assert pick("7", known).comment == "long"
    assert pick("1", known).state is State.COMPLETED
    assert pick("5_2", known).state is State.RUNNING
    assert pick("5", known).state is State.RUNNING
    assert pick("5_9", known).state is State.UNKNOWN
    assert pick("99", known) == Job("99")
    lagging = merge(parse_squeue("7|COMPLETED|N/A|N/A|n1|None|n|c\n"), parse_sacct(SACCT_EARLY))
    assert pick("7", lagging).state is State.COMPLETED
    assert pick("7", merge([], parse_sacct(SACCT_END))).state is State.CANCELLED


def test_an_array_is_as_bad_as_its_worst_task() -> None:
    def state(*states: State) -> State:
        return whole_array("1", [Job(f"1_{task}", state=one) for task, one in enumerate(states)]).state

    assert state(State.COMPLETED, State.COMPLETED) is State.COMPLETED
    assert state(State.COMPLETED, State.FAILED, State.CANCELLED) is State.FAILED
    assert state(State.FAILED, State.PENDING) is State.PENDING
    assert state(State.FAILED, State.PENDING, State.RUNNING) is State.RUNNING
    assert state(State.COMPLETED, State.UNKNOWN) is State.UNKNOWN


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An otherwise empty PATH; each command notes its arguments in NAME.args."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def _command(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>{folder}/{name}.args\n{body}\n')
    path.chmod(0o755)


def _slurm() -> Scheduler:
    return open_scheduler("slurm", state_dir=Path("/nonexistent"))


def test_submit(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SBATCH_PARTITION", "wrong")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    note = commands / "environ"
    _command(commands, "sbatch", f'echo "$SLURM_JOB_ID/$SBATCH_PARTITION/$SLURM_CONF" >{note}; echo "42;cluster"')
    _command(commands, "squeue", "echo '4|PENDING|N/A|N/A||None|n|c'")
    _command(commands, "sacct", "echo '3|COMPLETED|0:0|N/A|N/A|N/A|n1|None|n|'")
    assert _slurm().submit(commands / "a b.sh", array="0-3%2") == "42"
    assert note.read_text() == "//" + "/etc/slurm.conf\n"
    assert _slurm().submit(commands / "s.sh", depends_on=["3", "4"]) == "42"
    assert (commands / "sbatch.args").read_text().splitlines() == [
        f"--parsable --array=0-3%2 {commands}/a b.sh",
        f"--parsable --dependency=afterok:4 {commands}/s.sh",  # 3 is known to have succeeded
    ]


def test_a_failed_parent_is_refused_here(commands: Path) -> None:
    """slurmctld takes an id that it has forgotten for a success, even of a job that failed."""
    _command(commands, "sbatch", "echo 42")
    _command(commands, "squeue", "")
    _command(commands, "sacct", f"cat <<'END'\n{SACCT_EARLY}END")
    os.symlink("/bin/cat", commands / "cat")
    with pytest.raises(UserError, match=r"2 \(FAILED\)"):
        _slurm().submit(commands / "s.sh", depends_on=["1", "2"])
    with pytest.raises(SchedulerError, match="does not know: 9") as forgotten:
        _slurm().submit(commands / "s.sh", depends_on=["1", "9"])
    assert "resume" in forgotten.value.hint
    assert not (commands / "sbatch.args").exists()


@pytest.fixture
def script(commands: Path) -> Path:
    path = commands / "s.sh"
    path.write_text("#!/bin/bash\n#SBATCH --comment=token\n")
    return path


LOST = "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1"


def _listing(when: float, comment: str) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(when))
    return f"echo '{{0}}|PENDING|{stamp}|N/A||None|n|{comment}'"


def test_a_submission_that_was_not_confirmed_is_found_and_not_repeated(commands: Path, script: Path) -> None:
    _command(commands, "sbatch", LOST)
    _command(commands, "scontrol", "echo 'Slurmctld(primary) at vm is UP'")
    earlier, now = _listing(time.time() - 300, "token").format(7), _listing(time.time(), "token").format(8)
    _command(commands, "squeue", f"{earlier}\n{now}\n{_listing(time.time(), 'other').format(9)}")
    _command(commands, "sacct", "")
    assert _slurm().submit(script) == "8"
    assert len((commands / "sbatch.args").read_text().splitlines()) == 1


def test_a_submission_that_was_not_confirmed_and_is_not_there(commands: Path, script: Path) -> None:
    _command(commands, "sbatch", LOST)
    _command(commands, "scontrol", "echo 'Slurmctld(primary) at vm is UP'")
    _command(commands, "squeue", _listing(time.time() - 300, "token").format(7))
    _command(commands, "sacct", "")
    with pytest.raises(SchedulerError, match="Socket timed out") as raised:
        _slurm().submit(script)
    assert "swiftlaunch resume" in raised.value.hint
    assert len((commands / "squeue.args").read_text().splitlines()) == 3
    assert len((commands / "sbatch.args").read_text().splitlines()) == 1


def test_a_controller_that_stays_away_is_not_asked_for_jobs(
    commands: Path, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.scheduler.slurm.client._RECOVERY_SECONDS", 1.5)
    _command(commands, "sbatch", LOST)
    _command(commands, "scontrol", "echo 'Slurmctld(primary) at vm is DOWN'; exit 1")
    with pytest.raises(SchedulerError, match="Socket timed out") as raised:
        _slurm().submit(script)
    assert "still does not answer" in raised.value.hint
    assert not (commands / "squeue.args").exists()


BUSY = 'if [ -e {mark} ]; then {then}; else : >{mark}; echo "{says}" >&2; exit 1; fi'


def test_a_busy_controller_is_asked_again(commands: Path, script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.scheduler.slurm.ask.wait", lambda seconds: None)
    _command(commands, "scontrol", "echo 'Slurmctld(primary) at vm is UP'")
    _command(commands, "sacct", "")
    turned_away = "sbatch: error: Batch job submission failed: Resource temporarily unavailable"
    _command(commands, "sbatch", BUSY.format(mark=commands / "asked", says=turned_away, then="echo 42"))
    assert _slurm().submit(script) == "42"
    assert len((commands / "sbatch.args").read_text().splitlines()) == 2
    for number, says in enumerate(("RPC rate limit exceeded", "Socket timed out on send/recv operation")):
        line = "echo '7|RUNNING|N/A|N/A|n1|None|n|c'"
        _command(commands, "squeue", BUSY.format(mark=commands / f"asked-{number}", says=says, then=line))
        assert _slurm().jobs(["7"])["7"].state is State.RUNNING
        assert len((commands / "squeue.args").read_text().splitlines()) == 2 * number + 2


def test_patience_with_a_busy_controller_ends(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.scheduler.slurm.ask._PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr("launcher.scheduler.slurm.ask._FIRST_PAUSE_SECONDS", 0.05)
    _command(commands, "squeue", "echo 'slurm_load_jobs error: RPC rate limit exceeded' >&2; exit 1")
    with pytest.raises(SchedulerError, match="rate limit") as raised:
        _slurm().jobs(["7"])
    assert "too much to do" in raised.value.hint
    assert len((commands / "squeue.args").read_text().splitlines()) > 1


def test_a_refusal_is_not_looked_for(commands: Path, script: Path) -> None:
    _command(commands, "sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    with pytest.raises(SchedulerError, match="invalid partition"):
        _slurm().submit(script)


def test_one_refresh_is_one_squeue_and_one_sacct(commands: Path) -> None:
    _command(commands, "squeue", "echo '7|RUNNING|N/A|N/A|n1|None|n|c'")
    _command(commands, "sacct", "echo 'accounting storage is disabled' >&2; exit 1")
    jobs = _slurm().jobs(["7", "12_3", "12_4"])
    assert [job.state for job in jobs.values()] == [State.RUNNING, State.UNKNOWN, State.UNKNOWN]
    assert len((commands / "squeue.args").read_text().splitlines()) == 1
    assert "--jobs=7,12" in (commands / "sacct.args").read_text()
    (commands / "sacct").unlink()  # a site without accounting
    assert _slurm().jobs(["7"])["7"].state is State.RUNNING


def test_a_queue_that_does_not_answer_ends_no_job(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.scheduler.slurm.ask._PATIENCE_SECONDS", 0.2)
    _command(commands, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    for answer, said in (("is UP'", "try again"), ("is DOWN'; exit 1", "does not answer")):
        _command(commands, "scontrol", f"echo 'Slurmctld(primary) at vm {answer}")
        with pytest.raises(SchedulerError, match="Unable to contact") as raised:
            _slurm().jobs(["7"])
        assert said in raised.value.hint
    _command(commands, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    _command(commands, "sacct", "")
    assert _slurm().jobs(["7"])["7"].state is State.UNKNOWN


def test_cancel(commands: Path) -> None:
    _command(
        commands, "scancel", "echo 'scancel: error: Kill job error on job id 7: Invalid job id specified' >&2; exit 1"
    )
    _slurm().cancel(["7", "12_3"])
    assert (commands / "scancel.args").read_text() == "7 12_3\n"
    _command(commands, "scancel", "echo 'scancel: error: Access/permission denied' >&2; exit 1")
    with pytest.raises(SchedulerError, match="permission denied"):
        _slurm().cancel(["7"])
    with pytest.raises(UserError, match="'x7', ''"):  # scancel would cancel none of them
        _slurm().cancel(["7", "x7", ""])


def test_settings_of_the_user_stay_out(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = commands / "environ"
    for name in ("SQUEUE_STATES", "SLURM_TIME_FORMAT", "SACCT_FORMAT", "SCANCEL_INTERACTIVE", "SLURM_CONF"):
        monkeypatch.setenv(name, "theirs")
    shown = "$SQUEUE_STATES/$SLURM_TIME_FORMAT/$SACCT_FORMAT/$SCANCEL_INTERACTIVE/$SLURM_CONF"
    for program in ("squeue", "sacct", "scancel"):
        _command(commands, program, f'echo "{shown}" >>{note}')
    _slurm().jobs(["7"])
    _slurm().cancel(["7"])
    assert note.read_text().splitlines() == ["////theirs"] * 3


def test_without_slurm(commands: Path) -> None:
    with pytest.raises(SchedulerError, match="cannot start sbatch") as raised:
        _slurm().submit(commands / "s.sh")
    assert "installed" in raised.value.hint
    with pytest.raises(UserError, match="unknown scheduler 'pbs'"):
        open_scheduler("pbs", state_dir=commands)
