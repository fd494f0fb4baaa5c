"""Settling what remains open once a forward pass has been followed: whether rows of channels are left out, or cut."""

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from diastole.models.networks.custom.follow.marks import Bond, Book, compact, varies


def settle(book: Book, group: int) -> None:
    """Settle the bonds of rows, as far as it depends on sizes alone.

    Rows are left out whole if `group` is a multiple of their size, as heads of an attention are; else all of them lose
    the same channels.
    """
    news = True
    while news:
        news = any(set(map(partial(_settled, book, group), book.bonds)))


def rows_of(book: Book, bond: Bond) -> list[Tensor]:
    """Return the channels of each tensor of a bond, `[rows, channels of a row]`, as they are known now."""
    first = bond.rows[0]
    if len(bond.rows) > 1 or first.ndim == 2:
        return [book.root[each] for each in bond.rows]
    mark = compact(book.root[first])
    if len(varies(mark)) < 2:
        return [mark.reshape(1, -1)]
    axis = min(varies(mark))
    return [mark.movedim(axis, 0).reshape(mark.shape[axis], -1)]


def blocks(book: Book) -> list[tuple[Bond, Tensor]]:
    """Return the bonds whose rows may be left out whole, each with its rows."""
    found = [(bond, rows_of(book, bond)[0]) for bond in book.bonds if not bond.apart]
    return [(bond, rows) for bond, rows in found if not bool((rows == rows[:1]).all())]


def torn(rows: Tensor, sets: Mapping[str, Sequence[int]]) -> bool:
    """Return whether rows are not consecutive channels of one set each, counted from a multiple of their size."""
    place = {channel: (name, k) for name, members in sets.items() for k, channel in enumerate(members)}
    size = rows.shape[1]
    for row in rows.tolist():
        name, start = place.get(row[0], ("", 1))
        if start % size or [place.get(channel) for channel in row] != [(name, start + k) for k in range(size)]:
            return True
    return False


def _settled(book: Book, group: int, bond: Bond) -> bool:
    """Note what follows from a bond; return whether this is news."""
    found = rows_of(book, bond)
    first = found[0]
    if not bond.apart and not all(bool((each == each[:1]).all()) for each in found):
        alike = {each.shape[1] for each in found} == {first.shape[1]}
        if alike and not group % first.shape[1] and all(bool((each != 0).all()) for each in found):
            news = [book.same(first, each) for each in found[1:]]
            return any([*news, book.whole(bond.inner)])
    bond.apart = True
    news = [book.whole([each]) if each.shape[1] == 1 else book.same(each, each[:1]) for each in found if len(each) > 1]
    return any([*news, *[book.same(each.view(1, -1), first) for each in bond.inner if len(each) == first.shape[1]]])
