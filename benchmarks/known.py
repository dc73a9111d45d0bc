"""Tasks whose smallest network is known: does compression find one as small?

    python benchmarks/known.py OUT.csv [--tasks two three ...] [--seeds 0 1 2] [--show]

Six tasks were made by small random networks: rows are normal, the class is the network's largest output. A network of
200-100 learns one, is compressed within a point, and the parameters are divided by those of the network that made it.
The seventh is the Cubist Spiral (Zhang and Papyan 2024, arXiv:2407.04075): two arms with eight corners a turn, 50,000
points, of which all train, as there. Their combinatorial search found the sparsest networks of 95 % and 99.5 %
accuracy: 30 to 45 nonzero parameters, weights and biases. Ours are dense; what they hold is counted, zeros too."""
import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.lines import Lines
from neon.compress import compress
from neon.foundations.core import generator, single_thread, torch_generator
from neon.foundations.networks import Architecture, Layer, build_network
from neon.foundations.training import AnnealConfig, anneal, predict

ROWS = 8000, 4000, 20_000  # To train on, for validation, to test on


@dataclass(frozen=True)
class Maker:
    "A small network whose answers are the classes."
    n: int                    # Features, of which the first `read` matter
    hidden: tuple[int, ...]
    classes: int
    activation: str = "relu"
    read: int | None = None   # None: all

    @property
    def architecture(self) -> Architecture:
        layers = [Layer(w, self.activation) for w in self.hidden]
        inputs = None if self.read is None else tuple(range(self.read))
        return Architecture(self.n, (*layers, Layer(self.classes, "identity")), inputs)


MAKERS = {"two units": Maker(4, (2,), 2), "three units": Maker(8, (3,), 2, "tanh"), "four units": Maker(6, (4,), 3),
          "two layers": Maker(10, (3, 3), 2), "five of twenty": Maker(20, (4,), 2, read=5),
          "four classes": Maker(8, (6, 4), 4, "tanh")}
SPIRAL = {"spiral, 95 %": (5.0, 30), "spiral, 99.5 %": (0.5, 45)}  # Budget in points, known number of nonzeros


def made_by(maker, seed):
    "Rows of three kinds, and a network that made their classes: none of them rare, and no linear model good at them."
    for trial in range(1000):
        rng = torch_generator(seed, "maker", trial)
        network = build_network(maker.architecture, rng)
        with torch.no_grad():
            for layer in network.layers:
                for p in layer.linear.parameters(): p.copy_(torch.randn(p.shape, generator=rng))
        x = torch.randn(sum(ROWS), maker.n, generator=rng)
        y = predict(network, x).argmax(1)
        shares = torch.bincount(y, minlength=maker.classes)/len(y)
        if shares.min() < 0.5/maker.classes: continue
        design = torch.cat([x[:4000], torch.ones(4000, 1)], 1)
        fitted = torch.linalg.lstsq(design, torch.nn.functional.one_hot(y[:4000]).float()).solution
        linear = float(((design @ fitted).argmax(1) == y[:4000]).float().mean())
        if linear < 0.85: return list(zip(x.split(ROWS), y.split(ROWS), strict=True)), network
    raise RuntimeError("no such network was drawn")


def spiral(points=50_000):
    "Points along two arms, evenly spaced, brought to mean 0 and deviation 1; and the arm of each."
    angle = np.linspace(np.pi, 5*np.pi, 17) + 0.4*np.pi
    ray, radius = np.stack([np.cos(angle), np.sin(angle)], 1), 10*angle + np.pi
    arms = []
    for apart in (15, -15):
        corners = ray*(radius + apart)[:, None]
        lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1).cumsum()
        along, passed = np.linspace(0, lengths[-1], points//2), np.concatenate([[0], lengths])
        arms.append(np.stack([np.interp(along, passed, c) for c in corners.T], 1))
    x = np.concatenate(arms)
    x, y = ((x - x.mean(0))/x.std(0)).astype(np.float32), np.repeat([0, 1], points//2)
    order = generator(0, "spiral").permutation(points)
    return torch.from_numpy(x[order]), torch.from_numpy(y[order])


def learnt(x, y, hidden, seed, updates):
    "A large network that has learnt rows."
    a = Architecture(x.shape[1], (*(Layer(w) for w in hidden), Layer(int(y.max()) + 1, "identity")))
    return anneal([build_network(a, torch_generator(seed, "net"))], x, y, AnnealConfig(updates, 128, 0.003), seed)[0]


def measured(network, small, known, test, start):
    score = lambda n: 100*float((predict(n, test[0]).argmax(1) == test[1]).float().mean())
    size = small.architecture.n_params
    return {"before": network.architecture.n_params, "after": size, "shape": str(small.architecture), "known": known,
            "ratio": size/known, "accuracy_before": score(network), "accuracy_after": score(small),
            "cpu_seconds": time.process_time() - start}


def entry(task, seed):
    "One call, measured on test rows; of the spiral on its own points, as its source does."
    start = time.process_time()
    if task in SPIRAL:
        budget, known = SPIRAL[task]
        x, y = spiral()
        network = learnt(x, y, (64, 64, 64), seed, 6000)
        r = compress(network, x.numpy(), y.numpy(), budget=budget, validation=(x.numpy(), y.numpy()),
                     random_state=seed, progress=False)
        return measured(network, r.network, known, (x, y), start)
    (fit, held, test), maker = made_by(MAKERS[task], seed)
    network = learnt(*fit, (200, 100), seed, 4000)
    r = compress(network, fit[0].numpy(), fit[1].numpy(), budget=1.0, validation=[v.numpy() for v in held],
                 random_state=seed, progress=False)
    return measured(network, r.network, maker.architecture.n_params, test, start)


def show(table):
    by = table.groupby("task", sort=False)
    columns = ["known", "after", "ratio", "accuracy_before", "accuracy_after", "cpu_seconds"]
    print(by[columns].mean().round(2).to_string())
    print(f"found/known, geometric over all: {np.exp(np.log(table.ratio).mean()):.2f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", nargs="+", default=[*MAKERS, *SPIRAL])
    parser.add_argument("--seeds", type=int, nargs="+", default=range(3))
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    lines = Lines(args.out, "task", "seed")
    for seed in args.seeds:
        for task in args.tasks:
            if args.show or lines.holds(task, seed): continue
            with single_thread(): line = {"task": task, "seed": seed, **entry(task, seed)}
            lines.add(line)
            print(task, seed, f"{line['before']} -> {line['after']} {line['shape']}, known {line['known']}, accuracy "
                  f"{line['accuracy_before']:.2f} -> {line['accuracy_after']:.2f}, {line['cpu_seconds']:.0f} s",
                  flush=True)
    show(lines.table)


if __name__ == "__main__": main()
