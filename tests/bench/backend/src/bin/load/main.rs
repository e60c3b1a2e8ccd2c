//! Load generator: one thread, one epoll loop, open or closed loop.
//!
//! bench-load MODE ADDR:PORT [--conns N] [--streams N] [--rate R] [--secs S] [--warm S]
//!        [--path P] [--size BYTES] [--reply BYTES] [--poisson]
//!
//! MODE  http   HTTP/1.1; --size > 0 makes it a POST with that body
//!       grpc   HTTP/2 prior knowledge, gRPC framing, --streams in flight a connection
//!       echo   TCP ping-pong of --size bytes
//!       source TCP: read for ever;  sink  TCP: write for ever
//!       churn  one HTTP/1.1 request per new connection
//!       tcpchurn  connect, echo --size bytes, close
//!       hold   open --conns connections, one HTTP/1.1 request on each, keep them --secs
//!
//! --rate R > 0 is an open loop: R requests a second on a fixed schedule, each
//! latency counted from the scheduled instant (so a stalled server is not
//! forgiven: "coordinated omission" is counted). --rate 0 is a closed loop.
//! Prints one JSON object.

mod args;
mod h2;
mod run;

use std::collections::VecDeque;

use args::{args, Mode};
use hdrhistogram::Histogram;
use outrigger_bench::*;
use run::{Conn, H2State, Run};

fn main() {
    raise_nofile();
    let a = args();
    let http_req = if a.size > 0 && a.mode == Mode::Http {
        let mut v = format!(
            "POST {} HTTP/1.1\r\nhost: {}\r\nuser-agent: bench-load\r\ncontent-length: {}\r\n\r\n",
            a.path, a.host, a.size
        )
        .into_bytes();
        v.resize(v.len() + a.size, b'x');
        v
    } else {
        format!(
            "GET {} HTTP/1.1\r\nhost: {}\r\nuser-agent: bench-load\r\naccept: */*\r\n\r\n",
            a.path, a.host
        )
        .into_bytes()
    };
    let echo_buf = vec![b'x'; a.size.max(1)];
    let t0 = now_ns();
    let warm = (a.warm * 1e9) as u64;
    let mut r = Run {
        ep: Epoll::new().unwrap(),
        conns: Vec::new(),
        idle: VecDeque::new(),
        waiting: VecDeque::new(),
        hist: Histogram::new_with_bounds(1, 600_000_000, 3).unwrap(),
        count: 0,
        bytes: 0,
        errors: 0,
        conn_errors: 0,
        record_from: t0 + warm,
        stop_at: t0 + warm + (a.secs * 1e9) as u64,
        http_req,
        echo_buf,
        rr: 0,
        established: 0,
        a,
    };
    let churn = matches!(r.a.mode, Mode::Churn | Mode::TcpChurn);
    for slot in 0..r.a.conns {
        r.conns.push(Conn {
            fd: -1,
            connected: false,
            busy: 0,
            started: VecDeque::new(),
            inb: Vec::new(),
            out: Vec::new(),
            out_pos: 0,
            left: 0,
            want_out: false,
            h2: H2State::default(),
            done_one: false,
            gen: 0,
        });
        if churn {
            if r.a.rate == 0.0 {
                r.new_churn(slot, t0);
            } else {
                r.idle.push_back(slot);
            }
        } else if r.a.mode != Mode::Hold {
            r.open(slot);
        }
    }
    let gap = if r.a.rate > 0.0 { 1e9 / r.a.rate } else { 0.0 };
    // The schedule starts after 50 ms, when the connections are up.
    let mut next = t0 as f64 + 50e6;
    let mut rng: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut events: Vec<libc::epoll_event> = vec![unsafe { std::mem::zeroed() }; 512];
    let mut buf = vec![0u8; 256 * 1024];
    let mut warm_bytes = None;
    let mut opened = 0usize;
    let mut announced = false;
    let mut ended = t0;
    loop {
        let mut now = now_ns();
        if warm_bytes.is_none() && now >= r.record_from {
            warm_bytes = Some((r.bytes, now));
        }
        if now >= r.stop_at {
            // Let what is on its way come back, at most two seconds.
            let busy = r.conns.iter().any(|c| c.busy > 0 && c.fd >= 0);
            if ended == t0 {
                ended = now;
            }
            if !busy || matches!(r.a.mode, Mode::Source | Mode::Sink | Mode::Hold) || now >= r.stop_at + 2_000_000_000 {
                break;
            }
        }
        if r.a.mode == Mode::Hold && opened < r.a.conns {
            // Open in small batches: no listen queue overflows.
            let pending = opened - r.established.min(opened);
            if pending < 64 {
                for _ in 0..16 {
                    if opened < r.a.conns {
                        r.open(opened);
                        opened += 1;
                    }
                }
            }
        }
        if r.a.mode == Mode::Hold && !announced && r.conns.iter().all(|c| c.done_one) {
            announced = true;
            println!("READY");
        }
        let mut wait: i64 = 50_000_000;
        if gap > 0.0 && now < r.stop_at {
            while next <= now as f64 {
                r.due(next as u64);
                if r.a.poisson {
                    rng ^= rng << 13;
                    rng ^= rng >> 7;
                    rng ^= rng << 17;
                    let u = ((rng >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
                    next += -u.ln() * gap;
                } else {
                    next += gap;
                }
            }
            now = now_ns();
            wait = (next as i64 - now as i64).clamp(0, 50_000_000);
        } else if r.a.mode == Mode::Hold && opened < r.a.conns {
            wait = 1_000_000;
        }
        let n = r.ep.wait(&mut events, wait);
        for ev in events.iter().take(n) {
            let slot = ev.u64 as usize;
            let flags = ev.events;
            if r.conns[slot].fd < 0 {
                continue;
            }
            let gen = r.conns[slot].gen;
            let mut dead = false;
            if flags & libc::EPOLLOUT as u32 != 0 {
                if !r.conns[slot].connected && flags & libc::EPOLLERR as u32 == 0 {
                    r.conns[slot].connected = true;
                    let t = now_ns();
                    r.on_connected(slot, t);
                }
                r.flush(slot);
            }
            if flags & (libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
                && r.conns[slot].gen == gen
                && r.conns[slot].fd >= 0
            {
                match read(r.conns[slot].fd, &mut buf) {
                    Ok(Some(0)) | Err(_) => dead = true,
                    Ok(None) => {}
                    Ok(Some(n)) => {
                        let t = now_ns();
                        let (d, _) = buf.split_at(n);
                        // The buffer is not touched while the data is read.
                        let d: &[u8] = unsafe { std::slice::from_raw_parts(d.as_ptr(), n) };
                        r.on_data(slot, d, t);
                    }
                }
            }
            if dead && r.conns[slot].gen == gen {
                let t = now_ns();
                if r.conns[slot].busy > 0 || !r.conns[slot].connected {
                    r.errors += 1;
                }
                if churn {
                    r.churn_next(slot, t);
                } else {
                    r.close(slot);
                    if t < r.stop_at && r.conn_errors < 1000 && r.a.mode != Mode::Hold {
                        r.conn_errors += 1;
                        r.open(slot);
                    }
                }
            }
        }
    }
    let (b0, bt) = warm_bytes.unwrap_or((0, t0));
    let span = (ended.max(bt + 1) - bt) as f64 / 1e9;
    let mut u: libc::rusage = unsafe { std::mem::zeroed() };
    unsafe {
        libc::getrusage(libc::RUSAGE_SELF, &mut u);
    }
    let cpu =
        u.ru_utime.tv_sec as f64 + u.ru_stime.tv_sec as f64 + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) as f64 / 1e6;
    let us = |q: f64| r.hist.value_at_quantile(q) as f64 / 10.0;
    println!(
        "{{\"requests\":{},\"errors\":{},\"conn_errors\":{},\"unsent\":{},\"secs\":{:.3},\"rps\":{:.1},\"mbps\":{:.2},\"mean_us\":{:.1},\"p50_us\":{:.1},\"p90_us\":{:.1},\"p99_us\":{:.1},\"p999_us\":{:.1},\"max_us\":{:.1},\"load_cpu_s\":{:.3}}}",
        r.count,
        r.errors,
        r.conn_errors,
        r.waiting.len(),
        span,
        r.count as f64 / span,
        (r.bytes - b0) as f64 / span / 1e6,
        r.hist.mean() / 10.0,
        us(0.5),
        us(0.9),
        us(0.99),
        us(0.999),
        r.hist.max() as f64 / 10.0,
        cpu
    );
}
