# Before a planned end the primary hands over, so that clients wait a moment and not until the sentinels miss it.
. "${0%/*}/servers.sh"
is_primary || exit 0
cli -h "$LOCALHOST" -p "$SENTINEL_PORT" sentinel failover torpor coordinated || exit 0
for _ in 1 2 3 4 5 6 7 8 9 10; do
  is_primary || exit 0
  sleep 1
done
