"""Where a model lies: a folder, the site's models, the Hugging Face cache; or only known by its facts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from launcher.errors import Fault, InputError
from launcher.models.facts import ModelFacts, from_config

_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")


@dataclass(frozen=True)
class FoundModel:
    """A model's facts, and its folder where it is already on disk."""

    facts: ModelFacts
    path: Path | None
    source: str  # path, models_dir, hf_cache or table
    chat_template: str = ""  # what a recipe gives instead of the model's own

    @property
    def writes_chats(self) -> bool:
        """False where the folder's tokenizer is known to have no chat template and the recipe gives none."""
        if self.chat_template or self.path is None or not (config := self.path / "tokenizer_config.json").is_file():
            return True
        if any((self.path / name).exists() for name in _TEMPLATE_FILES):
            return True
        try:
            return bool(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))
        except (OSError, ValueError, AttributeError):
            return True  # whoever loads it will say what is wrong


@cache
def _table() -> dict[str, dict[str, Any]]:
    table = json.loads(Path(__file__).with_name("table.json").read_text(encoding="utf-8"))
    return dict(table)


@cache
def _known() -> tuple[ModelFacts, ...]:
    found = []
    for name, entry in _table().items():
        fetch = entry.get("fetch")
        package = f"{fetch['package']}=={fetch['version']}" if fetch else ""
        facts = from_config(
            entry["config"], name=name, hf_id=entry["hf_id"], licence=entry["licence"], package=package, where=name
        )
        found.append(facts)
    return tuple(found)


def known_models() -> list[ModelFacts]:
    """The models that swiftlaunch knows without a file, in the table's order."""
    return list(_known())


def find_model(name_or_path: str, models_dir: Path, hf_home: Path, *, revision: str | None = None) -> FoundModel:
    """The model of that name, Hugging Face id or folder.

    Order: a folder, `models_dir`/NAME, the Hugging Face cache below `hf_home`, the shipped table (its `path` is None:
    the model is not on this machine). A `revision` is looked for in the cache alone: a folder does not say of which
    one it is. Raises InputError for unknown names, unusable folders and revisions that are not there.
    """
    known = _named(name_or_path)
    if revision is not None:
        return _of_revision(name_or_path, known, hf_home, revision)
    if name_or_path.startswith(("/", "./", "../", "~")) or (known is None and _is_model(Path(name_or_path))):
        return FoundModel(_read(Path(name_or_path).expanduser(), known), Path(name_or_path).expanduser(), "path")
    for name in dict.fromkeys([name_or_path, *([known.name, known.hf_id] if known else [])]):
        if _is_model(folder := models_dir / name):
            return FoundModel(_read(folder, known, name), folder, "models_dir")
    for hf_id in dict.fromkeys([name_or_path, *([known.hf_id] if known else [])]):
        if (snapshot := _snapshot(hf_home, hf_id)) is not None:
            return FoundModel(_read(snapshot, known, hf_id), snapshot, "hf_cache")
    if known is not None:
        return FoundModel(known, None, "table")
    raise InputError([_unknown(name_or_path, models_dir, hf_home)])


def _of_revision(name_or_path: str, known: ModelFacts | None, hf_home: Path, revision: str) -> FoundModel:
    hf_id = known.hf_id if known else name_or_path
    snapshot = None if hf_id.startswith(("/", ".", "~")) else _snapshot(hf_home, hf_id, revision)
    if snapshot is None:
        message = (
            f"{revision!r} of {name_or_path} is not in {hf_home / 'hub'}; of other folders the revision is unknown"
        )
        hint = f"run: hf download {hf_id} --revision {revision}, or remove revision"
        raise InputError([Fault("model.revision", message, hint)])
    return FoundModel(_read(snapshot, known, hf_id), snapshot, "hf_cache")


def _named(name: str) -> ModelFacts | None:
    lower = name.lower()
    return next((facts for facts in _known() if lower in (facts.name, facts.hf_id.lower())), None)


def _is_model(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file()
    except (OSError, ValueError):
        return False


def _snapshot(hf_home: Path, hf_id: str, revision: str = "") -> Path | None:
    """The cached snapshot of a branch, tag or commit; without one what the main branch names, else the newest."""
    root = hf_home / "hub" / f"models--{hf_id.replace('/', '--')}"
    try:
        commit = (root / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    if commit and "/" not in commit and _is_model(root / "snapshots" / commit):
        return root / "snapshots" / commit
    if revision:
        return None
    try:
        folders = [folder for folder in (root / "snapshots").iterdir() if _is_model(folder)]
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    return max(folders, key=lambda folder: (folder.stat().st_mtime, folder.name), default=None)


def _read(folder: Path, known: ModelFacts | None, name: str = "") -> ModelFacts:
    """The facts of a folder; name, id, licence and package of a known model are kept."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = "holds no config.json" if folder.is_dir() else "no such folder"
        raise InputError([Fault(str(folder), what, "a Hugging Face model folder is needed")]) from None
    except OSError as error:
        raise InputError([Fault(str(file), f"cannot be read: {error.strerror}")]) from None
    except ValueError as error:
        raise InputError([Fault(str(file), f"is not JSON: {error}")]) from None
    if not isinstance(config, Mapping):
        raise InputError([Fault(str(file), "is not a JSON object")])
    facts = from_config(config, name=name.rsplit("/", 1)[-1].lower() or folder.resolve().name.lower(), where=str(file))
    if known is None:
        return facts
    return replace(facts, name=known.name, hf_id=known.hf_id, licence=known.licence, package=known.package)


def _unknown(name: str, models_dir: Path, hf_home: Path) -> Fault:
    names = {facts.name: facts.name for facts in _known()} | {facts.hf_id.lower(): facts.hf_id for facts in _known()}
    close = get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    places = f"looked in {models_dir}, {hf_home / 'hub'} and the table of known models"
    hint = f"did you mean {' or '.join(names[one] for one in close)}?" if close else "see `swiftlaunch models`"
    return Fault("model", f"{name!r} is not a known model; {places}", hint)
