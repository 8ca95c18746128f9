"""The plan of a volume on its host: from every state to every wish."""

from __future__ import annotations

import itertools

from pileus.storage.volume.plan import GIB, Fact, Step, Wish, plan


def after(wish: Wish, fact: Fact, step: Step) -> tuple[Wish, Fact]:
    """Return wish and fact once the step was done; who used the file lets go while one waits."""
    match step.verb:
        case "fetch_image":
            return Wish(deleting=False, size_bytes=wish.size_bytes), fact
        case "create" | "resize":
            return wish, Fact(size_bytes=wish.size_bytes)
        case "delete":
            return wish, Fact()
    return Wish(deleting=wish.deleting, size_bytes=wish.size_bytes), fact


def test_every_state_reaches_every_wish_and_then_nothing_is_left_to_do() -> None:
    sizes = (None, GIB, 2 * GIB, 3 * GIB)
    for deleting, used, image, size in itertools.product((False, True), (False, True), (False, True), sizes):
        wish = Wish(deleting=deleting, size_bytes=2 * GIB, used=used, image_needed=image)
        fact = Fact(size_bytes=size)
        for _ in range(5):
            step = plan(wish, fact)
            if step is None:
                break
            wish, fact = after(wish, fact, step)
        assert plan(wish, fact) is None
        if deleting:
            assert fact.size_bytes is None
        else:
            assert fact.size_bytes is not None
            assert fact.size_bytes >= 2 * GIB or used


def test_a_file_that_a_vm_has_open_is_neither_removed_nor_resized() -> None:
    for deleting, size in itertools.product((False, True), (GIB, 2 * GIB)):
        step = plan(Wish(deleting=deleting, size_bytes=2 * GIB, used=True), Fact(size_bytes=size))
        assert step is None or step.verb == "wait"


def test_a_volume_that_was_made_and_is_lost_is_not_made_again_and_can_be_deleted() -> None:
    lost = Fact(made=True)
    for image_needed, used in itertools.product((False, True), (False, True)):
        assert plan(Wish(deleting=False, size_bytes=GIB, image_needed=image_needed, used=used), lost) is None
    assert plan(Wish(deleting=True, size_bytes=GIB), lost) == Step(verb="delete")


def test_a_volume_never_shrinks() -> None:
    assert plan(Wish(deleting=False, size_bytes=GIB), Fact(size_bytes=2 * GIB)) is None
