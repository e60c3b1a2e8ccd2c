//! The command line. Refuses every target that is not this machine.

use std::net::SocketAddrV4;

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Mode {
    Http,
    Grpc,
    Echo,
    Source,
    Sink,
    Churn,
    TcpChurn,
    Hold,
}

pub(crate) struct Args {
    pub(crate) mode: Mode,
    pub(crate) addr: SocketAddrV4,
    pub(crate) conns: usize,
    pub(crate) streams: usize,
    pub(crate) rate: f64,
    pub(crate) secs: f64,
    pub(crate) warm: f64,
    pub(crate) path: String,
    pub(crate) size: usize,
    pub(crate) reply: usize,
    pub(crate) poisson: bool,
    pub(crate) host: String,
}

fn usage() -> ! {
    eprintln!(
        "usage: bench-load http|grpc|echo|source|sink|churn|tcpchurn|hold ADDR:PORT [options]; see the source's head"
    );
    std::process::exit(2)
}

pub(crate) fn args() -> Args {
    let mut it = std::env::args().skip(1);
    let mode = match it.next().as_deref() {
        Some("http") => Mode::Http,
        Some("grpc") => Mode::Grpc,
        Some("echo") => Mode::Echo,
        Some("source") => Mode::Source,
        Some("sink") => Mode::Sink,
        Some("churn") => Mode::Churn,
        Some("tcpchurn") => Mode::TcpChurn,
        Some("hold") => Mode::Hold,
        _ => usage(),
    };
    let addr: SocketAddrV4 = match it.next().and_then(|s| s.parse().ok()) {
        Some(a) => a,
        None => usage(),
    };
    // 10.77/16 exists only inside the benchmark's own network namespace.
    let own = addr.ip().octets()[..2] == [10, 77] && std::env::var_os("BENCH_IN_NS").is_some();
    assert!(addr.ip().is_loopback() || own, "loopback targets only");
    let mut a = Args {
        mode,
        addr,
        conns: 8,
        streams: 8,
        rate: 0.0,
        secs: 3.0,
        warm: 0.5,
        path: "/small".into(),
        size: 0,
        reply: 128,
        poisson: false,
        host: "backend".into(),
    };
    if mode == Mode::Grpc || mode == Mode::Echo || mode == Mode::TcpChurn {
        a.size = 128;
    }
    while let Some(k) = it.next() {
        if k == "--poisson" {
            a.poisson = true;
            continue;
        }
        let v = it.next().unwrap_or_else(|| usage());
        match k.as_str() {
            "--conns" => a.conns = v.parse().unwrap(),
            "--streams" => a.streams = v.parse().unwrap(),
            "--rate" => a.rate = v.parse().unwrap(),
            "--secs" => a.secs = v.parse().unwrap(),
            "--warm" => a.warm = v.parse().unwrap(),
            "--path" => a.path = v,
            "--size" => a.size = v.parse().unwrap(),
            "--reply" => a.reply = v.parse().unwrap(),
            "--host" => a.host = v,
            _ => usage(),
        }
    }
    if a.mode != Mode::Grpc {
        a.streams = 1;
    }
    a.secs = a.secs.min(120.0);
    a
}
