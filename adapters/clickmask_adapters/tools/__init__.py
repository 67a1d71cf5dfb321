"""One package a labeling tool.

Each offers `router(workbench, settings) -> APIRouter`, and may offer `connect_command`, a function that
is the command `clickmask connect TOOL`.
"""
