"""Have a hundred digits read that the model has not seen, and say which processes have done it."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import urlopen

from forest import LEARNED_FROM
from sklearn.datasets import load_digits

digits: Any = load_digits()


def read(number: int) -> dict[str, int]:
    """Have one image read."""
    body = json.dumps(digits.data[number].tolist()).encode()
    with urlopen("http://127.0.0.1:8000/", body, timeout=30) as response:
        answer: dict[str, int] = json.load(response)
    return answer | {"shown": int(digits.target[number])}


with ThreadPoolExecutor(8) as clients:
    answers = list(clients.map(read, range(LEARNED_FROM, LEARNED_FROM + 100)))
print(f"right: {sum(answer['digit'] == answer['shown'] for answer in answers)} of {len(answers)}")
print(f"replicas: {len({answer['replica'] for answer in answers})}")
print(f"processes that have loaded the model: {len({answer['loaded_by'] for answer in answers})}")
