"""What the token manager asks its surroundings to do, in the order of the list it returns.

The order is binding per inode: effects that go to one session are put on its connection in that order, each
before the next event is fed to the machine.
"""

from __future__ import annotations

from nfsfuse.protocol.record import record
from nfsfuse.protocol.tokens import Token
from nfsfuse.protocol.types import SessionId


@record(frozen=True, slots=True)
class Granted:
    """The operation *ticket* may go on. *tokens* are what its session now holds, for the reply to carry; they
    always cover what was asked for. A transient request gets none: the operation holds it, until `finish`."""

    ticket: int
    tokens: tuple[Token, ...]


@record(frozen=True, slots=True)
class Refused:
    """The operation *ticket* asked not to wait, and would have to. Nothing was changed and nobody asked."""

    ticket: int


@record(frozen=True, slots=True)
class Recall:
    """*session* is to reduce ``[token.start, token.end)`` to *token.mode* at most, and then to acknowledge
    *recall_id*."""

    recall_id: int
    session: SessionId
    token: Token


Effect = Granted | Refused | Recall
