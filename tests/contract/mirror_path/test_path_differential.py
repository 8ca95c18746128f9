"""The XDP program and Python's parser are of one opinion: verdict, reason, bytes and counts of every frame."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.contract.mirror_path import corpus

from pileus.node.ebpf import kernel
from pileus.node.mirror import wire
from pileus.node.mirror.sessions import Counts, Sessions
from pileus.node.mirror.xdp import XdpPath

SEED = 20_260_731
FUZZED_IN_CI, FUZZED = 20_000, 1_000_000
VERDICTS = {kernel.XDP_REDIRECT: "sniffers", kernel.XDP_PASS: "store"}
SLOTS = [key & wire.SLOT_MASK for key in (corpus.TAP, corpus.KEPT, corpus.SWITCH)]


def test_a_systematic_corpus_is_judged_alike(path: XdpPath) -> None:
    frames = [frame for frame in corpus.systematic(random.Random(SEED)) if len(frame) >= 14]
    assert len(frames) > 4000
    oracle = _compare(path, frames)
    assert all(oracle.refused()[reason] for reason in wire.REASONS), oracle.refused()
    assert all(counts is not None and counts.received > 50 for counts in map(oracle.counts, SLOTS))


def test_wild_frames_are_judged_alike(path: XdpPath) -> None:
    _compare(path, corpus.wild(random.Random(SEED), FUZZED_IN_CI))


@pytest.mark.long
def test_a_million_wild_frames_are_judged_alike_and_leave_nothing(path: XdpPath) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    _compare(path, corpus.wild(rng, FUZZED // 10))
    before = _open_files(), _resident_kib()
    path.close()
    for _ in range(9):
        path = XdpPath(sniffers=1)
        _compare(path, corpus.wild(rng, FUZZED // 10))
        after = _open_files(), _resident_kib()
        path.close()
    assert after[0] == before[0]
    assert after[1] - before[1] < 1024, "KiB more than after the first tenth"


def test_numbers_go_on_above_32_bits(path: XdpPath) -> None:
    top = (1 << 32) - 2
    oracle = _compare(path, (_own(number) for number in [top, 1 << 32, (1 << 32) - 1, (1 << 32) + 1, top]))
    counts = oracle.counts(SLOTS[0])
    assert counts is not None
    assert (counts.first, counts.highest, counts.received) == (top, (1 << 32) + 1, 5)


def test_another_key_in_a_slot_starts_counts_anew_and_the_same_one_goes_on(path: XdpPath) -> None:
    corpus.furnish(path)
    slot, other = SLOTS[0], corpus.TAP + (1 << 16)
    for number in range(3):
        kernel.run_test(path.program, _own(number))
    path.put(slot, other, corpus.SOURCE, "sniffers")
    found = path.counts(slot)
    assert found is not None
    assert found.received == 0
    assert kernel.run_test(path.program, _own(3))[0] == kernel.XDP_DROP
    kernel.run_test(path.program, _own(9, other))
    found = path.counts(slot)
    assert found is not None
    assert (found.received, found.first, found.highest, found.forwarded) == (1, 9, 9, 1)
    path.put(slot, other, corpus.SOURCE, "store")
    assert kernel.run_test(path.program, _own(10, other))[0] == kernel.XDP_PASS
    found = path.counts(slot)
    assert found is not None
    assert (found.received, found.first, found.highest) == (2, 9, 10)


def test_a_removed_session_takes_nothing_and_has_no_counts(path: XdpPath) -> None:
    corpus.furnish(path)
    path.remove(SLOTS[0])
    path.remove(SLOTS[0])
    assert kernel.run_test(path.program, _own(1))[0] == kernel.XDP_DROP
    assert path.counts(SLOTS[0]) is None
    assert path.refused()["unknown-session"] == 1


def test_a_session_that_comes_back_counts_anew(path: XdpPath) -> None:
    oracle = Sessions()
    for each in (path, oracle):
        corpus.furnish(each)
    for number in (4, 5, 6):
        kernel.run_test(path.program, _own(number))
        oracle.take(_own(number))
        for each in (path, oracle):
            each.remove(SLOTS[0])
            each.put(SLOTS[0], corpus.TAP, corpus.SOURCE, "sniffers")
        assert path.counts(SLOTS[0]) == oracle.counts(SLOTS[0]) == Counts()


def test_a_removed_foreign_session_takes_nothing(path: XdpPath) -> None:
    corpus.furnish(path)
    frame = wire.encapsulate(wire.Header(source=corpus.SOURCE, erspan=2, session=77), bytes(60))
    assert kernel.run_test(path.program, frame)[0] == kernel.XDP_REDIRECT
    path.remove_foreign(corpus.SOURCE, 77, 2)
    path.remove_foreign(corpus.SOURCE, 77, 2)
    assert kernel.run_test(path.program, frame)[0] == kernel.XDP_DROP


@pytest.mark.parametrize(("slot", "key"), [(6, corpus.TAP), (5, 1 << 58 | 5), (5, -1), (2000, 2000)])
def test_a_session_that_cannot_be_is_refused(path: XdpPath, slot: int, key: int) -> None:
    with pytest.raises(ValueError, match="slot"):
        path.put(slot, key, corpus.SOURCE, "store")


def _own(number: int, key: int = corpus.TAP) -> bytes:
    return wire.encapsulate(wire.own_header(key, corpus.SOURCE, number), bytes(60))


def _compare(path: XdpPath, frames: Iterable[bytes]) -> Sessions:
    oracle = Sessions()
    for each in (path, oracle):
        corpus.furnish(each)
    for frame in frames:
        verdict, out, _ = kernel.run_test(path.program, frame)
        found = (VERDICTS[verdict], out) if verdict in VERDICTS else None
        assert (verdict in VERDICTS) == (verdict != kernel.XDP_DROP), frame.hex()
        assert found == oracle.take(frame), frame.hex()
    assert path.refused() == oracle.refused()
    for slot in SLOTS:
        assert path.counts(slot) == oracle.counts(slot)
    return oracle


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _resident_kib() -> int:
    text = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS:")))
