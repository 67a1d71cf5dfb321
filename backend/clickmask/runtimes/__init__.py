"""What runs the networks: `Session` over ONNX files, and the choices of this process, `Runtimes`."""

from clickmask.runtimes.choices import Runtimes
from clickmask.runtimes.sessions import Session, open_session

__all__ = ("Runtimes", "Session", "open_session")
