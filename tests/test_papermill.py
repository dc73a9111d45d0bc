"The template as it is used: through the command, twice, and through papermill by people who don't know the command."
import json
import os
import subprocess
import sys
from pathlib import Path

import papermill
import pytest

from neon.cli import main
from neon.command.runs import find_template, template_parameters
from neon.ecomp.runs import EcompConfig, read_original, read_records, read_winners
from neon.foundations.core import read_json
from neon.foundations.results import RESULT_COLUMNS, read_results, read_training
from neon.published.runs import RunConfig, split_networks

COMMAND = [sys.executable, "-c", "import sys; from neon.cli import main; sys.exit(main())", "run"]
SETTINGS = {"dataset": "wine", "n_networks": 3, "n_test": 1, "episodes": 2, "passes": 1}
OPTIONS = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def run(folder: Path, *options: str, output: str = "run") -> subprocess.CompletedProcess:
    "`neon run` in a folder, into a folder below it, given relative to it."
    return subprocess.run([*COMMAND, *OPTIONS, "--output-dir", output, "--workers", "1", *options], cwd=folder,
                          capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("papermill")
    return folder/"run", run(folder)


def numbers(folder: Path, part: str):
    "Results without the wall time."
    return read_results(folder/f"results_{part}.csv").drop(columns="seconds")


def test_parameters_are_those_of_the_settings():
    "papermill itself must see every parameter, else it warns of names that are right."
    seen = papermill.inspect_notebook(str(find_template()))
    assert list(seen) == list(template_parameters(find_template()))
    assert {*RunConfig().to_dict(), "output_dir"} <= set(seen)


def test_run_leaves_everything(finished):
    folder, done = finished
    assert done.returncode == 0, done.stderr
    train, test = (read_results(folder/f"results_{part}.csv") for part in ("train", "test"))
    for part in ("train", "test"):
        assert (folder/f"results_{part}.csv").read_text().splitlines()[0] == ",".join(RESULT_COLUMNS)
    expected = split_networks(3, 1, 0)
    for table, ids in zip((train, test), expected, strict=True):
        assert list(table.network) == [f"net_{i:02d}" for i in ids]
    for table in (train, test):
        assert set(table.dataset) == {"wine"} and set(table.passes) == {1} and set(table.protocol) == {"strict"}
        assert (table.parameters_after <= table.parameters_before).all()
    assert len(read_training(folder/"training.csv")) == 2
    config = read_json(folder/"config.json")
    assert {name: config["config"][name] for name in SETTINGS} == SETTINGS and config["versions"]["torch"]
    for i in range(3):
        for part in ("networks", "compressed"): assert (folder/part/f"net_{i:02d}.safetensors").is_file()
    assert (folder/"agent.safetensors").is_file()
    figures = {p.suffix for p in (folder/"figures").iterdir()}
    assert {".svg", ".png"} <= figures and len(list((folder/"figures").glob("*.svg"))) >= 3
    assert not list(folder.rglob("*.tmp*")) and not (folder/"run_failed.ipynb").exists()


def test_terminal_shows_progress_and_the_table(finished):
    folder, done = finished
    assert "base networks: 100%" in done.stderr and "episodes: 100%" in done.stderr
    assert "Traceback" not in done.stderr and "arning" not in done.stderr, done.stderr
    name = read_results(folder/"results_test.csv").network[0]
    shown = [line.split()[:2] for line in done.stdout.splitlines() if line]
    assert shown[0][:1] == ["network"] and shown[1][0] == name
    assert shown[2:4] == [["arithmetic", "mean"], ["geometric", "mean"]]
    assert sum(line[:1] == ["geometric"] for line in shown) == 1, "the table is printed once"
    assert done.stdout.endswith("The executed notebook is run/run.ipynb; all else is beside it\n")


def test_executed_notebook(finished):
    notebook = json.loads((finished[0]/"run.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    assert all(cell["execution_count"] for cell in code), "every cell was executed"
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    injected = next(cell for cell in code if "injected-parameters" in cell["metadata"]["tags"])
    assert "n_networks = 3\n" in "".join(injected["source"]) and 'dataset = "wine"' in "".join(injected["source"])
    texts = ["".join(output.get("text", "")) for cell in code for output in cell["outputs"]]
    assert not any("\r" in text for text in texts), "progress bars keep one state"


def here(monkeypatch, folder: Path, *options: str) -> int:
    "The same command in this process, which has imported what it needs; its exit status."
    monkeypatch.chdir(folder)
    return main(["run", *OPTIONS, "--output-dir", "run", "--workers", "1", *options])


def test_same_parameters_again_reuse_the_work(finished, monkeypatch):
    folder, _ = finished
    kept = [*folder.glob("networks/*.safetensors"), folder/"agent.safetensors", folder/"training.csv"]
    before, results = {p: p.stat().st_mtime_ns for p in kept}, numbers(folder, "test")
    assert here(monkeypatch, folder.parent) == 0
    assert {p: p.stat().st_mtime_ns for p in kept} == before, "something was trained again"
    assert numbers(folder, "test").equals(results)


def test_other_settings_in_the_same_folder_are_refused(finished, monkeypatch, capsys):
    folder, _ = finished
    before = (folder/"run.ipynb").read_bytes()
    assert here(monkeypatch, folder.parent, "--budget", "5") == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("neon: error: run holds a run with other settings (budget);")
    assert (folder/"run.ipynb").read_bytes() == before and not list(folder.glob(".*.tmp*"))


def test_papermill_from_outside(finished, tmp_path, monkeypatch):
    "As a library user would call it: from any folder, into an absolute one; the numbers are those of the command."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH",
                       os.pathsep.join([str(find_template().parents[2]), os.environ.get("PYTHONPATH", "")]))
    for part in ("networks", "config.json", "agent.safetensors", "training.csv"):   # test_resume compared the slow half
        (tmp_path/"out").mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", str(finished[0]/part), str(tmp_path/"out")], check=True)
    papermill.execute_notebook(str(find_template()), str(tmp_path/"executed.ipynb"),
                               {**SETTINGS, "output_dir": str(tmp_path/"out"), "workers": 1},
                               kernel_name="python3", progress_bar=False)
    for part in ("train", "test"): assert numbers(tmp_path/"out", part).equals(numbers(finished[0], part))
    assert (tmp_path/"out"/"figures").is_dir() and {p.name for p in tmp_path.iterdir()} == {"out", "executed.ipynb"}


def test_failing_notebook_is_kept_and_named(tmp_path, monkeypatch, capsys):
    cells = [("dataset: str = 'wine'\noutput_dir: str = ''", ["parameters"]), ("1/0", [])]
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel},
                "cells": [{"cell_type": "code", "id": f"c{i}", "metadata": {"tags": tags}, "source": source,
                           "outputs": [], "execution_count": None} for i, (source, tags) in enumerate(cells)]}
    (tmp_path/"t.ipynb").write_text(json.dumps(notebook))
    monkeypatch.chdir(tmp_path)
    command = ["run", "--template", "t.ipynb", "--output-dir", "run"]
    assert main(command) == 1 and capsys.readouterr().err.splitlines()[-1] == (
        "neon: error: the notebook failed with ZeroDivisionError: division by zero; see run/run_failed.ipynb")
    assert "ZeroDivisionError" in (tmp_path/"run"/"run_failed.ipynb").read_text()
    assert not (tmp_path/"run"/"run.ipynb").exists()
    notebook["cells"][1]["source"] = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    (tmp_path/"t.ipynb").write_text(json.dumps(notebook))
    assert main(command) == 1
    assert "neon: error: the notebook's process ended suddenly" in capsys.readouterr().err.splitlines()[-1]


# The template of EComp

ECOMP = {"dataset": "digits", "hidden": [24, 16], "parent_epochs": 15, "weightings": ["021", "121"], "n_runs": 2,
         "pop_size": 8, "generations": 4, "workers": 1}


def execute_ecomp(folder: Path, output: str, **parameters) -> dict:
    "The template, as papermill executes it from `folder`."
    executed = papermill.execute_notebook(str(find_template("ecomp")), str(folder/"executed.ipynb"),
                                          {**ECOMP, **parameters, "output_dir": output},
                                          kernel_name="python3", progress_bar=False, cwd=str(folder))
    return {"".join(cell["source"]): cell for cell in executed["cells"]}


@pytest.fixture(scope="module")
def bred(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("ecomp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(find_template().parents[2]), os.environ.get("PYTHONPATH", "")]))
        return folder/"run", execute_ecomp(folder, "run")


def test_parameters_of_ecomp_are_those_of_the_settings():
    seen = papermill.inspect_notebook(str(find_template("ecomp")))
    assert list(seen) == list(template_parameters(find_template("ecomp")))
    expected = {*EcompConfig().to_dict(), "weightings", "n_runs", "parent", "output_dir", "workers"}
    assert expected - {"loss_weights"} == set(seen)
    assert all(line["help"] for line in seen.values()), "every parameter has a comment"


def test_ecomp_leaves_everything(bred):
    folder, cells = bred
    assert list(read_winners(folder).experiment) == ["021", "021", "121", "121"]
    assert len(read_records(folder)) == 4*5 and len(list((folder/"weights").glob("*.safetensors"))) == 4
    experiments = sorted(read_original(path)[1]["experiment"] for path in (folder/"results").iterdir())
    assert experiments == ["021", "021", "121", "121"]
    result = read_json(folder/"result.json")
    assert result["versions"]["torch"] and result["config"]["hidden"] == [24, 16]
    assert len(result["summary"]) == len(result["control"]) == 2
    (shown,) = [cell for source, cell in cells.items() if source.startswith("print(weightings_table")]
    assert "021" in shown["outputs"][0]["text"] and shown["metadata"]["tags"] == ["show"]
    assert not any(output["output_type"] == "error" for cell in cells.values() for output in cell.get("outputs", ()))


def test_ecomp_again_reuses_the_work(bred, monkeypatch):
    folder, _ = bred
    monkeypatch.setenv("PYTHONPATH",
                       os.pathsep.join([str(find_template().parents[2]), os.environ.get("PYTHONPATH", "")]))
    drawn = lambda p: p.name == "result.json" or p.parent.name == "figures"  # anew, from what there is
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and not drawn(p)}
    execute_ecomp(folder.parent, "run", weightings=["121"])
    assert {p: p.read_bytes() for p in before} == before, "something was done again"
