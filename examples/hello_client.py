"""Ask hello.py for a greeting; PORT=8001 python hello_client.py asks on another port than 8000."""

import json
import os
import urllib.request

url = f"http://127.0.0.1:{os.environ.get('PORT', '8000')}/"
wish = {"language": "spanish", "name": "Dora"}

with urllib.request.urlopen(url, data=json.dumps(wish).encode(), timeout=10) as response:
    print(response.read().decode())
