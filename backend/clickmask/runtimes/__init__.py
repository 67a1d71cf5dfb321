"""Networks in ONNX files, behind one small `Session`: see `clickmask.runtimes.sessions`."""

from clickmask.runtimes.sessions import Runtimes, Session, open_session

__all__ = ["Runtimes", "Session", "open_session"]
