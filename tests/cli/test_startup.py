"""Nothing heavy is imported before it is needed, and the start costs little."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from launcher.record import write_json
from launcher.rundir import RunDir

pytestmark = pytest.mark.unit

HEAVY = ("pydantic", "rich", "jinja2", "torch", "tomlkit", "launcher.recipe", "launcher.view", "submitit")
AT_MOST = 8.0  # times the CPU seconds of `python -c pass`
PROGRAM = "from launcher.cli import main; main()"  # what the installed script does
SHOW_MODULES = """
import sys
from launcher.cli import run
code = run({words!r})
print("\\n".join(sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "words", [["--help"], ["runs", "--json"], ["status", "latest", "--json"], ["sites", "--json"]], ids=" ".join
)
def test_no_heavy_module_is_imported(words: list[str], run_dir: RunDir) -> None:
    code = SHOW_MODULES.format(words=words)
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    modules = finished.stderr.split()
    assert "click" in modules
    assert [name for name in HEAVY if name in modules] == []


def test_importing_the_command_line_imports_no_command() -> None:
    code = "import sys, launcher.cli; print('\\n'.join(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout.split()
    from launcher.cli import COMMANDS

    assert [name for name in COMMANDS if f"launcher.cli.{name}" in modules] == []


@pytest.mark.parametrize("words", [["--help"], ["runs", "--json"]], ids=" ".join)
def test_start_costs_little(words: list[str], run_dir: RunDir) -> None:
    for script in run_dir.script("*").parent.glob("*.sh"):
        write_json(run_dir.result(script.stem), {})  # the run is done: no scheduler is asked
    bare = cpu_seconds([sys.executable, "-c", "pass"])
    ours = cpu_seconds([sys.executable, "-c", PROGRAM, *words])
    assert ours <= AT_MOST * bare, f"{ours:.3f} s is {ours / bare:.1f} times {bare:.3f} s"


def test_runs_json_is_what_the_index_holds(run_dir: RunDir) -> None:
    words = [sys.executable, "-m", "launcher", "runs", "--json"]
    rows = json.loads(subprocess.run(words, capture_output=True, text=True, timeout=60).stdout)
    assert [(row["run_id"], row["state"]) for row in rows] == [(run_dir.root.name, "INCOMPLETE")]


def cpu_seconds(words: list[str]) -> float:
    """User and system seconds of a process, the least of several: what it costs on a quiet machine."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(7))
