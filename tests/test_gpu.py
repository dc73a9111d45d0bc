"The same engine on another device: on CUDA where there is one, and on one that only sees what stays behind."
import contextlib
import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.vector import AutoresetMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neon.foundations import training
from neon.foundations.core import TrainingConfig, generator, resolve_device, torch_generator
from neon.foundations.data import as_dataset, prepare
from neon.foundations.networks import Architecture, DenseNetwork, Layer, build_network
from neon.foundations.surgery import refit_units
from neon.foundations.training import evaluate, predict, train_networks, train_stack
from neon.published.agent import Agent, AgentConfig, compress_networks, train_agent
from neon.published.environment import Cut, EnvConfig, PruningVectorEnv, make_cuts, start_state
from neon.published.runs import RunConfig, prepare_run, run

DEVICE = "cuda"
cuda = pytest.mark.skipif(not torch.cuda.is_available(),
                          reason="no CUDA device here: torch.cuda.is_available() is False")
precisions = pytest.mark.parametrize("dtype, within", [(torch.float64, 1e-8), (torch.float32, 1e-3)])
recoveries = pytest.mark.parametrize("recovery", ["replace", "slice", "refit"])
STEP = TrainingConfig(epochs=4, batch_size=32, learning_rate=0.005, patience=2)
RULES = EnvConfig(budget=5, passes=2, probe_rows=40, training=STEP)


@pytest.fixture(scope="module")
def data():
    "Two classes, a curved border."
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    return prepare(as_dataset(x, (x[:, 0]**2 + x[:, 1] > 0.8).astype(int), "bow"))


@pytest.fixture(scope="module")
def networks(data) -> list[DenseNetwork]:
    "Trained on the CPU: two that share stacks, one with batch norms, one of another depth without biases."
    shapes = [(Layer(24, "tanh"), Layer(16)), (Layer(20), Layer(18, "gelu")),
              (Layer(22, "sigmoid", ("batchnorm",)), Layer(9, "tanh", (), ("batchnorm",))), (Layer(15, bias=False),)]
    built = [build_network(Architecture(4, (*layers, Layer(2, "identity"))), torch_generator(0, i))
             for i, layers in enumerate(shapes)]
    parts = data.X_train, data.y_train, data.X_validation, data.y_validation
    return [r.network for r in train_networks(built, *parts, TrainingConfig(20, 32, 0.01), 0)]


def moved(data, networks, device: str, dtype: torch.dtype = torch.float32):
    "Copies of data and networks on a device, in a precision."
    data = dataclasses.replace(data, **{name: getattr(data, name).to(dtype)
                                        for name in ("X_train", "X_validation", "X_test")})
    return data.to(device), [copy.deepcopy(n).to(device, dtype) for n in networks]


def parts(data) -> tuple: return data.X_train[None], data.y_train, data.X_validation[None], data.y_validation


def assert_close(a: torch.Tensor, b: torch.Tensor, within: float) -> None:
    "Errors are measured against the largest value."
    assert a.device.type == "cpu" and b.device.type == DEVICE
    torch.testing.assert_close(b.cpu(), a, rtol=within, atol=within*max(1.0, float(a.abs().max())))


def on(network: DenseNetwork) -> set[str]: return {t.device.type for t in network.state_dict().values()}


# On CUDA

@cuda
def test_auto_is_cuda():
    assert resolve_device("auto").type == DEVICE
    data, workers = prepare_run(RunConfig("iris"))
    assert data.X_train.device.type == data.y_test.device.type == DEVICE and workers == 1


@cuda
@precisions
@pytest.mark.parametrize("average", [0.0, 1.0])
def test_a_stack_trains_alike(data, networks, dtype, within, average):
    results = []
    for device in ("cpu", DEVICE):
        table, twins = moved(data, networks[:3], device, dtype)
        results.append((table, train_stack(twins, *parts(table), STEP.replace(average=average, patience=None),
                                           0, range(3))))
    (here, cpu), (there, gpu) = results
    for a, b in zip(cpu, gpu, strict=True):
        assert on(b.network) == {DEVICE} and np.allclose(a.losses, b.losses, rtol=within)
        assert_close(predict(a.network, here.X_test), predict(b.network, there.X_test), within)
        assert b.validation_accuracy == pytest.approx(evaluate(b.network, there.X_validation,
                                                               there.y_validation), abs=1e-12)


@cuda
def test_dropout_draws_on_the_device_and_repeats_itself(data, networks):
    shape = Architecture(4, (Layer(12, "tanh", ("dropout",)), Layer(8, "relu", (), ("dropout",), 0.2),
                             Layer(2, "identity")))
    table, twins = moved(data, [build_network(shape, torch_generator(0, i)) for i in range(2)], DEVICE, torch.float64)
    first, again, other = (train_stack(twins, *parts(table), STEP, 0, names) for names in ("ab", "ab", "ac"))
    for a, b, c, differs in zip(first, again, other, (False, True), strict=True):
        assert np.allclose(a.losses, b.losses, rtol=1e-8) and np.allclose(a.losses, c.losses, rtol=1e-8) != differs


@cuda
def test_bfloat16_reports_single_precision(data, networks):
    table, twins = moved(data, networks[:3], DEVICE)
    for result in train_stack(twins, *parts(table), STEP.replace(precision="bfloat16"), 0, range(3)):
        assert {t.dtype for t in result.network.parameters()} == {torch.float32}
        loss = F.cross_entropy(predict(result.network, table.X_validation), table.y_validation).item()
        assert result.validation_loss == pytest.approx(loss, rel=1e-4)
        assert result.validation_accuracy == pytest.approx(evaluate(result.network, table.X_validation,
                                                                    table.y_validation), abs=1e-12)


@cuda
@precisions
@recoveries
def test_cuts_are_alike(data, networks, recovery, dtype, within):
    results = []
    for device in ("cpu", DEVICE):
        (table, twins), rules = moved(data, networks, device, dtype), RULES.replace(recovery=recovery)
        cuts = [Cut(start_state(n, table, rules), layer, 6, (i,))
                for i, (n, layer) in enumerate(zip(twins, (1, 0, 1, 0), strict=True))]
        results.append((table, make_cuts(cuts, table, rules, seed=7)))
    (here, cpu), (there, gpu) = results
    for (a, before), (b, after) in zip(cpu, gpu, strict=True):
        assert on(b) == {DEVICE} and a.architecture == b.architecture
        assert abs(before - after) <= (1e-9 if dtype == torch.float64 else 1.01/len(here.y_validation))
        assert_close(predict(a, here.X_test), predict(b, there.X_test), within if dtype == torch.float64 else 10*within)


@cuda
@recoveries
def test_an_episode_in_step_is_alike(data, networks, recovery):
    histories = []
    for device in ("cpu", DEVICE):
        table, twins = moved(data, networks, device, torch.float64)
        env = PruningVectorEnv(twins, table, RULES.replace(recovery=recovery), autoreset_mode=AutoresetMode.DISABLED)
        history, rng = [(*env.reset(seed=0, options={"networks": range(4)}), None, None)], generator(0, "actions")
        while not all(e.terminated for e in env.episodes):
            observation, reward, terminated, _, info = env.step(rng.integers(0, 5, 4))
            history.append((observation, info, reward, terminated))
        assert {kind for e in env.episodes for kind in on(e.state.network)} == {device} and env.batch.memo.used > 0
        assert all(env.observation_space.contains(h[0]) for h in history)
        histories.append(history)
    for a, b in zip(*histories, strict=True):
        for name, value in a[0].items(): assert np.allclose(value, b[0][name], rtol=1e-4, atol=1e-4), name
        assert (a[1]["widths"] == b[1]["widths"]).all() and np.allclose(a[1]["accuracy"], b[1]["accuracy"])
        if a[2] is not None: assert np.allclose(a[2], b[2], rtol=1e-6) and (a[3] == b[3]).all()


@cuda
def test_networks_are_compressed_alike(data, networks):
    played = []
    for device in ("cpu", DEVICE):
        table, twins = moved(data, networks, device, torch.float64)
        played.append(compress_networks(None, twins, table, RULES.replace(recovery="refit"), 0, "random"))
    for (a, _), (b, _) in zip(*played, strict=True):
        assert a.actions == b.actions and np.allclose(a.rewards, b.rewards, rtol=1e-6) and on(b.network) == {DEVICE}
        assert a.network.architecture == b.network.architecture


@cuda
def test_an_agent_learns_from_networks_on_the_device(data, networks):
    table, twins = moved(data, networks, DEVICE)
    agent = train_agent(twins, table, RULES.replace(recovery="refit"), AgentConfig(episodes=8), progress=False)
    assert len(agent.log) == 8
    assert all(np.isfinite(entry["return"]) and np.isfinite(entry["critic_loss"]) for entry in agent.log)
    for trajectory, _ in compress_networks(agent.actor, twins, table, RULES, 0):
        assert on(trajectory.network) == {DEVICE} and len(trajectory.rewards) == 2*trajectory.network.architecture.depth


@cuda
def test_a_run(tmp_path):
    config = RunConfig("iris", n_networks=3, n_test=1, passes=1, episodes=4)
    tables = run(config, tmp_path, progress=False)
    assert [len(t) for t in tables] == [2, 1] and all((t.compression_ratio >= 1).all() for t in tables)
    again = run(config.replace(device="cpu"), tmp_path, progress=False)
    for a, b in zip(tables, again, strict=True): assert (a.architecture_before == b.architecture_before).all()


# Anywhere: the device "meta" has shapes and no numbers

SHORT = RULES.replace(passes=1, refit_epochs=2, training=STEP.replace(epochs=2))


class OneDevice(TorchDispatchMode):
    "No operation takes tensors from two devices, other than to copy or to index; numbers that are read are random."
    may_mix = ("copy_", "_to_copy", "index", "index_put_")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function.overloadpacket.__name__
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        devices = {t.device.type for t in tensors if t.dim()}
        assert len(devices) < 2 or name in self.may_mix, f"{name} mixes {sorted(devices)}"
        if "meta" in {t.device.type for t in tensors}:
            if name == "_local_scalar_dense":
                return torch.rand(()).to(tensors[0].dtype).item() if tensors[0].dtype != torch.bool else True
            if name == "_to_copy" and str(kwargs.get("device")) == "cpu":
                return torch.rand(tensors[0].shape).to(tensors[0].dtype)
            if name == "copy_" and tensors[0].device.type == "cpu": return tensors[0]
        return function(*args, **kwargs)


@pytest.fixture
def elsewhere(data, networks, monkeypatch):
    "Data and networks on a device whose random numbers are drawn by the CPU."
    streams = []

    def stream(*names, device="cpu"):
        streams.append((names[1], torch.device(device).type))
        return torch_generator(*names)
    monkeypatch.setattr(training, "torch_generator", stream)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    torch.manual_seed(0)
    with_dropout = build_network(Architecture(4, (Layer(9, before=("dropout",)),
                                                  Layer(7, "sigmoid", (), ("dropout",)), Layer(2, "identity"))))
    with OneDevice(): yield moved(data, [*networks, with_dropout], "meta")
    dropout = {kind for name, kind in streams if name == "dropout"}
    assert dropout <= {"meta"}, "dropout is drawn on another device than the data's"


@pytest.mark.parametrize("average", [0.0, 1.0])
def test_training_stays_on_the_device(elsewhere, average):
    data, networks = elsewhere
    stack = [networks[i] for i in (0, 1, 2, 4)]
    results = train_stack(stack, *parts(data), STEP.replace(epochs=6, average=average), 0, range(4))
    assert len({r.epochs for r in results}) > 1 and all(on(r.network) == {"meta"} for r in results)


@pytest.mark.parametrize("recovery, importance",
                         [("replace", None), ("slice", "l1"), ("slice", "taylor"), ("refit", "l2"),
                                                  ("refit", "spread")])
def test_episodes_stay_on_the_device(elsewhere, recovery, importance):
    data, networks = elsewhere
    rules = SHORT.replace(recovery=recovery, importance=importance, recovery_rows=50,
                          new_layers_only=importance != "taylor")
    env = PruningVectorEnv(networks, data, rules, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0, options={"networks": range(5)})
    while not all(e.terminated for e in env.episodes): env.step(np.full(5, 3))
    assert all(on(e.state.network) == {"meta"} for e in env.episodes)


def test_a_policy_needs_no_device(elsewhere):
    data, networks = elsewhere
    for trajectory, _ in compress_networks(Agent(5).actor, networks[:2], data, SHORT, 0):
        assert on(trajectory.network) == {"meta"}


def test_units_may_be_a_list_on_any_device(elsewhere):
    _, networks = elsewhere
    H = torch.empty(50, 24, device="meta")
    assert refit_units(networks[0], 0, [0, 3, 4], H, H).architecture.widths == (4, 3, 16, 2)
