"""Tests with stand-ins, which name what they replace by text."""

from unittest import mock
from unittest.mock import patch

import qserve
import qserve as serve


def start(app):
    return serve.run(app)


def check_run():
    with patch("qserve.run", return_value="handle") as run:
        answer = start("app")
    run.assert_called_once_with("app")
    return answer


@mock.patch("qserve.get", side_effect=lambda ref, timeout=None: ref * 2)
def check_get(get):
    return qserve.get(21)


def check_object():
    with patch.object(qserve, "put", return_value="ref"), patch.object(serve, "status", return_value={}):
        return qserve.put(1), serve.status()


def main():
    return [check_run(), check_get(), check_object()]

# main() returns ['handle', 42, ('ref', {})]
