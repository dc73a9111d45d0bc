"The most natural call, for networks and rows as people have them."
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestRegressor
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import nn

import neon.compress
from neon.compress import compress
from neon.compression.inputs import understand
from neon.compression.search import SearchConfig
from neon.compression.tasks import as_targets, check_metric
from neon.compression.teachers import read_rows
from neon.foundations.core import NeonError
from neon.methods.contract import Task
from neon.methods.guard import influence

QUICK = SearchConfig(effort=0.1, rounds=1, children=4, starts=1)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 6)).astype(np.float32)
SUM = X[:, 0] + X[:, 1]
TWO, THREE = (SUM > 0).astype(int), np.digitize(SUM, [-0.7, 0.7])
SEVERAL = np.stack([SUM > 0, X[:, 2] > 0, X[:, 0] > 0.5], 1).astype(int)


def small(network, X, y=..., **options):
    "A quick call; without validation rows it is told that X is new, since a twin takes its time."
    new = {} if "validation" in options else {"seen": False}
    return compress(network, X, y, **{"agent": None, "search": QUICK, "progress": False, **new, **options})


def trained(y, n_outputs, loss, *ends, seed=0):
    "A network of one hidden layer, trained on X."
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, n_outputs), *ends)
    optimiser, x, y = torch.optim.Adam(network.parameters(), 0.01), torch.tensor(X), torch.as_tensor(y)
    for _ in range(25):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            loss(network(x[rows]), y[rows]).backward()
            optimiser.step()
    return network.eval()


def of_logit(o, t): return F.binary_cross_entropy_with_logits(o.squeeze(1), t.float())


@pytest.fixture(scope="module")
def one(): return trained(TWO, 1, of_logit)


@pytest.fixture(scope="module")
def three(): return trained(THREE, 3, F.cross_entropy)


@pytest.fixture(scope="module")
def values(): return trained(SUM[:, None], 1, F.mse_loss)


def sign_accuracy(network, y): return float(((network(torch.tensor(X)).detach().numpy()[:, 0] > 0) == y).mean())


# One logit

@pytest.mark.parametrize("metric", [None, "accuracy", "auc"])
def test_one_logit_is_a_classifier(one, metric):
    result = small(one, X, TWO, metric=metric, budget=3)
    assert result.task.kind == "binary" and result.network.architecture.n_outputs == 1
    assert sign_accuracy(result.network, TWO) >= sign_accuracy(one, TWO) - 0.06


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "f1", "roc_auc", "average_precision", "precision",
                                  "neg_brier_score", "neg_log_loss", "matthews_corrcoef", "jaccard"])
def test_scorers_see_one_logit_as_two_classes(one, name):
    logit = one(torch.tensor(X)).detach()
    metric = check_metric(name, Task("binary"), torch.tensor(TWO), torch.cat([-logit/2, logit/2], 1))
    score = influence(metric, TWO, torch.cat([-logit/2, logit/2], 1)).mean()
    p = torch.cat([1 - logit.sigmoid(), logit.sigmoid()], 1).numpy()
    assert score == pytest.approx(get_scorer(name)(Answers(p), X, TWO), abs=1e-3)


class Answers:
    "A classifier of scikit-learn that says what it was given."
    _estimator_type, classes_ = "classifier", np.array([0, 1])

    def __init__(self, p): self.p = p

    def __sklearn_tags__(self): return MLPClassifier().__sklearn_tags__()

    def predict(self, X): return self.p.argmax(1)

    def predict_proba(self, X): return self.p


def test_labels_of_two_classes_as_people_write_them(one):
    ways = [TWO > 0, TWO.astype(float), np.where(TWO, "yes", "no"), 2*TWO - 1, TWO[:, None], pd.Series(TWO),
            torch.tensor(TWO), TWO.tolist(), pd.Categorical(TWO)]
    for y in ways:
        given = understand(one, X, as_targets(read_rows(X, y).y))
        assert given.task.kind == "binary" and given.targets(y).tolist() == TWO.tolist()
    assert small(one, X, np.where(TWO, "yes", "no")).score > 0.9


def test_a_sigmoid_at_the_end_stays():
    network = trained(TWO, 1, lambda o, t: F.binary_cross_entropy(o[:, 0], t.float()), nn.Sigmoid())
    result = small(network, X, TWO)
    p = result.network(torch.tensor(X)).detach()
    assert result.network.architecture.layers[-1].activation == "sigmoid" and 0 <= float(p.min()) <= float(p.max()) <= 1
    assert float(((p[:, 0] > 0.5).numpy() == TWO).mean()) > 0.9 and result.score > 0.9


def test_zeros_and_ones_can_be_values():
    network = trained(TWO, 1, lambda o, t: F.mse_loss(o[:, 0], t.float()))
    assert understand(network, X, TWO).task.kind == "values"
    assert small(network, X, TWO, task="values").guard.metric == "r2"


# Several labels, several values

def test_several_labels():
    network = trained(SEVERAL, 3, lambda o, t: F.binary_cross_entropy_with_logits(o, t.float()))
    result = small(network, X, SEVERAL, budget=3)
    before, after = (((n(torch.tensor(X)) > 0).numpy() == SEVERAL).mean() for n in (network, result.network))
    assert result.task.kind == "labels" and after > before - 0.06
    assert "accuracy" in str(pytest.raises(NeonError, small, network, X, SEVERAL, metric="accuracy").value)


def test_an_estimator_of_several_labels_comes_back_as_one():
    network = MLPClassifier((24,), max_iter=60, random_state=0).fit(X, SEVERAL)
    result = small(network, X, SEVERAL, budget=5, agent="generic")
    assert result.task.kind == "labels" and result.compression_ratio > 1
    same = result.estimator.predict(X) == (result.network(torch.tensor(X)) > 0).numpy()
    assert same.mean() > 0.999 and np.mean(result.estimator.predict(X) == SEVERAL) > 0.8


def test_whole_numbers_in_several_columns_are_values():
    whole = np.round(3*X[:, :3])
    result = small(trained(whole, 3, F.mse_loss), X, whole, budget=5)
    assert result.guard.metric == "r2" and result.network.architecture.n_outputs == 3


def test_values_that_an_activation_bounds():
    bounded = np.tanh(X[:, :1])
    network = trained(bounded, 1, F.mse_loss, nn.Tanh())
    result = small(network, X, bounded, budget=5)
    answers = result.network(torch.tensor(X)).detach().numpy()
    assert result.network.architecture.layers[-1].activation == "tanh" and np.abs(answers).max() <= 1
    assert 1 - ((answers - bounded)**2).mean()/bounded.var() > 0.85 and result.score > 0.9


def test_one_hot_columns_name_classes(three):
    assert small(three, X, np.eye(3)[THREE]).task.kind == "classes"


@pytest.mark.parametrize("metric", ["rmse", "neg_mean_absolute_error"])
def test_errors_are_parts_of_the_reference_s_own(metric):
    y = SUM[:, None] + 0.3*RNG.normal(size=(400, 1)).astype(np.float32)
    network = trained(y, 1, F.mse_loss)
    result = small(network, X, y, metric=metric, budget=10)
    error = lambda n: np.abs(n(torch.tensor(X)).detach().numpy() - y).mean()
    assert error(result.network) < 1.3*error(network) and "% of its own" in result.promise


# The metric fits, or is refused

@pytest.mark.parametrize("metric, words", [
    ("r2", "'r2' measures values"), ("rmse", "measures values"), ("f1", "f1_macro"), ("roc_auc", "take 'auc'"),
    ("acuracy", "did you mean 'accuracy'"), (lambda y, output: output, "one value per row"),
    (lambda y, output: 1/0, "cannot be measured"), (lambda y, output: float("nan"), "no finite score")])
def test_metrics_that_do_not_fit(three, metric, words):
    with pytest.raises(NeonError, match=words): small(three, X, THREE, metric=metric)


@pytest.mark.parametrize("task, words", [("values", "gives 3 values per row"), ("labels", "gives 3 labels per row"),
                                         ("ranks", "a task is one of"), ("binary", "wants one logit")])
def test_tasks_that_do_not_fit(three, task, words):
    with pytest.raises(NeonError, match=words): small(three, X, THREE, task=task)


# Rows that are no rows

@pytest.mark.parametrize("X, y, words", [
    (np.where(np.arange(6) == 2, np.nan, X), THREE, "row 0, column 2"), (X[:, :4], THREE, "takes rows of 6 features"),
    (X, THREE[:-1], "400 rows, y has 399"), (X[:0], THREE[:0], "no rows|size 0"), (X[:, 0], THREE, r"\(n, features\)"),
    (X.astype(str), THREE, "numbers"), (X, np.where(THREE == 1, np.nan, THREE), "missing"),
    (X, THREE*0, "one class only"), (X, set(THREE.tolist()), "shape"), (X, [[1, 2], [3]]*200, "y is no array"),
    (X[:6], THREE[:6], "too few|one class"), (pd.DataFrame(X).assign(name="a"), THREE, "name")])
def test_rows_that_are_refused(three, X, y, words):
    with pytest.raises(NeonError, match=words): small(three, X, y)


@pytest.mark.parametrize("validation, words", [
    ((X, THREE[:-1]), "400 rows, y of validation has 399"), ((X[:0], THREE[:0]), "no rows|empty"), (X, "a pair"),
    ((X[:, :3], THREE), "X of validation"), ((X*np.inf, THREE), "finite"), ((X, THREE + 5), "not a class")])
def test_validation_rows_that_are_refused(three, validation, words):
    with pytest.raises(NeonError, match=words): small(three, X, THREE, validation=validation)


def test_a_network_that_is_not_finite(three):
    broken = trained(THREE, 3, F.cross_entropy)
    with torch.no_grad(): broken[0].weight[0, 0] = float("nan")
    with pytest.raises(NeonError): small(broken, X, THREE)


# A reference that is no better than a constant

def said(network, X, y, **options):
    "The warnings of a call, and its sentences."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = small(network, X, y, **options)
    return " ".join(str(w.message) for w in caught), " ".join(result.explain())


def test_labels_in_another_order(three):
    for text in said(three, X, np.array(["low", "mid", "high"])[THREE]):
        assert "no better than a constant" in text and "['low', 'mid', 'high']" in text


def test_values_in_another_unit(values):
    for text in said(values, X, 100*SUM + 500): assert "another unit" in text


def test_rows_that_were_scaled_in_training(three):
    for text in said(three, 1000*X + 5000, THREE): assert "not scaled" in text


def test_nothing_is_said_of_a_good_network(three): assert "constant answer" not in said(three, X, THREE)[0]


def test_a_lost_class_is_named():
    rare = np.zeros(400, int)
    rare[np.argsort(SUM)[-20:]] = 1
    network = trained(rare, 2, lambda o, t: F.cross_entropy(o, t, weight=torch.tensor([1.0, 10.0])))
    result = small(network, X, rare, budget=6, validation=(X, rare))
    if (result.network(torch.tensor(X)).argmax(1) == 1).any(): assert result.recalls.after.min() > 0
    else: assert any("recall" in s and "balanced_accuracy" in s for s in result.explain())


# Without validation rows

def test_rows_known_by_heart_are_compared_with_a_twin():
    noisy = np.where(RNG.random(400) < 0.25, 1 - TWO, TWO)
    network = MLPClassifier((200,), max_iter=600, random_state=0, alpha=0).fit(X, noisy)
    result = small(network, X, noisy, seen=None)
    assert "twin" in result.reference and result.score < network.score(X, noisy) - 0.05
    assert any("seen=False" in s for s in result.explain()) and "has not seen" in result.promise
    assert small(network, X, noisy).reference == "the network"


def test_rows_that_are_new_need_no_twin():
    noisy = lambda n: RNG.random(n) < 0.2
    many = RNG.normal(size=(1000, 6)).astype(np.float32)
    label = lambda x: ((x[:, 0] + x[:, 1] > 0) ^ noisy(len(x))).astype(int)
    network = MLPClassifier((200,), max_iter=600, random_state=0, alpha=0).fit(X, label(X))
    assert small(network, many, label(many), seen=None).reference == "the network"


def test_without_targets_the_score_is_agreement(three):
    result = small(three, X)
    assert result.score == 1.0 and result.reference == "the network"


def test_a_loader_brings_rows_and_targets(three):
    pairs = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(THREE))
    result = small(three, torch.utils.data.DataLoader(pairs, 32))
    assert result.score > 0.9
    with pytest.raises(NeonError, match="DataLoader brings targets"):
        small(three, torch.utils.data.DataLoader(pairs, 32), THREE)


# Rows that belong together, or count differently

def test_groups_stay_together(three, monkeypatch):
    seen = []
    real = neon.compress.compress_rows
    monkeypatch.setattr(neon.compress, "compress_rows", lambda net, rows, *a: seen.append(rows) or real(net, rows, *a))
    groups = np.repeat(np.arange(40), 10)
    small(three, X, THREE, groups=groups)
    of = {tuple(np.round(row, 3)): g for row, g in zip((X - X.mean(0))/X.std(0), groups, strict=True)}
    fit, compare, guard = ({of[tuple(np.round(row, 3))] for row in part.x.numpy()}
                           for part in (seen[0].fit, seen[0].compare, seen[0].guard))
    assert not (fit & compare or fit & guard or compare & guard)


def test_weights_count(three):
    heavy = np.where(THREE == 0, 20.0, 1.0)
    light = small(three, X, THREE, sample_weight=heavy)
    assert light.score > 0.9
    with pytest.raises(NeonError, match="sample_weight"): small(three, X, THREE, sample_weight=heavy[:-1])
    with pytest.raises(NeonError, match="sample_weight"): small(three, X, THREE, sample_weight=0*heavy)


# A wanted size

@pytest.mark.parametrize("wanted", [{"max_params": 30}, {"max_bytes": 120}])
def test_a_wanted_size(three, wanted):
    result = small(three, X, THREE, **wanted)
    assert result.network.architecture.n_params <= 30 and result.wanted
    with pytest.raises(NeonError, match="give one of"): small(three, X, THREE, max_params=3, max_bytes=5)


# Whatever holds a network, and whatever answers rows

def test_a_search_gives_its_best_estimator_back():
    network = MLPClassifier((20,), learning_rate_init=0.01, random_state=0)
    search = GridSearchCV(network, {"alpha": [0.1]}, cv=2).fit(X, THREE)
    result = small(search, X, THREE, budget=5)
    assert isinstance(result.estimator, GridSearchCV) and result.estimator.score(X, THREE) > 0.8


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        h = self.first(x).relu()
        return self.last(h + self.second(h).relu())


def test_any_module_can_teach(three):
    teacher = Residual()
    optimiser, x, y = torch.optim.Adam(teacher.parameters(), 0.01), torch.tensor(X), torch.tensor(THREE)
    for _ in range(200):
        optimiser.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        optimiser.step()
    result = small(teacher, X, THREE, budget=5)
    assert result.network(x).shape == (400, 3) and any("taught" in s for s in result.explain())


@pytest.mark.parametrize("given, y", [(HistGradientBoostingClassifier(max_iter=30), THREE),
                                      (RandomForestRegressor(20, random_state=0), SUM)])
def test_any_estimator_can_teach(given, y):
    result = small(given.fit(X[:200], y[:200]), X[:200], y[:200], budget=10, validation=(X[200:], y[200:]))
    if result.how == "as it was": assert "Nothing smaller" in result.explain()[0]
    else: assert isinstance(result.estimator, MLPClassifier | MLPRegressor) and result.estimator.score(X, y) > 0.7


def test_validation_rows_without_targets_are_answered_by_the_network(three):
    result = small(three, X[:250], budget=5, validation=(X[250:], None))
    own, same = (n(torch.tensor(X[250:])).argmax(1) for n in (three, result.network))
    assert result.score == 1 and (own == same).float().mean() > 0.9


class Holder(nn.Module):
    "What trains a network, and has no forward pass of its own."
    def __init__(self, model): super().__init__(); self.model, self.loss = model, nn.CrossEntropyLoss(torch.ones(3))


def test_a_holder_without_a_forward_pass_is_opened(three):
    assert small(Holder(three), X, THREE, budget=5).original.architecture.hidden_widths == (24,)
    with pytest.raises(NeonError): small(Holder(nn.Identity()), X, THREE)


def test_soft_labels_can_teach(three):
    soft = three(torch.tensor(X)).softmax(1).detach().numpy()
    result = small(soft, X, THREE, budget=5)
    assert result.how == "as it was" or result.network(torch.tensor(X)).shape == (400, 3)


# Manners

def test_nothing_is_left_behind(three):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    state, before = np.random.get_state()[1].copy(), [p.clone() for p in three.parameters()]  # noqa: NPY002
    small(three, X, THREE)
    assert torch.equal(torch.rand(1), expected) and (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert all(torch.equal(a, b) for a, b in zip(before, three.parameters(), strict=True))


def test_the_same_seed_gives_the_same_network(three):
    twice = [small(three, X[:200], THREE[:200], random_state=4) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*(r.network.parameters() for r in twice), strict=True))
