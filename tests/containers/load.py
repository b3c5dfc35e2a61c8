"""Requests to a stack while something happens to it: each answer is checked, and nothing accepted may be lost."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter

from engine import StackError, wait_until
from projects import Project

_RESULT_WITHIN_S = 90.0


class Client:
    """Sends requests to a project's stack."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._url = f"http://127.0.0.1:{project.port}"

    def ask(self, name: str = "Dora", timeout_s: float = 90.0) -> str:
        """Send one request and return the body of the answer."""
        return self._send(name, {}, timeout_s)[0]

    def submit(self, name: str) -> str:
        """Send one request without waiting for its result; return the path where that can be fetched."""
        return self._send(name, {"Prefer": "respond-async"}, 30.0)[1]

    def result(self, path: str) -> str:
        """Fetch a result; "" while there is none."""
        with urllib.request.urlopen(f"{self._url}{path}", timeout=30) as response:
            return "" if response.status == 202 else str(response.read().decode())

    def _send(self, name: str, headers: dict[str, str], timeout_s: float) -> tuple[str, str]:
        request = urllib.request.Request(
            f"{self._url}/",
            json.dumps(self._project.body(name)).encode(),
            {"Content-Type": "application/json", **headers},
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return str(response.read().decode()), response.headers.get("Location", "")


class Load:
    """Requests, one after the other, from several threads until stopped.

    Parameters:
      may_refuse: Whether requests may be refused (503), as while the broker is away; what was accepted must be
        answered all the same. Each request is then accepted first, and its result is fetched at the end.
    """

    def __init__(self, project: Project, threads: int = 6, *, may_refuse: bool = False) -> None:
        self._project, self._client, self._may_refuse = project, Client(project), may_refuse
        self._stop = threading.Event()
        self.times_s: list[float] = []
        self.errors: list[str] = []
        self.refused = 0
        self.versions: Counter[int] = Counter()
        self.accepted: dict[str, str] = {}
        self._turns = [0] * threads
        self._threads = [threading.Thread(target=self._run, args=(one,)) for one in range(threads)]

    def _run(self, thread: int) -> None:
        number = 0
        while not self._stop.is_set():
            name = f"Dora {thread}.{number}"
            number += 1
            began = time.monotonic()
            try:
                if self._may_refuse:
                    self.accepted[self._client.submit(name)] = name
                else:
                    self._check(name, self._client.ask(name))
            except urllib.error.HTTPError as error:
                said = f"{name}: {error.code} {error.read()[:300]!r}"
                self._note(said, is_refusal=error.code == 503)
            except OSError as error:
                self._note(f"{name}: {error}", is_refusal=False)
            self.times_s.append(time.monotonic() - began)
            self._turns[thread] = number

    def _has_result(self, path: str, name: str) -> bool:
        try:
            said = self._client.result(path)
        except urllib.error.HTTPError as error:
            if error.code == 503:
                raise
            said = f"{error.code} {error.read()[:300]!r} for {path}"
        if said:
            self._check(name, said)
        return bool(said)

    def _check(self, name: str, said: str) -> None:
        answers = self._project.answers(name)
        if said in answers:
            self.versions[answers.index(said) + 1] += 1
        else:
            self.errors.append(f"{name} was answered {said!r}")

    def _note(self, error: str, *, is_refusal: bool) -> None:
        if self._may_refuse and is_refusal:
            self.refused += 1
        else:
            self.errors.append(error)
        self._stop.wait(0.1)  # a stack that refuses everything must not fill the list

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int, within_s: float) -> None:
        """Wait until so many more requests have ended."""
        wanted = len(self.times_s) + count
        wait_until(lambda: len(self.times_s) >= wanted, f"{count} more answers", within_s)

    def all_pending(self, within_s: float) -> None:
        """Wait until every request that is in flight now has ended."""
        before = [*self._turns]
        wait_until(
            lambda: all(now > then for now, then in zip(self._turns, before, strict=True)),
            "requests in flight",
            within_s,
        )

    def judge(self) -> str:
        """Raise when a request failed or was lost; return a summary."""
        for path, name in self.accepted.items():
            wait_until(
                lambda path=path, name=name: self._has_result(path, name), f"the result of {name}", _RESULT_WITHIN_S
            )  # type: ignore[misc]
        if self.errors:
            some = "\n".join(self.errors[:5])
            raise StackError(f"{len(self.errors)} of {len(self.times_s)} requests failed:\n{some}")
        if self._may_refuse:
            return f"{len(self.accepted)} requests accepted, all answered; {self.refused} refused with 503"
        return f"{len(self.times_s)} requests, none failed, slowest {max(self.times_s):.1f} s"
