"The engine as a whole: stacks against single networks, refits against NumPy, with memory and processes or without."
import copy
import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_properties import architectures, build, close, padding, quick
from torch import nn

from neon.foundations import surgery
from neon.foundations.core import TrainingConfig, flush_denormals, generator, torch_generator
from neon.foundations.data import as_dataset, prepare
from neon.foundations.networks import Architecture, DenseNetwork, Layer, build_network
from neon.foundations.surgery import (
    IMPORTANCES,
    RIDGES,
    get_importance,
    keep_width,
    refit_units,
    ridge_refit,
    slice_units,
)
from neon.foundations.training import (
    Prefix,
    Stack,
    _adam,
    _Average,
    _pad,
    _select,
    _shrink,
    evaluate,
    predict,
    stack_losses,
    train_layers,
    train_networks,
    train_stack,
)
from neon.published.agent import (
    Agent,
    AgentConfig,
    actor_policy,
    compress_networks,
    fixed_policy,
    random_policy,
    rollout_together,
    train_agent,
)
from neon.published.environment import (
    MAX_PASSES,
    PUBLISHED_MENU,
    WIDE_MENU,
    EnvConfig,
    EpisodeBatch,
    Memo,
    PruningEnv,
    PruningVectorEnv,
)

RECOVERIES = ["replace", "slice", "refit"]
STEP = TrainingConfig(epochs=4, batch_size=16, learning_rate=0.01, patience=2)


# What the tests share

def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def classes(seed: int, n: int, of: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, of, n))


def weights(network: DenseNetwork) -> dict[str, torch.Tensor]:
    "What training changes."
    return {name: t for name, t in network.state_dict().items() if "num_batches" not in name}


def same(a: DenseNetwork, b: DenseNetwork) -> bool:
    "To the last bit?"
    return a.architecture == b.architecture and all(torch.equal(t, weights(b)[name]) for name, t in weights(a).items())


def alike(a: DenseNetwork, b: DenseNetwork, within: float) -> bool:
    assert a.architecture == b.architecture
    return all(torch.allclose(t, weights(b)[name], rtol=within, atol=within) for name, t in weights(a).items())


def nearly_tied(losses: list[float]) -> bool:
    "Is an epoch as good as the best before it, up to rounding? Then rounding says when training stops."
    return any(abs(loss - min(losses[:i])) < 1e-9 for i, loss in enumerate(losses) if i)


@st.composite
def runnable(draw) -> tuple[list[Architecture], list[int]]:
    "Networks with equally many layers to run, and the first of them in each."
    n_inputs, n_outputs, hidden = draw(st.integers(1, 4)), draw(st.integers(2, 3)), draw(st.integers(1, 2))
    first = draw(st.lists(st.integers(0, 2), min_size=2, max_size=4))
    return [draw(architectures(f + hidden, n_inputs, n_outputs)) for f in first], first


@st.composite
def hidden_rows(draw) -> tuple[Architecture, int]:
    architecture = draw(architectures())
    return architecture, draw(st.integers(0, architecture.depth - 1))


configs = st.builds(TrainingConfig, st.just(6), st.sampled_from([8, 16]), st.just(0.03),
                    st.sampled_from([None, 1, 2, 3]),
                    st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([None, 13]))


@pytest.fixture(scope="module")
def noise():
    "Three features, two classes that have nothing to do with them."
    return prepare(as_dataset(normal(0, 120, 3).numpy(), classes(1, 120, 2).numpy(), "noise"))


@pytest.fixture(scope="module")
def blobs():
    "Two clouds with a wide gap between them."
    y = classes(1, 200, 2).numpy()
    return prepare(as_dataset(normal(0, 200, 3).numpy() + 6*y[:, None], y, "blobs"))


def doubled(data):
    "The same data in double precision."
    return dataclasses.replace(data, **{name: getattr(data, name).double()
                                        for name in ("X_train", "X_validation", "X_test")})


def network_of(*widths: int, before: tuple = ()) -> DenseNetwork:
    "Three inputs, two classes."
    return build_network(Architecture(3, (*(Layer(w, before=before) for w in widths), Layer(2, "identity"))),
                         torch_generator(0, *widths))


def trained_on(data, *networks: DenseNetwork) -> list[DenseNetwork]:
    parts = data.X_train, data.y_train, data.X_validation, data.y_validation
    return [r.network for r in train_networks(networks, *parts, TrainingConfig(10, 32, 0.01), 0)]


@pytest.fixture(scope="module")
def networks() -> list[DenseNetwork]:
    "Untrained: two that share stacks, one with batch norms, one of another depth."
    return [network_of(14, 9), network_of(11, 13), network_of(12, 7, before=("batchnorm",)), network_of(10)]


# Stacks

@settings(quick, max_examples=25)
@given(runnable(), configs, st.sampled_from([None, 1, 2]), st.booleans(), st.sampled_from([24, 25]))
def test_a_stack_trains_each_network_as_if_it_were_alone(shapes, config, learning, keep_start, n):
    "Dropout, batch norm, averages, patience, some layers only, other first layers: a stack changes only rounding."
    shapes, first = shapes
    networks = [build(a, i) for i, a in enumerate(shapes)]
    y, y_validation = classes(1, n, shapes[0].n_outputs), classes(2, 15, 2)
    originals = copy.deepcopy(networks)
    train, validation = ([Prefix(network, normal(s, rows, shapes[0].n_inputs)) for network in networks]
                         for s, rows in ((3, n), (4, 15)))

    def trained(*chosen):
        pick = lambda values: [values[i] for i in chosen]
        return train_layers(pick(networks), pick(train), y, pick(validation), y_validation, config, 0,
                          [f"net {i}" for i in chosen], pick(first), learning, keep_start)
    together, alone = trained(*range(len(networks))), [trained(i)[0] for i in range(len(networks))]
    assume(not any(nearly_tied(r.losses) for r in alone))
    for a, b, network, f in zip(alone, together, networks, first, strict=True):
        assert a.epochs == b.epochs and len(a.losses) == len(b.losses)
        assert np.allclose(a.losses, b.losses, rtol=1e-6, atol=1e-6) and a.validation_accuracy == b.validation_accuracy
        assert alike(a.network, b.network, 1e-5)
        assert b.validation_loss == (b.losses[-1] if config.patience is None else min(b.losses))
        assert b.validation_accuracy == evaluate(b.network, validation[0].outputs[0], y_validation)
        learns = range(f, len(network.layers) if learning is None else f + learning)
        for r, (new, old) in enumerate(zip(b.network.layers, network.layers, strict=True)):
            assert (new is old) == (r not in learns)
    unchanged = [same(a, b) for a, b in zip(originals, networks, strict=True)]
    assert all(unchanged), "training changed a network that was given to it"


def assert_nothing_outside(stack: Stack, widths: list[tuple[int, ...]]) -> None:
    "Weights, gradients and statistics are 0 outside the networks; `widths` begin with the first layer's input."
    for i, layer in enumerate(stack.layers):
        for b, w in enumerate(widths):
            tensors = [(layer.weight, w[i:i + 2]), (layer.bias, (1, w[i + 1]))]
            for norm, width in ((layer.before, w[i]), (layer.after, w[i + 1])):
                tensors += [(getattr(norm, name), (width,)) for name in ("weight", "bias", "mean", "var")
                            if hasattr(norm, name)]
            for tensor, own in tensors:
                for values in (tensor.data, tensor.grad):
                    assert values is None or (padding(values[b], *own) == 0).all()


def outputs_of(stack: Stack, x: torch.Tensor, learning: int, rngs, widths: list[tuple[int, ...]]) -> torch.Tensor:
    "The stack's output, after making sure that units which are none put out 0 in every layer."
    for i, layer in enumerate(stack.layers):
        x = layer(x, i < learning, rngs)
        for b, w in enumerate(widths): assert (x[b, :, w[i + 1]:] == 0).all()
    return x


@settings(quick, max_examples=30)
@given(runnable(), st.sets(st.integers(0, 3), min_size=1), st.integers(1, 2))
def test_padding_stays_empty(shapes, stay, learning):
    "In training, in the averaged twin, and after some networks have left both: nothing outside the networks."
    shapes, first = shapes
    networks = [build(a, i) for i, a in enumerate(shapes)]
    widths = [a.widths[f:] for a, f in zip(shapes, first, strict=True)]
    x = _pad([Prefix(n, normal(0, 9, n.architecture.n_inputs)).input_of(f)
              for n, f in zip(networks, first, strict=True)])
    y = classes(1, 9, 2)
    stack = Stack(networks, first)
    for layer in stack.layers[learning:]: layer.requires_grad_(False)
    optimiser, average = _adam(stack, 0.05), _Average(stack, 2.0)
    rngs = [torch_generator(0, i) for i in range(len(shapes))]
    keep = sorted(i for i in stay if i < len(shapes)) or [0]
    for part in (list(range(len(shapes))), keep):
        if len(part) < len(stack):
            optimiser = _shrink(stack, optimiser, part)
            _select(average.stack, part)
            x, rngs, widths = x[part], [rngs[b] for b in part], [widths[b] for b in part]
            for p, state in optimiser.state.items(): assert state["exp_avg"].shape == p.shape
        for _ in range(3):
            loss = stack_losses(outputs_of(stack, x, learning, rngs, widths), y).sum()
            optimiser.zero_grad()
            loss.backward()
            assert_nothing_outside(stack, widths)
            optimiser.step()
            average.follow(stack)
            for each in (stack, average.stack): assert_nothing_outside(each, widths)
    with torch.no_grad():
        for each in (stack, average.stack):
            output = outputs_of(each, x, 0, (), widths)
            for b, i in enumerate(part):
                twin = copy.deepcopy(networks[i])
                each.write_back(b, twin)
                assert close(output[b], predict(twin, normal(0, 9, twin.architecture.n_inputs))), (
                    "what is left is not the network's own")


# Cached prefixes

class _Dropout(nn.Module):
    "Dropout that draws as the engine does, from a stream of the network's own."
    def __init__(self, rate: float, rng: torch.Generator):
        super().__init__()
        self.rate, self.rng = rate, rng

    def forward(self, x):
        return (x*(torch.empty(x.shape).uniform_(generator=self.rng) >= self.rate)/(1 - self.rate)
                if self.training else x)


def trained_in_full(network, x, y, x_validation, y_validation, config, seed, name, first, learning):
    "The loop everybody knows: the whole network back and forth; what does not learn is frozen, in evaluation mode."
    network, order, dropout = (copy.deepcopy(network), torch_generator(seed, "batches"),
                               torch_generator(seed, "dropout", name))
    network.eval().requires_grad_(False)
    learns = list(network.layers)[first:None if learning is None else first + learning]
    for layer in learns:
        layer.requires_grad_(True)
        for place in ("before", "after"):
            setattr(layer, place, nn.Sequential(*(_Dropout(m.p, dropout) if isinstance(m, nn.Dropout) else m
                                                  for m in getattr(layer, place))))
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], config.learning_rate)
    best, losses = None, []
    for _ in range(config.epochs):
        for layer in learns: layer.train()
        for rows in torch.randperm(len(x), generator=order).split(config.batch_size):
            optimiser.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimiser.step()
        network.eval()
        with torch.no_grad(): losses.append(F.cross_entropy(network(x_validation), y_validation).item())
        if losses[-1] == min(losses): best = copy.deepcopy(weights(network))
        if config.patience and len(losses) - 1 - losses.index(min(losses)) >= config.patience: break
    return losses, best if config.patience else weights(network)


@settings(quick, max_examples=25)
@given(runnable(), st.sampled_from([1, 3]), st.sampled_from([None, 1, 2]))
def test_training_on_cached_prefixes_is_training_of_the_whole_network(shapes, patience, learning):
    shapes, first = shapes
    config, networks = TrainingConfig(5, 8, 0.03, patience), [build(a, i) for i, a in enumerate(shapes)]
    x, x_validation = (normal(n, n, shapes[0].n_inputs) for n in (24, 15))
    y, y_validation = classes(2, 24, 2), classes(3, 15, 2)
    train, validation = ([Prefix(n, data) for n in networks] for data in (x, x_validation))
    results = train_layers(networks, train, y, validation, y_validation, config, 0, range(len(networks)), first,
                           learning)
    for i, (network, f, result) in enumerate(zip(networks, first, results, strict=True)):
        losses, expected = trained_in_full(network, x, y, x_validation, y_validation, config, 0, i, f, learning)
        if nearly_tied(losses): continue
        assert result.epochs == len(losses) and np.allclose(result.losses, losses, rtol=1e-6, atol=1e-6)
        for name, value in weights(result.network).items():
            assert torch.allclose(value, expected[name], rtol=1e-5, atol=1e-5), name


# Refit

def least_squares(H: np.ndarray, target: np.ndarray, intercept: bool) -> tuple[np.ndarray, np.ndarray]:
    "Weights (outputs, k) and intercept (outputs,) by `numpy.linalg.lstsq`; of many solutions the smallest."
    if not intercept: return np.linalg.lstsq(H, target, rcond=None)[0].T, np.zeros(target.shape[1])
    mean, level = H.mean(0), target.mean(0)
    solution = np.linalg.lstsq(H - mean, target - level, rcond=None)[0]
    return solution.T, level - mean @ solution


@quick
@given(st.integers(1, 12), st.data(), st.booleans(), st.booleans())
def test_refit_is_least_squares(width, data, wide, bias):
    "With next to no ridge: the solution, or, where units are more than rows, the smallest of the solutions."
    k, outputs = data.draw(st.integers(1, width)), data.draw(st.integers(1, 40))
    n = max(2, k//2) if wide else 4*width + 5
    H, W, b = normal(0, n, width) + normal(1, 1, width), normal(2, outputs, width), normal(3, outputs)*bias
    units = torch.from_numpy(np.sort(generator(k, "units").choice(width, k, replace=False)))
    V, change = ridge_refit(H, units, W, H, ridges=[1e-11 if n < k else 1e-14], centre=bias)
    expected, level = least_squares(H[:, units].numpy(), (H @ W.T + b).numpy(), bias)
    fitted = H[:, units] @ V.T + b + change
    assert np.allclose(fitted, H[:, units].numpy() @ expected.T + level, rtol=1e-6, atol=1e-6)
    if n != k:
        assert np.allclose(V, expected, rtol=1e-5, atol=1e-5) and np.allclose(b + change, level, rtol=1e-5, atol=1e-5)


@quick
@given(hidden_rows(), st.data(), st.sampled_from([6, 60]))
def test_a_refitted_network_tells_its_next_layer_what_least_squares_would(shape, data, n):
    "Any norms around the layers: solved is what the linear layer receives, and what it puts out before any norm."
    (architecture, layer), network = shape, build(shape[0])
    width = architecture.hidden_widths[layer]
    units = torch.tensor(sorted(data.draw(st.sets(st.integers(0, width - 1), min_size=1))))
    H = Prefix(network, normal(0, n, architecture.n_inputs)).input_of(layer + 1) + normal(1, n, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surgery, "ridge_refit",
                      functools.partial(ridge_refit, ridges=[1e-11 if n < len(units) else 1e-14]))
        narrow = refit_units(network, layer, units, H, H)
    there, new = network.layers[layer + 1], narrow.layers[layer + 1]
    with torch.no_grad():
        seen, target, fitted = there.before(H), there.linear(there.before(H)), new.linear(new.before(H[:, units]))
        V, level = least_squares(seen[:, units].numpy(), target.numpy(), there.linear.bias is not None)
    assert np.allclose(fitted, seen[:, units].numpy() @ V.T + level, rtol=1e-5, atol=1e-5)
    sliced = slice_units(network, layer, units)
    expected, left = weights(sliced), {f"layers.{layer + 1}.linear.weight", f"layers.{layer + 1}.linear.bias"}
    assert narrow.architecture == sliced.architecture == architecture.with_width(layer, len(units))
    kept = [torch.equal(value, expected[name]) for name, value in weights(narrow).items() if name not in left]
    assert all(kept), "more than V was changed"


def test_many_rows_are_thinned():
    "Of 4,000 rows for 8 units, every fourth is enough."
    network, H = network_of(8).double(), normal(0, 4000, 8)
    units = torch.tensor([0, 3, 4])
    assert same(refit_units(network, 0, units, H, H), refit_units(network, 0, units, H[::4].clone(), H))
    assert same(refit_units(network, 0, units, H, H, rows_per_unit=500),
                refit_units(network, 0, units, H, H, rows_per_unit=10**6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_ridge_is_the_best_on_validation_rows(dtype):
    "Up to 16 outputs, in both forms: no other candidate comes closer to the old outputs on validation rows."
    chosen = set()
    for seed in range(40):
        rng = generator(seed, "ridge")
        n, width, outputs = int(rng.integers(3, 40)), int(rng.integers(2, 30)), int(rng.integers(1, 17))
        k = int(rng.integers(1, width + 1))
        common = rng.normal(size=(n + 20, 3)) @ rng.normal(size=(3, width))
        H = common + 10.0**rng.integers(-3, 1)*rng.normal(size=common.shape)
        W, units, train, validation = (rng.normal(size=(outputs, width)),
                                       np.sort(rng.choice(width, k, replace=False)), H[:n], H[n:])
        tensors = [torch.from_numpy(a).to(dtype) for a in (train, W, validation)]
        V, change = ridge_refit(tensors[0], torch.from_numpy(units), tensors[1], tensors[2], centre=bool(seed % 2))
        error = lambda V, c, W=W, units=units, validation=validation: float(
            ((validation[:, units] @ V.T + c - validation @ W.T)**2).sum())
        mean = train.mean(0)*(seed % 2)
        centred, errors = train - mean, []
        for ridge in RIDGES:
            gram = centred[:, units].T @ centred[:, units]
            solution = np.linalg.solve(gram + ridge*np.trace(gram)/k*np.eye(k), centred[:, units].T @ centred @ W.T).T
            errors.append(error(solution, W @ mean - solution @ mean[units]))
        ours = error(V.double().numpy(), change.double().numpy())
        assert ours <= min(errors)*(1 + 1e-6 if dtype == torch.float64 else 1.05) + 1e-6
        chosen.add(int(np.argmin(errors)))
    assert chosen == {0, 1, 2}, "a candidate that never wins makes this test easy"


@quick
@given(hidden_rows(), st.sampled_from([4, 30]))
def test_refit_that_keeps_all_units_keeps_the_function(shape, n):
    "Up to what the smallest ridge r may cost: squared errors sum to at most r/4 times an output's squared weights."
    (architecture, layer), network = shape, build(shape[0])
    x, width = normal(0, n, architecture.n_inputs), architecture.hidden_widths[layer]
    H = Prefix(network, x).input_of(layer + 1)
    kept = refit_units(network, layer, torch.arange(width), H, H)
    there, new = network.layers[layer + 1], kept.layers[layer + 1]
    with torch.no_grad():
        seen, error = there.before(H), there.linear(there.before(H)) - new.linear(new.before(H))
        mean = seen.mean(0) if there.linear.bias is not None else 0
        ridge = RIDGES[0]*(seen - mean).square().sum()/width + 1e-12
        assert (error.square().sum(0) <= ridge/4*there.linear.weight.square().sum(1)*(1 + 1e-6) + 1e-12).all()
    assert torch.allclose(predict(kept, x), predict(network, x), atol=0.2) and kept.architecture == architecture


# Importance

@quick
@given(hidden_rows(), st.sampled_from(sorted(IMPORTANCES)), st.integers(0, 9))
def test_importances_are_finite_belong_to_units_and_need_no_double_precision(shape, name, seed):
    (architecture, layer), network, importance = shape, build(shape[0], seed), get_importance(name)
    x, y, width = (normal(seed, 40, architecture.n_inputs), classes(seed, 40, architecture.n_outputs),
                   architecture.hidden_widths[layer])
    H = Prefix(network, x).input_of(layer + 1)
    values = importance(network, layer, H, y)
    assert values.shape == (width,) and values.isfinite().all() and (values >= 0).all() and not values.requires_grad
    order = torch.from_numpy(np.random.default_rng(seed).permutation(width))
    assert close(importance(slice_units(network, layer, order), layer, H[:, order], y), values[order])
    coarse = importance(copy.deepcopy(network).float(), layer, H.float(), y)
    assert torch.allclose(coarse.double(), values, rtol=1e-4, atol=1e-4*max(1e-3, float(values.max())))


# Precision

@pytest.mark.parametrize("average, patience, learning", [(0, None, None), (0, 2, 1), (1, 2, None), (1, 1, 2)])
def test_bfloat16_is_for_products_only(average, patience, learning):
    "What is reported are single-precision figures of the network that is returned."
    shapes = [Architecture(5, (Layer(w, "tanh", before, dropout=0.2), Layer(6), Layer(3, "identity"))) for w, before in
              ((12, ()), (7, ("batchnorm",)), (9, ("dropout",)))]
    networks = [build_network(a, torch_generator(0, i)) for i, a in enumerate(shapes)]
    x, y, x_validation, y_validation = normal(0, 90, 5), classes(1, 90, 3), normal(2, 50, 5), classes(3, 50, 3)
    config = TrainingConfig(6, 16, 0.02, patience, average, precision="bfloat16")

    def train(networks, precision, *data):
        rules, (x, x_validation) = config.replace(precision=precision), (d[None] for d in data)
        return train_stack(networks, x, y, x_validation, y_validation, rules, 0, range(3), 0, learning)
    coarse, fine = (train(networks, p, x.float(), x_validation.float()) for p in ("bfloat16", "float32"))
    for a, b in zip(coarse, fine, strict=True):
        assert all(t.dtype == torch.float32 for t in weights(a.network).values()) and not a.network.training
        assert not same(a.network, b.network), "bfloat16 did nothing"
        output = predict(a.network, x_validation.float())
        assert math.isclose(a.validation_loss, F.cross_entropy(output, y_validation).item(), rel_tol=1e-5)
        assert a.validation_accuracy == evaluate(a.network, x_validation.float(), y_validation)
        assert abs(a.validation_loss - b.validation_loss) < 0.1
    doubles = [copy.deepcopy(n).double() for n in networks]
    for p in ("bfloat16", "auto"):
        for a, b in zip(*(train(doubles, q, x, x_validation) for q in (p, "float32")), strict=True):
            assert same(a.network, b.network) and a.losses == b.losses, "double precision was made coarse"


@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_as_they_were(before):
    flushed = lambda: float(torch.tensor([1e-39])*2) == 0
    was = flushed()
    if not torch.set_flush_denormal(before): pytest.skip("this processor cannot flush denormals")
    try:
        with flush_denormals():
            assert flushed()
            with flush_denormals(): assert flushed()
            assert flushed()
        assert flushed() is before
        with pytest.raises(ZeroDivisionError), flush_denormals(): 1/0  # noqa: B018
        assert flushed() is before
        x = normal(0, 20, 3).float()
        train_networks([network_of(4)], x, classes(1, 20, 2), x, classes(1, 20, 2), TrainingConfig(1), 0)
        assert flushed() is before
    finally: torch.set_flush_denormal(was)


# Memory

def assert_memo_is_in_order(memo: Memo) -> None:
    assert memo.used == sum(Memo._bytes(entry) for entry in memo.entries.values()) and 0 <= memo.used <= memo.limit


def same_arrays(a: dict, b: dict) -> bool: return all(np.array_equal(a[name], b[name]) for name in a)


def memos(env, networks, data, rules, **options) -> list:
    "Environments without memory, with too little of it, and with plenty."
    return [env(networks, data, rules.replace(memo_bytes=limit), **options) for limit in (0, 4000, 2**26)]


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_memory_changes_no_episode(noise, networks, recovery):
    "To the last bit, though the small memory forgets all the time."
    envs = memos(PruningEnv, networks, noise,
                 EnvConfig(actions=(1.0, 0.8, 0.5), passes=2, recovery=recovery, probe_rows=30, training=STEP))
    for episode in range(10):
        rng, played = generator(episode, "actions"), [env.reset(options={"network": episode % 4}) for env in envs]
        assert all(same_arrays(played[0][0], other[0]) for other in played)
        while not envs[0].episode.terminated:
            action = int(rng.integers(1, 3))
            played = [env.step(action) for env in envs]
            for env in envs: assert_memo_is_in_order(env.batch.memo)
            for other, env in zip(played[1:], envs[1:], strict=True):
                assert same_arrays(played[0][0], other[0]) and played[0][1:3] == other[1:3]
                assert played[0][4]["accuracy"] == other[4]["accuracy"]
                assert same(env.state.network, envs[0].state.network)
    none, little, plenty = (env.batch.memo for env in envs)
    assert none.used == 0 and 0 < len(little.entries) < len(plenty.entries) and plenty.used > little.limit


@pytest.mark.parametrize("recovery", RECOVERIES)
def test_memory_changes_no_episodes_in_a_stack(noise, networks, recovery):
    "The same cuts of the same network in a stack with others than before: memory must hold what would be computed."
    rules = EnvConfig(actions=(1.0, 0.8, 0.5), passes=2, recovery=recovery, probe_rows=30, training=STEP)
    envs = memos(PruningVectorEnv, networks, noise, rules, autoreset_mode=AutoresetMode.DISABLED)
    for episode in range(10):
        rng = generator(episode, "actions")
        for env in envs: env.reset(options={"networks": range(4)})
        while not all(e.terminated for e in envs[0].episodes):
            actions = rng.integers(1, 3, 4)
            played = [env.step(actions) for env in envs]
            for env in envs: assert_memo_is_in_order(env.batch.memo)
        first, *others = played
        for other, env in zip(others, envs[1:], strict=True):
            for a, b in zip(envs[0].episodes, env.episodes, strict=True):
                assert same(a.state.network, b.state.network), episode
            assert same_arrays(first[0], other[0]) and all(np.array_equal(x, y)
                                                           for x, y in zip(first[1:4], other[1:4], strict=True))
            assert np.array_equal(first[4]["accuracy"], other[4]["accuracy"])


def test_what_was_played_before_changes_no_trajectory(noise, networks):
    "Episodes in step on a table with a past, and on a fresh one."
    rules = EnvConfig(actions=(1.0, 0.8, 0.5), passes=2, recovery="slice", probe_rows=30, training=STEP)
    play = lambda table, e: rollout_together(table, [e % 3, (e + 1) % 3], random_policy(3),
                                             [generator(e, b) for b in range(2)])
    used = EpisodeBatch(networks, noise, rules, 0)
    for e in range(15):
        for a, b in zip(play(used, e), play(EpisodeBatch(networks, noise, rules, 0), e), strict=True):
            assert a.actions == b.actions and a.rewards == b.rewards and same(a.network, b.network), f"episode {e}"


# Several in step

@pytest.mark.parametrize("recovery", RECOVERIES)
@pytest.mark.parametrize("new_layers_only", [True, False])
def test_several_in_step_are_several_alone(noise, networks, recovery, new_layers_only):
    "In double precision, with the same actions: rewards to 1e-6, networks and what is shown of them to 1e-8."
    rules = EnvConfig(passes=2, recovery=recovery, new_layers_only=new_layers_only, probe_rows=30, training=STEP)
    doubles, data = [copy.deepcopy(n).double() for n in networks], doubled(noise)
    several = PruningVectorEnv(doubles, data, rules, 3, autoreset_mode=AutoresetMode.DISABLED)
    single = PruningEnv(doubles, data, rules, 3)
    several.reset(options={"networks": range(4)})
    actions, together = generator(0, "actions").integers(0, 5, (4, 4)), []
    for layer in actions: together.append((*several.step(layer), [e.state.network for e in several.episodes]))
    for b in range(4):
        single.reset(options={"network": b})
        for t, (observations, rewards, terminated, truncated, infos, reached) in enumerate(together):
            if single.episode.terminated:
                assert rewards[b] == 0 and terminated[b]
                continue
            observation, reward, done, _, info = single.step(int(actions[t, b]))
            assert math.isclose(reward, rewards[b], rel_tol=1e-6, abs_tol=1e-6)
            assert done == terminated[b] and not truncated[b]
            assert info["accuracy"] == infos["accuracy"][b] and info["widths"] == infos["widths"][b]
            assert alike(single.state.network, reached[b], 1e-8)
            for name, value in observation.items():
                assert np.allclose(value, observations[name][b], rtol=1e-5, atol=1e-5), name


def test_conventions_are_those_of_gymnasium(noise, networks):
    "Side by side with Gymnasium's own vector environment: arrays, infos, masks, new episodes after the last step."
    rules = EnvConfig(budget=100, passes=0, actions=(1.0, 0.7, 0.3), recovery="refit", refit_epochs=0,
                      credit="width", probe_rows=30)
    ours = PruningVectorEnv(networks[:1], noise, rules, num_envs=3)
    theirs = SyncVectorEnv([lambda: PruningEnv(networks[:1], noise, rules)]*3)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    assert (ours.single_observation_space == theirs.single_observation_space
            and ours.single_action_space == theirs.single_action_space)
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    pairs, rng, ended = [(ours.reset(seed=0), theirs.reset(seed=0))], generator(0, "actions"), np.zeros(3, int)
    for step in range(60):
        actions = np.array([step % 3 == 1, *rng.integers(0, 3, 2)])
        assert ours.action_space.contains(actions)
        pairs.append((ours.step(actions), theirs.step(actions)))
        ended += pairs[-1][0][2]
    assert (ended > 0).all() and len(set(ended)) > 1, "episodes that all end together show nothing"
    for mine, other in pairs:
        assert ours.observation_space.contains(mine[0]) and same_arrays(mine[0], other[0])
        for a, b in zip(mine[1:-1], other[1:-1], strict=True):
            assert np.array_equal(a, b) and a.dtype == b.dtype and a.shape == (3,)
        assert set(mine[-1]) == set(other[-1]) and {f"_{name}" for name in mine[-1] if name[0] != "_"} <= set(mine[-1])
        for name, value in mine[-1].items():
            assert (value.shape == other[-1][name].shape and value.dtype == other[-1][name].dtype
                    and (value == other[-1][name]).all()), name
    ours.close(), theirs.close()


def test_an_episode_that_has_ended_begins_anew_or_rests(noise, networks):
    rules = EnvConfig(passes=1, recovery="refit", refit_epochs=0, probe_rows=30)
    env = PruningVectorEnv(networks, noise, rules)
    env.reset(seed=0, options={"networks": [0, 1, 2, 3]})
    first = env.step(np.full(4, 2))
    assert first[2].tolist() == [False, False, False, True] and not first[3].any()
    # the action of the fourth is ignored: it begins anew
    second = env.step(np.full(4, 2))
    fresh, info = env.episodes[3], {name: value[3] for name, value in second[4].items()}
    assert second[2].tolist() == [True, True, True, False] and second[1][3] == 0 and fresh.original is fresh.state
    assert (info["layer"] == info["sweep"] == 0 and info["parameters"] == info["parameters_before"]
            and info["network"] == fresh.index)
    assert all(np.array_equal(second[0][name][3], value) for name, value in fresh.observation().items())

    env = PruningVectorEnv(networks, noise, rules, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0, options={"networks": [0, 1, 2, 3]})
    ended = env.step(np.full(4, 4))
    later = env.step(np.full(4, 4))
    again = env.step(np.full(4, 4))
    assert later[2].all() and again[2].all() and (again[1] == 0).all() and later[1][3] == 0
    for name, value in ended[0].items(): assert np.array_equal(value[3], again[0][name][3])
    assert ended[4]["widths"][3] == again[4]["widths"][3] and (later[4]["accuracy"] == again[4]["accuracy"]).all()
    assert not any(e.terminated for e in (env.reset(seed=0), env.episodes)[1])


# What may be done

def test_no_policy_that_chooses_takes_an_action_that_is_not_offered(noise):
    "200 episodes with layers of a few units; whatever is offered, but keeping everything, removes a unit."
    small, menu = [network_of(9, 4), network_of(3, 12, 2), network_of(5), network_of(2, 2)], WIDE_MENU
    rules = EnvConfig(actions=menu, passes=3, recovery="refit", refit_epochs=0, probe_rows=20, budget=100)
    actor, table = Agent(len(menu)).actor, EpisodeBatch(small, noise, rules, 0)
    policies = [random_policy(len(menu))]*46 + [actor_policy(actor, greedy=False)]*2 + [actor_policy(actor)]*2
    refused = 0
    for group, policy in enumerate(policies):
        for trajectory in rollout_together(table, range(4), policy, [generator(group, "policy", b) for b in range(4)]):
            for before, action, after in zip(trajectory.infos, trajectory.actions, trajectory.infos[1:], strict=False):
                mask, width = before["action_mask"], before["widths"][before["layer"] + 1]
                assert mask[action] == 1 and mask[0] == 1 and len(mask) == len(menu)
                assert all(keep_width(width, keep) < width
                           for keep, offered in zip(menu[1:], mask[1:], strict=True) if offered)
                assert all(keep_width(width, keep) == width for keep, offered in zip(menu, mask, strict=True)
                           if not offered)
                assert (after["parameters"] < before["parameters"]) == (action > 0)
                refused += int((mask == 0).sum())
    assert refused > 500


def played_open_end(data, credit: str) -> list[tuple]:
    "Episodes of any number of passes, easy and hard: each pass's sum of rewards, and parameters before and after it."
    table_of = functools.partial(EpisodeBatch,
                                 trained_on(data, network_of(40, 30), network_of(12), network_of(6, 25, 9)), data)
    rules = EnvConfig(actions=WIDE_MENU, passes=0, recovery="refit", refit_epochs=0, credit=credit, probe_rows=20)
    played = []
    for budget in (0, 2, 100):
        for policy in (random_policy(7), fixed_policy(0), fixed_policy(1), fixed_policy(6)):
            table, rngs = table_of(rules.replace(budget=budget), 0), [generator(budget, b) for b in range(3)]
            for t in rollout_together(table, range(3), policy, rngs):
                depth = len(t.infos[0]["widths"]) - 2
                sums = np.reshape(t.rewards, (-1, depth)).sum(1)
                parameters = [info["parameters"] for info in t.infos[::depth]]
                assert t.infos[-1]["sweep"] == len(sums) == len(parameters) - 1
                played.append((sums, parameters))
    return played


@pytest.mark.parametrize("credit", ["parameters", "width"])
def test_without_a_number_of_passes_an_episode_lasts_as_long_as_they_pay(blobs, noise, credit):
    "It ends after the first pass whose rewards sum to at most 0, or that removes nothing, and after 20 in any case."
    episodes = played_open_end(blobs, credit) + played_open_end(noise, credit)
    for sums, parameters in episodes:
        assert (sums[:-1] > 0).all() and len(sums) <= MAX_PASSES
        assert sums[-1] <= 0 or len(sums) == MAX_PASSES or parameters[-1] == parameters[-2]
    lengths = {len(sums) for sums, _ in episodes}
    assert 1 in lengths and len(lengths) > 3


@pytest.mark.parametrize("credit", ["parameters", "width"])
def test_a_pass_that_removes_nothing_does_not_pay(blobs, credit):
    "Without a number of passes it is the last."
    idle = [parameters.index(a) for _, parameters in played_open_end(blobs, credit)
            for a, b in zip(parameters[:-2], parameters[1:-1], strict=True) if a == b]
    assert not idle, f"{len(idle)} passes removed nothing and were not the last"


def test_compression_has_no_ceiling_near_sixty(blobs):
    "An easy task, layers of many units, keep ratios down to a tenth, and passes as long as they pay."
    nets = trained_on(blobs, network_of(90, 60), network_of(50, 50, 50))
    rules = EnvConfig(budget=1, actions=WIDE_MENU, passes=0, recovery="refit", probe_rows=50, training=STEP)
    for t, _ in compress_networks(None, nets, blobs, rules, mode=WIDE_MENU.index(0.1)):
        within = [info for info in t.infos if info["accuracy"] >= info["accuracy_before"] - 0.01 - 1e-9]
        assert max(info["parameters_before"]/info["parameters"] for info in within) > 60


# Processes

@pytest.fixture(scope="module")
def iris(): return prepare("iris", "strict", seed=0)


@pytest.fixture(scope="module")
def three() -> list[DenseNetwork]:
    shapes = [Architecture(4, (Layer(a), Layer(b), Layer(3, "identity"))) for a, b in ((14, 9), (11, 13), (12, 10))]
    return [build_network(shape, torch_generator(0, i)) for i, shape in enumerate(shapes)]


RULES = EnvConfig(budget=10, actions=(1.0, 0.5), passes=2, recovery="slice", probe_rows=30, training=STEP)
EPISODES = AgentConfig(episodes=24, warmup_per_network=2)


@pytest.fixture(scope="module")
def alone(iris, three) -> Agent: return train_agent(three, iris, RULES, EPISODES, seed=1, progress=False)


def test_an_agent_depends_neither_on_the_number_of_processes_nor_on_a_break(iris, three, alone, tmp_path, monkeypatch):
    """Two processes up to episode 20, one from there on. The same cuts come again and again, beside other networks
    and in another process, each of which has a memory of its own."""
    from neon.published import agent as module
    save, checkpoint = module.save_agent, tmp_path/"agent.safetensors"

    class Stop(Exception): pass

    def saving(agent, *args, **kwargs):
        save(agent, *args, **kwargs)
        if len(agent.log) >= 18: raise Stop
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_agent", saving)
        with pytest.raises(Stop): train_agent(three, iris, RULES, EPISODES, 1, 2, checkpoint, -1, progress=False)
    broken_off = module.load_agent(checkpoint)[0]
    assert (18 <= len(broken_off.log) < 24
            and broken_off.log == alone.log[:len(broken_off.log)]), "two processes differ from one"
    resumed = train_agent(three, iris, RULES, EPISODES, 1, 1, checkpoint, progress=False)
    assert resumed.log == alone.log, "the rest differs after a break"
    for a, b in ((alone.actor, resumed.actor), (alone.critic, resumed.critic)):
        assert all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


def test_compressing_does_not_depend_on_the_number_of_processes(iris, three):
    many, rules = three*2, RULES.replace(actions=PUBLISHED_MENU, recovery="refit")
    one, two = (compress_networks(None, many, iris, rules, 2, "random", workers) for workers in (1, 2))
    for (a, _), (b, _) in zip(one, two, strict=True):
        assert (a.actions, a.rewards) == (b.actions, b.rewards) and same(a.network, b.network)
        assert [info["accuracy"] for info in a.infos] == [info["accuracy"] for info in b.infos]
    assert len({tuple(t.actions) for t, _ in one}) > 1
