"""Everything about one run: lineage, software, results, places."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from launcher.plan import Plan, Stage
from launcher.record import Event, read_events
from launcher.rundir import RunDir
from launcher.standing import RunStatus, StageStatus
from launcher.states import State
from launcher.sweep import sweep_above
from launcher.units import show_mib, show_seconds
from launcher.view.follow import elapsed, show_counts
from launcher.view.words import engine, run_state_text, state_text


def details(plan: Plan, status: RunStatus) -> dict[str, Any]:
    """The run as one JSON value; paths are text, times Unix seconds."""
    files = RunDir(status.run_dir)
    newest: dict[str, Event] = {
        str(event["stage"]): event for event in read_events(files.events) if event["kind"] == "attempt_started"
    }
    return {
        "run_id": plan.run_id,
        "name": plan.name,
        "state": status.state,
        "site": plan.site,
        "scheduler": plan.scheduler,
        "user": plan.user,
        "version": plan.version,
        "git_sha": plan.git_sha,
        "recipe_path": plan.recipe_path,
        "data_hash": plan.data_hash,
        "model": plan.model,
        "recipe": plan.recipe,
        "warnings": list(plan.warnings),
        "files": {
            "run": str(files.root),
            "recipe": str((sweep_above(files.root) or files).recipe),
            "plan": str(files.plan),
            "events": str(files.events),
            "tensorboard": str(files.tensorboard) if files.tensorboard.is_dir() else None,
        },
        "stages": [_stage(plan.stage(stage.name), stage, files, newest.get(stage.name)) for stage in status.stages],
    }


def _stage(stage: Stage, status: StageStatus, files: RunDir, started: Event | None) -> dict[str, Any]:
    artifact = files.artifact(stage.name)
    model = stage.options.get("model", {})
    return {
        "name": stage.name,
        "worker": stage.worker,
        "engine": engine(stage),
        "state": status.state.value,
        "job_id": status.job_id,
        "attempts": status.attempts,
        "submitted": status.submitted,
        "started": status.started,
        "ended": status.ended,
        "elapsed": elapsed(status),
        "error": status.error or status.why or status.reason,
        "depends_on": list(stage.depends_on),
        "model_from": model.get("artifact_of") or model.get("path") or model.get("name") or "",
        "layout": stage.layout,
        "resources": asdict(stage.resources),
        "environment": asdict(stage.environment),
        "points": status.points,
        "host": started.get("host", "") if started else "",
        "versions": started.get("versions", {}) if started else {},
        "metrics": status.result.get("metrics", {}) if status.result else {},
        "artifacts": status.result.get("artifacts", {}) if status.result else {},
        "artifact": str(artifact) if artifact.is_dir() else None,
        "logs": str(files.batch_log(stage.name).parent),
        "script": str(files.script(stage.name)),
    }


def show_details(found: dict[str, Any], console: Console) -> None:
    """Print what `details` found."""
    console.print(Text.assemble((found["run_id"], "bold"), "  ", run_state_text(found["state"])))
    model = found["model"]
    pairs = [
        ("made from", found["recipe_path"]),
        ("commit", found["git_sha"]),
        ("data", found["data_hash"]),
        ("base model", model.get("name") or model.get("path") or ""),
        ("site", f"{found['site']} ({found['scheduler']} scheduler)"),
        ("user", found["user"]),
        ("version", f"swiftlaunch {found['version']}"),
        *((name, path) for name, path in found["files"].items()),
    ]
    _pairs(pairs, console, indent=0)
    for warning in found["warnings"]:
        console.print(Text.assemble(("warning: ", "bold yellow"), warning))
    for stage in found["stages"]:
        _show_stage(stage, console)


def _show_stage(stage: dict[str, Any], console: Console) -> None:
    need, environment = stage["resources"], stage["environment"]
    console.print()
    console.print(
        Text.assemble((stage["name"], "bold"), "  ", state_text(State(stage["state"])), f"  {stage['elapsed']}")
    )
    gpus = f", {need['gpus_per_node']} GPUs per node" if need["gpus_per_node"] else ""
    asked = (
        f"{need['nodes']} x {need['tasks_per_node']} tasks, {need['cpus_per_task']} CPUs each{gpus}, "
        f"{show_mib(need['memory_mib'])} per node, {show_seconds(need['time_limit_minutes'] * 60)}"
    )
    pairs = [
        ("job", f"{stage['job_id']}, attempt {stage['attempts']}" if stage["job_id"] else ""),
        ("points", show_counts(stage["points"]) if stage["points"] else ""),
        ("error", stage["error"]),
        ("host", stage["host"]),
        ("engine", stage["engine"]),
        ("layout", stage["layout"]),
        ("asked", asked),
        (
            "environment",
            f"{environment['role']} ({environment['kind']}) {environment['image'] or environment['python']}",
        ),
        ("lock", environment["lock"]),
        ("software", ", ".join(f"{name} {version}" for name, version in sorted(stage["versions"].items()))),
        ("after", ", ".join(stage["depends_on"])),
        ("model from", stage["model_from"]),
        *((name, _figure(value)) for name, value in stage["metrics"].items()),
        *((name, _structured(value)) for name, value in stage["artifacts"].items()),
        ("artifact", stage["artifact"]),
        ("logs", stage["logs"]),
    ]
    _pairs(pairs, console, indent=2)


def _pairs(pairs: list[tuple[str, str | None]], console: Console, *, indent: int) -> None:
    """Names and values in two columns; a value is never wrapped, a path is there to be copied."""
    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    margin = " " * indent
    for name, value in shown:
        text = value.strip().replace("\n", "\n" + " " * (indent + width + 2))
        console.print(Text.assemble(margin, (name.ljust(width), "dim"), "  ", text), soft_wrap=True)


def _structured(value: Any) -> str:
    """A command as one types it, a mapping with a line for each entry."""
    if isinstance(value, list):
        return shlex.join(map(str, value))
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_inline(entry)}" for name, entry in value.items())
    return str(value)


def _inline(value: Any) -> str:
    return ", ".join(f"{name} {entry}" for name, entry in value.items()) if isinstance(value, dict) else str(value)


def _figure(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
