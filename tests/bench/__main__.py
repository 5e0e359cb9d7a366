"""What swiftlaunch costs beside the commands that it calls: `make bench`. Writes docs/benchmarks.md.

Times are of one machine on one day, so what counts are ratios: both sides are measured in turn within one run, and
medians are compared. Calls of Slurm's commands are counted by wrappers before them on PATH; they are exact.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from launcher.prepare import prepare
from launcher.rundir import RunDir
from launcher.submission import submit
from tests.bench.page import PAGE, machine, put, sections, table
from tests.chain.conftest import GOOD
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import ClusterUser

STAGES = ("baseline", "train", "export", "evaluate", "serve")
FIVE_STAGES = GOOD.replace("limit = 2", "limit = 2\nbaseline = true").replace(
    '[quantize]\nmethod = "gptq"\ngroup_size = 32\n', ""
)
POINTS = 1000
SWEEP = FIVE_STAGES.replace('[serve]\nprompt = "hello"\n', "") + (
    f'[sweep]\nparameters."train.seed" = {list(range(POINTS))}\nconcurrency = 50\n'
)
PROGRAMS = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo", "sacctmgr", "sshare")
COUNTING = """\
#!/bin/bash
case " $* " in
*" --test-only "*) echo "${0##*/} --test-only" >>"$CALLS" ;;
*) echo "${0##*/}" >>"$CALLS" ;;
esac
PATH=${PATH#*:} # without this folder
exec "${0##*/}" "$@"
"""


class Cost(NamedTuple):
    """Seconds of one measurement."""

    wall: float
    cpu: float  # of all processes that were waited for


class Bench:
    """A cluster, a user with a recipe of five stages, and the tables of the page."""

    def __init__(self, folder: Path, repeats: int) -> None:
        self.cluster = Cluster(folder / "cluster")
        self.user = ClusterUser(folder / "user", self.cluster)
        self.user.write(FIVE_STAGES)
        self.repeats = repeats
        self.calls = folder / "calls"
        self.counting = folder / "bin"
        self.counting.mkdir()
        for name in PROGRAMS:
            (self.counting / name).write_text(COUNTING)
            (self.counting / name).chmod(0o755)

    def run(self, *words: str) -> str:
        """A swiftlaunch command, as the installed one starts."""
        finished = subprocess.run(
            [sys.executable, "-m", "launcher", *words],
            cwd=self.user.folder,
            env=self.user.environ,
            capture_output=True,
            text=True,
        )
        if finished.returncode != 0:
            raise SystemExit(f"{words}: {finished.stderr}")
        return finished.stdout

    def counted(self, *words: str) -> Counter[str]:
        """How often a swiftlaunch command calls which of Slurm's."""
        self.calls.write_text("")
        plain = dict(self.user.environ)
        self.user.environ |= {"CALLS": str(self.calls), "PATH": f"{self.counting}:{plain['PATH']}"}
        try:
            self.run(*words)
        finally:
            self.user.environ = plain
        return Counter(self.calls.read_text().splitlines())

    def measured(self, what: Callable[[], object]) -> Cost:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        what()
        wall = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    def in_turn(self, *sides: Callable[[], object]) -> list[Cost]:
        """The median cost of each side; each is done once before it counts."""
        for side in sides:
            side()
        rounds = [[self.measured(side) for side in sides] for _ in range(self.repeats)]
        columns = [[costs[index] for costs in rounds] for index in range(len(sides))]
        return [
            Cost(statistics.median(cost.wall for cost in column), statistics.median(cost.cpu for cost in column))
            for column in columns
        ]

    def submission(self) -> list[Sequence[str]]:
        """`swiftlaunch submit` of five stages beside five sbatch of the same scripts."""
        run_id = self.run("submit", "recipe.toml", "--site", "./real.toml").strip()
        scripts = [str(RunDir(self.user.root / "runs" / run_id).script(stage)) for stage in STAGES]
        environ = self.cluster.environ()

        def bare() -> None:
            before: list[str] = []
            for script in scripts:
                words = ["sbatch", "--parsable", *before, script]
                job_id = subprocess.run(words, env=environ, capture_output=True, text=True, check=True).stdout.strip()
                before = [f"--dependency=afterok:{job_id}"]

        def ours() -> None:
            self.run("submit", "recipe.toml", "--site", "./real.toml")

        def nothing() -> None:
            subprocess.run([sys.executable, "-c", "pass"], check=True)

        sbatch, whole, start = self.in_turn(bare, ours, nothing)
        rows = [
            _row("five bare `sbatch`", sbatch, sbatch),
            _row("`python -c pass`", start, sbatch),
            _row("`swiftlaunch submit`, five stages", whole, sbatch),
        ]
        return rows

    def start_up(self) -> list[Sequence[str]]:
        """Commands that ask no scheduler, beside an interpreter that does nothing."""

        def nothing() -> None:
            subprocess.run([sys.executable, "-c", "pass"], check=True)

        commands = (("--version",), ("--help",), ("plan", "recipe.toml", "--site", "./real.toml"))
        empty, *costs = self.in_turn(nothing, *(lambda words=words: self.run(*words) for words in commands))  # type: ignore[misc]
        return [
            _row("`python -c pass`", empty, empty),
            *(
                _row(f"`swiftlaunch {' '.join(words[:1])}`", cost, empty)
                for words, cost in zip(commands, costs, strict=True)
            ),
        ]

    def many_jobs(self, runs: int) -> list[Sequence[str]]:
        """Calls of Slurm's commands while so many runs of five held jobs are in the queue."""
        os.environ |= {"SLURM_CONF": str(self.cluster.conf), "HOME": self.user.environ["HOME"]}
        first = ""
        for number in range(runs):
            ready = prepare(
                self.user.folder / "recipe.toml",
                site_name=str(self.user.folder / "real.toml"),
                home=self.user.home,
                environ=os.environ,
                run_id=f"fine-{number:04d}",
            )
            first = first or submit(ready, environ={}).run_id
        jobs = runs * len(STAGES)
        rows = [
            _calls(f"`runs` over {runs} runs, {jobs} jobs", self.counted("runs", "--limit", str(runs))),
            _calls("`status` of one of them", self.counted("status", first)),
            _calls("`submit`, five stages", self.counted("submit", "recipe.toml", "--site", "./real.toml")),
            _calls("`cancel` of one of them", self.counted("cancel", first)),
            _calls("`resume` of it", self.counted("resume", first)),
        ]
        return rows

    def sweep(self) -> list[Sequence[str]]:
        """Calls for a sweep whose stages are arrays of a thousand points, all of them held."""
        self.user.write(SWEEP)
        calls = self.counted("submit", "recipe.toml", "--site", "./real.toml")
        return [
            _calls(f"`submit`, a sweep of {POINTS} points, four stages", calls),
            _calls("`status` of it", self.counted("status", "latest")),
            _calls("`sweep` of it, the leaderboard", self.counted("sweep", "latest")),
            _calls("`cancel` of it", self.counted("cancel", "latest")),
        ]


def _row(what: str, cost: Cost, base: Cost) -> Sequence[str]:
    return (
        what,
        f"{cost.wall * 1000:.0f} ms",
        f"{cost.wall / base.wall:.1f}",
        f"{cost.cpu * 1000:.0f} ms",
        f"{cost.cpu / base.cpu:.1f}",
    )


def _calls(what: str, calls: Counter[str]) -> Sequence[str]:
    return what, str(sum(calls.values())), ", ".join(f"{number} {name}" for name, number in sorted(calls.items()))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--runs", type=int, default=200, help="of five jobs each, for the counts")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="swiftlaunch-bench-", dir="/tmp"))
    bench = Bench(folder, options.repeats)
    daemons = "controller, database and four nodes on the same one"
    times = ("what", "wall", "ratio", "CPU", "ratio")
    try:
        bench.cluster.up()
        slurm = bench.cluster.command("sbatch", "--version").stdout.strip()
        submission = table(times, bench.submission())
        start_up = table(times, bench.start_up())
        calls = table(("what", "calls", "of which"), [*bench.many_jobs(options.runs), *bench.sweep()])
    finally:
        bench.cluster.down()
        shutil.rmtree(folder)
    text = TEXT.format(
        machine="\n".join(textwrap.wrap(f"{machine()}, {slurm} ({daemons})", 118)),
        submission=submission,
        start_up=start_up,
        calls=calls,
        repeats=options.repeats,
        load=f"{os.getloadavg()[2]:.1f}",
    )
    print(text)
    others = sections(options.page.read_text(encoding="utf-8")) if options.page.exists() else {}
    options.page.write_text(text, encoding="utf-8")
    for heading, part in others.items():  # those of the other programs of `make bench`
        if heading not in sections(text):
            put(heading, part, options.page)
    return 0


TEXT = """\
# Benchmarks

Written by `make bench`. Ratios compare what was measured in turn within one run; the times themselves are of one
machine on one day, with a load average of {load} over the quarter of an hour before the end:

{machine}.

## Submitting

Five stages that wait for each other, median of {repeats}. CPU counts the command and all that it starts, not Slurm's
daemons.

{submission}

## Start-up

Median of {repeats}.

{start_up}

## Calls of Slurm's commands

Counted, not timed: what the controller has to answer.

{calls}
"""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
