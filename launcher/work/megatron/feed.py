"""What the model is fed with: the data as batches of this rank, and what there is to say of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.work import corpus
from launcher.work.context import Context
from launcher.work.data import fingerprint, problems
from launcher.work.megatron.batches import Batches, PackedBatches
from launcher.work.megatron.pairs import METHODS, PairBatches, pair_batches
from launcher.work.megatron.validation import HeldOut, held_out
from launcher.work.packing import pack
from launcher.work.ranks import hash_files


@dataclass(frozen=True)
class Feed:
    """Batches, the hash of their rows, figures for the stage's result, and what is not trained on."""

    batches: Batches | PackedBatches | PairBatches
    data_sha256: str
    figures: Mapping[str, Any]
    held_out: HeldOut | None = None


def feed(context: Context, tokenizer: Any, place: Mapping[str, int], *, tensor_ranks: int = 1) -> Feed:
    """The batches of `options.data` for `options.train`. Every rank calls it together.

    `place` says which part of a global batch is this rank's, as batches take it: replica, replicas, context_rank,
    context_ranks.
    """
    train = context.options["train"]
    ends = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    place = {**place, "padding": next(int(token) for token in ends if token is not None)}
    looked_at = held_out(context.options, tokenizer, place, tensor_ranks=tensor_ranks)
    if train["method"] in METHODS:
        rows = problems(context.options["data"], "train")
        pairs = pair_batches(rows, tokenizer, train, place)
        kept = len(pairs.samples)
        return Feed(pairs, fingerprint(rows), {"samples": kept, "rows_left_out": len(rows) - kept}, looked_at)
    found = corpus.prepare(context, tokenizer, _hashes(context.options["data"]))
    facts = dict(found.facts)
    data_sha256 = facts.pop("data_sha256")
    batches: Batches | PackedBatches = Batches(found.samples, train, **place)
    if train.get("packing"):
        lengths = found.samples.lengths()
        packs = pack(lengths, int(train["sequence_length"]), seed=int(train["seed"]))
        batches = PackedBatches(found.samples, lengths, packs, train, tensor_ranks=tensor_ranks, **place)
        facts |= {"packs": len(packs), "packing_efficiency": packs.efficiency}
    if context.is_main:
        context.event("data", **facts)
        for warning in corpus.warnings(facts, int(train["sequence_length"])):
            print(f"warning: {warning}", file=sys.stderr, flush=True)
    names = ("samples", "rows_left_out", "rows_cut", "packs", "packing_efficiency")
    return Feed(batches, data_sha256, {name: facts[name] for name in names if name in facts}, looked_at)


def _hashes(data: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the data files by path; ranks share the reading."""
    if data["source"] != "files":
        return {}
    files = [path for split in ("train", "evaluation") for path in data.get(split) or ()]
    return dict(zip(files, hash_files([Path(path) for path in files]), strict=True))
