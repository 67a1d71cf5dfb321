"""The part of a stand-in CVAT that `cvat-cli task auto-annotate` and cvat-sdk's agents speak to."""

from __future__ import annotations

import io
import zipfile

from support.cvat_server import USER, Answer, CvatServer, Row


class TaskServer(CvatServer):
    """A CVAT whose tasks can be annotated, and with the server side of agents, which Community has not.

    `created` are the bodies in which annotations came, by task, and `replaced` those before which
    the others were removed. `functions` are native functions; `requests` wait for their agents, and
    what an agent answered, or why it could not, is in `completed` and `failed`.
    """

    def __init__(self) -> None:
        self.functions: dict[int, Row] = {}
        self.requests: list[Row] = []
        self.completed: list[Row] = []
        self.failed: list[Row] = []
        self.created: dict[int, list[Row]] = {}
        self.replaced: dict[int, list[Row]] = {}
        super().__init__()

    def add_task(self, job: int, frames: list[bytes], deleted: tuple[int, ...] = (), **label: str) -> int:
        """A task of images; `label` are names and types of its labels. Its number."""
        self.add_job(job, None, frames=frames)
        task = self.jobs[job]["task_id"]
        for number in [number for number, row in self.labels.items() if row.get("task_id") == task]:
            del self.labels[number]
        self._add_labels(tuple(label), task_id=task)
        for row in self.labels.values():
            if row.get("task_id") == task:
                row["type"] = label[row["name"]]
        self.metas[job]["deleted_frames"] = list(deleted)
        rows = {"count": 1, "completed": 0, "validation": 0, "url": f"{self.url}/api/jobs?task_id={task}"}
        self.tasks[task] |= {
            **dict.fromkeys(("project_id", "assignee", "organization", "guide_id")),
            **dict.fromkeys(("overlap", "assignee_updated_date", "validation_mode")),
            **dict.fromkeys(("target_storage", "source_storage", "data_cloud_storage_id")),
            **dict.fromkeys(("project_name", "organization_id")),
            "url": f"{self.url}/api/tasks/{task}",
            "owner": USER,
            "bug_tracker": "",
            "created_date": self.tick(),
            "updated_date": self.tick(),
            "mode": "annotation",
            "media_type": "image",
            "status": "annotation",
            "dimension": "2d",
            "subset": "",
            "data": task,
            "size": len(frames),
            "segment_size": len(frames),
            "image_quality": 70,
            "data_chunk_size": 2,
            "data_compressed_chunk_type": "imageset",
            "data_original_chunk_type": "imageset",
            "consensus_enabled": False,
            "jobs": rows,
            "labels": {"url": f"{self.url}/api/labels?task_id={task}"},
        }
        return task

    def answer(self, method: str, path: str, query: dict[str, str], body: Row) -> Answer:
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "tasks"] and len(parts) > 3:
            task = int(parts[2])
            job = task // 10
            match method, parts[3:]:
                case "GET", ["data", "meta"]:
                    return 200, self.metas[job]
                case "GET", ["data"] if query["type"] == "frame":
                    return 200, self.images[job, int(query["number"])]
                case "GET", ["data"]:
                    return 200, self._chunk(job, int(query["number"]))
                case "PATCH", ["annotations"]:
                    assert query["action"] == "create"
                    self.created.setdefault(task, []).append(body)
                    return 200, {"version": 1, "tags": [], "shapes": [], "tracks": []}
                case "PUT", ["annotations"]:
                    self.replaced.setdefault(task, []).append(body)
                    return 200, {"version": 1, "tags": [], "shapes": [], "tracks": []}
        if parts[:2] == ["api", "functions"]:
            return self._function(method, parts[2:], body)
        return super().answer(method, path, query, body)

    def _function(self, method: str, parts: list[str], body: Row) -> Answer:
        match method, parts:
            case "POST", []:
                number = len(self.functions) + 1
                absent = {"startswith_box": False, "startswith_box_optional": False, "min_neg_points": -1}
                self.functions[number] = absent | body | {"id": number}
                return 201, self.functions[number]
            case "GET", [number]:
                return 200, self.functions[int(number)]
            case "POST", ["queues", _, "requests", "acquire"]:
                category = body["request_category"]
                found = next((each for each in self.requests if each["category"] == category), None)
                if found is None:
                    return 200, {"ar_assignment": None}
                self.requests.remove(found)
                return 200, {"ar_assignment": {"ar_id": "an-id", "ar_params": found["parameters"]}}
            case "POST", ["queues", _, "requests", _, "complete"]:
                self.completed.append(body)
                return 200, {}
            case "POST", ["queues", _, "requests", _, "fail"]:
                self.failed.append(body)
                return 200, {}
        return 404, {"detail": "Not found."}

    def _chunk(self, job: int, number: int) -> bytes:
        raw = io.BytesIO()
        size = self.tasks[job * 10]["data_chunk_size"]
        with zipfile.ZipFile(raw, "w") as chunk:
            frames = [frame for owner, frame in self.images if owner == job]
            for place, frame in enumerate(frames[number * size : (number + 1) * size]):
                chunk.writestr(f"{place:06d}.png", self.images[job, frame])
        return raw.getvalue()
