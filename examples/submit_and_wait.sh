#!/bin/sh
# Ask one question with curl: the id at once, the result when it is there.
set -eu
api=${TORPOR_API_URL:-http://127.0.0.1:8000}
key=${TORPOR_API_KEY:+authorization: Bearer $TORPOR_API_KEY}
model=$(curl -sSf ${key:+-H "$key"} "$api/v1/models" | sed 's/.*"id": *"\([^"]*\)".*/\1/')
id=$(curl -sSf ${key:+-H "$key"} "$api/v1/jobs" -H 'content-type: application/json' -d "{
  \"url\": \"/v1/chat/completions\",
  \"body\": {\"model\": \"$model\", \"max_tokens\": 32,
             \"messages\": [{\"role\": \"user\", \"content\": \"Why is the sky blue?\"}]}
}" | sed 's/.*"id": *"\(job_[^"]*\)".*/\1/')
echo "accepted as $id" >&2
while :; do  # each call waits up to 50 s
  job=$(curl -sSf ${key:+-H "$key"} "$api/v1/jobs/$id?wait=50&include=result")
  case $job in *'"state":"completed"'*) break ;; *'"state":"failed"'* | *'"state":"cancelled"'*) echo "$job" >&2; exit 1 ;; esac
done
printf '%s\n' "$job" | sed 's/.*"content": *"\([^"]*\)".*/\1/'
