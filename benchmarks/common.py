"""What the benchmarks share: data, networks, clocks, the rows of the table, and where they are kept."""
import multiprocessing
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import make_classification

from neon.foundations.core import NeonError, generator, get_protocol, torch_generator, write_csv
from neon.foundations.data import PreparedData, as_dataset, load_dataset, prepare
from neon.foundations.networks import DenseNetwork, build_network, random_architecture
from neon.foundations.training import train_networks

COLUMNS = ["bench", "dataset", "variant", "ratio", "ratio_low", "ratio_high", "accuracy_difference", "cpu_seconds"]
SIZES = {"diabetes": (768, 8, 2), "satimage": (6430, 36, 6), "house_8L": (22784, 8, 2),  # Rows, features, classes
         "fashion_mnist": (20_000, 784, 10)}  # not all of its 70,000 rows: the search uses 10,000
SEED = 0


@dataclass(frozen=True)
class Options:
    "What the command line asked for."
    quick: bool = False                      # The smallest data set, few repetitions
    datasets: tuple[str, ...] | None = None  # None: those of the benchmark
    networks: int | None = None              # Networks per data set; None: as many as the benchmark has for it
    episodes: int | None = None              # Of the agent; None: the published rule
    workers: int = 2                         # Processes that play for the agent

    def names(self, defaults: Sequence[str]) -> list[str]:
        "The data sets to use."
        if self.datasets: return list(self.datasets)
        return list(defaults[:1]) if self.quick else list(defaults)


# -- data and networks -------------------------------------------------------------------------------------------------


def waveform(n: int = 5000, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]: # (n, 21), (n,)
    "Breiman's waveform problem (1984, section 2.6.2): each row mixes two of three triangular waves, plus noise."
    rng, t = generator(seed, "waveform"), np.arange(1, 22)
    waves = np.stack([np.maximum(6 - abs(t - centre), 0) for centre in (7, 15, 11)])
    pairs = np.array([(0, 1), (0, 2), (1, 2)])
    y, share = rng.integers(3, size=n), rng.random((n, 1))
    first, second = waves[pairs[y, 0]], waves[pairs[y, 1]]
    return share*first + (1 - share)*second + rng.standard_normal((n, 21)), y


def synthetic(rows: int, columns: int, classes: int, name: str, protocol: str = "strict") -> PreparedData:
    "A made-up classification problem of a given size."
    X, y = make_classification(rows, columns, n_informative=min(columns, 6), n_redundant=0, n_classes=classes,
                               flip_y=0.1, class_sep=0.8, random_state=SEED)
    return as_prepared(X, y, name, protocol)


def as_prepared(X: np.ndarray, y: np.ndarray, name: str, protocol: str) -> PreparedData:
    "Arrays as a prepared data set."
    return prepare(as_dataset(pd.DataFrame(X).add_prefix("x"), pd.Series(y), name), protocol)


@lru_cache(maxsize=2)
def data_of(name: str, protocol: str = "strict") -> PreparedData:
    "A prepared data set; where it cannot be had, synthetic data of its size with a name that says so."
    if name == "waveform-5000": return as_prepared(*waveform(), name, protocol)
    try: return prepare(load_dataset(name), protocol)
    except NeonError:
        if name not in SIZES: raise
        return synthetic(*SIZES[name], f"{name}-size", protocol)


def drawn_networks(data: PreparedData, n: int, protocol: str = "strict") -> list[DenseNetwork]:
    "Untrained networks from the published distribution; the same for every data set, but for inputs and outputs."
    output = get_protocol(protocol).output
    draw = lambda i: random_architecture(data.n_features, data.n_classes, generator(SEED, "bench", i), output)
    return [build_network(draw(i), torch_generator(SEED, i)) for i in range(n)]


def trained(networks: Sequence[DenseNetwork], data: PreparedData) -> list[DenseNetwork]:
    "The networks after the strict protocol's own training."
    results = train_networks(networks, data.X_train, data.y_train, data.X_validation, data.y_validation,
                             get_protocol("strict").base_training, SEED)
    return [r.network for r in results]


# -- clocks and memory -------------------------------------------------------------------------------------------------


def timed(function: Callable, *arguments) -> tuple: # The result, CPU seconds
    "Call a function and take its time."
    begin = time.process_time()
    result = function(*arguments)
    return result, time.process_time() - begin


def memory_mb(process: int | str = "self") -> dict[str, float]: # MB; empty where the system does not say
    "A process's resident memory on Linux: VmHWM (its peak), and now: RssAnon (its own), RssFile and RssShmem (shared)."
    try: lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError: return {}
    fields = [line.split() for line in lines if line.startswith(("VmHWM", "RssAnon", "RssFile", "RssShmem"))]
    return {name.rstrip(":"): int(kilobytes)*1024/1e6 for name, kilobytes, _ in fields}


def peak_memory_mb() -> float:
    "Peak resident memory of this process."
    known = memory_mb()
    if "VmHWM" in known: return known["VmHWM"]
    # The second choice, since on Linux it would include the peak of the process's parent
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform == "darwin" else 1024)/1e6


class FamilyMemory:
    "Peak memory of this process and its children in a `with` block, looked up a few times a second (Linux; else NaN)."

    def __init__(self): self.largest, self.in_all, self._done = float("nan"), float("nan"), threading.Event()

    def _look(self) -> None:
        processes = ("self", *(child.pid for child in multiprocessing.active_children()))
        family = [known for known in map(memory_mb, processes) if "VmHWM" in known]  # not one that has just ended
        if not family: return
        own, files, shared = ([known[name] for known in family] for name in ("RssAnon", "RssFile", "RssShmem"))
        self.largest = max(*(known["VmHWM"] for known in family), -np.inf if np.isnan(self.largest) else self.largest)
        now = sum(own) + max(files) + max(shared)  # libraries and tensors that all share count once
        self.in_all = now if np.isnan(self.in_all) else max(self.in_all, now)

    def _watch(self) -> None:
        while not self._done.wait(0.3): self._look()

    def __enter__(self) -> "FamilyMemory":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()
        self._look()


def in_fresh_process(function: Callable, *arguments):
    "The result of a call in a process of its own, with one thread, in which nothing has happened before."
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return pool.submit(function, *arguments).result()


# -- rows of the table -------------------------------------------------------------------------------------------------


def comparison(bench: str, dataset: str, variant: str, seconds_a: Sequence[float], seconds_b: Sequence[float],
               difference: float, statistic: Callable = np.median) -> dict:
    "One row: how many times B is faster than A, a ratio of medians (or means) with a bootstrap interval over pairs."
    a, b = np.array(seconds_a), np.array(seconds_b)
    picks = generator(SEED, "bootstrap").integers(len(a), size=(2000, len(a)))
    low, high = np.quantile(statistic(a[picks], axis=1)/statistic(b[picks], axis=1), [0.025, 0.975])
    values = [bench, dataset, variant, statistic(a)/statistic(b), low, high, difference, statistic(b)]
    return dict(zip(COLUMNS, values, strict=True))


def comparisons(bench: str, dataset: str, variant: str, seconds_a: Sequence[float], seconds_b: Sequence[float],
                difference: float) -> list[dict]:
    "The row of the medians, and the row of the means, whose ratio is that of the total times."
    rows = [(variant, np.median), (f"{variant} (mean)", np.mean)]
    return [comparison(bench, dataset, name, seconds_a, seconds_b, difference, statistic) for name, statistic in rows]


def plain_row(bench: str, dataset: str, variant: str, cpu_seconds: float, ratio: float = np.nan, low: float = np.nan,
              high: float = np.nan) -> dict:
    "A row that compares no accuracies."
    return dict(zip(COLUMNS, [bench, dataset, variant, ratio, low, high, np.nan, cpu_seconds], strict=True))


def in_words(row: dict) -> str:
    "A row on one line."
    known = [value for value in row.values() if value == value]
    return "  ".join(f"{value:,.3g}" if isinstance(value, float) else str(value) for value in known)


def say(text: str) -> None:
    "Progress, apart from the results."
    print(f"  {text}", file=sys.stderr, flush=True)


# -- files -------------------------------------------------------------------------------------------------------------

# Every table is a file: the main one, and some beside it. Rows that are measured again replace those that agree in
# these columns.
TABLES = {"": ("bench", "dataset"), "agent": ("dataset",), "growth": ("axis",), "memory": ("bench", "dataset")}
Part = tuple[str, list[dict]]  # What a benchmark yields when a part is done: a table's name, and rows for it
Benchmark = Callable[[Options], Iterator[Part]]


def table_path(path: Path, table: str) -> Path:
    "Where a table is kept: data/results/bench.csv, data/results/bench_agent.csv, ..."
    return path.with_name(f"{path.stem}_{table}{path.suffix}") if table else path


def merged(old: pd.DataFrame, new: pd.DataFrame, keys: Sequence[str], order: Sequence[str] = ()) -> pd.DataFrame:
    "The old rows, less those that were measured again, and the new ones; benchmarks in the given order."
    again = set(new[list(keys)].itertuples(index=False, name=None))
    kept = [key not in again for key in old[list(keys)].itertuples(index=False, name=None)]
    table = pd.concat([t for t in (old[kept], new) if len(t)], ignore_index=True)
    if "bench" not in table: return table
    place = table["bench"].map({name: i for i, name in enumerate(order)}).fillna(len(order))
    return table.loc[place.sort_values(kind="stable").index].reset_index(drop=True)


def save(path: Path, table: str, rows: Sequence[dict], order: Sequence[str] = ()) -> None:
    "Put rows into a table's file, which is replaced as a whole."
    file, new = table_path(path, table), pd.DataFrame(rows)
    try: old = pd.read_csv(file)
    except (FileNotFoundError, pd.errors.EmptyDataError): old = new[:0]
    if list(old.columns) != list(new.columns):
        raise NeonError(f"{file} has other columns than {', '.join(new)}; name another")
    write_csv(file, merged(old, new, TABLES[table], order))
