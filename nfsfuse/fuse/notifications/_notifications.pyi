from typing import final

@final
class Notification:
    """A write(2) that a thread has been given."""

def send(
    device: int,
    message: bytes,
    returned: bytearray | None,
    event: int,
    thread: int = 0,
    times: int = 0,
    nanoseconds: int = 0,
    patience: float = 0.0,
    unreadable: int = 0,
    /,
) -> Notification:
    """Have *message* written to *device* by a thread. When write(2) has returned, the first byte of *returned*
    becomes 1, and then the eventfd *event* is written to. Before that *thread* is waited for, if it is not 0,
    for *patience* seconds at most: until it has gone on since it had had *times* and *nanoseconds* of the
    processor. *unreadable* bytes follow the message that the kernel cannot read. OSError: there can be no
    further thread."""

def processor(thread: int, /) -> tuple[int, int] | None:
    """How often a thread has been given a processor, and how many nanoseconds it has had one, as of when it
    last gave it up or the timer last ticked. None if it is over or in another pid namespace (0), or if the
    kernel does not count that."""

def result(notification: Notification) -> tuple[int, float]:
    """Its errno, or 0, and the seconds that write(2) took. To be asked for once *event* has told; RuntimeError
    if write(2) has not returned."""
