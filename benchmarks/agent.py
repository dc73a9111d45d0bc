"""Training an agent as a run does: 24 networks, four passes, the strict protocol's defaults, two processes that play.

Base networks are trained before and not counted. CPU seconds are those of the training process and of all its workers.
"""
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import (
    SEED,
    FamilyMemory,
    Options,
    Part,
    data_of,
    drawn_networks,
    in_fresh_process,
    plain_row,
    say,
)
from neon.foundations.core import get_protocol
from neon.foundations.data import PreparedData
from neon.foundations.networks import DenseNetwork
from neon.published.runs import RunConfig, split_networks, train_base_networks, train_run_agent

DATASETS = ("diabetes", "satimage", "house_8L")


@dataclass
class Measured:
    "What training one agent took."
    episodes: int
    steps: int
    wall_seconds: float
    cpu_seconds: float
    peak_memory_mb: float         # Of the largest process
    peak_memory_mb_in_all: float  # Of all processes together, what they share counted once


def cpu_seconds() -> float:
    "CPU seconds of this process and of all its children that have ended."
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def base_networks(config: RunConfig, data: PreparedData, folder: str | Path, workers: int = 1) -> list[DenseNetwork]:
    "The training networks of a run; those that are in the folder are only read."
    protocol, n, seed = get_protocol(config.protocol), config.n_networks, config.seed
    networks = train_base_networks(n, data, protocol, seed, Path(folder)/"networks", workers, progress=False)
    return [networks[i] for i in split_networks(n, config.n_test, seed)[0]]


def train_bases(config: RunConfig, folder: str, workers: int) -> None:
    "Put the base networks of a run into a folder."
    base_networks(config, data_of(config.dataset), folder, workers)


def measure(config: RunConfig, folder: str, workers: int, untrained: bool = False) -> Measured:
    "Train an agent, and say what it took."
    data = data_of(config.dataset)
    if untrained: networks = drawn_networks(data, config.n_networks - config.n_test)
    else: networks = base_networks(config, data, folder)
    with FamilyMemory() as memory:
        wall, cpu = time.perf_counter(), cpu_seconds()
        agent = train_run_agent(config, data, networks, folder, workers, progress=False)
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    steps = sum(row["steps"] for row in agent.log)
    return Measured(len(agent.log), steps, wall, cpu, memory.largest, memory.in_all)


def run(options: Options) -> Iterator[Part]:
    "The benchmark."
    for name in options.names(DATASETS):
        counts = {"n_networks": 4, "n_test": 2, "episodes": 4} if options.quick else {}
        if options.networks: counts |= {"n_networks": options.networks, "n_test": max(1, options.networks//5)}
        if options.episodes: counts["episodes"] = options.episodes
        config = RunConfig(dataset=name, seed=SEED, device="cpu", **counts)
        with tempfile.TemporaryDirectory() as folder:
            say(f"agent, {name}: {config.n_networks} base networks")
            if not options.quick:  # apart, for the memory figures
                in_fresh_process(train_bases, config, folder, options.workers)
            say(f"agent, {name}: training")
            m = in_fresh_process(measure, config, folder, options.workers)
        shown = data_of(name).name
        yield "agent", [{"dataset": shown, "episodes": m.episodes, "steps": m.steps, "workers": options.workers,
                         "wall_seconds": m.wall_seconds, "cpu_seconds": m.cpu_seconds,
                         "peak_memory_mb": m.peak_memory_mb, "peak_memory_mb_in_all": m.peak_memory_mb_in_all}]
        variant = (f"{config.n_networks - config.n_test} networks, {m.episodes} episodes, {options.workers} workers: "
                   f"{m.wall_seconds:.0f} wall seconds")
        yield "", [plain_row("agent", shown, variant, m.cpu_seconds)]
