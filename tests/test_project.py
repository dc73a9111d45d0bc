"The project's own files: requirements, pins, versions, targets, workflows, citation."
import os
import re
import subprocess
from configparser import ConfigParser

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

EXTRAS = ("notebooks", "baselines", "study", "export", "dev")
INSTALLED_BY_MAKE = ("notebooks", "dev")
TARGETS = ("help", "run", "test", "lab", "bench", "docs", "prepare", "clean")


@pytest.fixture(scope="module")
def settings(root):
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(root / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


@pytest.fixture(scope="module")
def pins(root) -> dict[str, Version]:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in (x.strip() for x in lines):
        if not line or line.startswith("#"): continue
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"constraints.txt pins exactly: {line}"
        name = canonicalize_name(requirement.name)
        assert name not in found, f"pinned twice: {name}"
        found[name] = Version(specifier.version)
    return found


def requirements(settings, extra=None) -> list[Requirement]:
    return [Requirement(text) for text in settings[f"{extra}_requirements" if extra else "requirements"].split()]


def test_requirements_parse_and_have_a_lower_bound(settings):
    for extra in (None, *EXTRAS):
        found = requirements(settings, extra)
        assert found, extra
        unbounded = [str(r) for r in found if not r.specifier]
        assert not unbounded, f"no range in {extra or 'requirements'}: {unbounded}"
    assert len(requirements(settings)) <= 12, "runtime requirements are few"


def test_the_tools_stay_out_of_the_runtime(settings):
    names = {canonicalize_name(r.name) for r in requirements(settings)}
    assert not names & {"fastcore", "nbdev", "execnb", "papermill", "jupyterlab", "ipykernel"}


def test_dev_holds_all_of_notebooks(settings):
    dev, notebooks = ({canonicalize_name(r.name) for r in requirements(settings, extra)}
                      for extra in ("dev", "notebooks"))
    assert notebooks <= dev, "one stamp of the Makefile stands for both"


def test_pins_lie_in_the_ranges(settings, pins):
    for extra in (None, *EXTRAS):
        for requirement in requirements(settings, extra):
            pin = pins.get(canonicalize_name(requirement.name))
            if pin is None:
                by_make = extra in (None, *INSTALLED_BY_MAKE)
                assert not by_make, f"{requirement.name} is installed by make, but not pinned"
                continue
            assert requirement.specifier.contains(pin), f"{requirement} does not admit the pinned {pin}"
    assert all(pin.local is None for pin in pins.values()), "a local version (+cpu) exists on one machine only"


def test_one_version_everywhere(root, settings):
    import neon

    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    assert settings["version"] == neon.__version__ == str(citation["version"])
    Version(settings["version"])
    assert re.search(r"(?m)^## \[(Unreleased|" + re.escape(settings["version"]) + r")\]", changelog)


def test_nbdev_settings_that_must_not_drift(settings):
    assert settings["allowed_cell_metadata_keys"] == "tags"  # else cleaning drops papermill's tag
    assert settings["clear_all"] == "False"
    assert settings["custom_sidebar"] == "True"
    assert settings["update_pyproject"] == "False"
    assert {"slow", "cuda"} <= set(settings["tst_flags"].split())


def test_citation_names_both_papers(root):
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "MIT"
    first, second = citation["references"]
    where = [first[key] for key in ("journal", "volume", "start", "end", "year")]
    assert where == ["Information Sciences", 610, 381, 400, 2022]
    assert [a["family-names"] for a in first["authors"]] == ["Hirsch", "Katz"]
    assert second["year"] == 2021 and len(second["authors"]) == 3
    assert "MIT License" in (root / "LICENSE").read_text(encoding="utf-8")


def test_makefile_has_its_targets(root):
    done = subprocess.run(["make", "--no-print-directory"], cwd=root, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    listed = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert set(TARGETS) <= set(listed), "`make` without a target lists them"
    for target in TARGETS:
        dry = subprocess.run(["make", "-n", target], cwd=root, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert dry.returncode == 0, f"{target}: {dry.stderr}"


def test_clean_spares_what_is_committed(root):
    dry = subprocess.run(["make", "-n", "clean"], cwd=root, capture_output=True, text=True,
                         stdin=subprocess.DEVNULL).stdout
    removed = re.search(r"rm -rf (.*)", dry)[1].split()
    tracked = subprocess.run(["git", "ls-files", "--", *removed], cwd=root, capture_output=True, text=True).stdout
    assert tracked == "" and not {"data", "data/results", "figures", "nbs", "neon", ".venv"} & set(removed)


def test_ci_run_is_executable(root):
    path = root / ".ci" / "run"
    assert os.access(path, os.X_OK)
    assert re.search(r"(?m)^exec make .*\btest\b", path.read_text(encoding="utf-8"))


def test_workflows(root):
    folder = root / ".github" / "workflows"
    texts = {name: (folder / f"{name}.yml").read_text(encoding="utf-8") for name in ("test", "docs")}
    test, docs = (yaml.safe_load(texts[name]) for name in ("test", "docs"))
    assert test["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert "bash .ci/run" in texts["test"] and "--flags slow" in texts["test"]
    assert any("cron" in entry for entry in test[True]["schedule"])  # YAML 1.1 reads the key `on` as true
    steps = docs["jobs"]["build"]["steps"]
    (quarto,) = [s for s in steps if "quarto-actions/setup" in s.get("uses", "")]
    assert re.fullmatch(r"\d+\.\d+\.\d+", str(quarto["with"]["version"])), "Quarto is pinned"
    assert "actions/deploy-pages" in texts["docs"]
    assert all(workflow["env"]["OMP_NUM_THREADS"] == 1 for workflow in (test, docs))


def test_runs_are_left_to_papermill(root):
    assert (root / "nbs" / "runs" / ".notest").is_file()
    assert not (root / "nbs" / ".notest").exists(), "this would skip every notebook"
