"EComp from data to files: the original's JSON, tables, resuming in a run, any number of processes, wrong input."
import json
import shutil

import pandas as pd
import pytest
from safetensors.numpy import load_file

from neon.ecomp import evolution
from neon.ecomp.runs import (
    RECORD_COLUMNS,
    WEIGHTINGS,
    WINNER_COLUMNS,
    EcompConfig,
    experiment_config,
    original_results,
    prepare_ecomp,
    read_front,
    read_original,
    read_records,
    read_winners,
    run_experiment,
    run_experiments,
    run_weightings,
    train_parent,
    weightings_table,
)
from neon.foundations.core import NeonError, read_json, write_json
from neon.foundations.networks import Architecture, Layer, build_network, load_network, network_facts, save_network
from neon.foundations.training import evaluate

SMALL = EcompConfig("digits", hidden=(24, 16), parent_epochs=15, pop_size=8, generations=6)
ORIGINAL = "2026-11-20_lossweights121_1.json"


@pytest.fixture(scope="module")
def data(): return prepare_ecomp(SMALL)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    "Two weightings, two runs each, by one process, without an interruption."
    folder = tmp_path_factory.mktemp("ecomp")/"run"
    run_weightings(SMALL, ("021", "121"), 2, folder, workers=1, data=data, progress=False)
    return folder


@pytest.fixture
def begun(finished, tmp_path):
    "A folder with the parent only."
    folder = tmp_path/"run"
    folder.mkdir()
    shutil.copy(finished/"parent.safetensors", folder)
    return folder


def weights(folder, experiment: str, run: int) -> dict[str, bytes]:
    "The winner's tensors, bit by bit."
    (path,) = (folder/"weights").glob(f"best-net_*_lossweights{experiment}_{run}.safetensors")
    return {name: (value.shape, value.tobytes()) for name, value in load_file(path).items()}


def assert_same_numbers(folder, other) -> None:
    "The same winners, generations, weights and JSON files; dates and seconds apart."
    pd.testing.assert_frame_equal(*(read_winners(f).drop(columns="seconds") for f in (folder, other)), check_exact=True)
    assert (folder/"records.csv").read_bytes() == (other/"records.csv").read_bytes()
    for row in read_winners(folder).itertuples():
        assert weights(folder, row.experiment, row.run) == weights(other, row.experiment, row.run)
        one, two = (next((f/"results").glob(f"*_lossweights{row.experiment}_{row.run}.json")) for f in (folder, other))
        assert {**read_json(one), "name": ""} == {**read_json(two), "name": ""}


# The original's files

def test_original_is_read_and_written_again(root):
    path = root/"tests"/"fixtures"/"ecomp"/ORIGINAL
    records, facts = read_original(path)
    assert list(records) == RECORD_COLUMNS and len(records) == 4 and records.loss_best.isna().all()
    assert (facts["date"], facts["experiment"], facts["run"], facts["weights"]) == ("2026-11-20", "121", 1, "121")
    assert (facts["test_accuracy"], facts["pop_size"]) == (0.8, 10)
    assert records.size_best[0] < records.size_average[0] < records.size_worst[0], "the best size is the smallest"
    config = EcompConfig(pop_size=10, loss_weights=(1, 2, 1))
    again = original_results(config, read_json(path)["name"], records, facts["test_accuracy"])
    assert again == read_json(path)
    assert json.dumps(again) == path.read_text().strip(), "keys in the same order, numbers alike"


def shape(value):
    "Keys and types of a JSON value; a list counts as its first element."
    if isinstance(value, dict): return {key: shape(v) for key, v in value.items()}
    return [shape(value[0])] if isinstance(value, list) else type(value).__name__


def test_schema_is_the_originals(root, finished):
    theirs = read_json(root/"tests"/"fixtures"/"ecomp"/ORIGINAL)
    (path,) = (finished/"results").glob("*_lossweights121_1.json")
    ours = read_json(path)
    assert shape(ours) == shape(theirs) and ours["name"] == path.stem
    assert ours["configs"] == {**theirs["configs"], "pop_size": 8}
    records, facts = read_original(path)
    stored = read_records(finished)
    stored = stored[(stored.experiment == "121") & (stored.run == 1)].reset_index(drop=True)
    shared = [name for name in RECORD_COLUMNS if not name.startswith("loss")]
    pd.testing.assert_frame_equal(records[shared], stored[shared], check_exact=True)
    winner = read_winners(finished).query("experiment == '121' and run == 1")
    assert facts["test_accuracy"] == winner.test_accuracy.item()


@pytest.mark.parametrize("change, message", [
    (lambda v: v.pop("best_test_acc"), "it has no best_test_acc"),
    (lambda v: v["results"].pop("loss"), "it has no results.loss"),
    (lambda v: v["results"]["loss"].update(best=[]), "results.loss.best is no list of numbers"),
    (lambda v: v["results"]["accuracy"].update(worst=[0.1, "x"]), "results.accuracy.worst is no list of numbers"),
    (lambda v: v["results"]["accuracy"].update(worst=[0.1]), "its lists differ in length"),
    (lambda v: v["results"]["accuracy"].update(best=[7, 7, 7, 7]), "column 'accuracy_best', row 0: 7 is not possible"),
    (lambda v: v.update(name="mine"), "its name is 'mine'"),
    (lambda v: v["configs"].update(loss_weights=[1, 2]), "its weights are"),
    (lambda v: v.update(results=3), "it has no results.fitness"),
])
def test_foreign_and_damaged_originals_are_refused(root, tmp_path, change, message):
    values = read_json(root/"tests"/"fixtures"/"ecomp"/ORIGINAL)
    change(values)
    write_json(tmp_path/"x.json", values)
    with pytest.raises(NeonError, match=message): read_original(tmp_path/"x.json")


def test_files_that_are_no_json(root, tmp_path):
    (tmp_path/"half.json").write_bytes((root/"tests"/"fixtures"/"ecomp"/ORIGINAL).read_bytes()[:500])
    with pytest.raises(NeonError, match="half.json is not JSON"): read_original(tmp_path/"half.json")
    with pytest.raises(NeonError, match="none.json does not exist"): read_original(tmp_path/"none.json")
    write_json(tmp_path/"list.json", [1, 2])
    with pytest.raises(NeonError, match="list.json holds .1, 2."): read_original(tmp_path/"list.json")


# Settings

def test_names_of_layers():
    config = EcompConfig(hidden=(30, 20, 10), emb_layers=("layer_3_act", "layer_1_act"),
                         recombination_layers=("output", "layer_2_linear"))
    assert config.evolution().compared_layers == (0, 2) and config.evolution().mixed_layers == (1, 3)
    assert EcompConfig(hidden=(30,)).layers() == (("layer_1_act",), ("layer_1_linear", "output"))
    for wrong, message in [({"emb_layers": ("layer_3_act",)},
                            "no layer 'layer_3_act'; there are layer_1_act, layer_2_act"),
                           ({"emb_layers": ("output",)}, "no layer 'output'"),
                           ({"emb_layers": ()}, "names at least one layer"),
                           ({"recombination_layers": ("layer_1",)}, "there are layer_1_linear, layer_2_linear, output"),
                           ({"recombination_layers": ("output", "output")}, "each once")]:
        with pytest.raises(NeonError, match=message): EcompConfig(**wrong)


@pytest.mark.parametrize("wrong, message", [
    ({"preset": "papr"}, "unknown preset 'papr'"),
    ({"hidden": ()}, "one width of at least 1 per layer"), ({"hidden": (3, 0)}, "one width"),
    ({"pop_size": 1}, "at least 2 members"), ({"seed": -1}, "seed must be"),
    ({"mutation_rate": 2.0}, "mutation_rate is a probability"),
    ({"loss_weights": (1, 2)}, "must be a list of 3 numbers"), ({"parent_epochs": -1}, "parent_epochs must be"),
    ({"preset": "neon", "batch_size": 50}, "evaluates on fixed rows"),
    ({"preset": "neon", "recombination_layers": ("output",)}, "layer by layer"),
])
def test_impossible_settings(wrong, message):
    with pytest.raises(NeonError, match=message): EcompConfig(**wrong)


def test_weights_of_experiments(finished):
    found = [experiment_config(EcompConfig(), name).weights for name in WEIGHTINGS[:3]]
    assert found == [(0, 0, 1), (0, 2, 0), (1, 0, 0)]
    assert experiment_config(EcompConfig(), "test").weights == (0, 2, 1)
    for name in ("a/b", "", ".hidden", "a b", "*"):
        with pytest.raises(NeonError, match="becomes part of file names"): experiment_config(EcompConfig(), name)
    with pytest.raises(NeonError, match="the experiment 021 in .* has weights 021, not 111"):
        run_experiment(SMALL.replace(loss_weights=(1, 1, 1)), "021", 1, finished, workers=1)
    with pytest.raises(NeonError, match="experiments have different names"):
        run_experiments(SMALL, ("021", "021"), 1, finished)
    with pytest.raises(NeonError, match="number of runs must be at least 1"):
        run_experiments(SMALL, ("021",), 0, finished)


# Runs

def test_what_a_run_leaves(finished, data):
    winners, records = read_winners(finished), read_records(finished)
    assert list(winners) == WINNER_COLUMNS
    assert list(zip(winners.experiment, winners.run, winners.seed, strict=True)) == [
        ("021", 1, 0), ("021", 2, 1), ("121", 1, 0), ("121", 2, 1)]
    assert (records.groupby(["experiment", "run"]).size() == SMALL.generations + 1).all()
    assert (records.similarity_average > 0).all()
    assert (winners.preset == "paper").all() and (winners.dataset == "digits").all()
    for row in winners.itertuples():
        (path,) = (finished/"weights").glob(f"best-net_*_lossweights{row.experiment}_{row.run}.safetensors")
        network = load_network(path)
        assert evaluate(network, data.X_test, data.y_test) == row.test_accuracy
        assert network.architecture.n_params == row.n_params < row.parent_params
        assert "-".join(map(str, network.architecture.hidden_widths)) == row.hidden_widths
    parent = network_facts(finished/"parent")
    assert set(winners.parent_test_accuracy) == {parent["test_accuracy"]} and parent["source"] == "trained"
    assert sorted(p.name for p in finished.glob("[!.]*")) == [
        "config.json", "parent.safetensors", "records.csv", "results", "weights", "winners.csv"]
    assert list(weightings_table(winners).runs) == [2, 2]


def test_weights_do_not_change_where_a_run_begins(finished):
    first = read_records(finished).query("generation == 0")
    for measure in ("accuracy", "similarity", "size", "loss"):
        assert (first.groupby("run")[f"{measure}_average"].nunique() == 1).all()
    assert first.groupby("run").accuracy_average.first().nunique() == 2


def test_interrupted_in_the_second_run(finished, begun, data, monkeypatch):
    before, calls = evolution._next, []

    def interrupted(state, search):
        calls.append(1)
        if len(calls) > SMALL.generations + 3: raise KeyboardInterrupt
        before(state, search)

    monkeypatch.setattr(evolution, "_next", interrupted)
    options = {"data": data, "progress": False, "every": 2}
    with pytest.raises(KeyboardInterrupt): run_experiments(SMALL, ("021", "121"), 2, begun, workers=1, **options)
    assert len(read_winners(begun)) == 1 and [p.name for p in begun.glob("search_*")] == ["search_121_1.safetensors"]
    result = next((begun/"results").iterdir())
    (begun/"results"/f"2001-01-01{result.name[10:]}").write_text(result.read_text())
    stamp = result.stat().st_mtime_ns

    monkeypatch.setattr(evolution, "_next", lambda state, search: (calls.append(2), before(state, search)))
    run_experiments(SMALL, ("021", "121"), 2, begun, workers=1, **options)
    assert calls.count(2) == 3*SMALL.generations - 2, "the search did not go on from its last save"
    assert result.stat().st_mtime_ns == stamp, "a finished run was repeated"
    next((begun/"results").glob("2001*")).unlink()
    assert_same_numbers(begun, finished)
    assert not list(begun.glob("search_*")) and not list(begun.rglob("*.tmp"))


def test_numbers_do_not_depend_on_workers(finished, tmp_path):
    run_weightings(SMALL, ("121", "021"), 2, tmp_path/"run", workers=2, progress=False)
    assert_same_numbers(tmp_path/"run", finished)


def test_a_run_written_again_replaces_its_files(finished, begun, data):
    for name in ("results", "weights", "config.json", "records.csv"):
        (shutil.copytree if (finished/name).is_dir() else shutil.copy)(finished/name, begun/name)
    (old,) = (begun/"results").glob("*_lossweights121_2.json")
    # as if it was another day, and killed before the table
    old.rename(old.with_name(f"2001-01-01{old.name[10:]}"))
    read_winners(finished).query("experiment == '021' or run == 1").to_csv(begun/"winners.csv", index=False)
    run_experiment(SMALL, "121", 2, begun, workers=1, data=data, progress=False)
    assert_same_numbers(begun, finished)
    assert not list((begun/"results").glob("2001*"))


def test_saving_can_be_switched_off(begun, data):
    run_experiment(SMALL, "121", 1, begun, workers=1, data=data, progress=False, save_best=False, save_results=False)
    assert not (begun/"results").exists() and not (begun/"weights").exists() and len(read_winners(begun)) == 1


# Parents

def test_any_saved_network_may_be_the_parent(begun, data, tmp_path):
    network = build_network(Architecture(64, (Layer(20, "tanh", ("batchnorm",)), Layer(12), Layer(8),
                                              Layer(10, "softmax"))))
    save_network(network, tmp_path/"deep")
    deep = SMALL.replace(hidden=(20, 12, 8))
    options = {"workers": 1, "data": data, "progress": False}
    winners, _ = run_experiment(deep, "121", 1, tmp_path/"deep run", parent=tmp_path/"deep.safetensors", **options)
    assert winners.hidden_widths[0].count("-") == 2 and winners.parent_params[0] == network.architecture.n_params
    run_experiment(deep, "021", 1, tmp_path/"deep run", **options)
    with pytest.raises(NeonError, match="holds runs of another parent"):
        run_experiment(deep, "021", 1, tmp_path/"deep run", retrain=True, **options)
    with pytest.raises(NeonError, match="is a 5-3-2 network, but digits has 64 features and 10 classes"):
        save_network(build_network(Architecture(5, (Layer(3), Layer(2, "identity")))), tmp_path/"other")
        train_parent(SMALL, data, begun, tmp_path/"other")
    with pytest.raises(NeonError, match=r"has the hidden widths \(20, 12, 8\), the settings say \(24, 16\)"):
        train_parent(SMALL, data, begun, tmp_path/"deep")
    with pytest.raises(NeonError, match="nowhere.safetensors does not exist"):
        train_parent(SMALL, data, begun, tmp_path/"nowhere")


def test_retraining_gives_the_same_parent(finished, data):
    before = load_file(finished/"parent.safetensors")
    train_parent(SMALL, data, finished, retrain=True)
    after = load_file(finished/"parent.safetensors")
    assert all((before[name] == after[name]).all() for name in before)
    shutil.copytree(finished, finished.with_name("copy"))
    # loads: the folder's settings are checked elsewhere
    train_parent(SMALL.replace(parent_epochs=1), data, finished.with_name("copy"))
    with pytest.raises(NeonError, match="holds runs of another parent"):
        train_parent(SMALL.replace(parent_epochs=1), data, finished.with_name("copy"), retrain=True)


def test_a_single_hidden_layer(data, tmp_path):
    winners, _ = run_experiment(SMALL.replace(hidden=(20,), generations=2), "121", 1, tmp_path/"run", workers=1,
                                data=data, progress=False)
    assert winners.hidden_widths[0].isdigit() and int(winners.hidden_widths[0]) < 20
    assert read_winners(tmp_path/"run").hidden_widths.tolist() == winners.hidden_widths.tolist()


# Our preset

def test_front(data, tmp_path):
    config = SMALL.replace(preset="neon", generations=3)
    run_experiments(config, ("121",), 2, tmp_path/"run", workers=1, data=data, progress=False, save_front=True)
    front = read_front(tmp_path/"run")
    assert set(front.run) == {1, 2}
    for run, rows in front.groupby("run"):
        assert rows.kept_width.is_monotonic_increasing and rows.validation_loss.is_monotonic_decreasing
        for row in rows.itertuples():
            network = load_network(tmp_path/"run"/"weights"/f"front_121_{run}"/f"net_{row.member:02d}")
            assert network.architecture.n_params == row.n_params
            assert evaluate(network, data.X_test, data.y_test) == row.test_accuracy


# Folders and tables

def test_folders_of_others_are_refused(finished, tmp_path, data):
    with pytest.raises(NeonError, match=r"holds runs with other settings \(pop_size, seed\)"):
        run_experiment(SMALL.replace(pop_size=9, seed=1), "121", 1, finished, workers=1, data=data)
    write_json(tmp_path/"config.json", {"config": {"budget": 1.0}})
    with pytest.raises(NeonError, match="holds a run of another kind"):
        run_experiment(SMALL, "121", 1, tmp_path, workers=1, data=data)
    (tmp_path/"file").write_text("mine")
    with pytest.raises(NeonError, match="is not a folder that can be written to"):
        run_experiment(SMALL, "121", 1, tmp_path/"file", workers=1, data=data)


@pytest.mark.parametrize("damage, message", [
    (lambda text: text.replace("kept_width", "size"), "expected the columns experiment, preset"),
    (lambda text: text.replace("121,1,0,", "121,1,0,x"), "column 'test_accuracy', row 2: x0[.]"),
    (lambda text: text + text.splitlines()[-1] + "\n", "row 4 repeats {'experiment': '121', 'run': 2}"),
    (lambda text: "", "is not a readable csv"),
])
def test_damaged_tables_are_refused(finished, tmp_path, damage, message):
    text = (finished/"winners.csv").read_text()
    (tmp_path/"winners.csv").write_text(damage(text))
    with pytest.raises(NeonError, match=message): read_winners(tmp_path)
    with pytest.raises(NeonError, match="records.csv does not exist"): read_records(tmp_path)
