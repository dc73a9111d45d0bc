"""Bad input, all of it in one place: what is wrong, and the message that says so. Nothing is begun, or left half-done.

The table names every mistake that Neon promises to answer clearly; other tests look at some of them more closely.
"""
import contextlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from neon.cli import main
from neon.command.runs import check_parameters
from neon.foundations.core import NeonError, read_json, write_csv, write_json
from neon.foundations.data import as_dataset, load_dataset, prepare
from neon.foundations.networks import Architecture, Layer, build_network, load_network, parse_network, save_network
from neon.published.agent import Agent, load_agent, save_agent
from neon.published.environment import EnvConfig, PruningEnv
from neon.published.legacy import read_checkpoint, read_legacy_data
from neon.published.runs import RunConfig, open_run


def table(n: int = 40, **columns) -> tuple[pd.DataFrame, np.ndarray]:
    "Two features and two classes, with some columns put in place."
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"size": rng.normal(size=n), "weight": rng.normal(size=n), **columns})
    return X, np.resize(["no", "yes"], n)


def with_value(value, row: int = 3) -> np.ndarray:
    column = np.linspace(0, 1, 40).astype(object if isinstance(value, str) else float)
    column[row] = value
    return column


def csv(folder: Path, X: pd.DataFrame, y) -> Path:
    X.assign(answer=y).to_csv(folder/"mine.csv", index=False)
    return folder/"mine.csv"


def small(n_inputs: int = 4, n_outputs: int = 3):
    return build_network(Architecture(n_inputs, (Layer(5), Layer(n_outputs, "identity"))))


def saved(folder: Path, change=lambda path: None) -> Path:
    "A saved network, damaged."
    save_network(small(), folder/"net")
    change(folder/"net.safetensors")
    return folder/"net"


def described(folder: Path, description: dict | None, beside: str = "") -> Path:
    "Weights with this description in their header, and with that text beside them."
    metadata = None if description is None else {"network": json.dumps(description)}
    save_file(small().state_dict(), folder/"net.safetensors", metadata)
    if beside: (folder/"net.json").write_text(beside)
    return folder/"net"


def saved_agent(folder: Path, change) -> Path:
    save_agent(Agent(5), folder/"agent.safetensors", resumable=False)
    change(folder/"agent.safetensors")
    return folder/"agent.safetensors"


def truncate(path: Path) -> None: path.write_bytes(path.read_bytes()[:200])


def legacy_folder(folder: Path) -> Path:
    "Data that a network is given as it is, with a value missing."
    X, y = np.random.default_rng(0).normal(size=(30, 3)).astype(str), np.resize([0, 1], (30, 1))
    X[4, 1] = ""
    pd.DataFrame(X, columns=list("abc")).to_csv(folder/"X_to_train.csv", index=False)
    pd.DataFrame(y, columns=["y"]).to_csv(folder/"Y_to_train.csv", index=False)
    return folder


def foreign_folder(folder: Path) -> Path:
    write_json(folder/"config.json", {"config": RunConfig(budget=5.0).to_dict()})
    return folder


BAD = {
    # Data
    "unknown data set": (lambda p: load_dataset("diabtes"), "unknown data set 'diabtes'; did you mean 'diabetes'"),
    "infinite value": (lambda p: as_dataset(*table(size=with_value(np.inf))),
                       "column 'size' has an infinite value, first in row 3"),
    "infinite value in a file": (lambda p: load_dataset(csv(p, *table(size=with_value(-np.inf)))),
                                 "column 'size' has an infinite value"),
    "unparsable value": (lambda p: load_dataset(csv(p, *table(size=with_value("o.5")))),
                         "column 'size' holds numbers except for 'o.5'"),
    "unparsable value in new rows": (
        lambda p: prepare("iris").transform(load_dataset("iris").X.astype(object).replace(5.1, "five")),
        "column 'sepal length .cm.' should hold numbers but has 'five', first in row 0"),
    "infinite value in new rows": (lambda p: prepare("iris").transform(load_dataset("iris").X.replace(5.1, np.inf)),
                                   "column 'sepal length .cm.' has an infinite value, first in row 0"),
    "missing column in new rows": (lambda p: prepare("iris").transform(load_dataset("iris").X.iloc[:, 1:]),
                                   "column 'sepal length .cm.' is missing"),
    "missing value, given to a network as it is": (lambda p: read_legacy_data(legacy_folder(p)),
                                                   "X_to_train.csv, line 6: '' is not a number below 1e38"),
    "missing label": (lambda p: as_dataset(table()[0], ["no", None]*20),
                      "target 'target' has 20 missing values, first in row 1"),
    "one class": (lambda p: as_dataset(table()[0], ["yes"]*40),
                  "target 'target' has one class only .'yes'.; a classifier needs"),
    "fewer rows than the split needs": (lambda p: prepare(as_dataset(*table(8))),
                                        "8 rows are too few for the split: .* at least 2"),
    # Networks
    "inputs that do not fit": (lambda p: PruningEnv([small(5)], prepare("iris")),
                               "network 0 takes 5 inputs, but iris has 4 features"),
    "outputs that do not fit": (lambda p: PruningEnv([small(4, 2)], prepare("iris")),
                                "network 0 has 2 outputs, but iris has 3 classes"),
    "nothing to compress": (
        lambda p: PruningEnv([build_network(Architecture(4, (Layer(3, "identity"),)))], prepare("iris")),
        "network 0 has no hidden layer to compress"),
    "a layer that is not dense": (
        lambda p: parse_network(nn.Sequential(nn.Conv1d(1, 1, 3), nn.ReLU(), nn.Linear(4, 2))),
        "layer '0' .Conv1d. is not a dense layer, norm or activation"),
    "layers that branch": (lambda p: parse_network(Residual()), "layer 'add' .* does not simply follow|layer 'add'"),
    "no dense layer at all": (lambda p: parse_network(nn.Sequential(nn.Flatten())), "the network has no linear layer"),
    # Checkpoints
    "no checkpoint": (lambda p: load_network(p/"net"), "net.safetensors does not exist"),
    "checkpoint without weights": (lambda p: load_network(saved(p, Path.unlink)), "net.safetensors does not exist"),
    "truncated checkpoint": (lambda p: load_network(saved(p, truncate)),
                             "net.safetensors does not hold the weights of a network: "),
    "foreign checkpoint": (lambda p: load_network(saved(p, lambda f: torch.save({"w": torch.ones(2)}, f))),
                           "does not hold the weights"),
    "checkpoint of another network": (
        lambda p: load_network(described(p, {"architecture": small(7).architecture.to_dict()})),
        "net.safetensors does not hold the weights of a 7-5-3 network"),
    "no description": (lambda p: load_network(described(p, None)), "net.safetensors holds no description"),
    "description that is not one": (lambda p: load_network(described(p, {})),
                                    "net.safetensors holds no description of a network: no 'architecture'"),
    "description cut off": (lambda p: load_network(described(p, None, '{"archi')), "net.json is not JSON"),
    "no agent": (lambda p: load_agent(p/"agent.safetensors"), "agent.safetensors does not exist"),
    "truncated agent": (lambda p: load_agent(saved_agent(p, truncate)), "agent.safetensors does not hold an agent"),
    "foreign agent": (lambda p: load_agent(saved_agent(p, lambda f: f.write_text("hello"))),
                      "agent.safetensors does not hold an agent"),
    "a network instead of an agent": (lambda p: load_agent(saved(p).with_suffix(".safetensors")),
                                      "does not hold an agent"),
    "checkpoint of the original, not one": (lambda p: read_checkpoint(written(p/"net.pt", b"hello")), "net.pt"),
    "checkpoint of the original that asks for code": (lambda p: read_checkpoint(written(p/"net.pt", MALICE)), "net.pt"),
    # Settings
    "budget below zero": (lambda p: RunConfig(budget=-1.0),
                          "a budget is a drop in percentage points, at least 0, got -1.0"),
    "budget below zero, environment": (lambda p: EnvConfig(budget=-0.5),
                                       "a budget is a drop in percentage points, at least 0, got -0.5"),
    "unknown protocol": (lambda p: RunConfig(protocol="strit"),
                         "unknown protocol 'strit'; there are .'paper', 'strict'."),
    "unknown setting": (lambda p: RunConfig.from_dict({"dateset": "iris"}), "unknown RunConfig setting 'dateset'"),
    "unknown papermill parameter": (lambda p: check_parameters({"datset": "iris"}, template(p)),
                                    "t.ipynb has no parameter 'datset'; did you mean dataset?"),
    "folder of another run": (lambda p: open_run(RunConfig(), foreign_folder(p)),
                              "holds a run with other settings .budget."),
    "file instead of a folder": (lambda p: open_run(RunConfig(), written(p/"file", b"")),
                                 "file is not a folder that can be written to"),
}
MALICE = b"cposix\nsystem\n(S'touch owned'\ntR."


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x): return self.second(x + torch.relu(self.first(x)))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def template(folder: Path) -> Path:
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]},
            "source": "dataset: str = 'wine'\nseed: int = 0"}
    (folder/"t.ipynb").write_text(json.dumps({"cells": [cell]}))
    return folder/"t.ipynb"


@pytest.mark.parametrize("mistake", BAD)
def test_bad_input(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEON_DATA", raising=False)
    act, message = BAD[mistake]
    with pytest.raises(NeonError, match=message) as caught: act(tmp_path)
    assert "\n" not in str(caught.value), "one line"
    assert not (tmp_path/"owned").exists() and not list(tmp_path.rglob("*.tmp"))


def test_mistakes_are_found_before_work_begins(tmp_path, monkeypatch, capsys):
    "The same through the command: no folder is claimed by a run that cannot be."
    monkeypatch.chdir(tmp_path)
    X, y = table()
    csv(tmp_path, X, y)
    (tmp_path/"one.csv").write_text("a,b\n1,x\n2,x\n3,x\n")
    for line, message in [("--dataset one.csv", "one class only"),
                          ("--dataset mine.csv --budget -1", "at least 0, got -1.0"),
                          ("--dataset nothing.csv", "does not exist"),
                          ("--dataset mine.csv --protocol paper --n-test 30", "n_test")]:
        assert main(["train", *line.split()]) == 1
        assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.csv", "one.csv"]


# A full disk

@contextlib.contextmanager
def full_disk(limit: int = 2000):
    "No file can grow beyond `limit` bytes in the block."
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "network.safetensors":
        lambda path: save_network(build_network(Architecture(4, (Layer(300), Layer(3, "identity")))), path),
    "agent.safetensors": lambda path: save_agent(Agent(5), path),
    "results.csv": lambda path: write_csv(path, pd.DataFrame({"a": np.arange(5000)})),
    "config.json": lambda path: write_json(path, {"a": list(range(5000))}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_full_disk_leaves_the_previous_version(name, tmp_path):
    (tmp_path/name).write_text("previous")
    message = f"cannot write .*{name}: .*; the previous version, if any, is untouched"
    with full_disk(), pytest.raises(NeonError, match=message): WRITERS[name](tmp_path/name)
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path/name).read_text() == "previous"


def test_full_disk_at_the_last_moment(tmp_path, monkeypatch):
    "The same where the rename fails."
    write_json(tmp_path/"config.json", {"a": 1})
    def no_space(source, target): raise OSError(28, "No space left on device", target)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", no_space)
        with pytest.raises(NeonError, match="cannot write .*config.json: No space left"):
            write_json(tmp_path/"config.json", {"a": 2})
    assert read_json(tmp_path/"config.json") == {"a": 1} and len(list(tmp_path.iterdir())) == 1


def test_full_disk_ends_the_command_in_one_line_and_the_rest_can_be_done_later(tmp_path, capsys):
    words = f"networks --dataset iris --n-networks 2 --n-test 1 --workers 1 --output-dir {tmp_path/'run'}".split()
    with full_disk(): assert main(words) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("neon: error: cannot write") and "safetensors" in last
    assert not list((tmp_path/"run").rglob("*.tmp")) and not list((tmp_path/"run").rglob("*.safetensors"))
    assert main(words) == 0 and len(list((tmp_path/"run").rglob("*.safetensors"))) == 2
