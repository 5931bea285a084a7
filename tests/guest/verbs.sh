# Four soft-RoCE hosts on two leaves and four spines, with as many equal paths across. The program
# weir-verbs by itself: pings over all paths, one of them lossy, one of them slow, and which UDP
# source ports they take. Then the agent with it: a link that goes down and up, a device that is removed under load.
# Prints sections that begin with "=== NAME".
#
# The hosts' interfaces stay in the initial namespace; each is routed by the interface that it
# leaves by.
set -u
section() { echo "=== $*"; }
metrics() { wget -qO- 2>/dev/null http://127.0.0.1:9741/metrics | grep -E '^weir_(agent_source_up|agent_events_total|raw_total.*verbs)'; }
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

# A target of the host FROM: the host TO on its leaf, on the path LABEL.
target() { # from to leaf label
  echo "{\"id\":\"$1-$2-$4\",\"device\":\"rxe$1\",\"gid\":\"::ffff:10.$3.$2.2\",\"qpn\":$(field rxe$2 qpn),\"qkey\":$(field rxe$2 qkey),\"flow_label\":$4}"
}
order() { # packets per second, targets one a line
  echo "{\"targets\":[$(paste -sd,)],\"packets_per_second\":$1}" >&3
}
crossed() { # spine: packets that left it for leaf 2
  ip netns exec s$1 cat /proc/net/dev | awk '$1 == "d2:" {print $11}'
}
spine_of() { # label, of host 1's pings to host 3
  before=("" $(for s in 1 2 3 4; do crossed $s; done))
  target 1 3 2 $1 | order 50
  for _ in $(seq 100); do
    for s in 1 2 3 4; do (($(crossed $s) >= before[s] + 20)) && echo $s && return; done
    sleep 0.1
  done
}
echo 'this is no order' >&3
echo '{"targets":[{"id":"x","device":"rxe1","gid":"nowhere","qpn":17,"qkey":1}],"packets_per_second":1}' >&3
# One path of host 1 to host 3 will lose, another be slow.
lossy=$(spine_of 0)
for label in 1 2 3 4 5 6 7; do slow=$(spine_of $label); [[ $slow != "$lossy" ]] && break; done
section spines
echo "$lossy $slow"

# From leaf 1 to leaf 2 on eight paths, twice, and to the neighbour on the same leaf.
{
  for label in 0 1 2 3 4 5 6 7; do target 1 3 2 $label; target 2 4 2 $label; done
  target 1 3 2 8
  target 1 2 1 0
  target 3 4 2 0
} >/tmp/targets
# What leaves the spines for leaf 2: each packet names its kind and label.
echo root:x:0:0:root:/root:/bin/sh >/etc/passwd
sniffers=()
for s in 1 2 3 4; do
  ip netns exec s$s tcpdump -Z root -i d2 -nnxl 'udp dst port 4791 and udp[28:4] = 0x57454952' >/tmp/sniffed$s 2>/tmp/sniffer$s &
  sniffers+=($!)
done
for s in 1 2 3 4; do until_there listening /tmp/sniffer$s; done
order 100 </tmp/targets
for from in 1:3 2:4; do
  for label in 0 1 2 3 4 5 6 7; do until_there "\"report\":{\"id\":\"${from/:/-}-$label\"" /tmp/out; done
done
sleep 2
kill "${sniffers[@]}"
wait "${sniffers[@]}"
section sniffed
for s in 1 2 3 4; do
  awk '/^[0-9]/ {source = $3; to = $5} /0x0030:/ {kind = substr($4, 4, 1)} /0x0040:/ {print source, to, kind, $6 $7}' /tmp/sniffed$s |
    sort | uniq -c | sed "s/^ */$s /"
done

ip netns exec s$lossy tc qdisc add dev d2 root netem loss 5% limit 10000
ip netns exec s$slow tc qdisc add dev d2 root netem delay 300ms limit 10000
sleep 2
lines=$(wc -l </tmp/out)
order 150 </tmp/targets
sleep 30
section mesh
tail -n +$((lines + 1)) /tmp/out | grep '"report"'
section errors
grep '"error"' /tmp/out
section status
grep '"status"' /tmp/out | tail -1
ip netns exec s$lossy tc qdisc del dev d2 root
ip netns exec s$slow tc qdisc del dev d2 root

# Only host 2 is on the list: host 4 answers it, host 3 does not answer host 1.
counter() { grep '"status"' /tmp/out | tail -1 | grep -o "\"$1\":{[^}]*" | grep -o "\"$2\":[0-9]*" | cut -d: -f2; }
section listed
answered=$(counter rxe4 pings_answered)
{ target 1 3 2 0; target 2 4 2 0; } | paste -sd, |
  sed 's/.*/{"targets":[&],"packets_per_second":40,"probers":["::ffff:10.1.2.2"]}/' >&3
for _ in $(seq 100); do (($(counter rxe3 pings_not_listed) > 20 && $(counter rxe4 pings_answered) > answered + 20)) && break; sleep 0.3; done
sleep 2
for n in 3 4; do echo "rxe$n $(counter rxe$n pings_not_listed) $(counter rxe$n pings_answered)"; done
echo "$answered"

# Datagrams that fit no buffer: the port takes them for somebody else's and goes on.
section oversized
: | order 0
foreign=$(counter rxe4 foreign_packets)
for padding in 900 0; do
  echo "padding $padding"
  /weir-verbs ping --device rxe2 --gid ::ffff:10.2.4.2 --qpn "$(field rxe4 qpn)" --qkey "$(field rxe4 qkey)" \
    --count 10 --padding $padding
done
sleep 2
echo "counters"
echo "$foreign $(counter rxe4 foreign_packets) $(counter rxe4 completions_failed)"

# Another key than the endpoint's: nobody answers. Far more is asked for than may be.
section ceiling
: | order 0
sleep 2
sent() { grep '"status"' /tmp/out | tail -1 | grep -o '"rxe1":{"pings_sent":[0-9]*' | grep -o '[0-9]*$'; }
before=$(sent)
since=$(cut -d' ' -f1 /proc/uptime)
target 1 3 2 0 | sed 's/"qkey":[0-9]*/"qkey":1/' | order 4294967295
sleep 14
echo "$before $(sent) $since $(cut -d' ' -f1 /proc/uptime)"
grep '"report"' /tmp/out | tail -1

section byhand
: | order 0
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
for n in 1 2 3; do until_metric "rxe$n" 2>/dev/null; done
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
# The child crashes; the agent ends.
section crash
child=$(pidof weir-verbs)
kill -9 "$child"
for _ in $(seq 100); do
  now=$(pidof weir-verbs) && [[ $now != "$child" ]] && break
  sleep 0.3
done
[[ -n $now && $now != "$child" ]] && echo restarted
until_metric 'raw_total{.*rxe1'
metrics | grep 'source="verbs"} 1'
grep -E 'VmRSS|Threads|CapEff|CapPrm|NoNewPrivs' /proc/"$now"/status
kill -9 $agent
wait $agent
for _ in $(seq 100); do
  pidof weir-verbs >/dev/null || break
  sleep 0.1
done
pidof weir-verbs || echo alone
section missing
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
