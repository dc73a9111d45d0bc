"`neon compress` as a user meets it: a network and a table go in, files come out; what does not fit is one line."
import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_diabetes, load_iris

from neon.cli import main
from neon.foundations.core import TrainingConfig, torch_generator
from neon.foundations.networks import Architecture, Layer, build_network, load_network, save_network
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
    files = sorted(p.name for p in (tmp_path/"out").iterdir())
    assert files == ["compression.png", "compression.svg", "network.json", "network.onnx", "network.safetensors",
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
    classes = json.loads((tmp_path/"out/network.json").read_text())["classes"]
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
    folder = tmp_path/"runs/compress_net"
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
