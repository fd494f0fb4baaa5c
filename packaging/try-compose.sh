#!/bin/sh
# Shows what only a real engine can show: the images build, nine agents enroll and train within limits that the kernel
# holds, one that is killed comes back, and nothing is left. It has not been run yet: no engine is where the tests run.
#   packaging/try-compose.sh
set -eu
cd "$(dirname "$0")/.."
export COMPOSE_PROJECT_NAME=diastole-try
trap 'docker compose down --volumes --remove-orphans' EXIT

docker compose up --build --detach
admin() { docker compose exec -T coordinator diastole admin "$@" --token-file /state/admin.token; }

echo "--- sizes of the images"
docker image ls --format '{{.Repository}} {{.Size}}' | grep '^diastole-'

echo "--- nine agents have joined"
tries=0
until [ "$(admin devices list --json | grep -c '"name"')" -ge 9 ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || { docker compose ps; docker compose logs --tail 20; exit 1; }
    sleep 5
done
admin devices list

echo "--- limits, as the engine and as the kernel know them"
for pair in large-1:2000000000:2147483648 medium-1:1000000000:1073741824 small-1:500000000:805306368; do
    name=${pair%%:*}
    id=$(docker compose ps --quiet "agent-$name")
    found=$(docker inspect --format '{{.HostConfig.NanoCpus}}:{{.HostConfig.Memory}}' "$id")
    [ "$name:$found" = "$pair" ] || { echo "agent-$name has $found instead of ${pair#*:}"; exit 1; }
    docker exec "$id" cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max
    # Its file system is read-only, and its user nobody special.
    ! docker exec "$id" touch /home/diastole/file 2>/dev/null
    [ "$(docker exec "$id" id -u)" = 10001 ]
done

echo "--- an agent whose program crashes is started again"
id=$(docker compose ps --quiet agent-small-1)
docker exec "$id" sh -c 'kill -9 $(cat /proc/1/task/1/children)'
sleep 10
[ "$(docker inspect --format '{{.State.Status}}:{{.RestartCount}}' "$id")" = running:1 ]

echo "--- a round is over"
tries=0
until admin rounds list | grep -q closed; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || exit 1
    sleep 5
done
admin rounds list
echo "all well"
