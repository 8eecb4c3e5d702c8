"""Frames out of bytes that are all there already."""

from __future__ import annotations

from nfsfuse.protocol.framing import Frame, FrameReader


def frames_in(stream: bytes) -> list[Frame]:
    """The frames that *stream*, from its magic on, consists of."""
    reader = FrameReader()
    frames: list[Frame] = []
    while stream:
        buffer = reader.buffer()
        count = min(len(buffer), len(stream))
        buffer[:count] = stream[:count]
        stream = stream[count:]
        frames += reader.received(count)
    assert reader.at_boundary(), "cut inside a frame"
    return frames
