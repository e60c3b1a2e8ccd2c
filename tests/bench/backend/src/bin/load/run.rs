//! One run: connections, requests, what came back.

use std::collections::{HashMap, VecDeque};
use std::os::fd::RawFd;

use hdrhistogram::Histogram;
use outrigger_bench::*;

use crate::args::{Args, Mode};
use crate::h2::h2_upload;

#[derive(Default)]
pub(crate) struct H2State {
    pub(crate) next: u32,
    pub(crate) live: HashMap<u32, (u64, usize)>,
    pub(crate) ready: bool,
    pub(crate) inserted: bool,
    pub(crate) indexing: bool,
    pub(crate) conn_window: i64,
    pub(crate) init_window: i64,
    pub(crate) unacked: u32,
    pub(crate) goaway: bool,
    // uploads that wait for window: stream, bytes left
    pub(crate) pending: VecDeque<(u32, usize, i64)>,
}

pub(crate) struct Conn {
    pub(crate) fd: RawFd,
    pub(crate) connected: bool,
    pub(crate) busy: usize,
    pub(crate) started: VecDeque<u64>,
    pub(crate) inb: Vec<u8>,
    pub(crate) out: Vec<u8>,
    pub(crate) out_pos: usize,
    pub(crate) left: usize, // response body bytes still to come
    pub(crate) want_out: bool,
    pub(crate) h2: H2State,
    pub(crate) done_one: bool,
    pub(crate) gen: u32,
}

pub(crate) struct Run {
    pub(crate) a: Args,
    pub(crate) ep: Epoll,
    pub(crate) conns: Vec<Conn>,
    pub(crate) idle: VecDeque<usize>,
    pub(crate) waiting: VecDeque<u64>,
    pub(crate) hist: Histogram<u64>,
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) errors: u64,
    pub(crate) conn_errors: u64,
    pub(crate) record_from: u64,
    pub(crate) stop_at: u64,
    pub(crate) http_req: Vec<u8>,
    pub(crate) echo_buf: Vec<u8>,
    pub(crate) rr: usize,
    pub(crate) established: usize,
}

pub(crate) static FILL: [u8; 65536] = [b'x'; 65536];

impl Run {
    pub(crate) fn open(&mut self, slot: usize) {
        let src = if matches!(self.a.mode, Mode::Churn | Mode::TcpChurn | Mode::Hold) {
            Some(1 + (self.rr % 200) as u8)
        } else {
            None
        };
        self.rr += 1;
        let fd = match connect(self.a.addr, src) {
            Ok(fd) => fd,
            Err(e) => {
                self.conn_errors += 1;
                if self.conn_errors > 1000 {
                    panic!("connect: {e}");
                }
                return;
            }
        };
        let c = &mut self.conns[slot];
        c.fd = fd;
        c.connected = false;
        c.busy = 0;
        c.inb.clear();
        c.out.clear();
        c.out_pos = 0;
        c.left = 0;
        c.started.clear();
        c.want_out = true;
        c.done_one = false;
        c.gen += 1;
        c.h2 = H2State {
            next: 1,
            indexing: true,
            conn_window: 65535,
            init_window: 65535,
            ..Default::default()
        };
        self.ep.add(fd, libc::EPOLLIN | libc::EPOLLOUT, slot as u64);
    }

    pub(crate) fn finish(&mut self, start: u64, now: u64) {
        if start >= self.record_from && now <= self.stop_at + 2_000_000_000 {
            self.hist.saturating_record((now.saturating_sub(start) / 100).max(1));
            self.count += 1;
        }
    }

    /// Puts one request on a connection.
    pub(crate) fn send(&mut self, slot: usize, start: u64) {
        let (size, reply) = (self.a.size, self.a.reply);
        let c = &mut self.conns[slot];
        c.busy += 1;
        match self.a.mode {
            Mode::Http | Mode::Churn | Mode::Hold => {
                c.started.push_back(start);
                c.out.extend_from_slice(&self.http_req);
            }
            Mode::Echo | Mode::TcpChurn => {
                c.started.push_back(start);
                c.left = size;
                c.out.extend_from_slice(&self.echo_buf);
            }
            Mode::Grpc => {
                let id = c.h2.next;
                c.h2.next += 2;
                c.h2.live.insert(id, (start, 0));
                let out = &mut c.out;
                let at = out.len();
                put_head(out, 0, frame::HEADERS, frame::END_HEADERS, id);
                out.extend_from_slice(&[0x83, 0x86]);
                if c.h2.inserted {
                    out.extend_from_slice(&[0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62]);
                } else {
                    let base = if c.h2.indexing { 0x40 } else { 0 };
                    out.push(base | 4);
                    put_str(out, self.a.path.as_bytes());
                    out.push(base | 1);
                    put_str(out, self.a.host.as_bytes());
                    if c.h2.indexing {
                        out.push(0x40 | 31);
                    } else {
                        out.extend_from_slice(&[0x0f, 16]);
                    }
                    put_str(out, b"application/grpc");
                    out.push(base);
                    put_str(out, b"te");
                    put_str(out, b"trailers");
                    c.h2.inserted = c.h2.indexing;
                }
                let n = out.len() - at - 9;
                out[at + 1] = (n >> 8) as u8;
                out[at + 2] = n as u8;
                let total = 5 + size.max(4);
                let mut msg = Vec::with_capacity(9);
                msg.push(0);
                msg.extend_from_slice(&(size.max(4) as u32).to_be_bytes());
                msg.extend_from_slice(&(reply as u32).to_be_bytes());
                if total <= 16384 && (total as i64) <= c.h2.conn_window && c.h2.pending.is_empty() {
                    c.h2.conn_window -= total as i64;
                    put_head(out, total, frame::DATA, frame::END_STREAM, id);
                    out.extend_from_slice(&msg);
                    out.extend_from_slice(&FILL[..total - 9]);
                } else {
                    // The first nine bytes are one small frame of their own.
                    put_head(out, 9, frame::DATA, 0, id);
                    out.extend_from_slice(&msg);
                    c.h2.conn_window -= 9;
                    let w = c.h2.init_window - 9;
                    c.h2.pending.push_back((id, total - 9, w));
                    h2_upload(c);
                }
            }
            Mode::Source | Mode::Sink => {}
        }
        self.flush(slot);
    }

    pub(crate) fn flush(&mut self, slot: usize) {
        let mode = self.a.mode;
        let c = &mut self.conns[slot];
        if !c.connected {
            return;
        }
        let mut blocked = false;
        if mode == Mode::Sink {
            for _ in 0..16 {
                match write(c.fd, &FILL) {
                    Ok(Some(n)) => self.bytes += n as u64,
                    _ => break,
                }
            }
            return;
        }
        loop {
            while c.out_pos < c.out.len() {
                match write(c.fd, &c.out[c.out_pos..]) {
                    Ok(Some(n)) => c.out_pos += n,
                    Ok(None) => {
                        blocked = true;
                        break;
                    }
                    Err(_) => {
                        self.errors += 1;
                        c.out_pos = c.out.len();
                    }
                }
            }
            if blocked {
                break;
            }
            c.out.clear();
            c.out_pos = 0;
            if mode == Mode::Grpc && !c.h2.pending.is_empty() {
                h2_upload(c);
                if !c.out.is_empty() {
                    continue;
                }
            }
            break;
        }
        if blocked != c.want_out {
            c.want_out = blocked;
            let m = libc::EPOLLIN | if blocked { libc::EPOLLOUT } else { 0 };
            self.ep.modify(c.fd, m, slot as u64);
        }
    }

    pub(crate) fn close(&mut self, slot: usize) {
        let c = &mut self.conns[slot];
        if c.fd >= 0 {
            unsafe {
                libc::close(c.fd);
            }
            c.fd = -1;
        }
        self.idle.retain(|s| *s != slot);
    }

    /// The connection can take another request.
    pub(crate) fn release(&mut self, slot: usize, now: u64) {
        if now >= self.stop_at {
            return;
        }
        if self.a.mode == Mode::Hold {
            return;
        }
        if let Some(start) = self.waiting.pop_front() {
            self.send(slot, start);
        } else if self.a.rate == 0.0 {
            self.send(slot, now);
        } else {
            self.idle.push_back(slot);
        }
    }

    pub(crate) fn on_connected(&mut self, slot: usize, now: u64) {
        self.established += 1;
        match self.a.mode {
            Mode::Grpc => {
                let c = &mut self.conns[slot];
                let mut v = PREFACE.to_vec();
                put_settings(&mut v, &[(2, 0), (4, 1 << 20)]);
                put_window_update(&mut v, 0, (1 << 24) - 65535);
                c.out.extend_from_slice(&v);
                self.flush(slot);
                // Requests start when the peer's SETTINGS are here.
            }
            Mode::Hold => self.send(slot, now),
            Mode::Source => {
                let c = &mut self.conns[slot];
                c.want_out = false;
                self.ep.modify(c.fd, libc::EPOLLIN, slot as u64);
            }
            Mode::Sink => {}
            Mode::Churn | Mode::TcpChurn => {
                let c = &mut self.conns[slot];
                let start = c.started.pop_front().unwrap_or(now);
                self.send(slot, start);
            }
            _ => self.release(slot, now),
        }
    }

    pub(crate) fn new_churn(&mut self, slot: usize, start: u64) {
        self.open(slot);
        self.conns[slot].started.push_back(start);
    }

    pub(crate) fn churn_next(&mut self, slot: usize, now: u64) {
        self.close(slot);
        if now >= self.stop_at {
            return;
        }
        if self.a.rate == 0.0 {
            self.new_churn(slot, now);
        } else if let Some(s) = self.waiting.pop_front() {
            self.new_churn(slot, s);
        } else {
            self.idle.push_back(slot);
        }
    }

    pub(crate) fn due(&mut self, start: u64) {
        if self.a.mode == Mode::Grpc {
            // Spread over connections, up to --streams on each.
            for _ in 0..self.conns.len() {
                self.rr = (self.rr + 1) % self.conns.len();
                let c = &self.conns[self.rr];
                if c.h2.ready && c.busy < self.a.streams {
                    let s = self.rr;
                    self.send(s, start);
                    return;
                }
            }
            self.waiting.push_back(start);
            return;
        }
        match self.idle.pop_front() {
            Some(slot) => {
                if matches!(self.a.mode, Mode::Churn | Mode::TcpChurn) {
                    self.new_churn(slot, start)
                } else {
                    self.send(slot, start)
                }
            }
            None => self.waiting.push_back(start),
        }
    }

    pub(crate) fn on_data(&mut self, slot: usize, data: &[u8], now: u64) {
        self.bytes += data.len() as u64;
        match self.a.mode {
            Mode::Source | Mode::Sink => {}
            Mode::Echo | Mode::TcpChurn => {
                let c = &mut self.conns[slot];
                c.left = c.left.saturating_sub(data.len());
                if c.left == 0 && c.busy > 0 {
                    c.busy -= 1;
                    let start = c.started.pop_front().unwrap_or(now);
                    self.finish(start, now);
                    if self.a.mode == Mode::TcpChurn {
                        self.churn_next(slot, now);
                    } else {
                        self.release(slot, now);
                    }
                }
            }
            Mode::Http | Mode::Churn | Mode::Hold => {
                let c = &mut self.conns[slot];
                let mut d = data;
                loop {
                    if c.left > 0 {
                        let n = c.left.min(d.len());
                        c.left -= n;
                        if c.left > 0 {
                            return;
                        }
                        c.busy = 0;
                        c.done_one = true;
                        let start = c.started.pop_front().unwrap_or(now);
                        self.finish(start, now);
                        if self.a.mode == Mode::Churn {
                            self.churn_next(slot, now);
                        } else {
                            self.release(slot, now);
                        }
                        return;
                    }
                    if d.is_empty() {
                        return;
                    }
                    c.inb.extend_from_slice(d);
                    let Some(end) = memchr::memmem::find(&c.inb, b"\r\n\r\n") else {
                        return;
                    };
                    let head = &c.inb[..end + 2];
                    if head.len() < 12 || &head[9..12] != b"200" {
                        self.errors += 1;
                        if self.errors <= 3 {
                            eprintln!("not 200: {}", String::from_utf8_lossy(head));
                        }
                    }
                    let len = header(head, b"content-length").map(parse_num);
                    let Some(len) = len else {
                        panic!("response without content-length");
                    };
                    let rest = c.inb.len() - end - 4;
                    if len == 0 {
                        panic!("empty response");
                    }
                    c.left = len;
                    d = &data[data.len() - rest..];
                    c.inb.clear();
                }
            }
            Mode::Grpc => self.h2_data(slot, data, now),
        }
    }
}
