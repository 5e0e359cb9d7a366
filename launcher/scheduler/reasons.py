"""Why a job waits, in words: the reason codes of Slurm, which the local scheduler uses too.

Source: JOB REASON CODES of squeue(1) and the Resource Limits page, releases 22.05 to 26.05. Codes of limits are put
together from parts (AssocGrpGRES, QOSMaxCpuPerUserLimit), so they are read by their parts; an unknown code is shown
as it is.
"""

from __future__ import annotations

import re

# code -> what it means, and behind a semicolon what its user can do about it
_WORDS = {
    "Priority": "waits behind jobs of higher priority; a shorter time limit may let it slip in between",
    "Resources": "is next, waits for nodes to become free",
    "Dependency": "waits for another job",
    "DependencyNeverSatisfied": "can never start, a job it depends on did not succeed",
    "BeginTime": "waits for its time to start (a requeued job waits up to two minutes)",
    "Cleaning": "was requeued, its last run is still being cleaned up",
    "JobHeldUser": "is held; let it go: scontrol release JOB",
    "JobHeldAdmin": "is held by an administrator, or was requeued too often (MaxBatchRequeue); "
    "ask the centre, or cancel it and resume the run",
    "JobLaunchFailure": "could not be launched (a file system, a node); see the job script's log (logs --batch)",
    "launch failed requeued held": "could not be launched and is held; see the log (logs --batch), then "
    "scontrol release JOB",
    "JobArrayTaskLimit": "waits for other tasks of its array, of which only so many may run at once",
    "ReqNodeNotAvail": "needs nodes that are down, drained or reserved; before a maintenance only jobs start "
    "whose time limit ends in time",
    "NodeDown": "needs a node that is down",
    "PartitionDown": "its partition is down; see sinfo, or choose another partition",
    "PartitionInactive": "its partition starts no jobs now; see sinfo, or choose another partition",
    "PartitionNodeLimit": "asks for more nodes than its partition gives or has up; ask for fewer nodes",
    "PartitionTimeLimit": "asks for more time than its partition gives; lower time_limit, or choose another partition",
    "PartitionConfig": "asks for what its partition does not give; see scontrol show partition",
    "BadConstraints": "no node fits what it asks for; change constraint, GPUs or memory",
    "InvalidAccount": "its account is not valid (any more); set account",
    "InvalidQOS": "its QOS is not valid (any more); set qos",
    "QOSNotAllowed": "its QOS is not allowed here; set qos or partition",
    "QOSUsageThreshold": "its QOS wants more fair share than is left; wait, or choose another qos",
    "QOSJobLimit": "its QOS has as many jobs as it may; waits for one of them to end",
    "QOSResourceLimit": "its QOS has used up some resource; waits for jobs to end",
    "QOSTimeLimit": "its QOS has used up its time; ask the centre, or choose another qos",
    "AssociationJobLimit": "its account has as many jobs as it may; waits for one of them to end",
    "AssociationResourceLimit": "its account has used up some resource; waits for jobs to end",
    "AssociationTimeLimit": "its account has used up its time; ask the centre, or choose another account",
    "Licenses": "waits for a license",
    "Reservation": "waits for its reservation to begin",
    "ReservationDeleted": "its reservation was deleted; cancel it and submit without",
    "Prolog": "its node is being prepared",
    "BurstBufferResources": "waits for room in the burst buffer",
    "BurstBufferStageIn": "its data are being copied into the burst buffer",
    "FrontEndDown": "no front end node is up",
    "SystemFailure": "Slurm, a file system or the network failed; ask the centre",
    "MaxRequeue": "was requeued too often and is held; see its logs, then cancel it and resume the run",
    "SchedDefer": "waits for the next round of scheduling",
    "WaitingForScheduling": "waits for the scheduler to look at it",
    "DeadLine": "cannot end before its deadline",
    "MaxMemPerLimit": "asks for more memory than its partition gives; lower memory",
    "MaxPoweredUpNodes": "waits, as many nodes are powered up as may be",
}
_LIMIT = re.compile(
    r"(?P<owner>Assoc|QOS|)(?P<kind>Grp|Max|Min)(?P<what>[A-Z][A-Za-z]*?)(?P<run>Run)?(?P<minutes>Minutes)?"
    r"(?P<per>Per(?:Job|User|Account|Node))?(?:NotSatisfied|Limit)*"
)
_THINGS = {
    "GRES": "GPUs",
    "Cpu": "CPUs",
    "CPU": "CPUs",
    "Mem": "memory",
    "Memory": "memory",
    "Node": "nodes",
    "Job": "running jobs",
    "Jobs": "running jobs",
    "Submit": "jobs in the queue",
    "SubmitJob": "jobs in the queue",
    "SubmitJobs": "jobs in the queue",
    "Wall": "time",
    "WallDuration": "time",
    "License": "licenses",
    "BB": "burst buffer",
}


def in_words(reason: str) -> str:
    """What a reason code means and what to do about it; "" for no reason, the code itself where it is not known."""
    code, _, detail = reason.strip("()").replace("_", " ").partition(",")
    code = code.strip()
    if code in ("", "None"):
        return ""
    words = _WORDS.get(code) or _limit(code) or reason
    meaning, _, advice = words.partition("; ")
    told = f"{meaning} ({detail.strip()})" if detail.strip() else meaning
    return f"{told}; {advice}" if advice else told


def _limit(code: str) -> str:
    match = _LIMIT.fullmatch(code)
    if match is None:
        return ""
    owner = {"Assoc": "its account", "QOS": "its QOS"}.get(match["owner"], "the site")
    thing = _THINGS.get(match["what"], match["what"])
    if match["kind"] == "Min":
        return f"asks for fewer {thing} than {owner} wants of a job; ask for more, or choose another qos"
    each = match["per"] or ""
    if each in ("PerJob", "PerNode") or (match["what"].startswith("Wall") and match["kind"] == "Max"):
        budget = f"{thing} times time" if match["minutes"] else thing
        return f"asks for more {budget} than {owner} gives one job; ask for less, or choose another account or qos"
    if match["minutes"] and not match["run"]:
        return f"{owner} has used up its budget of {thing}; ask the centre for more, or choose another account"
    for_whom = {"PerUser": " for one user", "PerAccount": " for one account"}.get(each, "")
    return f"{owner} is at its limit of {thing}{for_whom}; waits for jobs to end"
