"""Ask under a public name over a small local model and a provider's large one; say who answered, and why.

The stack is that of docs/tutorials/local-first.md.
"""

import os
import sys

from openai import OpenAI

api = os.environ.get("TORPOR_API_URL", "http://127.0.0.1:8000")
client = OpenAI(
    base_url=f"{api}/v1",
    api_key=os.environ.get("TORPOR_API_KEY", "none"),
    timeout=600,
    max_retries=0,
)
prompt = " ".join(sys.argv[1:]) or "Why is the sky blue?"
answer = client.chat.completions.create(
    model=os.environ.get("TORPOR_MODEL", "auto"),
    messages=[{"role": "user", "content": prompt}],
    max_tokens=32,
)
print(answer.choices[0].message.content)
job = client.get(f"/jobs/{answer.id.replace('chatcmpl-', 'job_')}", cast_to=object)
routing = job.get("routing") or {"answered": answer.model, "reason": "it was asked"}
print(f"answered by {routing['answered']}: {routing['reason']}", file=sys.stderr)
