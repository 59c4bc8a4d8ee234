"""Recordings of what an engine launches: `writer.py` runs in a server, `reader.py` in the tuner."""

from rpa_tune.capture.writer import Capture, record

__all__ = ["Capture", "record"]
