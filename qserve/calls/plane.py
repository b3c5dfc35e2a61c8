"""The vocabulary of the data plane: what a caller may ask of it, whatever carries the messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from qserve.wire.envelope import Answer

if TYPE_CHECKING:
    from qserve.calls.ref import Ref
    from qserve.wire.codec import Codec


class CallOptions(NamedTuple):
    """What a caller may say of one request.

    Parameters:
      timeout_s: Its deadline from now; None takes the application's.
      result_ttl_s: How long the result is kept; None takes the setting's. 0 for a caller that is told by
        its mailbox and releases the result itself.
      trace_id, route, model_id: See ``wire.envelope.Header``.
      answer: The form of the result.
      owned: The result is dropped when the ref is.
      stream: The caller takes the result as items.
      request_id: 32 hexadecimal digits; "" makes new ones.
      fingerprint: Of what is asked. Not "": the answer may be asked for by the id, and a second request of the
        same id and fingerprint follows the first instead of being one.
    """

    timeout_s: float | None = None
    result_ttl_s: float | None = None
    trace_id: str = ""
    route: str = ""
    model_id: str = ""
    answer: Answer = Answer.VALUE
    owned: bool = False
    stream: bool = False
    request_id: str = ""
    fingerprint: str = ""


class Plane(Protocol):
    """Anything that carries calls: the broker from sync code, from a replica's loop, or this process."""

    codec: Codec

    def call(
        self,
        app: str,
        deployment: str,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: CallOptions,
    ) -> Ref:
        """Start one method of a deployment."""

    def run(
        self,
        app: str,
        graph: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: CallOptions,
    ) -> Ref:
        """Start a graph of an application on this input."""

    def wait(self, ref: Ref, timeout_s: float | None) -> bool:
        """Block until ``ref`` is done; False when ``timeout_s`` passed first."""

    def follow(self, ref: Ref) -> None:
        """See to it that ``ref`` will be settled in this process."""

    def cancel(self, ref: Ref) -> None:
        """End an open request without a result."""

    def take(self, request_id: str, count: int) -> None:
        """This many more items of a streamed result were taken."""

    def forget(self, request_id: str) -> None:
        """Nobody will ask for this result again."""
