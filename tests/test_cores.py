"""Cores between the model and what is prepared beside it."""

from __future__ import annotations

import threading

import pytest
import torch

from reelscribe.models import cores


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


def test_one_thread_keeps_to_one_core_and_no_other_is_touched():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert in_a_thread(lambda: (cores.keep_to_one_core(), torch.get_num_threads())[1]) == 1
        assert torch.get_num_threads() == 2
        assert in_a_thread(torch.get_num_threads) == 2
    finally:
        torch.set_num_threads(before)
