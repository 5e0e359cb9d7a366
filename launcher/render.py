"""Plan -> job scripts. Everything is decided here; the template only prints, each value quoted."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import jinja2

from launcher.errors import Fault, InputError
from launcher.failures import SLURM_BUSY, SLURM_NO_ANSWER, STEP_OUT_OF_MEMORY, STEP_SICK_NODE
from launcher.plan import Environment, Group, Plan, Resources, Stage, job_comment
from launcher.rundir import RunDir
from launcher.sweep import array_name
from launcher.units import slurm_time

TEMPLATE = "stage.sh.j2"
SIGNAL_SECONDS = 120  # before the time limit; Slurm may send it up to 60 s early
GRACE_SECONDS = 120  # for the other groups of a stage to end once it is decided how the stage ends


@dataclass(frozen=True)
class Place:
    """Where the scripts of a sweep work; those of other runs have everything in the plan's `run_dir`.

    `home` is the folder of the whole run, with code and secrets. In scripts of an array `run_dir` has a folder for
    each of its tasks.
    """

    home: str
    array: int | None = None


def render(plan: Plan, templates: Path, place: Place | None = None) -> dict[str, str]:
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
    place = place or Place(plan.run_dir)
    return {stage.name: template.render(_values(plan, stage, place)) for stage in plan.stages}


def _values(plan: Plan, stage: Stage, place: Place) -> dict[str, object]:
    home = RunDir(Path(place.home))
    options = directives(plan, stage, place)
    return {
        "directives": [_directive(name, value) for name, value in options],
        "stage": stage.name,
        "run_id": plan.run_id,
        "version": plan.version,
        "run_dir": plan.run_dir,
        "array": place.array is not None,
        "code": str(home.code),
        "variables": () if stage.groups else stage.environment.variables,
        "secrets": str(home.secrets) if plan.secrets else "",
        "setup": [] if stage.groups else setup(stage.environment),
        "srun_options": srun_options(stage),
        "command": command(stage.environment, stage.resources),
        "groups": [_group_values(stage, index, group) for index, group in enumerate(stage.groups)],
        "nodelist": _nodelist(stage),
        "grace_seconds": GRACE_SECONDS,
        "max_attempts": stage.max_attempts,
        "resume": stage.resume,
        "comment": dict(options)["comment"],
        "out_of_memory": STEP_OUT_OF_MEMORY,
        "sick_node": STEP_SICK_NODE,
        "no_answer": f"{SLURM_NO_ANSWER}|{SLURM_BUSY}",
    }


def _group_values(stage: Stage, index: int, group: Group) -> dict[str, object]:
    return {
        "name": group.name,
        "variables": group.environment.variables,
        "setup": setup(group.environment),
        "srun_options": group_srun_options(stage, index),
        "command": command(group.environment, group.resources),
        "essential": int(group.essential),
        "restarts": 0 if group.essential else group.max_restarts,
    }


def _nodelist(stage: Stage) -> str:
    """What the shell has of all nodes of a stage, in the order in which `Group.first_node` counts them."""
    if not stage.het:
        return "$SLURM_JOB_NODELIST"
    return ",".join(f"$SLURM_JOB_NODELIST_HET_GROUP_{index}" for index in range(len(stage.groups)))


def directives(plan: Plan, stage: Stage, place: Place | None = None) -> list[tuple[str, str | None]]:
    """sbatch's options for a stage, long names without dashes; None for those without a value.

    Those of a heterogeneous job's further components stand after a "hetjob" each. Raises InputError for values with
    a backslash: sbatch takes it out, in quotes too, and in --output it means more.
    """
    need = stage.resources
    array = place.array if place else None
    called = stage.name if array is None else array_name(stage.name, array)
    escaped = plan.run_dir.replace("%", "%%")  # %a is the task's own folder
    files = RunDir(Path(escaped if array is None else f"{escaped}/%a"))
    options: list[tuple[str, str | None]] = [
        ("job-name", f"{plan.name}:{called}"),
        ("comment", job_comment(plan.run_id, called)),
        ("output", str(files.batch_log(stage.name))),
        ("open-mode", "append"),
        *_size(need),
        ("signal", f"B:USR2@{SIGNAL_SECONDS}"),
        ("requeue" if need.requeue else "no-requeue", None),
        ("kill-on-invalid-dep", "yes"),
        *_kind(need),
    ]
    for group in stage.groups[1:] if stage.het else ():
        component = group.resources
        requeue = ("requeue" if component.requeue else "no-requeue", None)
        options += [("hetjob", None), *_size(component), requeue, *_kind(component)]
    faults = [
        Fault(f"stage {stage.name}", f"sbatch cannot be given a backslash: --{name}={value}", "choose another value")
        for name, value in options
        if value is not None and "\\" in value
    ]
    if faults:
        raise InputError(faults)
    return options


def _size(need: Resources) -> list[tuple[str, str | None]]:
    return [
        ("nodes", str(need.nodes)),
        ("ntasks-per-node", str(need.tasks_per_node)),
        ("cpus-per-task", str(need.cpus_per_task)),
        ("time", slurm_time(need.time_limit_minutes)),
    ]


def _kind(need: Resources) -> list[tuple[str, str | None]]:
    options: list[tuple[str, str | None]] = []
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
    return options


def setup(environment: Environment) -> list[list[str]]:
    """Shell commands, a list of words each, that run in the batch shell before srun; one that fails ends the job.

    The `module` functions of many centres read variables that are not set.
    """
    if not environment.modules:
        return []
    return [["set", "+u"], ["module", "purge"], ["module", "load", *environment.modules], ["set", "-u"]]


def srun_options(stage: Stage) -> list[str]:
    """srun's options for the one job step of a stage without groups."""
    return [*_step(stage.resources), *_container(stage.environment)]


def group_srun_options(stage: Stage, index: int) -> list[str]:
    """srun's options for the job step of a group.

    What the batch shell's SLURM_* variables say is the first group's, or the whole allocation's: all is given anew.
    """
    group = stage.groups[index]
    need, allocation = group.resources, stage.resources
    options = [f"--het-group={index}"] if stage.het else [f"--relative={group.first_node}"]
    options += [*_step(need), "--exact", "--open-mode=append"]  # append: a group may be started again
    if not need.whole_nodes:
        options.append(f"--mem={need.memory_mib}M")
    gres = need.gres if stage.het else allocation.gres  # 0 GPUs must be said in the words of the allocation
    if gres:
        options.append(f"--gres={need.gres or 'none'}")
    elif need.gpus_per_node or (allocation.gpus_per_node and not stage.het):
        options.append(f"--gpus-per-node={need.gpus_per_node}")
    return [*options, *_container(group.environment)]


def _step(need: Resources) -> list[str]:
    return [
        f"--nodes={need.nodes}",
        f"--ntasks={need.world_size}",
        f"--ntasks-per-node={need.tasks_per_node}",
        f"--cpus-per-task={need.cpus_per_task}",  # 22.05 to 23.02 do not take it from the job
        "--kill-on-bad-exit=1",
    ]


def _container(environment: Environment) -> list[str]:
    if environment.kind != "pyxis":
        return []
    options = [f"--container-image={environment.image}", "--no-container-mount-home"]
    if environment.mounts:
        options.append("--container-mounts=" + ",".join(environment.mounts))
    return options


def command(environment: Environment, need: Resources) -> list[str]:
    """The command of every rank, up to the plan and the stage's name."""
    words = [environment.python, "-m", "launcher.work"]
    if environment.kind != "apptainer":
        return words
    prefix = ["apptainer", "exec"]
    if need.gpus_per_node:
        prefix.append("--nv")
    for mount in environment.mounts:
        prefix += ["--bind", mount]
    return [*prefix, environment.image, *words]


def _directive(name: str, value: str | None) -> str:
    if name == "hetjob":
        return name
    return f"--{name}" if value is None else f"--{name}={shlex.quote(value)}"


def _quote(text: str) -> str:
    """The text as one shell word, in quotes always: `stage=export` reads like a forgotten $( )."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _one_line(text: str) -> str:
    return re.sub(r"[^\w .:+-]", "?", text)
