"""What `parse_network` understands, by kinds: what PyTorch puts around a weight, how people spell a forward pass,
activations and norms, wrappers. Each network is random, and what is read is compared with it on fresh rows."""
import pickle
import time
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from neon.compression.export import to_onnx
from neon.foundations.activations import make_activation, register_activation
from neon.foundations.core import NeonError, TrainingConfig, to_json
from neon.foundations.heads import dense_head
from neon.foundations.networks import (
    Architecture,
    DenseNetwork,
    Layer,
    build_network,
    load_network,
    network_facts,
    parse_network,
    save_network,
    unwrap_module,
)
from neon.foundations.surgery import fold_norms
from neon.foundations.training import AnnealConfig, Stack, anneal, train_networks

L, S = nn.Linear, nn.Sequential


def rows(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def largest_difference(module: nn.Module, x: torch.Tensor, parsed: DenseNetwork) -> float:
    module.eval()
    with torch.no_grad():
        y = module(x).float()
        return float((parsed(x.flatten(1).float()) - y.view(len(x), -1)).abs().max())


def assert_same(module: nn.Module, x: torch.Tensor | None = None, tolerance: float = 1e-5) -> DenseNetwork:
    "Parse, compare on fresh rows, return what was parsed."
    x = rows(50, 6) if x is None else x
    parsed = parse_network(module, x[:20])
    assert largest_difference(module, x, parsed) < tolerance
    return parsed


def mlp(*between: nn.Module, **sizes: int) -> S:
    "6-8-3 with something between its layers."
    return S(L(6, 8), *(between or (nn.ReLU(),)), L(8, 3))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# --- E: what PyTorch puts around a weight ---------------------------------------------------------------------------

def with_hook(module: nn.Module, hook, pre: bool = False, at: int = 0) -> nn.Module:
    register = module[at].register_forward_pre_hook if pre else module[at].register_forward_hook
    register(hook)
    return module


class Symmetric(nn.Module):
    def forward(self, w): return w.triu() + w.triu(1).T


class Doubled(nn.Module):
    def forward(self, w): return 2*w.tanh()


def symmetric() -> nn.Module:
    module = S(L(6, 6), nn.ReLU(), L(6, 3))
    parametrize.register_parametrization(module[0], "weight", Symmetric())
    return module


def pruned_and_normed() -> nn.Module:
    module = S(parametrizations.weight_norm(L(6, 8)), nn.ReLU(), L(8, 3))
    prune.random_unstructured(module[2], "weight", 0.3)
    prune.random_unstructured(module[2], "bias", 0.3)
    return module


def parametrised(how) -> nn.Module:
    module = mlp()
    parametrize.register_parametrization(module[0], "weight", how)
    parametrize.register_parametrization(module[0], "bias", how)
    return module


def pruned(method, **options) -> nn.Module:
    module = mlp()
    for i in (0, 2): method(module[i], "weight", **options)
    return module


def globally_pruned() -> nn.Module:
    module = mlp()
    prune.global_unstructured([(module[0], "weight"), (module[2], "weight")], prune.L1Unstructured, amount=0.5)
    return module


def old_style(norm) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return S(norm(L(6, 8)), nn.ReLU(), L(8, 3))


class Masked(nn.Linear):
    "A linear map with a mask of its own."
    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out)
        self.register_buffer("mask", (torch.rand(n_out, n_in) > 0.5).float())

    def forward(self, x): return F.linear(x, self.weight*self.mask, self.bias)


class LoRA(nn.Module):
    "A frozen layer and a low-rank change of it."
    def __init__(self):
        super().__init__()
        self.base, self.a, self.b = L(6, 8), L(6, 2, bias=False), L(2, 8, bias=False)

    def forward(self, x): return self.base(x) + 0.5*self.b(self.a(x))


AROUND = {
    "l1 pruning": lambda: pruned(prune.l1_unstructured, amount=0.5),
    "random pruning": lambda: pruned(prune.random_unstructured, amount=3),
    "structured pruning": lambda: pruned(prune.ln_structured, amount=0.5, n=2, dim=0),
    "a mask of one's own": lambda: pruned(prune.identity),
    "global pruning": globally_pruned,
    "weight norm": lambda: S(parametrizations.weight_norm(L(6, 8)), nn.Tanh(), L(8, 3)),
    "weight norm, the old one": lambda: old_style(nn.utils.weight_norm),
    "spectral norm": lambda: S(parametrizations.spectral_norm(L(6, 8)), nn.ReLU(), L(8, 3)),
    "spectral norm, the old one": lambda: old_style(nn.utils.spectral_norm),
    "orthogonal": lambda: S(parametrizations.orthogonal(L(6, 6)), nn.ReLU(), L(6, 3)),
    "a symmetric weight": symmetric,
    "weight and bias parametrised": lambda: parametrised(Doubled()),
    "pruning and weight norm": pruned_and_normed,
    "hook on the output": lambda: with_hook(mlp(), lambda m, i, o: 2*o),
    "hook on the input": lambda: with_hook(mlp(), lambda m, i: (i[0] - 1,), pre=True),
    "hook on an activation": lambda: with_hook(mlp(), lambda m, i, o: o*0.5, at=1),
    "hook on the last layer": lambda: with_hook(mlp(), lambda m, i, o: o + 1, at=2),
    "hook that only looks": lambda: with_hook(mlp(), lambda m, i, o: None),
    "masked layers": lambda: S(Masked(6, 8), nn.ReLU(), Masked(8, 3)),
    "a low-rank change": lambda: S(LoRA(), nn.ReLU(), L(8, 3)),
    "one layer twice": lambda: (lambda again: S(L(6, 8), nn.ReLU(), again, nn.ReLU(), again, L(8, 3)))(L(8, 8)),
}


@pytest.mark.parametrize("kind", AROUND)
def test_what_stands_around_a_weight(kind):
    parsed = assert_same(AROUND[kind]())
    assert parsed.architecture.widths[0] == 6 and parsed.architecture.n_outputs == 3


def test_a_hook_on_the_whole_module():
    module = mlp()
    module.register_forward_hook(lambda m, i, o: o*3 - 1)
    assert_same(module)


@pytest.mark.parametrize("hook, words", [
    (lambda m, i, o: o + torch.randn_like(o), "other outputs when it is called again"),
    (lambda m, i, o: o - o.mean(0), "does not simply follow"),
    (lambda m, i, o: o*o.detach().numpy().mean(), "does not depend|computes something else|does not simply"),
    (lambda m, i, o: F.layer_norm(o, (8,)), "layer_norm"),
])
def test_hooks_that_make_it_no_chain_are_refused(hook, words):
    with pytest.raises(NeonError, match=words): parse_network(with_hook(mlp(), hook))


# --- F: spellings ---------------------------------------------------------------------------------------------------

class Spelt(nn.Module):
    "6-8-8-3 with whatever a test puts around its layers."
    def __init__(self, before=lambda x: x, act=F.relu, after=lambda x: x):
        super().__init__()
        self.a, self.b, self.c = L(6, 8), L(8, 8), L(8, 3)
        self.before, self.act, self.after = before, act, after

    def forward(self, x): return self.after(self.c(self.act(self.b(self.act(self.a(self.before(x)))))))


class Keywords(Spelt):
    def forward(self, X, lengths=None, **kwargs): return super().forward(X)


class Branching(Spelt):
    def forward(self, x):
        assert x.shape[-1] == 6, "six features"
        if x.dim() == 1: x = x[None]
        if self.training: x = x + torch.randn_like(x)
        return super().forward(x.float())


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([L(6, 8), L(8, 8), L(8, 3)])

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < len(self.layers) - 1: x = torch.relu_(x)
        return x


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"in": L(6, 8), "out": L(8, 3)})
        self.acts = nn.ModuleDict({"relu": nn.ReLU(), "tanh": nn.Tanh()})

    def forward(self, x): return self.layers["out"](self.acts["tanh"](self.layers["in"](x)))


class Parameters(nn.Module):
    "Weights without layers."
    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(8, 3))
        self.b = nn.Parameter(torch.randn(8))

    def forward(self, x): return torch.relu(F.linear(x, self.w, self.b)) @ self.v


class Einsum(Parameters):
    def forward(self, x):
        hidden = torch.relu(torch.einsum("ni,hi->nh", x, self.w) + self.b)
        return torch.einsum("nh,ho->no", hidden, self.v)


class Columns(Parameters):
    "Units as rows, samples as columns."
    def forward(self, x): return (self.v.T @ torch.relu(self.w @ x.T + self.b[:, None])).T


class Standardised(Spelt):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("std", torch.rand(6) + 0.5)

    def forward(self, x): return super().forward((x - self.mean)/(self.std + 1e-8))*10 + 3


class Chosen(nn.Module):
    "Reads some columns, twice."
    def __init__(self):
        super().__init__()
        self.a, self.b = L(5, 8), L(8, 3)

    def forward(self, x): return self.b(torch.relu(self.a(torch.cat([x[:, [0, 2, 5]], x[:, 3:5]], 1))))


class Towers(nn.Module):
    "Two towers of one layer each, joined before the activation."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = L(3, 4), L(3, 4), L(8, 3)

    def forward(self, x): return self.c(torch.relu(torch.cat([self.a(x[:, :3]), self.b(x[:, 3:])], 1)))


class MixedNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = L(6, 8, bias=False), L(8, 3)
        self.n, self.m = stirred(nn.BatchNorm1d(8)), stirred(nn.BatchNorm1d(3, affine=False))

    def forward(self, x): return self.m(self.b(F.silu(self.n(self.a(x)))))


def stable_softmax(x):
    e = torch.exp(x - x.amax(1, keepdim=True))
    return e/e.sum(1, keepdim=True)


SPELLINGS = {
    "F.leaky_relu": lambda: Spelt(act=F.leaky_relu),
    "F.leaky_relu(x, 0.2)": lambda: Spelt(act=lambda x: F.leaky_relu(x, 0.2)),
    "in place": lambda: Spelt(act=lambda x: F.relu(x, inplace=True)),
    "x.relu_()": lambda: Spelt(act=lambda x: x.relu_()),
    "x.clamp(min=0)": lambda: Spelt(act=lambda x: x.clamp(min=0)),
    "torch.maximum": lambda: Spelt(act=lambda x: torch.maximum(x, torch.zeros_like(x))),
    "x*(x > 0)": lambda: Spelt(act=lambda x: x*(x > 0)),
    "torch.where": lambda: Spelt(act=lambda x: torch.where(x > 0, x, 0.1*x)),
    "x*sigmoid(x)": lambda: Spelt(act=lambda x: x*torch.sigmoid(x)),
    "1/(1 + exp(-x))": lambda: Spelt(act=lambda x: 1/(1 + torch.exp(-x))),
    "1.7159*tanh(2/3*x)": lambda: Spelt(act=lambda x: 1.7159*torch.tanh(2/3*x)),
    "F.dropout(x, 0.3, self.training)": lambda: Spelt(act=lambda x: F.dropout(F.relu(x), 0.3, False)),
    "view(x.size(0), -1)": lambda: Spelt(before=lambda x: x.view(x.size(0), -1)),
    "view(-1, 6)": lambda: Spelt(before=lambda x: x.view(-1, 6)),
    "torch.flatten(x, 1)": lambda: Spelt(before=lambda x: torch.flatten(x, 1)),
    "reshape(len(x), -1)": lambda: Spelt(before=lambda x: x.reshape(len(x), -1)),
    "x.float().contiguous()": lambda: Spelt(before=lambda x: x.float().contiguous()),
    "x.to(device)": lambda: Spelt(before=lambda x: x.to("cpu", torch.float32)),
    "nan_to_num": lambda: Spelt(before=torch.nan_to_num),
    "min-max scaling": lambda: Spelt(before=lambda x: (x + 3)/6*2 - 1),
    "F.softmax at the end": lambda: Spelt(after=lambda x: F.softmax(x, dim=-1)),
    "log_softmax at the end": lambda: Spelt(after=lambda x: x.log_softmax(1)),
    "softmax by hand": lambda: Spelt(after=lambda x: torch.exp(x)/torch.exp(x).sum(1, keepdim=True)),
    "stable softmax by hand": lambda: Spelt(after=stable_softmax),
    "x - logsumexp": lambda: Spelt(after=lambda x: x - torch.logsumexp(x, 1, keepdim=True)),
    "exp of log_softmax": lambda: Spelt(after=lambda x: F.log_softmax(x, 1).exp()),
    "softmin": lambda: Spelt(after=lambda x: F.softmin(x, 1)),
    "sigmoid at the end": lambda: Spelt(after=torch.sigmoid),
    "temperature": lambda: Spelt(after=lambda x: x/0.7),
    "2*tanh at the end": lambda: Spelt(after=lambda x: 2*torch.tanh(x) + 1),
    "contiguous, clone, detach": lambda: Spelt(after=lambda x: x.contiguous().clone().detach()),
    "**kwargs": Keywords, "if and assert": Branching, "ModuleList": Listed, "ModuleDict": Named,
    "parameters and @": Parameters, "einsum": Einsum, "units as rows": Columns,
    "standardising with buffers": Standardised, "chosen columns": Chosen, "two towers": Towers,
    "norms by hand": MixedNorms,
    "linear layers in a row": lambda: S(L(6, 4), L(4, 8), nn.ReLU(), L(8, 3)),
    "Flatten between": lambda: S(L(6, 8), nn.ReLU(), nn.Flatten(), L(8, 3)),
    "nested": lambda: S(S(L(6, 8), nn.ReLU()), S(S(L(8, 8), nn.Tanh()), nn.Identity()), L(8, 3)),
}


@pytest.mark.parametrize("kind", SPELLINGS)
def test_spellings(kind):
    parsed = assert_same(SPELLINGS[kind](), tolerance=2e-5)
    assert parsed.architecture.depth >= 1


def test_one_number_per_row():
    module = S(L(6, 8), nn.ReLU(), L(8, 1), nn.Flatten(0))
    parsed = assert_same(module)
    assert parsed.architecture.n_outputs == 1


def test_images():
    x = rows(20, 2, 3, 4)
    for module in (S(nn.Flatten(), L(24, 8), nn.ReLU(), L(8, 3)), Image()):
        parsed = parse_network(module, x)
        assert largest_difference(module, x, parsed) < 1e-5


class Image(nn.Module):
    "Needs four dimensions."
    def __init__(self):
        super().__init__()
        self.a, self.b = L(24, 8), L(8, 3)

    def forward(self, x):
        n, c, h, w = x.shape
        return self.b(F.relu(self.a(((x - 0.5)/0.25).permute(0, 2, 3, 1).reshape(n, -1))))


def test_rows_need_not_be_normal():
    x = rows(300, 6)*torch.tensor([1, 10, 100, 1e-3, 1, 1]) + 5
    module = Spelt()
    assert largest_difference(module, x, parse_network(module, x)) < 1e-4
    with pytest.raises(NeonError, match="takes rows of 6 features, got an array of shape .9, 5."):
        parse_network(mlp(), rows(9, 5))


def test_dropouts():
    module = S(nn.Dropout(0.1), L(6, 8), nn.Dropout(0.3), nn.SELU(), nn.AlphaDropout(0.1), nn.Dropout(0.2),
               L(8, 3), nn.LogSoftmax(1))
    layers = assert_same(module).architecture.layers
    assert layers[0] == Layer(8, "selu", ("dropout",), ("dropout",), 0.1)
    assert layers[1] == Layer(3, "log_softmax", ("dropout",), (), 0.1)


# --- G: activations and norms ---------------------------------------------------------------------------------------

ACTIVATIONS = [nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.LeakyReLU(0.2), nn.PReLU(), nn.PReLU(init=0.07), nn.RReLU(),
               nn.ELU(), nn.ELU(0.5), nn.CELU(0.1), nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(),
               nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.Softplus(2, 10), nn.Softsign(), nn.Hardtanh(),
               nn.Hardtanh(-2, 3),
               nn.Hardsigmoid(), nn.Hardswish(), nn.LogSigmoid(), nn.Tanhshrink(), nn.Softshrink(), nn.Softshrink(0.2),
               nn.Hardshrink(0.3), nn.Threshold(0.1, 0.2)]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations(activation, tmp_path):
    parsed = assert_same(mlp(activation))
    traced = assert_same(with_hook(mlp(activation), lambda m, i, o: 1.5*o))
    assert traced.architecture.layers[0].activation == parsed.architecture.layers[0].activation
    save_network(parsed, tmp_path/"net")
    torch.testing.assert_close(load_network(tmp_path/"net")(rows(9, 6)), parsed(rows(9, 6)), rtol=0, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_onnx_export_of_activations(activation, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    parsed, x = parse_network(mlp(activation, nn.BatchNorm1d(8))), 3*rows(40, 6)
    to_onnx(parsed, tmp_path/"net.onnx")
    y, = runtime.InferenceSession(tmp_path/"net.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(y, parsed(x).detach().numpy(), atol=1e-5, rtol=1e-5)


def test_onnx_export_of_log_softmax_and_refusal(tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    parsed, x = parse_network(S(*mlp(), nn.LogSoftmax(1))), rows(40, 6)
    for probabilities, wanted in ((False, parsed(x)), (True, parsed(x).exp())):
        to_onnx(parsed, tmp_path/"net.onnx", probabilities=probabilities)
        session = runtime.InferenceSession(tmp_path/"net.onnx", providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], wanted.detach().numpy(), atol=1e-5)
    with pytest.raises(NeonError, match=r"activation 'quick_.*' cannot be exported to ONNX"):
        to_onnx(parse_network(mlp(Quick())), tmp_path/"net.onnx")


class Quick(nn.Module):
    def forward(self, x): return x*torch.sigmoid(1.702*x)


class Snake(nn.Module):
    def forward(self, x): return x + torch.sin(x)**2


@pytest.mark.parametrize("activation", [Quick(), Snake()], ids=["quick", "snake"])
def test_an_activation_of_ones_own_is_kept(activation, tmp_path):
    parsed = assert_same(S(L(6, 8), activation, L(8, 8), activation, L(8, 3)))
    name = parsed.architecture.layers[0].activation
    assert name.startswith(type(activation).__name__.lower() + "_")
    x, y = rows(200, 6), torch.arange(200) % 3
    narrow = build_network(Architecture(6, (Layer(5, name), Layer(8, "softplus"), Layer(3, "identity"))))
    trained = train_networks([parsed, narrow], x, y, x, y, TrainingConfig(2), 0)
    assert all(np.isfinite(result.validation_loss) for result in trained)
    annealed = anneal([parsed, narrow], x, y, AnnealConfig(5))
    assert torch.isfinite(annealed[1](x)).all()
    save_network(parsed, tmp_path/"net")
    torch.testing.assert_close(load_network(tmp_path/"net")(x), parsed(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(parsed))(x), parsed(x))


def test_loading_says_what_to_register(tmp_path):
    network = build_network(Architecture(6, (Layer(5), Layer(3, "identity"))))
    save_network(network, tmp_path/"net")
    description = to_json(network_facts(tmp_path/"net")).replace('"relu"', '"sine_wave"')
    save_file(network.state_dict(), tmp_path/"net.safetensors", {"network": description})
    with pytest.raises(NeonError, match=r"unknown activation 'sine_wave'.*register_activation\('sine_wave', factory\)"):
        load_network(tmp_path/"net")
    register_activation("sine_wave", SineWave)
    x = rows(4, 6)
    torch.testing.assert_close(load_network(tmp_path/"net").layers[0](x), torch.sin(network.layers[0].linear(x)))
    assert parse_network(mlp(SineWave())).architecture.layers[0].activation == "sine_wave"


class SineWave(nn.Module):
    def forward(self, x): return torch.sin(x)


def test_stacks_tell_slopes_apart():
    shapes = [("leaky_relu(0.2)", 5), ("leaky_relu", 8), ("softplus", 3), ("hardsigmoid", 8), ("gelu(tanh)", 4)]
    layers = [(Layer(w, text), Layer(4, text), Layer(3, "identity")) for text, w in shapes]
    networks = [build_network(Architecture(6, each)) for each in layers]
    x = rows(10, 6)
    stacked = Stack(networks)(x[None])
    for network, y in zip(networks, stacked, strict=True):
        torch.testing.assert_close(network(x), y, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_ordinary_modules_keep_their_norms(activation):
    norm = stirred(nn.BatchNorm1d(8))
    module = S(nn.Dropout(0.2), L(6, 8), norm, activation, nn.Dropout(0.2), L(8, 3), nn.Softmax(1))
    first, last = assert_same(module).architecture.layers
    assert first == Layer(8, first.activation, ("dropout",), ("batchnorm",), 0.2)
    assert last == Layer(3, "softmax", ("dropout",), (), 0.2)


def test_norms():
    norm = stirred(nn.BatchNorm1d(8, eps=1e-2))
    bare = nn.BatchNorm1d(8, affine=False)
    for between in ((norm, nn.ReLU()), (nn.ReLU(), norm), (bare, nn.ReLU()), (norm, bare, nn.ReLU()),
                    (norm, nn.Dropout(), norm), (nn.ReLU(), norm, bare)):
        parsed = assert_same(mlp(*between))
        assert largest_difference(parsed, rows(50, 6), fold_norms(parsed)) < 1e-5


REFUSED = {
    "layer norm": (lambda: mlp(nn.LayerNorm(8), nn.ReLU()), "layer '1' .LayerNorm"),
    "group norm": (lambda: mlp(nn.GroupNorm(2, 8), nn.ReLU()), "layer '1' .GroupNorm"),
    "RMS norm": (lambda: mlp(nn.RMSNorm(8)), "layer '1' .RMSNorm"),
    "slopes per unit": (lambda: mlp(slopes()), "layer '1' .PReLU"),
    "GLU": (lambda: S(L(6, 16), nn.GLU(), L(8, 3)), "layer '1' .GLU"),
    "softmax within": (lambda: mlp(nn.Softmax(1)), "softmax may only be the last|layer '1' .Softmax"),
    "activation first": (lambda: S(nn.Tanh(), *mlp()), "'0' .Tanh.* does not follow a linear layer"),
    "two activations with a norm between": (lambda: mlp(nn.ReLU(), stirred(nn.BatchNorm1d(8)), nn.Tanh()),
                                            "'3' .Tanh.* does not follow a linear layer"),
    "residual": (lambda: Residual(), "layer 'add' .in Residual. does not simply follow"),
    "max pooling": (lambda: mlp(nn.Unflatten(1, (1, 8)), nn.MaxPool1d(2), nn.Flatten(), L(4, 8)), "'2' .MaxPool1d"),
    "convolution": (lambda: S(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.Flatten(), nn.ReLU(), L(16, 3)),
                    "'1' .Conv1d"),
    "embedding": (lambda: Embedded(), "embedding"),
    "gated": (lambda: Gated(), "layer 'mul' .in Gated."),
    "batch statistics": (lambda: mlp(nn.BatchNorm1d(8, track_running_stats=False)), "layer '1' .BatchNorm1d"),
    "dropout that never rests": (lambda: Spelt(after=lambda x: F.dropout(x, 0.5)), "called again, in evaluation mode"),
    "two outputs": (lambda: Spelt(after=lambda x: (x, x)), "returns a tuple"),
    "decides by values": (lambda: Spelt(after=lambda x: x if x.sum() > 0 else -x), "looks at the values"),
    "one layer at many places": (lambda: Shared(), "does not simply follow"),
    "no linear layer": (lambda: S(nn.Flatten(), nn.ReLU()), "no linear layer"),
    "a layer that does not fit": (lambda: S(L(6, 8), nn.ReLU(), L(7, 3)), "layer '2' expects 7 inputs but receives 8"),
}


def stirred(norm: nn.BatchNorm1d) -> nn.BatchNorm1d:
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def slopes() -> nn.PReLU:
    module = nn.PReLU(8)
    with torch.no_grad(): module.weight.copy_(torch.linspace(0, 1, 8))
    return module


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = L(6, 6), L(6, 3)

    def forward(self, x): return self.b(x + torch.relu(self.a(x)))


class Gated(Residual):
    def forward(self, x): return self.b(torch.sigmoid(self.a(x))*x)


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.look, self.a = nn.Embedding(50, 4), L(24, 3)

    def forward(self, x): return self.a(self.look(x.abs().long()).flatten(1))


class Shared(nn.Module):
    "The same small layer on each of eight parts of the row."
    def __init__(self):
        super().__init__()
        self.a, self.b = L(6, 48), L(48, 3)
        self.part = L(6, 6)

    def forward(self, x): return self.b(torch.relu(self.part(torch.relu(self.a(x)).view(-1, 8, 6))).flatten(1))


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals_name_the_place(kind):
    make, words = REFUSED[kind]
    with pytest.raises(NeonError, match=words): parse_network(make(), rows(20, 6))


# --- H: wrappers ----------------------------------------------------------------------------------------------------

class Ema(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module, self.decay = module, 0.99

    def forward(self, x): return self.module(x)


class Lit(nn.Module):
    def __init__(self):
        super().__init__()
        self.model, self.loss = mlp(), nn.CrossEntropyLoss()

    def forward(self, x): return self.model(x)

    def training_step(self, batch): return self.loss(self(batch[0]), batch[1])


def compiled_in_place() -> nn.Module:
    module = mlp()
    module.compile(backend="eager")
    return module


WRAPPERS = {
    "torch.compile": lambda: torch.compile(mlp(), backend="eager"),
    "module.compile()": compiled_in_place,
    "a compiled part": lambda: S(torch.compile(S(L(6, 8), nn.ReLU()), backend="eager"), L(8, 3)),
    "DataParallel": lambda: nn.DataParallel(mlp()),
    "both": lambda: torch.compile(nn.DataParallel(mlp()), backend="eager"),
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(mlp()),
    "moving average": lambda: Ema(mlp(nn.Tanh())),
    "Lightning": Lit,
    "script": lambda: torch.jit.script(mlp()),
    "script, frozen": lambda: torch.jit.freeze(torch.jit.script(mlp().eval())),
    "trace": lambda: torch.jit.trace(mlp().eval(), rows(5, 6)),
    "float64": lambda: mlp().double(),
    "in a list": lambda: S(nn.ModuleList([mlp()])[0]),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers(kind):
    module = WRAPPERS[kind]()
    dtype = next(module.parameters(), torch.zeros(())).dtype
    x = rows(50, 6)
    parsed = parse_network(module, x if "frozen" in kind else None)
    with torch.no_grad(): y = (module if "frozen" in kind else module.eval())(x.to(dtype)).float()
    assert float((parsed(x) - y).abs().max()) < 1e-5
    assert {p.dtype for p in parsed.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    whole = mlp().to(dtype)
    parsed = parse_network(whole)
    torch.testing.assert_close(parsed.layers[0].linear.weight, whole[0].weight.float(), rtol=0, atol=0)
    assert parse_network(Spelt().to(dtype)).architecture.depth == 2


def test_unwrapping():
    inner = mlp()
    for module in (torch.compile(inner, backend="eager"), nn.DataParallel(inner), Ema(Ema(inner)), inner):
        assert unwrap_module(module) is inner
    assert type(unwrap_module(torch.optim.swa_utils.AveragedModel(inner))) is S


@pytest.mark.parametrize("what, words", [
    (mlp().state_dict(), "state_dict.*load_state_dict.*neon compress file.pt"),
    (dict(mlp().state_dict()), "state_dict"),
    ("net.pt", "expected a torch module, got str"),
    (None, "expected a torch module, got NoneType"),
])
def test_what_is_no_module_is_refused(what, words):
    with pytest.raises(NeonError, match=words): parse_network(what)


def test_the_module_is_left_alone():
    for module in (mlp(nn.BatchNorm1d(8), nn.Dropout()), Spelt(), AROUND["spectral norm"]().train()):
        module.train()
        before = {name: value.clone() for name, value in module.state_dict().items()}
        flags, state = [m.training for m in module.modules()], torch.get_rng_state()
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()]
        parse_network(module)
        assert torch.equal(torch.get_rng_state(), state)
        assert [m.training for m in module.modules()] == flags
        assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()] == hooks
        assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
        assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_parsing_takes_milliseconds():
    module, traced = mlp(), SPELLINGS["if and assert"]()
    for m, limit in ((module, 0.1), (traced, 1.0)):
        parse_network(m)
        start = time.process_time()
        parse_network(m)
        assert time.process_time() - start < limit


# --- Heads ----------------------------------------------------------------------------------------------------------

class ConvNet(nn.Module):
    "Functions between the layers."
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3)
        self.norm, self.fc1, self.fc2 = nn.BatchNorm2d(4), L(32, 16), L(16, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv1(x))), 1)
        x = F.relu(self.conv2(x)).mean(3)
        x = F.dropout(torch.flatten(x, 1), 0.2, self.training)
        return F.log_softmax(self.fc2(F.relu(self.fc1(x))), 1)


class Tabular(nn.Module):
    def __init__(self):
        super().__init__()
        self.looks = nn.ModuleList([nn.Embedding(5, 3), nn.Embedding(7, 2)])
        self.norm = nn.LayerNorm(9)
        self.mlp = S(L(9, 16), nn.ReLU(), nn.Dropout(0.1), L(16, 8), nn.ReLU(), L(8, 2))

    def forward(self, x):
        looked = [look(x[:, i].long()) for i, look in enumerate(self.looks)]
        return self.mlp(self.norm(torch.cat([*looked, x[:, 2:]], 1)))


@pytest.mark.parametrize("module, x, widths", [
    (ConvNet(), rows(20, 1, 8, 8), "32-16-10"),
    (Tabular(), torch.rand(30, 6, generator=torch.Generator().manual_seed(0))*5, "9-16-8-2"),
    (S(nn.Tanh(), *mlp()), rows(20, 6), "6-8-3"),
    (mlp(nn.LayerNorm(8), nn.ReLU(), L(8, 8), nn.GELU()), rows(20, 6), "8-8-3"),
], ids=["convolutional", "embeddings", "activation first", "after a norm"])
def test_heads(module, x, widths):
    found = dense_head(module, x)
    features, head, replace = found
    assert str(head.architecture) == widths
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(head(features(x)), module(x), atol=1e-5, rtol=1e-4)
        small = build_network(Architecture(head.architecture.n_inputs, (Layer(3), head.architecture.layers[-1])))
        smaller = replace(small).eval()
        for n in (20, 7, 1): torch.testing.assert_close(smaller(x[:n]), small(features(x[:n])))
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in module.parameters())


def test_no_head():
    assert dense_head(S(nn.Conv1d(1, 2, 3), nn.Flatten(), L(4, 2)), rows(5, 1, 4)) is None
    assert dense_head(Residual(), rows(5, 6)) is None


# --- K ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("inputs", [None, (0, 2, 5)])
def test_networks_can_be_scripted(inputs):
    network = build_network(Architecture(6, (Layer(3, "leaky_relu(0.2)"), Layer(2, "log_softmax")), inputs))
    assert torch.equal(torch.jit.script(network)(rows(9, 6)), network(rows(9, 6)))


def test_bad_activations():
    for text, words in (("swish", "unknown activation 'swish'"), ("relu(", "is not an activation"),
                        ("relu6(1, 2)", "cannot be made")):
        with pytest.raises(NeonError, match=words): make_activation(text)
