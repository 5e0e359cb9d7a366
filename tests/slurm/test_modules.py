"""A site whose software is environment modules: the rendered lines under real Slurm and the real `module`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import submitit

import launcher
from tests.python import functions
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm

SITE = """\
name = "real"
description = "four nodes on this machine, software as modules"
scheduler = "slurm"
runs_dir = {runs}
models_dir = "/nonexistent"
environments_dir = "/nonexistent"
[node]
count = 4
cpus = 16
memory = "16000M"
[environments]
train = {{ kind = "modules", modules = ["compiler/13.2", "python for jobs"] , python = "python-of-the-module" }}
"""
COMPILER = '#%Module\nsetenv COMPILER "13.2 of the module"\n'
PYTHON = "#%Module\nprereq compiler\nprepend-path PATH {folder}\n"


def test_a_job_gets_its_python_from_a_module(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    # what sets the interpreter apart: it is on no PATH but the module's
    (programs / "python-of-the-module").write_text(f'#!/bin/sh\nPROGRAM=$0 exec {sys.executable} "$@"\n')
    (programs / "python-of-the-module").chmod(0o755)
    (tmp_path / "modules/compiler").mkdir(parents=True)
    (tmp_path / "modules/compiler/13.2").write_text(COMPILER)
    (tmp_path / "modules/python for jobs").write_text(PYTHON.format(folder=programs))
    (tmp_path / "real.toml").write_text(SITE.format(runs=json.dumps(str(tmp_path / "runs"))))
    # a login shell has the function `module` and exports it, which is how job scripts get it
    login = ["bash", "-c", ". /usr/share/modules/init/bash && module use '{}' && module load stale; env -0"]
    login[-1] = login[-1].format(tmp_path / "modules")
    (tmp_path / "modules/stale").write_text('#%Module\nsetenv STALE "of the login shell"\n')
    for line in subprocess.run(login, capture_output=True, text=True, timeout=60, check=True).stdout.split("\0"):
        name, _, value = line.partition("=")
        if name.startswith(("BASH_FUNC_", "MODULE", "LOADED", "_LM", "__MODULES", "STALE")):
            monkeypatch.setenv(name, value)
    assert os.environ["STALE"]
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    executor = submitit.AutoExecutor("jobs", cluster="swiftlaunch", swiftlaunch_site="./real.toml")
    executor.update_parameters(timeout_min=10, mem_gb=0.25, swiftlaunch_environment="train")
    job = executor.submit(functions.variables, "COMPILER", "PROGRAM", "LOADEDMODULES", "STALE")
    try:
        found = job.result()
    finally:
        launcher.open_run("latest").cancel()
    assert found["COMPILER"] == "13.2 of the module"
    assert found["PROGRAM"] == str(programs / "python-of-the-module")
    assert found["LOADEDMODULES"] == "compiler/13.2:python for jobs"
    assert found["STALE"] is None  # `module purge` took the login shell's modules away
