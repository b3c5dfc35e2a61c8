"""The wire format: values and messages as bytes, their signatures, and the records of applications.

It may import qserve.exceptions, qserve.base and qserve.graph.
Open first: envelope.py, then codec.py and sealing.py.

While qserve itself is upgraded, processes of two versions read what each other writes:

- A record gains fields that have a default, in lists at the end. Readers leave out those that they do not know, and
  take the default for those that are missing: a feature is missing then, and nothing is wrong.
- What must not be left out is refused by those that do not know it. An application's record has a ``format``, which is
  raised when it says such a thing. All else is sealed with a format, see ``sealing``, or has a state, code or form that
  older readers do not take for another one.
"""
