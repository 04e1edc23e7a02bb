"""Choosing among candidates."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelscribe.answering.selection import SELECTORS, Choice, hamming_distance, is_unspaced, simhash
from reelscribe.types import Candidate


def keep(mode, texts, original="", seed=0):
    return [one.text for one in SELECTORS[mode]([Candidate(text) for text in texts], Choice(original, seed))]


def test_random_any_depends_on_the_seed_alone():
    candidates = ["a", "b", "c", "d"]
    assert keep("random_any", candidates, seed=3) == keep("random_any", candidates, seed=3)
    assert {keep("random_any", candidates, seed=s)[0] for s in range(60)} == set(candidates)


def test_all_keeps_order():
    assert keep("all", ["b", "a", "b"]) == ["b", "a", "b"]


def test_simhash_keeps_the_nearest():
    original = "a red car drives down the road"
    assert keep("similar_one_simhash", ["a cat sleeps on the bed", original.upper()], original) == [original.upper()]


@pytest.mark.parametrize(
    ("original", "near", "far"),
    [
        ("一只小羊站在草地上讲话", "一只小羊站在草地上唱歌", "红色的汽车从左边开到右边"),
        ("赤い車が左から右へ走っている", "赤い車が左から右へ動いている", "猫が部屋の中で眠っている"),
        ("빨간자동차가왼쪽에서오른쪽으로간다", "빨간자동차가왼쪽에서오른쪽으로온다", "고양이가방에서잠을자고있다"),
    ],
    ids=["zh", "ja", "ko"],
)
def test_unspaced_scripts_are_compared_by_character(original, near, far):
    assert simhash(original) != 0
    assert keep("similar_one_simhash", [far, near], original) == [near]


def test_a_comparison_uses_one_reading_for_all_texts():
    original = "一只小羊 站在草地上 讲话"
    assert keep("similar_one_simhash", ["红色的汽车从左边开到右边", "一只小羊站在草地上讲话"], original) == [
        "一只小羊站在草地上讲话"
    ]


def test_simhash_sets_the_bits_of_more_than_half_of_the_bigrams():
    """The values of the package simhash-pybind for one, two and three bigrams."""
    one, two, three = (int(hashlib.md5(text).hexdigest()[:16], 16) for text in (b"a red", b"red car", b"car drives"))
    assert simhash("A  red") == one
    assert simhash("a red car") == one & two
    assert simhash("a red car drives") == (one & two) | (one & three) | (two & three)


@given(st.text(max_size=60))
def test_simhash_takes_any_text(text):
    assert 0 <= simhash(text) < 1 << 64
    assert hamming_distance(simhash(text), simhash(text)) == 0


def test_lone_surrogates_do_not_crash():
    assert simhash("a \ud800 b") > 0


def test_what_counts_as_unspaced():
    assert is_unspaced("白色的小羊")
    assert not is_unspaced("hello")
    assert not is_unspaced("白色的 小羊")


@pytest.mark.parametrize("mode", SELECTORS)
def test_whole_candidates_are_kept(mode):
    given = [Candidate("a", "stop", 3, -0.5), Candidate("b", "length", 9, -2.0)]
    assert all(any(one is other for other in given) for one in SELECTORS[mode](given, Choice("b", 1)))


def test_of_equal_texts_the_first_is_kept_whichever_was_drawn():
    given = [Candidate("a", reasoning=str(i)) for i in range(4)]
    for seed in range(20):
        assert SELECTORS["random_any"](given, Choice("", seed))[0] is given[0]
    assert SELECTORS["similar_one_simhash"](given, Choice("a", 0))[0] is given[0]
    assert SELECTORS["all"](given, Choice("", 0)) == given
