"Baselines: each keeps the rules that all rivals share, on a small network for the wine data."
import itertools
from dataclasses import replace

import pytest
import torch

from neon.foundations.core import NeonError, TrainingConfig, torch_generator
from neon.foundations.data import load_dataset, prepare
from neon.foundations.networks import Architecture, Layer, build_network
from neon.foundations.surgery import fold_norms, keep_width, slice_units
from neon.foundations.training import predict, train_networks
from neon.methods.contract import (
    METHODS,
    Candidate,
    Method,
    MethodConfig,
    Part,
    compress_with,
    get_method,
    judge,
    register,
    undivided,
)
from neon.methods.guard import Guard, fixed_sequence, paired_drop
from neon.rivals.baselines import constant_network, without_idle, without_smallest

OURS = ("majority", "logistic", "random", "uniform", "uniform_slice", "uniform_replace", "fixed", "l1_oneshot",
        "l1_iterative", "unstructured", "least_squares", "scratch", "scratch1", "distilled")
QUICK = MethodConfig(budgets=(2.0,), epochs=2)
FIRST = 3  # Candidates that are looked at


@pytest.fixture(scope="module")
def wine():
    "Rows of the wine data; test rows are not among them."
    return undivided(prepare(load_dataset("wine")))


@pytest.fixture(scope="module")
def network(wine):
    layers = (Layer(24), Layer(12, "tanh", ("batchnorm",)), Layer(3, "identity", ("dropout",)))
    fresh = build_network(Architecture(13, layers), torch_generator(0, "weights"))
    return train_networks([fresh], *wine.fit, *wine.compare, TrainingConfig(40, 8, 4e-3), 0)[0].network


def first(name, network, rows, config=QUICK, n=FIRST):
    return list(itertools.islice(get_method(name).propose(network, rows, Guard(config.budgets[0]), config), n))


def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return a.architecture == b.architecture and all(torch.equal(x, y) for x, y in pairs)


def test_all_are_there():
    assert set(OURS) <= set(METHODS)
    by_chance = ["random", "uniform_replace", "scratch", "scratch1", "distilled"]
    assert [m.name for m in METHODS.values() if m.stochastic and m.name in OURS] == by_chance


@pytest.mark.parametrize("name", OURS)
def test_candidates_fit_and_repeat_themselves(name, wine, network):
    before, runs = {k: v.clone() for k, v in network.state_dict().items()}, []
    for state in (1, 2):
        torch.manual_seed(state)  # of the global generator, which nobody may depend on
        runs.append(first(name, network, wine, n=2))
    once, twice = runs
    assert once
    for a, b in zip(once, twice, strict=True):
        assert a.how == b.how and same(a.network, b.network)
        assert a.network.architecture.n_inputs == 13 and predict(a.network, wine.compare.x).isfinite().all()
        assert predict(a.network, wine.compare.x).shape[1] == 3
    sizes = [a.size for a in once]
    assert sizes == sorted(sizes, reverse=True) or name == "fixed"
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items()), "the original was changed"


@pytest.mark.parametrize("name", ["majority", "logistic", "fixed", "l1_iterative", "unstructured", "scratch"])
def test_answers_are_never_larger_and_budgets_are_monotone(name, wine, network):
    guards = [Guard(b) for b in (0.0, 2.0, 10.0, 100.0)]
    found = judge(first(name, network, wine, QUICK.replace(epochs=1), 6), network, wine, guards)
    sizes = [v.chosen.candidate.size for v in found]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] <= network.architecture.n_params
    assert sizes[-1] < network.architecture.n_params  # a hundred points forgive anything


@pytest.mark.parametrize("name", ["majority", "logistic", "uniform", "l1_oneshot", "least_squares", "scratch1"])
def test_sizes_and_order_are_fixed_before_validation_labels_are_seen(name, wine, network):
    other = replace(wine, compare=Part(wine.compare.x, wine.compare.y.flip(0)))
    a, b = (first(name, network, d) for d in (wine, other))
    assert [str(o.network.architecture) for o in a] == [str(o.network.architecture) for o in b]
    if name in ("majority", "logistic"): assert same(a[0].network, b[0].network)


def test_candidates_are_made_when_they_are_asked_for(wine, network):
    made = []

    def lazy(network, rows, guard, config):
        for k in range(10):
            made.append(k)
            yield Candidate(constant_network(network, rows), f"constant {k}")
    assert compress_with(lazy, network, wine, config=QUICK)[0].chosen.candidate.network is network
    assert made == [0, 1, 2]


def test_the_judge_agrees_with_a_fixed_sequence(wine, network):
    cut = [fold_norms(slice_units(network, 0, list(range(n)))) for n in (20, 18)]
    networks = [cut[0], constant_network(network, wine), cut[1], *[constant_network(network, wine)]*5]
    found = [Candidate(n, str(i)) for i, n in enumerate(networks)]
    before = predict(network, wine.guard.x)
    for budget in (0.5, 2.0, 20.0, 90.0):
        outputs = (predict(c.network, wine.guard.x) for c in found)
        guard, drops = Guard(budget), [paired_drop("accuracy", wine.guard.y, before, output) for output in outputs]
        accepted = fixed_sequence(guard, drops)[1]
        sizes = (c.size for c, yes in zip(found, accepted, strict=False) if yes)
        smallest = min(sizes, default=network.architecture.n_params)
        assert judge(found, network, wine, [guard])[0].chosen.candidate.size == smallest


def test_random_draws_with_its_seed(wine, network):
    sizes = [[o.size for o in first("random", network, wine, QUICK.replace(seed=seed), 4)] for seed in (0, 0, 1)]
    assert sizes[0] == sizes[1] != sizes[2]


def test_schedules_use_the_published_menu(wine, network):
    widths = network.architecture.hidden_widths
    for candidate in first("uniform", network, wine):
        widths = tuple(keep_width(w, 0.8) for w in widths)
        assert candidate.network.architecture.hidden_widths == widths


@pytest.mark.parametrize("name", ["logistic", "l1_oneshot", "scratch1", "fixed"])
def test_networks_that_end_in_a_softmax_get_one_back(name, wine):
    network = build_network(Architecture(13, (Layer(8), Layer(3, "softmax"))), torch_generator(0, "weights"))
    config = QUICK.replace(protocol="paper", epochs=1)
    one = itertools.islice(get_method(name).candidates(network, wine, Guard(100.0), config), 1)
    found, = judge(one, network, wine, [Guard(100.0, prior=None)])
    total = predict(found.chosen.candidate.network, wine.compare.x).sum(1)
    assert found.chosen.candidate.size < network.architecture.n_params or name == "scratch1"
    torch.testing.assert_close(total, torch.ones_like(total))


def test_zeros_stay_zero_and_idle_units_go(wine, network):
    found = first("unstructured", network, wine, n=6)
    weights = network.architecture.macs
    for candidate, share in zip(found, (0.5, 0.8, 0.9, 0.95, 0.98, 0.99), strict=True):
        kept = sum(int((layer.linear.weight != 0).sum()) for layer in candidate.network.layers)
        assert kept <= round((1 - share)*weights) and candidate.size < candidate.network.architecture.n_params + 1
    bare = without_idle(without_smallest(network, 1))
    assert bare.architecture.hidden_widths == (1, 1)
    with_zeros = predict(without_smallest(network, 1), wine.fit.x)
    torch.testing.assert_close(predict(bare, wine.fit.x), with_zeros, atol=1e-4, rtol=1e-4)


def test_mistakes_are_named(wine, network):
    with pytest.raises(NeonError, match="did you mean 'least_squares'"): get_method("least_square")
    with pytest.raises(NeonError, match="there is a method 'logistic' already"):
        register(Method("logistic", "Other", METHODS["logistic"].propose))
    with pytest.raises(NeonError, match="takes 5 inputs"):
        compress_with("majority", build_network(Architecture(5, (Layer(4), Layer(3)))), wine)
    values = replace(wine, fit=Part(wine.fit.x, wine.fit.x[:, :1]))
    with pytest.raises(NeonError, match="'majority' works for classes only"): compress_with("majority", network, values)
