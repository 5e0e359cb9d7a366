"""Turn a GGUF file into a Hugging Face model folder: `python -m launcher.work.convert GGUF_FILE TARGET_FOLDER`.

Prints `progress DONE TOTAL WHAT` lines on stdout, for the caller's progress bar; everything else goes to stderr.
The folder is written beside the target and renamed, so a target that exists is whole. Needs transformers and gguf.

Quantized GGUF tensors are unpacked to bf16: the result carries the precision of the GGUF file, not of the model's
original release, and `source.json` says so.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from launcher.errors import SwiftlaunchError, UserError
from launcher.record import write_json
from launcher.work.folders import fresh_beside, publish, sha256_of, weights_sha256

STEPS = 5  # what `progress` counts


def convert(gguf_file: Path, target: Path) -> None:
    """Write `target` from `gguf_file`. Raises UserError where there is no such file or the target exists."""
    if not gguf_file.is_file():
        raise UserError("no such GGUF file", where=str(gguf_file))
    if target.exists():
        raise UserError("the folder exists", where=str(target), hint="remove it to convert again")
    _progress(0, "hash of the GGUF file")
    gguf_sha256 = sha256_of(gguf_file)

    _progress(1, "load and de-quantize")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, name = str(gguf_file.parent), gguf_file.name
    # left packed (the default), save_pretrained refuses: "quantized with gguf and is not serializable"
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    _progress(2, "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    facts = gguf_facts(gguf_file)
    if facts["tokenizer"] == "smollm":
        split_digits(tokenizer)
    tokenizer.model_max_length = model.config.max_position_embeddings

    _progress(3, "write")
    part = fresh_beside(target)
    try:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        _name_the_portable_tokenizer_class(part)
        _progress(4, "hash of the weights")
        package, version = owning_package(gguf_file)
        write_json(
            part / "source.json",
            {
                "package": package,
                "package_version": version,
                "gguf": name,
                "gguf_sha256": gguf_sha256,
                "gguf_type": facts["type"],
                "weights_sha256": weights_sha256(part),
                "dtype": "bfloat16",
                "note": f"weights de-quantized from {facts['type']} GGUF: not the weights of the original release",
            },
        )
        publish(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    _progress(STEPS, "done")


def gguf_facts(gguf_file: Path) -> dict[str, str]:
    """`type`: the commonest quantization of the file's matrices; `tokenizer`: its pre-tokenizer's name ("" if none)."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file)
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1)
    field = reader.get_field("tokenizer.ggml.pre")
    return {"type": types.most_common(1)[0][0], "tokenizer": str(field.contents()) if field else ""}


def split_digits(tokenizer: Any) -> None:
    """Cut numbers into single digits before BPE, as SmolLM's own tokenizer does.

    The GGUF format names this pre-tokenizer ("smollm") without describing it, and transformers' GGUF reader builds
    the plain byte-level one, which cuts spaces before a number in another way than the model was trained on.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def owning_package(file: Path) -> tuple[str, str]:
    """Name and version of the distribution that a package's data file belongs to; ("", "") if none.

    Looks beside the package's folder, so an unpacked wheel does as well as an installed one.
    """
    folder = file.parent.parent
    for info in folder.glob("*.dist-info"):
        distribution = importlib.metadata.PathDistribution(info)
        if any(str(entry) == str(file.relative_to(folder)) for entry in distribution.files or ()):
            return distribution.metadata["Name"], distribution.version
    return "", ""


def _name_the_portable_tokenizer_class(folder: Path) -> None:
    # transformers 5 writes a class name that transformers 4 does not know; this one loads in both
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, config)


def _progress(done: int, what: str) -> None:
    print(f"progress {done} {STEPS} {what}", flush=True)


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m launcher.work.convert GGUF_FILE TARGET_FOLDER", file=sys.stderr)
        return 2
    try:
        convert(Path(arguments[0]), Path(arguments[1]))
    except SwiftlaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
