"""Training and evaluation rows from `options["data"]`: a reasoning-gym task, or files of the user's own.

Used by the train, evaluate and quantize workers, so it needs the standard library alone until a reasoning-gym
task is asked for. The same options give the same problems in the same order in every process.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from launcher.errors import WorkerError

Split = Literal["train", "evaluation"]
Message = dict[str, Any]  # as rows.Row has it: {"role": "system" | "user" | "assistant" | "tool", "content": ...}

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")  # 1,234 is one, "1,2,3" are three
_TRIES_PER_PROBLEM = 20  # a task whose problems repeat more than this is too small to hold data out


@dataclass(frozen=True)
class Problem:
    """One row. `messages` is what the model is given, `answer` what it should write next.

    A row of plain text has no messages; its text is the answer. `entry` is reasoning-gym's own record. Of two
    answers `answer` is the better one and `rejected` the other; `wanted` is a person's verdict on a single answer.
    `tools` are descriptions of what the model may call; `beside` is what the answer holds beside its text: tool_calls,
    reasoning_content. `silent` numbers the assistant's turns of the conversation that are not to be learnt.
    """

    id: str
    messages: tuple[Message, ...]
    answer: str
    task: str = ""
    entry: Mapping[str, Any] = field(default_factory=dict, compare=False)
    rejected: str | None = None
    wanted: bool | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    beside: Mapping[str, Any] = field(default_factory=dict)
    silent: tuple[int, ...] = ()

    @property
    def conversation(self) -> list[Message]:
        """All turns, the wanted answer last: what chat templates take."""
        return [*self.messages, {"role": "assistant", "content": self.answer, **self.beside}]

    @property
    def key(self) -> str:
        """What makes two rows the same: the conversation without the answer, or the text, spaces folded."""
        words = [f"{turn['role']} {turn['content']} {turn.get('tool_calls', '')}" for turn in self.messages]
        words = words or [self.answer]
        return " ".join("\n".join(words).split())


def problems(data: Mapping[str, Any], split: Split) -> list[Problem]:
    """The rows of one split, as `stream` gives them."""
    return list(stream(data, split))


def stream(data: Mapping[str, Any], split: Split, *, verdicts: bool = False) -> Iterator[Problem]:
    """The rows of one split one by one, in a fixed order.

    No training row asks what an evaluation row asks: rows that meet are left out of training (a generator draws
    others instead). Raises WorkerError for an unknown source or task, for options that the task refuses, and for
    a task with too few different problems. Evaluation rows that people found bad are given with `verdicts` alone:
    nobody is scored by how well they repeat a bad answer.
    """
    source = data["source"]
    if source == "reasoning-gym":
        return _generated(data, split)
    if source == "files":
        return _from_files(data, split, verdicts)
    raise WorkerError(f"unknown source {source!r}", where="data.source", hint="reasoning-gym or files")


def score(problem: Problem, text: str) -> float:
    """How right a model's text is, from 0 to 1 (1 is right; some tasks give partial credit below).

    For a number, the last number in the text counts, so that "2 + 3 = 5." is as right as "5" and an untrained
    model is not marked down for its manners. reasoning-gym's own verifier of the task decides; rows from files
    are compared as text, spaces folded.
    """
    answer = _final_answer(text, problem.answer)
    if problem.task:
        return float(_verifier(problem.task)(answer, dict(problem.entry)))
    return float(" ".join(answer.split()) == " ".join(problem.answer.split()))


def tools_of(problem: Problem) -> list[Any] | None:
    """What `apply_chat_template` takes as tools: None, not an empty list, where there are none."""
    return list(problem.tools) or None


def fingerprint(rows: Iterable[Problem]) -> str:
    """SHA-256 over the rows' content and order, for lineage."""
    digest = hashlib.sha256()
    for row in rows:
        add_to(digest, row)
    return digest.hexdigest()


def add_to(digest: hashlib._Hash, row: Problem) -> None:
    """Count a row into a fingerprint."""
    content: list[Any] = [row.conversation]
    content += [part for part in (row.rejected, row.wanted, row.tools, row.silent) if part not in (None, ())]
    digest.update(json.dumps(content, sort_keys=True, ensure_ascii=False).encode() + b"\n")


def _generated(data: Mapping[str, Any], split: Split) -> Iterator[Problem]:
    held_out: set[str] = set()
    for problem in _draw(data, "evaluation", avoid=held_out, distinct=True):
        held_out.add(problem.key)
        if split == "evaluation":
            yield problem
    if split == "train":
        yield from _draw(data, "train", avoid=held_out, distinct=False)


def _draw(data: Mapping[str, Any], split: Split, *, avoid: set[str], distinct: bool) -> Iterator[Problem]:
    """`<split>_size` problems from `<split>_seed` on, without those in `avoid`; `distinct` also drops repeats."""
    task, size, seed = str(data["task"]), int(data[f"{split}_size"]), int(data[f"{split}_seed"])
    dataset = _dataset(
        task, json.dumps(data.get("task_options") or {}, sort_keys=True), seed, size * _TRIES_PER_PROBLEM
    )
    seen = set(avoid)
    found = 0
    for index in range(size * _TRIES_PER_PROBLEM):
        if found == size:
            return
        entry = dataset[index]
        messages = ({"role": "user", "content": str(entry["question"])},)
        problem = Problem(f"{task}:{seed}:{index}", messages, str(entry["answer"]), task, entry)
        if problem.key in seen:
            continue
        if distinct:
            seen.add(problem.key)
        found += 1
        yield problem
    if found < size:
        raise WorkerError(
            f"{task} with these options has too few different problems for {size} in the {split} split",
            where=f"data.{split}_size",
            hint="ask for fewer, or widen data.task_options",
        )


def _dataset(task: str, options: str, seed: int, size: int) -> Any:
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(task, seed=seed, size=size, **json.loads(options))
    except (ValueError, TypeError, AssertionError) as error:
        raise WorkerError(
            f"reasoning-gym refuses task {task!r} with options {options}: {error}",
            where="data.task_options",
            hint="see the task's configuration class in reasoning_gym",
        ) from error


@functools.cache
def _verifier(task: str) -> Any:
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(task)


def _final_answer(text: str, wanted: str) -> str:
    if _NUMBER.fullmatch(wanted.strip()):
        numbers = _NUMBER.findall(text)
        last = numbers[-1].replace(",", "") if numbers else ""
        return wanted.strip() if last == wanted.strip().replace(",", "") else last
    return text.strip()


def _from_files(data: Mapping[str, Any], split: Split, verdicts: bool) -> Iterator[Problem]:
    form = str(data.get("format") or "auto")
    held_out = {_short(row.key) for row in _rows(data, "evaluation", form)} if split == "train" else set()
    for row in _rows(data, split, form):
        if row.wanted is False and split == "evaluation" and not verdicts:
            continue
        if not held_out or _short(row.key) not in held_out:
            yield row


def _short(key: str) -> bytes:
    """A key's hash: evaluation rows are remembered by it, however long they are."""
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def _rows(data: Mapping[str, Any], split: Split, form: str) -> Iterator[Problem]:
    from launcher.rows import placed_rows

    for place, row in placed_rows(data.get(split) or [], form, data.get("columns")):
        name = place.rpartition("/")[2]
        if "rejected" in row:
            yield Problem(name, tuple(row["prompt"]), row["chosen"], rejected=row["rejected"])
        elif "label" in row:
            yield Problem(name, tuple(row["prompt"]), row["completion"], wanted=row["label"])
        elif "messages" in row:
            silent = tuple(index for index, turn in enumerate(row["messages"]) if turn.pop("weight", 1) == 0)
            *before, last = row["messages"]
            yield Problem(
                name,
                tuple(before),
                last["content"],
                tools=tuple(row.get("tools", ())),
                beside={name: value for name, value in last.items() if name not in ("role", "content")},
                silent=tuple(index for index in silent if row["messages"][index]["role"] == "assistant"),
            )
        elif "completion" in row:
            yield Problem(name, ({"role": "user", "content": str(row["prompt"])},), str(row["completion"]))
        else:
            yield Problem(name, (), str(row["text"]))
