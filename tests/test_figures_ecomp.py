"Figures of EComp on small tables: what is drawn, refused and described; and the published numbers."
import numpy as np
import pandas as pd
import pytest

from neon.ecomp.figures import WEIGHTING_STYLES, mean_curves, population_curves, size_fronts, winner_boxes
from neon.foundations.core import NeonError
from neon.foundations.style import save_figure

MEASURES = ("fitness", "accuracy", "loss", "similarity", "size")


def some_records(weightings=("021", "121", "001"), runs=2, generations=7) -> pd.DataFrame:
    "Averages 0.5 + run/100 in all generations but the first, best and worst 0.1 away."
    entries = [{"weights": w, "run": run, "generation": g} | {
               f"{name}_{which}": (0.4 if g == 0 else 0.5) + run/100 + step
               for name in MEASURES for which, step in [("average", 0), ("best", 0.1), ("worst", -0.1)]}
               for w in weightings for run in range(1, runs + 1) for g in range(generations + 1)]
    return pd.DataFrame(entries)


def some_winners(weightings=("021", "121", "001"), runs=4) -> pd.DataFrame:
    return pd.DataFrame([{"weights": w, "run": run, "test_accuracy": 0.8 + run/100, "kept_width": 0.5 + k/10,
                          "parent_test_accuracy": 0.87}
                         for k, w in enumerate(weightings) for run in range(1, runs + 1)])


def some_fronts(methods=("evolution", "L1"), seeds=2, datasets=("a",)) -> pd.DataFrame:
    return pd.DataFrame([{"dataset": d, "method": m, "seed": s, "size": size,
                          "accuracy": 0.9 - 0.1*(m == "L1") - (1 - size)/20 + s/100}
                         for d in datasets for m in methods for s in range(seeds) for size in (0.25, 0.5, 1.0)])


DRAWN = [(population_curves, some_records()), (mean_curves, some_records()), (winner_boxes, some_winners()),
         (size_fronts, some_fronts())]


@pytest.mark.parametrize("draw, table", DRAWN)
def test_tables_and_files_give_the_same_two_files(draw, table, tmp_path):
    import matplotlib as mpl
    before = dict(mpl.rcParams)
    table.to_csv(tmp_path/"table.csv", index=False)
    sources = [table, tmp_path/"table.csv"]
    first, second = (save_figure(draw(source), tmp_path/str(i)/"figure") for i, source in enumerate(sources))
    assert [path.name for path in first] == ["figure.svg", "figure.png"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes() and one.stat().st_size > 2000
    assert draw(table).get_label()[:20] in first[0].read_text() and dict(mpl.rcParams) == before


@pytest.mark.parametrize("draw, table", DRAWN)
def test_axes_are_named_and_the_order_of_rows_is_irrelevant(draw, table):
    fig = draw(table)
    named = [*(ax.get_ylabel() for ax in fig.axes), fig.get_supylabel()]
    assert any(unit in text for text in named for unit in ("fraction", "share")) and fig.get_supxlabel()
    mixed = draw(table.sample(frac=1, random_state=0))
    assert fig.legends and sorted(fig.get_label().split()) == sorted(mixed.get_label().split())


def test_a_weighting_looks_the_same_in_all_figures():
    def looks(fig):
        "Label of the legend -> colour and line."
        return {line.get_label(): (line.get_color(), line.get_linestyle()) for line in fig.legends[0].get_lines()}
    one, two = looks(population_curves(some_records())), looks(mean_curves(some_records(("121", "021")), panels=False))
    assert list(one) == ["021", "121", "001"] and {w: one[w] for w in two} == two
    for part in zip(*WEIGHTING_STYLES.values(), strict=True): assert len(set(part)) == len(WEIGHTING_STYLES) == 7
    colours = [line.get_color() for line in mean_curves(some_records()).axes[1].get_lines()]
    assert colours[0] == one["121"][0] and set(colours[1:]) == {"#C4C4C4"}


def test_curves_are_drawn_where_they_should_be():
    fig = population_curves(some_records(), every=3)
    assert len(fig.axes) == 2 and [ax.get_title(loc="left") for ax in fig.axes] == ["run 1", "run 2"]
    line = fig.axes[1].get_lines()[0]
    assert list(line.get_xdata()) == [0, 3, 6, 7] and np.allclose(line.get_ydata(), [0.42, 0.52, 0.52, 0.52])
    alt = fig.get_label()
    assert "2 runs" in alt and "021 0.415 to 0.515 (runs end at 0.510 to 0.520)" in alt
    assert len(mean_curves(some_records()).axes) == 3 and len(mean_curves(some_records(("021", "121"))).axes) == 1
    assert len(mean_curves(some_records(("021", "121")), panels=True).axes) == 2
    (ax,) = mean_curves(some_records(("121",))).axes
    assert np.allclose(ax.get_lines()[0].get_ydata()[-1], 0.515)
    assert np.isclose(ax.collections[0].get_paths()[0].vertices[:, 1].max(), 0.615)


def test_similarity_that_was_not_measured_is_not_drawn_as_perfect():
    records = some_records()
    columns = [f"similarity_{which}" for which in ("average", "best", "worst")]
    for nothing in (0.0, np.nan):
        records.loc[records["weights"] == "001", columns] = nothing
        fig = population_curves(records, "similarity")
        assert "Not measured: 001" in fig.get_label() and all(len(ax.get_lines()) == 2 for ax in fig.axes)
    records[columns] = 0.0
    with pytest.raises(NeonError, match="not measured in these records"): mean_curves(records, "similarity")


def test_other_weightings_are_grey():
    fig = population_curves(some_records(("121", "131", "0.5/2/1")))
    assert [line.get_color() for line in fig.legends[0].get_lines()][1:] == ["#7F7F7F"]*2
    four = some_records(("111", "112", "113", "114"))
    with pytest.raises(NeonError, match="at most 3 weightings beside"): mean_curves(four)


def test_boxes_say_what_they_show():
    winners, published = some_winners(), some_winners().assign(test_accuracy=0.6)
    alt = winner_boxes(winners, published, without=["001"]).get_label()
    assert "121, 4 runs: mean accuracy 0.825 at kept width 0.600" in alt
    assert "Published: 021, 4 runs: mean accuracy 0.600" in alt
    assert "Not drawn: 001, 4 runs" in alt and "The parent's accuracy is 0.870." in alt
    fig = winner_boxes(winners)
    assert [tick.get_text() for tick in fig.axes[0].get_xticklabels()] == ["021", "121", "001"]
    places = fig.axes[0].get_xticks()
    assert places[2] - places[1] > places[1] - places[0]  # 001 stands apart
    points = [line.get_ydata() for line in fig.axes[0].get_lines() if line.get_marker() == "o"]
    assert len(points) == 3 and all(np.allclose(np.sort(p), [0.81, 0.82, 0.83, 0.84]) for p in points)
    assert "parent" not in winner_boxes(winners.drop(columns="parent_test_accuracy")).get_label()
    winner_boxes(some_winners(("021",), 1))


def test_fronts_are_means_over_seeds_and_say_what_is_cut():
    fronts = some_fronts()
    alt = size_fronts(fronts).get_label()
    assert "2 seeds" in alt and "evolution: 0.868 at 0.25, 0.905 at 1." in alt
    assert len(size_fronts(some_fronts(datasets="abcd")).axes) == 4
    assert "cut off" not in size_fronts(fronts).get_supxlabel()
    low = (fronts["method"] == "L1") & (fronts["size"] < 0.3)
    fallen = fronts.assign(accuracy=np.where(low, 0.15, fronts["accuracy"]))
    fig = size_fronts(fallen)
    assert "cut off below: L1 (down to 0.15)" in fig.get_supxlabel() and fig.axes[0].get_ylim()[0] > 0.6
    uneven = pd.DataFrame({"method": "m", "seed": [0, 0, 1], "size": [0.2, 0.6, 0.4], "accuracy": [0.5, 0.9, 0.7]})
    line = size_fronts(uneven).axes[0].get_lines()[0]  # each seed counts with its largest network that is not larger
    assert np.allclose(line.get_xdata(), [0.4, 0.6]) and np.allclose(line.get_ydata(), [0.6, 0.8])
    assert line.get_drawstyle() == "steps-post"


@pytest.mark.parametrize("draw, table, words", [
    (population_curves, some_records().drop(columns="accuracy_best"), "accuracy_best is missing"),
    (population_curves, some_records()[:0], "at least one row"),
    (population_curves, some_records().assign(weights=21), "holds 21; expected text"),
    (population_curves, some_records().assign(run=0), "column 'run', row 0: expected an integer of at least 1"),
    (population_curves, some_records(runs=21), "at most 20 runs"),
    (mean_curves, some_records().assign(accuracy_worst=np.inf), "column 'accuracy_worst', row 0"),
    (mean_curves, pd.concat([some_records()]*2), "repeats its weights, run and generation"),
    (winner_boxes, some_winners().assign(kept_width="wide"), "column 'kept_width', row 0"),
    (winner_boxes, pd.concat([some_winners()]*2), "repeats its weights, run; keep one"),
    (size_fronts, some_fronts().drop(columns="seed"), "seed is missing"),
    (size_fronts, some_fronts()[:0], "at least one measured network"),
    (size_fronts, some_fronts(methods="abcdefg"), "at most 6 methods"),
    (size_fronts, some_fronts().assign(accuracy=1.1), "column 'accuracy', row 0"),
    (size_fronts, some_fronts().assign(size=0.0), "column 'size', row 0"),
    (size_fronts, pd.concat([some_fronts()]*2), "repeats its dataset, method, seed and size"),
    *[(draw, "absent.csv", "does not exist") for draw, _ in DRAWN]])
def test_wrong_tables_are_refused_by_name(draw, table, words):
    with pytest.raises(NeonError, match=words): draw(table)


def test_wrong_arguments_are_refused():
    with pytest.raises(NeonError, match="every must be at least 1"): population_curves(some_records(), every=0)
    with pytest.raises(NeonError, match="measure must be one of"): mean_curves(some_records(), "speed")
    with pytest.raises(NeonError, match="no weighting is left"): winner_boxes(some_winners(("001",)), without=["001"])
    with pytest.raises(NeonError, match="deepest must be above 0"): size_fronts(some_fronts(), deepest=0)


def test_the_published_numbers_are_complete_and_have_the_published_means(root):
    def read(name): return pd.read_csv(root/"data"/"results"/name, dtype={"weights": str})
    runs, generations = read("ecomp_published.csv"), read("ecomp_published_generations.csv")
    assert set(runs["weights"]) == set(generations["weights"]) == set(WEIGHTING_STYLES)
    assert not runs.duplicated(["weights", "run"]).any() and len(runs) == 70
    assert not generations.duplicated(["weights", "measure", "generation"]).any() and len(generations) == 7*3*13
    means = {"020": (0.7933, 0.8168), "021": (0.6627, 0.5918), "100": (0.8417, 0.8723), "101": (0.7608, 0.5859),
             "120": (0.8552, 0.8633), "121": (0.8433, 0.7492), "001": (0.1306, 0.2222)}
    for weights, expected in means.items():
        found = runs.loc[runs["weights"] == weights, ["test_accuracy", "kept_width"]].mean()
        assert np.allclose(found, expected, atol=3e-4), weights
    last = generations[generations["generation"] == 100].pivot(index="weights", columns="measure", values="value")
    assert np.allclose(last["size"], runs.groupby("weights")["kept_width"].mean(), atol=1e-3)
