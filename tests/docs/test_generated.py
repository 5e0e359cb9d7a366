"""The generated pages of docs/ are what the code says now; the written ones point to things that exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


def generated() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.pages())


def test_generated_pages_are_current() -> None:
    for name, text in generated().items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, f"docs/{name} is old: run `make docs`"


def test_every_section_of_the_schema_is_in_the_reference() -> None:
    page = generated()["recipe.md"]
    for section in (
        "model",
        "data",
        "train",
        "train.layout",
        "train.lora",
        "train.checkpoint",
        "resources.serve",
        "sweep",
    ):
        assert f"## [{section}]" in page
    assert "| `learning_rate` |" in page


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
