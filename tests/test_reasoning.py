"""The marks of reasoning in texts, and the split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reelscribe.reasoning import MARKS, Split, split

ANSWER = "A red car drives by."
THINK = MARKS[0]


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        (ANSWER, ANSWER, None),
        (f"  {ANSWER}\n", f"  {ANSWER}\n", None),
        (f"<think>Let me look.</think>\n\n{ANSWER}", ANSWER, "Let me look."),
        (f"\n<think>\nLet me look.\n</think>{ANSWER}", ANSWER, "Let me look."),
        (f"<think></think>{ANSWER}", ANSWER, ""),
        (f"Okay, the user\n</think>\n\n{ANSWER}", ANSWER, "Okay, the user"),
        (f"<think>a</think>b</think>{ANSWER}", ANSWER, "a\n\nb"),
        (f"<think>a</think>{ANSWER}<think>b</think>", ANSWER, "a\n\nb"),
        (f"{ANSWER}<think>and then", ANSWER, "and then"),
        ("<think>Okay, the user wants a d", "", "Okay, the user wants a d"),
        ("<think>Okay</think>", "", "Okay"),
        (f"<think>a</think><answer><|begin_of_box|>{ANSWER}<|end_of_box|></answer>", ANSWER, "a"),
        ("<think>a</think><answer>It is <|begin_of_box|>red<|end_of_box|>.", "It is red.", "a"),
        (f"<answer>{ANSWER}</answer>", ANSWER, None),
        (f"{ANSWER}<|end_of_box|></answer>", ANSWER, None),
        (f"<|channel>thought\nLet me look.<channel|>{ANSWER}", ANSWER, "Let me look."),
        (
            "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>final<|message|>" + ANSWER,
            ANSWER, "Look.",
        ),
        (f"<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>{ANSWER}<|END_RESPONSE|>", ANSWER, "a"),
        (f"◁think▷a◁/think▷{ANSWER}", ANSWER, "a"),
        (f"<seed:think>a</seed:think>{ANSWER}", ANSWER, "a"),
        (f"[THINK]a[/THINK]{ANSWER}", ANSWER, "a"),
        (f"<thinking>a</thinking>{ANSWER}", ANSWER, "a"),
        ("A sign shows 2 < 3 and a <b> tag.", "A sign shows 2 < 3 and a <b> tag.", None),
    ],
)  # fmt: skip
def test_a_text_is_parted(text, answer, reasoning):
    assert split(text) == Split(answer, reasoning)


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        (f"a\n</think>\n\n{ANSWER}", ANSWER, "a"),
        ("Okay, the user wants a d", "", "Okay, the user wants a d"),
        ("", "", ""),
        (f"a <think> b </think>{ANSWER}", ANSWER, "a <think> b"),
    ],
)
def test_reasoning_that_the_prompt_opened_counts(text, answer, reasoning):
    assert split(text, opened=THINK) == Split(answer, reasoning)


@given(
    st.lists(st.sampled_from([*(one.open for one in MARKS), *(one.close for one in MARKS), "a b", " ", "<think", ">"]))
)
def test_no_mark_stays_in_an_answer_and_a_second_split_changes_nothing(pieces):
    found = split("".join(pieces))
    assert not any(one.open in found.answer or one.close in found.answer for one in MARKS)
    assert split(found.answer) == Split(found.answer, None)
