"Tables from every source, every bad input by its message, and the promises of the split and of the strict protocol."
import dataclasses
import gzip
import io
import os
import pickle
import warnings
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.datasets import _openml
from sklearn.model_selection import train_test_split

from neon.foundations import data as neon_data
from neon.foundations.core import PROTOCOLS, NeonError, generator
from neon.foundations.data import (
    NEON_DATASETS,
    REGISTRY,
    DatasetInfo,
    as_dataset,
    data_card,
    data_index,
    dataset_info,
    dataset_names,
    encode_labels,
    load_dataset,
    prepare,
    split_rows,
    stratified_part,
)

ROOT = Path(__file__).parents[1]
ANSWERS = Path(__file__).parent / "fixtures" / "openml"
PARTS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch, tmp_path):
    "One thread, no folder of the user's, and no network: an answer must come from this file."
    torch.set_num_threads(1)
    monkeypatch.delenv("NEON_DATA", raising=False)
    monkeypatch.setenv("NEON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_openml, "urlopen", _no_network)
    monkeypatch.setattr(_openml.time, "sleep", lambda seconds: None)


def _no_network(request, *args, **kwargs): raise URLError("no network in tests")


def mixed_table(n=60, seed=0):
    "Numbers with gaps, names with gaps, truth values, a constant."
    rng = np.random.default_rng(seed)
    size = rng.normal(5, 3, n)
    size[::7] = np.nan
    hue = rng.choice(["red", "blue", "green"], n).astype(object)
    hue[::5] = None
    X = pd.DataFrame({"size": size, "hue": hue, "tall": rng.random(n) > 0.5, "one": 1.0,
                      "count": rng.integers(0, 9, n)})
    return X, pd.Series(rng.permutation(np.resize(["no", "yes", "perhaps"], n)), name="answer")


# Registry and cards

def test_registry_holds_the_28_the_bundled_and_the_variants():
    assert len(NEON_DATASETS) == 28 and len(set(NEON_DATASETS)) == 28
    assert dataset_names("bundled") == ("digits", "breast_cancer", "wine", "iris")
    assert set(dataset_names("variant")) == {
        "cardiotocography__noleak", "tamilnadu-electricity__noleak", "no2__concentration", "pm10__concentration",
        "rmftsa_sleepdata__sleep_state", "diggle_table_a2__year"}
    assert all(info.name == name for name, info in REGISTRY.items())


@pytest.mark.parametrize("name, columns, rows, openml_id", [
    ("2dplanes", 11, 40768, 727), ("ailerons", 41, 13750, 734), ("airlines", 8, 26969, 42493),
    ("Amazon_employee_access", 10, 32769, 4135),
    ("bank-marketing", 17, 45211, 1461), ("cardiotocography", 36, 2126, 1466), ("CreditCardSubset", 31, 14240, 4154),
    ("diabetes", 9, 768, 37), ("diggle_table_a2", 9, 310, 818), ("disclosure_z", 4, 662, 931),
    ("electricity-normalized", 9, 45312, 151),
    ("first-order-theorem-proving", 52, 6118, 1475), ("fried", 11, 40768, 901), ("house_8L", 9, 22784, 843),
    ("jungle_chess_2pcs_raw_endgame_complete", 7, 44819, 41027), ("kr-vs-k", 7, 28056, 1481), ("kropt", 7, 28056, 184),
    ("meta_stream_intervals", 75, 45164, 279), ("mfeat-karhunen", 65, 2000, 16), ("mfeat-morphological", 7, 2000, 18),
    ("no2", 8, 500, 886), ("nomao", 119, 34465, 1486), ("nursery", 9, 12960, 26), ("phoneme", 6, 5404, 1489),
    ("pm10", 8, 500, 750),
    ("rmftsa_sleepdata", 3, 1024, 741), ("satimage", 37, 6430, 182), ("tamilnadu-electricity", 4, 45781, 40985)])
def test_registry_agrees_with_the_published_table(name, columns, rows, openml_id):
    info = dataset_info(name)
    assert (info.n_columns, info.n_rows, info.openml_id) == (columns, rows, openml_id) and name in NEON_DATASETS


def test_twins_point_at_each_other():
    for pair in [("kropt", "kr-vs-k"), ("mfeat-karhunen", "mfeat-morphological")]:
        assert [REGISTRY[name].twin_of for name in pair] == list(reversed(pair))
        assert {REGISTRY[name].n_rows for name in pair} == {REGISTRY[pair[0]].n_rows}


@pytest.mark.parametrize("name", REGISTRY)
def test_card_agrees_with_registry(name):
    card, info = (ROOT / "data" / f"{name}.md").read_text(encoding="utf-8"), REGISTRY[name]
    assert card.startswith(data_card(info)), "the registry changed: run neon.foundations.data.write_data_cards"
    assert f"| rows | {info.n_rows} |" in card and info.licence in card
    measured = card.partition("rows measured: ")[2].partition(";")[0]
    assert measured or name in ("nomao", "meta_stream_intervals")
    if info.source == "bundled": assert card == data_card(info, load_dataset(name))


def test_index_of_cards_is_current():
    assert (ROOT / "data" / "README.md").read_text(encoding="utf-8") == data_index()
    assert {path.stem for path in (ROOT / "data").glob("*.md")} == {*REGISTRY, "README"}


# Bundle, names, folder

@pytest.mark.parametrize("name", ["digits", "breast_cancer", "wine", "iris"])
def test_bundled_tables_have_the_registered_shape(name):
    dataset, info = load_dataset(name), dataset_info(name)
    assert dataset.X.shape == (info.n_rows, info.n_columns - 1)
    assert dataset.y.nunique() == info.n_classes and dataset.info is info


@pytest.mark.parametrize("typed, meant", [
    ("digit", "digits"), ("electricity", "electricity-normalized"), ("DIABETES", "diabetes"), ("kropt2", "kropt"),
    ("breast-cancer", "breast_cancer")])
def test_unknown_name_suggests_the_closest(typed, meant):
    with pytest.raises(NeonError, match=f"unknown data set '{typed}'.*'{meant}'"): load_dataset(typed)


def test_unknown_name_like_nothing_lists_all():
    with pytest.raises(NeonError, match="there are digits, breast_cancer"): load_dataset("zzzzzz")


def test_folder_by_argument_and_by_environment(tmp_path, monkeypatch):
    X, y = mixed_table()
    X.assign(answer=y).to_parquet(tmp_path / "mine.parquet")
    X.assign(answer=y).to_csv(tmp_path / "other.csv", index=False)
    assert load_dataset("mine", data_dir=tmp_path).X.shape == (60, 5)
    monkeypatch.setenv("NEON_DATA", str(tmp_path))
    assert load_dataset("other").y.tolist() == y.tolist() and load_dataset("mine").info is None
    assert load_dataset("mine", target="tall").y.dtype == bool
    with pytest.raises(NeonError, match="did you mean 'mine'"): load_dataset("min")
    assert load_dataset("iris").n_train is None                                  # the bundle comes first


def test_folder_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("NEON_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(NeonError, match="NEON_DATA.*does not exist"): load_dataset("diabetes")


def _fake(name, n_rows=None, n_features=None):
    "A table with the registered shape and nothing else of the original."
    info, rng = dataset_info(name), np.random.default_rng(0)
    n, k = n_rows or info.n_rows, n_features or info.n_columns - 1
    X = pd.DataFrame(rng.normal(size=(n, k)), columns=[f"V{i + 1}" for i in range(k)])
    return X, pd.Series(np.resize([f"class {i}" for i in range(info.n_classes)], n), name="target")


def test_registered_name_in_folder_is_checked(tmp_path):
    X, y = _fake("diabetes")
    X.assign(target=y).to_parquet(tmp_path / "diabetes.parquet")
    assert load_dataset("diabetes", data_dir=tmp_path).info.openml_id == 37
    X.iloc[:700, :5].assign(target=y[:700]).to_parquet(tmp_path / "diabetes.parquet")
    with pytest.raises(NeonError, match="expected 768 rows, 9 columns.*found 700 rows, 6 columns"):
        load_dataset("diabetes", data_dir=tmp_path)
    assert len(load_dataset(tmp_path / "diabetes.parquet").X) == 700             # the path is the way round
    X.assign(target=np.resize(["a", "b", "c"], 768)).to_parquet(tmp_path / "diabetes.parquet")
    with pytest.raises(NeonError, match="2 classes, found .* 3 classes"): load_dataset("diabetes", data_dir=tmp_path)


def test_known_copy_loads_with_a_warning(tmp_path):
    X, y = _fake("CreditCardSubset", n_features=29)
    X.assign(target=y).to_parquet(tmp_path / "CreditCardSubset.parquet")
    with pytest.warns(UserWarning, match="31 columns.*found 14240 rows, 30 columns"):
        load_dataset("CreditCardSubset", data_dir=tmp_path)


def test_leaking_columns_are_dropped_from_the_parent(tmp_path):
    X, y = _fake("cardiotocography")
    X.assign(target=y).to_parquet(tmp_path / "cardiotocography.parquet")
    clean = load_dataset("cardiotocography__noleak", data_dir=tmp_path)
    assert list(clean.X.columns) == [f"V{i}" for i in range(5, 26)] and clean.y.tolist() == y.tolist()
    X, y = _fake("tamilnadu-electricity")
    X.assign(target=y).to_parquet(tmp_path / "tamilnadu-electricity.parquet")
    with pytest.raises(NeonError, match="cannot derive 'tamilnadu-electricity__noleak'.*no feature 'ServiceID'"):
        load_dataset("tamilnadu-electricity__noleak", data_dir=tmp_path)
    X.columns = ["ForkVA", "ForkW", "ServiceID"]
    X.assign(target=y).to_parquet(tmp_path / "tamilnadu-electricity.parquet")
    assert list(load_dataset("tamilnadu-electricity__noleak", data_dir=tmp_path).X) == ["ForkVA", "ForkW"]


def test_images_keep_the_official_test_part(tmp_path):
    rng = np.random.default_rng(0)
    for part, n in [("train", 40), ("test", 10)]:
        labels = np.resize(np.arange(4, dtype=np.uint8), n)
        np.savez(tmp_path / f"shapes_{part}.npz", images=rng.integers(0, 256, (n, 3, 3), dtype=np.uint8), labels=labels)
    dataset = load_dataset("shapes", data_dir=tmp_path)
    assert dataset.X.shape == (50, 9) and dataset.n_train == 40
    for protocol in PROTOCOLS: assert prepare(dataset, protocol).split.test.tolist() == list(range(40, 50))
    (tmp_path / "shapes_test.npz").unlink()
    with pytest.raises(NeonError, match="shapes_test.npz"): load_dataset("shapes", data_dir=tmp_path)
    with pytest.raises(NeonError, match="expected 70000 rows, 785 columns"):
        for part in ("train", "test"):
            np.savez(tmp_path / f"fashion_mnist_{part}.npz", images=np.zeros((4, 2, 2)), labels=np.arange(4))
        load_dataset("fashion_mnist", data_dir=tmp_path)


# OpenML, on constructed answers to scikit-learn's requests

TOY = DatasetInfo("toy", "openml", 90001, 24, 4, 2)


class _Answer(io.BytesIO):
    def info(self): return {}


@pytest.fixture
def openml(monkeypatch):
    "OpenML as far as `toy` is concerned; returns the list of addresses asked for."
    asked = []

    def urlopen(request, *args, **kwargs):
        address = request.full_url
        asked.append(address)
        kind = next((kind for kind in ("features", "qualities", "download") if kind in address), "description")
        return _Answer((ANSWERS / ("toy.arff" if kind == "download" else f"{kind}.json")).read_bytes())

    monkeypatch.setitem(REGISTRY, "toy", TOY)
    monkeypatch.setattr(_openml, "urlopen", urlopen)
    return asked


def test_openml_table_arrives_with_names_gaps_and_target(openml, tmp_path):
    dataset = load_dataset("toy")
    assert list(dataset.X) == ["size", "hue", "count"] and dataset.X.shape == (24, 3) and dataset.y.name == "class"
    assert dataset.X["size"].isna().sum() == 3 and dataset.X["hue"].isna().sum() == 1
    assert set(dataset.X["hue"].dropna()) == {"red", "blue", "deep green"}
    assert prepare(dataset).feature_names[:3] == ("size", "count", "size is missing")
    assert (tmp_path / "cache" / "openml-90001.parquet").exists() and len(openml) >= 3


def test_second_load_needs_no_network(openml, monkeypatch):
    first = load_dataset("toy")
    asked = len(openml)
    monkeypatch.setattr(neon_data, "fetch_openml", None)
    second = load_dataset("toy")
    assert len(openml) == asked
    pd.testing.assert_frame_equal(first.X, second.X)
    assert first.y.tolist() == second.y.tolist()


def test_cache_folder_by_argument(openml, tmp_path):
    load_dataset("toy", cache_dir=tmp_path / "elsewhere")
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == ["openml-90001.parquet", "scikit-learn"]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", [b"", b"PAR1 not really", "half"])
def test_damaged_cache_is_fetched_again(openml, tmp_path, damage):
    path = tmp_path / "cache" / "openml-90001.parquet"
    first = load_dataset("toy")
    path.write_bytes(path.read_bytes()[:600] if damage == "half" else damage)
    with pytest.warns(UserWarning, match="the cached copy is damaged"): second = load_dataset("toy")
    pd.testing.assert_frame_equal(first.X, second.X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset("toy")                                                      # mended


def test_damaged_cache_without_network_says_both(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "openml-37.parquet").write_bytes(b"junk")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(NeonError, match="cannot fetch 'diabetes'"):
        load_dataset("diabetes")


def test_folder_comes_before_cache_and_cache_before_openml(openml, tmp_path):
    load_dataset("toy")
    frame = load_dataset("toy").X.assign(count=7, target=["left", "right"] * 12)
    frame.to_parquet(tmp_path / "toy.parquet")
    assert set(load_dataset("toy", data_dir=tmp_path).y) == {"left", "right"}
    assert set(load_dataset("toy").y) == {"no", "yes"}


def test_wrong_openml_table_is_refused_naming_both_shapes(openml, monkeypatch):
    monkeypatch.setitem(REGISTRY, "toy", dataclasses.replace(TOY, n_rows=25, n_columns=5))
    with pytest.raises(NeonError, match="OpenML id 90001: expected 25 rows, 5 columns.*found 24 rows, 4 columns"):
        load_dataset("toy")


@pytest.mark.parametrize("name", ["diabetes", "cardiotocography__noleak", "no2__concentration"])
def test_offline_error_says_what_to_do(name, tmp_path):
    base = "cardiotocography" if name == "cardiotocography__noleak" else name
    advice = f"set NEON_DATA to a folder.*{base}.parquet.*path of such a file"
    with pytest.raises(NeonError, match=f"cannot fetch '{base}'.*{advice}"):
        load_dataset(name)
    assert not list((tmp_path / "cache").glob("*.parquet"))


def test_regression_target_at_openml_is_cut_at_its_mean(monkeypatch):
    X, _ = _fake("no2__concentration")
    y = pd.Series(np.arange(500.0), name="no2_concentration")
    monkeypatch.setattr(neon_data, "fetch_openml", lambda data_id, **options: {547: (X, y)}[data_id])
    dataset = load_dataset("no2__concentration")
    assert dataset.y.tolist() == ["P"]*250 + ["N"]*250


def test_registered_target_cannot_be_renamed():
    with pytest.raises(NeonError, match="'iris' comes with its own target"):
        load_dataset("iris", target="petal width (cm)")


# Files

def write(tmp_path, text, name="table.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


LONG = "\n".join(f"{i}.5,{i % 3},{'yes' if i % 2 else 'no'}" for i in range(40))


@pytest.mark.parametrize("text, message", [
    ("", "table.csv is empty"),
    ("\n\n", "table.csv is empty"),
    ("a,b,y\n", "the table has no rows"),
    ("a,a,y\n1,2,0\n3,4,1\n", "column 'a' appears more than once"),
    ("y\n1\n2\n", "one column only"),
    ("a,b,y\n1,inf,0\n2,3,1\n", "column 'b' has an infinite value, first in row 0"),
    ("a,b,y\n1,2,0\n2,-inf,1\n", "column 'b' has an infinite value, first in row 1"),
    (f"a,b,y\n{LONG}\noops,2,no\n", "column 'a' holds numbers except for 'oops', first in row 40"),
    ("a,b,y\n1,,0\n2,,1\n", "column 'b' holds no value at all"),
    ("a,b,y\n1,2,no\n2,3,\n4,5,?\n", "target 'y' has 2 missing values, first in row 1"),
    ("a,b,y\n1,2,no\n2,3,no\n", "target 'y' has one class only \\('no'\\)"),
    ("a,b,y\n1,2,3,4\n1,2,3,4\n", "cannot read .*table.csv"),
    ("a,b,y\n1,2,3\n1,2,3,4\n", "cannot read .*table.csv"),
    ("5.1,3.5,a\n4.9,3.0,b\n", "first line looks like data"),
    ("a,y\n" + "\n".join(f"1,{i / 7}" for i in range(150)), "target 'y' looks continuous \\(150 distinct"),
])
def test_bad_csv_names_the_offending_thing(tmp_path, text, message):
    with pytest.raises(NeonError, match=message): load_dataset(write(tmp_path, text))


def test_bad_files(tmp_path):
    with pytest.raises(NeonError, match="nothing.csv does not exist"): load_dataset(tmp_path / "nothing.csv")
    with pytest.raises(NeonError, match="not a data file; expected one of .parquet"):
        load_dataset(write(tmp_path, "a", "table.xlsx"))
    with pytest.raises(NeonError, match="is empty"): load_dataset(write(tmp_path, "", "table.parquet"))
    with pytest.raises(NeonError, match="cannot read .*broken.parquet"):
        load_dataset(write(tmp_path, "junk", "broken.parquet"))
    (tmp_path / "binary.csv").write_bytes(b"a,b\n\xff\xfe\x00,1\n")
    with pytest.raises(NeonError, match="cannot read .*binary.csv"): load_dataset(tmp_path / "binary.csv")
    with pytest.raises(NeonError, match="no column 'klass'.*'class'"):
        load_dataset(write(tmp_path, "a,class\n1,0\n2,1\n"), target="klass")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"a,y\n" + os.urandom(4000))[:900])
    with pytest.raises(NeonError, match="cannot read .*cut.csv.gz"): load_dataset(tmp_path / "cut.csv.gz")


@pytest.mark.parametrize("name, separator", [("t.csv", ","), ("t.csv", ";"), ("t.tsv", "\t"), ("t.csv.gz", ",")])
def test_separators_and_row_names(tmp_path, name, separator):
    X, y = mixed_table()
    X.assign(answer=y).to_csv(tmp_path / name, sep=separator)    # with pandas' row names in a nameless first column
    dataset = load_dataset(tmp_path / name)
    assert list(dataset.X) == list(X) and dataset.y.tolist() == y.tolist()
    kinds = [neon_data.column_kind(dataset.X[column]) for column in X]
    assert kinds == ["numeric", "nominal", "nominal", "numeric", "numeric"]


def test_nominal_column_with_one_wordy_category_is_nominal(tmp_path):
    rows = "\n".join(f"{['1', '2', '3', 'more'][i % 4]},{i % 2}" for i in range(40))
    dataset = load_dataset(write(tmp_path, f"children,y\n{rows}\n"))
    assert neon_data.column_kind(dataset.X["children"]) == "nominal"


@pytest.mark.parametrize("labels", [
    ["yes", "no"], [0, 1], [-1, 1], [3, 7, 12], [True, False], [1.0, 2.0], ["NA", "None", "EU"], ["10", "9"],
    ["naïve", "ß", "日本"], [0.5, 1.5]])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_labels_of_any_type_survive_file_and_coding(tmp_path, labels, suffix):
    y = pd.Series(np.resize(np.array(labels, dtype=object), 40)).infer_objects()
    frame = pd.DataFrame({"x": np.arange(40.0), "y": y})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    data = prepare(load_dataset(tmp_path / f"t.{suffix}"))
    decoded = np.empty(40, dtype=object)
    for part in PARTS: decoded[getattr(data.split, part)] = data.classes[getattr(data, f"y_{part}").numpy()]
    expected = [int(label) for label in y] if suffix == "csv" and labels == ["10", "9"] else y.tolist()
    assert decoded.tolist() == expected
    assert [type(a) is bool for a in decoded[:2].tolist()] == [type(b) is bool for b in expected[:2]]


LABELS = st.one_of(st.integers(-50, 50), st.text(max_size=3), st.booleans(), st.floats(-9, 9))


@given(st.lists(LABELS, min_size=1, max_size=30))
@example(["a", "\0", "a\0"])
@settings(max_examples=25, deadline=None)
def test_coding_of_labels_is_one_to_one(labels):
    y = pd.Series(labels, dtype=object)
    codes, classes = encode_labels(y)
    assert [classes[code] for code in codes] == labels
    assert len(classes) == y.nunique() and set(codes) == set(range(len(classes)))


# Tables made in memory

def test_bad_tables_made_in_memory():
    good = pd.Series([0, 1])
    for X, y, message in [
            (pd.DataFrame({"when": pd.to_datetime(["2020-01-01", "2020-01-02"])}), good,
             "column 'when' has type datetime64"),
            (pd.DataFrame({"z": [1j, 2j]}), good, "column 'z' holds complex numbers"),
            (pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]), good, "column 'a' appears more than once"),
            (pd.DataFrame({"a": [1.0, -np.inf]}), good, "'a' has an infinite value, first in row 1"),
            (pd.DataFrame(index=[0, 1]), good, "no feature column"),
            (np.zeros(2), good, "expected|must be a table"),
            (np.zeros((3, 1)), good, "3 rows of features but 2 labels"),
            (np.zeros((2, 1)), pd.Series([1.0, np.inf]), "target 'target' has an infinite value, first in row 1")]:
        with pytest.raises(NeonError, match=message): as_dataset(X, y)


def test_rows_too_few_for_the_split():
    for protocol in PROTOCOLS:
        with pytest.raises(NeonError, match="8 rows are too few for the split"):
            prepare(as_dataset(np.zeros((8, 1)), [0, 1]*4), protocol)
        assert len(prepare(as_dataset(np.zeros((9, 1)), [0, 1, 0]*3), protocol).y_validation) == 2


# Split

@given(st.lists(st.integers(1, 60), min_size=2, max_size=8), st.floats(0.05, 0.9), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_stratified_part_holds_every_class_to_within_a_row(sizes, share, seed):
    codes = np.repeat(np.arange(len(sizes)), sizes)
    part = stratified_part(codes, share, generator(seed, "test"))
    n_part = int(np.ceil(share * len(codes)))
    assert len(part) == len(set(part.tolist())) == n_part
    counts = np.bincount(codes[part], minlength=len(sizes))
    assert (np.abs(counts - np.array(sizes) * n_part / len(codes)) < 1 + 1e-9).all()


@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.integers(0, 3), st.sampled_from(sorted(PROTOCOLS)))
@settings(max_examples=60, deadline=None)
def test_parts_are_disjoint_cover_all_rows_and_repeat(sizes, seed, protocol):
    codes = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    if len(codes) < 9: return
    split, again = split_rows(codes, protocol, seed), split_rows(codes, protocol, seed)
    assert sorted(np.concatenate([split.train, split.validation, split.test]).tolist()) == list(range(len(codes)))
    for part in PARTS: assert getattr(split, part).tolist() == getattr(again, part).tolist()
    assert len(split.test) == int(np.ceil(0.3 * len(codes)))


def test_seed_moves_the_strict_split_and_not_the_published_one():
    codes = np.resize([0, 1], 200)
    assert set(split_rows(codes, "strict", 0).test) != set(split_rows(codes, "strict", 1).test)
    assert split_rows(codes, "paper", 0).test.tolist() == split_rows(codes, "paper", 1).test.tolist()
    rest, test = train_test_split(np.arange(200), test_size=0.3, random_state=0)
    train, validation = train_test_split(rest, test_size=0.2, random_state=1)
    split = split_rows(codes, "paper", 7)
    for ours, theirs in [(split.train, train), (split.validation, validation), (split.test, test)]:
        assert ours.tolist() == theirs.tolist()
    own = PROTOCOLS["paper"].replace(name="own", fixed_split=False)
    assert split_rows(codes, own, 0).test.tolist() != split_rows(codes, own, 1).test.tolist()


def test_very_rare_classes_survive_stratification():
    "As in nursery: one class has two rows; here another has one."
    codes = np.repeat(np.arange(5), [400, 390, 30, 2, 1])
    for seed in range(20):
        split = split_rows(codes, "strict", seed)
        counts = {part: np.bincount(codes[getattr(split, part)], minlength=5) for part in PARTS}
        assert counts["train"].min() >= 1                                         # every class can be learnt
        assert abs(counts["test"][0] - 120) <= 1 and abs(counts["validation"][0] - 56) <= 1


def test_class_absent_from_training_keeps_its_code():
    y = ["a"]*30 + ["b"]*30 + ["z"]
    for seed in range(3):
        own = PROTOCOLS["paper"].replace(name="own", fixed_split=False)
        data = prepare(as_dataset(np.arange(61.0)[:, None], y), own, seed)
        assert data.n_classes == 3 and data.classes.tolist() == ["a", "b", "z"]


# Encoding

@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_prepared_tensors_keep_the_contract(protocol):
    X, y = mixed_table()
    data = prepare(as_dataset(X, y, "mixed"), protocol)
    for part in PARTS:
        inputs, labels = getattr(data, f"X_{part}"), getattr(data, f"y_{part}")
        assert inputs.dtype == torch.float32 and labels.dtype == torch.int64 and inputs.is_contiguous()
        assert inputs.shape == (len(labels), data.n_features) and torch.isfinite(inputs).all()
        assert data.classes[labels.numpy()].tolist() == y[getattr(data.split, part)].tolist()
        assert torch.equal(data.transform(X.iloc[getattr(data.split, part)]), inputs)
    assert len(data.feature_names) == data.n_features and len(set(data.feature_names)) == data.n_features
    assert (data.name, data.protocol, data.n_classes) == ("mixed", protocol, 3) and 0 <= data.majority_share <= 1
    if protocol == "paper":
        assert data.n_features == X.shape[1]
        every = torch.cat([data.X_train, data.X_validation, data.X_test])
        assert every.min() == 0 and every.max() == 1


def test_strict_encoding_says_what_was_missing():
    X, y = mixed_table()
    data = prepare(as_dataset(X, y))
    column = {name: i for i, name in enumerate(data.feature_names)}
    gone = torch.tensor(X["size"].isna().to_numpy(), dtype=torch.float32)[data.split.train]
    assert torch.equal(data.X_train[:, column["size is missing"]], gone)
    gone = torch.tensor(X["hue"].isna().to_numpy(), dtype=torch.float32)[data.split.test]
    assert torch.equal(data.X_test[:, column["hue=(missing)"]], gone)
    assert (data.X_train[:, column["one"]] == 0).all()                            # a constant column is harmless


@given(st.integers(0, 50), st.sampled_from(["strict", "paper"]))
@settings(max_examples=25, deadline=None)
def test_no_test_row_influences_strict_training_tensors(seed, protocol):
    X, y = mixed_table(seed=seed % 5)
    before, rng = prepare(as_dataset(X, y), protocol, seed), np.random.default_rng(seed)
    changed = X.copy()
    rows = np.concatenate([before.split.test, before.split.validation])
    changed.loc[rows, "size"] = rng.normal(0, 1e6, len(rows))
    changed.loc[rows, "hue"] = rng.choice(["never", "seen", "red"], len(rows))
    after = prepare(as_dataset(changed, y), protocol, seed)
    same = before.X_train.shape == after.X_train.shape and torch.equal(before.X_train, after.X_train)
    assert same == (protocol == "strict")
    assert torch.equal(before.y_train, after.y_train)
    if protocol == "strict": assert before.feature_names == after.feature_names


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_new_rows_with_unseen_values(protocol):
    X, y = mixed_table()
    data = prepare(as_dataset(X, y), protocol)
    new = pd.DataFrame({"hue": ["purple", None], "count": [1000, None], "one": [2.0, 3.0],
                        "tall": [None, True], "size": [-1e5, None]})
    assert torch.isfinite(data.transform(new)).all() and data.transform(new).shape == (2, data.n_features)
    assert torch.equal(data.transform(new[list(X)]), data.transform(new))         # order does not matter


@pytest.mark.parametrize("change, message", [
    (lambda X: X.drop(columns="hue"), "column 'hue' is missing"),
    (lambda X: X.assign(answer=0), "unexpected column 'answer'"),
    (lambda X: X.assign(size=["big"]*len(X)), "column 'size' should hold numbers but has 'big', first in row 0"),
    (lambda X: X.assign(count=np.inf), "column 'count' has an infinite value"),
    (lambda X: X.assign(size=1e300), "feature 'size' is too large to scale"),
    (lambda X: X.to_numpy()[:, :3], "expected rows of 5 features, got an array of shape")])
def test_bad_new_rows(change, message):
    X, y = mixed_table()
    data = prepare(as_dataset(X, y))
    with pytest.raises(NeonError, match=message): data.transform(change(X))


def test_many_categories_share_a_column_and_few_do_not():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"code": rng.integers(0, 500, 600).astype(str), "letter": rng.choice(list("abc"), 600)})
    data = prepare(as_dataset(X, np.resize([0, 1], 600)))
    assert data.n_features == 32 + 3 and "code=(other)" in data.feature_names
    for X in (data.X_train, data.X_test): assert (X[:, :32].sum(1) == 1).all()    # unseen codes go to (other)


def test_ordinal_codes_follow_the_numbers():
    X = pd.DataFrame({"grade": np.resize(["1", "2", "10"], 60)})
    data = prepare(as_dataset(X, np.resize([0, 1], 60)), "paper")
    assert data.transform(pd.DataFrame({"grade": ["1", "2", "10"]}))[:, 0].tolist() == [0, 0.5, 1]


def test_categories_and_nullable_types():
    X = pd.DataFrame({"c": pd.Categorical(np.resize(["u", "v"], 30)),
                      "i": pd.array(np.resize([1, 2, None], 30), dtype="Int64"),
                      "b": pd.array(np.resize([True, None], 30), dtype="boolean"),
                      "o": np.resize(np.array([1, 2.5], dtype=object), 30)})
    data = prepare(as_dataset(X, pd.Categorical(np.resize(["x", "y", "z"], 30))))
    assert data.classes.tolist() == ["x", "y", "z"]
    assert set(data.feature_names) == {"i", "o", "i is missing", "c=u", "c=v", "b=True", "b=(missing)"}


def test_prepared_data_survives_pickling_and_moving():
    data = prepare("wine")
    again = pickle.loads(pickle.dumps(data)).to("cpu")
    for part in PARTS: assert torch.equal(getattr(again, f"X_{part}"), getattr(data, f"X_{part}"))
    assert torch.equal(again.transform(load_dataset("wine").X), data.transform(load_dataset("wine").X))
    assert again.describe() == data.describe() and data.describe()["classes"] == 3


def test_same_seed_same_tensors():
    first, second, other = prepare("wine", seed=4), prepare("wine", seed=4), prepare("wine", seed=5)
    assert torch.equal(first.X_test, second.X_test) and not torch.equal(first.X_test, other.X_test)


def test_majority_share_is_that_of_the_training_class():
    data = prepare("breast_cancer")
    top = int(torch.bincount(data.y_train).argmax())
    assert data.majority_share == pytest.approx(float((data.y_test == top).float().mean()))
    assert data.majority_share > 0.5
