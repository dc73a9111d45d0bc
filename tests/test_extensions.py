"""Something of your own, added from outside: each test is what a newcomer would write.

None touches a file of the project, and what a test registers is forgotten after it.
"""
import functools
import http.server
import io
import threading
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from sklearn.datasets import _openml, load_breast_cancer
from sklearn.metrics import f1_score, make_scorer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neon.command.tables import data_list, data_show
from neon.compress import all_methods, compress
from neon.foundations import core
from neon.foundations.core import NeonError, TrainingConfig, Workers, torch_generator
from neon.foundations.data import REGISTRY, PreparedData, load_dataset, prepare, register_dataset, whereabouts
from neon.foundations.networks import Architecture, DenseNetwork, Layer, build_network
from neon.foundations.surgery import cut_widths, fold_norms, get_importance, most_important, slice_units
from neon.foundations.training import train_networks
from neon.methods.contract import METHODS, Candidate, method
from neon.published.agent import AgentConfig, train_agent
from neon.published.environment import EnvConfig, PruningEnv
from neon.published.reward import REWARDS
from neon.study.figures import front_figure
from neon.study.jobs import StudyConfig, gather, run_study
from neon.study.tables import as_text, front_table, load_study, main_table, method_label

ANSWERS = Path(__file__).parent/"fixtures"/"openml"


@pytest.fixture(autouse=True)
def _forget(monkeypatch, tmp_path):
    "No folder of the user's; the registries as they were when the test is over."
    monkeypatch.delenv("NEON_DATA", raising=False)
    monkeypatch.setenv("NEON_CACHE", str(tmp_path/"cache"))
    monkeypatch.setattr(core, "_REPEATED", [])
    all_methods()  # Those of the package register when they are first asked for
    before = [(registry, dict(registry)) for registry in (REGISTRY, METHODS)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


@pytest.fixture(scope="module")
def cancer():
    "A fitted classifier and its rows."
    X, y = load_breast_cancer(return_X_y=True)
    return make_pipeline(StandardScaler(), MLPClassifier((40, 20), max_iter=60, random_state=0)).fit(X, y), X, y


# A data set

def rings(n: int = 120) -> tuple[pd.DataFrame, np.ndarray]:
    "Points on two circles; the class is the circle."
    angle, ring = np.linspace(0, 40, n), np.resize([1, 2], n)
    return pd.DataFrame({"x": ring*np.cos(angle), "y": ring*np.sin(angle)}), np.where(ring == 1, "inner", "outer")


def whole_table() -> pd.DataFrame:
    X, y = rings()
    return X.assign(ring=y)


@pytest.fixture
def served(tmp_path):
    "A web server of one folder on this machine: the folder, and its address."
    folder = tmp_path/"web"
    folder.mkdir()
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def openml(monkeypatch):
    "OpenML as far as a table called toy, number 90001, is concerned; the list of addresses that were asked for."
    seen = []

    def urlopen(request, *args, **kwargs):
        seen.append(request.full_url)
        if "data_name" in request.full_url and "/toy/" not in request.full_url:
            raise HTTPError(request.full_url, 412, "no such name", {}, io.BytesIO(b"{}"))
        kinds = {"data_name": "search.json", "features": "features.json", "qualities": "qualities.json",
                 "download": "toy.arff"}
        file = next((name for kind, name in kinds.items() if kind in request.full_url), "description.json")
        answer = io.BytesIO((ANSWERS/file).read_bytes())
        answer.info = dict
        return answer

    monkeypatch.setattr(_openml, "urlopen", urlopen)
    monkeypatch.setattr(_openml.time, "sleep", lambda seconds: None)
    return seen


def test_a_data_set_of_a_function():
    info = register_dataset("rings", rings, what="Which of two circles is a point on?", n_rows=120, n_classes=2)
    assert load_dataset("rings").info is info and prepare("rings").classes.tolist() == ["inner", "outer"]
    register_dataset("rings", whole_table)                                       # again, as one table: replaced
    assert load_dataset("rings").y.tolist() == rings()[1].tolist()
    register_dataset("rings", whole_table, target="x", n_classes=2)
    with pytest.raises(NeonError, match="'x' looks continuous"): load_dataset("rings")


def test_a_registered_name_is_known_everywhere():
    register_dataset("rings", rings)
    with pytest.raises(NeonError, match="unknown data set 'ringz'; did you mean 'rings'"): load_dataset("ringz")
    assert whereabouts("rings") == "bundled" and "| inner | 60 | 50.00% |" in data_show("rings")
    assert StudyConfig(datasets=(), optional=("rings", "nomao")).available() == ["rings"]
    assert data_list().set_index("name").loc["rings"].tolist() == ["?", "?", "?", "function", "yes"]


def test_a_registered_name_is_known_in_worker_processes(recwarn):
    register_dataset("rings", rings)
    register_dataset("here", lambda: rings())                                    # a lambda cannot travel
    with Workers(2, load_dataset, "rings") as workers: assert list(workers.map(getattr, ["name"])) == ["rings"]
    assert len(recwarn) == 1 and "worker processes will not know" in str(recwarn[0].message)


def test_a_data_set_of_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole_table().to_csv("rings.csv", index=False)
    register_dataset("rings", path="rings.csv", n_columns=3)
    monkeypatch.chdir(tmp_path.parent)                                           # found from any folder
    assert load_dataset("rings").y.nunique() == 2 and whereabouts("rings") == "folder"
    register_dataset("rings", path=tmp_path/"rings.csv", n_columns=9)
    with pytest.raises(NeonError, match="rings from .*rings.csv: expected 9 columns.*found 120 rows, 3 columns"):
        load_dataset("rings")
    (tmp_path/"rings.csv").unlink()
    with pytest.raises(NeonError, match="rings.csv does not exist"): load_dataset("rings")


def test_a_data_set_of_an_address(served, tmp_path):
    folder, web = served
    whole_table().to_csv(folder/"rings.csv.gz", index=False)
    register_dataset("rings", url=f"{web}/rings.csv.gz?raw=true", target="ring")
    assert whereabouts("rings") == "download" and len(load_dataset("rings").X) == 120
    (folder/"rings.csv.gz").unlink()
    assert whereabouts("rings") == "cache" and len(load_dataset("rings").X) == 120


def test_an_address_instead_of_a_name(served, tmp_path):
    folder, web = served
    whole_table().to_csv(folder/"rings.csv", index=False)
    assert repr(load_dataset(f"{web}/rings.csv")) == "Dataset(rings: 120 rows, 2 features, 2 classes)"
    assert prepare(Path(f"{web}/rings.csv")).n_classes == 2                      # a Path has eaten a slash
    with pytest.raises(NeonError, match=r"cannot download http://127.0.0.1:\d+/none.csv: HTTP Error 404"):
        load_dataset(f"{web}/none.csv")
    with pytest.raises(NeonError, match="is not the address of a data file"): load_dataset(f"{web}/rings")
    with pytest.raises(NeonError, match="no column 'klass'"): load_dataset(f"{web}/rings.csv", target="klass")
    assert len(list((tmp_path/"cache").iterdir())) == 1                          # nothing half-written


def test_a_data_set_of_openml_by_number(openml):
    register_dataset("mine", openml_id=90001, n_rows=24)
    assert load_dataset("mine").X.shape == (24, 3) and whereabouts("mine") == "cache"
    n = len(openml)
    assert load_dataset("openml:90001").name == "mine" and len(openml) == n      # the entry's, from the cache
    del REGISTRY["mine"]
    assert load_dataset("openml:90001").name == "openml-90001"
    with pytest.raises(NeonError, match="target 'hue' has 1 missing"): load_dataset("openml:90001", target="hue")


def test_a_data_set_of_openml_by_name(openml):
    assert load_dataset("openml:toy").y.nunique() == 2 and any("data_name/toy" in address for address in openml)
    n = len(openml)
    assert prepare("openml:toy").name == "toy" and len(openml) == n              # from the cache
    with pytest.raises(NeonError, match="cannot fetch 'nothing' .OpenML, by name.: .*give the path of a file"):
        load_dataset("openml:nothing")


@pytest.mark.parametrize("wrong, message", [
    (dict(), "needs one of load, path, url and openml_id, got 0"),
    (dict(load=rings, url="http://x/y.csv"), "got 2 of them"),
    (dict(load="rings.csv"), "for a file say path="), (dict(url="rings.csv"), "is no http.s. address"),
    (dict(load=rings, colour="red"), "unknown fact 'colour' about 'rings'"),
    (dict(load=int), "must return a table or .X, y.")])
def test_a_data_set_that_is_refused(wrong, message):
    with pytest.raises(NeonError, match=message): load_dataset(register_dataset("rings", **wrong).name)
    for name, said in [("iris", "'iris' is taken"), ("a/b", "a name is letters"), ("rings.v2", "a name is letters")]:
        with pytest.raises(NeonError, match=said): register_dataset(name, rings)


# A method

def thirds(network, rows, guard, config):
    "Every hidden layer cut to a share of its units by least squares."
    for share in (0.9, 0.6, 0.3, 0.1):
        widths = [max(1, round(share*w)) for w in network.architecture.hidden_widths]
        yield Candidate(cut_widths(fold_norms(network), widths, rows.fit.x), f"{share:.0%} of every layer")


def test_a_method_of_your_own(cancer):
    assert compress(*cancer, budget=5, method=thirds).how.endswith("of every layer")
    method("thirds", label="Thirds", source="a test")(thirds)
    assert compress(*cancer, budget=5, method="thirds").compression_ratio > 2


def test_a_method_of_your_own_in_study_table_and_figure(tmp_path):
    method("thirds", label="Thirds", source="a test")(thirds)
    config = StudyConfig(datasets=("iris", "wine"), methods=("uniform", "thirds"), epochs=1)
    run_study(config, tmp_path, progress=False)
    gather(tmp_path)
    study = load_study(tmp_path)
    assert len(study.rows) == 8 and {"Thirds", "uniform, refit"} <= {method_label(m) for m in study.rows.method}
    assert "Thirds" in as_text(main_table(study.rows))
    assert "Thirds" in [text.get_text() for text in front_figure(front_table(study.rows)).findobj(Text)]


# A metric

@pytest.mark.parametrize("metric", [lambda y, output: -np.abs(y - (output[:, 1] > output[:, 0])).mean(),
                                    make_scorer(f1_score)])
def test_a_metric_of_your_own(cancer, metric):
    result = compress(*cancer, budget=5, metric=metric, method="uniform", seen=False)
    assert result.network.architecture.n_params < result.original.architecture.n_params and result.drop.points <= 5
    assert result.report().measure.str.contains("f1|lambda").any()


# A reward and an importance

@pytest.fixture(scope="module")
def iris() -> PreparedData: return prepare("iris")


@pytest.fixture(scope="module")
def networks(iris) -> list[DenseNetwork]:
    "Two small networks, trained on iris."
    shapes = [Architecture(4, (*map(Layer, hidden), Layer(3, "identity"))) for hidden in ((20, 10), (12,))]
    drawn = [build_network(shape, torch_generator(0, i)) for i, shape in enumerate(shapes)]
    parts = iris.X_train, iris.y_train, iris.X_validation, iris.y_validation
    return [result.network for result in train_networks(drawn, *parts, TrainingConfig(20), 0)]


def test_a_reward_of_your_own(iris, networks, monkeypatch):
    paid = []

    def gentle(reduction, accuracy_change, budget):
        "The reduction, minus ten for every point beyond the budget."
        paid.append(reduction - 10*max(0, -accuracy_change - budget))
        return paid[-1]

    monkeypatch.setitem(REWARDS, "gentle", gentle)  # forgotten after the test
    for reward in (gentle, "gentle"):
        rules = EnvConfig(budget=5, passes=1, recovery="refit", reward=reward)
        agent = train_agent(networks, iris, rules, AgentConfig(episodes=3), progress=False)
        assert sum(entry["return"] for entry in agent.log) == pytest.approx(sum(paid))
        paid.clear()


def test_an_importance_of_your_own(iris, networks):
    def by_number(network, layer, H, y):
        "The last units matter most: one value per unit; H is their output on rows of the classes y."
        return torch.arange(H.shape[1])

    untrained = TrainingConfig(epochs=0)  # of the units that stay, the weights stay as they are
    rules = EnvConfig(passes=1, recovery="slice", importance=by_number, training=untrained)
    env = PruningEnv(networks, iris, rules)
    env.reset(options={"network": 0})
    env.step(4)  # keeps 60 % of the first layer
    kept = env.state.network.layers[0].linear.weight
    assert torch.equal(kept, networks[0].layers[0].linear.weight[-12:])


def test_an_importance_of_your_own_decides_which_units_stay():
    network = build_network(Architecture(4, (Layer(8), Layer(5), Layer(3, "identity"))), torch_generator(0, "toy"))
    x, y = torch.randn(50, 4, generator=torch_generator(0, "x")), torch.arange(50) % 3
    given = []

    def class_contrast(network, layer, H, y):
        "How far apart a unit's mean activations in the classes are."
        given.append((network, layer, H.shape, y.shape))
        means = torch.stack([H[y == c].mean(0) for c in y.unique()])
        return means.max(0).values - means.min(0).values

    H = network.layers[0](x).detach()
    scores = get_importance(class_contrast)(network, 0, H, y)
    assert given == [(network, 0, (50, 8), (50,))] and scores.shape == (8,)
    units = most_important(scores, 3)
    assert set(units.tolist()) == set(scores.argsort()[-3:].tolist())
    assert slice_units(network, 0, units).architecture.hidden_widths == (3, 5)
