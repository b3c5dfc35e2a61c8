"""The code of a deployment in the process that runs it, or that its replicas are forked from."""

from __future__ import annotations

from typing import Any, NamedTuple

from qserve.base.import_path import importing_user_code
from qserve.base.parts import advice_for
from qserve.base.tracebacks import user_traceback
from qserve.define.target import shadows
from qserve.deploy.registration import PRELOAD, DeploymentCode, find_function, import_code, unpack_code
from qserve.engine.preload import preloaded
from qserve.exceptions import QserveException
from qserve_workers.replica.spec import ReplicaSpec


class Loaded(NamedTuple):
    """What replicas get from the process that they are forked from.

    Parameters:
      code: The code of their deployment if that is imported; None if each of them unpacks what was sent.
      preloaded: What its ``preload`` returned.
    """

    code: DeploymentCode | None
    preloaded: Any


class Loading:
    """Loads user code.

    Attributes:
      doing: What failed, for messages, if an error ends the start now.
    """

    def __init__(self, spec: ReplicaSpec) -> None:
        self._spec = spec
        self._target = spec.target or spec.record.target
        self.doing = ""

    def code(self, data: bytes) -> DeploymentCode:
        """Return the code of the deployment.

        Parameters:
          data: What was sent of it; b"" if it is imported.
        """
        spec = self._spec
        if not self._spec.is_imported:
            self.doing = "its code could not be loaded"
            with importing_user_code():
                return unpack_code(data, spec.settings.keyring, spec.deployment)
        self.doing = f"{self._target} could not be imported"
        spec.sources.install()
        return import_code(self._target, spec.record.name, spec.record.arguments, spec.deployment)

    def preload(self, data: bytes) -> Any:
        """Run what ``preload`` names, and return what that returns; None if it names nothing."""
        spec, path = self._spec, self._spec.options.preload
        if not path:
            return None
        self.doing = f"its preload {path} failed"
        function = find_function(path, PRELOAD, data, spec.settings.keyring, spec.deployment)
        with importing_user_code():
            return preloaded(function, self.label)

    @property
    def label(self) -> str:
        """The deployment and its ``preload``, for messages."""
        return f"preload {self._spec.options.preload!r} of deployment {self._spec.deployment!r}"

    def why(self, error: BaseException) -> str:
        """Say what failed, and why."""
        text = str(error) if isinstance(error, QserveException) else user_traceback(error)
        hint = shadows(error) or advice_for(error)
        return (f"{self.doing}:\n" if self.doing else "") + text + (f"\n{hint}" if hint else "")
