"""Send a request to echo.py; set PORT=8001 to use another port than 8000."""

import os
import urllib.request

url = f"http://127.0.0.1:{os.environ.get('PORT', '8000')}/"

with urllib.request.urlopen(url, timeout=10) as response:
    print(response.read().decode())
