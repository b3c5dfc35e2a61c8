"""Ray may be missing."""

try:
    import ray  # left: rebound
    from ray import serve
except ImportError:
    ray = None
    serve = None


def answer(handle):
    if ray is None:
        return None
    return ray.get(handle)


if serve is not None:
    app = serve.deployment(lambda value: value).bind()
