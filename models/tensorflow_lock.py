"""Keeps threads of one process from using TensorFlow at the same time."""

from __future__ import annotations

import threading

TENSORFLOW_LOCK = threading.Lock()
"""Held by a server and by clients while they build, trace or run Keras models.

Keras numbers layers in a table of the whole process, and CPython 3.11 fails when two threads build
syntax trees, as TensorFlow does when it traces. A process is usually one server or one client, and
then nobody waits.
"""
