"""Recipes: what to train, evaluate, quantize and serve, as a person writes it in TOML.

The only place that loads pydantic.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.errors import Fault, InputError
from launcher.recipe.checks import reasoning_gym_tasks, validate
from launcher.recipe.faults import Problem
from launcher.recipe.fields import shown
from launcher.recipe.points import Values, points
from launcher.recipe.positions import Loc
from launcher.recipe.schema import recipe_schema
from launcher.recipe.sections import Model, Recipe
from launcher.recipe.source import Origin, Source, dotted, read_source, table_source, with_values
from launcher.recipe.starter import starter

__all__ = [
    "LoadedRecipe",
    "Model",
    "Recipe",
    "describe",
    "load_recipe",
    "load_resolved",
    "reasoning_gym_tasks",
    "recipe_schema",
    "starter",
]


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe without faults. Relative paths in `recipe` and `resolved` have become absolute."""

    path: Path
    text: str  # the user's own file, without what it extends
    recipe: Recipe
    resolved: dict[str, Any]  # JSON: every default written, `extends` and --set worked in
    source: Source
    values: Values = field(default_factory=dict)  # of a point: what the sweep gives it, by TOML path
    points: tuple[LoadedRecipe, ...] = ()  # of a sweep: a recipe without [sweep] for each, all different
    equal_points: int = 0  # left out: another point is the same

    def where(self, *loc: str | int) -> str:
        """Where a key was written: "recipe.toml:12 train.learning_rate"."""
        return self.source.where(loc)

    def data_files(self, which: str) -> tuple[Path, ...]:
        """The files of data.train or data.evaluation, globs expanded, in order, each once.

        Raises InputError for globs that match no file.
        """
        found: dict[Path, None] = {}
        faults: list[Fault] = []
        patterns = getattr(self.recipe.data, which) if self.recipe.data else ()
        for number, pattern in enumerate(patterns):
            # a name with brackets may also be meant as it stands
            names = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
            files = [Path(name) for name in names if os.path.isfile(name)]
            if not files:
                hint = "relative names start at the folder of the file that gives them"
                faults.append(Fault(self.where("data", which, number), f"matches no file: {pattern}", hint))
            found.update(dict.fromkeys(files))
        if faults:
            raise InputError(faults)
        return tuple(found)

    def data_splits(self) -> tuple[dict[str, tuple[Path, ...]], list[Fault]]:
        """The files of both splits by name, without those whose globs match no file; and the faults of these."""
        files: dict[str, tuple[Path, ...]] = {}
        faults: list[Fault] = []
        for split in ("train", "evaluation"):
            try:
                files[split] = self.data_files(split)
            except InputError as error:
                faults += error.faults
        return files, faults


def load_recipe(path: Path, overrides: Sequence[str] = (), text: str = "") -> LoadedRecipe:
    """The recipe in `path`, with what it extends and `--set` words ("train.steps=60") worked in.

    `text` is a recipe that is in no file; `path` is then what messages call it, and where its relative paths start.

    Raises InputError with every fault that was found.
    """
    source, text = read_source(path, overrides, text)
    return _loaded(source, path, text)


def load_resolved(resolved: Mapping[str, Any], path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe that was `resolved` once, as a plan holds it, with `--set` words worked in; messages call it `path`.

    Raises InputError with every fault that was found.
    """
    table = {name: _given(section) for name, section in resolved.items() if section is not None}
    return _loaded(table_source(table, overrides, path), path, "")


def _given(value: Any) -> Any:
    """Without keys whose value is none, which TOML cannot say."""
    if isinstance(value, dict):
        return {key: _given(item) for key, item in value.items() if item is not None}
    return value


def _loaded(source: Source, path: Path, text: str) -> LoadedRecipe:
    recipe, problems = validate(source.data)
    if recipe is None or source.faults:
        raise InputError([*source.faults, *(_fault(source, problem) for problem in _once(problems))])
    _absolute(source)
    recipe, problems = validate(source.data)
    assert recipe is not None, problems
    loaded = LoadedRecipe(path, text, recipe, recipe.model_dump(mode="json"), source)
    return loaded if recipe.sweep is None else _with_points(loaded, points(recipe.sweep))


def _with_points(loaded: LoadedRecipe, values: list[Values]) -> LoadedRecipe:
    """The recipe with its sweep's points. Raises InputError with what is wrong with them, each fault once."""

    def origin(key: str) -> Origin:
        return loaded.source.origin(("sweep", "parameters", key))

    without = Source(
        {name: table for name, table in loaded.source.data.items() if name != "sweep"},
        {loc: origin for loc, origin in loaded.source.origins.items() if loc[:1] != ("sweep",)},
        loaded.source.fallback,
    )
    found: dict[str, LoadedRecipe] = {}
    faults: dict[tuple[str, str], Fault] = {}
    for one in values:
        source = with_values(without, one, origin)
        _absolute(source)
        recipe, problems = validate(source.data)
        for problem in problems:
            fault = _point_fault(loaded, one, problem)
            faults.setdefault((fault.where, problem.message), fault)
        if recipe is not None:
            resolved = recipe.model_dump(mode="json")
            point = LoadedRecipe(loaded.path, loaded.text, recipe, resolved, source, one)
            found.setdefault(json.dumps(resolved, sort_keys=True), point)
    if faults:
        raise InputError(list(faults.values()))
    return replace(loaded, points=tuple(found.values()), equal_points=len(values) - len(found))


def _point_fault(loaded: LoadedRecipe, values: Values, problem: Problem) -> Fault:
    """A fault at the value that it names, or at all of the sweep's values with the point in its text."""
    assert loaded.recipe.sweep is not None
    at: Loc = ("sweep", "parameters")
    key = next((key for key in values if tuple(key.split(".")) == problem.loc[: key.count(".") + 1]), "")
    if not key and len(values) == 1:
        (key,) = values
    given = loaded.recipe.sweep.parameters.get(key)
    if isinstance(given, tuple):
        at = (*at, key, given.index(values[key]))
    elif key:
        at = (*at, key)
    named = tuple(key.split(".")) == problem.loc
    about = "" if named else f" ({dotted(problem.loc)}, with {describe(values)})"
    return Fault(loaded.where(*at), problem.message + about, problem.hint)


def describe(values: Values) -> str:
    """The values of a point in a line: "train.lora.rank = 8, train.seed = 1"."""
    return ", ".join(f"{key} = {shown(value)}" for key, value in values.items())


def _fault(source: Source, problem: Problem) -> Fault:
    return Fault(source.where(problem.loc), problem.message, problem.hint)


def _once(problems: list[Problem]) -> list[Problem]:
    """Without repetitions: a section is validated alone again when the whole did not pass."""
    return list(dict.fromkeys(problems))


def _absolute(source: Source) -> None:
    """Paths start at the folder of the file that they were written in."""
    for loc in (("model", "path"), ("model", "chat_template"), ("data", "train"), ("data", "evaluation")):
        table = source.data.get(loc[0], {})
        value = table.get(loc[1])
        if isinstance(value, str):
            table[loc[1]] = _from(source, loc, value)
        elif isinstance(value, (list, tuple)):
            table[loc[1]] = [_from(source, (*loc, number), item) for number, item in enumerate(value)]


def _from(source: Source, loc: Loc, name: str) -> str:
    return os.path.normpath(Path(source.origin(loc).folder, os.path.expanduser(name)).absolute())
