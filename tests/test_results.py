"Result entries, their statistics and their figures: properties that hold for any input."

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from neon.foundations.core import NeonError
from neon.foundations.results import (
    RESULT_COLUMNS,
    TRAINING_COLUMNS,
    bootstrap_interval,
    check_results,
    check_training,
    geometric_mean,
    holm,
    over_budget,
    pareto_front,
    read_results,
    read_training,
    result_entry,
    results_table,
    summarise,
    wins,
    write_results,
    write_training,
)
from neon.foundations.style import save_figure
from neon.published.figures import compression_against_accuracy, learning_curve, widths_before_after

quick = settings(max_examples=40, deadline=None, derandomize=True)
ratios = st.lists(st.floats(1, 1e5), min_size=1, max_size=30)
points = st.lists(st.tuples(st.sampled_from([1.0, 2.0, 5.0, 9.5]), st.integers(-3, 3).map(float)), min_size=1,
                  max_size=15)


def an_entry(i=0, keep=0.5, change=0.0, **changes):
    "One made-up result: network i with one hidden layer, a share `keep` of it left."
    width = 100 + 10*i
    left = max(1, round(width*keep))
    values = dict(network=f"net_{i:02}", dataset="digits", protocol="strict", budget=1.0, passes=4,
                  recovery="replace", seed=0,
                  accuracy_before=0.9, accuracy_after=0.9 + change, parameters_before=75*width + 10,
                  parameters_after=75*left + 10,
                  macs_before=74*width, macs_after=74*left, architecture_before=f"64-{width}-10",
                  architecture_after=f"64-{left}-10", seconds=0.5)
    return result_entry(**{**values, **changes})


def some_entries(n=6):
    rng = np.random.default_rng(0)
    return pd.DataFrame([an_entry(i, rng.uniform(0.02, 1), rng.normal(0, 0.01)) for i in range(n)])


def some_training(n=30):
    rng = np.random.default_rng(1)
    after = rng.integers(100, 5000, n)
    return pd.DataFrame({
        "episode": range(n), "network": [f"net_{i % 3}" for i in range(n)], "warmup": [int(i < 5) for i in range(n)],
        "return": rng.normal(0, 3000, n), "steps": 2, "accuracy_before": 0.9, "accuracy_after": 0.89,
        "parameters_before": 5000,
        "parameters_after": after, "compression_ratio": 5000/after, "actor_loss": np.nan, "critic_loss": 1.0,
        "entropy": 1.6,
        "keep_ratios": "0.9 1"})


# ---------------------------------------------------------------- schema

@pytest.mark.parametrize("column", RESULT_COLUMNS)
def test_every_result_column_is_needed(column):
    with pytest.raises(NeonError, match=f"missing column '{column}'"):
        check_results(some_entries().drop(columns=column))


@pytest.mark.parametrize("column", TRAINING_COLUMNS)
def test_every_training_column_is_needed(column):
    with pytest.raises(NeonError, match=f"missing column '{column}'"):
        check_training(some_training().drop(columns=column))


@pytest.mark.parametrize("column, value", [
    ("network", ""), ("dataset", None), ("budget", -1), ("budget", np.inf), ("passes", -1), ("passes", 1.5),
    ("seed", -1),
    ("accuracy_before", 1.01), ("accuracy_after", np.nan), ("accuracy_after", "high"), ("parameters_after", 0),
    ("compression_ratio", 0.5), ("macs_after", np.nan), ("architecture_after", "64--10"),
    ("architecture_before", "64"), ("seconds", -0.1)])
def test_impossible_values_are_named(column, value):
    table = some_entries().astype(object)
    table.loc[2, column] = value
    with pytest.raises(NeonError, match=f"column '{column}', row 2"): check_results(table)


@pytest.mark.parametrize("column, value",
                         [("warmup", 2), ("return", np.nan), ("steps", -1), ("keep_ratios", "0.9 0"), ("entropy", -1)])
def test_impossible_episodes_are_named(column, value):
    table = some_training().astype(object)
    table.loc[3, column] = value
    with pytest.raises(NeonError, match=f"column '{column}', row 3"): check_training(table)


def test_schema_refuses_what_does_not_fit_together():
    entries = some_entries()
    with pytest.raises(NeonError, match="unknown column 'model'"): check_results(entries.assign(model=1))
    with pytest.raises(NeonError, match="row 0: compression_ratio is 99"):
        check_results(entries.assign(compression_ratio=99.0))
    with pytest.raises(NeonError, match="row 6 repeats"): check_results(pd.concat([entries, entries[:1]]))
    with pytest.raises(NeonError, match="row 30 repeats"):
        check_training(pd.concat([some_training(), some_training()[-1:]]))
    with pytest.raises(NeonError, match="parameters_after"): an_entry(parameters_after=0)
    assert len(check_results(entries[:0])) == 0


def test_files_round_trip_exactly(tmp_path):
    entries, training = some_entries(), some_training()
    entries["network"] = [f"0{i}" for i in range(6)]         # ids that look like numbers stay text
    write_results(entries[entries.columns[::-1]], tmp_path/"a"/"results_test.csv")
    pd.testing.assert_frame_equal(read_results(tmp_path), entries, check_exact=True)
    write_training(training, tmp_path/"a"/"training.csv")
    pd.testing.assert_frame_equal(read_training(tmp_path/"a"), check_training(training), check_exact=True)
    with pytest.raises(NeonError, match="missing column"): write_results(entries.drop(columns="seed"), tmp_path/"b.csv")
    assert not (tmp_path/"b.csv").exists()


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(NeonError, match="absent.csv does not exist"): read_results(tmp_path/"absent.csv")
    with pytest.raises(NeonError, match="holds no results_test.csv"): read_results(tmp_path)
    for name, content in [("empty.csv", b""), ("binary.csv", b"\xff\xfe\x00"),
                          ("ragged.csv", b"a,b\n1,2,3\n1,2\n1,2,3,4\n")]:
        (tmp_path/name).write_bytes(content)
        with pytest.raises(NeonError, match=name): read_results(tmp_path/name)


# ---------------------------------------------------------------- statistics

@quick
@given(ratios)
def test_geometric_mean_is_at_most_the_arithmetic_mean(values):
    assert geometric_mean(values) <= np.mean(values)*(1 + 1e-12)
    assert min(values)*(1 - 1e-12) <= geometric_mean(values) <= max(values)*(1 + 1e-12)
    assert np.isclose(geometric_mean(1/np.array(values)), 1/geometric_mean(values))


@settings(quick, max_examples=8)
@given(st.randoms(use_true_random=False))
def test_summary_ignores_row_order(random):
    entries = pd.concat([some_entries(), some_entries().assign(budget=5.0)], ignore_index=True)
    order = list(range(len(entries)))
    random.shuffle(order)
    pd.testing.assert_frame_equal(summarise(entries), summarise(entries.iloc[order]), check_exact=True)
    assert summarise(entries)["budget"].tolist() == [1.0, 5.0]


def test_summary_of_one_group_and_of_one_network():
    entries = some_entries()
    whole = summarise(entries, by=())
    assert len(whole) == 1 and whole["n"][0] == 6
    assert whole["compression_mean_low"][0] <= whole["compression_mean"][0] <= whole["compression_mean_high"][0]
    one = summarise(entries[:1])
    assert np.isnan(one["compression_mean_low"][0]) and one["compression_mean"][0] == entries["compression_ratio"][0]
    with pytest.raises(NeonError, match="cannot group by"): summarise(entries, by="method")
    with pytest.raises(NeonError, match="at least one"): summarise(entries[:0])


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstrap_agrees_with_scipy(method):
    values = np.random.default_rng(2).lognormal(1, 1, 30)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20000,
                             method={"bca": "BCa"}.get(method, method)).confidence_interval
    assert np.allclose(bootstrap_interval(values, method=method, resamples=20000), theirs, rtol=0.04)


@quick
@given(ratios)
def test_intervals_are_ordered_and_within_the_values(values):
    low, high = bootstrap_interval(values, "geometric mean", resamples=200)
    assert (len(values) == 1 and np.isnan(low)) or min(values)*(1 - 1e-9) <= low <= high <= max(values)*(1 + 1e-9)


def test_budget_counts_exactly_the_drop_allowed():
    entries = pd.DataFrame([an_entry(i, accuracy_before=b, accuracy_after=a, budget=5)
                         for i, (b, a) in enumerate([(0.80, 0.75), (0.80, 0.7499), (0.95, 0.90), (0.7, 0.9)])])
    assert over_budget(entries).tolist() == [False, True, False, False]
    assert summarise(entries)["share_over_budget"][0] == 0.25


def test_printed_table_shows_networks_and_both_means():
    entries = some_entries()
    table = results_table(entries)
    assert table["network"].tolist() == [*entries["network"], "arithmetic mean", "geometric mean"]
    ratio = entries["compression_ratio"]
    assert table["compression ratio"].tolist()[-2:] == [f"{ratio.mean():.2f}", f"{geometric_mean(ratio):.2f}"]
    assert all(isinstance(cell, str) for cell in table.to_numpy().ravel())
    several = results_table(pd.concat([entries, entries.assign(dataset="wine")]))
    assert several["data set"].tolist() == ["digits"]*6 + ["wine"]*6 + ["", ""]


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p):
    adjusted = holm(p)
    assert (adjusted >= p).all() and adjusted.max() <= 1
    assert (adjusted <= np.minimum(1, np.array(p)*len(p)) + 1e-15).sum() >= 1
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


@quick
@given(points)
def test_pareto_front_is_what_nothing_dominates(values):
    values, front = np.array(values), pareto_front(values)
    def dominates(p, q): return (p >= q).all() and (p > q).any()
    assert front.any()
    assert not any(dominates(p, q) for p in values for q in values[front])
    assert all(any(dominates(p, q) for p in values[front]) for q in values[~front])


@quick
@given(st.lists(st.tuples(*[st.integers(0, 3)]*3), min_size=1, max_size=10))
def test_wins_add_up_to_the_rows(values):
    table = pd.DataFrame(values, columns=["a", "b", "c"])
    assert np.isclose(wins(table).sum(), len(table))
    assert (wins(table.assign(c=-1, b=-1)) == [len(table), 0, 0]).all()


# ---------------------------------------------------------------- figures

@pytest.mark.parametrize("draw, table", [
    (learning_curve, some_training()), (compression_against_accuracy, some_entries()),
    (widths_before_after, some_entries())])
def test_figures_are_two_files_with_the_same_bytes_twice(draw, table, tmp_path):
    first, second = (save_figure(draw(table), tmp_path/str(i)/"figure") for i in range(2))
    assert [path.name for path in first] == ["figure.svg", "figure.png"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes() and one.stat().st_size > 2000
    assert sorted(path.name for path in first[0].parent.iterdir()) == ["figure.png", "figure.svg"]
    assert "<desc>" in first[0].read_text() and "<title>figure</title>" in first[0].read_text()


def test_figures_leave_the_readers_style_alone():
    import matplotlib as mpl
    before = dict(mpl.rcParams)
    compression_against_accuracy({"one": some_entries(), "two": some_entries().assign(budget=50.0)})
    assert dict(mpl.rcParams) == before


def test_figures_refuse_what_they_cannot_draw(tmp_path):
    with pytest.raises(NeonError, match="accuracy_after"):
        compression_against_accuracy(some_entries().assign(accuracy_after=np.nan))
    with pytest.raises(NeonError, match="at least one episode"): learning_curve(some_training()[:0])
    with pytest.raises(NeonError, match="window"): learning_curve(some_training(), window=0)
    with pytest.raises(NeonError, match="1 to 60 networks"): widths_before_after(some_entries(61))
    with pytest.raises(NeonError, match="needs a description"):
        save_figure(learning_curve(some_training()), tmp_path/"figure", alt=" ")
    with pytest.raises(NeonError, match="does not exist"): learning_curve(tmp_path/"absent.csv")
    assert not list(tmp_path.iterdir())
