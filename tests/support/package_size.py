"""The size of a package: its tokens, files, dataclasses and long functions, printed, and compared with its budget.

Tokens are Python's own, without comments, docstrings, line breaks and indentation, so how code is wrapped and explained
costs nothing. The budget is `[tool.dcdctl] package-tokens` of pyproject.toml.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
LONG_FUNCTION = 50
MANY_PARAMETERS = 6


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a file or a package weighs; sizes of files add up."""

    tokens: int = 0
    lines: int = 0
    comment_lines: int = 0
    files: int = 0
    dataclasses: int = 0
    functions: int = 0
    functions_above_50_lines: int = 0
    functions_above_6_parameters: int = 0

    def __add__(self, other: Size) -> Size:
        names = [field.name for field in fields(self)]
        return Size(**{name: getattr(self, name) + getattr(other, name) for name in names})


def size_of(source: str) -> Size:
    """The size of one module's text.

    >>> size_of('def double(x):  # twice\\n    "Two times x."\\n    return 2 * x\\n').tokens
    10
    """
    nodes = list(ast.walk(ast.parse(source)))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    docstrings = {_docstring_start(node) for node in nodes}
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    return Size(
        tokens=sum(token.type not in LAYOUT and token.start not in docstrings for token in tokens),
        lines=len(source.splitlines()),
        comment_lines=sum(token.type == tokenize.COMMENT for token in tokens),
        files=1,
        dataclasses=sum(isinstance(node, ast.ClassDef) and _is_dataclass(node) for node in nodes),
        functions=len(functions),
        functions_above_50_lines=sum(node.end_lineno - node.lineno >= LONG_FUNCTION for node in functions),
        functions_above_6_parameters=sum(_num_parameters(node) > MANY_PARAMETERS for node in functions),
    )


def _docstring_start(node: ast.AST) -> tuple[int, int] | None:
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
        return None
    return (node.lineno, node.col_offset) if isinstance(node.value.value, str) else None


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _num_parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return sum(parameter.arg not in ("self", "cls") for parameter in parameters)


def main() -> int:
    """0 if the package is within its budget, otherwise 1 with a line that says by how much it is not."""
    parser = argparse.ArgumentParser(description="Print the size of a package and compare it with its budget.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("dcdctl"))
    parser.add_argument("--by-folder", action="store_true", help="also print the size of each folder")
    options = parser.parse_args()
    sizes = {path: size_of(path.read_text(encoding="utf-8")) for path in sorted(options.folder.rglob("*.py"))}
    lines = []
    if options.by_folder:
        for folder in sorted({path.parent for path in sizes}):
            size = sum((size for path, size in sizes.items() if path.parent == folder), Size())
            lines.append(
                f"{folder}: {size.tokens:,} tokens, {size.functions} functions, {size.dataclasses} dataclasses"
            )
    total = sum(sizes.values(), Size())
    counts = (f"{value:,} {name.replace('_', ' ')}" for name, value in vars(total).items())
    sys.stdout.write("\n".join([*lines, f"{options.folder}: {', '.join(counts)}"]) + "\n")
    budget = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["tool"]["dcdctl"]["package-tokens"]
    if options.folder != Path("dcdctl") or total.tokens <= budget:
        return 0
    sys.stderr.write(f"the budget is {budget:,} tokens: take out {total.tokens - budget:,}, or say why it grows\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
