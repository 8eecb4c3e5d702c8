"""A file that becomes longer: who goes by its old size is told before the call that did it returns.

A kernel asks for the size before a read(2), but it goes by what it believes in a read fault, in splice(2),
sendfile(2) and copy_file_range(2), for the place of an append and in an asynchronous direct read. So it must
never believe that a file which is open here is shorter than it is:

* While ATTR is held nobody else makes it longer, and what is told of it is true.
* When ATTR is recalled, the server knows by then if the file is open here, and sends `Grew` for every growth
  before that is answered.
* What became longer while it was not open here is told when it is opened (`KernelSize.behind`).

That a file is longer than its kernel believes is one notification (`Kernel.grow`). The other way round, of a
file that was cut, needs none: what is beyond the end has to be read from the daemon, whose answer is short.
"""

from __future__ import annotations

from typing import Final

import trio

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.distrust import UNKNOWN_SECONDS, UNKNOWN_SECONDS_MAX
from nfsfuse.machines.inodes import Inode
from nfsfuse.ports.kernel import Kernel
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.tokens import TokenMode

NO_BYTES: Final = (0, 0)
"""The range of what concerns attributes only."""


class Growths:
    """Tells others, and this client's kernel, how long files have become."""

    def __init__(self, remote: Remote, kernel: Kernel) -> None:
        self._remote = remote
        self._kernel = kernel

    async def tell_others(self, file: CachedFile, size: int) -> None:
        """*file* has just become *size* bytes long here, and others have it open. No recall of its attributes
        is acknowledged before they know, so that nobody makes it shorter again, and is overtaken. (Data are
        given up meanwhile: a kernel may have to read the page at the end first.) Raises FsError."""
        attributes = file.attributes
        assert attributes.mode is TokenMode.EXCLUSIVE
        assert not attributes.revoking
        number = file.entitle(*NO_BYTES, attr=True)
        try:
            reply, _ = await self._remote.call(m.Grown(file.inode.handle, size))
            attributes.told_others(watched=reply.watched)
        finally:
            file.used(number)

    async def tell_kernel(self, inode: Inode, size: int) -> bool:
        """Have this client's kernel believe that the file has at least *size* bytes. It may not know the inode
        yet (see `distrust_attributes`): it is told until it does. False if it seems to be stuck. Waits for
        nothing that is granted."""
        begin = trio.current_time()
        with inode.kernel_size.asking(size) as question:
            while not await self._kernel.grow(inode.node_id, inode.generation, size):
                if inode.lookups == 0:
                    return True
                if trio.current_time() - begin > UNKNOWN_SECONDS_MAX:
                    return False
                await trio.sleep(UNKNOWN_SECONDS)
            question.found = True
        return True

    async def tell_kernel_when_known(self, inode: Inode, size: int) -> None:
        """As `tell_kernel`, however long it takes."""
        while not await self.tell_kernel(inode, size):
            pass

    async def catch_up(self, inode: Inode, size: int) -> None:
        """The file is open here, and everybody tells from now on. It was *size* bytes long then, of which
        the kernel may know nothing."""
        if size and not inode.kernel_size.suffices(size):
            await self.tell_kernel_when_known(inode, size)
        inode.kernel_size.behind = False
