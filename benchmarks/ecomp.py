"""One generation of the published EComp: every network by itself, against a population judged and bred at once.

Both sides judge the same population on the same batch and breed it from the same fitness with the same random
numbers; that their scores agree and their children are equal is checked every time. The search goes on with the
children, so that the populations are those of its first generations. The parent is the published one: two hidden
layers of 256, four epochs in batches of 100.
"""
import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.manifold._t_sne import _joint_probabilities
from sklearn.metrics import pairwise_distances
from torch import Tensor, nn

from benchmarks.common import SEED, Options, Part, comparison, data_of, plain_row, say, timed
from neon.ecomp.evolution import EvolutionConfig, EvolutionData, breed, evaluate_generation, first_population
from neon.ecomp.published import Individual, Parent, Scores, fitness
from neon.foundations.core import TrainingConfig, flush_denormals, generator, require, torch_generator
from neon.foundations.data import PreparedData
from neon.foundations.networks import Architecture, DenseNetwork, Layer, build_network
from neon.foundations.training import train_networks

DATASETS, HIDDEN = ("fashion_mnist",), (256, 256)
TRAINING = TrainingConfig(epochs=4, batch_size=100, patience=None)
# Population, batch, generations; 100 networks on 1,000 rows would take the loop a minute
SETTINGS = ((100, 100, 15), (20, 1000, 5))
QUICK = ((10, 100, 3),)
WEIGHTS = (1.0, 2.0, 1.0)  # Of accuracy, similarity and compression: the published weighting that did best
EPSILON = np.finfo(float).eps

# -- the loop of a researcher: one nn.Sequential after the other -------------------------------------------------------


def joint(embedding: np.ndarray) -> np.ndarray: # (n*(n - 1)/2,)
    "t-SNE's joint probabilities of one layer of one network."
    return _joint_probabilities(pairwise_distances(embedding, squared=True), 30.0, 0)


@torch.no_grad()
def embeddings(network: nn.Sequential, x: Tensor) -> list[np.ndarray]:
    "What the activations of the hidden layers say."
    kept = []
    for module in network:
        x = module(x)
        if isinstance(module, nn.ReLU): kept.append(x.numpy())
    return kept


@torch.no_grad()
def accuracy(network: nn.Sequential, x: Tensor, y: Tensor) -> float:
    "Share of the rows classified correctly."
    return (network(x).argmax(1) == y).float().mean().item()


def judge(networks: Sequence[nn.Sequential], parent: nn.Sequential, x: Tensor, y: Tensor) -> Scores:
    "Similarity, accuracy and size of one network after the other; the parent's probabilities are computed once."
    wanted, scores = [joint(e) for e in embeddings(parent, x)], []
    for network in networks:
        found = [joint(e) for e in embeddings(network, x)]
        divergence = sum(2*np.sum(P*np.log(np.maximum(P, EPSILON)/Q)) for P, Q in zip(wanted, found, strict=True))
        scores.append((accuracy(network, x, y), 0.0, divergence, network[0].out_features/parent[0].out_features))
    return Scores(*(np.array(column) for column in zip(*scores, strict=True)))


@torch.no_grad()
def child_of(first: nn.Sequential, second: nn.Sequential, cutoffs: Sequence[int]) -> nn.Sequential:
    "A copy of the second network with the leading blocks of the first."
    child = copy.deepcopy(second)
    for k, ours, theirs in zip(cutoffs, linears(child), linears(first), strict=True):
        ours.weight[:k, :k] = theirs.weight[:k, :k]
        ours.bias[:k] = theirs.bias[:k]
    return child


@torch.no_grad()
def children_of(networks: Sequence[nn.Sequential], fitness: np.ndarray,
                rng: np.random.Generator) -> list[nn.Sequential]:
    "Softmax selection, recombination in pairs, and disturbed weights in one child of a hundred."
    odds = np.exp(fitness)
    pool, children = rng.choice(len(networks), len(networks), p=odds/odds.sum()), []
    pool = [networks[i] for i in pool[rng.permutation(len(pool))]]
    for first, second in zip(pool[::2], pool[1::2], strict=True):
        cutoffs = [int(rng.integers(1, min(*a.weight.shape, *b.weight.shape) + 1))
                   for a, b in zip(linears(first), linears(second), strict=True)]
        children += [child_of(first, second, cutoffs), child_of(second, first, cutoffs)]
    for child in children:
        if rng.random() >= 0.01: continue
        for linear in linears(child):
            linear.weight *= torch.from_numpy(rng.uniform(0.9, 1.1, tuple(linear.weight.shape))).float()
    return children


def linears(network: nn.Sequential) -> list[nn.Linear]: return [m for m in network if isinstance(m, nn.Linear)]


def sequential(parent: Parent, individual: Individual) -> nn.Sequential:
    "An individual as the researcher's network, with weights of its own."
    layers = parent.to_network(individual).layers
    return nn.Sequential(*(module for layer in layers for module in (layer.linear, layer.activation)))[:-1]

# -- both, in turn -----------------------------------------------------------------------------------------------------


def published_parent(data: PreparedData, hidden: Sequence[int]) -> DenseNetwork:
    "A trained network of the published kind."
    layers = (*(Layer(width) for width in hidden), Layer(data.n_classes, "identity"))
    network = build_network(Architecture(data.n_features, layers), torch_generator(SEED, "ecomp"))
    rows = data.X_train, data.y_train, data.X_validation, data.y_validation
    return train_networks([network], *rows, TRAINING, SEED)[0].network


def generation(population: list[Individual], search: EvolutionData, number: int) -> tuple[Scores, list[Individual]]:
    "Our generation, as `evolve` has it."
    with flush_denormals():
        scores = evaluate_generation(population, search, number)
        return scores, breed(population, scores, search, generator(SEED, "breeding", number))


def parts(population: list[Individual], search: EvolutionData, number: int,
          scores: Scores) -> dict[str, float]: # CPU seconds
    "Where our time goes: the same once more, piece by piece."
    with flush_denormals():
        (x, _, similarity), of_parent = timed(search.batch, number)
        outputs, forward = timed(lambda: [search.parent.run(individual, x) for individual in population])
        layers = [[o[layer] for o in outputs] for layer in search.compared]
        return {"batch and parent": of_parent, "forward passes": forward,
                "similarity": timed(similarity.population, layers)[1],
                "breeding": timed(breed, population, scores, search, generator(SEED, "breeding", number))[1]}


def check(ours: Scores, theirs: Scores, children: Sequence[Individual], others: Sequence[nn.Sequential]) -> None:
    "Equal scores, equal children."
    difference = float(np.abs(fitness(ours, WEIGHTS) - fitness(theirs, WEIGHTS)).max())
    require(difference < 1e-5, f"the fitness of a network differs by {difference:.2g}")
    for child, other in zip(children, others, strict=True):
        for W, b, linear in zip(child.weights, child.biases, linears(other), strict=True):
            require(torch.equal(W, linear.weight) and torch.equal(b, linear.bias), "a child differs")


def compare(network: DenseNetwork, data: PreparedData, size: int, batch: int, generations: int) -> list[dict]:
    "Generations of one search, each done in both ways: the ratio, and where our time goes."
    config = EvolutionConfig(population=size, batch_size=batch, weights=WEIGHTS)
    search = EvolutionData(network, data.X_train, data.y_train, data.X_validation, data.y_validation, config, SEED)
    population, parent = first_population(search.parent, size), sequential(search.parent, search.parent.individual)
    generation(population, search, 0)  # the first call of everything takes longer
    naively, ours, pieces, differences = [], [], [], []
    for number in range(1, generations + 1):
        say(f"ecomp, {data.name}: population {size}, batch {batch}, generation {number} of {generations}")
        networks, (x, y, _) = [sequential(search.parent, i) for i in population], search.batch(number)
        (scores, children), seconds = timed(generation, population, search, number)
        theirs, judging = timed(judge, networks, parent, x, y)
        others, breeding = timed(children_of, networks, fitness(scores, WEIGHTS), generator(SEED, "breeding", number))
        check(scores, theirs, children, others)
        ours.append(seconds)
        naively.append(judging + breeding)
        pieces.append(parts(population, search, number, scores))
        differences.append(100*float(np.mean(scores.accuracy - theirs.accuracy)))
        population = children
    variant = f"population {size}, batch {batch}"
    rows = [comparison("ecomp", data.name, f"{variant}, one generation", naively, ours, float(np.mean(differences)))]
    median = {name: float(np.median([p[name] for p in pieces])) for name in pieces[0]}
    return rows + [plain_row("ecomp", data.name, f"{variant}: {name}", value) for name, value in median.items()]


def run(options: Options) -> Iterator[Part]:
    "The benchmark."
    for name in options.names(("digits",) if options.quick else DATASETS):
        data = data_of(name, "paper")  # pixels from 0 to 1
        network, settings = published_parent(data, HIDDEN), QUICK if options.quick else SETTINGS
        yield "", [row for setting in settings for row in compare(network, data, *setting)]
