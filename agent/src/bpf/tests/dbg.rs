#[test]
fn dbg() {
    println!("{:?}", crate::bpf::Bpf::load(&crate::bpf::BpfOptions{tcp:true,..Default::default()}).sources);
    let mut b = super::rig::load(&crate::bpf::BpfOptions {
        tcp: true,
        ..Default::default()
    })
    .unwrap();
    let p = super::rig::Pair::make().unwrap();
    println!(
        "cookie A {:?} own {:?}",
        super::rig::inside(&p.first, || crate::bpf::sys::netns_cookie()),
        crate::bpf::sys::netns_cookie()
    );
    let l = super::rig::inside(&p.second, || std::net::TcpListener::bind("10.77.0.2:0")).unwrap();
    let a = l.local_addr().unwrap();
    let c = super::rig::inside(&p.first, || std::net::TcpStream::connect(a)).unwrap();
    println!("{:?}", b.poll(std::time::Instant::now()).flows);
    println!(
        "{}",
        super::rig::output("bpftool cgroup tree /sys/fs/cgroup/unified")
    );
    println!("{}", super::rig::output("bpftool map dump name FLOWS"));
    drop(c);
}
