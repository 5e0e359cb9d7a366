"""The optimizer's state in a checkpoint: the same in every layout, whether replicas share the state out or not.

Each state (Adam's two moments, the fp32 copy of a bf16 weight) is a tensor of its parameter's shape in the whole
model, `optimizer.exp_avg.<weight>`. A rank holds some elements of its part of it: all of them, or with Megatron-core's
distributed optimizer a range that begins and ends anywhere. A range is at most a few boxes of whole or cut rows, and
boxes are what torch's distributed checkpoints are made of. So every rank writes what it has and reads what it needs,
and no rank ever holds another's. What is equal for all parameters, the number of steps, lies in the manifest; rates
and decays come from the recipe.

A state whose tensors are not of the parameter's size (8-bit optimizers keep scales per block of values) cannot be cut
that way: it is kept per rank, for the same layout alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from launcher.work.megatron.boxes import boxes, flat

COPY = "fp32_copy"  # the weight that the optimizer updates, where the model's own is of fewer bits
STEP = "step"


class Held(NamedTuple):
    """What this rank's optimizer has of one trained parameter."""

    optimizer: Any  # torch's
    parameter: Any  # the model's
    main: Any  # what the optimizer updates: the parameter, a range of it, or an fp32 copy
    start: int  # the range, in elements of the parameter as a flat tensor
    end: int
    divided: bool = False  # replicas of this rank's weights hold the rest

    @property
    def copied(self) -> bool:
        return bool(self.main.dtype != self.parameter.dtype)

    def states(self) -> dict[str, Any]:
        """Its state by name, the count of steps left out."""
        state = {name: value for name, value in self.optimizer.state.get(self.main, {}).items() if name != STEP}
        return {COPY: self.main.detach(), **state} if self.copied else state

    def kinds(self, known: Collection[str]) -> Collection[str]:
        """The names of what its optimizer keeps for it; `known` ones, unless the optimizer says."""
        names = getattr(self.optimizer, "names_of", None)
        return names(self.main) if names else known

    def divisible(self) -> bool:
        """Whether every state is a tensor of one value per element."""
        size = self.end - self.start
        return all(isinstance(value, torch.Tensor) and value.numel() == size for value in self.states().values())


def held(optimizer: Any) -> Iterator[Held]:
    """All that this rank's optimizers update, in an order that is the same at every start in the same layout."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = part.optimizer
        if inner is None:  # nothing of this kind is trained on this rank
            continue
        if hasattr(part, "gbuf_ranges"):
            yield from _ranges(part)
        elif hasattr(part, "float16_groups"):
            for narrow, wide in zip(part.float16_groups, part.fp32_from_float16_groups, strict=True):
                for parameter, main in zip(narrow, wide, strict=True):
                    yield Held(inner, parameter, main, 0, parameter.numel())
            for parameter in (each for group in part.fp32_from_fp32_groups for each in group):
                yield Held(inner, parameter, parameter, 0, parameter.numel())
        else:
            for parameter in part.get_parameters():
                yield Held(inner, parameter, parameter, 0, parameter.numel())


def _ranges(part: Any) -> Iterator[Held]:
    """What Megatron-core's distributed optimizer has on this rank."""
    for maps in part.gbuf_ranges:
        for buckets in maps.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    group, order = part.model_param_group_index_map[parameter]
                    main = part.optimizer.param_groups[group]["params"][order]
                    if main.numel():
                        part_of = ranges["param"]
                        yield Held(part.optimizer, parameter, main, part_of.start, part_of.end, divided=True)


def facts(optimizer: Any) -> dict[str, Any]:
    """What the manifest says of the state: steps, names and number formats. The same on every rank; all call it."""
    steps, divisible, in_groups = 0.0, True, False
    names: dict[str, str] = {}
    for each in held(optimizer):
        state = each.optimizer.state.get(each.main, {})
        groups = [float(group[STEP]) for group in each.optimizer.param_groups if STEP in group]
        in_groups = in_groups or (STEP not in state and bool(groups))
        steps = max([steps, float(state.get(STEP, 0)), *groups])
        divisible = divisible and each.divisible()
        if divisible:
            names |= {name: str(value.dtype).removeprefix("torch.") for name, value in each.states().items()}
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (steps, names, divisible, in_groups))
    return {
        "steps": max(each[0] for each in gathered),
        "states": {name: dtype for each in gathered for name, dtype in each[1].items()},
        "divisible": all(each[2] for each in gathered),
        "steps_in_groups": any(each[3] for each in gathered),
    }


def sharded(optimizer: Any, weights: Mapping[str, Any], *, divisible: bool) -> dict[str, Any]:
    """This rank's part of the state, as Megatron-core's checkpoints take it.

    `weights` is the sharded state of the model's chunks; `divisible` as `facts` says.
    """
    if not divisible:
        from megatron.core.dist_checkpointing.mapping import ShardedObject

        rank, world = dist.get_rank(), dist.get_world_size()
        own = [(each.states(), each.optimizer.state.get(each.main, {}).get(STEP)) for each in held(optimizer)]
        return {"own": ShardedObject("optimizer", own, (world,), (rank,))}
    places = _places(weights)
    return {
        f"{name}.{index}.{number}": box
        for index, each in enumerate(held(optimizer))
        for name, value in each.states().items()
        for number, box in enumerate(_boxes_of(each, places[id(each.parameter)], name, value.reshape(-1)))
    }


def prepare(optimizer: Any, found: Mapping[str, Any]) -> None:
    """Make room for the state that the manifest tells of, so that `sharded` has tensors to load into."""
    for each in held(optimizer) if found["divisible"] else ():
        state = each.optimizer.state[each.main]
        state.clear()
        for name, dtype in found["states"].items():
            if name != COPY and name in each.kinds(found["states"]):
                state[name] = torch.zeros_like(each.main, dtype=getattr(torch, dtype), requires_grad=False)


def restore(optimizer: Any, found: Mapping[str, Any], loaded: Mapping[str, Any]) -> None:
    """Take up the state after loading: tensors are in place already, steps and states kept per rank are not."""
    own = iter(loaded.get("own", ()))
    for each in held(optimizer):
        state = each.optimizer.state[each.main]
        if not found["divisible"]:
            values, steps = next(own)
            copy = values.pop(COPY, None)
            if copy is not None:
                each.main.data.copy_(copy)
            state.update(values)
            if steps is not None:
                state[STEP] = steps
        elif found["steps_in_groups"]:
            for group in each.optimizer.param_groups:
                group[STEP] = int(found["steps"])
        elif found["states"].keys() - {COPY} and found["steps"]:
            # one tensor for each: torch counts them up one by one
            state[STEP] = torch.tensor(found["steps"], dtype=torch.float32)


def _places(weights: Mapping[str, Any]) -> dict[int, list[Any]]:
    """By identity of the parameter: its place in the whole model, one after the other where it has several.

    Gate and up projections are one parameter here and two places in the whole.
    """
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    places: dict[int, list[Any]] = {}
    for value in nested_values(dict(weights)):
        if isinstance(value, ShardedTensorFactory):
            places[id(value.data)] = list(value.build())
        elif isinstance(value, ShardedTensor):
            places[id(value.data)] = [value]
    return places


def _boxes_of(each: Held, places: Sequence[Any], name: str, values: Any) -> Iterator[Any]:
    """The range's values as boxes of the whole tensor. `values` is flat; boxes are views of it."""
    base = 0  # first element of this place
    for place in places:
        size = math.prod(place.local_shape)
        start, end = max(each.start, base) - base, min(each.end, base + size) - base
        replica = _without_replicas(place) if each.divided else place.replica_id
        front = (1,) * place.prepend_axis_num  # Megatron-core stacks the layers of a model
        for offset, shape in boxes(place.local_shape, start, end):
            first = base + flat(offset, place.local_shape) - each.start
            yield replace(
                place,
                key=f"optimizer.{name}.{place.key}",
                data=values[first : first + math.prod(shape)].view(front + shape),
                dtype=values.dtype,
                local_shape=front + shape,
                global_offset=_moved(place, offset),
                axis_fragmentations=None,  # no regular grid
                prepend_axis_num=0,
                replica_id=replica,
            )
        base += size


def _without_replicas(place: Any) -> tuple[int, ...]:
    """The place's replica id without the data-parallel rank, which comes last."""
    return (*place.replica_id[:-1], 0)


def _moved(place: Any, offset: Sequence[int]) -> tuple[int, ...]:
    front = place.prepend_axis_num
    inner = (at + by for at, by in zip(place.global_offset[front:], offset, strict=True))
    return (*place.global_offset[:front], *inner)
