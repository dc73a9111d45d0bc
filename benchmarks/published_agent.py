"""NEON as published: trained offline on four folds of data sets, frozen on the fifth; beside chance and schedules.

    python benchmarks/published_agent.py FOLDER [--budgets 1 5] [--passes 4 1] [--recovery refit] [--seeds 0]
        [--folds 0 1 2 3 4] [--datasets wine ...] [--networks 6] [--learn 4] [--episodes 1000] [--broadcast]

FOLDER keeps base networks and agents, `results.csv` (a line per network and policy) and `curves.csv` (a line per
episode); a run that was interrupted goes on. State, reward, actions and learning rule are the published ones, the
credit that of each step (`--broadcast`: the mean of the episode for every step, as the original's code had it). Base
networks are those of the study, stopped early. The answer of a policy is its last network, whatever it lost, and
beside it what the study's judge makes of its passes. Test rows only measure. Tables come as `neon data list` says."""
import argparse
import itertools
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.lines import Lines
from benchmarks.validation_rows import BUNDLED, SETS
from neon.foundations.core import single_thread
from neon.foundations.data import prepare
from neon.foundations.training import evaluate
from neon.methods.contract import MethodConfig, compress_with
from neon.published.agent import (
    PUBLISHED_AGENT,
    compress_blindly,
    compress_networks,
    load_agent,
    save_agent,
    train_agent,
)
from neon.published.method import agent_method
from neon.published.runs import RunConfig
from neon.study.agent_runs import deal_folds
from neon.study.compress_runs import base_networks


class Setting:
    "Which agent: on which folds, for which budget, how trained."

    def __init__(self, fold, budget, passes, recovery, seed, broadcast):
        self.facts = {"fold": fold, "budget": budget, "passes": passes, "recovery": recovery, "seed": seed,
                      "broadcast": int(broadcast)}
        self.env = RunConfig(budget=budget, passes=passes, recovery=recovery).env()
        self.name = "_".join(map(str, self.facts.values()))


def learnt(setting, groups, held, args):
    "The agent of a setting, trained on the networks to learn from of all data sets but those held back."
    file, facts = args.folder/"agents"/f"{setting.name}.safetensors", setting.facts
    if file.exists(): return load_agent(file)[0]
    known = [(network, data) for name, (networks, data) in groups.items() if name not in held
             for network in networks[:args.learn]]
    config = PUBLISHED_AGENT.replace(episodes=args.episodes, broadcast=bool(facts["broadcast"]))
    checkpoint = file.with_name(f"{setting.name}_checkpoint.safetensors")
    networks, data = zip(*known, strict=True)
    agent = train_agent(networks, data, setting.env, config, facts["seed"], checkpoint=checkpoint, progress=False,
                        checkpoint_seconds=300)
    curve = pd.DataFrame(agent.log).assign(**facts, dataset=[data[int(e["network"][4:])].name for e in agent.log])
    curves = args.folder/"curves.csv"
    curve.drop(columns=["keep_ratios"]).to_csv(curves, mode="a", index=False, header=not curves.exists())
    save_agent(agent, file, resumable=False)
    checkpoint.unlink()
    return agent


def entry(setting, name, number, policy, network, small, data, seconds, plan=""):
    "One network, compressed by one policy, on test rows."
    before, after = (evaluate(n, data.X_test, data.y_test) for n in (network, small))
    return {**setting.facts, "dataset": name, "network": number, "policy": policy,
            "parameters_before": network.architecture.n_params, "parameters_after": small.architecture.n_params,
            "test_before": before, "test_after": after, "test_rows": len(data.y_test), "seconds": seconds, "plan": plan}


def played(setting, agent, name, networks, data, numbers):
    "The agent, a stranger's state, chance and schedules, on the networks that nobody learnt from."
    modes = {"agent": "greedy", "sampled": "sampled", "random": "random"}
    modes |= {f"keep {a:.0%}": i for i, a in enumerate(setting.env.actions) if a < 1}
    seed, chosen = setting.facts["seed"], [networks[i] for i in numbers]
    found = {policy: compress_networks(agent.actor, chosen, data, setting.env, seed, mode)
             for policy, mode in modes.items()}
    if len(numbers) > 1: found["stranger"] = compress_blindly(agent.actor, chosen, data, setting.env, seed)
    for policy, episodes in found.items():
        for i, (t, seconds) in zip(numbers, episodes, strict=True):
            plan = " ".join(f"{info['keep_ratio']:g}" for info in t.infos[1:])
            yield entry(setting, name, i, policy, networks[i], t.network, data, seconds, plan)
    method = agent_method(agent, setting.env)
    for i in numbers:
        begin = time.process_time()
        config = MethodConfig((setting.facts["budget"],))
        verdict, = compress_with(method, networks[i], method.rows(data, i), config=config)
        small = verdict.chosen.candidate.network
        yield entry(setting, name, i, "agent, judged", networks[i], small, data, time.process_time() - begin)


def summary(table):
    "Per setting and policy: arithmetic and geometric mean over data sets, change of accuracy, broken budgets."
    table = table.assign(ratio=table.parameters_before/table.parameters_after,
                         change=100*(table.test_after - table.test_before))
    table = table.assign(bits=np.log(table.ratio), over=table.change < -table.budget)
    keys = ["recovery", "broadcast", "budget", "passes", "policy"]
    each = table.groupby([*keys, "dataset"])[["ratio", "bits", "change", "over"]].mean().groupby(keys).mean()
    each["geometric"] = np.exp(each.pop("bits"))
    print(each.round(2).to_string())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--budgets", nargs="+", type=float, default=(1.0, 5.0))
    parser.add_argument("--passes", nargs="+", type=int, default=(4,))
    parser.add_argument("--recovery", default="refit")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0,))
    parser.add_argument("--folds", nargs="+", type=int, default=range(5))
    parser.add_argument("--datasets", nargs="+", default=SETS[len(BUNDLED):])
    parser.add_argument("--networks", type=int, default=6)
    parser.add_argument("--learn", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--broadcast", action="store_true")
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    lines = Lines(args.folder/"results.csv", "dataset", "network", "policy", "fold", "budget", "passes", "recovery",
                  "seed", "broadcast")
    if args.show: return summary(lines.table)
    groups = {}
    for name in args.datasets:
        data = prepare(name, seed=0)
        begin = time.process_time()
        groups[name] = base_networks(args.networks, data, "es", 0, args.folder/"networks"/name), data
        print(name, [round(evaluate(n, data.X_test, data.y_test), 3) for n in groups[name][0]],
              f"{time.process_time() - begin:.0f} s", flush=True)
    small_first = sorted(args.datasets, key=lambda n: len(groups[n][1].y_train))
    folds, numbers = deal_folds(small_first, 5), range(args.learn, args.networks)
    for seed, budget, passes, fold in itertools.product(args.seeds, args.budgets, args.passes, args.folds):
        setting = Setting(fold, budget, passes, args.recovery, seed, args.broadcast)
        done = lambda name, i, facts=setting.facts: lines.holds(name, i, "agent, judged", *facts.values())
        if all(done(name, i) for name in folds[fold] for i in numbers): continue
        begin = time.process_time()
        agent = learnt(setting, groups, folds[fold], args)
        spent = time.process_time() - begin
        for name in folds[fold]:
            for line in played(setting, agent, name, *groups[name], numbers): lines.add(line)
        print(f"{setting.name}: learnt in {spent:.0f} s, all in {time.process_time() - begin:.0f} s", flush=True)
    summary(lines.table)


if __name__ == "__main__":
    with single_thread(): main()
