# Four soft-RoCE hosts on two leaves and four spines, with as many equal paths across. The program
# weir-verbs by itself: pings over all paths, one of them lossy, one of them slow, and which UDP
# source ports they take. Then the agent with it: a link that goes down and up, a device that is removed under load.
# Prints sections that begin with "=== NAME".
#
# The hosts' interfaces stay in the initial namespace; each is routed by the interface that it
# leaves by.
set -u
section() { echo "=== $*"; }
metrics() { wget -qO- http://127.0.0.1:9741/metrics | grep -E '^weir_(agent_source_up|agent_events_total|raw_total.*verbs)'; }
field() { # device name: of its last endpoint
  grep "{\"endpoint\":{\"device\":\"$1\"" /tmp/out | tail -1 | grep -o "\"$2\":[0-9]*" | cut -d: -f2
}
until_there() { # pattern file: waits up to 30 s
  for _ in $(seq 150); do grep -q "$1" "$2" && return; sleep 0.2; done
  echo "no $1 in $2"
}
until_metric() { # pattern: waits up to 30 s
  for _ in $(seq 60); do metrics | grep -q "$1" && return; sleep 0.5; done
  echo "no $1"
}

modprobe -a rdma_rxe ib_uverbs rdma_ucm veth sch_netem
for key in all/rp_filter default/rp_filter; do echo 0 >/proc/sys/net/ipv4/conf/$key; done
echo 1 >/proc/sys/net/ipv4/conf/all/accept_local
ip rule add pref 100 table local
ip rule del pref 0
for n in l1 l2 s1 s2 s3 s4; do ip netns add $n; done
host() { # number leaf
  ip link add h$1 type veth peer name d$1 netns l$2
  ip addr add 10.$2.$1.2/24 dev h$1
  ip link set h$1 up
  ip -n l$2 addr add 10.$2.$1.1/24 dev d$1
  ip -n l$2 link set d$1 up
  ip rule add pref $1 oif h$1 lookup 10$1
  ip route add 10.$2.$1.0/24 dev h$1 src 10.$2.$1.2 table 10$1
  ip route add default via 10.$2.$1.1 dev h$1 src 10.$2.$1.2 table 10$1
  rdma link add rxe$1 type rxe netdev h$1
}
host 1 1
host 2 1
host 3 2
host 4 2
for s in 1 2 3 4; do
  for l in 1 2; do
    ip link add u$s netns l$l type veth peer name d$l netns s$s
    ip -n l$l addr add 172.16.$l$s.1/24 dev u$s
    ip -n s$s addr add 172.16.$l$s.2/24 dev d$l
    ip -n l$l link set u$s up
    ip -n s$s link set d$l up
    ip -n s$s route add 10.$l.0.0/16 via 172.16.$l$s.1
  done
done
for l in 1 2; do
  hops=""
  for s in 1 2 3 4; do hops="$hops nexthop via 172.16.$l$s.2 dev u$s"; done
  ip -n l$l route add 10.$((3 - l)).0.0/16 $hops
done
for n in l1 l2 s1 s2 s3 s4; do
  ip netns exec $n bash -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv4/fib_multipath_hash_policy
    for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done'
done

section list
/weir-verbs list --device-exclude rxe4

mkfifo /tmp/in
: >/tmp/out
/weir-verbs serve </tmp/in >>/tmp/out 2>/tmp/err &
verbs=$!
exec 3>/tmp/in
for n in 1 2 3 4; do until_there "\"endpoint\":{\"device\":\"rxe$n\"" /tmp/out; done

# Pings from leaf 1 to leaf 2 over eight labels, and to the neighbour on the same leaf.
targets() {
  for pair in 1:3:10.2.3.2 2:4:10.2.4.2 1:2:10.1.2.2; do
    IFS=: read -r from to address <<<"$pair"
    for label in 0 1 2 3 4 5 6 7; do
      echo "{\"id\":\"$from-$to-$label\",\"device\":\"rxe$from\",\"gid\":\"::ffff:$address\",\"qpn\":$(field rxe$to qpn),\"qkey\":$(field rxe$to qkey),\"flow_label\":$label}"
    done
  done | paste -sd,
}
echo 'this is no order' >&3
echo '{"targets":[{"id":"x","device":"rxe1","gid":"nowhere","qpn":17,"qkey":1}],"packets_per_second":1}' >&3
# What crosses the spines from leaf 1, with its bytes: label and kind stand in each packet.
for s in 1 2 3 4; do
  ip netns exec s$s tcpdump -Z root -i d2 -nnxl -c 400 udp dst port 4791 and src net 10.1.0.0/16 >/tmp/cap$s 2>/dev/null &
done
orders=$(targets)
echo "{\"targets\":[$orders],\"packets_per_second\":100}" >&3
sleep 5
# One path loses, one is slow.
ip netns exec s2 tc qdisc add dev d2 root netem loss 5% limit 10000
ip netns exec s3 tc qdisc add dev d2 root netem delay 200ms limit 10000
sleep 2
lines=$(wc -l </tmp/out)
echo "{\"targets\":[$orders],\"packets_per_second\":200}" >&3
sleep 40
section mesh
tail -n +$((lines + 1)) /tmp/out | grep '"report"'
section errors
grep '"error"' /tmp/out
section counters
grep '"status"' /tmp/out | tail -1
for s in 1 2 3 4; do
  section spine $s
  cat /tmp/cap$s
done
ip netns exec s2 tc qdisc del dev d2 root
ip netns exec s3 tc qdisc del dev d2 root

section ceiling
echo '{"targets":[],"packets_per_second":0}' >&3
sleep 2
before=$(rdma -j statistic show link rxe1/1 | grep -o '"sent_pkts":[0-9]*' | cut -d: -f2)
since=$(cut -d' ' -f1 /proc/uptime)
echo "{\"targets\":[{\"id\":\"nobody\",\"device\":\"rxe1\",\"gid\":\"::ffff:10.2.3.2\",\"qpn\":$(field rxe3 qpn),\"qkey\":1}],\"packets_per_second\":4294967295}" >&3
sleep 3
echo "$before $(rdma -j statistic show link rxe1/1 | grep -o '"sent_pkts":[0-9]*' | cut -d: -f2) $since $(cut -d' ' -f1 /proc/uptime)"

section byhand
echo '{"targets":[],"packets_per_second":0}' >&3
/weir-verbs ping --device rxe2 --gid ::ffff:10.2.4.2 --qpn "$(field rxe4 qpn)" --qkey "$(field rxe4 qkey)" --count 7
section end of input
exec 3>&-
wait $verbs
echo "ended $?"
cat /tmp/err

mkdir -p /tmp/state
echo 'state_dir: /tmp/state' >/tmp/agent.yaml
/weir-agent run --node guest --config /tmp/agent.yaml --device-exclude rxe4 >/tmp/agent.log 2>&1 &
agent=$!
for n in 1 2 3; do until_metric "weir_raw_total{.*rxe$n"; done
section agent
metrics
section down
ip link set h2 down
until_metric 'name="port_error"'
metrics
section up
ip link set h2 up
until_metric 'name="port_active"'
metrics
# Removed while others use it.
(ib_write_bw -d rxe3 -x 1 -D 4 >/tmp/server.log 2>&1 & sleep 1; ib_write_bw -d rxe1 -x 1 -D 4 127.0.0.1 >/tmp/client.log 2>&1) &
sleep 3
rdma link del rxe3
until_metric 'name="device_removed"'
sleep 4
section removed
metrics
section missing
kill $agent
wait $agent
mv /weir-verbs /weir-verbs.away
/weir-agent run --node guest --config /tmp/agent.yaml >/tmp/agent2.log 2>&1 &
agent=$!
until_metric 'source="verbs"} 0'
metrics | grep source_up
grep -c weir-verbs /tmp/agent2.log
grep weir-verbs /tmp/agent2.log
kill $agent
section log
cat /tmp/agent.log
