"""The original's interface: checkpoints of strangers, folders, flags and result files.

`fixtures/legacy` holds one network that the original's code saved, in both formats of PyTorch, with what it must
answer, and csv files with the names and columns that the original writes.
"""
import io
import json
import pickle
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from neon.foundations.core import NeonError, TrainingConfig, torch_generator
from neon.foundations.data import as_dataset, prepare
from neon.foundations.networks import Architecture, Layer, build_network
from neon.foundations.training import predict
from neon.published import legacy

LEGACY = Path(__file__).resolve().parent / "fixtures" / "legacy"
SAMPLE = "results_Agent_warmup_diabetes_mini_learn_new_layers_only_True_acc_reduction_5_test.csv"
CHECKPOINTS = ["netX0model.pt", "netX0model_pre16.pt"]


def dense(*widths: int, seed: int = 0, output: str = "softmax", **layer):
    layers = [Layer(width, **layer) for width in widths[1:-1]]
    return build_network(Architecture(widths[0], (*layers, Layer(widths[-1], output))), torch_generator(seed, "test"))


# Checkpoints of the original

@pytest.mark.parametrize("file", CHECKPOINTS)
def test_a_checkpoint_of_the_original_answers_as_it_did(file):
    expected = json.loads((LEGACY / "expected.json").read_text())
    checkpoint = legacy.open_checkpoint(LEGACY / file)
    network = checkpoint.network
    assert (checkpoint.mission_type, checkpoint.loss) == ("Classification", "CrossEntropyLoss")
    assert str(network.architecture) == "8-100-2" and network.architecture.n_params == expected["parameters"]
    assert network.architecture.layers == (Layer(100), Layer(2, "softmax"))
    assert not network.training
    answers = predict(network, torch.tensor(expected["inputs"]))
    np.testing.assert_allclose(answers.numpy(), expected["predictions_eval_mode"], atol=expected["tolerance"], rtol=0)
    weight = network.layers[0].linear.weight.detach().double()
    assert float(weight.sum()) == pytest.approx(expected["state_dict"]["model.0.weight"]["sum"], abs=1e-4)


def test_only_records_and_plain_values_come_out_of_a_file():
    def kinds(value) -> set[type]:
        parts = []
        if isinstance(value, dict): parts = [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple): parts = value
        elif isinstance(value, legacy._Record): parts = [value.args, value.state, *value.items]
        record = isinstance(value, legacy._Record)
        return set().union({legacy._Record if record else type(value)}, *map(kinds, parts))
    for file, read in zip(CHECKPOINTS, (legacy._read_zip, legacy._read_sequence), strict=True):
        tree, numbers = read((LEGACY / file).read_bytes())
        assert kinds(tree) <= {legacy._Record, legacy._Storage, dict, list, tuple, str, int, float, bool, type(None)}
        assert {type(array) for array in numbers.values()} == {np.ndarray}


# Malicious files: whatever they ask for is refused by its name, before it happens

class Call:
    "Unpickles as a call of `function`."
    def __init__(self, function, *arguments): self.function, self.arguments = function, arguments
    def __reduce__(self): return self.function, self.arguments


def by_name(module: str, name: str, argument: str) -> bytes:
    "A pickle that calls `module.name(argument)`, whether it exists or not."
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + pickle.dumps(argument, 2)[2:-1] + b"\x85R."


def by_stack(module: str, name: str, argument: str) -> bytes:
    "The same with the instruction of protocol 4, which takes dotted names."
    text = lambda s: b"\x8c" + bytes([len(s.encode())]) + s.encode()
    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


def in_zip(pickled: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("evil/data.pkl", pickled)
        archive.writestr("evil/version", "3\n")
    return stream.getvalue()


def in_sequence(pickled: bytes) -> bytes:
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    header = b"".join(pickle.dumps(part, 2) for part in (0x1950a86a20f9469cfc6c, 1001, machine))
    return header + pickled + pickle.dumps([], 2)


ATTACKS = {
    "os.system": lambda touch: pickle.dumps(Call(__import__("os").system, touch), 2),
    "eval": lambda touch: pickle.dumps(Call(eval, f"__import__('os').system({touch!r})"), 2),
    "eval, protocol 4": lambda touch: pickle.dumps(Call(eval, f"__import__('os').system({touch!r})"), 4),
    "exec inside a dictionary":
        lambda touch: pickle.dumps({"model": [Call(exec, f"__import__('os').system({touch!r})")]}, 2),
    "subprocess": lambda touch: pickle.dumps(Call(subprocess.getoutput, touch), 2),
    "torch.load": lambda touch: by_name("torch", "load", touch),
    "torch.serialization": lambda touch: by_name("torch.serialization", "load", touch),
    "torch.storage": lambda touch: by_name("torch.storage", "_load_from_bytes", touch),
    "torch.hub": lambda touch: by_name("torch.hub", "load", touch),
    "dotted name": lambda touch: by_stack("torch", "os.system", touch),
    "dotted name in __main__": lambda touch: by_stack("__main__", "os.system", touch),
    "getattr": lambda touch: by_name("__builtin__", "getattr", touch),
    "the reader itself": lambda touch: by_name("neon.published.legacy", "pickle", touch),
    "numpy": lambda touch: by_name("numpy.testing._private.utils", "runstring", touch),
}


@pytest.mark.parametrize("container", [in_zip, in_sequence])
@pytest.mark.parametrize("attack", ATTACKS)
def test_malicious_pickles_are_refused_by_name_and_never_run(attack, container, tmp_path):
    sentinel, file = tmp_path / "sentinel", tmp_path / "netX0model.pt"
    file.write_bytes(container(ATTACKS[attack](f"touch {sentinel}")))
    match = r"it asks for the name '[\w.]+', which a checkpoint of a dense network does not need; nothing"
    with pytest.raises(NeonError, match=match): legacy.read_checkpoint(file)
    assert not sentinel.exists()


def test_the_attacks_are_real(tmp_path):
    sentinel = tmp_path / "sentinel"
    pickle.loads(ATTACKS["eval"](f"touch {sentinel}"))
    assert sentinel.exists()


@pytest.mark.parametrize("pickled", [
    b"\x80\x02c__main__\nNetX\n}U\x08__module__U\x01xs\x86b.",                   # BUILD on a class instead of an object
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x08__code__U\x01xs\x86b.",  # ... and on what would be a function
    b"\x80\x02ctorch._utils\n_rebuild_parameter\nU\x01aU\x01bs.",                # setting an item of a class
    b"\x80\x02]r\xff\xff\xff\x7f.",                                              # a memo of 2**31 - 1 entries
    b"\x80\x02\x82\x01.",                                                        # extension codes
    b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x00.",                            # a buffer of 2**56 bytes
    b"\x80\x02U\x07storageQ.", b"\x80\x02(U\x07storageNU\x010U\x03cpuK\x01tQ.",  # references PyTorch does not write
    b"\x80\x02" + b"(" * 1000, b"", b"\x80", b".", b"\x80\x02N.", b"\x80\x02}.", b"\x80\x02c__main__\nNetX\n)\x81.",
])
@pytest.mark.parametrize("container", [in_zip, in_sequence])
def test_absurd_pickles_are_refused(pickled, container, tmp_path):
    file = tmp_path / "netX0model.pt"
    file.write_bytes(container(pickled))
    with pytest.raises(NeonError, match="netX0model.pt"): legacy.read_checkpoint(file)
    assert legacy._Record.__module__ == "neon.published.legacy" and not hasattr(legacy._Record, "x")


def test_reading_does_not_change_between_files(tmp_path):
    "What one file does to its records is not seen by the next."
    file = tmp_path / "netX0model.pt"
    file.write_bytes(in_zip(b"\x80\x02c__main__\nNetX\n}U\x04nameU\x09os.systems\x86b."))
    with pytest.raises(NeonError): legacy.read_checkpoint(file)
    assert str(legacy.read_checkpoint(LEGACY / CHECKPOINTS[0]).architecture) == "8-100-2"


# Damaged and foreign files

@pytest.mark.parametrize("file", CHECKPOINTS)
def test_truncated_files_are_refused(file, tmp_path):
    content = (LEGACY / file).read_bytes()
    for length in (0, 1, 3, 14, 100, 1000, 4500, 5200, len(content) // 2, len(content) - 30, len(content) - 1):
        (tmp_path / file).write_bytes(content[:length])
        with pytest.raises(NeonError, match=file): legacy.read_checkpoint(tmp_path / file)


@pytest.mark.parametrize("file", CHECKPOINTS)
def test_damaged_files_never_end_in_another_error(file, tmp_path):
    content, rng = (LEGACY / file).read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(0, 5000, 3): damaged[place] = rng.integers(256)
        (tmp_path / file).write_bytes(damaged)
        try: legacy.read_checkpoint(tmp_path / file)
        except NeonError as error: assert file in str(error)


@pytest.mark.parametrize("content",
                         [b"not a checkpoint", b"PK\x03\x04 but no more", pickle.dumps({"model": 1}), b"\x89PNG\r\n"])
def test_foreign_files_are_refused(content, tmp_path):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(NeonError, match="a.pt"): legacy.read_checkpoint(tmp_path / "a.pt")
    with pytest.raises(NeonError, match="cannot read"): legacy.read_checkpoint(tmp_path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    file = tmp_path / "bomb.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive: archive.writestr("bomb/data.pkl", bytes(10**8))
    assert file.stat().st_size < 10**6
    with pytest.raises(NeonError, match="claims to be larger than the file"): legacy.read_checkpoint(file)


class NetX(nn.Module):
    "Stands for the class that the original's notebook defines; pickled as __main__.NetX."
    def __init__(self, *layers):
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x): return self.model(x)


class Twins(NetX):
    def __init__(self, *layers):
        super().__init__(*layers)
        self.other = nn.Sequential(*layers)


@pytest.fixture
def save(tmp_path, monkeypatch):
    "Saves layers as today's PyTorch does, in one of its formats, and gives the path."
    for kind in (NetX, Twins):
        monkeypatch.setattr(kind, "__module__", "__main__")
        monkeypatch.setattr(sys.modules["__main__"], kind.__name__, kind, raising=False)

    def _save(model, new=True, /, **changes):
        model = model if isinstance(model, nn.Module) else NetX(*model)
        content = {"model": model, "state_dict": model.state_dict(), "mission_type": "Classification",
                   "loss": nn.CrossEntropyLoss()}
        content.update(changes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save({k: v for k, v in content.items() if v is not None}, tmp_path / "a.pt",
                       _use_new_zipfile_serialization=new)
        return tmp_path / "a.pt"
    return _save


@pytest.mark.parametrize("new", [True, False])
def test_every_layer_of_the_generator_is_read_in_both_formats(save, new):
    torch.manual_seed(0)
    layers = [nn.Dropout(0.3), nn.Linear(4, 7), nn.Tanh(), nn.BatchNorm1d(7, eps=0.1),
              nn.Linear(np.int64(7), np.int64(6)), nn.Sigmoid(),
              nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.Softmax(dim=None)]
    model = NetX(*layers).train()
    x = torch.randn(50, 4)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for _ in range(5): model(x)
        expected = model.eval()(x)
    network = legacy.read_checkpoint(save(model.train(), new))
    torch.testing.assert_close(predict(network, x), expected, atol=1e-6, rtol=0)
    layers = network.architecture.layers
    assert [layer.activation for layer in layers] == ["tanh", "sigmoid", "relu", "softmax"]
    assert (layers[0].before, layers[0].dropout, layers[1].before) == (("dropout",), 0.3, ("batchnorm",))


def test_double_weights_become_single(save):
    network = legacy.read_checkpoint(save(NetX(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()))
    assert network.layers[0].linear.weight.dtype == torch.float32


@pytest.mark.parametrize("file", CHECKPOINTS)
def test_storages_of_a_gpu_are_read_on_the_cpu(file, tmp_path):
    "Old files name torch.cuda.FloatStorage; the names are exchanged in the pickle, the rest of the file stays."
    content = (LEGACY / file).read_bytes()
    exchange = lambda pickled: pickled.replace(b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n").replace(
        b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    target = tmp_path / file
    if content[:2] == b"PK":
        with zipfile.ZipFile(LEGACY / file) as old, zipfile.ZipFile(target, "w") as new:
            for name in old.namelist():
                new.writestr(name, exchange(old.read(name)) if name.endswith("data.pkl") else old.read(name))
    else: target.write_bytes(exchange(content))
    assert b"cuda:0" in target.read_bytes() and b"torch.cuda" in target.read_bytes()
    assert torch.equal(legacy.read_checkpoint(target).layers[0].linear.weight,
                       legacy.read_checkpoint(LEGACY / file).layers[0].linear.weight)


def test_layers_and_states_that_do_not_fit_are_named(save):
    linear = [nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)]
    plus = lambda **entries: {"state_dict": {**NetX(*linear).state_dict(),
                                             **{k.replace("_", "."): v for k, v in entries.items()}}}
    cases = [
        ("layer class 'torch.nn.modules.conv.Conv1d'", NetX(nn.Conv1d(1, 1, 1)), {}),
        ("its dictionary has no 'state_dict'", NetX(*linear), {"state_dict": None}),
        ("its dictionary has no 'model'", NetX(*linear), {"model": None}),
        (r"layer 'model.2' \(Linear\) needs a weight of shape \(2, 5\) in state_dict, found none", NetX(*linear),
         {"state_dict": NetX(*linear[:2]).state_dict()}),
        (r"layer 'model.0' \(Linear\) needs a weight of shape \(5, 4\) in state_dict, found \(4, 4\)",
         NetX(*linear), {"state_dict": NetX(nn.Linear(4, 4)).state_dict()}),
        ("its state_dict holds 'model.9.bias'", NetX(*linear), plus(model_9_bias=torch.ones(1))),
        ("'model.0.bias' in its state_dict is not a tensor", NetX(*linear), plus(model_0_bias=1)),
        ("values that are not finite", NetX(*linear), plus(model_0_bias=torch.full((5,), np.nan))),
        ("expects 6 inputs but receives 5", NetX(*linear[:2], nn.Linear(6, 2)), {}),
        ("no linear layer", NetX(nn.Dropout()), {}),
        ("'__main__.Twins' has 2 children", Twins(*linear), {}),
        ("softmax", NetX(nn.Linear(4, 5), nn.Softmax(dim=1), nn.Linear(5, 2)), {}),
        ("needs a weight of shape", NetX(nn.BatchNorm1d(4, affine=False), *linear), {}),
        (r"layer 'model.0' \(CrossEntropyLoss\) is not a layer", NetX(nn.CrossEntropyLoss()), {}),
    ]
    for match, model, changes in cases:
        with pytest.raises(NeonError, match=match): legacy.read_checkpoint(save(model, **changes))


def test_a_window_beyond_its_storage_is_refused(save):
    model = NetX(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    repeated = {**model.state_dict(), "model.0.weight": torch.ones(1).expand(5, 4)}  # stride 0: few numbers, any size
    with pytest.raises(NeonError, match="'model.0.weight' does not fit its storage"):
        legacy.read_checkpoint(save(model, state_dict=repeated))
    weight = torch.arange(20.).view(4, 5).t()
    read = legacy.read_checkpoint(save(model, state_dict={**model.state_dict(), "model.0.weight": weight}))
    assert torch.equal(read.layers[0].linear.weight, weight)


# Writing

@pytest.mark.parametrize("architecture", [
    Architecture(3, (Layer(2, "softmax"),)),
    Architecture(8, (Layer(20), Layer(2, "softmax"))),
    Architecture(5, (Layer(9, "tanh", ("dropout",), dropout=0.25), Layer(8, "sigmoid", ("batchnorm",)),
                     Layer(7, "relu", (), ("batchnorm",)),
                     Layer(6, bias=False), Layer(4, "softmax", ("dropout",)))),
])
def test_what_is_written_comes_back_equal(architecture, tmp_path):
    network = build_network(architecture, torch_generator(0, "test"))
    for name, value in network.named_buffers():
        if value.is_floating_point(): value.uniform_(0.5, 2, generator=torch_generator(0, name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        legacy.write_checkpoint(network, tmp_path / "a.pt")
    again = legacy.read_checkpoint(tmp_path / "a.pt")
    assert again.architecture == architecture
    pairs = zip(again.state_dict().values(), network.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    first = (tmp_path / "a.pt").read_bytes()
    legacy.write_checkpoint(network, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == first, "the same network gives the same bytes"
    assert not hasattr(sys.modules["__main__"], "NetX")


def test_a_class_of_the_caller_survives(tmp_path, monkeypatch):
    mine = type("NetX", (), {})
    monkeypatch.setattr(sys.modules["__main__"], "NetX", mine, raising=False)
    legacy.write_checkpoint(dense(3, 4, 2), tmp_path / "a.pt")
    assert sys.modules["__main__"].NetX is mine


def test_what_the_original_does_not_know_is_not_written(tmp_path):
    with pytest.raises(NeonError, match="layer 0 has the activation 'gelu'; the original knows relu, tanh, sigmoid"):
        legacy.write_checkpoint(dense(3, 4, 2, activation="gelu"), tmp_path / "a.pt")
    with pytest.raises(NeonError, match="the output layer has the activation 'relu'"):
        legacy.write_checkpoint(dense(3, 4, 2, output="relu"), tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_plain_torch_reads_what_is_written(tmp_path):
    "As the original does it: an open torch.load in a program that defines NetX."
    layers = (Layer(6, "relu", ("batchnorm",)), Layer(5, "tanh", ("dropout",)), Layer(3, "identity"))
    network = build_network(Architecture(4, layers), torch_generator(0, "test"))
    x = torch.rand(5, 4, generator=torch_generator(0, "x"))
    legacy.write_checkpoint(network, tmp_path / "netX0model.pt")
    torch.save({"x": x, "y": predict(network, x).softmax(1)}, tmp_path / "expected.pt")
    script = """
import torch
class NetX(torch.nn.Module):
    def forward(self, x): return self.model(x)
checkpoint = torch.load("netX0model.pt", weights_only=False)
expected = torch.load("expected.pt")
assert list(checkpoint) and set(checkpoint) == {"model", "state_dict", "optimizer", "mission_type", "loss"}
model = checkpoint["model"]
assert type(model) is NetX and [name for name, _ in model.named_children()] == ["model"] and model.training
model.load_state_dict(checkpoint["state_dict"])
torch.testing.assert_close(model.eval()(expected["x"]), expected["y"], atol=1e-6, rtol=0)
optimizer = torch.optim.Adam(model.parameters())
optimizer.load_state_dict(checkpoint["optimizer"])
checkpoint["loss"](model.train()(expected["x"]), torch.tensor([0, 1, 2, 0, 1])).backward()
optimizer.step()
print("read")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout == "read\n" and not done.stderr, done.stderr


# Folders

def toy_data(labels=(0, 1, 2), rows: int = 90, protocol: str = "paper"):
    table = np.random.default_rng(0).random((rows, 4))
    return prepare(as_dataset(table, np.asarray(labels)[(len(labels) * table[:, 0]).astype(int)], "toy"), protocol)


def toy_networks(n: int = 5):
    return [dense(4, *widths, 3, seed=i) for i, widths in enumerate([(8,), (12, 8), (10,), (8, 8), (9,)][:n])]


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "OneDatasetLearning" / "Classification" / "toy"
    legacy.write_legacy_folder(path, toy_networks(), toy_data())
    return path


@pytest.mark.parametrize("protocol", ["paper", "strict"])
def test_a_folder_comes_back_with_the_same_rows(protocol, tmp_path):
    data = toy_data(protocol=protocol)
    legacy.write_legacy_folder(tmp_path / "toy", toy_networks(), data)
    again = legacy.read_legacy_folder(tmp_path / "toy").data
    for part in ("X_train", "X_validation", "X_test", "y_train", "y_validation", "y_test"):
        assert torch.equal(getattr(again, part), getattr(data, part)), part
    assert (again.name, again.protocol, again.n_features, again.n_classes) == ("toy", "paper", data.n_features, 3)
    raw = pd.DataFrame(data.X_test.numpy(), columns=list(again.feature_names))
    assert torch.equal(again.transform(raw), data.X_test), "features are used as they are"


def test_the_files_look_like_those_of_the_original(folder):
    for axis, header in (("Y", "0"), ("X", "0,1,2,3")):
        assert (folder / f"{axis}_train.csv").read_text().splitlines()[0] == header
    assert set((folder / "Y_train.csv").read_text().splitlines()[1:]) == {"0.0", "1.0", "2.0"}
    for part in ("train", "test"):
        sample, ours = (LEGACY / f"{part}_models.csv").read_text(), (folder / f"{part}_models.csv").read_text()
        assert ours.splitlines()[0] == sample.splitlines()[0] == ",0"
        assert ours.splitlines()[1].startswith("0,netX")


def test_lists_of_the_original_are_read(tmp_path):
    networks = {f"netX{i}model.pt": dense(4, 5 + i, 3) for i in (0, 2, 3, 4, 6, 7)}
    legacy.write_legacy_folder(tmp_path, networks, toy_data())
    for part in ("train", "test"): shutil.copy(LEGACY / f"{part}_models.csv", tmp_path)
    read = legacy.read_legacy_folder(tmp_path)
    assert read.train == ("netX3model.pt", "netX2model.pt", "netX0model.pt", "netX4model.pt")
    assert read.test == ("netX6model.pt", "netX7model.pt")
    assert list(read.networks) == [f"netX{i}model.pt" for i in (0, 2, 3, 4, 6, 7)]


def write_csv(path: Path, X: np.ndarray, y: np.ndarray, header=True, index=False, part: str = "to_train") -> None:
    for axis, values in (("X", X), ("Y", y)):
        pd.DataFrame(values).to_csv(path / f"{axis}_{part}.csv", header=header, index=index)


@pytest.mark.parametrize("labels", [[0.0, 1.0], [0, 1], [3, 4], [-1, 1]])
@pytest.mark.parametrize("header, index", [(True, True), (True, False), (False, False)])
def test_csv_files_are_read_with_and_without_header_and_index(labels, header, index, tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.random((40, 3)), np.asarray(labels)[np.arange(40) % 2]
    write_csv(tmp_path, X, y, header, index)
    data = legacy.read_legacy_data(tmp_path)
    assert data.n_features == 3 and sum(map(len, (data.X_train, data.X_validation, data.X_test))) == 40
    assert data.classes.tolist() == list(range(int(min(labels)), int(max(labels)) + 1))
    order = np.concatenate([data.split.train, data.split.validation, data.split.test])
    assert sorted(order) == list(range(40))
    np.testing.assert_array_equal(torch.cat([data.X_train, data.X_validation, data.X_test]).numpy(),
                                  X[order].astype(np.float32))
    np.testing.assert_array_equal(data.classes[torch.cat([data.y_train, data.y_validation, data.y_test]).numpy()],
                                  y[order])


def test_the_unsplit_layout_gets_the_published_split(tmp_path):
    from sklearn.model_selection import train_test_split
    X, y = np.random.default_rng(0).random((100, 3)), np.arange(100) % 2
    write_csv(tmp_path, X, y)
    rest, test = train_test_split(np.arange(100), test_size=0.3, random_state=0)
    train, validation = train_test_split(rest, test_size=0.2, random_state=1)
    split = legacy.read_legacy_data(tmp_path).split
    for ours, published in ((split.train, train), (split.validation, validation), (split.test, test)):
        np.testing.assert_array_equal(ours, published)


def test_the_split_layout_keeps_its_test_rows(tmp_path):
    X, y = np.random.default_rng(0).random((50, 3)), np.arange(50) % 2
    write_csv(tmp_path, X[:35], y[:35], part="train")
    write_csv(tmp_path, X[35:], y[35:], part="val")
    write_csv(tmp_path, X[:9], y[:9])  # an older layout beside it is not used
    assert torch.equal(legacy.read_legacy_data(tmp_path).X_test, torch.from_numpy(X[35:].astype(np.float32)))


def test_bad_folders_are_refused_with_the_reason(folder, tmp_path):
    def refused(match, path=folder):
        with pytest.raises(NeonError, match=match): legacy.read_legacy_folder(path)
    refused("there is no folder .*toi; did you mean 'toy'", folder.with_name("toi"))
    refused("expected networks", tmp_path / "nowhere" / "toy")
    good = {file: file.read_bytes() for file in folder.iterdir()}
    for file, content, match in [
        ("Y_val.csv", "0\n1\n2\n", "X_val.csv has 27 rows, but Y_val.csv has 2"),
        ("Y_val.csv", "0\n" + "0.5\n" * 27, "a label that is not a whole number"),
        ("Y_val.csv", "0\n" + "1,2\n" * 27, "csv"),
        ("Y_val.csv", "0\n" + "1000000000\n" * 27, "labels from 0 to 1000000000; expected numbered classes"),
        ("X_val.csv", "0,1,2,3\n" + "1,2,x,4\n" * 27, "X_val.csv, line 2: 'x' is not a number"),
        ("X_val.csv", "0,1,2,3\n" + "1,2,,4\n" * 27, "X_val.csv, line 2: '' is not a number"),
        ("X_val.csv", "0,1,2\n" + "1,2,4\n" * 27, "X_train.csv has 4 features, but X_val.csv has 3"),
        ("X_val.csv", "", "X_val.csv is not a readable csv"),
        ("train_models.csv", ",0\n0,netX77model.pt\n",
         "train_models.csv lists 'netX77model.pt', which is not in the folder"),
        ("train_models.csv", (folder / "test_models.csv").read_text(), "is both a train and a test network"),
        ("train_models.csv", ",0\n", "is empty or lists a network twice"),
        ("netX1model.pt", "junk", "netX1model.pt"),
    ]:
        (folder / file).write_text(content)
        refused(match)
        (folder / file).write_bytes(good[folder / file])
    legacy.write_checkpoint(dense(5, 4, 3), folder / "netX9model.pt")
    refused("netX9model.pt takes 5 inputs, but toy has 4 features")
    (folder / "netX9model.pt").unlink()
    (folder / "test_models.csv").unlink()
    refused("only one of train_models.csv and test_models.csv")
    for file in folder.glob("*.pt"): file.unlink()
    refused("holds no networks")
    (folder / "X_val.csv").unlink()
    refused("X_to_train.csv does not exist")


def test_a_folder_with_other_networks_is_not_written_into(folder):
    with pytest.raises(NeonError, match="already holds another network, 'netX2model.pt'"):
        legacy.write_legacy_folder(folder, toy_networks(2), toy_data())
    with pytest.raises(NeonError, match="netX0model.pt takes 3 inputs"):
        legacy.write_legacy_folder(folder.with_name("new"), [dense(3, 4, 3)] * 2, toy_data())
    assert not folder.with_name("new").exists()


# The runner

TINY = {"episodes": 3, "progress": False, "training": TrainingConfig(1, 32)}


def test_a_run_writes_the_files_of_the_original(folder, tmp_path, capsys):
    flags = ("--dataset_name=toy --learn_new_layers_only=True --can_do_more_then_one_loop "
             "--allowed_reduction_acc=5").split()
    assert legacy.legacy_main(flags, root=tmp_path, **TINY) == 0
    files = sorted(file.name for file in (tmp_path / "models" / "Reinforce_One_Dataset").iterdir())
    assert files == [f"results_Agent_toy_learn_new_layers_only_True_acc_reduction_5_with_loop_{part}.csv"
                     for part in ("test", "train")]
    sample, read = pd.read_csv(LEGACY / SAMPLE), legacy.read_legacy_folder(folder)
    for part, names in (("test", read.test), ("train", read.train)):
        path = tmp_path / "models" / "Reinforce_One_Dataset" / files[part == "train"]
        assert path.read_text().splitlines()[0] == (LEGACY / SAMPLE).read_text().splitlines()[0]
        table = pd.read_csv(path)
        assert list(table.columns) == list(sample.columns) and table.iloc[:, 0].tolist() == list(range(len(names)))
        assert table["model"].tolist() == [f"./OneDatasetLearning/Classification/toy/{name}" for name in names]
        for entry, name in zip(table.itertuples(), names, strict=True):
            network = read.networks[name]
            widths = network.architecture.widths
            pairs = str(list(zip(widths, widths[1:], strict=False)))
            assert entry.origin_model_arch == pairs, "an entry is about the network it names"
            assert entry.origin_param == network.architecture.n_params
            hits = (predict(network, read.data.X_test).argmax(1) == read.data.y_test).double().mean()
            assert entry.origin_acc == pytest.approx(float(hits))
        entries = legacy.read_legacy_results(path)
        assert entries["network"].tolist() == [name.removesuffix(".pt") for name in names]
        assert (entries["passes"] == 4).all() and (entries["budget"] == 5).all()
        assert (entries["compression_ratio"] >= 1).all()
    printed = capsys.readouterr().out
    assert "test: 1 networks, mean compression" in printed and "train: 4 networks" in printed


def test_split_draws_the_lists_anew_and_prune_keeps_units(folder, tmp_path):
    for part in ("train", "test"): (folder / f"{part}_models.csv").unlink()
    files = legacy.reinforce("toy", True, root=tmp_path, prune=True, **TINY)
    read = legacy.read_legacy_folder(folder)
    drawn = legacy.draw_split(list(read.networks), 0)
    assert (read.train, read.test) == drawn, "lists are drawn and written where there are none"
    assert files["train"].name == "results_Agent_toy_learn_new_layers_only_True_acc_reduction_1_train.csv"
    drawn = next(seed for seed in range(1, 20) if legacy.draw_split(list(read.networks), seed)[1] != read.test)
    first = files["test"].read_bytes()
    legacy.reinforce("toy", True, root=tmp_path, seed=drawn, **TINY)
    assert legacy.read_legacy_folder(folder).test == read.test, "without the flag the lists stay"
    legacy.reinforce("toy", True, True, root=tmp_path, seed=drawn, **TINY)
    assert legacy.read_legacy_folder(folder).test == legacy.draw_split(list(read.networks), drawn)[1] != read.test
    assert files["test"].read_bytes() != first


def test_nothing_is_written_where_the_input_is_bad(tmp_path, folder):
    for match, arguments in [("did you mean 'toy'", {"dataset_name": "toys"}),
                             ("budget", {"dataset_name": "toy", "allowed_reduction_acc": -1}),
                             ("plain name", {"dataset_name": "../toy"}), ("plain name", {"dataset_name": ""})]:
        with pytest.raises(NeonError, match=match): legacy.reinforce(root=tmp_path, **{**TINY, **arguments})
    assert not (tmp_path / "models").exists()


# Flags

DEFAULTS = {"learn_new_layers_only": False, "split": False, "allowed_reduction_acc": 1,
            "can_do_more_then_one_loop": False, "prune": False}


@pytest.mark.parametrize("words, changes", [
    ("", {}), ("--prune", {"prune": True}), ("--prune=True", {"prune": True}), ("--prune=false", {"prune": False}),
    ("--prune True --split", {"prune": True, "split": True}),
    ("--split False --prune", {"prune": True}), ("--split --prune 0", {"split": True}),
    ("--allowed_reduction_acc 50", {"allowed_reduction_acc": 50}),
    ("--allowed_reduction_acc=0.5", {"allowed_reduction_acc": 0.5}),
    ("--learn_new_layers_only=True --can_do_more_then_one_loop",
     {"learn_new_layers_only": True, "can_do_more_then_one_loop": True}),
])
def test_flags(words, changes):
    flags = legacy.parse_legacy_flags(["--dataset_name=diabetes", *words.split()])
    assert flags == {"dataset_name": "diabetes", **DEFAULTS, **changes}
    assert isinstance(flags["allowed_reduction_acc"], int) or flags["allowed_reduction_acc"] == 0.5


@pytest.mark.parametrize("words, match", [
    ("--dataset=x", "unknown flag '--dataset'; did you mean '--dataset_name'"), ("--prunes", "did you mean '--prune'"),
    ("diabetes", "unknown flag 'diabetes'"), ("--prune=maybe", "--prune is True or False, got 'maybe'"),
    ("--prune=", "got ''"),
    ("--prune --prune", "--prune is given twice"), ("--split", "--dataset_name=NAME is missing"),
    ("--dataset_name", "needs a value"),
    ("--allowed_reduction_acc", "needs a value"), ("--allowed_reduction_acc=much", "from 0 to 100, got 'much'"),
    ("--allowed_reduction_acc=-1", "got '-1'"), ("--allowed_reduction_acc=nan", "got 'nan'"),
    ("--allowed_reduction_acc=101", "got '101'"),
])
def test_flags_that_are_wrong_are_named(words, match):
    with pytest.raises(NeonError, match=match): legacy.parse_legacy_flags(words.split())


def test_help_teaches_every_flag(capsys):
    assert legacy.legacy_main(["--help"]) == legacy.legacy_main([]) == 0
    printed = capsys.readouterr().out
    for flag in ("dataset_name", *DEFAULTS): assert f"--{flag}" in printed
    example = printed.strip().splitlines()[-1].split()
    assert example[:2] == ["neon", "reinforce"] and legacy.parse_legacy_flags(example[2:])["can_do_more_then_one_loop"]


# Result files

def test_result_files_of_the_original_are_read():
    entries = legacy.read_legacy_results(LEGACY / SAMPLE)
    assert entries["network"].tolist() == ["netX6model", "netX7model"] and set(entries["dataset"]) == {"diabetes_mini"}
    assert entries["architecture_before"].tolist() == ["8-500-1000-700-400-2", "8-100-100-100-100-800-400-2"]
    assert entries["architecture_after"][0] == "8-350-600-560-400-2"
    assert entries["parameters_after"].tolist() == [776632, 288638]
    assert entries["compression_ratio"][0] == pytest.approx(1488802 / 776632)
    assert (entries["budget"] == 5).all() and (entries["passes"] == 1).all()
    assert not {"seed", "seconds", "protocol"} & set(entries), "what the file does not tell is left out"
    mini = legacy.read_legacy_results(LEGACY / "mini_run_1pass_test.csv")
    assert mini["network"].tolist() == ["netX6model", "netX7model"], "the column true_model gives the right names"
    assert mini["architecture_before"][0] == "8-100-100-100-100-800-400-2"
    ratios = pd.read_csv(LEGACY / "mini_run_1pass_test.csv")["ratio"]
    np.testing.assert_allclose(mini["compression_ratio"], ratios)


def test_names_of_results_as_the_original_forms_them():
    name = legacy.legacy_results_name("diabetes_mini", True, 5.0, False, "test")
    assert name == SAMPLE.replace("warmup_", "")
    name = legacy.legacy_results_name("no2", False, 0.5, True, "train")
    assert name == "results_Agent_no2_learn_new_layers_only_False_acc_reduction_0.5_with_loop_train.csv"


@pytest.mark.parametrize("old, new, match", [
    ("new_acc", "accuracy", "has no column 'new_acc'"), ("776632", "many", "column 'new_param' holds something"),
    ("(350, 600)", "(351, 600)", "cannot read the architecture"),
    ("[(8, 350)", "__import__('os')[(8, 350)", "cannot read the architecture"),
])
def test_damaged_result_files_are_refused(old, new, match, tmp_path):
    (tmp_path / SAMPLE).write_text((LEGACY / SAMPLE).read_text().replace(old, new))
    with pytest.raises(NeonError, match=match): legacy.read_legacy_results(tmp_path / SAMPLE)
    with pytest.raises(NeonError, match="none.csv does not exist"): legacy.read_legacy_results(tmp_path / "none.csv")


def test_the_old_format_is_what_is_written(tmp_path):
    "PyTorch 1.4 reads no zip archives: magic number first, storages with their sizes last."
    legacy.write_checkpoint(dense(3, 4, 2), tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    assert content.startswith(pickle.dumps(0x1950a86a20f9469cfc6c, 2))
    assert content.endswith(struct.pack("=q", 2) + dense(3, 4, 2).layers[1].linear.bias.detach().numpy().tobytes())
