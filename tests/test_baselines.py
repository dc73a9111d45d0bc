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
from neon.methods.guard import paired_drop, walk
from neon.rivals.baselines import (
    BASELINES,
    Baseline,
    Offer,
    Target,
    choose,
    constant_network,
    get_baseline,
    register,
    without_idle,
    without_smallest,
)

OURS = ("majority", "logistic", "random", "uniform", "uniform_slice", "uniform_replace", "fixed", "l1_oneshot", "l1_iterative",
        "unstructured", "least_squares", "scratch", "scratch1", "distilled")
QUICK = Target(budget=2.0, epochs=2)
FIRST = 3  # Offers that are looked at


@pytest.fixture(scope="module")
def wine():
    "The data, its test rows spoilt: whoever looks at them gets no number."
    data = prepare(load_dataset("wine"))
    return replace(data, X_test=torch.full_like(data.X_test, float("nan")), y_test=torch.full_like(data.y_test, -10**6))


@pytest.fixture(scope="module")
def network(wine):
    layers = (Layer(24), Layer(12, "tanh", ("batchnorm",)), Layer(3, "identity", ("dropout",)))
    fresh = build_network(Architecture(13, layers), torch_generator(0, "weights"))
    layers = wine.X_train, wine.y_train, wine.X_validation, wine.y_validation
    return train_networks([fresh], *layers, TrainingConfig(40, 8, 4e-3), 0)[0].network


def first(name, network, data, target=QUICK, n=FIRST):
    return list(itertools.islice(get_baseline(name).path(network, data, target), n))


def same(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return a.architecture == b.architecture and all(torch.equal(x, y) for x, y in pairs)


def test_all_are_there():
    assert set(OURS) <= set(BASELINES)
    by_chance = ["random", "uniform_replace", "scratch", "scratch1", "distilled"]
    assert [b.name for b in BASELINES.values() if b.stochastic and b.name in OURS] == by_chance


@pytest.mark.parametrize("name", OURS)
def test_offers_fit_and_repeat_themselves_without_test_rows(name, wine, network):
    before, runs = {k: v.clone() for k, v in network.state_dict().items()}, []
    for state in (1, 2):
        torch.manual_seed(state)  # of the global generator, which nobody may depend on
        runs.append(first(name, network, wine, n=2))
    once, twice = runs
    assert once
    for a, b in zip(once, twice, strict=True):
        assert a.setting == b.setting and same(a.network, b.network)
        assert a.network.architecture.n_inputs == 13 and predict(a.network, wine.X_validation).isfinite().all()
        assert predict(a.network, wine.X_validation).shape[1] == 3
    sizes = [a.size for a in once]
    assert sizes == sorted(sizes, reverse=True) or name == "fixed"
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items()), "the original was changed"


@pytest.mark.parametrize("name", ["majority", "logistic", "fixed", "l1_iterative", "unstructured", "scratch"])
def test_answers_are_never_larger_and_budgets_are_monotone(name, wine, network):
    targets = [replace(QUICK, budget=b, epochs=1) for b in (0.0, 2.0, 10.0, 100.0)]
    found = choose(first(name, network, wine, targets[0], 6), network, wine, targets)
    sizes = [o.size for o in found]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] <= network.architecture.n_params
    assert sizes[-1] < network.architecture.n_params  # a hundred points forgive anything


@pytest.mark.parametrize("name", ["majority", "logistic", "uniform", "l1_oneshot", "least_squares", "scratch1"])
def test_sizes_and_order_are_fixed_before_validation_labels_are_seen(name, wine, network):
    other = replace(wine, y_validation=wine.y_validation.flip(0))
    a, b = (first(name, network, d) for d in (wine, other))
    assert [str(o.network.architecture) for o in a] == [str(o.network.architecture) for o in b]
    if name in ("majority", "logistic"): assert same(a[0].network, b[0].network)


def test_a_path_is_lazy(wine, network):
    made = []

    def path(network, data, target):
        for k in range(10):
            made.append(k)
            yield Offer(constant_network(network, data), f"constant {k}")
    rival = Baseline("lazy", "Lazy", "-", path)
    assert rival(network, wine, QUICK) is network
    assert made == [0, 1, 2]


def test_choose_agrees_with_walk(wine, network):
    cut = fold_norms(slice_units(network, 0, list(range(20))))
    offers = [Offer(n, str(i)) for i, n in enumerate([cut, constant_network(network, wine), cut, *[constant_network(network, wine)]*5])]
    before = predict(network, wine.X_validation)
    for budget in (0.5, 2.0, 20.0, 90.0):
        target = Target(budget=budget)
        drops = [paired_drop("accuracy", wine.y_validation, before, predict(o.network, wine.X_validation)) for o in offers]
        accepted = walk(target.guard(), drops)[1]
        smallest = min((o.size for o, yes in zip(offers, accepted, strict=False) if yes), default=network.architecture.n_params)
        assert choose(offers, network, wine, [target])[0].size == smallest


def test_random_draws_with_its_seed(wine, network):
    sizes = [[o.size for o in first("random", network, wine, replace(QUICK, seed=seed), 4)] for seed in (0, 0, 1)]
    assert sizes[0] == sizes[1] != sizes[2]


def test_schedules_use_the_published_menu(wine, network):
    offers = first("uniform", network, wine)
    widths = network.architecture.hidden_widths
    for offer in offers:
        widths = tuple(keep_width(w, 0.8) for w in widths)
        assert offer.network.architecture.hidden_widths == widths


def test_networks_that_end_in_a_softmax_get_one_back(wine):
    layers = (Layer(8), Layer(3, "softmax"))
    network = build_network(Architecture(13, layers), torch_generator(0, "weights"))
    data = replace(wine, protocol="paper")
    for name in ("logistic", "l1_oneshot", "scratch1", "fixed"):
        found = choose(first(name, network, data, n=1), network, data, [Target(budget=100.0, prior=None, epochs=1)])[0]
        total = predict(found.network, wine.X_validation).sum(1)
        assert found.size < network.architecture.n_params or name == "scratch1"
        torch.testing.assert_close(total, torch.ones_like(total))


def test_zeros_stay_zero_and_idle_units_go(wine, network):
    offers = first("unstructured", network, wine, n=6)
    weights = network.architecture.macs
    for offer, share in zip(offers, (0.5, 0.8, 0.9, 0.95, 0.98, 0.99), strict=True):
        kept = sum(int((layer.linear.weight != 0).sum()) for layer in offer.network.layers)
        assert kept <= round((1 - share)*weights) and offer.size < offer.network.architecture.n_params + 1
    bare = without_idle(without_smallest(network, 1))
    assert bare.architecture.hidden_widths == (1, 1)
    torch.testing.assert_close(predict(bare, wine.X_train), predict(without_smallest(network, 1), wine.X_train), atol=1e-4, rtol=1e-4)


def test_mistakes_are_named(wine, network):
    with pytest.raises(NeonError, match="the nearest is 'least_squares'"): get_baseline("least_square")
    with pytest.raises(NeonError, match="there is a baseline 'logistic' already"): register(replace(BASELINES["logistic"], label="Other"))
    with pytest.raises(NeonError, match="takes 5 inputs"): get_baseline("majority")(build_network(Architecture(5, (Layer(4), Layer(3)))), wine)
