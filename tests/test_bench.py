"""The benchmarks compare what they claim to compare; nothing here asserts a time."""
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import base, common, ecomp, gemm, growth, memory, naive, run, step
from benchmarks.common import COLUMNS, SEED, Options
from benchmarks.lines import Lines
from neon.ecomp.published import Parent, Scores
from neon.foundations.core import NeonError, TrainingConfig, generator
from neon.foundations.networks import Architecture, Layer, build_network
from neon.published.environment import Cut, EnvConfig, make_cuts, start_state


@pytest.fixture(scope="module")
def data():
    return common.data_of("wine")


@pytest.fixture
def network(data, seed):
    layers = (Layer(12), Layer(9, before=("batchnorm",)), Layer(data.n_classes, "identity"))
    return build_network(Architecture(data.n_features, layers), torch.Generator().manual_seed(0)).eval()


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("layer, width", [(0, 8), (1, 5)])
def test_naive_and_replace_start_alike(data, network, layer, width):
    config = step.variants()["replace"]
    cut = Cut(start_state(network, data, config), layer, width, (7,))
    (ours, _), = make_cuts([cut], data, config.replace(training=config.training.replace(epochs=0)), SEED)
    assert equal(naive.start(cut, SEED), ours) and not equal(naive.start(cut, SEED + 1), ours)


def test_naive_step_trains_only_the_new_layers_and_repeats_itself(data, network):
    cut = Cut(start_state(network, data, EnvConfig()), 1, 5, (0,))
    config = TrainingConfig(epochs=3, batch_size=16, patience=2)
    start, (first, second) = naive.start(cut, SEED), (naive.step(cut, data, SEED, config) for _ in range(2))
    assert equal(first, second) and not first.training
    assert torch.equal(first.layers[0].linear.weight, network.layers[0].linear.weight)
    assert all(not torch.equal(first.layers[i].linear.weight, start.layers[i].linear.weight) for i in (1, 2))


def test_naive_training_keeps_the_best_weights_or_the_last(data, network):
    early = naive.train(network, data, TrainingConfig(epochs=8, batch_size=16, learning_rate=0.05, patience=8))
    losses = [naive.validation_loss(naive.train(network, data, TrainingConfig(n, 16, 0.05, None)), data)
              for n in range(1, 9)]
    assert naive.validation_loss(early, data) == pytest.approx(min(losses))
    assert losses[-1] != min(losses), "the example should over-fit, else it says nothing"


def test_waveform_is_breimans():
    X, y = common.waveform()
    assert X.shape == (5000, 21) and np.bincount(y).min() > 1550
    means = np.stack([X[y == k].mean(0) for k in range(3)])
    waves = np.stack([np.maximum(6 - abs(np.arange(1, 22) - centre), 0) for centre in (7, 15, 11)])
    np.testing.assert_allclose(means, (waves[[0, 0, 1]] + waves[[1, 2, 2]])/2, atol=0.2)
    assert common.data_of("waveform-5000").X_train.shape == (2800, 21)


def test_plans_are_whole_episodes_of_offered_cuts(network):
    plan, widths = step.random_plan(network, generator(0, "plan")), [12, 9]
    for layer, width in plan:
        assert 1 <= width < widths[layer]
        widths[layer] = width
    assert 0 < len(plan) <= 8
    first = step.random_plan(network, generator(SEED, "walk", 0))
    assert step.choose_episodes([network]*9, len(plan))[0] == (network, first)
    for most in (0, 6, 20): assert sum(len(p) for _, p in step.choose_episodes([network]*9, most)) <= most
    assert len(step.choose_episodes([network]*9, None)) == 9


def test_every_variant_takes_every_step(data, network, monkeypatch):
    short = TrainingConfig(epochs=1, batch_size=16)
    variants = {name: c.replace(training=short) for name, c in step.variants().items()}
    monkeypatch.setattr(step, "variants", lambda: variants)
    monkeypatch.setattr(naive, "STEP", short)
    record, plan = step.Record(), step.random_plan(network, generator(0, "plan"), passes=2)
    compressed = step.play(network, plan, data, record)
    last = dict(plan)
    assert [last.get(i, w) for i, w in enumerate((12, 9))] == list(compressed.architecture.hidden_widths)
    lengths = {len(v) for values in (record.seconds, record.accuracy) for v in values.values()}
    assert lengths == {len(plan)} == {len(record.maps)}
    rows = step.rows_of("wine", record)
    assert all(list(row) == COLUMNS for row in rows)
    assert {f"{v}{end}" for v in variants for end in ("", " (mean)")} <= {row["variant"] for row in rows}


def test_base_networks_are_all_trained_once(data):
    shapes = [(8,), (9,), (300, 300), (5, 4)]
    networks = [build_network(Architecture(13, (*(Layer(w) for w in widths), Layer(3, "identity"))))
                for widths in shapes]
    configs = TrainingConfig(2, 16, patience=1), TrainingConfig(2, 32, patience=1)
    seconds, accuracy = base.compare(networks, data, *configs)
    assert seconds.shape == accuracy.shape == (2, 4) and (seconds > 0).all() and (accuracy > 0).all()
    assert base.shares(networks, [0, 1, 3]).sum() == pytest.approx(1)
    rows = base.compare_protocol("wine", "paper", 1, epochs=1)
    assert [list(row) for row in rows] == [COLUMNS]*2 and rows[0]["variant"] == "paper, 1 networks"


def test_ratios_and_their_intervals():
    a, b = np.array([4.0, 6.0, 8.0, 100.0]), np.array([2.0, 3.0, 4.0, 5.0])
    median, mean = common.comparisons("x", "set", "v", a, b, -0.25)
    assert median["ratio"] == 2 and mean["ratio"] == pytest.approx(a.sum()/b.sum()) and mean["variant"] == "v (mean)"
    assert median["cpu_seconds"] == 3.5 and median["accuracy_difference"] == -0.25
    for row in (median, mean): assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    constant = common.comparison("x", "set", "v", 3*b, b, 0.0)
    assert constant["ratio_low"] <= 3 <= constant["ratio_high"]
    assert common.in_words(common.plain_row("gemm", "set", "v", 0.5)) == "gemm  set  v  0.5"


def test_rows_measured_again_replace_the_old_ones(tmp_path):
    path, order = tmp_path/"bench.csv", ["step", "base"]
    named = [("base", "a", "x"), ("step", "a", "x"), ("step", "a", "y"), ("step", "b", "x")]
    first = [common.plain_row(*names, 1.0) for names in named]
    common.save(path, "", first, order)
    common.save(path, "", [common.plain_row("step", "a", "x", 2.0)], order)
    table = pd.read_csv(path)
    assert list(table.columns) == COLUMNS
    assert table[["bench", "dataset", "variant", "cpu_seconds"]].values.tolist() == [
        ["step", "b", "x", 1.0], ["step", "a", "x", 2.0], ["base", "a", "x", 1.0]]
    common.save(path, "memory", [{"bench": "step", "dataset": "a", "peak_mb": 1.0}], order)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bench.csv", "bench_memory.csv"]
    with pytest.raises(NeonError, match="other columns"): common.save(path, "", [{"bench": "step", "dataset": "a"}])


def test_growth_finds_the_exponent():
    sizes = [100, 200, 400, 800]
    assert growth.exponent(sizes, [n**1.5 for n in sizes]) == pytest.approx(1.5)
    rows = growth.against_parameters((4, 8), rows=200, repetitions=1)
    assert len(rows) == 6 and {tuple(row) for row in rows} == {("axis", "size", "variant", "cpu_seconds", "exponent")}
    assert all(row["cpu_seconds"] > 0 and np.isfinite(row["exponent"]) for row in rows)


def test_operations_are_those_of_the_matrix_products():
    architecture = Architecture(5, (Layer(7), Layer(3, "identity")))
    forward, weights, inputs = 2*(5*7 + 7*3), 2*(5*7 + 7*3), 2*7*3
    assert gemm.operations_per_row(architecture) == forward + weights + inputs
    rows = gemm.measure((32,), (16,), (8,), 64, 1)
    assert all(list(row) == COLUMNS for row in rows) and sum(row["ratio"] > 0 for row in rows) == 2


def test_a_generation_of_ecomp_is_the_same_in_both_ways(data, monkeypatch):
    monkeypatch.setattr(ecomp, "TRAINING", ecomp.TRAINING.replace(epochs=1, batch_size=16))
    rows = ecomp.compare(ecomp.published_parent(data, (9, 9)), data, 6, 45, 2)
    assert all(list(row) == COLUMNS and row["cpu_seconds"] > 0 for row in rows) and len(rows) == 5
    assert rows[0]["ratio"] > 0 and abs(rows[0]["accuracy_difference"]) < 1e-6


def test_the_check_of_ecomp_finds_a_difference(data):
    parent = Parent(build_network(Architecture(data.n_features, (Layer(9), Layer(9), Layer(3, "identity")))))
    scores = Scores(*(np.zeros(2) for _ in range(4)))
    children = [parent.individual]*2
    others = [ecomp.sequential(parent, child) for child in children]
    ecomp.check(scores, scores, children, others)
    changed = Scores(*(np.full(2, 1e-4) for _ in range(4)))
    with pytest.raises(NeonError, match="fitness"): ecomp.check(scores, changed, children, others)
    with torch.no_grad(): others[1][2].bias[3] += 1e-6
    with pytest.raises(NeonError, match="child differs"): ecomp.check(scores, scores, children, others)


def test_memory_is_that_of_the_process():
    held = np.ones(30_000_000)
    with common.FamilyMemory() as family: assert common.peak_memory_mb() >= held.nbytes/1e6
    if sys.platform == "linux": assert held.nbytes/1e6 <= family.in_all <= family.largest*1.1
    assert memory.short(EnvConfig()).training.epochs == 2


def test_quick_writes_to_the_named_file_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    costs = {n: {v: float(n) for v in growth.MEASURED} for n in (1, 2)}
    rows = [("", [common.plain_row("gemm", "set", "v", 1.0)]), ("growth", growth.rows_of("rows", costs))]
    monkeypatch.setitem(run.BENCHMARKS, "gemm", lambda options: iter(rows))
    assert run.main(["--quick", "--only", "gemm"]) == 0 and list(tmp_path.iterdir()) == []
    assert run.main(["--quick", "--only", "gemm", "--output", "t.csv"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "t_growth.csv"]
    assert "gemm  set  v  1" in capsys.readouterr().out


def test_options_choose_data_sets():
    assert Options(quick=True).names(("a", "b")) == ["a"] and Options().names(("a", "b")) == ["a", "b"]
    assert Options(quick=True, datasets=("c",)).names(("a", "b")) == ["c"]


def test_a_missing_data_set_is_replaced_by_one_of_its_size(monkeypatch):
    def nowhere(name): raise NeonError("offline")
    monkeypatch.setattr(common, "load_dataset", nowhere)
    data = common.data_of.__wrapped__("diabetes", "paper")
    assert data.name == "diabetes-size" and data.n_features == 8 and data.protocol == "paper"
    with pytest.raises(NeonError, match="offline"): common.data_of.__wrapped__("wine")


def test_a_run_that_was_interrupted_goes_on(tmp_path):
    first = Lines(tmp_path/"table.csv", "dataset", "seed")
    assert not first.holds("wine", 0)
    first.add({"dataset": "wine", "seed": 0, "size": 3})
    first.add({"dataset": "wine", "seed": 1, "size": 4}, {"dataset": "iris", "seed": 0, "size": 5})
    again = Lines(tmp_path/"table.csv", "dataset", "seed")
    assert again.holds("wine", 1) and again.holds("iris", 0) and not again.holds("iris", 1)
    assert again.table["size"].tolist() == [3, 4, 5]
