"The shipped agent and its training: budgets, determinism, resuming, files, strangers, packaging."
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import papermill
import pytest
import torch

import neon
from neon.compression.planner import (
    Decision,
    Planner,
    PlannerConfig,
    advantages_of,
    batched,
    chooser,
    draw_budgets,
    load_planner,
    plan,
    plan_budgets,
    play,
    rule_chooser,
    save_planner,
    train_planner,
)
from neon.compression.planning import PlanConfig, PlanEpisode
from neon.foundations.core import NeonError, TrainingConfig, torch_generator
from neon.foundations.data import load_dataset, prepare
from neon.foundations.networks import Architecture, Layer, build_network
from neon.foundations.training import train_networks
from neon.methods.contract import Part, undivided
from neon.study.agent_runs import deal_folds, evaluate_agent, origins_of, recorded, stranger_chooser

RULES = PlanConfig(trim=16, steps=30, passes=3)
QUICK = PlannerConfig(iterations=3, groups=1, episodes=4, epochs=2, imitation=3)


def networks_on(data, *widths):
    last = Layer(data.n_classes, "identity")
    nets = [build_network(Architecture(data.n_features, (*(Layer(w) for w in ws), last)), torch_generator(i, "t"))
            for i, ws in enumerate(widths)]
    rows = undivided(data)
    return [r.network for r in train_networks(nets, *rows.fit, *rows.compare, TrainingConfig(10, 32, 4e-3), 0)]


@pytest.fixture(scope="module")
def tables():
    return {name: prepare(load_dataset(name), "strict", seed=0) for name in ("wine", "breast_cancer")}


@pytest.fixture(scope="module")
def networks(tables):
    return {name: networks_on(data, (60, 30), (40,), (30, 30, 30)) for name, data in tables.items()}


@pytest.fixture(scope="module")
def training_networks(tables, networks):
    return [origins_of(networks[name], data, RULES) for name, data in tables.items()]


def rows_of(data): return data.X_train, data.y_train, data.X_validation, data.y_validation


# Learning

def test_advantages_equal_the_closed_form():
    rng = np.random.default_rng(0)
    decisions = [Decision({}, 0, 0.0, float(v), float(r)) for v, r in rng.normal(size=(7, 2))]
    gamma, trace = 0.9, 0.8
    values = [d.value for d in decisions] + [0.0]
    deltas = [d.reward + gamma*values[t + 1] - values[t] for t, d in enumerate(decisions)]
    wanted = [sum((gamma*trace)**k*deltas[t + k] for k in range(7 - t)) for t in range(7)]
    advantages, returns = advantages_of(decisions, gamma, trace)
    assert advantages == pytest.approx(wanted)
    assert returns == pytest.approx([a + v for a, v in zip(wanted, values, strict=False)])
    assert advantages_of(decisions, 1.0, 1.0)[1] == pytest.approx(np.cumsum([d.reward for d in decisions][::-1])[::-1])


def test_training_repeats_itself_and_resumes(training_networks, tmp_path):
    whole = train_planner(training_networks, QUICK, seed=3)
    file = tmp_path/"agent.safetensors"

    class Stop(Exception): pass

    def interrupt(entry):
        if entry["update"] == 1: raise Stop
    with pytest.raises(Stop): train_planner(training_networks, QUICK, 3, file, 0, callback=interrupt)
    assert len(load_planner(file).log) in (1, 2)
    resumed = train_planner(training_networks, QUICK, 3, file)
    assert resumed.log == whole.log
    states = (agent.policy.state_dict().values() for agent in (whole, resumed))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    with pytest.raises(NeonError, match="other settings"): train_planner(training_networks, QUICK, 4, file)


def test_the_policy_learns_the_right_action(training_networks):
    agent = Planner(PlannerConfig(entropy=0.0), RULES)
    observation = PlanEpisode(training_networks[0][0], 1.0).observation()
    agent.standardise([observation, PlanEpisode(training_networks[0][1], 5.0).observation()])
    for _ in range(20):
        logits, values = agent.policy(batched([observation]))
        log_p = logits.log_softmax(1)[0].detach()
        offered = np.flatnonzero(observation["mask"])
        value = values[0].item()
        decisions = [Decision(observation, int(a), float(log_p[a]), value, float(a == offered[1]), True)
                     for a in offered for _ in range(8)]
        episodes = [[d] for d in decisions]
        agent.update(episodes, torch_generator(0, "u"))
    assert int(agent.policy(batched([observation]))[0].argmax()) == offered[1]


def test_budgets_span_their_range():
    rng = np.random.default_rng(0)
    b = np.array(draw_budgets(2000, PlannerConfig(), rng))
    assert 0.07 < (b == 0).mean() < 0.13 and b[b > 0].min() >= 0.25 and b.max() <= 10
    assert abs(np.median(b[b > 0]) - (0.25*10)**0.5) < 0.2
    early = np.array(draw_budgets(500, PlannerConfig(curriculum=True), rng, progress=0.0))
    assert early.min() > 4


# The shipped agent

def test_larger_budgets_give_smaller_networks(tables, networks):
    agent, budgets = load_planner(), (0.0, 1.0, 5.0, 20.0)
    sizes = [[r.network.architecture.n_params for r in plan_budgets(agent, n, undivided(tables[name]), budgets)]
             for name in tables for n in networks[name]]
    assert all(list(s) == sorted(s, reverse=True) for s in sizes)
    assert np.log2(np.array(sizes)[:, 0]/np.array(sizes)[:, -1]).mean() > 0.5
    alone = np.log2([[plan(agent, n, undivided(tables[name]), b).network.architecture.n_params for b in (0.0, 20.0)]
                     for name in tables for n in networks[name][:2]]).mean(0)
    assert alone[0] > alone[1] + 0.5, alone  # the budget by itself, without help from other budgets


def test_a_plan_keeps_its_word(tables, networks):
    data, agent = tables["breast_cancer"], load_planner()
    for network in networks["breast_cancer"]:
        before = [p.clone() for p in network.parameters()]
        r, size = plan(agent, network, undivided(data), budget=2.0), network.architecture.n_params
        untouched = all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
        assert untouched, "the network that came in has changed"
        assert r.network.architecture.n_params == min(v.size for v in r.visits if v.within) < size
        accuracy = float((r.network(data.X_validation).argmax(1) == data.y_validation).float().mean())
        assert 100*(r.accuracy_before - accuracy) <= 2.0 + 1e-6
        assert r.reasons and all(text.startswith("pass ") for text in r.reasons)
        assert plan(agent, network, undivided(data), budget=2.0).actions == r.actions
        more = plan(agent, network, undivided(data), budget=2.0, tries=3)
        assert len(more.visits) > len(r.visits)
        kept = plan(agent, network, undivided(data), budget=2.0, config=agent.plan.replace(inputs=False))
        assert kept.network.architecture.inputs is None
        assert plan(agent.under(inputs=False), network, undivided(data), budget=2.0).actions == kept.actions


def test_any_depth_and_width(tables):
    data = tables["wine"]
    hidden = {"deep": [Layer(12 + i) for i in range(14)], "wide": [Layer(3000)], "none": []}
    for name, layers in hidden.items():
        network = build_network(Architecture(13, (*layers, Layer(3, "identity"))), torch_generator(0, name))
        found = plan(load_planner(), network, undivided(data), budget=5.0).network
        assert found.architecture.n_params <= network.architecture.n_params


def test_wrong_input_is_refused(tables, networks):
    data, network, agent = tables["wine"], networks["wine"][0], Planner()
    rows = undivided(data)
    x, y = rows.fit
    narrow, shifted = (replace(rows, fit=part) for part in (Part(x[:, :3], y), Part(x, y + 1)))
    with pytest.raises(NeonError, match="features"): plan(agent, network, narrow, budget=1.0)
    with pytest.raises(NeonError, match="classes"): plan(agent, network, shifted, budget=1.0)
    with pytest.raises(NeonError, match="at least 0|percentage points"): plan(agent, network, rows, budget=-1.0)
    with pytest.raises(NeonError, match="reward must be"): PlannerConfig(reward="gold")


def test_the_template_runs(root, tmp_path):
    parameters = dict(datasets="iris wine", n_networks=2, n_learn=1, iterations=1, episodes=2, budgets="5", workers=1,
                      output_dir=str(tmp_path/"run"))
    template, copy = str(root/"nbs"/"runs"/"offline_agent.ipynb"), str(tmp_path/"copy.ipynb")
    papermill.execute_notebook(template, copy, parameters, kernel_name="python3", progress_bar=False)
    assert {"config.json", "result.json", "agent_folds.csv"} <= {p.name for p in (tmp_path/"run").iterdir()}


def test_files(tmp_path):
    assert isinstance(neon.load_planner("generic"), Planner)
    with pytest.raises(NeonError, match="does not exist"): neon.load_planner(tmp_path/"no.safetensors")
    file = tmp_path/"a.safetensors"
    save_planner(Planner(), file, data="none")
    assert file.stat().st_size <= 300_000 and load_planner(file).facts == {"data": "none"}
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(NeonError, match="does not hold"): load_planner(file)


def test_the_wheel_holds_the_agent(root, tmp_path):
    pip = [sys.executable, "-m", "pip"]
    command = [*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    copied, parts = tmp_path/"source", ("neon", "setup.py", "settings.ini", "MANIFEST.in", "README.md")
    listing = ["git", "ls-files", "-co", "--exclude-standard", "-z", *parts]
    subprocess.run(listing, cwd=root, stdout=(tmp_path/"list").open("wb"), check=True)
    for name in (tmp_path/"list").read_bytes().decode().split("\0")[:-1]:
        (copied/name).parent.mkdir(parents=True, exist_ok=True)
        (copied/name).write_bytes((root/name).read_bytes())
    done = subprocess.run(command, cwd=copied, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    wheel, = tmp_path.glob("*.whl")
    assert {"neon/agents/generic.safetensors", "neon/agents/generic.md"} <= set(zipfile.ZipFile(wheel).namelist())


# Evaluation

def test_folds_keep_twins_together():
    names = [f"d{i}" for i in range(11)] + ["kropt", "kr-vs-k"]
    folds = deal_folds(names)
    assert sorted(n for f in folds for n in f) == sorted(names)
    assert any({"kropt", "kr-vs-k"} <= set(f) for f in folds)
    assert max(map(len, folds)) - min(map(len, folds)) <= 2 and deal_folds(names) == folds


def test_evaluation_has_every_method(training_networks):
    table = evaluate_agent(load_planner(), training_networks, (1.0,), schedules=("half", "linear first"))
    assert {*table.method} == {"agent", "agent, all features", "random", "rule", "stranger", "half", "linear first"}
    assert (table.parameters_after <= table.parameters_before).all() and len(table) == 7*6
    assert table.groupby("method").network.count().eq(6).all()


def test_a_stranger_sees_other_states(training_networks):
    agent = load_planner()
    own = recorded(agent, training_networks[0], 1.0)
    own_episodes, other = ([PlanEpisode(o, 1.0) for o in group] for group in training_networks)
    log = play(other, stranger_chooser(agent, own, training_networks[1]), 0)
    assert np.array_equal(log[0][0].observation["tokens"], own[0][0]["tokens"])
    same = play(own_episodes, chooser(agent.policy), 0)
    assert [[d.action for d in e] for e in same] == [[d.action for d in e] for e in play(
        [PlanEpisode(o, 1.0) for o in training_networks[0]], stranger_chooser(agent, own, training_networks[0]), 0)]


def test_the_rule_needs_no_learning(training_networks):
    episodes = [PlanEpisode(o, 5.0) for o in training_networks[1]]
    play(episodes, rule_chooser(), 0)
    assert np.mean([e.bits for e in episodes]) > 2
