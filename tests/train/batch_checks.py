"""Checks of batches and schedules that need torch: batch_checks.py MODEL, run in the train environment."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoTokenizer

from launcher.errors import WorkerError
from launcher.work.corpus import tokenise
from launcher.work.data import Problem
from launcher.work.megatron import process
from launcher.work.megatron.batches import Batches, PackedBatches, order
from launcher.work.megatron.optimizer import learning_rate
from launcher.work.packing import pack
from launcher.work.samples import Sample

TRAIN: dict[str, Any] = {"seed": 5, "global_batch_size": 8, "micro_batch_size": 2, "sequence_length": 16}


def main(model: str) -> None:
    process.prepare()  # batches go to the device, which is the CPU here
    tokenizer = AutoTokenizer.from_pretrained(model)
    answers_alone_are_trained(tokenizer)
    long_texts_are_cut_without_loss(tokenizer)
    rows_without_a_token_to_learn_are_left_out(tokenizer)
    epochs_are_permutations()
    replicas_share_one_global_batch()
    context_ranks_hold_balanced_chunks()
    packed_rows_keep_samples_apart()
    replicas_share_the_packs_of_a_step()
    context_ranks_hold_a_part_of_every_sample()
    rates_follow_their_schedules()


def answers_alone_are_trained(tokenizer: Any) -> None:
    turns = (
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "and 1?"},
    )
    (sample,) = tokenise([Problem("a", turns, "3")], tokenizer, method="sft", sequence_length=200)
    trained = [token for token, wanted in zip(sample.tokens, sample.trained, strict=True) if wanted]
    assert tokenizer.decode(trained) == "2<|im_end|>\n3<|im_end|>\n", tokenizer.decode(trained)
    (whole,) = tokenise([Problem("a", turns, "3")], tokenizer, method="cpt", sequence_length=200)
    assert all(whole.trained)


def long_texts_are_cut_without_loss(tokenizer: Any) -> None:
    text = "abcdefghij" * 5
    samples = tokenise([Problem("t", (), text)], tokenizer, method="cpt", sequence_length=16)
    labels = [token for sample in samples for token in sample.tokens[1:]]
    assert labels == [*tokenizer.encode(text)[1:], tokenizer.eos_token_id]
    assert [sample.id for sample in samples] == ["t", "t#1", "t#2", "t#3"]


def rows_without_a_token_to_learn_are_left_out(tokenizer: Any) -> None:
    long = Problem("long", ({"role": "user", "content": "x" * 100},), "3")
    short = Problem("short", ({"role": "user", "content": "x"},), "3")
    kept = tokenise([long, short], tokenizer, method="sft", sequence_length=64)
    assert [sample.id for sample in kept] == ["short"]
    refused(lambda: tokenise([long], tokenizer, method="sft", sequence_length=64), "none of 1 rows")


def epochs_are_permutations() -> None:
    stream = [index for step in range(10) for index in order(20, seed=3, first=step * 6, size=6)]
    assert sorted(stream[:20]) == sorted(stream[20:40]) == list(range(20))
    assert stream[:20] != stream[20:40]
    assert stream == order(20, seed=3, first=0, size=60)
    assert stream != order(20, seed=4, first=0, size=60)


def replicas_share_one_global_batch() -> None:
    samples = [Sample(str(index), [index] * 5, [True] * 5) for index in range(40)]

    def ids(replica: int, replicas: int, step: int) -> list[str]:
        batches = Batches(
            samples, TRAIN, padding=0, replica=replica, replicas=replicas, context_rank=0, context_ranks=1
        )
        return [name for batch in batches.micro(step) for name in batch.ids]

    for step in range(3):
        assert sorted(ids(0, 1, step)) == sorted(ids(0, 2, step) + ids(1, 2, step))
        assert len(set(ids(0, 1, step))) == TRAIN["global_batch_size"]


def context_ranks_hold_balanced_chunks() -> None:
    samples = [Sample("a", list(range(17)), [True] * 17) for _ in range(8)]
    parts = []
    for rank in range(2):
        batches = Batches(samples, TRAIN, padding=99, replica=0, replicas=1, context_rank=rank, context_ranks=2)
        batch = next(batches.micro(0))
        assert torch.equal(batch.tokens, batch.positions)
        assert torch.equal(batch.labels, batch.tokens + 1)
        parts.append(batch.tokens[0].tolist())
    assert parts == [[0, 1, 2, 3, 12, 13, 14, 15], [4, 5, 6, 7, 8, 9, 10, 11]]


def packed(lengths: list[int], **place: int) -> tuple[list[Sample], PackedBatches]:
    """Samples of these lengths, packed into rows of 16 slots; tokens tell samples and places apart."""
    samples = [
        Sample(str(number), [100 * number + at for at in range(length + 1)], [at % 2 == 0 for at in range(length + 1)])
        for number, length in enumerate(lengths, start=1)
    ]
    counts = array("I", lengths)
    where = {"replica": 0, "replicas": 1, "context_rank": 0, "context_ranks": 1, "tensor_ranks": 1, **place}
    batches = PackedBatches(samples, counts, pack(counts, 16, seed=1), TRAIN, padding=7, **where)
    return samples, batches


LENGTHS = [3, 9, 16, 5, 11, 2, 8, 8, 1, 14, 4, 6, 10, 12, 7, 15]


def packed_rows_keep_samples_apart() -> None:
    samples, batches = packed(LENGTHS)
    assert (batches.sequence_length, batches.micro_batch_size) == (32, 1), "two packs of 16 behind each other"
    seen: list[str] = []
    for batch in batches.micro(0):
        assert batch.tokens.shape == (1, 32)
        bounds = batch.packed.cu_seqlens_q.tolist()
        assert (bounds[0], bounds[-1], batch.packed.max_seqlen_q <= 32) == (0, 32, True)
        for name, start, end in zip(batch.ids, bounds, bounds[1:], strict=False):
            sample = samples[int(name) - 1]
            assert batch.tokens[0, start:end].tolist() == sample.tokens[:-1]
            assert batch.labels[0, start:end].tolist() == sample.tokens[1:]
            assert batch.loss_mask[0, start:end].tolist() == [float(one) for one in sample.trained[1:]]
            assert batch.positions[0, start:end].tolist() == list(range(sample.length))
            seen.append(name)
        left = sum(samples[int(name) - 1].length for name in batch.ids)
        assert batch.loss_mask[0, left:].sum() == 0
        assert batch.tokens[0, left:].tolist() == [7] * (32 - left)
    assert len(seen) == len(set(seen)) == sum(len(row.samples) for row in batches.of_step(0))


def replicas_share_the_packs_of_a_step() -> None:
    for step in range(3):
        whole = sorted(name for batch in packed(LENGTHS)[1].micro(step) for name in batch.ids)
        parts = [
            name
            for replica in range(2)
            for batch in packed(LENGTHS, replica=replica, replicas=2)[1].micro(step)
            for name in batch.ids
        ]
        assert sorted(parts) == whole


def context_ranks_hold_a_part_of_every_sample() -> None:
    _, alone = packed(LENGTHS)
    parts = [packed(LENGTHS, context_rank=rank, context_ranks=2, tensor_ranks=2)[1] for rank in range(2)]
    assert parts[0].sequence_length % 4 == 0
    for whole, *halves in zip(alone.micro(0), *(part.micro(0) for part in parts), strict=True):
        assert all(half.ids == whole.ids for half in halves), "the same packs, whatever the layout"
        assert all(end % 4 == 0 for end in halves[0].packed.cu_seqlens_q.tolist())
        for name in ("tokens", "labels"):  # where the loss counts
            mine = [
                token
                for half in halves
                for token, counts in zip(getattr(half, name)[0].tolist(), half.loss_mask[0], strict=True)
                if counts
            ]
            counted = getattr(whole, name)[0][whole.loss_mask[0] > 0].tolist()
            assert sorted(mine) == sorted(counted)


def rates_follow_their_schedules() -> None:
    def rates(schedule: str) -> list[float]:
        train = {"learning_rate": 1.0, "minimum_learning_rate": 0.1, "warmup_steps": 2, "decay_steps": 4}
        return [round(learning_rate({**train, "schedule": schedule}, step, 10), 4) for step in range(10)]

    assert rates("constant") == [0.5] + [1.0] * 9
    assert rates("wsd") == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.775, 0.55, 0.325]
    assert rates("linear") == [0.5, 1.0, 1.0, 0.8875, 0.775, 0.6625, 0.55, 0.4375, 0.325, 0.2125]
    assert rates("cosine")[2] == 1.0
    assert rates("cosine")[6] == 0.55
    assert learning_rate({"learning_rate": 1.0, "schedule": "cosine"}, 0, 1) == 1.0


def refused(call: Callable[[], object], message: str) -> None:
    found = ""
    try:
        call()
    except WorkerError as error:
        found = str(error)
    assert message in found, f"expected {message!r}, found {found!r}"


if __name__ == "__main__":
    main(sys.argv[1])
