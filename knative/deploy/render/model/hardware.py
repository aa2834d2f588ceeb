"""What the predictor sits on: NVIDIA GPUs, a few CPU cores, spot nodes, a cache of the model.

Called by `component`. Each is a component that changes the InferenceService of the base.
"""

from __future__ import annotations

from knative.deploy.emit import Patch, Resource, because
from knative.deploy.render import parts
from knative.deploy.render.model.inference import CPU_CONTEXT_TOKENS, engine_args, engine_resources
from knative.deploy.timeouts import Timeouts
from knative.deploy.values import Values

POOL = "torpor-gpu"
CACHE_GROUP = "torpor-gpu"
CACHE_CLAIM = "torpor-compile-cache"
_BOX = "/spec/predictor/containers/0"
GPU_TAINT = "nvidia.com/gpu"


def gpu_patch(values: Values) -> Patch:
    """Give what puts the predictor on NVIDIA GPUs."""
    count = str(values.gpu.count)
    memory = f"{max(24, values.model.size_gib * 2)}Gi"
    return [
        {
            "op": "replace",
            "path": f"{_BOX}/resources",
            "value": engine_resources("4", "16", memory, **{"nvidia.com/gpu": count}),
        },
        {
            "op": "add",
            "path": "/spec/predictor/nodeSelector",
            "value": {"nvidia.com/gpu.product": values.gpu.product},
        },
        {
            "op": "add",
            "path": "/spec/predictor/tolerations",
            "value": [{"key": GPU_TAINT, "operator": "Exists", "effect": "NoSchedule"}],
        },
    ]


def cpu_patch(values: Values) -> Patch:
    """Give what lets the predictor run on two cores, to try Torpor without a GPU."""
    return [
        {
            "op": "replace",
            "path": f"{_BOX}/image",
            "value": values.images.reference("predictor-cpu"),
        },
        {"op": "replace", "path": f"{_BOX}/args", "value": engine_args(values, gpu=False)},
        {
            "op": "replace",
            "path": f"{_BOX}/resources",
            "value": because(
                {
                    "requests": {"cpu": "500m", "memory": "2Gi"},
                    "limits": {"cpu": "4", "memory": "4Gi"},
                },
                "Asks for what it holds when ready, 0.9 GiB and 1 of KV cache, and takes the cores "
                "that no other pod uses.",
            ),
        },
        {"op": "test", "path": f"{_BOX}/env/0/name", "value": "STORAGE_URI"},
        {"op": "replace", "path": f"{_BOX}/env/0/value", "value": values.model.cpu_uri},
        {
            "op": "add",
            "path": f"{_BOX}/env/-",
            "value": {"name": "VLLM_CPU_KVCACHE_SPACE", "value": "1"},
        },
        {"op": "replace", "path": "/spec/predictor/maxReplicas", "value": 1},
    ]


def single_patch() -> Patch:
    """Give one replica to what has an autoscaler elsewhere; without it no metrics-server either."""
    return [{"op": "add", "path": "/spec/replicas", "value": 1}]


def small_requests_patch(memory: str, limit: str) -> Patch:
    """Give what a process of ours asks for on a shared node of four cores."""
    asked = {"requests": {"cpu": "100m", "memory": memory}, "limits": {"memory": limit}}
    path = "/spec/template/spec/containers/0/resources"
    return [{"op": "replace", "path": path, "value": asked}]


def cpu_settings_patch(values: Values) -> Patch:
    """Give a price of nothing, for there is no GPU and the cost panels must not make one up, and the context that the
    engine runs with, so that a longer prompt is refused when it is submitted.
    """
    cards = parts.model_cards(values, context_tokens=CPU_CONTEXT_TOKENS)
    return [
        {"op": "replace", "path": "/data/TORPOR_GPU_PRICE_PER_HOUR", "value": "0"},
        {"op": "replace", "path": "/data/TORPOR_MODELS", "value": cards},
    ]


def one_node_patch() -> Patch:
    """Give a disk that one node can mount: small clusters know no shared ones."""
    return [{"op": "replace", "path": "/spec/accessModes", "value": ["ReadWriteOnce"]}]


def spot_patch(values: Values) -> Patch:
    """Give what moves the predictor to the pool of spot nodes."""
    del values
    return [
        {
            "op": "add",
            "path": "/spec/predictor/nodeSelector",
            "value": because(
                {"torpor.dev/pool": POOL},
                "A label that the pool itself gives: nvidia.com/gpu.product is set by the GPU "
                "operator after the node is there, so Karpenter would never make one for it.",
            ),
        },
        {
            "op": "add",
            "path": "/spec/predictor/annotations/karpenter.sh~1do-not-disrupt",
            "value": because(
                "true", "No consolidation under a thinking pod; idle ones go to zero anyway."
            ),
        },
    ]


def node_pool(values: Values, times: Timeouts) -> Resource:
    """Give Karpenter's pool of GPU nodes, spot first."""
    limit = sum(each.max_replicas for each in values.each_engine()) * values.gpu.count
    template = {
        "metadata": {"labels": {"torpor.dev/pool": POOL}},
        "spec": {
            "nodeClassRef": because(
                {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "default"},
                "Your provider's class; AWS shown.",
            ),
            "requirements": [
                {
                    "key": "karpenter.sh/capacity-type",
                    "operator": "In",
                    "values": because(
                        ["spot", "on-demand"],
                        "A reclaimed node costs at most the tokens of the last 100 ms.",
                    ),
                },
                {"key": "karpenter.k8s.aws/instance-gpu-count", "operator": "Gt", "values": ["0"]},
            ],
            "taints": [{"key": GPU_TAINT, "value": "true", "effect": "NoSchedule"}],
            "terminationGracePeriod": because(
                f"{times.node_grace}s", "A node is not taken before its pods have drained."
            ),
            "expireAfter": "168h",
        },
    }
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": POOL, "labels": parts.labels("nodes")},
        "spec": {
            "template": template,
            "disruption": {
                "consolidationPolicy": because("WhenEmpty", "Never move a thinking pod to save."),
                "consolidateAfter": because(
                    f"{times.node_idle}s", "An idle node costs; another wake costs more."
                ),
                "budgets": [{"nodes": "1"}],
            },
            "limits": {"nvidia.com/gpu": str(limit)},
        },
    }


def model_cache(values: Values) -> list[Resource]:
    """Give KServe's cache of the weights on the GPU nodes' disks."""
    room = f"{sum(each.model.size_gib for each in values.each_engine()) * 4}Gi"
    group = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "LocalModelNodeGroup",
        "metadata": {"name": CACHE_GROUP, "labels": parts.labels("model-cache")},
        "spec": {
            "storageLimit": room,
            "persistentVolumeSpec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": {"storage": room},
                "local": {"path": "/mnt/torpor-models"},
                "storageClassName": "local-storage",
                "volumeMode": "Filesystem",
                "nodeAffinity": {
                    "required": {
                        "nodeSelectorTerms": [
                            {
                                "matchExpressions": [
                                    {
                                        "key": "nvidia.com/gpu.product",
                                        "operator": "In",
                                        "values": [values.gpu.product],
                                    }
                                ]
                            }
                        ]
                    }
                },
            },
            "persistentVolumeClaimSpec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": room}},
                "storageClassName": "local-storage",
            },
        },
    }
    return [group, *(_cached_model(each) for each in values.each_engine())]


def _cached_model(values: Values) -> Resource:
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "LocalModelCache",
        "metadata": {"name": values.model.name, "labels": parts.labels("model-cache")},
        "spec": {
            "sourceModelUri": because(values.model.uri, "Must equal the predictor's STORAGE_URI."),
            "modelSize": f"{values.model.size_gib}Gi",
            "nodeGroups": [CACHE_GROUP],
        },
    }


def compile_cache(values: Values) -> Resource:
    """Give the claim that keeps vLLM's compiled graphs between pods."""
    return parts.shared_disk(
        CACHE_CLAIM, "model-cache", values, "Several replicas read and add to one cache."
    )


def compile_cache_patch() -> Patch:
    """Give what mounts that claim where the engine keeps its caches."""
    return [
        {"op": "test", "path": "/spec/predictor/volumes/1/name", "value": "cache"},
        {
            "op": "replace",
            "path": "/spec/predictor/volumes/1",
            "value": {"name": "cache", "persistentVolumeClaim": {"claimName": CACHE_CLAIM}},
        },
        {"op": "add", "path": "/spec/predictor/securityContext/fsGroup", "value": parts.USER_ID},
    ]
