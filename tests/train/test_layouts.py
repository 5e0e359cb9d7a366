"""Every layout computes the same training: losses and gradient norms equal those of one process.

Losses alone would not do: Adam with clipping hides gradients of a wrong scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.layout

LORA: dict[str, Any] = {"tuner": "lora"}
FULL: dict[str, Any] = {"tuner": "full", "learning_rate": 1e-3, "steps": 4}
TP2_SP: dict[str, Any] = {"tensor": 2, "sequence_parallel": True}
PP2: dict[str, Any] = {"pipeline": 2}
VPP2: dict[str, Any] = {"pipeline": 2, "virtual_pipeline": 2}
CP2: dict[str, Any] = {"context": 2}
EP2: dict[str, Any] = {"expert": 2}
DP2: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("kind", "settings", "layouts"),
    [
        pytest.param("llama", LORA, [TP2_SP, PP2, VPP2, DP2, CP2], id="llama-lora"),
        pytest.param("qwen3", FULL, [TP2_SP, VPP2], id="qwen3-full"),
        pytest.param("llama", FULL, [PP2, DP2], id="llama-full-tied"),
        pytest.param("moe", LORA, [EP2], id="moe-lora"),
    ],
)
def test_layouts_agree_with_one_process(
    new_run: Callable[..., Any], kind: str, settings: dict[str, Any], layouts: list[dict[str, Any]]
) -> None:
    alone = new_run(kind, **settings).finish()
    assert alone.losses()[-1] < alone.losses()[0] - 0.1, "it must learn, or equal losses prove nothing"
    found = {}
    for layout in layouts:
        run = new_run(kind, ranks=2, layout=layout, **settings).finish()
        found[str(layout)] = (
            max(abs(a - b) for a, b in zip(run.losses(), alone.losses(), strict=True)),
            max(abs(a - b) / b for a, b in zip(run.norms(), alone.norms(), strict=True)),
        )
    print(found)
    assert all(loss < 1e-4 and norm < 1e-3 for loss, norm in found.values()), found


def test_bf16_with_two_ranks_follows_fp32(new_run: Callable[..., Any]) -> None:
    exact = new_run(steps=3).finish()
    rounded = new_run(ranks=2, layout=PP2, precision="bf16", steps=3).finish()
    assert rounded.losses() == pytest.approx(exact.losses(), abs=0.05)
    assert rounded.norms() == pytest.approx(exact.norms(), rel=0.1)


def test_a_row_that_breaks_the_loss_is_named(new_run: Callable[..., Any], tmp_path: Any) -> None:
    run = new_run(
        ranks=2, layout=PP2, learning_rate=1e10, schedule="constant", warmup_steps=0, gradient_clip=0, steps=50
    )
    attempt = run.start()
    codes = attempt.wait()
    assert codes == [78, 78], attempt.text()
    assert "samples: chain_sum:7:" in attempt.text()
