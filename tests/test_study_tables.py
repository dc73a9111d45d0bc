"Tables of the study on small ones, answers worked out by hand; the published values; pages that survive gaps."
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from neon.foundations.core import NeonError
from neon.study.figures import Page, curves_figure, front_figure, oracle_figure, rank_figure
from neon.study.tables import (
    Study,
    alike,
    as_text,
    coverage,
    critical_difference,
    depth_table,
    front_table,
    join_networks,
    judged_entries,
    layer_table,
    load_study,
    main_table,
    noise_table,
    only,
    oracle_table,
    paired_table,
    per_network,
    published_layers,
    published_per_dataset,
    published_points,
    published_value,
    rank_methods,
    rank_values,
    read_published,
    recovery_table,
    shared_entries,
    size_class,
    smallest_within,
    time_table,
    wins_table,
)


def entry(dataset: str, method: str, after: int, change: float = 0.0, **more) -> dict:
    "A network of 1,000 parameters and 90 % accuracy, and what became of it."
    return {"dataset": dataset, "protocol": "strict", "reference": "es", "method": method, "network": 0, "seed": 0,
            "budget": 1.0, "parameters_before": 1000, "parameters_after": after, "counted": "parameters",
            "macs_before": 990, "macs_after": after, "architecture_before": "4-100-100-3",
            "architecture_after": "4-10-20-3", "accuracy_before": 0.9, "accuracy_after": 0.9 + change/100,
            "validation_before": 0.9, "validation_after": 0.9, "setting": "half", "offers": 2, "seconds": 1.0,
            "test_rows": 2000, "majority": 0.5} | more


def study(*entries: dict) -> pd.DataFrame:
    return judged_entries(pd.DataFrame(entries))


def by_method(table: pd.DataFrame, column: str) -> dict:
    return table.set_index("method")[column].to_dict()


@pytest.fixture(scope="module")
def published(root) -> pd.DataFrame:
    return read_published(root / "data" / "results" / "published.csv")


# -- means ----------------------------------------------------------------------------------------------------------

def test_a_data_set_with_many_networks_weighs_as_much_as_one_with_a_single_network():
    entries = study(entry("a", "neon", 10), *(entry("b", "neon", 1000, network=i) for i in range(9)))
    table = main_table(entries).iloc[0]
    assert (table.networks, table["data sets"]) == (10, 2)
    assert np.allclose([table.arithmetic, table.geometric, table["median"]], [(100 + 1)/2, 10, (100 + 1)/2])
    assert table.unchanged == 0.9 and table["geometric low"] <= 10 <= table["geometric high"]


def test_kropt_is_left_out_and_budgets_are_counted_by_size_of_the_test_set():
    entries = study(entry("a", "neon", 10, -2.0), entry("b", "neon", 10, -1.0, test_rows=100),
                    entry("kropt", "neon", 1, -9.0))
    table = main_table(entries).iloc[0]
    assert (table.over, table["over, large"], table["over, small"], table["data sets"]) == (0.5, 1.0, 0.0, 2)
    with pytest.raises(NeonError, match="no rows yet"): main_table(only(entries, dataset="kropt"))


def test_seeds_of_one_network_are_one_observation():
    entries = study(entry("a", "random", 10), entry("a", "random", 1000, -2.0, seed=1))
    mean = per_network(entries).iloc[0]
    assert np.allclose([mean.compression, mean.change, mean.over, mean.seeds], [10, -1, 0.5, 2])
    assert main_table(entries).iloc[0].networks == 1


def test_methods_on_fewer_networks_are_named_and_left_out_of_the_shared_ones():
    entries = study(*(entry(d, m, 10) for d in "abcd" for m in ("neon", "scratch")),
                    *(entry(d, "lap1", 10) for d in "abc"), entry("a", "amc1", 2))
    assert by_method(coverage(entries, 0.5), "shared") == {"neon": True, "scratch": True, "lap1": True, "amc1": False}
    assert by_method(coverage(entries), "shared") == {"neon": True, "scratch": True, "lap1": False, "amc1": False}
    shared = shared_entries(entries, least=0.5)
    assert sorted(set(shared.dataset)) == ["a", "b", "c"] and "amc1" not in set(shared.method)
    shared = shared_entries(entries)
    assert sorted(set(shared.dataset)) == ["a", "b", "c", "d"] and "lap1" not in set(shared.method)
    assert set(shared_entries(entries, ["neon", "amc1"]).dataset) == {"a"}


# -- joins and tests ------------------------------------------------------------------------------------------------

def test_joins_drop_networks_without_a_partner_and_refuse_different_ones():
    entries = study(*(entry(d, "neon", 10, network=n) for d in "ab" for n in (0, 1)),
                    entry("a", "lap1", 100, network=1), entry("c", "lap1", 100))
    pairs = join_networks(entries, "neon", "lap1")
    assert pairs[["dataset", "network"]].to_numpy().tolist() == [["a", 1]] and pairs.attrs["dropped"] == 4
    assert np.allclose([pairs.compression_a[0], pairs.compression_b[0]], [100, 10])
    with pytest.raises(NeonError, match="no rows yet with method amc1"): join_networks(entries, "neon", "amc1")
    mixed = entries.assign(parameters_before=np.where(entries.method == "neon", 1000, 1001))
    with pytest.raises(NeonError, match="different networks under one name"): join_networks(mixed, "neon", "lap1")


def test_paired_tests_are_those_of_scipy_with_the_correction_of_holm():
    rng, entries = np.random.default_rng(0), []
    for k, d in enumerate("abcdefgh"):
        sizes, changes = rng.integers(1, 100, 3), -rng.random(3)*(k + 1)/4
        values = zip(("neon", "lap1", "scratch"), sizes, changes, strict=True)
        entries += [entry(d, m, int(s), float(c)) for m, s, c in values]
    entries = study(*entries)
    wide = entries.pivot(index="dataset", columns="method", values="compression")
    table = paired_table(entries, "neon").set_index("against")
    expected = {m: stats.ttest_rel(wide.neon, wide[m]).pvalue for m in ("lap1", "scratch")}
    assert np.allclose(table["p t, as published"][list(expected)], list(expected.values()))
    low, high = sorted(expected.values())
    assert np.allclose(sorted(table["p t"]), [min(2*low, 1), max(min(2*low, 1), high)])
    exact = {m: stats.wilcoxon(np.log(wide.neon/wide[m])).pvalue for m in expected}
    low, high = sorted(exact.values())
    assert np.allclose(sorted(table["p data sets"]), [min(2*low, 1), max(min(2*low, 1), high)])
    assert np.allclose(table.ratio["lap1"], np.exp(np.log(wide.neon/wide.lap1).mean()))
    change = paired_table(entries, "neon", "change").set_index("against")
    means = entries.groupby("method").change.mean()
    assert np.allclose(change.difference["scratch"], means["neon"] - means["scratch"])


def test_equal_methods_have_p_one_and_a_single_pair_none():
    entries = study(*(entry(d, m, 10) for d in "abc" for m in ("neon", "lap1")))
    line = paired_table(entries, "neon").iloc[0]
    assert (line["p t"], line["p Wilcoxon"], line.ratio, line.equal) == (1.0, 1.0, 1.0, 3)
    assert np.isnan(paired_table(only(entries, dataset="a"), "neon").iloc[0]["p t"])


# -- ranks ----------------------------------------------------------------------------------------------------------

def test_friedman_is_that_of_scipy_also_with_ties():
    table = pd.DataFrame(np.random.default_rng(1).integers(0, 5, (12, 4)), columns=list("wxyz")).astype(float)
    ranked, expected = rank_methods(table), stats.friedmanchisquare(*table.T.to_numpy())
    assert np.allclose([ranked.chi2, ranked.p], [expected.statistic, expected.pvalue])
    assert np.allclose(ranked.ranks.sum(), 4*5/2) and ranked.n == 12
    f = 11*ranked.chi2/(12*3 - ranked.chi2)
    assert np.isclose(ranked.p_f, stats.f.sf(f, 3, 33))


def test_the_critical_difference_is_the_published_one():
    # Demsar 2006, table 5a: q at 5 % for 2 to 10 methods; and his example, four methods on 14 data sets
    q = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}
    for k, value in q.items(): assert abs(critical_difference(k, 1)/np.sqrt(k*(k + 1)/6) - value) < 2e-3
    assert round(critical_difference(4, 14), 2) == 1.25 and round(critical_difference(4, 14, 0.1), 2) == 1.12


def test_groups_are_the_largest_that_lie_within_the_distance():
    ranks = pd.Series({"a": 1.0, "b": 1.5, "c": 2.6, "d": 4.0})
    assert alike(ranks, 1.2) == (("a", "b"), ("b", "c")) and alike(ranks, 0.4) == ()
    assert alike(ranks, 3.0) == (("a", "b", "c", "d"),)


def test_ranks_count_a_broken_budget_as_no_compression():
    found = ("neon", 100, -1.0), ("scratch", 1, -1.5), ("lap1", 500, 0.0)
    entries = study(*(entry(d, m, s, c) for d in "abc" for m, s, c in found))
    assert rank_methods(rank_values(entries)).ranks.to_dict() == {"neon": 1.0, "lap1": 2.0, "scratch": 3.0}
    assert rank_methods(rank_values(entries, "compression")).ranks.index[0] == "scratch"
    assert rank_methods(rank_values(entries, "change")).ranks.index[0] == "lap1"
    two = only(entries, method=["neon", "lap1"])
    with pytest.raises(NeonError, match="three methods"): rank_methods(rank_values(two))


# -- fronts, wins, oracle -------------------------------------------------------------------------------------------

def test_the_front_holds_what_nobody_dominates_and_no_zeros():
    entries = study(entry("a", "neon", 100, -0.5), entry("a", "scratch", 50, -0.5), entry("a", "lap1", 500, 0.1),
                    entry("a", "amc1", 600, 0.1), entry("a", "unstructured", 1, 0.2, counted="nonzero"))
    expected = {"neon": False, "scratch": True, "lap1": True, "amc1": False, "unstructured": False}
    assert by_method(front_table(entries), "front") == expected


def test_ties_share_a_win_and_broken_budgets_win_nothing():
    entries = study(entry("a", "neon", 10), entry("a", "lap1", 10), entry("a", "scratch", 1, -3.0),
                    entry("b", "neon", 10), entry("b", "lap1", 20), entry("b", "scratch", 20),
                    entry("c", "neon", 1, -2.0), entry("c", "lap1", 1, -2.0), entry("c", "scratch", 1, -2.0))
    table = wins_table(entries)
    assert by_method(table, "wins in compression") == {"neon": 1.5, "lap1": 0.5, "scratch": 0.0}
    wins = by_method(table, "wins in accuracy")
    assert np.allclose([wins["neon"], wins["lap1"], wins["scratch"]], [1/2 + 1/3 + 1/3, 1/2 + 1/3 + 1/3, 1/3 + 1/3])
    assert np.allclose(list(by_method(table, "undominated").values()), [1.0, 2/3, 2/3])
    with pytest.raises(NeonError, match="one setting"): wins_table(pd.concat([entries, entries.assign(budget=5.0)]))


def test_the_oracle_is_the_smallest_within_the_budget_and_else_the_original():
    entries = study(entry("a", "neon", 100), entry("a", "lap1", 50, -1.0), entry("a", "scratch", 10, -1.1),
                    entry("a", "amc1", 40, -0.5, network=1), entry("a", "unstructured", 5, counted="nonzero"),
                    entry("b", "neon", 100, -2.0), entry("b", "lap1", 1000))
    assert smallest_within(entries).tolist() == [50, 50, 50, 40, 50, 1000, 1000]
    table = oracle_table(entries, shared=False)
    assert np.allclose([by_method(table, "gap")[m] for m in ("neon", "lap1", "amc1")], [2, 1, 1])
    assert by_method(table, "within") == {"neon": 0.5, "lap1": 1.0, "scratch": 0.0, "amc1": 1.0, "unstructured": 1.0}
    assert np.isnan(by_method(table, "gap")["scratch"])


# -- layers, time, noise, recovery ----------------------------------------------------------------------------------

def test_layers_are_followed_only_where_the_depth_stayed():
    entries = study(entry("a", "neon", 10), entry("a", "neon", 10, network=1, architecture_after="4-3"),
                    entry("a", "neon", 10, network=2, architecture_after="2-5-3"))
    table = layer_table(entries)[["depth", "layer", "networks", "arithmetic"]]
    assert np.allclose(table, [[2, 1, 1, 10], [2, 2, 1, 5]])
    line = depth_table(entries).iloc[0]
    names = ["networks", "same depth", "fewer layers", "no hidden layer", "mean lost"]
    assert line[names].tolist() == [3, 1, 2, 1, 1.0]


def test_time_is_counted_once_per_job_and_by_published_size(published):
    sets = (("no2", 2.0), ("phoneme", 4.0), ("fried", 6.0))
    entries = study(*(entry(d, "neon", 10, budget=b, seconds=s) for d, s in sets for b in (1.0, 5.0)))
    table = time_table(entries, published).set_index("size")
    assert table["mean seconds"].to_dict() == {"small": 2.0, "medium": 4.0, "large": 6.0} and set(table.networks) == {1}
    known = study(entry("iris", "neon", 10, test_rows=45),
                  entry("cardiotocography__noleak", "neon", 10, test_rows=9999))
    assert size_class(known, published).tolist() == ["small", "small"]


def test_noise_explains_more_on_small_test_sets():
    sizes = ("a", 100), ("b", 100), ("c", 10_000), ("d", 10_000)
    entries = study(*(entry(d, "neon", 10, test_rows=n) for d, n in sizes))
    table = noise_table(entries, 0.5, draws=300).set_index("test rows")
    assert table.broken.tolist() == [0.0, 0.0]
    assert table.loc["up to 1,000", "no drop"] > 0.2 > table.loc["more than 1,000", "no drop"]
    assert (table["drop of C"] > table["no drop"]).all()


def test_recovery_compares_what_all_three_were_given(published):
    entries = study(*(entry(d, m, 10) for d in "ab" for m in ("uniform", "uniform_slice")),
                    entry("a", "uniform_replace", 100))
    table = recovery_table(entries, published)
    assert set(table.networks) == {1} and by_method(table, "published compression")["uniform_replace"] == 24.59
    change = by_method(table, "published change")
    assert change["uniform_slice"] == -1.31 and np.isnan(change["uniform"])


# -- published values -----------------------------------------------------------------------------------------------

def test_published_values_are_complete_and_say_where_they_are_from(published):
    assert set(published.source) == {"paper", "repository"}
    assert published.table.ne("").all() and published.value.notna().all()
    assert not published.duplicated([c for c in published if c != "value"]).any()
    assert published[published.table == "Table 2"].group.nunique() == 28
    points = published_points(published).set_index("label")
    assert len(points) == 12 and points.compression["NEON 5"] == 24.59 and points.change["NEON 1"] == 1.04
    assert set(points.index[points.front]) == {"NEON 0", "NEON 1", "NEON 5"}
    ratio = lambda method, budget: published_value(published, method, budget, "compression")
    assert (ratio("lap4", 1.0), ratio("neon", 5.0), ratio("unstructured", 1.0)) == (13.26, 24.59, 4.75)
    assert published_value(published, "amc1", 5.0, "accuracy_change") == 0.15
    assert np.isnan([ratio("neon", 2.0), ratio("scratch", 1.0)]).all()
    assert np.isnan(published_value(None, "neon", 1.0, "compression"))


def test_stored_tables_per_data_set_have_the_stored_means(published):
    means = {1.0: (14.56, -0.45), 5.0: (15.76, -0.87), 50.0: (25.72, -3.58)}
    for budget, (ratio, change) in means.items():
        ours = [published_per_dataset(published, budget, value).mean() for value in ("compression", "accuracy_change")]
        assert np.allclose(ours, [ratio, change], atol=0.01)
    places = published_layers(published)
    assert len(places) == 21 and places[(1, 1)] == 5.87 and places[(6, 6)] == 1.19


# -- pages ----------------------------------------------------------------------------------------------------------

def test_a_page_says_what_is_missing_and_goes_on(root, published, tmp_path, capsys):
    page = Page(Study(pd.DataFrame(columns=["dataset", "protocol", "reference", "budget"]), published), tmp_path)
    page.show(lambda: main_table(page.study.rows))
    page.say(lambda: page.study.side("latency"))
    page.draw("curves", lambda: curves_figure(page.study.side("curves")))
    said = capsys.readouterr().out
    for words in ("no rows yet", "study_latency.csv is not there yet", "study_curves.csv is not there yet"):
        assert words in said
    assert (tmp_path / "curves.png").exists() and "not drawn yet" in (tmp_path / "curves.svg").read_text()
    with pytest.raises(ZeroDivisionError): page.show(lambda: 1/0)


def test_the_saved_study_is_readable_or_absent(root):
    saved = load_study(root / "data" / "results")
    assert {"dataset", "compression", "over"} <= set(saved.rows.columns)
    assert set(saved.sides) <= {"base", "latency", "curves"}


def test_figures_describe_what_they_show(published):
    entries = study(*(entry(d, m, s + k, c, budget=b) for k, d in enumerate("abc") for b in (1.0, 5.0)
                   for m, s, c in (("neon", 100, -1.0), ("scratch", 50, -1.5), ("lap1", 500, 0.0))))
    front = front_figure(front_table(entries), published_points(published))
    assert "3 methods at budgets 1, 5" in front.get_label() and "scratch" in front.get_label() and len(front.axes) == 2
    ranks = rank_figure(rank_methods(rank_values(only(entries, budget=5.0))))
    assert "scratch, same depth 1.00" in ranks.get_label()
    assert "Smallest gaps" in oracle_figure(oracle_table(entries)).get_label()
    both = pd.concat([front_table(entries)]*2).assign(protocol=["strict", "paper"]*6)
    with pytest.raises(NeonError, match="one protocol"): front_figure(both)


def test_tables_read_well():
    entries = study(entry("tamilnadu-electricity__noleak", "tp_taylor", 3, -0.001), entry("b", "tp_taylor", 3))
    text = as_text(main_table(entries))
    assert "DepGraph, Taylor" in text and "333×" in text and "+0.00" in text and "nan" not in text
