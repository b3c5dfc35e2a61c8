"""Print the words of story.py as they come."""

import json
import time
from urllib.request import urlopen

began, waited_s = time.monotonic(), []
with urlopen("http://127.0.0.1:8000/events?hero=queue", timeout=30) as response:
    for line in response:
        data = line.decode().removeprefix("data: ").strip()
        if data and data != "[DONE]":
            waited_s.append(time.monotonic() - began)
            print(json.loads(data)["token"], end="", flush=True)
print(f"\n{len(waited_s)} words, the first after {waited_s[0]:.1f} s and the last after {waited_s[-1]:.1f} s")
