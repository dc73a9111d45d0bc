"""The similarity loss of a population, batched, against scikit-learn's routine for one network and layer at a time."""
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.manifold._t_sne import _joint_probabilities
from sklearn.metrics import pairwise_distances

from benchmarks.common import SEED, Options, Part, comparison, data_of, say, timed, trained
from neon.ecomp.similarity import SimilarityLoss
from neon.foundations.core import generator, torch_generator
from neon.foundations.networks import Architecture, DenseNetwork, Layer, build_network

WIDTHS, HIDDEN, PERPLEXITY = (230, 53), 256, 30.0  # Units of the widest and the narrowest child; of the parent
SIZES = {100: (100, 15), 1000: (10, 5)}            # Rows of a batch -> networks, repetitions
EPSILON = np.finfo(np.float64).eps


def parent() -> tuple[DenseNetwork, torch.Tensor]:
    "A trained network with two equally wide hidden layers, and the rows it was trained on."
    data = data_of("digits")
    architecture = Architecture(data.n_features, (Layer(HIDDEN), Layer(HIDDEN), Layer(data.n_classes, "identity")))
    return trained([build_network(architecture, torch_generator(SEED))], data)[0], data.X_train


def embeddings(network: DenseNetwork, X: torch.Tensor, widths: list[int]) -> list[list[torch.Tensor]]: # [layer][child]
    "Hidden layers of children: the parent's units of the largest L1 norms, every weight times a factor in 0.9 to 1.1."
    rng, layers = torch_generator(SEED, "similarity"), [[], []]
    linear = [layer.linear for layer in network.layers[:2]]
    orders = [m.weight.detach().abs().sum(1).argsort(descending=True) for m in linear]
    for width in widths:
        hidden, before = X, slice(None)
        for m, order, layer in zip(linear, orders, layers, strict=True):
            kept = order[:width].sort().values
            W = m.weight.detach()[kept][:, before]
            if width < HIDDEN: W = W*(0.9 + 0.2*torch.rand(W.shape, generator=rng))
            hidden, before = (hidden @ W.T + m.bias.detach()[kept]).relu(), kept
            layer.append(hidden)
    return layers


def joint(X: np.ndarray) -> np.ndarray:
    "scikit-learn's joint probabilities of one embedding, one entry per pair."
    return _joint_probabilities(pairwise_distances(X, metric="euclidean", squared=True), PERPLEXITY, 0)


def one_by_one(references: list[np.ndarray], layers: list[list[np.ndarray]]) -> np.ndarray: # (networks,)
    "Losses of the networks, whose layers are compared one at a time."
    divergence = lambda P, Q: 2*np.sum(P*np.log(np.maximum(P, EPSILON)/Q))
    return np.array([sum(divergence(P, joint(Y)) for P, Y in zip(references, child, strict=True))
                     for child in zip(*layers, strict=True)])


def measure(network: DenseNetwork, X: torch.Tensor, samples: int, networks: int, repetitions: int) -> dict:
    "Both ways in turn, on the same embeddings; the difference is the largest relative one of a loss."
    rows = X[torch.from_numpy(generator(SEED, "rows", samples).permutation(len(X))[:samples])]
    widths = np.linspace(*WIDTHS, networks).astype(int).tolist()
    own, layers = embeddings(network, rows, [HIDDEN]), embeddings(network, rows, widths)
    arrays, references = [[Y.numpy() for Y in layer] for layer in layers], [joint(layer[0].numpy()) for layer in own]
    loss, seconds = SimilarityLoss([layer[0] for layer in own], PERPLEXITY), ([], [])
    loss.population(layers)  # the first call makes its buffers
    for repetition in range(repetitions):
        say(f"similarity, {samples} rows: repetition {repetition + 1} of {repetitions}")
        both = timed(one_by_one, references, arrays), timed(loss.population, layers)
        for kept, (result, taken) in zip(seconds, both, strict=True):
            kept.append(taken)
            if kept is seconds[0]: expected = result
            else: difference = float(np.abs(result.numpy()/expected - 1).max())
    return comparison("similarity", f"{samples} rows", f"{networks} networks, two layers", *seconds, difference)


def run(options: Options) -> Iterator[Part]:
    "The benchmark."
    network, X = parent()
    for samples, (networks, repetitions) in ({40: (4, 2)} if options.quick else SIZES).items():
        yield "", [measure(network, X, samples, networks, repetitions)]
