"""Tables hold any name: markup, pipes, tags and names longer than the page."""

import warnings
from html.parser import HTMLParser

import pytest

from lightning_weightwatch.sinks.tables import console_table, markdown_table

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of the sanitiser that TensorBoard brings along
    from tensorboard.plugin_util import markdown_to_safe_html

NAMES = [
    "[red]x[/red]",
    "[/] [link=http://a]",
    ":smile: :warning:",
    "a|b",
    "a||b|",
    "<b>x</b> & <script>y</script>",
    "&amp; &lt;",
    "blocks.0.attn_weights.__dunder__",
    "name with spaces",
    "é 层 ß",
]


class Cells(HTMLParser):
    """Collects the rows of a table as a browser shows them."""

    def __init__(self, html):
        super().__init__()
        self.rows, self._open = [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._open = True

    def handle_endtag(self, tag):
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data):
        if self._open:
            self.rows[-1][-1] += data


def shown(markdown):
    return Cells(markdown_to_safe_html(markdown)).rows


@pytest.mark.parametrize("name", NAMES)
def test_tensorboard_shows_a_name_as_it_is_and_in_its_own_cell(name):
    assert shown(markdown_table(["name", "n"], [[name, "1"], ["next", "2"]])) == [
        ["name", "n"],
        [name, "1"],
        ["next", "2"],
    ]


@pytest.mark.parametrize(
    "name", [r"C:\runs\|x", r"a\b", "`tick", "tick` *a* *b*", "one_two_ _three_", "[a](b)", "![a](b)"]
)
def test_characters_that_mean_something_in_markdown_stay_themselves(name):
    assert shown(markdown_table(["name", "n"], [[name, "`1"]]))[1] == [name, "`1"]


def test_a_line_break_does_not_end_a_row():
    assert shown(markdown_table(["a"], [["one\ntwo"]])) == [["a"], ["one two"]]


def test_a_markdown_table_without_rows_is_its_header():
    assert shown(markdown_table(["a", "b"], []))[0] == ["a", "b"]


@pytest.mark.parametrize("name", NAMES)
def test_the_console_shows_a_name_as_it_is(name):
    assert name in console_table("Title", ["name", "n"], [[name, "1"]])


@pytest.mark.parametrize("text", ["[red]Title[/red]", ":smile:", "[/]"])
def test_the_console_shows_title_and_heads_as_they_are(text):
    assert console_table(text, [text], [["1"]]).count(text) == 2


@pytest.mark.parametrize("separator", [".", "", "_", " "], ids=repr)
def test_a_name_longer_than_its_column_is_folded_and_never_cut(separator):
    name = separator.join(f"block{i}" for i in range(60))
    page = console_table("Title", ["name"], [[name]], widest=40)
    assert all(len(line) <= 40 for line in page.splitlines())
    joined = "".join(line.strip() for line in page.splitlines())
    assert name.replace(" ", "") in joined.replace(" ", "")


def test_a_name_that_is_all_digits_stays_a_name():
    assert "007" in console_table("Title", ["name"], [["007"], ["1e5"]])
    assert shown(markdown_table(["name"], [["007"], ["1e5"]])) == [["name"], ["007"], ["1e5"]]
