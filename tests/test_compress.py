"""compress: what it promises, for every way of asking."""
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from neon.compress import CompressConfig, compress, compress_rows
from neon.compression.proposals import plain_cuts
from neon.compression.search import SearchConfig
from neon.foundations.core import NeonError, torch_generator
from neon.foundations.networks import Architecture, Layer, build_network, load_network
from neon.foundations.surgery import fold_norms
from neon.foundations.training import AnnealConfig, anneal, predict
from neon.methods.contract import Part, hold_out
from neon.methods.guard import METRICS, Guard, paired_drop

HURRY = SearchConfig(effort=0.25, rounds=1, starts=2)


@pytest.fixture(scope="module")
def task():
    "Standardised features, classes, and a network of three hidden layers that has learnt them."
    X, y = load_breast_cancer(return_X_y=True)
    x, y = torch.tensor((X - X.mean(0))/X.std(0)).float(), torch.tensor(y)
    order = torch.randperm(len(x), generator=torch_generator(0, "rows"))
    x, y = x[order], y[order]
    wide = Architecture(30, (Layer(60), Layer(40, before=("batchnorm",)), Layer(20), Layer(2, "identity")))
    network, = anneal([build_network(wide)], x[:250], y[:250], AnnealConfig(150, 64, 3e-3))
    return network, (x[:250], y[:250]), (x[250:450], y[250:450]), (x[450:], y[450:])


def quick(task, **options):
    network, (x, y), validation, _ = task
    settings = {"budget": 2.0, "validation": validation, "search": HURRY, "agent": None} | options
    return compress(network, x, y, **settings)


def weights(network): return torch.cat([p.flatten() for p in network.parameters()])


def test_smaller_within_the_budget_and_repeatable(task):
    first, again, other = quick(task), quick(task), quick(task, random_state=1)
    assert first.network.architecture == again.network.architecture
    assert torch.equal(weights(first.network), weights(again.network))
    assert first.compression_ratio > 20 and other.compression_ratio > 20
    assert first.drop.points <= 2 and Guard(2.0).holds(first.drop)
    x, y = task[3]
    right = lambda n: float((predict(n, x).argmax(1) == y).float().mean())
    assert right(first.network) > right(task[0]) - 0.06


def test_the_promise_is_about_rows_that_did_not_choose(task):
    network, fit, validation, _ = task
    rows = hold_out(*fit, validation)
    everything = rows.held
    for result in compress_rows(network, rows, CompressConfig(budgets=(1.0, 4.0), agent=None, search=HURRY)):
        guard = result.guard
        x, y = everything if result.drop.rows == len(everything[1]) else rows.guard
        drop = paired_drop(guard.metric, y, predict(network, x), predict(result.network, x))
        assert drop.points == pytest.approx(result.drop.points, abs=1e-4) and guard.each.holds(drop)
        assert all(a.accepted == guard.each.holds(a.drop) for a in result.tested)
        assert all(a.candidate.without_comparison or a.drop.rows == len(rows.guard.y) for a in result.tested)
        sizes = [a.candidate.size for a in result.tested]
        rises = sum(after > before for before, after in zip(sizes, sizes[1:], strict=False))
        assert rises <= 1  # two sequences, each falling
        assert result.network.architecture.n_params == min(a.candidate.size for a in result.tested if a.accepted)


def test_rows_that_the_search_never_saw_do_not_steer_it(task):
    network, fit, validation, _ = task
    rows, config = hold_out(*fit, validation), CompressConfig(agent=None, search=HURRY)
    turned = replace(rows, guard=Part(rows.guard.x, 1 - rows.guard.y))
    honest, misled = compress_rows(network, rows, config)[0], compress_rows(network, turned, config)[0]
    assert [str(c.network.architecture) for c in honest.front] == [str(c.network.architecture) for c in misled.front]


@pytest.mark.parametrize("metric", [name for name, metric in METRICS.items() if "classes" in metric.kinds])
def test_every_metric(task, metric):
    result = quick(task, metric=metric, budget=5.0)
    assert result.guard.metric == metric and result.drop.points <= 5 and result.compression_ratio > 1


@pytest.mark.parametrize("objective", ["macs", "latency"])
def test_objectives(task, objective):
    assert quick(task, objective=objective).network.architecture.macs < task[0].architecture.macs/10


def test_front_is_one_call(task):
    results = quick(task, front=True)
    assert [r.guard.budget for r in results] == [0, 0.5, 1, 2, 5, 10]
    assert len({r.seconds for r in results}) == 1 and all(r.drop.points <= r.guard.budget for r in results)


def test_time_limit(task):
    start = time.monotonic()
    result = quick(task, time_limit=0.01, search=SearchConfig(effort=1, rounds=50))
    assert time.monotonic() - start < 20 and result.drop.points <= 2


def test_all_features_stay_where_asked(task):
    result = quick(task, search=SearchConfig(effort=0.25, rounds=2, select_inputs=False))
    assert result.network.architecture.inputs is None


def test_save_and_onnx(task, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    result, (x, _) = quick(task), task[3]
    result.save(tmp_path)
    assert torch.equal(weights(load_network(tmp_path/"network")), weights(result.network))
    assert (tmp_path/"report.csv").exists() and (tmp_path/"report.json").exists()
    result.to_onnx(tmp_path/"network.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path/"network.onnx"), providers=["CPUExecutionProvider"])
    p, = session.run(None, {"x": x.numpy()})
    assert np.abs(p - predict(result.network, x).softmax(1).numpy()).max() < 1e-5


def test_features_as_they_come_and_labels_of_any_kind():
    X, y = load_breast_cancer(return_X_y=True)
    names = np.array(["malignant", "benign"])[y]
    x = torch.tensor(X).float()
    scaled = (x - x.mean(0))/x.std(0)
    start = build_network(Architecture(30, (Layer(40), Layer(2, "identity"))))
    inner, = anneal([start], scaled[:300], torch.tensor(1 - y[:300]), AnnealConfig(150, 64, 5e-3))
    raw = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 2))
    with torch.no_grad():
        W, last = inner.layers[0].linear.weight/x.std(0), inner.layers[1].linear
        values = W, inner.layers[0].linear.bias - W @ x.mean(0), last.weight, last.bias
        for target, value in zip(raw.parameters(), values, strict=True): target.copy_(value)
    result = compress(raw, X[:300], names[:300], budget=3, validation=(X[300:], names[300:]),
                      classes=["benign", "malignant"], search=HURRY, agent=None)
    assert result.classes == ["benign", "malignant"] and result.compression_ratio > 10
    answers = np.array(result.classes)[predict(result.network, x[300:]).argmax(1)]
    assert (answers == names[300:]).mean() > 0.88
    with pytest.raises(NeonError, match="'benign' is not a class"):
        compress(raw, X, names, classes=["good", "malignant"])


def test_without_validation_rows_a_part_is_kept(task):
    network, (x, y), _, _ = task
    result = compress(network, x, y, budget=3, search=HURRY, agent=None)
    kept = 0.3*250  # all of them test what was made without them, the guard's part the rest
    assert all(min(abs(a.drop.rows - kept), abs(a.drop.rows - 0.7*kept)) <= 2 for a in result.tested)


def test_plain_cuts_get_smaller_and_stay_close(task):
    network, (x, _), _, _ = task
    cuts = plain_cuts(fold_norms(network), x)
    sizes = [c.architecture.n_params for c in cuts]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]/20
    assert (predict(cuts[0], x).argmax(1) == predict(network, x).argmax(1)).float().mean() > 0.98


def test_a_network_without_hidden_layers(task):
    _, (x, y), validation, _ = task
    linear, = anneal([build_network(Architecture(30, (Layer(2, "identity"),)))], x, y, AnnealConfig(100, 64))
    assert compress(linear, x, y, budget=2, validation=validation, search=HURRY, agent=None).compression_ratio >= 1
