"""What a few dozen held-out rows can promise: small tables drawn from large ones, so that true drops are known.

    python benchmarks/small_tables.py LOG.csv OUT.csv [--datasets phoneme ...] [--seeds 0 1 2] [--rows 120 300 800]

For each draw an `MLPClassifier` of 200-100 (to the end, and stopped early) learns some rows; a third as many validate.
The search looks for one point. LOG gets a line per candidate that would be tested for one or five points: its drop on
the guard's rows, and the true one on 8,000 rows that nobody saw. OUT gets a line per draw, budget and rule: which
candidate the rule accepts at last. Draws in LOG are not made again; tables come as `neon data list` says."""
import argparse
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.neural_network import MLPClassifier

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.lines import Lines
from benchmarks.validation_rows import BUNDLED, SETS
from neon.compress import CompressConfig
from neon.compression import proposals
from neon.compression.export import from_sklearn
from neon.compression.inputs import space_of
from neon.foundations.core import single_thread
from neon.foundations.data import prepare
from neon.foundations.training import predict
from neon.methods.contract import Part, hold_out
from neon.methods.guard import Drop, Guard, fixed_sequence, mean_drop

KEY = ["dataset", "seed", "rows", "kind"]
BUDGETS = 1.0, 5.0
TEST_ROWS = 8000
_GUARD = Guard(patience=7)
RULES = {  # Who accepts a drop
    "as measured": replace(_GUARD, confidence=0.5, prior=None), "guard, 0.9": _GUARD,
    "guard, 0.95": replace(_GUARD, confidence=0.95), "no prior, 0.9": replace(_GUARD, prior=None),
    "no prior, 0.8": replace(_GUARD, confidence=0.8, prior=None)}


def draw(name, seed, rows):
    "Rows to learn, to validate and to test on; None where a class is too rare."
    data = prepare(name, seed=20 + seed)
    x, y = (torch.cat([getattr(data, f"{v}_{p}") for p in ("train", "validation", "test")]).numpy() for v in "Xy")
    order = np.random.default_rng(1000*seed + rows).permutation(len(y))
    parts = np.split(order[:rows + rows//3 + TEST_ROWS], [rows, rows + rows//3])
    enough = np.bincount(y[parts[0]], minlength=y.max() + 1).min() >= 3
    return [(x[p], y[p]) for p in parts] if enough else None


def network(kind, seed):
    "Not trained yet."
    return MLPClassifier((200, 100), max_iter=200, early_stopping=kind == "mlp_early", random_state=seed)


def right(network, part):
    "1 for each row that it gets right, else 0."
    return (predict(network, part.x).argmax(1) == part.y).double().numpy()


def candidates(model, fit, held, test):
    "Every candidate that would be tested for a budget, with its measured and its true drop."
    whole = Part(*map(torch.from_numpy, fit))
    space = space_of(*whole, last="identity")
    place = lambda part: Part(*space.rows(*map(torch.from_numpy, part)))
    network, config = space.into(from_sklearn(model)), CompressConfig()
    rows, unseen, guard = hold_out(*place(fit), place(held)), place(test), config.guard(1.0)
    search, _ = proposals.gather_candidates(network, rows, [guard], config.means())
    counts, whole = (len(rows.held.y), len(rows.guard.y)), network.architecture.n_params
    listed = {b: proposals.sequences(search, replace(guard, budget=b), *counts)[0] for b in BUDGETS}
    every = {id(c): c for found in listed.values() for c in found if c.size < whole}
    on_guard, on_test = (right(network, part) for part in (rows.guard, unseen))
    for key, c in sorted(every.items(), key=lambda item: -item[1].size):
        drop = mean_drop(100*(on_guard - right(c.network, rows.guard)), "accuracy")
        true = 100*(on_test - right(c.network, unseen)).mean()
        listed_for = {f"in{b:g}": int(key in map(id, listed[b])) for b in BUDGETS}
        yield {"size": c.size, "whole": whole, "dg": drop.points, "eg": drop.error, "ng": drop.rows, "true": true,
               **listed_for}


def accepted(draws, rule, budget):
    "The line of the candidate that a rule accepts at last; None where it accepts none."
    offered = draws[draws[f"in{budget:g}"] == 1]
    drops = [Drop(*values) for values in offered[["dg", "eg", "ng"]].to_numpy()]
    _, said = fixed_sequence(replace(rule, budget=budget), drops)
    return offered.iloc[np.flatnonzero(said)[-1]] if any(said) else None


def outcomes(log):
    "A line per draw, budget and rule."
    for key, draws in log.groupby(KEY, sort=False):
        for budget in BUDGETS:
            good = draws[draws.true <= budget]
            found = {name: accepted(draws, rule, budget) for name, rule in RULES.items()}
            found["in hindsight"] = good.iloc[-1] if len(good) else None
            for name, line in found.items():
                before = draws.whole.iloc[0]
                after, lost = (before, 0.0) if line is None else (line["size"], round(line.true, 3))
                yield {**dict(zip(KEY, key, strict=True)), "guard_rows": draws.ng.iloc[0], "budget": budget,
                       "rule": name, "before": before, "after": after, "lost": lost}


def summary(table):
    "Geometric compression, share over budget and its error over data sets, per budget and rule."
    table = table.assign(bits=np.log(table.before/table.after), over=table.lost > table.budget)
    each = table.groupby(["budget", "rule", "dataset"])[["bits", "over"]].mean().groupby(["budget", "rule"])
    shown = each.mean().assign(error=each.over.agg(stats.sem))
    return shown.assign(compression=np.exp(shown.pop("bits"))).round(3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--datasets", nargs="+", default=SETS[len(BUNDLED):])
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--rows", nargs="+", type=int, default=(120, 300, 800))
    args = parser.parse_args()
    lines = Lines(args.log, *KEY)
    for name in args.datasets:
        for seed in args.seeds:
            for rows in args.rows:
                parts = draw(name, seed, rows)
                for kind in ("mlp_early", "mlp_end"):
                    if parts is None or len(parts[2][1]) < 1000 or lines.holds(name, seed, rows, kind): continue
                    model, facts = network(kind, seed), dict(zip(KEY, (name, seed, rows, kind), strict=True))
                    with single_thread():
                        lines.add(*(facts | c for c in candidates(model.fit(*parts[0]), *parts)))
                    print(name, seed, rows, kind, flush=True)
    table = pd.DataFrame(outcomes(lines.table))
    table.to_csv(args.out, index=False)
    print(summary(table).to_string())


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
