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


def test_a_model_gives_cores_up_while_it_waits_and_takes_them_back(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with cores.ModelCores(torch.device("cpu")) as shared:
            shared.note(waited_seconds=1, busy_seconds=0)
            assert shared.count == 4, "the first batch is waited for"
            for expected in (4, 3, 2, 1, 1):
                shared.note(waited_seconds=1, busy_seconds=1)
                assert shared.count == torch.get_num_threads() == expected
            for expected in (1, 1, 1, 2, 3, 4, 4):
                shared.note(waited_seconds=0.04, busy_seconds=1)
                assert shared.count == torch.get_num_threads() == expected
            shared.note(waited_seconds=0.2, busy_seconds=1)
            assert shared.count == 4, "one late clip says nothing"
            shared.note(waited_seconds=1, busy_seconds=1)
        assert torch.get_num_threads() == 4, "as before"
    finally:
        torch.set_num_threads(before)


def test_elsewhere_and_where_the_user_chose_the_number_stays(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        chosen = cores.ModelCores(torch.device("cpu"))
        monkeypatch.delenv("OMP_NUM_THREADS")
        for shared in (chosen, cores.ModelCores(torch.device("meta"))):
            with shared:
                for _ in range(3):
                    shared.note(waited_seconds=1, busy_seconds=1)
            assert shared.count == torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
