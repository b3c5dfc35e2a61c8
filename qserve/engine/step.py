"""From a delivery to its call, and from the call's result to what follows in the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from qserve.base import failpoints
from qserve.base.keys import Keys
from qserve.calls.compose import claims_in, pack_moves
from qserve.calls.ref import Ref
from qserve.exceptions import PayloadError, PayloadTooLarge, ResultNotSerialisable, ResultTooLarge
from qserve.graph.advance import Answer as AnswerMove
from qserve.graph.advance import Arguments, advance
from qserve.graph.plan import Plan
from qserve.http import request as _requests  # noqa: F401  (it teaches the codec to decode requests)
from qserve.http.render import render, with_header
from qserve.wire.application import ApplicationRecord
from qserve.wire.claim import MARK, Claim, Kind, claim_in
from qserve.wire.codec import Codec
from qserve.wire.envelope import Answer, Header
from qserve.wire.moves import Move, Start
from qserve.wire.outcome import State
from qserve.wire.replies import step_number
from qserve.wire.times import StepTime, Times, server_timing, split_times, with_times


@dataclass(slots=True)
class UserCall:
    """A call of user code, with its arguments.

    ``plan`` and ``index`` tell which step of which graph it is; ``plan`` is None for a direct call. ``times`` has those
    of the steps before it, if its request wants them. ``spent`` has the claims of its stored values, which it uses up.
    """

    method: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    plan: Plan | None = None
    index: int = 0
    times: Times | None = None
    spent: Sequence[Claim] = ()


class Conclusion(NamedTuple):
    """The effect of a call: the end of its request, or moves to the next steps.

    Parameters:
      made: The claims of the values that were stored for it, with the number of their uses.
      spent: Those of the values that the call has used.
    """

    state: str = ""
    payload: bytes = b""
    moves: Sequence[Move] = ()
    made: Mapping[Claim, int] = MappingProxyType({})
    spent: Sequence[Claim] = ()

    def uses(self) -> dict[str, int]:
        """Return the stored values that it begins to hold, and those that it has used, as the broker counts them."""
        found = {claim.name: uses for claim, uses in self.made.items()}
        if not self.state:  # at its end, a request lets go of all that it has
            for claim in self.spent:
                found[claim.name] = found.get(claim.name, 0) - 1
        return found

    @property
    def outcome(self) -> str:
        """What became of the call, in a word."""
        return State(self.state).word if self.state else "forwarded"

    def sends(self, keys: Keys, app: str) -> list[tuple[str, str, int]]:
        """Return the deployment, the step and the slot of each move."""
        slots = [0 if isinstance(move, Start) else move.slots[0][0] for move in self.moves]
        return [(keys.deployment_of(m.stream, app), m.step, slot) for m, slot in zip(self.moves, slots, strict=True)]


class Stepper:
    """Decodes the calls of one replica, and works out what follows from their results.

    Parameters:
      record: The application as it was when the replica started.
    """

    def __init__(self, record: ApplicationRecord, keys: Keys, codec: Codec) -> None:
        self._record = record
        self._keys = keys
        self._codec = codec
        self._templates: dict[tuple[str, int], Arguments] = {}

    def is_heavy(self, values: Sequence[bytes]) -> bool:
        """Return whether it takes long to fetch one of these values: not on an event loop."""
        return any(map(self._codec.is_heavy, values))

    def open(self, header: Header, step: str, values: Sequence[bytes]) -> UserCall:
        """Return the call of a delivery.

        Raises:
          PayloadError: The bytes cannot be decoded, or name a graph that this application does not have.
        """
        if failpoints.ARMED:
            failpoints.hit("call.before")
        if header.carried is not None and header.carried.is_timed:
            times, values = _apart(values)
            call = self._open(header, step, values)
            call.times = times
        else:
            call = self._open(header, step, values)
        call.spent = [claim for value in values if value.startswith(MARK) and (claim := claim_in(value))]
        return call

    def _open(self, header: Header, step: str, values: Sequence[bytes]) -> UserCall:
        decode = self._codec.decode
        args: Sequence[Any]
        if header.graph is None:
            args, kwargs = _pair(decode(values[0]) if values else None)
            if len(values) > 1:
                filled = {n: decode(v) for n, v in enumerate(values) if n}
                args, kwargs = Arguments(args, kwargs).fill(filled, Ref.resolved)
            return UserCall(step, args, kwargs)
        try:
            plan, _ = self._record.plans[header.graph]
            index = _known(step_number(step))
            arguments = self._arguments(header.graph, index)
        except LookupError as error:
            app = self._record.name
            raise PayloadError(f"application {app!r} has no step {step!r} of a graph {header.graph!r}") from error
        if len(values) != plan.steps[index].needs:
            raise PayloadError(f"step {step} takes {plan.steps[index].needs} values, and {len(values)} arrived")
        args, kwargs = arguments.fill({n: decode(v) for n, v in enumerate(values)}, Ref.resolved)
        return UserCall(plan.steps[index].method, args, kwargs, plan, index)

    def _arguments(self, graph: str, index: int) -> Arguments:
        found = self._templates.get((graph, index))
        if found is None:
            args, kwargs = self._codec.decode(self._record.plans[graph][1][index])
            found = self._templates[graph, index] = Arguments(args, kwargs)
        return found

    def conclude(self, header: Header, call: UserCall, value: Any, time: StepTime | None = None) -> Conclusion:
        """Return what follows from a call's result.

        Parameters:
          time: Its own, where the request wants those of its steps.

        Raises:
          ResultNotSerialisable: The result cannot be encoded, or cannot be an HTTP response.
          ResultTooLarge: It is too long for that.
          Heavy: See ``light_only``.
        """
        if failpoints.ARMED:
            failpoints.hit("call.after")
        try:
            if call.plan is None:
                return self._end(header, value, call, time)
            moves = advance(call.plan, call.index, value)
            if moves and isinstance(moves[0], AnswerMove):
                return self._end(header, moves[0].value, call, time)
            packed = pack_moves(moves, self._record, call.plan, self._keys, self._codec, kind=Kind.PASSING)
        except PayloadError as error:
            raise _refusal(error) from error
        made = claims_in(packed)
        if time is not None:
            packed = _timed(packed, {**(call.times or {}), str(call.index): time})
        return Conclusion(moves=packed, made=made, spent=call.spent)

    def encode_item(self, item: Any) -> bytes:
        """Encode one item of a streamed result; raises as ``conclude`` does."""
        try:
            return self._codec.encode(item, Kind.KEPT)
        except PayloadError as error:
            raise _refusal(error) from error

    def drop(self, conclusion: Conclusion) -> None:
        """Remove what was stored for a conclusion that has no effect."""
        if conclusion.made:
            self._codec.forget(conclusion.made)

    def _end(self, header: Header, value: Any, call: UserCall, time: StepTime | None) -> Conclusion:
        payload = self._answer(header, value, call, time)
        claim = claim_in(payload) if payload.startswith(MARK) else None
        return Conclusion(State.DONE, payload, made={} if claim is None else {claim: 1}, spent=call.spent)

    def _answer(self, header: Header, value: Any, call: UserCall, time: StepTime | None) -> bytes:
        if header.answer is Answer.VALUE:
            return self._codec.encode(value, Kind.KEPT)
        payload = render(value, header.answer, self._codec)
        return payload if time is None else with_header(payload, *timing(call, time))


def _known(index: int | None) -> int:
    if index is None:
        raise LookupError
    return index


def _pair(arguments: Any) -> tuple[Sequence[Any], dict[str, Any]]:
    if type(arguments) not in (list, tuple) or len(arguments) != 2:
        raise PayloadError("the arguments of a call are missing, or are something else")
    args, kwargs = arguments
    return args, kwargs


def _refusal(error: PayloadError) -> ResultNotSerialisable:
    return (ResultTooLarge if isinstance(error, PayloadTooLarge) else ResultNotSerialisable)(str(error))


def _apart(values: Sequence[bytes]) -> tuple[Times, list[bytes]]:
    """Return the times in front of all values, and the values."""
    times: Times = {}
    found = []
    for data in values:
        before, value = split_times(data)
        times |= before
        found.append(value)
    return times, found


def _timed(moves: Sequence[Move], times: Times) -> list[Move]:
    return [
        move._replace(values=[with_times(value, times) for value in move.values])
        if isinstance(move, Start)
        else move._replace(slots=[(slot, with_times(value, times)) for slot, value in move.slots])
        for move in moves
    ]


def timing(call: UserCall, time: StepTime) -> list[str]:
    """Return the header that says how long the steps before a call and the call itself have waited and run."""
    before = sorted((call.times or {}).items(), key=lambda item: (len(item[0]), item[0]))
    return ["server-timing", server_timing([*(times for _, times in before), time])]
