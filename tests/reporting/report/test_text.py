"""Text that is put on a page: nothing of it gets out of its place."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from morphing_trainer.reporting.report.text import cut, data, el, fnum, joined, readable, safe
from tests.reporting.report.support import read


def test_elements_escape_what_is_in_them() -> None:
    assert el("p", "a < b & c", class_="x", aria_label='say "x"') == (
        '<p class="x" aria-label="say &#34;x&#34;">a &lt; b &amp; c</p>'
    )
    assert el("p", el("b", "<"), None, False, 7) == "<p><b>&lt;</b>7</p>"
    assert (
        el("rect", x=1.25, y=-0.001, width=None, viewBox="0 0 1 1") == '<rect x="1.25" y="0" viewBox="0 0 1 1"></rect>'
    )
    assert joined(["<", el("i")]) == "&lt;<i></i>"
    for name in ("p onload=x", "p>", ""):
        with pytest.raises(ValueError, match="no name"):
            el(name)
    with pytest.raises(ValueError, match="no name"):
        el("p", **{"x y": "1"})


def test_what_a_page_cannot_hold_is_replaced() -> None:
    assert (
        readable("a\x00b\x1bc\x85d\ud800e\ufffff\u202eg\u2066h\U0001fffei")
        == "a\ufffdb\ufffdc\ufffdd\ufffde\ufffdf\ufffdg\ufffdh\ufffdi"
    )
    assert readable("a\r\nb\rc\td\n") == "a\nb\nc\td\n"
    assert readable("שלום مرحبا \u200f 日本 😀") == "שלום مرحبا \u200f 日本 😀", "what is text stays"
    assert safe(Markup("<b>")) == "<b>" and safe(7) == "7"


@given(st.text(st.characters()))
def test_any_text_comes_back_as_it_was_meant(text: str) -> None:
    page = f"<!DOCTYPE html><html><head><title>t</title></head><body>{el('p', text, title=text)}</body></html>"
    page.encode()  # no surrogates
    tree = read(page)
    (found,) = tree.iter("p")
    assert "".join(found.itertext()) == readable(text) == found.get("title")
    assert len(list(found)) == 0


def test_json_stays_in_its_script() -> None:
    value = ["</script><script>alert(1)//", "<!--", "&amp;", "\u2028", "\ud800"]
    text = data(value)
    assert not set(text) & set("<>&\u2028") and json.loads(text) == value
    with pytest.raises(ValueError, match="JSON"):
        data(float("nan"))


def test_numbers_and_long_texts() -> None:
    assert [fnum(value) for value in (1.0, 0.126, -0.001, 1e3, 99.999)] == ["1", "0.13", "0", "1000", "100"]
    with pytest.raises(ValueError, match="no coordinate"):
        fnum(float("nan"))
    assert cut("abc", 3) == "abc"
    assert cut("a" * 1003, 3) == "aaa\u2026 (1,000 more characters)"
