"""Rows of agents: tools, calls of tools, and messages that are not learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.datafiles import BadRow
from launcher.dataset import check_files
from launcher.rows import Shape
from launcher.work.data import problems

pytestmark = pytest.mark.unit

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
ASKED = {"role": "user", "content": "Rain in Oslo?"}
CALLS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"at": "Oslo"}'}}],
}
OUTPUT = {"role": "tool", "name": "weather", "tool_call_id": "c1", "content": ""}
ANSWER = {"role": "assistant", "content": "No."}


def row(*turns: Any, **more: Any) -> dict[str, Any]:
    return Shape("auto", None).row({"messages": list(turns), **more})


def test_calls_and_outputs_of_tools_are_kept_for_the_chat_template() -> None:
    found = row(ASKED, CALLS, OUTPUT, ANSWER, tools=json.dumps([WEATHER]))
    assert found["tools"] == [WEATHER]
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"at": "Oslo"}}}
    assert found["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert found["messages"][2] == {"role": "tool", "content": "", "name": "weather", "tool_call_id": "c1"}


@pytest.mark.parametrize("flag", [{"weight": 0}, {"loss": False}, {"train": False}])
def test_a_message_can_be_left_out_of_the_loss(flag: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    turns = [ASKED, {**ANSWER, **flag}, ASKED, {**ANSWER, "weight": 1}]
    file.write_text(json.dumps({"messages": turns}) + "\n")
    (problem,) = problems({"source": "files", "train": [str(file)], "evaluation": []}, "train")
    assert problem.silent == (1,)
    assert problem.conversation == [ASKED, ANSWER, ASKED, ANSWER], "no template sees the flags"


def test_a_call_can_be_what_is_learnt(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": [ASKED, CALLS], "tools": [WEATHER]}) + "\n")
    (problem,) = problems({"source": "files", "train": [str(file)], "evaluation": []}, "train")
    assert problem.answer == ""
    assert problem.conversation[-1]["tool_calls"][0]["function"]["arguments"] == {"at": "Oslo"}
    assert problem.tools == (WEATHER,)
    report = check_files([file])
    assert (report.rows, report.faults) == (1, ())
    assert report.characters.largest > len("user\nRain in Oslo?\nassistant\n") + 50, "descriptions and calls count"


@pytest.mark.parametrize(
    ("turns", "more", "reason"),
    [
        ([ASKED, {**ANSWER, "weight": 0.5}], {}, "weight of message 2 is 0.5, not 0 or 1"),
        ([ASKED, {**ANSWER, "weight": 0}], {}, "has no message to learn"),
        ([{**ASKED, "loss": True}, ANSWER], {}, "message 1 is the user's and cannot be learnt"),
        ([ASKED, {**CALLS, "tool_calls": [{"function": {}}]}], {}, "tool_calls of message 2 names no function"),
        ([ASKED, {**CALLS, "tool_calls": "weather"}], {}, "tool_calls of message 2 is a text, not a list"),
        (
            [ASKED, {**CALLS, "tool_calls": [{"function": {"name": "weather", "arguments": "Oslo"}}]}],
            {},
            "arguments of weather in message 2 are not an object",
        ),
        ([ASKED, {"role": "assistant", "content": None}], {}, "content of message 2 is null, not a text"),
        ([{**ASKED, "content": ""}, ANSWER], {}, "content of message 1 is empty"),
        ([ASKED, ANSWER], {"tools": "weather"}, "tools is not a list"),
    ],
)
def test_what_cannot_be_understood_is_refused(turns: list[Any], more: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        row(*turns, **more)
