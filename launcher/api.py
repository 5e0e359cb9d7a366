"""swiftlaunch from Python: submit a recipe, hold the run, wait for it, take its results.

Its names are those of the package: `launcher.submit`, `launcher.Run`, `launcher.open_run`, `launcher.runs`.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher import standing, watch
from launcher.errors import RunFailed, UserError, WaitTimeout
from launcher.plan import Plan
from launcher.registry import Registry, RunRow, registry_path
from launcher.rundir import RunDir
from launcher.scheduler import default_state_dir
from launcher.standing import RunStatus
from launcher.states import State
from launcher.sweep import Point, point_files, read_sweep
from launcher.view.logs import Source, known_stage


@dataclass(frozen=True)
class StageResult:
    """What a stage that succeeded has left behind."""

    metrics: dict[str, Any]
    artifacts: dict[str, Any]
    folder: Path | None  # the model folder that it made, None for stages that make none


class Run:
    """A submitted run. It needs nobody to go on: this object can be dropped and found again with `open_run`."""

    def __init__(self, row: RunRow) -> None:
        self._row = row
        self._files = RunDir(row.run_dir)

    @property
    def run_id(self) -> str:
        return self._row.run_id

    @property
    def run_dir(self) -> Path:
        return self._row.run_dir

    @property
    def plan(self) -> Plan:
        """What was decided: stages, resources, environments."""
        return watch.load_plan(self.run_dir)

    def __repr__(self) -> str:
        return f"Run({self.run_id!r})"

    def status(self) -> RunStatus:
        """How the run stands now, as `swiftlaunch status` shows it. Asks the scheduler once.

        Where that does not answer `trouble` says so, and the states are what the run directory proves.
        """
        return watch.refresh_or_trouble(self.run_dir)

    def wait(self, timeout: float | None = None, poll: float | None = None) -> RunStatus:
        """Wait until the run has ended, well or badly, and return how it stands.

        A scheduler that does not answer is waited for, with a warning. `timeout` and `poll` (time between two looks)
        are in seconds. Raises WaitTimeout, a TimeoutError.
        """
        interval = watch.INTERVAL_SECONDS[self._row.scheduler] if poll is None else poll
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (status := self.status()).ended or status.trouble:
            if status.trouble:
                warnings.warn(f"{self.run_id}: {status.trouble}", RuntimeWarning, stacklevel=2)
            left = interval if deadline is None else deadline - time.monotonic()
            if left <= 0:
                hint = status.trouble or "the run goes on"
                raise WaitTimeout(f"{status.state} after {timeout:g} s", where=self.run_id, hint=hint)
            time.sleep(min(interval, left))
        return status

    def results(self, timeout: float | None = None, poll: float | None = None) -> dict[str, StageResult]:
        """Wait for the end; the results by stage. Raises RunFailed where the run did not succeed, and WaitTimeout."""
        status = self.wait(timeout, poll)
        if not status.succeeded:
            raise self._failed(status)
        found = {}
        for stage in status.stages:
            result = stage.result or {}
            folder = self._files.artifact(stage.name)
            found[stage.name] = StageResult(
                metrics=dict(result.get("metrics", {})),
                artifacts=dict(result.get("artifacts", {})),
                folder=folder if folder.is_dir() else None,
            )
        return found

    def logs(self, stage: str, rank: int = 0, *, attempt: int | None = None) -> str:
        """What a rank of a stage has printed so far, in its newest attempt or in the given one.

        Raises UserError for a stage that the run does not have, and where there is no log yet.
        """
        source = Source(self._files, known_stage(self.plan, stage), rank=rank, attempt=attempt)
        return source.path().read_text(encoding="utf-8", errors="replace")

    def cancel(self, stage: str | None = None) -> list[str]:
        """Cancel the run, or one stage and with it those that wait for it. Returns the ids of the jobs."""
        from launcher.submission import cancel

        root, plan = self._whole
        wanted = [known_stage(plan, stage)] if stage is not None else [each.name for each in plan.stages]
        jobs = watch.active_part(self._row, wanted)
        return cancel(root, plan, jobs) if jobs else []

    def resume(self) -> list[str]:
        """Submit again what has not succeeded and is not in the queue; the names of these stages."""
        from launcher.submission import resume

        root, plan = self._whole
        point = watch.part_of_run(self._row)[1]
        only = [f"{stage.name}{point}" for stage in plan.stages] if point else None
        return resume(root, plan, lambda: watch.active_jobs(root), only)

    def points(self) -> list[Run]:
        """The points of a sweep, or the functions of an array, each as a run; none of other runs."""
        sweep = read_sweep(self._files)
        return [self._of(point) for point in sweep.points] if sweep else []

    def _of(self, point: Point) -> Run:
        folder = point_files(self._files, point).root
        return Run(replace(self._row, run_id=f"{self.run_id}/{point.number}", run_dir=folder))

    @property
    def _whole(self) -> tuple[Path, Plan]:
        """Folder and plan of the run that has the jobs: of a point, those of its sweep."""
        root, _ = watch.part_of_run(self._row)
        return root, watch.load_plan(root)

    def _failed(self, status: RunStatus) -> RunFailed:
        bad = [stage for stage in status.stages if not stage.state.succeeded]
        # a stage that was cancelled because another failed is not the reason
        stage = next((stage for stage in bad if stage.state not in (State.CANCELLED, State.NOT_SUBMITTED)), bad[0])
        report = standing.failure_report(self._files, stage.name, stage.attempts)
        why = stage.error or stage.reason
        message = f"{stage.name} is {stage.state.value}" + (f": {why}" if why else "")
        return RunFailed(
            message,
            run_id=self.run_id,
            stage=stage.name,
            state=stage.state.value,
            report=report,
            hint=f"swiftlaunch logs {self.run_id} {stage.name}"
            if stage.attempts
            else f"swiftlaunch status {self.run_id}",
        )


def submit(
    recipe: str | os.PathLike[str] | Mapping[str, Any], site: str = "", set: Mapping[str, Any] | None = None
) -> Run:
    """Submit a recipe, as `swiftlaunch submit RECIPE --site SITE --set KEY=VALUE` does, and return at once.

    `recipe` is a file, the name of a shipped recipe, or the recipe itself as a dictionary with the keys of the TOML
    file; relative paths in a dictionary start at the current folder. `site` is a site's name or file, by default the
    one that the command line would choose. `set` changes values by their TOML path: {"train.learning_rate": 1e-4}.
    Raises InputError with every fault found, and then nothing was submitted; SchedulerError.
    """
    from launcher.prepare import prepare
    from launcher.submission import submit as submit_prepared

    text = ""
    path = Path("recipe")
    if isinstance(recipe, Mapping):
        text = _toml_text(recipe)
    else:
        path = Path(recipe)
    overrides = [f"{key}={_toml_value(key, value)}" for key, value in (set or {}).items()]
    ready = prepare(path, overrides=overrides, site_name=site, home=Path.home(), environ=os.environ, recipe_text=text)
    return Run(submit_prepared(ready, environ=os.environ))


def open_run(run: str) -> Run:
    """The run of that id, a unique start of one, a recipe's name (its newest run) or "latest"; "RUN/7" is a point.

    Raises UserError where there is none.
    """
    return Run(watch.find_run(_registry(), run))


def runs(limit: int = 20) -> list[Run]:
    """The newest runs, newest first; all of them with limit 0."""
    return [Run(row) for row in _registry().runs(limit)]


def _registry() -> Registry:
    return Registry(registry_path(default_state_dir()))


def _toml_text(recipe: Mapping[str, Any]) -> str:
    import tomlkit

    try:
        return tomlkit.dumps(recipe)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"cannot be written as TOML: {error}", where="recipe", hint="leave out keys that are None"
        ) from error


def _toml_value(key: str, value: Any) -> str:
    import tomlkit

    try:
        text: str = tomlkit.item(os.fspath(value) if isinstance(value, os.PathLike) else value).as_string()
    except (TypeError, ValueError) as error:
        raise UserError(f"cannot be written as TOML: {error}", where=f"set {key}") from error
    return text
