#!/bin/sh
# Starts Redis, or a Sentinel, for the controllers. Passwords are drawn at the first start and stay in a volume: one for
# the controllers, one for operators, replicas and Sentinels. The users may do what the files that REDIS_USERS names allow,
# and nobody else may do anything. For images on Debian, as redis:8 is.
set -eu
HERE=/etc/redis-controller
SECRET=/run/controller # shared with the controllers, who read their password in it and nothing else
DATA=/data

umask 077
draw() { # of several that start at once, the first has drawn
  [ -s "$1" ] && return
  drawn=$(mktemp "$1.XXXXXX")
  head -c 32 /dev/urandom | base64 | tr -d '/+=\n' >"$drawn"
  ln "$drawn" "$1" 2>/dev/null || true
  rm -f "$drawn"
}
draw "$SECRET/password"
draw "$SECRET/operator-password"
chgrp 10001 "$SECRET" "$SECRET/password" # the controllers' group
chmod 750 "$SECRET"
chmod 640 "$SECRET/password"
password=$(cat "$SECRET/password")
operator=$(cat "$SECRET/operator-password")
if [ -z "$password" ] || [ -z "$operator" ]; then
  echo "A password in $SECRET is empty. Remove it, and start again." >&2
  exit 1
fi

run() {
  find "$DATA" /tmp/redis ! -user redis -exec chown redis: {} +
  exec setpriv --reuid=redis --regid=redis --clear-groups "$@"
}

keep() { # the lines of a file, if it is there, that match
  if [ -s "$1" ]; then grep -E "$2" "$1" || true; fi
}

address() {
  found=$(getent hosts "$1") && echo "${found%% *}"
}

# Redis and Sentinel write into their configuration. It is made anew at each start, so that changes of the files here
# arrive, and of what they wrote only that is kept which must outlive a restart.
mkdir -p /tmp/redis
if [ "${1:-}" = sentinel ]; then
  # Addresses may be others after a restart, so the master's is looked up by its name, which moved.sh has written down.
  # They cannot go by names all the time: the name of a container that has died is nobody's.
  master=$(cat "$DATA/master" 2>/dev/null || echo redis)
  others=""
  for tries in $(seq 50); do
    main=$(address "$master") && break
    sleep 0.2
  done
  for name in $REDIS_NODES; do
    if [ "$name" != "$master" ] && other=$(address "$name"); then others="$others $other"; fi
  done
  {
    # When it is not there, this one is down too, and the Sentinels make another the master.
    sed "s|MASTER|${main:-127.0.0.2}|; s|PASSWORD|$operator|" "$HERE/sentinel.conf"
    for other in $others; do echo "sentinel known-replica main $other 6379"; done
    keep "$DATA/sentinel.conf" '^sentinel (myid|current-epoch|config-epoch|leader-epoch) '
  } >"$DATA/sentinel.conf.new"
  mv "$DATA/sentinel.conf.new" "$DATA/sentinel.conf"
  run redis-server "$DATA/sentinel.conf" --sentinel
fi
for users in ${REDIS_USERS:-users.acl}; do
  sed "s|>PASSWORD|>$password|; s|>OPERATOR|>$operator|" "$HERE/$users"
done >/tmp/redis/users.acl
{
  printf 'include %s/redis.conf\nmasteruser replication\nmasterauth %s\n' "$HERE" "$operator"
  if [ -s "$DATA/redis.conf" ]; then # whose replica it is, the Sentinels have said; if it is nobody's, they have too
    printf '%s\n' "$@" | grep -v '^replicaof ' || true
    keep "$DATA/redis.conf" '^replicaof '
  else
    printf '%s\n' "$@"
  fi
} >"$DATA/redis.conf.new"
mv "$DATA/redis.conf.new" "$DATA/redis.conf"
run redis-server "$DATA/redis.conf"
