"""Model folders: written beside their final name and renamed, so a folder that has the name is whole."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from launcher.record import read_json, write_json, write_text

# a PEFT adapter's files, as training leaves them and export reads them
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def fresh_beside(target: Path) -> Path:
    """An empty folder beside `target`, on the same file system. What a killed attempt left there is removed."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def publish(part: Path, target: Path) -> None:
    """Give a finished folder its name. An older folder of that name makes way first."""
    readable = part.stat().st_mode & 0o666
    for path in part.rglob("*"):  # safetensors writes 0600, but colleagues may read what they may list
        if path.is_file():
            path.chmod(readable)
    if target.exists():
        old = fresh_beside(target.with_name(f"{target.name}.old"))
        os.rename(target, old / target.name)
        os.rename(part, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(part, target)


def give_template(folder: Path, text: str) -> None:
    """Put a chat template into a model folder in place of its own; "" leaves that as it is."""
    if not text:
        return
    write_text(folder / "chat_template.jinja", text)
    (folder / "chat_template.json").unlink(missing_ok=True)
    config = read_json(folder / "tokenizer_config.json")
    if config and config.pop("chat_template", None):
        write_json(folder / "tokenizer_config.json", config)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, by name."""
    return sorted(folder.glob("*.safetensors"))


def weights_mib(folder: Path) -> float:
    """Size of the weights on disk in MiB."""
    return sum(path.stat().st_size for path in weight_files(folder)) / 2**20


def weights_sha256(folder: Path) -> str:
    """One hash of all weight files of a folder, in the order of their names."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        _feed(digest, path)
    return digest.hexdigest()


def sha256_of(file: Path) -> str:
    digest = hashlib.sha256()
    _feed(digest, file)
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, file: Path) -> None:
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
