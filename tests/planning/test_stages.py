from __future__ import annotations

import dataclasses

import pytest

from launcher.errors import InputError
from launcher.plan import Plan, from_json
from launcher.sites import Network, Price, Quirks, ResourceDefaults

from .conftest import ADAPTERS, DATA, GPUS, LOCAL, TRAIN, Planned

pytestmark = pytest.mark.unit

CHAIN = DATA + ADAPTERS + '[evaluate]\n[quantize]\nmethod = "gptq"\ngroup_size = 32\n[serve]\n'


def graph(plan: Plan) -> dict[str, tuple[str, ...]]:
    return {stage.name: stage.depends_on for stage in plan.stages}


def models(plan: Plan) -> dict[str, str]:
    """Where each stage's model comes from."""
    return {
        stage.name: stage.options["model"].get("artifact_of") or stage.options["model"]["path"] for stage in plan.stages
    }


def test_a_whole_chain_on_a_centre(planned: Planned) -> None:
    plan = planned(CHAIN, site=GPUS)
    assert graph(plan) == {
        "baseline": (),
        "train": (),
        "export": ("train",),
        "evaluate": ("export",),
        "quantize": ("export",),
        "evaluate-quantized": ("quantize",),
        "serve": ("quantize",),
    }
    base = "/scratch/models/smollm2-135m-instruct"
    assert models(plan) == {
        "baseline": base,
        "train": base,
        "export": base,
        "evaluate": "export",
        "quantize": "export",
        "evaluate-quantized": "quantize",
        "serve": "quantize",
    }
    assert [stage.worker for stage in plan.stages] == [
        "evaluate", "train", "export", "evaluate", "quantize", "evaluate", "serve",
    ]  # fmt: skip
    assert [stage.environment.role for stage in plan.stages] == [
        "transformers", "train", "train", "transformers", "gptq", "gptq", "sglang",
    ]  # fmt: skip


def test_on_one_machine_stages_wait_for_each_other(planned: Planned) -> None:
    plan = planned(CHAIN)
    names = [stage.name for stage in plan.stages]
    for before, stage in zip(names, plan.stages[1:], strict=False):
        assert before in stage.depends_on
    assert plan.stage("quantize").depends_on == ("export", "evaluate")
    single = dataclasses.replace(GPUS, node=dataclasses.replace(GPUS.node, count=1))
    assert planned(CHAIN, site=single).stage("train").depends_on == ("baseline",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[serve]", {"serve": ()}),
        (DATA + "[evaluate]", {"evaluate": ()}),
        (DATA + '[quantize]\nmethod = "gptq"\ngroup_size = 64', {"quantize": ()}),
        (DATA + TRAIN, {"train": (), "export": ("train",)}),
        (
            DATA + TRAIN + "[evaluate]\nbaseline = false",
            {"train": (), "export": ("train",), "evaluate": ("export",)},
        ),
    ],
)
def test_parts_of_the_chain(planned: Planned, text: str, expected: dict[str, tuple[str, ...]]) -> None:
    assert graph(planned(text, site=GPUS)) == expected


def test_the_base_model_is_quantized_and_served_without_training(planned: Planned) -> None:
    plan = planned(DATA + '[evaluate]\n[quantize]\nmethod = "gptq"\ngroup_size = 32\n[serve]', site=GPUS)
    base = "/scratch/models/smollm2-135m-instruct"
    assert models(plan) == {
        "evaluate": base, "quantize": base, "evaluate-quantized": "quantize", "serve": "quantize",
    }  # fmt: skip


@pytest.mark.parametrize("method", ["fp8", "int8"])
def test_what_transformers_would_unpack_is_not_scored(planned: Planned, method: str) -> None:
    plan = planned(DATA + f'[evaluate]\n[quantize]\nmethod = "{method}"\n[serve]')
    assert [stage.name for stage in plan.stages] == ["evaluate", "quantize", "serve"]
    assert any(warning.startswith("evaluate-quantized is left out: ") for warning in plan.warnings)
    assert plan.stage("quantize").environment.role == "compressor"
    assert plan.stage("serve").options["engine"] == "vllm"  # auto, on a machine without GPUs


def test_scores_of_the_quantized_model_can_be_declined(planned: Planned) -> None:
    plan = planned(DATA + '[evaluate]\n[quantize]\nmethod = "fp8"\nevaluate = false', site=GPUS)
    assert [stage.name for stage in plan.stages] == ["evaluate", "quantize"]
    assert plan.warnings == ()


def test_options_are_the_resolved_sections(planned: Planned) -> None:
    plan = planned(CHAIN)
    train = plan.stage("train").options
    assert set(train) == {"model", "data", "train", "tracking", "peak_tflops"}
    assert train["train"]["lora"]["rank"] == 16  # a default, written out
    assert set(plan.stage("export").options) == {"model", "data", "train", "train_stage"}
    assert set(plan.stage("evaluate").options) == {"model", "data", "evaluate"}
    assert set(plan.stage("quantize").options) == {"model", "data", "quantize"}
    assert set(plan.stage("serve").options) == {"model", "serve", "engine", "quantization"}
    assert all(stage.options["model"]["name"] == "smollm2-135m-instruct" for stage in plan.stages)


@pytest.mark.parametrize(
    ("gpu_type", "changes", "tflops"),
    [
        ("nvidia_h100_80gb_hbm3", "", 989),
        ("a100", "", 312),
        ("a100", 'precision = "fp32"\n', None),  # rates are of bf16
        ("unheard-of", "", None),
        ("a100", "[resources.train]\ngpus_per_node = 0\n", None),
    ],
)
def test_the_job_knows_the_rate_of_its_gpus(
    planned: Planned, gpu_type: str, changes: str, tflops: float | None
) -> None:
    site = dataclasses.replace(GPUS, node=dataclasses.replace(GPUS.node, gpu_type=gpu_type))
    assert planned(DATA + TRAIN + changes, site=site).stage("train").options["peak_tflops"] == tflops


@pytest.mark.parametrize(
    ("secrets", "given", "mode"),
    [
        ('["WANDB_API_KEY"]', "", "online"),
        ('["HF_TOKEN"]', "", "offline"),
        ('["WANDB_API_KEY"]', 'wandb_mode = "offline"', "offline"),
    ],
)
def test_a_key_makes_wandb_go_online(planned: Planned, secrets: str, given: str, mode: str) -> None:
    plan = planned(DATA + ADAPTERS + f"[tracking]\nwandb = true\n{given}\n[env]\nsecrets = {secrets}\n")
    assert plan.stage("train").options["tracking"]["wandb_mode"] == mode


def test_the_same_arguments_give_the_same_bytes(planned: Planned) -> None:
    text = CHAIN + '[env.variables]\nZ = "1"\nA = "2"\n'
    once, twice = planned(text, site=GPUS), planned(text, site=GPUS)
    assert once.to_json() == twice.to_json()
    assert from_json(once.to_json()) == once


# -- resources


def test_training_gets_whole_nodes_and_other_stages_one_gpu(planned: Planned) -> None:
    plan = planned(DATA + TRAIN + "[evaluate]", site=GPUS)
    train, evaluate = plan.stage("train").resources, plan.stage("evaluate").resources
    assert (train.tasks_per_node, train.gpus_per_node, train.cpus_per_task) == (8, 8, 12)
    assert (train.memory_mib, train.partition, train.time_limit_minutes) == (1_900_000, "gpu", 1440)
    assert (evaluate.tasks_per_node, evaluate.gpus_per_node, evaluate.cpus_per_task) == (1, 1, 12)
    assert evaluate.memory_mib == 1_900_000 // 8


def test_on_cpus_training_gets_the_ranks_of_its_layout(planned: Planned) -> None:
    need = planned(DATA + ADAPTERS + "layout = { pipeline = 2 }").stage("train").resources
    assert (need.nodes, need.tasks_per_node, need.cpus_per_task) == (1, 2, 1)


def test_a_recipe_that_names_ranks_gets_a_gpu_for_each(planned: Planned) -> None:
    text = DATA + TRAIN + "[resources.train]\ntasks_per_node = 2\n"
    site = dataclasses.replace(GPUS, defaults={"train": ResourceDefaults(gpus_per_node=8, nodes=1)})
    need = planned(text, site=site).stage("train").resources
    assert (need.tasks_per_node, need.gpus_per_node, need.cpus_per_task) == (2, 2, 12)


def test_recipe_over_site_over_usual(planned: Planned) -> None:
    site = dataclasses.replace(
        GPUS,
        account="site-account",
        qos="site-qos",
        defaults={
            "evaluate": ResourceDefaults(
                cpus_per_task=3, memory_mib=3000, time_limit_minutes=33, account="stage", extra=("--exclusive",)
            )
        },
    )
    text = DATA + TRAIN + "[evaluate]\n"
    need = planned(text, site=site).stage("evaluate").resources
    assert (need.cpus_per_task, need.memory_mib, need.time_limit_minutes) == (3, 3000, 33)
    assert (need.account, need.qos, need.extra) == ("stage", "site-qos", ("--exclusive",))
    # the baseline is an evaluation too
    assert planned(text, site=site).stage("baseline").resources.cpus_per_task == 3
    text += (
        '[resources.default]\ncpus_per_task = 4\nmemory = "4000M"\n[resources.evaluate]\nmemory = "5000M"\nextra = []\n'
    )
    need = planned(text, site=site).stage("evaluate").resources
    assert (need.cpus_per_task, need.memory_mib, need.extra) == (4, 5000, ())
    text += '[resources.baseline]\nmemory = "6000M"\n'
    assert planned(text, site=site).stage("baseline").resources.memory_mib == 6000


def test_gpu_stages_of_a_cpu_partition_run_on_cpus(planned: Planned) -> None:
    plan = planned(DATA + TRAIN + '[resources.export]\npartition = "cpu"', site=GPUS)
    need = plan.stage("export").resources
    assert (need.partition, need.gpus_per_node, need.cpus_per_task) == ("cpu", 0, 12)


def test_gpus_for_every_stage_leave_out_those_that_the_site_keeps_on_cpus(planned: Planned) -> None:
    site = dataclasses.replace(GPUS, defaults={"export": ResourceDefaults(partition="cpu")})
    plan = planned(DATA + TRAIN + "[resources.default]\ngpus_per_node = 4\ntasks_per_node = 4", site=site)
    assert [stage.resources.gpus_per_node for stage in plan.stages] == [4, 0]


def test_ways_of_a_site(planned: Planned) -> None:
    quirks = Quirks(gpu_option="gres", no_requeue=True, no_mem=True, extra=("--mail-type=NONE",))
    plan = planned(DATA + TRAIN, site=dataclasses.replace(GPUS, quirks=quirks))
    need = plan.stage("train").resources
    assert (need.gres, need.requeue, need.whole_nodes) == ("gpu:h100:8", False, True)
    assert need.extra == ("--mail-type=NONE",)
    resume = plan.stage("train").resume
    assert (resume.mode, resume.continuations) == ("chain", 2)
    assert plan.stage("train").max_attempts == 5


def test_resume(planned: Planned) -> None:
    plan = planned(DATA + TRAIN + '[resume]\nmode = "chain"\ncontinuations = 4\nhang_factor = 0', site=GPUS)
    train = plan.stage("train")
    assert (train.resume.mode, train.resume.continuations, train.resume.hang_factor) == ("chain", 4, 0.0)
    assert not train.resources.requeue
    assert planned(DATA + TRAIN, site=GPUS).stage("train").resume.continuations == 0


def test_requeueing_where_the_site_refuses_it(planned: Planned) -> None:
    site = dataclasses.replace(GPUS, quirks=Quirks(no_requeue=True))
    with pytest.raises(InputError) as raised:
        planned(DATA + TRAIN + '[resume]\nmode = "requeue"', site=site)
    (fault,) = raised.value.faults
    assert (fault.where, fault.hint) == ("resume.mode", 'use mode = "chain"')


def test_attempts(planned: Planned) -> None:
    plan = planned(DATA + TRAIN + "[resources.export]\nmax_attempts = 7", site=GPUS)
    assert [stage.max_attempts for stage in plan.stages] == [5, 7]


def test_a_server_has_time_to_live(planned: Planned) -> None:
    plan = planned("[serve]\nkeep_alive_minutes = 240", site=GPUS)
    assert plan.stage("serve").resources.time_limit_minutes == 270


# -- environment variables


def test_variables_of_a_stage(planned: Planned) -> None:
    site = dataclasses.replace(
        LOCAL,
        network=Network(interface="lo", rendezvous_host="127.0.0.1"),
        variables=(("HF_HUB_OFFLINE", "0"), ("SITE", "1")),
    )
    plan = planned(DATA + ADAPTERS + '[env.variables]\nSITE = "2"\nOWN = "a b"', site=site)
    assert plan.stage("train").environment.variables == (
        ("CUDA_DEVICE_MAX_CONNECTIONS", "1"),
        ("GLOO_SOCKET_IFNAME", "lo"),
        ("HF_HUB_OFFLINE", "0"),
        ("NCCL_SOCKET_IFNAME", "lo"),
        ("OMP_NUM_THREADS", "2"),
        ("OWN", "a b"),
        ("SITE", "2"),
        ("SWIFTLAUNCH_RENDEZVOUS_HOST", "127.0.0.1"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("TP_SOCKET_IFNAME", "lo"),
    )
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in dict(plan.stage("export").environment.variables)


def test_secrets_are_names_alone(planned: Planned) -> None:
    assert planned("[serve]\n[env]\nsecrets = ['HF_TOKEN']").secrets == ("HF_TOKEN",)


# -- estimates


def test_estimates_say_what_they_rest_on(planned: Planned) -> None:
    plan = planned(CHAIN)
    assert all(stage.estimate.basis for stage in plan.stages)
    assert all(stage.estimate.memory_mib_per_rank for stage in plan.stages)
    assert plan.stage("serve").estimate.seconds is None


def test_train_time_by_hand(planned: Planned) -> None:
    # 10 steps x 16 x 128 = 20480 tokens; 6 x 134 515 008 operations each; 2 cores at 30 GFLOP/s; 30 s to start
    plan = planned(DATA + TRAIN + 'precision = "fp32"\n[resources.train]\ntasks_per_node = 1')
    expected = 30 + 6 * 134_515_008 * 20480 / 60e9  # 305.5
    assert plan.stage("train").estimate.seconds == pytest.approx(expected, rel=0.05)
    assert plan.stage("train").estimate.seconds == 310.0  # two digits
    adapters = planned(DATA + ADAPTERS).stage("train").estimate.seconds
    assert adapters == pytest.approx(30 + 4 * 134_515_008 * 20480 / 60e9, rel=0.05)


def test_gpu_hours_and_cost_by_hand(planned: Planned) -> None:
    text = DATA + TRAIN.replace("steps = 10\n", "steps = 10000\n").replace("128\n", "4096\n")
    site = dataclasses.replace(GPUS, cost_per_gpu_hour=Price(2.0, "EUR"))
    estimate = planned(text, site=site, model="qwen3-8b").stage("train").estimate
    active = 8_190_735_360
    seconds = 30 + 6 * active * 10000 * 16 * 4096 / (0.4 * 989e12 * 8)
    assert estimate.seconds == pytest.approx(seconds, rel=0.05)
    assert estimate.gpu_hours == pytest.approx(seconds * 8 / 3600, rel=0.06)
    assert "EUR at 2 EUR per GPU hour" in estimate.basis


def test_no_figure_where_there_is_nothing_honest_to_say(planned: Planned) -> None:
    unknown = dataclasses.replace(GPUS, node=dataclasses.replace(GPUS.node, gpu_type="tomorrow100"))
    estimate = planned(DATA + TRAIN, site=unknown).stage("train").estimate
    assert (estimate.seconds, estimate.gpu_hours) == (None, None)
    assert "tomorrow100" in estimate.basis
