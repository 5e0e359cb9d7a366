"""Each thing that cannot work is refused before anything is submitted, with a place and a next step."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from launcher.errors import Fault, InputError
from launcher.sites import Node, Partition, Quirks, ResourceDefaults, Site, SiteEnvironment

from .conftest import ADAPTERS, DATA, GPUS, LOCAL, TRAIN, Planned

pytestmark = pytest.mark.unit

SFT = DATA + TRAIN
LORA = 'tuner = "lora"\n'
V100 = dataclasses.replace(GPUS, node=dataclasses.replace(GPUS.node, gpu_type="v100"))
NO_GPTQ = dataclasses.replace(
    LOCAL, environments={role: place for role, place in LOCAL.environments.items() if role != "gptq"}
)


def faults(planned: Planned, text: str, **changes: Any) -> list[Fault]:
    with pytest.raises(InputError) as caught:
        planned(text, **changes)
    return list(caught.value.faults)


@pytest.mark.parametrize(
    ("text", "site", "where", "message"),
    [
        # not built
        (SFT + 'method = "grpo"', GPUS, "train.method", '"grpo" is not built for megatron'),
        (SFT + 'optimizer = "galore_adamw"', GPUS, "train.optimizer", '"galore_adamw" is not built for megatron'),
        # layout, number formats, lengths
        (SFT + "layout = { tensor = 2 }", GPUS, "train.layout.tensor", "2 does not divide the model's 9"),
        (
            SFT + "[resources.train]\ntasks_per_node = 3",
            GPUS,
            "train.global_batch_size",
            "16 is not divisible by micro_batch_size * DP = 1 * 3",
        ),
        (SFT.replace("= 128", "= 9000"), GPUS, "train.sequence_length", "9000 is longer than the 8192"),
        (SFT, V100, "train.precision", "v100 GPUs have no bf16"),
        (SFT + 'precision = "fp8"', V100, "train.precision", "v100 GPUs have no fp8 units"),
        (SFT + 'precision = "fp8"', LOCAL, "train.precision", "fp8 is for GPUs"),
        (
            SFT.replace("= 128", "= 72") + 'precision = "fp8"',
            GPUS,
            "train.sequence_length",
            "a rank's 72 tokens of a pass are not a multiple of 16",
        ),
        (
            SFT + 'precision = "fp32"\nlayout = { context = 2 }',
            GPUS,
            "train.layout.context",
            "context parallelism on GPUs needs fused attention",
        ),
        # quantization and serving
        (
            DATA + '[quantize]\nmethod = "gptq"',
            LOCAL,
            "quantize.group_size",
            "128 does not divide the inputs of every layer (576, 1536)",
        ),
        (DATA + '[quantize]\nmethod = "gptq"\ngroup_size = 256', LOCAL, "quantize.group_size", "256 has no kernel"),
        ('[serve]\nengine = "sglang"', LOCAL, "serve.engine", "SGLang's released wheels have no CPU kernels"),
        (
            DATA + '[quantize]\nmethod = "gptq"\ngroup_size = 32\n[serve]\nengine = "vllm"',
            LOCAL,
            "serve.engine",
            "vLLM's CPU build has",
        ),
        (
            '[serve]\nengine = "vllm"\n[resources.serve]\ngpus_per_node = 2',
            GPUS,
            "resources.serve.gpus_per_node",
            "2 GPUs cannot divide the model's 9 attention heads",
        ),
        (
            '[serve]\nkeep_alive_minutes = 60\n[resources.serve]\ntime_limit = "1h"',
            LOCAL,
            "serve.keep_alive_minutes",
            "60 is not shorter than the stage's time limit of 60 minutes",
        ),
        # the site
        ("[serve]\n[resources.serve]\ngpus_per_node = 1", LOCAL, "resources.serve.gpus_per_node", "1 GPU asked for"),
        (
            "[serve]\n[resources.serve]\ngpus_per_node = 9",
            GPUS,
            "resources.serve.gpus_per_node",
            "9 is more than the 8",
        ),
        (
            '[serve]\n[resources.default]\npartition = "cpu"\ngpus_per_node = 1',
            GPUS,
            "resources.default.gpus_per_node",
            "1 GPU asked for, partition cpu has none",
        ),
        (SFT + "[resources.train]\nnodes = 65", GPUS, "resources.train.nodes", "65 is more than the 64 nodes"),
        (
            SFT + "[resources.train]\ncpus_per_task = 13",
            GPUS,
            "resources.train.cpus_per_task",
            "8 ranks of 13 cores need more than the 96",
        ),
        (
            '[serve]\n[resources.serve]\nmemory = "17G"',
            LOCAL,
            "resources.serve.memory",
            "17.0 GiB is more than the 16.0",
        ),
        (
            '[serve]\n[resources.serve]\ntime_limit = "25h"',
            GPUS,
            "resources.serve.time_limit",
            "1-01:00:00 is over the limit of partition gpu",
        ),
        (
            '[serve]\n[resources.serve]\npartition = "gpus"',
            GPUS,
            "resources.serve.partition",
            "site centre has no partition 'gpus'",
        ),
        (
            '[serve]\n[resources.serve]\npartition = "gpu"',
            LOCAL,
            "resources.serve.partition",
            "the local scheduler has no partitions",
        ),
        (
            SFT + "[resources.train]\ntasks_per_node = 2\ngpus_per_node = 4",
            GPUS,
            "resources.train.tasks_per_node",
            "2 ranks for 4 GPUs",
        ),
        (
            "[serve]\n[resources.serve]\ntasks_per_node = 2",
            GPUS,
            "resources.serve.tasks_per_node",
            "serve is one rank",
        ),
        (
            DATA + '[quantize]\nmethod = "gptq"\ngroup_size = 32',
            NO_GPTQ,
            "local.toml: environments",
            "site local has no environment for gptq",
        ),
        ("", LOCAL, "", "the recipe asks for nothing"),
    ],
)
def test_refused(planned: Planned, text: str, site: Site, where: str, message: str) -> None:
    found = faults(planned, text, site=site)
    assert [fault for fault in found if fault.where == where and fault.message.startswith(message)], found
    assert all(fault.hint for fault in found if fault.where == where and where != "train.layout")


def test_weights_that_are_not_there(planned: Planned) -> None:
    (fault,) = faults(planned, "[serve]", fetched=False)
    assert fault.where == "model.name"
    assert fault.hint == "run: swiftlaunch models fetch smollm2-135m-instruct --site local"


def test_an_architecture_that_megatron_does_not_train(planned: Planned) -> None:
    (fault,) = faults(planned, SFT, site=GPUS, model="gemma-2-9b-it")
    assert fault.message == "Megatron-core does not train gemma2 models here"


@pytest.mark.parametrize(
    ("model", "text", "where", "message"),
    [
        ("qwen3-8b", LORA + 'lora.target_modules = ["lm_head"]', "train.lora.target_modules", "not linear layers"),
        ("qwen3-8b", LORA + 'lora.target_modules = ["q_proj"]', "train.lora.target_modules", "q_proj, k_proj, v"),
        ("qwen3-30b-a3b", LORA + "layout.expert_tensor = 2", "train.layout.expert_tensor", "adapters of experts"),
        ("gpt-oss-20b", LORA + "layout.context = 2", "train.layout.context", "attention with sinks"),
        ("gpt-oss-20b", LORA + "packing = true", "train.packing", "attention with sinks"),
    ],
)
def test_what_a_family_cannot(planned: Planned, model: str, text: str, where: str, message: str) -> None:
    found = [fault for fault in faults(planned, SFT + text, site=GPUS, model=model) if fault.where == where]
    assert [fault for fault in found if fault.message.startswith(message) and fault.hint], found


def test_an_environment_without_a_lock_file(planned: Planned) -> None:
    (fault,) = faults(planned, "[serve]", lock_hashes={})
    assert fault.message == "no lock file is shipped for the transformers environment"


def test_values_of_the_site_are_named_where_they_stand(planned: Planned) -> None:
    site = dataclasses.replace(LOCAL, defaults={"serve": ResourceDefaults(memory_mib=20000)})
    (fault,) = faults(planned, "[serve]", site=site)
    assert fault.where == "local.toml: defaults.serve.memory"


def test_faults_of_the_data_and_of_every_stage_come_at_once(planned: Planned) -> None:
    text = (
        DATA
        + TRAIN
        + 'method = "grpo"\noptimizer = "galore_adamw"\nlayout = { tensor = 2 }\n[quantize]\nmethod = "gptq"\n'
        + '[serve]\nengine = "sglang"\n[resources.train]\nnodes = 5\nmemory = "99G"\n'
    )
    data_fault = Fault("data.jsonl:3", "is not JSON")
    found = faults(planned, text, site=NO_GPTQ, data_faults=(data_fault,), fetched=False)
    assert {fault.where for fault in found} >= {
        "data.jsonl:3",
        "model.name",
        "train.method",
        "train.optimizer",
        "train.layout.tensor",
        "quantize.group_size",
        "serve.engine",
        "resources.train.nodes",
        "resources.train.memory",
        "local.toml: environments",
    }
    assert len(found) == len(set(found))


# -- memory


def test_a_model_whose_states_alone_do_not_fit(planned: Planned) -> None:
    (fault,) = faults(planned, SFT, site=GPUS, model="qwen3-32b")
    assert fault.where == "resources.train"
    assert fault.message.startswith("weights, gradients and optimizer alone need ")
    assert "tensor" in fault.hint
    tuned = planned(SFT + 'tuner = "lora"\nlayout = { tensor = 4 }', site=GPUS, model="qwen3-32b")
    assert not [warning for warning in tuned.warnings if "train needs" in warning]


def test_memory_that_is_tight_is_a_warning(planned: Planned) -> None:
    plan = planned(DATA + ADAPTERS + '[resources.train]\nmemory = "1G"')
    assert any(warning.startswith("resources.train.memory: train needs about ") for warning in plan.warnings)
    served = planned("[serve]", site=GPUS, model="llama-3.3-70b-instruct")
    assert any(warning.startswith("resources.serve: serve needs about ") for warning in served.warnings)
    enough = planned("[serve]\n[resources.serve]\ngpus_per_node = 8", site=GPUS, model="llama-3.3-70b-instruct")
    assert enough.warnings == ()


# -- warnings


@pytest.mark.parametrize(
    ("text", "site", "start"),
    [
        (SFT, LOCAL, "train.precision: bf16 on CPUs"),
        (SFT + 'precision = "fp32"', GPUS, "train.precision: fp32 on GPUs"),
        (
            SFT.replace("batch_size = 16", "batch_size = 8") + "layout = { pipeline = 3 }\nmicro_batch_size = 4\n"
            "[resources.train]\ntasks_per_node = 3",
            GPUS,
            "train.layout.pipeline: 2 micro-batches a step leave some of 3 pipeline stages idle",
        ),
    ],
)
def test_warned(planned: Planned, text: str, site: Site, start: str) -> None:
    warnings = planned(text, site=site).warnings
    assert [warning for warning in warnings if warning.startswith(start)], warnings


def test_tensor_parallel_over_nodes(planned: Planned) -> None:
    text = SFT + "layout = { tensor = 8 }\n[resources.train]\nnodes = 2\ntasks_per_node = 4"
    warnings = planned(text, site=GPUS, model="qwen3-8b").warnings
    assert any("span nodes" in warning for warning in warnings)


def test_fp8_on_gpus_without_it(planned: Planned) -> None:
    a100 = dataclasses.replace(GPUS, node=dataclasses.replace(GPUS.node, gpu_type="a100"))
    text = '[quantize]\nmethod = "fp8"\n[serve]'
    assert any("have no fp8 units" in warning for warning in planned(text, site=a100).warnings)
    assert not [warning for warning in planned(text, site=GPUS).warnings if "fp8 units" in warning]


def test_data_files_that_a_container_cannot_see(planned: Planned) -> None:
    environments = {
        **GPUS.environments,
        "train": SiteEnvironment("train", "pyxis", "python3", image="/i.sqsh", mounts=("/data:/data",)),
    }
    site = dataclasses.replace(GPUS, environments=environments)
    text = '[data]\nsource = "files"\ntrain = ["{}/a.jsonl"]\n' + TRAIN
    hidden = planned(text.format("/elsewhere"), site=site).warnings
    assert hidden == (
        "data: /elsewhere/a.jsonl is in no mount of the train container; "
        "add its folder to environments.train.mounts of the site",
    )
    assert planned(text.format("/data/sets"), site=site).warnings == ()


def test_a_small_node_gives_no_stage_less_than_one_core(planned: Planned) -> None:
    tiny = dataclasses.replace(LOCAL, node=Node(cpus=1, memory_mib=4096, count=1))
    found = faults(planned, DATA + ADAPTERS + "layout = { pipeline = 2 }", site=tiny)
    assert found[0].message == "2 ranks of 1 core need more than the 1 of a node"


def test_limits_that_nobody_asked_for_are_cut_to_the_partition(planned: Planned) -> None:
    short = dataclasses.replace(GPUS, partitions=(Partition("short", time_limit_minutes=30),), quirks=Quirks())
    assert planned(SFT, site=short).stage("train").resources.time_limit_minutes == 30


def test_resources_of_a_stage_that_is_not_there_are_said(planned: Planned) -> None:
    text = DATA + ADAPTERS + "[resources.default]\nmemory = '8G'\n[resources.train]\nmemory = '9G'\n"
    assert planned(text).warnings == ()
    unused = planned(text + "[resources.serve]\nmemory = '4G'\n").warnings
    assert unused == ("resources.serve: the recipe has no such stage",)
