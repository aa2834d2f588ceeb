# Ready is in step with the primary: an eviction of the next pod waits for it.
. "${0%/*}/servers.sh"
cli -h "$LOCALHOST" -p "$SERVER_PORT" info replication | tr -d '\r' | grep -q -E '^(role:master|master_link_status:up)$'
