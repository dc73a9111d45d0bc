"""How the cost of an environment step grows with the rows of the table, and with the parameters of the network.

A step is timed as half of a pass over a network with two hidden layers, each cut to 80 %. The exponent is the slope
of a line through the logarithms: 1 means twice the time for twice the size. Where epochs may follow a refit, they do:
the refit is judged against an accuracy that it cannot reach, since whether it loses accuracy is a matter of chance
and would hide the growth.
"""
from collections.abc import Iterator

import numpy as np

from benchmarks.common import SEED, Options, Part, say, synthetic, timed, trained
from benchmarks.step import variants
from neon.foundations.core import torch_generator
from neon.foundations.data import PreparedData
from neon.foundations.networks import Architecture, DenseNetwork, Layer, build_network
from neon.foundations.surgery import keep_width
from neon.published.environment import Cut, EnvConfig, make_cuts, start_state

ROWS, WIDTH = (1000, 2000, 4000, 8000, 16000, 32000, 64000), 300
WIDTHS, FIXED_ROWS = (50, 100, 200, 400, 800, 1600), 4000
UNREACHABLE = 2.0
MEASURED = ("refit, no epochs", "refit, up to 5 epochs", "replace")


def network_of(data: PreparedData, width: int) -> DenseNetwork:
    "A trained network with two hidden layers."
    architecture = Architecture(data.n_features, (Layer(width), Layer(width), Layer(data.n_classes, "identity")))
    return trained([build_network(architecture, torch_generator(SEED, "growth"))], data)[0]


def one_pass(network: DenseNetwork, data: PreparedData, config: EnvConfig,
             repetition: int) -> float: # CPU seconds of a step
    "Cut each hidden layer to 80 %."
    state, total = start_state(network, data, config), 0.0
    state.accuracy = UNREACHABLE
    for layer, width in enumerate(network.architecture.hidden_widths):
        cut = Cut(state, layer, keep_width(width, 0.8), (repetition, layer))
        (result,), seconds = timed(make_cuts, [cut], data, config, SEED)
        state, total = state.changed(result[0], UNREACHABLE, layer), total + seconds
    return total/network.architecture.depth


def cost(network: DenseNetwork, data: PreparedData,
         repetitions: int) -> dict[str, float]: # Median CPU seconds of a step, by variant
    "Time each variant a few times, in turn."
    configs = {name: variants()[name] for name in MEASURED}
    for config in configs.values():  # warm up
        one_pass(network, data, config.replace(training=config.training.replace(epochs=1)), 0)
    seconds = [[one_pass(network, data, config, k) for config in configs.values()] for k in range(repetitions)]
    return dict(zip(configs, np.median(seconds, 0).tolist(), strict=True))


def exponent(sizes: list[int], seconds: list[float]) -> float:
    "Slope of log seconds against log size."
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def rows_of(axis: str, costs: dict[int, dict[str, float]]) -> list[dict]:
    "One row per size and variant, with the exponent of its variant."
    exponents = {v: exponent(list(costs), [c[v] for c in costs.values()]) for v in MEASURED}
    return [{"axis": axis, "size": size, "variant": v, "cpu_seconds": c[v], "exponent": exponents[v]}
            for v in MEASURED for size, c in costs.items()]


def against_rows(sizes: tuple[int, ...] = ROWS, width: int = WIDTH, repetitions: int = 5) -> list[dict]:
    "The same network on more and more rows."
    costs = {}
    for n in sizes:
        say(f"growth: {n:,} rows")
        data = synthetic(n, 8, 2, f"synthetic-{n}")
        costs[n] = cost(network_of(data, width), data, repetitions)
    return rows_of("rows", costs)


def against_parameters(widths: tuple[int, ...] = WIDTHS, rows: int = FIXED_ROWS, repetitions: int = 5) -> list[dict]:
    "Wider and wider networks on the same rows."
    data, costs = synthetic(rows, 8, 2, f"synthetic-{rows}"), {}
    for width in widths:
        network = network_of(data, width)
        say(f"growth: {network.architecture.n_params:,} parameters")
        costs[network.architecture.n_params] = cost(network, data, repetitions)
    return rows_of("parameters", costs)


def run(options: Options) -> Iterator[Part]:
    "The benchmark."
    yield "growth", against_rows((500, 1000), 30, 1) if options.quick else against_rows()
    yield "growth", against_parameters((20, 40), 500, 1) if options.quick else against_parameters()
