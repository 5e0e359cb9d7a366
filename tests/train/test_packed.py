"""Packing changes no result: what a step of packed rows learns is what the same samples teach in rows of their own."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import finish_together

pytestmark = pytest.mark.layout

SAMPLES, PACKS = 24, 12
SETTINGS: dict[str, Any] = {"tuner": "full", "learning_rate": 1e-3, "steps": 3, "sequence_length": 128}
TP2: dict[str, Any] = {"tensor": 2}
TP2_SP: dict[str, Any] = {"tensor": 2, "sequence_parallel": True}
PP2: dict[str, Any] = {"pipeline": 2}
VPP2: dict[str, Any] = {"pipeline": 2, "virtual_pipeline": 2}
CP2: dict[str, Any] = {"context": 2}
EP2: dict[str, Any] = {"expert": 2}
DP2: dict[str, Any] = {}


LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "llama": [TP2, TP2_SP, PP2, DP2, CP2],
    "qwen3": [VPP2],
    "moe": [EP2],
    "deepseek_v3": [CP2],
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_packed_rows_teach_what_their_samples_teach(new_run: Callable[..., Any], kind: str, tmp_path: Path) -> None:
    settings = SETTINGS | {"data": rows_of_many_lengths(tmp_path / "rows.jsonl")}
    packing: dict[str, Any] = {"packing": True, "global_batch_size": PACKS, "micro_batch_size": 2}
    # every step is the whole data, so that both have the same samples in it
    alone = new_run(kind, global_batch_size=SAMPLES, **settings)
    packed = [new_run(kind, **settings, **packing)]
    finish_together([alone, *packed])
    packed += [new_run(kind, ranks=2, layout=layout, **settings, **packing) for layout in LAYOUTS[kind]]
    finish_together(packed[1:])
    assert alone.losses()[-1] < alone.losses()[0] - 0.1, "it must learn, or equal losses prove nothing"
    found = [
        (
            max(abs(a - b) for a, b in zip(run.losses(), alone.losses(), strict=True)),
            max(abs(a - b) / b for a, b in zip(run.norms(), alone.norms(), strict=True)),
        )
        for run in packed
    ]
    print(found)
    assert all(loss < 1e-5 and norm < 1e-5 for loss, norm in found), found
    assert all(run.events("data")[-1]["packs"] == PACKS for run in packed)
    assert 0.9 < packed[0].result()["metrics"]["packing_efficiency"] < 0.93


def rows_of_many_lengths(path: Path) -> dict[str, Any]:
    """Rows of 26 to 94 tokens: a character is a token, and the template takes 20."""
    letters = string.ascii_letters + string.digits
    rows = []
    for number in range(SAMPLES):
        text = "".join(letters[(number * 7 + at * at) % len(letters)] for at in range(6 + number * 17 % 71))
        rows.append({"prompt": text[:3], "completion": text[3:]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": "files", "train": [str(path)], "evaluation": []}
