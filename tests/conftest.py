"Shared fixtures: one thread per process, a fixed seed, the project's folder and its notebooks."
import json
import os
import sys
from pathlib import Path

# Inherited by the processes that tests start
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"): os.environ.setdefault(_name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / ".ci"))  # the check of `make test` is a module that the tests use too

torch.set_num_threads(1)


@pytest.fixture
def seed() -> int:
    "The seed of a test. The global generators are set too, so that a library which uses them repeats itself."
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    return 0


@pytest.fixture(scope="session")
def root() -> Path:
    "The project's folder."
    return ROOT


@pytest.fixture(scope="session")
def notebooks() -> dict[str, dict]:
    "Every notebook: its path below nbs/ -> its content, in reading order."
    nbs = ROOT / "nbs"
    hidden = lambda path: any(part.startswith((".", "_")) for part in path.relative_to(nbs).parts)
    paths = sorted(p for p in nbs.rglob("*.ipynb") if not hidden(p))
    return {p.relative_to(nbs).as_posix(): json.loads(p.read_text(encoding="utf-8")) for p in paths}
