"Networks from files of others: what is read computes the same; what is refused says what to do; nothing is run."
import importlib.util
import json
import os
import pickle
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from torch import nn
from torch.nn.utils import prune

from neon.compression import files
from neon.compression.files import read_model, read_model_file
from neon.foundations.core import NeonError, torch_generator
from neon.foundations.networks import Architecture, Layer, build_network, parse_network, save_network

ROWS = torch.randn(32, 4, generator=torch_generator(0, "rows"))


def settled(module: nn.Module) -> nn.Module:
    "A module whose batch norms have seen rows."
    for _ in range(10): module(2*ROWS + 1)
    return module.eval()


def same(network: nn.Module, expected, rows=ROWS) -> bool:
    "Are the outputs those that are expected?"
    with torch.no_grad(): return np.allclose(network(rows).numpy(), np.asarray(expected), atol=1e-4)


def outputs(module: nn.Module) -> np.ndarray:
    with torch.no_grad(): return module(ROWS).numpy()


def refusal(path, activations=None) -> str:
    "What is said of a file that cannot be read."
    with pytest.raises(NeonError) as told: read_model(path, activations)
    text = str(told.value)
    assert "\n" not in text and path.name in text
    return text


# Weights by name

class Named(nn.Module):
    "Layers with names of their own."

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"first": nn.Linear(4, 6), "norm": nn.BatchNorm1d(6)})
        self.head = nn.Linear(6, 3, bias=False)

    def forward(self, x): return self.head(torch.relu(self.body["norm"](self.body["first"](x))))


SHAPES = {
    "plain": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), "relu"),
    "one layer": (lambda: nn.Sequential(nn.Linear(4, 3)), None),
    "an activation at the end": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1), nn.Sigmoid()),
                                 "tanh,sigmoid"),
    "no bias": (lambda: nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)), "relu"),
    "norms before": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ELU(),
                                           nn.Linear(6, 3)), "elu"),
    "norms after, no affine": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6, affine=False),
                                                     nn.Linear(6, 3)), ["relu"]),
    "dropout between": (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.GELU(), nn.Dropout(0.3),
                                              nn.Linear(6, 3)), "gelu"),
    "double": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double(), "relu"),
    "names of their own": (Named, "relu"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_state_dict(seed, tmp_path, name):
    make, activations = SHAPES[name]
    theirs = make() if name == "double" else settled(make())
    torch.save(theirs.state_dict(), tmp_path/"model.pt")
    network = read_model(tmp_path/"model.pt", activations)
    expected = theirs(ROWS.double()).detach() if name == "double" else outputs(theirs)
    assert same(network, expected) and not network.training
    if name == "no bias": assert network.architecture.n_params == 4*6 + 6*3


def test_checkpoints_prefixes_masks_and_buffers(seed, tmp_path):
    theirs = settled(SHAPES["norms before"][0]())
    weights = {f"_orig_mod.module.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": weights, "loss": [0.5, 0.25]}, tmp_path/"last.ckpt")
    assert same(read_model(tmp_path/"last.ckpt", "elu"), outputs(theirs))
    pruned = SHAPES["plain"][0]()
    prune.l1_unstructured(pruned[0], "weight", amount=0.5)
    torch.save(pruned.state_dict(), tmp_path/"pruned.pth")
    assert same(read_model(tmp_path/"pruned.pth", "relu"), outputs(pruned))


def test_plain_safetensors_in_the_order_of_their_numbers(seed, tmp_path):
    theirs = nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(4, 4), nn.Tanh())], nn.Linear(4, 4))
    save_file(theirs.state_dict(), tmp_path/"model.safetensors")
    assert same(read_model(tmp_path/"model.safetensors", "tanh"), outputs(theirs))


def test_our_own(tmp_path):
    ours = build_network(Architecture(4, (Layer(5, "tanh"), Layer(3, "softmax"))))
    save_network(ours, tmp_path/"net", classes=["a", "b", "c"], note="mine")
    for name in ("net", "net.safetensors", "net.json"):
        network, facts = read_model_file(tmp_path/name)
        assert torch.equal(network(ROWS), ours(ROWS)) and facts == {"classes": ["a", "b", "c"], "note": "mine"}
    assert "knows its activations; leave them out" in refusal(tmp_path/"net.safetensors", "tanh")
    save_file(ours.state_dict(), tmp_path/"net.safetensors")                # as it was saved before: two files
    (tmp_path/"net.json").write_text(json.dumps({"architecture": ours.architecture.to_dict(), "note": "mine"}))
    network, facts = read_model_file(tmp_path/"net.safetensors")
    assert torch.equal(network(ROWS), ours(ROWS)) and facts == {"note": "mine"}
    (tmp_path/"net.json").write_text("{")
    with pytest.raises(NeonError, match="net.json is not JSON"): read_model(tmp_path/"net.safetensors")


def weights(*shapes, **more) -> dict:
    "A state_dict of linear maps with these shapes."
    found = {f"{i}.weight": torch.ones(shape) for i, shape in enumerate(shapes)}
    return found | {name.replace("_", ".", 1): value for name, value in more.items()}


BAD_WEIGHTS = {
    "transposed": (weights((4, 6), (6, 3)), "relu", "the layer '1' takes 3 inputs, the one before it gives 4"),
    "turned": (weights((6, 4), (6, 3)), "relu", "it looks transposed: a weight is (outputs, inputs)"),
    "a bias too long": ({**weights((6, 4)), "0.bias": torch.ones(5)}, None, "6 units, but a bias of shape (5,)"),
    "a norm too wide": ({**weights((6, 4)), "1.running_mean": torch.ones(5), "1.running_var": torch.ones(5)}, None,
                        "'1' has 5 values for 6 units"),
    "convolution": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2)).state_dict(), "relu",
                    "'0' (weight (2, 1, 3, 3), bias (2,)) is no dense layer and no batch norm; call neon.compress"),
    "recurrent": (nn.LSTM(3, 2).state_dict(), "relu", "is no dense layer and no batch norm"),
    "layer norm": (nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)).state_dict(), "relu",
                   "'1' (weight (6,), bias (6,)) is no dense layer"),
    "weight norm": (torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)).state_dict(), None,
                    "make it whole before you save (torch.nn.utils.parametrize.remove_parametrizations)"),
    "no activations": (weights((6, 4), (5, 6), (3, 5)), None, "say them: --activations relu (in Python activations="),
    "too many": (weights((6, 4), (3, 6)), "relu,relu,relu", "3 activations are named for 1 hidden layers"),
    "unknown": (weights((6, 4), (3, 6)), "rely", "unknown activation 'rely'"),
    "not finite": (weights((6, 4)) | {"0.bias": torch.full((6,), np.nan)}, None, "not all finite numbers"),
    "no linear layer": (nn.BatchNorm1d(3).state_dict(), None, "it holds no linear layer"),
    "two networks": ({"actor": weights((6, 4)), "critic": weights((1, 4))}, None, "2 dictionaries of tensors (actor, "),
    "a list": ([1, 2], None, "it holds a list, no state_dict; save its weights, torch.save(model.state_dict()"),
    "nothing": ({}, None, "0 dictionaries of tensors (none), one is expected"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_weights_that_are_no_chain(tmp_path, name):
    found, activations, message = BAD_WEIGHTS[name]
    torch.save(found, tmp_path/"model.pt")
    assert message in refusal(tmp_path/"model.pt", activations)


class Bomb:
    "Leaves a trace when it is unpickled."

    def __init__(self, trace): self.trace = trace

    def __reduce__(self): return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".joblib", ".sav"])
def test_no_file_is_unpickled(tmp_path, suffix):
    file, trace = tmp_path/f"model{suffix}", tmp_path/"trace"
    for write in (lambda: file.write_bytes(pickle.dumps({"w": Bomb(trace)})), lambda: torch.save(Bomb(trace), file)):
        write()
        text = refusal(file, "relu")
        assert not trace.exists() and ("to unpickle it would run" in text or "a pickle may run anything" in text), text
        assert "neon.compress.compress(model, X, y) in Python" in text


def test_whole_modules_and_torchscript_are_refused_in_words(tmp_path, recwarn):
    torch.save(nn.Sequential(nn.Linear(4, 2)), tmp_path/"whole.pt")
    torch.jit.script(nn.Sequential(nn.Linear(4, 2))).save(tmp_path/"script.pt")
    recwarn.clear()
    for name in ("whole.pt", "script.pt"):
        assert 'torch.save(model.state_dict(), "model.pt"), and name the activations' in refusal(tmp_path/name)
    assert not recwarn.list


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".onnx", ".skops"])
@pytest.mark.parametrize("content", ["", "text", "truncated", "foreign"])
def test_damaged_and_foreign_files(tmp_path, suffix, content):
    if suffix == ".skops": pytest.importorskip("skops.io")
    file = tmp_path/f"model{suffix}"
    torch.save(weights((3, 4)), tmp_path/"good.pt")
    save_file(weights((3, 4)), tmp_path/"good.safetensors")
    onnx.save(graph([helper.make_node("Relu", ["x"], ["y"])]), tmp_path/"good.onnx")
    other = {".pt": "good.onnx"}.get(suffix, "good.pt")
    good = (tmp_path/(f"good{suffix}" if suffix != ".skops" else "good.pt")).read_bytes()
    file.write_bytes({"": b"", "text": b"x,y\n1,2\n", "truncated": good[:len(good)//2],
                      "foreign": (tmp_path/other).read_bytes()}[content])
    assert f"cannot read {file}: it " in refusal(file)


@pytest.mark.parametrize("name, message", [
    ("nowhere.pt", "does not exist"), ("nowhere", "does not exist"), ("folder", "is a folder, not a file"),
    ("model.h5", "export the model to ONNX"), ("model.pt2", "save the weights alone"),
    ("model.xyz", "expected one of .safetensors, .pt, .pth, .bin, .ckpt, .onnx, .skops; call neon.compress")])
def test_other_paths(tmp_path, name, message):
    (tmp_path/"folder").mkdir()
    if name.startswith("model"): (tmp_path/name).write_text("x")
    assert message in refusal(tmp_path/name)


# ONNX

def graph(nodes, constants=None, inputs=("x",), outputs=("y",), shape=(None, 4), kind=TensorProto.FLOAT):
    "A model of some nodes."
    values = [helper.make_tensor_value_info(name, kind, shape) for name in inputs]
    results = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    tensors = [numpy_helper.from_array(np.asarray(v, dtype=dtype), k) for k, v in (constants or {}).items()]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    made = helper.make_graph(nodes, "g", values, results, tensors)
    return helper.make_model(made, opset_imports=opsets, ir_version=9)


def saved(tmp_path, *arguments, **options):
    onnx.save(graph(*arguments, **options), tmp_path/"model.onnx")
    return tmp_path/"model.onnx"


RNG = np.random.default_rng(0)
W, V, b, c = RNG.normal(size=(6, 4)), RNG.normal(size=(3, 6)), RNG.normal(size=6), RNG.normal(size=3)
X = ROWS.numpy().astype(float)
node = helper.make_node
HIDDEN = [node("Gemm", ["x", "W", "b"], ["a"], transB=1)]
BOTH = {"W": W, "b": b, "V": V, "c": c}


def last(name: str, **options) -> list:
    "The second layer, from a value to y."
    return [node("Gemm", [name, "V", "c"], ["y"], transB=1, **options)]


@pytest.mark.parametrize("operation, options, expected", [
    ("Relu", {}, lambda z: np.maximum(z, 0)), ("Tanh", {}, np.tanh), ("Sigmoid", {}, lambda z: 1/(1 + np.exp(-z))),
    ("LeakyRelu", {}, lambda z: np.where(z > 0, z, 0.01*z)), ("Elu", {}, lambda z: np.where(z > 0, z, np.expm1(z))),
    ("Gelu", {}, lambda z: torch.nn.functional.gelu(torch.tensor(z)).numpy()),
])
def test_activations_of_onnx(tmp_path, operation, options, expected):
    path = saved(tmp_path, [*HIDDEN, node(operation, ["a"], ["h"], **options), *last("h")], BOTH)
    assert same(read_model(path), expected(X @ W.T + b) @ V.T + c)


def test_an_activation_with_its_setting(tmp_path):
    path = saved(tmp_path, [*HIDDEN, node("LeakyRelu", ["a"], ["h"], alpha=0.2), *last("h")], BOTH)
    theirs = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(0.2), nn.Linear(6, 3))
    torch.save(theirs.state_dict(), tmp_path/"model.pt")
    try: parse_network(theirs)
    except NeonError: pytest.skip("a DenseNetwork has no such activation yet")
    z = X @ W.T + b
    assert same(read_model(path), np.where(z > 0, z, 0.2*z) @ V.T + c)
    assert same(read_model(tmp_path/"model.pt", "leaky_relu(0.2)"), outputs(theirs))


def test_a_chain_of_everything(tmp_path):
    mean, var, g, k = RNG.normal(size=6), RNG.uniform(1, 2, 6), RNG.normal(size=6), RNG.normal(size=6)
    nodes = [node("Flatten", ["x"], ["f"]), node("Sub", ["f", "mu"], ["s"]), node("Div", ["s", "sd"], ["t"]),
             node("Constant", [], ["two"], value_float=2.0), node("Mul", ["two", "t"], ["u"]),
             node("Cast", ["u"], ["v"], to=1), node("Transpose", ["W"], ["Wt"], perm=[1, 0]),
             node("MatMul", ["v", "Wt"], ["m"]), node("Add", ["b", "m"], ["a"]),
             node("BatchNormalization", ["a", "g", "k", "mean", "var"], ["n"], epsilon=1e-3),
             node("Relu", ["n"], ["h"]), node("Dropout", ["h"], ["d"]),
             node("Gemm", ["d", "V", "c"], ["z"], alpha=0.5, beta=2.0, transB=1), node("Identity", ["z"], ["i"]),
             node("Softmax", ["i"], ["y"])]
    constants = {**BOTH, "mu": np.ones(4), "sd": [[1, 2, 3, 4]], "mean": mean, "var": var, "g": g, "k": k}
    network = read_model(saved(tmp_path, nodes, constants))
    a = 2*(X - 1)/np.arange(1, 5) @ W.T + b
    z = 0.5*np.maximum((a - mean)/np.sqrt(var + 1e-3)*g + k, 0) @ V.T + 2*c
    assert same(network, torch.tensor(z).softmax(1)) and network.architecture.layers[1].activation == "softmax"
    assert str(network.architecture) == "4-6-3"


def test_silu_images_doubles_and_the_end(tmp_path):
    silu = [*HIDDEN, node("Sigmoid", ["a"], ["p"]), node("Mul", ["a", "p"], ["h"]), *last("h")]
    z = X @ W.T + b
    assert same(read_model(saved(tmp_path, silu, BOTH)), z/(1 + np.exp(-z)) @ V.T + c)
    end = [*HIDDEN, node("Relu", ["a"], ["h"]), node("Gemm", ["h", "V", "c"], ["l"], transB=1),
           node("LogSoftmax", ["l"], ["y"])]
    logits = np.maximum(z, 0) @ V.T + c
    assert same(read_model(saved(tmp_path, end, BOTH)), logits)
    image = [node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "W", "b"], ["a"], transB=1),
             node("Relu", ["a"], ["h"]), *last("h")]
    assert same(read_model(saved(tmp_path, image, BOTH, shape=("n", 1, 2, 2))), logits)
    assert same(read_model(saved(tmp_path, image, BOTH, shape=(1, 4), kind=TensorProto.DOUBLE)), logits)


@pytest.mark.parametrize("nodes, message", [
    ([*HIDDEN, node("Add", ["a", "a"], ["h"]), *last("h")], "the operation 'h' (Add) joins 2 values; only plain"),
    ([*HIDDEN, node("Sin", ["a"], ["h"]), *last("h")], "the operation 'h' (Sin) is none of a dense network. Call"),
    ([*HIDDEN, node("Relu", ["a"], ["r"]), node("Tanh", ["r"], ["h"]), *last("h")], "does not follow a linear layer"),
    ([*HIDDEN, node("Relu", ["a"], ["h"]), node("Mul", ["h", "b"], ["y"])], "it ends with a scaling after"),
    ([node("Gemm", ["x", "V", "c"], ["a"], transB=1), *last("a")], "the layer 'y' takes 6 inputs, the one before it"),
    ([node("Relu", ["x"], ["y"])], "the activation ReLU() does not follow a linear layer"),
    ([node("MatMul", ["V", "x"], ["y"])], "is no row of features times a matrix of weights"),
    ([node("Div", ["b", "x"], ["a"]), *last("a")], "divides by its input"),
    ([node("Identity", ["x"], ["y"])], "it holds no linear layer"),
])
def test_graphs_that_are_no_chain(tmp_path, nodes, message):
    assert message in refusal(saved(tmp_path, nodes, BOTH))


def test_two_inputs_are_refused(tmp_path):
    nodes = [node("Concat", ["x", "z"], ["xz"], axis=1), node("Relu", ["xz"], ["y"])]
    assert "the graph takes 2 inputs (x, z)" in refusal(saved(tmp_path, nodes, inputs=("x", "z")))


def test_what_is_read_is_held_against_onnxruntime(tmp_path, monkeypatch):
    path = saved(tmp_path, [*HIDDEN, node("Relu", ["a"], ["h"]), *last("h")], BOTH)
    monkeypatch.setitem(files._ACTIVATIONS, "Relu", lambda a: nn.Tanh())
    assert "computes something else than onnxruntime does with the file" in refusal(path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert read_model(path).architecture.layers[0].activation == "tanh", "without onnxruntime nothing is compared"
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "needs onnx; pip install 'neon-compression[export]'" in refusal(path)


@pytest.mark.parametrize("dynamo", [False, True])
def test_an_export_of_pytorch(seed, tmp_path, dynamo):
    if dynamo and not importlib.util.find_spec("onnxscript"): pytest.skip("needs onnxscript")
    theirs = settled(nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2),
                                   nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 3), nn.LogSoftmax(1)))
    torch.onnx.export(theirs, (ROWS[:2],), tmp_path/"model.onnx", dynamo=dynamo, verbose=False)
    assert same(lambda x: read_model(tmp_path/"model.onnx")(x).log_softmax(1), outputs(theirs))


# scikit-learn

LABELS = np.array(["no", "yes"])[(X[:, 0] > 0).astype(int)]
FITTED = {
    "two classes": lambda: MLPClassifier((5,), max_iter=50, random_state=0).fit(X, LABELS),
    "three classes": lambda: make_pipeline(StandardScaler(), MLPClassifier(
        (5, 4), activation="tanh", max_iter=50, random_state=0)).fit(X, np.digitize(X[:, 0], [-0.5, 0.5])),
    "values": lambda: make_pipeline(MinMaxScaler((-1, 1)), MLPRegressor(
        hidden_layer_sizes=(5,), solver="sgd", max_iter=50, random_state=0)).fit(X, X[:, 0]),
}


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("name", FITTED)
def test_skops(tmp_path, name):
    skops = pytest.importorskip("skops.io")
    fitted = FITTED[name]()
    skops.dump(fitted, tmp_path/"model.skops")
    network, facts = read_model_file(tmp_path/"model.skops")
    if name == "values": assert same(network, fitted.predict(X)[:, None]) and facts == {}
    else:
        assert same(lambda x: network(x).softmax(1), fitted.predict_proba(X))
        assert facts == {"classes": fitted.classes_.tolist()}


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("name", FITTED)
def test_an_export_of_scikit_learn(tmp_path, name):
    convert, fitted = pytest.importorskip("skl2onnx").to_onnx, FITTED[name]()
    for options in ([None] if name == "values" else [{"zipmap": True}, {"zipmap": False}]):
        model = convert(fitted, X[:1].astype(np.float32), options=options)
        (tmp_path/"model.onnx").write_bytes(model.SerializeToString())
        network, facts = read_model_file(tmp_path/"model.onnx")
        if name == "values": assert same(network, fitted.predict(X)[:, None])
        else: assert same(network, fitted.predict_proba(X)) and facts == {"classes": fitted.classes_.tolist()}


def test_skops_files_of_other_things_are_refused(tmp_path):
    skops = pytest.importorskip("skops.io")
    skops.dump(LogisticRegression().fit(X, LABELS), tmp_path/"other.skops")
    assert "it holds a LogisticRegression; an MLPClassifier or MLPRegressor" in refusal(tmp_path/"other.skops")
    skops.dump({"w": Bomb("nowhere")}, tmp_path/"bomb.skops")
    assert "types that are not trusted (test_files.Bomb" in refusal(tmp_path/"bomb.skops")
    clipped = make_pipeline(MinMaxScaler(clip=True), MLPClassifier((3,), max_iter=2)).fit(X, LABELS)
    skops.dump(clipped, tmp_path/"clipped.skops")
    assert "it has the step MinMaxScaler; only scalers" in refusal(tmp_path/"clipped.skops")


def test_without_skops_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skops", None)
    (tmp_path/"model.skops").write_bytes(b"PK")
    assert "reading it needs skops; pip install skops" in refusal(tmp_path/"model.skops")
