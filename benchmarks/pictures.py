"""Dense networks for pictures: LeNet-300-100 on MNIST and its like, compressed for several budgets.

    python benchmarks/pictures.py OUT.csv [--networks lenet mnist500 fashion256] [--seeds 0] [--budgets 1] [--show]

The images come as `neon data list` says (the folder in the environment variable NEON_DATA, or OpenML). Ten
thousand of the training images are for validation; test images only measure. A run that was interrupted
goes on; `--show` prints what is there."""
import argparse
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.lines import Lines
from neon.compress import compress
from neon.compression.export import with_scaling
from neon.foundations.core import single_thread, torch_generator
from neon.foundations.data import load_dataset
from neon.foundations.networks import Architecture, Layer, build_network
from neon.foundations.training import AnnealConfig, anneal, evaluate

NETWORKS = {"lenet": ("mnist", (300, 100)), "mnist500": ("mnist", (500, 300)),
            "fashion256": ("fashion_mnist", (256, 256))}


def pictures(name, seed):
    "Rows to train on, for validation and to test on: pixels from 0 to 1, and class numbers."
    data = load_dataset(name)
    x, y = data.X.to_numpy(dtype=np.float32)/255, np.asarray(data.y, dtype=np.int64)
    order = np.random.default_rng(seed).permutation(data.n_train)
    parts = order[:50_000], order[50_000:], np.arange(data.n_train, len(y))
    return [(x[rows], y[rows]) for rows in parts]


def train(hidden, fit, seed):
    "A network that takes pixels from 0 to 1; it was trained on their distances from the mean, at one scale."
    mean, scale = torch.from_numpy(fit[0].mean(0)), float(fit[0].std())
    drawn = build_network(Architecture(784, (*map(Layer, hidden), Layer(10, "identity"))), torch_generator(seed, "net"))
    trained = anneal([drawn], (torch.from_numpy(fit[0]) - mean)/scale, torch.from_numpy(fit[1]),
                     AnnealConfig(4000, 128, 0.002), seed)[0]
    return with_scaling(trained, mean, torch.full((784,), scale))


def error(network, rows):
    "Wrong answers in percent."
    return 100*(1 - evaluate(network, *map(torch.from_numpy, rows)))


def gap(result):
    "Largest ratio of neighbouring sizes among the candidates that are shown or tested, and the original."
    sizes = sorted({c.network.architecture.n_params for c in result.front} | {t.candidate.size for t in result.tested})
    sizes.append(result.original.architecture.n_params)
    return max(b/a for a, b in zip(sizes, sizes[1:], strict=False))


def entry(name, seed, budget, network, parts):
    "One call, measured on test pictures."
    start = time.process_time()
    r = compress(network, *parts[0], budget=budget, validation=parts[1], classes=range(10), random_state=seed,
                 progress=False)
    small = r.network.architecture
    return {"network": name, "seed": seed, "budget": budget, "before": r.original.architecture.n_params,
            "after": small.n_params, "shape": str(small), "test_error_before": error(network, parts[2]),
            "test_error_after": error(r.network, parts[2]), "drop": r.drop.points, "bound": r.guard.each.bound(r.drop),
            "largest_gap": gap(r), "cpu_seconds": time.process_time() - start, "processor": platform.processor(),
            "capability": torch.backends.cpu.get_cpu_capability()}


def show(table):
    table = table.assign(ratio=table.before/table.after, lost=table.test_error_after - table.test_error_before)
    by = table.groupby(["network", "budget"])
    print(by[["after", "ratio", "test_error_before", "test_error_after", "lost", "largest_gap", "cpu_seconds"]].agg(
        ["median", "max"]).round(2).T.to_string())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS])
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--budgets", type=float, nargs="+", default=(0.2, 1.0, 2.0))
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    lines = Lines(args.out, "network", "seed", "budget")
    if args.show: return show(lines.table)
    for seed in args.seeds:
        for name in args.networks:
            left = [budget for budget in args.budgets if not lines.holds(name, seed, budget)]
            if not left: continue
            dataset, hidden = NETWORKS[name]
            parts = pictures(dataset, seed)
            with single_thread(): network = train(hidden, parts[0], seed)
            for budget in left:
                with single_thread(): line = entry(name, seed, budget, network, parts)
                lines.add(line)
                print(name, seed, f"C = {budget:g}: {line['before']} -> {line['after']} {line['shape']}, test error "
                      f"{line['test_error_before']:.2f} -> {line['test_error_after']:.2f}, "
                      f"{line['cpu_seconds']:.0f} s", flush=True)
    show(lines.table)


if __name__ == "__main__": main()
