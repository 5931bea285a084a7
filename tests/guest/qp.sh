# Three soft-RoCE hosts (h1, h2, h3) around a router that marks congestion; queue pairs of
# ib_write_bw beside what the kernel and a capture show of them. Prints what the agents and the
# kernel say in sections that begin with "=== NAME".
#
# The hosts' interfaces stay in the initial namespace; each is routed by the interface that it
# leaves by. The first agent starts before ib_core is loaded.
set -u
section() { echo "=== $*"; }
page() { wget -qO- "http://127.0.0.1:$1/metrics"; }
metrics() { page "$1" | grep -E '^weir_(rdma_qps|roce|agent_source_up|agent_bpf)'; }
qps() { /weir-agent qps --json --listen-metrics "127.0.0.1:$1"; }
wait_for() { # what, command...
  local what=$1 n
  shift
  for ((n = 0; n < 300; n++)); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.2
  done
  echo "never: $what"
}
source_qp_is() { page 9741 | grep -qx "weir_agent_source_up{source=\"qp\"} $1"; }
pairs_are() { [ "$(page "$1" | sed -n 's/^weir_rdma_qps{device="rxe[13]",type="RC",state="RT[RS]"} //p' | xargs)" = "$2" ]; }
start_agent() { # port, whether it counts packets
  WEIR_AGENT_COLLECTOR_ROCE=$2 /weir-agent run --node guest --config /tmp/agent$1.yaml --listen-metrics "127.0.0.1:$1" >>"/tmp/agent$1.log" 2>&1 &
}
filters() { for p in h1 h2; do for d in ingress egress; do echo "$p $d:" $(tc filter show dev $p $d | grep -oE 'weir_[a-z_]*|matchall' | sort -u); done; done; }
sent_by_h1() { page 9741 | sed -n 's/^weir_roce_packets_total{port="h1",direction="transmit"} //p'; }
h1_is_quiet() { local n; n=$(sent_by_h1); sleep 1.5; [ "$n" = "$(sent_by_h1)" ]; }

mkdir -p /tmp/state9741 /tmp/state9751 /etc
echo 'root:x:0:0::/root:/bin/bash' >/etc/passwd # tcpdump asks for it
for port in 9741 9751; do echo "state_dir: /tmp/state$port" >/tmp/agent$port.yaml; done
start_agent 9741 true
agent=$!
wait_for 'source qp is told down' source_qp_is 0
section before
metrics 9741

modprobe -a veth sch_tbf sch_red
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
ip netns exec r tc qdisc add dev p3 root handle 1: tbf rate 4mbit burst 20k limit 8m
ip netns exec r tc qdisc add dev p3 parent 1:1 handle 2: red limit 8000000 min 3000 max 9000 avpkt 1000 burst 4 bandwidth 4mbit ecn
modprobe -a rdma_rxe ib_uverbs rdma_ucm
wait_for 'source qp comes up with ib_core' source_qp_is 1
section after
metrics 9741
for n in 1 2 3; do rdma link add rxe$n type rxe netdev h$n; done
for p in h1 h2 h3; do ip link set $p gso_max_segs 1 2>/dev/null; done
h3_is_watched() { tc filter show dev h3 egress | grep -q weir; }
wait_for 'programs on the ports' h3_is_watched

tcpdump -i h1 -Q out -s 68 -B 16384 -Z root -w /tmp/h1.pcap udp dst port 4791 2>/tmp/h1.err &
d1=$!
tcpdump -i h3 -Q in -s 68 -B 16384 -Z root -w /tmp/h3.pcap udp dst port 4791 2>/tmp/h3.err &
d3=$!
wait_for 'captures run' grep -q listening /tmp/h3.err
wait_for 'captures run' grep -q listening /tmp/h1.err
# DSCP 26, ECN-capable; few outstanding and a patient sender: the router's
# queue holds them all, is always longer than where it begins to mark, and drops none.
SLURM_JOB_ID=77 ib_write_bw -d rxe3 -x 1 -q 4 -s 4096 -t 4 -u 18 --tclass=106 -D 60 >/tmp/server.log 2>&1 &
server=$!
sleep 1
SLURM_JOB_ID=77 ib_write_bw -d rxe1 -x 1 -q 4 -s 4096 -t 4 -u 18 --tclass=106 -D 60 127.0.0.1 >/tmp/client.log 2>&1 &
client=$!
wait_for 'four pairs on each side' pairs_are 9741 '4 4'
h1_sends() { [ "$(sent_by_h1)" -gt 500 ]; }
wait_for 'traffic' h1_sends
kill -STOP $client $server
wait_for 'h1 has sent what it had' h1_is_quiet
sleep 1
kill -INT $d1 $d3
wait $d1 $d3
section pids
echo $client $server
section pairs
qps 9741
section table
/weir-agent qps
section resources
rdma -j resource show qp
section counted
metrics 9741
section marked
ip netns exec r tc -s -j qdisc show dev p3
section captured
cat /tmp/h1.err /tmp/h3.err
section capture h1
gzip -9c /tmp/h1.pcap | base64
section capture h3
gzip -9c /tmp/h3.pcap | base64

# An agent that comes late knows what netlink tells.
start_agent 9751 false
late=$!
wait_for 'the late agent lists the pairs' pairs_are 9751 '4 4'
section late
qps 9751
# The shell says what it kills.
section killed
kill -CONT $client $server
sleep 1
kill -KILL $client
kill -TERM $server
wait $client $server
wait_for 'pairs of ended processes go' pairs_are 9741 ''
wait_for 'from the late agent too' pairs_are 9751 ''
section ended
qps 9741
section ended late
qps 9751
section late log
cat /tmp/agent9751.log
kill $late
wait $late

# A killed agent leaves its filters; the next one removes those, and nobody else's.
tc filter add dev h2 ingress pref 7 matchall action ok
kill -KILL $agent
wait $agent
section filters killed
filters
start_agent 9741 true
agent=$!
wait_for 'a new agent' source_qp_is 1
sleep 2
section filters restarted
filters
kill $agent
wait $agent
section filters stopped
filters
section log
cat /tmp/agent9741.log
section client
cat /tmp/client.log
