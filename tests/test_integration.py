"Modules together on toy data: train, prune, compare; repeat; save and load; any number of processes."
import numpy as np
import pandas as pd
import pytest
import torch

from neon.foundations.core import Protocol, TrainingConfig, generator, torch_generator
from neon.foundations.data import as_dataset, prepare
from neon.foundations.networks import Architecture, Layer, build_network, load_network, save_network
from neon.foundations.results import (
    RESULT_COLUMNS,
    check_results,
    check_training,
    read_results,
    results_table,
    write_results,
)
from neon.foundations.training import evaluate, train_networks
from neon.published.agent import (
    Agent,
    AgentConfig,
    actor_policy,
    compress_networks,
    fixed_policy,
    load_agent,
    random_policy,
    rollout,
    save_agent,
    train_agent,
)
from neon.published.environment import EnvConfig, PruningEnv
from neon.published.runs import (
    RunConfig,
    evaluate_run,
    result_entries,
    split_networks,
    train_base_networks,
    train_run_agent,
)

STEP = TrainingConfig(epochs=5, batch_size=64, learning_rate=5e-3, patience=2)


def toy(n: int = 240, seed: int = 0):
    "Three rings around each other: a task that needs a hidden layer."
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, n)
    angle, radius = rng.uniform(0, 2*np.pi, n), label + rng.normal(1, 0.15, n)
    return as_dataset(np.column_stack([radius*np.cos(angle), radius*np.sin(angle)]), label, "rings")


@pytest.fixture(scope="module")
def data(): return prepare(toy())


@pytest.fixture(scope="module")
def networks(data):
    "Four trained networks of different shapes."
    shapes = [Architecture(2, (*map(Layer, widths), Layer(3, "identity")))
              for widths in ((20, 12), (16,), (24, 8), (12, 12, 6))]
    built = [build_network(shape, torch_generator(0, "weights", i)) for i, shape in enumerate(shapes)]
    trained = train_networks(built, data.X_train, data.y_train, data.X_validation, data.y_validation,
                             TrainingConfig(80, 32, 1e-2, None), seed=0)
    return [result.network for result in trained]


@pytest.fixture(scope="module")
def rules(): return EnvConfig(passes=1, probe_rows=50, training=STEP)


def plan(episodes) -> list[tuple]:
    return [(t.actions, t.rewards, t.infos[-1]["widths"], t.infos[-1]["accuracy"]) for t, _ in episodes]


def same_weights(a, b) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


# Masked actions

def test_only_actions_that_remove_a_unit_are_taken(data, networks, rules):
    "Layers of a few units, eight passes: most actions soon do nothing, are not offered, and are not taken."
    env, agent = PruningEnv(networks, data, rules.replace(passes=8, recovery="slice"), seed=0), Agent(5)
    refused = 0
    for policy in (random_policy(5), actor_policy(agent.actor, greedy=False), actor_policy(agent.actor)):
        episode = rollout(env, policy, generator(0, "masked"), {"network": 3})
        masks = [info["action_mask"] for info in episode.infos[:-1]]
        assert all(mask[action] for mask, action in zip(masks, episode.actions, strict=True))
        for action, before, after in zip(episode.actions, episode.infos, episode.infos[1:], strict=False):
            if action: assert after["parameters"] < before["parameters"]
        refused += sum(int((mask == 0).sum()) for mask in masks)
        learnt = agent.update([episode])
        assert np.isfinite([learnt[0]["actor_loss"], learnt[0]["entropy"]]).all()
    assert refused > 0


# Train, prune, compare

def test_train_prune_compare(data, networks, rules, tmp_path):
    for network in networks: assert evaluate(network, data.X_test, data.y_test) > 0.8, "the toy is learnt"
    config = RunConfig("rings", passes=1, n_networks=4, n_test=1)
    tables = {}
    for mode in (1, 4):                                                       # keep 90 % or 60 % of every layer
        episodes = compress_networks(None, networks, data, rules, mode=mode)
        for network, (trajectory, _) in zip(networks, episodes, strict=True):
            keep = rules.actions[mode]
            widths = tuple(int(np.ceil(keep*w - 1e-9)) for w in network.architecture.hidden_widths)
            assert trajectory.network.architecture.hidden_widths == widths
        tables[mode] = check_results(result_entries(config, data, range(4), networks, episodes))
    assert (tables[4].compression_ratio > tables[1].compression_ratio).all() and (tables[1].compression_ratio > 1).all()
    pairs = tables[1].merge(tables[4], on=["dataset", "network", "seed"], validate="one_to_one")
    assert len(pairs) == 4 and (pairs.accuracy_before_x == pairs.accuracy_before_y).all()
    write_results(tables[4], tmp_path/"results.csv")
    assert read_results(tmp_path/"results.csv").equals(tables[4]) and list(tables[4]) == RESULT_COLUMNS
    assert len(results_table(tables[4])) == 6


def test_pruning_leaves_the_originals_alone(data, networks, rules):
    before = [{name: t.clone() for name, t in n.state_dict().items()} for n in networks]
    compress_networks(None, networks, data, rules, mode="random")
    for network, state in zip(networks, before, strict=True):
        assert all(torch.equal(t, state[name]) for name, t in network.state_dict().items())


@pytest.mark.parametrize("recovery", ["replace", "slice"])
def test_accuracy_in_the_info_is_that_of_the_network(data, networks, rules, recovery):
    env = PruningEnv(networks, data, rules.replace(recovery=recovery, passes=2))
    episode = rollout(env, random_policy(5), generator(1, "policy"), {"network": 2})
    assert episode.infos[-1]["accuracy"] == evaluate(episode.network, data.X_validation, data.y_validation)
    assert episode.infos[-1]["parameters"] == sum(p.numel() for p in episode.network.parameters())
    assert len(episode.actions) == 2*networks[2].architecture.depth


# The same again

def test_same_seed_twice_gives_equal_actions_and_rewards(data, networks, rules):
    agents = [train_agent(networks[:3], data, rules, AgentConfig(episodes=6), seed=3, progress=False) for _ in range(2)]
    assert agents[0].log == agents[1].log and same_weights(agents[0].actor, agents[1].actor)
    check_training(pd.DataFrame(agents[0].log))
    played = [plan(compress_networks(agent.actor, networks, data, rules, 3, "sampled")) for agent in agents]
    assert played[0] == played[1]
    other = train_agent(networks[:3], data, rules, AgentConfig(episodes=6), seed=4, progress=False)
    chosen = [[entry["keep_ratios"] for entry in agent.log] for agent in (agents[0], other)]
    assert chosen[0] != chosen[1], "the seed does nothing"


def gentle_reward(reduction: float, accuracy_change: float, budget: float) -> float:
    "The reduction, minus ten for every point beyond the budget."
    return reduction - 10*max(0, -accuracy_change - budget)


def last_units(network, layer, H, y): return torch.arange(H.shape[1])


def test_results_do_not_depend_on_the_number_of_workers(data, networks, rules):
    "Nor on whether what the rules call travels to them by name or is a function of this file."
    own = rules.replace(recovery="slice", reward=gentle_reward, importance=last_units)
    for config in (rules, own):
        played = [compress_networks(None, networks, data, config, mode="random", workers=workers) for workers in (1, 2)]
        assert plan(played[0]) == plan(played[1])
        assert all(same_weights(a.network, b.network) for (a, _), (b, _) in zip(*played, strict=True))


def test_order_and_other_networks_change_nothing(data, networks, rules):
    "A network is compressed alike whether others were compressed before it or not."
    env = PruningEnv(networks, data, rules)
    alone = rollout(env, fixed_policy(3), generator(0), {"network": 1})
    for i in (0, 2, 1, 1):
        again = rollout(env, fixed_policy(3), generator(0), {"network": i})
    assert again.rewards == alone.rewards and same_weights(again.network, alone.network)
    without_memory = PruningEnv(networks, data, rules.replace(memo_bytes=0))
    fresh = rollout(without_memory, fixed_policy(3), generator(0), {"network": 1})
    assert fresh.rewards == alone.rewards and same_weights(fresh.network, alone.network)


# Save and load

def test_network_round_trip(data, networks, tmp_path):
    for i, network in enumerate(networks):
        save_network(network, tmp_path/f"net_{i}", note="kept")
        twin = load_network(tmp_path/f"net_{i}")
        assert twin.architecture == network.architecture and same_weights(twin, network) and not twin.training
        assert torch.equal(twin(data.X_test), network(data.X_test))


def test_agent_round_trip(data, networks, rules, tmp_path):
    agent = train_agent(networks[:2], data, rules, AgentConfig(episodes=4), progress=False)
    save_agent(agent, tmp_path/"agent.safetensors", resumable=False, note="kept")
    twin, header = load_agent(tmp_path/"agent.safetensors")
    assert header["note"] == "kept" and twin.log == agent.log and twin.config == agent.config
    assert same_weights(twin.actor, agent.actor) and same_weights(twin.critic, agent.critic)
    env = PruningEnv(networks, data, rules)
    played = [rollout(env, actor_policy(a.actor, greedy=False), generator(0, "x"), {"network": 3})
              for a in (agent, twin)]
    assert played[0].actions == played[1].actions and played[0].rewards == played[1].rewards


def test_training_goes_on_from_a_checkpoint(data, networks, rules, tmp_path, monkeypatch):
    "Stopped after any group of episodes, an agent ends where an uninterrupted one ends."
    config = AgentConfig(episodes=10, episodes_per_update=2)
    whole = train_agent(networks[:2], data, rules, config, progress=False)

    class Stop(Exception): pass
    def stop_at(n):
        from neon.published import agent as module
        save = module.save_agent
        def saving(agent, *args, **kwargs):
            save(agent, *args, **kwargs)
            if len(agent.log) >= n: raise Stop
        return saving
    for n in (2, 6):
        checkpoint = tmp_path/f"{n}.safetensors"
        with monkeypatch.context() as patch:
            patch.setattr("neon.published.agent.save_agent", stop_at(n))
            with pytest.raises(Stop):
                train_agent(networks[:2], data, rules, config, 0, 1, checkpoint, -1, progress=False)
        resumed = train_agent(networks[:2], data, rules, config, 0, 1, checkpoint, progress=False)
        assert resumed.log == whole.log
        assert same_weights(resumed.actor, whole.actor) and same_weights(resumed.critic, whole.critic)


# A run

def test_a_run_on_toy_data(data, rules, tmp_path):
    "Base networks, agent, results in one folder; the second time everything is there already."
    protocol = Protocol(base_training=TrainingConfig(2, 128), gate=0)
    config = RunConfig("rings", n_networks=3, n_test=1, passes=1, episodes=3)
    networks = train_base_networks(3, data, protocol, 0, tmp_path/"networks", progress=False)
    train, test = split_networks(3, 1, 0)
    assert sorted(train + test) == [0, 1, 2]
    chosen = [networks[i] for i in train]
    agent = train_run_agent(config, data, chosen, tmp_path, progress=False, env=rules)
    tables = evaluate_run(config, data, networks, agent, tmp_path, env=rules)
    assert [len(t) for t in tables] == [2, 1]
    for part, table in zip(("train", "test"), tables, strict=True):
        check_results(table)
        for entry in table.to_dict("records"):
            compressed = load_network(tmp_path/"compressed"/entry["network"])
            assert evaluate(compressed, data.X_test, data.y_test) == entry["accuracy_after"], part
            assert compressed.architecture.n_params == entry["parameters_after"]
            assert str(load_network(tmp_path/"networks"/entry["network"]).architecture) == entry["architecture_before"]
    again = train_base_networks(3, data, protocol, 0, tmp_path/"networks", progress=False)
    assert all(same_weights(a, b) for a, b in zip(networks, again, strict=True))
    assert same_weights(train_run_agent(config, data, chosen, tmp_path, progress=False, env=rules).actor, agent.actor)
