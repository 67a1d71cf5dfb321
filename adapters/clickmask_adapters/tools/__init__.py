"""One package a labeling tool.

Each offers `router(workbench, settings) -> APIRouter`, and may offer `connect_command`, a function that
is the command `clickmask connect TOOL`, and `signed_paths`, the paths of POSTs that carry a signature instead
of the server's secret: their routes check it. With `accepting(settings) -> clickmask.intake.Accepting` its
labels are taken in; its events are kept under the package's name. With
`prelabel(workbench, settings, project) -> Iterator[clickmask_adapters.prelabelling.Prelabelled]` a project's
model draws in it, for `clickmask prelabel TOOL`.
"""
