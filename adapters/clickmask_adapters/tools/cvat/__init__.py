"""CVAT (read and measured with 2.73.0): its interactors and detectors, without nuclio."""

from clickmask_adapters.tools.cvat.gateway import router

__all__ = ("router",)
