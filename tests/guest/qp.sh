# Three soft-RoCE hosts (h1, h2, h3) around a router that marks congestion; queue pairs of
# ib_write_bw beside what the kernel and a capture show of them. Prints what the agents and the
# kernel say in sections that begin with "=== NAME".
#
# The hosts' interfaces stay in the initial namespace; each is routed by the interface that it
# leaves by. The agents start before ib_core is loaded.
set -u
section() { echo "=== $*"; }
metrics() { wget -qO- http://127.0.0.1:$1/metrics | grep -E '^weir_(rdma_qps|roce|agent_source_up|agent_bpf)'; }
qps() { /weir-agent qps --json; }
until_true() { # what, command...
  local what=$1 n
  shift
  for ((n = 0; n < 300; n++)); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.2
  done
  echo "never: $what"
}
pairs_are() { [ "$(qps | grep -c '"state": "RTS"')" = "$1" ]; }
source_is() { wget -qO- http://127.0.0.1:9741/metrics | grep -qx "weir_agent_source_up{source=\"qp\"} $1"; }

mkdir -p /tmp/state
echo 'state_dir: /tmp/state' >/tmp/agent.yaml
WEIR_AGENT_COLLECTOR_ROCE=true SLURM_JOB_ID=agent /weir-agent run --node guest --config /tmp/agent.yaml >/tmp/agent.log 2>&1 &
agent=$!
until_true 'source qp is told down' source_is 0
section before
metrics 9741

modprobe -a veth sch_netem sch_red
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
done
ip netns exec r bash -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done'
modprobe -a rdma_rxe ib_uverbs rdma_ucm
until_true 'source qp comes up with ib_core' source_is 1
section after
metrics 9741
for n in 1 2 3; do rdma link add rxe$n type rxe netdev h$n; done

section list
qps
section kernel
rdma -j resource show qp
section log
cat /tmp/agent.log
kill $agent
wait $agent
section gone
tail -5 /tmp/agent.log
