"""Does `compress` keep its time limit, and what does it find in the time?

    python benchmarks/time_limit.py [--limits 1 2 5 10] [--cases NAME ...] [--output data/results/time_limit.csv]

Each case is a network and rows that take far longer without a limit: many rows, wide layers, many classes, many
features. One call per case and limit, on one thread; the time is the whole call's, on the processor and on the wall.
The networks are trained shortly: what is measured is the time, not the compression.
"""
import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch

from neon.compress import compress
from neon.foundations.core import generator, torch_generator, write_csv
from neon.foundations.networks import Architecture, DenseNetwork, Layer, build_network
from neon.foundations.training import AnnealConfig, anneal

Data = tuple[np.ndarray, np.ndarray]


def rows(n: int, features: int, classes: int) -> Data:
    "Classes by the largest of some random linear forms of a few features, a tenth of them redrawn."
    rng, few = generator(0, "time limit", n, features, classes), min(features, 12)
    X = rng.standard_normal((n, features), dtype=np.float32)
    forms = rng.standard_normal((few, classes), dtype=np.float32)
    y = (np.maximum(X[:, :few], 0) @ forms).argmax(1)
    return X, np.where(rng.random(n) < 0.1, rng.integers(classes, size=n), y)


def network(X: np.ndarray, y: np.ndarray, *hidden: int) -> DenseNetwork:
    "A network that has learnt some of it."
    a = Architecture(X.shape[1], (*(Layer(w) for w in hidden), Layer(int(y.max()) + 1, "identity")))
    few = slice(0, 20_000)
    settings = AnnealConfig(60 if a.n_params > 1e6 else 600, 128, 1e-3)
    return anneal([build_network(a, torch_generator(0, "time limit"))], torch.from_numpy(X[few]),
                  torch.from_numpy(y[few]), settings)[0]


@dataclass(frozen=True)
class Case:
    "One kind of call."
    n: int                        # Rows
    features: int
    classes: int
    hidden: tuple[int, ...]
    validation: bool = False      # Are 20,000 validation rows (or a third as many as there are) given?
    options: dict = field(default_factory=dict)


CASES = {
    "1,000,000 rows": Case(1_000_000, 50, 2, (100, 50)),
    "1,000,000 rows, validation": Case(1_000_000, 50, 2, (100, 50), validation=True),
    "1,000,000 rows, no agent": Case(1_000_000, 50, 2, (100, 50), options={"agent": None}),
    "1,000,000 rows, uniform": Case(1_000_000, 50, 2, (100, 50), options={"method": "uniform"}),
    "8,192 units": Case(10_000, 50, 3, (8192,)),
    "8,192 units, uniform": Case(10_000, 50, 3, (8192,), options={"method": "uniform"}),
    "1,000,000 rows, 8,192 units": Case(1_000_000, 50, 2, (8192,)),
    "100 classes": Case(20_000, 50, 100, (256, 128)),
    "100 classes, no agent": Case(20_000, 50, 100, (256, 128), options={"agent": None}),
    "784-512-256": Case(10_000, 784, 10, (512, 256)),
    "784-512-256, validation": Case(10_000, 784, 10, (512, 256), validation=True),
    "784-512-256, F1": Case(10_000, 784, 10, (512, 256), options={"metric": "f1_macro"}),
    "5,000 features": Case(5_000, 5000, 2, (128,)),
}


@lru_cache(maxsize=1)
def prepared(n: int, features: int, classes: int, hidden: tuple[int, ...]) -> tuple[DenseNetwork, Data]:
    "Rows, and a network for them."
    X, y = rows(n, features, classes)
    return network(X, y, *hidden), (X, y)


def measured(case: Case, call: Callable) -> dict:
    "One call."
    net, (X, y) = prepared(case.n, case.features, case.classes, case.hidden)
    held = min(20_000, len(X)//3)
    options = {"validation": (X[-held:], y[-held:])} if case.validation else {}
    fit = slice(0, len(X) - held) if case.validation else slice(None)
    wall, processor = time.monotonic(), time.process_time()
    result = call(net, X[fit], y[fit], **options, **case.options)
    return {"wall": time.monotonic() - wall, "cpu": time.process_time() - processor,
            "before": net.architecture.n_params, "after": result.network.architecture.n_params,
            "became": str(result.network.architecture), "drop": result.drop.points, "guard_rows": result.drop.rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", type=float, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    X, y = rows(300, 5, 2)
    compress(network(X, y, 8), X, y, time_limit=1)  # what the first call imports and sets up is not measured
    lines = []
    for name in sorted(args.cases, key=lambda name: (CASES[name].n, CASES[name].features, CASES[name].hidden)):
        for limit in args.limits:
            found = measured(CASES[name], lambda *a, limit=limit, **k: compress(*a, time_limit=limit, **k))
            lines.append({"case": name, "limit": limit, **{k: round(v, 2) if isinstance(v, float) else v
                                                         for k, v in found.items()}})
            print(" | ".join(str(v) for v in lines[-1].values()), flush=True)
    if args.output: write_csv(args.output, pd.DataFrame(lines))


if __name__ == "__main__": main()
