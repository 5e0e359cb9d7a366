"""From a merged table to a Recipe: the types of the sections, and the rules that span several keys."""

from __future__ import annotations

import math
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from launcher.engines import SERVE_KEY_VARIABLE
from launcher.recipe.faults import Problem, field_type, key_exists, meant, problem_of, section_of
from launcher.recipe.fields import shown
from launcher.recipe.points import takes_whole_numbers, too_many
from launcher.recipe.positions import Loc
from launcher.recipe.preference_checks import data_rules, preference_rules
from launcher.recipe.sections import (
    Data,
    Env,
    Model,
    Quantize,
    Recipe,
    ResourceTables,
    Serve,
    Sweep,
    SweepRange,
    Tracking,
)
from launcher.recipe.sharded_checks import sharded_rules
from launcher.recipe.source import Table
from launcher.recipe.tracking_checks import tracking_rules
from launcher.recipe.training import ADAPTERS, Lora, Train, Validation
from launcher.refusals import is_ours, looks_secret, sbatch_refusal
from launcher.rows import PARTS


def validate(data: Table) -> tuple[Recipe | None, list[Problem]]:
    """The recipe, or everything that is wrong with it."""
    problems: list[Problem] = []
    sections: dict[str, Any] = {}
    try:
        recipe = Recipe.model_validate(data)
        sections = {name: getattr(recipe, name) for name in Recipe.model_fields}
    except ValidationError as error:
        recipe = None
        problems = [problem_of(detail) for detail in error.errors(include_url=False)]
        for name in Recipe.model_fields.keys() & data.keys():
            try:  # one broken table does not hide what is wrong with the others
                sections[name] = _type_of(name).validate_python(data[name])
            except ValidationError:
                continue
    problems += _rules(sections, present=set(data))
    return (None if problems else recipe), problems


@cache
def _type_of(name: str) -> TypeAdapter[Any]:
    annotation: Any = Recipe.model_fields[name].annotation
    return TypeAdapter(annotation)


def _rules(sections: dict[str, Any], *, present: set[str]) -> Iterator[Problem]:
    model, data, train = sections.get("model"), sections.get("data"), sections.get("train")
    if isinstance(model, Model) and (model.name is None) == (model.path is None):
        what = "name and path exclude each other" if model.name else "needs name or path"
        yield Problem(("model",), what, "a known model has a name, a folder on disk a path")
    for name in ("train", "evaluate"):
        if name in present and "data" not in present:
            yield Problem((name,), "needs a [data] table", 'add [data] with source = "files" or "reasoning-gym"')
    if isinstance(data, Data):
        looks = "[train.validation]" if isinstance(train, Train) and train.validation else ""
        scores = "[evaluate]" if "evaluate" in present else looks
        yield from _data_rules(data, trains="train" in present, scores=scores)
    if isinstance(train, Train):
        yield from _train_rules(train)
        if isinstance(data, Data):
            yield from data_rules(train.method, data)
        if train.method == "rm":
            for name in sorted({"evaluate", "quantize", "serve"} & present):
                yield Problem((name,), "a reward model has scores for outputs and writes no answers", "remove it")
    if isinstance(quantize := sections.get("quantize"), Quantize):
        yield from _quantize_rules(quantize, data, has_data="data" in present)
    if isinstance(serve := sections.get("serve"), Serve):
        yield from _serve_rules(serve)
    if isinstance(tracking := sections.get("tracking"), Tracking):
        yield from tracking_rules(tracking, sections.get("env"), trains="train" in present)
    if isinstance(resources := sections.get("resources"), ResourceTables):
        yield from _resource_rules(resources)
    if isinstance(env := sections.get("env"), Env):
        yield from _env_rules(env)
    if isinstance(sweep := sections.get("sweep"), Sweep):
        yield from _sweep_rules(sweep)


_FILES_KEYS = ("train", "evaluation", "format", "columns")
_GENERATED_KEYS = ("task", "task_options", "train_size", "train_seed", "evaluation_size", "evaluation_seed")


def _data_rules(data: Data, *, trains: bool, scores: str) -> Iterator[Problem]:
    """`scores` names a table that reads the evaluation data, if there is one."""
    foreign = _GENERATED_KEYS if data.source == "files" else _FILES_KEYS
    for key in foreign:
        if getattr(data, key) != Data.model_fields[key].get_default(call_default_factory=True):
            yield Problem(
                ("data", key), f'is not for source = "{data.source}"', "remove it, or choose the other source"
            )
    if data.source == "files":
        if trains and not data.train:
            yield Problem(("data", "train"), "is required: files to train on", 'write train = ["data/train-*.jsonl"]')
        if scores and not data.evaluation:
            yield Problem(("data", "evaluation"), "is required: files to evaluate on", f"or remove {scores}")
        for key in sorted(set(data.train) & set(data.evaluation)):
            yield Problem(
                ("data", "evaluation"), f"{shown(key)} is also trained on", "score rows that were not trained on"
            )
        if data.columns is not None and data.format != "auto":
            wanted = set(PARTS[data.format])
            for key in sorted(data.columns.model_fields_set - wanted):
                yield Problem(("data", "columns", key), f'has no meaning with format = "{data.format}"')
        return
    if data.task is None:
        yield Problem(("data", "task"), "is required: a reasoning-gym task", 'for example task = "chain_sum"')
    elif data.task not in (known := reasoning_gym_tasks()):
        close = get_close_matches(data.task, known, n=3)
        hint = (
            f"did you mean {' or '.join(close)}?" if close else f"{len(known)} are known: {', '.join(known[:6])}, ..."
        )
        yield Problem(("data", "task"), f"{shown(data.task)} is not a task of reasoning-gym", hint)
    if data.train_seed == data.evaluation_seed:
        yield Problem(
            ("data", "evaluation_seed"),
            f"is the same as train_seed, {data.train_seed}",
            "problems trained on would be scored",
        )
    for key in ("seed", "size"):
        if key in data.task_options:
            yield Problem(
                ("data", "task_options", key), "has keys of its own", f"use data.train_{key} and data.evaluation_{key}"
            )


@cache
def reasoning_gym_tasks() -> tuple[str, ...]:
    """Names of reasoning-gym's tasks (release 0.1.25)."""
    return tuple(Path(__file__).with_name("reasoning_gym_tasks.txt").read_text(encoding="utf-8").split())


def _train_rules(train: Train) -> Iterator[Problem]:
    if (train.steps is None) == (train.epochs is None):
        what = "steps and epochs exclude each other" if train.steps else "needs steps or epochs"
        yield Problem(("train",), what, "write one of steps = 1000 and epochs = 1")
    if train.global_batch_size % train.micro_batch_size:
        yield Problem(
            ("train", "global_batch_size"),
            f"{train.global_batch_size} is not divisible by micro_batch_size = {train.micro_batch_size}",
        )
    if train.packing and train.method not in ("cpt", "sft"):
        yield Problem(("train", "packing"), f'is for cpt and sft, not "{train.method}"', "remove it")
    if train.neftune_alpha and train.method != "sft":
        yield Problem(("train", "neftune_alpha"), f'is for sft, not "{train.method}"', "remove it")
    if train.precision == "fp8" and train.engine != "megatron":
        yield Problem(("train", "precision"), f"{train.engine} has no fp8", 'write "bf16"')
    if train.precision == "fp8" and train.tuner != "full" and train.lora.rank % 16:
        message = f"{train.lora.rank} is not a multiple of 16, which matrix products in fp8 need"
        yield Problem(("train", "lora", "rank"), message)
    if train.optimizer == "muon" and train.tuner != "full":
        message = f"muon is for whole matrices, and {train.tuner} trains narrow factors of them"
        yield Problem(("train", "optimizer"), message, 'use adamw, or tuner = "full"')
    if train.minimum_learning_rate > train.learning_rate:
        yield Problem(
            ("train", "minimum_learning_rate"),
            f"{train.minimum_learning_rate:g} is above learning_rate = {train.learning_rate:g}",
        )
    if train.schedule == "wsd" and train.decay_steps is None:
        yield Problem(
            ("train", "decay_steps"), 'is required with schedule = "wsd"', "about a tenth of the steps is usual"
        )
    if train.schedule != "wsd" and train.decay_steps is not None:
        yield Problem(("train", "decay_steps"), f'is for schedule = "wsd", not "{train.schedule}"')
    if train.steps is not None and train.warmup_steps + (train.decay_steps or 0) > train.steps:
        key = "decay_steps" if train.decay_steps else "warmup_steps"
        yield Problem(("train", key), f"warm-up and decay are longer than steps = {train.steps}")
    if train.tuner not in ADAPTERS and train.lora != Lora():
        yield Problem(
            ("train", "lora"), f'has no meaning with tuner = "{train.tuner}"', 'write tuner = "lora", or remove it'
        )
    if train.validation is not None:
        yield from _validation_rules(train, train.validation)
    yield from sharded_rules(train)
    yield from preference_rules(train.method, train.preference, adapts=train.tuner in ADAPTERS)


def _validation_rules(train: Train, validation: Validation) -> Iterator[Problem]:
    checkpoint = train.checkpoint
    if checkpoint.keep_best and checkpoint.every_steps % validation.every_steps:
        yield Problem(
            ("train", "validation", "every_steps"),
            f"does not divide checkpoint.every_steps = {checkpoint.every_steps}",
            "keep_best goes by the validation loss, which each checkpoint then needs",
        )


def _quantize_rules(quantize: Quantize, data: object, *, has_data: bool) -> Iterator[Problem]:
    if quantize.method != "gptq":
        if quantize.bits != 8:
            yield Problem(("quantize", "bits"), f"{quantize.method} has 8 bits, not {quantize.bits}", "remove bits")
        if quantize.group_size is not None:
            yield Problem(("quantize", "group_size"), f"is for gptq, not {quantize.method}", "remove group_size")
    elif not quantize.calibration_samples:
        yield Problem(("quantize", "calibration_samples"), "gptq needs at least 1 to calibrate with")
    if quantize.method == "fp8" and quantize.calibration_samples:
        what = "is for gptq and int8: fp8 scales activations at run time"
        yield Problem(("quantize", "calibration_samples"), what, "remove it")
    elif quantize.calibration_samples and isinstance(data, Data) and data.source == "files" and not data.train:
        what = f"is required: {quantize.method} calibrates with rows to train on"
        yield Problem(("data", "train"), what, 'write train = ["data/train-*.jsonl"]')
    elif quantize.calibration_samples and not has_data:
        yield Problem(
            ("quantize",),
            f"{quantize.method} calibrates with rows of [data], which is absent",
            "add a [data] table" + (", or calibration_samples = 0" if quantize.method != "gptq" else ""),
        )


def _serve_rules(serve: Serve) -> Iterator[Problem]:
    for number, word in enumerate(serve.extra_arguments):
        option = word.partition("=")[0]
        if option == "--api-key":
            yield Problem(
                ("serve", "extra_arguments", number),
                "a key on a command line is kept in the plan, and other users of the node can read it",
                f'export {SERVE_KEY_VARIABLE} in your shell and write secrets = ["{SERVE_KEY_VARIABLE}"] under [env]',
            )
        elif option in ("--host", "--port"):
            key = option.removeprefix("--")
            yield Problem(("serve", "extra_arguments", number), f"{option} has a key of its own", f"use serve.{key}")


def _resource_rules(resources: ResourceTables) -> Iterator[Problem]:
    for stage in type(resources).model_fields:
        for number, word in enumerate(getattr(resources, stage).extra or ()):
            reason, hint = sbatch_refusal(word)
            if reason:
                yield Problem(("resources", stage, "extra", number), f"{shown(word)} {reason}", hint)


def _env_rules(env: Env) -> Iterator[Problem]:
    for name in env.variables:
        if looks_secret(name):
            yield Problem(
                ("env", "variables", name),
                "looks like a secret, and variables are kept in the plan",
                f'export it in your shell and write secrets = ["{name}"] under [env]',
            )
        elif name in env.secrets:
            yield Problem(("env", "variables", name), "is also among env.secrets", "keep one of the two")
        elif is_ours(name):
            yield Problem(("env", "variables", name), "is set by the scheduler or by swiftlaunch")
    for number, name in enumerate(env.secrets):
        if is_ours(name) and name != SERVE_KEY_VARIABLE:
            yield Problem(("env", "secrets", number), f"{name} is set by the scheduler or by swiftlaunch")
        elif name in env.secrets[:number]:
            yield Problem(("env", "secrets", number), f"{name} is named twice")


def _sweep_rules(sweep: Sweep) -> Iterator[Problem]:
    at: Loc = ("sweep", "parameters")
    if not sweep.parameters:
        yield Problem(at, "is empty", 'write "train.learning_rate" = [1e-4, 3e-4]')
    for key, values in sweep.parameters.items():
        loc = tuple(key.split("."))
        if loc[0] in ("sweep", "name", "description", "extends"):
            yield Problem((*at, key), "cannot be swept")
        elif not key_exists(loc):
            yield Problem((*at, key), "is not a key of the recipe", meant(loc))
        elif section_of(field_type(loc)) is not None:
            yield Problem((*at, key), "is a table, not a value", "name one key in it")
        if isinstance(values, SweepRange):
            if sweep.method != "random":
                yield Problem((*at, key), f'an interval needs method = "random", not "{sweep.method}"', "write a list")
            if values.min >= values.max:
                yield Problem((*at, key, "max"), f"{values.max:g} is not above min = {values.min:g}")
            elif values.scale == "log" and values.min <= 0:
                yield Problem((*at, key, "min"), "must be more than 0 on a log scale")
            elif takes_whole_numbers(key, values) and math.ceil(values.min) > math.floor(values.max):
                yield Problem((*at, key), f"there is no whole number from {values.min:g} to {values.max:g}")
    lengths = {len(values) for values in sweep.parameters.values() if not isinstance(values, SweepRange)}
    if sweep.method == "list" and len(lengths) > 1:
        yield Problem(
            at, f"lists of different lengths: {', '.join(map(str, sorted(lengths)))}", "list takes the n-th of each"
        )
    yield from too_many(sweep)
    if sweep.method == "random" and sweep.samples is None:
        yield Problem(("sweep", "samples"), 'is required with method = "random"')
    if sweep.method != "random" and sweep.samples is not None:
        yield Problem(("sweep", "samples"), f'is for method = "random", not "{sweep.method}"')
