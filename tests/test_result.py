"""What a user sees of a result: short, plain, and right in every situation."""
import copy
import io
import pickle
from contextlib import redirect_stderr
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from torch import nn

import neon.compress
from neon.compression.export import (
    closest_refused,
    compression_report,
    discordance,
    report_table,
    rows_needed,
    save_compressed,
    smallest_at,
    to_torch,
)
from neon.compression.figures import Front
from neon.compression.result import Compressed, Progress, explain, first_sentence, more_rows, next_budgets
from neon.foundations.core import NeonError, generator, read_json, torch_generator
from neon.foundations.networks import Architecture, DenseNetwork, Layer, build_network
from neon.methods.contract import Candidate, Task, Tested
from neon.methods.guard import Drop, Guard, mean_drop


def network(*widths, activation="relu", inputs=None):
    layers = [Layer(w, activation) for w in widths[1:-1]]
    return build_network(Architecture(widths[0], (*layers, Layer(widths[-1], "identity")), inputs),
                         torch_generator(0, "net"))


WHOLE = network(20, 300, 200, 4)


def offer(width, points, error=0.4, accepted=True, rows=400):
    return Tested(Candidate(network(20, width, 4), "narrower", drop=Drop(points, error, rows)),
                  Drop(points, error, rows), accepted, 0.9)


def found(**changes):
    tested = [offer(40, 0.1), offer(8, 0.3), offer(4, 1.8, 0.9, False), offer(2, 20.0, 2.0, False)]
    front = [t.candidate for t in reversed(tested)]
    result = Compressed(tested[1].candidate.network, WHOLE, Guard(1.0), tested[1].drop, "narrower", tested, front,
                        ("pass 1, layer 1: kept 8 of 300",), 0.9, 3.0)
    return replace(result, **changes)


def nothing(**changes):
    tested = [offer(40, 0.8, 0.6, False), offer(8, 1.9, 0.8, False), offer(4, 9.0, 1.4, False)]
    result = Compressed(WHOLE, WHOLE, Guard(1.0), Drop(0.0, 0.0, 400), "as it was", tested,
                        [t.candidate for t in reversed(tested)], (), 0.9, 3.0)
    return replace(result, **changes)


EXTRAS = {"notes": ("class b: recall falls from 0.9 to 0.6", "the network knows <half> the rows by heart"),
          "baseline": 0.31, "promise": "It loses no more than a twin would.",
          "reference": "a twin trained without these rows", "task": Task("classes", ("a", "b")),
          "recalls": pd.DataFrame({"class": ["a", "b"], "rows": [300, 100], "before": [0.9, 0.9],
                                   "after": [0.91, 0.6]})}
DEEP = Compressed(network(784, *[50]*30, 10), network(784, *[1000]*30, 10), Guard(1.0), Drop(0.1, 0.2, 900),
                  "a way " * 40, [], [], (), 0.9, 3.0, wanted="at most 100,000 parameters", **EXTRAS)
SITUATIONS = {"found": found(), "nothing": nothing(), "extras": found(**EXTRAS), "idle with extras": nothing(**EXTRAS),
              "wanted": found(wanted="at most 300 parameters"),
              "wanted in vain": nothing(wanted="at most 3 parameters"),
              "untested": nothing(tested=[], front=[]), "deep": DEEP,
              "values": found(guard=Guard(1.0, metric="r2"), task=Task("values")),
              "no budget": nothing(guard=Guard(0.0)), "own score": found(guard=Guard(1.0, metric=lambda y, o: o[:, 0])),
              "margin": found(guard=Guard(1.0, margin=(1.0, 0.5)))}
each_situation = pytest.mark.parametrize("result", SITUATIONS.values(), ids=SITUATIONS.keys())


@each_situation
def test_it_prints_a_few_lines(result):
    lines = repr(result).splitlines()
    assert len(repr(result)) < 800 and 4 <= len(lines) <= 9 and max(map(len, lines)) < 120
    assert "tensor" not in repr(result) and len(repr([result])) < 820 and len(repr(result.front)) < 100


@each_situation
def test_html_is_well_formed(result):
    tree = ElementTree.fromstring(result._repr_html_())
    pictures, tables = list(tree.iter("img")), list(tree.iter("table"))
    assert len(pictures) == len(tables) == 1 and len(pictures[0].get("alt")) > 40
    assert pictures[0].get("src").startswith("data:image/svg+xml;base64,")
    words = "".join(tree.itertext())
    assert first_sentence(result) in words and all(note in words for note in result.notes)
    assert "microseconds" not in words
    ElementTree.fromstring(f"<div>{result.front._repr_html_()}</div>")


@each_situation
def test_sentences_in_their_order(result):
    said = result.explain()
    assert said == explain(result) and said[0] == first_sentence(result)
    assert tuple(said[1:1 + len(result.notes)]) == result.notes
    prefixes = [s.split(":")[0] for s in said[1 + len(result.notes) + bool(result.promise):]]
    order = ["agent", "why", "rows", "budgets", "chosen", "refused"]
    assert prefixes == sorted(prefixes, key=order.index)
    assert not any(f"{n} times smaller" in s for s in said for n in ("1", "1.0")) and "nan" not in " ".join(said)


def test_the_first_sentence_of_something_found():
    first = first_sentence(found())
    for words in ("Kept 20-8-4 with 204 of 67,304 parameters (330 times smaller)", "accuracy falls by 0.3 points",
                  "from 0.900 to 0.897, on 400 rows", "and with 90 % confidence it falls", "the budget is 1 point",
                  "a budget of 5 points would allow a smaller one"):
        assert words in first
    bound = Guard(1.0).bound(Drop(0.3, 0.4, 400))
    assert f"by at most {bound:.2f} points" in first
    assert "accuracy rises by 0.5 points" in first_sentence(found(drop=Drop(-0.5, 0.4, 400)))
    assert "accuracy stays at 0.900" in first_sentence(found(drop=Drop(0.0, 0.4, 400)))
    assert "compared with a twin" in first_sentence(found(**EXTRAS))
    assert "R² falls" in first_sentence(SITUATIONS["values"])
    assert "standard error of 0.4" in first_sentence(SITUATIONS["margin"])


def test_nothing_found_says_so_first_and_what_would_help():
    result = nothing()
    first, why, rows, budgets, refused = result.explain()
    assert first.startswith("Nothing smaller was safe") and "stays as it was (20-300-200-4, 67,304 parameters)" in first
    closest = closest_refused(result)
    missed = Guard(1.0).bound(closest.drop) - 1
    assert closest.candidate.size == network(20, 40, 4).architecture.n_params
    assert f"missed the budget of 1 point by {missed:.2f}".rstrip("0") in first
    assert f"on {100*discordance(closest.drop):.1f} % of them" in why
    assert "standard error 0.60" in why and "400 rows" in why
    assert "1 point at 90 % confidence" in rows and "rows for the guard" in rows
    assert "2 points: 20-40-4" in budgets and "5 points: 20-8-4" in budgets and refused.startswith("refused: 20-40-4")
    assert "a budget of 2 points would help" in first
    assert "no smaller network was tested" in first_sentence(SITUATIONS["untested"])
    half = nothing(guard=Guard(0.5)).explain()
    assert [s.split(" takes")[0] for s in half if s.startswith("rows")] == [
        f"rows: to be sure of {p} at 90 % confidence" for p in ("1 point", "0.5 points")]


def test_what_would_help_is_what_the_guard_would_say():
    result = nothing()
    n, tested = more_rows(result)
    error = tested.drop.error*(tested.drop.rows/n)**0.5
    assert n > tested.drop.rows and Guard(1.0).holds(Drop(tested.drop.points, error, n))
    for budget, candidate in next_budgets(result).items():
        drop = next(t.drop for t in result.tested if t.candidate is candidate)
        assert Guard(budget).holds(drop) and smallest_at(result, budget).candidate is candidate
    assert next_budgets(nothing(tested=[])) == {} and more_rows(nothing(tested=[])) is None
    shared = replace(Guard(1.0), sequences=2)
    assert rows_needed(shared, tested.drop) > rows_needed(Guard(1.0), tested.drop)
    assert rows_needed(Guard(0.0), tested.drop) is None
    same = mean_drop(np.zeros(28), "accuracy")
    n = rows_needed(Guard(0.1), same)
    assert 28 < n < 150 and Guard(0.1).holds(mean_drop(np.zeros(n), "accuracy"))


@pytest.mark.parametrize("seed", range(5))
def test_discordance_is_counted_from_the_drop(seed):
    rng = generator(seed, "rows")
    a, b = rng.random((2, 317)) < np.array([[0.9], [0.8]])
    drop = mean_drop(100*(a.astype(float) - b), "accuracy")
    assert discordance(drop) == pytest.approx((a != b).mean())


def test_a_wanted_size_has_an_interval_and_no_promise():
    first = first_sentence(SITUATIONS["wanted"])
    assert first.startswith("Asked for at most 300 parameters, kept 20-8-4") and "95 % interval" in first
    assert "confidence" not in first and "the next larger on offer, with 1,004 parameters" in first
    assert first_sentence(SITUATIONS["wanted in vain"]).startswith("Nothing of at most 3 parameters was found")


def test_one_network_has_one_latency():
    report = compression_report(nothing(), seconds=0.001)
    before, after = report["before"], report["after"]
    assert before["latency"] == after["latency"] and before["latency_of_1000_rows"] == after["latency_of_1000_rows"]
    table = report_table(report).set_index("measure")
    assert (table.before == table.after)[[m for m in table.index if "change" not in m]].all()
    assert table.loc["change of accuracy, points", "after"] == "none"


def test_new_facts_reach_the_files(tmp_path):
    save_compressed(found(**EXTRAS), tmp_path)
    report = read_json(tmp_path/"report.json")
    assert report["notes"] == list(EXTRAS["notes"]) and report["baseline"] == 0.31 and report["task"] == "classes"
    assert report["recalls"][1] == {"class": "b", "rows": 100, "before": 0.9, "after": 0.6}
    assert report["reference"].startswith("a twin") and report["promise"] and report["wanted"] == ""
    table = pd.read_csv(tmp_path/"report.csv").set_index("measure")
    assert table.loc["recall of b (100 rows)", "after"] == "0.600"
    assert list(table.index).index("recall of b (100 rows)") < list(table.index).index("recall of a (300 rows)")
    assert table.loc["accuracy of the best constant", "before"] == "0.3100"


@each_situation
def test_plots_draw_on_given_axes(result):
    fig = Figure()
    left, right, below = fig.subplots(1, 3)
    axes = (left, right)
    assert result.plot(axes) is axes and result.front.plot(below) is below
    assert all(ax.has_data() for ax in (left, right, below))
    fig.savefig(io.BytesIO(), format="svg")


def test_plots_make_a_figure_of_their_own():
    import matplotlib.pyplot as plt
    before = plt.get_fignums()
    axes, ax = found().plot(), found().front.plot()
    assert len(axes) == 2 and len(plt.get_fignums()) == len(before) + 2 and ax.get_xscale() == "log"
    for figure in (axes[0].figure, ax.figure): plt.close(figure)


def test_a_front_is_a_list_that_knows_its_result():
    result = found()
    assert isinstance(result.front, list) and [c.size for c in result.front] == sorted(c.size for c in result.front)
    assert result.front.chosen.network is result.network and result.front.table().shape == (4, 5)
    moved = replace(result, front=list(result.front)[:2], guard=Guard(3.0))
    assert isinstance(moved.front, Front) and len(moved.front) == 2 and moved.front.guard.budget == 3
    again = pickle.loads(pickle.dumps(result))
    assert repr(again) == repr(result) == repr(copy.deepcopy(result)) and len(again.front) == 4
    with pytest.raises(NeonError, match="result.front"): Front(result.front).plot()
    assert neon.compress.Compressed is Compressed and "Compressed" in neon.compress.__all__


ACTIVATIONS = ("relu", "tanh", "sigmoid", "leaky_relu", "elu", "gelu", "silu", "identity")


def random_network(seed):
    "Any widths, norms, activations and features read; statistics of the norms away from their start."
    rng = generator(seed, "architecture")
    norms = lambda: tuple(n for n in ("batchnorm", "dropout") if rng.random() < 0.3)
    layers = [Layer(int(rng.integers(1, 12)), str(rng.choice(ACTIVATIONS)), norms(), norms(), bias=rng.random() < 0.7)
              for _ in range(rng.integers(0, 4))]
    last = Layer(int(rng.integers(1, 4)), str(rng.choice(["identity", "softmax", "tanh"])))
    inputs = None if rng.random() < 0.5 else tuple(sorted(rng.permutation(9)[:rng.integers(1, 9)].tolist()))
    made, draws = DenseNetwork(Architecture(9, (*layers, last), inputs)), torch_generator(seed, "weights")
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm1d):
                for values in (module.running_mean, module.running_var, module.weight, module.bias):
                    values.copy_(torch.rand(values.shape, generator=draws) + 0.3)
    return made.eval()


@pytest.mark.parametrize("seed", range(20))
def test_a_plain_module_computes_the_same(seed, tmp_path):
    made = random_network(seed)
    x = torch.randn(50, 9, generator=torch_generator(seed, "x"))
    before = made(x).detach().clone()
    module = to_torch(made)
    torch.testing.assert_close(module(x), made(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(made(x), before) and type(module) is nn.Sequential and not module.training
    assert all(type(m).__module__.startswith("torch.") for m in module.modules())
    torch.save(module.state_dict(), tmp_path/"w.pt")
    twin = copy.deepcopy(module)
    twin.load_state_dict(torch.load(tmp_path/"w.pt", weights_only=True))
    assert torch.equal(twin(x), module(x))


def test_a_result_becomes_a_plain_module():
    x = torch.randn(7, 20, generator=torch_generator(0, "x"))
    torch.testing.assert_close(found().to_torch()(x), found().network(x))


class Ended(str):
    "A stage that says how things stand."
    size, left = 1300, 60.0


def bar_text(names, **options):
    "What a progress bar wrote."
    with redirect_stderr(io.StringIO()) as stream, Progress(**options) as bar:
        for name in names: bar(name)
    return stream.getvalue().replace("\r", "\n")


def test_progress_ends_at_100_percent_and_shows_what_counts():
    text = bar_text([Ended("plan"), Ended("scan"), "guard"], stages=8, shown=True)
    assert "plan, best 1,300 parameters, 60 s left" in text and "guard, best 1,300 parameters" in text
    assert "100 %" in text.strip().splitlines()[-1] and "done, 1,300 parameters" in text
    assert "100 %" in bar_text(map(str, range(20)), stages=3, shown=True)  # more stages than were expected
    assert bar_text(["scan"], stages=3, shown=False) == bar_text(["scan"], stages=3) == ""


def test_progress_of_what_failed_does_not_say_done(capsys):
    with pytest.raises(ValueError), Progress(4, shown=True) as bar:
        bar("scan")
        raise ValueError
    assert "done" not in capsys.readouterr().err


def test_the_door_returns_such_a_result():
    from neon.compression.search import SearchConfig
    X, y = load_breast_cancer(return_X_y=True)
    X = torch.tensor((X - X.mean(0))/X.std(0)).float()
    small = neon.compress.compress(network(30, 8, 2), X[:200], y[:200], budget=5, agent=None, method="uniform",
                                   search=SearchConfig(effort=0.1, rounds=1))
    assert isinstance(small, Compressed) and len(repr(small)) < 800 and isinstance(small.front, Front)
