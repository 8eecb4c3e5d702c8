from typing import final

@final
class Notification:
    """A write(2) that a thread has been given."""

def send(device: int, message: bytes, returned: bytearray | None, event: int) -> Notification:
    """Have *message* written to *device* by a thread. When write(2) has returned, the first byte of *returned*
    becomes 1, and then the eventfd *event* is written to. OSError: there can be no further thread."""

def result(notification: Notification) -> tuple[int, float]:
    """Its errno, or 0, and the seconds that write(2) took. To be asked for once *event* has told; RuntimeError
    if write(2) has not returned."""
