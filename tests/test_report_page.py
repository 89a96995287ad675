"""The page of reports: everything is escaped, nothing is loaded, numbers are readable."""

import base64
from html.parser import HTMLParser

from medley.report_page import bars, cell_text, heading, line_plot, page, paragraph, picture, section, table, tiles

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """Collects the tags of a document, and checks that they are closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_whatever_comes_from_outside_is_text() -> None:
    text = page(
        HOSTILE,
        HOSTILE,
        section(HOSTILE, paragraph(HOSTILE), heading(HOSTILE), table([HOSTILE], [[HOSTILE]]), bars({HOSTILE: 1.0}, {HOSTILE: (0.5, 1.5)})),
        line_plot({HOSTILE: [(0, 1)]}, HOSTILE, HOSTILE),
        line_plot({HOSTILE: []}, HOSTILE, HOSTILE),
        tiles([(b"\xff\xd8", HOSTILE, True)]),
        picture(b"\xff\xd8", HOSTILE),
    )
    tags = Tags(text).found
    assert not {tag for tag, _ in tags} & {"script", "iframe", "object", "link", "base", "form"}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert all(str(attributes["src"]).startswith("data:image/") for tag, attributes in tags if tag == "img")
    assert text.count("&lt;script&gt;") == text.count("&lt;img src=x")


def test_the_browser_is_told_to_load_and_run_nothing() -> None:
    policies = [attributes["content"] for tag, attributes in Tags(page("Title")).found if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_cells_are_readable() -> None:
    cells = [1234567, 0.123456, 12345.6, None, float("nan"), True, "a <b>"]
    assert [cell_text(value) for value in cells] == ["1,234,567", "0.1235", "12,345.6", "–", "–", "True", "a <b>"]


def test_columns_of_numbers_are_aligned() -> None:
    text = table(["name", "value"], [["a", 1.5], ["b", None]])
    assert '<th scope="col">name</th><th scope="col" class="number">value</th>' in text
    assert '<td>b</td><td class="number">–</td>' in text


def test_bars_are_as_long_as_their_values_and_carry_their_intervals() -> None:
    text = bars({"a": 2.0, "b": 1.0, "c": -1.0}, {"b": (0.5, 4.0)})
    # 100 % is 4, the end of the longest interval.
    assert [text.count(f"width:{width}%") for width in ("50.00", "25.00", "0.00", "87.50")] == [1, 1, 1, 1]
    assert "left:12.50%" in text


def test_values_that_are_not_finite_are_left_out_of_curves() -> None:
    text = line_plot({"loss": [(0, 4.0), (1, float("nan")), (2, 2.0)]}, "epoch", "loss")
    assert text.count("<circle") == 2
    assert "nan" not in text


def test_a_picture_carries_its_kind() -> None:
    data = b"\x89PNG\r\n"
    assert f"data:image/png;base64,{base64.b64encode(data).decode()}" in picture(data)
    assert "data:image/webp" in picture(b"RIFF\0\0\0\0WEBP")
    assert "data:image/jpeg" in picture(b"\xff\xd8\xff")
