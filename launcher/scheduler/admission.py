"""Before a submission: would Slurm take every stage, when would the first ones start, which limits are in the way.

Nothing is submitted. What a site does not answer (no sacctmgr, no priorities) is left out.
"""

from __future__ import annotations

import getpass
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from launcher.errors import Fault, SchedulerError
from launcher.plan import Plan, Resources, Stage
from launcher.scheduler.process import hiding
from launcher.scheduler.slurm import ask
from launcher.scheduler.slurm import limits as rules
from launcher.scheduler.slurm.client import SlurmScheduler
from launcher.scheduler.slurm.text import Outlook

_OURS = re.compile(r"^#SBATCH --(job-name|comment|output|open-mode|signal)=")  # do not decide whether a job is taken
_ADVICE = (
    ("account", "`sacctmgr show assoc user=$USER` lists your accounts; set resources.{table}.account"),
    ("partition", "`sinfo -s` lists the partitions; set resources.{table}.partition"),
    ("qos", "`sacctmgr show assoc user=$USER format=account,qos` lists your QOS; set resources.{table}.qos"),
    ("node configuration", "no node has what it asks for: change GPUs, CPUs, memory, nodes or constraint in "
                           "[resources.{table}]; `sinfo -Nl` shows the nodes"),
    ("time limit", "lower resources.{table}.time_limit"),
)  # fmt: skip


@dataclass(frozen=True)
class Admission:
    """What Slurm says of a plan. `trouble`: it could not be asked, and why."""

    faults: tuple[Fault, ...] = ()
    starts: tuple[tuple[str, float], ...] = ()  # stages that wait for no other: Unix seconds
    fair_share: str = ""
    notes: tuple[str, ...] = ()
    trouble: str = ""


@dataclass(frozen=True)
class _Policy:
    """The limits that are enforced at this site, and this user's place in them."""

    partitions: Mapping[str, rules.Partition]
    associations: Sequence[rules.Association] = ()
    qos: Mapping[str, rules.Limits] | None = None  # None: limits of accounts and QOS are not enforced
    default_account: str = ""
    fair_share: str = ""


def look(
    plan: Plan, scripts: Mapping[str, str], *, replaced: int = 0, tasks: Mapping[str, int] | None = None
) -> Admission:
    """What Slurm would say of these stages' scripts; `replaced`: as many jobs leave the queue for them.

    `tasks`: how many jobs a stage is where it is an array.
    """
    if shutil.which("sbatch") is None:
        return Admission(trouble="sbatch is not on PATH")
    if not ask.controller_answers():
        return Admission(trouble="Slurm's controller does not answer `scontrol ping`")
    stages = [stage for stage in plan.stages if stage.name in scripts]
    try:
        with hiding(plan.secrets), ThreadPoolExecutor(max_workers=4) as pool:  # sbatch sends its environment along
            asked = pool.submit(_outlooks, scripts)
            policy, outlooks = _policy(stages, pool), asked.result()
        doubtful, notes = _not_now(outlooks)
        faults = [
            _refused(stage, outlooks[stage.name].refusal)
            for stage in stages
            if outlooks[stage.name].refusal and stage.name not in doubtful
        ]
        refused = {fault.where for fault in faults}
        faults += [fault for fault in _over_limits(stages, policy) if fault.where not in refused]
        adds = sum((tasks or {}).get(stage.name, 1) * (1 + stage.resume.continuations) for stage in stages)
        faults += _queue(stages, policy, adds - replaced)
    except SchedulerError as error:
        return Admission(trouble=error.message)
    starts = tuple(
        (stage.name, start)
        for stage in stages
        if not set(stage.depends_on) & scripts.keys() and (start := outlooks[stage.name].start) is not None
    )
    return Admission(tuple(faults), starts, policy.fair_share, notes)


def told_limits() -> tuple[bool, str]:
    """Whether the limits that count at this site can be looked at before a submission, and what is known of them."""
    config = rules.parse_config(_answer("scontrol", "show", "config"))
    if not _enforced(config):
        return True, "only those of partitions count here"
    accounts = {one.account for one in _associations(config.get("ClusterName", ""), f"user={getpass.getuser()}")}
    if not accounts:
        return False, "accounts and QOS are limited here, but sacctmgr does not tell how"
    return True, f"sacctmgr tells those of {', '.join(sorted(accounts))}"


def _enforced(config: Mapping[str, str]) -> bool:
    return bool(set(config.get("AccountingStorageEnforce", "").split(",")) & {"limits", "safe", "all"})


def _outlooks(scripts: Mapping[str, str]) -> dict[str, Outlook]:
    """What `sbatch --test-only` says of each; scripts that ask for the same are one question."""
    scheduler = SlurmScheduler()
    known: dict[tuple[str, ...], Outlook] = {}
    found = {}
    for name, text in scripts.items():
        lines = [line for line in text.splitlines() if line.startswith("#SBATCH")]
        asks_for = tuple(line for line in lines if not _OURS.match(line))
        if asks_for not in known:
            known[asks_for] = scheduler.test("\n".join(["#!/bin/bash", *lines, "true", ""]))
        found[name] = known[asks_for]
    return found


def _not_now(outlooks: Mapping[str, Outlook]) -> tuple[set[str], tuple[str, ...]]:
    """The stages that Slurm may only refuse because nodes are away, and a note on them.

    --test-only calls a job impossible that would have to wait for nodes which are down or drained; sbatch takes it.
    """
    stages = {name for name, outlook in outlooks.items() if "node configuration" in outlook.refusal}
    if not stages:
        return set(), ()
    away, nodes = rules.nodes_away(_answer("sinfo", "-h", "-N", "-o", "%N|%T"))
    if not away:
        return set(), ()
    waits = f"{', '.join(sorted(stages))} cannot be placed now"
    return stages, (f"{waits}: {away} of {nodes} nodes are down, drained or do not answer",)


def _policy(stages: Sequence[Stage], pool: Executor) -> _Policy:
    """The questions to the accounting database take a third of a second each, so they are asked at once."""
    config = rules.parse_config(_answer("scontrol", "show", "config"))
    user = getpass.getuser()
    partitions = pool.submit(_answer, "scontrol", "show", "partition", "--oneliner")
    ranked = "multifactor" in config.get("PriorityType", "")
    share = pool.submit(_answer, "sshare", "-nP", "-U", "-o", rules.SHARE_FIELDS) if ranked else None
    default = None
    if (ranked or _enforced(config)) and not all(stage.resources.account for stage in stages):
        default = pool.submit(_answer, "sacctmgr", "-nP", "show", "user", user, "format=DefaultAccount")
    associations: list[rules.Association] = []
    qos = None
    if _enforced(config):
        asked_qos = pool.submit(_answer, "sacctmgr", "-nP", "show", "qos", f"format={rules.QOS_FIELDS}")
        cluster = config.get("ClusterName", "")
        associations = _associations(cluster, f"user={user}")
        accounts = {one.account for one in associations}
        while accounts:  # upwards: limits of the accounts around them count too
            above = _associations(cluster, f"account={','.join(sorted(accounts))}", "user=")
            associations += above
            accounts = {one.parent for one in above} - {one.account for one in associations if not one.user} - {""}
        qos = rules.parse_qos(asked_qos.result())
    usual = default.result().strip() if default else ""
    account = stages[0].resources.account or usual
    return _Policy(
        rules.parse_partitions(partitions.result()),
        associations,
        qos,
        usual,
        rules.fair_share(share.result(), user, account) if share else "",
    )


def _associations(cluster: str, *where: str) -> list[rules.Association]:
    text = _answer("sacctmgr", "-nP", "show", "assoc", "where", *where, f"format={rules.ASSOCIATION_FIELDS}")
    return [one for one in rules.parse_associations(text) if one.cluster == cluster]


def _answer(*words: str) -> str:
    """What a command says; "" where it is missing or refuses."""
    try:
        answer = ask.ask(words)
    except SchedulerError:
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def _refused(stage: Stage, refusal: str) -> Fault:
    advice = next((words for key, words in _ADVICE if key in refusal.lower()), "correct [resources.{table}]")
    return Fault(f"stage {stage.name}", f"Slurm refuses it: {refusal}", advice.format(table=stage.table))


def _over_limits(stages: Sequence[Stage], policy: _Policy) -> list[Fault]:
    faults = []
    for stage in stages:
        for need in _needs(stage):
            partition = _partition(need, policy)
            for one in rules.broken(need, _levels(need, policy), partition):
                faults.append(Fault(f"stage {one.stage}", one.message, one.hint))
    return faults


def _queue(stages: Sequence[Stage], policy: _Policy, adds: int) -> list[Fault]:
    """Whether the queue has room for all of this run's jobs: a chain that is submitted in part helps nobody."""
    need = _needs(stages[0])[0]
    counting = _levels(need, policy)
    limit = min(rules.room(counting), key=lambda limit: limit[1], default=None)
    if limit is None:
        return []
    owner, most = limit
    have = len(_answer("squeue", "--me", "-h", "-r", "-o", "%i").splitlines())
    if have + adds <= most:
        return []
    message = f"{owner} allows {most} jobs in the queue; you have {have}, and this run adds {adds}"
    return [Fault("the queue", message, "wait until jobs have ended, cancel some, or choose another account or qos")]


def _levels(need: rules.Need, policy: _Policy) -> list[rules.Limits]:
    if policy.qos is None:
        return []
    account = rules.account_of(need, policy.associations, policy.default_account)
    return rules.levels(need, account, policy.associations, policy.qos, _partition(need, policy))


def _partition(need: rules.Need, policy: _Policy) -> rules.Partition | None:
    named = policy.partitions.get(need.partition)
    return named or next((one for one in policy.partitions.values() if one.default and not need.partition), None)


def _needs(stage: Stage) -> list[rules.Need]:
    """One for each job of the stage: the components of a heterogeneous job are jobs of their own."""
    parts = [group.resources for group in stage.groups] if stage.het else [stage.resources]
    return [_need(stage, resources) for resources in parts]


def _need(stage: Stage, asked: Resources) -> rules.Need:
    counts = {
        "cpu": asked.nodes * asked.tasks_per_node * asked.cpus_per_task,
        "node": asked.nodes,
        "gres/gpu": asked.nodes * asked.gpus_per_node,
        "mem": 0 if asked.whole_nodes else asked.nodes * asked.memory_mib,
    }
    return rules.Need(
        stage.name,
        stage.table,
        asked.time_limit_minutes,
        {name: count for name, count in counts.items() if count},
        asked.partition,
        asked.account,
        asked.qos,
    )
