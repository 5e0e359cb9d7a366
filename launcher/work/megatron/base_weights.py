"""Loading the base model: every tensor is there and has its shape, or one report names those that do not.

mcore-bridge reads tensor by tensor and reshapes what it reads: a matrix the wrong way round loads without a word, a
tensor that is missing ends in the last part of its name, on the ranks that need it alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch.distributed as dist

from launcher.errors import WorkerError
from launcher.work.folders import weight_files

_EXPERT = re.compile(r"(.*\.experts\.)(\d+)\.(.*)")
HEAD = "lm_head.weight"  # without it the bridge leaves an output layer as it was made
_MOST = 3  # names in a message; the first ones are enough to go on with


def load(bridge: Any, chunks: list[Any], folder: Path, *, scores: bool) -> None:
    """Load the folder's weights into the chunks, with `scores` all but the output layer.

    Raises WorkerError on all ranks where one of them cannot; all call it together.
    """
    found = shapes(folder)
    wanted = expected(folder) | _experts(found)
    complaint = "" if found else "no *.safetensors here"
    if HEAD in wanted and HEAD not in found and not scores:
        complaint = complaint or f"missing: {HEAD}"
    if wrong := [name for name in found if name in wanted and found[name] != wanted[name]]:
        told = [f"{name} is {_size(found[name])} instead of {_size(wanted[name])}" for name in wrong]
        complaint = _listed("of another shape than config.json says", told)
    if not complaint:
        try:
            bridge.load_weights(chunks, str(folder))
        except (KeyError, AssertionError, RuntimeError, ValueError) as error:
            complaint = _named(error, set(wanted) - set(found))
    complaints: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(complaints, complaint)
    if any(complaints):
        raise WorkerError(
            f"the base model's weights cannot be loaded: {next(filter(None, complaints))}",
            where=str(folder),
            hint="fetch the model again; a folder that was copied in part has files missing",
        )


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in the folder's safetensors files, by name."""
    from safetensors import safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        with safe_open(str(path), framework="pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return found


def expected(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes that transformers' model of this configuration has, by name. It may call some tensors otherwise."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _experts(found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """What the experts' tensors should be, which transformers has in one piece: alike, and in each layer as many."""
    matches = [match for name in found if (match := _EXPERT.fullmatch(name))]
    places = product({match[1] for match in matches}, {match[2] for match in matches})
    parts: dict[str, Counter[tuple[int, ...]]] = {}
    for match in matches:
        parts.setdefault(match[3], Counter())[found[match[0]]] += 1
    return {
        f"{front}{number}.{part}": shapes.most_common(1)[0][0]
        for front, number in places
        for part, shapes in parts.items()
    }


def _named(error: BaseException, absent: set[str]) -> str:
    """What went wrong, with the whole names of the tensors that are not there."""
    if not isinstance(error, KeyError):
        return str(error) or type(error).__name__
    end = str(error.args[0]) if error.args else ""
    names = sorted(name for name in absent if name == end or name.endswith(f".{end}"))
    return _listed("missing", names or [end])


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return f"{what}: {', '.join(names[:_MOST])}{more}"


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
