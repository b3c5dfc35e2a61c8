"""Handles of the newer kind, with responses as arguments of other calls."""

from __future__ import annotations

import qserve as serve
from qserve.handle import DeploymentHandle, DeploymentResponse


@serve.deployment(max_ongoing_requests=20)
class Tokenizer:
    def __call__(self, text: str) -> list[str]:
        return text.lower().split()


@serve.deployment(max_ongoing_requests=20)
class Counter:
    def __call__(self, words: list[str]) -> dict[str, int]:
        return {word: words.count(word) for word in sorted(set(words))}


@serve.deployment
class Pipeline:
    def __init__(self, tokenizer: DeploymentHandle, counter: DeploymentHandle) -> None:
        self.tokenizer, self.counter = tokenizer, counter

    async def __call__(self, text: str) -> dict[str, int]:
        words: DeploymentResponse = self.tokenizer.remote(text)
        return await self.counter.remote(words)


app = Pipeline.bind(Tokenizer.bind(), Counter.bind())


def main():
    handle = serve.run(app).options(use_new_handle_api=True)
    return handle.remote("a b A").result(timeout_s=30)


if __name__ == "__main__":
    main()

# main() returns {'a': 2, 'b': 1}
