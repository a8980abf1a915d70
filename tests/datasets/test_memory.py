"""The heap of a process that trains: kept from step to step, given back after what is large and seldom."""

import json
import os
import platform
import re
import subprocess
import sys

import pytest

from tests.helpers.runs import ROOT

PAGES = 64 * 2**20 // os.sysconf("SC_PAGE_SIZE")  # of the 64 pieces of 1 MiB that a round of the program takes
PROGRAM = """
import json, resource
from pathlib import Path
from datasets.memory import give_back, keep_heap
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def resident(): return int(Path("/proc/self/statm").read_text().split()[1])
def take():  # every byte is written
    before = faults()
    pieces = [bytearray(2**20) for _ in range(64)]
    return faults() - before
{}
first, *later = [take() for _ in range(4)]
held = resident()
give_back()
print(json.dumps([first, max(later), held - resident()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of GNU's C library")
@pytest.mark.parametrize("environ", [{}, {"MALLOC_TRIM_THRESHOLD_": str(2**20)}])
def test_what_a_step_frees_is_there_for_the_next_unless_the_user_has_chosen(environ: dict[str, str]) -> None:
    kept = {name: value for name, value in os.environ.items() if "MALLOC" not in name} | environ
    command = [sys.executable, "-c", PROGRAM.format("keep_heap()")]
    ended = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=True)
    first, later, returned = json.loads(ended.stdout)
    assert first >= PAGES - 512  # the system gives pages one by one
    if environ:
        assert later >= PAGES - 512  # and takes them away as soon as they are free
    else:
        assert later < PAGES / 100 and returned >= PAGES - 512


@pytest.mark.long
@pytest.mark.skipif(platform.system() != "Linux", reason="resident memory is read from /proc")
def test_the_memory_of_a_run_stays_level() -> None:
    """A picture every 25 steps: 22 kB a step when each left 0.5 MB behind (benchmarks/RESULTS.md)."""
    settings = ["--steps", "1500", "--run.picture_every=25", "--run.save_every=1000000"]
    ended = subprocess.run(
        [sys.executable, "benchmarks/memory.py", *settings], cwd=ROOT, capture_output=True, text=True, check=True
    )
    slope = re.search(r"slope after step 500: (-?[\d.]+) kB a step", ended.stdout)
    assert slope is not None, ended.stdout
    assert float(slope[1]) < 5
