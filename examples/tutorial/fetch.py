import json
import sys
from urllib.request import Request, urlopen

from models import sample


def answer_at(place: str) -> dict[str, float]:
    """Wait until the request has ended, and return its answer."""
    while True:
        with urlopen(Request(f"http://127.0.0.1:8000{place}", headers={"Prefer": "wait=30"})) as response:
            if response.status != 202:
                answer: dict[str, float] = json.load(response)
                return answer


pile = [line.split() for line in sys.stdin]
right = sum(answer_at(place)["digit"] == sample(int(number))[1] for number, place in pile)
print(f"{right} of {len(pile)} read right")
