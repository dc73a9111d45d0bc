"The evaluation of `compress`: settings, folds, resuming, any number of processes, controls at equal cost, tables."
import pandas as pd
import pytest

from neon.foundations.core import NeonError, write_csv
from neon.foundations.data import prepare
from neon.foundations.networks import load_network
from neon.study.compress_runs import (
    COMPRESS_COLUMNS,
    CONTROLS,
    CompressRun,
    base_networks,
    common_networks,
    equal_time_entries,
    fact_entries,
    guess_size,
    halved,
    method_entries,
    oracle_sizes,
    over_budget_entries,
    reference_protocol,
    reference_training,
    run_compress,
    run_controls,
    summary_table,
    twins_of,
    violation_table,
)

QUICK = CompressRun(("iris", "wine"), n_networks=1, budgets=(5.0, 20.0), agents=None, effort=0.1)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    "Base networks of two data sets, with early stopping."
    folder = tmp_path_factory.mktemp("networks")
    for name in QUICK.datasets: base_networks(1, prepare(name), "es", 0, folder/name)
    return folder


@pytest.fixture(scope="module")
def results(networks, tmp_path_factory):
    "All networks compressed by one process."
    return run_compress(QUICK, tmp_path_factory.mktemp("run"), networks=networks)


@pytest.fixture(scope="module")
def facts(networks):
    load = lambda name: {i: load_network(networks/name/"es"/f"net_{i:02d}") for i in range(1)}
    entries = [fact_entries(prepare(name), "es", load(name)) for name in QUICK.datasets]
    return pd.DataFrame([entry for part in entries for entry in part])


@pytest.fixture(scope="module")
def controls(results, facts, networks, tmp_path_factory):
    "All controls on one network per data set, with a tenth of a second each."
    quick = results.assign(seconds=0.1)
    return run_controls(QUICK, tmp_path_factory.mktemp("controls"), quick, facts, numbers=[0], networks=networks)


def test_bad_settings_are_refused():
    for change, message in (({"reference": "late"}, "reference must be es or trained"),
                            ({"budgets": (5.0, 1.0)}, "budgets must rise"), ({"protocol": "lax"}, "unknown protocol"),
                            ({"n_networks": 0}, "n_networks must be at least 1")):
        with pytest.raises(NeonError, match=message): CompressRun(**change)
    assert CompressRun.from_dict(QUICK.to_dict()) == QUICK


def test_references_differ_in_training_only():
    small, large, late = reference_training(8191), reference_training(8192), reference_training(100, "trained")
    assert (small.patience, large.patience, late.patience) == (10, 4, None)
    assert (small.batch_size, large.batch_size, late.epoch_rows, late.epochs) == (128, 256, 4096, 100)
    letter = reference_training(10**6, "trained", "paper")
    assert (letter.epochs, letter.batch_size, letter.learning_rate) == (100, 64, 1e-3)
    assert letter.patience is None and letter.epoch_rows is None
    assert reference_protocol(prepare("iris")).gate == 0.6


def test_the_agent_of_a_fold_never_saw_the_data_set_or_its_twin(tmp_path):
    names = ("no2", "mfeat-karhunen", "mfeat-morphological", "phoneme", "kr-vs-k", "kropt")
    run = CompressRun(("kr-vs-k", "kropt"), agents=str(tmp_path), folds=3, fold_datasets=names)
    assert run.agent("kr-vs-k") == run.agent("kropt") != run.agent("no2")
    assert run.compress("kropt").agent.endswith(".safetensors")
    with pytest.raises(NeonError, match="no fold was dealt"):
        CompressRun(("iris",), agents=str(tmp_path), fold_datasets=names)
    assert CompressRun(agents="generic").agent("iris") == "generic" and CompressRun(agents=None).agent("iris") is None


def test_networks_as_trained_begin_as_those_with_early_stopping(networks):
    early, late = (base_networks(1, prepare("iris"), kind, 0, networks/"iris") for kind in ("es", "trained"))
    assert [n.architecture for n in early] == [n.architecture for n in late]


def test_entries_are_complete_and_honest(results):
    assert tuple(results.columns) == COMPRESS_COLUMNS and len(results) == 4
    assert (results.after <= results.before).all() and (results.oracle <= results.before).all()
    assert ((results.test_after - results.test_before - results.change).abs() < 1e-9).all()
    assert (results.disagree[results.after == results.before] == 0).all()
    within = results[~over_budget_entries(results)]
    assert (within.oracle <= within.after).all()


def test_an_interrupted_run_ends_as_if_it_had_not_been(results, networks, tmp_path):
    write_csv(tmp_path/"compress.csv", results[results.dataset == "iris"])
    again = run_compress(QUICK, tmp_path, workers=2, networks=networks)
    order = ["dataset", "network", "budget"]
    a, b = (t.sort_values(order, ignore_index=True).drop(columns="seconds") for t in (results, again))
    pd.testing.assert_frame_equal(a, b, check_dtype=False)


def test_all_controls_on_the_same_networks(results, controls):
    assert {*controls.method} == {*CONTROLS} and len(controls) == len(CONTROLS)*2*2
    assert not controls.inputs.any() and (controls.after <= controls.before).all()
    both = common_networks(results, controls)
    assert {*both.network} == {0} and {*both.method} == {"compress", *CONTROLS}
    assert (oracle_sizes(both) <= both.oracle).all()
    table = method_entries(both)
    assert len(table) == 2*(1 + len(CONTROLS)) and (table["gap"].dropna() >= 1 - 1e-9).all()


def test_a_control_takes_the_time_that_it_is_given(networks):
    network = load_network(networks/"wine"/"es"/"net_00")
    spent = equal_time_entries(prepare("wine"), 0, network, "distilled, depth 1", seconds=1.5)[0]["seconds"]
    assert 0.5 < spent < 3.5


def test_halving_goes_down_to_one_unit(networks):
    architecture = load_network(networks/"iris"/"es"/"net_00").architecture
    found = halved(architecture, most=10_000)
    assert {*found[-1].hidden_widths} == {1} and found[0].n_params <= 10_000
    assert {a.depth for a in found} == {architecture.depth}


def test_guesses_leave_out_the_data_set_and_its_twin(facts):
    assert twins_of("kropt") == {"kropt", "kr-vs-k"} and twins_of("iris") == {"iris"}
    known = pd.DataFrame({"dataset": ["iris", "wine"], "network": 0, "budget": 1.0, "before": 1000, "after": [10, 500]})
    assert guess_size("constant guess", known, facts, "iris", 0, 1.0, 2000) == 1000
    assert guess_size("ridge", known, facts, "iris", 0, 1.0, 2000) == pytest.approx(500)
    with pytest.raises(NeonError, match="no other data set"):
        guess_size("ridge", known[:1], facts, "iris", 0, 1.0, 2000)


def test_tables(results):
    table = summary_table(results)
    assert table.budget.tolist() == [5.0, 20.0] and (table["data sets"] == 2).all() and (table.low <= table.high).all()
    noise = violation_table(results, draws=200)
    assert (noise["no drop"] <= noise["drop of C"] + 1e-9).all() and (noise.networks == 2).all()
