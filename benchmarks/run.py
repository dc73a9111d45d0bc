"""Measure the engine against the loops it replaces, in one process, interleaved, at one thread.

    make bench                            # everything; minutes to an hour
    make bench ARGS="--only step --quick" # one benchmark, on the smallest data set

Every benchmark runs variant A and variant B in turn on the same work, compares medians of CPU time, and sets the difference in
validation accuracy beside the ratio. Results are printed and written to data/results/bench.csv.
Data sets come from NEON_DATA or OpenML; where neither has them, synthetic data of the same size stand in and the name says so.
"""
import argparse
import copy
import os
import resource
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.datasets import make_classification
from torch.utils.data import DataLoader, TensorDataset

from neon.core import NeonError, TrainingConfig, generator, get_protocol, torch_generator, write_csv
from neon.data import as_dataset, load_dataset, prepare
from neon.environment import EnvConfig, cut, start_state
from neon.networks import build_network, random_architecture
from neon.surgery import keep_width, replace_layer
from neon.training import evaluate, train_networks

COLUMNS = ["bench", "dataset", "variant", "ratio", "ratio_low", "ratio_high", "accuracy_difference", "cpu_seconds"]
SIZES = {"diabetes": (768, 8, 2), "waveform": (5000, 21, 3), "house_8L": (22784, 8, 2)}


def data_of(name):
    "A prepared data set, or synthetic data of its size."
    try: return prepare(load_dataset(name), "strict")
    except NeonError:
        rows, columns, classes = SIZES[name]
        X, y = make_classification(rows, columns, n_informative=min(columns, 6), n_redundant=0, n_classes=classes, flip_y=0.1,
                                   class_sep=0.8, random_state=0)
        return prepare(as_dataset(pd.DataFrame(X).add_prefix("x"), pd.Series(y), f"{name}-size"), "strict")


def naive_training(network, data, config, rows=None):
    "One network, item by item, the whole of it forward for every minibatch; `rows` are those that learn."
    network = copy.deepcopy(network)
    for i, row in enumerate(network.rows): row.requires_grad_(rows is None or i in rows)
    loader = DataLoader(TensorDataset(data.X_train, data.y_train), config.batch_size, shuffle=True, drop_last=True,
                        generator=torch_generator(0, "batches"))
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], config.learning_rate)
    best, best_loss, since = None, float("inf"), 0
    for _ in range(config.epochs):
        network.train()
        for x, y in loader:
            optimiser.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimiser.step()
        network.eval()
        with torch.no_grad(): loss = F.cross_entropy(network(data.X_validation), data.y_validation).item()
        since += 1
        if loss < best_loss or config.patience is None: best, best_loss, since = copy.deepcopy(network.state_dict()), loss, 0
        if since == config.patience: break
    network.load_state_dict(best)
    return network.eval()


def timed(function):
    "Result and CPU seconds of a call."
    begin = time.process_time()
    return function(), time.process_time() - begin


def row_of(bench, dataset, variant, seconds_a, seconds_b, difference):
    "One result: how many times B is faster than A, with a bootstrap interval of the ratio of medians."
    a, b, rng = np.array(seconds_a), np.array(seconds_b), np.random.default_rng(0)
    picks = rng.integers(len(a), size=(1000, len(a)))
    ratios = np.median(a[picks], 1)/np.median(b[picks], 1)
    values = [bench, dataset, variant, np.median(a)/np.median(b), *np.quantile(ratios, [0.025, 0.975]), difference, np.median(b)]
    print("  ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in values), flush=True)
    return dict(zip(COLUMNS, values, strict=True))


def parents_of(data, n):
    "Base networks, early stopped."
    drawn = [build_network(random_architecture(data.n_features, data.n_classes, generator(0, "bench", i)), torch_generator(0, i))
             for i in range(n)]
    strict = get_protocol("strict").base_training
    results = train_networks(drawn, data.X_train, data.y_train, data.X_validation, data.y_validation, strict, seed=0)
    return drawn, [r.network for r in results]


def bench_step(name, n_networks, steps):
    """One environment step: naive `replace` (batch 32, patience 10) against ours with the same settings, with the strict
    protocol's settings, with `refit` and up to five epochs, and with `refit` alone; same parents, layers and widths."""
    data, paper, strict = data_of(name), get_protocol("paper").step_training, get_protocol("strict").step_training
    variants = {"replace, same settings": EnvConfig(training=paper), "replace, strict settings": EnvConfig(training=strict),
                "refit, up to 5 epochs": EnvConfig(recovery="refit", training=strict),
                "refit, no epochs": EnvConfig(recovery="refit", refit_epochs=0, training=strict)}
    seconds = {variant: [] for variant in ("naive", *variants)}
    accuracy = {variant: [] for variant in seconds}
    for network in parents_of(data, n_networks)[1]:
        state, rng = start_state(network, data), generator(0, "walk")
        for step in range(steps):
            row = step % network.architecture.depth
            width = keep_width(state.network.architecture.hidden_widths[row], float(rng.choice([0.9, 0.8, 0.7, 0.6])))
            fresh = replace_layer(state.network, row, width, torch_generator(step, "weights"))
            naive, cpu = timed(lambda fresh=fresh, row=row: naive_training(fresh, data, paper, (row, row + 1)))
            seconds["naive"].append(cpu)
            accuracy["naive"].append(evaluate(naive, data.X_validation, data.y_validation))
            for variant, config in variants.items():
                result, cpu = timed(lambda s=state, r=row, w=width, c=config, i=step: cut(s, r, w, data, c, seed=i))
                seconds[variant].append(cpu)
                accuracy[variant].append(result.validation_accuracy)
                if variant == "refit, up to 5 epochs": following = state.changed(result.network, result.validation_accuracy, row)
            state = following
    return [row_of("step", data.name, v, seconds["naive"], seconds[v], 100*(np.mean(accuracy[v]) - np.mean(accuracy["naive"])))
            for v in variants]


def bench_base(name, n_networks):
    "Base networks one after another with the naive loop, against the stacked trainer, in both protocols."
    data, rows = data_of(name), []
    for protocol in ("paper", "strict"):
        config = get_protocol(protocol).base_training
        naive_config = TrainingConfig(100, 64, 1e-3, config.patience)
        drawn = [build_network(random_architecture(data.n_features, data.n_classes, generator(0, "bench", i)), torch_generator(0, i))
                 for i in range(n_networks)]
        seconds, accuracy = {"naive": [], "ours": []}, {"naive": [], "ours": []}
        for network in drawn:
            naive, cpu = timed(lambda n=network, c=naive_config: naive_training(n, data, c))
            ours, ours_cpu = timed(lambda n=network, c=config: train_networks([n], data.X_train, data.y_train, data.X_validation,
                                                                             data.y_validation, c, seed=0))
            for key, trained, s in (("naive", naive, cpu), ("ours", ours[0].network, ours_cpu)):
                seconds[key].append(s)
                accuracy[key].append(evaluate(trained, data.X_test, data.y_test))
        difference = 100*(np.mean(accuracy["ours"]) - np.mean(accuracy["naive"]))
        rows.append(row_of("base networks", data.name, protocol, seconds["naive"], seconds["ours"], difference))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["step", "base"], help="one benchmark instead of all")
    parser.add_argument("--quick", action="store_true", help="the smallest data set only, fewer repetitions")
    parser.add_argument("--output", default="data/results/bench.csv", help="where the table goes (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = ["diabetes"] if args.quick else list(SIZES)
    rows = []
    if args.only != "base":
        for name in names: rows += bench_step(name, 2 if args.quick else 4, 3 if args.quick else 6)
    if args.only != "step":
        for name in names[:1 if args.quick else 2]: rows += bench_base(name, 2 if args.quick else 8)
    write_csv(Path(args.output), pd.DataFrame(rows, columns=COLUMNS))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024**2:.2f} GiB; written to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
