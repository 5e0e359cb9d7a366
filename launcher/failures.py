"""Why an attempt of a stage failed: one table from what is seen to a class, and which rank was the first.

A rank that ends by an exception classifies itself and writes a report; one that is killed cannot, so srun's own words
(`step.log`) are read as well. The job script decides with two patterns of this table, `status` words it with the rest.
"""

from __future__ import annotations

import errno
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

OUT_OF_MEMORY, CONFIGURATION, NETWORK = "out-of-memory", "configuration", "network"
NODE, HANG, CRASH = "node", "hang", "crash"
NOT_AGAIN = (OUT_OF_MEMORY, CONFIGURATION)  # another attempt would end the same way

# {table} is filled in with the stage's table under [resources]
_LESS_MEMORY = (
    'use a smaller train.micro_batch_size, train.activation_recompute = "full", or more ranks with '
    "train.layout.tensor or pipeline"
)
_MORE_MEMORY = "raise resources.{table}.memory, or use fewer ranks per node"
HINTS = {
    CONFIGURATION: "",
    NETWORK: "ranks lost each other; if it comes again, look at [network] interface of the site",
    NODE: "the node is kept out of further attempts; tell the site's administrators",
    HANG: "the stacks of all ranks are in the attempt's folder",
    CRASH: "",
}


class Signature(NamedTuple):
    """What is seen, what it means, and where the text comes from."""

    kind: str
    pattern: str  # a regular expression, of the exception's text
    source: str
    hint: str = ""


FULL_DISK = "make room on this file system"
# In order: the first that matches counts. A broken GPU also reads "CUDA error", so nodes come before crashes.
_TEXTS = (
    Signature(OUT_OF_MEMORY, r"(CUDA|HIP|XPU) out of memory", "torch: c10/cuda/CUDACachingAllocator.cpp", _LESS_MEMORY),
    Signature(
        OUT_OF_MEMORY, r"CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED", "CUDA runtime, cuBLAS", _LESS_MEMORY
    ),
    Signature(OUT_OF_MEMORY, r"Cuda failure.*out of memory", "NCCL: src/include/checks.h", _LESS_MEMORY),
    Signature(
        OUT_OF_MEMORY, r"DefaultCPUAllocator: (can't allocate|not enough) memory", "torch: alloc_cpu.cpp", _MORE_MEMORY
    ),
    Signature(OUT_OF_MEMORY, r"No available memory for the cache blocks", "vLLM: v1/core/kv_cache_utils.py"),
    Signature(NODE, r"uncorrectable (ECC|NVLink)|double[- ]bit ECC", "CUDA: cudaErrorECCUncorrectable"),
    Signature(NODE, r"GPU is lost|fallen off the bus", "NVML: NVML_ERROR_GPU_IS_LOST; NVIDIA driver, Xid 79"),
    Signature(NODE, r"no CUDA-capable device|No CUDA GPUs are available", "CUDA: cudaErrorNoDevice; torch.cuda"),
    Signature(
        NODE, r"CUDA(-capable device\(s\) is/are busy| driver initialization failed)", "CUDA runtime; torch.cuda"
    ),
    Signature(NODE, r"\bXid\b|cudaErrorDevicesUnavailable", "NVIDIA driver; CUDA runtime"),
    Signature(NODE, r"system not yet initialized", "CUDA: cudaErrorSystemNotReady, the fabric manager is down"),
    Signature(NODE, r"NVML.*(Driver/library version mismatch|Unknown Error)", "NVML: nvmlErrorString"),
    Signature(NETWORK, r"Connection (closed by peer|reset by peer|refused|timed out)", "gloo: transport/tcp/pair.cc"),
    Signature(NETWORK, r"gloo|NCCL error|ncclRemoteError|ncclSystemError", "torch.distributed: ProcessGroupGloo, NCCL"),
    Signature(NETWORK, r"Timed out waiting .*ms for (recv|send)", "gloo: transport/tcp/unbound_buffer.cc"),
    Signature(CRASH, r"CUDA error", "CUDA runtime: any other fault of the device or of a kernel"),
)
# Passing faults in words that no recipe and no model's file has: they count in exceptions of any class, since libraries
# have classes of their own, and before any other text but those of too little memory and of sick nodes.
_TEXTS_OF_ANY = (
    Signature(
        CRASH, r"No space left on device|os error 28\b", "Linux: ENOSPC; safetensors has Rust's words", FULL_DISK
    ),
    Signature(CRASH, r"Input/output error|Stale file handle|os error (5|116)\b", "Linux: EIO, ESTALE; Rust's std::io"),
    Signature(
        CRASH,
        r"PytorchStreamWriter failed writing|enforce fail at inline_container",
        "torch: caffe2/serialize/inline_container.cc",
        FULL_DISK,
    ),
    Signature(
        CRASH, r"DataLoader worker .*(killed by signal|exited unexpectedly)", "torch: DataLoader.cpp, dataloader.py"
    ),
    Signature(
        CRASH, r"(CUDNN|CUBLAS|CUSPARSE|CUSOLVER)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)", "cuDNN, cuBLAS and others"
    ),
    Signature(NETWORK, r"NCCL communicator was aborted", "torch: torch/csrc/distributed/c10d/NCCLUtils.cpp"),
    Signature(NETWORK, r"Timed out initializing process group", "torch: distributed/distributed_c10d.py"),
    Signature(NETWORK, r"Max retries exceeded with url|Failed to (establish a new connection|resolve)", "urllib3"),
    Signature(NETWORK, r"Broken pipe|os error 32\b", "Linux: EPIPE; Rust's std::io"),
)
_NAMES = {
    "OutOfMemoryError": OUT_OF_MEMORY,  # torch.OutOfMemoryError
    "MemoryError": OUT_OF_MEMORY,
    "DistBackendError": NETWORK,  # torch.distributed
    "DistNetworkError": NETWORK,
    "DistStoreError": NETWORK,
    "DistError": NETWORK,
    # OSErrors without a number: requests, which huggingface_hub uses
    "ConnectionError": NETWORK,
    "ConnectTimeout": NETWORK,
    "ReadTimeout": NETWORK,
    "ChunkedEncodingError": NETWORK,
}
# A full disk is not among these: it may be the other node's. A quota waits for a person.
_LASTING = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.EDQUOT),
}

# What Slurm says of a killed rank, in extended regular expressions that bash, grep, sed and Python all read. Recorded
# from 22.05 (tests/words/test_failures.py); the wording of 23.02 and later is from its sources.
STEP_OUT_OF_MEMORY = (
    r"srun: error: .*: Out Of Memory"
    r"|slurmstepd.*: error: .*([Oo][Oo][Mm][-_ ][Kk]ill|exceeded (job|step|virtual|memory)[^,]* limit)"
    r"|slurmstepd.*: error: (Step|StepId=|Job)[^ ]* .*exceeded memory limit"
)
STEP_SICK_NODE = (
    r"srun: error: ([^ :]+): tasks? [^:]*: Bus error.*"
    r"|srun: error: Task launch for .* failed on node ([^ :]+): .*"
)
# What Slurm's commands print when slurmctld did not answer: what they asked for may have been done. The same dialect.
SLURM_NO_ANSWER = (
    r"timed out|Unable to contact|Zero Bytes|connect failure|Connection refused|Connection reset|did not end within"
)
# slurmctld answered that it has too much to do (rate limiting came with 23.02): nothing was done
SLURM_BUSY = (
    r"Resource temporarily unavailable|temporarily unable to accept|rate.?limit|[Bb]ackoff|back off|"
    r"Too many outstanding|[Ss]erver.? too busy"
)
_TASK_ENDED = re.compile(r"srun: error: (?:([^ :]+): )?tasks? ([\d,-]+): (.+)")
# what srun does to the others once one has failed: none of these was the first
_STOPPED_BY_SRUN = re.compile(r"Terminated|[Ee]xited with exit code (143|75)|killed by SIGTERM")


@dataclass(frozen=True)
class Failure:
    """The rank that failed first, in words. `kind` is one of this module's classes; `node` is "" where not known."""

    kind: str
    error: str
    rank: int | None = None
    node: str = ""
    hint: str = ""

    @property
    def text(self) -> str:
        """ "rank 3 on node2: Connection closed by peer"."""
        who = "" if self.rank is None else f"rank {self.rank}" + (f" on {self.node}" if self.node else "") + ": "
        return who + self.error


def classify(error: BaseException) -> Signature:
    """The class of an exception that ended a worker."""
    failures = getattr(error, "failures", None)
    if type(error).__name__ == "CheckpointException" and isinstance(failures, dict) and failures:
        found = [classify(first) for first, _ in failures.values()]  # of torch: one for each rank, with its traceback
        return next((signature for signature in found if signature.kind not in NOT_AGAIN), found[0])
    text = str(error)
    names = {cls.__name__ for cls in type(error).__mro__}
    known = next((kind for name, kind in _NAMES.items() if name in names), "")
    by_text = _of_text(text, _TEXTS)
    if by_text is not None and by_text.kind == OUT_OF_MEMORY:
        return by_text
    if known == OUT_OF_MEMORY or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return Signature(OUT_OF_MEMORY, "", "Python", _MORE_MEMORY)
    by_text = by_text if known or isinstance(error, (RuntimeError, OSError)) else None
    if by_text is not None and by_text.kind == NODE:
        return by_text
    if passing := _of_text(text, _TEXTS_OF_ANY):
        return passing
    if known or isinstance(error, (ConnectionError, TimeoutError)):
        return Signature(NETWORK, "", "torch.distributed, Python", HINTS[NETWORK])
    if isinstance(error, OSError):  # one without a number is a library's word for a file that is wrong or missing
        if error.errno is None or error.errno in _LASTING:
            return Signature(CONFIGURATION, "", "Python")
        return Signature(CRASH, "", "Python")
    return by_text or Signature(CONFIGURATION, "", "Python")


def _of_text(text: str, table: tuple[Signature, ...]) -> Signature | None:
    for signature in table:
        if re.search(signature.pattern, text):
            return signature._replace(hint=signature.hint or HINTS.get(signature.kind, ""))
    return None


def first_failure(attempt: Path, table: str) -> Failure | None:
    """The rank that failed first, from the reports in the folder of an attempt's ranks and from srun's words there.

    `table`: the stage's under [resources], for the hint.
    Ranks that only lost the others ("Connection closed by peer") come after one that was killed or gives a reason of
    its own, whatever their clocks say.
    """
    found: list[tuple[bool, float, Failure]] = []
    reported: set[int] = set()  # ranks that wrote a report, if only on another one
    for path in [*attempt.glob("fatal-*.json"), *attempt.glob("failure-*.json")]:
        if report := _report(path):
            failure, time = report
            reported.add(int(path.stem.rpartition("-")[2]))
            found.append((failure.kind == NETWORK, time, failure))
    for number, failure in enumerate(_killed(attempt)):
        if failure.rank is None or failure.rank not in reported:
            found.append((False, float(number), failure))  # before those who tell of it later
    if not found:
        return None
    first = min(found, key=lambda each: each[:2])[2]
    return replace(first, hint=first.hint.replace("{table}", table))


def _report(path: Path) -> tuple[Failure, float] | None:
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kind = report.get("kind") or (CONFIGURATION if path.name.startswith("fatal") else CRASH)
    failure = Failure(
        kind, str(report["error"]), int(report["rank"]), str(report.get("node", "")), str(report.get("hint", ""))
    )
    return failure, float(report.get("time") or path.stat().st_mtime)


def _killed(attempt: Path) -> list[Failure]:
    """Ranks that were killed, as srun told it, the first one first; not those that srun itself stopped."""
    step = _text(attempt / "step.log")
    out_of_memory = re.search(STEP_OUT_OF_MEMORY, step) or any(
        re.search(STEP_OUT_OF_MEMORY, _text(path, tail=4096)) for path in attempt.glob("rank-*.log")
    )
    found = []
    for match in _TASK_ENDED.finditer(step):
        node, tasks, how = match.groups()
        if _STOPPED_BY_SRUN.match(how):
            continue
        kind = CRASH
        if "Out Of Memory" in how or (out_of_memory and "illed" in how):
            kind = OUT_OF_MEMORY
        elif "Bus error" in how or "SIGBUS" in how:
            kind = NODE
        elif _text(attempt / f"stacks-{_first(tasks)}.txt"):
            kind = HANG
        found.append(Failure(kind, _in_words(kind, how), _first(tasks), node or "", _hint_of_killed(kind)))
    if not found and out_of_memory:
        found.append(Failure(OUT_OF_MEMORY, "the job ran out of memory", hint=_hint_of_killed(OUT_OF_MEMORY)))
    if not found and (launch := re.search(STEP_SICK_NODE, step)):
        node = launch[1] or launch[2]
        found.append(Failure(NODE, launch[0].removeprefix("srun: error: "), node=node, hint=HINTS[NODE]))
    return found


def _hint_of_killed(kind: str) -> str:
    """What to change after a rank was killed: host memory is the job's own limit, not the GPU's."""
    if kind == OUT_OF_MEMORY:
        return _MORE_MEMORY
    return HINTS[kind]


def _in_words(kind: str, how: str) -> str:
    if kind == OUT_OF_MEMORY:
        return "killed, out of memory"
    if kind == HANG:
        return f"{how}, after it hung"
    return f"ended without a report: {how}"


def _first(tasks: str) -> int:
    return int(re.split("[,-]", tasks)[0])


def _text(path: Path, *, tail: int = 0) -> str:
    try:
        with path.open("rb") as file:
            if tail and (size := path.stat().st_size) > tail:
                file.seek(size - tail)
            return file.read().decode(errors="replace")
    except OSError:
        return ""
