"Killed and started again, with another number of processes: the same numbers to the last bit, and nothing left behind."
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from neon.cli import main
from neon.foundations import core
from neon.foundations.core import read_json
from neon.foundations.networks import network_facts

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="kills and counts processes the Linux way")

COMMAND = [sys.executable, "-c", "import sys; from neon.cli import main; sys.exit(main())"]
SETTINGS = "--dataset iris --n-networks 6 --n-test 1 --passes 1 --episodes 16".split()


def command(name: str, folder: Path, workers: int, *more: str) -> list[str]:
    return [*COMMAND, name, *SETTINGS, "--workers", str(workers), "--output-dir", str(folder), *more]


def finish(name: str, folder: Path, workers: int) -> None:
    "Run a command to its end, in this process."
    assert main(command(name, folder, workers)[len(COMMAND):]) == 0


def living(group: int) -> list[int]:
    "Processes of a group that are alive (zombies wait for init and are not)."
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try: state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError: continue
        if int(pgrp) == group and state != "Z": found.append(int(stat.parent.name))
    return found


def kill_when(arguments: list[str], ready, whole_group: bool) -> int:
    "Start a command, kill -9 it as soon as `ready()`, and return its process group."
    running = subprocess.Popen(arguments, stderr=subprocess.PIPE, start_new_session=True)
    for _ in range(30_000):
        if ready(): break
        assert running.poll() is None, f"it ended before it could be killed: {running.stderr.read().decode()}"
        time.sleep(0.01)
    (os.killpg if whole_group else os.kill)(running.pid, signal.SIGKILL)
    assert running.wait(timeout=30) == -signal.SIGKILL
    return running.pid


def leave_rubbish(folder: Path, *names: str) -> None:
    "What a process leaves that is killed while it writes."
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in names: (folder/f".{name}.{core._HOST}.{gone.pid}.tmp").write_bytes(b"half a fi")


def rubbish(folder: Path) -> list[Path]: return list(folder.rglob("*.tmp*"))


def tensors(path: Path) -> dict[str, bytes]:
    "The tensors of a file, bit by bit."
    return {name: (value.dtype.str, value.shape, value.tobytes()) for name, value in load_file(path).items()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    "Base networks, and an agent trained on them, without an interruption, by one process."
    folder = tmp_path_factory.mktemp("uninterrupted")/"run"
    finish("networks", folder, workers=1)
    shutil.copytree(folder, folder.with_name("networks only"))
    finish("train", folder, workers=1)
    return folder


def test_base_networks(uninterrupted, tmp_path):
    folder, index = tmp_path/"run", tmp_path/"run"/"networks"/"index.json"
    group = kill_when(command("networks", folder, workers=2), index.exists, whole_group=False)
    begun = read_json(index)
    assert 0 < len(begun) < 6, "killed too early or too late to show anything"
    deadline = time.monotonic() + 20
    while living(group) and time.monotonic() < deadline: time.sleep(0.05)
    assert living(group) == [], "workers outlive their parent"
    leave_rubbish(folder/"networks", "net_00.safetensors", "net_05.safetensors", "index.json")
    first = {p.name: p.stat().st_mtime_ns for p in (folder/"networks").glob("net_*.safetensors")}

    finish("networks", folder, workers=1)
    now = {name: (folder/"networks"/name).stat().st_mtime_ns for name in first}
    assert now == first, "what was done is done again"
    for i in range(6):
        name = f"networks/net_{i:02d}"
        assert tensors(folder/f"{name}.safetensors") == tensors(uninterrupted/f"{name}.safetensors")
        assert network_facts(folder/name) == network_facts(uninterrupted/name)
    assert read_json(index) == read_json(uninterrupted/"networks"/"index.json") and not rubbish(folder)


def test_agent(uninterrupted, tmp_path):
    folder = tmp_path/"run"
    shutil.copytree(uninterrupted.with_name("networks only"), folder)
    checkpoint = folder/"agent_checkpoint.safetensors"
    kill_when(command("train", folder, 1, "--checkpoint-seconds", "0"), checkpoint.exists, whole_group=True)
    for name in ("agent.safetensors", "training.csv"):
        assert not (folder/name).exists(), "killed too late to show anything"
    leave_rubbish(folder, "agent_checkpoint.safetensors", "agent.safetensors", "training.csv")

    finish("train", folder, workers=2)
    assert (folder/"training.csv").read_bytes() == (uninterrupted/"training.csv").read_bytes()
    assert tensors(folder/"agent.safetensors") == tensors(uninterrupted/"agent.safetensors")
    assert not checkpoint.exists() and not rubbish(folder)


def test_half_a_checkpoint_is_refused_by_name(uninterrupted, tmp_path, capsys):
    folder = tmp_path/"run"
    shutil.copytree(uninterrupted.with_name("networks only"), folder)
    (folder/"agent_checkpoint.safetensors").write_bytes((uninterrupted/"agent.safetensors").read_bytes()[:5000])
    assert main(command("train", folder, 1)[len(COMMAND):]) == 1
    assert "agent_checkpoint.safetensors does not hold an agent" in capsys.readouterr().err.splitlines()[-1]
