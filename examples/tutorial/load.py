import json
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

from models import TRAINED_ON, sample

images = [sample(number) for number in range(TRAINED_ON, TRAINED_ON + 300)]


def digit_in(png: bytes) -> int:
    with urlopen("http://127.0.0.1:8000/", data=png) as response:
        return int(json.load(response)["digit"])


began = time.monotonic()
with ThreadPoolExecutor(32) as clients:
    read = list(clients.map(digit_in, [png for png, _ in images]))
took = time.monotonic() - began
right = sum(digit == shown for digit, (_, shown) in zip(read, images, strict=True))
print(f"{len(images)} images in {took:.1f} s, {right / len(images):.0%} read right")
