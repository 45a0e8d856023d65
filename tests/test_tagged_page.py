"""The page of `predict --output x.html` in a browser: hostile, right-to-left, CJK and long texts."""

import json

import pytest
from test_tagged_files import EveryWord

from nercrf.labels import Span
from nercrf.tagging.decoder import Found
from nercrf.tagging.output import tag_file

HOSTILE = [
    "</p></body><script>document.title='owned'</script>",
    "</style><img src=https://example.org/x onerror=document.title='owned'>",
    '" onmouseover="document.title=1" style="position:fixed;inset:0',
    "<!-- --!> <![CDATA[ <a href=javascript:alert(1)>Ada</a> &lt;b&gt; &#x3c;i&#x3e;",
    "<base href=https://example.org><meta http-equiv=refresh content=0><iframe src=//x>",
    "Ada\u202egnp.exe \u2066Moor \x1b[31m\x07",
]
TEXTS = [
    *HOSTILE,
    "Ada Moor sings in Lund.",
    "قال محمد في القاهرة إن 3 سفن (Ever Given) عبرت القناة.",
    "دפים: שרה גרה בתל אביב, Tel Aviv, מאז 1999.",
    "東京都の林砚さんは、株式会社アダで働いている。" * 20,
    "ไม่มีช่องว่างระหว่างคำ" * 30,
    "Ada " * 600,
    "W" * 3000,
    "https://example.org/" + "a/b-c_d" * 200,
    "شمس Ada Moor",  # the only strong character outside of entities is from left to right
    "12 شمس Ada",  # the type of the first entity is from left to right
    "first line\nsecond line\r\n\r\nthird\ttab",
    "",
]
TYPES = ["PER", "<b onclick=alert(1)>ORG</b>", "a" * 90, "عنوان", '" style="display:none']


class EveryType(EveryWord):
    """Words of every type, more and less sure."""

    def find(self, examples, with_context=True):
        return [
            Found(
                [
                    Span(TYPES[place % len(TYPES)], place, place + 1)
                    for place in range(0, len(each.tokens), 2)
                ],
                [place % 11 / 10 for place in range(0, len(each.tokens), 2)],
            )
            for each in examples
        ]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    records = [json.dumps({"id": HOSTILE[0], "text": text}) for text in TEXTS]
    lines = [*records, '{"id": 1, "text": "<script>document.title=1</script>']
    (folder / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    target = folder / "it's <b>.html"
    tag_file(EveryType(), folder / "in.jsonl", target, "html")
    return target


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_nothing_overflows_acts_or_asks_the_network(page, shown, width, dark):
    page.open(shown, width, dark=dark)
    assert page.overflow() == []
    assert page.complaints == []
    assert [each for each in page.requests if not each.startswith("file:")] == []
    assert page.ask("document.title") != "owned"
    names = page.ask("[...new Set([...document.querySelectorAll('body *')].map(x => x.localName))]")
    assert set(names) <= {"p", "mark", "small", "br"}
    attributes = page.ask(
        "[...new Set([...document.querySelectorAll('*')].flatMap(x => x.getAttributeNames()))]"
    )
    assert set(attributes) <= {
        "charset",
        "name",
        "content",
        "class",
        "dir",
        "title",
        "style",
        "lang",
    }
    ground = page.ask("getComputedStyle(document.documentElement).colorScheme")
    assert "dark" in ground


def test_every_text_is_read_as_it_was_given(page, shown):
    """Each paragraph without its types is the text; the right direction, the shade of each type."""
    page.open(shown)
    texts = page.ask(
        "[...document.querySelectorAll('p')].map(x => { const it = x.cloneNode(true);"
        "it.querySelectorAll('small').forEach(y => y.remove());"
        "it.querySelectorAll('br').forEach(y => y.replaceWith('\\n')); return it.textContent })"
    )
    escaped = HOSTILE[-1].encode("unicode_escape").decode()
    given = [text.replace("\r\n\r\n", "\n") for text in TEXTS]
    assert texts[: len(TEXTS)] == [escaped if text == HOSTILE[-1] else text for text in given]
    assert "expected a JSON object a line" in texts[-1]
    directions = page.ask(
        "[...document.querySelectorAll('p')].map(x => getComputedStyle(x).direction)"
    )
    assert [place for place, each in enumerate(directions) if each == "rtl"] == [7, 8, 14, 15]
    shades = page.ask(
        "[...document.querySelectorAll('p:nth-of-type(7) mark')].map(x => [x.title, x.style.background])"
    )
    assert [title for title, _ in shades] == ["PER 0.000", f"{TYPES[2]} 0.200", f"{TYPES[4]} 0.400"]
    strength = [float(ground.rpartition(",")[2].rstrip(" )")) for _, ground in shades]
    assert strength == sorted(set(strength))


def test_a_type_does_not_turn_its_entity_around(page, shown):
    """Of "<" as a type from right to left, the bracket stands first, and is no ">"."""
    page.open(shown)
    places = page.ask(
        "[...document.querySelectorAll('mark')].filter(x => x.firstChild.data === '<').map(x => {"
        "const it = document.createRange(); it.selectNodeContents(x.firstChild);"
        "return [x.title, it.getBoundingClientRect().left, x.lastChild.getBoundingClientRect().left] })"
    )
    turned = [(left, right) for title, left, right in places if title.startswith(TYPES[3])]
    assert turned
    assert all(left < right for left, right in turned)
