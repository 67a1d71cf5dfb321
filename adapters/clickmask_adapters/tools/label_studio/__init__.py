"""Label Studio (recorded with 1.23.2): the routes of its machine learning backends."""

from clickmask_adapters.tools.label_studio.commands import connect_command
from clickmask_adapters.tools.label_studio.prelabel import prelabel
from clickmask_adapters.tools.label_studio.pull import accepting
from clickmask_adapters.tools.label_studio.routes import router

__all__ = ("accepting", "connect_command", "prelabel", "router")
