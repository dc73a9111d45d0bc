"""What the call without validation rows costs: the same networks compressed with them and without, on many tables.

    python benchmarks/validation_rows.py OUT.csv [--networks mlp_end torch_early ...] [--datasets wine ...] [--show]

Each line is one call. A run that was interrupted goes on; `--show` prints the summary of what is there. Tables come as
`neon data list` says (the folder in the environment variable NEON_DATA, or OpenML)."""
import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from sklearn.neural_network import MLPClassifier
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.lines import Lines
from neon.compress import compress
from neon.foundations.core import single_thread
from neon.foundations.data import prepare

BUNDLED = "digits", "breast_cancer", "wine", "iris"
SETS = (*BUNDLED, "2dplanes", "ailerons", "fried", "house_8L", "disclosure_z", "no2",
        "pm10", "diggle_table_a2", "rmftsa_sleepdata", "airlines", "Amazon_employee_access", "bank-marketing",
        "CreditCardSubset", "diabetes", "nursery", "cardiotocography__noleak", "electricity-normalized",
        "tamilnadu-electricity__noleak", "first-order-theorem-proving", "mfeat-karhunen", "mfeat-morphological",
        "phoneme", "satimage", "jungle_chess_2pcs_raw_endgame_complete", "kr-vs-k")
NETWORKS = ("mlp_end", "torch_early", "torch_end", "mlp_early")
MOST_ROWS = 8000  # Of training, for time's sake


def arrays(name, network):
    "Rows to train on, for validation, and to test on, as float32 arrays and class numbers; a split per kind."
    data = prepare(name, seed=NETWORKS.index(network))
    names = "train", "validation", "test"
    parts = [(getattr(data, f"X_{p}").numpy(), getattr(data, f"y_{p}").numpy()) for p in names]
    (x, y), (xv, yv), test = parts
    return (x[:MOST_ROWS], y[:MOST_ROWS]), (xv[:MOST_ROWS//3], yv[:MOST_ROWS//3]), test


def torch_network(fit, held, early, epochs=80):
    "A module of two hidden layers; with `early`, as it was at its best on the rows held back."
    torch.manual_seed(0)
    (x, y), (xv, yv) = ((torch.tensor(x), torch.tensor(y)) for x, y in (fit, held))
    n, k = x.shape[1], int(y.max()) + 1
    module = nn.Sequential(nn.Linear(n, 200), nn.ReLU(), nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, k))
    optimiser, best, kept = torch.optim.Adam(module.parameters(), 1e-3), -1.0, None
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
            optimiser.step()
        score = float((module(xv).argmax(1) == yv).float().mean())
        if early and score > best: best, kept = score, {k: v.clone() for k, v in module.state_dict().items()}
    if early: module.load_state_dict(kept)
    return module.eval()


def train(network, fit, held):
    "One of the four kinds."
    if network.startswith("torch"): return torch_network(fit, held, network.endswith("early"))
    return MLPClassifier((200, 100), max_iter=200, early_stopping=network.endswith("early"), random_state=0).fit(*fit)


def accuracy(network, rows):
    x, y = rows
    if hasattr(network, "predict"): return float((network.predict(x) == y).mean())
    with torch.no_grad(): return float((network(torch.tensor(x)).argmax(1).numpy() == y).mean())


def entry(name, network, model, parts, mode):
    "One call, measured on test rows."
    fit, held, test = parts
    start = time.process_time()
    r = compress(model, *fit, budget=1.0, classes=None if hasattr(model, "predict") else range(int(fit[1].max()) + 1),
                 **({"validation": held} if mode == "with" else {}))
    small = r.network
    return {"dataset": name, "network": network, "mode": mode, "train_rows": len(fit[1]), "test_rows": len(test[1]),
            "before": r.original.architecture.n_params, "after": small.architecture.n_params,
            "accuracy_before": accuracy(model, test), "accuracy_after": accuracy(small, test), "drop": r.drop.points,
            "error": r.drop.error, "guard_rows": r.drop.rows, "reference": r.reference.split(",")[0],
            "seconds": time.process_time() - start}


def summary(table):
    "Geometric compression with and without, and who breaks the budget."
    table = table.assign(ratio=table.before/table.after, lost=100*(table.accuracy_before - table.accuracy_after))
    if set(table["mode"]) != {"with", "without"}: return print("the summary wants both modes")
    both = table.pivot_table(index=["dataset", "network"], columns="mode", values="ratio").dropna()
    logs = np.log(both)
    print(f"{len(both)} networks: geometric compression with {np.exp(logs['with'].mean()):.1f}x, "
          f"without {np.exp(logs.without.mean()):.1f}x, share of the logarithm "
          f"{logs.without.mean()/logs['with'].mean():.2f}")
    for mode, part in table.groupby("mode"):
        large = part[part.test_rows > 1000]
        print(f"{mode}: over budget {(large.lost > 1).sum()} of {len(large)} with more than 1,000 test rows, "
              f"{(part.lost > 1).sum()} of {len(part)} in all; mean loss {part.lost.mean():.2f} points; "
              f"{part.seconds.median():.0f} CPU-seconds at the median")
    by_set = (logs.without - logs["with"]).groupby("dataset").mean()
    print(f"paired t-test of the logarithms over data sets: p = {stats.ttest_1samp(by_set, 0).pvalue:.4f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--datasets", nargs="+", default=SETS)
    parser.add_argument("--modes", nargs="+", default=("without", "with"))
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    lines = Lines(args.out, "dataset", "network", "mode")
    if args.show: return summary(lines.table)
    for network in args.networks:
        for name in args.datasets:
            left = [mode for mode in args.modes if not lines.holds(name, network, mode)]
            if not left: continue
            parts = arrays(name, network)
            with single_thread(): model = train(network, *parts[:2])
            for mode in left:
                line = entry(name, network, model, parts, mode)
                lines.add(line)
                facts = [f"{line[f'accuracy_{when}']:.3f}" for when in ("before", "after")]
                print(network, name, mode, f"{line['before']/line['after']:.1f}x", line["reference"], "test", *facts,
                      f"{line['seconds']:.0f} s", flush=True)
    summary(lines.table)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
