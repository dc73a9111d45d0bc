"NeonClassifier and NeonRegressor keep scikit-learn's contract, and hold up on awkward data that it does not think of."
import pickle

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris, make_friedman1, make_moons
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from neon.estimators import NeonClassifier, NeonRegressor
from neon.foundations.core import NeonError

QUICK = {"hidden_layer_sizes": (16,), "agent": None, "effort": 0.03, "max_epochs": 60, "random_state": 0}
TOO_FEW = pytest.mark.filterwarnings("ignore:.*too few to compress:UserWarning")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def moons():
    return make_moons(600, noise=0.2, random_state=0)


@TOO_FEW
@parametrize_with_checks([NeonClassifier(**QUICK), NeonRegressor(**QUICK)])
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_the_defaults_compress_with_the_agent(moons):
    X, y = moons
    classifier = NeonClassifier(random_state=0, effort=0.3, budget=2).fit(X[:450], y[:450])
    assert classifier.result_.reasons
    assert classifier.network_.architecture.n_params < 10_602/20 and classifier.score(X[450:], y[450:]) > 0.9


def test_inside_the_tools_of_scikit_learn(moons):
    X, y = moons
    pipeline = make_pipeline(MinMaxScaler(), NeonClassifier(**QUICK))
    assert cross_val_score(pipeline, X, y, cv=2).min() > 0.75
    search = GridSearchCV(NeonClassifier(**QUICK), {"budget": [0.5, 5]}, cv=2).fit(X, y)
    assert search.best_params_["budget"] in (0.5, 5) and set(search.predict(X)) == {0, 1}
    again = clone(search.best_estimator_)
    assert not hasattr(again, "network_") and again.get_params() == search.best_estimator_.get_params()


def test_one_seed_one_network(moons):
    X, y = moons
    one, two = (NeonClassifier(**QUICK).fit(X, y) for _ in range(2))
    assert np.array_equal(one.predict_proba(X), two.predict_proba(X))
    by_generator = NeonClassifier(**{**QUICK, "random_state": np.random.RandomState(3)}).fit(X, y)
    assert by_generator.score(X, y) > 0.75
    restored = pickle.loads(pickle.dumps(one))
    assert np.array_equal(one.predict_proba(X), restored.predict_proba(X))


@pytest.mark.parametrize("labels", [["no", "yes"], [7, -3], [True, False], [1.0, 2.0],
                                    np.array(["a", "b"], dtype=object)])
def test_labels_of_any_kind(moons, labels):
    X, y = moons
    named = np.asarray(labels)[y]
    classifier = NeonClassifier(**QUICK).fit(X, named)
    assert classifier.classes_.tolist() == sorted(np.asarray(labels).tolist()) and classifier.score(X, named) > 0.75
    assert classifier.predict(X).dtype == classifier.classes_.dtype


def test_names_of_features_are_kept(moons, tmp_path):
    X, y = moons
    table = pd.DataFrame(X, columns=["across", "up"])
    classifier = NeonClassifier(**QUICK).fit(table, y)
    assert classifier.feature_names_in_.tolist() == ["across", "up"]
    with pytest.raises(ValueError, match="feature names"): classifier.predict(table[["up", "across"]])
    classifier.to_onnx(tmp_path/"moons.onnx")
    session = onnxruntime.InferenceSession(tmp_path/"moons.onnx")
    assert session.get_modelmeta().custom_metadata_map == {"classes": "[0, 1]", "features": "['across', 'up']"}
    assert np.abs(session.run(None, {"x": X.astype(np.float32)})[0] - classifier.predict_proba(table)).max() < 1e-5


@pytest.mark.parametrize("metric", ["balanced_accuracy", "auc", "log_loss"])
def test_other_metrics(moons, metric):
    X, y = moons
    assert NeonClassifier(**QUICK, metric=metric, budget=5).fit(X, y).score(X, y) > 0.75


@pytest.mark.parametrize("objective", ["macs", "latency"])
def test_other_objectives(moons, objective):
    X, y = moons
    assert NeonClassifier(**QUICK, objective=objective, budget=5).fit(X, y).score(X, y) > 0.75


def test_rare_classes_and_strange_columns():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(120, 5)), np.array([0]*70 + [1]*46 + [2]*3 + [3])
    X[:, 0] += y
    X[:, 1], X[:, 2], X[:, 3] = 4.0, 1e9 + 1e3*X[:, 2], 1e-9*X[:, 3]   # constant, far from zero, tiny
    classifier = NeonClassifier(**QUICK, budget=5).fit(X, y)
    assert classifier.predict_proba(X).shape == (120, 4) and np.isfinite(classifier.predict_proba(X)).all()


@pytest.mark.parametrize("rows", [2, 5, 15])
def test_too_few_rows_keep_the_network(rows):
    X, y = load_iris(return_X_y=True)
    order = np.random.default_rng(1).permutation(100)[:rows]
    labels = np.arange(rows) % 2
    with pytest.warns(UserWarning, match=f"{rows} rows are too few to compress"):
        classifier = NeonClassifier(**QUICK).fit(X[order], labels)
    assert classifier.result_ is None and classifier.network_.architecture.hidden_widths == (16,)
    with pytest.warns(UserWarning, match="too few"):
        regressor = NeonRegressor(**QUICK).fit(X[order], y[order].astype(float))
    assert np.isfinite(regressor.predict(X)).all()


@pytest.mark.parametrize("rows", [30, 40])
def test_barely_enough_rows(rows):
    X, y = make_moons(rows, noise=0.1, random_state=0)
    assert NeonClassifier(**QUICK).fit(X, y).result_ is not None
    assert np.isfinite(NeonRegressor(**QUICK).fit(X, X[:, 0]).predict(X)).all()


def test_several_values():
    X, y = make_friedman1(400, random_state=0)
    Y = np.stack([y, 100*X[:, 0] - 50], 1)
    regressor = NeonRegressor(**QUICK, budget=5).fit(X, Y)
    assert regressor.predict(X).shape == (400, 2) and regressor.score(X, Y) > 0.5


def test_a_network_that_is_there_is_compressed_as_it_is(moons):
    X, y = moons
    mlp = MLPClassifier((40,), learning_rate_init=0.02, max_iter=60, random_state=0).fit(X, np.where(y, "up", "down"))
    wrapped = NeonClassifier(FrozenEstimator(mlp), **QUICK, budget=100).fit(X, np.where(y, "up", "down"))
    assert wrapped.classes_.tolist() == ["down", "up"] and str(wrapped.result_.original.architecture) == "2-40-2"
    original = wrapped.result_.original
    wrapped.network_ = original  # what was handed to compression computes what the estimator does
    assert np.abs(wrapped.predict_proba(X) - mlp.predict_proba(X)).max() < 1e-5
    again = NeonClassifier(FrozenEstimator(mlp), **QUICK)
    assert cross_val_score(again, X, np.where(y, "up", "down"), cv=2).min() > 0.75

    torch.manual_seed(0)
    logit = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    one = NeonClassifier(logit, **QUICK, budget=100).fit(X, y)
    x = torch.tensor(X[:20]).float()
    one.network_ = one.result_.original
    assert np.abs(one.predict_proba(X[:20])[:, 1] - logit(x).sigmoid()[:, 0].detach().numpy()).max() < 1e-5

    values = 1000 + 300*X[:, 0]
    regressor = MLPRegressor(hidden_layer_sizes=(30,), learning_rate_init=0.05, max_iter=150, random_state=0)
    regressor.fit(X, values)
    small = NeonRegressor(FrozenEstimator(regressor), **QUICK, budget=2).fit(X, values)
    assert small.score(X, values) > regressor.score(X, values) - 0.05
    small.network_ = small.result_.original
    assert np.abs(small.predict(X) - regressor.predict(X)).max() < 0.01


def test_a_torch_module(moons):
    X, y = moons
    layers = torch.nn.Linear(2, 12), torch.nn.GELU(), torch.nn.BatchNorm1d(12), torch.nn.Linear(12, 2)
    module = torch.nn.Sequential(*layers).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    wrapped = clone(NeonClassifier(module, **QUICK, budget=100)).fit(X, y)
    assert wrapped.predict(X).shape == y.shape and str(wrapped.result_.original.architecture) == "2-12-2"
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("settings, message", [
    ({"budget": -1}, "budget"), ({"confidence": 1.0}, "confidence"), ({"metric": "f2x"}, "unknown metric"),
    ({"objective": "size"}, "objective"),
    ({"validation_fraction": 0}, "validation_fraction"), ({"max_epochs": 0}, "max_epochs"), ({"effort": 0}, "effort"),
    ({"hidden_layer_sizes": (0,)}, "at least one unit"), ({"network": "net.pt"}, "network must be"),
    ({"time_limit": -1}, "time_limit"),
])
def test_wrong_settings_are_named(moons, settings, message):
    with pytest.raises(NeonError, match=message): NeonClassifier(**{**QUICK, **settings}).fit(*moons)


def test_one_class_is_refused():
    with pytest.raises(NeonError, match="one class only"): NeonClassifier(**QUICK).fit(np.zeros((30, 2)), ["a"]*30)


def test_a_teacher_or_what_wraps_a_network(moons):
    X, y = moons
    mlp = MLPClassifier((16,), max_iter=60, random_state=0)
    search = FrozenEstimator(GridSearchCV(mlp, {"alpha": [0.1]}, cv=2).fit(X, y))
    assert NeonClassifier(search, **QUICK).fit(X, y).result_.original.architecture.hidden_widths == (16,)
    forest = RandomForestClassifier(20, min_samples_leaf=5, random_state=0).fit(X, y)
    taught = NeonClassifier(FrozenEstimator(forest), **{**QUICK, "budget": 10, "effort": 0.5}).fit(X, y)
    assert str(taught.result_.original.architecture) == "RandomForestClassifier" and taught.score(X, y) > 0.8
    Z, v = make_friedman1(400, random_state=0)
    boosting = FrozenEstimator(HistGradientBoostingRegressor(max_iter=20).fit(Z, v))
    assert NeonRegressor(boosting, **{**QUICK, "budget": 30, "effort": 0.5}).fit(Z, v).score(Z, v) > 0.5
    with pytest.raises(NeonError, match="RandomForestClassifier that is not fitted"):
        NeonClassifier(RandomForestClassifier()).fit(X, y)
    with pytest.raises(NeonError, match="2 outputs, the data 3 classes"):
        NeonClassifier(lambda rows: rows).fit(X, np.arange(len(y)) % 3)
    with pytest.raises(NeonError, match="no network was found"):
        perfect = FrozenEstimator(RandomForestClassifier(random_state=0).fit(X, np.arange(len(y)) % 7 // 6))
        NeonClassifier(perfect, **{**QUICK, "budget": 0.1}).fit(X, np.arange(len(y)) % 7 // 6)
