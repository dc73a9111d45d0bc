"What must hold for every architecture, not only for those of the examples."
import copy
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from neon.foundations.core import TrainingConfig, generator, torch_generator
from neon.foundations.data import as_dataset, prepare
from neon.foundations.networks import (
    Architecture,
    DenseNetwork,
    Layer,
    build_network,
    load_network,
    parse_network,
    save_network,
)
from neon.foundations.surgery import keep_width, l1_importance, most_important, replace_layer, slice_units
from neon.foundations.training import Stack, _adam, _shrink, predict, train_networks
from neon.published.agent import random_policy, rollout
from neon.published.environment import EnvConfig, PruningEnv
from neon.published.features import feature_maps, standardise
from neon.published.reward import TOLERANCE, parameter_credit, published_reward, width_credit

quick = settings(max_examples=50, deadline=None, derandomize=True)
ACTIVATIONS = ["relu", "tanh", "sigmoid", "leaky_relu", "elu", "gelu", "silu"]
NORMS = st.sampled_from([(), ("batchnorm",), ("dropout",), ("batchnorm", "dropout")])


def layers(widths, activations) -> st.SearchStrategy:
    return st.builds(Layer, widths, st.sampled_from(activations), NORMS, NORMS, st.sampled_from([0.2, 0.5]),
                     st.booleans())


@st.composite
def architectures(draw, depth: int | None = None, n_inputs: int | None = None,
                  n_outputs: int | None = None) -> Architecture:
    "Any network with at least one hidden layer; or one of this depth, with so many inputs or outputs."
    hidden = [draw(layers(st.integers(1, 12), ACTIVATIONS)) for _ in range(depth or draw(st.integers(1, 4)))]
    output = draw(layers(st.just(n_outputs) if n_outputs else st.integers(2, 4), ["identity", "softmax"]))
    return Architecture(n_inputs or draw(st.integers(1, 6)), (*hidden, output))


@st.composite
def companions(draw) -> list[Architecture]:
    "Architectures that can be stacked: of one depth, with common inputs and outputs."
    depth, n_inputs, n_outputs = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(2, 3))
    one = architectures(depth, n_inputs, n_outputs)
    return draw(st.lists(one, min_size=2, max_size=4))


def build(architecture: Architecture, seed: int = 0) -> DenseNetwork:
    "A network in double precision whose batch norms have seen something."
    network = build_network(architecture, torch_generator(seed, "weights")).double()
    rng = torch_generator(seed, "norms")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            for tensor in (module.weight, module.bias, module.running_mean): tensor.data.uniform_(-1, 1, generator=rng)
            module.running_var.uniform_(0.5, 2, generator=rng)
    return network


def inputs(architecture: Architecture, n: int = 7) -> torch.Tensor:
    return torch.randn(n, architecture.n_inputs, dtype=torch.float64, generator=torch_generator(1, "inputs"))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-12)


# Counting

@quick
@given(architectures())
def test_counts_are_those_of_pytorch(architecture):
    network = build_network(architecture)
    assert architecture.n_params == sum(p.numel() for p in network.parameters())
    assert architecture.macs == sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Linear))
    assert architecture.widths == (architecture.n_inputs, *(layer.linear.out_features for layer in network.layers))


@quick
@given(architectures())
def test_an_architecture_survives_its_description(architecture):
    assert Architecture.from_dict(architecture.to_dict()) == architecture


@quick
@given(architectures(), st.data())
def test_narrowing_never_adds_parameters(architecture, data):
    layer = data.draw(st.integers(0, architecture.depth - 1))
    width = data.draw(st.integers(1, architecture.hidden_widths[layer]))
    network = build_network(architecture)
    smaller = [replace_layer(network, layer, width, torch_generator(0)),
               slice_units(network, layer, most_important(l1_importance(network, layer), width))]
    for narrow in smaller:
        assert narrow.architecture == architecture.with_width(layer, width)
        assert narrow.architecture.n_params <= architecture.n_params and narrow.architecture.macs <= architecture.macs
        assert (narrow.architecture.n_params == architecture.n_params) == (width == architecture.hidden_widths[layer])


@quick
@given(st.integers(1, 2000), st.floats(0.01, 1), st.floats(0.01, 1))
def test_kept_width(width, a, b):
    assert 1 <= keep_width(width, a) <= width and keep_width(width, 1.0) == width
    assert keep_width(width, min(a, b)) <= keep_width(width, max(a, b))
    assert a*width - 1e-6 <= keep_width(width, a) < a*width + 1 or keep_width(width, a) == 1


# Parsing, saving

@quick
@given(architectures())
def test_a_parsed_network_computes_the_same(architecture):
    network, modules = build(architecture), []
    for layer in network.layers: modules += [*layer.before, layer.linear, *layer.after, layer.activation]
    foreign = copy.deepcopy(nn.Sequential(*modules)).float().eval()
    parsed, x = parse_network(foreign), inputs(architecture).float()
    assert parsed.architecture.widths == architecture.widths and parsed.architecture.n_params == architecture.n_params
    with torch.no_grad(): assert torch.allclose(parsed(x), foreign(x), rtol=1e-6, atol=1e-7)


@quick
@given(architectures())
def test_a_network_survives_the_disk(architecture):
    network, x = build(architecture).float(), inputs(architecture).float()
    with tempfile.TemporaryDirectory() as folder:
        save_network(network, Path(folder)/"net")
        twin = load_network(Path(folder)/"net")
    assert twin.architecture == architecture
    assert all(torch.equal(t, twin.state_dict()[name]) for name, t in network.state_dict().items())
    assert torch.equal(predict(twin, x), predict(network, x))


# Removing units

@quick
@given(architectures(), st.data())
def test_units_that_nobody_listens_to_can_be_sliced_away(architecture, data):
    layer = data.draw(st.integers(0, architecture.depth - 1))
    width = architecture.hidden_widths[layer]
    keep = sorted(data.draw(st.sets(st.integers(0, width - 1), min_size=1)))
    network, x = build(architecture), inputs(architecture)
    silent = [unit for unit in range(width) if unit not in keep]
    network.layers[layer + 1].linear.weight.data[:, silent] = 0
    assert close(predict(slice_units(network, layer, keep), x), predict(network, x))


@quick
@given(architectures(), st.data())
def test_keeping_all_units_changes_nothing(architecture, data):
    layer = data.draw(st.integers(0, architecture.depth - 1))
    network, x = build(architecture), inputs(architecture)
    assert torch.equal(predict(slice_units(network, layer, range(architecture.hidden_widths[layer])), x),
                       predict(network, x))


# Stacks

def padding(parameter: torch.Tensor, *sizes) -> torch.Tensor:
    "The entries of one network's padded tensor that are not its own."
    own = torch.zeros_like(parameter, dtype=torch.bool)
    own[tuple(slice(n) for n in sizes)] = True
    return parameter[~own]


def assert_padding_is_zero(stack: Stack, architectures: list[Architecture], get) -> None:
    "`get` of every parameter (its value, or its gradient) is 0 outside the networks."
    for i, layer in enumerate(stack.layers):
        for b, a in enumerate(architectures):
            n_in, n_out = a.widths[i], a.widths[i + 1]
            assert (padding(get(layer.weight)[b], n_in, n_out) == 0).all()
            assert (padding(get(layer.bias)[b, 0], n_out) == 0).all()
            for norm, width in ((layer.before, n_in), (layer.after, n_out)):
                for parameter in norm.parameters(): assert (padding(get(parameter)[b], width) == 0).all()


@quick
@given(companions())
def test_a_stack_computes_what_its_networks_compute(shapes):
    networks = [build(a, seed) for seed, a in enumerate(shapes)]
    x = inputs(shapes[0])
    with torch.no_grad(): outputs = Stack(networks)(x[None])
    for output, network in zip(outputs, networks, strict=True): assert close(output, predict(network, x))


@quick
@given(companions(), st.sets(st.integers(0, 3), min_size=1))
@example([Architecture(3, (Layer(width, "sigmoid"), Layer(2, "identity"))) for width in (2, 5)], {0})
def test_padding_never_learns(shapes, stay):
    "In training, before and after some networks have left the stack: no gradient reaches what is no part of a network."
    networks = [build(a, seed) for seed, a in enumerate(shapes)]
    keep = sorted(i for i in stay if i < len(shapes)) or [0]
    stack, x = Stack(networks), inputs(shapes[0])
    optimiser = _adam(stack, 0.1)
    for part in (list(range(len(shapes))), keep):
        if len(part) < len(stack): optimiser = _shrink(stack, optimiser, part)
        present = [shapes[i] for i in part]
        optimiser.zero_grad()
        stack(x[None], len(stack.layers), [torch_generator(0, i) for i in part]).square().sum().backward()
        assert_padding_is_zero(stack, present, lambda p: torch.zeros_like(p) if p.grad is None else p.grad)
        optimiser.step()
        assert_padding_is_zero(stack, present, lambda p: p.data)


@settings(quick, max_examples=15)
@given(companions(), st.integers(0, 3))
def test_a_network_trains_alike_alone_and_in_a_stack(shapes, seed):
    "Minibatches and dropout are drawn for a network by its own name; the others in the stack do not touch it."
    rng = np.random.default_rng(seed)
    networks = [build(a, i) for i, a in enumerate(shapes)]
    x = torch.from_numpy(rng.normal(size=(30, shapes[0].n_inputs)))
    y = torch.from_numpy(rng.integers(0, shapes[0].n_outputs, 30))
    config, names = TrainingConfig(6, 10, 0.05, 1), [f"net {i}" for i in range(len(shapes))]
    together = train_networks(networks, x[:20], y[:20], x[20:], y[20:], config, 0, names)
    for i, network in enumerate(networks):
        alone = train_networks([network], x[:20], y[:20], x[20:], y[20:], config, 0, names[i:i + 1])[0]
        assert len(alone.losses) == len(together[i].losses)
        assert np.allclose(alone.losses, together[i].losses, rtol=1e-6)
        for name, tensor in alone.network.state_dict().items():
            assert torch.allclose(tensor, together[i].network.state_dict()[name], rtol=1e-5, atol=1e-6, equal_nan=True)


# Rewards

percent, budgets = st.floats(0, 100), st.floats(0, 20)


@quick
@given(percent, percent, st.floats(-100, 100), budgets)
def test_more_reduction_pays_more_within_the_budget_and_costs_more_beyond_it(a, b, change, budget):
    less, more = (published_reward(reduction, change, budget) for reduction in sorted([a, b]))
    if change >= -budget - TOLERANCE: assert 0 <= less <= more
    else: assert 0 >= less >= more


@quick
@given(st.floats(1, 100), st.floats(-100, 100), st.floats(-100, 100), budgets, budgets)
def test_a_better_network_and_a_larger_budget_never_pay_less(reduction, a, b, budget, other):
    "From one percent of reduction on, where the cube is not smaller than the plain reduction."
    assert published_reward(reduction, min(a, b), budget) <= published_reward(reduction, max(a, b), budget)
    assert published_reward(reduction, a, min(budget, other)) <= published_reward(reduction, a, max(budget, other))


@quick
@given(st.integers(1, 10**7), st.data())
def test_credits_grow_with_what_is_removed(before, data):
    a, b = sorted(data.draw(st.tuples(st.integers(0, before), st.integers(0, before))))
    assert (0 <= parameter_credit(before, b) <= parameter_credit(before, a) <= 100
            and parameter_credit(before, before) == 0)
    low, high = sorted(data.draw(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1))))
    assert 0 <= width_credit(high) <= width_credit(low) < 100 and width_credit(1.0) == 0


# Observations

@pytest.fixture(scope="module")
def toy():
    rng = np.random.default_rng(0)
    return prepare(as_dataset(rng.normal(size=(60, 3)), rng.integers(0, 2, 60), "noise"))


@settings(quick, max_examples=20)
@given(shape=architectures(n_inputs=3, n_outputs=2), seed=st.integers(0, 9),
       recovery=st.sampled_from(["replace", "slice", "refit"]))
def test_observations_stay_in_the_space_and_describe_the_current_network(toy, shape, seed, recovery):
    config = EnvConfig(passes=2, recovery=recovery, probe_rows=20, training=TrainingConfig(1, 16))
    env = PruningEnv([build(shape, seed).float()], toy, config)
    rng, (observation, info) = generator(seed, "actions"), env.reset(seed=0)
    for step in range(2*shape.depth):
        assert env.observation_space.contains(observation)
        fresh = feature_maps(env.state.network, env.batch.probe, step % shape.depth)
        for name, value in fresh.items(): assert np.allclose(observation[name], value, rtol=1e-4, atol=1e-5), name
        assert all(bool(t.isfinite().all()) for t in standardise(observation).values())
        before = info["parameters"]
        observation, reward, terminated, truncated, info = env.step(int(rng.integers(5)))
        assert info["parameters"] <= before and np.isfinite(reward)
        assert terminated == (step == 2*shape.depth - 1) and truncated is False
    assert env.observation_space.contains(observation)


@settings(quick, max_examples=10)
@given(shape=architectures(n_inputs=3, n_outputs=2), seed=st.integers(0, 9))
def test_an_episode_can_be_repeated(toy, shape, seed):
    config = EnvConfig(passes=1, probe_rows=20, training=TrainingConfig(2, 16))
    episodes = [rollout(PruningEnv([build(shape).float()], toy, config, seed), random_policy(5),
                        generator(seed, "p")) for _ in range(2)]
    assert episodes[0].actions == episodes[1].actions and episodes[0].rewards == episodes[1].rewards
    assert all(torch.equal(a, b) for a, b in zip(*(e.network.state_dict().values() for e in episodes), strict=True))
