"""Ask one question with OpenAI's client: only the address is ours."""

import os
import sys

from openai import OpenAI

api = os.environ.get("TORPOR_API_URL", "http://127.0.0.1:8000")
# A model that sleeps takes a while to wake: be patient instead of asking again.
client = OpenAI(
    base_url=f"{api}/v1",
    api_key=os.environ.get("TORPOR_API_KEY", "none"),
    timeout=600,
    max_retries=0,
)
model = client.models.list().data[0].id
prompt = " ".join(sys.argv[1:]) or "Why is the sky blue?"
for chunk in client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": prompt}], max_tokens=32, stream=True
):
    print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
print()
