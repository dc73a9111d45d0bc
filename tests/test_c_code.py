"Networks that leave Python: a compressed pipeline as C, of integers too, and what the guard says of them."
import os
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import make_friedman1, make_moons
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from neon.compress import compress
from neon.compression.c_code import CompiledC, c_compiler, code_size, to_c
from neon.compression.export import from_sklearn
from neon.compression.formats import FORMATS, write_format
from neon.compression.integers import device_size, judge_integers, to_integers
from neon.compression.search import SearchConfig
from neon.foundations.core import NeonError, torch_generator
from neon.foundations.networks import Architecture, Layer, build_network
from neon.foundations.training import predict
from neon.methods.guard import Guard

needs_compiler = pytest.mark.skipif(c_compiler() is None, reason="there is no C compiler here")


def network(*layers, n=5, inputs=None, seed=0):
    layers = [Layer(width, activation) for width, activation in layers]
    return build_network(Architecture(n, tuple(layers), inputs), torch_generator(seed, "c"))


def rows(n=10_000, width=5, seed=0):
    return 2*torch.randn(n, width, generator=torch_generator(seed, "rows"))


@pytest.fixture(scope="module")
def moons():
    "A compressed pipeline, and its rows in units of their own."
    X, y = make_moons(600, noise=0.2, random_state=0)
    X = X*[300, 0.01] + [2000, 5]
    model = make_pipeline(StandardScaler(), MinMaxScaler(), MLPClassifier((30, 30), max_iter=100, random_state=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training may end early
        model.fit(X[:400], np.array(["up", "down"])[y[:400]])
    labels = np.array(["up", "down"])[y]
    result = compress(model, X[:400], labels[:400], 3.0, validation=(X[400:], labels[400:]), agent=None,
                      search=SearchConfig(effort=0.1))
    return result, X, labels


@needs_compiler
def test_a_compressed_pipeline_is_the_same_in_c(moons, tmp_path):
    result, X, labels = moons
    rng = np.random.default_rng(0)
    many = (X[rng.integers(0, len(X), 10_000)] + rng.normal(size=(10_000, 2))*[50, 0.002]).astype(np.float32)
    result.to_c(tmp_path/"moons.h", rows=X)
    compiled = CompiledC(tmp_path/"moons.h")
    wanted = result.estimator.predict_proba(many)
    sure = np.abs(wanted[:, 0] - wanted[:, 1]) > 1e-4
    assert sure.mean() > 0.99 and (compiled(many, "classes") == wanted.argmax(1))[sure].all()
    np.testing.assert_allclose(compiled(many, "probabilities"), wanted, atol=1e-3)
    assert "down" in (tmp_path/"moons.h").read_text()


@needs_compiler
def test_integers_of_a_compressed_pipeline_keep_the_promise(moons, tmp_path):
    result, X, labels = moons
    with pytest.raises(NeonError, match="give some with rows=X"): replace(result, sample=None).to_c(tmp_path/"m.h", 8)
    result.to_c(tmp_path/"m.h", bits=8, rows=X[:400])
    classes = np.array(result.classes)[CompiledC(tmp_path/"m.h")(X, "classes")]
    assert (classes == result.estimator.predict(X)).mean() > 0.97
    held = torch.tensor(result.estimator[:-1].transform(X[400:]), dtype=torch.float32)
    y = np.array([result.classes.index(label) for label in labels[400:]])
    judged = judge_integers(result.to_integers(8, X[:400]), held, y, predict(result.original, held), Guard(5.0))
    assert judged.holds and judged.drop.rows == 200 and judged.bound >= judged.drop.points


@needs_compiler
@pytest.mark.parametrize("case", [
    ([(3, "identity")], None, 8), ([(1, "identity")], (2,), 4),
    ([(6, "relu"), (4, "identity"), (2, "identity")], None, 8),
    ([(7, "tanh"), (5, "sigmoid"), (3, "softmax")], (0, 1, 3), (8, 4, 8)),
    ([(5, "leaky_relu(0.2)"), (1, "sigmoid")], None, 4)])
def test_integers_agree_to_the_bit(case, tmp_path):
    layers, inputs, bits = case
    x = rows()*torch.tensor([1, 100, 0.01, 5, 1])
    kind = "binary" if layers[-1][1] == "sigmoid" else "classes" if layers[-1][0] > 1 else "values"
    integers = to_integers(network(*layers, inputs=inputs), x[:500], bits, kind=kind)
    integers.to_c(tmp_path/"n.h", rows=x)
    compiled = CompiledC(tmp_path/"n.h", flags=["-O3"])
    strange = torch.tensor([[float("inf"), -float("inf"), float("nan"), 1e30, -1e30]]*2)
    for some in (x, 1000*x, strange):
        assert (compiled(some, "integers") == integers.integers(some)).all()
        if kind != "values": assert (compiled(some, "classes") == integers.classes(some)).all()


def test_rows_decide_on_scales_and_constant_columns_do_no_harm():
    net, x = network((6, "relu"), (2, "identity")), rows(300)
    x[:, 2] = 7.0
    integers = to_integers(net, x)
    own = predict(net, x).numpy()
    assert np.abs(integers.outputs(x) - own).max() < 0.05*np.ptp(own)
    with pytest.raises(NeonError, match="rows of 5 features"): to_integers(net, x[:, :3])
    with pytest.raises(NeonError, match="4 or 8 bits"): to_integers(net, x, 16)


@pytest.mark.filterwarnings("ignore:lbfgs")
def test_values_of_a_regression():
    X, y = make_friedman1(400, random_state=0)
    model = MLPRegressor(hidden_layer_sizes=(20,), activation="tanh", solver="lbfgs", max_iter=1000, random_state=0)
    model.fit(X, y)
    net, x = from_sklearn(model), torch.tensor(X, dtype=torch.float32)
    integers = to_integers(net, x, kind="values")
    error = integers.outputs(x)[:, 0] - model.predict(X)
    assert error.std() < 0.05*y.std()
    judged = judge_integers(integers, x, y.astype(np.float32), predict(net, x), Guard(2.0, metric="r2"))
    assert judged.holds


@needs_compiler
def test_a_name_cannot_break_out_of_its_comment(tmp_path):
    to_c(network((2, "identity")), tmp_path/"net.h", classes=["*/ int x; /*", "b\nc\\"], features=["/*"]*5)
    CompiledC(tmp_path/"net.h")
    with pytest.raises(NeonError, match="no name in C"): to_c(network((2, "identity")), tmp_path/"n.h", name="a b")


def test_names_of_features_stay_what_they_are(tmp_path):
    named = network((3, "relu"), (2, "identity"), n=2)
    to_c(named, tmp_path/"net.h", features=["LAST NAME", "NAME_INPUTS"], classes=["NAME", "other"])
    head = (tmp_path/"net.h").read_text().split("*/")[0]
    assert all(word in head for word in ("x[0]  LAST NAME", "x[1]  NAME_INPUTS", "0  NAME\n"))


@needs_compiler
@pytest.mark.skipif(os.name == "nt", reason="the tool size of the binutils")
def test_sizes_are_reckoned_about_right(tmp_path):
    x = rows(200)
    for layers in ([(8, "relu"), (3, "identity")], [(4, "tanh"), (4, "relu"), (2, "identity")]):
        integers = to_integers(network(*layers), x, 8, kind="classes")
        integers.to_c(tmp_path/"n.h")
        assert abs(code_size(tmp_path/"n.h").flash - integers.size.flash) < 150
    sizes = [device_size(network((50, "relu"), (2, "identity"), n=40).architecture, bits).flash for bits in (32, 8, 4)]
    assert sizes[0] > 2*sizes[1] > 2.5*sizes[2]


def test_every_format_is_written_for_every_kind(tmp_path):
    for kind, width in (("classes", 3), ("binary", 1), ("labels", 2), ("values", 2)):
        for name in FORMATS:
            folder = tmp_path/kind
            folder.mkdir(exist_ok=True)
            assert write_format(network((4, "relu"), (width, "identity")), folder, name, rows(50), kind=kind).is_file()
