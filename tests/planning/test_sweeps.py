"""A sweep divided: what is done once, by each point, by the best one; which points share a script; what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher import assets
from launcher.errors import Fault, InputError
from launcher.models import FoundModel
from launcher.plan import Plan
from launcher.planner import SweepPlan, make_plan
from launcher.prepare import sweep_scripts, swept
from launcher.recipe import LoadedRecipe, load_recipe
from launcher.render import Place, render
from launcher.rundir import RunDir
from launcher.sites import Site
from tests.planning.conftest import DATA, GPUS, IDENTITY, LOCAL, LOCKS, TRAIN, facts

pytestmark = pytest.mark.unit

CHAIN = DATA + TRAIN + 'tuner = "lora"\n[evaluate]\n[quantize]\nmethod = "gptq"\ngroup_size = 32\n[serve]\n'
Swept = Callable[..., SweepPlan]


@pytest.fixture
def sweep(tmp_path: Path) -> Swept:
    def make(table: str, *, text: str = CHAIN, site: Site = GPUS) -> SweepPlan:
        path = tmp_path / "recipe.toml"
        path.write_text(f'name = "test"\nmodel.name = "smollm2-135m-instruct"\n{text}[sweep]\n{table}')
        loaded = load_recipe(path)
        model = FoundModel(facts("smollm2-135m-instruct"), Path(site.models_dir) / "m", "models_dir")

        def plan(point: LoadedRecipe, run_id: str) -> Plan:
            return make_plan(
                point.recipe,
                resolved=point.resolved,
                site=site,
                model=model,
                data_hash="abc",
                data_faults=(),
                identity=dataclasses.replace(IDENTITY, run_id=run_id),
                lock_hashes=LOCKS,
            )

        return swept(loaded, plan, "run-1", site)

    return make


def refused(sweep: Swept, table: str, **changes: Any) -> Fault:
    with pytest.raises(InputError) as caught:
        sweep(table, **changes)
    assert len(caught.value.faults) == 1, caught.value.faults
    return caught.value.faults[0]


RATES = 'parameters."train.learning_rate" = [1e-4, 2e-4, 3e-4]\n'
TRAINED = ("train", "export", "evaluate", "quantize", "evaluate-quantized", "serve")


@pytest.mark.parametrize("site", [LOCAL, GPUS], ids=["local", "slurm"])
@pytest.mark.parametrize(
    ("parameters", "metric", "each"),
    [
        (RATES, "evaluate.accuracy", TRAINED),
        ('parameters."quantize.bits" = [4, 8]\n', "evaluate-quantized.accuracy", TRAINED[3:]),
        ('parameters."serve.max_new_tokens" = [4, 8]\n', "serve.seconds", ("serve",)),
        (
            'parameters."evaluate.max_new_tokens" = [4, 8]\n',
            "evaluate.accuracy",
            ("baseline", "evaluate", "evaluate-quantized"),
        ),
        ('parameters."resources.export.memory" = ["8G", "9G"]\n', "serve.seconds", TRAINED[1:]),
        ('parameters."data.train_seed" = [5, 6]\n', "evaluate.accuracy", ("baseline", *TRAINED)),
    ],
)
def test_what_does_not_differ_is_done_once(
    sweep: Swept, site: Site, parameters: str, metric: str, each: tuple[str, ...]
) -> None:
    found = sweep(f'{parameters}metric = "{metric}"\n', site=site)
    assert (found.each, found.best) == (each, ())
    once = [stage for stage in found.plan.stages if stage.name not in each]
    assert not any(set(stage.depends_on) & set(each) for stage in once)
    assert len(found.everything) == len(once) + len(found.plans) * len(each)


@pytest.mark.parametrize("site", [LOCAL, GPUS], ids=["local", "slurm"])
def test_what_comes_after_the_metric_is_done_once_for_the_best(sweep: Swept, site: Site) -> None:
    found = sweep(RATES + 'then = "best"\n', site=site)
    assert (found.each, found.best) == (TRAINED[:3], TRAINED[3:])
    names = [stage.name for stage in found.plan.stages]
    assert names == ["baseline", *TRAINED[:3], "select", *TRAINED[3:]]
    select = found.plan.stage("select")
    assert (select.depends_on, select.resources.gpus_per_node) == (("evaluate",), 0)
    assert all("select" in found.plan.stage(name).depends_on for name in found.best)
    for stage in found.plan.stages:
        assert set(stage.depends_on) <= set(names[: names.index(stage.name)])


def test_the_metric_of_an_early_stage_leaves_the_export_to_the_best(sweep: Swept) -> None:
    """Its options differ from point to point; it reads those of the point that it exports."""
    found = sweep(RATES + 'then = "best"\nmetric = "train.final_loss"\n')
    assert (found.each, found.best) == (("train",), TRAINED[1:])


def test_the_validation_loss_is_a_metric_where_there_is_one(sweep: Swept) -> None:
    text = CHAIN.replace("[train]\n", "[train]\nvalidation.every_steps = 5\n", 1)
    found = sweep(RATES + 'metric = "train.validation_loss"\ngoal = "minimize"\n', text=text)
    assert found.each[0] == "train"


@pytest.mark.parametrize(("method", "kind"), [("simpo", "preference"), ("kto", "kto")])
def test_the_accuracy_of_held_out_pairs_is_a_metric_where_there_are_pairs(sweep: Swept, method: str, kind: str) -> None:
    data = f'[data]\nsource = "files"\ntrain = ["a.jsonl"]\nevaluation = ["b.jsonl"]\nformat = "{kind}"\n'
    text = data + TRAIN + f'tuner = "lora"\nmethod = "{method}"\nvalidation.every_steps = 5\n'
    table = RATES + 'metric = "train.validation_accuracy"\n'
    if kind == "preference":
        assert sweep(table, text=text).each == ("train", "export")
        return
    with pytest.raises(InputError) as error:
        sweep(table, text=text)
    assert "no metric 'validation_accuracy'" in str(error.value)


def test_points_have_folders_and_plans_of_their_own(sweep: Swept) -> None:
    placed, plans = sweep(RATES).placed(2)
    assert [(point.array, point.task) for point in placed.points] == [(0, 0), (0, 1), (1, 0)]
    assert [plan.run_dir for plan in plans] == [f"/scratch/runs/run-1/points/{at}" for at in ("0/0", "0/1", "1/0")]
    assert [plan.run_id for plan in plans] == ["run-1/0", "run-1/1", "run-1/2"]
    assert [plan.stage("train").options["train"]["learning_rate"] for plan in plans] == [1e-4, 2e-4, 3e-4]
    assert plans[0].recipe["sweep"] is None


def test_points_that_ask_for_the_same_share_their_scripts(sweep: Swept) -> None:
    table = RATES + 'parameters."resources.train.time_limit" = ["1h", "2h"]\n'
    found = sweep(table)
    placed, plans = found.placed(1001)
    scripts = sweep_scripts(found, placed, plans)
    assert [len(points) for points in placed.arrays] == [3, 3]
    assert set(scripts) == {"baseline", *(f"{stage}.{array}" for stage in TRAINED for array in (0, 1))}
    assert (
        scripts["train.0"].replace("points/0", "points/1").replace("0-01:", "0-02:").replace("train.0", "train.1")
        == scripts["train.1"]
    )
    assert "--output=/scratch/runs/run-1/points/0/%a/logs/train/batch.log" in scripts["train.0"].replace("'", "")
    assert '/points/0\'/"$SLURM_ARRAY_TASK_ID"\n' in scripts["train.0"]
    assert "--comment=swiftlaunch:run-1:train.0\n" in scripts["train.0"]


@pytest.mark.parametrize("site", [LOCAL, GPUS], ids=["local", "slurm"])
@pytest.mark.parametrize(
    "parameters",
    [
        '"train.seed" = [1, 2]\n"train.lora.rank" = [4, 8]',
        '"resources.default.memory" = ["8G", "9G"]\n"train.seed" = [1, 2]',
        '"env.variables.A" = ["x", "y y"]\n"train.steps" = [5, 6]',
        '"train.layout.pipeline" = [1, 2]\n"evaluate.batch_size" = [1, 2]',
        '"resources.train.max_attempts" = [1, 2]\n"serve.engine" = ["transformers", "auto"]',
    ],
)
def test_the_script_of_an_array_is_that_of_each_of_its_points(sweep: Swept, site: Site, parameters: str) -> None:
    found = sweep(f"[sweep.parameters]\n{parameters}\n", site=site)
    placed, plans = found.placed(1001)
    scripts = sweep_scripts(found, placed, plans)
    home = RunDir(Path(found.plan.run_dir))
    for point in placed.points:
        own = dataclasses.replace(plans[point.number], run_id="run-1", run_dir=str(home.points(point.array)))
        alone = render(own, assets.folder("templates"), Place(found.plan.run_dir, point.array))
        for stage in found.each:
            if stage in alone:
                assert alone[stage] == scripts[f"{stage}.{point.array}"]


def test_points_may_differ_in_their_stages(sweep: Swept) -> None:
    found = sweep('parameters."quantize.evaluate" = [true, false]\nmetric = "quantize.seconds"\n')
    assert "evaluate-quantized" in found.each
    placed, plans = found.placed(1001)
    scripts = sweep_scripts(found, placed, plans)
    assert ("evaluate-quantized.0" in scripts, "evaluate-quantized.1" in scripts) == (True, False)


@pytest.mark.parametrize(
    ("table", "where", "message", "hint"),
    [
        (RATES + 'metric = "evalute.accuracy"\n', "sweep.metric", "no stage 'evalute'", "did you mean evaluate?"),
        (RATES + 'metric = "accuracy"\n', "sweep.metric", "no stage 'accuracy'", "evaluate.accuracy"),
        (RATES + 'metric = "evaluate.acuracy"\n', "sweep.metric", "no metric 'acuracy'", "mean evaluate.accuracy?"),
        (RATES + 'metric = "train.validation_loss"\n', "sweep.metric", "no metric 'validation_loss'", "final_loss"),
        (RATES + 'metric = "train.loss"\n', "sweep.metric", "no metric 'loss'", "final_loss"),
        (
            RATES + 'metric = "baseline.accuracy"\n',
            "sweep.metric",
            "the same for all points",
            "stage that the sweep changes",
        ),
        ('parameters."serve.max_new_tokens" = [1, 2]\n', "sweep.metric", "evaluate is the same", "stage"),
        (
            RATES + 'parameters."resources.serve.memory" = ["8G", "9G"]\nthen = "best"\n',
            "sweep.then",
            "what serve asks for differs",
            'then = "each"',
        ),
        (
            RATES + 'parameters."quantize.evaluate" = [true, false]\nthen = "best"\n',
            "sweep.then",
            "not every point has a stage evaluate-quantized",
            'then = "each"',
        ),
    ],
)
def test_refused(sweep: Swept, table: str, where: str, message: str, hint: str) -> None:
    fault = refused(sweep, table)
    assert fault.where.endswith(where)
    assert message in fault.message
    assert hint in fault.hint


def test_perplexity_that_is_not_computed(sweep: Swept) -> None:
    text = CHAIN.replace("[evaluate]\n", "[evaluate]\nperplexity = false\n")
    assert "no metric 'perplexity'" in refused(sweep, RATES + 'metric = "evaluate.perplexity"\n', text=text).message


def test_a_fault_of_some_points_says_which(sweep: Swept) -> None:
    parameters = 'parameters = { "train.method" = ["sft", "grpo"], "train.seed" = [1, 2] }\n'
    fault = refused(sweep, parameters)
    assert (
        '"grpo" is not built for megatron (with train.method = "grpo", train.seed = 1 and 1 more point)'
        in fault.message
    )
    assert fault.where == "train.method"


def test_a_fault_of_all_points_is_told_once(sweep: Swept) -> None:
    text = CHAIN.replace('tuner = "lora"', 'method = "grpo"')
    assert refused(sweep, RATES, text=text).message == '"grpo" is not built for megatron'


def test_too_many_different_faults_are_cut(sweep: Swept) -> None:
    lengths = ", ".join(str(8193 + number) for number in range(40))
    with pytest.raises(InputError) as caught:
        sweep(f'parameters."train.sequence_length" = [{lengths}]\n')
    assert len(caught.value.faults) == 21
    assert caught.value.faults[-1].message == "and 20 more faults"


def test_equal_points_are_a_warning(sweep: Swept) -> None:
    found = sweep('parameters."train.seed" = [1, 2, 1]\n')
    assert len(found.plans) == 2
    assert "sweep: 1 point left out, equal to another one" in found.plan.warnings
