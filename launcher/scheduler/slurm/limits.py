"""Limits that Slurm sets on jobs: of partitions, associations and QOS, read from text, and what breaks them.

A job over such a limit is taken by sbatch in most configurations and then waits for ever, so it is refused before.
Which limit counts is Slurm's order ("Resource Limits" of its documentation): partition QOS, job QOS (before it with the
flag OverPartQOS), the user's association, the accounts upwards, the partition; the first that sets a limit decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from launcher.units import counted, parse_mib, parse_minutes, show_mib, show_seconds

ASSOCIATION_FIELDS = (
    "Cluster,Account,User,Partition,ParentName,QOS,DefaultQOS,MaxWall,MaxTRES,GrpTRES,MaxSubmit,GrpSubmit"
)
QOS_FIELDS = "Name,Flags,MaxWall,MaxTRES,MaxTRESPU,GrpTRES,MinTRES,MaxSubmitPU,GrpSubmit"
SHARE_FIELDS = "Account,User,NormShares,EffectvUsage,FairShare"

_AWAY = re.compile(r"(?:down|drain|fail|maint|reboot|unk|inval|.*\*)", re.IGNORECASE)
_THINGS = {"cpu": "CPU", "node": "node", "gres/gpu": "GPU", "mem": "memory", "billing": "billing unit"}


@dataclass(frozen=True)
class Need:
    """What one job asks for, as Slurm counts it; `mem` in MiB among the `resources`."""

    stage: str
    table: str  # of the recipe, under [resources]
    minutes: int
    resources: Mapping[str, int]  # cpu, node, mem, gres/gpu
    partition: str = ""
    account: str = ""
    qos: str = ""


@dataclass(frozen=True)
class Limits:
    """The limits of one QOS or association; what it does not limit is missing."""

    owner: str  # for people: "QOS long", "account lab"
    minutes: int | None = None
    each: Mapping[str, int] = field(default_factory=dict)  # per job
    user: Mapping[str, int] = field(default_factory=dict)  # all jobs of a user that run at a time
    group: Mapping[str, int] = field(default_factory=dict)  # all jobs that run at a time
    least: Mapping[str, int] = field(default_factory=dict)  # per job, at least
    queued: int | None = None  # jobs in the queue at a time, of a user
    queued_group: int | None = None
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Association:
    """A line of `sacctmgr show assoc`: of a user in an account, or (`user` empty) of the account."""

    cluster: str
    account: str
    user: str
    partition: str
    parent: str
    qos: tuple[str, ...]
    default_qos: str
    limits: Limits


@dataclass(frozen=True)
class Partition:
    """A partition as `scontrol show partition` tells it; None: no limit."""

    name: str
    default: bool
    state: str
    minutes: int | None
    nodes: int | None
    least_nodes: int
    qos: str


@dataclass(frozen=True)
class Broken:
    """A limit that a stage's request breaks, and what to do about it."""

    stage: str
    message: str
    hint: str


def parse_config(text: str) -> dict[str, str]:
    """Name -> value from `scontrol show config`."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def parse_associations(text: str) -> list[Association]:
    """From `sacctmgr -nP show assoc format=ASSOCIATION_FIELDS`."""
    found = []
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != len(ASSOCIATION_FIELDS.split(",")):
            continue
        cluster, account, user, partition, parent, qos, default, wall, each, group, queued, all_queued = fields
        owner = f"{user} in account {account}" if user else f"account {account}"
        limits = Limits(
            owner,
            minutes=_minutes(wall),
            each=parse_tres(each),
            group=parse_tres(group),
            queued=_count(queued),
            queued_group=_count(all_queued),
        )
        names = tuple(name for name in qos.split(",") if name)
        found.append(Association(cluster, account, user, partition, parent, names, default, limits))
    return found


def parse_qos(text: str) -> dict[str, Limits]:
    """QOS name -> its limits, from `sacctmgr -nP show qos format=QOS_FIELDS`."""
    found = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != len(QOS_FIELDS.split(",")):
            continue
        name, flags, wall, each, user, group, least, queued, all_queued = fields
        found[name] = Limits(
            f"QOS {name}",
            minutes=_minutes(wall),
            each=parse_tres(each),
            user=parse_tres(user),
            group=parse_tres(group),
            least=parse_tres(least),
            queued=_count(queued),
            queued_group=_count(all_queued),
            flags=frozenset(flags.split(",")),
        )
    return found


def parse_partitions(text: str) -> dict[str, Partition]:
    """Name -> partition, from `scontrol show partition --oneliner`."""
    found = {}
    for line in text.splitlines():
        values = dict(pair.split("=", 1) for pair in line.split() if "=" in pair)
        if name := values.get("PartitionName"):
            qos = values.get("QoS", "N/A")
            found[name] = Partition(
                name,
                default=values.get("Default") == "YES",
                state=values.get("State", "UP"),
                minutes=_minutes(values.get("MaxTime", "")),
                nodes=_count(values.get("MaxNodes", "")),
                least_nodes=_count(values.get("MinNodes", "")) or 0,
                qos="" if qos == "N/A" else qos,
            )
    return found


def nodes_away(text: str) -> tuple[int, int]:
    """How many nodes take no jobs now, and how many there are, from `sinfo -h -N -o "%N|%T"`.

    A node of several partitions has several lines. A "*" behind its state: it does not answer.
    """
    states = dict(line.split("|", 1) for line in text.splitlines() if "|" in line)
    return sum(bool(_AWAY.match(state)) for state in states.values()), len(states)


def parse_tres(text: str) -> dict[str, int]:
    """ "cpu=20,mem=500G,gres/gpu=8" -> counts, memory in MiB. A count of -1 is no limit."""
    found = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            count = parse_mib(int(value) if value.isdigit() else value) if name == "mem" else int(value)
        except ValueError:
            continue
        if equals and count >= 0:
            found[name] = count
    return found


def fair_share(text: str, user: str, account: str) -> str:
    """One line on the fair share of a user in an account ("" for the default), from `sshare -nP -o SHARE_FIELDS`."""
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) < 5 or fields[1] != user or (account and fields[0] != account):
            continue
        try:
            shares, usage, factor = (float(field) for field in fields[2:5])
        except ValueError:
            continue
        used = f"{usage:.0%} of the recent use for {shares:.0%} of the shares"
        return f"fair share {factor:.2f} of 1 in account {fields[0]} ({used} at its level)"
    return ""


def account_of(need: Need, associations: Sequence[Association], default: str) -> str:
    """The account that a job is charged to: as asked for, else the user's default one."""
    return need.account or default or next((one.account for one in associations if one.user), "")


def levels(
    need: Need,
    account: str,
    associations: Sequence[Association],
    qos: Mapping[str, Limits],
    partition: Partition | None,
) -> list[Limits]:
    """The limits that count for a job, the first to decide first. `account`: what it is charged to."""
    own = [one for one in associations if one.user and one.account == account]
    mine = next((one for one in own if need.partition and one.partition == need.partition), None)
    mine = mine or next((one for one in own if not one.partition), None)
    name = need.qos or (mine.default_qos or ("normal" if "normal" in mine.qos else "") if mine else "")
    found = [qos[name]] if name in qos else []
    if partition and partition.qos in qos:
        place = len(found) if found and "OverPartQOS" in found[0].flags else 0
        found.insert(place, qos[partition.qos])
    if mine:
        found.append(mine.limits)
    accounts = {one.account: one for one in associations if not one.user}
    while account in accounts:
        found.append(accounts[account].limits)
        account = accounts.pop(account).parent
    return found


def broken(need: Need, counting: Sequence[Limits], partition: Partition | None) -> Iterator[Broken]:
    """What a job can never get under these limits, each with where it stands."""
    table = f"[resources.{need.table}]"
    for what, limit, hint in (*_time(need, counting, partition), *_nodes(need, counting, partition)):
        yield Broken(need.stage, f"asks for {what}; {limit}", hint)
    for attribute, may in (("each", "one job"), ("user", "all jobs of a user"), ("group", "all jobs together")):
        for resource, wanted in need.resources.items():
            owner, most = _first(counting, attribute, resource) or ("", wanted)
            if wanted > most:
                limit = f"{owner} allows {may} {_amount(resource, most)} at a time"
                hint = f"ask for less under {table}, or choose another account or qos"
                yield Broken(need.stage, f"asks for {_amount(resource, wanted)}; {limit}", hint)
    for resource, wanted in need.resources.items():
        owner, least = _first(counting, "least", resource) or ("", wanted)
        if wanted < least:
            limit = f"{owner} wants at least {_amount(resource, least)} of a job"
            hint = f"ask for more under {table}, or choose another qos"
            yield Broken(need.stage, f"asks for {_amount(resource, wanted)}; {limit}", hint)


def room(counting: Sequence[Limits]) -> list[tuple[str, int]]:
    """How many jobs may be in the queue: (whose limit, number), of a user and of all together."""
    own = next(((limits.owner, limits.queued) for limits in counting if limits.queued is not None), None)
    group = next(((limits.owner, limits.queued_group) for limits in counting if limits.queued_group is not None), None)
    return [(limit[0], limit[1]) for limit in (own, group) if limit is not None]


def _time(need: Need, counting: Sequence[Limits], partition: Partition | None) -> Iterator[tuple[str, str, str]]:
    """(what is asked for, the limit that it breaks, what to do)."""
    lower, asked = f"lower resources.{need.table}.time_limit", show_seconds(need.minutes * 60)
    for limits in counting:
        if limits.minutes is not None:
            if need.minutes > limits.minutes:
                most = show_seconds(limits.minutes * 60)
                yield asked, f"{limits.owner} gives a job {most}", f"{lower}, or choose another qos"
            break
    beyond = any("PartitionTimeLimit" in limits.flags for limits in counting)
    if partition and partition.minutes is not None and need.minutes > partition.minutes and not beyond:
        most = show_seconds(partition.minutes * 60)
        yield asked, f"partition {partition.name} gives a job {most}", f"{lower}, or choose another partition"


def _nodes(need: Need, counting: Sequence[Limits], partition: Partition | None) -> Iterator[tuple[str, str, str]]:
    """As `_time`."""
    if partition is None:
        return
    wanted = need.resources["node"]
    flags = frozenset[str]().union(*(limits.flags for limits in counting))
    change = f"change resources.{need.table}.nodes, or choose another partition"
    if partition.nodes is not None and wanted > partition.nodes and "PartitionMaxNodes" not in flags:
        most = counted(partition.nodes, "node")
        yield counted(wanted, "node"), f"partition {partition.name} gives a job {most}", change
    if wanted < partition.least_nodes and "PartitionMinNodes" not in flags:
        least = counted(partition.least_nodes, "node")
        yield counted(wanted, "node"), f"partition {partition.name} wants at least {least}", change


def _first(counting: Sequence[Limits], attribute: str, resource: str) -> tuple[str, int] | None:
    """Whose limit decides, and what it is."""
    for limits in counting:
        of_kind: Mapping[str, int] = getattr(limits, attribute)
        if resource in of_kind:
            return limits.owner, of_kind[resource]
    return None


def _amount(resource: str, number: int) -> str:
    return f"{show_mib(number)} of memory" if resource == "mem" else counted(number, _THINGS.get(resource, resource))


def _minutes(text: str) -> int | None:
    try:
        return parse_minutes(text)
    except ValueError:
        return 0 if re.fullmatch(r"[0:]+", text) else None  # UNLIMITED, or empty


def _count(text: str) -> int | None:
    return int(text) if text.isdigit() else None
