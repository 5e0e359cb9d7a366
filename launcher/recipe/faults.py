"""Faults in plain words: pydantic's errors, and what an unknown key was meant to be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from launcher.recipe.fields import FAULT, shown
from launcher.recipe.positions import Loc
from launcher.recipe.sections import Recipe, SweepRange
from launcher.recipe.source import dotted


class Problem(NamedTuple):
    """A fault before it is known which file and line it stands in."""

    loc: Loc
    message: str
    hint: str = ""


def key_exists(loc: Loc) -> bool:
    """Whether a recipe can hold this key."""
    model: type[BaseModel] | None = Recipe
    for number, part in enumerate(loc):
        if model is None or part not in model.model_fields:
            return False
        annotation = model.model_fields[str(part)].annotation
        model = section_of(annotation)
        if model is None:
            free = "dict[" in str(annotation)  # task_options, env.variables: any name
            return number == len(loc) - 1 or (free and len(loc) == number + 2)
    return True


def field_type(loc: Loc) -> Any:
    """The type of the key at `loc`; None where a recipe has no such key."""
    model: type[BaseModel] | None = Recipe
    annotation: Any = None
    for part in loc:
        field = model.model_fields.get(str(part)) if model else None
        if field is None:
            return None
        annotation = field.annotation
        model = section_of(annotation)
    return annotation


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section a field holds, also if optional."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _known_keys(loc: Loc) -> list[str]:
    """The keys of the table at `loc`."""
    model: type[BaseModel] | None = Recipe
    for part in loc:
        field = model.model_fields.get(str(part)) if model else None
        model = section_of(field.annotation) if field else None
    return list(model.model_fields) if model else []


@cache
def _all_keys() -> tuple[str, ...]:
    def walk(model: type[BaseModel], at: str) -> Iterator[str]:
        for name, field in model.model_fields.items():
            yield at + name
            if (inner := section_of(field.annotation)) is not None and inner is not SweepRange:
                yield from walk(inner, f"{at}{name}.")

    return tuple(walk(Recipe, ""))


def meant(loc: Loc) -> str:
    """A hint for an unknown key: a close name in its table, or the same name elsewhere."""
    key = str(loc[-1])
    here = _known_keys(loc[:-1])
    if close := get_close_matches(key, here, n=1, cutoff=0.65) or get_close_matches(
        key.lower(), here, n=1, cutoff=0.65
    ):
        return f"did you mean {dotted((*loc[:-1], close[0]))}?"
    if elsewhere := [name for name in _all_keys() if name.rsplit(".", 1)[-1] == key]:
        return f"did you mean {elsewhere[0]}?"
    return f"known: {', '.join(here)}" if len(here) <= 40 else ""


HIDDEN = "..."  # stands for the value of a variable, which may be a secret

_KINDS = {
    "string_type": "a text in quotes",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}


def problem_of(detail: ErrorDetails) -> Problem:
    """pydantic's error in the words of this program."""
    kind, loc, value = detail["type"], detail["loc"], detail["input"]
    context: dict[str, Any] = detail.get("ctx", {})
    if loc[:2] == ("sweep", "parameters"):
        loc = tuple(part for part in loc if part not in ("list", "range"))
    key_is_bad = bool(loc) and loc[-1] == "[key]"  # the name of a variable or option, not its value
    if key_is_bad:
        loc = loc[:-1]
    if loc[:2] == ("env", "variables") and not key_is_bad:
        value = HIDDEN
    if kind == FAULT:
        message = context["message"]
        if value is HIDDEN:
            message = message.replace(shown(detail["input"]), "the value")
        return Problem(loc, message, context["hint"])
    if kind == "extra_forbidden":
        return Problem(loc, "unknown key", meant(loc))
    if kind == "missing":
        return Problem(loc, "is required")
    if kind == "literal_error":
        words = [word.strip("'") for word in re.split(r", | or ", context["expected"])]
        close = get_close_matches(str(value).lower(), words, n=1) if isinstance(value, str) else []
        hint = f'did you mean "{close[0]}"?' if close else ""
        return Problem(loc, f"{shown(value)} is not one of {', '.join(words)}", hint)
    if kind in _KINDS:
        hint = ""
        if kind == "string_type" and isinstance(value, (int, float)):
            hint = f'write "{json.dumps(value)}"'
        elif _KINDS[kind] == "a list" and isinstance(value, str):
            hint = f"write [{shown(value)}]"
        elif isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?|true|false", value):
            hint = "write it without quotes"
        return Problem(loc, f"must be {_KINDS[kind]}, not {_named(value)}", hint)
    bounds = {
        "greater_than": ("must be more than", "gt"),
        "greater_than_equal": ("must be at least", "ge"),
        "less_than": ("must be less than", "lt"),
        "less_than_equal": ("must be at most", "le"),
    }
    if kind in bounds:
        phrase, limit = bounds[kind]
        return Problem(loc, f"{phrase} {context[limit]}, not {shown(value)}")
    if kind == "too_short":
        return Problem(loc, f"needs at least {context['min_length']} value(s)")
    if kind == "finite_number":
        return Problem(loc, f"must be a finite number, not {_named(value)}")
    return Problem(loc, detail["msg"][:1].lower() + detail["msg"][1:])


def _named(value: object) -> str:
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "a list"
    return shown(value)
