"Any predictor can teach: what is asked of it, what a student reads, what is unwrapped, and the search with a teacher."
import pickle
import warnings

import numpy as np
import onnx
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.datasets import load_iris
from sklearn.ensemble import (
    BaggingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from neon.compress import all_methods
from neon.compression import teachers
from neon.compression.export import estimator_inputs, from_sklearn, last_step, to_sklearn, with_last_step
from neon.compression.search import SearchConfig
from neon.compression.teachers import (
    Recorded,
    as_estimator,
    as_numbers,
    read_rows,
    read_targets,
    rows_of,
    student_features,
    teacher_outputs,
    unwrap_estimator,
)
from neon.foundations.core import NeonError
from neon.foundations.networks import Architecture, DenseNetwork, Layer, build_network
from neon.foundations.training import predict
from neon.methods.contract import Candidate, MethodConfig, compress_with, get_method, hold_out
from neon.methods.guard import Guard

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
ARCSINH = {"func": np.arcsinh, "inverse_func": np.sinh, "check_inverse": False}
QUICK = MethodConfig((5.0,), agent=None, epochs=2,
                     options={"search": SearchConfig(effort=0.1, rounds=1, children=4, starts=1)})


@pytest.fixture(scope="module")
def data():
    "300 rows of six features; three classes, words for them, two labels, and values."
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 6)).astype(np.float32)
    y = np.digitize(X[:, 0] + X[:, 1], [-0.7, 0.7])
    labels = np.stack([X[:, 0] > 0, X[:, 1] > 0], 1).astype(int)
    return X, y, np.array(["high", "low", "mid"])[y], labels, X[:, :2].sum(1)


# Rows as people have them

class Pairs(Dataset):
    "Rows and words, one by one."
    def __len__(self): return 10
    def __getitem__(self, i): return torch.full((2,), float(i)), i % 2


class Endless(IterableDataset):
    "Rows without end."
    def __iter__(self):
        i = 0
        while True:
            yield torch.tensor([float(i), 1.0])
            i += 1


def test_a_loader_is_read_up_to_a_bound_and_says_so(data):
    X, y = map(torch.tensor, data[:2])
    found = read_rows(DataLoader(TensorDataset(X, y), 32))
    assert torch.equal(found.X, X) and found.y.tolist() == y.tolist() and "300 rows of the DataLoader" in found.notes[0]
    short = read_rows(DataLoader(TensorDataset(X, y), 32), max_rows=50)
    assert len(short.X) == len(short.y) == 50 and "left out" in short.notes[0]
    assert len(read_rows(Endless(), max_rows=70).X) == 70 and read_rows(Endless(), max_rows=70).y is None
    assert read_rows(Pairs()).y.tolist() == [0, 1]*5
    with pytest.warns(UserWarning, match="the DataLoader were read; it has more"):
        rows_of(DataLoader(TensorDataset(X, y), 32), 50)


def test_a_loader_leaves_the_global_generator_alone(data):
    X, y = map(torch.tensor, data[:2])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    rows_of(DataLoader(TensorDataset(X, y), 32, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_two_sources_of_targets_are_refused(data):
    X, y = map(torch.tensor, data[:2])
    loader = DataLoader(TensorDataset(X, y), 32)
    for targets in (None, y):
        with pytest.raises(NeonError, match="DataLoader brings targets of its own"): read_rows(loader, targets)
    assert read_rows(DataLoader(TensorDataset(X), 32), y).y.tolist() == y.tolist()
    assert read_rows(DataLoader(TensorDataset(X), 32), None).y is None
    with pytest.raises(NeonError, match="shuffles"): read_rows(DataLoader(TensorDataset(X), 32, shuffle=True), y)
    with pytest.raises(NeonError, match="y is a DataLoader"): read_rows(X, loader)
    with pytest.raises(NeonError, match="dictionaries"):
        rows_of(DataLoader([{"x": 1.0}], 1).__iter__())
    with pytest.raises(NeonError, match="no rows"): rows_of(iter([]))


def test_a_loader_of_three_tensors_has_two_inputs(data):
    X, y = map(torch.tensor, data[:2])
    found = read_rows(DataLoader(TensorDataset(X[:, :2], X[:, 2:], y), 32))
    assert isinstance(found.X, tuple) and [p.shape[1] for p in found.X] == [2, 4]
    assert torch.equal(student_features(None, found.X), X)


@pytest.mark.parametrize("y", [
    [0, 1, 1], (0, 1, 1), np.array([[0], [1], [1]]), pd.Series([0, 1, 1], name="y"), pd.DataFrame({"y": [0, 1, 1]}),
    pd.Series([0, 1, 1], dtype="Int64"), torch.tensor([0, 1, 1]), torch.tensor([[0], [1], [1]]),
    sp.csr_matrix([[0], [1], [1]]), torch.tensor([0, 1, 1], dtype=torch.bfloat16), np.array([0, 1, 1], dtype=object),
], ids=str)
def test_targets_of_any_make(y):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_targets(y)[0].tolist() == [0, 1, 1]


def test_words_truth_values_and_categories():
    for y in (["a", "b"], pd.Series(["a", "b"]), pd.Series(["a", "b"], dtype="category"), np.array(["a", "b"], object)):
        assert read_targets(y)[0].tolist() == ["a", "b"] and read_targets(y)[0].dtype.kind in "UT"
    assert read_targets(pd.Series([True, False], dtype="boolean"))[0].dtype == bool
    for y in ([1, None], pd.Series([1, None], dtype="Int64"), [0.5, np.nan], pd.Series(["a", pd.NA])):
        with pytest.raises(NeonError, match="missing values, the first in row 1"): read_targets(y)
    with pytest.raises(NeonError, match="shape"): read_targets(np.zeros((2, 2, 2)))


def test_one_hot_and_several_labels_are_told_apart():
    hot = np.eye(3)[[0, 2, 1, 1]]
    for y in (hot, hot.astype(int), hot.astype(bool), torch.tensor(hot), sp.csr_matrix(hot)):
        values, kind, names = read_targets(y)
        assert (values.tolist(), kind, names) == ([0, 2, 1, 1], "classes", None)
    words = read_targets(pd.DataFrame(hot, columns=list("cab")))
    assert words[0].tolist() == ["c", "b", "a", "a"] and words[2] == ["c", "a", "b"]
    assert read_targets([[1, 1, 0], [0, 0, 0]])[1] == "labels" and read_targets([[1.0, 0.5], [0, 0]])[1] is None
    assert read_targets(hot, "values")[0].shape == read_targets(hot, "labels")[0].shape == (4, 3)


# What the student reads

def test_features_of_any_make(data):
    X = data[0]
    table = pd.DataFrame(X, columns=list("abcdef"))
    many = [X, X.astype(float), X.tolist(), torch.tensor(X), torch.tensor(X, dtype=torch.float64), table,
            table.astype("Float32"), sp.csr_matrix(X), sp.coo_matrix(X), X.astype(object), table.astype(object)]
    for each in many: assert torch.equal(student_features(None, each), torch.tensor(X))
    assert torch.equal(student_features(None, X.reshape(-1, 2, 3)), torch.tensor(X))
    mixed = pd.DataFrame({"b": [True, False], "n": pd.array([1, 2], dtype="Int8"), "h": np.array([1, 2], np.float16)})
    assert student_features(None, mixed).tolist() == [[1, 1, 1], [0, 2, 2]]


@pytest.mark.parametrize("X, words", [
    (pd.DataFrame({"town": ["a", "b"]}), "column 'town'"), (pd.DataFrame({"c": pd.Categorical([1, 2])}), "column 'c'"),
    (pd.DataFrame({"when": pd.to_datetime(["2020-01-01", "2020-01-02"])}), "column 'when' holds datetime64"),
    (np.array([["a"], ["b"]]), "numbers"), (np.array([["1"], [2]], dtype=object), "column 0"),
    (np.zeros((2, 1), complex), "complex"), ([[1, 2], [3]], "no array"), (np.zeros(3), "reshape"),
    ([[1.0, np.inf]], "row 0, column 1"), (pd.DataFrame({"a": [1.0, None]}), "row 1, column 'a'"),
    (pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}), "SimpleImputer"), ([[1e300]], "not finite"),
    (sp.csr_matrix((10**6, 10**4)), "TruncatedSVD"),
], ids=lambda v: v if isinstance(v, str) else "")
def test_what_is_no_number_is_refused_by_name(X, words):
    with pytest.raises(NeonError, match=words): student_features(None, X)


def test_a_pipeline_says_which_numbers_words_become(data):
    table = pd.DataFrame({"town": list("abc")*20, "age": range(60)})
    y = (table.age > 30).astype(int)
    code = make_column_transformer((OneHotEncoder(), ["town"]), (StandardScaler(), ["age"]))
    boosting = make_pipeline(StandardScaler(with_mean=False), HistGradientBoostingClassifier(max_iter=3))
    model = make_pipeline(code, boosting).fit(table, y)
    x, said = student_features(model, table), teacher_outputs(model, table)
    assert x.shape == (60, 4) and torch.isfinite(x).all()
    assert np.allclose(said.outputs.softmax(1), model.predict_proba(table), atol=1e-5)
    assert said.name == "HistGradientBoostingClassifier" and said.unit == "tree nodes" and said.size > 3


# What a teacher says

CLASSIFIERS = [
    HistGradientBoostingClassifier(max_iter=5), RandomForestClassifier(5, random_state=0), GaussianNB(),
    DecisionTreeClassifier(max_depth=3), KNeighborsClassifier(), MLPClassifier((5,), max_iter=5, random_state=0),
    VotingClassifier([("a", LogisticRegression()), ("b", GaussianNB())], voting="soft"),
    VotingClassifier([("a", LogisticRegression()), ("b", RandomForestClassifier(3)), ("c", BaggingClassifier())],
                     voting="soft"),
    StackingClassifier([("a", GaussianNB())], LogisticRegression(), cv=2),
    CalibratedClassifierCV(RandomForestClassifier(3, random_state=0), cv=2), OneVsRestClassifier(LogisticRegression()),
    make_pipeline(StandardScaler(), LogisticRegression()),
]
WITHOUT = [LinearSVC(), RidgeClassifier(), SVC(), SVC(decision_function_shape="ovo"),
           VotingClassifier([("a", LogisticRegression()), ("b", GaussianNB())], voting="hard")]
name_of = lambda e: type(e).__name__


@pytest.mark.parametrize("model", CLASSIFIERS, ids=name_of)
def test_classifiers_say_probabilities(model, data):
    X, words = data[0], data[2]
    said = teacher_outputs(model.fit(X, words), X, rows=77)
    assert (said.kind, said.classes) == ("classes", ["high", "low", "mid"]) and said.outputs.dtype == torch.float32
    assert np.allclose(said.outputs.softmax(1), model.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("model", WITHOUT, ids=name_of)
def test_classifiers_without_probabilities_say_what_they_predict(model, classes, data):
    X, y = data[0], np.minimum(data[1], classes - 1)
    said = teacher_outputs(model.fit(X, y), X)
    assert said.outputs.shape == (300, classes) and said.kind == "classes"
    assert (np.array(said.classes)[said.outputs.argmax(1)] == model.predict(X)).mean() >= 0.99


def test_a_moved_threshold_counts(data):
    X, y = data[0], (data[1] == 2).astype(int)
    model = FixedThresholdClassifier(LogisticRegression(), threshold=0.05).fit(X, y)
    said = teacher_outputs(model, X)
    assert (said.outputs.argmax(1).numpy() == model.predict(X)).all()


@pytest.mark.parametrize("model", [
    HistGradientBoostingRegressor(max_iter=5), GradientBoostingRegressor(n_estimators=5), RandomForestRegressor(5),
    LinearRegression(), TransformedTargetRegressor(RandomForestRegressor(3), func=np.exp, inverse_func=np.log),
    GridSearchCV(RandomForestRegressor(3), {"max_depth": [2]}, cv=2),
], ids=name_of)
def test_regressors_say_values(model, data):
    X, v = data[0], data[4]
    said = teacher_outputs(model.fit(X, v), X)
    assert (said.kind, said.classes) == ("values", None) and said.size > 0
    assert np.allclose(said.outputs[:, 0], model.predict(X), atol=1e-5)


def test_several_outputs(data):
    X, _, _, labels, v = data
    for model in (MultiOutputClassifier(LogisticRegression()), RandomForestClassifier(5, random_state=0),
                  OneVsRestClassifier(LogisticRegression()), KNeighborsClassifier()):
        said = teacher_outputs(model.fit(X, labels), X)
        assert said.kind == "labels" and said.outputs.shape == (300, 2)
        assert ((said.outputs > 0).numpy() == model.predict(X)).mean() > 0.98
    two = MultiOutputRegressor(LinearRegression()).fit(X, np.stack([v, -v], 1))
    assert teacher_outputs(two, X).outputs.shape == (300, 2) and teacher_outputs(two, X).kind == "values"
    three = MultiOutputClassifier(LogisticRegression()).fit(X, np.stack([data[1], data[1]], 1))
    with pytest.raises(NeonError, match="one estimator per output"): teacher_outputs(three, X)
    once = RandomForestClassifier(3).fit(X, np.stack([labels[:, 0], np.ones(300, int)], 1))
    assert (teacher_outputs(once, X).outputs[:, 1] > 10).all()


class Plain(ClassifierMixin, BaseEstimator):
    "An estimator of somebody's own, which predicts words."
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X): return np.where(np.asarray(X)[:, 0] > 0, "low", "high")


def test_estimators_of_ones_own(data):
    X, words = data[0], data[2]
    said = teacher_outputs(Plain().fit(X, words), X)
    assert np.array_equal(np.array(said.classes)[said.outputs.argmax(1)], Plain().predict(X))
    for wrong, message in ((Plain(), "not fitted"), (Plain, "is a class"), (GridSearchCV(Plain(), {}), "not fitted")):
        with pytest.raises(NeonError, match=message): teacher_outputs(wrong, X)
    with pytest.raises(NeonError, match="fails on these rows: ValueError"):
        teacher_outputs(LogisticRegression().fit(X, words), X[:, :3])


class Residual(nn.Module):
    "A residual network with layer norms."
    def __init__(self, d: int = 6, k: int = 3):
        super().__init__()
        self.a, self.norm, self.b, self.c = nn.Linear(d, 16), nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, k)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        h = self.norm(self.a(x)).relu()
        return self.c(self.drop(h + self.b(h).relu()))


class Attention(nn.Module):
    "Attention over features."
    def __init__(self):
        super().__init__()
        self.embed, self.attend = nn.Linear(1, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(48, 3)

    def forward(self, x):
        h = self.embed(x[..., None])
        return self.out((h + self.attend(h, h, h)[0]).flatten(1))


class Embedded(nn.Module):
    "Embeddings of whole numbers."
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(4, 5), nn.Linear(10, 1)

    def forward(self, x): return self.out(self.embed(x).flatten(1)).squeeze(1)


@pytest.mark.parametrize("module", [Residual(), Attention(), nn.LSTM(6, 3)], ids=name_of)
def test_modules_are_asked_and_left_as_they_were(module, data):
    X = data[0]
    module.train()
    if isinstance(module, nn.LSTM):
        with pytest.raises(NeonError, match="gives a tuple, not an array; wrap it"): teacher_outputs(module, X)
    else:
        said = teacher_outputs(module, X, rows=100)
        assert all(m.training for m in module.modules()) and not said.outputs.requires_grad
        assert torch.allclose(said.outputs, module.eval()(torch.tensor(X)).detach(), atol=1e-5)
        assert said.kind is None and said.n_params == sum(p.numel() for p in module.parameters())
    assert all(p.grad is None for p in module.parameters())


def test_numbers_become_what_a_module_takes(data):
    ids = np.random.default_rng(0).integers(0, 4, (50, 2))
    for each in (ids, ids.astype(float), torch.tensor(ids), ids.tolist(), pd.DataFrame(ids)):
        assert teacher_outputs(Embedded(), each).outputs.shape == (50, 1)
    double = nn.Linear(6, 2).double()
    assert teacher_outputs(double, data[0]).outputs.dtype == torch.float32
    assert teacher_outputs(nn.Linear(6, 2).bfloat16(), pd.DataFrame(data[0])).outputs.dtype == torch.float32
    picture = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(4, 3))
    assert teacher_outputs(picture, data[0].reshape(-1, 1, 2, 3)[:, :, :, :3]).outputs.shape == (300, 3)
    with pytest.raises(NeonError, match="Linear fails on these rows: RuntimeError"):
        teacher_outputs(double, data[0][:, :2])
    with pytest.raises(NeonError, match=r"shape \(2, 2, 3\)"):
        teacher_outputs(nn.Identity(), data[0].reshape(-1, 2, 3))
    with pytest.raises(NeonError, match="not finite"): teacher_outputs(lambda x: x/0.0, torch.tensor(data[0]))


def test_probabilities_are_known_by_their_sum(data):
    X = data[0]
    soft = nn.Sequential(nn.Linear(6, 3), nn.Softmax(1))
    said = teacher_outputs(soft, X)
    assert said.kind == "classes" and torch.allclose(said.outputs.softmax(1), soft(torch.tensor(X)), atol=1e-5)
    assert torch.allclose(teacher_outputs(soft, X, "values").outputs, soft(torch.tensor(X)), atol=1e-6)
    one = nn.Sequential(nn.Linear(6, 1), nn.Sigmoid())
    logit = teacher_outputs(one, X, "binary").outputs
    assert torch.allclose(logit.sigmoid(), one(torch.tensor(X)), atol=1e-5) and (logit < 0).any()


def test_functions_and_tables(data):
    X, words = data[0], data[2]
    forest = RandomForestClassifier(5, random_state=0).fit(X, words)
    p = forest.predict_proba(X)
    for each in (forest.predict_proba, p, p.tolist(), torch.tensor(p), pd.DataFrame(p, columns=forest.classes_)):
        said = teacher_outputs(each, X)
        assert said.kind == "classes" and np.allclose(said.outputs.softmax(1), p, atol=1e-5) and said.n_params == np.inf
    assert said.classes == ["high", "low", "mid"] and teacher_outputs(p, X).name == "table of outputs"
    table = pd.DataFrame(X, columns=list("abcdef"))
    assert torch.equal(teacher_outputs(lambda rows: rows["a"], table, rows=7).outputs[:, 0], torch.tensor(X[:, 0]))
    assert teacher_outputs(words, X).classes == ["high", "low", "mid"]
    assert teacher_outputs(data[4], X).kind is None and teacher_outputs(data[1], X, "classes").classes == [0, 1, 2]
    with pytest.raises(NeonError, match="a table speaks for its own rows only"): teacher_outputs(p[:20], X)


def onnx_file(path, batch="batch", labels: bool = False):
    "Softmax of a linear map, as exporters write it."
    rng = np.random.default_rng(0)
    W = numpy_helper.from_array(rng.normal(size=(6, 3)).astype(np.float32), "W")
    nodes = [helper.make_node("MatMul", ["x", "W"], ["h"]), helper.make_node("Softmax", ["h"], ["p"], axis=1)]
    outputs = [helper.make_tensor_value_info("p", TensorProto.FLOAT, [batch, 3])]
    if labels:
        nodes.append(helper.make_node("ArgMax", ["h"], ["label"], axis=1, keepdims=0))
        outputs.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, [batch]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 6])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [W])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)]), path)
    return numpy_helper.to_array(W)


@pytest.mark.parametrize("batch, labels", [("batch", False), ("batch", True), (7, False)])
def test_onnx_files(batch, labels, data, tmp_path):
    W = onnx_file(tmp_path/"m.onnx", batch, labels)
    for given in (tmp_path/"m.onnx", str(tmp_path/"m.onnx"), teachers.open_onnx(tmp_path/"m.onnx")):
        said = teacher_outputs(given, data[0].astype(float))
        assert torch.allclose(said.outputs.softmax(1), torch.tensor(data[0] @ W).softmax(1), atol=1e-5)
    assert said.kind == "classes" and teacher_outputs(tmp_path/"m.onnx", data[0]).name == "m.onnx"
    assert teacher_outputs(tmp_path/"m.onnx", data[0]).n_params == 18
    (tmp_path/"bad.onnx").write_text("no model")
    with pytest.raises(NeonError, match="no ONNX model"): teacher_outputs(tmp_path/"bad.onnx", data[0])


# A reference known by its outputs

def test_recorded_finds_every_row_and_no_other():
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, (5000, 4), generator=rng).float()  # Whole numbers have many bits in common
    x = torch.cat([x, -x])
    o = x.sum(1, keepdim=True)*torch.tensor([[1.0, -1.0]])
    recorded = Recorded(x, o, "sums", 12)
    assert torch.equal(predict(recorded, x), o) and torch.equal(recorded(-x), -o)
    assert len(recorded.keys) == len(x.unique(dim=0))
    for row in (torch.full((1, 4), 9.0), x[:1] + 1e-6, torch.full((1, 4), float("nan"))):
        with pytest.raises(NeonError, match="sums was never asked for row 0"): recorded(row)
    again = pickle.loads(pickle.dumps(recorded))
    assert torch.equal(again(x[:7]), o[:7]) and again.architecture == recorded.architecture
    a = recorded.architecture
    assert (str(a), a.n_inputs, a.n_outputs, a.n_params, a.macs, a.layers) == ("sums", 4, 2, 12, float("inf"), ())
    with pytest.raises(NeonError, match="outputs of 3"): Recorded(x, o[:3])


def setting(data, kind: str = "classes"):
    "Rows, and a teacher that has been asked for all of them."
    X, y, _, _, v = data
    boosting = HistGradientBoostingClassifier if kind == "classes" else HistGradientBoostingRegressor
    model = boosting(max_iter=10).fit(X, y if kind == "classes" else v)
    x, said = student_features(model, X), teacher_outputs(model, X)
    target = torch.tensor(y) if kind == "classes" else torch.tensor(v)[:, None]
    return Recorded(x, said.outputs, said.name, said.n_params), hold_out(x, target)


@pytest.mark.parametrize("kind, metric", [("classes", "accuracy"), ("values", "r2")])
@pytest.mark.parametrize("objective", ["parameters", "latency"])
def test_the_search_works_with_a_teacher(kind, metric, objective, data):
    reference, rows = setting(data, kind)
    verdict, = compress_with("compress", reference, rows, Guard(metric=metric), QUICK.replace(objective=objective))
    assert verdict.seen and all(isinstance(c.network, DenseNetwork) for c in verdict.seen)
    assert verdict.chosen.score > 0.5 and verdict.chosen.candidate.how != "cut"
    assert np.isfinite(verdict.chosen.drop.points)


def test_a_small_teacher_is_not_replaced_by_a_larger_network(data):
    recorded, rows = setting(data)
    small = Recorded(recorded.x, recorded.outputs, "small", 10)
    verdict, = compress_with("compress", small, rows, Guard(), QUICK)
    assert verdict.chosen.candidate.network is small and verdict.chosen.candidate.how == "as it was"


def test_methods_say_whether_they_can_do_with_a_teacher(data):
    reference, rows = setting(data)
    able = [name for name, m in all_methods().items() if m.teachers]
    assert "compress" in able and {"majority", "logistic", "scratch1"} <= set(able) and "ecomp" not in able
    for name in able:
        if name != "compress": assert compress_with(name, reference, rows, Guard(), QUICK)[0].tested
    for name in set(all_methods()) - set(able):
        with pytest.raises(NeonError, match="HistGradientBoostingClassifier is only asked for its outputs.*'compress'"):
            compress_with(name, reference, rows, Guard(), QUICK)
    def own(network, rows, guard, config):
        yield Candidate(build_network(Architecture(6, (Layer(3, "identity"),))), "mine", tested_on="guard")
    assert get_method(own).teachers and compress_with(own, reference, rows, Guard(), QUICK)[0].tested


# What is wrapped around a network

def mlp(**options): return MLPClassifier((5,), max_iter=5, random_state=0, **options)


@pytest.mark.parametrize("wrapped", [
    FrozenEstimator(mlp()), GridSearchCV(mlp(), {"alpha": [0.1]}, cv=2),
    RandomizedSearchCV(mlp(), {"alpha": [0.1]}, n_iter=1, cv=2), FrozenEstimator(FrozenEstimator(mlp())),
    make_pipeline(StandardScaler(), GridSearchCV(mlp(), {"alpha": [0.1]}, cv=2)),
    GridSearchCV(make_pipeline(StandardScaler(), mlp()), {"mlpclassifier__alpha": [0.1]}, cv=2),
], ids=name_of)
def test_unwrapped_and_put_back(wrapped, data):
    X, _, words = data[:3]
    if not isinstance(wrapped, FrozenEstimator): wrapped.fit(X, words)
    else:
        inside = wrapped
        while isinstance(inside, FrozenEstimator): inside = inside.estimator
        inside.fit(X, words)
    opened = unwrap_estimator(wrapped)
    last = last_step(opened.inner)
    assert isinstance(last, MLPClassifier) and opened.transform_y is None
    network = from_sklearn(last)
    x = estimator_inputs(opened.inner, X)
    assert np.allclose(predict(network, x).softmax(1), wrapped.predict_proba(X), atol=1e-4)
    small = build_network(Architecture(network.architecture.n_inputs, (Layer(2, "tanh"), Layer(3, "identity"))))
    back = opened.rebuild(with_last_step(opened.inner, to_sklearn(small, last)))
    assert type(back) is type(wrapped) and np.allclose(back.predict_proba(X), predict(small, x).softmax(1), atol=1e-4)
    assert np.allclose(predict(network, x).softmax(1), wrapped.predict_proba(X), atol=1e-4), "the original was changed"


def test_pipelines_in_pipelines(data):
    X, _, words = data[:3]
    inside = make_pipeline(StandardScaler(), mlp()).fit(X, words)
    wrapped = make_pipeline(StandardScaler(), FrozenEstimator(inside)).fit(X, words)
    opened = unwrap_estimator(wrapped)
    assert last_step(opened.inner) is inside[-1]
    assert np.allclose(opened.rebuild(opened.inner).predict_proba(X), wrapped.predict_proba(X))
    assert np.allclose(student_features(opened.inner, X), estimator_inputs(opened.inner, X))


@pytest.mark.parametrize("options", [{"transformer": StandardScaler()}, {}, ARCSINH])
@pytest.mark.parametrize("columns", [1, 2])
def test_transformed_targets(options, columns, data):
    X, v = data[0], 100*data[4] + 500
    y = v if columns == 1 else np.stack([v, -v], 1)
    inner = make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(5,), max_iter=20, random_state=0))
    wrapped = make_pipeline(StandardScaler(), TransformedTargetRegressor(inner, **options)).fit(X, y)
    opened = unwrap_estimator(wrapped)
    assert isinstance(last_step(opened.inner), MLPRegressor)
    there = opened.transform_y(y)
    assert there.shape == y.shape == opened.inner.predict(X).shape
    assert np.allclose(there, wrapped[-1].transformer_.transform(y.reshape(300, -1)).reshape(y.shape))
    assert np.allclose(opened.rebuild(opened.inner).predict(X), wrapped.predict(X))


def test_what_holds_no_network_is_a_teacher(data):
    X, y = data[0], (data[1] > 0).astype(int)
    forest = RandomForestClassifier(3, random_state=0)
    for model in (forest, CalibratedClassifierCV(mlp(), cv=2), VotingClassifier([("a", mlp())]),
                  OneVsRestClassifier(mlp()), FixedThresholdClassifier(forest),
                  TransformedTargetRegressor(RandomForestRegressor(3))):
        opened = unwrap_estimator(model.fit(X, y))
        assert opened.inner is model and opened.rebuild(3) == 3
    search = GridSearchCV(forest, {"max_depth": [2]}, cv=2).fit(X, y)
    assert unwrap_estimator(search).inner is search.best_estimator_
    tuned = TunedThresholdClassifierCV(mlp(), cv=2).fit(X, y)
    assert unwrap_estimator(tuned).inner is tuned.estimator_
    assert unwrap_estimator(tuned).rebuild(mlp().fit(X, y)).best_threshold_ == tuned.best_threshold_
    for other in (nn.Linear(2, 1), None, "a.onnx", {}): assert unwrap_estimator(other).inner is other


def test_what_is_not_fitted_is_refused(data):
    X, y = data[:2]
    with pytest.raises(NeonError, match="best_estimator_"):
        unwrap_estimator(GridSearchCV(mlp(), {"alpha": [0.1]}, cv=2, refit=False).fit(X, y))
    with pytest.raises(NeonError, match="has no best_estimator_"): unwrap_estimator(GridSearchCV(mlp(), {}))
    for unfitted in (mlp(), make_pipeline(StandardScaler(), mlp()), FrozenEstimator(mlp()),
                     TransformedTargetRegressor(MLPRegressor())):
        with pytest.raises(NeonError, match="not fitted yet; call fit first"): unwrap_estimator(unfitted)


class NeuralNet(BaseEstimator):
    "Like a net of skorch: a module in a scikit-learn coat."
    def __init__(self, module): self.module = module

    def fit(self, X, y):
        self.module_, self.classes_ = self.module, np.unique(y)
        return self

    def predict(self, X): return self.classes_[self.predict_proba(X).argmax(1)]
    def predict_proba(self, X): return self.module_(torch.as_tensor(X).float()).softmax(1).detach().numpy()


def test_nets_that_hold_a_module(data):
    X, _, words = data[:3]
    net = make_pipeline(StandardScaler(), NeuralNet(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))))
    net.fit(X, words)
    opened = unwrap_estimator(net)
    assert last_step(opened.inner) is net[-1].module_ and opened.classes == ["high", "low", "mid"]
    x = student_features(opened.inner, X)
    assert np.allclose(last_step(opened.inner)(x).softmax(1).detach(), net.predict_proba(X), atol=1e-5)
    small = nn.Linear(6, 3)
    back = opened.rebuild(with_last_step(opened.inner, small))
    assert np.allclose(back.predict_proba(X), small(x).softmax(1).detach(), atol=1e-5) and back is not net
    assert net[-1].module_ is not small


def test_skorch(data):
    skorch = pytest.importorskip("skorch")
    X, y, _, _, v = data
    module, options = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), {"max_epochs": 2, "verbose": 0}
    net = skorch.NeuralNetClassifier(module, criterion=nn.CrossEntropyLoss, **options).fit(X, y)
    opened, small = unwrap_estimator(net), nn.Linear(6, 3)
    assert opened.inner is net.module_ and opened.classes == [0, 1, 2]
    back = opened.rebuild(small)
    assert type(back) is type(net)
    assert np.allclose(back.predict_proba(X), small(torch.tensor(X)).softmax(1).detach(), atol=1e-5)
    said = teacher_outputs(net, X)
    assert np.allclose(said.outputs.softmax(1), net.predict_proba(X), atol=1e-5) and said.n_params == 83
    values = skorch.NeuralNetRegressor(nn.Linear(6, 1), max_epochs=2, verbose=0).fit(X, v[:, None])
    assert unwrap_estimator(values).inner is values.module_ and teacher_outputs(values, X).kind == "values"
    with pytest.raises(NeonError, match="not fitted"): unwrap_estimator(skorch.NeuralNetRegressor(nn.Linear(6, 1)))


def test_back_to_scikit_learn():
    X, y = load_iris(return_X_y=True)
    network = build_network(Architecture(4, (Layer(5, "tanh"), Layer(3, "identity"))))
    for classes in (["a", "b", "c"], ["c", "a", "b"], [0, 1, 2]):
        model = as_estimator(network, classes)
        p = predict(network, as_tensor(X)).softmax(1).numpy()
        assert np.allclose(model.predict_proba(X), p[:, np.argsort(classes)], atol=1e-5)
        assert np.array_equal(model.predict(X), np.array(classes)[p.argmax(1)])
    assert as_estimator(network).predict(X).shape == (150, 3)
    one = build_network(Architecture(4, (Layer(1, "identity"),), (1, 2)))
    assert np.allclose(as_estimator(one).predict(X), predict(one, as_tensor(X))[:, 0], atol=1e-5)
    two = build_network(Architecture(4, (Layer(2, "relu"), Layer(2, "identity"))))
    assert as_estimator(two, [False, True]).predict_proba(X).shape == (150, 2)


def as_tensor(X) -> torch.Tensor: return as_numbers(X).float()
