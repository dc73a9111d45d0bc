"The `neon` command as a user meets it: help, exit statuses, one-line errors, a run in three steps on one's own file."
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from urllib.error import URLError

import pandas as pd
import pytest
import torch

import neon
from neon import cli
from neon.cli import main
from neon.command import runs
from neon.command.runs import check_parameters, default_folder, run_settings, template_parameters
from neon.ecomp.runs import EcompConfig, read_original, read_records, read_winners
from neon.foundations import data as neon_data
from neon.foundations.core import NeonError
from neon.foundations.data import REGISTRY, load_dataset
from neon.foundations.networks import load_network
from neon.foundations.results import RESULT_COLUMNS, read_results, read_training
from neon.published.runs import RunConfig

COMMAND = [sys.executable, "-c", "import sys; from neon.cli import main; sys.exit(main())"]
COMMANDS = ["", "data", "data list", "data show", "run", "networks", "train", "evaluate", "compress", "export",
            "ecomp", "reinforce"]


def started(*words, **options) -> subprocess.Popen:
    "The command in a process of its own, which takes some seconds to import what it needs."
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*COMMAND, *map(str, words)], **pipes, **options)


def ended(running: subprocess.Popen) -> subprocess.CompletedProcess:
    "The same when it is done."
    try: out, err = running.communicate(timeout=300)
    finally: running.kill()
    return subprocess.CompletedProcess(running.args, running.returncode, out, err)


def process(*words, **options) -> subprocess.CompletedProcess:
    "The command in a process of its own."
    return ended(started(*words, **options))


def here(*words, cwd) -> subprocess.CompletedProcess:
    "The command in this process, as if it were one of its own."
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        status = main([*map(str, words)])
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def said(capsys, line: str) -> tuple[int, str, str]:
    "Exit status, standard output and standard error of the command in this process."
    capsys.readouterr()
    return main(line.split()), *capsys.readouterr()


# Help

@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(capsys, command):
    status, out, err = said(capsys, f"{command} --help")
    assert status == 0 and err == ""
    assert f"neon {command}".strip() in out.splitlines()[0], "usage comes first"
    examples = [line for line in out.splitlines() if line.startswith("  ") and "neon" in line]
    assert examples, "help without an example"


def test_help_of_the_stages_names_every_setting(capsys):
    for command in ("run", "networks", "train", "evaluate"):
        text = said(capsys, f"{command} --help")[1]
        for name in RunConfig().to_dict(): assert f"--{name.replace('_', '-')}" in text
        assert "--output-dir" in text and "--workers" in text
    assert "--checkpoint-seconds" in said(capsys, "train --help")[1]
    text = said(capsys, "ecomp --help")[1]
    more = ("output_dir", "workers", "parent", "retrain", "no_save_best", "no_save_results", "save_front")
    for name in (*EcompConfig().to_dict(), *more):
        assert f"--{name.replace('_', '-')}" in text


def test_examples_of_the_help_parse(capsys):
    parser = cli.build_parser()
    for command in COMMANDS[:-1]:
        for line in said(capsys, f"{command} --help")[1].splitlines():
            words = line.partition("(")[0].split()
            if line.startswith("  ") and words[:1] == ["neon"]: assert parser.parse_args(words[1:]).command == words[1]


@pytest.mark.parametrize("line", ["--version", "--help", *(f"{command} --help" for command in COMMANDS[1:-1]), "trian"])
def test_what_needs_no_work_imports_nothing_heavy(line):
    script = ("import sys; from neon.cli import main; main(sys.argv[1:]); print(sorted({'torch', 'sklearn', 'pandas', "
              "'numpy', 'scipy', 'matplotlib', 'papermill'} & {*sys.modules}))")
    done = subprocess.run([sys.executable, "-c", script, *line.split()], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout.splitlines()[-1] + done.stderr


def test_run_and_its_stages_have_the_defaults_of_the_settings():
    for command in ("run", "networks", "train", "evaluate"):
        options = {a.dest: a.help for a in cli.build_parser().parse_args([command]).parser._actions}
        for name, value in RunConfig().to_dict().items():
            assert options[name].endswith(f"(default: {'none' if value is None else value})"), (command, name)


# Exit statuses

def test_as_a_process():
    both = started("--version"), started("networks", "--dataset", "irs")
    done, wrong = map(ended, both)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"neon {neon.__version__}\n", "")
    assert wrong.returncode == 1 and wrong.stdout == "" and wrong.stderr.count("\n") == 1
    assert wrong.stderr.startswith("neon: error: unknown data set 'irs'; did you mean 'iris'")


@pytest.mark.parametrize("line, message", [
    ("trian", "neon: error: unknown command 'trian'; did you mean train?"),
    ("data lst", "neon data: error: unknown command 'lst'; did you mean list?"),
    ("data show", "neon data show: error: the following arguments are required: NAME"),
    ("train --epsiodes 3", "neon train: error: unknown option --epsiodes; did you mean --episodes?"),
    ("run --output_dir x", "neon run: error: unknown option --output_dir; did you mean --output-dir?"),
    ("networks --data iris", "neon networks: error: unknown option --data; did you mean --dataset?"),
    ("networks --seed=zero", "neon networks: error: argument --seed: invalid int value: 'zero'"),
    ("networks iris", "neon networks: error: unexpected word 'iris'"),
    ("train --episodes few", "neon train: error: argument --episodes: expected a whole number or none, got 'few'"),
    ("train --recovery replce", "neon train: error: --recovery: unknown value 'replce'; did you mean replace?"),
    ("ecomp 3", "neon ecomp: error: the following arguments are required: EXPERIMENT"),
    ("ecomp ten 121", "neon ecomp: error: argument N_RUNS: invalid int value: 'ten'"),
    ("ecomp 3 121 --pop-sze 9", "neon ecomp: error: unknown option --pop-sze; did you mean --pop-size?"),
    ("ecomp 3 121 --preset papr", "neon ecomp: error: --preset: unknown value 'papr'; did you mean paper?"),
    ("ecomp 3 121 --loss-weights 1 2", "neon ecomp: error: argument --loss-weights: expected 3 arguments"),
    ("ecomp 3 121 --mutation-rate often",
     "neon ecomp: error: argument --mutation-rate: expected a number or none, got 'often'"),
    ("ecomp 3 121 --parent x --retrain", "neon ecomp: error: argument --retrain: not allowed with argument --parent"),
])
def test_wrong_usage_is_status_2_and_names_the_nearest(capsys, line, message):
    status, out, err = said(capsys, line)
    assert (status, out) == (2, "") and err.splitlines()[0] == message
    assert err.splitlines()[1].startswith("See neon ") and err.endswith("--help\n")


def test_a_target_that_is_not_the_last_column(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = load_dataset("iris")
    table.X.rename(columns=lambda name: name.replace(" ", "_")).assign(flower=table.y).iloc[:, ::-1].to_csv("t.csv",
                                                                                                     index=False)
    options = "--n-networks 2 --n-test 1 --workers 1"
    status, out, err = said(capsys, f"networks --dataset t.csv --target flower {options}")
    assert status == 0, err
    run, = (tmp_path/"runs").iterdir()
    assert run.name.startswith("t_flower_strict") and out.startswith("2 base networks")
    assert json.loads((run/"config.json").read_text())["config"]["dataset"] == "t.csv::flower"
    for command in ("networks", "run", "ecomp 1 121"):
        status, _, err = said(capsys, f"{command} --dataset t.csv --target flwer --output-dir new")
        assert status == 1 and "no column 'flwer' to serve as target; the closest are ['flower'" in err, err
    assert not (tmp_path/"new").exists()


def test_without_a_command_the_help_is_shown(capsys):
    status, out, err = said(capsys, "")
    assert (status, out) == (2, "") and "neon run --dataset wine" in err


@pytest.mark.parametrize("line, message", [
    ("train --budget -1", "a budget is a drop in percentage points, at least 0, got -1.0"),
    ("networks --n-networks 3 --n-test 3", "n_test must lie between 1 and n_networks - 1 = 2, got 3"),
    ("networks --dataset iris --workers 0", "workers must be at least 1, got 0"),
    ("networks --dataset iris --device tpu", "unknown device 'tpu'; use auto, cpu or cuda"),
    ("evaluate --dataset iris",
     f"there is no trained agent at {default_folder(RunConfig('iris'))}/agent.safetensors; run"),
    ("data show nowhere.csv", "nowhere.csv does not exist"),
    ("run --template nowhere.ipynb", "nowhere.ipynb does not exist"),
    ("ecomp 0 121 --dataset iris", "the number of runs must be at least 1, got 0"),
    ("ecomp 1 a/b --dataset iris",
     "the name of an experiment becomes part of file names: letters, digits and _ . + - only, got 'a/b'"),
    ("ecomp 1 all --loss-weights 1 2 1", "the experiments of `all` have their own weights; leave --loss-weights out"),
    ("ecomp 1 121 --emb-layers layer_1", "emb_layers: there is no layer 'layer_1'; there are layer_1_act, layer_2_act"),
    ("ecomp 1 121 --hidden 9 --recombination-layers layer_2_linear",
     "recombination_layers: there is no layer 'layer_2_linear'; there are layer_1_linear, output"),
    ("ecomp 1 121 --parent nowhere.safetensors", "nowhere.safetensors does not exist"),
    ("run --dataset irs", "unknown data set 'irs'; did you mean 'iris'"),
    ("study run --datasets irs --methods uniform", "unknown data set 'irs'; did you mean 'iris'"),
    ("compress nowhere.pt nowhere.csv", "nowhere.pt does not exist"),
    ("train --target species", "--target names a column of the file in --dataset; name that, too"),
    ("ecomp 1 121 --dataset irs", "unknown data set 'irs'; did you mean 'iris'"),
    ("ecomp 1 121 --dataset iris --workers 0", "workers must be at least 1, got 0"),
    ("reinforce --dataset diabetes", "unknown flag '--dataset'; did you mean '--dataset_name'?"),
])
def test_what_cannot_be_done_is_status_1_in_one_line(capsys, tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = said(capsys, line)
    assert (status, out) == (1, "") and err.startswith(f"neon: error: {message}") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


def test_debug_shows_the_traceback(capsys):
    for line in ("--debug train --budget -1", "train --budget -1 --debug"):
        status, _, err = said(capsys, line)
        assert status == 1 and err.startswith("Traceback")
        assert err.splitlines()[-1].startswith("neon: error: a budget is a drop")


@pytest.mark.parametrize("error, message", [
    (OSError(28, "No space left on device", "results.csv"), "neon: error: results.csv: No space left on device\n"),
    (MemoryError(), "neon: error: out of memory; --workers 1 needs least\n"),
    (KeyboardInterrupt(), "neon: interrupted; the same command goes on from where it stopped\n"),
    (ZeroDivisionError("no"), "neon: unexpected ZeroDivisionError: no\nThis is a defect; --debug shows where\n"),
])
def test_other_failures_are_told_without_a_traceback(capsys, monkeypatch, error, message):
    def fail(args): raise error
    monkeypatch.setattr(runs, "networks_command", fail)
    status, _, err = said(capsys, "networks")
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 1) and err == message


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX files")
def test_output_folders_that_cannot_be(capsys, tmp_path):
    (tmp_path/"file").write_text("mine")
    status, _, err = said(capsys, f"networks --dataset iris --n-networks 2 --n-test 1 --output-dir {tmp_path/'file'}")
    assert status == 1 and err == f"neon: error: {tmp_path/'file'} is not a folder that can be written to\n"
    assert (tmp_path/"file").read_text() == "mine"
    status, _, err = said(capsys, "networks --dataset iris --n-networks 2 --n-test 1 --output-dir /proc/neon")
    assert status == 1 and err.startswith("neon: error: /proc") and err.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_ends_everything_at_once(tmp_path):
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell lets its background processes ignore Ctrl-C
    words = f"networks --dataset digits --output-dir {tmp_path/'run'} --workers 2".split()
    running = subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, text=True, start_new_session=True,
                               preexec_fn=heed)
    while not (tmp_path/"run"/"config.json").exists(): time.sleep(0.05)
    time.sleep(1)
    os.killpg(running.pid, signal.SIGINT)
    err = running.communicate(timeout=30)[1]
    assert running.returncode == 130, err
    assert "\nneon: interrupted; the same command goes on from where it stopped\n" in err


# Data

def test_data_list(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("NEON_CACHE", str(tmp_path/"cache"))
    monkeypatch.setenv("NEON_DATA", str(tmp_path))
    (tmp_path/"diabetes.parquet").touch()
    status, out, _ = said(capsys, "data list")
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert status == 0 and set(rows) == {"name", *REGISTRY}
    assert rows["name"] == ["name", "rows", "columns", "classes", "source", "here"]
    assert rows["iris"] == ["iris", "150", "5", "3", "bundled", "yes"]
    assert rows["diabetes"][-2:] == ["yes,", "NEON_DATA"] and rows["nursery"][-1] == "download"


def test_data_show(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("NEON_CACHE", str(tmp_path/"cache"))
    monkeypatch.delenv("NEON_DATA", raising=False)
    assert "| rows | 150 |" in said(capsys, "data show iris")[1]
    card = said(capsys, "data show cardiotocography")[1]
    assert "## Leaks" in card and "Measured" not in card, "a table that is not at hand is not downloaded for its card"
    table = load_dataset("iris")
    table.X.assign(flower=table.y).to_csv(tmp_path/"mine.csv", index=False)
    out = said(capsys, f"data show {tmp_path/'mine.csv'}")[1]
    assert out.startswith("# mine\n") and "target `flower`" in out and "- rows measured: 150" in out


# A run in three steps

@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A csv file of one's own, base networks, an agent and its results; and what the three commands printed."
    folder = tmp_path_factory.mktemp("cli")
    table = load_dataset("iris")
    table.X.assign(flower=table.y).to_csv(folder/"my flowers.csv", index=False)
    options = ["--dataset", "my flowers.csv", *"--n-networks 3 --n-test 1 --episodes 2 --passes 1 --workers 1".split()]
    first = process("networks", *options, cwd=folder)  # what the others find is what another process left
    return folder, [first, *(here(command, *options, cwd=folder) for command in ("train", "evaluate"))]


def test_three_steps_on_a_file(finished):
    folder, done = finished
    run = folder/"runs"/f"my flowers_strict_C1_1passes_{RunConfig().recovery}_seed0"
    assert [d.returncode for d in done] == [0, 0, 0], [d.stderr for d in done]
    assert done[0].stdout.startswith("3 base networks of ")
    assert done[1].stdout.startswith("agent trained in 2 episodes on 2 networks")
    assert "base networks: 100%" in done[0].stderr and "episodes: 100%" in done[1].stderr, "progress is shown"
    header, *rows = [line for line in done[2].stdout.splitlines() if line]
    assert header.split()[0] == "network" and [row.split()[0] for row in rows[1:3]] == ["arithmetic", "geometric"]
    train, test = (read_results(run/f"results_{part}.csv") for part in ("train", "test"))
    assert list(test) == RESULT_COLUMNS and (len(train), len(test)) == (2, 1)
    assert set(test.dataset) == {"my flowers"}
    assert rows[0].split()[0] == test.network[0] and len(read_training(run/"training.csv")) == 2
    assert not list(run.rglob("*.tmp")) and not (run/"agent_checkpoint.safetensors").exists()


def test_naming_the_folder_is_enough_to_go_on(finished, capsys, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    run = next((folder/"runs").iterdir())
    written = lambda: {p.name: p.stat().st_mtime_ns for p in [*(run/"networks").iterdir(), run/"agent.safetensors"]}
    before = written()
    for command in ("networks", "train", "evaluate"):
        assert main([command, "--output-dir", str(run), "--workers", "1"]) == 0
    assert before == written(), "trained again"
    capsys.readouterr()
    assert main(["train", "--output-dir", str(run), "--seed", "1"]) == 1
    assert "holds a run with other settings (seed); choose another folder or remove it" in capsys.readouterr().err


def test_settings_come_from_options_then_folder_then_defaults(finished, tmp_path):
    run = next((finished[0]/"runs").iterdir())
    config, folder = run_settings({"budget": 5.0}, run, {"passes": 3, "device": "cpu"})
    assert (config.budget, config.passes, config.n_networks, config.device, folder) == (5.0, 1, 3, "cpu", run)
    assert run_settings({}, tmp_path)[0] == RunConfig()
    sliced = RunConfig("a/b.csv.gz", budget=2.5, recovery="slice")
    assert default_folder(sliced).as_posix() == "runs/b_strict_C2.5_4passes_slice_seed0"


# Templates

def template(path, source: str, tags=("parameters",)):
    "A notebook with one cell."
    cell = {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": source}
    path.write_text(json.dumps({"cells": [cell]}))
    return path


def test_parameters_of_a_template(tmp_path):
    good = template(tmp_path/"t.ipynb", 'dataset: str = "wine" # which\nn: int | None = None')
    assert template_parameters(good) == {"dataset": "wine", "n": None}
    check_parameters({"n": 3}, good)
    with pytest.raises(NeonError, match="t.ipynb has no parameter 'datset'; did you mean dataset?"):
        check_parameters({"datset": "iris"}, good)
    for bad, message in [(template(tmp_path/"no.ipynb", "n = 1", []), "no cell tagged `parameters`"),
                         (cli.__file__, "cli.py is not JSON"),
                         (template(tmp_path/"x.ipynb", "n = max(1)"), "must hold lines such as `seed: int = 0` only")]:
        with pytest.raises(NeonError, match=message): template_parameters(bad)


def test_run_without_papermill_says_what_to_install(capsys, tmp_path, monkeypatch):
    file = template(tmp_path/"t.ipynb", 'dataset: str = "wine"')
    monkeypatch.setattr(runs.importlib.util, "find_spec", lambda name: None)
    status, _, err = said(capsys, f"run --template {file} --output-dir {tmp_path/'run'}")
    assert (status, err) == (1, "neon: error: `neon run` needs papermill; pip install 'neon-compression[notebooks]'\n")
    assert not (tmp_path/"run").exists()


# EComp

SMALL = "--dataset digits --hidden 24 16 --parent-epochs 15 --pop-size 8 --generations 4 --workers 1"


@pytest.fixture(scope="module")
def bred(tmp_path_factory):
    "Two runs of one weighting, and what the command printed."
    folder = tmp_path_factory.mktemp("ecomp")
    return folder, here("ecomp", 2, "121", *SMALL.split(), cwd=folder)


def test_ecomp(bred):
    folder, done = bred
    run = folder/"runs"/"ecomp_digits_paper_24-16_seed0"
    assert done.returncode == 0, done.stderr
    for shown in ("generations, seed 0: 100%", "generations, seed 1: 100%", "similarity="): assert shown in done.stderr
    header, entry, last = [line for line in done.stdout.splitlines() if line]
    assert header.split()[:2] == ["experiment", "weights"] and entry.split()[:3] == ["121", "121", "2"]
    assert last == ("Means and standard deviations over runs; test rows. "
                    "All results are in runs/ecomp_digits_paper_24-16_seed0")
    winners = read_winners(run)
    assert list(winners.run) == [1, 2] and f"{100*winners.test_accuracy.mean():.2f}%" in entry
    assert f"{100*winners.parent_test_accuracy[0]:.2f}%" in entry
    assert {read_original(path)[1]["run"] for path in (run/"results").iterdir()} == {1, 2}


def test_ecomp_goes_on_and_takes_more_experiments(bred, capsys, monkeypatch):
    folder, _ = bred
    monkeypatch.chdir(folder)
    run = folder/"runs"/"ecomp_digits_paper_24-16_seed0"
    before, seconds = read_records(run), read_winners(run).seconds.tolist()
    for words in ("3 121", "1 mine --loss-weights 1 0.5 1", "1 mine", "1 all"):
        status, out, err = said(capsys, f"ecomp {words} --output-dir {run} --workers 1")
        assert status == 0, err
    assert out.count("%") == 2*7 and "mine" not in out
    winners, records = read_winners(run), read_records(run)
    once = dict.fromkeys(("001", "020", "021", "100", "101", "120", "mine"), 1)
    assert dict(winners.groupby("experiment").size()) == once | {"121": 3}
    assert winners[winners.experiment == "mine"].weights.item() == "1/0.5/1"
    assert winners[winners.experiment == "121"].seconds.tolist()[:2] == seconds, "finished runs were repeated"
    first = records[(records.experiment == "121") & (records.run < 3)].reset_index(drop=True)
    pd.testing.assert_frame_equal(first, before)
    status, _, err = said(capsys, f"ecomp 1 mine --loss-weights 1 1 1 --output-dir {run}")
    assert status == 1
    assert f"the experiment mine in {run} has weights 1/0.5/1, not 111; choose another name or folder" in err
    status, _, err = said(capsys, f"ecomp 1 121 --pop-size 9 --output-dir {run}")
    assert status == 1
    assert err.endswith("holds runs with other settings (pop_size); choose another folder or remove it\n")
    status, _, err = said(capsys, f"train --output-dir {run}")
    assert status == 1 and "holds a run of another kind" in err and err.count("\n") == 1


def test_ecomp_with_a_given_parent(bred, capsys, tmp_path):
    parent = bred[0]/"runs"/"ecomp_digits_paper_24-16_seed0"/"parent.safetensors"
    options = "--dataset digits --pop-size 6 --generations 2 --workers 1 --no-save-best --no-save-results"
    status, out, err = said(capsys, f"ecomp 1 021 {options} --parent {parent} --output-dir {tmp_path/'run'}")
    assert status == 0, err
    assert not (tmp_path/"run"/"weights").exists() and not (tmp_path/"run"/"results").exists()
    theirs, ours = (load_network(p).state_dict() for p in (parent, tmp_path/"run"/"parent"))
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    elsewhere = f"--output-dir {tmp_path/'other'} --workers 1"
    status, _, err = said(capsys, f"ecomp 1 021 --dataset iris --parent {parent} {elsewhere}")
    assert status == 1 and err.count("\n") == 1
    assert "is a 64-24-16-10 network, but iris has 4 features and 3 classes" in err


def test_ecomp_without_network_and_data_says_what_to_do(capsys, tmp_path, monkeypatch):
    def no_network(*args, **kwargs): raise URLError("no network in tests")
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr("sklearn.datasets._openml.urlopen", no_network)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("NEON_CACHE", str(tmp_path/"cache"))
    monkeypatch.delenv("NEON_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    status, out, err = said(capsys, "ecomp 1 121")
    assert (status, out) == (1, "") and err.count("\n") == 1
    assert err.startswith("neon: error: cannot fetch 'fashion_mnist'")
    assert "Without network, set NEON_DATA to a folder that holds fashion_mnist" in err
    assert not (tmp_path/"runs").exists() and neon_data.whereabouts("fashion_mnist") == "download"
