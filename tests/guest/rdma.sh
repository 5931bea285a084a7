# Two soft-RoCE hosts (h1, h3) and a third (h2) around a router; traffic, loss, a link that goes
# down, a device that is removed under load. Prints what the agent and the kernel say in sections
# that begin with "=== NAME".
#
# The hosts' interfaces stay in the initial namespace, where sysfs shows hardware counters; each is
# routed by the interface that it leaves by.
set -u
metrics() { wget -qO- http://127.0.0.1:9741/metrics | grep -E '^weir_(rdma|raw|agent_source)'; }
section() { echo "=== $*"; }
write_bw() { # seconds
  ib_write_bw -d rxe3 -x 1 -D "$1" >/tmp/server.log 2>&1 &
  sleep 1
  ib_write_bw -d rxe1 -x 1 -D "$1" 127.0.0.1 >/tmp/client.log 2>&1
  wait $!
}

modprobe -a rdma_rxe ib_uverbs rdma_ucm veth sch_netem
for key in all/rp_filter default/rp_filter; do echo 0 >/proc/sys/net/ipv4/conf/$key; done
echo 1 >/proc/sys/net/ipv4/conf/all/accept_local
ip rule add pref 100 table local
ip rule del pref 0
ip netns add r
for n in 1 2 3; do
  ip link add h$n type veth peer name p$n netns r
  ip addr add 10.0.$n.2/24 dev h$n
  ip link set h$n up
  ip -n r addr add 10.0.$n.1/24 dev p$n
  ip -n r link set p$n up
  ip rule add pref $n oif h$n lookup 10$n
  ip route add 10.0.$n.0/24 dev h$n src 10.0.$n.2 table 10$n
  ip route add default via 10.0.$n.1 dev h$n src 10.0.$n.2 table 10$n
  rdma link add rxe$n type rxe netdev h$n
done
ip netns exec r bash -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done'

mkdir -p /tmp/state
echo 'state_dir: /tmp/state' >/tmp/agent.yaml
/weir-agent run --node guest --config /tmp/agent.yaml >/tmp/agent.log 2>&1 &
agent=$!
sleep 3

write_bw 2
sleep 3
section clean
metrics
for n in 1 3; do section statistic rxe$n; rdma -j statistic show link rxe$n/1; echo; done

ip netns exec r tc qdisc add dev p3 root netem loss 1% limit 10000
write_bw 3
sleep 3
section loss
metrics
for n in 1 3; do section lost rxe$n; rdma -j statistic show link rxe$n/1; echo; done
ip netns exec r tc qdisc del dev p3 root

ip link set h2 down
sleep 2
section down
metrics | grep rxe2

write_bw 6 &
sleep 3
rdma link del rxe3
sleep 3
section removed
metrics
section alive
kill -0 $agent && echo yes
section log
cat /tmp/agent.log
