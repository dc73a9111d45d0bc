"""One notebook, one module; modules import only from notebooks of a lower number; the package needs no notebook tools.

nbdev accepts several mistakes in silence: a misspelt directive, a directive below code, two notebooks for one module,
a cell that mixes imports with other code. Each is a failure here, and the checks themselves are tried on examples.
"""
import ast
import re
import subprocess
import sys

import prepare as project
import pytest

# Directive -> does it take arguments?
DIRECTIVES = {"default_exp": True, "export": False, "exporti": False, "hide": False, "slow": False, "cuda": False,
              "code-fold:": True, "echo:": True, "output:": True, "eval:": True, "warning:": True,
              "label:": True, "fig-cap:": True, "fig-alt:": True, "tbl-cap:": True}
EXPORTING = {"export", "exporti"}
TOOLS = ("nbdev", "fastcore", "execnb", "papermill", "jupyterlab", "jupyter_client", "nbclient", "nbformat",
         "ipykernel", "IPython", "pytest", "hypothesis")
DIRECTIVE_LINE = re.compile(r"^\s*#\s*\|")


def source_of(cell: dict) -> str:
    return "".join(cell["source"])


def code_cells(notebook: dict) -> list[str]:
    return [source_of(c) for c in notebook["cells"] if c["cell_type"] == "code"]


def directive_errors(source: str) -> list[str]:
    "What is wrong with the `#|` lines of a code cell."
    errors, below_code = [], False
    for line in source.splitlines():
        if not DIRECTIVE_LINE.match(line):
            below_code = below_code or bool(line.strip() and not line.lstrip().startswith("%%"))
            continue
        match = re.fullmatch(r"#\|[ ]?(\S+)(?:[ ]+(\S.*?))?[ ]*", line)
        name, arguments = match.groups() if match else ("", None)
        if not match: errors.append(f"malformed: {line!r}")
        elif name not in DIRECTIVES: errors.append(f"unknown directive: {line!r}")
        elif below_code: errors.append(f"directive below code: {line!r}")
        elif DIRECTIVES[name] and not arguments: errors.append(f"needs an argument: {line!r}")
        elif arguments and not DIRECTIVES[name]: errors.append(f"takes no argument: {line!r}")
    return errors


def directives(source: str) -> dict[str, str]:
    "Directives of a cell -> their arguments."
    found = (re.match(r"#\|\s*(\S+)\s*(.*)", line) for line in source.splitlines())
    return {m[1]: m[2].strip() for m in found if m}


def parsed(source: str) -> ast.Module:
    "The cell as Python; magics count as comments."
    return ast.parse(re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", source))


def is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def mixes_imports(source: str) -> bool:
    "Does the cell hold both imports and other code at its top level?"
    kinds = {is_import(node) for node in parsed(source).body}
    return len(kinds) == 2


def imported_modules(tree: ast.AST, package: str = "neon") -> set[str]:
    "Full names of what a syntax tree imports, at any depth; relative imports count from `package`."
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def neon_modules(tree: ast.AST, known: set[str], package: str = "neon") -> set[str]:
    "Modules of ours that a syntax tree imports, without the leading `neon.`; names that no notebook exports stay."
    names = {name.removeprefix("neon.") for name in imported_modules(tree, package) if name.startswith("neon.")}
    inside = lambda name: any(m == name or name.startswith(f"{m}.") or m.startswith(f"{name}.") for m in known)
    return {name for name in names if name in known or not inside(name)}


def leaks_of(tree: ast.Module) -> list[str]:
    "Statements at the top of a cell that change a setting of the process, which its next notebook would inherit."
    settings = ("set_grad_enabled", "set_default_dtype", "set_default_device", "use_deterministic_algorithms", "seterr",
                "chdir")
    found = []
    for node in tree.body:
        calls = [node.value] if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else []
        found += [ast.unparse(c) for c in calls if ast.unparse(c.func).split(".")[-1] in settings]
        targets = node.targets if isinstance(node, ast.Assign) else []
        found += [ast.unparse(node) for t in targets if ast.unparse(t).startswith("os.environ[")]
    return found


@pytest.fixture(scope="module")
def modules(notebooks) -> dict[str, str]:
    "Module name -> its notebook, in reading order."
    found = [(args["default_exp"], path) for path, nb in notebooks.items() for source in code_cells(nb)
             if "default_exp" in (args := directives(source))]
    names = [name for name, _ in found]
    twice = f"two notebooks export one module; the later would win in silence: {sorted(found)}"
    assert len(names) == len(set(names)), twice
    assert names, "no notebook has a `#| default_exp`"
    return dict(found)


@pytest.mark.parametrize("source, error", [
    ("#| export\ndef f(): pass", None),
    ("#| default_exp core", None),
    ("#| hide\n#| eval: false\nx = 1", None),
    ("#|hide\nx = 1", None),
    ("#| Export\nx = 1", "unknown directive"),
    ("#| exprot\nx = 1", "unknown directive"),
    ("# | export\nx = 1", "malformed"),
    ("  #| export\nx = 1", "malformed"),
    ("x = 1\n#| export", "below code"),
    ("# a comment\n#| export\nx = 1", "below code"),
    ("#| export core\nx = 1", "takes no argument"),
    ("#| default_exp", "needs an argument"),
])
def test_directive_errors_are_found(source, error):
    errors = directive_errors(source)
    assert (error is None and errors == []) or (error and len(errors) == 1 and error in errors[0]), errors


def test_mixed_cells_and_imports_are_found():
    assert mixes_imports("import os\nx = 1") and mixes_imports("#| export\nfrom a import b\n\ndef f(): pass")
    assert not mixes_imports("import os\nfrom a import b") and not mixes_imports("x = 1\ndef f():\n    import os\n")
    imports = ("from neon.foundations import core\nimport neon.cli as a\nfrom neon.published.agent import f\n"
               "from ..methods.guard import x\nfrom . import runs")
    known = {"foundations.core", "cli", "published.agent", "methods.guard", "published.runs"}
    assert neon_modules(ast.parse(imports), known, "neon.published") == known
    unknown = ast.parse("from neon.nowhere import x\nfrom .core import y")
    assert neon_modules(unknown, known) == {"nowhere", "nowhere.x", "core", "core.y"}


def test_directives_are_well_formed(notebooks):
    errors = [f"nbs/{path}: {error}" for path, nb in notebooks.items() for source in code_cells(nb)
              for error in directive_errors(source)]
    assert not errors, "\n".join(errors)


def test_default_exp_stands_alone_and_first(notebooks, modules):
    for path in modules.values():
        alone = re.fullmatch(r"#\| default_exp [a-z_.]+", source_of(notebooks[path]["cells"][0]))
        assert alone, f"nbs/{path}: the first cell is not a lone `#| default_exp`"


def test_only_notebooks_with_a_module_export(notebooks, modules):
    exporting = {path for path, nb in notebooks.items() for source in code_cells(nb)
                 if EXPORTING & directives(source).keys()}
    assert exporting == set(modules.values())


def test_every_module_has_its_notebook(root, modules):
    files = [p.relative_to(root / "neon") for p in (root / "neon").rglob("*.py") if not p.stem.startswith("_")]
    written = {".".join(p.with_suffix("").parts) for p in files}
    assert written == set(modules), "modules without a notebook, or notebooks never exported"


def test_no_cell_mixes_imports_with_other_code(notebooks):
    mixed = [f"nbs/{path}:\n{source}" for path, nb in notebooks.items() for source in code_cells(nb)
             if mixes_imports(source)]
    assert not mixed, "\n\n".join(mixed)


def test_no_notebook_changes_the_process_it_runs_in(notebooks):
    assert leaks_of(ast.parse("torch.set_grad_enabled(False);"))
    assert leaks_of(ast.parse("import os\nos.environ['A'] = '1'"))
    assert not leaks_of(ast.parse("with torch.set_grad_enabled(False): pass"))
    leaks = [f"nbs/{path}: {leak}" for path, nb in notebooks.items() for source in code_cells(nb)
             for leak in leaks_of(parsed(source))]
    why = "nbdev_test reuses its workers, so this reaches other notebooks (use a `with` block):\n"
    assert not leaks, why + "\n".join(leaks)


def test_exported_code_keeps_to_the_rules(notebooks, modules):
    for path in modules.values():
        for source in code_cells(notebooks[path]):
            if not EXPORTING & directives(source).keys(): continue
            magic = re.search(r"(?m)^\s*[%!]", source)
            assert not magic, f"nbs/{path}: a magic in an exported cell breaks the module:\n{source}"
            tree = parsed(source)
            stars = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names)]
            assert not stars, f"nbs/{path}: star import in an exported cell"
            tools = {name for name in imported_modules(tree) if name.split(".")[0] in ("fastcore", "nbdev", "execnb")}
            assert not tools, f"nbs/{path}: exported code imports {tools}, which would bind users"
            seeded = [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Call)
                      and ast.unparse(n.func) in ("torch.manual_seed", "torch.seed", "np.random.seed", "random.seed")]
            assert not seeded, f"nbs/{path}: exported code touches a global generator: {seeded}"


def uses_of(root, name: str, notebook: dict, known: set[str]) -> dict[str, set[str]]:
    "Where -> the modules of ours that the notebook of a module, and its export, import."
    file = f"neon/{name.replace('.', '/')}.py"
    package = ".".join(["neon", *name.split(".")[:-1]])
    cells = set().union(*(neon_modules(parsed(source), known) for source in code_cells(notebook)))
    tree = ast.parse((root / file).read_text(encoding="utf-8"))
    return {"the notebook": cells, file: neon_modules(tree, known, package)}


def test_a_module_imports_only_lower_numbers(root, notebooks, modules):
    order = {name: position for position, name in enumerate(modules)}
    for name, path in modules.items():
        for where, found in uses_of(root, name, notebooks[path], set(modules)).items():
            used = found - {name, "__version__"}
            unknown = sorted(used - set(order))
            assert not unknown, f"{where} of nbs/{path} imports what no notebook exports: {unknown}"
            above = sorted(m for m in used if order[m] > order[name])
            assert not above, f"{where} of nbs/{path} imports from higher-numbered notebooks: {above}"


def test_no_arrow_between_wings_points_upward(root, notebooks, modules):
    "A wing is a numbered folder of notebooks; what it imports lies in itself or in a folder of a lower number."
    wing = {name: path.split("/")[0] for name, path in modules.items()}
    arrows = {(wing[name], wing[used]) for name, path in modules.items()
              for found in uses_of(root, name, notebooks[path], set(modules)).values()
              for used in found & set(modules)}
    assert len(set(wing.values())) <= 9 and not [(a, b) for a, b in arrows if b > a]


def test_exports_and_readme_are_current(root):
    changed = project.changed_files(root)
    assert not changed, "\n".join(changed.values())


def test_modules_import_without_the_notebook_tools(root, modules):
    script = f"""
import importlib, sys
blocked = {TOOLS!r}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in blocked: raise ModuleNotFoundError(f'blocked: {{name}}', name=name)
sys.meta_path.insert(0, Blocker())
import neon
for name in {sorted(modules)!r}: importlib.import_module(f'neon.{{name}}')
found = sorted({{m.split('.')[0] for m in sys.modules}} & set(blocked))
assert not found, found
print('imported', len({sorted(modules)!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"imported {len(modules)}"
