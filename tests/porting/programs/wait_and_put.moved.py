import qserve as r
import qserve as serve
from qserve import put


@serve.deployment
def slow(value):
    return value * 10


app = slow.bind()


def main():
    if not r.is_initialized():
        r.init()
    handle = serve.run(app)
    refs = [handle.remote(put(value)) for value in range(3)]
    ready, waiting = r.wait(refs, num_returns=3, timeout=30)
    return sorted(r.get(ready)), len(waiting)

# main() returns ([0, 10, 20], 0)
