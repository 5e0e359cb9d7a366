"""A local site in a temporary folder, and small wheels to install."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.sites import Site, load_site


@pytest.fixture
def make_site(tmp_path: Path) -> Callable[[str], Site]:
    """A local site with these environments (TOML) and all its folders in the test's."""

    def make(environments: str) -> Site:
        path = tmp_path / "tiny.toml"
        path.write_text(
            f'scheduler = "local"\nruns_dir = "{tmp_path}/runs"\nmodels_dir = "{tmp_path}/models"\n'
            f'environments_dir = "{tmp_path}/envs"\n[node]\ncpus = 1\nmemory = "1G"\n[environments]\n{environments}\n',
            encoding="utf-8",
        )
        return load_site(path, tmp_path)

    return make


@pytest.fixture
def locked_site(tmp_path: Path, make_site: Callable[[str], Site]) -> Callable[[str], Site]:
    """A site whose train environment is built from this lock text."""

    def make(lock: str) -> Site:
        (tmp_path / "lock.txt").write_text(lock, encoding="utf-8")
        return make_site(f'train = {{ kind = "locked", lock = "{tmp_path}/lock.txt" }}')

    return make


def write_wheel(folder: Path, name: str) -> None:
    """A pure wheel with one module."""
    version = "1.0"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels (apple, pear) that is pip's only source."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("apple", "pear"):
        write_wheel(folder, name)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package registry that refuses every connection, and nothing cached."""
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "1")
