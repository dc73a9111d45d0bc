"""The share of the machine's matrix product speed that training reaches.

The peak is the fastest of some square products, measured here and now. Training counts 6 floating point operations
per row and multiply-accumulate of the network (2 forward, 2 for the gradient of the weights, 2 for that of the
inputs), less the last of these in the first layer, which is not computed. What else training does, such as Adam,
activations and batches, takes time and counts nothing.
"""
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.common import SEED, Options, Part, plain_row, say, timed
from neon.foundations.core import TrainingConfig, fast_bfloat16, torch_generator
from neon.foundations.networks import Architecture, DenseNetwork, Layer, build_network
from neon.foundations.training import train_stack

SIZES, BATCHES, HIDDEN, INPUTS, ROWS = (512, 1024, 2048), (128, 256, 1024), (1000, 1000, 1000), 64, 8192
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def product_speed(size: int, dtype: torch.dtype, repetitions: int = 5) -> float: # GFLOP/s, the best of some
    "Speed of a product of two square matrices."
    a, b = (torch.randn(size, size, generator=torch_generator(SEED, "gemm", i)).to(dtype) for i in range(2))
    out = a @ b
    return 2*size**3/1e9/min(timed(lambda: torch.mm(a, b, out=out))[1] for _ in range(repetitions))


def operations_per_row(architecture: Architecture) -> int:
    "Floating point operations of the matrix products of training, for one row."
    return 6*architecture.macs - 2*architecture.widths[0]*architecture.widths[1]


def training_seconds(network: DenseNetwork, rows: int, batch: int, precision: str) -> float:
    "CPU seconds of one epoch of `train_stack`."
    rng, a = torch_generator(SEED, "gemm data"), network.architecture
    x, y = torch.randn(1, rows, a.n_inputs, generator=rng), torch.randint(a.n_outputs, (rows,), generator=rng)
    config = TrainingConfig(epochs=1, batch_size=batch, patience=None, precision=precision)
    return timed(train_stack, [network], x, y, x[:, :2], y[:2], config, SEED, [0])[1]


def measure(sizes: tuple[int, ...], batches: tuple[int, ...], hidden: tuple[int, ...], rows: int,
            repetitions: int) -> list[dict]:
    "Peaks and training speeds, measured in turn."
    architecture = Architecture(INPUTS, (*(Layer(w) for w in hidden), Layer(10, "identity")))
    network = build_network(architecture, torch_generator(SEED, "gemm network"))
    work = rows*operations_per_row(architecture)/1e9
    peaks, seconds = {name: 0.0 for name in DTYPES}, {(p, b): [] for p in ("float32", "auto") for b in batches}
    for repetition in range(repetitions):
        say(f"gemm: repetition {repetition + 1} of {repetitions}")
        for name, dtype in DTYPES.items():
            peaks[name] = max(peaks[name], *(product_speed(size, dtype) for size in sizes))
        for (precision, batch), each in seconds.items():
            each.append(training_seconds(network, rows, batch, precision))
    return rows_of(str(architecture), work, peaks, seconds)


def rows_of(shape: str, work: float, peaks: dict[str, float],
            seconds: dict[tuple[str, int], list[float]]) -> list[dict]:
    "The peaks, and for every way to train the share of its peak: median, lowest, highest."
    rows = [plain_row("gemm", "square products", f"{name} peak: {peak:.0f} GFLOP/s", np.nan)
            for name, peak in peaks.items()]
    for (precision, batch), each in seconds.items():
        used = "bfloat16" if precision == "auto" and fast_bfloat16(torch.device("cpu")) else "float32"
        speeds = work/np.array(each)
        variant = f"{precision} ({used}), batch {batch}: {np.median(speeds):.0f} GFLOP/s"
        share = speeds/peaks[used]
        spread = float(np.median(share)), share.min(), share.max()
        rows.append(plain_row("gemm", shape, variant, float(np.median(each)), *spread))
    return rows


def run(options: Options) -> Iterator[Part]:
    "The benchmark."
    if options.quick: yield "", measure((256,), (128,), (200, 200), 1024, 2)
    else: yield "", measure(SIZES, BATCHES, HIDDEN, ROWS, 5)
