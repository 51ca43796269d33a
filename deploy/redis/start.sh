#!/bin/sh
# Starts Redis, or a Sentinel, for the controllers. The password is drawn at the first start and stays in a volume; the
# users may do what the files that REDIS_USERS names allow, and nobody else may do anything.
set -eu
HERE=/etc/redis-controller
SECRET=/run/controller # shared with the controllers, who only read it
DATA=/data

umask 077
if [ ! -s "$SECRET/password" ]; then
  head -c 32 /dev/urandom | base64 | tr -d '/+=\n' >"$SECRET/password.$$"
  ln "$SECRET/password.$$" "$SECRET/password" 2>/dev/null || true # of several that start at once, the first has drawn
  rm "$SECRET/password.$$"
fi
chgrp -R 10001 "$SECRET" # the controllers' group
chmod 750 "$SECRET"
chmod 640 "$SECRET/password"
password=$(cat "$SECRET/password")

run() {
  find "$DATA" /tmp/redis ! -user redis -exec chown redis: {} +
  exec setpriv --reuid=redis --regid=redis --clear-groups "$@"
}

mkdir -p /tmp/redis
if [ "${1:-}" = sentinel ]; then
  # It goes by the address, not the name: the name of a container that has died cannot be resolved.
  until master=$(getent hosts redis); do sleep 0.2; done
  sed "s|MASTER|${master%% *}|; s|PASSWORD|$password|" "$HERE/sentinel.conf" >/tmp/redis/sentinel.conf
  run redis-server /tmp/redis/sentinel.conf --sentinel
fi
for users in ${REDIS_USERS:-users.acl}; do
  sed "s|>PASSWORD|>$password|" "$HERE/$users"
done >/tmp/redis/users.acl
printf 'include %s/redis.conf\nmasteruser replication\nmasterauth %s\n' "$HERE" "$password" >/tmp/redis/redis.conf
run redis-server /tmp/redis/redis.conf "$@"
