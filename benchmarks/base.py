"""Base networks: trained one after another by the naive loop, against the engine, which stacks them where that pays.

In the `paper` protocol all 100 epochs are trained and the last weights kept; in the `strict` one both sides stop
early. The engine's time for a stack is shared among its networks in proportion to their parameters. Accuracy is that
on test rows.
"""
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks import naive
from benchmarks.common import SEED, Options, Part, comparisons, data_of, drawn_networks, say, timed
from neon.foundations.core import TrainingConfig, get_protocol
from neon.foundations.data import PreparedData
from neon.foundations.networks import DenseNetwork
from neon.foundations.training import evaluate, plan_stacks, train_networks

DATASETS = ("diabetes", "waveform-5000", "satimage", "house_8L")
# The naive loop takes minutes for one large network, so there are fewer of them on the larger sets
NETWORKS = {"strict": {"diabetes": 30, "waveform-5000": 8, "satimage": 8, "house_8L": 4},
            "paper": {"diabetes": 30, "waveform-5000": 4, "satimage": 4, "house_8L": 0}}
NAIVE = {"strict": naive.BASE, "paper": naive.PUBLISHED_BASE}


def train_group(networks: Sequence[DenseNetwork], group: Sequence[int], data: PreparedData,
                config: TrainingConfig) -> list[DenseNetwork]:
    "Networks that `plan_stacks` put together, trained by the engine as they are among all."
    rows = data.X_train, data.y_train, data.X_validation, data.y_validation
    return [r.network for r in train_networks([networks[i] for i in group], *rows, config, SEED, group)]


def shares(networks: Sequence[DenseNetwork], group: Sequence[int]) -> np.ndarray:
    "Each network's part of what its stack costs."
    parameters = np.array([networks[i].architecture.n_params for i in group])
    return parameters/parameters.sum()


def compare(
    networks: Sequence[DenseNetwork], # Untrained
    data: PreparedData,
    naive_config: TrainingConfig,
    config: TrainingConfig,           # Of the engine
) -> tuple[np.ndarray, np.ndarray]:   # CPU seconds and test accuracies, (2, n) each: naive, ours
    "Train all networks in both ways: in turn where the engine trains a network alone, stacks at the end."
    seconds, accuracy = np.zeros((2, len(networks))), np.zeros((2, len(networks)))
    groups = plan_stacks(networks)
    alone = {group[0] for group in groups if len(group) == 1}

    def engine(group: Sequence[int]) -> None:
        results, cpu = timed(train_group, networks, group, data, config)
        seconds[1, group] = cpu*shares(networks, group)
        accuracy[1, group] = [evaluate(n, data.X_test, data.y_test) for n in results]

    for i, network in enumerate(networks):
        say(f"base, {data.name} ({data.protocol}): network {i + 1} of {len(networks)}, {network.architecture}")
        result, seconds[0, i] = timed(naive.train, network, data, naive_config)
        accuracy[0, i] = evaluate(result, data.X_test, data.y_test)
        if i in alone: engine([i])
    for group in groups:
        if len(group) > 1: engine(group)
    return seconds, accuracy


def run(options: Options) -> Iterator[Part]:
    "The benchmark."
    for name in options.names(DATASETS):
        rows = []
        for protocol in ("strict", "paper"):
            n = options.networks or (2 if options.quick else NETWORKS[protocol].get(name, 4))
            if n: rows += compare_protocol(name, protocol, n, epochs=5 if options.quick else None)
        yield "", rows


def compare_protocol(name: str, protocol: str, n: int, epochs: int | None = None) -> list[dict]:
    "The rows of one data set and protocol; `epochs` is there for trials."
    data = data_of(name, protocol)
    configs = NAIVE[protocol], get_protocol(protocol).base_training
    if epochs: configs = [config.replace(epochs=epochs) for config in configs]
    networks = drawn_networks(data, n, protocol)
    compare(networks[:1], data, *(config.replace(epochs=1) for config in configs))  # first calls take longer
    seconds, accuracy = compare(networks, data, *configs)
    difference = 100*float(np.diff(accuracy.mean(1))[0])
    return comparisons("base", data.name, f"{protocol}, {n} networks", *seconds, difference)
