"""Chat templates: a model without one is refused where rows are conversations, and a recipe can give one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import launcher.models
from launcher.errors import InputError
from launcher.plan import Plan
from launcher.prepare import prepare
from launcher.work.folders import give_template

pytestmark = pytest.mark.unit

TRAIN = "[train]\nsteps = 2\nglobal_batch_size = 2\nsequence_length = 64\nlearning_rate = 1e-4\n"
Planned = Callable[..., Plan]


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """The plan of a recipe over a model folder whose tokenizer has this template ("" for none)."""
    table = json.loads((Path(launcher.models.__file__).parent / "table.json").read_text())
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(table["smollm2-135m-instruct"]["config"]))
    (tmp_path / "chats.jsonl").write_text('{"prompt": "1 + 1?", "completion": "2"}\n')
    (tmp_path / "texts.jsonl").write_text('{"text": "Once upon a time."}\n')

    def plan(rest: str, *, template: str = "", data: str = "chats", given: str = "") -> Plan:
        (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": template} if template else {}))
        recipe = tmp_path / "recipe.toml"
        model_and_data = f'[model]\npath = "model"\n{given}\n[data]\nsource = "files"\ntrain = ["{data}.jsonl"]\n'
        recipe.write_text(f'name = "test"\n{model_and_data}{rest}')
        return prepare(recipe, site_name="local", home=tmp_path, environ={}).plan

    return plan


def test_conversations_need_a_template(planned: Planned) -> None:
    with pytest.raises(InputError, match="its tokenizer has no chat template"):
        planned(TRAIN)
    planned(TRAIN, template="{{ messages }}")
    planned(TRAIN, data="texts")


def test_a_file_beside_the_tokenizer_will_do(planned: Planned, tmp_path: Path) -> None:
    (tmp_path / "model/chat_template.jinja").write_text("{{ messages }}")
    planned(TRAIN)


def test_the_recipes_template_goes_to_every_stage_on_the_base_model(planned: Planned, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    plan = planned(TRAIN, given='chat_template = "own.jinja"')
    assert [stage.options["model"].get("chat_template") for stage in plan.stages] == ["{{ messages[0].content }}"] * 2
    assert plan.recipe["model"]["chat_template"] == str(tmp_path / "own.jinja")


@pytest.mark.parametrize(("text", "reason"), [(None, "cannot be read: No such file"), (" \n", "is empty")])
def test_a_template_that_cannot_be_used(planned: Planned, tmp_path: Path, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / "own.jinja").write_text(text)
    with pytest.raises(InputError, match=reason) as refusal:
        planned(TRAIN, given='chat_template = "own.jinja"')
    assert refusal.value.faults[0].where.endswith("recipe.toml:4 model.chat_template")


def test_a_server_takes_the_folders_own_template(planned: Planned, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    with pytest.raises(InputError, match="takes the template of the model's folder"):
        planned("[serve]", template="{{ messages }}", given='chat_template = "own.jinja"')
    planned(TRAIN + "[serve]", template="{{ messages }}", given='chat_template = "own.jinja"')


def test_packing_is_for_single_sequences(planned: Planned) -> None:
    assert planned(TRAIN + "packing = true", template="{{ messages }}").stage("train").options["train"]["packing"]
    with pytest.raises(InputError, match='is for cpt and sft, not "dpo"'):
        planned(TRAIN + 'packing = true\nmethod = "dpo"', template="{{ messages }}")


def test_a_given_template_replaces_the_folders_own(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "old", "model_max_length": 8}')
    give_template(tmp_path, "")
    assert "old" in (tmp_path / "tokenizer_config.json").read_text()
    give_template(tmp_path, "new")
    assert (tmp_path / "chat_template.jinja").read_text() == "new"
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"model_max_length": 8}
