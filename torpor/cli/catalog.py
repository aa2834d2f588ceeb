"""The list of commands: module, one-line help, examples.

Called by `app`. It imports no command, so that help and completion are fast; a test compares each line with the
command's own docstring.
"""

from typing import Final, NamedTuple

JOBS: Final = "Jobs"
STACK: Final = "A stack on this machine"
SERVICE: Final = "What an api keeps"
MEASURE: Final = "Figures"
CLUSTER: Final = "On a cluster"


class Entry(NamedTuple):
    """One command. `target` is `module:function` below `torpor.cli`."""

    target: str
    group: str
    summary: str
    examples: tuple[str, ...]


COMMANDS: Final = {
    "setup": Entry(
        "stack.setup:setup",
        STACK,
        "Install the engine and the embedded store into this Python's environment.",
        ("torpor setup cpu", "torpor setup gpu"),
    ),
    "demo": Entry(
        "stack.demo:demo",
        STACK,
        "Run one job from zero predictors to an answer and back to zero.",
        ("torpor demo", 'torpor demo --prompt "What is the capital of France?"'),
    ),
    "up": Entry(
        "stack.up:up",
        STACK,
        "Run api, broker, store and predictors (from zero) on this machine until Ctrl-C.",
        (
            "torpor up",
            "torpor up --detach",
            "torpor up --model ./my-model --max-model-len 8192 --max-replicas 2",
        ),
    ),
    "down": Entry(
        "stack.down:down",
        STACK,
        "Stop the stack of this machine; its state is kept.",
        ("torpor down", "torpor down --data-dir /srv/torpor"),
    ),
    "status": Entry(
        "stack.status:status",
        STACK,
        "Show replicas, queue and addresses of the stack on this machine, or what a cluster has.",
        ("torpor status", "torpor status --json", "torpor status --cluster torpor"),
    ),
    "logs": Entry(
        "stack.logs:logs",
        STACK,
        "Show the logs of a part of the stack on this machine, or of a cluster.",
        ("torpor logs", "torpor logs api -f", "torpor logs predictor --cluster torpor"),
    ),
    "submit": Entry(
        "job.submit:submit",
        JOBS,
        "Submit a prompt; prints the job's id, or with --wait the answer.",
        (
            'torpor submit --wait "Why is the sky blue?"',
            "torpor submit --system 'Answer in French.' --max-tokens 64 < question.txt",
            "torpor submit --image cat.png --webhook https://example.com/hook 'What is this?'",
            "torpor submit --json-body request.json --idempotency-key order-17",
        ),
    ),
    "chat": Entry(
        "job.chat:chat",
        JOBS,
        "Talk with a model, turn by turn; an empty line or Ctrl-D ends it.",
        ("torpor chat", "torpor chat --system 'You are a tutor.' --model smollm2-135m-instruct"),
    ),
    "watch": Entry(
        "job.watch:watch",
        JOBS,
        "Show a job live, then its timeline, webhooks included.",
        ("torpor watch job_0123", "torpor watch job_0123 --json"),
    ),
    "jobs": Entry(
        "job.listing:jobs",
        JOBS,
        "List jobs, newest first.",
        (
            "torpor jobs",
            "torpor jobs --state failed,queued --limit 50",
            "torpor jobs --search 'blue sky'",
            "torpor jobs retry job_0123",
        ),
    ),
    "cancel": Entry(
        "job.listing:cancel",
        JOBS,
        "Cancel a job; one that has ended stays as it is.",
        ("torpor cancel job_0123",),
    ),
    "retry": Entry(
        "job.listing:retry",
        JOBS,
        "Run a job again: a dead letter under its id, any other as a new job.",
        ("torpor retry job_0123",),
    ),
    "dead-letters": Entry(
        "job.dead_letters:dead_letters",
        JOBS,
        "Dead letters: list, redrive, discard.",
        ("torpor dead-letters list", "torpor dead-letters redrive --all"),
    ),
    "keys": Entry(
        "service.keys:keys",
        SERVICE,
        "Make, list, rotate and revoke API keys.",
        ("torpor keys create acme --name laptop", "torpor keys list"),
    ),
    "models": Entry(
        "service.models:models",
        SERVICE,
        "List the models that are served.",
        ("torpor models", "torpor models --json"),
    ),
    "files": Entry(
        "service.files:files",
        SERVICE,
        "Files: upload, list, read, delete.",
        ("torpor files upload requests.jsonl", "torpor files read file-0123 -o answers.jsonl"),
    ),
    "batch": Entry(
        "service.batch:batch",
        SERVICE,
        "Many requests as one file: submit, watch, fetch the answers.",
        ("torpor batch submit requests.jsonl --wait -o answers.jsonl", "torpor batch list"),
    ),
    "approvals": Entry(
        "service.approvals:approvals",
        SERVICE,
        "Calls of tools that wait for a person: list, approve, deny.",
        ("torpor approvals list", "torpor approvals approve mcpr_0123_1_0"),
    ),
    "tools": Entry(
        "service.tools:tools",
        SERVICE,
        "Tool servers and what they offer: list, accept a list that changed.",
        ("torpor tools list", "torpor tools accept weather"),
    ),
    "webhooks": Entry(
        "service.webhooks:webhooks",
        SERVICE,
        "Webhook endpoints: register, list, test, rotate, show deliveries.",
        ("torpor webhooks add https://example.com/hook", "torpor webhooks deliveries"),
    ),
    "usage": Entry(
        "service.usage:usage",
        SERVICE,
        "Show GPU time, tokens and cost by model and tenant; per 1,000 tokens all included.",
        ("torpor usage --since 24h", "torpor usage --days 31 --by key --csv > usage.csv"),
    ),
    "top": Entry(
        "measure.top:top",
        MEASURE,
        "Show queue, replicas, jobs and cost live. Ctrl-C ends it.",
        ("torpor top", "torpor top --once"),
    ),
    "load": Entry(
        "measure.load:load",
        MEASURE,
        "Generate load on a Torpor and report what its clients saw. Exits 1 when a job was lost.",
        ("torpor load --profile burst --minutes 2", "torpor load --trace trace.csv --speed 10"),
    ),
    "simulate": Entry(
        "measure.simulate:simulate",
        MEASURE,
        "Simulate a load under scaling policies; reports cost and waits.",
        (
            "torpor simulate --profile step --compare",
            "torpor simulate --trace azure.csv --policy keda --html report.html",
            "torpor simulate --profile burst --manifest manifests/overlays/queue",
        ),
    ),
    "plan": Entry(
        "measure.simulate:plan",
        MEASURE,
        "Search for the cheapest scaling that keeps a p95 wait, and print the manifest for it.",
        ("torpor plan --profile step --p95-wait 30s > patch.yaml",),
    ),
    "black-friday": Entry(
        "measure.simulate:black_friday",
        MEASURE,
        "Replay a retail peak: an HPA on CPU beside KEDA on queue depth and p95, with plots.",
        ("torpor black-friday plots/",),
    ),
    "render": Entry(
        "cluster.manifests:render",
        CLUSTER,
        "Write the manifests from values.yaml: every timeout follows from max_job_seconds.",
        ("torpor render", "torpor render --explain"),
    ),
    "doctor": Entry(
        "cluster.manifests:doctor",
        CLUSTER,
        "Find settings that would cut off, lose or duplicate a job, kill a busy pod, or keep one from starting.",
        ("torpor doctor manifests/overlays/queue", "torpor doctor --live -n torpor"),
    ),
    "deploy": Entry(
        "cluster.commands:deploy",
        CLUSTER,
        "Apply manifests: doctor, dry run, difference, apply, wait.",
        ("torpor deploy manifests/overlays/queue --dry-run", "torpor deploy --canary 10"),
    ),
    "scale": Entry(
        "cluster.commands:scale",
        CLUSTER,
        "Set the bounds of a model's replicas until the next deploy; values.yaml is for good.",
        ("torpor scale thinker --min 1 --max 4",),
    ),
    "promote": Entry(
        "cluster.commands:promote",
        CLUSTER,
        "Promote the canary if its errors and latency allow; withdraw it if they are worse.",
        ("torpor promote thinker", "torpor promote thinker --now"),
    ),
    "rollback": Entry(
        "cluster.commands:rollback",
        CLUSTER,
        "Deploy the release before this one again; a canary or a split is withdrawn by it.",
        ("torpor rollback", "torpor rollback --to 3"),
    ),
    "delete": Entry(
        "cluster.commands:delete",
        CLUSTER,
        "Delete what was deployed; disks and Secrets stay unless --data.",
        ("torpor delete", "torpor delete --data --yes"),
    ),
}
"""In the order of the help."""


def epilog(*examples: str) -> str:
    """Examples at the end of a help; an empty line keeps each on its own line."""
    return "\n\n".join(["Examples:", *(f"  {each}" for each in examples)])
