"""Networks in C: bytes and microseconds of the original, of the compressed network, and of that in integers.

    python benchmarks/c_code.py OUT.csv [--emlearn PYTHON] [--compiler CC --flags ...] [--show]

Networks of scikit-learn on its four bundled tables are compressed within a point and written as C. Bytes are flash
(code and tables) and RAM (static memory) of a file compiled for size that asks for the class; microseconds are those of
a row on this computer, compiled with -O2. With the interpreter of an environment that holds emlearn (pip install
emlearn), its float C of the same networks is measured in the same way; it is given the scaled features that a network
reads, and no more. With --compiler and --flags, bytes are those of another processor:
--compiler arm-none-eabi-gcc --flags=-mcpu=cortex-m4,-mthumb"""
import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.lines import Lines
from neon.compress import compress
from neon.compression.c_code import CodeSize, CompiledC, c_compiler, code_size, exported, object_size, to_c
from neon.compression.integers import to_integers
from neon.foundations.core import single_thread
from neon.foundations.training import predict

TABLES = {"breast_cancer": datasets.load_breast_cancer, "digits": datasets.load_digits, "wine": datasets.load_wine,
          "iris": datasets.load_iris}
HIDDEN = {"100": (100,), "64-32": (64, 32)}
SMALL = ("-Os", "-fno-asynchronous-unwind-tables", "-fno-stack-protector")
WRITER = """
import json, sys
import numpy as np
from emlearn import net
layers = json.load(sys.stdin)
W, b = ([np.array(layer[key], dtype=float) for layer in layers] for key in ("weight", "bias"))
print("#include <eml_net.h>")
print(net.c_generate_net_loadable([layer["activation"] for layer in layers], [w.T for w in W], b, "em"))
"""
ASK = """
__attribute__((externally_visible)) int ask(const float *x) { return eml_net_predict(&em, x, LENGTH); }
"""
MANY = """
void classes(const float *x, int *y, int n)
{
    for (int i = 0; i < n; i++) y[i] = eml_net_predict(&em, x + (long)i*LENGTH, LENGTH);
}
"""


def emlearn_c(network, python):
    "A network in emlearn's C, and the folder of its headers."
    said = exported(network, kind="values")  # with all its logits
    names = {"sigmoid": "logistic"}
    layers = [{"weight": layer.linear.weight.tolist(), "bias": layer.linear.bias.tolist(),
               "activation": names.get(fact.activation, fact.activation)}
              for layer, fact in zip(said.network.layers, said.network.architecture.layers, strict=True)]
    layers[-1]["activation"] = "softmax"
    options = {"capture_output": True, "text": True, "check": True, "env": {**os.environ, "PYTHONPATH": ""}}
    text = subprocess.run([python, "-c", WRITER], input=json.dumps(layers), **options).stdout
    where = subprocess.run([python, "-c", "import emlearn; print(emlearn.includedir)"], **options).stdout
    return text, where.strip(), len(said.read)


def of_emlearn(name, network, python, compiler, flags, folder):
    "Bytes, microseconds and classes of emlearn's C."
    text, headers, length = emlearn_c(network, python)
    source, thing, library = (folder/f"{name}.{end}" for end in ("c", "o", "so"))  # loaded once per name
    source.write_text(text + ASK.replace("LENGTH", str(length)))
    run = lambda *words: subprocess.run([*words, "-I", headers, str(source)], capture_output=True, check=True)
    run(compiler, "-std=c99", "-fwhole-program", *SMALL, *flags, "-c", "-o", str(thing))
    size = object_size(thing, compiler)
    source.write_text(text + MANY.replace("LENGTH", str(length)))
    subprocess.run([c_compiler(), "-std=c99", "-O2", "-shared", "-fPIC", "-I", headers, str(source), "-o", str(library),
                    "-lm"], capture_output=True, check=True)
    compiled = CompiledC.__new__(CompiledC)
    compiled.sizes, compiled.library = {"inputs": length, "outputs": 1, "classes": 1}, ctypes.CDLL(str(library))
    return size, compiled


def written(name, network, fit, compiler, flags, folder):
    "Bytes of a network of ours, and the network, compiled."
    path = folder/f"{name}.h"
    if name[-1] in "84": to_integers(network, fit, int(name[-1]), kind="classes").to_c(path)
    else: to_c(network, path, kind="classes")
    return code_size(path, compiler=compiler, flags=flags), CompiledC(path)


def entry(table, hidden, activation, python, compiler, flags):
    "All measurements of one network."
    X, y = TABLES[table](return_X_y=True)
    X, X_held, y, y_held = train_test_split(X, y, test_size=0.5, stratify=y, random_state=0)
    scaler = StandardScaler().fit(X)
    X, X_held = (scaler.transform(part).astype(np.float32) for part in (X, X_held))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MLPClassifier(HIDDEN[hidden], activation=activation, max_iter=200, random_state=0).fit(X, y)
        result = compress(model, X, y, 1.0, validation=(X_held, y_held), progress=False)
    many = np.tile(X_held, (-(-20_000//len(X_held)), 1))
    before, after = result.original.architecture, result.network.architecture
    line = {"before": str(before), "after": str(after), "params_before": before.n_params,
            "params_after": after.n_params}
    with tempfile.TemporaryDirectory() as folder:
        networks = {"original": result.original, **dict.fromkeys(("small", "small8", "small4"), result.network)}
        for name, network in networks.items():
            size, compiled = written(name, network, X, compiler, flags, Path(folder))
            classes = predict(network, torch.from_numpy(many)).argmax(1).numpy()
            line |= costs(name, size, compiled, many)
            line[f"{name}_agrees"] = (compiled(many, "classes") == classes).mean()
        for name in ("original", "small") if python else ():
            network = networks[name]
            size, compiled = of_emlearn(name, network, python, compiler, flags, Path(folder))
            rows = np.ascontiguousarray(network.read(torch.from_numpy(many)).numpy())
            line |= costs(f"emlearn_{name}", size, compiled, rows)
            classes = predict(network, torch.from_numpy(many)).argmax(1).numpy()
            line[f"emlearn_{name}_agrees"] = (compiled(rows, "classes") == classes).mean()
    return line


def costs(name: str, size: CodeSize, compiled: CompiledC, rows) -> dict:
    "Bytes and microseconds."
    return {f"{name}_flash": size.flash, f"{name}_ram": size.ram, f"{name}_us": 1e6*compiled.seconds(rows)}


def show(table):
    "Each network, and geometric means of what they gain."
    names = [c.removesuffix("_flash") for c in table if c.endswith("_flash")]
    parts = {name: table[f"{name}_flash"].astype(str) + "+" + table[f"{name}_ram"].astype(str) + " "
             + table[f"{name}_us"].round(3).astype(str) for name in names}
    print(table[["table", "hidden", "activation", "after"]].assign(**parts).to_string(index=False))
    geometric = lambda values: float(np.exp(np.log(values).mean()))
    total = {name: table[f"{name}_flash"] + table[f"{name}_ram"] for name in names}
    for name in names:
        print(f"{name:18} bytes {geometric(total[name]):8.0f}, {geometric(total[name]/total['original']):6.3f} of the "
              f"original's; microseconds {geometric(table[f'{name}_us']):7.3f}, the original takes "
              f"{geometric(table.original_us/table[f'{name}_us']):5.1f} times as long; same class on "
              f"{table[f'{name}_agrees'].mean():.4%} of the rows")
    if "emlearn_small" in total:
        for name in ("small", "small8", "small4"):
            print(f"{name} / emlearn of the same networks: {geometric(total[name]/total['emlearn_small']):.3f} bytes")
        least = np.minimum(np.minimum(total["small"], total["small8"]), total["small4"])
        print(f"the smallest of the three / emlearn: {geometric(least/total['emlearn_small']):.3f} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tables", nargs="+", default=list(TABLES))
    parser.add_argument("--emlearn", metavar="PYTHON")
    parser.add_argument("--compiler", default=c_compiler())
    parser.add_argument("--flags", default="", type=lambda text: tuple(filter(None, text.split(","))))
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    lines = Lines(args.out, "table", "hidden", "activation")
    for table in args.tables:
        for hidden, activation in (("100", "relu"), ("64-32", "tanh")):
            if args.show or lines.holds(table, hidden, activation): continue
            with single_thread(): line = entry(table, hidden, activation, args.emlearn, args.compiler, args.flags)
            lines.add({"table": table, "hidden": hidden, "activation": activation, **line})
            print(table, hidden, activation, line["before"], "->", line["after"], flush=True)
    show(lines.table)


if __name__ == "__main__":
    main()
