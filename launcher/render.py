"""Plan -> job scripts. Everything is decided here; the template only prints, each value quoted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import jinja2

from launcher.errors import Fault, InputError
from launcher.plan import Environment, Plan, Stage, job_comment
from launcher.rundir import RunDir
from launcher.units import slurm_time

TEMPLATE = "stage.sh.j2"
SIGNAL_SECONDS = 120  # before the time limit; Slurm may send it up to 60 s early


def render(plan: Plan, templates: Path) -> dict[str, str]:
    """The scripts of a plan, `{stage name: text}`, in the order of its stages."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  this is shell, not HTML: every value passes `quote` or `comment`
    )
    environment.filters["quote"] = _quote
    environment.filters["words"] = shlex.join
    environment.filters["comment"] = _one_line
    template = environment.get_template(TEMPLATE)
    return {stage.name: template.render(_values(plan, stage)) for stage in plan.stages}


def _values(plan: Plan, stage: Stage) -> dict[str, object]:
    return {
        "directives": [_directive(name, value) for name, value in directives(plan, stage)],
        "stage": stage.name,
        "run_id": plan.run_id,
        "version": plan.version,
        "run_dir": plan.run_dir,
        "variables": stage.environment.variables,
        "secrets": bool(plan.secrets),
        "setup": setup(stage.environment),
        "srun_options": srun_options(stage),
        "command": command(stage),
        "max_attempts": stage.max_attempts,
        "requeue": stage.resources.requeue,
    }


def directives(plan: Plan, stage: Stage) -> list[tuple[str, str | None]]:
    """sbatch's options for a stage, long names without dashes; None for those without a value.

    Raises InputError for values with a backslash: sbatch takes it out, in quotes too, and in --output it means more.
    """
    files = RunDir(Path(plan.run_dir))
    need = stage.resources
    options: list[tuple[str, str | None]] = [
        ("job-name", f"{plan.name}:{stage.name}"),
        ("comment", job_comment(plan.run_id, stage.name)),
        ("output", str(files.batch_log(stage.name)).replace("%", "%%")),
        ("open-mode", "append"),
        ("nodes", str(need.nodes)),
        ("ntasks-per-node", str(need.tasks_per_node)),
        ("cpus-per-task", str(need.cpus_per_task)),
        ("time", slurm_time(need.time_limit_minutes)),
        ("signal", f"B:USR2@{SIGNAL_SECONDS}"),
        ("requeue" if need.requeue else "no-requeue", None),
        ("kill-on-invalid-dep", "yes"),
    ]
    if not need.whole_nodes:
        options.append(("mem", f"{need.memory_mib}M"))
    if need.gres:  # only one of the two: they exclude each other from 26.05 on
        options.append(("gres", need.gres))
    elif need.gpus_per_node:
        options.append(("gpus-per-node", str(need.gpus_per_node)))
    for name in ("partition", "account", "qos", "constraint"):
        if value := getattr(need, name):
            options.append((name, value))
    for word in need.extra:
        name, equals, value = word.removeprefix("--").partition("=")
        options.append((name, value if equals else None))
    faults = [
        Fault(f"stage {stage.name}", f"sbatch cannot be given a backslash: --{name}={value}", "choose another value")
        for name, value in options
        if value is not None and "\\" in value
    ]
    if faults:
        raise InputError(faults)
    return options


def setup(environment: Environment) -> list[list[str]]:
    """Shell commands, a list of words each, that run in the batch shell before srun; one that fails ends the job.

    The `module` functions of many centres read variables that are not set.
    """
    if not environment.modules:
        return []
    return [["set", "+u"], ["module", "purge"], ["module", "load", *environment.modules], ["set", "-u"]]


def srun_options(stage: Stage) -> list[str]:
    """srun's options for the stage's one job step."""
    need = stage.resources
    options = [
        f"--nodes={need.nodes}",
        f"--ntasks={need.world_size}",
        f"--ntasks-per-node={need.tasks_per_node}",
        f"--cpus-per-task={need.cpus_per_task}",  # 22.05 to 23.02 do not take it from the job
        "--kill-on-bad-exit=1",
    ]
    environment = stage.environment
    if environment.kind == "pyxis":
        options += [f"--container-image={environment.image}", "--no-container-mount-home"]
        if environment.mounts:
            options.append("--container-mounts=" + ",".join(environment.mounts))
    return options


def command(stage: Stage) -> list[str]:
    """The command of every rank, up to the plan and the stage's name."""
    environment = stage.environment
    words = [environment.python, "-m", "launcher.work"]
    if environment.kind != "apptainer":
        return words
    prefix = ["apptainer", "exec"]
    if stage.resources.gpus_per_node:
        prefix.append("--nv")
    for mount in environment.mounts:
        prefix += ["--bind", mount]
    return [*prefix, environment.image, *words]


def _directive(name: str, value: str | None) -> str:
    return f"--{name}" if value is None else f"--{name}={shlex.quote(value)}"


def _quote(text: str) -> str:
    """The text as one shell word, in quotes always: `stage=export` reads like a forgotten $( )."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _one_line(text: str) -> str:
    return re.sub(r"[^\w .:+-]", "?", text)
