"How a notebook reads, in numbers: `python tests/reading.py` prints a line per notebook."
import ast
import json
import re
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

OVERRIDES = {"forward", "reset", "step", "render", "close", "train", "fit", "predict", "transform", "score"}
MAX_LINE = 120


def code_of(cell: dict) -> str:
    "A code cell without its directives; magics count as comments."
    lines = [line for line in "".join(cell["source"]).splitlines() if not line.startswith("#|")]
    return "\n".join(re.sub(r"^(\s*)[%!].*$", r"\1pass", line) for line in lines).strip("\n")


def directives_of(cell: dict) -> set[str]:
    "Names of a cell's directives."
    return set(re.findall(r"(?m)^#\|\s*([a-z_-]+)", "".join(cell["source"])))


def definitions(tree: ast.Module) -> list[ast.stmt]:
    "Functions and classes at the top of a cell."
    return [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]


def uncommented(code: str) -> list[str]:
    "Parameters of public functions and methods, and fields of public dataclasses, on whose line there is no comment."
    lines, found = code.splitlines(), []
    unquoted = lambda line: re.sub(r"\"[^\"]*\"|'[^']*'", "", line)
    commented = lambda node: "#" in unquoted(lines[node.lineno - 1]) or "#" in lines[node.end_lineno - 1]
    for node in definitions(ast.parse(code)):
        if node.name.startswith("_"): continue
        methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
        for f in methods if isinstance(node, ast.ClassDef) else [node]:
            if f.name in OVERRIDES or (f.name.startswith("_") and f.name != "__init__"): continue
            a = f.args
            every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
            found += [f"{node.name}.{f.name}({p.arg})" for p in every
                      if p.arg not in ("self", "cls") and not commented(p)]
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
            found += [f"{node.name}.{n.target.id}" for n in fields if not commented(n)]
    return found


def n_parameters(code: str) -> int:
    "How many of those there are."
    bare = lambda line: line.split("#")[0].rstrip() if '"' not in line else re.sub(r"\s#\s[^\"]*$", "", line)
    return len(uncommented("\n".join(bare(line) for line in code.splitlines())))


@dataclass
class Reading:
    "What was counted."
    lines: list[int] = field(default_factory=list)      # Of each exported cell that is not imports alone
    several: list[str] = field(default_factory=list)    # Names of the definitions in cells that hold more than one
    parameters: int = 0                                 # Public parameters
    bare: list[str] = field(default_factory=list)       # Those without a comment
    long: list[str] = field(default_factory=list)       # Code lines over 120 characters
    unseen: list[str] = field(default_factory=list)     # Sections that end with an export and no visible run after it
    pictures: int = 0

    def __add__(self, other: "Reading") -> "Reading":
        return Reading(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def median(self) -> float: return statistics.median(self.lines) if self.lines else 0.0

    @property
    def share_several(self) -> float: return len(self.several)/max(1, len(self.lines))

    def __str__(self) -> str:
        return (f"{len(self.lines):3d} exported cells, median {self.median:4.1f} lines, "
                f"longest {max(self.lines, default=0):2d}, {self.share_several:4.0%} with several definitions; "
                f"{len(self.bare):3d} of {self.parameters:3d} parameters bare; {len(self.long):3d} long lines; "
                f"{len(self.unseen):2d} sections without a run; {self.pictures} pictures")


def read(notebook: dict) -> Reading:
    "Count one notebook."
    found, heading, waiting = Reading(), "", None
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = "".join(cell["source"])
            found.pictures += len(re.findall(r"!\[", text))
            for title in re.findall(r"(?m)^#{2,4} (.*)$", re.sub(r"(?ms)^```.*?^```", "", text)):
                if waiting: found.unseen.append(f"{heading}: {waiting}")
                heading, waiting = title, None
            continue
        if cell["cell_type"] != "code": continue
        names, code = directives_of(cell), code_of(cell)
        found.long += [line for line in code.splitlines() if len(line) > MAX_LINE]
        if not {"export", "exporti"} & names:
            if "hide" not in names and code: waiting = None
            continue
        tree = ast.parse(code)
        if all(isinstance(n, ast.Import | ast.ImportFrom) for n in tree.body): continue
        made = definitions(tree)
        found.lines.append(len(code.splitlines()))
        if len(made) > 1: found.several.append(", ".join(d.name for d in made))
        found.bare += uncommented(code)
        found.parameters += n_parameters(code)
        public = [d.name for d in made if not d.name.startswith("_")]
        if public: waiting = ", ".join(public)
    if waiting: found.unseen.append(f"{heading}: {waiting}")
    return found


def main(paths: list[str]) -> None:
    "A line per notebook, and one for all; with paths given, also what is to be mended in each."
    root, total = Path(__file__).resolve().parent.parent/"nbs", Reading()
    files = [Path(p) for p in paths] or sorted(p for p in root.rglob("[0-9]*.ipynb") if p.parent.name != "runs")
    for file in files:
        found = read(json.loads(file.read_text(encoding="utf-8")))
        total += found
        print(f"{file.parent.name}/{file.stem:22s} {found}")
        if not paths: continue
        for what, items in (("several", found.several), ("bare", found.bare), ("long", found.long),
                            ("no run", found.unseen)):
            for item in items: print(f"    {what}: {item}")
    print(f"{'all':22s} {total}")


if __name__ == "__main__":
    main(sys.argv[1:])
