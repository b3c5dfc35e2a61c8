"""The payload store: where the large parts of values are while messages carry claims of them.

It may import qserve.exceptions, qserve.base, qserve.wire and qserve.broker.
Open first: store.py, tier.py, chunks.py, folder.py, folder_files.py, and segments.py with writer.py and shm_folder.py.
"""
