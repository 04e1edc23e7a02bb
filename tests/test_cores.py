"""Cores between the model and what is prepared beside it."""

from __future__ import annotations

import threading

import pytest
import torch

from reelscribe.models.hf import cores


@pytest.mark.parametrize(("device", "computing", "left"), [("cpu", 1, True), ("cpu", 4, False), ("cuda", 4, True)])
def test_a_model_leaves_a_core_unless_it_computes_on_all_of_them(monkeypatch, device, computing, left):
    monkeypatch.setattr(cores, "usable_processors", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: computing)
    assert cores.leaves_a_core(torch.device(device)) == left


def in_a_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


@pytest.fixture
def four_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_one_thread_computes_on_fewer_cores_and_no_other_is_touched(four_cores):
    assert in_a_thread(lambda: (cores.compute_on(1, others=4), torch.get_num_threads())[1]) == 1
    assert torch.get_num_threads() == 4
    assert in_a_thread(torch.get_num_threads) == 4


@pytest.mark.parametrize(("number", "parts"), [(4, (2, 2)), (3, (2, 1)), (2, (1, 1))])
def test_lanes_divide_the_cores_and_the_last_one_has_them_all(four_cores, number, parts):
    torch.set_num_threads(number)
    shared = cores.SharedCores(2)

    def lane(which):
        found = []
        for alone in (False, True):
            shared.take(which, alone=alone)
            found.append(torch.get_num_threads())
        return tuple(found)

    for which, part in enumerate(parts):
        assert in_a_thread(lambda which=which: lane(which)) == (part, number)
        assert in_a_thread(torch.get_num_threads) == number, "threads that begin later have what there was"
    assert in_a_thread(lambda: (shared.keep_to_one(), torch.get_num_threads())[1]) == 1
    assert in_a_thread(torch.get_num_threads) == torch.get_num_threads() == number


class Rotary(torch.nn.Module):
    def __init__(self, rope_type):
        super().__init__()
        self.rope_type = rope_type


@pytest.mark.parametrize(
    ("device", "module", "rope_type", "computing", "lanes"),
    [
        ("cpu", "transformers.models.qwen3_vl.modeling_qwen3_vl", "default", 4, 2),
        ("cpu", "transformers.models.qwen3_vl.modeling_qwen3_vl", "default", 1, 1),
        ("cuda", "transformers.models.qwen3_vl.modeling_qwen3_vl", "default", 4, 1),
        ("cpu", "transformers_modules.someones_own.modeling", "default", 4, 1),
        ("cpu", "transformers.models.qwen3_vl.modeling_qwen3_vl", "dynamic", 4, 1),
        ("cpu", "transformers.models.qwen3_vl.modeling_qwen3_vl", {"full": "longrope"}, 4, 1),
    ],
)
def test_lanes_are_for_cores_and_for_models_without_a_state(monkeypatch, device, module, rope_type, computing, lanes):
    model = type("Model", (torch.nn.Module,), {"__module__": module, "device": torch.device(device)})()
    model.rotary = Rotary(rope_type)
    monkeypatch.setattr(torch, "get_num_threads", lambda: computing)
    assert cores.lanes_for(model) == lanes
