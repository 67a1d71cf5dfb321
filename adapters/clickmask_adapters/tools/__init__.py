"""One package a labeling tool; each offers `router(workbench, settings) -> APIRouter`."""
