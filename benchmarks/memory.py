"""Peak resident memory of the engine's part of each benchmark, each in a process of its own.

Memory does not depend on how long something is trained, so few epochs do, and untrained networks.
"""
import tempfile
from collections.abc import Iterator

from benchmarks import agent, gemm, growth
from benchmarks.common import SEED, Options, Part, data_of, drawn_networks, in_fresh_process, peak_memory_mb, synthetic
from benchmarks.step import variants
from neon.foundations.core import generator, get_protocol
from neon.foundations.training import train_networks
from neon.published.agent import random_policy, rollout_together
from neon.published.environment import EnvConfig, EpisodeBatch
from neon.published.runs import RunConfig

DATASETS = {"step": ("diabetes", "waveform-5000", "house_8L"),
            "base": ("diabetes", "waveform-5000", "satimage", "house_8L"),
            "agent": ("diabetes", "satimage", "house_8L")}


def short(config: EnvConfig) -> EnvConfig:
    "The same rules, with little training."
    return config.replace(training=config.training.replace(epochs=2))


def peak_of_steps(name: str, drawn: int = 30, rounds: int = 4) -> float: # MB
    "Whole episodes with the two largest of some networks, in all the engine's ways; several, since caches fill up."
    data = data_of(name)
    networks = sorted(drawn_networks(data, drawn), key=lambda n: n.architecture.macs)[-2:]
    for config in variants().values():
        table = EpisodeBatch(networks, data, short(config), SEED)
        for k in range(rounds):
            rngs = [generator(SEED, "memory", k, i) for i in range(2)]
            rollout_together(table, [0, 1], random_policy(len(config.actions)), rngs)
    return peak_memory_mb()


def peak_of_bases(name: str, protocol: str) -> float: # MB
    "All 30 networks, stacked as they are."
    data, config = data_of(name, protocol), get_protocol(protocol).base_training.replace(epochs=1, epoch_rows=1024)
    networks = drawn_networks(data, 30, protocol)
    train_networks(networks, data.X_train, data.y_train, data.X_validation, data.y_validation, config, SEED)
    return peak_memory_mb()


def peaks_of_agent(name: str, workers: int, episodes: int = 72) -> agent.Measured:
    "An agent that learns for a short while."
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(dataset=name, episodes=episodes, seed=SEED, device="cpu")
        return agent.measure(config, folder, workers, untrained=True)


def peak_of_growth() -> float: # MB
    "The largest of the tables and the widest of the networks."
    for rows, width in ((max(growth.ROWS), growth.WIDTH), (growth.FIXED_ROWS, max(growth.WIDTHS))):
        data = synthetic(rows, 8, 2, f"synthetic-{rows}")
        network = growth.network_of(data, width)
        for name in growth.MEASURED: growth.one_pass(network, data, short(variants()[name]), 0)
    return peak_memory_mb()


def peak_of_gemm() -> float: # MB
    "The products and the largest batch."
    gemm.measure(gemm.SIZES, gemm.BATCHES[-1:], gemm.HIDDEN, gemm.ROWS, 1)
    return peak_memory_mb()


def row_of(bench: str, dataset: str, peak: float) -> dict:
    return {"bench": bench, "dataset": dataset, "peak_mb": round(peak, 1)}


def run(options: Options) -> Iterator[Part]:
    "The benchmark."
    few = (3, 1) if options.quick else ()
    for name in options.names(DATASETS["step"]):
        yield "memory", [row_of("step", name, in_fresh_process(peak_of_steps, name, *few))]
    if options.quick: return
    for name in options.names(DATASETS["base"]):
        for protocol in ("strict", "paper"):
            yield "memory", [row_of(f"base, {protocol}", name, in_fresh_process(peak_of_bases, name, protocol))]
    for name in options.names(DATASETS["agent"]):
        measured = in_fresh_process(peaks_of_agent, name, options.workers)
        yield "memory", [row_of("agent, largest process", name, measured.peak_memory_mb),
                         row_of("agent, all processes", name, measured.peak_memory_mb_in_all)]
    yield "memory", [row_of("growth", "synthetic", in_fresh_process(peak_of_growth))]
    yield "memory", [row_of("gemm", "synthetic", in_fresh_process(peak_of_gemm))]
