"""Site files: what is read, and every fault with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import InputError
from launcher.sites import ResourceDefaults, Site, load_site

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
HOME = Path("/home/ada")
GOOD = """\
name = "tiny"
scheduler = "slurm"
runs_dir = "~/runs"
models_dir = "/models/"
environments_dir = "~/envs"

[node]
cpus = 8
memory = "32G"
gpus = 2
"""


def load(tmp_path: Path, text: str, name: str = "tiny.toml") -> Site:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return load_site(path, HOME)


def faults(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    return [
        f"{fault.where.removeprefix(str(tmp_path))} | {fault.message} | {fault.hint}" for fault in caught.value.faults
    ]


def test_folders_are_absolute_and_home_is_expanded(tmp_path: Path) -> None:
    site = load(tmp_path, GOOD)
    assert (site.runs_dir, site.models_dir, site.environments_dir) == ("/home/ada/runs", "/models", "/home/ada/envs")
    assert (site.node.cpus, site.node.memory_mib, site.node.gpus, site.node.count) == (8, 32768, 2, 0)
    assert site.default_partition is None
    assert site.cost_per_gpu_hour is None


def test_name_is_the_files_name_where_it_is_left_out(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD.replace('name = "tiny"\n', ""), "other.toml").name == "other"


@pytest.mark.parametrize("path", sorted((ROOT / "site").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_sites_are_sound(path: Path) -> None:
    site = load_site(path, HOME)
    assert site.name == path.stem
    assert site.description


def test_the_long_example_shows_every_key() -> None:
    site = load_site(ROOT / "site/example-slurm.toml", HOME)
    text = (ROOT / "site/example-slurm.toml").read_text(encoding="utf-8")
    tables = (Site, type(site.node), type(site.network), type(site.partitions[0]), ResourceDefaults, type(site.quirks))
    fields = {name for table in (*tables, type(site.environments["train"])) for name in table.__dataclass_fields__}
    keys = {name.removesuffix("_mib").removesuffix("_minutes") for name in fields} - {"path", "role", "asked"}
    assert not [key for key in sorted(keys) if key not in text]
    assert site.default_partition is not None
    assert site.default_partition.name == "gpu"
    assert site.partitions[0].time_limit_minutes == 24 * 60
    assert site.partitions[1].gpus == 0
    assert site.defaults["train"].extra == ("--exclusive",)
    assert site.defaults["export"].time_limit_minutes == 60
    assert site.defaults["train"].partition is None
    assert site.cost_per_gpu_hour is not None
    assert (site.cost_per_gpu_hour.amount, site.cost_per_gpu_hour.currency) == (2.5, "EUR")
    assert dict(site.variables) == {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "12"}


def test_the_examples_have_every_kind_of_environment() -> None:
    sites = [load_site(path, HOME) for path in (ROOT / "site").glob("*.toml")]
    kinds = {environment.kind for site in sites for environment in site.environments.values()}
    assert kinds == {"locked", "venv", "modules", "pyxis", "apptainer"}


BAD = {
    "misspelt key": (
        GOOD.replace("cpus = 8", "cpus = 8\ngpu_tpye = 'h100'"),
        "/tiny.toml:9: node.gpu_tpye | unknown key | did you mean gpu_type?",
    ),
    "unknown top key": (GOOD.replace("name =", "nmae ="), "/tiny.toml:1: nmae | unknown key | did you mean name?"),
    "missing": (
        GOOD.replace('runs_dir = "~/runs"\n', ""),
        "/tiny.toml: runs_dir | is missing; it must be a text | ",
    ),
    "no node": (GOOD[: GOOD.index("[node]")], "/tiny.toml: node | is missing; it must be a table | "),
    "wrong type": (
        GOOD.replace("cpus = 8", 'cpus = "8"'),
        "/tiny.toml:8: node.cpus | must be a whole number, not '8' | ",
    ),
    "a boolean is no number": (
        GOOD.replace("cpus = 8", "cpus = true"),
        "/tiny.toml:8: node.cpus | must be a whole number, not True | ",
    ),
    "sbatch option of ours": (
        GOOD + '[quirks]\nextra = ["--output=/x"]\n',
        "/tiny.toml:12: quirks.extra[0] | '--output=/x' is set by swiftlaunch; jobs would not end or resume as they "
        "should | ",
    ),
    "variable of ours": (
        GOOD + '[variables]\nSBATCH_QOS = "x"\n',
        "/tiny.toml:12: variables.SBATCH_QOS | is set by the launcher or by Slurm | ",
    ),
    "one rank": (
        GOOD + "[defaults.export]\nnodes = 2\n",
        "/tiny.toml:12: defaults.export.nodes | export is one rank | remove nodes",
    ),
    "colon": (
        GOOD.replace('"~/runs"', '"~/a:b"'),
        "/tiny.toml:3: runs_dir | holds a colon, which separates the folders of PYTHONPATH | use another folder",
    ),
    "too small": (GOOD.replace("cpus = 8", "cpus = 0"), "/tiny.toml:8: node.cpus | 0 is less than 1 | "),
    "size": (
        GOOD.replace('"32G"', '"32 apples"'),
        "/tiny.toml:9: node.memory | '32 apples' is not a size; write MiB (512) or a text like 24G | ",
    ),
    "scheduler": (
        GOOD.replace('"slurm"', '"slrum"'),
        "/tiny.toml:2: scheduler | 'slrum' is not known | did you mean slurm?",
    ),
    "relative folder": (
        GOOD.replace('"~/runs"', '"$SCRATCH/runs"'),
        "/tiny.toml:3: runs_dir | '$SCRATCH/runs' is not absolute | start it with / or ~/; variables are not expanded",
    ),
    "two lines": (
        GOOD.replace('"/models/"', '"/models\\nrm"'),
        "/tiny.toml:4: models_dir | must be one line of printable text, not empty | ",
    ),
    "GPU type without GPUs": (
        GOOD.replace("gpus = 2", 'gpu_type = "h100"'),
        "/tiny.toml:7: node.gpus | is 0 while gpu_type or gpu_memory is given | say how many GPUs a node has",
    ),
    "time limit": (
        GOOD + '[[partitions]]\nname = "a"\n[[partitions]]\nname = "b"\ntime_limit = "soon"\n',
        "/tiny.toml:15: partitions[1].time_limit | 'soon' is not a duration; "
        "write minutes (90) or a text like 1h30m | ",
    ),
    "partition twice": (
        GOOD + '[[partitions]]\nname = "a"\n[[partitions]]\nname = "a"\n',
        "/tiny.toml:14: partitions[1].name | 'a' is there twice | ",
    ),
    "two defaults": (
        GOOD + '[[partitions]]\nname = "a"\ndefault = true\n[[partitions]]\nname = "b"\ndefault = true\n',
        "/tiny.toml: partitions | more than one is marked default | ",
    ),
    "partitions is no array": (
        GOOD + 'partitions = ["a"]\n',  # lands in [node], where it is unknown
        "/tiny.toml:11: node.partitions | unknown key | known: cpus, memory, count, gpus, gpu_type, gpu_memory",
    ),
    "default partition": (
        GOOD + '[[partitions]]\nname = "gpu"\n[defaults.train]\npartition = "gpus"\n',
        "/tiny.toml:14: defaults.train.partition | 'gpus' is not one of the site's partitions | did you mean gpu?",
    ),
    "stage": (
        GOOD + "[defaults.trian]\nnodes = 1\n",
        "/tiny.toml:11: defaults.trian | unknown stage | did you mean train?",
    ),
    "role": (
        GOOD + '[environments]\ntorch = { kind = "locked" }\n',
        "/tiny.toml:12: environments.torch | unknown role | "
        "known: train, sharded, transformers, gptq, compressor, vllm, sglang",
    ),
    "kind": (
        GOOD + '[environments]\ntrain = { kind = "conda" }\n',
        "/tiny.toml:12: environments.train.kind | 'conda' is not known | "
        "known: locked, venv, modules, pyxis, apptainer",
    ),
    "venv without python": (
        GOOD + '[environments]\ntrain = { kind = "venv" }\n',
        "/tiny.toml:12: environments.train.python | is missing; it must be a text | ",
    ),
    "relative python": (
        GOOD + '[environments]\ntrain = { kind = "venv", python = "venv/bin/python" }\n',
        "/tiny.toml:12: environments.train.python | 'venv/bin/python' is not absolute | write /the/venv/bin/python",
    ),
    "locked python without version": (
        GOOD + '[environments]\ntrain = { kind = "locked", python = "/usr/bin/python3" }\n',
        "/tiny.toml:12: environments.train.python | '/usr/bin/python3' does not say its version | "
        "name it with its version, /usr/bin/python3.11: a plan must know it without running it",
    ),
    "container without image": (
        GOOD + '[environments.train]\nkind = "apptainer"\n',
        "/tiny.toml:11: environments.train.image | is missing; it must be a text | ",
    ),
    "image of a venv": (
        GOOD + '[environments.train]\nkind = "venv"\npython = "/v/bin/python"\nimage = "a.sif"\n',
        "/tiny.toml:14: environments.train.image | means nothing to kind 'venv' | "
        "remove it, or use kind pyxis or apptainer",
    ),
    "modules without modules": (
        GOOD + '[environments.train]\nkind = "modules"\nmodules = []\n',
        "/tiny.toml:13: environments.train.modules | is empty | ",
    ),
    "mount": (
        GOOD + '[environments.train]\nkind = "pyxis"\nimage = "a#b"\nmounts = ["/data"]\n',
        "/tiny.toml:14: environments.train.mounts[0] | '/data' is no mount | write \"/source:/target\"",
    ),
    "secret": (
        GOOD + '[variables]\nHF_TOKEN = "hf_abc"\n',
        "/tiny.toml:12: variables.HF_TOKEN | looks like a secret, and what stands here is written into job scripts | "
        "name it in the recipe (secrets = ['HF_TOKEN']) and export it in your shell",
    ),
    "secret of a role": (
        GOOD + '[environments.train]\nkind = "locked"\nvariables = { WANDB_API_KEY = "abc" }\n',
        "/tiny.toml:13: environments.train.variables.WANDB_API_KEY | looks like a secret, and what stands here is "
        "written into job scripts | name it in the recipe (secrets = ['WANDB_API_KEY']) and export it in your shell",
    ),
    "the launcher's variable": (
        GOOD + '[variables]\nPYTHONPATH = "/x"\n',
        "/tiny.toml:12: variables.PYTHONPATH | is set by the launcher or by Slurm | ",
    ),
    "variable's name": (
        GOOD + '[variables]\n"A B" = "x"\n',
        "/tiny.toml:11: variables.A B | is not a name of an environment variable | ",
    ),
    "sbatch word": (
        GOOD + '[quirks]\nextra = ["-p gpu"]\n',
        "/tiny.toml:12: quirks.extra[0] | '-p gpu' is not one long sbatch option | "
        'write "--exclusive" or "--name=value"',
    ),
    "gpu option": (
        GOOD + '[quirks]\ngpu_option = "gpus"\n',
        "/tiny.toml:12: quirks.gpu_option | 'gpus' is not known | known: gpus-per-node, gres",
    ),
    "price": (
        'cost_per_gpu_hour = "cheap"\n' + GOOD,
        "/tiny.toml:1: cost_per_gpu_hour | 'cheap' does not fit | an amount and a currency: \"2.50 EUR\"",
    ),
    "Slurm words on a local site": (
        'account = "project"\n' + GOOD.replace('"slurm"', '"local"'),
        "/tiny.toml:1: account | means nothing to the local scheduler | remove it, or set scheduler to slurm",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sites(tmp_path: Path, name: str) -> None:
    text, expected = BAD[name]
    assert expected in faults(tmp_path, text)


def test_all_faults_in_one_go(tmp_path: Path) -> None:
    found = faults(
        tmp_path, 'scheduler = "pbs"\ncolour = 1\n[node]\ncpus = 0\nmemory = "x"\n[variables]\nA_SECRET = "x"\n'
    )
    places = [line.partition(" | ")[0] for line in found]
    assert places == [
        "/tiny.toml:1: scheduler",
        "/tiny.toml: runs_dir",
        "/tiny.toml: models_dir",
        "/tiny.toml: environments_dir",
        "/tiny.toml:4: node.cpus",
        "/tiny.toml:5: node.memory",
        "/tiny.toml:7: variables.A_SECRET",
        "/tiny.toml:2: colour",
    ]


def test_names_that_only_look_like_secrets_are_taken(tmp_path: Path) -> None:
    names = ("TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "MONKEY", "MAX_TOKENS", "AUTHOR", "PATH")
    site = load(tmp_path, GOOD + "[variables]\n" + "".join(f'{name} = "x"\n' for name in names))
    assert [name for name, _ in site.variables] == sorted(names)


def test_broken_toml_says_the_line(tmp_path: Path) -> None:
    assert faults(tmp_path, GOOD + "cpus = = 3\n")[0].startswith("/tiny.toml:11 | not TOML: ")


def test_unreadable_files_are_errors_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file") as caught:
        load_site(tmp_path / "none.toml", HOME)
    assert caught.value.exit_code == 2
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(InputError, match="not UTF-8"):
        load_site(tmp_path / "latin.toml", HOME)
