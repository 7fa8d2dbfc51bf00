"""The example for Kubernetes in docs/cluster.md is a RayJob that starts what its image contains."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from gpudarknet import cluster as jobs

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; pip install '.[docs]'")

PAGE = (Path(__file__).parent.parent / "docs/cluster.md").read_text(encoding="utf-8")
FIELDS = {  # of KubeRay's ray.io/v1, as far as the example uses them
    "job": {"entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "rayClusterSpec"},
    "cluster": {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"},
    "head": {"rayStartParams", "template"},
    "workers": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}


def block(language: str) -> str:
    """Return the page's block in a language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return text


@pytest.fixture
def job() -> dict[str, Any]:
    return yaml.safe_load(block("yaml"))


def test_the_job_has_the_fields_of_kuberay(job):
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert set(job["spec"]) == FIELDS["job"] and set(cluster) == FIELDS["cluster"]
    assert set(cluster["headGroupSpec"]) == FIELDS["head"]
    (workers,) = cluster["workerGroupSpecs"]
    assert set(workers) == FIELDS["workers"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert cluster["authOptions"] == {"mode": "token"}
    for group in (cluster["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert {"name", "image", "resources"} <= set(container)


def test_the_job_fits_its_image(job):
    cluster, image = job["spec"]["rayClusterSpec"], block("dockerfile")
    (version,) = re.findall(r"^FROM rayproject/ray:([\d.]+)-py\d+$", image, re.MULTILINE)
    assert cluster["rayVersion"] == version >= "2.55"
    script = job["spec"]["entrypoint"].removeprefix("cd /home/ray && python ")  # the folder of these images
    assert script in image.split() and f"`{script}`" in PAGE
    extras = re.findall(r"\[([\w,]+)\]", image)[0].split(",")
    assert all(f"\n{extra} = [" in (Path(__file__).parent.parent / "pyproject.toml").read_text() for extra in extras)


def test_a_worker_has_the_threads_and_the_gpu_that_the_script_asks_for(job):
    script = next(
        text for text in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if '"auto"' in text
    )
    call = next(
        node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call) and "detect" in ast.dump(node.func)
    )
    options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert set(options) <= set(jobs.detect.__kwdefaults__)
    limits = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"][
        "limits"
    ]
    assert int(limits["cpu"]) == options["threads"] and limits["nvidia.com/gpu"] == "1"
