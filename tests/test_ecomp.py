"""EComp against numbers recorded from the original, and what must hold for any population."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from neon.ecomp.published import (
    Individual,
    Parent,
    fitness,
    l1_population,
    recombine_blocks,
    score_population,
    selection_probabilities,
)
from neon.ecomp.similarity import SimilarityLoss
from neon.foundations.networks import Architecture, Layer, build_network

LAYERS = ("layer_1_linear", "layer_2_linear", "output")
KINDS = {"w021": (0, 2, 1), "w121": (1, 2, 1), "w100": (1, 0, 0)}


@pytest.fixture(scope="module")
def recorded(root):
    folder = root/"tests"/"fixtures"/"ecomp"
    return {name: dict(np.load(folder/f"{name}.npz", allow_pickle=False))
            for name in ("ecomp_fitness", "recombination")}


def individual(arrays: dict, prefix: str) -> Individual:
    weights, biases = ([torch.from_numpy(arrays[f"{prefix}.{layer}.{part}"]) for layer in LAYERS]
                       for part in ("weight", "bias"))
    return Individual(tuple(weights), tuple(biases), tuple(torch.arange(len(b)) for b in biases[:-1]))


@pytest.fixture(scope="module")
def small_population(recorded):
    arrays = recorded["ecomp_fitness"]
    base = individual(arrays, "base")
    network = build_network(Architecture(20, (Layer(16), Layer(16), Layer(4, "identity"))))
    with torch.no_grad():
        for layer, W, b in zip(network.layers, base.weights, base.biases, strict=True):
            layer.linear.weight.copy_(W)
            layer.linear.bias.copy_(b)
    parent = Parent(network)
    return arrays, parent, l1_population(parent, len(arrays["rates"]), 0.15, 0.8)


def test_initial_population_is_the_published_one(small_population):
    arrays, _, population = small_population
    for i, net in enumerate(population):
        recorded_net = individual(arrays, f"net{i}")
        for r in range(2): assert net.units[r].tolist() == sorted(arrays[f"net{i}.kept{r + 1}"].tolist())
        for ours, theirs in zip((*net.weights, *net.biases), (*recorded_net.weights, *recorded_net.biases),
                                strict=True):
            assert_close(ours, theirs, rtol=0, atol=0)


def test_embeddings_fitness_and_selection_are_the_published_ones(small_population):
    arrays, parent, population = small_population
    x, y = torch.from_numpy(arrays["X"]), torch.from_numpy(arrays["y"])
    outputs = parent.run(parent.individual, x)
    for r in range(2):
        assert_close(outputs[r], torch.from_numpy(arrays[f"base.embedding{r + 1}"]), rtol=1e-5, atol=1e-5)
    scores = score_population(population, parent, x, y, SimilarityLoss(outputs[:2]))
    np.testing.assert_allclose(scores.accuracy, arrays["accuracy"], atol=1e-9)
    np.testing.assert_allclose(scores.similarity, arrays["loss"], rtol=1e-3)
    np.testing.assert_allclose(scores.size, arrays["compression"], atol=1e-9)
    for name, weights in KINDS.items():
        values = fitness(scores, weights)
        np.testing.assert_allclose(values, arrays[f"{name}.fitness"], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(selection_probabilities(values), arrays[f"{name}.selection_probability"], rtol=1e-3)


@pytest.mark.parametrize("pair", range(3))
def test_children_are_the_published_ones(recorded, pair):
    arrays = recorded["recombination"]
    first, second, cutoffs = (individual(arrays, f"pair{pair}.parent1"), individual(arrays, f"pair{pair}.parent2"),
                              arrays[f"pair{pair}.cutoffs"].tolist())
    for ours, name in ((recombine_blocks(first, second, cutoffs), "child1"),
                       (recombine_blocks(second, first, cutoffs), "child2")):
        theirs = individual(arrays, f"pair{pair}.{name}")
        for a, b in zip((*ours.weights, *ours.biases), (*theirs.weights, *theirs.biases), strict=True):
            assert_close(a, b, rtol=0, atol=0)
