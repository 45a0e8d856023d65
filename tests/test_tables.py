"""Tables: columns stand below each other, whatever the cells hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nercrf.tables import text_table, text_width

CELL = st.text(alphabet="ab Z9,名字公\u0301\u200b", max_size=6).map(str.strip)
ROWS = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.tuples(*[CELL] * width), min_size=1, max_size=6)
)


@given(ROWS, st.text("lr", min_size=1, max_size=3))
def test_columns_stand_below_each_other(rows, align):
    """A table of cells in bars: after each cell the bar stands in the same place in every line."""
    framed = [tuple(x for cell in row for x in (cell, "|")) for row in rows]
    width = len(rows[0])
    sides = "".join(side + "l" for side in align.ljust(width, align[-1])[:width])
    lines = text_table(framed, sides, gap="")
    assert len({text_width(line) for line in lines}) == 1
    for row, line in zip(rows, lines, strict=True):
        cells = line.split("|")[:-1]
        assert [cell.strip(" ") for cell in cells] == list(row)
        for cell, text, side in zip(cells, row, sides[::2], strict=True):
            assert not text or (cell.startswith(text) if side == "l" else cell.endswith(text))
    bars = [[text_width(line[: at + 1]) for at, x in enumerate(line) if x == "|"] for line in lines]
    assert all(places == bars[0] for places in bars)


@given(ROWS)
def test_no_line_ends_in_blanks(rows):
    assert all(line == line.rstrip() for line in text_table(rows))


def test_rows_may_be_short():
    assert text_table([("a", "1", "2"), ("long name",), (), ("b", "10")]) == [
        "a           1  2",
        "long name",
        "",
        "b          10",
    ]


def test_a_wrong_letter_is_named():
    with pytest.raises(ValueError, match="expected the letters l and r, got ''"):
        text_table([], "")
