"`neon compress` as a user meets it: a network and a table go in, files come out; what does not fit is one line."
import io
import json
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_diabetes, load_iris

from neon.cli import main
from neon.command import compress as command
from neon.compression.export import to_onnx
from neon.foundations.core import TrainingConfig, torch_generator
from neon.foundations.networks import Architecture, Layer, build_network, load_network, network_facts, save_network
from neon.foundations.training import AnnealConfig, anneal, predict, train_networks

COMMAND = [sys.executable, "-c", "import sys; from neon.cli import main; sys.exit(main())", "compress"]


def neon_compress(*words, **options) -> subprocess.CompletedProcess:
    "The command in a process of its own."
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=300,
                          stdin=subprocess.DEVNULL, **options)


def here(*words) -> subprocess.CompletedProcess:
    "The command in this process, which has imported already what a new one takes seconds to import."
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err): status = main(["compress", *map(str, words)])
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    "A trained network and its table, both saved; iris, three times over with a little noise, since 150 rows are few."
    folder, rng = tmp_path_factory.mktemp("flowers"), np.random.default_rng(0)
    data = load_iris(as_frame=True)
    X, names = np.tile(data.data.to_numpy(), (3, 1)), np.tile(data.target_names[data.target], 3)
    columns = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    table = pd.DataFrame((X + 0.1*rng.normal(size=X.shape)).round(3), columns=columns).assign(species=names)
    table = table.sample(frac=1, random_state=0)
    table[:300].to_csv(folder/"train.csv", index=False)
    table[300:].to_csv(folder/"unseen.csv", index=False)
    x = torch.tensor(table[columns].to_numpy(), dtype=torch.float32)
    y = torch.tensor(table.species.map(list(data.target_names).index).to_numpy())
    shape = Architecture(4, (Layer(50), Layer(30), Layer(3, "identity")))
    network, rows = build_network(shape, torch_generator(0, "weights")), (x[:300], y[:300])
    trained = train_networks([network], *rows, *rows, TrainingConfig(60, 64, 5e-3), 0)[0].network
    save_network(trained, folder/"net", classes=data.target_names.tolist())
    return folder


def test_a_network_and_a_table_become_a_small_network(flowers, tmp_path):
    done = neon_compress(
        flowers/"net.safetensors", flowers/"train.csv", "--validation", flowers/"unseen.csv", "--budget", 3,
        "--no-agent", "--effort", 0.3, "--onnx", "--output", tmp_path/"out", "--seed", 1)
    assert done.returncode == 0, done.stderr
    files = sorted(p.name for p in (tmp_path/"out").glob("[!.]*"))
    assert files == ["compression.png", "compression.svg", "config.json", "network.onnx", "network.safetensors",
                     "report.csv", "report.json"]
    report = json.loads((tmp_path/"out/report.json").read_text())
    small, large = load_network(tmp_path/"out/network"), load_network(flowers/"net")
    before, after = report["before"]["parameters"], report["after"]["parameters"]
    assert after == small.architecture.n_params < large.architecture.n_params == before
    assert report["drop"]["bound"] <= 3 and report["metric"] == "accuracy" and report["drop"]["rows"] > 50
    assert list(pd.read_csv(tmp_path/"out/report.csv")) == ["measure", "before", "after"]
    assert "times smaller" in done.stdout and "parameters" in done.stdout and str(tmp_path/"out") in done.stdout

    unseen = pd.read_csv(flowers/"unseen.csv")
    x = torch.tensor(unseen.iloc[:, :4].to_numpy(), dtype=torch.float32)
    classes = network_facts(tmp_path/"out/network")["classes"]
    answers = np.array(classes)[predict(small, x).argmax(1).numpy()]
    before = np.array(classes)[predict(large, x).argmax(1).numpy()]
    assert (answers == unseen.species).mean() >= (before == unseen.species).mean() - 0.06
    session = onnxruntime.InferenceSession(tmp_path/"out/network.onnx")
    probabilities = predict(small, x).softmax(1).numpy()
    assert np.abs(session.run(None, {"x": x.numpy()})[0] - probabilities).max() < 1e-5


def test_the_same_seed_gives_the_same_network(flowers, tmp_path):
    found = []
    for name, run in (("one", neon_compress), ("two", here)):  # a new process, and one that did other things before
        done = run(flowers/"net", flowers/"train.csv", "--no-agent", "--effort", 0.1, "--output", tmp_path/name)
        assert done.returncode == 0, done.stderr
        found.append((tmp_path/name/"network.safetensors").read_bytes())
    assert found[0] == found[1]


def test_the_agent_and_the_front(flowers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = here(flowers/"net.safetensors", flowers/"train.csv", "--front", "--budget", 4, "--objective", "macs",
                "--effort", 0.3)
    assert done.returncode == 0, done.stderr
    folder = tmp_path/"runs/compress_net_search_C4_seed0"
    front = pd.read_csv(folder/"front.csv")
    assert 4.0 in set(front.budget) and len(front) >= 4 and (front.parameters > 0).all()
    assert all((folder/f"budget_{budget:g}/network.safetensors").is_file() for budget in front.budget)
    assert load_network(folder/"network").architecture == load_network(folder/"budget_4/network").architecture


def test_a_regression(tmp_path):
    X, y = load_diabetes(return_X_y=True)
    pd.DataFrame(X).add_prefix("f").assign(progress=y).to_csv(tmp_path/"table.csv", index=False)
    x, values = torch.tensor(X, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)[:, None]
    network = build_network(Architecture(10, (Layer(40, "tanh"), Layer(1, "identity"))), torch_generator(0, "weights"))
    with torch.no_grad(): network.layers[0].linear.weight *= 20; network.layers[1].linear.bias += values.mean()
    trained = anneal([network], x, values, AnnealConfig(400, 64, 0.1, loss="squared"), 0)[0]
    save_network(trained, tmp_path/"net")
    done = here(tmp_path/"net.safetensors", tmp_path/"table.csv", "--budget", 5, "--effort", 0.3,
                "--output", tmp_path/"out")
    assert done.returncode == 0, done.stderr
    small = load_network(tmp_path/"out/network")
    error = lambda n: float((predict(n, x) - values).square().mean()/values.var())
    assert small.architecture.n_params < 200 and error(small) < 0.7
    assert json.loads((tmp_path/"out/report.json").read_text())["metric"] == "r2"


def refused(capsys, *words) -> str:
    "The one line on standard error of a command that must fail (in this process)."
    capsys.readouterr()
    assert main(["compress", *map(str, words)]) == 1
    line, = capsys.readouterr().err.splitlines()
    return line


def test_features_that_are_not_numbers_are_named(flowers, tmp_path, capsys):
    table = pd.read_csv(flowers/"train.csv").assign(petal_width=lambda t: np.where(t.petal_width > 1, "wide", "narrow"))
    table.to_csv(tmp_path/"words.csv", index=False)
    line = refused(capsys, flowers/"net.safetensors", tmp_path/"words.csv", "--output", tmp_path/"out")
    assert "takes 4 features" in line and "3 columns of numbers" in line and "not numbers: petal_width" in line
    assert not (tmp_path/"out").exists()


@pytest.mark.parametrize("words, message", [
    (["--budget", "-1"], "a budget is a drop in points"), (["--target", "specis"], "no column 'specis'"),
    (["--confidence", "2"], "confidence must be"), (["--time-limit", "0"], "time_limit must be"),
    (["--effort", "0"], "effort must be"),
    (["--agent", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
    (["--validation", "nowhere.csv"], "nowhere.csv does not exist"),
])
def test_mistakes_are_one_line(flowers, tmp_path, capsys, words, message):
    files = flowers/"net.safetensors", flowers/"train.csv"
    assert message in refused(capsys, *files, *words, "--output", tmp_path/"out")
    assert not (tmp_path/"out").exists()


@pytest.mark.parametrize("column, value, message", [("species", "tulip", "the class 'tulip'"),
                                                    ("petal_width", np.nan, "expected a number")])
def test_labels_and_rows_that_the_network_cannot_know(flowers, tmp_path, capsys, column, value, message):
    table = pd.read_csv(flowers/"train.csv")
    table.assign(**{column: table[column].where(table.index != 5, value)}).to_csv(tmp_path/"table.csv", index=False)
    assert message in refused(capsys, flowers/"net.safetensors", tmp_path/"table.csv", "--output", tmp_path/"out")


# Folders

QUICK = ("--no-agent", "--effort", 0.05)


def test_a_second_budget_has_a_folder_of_its_own(flowers, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = flowers/"net.safetensors", flowers/"train.csv"
    for budget in (1, 5): assert here(*files, "--budget", budget, *QUICK).returncode == 0
    folders = ["compress_net_search_C1_seed0", "compress_net_search_C5_seed0"]
    assert sorted(p.name for p in (tmp_path/"runs").iterdir()) == folders
    before = {p: p.read_bytes() for p in (tmp_path/"runs").rglob("*") if p.is_file()}
    line = refused(capsys, *files, "--budget", 5, "--effort", 0.1, "--no-agent")
    assert line == ("neon: error: runs/compress_net_search_C5_seed0 holds a result with other settings (effort); "
                    "choose another folder or remove it")
    line = refused(capsys, *files, "--budget", 5, *QUICK, "--output", "runs/" + folders[0])
    assert "other settings (budget)" in line
    assert {p: p.read_bytes() for p in before} == before
    assert here(*files, "--budget", 1, *QUICK, "--onnx").returncode == 0, "the same settings may be done again"
    assert (tmp_path/"runs"/folders[0]/"network.onnx").is_file()


def test_a_result_without_settings_is_kept(flowers, tmp_path, capsys):
    (tmp_path/"old").mkdir()
    (tmp_path/"old/report.json").write_text("{}")
    files = flowers/"net.safetensors", flowers/"train.csv"
    assert "holds a result whose settings are not known" in refused(capsys, *files, "--output", tmp_path/"old")
    (tmp_path/"file").write_text("mine")
    assert "is not a folder that can be written to" in refused(capsys, *files, "--output", tmp_path/"file")


# Networks and tables of others

@pytest.fixture(scope="module")
def others(flowers):
    "The same network as a state_dict and as ONNX, and its table with the target first."
    large = load_network(flowers/"net")
    modules = [m for layer in large.layers for m in (layer.linear, layer.activation)]
    torch.save(torch.nn.Sequential(*modules).state_dict(), flowers/"net.pt")
    to_onnx(large, flowers/"net.onnx", probabilities=True)
    table = pd.read_csv(flowers/"train.csv")
    table[["species", *table.columns[:4]]].to_csv(flowers/"first.csv", index=False)
    return flowers


@pytest.mark.parametrize("file, words", [("net.pt", ("--activations", "relu")), ("net.onnx", ())])
def test_a_network_from_elsewhere_and_a_target_that_is_not_last(others, tmp_path, file, words):
    done = here(others/file, others/"first.csv", "--target", "species", *words, "--budget", 5, *QUICK,
                "--output", tmp_path/"out")
    assert done.returncode == 0, done.stderr
    small, first = load_network(tmp_path/"out/network"), pd.read_csv(others/"first.csv")
    described = network_facts(tmp_path/"out/network")
    x = torch.tensor(first.iloc[:, 1:].to_numpy(), dtype=torch.float32)
    answers = np.array(described["classes"])[predict(small, x).argmax(1).numpy()]
    assert small.architecture.n_params < 1900 and (answers == first.species).mean() > 0.85


@pytest.mark.parametrize("words, message", [
    (("net.pt", "first.csv", "--target", "species"), "net.pt: it holds weights only, no activations; say them"),
    (("net.pt", "first.csv", "--target", "specis", "--activations", "relu"), "no column 'specis' to serve as target"),
    (("net.pt", "first.csv", "--activations", "relu"), "the network takes 4 features"),
    (("net.pt", "first.csv", "--activations", "rely"), "unknown activation 'rely'"),
    (("net.onnx", "first.csv", "--activations", "relu"), "net.onnx knows its activations; leave them out"),
    (("net.txt", "first.csv"), "net.txt does not exist"), (("net", "frist.csv"), "frist.csv does not exist"),
])
def test_files_that_cannot_be_read_leave_no_folder(others, tmp_path, capsys, words, message):
    network, table, *more = words
    assert message in refused(capsys, others/network, others/table, *more, "--output", tmp_path/"out")
    assert not (tmp_path/"out").exists()


def test_warnings_of_compress_are_lines_on_standard_error(flowers, tmp_path, monkeypatch):
    def warn_and_compress(*arguments, **options):
        for _ in range(2): warnings.warn("the network is no better than a constant", stacklevel=2)
        return found(*arguments, **options)
    found = command.compress
    monkeypatch.setattr(command, "compress", warn_and_compress)
    done = here(flowers/"net", flowers/"train.csv", *QUICK, "--output", tmp_path/"out")
    assert done.returncode == 0 and done.stderr == "neon: warning: the network is no better than a constant\n"


def test_a_task_is_passed_on_where_one_is_named(flowers, tmp_path, monkeypatch):
    seen, found = [], command.compress
    def take(*arguments, task=None, **options):
        seen.append(task)
        return found(*arguments, **options)
    monkeypatch.setattr(command, "compress", take)
    words = flowers/"net", flowers/"train.csv", *QUICK
    for name, more in (("one", ()), ("two", ("--task", "classes"))):
        assert here(*words, *more, "--output", tmp_path/name).returncode == 0
    assert seen == [None, "classes"]


def test_where_nothing_smaller_was_found_it_says_so(flowers, tmp_path):
    done = here(flowers/"net", flowers/"train.csv", *QUICK, "--budget", 0, "--confidence", 0.999, "--output",
                tmp_path/"out")
    assert done.returncode == 0 and done.stdout.splitlines()[0] == (
        "4-50-30-3 stays as it is: nothing smaller was safe within the budget"), done.stdout
