"The study: jobs that can be stopped, entries that are checked, the notebook, the workflow."
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import papermill
import pytest
import yaml

from neon.cli import main
from neon.command.runs import find_template, template_parameters
from neon.command.study import study_profile
from neon.compress import all_methods
from neon.compression.planner import load_planner, save_planner
from neon.foundations.core import NeonError, read_json
from neon.study.compress_runs import twins_of
from neon.study.jobs import (
    STUDY_COLUMNS,
    StudyConfig,
    check_study,
    entries_file,
    failure_file,
    gather,
    jobs,
    learning_curves,
    read_study,
    run_study,
    unseen_planner,
)

CONFIG = StudyConfig(datasets=("iris",), methods=("majority", "uniform"), n_networks=2, epochs=3)
KILLED = """
import os, sys
from neon.study import jobs as study
config, done, work = study.StudyConfig.from_dict({config!r}), [], study.run_job
def run_job(*arguments):
    if len(done) == 2: os.kill(os.getpid(), 9)
    done.append(work(*arguments))
study.run_job = run_job
study.run_study(config, sys.argv[1], progress=False)
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    "A study that nothing happened to."
    folder = tmp_path_factory.mktemp("study")
    return folder, run_study(CONFIG, folder, progress=False)


def timeless(table: pd.DataFrame) -> pd.DataFrame: return table.drop(columns="seconds")


def test_killed_half_way_and_resumed_gives_the_same(study, tmp_path):
    config = CONFIG.replace(networks=str(study[0]/"networks"))
    command = [sys.executable, "-c", KILLED.format(config=config.to_dict()), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == -9, done.stderr
    before = {file: file.stat().st_mtime_ns for file in (tmp_path/"rows").rglob("*.csv")}
    assert len(before) == 2 and not list((tmp_path/"rows").rglob("*.tmp"))
    table = run_study(config, tmp_path, progress=False)
    assert {file: file.stat().st_mtime_ns for file in before} == before, "a finished job was done again"
    assert timeless(table).equals(timeless(study[1]))
    gather(tmp_path)
    assert timeless(read_study(tmp_path)).equals(timeless(study[1]))


def test_entries_say_what_was_done(study):
    folder, table = study
    assert len(table) == 2*2*2 and tuple(table.columns) == STUDY_COLUMNS
    assert (table.test_rows == 45).all() and (table.parameters_after <= table.parameters_before).all()
    before = ["parameters_before", "accuracy_before", "validation_before", "architecture_before"]
    same = table.groupby("network")[before].nunique()
    assert (same == 1).all(axis=None), "all methods get the same network"
    gather(folder, "a test")
    meta = read_json(folder/"study_meta.json")
    assert (meta["command"], meta["rows"], meta["jobs"], meta["failures"]) == ("a test", 8, 4, 0)
    assert "agents" not in meta["config"]


def test_jobs_go_network_by_network():
    config = StudyConfig(methods=("uniform", "random", "compress"), n_networks=3, n_seeds=2, first=1)
    listed = jobs(config)
    assert [job.network for job in listed if job.seed == 0] == [1]*9 + [2]*9
    assert [job.seed for job in listed] == [0]*18 + [1]*12, "repetitions come last"
    assert {job.method for job in listed if job.seed == 1} == {"random", "compress"}
    assert len({str(job) for job in listed}) == len(listed), "a file of its own for every job"


def test_one_failure_does_not_stop_the_rest(study, tmp_path):
    config = CONFIG.replace(methods=("neon", "majority"), n_networks=1, agents=str(tmp_path/"none.safetensors"),
                            networks=str(study[0]/"networks"))
    table = run_study(config, tmp_path/"study", progress=False)
    assert set(table.method) == {"majority"}
    failed = [job for job in jobs(config) if failure_file(job, tmp_path/"study").exists()]
    assert [job.method for job in failed] == ["neon"]
    assert "none.safetensors does not exist" in read_json(failure_file(failed[0], tmp_path/"study"))["reason"]
    gather(tmp_path/"study")
    assert list(pd.read_csv(tmp_path/"study"/"failures.csv").method) == ["neon"]


@pytest.mark.parametrize("column, value", [
    ("dataset", ""), ("protocol", "loose"), ("reference", "best"), ("network", -1), ("network", 0.5), ("seed", "one"),
    ("budget", -1), ("parameters_after", 0), ("parameters_after", 10**9), ("counted", "bytes"),
    ("architecture_after", "4-0-3"), ("accuracy_after", 97.8), ("validation_before", float("nan")), ("setting", " "),
    ("seconds", -1), ("test_rows", 0), ("majority", 2)])
def test_schema_refuses_nonsense(study, column, value):
    table = study[1].astype(object)
    table.loc[1, column] = value
    with pytest.raises(NeonError): check_study(table)


def test_schema_refuses_repetitions_and_other_columns(study):
    with pytest.raises(NeonError, match="repeats"): check_study(pd.concat([study[1], study[1].head(1)]))
    with pytest.raises(NeonError, match="missing or unknown column"): check_study(study[1].assign(note="good"))


@pytest.mark.parametrize("wrong, message", [
    ({"methods": ("unifrom",)}, "unknown method"), ({"protocols": ("loose",)}, "unknown protocol"),
    ({"references": ("best",)}, "es or trained"), ({"budgets": (5.0, 1.0)}, "budgets must rise"),
    ({"first": 1}, "first must lie"), ({"datasets": ()}, "at least one data set"), ({"effort": 0.0}, "effort"),
    ({"n_seeds": 0}, "n_seeds")])
def test_settings_refuse_nonsense(wrong, message):
    with pytest.raises(NeonError, match=message): StudyConfig(**wrong)


def test_a_folder_holds_one_kind_of_entries(study):
    with pytest.raises(NeonError, match=r"other settings \(epochs\)"):
        run_study(CONFIG.replace(epochs=4), study[0], progress=False)


def test_every_data_set_gets_an_agent_that_has_not_met_it(tmp_path):
    agent = load_planner()
    for k, names in enumerate((["wine", "iris"], ["digits", "kr-vs-k"])):
        save_planner(agent, tmp_path/f"fold_{k}.safetensors", datasets=names)
    assert [Path(unseen_planner(str(tmp_path), name)).name for name in ("iris", "digits", "kropt")] == [
        "fold_1.safetensors", "fold_0.safetensors", "fold_0.safetensors"]
    assert twins_of("kropt") == {"kropt", "kr-vs-k"}
    save_planner(agent, tmp_path/"fold_0.safetensors", datasets=["wine", "digits"])
    unseen_planner.cache_clear()
    with pytest.raises(NeonError, match="none is new to digits"): unseen_planner(str(tmp_path), "digits")


def test_profiles_are_settings(root):
    quick, full = (StudyConfig.from_dict(study_profile(name)) for name in ("quick", "full"))
    assert len(quick.datasets) == 3 and len(full.datasets) == 26 and {*all_methods()} == {*full.methods}
    for name in ("quick", "full", "slurm"):
        profile = yaml.safe_load((root/"workflow"/"profiles"/name/"config.yaml").read_text())
        assert (root/profile["configfile"]).is_file()
    with pytest.raises(NeonError, match="no profile quik.*did you mean quick"): study_profile("quik")


def test_command(study, tmp_path, capsys):
    mine = {"datasets": ["iris"], "methods": ["majority", "uniform"], "n_networks": 2, "epochs": 3}
    (tmp_path/"mine.json").write_text(json.dumps(mine))
    options = ["--profile", str(tmp_path/"mine.json"), "--output-dir", str(study[0])]
    assert main(["study", "list", *options, "--n-networks", "3"]) == 0
    assert re.findall(r"done|waiting", capsys.readouterr().out) == ["done"]*4 + ["waiting"]*2
    assert main(["study", "run", *options, "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "8 rows of 1 data sets and 2 methods; of the jobs asked for 4 are done, 0 failed and 0 wait" in said
    assert read_json(study[0]/"study_meta.json")["command"] == "neon study run --profile mine"
    assert main(["study", "run", *options, "--methods", "unifrom"]) == 1
    assert "unknown method 'unifrom'" in capsys.readouterr().err
    assert main(["study", "methods"]) == 0 and set(all_methods()) <= set(capsys.readouterr().out.split())


def test_learning_curves_of_runs(tmp_path):
    first = {"episode": 0, "network": "net_00", "warmup": 0, "return": 1.5, "steps": 2, "accuracy_before": 0.9,
             "accuracy_after": 0.8, "parameters_before": 40, "parameters_after": 10, "compression_ratio": 4.0,
             "actor_loss": "", "critic_loss": "", "entropy": "", "keep_ratios": "0.9 1"}
    for seed in (0, 1):
        (tmp_path/f"{seed}").mkdir()
        pd.DataFrame([first, {**first, "episode": 1}]).to_csv(tmp_path/f"{seed}"/"training.csv", index=False)
        (tmp_path/f"{seed}"/"config.json").write_text(json.dumps({"config": {"dataset": "wine", "seed": seed}}))
    table = learning_curves([tmp_path/"0", tmp_path/"1"], tmp_path/"study_curves.csv")
    assert list(table.columns) == ["dataset", "seed", "episode", "return", "compression_ratio", "accuracy_change"]
    assert list(table.seed) == [0, 0, 1, 1] and table.accuracy_change.round(6).eq(-0.1).all()
    with pytest.raises(NeonError, match="at least one folder"): learning_curves([])


# The template

def test_parameters_of_the_template_are_the_settings():
    seen = papermill.inspect_notebook(str(find_template("study")))
    assert list(seen) == list(template_parameters(find_template("study")))
    assert {*StudyConfig().to_dict(), "output_dir", "workers", "retry"} == set(seen)
    assert all(facts["help"] for facts in seen.values()), "every parameter has a comment"


def test_template_runs_one_job(study, monkeypatch):
    "In the folder of a study, as the workflow does: one more method, for one network."
    folder, _ = study
    paths = [str(find_template().parents[2]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    values = {**CONFIG.to_dict(), "methods": ["logistic"], "first": 1, "output_dir": str(folder)}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    executed = papermill.execute_notebook(str(find_template("study")), str(folder/"executed.ipynb"), values,
                                          kernel_name="python3", progress_bar=False)
    (shown,) = [c for c in executed["cells"] if "".join(c["source"]).startswith("shown")]
    assert "logistic" in shown["outputs"][0]["text"]
    (job,) = jobs(CONFIG.replace(methods=("logistic",), first=1))
    assert entries_file(job, folder).exists() and len(gather(folder)) == 8 + 2


# The workflow

def test_dry_run_of_the_quick_profile_lists_the_jobs(root, tmp_path):
    pytest.importorskip("snakemake")
    workflow = root/"workflow"
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--snakefile", str(workflow/"Snakefile"),
               "--profile", str(workflow/"profiles"/"quick"), "--configfile", str(workflow/"config"/"quick.yaml"),
               "--directory", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(tmp_path)})
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    counts = dict(re.findall(r"(?m)^(\w+) +(\d+)$", text.split("Job stats:")[1]))
    assert counts == {"agent": "3", "all": "1", "base": "1", "compress_00_00": "18", "curves": "1", "gather": "1",
                      "latency": "1", "networks": "3", "complete": "1", "total": "30"}
    quick = StudyConfig.from_dict(study_profile("quick"))
    notebooks = "runs/study_quick/notebooks"
    expected = {f"{notebooks}/{j.dataset}/{j.protocol}_{j.reference}/{j.method}_net_00_00.ipynb" for j in jobs(quick)}
    assert set(re.findall(r"output: (\S+_net_\S+)", text)) == expected
    assert len(re.findall(r"resources: .*mem_mb=\d+.*runtime=\d+", text)) >= 18 and not list(tmp_path.glob("runs"))
