"""What one call of `compress` costs: a network of 0.8 million parameters, on 5,000 rows and on 45,000.

The network has three hidden layers and was trained by the strict protocol; the call gets its training and validation
rows, a budget of one point, the shipped agent, and one thread. The median over a few random states is reported.
Tables that are larger are thinned.
"""
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from benchmarks.common import SEED, Options, Part, data_of, plain_row, say, timed, trained
from neon.compress import compress
from neon.foundations.core import torch_generator
from neon.foundations.data import PreparedData
from neon.foundations.networks import Architecture, DenseNetwork, Layer, build_network

CASES = {"satimage": 5_000, "phoneme": 5_000,  # Rows of the call
         "electricity-normalized": 45_000, "bank-marketing": 45_000}
HIDDEN, STATES = (600, 800, 300), 3


def network_for(data: PreparedData) -> DenseNetwork:
    "A trained network of some 0.75 to 0.8 million parameters."
    layers = (*(Layer(width) for width in HIDDEN), Layer(data.n_classes, "identity"))
    return trained([build_network(Architecture(data.n_features, layers), torch_generator(SEED, "compress"))], data)[0]


def run(options: Options) -> Iterator[Part]:
    for name in options.names(list(CASES)):
        data, most = data_of(name), CASES.get(name, 5_000)
        network, fit = network_for(data), round(0.8*most)
        x, y = data.X_train[:fit], data.y_train[:fit]
        x_held, y_held = torch.cat([data.X_validation, data.X_test]), torch.cat([data.y_validation, data.y_test])
        held = x_held[:most - len(x)], y_held[:most - len(x)]
        rows, seconds = len(x) + len(held[0]), []
        for state in range(1 if options.quick else STATES):
            result, took = timed(partial(compress, network, x, y, 1.0, validation=held, random_state=state))
            seconds.append(took)
            say(f"compress {name}: {took:.1f} s, {result.original.architecture} became {result.network.architecture}")
        variant = f"{network.architecture.n_params:,} parameters, {rows:,} rows: CPU seconds of one call"
        yield "", [plain_row("compress", name, variant, float(np.median(seconds)))]
