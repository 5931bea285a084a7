use weir_sim::scenario::Scenario;
fn main(){
  for f in std::env::args().skip(1) {
    let s=Scenario::parse(&std::fs::read_to_string(&f).unwrap()).unwrap();
    let mut sim=s.build().unwrap();
    let t=std::time::Instant::now();
    let done=sim.run_jobs(s.limit());
    let dt=t.elapsed().as_secs_f64();
    println!("{f}: done {done} {:.3} ms, {} data pkts {:.0} kpps events/pkt {:.1}", sim.now() as f64/1e9, sim.totals().data_delivered, sim.totals().data_delivered as f64/dt/1e3, sim.totals().events as f64/sim.totals().data_delivered as f64);
    for j in sim.jobs(){ println!(" {} mean {:?} {:?}", j.spec.name, j.mean_us(), j.durations().map(|d| (d as f64/1e5).round()/10.0).collect::<Vec<_>>()); }
    let sm=sim.sample();
    let mut ecn=0; let mut pt=0; let mut pp=0;
    for p in &sm.ports { ecn+=p.ecn_marked_tx; pt+=p.pause_tx; pp+=p.pause_rx_ps; }
    let cnp:u64=sm.hosts.iter().map(|h|h.cnp_tx).sum(); let nak:u64=sm.hosts.iter().map(|h|h.nak_tx).sum(); let rto:u64=sm.hosts.iter().map(|h|h.ack_timeouts).sum();
    println!("  ecn {ecn} cnp {cnp} pfc {pt} paused_us {:.1} nack {nak} rto {rto} lost {}", pp as f64/1e6, sim.totals().lost_buffer);
  }
}
