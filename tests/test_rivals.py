"Published pruners: what every one of them promises, on a small network for wine."
import itertools
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from neon.foundations.core import NeonError, generator
from neon.foundations.data import load_dataset, prepare
from neon.foundations.networks import Architecture, Layer, build_network
from neon.foundations.training import AnnealConfig, anneal, predict
from neon.methods.contract import METHODS, MethodConfig, Part, judge, undivided
from neon.methods.guard import Guard
from neon.methods.training import trainable
from neon.rivals.pruners import AmcConfig, LayerEnv, Refits, amc, even_widths, learn_widths, optional

NAMES = ("tp_magnitude", "tp_taylor", "lap1", "lap4", "admm1", "admm4", "amc1", "amc4")
PUBLISHED = [name for name in NAMES if not name.startswith("amc")]
CONFIG = MethodConfig(budgets=(100.0,), epochs=3, epoch_rows=48)
ANY = Guard(100.0)  # any network is within it: what is tested hangs on no validation row
SHORT = AmcConfig(6, 2, updates=1, units=16)

pytest.importorskip("torch_pruning")
pytest.importorskip("stable_baselines3")


def method_of(name: str):
    "The function of a rival; AMC with few episodes."
    return partial(amc, passes=int(name[-1]), settings=SHORT) if name.startswith("amc") else METHODS[name].propose


@pytest.fixture(scope="module")
def data():
    return prepare(load_dataset("wine"), "strict", seed=0)


@pytest.fixture(scope="module")
def rows(data):
    return undivided(data)


@pytest.fixture(scope="module")
def network(data):
    layers = (Layer(10, before=("batchnorm",)), Layer(8, "sigmoid", before=("dropout",)),
              Layer(6, after=("batchnorm",)), Layer(3, "identity"))
    drawn = build_network(Architecture(data.n_features, layers))
    trained, = anneal([drawn], data.X_train, data.y_train, AnnealConfig(150, 64, 5e-3))
    return trained


def numbers(network): return torch.cat([t.flatten().double() for t in network.state_dict().values()])


def first(name, network, rows, config=CONFIG, n=1):
    return [c.network for c in itertools.islice(method_of(name)(network, rows, ANY, config), n)]


@pytest.mark.parametrize("name", NAMES)
def test_smaller_and_fitting(name, network, rows):
    before = numbers(network).clone()
    seen, quick = [], replace(METHODS[name], propose=method_of(name))
    def spy():
        for candidate in quick.candidates(network, rows, ANY, CONFIG):
            seen.append(candidate.size)
            yield candidate
    best = judge(spy(), network, rows, [ANY])[0].chosen.candidate
    assert seen == sorted(seen, reverse=True) and seen[0] < network.architecture.n_params
    assert best.size < network.architecture.n_params and best.network.architecture.depth == 3
    assert predict(best.network, rows.compare.x).isfinite().all() and best.network.architecture.n_outputs == 3
    assert torch.equal(before, numbers(network)), "the original is left alone"
    again, twice = (first(name, network, rows)[0] for _ in range(2))
    assert torch.equal(numbers(again), numbers(twice)), "the same seed, the same network"


@pytest.mark.parametrize("name", PUBLISHED)
def test_only_training_rows_are_learnt(name, network, rows):
    class LastWeights(MethodConfig):
        def training(self, *args, **changes): return super().training(*args, **{**changes, "patience": None})

    noise = generator(0, "noise")
    other = replace(rows, compare=Part(torch.from_numpy(noise.normal(size=rows.compare.x.shape)).float(),
                                       torch.from_numpy(noise.integers(3, size=len(rows.compare.y)))))
    config = LastWeights(epochs=1)  # nothing is chosen on the rows of comparison
    here, there = (first(name, network, r, config)[0] for r in (rows, other))
    assert torch.equal(numbers(here), numbers(there))
    unlike = replace(rows, fit=Part(rows.fit.x, rows.fit.y.flip(0)))
    assert not torch.equal(numbers(here), numbers(first(name, network, unlike, config)[0]))


def test_registered_with_their_passes():
    assert set(NAMES) <= set(METHODS)
    passes = {name: METHODS[name].propose.keywords.get("passes") for name in NAMES if name[-1].isdigit()}
    assert passes == {"lap1": 1, "lap4": 4, "admm1": 1, "admm4": 4, "amc1": 1, "amc4": 4}
    assert [name for name in NAMES if METHODS[name].stochastic] == ["amc1", "amc4"]


def test_episodes_keep_to_their_size_and_agents_to_their_generators(network, data):
    plain = trainable(network)
    most = plain.architecture.n_params//3
    env = LayerEnv(Refits(plain, data.X_train), most, data.X_validation, data.y_validation)
    check_env(env, skip_render_check=True)
    rng = generator(1, "walks")
    for _ in range(30):
        env.reset()
        for _ in env.even: _, reward, done, _, _ = env.step(rng.uniform(-1, 1, 1))
        assert done and -1 <= reward <= 0 and env.refits.cut(env.chosen).architecture.n_params <= most
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    widths = [learn_widths(LayerEnv(env.refits, most, env.x, env.y), SHORT, seed) for seed in (0, 0)]
    after = torch.random.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    assert widths[0] == widths[1]
    assert torch.equal(state[0], after[0]) and np.array_equal(state[1], after[1]) and state[2] == after[2]


def test_even_widths_use_what_there_is():
    wide = Architecture(10, (Layer(100), Layer(50), Layer(2, "identity")))
    narrow = even_widths(wide, 2000)
    size = lambda widths: Architecture(10, (*(Layer(w) for w in widths), Layer(2, "identity"))).n_params
    assert size(narrow) <= 2000 < size([w + 2 for w in narrow])
    assert even_widths(wide, 10**6) == [100, 50] and even_widths(wide, 5) == [1, 1]


def test_a_missing_library_is_named():
    with pytest.raises(NeonError, match=r"needs torch-pruning: pip install 'neon-compression\[baselines\]'"):
        optional("no_such_module", "torch-pruning")
