"""A worker of two groups for tests, `train` and `sample`: it does what the test tells each start of each group.

Each group forms a world of its own. The samplers listen; train's rank r mod n sends every sampler a vector with the
sampler's token, gets its sum back, and shares it with the other ranks of train. With the option `torch` the worlds
are gloo's and the sums are its all_reduce; without it only the files of the rendezvous are at work.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import time

from launcher.errors import WorkerError
from launcher.work.context import Requeue


def run(context):
    acts = json.loads((context.files.stage(context.stage.name) / "acts").read_text())
    act = acts.get(f"{context.group}.{context.attempt}.{context.start}", "work")
    where = {
        "node": os.environ["SLURMD_NODENAME"],
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "variable": os.environ.get("WHO", ""),
        "world": context.world_size,
    }
    context.event("progress", done=context.attempt, total=1, unit=act, start=context.start, **where)
    if act == "wrong":
        raise WorkerError("the layers do not divide")
    if act == "net":
        raise ConnectionError("peer went away")
    if act == "absent" and context.rank == context.world_size - 1:
        wait(context)
    if act == "deaf":  # asked to stop in vain
        time.sleep(600)
    world = World(context)
    if context.group == "sample":
        sample(context, world, act)
    else:
        train(context, world, act)


def wait(context):
    while not context.stop_requested:
        time.sleep(0.05)
    raise Requeue(signal.Signals(context.stop_signal).name)


class World:
    """The ranks of one group."""

    def __init__(self, context):
        host, port = context.rendezvous(timeout_seconds=60)
        context.event("metric", name="meeting", value=port)
        self.torch = context.options["torch"]
        if self.torch:
            import torch.distributed as dist

            address = f"tcp://{host}:{port}"
            dist.init_process_group("gloo", init_method=address, rank=context.rank, world_size=context.world_size)

    def sum(self, numbers):
        """The sum over the ranks of this group."""
        if not self.torch:
            return numbers
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()


def sample(context, world, act):
    """Answer every vector with its sum; the ranks of the group add to it how many they are."""
    ranks = world.sum([1.0])[0]
    listener = socket.create_server(("", 0))
    listener.settimeout(0.1)
    context.announce("samples", listener.getsockname()[1])
    if act == "hung" and context.is_main:  # what the ranks leave that found it out
        for name in ("hang", "hang-0.json", "hang-on-local3"):
            (context.files.ranks(context.stage.name, context.attempt, context.group) / name).touch()
    if act in ("crash", "hung"):
        time.sleep(1)
        if context.rank == context.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
    token = next(m.token for m in context.members("samples", "sample", ranks=[context.rank], after=context.start - 1))
    while not context.stop_requested:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection:
            connection.settimeout(5)
            if receive(connection, 32).decode() != token:
                continue
            numbers = struct.unpack("3d", receive(connection, 24))
            connection.sendall(struct.pack("2d", sum(numbers), ranks))
    raise Requeue(signal.Signals(context.stop_signal).name)


def train(context, world, act):
    if act == "alone":
        while not (context.files.stage(context.stage.name) / "go").exists():
            if context.stop_requested:
                raise Requeue("asked to stop")
            time.sleep(0.05)
    ranks = world.sum([1.0])[0]
    answers, start = ([], 0) if act == "alone" else exchange(context, act)
    total = world.sum([float(sum(total for total, _ in answers)) if context.is_main else 0.0])[0]
    if act == "wait":
        context.event("metric", name="exchanged", value=total)
        wait(context)
    if context.is_main:
        context.finish(metrics={"total": total, "ranks": ranks, "answers": answers, "start": start})


def exchange(context, act):
    """Send each sampler a vector; samplers that were started again meanwhile are asked again."""
    after, deadline = 0, time.monotonic() + 60
    while True:
        members = context.members("samples", "sample", after=after, timeout_seconds=context.options["timeout_seconds"])
        try:
            if act == "late":  # the first samplers have crashed by now
                time.sleep(3)
                act = "work"
            return [ask(member) for member in members], members[0].start
        except OSError:
            assert time.monotonic() < deadline
            after = members[0].start


def ask(member):
    with contextlib.closing(socket.create_connection((member.host, member.port), timeout=5)) as connection:
        connection.sendall(member.token.encode() + struct.pack("3d", 1.0, 2.0, 3.0 + member.rank))
        return struct.unpack("2d", receive(connection, 16))


def receive(connection, length):
    data = b""
    while len(data) < length:
        chunk = connection.recv(length - len(data))
        if not chunk:
            raise ConnectionError("closed")
        data += chunk
    return data
