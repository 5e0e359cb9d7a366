"""Score a model on the evaluation rows: greedy answers checked by the task, and perplexity of the wanted answers.

One process. Result: accuracy (share of wholly right answers) with its standard error, perplexity per token of the
wanted answers, and a JSON line per row in `<artifact>/items.jsonl`.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import WorkerError
from launcher.record import write_text
from launcher.work.context import Context
from launcher.work.data import Problem, problems, score, tools_of
from launcher.work.models import load_for_inference, load_tokenizer, model_folder, share_cores


@dataclass
class Item:
    """One row's outcome. `score` is None for plain text, which asks nothing; `nll` in nats over `tokens` tokens."""

    problem: Problem
    output: str = ""
    score: float | None = None
    nll: float | None = None
    tokens: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.problem.id,
            "messages": list(self.problem.messages),
            "answer": self.problem.answer,
            "output": self.output,
            "score": self.score,
            "answer_nll": self.nll,
            "answer_tokens": self.tokens,
        }


def run(context: Context) -> None:
    """Evaluate `options.model` as `options.evaluate` says."""
    started = time.monotonic()
    share_cores()
    options = context.options["evaluate"]
    folder = model_folder(context)
    rows = problems(context.options["data"], "evaluation")[: options.get("limit")]
    if not rows:
        raise WorkerError("there are no evaluation rows", where="data.evaluation")
    tokenizer = load_tokenizer(folder, context.options["model"].get("chat_template", ""))
    model = load_for_inference(folder)
    context.raise_if_stopping()

    items = [Item(row) for row in rows]
    asked = [item for item in items if item.problem.messages and item.problem.answer]  # a call of a tool has no text
    wanted = items if options.get("perplexity") else []
    total = len(asked) + len(wanted)
    context.progress(0, total, "rows")
    done = 0
    for batch in _batches(asked, tokenizer, int(options["batch_size"])):
        for item, text in zip(
            batch, generate(context, model, tokenizer, batch, int(options["max_new_tokens"])), strict=True
        ):
            item.output, item.score = text, score(item.problem, text)
        done += len(batch)
        context.progress(done, total, "rows")
    for item in wanted:
        context.raise_if_stopping()
        item.nll, item.tokens = answer_nll(model, tokenizer, item.problem)
        done += 1
    context.progress(total, total, "rows")

    metrics = summarize(items) | {"seconds": round(time.monotonic() - started, 1)}
    for name, value in metrics.items():
        context.event("metric", name=name, value=value)
    path = context.files.artifact(context.stage.name) / "items.jsonl"
    write_items(path, items)
    context.finish(metrics=metrics, artifacts={"items": str(path), "model": str(folder)})


def summarize(items: Sequence[Item]) -> dict[str, Any]:
    """The metrics: accuracy and its standard error (sample deviation / sqrt n), perplexity and its token count.

    accuracy is the share of rows that are wholly right (score 1); mean_score also counts a task's partial credit.
    """
    metrics: dict[str, Any] = {"problems": len(items)}
    scores = [item.score for item in items if item.score is not None]
    if scores:
        right = [float(value == 1.0) for value in scores]
        metrics["accuracy"] = statistics.fmean(right)
        metrics["accuracy_stderr"] = statistics.stdev(right) / math.sqrt(len(right)) if len(right) > 1 else None
        metrics["mean_score"] = statistics.fmean(scores)
    tokens = sum(item.tokens for item in items)
    if tokens:
        nll = math.fsum(item.nll for item in items if item.nll is not None) / tokens
        metrics["perplexity"] = math.exp(nll) if nll < 700 else None  # JSON has no infinity
        metrics["perplexity_tokens"] = tokens
    return metrics


def write_items(path: Path, items: Sequence[Item]) -> None:
    """A JSON line per row, in the order of the data."""
    write_text(path, "".join(json.dumps(item.as_json(), ensure_ascii=False) + "\n" for item in items))


def generate(context: Context, model: Any, tokenizer: Any, items: Sequence[Item], max_new_tokens: int) -> list[str]:
    """Greedy answers to a batch of rows. Raises Requeue soon after a stop was asked for."""
    import torch
    from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

    class StopAsked(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return torch.full((input_ids.shape[0],), context.stop_requested, device=input_ids.device)

    inputs = tokenizer(
        [_prompt(tokenizer, item.problem) for item in items],
        return_tensors="pt",
        padding=True,
        add_special_tokens=False,
    )
    inputs = inputs.to(model.device)
    with torch.inference_mode():
        outputs = model.generate(
            **inputs,
            # a configuration of our own: the folder's may ask for sampling
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=_end_tokens(model, tokenizer),
                pad_token_id=tokenizer.pad_token_id,
            ),
            stopping_criteria=StoppingCriteriaList([StopAsked()]),
        )
    context.raise_if_stopping()
    answers = outputs[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def answer_nll(model: Any, tokenizer: Any, problem: Problem) -> tuple[float, int]:
    """Negative log-likelihood in nats of the wanted answer's tokens, its end of turn included, and their number."""
    import torch

    if problem.messages:
        prompt = tokenizer(_prompt(tokenizer, problem), add_special_tokens=False)["input_ids"]
        text = tokenizer.apply_chat_template(problem.conversation, tools=tools_of(problem), tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids[: len(prompt)] != prompt:
            raise WorkerError(
                "the chat template writes the prompt in another way when an answer follows it",
                where="evaluate.perplexity",
                hint="set perplexity = false",
            )
        first = len(prompt)
    else:
        ids = tokenizer(problem.answer)["input_ids"]
        first = 1  # nothing precedes the first token
    if len(ids) <= first:
        return 0.0, 0
    tokens = torch.tensor([ids], device=model.device)
    with torch.inference_mode():
        logits = model(tokens).logits[0, first - 1 : -1].float()
        nll = torch.nn.functional.cross_entropy(logits, tokens[0, first:], reduction="sum")
    return float(nll), len(ids) - first


def _prompt(tokenizer: Any, problem: Problem) -> str:
    turns = list(problem.messages)
    return str(
        tokenizer.apply_chat_template(turns, tools=tools_of(problem), tokenize=False, add_generation_prompt=True)
    )


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    named = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    return sorted(token for token in ends if token is not None)


def _batches(items: Sequence[Item], tokenizer: Any, size: int) -> Iterator[list[Item]]:
    # rows of like length together: what is padded is computed too
    ordered = sorted(items, key=lambda item: len(_prompt(tokenizer, item.problem)))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
