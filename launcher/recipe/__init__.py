"""Recipes: what to train, evaluate, quantize and serve, as a person writes it in TOML.

The only place that loads pydantic.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import Fault, InputError
from launcher.recipe.checks import reasoning_gym_tasks, validate
from launcher.recipe.faults import Problem
from launcher.recipe.positions import Loc
from launcher.recipe.schema import recipe_schema
from launcher.recipe.sections import Recipe
from launcher.recipe.source import Source, read_source
from launcher.recipe.starter import starter

__all__ = ["LoadedRecipe", "Recipe", "load_recipe", "reasoning_gym_tasks", "recipe_schema", "starter"]


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe without faults. Relative paths in `recipe` and `resolved` have become absolute."""

    path: Path
    text: str  # the user's own file, without what it extends
    recipe: Recipe
    resolved: dict[str, Any]  # JSON: every default written, `extends` and --set worked in
    source: Source

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


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe in `path`, with what it extends and `--set` words ("train.steps=60") worked in.

    Raises InputError with every fault that was found.
    """
    source, text = read_source(path, overrides)
    recipe, problems = validate(source.data)
    if recipe is None or source.faults:
        raise InputError([*source.faults, *(_fault(source, problem) for problem in _once(problems))])
    _absolute(source)
    recipe, problems = validate(source.data)
    assert recipe is not None, problems
    return LoadedRecipe(path, text, recipe, recipe.model_dump(mode="json"), source)


def _fault(source: Source, problem: Problem) -> Fault:
    return Fault(source.where(problem.loc), problem.message, problem.hint)


def _once(problems: list[Problem]) -> list[Problem]:
    """Without repetitions: a section is validated alone again when the whole did not pass."""
    return list(dict.fromkeys(problems))


def _absolute(source: Source) -> None:
    """Paths start at the folder of the file that they were written in."""
    for loc in (("model", "path"), ("data", "train"), ("data", "evaluation")):
        table = source.data.get(loc[0], {})
        value = table.get(loc[1])
        if isinstance(value, str):
            table[loc[1]] = _from(source, loc, value)
        elif isinstance(value, (list, tuple)):
            table[loc[1]] = [_from(source, (*loc, number), item) for number, item in enumerate(value)]


def _from(source: Source, loc: Loc, name: str) -> str:
    return os.path.normpath(Path(source.origin(loc).folder, os.path.expanduser(name)).absolute())
