"""Hard knocks: what a kill leaves, two processes in one folder, other tables of one name, numbers that are too big.

Each fault is put in by hand: an exception in the middle of a write, a temporary file of a process that is no more, a
changed table, a header that lies. Nothing is trained for longer than a moment.
"""
import gzip
import itertools
import json
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from neon.cli import main
from neon.command.study import study_profile
from neon.compress import compress
from neon.compression.files import read_model
from neon.compression.planner import load_planner
from neon.compression.tasks import understand_task
from neon.ecomp import runs as ecomp
from neon.foundations import core
from neon.foundations.bounds import check_pickle
from neon.foundations.core import NeonError, atomic_write, locked, read_csv, read_json, remove_leftovers, write_json
from neon.foundations.data import as_dataset, fingerprint, load_dataset, prepare
from neon.foundations.networks import Architecture, Layer, build_network, load_network, network_facts, save_network
from neon.foundations.results import parse_widths
from neon.published.legacy import read_checkpoint
from neon.published.runs import RunConfig, claim_folder, open_run, train_base_networks, train_run_agent
from neon.study import jobs as study

COMMAND = [sys.executable, "-c", "import sys; from neon.cli import main; sys.exit(main())"]
TINY = core.get_protocol("strict").replace(gate=0.0, base_training=core.TrainingConfig(1, 64))
LINE = re.compile(r"[^\n]+")


def small(n_inputs: int = 4, n_outputs: int = 3, width: int = 5):
    return build_network(Architecture(n_inputs, (Layer(width), Layer(n_outputs, "identity"))))


def gone() -> int:
    "The number of a process that is no more."
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def table(path: Path, seed: int = 0, n: int = 60) -> Path:
    "A csv of three features and two classes."
    X = np.random.default_rng(seed).normal(size=(n, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(X, columns=list("abc")).assign(y=(X[:, 0] > 0).astype(int)).to_csv(path, index=False)
    return path


def visible(folder: Path) -> set[str]: return {p.name for p in folder.rglob("*") if not p.name.startswith(".")}


# 1. What is saved is whole, and what a kill leaves is cleared away

def test_a_network_is_one_file_and_a_kill_at_any_point_leaves_the_old_one(tmp_path, monkeypatch):
    old, new = small(), small(width=7)
    save_network(old, tmp_path/"net", seed=1)
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    for name in ("os.replace", "os.fsync", "neon.foundations.networks.save_file"):
        with monkeypatch.context() as patch:
            def killed(*a, **k): raise KeyboardInterrupt
            patch.setattr(name, killed)
            with pytest.raises(KeyboardInterrupt): save_network(new, tmp_path/"net", seed=2)
        assert load_network(tmp_path/"net").architecture == old.architecture
        assert network_facts(tmp_path/"net")["seed"] == 1
        assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    said = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda d: (said.append("fsync"), fsync(d))[1])
    monkeypatch.setattr("os.replace", lambda a, b: (said.append("rename"), replace(a, b))[1])
    write_json(tmp_path/"a.json", {})
    assert said == ["fsync", "rename"]


def test_temporary_names_tell_machines_apart(tmp_path, monkeypatch):
    names = set()
    for host in ("one", "two"):
        monkeypatch.setattr(core, "_HOST", host)
        with atomic_write(tmp_path/"a") as temporary:
            temporary.write_text("x")
            names.add(temporary.name)
    assert len(names) == 2


def test_only_leftovers_that_are_nobodys_are_removed(tmp_path):
    (tmp_path/"sub").mkdir()
    mine, theirs = f".a.{core._HOST}.{gone()}.tmp", f".b.{core._HOST}.{os.getppid()}.tmp"
    fresh, stale, other = ".c.elsewhere.7.tmp", ".d.elsewhere.7.tmp", ".hidden.tmp"
    for name in (mine, theirs, fresh, stale, other): (tmp_path/"sub"/name).write_text("")
    os.utime(tmp_path/"sub"/stale, (0, 0))
    assert {p.name for p in remove_leftovers(tmp_path)} == {mine, stale}
    assert {p.name for p in (tmp_path/"sub").iterdir()} == {theirs, fresh, other}


def test_who_takes_up_a_run_clears_it(tmp_path):
    config, leftover = RunConfig("iris"), tmp_path/"networks"/f".net_00.safetensors.{core._HOST}.{gone()}.tmp"
    open_run(config, tmp_path)
    leftover.parent.mkdir()
    leftover.write_text("half")
    notebook = tmp_path/f".run.ipynb.{core._HOST}.{gone()}.tmp.ipynb"
    notebook.write_text("half")
    open_run(config, tmp_path)
    assert not leftover.exists() and not notebook.exists()


def test_a_checkpoint_that_outlived_its_training_goes(tmp_path, monkeypatch):
    from neon.published.agent import Agent, save_agent
    save_agent(Agent(5), tmp_path/"agent.safetensors", resumable=False)
    (tmp_path/"agent_checkpoint.safetensors").write_bytes(b"large")
    train_run_agent(RunConfig("iris"), None, [], tmp_path)
    assert not (tmp_path/"agent_checkpoint.safetensors").exists()


def test_setup_files_of_killed_parents_go(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, running = (tmp_path/f".neon-x.{core._HOST}.{pid}.tmp" for pid in (gone(), os.getppid()))
    for file in (left, running): file.write_text("")
    with core.Workers(2, dict) as workers:
        assert not left.exists() and running.exists()
        (mine,) = [f for f in tmp_path.iterdir() if f != running]
        assert str(os.getpid()) in mine.name and stat.S_IMODE(mine.stat().st_mode) == 0o600
        assert workers.n == 2
    assert [*tmp_path.iterdir()] == [running]


def pieces(folder: Path) -> Path:
    "A study whose base network is weights without a description, as a kill left it before they were one file."
    file = folder/"networks"/"iris"/"es"/"net_00.safetensors"
    file.parent.mkdir(parents=True)
    save_file(small().state_dict(), file)
    return file


def test_a_study_mends_a_network_that_is_in_pieces(tmp_path, monkeypatch):
    file, config = pieces(tmp_path), study.StudyConfig(("iris",), methods=("majority",))
    def trained(n, data, reference, seed, target, workers):
        save_network(small(), target/reference/"net_00", data=data.fingerprint)
    monkeypatch.setattr(study, "base_networks", trained)
    assert study.unfinished(config, tmp_path)[0] == "base networks of iris/strict_es"
    assert len(study.run_study(config, tmp_path, progress=False)) == 2
    assert load_network(file).architecture == small().architecture and study.unfinished(config, tmp_path) == []


def test_marks_name_the_fallen_and_are_removed(tmp_path, monkeypatch):
    config = study.StudyConfig(("iris",), methods=("majority", "logistic"))
    first, second = study.jobs(config)
    old = core.temporary_name(tmp_path/"under_way"/"an_old_job")
    old = old.with_name(old.name.replace(str(os.getpid()), str(gone())))
    class Breaks:
        n = 0
        def __init__(self, *a): pass
        def __enter__(self): return self
        def __exit__(self, *a): pass
        def map(self, function, todo):
            Breaks.n += 1
            if Breaks.n > 1: return
            mark = study._under_way(first, tmp_path)
            mark.parent.mkdir(exist_ok=True)
            mark.with_name(mark.name.replace(str(os.getpid()), str(gone()))).touch()
            raise BrokenProcessPool
            yield
    old.parent.mkdir()
    old.touch()
    monkeypatch.setattr(study, "Workers", Breaks)
    study.run_jobs([first, second], config, tmp_path)
    assert study.failure_file(first, tmp_path).exists() and not study.failure_file(second, tmp_path).exists()
    assert not list((tmp_path/"under_way").iterdir())


# 2. Read, change, write

def entry(experiment: str, run: int) -> dict[str, pd.DataFrame]:
    record = pd.DataFrame([[experiment, "021", run, 0, *[0.5]*15]], columns=ecomp.RECORD_COLUMNS)
    values = [experiment, "paper", "digits", "021", run, 0, .9, .91, 0.7, 0.5, 1000, 2000, .95, "12-8", 6, 1.5]
    return {"winners": pd.DataFrame([values], columns=ecomp.WINNER_COLUMNS), "records": record,
            "front": pd.DataFrame()}


def at_once(*calls) -> None:
    "All of them, in threads that begin together."
    barrier = threading.Barrier(len(calls))
    def begin(call):
        barrier.wait()
        call()
    threads = [threading.Thread(target=begin, args=(call,)) for call in calls]
    for t in threads: t.start()
    for t in threads: t.join()


def slowed(monkeypatch, module, name: str) -> None:
    "Reading takes a while, so that the others have read the same before it is written."
    fast = getattr(module, name)
    def slow(*a, **k):
        found = fast(*a, **k)
        time.sleep(0.02)
        return found
    monkeypatch.setattr(module, name, slow)


def test_no_winner_is_lost(tmp_path, monkeypatch):
    slowed(monkeypatch, ecomp, "read_csv")
    at_once(*(lambda r=r: ecomp.add_run(tmp_path, entry(f"{r}21", r + 1)) for r in range(7)))
    assert len(ecomp.read_winners(tmp_path)) == len(ecomp.read_records(tmp_path)) == 7


def test_no_experiment_no_accuracy_and_no_table_is_lost(tmp_path, monkeypatch):
    from neon.published import runs
    config = ecomp.EcompConfig("digits", hidden=(8,))
    slowed(monkeypatch, ecomp, "_held")
    at_once(*(lambda w=w: ecomp.open_experiments(config, {f"{w}00": (w, 0, 1)}, tmp_path/"e") for w in range(1, 5)))
    assert len(read_json(tmp_path/"e"/"config.json")["experiments"]) == 4
    slowed(monkeypatch, runs, "_read_index")
    at_once(*(lambda i=i: runs._note(tmp_path/"n", {f"{i}.0": 0.5}) for i in range(4)))
    assert len(runs._read_index(tmp_path/"n")) == 4
    slowed(monkeypatch, runs, "read_json")
    claim_folder(tmp_path/"c", {})
    at_once(*(lambda i=i: runs.note_tables(tmp_path/"c", {f"t{i}": "x"}) for i in range(4)))
    assert len(read_json(tmp_path/"c"/"config.json")["tables"]) == 4


def test_two_claims_of_one_folder_one_wins(tmp_path):
    refused = []
    def claim(budget):
        try: claim_folder(tmp_path/"run", {"budget": budget})
        except NeonError as error: refused.append(str(error))
    at_once(lambda: claim(1), lambda: claim(5))
    assert len(refused) == 1 and "other settings (budget)" in refused[0]


def test_who_waits_too_long_is_told_in_a_line(tmp_path):
    with locked(tmp_path):
        with pytest.raises(NeonError, match="another process has been changing .* for 0.1 seconds") as caught:
            at_once_error(tmp_path)
    assert LINE.fullmatch(str(caught.value))


def at_once_error(folder: Path) -> None:
    "Lock a folder that another thread holds."
    errors = []
    def wait():
        try:
            with locked(folder, 0.1): pass
        except NeonError as error: errors.append(error)
    at_once(wait)
    raise errors[0]


# 3. A name is not the table

def test_fingerprints_follow_values_and_not_files(tmp_path):
    one, other = table(tmp_path/"a"/"x.csv"), table(tmp_path/"b"/"x.csv", seed=1)
    pd.read_csv(one).to_parquet(tmp_path/"x.parquet")
    marks = [fingerprint(load_dataset(p)) for p in (one, other, tmp_path/"x.parquet")]
    assert marks[0] == marks[2] != marks[1] and prepare(load_dataset(one)).fingerprint == marks[0]
    X, y = pd.DataFrame({"a": [1.0, np.nan, 3], "b": ["u", None, "v"]}), pd.Series([0, 1, 0])
    base = fingerprint(as_dataset(X, y))
    for changed in (X.fillna({"a": 2.0}), X.replace("u", "w"), X.rename(columns={"a": "c"}), X[["b", "a"]]):
        assert fingerprint(as_dataset(changed, y)) != base
    assert fingerprint(as_dataset(X, y, n_train=2)) != base


def test_two_tables_of_one_name_do_not_share_results(tmp_path):
    one, other = table(tmp_path/"a"/"x.csv"), table(tmp_path/"b"/"x.csv", seed=1)
    with pytest.raises(NeonError, match="two data sets would be kept under one name"):
        study.StudyConfig((str(one), str(other)))
    with pytest.raises(NeonError, match="under one name"): study.StudyConfig((str(one),), optional=(str(other),))
    config, folder = study.StudyConfig((str(one),), methods=()), tmp_path/"study"
    study.open_study(config, folder)
    study.study_data(config, folder, str(one), "strict")
    with pytest.raises(NeonError, match="study holds results of another x; choose another folder"):
        study.study_data(config, folder, str(other), "strict")


def test_a_table_that_has_changed_is_refused(tmp_path, monkeypatch):
    path, folder = table(tmp_path/"x.csv"), tmp_path/"run"
    config, data = RunConfig(str(path)), prepare(load_dataset(path))
    open_run(config, folder, data)
    open_run(config, folder, data)
    networks = train_base_networks(1, data, TINY, 0, folder/"networks", progress=False)
    assert network_facts(folder/"networks"/"net_00")["data"] == data.fingerprint and len(networks) == 1
    changed = prepare(load_dataset(table(path, seed=1)))
    with pytest.raises(NeonError, match="run holds results of another x; choose another folder"):
        open_run(config, folder, changed)
    with pytest.raises(NeonError, match="net_00.safetensors has learnt another table than the x of now"):
        train_base_networks(1, changed, TINY, 0, folder/"networks", progress=False)
    bred = ecomp.EcompConfig(str(path), hidden=(8,))
    ecomp.open_experiments(bred, {}, tmp_path/"ecomp", data)
    with pytest.raises(NeonError, match="ecomp holds results of another x"):
        ecomp.open_experiments(bred, {}, tmp_path/"ecomp", changed)


def test_a_folder_of_before_takes_the_fingerprint_of_now(tmp_path):
    config, data = RunConfig("iris"), prepare("iris")
    write_json(tmp_path/"config.json", core.run_metadata(config=config.to_dict()))
    open_run(config, tmp_path, data)
    assert read_json(tmp_path/"config.json")["tables"] == {"iris": data.fingerprint}


def test_compress_does_not_put_the_result_of_one_table_over_that_of_another(tmp_path, capsys):
    save_network(small(3, 2), tmp_path/"net")
    table(tmp_path/"x.csv", n=90)
    words = ["compress", str(tmp_path/"net"), str(tmp_path/"x.csv"), "--method", "majority", "--output",
             str(tmp_path/"out")]
    assert main(words) == 0, capsys.readouterr().err
    table(tmp_path/"x.csv", seed=1, n=90)
    assert main(words) == 1
    assert re.search(r"out holds results of another .*x.csv; choose another folder", capsys.readouterr().err)


# 4. Exit status

def test_failed_jobs_are_no_success(tmp_path, capsys, monkeypatch):
    def fails(job, *a): raise ValueError("no")
    pieces(tmp_path)
    save_network(small(), tmp_path/"networks"/"iris"/"es"/"net_00")
    monkeypatch.setattr(study, "do_job", fails)
    options = ["--datasets", "iris", "--workers", "1", "--output-dir", str(tmp_path)]
    assert main(["study", "run", "--methods", "majority", *options]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "not everything is done: iris/strict_es/majority/net_00_seed_0; why stands in" in last
    assert main(["study", "gather", "--methods", "majority", *options]) == 0  # it did what it was asked for


def test_base_networks_that_cannot_be_trained_are_no_success(tmp_path, capsys, monkeypatch):
    def fails(*a): raise NeonError("below the gate")
    monkeypatch.setattr(study, "base_networks", fails)
    options = ["--datasets", "iris", "--workers", "1", "--output-dir", str(tmp_path)]
    assert main(["study", "run", "--methods", *options]) == 1
    assert "not everything is done: base networks of iris/strict_es" in capsys.readouterr().err
    assert pd.read_csv(tmp_path/"failures.csv").reason.tolist() == ["below the gate"]


HELPER = """
import os, signal, time
from neon.foundations import core
def pid_of(context, item): time.sleep(0.1); return os.getpid()
def wait(context, seconds): time.sleep(seconds)
def wait_command(args):
    with core.Workers(2, dict) as pool:
        for pid in pool.map(pid_of, [0, 1]): print(pid, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        list(pool.map(wait, [60, 60]))
"""
ENDED = """
import sys
from neon import cli
cli._command("wait", "helper", "wait", "Wait.", "")(lambda parser: None)
sys.exit(cli.main(["wait"]))
"""


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_term_ends_it_in_one_line_and_leaves_no_orphan(tmp_path):
    (tmp_path/"helper.py").write_text(HELPER)
    path, temporary = os.pathsep.join([str(tmp_path), *sys.path]), tmp_path/"tmp"
    temporary.mkdir()
    done = subprocess.run([sys.executable, "-c", ENDED], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(temporary)})
    assert done.returncode == 143, done.stderr
    assert done.stderr == "neon: interrupted; the same command goes on from where it stopped\n"
    assert len(done.stdout.split()) == 2 and not any(core._lives(int(pid)) for pid in done.stdout.split())
    assert not list(temporary.glob("*neon*")), "a setup file is left"


def test_handlers_are_as_before_and_ignored_signals_stay_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["data", "list"]) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally: signal.signal(signal.SIGHUP, before)


# 5. Numbers that are too big, and files that are none

def lying(folder: Path, architecture: dict) -> Path:
    save_file(small().state_dict(), folder/"net.safetensors", {"network": json.dumps({"architecture": architecture})})
    return folder/"net.safetensors"


@pytest.mark.parametrize("layers", [[{"width": 10**8}, {"width": 3}], [{"width": 3}]*1000,
                                    [{"width": 10**30}, {"width": 3}]])
def test_a_description_larger_than_its_file(layers, tmp_path):
    start = time.process_time()
    with pytest.raises(NeonError, match="does not hold the weights of a .* network: it holds 43 numbers"):
        load_network(lying(tmp_path, {"n_inputs": 4, "layers": layers}))
    assert time.process_time() - start < 1


def test_a_planner_larger_than_its_file(tmp_path, root):
    shipped = root/"neon"/"agents"/"generic.safetensors"
    with safe_open(shipped, "pt") as file: header = json.loads(file.metadata()["neon"])
    header["config"]["hidden"] = 10**8
    save_file(load_file(shipped), tmp_path/"big.safetensors", {"neon": json.dumps(header)})
    with pytest.raises(NeonError, match="big.safetensors does not hold a generic agent: .* should have the shape"):
        load_planner(tmp_path/"big.safetensors")


DEEP, DOUBLED = b"N" + b"\x85"*2000, b"N" + b"2\x86"*100
WITHIN, BIG = "nested more than 200 deep", "stands for more than 10,000,000 things"


@pytest.mark.parametrize("key, why", [(DEEP, WITHIN), (DOUBLED, BIG)])
@pytest.mark.parametrize("kind", ["zip", "sequence"])
@pytest.mark.parametrize("read", [read_checkpoint, lambda path: read_model(path, "relu")])
def test_pickles_that_end_or_never_end_the_interpreter(key, why, kind, read, tmp_path):
    content, path = b"\x80\x02}" + key + b"Ns.", tmp_path/"net.pt"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive: archive.writestr("net/data.pkl", content)
    else: path.write_bytes(pickle.dumps(0x1950a86a20f9469cfc6c, 2) + content)
    with pytest.raises(NeonError, match=why): read(path)
    with pytest.raises(NeonError, match=why): check_pickle(content)


def test_one_number_that_claims_to_be_many(tmp_path):
    torch.save({"0.weight": torch.zeros(1).expand(10**5, 10**5)}, tmp_path/"net.pt")
    with pytest.raises(NeonError, match="its tensors are larger than the file"): read_model(tmp_path/"net.pt", "relu")


def test_what_unfolds_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("neon.foundations.bounds.LARGEST", 2**20)
    monkeypatch.setattr("neon.foundations.bounds.check_unfolded.__defaults__", (2**20,))
    with gzip.open(tmp_path/"x.csv.gz", "wb") as file: file.write(b"a,b\n" + b"1,2\n"*2**20)
    for part in ("train", "test"):
        np.savez_compressed(tmp_path/f"pictures_{part}.npz", images=np.zeros((100, 200, 200)), labels=np.arange(100))
    pd.DataFrame({"a": np.zeros(2**21), "y": 1}).to_parquet(tmp_path/"y.parquet")
    for name in (tmp_path/"x.csv.gz", tmp_path/"y.parquet", "pictures"):
        with pytest.raises(NeonError, match="unfolds to more than 1 MB; unfold it yourself"):
            load_dataset(name, data_dir=tmp_path)


BAD_JSON = {"list": "[1, 2]", "deep": "["*100_000 + "]"*100_000, "long": "[" + "9"*5000 + "]", "cut": '{"a": ', "": "",
            "bytes": "\udcff"}


@pytest.mark.parametrize("name", BAD_JSON)
def test_json_that_is_none(name, tmp_path, capsys):
    path = tmp_path/"config.json"
    path.write_text(BAD_JSON[name], errors="surrogateescape")
    with pytest.raises(NeonError, match="config.json") as caught: read_json(path)
    assert LINE.fullmatch(str(caught.value))
    for words in ("train", "ecomp 1 121", "study list"):
        assert main([*words.split(), "--output-dir", str(tmp_path)]) == 1
        last = capsys.readouterr().err
        assert last.startswith("neon: error: ") and last.count("\n") == 1 and "config.json" in last


@pytest.mark.parametrize("held", [{"config": [1]}, {"config": {"dataset": 7}}, {"config": "x", "experiments": {}},
                                  {"config": {}, "experiments": [1]}, {"config": {"datasets": "iris"}}])
def test_settings_of_other_types_in_a_folder(held, tmp_path, capsys):
    write_json(tmp_path/"config.json", held)
    for words in ("train", "ecomp 1 121", "study run"):
        assert main([*words.split(), "--output-dir", str(tmp_path)]) == 1
        last = capsys.readouterr().err
        assert last.startswith("neon: error: ") and last.count("\n") == 1


@pytest.mark.parametrize("text, why", [
    ("datasets: iris", "setting 'datasets' must be a list of texts, got 'iris'"),
    ("datasets: [iris]\nepochs: '3'", "setting 'epochs' must be a whole number, got '3'"),
    ("datasets: [iris]\nbudgets: 1", "setting 'budgets' must be a list of numbers, got 1"),
    ("datasets: [1]", "setting 'datasets' must be a list of texts"), ("effort: true", "must be a number, got True"),
    ("7: 8", "unknown StudyConfig setting 7"), ("- iris", "holds no settings"), ("a: [", "is not YAML"),
    ("["*500, "is not YAML"), ("a: &a [*a]", "unknown StudyConfig setting 'a'")])
def test_yaml_of_other_types(text, why, tmp_path):
    (tmp_path/"p.yaml").write_text(text)
    with pytest.raises(NeonError, match=re.escape(why)) as caught:
        study.StudyConfig.from_dict(study_profile(str(tmp_path/"p.yaml")))
    assert LINE.fullmatch(str(caught.value))


@pytest.mark.parametrize("config", [RunConfig, ecomp.EcompConfig, study.StudyConfig, core.TrainingConfig, Layer])
def test_every_setting_knows_its_type(config):
    whole = config(3) if config is Layer else config()
    assert config.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
    for name in whole.to_dict():
        with pytest.raises(NeonError, match=f"{config.__name__} setting '{name}' must be "): whole.replace(**{name: {}})


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'a,b\n1,"2', b"a,b\n1,2,3\n4\n", b"\x00"*10, b"a\n"])
def test_csv_that_is_none(content, tmp_path):
    (tmp_path/"x.csv").write_bytes(content)
    for read in (ecomp.read_winners, study.read_study, load_dataset):
        with pytest.raises(NeonError) as caught: read(tmp_path/"x.csv")
        assert LINE.fullmatch(str(caught.value))
    with pytest.raises(NeonError, match="does not exist"): read_csv(tmp_path/"none.csv")


def test_parquet_npz_and_widths_that_are_none(tmp_path):
    for content, n in itertools.product([b"PAR1", b"PAR1" + b"\xff"*64 + b"PAR1", b"PK\x03\x04" + b"x"*64], range(2)):
        (tmp_path/"x.parquet").write_bytes(content[n:])
        for part in ("train", "test"): (tmp_path/f"p_{part}.npz").write_bytes(content[n:])
        with pytest.raises(NeonError, match="cannot read .*x.parquet"): load_dataset(tmp_path/"x.parquet")
        with pytest.raises(NeonError, match="cannot read .*p_train.npz"): load_dataset("p", data_dir=tmp_path)
    for arrays in ({"images": np.zeros(()), "labels": np.zeros(3)}, {"images": np.zeros((3, 2)), "labels": ["a"]*3}):
        np.savez(tmp_path/"p_train.npz", **arrays)
        with pytest.raises(NeonError, match="as many whole numbers as `labels`"): load_dataset("p", data_dir=tmp_path)
    with pytest.raises(NeonError, match="cannot read the architecture"): parse_widths("4-" + "9"*5000)


# 6. In the middle of somebody's notebook

def weights(result) -> list[torch.Tensor]: return [p.detach().clone() for p in result.network.parameters()]


def test_compress_in_any_surroundings():
    X = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    y = network(torch.tensor(X)).argmax(1).numpy()
    call = lambda: weights(compress(network, X, y, 20, method="l1_oneshot", agent=None, progress=False, seen=False))
    plain = call()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), torch.inference_mode(): again = call()
        assert {p.dtype for p in small().parameters()} == {torch.float32}
    finally: torch.set_default_dtype(torch.float32)
    assert all(torch.equal(p, q) for p, q in zip(plain, again, strict=True))


@pytest.mark.parametrize("labels", [{"a", "b"}, frozenset("ab")])
def test_labels_as_a_set_have_no_order(labels):
    with pytest.raises(NeonError, match="a set has no order"): understand_task(np.array(["a", "b"]), 2, classes=labels)


# 7. Security

def test_file_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save_network(small(), tmp_path/"net")
        write_json(tmp_path/"a.json", {})
        claim_folder(tmp_path/"run", {})
    finally: os.umask(before)
    modes = {p.name: oct(stat.S_IMODE(p.stat().st_mode)) for p in tmp_path.rglob("*") if p.is_file()}
    assert set(modes.values()) == {"0o640"}, modes


def test_what_reaches_a_shell_is_quoted(root):
    text = (root/"workflow"/"Snakefile").read_text()
    shells = "\n".join(re.findall(r"shell: (.*)", text))
    known = {"NEON", "params.options", "threads"}  # built with shlex, or a number
    bare = set(re.findall(r"\{([\w.]+)\}", shells)) - known
    assert not bare, f"unquoted in workflow/Snakefile: {bare}"
    assert "shlex.join(words)" in text and 'shlex.join(shlex.split(CURVES.get("options", "")))' in text


def test_actions_are_pinned_by_commit(root):
    for file in (root/".github"/"workflows").glob("*.yml"):
        for use in re.findall(r"uses: (.*)", file.read_text()):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use), f"{file.name}: {use}"


# 8. Versions

def test_shifts_work_in_every_numpy(root):
    for file in (root/"neon").rglob("*.py"):
        for line in file.read_text().splitlines():
            assert not re.search(r"np\.uint64\)\[0\] *(>>|<<|\+|-)", line), f"{file.name}: {line}"
