"""A single step on LitServe: python compared_litserve.py PORT."""

from __future__ import annotations

import sys

import litserve  # type: ignore[import-not-found]


class AddTwo(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.amount = 2

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # an annotation would be a schema of the body
        return int(request["x"])

    def predict(self, x: int) -> int:
        return x + self.amount

    def encode_response(self, output: int) -> dict[str, int]:
        return {"output": output}


if __name__ == "__main__":
    server = litserve.LitServer(AddTwo(api_path="/"), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
