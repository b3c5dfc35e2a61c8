"""The graph of arithmetic_adapter.py, served and called from one Python program, without HTTP.

python arithmetic_python.py      # in this folder; prints 9
"""

import os

from arithmetic_adapter import graph

import qserve

if __name__ == "__main__":
    handle = qserve.run(graph, port=int(os.environ.get("PORT", "8000")))
    ref = handle.predict.remote(5)
    print(qserve.get(ref))
