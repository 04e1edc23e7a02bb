"""The text grammar holds for whatever stands around the tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelscribe.errors import SettingsError
from reelscribe.rows.text import (
    Chunk,
    find_tokens,
    insert_captions,
    join_chunks,
    split_chunks,
    video_chunks,
)
from reelscribe.rows.tokens import DEFAULT_TOKENS, SpecialTokens, ordinary_text

CUSTOM = SpecialTokens(video="[V]", image="[I]", audio="[A]", eoc="\n\n")
VOCABULARIES = st.sampled_from([DEFAULT_TOKENS, CUSTOM])


def texts(tokens):
    """Texts of tokens, pieces of tokens and anything else."""
    pieces = st.one_of(
        st.sampled_from(tokens.all),
        st.sampled_from(tokens.all).map(lambda token: token[: len(token) // 2]),
        st.sampled_from(tokens.all).map(lambda token: token[len(token) // 2 :]),
        st.text(max_size=8),
    )
    return st.lists(pieces, max_size=12).map("".join)


@given(data=st.data(), tokens=VOCABULARIES)
def test_splitting_and_joining_lose_nothing(data, tokens):
    text = data.draw(texts(tokens))
    chunks = split_chunks(text, tokens)
    assert join_chunks(chunks, tokens) == text
    assert sum(chunk.num_videos for chunk in chunks) == find_tokens(text, tokens).count(tokens.video)


@given(data=st.data(), tokens=VOCABULARIES)
def test_captions_land_behind_their_tokens_in_order(data, tokens):
    text = data.draw(texts(tokens))
    for chunk in split_chunks(text, tokens):
        captions = [f"caption{i}" for i in range(chunk.num_videos)]
        made = insert_captions(chunk, captions, tokens)
        assert made.count(tokens.eoc) == 1
        assert made.endswith(tokens.eoc)
        assert find_tokens(made, tokens) == [*find_tokens(chunk.text, tokens), tokens.eoc]
        behind = made.split(tokens.video)[1:]
        assert [part.split(" ")[1] for part in behind] == captions
        assert all(part.startswith(f" {caption} ") for part, caption in zip(behind, captions, strict=True))
        assert ordinary_text(made, tokens).split() == captions


@given(data=st.data(), tokens=VOCABULARIES, count=st.integers(1, 4))
def test_every_video_of_a_text_without_tokens_gets_one(data, tokens, count):
    text = data.draw(texts(tokens)).replace(tokens.video, "")
    if tokens.video in text:
        return
    chunks = video_chunks(text, num_videos=count, tokens=tokens)
    assert [chunk.num_videos for chunk in chunks] == [count]


@given(data=st.data(), tokens=VOCABULARIES)
def test_ordinary_text_holds_no_token(data, tokens):
    text = ordinary_text(data.draw(texts(tokens)), tokens)
    assert not find_tokens(text, tokens)
    assert text == text.strip()


def test_removal_that_joins_a_token():
    assert ordinary_text("a <__dj__vi<__dj__video>deo> b") == "a  b"


def test_wrong_number_of_captions():
    with pytest.raises(ValueError, match="has 1 video tokens but got 2 captions"):
        insert_captions(Chunk("<__dj__video>", 1), ["a", "b"])


@pytest.mark.parametrize("values", [{"video": ""}, {"video": "<__dj__image>"}, {"eoc": "<__dj__"}])
def test_unusable_tokens(values):
    with pytest.raises(SettingsError, match="four non-empty strings"):
        SpecialTokens(**values)
