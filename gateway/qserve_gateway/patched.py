"""gevent's patches, applied by being imported: before anything that takes locks, queues or sockets.

``from queue import SimpleQueue`` keeps what it finds; a module that did so before the patches would
stop the whole process, and not one greenlet, when it waits.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()
