"""The local scheduler with real scripts and real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.errors import InputError, UserError
from launcher.scheduler.base import Machine
from launcher.scheduler.local import folders, launch, tree
from launcher.scheduler.local.client import LocalScheduler
from launcher.states import State

from .conftest import Desk, until

pytestmark = pytest.mark.local


def test_a_script_sees_what_slurm_would_show_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    monkeypatch.setenv("MY_SETTING", "two words")
    monkeypatch.chdir(desk.folder)
    job_id = desk.submit(
        'env | grep -E "^(SLURM|MY_|CUDA)" | sort; scontrol show hostnames; pwd; echo "$0"',
        *("--job-name=demo:train", "--comment='a token'", "--nodes=2 --ntasks-per-node=2 -c 1", "--time=0-01:00:00"),
    )
    job = desk.end(job_id)
    assert (job.state, job.exit_code, job.signal) == (State.COMPLETED, 0, None)
    assert (job.name, job.comment, job.nodes, job.restarts) == ("demo:train", "a token", "local[1-2]", 0)
    assert job.submitted is not None
    assert job.started is not None
    assert job.ended is not None
    assert job.submitted <= job.started <= job.ended
    lines = desk.log(job_id).splitlines()
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    expected = {
        "MY_SETTING": "two words",
        "SLURM_JOB_ID": job_id,
        "SLURM_JOB_NAME": "demo:train",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "4",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_JOB_NODELIST": "local[1-2]",
        "SLURM_NODEID": "0",
        "SLURMD_NODENAME": "local1",
        "SLURM_SUBMIT_DIR": str(desk.folder),
    }
    assert {name: values.get(name) for name in expected} == expected
    assert int(values["SLURM_JOB_END_TIME"]) - int(values["SLURM_JOB_START_TIME"]) == 3600
    assert "SLURM_RESTART_COUNT" not in values
    assert "SLURM_STEP_ID" not in values
    assert "CUDA_VISIBLE_DEVICES" not in values
    assert lines[-4:-1] == ["local1", "local2", str(desk.folder)]
    assert desk.scheduler.find("a token") == [job]
    assert desk.scheduler.find("another") == []
    until(lambda: not list(desk.state_dir.glob("jobs/*/submission.json")), "the stored environment to be removed")


def test_exit_code_and_signal_of_the_batch_shell(desk: Desk) -> None:
    failed, killed = desk.submit("exit 78"), desk.submit("kill -9 $$")
    job = desk.end(failed)
    assert (job.state, job.exit_code, job.signal, job.reason) == (State.FAILED, 78, None, "NonZeroExitCode")
    job = desk.end(killed)
    assert (job.state, job.exit_code, job.signal, job.reason) == (State.FAILED, 0, 9, "RaisedSignal")


def test_unknown_ids(desk: Desk) -> None:
    assert desk.job("12345").state is State.UNKNOWN
    assert desk.job("7_1").state is State.UNKNOWN
    with pytest.raises(UserError, match="12345"):
        desk.scheduler.cancel(["12345"])
    with pytest.raises(InputError, match="depends on job 12345"):
        desk.submit("true", depends_on=["12345"])


def test_a_chain_runs_in_order_and_a_failed_one_is_cancelled(desk: Desk) -> None:
    order = desk.folder / "order"
    first = desk.submit(f"sleep 0.2; echo first >>{order}")
    second = desk.submit(f"echo second >>{order}; exit 3", depends_on=[first])
    third = desk.submit(f"echo third >>{order}", "--kill-on-invalid-dep=yes", depends_on=[second])
    fourth = desk.submit(f"echo fourth >>{order}", "--kill-on-invalid-dep=yes", depends_on=[third])
    after = desk.scheduler.submit(
        desk.script(f"echo after >>{order}"), depends_on=[second, fourth], dependency_kind="afterany"
    )
    doomed = desk.submit("true", depends_on=[second])
    assert desk.end(after).state is State.COMPLETED
    jobs = desk.scheduler.jobs([first, second, third, fourth])
    assert [job.state.value for job in jobs.values()] == ["COMPLETED", "FAILED", "CANCELLED", "CANCELLED"]
    assert jobs[third].reason == "DependencyNeverSatisfied"
    assert jobs[third].started is None
    assert order.read_text().split() == ["first", "second", "after"]
    until(lambda: desk.job(doomed).reason == "DependencyNeverSatisfied", "the reason of the doomed job")
    assert desk.job(doomed).state is State.PENDING  # as in Slurm, without --kill-on-invalid-dep


def test_signal_before_the_limit_then_requeue(desk: Desk) -> None:
    """The template's way: USR2 to the batch shell, handed on to srun's tasks, exit 75, scontrol requeue."""
    task = "trap 'echo saved; exit 75' USR2; echo ready; while :; do sleep 0.02; done"
    body = f"""
echo "restarts ${{SLURM_RESTART_COUNT:-none}}"
[ -n "${{SLURM_RESTART_COUNT:-}}" ] && exit 0
step=0
trap '[ "$step" -eq 0 ] || kill -s USR2 "$step"' USR2
srun --nodes=2 --ntasks=2 --kill-on-bad-exit=1 bash -c "{task}" &
step=$!
while :; do wait "$step"; code=$?; kill -0 "$step" 2>/dev/null || break; done
echo "code $code"
scontrol requeue "$SLURM_JOB_ID" && sleep 60
echo never"""
    job_id = desk.submit(body, "--nodes=2", "--ntasks-per-node=1", "--time=0:20", "--signal=B:USR2@17", "--requeue")
    job = desk.end(job_id)
    assert (job.state, job.restarts) == (State.COMPLETED, 1)
    log = desk.log(job_id)
    assert "code 75" in log
    assert log.index("restarts none") < log.index("saved") < log.index("restarts 1")  # appended
    assert "never" not in log


def test_signal_without_b_reaches_the_tasks_only(desk: Desk) -> None:
    body = """
trap 'echo shell got it' USR2
srun bash -c 'trap "echo task got it; exit 3" USR2; while :; do sleep 0.02; done' & wait; wait $!; echo code $?"""
    job_id = desk.submit(body, "--time=0:20", "--signal=USR2@17")
    assert desk.end(job_id).state is State.COMPLETED
    assert "task got it" in desk.log(job_id)
    assert "shell got it" not in desk.log(job_id)


def test_time_limit_term_then_kill(desk: Desk) -> None:
    polite = desk.submit("trap 'echo term; exit 0' TERM; while :; do sleep 0.02; done", "--time=0:01")
    stubborn = desk.submit("trap '' TERM; echo deaf; while :; do sleep 0.02; done", "--time=0:01")
    job = desk.end(polite)
    assert (job.state, job.reason) == (State.TIMEOUT, "TimeLimit")
    assert "term" in desk.log(polite)
    job = desk.end(stubborn)
    assert (job.state, job.signal) == (State.TIMEOUT, 9)
    assert job.started is not None
    assert job.ended is not None
    assert 2.9 <= job.ended - job.started < 15  # the limit and kill_wait


def test_cancel_leaves_no_process(desk: Desk) -> None:
    """Neither one that ignores TERM, nor one that forked away twice, nor one without the job's environment."""
    away = "import os,time,signal; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); time.sleep(600)"
    clean = f"import os; os.execve('{sys.executable}', ['python', '-S', '-c', {away!r}], {{}})"
    body = f"""
cat >away.py <<'END'
{away}
END
cat >clean.py <<'END'
{clean}
END
cd {desk.folder}
srun --ntasks=2 bash -c '{sys.executable} -S {desk.folder}/away.py; trap "" TERM; echo up; sleep 600' &
{sys.executable} -S {desk.folder}/clean.py
(trap "" TERM HUP; setsid sleep 601 &)
echo started; wait"""
    job_id = desk.scheduler.submit(desk.script(f"cd {desk.folder}\n{body}", "--ntasks-per-node=2"))
    until(lambda: desk.log(job_id).count("up") == 2 and "started" in desk.log(job_id), "all processes")
    stepd = int(desk.stepd(job_id).split()[0])
    until(lambda: len(tree.descendants(stepd)) >= 8, "the processes that fork away")
    before = tree.descendants(stepd)
    assert before - desk.processes(job_id), "the one without environment is seen as a descendant only"
    desk.scheduler.cancel([job_id])
    job = desk.end(job_id)
    assert (job.state, job.signal) == (State.CANCELLED, 15)
    assert not [pid for pid in before if (state := tree.stat(pid)) and state[0] not in "ZX"]


def test_cancel_of_a_pending_job_and_no_requeue_of_a_cancelled_one(desk: Desk) -> None:
    body = "trap 'scontrol requeue $SLURM_JOB_ID; echo requeue $?; exit 1' TERM; echo up; while :; do sleep 0.02; done"
    running = desk.submit(body)
    waiting = desk.submit("true", depends_on=[running])
    desk.wait_for(running, "up")
    desk.scheduler.cancel([running, waiting])
    assert desk.job(waiting).state is State.CANCELLED
    job = desk.end(running)
    assert (job.state, job.restarts) == (State.CANCELLED, 0)
    assert "requeue 1" in desk.log(running)
    desk.scheduler.cancel([running])  # it has ended: nothing to do
    assert desk.job(running) == job


def test_no_requeue_is_refused(desk: Desk) -> None:
    job_id = desk.submit("scontrol requeue $SLURM_JOB_ID; echo rc $?", "--no-requeue")
    assert desk.end(job_id).state is State.COMPLETED
    assert "disabled" in desk.log(job_id)
    assert "rc 1" in desk.log(job_id)


def test_a_killed_supervisor_loses_nothing(desk: Desk) -> None:
    go = desk.folder / "go"
    running = desk.submit(f"echo up; while [ ! -e {go} ]; do sleep 0.02; done; exit 42")
    waiting = desk.scheduler.submit(desk.script("echo later"), depends_on=[running], dependency_kind="afterany")
    desk.wait_for(running, "up")
    old = desk.supervisor()
    assert tree.send(old, signal.SIGKILL)
    until(lambda: not tree.alive(old), "the supervisor's end")
    go.touch()
    ended = Path(folders.ended(folders.run(str(desk.state_dir), int(running), 0)))
    until(ended.exists, "stepd, alone, to write the exit code")
    job = desk.end(running)  # `jobs` starts another supervisor
    assert (job.state, job.exit_code) == (State.FAILED, 42)
    assert desk.end(waiting).state is State.COMPLETED
    assert desk.supervisor() != old


def test_a_killed_stepd_is_a_node_failure(desk: Desk) -> None:
    body = """
echo "run ${SLURM_RESTART_COUNT:-0}"
[ -n "${SLURM_RESTART_COUNT:-}" ] && exit 0
srun --ntasks=2 bash -c 'trap "" TERM; echo up; sleep 600' & wait"""
    requeued = desk.submit(body, "--ntasks-per-node=2", "--requeue")
    given_up = desk.submit(body, "--ntasks-per-node=2", "--no-requeue")
    for job_id in (requeued, given_up):
        until(lambda job_id=job_id: desk.log(job_id).count("up") == 2, "both tasks")
        assert tree.send(desk.stepd(job_id), signal.SIGKILL)
    job = desk.end(requeued)
    assert (job.state, job.restarts) == (State.COMPLETED, 1)
    assert "run 1" in desk.log(requeued)
    job = desk.end(given_up)
    assert (job.state, job.restarts) == (State.NODE_FAIL, 0)
    assert not desk.processes(requeued)
    assert not desk.processes(given_up)


def test_a_second_stepd_of_the_same_run_does_nothing(desk: Desk) -> None:
    """A supervisor that was killed right after it started one leaves its successor in doubt."""
    go = desk.folder / "go"
    job_id = desk.submit(f"echo up; while [ ! -e {go} ]; do sleep 0.02; done")
    desk.wait_for(job_id, "up")
    first = desk.stepd(job_id)
    assert launch.start_stepd(str(desk.state_dir), int(job_id), 0).wait(20) == 0
    assert desk.stepd(job_id) == first
    assert desk.job(job_id).state is State.RUNNING
    go.touch()
    assert desk.end(job_id).state is State.COMPLETED
    assert desk.log(job_id) == "up\n"


def test_signals_are_as_a_shell_expects(desk: Desk) -> None:
    """Python ignores SIGPIPE and stepd blocks SIGCHLD; what jobs start must not inherit that."""
    script = desk.script("")
    lines = script.read_text().splitlines()
    lines[0] = f"#!{sys.executable}"  # no bash, which would mend some of it
    code = "import subprocess; print(open('/proc/self/status').read(), flush=True)"
    script.write_text("\n".join([*lines, code, "subprocess.run(['srun', 'cat', '/proc/self/status'])\n"]))
    job_id = desk.scheduler.submit(script)
    assert desk.end(job_id).state is State.COMPLETED
    ignored = [line.split()[1] for line in desk.log(job_id).splitlines() if line.startswith("SigIgn")]
    blocked = [line.split()[1] for line in desk.log(job_id).splitlines() if line.startswith("SigBlk")]
    python_ignores = (1 << signal.SIGPIPE - 1) | (1 << signal.SIGXFSZ - 1)  # in itself, not in what it starts
    standard = (1 << 31) - 1  # 32 and 33 are the C library's own; what `make` starts has them ignored (posix_spawn)
    assert [int(mask, 16) & standard & ~python_ignores for mask in ignored] == [0, 0]
    assert [int(mask, 16) & standard for mask in blocked] == [0, 0]
    job_id = desk.submit(
        "yes | head -1; echo batch ${PIPESTATUS[0]}; srun bash -c 'yes | head -1; echo ${PIPESTATUS[0]}'"
    )
    assert desk.end(job_id).state is State.COMPLETED
    assert desk.log(job_id).split() == ["y", "batch", "141", "y", "141"]


def test_after_a_reboot_jobs_start_again(desk: Desk) -> None:
    """Another boot: the process with stepd's pid and start time is not stepd."""
    job_id = desk.submit('[ -n "${SLURM_RESTART_COUNT:-}" ] && exit 0; echo up; sleep 600')
    desk.wait_for(job_id, "up")
    path = Path(folders.stepd(folders.run(str(desk.state_dir), int(job_id), 0)))
    pid, start, _ = path.read_text().split()
    path.write_text(f"{pid} {start} 00000000-0000-0000-0000-000000000000")
    job = desk.end(job_id)
    assert (job.state, job.restarts) == (State.COMPLETED, 1)


def test_arrays_and_their_limit(desk: Desk) -> None:
    body = f"""
: >{desk.folder}/in-$SLURM_ARRAY_TASK_ID; sleep 0.2
ls {desk.folder} | grep -c ^in- >{desk.folder}/count-$SLURM_ARRAY_TASK_ID
rm {desk.folder}/in-$SLURM_ARRAY_TASK_ID
echo $SLURM_ARRAY_JOB_ID $SLURM_ARRAY_TASK_ID $SLURM_ARRAY_TASK_COUNT $SLURM_ARRAY_TASK_MAX
exit $((SLURM_ARRAY_TASK_ID == 3))"""
    script = desk.script(body, f"--output={desk.folder}/%A-%a.log", "--comment=sweep")
    array = desk.scheduler.submit(script, array="1-5%2")
    whole = desk.end(array)
    tasks = desk.scheduler.jobs([f"{array}_{task}" for task in range(1, 6)])
    assert [job.state.value for job in tasks.values()] == ["COMPLETED"] * 2 + ["FAILED"] + ["COMPLETED"] * 2
    assert (whole.job_id, whole.state, whole.exit_code) == (array, State.FAILED, 1)
    assert desk.scheduler.find("sweep") == [whole]
    counts = [int((desk.folder / f"count-{task}").read_text()) for task in range(1, 6)]
    assert max(counts) == 2
    assert (desk.folder / f"{array}-4.log").read_text().split() == [array, "4", "5", "5"]
    met = desk.scheduler.submit(desk.script("true"), depends_on=[f"{array}_2"])
    unmet = desk.scheduler.submit(desk.script("true", "--kill-on-invalid-dep=yes"), depends_on=[array])
    assert desk.end(met).state is State.COMPLETED
    assert desk.end(unmet).state is State.CANCELLED
    follower = desk.script("true", "--kill-on-invalid-dep=yes", f"--output={desk.folder}/follow-%a.log")
    following = desk.scheduler.submit(follower, depends_on=[array], dependency_kind="aftercorr", array="2,3")
    desk.end(following)
    tasks = desk.scheduler.jobs([f"{following}_2", f"{following}_3"])
    assert [job.state for job in tasks.values()] == [State.COMPLETED, State.CANCELLED]
    rescue = desk.scheduler.submit(desk.script("true"), depends_on=[f"{array}_3"], dependency_kind="afternotok")
    assert desk.end(rescue).state is State.COMPLETED


def test_jobs_wait_for_free_nodes_and_start_in_order(desk: Desk) -> None:
    go = desk.folder / "go"
    wait = f"echo up; while [ ! -e {go} ]; do sleep 0.02; done"
    first = desk.submit(wait, "--nodes=3", "--ntasks-per-node=2")
    second = desk.submit("true", "--nodes=2", "--ntasks-per-node=2")
    third = desk.submit("true")
    desk.wait_for(first, "up")
    until(lambda: desk.job(third).reason == "Priority", "the third job to stand behind the second")
    assert desk.job(second).reason == "Resources"
    go.touch()
    for job_id in (first, second, third):
        assert desk.end(job_id).state is State.COMPLETED
    jobs = desk.scheduler.jobs([first, second])
    assert (jobs[second].started or 0) >= (jobs[first].ended or 0)


def test_memory_and_gpus_are_shared_out(desk: Desk) -> None:
    machine = Machine(nodes=2, cpus=4, memory_mib=1000, gpus=2)
    scheduler = LocalScheduler(desk.state_dir, machine=machine)
    go = desk.folder / "go"
    body = f"echo $CUDA_VISIBLE_DEVICES; while [ ! -e {go} ]; do sleep 0.02; done"
    ids = [scheduler.submit(desk.script(body, "--gpus-per-node=1", "--mem=100M")) for _ in range(4)]
    for job_id in ids:
        until(lambda job_id=job_id: desk.log(job_id).strip(), "its GPU")
    assert sorted(desk.log(job_id).strip() for job_id in ids) == ["0", "1", "2", "3"]
    small = scheduler.submit(desk.script("true", "--mem=900M"))
    until(lambda: desk.job(small).reason == "Resources", "the job to wait for memory")
    go.touch()
    assert desk.end(small).state is State.COMPLETED
    dealt = scheduler.submit(
        desk.script(
            "srun -n2 --gpus-per-task=1 bash -c 'echo $SLURM_PROCID:$CUDA_VISIBLE_DEVICES'", "--gpus-per-node=2 -n2"
        )
    )
    assert desk.end(dealt).state is State.COMPLETED
    assert sorted(desk.log(dealt).split()) == ["0:0", "1:1"]


def test_more_than_the_machine_has_is_refused(desk: Desk) -> None:
    with pytest.raises(InputError) as raised:
        desk.submit("true", "--nodes=5", "--ntasks-per-node=3", "--mem=16G", "--gpus-per-node=1")
    messages = [fault.message for fault in raised.value.faults]
    assert messages == [
        "asks for 5 nodes; this machine has 4",
        "asks for 3 CPUs per node; this machine has 2",
        "asks for 16.0 GiB of memory per node; this machine has 7.8 GiB",
        "asks for 1 GPUs per node; this machine has 0",
    ]
    assert not list(desk.state_dir.glob("jobs/*"))


def test_submitters_at_once(desk: Desk) -> None:
    """Several processes submit at the same moment: every job runs once, under one supervisor."""
    go = desk.folder / "go"
    script = desk.script(
        f"while [ ! -e {go} ]; do sleep 0.02; done; echo $SLURM_JOB_ID >>{desk.folder}/ran", "--comment=crowd"
    )
    code = (
        "import sys; from pathlib import Path; from launcher.scheduler import open_scheduler; "
        f"s = open_scheduler('local', state_dir=Path({str(desk.state_dir)!r})); "
        f"print(*[s.submit(Path({str(script)!r})) for _ in range(5)])"
    )
    submitters = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
    ids = [job_id for submitter in submitters for job_id in submitter.communicate()[0].decode().split()]
    assert len(set(ids)) == 20
    until(lambda: len(_supervisors(desk)) == 1, "one supervisor")  # one that forks counts twice for a moment
    go.touch()
    for job_id in ids:
        assert desk.end(job_id).state is State.COMPLETED
    assert sorted((desk.folder / "ran").read_text().split()) == sorted(ids)
    assert len(desk.scheduler.find("crowd")) == 20


def _supervisors(desk: Desk) -> list[int]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"supervisor import main" in words and os.fsencode(desk.state_dir) in words:
            found.append(int(pid))
    return found


def test_two_supervisors_at_once_are_one(desk: Desk) -> None:
    blocker = desk.submit("sleep 600")
    until(lambda: tree.alive(desk.supervisor()), "the supervisor")
    first = desk.supervisor()
    second = subprocess.run([*launch._argv("supervisor"), str(desk.state_dir)], capture_output=True, text=True)
    assert second.returncode == 1
    assert "another supervisor" in second.stderr
    assert desk.supervisor() == first
    tree.send(first, signal.SIGKILL)
    until(lambda: not tree.alive(first), "its end")
    starters = [subprocess.Popen([*launch._argv("supervisor"), str(desk.state_dir)], stderr=-3) for _ in range(4)]
    assert sorted(starter.wait() for starter in starters) == [0, 1, 1, 1]
    desk.scheduler.cancel([blocker])


def test_jobs_outlive_the_session_that_submitted_them(desk: Desk) -> None:
    script = desk.script("echo up; sleep 0.5; exit 7")
    code = (
        "from pathlib import Path; from launcher.scheduler import open_scheduler; import os, signal; "
        f"scheduler = open_scheduler('local', state_dir=Path({str(desk.state_dir)!r})); "
        f"print(scheduler.submit(Path({str(script)!r})), flush=True); "
        "os.killpg(0, signal.SIGHUP)"
    )
    gone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True)
    assert gone.returncode == -signal.SIGHUP
    assert desk.end(gone.stdout.strip()).exit_code == 7


def test_hundreds_of_jobs_are_one_quick_question(desk: Desk) -> None:
    array = desk.scheduler.submit(desk.script("true"), array="0-499%1")
    started = time.monotonic()
    jobs = desk.scheduler.jobs([f"{array}_{task}" for task in range(500)])
    assert time.monotonic() - started < 2  # 500 single questions take longer
    assert len(jobs) == 500
    desk.scheduler.cancel([array])
    assert desk.end(array).state is State.CANCELLED


def test_a_job_that_submits_keeps_its_child_apart(desk: Desk) -> None:
    """Also when the submission inside the job is what starts the supervisor again."""
    child = desk.script("env | grep -c SLURM_ARRAY; sleep 0.5; echo child done")
    code = (
        "from pathlib import Path; from launcher.scheduler import open_scheduler; "
        f"print('child', open_scheduler('local', state_dir=Path({str(desk.state_dir)!r})).submit(Path({str(child)!r})))"
    )
    go, child_log = desk.folder / "go", f"{desk.folder}/2.log"
    parent = desk.submit(
        f"""
echo up; while [ ! -e {go} ]; do sleep 0.02; done
{sys.executable} -c "{code}"
while [ ! -s {child_log} ]; do sleep 0.02; done"""
    )
    desk.wait_for(parent, "up")
    old = desk.supervisor()
    tree.send(old, signal.SIGKILL)
    until(lambda: not tree.alive(old), "its end")
    go.touch()
    desk.wait_for(parent, "child 2")
    new = desk.supervisor()
    assert desk.end(parent).state is State.COMPLETED
    job = desk.end("2")
    assert (job.state, job.restarts) == (State.COMPLETED, 0)
    assert desk.log("2").split() == ["0", "child", "done"]
    assert desk.supervisor() == new


def test_output_that_cannot_be_opened_fails_the_job(desk: Desk) -> None:
    job_id = desk.submit("true", f"--output={desk.folder}/missing/%j.log")
    job = desk.end(job_id)
    assert (job.state, job.exit_code) == (State.FAILED, 1)
    assert "missing" in job.reason


def test_the_script_is_kept_as_it_was_submitted(desk: Desk) -> None:
    go = desk.folder / "go"
    first = desk.submit(f"while [ ! -e {go} ]; do sleep 0.02; done")
    script = desk.script("echo as submitted")
    second = desk.scheduler.submit(script, depends_on=[first])
    script.write_text("#!/bin/bash\nexit 1\n")
    go.touch()
    assert desk.end(second).state is State.COMPLETED
    assert oct(os.stat(desk.state_dir).st_mode & 0o777) == "0o700"
