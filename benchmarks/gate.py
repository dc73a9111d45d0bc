"""A fingerprint of what Neon computes, to move walls without moving numbers.

    python benchmarks/gate.py before.json          write the fingerprint of this checkout
    python benchmarks/gate.py after.json --against before.json     exit 1 and name what differs

Every weight, drop and table counts to the last bit, so both files must come from one machine and one set of libraries.
Jobs of the study, plans of the shipped planner, `compress` for every metric, one run of the published agent and one of
EComp; all on data bundled with scikit-learn, about five minutes at one thread.
"""
import argparse
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from torch import nn

from neon.compress import compress
from neon.compression.planner import load_planner, plan_budgets
from neon.compression.search import SearchConfig
from neon.ecomp.evolution import PRESETS, evolve
from neon.ecomp.runs import EcompConfig, run_experiment
from neon.foundations.core import generator, torch_generator
from neon.foundations.data import PreparedData, load_dataset, prepare
from neon.foundations.networks import DenseNetwork, build_network, random_architecture
from neon.foundations.training import AnnealConfig, anneal
from neon.methods.contract import undivided
from neon.published.runs import RunConfig, run
from neon.study.jobs import StudyConfig, run_study

METHODS = ("majority", "logistic", "random", "uniform", "uniform_replace", "fixed", "l1_oneshot", "unstructured",
           "least_squares", "scratch1", "distilled", "tp_taylor", "lap1", "admm1", "ecomp", "neon", "neon_trained",
           "neon_own", "compress")
METRICS = ("accuracy", "balanced_accuracy", "auc", "log_loss", "r2")


def digest(*values) -> str:
    "A short hash of tensors, numbers and texts, to the last bit."
    h = hashlib.sha256()
    for v in values:
        if isinstance(v, nn.Module): v = digest(*v.state_dict().values(), str(v.architecture))
        if isinstance(v, torch.Tensor): v = v.detach().cpu().numpy()
        h.update(v.tobytes() if isinstance(v, np.ndarray) else repr(v).encode())
    return h.hexdigest()[:16]


def study(folder: Path) -> dict[str, str]:
    "One network of two data sets, all methods, two budgets."
    config = StudyConfig(datasets=("iris", "wine"), methods=METHODS, epochs=3, effort=0.25)
    table = run_study(config, folder, workers=2, progress=False).drop(columns="seconds")
    return {f"study {r['dataset']} {r['method']} {r['budget']:g}": digest(*r.values())
            for r in table.to_dict("records")}


def drawn(data: PreparedData, i: int) -> DenseNetwork:
    "A random network for a data set, untrained."
    architecture = random_architecture(data.n_features, data.n_classes, generator(i, "gate"))
    return build_network(architecture, torch_generator(i, "gate"))


def plans() -> dict[str, str]:
    "The shipped planner on ten random networks, of two data sets."
    agent, found = load_planner("generic"), {}
    for name in ("wine", "breast_cancer"):
        data = prepare(load_dataset(name), "strict", seed=0)
        rows = undivided(data)
        for i in range(5):
            network, = anneal([drawn(data, i)], *rows.fit, AnnealConfig(60, 64, 3e-3))
            for p in plan_budgets(agent, network, rows, [1.0, 5.0]):
                found[f"plan {name} {i} {p.budget:g}"] = digest(p.network, p.actions, p.reasons)
    return found


def torch_model(n_inputs: int, n_outputs: int) -> nn.Sequential:
    "A plain chain with a batch norm."
    widths = (n_inputs, 48, 24, n_outputs)
    torch.manual_seed(0)
    a, b, c = (nn.Linear(m, n) for m, n in zip(widths, widths[1:], strict=False))
    return nn.Sequential(a, nn.BatchNorm1d(48), nn.ReLU(), b, nn.Tanh(), c)


def fitted(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    "Trained for some epochs by Adam."
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    loss = nn.CrossEntropyLoss() if y.dim() == 1 else nn.MSELoss()
    for _ in range(120):
        optimiser.zero_grad()
        loss(model(x), y).backward()
        optimiser.step()
    return model.eval()


def rows_of(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    "A bundled table, standardised and shuffled."
    X, y = {"breast_cancer": load_breast_cancer, "wine": load_wine, "diabetes": load_diabetes}[name](return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = torch.tensor((X - X.mean(0))/X.std(0)).float()[order], torch.tensor(y)[order]
    return x, (y.float()[:, None] - y.mean())/y.std() if name == "diabetes" else y.long()


def compressions() -> dict[str, str]:
    "Two calls for every metric: with validation rows, and without."
    found, hurry = {}, SearchConfig(effort=0.25, rounds=1)
    for metric in METRICS:
        x, y = rows_of("diabetes" if metric == "r2" else "wine" if metric == "log_loss" else "breast_cancer")
        n, outputs = len(x)//2, 1 if y.dim() == 2 else int(y.max()) + 1
        model = fitted(torch_model(x.shape[1], outputs), x[:n], y[:n])
        for held in ((x[n:], y[n:]), None):
            r = compress(model, x[:n], y[:n], 2.0, validation=held, metric=metric, search=hurry)
            tested = [(a.candidate.network.architecture.n_params, a.drop.points, a.drop.error, a.accepted)
                      for a in r.tested]
            front = [(c.network.architecture.n_params, c.drop.points) for c in r.front]
            name = f"compress {metric} {'with' if held else 'without'} validation"
            found[name] = digest(r.network, r.drop, r.how, tested, front, r.score)
    return found


def tables_of(folder: Path, name: str) -> dict[str, str]:
    "The tables of a run, without their seconds."
    read = lambda file: pd.read_csv(file).drop(columns=["seconds"], errors="ignore")
    return {f"{name} {f.name}": digest(read(f).to_csv()) for f in sorted(folder.glob("*.csv"))}


def published(folder: Path) -> dict[str, str]:
    "The published agent, trained on few networks of iris."
    run(RunConfig("iris", n_networks=6, n_test=2, passes=2, episodes=24), folder, workers=1, progress=False)
    return tables_of(folder, "agent")


def evolution(folder: Path) -> dict[str, str]:
    "EComp as published, and ours."
    settings = EcompConfig("digits", hidden=(24, 16), parent_epochs=5, pop_size=8, generations=4)
    run_experiment(settings, "121", 1, folder, 1, progress=False)
    found = tables_of(folder, "ecomp")
    data = prepare(load_dataset("wine"), "strict", seed=0)
    network, = anneal([drawn(data, 3)], data.X_train, data.y_train, AnnealConfig(60, 64, 3e-3))
    config = PRESETS["neon"].replace(population=8, generations=5, size="parameters")
    state = evolve(network, data.X_train, data.y_train, data.X_validation, data.y_validation, config, 0)
    return found | {"evolution": digest(*(n for i in state.archive for n in [state.parent.to_network(i)]))}


def fingerprint() -> dict[str, str]:
    "All parts."
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root, found = Path(folder), {}
        for part in (lambda: study(root/"study"), plans, compressions, lambda: published(root/"agent"),
                     lambda: evolution(root/"ecomp")):
            found |= part()
            print(f"{len(found)} entries", file=sys.stderr, flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="where the fingerprint goes")
    parser.add_argument("--against", type=Path, help="the fingerprint it should equal")
    args = parser.parse_args()
    found = fingerprint()
    args.output.write_text(json.dumps(found, indent=1) + "\n")
    if args.against is None: return 0
    before = json.loads(args.against.read_text())
    differing = sorted(k for k in before.keys() | found.keys() if before.get(k) != found.get(k))
    equal = f"{len(found) - len(differing)} of {len(before)} entries are equal to the bit"
    print(*(f"differs: {k}" for k in differing), equal, sep="\n")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
