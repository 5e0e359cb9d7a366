"""Types that recipe fields share: which characters a string may hold, and how sizes and durations are written.

Strings of a recipe end up in job scripts, file names and tables, so each has a type that says what it may hold.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from launcher.units import parse_mib, parse_minutes

FAULT = "recipe_fault"  # the pydantic error type of our own faults
_REORDERING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
LARGEST = 2**31 - 1  # upper bound of counts: larger ones are typing errors and overflow in engines


class Section(BaseModel):
    """A table of the recipe: unknown keys and loose types are refused, nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def refuse(message: str, hint: str = "") -> PydanticCustomError:
    """The error that a validator raises; `message` and `hint` reach the user as they are."""
    return PydanticCustomError(FAULT, "{message}", {"message": message, "hint": hint})


def shown(value: object) -> str:
    """A value for a message: control characters escaped, long texts cut, strings in double quotes."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    text = "".join(json.dumps(char)[1:-1] if unprintable(char) and char != " " else char for char in text)
    return text if len(text) <= 60 else text[:57] + "..."


def unprintable(char: str) -> bool:
    """Control characters, line and paragraph separators, lone surrogates, and marks that reorder text."""
    return unicodedata.category(char) in {"Cc", "Zl", "Zp", "Cs"} or unicodedata.bidirectional(char) in _REORDERING


def _matching(pattern: str, rule: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise refuse(f"{shown(text)} is not allowed here", rule)
        return text

    return check


def _text(*, lines: bool, empty: bool) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not empty and not text.strip():
            raise refuse("must not be empty")
        for char in text:
            if unprintable(char) and not (lines and char in "\n\t"):
                raise refuse(
                    f"{shown(text)} holds the control character U+{ord(char):04X}",
                    "" if lines else "write it on one line, without tabs or control characters",
                )
        return text

    return check


def _named(pattern: str, rule: str) -> Any:
    return AfterValidator(_matching(pattern, rule))


_RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
RunName = Annotated[
    str,
    _named(_RUN_NAME, "use 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"),
    Field(json_schema_extra={"pattern": f"^{_RUN_NAME}$"}),
]

_MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?"
ModelName = Annotated[
    str,
    _named(_MODEL_NAME, "write a short name (qwen3-8b) or a Hugging Face id (Qwen/Qwen3-8B); folders go to model.path"),
    Field(json_schema_extra={"pattern": f"^{_MODEL_NAME}$"}),
]

_REVISION = r"[A-Za-z0-9]([A-Za-z0-9._-]|/(?!\.)){0,199}"
Revision = Annotated[
    str,
    _named(_REVISION, "write a branch, tag or commit of the model's repository"),
]

_SLURM_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.,@+-]{0,255}"
SlurmName = Annotated[
    str,
    _named(_SLURM_NAME, "use letters, digits and _ . , @ + - only"),
    Field(json_schema_extra={"pattern": f"^{_SLURM_NAME}$"}),
]

_CONSTRAINT = r"[A-Za-z0-9_.,:@+&|*()\[\]!=-]{1,512}"
Constraint = Annotated[
    str,
    _named(_CONSTRAINT, "write features as sbatch --constraint takes them, without spaces: a100&ib, [rack1|rack2]"),
]

_HOST = r"[A-Za-z0-9_:][A-Za-z0-9_.:-]{0,254}"
Host = Annotated[str, _named(_HOST, "write a host name or an IP address")]

_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]{0,127}"
_VARIABLE_RULE = "names of environment variables are letters, digits and _, no digit first"
VariableName = Annotated[
    str,
    _named(_VARIABLE, _VARIABLE_RULE),
    Field(json_schema_extra={"pattern": f"^{_VARIABLE}$"}),
]

_MODULE = r"[A-Za-z0-9_*?][A-Za-z0-9_.*?-]{0,127}"
ModuleName = Annotated[str, _named(_MODULE, 'write the name of a layer ("linear_qkv") or "all-linear"')]

OneLine = Annotated[str, Field(max_length=4096), AfterValidator(_text(lines=False, empty=False))]
"""Not empty, one line: paths, words of a command line, values of variables."""

MaybeEmptyLine = Annotated[str, Field(max_length=4096), AfterValidator(_text(lines=False, empty=True))]
"""One line that may be empty."""

Prose = Annotated[str, Field(max_length=100_000), AfterValidator(_text(lines=True, empty=True))]
"""Text for people or for the model; line breaks are fine, other control characters are not."""


def _parsed(parse: Callable[[str | int], int], unit: str) -> Any:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise refuse(f"{shown(value)} is neither a whole number nor a text", f"whole numbers are {unit}")
        try:
            return parse(value)
        except ValueError as error:
            message, _, hint = str(error).partition("; ")
            raise refuse(message, hint) from None

    return BeforeValidator(check)


Memory = Annotated[
    int,
    _parsed(parse_mib, "MiB"),
    Field(le=LARGEST),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}], "examples": ["24G", 512]}),
]
"""MiB once loaded; written as 512 (MiB) or "24G"."""

Duration = Annotated[
    int,
    _parsed(parse_minutes, "minutes"),
    Field(le=LARGEST),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}], "examples": ["1h30m", 90]}),
]
"""Minutes once loaded; written as 90 (minutes), "1h30m" or Slurm's "1-12:00:00"."""

Count = Annotated[int, Field(ge=1, le=LARGEST)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
