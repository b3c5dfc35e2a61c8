"""Placeholders for values that have not arrived: using one as the value raises an error that says what to await."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn

_STANDS = ". It stands for a value that has not arrived: "
ADVICE_FOR_RESPONSES = f"{_STANDS}await it"
ADVICE = (
    f"{_STANDS}await it once more, or annotate the parameter of the constructor as"
    " `DeploymentHandle` (from qserve.handle), whose calls take one await"
)


class NotValue:
    """The base class of refs and responses: using one as the value raises an error that says what to await."""

    __slots__ = ()
    advice_for_values = ADVICE

    if not TYPE_CHECKING:  # so that type checkers report the mistake

        def __getattr__(self, name: str) -> NoReturn:
            advice = "" if name.startswith("_") else self.advice_for_values
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}{advice}", name=name, obj=self
            )

        def __bool__(self) -> bool:
            return True

        def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
            raise TypeError(f"a {type(self).__name__} was used as a value{self.advice_for_values}")

        __getitem__ = __iter__ = __len__ = __contains__ = __call__ = __index__ = __int__ = __float__ = _refuse
        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
        __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __matmul__ = __rmatmul__ = _refuse
        __lt__ = __le__ = __gt__ = __ge__ = __neg__ = __abs__ = __round__ = __enter__ = __aiter__ = _refuse


def add_advice(error: BaseException) -> None:
    """Say what to await where a library refused a ref by the name of its type, as ``json.dumps`` does."""
    if not isinstance(error, TypeError | ValueError):
        return
    text, trace = str(error), error.__traceback__
    named = set(re.findall(r"\b(?:Ref|RefTask|DeploymentResponse)\b", text))
    held: list[Any] = []
    while named and _STANDS not in text and trace is not None:
        held += [value for value in trace.tb_frame.f_locals.values() if type(value).__name__ in named]
        trace = trace.tb_next
    advice = next((value.advice_for_values for value in held if isinstance(value, NotValue)), "")
    if advice and error.args == (text,):
        error.args = (text + advice,)
    elif advice:
        error.add_note(advice.removeprefix(". "))
