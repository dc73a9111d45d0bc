"""One environment step: fresh layers trained by the naive loop, against the engine's ways to recover.

Whole episodes are played with random actions of the published menu. All variants cut the same layer of the same
network to the same width; the walk goes on with what "refit, up to 5 epochs" made of it. Each variant keeps its own
outputs of the untouched layers from step to step, as an episode does, so it pays for those that it needs. Accuracy is
that on validation rows, the one a step is judged by.
"""
from collections.abc import Iterator

import numpy as np

from benchmarks import naive
from benchmarks.common import SEED, Options, Part, comparisons, data_of, drawn_networks, say, timed, trained
from neon.foundations.core import generator, get_protocol
from neon.foundations.data import PreparedData
from neon.foundations.networks import DenseNetwork
from neon.foundations.surgery import keep_width
from neon.foundations.training import evaluate
from neon.published.environment import PUBLISHED_MENU, Cut, EnvConfig, make_cuts, start_state
from neon.published.features import FeatureExtractor, probe_rows

DATASETS = ("diabetes", "waveform-5000", "house_8L")
NETWORKS, MOST_CUTS = 6, {"house_8L": 24}  # Whole episodes, as many as fit; a naive step there takes 5 to 16 seconds
FOLLOWED = "refit, up to 5 epochs"


def variants() -> dict[str, EnvConfig]:
    "The engine's ways to take a step."
    strict = get_protocol("strict")
    refit = EnvConfig(recovery="refit", recovery_rows=strict.refit_rows, training=strict.step_training)
    replace = EnvConfig(recovery="replace", training=strict.step_training)
    return {"refit, no epochs": refit.replace(refit_epochs=0), FOLLOWED: refit, "replace": replace,
            "replace, same settings": replace.replace(training=naive.STEP)}


def random_plan(network: DenseNetwork, rng: np.random.Generator, passes: int = 4) -> list[tuple[int, int]]:
    "The cuts (layer, width) of an episode with random actions; actions that keep everything are steps without a cut."
    widths, plan = list(network.architecture.hidden_widths), []
    for _ in range(passes):
        for layer, width in enumerate(widths):
            offered = [a for a in PUBLISHED_MENU if a == 1 or keep_width(width, a) < width]
            widths[layer] = keep_width(width, float(rng.choice(offered)))
            if widths[layer] < width: plan.append((layer, widths[layer]))
    return plan


def choose_episodes(networks: list[DenseNetwork], most: int | None) -> list[tuple[DenseNetwork, list[tuple[int, int]]]]:
    "Networks and what is to be done to each, in order, without whole episodes that would exceed `most` cuts in all."
    chosen, cuts = [], 0
    for i, network in enumerate(networks):
        plan = random_plan(network, generator(SEED, "walk", i))
        if most is None or cuts + len(plan) <= most: chosen, cuts = [*chosen, (network, plan)], cuts + len(plan)
    return chosen


class Record:
    "CPU seconds and accuracies, step by step, of the naive loop and each variant; and of the agent's maps."

    def __init__(self):
        self.seconds = {name: [] for name in ("naive", *variants())}
        self.accuracy = {name: [] for name in self.seconds}
        self.maps = []

    def add(self, name: str, seconds: float, accuracy: float) -> None:
        self.seconds[name].append(seconds)
        self.accuracy[name].append(accuracy)

    def difference(self, variant: str) -> float:
        "Mean accuracy of a variant less that of the naive loop, in points."
        return 100*float(np.mean(self.accuracy[variant]) - np.mean(self.accuracy["naive"]))


def play(network: DenseNetwork, plan: list[tuple[int, int]], data: PreparedData,
         record: Record) -> DenseNetwork: # Compressed
    "One episode, every step done in every way."
    configs = variants()
    states = {name: start_state(network, data, config) for name, config in configs.items()}
    features = FeatureExtractor(probe_rows(data.X_train, get_protocol("strict").probe_rows, SEED))
    features.reset(network)
    for i, (layer, width) in enumerate(plan):
        cuts, results = {name: Cut(state, layer, width, (i,)) for name, state in states.items()}, {}
        fresh, seconds = timed(naive.step, cuts[FOLLOWED], data, SEED)
        record.add("naive", seconds, evaluate(fresh, data.X_validation, data.y_validation))
        for name, config in configs.items():
            (results[name],), seconds = timed(make_cuts, [cuts[name]], data, config, SEED)
            record.add(name, seconds, results[name][1])
        states = {name: state.changed(*results[FOLLOWED], layer) for name, state in states.items()}
        record.maps.append(timed(describe, features, results[FOLLOWED][0], layer)[1])
    return states[FOLLOWED].network


def describe(features: FeatureExtractor, network: DenseNetwork, layer: int) -> dict:
    "What the agent is shown after a cut of `layer`."
    features.update(network, layer, layer + 1)
    return features.observation(layer)


def rows_of(name: str, record: Record) -> list[dict]:
    "The table's rows: every variant, and the refits once more with the agent's maps counted on both sides."
    naively, maps, rows = np.array(record.seconds["naive"]), np.array(record.maps), []
    for variant in variants():
        ours, difference = np.array(record.seconds[variant]), record.difference(variant)
        rows += comparisons("step", name, variant, naively, ours, difference)
        if variant.startswith("refit"):
            variant = f"{variant}, with the agent's maps"
            rows += comparisons("step", name, variant, naively + maps, ours + maps, difference)
    return rows


def run(options: Options) -> Iterator[Part]:
    "The benchmark."
    for name in options.names(DATASETS):
        data, n = data_of(name), options.networks or (2 if options.quick else NETWORKS)
        episodes = choose_episodes(trained(drawn_networks(data, n), data), 8 if options.quick else MOST_CUTS.get(name))
        play(episodes[0][0], episodes[0][1][:1], data, Record())  # the first call of everything takes longer
        record = Record()
        for i, (network, plan) in enumerate(episodes):
            say(f"step, {data.name}: episode {i + 1} of {len(episodes)}, {network.architecture}, {len(plan)} cuts")
            play(network, plan, data, record)
        yield "", rows_of(data.name, record)
