"""mapped_stores FILE PAGES: store into every page of a mapping, and say what msync(2) says, again and again.

For each line of the input: ``store X`` stores the byte X everywhere and prints "stored"; ``sync`` synchronises,
and prints the errno (0 if it went well); ``load`` prints what is everywhere, in hex. The mapping stays.
"""

from __future__ import annotations

import mmap
import os
import sys

PAGE = 4096


def main(path: str, pages: int) -> None:
    """Serve the input."""
    descriptor = os.open(path, os.O_RDWR)
    with mmap.mmap(descriptor, pages * PAGE) as mapped:
        os.close(descriptor)
        for line in sys.stdin.buffer:
            if line.startswith(b"store "):
                for page in range(pages):
                    mapped[page * PAGE] = line[6]
                print("stored", flush=True)
                continue
            if line == b"load\n":
                print(mapped[::PAGE].hex(), flush=True)
                continue
            try:
                mapped.flush()
            except OSError as exc:
                print(exc.errno, flush=True)
            else:
                print(0, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
