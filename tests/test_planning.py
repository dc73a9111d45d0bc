"Surgery for planning, and episodes: nested fits against single ones, effects against cuts, undone passes, invariants."
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from neon.compression.planner import play, random_chooser, schedule_chooser
from neon.compression.planning import (
    PLAN_REWARDS,
    RATIOS,
    Bundle,
    Original,
    PlanConfig,
    PlanData,
    PlanEpisode,
    PlanningEnv,
    advance,
    as_logits,
    fit_targets,
    measure,
    observe,
    rightness,
)
from neon.foundations.core import NeonError, TrainingConfig, generator, torch_generator
from neon.foundations.data import load_dataset, prepare
from neon.foundations.networks import Architecture, Layer, build_network
from neon.foundations.surgery import (
    cut_widths,
    fold_norms,
    forward_order,
    nested_fits,
    refit_widths,
    select_inputs,
    without_layer,
)
from neon.foundations.training import evaluate, predict, train_networks
from neon.methods.contract import undivided


def network_of(*layers, n_inputs=13, name="net"):
    return build_network(Architecture(n_inputs, layers), torch_generator(0, name))


@pytest.fixture(scope="module")
def task():
    d = prepare(load_dataset("wine"), "strict", seed=0)
    config = PlanConfig(trim=12, steps=30, passes=3)
    return PlanData(undivided(d), config, (d.X_test, d.y_test))


@pytest.fixture(scope="module")
def originals(task):
    networks = [network_of(Layer(30, before=("batchnorm",)), Layer(20, "tanh"), Layer(3, "identity"), name="a"),
                network_of(Layer(40, "sigmoid"), Layer(3, "softmax"), name="b"),
                network_of(Layer(3, "identity"), name="c")]
    trained = train_networks(networks, task.x, task.y, task.x_look, task.y_look, TrainingConfig(8, 32, 5e-3), 0)
    return [Original(r.network, task) for r in trained]


# Surgery

def test_forward_order_is_nested_and_leaves_out_copies():
    H = torch.randn(200, 9, generator=torch_generator(0, "H"))
    H = torch.cat([H, H[:, :4]], 1)
    W = torch.randn(5, 13, generator=torch_generator(0, "W"))
    order = forward_order(H, W, 13).tolist()
    assert len(order) == len(set(order)) == 9
    assert forward_order(H, W, 4).tolist() == order[:4]
    assert len({i % 9 for i in order}) == 9


def test_forward_order_takes_the_best_unit_first():
    H, W = torch.randn(300, 6, generator=torch_generator(1, "H")), torch.randn(3, 6, generator=torch_generator(1, "W"))
    C, T = H - H.mean(0), (H - H.mean(0)) @ W.T
    errors = [float((T - C[:, [i]] @ torch.linalg.lstsq(C[:, [i]], T).solution).square().sum()) for i in range(6)]
    assert forward_order(H, W, 1).tolist() == [int(np.argmin(errors))]


def test_nested_fits_are_ridge_regressions():
    H = torch.randn(100, 8, generator=torch_generator(2, "H")).double()
    T = torch.randn(100, 3, generator=torch_generator(2, "T")).double()
    order = torch.tensor([5, 0, 7, 2])
    for w, (V, b) in zip((1, 3, 4), nested_fits(H, T, order, (1, 3, 4), ridge=0.0), strict=True):
        A = torch.cat([H[:, order[:w]], torch.ones(100, 1)], 1)
        solution = torch.linalg.lstsq(A, T).solution
        torch.testing.assert_close(torch.cat([V.T, b[None]]), solution, rtol=1e-5, atol=1e-6)


def test_surgery_shrinks_and_refuses():
    network = fold_norms(network_of(Layer(20, before=("batchnorm",)), Layer(10), Layer(3, "identity")))
    x = torch.randn(80, 13)
    outputs = network.layers[1](network.layers[0](x)).detach()
    for w, cut in zip((2, 7), refit_widths(network, 1, (2, 7), outputs), strict=True):
        assert cut.architecture.hidden_widths == (20, w) and cut(x).shape == (80, 3)
    for _ in range(2):
        T = network.layers[1].linear(network.layers[0](x)).detach()
        network = without_layer(network, 0, *nested_fits(x, T, torch.arange(13), [13])[0])
    linear = network
    assert linear.architecture.depth == 0
    few = select_inputs(linear, [2, 12], x)
    assert few.architecture.inputs == (2, 12) and few.architecture.n_params == 2*3 + 3
    assert torch.equal(few(x), few(torch.where(torch.isin(torch.arange(13), torch.tensor([2, 12])), x, 99.0)))
    with pytest.raises(NeonError, match="not a hidden layer"): without_layer(linear, 0, x, x)


# The short training

def test_a_bundle_trains_each_network_as_if_alone(task):
    layers = [(Layer(7),), (Layer(4, "sigmoid"),), (Layer(9, "tanh"),)]
    networks = [network_of(*r, Layer(3, "identity"), name=str(i)) for i, r in enumerate(layers)]
    targets = [F.one_hot(task.y, 3).float()]*3
    together = Bundle(networks)
    inputs, sums = together.forward(task.x.expand(3, *task.x.shape))
    together.backward(inputs, sums, (inputs[-1].softmax(-1) - targets[0])/len(task.x))
    for b, network in enumerate(networks):
        alone = Bundle([network])
        i, z = alone.forward(task.x[None])
        alone.backward(i, z, (i[-1].softmax(-1) - targets[0])/len(task.x))
        for many, one in zip(together.gradients, alone.gradients, strict=True):
            n_in, n_out = one.shape[1] - 1, one.shape[2]
            torch.testing.assert_close(many[b, :n_in, :n_out], one[0, :-1], rtol=1e-4, atol=1e-6)
            assert not many[b, n_in:-1].any() and not many[b, :, n_out:].any()  # padding learns nothing
    before = [F.cross_entropy(n(task.x_look), task.y_look).item() for n in networks]
    after = [F.cross_entropy(n(task.x_look), task.y_look).item() for n in fit_targets(networks, task, targets, 0)]
    assert all(a <= b for a, b in zip(after, before, strict=True))


# Effects

def test_effects_are_what_the_cuts_do(originals, task):
    for original in originals:
        network = original.start
        X, X_look = network.read(task.x_fit), network.read(task.x_look)
        for layer in range(network.architecture.depth + 1):
            if layer == network.architecture.depth: X, X_look = network.read(task.x_fit), network.read(task.x_look)
            effects = measure(network, layer, X, X_look, task.y_look)
            for a in np.flatnonzero(effects.offered):
                cut = effects.networks[a]()
                assert (cut.architecture.n_params, cut.architecture.macs) == (effects.n_params[a], effects.macs[a])
                assert evaluate(cut, task.x_look, task.y_look) == pytest.approx(effects.accuracy[a], abs=1e-6)
                loss = F.cross_entropy(predict(cut, task.x_look), task.y_look).item()
                assert loss == pytest.approx(effects.loss[a], rel=1e-3, abs=1e-5)
            if layer < network.architecture.depth: X, X_look = (network.layers[layer](x).detach() for x in (X, X_look))


def test_features_can_be_kept(originals, task):
    network = originals[0].start
    effects = measure(network, network.architecture.depth, task.x_fit, task.x_look, task.y_look, inputs=False)
    assert effects.offered.tolist() == [1, 0, 0, 0, 0, 0, 0]


def test_logits_and_cuts_leave_what_they_must(task):
    network = network_of(Layer(50, before=("batchnorm",)), Layer(3, "softmax"), name="soft")
    torch.testing.assert_close(as_logits(network)(task.x).softmax(1), network(task.x), rtol=1e-4, atol=1e-5)
    assert cut_widths(as_logits(network), [60], task.x).architecture.hidden_widths == (50,)
    assert cut_widths(as_logits(network), [8], task.x).architecture.hidden_widths == (8,)


# Episodes

def test_random_episodes_keep_the_promises(originals, task):
    for seed in range(3):
        episodes = [PlanEpisode(o, b) for o in originals for b in (0.0, 2.0, 20.0)]
        play(episodes, random_chooser(generator(seed, "t")), seed)
        for e in episodes:
            assert e.terminated and e.passes <= task.config.passes
            for v in e.visits:
                right = rightness(v.network, task.x_judge, task.y_judge)
                assert v.accuracy == pytest.approx(float(right.mean()))
                assert v.within == task.config.guard(e.budget).holds(v.drop)
            if e.best: assert e.bits == pytest.approx(math.log2(e.original.n_params/e.best.size))
            sizes = [v.size for v in e.visits if v.within]
            assert sizes == sorted(sizes, reverse=True), "a pass never makes a good network larger"


def test_a_pass_over_budget_is_taken_back(originals, task):
    e = PlanEpisode(originals[0], 0.0)
    before = e.accepted
    while not e.waiting: e.act(int(np.flatnonzero(e.effects.offered)[-1]))  # the hardest cut everywhere
    advance([e], 0)
    visit = e.visits[-1]
    if visit.within: pytest.skip("even that was good enough")
    assert e.accepted == before and e.network is before[0] and e.rejected == 1
    assert e.excess == pytest.approx(visit.drop.points)
    assert e.undone and e.tried > 0


def test_state_is_finite_and_knows_the_budget(originals):
    a, b = (observe(PlanEpisode(originals[0], c)) for c in (0.5, 5.0))
    for o in (a, b):
        assert all(np.isfinite(o[k]).all() for k in ("tokens", "actions", "facts"))
        assert o["actions"].shape[0] == o["mask"].shape[0] == len(RATIOS)
        assert len(o["tokens"]) == 3
    assert not np.array_equal(a["facts"], b["facts"]) and np.array_equal(a["tokens"], b["tokens"])


def test_keeping_everything_ends_the_episode(originals):
    e = PlanEpisode(originals[1], 1.0)
    play([e], schedule_chooser([1.0]), 0)
    assert e.terminated and e.passes == 0 and len(e.visits) == 1


@pytest.mark.parametrize("reward", sorted(PLAN_REWARDS))
def test_environment_equals_the_loop(originals, reward):
    env = PlanningEnv(originals, reward=reward, seed=5)
    observation, info = env.reset(seed=1, options={"network": 0, "budget": 3.0})
    total, done, log = 0.0, False, []
    while not done:
        assert env.observation_space.contains(observation)
        log.append(int(np.flatnonzero(info["action_mask"])[-1]))
        observation, r, done, truncated, info = env.step(log[-1])
        total += r
        assert not truncated
    e = PlanEpisode(originals[0], 3.0)
    paid = 0.0
    while not e.terminated:
        e.act(log[len(e.actions)] if len(e.actions) < len(log) else 0)
        gained = advance([e], 5)[0] if e.waiting else None
        if gained is not None or e.terminated: paid += PLAN_REWARDS[reward](e, gained)
    assert total == pytest.approx(paid) and e.bits == env.episode.bits


def test_settings_are_checked():
    for bad in (dict(passes=0), dict(steps=-1), dict(soft=2.0), dict(caution=-1.0), dict(trim=0)):
        with pytest.raises(NeonError): PlanConfig(**bad)
