"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 0
) -> str:
    """Returns a table in Markdown.

    Args:
      columns: the columns' titles.
      rows: the cells of every row.
      text_columns: number of columns, from the left, that hold text; figures, in the
        others, are aligned to the right.
    """
    alignment = ["---"] * text_columns + ["---:"] * (len(columns) - text_columns)
    return "\n".join(map(_line, [columns, alignment, *rows]))


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
