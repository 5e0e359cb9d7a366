"""What `srun` of the local scheduler is asked for: its options, and which tasks and GPUs they put on which node."""

from __future__ import annotations

from typing import Any

from launcher.scheduler.local.hostlist import expand

_VALUED = {
    "-N": "nodes",
    "-n": "ntasks",
    "-c": "cpus-per-task",
    "-o": "output",
    "-e": "error",
    "-i": "input",
    "-w": "nodelist",
    "-D": "chdir",
    "-J": "job-name",
    "-m": "distribution",
    "-r": "relative",
}
_FLAGS = {"-l": "label", "-u": "unbuffered", "-K": "kill-on-bad-exit", "-v": "verbose", "-Q": "quiet"}
_IGNORED = {
    *("unbuffered", "verbose", "quiet", "overlap", "exact", "exclusive", "mpi", "mem", "cpu-bind", "gpu-bind"),
    *("gpus", "distribution", "job-name", "mem-bind", "mem-per-cpu", "hint", "wait", "network"),
    *("input", "het-group", "comment"),
}
_OPTIONAL = {"kill-on-bad-exit": "1", "exclusive": ""}  # options whose value may be left out
_KNOWN = {
    *("nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "gpus-per-task", "output", "error", "open-mode"),
    *("nodelist", "relative", "chdir", "label", "kill-on-bad-exit", "export", "gpus-per-node", "gres"),
}


def options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """srun's options and the command. Raises ValueError."""
    found: dict[str, str] = {}
    position = 0
    while position < len(words) and words[position].startswith("-"):
        word = words[position]
        position += 1
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            flag = name in _FLAGS.values() or name in ("overlap", "exact") or name in _OPTIONAL
        elif word[:2] in _FLAGS:
            name, value, equals, flag = _FLAGS[word[:2]], word[2:], "", True
        else:
            name, value, equals, flag = _VALUED.get(word[:2], word), word[2:].removeprefix("="), word[2:], False
        if name not in _KNOWN and name not in _IGNORED:
            raise ValueError(f"option {word!r} is not known to the local scheduler")
        if flag and not value:
            value = _OPTIONAL.get(name, "1")
        elif not equals and not flag:
            if position == len(words):
                raise ValueError(f"option {word} needs a value")
            value = words[position]
            position += 1
        found[name] = value
    if position == len(words):
        raise ValueError("no command to run")
    return found, words[position:]


def place(given: dict[str, str], nodes: list[dict[str, Any]], environ: dict[str, str]) -> list[list[dict[str, Any]]]:
    """For each node of the step its tasks, {"node", "gpus"}: blocks in rank order. Raises ValueError."""
    if "nodelist" in given:
        wanted = expand(given["nodelist"])
        nodes = [node for node in nodes if node["name"] in wanted]
        if len(nodes) != len(wanted):
            raise ValueError(f"--nodelist={given['nodelist']}: not all of these nodes belong to the job")
    elif "nodes" in given or "relative" in given:
        first = _number(given, "relative", 0)
        wanted_nodes = count(given, "nodes", len(nodes) - first)
        if first + wanted_nodes > len(nodes):
            after = f" after the first {first}" if first else ""
            raise ValueError(f"--nodes={wanted_nodes}{after}: the job has {len(nodes)} nodes")
        nodes = nodes[first : first + wanted_nodes]
    narrowed = not {"nodes", "nodelist", "relative", "ntasks-per-node"}.isdisjoint(given)
    per_node = count(given, "ntasks-per-node", 0)
    inherited = per_node or int(environ.get("SLURM_NTASKS_PER_NODE", "1"))
    default = len(nodes) * inherited if narrowed else int(environ.get("SLURM_NTASKS", "1"))
    total = count(given, "ntasks", default)
    nodes = nodes[:total]  # not more nodes than tasks
    most = per_node or -(-total // len(nodes))
    if total > most * len(nodes):
        raise ValueError(f"{total} tasks do not fit {len(nodes)} nodes with {most} tasks each")
    share, rest = divmod(total, len(nodes))
    each = count(given, "gpus-per-task", 0)
    step = []
    for index, node in enumerate(nodes):
        here = share + (index < rest)
        if each * here > len(node["gpus"]):
            raise ValueError(f"--gpus-per-task={each}: {node['name']} has {len(node['gpus'])} GPUs for {here} tasks")
        step.append(
            [
                {"node": node["name"], "gpus": node["gpus"][task * each : (task + 1) * each] if each else node["gpus"]}
                for task in range(here)
            ]
        )
    return step


def count(given: dict[str, str], name: str, default: int) -> int:
    """The number that an option gives, of a range the first. Raises ValueError."""
    text = given.get(name, str(default)).partition("-")[0]
    if not text.isdigit() or (name in given and int(text) < 1):
        raise ValueError(f"--{name}={given[name]}: not a whole number above zero")
    return int(text)


def _number(given: dict[str, str], name: str, default: int) -> int:
    text = given.get(name, str(default))
    if not text.isdigit():
        raise ValueError(f"--{name}={text}: not a whole number")
    return int(text)


def gpus_wanted(given: dict[str, str]) -> int | None:
    """GPUs per node that the step asks for by --gpus-per-node or --gres; None where it shares the job's."""
    text = given.get("gpus-per-node", given.get("gres", ""))
    number = "0" if text == "none" else text.rpartition(":")[2]
    if not text or (number == "gpu" and "gres" in given):
        return 1 if text else None
    if not number.isdigit():
        raise ValueError(f"{text!r} is not a number of GPUs")
    return int(number)


def share_gpus(nodes: list[dict[str, Any]], wanted: int, taken: set[int]) -> list[dict[str, Any]] | None:
    """The step's nodes with so many GPUs each that no other step has; None while too few are free.

    Raises ValueError where the job never has as many.
    """
    found = []
    for node in nodes:
        if wanted > len(node["gpus"]):
            raise ValueError(f"{wanted} GPUs on {node['name']}: the job has {len(node['gpus'])} there")
        free = [gpu for gpu in node["gpus"] if gpu not in taken]
        if len(free) < wanted:
            return None
        found.append({**node, "gpus": free[:wanted]})
    return found
