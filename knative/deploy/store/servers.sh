# The servers of the store and whom most of their sentinels name as the primary. Read by the scripts beside it.
# HOSTS: their names, in the order of the pods. PASSWORD: of servers and sentinels.
set -eu
umask 077
export REDISCLI_AUTH="$PASSWORD"

# The name of the server of this pod, torpor-redis-N.
own_name() { echo "$HOSTS" | tr ' ' '\n' | sed -n "$((${POD_NAME##*-} + 1))p"; }

cli() { timeout 2 valkey-cli --no-auth-warning "$@" 2>/dev/null; }

named_primary() {
  for host in $HOSTS; do
    cli -h "$host" -p "$SENTINEL_PORT" sentinel get-primary-addr-by-name torpor | head -n 1
  done | grep -v '^$' | sort | uniq -c | awk '$1 >= 2 {print $2}'
}

known_replicas() {
  for host in $HOSTS; do
    cli -h "$host" -p "$SENTINEL_PORT" sentinel replicas torpor
  done | grep -c '^runid$'
}

is_primary() { cli -h "$LOCALHOST" -p "$SERVER_PORT" role | head -n 1 | grep -q master; }
