"""What bash makes of a rendered script: real bash, with srun and scontrol as real programs on PATH."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher import assets
from launcher.arrays import forgive
from launcher.errors import InputError
from launcher.plan import Environment, Plan, Resources, Resume, Stage, from_json
from launcher.render import command, directives, render, srun_options
from launcher.rundir import RunDir

from .conftest import LOCAL, Planned

pytestmark = pytest.mark.unit

HOSTILE = [
    "plain",
    "two words",
    "it's",
    'say "hi"',
    "$(touch made-by-a-value)",
    "`touch made-by-a-value`",
    "a; touch made-by-a-value",
    "a\ntouch made-by-a-value",
    "${HOME}",
    "back\\slash\\",
    "zwölf Boxkämpfer 東京 🦀",
    "'; touch made-by-a-value; '",
    "{{ stage }} {% raw %}",
    "%j %t #hash ! * ? ~",
    "-n",
    "",
]

# srun writes what it was given, and ends as the test wants it to
STUB = """#!{python}
import json, os, signal, sys, time
if sys.argv[1:3] == ["show", "job"]:
    print(os.environ.get("STUB_JOB", ""))
    sys.exit(0)
if sys.argv[1:] == ["ping"]:
    sys.exit(0)
with open(os.environ["STUB_FILE"], "a") as file:
    file.write(json.dumps({{"argv": sys.argv, "environment": dict(os.environ)}}) + "\\n")
if os.path.basename(sys.argv[0]) == "srun":
    if os.environ.get("STUB_WAIT"):
        # a step takes a while to end; bash may lose the code of one that ends in the moment of a signal
        if os.environ["STUB_CATCHES"] == "1":
            signal.signal(signal.SIGUSR2, lambda *_: (time.sleep(0.3), os._exit(75)))
            signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), os._exit(76)))
        with open(os.environ["STUB_WAIT"] + ".part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(file.name, os.environ["STUB_WAIT"])
        time.sleep(30)
    log = next(word for word in sys.argv if word.startswith("--output=")).partition("=")[2].replace("%%", "%")
    for name in os.environ.get("STUB_MAKES", "").split():
        path = os.path.join(os.path.dirname(log), name)
        os.mkdir(path) if name.endswith("/") else open(path, "w").close()
    sys.stderr.write(os.environ.get("STUB_STEP", ""))
    sys.exit(int(os.environ.get("STUB_CODE", "0")))
if sys.argv[1] == "requeue" and os.environ.get("STUB_REFUSALS"):
    sys.exit(os.environ["STUB_REFUSALS"])
sys.exit(int(os.environ.get(os.path.basename(sys.argv[0]).upper(), "1")))
"""


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("srun", "scontrol", "sbatch"):
        path = folder / name
        path.write_text(STUB.format(python=sys.executable))
        path.chmod(0o755)
    return folder


def a_plan(run_dir: Path, *, secrets: tuple[str, ...] = (), **changes: Any) -> Plan:
    need = Resources(1, 2, 1, 0, 512, 10)
    environment = Environment("train", "venv", "/opt/py thon/bin/python")
    stage = Stage("export", "export", need, environment, {}, max_attempts=2, resume=Resume(backoff_seconds=0))
    stage = dataclasses.replace(stage, **{key: changes[key] for key in changes if hasattr(stage, key)})
    return Plan("r-1", "demo", str(run_dir), "here", "local", "user", "0.1", "", "", {}, {}, "", (stage,), secrets)


def run_script(plan: Plan, stubs: Path, **environment: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and the calls of srun and scontrol."""
    root = Path(plan.run_dir)
    (root / "stages/export").mkdir(parents=True, exist_ok=True)
    ((_, text),) = render(plan, assets.folder("templates")).items()
    script = root / "job.sh"
    script.write_text(text, encoding="utf-8")
    calls = stubs.parent / "calls"
    finished = subprocess.run(
        ["bash", str(script)],
        env={
            "PATH": f"{stubs}:{os.environ['PATH']}",
            "HOME": "/home/user",
            "STUB_FILE": str(calls),
            "SLURM_JOB_ID": "7",
            **environment,
        },
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "syntax error" not in finished.stderr
    lines = calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []
    calls.unlink(missing_ok=True)
    return finished.returncode, [json.loads(line) for line in lines]


def test_every_value_arrives_as_it_was_written(tmp_path: Path, stubs: Path) -> None:
    variables = tuple((f"VALUE_{number}", value) for number, value in enumerate(HOSTILE))
    root = tmp_path / "runs with $(touch made-by-a-value) 'quotes' %t"
    environment = Environment(
        role="train",
        kind="pyxis",
        python="/opt/$(touch made-by-a-value)/python",
        image="/images/it's a $IMAGE.sqsh",
        mounts=("/data/a b:/data", "/x:/$(touch made-by-a-value)"),
        variables=variables,
    )
    plan = a_plan(root, environment=environment)
    code, calls = run_script(plan, stubs)
    assert code == 0
    (call,) = calls
    for name, value in variables:
        assert call["environment"][name] == value
    assert call["environment"]["PYTHONPATH"] == f"{root}/code"
    log = str(root).replace("%", "%%") + "/logs/export/attempt-1/rank-%t.log"
    assert call["argv"][1:] == [
        *srun_options(plan.stages[0]),
        f"--output={log}",
        *command(plan.stages[0].environment, plan.stages[0].resources),
        f"{root}/plan.json",
        "export",
    ]
    assert f"--container-image={environment.image}" in call["argv"]
    assert not list(tmp_path.rglob("made-by-a-value"))


def test_from_a_recipe_through_the_plan_to_the_job(tmp_path: Path, stubs: Path, planned: Planned) -> None:
    values = [value for value in HOSTILE if "\n" not in value]
    prompt = "two\nlines, $(touch made-by-a-value), 'single', \"double\" and 東京"
    lines = [
        f"V{number} = {json.dumps(value, ensure_ascii=False)}" for number, value in enumerate(values)
    ]  # JSON texts are TOML texts
    text = f"[serve]\nprompt = {json.dumps(prompt, ensure_ascii=False)}\n[env.variables]\n" + "\n".join(lines)
    site = dataclasses.replace(
        LOCAL,
        runs_dir=f"{tmp_path}/my runs' $(touch made-by-a-value)",
        environments_dir="/opt/my environments; touch made-by-a-value",
    )
    plan = planned(text, site=site)
    assert from_json(plan.to_json()).stage("serve").options["serve"]["prompt"] == prompt
    code, (call,) = run_script(plan, stubs)
    assert code == 0
    assert [call["environment"][f"V{number}"] for number in range(len(values))] == values
    assert call["argv"][-5:] == [
        f"{site.environments_dir}/transformers-000000000000/bin/python",
        "-m",
        "launcher.work",
        f"{site.runs_dir}/run-1/plan.json",
        "serve",
    ]
    assert not list(tmp_path.rglob("made-by-a-value"))


@pytest.mark.parametrize("value", ["a\ntouch x", "bell\a", "\u2028", "turned \u202e round"])
def test_values_with_line_breaks_or_control_characters_are_refused(planned: Planned, value: str) -> None:
    with pytest.raises(InputError) as caught:
        planned(f"[serve]\n[env.variables]\nV = {json.dumps(value)}")
    assert "env.variables.V" in caught.value.faults[0].where


def test_directives_read_back(tmp_path: Path) -> None:
    need = Resources(
        2, 4, 8, 4, 1024, 90, partition="gpu", account="proj", qos="long", constraint="a100&ib|[r1]",
        extra=("--exclusive", "--reservation=$(touch x) 'y'"),
    )  # fmt: skip
    plan = a_plan(tmp_path / "a b", resources=need)
    text = render(plan, assets.folder("templates"))["export"]
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    words = [shlex.split(line) for line in lines]
    assert all(len(found) == 1 for found in words)
    expected = [
        f"--{name}" if value is None else f"--{name}={value}" for name, value in directives(plan, plan.stages[0])
    ]
    assert [found[0] for found in words] == expected
    assert "--reservation=$(touch x) 'y'" in expected
    assert text.rindex("#SBATCH") < text.index("set -uo")  # sbatch stops reading options at the first command


def test_backslashes_in_directives_are_refused(tmp_path: Path) -> None:
    need = Resources(1, 1, 1, 0, 512, 10, constraint="a\\b", extra=("--reservation=x\\",))
    with pytest.raises(InputError) as raised:
        render(a_plan(tmp_path, resources=need), assets.folder("templates"))
    assert [fault.message.rpartition(" ")[2] for fault in raised.value.faults] == [
        "--constraint=a\\b",
        "--reservation=x\\",
    ]


@pytest.mark.parametrize(
    ("changes", "there", "absent"),
    [
        ({"gpus_per_node": 4}, ["--gpus-per-node=4", "--requeue", "--mem=512M"], ["--gres"]),
        ({"gpus_per_node": 4, "gres": "gpu:a100:4"}, ["--gres=gpu:a100:4"], ["--gpus-per-node"]),
        ({"requeue": False, "whole_nodes": True}, ["--no-requeue"], ["--mem", "--requeue", "scontrol"]),
    ],
)
def test_ways_of_sites(tmp_path: Path, changes: dict[str, Any], there: list[str], absent: list[str]) -> None:
    need = dataclasses.replace(Resources(1, 2, 1, 0, 512, 10), **changes)
    resume = Resume(mode="requeue" if need.requeue else "chain")
    plan = a_plan(tmp_path, resources=need, resume=resume)
    lines = render(plan, assets.folder("templates"))["export"].splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert set(there) <= set(options)
    assert not [line for line in options for word in absent if line.startswith(word)]
    assert ("scontrol requeue" in "\n".join(lines)) is need.requeue


def test_apptainer_runs_the_worker_in_the_image(tmp_path: Path) -> None:
    environment = Environment("vllm", "apptainer", "python3", image="/i.sif", mounts=("/a:/b", "/c:/c:ro"))
    plan = a_plan(tmp_path, environment=environment, resources=Resources(1, 1, 1, 1, 512, 10))
    assert command(plan.stages[0].environment, plan.stages[0].resources) == [
        "apptainer", "exec", "--nv", "--bind", "/a:/b", "--bind", "/c:/c:ro", "/i.sif",
        "python3", "-m", "launcher.work",
    ]  # fmt: skip


@pytest.mark.parametrize(("fails", "expected"), [("0", 0), ("1", 1)])
def test_modules_are_loaded_before_srun(tmp_path: Path, stubs: Path, fails: str, expected: int) -> None:
    log, defined = tmp_path / "modules", tmp_path / "defined.sh"
    # a function, as centres define it, that reads a variable which is not set
    body = f': "$NOT_SET_ANYWHERE"; printf "%s\\n" "$*" >>{shlex.quote(str(log))}; [ "$1" = purge ] || return {fails}'
    defined.write_text(f"module() {{ {body}; }}\n")
    environment = Environment("gptq", "modules", "python3", modules=("cuda/12.8", "gptq model"))
    plan = a_plan(tmp_path / "run", environment=environment)
    code, calls = run_script(plan, stubs, BASH_ENV=str(defined))
    assert code == expected
    assert log.read_text().splitlines() == ["purge", "load cuda/12.8 gptq model"]
    assert [Path(call["argv"][0]).name for call in calls] == ([] if expected else ["srun"])


def test_secrets_come_from_the_file_and_not_from_the_script(tmp_path: Path, stubs: Path) -> None:
    plan = a_plan(tmp_path / "run", secrets=("HF_TOKEN",))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "secrets.sh").write_text("HF_TOKEN='s3cret $x'\n")
    _, (call,) = run_script(plan, stubs)
    assert call["environment"]["HF_TOKEN"] == "s3cret $x"
    assert "s3cret" not in (tmp_path / "run" / "job.sh").read_text()


def test_attempts_are_counted_and_crashes_bounded(tmp_path: Path, stubs: Path) -> None:
    plan = a_plan(tmp_path / "run [1]")  # no pattern
    called = []
    for _ in range(3):
        code, calls = run_script(plan, stubs, STUB_CODE="1")
        assert code == (1 if calls else 78)
        called.append([Path(call["argv"][0]).name for call in calls])
    # the second crash is the last (max_attempts = 2), whoever starts the script again
    assert called == [["srun", "scontrol"], ["srun"], []]
    assert sorted(path.name for path in (tmp_path / "run [1]/logs/export").iterdir()) == ["attempt-1", "attempt-2"]


def test_a_stop_is_no_crash(tmp_path: Path, stubs: Path) -> None:
    plan = a_plan(tmp_path / "run")
    for _ in range(4):
        code, calls = run_script(plan, stubs, STUB_CODE="75")
        assert code == 75
        assert calls[1]["argv"][1:] == ["requeue", "7"]
    assert not list((tmp_path / "run").rglob("crashed"))


def test_preempted_attempts_are_not_idle(tmp_path: Path, stubs: Path) -> None:
    plan = a_plan(tmp_path / "run", resume=Resume(backoff_seconds=0, idle_attempts=2))
    for preempted in ("2026-11-23T03:55:22", "2026-11-23T04:55:22", "None", "2026-11-23T05:55:22"):
        assert len(run_script(plan, stubs, STUB_CODE="75", STUB_JOB=f"JobId=7 PreemptTime={preempted} ")[1]) == 2
    assert len(run_script(plan, stubs, STUB_CODE="75")[1]) == 1
    given_up = RunDir(tmp_path / "run").given_up("export")
    assert given_up.read_text() == "nothing new was saved in 2 attempts\n"


def test_a_resume_forgives_idle_attempts(tmp_path: Path, stubs: Path) -> None:
    plan = a_plan(tmp_path / "run", resume=Resume(backoff_seconds=0, idle_attempts=2))
    for calls in (2, 1):
        assert len(run_script(plan, stubs, STUB_CODE="75")[1]) == calls
    forgive(RunDir(tmp_path / "run"), "export")
    for calls in (2, 1, 0):
        assert len(run_script(plan, stubs, STUB_CODE="75")[1]) == calls


@pytest.mark.parametrize(
    ("said", "tries"),
    [
        ("slurm_requeue error: Socket timed out on send/recv operation", 6),
        ("slurm_requeue error: Unable to contact slurm controller (connect failure)", 6),
        ("slurm_requeue error: Resource temporarily unavailable", 6),
        ("Requested operation is presently disabled for job 7", 1),
    ],
)
def test_a_lost_answer_is_no_refusal(tmp_path: Path, stubs: Path, said: str, tries: int) -> None:
    (stubs / "sleep").write_text("#!/bin/sh\n")
    (stubs / "sleep").chmod(0o755)
    _, calls = run_script(a_plan(tmp_path / "run"), stubs, STUB_CODE="75", STUB_REFUSALS=said)
    assert [call["argv"][1:] for call in calls[1:]] == [["requeue", "7"]] * tries


def test_memory_is_looked_for_in_every_log(tmp_path: Path, stubs: Path) -> None:
    """One that cannot be read changes nothing."""
    step = "srun: error: node1: task 1: Out Of Memory\n"
    _, calls = run_script(a_plan(tmp_path / "run"), stubs, STUB_CODE="1", STUB_STEP=step, STUB_MAKES="rank-0.log/")
    assert len(calls) == 1
    assert RunDir(tmp_path / "run").given_up("export").read_text() == "it ran out of memory\n"


@pytest.mark.parametrize("enough", [True, False])
def test_a_node_is_left_out_where_the_scheduler_would_still_run_the_job(
    tmp_path: Path, stubs: Path, enough: bool
) -> None:
    answers = {"SCONTROL": "0", "SBATCH": "0" if enough else "1", "STUB_JOB": "JobId=7 ExcNodeList=n[1-2] "}
    _, calls = run_script(a_plan(tmp_path / "run"), stubs, STUB_CODE="1", STUB_MAKES="sick-n3", **answers)
    _, asked, _, told = (call["argv"][1:] for call in calls)
    assert asked == ["--test-only", "--exclude=n[1-2],n3", str(tmp_path / "run/job.sh")]
    assert told == ["update", "JobId=7", *(["ExcNodeList=n[1-2],n3"] if enough else []), "StartTime=now+0"]
    assert RunDir(tmp_path / "run").excluded("export").read_text() == ("n3\n" if enough else "")


@pytest.mark.parametrize("environment", [{"STUB_CODE": "78"}, {"STUB_CODE": "143", "STUB_MAKES": "fatal-0.json"}])
def test_what_another_attempt_cannot_cure_ends_the_stage(
    tmp_path: Path, stubs: Path, environment: dict[str, str]
) -> None:
    code, calls = run_script(a_plan(tmp_path / "run"), stubs, **environment)
    assert code == int(environment["STUB_CODE"])
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("number", "catches", "code"),
    [
        (signal.SIGUSR2, True, 75),
        (signal.SIGTERM, True, 76),
        (signal.SIGUSR2, False, 75),  # it had not come so far as to catch them: a stop all the same
        (signal.SIGTERM, False, 75),
    ],
)
def test_signals_reach_the_step_and_its_code_is_kept(
    tmp_path: Path, stubs: Path, number: signal.Signals, catches: bool, code: int
) -> None:
    plan = a_plan(tmp_path / "run")
    ready = tmp_path / "ready"
    script = tmp_path / "run" / "export.sh"
    (script.parent / "stages/export").mkdir(parents=True)
    script.write_text(render(plan, assets.folder("templates"))["export"])
    environment = {"PATH": f"{stubs}:{os.environ['PATH']}", "STUB_FILE": str(tmp_path / "calls")}
    environment |= {"STUB_WAIT": str(ready), "STUB_CATCHES": str(int(catches)), "SLURM_JOB_ID": "7"}
    batch = subprocess.Popen(["bash", str(script)], env=environment)
    try:
        deadline = time.monotonic() + 30
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        batch.send_signal(number)
        if number == signal.SIGTERM:  # the scheduler sends it to the step as well
            os.kill(int(ready.read_text()), number)
        assert batch.wait(timeout=30) == code
        assert (tmp_path / "run/logs/export/attempt-1/crashed").exists() == (code != 75)
    finally:
        batch.kill()


@pytest.mark.parametrize(
    ("said", "stopped"),
    [
        ("slurmstepd-n1: error: *** STEP 16.0 ON n1 CANCELLED AT 2026-11-23T10:19:50 DUE TO PREEMPTION ***\n", True),
        ("slurmstepd-n1: error: *** STEP 16.0 ON n1 CANCELLED AT 2026-11-23T10:19:50 DUE TO TIME LIMIT ***\n", True),
        ("slurmstepd-n1: error: *** STEP 16.0 ON n1 CANCELLED AT 2026-11-23T10:19:50 ***\n", False),  # a rank failed
        ("", False),
    ],
)
def test_ranks_that_a_stop_ended_before_they_could_catch_it(
    tmp_path: Path, stubs: Path, said: str, stopped: bool
) -> None:
    """Slurm need not tell the batch shell of a preemption: the step's words are all that is known of it here."""
    root = tmp_path / "run"
    code, _ = run_script(a_plan(root), stubs, STUB_CODE="143", STUB_STEP=said, STUB_MAKES="failure-1.json")
    assert code == (75 if stopped else 143)
    assert (root / "logs/export/attempt-1/crashed").exists() == (not stopped)


def test_empty_arrays_do_not_end_an_old_bash() -> None:
    """With set -u, bash before 4.4 takes "${empty[@]}" for a variable that is not set."""
    text = "".join(path.read_text() for path in assets.folder("templates").glob("*.j2"))
    guarded = re.sub(r'\$\{(\w+)\[@\]\+"\$\{\1\[@\]\}"\}', "", text)
    assert not re.findall(r"\$\{\w+\[[@*]\]", guarded)
    assert guarded != text


def test_a_cancelled_stage_is_not_run_again(tmp_path: Path, stubs: Path) -> None:
    plan = a_plan(tmp_path / "run")
    marker = tmp_path / "run/stages/export/cancelled"
    marker.parent.mkdir(parents=True)
    marker.touch()
    code, calls = run_script(plan, stubs, STUB_CODE="75")
    assert (code, len(calls)) == (75, 1)


def test_without_requeue_a_stop_ends_the_job(tmp_path: Path, stubs: Path) -> None:
    need = dataclasses.replace(Resources(1, 2, 1, 0, 512, 10), requeue=False)
    plan = a_plan(tmp_path / "run", resources=need, resume=Resume(mode="chain"))
    code, calls = run_script(plan, stubs, STUB_CODE="75")
    assert (code, len(calls)) == (75, 1)
