"""The documentation holds together: titles, links, figures, sidebar, README, docstrings; nothing of one machine leaks.

Nothing here needs Quarto: nbdev's own processors run over every page in a copy, which is all that happens before
Quarto renders.
"""
import ast
import json
import os
import posixpath
import re
import subprocess
import sys

import prepare as project
import pytest
import reading
import yaml

MAX_NOTEBOOK_BYTES = 600_000
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)(\{[^}]*\})?")
MACHINE_PATH = re.compile(r"/(?:work|root)/|/tmp/[a-z]|/home/[a-z]")
# Working notes that no reader has
UNPUBLISHED = re.compile(r"[.][.]/shared\b|\b(?:design|style|evidence)[.]md\b|\bfacts/")
# Methods whose meaning is fixed by the class they override.
OVERRIDES = {"forward", "reset", "step", "render", "close", "train", "fit", "predict", "transform", "score"}


def markdown_of(notebook: dict) -> str:
    return "\n\n".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown")


def prose(text: str) -> str:
    "Markdown without code and formulas, where brackets mean something else."
    for pattern in (r"(?ms)^ *```.*?^ *```", r"`[^`\n]*`", r"(?s)\$\$.*?\$\$", r"\$[^$\n]+\$"):
        text = re.sub(pattern, "", text)
    return text


def links_of(text: str) -> list[tuple[bool, str, str, str]]:
    "Links of a markdown text as (is it an image?, text, target, attributes), those inside link texts included."
    found = []
    for bang, label, target, attributes in LINK.findall(prose(text)):
        found.append((bang == "!", label, target, attributes))
        found += links_of(label)
    return found


def is_local(target: str) -> bool:
    return not re.match(r"[a-z][a-z0-9+.-]*:", target)


def slugs(text: str) -> set[str]:
    "The anchors that Quarto gives to the headings of a page."
    found = set()
    for heading in re.findall(r"(?m)^#+\s+(.*?)\s*$", text):
        plain = re.sub(r"[`*]|\{.*\}|\]\([^)]*\)", "", heading).lower()
        found.add(re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", plain))))
    return found


def text_files(root) -> list:
    "Files that are or may become part of the repository, without pictures and weights."
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root,
                            capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    paths = [root / name for name in sorted(set(listed.stdout.split("\0"))) if name and not name.endswith(".svg")]
    return [p for p in paths if p.is_file() and b"\0" not in p.read_bytes()[:4096]]


def test_links_are_found():
    text = "![A plot](figures/a.svg){fig-alt='x'} [here](b.ipynb#c) `[no](d)` $[no](e)$ [![badge](f.png)](g.md)"
    assert [(image, target) for image, _, target, _ in links_of(text)] == \
        [(True, "figures/a.svg"), (False, "b.ipynb#c"), (False, "g.md"), (True, "f.png")]
    assert slugs("## Choices and departures from the paper\n# `fit`, twice") == \
        {"choices-and-departures-from-the-paper", "fit-twice"}


def test_there_is_something_to_check(notebooks):
    assert "index.ipynb" in notebooks and "1_foundations/00_core.ipynb" in notebooks


def test_every_notebook_opens_with_a_title_and_a_claim(notebooks):
    for path, nb in notebooks.items():
        markdown = [c for c in nb["cells"] if c["cell_type"] == "markdown"]
        assert markdown, f"nbs/{path} has no prose"
        first = "".join(markdown[0]["source"])
        claims = re.match(r"# \S.*\n\n?> \S", first)
        assert claims, f"nbs/{path}: expected '# Title' and '> one-line claim', found {first[:80]!r}"
        rest = [line[:80] for line in first.splitlines() if line.strip() and not line.startswith(("# ", "> "))]
        assert not rest, f"nbs/{path}: nbdev drops from the site what shares a cell with title and claim: {rest[0]!r}"
        titles = re.findall(r"(?m)^# ", re.sub(r"(?ms)^```.*?^```", "", markdown_of(nb)))
        assert len(titles) == 1, f"nbs/{path}: {len(titles)} titles; sections start with ##"


def test_notebooks_are_small_clean_and_portable(root, notebooks):
    for path, nb in notebooks.items():
        size = (root / "nbs" / path).stat().st_size
        assert size <= MAX_NOTEBOOK_BYTES, f"nbs/{path}: {size} bytes of at most {MAX_NOTEBOOK_BYTES}"
        kernel = nb["metadata"].get("kernelspec", {}).get("name")
        assert kernel == "python3", f"nbs/{path}: the kernel is always python3"
        for cell in nb["cells"]:
            failed = [o for o in cell.get("outputs", []) if o["output_type"] == "error"]
            assert not failed, f"nbs/{path}: an error is stored as output: {failed[0]['ename']}"


def test_links_between_pages_resolve(root, notebooks):
    broken = []
    for path, nb in notebooks.items():
        for image, _, target, _ in links_of(markdown_of(nb)):
            if not is_local(target): continue
            file, _, anchor = target.partition("#")
            page = posixpath.normpath(posixpath.join(posixpath.dirname(path), file)) if file else path
            here = f"nbs/{path}: {target}"
            if page.startswith(".."):
                if not page.startswith("../figures/"): broken.append(f"{here} leads out of the site (only figures may)")
                elif not (root / "nbs" / page).is_file(): broken.append(f"{here} does not exist")
            elif not (root / "nbs" / page).exists(): broken.append(f"{here} does not exist")
            elif page.endswith(".ipynb") and page not in notebooks: broken.append(f"{here} is not a page")
            elif anchor and page in notebooks and not image and anchor not in slugs(markdown_of(notebooks[page])):
                broken.append(f"{here}: no such heading")
    assert not broken, "\n".join(broken)


def test_links_of_the_markdown_files_resolve(root):
    files = [*root.glob("*.md"), *(root / "data").rglob("*.md")]
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= {p.name for p in files}
    links = [(p, target) for p in files for _, _, target, _ in links_of(p.read_text(encoding="utf-8"))]
    broken = [f"{p.relative_to(root)}: {target}" for p, target in links
              if is_local(target) and target.partition("#")[0] and not (p.parent / target.partition("#")[0]).exists()]
    assert not broken, "\n".join(broken)


def test_images_have_alternative_texts(root, notebooks):
    texts = {f"nbs/{path}": markdown_of(nb) for path, nb in notebooks.items()}
    texts["README.md"] = (root / "README.md").read_text(encoding="utf-8")
    silent = [f"{where}: {target}" for where, text in texts.items()
              for image, label, target, attributes in links_of(text)
              if image and len(label.split()) < 3 and "fig-alt=" not in attributes and not label.startswith("badge")]
    silent += [f"{where}: {tag}" for where, text in texts.items() for tag in re.findall(r"<img[^>]*>", prose(text))
               if not re.search(r"alt=.\w", tag)]
    assert not silent, "images without a text that says what they show:\n" + "\n".join(silent)


def test_every_figure_comes_as_svg_and_png(root):
    folder = root / "figures"
    vector, pixels = ({p.relative_to(folder).with_suffix("") for p in folder.rglob(f"*.{kind}")}
                      for kind in ("svg", "png"))
    assert vector == pixels, f"one of the pair is missing: {sorted(map(str, vector ^ pixels))}"
    assert not (root / "nbs" / "figures").exists(), "figures go to figures/, beside nbs/"


def test_readme_is_the_home_page(root, notebooks):
    written = (root / "README.md").read_text(encoding="utf-8")
    assert written == project.readme(notebooks["index.ipynb"]), "run `make prepare`"


def test_no_placeholder_is_left(root, notebooks):
    texts = {f"nbs/{path}": markdown_of(nb) for path, nb in notebooks.items()}
    texts |= {p.name: p.read_text(encoding="utf-8") for p in root.glob("*.md")}
    placeholder = re.compile(r"\b(?:\w+_HERE|TODO|TBD|FIXME)\b")
    left = [f"{where}: {word}" for where, text in texts.items() for word in placeholder.findall(prose(text))]
    assert not left, f"a sentence waits to be written: {left}"


def test_readme_export():
    links = "[a](1_foundations/01_data.ipynb), ![f](../figures/f.svg), [x](https://x.org), [up](../LICENSE)"
    cells = [("markdown", f"# T\n\n> c {links}"), ("code", "#| hide\nimport os"), ("code", "#| echo: true\n1 + 1")]
    outputs = {"markdown": [], "code": [{"data": {"text/plain": ["2"]}}]}
    text = project.readme({"cells": [{"cell_type": kind, "source": [source], "outputs": outputs[kind]}
                                     for kind, source in cells]})
    assert "[a](nbs/1_foundations/01_data.ipynb), ![f](figures/f.svg), [x](https://x.org), [up](LICENSE)" in text
    assert "```python\n1 + 1\n```\n\n```text\n2\n```" in text and "import os" not in text and "#|" not in text


def pages_of(contents: list) -> list[str]:
    "Pages of a sidebar, sections unfolded."
    return [page for entry in contents for page in ([entry] if isinstance(entry, str) else pages_of(entry["contents"]))]


def test_sidebar_lists_every_page_and_nothing_else(root, notebooks):
    sidebar = yaml.safe_load((root / "nbs" / "sidebar.yml").read_text(encoding="utf-8"))
    pages = pages_of(sidebar["website"]["sidebar"]["contents"])
    assert len(pages) == len(set(pages)), "a page stands twice in the sidebar"
    missing, unknown = sorted(set(notebooks) - set(pages)), sorted(set(pages) - set(notebooks))
    assert not missing and not unknown, f"not in nbs/sidebar.yml: {missing}; in it, but no such notebook: {unknown}"


def test_quarto_configuration(root):
    link = root / "nbs" / "_quarto.yml"
    assert link.is_symlink() and os.readlink(link) == "../_quarto.yml", "nbdev would write a default of its own"
    config = yaml.safe_load(link.read_text(encoding="utf-8"))
    assert config["project"]["type"] == "website"
    for name in [*config["metadata-files"], config["format"]["html"]["css"]]:
        assert (root / "nbs" / name).is_file(), name


def test_nothing_of_one_machine_is_in_the_files(root):
    files = text_files(root)
    assert len(files) > 20, "git listed next to nothing"
    leaks = [f"{p.relative_to(root)}:{number}: {line.strip()[:120]}" for p in files
             for number, line in enumerate(p.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
             if MACHINE_PATH.search(line) or UNPUBLISHED.search(line)]
    assert not leaks, "\n".join(leaks)


def documented_names(tree: ast.Module):
    "Public functions, classes and methods of a module, each with its docstring; properties speak by their names."
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    for node in (n for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")):
        yield node.name, ast.get_docstring(node)
        if not isinstance(node, ast.ClassDef): continue
        for method in (m for m in node.body if isinstance(m, kinds)):
            if method.name.startswith("_") or method.name in OVERRIDES: continue
            decorators = " ".join(map(ast.unparse, method.decorator_list))
            if "property" in decorators or ".setter" in decorators: continue
            yield f"{node.name}.{method.name}", ast.get_docstring(method)


def test_public_names_have_docstrings(root):
    modules = [p for p in sorted((root / "neon").rglob("*.py")) if not p.stem.startswith("_")]
    trees = {p.relative_to(root / "neon").as_posix(): ast.parse(p.read_text(encoding="utf-8")) for p in modules}
    bare = [f"neon/{file}: {name}" for file, tree in trees.items() for name, doc in documented_names(tree) if not doc]
    assert modules and not bare, "without a docstring:\n" + "\n".join(bare)


@pytest.mark.slow
def test_pages_pass_the_processors_of_the_site(root, notebooks, tmp_path):
    "A third of the pages, of every folder some; `make docs` processes all."
    copy, chosen = project.copy_project(root, tmp_path / "copy"), list(notebooks)[::3]
    for path in set(notebooks).difference(chosen): (copy / "nbs" / path).unlink()
    command = [sys.executable, str(root / ".ci" / "docs.py"), "--pages", "--root", str(copy)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    for path in chosen:
        page = copy / "_proc" / path
        assert page.is_file(), f"nbs/{path} was not processed:\n{done.stderr[-2000:]}"
        text = page.read_text(encoding="utf-8")
        first = "".join(json.loads(text)["cells"][0]["source"])
        titled = first.startswith("---") and re.search(r"(?m)^title:", first)
        assert titled, f"nbs/{path}: no title for the site in {first[:80]!r}"
        for image, _, target, _ in links_of(markdown_of(json.loads(text))):
            if not image or not is_local(target): continue
            picture = (page.parent / target).resolve()
            inside = picture.is_relative_to((copy / "_proc").resolve())
            assert picture.is_file() and inside, f"nbs/{path}: the site has no {target}"
    assert (copy / "_proc" / "_quarto.yml").is_file() and (copy / "_proc" / "sidebar.yml").is_file()


@pytest.fixture(scope="module")
def readings(notebooks) -> dict[str, reading.Reading]:
    "What was counted in each notebook that exports."
    return {path: reading.read(nb) for path, nb in notebooks.items() if re.match(r"\d_", path)}


def test_exported_cells_hold_one_idea(readings):
    total = sum(readings.values(), reading.Reading())
    assert total.median <= 15 and max(total.lines) <= 60 and total.share_several <= 0.2, str(total)
    long = {path: max(r.lines) for path, r in readings.items() if r.lines and (max(r.lines) > 60 or r.median > 20)}
    assert not long, f"cells over a screen: python tests/reading.py nbs/... shows them: {long}"


def test_public_parameters_say_what_they_are(readings):
    bare = [f"nbs/{path}: {name}" for path, r in readings.items() for name in r.bare]
    assert not bare, "parameters without a comment on their line:\n" + "\n".join(bare)


def test_every_export_is_followed_by_a_visible_run(readings):
    unseen = [f"nbs/{path}: {where}" for path, r in readings.items() for where in r.unseen]
    assert not unseen, "sections that end with an export:\n" + "\n".join(unseen)


def test_code_fits_beside_the_prose(notebooks):
    long = [f"nbs/{path}: {line}" for path, nb in notebooks.items() for line in reading.read(nb).long]
    assert not long, f"lines over {reading.MAX_LINE} characters:\n" + "\n".join(long)


def test_what_shows_something_has_a_picture(readings, notebooks):
    pictured = ("1_foundations/04_surgery", "2_methods/00_guard", "2_methods/01_contract", "4_ecomp/03_evolution",
                "5_compression/00_planning", "5_compression/02_search", "7_doors/00_compress")
    missing = [name for name in pictured if not readings[f"{name}.ipynb"].pictures]
    assert not missing and "![" in markdown_of(notebooks["paper/index.ipynb"]), missing


def test_no_output_is_hidden_that_was_meant_to_be_seen(notebooks):
    "`#| hide` drops a cell's output from the site; `#| echo: false` keeps it."
    lost = [f"nbs/{path}: {''.join(cell['source'])[:60]!r}" for path, nb in notebooks.items() for cell in nb["cells"]
            if cell.get("outputs") and "hide" in reading.directives_of(cell) and reading.code_of(cell)]
    assert not lost, "\n".join(lost)


def test_no_name_is_public_in_two_modules(root):
    found: dict[str, set[str]] = {}
    for file in (p for p in (root / "neon").rglob("*.py") if p.stem != "_modidx"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            targets = getattr(node, "targets", [getattr(node, "target", node)])
            for name in (getattr(t, "name", getattr(t, "id", "_")) for t in targets):
                if not name.startswith("_"): found.setdefault(name, set()).add(str(file.relative_to(root)))
    assert not {name: files for name, files in found.items() if len(files) > 1}
