"""What programs of several mounts did to a few names, and whether one order of it explains every answer.

The checker is just-in-time linearization (Lowe, Testing for linearizability, Concurrency and Computation 29(4),
2017): it walks the journal in the order of time with the set of all *configurations* that may be true - the
names as they are, and how far each call that is under way has got - and lets calls take effect only as late
as an answer demands. No configuration left: no order explains that answer.

A call is not always one step, on one machine neither: stat(2) finds an inode by its name, and then asks that
inode for its attributes; link(2) finds what it links, and then links it; a rename(2) that fails may have
looked at its two names one after the other. Each call is therefore a small automaton here. Steps that change
nothing are taken as soon as they can be, which never loses an order: having seen more is never worse.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

PATHS: Final = tuple(f"{directory}/{name}" for directory in ("a", "b") for name in ("x", "y", "z"))
"""The names: three in each of two directories."""

DIRECTORY: Final = -1
"""Stands for any directory: all of them are empty."""

CONFIGURATIONS_MAX: Final = 200_000
"""More than so many at once would be a history that cannot be judged in reasonable time."""

STORY_LENGTH: Final = 60
"""Calls told that began before the one that is not explained had ended."""

State = tuple[int | None, ...]
"""What each of `PATHS` stands for: an inode's number, `DIRECTORY`, or nothing."""

EMPTY: Final[State] = (None,) * len(PATHS)


class Call(Enum):
    """What programs do."""

    CREATE = "create"  # O_CREAT | O_EXCL; its answer is the inode's number
    OPEN = "open"  # O_CREAT; likewise
    MKDIR = "mkdir"
    UNLINK = "unlink"
    RMDIR = "rmdir"
    LINK = "link"
    RENAME = "rename"
    NOREPLACE = "noreplace"
    EXCHANGE = "exchange"
    STAT = "stat"  # the inode's number and its links; of a directory only that it is one
    LINKS = "links"  # fstat(2) of an open file: *paths* is empty, *inode* says of which
    LISTED = "listed"  # one name of a listing: whether it was there
    UNLISTED = "unlisted"


def told_by_listing(directory: str, names: Iterable[str]) -> Iterator[tuple[Call, int]]:
    """What a listing of *directory*, with these *names* in it, tells: of each of its paths one call."""
    there = {f"{directory}/{name}" for name in names}
    for number, path in enumerate(PATHS):
        if path.startswith(directory):
            yield (Call.LISTED if path in there else Call.UNLISTED), number


@dataclass(frozen=True, slots=True)
class Done:
    """One call of a program: from *begin* to *end* on the one clock of this machine, in nanoseconds. *error* is
    0 or an errno; *inode* and *links* are what the call told, where it tells that."""

    begin: int
    end: int
    mount: str
    call: Call
    paths: tuple[int, ...]
    error: int = 0
    inode: int = 0
    links: int = 0

    def __str__(self) -> str:
        names = " ".join(PATHS[path] for path in self.paths)
        answer = errno.errorcode[self.error] if self.error else f"{self.inode or ''} {self.links or ''}".strip()
        return f"[{self.begin}, {self.end}] {self.mount}: {self.call.value} {names} = {answer or 'done'}"


class Unexplained(AssertionError):
    """No order of the calls explains an answer."""


Change = tuple[tuple[int, int | None], ...]
"""Paths, and what each of them stood for before a call changed it."""

Seen = frozenset[int | Change]
"""What a call that is under way has seen so far: inodes' numbers, and markers of the automaton."""

_DONE: Final = -2
FINISHED: Final[Seen] = frozenset({_DONE})
_SECOND: Final = -3  # the marker: the second of two facts was seen

Pending = tuple[tuple[int, Seen], ...]
"""By their numbers in the history, the calls under way that have taken a step."""

Configuration = tuple[State, Pending]


def _with(state: State, *changes: tuple[int, int | None]) -> State:
    changed = list(state)
    for path, value in changes:
        changed[path] = value
    return tuple(changed)


# --- steps that change nothing: taken eagerly ---


def _look(done: Done, state: State, seen: Seen, miscounted: Collection[int] = ()) -> Seen:
    """What *done* has seen when it looks at *state*; `FINISHED` if that explains its answer. *miscounted*: see
    `_Walk._miscounted`."""
    if done.error == errno.ESTALE:
        return _look_stale(done, state, seen)
    if done.error == errno.EIO and done.call in _RENAMES:
        return _look_bad(done, state, seen)
    match done.call:
        case Call.STAT:
            return _look_stat(done, state, seen)
        case Call.LINKS:
            return FINISHED if state.count(done.inode) == done.links else seen
        case Call.LISTED:
            return FINISHED if state[done.paths[0]] is not None else seen
        case Call.UNLISTED:
            return FINISHED if state[done.paths[0]] is None else seen
        case Call.OPEN if not done.error:
            # Not FINISHED: its number may be in use again, for one that this call makes.
            return seen | {_SECOND} if state[done.paths[0]] == done.inode else seen
        case Call.LINK:
            return _look_link(done, state, seen, miscounted)
        case Call.RENAME | Call.EXCHANGE if not done.error:
            return _look_same(done, state, seen)
        case Call.RENAME | Call.NOREPLACE | Call.EXCHANGE if done.error:
            return _look_failed_rename(done, state, seen)
        case _:
            return FINISHED if done.error and _fails(done, state[done.paths[0]]) else seen


def _fails(done: Done, value: int | None) -> bool:
    """Whether a call on one name fails as it did when the name stands for *value*."""
    match done.call, done.error:
        case (Call.CREATE | Call.MKDIR, errno.EEXIST):
            return value is not None
        case (Call.OPEN | Call.UNLINK, errno.EISDIR):
            return value == DIRECTORY
        case (Call.UNLINK | Call.RMDIR, errno.ENOENT):
            return value is None
        case (Call.RMDIR, errno.ENOTDIR):
            return value is not None and value != DIRECTORY
    raise Unexplained(f"an answer that this call never gives: {done}")


_BY_INODE: Final = frozenset({Call.STAT, Call.OPEN, Call.LINK})


def _look_stale(done: Done, state: State, seen: Seen) -> Seen:
    """ESTALE after the kernel has tried twice. Two limits (docs/coherence.md): an inode was found by its name,
    and gone when it was asked. And a directory was found where another client had moved it to, while a rename
    was under way here: then the kernel does not move its own (__d_unalias() in fs/dcache.c)."""
    if any(state[path] == DIRECTORY for path in done.paths):
        return FINISHED
    if done.call not in _BY_INODE:
        return seen
    value = state[done.paths[0]]
    gone = any(inode not in state for inode in seen)
    return FINISHED if gone else seen if value is None else seen | {value}


_RENAMES: Final = frozenset({Call.RENAME, Call.NOREPLACE, Call.EXCHANGE})


def _look_bad(done: Done, state: State, seen: Seen) -> Seen:
    """EIO for a directory that was to move to another one, and was removed by another client meanwhile, if its
    number has been given to an inode that is looked up here at that moment. A limit (docs/coherence.md)."""
    if len({PATHS[path][0] for path in done.paths}) == 1:
        return seen
    moved = done.paths if done.call is Call.EXCHANGE else done.paths[:1]
    for marker, path in zip((0, _SECOND), moved, strict=False):
        if state[path] == DIRECTORY:
            seen |= {marker}
        elif marker in seen:
            return FINISHED
    return seen


def _look_stat(done: Done, state: State, seen: Seen) -> Seen:
    value = state[done.paths[0]]
    if done.error or done.inode == DIRECTORY:
        return FINISHED if value == (None if done.error else DIRECTORY) else seen
    if value == done.inode:
        seen |= {done.inode}
    return FINISHED if done.inode in seen and state.count(done.inode) == done.links else seen


def _look_link(done: Done, state: State, seen: Seen, miscounted: Collection[int]) -> Seen:
    source, target = (state[path] for path in done.paths)
    if source is not None:
        seen |= {source}
    match done.error:
        case 0:
            return seen
        case errno.ENOENT:  # no such name, or it went away between the look at it and the deed
            gone = any(inode != DIRECTORY and (inode not in state or inode in miscounted) for inode in seen)
            return FINISHED if source is None or gone else seen
        case errno.EEXIST:
            seen |= {_SECOND} if target is not None else set()
            return FINISHED if _SECOND in seen and len(seen) > 1 else seen
        case errno.EPERM:
            return FINISHED if DIRECTORY in seen else seen
    raise Unexplained(f"an answer that this call never gives: {done}")


def _look_same(done: Done, state: State, seen: Seen) -> Seen:
    """Two names of one inode, at one moment: rename(2) does nothing then (vfs_rename() in fs/namei.c), as the
    kernel decides by itself. It may decide so, and it may not: so this finishes nothing, see `_act`."""
    source, target = (state[path] for path in done.paths)
    return seen | {_SECOND} if source is not None and source == target else seen


def _look_failed_rename(done: Done, state: State, seen: Seen) -> Seen:
    source, target = (state[path] for path in done.paths)
    match done.call, done.error:
        case (_, errno.ENOENT):
            absent = source is None or (done.call is Call.EXCHANGE and target is None)
            return FINISHED if absent else seen
        case (Call.NOREPLACE, errno.EEXIST):
            first, second = source is not None, target is not None
        case (Call.RENAME, errno.EISDIR):
            first, second = source not in (None, DIRECTORY), target == DIRECTORY
        case (Call.RENAME, errno.ENOTDIR):
            first, second = source == DIRECTORY, target not in (None, DIRECTORY)
        case _:
            raise Unexplained(f"an answer that this call never gives: {done}")
    seen |= ({0} if first else set()) | ({_SECOND} if second else set())
    return FINISHED if {0, _SECOND} <= seen else seen


# --- steps that change something ---


def _act(done: Done, state: State, seen: Seen) -> Iterator[State]:
    """The states in which *done* may leave the names that it finds in *state*."""
    if done.error:
        return
    first = done.paths[0] if done.paths else 0
    match done.call:
        case Call.CREATE | Call.OPEN:
            if _SECOND in seen:
                yield state
            # The inode is open while the call tells its number, so no other has it.
            if state[first] is None and done.inode not in state:
                yield _with(state, (first, done.inode))
        case Call.MKDIR:
            if state[first] is None:
                yield _with(state, (first, DIRECTORY))
        case Call.UNLINK:
            if state[first] not in (None, DIRECTORY):
                yield _with(state, (first, None))
        case Call.RMDIR:
            if state[first] == DIRECTORY:
                yield _with(state, (first, None))
        case Call.LINK:
            second = done.paths[1]
            if state[second] is None:
                for inode in seen:
                    if inode != DIRECTORY and inode in state:
                        yield _with(state, (second, inode))
        case Call.RENAME | Call.NOREPLACE:
            if _SECOND in seen:
                yield state
            yield from _renamed(done, state)
        case Call.EXCHANGE:
            if _SECOND in seen:
                yield state
            source, target = (state[path] for path in done.paths)
            if source is not None and target is not None:
                yield _with(state, (done.paths[0], target), (done.paths[1], source))


def _renamed(done: Done, state: State) -> Iterator[State]:
    source, target = (state[path] for path in done.paths)
    if source is None or (target is not None and done.call is Call.NOREPLACE):
        return
    if target is not None and (source == DIRECTORY) != (target == DIRECTORY):
        return
    if source == target and source != DIRECTORY:
        yield state
    else:
        yield _with(state, (done.paths[0], None), (done.paths[1], source))


# --- the walk ---


class _Walk:
    """All configurations that may be true, and the calls under way."""

    def __init__(self, start: State) -> None:
        self.configurations: set[Configuration] = {(start, ())}
        self._under_way: dict[int, Done] = {}
        self._lost_names: set[tuple[str, int]] = set()
        """Mounts, and inodes of which a call there has removed one name and left others."""

    def begin(self, number: int, done: Done) -> None:
        self._under_way[number] = done
        self.configurations = {self._looked(state, dict(seen)) for state, seen in self.configurations}

    def end(self, number: int) -> None:
        """The call has been answered: only what explains that stays."""
        explained: set[Configuration] = set()
        visited = set(self.configurations)
        stack = list(visited)
        while stack:
            configuration = stack.pop()
            if any(other == number and _DONE in seen for other, seen in configuration[1]):
                state, pending = configuration
                explained.add((state, tuple(item for item in pending if item[0] != number)))
                continue  # what else may happen, may happen later
            for following in self._steps(configuration):
                if following not in visited:
                    visited.add(following)
                    stack.append(following)
            if len(visited) > CONFIGURATIONS_MAX:
                raise RuntimeError(f"too many orders at call {number}: {self._under_way[number]}")
        if not explained:
            raise Unexplained(self._story(number))
        self.configurations = explained
        del self._under_way[number]

    def _steps(self, configuration: Configuration) -> Iterator[Configuration]:
        state, pending = configuration
        progress = dict(pending)
        for number, done in self._under_way.items():
            seen = progress.get(number, frozenset())
            if _DONE in seen:
                continue
            for after in _act(done, state, seen):
                changed = tuple(
                    (path, old) for path, (old, new) in enumerate(zip(state, after, strict=True)) if old != new
                )
                left = {old for _, old in changed if old is not None and old in after}
                self._lost_names.update((done.mount, inode) for inode in left)
                yield self._looked(after, {**progress, number: FINISHED | {changed}})

    def _looked(self, state: State, progress: dict[int, Seen]) -> Configuration:
        for number, done in self._under_way.items():
            seen = progress.get(number, frozenset())
            if _DONE in seen:
                continue
            views = list(self._views(done.mount, state, progress))
            miscounted = self._miscounted(done, state)
            before: Seen | None = None
            while seen != before and _DONE not in seen:  # one look may be at the one view, the next at another
                before = seen
                for view in views:
                    if _DONE not in seen:
                        seen = _look(done, view, seen, miscounted)
            if seen:
                progress[number] = seen
        return state, tuple(sorted(progress.items(), key=lambda item: item[0]))

    def _miscounted(self, link: Done, state: State) -> set[int]:
        """The inodes that *link* may be refused with ENOENT, although *state* has names of them. A limit
        (docs/coherence.md): the kernel counts links down by itself when it removes a name, from what it was
        told last."""
        if link.call is not Call.LINK or link.error != errno.ENOENT:
            return set()
        found = {inode for mount, inode in self._lost_names if mount == link.mount}
        return found - {DIRECTORY}

    def _views(self, mount: str, state: State, progress: dict[int, Seen]) -> Iterator[State]:
        """What programs of *mount* may find: *state*; or what was before a call of one of them that is still
        under way. A gap (docs/coherence.md): the kernel changes its own names when it has the answer, and
        other clients may know by then."""
        yield state
        changes = [
            change
            for number, seen in progress.items()
            if _DONE in seen and self._under_way[number].mount == mount
            for change in seen
            if isinstance(change, tuple) and change
        ]
        for change in changes:
            yield _with(state, *change)
        if len(changes) > 1:
            yield _with(state, *(item for change in changes for item in change))

    def _story(self, number: int) -> str:
        states = {state for state, _ in self.configurations}
        lines = [f"no order explains {self._under_way[number]}", "under way besides:"]
        lines += [f"  {done}" for other, done in self._under_way.items() if other != number]
        lines += ["the names before it were one of:"]
        lines += [f"  {_words(state)}" for state in sorted(states, key=str)[:10]]
        return "\n".join(lines)


def _words(state: State) -> str:
    there = (f"{path}={value}" for path, value in zip(PATHS, state, strict=True) if value is not None)
    return " ".join(there) or "nothing"


def check(history: Iterable[Done], start: State = EMPTY) -> set[State]:
    """What the names may be at the end of *history*; raises `Unexplained` if no order explains its answers."""
    calls = sorted(history, key=lambda done: done.begin)
    events = [(done.begin, 0, number) for number, done in enumerate(calls)]
    events += [(done.end, 1, number) for number, done in enumerate(calls)]
    walk = _Walk(start)
    for at, (_, is_end, number) in enumerate(sorted(events)):
        try:
            if is_end:
                walk.end(number)
            else:
                walk.begin(number, calls[number])
        except Unexplained as exc:
            recent = [str(done) for done in calls[:number][-12:]]
            recent += [str(done) for done in calls[number:] if done.begin < calls[number].end][:STORY_LENGTH]
            raise Unexplained(f"{exc}\nat event {at}; calls around it:\n  " + "\n  ".join(recent)) from None
    return {state for state, _ in walk.configurations}
