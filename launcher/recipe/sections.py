"""The recipe's tables other than [train], and the recipe itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from launcher.recipe.fields import (
    Constraint,
    Count,
    CountOrZero,
    Duration,
    Host,
    MaybeEmptyLine,
    Memory,
    ModelName,
    OneLine,
    Prose,
    Revision,
    RunName,
    Section,
    Seed,
    SlurmName,
    VariableName,
    refuse,
    shown,
)
from launcher.recipe.preference import FORMATS
from launcher.recipe.training import Train

WANDB_KEY = "WANDB_API_KEY"

Words = Annotated[tuple[OneLine, ...], Field(strict=False)]


def _plain(value: Any) -> Any:
    """Refuse what JSON has no word for: TOML's dates and times, infinity, NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    finite = not isinstance(value, float) or (abs(value) != float("inf") and value == value)
    if not isinstance(value, (str, int, float, bool)) or not finite:
        raise refuse(f"{shown(value)} is not a text, finite number, true or false, list or table")
    return value


Plain = Annotated[Any, BeforeValidator(_plain)]


class Model(Section):
    """The model to start from: a known name or a folder, not both."""

    name: ModelName | None = None
    """A known model (`swiftlaunch models`) or a Hugging Face id."""
    path: OneLine | None = None
    """A Hugging Face model folder, relative to the file that names it."""
    revision: Revision | None = None
    """Branch, tag or commit of the model's repository."""
    chat_template: OneLine | None = None
    """File with the chat template (Jinja) to use instead of the model's own, relative to the file that names it."""


class Columns(Section):
    """Which column of the files holds what, where names differ from the format's own."""

    messages: OneLine | None = None
    """Column with the list of messages."""
    prompt: OneLine | None = None
    """Column with the prompt."""
    completion: OneLine | None = None
    """Column with the answer."""
    text: OneLine | None = None
    """Column with the whole text."""
    chosen: OneLine | None = None
    """Column with the better of two answers (preference), a text or a list of messages."""
    rejected: OneLine | None = None
    """Column with the other answer (preference)."""
    label: OneLine | None = None
    """Column that says whether an answer is wanted (kto), true or false."""


class Data(Section):
    """Training and evaluation data: files, or problems that reasoning-gym generates."""

    source: Literal["files", "reasoning-gym"]
    """Where rows come from."""
    train: Words = ()
    """Files to train on (.jsonl, .json, .csv, .parquet), as globs relative to the file that names them."""
    evaluation: Words = ()
    """Files to evaluate on, as globs."""
    format: Literal["auto", "messages", "prompt_completion", "text", "preference", "kto"] = "auto"
    """What a row holds; auto is what a preference method needs, else decides by the columns."""
    columns: Columns | None = None
    """Column names, where they differ from the format's own."""
    task: OneLine | None = None
    """Task of reasoning-gym."""
    task_options: dict[VariableName, Plain] = Field(default_factory=dict)
    """Options of the task, as reasoning-gym names them."""
    train_size: Count = 1000
    """Generated problems to train on."""
    train_seed: Seed = 1
    """Seed of the training problems."""
    evaluation_size: Count = 100
    """Generated problems to evaluate on."""
    evaluation_seed: Seed = 1_000_001
    """Seed of the evaluation problems; differs from train_seed."""


class Evaluate(Section):
    """Scores on the evaluation data, after training and on request before it."""

    baseline: bool = True
    """Also score the model before training."""
    limit: Count | None = None
    """Rows to score; all where not given."""
    max_new_tokens: Count = 256
    """Tokens generated for an answer."""
    batch_size: Count = 8
    """Rows generated at a time."""
    perplexity: bool = True
    """Also compute the perplexity of the expected answers."""


class Quantize(Section):
    """A smaller copy of the model. bits, group_size and calibration_samples follow from the method where not given."""

    method: Literal["gptq", "fp8", "int8"]
    """gptq: 2 to 8 bit weights; fp8: weights and activations, scaled at run time; int8: weights and activations."""
    bits: Literal[2, 3, 4, 8] | None = None
    """Bits per weight: 4 for gptq, 8 for fp8 and int8."""
    group_size: Literal[-1, 16, 32, 64, 128, 256] | None = None
    """Weights that share a scale (gptq only): 128, or -1 for a whole column. It must divide the model's matrices."""
    calibration_samples: CountOrZero | None = None
    """Training rows that calibrate: 128 for gptq and int8, 0 for fp8."""
    evaluate: bool = True
    """Score the quantized model too, where there is an [evaluate]."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_method(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        gptq = values.get("method") == "gptq"
        defaults = {
            "bits": 4 if gptq else 8,
            "group_size": 128 if gptq else None,
            "calibration_samples": 0 if values.get("method") == "fp8" else 128,
        }
        return {**defaults, **{key: value for key, value in values.items() if value is not None}}


class Serve(Section):
    """An OpenAI-compatible server for the last model of the run."""

    engine: Literal["auto", "sglang", "vllm", "transformers"] = "auto"
    """Inference engine; auto is sglang where there are GPUs, transformers elsewhere."""
    prompt: Prose = "What is the capital of France?"
    """The request that proves that the server answers."""
    max_new_tokens: Count = 64
    """Tokens generated for that request."""
    keep_alive_minutes: CountOrZero = 0
    """How long the server stays after its first answer; 0 stops it then."""
    host: Host = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port to listen on; 0 takes a free one."""
    extra_arguments: Words = ()
    """Further words for the engine's command line."""


class ResourceRequest(Section):
    """What a stage asks of the scheduler; what is not given comes from [resources.default], then from the site."""

    nodes: Count | None = None
    """Nodes."""
    tasks_per_node: Count | None = None
    """Ranks per node."""
    cpus_per_task: Count | None = None
    """CPU cores per rank."""
    gpus_per_node: CountOrZero | None = None
    """GPUs per node; 0 is a CPU job."""
    memory: Memory | None = None
    """Memory per node, "24G" or MiB."""
    time_limit: Duration | None = None
    """Time limit, "1h30m" or minutes."""
    partition: SlurmName | None = None
    """Partition."""
    account: SlurmName | None = None
    """Account that pays."""
    qos: SlurmName | None = None
    """Quality of service."""
    constraint: Constraint | None = None
    """Node features, as sbatch --constraint takes them."""
    extra: Words | None = None
    """Further sbatch options, one word each: "--exclusive", "--reservation=course"."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    """Crashes after which a stage is given up; stops by the scheduler do not count."""


class ResourceTables(Section):
    """[resources.default] and one table per stage."""

    default: ResourceRequest = Field(default_factory=ResourceRequest)
    """For every stage that does not say otherwise."""
    baseline: ResourceRequest = Field(default_factory=ResourceRequest)
    """Scores before training."""
    train: ResourceRequest = Field(default_factory=ResourceRequest)
    """Training."""
    export: ResourceRequest = Field(default_factory=ResourceRequest)
    """Conversion of the checkpoint to a Hugging Face folder."""
    evaluate: ResourceRequest = Field(default_factory=ResourceRequest)
    """Scores after training."""
    quantize: ResourceRequest = Field(default_factory=ResourceRequest)
    """Quantization, and the scores of the quantized model."""
    serve: ResourceRequest = Field(default_factory=ResourceRequest)
    """Serving."""


class Resume(Section):
    """How stages go on by themselves after a stop, a crash or a hang, with nobody logged in."""

    mode: Literal["requeue", "chain"] | None = None
    """requeue: the job goes back into the queue. chain: further jobs are submitted at once, each after the one before.
    Not given: requeue, or chain where the site refuses requeueing."""
    continuations: CountOrZero = 2
    """Further jobs per stage (chain only)."""
    backoff_seconds: CountOrZero = 30
    """Wait after a crash; it doubles with each further one in a row."""
    backoff_limit_seconds: CountOrZero = 900
    """Longest such wait."""
    idle_attempts: Count = 10
    """Stops since the newest checkpoint after which a stage is given up; preemptions do not count."""
    hang_factor: Annotated[float, Field(ge=0, le=1e6)] = 10.0
    """A rank hangs when a step takes this many times the usual (median) one; 0 never looks."""
    hang_floor_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Shorter silences are no hang, whatever is usual."""
    hang_start_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """How long the first step may take, and writing a checkpoint or the result."""


class Env(Section):
    """Environment variables of the jobs."""

    variables: dict[VariableName, MaybeEmptyLine] = Field(default_factory=dict)
    """Variables and their values; they are kept in the plan, so no secrets here."""
    secrets: Annotated[tuple[VariableName, ...], Field(strict=False)] = ()
    """Names of variables whose values are taken from your shell when you submit and kept out of the plan."""


class Tracking(Section):
    """Where metrics go besides the run's own events."""

    tensorboard: bool = True
    """Write TensorBoard files into the run directory."""
    wandb: bool = False
    """Send metrics to Weights & Biases (put WANDB_API_KEY under env.secrets)."""
    wandb_mode: Literal["online", "offline"] | None = None
    """online: to the server. offline: into the run directory, for `wandb sync` where there is internet. Not given:
    online where env.secrets names WANDB_API_KEY, else offline."""
    mlflow: bool = False
    """Send metrics to MLflow."""
    mlflow_uri: OneLine | None = None
    """MLflow's tracking server, "https://mlflow.example.org" (a token: MLFLOW_TRACKING_TOKEN under env.secrets). Not
    given: a folder of the run directory."""
    project: RunName | None = None
    """Project of W&B and experiment of MLflow; the recipe's name where not given."""


class SweepRange(Section):
    """An interval to draw from."""

    min: float
    """Smallest value."""
    max: float
    """Largest value."""
    scale: Literal["linear", "log"] = "linear"
    """Draw evenly, or evenly in the logarithm."""


SweepValues = Annotated[
    Annotated[tuple[Plain, ...], Field(strict=False, min_length=1), Tag("list")] | Annotated[SweepRange, Tag("range")],
    Discriminator(lambda value: "range" if isinstance(value, (dict, SweepRange)) else "list"),
]


class Sweep(Section):
    """Many runs of one recipe with other values."""

    method: Literal["grid", "list", "random"] = "grid"
    """grid: every combination; list: the n-th values together; random: draws."""
    parameters: dict[OneLine, SweepValues]
    """Recipe key ("train.learning_rate") -> list of values, or { min, max, scale } to draw from."""
    samples: Count | None = None
    """Number of draws (random only)."""
    seed: Seed = 0
    """Seed of the draws."""
    concurrency: Count = 4
    """Points at a time, in each stage."""
    metric: OneLine = "evaluate.accuracy"
    """What points are compared by: a stage, a dot, and the name of a metric in its result."""
    goal: Literal["maximize", "minimize"] = "maximize"
    """Which end of the metric is better."""
    then: Literal["each", "best"] = "each"
    """What comes after the stage of the metric: is done for each point, or once for the best one."""


class Recipe(Section):
    """What to train, evaluate, quantize and serve. A stage whose table is absent is not run."""

    name: RunName
    """Name of the runs: 1 to 64 letters, digits, '.', '_' or '-'."""
    description: Prose = ""
    """For people."""
    extends: OneLine | None = None
    """Another recipe, relative to this file, whose values hold where this one gives none."""
    model: Model
    """The model to start from."""
    data: Data | None = None
    """Training and evaluation data."""
    train: Train | None = None
    """Training."""
    evaluate: Evaluate | None = None
    """Scores."""
    quantize: Quantize | None = None
    """A smaller copy."""
    serve: Serve | None = None
    """A server."""
    resources: ResourceTables = Field(default_factory=ResourceTables)
    """What stages ask of the scheduler."""
    resume: Resume = Field(default_factory=Resume)
    """How stages go on after a stop or a crash."""
    env: Env = Field(default_factory=Env)
    """Environment variables."""
    tracking: Tracking = Field(default_factory=Tracking)
    """Metrics elsewhere."""
    sweep: Sweep | None = None
    """Many runs of this recipe."""

    @model_validator(mode="before")
    @classmethod
    def _mode_of_wandb(cls, values: Any) -> Any:
        """A key means a server."""
        tracking, env = (values.get(name) for name in ("tracking", "env")) if isinstance(values, dict) else (None, None)
        if not isinstance(tracking, dict) or tracking.get("wandb") is not True or tracking.get("wandb_mode"):
            return values
        secrets = env.get("secrets", ()) if isinstance(env, dict) else ()
        keyed = isinstance(secrets, (list, tuple)) and WANDB_KEY in secrets
        return {**values, "tracking": {**tracking, "wandb_mode": "online" if keyed else "offline"}}

    @model_validator(mode="before")
    @classmethod
    def _format_of_method(cls, values: Any) -> Any:
        """Rows of a preference method are of its own format."""
        train, data = (values.get(name) for name in ("train", "data")) if isinstance(values, dict) else (None, None)
        if not isinstance(train, dict) or not isinstance(data, dict) or data.get("source") != "files":
            return values
        method = train.get("method")
        if not isinstance(method, str) or method not in FORMATS or data.get("format", "auto") != "auto":
            return values
        return {**values, "data": {**data, "format": FORMATS[method]}}
