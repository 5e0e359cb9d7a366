"""#SBATCH lines, host lists and file name patterns."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import InputError
from launcher.scheduler.local.hostlist import compress, expand
from launcher.scheduler.local.names import fill
from launcher.scheduler.local.script import (
    comment_of,
    parse_array,
    parse_dependencies,
    parse_script,
    parse_seconds,
    split,
)

pytestmark = pytest.mark.unit

FULL = """#!/bin/bash
#SBATCH --job-name='my run:train'
#SBATCH --comment=swiftlaunch:x:train   # a remark
#SBATCH --output=/runs/100%%/batch.log --open-mode=append
# an ordinary comment

#SBATCH -N 2 --ntasks-per-node=4 -c2
#SBATCH --mem=24G --time=1-02:03:04
#SBATCH --signal=B:USR2@120
#SBATCH --requeue --kill-on-invalid-dep=yes
#SBATCH --partition=gpu --account=lab
##SBATCH --nodes=9
set -e
#SBATCH --nodes=7
"""


def test_directives() -> None:
    request = parse_script(FULL, where="s.sh")
    assert (request.name, request.comment) == ("my run:train", "swiftlaunch:x:train")
    assert (request.output, request.append) == ("/runs/100%%/batch.log", True)
    assert (request.nodes, request.tasks_per_node, request.cpus_per_task, request.tasks) == (2, 4, 2, 8)
    assert (request.cpus_per_node, request.memory_mib) == (8, 24576)
    assert request.time_limit_seconds == 86400 + 2 * 3600 + 3 * 60 + 4
    assert (request.signal, request.signal_seconds, request.signal_batch) == (12, 120, True)
    assert (request.requeue, request.kill_on_invalid_dep) == (True, True)


def test_all_faults_are_told_with_their_lines() -> None:
    text = """#!/bin/sh
#SBATCH --nodes=none
#SBATCH --frobnicate=1

#SBATCH --time=soon --mem=1G
#SBATCH --name='open
"""
    with pytest.raises(InputError) as raised:
        parse_script(text, where="s.sh")
    faults = raised.value.faults
    assert [fault.where for fault in faults] == ["s.sh:2", "s.sh:3", "s.sh:5", "s.sh:6"]
    assert "not a whole number" in faults[0].message
    assert "--frobnicate is not known" in faults[1].message
    assert "not a time" in faults[2].message
    assert "unmatched '" in faults[3].message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo hi\n", "batch script"),
        ("#!/bin/sh\r\n", "DOS"),
        ("#!/bin/sh\n#SBATCH --begin=now+1hour\n", "--begin is not known"),
        ("#!/bin/sh\n#SBATCH hetjob\n", "hetjob"),
        ("#!/bin/sh\n#SBATCH --signal=B:NOPE@3\n", "not a signal"),
        ("#!/bin/sh\n#SBATCH --export=NONE\n", "only has ALL"),
        ("#!/bin/sh\n#SBATCH --dependency=singleton\n", "not a dependency"),
        ("#!/bin/sh\n#SBATCH --nodes=2 --ntasks=1\n", "1 tasks do not fit 2 nodes"),
        ("#!/bin/sh\n#SBATCH --job-name\n", "needs a value"),
    ],
)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_script(text, where="s.sh")


def test_number_of_tasks() -> None:
    def tasks(options: str) -> tuple[int, int, int]:
        request = parse_script(f"#!/bin/sh\n#SBATCH {options}\n", where="s.sh")
        return request.nodes, request.tasks, request.tasks_per_node

    assert tasks("--requeue") == (1, 1, 1)
    assert tasks("--ntasks=3") == (1, 3, 3)
    assert tasks("--nodes=2 --ntasks=3") == (2, 3, 2)
    assert tasks("--ntasks=8 --ntasks-per-node=4") == (2, 8, 4)
    assert tasks("--nodes=2-4") == (2, 2, 1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("1:00:01", 3601),
        ("2-0", 172800),
        ("1-1:30", 91800),
        ("UNLIMITED", None),
        ("0", None),
    ],
)
def test_times(text: str, seconds: int | None) -> None:
    assert parse_seconds(text) == seconds


def test_arrays_and_dependencies() -> None:
    assert parse_array("0-9:3,20%2") == ([0, 3, 6, 9, 20], 2)
    assert parse_array("5,5,1") == ([1, 5], 0)
    for broken in ("", "a", "3-1", "1-", "1-5:0", "0-9%0", "0-99999999999"):
        with pytest.raises(ValueError, match=r"."):
            parse_array(broken)
    expected = (("afterok", "1"), ("afterok", "2_3"), ("afterany", "4"))
    assert parse_dependencies("afterok:1:2_3,afterany:4") == expected


def test_words() -> None:
    """As sbatch 22.05 was seen to read them."""
    assert split(""" --a='b c' "d'e" 'h'"'"'i' # --no""") == ["--a=b c", "d'e", "h'i"]
    assert split("--comment=a#b") == ["--comment=a"]
    assert split(r"--comment='a\b'") == ["--comment=ab"]
    assert split(r"--comment=a\ b") == ["--comment=a", "b"]
    assert split("''") == [""]


@settings(deadline=None)  # the machine may be busy
@given(st.text(st.characters(codec="utf-8", exclude_characters="\\\n\r\0")))
def test_what_python_quotes_is_read_back(text: str) -> None:
    """Templates quote with shlex; a backslash is the one letter that sbatch reads differently in quotes."""
    assert split("--comment=" + shlex.quote(text)) == ["--comment=" + text]


@settings(deadline=None)  # the machine may be busy
@given(st.sets(st.integers(0, 300), max_size=20))
def test_host_lists_come_back(numbers: set[int]) -> None:
    names = [f"node{number}" for number in sorted(numbers)]
    assert expand(compress(names)) == names


def test_host_lists() -> None:
    assert expand("a[01-03,7]b,c") == ["a01b", "a02b", "a03b", "a7b", "c"]
    assert expand("r[1-2]n[1-2]") == ["r1n1", "r1n2", "r2n1", "r2n2"]
    assert compress(["node01", "node02"]) == "node0[1-2]"
    assert compress(["node09", "node10"]) == "node09,node10"
    assert compress(["login", "node1"]) == "login,node1"
    for broken in ("a[1-", "a[x]", "a[1-]"):
        with pytest.raises(ValueError, match=r"."):
            expand(broken)


def test_file_name_patterns() -> None:
    values = {"j": 12, "t": 3, "x": "name"}
    assert fill("%x-%j-%4t-%%j-%q.log", values) == "name-12-0003-%j-%q.log"
    assert fill("a\\%j", values) == "a%j"


def test_the_comment_of_a_script_that_only_slurm_can_run() -> None:
    text = "#!/bin/bash\n#SBATCH --nodes=2 --comment='a b:c'\n#SBATCH hetjob\n#SBATCH --no-such=1\ntrue\n"
    assert comment_of(text) == "a b:c"
    assert comment_of("#!/bin/bash\necho --comment=x\n") == ""
