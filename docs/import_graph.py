"""Draw which packages and top-level modules import which: `python docs/import_graph.py` writes docs/import_graph.png.

An arrow points from a module to one that it imports. Imports that follow from others are left out: if `a` imports `b`,
and `b` imports `c`, there is no arrow from `a` to `c`. Each module is one row above the highest module that it imports.
"""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
Graph = dict[str, set[str]]


def read_imports(repository: Path = REPOSITORY) -> Graph:
    """Return which modules each module imports, also within functions, but not `if TYPE_CHECKING`.

    The nodes are the packages and modules in `bert_snli`, and `conversion` as a whole.
    """
    files = [*(repository / "bert_snli").rglob("*.py"), *(repository / "conversion").rglob("*.py")]
    graph: Graph = {node_of(path.relative_to(repository)): set() for path in files}
    del graph["bert_snli"]  # bert_snli/__init__.py, which only lists public names
    for path in files:
        node = node_of(path.relative_to(repository))
        if node in graph:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            graph[node] |= {name for name in imported_names(tree) if name in graph and name != node}
    return graph


def node_of(path: Path) -> str:
    """Return the node of a file: `bert_snli/data/snli.py` is part of `data`, `bert_snli/hub.py` is `hub`."""
    package, *rest = path.with_suffix("").parts
    return rest[0] if package == "bert_snli" and rest and rest[0] != "__init__" else package


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield the nodes that a module imports. Relative imports stay within a package and are skipped."""
    for child in ast.iter_child_nodes(tree):
        names: list[str] = []
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom) and child.level == 0:
            names = [f"{child.module}.{alias.name}" for alias in child.names]
        for name in names:
            if name.split(".")[0] in ("bert_snli", "conversion"):
                yield node_of(Path(name.replace(".", "/")))
        yield from imported_names(child)


def find_rows(graph: Graph) -> dict[str, int]:
    """Return the row of each module, 0 at the bottom; `graphlib.CycleError` if the graph has a cycle."""
    rows: dict[str, int] = {}
    for node in TopologicalSorter(graph).static_order():
        rows[node] = 1 + max((rows[imported] for imported in graph[node]), default=-1)
    return rows


def without_implied(graph: Graph) -> Graph:
    """Leave out the imports that follow from others."""
    reachable: Graph = {}
    for node in TopologicalSorter(graph).static_order():
        reachable[node] = graph[node].union(*(reachable[imported] for imported in graph[node]))
    return {node: graph[node].difference(*(reachable[imported] for imported in graph[node])) for node in graph}


def make_paths(graph: Graph, rows: dict[str, int]) -> list[list[tuple[int, str]]]:
    """Return each arrow as points (row, name), with a point in each row that it passes."""
    return [
        [(rows[node], node), *((row, f"{node} > {imported}") for row in passed), (rows[imported], imported)]
        for node in sorted(graph)
        for imported in sorted(graph[node])
        for passed in [range(rows[node] - 1, rows[imported], -1)]
    ]


def place(paths: list[list[tuple[int, str]]], nodes: dict[str, int]) -> dict[tuple[int, str], float]:
    """Return the x of each point: each row is sorted by the mean x of the neighbours, which avoids most crossings."""
    points = sorted({(row, name) for name, row in nodes.items()} | {point for path in paths for point in path})
    neighbours: dict[tuple[int, str], set[tuple[int, str]]] = {point: set() for point in points}
    for path in paths:
        for upper, lower in zip(path, path[1:], strict=False):
            neighbours[upper].add(lower)
            neighbours[lower].add(upper)
    x = {point: float(number) for number, point in enumerate(points)}
    for _ in range(60):
        for row in range(max(nodes.values()) + 1):
            ordered = sorted(
                (point for point in points if point[0] == row),
                key=lambda point: sum(x[other] for other in neighbours[point]) / max(1, len(neighbours[point])),
            )
            widths = [2.0 if name in nodes else 0.5 for _, name in ordered]
            left = -sum(widths) / 2
            for point, width in zip(ordered, widths, strict=True):
                x[point] = left + width / 2
                left += width
    return x


def draw(graph: Graph, output_file: Path) -> None:
    """Draw the graph."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = find_rows(graph)
    paths = make_paths(without_implied(graph), rows)
    x = place(paths, rows)
    figure, axes = plt.subplots(figsize=(8, 9))
    for path in paths:
        points = [(x[point], point[0]) for point in path]
        axes.plot(*zip(*points[:-1], strict=True), color="0.4", linewidth=1.2, zorder=1)
        arrow = {"arrowstyle": "-|>", "color": "0.4", "shrinkA": 0, "shrinkB": 14, "linewidth": 1.2}
        axes.annotate("", xy=points[-1], xytext=points[-2], arrowprops=arrow, zorder=1)
    for name, row in rows.items():
        is_package = name == "conversion" or (REPOSITORY / "bert_snli" / name).is_dir()
        box = {"boxstyle": "round,pad=0.4", "facecolor": "#dbe9f6" if is_package else "white", "edgecolor": "0.3"}
        axes.text(x[row, name], row, name, ha="center", va="center", fontsize=11, bbox=box, zorder=2)
    axes.set_title("Imports: modules (white) and packages (blue) of bert_snli, and conversion", fontsize=11)
    axes.axis("off")
    axes.set(xlim=(min(x.values()) - 0.8, max(x.values()) + 0.8), ylim=(-0.4, max(rows.values()) + 0.4))
    figure.tight_layout()
    figure.savefig(output_file, dpi=110)


if __name__ == "__main__":
    draw(read_imports(), REPOSITORY / "docs" / "import_graph.png")
