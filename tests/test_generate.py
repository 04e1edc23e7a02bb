"""Filters against transformers' own, the draw, and the loop over a model that is a table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from reelscribe.models.captioner import Sampling
from reelscribe.models.hf.generate import STEPS_BETWEEN_CHECKS_ELSEWHERE, Row, write
from reelscribe.models.hf.logits import (
    OFF,
    Knobs,
    draw,
    filter_scores,
    penalise_presence,
    penalise_repeats,
    uniforms_of,
)

CPU = torch.device("cpu")
PLAIN = {
    "max_tokens": 8,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "stop": (),
}


def sampling(**changes):
    return Sampling(**{**PLAIN, **changes})


def logits(rows=4, vocabulary=200, seed=0):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 4


def filtered(scores, **changes):
    return filter_scores(scores, Knobs.from_sampling([sampling(**changes)] * len(scores), device=CPU))


@pytest.mark.parametrize(
    ("settings", "warpers"),
    [
        ({"temperature": 0.7}, [TemperatureLogitsWarper(0.7)]),
        ({"top_k": 20}, [TopKLogitsWarper(20)]),
        ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
        ({"top_p": 1e-6}, [TopPLogitsWarper(1e-6)]),
        ({"min_p": 0.05}, [MinPLogitsWarper(0.05)]),
        ({"min_p": 1.0}, [MinPLogitsWarper(1.0)]),
        (
            {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
            [TemperatureLogitsWarper(1.3), TopKLogitsWarper(20), TopPLogitsWarper(0.9), MinPLogitsWarper(0.02)],
        ),
    ],
)
def test_filters_are_those_of_transformers(settings, warpers):
    scores = logits()
    expected = scores
    for warper in warpers:
        expected = warper(None, expected)
    torch.testing.assert_close(filtered(scores, **settings), expected)
    beside_a_free_row = Knobs.from_sampling([sampling(**settings)] * 4 + [sampling()], device=CPU)
    torch.testing.assert_close(filter_scores(torch.cat([scores, scores[:1]]), beside_a_free_row)[:4], expected)


def test_rows_keep_their_own_settings():
    scores = logits()
    settings = [sampling(top_k=3), sampling(top_p=0.5), sampling(min_p=0.3), sampling()]
    together = filter_scores(scores, Knobs.from_sampling(settings, device=CPU))
    for row, one in enumerate(settings):
        alone = filter_scores(scores[row : row + 1], Knobs.from_sampling([one], device=CPU))
        torch.testing.assert_close(together[row : row + 1], alone)
    assert torch.equal(together[3], scores[3])


def test_tokens_that_tie_at_the_edge_stay_together():
    scores = torch.tensor([[1.0, 3.0, 1.0, 0.0, 1.0]])
    assert (filtered(scores, top_k=2) > OFF).tolist() == [[True, True, True, False, True]]


def test_repetition_penalty_is_that_of_transformers():
    scores, ids = logits(), torch.randint(0, 200, (4, 30), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(4, 200, dtype=torch.bool).scatter_(1, ids, True)
    expected = RepetitionPenaltyLogitsProcessor(1.2)(ids, scores)
    torch.testing.assert_close(penalise_repeats(scores, seen, torch.full((4, 1), 1.2)), expected)


def test_presence_penalty_is_taken_once_from_each_written_token():
    written = torch.tensor([[True, False, True]])
    assert penalise_presence(torch.zeros(1, 3), written, torch.tensor([[0.5]])).tolist() == [[-0.5, 0, -0.5]]


def test_draws_follow_the_distribution():
    scores = torch.log(torch.tensor([0.5, 0.0, 0.2, 0.3])).expand(20_000, 4)
    uniforms = torch.from_numpy(uniforms_of(3, 0, 20_000))
    shares = torch.bincount(draw(scores, uniforms), minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.0, 0.2, 0.3]), atol=0.015, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 0.5, float(np.nextafter(np.float32(1), np.float32(0)))])
def test_a_draw_never_takes_a_token_that_is_out(uniform):
    scores = torch.full((1, 50_000), OFF)
    scores[0, [7, 99]] = torch.tensor([1.0, 0.5])
    assert draw(scores, torch.tensor([uniform])).item() in (7, 99)


def test_uniforms_depend_on_seed_and_candidate_alone():
    assert np.array_equal(uniforms_of(5, 1, 10), uniforms_of(5, 1, 20)[:10])
    drawn = [tuple(uniforms_of(seed, candidate, 4)) for seed in (0, 1, 2**64 + 5) for candidate in (0, 1)]
    assert len(set(drawn)) == len(drawn)


# The loop, over a "model" that is a table: the scores of the next token depend on the last one.

A, B, C, D, EOS = range(5)
LETTERS = "abcd"


class Table:
    """A continuation whose next scores are the row of the last token in a table `[V, V]`."""

    def __init__(self, table, starts):
        self._table = table
        self.logits = table[torch.tensor(starts)]
        self.sizes = [len(starts)]

    def advance(self, tokens):
        self.logits = self._table[tokens]
        self.sizes.append(len(tokens))

    def select(self, index):
        self.logits = self.logits.index_select(0, index)


def chain(*links):
    """Scores under which each link `(token, next)` is by far the likeliest."""
    table = torch.zeros(5, 5)
    for token, after in links:
        table[token, after] = 9.0
    return table


def text_of(tokens):
    return "".join(LETTERS[token] for token in tokens if token != EOS)


def written(model, settings, starts, prompts=None):
    prompts = prompts or list(range(len(settings)))
    rows = [
        Row(prompt, one, seed=7, candidate=i) for i, (prompt, one) in enumerate(zip(prompts, settings, strict=True))
    ]
    ids = torch.tensor(starts)[:, None]
    return write(model, rows, prompt_ids=ids, prompt_mask=torch.ones_like(ids), eos_ids={EOS}, text_of=text_of)


GREEDY = sampling(temperature=0.0)


def test_a_text_ends_with_the_end_token():
    table = chain((A, B), (B, C), (C, EOS))
    (one,) = written(Table(table, [A]), [GREEDY], [A])
    assert (one.text, one.finish_reason, one.tokens) == ("bc", "stop", 3)
    assert one.mean_logprob == pytest.approx(9 - math.log(math.exp(9) + 4), abs=1e-5)


def test_a_text_is_cut_at_max_tokens():
    (one,) = written(Table(chain((A, A)), [A]), [sampling(temperature=0.0, max_tokens=5)], [A])
    assert (one.text, one.finish_reason, one.tokens) == ("aaaaa", "length", 5)


# characters of several tokens


def byte_level():
    """A tokenizer of bytes as the ones of GPT, Qwen and Llama 3 are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {one: number for number, one in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return tokenizer, lambda text: tokenizer.encode(text).ids


def byte_fallback():
    """A tokenizer of sentencepiece's kind, which has a token for each byte of what it does not know: Gemma, Llama 2."""
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer, lambda text: list(text.encode())


def told_after(tokens, tokenizer, *, limit, eos=None):
    """What is written of a model that writes these tokens, or ends."""
    vocabulary = 400
    steps = iter([*tokens, *([] if eos is None else [eos])])

    class Script:
        def __init__(self):
            self.logits = None
            self.advance(None)

        def advance(self, _tokens):
            self.logits = torch.zeros(1, vocabulary)
            self.logits[0, next(steps)] = 9.0

        def select(self, index):
            self.logits = self.logits.index_select(0, index)

    ids = torch.zeros(1, 1, dtype=torch.long)
    row = Row(0, sampling(temperature=0.0, max_tokens=limit), seed=7, candidate=0)
    (one,) = write(
        Script(), [row], prompt_ids=ids, prompt_mask=torch.ones_like(ids), eos_ids={eos} if eos else set(),
        text_of=lambda written: tokenizer.decode([token for token in written if token != eos]),
    )  # fmt: skip
    return one


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
@pytest.mark.parametrize("text", ["一只猫跳上桌子。", "caf\u00e9 \U0001f408!", "\ufffd marks what is lost, 又\ufffd又"])
def test_a_text_that_is_cut_inside_a_character_ends_before_it(kind, text):
    tokenizer, tokens_of = kind()
    tokens, whole = tokens_of(text), ""
    for limit in range(1, len(tokens) + 1):
        one = told_after(tokens, tokenizer, limit=limit)
        whole = next((text[:n] for n in range(len(text), 0, -1) if len(tokens_of(text[:n])) <= limit), "")
        assert one.text == whole.rstrip("\ufffd"), limit
        assert (one.tokens, one.finish_reason) == (limit, "length")
    assert whole == text


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_a_model_that_ends_inside_a_character_is_no_other_case(kind):
    tokenizer, tokens_of = kind()
    one = told_after(tokens_of("一只猫")[:-1], tokenizer, limit=20, eos=300)
    assert (one.text, one.finish_reason, one.tokens) == ("一只", "stop", 9)


def test_rows_may_have_different_lengths():
    settings = [sampling(temperature=0.0, max_tokens=n) for n in (2, 6)]
    short, long = written(Table(chain((A, A)), [A, A]), settings, [A, A])
    assert (short.text, long.text) == ("aa", "aaaaaa")


@pytest.mark.parametrize(
    ("stop", "text", "tokens", "reason"),
    [
        (("cd",), "b", 3, "stop"),
        (("d", "c"), "b", 2, "stop"),
        (("x",), "bcd", 4, "stop"),
        (("b",), "", 1, "stop"),
    ],
)
def test_stop_strings_end_a_text_and_are_not_part_of_it(stop, text, tokens, reason):
    table = chain((A, B), (B, C), (C, D), (D, EOS))
    (one,) = written(Table(table, [A]), [sampling(temperature=0.0, stop=stop)], [A])
    assert (one.text, one.tokens, one.finish_reason) == (text, tokens, reason)


def test_stop_strings_are_found_between_checks_too(monkeypatch):
    monkeypatch.setattr("reelscribe.models.hf.generate.STEPS_BETWEEN_CHECKS", {"cpu": 4})
    table = chain((A, B), (B, C), (C, D), (D, A))
    model = Table(table, [A])
    (one,) = written(model, [sampling(temperature=0.0, max_tokens=20, stop=("cd",))], [A])
    assert (one.text, one.tokens, one.finish_reason) == ("b", 3, "stop")
    assert len(model.sizes) == 4


def test_on_an_accelerator_tokens_are_fetched_at_the_end_and_not_step_by_step(monkeypatch):
    """A look at which texts have ended takes two transfers, and is shared by several steps."""
    monkeypatch.setattr("reelscribe.models.hf.generate.STEPS_BETWEEN_CHECKS", {})
    fetched, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: (fetched.append(1), tolist(self))[1])
    monkeypatch.setattr(torch.Tensor, "item", None)

    def transfers(steps):
        fetched.clear()
        written(Table(chain((A, B), (B, A)), [A, A]), [sampling(temperature=0.0, max_tokens=steps)] * 2, [A, A])
        return len(fetched)

    assert transfers(64) - transfers(32) == 2 * 32 / STEPS_BETWEEN_CHECKS_ELSEWHERE


def test_ended_texts_leave_the_batch():
    table = chain((A, EOS), (B, C), (C, C))
    model = Table(table, [A, A, A, B])
    texts = written(model, [sampling(temperature=0.0, max_tokens=6)] * 4, [A, A, A, B])
    assert [one.text for one in texts] == ["", "", "", "cccccc"]
    assert model.sizes == [4, 1, 1, 1, 1, 1]


def test_candidates_differ_and_do_not_depend_on_the_batch():
    table = logits(5, 5, seed=4) / 4
    alone = [written(Table(table, [A]), [sampling(max_tokens=20)] * n, [A], [0] * n) for n in (1, 4)]
    assert alone[0][0].text == alone[1][0].text
    assert len({one.text for one in alone[1]}) > 1
    among = written(
        Table(table, [B, A]), [sampling(max_tokens=20), *[sampling(max_tokens=20)] * 3], [B, A], [0, 1, 1, 1]
    )
    assert [one.text for one in among[1:]] == [one.text for one in alone[1][1:]]


def test_greedy_and_sampled_rows_share_a_batch():
    table = logits(5, 5, seed=4) / 4
    mixed = written(Table(table, [A]), [GREEDY, sampling()], [A], [0, 0])
    assert mixed[0] == written(Table(table, [A]), [GREEDY], [A])[0]
    assert mixed[1].text == written(Table(table, [A]), [sampling(), sampling()], [A], [0, 0])[1].text


def test_the_prompt_counts_for_the_repetition_penalty_and_not_for_the_presence_penalty():
    table = torch.tensor([[1.0, 0.9, 0.0, 0.0, -9.0]]).expand(5, 5)
    repeats = sampling(temperature=0.0, max_tokens=1, repetition_penalty=2.0)
    presence = sampling(temperature=0.0, max_tokens=2, presence_penalty=0.5)
    first, second = written(Table(table, [A, A]), [repeats, presence], [A, A])
    assert first.text == "b"
    assert second.text == "ab"


def test_log_probabilities_are_of_the_raw_distribution():
    table = torch.tensor([[2.0, 1.0, 0.0, 0.0, -9.0]]).expand(5, 5)
    settings = sampling(temperature=0.0, max_tokens=1, repetition_penalty=4.0)
    (one,) = written(Table(table, [A]), [settings], [A])
    assert one.text == "b"
    assert one.mean_logprob == pytest.approx(float(table[0].log_softmax(-1)[B]))


def test_padding_is_not_part_of_the_prompt():
    table = torch.tensor([[1.0, 0.9, 0.0, 0.0, -9.0]]).expand(5, 5)
    row = Row(0, sampling(temperature=0.0, max_tokens=1, repetition_penalty=2.0), seed=0, candidate=0)
    ids, mask = torch.tensor([[A, C]]), torch.tensor([[0, 1]])
    (one,) = write(Table(table, [A]), [row], prompt_ids=ids, prompt_mask=mask, eos_ids={EOS}, text_of=text_of)
    assert one.text == "a"


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9, "top_k": 3}])
def test_numbers_that_are_not_finite_stay_in_their_row_and_show(settings):
    table = chain((A, B), (B, EOS))
    table[2] = float("nan")
    one = sampling(**settings)
    mixed = written(Table(table, [A, 2, A]), [one] * 3, [A, 2, A])
    clean = written(Table(table, [A, A, A]), [one] * 3, [A, A, A])
    assert [mixed[0], mixed[2]] == [clean[0], clean[2]]
    assert math.isnan(mixed[1].mean_logprob)
