"""Builds the reference from the code's own docstrings: a page per callback, per rule and per statistic.

``make docs`` writes the pages; a test keeps them as the code says.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from pathlib import Path

from lightning_weightwatch.rules import all_rules
from lightning_weightwatch.stats import all_statistics

HERE = Path(__file__).parent
CALLBACKS = ["SeedEverything", "InitAuditor", "WeightHistogramLogger", "GradientHealthMonitor"]
FUNCTIONS = ["watch", "seed", "audit_init"]
VALUES = ["Finding", "InitReport", "ParameterVerdict", "SeedReport"]
ELSEWHERE = {"TensorStatistics": "accumulators", "Snapshot": "evidence"}  # not at the top of the package
PROSE = {
    "The tutorial's numbers beside the theory": "tutorial_numbers.md",
    "Truth table: every measurement against plain torch": "truth_table.md",
    "What must never happen": "never.md",
    "What it finds, and what it leaves in peace": "accuracy.md",
    "What it costs": "costs.md",
    "What the audit says of known architectures": "architectures.md",
    "How the first cause is named": "first_cause.md",
}


def pages() -> dict[str, str]:
    """Return every page of the reference by its path below ``docs/``."""
    rules = {f"rules/{name}.md": module_page("rules", name) for name in all_rules()}
    statistics = {f"statistics/{name}.md": module_page("stats", name) for name in all_statistics()}
    names = [*CALLBACKS, *FUNCTIONS, *VALUES, *ELSEWHERE]
    objects = {f"reference/{name}.md": object_page(name) for name in names}
    causes = {"first_cause.md": causes_page()}
    return {
        **rules,
        **statistics,
        **objects,
        **causes,
        "README.md": index(list(rules), list(statistics), list(objects)),
    }


def object_page(name: str) -> str:
    """Return the page of a public class or function."""
    home = f"lightning_weightwatch.{ELSEWHERE[name]}" if name in ELSEWHERE else "lightning_weightwatch"
    thing = getattr(importlib.import_module(home), name)
    code = f"from {home} import {name}\n\n{signature(name, thing)}"
    return f"# {name}\n\n```python\n{code}\n```\n\n{markdown(inspect.getdoc(thing) or '')}\n"


def signature(name: str, thing: object) -> str:
    """Return a signature with one argument to a line; annotations are texts in this package."""
    lines, keyword_only = [], False
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            lines.append("*")
            keyword_only = True
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        lines.append(f"{stars}{parameter.name}: {parameter.annotation}{default}")
    returns = inspect.signature(thing).return_annotation
    inner = "".join(f"    {line},\n" for line in lines)
    return f"{name}(\n{inner})" + (f" -> {returns}" if returns not in (None, "None") else "")


def module_page(folder: str, name: str) -> str:
    """Return the page of a rule or statistic: the docstring of its file."""
    module = importlib.import_module(f"lightning_weightwatch.{folder}.{name}")
    return f"# {name}\n\n{markdown(inspect.getdoc(module) or '')}\n"


def causes_page() -> str:
    """Return the page of what explains what: the docstring of its file and its table."""
    module = importlib.import_module("lightning_weightwatch.rules._causes")
    rows = [(name, sorted(module.EXPLAINS.get(name, ()), key=module.PRECEDENCE.index)) for name in module.PRECEDENCE]
    lines = [f"| {name} | {', '.join(explained) or 'nothing'} |" for name, explained in rows]
    table = "\n".join(["| cause, by precedence | explains |", "|---|---|", *lines])
    return f"# How the first cause is named\n\n{markdown(inspect.getdoc(module) or '')}\n\n{table}\n"


def index(rules: list[str], statistics: list[str], objects: list[str]) -> str:
    """Return the first page."""
    parts = {"Reference": objects, "Rules": rules, "Statistics": statistics}
    lines = ["# Documentation", "", *(f"- [{title}]({path})" for title, path in PROSE.items())]
    for title, paths in parts.items():
        lines += ["", f"## {title}", "", *(f"- [{Path(path).stem}]({path})" for path in paths)]
    return "\n".join(lines) + "\n"


def markdown(docstring: str) -> str:
    """Turn a docstring of the house's style into markdown: sections, literals, tables, examples."""
    parts = re.split(r"^([A-Z][\w' ]+):\n(?= {4})", docstring, flags=re.MULTILINE)
    out = [prose(parts[0])]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        inner, _, after = re.match(r"((?:(?: {4}.*)?\n?)*?)(\Z|(?=^\S))(.*)", body, re.DOTALL | re.MULTILINE).groups()
        out += [f"## {title}", section(title, textwrap.dedent(inner).strip("\n")), prose(after)]
    return "\n\n".join(part for part in out if part.strip())


def section(title: str, body: str) -> str:
    """Return a section: an example as code, described names as a list, anything else as prose."""
    if title == "Example":
        return f"```pycon\n{body}\n```"
    if title == "References":
        return "\n".join(f"- {' '.join(item.split())}" for item in re.split(r"(?<=\.)\n", body))
    if re.match(r"\w+: ", body):
        items = re.split(r"^(?=\w+: )", body, flags=re.MULTILINE)
        return "\n".join(literal(re.sub(r"^(\w+): ", r"- `\1`: ", " ".join(item.split()))) for item in items if item)
    return prose(body)


def prose(text: str) -> str:
    """Return paragraphs; a table stays as it is drawn."""
    paragraphs = re.split(r"\n\s*\n", text.strip("\n"))
    return "\n\n".join(f"```text\n{p}\n```" if p.lstrip().startswith("===") else literal(p) for p in paragraphs)


def literal(text: str) -> str:
    """Turn double backticks into single ones."""
    return text.replace("``", "`")


def main() -> None:
    """Write every page."""
    for path, text in pages().items():
        target = HERE / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    print(f"{len(pages())} pages written below {HERE}")


if __name__ == "__main__":
    main()
