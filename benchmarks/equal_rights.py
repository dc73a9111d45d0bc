"""Compression and its simplest rivals at equal rights: the same guard, the same features, the same seconds.

    python benchmarks/equal_rights.py OUT.csv [--datasets wine ...] [--splits 20] [--show]

For each data set, one network of 200-100 that stopped early. `compress` and three rivals (one hidden layer from
scratch, copies of its depth that it teaches, cuts by least squares) compress it for one and for five points; once all
must read all features, once all may leave some out, by one selector. Rivals train 20 epochs at first; then for as
many more as bring them to the seconds that `compress` took (at most ten times as many), and that is what counts. Test
rows only measure. A run that was interrupted goes on; tables come as `neon data list` says."""
import argparse
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.lines import Lines
from benchmarks.validation_rows import MOST_ROWS, SETS, torch_network
from neon.compress import all_methods
from neon.compression.search import SearchConfig
from neon.foundations.core import single_thread
from neon.foundations.data import prepare
from neon.foundations.networks import parse_network
from neon.foundations.training import evaluate
from neon.methods.contract import MethodConfig, compress_with, get_method
from neon.rivals.features import with_fewer_features

RIVALS = "scratch1", "distilled", "least_squares"
BUDGETS = 1.0, 5.0


def task(name, split):
    "Rows, as many as time allows, and a network that was stopped early."
    data = prepare(name, seed=split)
    few, kept = slice(0, MOST_ROWS), slice(0, MOST_ROWS//3)
    data = replace(data, X_train=data.X_train[few], y_train=data.y_train[few], X_validation=data.X_validation[kept],
                   y_validation=data.y_validation[kept])
    parts = [(getattr(data, f"X_{p}").numpy(), getattr(data, f"y_{p}").numpy()) for p in ("train", "validation")]
    return data, parse_network(torch_network(*parts, early=True))


def as_patient(method):
    "With as many refusals in a row as `compress` may have."
    return replace(method, guard={**method.guard, "patience": get_method("compress").guard["patience"]})


def compressed(method, network, data, config):
    "The verdicts, and how many seconds they took."
    start = time.process_time()
    verdicts = compress_with(method, network, method.rows(data, 0), config=config)
    return verdicts, time.process_time() - start


def entries(name, split):
    "Every method, with all features and with fewer."
    data, network = task(name, split)
    accuracy = lambda n: 100*evaluate(n, data.X_test, data.y_test)
    for features in ("all", "fewer"):
        seconds = None
        for name_of in ("compress", *RIVALS):
            method, config = get_method(name_of), MethodConfig(BUDGETS, seed=split)
            if name_of == "compress": config = config.replace(
                options={"search": SearchConfig(select_inputs=features == "fewer")})
            else: method = as_patient(method)
            if features == "fewer" and name_of != "compress": method = with_fewer_features(method)
            verdicts, took = compressed(method, network, data, config)
            epochs = config.epochs
            if seconds is None: seconds = took
            elif took < 0.8*seconds:
                epochs = round(epochs*min(10, seconds/took))
                verdicts, took = compressed(method, network, data, config.replace(epochs=epochs))
            for v in verdicts:
                small = v.chosen.candidate
                yield {"dataset": name, "split": split, "features": features, "method": name_of,
                       "budget": v.guard.budget, "before": network.architecture.n_params, "after": small.size,
                       "lost": accuracy(network) - accuracy(small.network), "test_rows": len(data.y_test),
                       "epochs": epochs, "seconds": took}


def show(table):
    "Geometric compression, and compress against the best single rival, over data sets."
    logs = np.log(table.before/table.after).rename("log")
    by = table.assign(log=logs).pivot_table(index=["features", "budget", "dataset"], columns="method", values="log")
    for (features, budget), part in by.groupby(level=[0, 1]):
        of = table[(table.features == features) & (table.budget == budget)]
        broken = of.assign(over=of.lost > budget).groupby("method").over.sum()
        print(f"{features} features, budget {budget:g}: " + ", ".join(
            f"{m} {np.exp(part[m].mean()):.1f}x ({broken[m]} over)" for m in part), f"of {len(part)} data sets")
        best = max(RIVALS, key=lambda m: part[m].mean())
        ahead = part["compress"] - part[best]
        low, high = (np.exp(ahead.mean() + s*stats.t.ppf(0.975, len(ahead) - 1)*ahead.sem()) for s in (-1, 1))
        smaller = (part[list(RIVALS)].max(axis=1) - part["compress"] > np.log(1.5)).sum()
        print(f"   compress against {best}: {np.exp(ahead.mean()):.2f}x [{low:.2f}, {high:.2f}]; on {smaller} some "
              f"rival is 1.5 times smaller; seconds at the median: "
              + ", ".join(f"{m} {s:.0f}" for m, s in of.groupby("method").seconds.median().items()))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--datasets", nargs="+", default=SETS)
    parser.add_argument("--splits", nargs="+", type=int, default=[20])
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    lines = Lines(args.out, "dataset", "split")
    if args.show: return show(lines.table)
    all_methods()
    for split in args.splits:
        for name in args.datasets:
            if lines.holds(name, split): continue
            with single_thread(): found = list(entries(name, split))
            lines.add(*found)
            print(name, split, ", ".join(f"{e['method']} {e['features']} {e['budget']:g}: {e['before']/e['after']:.1f}x"
                                         for e in found), flush=True)
    show(lines.table)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        main()
