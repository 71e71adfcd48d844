from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from nltk import RegexpParser, Tree

from odise_pl.data.chunking import chunks

SINGLE = RegexpParser("NBAR: {<NN.*|JJ>*<NN.*>}")
JOINED = RegexpParser("NBAR: {<NN.*|JJ>*<NN.*>}\nJOINED: {<NBAR><IN><NBAR>}")
TAGS = ("NN", "NNS", "NNP", "JJ", "IN", "JJR", "DT", ".")


@given(st.lists(st.sampled_from(TAGS), min_size=1, max_size=14), st.booleans())
def test_chunks_are_those_of_the_grammar(tags: list[str], joined: bool) -> None:
    tagged = [(f"token{i}", tag) for i, tag in enumerate(tags)]
    wanted = [
        " ".join(token for token, _ in node.leaves()) if isinstance(node, Tree) else None
        for node in (JOINED if joined else SINGLE).parse(tagged)
    ]
    assert list(chunks(tagged, joined)) == wanted


def test_nothing_has_no_chunks() -> None:
    assert list(chunks([], joined=True)) == []
